"""Faults from outside: a model endpoint that misbehaves at a known rate, and what runs, evaluations and compiles make of it.

The faults are seeded and decided per request, so that two servers of one seed do the same to the same questions.
Nothing here waits for real, but for the short declared timeout that ends a silent connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import anyio
import pytest

import dse
from benchmarks import outside
from dse.compiler.budget import BudgetedModel
from dse.compiler.compile import Rows
from dse.errors import BudgetExhausted, DseError, InfrastructureError, ModelError, ModelUnavailable, RunFailed
from dse.evaluation.evaluator import Evaluator, RolloutRecord
from dse.models.lm import Request, RetryingModel, resolve_model
from dse.store.cassette import RecordModel
from dse.store.journal import Store, opened
from dse.strategies.base import seed_plan
from dse.testing.faults import OUTSIDE, REPLIES, Faults, answers
from dse.testing.scripted import ScriptedModel, call, say
from dse.testing.server import FakeOpenAI, register_loopback_provider, unregister_loopback_provider
from dse.testing.worlds import NAME, PRICES, AskWarehouse, PlantedWorld, Warehouse

MODES = ("direct", "tool_call", "code")
WORLD = PlantedWorld({"direct": 1.0, "tool_call": 1.0, "code": 1.0}, clusters=60, writes=0.0)
ROWS = WORLD.rows()
SPEC = AskWarehouse.spec()
PLANS = {mode: seed_plan(SPEC, mode) for mode in MODES}
QUICK = PlantedWorld({"direct": 1.0, "tool_call": 0.25}, clusters=30, writes=0.0)  # direct is the better program
WORSE = PlantedWorld({"direct": 0.2, "tool_call": 1.0}, clusters=30, writes=0.0)  # the baseline is
QUICK_MODES = {"modes": ["direct", "tool_call"]}
LOOPBACK_PRICES = dse.PriceTable("loopback", "2026-01-01", {"loopback/model": (1.0, 4.0)})
SILENT = ("hang", "stall")
LOUD = tuple(kind for kind in OUTSIDE if kind not in SILENT)


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # a proxy in the environment must not see loopback traffic
    yield
    unregister_loopback_provider("loopback")


class Waits(list[float]):
    """Stands in for sleeping."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await anyio.lowlevel.checkpoint()


class Asleep:
    """A sleep that never ends by itself."""

    def __init__(self) -> None:
        self.begun = threading.Event()  # for other threads
        self.here: asyncio.Event = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.begun.set()
        self.here.set()
        await anyio.sleep_forever()


def served(faults: Faults | None, world: PlantedWorld = WORLD) -> FakeOpenAI:
    return FakeOpenAI(answers(world.reply), faults=faults)


def model_of(server: FakeOpenAI, *, timeout: float = 2.0, **params: Any) -> Any:
    register_loopback_provider("loopback", server.base_url)
    return resolve_model("loopback/model", params={"timeout": timeout, **params})


def world_of(row: Mapping[str, Any]) -> Warehouse:
    return Warehouse(row["request"].removeprefix("How many pieces of ").removesuffix(" are left?"))


async def outcome(program: dse.Program, row: Mapping[str, Any]) -> Any:
    """``right``, ``wrong`` or the error of one run."""
    try:
        done = await program.acall(request=row["request"], deps=world_of(row))
    except DseError as exc:
        return exc
    return "right" if done.left == row["left"] else "wrong"


def with_model(faults: Faults | None, main: Callable[[Any, FakeOpenAI], Awaitable[Any]], **options: Any) -> Any:
    """``await main(model, server)`` with a live model; it ends, whatever the endpoint does."""
    world = options.pop("world", WORLD)

    async def run(server: FakeOpenAI) -> Any:
        model = model_of(server, **options)
        try:
            return await asyncio.wait_for(main(model, server), timeout=120)
        finally:
            await model.aclose()

    with served(faults, world) as server:
        return asyncio.run(run(server))


# ---- the server -------------------------------------------------------------------------------------------


