"""One script from its text to its result: check it, run it in a session, answer its calls.

What a script tool and a given script share. The script sees its tools as ``async`` functions and a dict
``inputs``; the value of its last line is its result.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import anyio

from dse.contracts.schema import guest_from_wire, wire_from_guest
from dse.contracts.script import Script
from dse.contracts.stubs import stubs_for
from dse.contracts.tool import ToolContract
from dse.errors import (
    LimitExceeded,
    SandboxUnavailable,
    ToolArgumentError,
    ToolDenied,
    ToolFault,
    ToolNotAllowed,
    ToolTimeout,
    Unserialisable,
)
from dse.limits import Limits
from dse.runtime import sandbox
from dse.runtime.run import Run
from dse.runtime.sandbox.convert import NotPlain, to_plain
from dse.runtime.sandbox.source import parse

if TYPE_CHECKING:
    from dse.runtime.dispatcher import CallResult

__all__ = ["BOUNDS", "Checked", "GuestFailed", "Outcome", "check", "ends_the_run", "names_used", "result_of", "run_guest",
           "script_problem", "settle"]

_IMPORTS = "import asyncio, datetime\nfrom decimal import Decimal"  # there for every script, as the stubs suggest
_HEAD = "from typing import Any, Literal, NotRequired, TypedDict"
_DECLARED = "inputs: dict[str, Any]"
_KNOWN = frozenset({"inputs", "asyncio", "datetime", "Decimal"})
_GUEST_ERRORS = {ToolNotAllowed: "NameError", ToolArgumentError: "ValueError", ToolTimeout: "TimeoutError",
                 ToolDenied: "PermissionError"}  # fmt: skip
BOUNDS = ("interpreter_s", "memory_bytes", "recursion", "suspensions", "print_bytes")  # of Limits: what holds for a guest

Call = Callable[[str, Sequence[Any], Mapping[str, Any]], Awaitable["CallResult"]]


class GuestFailed(Exception):
    """The script raised, or hit a limit of its own.

    Attributes:
        what: class, message and line.
        hint: what to do about it, or empty.
        printed: what it had printed by then.
    """

    def __init__(self, what: str, hint: str, printed: str) -> None:
        super().__init__(what)
        self.what, self.hint, self.printed = what, hint, printed


@dataclass(frozen=True)
class Checked:
    """A script after lint and gate check. With problems it must not run."""

    lint: sandbox.LintResult
    problems: tuple[sandbox.Diagnostic, ...]

    def describe(self, limit: int = 8) -> str:
        """The first problems in one line, each with place, rule and hint."""
        shown = "; ".join(_remark(problem) for problem in self.problems[:limit])
        more = len(self.problems) - limit
        return shown + (f"; and {more} more" if more > 0 else "")


def _remark(problem: sandbox.Diagnostic) -> str:
    where = f"line {problem.line}: " if problem.line else ""
    return f"{where}{problem.message} [{problem.rule}]" + (f" Hint: {problem.hint}" if problem.hint else "")


@dataclass(frozen=True)
class Outcome:
    """What a script gave: the value of its last line in wire form, and what it printed."""

    value: Any
    printed: str


@functools.lru_cache(maxsize=256)
def _stubs(_: tuple[str, ...], holder: _Contracts) -> str:
    return "\n".join([_HEAD, _IMPORTS, stubs_for(holder.contracts)])


class _Contracts:
    """Contracts cannot be hashed; their ids beside them are."""

    def __init__(self, contracts: Iterable[ToolContract]) -> None:
        self.contracts = tuple(contracts)

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Contracts)


async def check(code: str, contracts: Mapping[str, ToolContract]) -> Checked:
    """Lint and gate check of a script that may use these tools and the dict ``inputs``. Nothing runs.

    Raises:
        ContractError: the checker cannot check calls of these tools.
        SandboxUnavailable: no worker could be had.
    """
    lint = sandbox.lint(code, tool_names=contracts, known_names=_KNOWN)
    if lint.errors:
        return Checked(lint, tuple(lint.errors))
    stubs = _stubs(tuple(contract.interface_id for contract in contracts.values()), _Contracts(contracts.values()))
    checker = sandbox.checker()
    await checker.validate_stubs(stubs, _DECLARED)
    found = await checker.check(stubs=stubs, declarations=_DECLARED, earlier=(_IMPORTS,), code=code)
    return Checked(lint, tuple(remark for remark in found if remark.severity == "error"))


def names_used(code: str) -> frozenset[str]:
    """Every name that a script reads; none where it cannot be parsed."""
    try:
        tree = parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))


async def script_problem(script: Script, contracts: Mapping[str, ToolContract], allow: Iterable[str]) -> str | None:
    """What is wrong with a script, in words that its author can act on; None if it may run.

    Args:
        contracts: of all tools that there are.
        allow: names of those that the script may call.
    """
    named, allowed = list(script.externals), set(allow) & contracts.keys()
    if len(set(named)) != len(named):
        return "externals names a tool twice"
    extra = sorted(set(named) - allowed)
    if extra:
        return f"externals names tools that may not be called: {', '.join(extra)}; there are: {_listed(allowed)}"
    checked = await check(script.source, {name: contracts[name] for name in sorted(named)})
    used = names_used(script.source) & contracts.keys()
    missing = sorted(used - set(named))
    if checked.problems:
        hint = f"; externals does not name: {', '.join(missing)}" if missing else ""
        return checked.describe() + hint
    unused = sorted(set(named) - used)
    if unused:
        return f"externals names tools that the source never calls: {', '.join(unused)}; leave them out"
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


async def run_guest(
    checked: Checked, contracts: Mapping[str, ToolContract], call: Call, *, run: Run, inputs: Mapping[str, Any],
    pool: sandbox.Sandbox, own: Limits | None = None, seed: int, clock: datetime, most_bytes: int,
) -> Outcome:  # fmt: skip
    """Run a checked script to its end.

    Args:
        call: answers the calls of its tools; ``ToolFault`` is raised in the script, anything else ends the run.
        inputs: JSON data, there as the variable ``inputs``.
        own: limits of this script besides those of the run; the lower ones hold.
        most_bytes: size of value and prints together; prints are cut, for the value see `Outcome`.

    Raises:
        GuestFailed: the script raised or hit a limit that fails only this step.
        LimitExceeded: it hit a limit of the run that ends the run.
        SandboxUnavailable: its worker died.
    """
    limits = run.limits
    bounds = {name: min(getattr(limits, name), getattr(own or limits, name)) for name in BOUNDS}
    session = await pool.open(
        limits=sandbox.SandboxLimits(feed_s=bounds["interpreter_s"], **{n: bounds[n] for n in BOUNDS if n != "interpreter_s"}),
        seed=seed, clock=clock, async_names=frozenset(contracts),
    )  # fmt: skip
    tasks: dict[int, asyncio.Task[CallResult]] = {}
    try:
        turn = await session.feed(_IMPORTS, inputs={"inputs": dict(inputs)})
        if not isinstance(turn, sandbox.Finished):
            raise SandboxUnavailable("The inputs could not be handed to the sandbox", value=repr(turn))
        printed: list[str] = []
        turn = await session.feed(checked.lint.code, shims=checked.lint.shims)
        while isinstance(turn, sandbox.Waiting):
            printed.append(turn.prints)
            for one in turn.calls:
                tasks[one.call_id] = asyncio.ensure_future(call(one.name, one.args, one.kwargs))
            # In evaluation, and where the run may have to go on, all pending calls settle first: latencies cannot
            # change the path.
            settled = run.evaluation or run.journal.log is not None
            done_when = asyncio.ALL_COMPLETED if settled else asyncio.FIRST_COMPLETED
            await asyncio.wait([tasks[i] for i in turn.pending], return_when=done_when)
            done = [i for i in turn.pending if tasks[i].done()]
            if any(ends_the_run(tasks[i]) for i in done):
                await settle(tasks)
            turn = await session.resume({i: result_of(tasks.pop(i), contracts) for i in done})
        printed.append(turn.prints)
        await settle(tasks)  # calls that the script started and never awaited still count
    finally:
        for task in tasks.values():
            task.cancel()
        with anyio.CancelScope(shield=True):  # what was going on is accounted for before anybody reports effects
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        run.meter.interpreter_s += session.interpreter_s
        await session.aclose()
    text = "".join(printed)
    if isinstance(turn, sandbox.Failed):
        raise _failed(turn.error, text, limits, bounds, run)
    for one in turn.unawaited:
        text += f"{one.name}(...) was called without await: it did not run\n"
    return _outcome(turn.value, text, most_bytes)


def _outcome(value: Any, text: str, most_bytes: int) -> Outcome:
    try:
        wire = wire_from_guest(to_plain(value), "the value of the last line")
    except NotPlain as exc:
        raise GuestFailed(f"the value of the last line holds {exc}", "End with data.", text) from None
    except Unserialisable as exc:
        raise GuestFailed(exc.what, exc.remedy, text) from None
    taken, size = _size({"value": wire, "printed": ""}), _size(text)
    if taken > most_bytes:
        raise GuestFailed(f"the value of the last line takes {taken} bytes; {most_bytes} are allowed", "Return less.", text)
    if taken + size > most_bytes:
        text = _cut(text, most_bytes - taken)
    return Outcome(wire, text)


def _size(value: Any) -> int:
    """Bytes of canonical JSON, at most a little more."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))


