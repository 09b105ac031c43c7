"""The guest of a run, its calls in flight, and how both outlive their process.

A run of mode ``code`` or ``script`` that goes on from its record has three ways past what it did before. A script that a
frozen guest has behind it is *skipped*: what it did is counted, and nothing is executed. A guest frozen while it waited is
thawed, and its calls are started again. Everything else is executed again, with recorded results in place of the tools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from dse.contracts.schema import wire_from_guest
from dse.errors import RunSuspended, SandboxUnavailable, ToolFault, Unserialisable
from dse.runtime import sandbox
from dse.runtime.ahead import Ahead
from dse.runtime.dispatcher import gather_calls
from dse.runtime.guest import ends_the_run, result_of
from dse.runtime.history import Frozen, diverged
from dse.runtime.run import Run
from dse.strategies.checking import IMPORTS

__all__ = ["ResumableGuest"]

# Executing more than this again costs more than keeping the guest: seconds of interpretation, or calls.
_REPLAY_BOUND_S, _REPLAY_CALLS = 0.05, 32


class ResumableGuest:
    """What the scripts of a run have in common: one guest, and what was counted for it.

    Attributes:
        ends: functions that are no tools.
        session: None before the first script, and after a guest has died.
        next_guest: what the next script goes on from, where scripts before it were skipped.
        earlier: scripts so far whose variables the guest has.
    """

    ends: frozenset[str]

    def __init__(self, run: Run) -> None:
        self.run = run
        self.contracts = {name: run.dispatcher.toolbox[name].contract for name in run.plan.allow}
        self.session: sandbox.Session | None = None
        self.tasks: dict[int, asyncio.Task[Any]] = {}  # by the interpreter's call id
        self.calls: dict[int, sandbox.ExternalCall] = {}  # of these tasks
        self.ids: dict[int, int] = {}  # the dispatcher's call ids
        self.prints: list[str] = []  # of the present feed
        self.frozen_at_s = 0.0  # of interpretation
        self.frozen_calls = 0  # made by then
        self.next_guest: Frozen | None = None
        self.earlier: list[str] = []
        self.runtime_errors = 0
        self.repairs = 0
        self.last_problem = ""

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        if self.session is not None:
            session, self.session = self.session, None
            self.run.meter.interpreter_s += session.interpreter_s
            self.frozen_at_s = 0.0
            await session.aclose()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()

    def _bounds(self) -> sandbox.SandboxLimits:
        limits = self.run.limits
        return sandbox.SandboxLimits(
            feed_s=limits.interpreter_s, memory_bytes=limits.memory_bytes, recursion=limits.recursion,
            suspensions=limits.suspensions, print_bytes=limits.print_bytes,
        )  # fmt: skip

    def _names(self) -> dict[str, Any]:
        return {"async_names": frozenset(self.contracts), "sync_names": self.ends}

    # --- calls in flight

    def _start(self, call: sandbox.ExternalCall, call_id: int) -> None:
        number = call.call_id
        self.calls[number], self.ids[number] = call, call_id
        self.tasks[number] = asyncio.create_task(
            self.run.dispatcher.call(call.name, call.args, call.kwargs, call_id=call_id))  # fmt: skip

    async def _wait(self, waiting: list[int]) -> dict[int, Any]:
        """Results of some of the calls that the guest waits for."""
        run = self.run
        ends = run.recorded("delivered", "retry", "run_finished")
        if ends is not None and ends["kind"] == "delivered":  # what went to the guest then goes to it now
            ready = [i for i in waiting if self.ids[i] in ends["calls"]]
            await asyncio.wait([self.tasks[i] for i in ready])
        else:
            if ends is not None:
                run.ran_out(ends)
            await self._freeze(after_s=_REPLAY_BOUND_S)
            # In evaluation all pending calls settle first, so that latencies cannot change the path.
            all_of_them = run.evaluation or ends is not None
            await asyncio.wait([self.tasks[i] for i in waiting],
                               return_when=asyncio.ALL_COMPLETED if all_of_them else asyncio.FIRST_COMPLETED)  # fmt: skip
            if any(ends_the_run(task) for task in self.tasks.values()):
                await self._stop()
            ready = [i for i in waiting if self.tasks[i].done()]
        run.journal.add("delivered", calls=[self.ids[i] for i in ready])
        return {i: result_of(self.tasks.pop(i), self.contracts) for i in ready}

    async def _stop(self) -> None:
        """Some call ends the run: let the others end properly; where it waits for a decision, keep the guest.

        Raises:
            DseError
        """
        done = await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        failures = [one for one in done if isinstance(one, BaseException) and not isinstance(one, ToolFault)]
        for failure in failures:
            if not isinstance(failure, RunSuspended):
                raise failure
        await self._freeze()
        raise failures[0]

    def _collect(self, turn: Any) -> None:
        died = isinstance(turn, sandbox.Failed) and turn.error.kind == "crash"
        if turn.prints and not died:  # how far a guest came that died is no part of its path: it is executed again
            self.prints.append(turn.prints)
            self.run.journal.add("print", text=turn.prints)

    # --- along a record

    async def _resume(self, session: sandbox.Session, results: dict[int, sandbox.Result]) -> Iterable[sandbox.Turn]:
        """The next turns: more than one only where a record leads the guest from each of them to the next one."""
        recording = self.run.journal.recording
        if recording is None or self.tasks or recording.peek() is None:
            return (await session.resume(results),)
        return await session.resume_along(results, Ahead(recording, self.run.dispatcher.next_id, self.contracts))

    async def _count(self, turn: sandbox.Waiting) -> None:
        """Compare and count the calls of a turn after which the guest was led on with their recorded results.

        Raises:
            ReplayDiverged: they come to something else. DseError: what ends the run at one of them.
        """
        run = self.run
        ids = [run.dispatcher.reserve() for _ in turn.calls]
        done: list[Any] = []
        for call, call_id in zip(turn.calls, ids, strict=True):  # nothing is waited for: the outcomes are recorded
            done += await gather_calls([run.dispatcher.call(call.name, call.args, call.kwargs, call_id=call_id)])
        run.journal.add("delivered", calls=ids)
        for call_id, one in zip(ids, done, strict=True):
            if isinstance(one, ToolFault):
                recording = run.journal.recording
                raise diverged(recording.calls[call_id].settled if recording else None, one.code, {"call_id": call_id}) from one
            if isinstance(one, BaseException):
                raise one

    async def _skip(self, fed: Mapping[str, Any], code: str) -> str | sandbox.Waiting | None:
        """Pass a recorded script without executing it, where a frozen guest has it behind or in it.

        Returns:
            What the model is told of a script that is passed whole; where the guest waits in one that it goes on in; None
            when it has to be executed.
        """
        run = self.run
        recording, frozen = run.journal.recording, run.frozen
        if recording is None:
            return None
        passed: list[Mapping[str, Any]] = []
        end: Mapping[str, Any] | None = None
        for entry in recording.path[recording.at :]:
            if entry["kind"] in ("model_call", "model_error", "retry", "run_finished", "stage_ended"):
                break
            passed.append(entry)
            if entry["kind"] in ("observation", "code_error"):
                end = entry
                break
        if end is not None and (end.get("dead") or (frozen is not None and frozen.seq > end["seq"])):
            self._pass(recording, passed, end["seq"])
            if end["kind"] == "code_error":
                self.runtime_errors += 1
                self.last_problem = f"{end['class']}: {end['message']}"
            self.earlier.append(code)
            self.next_guest = frozen
            if end.get("dead"):
                self.earlier.clear()
                self.next_guest = None
                await self.close()
            return str(end["shown"])
        if frozen is None or not frozen.driver["suspended"] or not fed["seq"] < frozen.seq:
            return None
        self._pass(recording, [entry for entry in passed if entry["seq"] < frozen.seq], frozen.seq)
        await self._thaw(frozen)
        self.prints = list(frozen.driver["prints"])
        for one in frozen.driver["tasks"]:
            call = sandbox.ExternalCall(one["number"], one["name"], tuple(one["args"]), dict(one["kwargs"]), True)
            self._start(call, one["call_id"])
        assert self.session is not None
        return sandbox.Waiting((), self.session.waits_for)

    def _pass(self, recording: Any, passed: list[Mapping[str, Any]], until: int) -> None:
        """Count what a script did without executing it."""
        recording.at += len(passed)
        for entry in passed:
            if entry["kind"] == "repair":
                self.repairs += 1
                self.last_problem = entry["problem"]
        waiting = {}
        if self.run.frozen is not None and until == self.run.frozen.seq:
            waiting = {one["call_id"]: one["key"] for one in self.run.frozen.driver["tasks"]}
        dispatcher = self.run.dispatcher
        for call_id, record in sorted(recording.calls.items()):
            first = record.intent or record.refused
            if call_id < dispatcher.next_id or first is None or first["seq"] >= until:
                continue
            if call_id not in waiting:
                dispatcher.restore(call_id)
        dispatcher.keys.update(waiting)
        if waiting:
            dispatcher.next_id = max(dispatcher.next_id, self.run.frozen.driver["next_id"])  # type: ignore[union-attr]

    # --- freezing and thawing

    async def _freeze(self, *, after_s: float | None = None) -> None:
        """Keep the guest as it is, where a store keeps the run.

        Args:
            after_s: only when executing its scripts again up to here would take longer.
        """
        log, session, recording = self.run.journal.log, self.session, self.run.journal.recording
        if log is None or session is None or (recording is not None and recording.peek() is not None):
            return
        if not (log.eager or session.waits_for):
            return
        made = self.run.dispatcher.next_id
        if after_s is not None and session.interpreter_s - self.frozen_at_s < after_s and made - self.frozen_calls < _REPLAY_CALLS:
            return
        try:
            calls = [
                {"number": number, "call_id": self.ids[number], "name": call.name,
                 "key": self.run.dispatcher.keys.get(self.ids[number]),
                 "args": [wire_from_guest(value) for value in call.args],
                 "kwargs": {key: wire_from_guest(value, key) for key, value in call.kwargs.items()}}
                for number, call in sorted(self.calls.items()) if number in self.tasks
            ]  # fmt: skip
        except Unserialisable:  # it will be refused; the scripts say what it was
            return
        if (frozen := await session.freeze()) is None:
            return
        data, driver = frozen
        self.frozen_at_s, self.frozen_calls = session.interpreter_s, made
        state = {**driver, "tasks": calls, "next_id": self.run.dispatcher.next_id, "prints": list(self.prints)}
        self.run.frozen = Frozen(data, state, len(self.run.journal.entries), sandbox.interpreter_version())
        await log.keep(self.run.frozen)

    async def _thaw(self, frozen: Frozen) -> None:
        run, self.next_guest = self.run, None
        try:
            self.session = await sandbox.pool().thaw(frozen.data, frozen.driver, limits=self._bounds(), seed=run.seed,
                                                     clock=run.clock, imports=IMPORTS, **self._names())  # fmt: skip
        except SandboxUnavailable as exc:
            run.frozen = None  # its scripts are executed again instead
            run.guest_lost(exc)
            raise
        self.frozen_at_s, self.frozen_calls = self.session.interpreter_s, run.dispatcher.next_id