def test_faults_are_the_same_for_the_same_seed_in_any_order() -> None:
    bodies = [{"messages": [{"role": "user", "content": str(i)}]} for i in range(2_000)]
    faults = Faults(seed=3)
    kinds = [faults.kind(body, 0) for body in bodies]
    assert kinds == [Faults(seed=3).kind(body, 0) for body in reversed(bodies)][::-1]
    assert kinds != [Faults(seed=4).kind(body, 0) for body in bodies] != [faults.kind(body, 1) for body in bodies]
    counts = Counter(kinds)
    assert set(counts) == {None, *OUTSIDE}
    assert 0.27 < 1 - counts[None] / len(bodies) < 0.33, "the rate"
    assert Faults(0.0).kind(bodies[0], 0) is None and Faults(1.0, ["cut"]).kind(bodies[0], 0) == "cut"
    assert Faults(1.0, only=lambda body: False).kind(bodies[0], 0) is None


@pytest.mark.parametrize("wrong", [{"rate": 1.5}, {"kinds": ["418"]}, {"kinds": []}])
def test_faults_that_do_not_exist_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="do not exist"):
        Faults(**wrong)


@pytest.mark.parametrize("mode", MODES)
def test_the_honest_server_says_what_the_script_says(mode: str) -> None:
    async def main(model: Any, server: FakeOpenAI) -> None:
        live = await dse.Program(AskWarehouse, mode, lm=model).acall(request=ROWS[0]["request"], deps=world_of(ROWS[0]))
        scripted = dse.Program(AskWarehouse, mode, lm=WORLD.model())
        there = await scripted.acall(request=ROWS[0]["request"], deps=world_of(ROWS[0]))
        assert live.left == there.left == ROWS[0]["left"]
        assert [c["tool"] for c in live.receipt["calls"]] == [c["tool"] for c in there.receipt["calls"]]
        assert server.kinds == [None] * live.receipt["usage"]["model_calls"]

    with_model(None, main)


# ---- one kind alone ---------------------------------------------------------------------------------------

KIND_OF = {
    "429": "rate_limit", "429-seconds": "rate_limit", "429-date": "rate_limit", "500": "server", "502": "server",
    "503": "server", "hang": "timeout", "stall": "timeout", "drop": "transport", "cut": "transport",
    "malformed": "malformed", "truncated": "malformed", "error-in-200": "server", "no-choices": "empty", "empty": "empty",
}  # fmt: skip


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_fault_of_the_endpoint_is_nobodys_failure_in_every_mode(kind: str) -> None:
    async def main(model: Any, server: FakeOpenAI) -> None:
        for number, mode in enumerate(MODES, 1):
            error = await outcome(dse.Program(AskWarehouse, mode, lm=model), ROWS[0])
            assert isinstance(error, ModelUnavailable) and not isinstance(error, RunFailed)
            assert error.details["kind"] == KIND_OF[kind]
            assert error.details["receipt"]["outcome"] == "infrastructure"
            assert error.details["receipt"]["usage"]["model_calls"] == 1
            assert (error.code, server.count) == ("DSE401", number), "asked once: retries are declared"
            asked = error.details.get("retry_after_s")
            if kind in ("429-seconds", "503"):
                assert asked == 2.0
            elif kind == "429-date":
                assert asked is not None and 0 <= asked <= 2.0
            else:
                assert asked is None

    with_model(Faults(1.0, [kind]), main, timeout=0.2)


@pytest.mark.parametrize("kind", REPLIES)
def test_a_bad_reply_of_the_model_is_the_candidates_failure_in_every_mode(kind: str) -> None:
    async def main(model: Any, server: FakeOpenAI) -> None:
        for mode in MODES:
            error = await outcome(dse.Program(AskWarehouse, mode, lm=model), ROWS[0])
            assert isinstance(error, RunFailed), error
            endless = (kind, mode) == ("unknown-tool", "tool_call")  # refused calls are rounds, and rounds are bounded
            assert type(error).__name__ == ("LimitExceeded" if endless else "OutputInvalid")
            receipt = error.details["receipt"]
            assert receipt["outcome"] == "failed" and receipt["effects"] == "none"
            assert not [call for call in receipt["calls"] if call["outcome"] == "ok"], "nothing ran on foreign arguments"

    with_model(Faults(1.0, [kind]), main)


