"""Type stubs from contracts: what the type checker sees and what the model reads.

From the schemas alone: TypedDict classes for objects, ``Literal`` for enums, ``async def`` for every tool
(so that ``asyncio.gather`` fans out), and a ``submit`` made from the output fields. Optional keys,
descriptions and constraints become comments or ``NotRequired``.
"""

from __future__ import annotations

import keyword
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from dse.canonical import canonical_json
from dse.contracts.schema import resolve
from dse.contracts.schema_check import check_parameters, check_schema, expressible
from dse.contracts.tool import ToolContract

__all__ = ["function_schema", "input_declarations", "presented", "stubs_for"]

_FORMATS = {
    "date-time": "datetime.datetime", "date": "datetime.date", "time": "datetime.time", "duration": "datetime.timedelta",
    "decimal": "Decimal", "binary": "bytes", "base64": "bytes",
}  # fmt: skip
_PRIMITIVES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NOTES = {
    "minimum": ">= {}", "maximum": "<= {}", "exclusiveMinimum": "> {}", "exclusiveMaximum": "< {}", "pattern": "matches {}",
    "minLength": "at least {} characters", "maxLength": "at most {} characters",
    "minItems": "at least {} items", "maxItems": "at most {} items",
}  # fmt: skip

_ABSTAIN = """def abstain(reason: str = "") -> NoReturn:
    \"\"\"Leave this input to somebody else instead of guessing. Ends the task.\"\"\"
    ..."""
_INNER = "_In."  # a class of its own for each is what keeps their names, also in what the checker says
_WIDE = "Decimal | float"
_READING = "from typing import Mapping as _Mapping, ReadOnly as _ReadOnly, Sequence as _Sequence"


# Names that the stubs' imports bind; a class must not take one.
_IMPORTED = frozenset({"Any", "Decimal", "Literal", "NoReturn", "NotRequired", "TypedDict"})


