"""Programs: the sync and async faces, handles, streams, checks before a run, receipts, the store, determinism."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime as dt
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BeforeValidator

import dse
from dse.errors import (
    AllowListError,
    ContractMismatch,
    InfrastructureError,
    InputError,
    LimitExceeded,
    ModelError,
    ModelUnavailable,
    NoSubmission,
    OutputInvalid,
    PlanError,
    RunSuspended,
    SignatureError,
    StoreError,
    StoreUnavailable,
    ToolboxError,
)
from dse.loading import looser_fields
from dse.strategies.base import seed_plan
from dse.testing.scripted import ScriptedModel, call, say

PATIENCE_S = 30  # only how long a hanging test may hang


@dse.tool(effect="read")
def double(n: int) -> int:
    """Double a number."""
    return 2 * n


@dse.tool(effect="write", approval="always", sensitive=("pin",))
def pay(amount: int, pin: str) -> str:
    """Pay."""
    return f"paid {amount} with {pin}"


class Ask(dse.Signature):
    """Answer with a number."""

    question: str = dse.InputField()
    secret: str = dse.InputField(sensitive=True, default="")
    number: int = dse.OutputField()
    tools = [double, pay]


def answer(request: Any) -> Any:
    """Doubles 21 and submits what comes back."""
    last = request["messages"][-1]
    return call(("submit", {"number": int(last["content"])})) if last["role"] == "tool" else call(("double", {"n": 21}))


SUBMIT = call(("submit", {"number": 42}))


def program(script: Any = answer, **options: Any) -> dse.Program:
    return dse.Program(Ask, options.pop("plan", "tool_call"), lm=ScriptedModel(script), **options)


class Held:
    """An async tool that waits until it is let go, and tells what became of it."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.ended = threading.Event()
        self.cancelled = False
        self.go: asyncio.Event | None = None

    async def __call__(self, n: int) -> int:
        self.go = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.ended.set()
        return 2 * n

    def release(self) -> None:
        assert self.go is not None
        self.loop.call_soon_threadsafe(self.go.set)

    def program(self, **options: Any) -> dse.Program:
        async def double(n: int) -> int:
            return await self(n)

        return program(toolbox=Ask.spec().toolbox().bind("double", double), **options)


def script(code: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a plain script that has the definitions of this file."""
    environment = {**os.environ, "PYTHONPATH": f"{Path(dse.__file__).parents[1]}{os.pathsep}{Path(__file__).parent}",
                   "LITELLM_LOCAL_MODEL_COST_MAP": "true", "PYTHONWARNINGS": "error"}  # fmt: skip
    text = "from test_program import *\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=timeout_s, env=environment)


# --- faces --------------------------------------------------------------------------------------------


def test_a_call_gives_typed_values_and_a_receipt() -> None:
    made = program()(question="?")
    assert made.number == 42 and made.outputs == {"number": 42}
    assert repr(made) == "dse.Prediction(number=42)"
    with pytest.raises(AttributeError, match="number"):
        made.nothing  # noqa: B018
    again = pickle.loads(pickle.dumps(made))
    assert (again.number, again.outputs, again.receipt) == (42, made.outputs, made.receipt)


def test_from_a_plain_script_that_ends_by_itself() -> None:
    done = script(
        """
        print(program()(question="?").number)
        held = Held()
        handle = held.program().start(question="?")     # nobody waits for this one
        held.started.wait(30)
        open_stream = held.program().stream(question="?")
        print(next(open_stream)["kind"])
    """,
        timeout_s=25,
    )  # less than the tool would wait
    assert (done.stdout.split(), done.stderr, done.returncode) == (["42", "run_started"], "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_gets_its_own_loop() -> None:
    done = script("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)     # of forking with threads, from Python 3.12 on
        program()(question="?")
        child = os.fork()
        if child == 0:
            print("child", program()(question="?").number, flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print("parent", program()(question="?").number)
    """)
    assert done.stdout.splitlines() == ["child 42", "parent 42"], done.stderr


