"""The execution of a call that has passed every gate: intent, implementation, result or fault, outcome.

A call is executed once, with a timeout, inside of middleware. What comes back is held to the contract, and whatever goes
wrong becomes the fault that the program sees, with what is known of the effect.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import anyio
from pydantic import ValidationError

from dse.canonical import canonical_json
from dse.contracts.schema import dump_wire
from dse.contracts.signature import validation_summary
from dse.contracts.tool import Tool, ToolContext, ToolContract
from dse.errors import (
    BudgetExhausted,
    DseError,
    InfrastructureError,
    ToolFailed,
    ToolFault,
    ToolOutputTooLarge,
    ToolReturnError,
    ToolTimeout,
    UserError,
)  # fmt: skip
from dse.redaction import safe_message, without_paths
from dse.runtime.calls import Calls, own_class
from dse.runtime.history import CallRecord
from dse.runtime.nesting import Caller
from dse.runtime.run import Run
from dse.threads import being_cancelled, in_thread

__all__ = ["Execution", "Middleware", "Next", "ToolCall", "WireResult", "invalid", "returned"]

_LOOK_INSIDE = 1_000_000  # items or characters: validating more only to refuse it would stop the host for seconds


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
class WireResult:
    """What middleware may give that has a result in wire form already, or the fault of a call that took effect."""

    value: Any = None
    fault: ToolFault | None = None


class _Progress:
    """How far a call's implementation got, whatever middleware makes of it."""

    state: Literal["untouched", "none", "unknown", "completed"] = "untouched"


class Execution:
    """Executes the calls of one run.

    Args:
        deps: what tools find in their context.
        middleware: outermost first.
    """

    def __init__(self, run: Run, calls: Calls, *, deps: Any, middleware: tuple[Middleware, ...]) -> None:
        self._run = run
        self._calls = calls
        self._deps = deps
        self._middleware = middleware

    async def execute(
        self, tool: Tool, wire: dict[str, Any], typed: dict[str, Any], call_id: int, key: str, receipt: dict[str, Any],
        record: CallRecord | None, given: Mapping[str, Any], caller: Caller | None,
        hold: Callable[[], Callable[[], Any]] | None = None,
    ) -> Any:  # fmt: skip
        """Execute a call; gives its result in wire form.

        Args:
            record: what an earlier execution left of it, without a result.
            given: what the journal says of the arguments besides themselves.
            caller: what the implementation makes its own calls with, where it is a script tool.
            hold: called when the call ends and its thread goes on; what it gives is called when that has ended.

        Raises:
            ToolFault: what the program may see and handle.
            BaseException: what ends the run, or this call with it.
        """
        contract, run = tool.contract, self._run
        started = time.perf_counter()
        if record is None or record.intent is None:
            run.journal.add("tool_intent", call_id=call_id, tool=contract.name, arguments=wire, idempotency_key=key,
                            **given)  # fmt: skip
        elif record.retried:  # the decision was about one more time
            run.journal.add("retrying", call_id=call_id, tool=contract.name)
        if contract.effect == "write":
            await run.journal.durable()  # a read may be executed again, a write must be known before it can happen
        deadline = asyncio.get_running_loop().time() + contract.timeout_s
        context = ToolContext(self._deps, run.run_id, call_id, key, deadline, caller)
        call = ToolCall(contract.name, contract, typed, wire, context)
        progress = _Progress()
        value, text, error = None, None, None
        try:
            with anyio.CancelScope(deadline=deadline) as scope:
                if caller is not None:
                    caller.within(scope)
                raw = await self._through_middleware(tool, call, progress, hold)
            if scope.cancelled_caught:
                raise ToolTimeout(f"{contract.name} did not finish within {contract.timeout_s:g} s",
                                  remedy=f"Effects so far: {run.effects.summary()}." if caller is not None else "")  # fmt: skip
            if progress.state == "untouched":  # middleware answered in the tool's place
                progress.state = "completed"
            value, text = _returned(tool, raw)
        except BaseException as exc:
            error = exc if caller is not None and caller.ends(exc) else _failure(tool, exc, progress)
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
        self._calls.ended(contract, entry, receipt, text)
        run.journal.add("tool_outcome", **entry)
        if error is None or told is not None:
            await run.journal.durable()
        else:
            with anyio.CancelScope(shield=True):  # a cancelled call is recorded as well
                await run.journal.durable()
        if error is not None:
            raise error
        return value

    async def _through_middleware(
        self, tool: Tool, call: ToolCall, progress: _Progress, hold: Callable[[], Callable[[], Any]] | None
    ) -> Any:
        async def implementation(call: ToolCall) -> Any:
            before, progress.state = progress.state, "unknown"
            try:
                result = await _run_implementation(tool, call, hold)
            except ToolFailed:  # on purpose: the implementation declares that nothing was done
                progress.state = "none" if before == "untouched" else before
                raise
            progress.state = "completed"
            return result

        if not self._middleware:
            return await implementation(call)
        step: Next = implementation
        for layer in reversed(self._middleware):
            step = _wrap(layer, step, tool)
        return await step(call)


