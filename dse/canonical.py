"""Canonical JSON and content ids.

One value has one text: keys sorted by code point, no spaces, UTF-8, no NaN or infinity, floats in
Python's shortest form with integral floats kept as floats (``1.0`` is not ``1``). Ids are ``sha256:<hex>``
of that text. Reading is strict: duplicate keys, NaN and trailing text are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, NoReturn

from dse.errors import MalformedJSON, Unserialisable

__all__ = ["canonical_json", "digest", "parse_json", "sha256_hex"]

MAX_DEPTH = 200


def _check(value: Any, path: str, depth: int) -> None:
    kind = type(value)
    if value is None or kind is bool or kind is int:
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
    _check(value, "$", 0)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as exc:  # more digits than the interpreter converts
        raise Unserialisable("A number is too long for JSON", value=str(exc), remedy="Use a string.") from None


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """``sha256:<hex>`` of the canonical JSON of `value`."""
    return "sha256:" + sha256_hex(canonical_json(value))


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


def parse_json(text: str | bytes, *, source: str = "text") -> Any:
    """Strict JSON: duplicate keys, NaN, infinity, bad UTF-8 and trailing text are refused.

    Raises:
        MalformedJSON: with `source` and the position.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError as exc:
        raise MalformedJSON(f"{source} is not UTF-8", value=str(exc), remedy="Save it as UTF-8.") from None
    except json.JSONDecodeError as exc:
        raise MalformedJSON(f"{source} is not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}",
                            remedy="Correct the text there.", line=exc.lineno, column=exc.colno) from None  # fmt: skip
    except RecursionError:
        raise MalformedJSON(f"{source} is nested too deeply", remedy="Flatten the value.") from None
    except ValueError as exc:  # int() of more digits than the interpreter converts
        raise MalformedJSON(f"{source} holds a number that is too long", value=str(exc), remedy="Use a string.") from None