# ---- a third of the requests ------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [1, 4])
@pytest.mark.parametrize("mode", MODES)
def test_many_runs_at_once_are_right_or_fail_for_outside_reasons(mode: str, attempts: int) -> None:
    waits, asked = Waits(), Counter[int]()

    async def count(request: Request, attempt: int) -> None:
        asked[attempt] += 1

    async def main(model: Any, server: FakeOpenAI) -> list[Any]:
        patient = RetryingModel(model, attempts=attempts, before_attempt=count, sleep=waits)
        program, receipts = dse.Program(AskWarehouse, mode, lm=patient), []

        async def one(row: Mapping[str, Any]) -> Any:
            try:
                done = await program.acall(request=row["request"], deps=world_of(row))
            except ModelUnavailable as exc:
                receipts.append(exc.details["receipt"])
                return exc
            receipts.append(done.receipt)
            assert done.left == row["left"]
            return "right"

        found = await asyncio.gather(*(one(row) for row in ROWS))
        calls = sum(receipt["usage"]["model_calls"] for receipt in receipts)
        assert calls == asked[1] and len(waits) == asked.total() - asked[1]
        assert server.count <= calls + len(waits), "no request that nobody accounts for"
        assert {r["outcome"] for r in receipts} <= {"ok", "infrastructure"}
        assert len({kind for kind in server.kinds if kind}) >= 8
        return found

    found = with_model(Faults(seed=11), main, timeout=1.0)
    right = found.count("right")
    assert len(found) == 60
    if attempts == 1:
        assert 5 < right < 55
    else:
        assert right >= 55


def test_all_faces_give_the_same() -> None:
    """Each of them meets the same faults: the same runs end the same way."""
    rows = ROWS[:12]

    def described(result: Any) -> Any:
        return (type(result).__name__, result.details["kind"]) if isinstance(result, DseError) else result.left

    def caught(program: dse.Program, run: Callable[..., Any]) -> list[Any]:
        found = []
        for row in rows:
            try:
                found.append(described(run(program, request=row["request"], deps=world_of(row))))
            except InfrastructureError as exc:
                found.append(described(exc))
        return found

    def streamed(program: dse.Program, **given: Any) -> Any:
        last = list(program.stream(**given))[-1]
        return last["prediction"] if last["kind"] == "result" else last["error"]

    async def astreamed(program: dse.Program, **given: Any) -> Any:
        last = [event async for event in program.astream(**given)][-1]
        return last["prediction"] if last["kind"] == "result" else last["error"]

    faces: dict[str, Callable[..., Any]] = {
        "call": lambda program, **given: program(**given),
        "start": lambda program, **given: program.start(**given).result(),
        "stream": streamed,
        "acall": lambda program, **given: asyncio.run(program.acall(**given)),
        "astream": lambda program, **given: asyncio.run(astreamed(program, **given)),
    }
    found = {}
    for name, face in faces.items():
        with served(Faults(kinds=LOUD, seed=5)) as server:
            patient = RetryingModel(model_of(server), attempts=2, sleep=Waits())
            found[name] = caught(dse.Program(AskWarehouse, "tool_call", lm=patient), face)
    assert len({str(value) for value in found.values()}) == 1, found
    assert {type(value) for value in found["call"]} == {int, tuple}, "some are right, some fail"


# ---- patience has bounds ----------------------------------------------------------------------------------


def test_retry_after_is_waited_for_in_seconds_and_as_a_date() -> None:
    for kind, low in (("429-seconds", 2.0), ("429-date", 0.0), ("503", 2.0)):
        waits = Waits()

        async def main(model: Any, server: FakeOpenAI, waits: Waits = waits) -> Any:
            return await outcome(dse.Program(AskWarehouse, "direct", lm=RetryingModel(model, 3, 0.0, sleep=waits)), ROWS[0])

        assert isinstance(with_model(Faults(1.0, [kind]), main), ModelUnavailable)
        assert len(waits) == 2 and all(low <= wait <= 2.0 for wait in waits), waits


