"""The dispatcher: every call is checked in one order, under every policy field, and leaves a receipt."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine
from decimal import Decimal
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

import dse
from dse.canonical import digest
from dse.contracts.tool import ToolContract
from dse.errors import (
    BudgetExhausted,
    InfrastructureError,
    LimitExceeded,
    ModelUnavailable,
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
    UserError,
)
from dse.runtime.admission import Admission
from dse.runtime.dispatcher import CallResult, Dispatcher, gather_calls
from dse.runtime.execution import ToolCall
from dse.testing.scripted import ScriptedModel, call

PATIENCE_S = 30  # only how long a hanging test may hang


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), PATIENCE_S))

    return run


def signature(*tools: Any) -> type[dse.Signature]:
    return type("Ask", (dse.Signature,), {
        "__doc__": "Answer.", "__annotations__": {"question": str, "answer": str}, "tools": list(tools),
        "question": dse.InputField(), "answer": dse.OutputField()})  # fmt: skip


def make(*tools: Any, allow: Any = None, limits: dict[str, Any] | None = None, rules: dict[str, Any] | None = None,
         toolbox: dse.Toolbox | None = None, **options: Any) -> Dispatcher:  # fmt: skip
    """A dispatcher of a fresh run that may call `tools`."""
    names = [tool.name for tool in tools]
    plan = dse.Plan(mode="tool_call", prompts={"act": dse.Prompt(instructions="Answer.")},
                    allow=tuple(names if allow is None else allow), limits=dse.Limits(**(limits or {})))  # fmt: skip
    box = toolbox or dse.Toolbox(tools, rules=rules)
    program = dse.Program(signature(*tools), plan, lm=ScriptedModel([]), toolbox=box)
    run = program.new_run({"question": "?"})
    run.dispatcher = Dispatcher(run, box, **options)
    return run.dispatcher


async def fault_of(awaitable: Awaitable[Any]) -> ToolFault:
    with pytest.raises(ToolFault) as info:
        await awaitable
    return info.value


def kinds(dispatcher: Dispatcher) -> list[str]:
    return [entry["kind"] for entry in dispatcher.run.journal.entries]


class Clock:
    """Time that only passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@dse.tool(effect="read")
def add(a: int, b: int = 10) -> int:
    """Add."""
    return a + b


@dse.tool(effect="read")
async def shout(text: str) -> str:
    """Shout."""
    return text.upper()


# --- the order of checks ------------------------------------------------------------------------------


@dse.tool(effect="write", max_calls=1, rate=(1, 1000.0), timeout_s=1, approval="always", concurrency="exclusive")
def once(number: int) -> int:
    """Everything at once."""
    return number


@in_loop
async def test_allow_list_comes_before_arguments() -> None:
    dispatcher = make(add, shout, allow=["add"])
    fault = await fault_of(dispatcher.call("shout", (), {"nonsense": object()}))
    assert type(fault) is ToolNotAllowed


@in_loop
async def test_arguments_come_before_budgets() -> None:
    dispatcher = make(once, approve=lambda request: True)
    await dispatcher.call("once", (1,))
    assert type(await fault_of(dispatcher.call("once", ("x",)))) is ToolArgumentError
    assert type(await fault_of(dispatcher.call("once", (2,)))) is ToolLimitReached


@in_loop
async def test_budgets_come_before_the_rate() -> None:
    clock, asked = Clock(), []
    dispatcher = make(once, approve=lambda request: True, clock=clock, sleep=clock.sleep)
    real = dispatcher.toolbox.reserve_slot
    dispatcher.toolbox.reserve_slot = lambda *args: asked.append(args) or real(*args)  # type: ignore[method-assign]
    await dispatcher.call("once", (1,))
    assert type(await fault_of(dispatcher.call("once", (2,)))) is ToolLimitReached
    assert len(asked) == 1


@in_loop
async def test_the_rate_comes_before_approval() -> None:
    asked = []

    @dse.tool(effect="read", rate=(1, 1000.0), timeout_s=1, approval="always")
    def rated() -> int:
        return 1

    dispatcher = make(rated, approve=lambda request: asked.append(request.call_id) or True)
    await dispatcher.call("rated")
    assert type(await fault_of(dispatcher.call("rated"))) is ToolRateLimited
    assert asked == [1]


@in_loop
async def test_approval_comes_before_concurrency_and_its_denial_does_not_wait() -> None:
    gate = asyncio.Event()

    @dse.tool(effect="read", concurrency="exclusive")
    async def alone() -> int:
        await gate.wait()
        return 1

    @dse.tool(effect="read", approval="always")
    def asked() -> int:
        return 2

    dispatcher = make(alone, asked, approve=lambda request: False)
    first = asyncio.create_task(dispatcher.call("alone"))
    assert type(await fault_of(dispatcher.call("asked"))) is ToolDenied  # although `alone` still runs
    assert not first.done()
    gate.set()
    assert (await first).value == 1


@in_loop
async def test_concurrency_comes_before_the_journal_and_the_journal_before_execution() -> None:
    gate, begun, seen = asyncio.Event(), asyncio.Event(), []

    @dse.tool(effect="write")
    async def put(number: int) -> int:
        seen.append([e["call_id"] for e in dispatcher.run.journal.entries if e["kind"] == "tool_intent"])
        begun.set()
        await gate.wait()
        return number

    dispatcher = make(put)
    calls = asyncio.gather(dispatcher.call("put", (1,)), dispatcher.call("put", (2,)))
    await begun.wait()
    assert seen == [[1]]  # its own intent is written before it runs, the waiting call has none yet
    gate.set()
    await calls
    assert seen == [[1], [1, 2]]


@in_loop
async def test_return_validation_comes_before_the_bound() -> None:
    @dse.tool(effect="read", max_output_bytes=4)
    def wrong() -> int:
        return "far too long and no number"  # type: ignore[return-value]

    assert type(await fault_of(make(wrong).call("wrong"))) is ToolReturnError


@in_loop
async def test_one_call_leaves_its_steps_in_order() -> None:
    steps: list[str] = []

    @dse.tool(effect="write", approval="always", rate=(5, 1.0))
    def act() -> int:
        steps.append("execute")
        return 1

    class Box(dse.Toolbox):
        def reserve_slot(self, *args: Any) -> Any:
            steps.append("rate")
            return super().reserve_slot(*args)

    async def layer(tool_call: ToolCall, step: Any) -> Any:
        steps.append("middleware")
        result = await step(tool_call)
        steps.append("after")
        return result

    dispatcher = make(act, toolbox=Box([act]), approve=lambda request: steps.append("approve") or True, middleware=[layer])
    dispatcher.run.journal.subscribers.append(lambda entry: steps.append(entry["kind"]))
    await dispatcher.call("act")
    assert steps == ["rate", "approve", "approval", "tool_intent", "middleware", "execute", "after", "tool_outcome"]


# --- allow-list and arguments -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nope", "", "add ", "__class__", "eval", "submit", "shout", "x" * 100_000])
@in_loop
async def test_unknown_and_unlisted_names_fail_closed(name: str) -> None:
    dispatcher = make(add, shout, allow=["add"])
    fault = await fault_of(dispatcher.call(name, (), {"text": "x"}))
    assert type(fault) is ToolNotAllowed
    assert "add" in fault.message and "shout" not in fault.message.removeprefix(f"name '{name[:100]}")
    assert dispatcher.run.receipts[0]["outcome"] == "refused"
    assert len(f"{fault.message}{dispatcher.run.journal.entries}") < 1_000


@in_loop
async def test_a_tool_without_implementation_is_nobodys_failure() -> None:
    @dse.tool(effect="read")
    def declared(a: int) -> int:
        """Only declared."""
        ...

    box = dse.Toolbox([declared]).bind("declared", lambda_add)
    dispatcher = make(declared, toolbox=box)
    dispatcher.toolbox = dse.Toolbox([declared])
    with pytest.raises(InfrastructureError, match="no implementation"):
        await dispatcher.call("declared", (1,))
    assert dispatcher.run.receipts[0]["outcome"] == "refused"


