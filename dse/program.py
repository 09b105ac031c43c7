"""Programs: a signature with a plan, a toolbox and a model. Call it, start it, stream it, resume it."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse import durable, resuming, telemetry
from dse.contracts.check import Check, checks_by_name
from dse.contracts.signature import Signature, SignatureSpec
from dse.contracts.toolbox import Toolbox
from dse.durable import Decision
from dse.errors import (
    ContractMismatch,
    DseError,
    LimitExceeded,
    ModelError,
    PlanError,
    RunTaken,
    SandboxUnavailable,
    StoreUnavailable,
    ToolboxError,
    UserError,
)
from dse.plan import Plan, program_id, spec_of
from dse.portal import finish_sync, run_sync, start_soon
from dse.runtime.dispatcher import Dispatcher
from dse.runtime.execution import Middleware
from dse.runtime.history import Recording
from dse.runtime.receipt import hidden_error, outcome_of, receipt_of
from dse.runtime.run import Run
from dse.strategies.base import check_plan, needs_model, seed_plan, strategy

if TYPE_CHECKING:
    from dse.models.lm import LanguageModel
    from dse.store.journal import Store
    from dse.store.runlog import Durability

__all__ = ["Prediction", "Program", "RunHandle"]


_LONGEST_S = 10**9  # thirty years: what comes later may have no date
_LOSSES_IN_PLACE = 3  # of an interpreter, without getting any further


class Prediction:
    """Validated outputs. Attributes give typed values; ``outputs`` the plain JSON form; ``receipt`` the evidence."""

    __slots__ = ("_values", "outputs", "receipt")

    def __init__(self, values: Mapping[str, Any], outputs: Mapping[str, Any], receipt: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self.outputs = dict(outputs)
        self.receipt = dict(receipt)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"the prediction has no output {name!r}; it has: {', '.join(self._values)}") from None

    def __getstate__(self) -> tuple[Any, Any, Any]:
        return self._values, self.outputs, self.receipt

    def __setstate__(self, state: tuple[Any, Any, Any]) -> None:
        for name, value in zip(("_values", "outputs", "receipt"), state, strict=True):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"dse.Prediction({', '.join(f'{k}={v!r}' for k, v in self._values.items())})"


class RunHandle:
    """A run that was started. ``await handle.aresult()`` or ``handle.result()``."""

    def __init__(self, program: Program, run: Run, future: Any) -> None:
        self._program = program
        self._run = run
        self._future = future
        self.run_id = run.run_id

    @property
    def done(self) -> bool:
        return bool(self._future.done())

    @property
    def journal(self) -> list[dict[str, Any]]:
        """What has happened so far, without sensitive values."""
        return [self._run.secrets.entry(entry, live=not self.done) for entry in list(self._run.journal.entries)]

    def result(self, timeout_s: float | None = None) -> Prediction:
        """Wait for the end. Raises what the run raised."""
        prediction: Prediction = self._future.result(timeout_s)
        return prediction

    async def aresult(self) -> Prediction:
        """`result` for async code. Giving up waiting does not end the run; `cancel` does."""
        return await asyncio.shield(asyncio.wrap_future(self._future))

    def cancel(self) -> None:
        """End the run as soon as it waits for something; `result` then raises ``CancelledError``."""
        self._future.cancel()


class Program:
    """A signature with a plan, a toolbox and a model.

    Args:
        signature: the declaration.
        plan: what to execute; or a mode name for the seed plan of that mode.
        lm: a dspy model string, ``replay:FILE``, a ``dspy.LM``, an engine or a ``LanguageModel``.
        toolbox: implementations; default the signature's own tools.
        deps: handed to implementations as ``ctx.deps``; ``deps=`` of a single call wins.
        approve: decides about calls that need approval: ``callable(request) -> bool | (bool, reason)``.
        middleware: wraps the execution of every tool, outermost first.
        store: a ``dse.Store`` or its path: runs are kept there, and go on with `resume` after whatever stopped them.
        durability: what a run survives. ``call``: the end of the process, at any point (a write to the store per model
            call and per tool call). ``power``: the loss of power, too (the write waits for the disk). ``exit``: nothing;
            it is written when it stops, and lost if its process dies before.
        approval_expires_s: how long a decision about a call may take, in seconds, before it counts as denied.
        checks: functions declared with ``@dse.check``; those that the plan names are used.

    A model that the plan does not need (modes ``script``, and ``cascade`` of scripts) is not used.

    Raises:
        PlanError, ToolboxError: before anything runs.
    """

    def __init__(
        self, signature: type[Signature], plan: Plan | str, *, lm: Any = None, toolbox: Toolbox | None = None,
        deps: Any = None, approve: Callable[[Any], Any] | None = None, middleware: Sequence[Middleware] = (),
        store: Store | str | Path | None = None, durability: Durability = "call", approval_expires_s: float | None = None,
        stamp: Mapping[str, Any] | None = None, checks: Sequence[Check] = (),
    ) -> None:  # fmt: skip
        self.signature = signature
        self.spec: SignatureSpec = spec_of(signature)
        self.plan = seed_plan(self.spec, plan) if isinstance(plan, str) else plan
        check_plan(self.spec, self.plan)
        check_limits(self.spec, self.plan)
        self.toolbox = toolbox if toolbox is not None else self.spec.toolbox()
        check_toolbox(self.spec, self.plan, self.toolbox)
        self.strategy = strategy(self.plan.mode)
        self.checks = checks_by_name(checks)
        prepare = getattr(self.strategy, "prepare", None)
        if prepare is not None:
            prepare(self.spec, self.plan, {name: self.toolbox[name].contract for name in self.plan.allow}, self.checks)
        self.lm: LanguageModel | None = None
        needed = needs_model(self.plan)
        if lm is not None and needed:
            from dse.models.lm import resolve_model

            self.lm = resolve_model(lm)
        elif needed:
            raise ModelError(f"Mode {self.plan.mode!r} needs a model", remedy="Pass lm='provider/model' or 'replay:FILE'.")
        self.deps = deps
        if approve is not None and not callable(approve):
            raise UserError("approve= is a function that decides about one call", value=repr(approve),
                            remedy="Write approve=lambda request: ...; only True, or (True, reason), approves.")  # fmt: skip
        self.approve = approve
        if callable(middleware) or isinstance(middleware, str):
            raise UserError("middleware= is a list", value=repr(middleware), remedy="Write middleware=[function].")
        self.middleware = tuple(middleware)
        self.store = _store(store)
        if durability not in ("exit", "call", "power"):
            raise PlanError("No such durability", value=durability, remedy="Choose exit, call or power.")
        self.durability: Durability = durability
        if approval_expires_s is not None and (
            isinstance(approval_expires_s, bool) or not isinstance(approval_expires_s, (int, float)) or not 0 < approval_expires_s <= _LONGEST_S
        ):
            raise UserError("approval_expires_s= is a number of seconds above 0", value=repr(approval_expires_s),
                            remedy=f"Write approval_expires_s=86400 for a day; at most {_LONGEST_S}.")  # fmt: skip
        self.approval_expires_s = approval_expires_s
        self.stamp = dict(stamp or {})
        name, params = (self.lm.name, self.lm.params) if self.lm else ("none", {})
        self.program_id = program_id(self.spec, self.plan, self.toolbox, name, params)

    def __repr__(self) -> str:
        return f"<dse.Program {self.spec.name} {self.plan.mode} {self.program_id[7:19]}>"

    # --- running

    def __call__(self, inputs: Mapping[str, Any] | None = None, /, *, deps: Any = None, **fields: Any) -> Prediction:
        """Run to the end, from synchronous code.

        Args:
            inputs: input fields; as a mapping where their names come from outside, or as keywords.
            deps: handed to tools instead of the program's own.

        Raises:
            InputError, RunFailed, RunSuspended, InfrastructureError
        """
        return run_sync(lambda: self.acall(inputs, deps=deps, **fields))

    async def acall(self, inputs: Mapping[str, Any] | None = None, /, *, deps: Any = None, **fields: Any) -> Prediction:
        """Run to the end."""
        return await self.execute(self.new_run({**(inputs or {}), **fields}), deps=deps)

    def start(self, inputs: Mapping[str, Any] | None = None, /, *, deps: Any = None, **fields: Any) -> RunHandle:
        """Start a run in the background and return at once."""
        run = self.new_run({**(inputs or {}), **fields})
        return RunHandle(self, run, start_soon(lambda: self.execute(run, deps=deps)))

    async def astream(
        self, inputs: Mapping[str, Any] | None = None, /, *, deps: Any = None, **fields: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Events as they happen: the journal's entries, then ``{"kind": "result" | "error", ...}``."""
        run = self.new_run({**(inputs or {}), **fields})
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        run.journal.subscribers.append(lambda entry: events.put_nowait(run.secrets.entry(entry, live=True)))
        task = asyncio.create_task(self.execute(run, deps=deps))
        task.add_done_callback(lambda _: events.put_nowait({"kind": "_end"}))
        try:
            while (event := await events.get())["kind"] != "_end":
                yield event
            if task.cancelled():
                return
            exc = task.exception()
            if exc is None:
                yield {"kind": "result", "prediction": task.result(), "run_id": run.run_id}
            else:
                yield {"kind": "error", "error": exc, "run_id": run.run_id}
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def stream(
        self, inputs: Mapping[str, Any] | None = None, /, *, deps: Any = None, **fields: Any
    ) -> Iterator[dict[str, Any]]:
        """`astream` for synchronous code."""
        events = self.astream(inputs, deps=deps, **fields)
        try:
            while (event := run_sync(anext, events, None)) is not None:
                yield event
        finally:
            finish_sync(events.aclose)

    def new_run(self, inputs: Mapping[str, Any], *, run_id: str | None = None, seed: int | None = None,
                clock: dt.datetime | None = None, evaluation: bool = False, replicate: int = 0) -> Run:  # fmt: skip
        """A run on validated inputs, not started yet.

        Raises:
            InputError: they do not fit. SignatureError: a type whose stored form cannot be read again.
        """
        typed = self.spec.validate_inputs(inputs)
        run = Run(
            run_id=run_id or str(uuid.uuid4()), program_id=self.program_id, spec=self.spec, plan=self.plan, inputs=typed,
            model=self.lm, seed=random.getrandbits(48) if seed is None else seed,
            clock=clock or dt.datetime.now(dt.UTC), evaluation=evaluation, replicate=replicate,
        )  # fmt: skip
        run.check_inputs(inputs)
        return run

    @telemetry.running
    async def execute(self, run: Run, *, deps: Any = None, toolbox: Toolbox | None = None,
                      approve: Callable[[Any], Any] | None = None, middleware: Sequence[Middleware] = ()) -> Prediction:  # fmt: skip
        """Run `run` to its end and write its receipt; `middleware` stands inside the program's own.

        Raises:
            RunFailed: with ``details['receipt']``; the candidate's failure.
            RunSuspended, InfrastructureError, UserError
        """
        tools, given = self.toolbox if toolbox is None else toolbox, self.deps if deps is None else deps
        audit = run.journal.recording is not None and run.journal.recording.only
        if given is None and toolbox is None and not audit:  # a world with tools of its own may do without
            called = getattr(self.strategy, "calls", None)  # a mode may know that it calls fewer
            tools.check_deps(run.plan.allow if called is None else called(run))
        run.dispatcher = Dispatcher(run, tools, deps=given, approve=approve or self.approve,
                                    middleware=(*self.middleware, *middleware))  # fmt: skip
        run.expires_s = self.approval_expires_s
        run.checks = self.checks
        if run.journal.recording is None:
            await durable.begin(run, self.store, self.durability, self.lm)
        run.start()
        task = asyncio.current_task()
        try:
            outputs = await self._attempts(run)
        except BaseException as exc:
            if not _is_on(task):  # it is being closed: nothing can be waited for
                if self.store is not None and run.journal.log is not None:
                    self.store.let_go(run.journal.log)  # type: ignore[arg-type]
                raise
            receipt = await self._finish(run, None, exc)
            if isinstance(exc, DseError):
                exc.details.setdefault("run_id", run.run_id)
                exc.details["receipt"] = receipt
                exc.details.setdefault("effects", run.effects.summary())
            raise
        receipt = await self._finish(run, outputs, None)
        return Prediction(self.spec.validate_outputs(outputs), outputs, receipt)

    async def _attempts(self, run: Run) -> dict[str, Any]:
        furthest = losses = 0
        while True:
            try:
                with run.active():
                    return await self.strategy.run(run)
            except LimitExceeded as exc:
                if exc.details.get("outcome") != "retry":
                    raise
                if run.attempt >= run.limits.max_retries or not run.effects.repeatable:
                    exc.details["outcome"] = "fail_step"
                    raise
                run.again()
                run.journal.add("retry", limit=exc.details.get("limit"), attempt=run.attempt)
            except SandboxUnavailable as exc:
                if exc is not run.lost:  # not of this run's guest: of another one, in a tool
                    raise
                # The interpreter died, not the run: what happened so far is in the journal.
                record = Recording(run.journal.entries)
                furthest, losses = record.length, losses + 1 if record.length <= furthest else 1
                if losses > _LOSSES_IN_PLACE:
                    raise
                durable.may_go_on(run, record, exc)
                run.timer.keep()
                run.journal.add("resumed", reason="the interpreter was lost")
                run.follow()
                run.dispatcher = run.dispatcher.anew()

    async def _finish(self, run: Run, outputs: dict[str, Any] | None, exc: BaseException | None) -> dict[str, Any]:
        outcome, error = outcome_of(exc), hidden_error(exc, run.secrets)
        details = exc.details if isinstance(exc, DseError) else {}
        if outcome in ("ok", "failed"):
            run.journal.add("run_finished", outcome=outcome, outputs=outputs, limit=details.get("limit"))
        else:
            run.journal.add("run_stopped", outcome=outcome)
        model = self.lm.name if self.lm else None
        receipt = {**self.stamp, **receipt_of(run, model=model, outcome=outcome, outputs=outputs, error=error, details=details)}
        if self.store is not None:
            try:
                await durable.stop(run, self.store, outcome, receipt, self.lm)
            except (StoreUnavailable, RunTaken) as failure:
                failure.details["run_id"] = run.run_id
                failure.details["receipt"] = receipt
                failure.details["effects"] = run.effects.summary()
                raise
        return receipt

    # --- runs that stopped

    def resume(self, run_id: str, *, decisions: Mapping[int, Decision] | None = None, snapshots: bool = True,
               take_over: bool = False, deps: Any = None) -> Prediction:  # fmt: skip
        """Go on with a run of the store, from synchronous code; see `aresume`."""
        return run_sync(lambda: self.aresume(run_id, decisions=decisions, snapshots=snapshots, take_over=take_over, deps=deps))

    async def aresume(self, run_id: str, *, decisions: Mapping[int, Decision] | None = None, snapshots: bool = True,
                      take_over: bool = False, deps: Any = None) -> Prediction:  # fmt: skip
        """Go on with a run that was suspended, failed for outside reasons, or whose process is gone.

        Recorded completions are not paid for again, recorded tool outcomes not executed again.

        Args:
            decisions: by call id, about writes that were started and of which nobody recorded the end.
            snapshots: False executes the scripts of a run again instead of loading its guest.
            take_over: also when another machine had it last, and is known to be gone.

        Raises:
            RunNotResumable, RunTaken, JournalTampered: nothing happened.
            EffectUnknown: a write needs a decision. ReplayDiverged: the program is not what it was.
            RunFailed, RunSuspended, InfrastructureError: as when it was started.
        """
        return await resuming.resume(self, run_id, decisions=decisions or {}, snapshots=snapshots, take_over=take_over, deps=deps)

    def replay(self, run_id: str) -> Prediction:
        """Execute a finished run again from its journal alone, from synchronous code; see `areplay`."""
        return run_sync(lambda: self.areplay(run_id))

    async def areplay(self, run_id: str) -> Prediction:
        """Execute a finished run again from its journal alone: no model is asked, no tool runs, nothing is written.

        Returns:
            What the run returned, reached on the same path.

        Raises:
            ReplayDiverged: the program takes another path. RunFailed: as the run did.
            RunNotResumable, JournalTampered
        """
        run = await resuming.recorded(self, run_id)
        program = Program(self.signature, self.plan, lm=self.lm, toolbox=self.toolbox, stamp=self.stamp,
                          checks=tuple(self.checks.values()))  # fmt: skip
        return await program.execute(run)

    def fork(self, run_id: str, call_id: int, *, value: Any = None, error: str | None = None) -> str:
        """A new run with the journal of another one up to a call, which gives something else; `resume` executes the rest.

        Args:
            value: what the call gives instead. error: the message of a ``ToolFailed`` instead.

        Returns:
            The new run's id.

        Raises:
            RunNotResumable, DecisionRefused, JournalTampered
        """
        return run_sync(resuming.fork, self, run_id, call_id, value, error)

    # --- neighbours

    def narrowed(self, allow: Any = None, limits: Mapping[str, Any] | None = None) -> Program:
        """The same program with fewer tools or lower limits, never more."""
        return Program(self.signature, self.plan.narrowed(allow, limits), lm=self.lm, toolbox=self.toolbox, deps=self.deps,
                       approve=self.approve, middleware=self.middleware, store=self.store, durability=self.durability,
                       approval_expires_s=self.approval_expires_s, stamp=self.stamp,
                       checks=tuple(self.checks.values()))  # fmt: skip

    def as_dspy(self, *, environment: Any = None) -> Any:
        """A ``dspy.Module`` whose predictors dspy's optimizers and ``dspy.Evaluate`` can drive. Its runs are evaluations:
        other runs' calls never make a tool's rate refuse one, it waits.

        Raises:
            EnvironmentRequired: the plan allows write tools and no environment is given.
        """
        from dse.interop import as_dspy

        return as_dspy(self, environment)