def test_from_many_threads_at_once() -> None:
    one = program()
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        made = list(threads.map(lambda n: one(question=str(n)), range(48)))
    assert [m.number for m in made] == [42] * 48
    assert len({m.receipt["run_id"] for m in made}) == 48


def test_inside_a_running_loop_as_in_a_notebook() -> None:
    async def cell() -> int:
        return program()(question="?").number  # no await: the sync face, blocking this loop and not its own

    assert asyncio.run(cell()) == 42


def test_acall_in_the_callers_own_loop() -> None:
    loops = []

    async def double(n: int) -> int:
        loops.append(asyncio.get_running_loop())
        return 2 * n

    async def main() -> Any:
        one = program(toolbox=Ask.spec().toolbox().bind("double", double))
        made = await asyncio.gather(*(one.acall(question="?") for _ in range(5)))
        assert loops == [asyncio.get_running_loop()] * 5
        return made

    assert [m.number for m in asyncio.run(main())] == [42] * 5


def test_a_program_inside_a_tool() -> None:
    inner = program()

    def double(n: int) -> int:
        return inner(question="?").number  # sync, in the tool's thread

    async def adouble(n: int) -> int:
        return (await inner.acall(question="?")).number

    async def blocking(n: int) -> int:
        return inner(question="?").number  # would wait for the very loop it blocks

    box = Ask.spec().toolbox()
    for fn in (double, adouble):
        assert program(toolbox=box.merged({"double": fn}))(question="?").number == 42
    told: list[str] = []

    def tell(request: Any) -> Any:
        told.append(request["messages"][-1]["content"])
        return call(("double", {"n": 1})) if len(told) == 1 else SUBMIT

    program(tell, toolbox=box.merged({"double": blocking}))(question="?")
    assert "use the async face" in told[1]


def test_an_input_may_be_called_self() -> None:
    class Odd(dse.Signature):
        """Odd."""

        self: str = dse.InputField()
        number: int = dse.OutputField()

    model = ScriptedModel(["[[ ## number ## ]]\n1\n\n[[ ## completed ## ]]"])
    assert dse.Program(Odd, "direct", lm=model)(self="x").number == 1


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals need the main thread")
def test_interrupting_a_sync_call_cancels_the_run() -> None:
    held = Held()

    def interrupt() -> None:
        held.started.wait(PATIENCE_S)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have it ignored
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            held.program()(question="?")
    finally:
        signal.signal(signal.SIGINT, before)
    assert held.ended.wait(PATIENCE_S) and held.cancelled


def raising(error: BaseException) -> Any:
    def reply(request: Any) -> Any:
        raise error

    return reply


@pytest.mark.parametrize("error", [KeyboardInterrupt("k"), SystemExit(3), GeneratorExit("g"), pytest.fail.Exception("f")], ids=repr)
def test_a_base_exception_reaches_its_caller_and_nobody_else(error: BaseException) -> None:
    held = Held()
    other = held.program().start(question="?")
    assert held.started.wait(PATIENCE_S)
    with pytest.raises(type(error)):
        program(raising(error))(question="?")
    with pytest.raises(type(error)):
        program(raising(error)).start(question="?").result(PATIENCE_S)
    events = list(program(raising(error)).stream(question="?"))  # here the run is a task of its own
    assert type(events[-1]["error"]) is type(error)
    held.release()
    assert other.result(PATIENCE_S).number == 42
    assert program()(question="?").number == 42


def test_after_the_end_of_the_loop_the_next_call_gets_a_new_one() -> None:
    def stop(request: Any) -> Any:
        asyncio.get_running_loop().stop()
        return asyncio.sleep(PATIENCE_S)

    with pytest.raises((concurrent.futures.CancelledError, asyncio.CancelledError)):
        program(stop)(question="?")
    assert program()(question="?").number == 42


# --- handles ------------------------------------------------------------------------------------------


def test_start_returns_at_once_and_shows_what_happens() -> None:
    held = Held()
    handle = held.program().start(question="?")
    assert held.started.wait(PATIENCE_S)
    assert not handle.done
    assert [entry["kind"] for entry in handle.journal] == ["run_started", "model_call", "tool_intent"]
    with pytest.raises(TimeoutError):
        handle.result(timeout_s=0.01)
    assert not handle.done  # giving up waiting is not giving up the run
    held.release()
    made = handle.result(PATIENCE_S)
    assert made.number == 42 and handle.done and made.receipt["run_id"] == handle.run_id


