"""Signatures: typed tasks with the tools they may use.

A signature class is a declaration; ``spec()`` gives its validated form (fields with adapters and schemas,
instructions, tools, ids). Nothing here imports dspy unless a ``dspy.Signature`` is adopted or asked for.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from dse.canonical import canonical_json, digest
from dse.contracts.readable import is_alias, unreadable
from dse.contracts.schema import DEFAULT_REMEDY, dump_wire, make_model, misfit, model_values, schema_of
from dse.contracts.tool import Tool, check_private
from dse.contracts.toolbox import Toolbox
from dse.errors import InputError, SignatureError, Unserialisable

__all__ = ["FieldSpec", "InputField", "OutputField", "Signature", "SignatureSpec", "validation_summary"]

# Names that a strategy's own prompt fields or the guest's namespace need.
_RESERVED = frozenset({"api", "transcript", "code", "tools", "tool_calls", "next_thought", "history", "submit", "asyncio",
                       "abstain", "outputs", "receipt", "deps"})  # fmt: skip
_IN_SCRIPTS = frozenset({"asyncio", "datetime", "Decimal", "submit"})  # there for every script: nothing else may be called so
_MISSING = object()


@dataclass(frozen=True)
class _Declared:
    role: str
    desc: str
    sensitive: bool
    default: Any


def InputField(*, desc: str = "", sensitive: bool = False, default: Any = _MISSING) -> Any:
    """An input. With a `default` it may be left out; `sensitive` redacts it in receipts and logs."""
    return _Declared("input", desc, sensitive, default)


def OutputField(*, desc: str = "", sensitive: bool = False) -> Any:
    """An output: validated against its type before a run counts as successful."""
    return _Declared("output", desc, sensitive, _MISSING)


@dataclass(frozen=True)
class FieldSpec:
    """One field: its Python type, the adapter for it and the schema of its JSON form."""

    name: str
    annotation: Any
    adapter: TypeAdapter[Any]
    schema: dict[str, Any]
    desc: str = ""
    sensitive: bool = False
    required: bool = True
    default: Any = None


@dataclass(frozen=True)
class SignatureSpec:
    """The validated form of a signature."""

    name: str
    instructions: str
    inputs: Mapping[str, FieldSpec]
    outputs: Mapping[str, FieldSpec]
    tools: tuple[Tool, ...]

    def to_dict(self) -> dict[str, Any]:
        """As data: name, instructions, and per field schema, description, sensitive, required."""

        def fields(specs: Mapping[str, FieldSpec]) -> list[dict[str, Any]]:
            return [
                {"name": f.name, "schema": f.schema, "desc": f.desc, "sensitive": f.sensitive, "required": f.required}
                | ({} if f.required else {"default": f.adapter.dump_python(f.default, mode="json", warnings=False)})
                for f in specs.values()
            ]

        return {"name": self.name, "instructions": self.instructions,
                "inputs": fields(self.inputs), "outputs": fields(self.outputs)}  # fmt: skip

    @functools.cached_property
    def signature_id(self) -> str:
        """Changes when name, instructions or any field change. Tools have ids of their own."""
        return digest(self.to_dict())

    @functools.cached_property
    def tool_names(self) -> tuple[str, ...]:
        return tuple(tool.name for tool in self.tools)

    def toolbox(self) -> Toolbox:
        return Toolbox(self.tools)

    @functools.cached_property
    def _input_model(self) -> type[BaseModel]:
        return _model(self.name + "Inputs", self.inputs)

    @functools.cached_property
    def _output_model(self) -> type[BaseModel]:
        return _model(self.name + "Outputs", self.outputs)

    @functools.cached_property
    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of all inputs as one object."""
        return schema_of(TypeAdapter(self._input_model), "validation")

    @functools.cached_property
    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of all outputs as one object: the parameters of ``submit``."""
        return schema_of(TypeAdapter(self._output_model), "validation")

    def validate_inputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Typed inputs.

        Raises:
            InputError: unknown, missing or ill-typed inputs, all of them named.
        """
        try:
            made = self._input_model.model_validate(dict(values))
        except ValidationError as exc:
            raise InputError(f"The inputs do not fit {self.name}", value=validation_summary(exc, hide=self.sensitive),
                             remedy=f"It takes: {', '.join(self.inputs)}.") from None  # fmt: skip
        return model_values(made)

    def validate_outputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Typed outputs; raises pydantic's ``ValidationError``, which strategies turn into repairs."""
        made = self._output_model.model_validate(dict(values))
        return model_values(made)

    def wire_inputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Validated inputs as JSON data.

        Raises:
            InputError: an input that JSON cannot hold, such as NaN or half a surrogate pair.
        """
        wire = _wire(self.inputs, values)
        for name, value in wire.items():
            try:
                canonical_json(value)
            except Unserialisable as exc:  # its value may be sensitive
                raise InputError(f"The inputs do not fit {self.name}", value=f"{name}: {exc.what}", remedy=exc.remedy) from None
        return wire

    def wire_outputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return _wire(self.outputs, values)

    @functools.cached_property
    def sensitive(self) -> frozenset[str]:
        return frozenset(f.name for f in (*self.inputs.values(), *self.outputs.values()) if f.sensitive)


def validation_summary(exc: ValidationError, limit: int = 8, *, hide: Collection[str] = ()) -> str:
    """One line: where and what, without pydantic's links and without repeating long inputs.

    Args:
        hide: fields of which nothing is quoted.
    """
    errors = exc.errors(include_url=False, include_context=False)
    lines = []
    for error in errors[:limit]:
        where = ".".join(str(part) for part in error["loc"]) or "value"
        got = repr(error.get("input"))
        shown = got if len(got) <= 80 else got[:77] + "..."
        if set(map(str, error["loc"])) & set(hide):
            own_words = error["type"] in ("value_error", "assertion_error")  # a validator's text may quote the value
            lines.append(f"{where}: {'invalid' if own_words else error['msg']}")
            continue
        lines.append(f"{where}: {error['msg']}" + ("" if error["type"] == "missing" else f" (got {shown})"))
    if len(errors) > limit:
        lines.append(f"and {len(errors) - limit} more")
    return "; ".join(lines)


def _model(name: str, fields: Mapping[str, FieldSpec]) -> type[BaseModel]:
    return make_model(name, {f.name: (f.annotation, ... if f.required else f.default, f.desc) for f in fields.values()})


def _wire(fields: Mapping[str, FieldSpec], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dump_wire(fields[name].adapter, value, fields[name].schema) for name, value in values.items()}


class Signature:
    """Base class of signatures.

    ::

        class Audit(dse.Signature):
            \"\"\"Find everyone who exceeded their travel budget.\"\"\"
            question: str = dse.InputField(desc="what to find out")
            names: list[str] = dse.OutputField()
            tools = [get_team, get_expenses]
    """

    tools: ClassVar[Iterable[Any]] = ()
    _spec: ClassVar[SignatureSpec | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._spec = _build(cls)

    def __init__(self) -> None:
        raise SignatureError("A signature is a declaration and has no instances", value=type(self).__name__,
                             remedy="Pass the class to dse.Program, dse.Task or dse.load.")  # fmt: skip

    @classmethod
    def spec(cls) -> SignatureSpec:
        if cls._spec is None:
            raise SignatureError("dse.Signature itself declares nothing", remedy="Subclass it.")
        return cls._spec

    @classmethod
    def from_dspy(cls, signature: Any, tools: Iterable[Any] = ()) -> type[Signature]:
        """Adopt a ``dspy.Signature`` class (or its string form) and callables.

        Plain callables have no declared effect: wrap them with ``dse.tool(effect=...)`` first.

        Raises:
            SignatureError
        """
        import dspy

        if isinstance(signature, str):
            signature = dspy.Signature(signature)
        namespace: dict[str, Any] = {"__doc__": signature.instructions, "tools": list(tools), "__annotations__": {},
                                     "__module__": __name__}  # fmt: skip
        for names, role in ((signature.input_fields, "input"), (signature.output_fields, "output")):
            for name, info in names.items():
                desc = (info.json_schema_extra or {}).get("desc") or ""
                default = _MISSING if info.is_required() else info.get_default(call_default_factory=True)
                namespace["__annotations__"][name] = info.annotation
                namespace[name] = _Declared(role, "" if desc == f"${{{name}}}" else desc, False, default)
        return type(signature.__name__, (cls,), namespace)

    @classmethod
    def as_dspy(cls) -> Any:
        """The same inputs, outputs and instructions as a ``dspy.Signature`` class (tools stay with dse)."""
        return dspy_signature(cls.spec())


@functools.lru_cache(maxsize=256)
def _dspy_cached(key: str, holder: _Holder) -> Any:
    import dspy

    spec = holder.spec
    fields: dict[str, Any] = {}
    for f in spec.inputs.values():
        fields[f.name] = (_dspy_type(f.annotation), dspy.InputField(**({"desc": f.desc} if f.desc else {})))
    for f in spec.outputs.values():
        fields[f.name] = (_dspy_type(f.annotation), dspy.OutputField(**({"desc": f.desc} if f.desc else {})))
    return dspy.Signature(fields, spec.instructions, signature_name=spec.name)


def _dspy_type(annotation: Any) -> Any:
    """What dspy takes as a type: it does not know names for types, ``NewType`` and ``type X = ...``."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, typing.NewType):
        return _dspy_type(annotation.__supertype__)
    if origin is Annotated and (base := _dspy_type(args[0])) is not args[0]:
        return Annotated[(base, *args[1:])]
    alias = annotation if origin is None else origin
    if is_alias(alias):
        meant = alias.__value__ if origin is None else alias.__value__[args]
        # One that means itself only by name has no other form; its values are validated here in any case.
        return Any if _by_name(meant) else _dspy_type(meant)
    return annotation


