"""Turns the interpreter's exceptions into :class:`GuestError`.

The interpreter raises its own limits as ordinary guest exceptions, so only the message tells them from what
guest code raises itself. A guest that forges such a message ends its own session and nothing else.
"""

from __future__ import annotations

import re
from typing import Any

from dse.runtime.sandbox.records import GuestError

__all__ = ["crash", "from_exception", "hint_for", "is_interpreters"]

# (exception class, message pattern, limit, session is dead): in the words of pydantic-monty 1.4.0.
_LIMITS = [
    ("TimeoutError", re.compile(r"(feed|turn) time limit exceeded: \S+ > \S+"), "interpreter_s", True),
    ("MemoryError", re.compile(r"memory limit exceeded: \d+ bytes > \d+ bytes"), "memory_bytes", True),
    ("MemoryError", re.compile(r"the worker exceeded its memory limit .*"), "memory_bytes", True),
    ("RuntimeError", re.compile(r"suspension limit \d+ exceeded"), "suspensions", True),
    ("RecursionError", re.compile(r"maximum recursion depth exceeded.*"), "recursion", False),
    ("RuntimeError", re.compile(r"\w+ frame of \d+ bytes exceeds .*"), "memory_bytes", True),
]
_SAID = {
    "interpreter_s": "the code ran longer than its time limit",
    "memory_bytes": "the code used more memory than its limit",
    "suspensions": "the code made more calls than its limit",
    "recursion": "maximum recursion depth exceeded",
}
_GAP = re.compile(r"The monty syntax parser does not yet support |does not yet support|(?:is|are) not (?:yet )?supported")
_PARSER = "The monty syntax parser does not yet support "
_SUSPEND = re.compile(r"external function '(\w+)' cannot suspend in this synchronous context")
_STALLED = "asyncio scheduler stalled"


def crash(message: str) -> GuestError:
    """The worker is gone."""
    return GuestError("crash", "SandboxCrash", message, dead=True)


def suspended_too_often(line: int | None) -> GuestError:
    """The limit of suspensions, where we hold it and not the interpreter."""
    return GuestError("limit", "RuntimeError", _SAID["suspensions"], line, "suspensions", dead=True)


def is_interpreters(error: BaseException) -> bool:
    """Whether an exception came from the interpreter, and not from a mistake on our side."""
    kind = type(error)
    if kind.__name__.startswith("Monty") or kind.__name__ == "PanicException":
        return True
    return kind is RuntimeError and bool(re.search(r"monty worker|this checkout", str(error)))


def from_exception(error: BaseException, filename: str, shift: int = 0) -> GuestError:
    """What ended a feed, from the exception that the interpreter raised.

    Args:
        filename: how the interpreter calls the current feed; lines are those of this feed.
        shift: how many lines of ours stand before it.
    """
    kind = type(error).__name__
    if kind == "MontyCrashedError":
        if error.timed_out:  # type: ignore[attr-defined]
            # the watchdog ended a native operation that does not look at the clock
            said = _SAID["interpreter_s"]
            return GuestError("limit", "TimeoutError", said, limit="interpreter_s", dead=True)
        return crash("the interpreter process ended unexpectedly")
    if kind not in ("MontyRuntimeError", "MontySyntaxError"):
        return crash("the interpreter failed")
    line, parsing = _place(error, filename, shift)
    class_name, message = _split(error.display("type-msg"))  # type: ignore[attr-defined]
    if kind == "MontySyntaxError":
        return GuestError("syntax", "SyntaxError", str(error), line)
    for limit_class, pattern, limit, dead in _LIMITS:
        if class_name == limit_class and pattern.fullmatch(message):
            return GuestError("limit", class_name, _SAID[limit], line, limit, dead)
    if class_name == "NotImplementedError":
        if found := _SUSPEND.search(message):
            message = (
                f"the tool `{found[1]}` cannot be called inside a callback of sorted, min, max, sort or "
                "defaultdict; call it before and keep the results"
            )
            return GuestError("unsupported", class_name, message, line)
        if parsing or _GAP.search(message):
            if message.startswith(_PARSER):
                message = f"{message.removeprefix(_PARSER)}: not supported here"
            return GuestError("unsupported", class_name, message, line)
    if _STALLED in message:
        message = "awaited a call of an earlier script, which is gone; make the call again"
    elif message.startswith("Internal error in monty: "):
        message = message.removeprefix("Internal error in monty: ")
    return GuestError("runtime", class_name, message, line)


_HINTS = [
    (r"'(?:str|list|dict|set|int|float|tuple|datetime\.\w+)' object has no attribute '(\w+)'",
     "methods can only be called here, x.method(...), and not every one exists; results of tools are dicts: x[\"name\"]"),
    (r"can't be awaited|cannot be awaited", "only calls of async functions are awaited; leave the `await` out"),
    (r"coroutine|external_future", "put `await` before the call"),
    (r"No module named|cannot import name", "use what Python has built in, or the modules named in the rules"),
    (r"'NoneType' object|None", "a value is None here: test for it first"),
    (r"Permission denied|not supported in this environment", "there are no files; use the inputs and the tools"),
]  # fmt: skip
_LIMIT_HINTS = {
    "interpreter_s": "do less work in loops, or leave a loop that never ends",
    "memory_bytes": "keep less at once",
    "suspensions": "call tools fewer times, several at once with asyncio.gather",
    "recursion": "use a loop",
}


def hint_for(error: GuestError) -> str:
    """What to do about an error, in a few words; empty when there is nothing to add."""
    if error.limit is not None:
        return _LIMIT_HINTS.get(error.limit, "")
    if error.class_name in (
        "AttributeError",
        "TypeError",
        "ImportError",
        "ModuleNotFoundError",
        "PermissionError",
        "RuntimeError",
    ):
        for pattern, hint in _HINTS:
            if re.search(pattern, error.message):
                return hint
    if error.class_name == "KeyError":
        return "print the keys that are there, or use .get()"
    return ""


def _split(text: str) -> tuple[str, str]:
    name, _, message = text.partition(": ")
    return (name, message) if re.fullmatch(r"[\w.]+", name) else ("Exception", text)


def _place(error: Any, filename: str, shift: int) -> tuple[int | None, bool]:
    """The innermost line within the feed, and whether the error arose while parsing."""
    frames = error.traceback()
    lines = [frame.line - shift for frame in frames if frame.filename == filename and frame.line > shift]
    return (lines[-1] if lines else None), bool(frames) and frames[-1].function_name is None