class _Writer:
    """Collects class definitions while types are written; equal objects share one class."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self.classes: dict[str, str] = {}
        self.names: dict[bytes, str] = {}
        self.taken = set(taken)
        self.going_in = False  # arguments take what their validation takes; results are exactly their type
        self.reading = False  # arguments as the checker takes them: see `_Writer.read_only`
        self.inner: dict[str, str] = {}

    def annotation(self, schema: Any, defs: Mapping[str, Any], hint: str) -> str:
        if not isinstance(schema, dict) or not schema:
            return "Any"
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[-1]
            target = defs[name]
            if "properties" in target:
                return self.typed_dict(target, defs, name)
            return self.annotation(target, defs, name)
        if "const" in schema or "enum" in schema:
            return _constants([schema["const"]] if "const" in schema else schema["enum"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return " | ".join(dict.fromkeys(self.annotation(sub, defs, hint) for sub in schema[key]))
        if len(schema.get("allOf", ())) == 1:
            return self.annotation(schema["allOf"][0], defs, hint)
        kind = schema.get("type")
        if isinstance(kind, list):
            return " | ".join(self.annotation({**schema, "type": one}, defs, hint) for one in kind)
        if kind == "string":
            if schema.get("format") == "decimal" and self.going_in:
                return _WIDE
            return _FORMATS.get(schema.get("format", ""), "str")
        if kind in _PRIMITIVES:
            return _PRIMITIVES[kind]
        if kind == "array":
            return self.array(schema, defs, hint)
        if kind == "object":
            if "properties" in schema:
                return self.typed_dict(schema, defs, hint)
            value = self.annotation(schema.get("additionalProperties"), defs, hint + "Value")
            return f"_Mapping[str, {value}]" if self.widened(value) else f"dict[str, {value}]"
        return "Any"

    def array(self, schema: Mapping[str, Any], defs: Mapping[str, Any], hint: str) -> str:
        if "prefixItems" in schema:
            return f"tuple[{', '.join(self.annotation(s, defs, hint) for s in schema['prefixItems'])}]"
        item = self.annotation(schema.get("items"), defs, hint + "Item")
        unique = schema.get("uniqueItems") and not item[:1].isupper()
        if self.widened(item):
            return f"_AbstractSet[{item}]" if unique else f"_Sequence[{item}]"
        return f"set[{item}]" if unique else f"list[{item}]"

    def widened(self, part: str) -> bool:
        """Whether a part of an argument takes more than results have, so that what holds it must not be invariant."""
        return self.reading and (_INNER in part or _WIDE in part)

    def typed_dict(self, schema: Mapping[str, Any], defs: Mapping[str, Any], hint: str) -> str:
        used = _used(schema, defs)
        exact = b'"decimal"' in canonical_json([schema, used]) and self.going_in
        key = canonical_json({"schema": schema, "defs": used, "going_in": exact})
        if key in self.names:
            return self.read_only(schema, defs, self.names[key], exact or _optional([schema, used]))
        base = re.sub(r"\W+", "_", hint, flags=re.ASCII).strip("_") or "Record"
        base = base[0].upper() + base[1:] if not base[0].isdigit() else f"Record{base}"
        name, number = base, 2
        while name in self.taken or keyword.iskeyword(name):
            name, number = f"{base}{number}", number + 1
        self.taken.add(name)
        self.names[key] = name
        self.classes[name] = ""  # keeps the place of a recursive class
        required = set(schema.get("required", ()))
        lines = []
        plain = all(_is_plain(field) for field in schema["properties"])
        for field, sub in schema["properties"].items():
            type_ = self.annotation(sub, defs, name + field[:1].upper() + field[1:])
            if field not in required:
                type_ = f"NotRequired[{type_}]"
            note = _note(resolve(sub, dict(defs)) if isinstance(sub, dict) and "$ref" in sub else sub, schema_level=False)
            lines.append((field, type_, f"  # {note}" if note else ""))
        if plain:
            doc = schema.get("description")
            head = [f"class {name}(TypedDict):"] + ([f"    {_doc(doc, 4)}"] if doc else [])
            body = [f"    {field}: {type_}{note}" for field, type_, note in lines] or ["    pass"]
            del self.classes[name]
            self.classes[name] = "\n".join(head + body)
        else:
            items = ", ".join(f"{field!r}: {type_}" for field, type_, _ in lines)
            del self.classes[name]
            self.classes[name] = f"{name} = TypedDict({name!r}, {{{items}}})"
        return name

    def read_only(self, schema: Mapping[str, Any], defs: Mapping[str, Any], name: str, differs: bool) -> str:
        """The class `name` as an argument that the checker compares with what a tool returned.

        A result has every field that an argument may leave out, and exact types. A dict of it is no dict of the
        argument's class, because the callee could change it; but no tool changes what it is given.
        """
        if not (self.reading and differs):
            return name
        if name not in self.inner:
            self.inner[name] = ""  # a recursive class
            required = schema.get("required", ())
            fields = {}
            for field, sub in schema["properties"].items():
                type_ = f"_ReadOnly[{self.annotation(sub, defs, name + field[:1].upper() + field[1:])}]"
                fields[field] = type_ if field in required else f"NotRequired[{type_}]"
            items = ", ".join(f"{field!r}: {type_}" for field, type_ in fields.items())
            lines = [f"class {name}(TypedDict):", *(f"    {field}: {type_}" for field, type_ in fields.items())]
            plain = f"class {name}(" in self.classes[name]
            self.inner[name] = "\n".join(lines) if plain else f"{name} = TypedDict({name!r}, {{{items}}})"
        return _INNER + name


def _constants(values: list[Any]) -> str:
    literal = [repr(value) for value in values if not isinstance(value, float)]
    parts = [f"Literal[{', '.join(literal)}]"] if literal else []
    return " | ".join(parts + ["float"] * (len(literal) < len(values)))  # no Literal holds a float


def _optional(schema: Any) -> bool:
    """Whether an object in `schema` may leave a field out."""
    if isinstance(schema, dict):
        if isinstance(fields := schema.get("properties"), dict) and set(fields) - set(schema.get("required", ())):
            return True
        return any(_optional(value) for value in schema.values())
    return isinstance(schema, list) and any(_optional(value) for value in schema)


def _used(schema: Any, defs: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> dict[str, Any]:
    used: dict[str, Any] = {}
    if isinstance(schema, dict):
        ref = schema.get("$ref")
        if isinstance(ref, str):  # else a property of that name
            name = ref.rsplit("/", 1)[-1]
            if name not in seen and name in defs:  # below keywords that nothing here knows it may refer to anything
                used[name] = defs[name]
                used |= _used(defs[name], defs, seen | {name})
        for value in schema.values():
            used |= _used(value, defs, seen | set(used))
    elif isinstance(schema, list):
        for value in schema:
            used |= _used(value, defs, seen | set(used))
    return used


def _note(schema: Any, *, schema_level: bool) -> str:
    if not isinstance(schema, dict):
        return ""
    parts = [] if schema_level else [" ".join(str(schema.get("description", "")).split())]
    parts += [text.format(schema[key]) for key, text in _NOTES.items() if key in schema and "prefixItems" not in schema]
    if schema.get("format") == "uuid":
        parts.append("a UUID")
    # one line whatever a schema says: what follows a line break in a comment would be code
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], "; ".join(part for part in parts if part))


def _is_plain(field: str) -> bool:
    """Whether a class body can declare `field` under exactly this name."""
    return (field.isidentifier() and not keyword.iskeyword(field) and not field.startswith("__")
            and unicodedata.normalize("NFKC", field) == field)  # fmt: skip


def _doc(text: str, indent: int) -> str:
    clean = text.replace("\\", "\\\\").replace('"""', "'''").replace("\0", "\\x00").strip()
    if clean.endswith('"'):
        clean += " "
    if "\n" not in clean and len(clean) < 100:
        return f'"""{clean}"""'
    pad = " " * indent
    return f'"""{textwrap.indent(clean, pad).strip()}\n{pad}"""'


