"""Names of fields: those that types declare, and the other ones that a value may be given by."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

__all__ = ["also_called", "declared_names"]


def declared_names(schema: Any) -> Iterator[str]:
    """Names of the properties of a JSON Schema, at any depth."""
    parts: Iterable[Any] = schema if isinstance(schema, list) else ()
    if isinstance(schema, dict):
        parts = schema.values()
        if isinstance(schema.get("properties"), dict):
            yield from schema["properties"]
    for part in parts:
        yield from declared_names(part)


@functools.lru_cache(maxsize=1024)
def also_called(params: type[BaseModel], names: frozenset[str]) -> frozenset[str]:
    """What fields of these names inside of parameters may be called as well: their aliases, and their own name where it is
    accepted beside an alias.

    Args:
        params: as `make_model` made them; the fields of this model itself have one name.
    """
    found: set[str] = set()
    for name, given in _fields(params.__pydantic_core_schema__, False):
        if (given | {name}) & names:
            found |= given
    return frozenset(found - names - set(params.model_fields))


def _fields(schema: Any, by_name: bool) -> Iterator[tuple[str, set[str]]]:
    """Every field of the models in a core schema: its name, and what it may be given by or is written as."""
    if isinstance(schema, list):
        for part in schema:
            yield from _fields(part, by_name)
    if not isinstance(schema, dict):
        return
    if schema.get("type") in ("model", "dataclass", "typed-dict"):
        config = schema.get("config") or {}
        by_name = bool(config.get("populate_by_name") or config.get("validate_by_name"))
    fields = schema.get("fields")
    if isinstance(fields, list):
        fields = {field["name"]: field for field in fields}
    for name, field in fields.items() if isinstance(fields, dict) else ():
        yield from _fields(field.get("schema"), by_name)
        alias, written = field.get("validation_alias"), field.get("serialization_alias")
        own = {name} if by_name or alias is None else set()
        yield name, {*_last(alias), *own, *([written] if written else ())}
    for key, part in schema.items():
        if key not in ("fields", "config", "metadata", "serialization"):
            yield from _fields(part, by_name)


def _last(alias: Any) -> Iterator[str]:
    """The names of an alias: itself, or the ends of its paths."""
    if isinstance(alias, str):
        yield alias
    elif isinstance(alias, list) and alias:
        if all(isinstance(path, list) for path in alias):
            for path in alias:
                yield from _last(path)
        else:
            yield from [part for part in alias if isinstance(part, str)][-1:]
