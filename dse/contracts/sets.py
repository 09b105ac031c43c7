"""Sets on the wire: JSON has lists only, and those of sets are in a fixed order, so that equal values have equal text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from dse.canonical import canonical_json
from dse.contracts.fitting import member_of, resolve

__all__ = ["canonical_sets"]

Schema = dict[str, Any]
_UNKNOWN: Any = object()
_SETS: dict[int, tuple[Schema, bool]] = {}


def _has_sets(schema: Schema) -> bool:
    known = _SETS.get(id(schema))
    if known is None:
        if len(_SETS) > 4096:
            _SETS.clear()
        known = _SETS[id(schema)] = (schema, b'"uniqueItems":true' in canonical_json(schema))  # the reference keeps the id
    return known[1]


def canonical_sets(wire: Any, schema: Schema, value: Any = _UNKNOWN) -> Any:
    """`wire` with the items of every set in a fixed order.

    Args:
        value: what it is the wire form of, where somebody has it: whether a list of a union is a set is for that to say.
    """
    return _sort_sets(wire, schema, schema.get("$defs", {}), value) if _has_sets(schema) else wire


def _sort_sets(wire: Any, schema: Any, defs: dict[str, Schema], value: Any) -> Any:
    if not isinstance(schema, dict):
        return wire
    schema = resolve(schema, defs)
    for key in ("anyOf", "oneOf"):
        members = [resolve(sub, defs) if isinstance(sub, dict) else {} for sub in schema.get(key, ())]
        if isinstance(wire, list) and isinstance(value, (list, tuple, set, frozenset)):
            unique = isinstance(value, (set, frozenset))
            members = [one for one in members if one.get("type") != "array" or bool(one.get("uniqueItems")) == unique] or members
        index = member_of(wire, members, defs, in_order=False)
        if index is not None:
            return _sort_sets(wire, members[index], defs, value)
    if isinstance(wire, list):
        parts = list(value) if isinstance(value, (list, tuple)) and len(value) == len(wire) else [_UNKNOWN] * len(wire)
        prefix = schema.get("prefixItems")
        if prefix is not None:
            return [_sort_sets(item, sub, defs, part) for item, sub, part in zip(wire, prefix, parts, strict=False)]
        items = [_sort_sets(item, schema.get("items"), defs, part) for item, part in zip(wire, parts, strict=True)]
        return sorted(items, key=canonical_json) if schema.get("uniqueItems") else items
    if isinstance(wire, dict):
        props, rest, named = schema.get("properties", {}), schema.get("additionalProperties"), _named_parts(value)
        return {key: _sort_sets(item, props.get(key, rest), defs, named.get(key, _UNKNOWN)) for key, item in wire.items()}
    return wire


def _named_parts(value: Any) -> Mapping[Any, Any]:
    """The parts of a typed value by their names on the wire, as far as they are known."""
    if isinstance(value, dict):
        return value
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {info.serialization_alias or info.alias or name: getattr(value, name, _UNKNOWN) for name, info in fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: getattr(value, one.name, _UNKNOWN) for one in dataclasses.fields(value)}
    return {}
