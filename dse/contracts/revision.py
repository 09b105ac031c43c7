"""Revisions of what is given as code: what makes another tool, metric, environment or proposer of it.

Stored rollouts and scores are known by them, and so is a compile: what a revision does not see is served from the store
although it was changed, or is a free look at the holdout. So it covers the source and what was put into it: the values a
function closes over, the arguments of a partial, the object of a method, class and state of an object that is called.

What is seen is data (numbers, texts, dates, enums, patterns, containers of these, dataclasses, models), functions, and
what states a ``revision``. Opaque objects are left out: a tool that is closed over a database handle is an ordinary tool,
and nothing about the handle would be the same in the next process. What a function finds by its name in a module, or
beside itself in the function that made it, is code that it calls, and is not followed.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import dis
import enum
import fractions
import functools
import inspect
import re
import sys
import types
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from dse.canonical import canonical_json, digest, sha256_hex
from dse.errors import DseError

__all__ = ["revision_of", "source_revision"]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis), enum.Enum, Decimal, fractions.Fraction, dt.date,
          dt.time, dt.timedelta, dt.tzinfo, uuid.UUID, PurePath, re.Pattern, range)  # fmt: skip
_FIXED = (*_PLAIN, types.FunctionType, functools.partial)  # cannot become something else while they are in use
_WRAPPED = {"__wrapped__", *functools.WRAPPER_ASSIGNMENTS}
_DEEPEST = 100
_LONGEST_INT = 10_000  # bits; longer ones have no decimal text
# What these define is not part of anybody's code, and its source differs from version to version.
_LIBRARIES = sys.stdlib_module_names | {"pydantic"}


def source_revision(fn: Callable[..., Any]) -> str:
    """A revision for an implementation that has none: a hash of its source (or of its bytecode), and of what was put into it.

    Plain functions have that of their source alone.
    """
    parts = _Parts().besides(fn)
    text = _source(fn)
    return _short(text if not parts else canonical_json([text.encode().hex(), parts]).decode())


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
        parts = _Parts(in_use=True)
        settings = {name: parts.told(value) or _shown(value) for name in names for value in [getattr(one, name)]}
    return digest([_short(_source(type(one))), settings])[7:19]


def _short(text: str) -> str:
    return "src-" + sha256_hex(text.encode())[:12]


def _shown(value: Any) -> str:
    """An object that says nothing else, without what differs from process to process."""
    return f"{type(value).__qualname__} {_ADDRESS.sub('', repr(value))}"


class _Parts:
    """What code consists of besides its source, as texts: equal for equal parts, in every process.

    Args:
        in_use: it is read while the code is in use: values that may change meanwhile are left out of what functions close
            over, and of the state of objects.
    """

    def __init__(self, *, in_use: bool = False) -> None:
        self._in_use = in_use
        self._known: dict[int, tuple[Any, str | None]] = {}  # with the object itself, so that its id stays its own
        self._within: list[int] = []

    def besides(self, fn: Any) -> list[str]:
        """What was put into `fn` and what it wraps; empty for a plain function."""
        layers = list(_layers(fn))
        return [part for layer in layers for part in self._layer(layer, layers)]

    def _layer(self, layer: Any, layers: list[Any]) -> Iterator[str]:
        if isinstance(layer, functools.partial):
            if not any(layer.func is one for one in layers):
                yield self._always(layer.func)
            yield from (self._always(layer.args), self._always(layer.keywords))
        elif inspect.ismethod(layer):
            owner = layer.__self__
            yield owner.__qualname__ if isinstance(owner, type) else self._of_object(owner)
            yield from self._of_function(layer.__func__, layers)
        elif inspect.isfunction(layer):
            yield from self._of_function(layer, layers)
        elif _has_call(layer):
            yield self._of_object(layer)
        elif not isinstance(owner := getattr(layer, "__self__", None), (type(None), type, types.ModuleType)):
            yield self._always(owner)  # a method of a builtin, such as {...}.get

    def _of_function(self, fn: Any, layers: Iterable[Any] = ()) -> Iterator[str]:
        within = "<locals>" in fn.__qualname__
        if fn.__name__ == "<lambda>" and _source(fn).count("lambda") > 1:  # several may stand in one line
            yield digest(_operands(fn.__code__))
        if within and (fn.__defaults__ or fn.__kwdefaults__):  # the other way of closing over a value
            yield from (self._always(fn.__defaults__), self._always(fn.__kwdefaults__))
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # it has none yet
                continue
            if name == "__class__" or any(value is one for one in layers):
                continue
            if inspect.isfunction(value) and _beside(fn, name, value):
                if value is not fn and id(value) not in self._within:
                    self._within.append(id(value))
                    yield from self._of_function(value)
                    self._within.pop()
            elif (told := self._kept(value)) is not None:
                yield f"{name} {told}"

    def _kept(self, value: Any) -> str | None:
        if self._in_use and not (isinstance(value, _FIXED) or _has_call(value)):
            return None
        return self.told(value)

    def _of_object(self, one: Any) -> str:
        """The code of its class, and its state as far as that is told."""
        state = dict(getattr(one, "__dict__", {}))
        slots = [name for cls in type(one).__mro__ for name in _names(cls.__dict__.get("__slots__", ()))]
        state |= {name: getattr(one, name) for name in slots if name not in ("__dict__", "__weakref__") and hasattr(one, name)}
        kept = {name: self._kept(value) for name, value in state.items() if name not in _WRAPPED}
        return digest([self._of_class(type(one)), {str(name): told for name, told in kept.items() if told is not None}])

    def _of_class(self, cls: type) -> list[Any]:
        found: list[Any] = []
        for one in cls.__mro__:
            if _is_library(one):
                continue
            members: dict[str, Any] = {}
            for name, member in vars(one).items():
                inner = _function_of(member)
                if inner is not None:
                    if name == "__call__" or not _is_special(name) or inner.__code__.co_filename != "<string>":  # by @dataclass
                        members[name] = [_source(inner), *self._of_function(inner)]
                elif not _is_special(name) and (told := self._kept(member)) is not None:
                    members[name] = told
            found.append([one.__qualname__, members])
        return found

    def _always(self, value: Any) -> str:
        return self.told(value) or type(value).__qualname__

    def told(self, value: Any) -> str | None:
        """`value` as a text, or None where it cannot be told."""
        name = type(value).__qualname__
        if isinstance(value, _PLAIN):
            if isinstance(value, int) and value.bit_length() > _LONGEST_INT:
                return f"{name} {value:x}"
            return f"{name} {_ADDRESS.sub('', repr(value)) if isinstance(value, enum.Enum) else repr(value)}"
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._within or len(self._within) > _DEEPEST:
            return f"{name} again"
        self._within.append(id(value))
        parts = self._parts(value)
        self._within.pop()
        told = None if parts is None else f"{name} {digest(parts)}"
        self._known[id(value)] = value, told
        return told

    def _parts(self, value: Any) -> list[Any] | None:
        if isinstance(value, (dict, types.MappingProxyType)):
            return [[self._always(key), self._always(item)] for key, item in value.items()]
        if isinstance(value, (list, tuple, deque)):
            return [self._always(one) for one in value]
        if isinstance(value, (set, frozenset)):
            return sorted(self._always(one) for one in value)
        if isinstance(value, (functools.partial, types.MethodType)):
            return [_name(value), _source(value), *self.besides(value)]
        if isinstance(value, type) or inspect.isroutine(value):
            return [_name(value), "" if _is_library(value) else _source(value), *([] if isinstance(value, type) else self.besides(value))]
        if isinstance(stated := _attribute(value, "revision"), str) and stated:
            return [str(_attribute(value, "name") or ""), stated]
        if _has_call(value):
            return [self._of_object(value)]
        if isinstance(value, BaseModel):
            return [[name, self._always(one)] for name, one in {**vars(value), **(value.model_extra or {})}.items()]
        if dataclasses.is_dataclass(value):
            return [self._always(_attribute(value, field.name)) for field in dataclasses.fields(value)]
        return None


def _layers(fn: Any) -> Iterator[Any]:
    seen: set[int] = set()
    while fn is not None and id(fn) not in seen:
        seen.add(id(fn))
        yield fn
        fn = _attribute(fn, "__wrapped__")


def _source(fn: Any) -> str:
    """The source of what `fn` wraps, or its bytecode where there is none."""
    target = inspect.unwrap(fn)
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):
        code = getattr(target, "__code__", None)
        return _bytecode(code) if code else type(target).__qualname__


def _bytecode(code: types.CodeType) -> str:
    def shown(const: Any) -> Any:
        if isinstance(const, types.CodeType):
            return _bytecode(const)
        return sorted(map(repr, const)) if isinstance(const, frozenset) else const  # its order differs between processes

    return repr((code.co_code, tuple(map(shown, code.co_consts)), code.co_names))


def _operands(code: types.CodeType) -> list[str]:
    """Names and constants in the order in which they are used."""
    return [f"{op.opname} {op.argval!r}" for op in dis.get_instructions(code)
            if op.opname.startswith(("LOAD", "RETURN_CONST", "COMPARE", "BINARY")) and isinstance(op.argval, _PLAIN)]  # fmt: skip


def _beside(fn: types.FunctionType, name: str, other: types.FunctionType) -> bool:
    """Whether `other` is a helper that stands under its own name in a function around `fn`, not a value that was given."""
    scope = other.__qualname__.rpartition(".")[0]
    return (other.__name__ == name and other.__module__ == fn.__module__ and scope.endswith("<locals>")
            and fn.__qualname__.startswith(f"{scope}."))  # fmt: skip


def _function_of(member: Any) -> types.FunctionType | None:
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property):
        member = member.func
    return member if inspect.isfunction(member) else None


def _has_call(value: Any) -> bool:
    """Whether it is an object, of a class in Python, that is called like a function."""
    if isinstance(value, type) or inspect.isroutine(value) or isinstance(value, functools.partial):
        return False
    return any(_function_of(vars(cls)["__call__"]) is not None for cls in type(value).__mro__ if "__call__" in vars(cls))


def _is_library(value: Any) -> bool:
    module = getattr(value, "__module__", None) or ""
    named = hasattr(sys.modules.get(module), _name(value).partition(".")[0])  # what is executed may name any module
    return named and module.partition(".")[0] in _LIBRARIES


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name, None)
    except Exception:  # a property of somebody's object
        return None