def lambda_add(a: int) -> int:
    return a


@in_loop
async def test_arguments_by_position_by_name_and_by_default() -> None:
    dispatcher = make(add)
    assert (await dispatcher.call("add", (1,))).value == 11
    assert (await dispatcher.call("add", (1,), {"b": 2})).value == 3
    assert (await dispatcher.call("add", (), {"b": 2, "a": "5"})).value == 7
    assert [receipt["arguments"] for receipt in dispatcher.run.receipts] == [
        {"a": 1, "b": 10},
        {"a": 1, "b": 2},
        {"a": 5, "b": 2},
    ]


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((1, 2, 3), {}, "takes 2 arguments but 3"),
        ((1,), {"a": 2}, "two values for 'a'"),
        ((), {}, "a: Field required"),
        (("x",), {}, "valid integer"),
        ((), {"a": 1, "c": 2}, "c: Extra inputs"),
        ((float("nan"),), {}, "cannot hold"),
        ((object(),), {}, "not data"),
    ],
)
@in_loop
async def test_bad_arguments_are_refused_and_never_run(args: Any, kwargs: Any, text: str) -> None:
    dispatcher = make(add)
    fault = await fault_of(dispatcher.call("add", args, kwargs))
    assert type(fault) is ToolArgumentError and text in fault.message
    assert kinds(dispatcher) == ["tool_refused"]


@in_loop
async def test_arguments_that_could_not_be_read_are_a_call_like_any_other() -> None:
    dispatcher = make(add, shout, allow=["add"])
    assert type(await fault_of(dispatcher.call("add", malformed=True))) is ToolArgumentError
    assert type(await fault_of(dispatcher.call("shout", malformed=True))) is ToolNotAllowed
    assert [receipt["fault"] for receipt in dispatcher.run.receipts] == ["DSE202", "DSE201"]
    assert dispatcher.run.meter.tool_calls == 2

    @dse.tool(effect="write")
    def wipe(folder: str = "all") -> str:
        return folder

    dispatcher = make(wipe)
    assert type(await fault_of(dispatcher.call("wipe", malformed=True))) is ToolArgumentError
    assert dispatcher.run.effects.summary() == "none"  # defaults are not what the model meant


@in_loop
async def test_text_that_is_no_text_is_refused() -> None:
    assert type(await fault_of(make(shout).call("shout", ("\ud800",)))) is ToolArgumentError


