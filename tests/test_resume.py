"""Runs that stop and go on: approvals, unknown writes, lost processes and workers, audits, forks."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dse
from benchmarks import chaos
from dse.errors import (
    DecisionRefused,
    EffectUnknown,
    LimitExceeded,
    ModelUnavailable,
    ReplayDiverged,
    RunNotResumable,
    RunSuspended,
    RunTaken,
    StoreError,
)
from dse.runtime import sandbox
from dse.runtime.sandbox import crossing
from dse.store.journal import Store
from dse.strategies.base import seed_plan
from dse.strategies.render import Predictor
from dse.strategies.script import script_plan
from dse.testing import ScriptedModel, call, say

MODES = ("tool_call", "code", "script", "cascade")


class Ledger:
    """What really happened outside."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.keys: list[str] = []
        self.break_at: str | None = None


@dse.tool(effect="read")
async def look(ctx: dse.ToolContext[Ledger], n: int) -> int:
    """Look."""
    ctx.deps.calls.append(("look", n))
    return n * 10


@dse.tool(effect="write", approval="always")
async def pay(ctx: dse.ToolContext[Ledger], amount: int) -> str:
    """Pay."""
    ctx.deps.calls.append(("pay", amount))
    return f"paid {amount}"


@dse.tool(effect="write")
async def note(ctx: dse.ToolContext[Ledger], n: int) -> str:
    """Note."""
    ctx.deps.calls.append(("note", n))
    if ctx.deps.break_at == "note":
        os.kill(os.getpid(), signal.SIGKILL)
    return f"noted {n}"


@dse.tool(effect="write", idempotent=True)
async def book(ctx: dse.ToolContext[Ledger], n: int) -> str:
    """Book."""
    ctx.deps.calls.append(("book", n))
    ctx.deps.keys.append(ctx.idempotency_key)
    return f"booked {n}"


class Settle(dse.Signature):
    """Settle a matter."""

    matter: str = dse.InputField()
    pin: str = dse.InputField(sensitive=True, default="")
    report: str = dse.OutputField()
    tools = [look, pay, note, book]


def script(*scripts: str) -> Callable[[Any], Any]:
    """A model for code mode: a script per script that the transcript holds."""

    def reply(request: Any) -> Any:
        asked = request["messages"][-1]["content"]
        return say(f"[[ ## code ## ]]\n{scripts[asked.count('Script ')]}\n\n[[ ## completed ## ]]")

    return reply


def rounds(*replies: Any) -> Callable[[Any], Any]:
    """A model for tool calls: a reply per time that it has spoken."""
    return lambda request: replies[sum(message["role"] == "assistant" for message in request["messages"])]


def submit(request: Any) -> Any:
    """Submit what the last tools said."""
    said = [message["content"] for message in request["messages"] if message["role"] == "tool"]
    return call(("submit", {"report": " | ".join(said)}))


def paying(mode: str) -> Callable[[Any], Any]:
    """Look, pay twice and look again at the same time, report."""
    if mode != "tool_call":  # mode script does not ask
        return script("a = await look(1)",
                      "b = await asyncio.gather(pay(5), look(2), pay(6), return_exceptions=True)\n"
                      "submit(report=' | '.join(str(one) for one in [a, *b]))")  # fmt: skip
    first, second = call(("look", {"n": 1})), call(("pay", {"amount": 5}), ("look", {"n": 2}), ("pay", {"amount": 6}))
    return lambda request: rounds(first, second, submit(request))(request)


def distilled(source: str) -> dict[str, dse.Plan]:
    """Plans with a script: one that does it all, and one that leaves it to mode code."""
    leaving = script_plan(Settle.spec(), "if matter:\n    abstain('not mine')\nsubmit(report='nothing to do')")
    return {"script": script_plan(Settle.spec(), source),
            "cascade": dse.Plan.cascade(leaving, seed_plan(Settle.spec(), "code"))}  # fmt: skip


PAYING = distilled("a = await look(1)\n"
                   "b = await asyncio.gather(pay(5), look(2), pay(6), return_exceptions=True)\n"
                   "submit(report=' | '.join(str(one) for one in [a, *b]))")  # fmt: skip


