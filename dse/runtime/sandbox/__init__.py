"""The sandbox: guest code runs in worker processes, is rewritten and linted on the host, and type-checked.

The only room that knows the interpreter. Importing this package does not import it; using a
:class:`Sandbox` or :class:`Checker` does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from dse.runtime.sandbox.checker import PRELUDE, Checker
from dse.runtime.sandbox.faults import hint_for
from dse.runtime.sandbox.interpreter import Sandbox
from dse.runtime.sandbox.lint import LintResult, extract_code, lint
from dse.runtime.sandbox.records import (
    Diagnostic,
    ExternalCall,
    Failed,
    Finished,
    GuestError,
    Raise,
    Result,
    SandboxLimits,
    Turn,
    Value,
    Waiting,
)
from dse.runtime.sandbox.resident import resident
from dse.runtime.sandbox.session import Session

__all__ = [
    "PRELUDE", "Checker", "Diagnostic", "ExternalCall", "Failed", "Finished", "GuestError", "LintResult", "Raise",
    "Result", "Sandbox", "SandboxLimits", "Session", "Turn", "Value", "Waiting", "checker", "configure", "extract_code", "hint_for",
    "interpreter_version", "lint", "pool", "resident", "script_pool",
]  # fmt: skip


_Service = TypeVar("_Service", Sandbox, Checker)


def pool() -> Sandbox:
    """The process's own sandbox; made when first asked for, and anew once it is closed or inherited by a fork.

    A run holds its session between rounds, also while it waits for the model: with more runs than workers the
    others wait their turn.
    """
    return _shared("pool", lambda: Sandbox(max_workers=_settings["max_workers"], checkout_timeout_s=300.0))


def script_pool() -> Sandbox:
    """Like :func:`pool`, for scripts that a tool call runs.

    They have workers of their own: a program in mode ``code`` waits for such a call with its own session open, and
    when all sessions of one pool waited for another of the same pool, none could go on.
    """
    return _shared("script_pool", lambda: Sandbox(max_workers=_settings["max_workers"], checkout_timeout_s=300.0))


def configure(*, max_workers: int) -> None:
    """How many guest sessions each of the process's own sandboxes may have open (a worker takes about 8 MB while it lives).

    Closes the present sandboxes if they have another size: call it before the first run.
    """
    with _lock:
        if max_workers != _settings["max_workers"]:
            for name in {"pool", "script_pool"} & _instances.keys():
                _instances.pop(name).close()
        _settings["max_workers"] = max_workers


def checker() -> Checker:
    """The process's own checker, like :func:`pool`."""
    return _shared("checker", Checker)


def interpreter_version() -> str:
    """Version of the interpreter. A frozen guest is for this one only."""
    import pydantic_monty

    return str(pydantic_monty.__version__)  # what the package's metadata say, which take milliseconds to read


def _shared(name: str, make: Callable[[], _Service]) -> _Service:
    with _lock:
        if name not in _instances or not _instances[name].usable:
            _instances[name] = make()
        return cast("_Service", _instances[name])


_instances: dict[str, Any] = {}
_settings = {"max_workers": 64}
_lock = threading.Lock()
