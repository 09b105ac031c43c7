"""What the interpreter hands over, as plain data.

Functions, coroutines, dict views and iterators cross as their repr *text*, instances as proxies. Neither is
data, so an argument that holds one is refused before any tool sees it. Dataclass instances become dicts.
"""

from __future__ import annotations

import re
import sys
from typing import Any

__all__ = ["MAX_BYTES", "MAX_DEPTH", "NotPlain", "bounded_repr", "to_observation", "to_plain"]

MAX_DEPTH = 100
MAX_BYTES = 32 * 2**20
"""Of one value written out: a list of thirty levels that holds each level twice is tiny in the guest and not here."""

_PART = 64  # bytes that a container counts
_TOO_LARGE = f"a value of more than {MAX_BYTES} bytes"

_SCALARS = (bool, int, float, str, bytes, complex)
# The whole text, exactly as the interpreter writes it: everything else in angle brackets is data.
_REPR_TEXT = re.compile(
    r"<coroutine external_future\(\d+\)>|<coroutine object [\w.]+>|<function (?:'[\w.<>]+'|[\w.]+) at 0x[0-9a-f]+>"
    r"|<bound method>|<(?:\w*iterator|itertools\.\w+) object>|<[\w.]+ object at 0x[0-9a-f]+>"
    r"|<re\.Match object; span=\(\d+, \d+\), match=.*>|<module '[\w.]+'>|<class '[\w.]+'>"
    r"|dict_(?:keys|values|items)\(\[.*\]\)",
    re.DOTALL,
)
_NOT_DATA = {
    "type",
    "ellipsis",
    "NotImplementedType",
    "MontyStdTypeProxy",
    "MontyClassTypeProxy",
    "ExternalModule",
}


class NotPlain(TypeError):
    """A value that is not data; the text says what it is and what to pass instead."""


def to_plain(value: Any) -> Any:
    """The value with dataclass instances as dicts.

    Raises:
        NotPlain: it holds an instance, function, un-awaited call, dict view ..., is nested too deeply, or takes more
            than :data:`MAX_BYTES` when everything that it holds several times is written out.
    """
    return _plain(value, 0, [MAX_BYTES])


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    if value is None:
        left[0] -= _PART
        return None
    if isinstance(value, _SCALARS):
        left[0] -= sys.getsizeof(value)
        if left[0] < 0:
            raise NotPlain(_TOO_LARGE)
        if isinstance(value, str) and value[:1] in "<d" and _REPR_TEXT.fullmatch(value):
            raise NotPlain(_explain(value))
        return value
    if depth > MAX_DEPTH:
        raise NotPlain(f"a value nested more than {MAX_DEPTH} levels deep")
    left[0] -= _PART
    if left[0] < 0:
        raise NotPlain(_TOO_LARGE)
    depth += 1
    try:
        if isinstance(value, dict):
            return {_plain(k, depth, left): _plain(v, depth, left) for k, v in value.items()}
        if isinstance(value, tuple):
            return tuple([_plain(v, depth, left) for v in value])
        if isinstance(value, (list, set, frozenset)):
            return type(value)([_plain(v, depth, left) for v in value])
    except TypeError as error:  # a dataclass in a set, which is a dict now
        raise error if isinstance(error, NotPlain) else NotPlain("a set or key that is not data") from None
    kind = type(value).__name__
    if kind == "MontyClassProxy":
        if value.is_dataclass:
            return {k: _plain(v, depth, left) for k, v in value.attributes.items()}
        raise NotPlain(f"an instance of class {value.name}; pass a dict of its fields")
    if isinstance(value, type) or kind in _NOT_DATA:
        raise NotPlain(f"{_name_of(value)}, which is not data")
    left[0] -= sys.getsizeof(value)
    return value


def _name_of(value: Any) -> str:
    return f"`{getattr(value, 'name', None) or getattr(value, '__name__', None) or repr(value)}`"