class Case:
    """A program over a store, made anew as another process would make it."""

    def __init__(self, place: Path | str, mode: str, reply: Callable[[Any], Any], *, plan: dse.Plan | None = None,
                 **more: Any) -> None:  # fmt: skip
        self.ledger = Ledger()
        self.store = Store(place)
        self.model = ScriptedModel(reply)
        self.program = dse.Program(Settle, plan or PAYING.get(mode, mode), lm=self.model, deps=self.ledger, store=self.store,
                                   **more)  # fmt: skip

    def again(self, **more: Any) -> Case:
        return Case(self.store.url, self.program.plan.mode, self.model._player.script, plan=self.program.plan, **more)


def suspended(case: Case) -> str:
    with pytest.raises(RunSuspended) as caught:
        case.program(matter="x", pin="4711-secret")
    return str(caught.value.details["run_id"])


# --- approval


@pytest.mark.parametrize("mode", MODES)
def test_calls_that_need_a_decision_wait_in_the_store_and_are_decided_one_by_one(tmp_path: Path, mode: str) -> None:
    first = Case(tmp_path / "runs.db", mode, paying(mode))
    run_id = suspended(first)
    assert first.ledger.calls == [("look", 1), ("look", 2)], "what was under way has ended, what needs a decision has not begun"
    assert [run["outcome"] for run in first.store.runs()] == ["suspended"]
    waiting = first.store.pending(run_id)
    assert [(one["tool"], one["arguments"]) for one in waiting] == [("pay", {"amount": 5}), ("pay", {"amount": 6})]

    first.store.approve(run_id, waiting[0]["call_id"], arguments_hash=waiting[0]["arguments_hash"], by="ann")
    second = first.again()
    with pytest.raises(RunSuspended) as caught:
        second.program.resume(run_id)
    assert [one["arguments"] for one in caught.value.details["pending"]] == [{"amount": 6}]
    assert second.ledger.calls == [("pay", 5)] and not second.model.requests, "nothing again, and nothing paid for again"

    first.store.deny(run_id, waiting[1]["call_id"], arguments_hash=waiting[1]["arguments_hash"], by="bob", reason="too much")
    third = first.again()
    prediction = third.program.resume(run_id)
    assert third.ledger.calls == []
    assert "10" in prediction.report and "paid 5" in prediction.report and "20" in prediction.report
    assert "pay was denied: too much" in prediction.report, "the program hears of it, and goes on"
    receipt, entries = third.store.run(run_id)
    assert receipt is not None and receipt["outcome"] == "ok" and receipt["effects"].startswith("completed [pay#")
    decisions = [(e["granted"], e["by"], e["reason"]) for e in entries if e["kind"] == "approval"]
    assert sorted(decisions) == [(False, "bob", "too much"), (True, "ann", "")]
    assert all(dt.datetime.fromisoformat(e["at"]).tzinfo for e in entries if e["kind"] == "approval")
    assert receipt["usage"]["tool_calls"] == 4 and receipt["usage"]["calls_per_tool"] == {"look": 2, "pay": 2}
    with pytest.raises(RunNotResumable, match="over"):
        third.program.resume(run_id)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("snapshots", [True, False], ids=["snapshot", "replay"])
def test_a_suspended_run_ends_like_one_that_was_approved_at_once(tmp_path: Path, mode: str, snapshots: bool) -> None:
    calm = Case(tmp_path / "calm.db", mode, paying(mode), approve=lambda request: True)
    expected = calm.program(matter="x", pin="4711-secret")
    first = Case(tmp_path / "runs.db", mode, paying(mode))
    run_id = suspended(first)
    for one in first.store.pending():
        first.store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="ann")
    second = first.again()
    prediction = second.program.resume(run_id, snapshots=snapshots)
    assert prediction.outputs == expected.outputs and not [n for n in second.ledger.calls if n[0] == "look"]
    assert len(first.model.requests) + len(second.model.requests) == len(calm.model.requests)
    for name in ("model_calls", "tool_calls", "calls_per_tool", "input_tokens", "output_tokens"):
        assert prediction.receipt["usage"][name] == expected.receipt["usage"][name]
    assert prediction.receipt["effects"] == expected.receipt["effects"]
    assert [c["outcome"] for c in prediction.receipt["calls"]] == [c["outcome"] for c in expected.receipt["calls"]]


