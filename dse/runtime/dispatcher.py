"""The dispatcher: the only way from any mode to a tool.

In this order, for every mode: allow-list -> arguments -> budgets and rate -> approval -> concurrency class ->
idempotency key and journal entry -> execution with timeout -> return contract -> bound and redaction ->
journal -> back to the caller. Every call leaves a receipt, also one that was refused.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import operator
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
from pydantic import ValidationError

from dse.canonical import canonical_json, digest, sha256_hex
from dse.contracts.schema import canonical_sets, dump_wire, guest_from_wire, model_values, wire_from_guest
from dse.contracts.signature import validation_summary
from dse.contracts.tool import Tool, ToolContext, ToolContract
from dse.contracts.toolbox import Toolbox
from dse.errors import (
    BudgetExhausted,
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
from dse.runtime.admission import Admission, Ticket
from dse.runtime.run import REDACTED, Run, redact

__all__ = ["ApprovalRequest", "CallResult", "Dispatcher", "Middleware", "ToolCall"]

SYNC_TOOL_THREADS = 512
_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("dse_tool_threads")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le,
    "in": lambda a, b: a in b, "not_in": lambda a, b: a not in b,
}  # fmt: skip


def tool_threads() -> anyio.CapacityLimiter:
    """The limiter of threads that run synchronous tools; shared with nothing else."""
    try:
        return _limiter.get()
    except LookupError:
        _limiter.set(anyio.CapacityLimiter(SYNC_TOOL_THREADS))
        return _limiter.get()


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
class CallResult:
    """A result in wire form, with its receipt."""

    value: Any
    call_id: int
    receipt: Mapping[str, Any]


_PART = r"[^\s/\\\"'<>|]+"  # of a path
_PATHS = re.compile(
    rf"""(?:File\s+)?(?:
      (["'])(?:file:|~|\.{{0,2}}/|\.{{0,2}}\\|[A-Za-z]:[\\/])[^"'\n]*\1                   # anything quoted that begins like a path
    | file:/+[^\s"']*
    | (?<![A-Za-z])[A-Za-z]:[\\/]+(?:{_PART}(?:\x20{_PART})*[\\/]+)*(?:{_PART})?         # C:\..., with spaces inside folders
    | \\\\(?:{_PART}(?:\x20{_PART})*\\+)*(?:{_PART})?                                 # \\server\share
    | (?<![\w/.~])(?:\.{{1,2}}|~\w*)?/(?:{_PART}(?:\x20{_PART})*/+)*(?:{_PART})            # /a/b, ./a, ../a, ~/a
    | (?<=File\ )(["'])[^"'\n]*\2
    )(?:,\s*line\s+\d+(?:,\s*in\s+\S+)?)?""",
    re.VERBOSE,
)
_LONGEST_MESSAGE = 300


def without_paths(text: str) -> str:
    """One line of `text` for a model: nothing after a traceback begins, host paths as ``<path>``, at most 300 characters."""
    text = _PATHS.sub("<path>", text[:4_000].split("Traceback (most recent call last)")[0])
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."


def safe_message(exc: BaseException) -> str:
    """What a model may be told about an exception: its class and text, without host paths or tracebacks."""
    try:
        text = without_paths(str(exc))
    except Exception:  # an exception that cannot even say what it is
        text = ""
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


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
            return True if rule is None else rule(copy.deepcopy(dict(wire))) is not False
        except Exception:
            return True
    properties, defs = contract.parameters["properties"], contract.parameters.get("$defs", {})
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


@dataclass
class _Progress:
    """How far a call's implementation got, whatever middleware makes of it."""

    state: Literal["untouched", "none", "unknown", "completed"] = "untouched"

    def declined(self) -> None:
        """The implementation raised ToolFailed on purpose: it declares that nothing was done this time."""
        self.state = "none"


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

    async def call(self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> CallResult:
        """Call a tool with guest or JSON values.

        Raises:
            ToolFault: what the program may see and handle.
            LimitExceeded, RunSuspended, InfrastructureError: what ends the run.
        """
        call_id = self.next_id
        self.next_id += 1
        receipt: dict[str, Any] = {"call_id": call_id, "tool": name, "effect": None, "arguments": None,
                                   "arguments_hash": None, "result_hash": None, "outcome": "refused", "latency_s": 0.0}  # fmt: skip
        self.run.receipts.append(receipt)
        ticket: Ticket | None = None
        try:
            tool, contract = self._allowed(name)
            receipt["effect"] = contract.effect
            wire, typed = self._arguments(tool, args, kwargs or {})
            receipt["arguments_hash"] = digest(wire)
            receipt["arguments"] = redact(wire, set(contract.sensitive))
            self._budget(contract)
            ticket = self.admission.ticket(contract.concurrency)
            await self._rate(contract)
            await self._approval(contract, wire, call_id)
            async with self.admission.admitted(ticket):
                value = await self._execute(tool, wire, typed, call_id, receipt)
            return CallResult(value, call_id, receipt)
        except DseError as exc:
            if receipt["outcome"] == "refused":
                receipt["fault"] = exc.code
                receipt["message"] = exc.what
                self.run.journal.add("tool_refused", call_id=call_id, tool=name, fault=exc.code, message=exc.what)
            raise
        finally:
            if ticket is not None:
                self.admission.withdraw(ticket)

    def _allowed(self, name: str) -> tuple[Tool, ToolContract]:
        tool = self.toolbox.get(name) if name in self.allow else None
        if tool is None:
            raise ToolNotAllowed(f"name '{name}' is not defined", value=name,
                                 remedy=f"Available: {', '.join(sorted(self.allow)) or 'no tools'}.")  # fmt: skip
        if tool.fn is None:
            raise InfrastructureError("A tool has no implementation", value=name, remedy="Bind one to the toolbox.")
        return tool, tool.contract

    def _arguments(self, tool: Tool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        contract = tool.contract
        names = list(contract.parameters.get("properties", {}))
        if len(args) > len(names):
            raise ToolArgumentError(f"{tool.name}() takes {len(names)} arguments but {len(args)} were given",
                                    remedy=f"Parameters: {', '.join(names) or 'none'}.")  # fmt: skip
        given: dict[str, Any] = dict(zip(names, args, strict=False))
        for key, value in kwargs.items():
            if key in given:
                raise ToolArgumentError(f"{tool.name}() got two values for {key!r}", remedy="Give it once.")
            given[key] = value
        try:
            wire = {key: wire_from_guest(value, key) for key, value in given.items()}
            validate = getattr(tool.params, "validate", None)
            if isinstance(tool.params, type):
                made = tool.params.model_validate(wire)
                typed = model_values(made)
                canonical = canonical_sets(made.model_dump(mode="json", by_alias=True, warnings="error"), contract.parameters)
            else:  # a contract bound as data
                typed = canonical = validate(wire)  # type: ignore[misc]
        except ValidationError as exc:
            raise ToolArgumentError(f"Invalid arguments for {tool.name}(): {validation_summary(exc)}",
                                    remedy=f"Parameters: {', '.join(names) or 'none'}.") from None  # fmt: skip
        except Unserialisable as exc:
            raise ToolArgumentError(f"Invalid arguments for {tool.name}(): {exc.what}", remedy=exc.remedy) from None
        return canonical, typed

    def _budget(self, contract: ToolContract) -> None:
        meter = self.run.meter
        meter.before_tool_call(contract.cost_usd)
        bounds = [b for b in (contract.max_calls, self.run.limits.calls_per_tool.get(contract.name)) if b is not None]
        if bounds and meter.per_tool[contract.name] >= min(bounds):
            raise ToolLimitReached(f"{contract.name} may be called {min(bounds)} times in one run, and was",
                                   remedy="Go on with the results you have.", limit=min(bounds))  # fmt: skip
        meter.charge_tool(contract.name, contract.cost_usd)

    async def _rate(self, contract: ToolContract) -> None:
        if contract.rate is None:
            return
        wait = self.toolbox.reserve_slot(contract.name, contract.rate, time.monotonic(), contract.timeout_s)
        if wait is None:
            raise ToolRateLimited(f"{contract.name} is limited to {contract.rate.calls} calls in {contract.rate.per_s} s",
                                  remedy="Call it less often.")  # fmt: skip
        if wait > 0:
            await anyio.sleep(wait)

    async def _approval(self, contract: ToolContract, wire: dict[str, Any], call_id: int) -> None:
        if not _needs_approval(contract, wire, self.toolbox):
            return
        request = ApprovalRequest(contract.name, call_id, contract.effect, wire, digest(wire), self.run.run_id)
        if self.approve is None:
            shown = {"tool": request.tool, "call_id": call_id, "effect": request.effect,
                     "arguments": redact(wire, set(contract.sensitive)), "arguments_hash": request.arguments_hash}  # fmt: skip
            raise RunSuspended(f"{contract.name} needs a decision before it runs", value=self.run.run_id,
                               remedy="Give the program approve=, a function that decides.",
                               run_id=self.run.run_id, pending=[shown])  # fmt: skip
        decision = self.approve(request)
        if inspect.isawaitable(decision):
            decision = await decision
        granted, reason = decision if isinstance(decision, tuple) else (decision, "")
        self.run.journal.add("approval", call_id=call_id, tool=contract.name, arguments_hash=request.arguments_hash,
                             granted=bool(granted), reason=str(reason))  # fmt: skip
        if not granted:
            raise ToolDenied(f"{contract.name} was denied" + (f": {reason}" if reason else ""),
                             remedy="Do not try the same call again.")  # fmt: skip

    async def _execute(self, tool: Tool, wire: dict[str, Any], typed: dict[str, Any], call_id: int, receipt: dict[str, Any]) -> Any:
        contract, run = tool.contract, self.run
        key = digest([run.run_id, call_id, contract.name])[7:39]
        started = time.perf_counter()
        deadline = anyio.current_time() + contract.timeout_s
        context = ToolContext(self.deps, run.run_id, call_id, key, deadline)
        call = ToolCall(contract.name, contract, typed, wire, context)
        run.journal.add("tool_intent", call_id=call_id, tool=contract.name, arguments=wire, idempotency_key=key)
        status, value, fault = "unknown", None, None
        try:
            try:
                with anyio.fail_after(contract.timeout_s):
                    raw = await self._through_middleware(tool, call)
                status = "completed"
                value = self._returned(tool, raw)
            except TimeoutError:
                fault = ToolTimeout(f"{contract.name} did not finish within {contract.timeout_s:g} s"
                                    + (_UNKNOWN_WRITE if contract.effect == "write" else ""))  # fmt: skip
            except ToolFault as exc:
                fault = exc
                if status != "completed" and type(exc) is ToolFailed:
                    status = "none"  # raised by the implementation on purpose: it declares that nothing was done
            except InfrastructureError:
                raise
            except Exception as exc:
                fault = ToolFailed(f"{contract.name} failed: {safe_message(exc)}"
                                   + (_UNKNOWN_WRITE if contract.effect == "write" else ""))  # fmt: skip
            if fault is not None:
                raise fault
            return value
        finally:
            latency = time.perf_counter() - started
            if contract.effect == "write" and status != "none":
                run.effects.add(contract.name, call_id, status, contract.idempotent)
            hidden = "return" in contract.sensitive
            shown = REDACTED if hidden else redact(value, set(contract.sensitive))
            receipt["latency_s"] = latency
            receipt["idempotency_key"] = key
            if fault is None and status == "completed":
                receipt.update(outcome="ok", result_hash=digest(value))
            else:
                code = fault.code if fault else "DSE400"
                receipt.update(outcome="fault", fault=code, message=fault.what if fault else "cancelled")
            run.journal.add("tool_outcome", call_id=call_id, tool=contract.name, outcome=receipt["outcome"], result=shown,
                            fault=receipt.get("fault"), message=receipt.get("message"), latency_s=latency)  # fmt: skip

    async def _through_middleware(self, tool: Tool, call: ToolCall) -> Any:
        async def implementation(call: ToolCall) -> Any:
            arguments = dict(call.arguments)
            if tool.context_parameter:
                arguments[tool.context_parameter] = call.context
            fn = tool.fn
            assert fn is not None
            if tool.is_async:
                return await fn(**arguments)
            if not isinstance(tool.params, type):
                result = fn(**arguments)
                return await result if inspect.isawaitable(result) else result
            return await anyio.to_thread.run_sync(lambda: fn(**arguments), abandon_on_cancel=True, limiter=tool_threads())

        step: Next = implementation
        for layer in reversed(self.middleware):
            step = _wrap(layer, step)
        return await step(call)

    def _returned(self, tool: Tool, raw: Any) -> Any:
        contract = tool.contract
        try:
            wire = dump_wire(tool.returns, tool.returns.validate_python(raw, from_attributes=True), contract.returns)
            size = len(canonical_json(wire))
        except ValidationError as exc:
            raise ToolReturnError(f"{contract.name} returned something else than its contract promises: "
                                  f"{validation_summary(exc)}") from None  # fmt: skip
        except Exception as exc:
            raise ToolReturnError(f"{contract.name} returned a value that has no JSON form: {safe_message(exc)}") from None
        if size > contract.max_output_bytes:
            raise ToolOutputTooLarge(f"{contract.name} returned {size} bytes; {contract.max_output_bytes} are allowed",
                                     remedy="Ask for less.")  # fmt: skip
        return wire


_UNKNOWN_WRITE = "; it is not known whether it took effect"


def _wrap(layer: Middleware, step: Next) -> Next:
    async def wrapped(call: ToolCall) -> Any:
        return await layer(call, step)

    return wrapped


async def gather_calls(calls: Sequence[Awaitable[Any]]) -> list[Any]:
    """Await all, in order; exceptions are returned, not raised."""
    return list(await asyncio.gather(*calls, return_exceptions=True))
