"""JSON Schema as the one type language of contracts.

Python types become schemas here (``schema_of``), and a schema alone is enough to validate a value
(``adapter_for``), to write a type in a stub (see ``stubs.py``) and to move a value between its *wire* form
(plain JSON) and the *guest* form that the interpreter's code works with (dates as dates, decimals as
decimals). Formats beyond plain JSON: ``date-time date time duration decimal uuid binary`` and sets
(``uniqueItems``) and fixed tuples (``prefixItems``).
"""

from __future__ import annotations

import datetime as dt
import functools
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Union
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, TypeAdapter, create_model, model_serializer
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

from dse.canonical import canonical_json
from dse.contracts.fitting import FORMATS, GUEST, UNREADABLE, member_of, parser, resolve
from dse.contracts.readable import FromJson, is_strict
from dse.contracts.serialise import dump
from dse.contracts.sets import canonical_sets
from dse.errors import ContractError, Unserialisable

__all__ = ["adapter_for", "dump_wire", "guest_from_wire", "make_model", "misfit", "model_values", "resolve",
           "schema_of", "wire_from_guest"]  # fmt: skip

Schema = dict[str, Any]
_SUBSCHEMAS = ("items", "additionalProperties", "not", "contains", "propertyNames")
_SUBSCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SUBSCHEMA_MAPS = ("properties", "$defs", "patternProperties")


class _Generator(GenerateJsonSchema):
    """Pydantic's schemas, with decimals as strings of format ``decimal`` in both directions."""

    def decimal_schema(self, schema: Any) -> JsonSchemaValue:
        return {"type": "string", "format": "decimal"}

    def field_is_required(self, field: Any, total: bool) -> bool:
        if self.mode == "serialization":  # a field with a default is always there in what a tool returns
            if field["type"] == "typed-dict-field":
                return bool(field.get("required", total))
            return not field.get("serialization_exclude")
        return super().field_is_required(field, total)


def _tidy(schema: Any) -> Any:
    """Drop generated titles (noise in prompts), at schema positions only."""
    if not isinstance(schema, dict):
        return schema
    tidy: Schema = {}
    for key, value in schema.items():
        if key in ("title", "discriminator"):
            continue
        if key in _SUBSCHEMA_MAPS and isinstance(value, dict):
            tidy[key] = {name: _tidy(sub) for name, sub in value.items()}
        elif key in _SUBSCHEMA_LISTS and isinstance(value, list):
            tidy[key] = [_tidy(sub) for sub in value]
        elif key in _SUBSCHEMAS:
            tidy[key] = _tidy(value)
        else:
            tidy[key] = value
    return tidy


def schema_of(adapter: TypeAdapter[Any], mode: JsonSchemaMode) -> Schema:
    """The JSON Schema of a type: ``validation`` for what goes in, ``serialization`` for what comes out."""
    raw = adapter.json_schema(mode=mode, schema_generator=_Generator, by_alias=True)
    name = raw.get("title")
    schema: Schema = _tidy(raw)
    if mode == "serialization" and name and "properties" in schema:  # a returned object keeps its class name
        defs = schema.pop("$defs", {})
        schema = {"$ref": f"#/$defs/{name}", "$defs": {**defs, name: schema}}
    return schema


# --- a schema alone validates -------------------------------------------------------------------------

_PRIMITIVES: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "null": None}
_CONSTRAINTS = {
    "minimum": "ge", "maximum": "le", "exclusiveMinimum": "gt", "exclusiveMaximum": "lt", "multipleOf": "multiple_of",
    "minLength": "min_length", "maxLength": "max_length", "pattern": "pattern",
    "minItems": "min_length", "maxItems": "max_length",
}  # fmt: skip


class _Optional(BaseModel):
    # An object that may leave keys out which have no default: left out is not null.

    absent: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        made: dict[str, Any] = write(self)
        for key in self.absent - self.model_fields_set:
            made.pop(str(type(self).model_fields[key].alias), None)
        return made