def test_a_decision_holds_for_the_arguments_that_were_shown_once_and_in_time(tmp_path: Path) -> None:
    case = Case(tmp_path / "runs.db", "code", paying("code"), approval_expires_s=3600.0)
    run_id = suspended(case)
    one, other = case.store.pending(run_id)
    with pytest.raises(DecisionRefused, match="other arguments"):
        case.store.approve(run_id, one["call_id"], arguments_hash=other["arguments_hash"], by="ann")
    with pytest.raises(DecisionRefused, match="No such call"):
        case.store.approve(run_id, 99, arguments_hash=one["arguments_hash"], by="ann")
    case.store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="ann")
    with pytest.raises(DecisionRefused, match="already"):
        case.store.deny(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="bob")

    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
    case.store.now = lambda: later  # type: ignore[method-assign]
    assert case.store.pending(run_id) == []
    with pytest.raises(DecisionRefused, match="too late"):
        case.store.approve(run_id, other["call_id"], arguments_hash=other["arguments_hash"], by="ann")
    prediction = case.program.resume(run_id)
    assert "paid 5" in prediction.report and "nobody decided in time" in prediction.report
    assert case.ledger.calls.count(("pay", 5)) == 1 and ("pay", 6) not in case.ledger.calls
    by = {e["by"] for e in case.store.run(run_id)[1] if e["kind"] == "approval"}
    assert by == {"ann", "expiry"}


def test_without_a_store_a_run_that_waits_is_over_and_says_what_is_missing() -> None:
    program = dse.Program(Settle, "code", lm=ScriptedModel(paying("code")), deps=Ledger())
    with pytest.raises(RunSuspended, match="store="):
        program(matter="x")
    with pytest.raises(StoreError, match="keeps no runs"):
        program.resume("anything")


def test_a_suspended_run_holds_no_worker_and_no_thread(tmp_path: Path) -> None:
    case = Case(tmp_path / "runs.db", "code", paying("code"))
    for _ in range(5):
        suspended(case)
    for _ in range(1_000):  # a session is closed behind the back of whoever waited for the run
        if sandbox.pool().threads_in_use == 0:
            break
        time.sleep(0.01)
    assert sandbox.pool().threads_in_use == 0
    assert len(case.store.runs(outcome="suspended")) == 5


# --- writes of which nobody knows


NOTING = {
    mode: script("a = await book(1)\nb = await note(7)\nsubmit(report=f'{a} {b}')") for mode in ("code", "script", "cascade")
} | {
    "tool_call": lambda request: rounds(call(("book", {"n": 1})), call(("note", {"n": 7})), submit(request))(request),
}
NOTED = distilled("a = await book(1)\nb = await note(7)\nsubmit(report=f'{a} {b}')")


