"""Recorded environments: worlds whose tool calls are answered from a cassette.

They stand below the dispatcher, where a tool's implementation would run: contracts, limits, approvals and the journal
apply as ever, in every mode of execution alike. A call is known by (tool, canonical arguments, state of the world); the
state is a token that starts with the example and moves on with every write, so that a read after a write is another
call than the same read before it. Within a run a write waits for the calls made before it, and those made after it
wait for the write, so that what a call sees never depends on timing.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.to_thread
from pydantic import ValidationError

from dse.canonical import canonical_json, digest, parse_json
from dse.contracts.revision import source_revision
from dse.contracts.schema import adapter_for
from dse.contracts.tool import Tool, ToolContract
from dse.contracts.toolbox import Toolbox
from dse.errors import (
    BudgetExhausted,
    CassetteError,
    CassetteMiss,
    EnvironmentRequired,
    InfrastructureError,
    ToolFailed,
    ToolFault,
    ToolTimeout,
    Unserialisable,
    UserError,
)
from dse.evaluation.environment import Environment, World, environment
from dse.redaction import without_paths
from dse.runtime.calls import faults_by_code, own_class
from dse.runtime.execution import Next, ToolCall, WireResult, returned
from dse.store.effects import EffectCassette, Outcome, effect_key, next_token, start_token
from dse.threads import being_cancelled

__all__ = ["Mode", "RecordedEnvironment", "SimulatedCall", "recorded"]

Mode = Literal["live", "record", "replay", "simulate"]


@dataclass(frozen=True)
class SimulatedCall:
    """What a simulator is asked.

    Attributes:
        tool, arguments: the call; arguments as plain JSON data.
        contract: of the tool.
        example: the row.
        earlier: (tool, arguments, result) of the calls of this run that gave a result, oldest first.
        seed: the same for the same call in the same state of a world.
    """

    tool: str
    arguments: Mapping[str, Any]
    contract: ToolContract
    example: Any
    earlier: tuple[tuple[str, Mapping[str, Any], Any], ...]
    seed: int


def recorded(
    cassette: str | Path, *, inner: Any = None, mode: Mode = "replay", state: Callable[[Any], Any] | None = None,
    simulator: Callable[[SimulatedCall], Any] | None = None, simulator_revision: str | None = None,
    sensitive: Literal["refuse", "keep"] = "refuse", source: str | None = None, notes: str = "", recorded: str | None = None,
) -> RecordedEnvironment:  # fmt: skip
    """An environment whose tool calls are answered from the recording at `cassette`.

    Args:
        inner: the environment that is recorded, for ``live`` and ``record``. Tools that write need one.
        mode: ``live``: `inner` answers. ``record``: the recording answers the reads it knows, `inner` the rest, which is
            recorded; writes always run in `inner`, too, so that it is in the right state. ``replay``: the recording
            alone; a call that it does not know is a `CassetteMiss`, never a score. ``simulate``: as ``replay``, but the
            `simulator` answers what is not known, and the environment's name says so.
        state: gives plain JSON data for an example: examples with equal data start in the same state of the world.
            Default: each row has a world of its own, by its hash.
        simulator: ``callable(SimulatedCall)``, sync or async, gives what the tool would, or raises `ToolFailed`. What
            its attribute ``end_state`` gives for the example and the calls (as `SimulatedCall.earlier`) is the end state
            of a world that was not recorded; without it that is None.
        simulator_revision: default a hash of its source.
        sensitive: what to do about tools whose *results* are declared sensitive: refuse to record them, or keep results
            in clear in the file. Sensitive arguments are never stored.
        source, notes, recorded: of a new recording: where the answers come from, a remark, the day (``YYYY-MM-DD``).

    Raises:
        UserError: options that do not go together.
    """
    if mode not in ("live", "record", "replay", "simulate"):
        raise UserError("No such mode of a recorded environment", value=mode, remedy="Use live, record, replay or simulate.")
    if sensitive not in ("refuse", "keep"):
        raise UserError("sensitive= is refuse or keep", value=sensitive)
    if (simulator is not None) != (mode == "simulate"):
        raise UserError('mode="simulate" and simulator= go together', value=mode, remedy="Give both or none.")
    if inner is not None and not isinstance(inner, Environment):
        inner = environment(inner)
    simulated = None if simulator is None else simulator_revision or source_revision(simulator)
    return RecordedEnvironment(Path(cassette), inner, mode, state, simulator, simulated, sensitive,
                               {"source": source, "notes": notes, "recorded": recorded})  # fmt: skip


class RecordedEnvironment(Environment):
    """See `recorded`. The file is opened when it is first needed; `close` ends a recording."""

    def __init__(
        self, path: Path, inner: Environment | None, mode: Mode, state: Callable[[Any], Any] | None,
        simulator: Callable[[SimulatedCall], Any] | None, simulator_revision: str | None, sensitive: str,
        header: dict[str, Any],
    ) -> None:  # fmt: skip
        self.path = path
        self.inner = inner
        self.mode: Mode = mode
        self.simulator = simulator
        self.sensitive = sensitive
        self._state = state
        self._simulator_revision = simulator_revision
        self._header = header
        self.factory = _refuse
        self.__doc__ = f"{path.name}, {mode}"

    def __getstate__(self) -> dict[str, Any]:
        if self.mode == "record":
            raise UserError("A recording is made in one process", value=str(self.path),
                            remedy='Record with executor="local"; a replay runs anywhere.')  # fmt: skip
        return {name: value for name, value in self.__dict__.items() if name != "cassette"}  # opened again where it goes

    @functools.cached_property
    def cassette(self) -> EffectCassette:
        """The recording; opening it for ``record`` makes the file."""
        if self.mode != "record":
            return EffectCassette.open(self.path)
        made = EffectCassette(self.path)
        inner = self._inner_id()
        made.record(inner, source=self._header["source"] or f"recorded from {inner[0]}", notes=self._header["notes"],
                    recorded=self._header["recorded"])  # fmt: skip
        return made

    def _inner_id(self) -> tuple[str, str]:
        return ("tools", "") if self.inner is None else (self.inner.name, self.inner.revision)

    @functools.cached_property
    def name(self) -> str:  # type: ignore[override]
        """Of the environment that is, or was, recorded; it says so where answers are made up."""
        if self.mode in ("live", "record"):
            return self._inner_id()[0]
        header = self.cassette.header
        assert header is not None
        return header.environment.name + ("+simulated" if self.mode == "simulate" else "")

    @functools.cached_property
    def revision(self) -> str:  # type: ignore[override]
        """Covers the mode and what answers: the recording's content, or the environment that is recorded."""
        live = self.mode in ("live", "record")
        told = self._inner_id() if live else self.cassette.content_id
        state = None if self._state is None else source_revision(self._state)
        return f"{self.mode}-{digest([told, state, self._simulator_revision])[7:19]}"

    @property
    def note(self) -> str | None:  # type: ignore[override]
        if self.mode == "live":
            return None
        if self.mode == "simulate":
            return (f"tool calls that {self.path.name} does not hold were answered by a simulator "
                    f"({self._simulator_revision}): scores depend on made-up answers")  # fmt: skip
        return f"tool calls {'recorded to' if self.mode == 'record' else 'answered from'} {self.path.name}"

    def close(self) -> None:
        """End a recording; entering the environment again goes on with it."""
        if "cassette" in self.__dict__:
            self.cassette.close()
            del self.__dict__["cassette"]

    @contextlib.asynccontextmanager
    async def enter(self, example: Any) -> AsyncIterator[World]:
        """See `Environment.enter`."""
        async with contextlib.AsyncExitStack() as stack:
            world = None
            if self.mode in ("live", "record") and self.inner is not None:
                world = await stack.enter_async_context(self.inner.enter(example))
            yield _Session(self, example, world).world()

    def start(self, example: Any) -> str:
        """The token of the state that the example's world starts in.

        Raises:
            UserError: ``state=`` failed, or gave something that is no plain JSON data.
        """
        if self._state is None:
            return start_token(["row", example.row_hash])
        try:
            return start_token(["state", self._state(example)])
        except Exception as exc:
            raise UserError(f"The state of row {getattr(example, 'id', None)!r} cannot be had: {type(exc).__name__}",
                            value=str(exc), remedy="Give plain JSON data from state=.") from exc  # fmt: skip


