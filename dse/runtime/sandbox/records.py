"""Plain records that cross the sandbox's door. Nothing here imports the interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "Diagnostic", "ExternalCall", "Failed", "Finished", "GuestError", "Raise", "Result", "SandboxLimits",
    "Turn", "Value", "Waiting",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Bounds of one session; each is enforced by the interpreter or by the print collector.

    Attributes:
        feed_s: seconds of interpretation per feed; waiting for the host does not count.
        memory_bytes: heap of the guest.
        recursion: depth of guest calls; the guest sees a ``RecursionError`` and may go on.
        suspensions: host round trips per session. A gathered call costs one (and one for the whole gather),
            a call awaited on its own costs two, reading a tool's name as a value one.
        print_bytes: printed text kept per feed, UTF-8; the rest is counted and cut, the guest goes on.
    """

    feed_s: float = 10.0
    memory_bytes: int = 256 * 2**20
    recursion: int = 1000
    suspensions: int = 100_000
    print_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        for name in ("feed_s", "memory_bytes", "recursion", "suspensions"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)!r}")
        if self.print_bytes < 0:
            raise ValueError(f"print_bytes must not be negative, not {self.print_bytes!r}")


@dataclass(frozen=True, slots=True)
class ExternalCall:
    """A call of a name that the guest does not define.

    ``call_id`` counts 0, 1, 2 ... over the session in program order. Arguments are plain data (dataclass
    instances have become dicts). ``is_async`` is False for every name that was not declared async,
    unknown ones included: the guest waits for exactly this call.
    """

    call_id: int
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_async: bool


@dataclass(frozen=True, slots=True)
class Value:
    """A call's result, as plain data."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raise:
    """An exception for the guest. A class that the interpreter does not know arrives as ``RuntimeError``
    with the class name in front of the message."""

    class_name: str
    message: str


Result = Value | Raise


@dataclass(frozen=True, slots=True)
class GuestError:
    """Why a feed failed.

    Attributes:
        kind: ``syntax`` (not Python), ``unsupported`` (Python that the interpreter lacks), ``runtime`` (the
            guest raised), ``limit`` (a bound was hit), ``crash`` (the worker is gone).
        class_name: the guest's exception class, such as ``KeyError``.
        line: 1-based line of the code that was fed, or None.
        limit: ``interpreter_s``, ``memory_bytes``, ``suspensions`` or ``recursion``.
        dead: the session cannot be fed any more.
    """

    kind: Literal["syntax", "unsupported", "runtime", "limit", "crash"]
    class_name: str
    message: str
    line: int | None = None
    limit: str | None = None
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """The guest cannot go on without results.

    Attributes:
        calls: calls that were not reported before, ascending. Start each of them.
        pending: ids of all calls without a result, ascending (a single id for a call that is not async).
            Resume with any non-empty part of them.
        prints: text printed since the last turn.
    """

    calls: tuple[ExternalCall, ...]
    pending: tuple[int, ...]
    prints: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The feed ran to its end.

    Attributes:
        value: the trailing expression; instances and functions have become text.
        value_repr: at most about 2,000 characters that show its type, size and beginning.
        unawaited: async calls that the code made and never awaited. They were not reported before and must
            not be run.
    """

    value: Any
    prints: str = ""
    value_repr: str = "None"
    unawaited: tuple[ExternalCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The feed ended with an error; the session lives on unless ``error.dead``."""

    error: GuestError
    prints: str = ""


Turn = Waiting | Finished | Failed


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One remark about code that has not run. ``line`` and ``col`` are 1-based; 0 means the whole text."""

    line: int
    col: int
    rule: str
    message: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        tail = f" ({self.hint})" if self.hint else ""
        return f"line {self.line}: {self.message}{tail} [{self.rule}]"