def test_the_journal_of_a_handle_shows_no_secrets() -> None:
    handle = program(paying, approve=lambda request: True).start(question="?", secret="tiger-lily")
    handle.result(PATIENCE_S)
    assert (
        len(handle.journal) == len(EVENTS)
        and "4711-0815" not in repr(handle.journal)
        and "tiger-lily" not in repr(handle.journal)
    )


def test_aresult_and_giving_up_waiting() -> None:
    held = Held()

    async def main() -> Any:
        handle = held.program().start(question="?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle.aresult(), 0.01)
        assert not handle.done
        held.release()
        return await asyncio.wait_for(handle.aresult(), PATIENCE_S)

    assert asyncio.run(main()).number == 42


def test_a_handle_raises_what_the_run_raised() -> None:
    handle = program([say("no")] * 3).start(question="?")
    with pytest.raises(NoSubmission):
        handle.result(PATIENCE_S)
    with pytest.raises(NoSubmission):
        asyncio.run(handle.aresult())


def test_start_refuses_bad_inputs_before_it_starts() -> None:
    with pytest.raises(InputError):
        program().start(nonsense=1)


def test_cancel_ends_the_run_and_keeps_its_record(tmp_path: Path) -> None:
    held, store = Held(), dse.Store(tmp_path / "runs.db")
    handle = held.program(store=store).start(question="?")
    assert held.started.wait(PATIENCE_S)
    handle.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        handle.result(PATIENCE_S)
    assert held.ended.wait(PATIENCE_S) and held.cancelled
    program(store=store)(question="?")  # runs on the same loop: the cancelled one is written by now, or soon
    receipt, entries = saved(store, handle.run_id)
    assert (receipt["outcome"], receipt["error"]["class"]) == ("cancelled", "CancelledError")
    assert receipt["calls"][0]["outcome"] == "cancelled"
    assert entries[-1]["kind"] == "run_stopped"


def saved(store: dse.Store, run_id: str) -> Any:
    """The record of a run; another run of the same loop is made until it is there."""
    for _ in range(100):
        try:
            return store.run(run_id)
        except StoreError:
            program(store=store)(question="?")
    raise AssertionError("the run was never written")


def test_cancelling_acall_is_recorded_too(tmp_path: Path) -> None:
    store = dse.Store(tmp_path / "runs.db")
    held = Held()

    async def main() -> None:
        task = asyncio.create_task(held.program(store=store).acall(question="?"))
        while not held.started.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [run["outcome"] for run in store.runs()] == ["cancelled"]


# --- streams ------------------------------------------------------------------------------------------

EVENTS = ["run_started", "model_call", "tool_intent", "tool_outcome", "round", "model_call", "run_finished", "result"]


def paying(request: Any) -> Any:
    if request["messages"][-1]["role"] == "tool":
        return call(("submit", {"number": 42}), text="I used 4711-0815 of tiger-lily")
    return call(("pay", {"amount": 5, "pin": "4711-0815"}))


def check_events(events: list[dict[str, Any]]) -> None:
    assert [e["kind"] for e in events] == [EVENTS[0], EVENTS[1], "approval", *EVENTS[2:]]
    assert [e["seq"] for e in events[:-1]] == list(range(len(events) - 1))
    shown = repr(events[:-1])
    assert "4711-0815" not in shown and "tiger-lily" not in shown
    assert shown.count("[redacted]") >= 6
    assert events[-1]["prediction"].number == 42 and events[-1]["run_id"]


def test_stream_gives_events_in_order_and_redacted() -> None:
    one = program(paying, approve=lambda request: True)
    check_events(list(one.stream(question="?", secret="tiger-lily")))


def test_astream_gives_events_in_order_and_redacted() -> None:
    async def main() -> list[dict[str, Any]]:
        one = program(paying, approve=lambda request: True)
        return [event async for event in one.astream(question="?", secret="tiger-lily")]

    check_events(asyncio.run(main()))


def test_events_come_while_the_run_goes_on() -> None:
    held = Held()
    kinds = []
    for event in held.program().stream(question="?"):
        kinds.append(event["kind"])
        if event["kind"] == "tool_intent":
            assert held.started.wait(PATIENCE_S) and not held.ended.is_set()
            held.release()
    assert kinds == EVENTS


def test_an_event_is_a_copy() -> None:
    one = program()
    run_ids = []
    for event in one.stream(question="?"):
        if event["kind"] == "model_call":
            event["tool_calls"].clear()
            event["text"] = "changed"
        if event["kind"] == "result":
            run_ids.append(event["prediction"].receipt["transcript_hash"])
    assert run_ids == [one(question="?").receipt["transcript_hash"]]


def test_a_stream_ends_with_the_error() -> None:
    events = list(program([ModelUnavailable("down")]).stream(question="?"))
    assert [e["kind"] for e in events] == ["run_started", "run_stopped", "error"]
    assert isinstance(events[-1]["error"], ModelUnavailable) and events[-1]["run_id"]


def test_leaving_a_stream_early_ends_the_run() -> None:
    held = Held()
    stream = held.program().stream(question="?")
    for event in stream:
        if event["kind"] == "tool_intent":
            break
    assert held.started.wait(PATIENCE_S)
    stream.close()  # type: ignore[attr-defined]
    assert held.ended.is_set() and held.cancelled  # closing waits for it


def test_leaving_an_async_stream_early_leaves_no_task_behind() -> None:
    held = Held()

    async def main() -> None:
        before = asyncio.all_tasks()
        stream = held.program().astream(question="?")
        async for event in stream:
            if event["kind"] == "tool_intent":
                break
        await stream.aclose()  # type: ignore[attr-defined]
        assert asyncio.all_tasks() == before

    asyncio.run(main())
    assert held.cancelled or not held.started.is_set()


def test_streams_refuse_bad_inputs() -> None:
    with pytest.raises(InputError):
        next(program().stream(nonsense=1))


@pytest.mark.parametrize("reply", ["[[ ## number ## ]]\n90817263545\n\n[[ ## completed ## ]]"])
def test_a_sensitive_output_is_hidden_before_it_is_parsed(reply: str) -> None:
    class Hidden(dse.Signature):
        """Give the number."""

        question: str = dse.InputField()
        number: int = dse.OutputField(sensitive=True)

    wrong = "[[ ## number ## ]]\n90817263545-\n\n[[ ## completed ## ]]"
    one = dse.Program(Hidden, "direct", lm=ScriptedModel([wrong, reply]))
    events = list(one.stream(question="?"))
    assert "90817263545" not in repr(events[:-1])
    made = events[-1]["prediction"]
    assert made.number == 90817263545 and "90817263545" not in repr(made.receipt)
    failing = dse.Program(Hidden, "direct", lm=ScriptedModel([wrong] * 3))
    with pytest.raises(OutputInvalid) as info:
        failing(question="?")
    assert "90817263545" not in repr(info.value.details["receipt"])


# --- checks before anything runs ----------------------------------------------------------------------


def test_inputs_are_checked_all_at_once() -> None:
    with pytest.raises(InputError) as info:
        program()(quesion="?", secret=3)
    assert "question: Field required" in str(info.value) and "quesion" in str(info.value) and "secret" in str(info.value)


def test_a_tool_without_implementation_is_refused_unless_it_is_not_allowed() -> None:
    @dse.tool(effect="read")
    def declared(n: int) -> int:
        """Only declared."""
        ...

    class Needs(dse.Signature):
        """Needs it."""

        question: str = dse.InputField()
        number: int = dse.OutputField()
        tools = [declared, double]

    with pytest.raises(ToolboxError, match="declared"):
        dse.Program(Needs, "tool_call", lm=ScriptedModel([]))
    plan = seed_plan(Needs.spec(), "tool_call", allow=["double"])
    assert dse.Program(Needs, plan, lm=ScriptedModel([SUBMIT]))(question="?").number == 42
    with pytest.raises(ToolboxError, match="no such tool"):
        dse.Program(Ask, "tool_call", lm=ScriptedModel([]), toolbox=dse.Toolbox([double]))


def test_a_tool_with_another_interface_is_refused() -> None:
    other = dse.tool(lambda_double, effect="read", name="double", description="Double a number, roughly.")
    with pytest.raises(ContractMismatch):
        dse.Program(Ask, "tool_call", lm=ScriptedModel([]), toolbox=dse.Toolbox([other, pay]))


def lambda_double(n: int) -> int:
    return 2 * n


def test_a_mode_that_asks_a_model_needs_one() -> None:
    with pytest.raises(ModelError, match="needs a model"):
        dse.Program(Ask, "tool_call")


def changed(**fields: Any) -> dse.Plan:
    return seed_plan(Ask.spec(), "tool_call").model_copy(update=fields)


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ("telepathy", "No such mode"),
        (changed(allow=("double", "erase")), "erase"),
        (changed(prompts={}), "act"),
        (changed(prompts={"act": dse.Prompt(instructions="x"), "more": dse.Prompt(instructions="x")}), "act"),
        (changed(knobs={"speed": 2}), "speed"),
        (changed(mode="direct", prompts={"answer": dse.Prompt(instructions="x")}), "calls no tools"),
        (changed(limits=dse.Limits(calls_per_tool={"erase": 1})), "erase"),
    ],
)  # fmt: skip
def test_plans_are_checked(plan: Any, text: str) -> None:
    with pytest.raises(PlanError, match=text):
        dse.Program(Ask, plan, lm=ScriptedModel([]))


