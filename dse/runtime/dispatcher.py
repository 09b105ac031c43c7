"""The dispatcher: the only way from any mode to a tool.

In this order, for every mode: allow-list -> arguments -> budgets and rate -> approval -> concurrency class ->
idempotency key and journal entry -> execution with timeout -> return contract -> bound and redaction ->
journal -> back to the caller. Every call leaves a receipt, also one that was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import inspect
import operator
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
from pydantic import ValidationError

from dse import telemetry
from dse.canonical import canonical_json, sha256_hex
from dse.contracts.schema import canonical_sets, dump_wire, guest_from_wire, model_values, wire_from_guest
from dse.contracts.serialise import dump_model
from dse.contracts.signature import validation_summary
from dse.contracts.tool import Rate, Tool, ToolContext, ToolContract
from dse.contracts.toolbox import Toolbox
from dse.errors import (
    BudgetExhausted,
    CassetteMiss,
    DseError,
    InfrastructureError,
    LimitExceeded,
    RunSuspended,
    ToolArgumentError,
    ToolDenied,
    ToolFailed,
    ToolFault,
    ToolLimitReached,
    ToolNotAllowed,
    ToolOutputTooLarge,
    ToolRateLimited,
    ToolReturnError,
    ToolTimeout,
    Unserialisable,
)  # fmt: skip
from dse.redaction import redact, safe_message, without_paths
from dse.runtime.admission import Admission, Ticket
from dse.runtime.history import NESTED, CallRecord, Recording, diverged
from dse.runtime.nesting import Caller
from dse.runtime.run import Run
from dse.threads import shared

__all__ = ["ApprovalRequest", "CallResult", "Dispatcher", "Middleware", "ToolCall", "WireResult", "being_cancelled",
           "faults_by_code", "own_class"]  # fmt: skip

SYNC_TOOL_THREADS = 512  # of tools, and as many for who is asked for decisions
_LONGEST_NAME = 100
_LOOK_INSIDE = 1_000_000  # items or characters: validating more only to refuse it would stop the host for seconds
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le,
    "in": lambda a, b: a in b, "not_in": lambda a, b: a not in b,
}  # fmt: skip


@dataclass(frozen=True)
class ToolCall:
    """What middleware sees: the contract, the validated arguments as Python values, and the context."""

    name: str
    contract: ToolContract
    arguments: Mapping[str, Any]
    wire_arguments: Mapping[str, Any]
    context: ToolContext[Any]


Next = Callable[[ToolCall], Awaitable[Any]]
Middleware = Callable[[ToolCall, Next], Awaitable[Any]]


@dataclass(frozen=True)
class ApprovalRequest:
    """A call that waits for a decision, with what the decider must see."""

    tool: str
    call_id: int
    effect: str
    arguments: Mapping[str, Any]
    arguments_hash: str
    run_id: str


@dataclass(frozen=True)
class WireResult:
    """What middleware may give that has a result in wire form already, or the fault of a call that took effect."""

    value: Any = None
    fault: ToolFault | None = None


@dataclass(frozen=True)
class CallResult:
    """A result in wire form, with its receipt."""

    value: Any
    call_id: int
    receipt: Mapping[str, Any]


def _needs_approval(contract: ToolContract, wire: Mapping[str, Any], toolbox: Toolbox) -> bool:
    """Whether a call needs a decision; whatever cannot be decided does."""
    approval = contract.approval
    if approval is None:
        return False
    if approval.always:
        return True
    if approval.rule is not None:
        rule = toolbox.rules.get(f"{approval.rule}@{approval.version}")
        try:
            answer = None if rule is None else rule(copy.deepcopy(dict(wire)))
            return True if answer is None else bool(answer)
        except Exception:
            return True
    properties, defs = contract.parameters.get("properties", {}), contract.parameters.get("$defs", {})
    for name, conditions in (approval.when or {}).items():
        for op, expected in conditions.items():
            try:
                # Compared as what they are: decimals as numbers, dates as dates.
                value = guest_from_wire(wire.get(name), properties[name], defs)
                many = op in ("in", "not_in")
                wanted = [guest_from_wire(one, properties[name], defs) for one in (expected if many else [expected])]
                if not _OPERATORS[op](value, wanted if many else wanted[0]):
                    return False
            except Exception:
                return True  # values that cannot be compared need a person
    return True


def _invalid(exc: Exception, contract: ToolContract) -> str:
    """What is wrong with arguments or a result; without the values where some of them are sensitive."""
    if not isinstance(exc, ValidationError):
        return safe_message(exc)
    if not contract.sensitive:
        return validation_summary(exc)
    found = exc.errors(include_url=False, include_context=False, include_input=False)
    own_words = ("value_error", "assertion_error")  # a validator's text may quote the value
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {'invalid' if e['type'] in own_words else e['msg']}"
                     for e in found[:8])  # fmt: skip


def own_class(fault: ToolFault) -> type[ToolFault]:
    return next(cls for cls in type(fault).__mro__ if cls.__module__ == ToolFault.__module__)


class _Progress:
    """How far a call's implementation got, whatever middleware makes of it."""

    state: Literal["untouched", "none", "unknown", "completed"] = "untouched"