def _by_name(annotation: Any) -> bool:
    return isinstance(annotation, (str, typing.ForwardRef)) or any(map(_by_name, typing.get_args(annotation)))


class _Holder:
    """Keeps the spec out of the cache key: Python types differ where schemas agree."""

    def __init__(self, spec: SignatureSpec) -> None:
        self.spec = spec

    def __hash__(self) -> int:
        return id(self.spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Holder) and other.spec is self.spec


def dspy_signature(spec: SignatureSpec) -> Any:
    """`spec` as a dspy signature class (cached per spec)."""
    return _dspy_cached(spec.signature_id, _Holder(spec))


def _build(cls: type[Signature]) -> SignatureSpec:
    name = cls.__name__
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as exc:
        raise SignatureError(f"Signature {name!r} has an annotation that cannot be resolved", value=str(exc),
                             remedy="Define or import that type at module level before the signature.") from exc  # fmt: skip
    inputs: dict[str, FieldSpec] = {}
    outputs: dict[str, FieldSpec] = {}
    for base in reversed(cls.__mro__):
        for attribute, declared in vars(base).items():
            if isinstance(declared, _Declared):
                spec = _field(name, attribute, declared, hints)
                (inputs if declared.role == "input" else outputs)[attribute] = spec
    for attribute in cls.__annotations__ if "__annotations__" in vars(cls) else ():
        if attribute not in inputs and attribute not in outputs and attribute not in ("tools", "_spec"):
            raise SignatureError(f"{name}.{attribute} is annotated but is neither input nor output", value=attribute,
                                 remedy="Assign dse.InputField() or dse.OutputField() to it.")  # fmt: skip
    if not inputs or not outputs:
        raise SignatureError(f"Signature {name!r} needs at least one input and one output",
                             value=f"{len(inputs)} inputs, {len(outputs)} outputs",
                             remedy="Declare fields with dse.InputField() and dse.OutputField().")  # fmt: skip
    both = set(inputs) & set(outputs)
    if both:
        raise SignatureError(f"{name} uses a name for an input and an output", value=", ".join(sorted(both)),
                             remedy="Rename one of them.")  # fmt: skip
    instructions = inspect.cleandoc(cls.__doc__ or "")
    if not instructions:
        raise SignatureError(f"Signature {name!r} has no instructions", remedy="Write them as its docstring.")
    return SignatureSpec(name, instructions, inputs, outputs, _tools(name, cls.tools, set(inputs)))