def test_an_endpoint_that_asks_for_nonsense_is_waited_for_as_usual() -> None:
    for nonsense in (float("nan"), float("inf"), -5.0, "soon", True, None):
        waits = Waits()
        model = RetryingModel(ScriptedModel([ModelUnavailable("", retry_after_s=nonsense), say("x")]), sleep=waits, base_s=1.0)
        assert asyncio.run(model.complete({"messages": [{"role": "user", "content": "?"}]})).text == "x"
        assert len(waits) == 1 and 0.5 <= waits[0] < 1.0


@pytest.mark.parametrize("mode", MODES)
def test_a_wait_beyond_the_active_time_is_not_begun(mode: str) -> None:
    waits = Waits()
    plan = seed_plan(SPEC, mode, limits=dse.Limits(active_s=1.5))

    async def main(model: Any, server: FakeOpenAI) -> None:
        error = await outcome(dse.Program(AskWarehouse, plan, lm=RetryingModel(model, sleep=waits)), ROWS[0])
        assert isinstance(error, ModelUnavailable), "an outage, not a limit that the program reached"
        assert error.details["wait_s"] == 2.0 and 0 < error.details["time_left_s"] <= 1.5
        assert (waits, server.count, error.details["attempts"]) == ([], 1, 1)

    with_model(Faults(1.0, ["429-seconds"]), main)


def test_the_callers_own_time_limit_bounds_a_wait_as_well() -> None:
    async def main() -> None:
        waits = Waits()
        model = RetryingModel(ScriptedModel(lambda request: ModelUnavailable("", retry_after_s=50.0)), sleep=waits)
        program = dse.Program(AskWarehouse, "direct", lm=model)
        with anyio.fail_after(40), pytest.raises(ModelUnavailable):
            await program.acall(request=ROWS[0]["request"])
        with anyio.fail_after(60), pytest.raises(ModelUnavailable):
            await program.acall(request=ROWS[0]["request"])
        assert waits == [50.0] * 3

    anyio.run(main)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("layer", ["patient model", "evaluator"])
def test_waits_end_where_the_minutes_of_the_budget_do(layer: str) -> None:
    clock = Clock()
    budgeted = BudgetedModel(ScriptedModel(lambda request: ModelUnavailable("busy", retry_after_s=20.0)), dse.Budget(minutes=1),
                             clock=clock)  # fmt: skip

    async def main() -> None:
        if layer == "evaluator":
            evaluator = Evaluator(WORLD.task(), budgeted, sleep=clock.sleep, before_pause=budgeted.before_wait)
        else:
            patient = RetryingModel(budgeted.inner, 8, sleep=clock.sleep).over(budgeted, budgeted.before_wait)
            evaluator = Evaluator(WORLD.task(), patient)
        await evaluator.evaluate({"d": PLANS["direct"]}, WORLD.dataset().split("select")[:1])

    with pytest.raises(BudgetExhausted, match="wait of 20 s") as caught:
        anyio.run(main)
    assert caught.value.code == "DSE320" and clock.now == 1_040.0, "the third wait would have ended with the minutes"
    assert budgeted.calls == 3


def test_a_silent_endpoint_ends_with_the_minutes_of_the_budget(tmp_path: Path) -> None:
    with served(Faults(1.0, ["hang"]), QUICK) as server, pytest.raises(BudgetExhausted, match="minutes") as caught:
        dse.compile(QUICK.task(**QUICK_MODES), lm=model_of(server, timeout=600), registry=tmp_path, concurrency=2,
                    budget=dse.Budget(minutes=0.01))  # fmt: skip
    assert caught.value.details["spent"]["model_calls"] == server.count == 2


def test_a_patient_model_stays_within_the_budget_of_model_calls(tmp_path: Path) -> None:
    with served(Faults(1.0, LOUD), QUICK) as server, pytest.raises(BudgetExhausted) as caught:
        dse.compile(QUICK.task(**QUICK_MODES), lm=RetryingModel(model_of(server), 50, sleep=Waits()), registry=tmp_path,
                    concurrency=3, budget=dse.Budget(model_calls=25))  # fmt: skip
    assert server.count == caught.value.details["spent"]["model_calls"] == 25