def _cut(text: str, room: int) -> str:
    note = "\n[cut]\n"
    room -= _size(note)
    low, high = 0, len(text)
    while low < high:  # JSON escapes some characters: the longest beginning that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _size(text[:middle]) <= room else (low, middle - 1)
    return text[:low] + note if room > 0 else ""


def ends_the_run(task: asyncio.Task[Any]) -> bool:
    """Whether a call ended in something that its script is not told."""
    return task.done() and (task.cancelled() or not isinstance(task.exception(), (ToolFault, type(None))))


async def settle(tasks: dict[int, asyncio.Task[Any]]) -> None:
    """Wait for all calls; raise what ends the run."""
    done = await asyncio.gather(*tasks.values(), return_exceptions=True)
    tasks.clear()
    for one in done:
        if isinstance(one, BaseException) and not isinstance(one, ToolFault):
            raise one


def result_of(task: asyncio.Task[CallResult], contracts: Mapping[str, ToolContract]) -> sandbox.Result:
    """What the script gets for a call that has ended; raises what ends the run."""
    try:
        result = task.result()
    except ToolFault as fault:
        kind = next((name for cls, name in _GUEST_ERRORS.items() if isinstance(fault, cls)), "RuntimeError")
        return sandbox.Raise(kind, fault.message)
    return sandbox.Value(guest_from_wire(result.value, contracts[result.receipt["tool"]].returns))


def _failed(error: sandbox.GuestError, printed: str, limits: Limits, bounds: Mapping[str, Any], run: Run) -> Exception:
    if error.kind == "crash":
        return run.guest_lost(SandboxUnavailable("The interpreter worker died", value=error.message,
                                                 remedy="Run it again; the run's receipt lists the effects so far."))  # fmt: skip
    if error.kind == "limit":
        name = error.limit or "interpreter_s"
        outcome = limits.outcome(name)
        if outcome != "fail_step" and bounds[name] == getattr(limits, name):
            return LimitExceeded(f"The script reached its limit of {name}", value=error.message,
                                 remedy=f"Raise Limits({name}=...) if the task needs it.", limit=name,
                                 outcome=outcome)  # fmt: skip
    where = f"line {error.line}: " if error.line else ""
    return GuestFailed(f"{where}{error.class_name}: {error.message}", sandbox.hint_for(error), printed)