def _explain(text: str) -> str:
    if text.startswith("<coroutine"):
        return "a call that was not awaited; put `await` before it"
    if text.startswith("dict_"):
        return "a dict view; wrap it in list(...)"
    shown = text if len(text) <= 60 else text[:60] + "…"
    return f"{shown}, which is not data"


def to_observation(value: Any) -> Any:
    """Like :func:`to_plain`, but what is not data, or too much, becomes a short text: for looking at, never an error."""
    return _observed(value, 0, [MAX_BYTES])


def _observed(value: Any, depth: int, left: list[int]) -> Any:
    if value is None or isinstance(value, _SCALARS):
        left[0] -= _PART
        return value
    if depth > MAX_DEPTH:
        return "<nested too deeply>"
    left[0] -= _PART
    if left[0] < 0 and isinstance(value, (dict, list, tuple)):
        return "<too much to show>"
    depth += 1
    if isinstance(value, dict):
        return {k if _is_key(k) else repr(k): _observed(v, depth, left) for k, v in value.items()}
    if isinstance(value, list):
        return [_observed(v, depth, left) for v in value]
    if isinstance(value, tuple):
        return tuple(_observed(v, depth, left) for v in value)
    kind = type(value).__name__
    if kind == "MontyClassProxy":
        if value.is_dataclass:
            return {k: _observed(v, depth, left) for k, v in value.attributes.items()}
        return f"<{value.name} object>"
    if isinstance(value, type):
        return f"<class '{value.__name__}'>"
    if kind in _NOT_DATA:
        return f"<{_name_of(value).strip('`')}>"
    return value


def _is_key(key: Any) -> bool:
    return key is None or isinstance(key, _SCALARS) or type(key).__module__ in ("datetime", "decimal", "builtins")


def bounded_repr(value: Any, limit: int = 2000) -> str:
    """A repr of at most about ``limit`` characters; a longer one starts with the type and size."""
    pieces: list[str] = []
    left = _write(value, pieces, limit, 0)
    text = "".join(pieces)
    if left >= 0:
        return text
    size = f" of {len(value)}" if isinstance(value, (str, bytes, list, tuple, dict, set, frozenset)) else ""
    unit = {"str": " characters", "bytes": " bytes"}.get(type(value).__name__, " items") if size else ""
    return f"{type(value).__name__}{size}{unit}, beginning: {text[:limit]}…"


def _write(value: Any, out: list[str], left: int, depth: int) -> int:
    """Appends the repr of ``value``; returns the characters left, less than 0 when it was cut."""
    if left <= 0:
        return -1
    if depth > 20:
        out.append("...")
        return left - 3
    if isinstance(value, (list, tuple, set, frozenset)) and value:
        start, end = {"list": ("[", "]"), "tuple": ("(", ")")}.get(type(value).__name__, ("{", "}"))
        left = _put(start, out, left)
        for i, item in enumerate(value):
            if left <= 0:
                return -1
            if i:
                left = _put(", ", out, left)
            left = _write(item, out, left, depth + 1)
        return _put(",)" if isinstance(value, tuple) and len(value) == 1 else end, out, left)
    if isinstance(value, dict):
        left = _put("{", out, left)
        for i, (key, item) in enumerate(value.items()):
            if left <= 0:
                return -1
            if i:
                left = _put(", ", out, left)
            left = _put(": ", out, _write(key, out, left, depth + 1))
            left = _write(item, out, left, depth + 1)
        return _put("}", out, left)
    if isinstance(value, (str, bytes)) and len(value) > left:
        return _put(repr(value[:left]), out, left)
    if isinstance(value, int) and value.bit_length() > 8000:
        return _put(f"<int of {value.bit_length()} bits>", out, left)
    return _put(repr(value), out, left)


def _put(text: str, out: list[str], left: int) -> int:
    out.append(text)
    return left - len(text)