@pytest.mark.parametrize("kind", ["hang", "empty", "500"])
def test_retries_stay_within_the_money(tmp_path: Path, kind: str) -> None:
    """A request that nobody answers may have been paid for, an empty answer was, a refusal was not."""
    budget = dse.Budget(usd=0.0072, model_calls=70)
    with served(Faults(1.0, [kind]), QUICK) as server, pytest.raises(BudgetExhausted) as caught:
        patience = 0.1 if kind == "hang" else 30.0  # a slow machine must not make a refusal a request that nobody answered
        model = RetryingModel(model_of(server, timeout=patience, max_tokens=100), 100, sleep=Waits())
        dse.compile(QUICK.task(modes=["direct"]), lm=model, registry=tmp_path, concurrency=1, budget=budget, prices=LOOPBACK_PRICES)
    spent = caught.value.details["spent"]
    assert spent["usd"] <= 0.0072 and spent["model_calls"] == server.count
    # A request costs at most 205 tokens asked and 100 answered; an empty answer reports 100 and 20.
    most = {"hang": 0.000605, "empty": 0.00018, "500": 0.0}[kind]
    assert spent["usd"] == pytest.approx(server.count * most)
    assert "70 model_calls" in str(caught.value) if kind == "500" else "0.0072 usd" in str(caught.value)


# ---- cancelling -------------------------------------------------------------------------------------------


def waiting_program(asleep: Asleep) -> dse.Program:
    model = RetryingModel(ScriptedModel(lambda request: ModelUnavailable("down", retry_after_s=100.0)), sleep=asleep)
    return dse.Program(AskWarehouse, "direct", lm=model)


def test_a_run_that_waits_is_cancelled_at_once_in_the_background() -> None:
    asleep = Asleep()
    handle = waiting_program(asleep).start(request=ROWS[0]["request"])
    assert asleep.begun.wait(30)
    handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(30)


def test_a_run_that_waits_is_cancelled_at_once_as_a_task_and_as_a_stream() -> None:
    async def main() -> None:
        asleep, seen = Asleep(), []
        task = asyncio.create_task(waiting_program(asleep).acall(request=ROWS[0]["request"]))
        await asleep.here.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        asleep = Asleep()
        events = waiting_program(asleep).astream(request=ROWS[0]["request"])
        seen.append((await anext(events))["kind"])
        await asleep.here.wait()
        await events.aclose()
        assert seen == ["run_started"]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_an_evaluation_that_waits_is_cancelled_at_once() -> None:
    async def main() -> None:
        asleep = Asleep()
        model = ScriptedModel(lambda request: ModelUnavailable("down"))
        evaluator = Evaluator(WORLD.task(), model, sleep=asleep)
        async with anyio.create_task_group() as group:
            group.start_soon(evaluator.evaluate, {"d": PLANS["direct"]}, WORLD.dataset().split("select")[:3])
            await asleep.here.wait()
            group.cancel_scope.cancel()
        assert evaluator.store is not None and evaluator.store.rollouts() == []

    asyncio.run(asyncio.wait_for(main(), 60))


def test_when_an_evaluation_ends_nobody_waits_on() -> None:
    """One rollout is told to wait, another meets a mistake of the caller: that ends both."""
    asleep = Asleep()
    examples = WORLD.dataset().split("select")[:2]

    async def reply(request: Request) -> Any:
        if examples[0].request in request["messages"][-1]["content"]:
            return ModelUnavailable("busy", retry_after_s=100.0)
        await asleep.here.wait()
        return ModelError("The key is wrong")

    async def main() -> None:
        with pytest.raises(ModelError, match="key"):
            await Evaluator(WORLD.task(), ScriptedModel(reply), sleep=asleep).evaluate({"d": PLANS["direct"]}, examples)

    asyncio.run(asyncio.wait_for(main(), 60))


# ---- evaluation -------------------------------------------------------------------------------------------

EXAMPLES = WORLD.dataset().split("select")
MIXED = PlantedWorld({"direct": 0.5, "tool_call": 0.7, "code": 0.8}, clusters=60, writes=0.0)