def _field(owner: str, name: str, declared: _Declared, hints: Mapping[str, Any]) -> FieldSpec:
    where = f"{owner}.{name}"
    if name not in hints:
        raise SignatureError(f"{where} has no type annotation", value=name, remedy="Annotate it.")
    taken = _RESERVED | _IN_SCRIPTS if declared.role == "input" else _RESERVED
    if name in taken or name.startswith("_") or not name.isascii():
        raise SignatureError(f"{where} uses a reserved or private name", value=name, remedy="Rename the field.")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(hints[name])
        schema = schema_of(adapter, "validation")
    except (PydanticSchemaGenerationError, PydanticUserError) as exc:
        raise SignatureError(f"{where} has a type that has no JSON form", value=str(hints[name]),
                             remedy="Use models, dataclasses, TypedDict (of typing_extensions before Python 3.12), Literal, Enum, list, dict and plain types.") from exc  # fmt: skip
    check_private(adapter.core_schema, where, SignatureError)
    from_model = declared.role == "output"  # an input comes from a program, which has the values themselves
    if found := unreadable(adapter.core_schema, whole=from_model, strict=from_model):
        raise SignatureError(f"{where} takes {found[0]}", value=str(hints[name]), remedy=found[1])
    required = declared.default is _MISSING
    if not required and (problem := misfit(functools.partial(adapter.dump_python, declared.default))):
        raise SignatureError(f"The default of {where} does not fit its type: {problem}", value=repr(declared.default),
                             remedy=DEFAULT_REMEDY)  # fmt: skip
    return FieldSpec(name, hints[name], adapter, schema, declared.desc, declared.sensitive, required,
                     None if required else declared.default)  # fmt: skip


def _tools(owner: str, declared: Iterable[Any] | Callable[..., Any], inputs: set[str]) -> tuple[Tool, ...]:
    if isinstance(declared, Toolbox):
        declared = list(declared)
    if not isinstance(declared, Iterable):
        raise SignatureError(f"{owner}.tools is not a list", value=repr(declared), remedy="Write tools = [one, other].")
    tools: list[Tool] = []
    for one in declared:
        if not isinstance(one, Tool):
            raise SignatureError(f"{owner}.tools holds something that is not a declared tool", value=repr(one),
                                 remedy="Decorate it: @dse.tool(effect='read').")  # fmt: skip
        if any(one.name == other.name for other in tools):
            raise SignatureError(f"{owner}.tools names one tool twice", value=one.name, remedy="Remove one.")
        if one.name in _IN_SCRIPTS:
            raise SignatureError(f"{owner} has a tool of a reserved name", value=one.name,
                                 remedy="Rename it with @dse.tool(name=...).")  # fmt: skip
        if one.name in inputs:
            raise SignatureError(f"{owner} has a tool and an input of the same name", value=one.name,
                                 remedy="Rename one of them: code sees both as variables.")  # fmt: skip
        tools.append(one)
    return tuple(tools)