def test_narrowed_takes_away_and_never_adds() -> None:
    whole = program()
    narrow = whole.narrowed(allow=["double"], limits={"tool_calls": 1})
    assert narrow.plan.allow == ("double",) and narrow.plan.limits.tool_calls == 1
    assert narrow.program_id != whole.program_id and whole.plan.allow == ("double", "pay")
    assert narrow(question="?").number == 42
    refused = program([call(("pay", {"amount": 1, "pin": "x"})), SUBMIT], approve=lambda request: True).narrowed(
        allow=["double"]
    )
    receipt = refused(question="?").receipt
    assert (receipt["calls"][0]["fault"], receipt["effects"]) == ("DSE201", "none")
    for allow in (["double", "pay"], ["erase"]):
        with pytest.raises(AllowListError):
            narrow.narrowed(allow=allow)
    for limits in ({"tool_calls": 2}, {"nonsense": 1}, {"outcomes": {"tokens": "retry"}}):
        with pytest.raises(PlanError):
            narrow.narrowed(limits=limits)


def test_narrowed_takes_names_and_limits_by_name() -> None:
    assert program().narrowed(allow=["double", "double"]).plan.allow == ("double",)
    for wrong in ({"allow": 5}, {"allow": [5]}, {"allow": "double"}, {"limits": 5}):
        with pytest.raises((PlanError, AllowListError)):
            program().narrowed(**wrong)