async def _run_implementation(tool: Tool, call: ToolCall, hold: Callable[[], Callable[[], Any]] | None) -> Any:
    arguments = dict(call.arguments)
    if tool.context_parameter:
        arguments[tool.context_parameter] = call.context
    fn = tool.fn
    assert fn is not None
    if tool.is_async:
        return await fn(**arguments)
    result = await in_thread("dse-tool", lambda: fn(**arguments), left=hold)
    return await result if inspect.isawaitable(result) else result  # a plain function may hand out a coroutine


_REMEDY = "Write: async def layer(call, call_next): return await call_next(call)."


class _Misused(UserError):
    """Middleware does not do what middleware has to: a mistake of the program, which no model can correct."""


def _wrap(layer: Middleware, step: Next, tool: Tool) -> Next:
    async def wrapped(call: ToolCall) -> Any:
        asked: list[Coroutine[Any, Any, Any]] = []
        nothing = False

        async def passed_on(call: ToolCall) -> Any:
            nonlocal nothing
            result = await step(call)
            nothing = nothing or result is None
            return result

        def call_next(call: ToolCall) -> Coroutine[Any, Any, Any]:
            asked.append(passed_on(call))
            return asked[-1]

        try:
            going = layer(call, call_next)
        except TypeError as exc:
            if _takes_two(layer):
                raise
            raise _Misused("Middleware takes the call and what goes on with it", value=_name_of(layer), remedy=_REMEDY) from exc
        result = await going if inspect.isawaitable(going) else going
        forgotten = [one for one in asked if inspect.getcoroutinestate(one) == inspect.CORO_CREATED]
        for one in forgotten:
            one.close()
        if forgotten or going is result or inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise _Misused("Middleware has to be an async function that awaits what it calls", value=_name_of(layer),
                           remedy=_REMEDY)  # fmt: skip
        if result is None and not nothing and not _may_be_none(tool):
            what = "Middleware lost what a tool returned" if asked else "Middleware neither called the tool nor answered for it"
            raise _Misused(what, value=_name_of(layer), remedy=_REMEDY)
        return result

    return wrapped


def _takes_two(layer: Middleware) -> bool:
    try:
        inspect.signature(layer).bind(None, None)
    except ValueError:  # nobody knows
        return True
    except TypeError:
        return False
    return True


def _name_of(layer: Middleware) -> str:
    return getattr(layer, "__qualname__", type(layer).__qualname__)


def _may_be_none(tool: Tool) -> bool:
    try:
        tool.returns.validate_python(None)
    except Exception:
        return False
    return True


def _failure(tool: Tool, exc: BaseException, progress: _Progress) -> BaseException:
    """The fault that the program sees for whatever was raised, or `exc` itself where it ends the run."""
    contract = tool.contract
    fault: ToolFault
    if isinstance(exc, _Misused) and progress.state == "untouched":
        progress.state = "none"  # it never got as far as the tool
    if being_cancelled(exc) or isinstance(exc, (InfrastructureError, BudgetExhausted, GeneratorExit, KeyboardInterrupt, _Misused)):
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


def returned(tool: Tool, raw: Any) -> Any:
    """The wire form of what an implementation (or middleware in its place) gave.

    Raises:
        ToolFault: it does not fit the contract.
    """
    return _returned(tool, raw)[0]


def _returned(tool: Tool, raw: Any) -> tuple[Any, bytes | None]:
    """As `returned`, with the canonical JSON of what was validated here."""
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
                              f"{invalid(exc, contract)}") from None  # fmt: skip
    except Exception as exc:
        raise ToolReturnError(f"{contract.name} returned a value that has no JSON form: {safe_message(exc)}") from None
    if len(text) > contract.max_output_bytes:
        raise ToolOutputTooLarge(f"{contract.name} returned {len(text)} bytes; {contract.max_output_bytes} are allowed",
                                 remedy="Ask for less.")  # fmt: skip
    return wire, text


def invalid(exc: Exception, contract: ToolContract) -> str:
    """What is wrong with arguments or a result; without the values where some of them are sensitive."""
    if not isinstance(exc, ValidationError):
        return safe_message(exc)
    if not contract.sensitive:
        return validation_summary(exc)
    found = exc.errors(include_url=False, include_context=False, include_input=False)
    own_words = ("value_error", "assertion_error")  # a validator's text may quote the value
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'value'}: {'invalid' if e['type'] in own_words else e['msg']}"
                     for e in found[:8])  # fmt: skip