def die_inside_a_write(place: str, mode: str) -> None:
    """What a process does that ends in the middle of `note`."""
    case = Case(place, mode, NOTING[mode], plan=NOTED.get(mode))
    case.ledger.break_at = "note"
    case.program(matter="x")


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of processes that ended inside a write, by mode."""
    folder = tmp_path_factory.mktemp("dead")
    for mode in MODES:
        work = f"from tests.test_resume import die_inside_a_write; die_inside_a_write({str(folder / mode)!r}, {mode!r})"
        ended = subprocess.run([sys.executable, "-c", work], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    return folder


def interrupted(tmp_path: Path, dead: Path, mode: str) -> tuple[Case, str]:
    """A run whose process ended inside `note`: its journal has an intent and no outcome."""
    tmp_path.mkdir(exist_ok=True)
    for file in dead.glob(f"{mode}*"):
        shutil.copy(file, tmp_path / file.name)
    case = Case(tmp_path / mode, mode, NOTING[mode], plan=NOTED.get(mode))
    (run,) = case.store.runs(outcome="lost")
    return case, run["run_id"]


@pytest.mark.parametrize("mode", MODES)
def test_a_write_of_which_nobody_knows_needs_a_decision(tmp_path: Path, dead: Path, mode: str) -> None:
    case, run_id = interrupted(tmp_path, dead, mode)
    with pytest.raises(EffectUnknown) as caught:
        case.program.resume(run_id)
    assert caught.value.details["unknown"] == [{"call_id": 2, "tool": "note", "arguments": {"n": 7}}]
    assert [run["outcome"] for run in case.store.runs()] == ["lost"], "a refused resume leaves it as it was"
    assert [run["run_id"] for run in case.store.runs(outcome="lost")] == [run_id] and not case.store.runs(outcome="running")
    before = list(case.ledger.calls)
    with pytest.raises(DecisionRefused, match="need no decision"):
        case.program.resume(run_id, decisions={1: dse.Decision("retry"), 2: dse.Decision("retry")})
    with pytest.raises(DecisionRefused, match="could not have returned"):
        case.program.resume(run_id, decisions={2: dse.Decision("done", 5)})
    with pytest.raises(DecisionRefused, match="No such decision"):
        dse.Decision("perhaps")  # type: ignore[arg-type]
    assert case.ledger.calls == before, "nothing was executed"
    prediction = case.program.resume(run_id, decisions={2: dse.Decision("done", "noted 7", by="ann")})
    assert "booked 1" in prediction.report and "noted 7" in prediction.report and case.ledger.calls == before
    assert prediction.receipt["effects"] == "completed [book#1, note#2]"


@pytest.mark.parametrize("mode", MODES)
def test_a_write_may_be_tried_again_or_given_up(tmp_path: Path, dead: Path, mode: str) -> None:
    case, run_id = interrupted(tmp_path / "retry", dead, mode)
    before = len(case.ledger.calls)
    prediction = case.program.resume(run_id, decisions={2: dse.Decision("retry", by="ann")})
    assert case.ledger.calls[before:] == [("note", 7)] and "noted 7" in prediction.report

    case, run_id = interrupted(tmp_path / "fail", dead, mode)
    before = len(case.ledger.calls)
    outcome: Any
    try:
        outcome = case.program.resume(run_id, decisions={2: dse.Decision("fail", reason="the bank says no", by="ann")})
        receipt = outcome.receipt
    except (dse.DseError, IndexError) as error:  # a script without a handler fails, and the script has no second reply
        receipt = case.store.run(run_id)[0]
        outcome = error
    assert case.ledger.calls[before:] == []
    entries = case.store.run(run_id)[1]
    assert [e["action"] for e in entries if e["kind"] == "decision"] == ["fail"]
    assert "the bank says no" in next(e["message"] for e in reversed(entries) if e["kind"] == "tool_outcome" and e["call_id"] == 2)
    assert receipt is not None and "unknown [note#2]" in receipt["effects"]


def test_an_idempotent_write_is_tried_again_with_the_same_key(tmp_path: Path) -> None:
    def down(request: Any) -> Any:
        if down.up:  # type: ignore[attr-defined]
            return call(("submit", {"report": "done"}))
        return ModelUnavailable("down")

    down.up = False  # type: ignore[attr-defined]
    case = Case(tmp_path / "runs.db", "tool_call",
                lambda request: down(request) if any(m["role"] == "tool" for m in request["messages"])
                else call(("book", {"n": 1}), ("book", {"n": 1}), ("book", {"n": 2})))  # fmt: skip
    with pytest.raises(ModelUnavailable) as caught:
        case.program(matter="x")
    keys = list(case.ledger.keys)
    assert len(set(keys)) == 3, "equal calls of one run are told apart"
    down.up = True  # type: ignore[attr-defined]
    run_id = caught.value.details["run_id"]
    assert [run["outcome"] for run in case.store.runs()] == ["infrastructure"]
    prediction = case.program.resume(run_id)
    assert prediction.report == "done" and case.ledger.keys == keys
    assert prediction.receipt["usage"]["model_calls"] == 2 and len(case.model.requests) == 3


def test_a_model_is_shown_a_recorded_result_as_it_was_shown_before(tmp_path: Path) -> None:
    @dse.tool(effect="read")
    async def stock(item: str) -> dict[str, int]:
        """Stock of an item, largest place first."""
        return {"zebra": 3, "apple": 2, "mango": 1}

    class Count(dse.Signature):
        """Count."""

        item: str = dse.InputField()
        report: str = dse.OutputField()
        tools = [stock]

    up: list[int] = []

    def reply(request: Any) -> Any:
        if not any(message["role"] == "tool" for message in request["messages"]):
            return call(("stock", {"item": "x"}))
        return call(("submit", {"report": request["messages"][-1]["content"]})) if up else ModelUnavailable("down")

    program = dse.Program(Count, "tool_call", lm=ScriptedModel(reply), store=tmp_path / "runs.db")
    with pytest.raises(ModelUnavailable) as caught:
        program(item="x")
    up.append(1)
    assert program.resume(caught.value.details["run_id"]).report == '{"zebra": 3, "apple": 2, "mango": 1}'


def test_keys_do_not_depend_on_where_a_run_was_interrupted(tmp_path: Path) -> None:
    """A call of a script, then the same call by itself: with and without going on in between."""

    class Both(dse.Signature):
        """Book."""

        matter: str = dse.InputField()
        report: str = dse.OutputField()
        tools = [book, dse.script_tool([book])]

    first, second = call(("run_script", {"code": "await book(1)"})), call(("book", {"n": 1}))
    keys = []
    for interrupted in (False, True):
        downs = [ModelUnavailable("down")] if interrupted else []

        def reply(request: Any, downs: list[Any] = downs) -> Any:
            said = sum(message["role"] == "assistant" for message in request["messages"])
            return downs.pop() if said == 1 and downs else (first, second, call(("submit", {"report": "done"})))[said]

        ledger = Ledger()
        program = dse.Program(Both, "tool_call", lm=ScriptedModel(reply), deps=ledger, store=tmp_path / f"{interrupted}.db")
        run = program.new_run({"matter": "x"}, run_id="the same")
        if interrupted:
            with pytest.raises(ModelUnavailable):
                asyncio.run(program.execute(run))
            program.resume("the same")
        else:
            asyncio.run(program.execute(run))
        keys.append(ledger.keys)
    assert keys[0] == keys[1] and len(set(keys[0])) == 2


def test_a_denied_call_counts_also_after_going_on_from_a_snapshot(tmp_path: Path) -> None:
    reply = script("try:\n    await pay(1)\nexcept PermissionError:\n    print('no')", "b = await look(2)\nprint(b)",
                   "c = await pay(5)\nsubmit(report=c)")  # fmt: skip
    case = Case(tmp_path / "runs.db", "code", reply)
    run_id = suspended(case)
    for decide in (case.store.deny, case.store.approve):
        (one,) = case.store.pending(run_id)
        decide(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="ann")
        case = case.again()
        try:
            prediction = case.program.resume(run_id)
        except RunSuspended:
            continue
    assert prediction.report == "paid 5"
    assert prediction.receipt["usage"]["calls_per_tool"] == {"look": 1, "pay": 2} and prediction.receipt["usage"]["tool_calls"] == 3
    denied, _, paid = prediction.receipt["calls"]
    assert (denied["outcome"], denied["arguments"], paid["arguments"]) == ("refused", {"amount": 1}, {"amount": 5})
    assert denied["arguments_hash"] and denied["arguments_hash"] != paid["arguments_hash"]


def test_a_retry_repeats_idempotent_writes_with_their_keys(tmp_path: Path) -> None:
    tries: list[int] = []

    def reply(request: Any) -> Any:
        said = sum(message["role"] == "assistant" for message in request["messages"])
        if said == 0:
            tries.append(1)
        return call(("book", {"n": said})) if len(tries) == 1 or said < 2 else call(("submit", {"report": "done"}))

    limits = dse.Limits(tool_calls=2, outcomes={"tool_calls": "retry"})
    ledger = Ledger()
    program = dse.Program(Settle, seed_plan(Settle.spec(), "tool_call", limits=limits), lm=ScriptedModel(reply), deps=ledger,
                          store=tmp_path / "runs.db")  # fmt: skip
    prediction = program(matter="x")
    assert prediction.receipt["attempts"] == 2 and ledger.calls == [("book", 0), ("book", 1)] * 2
    assert ledger.keys[:2] == ledger.keys[2:], "the same call of a second attempt has the same key"
    assert program.replay(prediction.receipt["run_id"]).outputs == prediction.outputs


# --- who has a run


def test_a_run_that_is_on_cannot_be_taken_and_nothing_is_lost(tmp_path: Path) -> None:
    case = Case(tmp_path / "runs.db", "tool_call", lambda request: rounds(call(("note", {"n": 1})), submit(request))(request))

    async def both() -> None:
        run = case.program.new_run({"matter": "x"})
        begun, go = asyncio.Event(), asyncio.Event()

        async def wait(call: Any, proceed: Any) -> Any:
            begun.set()
            await go.wait()
            return await proceed(call)

        held = dse.Program(Settle, "tool_call", lm=case.model, deps=case.ledger, store=case.store, middleware=[wait])
        task = asyncio.create_task(held.execute(run))
        await begun.wait()
        with pytest.raises(RunTaken, match="lives"):
            await case.program.aresume(run.run_id)
        go.set()
        assert (await task).report == "noted 1"

    asyncio.run(both())
    assert case.ledger.calls == [("note", 1)]


def test_a_resume_that_fails_before_it_began_leaves_the_run_for_the_next_one(tmp_path: Path) -> None:
    """Without what its tools need, cancelled while the store is asked, or on another path: it is not this process's for good."""
    first = Case(tmp_path / "runs.db", "code", paying("code"))
    run_id = suspended(first)
    for one in first.store.pending(run_id):
        first.store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="ann")
    bare = dse.Program(Settle, "code", lm=first.model, store=first.store)
    with pytest.raises(dse.DseError, match="deps"):
        bare.resume(run_id)

    async def cancelled() -> None:
        going = asyncio.ensure_future(first.again().program.aresume(run_id))
        for _ in range(3):  # as far as the store's thread
            await asyncio.sleep(0)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going

    asyncio.run(cancelled())
    assert [run["outcome"] for run in first.store.runs()] == ["suspended"]
    assert "paid 5" in first.again().program.resume(run_id).report