def test_narrowed_keeps_everything_else() -> None:
    store = dse.Store(":memory:")
    whole = program(deps="deps", approve=lambda request: True, store=store, stamp={"artifact_id": "sha256:x"})
    narrow = whole.narrowed(allow=["double"])
    for name in ("lm", "deps", "approve", "middleware", "store", "stamp", "signature"):
        assert getattr(narrow, name) == getattr(whole, name), name


@pytest.mark.parametrize(
    ("proven", "bound", "looser"),
    [
        ((1, 1.0), (10, 10.0), True),  # the same on average, but ten at once
        ((10, 10.0), (1, 1.0), False),
        ((10, 10.0), (2, 1.0), True),
        ((10, 10.0), (10, 10.0), False),
        ((10, 10.0), None, True),
        (None, (1, 1.0), False),
    ],
)
def test_a_rate_is_looser_if_any_window_may_hold_more(proven: Any, bound: Any, looser: bool) -> None:
    def contract(rate: Any) -> Any:
        return dse.tool(lambda_double, effect="read", rate=rate).contract

    assert ("rate" in looser_fields(contract(bound), contract(proven))) is looser


# --- receipts and the store ---------------------------------------------------------------------------

FAILURES = [
    (LimitExceeded, "failed", [call(("double", {"n": 1}))] * 3, {"model_calls": 2}),
    (OutputInvalid, "failed", [call(("submit", {}))] * 5, {}),
    (NoSubmission, "failed", [say("no")] * 5, {}),
    (ModelUnavailable, "infrastructure", [ModelUnavailable("down")], {}),
    (ModelError, "refused", [ModelError("bad key")], {}),
    (RunSuspended, "suspended", [call(("pay", {"amount": 1, "pin": "abcd"}))], {}),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "outcome", "replies", "limits"), FAILURES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_failure_carries_its_receipt(cls: Any, outcome: str, replies: list[Any], limits: dict[str, Any]) -> None:
    store = dse.Store(":memory:")
    one = program(replies, plan=seed_plan(Ask.spec(), "tool_call", limits=dse.Limits(**limits)), store=store)
    with pytest.raises(cls) as info:
        one(question="?")
    details = info.value.details
    receipt = details["receipt"]
    assert receipt["outcome"] == outcome and receipt["error"]["class"] == cls.__name__
    assert details["run_id"] == receipt["run_id"] and details["effects"] == receipt["effects"] == "none"
    assert receipt["outputs"] is None and receipt["usage"]["model_calls"] >= 1
    kept, entries = store.run(receipt["run_id"])
    assert kept == pickle.loads(pickle.dumps(info.value)).details["receipt"]
    assert entries[-1]["outcome"] == outcome