class Picky:
    """A type whose validation crashes instead of complaining."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls.check, core_schema.str_schema())

    @staticmethod
    def check(value: str) -> str:
        return {"good": value}[value]


@in_loop
async def test_a_validator_that_crashes_refuses_the_call() -> None:
    @dse.tool(effect="read")
    def picky(value: Picky) -> str:
        return str(value)

    dispatcher = make(picky)
    assert (await dispatcher.call("picky", ("good",))).value == "good"
    fault = await fault_of(dispatcher.call("picky", ("bad",)))
    assert type(fault) is ToolArgumentError and "KeyError" in fault.message


def data_contract(**changes: Any) -> ToolContract:
    parameters = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    fields = {"name": "double", "description": "Double.", "effect": "read", "returns": {"type": "integer"}}
    return ToolContract.model_validate(fields | {"parameters": parameters} | changes)


@pytest.mark.parametrize("is_async", [False, True])
@in_loop
async def test_a_contract_that_exists_only_as_data(is_async: bool) -> None:
    threads = []

    def double(n: int) -> int:
        threads.append(threading.current_thread())
        return 2 * n

    async def adouble(n: int) -> int:
        return 2 * n

    box = dse.Toolbox().bind_contract(data_contract(), adouble if is_async else double)
    dispatcher = make(*box, toolbox=box)
    assert (await dispatcher.call("double", (21,))).value == 42
    assert type(await fault_of(dispatcher.call("double", ("x",)))) is ToolArgumentError
    assert type(await fault_of(dispatcher.call("double", (1,), {"m": 1}))) is ToolArgumentError
    assert is_async or threads[0] is not threading.current_thread()  # a sync function must not block the loop


@in_loop
async def test_a_data_contract_without_parameters_takes_none() -> None:
    for nothing in ({"type": "object", "properties": {}, "additionalProperties": False}, {"type": "object"}):
        box = dse.Toolbox().bind_contract(data_contract(parameters=nothing), lambda: 1)
        dispatcher = make(*box, toolbox=box)
        assert (await dispatcher.call("double")).value == 1
        assert type(await fault_of(dispatcher.call("double", (), {"n": 1}))) is ToolArgumentError


# --- every policy field -------------------------------------------------------------------------------

COVERED: set[str] = set()


def covers(*fields: str) -> Callable[[Any], Any]:
    COVERED.update(fields)
    return lambda test: test


@covers("effect")
@pytest.mark.parametrize(("effect", "summary"), [("pure", "none"), ("read", "none"), ("write", "completed [act#1]")])
@in_loop
async def test_effect(effect: Any, summary: str) -> None:
    @dse.tool(effect=effect)
    def act() -> int:
        return 1

    dispatcher = make(act)
    await dispatcher.call("act")
    assert dispatcher.run.effects.summary() == summary


@covers("idempotent")
@pytest.mark.parametrize("idempotent", [False, True])
@in_loop
async def test_idempotent(idempotent: bool) -> None:
    @dse.tool(effect="write", idempotent=idempotent)
    def act() -> int:
        return 1

    dispatcher = make(act)
    assert dispatcher.run.effects.repeatable
    await dispatcher.call("act")
    assert dispatcher.run.effects.repeatable is idempotent


@covers("timeout_s")
@in_loop
async def test_timeout_of_an_async_tool() -> None:
    cancelled = []

    @dse.tool(effect="read", timeout_s=0.02)
    async def slow() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return 1

    dispatcher = make(slow)
    fault = await fault_of(dispatcher.call("slow"))
    assert type(fault) is ToolTimeout and fault.message == "slow did not finish within 0.02 s"
    assert cancelled == [True]


@covers("timeout_s")
@in_loop
async def test_timeout_of_a_sync_tool_does_not_wait_for_its_thread() -> None:
    release = threading.Event()

    @dse.tool(effect="read", timeout_s=0.02)
    def slow() -> int:
        release.wait(PATIENCE_S)
        return 1

    try:
        assert type(await fault_of(make(slow).call("slow"))) is ToolTimeout
    finally:
        release.set()


@in_loop
async def test_a_timeout_inside_the_implementation_is_its_failure_not_ours() -> None:
    @dse.tool(effect="read", timeout_s=60)
    async def fetch() -> int:
        raise TimeoutError("upstream")

    fault = await fault_of(make(fetch).call("fetch"))
    assert type(fault) is ToolFailed and "TimeoutError: upstream" in fault.message


@covers("max_calls")
@in_loop
async def test_max_calls() -> None:
    @dse.tool(effect="read", max_calls=2)
    def act() -> int:
        return 1

    dispatcher = make(act)
    await dispatcher.call("act")
    await dispatcher.call("act")
    fault = await fault_of(dispatcher.call("act"))
    assert type(fault) is ToolLimitReached and "2 times" in fault.message
    assert kinds(dispatcher).count("tool_intent") == 2


@covers("max_calls")
@pytest.mark.parametrize(("of_contract", "of_limits"), [(1, 3), (3, 1)])
@in_loop
async def test_the_lower_of_contract_and_limits_holds(of_contract: int, of_limits: int) -> None:
    @dse.tool(effect="read", max_calls=of_contract)
    def act() -> int:
        return 1

    dispatcher = make(act, limits={"calls_per_tool": {"act": of_limits}})
    await dispatcher.call("act")
    assert type(await fault_of(dispatcher.call("act"))) is ToolLimitReached


@covers("rate")
@in_loop
async def test_rate_waits_for_the_window_and_refuses_what_would_wait_too_long() -> None:
    clock = Clock()
    started = []

    @dse.tool(effect="read", rate=(2, 10.0), timeout_s=15)
    def act() -> int:
        started.append(clock.now)
        return 1

    dispatcher = make(act, clock=clock, sleep=clock.sleep)
    for _ in range(6):
        await dispatcher.call("act")
    assert started == [1000, 1000, 1010, 1010, 1020, 1020]
    assert clock.slept == [10, 10]
    for _ in range(2):
        dispatcher.toolbox.reserve_slot("act", act.contract.rate, clock.now, 15)
    assert type(await fault_of(dispatcher.call("act"))) is ToolRateLimited
    assert len(started) == 6


@covers("rate")
@in_loop
async def test_rate_holds_over_all_runs_of_a_toolbox_and_its_copies() -> None:
    @dse.tool(effect="read", rate=(1, 1000.0), timeout_s=1)
    def act() -> int:
        return 1

    box = dse.Toolbox([act])
    await make(act, toolbox=box).call("act")
    assert type(await fault_of(make(act, toolbox=box).call("act"))) is ToolRateLimited
    assert type(await fault_of(make(act, toolbox=box.merged({})).call("act"))) is ToolRateLimited


@covers("rate")
@in_loop
async def test_a_slot_that_passed_while_the_call_waited_for_a_decision_is_taken_anew() -> None:
    clock = Clock()
    started = []

    @dse.tool(effect="read", rate=(1, 10.0), timeout_s=100, approval="always")
    async def act() -> int:
        started.append(clock.now)
        return 1

    gates = {1: asyncio.Event(), 2: asyncio.Event()}

    async def approve(request: Any) -> bool:
        await gates[request.call_id].wait()
        return True

    dispatcher = make(act, clock=clock, sleep=clock.sleep, approve=approve)
    calls = asyncio.gather(dispatcher.call("act"), dispatcher.call("act"))
    for _ in range(20):
        await asyncio.sleep(0)
    clock.now = 2000.0  # a long time later both decisions come at once
    for gate in gates.values():
        gate.set()
    await calls
    assert started[1] - started[0] >= 10


def rated(calls: int, per_s: float, timeout_s: float) -> Any:
    @dse.tool(effect="read", rate=(calls, per_s), timeout_s=timeout_s)
    def act() -> int:
        return 1

    return act


def evaluated(act: Any, box: dse.Toolbox, clock: Clock) -> Dispatcher:
    """The dispatcher of a rollout."""
    dispatcher = make(act, toolbox=box, clock=clock, sleep=clock.sleep)
    dispatcher.run.evaluation = True
    return dispatcher


@covers("rate")
@in_loop
async def test_in_an_evaluation_a_call_is_refused_for_the_calls_of_its_own_run_only() -> None:
    clock, act = Clock(), rated(2, 1000.0, 5)
    box = dse.Toolbox([act])
    for number in range(3):
        dispatcher = evaluated(act, box, clock)
        for _ in range(2):
            await dispatcher.call("act")
        clock.now += [0.0, 5000.0, 0.0][number]  # however long it takes
        assert type(await fault_of(dispatcher.call("act"))) is ToolRateLimited
    assert clock.slept == [1000.0], "the second run waited for the first one's calls, the third for nobody's"


@covers("rate")
@in_loop
async def test_in_an_evaluation_the_shared_window_is_waited_for_however_long_that_is() -> None:
    clock, act = Clock(), rated(1, 1000.0, 5)
    box, started = dse.Toolbox([act]), []
    for _ in range(4):
        dispatcher = evaluated(act, box, clock)
        with dispatcher.run.active():
            await dispatcher.call("act")
            assert dispatcher.run.active_s() < 100, "as nobody's active time"
        started.append(clock.now)
    assert started == [1000, 2000, 3000, 4000]
    production = make(act, toolbox=box, clock=clock, sleep=clock.sleep)
    assert type(await fault_of(production.call("act"))) is ToolRateLimited, "it is one window"


@covers("rate")
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("others", [0, 50])
@pytest.mark.parametrize("pause", [0.0, 7.0, 500.0])
@in_loop
async def test_in_an_evaluation_no_clock_decides_which_calls_are_refused(together: bool, others: int, pause: float) -> None:
    """A run that waits for its slots gets them; calls made together are refused where the last would wait too long."""
    clock, act = Clock(), rated(1, 10.0, 25)
    box = dse.Toolbox([act])
    for _ in range(others):
        box.reserve_slot("act", act.contract.rate, clock.now, float("inf"))
    dispatcher = evaluated(act, box, clock)
    await dispatcher.call("act")
    clock.now += pause
    if together:
        got = await asyncio.gather(*(dispatcher.call("act") for _ in range(5)), return_exceptions=True)
        assert [isinstance(one, ToolRateLimited) for one in got] == [False, False, True, True, True]
    else:
        for _ in range(5):
            await dispatcher.call("act")
            clock.now += pause


@covers("rate")
@in_loop
async def test_a_tool_of_an_evaluation_world_does_not_wait_for_the_shared_window() -> None:
    clock, act = Clock(), rated(1, 1000.0, 5)
    box = dse.Toolbox([act])
    box.reserve_slot("act", act.contract.rate, clock.now, float("inf"))

    def instead() -> int:
        return 2

    dispatcher = evaluated(act, box.in_world({"act": instead}, ["act"]), clock)
    assert (await dispatcher.call("act")).value == 2 and clock.slept == []
    assert type(await fault_of(dispatcher.call("act"))) is ToolRateLimited, "its own calls count"


@given(st.lists(st.floats(0, 30), min_size=1, max_size=40), st.integers(1, 4), st.floats(0.5, 20))
@settings(max_examples=60, deadline=None)
def test_reserved_slots_never_exceed_the_rate(gaps: list[float], calls: int, per_s: float) -> None:
    box, rate, now, starts = dse.Toolbox([]), dse.Rate(calls=calls, per_s=per_s), 0.0, []
    for gap in gaps:
        now += gap
        wait = box.reserve_slot("t", rate, now, float("inf"))
        assert wait is not None and wait >= 0
        starts.append(now + wait)
    for index in range(len(starts) - calls):
        assert starts[index + calls] - starts[index] >= per_s - 1e-6


@covers("cost_usd")
@in_loop
async def test_cost_is_charged_for_what_ran_and_only_for_that() -> None:
    @dse.tool(effect="read", cost_usd=0.25, approval=dse.Approval(when={"n": {"gt": 5}}))
    def act(n: int) -> int:
        return n

    dispatcher = make(act, limits={"cost_usd": 0.6}, approve=lambda request: False)
    await dispatcher.call("act", (1,))
    assert type(await fault_of(dispatcher.call("act", (9,)))) is ToolDenied
    assert dispatcher.run.meter.tool_cost_usd == pytest.approx(0.25)
    await dispatcher.call("act", (1,))
    with pytest.raises(LimitExceeded) as info:
        await dispatcher.call("act", (1,))
    assert info.value.details["limit"] == "cost_usd"
    assert dispatcher.run.meter.tool_cost_usd == pytest.approx(0.5)


@covers("approval")
@in_loop
async def test_approval_always() -> None:
    @dse.tool(effect="write", approval="always")
    def act(n: int) -> int:
        return n

    requests = []
    dispatcher = make(act, approve=lambda request: requests.append(request) or (request.call_id == 1, "too late"))
    assert (await dispatcher.call("act", (1,))).value == 1
    fault = await fault_of(dispatcher.call("act", (2,)))
    assert type(fault) is ToolDenied and "too late" in fault.message
    assert dispatcher.run.effects.summary() == "completed [act#1]"
    first = requests[0]
    assert (first.tool, first.call_id, first.effect, first.run_id) == ("act", 1, "write", dispatcher.run.run_id)
    assert first.arguments == {"n": 1} and first.arguments_hash == digest({"n": 1})
    decisions = [
        (e["call_id"], e["granted"], e["reason"]) for e in dispatcher.run.journal.entries if e["kind"] == "approval"
    ]
    assert decisions == [(1, True, "too late"), (2, False, "too late")]


@covers("concurrency")
@in_loop
async def test_parallel_calls_overlap() -> None:
    barrier = asyncio.Barrier(8)

    @dse.tool(effect="read")
    async def meet() -> int:
        await barrier.wait()
        return 1

    dispatcher = make(meet)
    await asyncio.gather(*(dispatcher.call("meet") for _ in range(8)))


@covers("concurrency")
@given(st.permutations(range(6)), st.lists(st.integers(0, 4), min_size=6, max_size=6))
@settings(max_examples=25, deadline=None)
def test_ordered_calls_run_one_at_a_time_in_call_order_whatever_they_take(order: list[int], yields: list[int]) -> None:
    log: list[tuple[str, int]] = []

    @dse.tool(effect="write")
    async def put(n: int) -> int:
        log.append(("start", n))
        for _ in range(yields[n]):
            await asyncio.sleep(0)
        log.append(("end", n))
        return n

    async def main() -> None:
        dispatcher = make(put)
        await asyncio.gather(*(dispatcher.call("put", (n,)) for n in order))

    asyncio.run(main())
    assert log == [(what, n) for n in order for what in ("start", "end")]


@covers("concurrency")
@pytest.mark.parametrize("kind", ["exclusive", "ordered"])
@in_loop
async def test_a_call_waits_for_the_thread_of_one_that_timed_out(kind: Any) -> None:
    log, go_on = [], threading.Event()

    @dse.tool(effect="write", timeout_s=0.05, concurrency=kind)
    def slow(n: int) -> int:
        """Write slowly."""
        log.append(f"begins {n}")
        if n == 1:
            assert go_on.wait(PATIENCE_S)
        log.append(f"ends {n}")
        return n

    model = ScriptedModel([call(("slow", {"n": 1}), ("slow", {"n": 2})), call(("submit", {"answer": "yes"}))])
    program = dse.Program(signature(slow), "tool_call", lm=model)
    run = program.new_run({"question": "?"})
    timed_out = asyncio.Event()
    run.journal.subscribers.append(lambda entry: timed_out.set() if entry["kind"] == "tool_outcome" else None)
    running = asyncio.ensure_future(program.execute(run))
    await timed_out.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert log == ["begins 1"], "its place is kept"
    go_on.set()
    receipt = (await running).receipt
    assert log == ["begins 1", "ends 1", "begins 2", "ends 2"]
    assert [one["outcome"] for one in receipt["calls"]] == ["fault", "ok"]


@in_loop
async def test_a_thread_that_never_ends_ends_with_the_run_not_the_process() -> None:
    go_on = threading.Event()

    @dse.tool(effect="write", timeout_s=0.05, concurrency="exclusive")
    def stuck() -> int:
        """Never come back."""
        go_on.wait(PATIENCE_S)
        return 1

    model = ScriptedModel([call(("stuck", {}), ("stuck", {})), call(("submit", {"answer": "yes"}))])
    program = dse.Program(signature(stuck), "tool_call", lm=model).narrowed(limits={"active_s": 0.3})
    with pytest.raises(LimitExceeded) as caught:
        await program.acall(question="?")
    go_on.set()
    assert caught.value.details["limit"] == "active_s" and caught.value.details["effects"] == "unknown [stuck#1]"


@in_loop
async def test_an_exclusive_call_runs_alone_and_is_not_starved() -> None:
    running: set[str] = set()
    overlaps: list[set[str]] = []
    order: list[str] = []
    gate, both = asyncio.Event(), asyncio.Event()

    async def body(name: str) -> None:
        running.add(name)
        order.append(name)
        overlaps.append(set(running))
        if len(running) == 2:
            both.set()
        await gate.wait()
        await asyncio.sleep(0)
        running.discard(name)

    @dse.tool(effect="read")
    async def common(n: int) -> int:
        await body(f"common{n}")
        return n

    @dse.tool(effect="read", concurrency="exclusive")
    async def alone() -> int:
        await body("alone")
        return 0

    dispatcher = make(common, alone)
    before = [asyncio.create_task(dispatcher.call("common", (n,))) for n in range(2)]
    middle = asyncio.create_task(dispatcher.call("alone"))
    after = [asyncio.create_task(dispatcher.call("common", (n,))) for n in range(2, 5)]
    await both.wait()
    gate.set()
    await asyncio.gather(*before, middle, *after)
    assert order[:2] == ["common0", "common1"] and order[2] == "alone"  # later calls did not pass it
    assert overlaps[2] == {"alone"}


@covers("max_output_bytes")
@in_loop
async def test_max_output_bytes() -> None:
    @dse.tool(effect="read", max_output_bytes=7)
    def text(n: int) -> str:
        return "ü" * n

    dispatcher = make(text)
    assert (await dispatcher.call("text", (2,))).value == "üü"  # 6 bytes with its quotes
    fault = await fault_of(dispatcher.call("text", (3,)))
    assert type(fault) is ToolOutputTooLarge and "8 bytes; 7" in fault.message


@covers("sensitive")
@in_loop
async def test_short_sensitive_arguments_are_hidden_by_name() -> None:
    @dse.tool(effect="read", sensitive=("pin",))
    def check(pin: str, other: dict[str, list[dict[str, int]]]) -> int:
        return 1

    dispatcher = make(check)
    await dispatcher.call("check", ("12", {"a": [{"pin": 3, "b": 4}]}))
    assert dispatcher.run.receipts[0]["arguments"] == {"pin": "[redacted]", "other": {"a": [{"pin": "[redacted]", "b": 4}]}}


@covers("sensitive")
@in_loop
async def test_a_result_that_breaks_its_contract_is_not_quoted_where_it_is_sensitive() -> None:
    class Wallet(BaseModel):
        balance: int

        @field_validator("balance")
        @classmethod
        def _positive(cls, value: int) -> int:
            if value < 0:
                raise ValueError(f"{value} is negative")
            return value

    def wallet(raw: str) -> Any:
        return {"balance": "much: 98765"} if raw == "text" else {"balance": -98765}

    wallet.__annotations__["return"] = Wallet
    for sensitive, quoted in ((("balance",), False), ((), True)):
        dispatcher = make(dse.tool(wallet, effect="read", sensitive=sensitive))
        for raw in ("text", "number"):
            fault = await fault_of(dispatcher.call("wallet", (raw,)))
            assert type(fault) is ToolReturnError and "balance: " in fault.message
            assert ("98765" in fault.message) is quoted
        assert ("98765" in repr((dispatcher.run.receipts, dispatcher.run.journal.entries))) is quoted


class Account(BaseModel):
    balance: int
    text: str


@covers("sensitive")
@in_loop
async def test_sensitive_values_are_in_no_receipt_journal_message_or_stream() -> None:
    @dse.tool(effect="write", sensitive=("ssn", "balance"), approval="always")
    def account(ssn: str, note: str) -> Account:
        return Account(balance=98765, text=f"of {ssn}")

    @dse.tool(effect="read", sensitive=("ssn",))
    def broken(ssn: str) -> int:
        raise ValueError(f"no such person: {ssn}")

    @dse.tool(effect="read", sensitive=("ssn",))
    def number(ssn: int) -> int:
        return ssn

    dispatcher = make(account, broken, number, approve=lambda request: True)
    run = dispatcher.run
    shown: list[Any] = []
    run.journal.subscribers.append(lambda entry: shown.append(run.secrets.entry(entry)))
    result = await dispatcher.call("account", ("123-45-6789", "about 123-45-6789"))
    assert result.value == {"balance": 98765, "text": "of 123-45-6789"}  # the program still gets it all
    await fault_of(dispatcher.call("broken", ("123-45-6789",)))
    await fault_of(dispatcher.call("number", ("77-88-99",)))
    run.journal.add("model_call", text="I looked up 123-45-6789 with 98765", tool_calls=[
        {"id": "1", "name": "account", "arguments": {"ssn": "123-45-6789"}, "raw": None},
        {"id": "2", "name": "account", "arguments": None, "raw": '{"ssn": "555-66'}])  # fmt: skip
    run.journal.add("round", calls=[{"name": "account", "arguments": {"ssn": "x"}, "result": result.value}])
    run.journal.add("run_finished", outputs={"copied": 98765})
    for text in (repr(run.secrets.scrub(run.receipts)), repr(shown)):
        for secret in ("123-45-6789", "98765", "77-88-99", "555-66"):
            assert secret not in text
    assert "about [redacted]" in repr(shown)
    assert [entry["kind"] for entry in shown] == kinds(dispatcher)  # structure stays


@covers("sensitive")
@in_loop
async def test_a_whole_result_can_be_sensitive() -> None:
    @dse.tool(effect="read", sensitive=("return",))
    def secret() -> list[int]:
        return [1, 2, 3]

    dispatcher = make(secret)
    run = dispatcher.run
    assert (await dispatcher.call("secret")).value == [1, 2, 3]
    run.journal.add("round", calls=[{"name": "secret", "arguments": {}, "result": [1, 2, 3]}])
    assert run.secrets.entry(run.journal.entries[1])["result"] == "[redacted]"
    assert "[1, 2, 3]" not in repr([run.secrets.entry(entry) for entry in run.journal.entries])


@covers("sensitive")
@in_loop
async def test_a_field_called_like_part_of_an_entry_hides_no_structure() -> None:
    @dse.tool(effect="read", sensitive=("kind", "tool"))
    def odd(kind: str, tool: str) -> int:
        return 1

    dispatcher = make(odd)
    await dispatcher.call("odd", ("tool_intent", "hidden"))
    shown = [dispatcher.run.secrets.entry(entry) for entry in dispatcher.run.journal.entries]
    assert [(entry["kind"], entry["tool"]) for entry in shown] == [("tool_intent", "odd"), ("tool_outcome", "odd")]
    assert shown[0]["arguments"] == {"kind": "[redacted]", "tool": "[redacted]"}


def test_every_policy_field_has_a_test() -> None:
    assert set(ToolContract.model_fields) - COVERED == {"name", "description", "parameters", "returns"}


# --- approval in detail -------------------------------------------------------------------------------


def approved_when(conditions: dict[str, Any], annotation: Any, *values: Any) -> list[bool]:
    """For each value: does the call need a decision?"""

    def act(value: Any) -> int:
        return 1

    act.__annotations__ = {"value": annotation, "return": int}
    made = dse.tool(act, effect="write", approval=dse.Approval(when={"value": conditions}))

    async def main() -> list[bool]:
        asked = []
        for value in values:
            seen: list[Any] = []
            await make(made, approve=lambda request, seen=seen: seen.append(request) or True).call("act", (value,))
            asked.append(bool(seen))
        return asked

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("operator", "expected", "asked"),
    [
        ("eq", 5, [False, True, False]), ("ne", 5, [True, False, True]), ("gt", 5, [False, False, True]),
        ("ge", 5, [False, True, True]), ("lt", 5, [True, False, False]), ("le", 5, [True, True, False]),
        ("in", [4, 5], [True, True, False]), ("not_in", [4, 5], [False, False, True]),
    ],
)  # fmt: skip
def test_approval_operators(operator: str, expected: Any, asked: list[bool]) -> None:
    assert approved_when({operator: expected}, int, 4, 5, 6) == asked


def test_every_approval_operator_has_a_meaning() -> None:
    from dse.contracts.conditions import OPERATORS

    inner = dse.Approval.model_fields["when"].annotation
    literal = get_args(get_args(get_args(inner)[0])[1])[0]
    assert set(get_args(literal)) == set(OPERATORS)


def test_all_conditions_must_hold() -> None:
    assert approved_when({"gt": 1, "lt": 5}, int, 1, 3, 5) == [False, True, False]


@pytest.mark.parametrize("limit", ["100", 100])
def test_decimals_are_compared_as_numbers(limit: Any) -> None:
    # As text, "9.5" is more than "100" and "1000" less than "200".
    assert approved_when({"gt": limit}, Decimal, "9.5", "1000", "100.01") == [False, True, True]


def test_dates_are_compared_as_dates() -> None:
    assert approved_when({"ge": "2026-02-01"}, dt.date, "2026-01-31", "2026-02-01") == [False, True]
    assert approved_when({"gt": "2026-01-01T12:00:00+00:00"}, dt.datetime, "2026-01-01T13:30:00+02:00",
                         "2026-01-01T13:30:00+01:00") == [False, True]  # fmt: skip


def test_values_that_cannot_be_compared_need_a_decision() -> None:
    assert approved_when({"gt": 5}, int | None, None, 1) == [True, False]


@pytest.mark.parametrize(
    ("rules", "asked"),
    [
        ({"big@1": lambda arguments: arguments["n"] > 5}, [False, True]),
        ({}, [True, True]),  # unknown: fails closed
        ({"big@2": lambda arguments: False}, [True, True]),  # another version is another rule
        ({"big@1": lambda arguments: 1 / 0}, [True, True]),
        ({"big@1": lambda arguments: None}, [True, True]),
    ],
)
@in_loop
async def test_approval_rules(rules: Any, asked: list[bool]) -> None:
    @dse.tool(effect="write", approval=dse.Approval(rule="big", version="1"))
    def act(n: int) -> int:
        return n

    found = []
    for n in (1, 9):
        seen: list[Any] = []
        await make(act, rules=rules, approve=lambda request, seen=seen: seen.append(1) or True).call("act", (n,))
        found.append(bool(seen))
    assert found == asked


@dse.tool(effect="write", approval="always", sensitive=("pin",))
def pay(amount: int, pin: str) -> str:
    """Pay."""
    return f"paid {amount}"


@pytest.mark.parametrize("answer", [None, 0, 1, "yes", "no", [True], object(), (False, "no"), ("yes", "ok"), (1, "x"),
                                    (True,), (True, "a", "b"), ()])  # fmt: skip
@in_loop
async def test_only_true_is_a_yes(answer: Any) -> None:
    dispatcher = make(pay, approve=lambda request: answer)
    assert type(await fault_of(dispatcher.call("pay", (5, "1234")))) is ToolDenied
    assert dispatcher.run.effects.summary() == "none"


@in_loop
async def test_approvers_may_be_async_or_hand_out_an_awaitable() -> None:
    async def ask(request: Any) -> tuple[bool, str]:
        return True, "fine"

    class Desk:
        async def __call__(self, request: Any) -> bool:
            return True

    for approve in (ask, lambda request: ask(request), Desk()):
        assert (await make(pay, approve=approve).call("pay", (5, "1234"))).value == "paid 5"


@in_loop
async def test_a_person_who_thinks_does_not_stop_the_others() -> None:
    loop = asyncio.get_running_loop()
    asked, answered = asyncio.Event(), threading.Event()

    def approve(request: Any) -> bool:
        loop.call_soon_threadsafe(asked.set)
        return answered.wait(PATIENCE_S)

    dispatcher = make(pay, add, approve=approve)
    waiting = asyncio.create_task(dispatcher.call("pay", (5, "1234")))
    await asked.wait()
    assert (await dispatcher.call("add", (1,))).value == 11
    answered.set()
    assert (await waiting).value == "paid 5"


@pytest.mark.parametrize(
    "error", [ConnectionError("chat is down"), SystemExit("chat is down"), asyncio.CancelledError("chat is down")]
)
@pytest.mark.parametrize("is_async", [False, True])
@in_loop
async def test_an_approver_that_fails_runs_nothing_and_is_nobodys_failure(error: BaseException, is_async: bool) -> None:
    def approve(request: Any) -> bool:
        raise error

    async def aapprove(request: Any) -> bool:
        raise error

    dispatcher = make(pay, approve=aapprove if is_async else approve)
    with pytest.raises(InfrastructureError, match="chat is down"):
        await dispatcher.call("pay", (5, "1234"))
    assert dispatcher.run.effects.summary() == "none"
    assert dispatcher.run.receipts[0]["outcome"] == "refused"


@in_loop
async def test_what_an_approver_does_to_the_arguments_changes_nothing() -> None:
    def approve(request: Any) -> bool:
        request.arguments["amount"] = 1_000_000
        return True

    dispatcher = make(pay, approve=approve)
    assert (await dispatcher.call("pay", (5, "1234"))).value == "paid 5"
    assert dispatcher.run.journal.entries[-2]["arguments"]["amount"] == 5


@in_loop
async def test_without_an_approver_the_run_is_suspended_with_everything_that_waits() -> None:
    dispatcher = make(pay, add)
    results = await gather_calls(
        [dispatcher.call("pay", (5, "1234")), dispatcher.call("add", (1,)), dispatcher.call("pay", (6, "5678"))]
    )
    assert isinstance(results[0], RunSuspended) and isinstance(results[2], RunSuspended)
    assert isinstance(results[1], CallResult)
    assert results[0].details["run_id"] == dispatcher.run.run_id
    assert results[0].details["pending"] == [
        {"tool": "pay", "call_id": 1, "effect": "write", "arguments": {"amount": 5, "pin": "[redacted]"},
         "arguments_hash": digest({"amount": 5, "pin": "1234"})},
        {"tool": "pay", "call_id": 3, "effect": "write", "arguments": {"amount": 6, "pin": "[redacted]"},
         "arguments_hash": digest({"amount": 6, "pin": "5678"})},
    ]  # fmt: skip
    assert dispatcher.run.effects.summary() == "none"


@in_loop
async def test_time_spent_waiting_for_a_decision_is_not_active_time() -> None:
    gate = asyncio.Event()

    async def approve(request: Any) -> bool:
        await gate.wait()
        return True

    dispatcher = make(pay, limits={"active_s": 0.05}, approve=approve)
    with dispatcher.run.active():
        waiting = asyncio.create_task(dispatcher.call("pay", (5, "1234")))
        loop = asyncio.get_running_loop()
        loop.call_later(0.2, gate.set)  # four times what the run may be active
        await waiting
    assert dispatcher.run.meter.waited_s >= 0.15
    assert dispatcher.run.meter.to_dict()["active_s"] < dispatcher.run.meter.waited_s
    with pytest.raises(LimitExceeded):
        with dispatcher.run.active():
            await asyncio.Event().wait()


# --- receipts -----------------------------------------------------------------------------------------


@in_loop
async def test_every_call_leaves_a_receipt_in_call_order() -> None:
    @dse.tool(effect="write", max_calls=1)
    def put(n: int) -> int:
        if n < 0:
            raise ValueError("negative")
        return n

    dispatcher = make(add, put, approve=None)
    asked = [("add", (1, 2)), ("nope", ()), ("add", ("x",)), ("put", (-1,)), ("put", (1,))]
    await gather_calls([dispatcher.call(name, args) for name, args in asked])
    receipts = dispatcher.run.receipts
    assert [r["call_id"] for r in receipts] == [1, 2, 3, 4, 5]
    assert [(r["tool"], r["effect"], r["outcome"], r.get("fault")) for r in receipts] == [
        ("add", "read", "ok", None), ("nope", None, "refused", "DSE201"), ("add", "read", "refused", "DSE202"),
        ("put", "write", "fault", "DSE209"), ("put", "write", "refused", "DSE203"),
    ]  # fmt: skip
    first = receipts[0]
    assert first["arguments_hash"] == digest({"a": 1, "b": 2}) and first["result_hash"] == digest(3)
    assert first["latency_s"] > 0 and first["idempotency_key"]
    assert all(r["result_hash"] is None for r in receipts[1:])
    assert dispatcher.run.meter.tool_calls == 5  # refused calls count as well


@in_loop
async def test_idempotency_keys_differ_by_call_and_by_run_and_reach_the_implementation() -> None:
    keys: list[str] = []

    @dse.tool(effect="write", idempotent=True)
    def put(ctx: dse.ToolContext[None], n: int) -> int:
        keys.append(ctx.idempotency_key)
        return ctx.call_id

    dispatcher = make(put)
    assert [(await dispatcher.call("put", (1,))).value for _ in range(2)] == [1, 2]
    await make(put).call("put", (1,))
    assert len(set(keys)) == 3
    assert keys[0] == dispatcher.run.receipts[0]["idempotency_key"]


@in_loop
async def test_refused_calls_count_and_so_a_loop_of_them_ends() -> None:
    dispatcher = make(add, limits={"tool_calls": 3})
    for _ in range(3):
        await fault_of(dispatcher.call("nope"))
    with pytest.raises(LimitExceeded):
        await dispatcher.call("nope")


# --- execution ----------------------------------------------------------------------------------------


@in_loop
async def test_sync_async_and_awaitable_implementations() -> None:
    async def later(text: str) -> str:
        return text + "!"

    @dse.tool(effect="read")
    def plain(text: str) -> str:
        return threading.current_thread().name

    @dse.tool(effect="read")
    def hands_out(text: str) -> str:
        return later(text)  # type: ignore[return-value]

    dispatcher = make(plain, shout, hands_out)
    assert (await dispatcher.call("plain", ("x",))).value != threading.current_thread().name
    assert (await dispatcher.call("shout", ("x",))).value == "X"
    assert (await dispatcher.call("hands_out", ("x",))).value == "x!"


@in_loop
async def test_two_hundred_sync_tools_in_flight() -> None:
    barrier = threading.Barrier(200)

    @dse.tool(effect="read", timeout_s=PATIENCE_S)
    def meet(n: int) -> int:
        barrier.wait(PATIENCE_S)  # nobody passes before all are in
        return n

    dispatcher = make(meet)
    results = await asyncio.gather(*(dispatcher.call("meet", (n,)) for n in range(200)))
    assert [result.value for result in results] == list(range(200))


@in_loop
async def test_the_context_is_injected_and_invisible() -> None:
    seen = []

    @dse.tool(effect="read", timeout_s=7)
    async def look(word: str, ctx: dse.ToolContext[dict[str, str]]) -> str:
        seen.append((ctx, asyncio.get_running_loop().time()))
        return ctx.deps[word]

    assert "ctx" not in look.contract.parameters["properties"]
    dispatcher = make(look, deps={"a": "b"})
    assert (await dispatcher.call("look", ("a",))).value == "b"
    context, now = seen[0]
    assert (context.run_id, context.call_id) == (dispatcher.run.run_id, 1)
    assert 6 < context.deadline - now <= 7
    fault = await fault_of(dispatcher.call("look", ("a",), {"ctx": {"deps": {}}}))
    assert type(fault) is ToolArgumentError  # a model cannot give one


@dse.tool(effect="read")
def whose(ctx: dse.ToolContext[str]) -> str:
    """Whose?"""
    return ctx.deps


def test_dependencies_of_program_run_and_environment() -> None:
    @dse.environment
    def world(example: Any) -> Any:
        yield dse.World(deps=f"world of {example}", tools={"whose": lambda_whose})

    def lambda_whose(ctx: dse.ToolContext[str]) -> str:
        return ctx.deps + ", replaced"

    def answer(request: Any) -> Any:
        last = request["messages"][-1]
        return call(("submit", {"answer": last["content"]})) if last["role"] == "tool" else call(("whose", {}))

    program = dse.Program(signature(whose), "tool_call", lm=ScriptedModel(answer), deps="program")
    assert program(question="?").answer == "program"
    assert program(question="?", deps="run").answer == "run"

    async def in_world() -> Any:
        async with world.enter("row 1") as made:
            run = program.new_run({"question": "?"})
            return await program.execute(run, deps=made.deps, toolbox=program.toolbox.merged(made.tools))

    assert asyncio.run(in_world()).answer == "world of row 1, replaced"


@in_loop
async def test_middleware_is_outermost_first_and_may_cache_or_fail_a_call() -> None:
    log: list[str] = []
    cache: dict[Any, Any] = {}

    @dse.tool(effect="read")
    def look(n: int) -> int:
        log.append(f"look {n}")
        return n * 10

    async def caching(tool_call: ToolCall, step: Any) -> Any:
        key = (tool_call.name, digest(dict(tool_call.wire_arguments)))
        if key not in cache:
            log.append("miss")
            cache[key] = await step(tool_call)
        return cache[key]

    async def faults(tool_call: ToolCall, step: Any) -> Any:
        log.append("faults")
        if tool_call.arguments["n"] == 13:
            raise ToolTimeout("injected")
        return await step(tool_call)

    dispatcher = make(look, middleware=[caching, faults])
    assert [(await dispatcher.call("look", (n,))).value for n in (1, 1, 2)] == [10, 10, 20]
    assert log == ["miss", "faults", "look 1", "miss", "faults", "look 2"]  # a hit never gets as far as the faults
    assert type(await fault_of(dispatcher.call("look", (13,)))) is ToolTimeout
    log.clear()
    cache.clear()
    inner = make(look, middleware=[faults, caching])
    assert [(await inner.call("look", (n,))).value for n in (1, 1)] == [10, 10]
    assert log == ["faults", "miss", "look 1", "faults"]


async def _forgets_return(call: Any, call_next: Any) -> Any:
    await call_next(call)


async def _forgets_await(call: Any, call_next: Any) -> Any:
    return call_next(call)


async def _passes(call: Any, call_next: Any) -> Any:
    return await call_next(call)


def _is_no_function_to_await(call: Any, call_next: Any) -> Any:
    return 3


async def _forgets_both(call: Any, call_next: Any) -> Any:
    call_next(call)


async def _never_awaits(call: Any, call_next: Any) -> Any:
    call_next(call)
    return 3


async def _never_calls(call: Any, call_next: Any) -> Any:
    pass


async def _swallows(call: Any, call_next: Any) -> Any:
    with contextlib.suppress(Exception):
        return await call_next(dataclasses.replace(call, arguments={}))


async def _takes_one(call: Any) -> Any:
    return call


async def _yields(call: Any, call_next: Any) -> Any:
    yield await call_next(call)


@pytest.mark.parametrize("layer", [
    _forgets_return, _forgets_await, _is_no_function_to_await, _forgets_both, _never_awaits, _never_calls, _swallows, _takes_one,
    _yields,
])  # fmt: skip
@in_loop
async def test_a_mistake_in_middleware_is_the_programs_and_no_models(layer: Any) -> None:
    @dse.tool(effect="pure")
    def add(a: int) -> int:
        """Add."""
        return a + 1

    with pytest.raises(UserError, match="Middleware") as caught:
        await make(add, middleware=[_passes, layer, _passes]).call("add", (1,))
    assert caught.value.value == layer.__name__ and "call_next" in caught.value.remedy

    @dse.tool(effect="pure")
    def maybe(a: int) -> int | None:
        """Maybe."""
        return a

    acted: list[int] = []

    @dse.tool(effect="write")
    def act(a: int) -> int:
        """Act."""
        acted.append(a)
        return a

    dispatcher = make(act, middleware=[layer])
    with pytest.raises(UserError):
        await dispatcher.call("act", (1,))
    assert dispatcher.run.effects.summary() == ("completed [act#1]" if acted else "unknown [act#1]" if layer is _swallows else "none")
    if layer in (_forgets_return, _never_calls, _swallows):  # nothing is a result of this one
        assert (await make(maybe, middleware=[layer]).call("maybe", (1,))).value is None


@in_loop
async def test_a_tool_that_returns_nothing_is_no_mistake_of_middleware() -> None:
    @dse.tool(effect="pure")
    def add(a: int) -> int:
        """Add."""
        return None  # type: ignore[return-value]

    assert type(await fault_of(make(add, middleware=[_passes, _passes]).call("add", (1,)))) is ToolReturnError


@in_loop
async def test_what_middleware_returns_is_checked_like_any_result() -> None:
    async def wrong(tool_call: ToolCall, step: Any) -> Any:
        return "not a number"

    assert type(await fault_of(make(add, middleware=[wrong]).call("add", (1,)))) is ToolReturnError


# --- effects ------------------------------------------------------------------------------------------


async def effect_of(
    body: Callable[[], Any], *, middleware: Any = (), timeout_s: float = 10, returns: Any = int
) -> tuple[Any, str]:
    """(class of the fault or None, effects) of one write whose implementation is `body`."""

    async def act() -> int:
        made = body()
        return await made if asyncio.iscoroutine(made) else made

    act.__annotations__ = {"return": returns}
    dispatcher = make(dse.tool(act, effect="write", timeout_s=timeout_s), middleware=middleware)
    try:
        await dispatcher.call("act")
    except ToolFault as fault:
        return fault, dispatcher.run.effects.summary()
    return None, dispatcher.run.effects.summary()


def raising(exc: BaseException) -> Callable[[], Any]:
    def body() -> Any:
        raise exc

    return body


class OwnFailure(ToolFailed):
    """A subclass by an implementation."""


@pytest.mark.parametrize(
    ("body", "cls", "effects"),
    [
        (lambda: 1, None, "completed [act#1]"),
        (raising(ToolFailed("refused by the server")), ToolFailed, "none"),
        (raising(OwnFailure("refused by the server")), ToolFailed, "none"),
        (raising(ValueError("x")), ToolFailed, "unknown [act#1]"),
        (raising(ToolDenied("x")), ToolDenied, "unknown [act#1]"),
        (raising(SystemExit(2)), ToolFailed, "unknown [act#1]"),
        (raising(asyncio.CancelledError()), ToolFailed, "unknown [act#1]"),
        (raising(BaseExceptionGroup("many", [ValueError("x")])), ToolFailed, "unknown [act#1]"),
        (lambda: "no number", ToolReturnError, "completed [act#1]"),
    ],
)
@in_loop
async def test_effects_of_a_write(body: Any, cls: Any, effects: str) -> None:
    fault, summary = await effect_of(body)
    assert (None if fault is None else type(fault)) == cls
    assert summary == effects
    if fault is not None:
        unknown, completed = "not known whether it took effect" in fault.message, "itself took effect" in fault.message
        assert (unknown, completed) == ("unknown" in effects, "completed" in effects)


@in_loop
async def test_a_write_that_times_out_is_unknown() -> None:
    fault, summary = await effect_of(lambda: asyncio.Event().wait(), timeout_s=0.02)
    assert type(fault) is ToolTimeout and summary == "unknown [act#1]"


@in_loop
async def test_a_write_that_is_cancelled_is_unknown_and_has_a_receipt() -> None:
    started = asyncio.Event()

    @dse.tool(effect="write")
    async def act() -> int:
        started.set()
        await asyncio.Event().wait()
        return 1

    dispatcher = make(act)
    running = asyncio.create_task(dispatcher.call("act"))
    waiting = asyncio.create_task(dispatcher.call("act"))
    await started.wait()
    for task in (running, waiting):
        task.cancel()
    assert [type(r) for r in await asyncio.gather(running, waiting, return_exceptions=True)] == [asyncio.CancelledError] * 2
    assert dispatcher.run.effects.summary() == "unknown [act#1]"  # the second never began
    assert [(r["outcome"], r["message"]) for r in dispatcher.run.receipts] == [
        ("cancelled", "cancelled"),
        ("refused", "cancelled"),
    ]
    assert kinds(dispatcher).count("tool_outcome") == 1 and kinds(dispatcher).count("tool_refused") == 1


async def _pass(tool_call: ToolCall, step: Any) -> Any:
    return await step(tool_call)


async def _fail_before(tool_call: ToolCall, step: Any) -> Any:
    raise ToolFailed("injected")


async def _fail_after(tool_call: ToolCall, step: Any) -> Any:
    await step(tool_call)
    raise ToolFailed("injected")


async def _soften(tool_call: ToolCall, step: Any) -> Any:
    try:
        return await step(tool_call)
    except ValueError as exc:
        raise ToolFailed("softened") from exc


async def _answer(tool_call: ToolCall, step: Any) -> Any:
    return 1


async def _again(tool_call: ToolCall, step: Any) -> Any:
    try:
        return await step(tool_call)
    except (ToolFailed, ValueError):
        return await step(tool_call)


@pytest.mark.parametrize(
    ("layer", "bodies", "effects"),
    [
        (_fail_before, [lambda: 1], "none"),
        (_fail_after, [lambda: 1], "completed [act#1]"),  # nobody can undo it by raising
        (_soften, [raising(ValueError("x"))], "unknown [act#1]"),
        (_answer, [], "completed [act#1]"),
        (_again, [raising(ToolFailed("x")), lambda: 1], "completed [act#1]"),
        (_again, [raising(ToolFailed("x")), raising(ToolFailed("x"))], "none"),
        (_again, [raising(ValueError("x")), raising(ToolFailed("x"))], "unknown [act#1]"),
    ],
)
@in_loop
async def test_middleware_cannot_hide_an_effect(layer: Any, bodies: list[Any], effects: str) -> None:
    left = list(bodies)
    _, summary = await effect_of(lambda: left.pop(0)(), middleware=[_pass, layer])
    assert summary == effects


@pytest.mark.parametrize("error", [ModelUnavailable("down"), InfrastructureError("down"), BudgetExhausted("spent")])
@in_loop
async def test_what_is_nobodys_failure_passes_through(error: Exception) -> None:
    @dse.tool(effect="write")
    def act() -> int:
        raise error

    dispatcher = make(act)
    with pytest.raises(type(error)):
        await dispatcher.call("act")
    receipt = dispatcher.run.receipts[0]
    assert (receipt["outcome"], receipt["fault"]) == ("fault", error.code)  # type: ignore[attr-defined]
    assert dispatcher.run.effects.summary() == "unknown [act#1]"


# --- messages -----------------------------------------------------------------------------------------

TRACEBACK = """could not load
Traceback (most recent call last):
  File "/srv/app/handlers.py", line 3, in handler
    secret_call(1)