def facts(records: list[RolloutRecord]) -> list[Any]:
    """What must not depend on the endpoint's day."""
    return [(r.candidate, r.row_id, r.rollout_id, r.score, r.outcome, r.outputs, r.model_calls, r.tool_calls, r.input_tokens,
             r.output_tokens, r.receipt["transcript_hash"]) for r in records]  # fmt: skip


def test_an_evaluation_gives_the_scores_of_an_undisturbed_one() -> None:
    examples = MIXED.dataset().split("select")
    found, honest = {}, {}
    for name, faults in (("undisturbed", None), ("disturbed", Faults(seed=2))):
        waits, store = Waits(), Store(":memory:")

        async def main(model: Any, server: FakeOpenAI, store: Store = store, waits: Waits = waits) -> list[RolloutRecord]:
            evaluator = Evaluator(MIXED.task(), model, store, sleep=waits)
            return await evaluator.evaluate(PLANS, examples)

        with served(faults, MIXED) as server:
            async def run(main: Any = main, server: FakeOpenAI = server) -> Any:
                model = model_of(server, timeout=1.0)
                try:
                    return await main(model, server)
                finally:
                    await model.aclose()

            records = asyncio.run(run())
        found[name], honest[name] = facts(records), server.kinds.count(None)
        assert len(store.rollouts()) == len(records) == 3 * len(examples), "each rollout is counted once"
        assert server.count == honest[name] + len(waits), "one pause for each fault"
        store.close()
        if faults is not None:
            assert len(waits) > 20
    assert found["disturbed"] == found["undisturbed"]
    assert honest["disturbed"] == honest["undisturbed"], "no answer was asked for twice"
    assert {0.0, 1.0} == {score for _, _, _, score, *_ in found["disturbed"]}


@pytest.mark.parametrize("again", ["the same evaluator", "the store and the recording"])
def test_an_outage_that_stays_ends_it_and_going_on_pays_nothing_twice(again: str, tmp_path: Path) -> None:
    """Every third row loses its endpoint after the first round of tool calls."""
    doomed = [example.request for example in EXAMPLES[::3]]
    down = True

    def hit(body: dict[str, Any]) -> bool:
        text = str(body["messages"])
        return down and "'tool'" in text and any(request in text for request in doomed)

    async def undisturbed(model: Any, server: FakeOpenAI) -> Any:
        return facts(await Evaluator(WORLD.task(), model).evaluate({"t": PLANS["tool_call"]}, EXAMPLES)), server.count

    expected, asked = with_model(None, undisturbed)

    async def main(model: Any, server: FakeOpenAI) -> None:
        nonlocal down
        store = Store(tmp_path / "a.db")
        recording = again != "the same evaluator"

        def fresh() -> Evaluator:
            shown = RecordModel(model_of(server), tmp_path / "c.jsonl") if recording else model
            return Evaluator(WORLD.task(), shown, store, sleep=Waits(), attempts=3, concurrency=4)

        evaluator = fresh()
        with pytest.raises(ModelUnavailable) as caught:
            await evaluator.evaluate({"t": PLANS["tool_call"]}, EXAMPLES)
        assert (caught.value.code, caught.value.details["attempts"]) == ("DSE401", 3)
        stored = store.rollouts()
        assert 0 < len(stored) < len(EXAMPLES) and {r["outcome"] for r in stored} == {"ok"}, "none of the lost ones is scored"
        down = False
        if recording:
            await evaluator.model.aclose()  # type: ignore[union-attr]
            evaluator = fresh()
        records = await evaluator.evaluate({"t": PLANS["tool_call"]}, EXAMPLES)
        assert sum(r.reused for r in records) == len(stored)
        if not recording:  # a replayed answer counts as recorded, the rest is the same
            assert facts(records) == expected
        assert [r.score for r in records] == [1.0] * len(EXAMPLES)
        assert server.kinds.count(None) == asked, "no answer was paid for twice"
        store.close()
        await evaluator.model.aclose()  # type: ignore[union-attr]

    with_model(Faults(1.0, ["500"], only=hit), main)


