"""What of a Python type can be read from JSON: the check at declaration, before any model is shown the type.

Pydantic gives a JSON Schema to types that it then cannot read back: an enum of decimals, ``Literal[b"x"]``, an iterator. The
core schema that it validates with tells.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from dse.canonical import canonical_json
from dse.errors import Unserialisable

__all__ = ["FromJson", "holds", "is_alias", "is_strict", "unreadable"]

# Not types: functions of pydantic, constants, how values are written.
_ASIDE = frozenset({"metadata", "default", "expected", "members", "config", "serialization", "json_schema_input_schema"})
# What a function of the user's takes is not what the type inside takes.
_OWN = frozenset({"function-before", "function-wrap", "function-plain"})
# Kinds of which JSON holds another form; strictly, Python values of that form are refused.
_STRICT = frozenset({"date", "datetime", "time", "timedelta", "decimal", "uuid", "bytes", "set", "frozenset", "tuple", "enum"})
_BRANCH = {"json-or-python": "json_schema", "lax-or-strict": "lax_schema"}  # of several, the one for JSON


class FromJson(BaseModel):
    # Values that strict types refuse as Python data are read as JSON, in which a date can only be a text.

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Any:
        try:
            return super().model_validate(obj, **options)
        except ValidationError as exc:
            try:
                text = canonical_json(obj)
            except Unserialisable:
                raise exc from None
        return cls.model_validate_json(text)


def _nodes(schema: Any, strict: bool, every: bool) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """The parts of a core schema, each with whether it is strict. With `every` also what a value from JSON does not reach."""
    if isinstance(schema, (list, tuple)):
        for part in schema:
            yield from _nodes(part, strict, every)
    if not isinstance(schema, Mapping):
        return
    kind = schema.get("type")
    if not isinstance(kind, str):  # fields or choices by name
        for part in schema.values():
            yield from _nodes(part, strict, every)
        return
    if "config" in schema:
        strict = bool((schema["config"] or {}).get("strict", False))
    yield schema, bool(schema.get("strict", strict))
    if kind in _OWN and not every:
        return
    for key, part in schema.items():
        if key not in _ASIDE and (every or _BRANCH.get(kind, key) == key):
            yield from _nodes(part, strict, every)


def is_alias(annotation: Any) -> bool:
    """Whether it is a ``type X = ...``, of Python's or of typing_extensions' making."""
    return type(annotation).__name__ == "TypeAliasType" and hasattr(annotation, "__value__")


def holds(core: Any, kind: type) -> bool:
    """Whether a type holds an instance of the class `kind` anywhere."""
    return any(isinstance(cls := node.get("cls"), type) and issubclass(cls, kind) for node, _ in _nodes(core, False, True))


def is_strict(core: Any) -> bool:
    return any(strict for _, strict in _nodes(core, False, True))


def unreadable(core: Any, *, whole: bool, strict: bool = False) -> tuple[str, str] | None:
    """What in a type cannot be read from JSON, and what to declare instead; None if all of it can.

    Args:
        whole: also constants that JSON cannot hold. Whoever has a value of the type can give it, a model cannot.
        strict: also types that refuse the Python form of JSON data.
    """
    for node, strictly in _nodes(core, False, False):
        kind = node["type"]
        if kind == "generator":
            return "an iterator, which can be read once only", "Take a list: list[...]."
        if whole and kind == "enum" and "missing" not in node:
            plain = all(isinstance(one.value, (str, int, float, bool, type(None))) for one in node["members"])
            if not plain and not _comes_back(node["cls"], node["members"]):
                return (f"the enum {node['cls'].__name__}, whose values JSON cannot hold",
                        "Give the enum values that are text or integers.")  # fmt: skip
        if whole and kind == "literal":
            plain = all(type(one) in (str, int, bool, type(None)) for one in node["expected"])
            if not plain and not _comes_back(Literal[tuple(node["expected"])], node["expected"]):
                shown = ", ".join(map(repr, node["expected"]))
                return f"the constant {shown}, which JSON cannot hold", "Use text or integers as constants, or the whole enum."
        if strict and ((strictly and kind in _STRICT) or (kind in ("model", "dataclass") and _refuses_dicts(node))):
            return (f"a strict {kind}, which refuses its JSON form",
                    "Leave out strict, or give this field Field(strict=False).")  # fmt: skip
    return None


def _refuses_dicts(node: Mapping[str, Any]) -> bool:
    config = node.get("config") or {}
    return bool(node.get("strict", node["type"] == "dataclass" and config.get("strict", False)))


def _comes_back(type_: Any, values: Any) -> bool:
    """Whether each of the values of an enum or Literal is read from what it is written as."""
    adapter: TypeAdapter[Any] = TypeAdapter(type_)
    try:
        return all(adapter.validate_python(_written(one)) == one for one in values)
    except (ValueError, TypeError):
        return False


def _written(value: Any) -> Any:
    inner = value.value if isinstance(value, enum.Enum) else value
    return TypeAdapter(type(inner)).dump_python(inner, mode="json")
