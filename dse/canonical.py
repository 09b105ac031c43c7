"""Canonical JSON and content ids.

One value has one text: keys sorted by code point, no spaces, UTF-8, no NaN or infinity, floats in
Python's shortest form with integral floats kept as floats (``1.0`` is not ``1``). Ids are ``sha256:<hex>``
of that text. Reading is strict: duplicate keys, NaN, trailing text and whatever has no canonical text are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, NoReturn

from dse.errors import MalformedJSON, Unserialisable

__all__ = ["MAX_DEPTH", "canonical_json", "deeper_than", "digest", "parse_json", "sha256_hex"]

MAX_DEPTH = 200
_TOO_LONG = 10**4300  # an integer with more digits cannot be written, or read back
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # also in the escapes of pairs, which are fine
_HALF = re.compile("[\ud800-\udfff]")
# Made once: making an encoder takes as long as most texts do. What holds itself is too deep, and never comes this far.
_text = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False).encode


def _is_plain(value: Any, depth: int) -> bool:
    """Whether `_check` would pass, without the cost of knowing where it would not."""
    kind = type(value)
    if kind is str:
        return value.isascii() or not _HALF.search(value)
    if kind is dict:
        if depth > MAX_DEPTH:
            return False
        for key, item in value.items():
            if type(key) is not str or not (key.isascii() or not _HALF.search(key)) or not _is_plain(item, depth + 1):
                return False
        return True
    if kind is list or kind is tuple:
        return depth <= MAX_DEPTH and all(_is_plain(item, depth + 1) for item in value)
    if kind is float:
        return math.isfinite(value)
    if kind is int:
        return bool(-_TOO_LONG < value < _TOO_LONG)
    return value is None or kind is bool


def _check(value: Any, path: str, depth: int) -> None:
    kind = type(value)
    if value is None or kind is bool:
        return
    if kind is int:
        if not -_TOO_LONG < value < _TOO_LONG:
            raise Unserialisable(f"{path} is an integer of more than 4300 digits", value=f"{value.bit_length()} bits",
                                 remedy="Use a float or a string.")  # fmt: skip
        return
    if kind is str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise Unserialisable("A string holds a lone surrogate", value=ascii(value), where=path,
                                 remedy="Repair the text first, for example with errors='replace'.") from None  # fmt: skip
        return
    if kind is float:
        if not math.isfinite(value):
            raise Unserialisable(f"{path} is not a finite number", value=repr(value),
                                 remedy="JSON has no NaN or infinity: use null or a string.")  # fmt: skip
        return
    if depth > MAX_DEPTH:
        raise Unserialisable(f"{path} is nested deeper than {MAX_DEPTH} levels", remedy="Flatten the value.")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Unserialisable(f"{path} has a key that is not a string", value=repr(key),
                                     remedy="Convert keys to strings.")  # fmt: skip
            _check(key, f"{path} key", depth + 1)
            _check(item, f"{path}.{key}", depth + 1)
        return
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)
        return
    if isinstance(value, (str, int, float)):  # enums and other subclasses would lose their type silently
        raise Unserialisable(f"{path} is a {kind.__name__}, not a plain JSON value", value=repr(value),
                             remedy="Convert it to its base type first.")  # fmt: skip
    raise Unserialisable(f"{path} is a {kind.__name__}, which JSON cannot hold", value=repr(value),
                         remedy="Convert it with pydantic (mode='json') first.")  # fmt: skip


def canonical_json(value: Any) -> bytes:
    """The one UTF-8 text of a JSON value.

    Raises:
        Unserialisable: for anything that JSON cannot hold without loss.
    """
    if not _is_plain(value, 0):
        _check(value, "$", 0)
    return _text(value).encode()


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """``sha256:<hex>`` of the canonical JSON of `value`."""
    return "sha256:" + sha256_hex(canonical_json(value))


def deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and dictionaries are nested in more than `levels` levels below `value`."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [item for outer in layer if type(outer) is dict or type(outer) is list
                 for item in (outer.values() if type(outer) is dict else outer) if type(item) is dict or type(item) is list]  # fmt: skip
        if not layer:
            return False
    return True


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise MalformedJSON("An object has the same key twice", value=key, remedy="Keep one of them.")
            seen.add(key)
    return result


def _no_constant(name: str) -> NoReturn:
    raise MalformedJSON(f"{name} is not JSON", value=name, remedy="Use null or a string.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise MalformedJSON("A number is too large for a float", value=text, remedy="Use a string.")
    return number


def _refuse_unwritable(value: Any, source: str) -> None:
    """What JSON's grammar allows and canonical JSON cannot hold; the error's details name the outermost field."""
    for field, item in value.items() if isinstance(value, dict) else ((None, value),):
        try:
            _check(field, "a key", 0)
            _check(item, "$" if field is None else f"$.{field}", 0 if field is None else 1)
        except Unserialisable as exc:
            raise MalformedJSON(f"{source}: {exc.what[0].lower()}{exc.what[1:]}", value=exc.value, remedy=exc.remedy,
                                field=field) from None  # fmt: skip


def parse_json(text: str | bytes, *, source: str = "text") -> Any:
    """Strict JSON: duplicate keys, NaN, infinity, bad UTF-8, lone surrogates and trailing text are refused.

    Whatever is accepted has canonical JSON, so nesting is bounded as well.

    Raises:
        MalformedJSON: with `source` and the position.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
        deep = text.count("[") + text.count("{") > MAX_DEPTH and deeper_than(value, MAX_DEPTH)
        if deep or _SURROGATE.search(text):
            _refuse_unwritable(value, source)
        return value
    except UnicodeDecodeError as exc:
        raise MalformedJSON(f"{source} is not UTF-8", value=str(exc), remedy="Save it as UTF-8.") from None
    except json.JSONDecodeError as exc:
        raise MalformedJSON(f"{source} is not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}",
                            remedy="Correct the text there.", line=exc.lineno, column=exc.colno) from None  # fmt: skip
    except RecursionError:
        raise MalformedJSON(f"{source} is nested too deeply", remedy="Flatten the value.") from None
    except ValueError as exc:  # int() of more digits than the interpreter converts
        raise MalformedJSON(f"{source} holds a number that is too long", value=str(exc), remedy="Use a string.") from None