class _Builder:
    """Python types out of a schema; named objects become models, so that recursion works."""

    def __init__(self, defs: dict[str, Schema]) -> None:
        self.defs = defs
        self.models: dict[str, type[BaseModel]] = {}
        self.building: set[str] = set()
        self.count = 0

    def annotation(self, schema: Schema | bool) -> Any:
        if schema is True or schema == {}:
            return Any
        if not isinstance(schema, dict):
            return Any
        if "$ref" in schema:
            return self.named(schema["$ref"].rsplit("/", 1)[-1])
        if "const" in schema:
            return Literal[schema["const"]]
        if "enum" in schema:
            return Literal[tuple(schema["enum"])]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return Union[tuple(self.annotation(sub) for sub in schema[key])]  # noqa: UP007
        if len(schema.get("allOf", ())) == 1:
            return self.annotation(schema["allOf"][0])
        kind = schema.get("type")
        if isinstance(kind, list):
            return Union[tuple(self.annotation({**schema, "type": one}) for one in kind)]  # noqa: UP007
        return self.constrained(self.plain(kind, schema), schema)

    def named(self, name: str) -> Any:
        target = self.defs[name]
        if target.get("type") != "object" or "properties" not in target:
            return self.annotation(target)
        if name not in self.models and name not in self.building:
            self.building.add(name)
            self.models[name] = self.model(name, target)
            self.building.discard(name)
        return self.models.get(name, f"{name}")

    def plain(self, kind: str | None, schema: Schema) -> Any:
        if kind == "string":
            return FORMATS.get(schema.get("format", ""), str)
        if kind in _PRIMITIVES:
            return _PRIMITIVES[kind]
        if kind == "array":
            if "prefixItems" in schema:
                parts = tuple(self.annotation(sub) for sub in schema["prefixItems"])
                return tuple[parts]  # type: ignore[valid-type]
            item = self.annotation(schema.get("items", True))
            if schema.get("uniqueItems"):
                return set[item]  # type: ignore[valid-type]
            return list[item]  # type: ignore[valid-type]
        if kind == "object":
            if "properties" in schema:
                self.count += 1
                return self.model(f"Object{self.count}", schema)
            value = self.annotation(schema.get("additionalProperties", True))
            return dict[str, value]  # type: ignore[valid-type]
        return Any

    def constrained(self, type_: Any, schema: Schema) -> Any:
        limits = {_CONSTRAINTS[k]: v for k, v in schema.items() if k in _CONSTRAINTS}
        if type_ in (Decimal, dt.datetime, dt.date, dt.time, dt.timedelta, UUID, bytes):
            limits = {}
        return Annotated[type_, Field(**limits)] if limits and type_ is not Any else type_

    def model(self, name: str, schema: Schema) -> type[BaseModel]:
        required = set(schema.get("required", ()))
        fields: dict[str, Any] = {}
        absent: set[str] = set()
        for index, (key, sub) in enumerate(schema["properties"].items()):
            type_ = self.annotation(sub)
            # Keys may be no identifiers; every field is addressed by its alias.
            if key in required:
                fields[f"f{index}"] = (type_, Field(alias=key))
            else:
                fields[f"f{index}"] = (type_, Field(default=sub.get("default"), alias=key))
                absent |= {f"f{index}"} if "default" not in sub else set()
        extra: Literal["allow", "forbid"] = "allow" if schema.get("additionalProperties") else "forbid"
        if not absent:
            return create_model(name, __config__=ConfigDict(extra=extra), **fields)
        model = create_model(name, __config__=ConfigDict(extra=extra), __base__=_Optional, **fields)
        model.absent = frozenset(absent)
        return model


@functools.lru_cache(maxsize=1024)
def _adapter(text: bytes) -> TypeAdapter[Any]:
    from dse.canonical import parse_json

    schema = parse_json(text)
    builder = _Builder(schema.get("$defs", {}))
    type_ = builder.annotation({k: v for k, v in schema.items() if k != "$defs"})
    for model in builder.models.values():
        model.model_rebuild(_types_namespace=dict(builder.models))
    return TypeAdapter(type_)


def adapter_for(schema: Schema) -> TypeAdapter[Any]:
    """A validator made from the schema alone (no Python types of the declaring code needed)."""
    return _adapter(canonical_json(schema))


def dump_wire(adapter: TypeAdapter[Any], value: Any, schema: Schema) -> Any:
    """The plain JSON form of a value that `adapter` has just validated; sets are sorted, so that equal values have equal text."""
    return canonical_sets(dump(adapter, value), schema, value)


