"""What the commands share: consoles, exit codes, and how they find tasks, dependencies and stores."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console

from dse.errors import DseError, StoreError, UserError

__all__ = [
    "BUDGET", "CHECK_FAILED", "INFRASTRUCTURE", "SUSPENDED", "USER", "dependencies", "err", "load_object", "load_spec",
    "load_task", "names", "open_store", "out", "say", "user",
]  # fmt: skip

# Exit codes: 0 fine, 1 a check failed (score, verification, a run without an answer), 2 the user's mistake,
# 3 infrastructure, 4 budget, 5 the run waits for a decision about a call.
CHECK_FAILED, USER, INFRASTRUCTURE, BUDGET, SUSPENDED = 1, 2, 3, 4, 5


def _console(**options: Any) -> Console:
    """On a terminal as wide as it is; elsewhere wide enough for the tables, so that logs read the same everywhere."""
    made = Console(highlight=False, emoji=False, **options)
    if not made.is_terminal:
        made.width = 140
    return made


out = _console()
err = _console(stderr=True)


def say(text: str) -> None:
    """A line of text as it is, however long."""
    out.print(text, markup=False, soft_wrap=True)


def user() -> str:
    """Who decides, where nobody says."""
    return os.environ.get("USER", "unknown")


def load_object(spec: str) -> Any:
    """``package.module:NAME``, with the current folder importable."""
    module, _, name = spec.partition(":")
    if not name or not all(part.isidentifier() for part in module.split(".")):
        raise UserError("Expected MODULE:NAME", value=spec, remedy="For example signatures.expenses:task.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise UserError("The module cannot be imported", value=str(exc), remedy="Run this where it is importable.") from exc
    except DseError:
        raise
    except Exception as exc:
        raise _raised("The module cannot be imported", exc) from exc
    if not hasattr(found, name):
        raise UserError(f"{module} has no {name!r}", value=spec, remedy="Name the task object in it.")
    return getattr(found, name)


def _raised(what: str, exc: Exception) -> UserError:
    """The error for a mistake in the user's code, with the place where it showed."""
    *_, (frame, line) = traceback.walk_tb(exc.__traceback__)
    where = "" if isinstance(exc, SyntaxError) else f" ({frame.f_code.co_filename}, line {line})"  # its text has it
    return UserError(what, value=f"{type(exc).__name__}: {exc}{where}", remedy="Correct the code there.")


def load_task(spec: str) -> Any:
    from dse.evaluation.task import Task

    found = load_object(spec)
    if not isinstance(found, Task):
        raise UserError("This is not a dse.Task", value=f"{spec}: {type(found).__name__}", remedy="Name the task object.")
    return found


def load_spec(spec: str) -> tuple[Any, Any]:
    """What ``MODULE:TASK`` or ``MODULE:SIGNATURE`` names, and its signature class."""
    from dse.contracts.signature import Signature

    found = load_object(spec)
    signature = found if isinstance(found, type) else getattr(found, "signature", None)
    if not (isinstance(signature, type) and issubclass(signature, Signature)):
        raise UserError("This is neither a dse.Task nor a dse.Signature", value=f"{spec}: {type(found).__name__}",
                        remedy="Name one of them.")  # fmt: skip
    return found, signature


def dependencies(found: Any, deps: str | None) -> Any:
    """What ``--deps`` names (made, if it is a function), or what the task brings."""
    if not deps:
        return getattr(found, "deps", None)
    made = load_object(deps)
    if not callable(made):
        return made
    try:
        return made()
    except DseError:
        raise
    except Exception as exc:
        raise _raised(f"The dependencies cannot be made by {deps}", exc) from exc


def names(listed: str | None) -> list[str] | None:
    return None if listed is None else [name.strip() for name in listed.split(",") if name.strip()]


def open_store(url: str, *, existing: bool = False) -> Any:
    from dse.store.journal import Store

    if existing and "://" not in url and not Path(url).exists():  # a look must not make an empty one
        raise StoreError("There is no store here", value=url, remedy="Name its file with --store.")
    return Store(url)