def test_an_unexpected_exception_is_recorded_and_passes_as_it_is() -> None:
    store = dse.Store(":memory:")

    def broken(request: Any) -> Any:
        raise ZeroDivisionError("in /srv/model.py")

    with pytest.raises(ZeroDivisionError):
        program(broken, store=store)(question="?")
    receipt, _ = store.run(store.runs()[0]["run_id"])
    assert (receipt["outcome"], receipt["error"]["class"]) == ("crashed", "ZeroDivisionError")
    assert "/srv" not in receipt["error"]["what"]


def test_the_receipt_says_what_ran() -> None:
    one = program(deps=1, stamp={"artifact_id": "sha256:abc", "unproven": False})
    receipt = one(question="how many?", secret="tiger-lily").receipt
    expected = {
        "artifact_id": "sha256:abc", "unproven": False, "signature": "Ask", "mode": "tool_call", "model": "scripted/model",
        "outcome": "ok", "effects": "none", "program_id": one.program_id, "attempts": 1, "error": None,
    }  # fmt: skip
    assert {name: receipt[name] for name in expected} == expected
    assert receipt["inputs"] == {"question": "how many?", "secret": "[redacted]"} and receipt["outputs"] == {"number": 42}
    assert receipt["usage"]["model_calls"] == 2 and receipt["usage"]["calls_per_tool"] == {"double": 1}
    assert receipt["transcript_hash"].startswith("sha256:")


def test_the_store_keeps_run_and_journal_without_secrets(tmp_path: Path) -> None:
    store = dse.Store(tmp_path / "runs.db")
    made = program(paying, approve=lambda request: True, store=store)(question="?", secret="tiger-lily")
    store.close()
    again = dse.Store(tmp_path / "runs.db")
    assert [run["run_id"] for run in again.runs()] == [made.receipt["run_id"]]
    receipt, entries = again.run(made.receipt["run_id"])
    assert receipt == made.receipt
    assert [e["kind"] for e in entries] == [EVENTS[0], EVENTS[1], "approval", *EVENTS[2:-1]]
    assert "4711-0815" not in repr((receipt, entries)) and "tiger-lily" not in repr((receipt, entries))
    again.close()


class FullDisk(dse.Store):
    """A store whose disk is full."""

    def stop_run(self, *args: Any, **kwargs: Any) -> None:
        raise StoreUnavailable("The store could not be written", value="disk full")