def make_model(name: str, fields: dict[str, tuple[Any, Any, str]]) -> type[BaseModel]:
    """A model of `fields` (name -> annotation, default or ``...``, description) that refuses unknown names.

    Attributes are called ``f0, f1, ...`` so that a field may have any name (``json``, ``copy`` ...).

    Raises:
        ContractError: a default is no value of its field's type, or has no JSON form.
    """
    made: dict[str, Any] = {}
    for index, (field, (annotation, default, text)) in enumerate(fields.items()):
        info = Field(alias=field, description=text or None) if default is ... else Field(
            default, alias=field, description=text or None)  # fmt: skip
        made[f"f{index}"] = (annotation, info)
    model = _created(name, made)
    if is_strict(model.__pydantic_core_schema__):
        model = _created(name, made, __base__=FromJson)
    for key, info in model.model_fields.items():
        if not info.is_required():
            problem = misfit(functools.partial(model.model_construct().model_dump, include={key}))
            if problem:
                raise ContractError(f"The default of {info.alias!r} in {name!r} does not fit its type: {problem}",
                                    value=repr(info.default), remedy=DEFAULT_REMEDY)  # fmt: skip
    return model


def _created(name: str, fields: dict[str, Any], **options: Any) -> type[BaseModel]:
    made: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **options, **fields)
    return made


DEFAULT_REMEDY = "Give a value of that type, or annotate the type that it has."


def misfit(dump: Callable[..., Any]) -> str:
    """Why no call could use a default, which is dumped like a given value; empty if it fits. `dump` is pydantic's."""
    try:
        canonical_json(dump(mode="json", warnings="error"))
    except Unserialisable as exc:
        return exc.what
    except (ValueError, TypeError, RecursionError):
        return "it is of another type"
    return ""


def model_values(made: BaseModel) -> dict[str, Any]:
    """The typed values of a model from `make_model`, by field name."""
    return {str(info.alias): getattr(made, key) for key, info in type(made).model_fields.items()}


# --- wire <-> guest -----------------------------------------------------------------------------------


_Reader = Callable[[Any], Any]
_Z = dt.timezone(dt.timedelta(0), "Z")
"""UTC where a text may have been meant: guests keep the name, and so it comes back as "Z" as it was given."""
_Known = dict[tuple[int, bool], _Reader | None]
_READERS: dict[tuple[int, int], tuple[Any, Any, _Reader | None]] = {}


def guest_from_wire(wire: Any, schema: Any, defs: dict[str, Schema] | None = None) -> Any:
    """A validated wire value as the guest's code sees it: what the stub's types promise.

    Parts in which both are the same are not copied.
    """
    defs = defs or None if isinstance(schema, dict) and "$defs" not in schema else defs
    key = (id(schema), id(defs))
    known = _READERS.get(key)
    if known is None:
        if len(_READERS) > 4096:
            _READERS.clear()
        given = schema.get("$defs", {}) if defs is None and isinstance(schema, dict) else defs or {}
        known = _READERS[key] = (schema, defs, _reader(schema, given, {}))  # the references keep the ids
    return wire if known[2] is None else known[2](wire)


def _reader(schema: Any, defs: dict[str, Schema], known: _Known, doubt: bool = False) -> _Reader | None:
    """What reads values of a schema; None where they stay as they are.

    Args:
        known: readers of references by the identity of the reference, so that a type may hold itself.
        doubt: the value may be of another member of a union, where its texts are texts.
    """
    if not isinstance(schema, dict):
        return None
    if "$ref" not in schema:
        return _plain_reader(schema, defs, known, doubt)
    mark = (id(schema), doubt)
    if mark not in known:
        known[mark] = lambda wire: wire if (read := known[mark]) is None else read(wire)  # while it is being made
        try:
            known[mark] = _plain_reader(resolve(schema, defs), defs, known, doubt)
        except (KeyError, Unserialisable):  # a reference to nothing is an error for whoever reads a value of it
            known[mark] = lambda wire: resolve(schema, defs)
    return known[mark]