def test_a_rollout_that_gets_further_is_not_given_up() -> None:
    """Each of three requests fails twice, with three attempts in a row allowed."""
    times: Counter[str] = Counter()

    def reply(request: Request) -> Any:
        times[str(request["messages"])] += 1
        return WORLD.reply(request) if times[str(request["messages"])] > 2 else ModelUnavailable("busy")

    async def main() -> None:
        waits = Waits()
        evaluator = Evaluator(WORLD.task(), ScriptedModel(reply, NAME), sleep=waits, attempts=3, base_pause_s=1.0)
        (record,) = await evaluator.evaluate({"t": PLANS["tool_call"]}, EXAMPLES[:1])
        assert (record.score, record.model_calls, len(waits)) == (1.0, 3, 6)
        assert [int(wait) for wait in waits] == [1, 2] * 3, "the pauses start again, too"

    anyio.run(main)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("patient", [False, True])
def test_a_silent_endpoint_is_not_the_candidates_time(mode: str, patient: bool) -> None:
    """No timeout is declared but the run's own: the endpoint is silent until it is over."""
    async def silent(request: Request) -> str:
        await anyio.sleep_forever()
        return ""

    async def main() -> None:
        waits, inner = Waits(), ScriptedModel(silent, NAME)
        model = RetryingModel(inner, timeout_s=0.04, base_s=0.0, attempts=1_000) if patient else inner
        evaluator = Evaluator(WORLD.task(), model, sleep=waits, attempts=2)
        plan = seed_plan(SPEC, mode, limits=dse.Limits(active_s=0.4))
        with pytest.raises(ModelUnavailable) as caught:
            await evaluator.evaluate({"c": plan}, EXAMPLES[:1])
        assert caught.value.details["kind"] == "timeout" and len(waits) == 1
        assert evaluator.store is not None and evaluator.store.rollouts() == []

    anyio.run(main)


@pytest.mark.parametrize("how", ["in a tool", "in rounds"])
def test_a_candidate_that_uses_up_its_time_itself_is_scored(how: str) -> None:
    @dse.tool(effect="pure", revision="1")
    async def idle() -> int:
        """Do nothing, for ever or for once."""
        if how == "in a tool":
            await anyio.sleep_forever()
        return 1

    class Idle(dse.Signature):
        """Wait."""

        request: str = dse.InputField()
        left: int = dse.OutputField()
        tools = [idle]

    async def reply(request: Request) -> Any:
        await anyio.lowlevel.checkpoint()  # as anything that is asked over a network
        return call(("idle", {}))

    async def main() -> None:
        task = dse.Task(Idle, dataset=WORLD.dataset(), metric=dse.metric(lambda e, p, c: 1.0, revision="1", name="any"))
        model = ScriptedModel(reply, "scripted/idle")
        limits = dse.Limits(active_s=0.3, model_calls=1_000_000, tool_calls=1_000_000)
        plan = seed_plan(Idle.spec(), "tool_call", limits=limits)
        (record,) = await Evaluator(task, model, sleep=Waits()).evaluate({"c": plan}, EXAMPLES[:1])
        assert (record.score, record.error_class, record.receipt["limit"]) == (0.0, "LimitExceeded", "active_s")

    anyio.run(main)


# ---- compile ----------------------------------------------------------------------------------------------


def faulty(world: PlantedWorld, faults: Faults) -> tuple[ScriptedModel, Counter[str]]:
    """A scripted model (whose times are the same in every run) that is unavailable as `faults` say."""
    times: Counter[str] = Counter()
    hits: Counter[str] = Counter()

    def reply(request: Request) -> Any:
        key = str(request)
        times[key] += 1
        kind = faults.kind(dict(request), times[key] - 1)
        if kind is None:
            return world.reply(request)
        hits[kind] += 1
        return ModelUnavailable(kind, retry_after_s=3.0 if "429-" in kind else None)

    return ScriptedModel(reply, NAME, latency_s=0.25), hits