@pytest.mark.parametrize("snapshots", [True, False], ids=["snapshot", "replay"])
def test_a_script_that_ran_out_of_time_in_a_call_is_followed_past_it(tmp_path: Path, snapshots: bool) -> None:
    @dse.tool(effect="read")
    async def wait_long(n: int) -> int:
        """Wait."""
        await asyncio.sleep(3600)
        return n

    class Slow(dse.Signature):
        """Wait, then pay."""

        matter: str = dse.InputField()
        report: str = dse.OutputField()
        tools = [pay, wait_long, dse.script_tool([wait_long], limits={"active_s": 5.0})]

    reply = rounds(call(("run_script", {"code": "a = await wait_long(1)\na"})), call(("pay", {"amount": 1})), call(("submit", {"report": "done"})))
    program = dse.Program(Slow, "tool_call", lm=ScriptedModel(reply), deps=Ledger(), store=tmp_path / "runs.db")
    with pytest.raises(RunSuspended) as caught:
        program(matter="x")
    run_id = str(caught.value.details["run_id"])
    (one,) = program.store.pending(run_id)  # type: ignore[union-attr]
    program.store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="ann")  # type: ignore[union-attr]
    prediction = program.resume(run_id, snapshots=snapshots)
    assert prediction.report == "done"
    assert [c["outcome"] for c in prediction.receipt["calls"]] == ["fault", "cancelled", "ok"], prediction.receipt["calls"]
    assert program.replay(run_id).receipt["calls"] == prediction.receipt["calls"]


