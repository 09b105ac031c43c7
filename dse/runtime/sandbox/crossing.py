"""What crosses between host and guest: arguments and results, names that stand for tools, and what the guest prints."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, get_args

from dse.errors import Unserialisable
from dse.runtime.sandbox.convert import NotPlain, to_plain
from dse.runtime.sandbox.records import Raise, Result

__all__ = ["Prints", "argument", "placeholder", "refused", "wire"]


class Prints:
    """Keeps what the guest prints, up to a bound per feed."""

    def __init__(self, bound: int, counts: Sequence[int] = (0, 0)) -> None:
        self._bound, (self._seen, self._kept) = bound, counts
        self._parts: list[str] = []

    def write(self, stream: str, text: str) -> None:
        size = len(text) if text.isascii() else len(text.encode())
        self._seen += size
        if (room := self._bound - self._kept) <= 0:
            return
        if size > room:
            text = text.encode()[:room].decode(errors="ignore")
            size = room
        self._kept += size
        self._parts.append(text)

    def counts(self) -> list[int]:
        """Bytes seen and kept."""
        return [self._seen, self._kept]

    def take(self, *, last: bool = False) -> str:
        text, self._parts = "".join(self._parts), []
        if last and self._seen > self._kept:
            text += f"\n[printed {self._seen} bytes, {self._seen - self._kept} cut]\n"
        return text


def argument(name: str, position: int | str, value: Any) -> Any:
    try:
        return to_plain(value)
    except NotPlain as error:
        where = f"argument {position}" if isinstance(position, int) else f"`{position}`"
        raise NotPlain(f"{name}(): {where} holds {error}") from None


def placeholder(name: str) -> Callable[..., Any]:
    """Stands for a tool that is read as a value; only its name crosses."""

    def tool(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{name} runs on the host")

    tool.__name__ = name
    return tool


def wire(result: Result) -> dict[str, Any]:
    if isinstance(result, Raise):
        if result.class_name in _known_exceptions():
            return {"exc_type": result.class_name, "message": result.message}
        return {"exc_type": "RuntimeError", "message": f"{result.class_name}: {result.message}"}
    return {"return_value": result.value}


def _known_exceptions() -> frozenset[str]:
    global _exceptions
    if _exceptions is None:
        import pydantic_monty

        # those that the guest can handle: it must not be ended or confused by a tool
        _exceptions = frozenset(get_args(pydantic_monty.ExcType)) - {
            "BaseException", "SystemExit", "KeyboardInterrupt", "MemoryError", "StopIteration",
        }  # fmt: skip
    return _exceptions


_exceptions: frozenset[str] | None = None
_CANNOT_CONVERT = re.compile(r"TypeError: Cannot convert |UnicodeEncodeError: .*surrogates")


def refused(error: Exception, what: str) -> Unserialisable | None:
    """The error to raise when the interpreter does not take a value of ours; None for every other error."""
    kind = type(error).__name__
    ours = kind == "MontyRuntimeError" and _CANNOT_CONVERT.match(str(error)) and not error.traceback()  # type: ignore[attr-defined]
    if kind != "MontyConversionError" and not ours:
        return None
    return Unserialisable(
        f"{what} cannot enter the sandbox",
        value=str(error),
        remedy="Use plain data: None, numbers, text, lists, dicts, dates",
    )