ValueError: /srv/app/data.db"""
HOSTILE = [
    ("/home/bob/app/data.db is locked", ["bob", "data.db"]),
    ("[Errno 2] No such file or directory: '/srv/my app/x y.csv'", ["srv", "my app", "x y"]),
    ("/home/bob smith/secret plans/a.txt", ["bob", "secret", "a.txt"]),
    ("error:/etc/passwd", ["etc", "passwd"]),
    ("cannot read /root", ["root"]),
    (r"C:\Users\bob\secret.txt", ["bob", "secret"]),
    (r"cannot open C:\Program Files\Our App\run.exe now", ["Program", "Our App", "run.exe"]),
    ("cannot open D:/data/bob/x.bin", ["data", "bob"]),
    (r"'C:\\Users\\bob\\a.txt'", ["bob", "a.txt"]),
    (r"\\fileserver\share\plans\x.docx is open", ["fileserver", "plans"]),
    ("file:///srv/data/x.json", ["srv", "x.json"]),
    ("see ~/secret/notes.txt or ~bob/x or ../up/y.ini", ["secret", "bob", "y.ini"]),
    ("path=/srv/data/x,next", ["srv", "data"]),
    (TRACEBACK, ["srv", "handlers", "secret_call", "line 3", "data.db", "Traceback"]),
    ('bad  File "/x/y.py", line 3', ["/x", "y.py", "line 3"]),
    ('  File "/x/y.py", line 3, in run\n    secret_call(1)\n    ~~~~~~^^^\nboom', ["y.py", "line 3", "secret_call", "^"]),
    ('File "app/inner.py", line 9, in f', ["inner.py", "line 9"]),
    ("PosixPath('/srv/x')", ["srv"]),
    ("x" * 5_000 + "/srv/late", ["srv"]),
]


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("/srv/rude")


@pytest.mark.parametrize("deliberate", [False, True])
@pytest.mark.parametrize(("text", "forbidden"), HOSTILE)
@in_loop
async def test_messages_carry_no_host_paths_and_no_tracebacks(text: str, forbidden: list[str], deliberate: bool) -> None:
    @dse.tool(effect="read")
    def act() -> int:
        raise (ToolFailed(text, remedy=text) if deliberate else OSError(text))

    dispatcher = make(act)
    fault = await fault_of(dispatcher.call("act"))
    assert type(fault) is ToolFailed
    everything = f"{fault} {fault.message} {dispatcher.run.receipts} {dispatcher.run.journal.entries}"
    assert not [word for word in forbidden if word in everything]
    assert "\n" not in fault.message and len(fault.message) < 800
    assert fault.__cause__ is None and fault.__context__ is None  # nothing to print a traceback from


@in_loop
async def test_an_exception_that_cannot_be_shown_is_still_a_fault() -> None:
    @dse.tool(effect="read")
    def act() -> int:
        raise Rude

    assert (await fault_of(make(act).call("act"))).message == "act failed: Rude"


@pytest.mark.parametrize(
    "text", ["and/or 3/4", "https://api.example.com/v1/users failed with 404", "2024/01/05", "5 / 6", "10:30"]
)
@in_loop
async def test_innocent_text_stays(text: str) -> None:
    @dse.tool(effect="read")
    def act() -> int:
        raise ValueError(text)

    assert (await fault_of(make(act).call("act"))).message == f"act failed: ValueError: {text}"


@in_loop
async def test_a_result_that_breaks_its_contract_says_where() -> None:
    @dse.tool(effect="read")
    def act() -> list[int]:
        return [1, "x"]  # type: ignore[list-item]

    @dse.tool(effect="read")
    def loose() -> Any:
        return object()

    @dse.tool(effect="read")
    def nan() -> float:
        return float("nan")

    dispatcher = make(act, loose, nan)
    assert "1: Input should be a valid integer" in (await fault_of(dispatcher.call("act"))).message
    for name in ("loose", "nan"):
        fault = await fault_of(dispatcher.call(name))
        assert type(fault) is ToolReturnError and "no JSON form" in fault.message


# --- admission ----------------------------------------------------------------------------------------

CALLS = st.lists(
    st.tuples(
        st.sampled_from(["parallel", "ordered", "exclusive"]),
        st.integers(0, 4),  # steps before it may start (rate, approval)
        st.integers(0, 4),  # steps it runs
        st.sampled_from(["ends", "ends", "ends", "raises", "refused"]),
    ),
    max_size=14,
)


@given(CALLS, st.lists(st.tuples(st.integers(0, 13), st.integers(0, 12)), max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_mix_of_classes_breaks_the_rules_and_all_finish(calls: list[Any], cancels: list[tuple[int, int]]) -> None:
    admission = Admission()
    running: dict[int, str] = {}
    made: set[int] = set()  # not all: some are cancelled before they begin
    finished: set[int] = set()

    def check_start(index: int, kind: str) -> None:
        if kind == "exclusive" or "exclusive" in running.values():
            assert not running, "an exclusive call runs alone"
        assert kind != "ordered" or "ordered" not in running.values(), "ordered calls run one at a time"
        for earlier in range(index):
            other = calls[earlier][0]
            if kind == "exclusive" or other == "exclusive" or (kind == other == "ordered"):
                assert earlier in finished or earlier not in made, f"{kind} call {index} overtook {other} call {earlier}"

    async def one(index: int) -> None:
        kind, before, steps, fate = calls[index]
        ticket = admission.ticket(kind)
        made.add(index)
        try:
            for _ in range(before):
                await asyncio.sleep(0)
            if fate == "refused":
                raise RuntimeError
            async with admission.admitted(ticket):
                check_start(index, kind)
                running[index] = kind
                try:
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    if fate == "raises":
                        raise RuntimeError
                finally:
                    del running[index]
                    finished.add(index)
        except RuntimeError:
            pass
        finally:
            finished.add(index)
            admission.withdraw(ticket)

    async def main() -> None:
        tasks = [asyncio.create_task(one(index)) for index in range(len(calls))]
        for step in range(13):
            for index, when in cancels:
                if when == step and index < len(tasks):
                    tasks[index].cancel()
            await asyncio.sleep(0)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
        broken = [r for r in results if isinstance(r, AssertionError)]
        assert not broken, broken

    asyncio.run(main())
    assert not admission.waiting and not admission.active


@in_loop
async def test_a_thousand_waiting_calls_are_admitted_in_order_and_cheaply() -> None:
    admission, order = Admission(), []

    async def one(index: int) -> None:
        async with admission.admitted(admission.ticket("ordered")):
            order.append(index)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(index) for index in range(1000)))
    assert order == list(range(1000))
