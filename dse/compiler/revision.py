"""What identifies a proposer. It goes into the identity of a compile, and with it into the count of holdout openings:
a setting that it does not see would be a free look at the holdout."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from dse.canonical import canonical_json, digest
from dse.contracts.tool import source_revision
from dse.errors import DseError

__all__ = ["revision_of"]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PLAIN = (bool, int, float, str, bytes, type(None))


def revision_of(one: Any) -> str:
    """What identifies a proposer: its source and all its settings, or the ``revision`` that it states."""
    stated = getattr(one, "revision", None)
    if isinstance(stated, str) and stated:
        return stated
    data = dataclasses.is_dataclass(one) and not isinstance(one, type)
    try:
        settings: Any = dataclasses.asdict(one) if data else vars(one)
        canonical_json(settings)
    except (DseError, TypeError):  # settings that are functions or objects
        names = [field.name for field in dataclasses.fields(one)] if data else list(vars(one))
        settings = {name: _setting(getattr(one, name)) for name in names}
    return digest([source_revision(type(one)), settings])[7:19]


def _setting(value: Any) -> Any:
    """A setting as data: all that makes another proposer of it, and nothing that differs from process to process."""
    name = type(value).__qualname__
    if isinstance(value, Mapping):
        return [name, *([_setting(key), _setting(item)] for key, item in value.items())]
    if isinstance(value, (list, tuple)):
        return [name, *map(_setting, value)]
    if isinstance(value, (set, frozenset)):
        return [name, *sorted(map(_setting, value), key=canonical_json)]
    if isinstance(value, functools.partial):
        return [name, _setting(value.func), _setting(value.args), _setting(value.keywords)]
    if isinstance(value, BaseModel):
        return [name, _setting(value.model_dump(mode="json"))]
    if isinstance(stated := getattr(value, "revision", None), str) and stated:
        return [name, getattr(value, "name", ""), stated]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [name, *(_setting(getattr(value, field.name)) for field in dataclasses.fields(value))]
    if inspect.isroutine(value) or isinstance(value, type):
        return [value.__qualname__, source_revision(value), *_bound(value)]
    return [name, _ADDRESS.sub("", repr(value))]


def _bound(fn: Any) -> list[Any]:
    """What a function has besides its source: defaults, constants (several lambdas may stand in one line), and what it
    closes over, as far as that cannot change while it runs."""
    cells = [cell.cell_contents for cell in getattr(fn, "__closure__", None) or () if cell != types.CellType()]
    code = getattr(fn, "__code__", None)
    plain = [one for one in (code.co_consts if code else ()) if isinstance(one, _PLAIN)]
    kept = [one for one in cells if isinstance(one, (*_PLAIN, types.FunctionType, functools.partial))]
    return [_setting(one) for one in (getattr(fn, "__defaults__", None), getattr(fn, "__kwdefaults__", None), plain, kept)]