def _default(schema: Mapping[str, Any] | bool) -> str:
    if isinstance(schema, bool):
        return "..."
    value = schema.get("default")
    if value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) < 60):
        return repr(value) if "default" in schema else "..."
    return "..."


def _function(writer: _Writer, name: str, parameters: Mapping[str, Any], returns: str, doc: str, *, prefix: str,
              keyword_only: bool = False, checking: bool = False) -> str:  # fmt: skip
    defs = parameters.get("$defs", {})
    required = set(parameters.get("required", ()))
    first, rest, notes = [], [], []
    writer.going_in = True
    for field, sub in parameters.get("properties", {}).items():
        hint = name[:1].upper() + name[1:] + field[:1].upper() + field[1:]
        type_ = writer.annotation(sub, defs, hint)
        if checking:
            writer.reading = True
            type_ = writer.annotation(sub, defs, hint)
            writer.reading = False
        if field in required:
            first.append(f"{field}: {type_}")
        else:
            rest.append(f"{field}: {type_} = {_default(sub)}")
        note = _note(sub, schema_level=False)
        if note:
            notes.append(f"{field}: {note}")
    writer.going_in = False
    star = ["*"] if keyword_only and (first or rest) else []
    text = doc + ("\n\n" if doc and notes else "") + "\n".join(notes)
    body = f"    {_doc(text, 4)}\n    ..." if text else "    ..."
    return f"{prefix} {name}({', '.join(star + first + rest)}) -> {returns}:\n{body}"


def presented(contract: ToolContract, overlays: Mapping[str, str]) -> ToolContract:
    """The contract as a model reads it: with the description that a plan lays over its own."""
    text = overlays.get(contract.name)
    return contract if text is None else ToolContract.model_validate({**contract.model_dump(), "description": text})


