"""The dispatcher: the only way from any mode to a tool.

In this order, for every mode: allow-list -> arguments -> budgets and rate -> approval -> concurrency class ->
idempotency key and journal entry -> execution with timeout -> return contract -> bound and redaction ->
journal -> back to the caller. Every call leaves a receipt, also one that was refused.

The gates are here, but for `approval`; what comes behind them is `execution`. A call that an earlier execution made is
answered by `replay`, and `calls` keeps the books of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from dse import telemetry
from dse.canonical import canonical_json, sha256_hex
from dse.contracts.names import also_called, declared_names
from dse.contracts.schema import model_values, wire_from_guest
from dse.contracts.serialise import dump_model
from dse.contracts.sets import canonical_sets
from dse.contracts.tool import Tool, ToolContract
from dse.contracts.toolbox import Toolbox
from dse.errors import (
    InfrastructureError,
    LimitExceeded,
    ToolArgumentError,
    ToolFault,
    ToolLimitReached,
    ToolNotAllowed,
    Unserialisable,
)
from dse.redaction import redact
from dse.runtime.admission import Admission, Ticket
from dse.runtime.approval import ApprovalRequest, Approvals
from dse.runtime.calls import Calls
from dse.runtime.execution import Execution, Middleware, invalid
from dse.runtime.history import NESTED
from dse.runtime.made import hash_of, may_differ
from dse.runtime.nesting import Caller
from dse.runtime.rates import Rates
from dse.runtime.replay import Replay
from dse.runtime.run import Run

__all__ = ["CallResult", "Dispatcher", "gather_calls"]

_LONGEST_NAME = 100


@dataclass(frozen=True)
class CallResult:
    """A result in wire form, with its receipt."""

    value: Any
    call_id: int
    receipt: Mapping[str, Any]


class Dispatcher:
    """Calls tools for one run, under their contracts.

    Args:
        approve: ``callable(ApprovalRequest) -> bool | (bool, reason)``, sync or async. Without one, a call that
            needs a decision suspends the run.
        middleware: outermost first; each wraps the execution of the implementation.
        clock, sleep: for rates, in seconds.
        rates: of the same run, which go on.
    """

    def __init__(
        self, run: Run, toolbox: Toolbox, *, deps: Any = None, approve: Callable[[ApprovalRequest], Any] | None = None,
        middleware: Sequence[Middleware] = (), clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = anyio.sleep, rates: Rates | None = None,
    ) -> None:  # fmt: skip
        self.run = run
        self.toolbox = toolbox
        self.allow = frozenset(run.plan.allow)
        self.deps = deps
        self.approve = approve
        self.middleware = tuple(middleware)
        self.admission = Admission()
        self.approvals = Approvals(run, approve)
        self.calls = Calls(run)
        self.keys = self.calls.keys  # idempotency keys by call id
        self.replay = Replay(run, self.calls)
        self.execution = Execution(run, self.calls, deps=deps, middleware=self.middleware)
        self.rates = Rates(run, toolbox, clock, sleep) if rates is None else rates
        self.next_id = 1
        tools = [*filter(None, map(toolbox.get, self.allow))]
        for tool in tools:
            run.secrets.names.update(n for n in _called(tool) if n != "return")
            if "return" in tool.contract.sensitive:
                run.secrets.results.add(tool.name)
        if run.secrets.names or run.secrets.results:
            schemas = [schema for tool in tools for schema in (tool.contract.parameters, tool.contract.returns)]
            schemas += [run.spec.input_schema, run.spec.output_schema]
            run.secrets.fields = frozenset(declared_names(schemas)) | run.secrets.names

    def anew(self) -> Dispatcher:
        """One that begins to count again, for the same run."""
        new = Dispatcher(self.run, self.toolbox, deps=self.deps, approve=self.approve, middleware=self.middleware,
                         rates=self.rates)  # fmt: skip
        new.admission = self.admission  # a thread may still be at work for a call of before
        return new

    def begin_stage(self, allow: Iterable[str]) -> None:
        """From here on only these tools may be called."""
        self.allow = frozenset(allow)
        self.calls.begin_stage()

    def reserve(self) -> int:
        """The id of the next call. Calls that start together get theirs in an order that never changes."""
        self.next_id += 1
        return self.next_id - 1

    @telemetry.tool_call
    async def call(self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *,
                   malformed: bool = False, call_id: int | None = None, caller: Caller | None = None) -> CallResult:  # fmt: skip
        """Call a tool with guest or JSON values.

        Args:
            malformed: the arguments could not be read at all; the call is refused, with a receipt like any other.
            call_id: as `reserve` gave it.
            caller: the call of a script tool that makes this one.

        Raises:
            ToolFault: what the program may see and handle.
            LimitExceeded, RunSuspended, InfrastructureError: what ends the run.
        """
        if call_id is None:
            call_id = self.reserve() if caller is None else caller.reserve()
        name = name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…"  # a model may have written anything
        receipt = self.calls.receipt(call_id, name, None if caller is None else caller.call_id)
        recording = self.run.journal.recording
        record = recording.calls.get(call_id) if recording else None
        ticket: Ticket | None = None
        charged, wire = 0.0, None
        given: Mapping[str, Any] = {}
        try:
            try:
                tool, contract = self._allowed(name, self.allow if caller is None else caller.allow)
                receipt["effect"] = contract.effect
                wire, typed, arguments_hash, given = self._arguments(tool, args, kwargs or {}, malformed)
            except ToolFault:
                self._count(0.0)  # refused calls count too, or a loop of them would never end
                raise
            if given and record is not None:
                wire, typed, arguments_hash = self.replay.as_recorded(
                    record, given, (wire, typed, arguments_hash), lambda known: self._arguments(tool, (), known, False)[:3])
            receipt.update(arguments=redact(wire, contract.sensitive), arguments_hash=arguments_hash)
            if record is not None and record.intent is not None:
                self.keys[call_id] = record.intent["idempotency_key"]
            key = self.calls.key(contract, arguments_hash, call_id)
            self._budget(contract)
            charged = contract.cost_usd
            if record is not None:
                self.replay.compare(record, name, wire)
                if record.settled is not None:
                    if record.settled is record.outcome:
                        charged = 0.0
                    for nested in self.replay.made_by(call_id):  # what a script called that is not executed again
                        self.restore(nested)
                    return CallResult(self.replay.answer(contract, record.settled, receipt), call_id, receipt)
            if recording is not None:
                self.replay.new_here(recording, record, contract, receipt)
            if tool.fn is None:
                raise InfrastructureError("A tool has no implementation", value=name, remedy="Bind one to the toolbox.")
            ticket = self.admission.ticket(contract.concurrency, nests=tool.nests is not None,
                                           parent=None if caller is None else caller.ticket)  # fmt: skip
            slot = None if contract.rate is None else await self.rates.slot(contract, contract.rate, call_id, caller)
            if contract.approval is not None:
                if given and (record is None or (record.intent or record.proposed) is None):
                    self.run.journal.add("tool_proposed", call_id=call_id, tool=name, arguments=wire, **given)
                with contextlib.nullcontext() if caller is None else caller.waiting():
                    await self.approvals.require(contract, wire, arguments_hash, call_id, record, self.toolbox)
            async with self.admission.admitted(ticket):
                if slot is not None and contract.rate is not None and self.rates.passed(slot, contract.rate):
                    await self.rates.slot(contract, contract.rate, call_id, caller)  # a decision or other calls took so long
                if self.approvals.pending and contract.effect == "write":
                    raise self.approvals.suspended(contract.name)  # the run is about to stop: nothing new takes effect
                charged = 0.0
                own = None if tool.nests is None else Caller(self, tool, ticket, call_id)
                hold = None if contract.concurrency == "parallel" else functools.partial(self.admission.hold, ticket)
                value = await self.execution.execute(tool, wire, typed, call_id, key, receipt, record, given, own, hold)
            return CallResult(value, call_id, receipt)
        except BaseException as exc:
            if receipt["outcome"] == "refused":
                self.run.meter.refund_tool(charged)
                self.calls.refused(exc, call_id, receipt, record, wire, given)
                await self.run.journal.durable()
            raise
        finally:
            if ticket is not None:
                self.admission.withdraw(ticket)

    def restore(self, call_id: int) -> None:
        """Count a call of which the program has had the result: its guest goes on from a later point.

        Raises:
            ReplayDiverged: there is no record of it.
        """
        entry = self.replay.told(call_id)
        if call_id < NESTED:
            self.next_id = max(self.next_id, call_id + 1)
        tool = self.toolbox.get(entry["tool"]) if entry["tool"] in self.allow else None
        self.replay.count(call_id, entry, tool)

    # --- the gates

    def _allowed(self, name: str, allow: frozenset[str]) -> tuple[Tool, ToolContract]:
        tool = self.toolbox.get(name) if name in allow else None
        if tool is None:
            raise ToolNotAllowed(f"name '{name}' is not defined", value=name,
                                 remedy=f"Available: {', '.join(sorted(allow)) or 'no tools'}.")  # fmt: skip
        return tool, tool.contract

    def _arguments(
        self, tool: Tool, args: Sequence[Any], kwargs: Mapping[str, Any], malformed: bool
    ) -> tuple[dict[str, Any], dict[str, Any], str, Mapping[str, Any]]:
        """Arguments in wire form, as Python values, the hash of the wire form, and what the journal says besides."""
        contract = tool.contract
        names = list(contract.parameters.get("properties", {}))

        def remedy() -> str:
            return f"Parameters: {', '.join(names) or 'none'}."

        if malformed:
            raise ToolArgumentError(f"The arguments of {tool.name}() are not a JSON object", remedy="Send valid JSON.")
        if len(args) > len(names):
            raise ToolArgumentError(f"{tool.name}() takes {len(names)} arguments but {len(args)} were given",
                                    remedy=remedy())  # fmt: skip
        given: dict[str, Any] = dict(zip(names, args, strict=False))
        noted: Mapping[str, Any] = {}
        for key, value in kwargs.items():
            if key in given:
                raise ToolArgumentError(f"{tool.name}() got two values for {key!r}", remedy="Give it once.")
            given[key] = value
        try:
            wire = {key: wire_from_guest(value, key) for key, value in given.items()}
            if contract.sensitive:
                self.run.secrets.remember(wire, _called(tool))
            if isinstance(tool.params, type):
                made = tool.params.model_validate(wire)
                typed = model_values(made)
                canonical = canonical_sets(dump_model(made), contract.parameters, made)
                if canonical != wire and may_differ(tool.params):
                    noted = {"given": hash_of(wire)}
            else:  # a contract bound as data
                unknown = sorted(set(wire) - set(names))
                if unknown and not contract.parameters.get("additionalProperties"):
                    raise ToolArgumentError(f"{tool.name}() has no parameter {unknown[0]!r}", remedy=remedy())
                canonical = tool.params.validate(wire)
                typed = copy.deepcopy(canonical)
            text = canonical_json(canonical)
            if contract.sensitive and canonical != wire:  # what the implementation gets, and may quote
                self.run.secrets.remember(canonical, contract.sensitive)
        except ToolArgumentError:
            raise
        except Unserialisable as exc:
            raise ToolArgumentError(f"Invalid arguments for {tool.name}(): {exc.what}", remedy=exc.remedy) from None
        except Exception as exc:  # also from a validator that cannot take what the model gave
            problem = invalid(exc, contract)
            raise ToolArgumentError(f"Invalid arguments for {tool.name}(): {problem}", remedy=remedy()) from None
        return canonical, typed, f"sha256:{sha256_hex(text)}", noted

    def _count(self, cost_usd: float) -> None:
        """One more call of all calls; as a failed step, the limit is a fault of this call."""
        try:
            self.run.meter.before_tool_call(cost_usd)
        except LimitExceeded as exc:
            if exc.details["outcome"] != "fail_step":
                raise
            name = exc.details["limit"]
            raise ToolLimitReached(f"The run reached its limit of {name}", limit=name,
                                   remedy="Go on with the results you have.") from None  # fmt: skip

    def _budget(self, contract: ToolContract) -> None:
        self._count(contract.cost_usd)
        meter = self.run.meter
        bounds = [b for b in (contract.max_calls, self.run.limits.calls_per_tool.get(contract.name)) if b is not None]
        if bounds and meter.per_tool[contract.name] >= min(bounds):
            raise ToolLimitReached(f"{contract.name} may be called {min(bounds)} times in one run, and was",
                                   remedy="Go on with the results you have.", limit=min(bounds))  # fmt: skip
        meter.charge_tool(contract.name, contract.cost_usd)


def _called(tool: Tool) -> frozenset[str]:
    """The sensitive names of a tool, with those that the same fields may be given by."""
    names = frozenset(tool.contract.sensitive)
    return names | also_called(tool.params, names) if names and isinstance(tool.params, type) else names


async def gather_calls(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all, in order; exceptions are returned, not raised."""
    if len(calls) == 1:  # the usual case needs no task of its own
        try:
            return [await calls[0]]
        except Exception as exc:
            return [exc]
    return list(await asyncio.gather(*calls, return_exceptions=True))
