"""Schemas that come as data (from an artifact, from another process) are checked before anything is made of them.

Only what dse itself reads of a schema is checked; other keywords are left alone.
"""

from __future__ import annotations

import contextlib
import keyword
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from dse.canonical import canonical_json
from dse.errors import ContractError, Unserialisable

__all__ = ["check_parameters", "check_schema", "expressible"]

_ONE = ("items", "additionalProperties")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_TYPES = frozenset({"string", "integer", "number", "boolean", "null", "array", "object"})
_REMEDY = "Correct the schema, or declare the tool from a typed function."


def _wrong(tool: str, where: str, what: str, value: Any) -> ContractError:
    return ContractError(f"The schema of {tool!r} at {where} {what}", value=value, remedy=_REMEDY, where=where)


@contextlib.contextmanager
def expressible(tool: str) -> Iterator[None]:
    """Turns the end of the stack into an error about the schema: definitions can form a chain of any length.

    Raises:
        ContractError
    """
    try:
        yield
    except RecursionError:
        raise ContractError("A schema is nested too deeply", value=tool, remedy=_REMEDY) from None


def check_schema(tool: str, schema: Any) -> None:
    """Refuse a schema that dse could not make a type of.

    Raises:
        ContractError: with ``details["where"]``.
    """
    try:
        canonical_json(schema)
    except Unserialisable as exc:
        raise _wrong(tool, "$", f"is not plain JSON data: {exc.what}", exc.value) from None
    defs = schema.get("$defs", {}) if isinstance(schema, dict) else {}
    if not isinstance(defs, dict):
        raise _wrong(tool, "$.$defs", "is not an object", defs)
    for name, part in defs.items():
        if not isinstance(part, dict):
            raise _wrong(tool, f"$.$defs.{name}", "is not an object", part)
        _check(tool, part, defs, f"$.$defs.{name}")
        _refuse_circle(tool, name, defs)
    _check(tool, schema, defs, "$")


def check_parameters(tool: str, schema: Any) -> None:
    """As `check_schema`, for an object whose properties become the parameters of a function.

    Raises:
        ContractError
    """
    check_schema(tool, schema)
    for name in schema.get("properties", {}) if isinstance(schema, dict) else ():
        if not name.isidentifier() or keyword.iskeyword(name) or unicodedata.normalize("NFKC", name) != name:
            raise _wrong(tool, "$.properties", "has a name that no parameter can have", name)


def _check(tool: str, schema: Any, defs: Mapping[str, Any], where: str) -> None:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise _wrong(tool, where, "is neither an object nor true or false", schema)
    if "$ref" in schema:
        ref = schema["$ref"]
        if not isinstance(ref, str) or ref.rsplit("/", 1)[-1] not in defs:
            raise _wrong(tool, where, "refers to a definition that does not exist", ref)
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [] if kind is None else [kind]
    if kind == [] or not all(isinstance(one, str) and one in _TYPES for one in kinds):
        raise _wrong(tool, where, "has no known type", kind)
    for key, right, name in (("properties", dict, "an object"), ("required", list, "a list"), ("enum", list, "a list"),
                             ("description", str, "a string"), ("format", str, "a string")):  # fmt: skip
        if key in schema and not isinstance(schema[key], right):
            raise _wrong(tool, f"{where}.{key}", f"is not {name}", schema[key])
    if not all(isinstance(name, str) for name in schema.get("required", ())):
        raise _wrong(tool, f"{where}.required", "is not a list of names", schema["required"])
    for value in [*schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]:
        if isinstance(value, (list, dict)):
            raise _wrong(tool, where, "has a constant that is no plain value", value)
    if "enum" in schema and not schema["enum"]:
        raise _wrong(tool, f"{where}.enum", "is empty", [])
    for key in _ONE:
        if key in schema:
            _check(tool, schema[key], defs, f"{where}.{key}")
    for key in _MANY:
        if key in schema:
            if not isinstance(schema[key], list) or (not schema[key] and key != "prefixItems"):
                raise _wrong(tool, f"{where}.{key}", "is not a list of schemas", schema[key])
            for index, part in enumerate(schema[key]):
                _check(tool, part, defs, f"{where}.{key}[{index}]")
    for name, part in schema.get("properties", {}).items():
        _check(tool, part, defs, f"{where}.properties.{name}")


def _refuse_circle(tool: str, name: str, defs: Mapping[str, Any]) -> None:
    """A definition that leads back to itself by references alone stands for nothing; through a property it is fine."""
    seen = {name}
    waiting = [defs[name]]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        ref = schema.get("$ref")
        if isinstance(ref, str):
            target = ref.rsplit("/", 1)[-1]
            if target == name:
                raise _wrong(tool, f"$.$defs.{name}", "refers to itself without end", ref)
            if target not in seen and target in defs:
                seen.add(target)
                waiting.append(defs[target])
        elif "properties" not in schema:
            nested = [schema[key] for key in _ONE if key in schema]
            waiting += [*nested, *(part for key in _MANY if isinstance(schema.get(key), list) for part in schema[key])]