def test_a_run_belongs_to_its_program(tmp_path: Path) -> None:
    case = Case(tmp_path / "runs.db", "code", paying("code"))
    run_id = suspended(case)
    other = Case(tmp_path / "runs.db", "tool_call", paying("tool_call"))
    with pytest.raises(RunNotResumable, match="another program"):
        other.program.resume(run_id)
    with pytest.raises(RunNotResumable, match="no such run"):
        case.program.resume("nothing")
    assert [run["outcome"] for run in case.store.runs()] == ["suspended"]


# --- guests


CODE = script("import random\nfrom decimal import Decimal\nheap = [{'n': i, 'd': Decimal(i)} for i in range(50)]\nprint(random.random())",
              "a = await look(3)\nprint(len(heap), heap[7], random.random())",
              "b = await asyncio.gather(pay(1), look(4))\nprint(b)\nsubmit(report=f'{a} {b} {len(heap)} {random.random()}')")  # fmt: skip


@pytest.mark.parametrize("snapshots", [True, False], ids=["snapshot", "replay"])
def test_a_guest_goes_on_with_its_variables_and_its_random_numbers(tmp_path: Path, snapshots: bool) -> None:
    calm = Case(tmp_path / "calm.db", "code", CODE, approve=lambda request: True)
    run = calm.program.new_run({"matter": "x"}, seed=5)
    expected = asyncio.run(calm.program.execute(run))
    case = Case(tmp_path / "runs.db", "code", CODE)
    with pytest.raises(RunSuspended) as caught:
        asyncio.run(case.program.execute(case.program.new_run({"matter": "x"}, seed=5)))
    run_id = caught.value.details["run_id"]
    (one,) = case.store.pending()
    case.store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="ann")
    fed: list[str] = []
    original = sandbox.Session.feed

    async def watched(self: Any, code: str, **more: Any) -> Any:
        fed.append(code)
        return await original(self, code, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox.Session, "feed", watched)
        prediction = case.again().program.resume(run_id, snapshots=snapshots)
    assert prediction.outputs == expected.outputs and len(fed) == (0 if snapshots else 3)
    assert prediction.receipt["usage"]["tool_calls"] == expected.receipt["usage"]["tool_calls"]