def _store(store: Store | str | Path | None) -> Store | None:
    if isinstance(store, (str, Path)):
        from dse.store.journal import Store

        return Store(store)
    return store


def _is_on(task: asyncio.Task[Any] | None) -> bool:
    """Whether this is executed by `task`, and not by somebody who closes what it was executing."""
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no event loop runs here any more
        return False


def check_limits(spec: SignatureSpec, plan: Plan) -> None:
    """Refuse a bound for a tool that does not exist: nothing would enforce it.

    Raises:
        PlanError
    """
    unknown = sorted(set(plan.limits.calls_per_tool) - set(spec.tool_names))
    if unknown:
        raise PlanError("Limits(calls_per_tool=...) names tools that the signature does not declare",
                        value=", ".join(unknown),
                        remedy=f"The signature declares: {', '.join(spec.tool_names) or 'no tools'}.")  # fmt: skip


def check_toolbox(spec: SignatureSpec, plan: Plan, toolbox: Toolbox) -> None:
    """Every allowed tool is there, implemented, and has the interface that the signature declares.

    Raises:
        ToolboxError, ContractMismatch
    """
    declared = {tool.name: tool.contract for tool in spec.tools}
    for name in plan.allow:
        tool = toolbox[name]
        if tool.fn is None:
            raise ToolboxError("An allowed tool has no implementation", value=name,
                               remedy="Bind one: toolbox.bind(name, function).")  # fmt: skip
        if name in declared and tool.contract.interface_id != declared[name].interface_id:
            raise ContractMismatch("A bound tool has another interface than the signature declares", value=name,
                                   remedy="Bind the declared tool, or declare the new one and compile again.")  # fmt: skip