def _refuse(example: Any) -> Any:
    raise UserError("A recorded environment has no factory", remedy="Use enter(example).")


@dataclass(frozen=True)
class _RecordedWorld(World):
    session: Any = None

    def bound(self, toolbox: Toolbox) -> Toolbox:
        return self.session.bound(toolbox.in_world(self.tools, self.own(toolbox)))  # type: ignore[no-any-return]

    def own(self, toolbox: Toolbox) -> set[str]:
        """In a replay all of them: a recording answers."""
        return {one.name for one in toolbox} if self.session.mode in ("replay", "simulate") else super().own(toolbox)


class _Session:
    """One rollout in a recorded world."""

    def __init__(self, owner: RecordedEnvironment, example: Any, inner: World | None) -> None:
        self.owner = owner
        self.mode = owner.mode
        self.example = example
        self.inner = inner
        self.token = self.began = owner.start(example)
        self.tools: dict[str, Tool] = {}
        self.earlier: list[tuple[str, Mapping[str, Any], Any]] = []
        self.strayed = ""  # the write whose outcome in the inner world is not the recorded one

    @property
    def cassette(self) -> EffectCassette:
        return self.owner.cassette

    def world(self) -> World:
        inner = self.inner or World()
        if self.mode == "live":
            return _RecordedWorld(**_fields(inner), session=self)
        return _RecordedWorld(deps=inner.deps, tools=inner.tools, state=self.state, approve=self.approve,
                              middleware=(self.layer, *inner.middleware), session=self)  # fmt: skip

    def bound(self, toolbox: Toolbox) -> Toolbox:
        """The tools of the run: writes alone, so that the state in which a call is made is never a matter of timing."""
        own = [one for one in toolbox if one.nests is None]
        writes = [one for one in own if one.contract.effect == "write"]
        if writes and self.inner is None and self.mode in ("live", "record"):
            raise EnvironmentRequired("Write tools would run outside an environment", value=", ".join(t.name for t in writes),
                                      remedy="Give the recorded environment an inner=, a fresh world per rollout.")  # fmt: skip
        if self.mode == "record" and self.owner.sensitive == "refuse":
            for one in own:
                if set(one.contract.sensitive) - set(one.contract.parameters.get("properties", {})):
                    raise CassetteError("The results of a tool are sensitive, and would stand in the recording in clear",
                                        value=one.name, remedy='Leave the tool out of the toolbox, or record with '
                                        'sensitive="keep" and guard the file.')  # fmt: skip
        if self.mode != "live":
            self.cassette.check(toolbox.contracts())
        alone = [dataclasses.replace(one, contract=one.contract.model_copy(update={"concurrency": "exclusive"}))
                 for one in writes]  # fmt: skip
        bound = toolbox.replaced(alone)
        self.tools = {one.name: one for one in bound}
        return bound

    # --- a call

    async def layer(self, call: ToolCall, proceed: Next) -> Any:
        """Middleware: answers in the implementation's place, or records what it gives."""
        tool = self.tools[call.name]
        if tool.nests is not None:
            return await proceed(call)  # a script: its calls come here themselves
        contract = tool.contract
        token = "" if contract.effect == "pure" else self.token
        key = effect_key(call.name, call.wire_arguments, token)
        entry = self.cassette.entries.get(key)
        if self.mode == "record":
            if entry is None or contract.effect == "write":
                outcome = await self._executed(tool, call, proceed, token, key)
            else:
                outcome = entry.outcome
        elif entry is not None:
            outcome = entry.outcome
        elif self.mode == "simulate":
            outcome = await self._simulated(tool, call, token, key)
        else:
            raise self.cassette.miss(contract, call.wire_arguments, token)
        if contract.effect == "write" and _took_effect(outcome):
            self.token = next_token(key, outcome)
        return self._given(tool, call, outcome)

    async def _executed(self, tool: Tool, call: ToolCall, proceed: Next, token: str, key: str) -> Outcome:
        """What the inner world gives, recorded; where that was recorded before, the first recording stands."""
        if self.strayed:
            raise CassetteMiss(f"{call.name} has to be recorded after {self.strayed}, whose outcome was not the recorded one",
                               value=canonical_json(dict(call.wire_arguments)).decode() if not tool.contract.sensitive else None,
                               remedy="Make the inner environment repeat itself (no clocks, no random ids), or record "
                                      "each state of the world once.")  # fmt: skip
        try:
            outcome = await self._outcome(tool, call, proceed)
        except asyncio.CancelledError:
            late = Outcome(kind="timeout") if anyio.current_time() >= call.context.deadline else None
            if late is not None:
                self.cassette.put_call(tool.contract, call.wire_arguments, token, late)
            if tool.contract.effect == "write":  # nobody knows whether it took effect
                self.token = next_token(key, late)
            raise
        try:
            stands = self.cassette.put_call(tool.contract, call.wire_arguments, token, outcome).outcome
        except CassetteError as exc:  # the candidate must not see it
            raise CassetteMiss(f"A call of {call.name} cannot be recorded: {exc.what}", value=exc.value,
                               remedy=exc.remedy) from exc  # fmt: skip
        if tool.contract.effect == "write" and stands != outcome:
            self.strayed = f"{call.name}()"
        return stands

    async def _outcome(self, tool: Tool, call: ToolCall, proceed: Next) -> Outcome:
        try:
            raw = await proceed(call)
        except (InfrastructureError, BudgetExhausted):
            raise
        except ToolFault as exc:
            return Outcome(kind="fault", code=own_class(exc).code, what=without_paths(exc.what),
                           remedy=without_paths(exc.remedy))  # fmt: skip
        except (Exception, SystemExit, asyncio.CancelledError) as exc:
            if being_cancelled(exc):
                raise
            return Outcome(kind="raised", code=type(exc).__name__, what=_text(exc))
        try:
            return Outcome(kind="value", value=returned(tool, raw))
        except ToolFault as exc:
            return Outcome(kind="fault", code=own_class(exc).code, what=exc.what, remedy=exc.remedy, done=True)

    async def _simulated(self, tool: Tool, call: ToolCall, token: str, key: str) -> Outcome:
        """What the simulator makes up. Its mistakes are nobody's score."""
        asked = SimulatedCall(call.name, copy.deepcopy(dict(call.wire_arguments)), tool.contract, self.example,
                              copy.deepcopy(tuple(self.earlier)), int(key[:12], 16))  # fmt: skip
        simulator = self.owner.simulator
        assert simulator is not None
        try:
            raw = simulator(asked)
            raw = await raw if inspect.isawaitable(raw) else raw
        except InfrastructureError:
            raise
        except ToolFailed as exc:
            return Outcome(kind="fault", code=ToolFailed.code, what=without_paths(exc.what), remedy=without_paths(exc.remedy))
        except Exception as exc:
            raise CassetteMiss(f"The simulator has no answer for {call.name}: {type(exc).__name__}", value=str(exc),
                               remedy="Correct the simulator; raise dse.errors.ToolFailed where the tool would.") from exc  # fmt: skip
        try:
            return Outcome(kind="value", value=returned(tool, raw))
        except ToolFault as exc:
            raise CassetteMiss(f"The simulator's answer does not fit: {exc.what}", value=repr(raw),
                               remedy="Return what the tool's contract promises.") from exc  # fmt: skip

    def _given(self, tool: Tool, call: ToolCall, outcome: Outcome) -> Any:
        """The outcome as the implementation would have given it."""
        if outcome.kind == "timeout":
            raise ToolTimeout(f"{tool.name} did not finish within {tool.contract.timeout_s:g} s")
        if outcome.kind == "raised":
            raise type(outcome.code, (Exception,), {})(outcome.what)
        if outcome.kind == "fault":
            fault = faults_by_code().get(outcome.code, ToolFailed)(outcome.what, remedy=outcome.remedy)
            if outcome.done:
                return WireResult(fault=fault)
            raise fault
        value = copy.deepcopy(outcome.value)
        if self.mode == "replay":  # anybody may have written the file
            try:
                adapter_for(tool.contract.returns).validate_python(value)
            except ValidationError as exc:
                raise CassetteMiss(f"The recorded result of {tool.name} does not fit its contract", value=repr(value),
                                   remedy="Record it again, or restore the file.") from exc  # fmt: skip
        self.earlier.append((call.name, dict(call.wire_arguments), outcome.value))
        return WireResult(value)

    # --- what else a world does

    async def approve(self, request: Any) -> tuple[bool, str]:
        """The inner world's decision, recorded: once per call and state that a world starts in."""
        contract = self.tools[request.tool].contract
        key = effect_key(f"approve {request.tool}", request.arguments, self.began)
        known = self.cassette.decisions.get(key)
        if known is not None:
            return known.granted, known.reason
        if self.mode == "replay":
            raise self.cassette.miss(contract, request.arguments, self.began)
        decide = self.inner.approve if self.inner is not None else None
        if self.mode == "simulate" or decide is None:
            answer: Any = True
        elif inspect.iscoroutinefunction(decide):
            answer = await decide(request)
        else:
            answer = await anyio.to_thread.run_sync(decide, request, abandon_on_cancel=True)
            answer = await answer if inspect.isawaitable(answer) else answer
        granted, reason = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, "")
        if self.mode == "simulate":
            return granted is True, str(reason)
        return self.cassette.put_decision(key, request.tool, granted is True, without_paths(str(reason)))

    def state(self) -> Any:
        """The end state, by the token of the state that the run ended in."""
        known = self.cassette.ends.get(self.token)
        if known is not None:
            return copy.deepcopy(known.value)
        if self.mode == "simulate":
            end_state = getattr(self.owner.simulator, "end_state", None)
            return None if end_state is None else end_state(self.example, tuple(copy.deepcopy(self.earlier)))
        if self.mode == "replay":
            raise CassetteMiss(f"{self.cassette.path.name} has no end state of a world after these calls", value=self.token,
                               remedy='Record the run with mode="record" and the environment.')  # fmt: skip
        if self.strayed:
            raise CassetteMiss(f"The end state after {self.strayed} cannot be recorded: its outcome was not the recorded one",
                               remedy="Make the inner environment repeat itself (no clocks, no random ids).")  # fmt: skip
        read = self.inner.state if self.inner is not None else None
        value = None if read is None else read()
        try:
            value = parse_json(canonical_json(value))
        except Unserialisable:
            return value  # the evaluator says what is wrong with it
        return copy.deepcopy(self.cassette.put_end(self.token, value))


def _fields(world: World) -> dict[str, Any]:
    return {f.name: getattr(world, f.name) for f in dataclasses.fields(World)}


def _took_effect(outcome: Outcome) -> bool:
    """Whether a write may have changed the world: not if it said on purpose that it did nothing."""
    return outcome.done or outcome.kind != "fault" or outcome.code != ToolFailed.code


def _text(exc: BaseException) -> str:
    try:
        return without_paths(str(exc))
    except Exception:  # one that cannot even say what it is
        return ""
