"""Conditions of approvals: declared as values of a parameter's type, kept in wire form, compared as the guest sees both.

A condition that does not match where it should lets a call through that somebody wanted to see. So an expected value goes the
way of an argument (the parameter's own type, then its wire form), and one that this cannot be said of is refused where it is
declared, or asks for a decision where it comes as data.
"""

from __future__ import annotations

import datetime as dt
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ValidationError

from dse.canonical import canonical_json
from dse.contracts.schema import adapter_for, dump_wire, guest_from_wire, resolve
from dse.contracts.sets import canonical_sets
from dse.errors import ContractError

__all__ = ["OPERATORS", "Condition", "all_hold", "in_wire", "read_conditions"]

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le,
    "in": lambda a, b: any(a == one for one in b), "not_in": lambda a, b: all(a != one for one in b),
}  # fmt: skip
_MANY = ("in", "not_in")
_ORDER = ("gt", "ge", "lt", "le")
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength",
                     "pattern"})  # fmt: skip
When = Mapping[str, Mapping[Any, Any]]
Condition = tuple[str, str, list[Any] | None]
"""Argument, operator and expected values as the guest sees them; None where they are no values of the argument's type."""


def in_wire(tool: str, when: When, params: type[BaseModel], parameters: Mapping[str, Any]) -> dict[str, dict[Any, Any]]:
    """`when` with expected values in wire form. What is JSON already and means the same stays as it was written.

    Args:
        params: the parameters as `make_model` made them.
        parameters: their schema.

    Raises:
        ContractError: an expected value is none of its parameter's type, or has no order where one is asked for.
    """
    keys = {info.alias: key for key, info in params.model_fields.items()}
    made: dict[str, dict[Any, Any]] = {name: dict(conditions) for name, conditions in when.items()}
    for name, conditions in made.items():
        for op, expected in conditions.items() if name in keys else ():
            try:
                if op not in _MANY:
                    conditions[op] = _one(expected, op, params, keys[name], name, parameters)
                    continue
                if not isinstance(expected, (list, tuple, set, frozenset)):
                    raise TypeError("it takes a list of values")
                listed = [_one(one, op, params, keys[name], name, parameters) for one in expected]
                conditions[op] = sorted(listed, key=canonical_json) if isinstance(expected, (set, frozenset)) else listed
            except Exception as exc:  # also from a validator of the type
                problem = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else str(exc) or type(exc).__name__
                raise ContractError(f"The approval of tool {tool!r} compares {name!r} with what cannot be compared with it: "
                                    f"{problem}", value=f"{op}: {expected!r}",
                                    remedy="Give a value of the parameter's type, and a list of them for in and not_in.") from exc  # fmt: skip
    return made


def _one(given: Any, op: str, params: type[BaseModel], key: str, name: str, parameters: Mapping[str, Any]) -> Any:
    schema, defs = parameters["properties"][name], parameters.get("$defs", {})
    made = params.model_construct()
    typed: Any = None
    try:
        params.__pydantic_validator__.validate_assignment(made, key, given)
        typed = getattr(made, key)
        wire = made.model_dump(mode="json", by_alias=True, include={key}, warnings="error")[name]
        wire = canonical_sets({name: wire}, dict(parameters), {name: typed})[name]
    except Exception:
        if op not in _ORDER:
            raise
        wire = typed = _through(given, _unbounded(schema, defs), defs)  # a limit need not be a value that could be given
    canonical_json(wire)
    guest = guest_from_wire(wire, schema, defs)
    if op in _ORDER:
        OPERATORS[op](guest, guest)
        if isinstance(guest, str) and not isinstance(typed, (str, UUID)):
            raise TypeError(f"values of {type(typed).__name__} are not in the order of their texts")
    try:
        canonical_json(given)
        return given if guest_from_wire(given, schema, defs) == guest else wire
    except Exception:
        return wire


def read_conditions(when: When, parameters: Mapping[str, Any]) -> list[Condition]:
    """Conditions in wire form as the guest sees their values, which is how arguments are compared with them."""
    properties, defs = parameters.get("properties", {}), parameters.get("$defs", {})
    made: list[Condition] = []
    for name, conditions in when.items():
        for op, expected in conditions.items():
            try:
                schema = properties[name]
                if op in _MANY and not isinstance(expected, (list, tuple)):
                    raise TypeError("it takes a list of values")
                bare = _unbounded(schema, defs) if op in _ORDER else schema
                values = [guest_from_wire(_through(one, bare, defs), schema, defs)
                          for one in (expected if op in _MANY else [expected])]  # fmt: skip
                made.append((name, op, values))
            except Exception:
                made.append((name, op, None))
    return made


def all_hold(conditions: list[Condition], wire: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether every condition holds of the arguments in wire form; one that cannot be decided counts as if all did."""
    properties, defs = parameters.get("properties", {}), parameters.get("$defs", {})
    for name, op, wanted in conditions:
        try:
            if wanted is None:
                return True
            value = guest_from_wire(wire.get(name), properties[name], defs)
            if len(set(_zoned([value, *wanted]))) > 1:
                return True  # a time with a zone is neither equal to one without nor different from it
            if not OPERATORS[op](value, wanted if op in _MANY else wanted[0]):
                return False
        except Exception:
            return True
    return True


def _through(given: Any, schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Any:
    """`given` as a value of a schema, in wire form."""
    whole = {**schema, "$defs": dict(defs)} if defs else dict(schema)
    adapter = adapter_for(whole)
    return dump_wire(adapter, adapter.validate_python(given), whole)


def _unbounded(schema: Any, defs: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that takes limits as well: without bounds of its own, and 99.5 beside integers."""
    made = {key: value for key, value in resolve(schema, dict(defs)).items() if key not in _BOUNDS}
    if made.get("type") == "integer":
        made["type"] = ["integer", "number"]
    for key in ("anyOf", "oneOf"):
        if key in made:
            made[key] = [_unbounded(sub, defs) for sub in made[key]]
    return made


def _zoned(value: Any) -> Iterator[bool]:
    """Of every time in a value, whether it has a zone."""
    if isinstance(value, (dt.datetime, dt.time)):
        yield value.tzinfo is not None
    elif isinstance(value, (list, tuple, set)):
        for one in value:
            yield from _zoned(one)
    elif isinstance(value, dict):
        yield from _zoned(list(value.values()))