def test_a_journal_of_another_interpreter_is_resumed_by_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path / "runs.db", "code", CODE)
    run_id = suspended(case)
    (one,) = case.store.pending()
    case.store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="ann")
    monkeypatch.setattr(sandbox, "interpreter_version", lambda: "99.0")
    loaded: list[int] = []
    monkeypatch.setattr(sandbox.Sandbox, "thaw", lambda *a, **k: loaded.append(1))
    assert case.again().program.resume(run_id).report.startswith("30 ['paid 1', 40] 50")
    assert not loaded


def test_a_worker_that_dies_costs_nothing_but_time(tmp_path: Path) -> None:
    expected = Case(tmp_path / "calm.db", "code", paying("code"), approve=lambda request: True).program(matter="x")
    for store in (None, tmp_path / "runs.db"):
        reaper = chaos.Reaper(at=2)
        ledger, model = Ledger(), ScriptedModel(paying("code"))
        program = dse.Program(Settle, "code", lm=model, deps=ledger, store=store, approve=lambda request: True)
        with pytest.MonkeyPatch.context() as patch:
            resume = sandbox.Session.resume

            async def struck(self: Any, results: Any, resume: Any = resume, reaper: Any = reaper) -> Any:
                reaper.point(self._pid)
                return await resume(self, results)

            patch.setattr(sandbox.Session, "resume", struck)
            prediction = program(matter="x")
        assert prediction.outputs == expected.outputs and reaper.seen >= 2
        assert sorted(ledger.calls) == [("look", 1), ("look", 2), ("pay", 5), ("pay", 6)]
        assert len(model.requests) == 2 and prediction.receipt["usage"]["model_calls"] == 2


def test_a_worker_that_dies_while_its_guest_prints_costs_nothing_but_time(tmp_path: Path) -> None:
    source = "for i in range(40_000):\n    print(i)\nsubmit(report='printed')"
    for store in (None, tmp_path / "runs.db"):
        reaper, sessions = chaos.Reaper(at=5), []  # prints come in pieces of some kilobytes
        program = dse.Program(Settle, "code", lm=ScriptedModel(script(source)), deps=Ledger(), store=store)
        with pytest.MonkeyPatch.context() as patch:
            opened, write = sandbox.Sandbox.session, crossing.Prints.write
            def session(*args: Any, opened: Any = opened, sessions: Any = sessions, **more: Any) -> Any:
                sessions.append(opened(*args, **more))
                return sessions[-1]

            patch.setattr(sandbox.Sandbox, "session", session)

            def struck(self: Any, *text: str, write: Any = write, reaper: Any = reaper, sessions: Any = sessions) -> None:
                write(self, *text)
                reaper.point(sessions[0]._pid)

            patch.setattr(crossing.Prints, "write", struck)
            made = program(matter="x")
        assert made.report == "printed" and reaper.seen > 10 and len(sessions) == 2
        if store is not None:
            kinds = [entry["kind"] for entry in program.store.run(made.receipt["run_id"])[1]]
            assert kinds.count("print") == 1 and "resumed" in kinds
            assert program.replay(made.receipt["run_id"]).report == "printed"


# --- audits and forks