def stubs_for(contracts: Iterable[ToolContract], *, outputs: Mapping[str, Any] | None = None, checking: bool = False,
              abstain: bool = False) -> str:  # fmt: skip
    """The ``.pyi`` text of some tools, and of ``submit`` where `outputs` (an object schema) is given.

    The text is deterministic: contracts in the order given. With `checking` it is for the type checker only: then
    what one tool returned may be given to another. With `abstain` there is also the function of that name, at the end.

    Raises:
        ContractError: a schema that is none, or that no stub can express.
    """
    contracts = list(contracts)
    if outputs is not None:
        check_parameters("submit", outputs)
    for contract in contracts:
        check_parameters(contract.name, contract.parameters)
        check_schema(contract.name, contract.returns)
    with expressible(", ".join(contract.name for contract in contracts)):
        return _stubs(contracts, outputs, checking, abstain)


def _stubs(contracts: list[ToolContract], outputs: Mapping[str, Any] | None, checking: bool, abstain: bool) -> str:
    writer = _Writer(taken={c.name for c in contracts} | _IMPORTED | {"submit", *(("abstain",) if abstain else ())})
    functions = []
    if outputs is not None:
        functions.append(_function(writer, "submit", outputs, "NoReturn", "Give the final answer. Ends the task.",
                                   prefix="def", keyword_only=True, checking=checking))  # fmt: skip
    for contract in contracts:
        returns = writer.annotation(contract.returns, contract.returns.get("$defs", {}), _camel(contract.name) + "Result")
        doc = contract.description
        if contract.effect == "write":
            doc = f"{doc}\n\nThis call changes state."
        functions.append(_function(writer, contract.name, contract.parameters, returns, doc.strip(), prefix="async def",
                                   checking=checking))  # fmt: skip
    if abstain:
        functions.append(_ABSTAIN)
    inner = ["\n".join(["class _In:", *(textwrap.indent(text, "    ") for text in writer.inner.values())])] if writer.inner else []
    body = "\n\n".join([*writer.classes.values(), *inner, *functions])
    heads = [_READING] if inner or re.search(r"\b_(Mapping|Sequence|AbstractSet)\[", body) else []
    if "_AbstractSet[" in body:
        heads.append("from typing import AbstractSet as _AbstractSet")
    if "datetime." in body:
        heads.append("import datetime")
    if re.search(r"\bDecimal\b", body):
        heads.append("from decimal import Decimal")
    names = [n for n in ("Any", "Literal", "NoReturn", "NotRequired", "TypedDict") if re.search(rf"\b{n}\b", body)]
    if names:
        heads.append(f"from typing import {', '.join(names)}")
    return "\n".join(heads) + "\n\n" + body + "\n" if heads else body + "\n"


def input_declarations(inputs: Mapping[str, Any]) -> tuple[str, str]:
    """Declarations ``name: type`` of input variables, from an object schema: (needed classes, declarations).

    Raises:
        ContractError: a schema that is none, or that no declaration can express.
    """
    check_parameters("inputs", inputs)
    writer = _Writer()
    defs = inputs.get("$defs", {})
    with expressible("inputs"):
        lines = [f"{name}: {writer.annotation(sub, defs, _camel(name))}" for name, sub in inputs.get("properties", {}).items()]
    return "\n\n".join(writer.classes.values()), "\n".join(lines)


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def function_schema(contract: ToolContract) -> dict[str, Any]:
    """The contract as a native function-calling tool: name, description, parameters.

    Raises:
        ContractError: what it returns has a schema that is none.
    """
    check_schema(contract.name, contract.returns)
    parameters = {k: v for k, v in contract.parameters.items()}
    with expressible(contract.name):
        returns = _returns_note(contract)
    return {
        "name": contract.name,
        "description": "\n".join(part for part in (contract.description, returns) if part),
        "parameters": parameters,
    }


def _returns_note(contract: ToolContract) -> str:
    """What a call returns, in stub notation: native tool schemas have no place for it."""
    writer = _Writer()
    text = writer.annotation(contract.returns, contract.returns.get("$defs", {}), _camel(contract.name) + "Result")
    if text in ("None", "Any"):
        return ""
    classes = "; ".join(
        f"{name} = {{{', '.join(line.strip() for line in body.splitlines()[1:] if not line.strip().startswith(chr(34)))}}}"
        for name, body in writer.classes.items() if body.startswith("class ")
    )  # fmt: skip
    return f"Returns {text}." + (f" {classes}" if classes else "")
