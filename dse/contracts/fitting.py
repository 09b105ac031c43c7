"""Which member of a union a wire value is of.

A wire value (plain JSON) does not say which type it was written from. It *fits* a schema if everything in it does: the
constants and keys of objects, the items of arrays, the formats of text. It fits *exactly* if the value that the guest would
read from it is written in the same way again: ``"01234"`` is no decimal, because that would come back as ``"1234"``.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
from collections.abc import Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter

from dse.canonical import canonical_json
from dse.errors import Unserialisable

__all__ = ["FORMATS", "GUEST", "UNREADABLE", "member_of", "parser", "resolve"]

Schema = dict[str, Any]
UNREADABLE = (ValueError, TypeError, ArithmeticError)  # what reading a text as its format raises where it is in another one
FORMATS: dict[str, Any] = {
    "date-time": dt.datetime, "date": dt.date, "time": dt.time, "duration": dt.timedelta,
    "decimal": Decimal, "uuid": UUID, "uuid4": UUID, "binary": bytes, "base64": bytes,
}  # fmt: skip
_UNIONS = ("anyOf", "oneOf")


@functools.lru_cache(maxsize=8)
def parser(type_: Any) -> TypeAdapter[Any]:
    return TypeAdapter(type_)


def _decimal(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(f"{text} is not a number")
    return value


# Text of a format as the guest's code sees it.
GUEST: dict[str, Any] = {
    "date-time": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "duration": lambda text: parser(dt.timedelta).validate_python(text),
    "decimal": _decimal,
    "binary": lambda text: text.encode(),
    "base64": base64.b64decode,
}


def resolve(schema: Schema, defs: dict[str, Schema]) -> Schema:
    """Follow ``$ref`` into `defs`; keeps sibling keywords such as ``description`` and ``default``."""
    seen = 0
    while "$ref" in schema:
        target = defs[schema["$ref"].rsplit("/", 1)[-1]]
        schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
        seen += 1
        if seen > 50:
            raise Unserialisable("A schema refers to itself without end", value=str(schema)[:80])
    return schema


def member_of(wire: Any, union: Sequence[Schema], defs: dict[str, Schema], *, in_order: bool = True) -> int | None:
    """The place in `union` (resolved members) of the first that `wire` fits exactly, else of the first that it fits.

    None if it fits none: such a value stays as it is.

    Args:
        in_order: the items of sets are in their fixed order already, so that any other one says that it is a list.
    """
    possible = [index for index, sub in enumerate(union) if _may_fit(wire, sub)]
    if len(possible) <= 1:  # the usual case: a value or null
        return possible[0] if possible else None
    for exactly in (True, False):
        fitting = _Fitting(defs, exactly, in_order)
        for index in possible:
            if fitting.fits(wire, union[index]):
                return index
    return None


def _may_fit(wire: Any, schema: Schema) -> bool:
    """Whether the kind of value is right; says nothing about what is in it."""
    if any(key in schema for key in (*_UNIONS, "allOf")):
        return True
    if "const" in schema:
        return _same(wire, schema["const"])
    if "enum" in schema:
        return any(_same(wire, one) for one in schema["enum"])
    kind = schema.get("type")
    return kind is None or any(_is(wire, one) for one in (kind if isinstance(kind, list) else [kind]))


def _is(wire: Any, kind: str) -> bool:
    if isinstance(wire, bool) or wire is None:
        return kind == ("null" if wire is None else "boolean")
    if kind == "number":
        return isinstance(wire, (int, float))
    return isinstance(wire, {"integer": int, "string": str, "array": list, "object": dict}.get(kind, ()))


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


class _Fitting:
    """One question about one value; what was found about its parts is kept, as similar members ask for the same."""

    def __init__(self, defs: dict[str, Schema], exactly: bool, in_order: bool) -> None:
        self.defs, self.exactly, self.in_order = defs, exactly, in_order
        self.known: dict[tuple[int, int], bool] = {}  # the value and the schemas outlive the question: ids are stable

    def fits(self, wire: Any, schema: Any) -> bool:
        if not isinstance(schema, dict):
            return schema is not False
        if not isinstance(wire, (list, dict)):
            return self._fits(wire, schema)
        key = (id(wire), id(schema))
        if key not in self.known:
            self.known[key] = self._fits(wire, schema)
        return self.known[key]

    def _fits(self, wire: Any, schema: Schema) -> bool:
        if "$ref" in schema:
            # Siblings of a reference say nothing about the form of the value; the definition itself keeps its identity.
            return self.fits(wire, self.defs.get(schema["$ref"].rsplit("/", 1)[-1], {}))
        if not _may_fit(wire, schema):
            return False
        for key in _UNIONS:
            if key in schema and not any(self.fits(wire, sub) for sub in schema[key]):
                return False
        if not all(self.fits(wire, sub) for sub in schema.get("allOf", ())):
            return False
        if isinstance(wire, str):
            return "const" in schema or "enum" in schema or self._reads(wire, schema)
        if isinstance(wire, list):
            return self._items(wire, schema)
        if isinstance(wire, dict):
            return self._properties(wire, schema)
        if self.exactly and isinstance(wire, int) and not isinstance(wire, bool) and schema.get("type") == "number":
            return "const" in schema or "enum" in schema  # 3 is written by an integer; a float is read, and written, as 3.0
        return True

    def _reads(self, wire: str, schema: Schema) -> bool:
        name = schema.get("format", "")
        if not self.exactly or schema.get("type") != "string" or name not in FORMATS:
            return True
        try:
            if name in ("binary", "base64"):
                return bool(GUEST[name](wire).decode() == wire)
            if name in GUEST:
                value = GUEST[name](wire)
                return bool(parser(FORMATS[name]).dump_python(value, mode="json") == wire)
            return str(UUID(wire)) == wire
        except UNREADABLE:
            return False

    def _items(self, wire: list[Any], schema: Schema) -> bool:
        prefix = schema.get("prefixItems")
        if prefix is not None:
            return len(prefix) == len(wire) and all(map(self.fits, wire, prefix))
        items = schema.get("items", True)
        if not all(self.fits(one, items) for one in wire):
            return False
        if not self.exactly or not schema.get("uniqueItems"):
            return True
        texts = [canonical_json(one) for one in wire]
        return sorted(set(texts)) == (texts if self.in_order else sorted(texts))

    def _properties(self, wire: dict[str, Any], schema: Schema) -> bool:
        props, rest = schema.get("properties"), schema.get("additionalProperties", True)
        if not all(key in wire for key in schema.get("required", ())):
            return False
        if props is None:
            return all(self.fits(one, rest) for one in wire.values())
        if not schema.get("additionalProperties") and not all(key in props for key in wire):
            return False
        parts = [(one, props.get(key, rest)) for key, one in wire.items()]
        parts.sort(key=lambda part: isinstance(part[0], (list, dict)))  # what tells members apart is mostly a constant
        return all(self.fits(one, sub) for one, sub in parts)