@pytest.mark.parametrize("mode", MODES)
def test_a_finished_run_is_replayed_without_model_tools_or_a_trace(tmp_path: Path, mode: str) -> None:
    case = Case(tmp_path / "runs.db", mode, paying(mode), approve=lambda request: request.arguments["amount"] < 6)
    made = case.program(matter="x", pin="4711-secret")
    run_id = made.receipt["run_id"]
    again = Case(tmp_path / "runs.db", mode, lambda request: pytest.fail("a replay asks no model"))
    replayed = again.program.replay(run_id)
    assert replayed.outputs == made.outputs and again.ledger.calls == []
    assert replayed.receipt["transcript_hash"] == made.receipt["transcript_hash"]
    assert replayed.receipt["effects"] == made.receipt["effects"] and again.store.run(run_id)[0] == made.receipt
    assert len(again.store.runs()) == 1


def test_a_failed_run_is_replayed_to_its_failure(tmp_path: Path) -> None:
    for name, limits in {"calls": dse.Limits(tool_calls=2), "time": dse.Limits(active_s=0.2)}.items():
        plan = seed_plan(Settle.spec(), "tool_call", limits=limits)

        async def reply(request: Any, name: str = name) -> Any:
            if name == "time" and len(request["messages"]) > 4:
                await asyncio.Event().wait()
            return call(("look", {"n": 1}))

        program = dse.Program(Settle, plan, lm=ScriptedModel(reply), deps=Ledger(), store=tmp_path / f"{name}.db")
        with pytest.raises(LimitExceeded) as caught:
            program(matter="x")
        with pytest.raises(LimitExceeded) as again:
            program.replay(caught.value.details["run_id"])
        assert again.value.details["limit"] == caught.value.details["limit"]
        hashes = {one.value.details["receipt"]["transcript_hash"] for one in (caught, again)}
        assert len(hashes) == 1


def test_a_program_that_takes_another_path_is_noticed(tmp_path: Path) -> None:
    case = Case(tmp_path / "runs.db", "code", CODE)
    run_id = suspended(case)
    with pytest.raises(RunNotResumable, match="finished"):
        case.program.replay(run_id)
    (one,) = case.store.pending()
    case.store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="ann")
    other = case.again()

    class Politer(Predictor):
        def messages(self, inputs: Any) -> Any:
            return [*super().messages(inputs), {"role": "user", "content": "Please."}]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dse.strategies.code.Predictor", Politer)
        with pytest.raises(ReplayDiverged, match="another request"):
            other.program.resume(run_id)
    assert other.ledger.calls == []
    assert case.again().program.resume(run_id).report


@pytest.mark.parametrize("mode", MODES)
def test_a_fork_explores_what_another_result_would_have_led_to(tmp_path: Path, mode: str) -> None:
    case = Case(tmp_path / "runs.db", mode, paying(mode), approve=lambda request: True)
    made = case.program(matter="x", pin="4711-secret")
    run_id, before = made.receipt["run_id"], list(case.ledger.calls)
    forked = case.program.fork(run_id, 1, value=77)
    assert forked != run_id and case.ledger.calls == before
    prediction = case.program.resume(forked)
    assert "77" in prediction.report and "10" not in prediction.report.replace("100", "")
    assert case.store.run(run_id)[0] == made.receipt, "the run itself stays as it was"
    failed = case.program.fork(run_id, 3, error="the ledger is closed")
    assert "the ledger is closed" in case.program.resume(failed).report
    with pytest.raises(DecisionRefused, match="could not have returned"):
        case.program.fork(run_id, 1, value="not a number")
    with pytest.raises(DecisionRefused, match="no call of this number"):
        case.program.fork(run_id, 99, value=1)


# --- secrets


def test_what_is_sensitive_is_hidden_wherever_a_kept_run_is_shown(tmp_path: Path) -> None:
    case = Case(tmp_path / "runs.db", "code", paying("code"))
    run_id = suspended(case)
    shown = repr((case.store.run(run_id), case.store.pending(), case.store.runs()))
    assert "4711-secret" not in shown and "[redacted]" in shown


# --- kills


def test_killed_anywhere_a_run_ends_as_if_nothing_had_happened() -> None:
    """In a process of its own, because it forks: a sample of what ``make chaos`` does."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.chaos", "--kills", "30"], cwd=Path(__file__).parent.parent,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and " 0 wrong" in done.stdout, done.stdout + done.stderr
    assert int(done.stdout.splitlines()[-1].split()[0]) >= 30