def test_a_store_that_cannot_be_written_is_nobodys_failure_and_loses_no_receipt() -> None:
    with pytest.raises(InfrastructureError) as info:
        program(store=FullDisk(":memory:"))(question="?")
    assert info.value.details["receipt"]["outputs"] == {"number": 42}


# --- determinism --------------------------------------------------------------------------------------

CLOCK = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@dse.tool(effect="read")
async def slow(ctx: dse.ToolContext[Any], n: int) -> str:
    """Takes its time."""
    await ctx.deps.turn()
    return f"seen {n}"


@dse.tool(effect="write")
async def append(ctx: dse.ToolContext[Any], n: int) -> int:
    """Writes."""
    await ctx.deps.turn()
    ctx.deps.written.append(n)
    return len(ctx.deps.written)


class Mixed(dse.Signature):
    """Mix calls."""

    question: str = dse.InputField()
    number: int = dse.OutputField()
    tools = [slow, append]


class Shuffled:
    """Every call waits a number of turns that somebody else chose."""

    def __init__(self, turns: list[int]) -> None:
        self.turns = turns
        self.asked = 0
        self.written: list[int] = []

    async def turn(self) -> None:
        self.asked += 1
        for _ in range(self.turns[self.asked % len(self.turns)]):
            await asyncio.sleep(0)


ROUND = [
    ("slow", {"n": 1}),
    ("append", {"n": 2}),
    ("slow", {"n": 3}),
    ("append", {"n": 4}),
    ("nope", {}),
    ("append", {"n": 5}),
]


def evaluated(turns: list[int], **changes: Any) -> Any:
    model = ScriptedModel([call(*ROUND), call(*reversed(ROUND)), SUBMIT])
    one = dse.Program(Mixed, "tool_call", lm=model)
    options = {"run_id": "rollout-1", "seed": 7, "clock": CLOCK, "evaluation": True} | changes
    run = one.new_run({"question": "?"}, **options)
    made = asyncio.run(one.execute(run, deps=Shuffled(turns)))
    return made.receipt, model.requests, [e for e in run.journal.entries if e["kind"] == "tool_outcome"]


@given(st.lists(st.integers(0, 9), min_size=7, max_size=7))
@settings(max_examples=40, deadline=None)
def test_shuffled_latencies_give_the_same_transcript(turns: list[int]) -> None:
    receipt, requests, _ = evaluated([0])
    other, others, _ = evaluated(turns)
    assert other["transcript_hash"] == receipt["transcript_hash"]
    assert others == requests
    assert [c["arguments_hash"] for c in other["calls"]] == [c["arguments_hash"] for c in receipt["calls"]]
    assert [c["idempotency_key"] for c in other["calls"] if c["tool"] != "nope"] == [
        c["idempotency_key"] for c in receipt["calls"] if c["tool"] != "nope"]  # fmt: skip


def test_latencies_do_shuffle_what_happens_when() -> None:
    orders = {tuple(e["call_id"] for e in evaluated(turns)[2]) for turns in ([0], [9, 0, 0, 5, 1, 0, 2])}
    assert len(orders) == 2  # so the test above tests something


def test_another_path_is_another_transcript() -> None:
    model = ScriptedModel([call(("slow", {"n": 2})), SUBMIT])
    one = dse.Program(Mixed, "tool_call", lm=model)
    run = one.new_run({"question": "?"}, run_id="rollout-1", seed=7, clock=CLOCK, evaluation=True)
    made = asyncio.run(one.execute(run, deps=Shuffled([0])))
    assert made.receipt["transcript_hash"] != evaluated([0])[0]["transcript_hash"]


def test_the_hash_is_free_of_what_differs_between_equal_runs() -> None:
    assert evaluated([0], run_id="rollout-2")[0]["transcript_hash"] == evaluated([0])[0]["transcript_hash"]


class Words(dse.Signature):
    """Count the words."""

    words: set[str] = dse.InputField()
    number: int = dse.OutputField()
    tools = [double]