def _plain_reader(schema: Schema, defs: dict[str, Schema], known: _Known, doubt: bool) -> _Reader | None:
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return _union_reader(schema[key], defs, known, doubt)
    if len(schema.get("allOf", ())) == 1:
        return _reader(schema["allOf"][0], defs, known, doubt)
    text: _Reader | None = GUEST.get(schema.get("format", "")) if schema.get("type") == "string" else None
    if doubt and schema.get("format") in ("date-time", "time"):
        text = _as_given(text)
    prefix = None if "prefixItems" not in schema else [_reader(sub, defs, known, doubt) for sub in schema["prefixItems"]]
    item, unique = _reader(schema.get("items"), defs, known, doubt), bool(schema.get("uniqueItems"))
    props = {name: _reader(sub, defs, known, doubt) for name, sub in schema.get("properties", {}).items()}
    rest = _reader(schema.get("additionalProperties"), defs, known, doubt)
    changing = [(name, read) for name, read in props.items() if read is not None]
    number = schema.get("type") == "number"
    same_list, same_dict = prefix is None and item is None and not unique, not changing and rest is None
    if text is None and same_list and same_dict and not number:
        return None

    def read(wire: Any) -> Any:
        if isinstance(wire, str):
            if text is None:
                return wire
            try:
                return text(wire)
            except UNREADABLE:  # a serialiser of the type's own writes it in another form, which no schema tells
                return wire
        if isinstance(wire, list):
            if same_list:
                return wire
            if prefix is not None:
                return tuple([one if of is None else of(one) for one, of in zip(wire, prefix, strict=False)])
            items = wire if item is None else [item(one) for one in wire]
            if unique:
                try:
                    return set(items)
                except TypeError:
                    return items
            return items
        if isinstance(wire, dict):
            if same_dict:
                return wire
            if rest is not None:
                return {key: one if (of := props.get(key, rest)) is None else of(one) for key, one in wire.items()}
            made = wire.copy()
            for key, of in changing:
                if key in made:
                    made[key] = of(made[key])
            return made
        if number and isinstance(wire, int) and not isinstance(wire, bool):
            try:
                return float(wire)
            except OverflowError:
                return wire
        return wire

    return read


def _as_given(read: _Reader | None) -> _Reader | None:
    """A reader of times that keeps a "Z"."""

    def reads(wire: Any) -> Any:
        value = wire if read is None else read(wire)
        return value.replace(tzinfo=_Z) if wire.endswith("Z") else value

    return None if read is None else reads


def _union_reader(union: list[Any], defs: dict[str, Schema], known: _Known, doubt: bool) -> _Reader | None:
    union = [sub if isinstance(sub, dict) else {} for sub in union]
    wordy = [sub for sub in union if sub.get("type") not in ("null", "boolean", "integer", "number")]
    doubt = doubt or (len(wordy) > 1 and not all(sub.get("type") == "string" and sub.get("format") in FORMATS for sub in wordy))
    readers = [_reader(sub, defs, known, doubt) for sub in union]
    if not any(readers):
        return None
    try:
        members = [resolve(sub, defs) for sub in union]
    except (KeyError, Unserialisable):
        return lambda wire: [resolve(sub, defs) for sub in union]  # as above

    def read(wire: Any) -> Any:
        index = member_of(wire, members, defs)
        reader = None if index is None else readers[index]
        return wire if reader is None else reader(wire)

    return read


def wire_from_guest(value: Any, path: str = "value", depth: int = 0) -> Any:
    """Plain JSON data out of whatever the guest passed; lossless, or a clear error.

    Raises:
        Unserialisable: for class instances, functions and other values that are not data.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if depth > 100:
        raise Unserialisable(f"{path} is nested deeper than 100 levels", remedy="Flatten the value.")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Unserialisable(f"{path} is {value}, which JSON cannot hold", remedy="Pass a finite number or None.")
        return value
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for key, item in value.items():
            name = key if isinstance(key, str) else str(wire_from_guest(key, f"a key of {path}", depth + 1))
            if name in out:
                raise Unserialisable(f"{path} has two keys that read {name!r}", remedy="Use string keys.")
            out[name] = wire_from_guest(item, f"{path}[{name!r}]", depth + 1)
        return out
    if isinstance(value, (list, tuple)):
        return [wire_from_guest(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return sorted((wire_from_guest(i, f"an item of {path}", depth + 1) for i in value), key=canonical_json)
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        text = value.isoformat()
        named = text.endswith("+00:00") and isinstance(value, (dt.datetime, dt.time)) and value.tzname() == "Z"
        return f"{text[:-6]}Z" if named else text
    if isinstance(value, dt.timedelta):
        return parser(dt.timedelta).dump_python(value, mode="json")
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise Unserialisable(f"{path} is {value}, which is not a number", remedy="Pass a finite number or None.")
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise Unserialisable(f"{path} holds bytes that are not UTF-8", remedy="Pass base64 text.") from None
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    raise Unserialisable(
        f"{path} is an instance of {_class_name(value)}, not data",
        remedy="Pass a dict, list, str, number, bool, date or None.",
    )


def _class_name(value: Any) -> str:
    return str(getattr(value, "name", None) or type(value).__name__)