def test_a_compile_gives_the_artifact_of_an_undisturbed_one(tmp_path: Path) -> None:
    plain = dse.compile(QUICK.task(**QUICK_MODES), lm=QUICK.model(), registry=tmp_path / "plain", prices=PRICES)
    model, hits = faulty(QUICK, Faults(seed=1))
    waits = Waits()
    rough = dse.compile(QUICK.task(**QUICK_MODES), lm=RetryingModel(model, 12, sleep=waits), registry=tmp_path / "rough",
                        prices=PRICES, budget=dse.Budget(minutes=10, model_calls=5_000))  # fmt: skip
    assert plain.verdict == rough.verdict == "PROMOTE"
    assert rough.artifact.artifact_id == plain.artifact.artifact_id
    assert len(waits) == hits.total() > 50
    assert rough.spent["model_calls"] == len(model.requests), "each attempt is counted"


def test_a_live_compile_decides_as_undisturbed_and_its_recording_replays_to_the_same_artifact(tmp_path: Path) -> None:
    results = {}
    for name, faults in (("plain", None), ("rough", Faults(seed=6))):
        with served(faults, QUICK) as server:
            model = RetryingModel(model_of(server, timeout=0.5), 12, sleep=Waits())
            results[name] = dse.compile(QUICK.task(**QUICK_MODES), lm=model, registry=tmp_path / name,
                                        record=tmp_path / f"{name}.jsonl", prices=LOOPBACK_PRICES)  # fmt: skip
            assert results[name].spent["model_calls"] == server.count
            assert (server.kinds.count(None) < server.count) == (faults is not None)
    plain, rough = results["plain"], results["rough"]
    assert (rough.verdict, rough.winner, rough.gate.quality_difference) == (plain.verdict, plain.winner, plain.gate.quality_difference)
    for stage in ("search", "select", "holdout"):
        assert facts(list(rough.records[stage])) == facts(list(plain.records[stage]))
    replayed = dse.compile(QUICK.task(**QUICK_MODES), lm=f"replay:{tmp_path / 'rough.jsonl'}", registry=tmp_path / "replayed",
                           prices=LOOPBACK_PRICES)  # fmt: skip
    assert replayed.artifact.artifact_id == rough.artifact.artifact_id


@pytest.mark.parametrize("hit", ["the better program", "the worse program"])
@pytest.mark.parametrize("kind", ["429-seconds", "hang"])
def test_nobody_wins_because_the_others_endpoint_failed(kind: str, hit: str, tmp_path: Path) -> None:
    """The endpoint fails one mode only, from the select rows on. Nothing is decided, and going on decides as usual."""
    down = True
    search = {example.request for example in WORSE.dataset().split("search")}

    def only(body: dict[str, Any]) -> bool:
        mine = bool(body.get("tools")) == (hit == "the better program")
        return down and mine and not any(request in str(body["messages"]) for request in search)

    task = WORSE.task(limits=dse.Limits(active_s=2.0), **QUICK_MODES)  # the only bound for a silent endpoint
    options: dict[str, Any] = {"registry": tmp_path, "rows": Rows(search=4, select=4, holdout=8), "record": tmp_path / "c.jsonl"}
    with served(Faults(1.0, [kind], only=only), WORSE) as server:
        with pytest.raises(BudgetExhausted, match="minutes"):
            minutes = 0.02 if kind == "429-seconds" else 0.06
            dse.compile(task, lm=model_of(server, timeout=600), budget=dse.Budget(minutes=minutes), **options)
        assert dse.Registry(tmp_path).aliases("AskWarehouse") == {}
        with opened(tmp_path / "dse.db") as store:
            assert {r["outcome"] for r in store.rollouts()} <= {"ok"}
        down = False
        done = dse.compile(task, lm=model_of(server, timeout=5), **options)
    assert done.verdict == "KEEP" and done.winner.startswith("tool_call")


# ---- the benchmark ----------------------------------------------------------------------------------------


def test_the_benchmark_shows_whose_failure_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert outside.main(["--runs", "9", "500", "truncated"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == ["| fault", "| 500", "| truncated"]
    (ended,) = outside.measure(["429"], rate=1.0, runs=6)
    assert (ended.infrastructure, ended.candidate, ended.requests) == (6, 0, 6 * outside.ATTEMPTS)
    (blamed,) = outside.measure(["foreign-arguments"], rate=1.0, runs=3)
    assert (blamed.candidate, blamed.infrastructure, blamed.outside, blamed.met) == (3, 0, False, True)