def test_prompts_do_not_depend_on_the_order_of_a_set() -> None:
    code = """
        class Words(dse.Signature):
            '''Count the words.'''
            words: set[str] = dse.InputField()
            number: int = dse.OutputField()
            tools = [double]
        import hashlib
        for mode, reply in (("tool_call", SUBMIT), ("direct", "[[ ## number ## ]]\\n42")):
            model = ScriptedModel([reply])
            dse.Program(Words, mode, lm=model)(words={"b", "a", "zebra", "c", "anything"})
            print(hashlib.sha256(repr(model.requests).encode()).hexdigest())
    """
    code = code.replace("set[str]", "'set[str]'")
    seen = set()
    for seed in ("1", "2", "3"):
        os.environ["PYTHONHASHSEED"] = seed
        try:
            done = script(code)
        finally:
            del os.environ["PYTHONHASHSEED"]
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1


# --- inputs from outside, outputs that are written down, secrets in errors ------------------------------


def test_inputs_from_outside_are_a_mapping_and_never_dependencies() -> None:
    made = program()({"question": "?"})
    assert made.number == 42 and asyncio.run(program().acall({"question": "?"})).number == 42
    with pytest.raises(InputError, match="deps"):
        program()({"question": "?", "deps": {"tenant": "other"}})
    assert [e["kind"] for e in program().stream({"question": "?"})][-1] == "result"
    assert program().start({"question": "?"}).result().number == 42


def test_an_output_that_reads_as_another_value_is_refused() -> None:
    class Cents(dse.Signature):
        """Say how much."""

        question: str = dse.InputField()
        amount: Annotated[float, BeforeValidator(lambda value: float(value) / 100)] = dse.OutputField()

    with pytest.raises(SignatureError, match="read again") as caught:
        dse.Program(Cents, "direct", lm=ScriptedModel([say("[[ ## amount ## ]]\n5000")]))(question="?")
    assert caught.value.value == "amount"


@pytest.mark.parametrize("secret", ['hunter"2\\x', "line one\nline two", "ünïcödé-π"], ids=["quote", "lines", "letters"])
def test_a_secret_is_hidden_in_whatever_form_it_comes(secret: str) -> None:
    class Echo(dse.Signature):
        """Repeat."""

        pin: str = dse.InputField(sensitive=True)
        said: str = dse.OutputField()
        tools = [double]

    replies = [say("[[ ## code ## ]]\nprint(repr(pin), json.dumps(pin), pin)\nsubmit(said=repr(pin) + json.dumps(pin) + pin)")]
    events = list(dse.Program(Echo, "code", lm=ScriptedModel(replies)).stream(pin=secret))
    shown = [{k: v for k, v in event.items() if k != "prediction"} for event in events]
    receipt = events[-1]["prediction"].receipt
    for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]):
        for place in (shown, receipt):
            assert not any(form in text for text in _texts(place)), form


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def test_errors_of_sensitive_fields_quote_nothing() -> None:
    class Pin(dse.Signature):
        """Check."""

        pin: int = dse.InputField(sensitive=True)
        answer: int = dse.OutputField(sensitive=True)

    asks = dse.Program(Pin, "direct", lm=ScriptedModel([say("[[ ## answer ## ]]\nabcd-secret-9999")] * 9))
    with pytest.raises(InputError) as refused:
        asks(pin="my-secret-4711")
    assert "4711" not in str(refused.value) and "pin" in str(refused.value)
    with pytest.raises(OutputInvalid) as invalid:
        asks(pin=12345)
    assert "9999" not in str(invalid.value) and "9999" not in repr(invalid.value.value)


def test_time_ends_a_run_in_which_nothing_ever_waits() -> None:
    @dse.tool(effect="pure")
    async def idle() -> int:
        """Do nothing."""
        return 1

    class Idle(dse.Signature):
        """Idle."""

        question: str = dse.InputField()
        out: str = dse.OutputField()
        tools = [idle]

    plan = seed_plan(Idle.spec(), "tool_call", limits=dse.Limits(active_s=0.2, model_calls=10**6, tool_calls=10**6))
    with pytest.raises(LimitExceeded, match="active_s"):
        dse.Program(Idle, plan, lm=ScriptedModel(lambda request: call(("idle", {}))))(question="?")