class Dispatcher:
    """Calls tools for one run, under their contracts.

    Args:
        approve: ``callable(ApprovalRequest) -> bool | (bool, reason)``, sync or async. Without one, a call that
            needs a decision suspends the run.
        middleware: outermost first; each wraps the execution of the implementation.
        clock, sleep: for rates, in seconds.
    """

    def __init__(
        self, run: Run, toolbox: Toolbox, *, deps: Any = None, approve: Callable[[ApprovalRequest], Any] | None = None,
        middleware: Sequence[Middleware] = (), clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[Any]] = anyio.sleep,
    ) -> None:  # fmt: skip
        self.run = run
        self.toolbox = toolbox
        self.allow = frozenset(run.plan.allow)
        self.deps = deps
        self.approve = approve
        self.middleware = tuple(middleware)
        self.admission = Admission()
        self.next_id = 1
        self.pending: list[dict[str, Any]] = []  # calls that wait for a decision nobody here can take
        self.keys: dict[int, str] = {}  # idempotency keys by call id
        self._same: Counter[tuple[int, str, str, str]] = Counter()  # equal calls of an attempt
        self._clock = clock
        self._sleep = sleep
        for tool in filter(None, map(toolbox.get, self.allow)):
            run.secrets.names.update(n for n in tool.contract.sensitive if n != "return")
            if "return" in tool.contract.sensitive:
                run.secrets.results.add(tool.name)

    def anew(self) -> Dispatcher:
        """One that begins to count again, for the same run."""
        return Dispatcher(self.run, self.toolbox, deps=self.deps, approve=self.approve, middleware=self.middleware,
                          clock=self._clock, sleep=self._sleep)  # fmt: skip

    def begin_stage(self, allow: Iterable[str]) -> None:
        """From here on only these tools may be called. Equal calls have equal keys in every stage, as in every attempt."""
        self.allow = frozenset(allow)
        self._same.clear()

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
        receipt: dict[str, Any] = {
            "call_id": call_id, "tool": name, "effect": None, "arguments": None, "arguments_hash": None, "result_hash": None,
            "outcome": "refused", "latency_s": 0.0, **({} if caller is None else {"parent": caller.call_id}),
        }  # fmt: skip
        self.run.receipts.append(receipt)
        recording = self.run.journal.recording
        record = recording.calls.get(call_id) if recording else None
        ticket: Ticket | None = None
        charged = 0.0
        try:
            try:
                tool, contract = self._allowed(name, self.allow if caller is None else caller.allow)
                receipt["effect"] = contract.effect
                wire, typed, arguments_hash = self._arguments(tool, args, kwargs or {}, malformed)
                receipt["arguments_hash"] = arguments_hash
            except ToolFault:
                self._count(0.0)  # refused calls count too, or a loop of them would never end
                raise
            receipt["arguments"] = redact(wire, contract.sensitive)
            if record is not None and record.intent is not None:
                self.keys[call_id] = record.intent["idempotency_key"]
            key = self._key(contract, arguments_hash, call_id)
            self._budget(contract)
            charged = contract.cost_usd
            if record is not None:
                self._compare(record, name, wire)
                if record.settled is not None:
                    if record.settled is record.outcome:
                        charged = 0.0
                    self._restore_calls_of(call_id)
                    return CallResult(self._again(contract, record.settled, receipt), call_id, receipt)
            if recording is not None:
                self._new_here(recording, record)
            if tool.fn is None:
                raise InfrastructureError("A tool has no implementation", value=name, remedy="Bind one to the toolbox.")
            ticket = self.admission.ticket(contract.concurrency, nests=tool.nests is not None,
                                           parent=None if caller is None else caller.ticket)  # fmt: skip
            slot = None if contract.rate is None else await self._rate(contract, contract.rate)
            if contract.approval is not None:
                with contextlib.nullcontext() if caller is None else caller.waiting():
                    await self._approval(contract, wire, arguments_hash, call_id, record)
            async with self.admission.admitted(ticket):
                if slot is not None and contract.rate is not None and self._clock() - slot > contract.rate.per_s / 10:
                    await self._rate(contract, contract.rate)  # a decision or other calls took so long that it has passed
                if self.pending and contract.effect == "write":
                    raise self._suspended(contract.name)  # the run is about to stop: nothing new takes effect
                charged = 0.0
                value = await self._execute(tool, wire, typed, call_id, key, receipt, record, ticket)
            return CallResult(value, call_id, receipt)
        except BaseException as exc:
            if receipt["outcome"] == "refused":
                self.run.meter.refund_tool(charged)
                self._refused(exc, call_id, receipt, record)
                await self.run.journal.durable()
            raise
        finally:
            if ticket is not None:
                self.admission.withdraw(ticket)

    def _refused(self, exc: BaseException, call_id: int, receipt: dict[str, Any], record: CallRecord | None) -> None:
        """Receipt and journal of a call that was not executed."""
        if isinstance(exc, DseError):
            fault, message, remedy = exc.code, exc.what, exc.remedy
        else:
            cancelled = isinstance(exc, asyncio.CancelledError)
            fault, message, remedy = None, "cancelled" if cancelled else safe_message(exc), ""
        receipt.update(fault=fault, message=self.run.secrets.text(message))
        if isinstance(exc, RunSuspended):
            return  # it waits, and nobody has refused it
        if record is None or record.refused is None or record.refused["fault"] != fault:
            self.run.journal.add("tool_refused", call_id=call_id, tool=receipt["tool"], fault=fault, message=message,
                                 remedy=remedy)  # fmt: skip

    # --- calls that an earlier execution made

    def _compare(self, record: CallRecord, name: str, wire: Mapping[str, Any]) -> None:
        """The call must be the one that was recorded.

        Raises:
            ReplayDiverged
        """
        for entry in (record.intent, record.settled):
            arguments = None if entry is None else entry.get("arguments")
            if entry is not None and (entry["tool"] != name or (arguments is not None and arguments != wire)):
                raise diverged(entry, f"{name}()", {"arguments": dict(wire)})

    def _new_here(self, recording: Recording, record: CallRecord | None) -> None:
        """A call without a recorded result may be executed where the record ends, and only there."""
        last = None if record is None else record.outcome or record.refused
        ended = recording.ended_after(last) if last is not None else None
        if ended is not None and ended.get("limit"):  # it was cancelled when its attempt ended
            raise self.run.limit(ended["limit"], "all", "all")
        if ended is not None or recording.only:
            raise diverged(ended, "a call that was not recorded", {})
        self.run.caught_up()

    def _again(self, contract: ToolContract, entry: Mapping[str, Any], receipt: dict[str, Any]) -> Any:
        """The recorded result of a call, with everything that is counted because of it; its fault is raised."""
        if entry["kind"] == "tool_outcome":
            self._note(contract, entry, receipt)
        if entry.get("outcome") == "ok":
            return copy.deepcopy(entry["result"])
        fault = faults_by_code().get(entry["fault"], ToolFailed)(entry["message"], remedy=entry["remedy"])
        receipt.update(fault=fault.code, message=self.run.secrets.text(fault.what))
        raise fault

    def restore(self, call_id: int) -> None:
        """Count a call of which the program has had the result: its guest goes on from a later point.

        Raises:
            ReplayDiverged: there is no record of it.
        """
        recording = self.run.journal.recording
        record = recording.calls.get(call_id) if recording else None
        entry = record.settled if record else None
        if record is None or entry is None:
            raise diverged(None, f"call {call_id}", {})
        if call_id < NESTED:
            self.next_id = max(self.next_id, call_id + 1)
        tool = self.toolbox.get(entry["tool"]) if entry["tool"] in self.allow else None
        receipt: dict[str, Any] = {
            "call_id": call_id, "tool": entry["tool"], "effect": None, "arguments": None, "arguments_hash": None,
            "result_hash": None, "outcome": "refused", "latency_s": 0.0,
            **({"parent": call_id // NESTED} if call_id >= NESTED else {}),
        }  # fmt: skip
        self.run.receipts.append(receipt)
        meter = self.run.meter
        meter.tool_calls += 1
        if tool is None or record.intent is None:
            if tool is not None and entry["fault"] in (ToolRateLimited.code, ToolDenied.code):
                meter.charge_tool(tool.name, 0.0)  # it came as far as being counted, and cost nothing
            receipt.update(effect=tool.contract.effect if tool else None, fault=entry.get("fault"),
                           message=self.run.secrets.text(entry.get("message") or ""))  # fmt: skip
            return
        contract, wire = tool.contract, record.intent["arguments"]
        if contract.sensitive:
            self.run.secrets.remember(wire, contract.sensitive)
        arguments_hash = f"sha256:{sha256_hex(canonical_json(wire))}"
        receipt.update(effect=contract.effect, arguments=redact(wire, contract.sensitive), arguments_hash=arguments_hash)
        self.keys[call_id] = record.intent["idempotency_key"]
        self._key(contract, arguments_hash, call_id)
        meter.charge_tool(contract.name, contract.cost_usd)
        try:
            self._again(contract, entry, receipt)
        except ToolFault:
            pass

    def _note(
        self, contract: ToolContract, entry: Mapping[str, Any], receipt: dict[str, Any], text: bytes | None = None
    ) -> None:
        """What follows from the outcome of a call: its receipt, its effect, its secrets.

        Args:
            text: canonical JSON of the result, where somebody has it already.
        """
        run, value = self.run, entry["result"]
        ok = entry["outcome"] == "ok"
        receipt.update(outcome=entry["outcome"], latency_s=entry["latency_s"], idempotency_key=entry["idempotency_key"],
                       result_hash=f"sha256:{sha256_hex(text or canonical_json(value))}" if ok else None)  # fmt: skip
        if not ok:
            receipt.update(fault=entry["fault"], message=run.secrets.text(entry["message"] or ""))
        if contract.effect == "write" and entry["effect_state"] != "none":
            run.effects.add(contract.name, receipt["call_id"], entry["effect_state"], contract.idempotent)
        if contract.sensitive:
            run.secrets.remember(value, None if "return" in contract.sensitive else contract.sensitive)

    def _key(self, contract: ToolContract, arguments_hash: str, call_id: int) -> str:
        """The same for the same call of the same run, also when it is made again by a later attempt."""
        within = "" if call_id < NESTED else self.keys[call_id // NESTED]
        same = (self.run.attempt, within, contract.name, arguments_hash)
        self._same[same] += 1
        if call_id not in self.keys:
            text = f"{self.run.run_id}/{within}/{contract.name}/{arguments_hash}/{self._same[same]}"
            self.keys[call_id] = sha256_hex(text.encode())[:32]
        return self.keys[call_id]

    def _restore_calls_of(self, parent: int) -> None:
        """Count what a script called that is not executed again."""
        recording = self.run.journal.recording
        first = parent * NESTED
        for call_id in sorted(recording.calls if recording else ()):
            if first < call_id < first + NESTED:
                self.restore(call_id)

    # --- the steps

    def _allowed(self, name: str, allow: frozenset[str]) -> tuple[Tool, ToolContract]:
        tool = self.toolbox.get(name) if name in allow else None
        if tool is None:
            raise ToolNotAllowed(f"name '{name}' is not defined", value=name,
                                 remedy=f"Available: {', '.join(sorted(allow)) or 'no tools'}.")  # fmt: skip
        return tool, tool.contract

    def _arguments(
        self, tool: Tool, args: Sequence[Any], kwargs: Mapping[str, Any], malformed: bool
    ) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Arguments in wire form, as Python values, and the hash of the wire form."""
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
        for key, value in kwargs.items():
            if key in given:
                raise ToolArgumentError(f"{tool.name}() got two values for {key!r}", remedy="Give it once.")
            given[key] = value
        try:
            wire = {key: wire_from_guest(value, key) for key, value in given.items()}
            if contract.sensitive:
                self.run.secrets.remember(wire, contract.sensitive)
            if isinstance(tool.params, type):
                made = tool.params.model_validate(wire)
                typed = model_values(made)
                canonical = canonical_sets(dump_model(made), contract.parameters)
            else:  # a contract bound as data
                unknown = sorted(set(wire) - set(names))
                if unknown and not contract.parameters.get("additionalProperties"):
                    raise ToolArgumentError(f"{tool.name}() has no parameter {unknown[0]!r}", remedy=remedy())
                canonical = tool.params.validate(wire)
                typed = copy.deepcopy(canonical)
            text = canonical_json(canonical)
        except ToolArgumentError:
            raise
        except Unserialisable as exc:
            raise ToolArgumentError(f"Invalid arguments for {tool.name}(): {exc.what}", remedy=exc.remedy) from None
        except Exception as exc:  # also from a validator that cannot take what the model gave
            problem = _invalid(exc, contract)
            raise ToolArgumentError(f"Invalid arguments for {tool.name}(): {problem}", remedy=remedy()) from None
        return canonical, typed, f"sha256:{sha256_hex(text)}"

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

    async def _rate(self, contract: ToolContract, rate: Rate) -> float:
        """Wait for a slot of a rated tool; gives its time."""
        now = self._clock()
        wait = await self.toolbox.slot(contract.name, rate, now, contract.timeout_s)
        if wait is None:
            raise ToolRateLimited(f"{contract.name} is limited to {rate.calls} calls in {rate.per_s:g} s",
                                  remedy="Call it less often.")  # fmt: skip
        if wait > 0:
            await self._sleep(wait)
        return now + wait

    def _suspended(self, name: str) -> RunSuspended:
        """Calls of the same round that wait as well join this very list."""
        run = self.run
        remedy = "Decide with Store.approve or Store.deny (or `dse runs approve`), then resume the run."
        if run.journal.log is None:
            remedy = "Give the program approve=, a function that decides, or a store=, where the run can wait."
        return RunSuspended(f"{name} needs a decision before it runs", value=run.run_id, remedy=remedy,
                            run_id=run.run_id, pending=self.pending)  # fmt: skip

    async def _approval(
        self, contract: ToolContract, wire: dict[str, Any], arguments_hash: str, call_id: int, record: CallRecord | None
    ) -> None:
        if not _needs_approval(contract, wire, self.toolbox):
            return
        run = self.run
        if record is not None and record.approval is not None:  # decided before, and then something else ended the run
            return self._decided(contract, record.approval["granted"], record.approval["reason"])
        decided = run.decisions.get(call_id)
        if decided is not None and decided.arguments_hash != arguments_hash:
            raise diverged(None, f"a decision about other arguments of {contract.name}", wire)
        if decided is not None:
            run.journal.add("approval", call_id=call_id, tool=contract.name, arguments_hash=arguments_hash,
                            granted=decided.granted, reason=decided.reason, by=decided.by, at=decided.at)  # fmt: skip
            return self._decided(contract, decided.granted, decided.reason)
        if self.approve is None:
            self.pending.append({
                "tool": contract.name, "call_id": call_id, "effect": contract.effect,
                "arguments": redact(wire, contract.sensitive), "arguments_hash": arguments_hash})  # fmt: skip
            raise self._suspended(contract.name)
        request = ApprovalRequest(contract.name, call_id, contract.effect, copy.deepcopy(wire), arguments_hash, run.run_id)
        try:
            with run.waiting():
                decision = await self._decision(request)
        except (Exception, SystemExit, asyncio.CancelledError) as exc:
            if being_cancelled(exc) or isinstance(exc, CassetteMiss):
                raise
            raise InfrastructureError(
                f"No decision about {contract.name} could be had", value=safe_message(exc),
                remedy="The tool was not run; correct the function given as approve=.") from exc  # fmt: skip
        answer, reason = decision if isinstance(decision, tuple) and len(decision) == 2 else (decision, "")
        granted = answer is True  # anything else that happens to be true is no decision
        reason = without_paths(str(reason))
        run.journal.add("approval", call_id=call_id, tool=contract.name, arguments_hash=arguments_hash, granted=granted,
                        reason=reason)  # fmt: skip
        await run.journal.durable()
        self._decided(contract, granted, reason)

    def _decided(self, contract: ToolContract, granted: bool, reason: str) -> None:
        if not granted:
            raise ToolDenied(f"{contract.name} was denied" + (f": {reason}" if reason else ""),
                             remedy="Do not try the same call again.")  # fmt: skip

    async def _decision(self, request: ApprovalRequest) -> Any:
        approve = self.approve
        assert approve is not None
        if inspect.iscoroutinefunction(approve) or inspect.iscoroutinefunction(getattr(approve, "__call__", None)):  # noqa: B004
            return await approve(request)
        # In a thread: a person who is asked there must not stop every other run.
        decision = await _in_thread("dse-approval", lambda: approve(request))
        return await decision if inspect.isawaitable(decision) else decision

    async def _execute(
        self, tool: Tool, wire: dict[str, Any], typed: dict[str, Any], call_id: int, key: str, receipt: dict[str, Any],
        record: CallRecord | None, ticket: Ticket,
    ) -> Any:  # fmt: skip
        contract, run = tool.contract, self.run
        started = time.perf_counter()
        if record is None or record.intent is None:
            run.journal.add("tool_intent", call_id=call_id, tool=contract.name, arguments=wire, idempotency_key=key)
        elif record.retried:  # the decision was about one more time
            run.journal.add("retrying", call_id=call_id, tool=contract.name)
        if contract.effect == "write":
            await run.journal.durable()  # a read may be executed again, a write must be known before it can happen
        caller = None if tool.nests is None else Caller(self, tool, ticket, call_id)
        deadline = asyncio.get_running_loop().time() + contract.timeout_s
        context = ToolContext(self.deps, run.run_id, call_id, key, deadline, caller)
        call = ToolCall(contract.name, contract, typed, wire, context)
        progress = _Progress()
        value, text, error = None, None, None
        try:
            with anyio.CancelScope(deadline=deadline) as scope:
                if caller is not None:
                    caller.within(scope)
                raw = await self._through_middleware(tool, call, progress)
            if scope.cancelled_caught:
                raise ToolTimeout(f"{contract.name} did not finish within {contract.timeout_s:g} s",
                                  remedy=f"Effects so far: {run.effects.summary()}." if caller is not None else "")  # fmt: skip
            if progress.state == "untouched":  # middleware answered in the tool's place
                progress.state = "completed"
            value, text = _returned(tool, raw)
        except BaseException as exc:
            error = exc if caller is not None and caller.ends(exc) else self._failure(tool, exc, progress)
        told = error if isinstance(error, DseError) else None
        # What a script does are its calls, and they are accounted for.
        state = "none" if contract.effect != "write" or caller is not None else "completed" if progress.state == "completed" else progress.state
        entry = {
            "call_id": call_id, "tool": contract.name, "outcome": "ok" if error is None else "fault" if told else "cancelled",
            "result": value, "fault": told.code if told else None,
            "message": told.what if told else None if error is None else "cancelled", "remedy": told.remedy if told else None,
            "effect_state": "unknown" if state == "untouched" else state, "latency_s": time.perf_counter() - started,
            "idempotency_key": key,
        }  # fmt: skip
        self._note(contract, entry, receipt, text)
        run.journal.add("tool_outcome", **entry)
        if error is None or told is not None:
            await run.journal.durable()
        else:
            with anyio.CancelScope(shield=True):  # a cancelled call is recorded as well
                await run.journal.durable()
        if error is not None:
            raise error
        return value

    def _failure(self, tool: Tool, exc: BaseException, progress: _Progress) -> BaseException:
        """The fault that the program sees for whatever was raised, or `exc` itself where it ends the run."""
        contract = tool.contract
        fault: ToolFault
        if being_cancelled(exc) or isinstance(
            exc, (InfrastructureError, BudgetExhausted, GeneratorExit, KeyboardInterrupt)
        ):
            return exc
        if isinstance(exc, ToolFault):
            if isinstance(exc, ToolFailed) and progress.state == "untouched":
                progress.state = "none"  # middleware refused on purpose before anything was done
            fault = own_class(exc)(without_paths(exc.what), remedy=without_paths(exc.remedy))
        else:
            fault = ToolFailed(f"{contract.name} failed: {safe_message(exc)}")
        if contract.effect == "write" and progress.state != "none" and tool.nests is None:
            known = progress.state == "completed"
            fault.what += "; the call itself took effect" if known else "; it is not known whether it took effect"
        return fault

    async def _through_middleware(self, tool: Tool, call: ToolCall, progress: _Progress) -> Any:
        async def implementation(call: ToolCall) -> Any:
            before, progress.state = progress.state, "unknown"
            try:
                result = await _run_implementation(tool, call)
            except ToolFailed:  # on purpose: the implementation declares that nothing was done
                progress.state = "none" if before == "untouched" else before
                raise
            progress.state = "completed"
            return result

        if not self.middleware:
            return await implementation(call)
        step: Next = implementation
        for layer in reversed(self.middleware):
            step = _wrap(layer, step)
        return await step(call)

    @staticmethod
    def returned(tool: Tool, raw: Any) -> Any:
        """The wire form of what an implementation (or middleware in its place) gave.

        Raises:
            ToolFault: it does not fit the contract.
        """
        return _returned(tool, raw)[0]


def _returned(tool: Tool, raw: Any) -> tuple[Any, bytes | None]:
    """As `Dispatcher.returned`, with the canonical JSON of what was validated here."""
    contract = tool.contract
    if isinstance(raw, WireResult):
        if raw.fault is not None:
            raise raw.fault
        return raw.value, None
    if isinstance(raw, (Iterator, AsyncIterator)):  # validating one that never ends would stop the host
        raise ToolReturnError(f"{contract.name} returned an iterator, not data")
    if isinstance(raw, (str, bytes, list, tuple, dict)) and len(raw) > max(contract.max_output_bytes, _LOOK_INSIDE):
        raise ToolOutputTooLarge(f"{contract.name} returned more than {contract.max_output_bytes} bytes",
                                 remedy="Ask for less.")  # fmt: skip
    try:
        wire = dump_wire(tool.returns, tool.returns.validate_python(raw, from_attributes=True), contract.returns)
        text = canonical_json(wire)
    except ValidationError as exc:
        raise ToolReturnError(f"{contract.name} returned something else than its contract promises: "
                              f"{_invalid(exc, contract)}") from None  # fmt: skip
    except Exception as exc:
        raise ToolReturnError(f"{contract.name} returned a value that has no JSON form: {safe_message(exc)}") from None
    if len(text) > contract.max_output_bytes:
        raise ToolOutputTooLarge(f"{contract.name} returned {len(text)} bytes; {contract.max_output_bytes} are allowed",
                                 remedy="Ask for less.")  # fmt: skip
    return wire, text


@functools.cache
def faults_by_code() -> dict[str, type[ToolFault]]:
    """The faults of the error tree by code."""
    kinds = [ToolFault]
    for kind in kinds:
        kinds += [sub for sub in kind.__subclasses__() if sub.__module__ == ToolFault.__module__]
    return {kind.code: kind for kind in kinds}


def being_cancelled(exc: BaseException) -> bool:
    """Whether `exc` cancels this task; an implementation may also raise CancelledError all by itself."""
    task = asyncio.current_task()
    return isinstance(exc, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


async def _in_thread(kind: str, work: Callable[[], Any]) -> Any:
    """The result of ``work()`` in a thread of this kind; cancelled, it goes on and nobody hears of it."""
    await anyio.lowlevel.checkpoint_if_cancelled()  # then it does not even begin
    return await shared(kind, SYNC_TOOL_THREADS).run(work)


async def _run_implementation(tool: Tool, call: ToolCall) -> Any:
    arguments = dict(call.arguments)
    if tool.context_parameter:
        arguments[tool.context_parameter] = call.context
    fn = tool.fn
    assert fn is not None
    if tool.is_async:
        return await fn(**arguments)
    result = await _in_thread("dse-tool", lambda: fn(**arguments))
    return await result if inspect.isawaitable(result) else result  # a plain function may hand out a coroutine


def _wrap(layer: Middleware, step: Next) -> Next:
    async def wrapped(call: ToolCall) -> Any:
        return await layer(call, step)

    return wrapped


async def gather_calls(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all, in order; exceptions are returned, not raised."""
    if len(calls) == 1:  # the usual case needs no task of its own
        try:
            return [await calls[0]]
        except Exception as exc:
            return [exc]
    return list(await asyncio.gather(*calls, return_exceptions=True))
