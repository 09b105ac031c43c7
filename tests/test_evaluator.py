"""The evaluator and its store: identity of rollouts, nothing twice, whose failure it is, fresh worlds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import dse
from dse.errors import (
    CassetteMiss,
    EnvironmentRequired,
    InfrastructureError,
    MetricError,
    ModelError,
    ModelUnavailable,
    Refused,
    StoreError,
    StoreUnavailable,
    UserError,
)
from dse.evaluation.evaluator import Evaluator, LiveReads, RolloutRecord, summarise
from dse.evaluation.metric import MetricContext
from dse.models.lm import Completion, Usage
from dse.plan import Plan
from dse.store.cassette import RecordModel
from dse.store.journal import SCHEMA_VERSION, Store, opened
from dse.strategies.base import seed_plan
from dse.testing import worlds
from dse.testing.scripted import ScriptedModel, call, say
from dse.testing.worlds import AskWarehouse, PlantedWorld

WORLD = PlantedWorld({"direct": 0.5, "tool_call": 1.0, "code": 1.0}, clusters=20)
ROWS = WORLD.dataset().split("select")
SPEC = AskWarehouse.spec()
TOOL_CALL, DIRECT = seed_plan(SPEC, "tool_call"), seed_plan(SPEC, "direct")


def run(task: dse.Task, model: Any, plans: dict[str, Plan], rows: Any = ROWS, **options: Any) -> list[RolloutRecord]:
    """With a store in memory, which is closed, unless one is given."""

    async def go() -> list[RolloutRecord]:
        with opened(options.pop("store", ":memory:")) as store:
            return await Evaluator(task, model, store, **options).evaluate(plans, rows)

    return anyio.run(go)


class Naps:
    """Stands in for sleeping."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


# ---- identity ---------------------------------------------------------------------------------------------


def test_a_rollout_id_changes_exactly_with_what_could_change_the_run() -> None:
    def ident(*, task: dse.Task | None = None, model: Any = None, plan: Plan = TOOL_CALL, row: Any = ROWS[0],
              replicate: int = 0, prices: Any = None) -> str:  # fmt: skip
        evaluator = Evaluator(task or WORLD.task(), model or WORLD.model(), prices=prices)
        return evaluator.rollout_id(evaluator.program(plan), row, replicate)

    base = ident()
    other_environment = dse.environment(worlds.warehouse.factory, revision="2", name="warehouse")
    revised = SPEC.toolbox().bind("get_stock", worlds.get_stock.fn, revision="2")
    renamed = dse.metric(worlds.stock_right.fn, revision="9", name="another")
    dear = dse.PriceTable("dear", "2026-01-01", {worlds.NAME: (9.0, 9.0)})

    changed = {
        "plan": ident(plan=DIRECT),
        "allow-list": ident(plan=seed_plan(SPEC, "tool_call", ["find_item"])),
        "limits": ident(plan=seed_plan(SPEC, "tool_call", limits=dse.Limits(model_calls=3))),
        "model": ident(model=ScriptedModel(WORLD.reply, "scripted/other")),
        "parameters": ident(model=WORLD.model(params={"temperature": 1})),
        "row": ident(row=ROWS[1]),
        "replicate": ident(replicate=1),
        "environment": ident(task=WORLD.task(environment=other_environment)),
        "toolbox": ident(task=WORLD.task(toolbox=revised)),
        "prices that can end the run": ident(plan=seed_plan(SPEC, "tool_call", limits=dse.Limits(cost_usd=1.0)), prices=dear),
    }
    assert len({base, *changed.values()}) == len(changed) + 1
    same = {
        "again": ident(),
        "metric": ident(task=WORLD.task(metric=renamed)),
        "objective": ident(task=WORLD.task(objective=dse.Objective(cost_weight=1.0))),
        "task limits": ident(task=WORLD.task(limits=dse.Limits(model_calls=3))),
        "prices": ident(prices=dear),
        "a tool outside the allow-list": ident(task=WORLD.task(toolbox=revised), plan=DIRECT),
    }
    assert {name: value for name, value in same.items() if value != base} == {"a tool outside the allow-list": changed["plan"]}


# ---- nothing twice ----------------------------------------------------------------------------------------


def test_a_second_store_on_the_same_file_runs_nothing_again(tmp_path: Path) -> None:
    task, first = WORLD.task(), WORLD.model()
    plans = {"tools": TOOL_CALL, "direct": DIRECT}
    store = Store(tmp_path / "a.db")
    before = run(task, first, plans, store=store)
    store.close()
    again = WORLD.model()
    reopened = Store(tmp_path / "a.db")
    after = run(task, again, plans, store=reopened)
    reopened.close()
    assert first.requests and again.requests == []
    assert all(r.reused for r in after) and not any(r.reused for r in before)
    assert [dataclasses.replace(r, reused=False) for r in after] == before


def test_half_an_evaluation_is_finished_by_the_next(tmp_path: Path) -> None:
    store, first, second = Store(tmp_path / "a.db"), WORLD.model(), WORLD.model()
    run(WORLD.task(), first, {"direct": DIRECT}, rows=ROWS[:2], store=store)
    records = run(WORLD.task(), second, {"direct": DIRECT}, store=store)
    store.close()
    assert [r.reused for r in records] == [True, True] + [False] * (len(ROWS) - 2)
    assert len(second.requests) == len(ROWS) - 2


def test_two_names_of_one_plan_run_once() -> None:
    model = WORLD.model()
    records = run(WORLD.task(), model, {"a": DIRECT, "b": DIRECT}, rows=[ROWS[0]] * 3)
    assert len(model.requests) == 1 and len(records) == 6
    assert {r.rollout_id for r in records} == {records[0].rollout_id}


def test_a_changed_metric_scores_stored_runs_and_runs_nothing(tmp_path: Path) -> None:
    worked: list[str] = []

    @dse.environment(revision="1")
    def counted(example: Any) -> Any:
        worked.append(example.id)
        world = worlds.Warehouse(example.request.split("pieces of ")[1].split(" are left")[0].split(".")[0])
        yield dse.World(deps=world, state=lambda: {"reserved": world.reserved})

    seen: list[MetricContext] = []

    def metric(revision: str, value: float) -> Any:
        def fn(example: Any, prediction: Any, ctx: MetricContext) -> float:
            assert prediction.left == example.left == prediction.outputs["left"]
            seen.append(ctx)
            return value

        return dse.metric(fn, revision=revision, name="same")

    store = Store(tmp_path / "a.db")
    model = WORLD.model()
    one = run(WORLD.task(metric=metric("1", 1.0), environment=counted), model, {"t": TOOL_CALL}, store=store)
    asked, ran = len(model.requests), len(worked)
    assert ran == len(ROWS) and {r.score for r in one} == {1.0}
    two = run(WORLD.task(metric=metric("2", 0.25), environment=counted), model, {"t": TOOL_CALL}, store=store)
    assert (len(model.requests), len(worked)) == (asked, ran)
    assert {r.score for r in two} == {0.25} and len(seen) == 2 * len(ROWS)
    assert [c.state for c in seen[: len(ROWS)]] != [None] * len(ROWS)
    assert sorted(map(str, (c.state for c in seen[: len(ROWS)]))) == sorted(map(str, (c.state for c in seen[len(ROWS) :])))
    again = run(WORLD.task(metric=metric("1", 0.5), environment=counted), model, {"t": TOOL_CALL}, store=store)
    assert {r.score for r in again} == {1.0} and len(seen) == 2 * len(ROWS), "a known revision is not scored again"
    store.close()


def test_a_first_run_and_a_stored_one_show_a_metric_the_same_data(tmp_path: Path) -> None:
    shown: list[list[str]] = []

    @dse.metric(revision="1")
    def keys(example: Any, prediction: Any, ctx: MetricContext) -> float:
        shown.append([*prediction.outputs, *ctx.run, *ctx.state])
        return 1.0

    store = Store(tmp_path / "a.db")
    run(WORLD.task(metric=keys), WORLD.model(), {"d": DIRECT}, rows=ROWS[:1], store=store)
    again = dse.metric(keys.fn, revision="2", name="keys")
    run(WORLD.task(metric=again), WORLD.model(), {"d": DIRECT}, rows=ROWS[:1], store=store)
    store.close()
    assert shown[0] == shown[1], "also in the same order"


# ---- whose failure ----------------------------------------------------------------------------------------


def test_a_candidate_that_fails_scores_zero_with_its_error_class() -> None:
    silent = ScriptedModel(lambda request: say("I will not."))
    loops = ScriptedModel(lambda request: call(("get_weather", {"city": "Oslo"})))
    for model, plan, name in ((silent, DIRECT, "OutputInvalid"), (silent, TOOL_CALL, "NoSubmission"), (loops, TOOL_CALL, "LimitExceeded")):
        records = run(WORLD.task(), model, {"c": plan}, rows=ROWS[:2])
        assert [(r.score, r.outcome, r.error_class, r.outputs) for r in records] == [(0.0, "failed", name, None)] * 2
        assert records[0].feedback.startswith(f"{name}: ")
        assert summarise(records)["c"]["failures"] == 2


def flaky(failures: int, error: Callable[[], Exception] = lambda: ModelUnavailable("busy")) -> tuple[ScriptedModel, dict[str, int]]:
    """A model whose every second request to a rollout fails `failures` times first."""
    left: dict[str, int] = {}

    def reply(request: Any) -> Any:
        if sum(len(m.get("tool_calls", ())) for m in request["messages"]):
            key = request["messages"][1]["content"]
            left.setdefault(key, failures)
            if left[key] > 0:
                left[key] -= 1
                return error()
        return WORLD.reply(request)

    return ScriptedModel(reply, worlds.NAME), left


def test_infrastructure_is_tried_again_and_never_scored() -> None:
    naps = Naps()
    model, left = flaky(3)
    records = run(WORLD.task(), model, {"t": TOOL_CALL}, rows=ROWS[:2], sleep=naps, base_pause_s=1.0)
    assert {r.score for r in records} == {1.0} and set(left.values()) == {0}
    assert len(naps.taken) == 6
    for pause, base in zip(sorted(naps.taken), (1, 1, 2, 2, 4, 4), strict=True):
        assert base <= pause <= base * 1.25
    plain = WORLD.model()
    run(WORLD.task(), plain, {"t": TOOL_CALL}, rows=ROWS[:2])
    assert len(model.requests) == len(plain.requests) + 6, "what was answered before a failure is not asked again"


def test_infrastructure_that_stays_down_aborts_and_nothing_is_scored() -> None:
    naps, store = Naps(), Store(":memory:")
    model = ScriptedModel(lambda request: ModelUnavailable("down"))
    with pytest.raises(InfrastructureError) as caught:
        run(WORLD.task(), model, {"d": DIRECT}, rows=ROWS[:1], sleep=naps, store=store, attempts=3)
    assert caught.value.details["attempts"] == 3 and len(naps.taken) == 2 and len(model.requests) == 3
    assert store.rollouts() == []
    store.close()


def test_an_endpoint_is_waited_for_as_it_asks_within_reason() -> None:
    naps = Naps()
    model, _ = flaky(1, lambda: ModelUnavailable("busy", retry_after_s=7.0))
    run(WORLD.task(), model, {"t": TOOL_CALL}, rows=ROWS[:1], sleep=naps)
    assert naps.taken == [7.0]
    model, _ = flaky(1, lambda: ModelUnavailable("busy", retry_after_s=3_600.0))
    with pytest.raises(ModelUnavailable):
        run(WORLD.task(), model, {"t": TOOL_CALL}, rows=ROWS[:1], sleep=naps)
    assert naps.taken == [7.0]


def test_after_a_failure_nothing_starts_and_what_runs_is_kept() -> None:
    """With two at a time, the second rollout ends (and is stored) although the first has failed; no third starts."""
    gate: dict[str, anyio.Event] = {}
    order: list[str] = []

    async def reply(request: Any) -> Any:
        ident = request["messages"][-1]["content"]
        order.append(ident)
        event = gate.setdefault("failed", anyio.Event())
        if len(order) == 1:
            event.set()
            return ModelError("no")
        await event.wait()
        await anyio.lowlevel.checkpoint()
        return WORLD.reply(request)

    store = Store(":memory:")
    with pytest.raises(ModelError):
        run(WORLD.task(), ScriptedModel(reply, worlds.NAME), {"d": DIRECT}, store=store, concurrency=2)
    assert len(order) == 2 and len(store.rollouts()) == 1
    store.close()


def test_a_cassette_miss_is_not_tried_again(tmp_path: Path) -> None:
    async def record() -> None:
        recorder = RecordModel(WORLD.model(), tmp_path / "c.jsonl")
        await Evaluator(WORLD.task(), recorder).evaluate({"d": DIRECT}, ROWS[:1])
        await recorder.aclose()

    anyio.run(record)
    from dse.models.lm import resolve_model

    naps, replay = Naps(), resolve_model(f"replay:{tmp_path / 'c.jsonl'}")
    (record_,) = run(WORLD.task(), replay, {"d": DIRECT}, rows=ROWS[:1], sleep=naps)
    assert record_.latency_source == "recorded"
    with pytest.raises(CassetteMiss):
        run(WORLD.task(), replay, {"d": DIRECT}, rows=ROWS[1:2], sleep=naps)
    assert naps.taken == []


@pytest.mark.parametrize("broken", [lambda e, p, c: "good", lambda e, p, c: 1.5, lambda e, p, c: float("nan"), lambda e, p, c: 1 / 0])
def test_a_broken_metric_aborts(broken: Any) -> None:
    store = Store(":memory:")
    with pytest.raises(MetricError, match="broken"):
        run(WORLD.task(metric=dse.metric(broken, revision="1", name="broken")), WORLD.model(), {"d": DIRECT}, rows=ROWS[:1], store=store)
    (kept,) = store.rollouts()
    assert kept["score"] is None and kept["outcome"] == "ok", "the run was paid for: it is there for the corrected metric"
    store.close()


# ---- worlds -----------------------------------------------------------------------------------------------


def test_write_tools_need_an_environment_and_read_tools_warn() -> None:
    task = WORLD.task(environment=None, deps=worlds.Warehouse("nothing"))
    with pytest.raises(EnvironmentRequired, match="reserve"):
        run(task, WORLD.model(), {"t": TOOL_CALL}, rows=ROWS[:1])
    reading = seed_plan(SPEC, "tool_call", ["find_item", "get_stock"])
    with pytest.warns(LiveReads, match="find_item, get_stock"):
        records = run(task, WORLD.model(), {"t": reading}, rows=ROWS[:1])
    assert len(records) == 1


def test_a_call_that_waits_for_a_decision_is_nobodys_score() -> None:
    @dse.tool(effect="read", approval="always")
    def peek() -> int:
        """Look."""
        return 1

    class Ask(dse.Signature):
        """Look and tell."""

        request: str = dse.InputField()
        left: int = dse.OutputField()
        tools = [peek]

    task = dse.Task(Ask, dataset=WORLD.dataset(), metric=worlds.stock_right)
    model = ScriptedModel(lambda request: call(("peek", {})) if len(request["messages"]) < 3 else call(("submit", {"left": 1})))
    with pytest.warns(LiveReads), pytest.raises(EnvironmentRequired, match="decision"):
        run(task, model, {"t": seed_plan(Ask.spec(), "tool_call")}, rows=ROWS[:1])
    inside = dse.Task(Ask, dataset=WORLD.dataset(), metric=worlds.stock_right, environment=lambda example: dse.World())
    (record,) = run(inside, model, {"t": seed_plan(Ask.spec(), "tool_call")}, rows=ROWS[:1])
    assert record.outcome == "ok", "inside a world, calls are granted"
    denied = dse.Task(Ask, dataset=WORLD.dataset(), metric=worlds.stock_right,
                      environment=lambda example: dse.World(approve=lambda request: False))  # fmt: skip
    (record,) = run(denied, model, {"t": seed_plan(Ask.spec(), "tool_call")}, rows=ROWS[:1])
    assert [c["outcome"] for c in record.receipt["calls"]] == ["refused"]


class Ledger:
    """Worlds that were made and left."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.left = 0

    def environment(self, *, fail: str = "") -> Any:
        @dse.environment(revision="1", name="ledger")
        def factory(example: Any) -> Any:
            if fail == "making":
                raise KeyError("no world")
            notes: dict[str, Any] = {"calls": 0}
            self.made.append(notes)

            def get_weather(city: str) -> str:
                notes["calls"] += 1
                return f"{notes['calls']}"

            def state() -> Any:
                if fail == "state":
                    raise RuntimeError("no state")
                return object() if fail == "wire" else notes

            try:
                yield dse.World(deps=None, tools={"get_weather": get_weather}, state=state)
            finally:
                self.left += 1
                notes["calls"] = "cleaned up"

        return factory


def weather_model(request: Any) -> Any:
    given = [m["content"] for m in request["messages"] if m["role"] == "tool"]
    return call(("submit", {"left": int(given[0])})) if given else call(("get_weather", {"city": "Oslo"}))


def test_every_rollout_gets_a_fresh_world_and_its_end_state_reaches_the_metric() -> None:
    ledger, seen = Ledger(), []

    @dse.metric(revision="1")
    def fresh(example: Any, prediction: Any, ctx: MetricContext) -> float:
        seen.append(ctx.state)
        return float(prediction.left == 1)

    task = WORLD.task(environment=ledger.environment(), metric=fresh)
    records = run(task, ScriptedModel(weather_model), {"a": TOOL_CALL, "b": seed_plan(SPEC, "tool_call", ["get_weather"])})
    assert {r.score for r in records} == {1.0}, "no call of another rollout is ever counted"
    assert len(ledger.made) == ledger.left == 2 * len(ROWS)
    assert seen == [{"calls": 1}] * 2 * len(ROWS), "as it was before the world was cleaned up"


@pytest.mark.parametrize("reply, error", [
    (lambda request: say("no"), None), (lambda request: ModelError("no"), ModelError), (lambda request: RuntimeError("bug"), RuntimeError),
])  # fmt: skip
def test_a_world_is_cleaned_up_whatever_happens(reply: Any, error: Any) -> None:
    ledger = Ledger()
    task = WORLD.task(environment=ledger.environment())
    if error is None:
        run(task, ScriptedModel(reply), {"t": TOOL_CALL}, rows=ROWS[:1])
    else:
        with pytest.raises(error):
            run(task, ScriptedModel(reply), {"t": TOOL_CALL}, rows=ROWS[:1])
    assert ledger.left == len(ledger.made) == 1


@pytest.mark.parametrize("fail, error, word", [
    ("making", UserError, "made no world for row"), ("state", UserError, "end state"), ("wire", MetricError, "plain JSON"),
])  # fmt: skip
def test_a_broken_environment_is_the_users_error(fail: str, error: Any, word: str) -> None:
    store = Store(":memory:")
    with pytest.raises(error, match=word):
        run(WORLD.task(environment=Ledger().environment(fail=fail)), ScriptedModel(weather_model), {"t": TOOL_CALL}, rows=ROWS[:1], store=store)
    assert store.rollouts() == []
    store.close()


@dse.environment(revision="1")
def cleans_up_badly(example: Any) -> Any:
    yield dse.World(deps=worlds.Warehouse("nothing"))
    raise OSError("disk full")


@dse.environment(revision="1")
async def yields_twice(example: Any) -> Any:
    yield dse.World(deps=worlds.Warehouse("nothing"))
    yield dse.World(deps=worlds.Warehouse("nothing"))


@dse.environment(revision="1")
def swallows(example: Any) -> Any:
    with contextlib.suppress(BaseException):
        yield dse.World(deps=worlds.Warehouse("nothing"))


@dse.environment(revision="1")
async def swallows_async(example: Any) -> Any:
    with contextlib.suppress(BaseException):
        yield dse.World(deps=worlds.Warehouse("nothing"))


@pytest.mark.parametrize("environment", [cleans_up_badly, yields_twice])
def test_a_world_that_cannot_be_cleaned_up_is_the_users_error(environment: Any) -> None:
    with pytest.raises(UserError, match="could not clean up its world for row"):
        run(WORLD.task(environment=environment), ScriptedModel(lambda request: say("no")), {"t": TOOL_CALL}, rows=ROWS[:1])


@pytest.mark.parametrize("environment", [swallows, swallows_async])
def test_no_environment_hides_a_failure(environment: Any) -> None:
    task = WORLD.task(environment=environment)
    for error, attempts in ((ModelUnavailable("busy"), 3), (RuntimeError("bug"), 1)):
        model = ScriptedModel(lambda request, error=error: error)  # type: ignore[misc]
        with pytest.raises(type(error)):
            run(task, model, {"t": TOOL_CALL}, rows=ROWS[:1], attempts=3, sleep=Naps())
        assert len(model.requests) == attempts
    assert run(task, ScriptedModel(lambda request: say("no")), {"t": TOOL_CALL}, rows=ROWS[:1])[0].score == 0.0


@pytest.mark.parametrize("kind", ["function", "generator", "async function", "async generator"])
def test_all_kinds_of_environments(kind: str) -> None:
    ended: list[str] = []

    def function(example: Any) -> Any:
        return dse.World(state=lambda: {"id": example.id})

    def generator(example: Any) -> Any:
        yield function(example)
        ended.append(example.id)

    async def async_function(example: Any) -> Any:
        return function(example)

    async def async_generator(example: Any) -> Any:
        yield function(example)
        ended.append(example.id)

    factory = {f.__name__.replace("_", " "): f for f in (function, generator, async_function, async_generator)}[kind]

    @dse.metric(revision="1")
    def metric(example: Any, prediction: Any, ctx: MetricContext) -> bool:
        return bool(ctx.state == {"id": example.id})

    (record,) = run(WORLD.task(environment=factory, metric=metric), WORLD.model(), {"d": DIRECT}, rows=ROWS[:1])
    assert record.score == 1.0 and ended == ([ROWS[0].id] if "generator" in kind else [])
    with pytest.raises(UserError, match=r"dse\.World"):
        run(WORLD.task(environment=lambda example: None), WORLD.model(), {"d": DIRECT}, rows=ROWS[:1])


# ---- the same conditions for all --------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3])
def test_concurrency_is_honoured(concurrency: int) -> None:
    active, most, together = 0, 0, anyio.Event()

    async def reply(request: Any) -> Any:
        nonlocal active, most
        active += 1
        most = max(most, active)
        if active == concurrency:
            together.set()
        with anyio.fail_after(20):  # so many must be under way before any goes on
            await together.wait()
        active -= 1
        return WORLD.reply(request)

    run(WORLD.task(), ScriptedModel(reply, worlds.NAME), {"d": DIRECT}, concurrency=concurrency)
    assert most == concurrency


def test_clock_and_seed_are_those_of_the_row() -> None:
    async def go() -> tuple[list[RolloutRecord], list[RolloutRecord]]:
        evaluator = Evaluator(WORLD.task(), WORLD.model())
        plans = {"t": TOOL_CALL, "d": DIRECT}
        return await evaluator.evaluate(plans, ROWS), await evaluator.evaluate(plans, ROWS, replicate=1)

    first, second = anyio.run(go)
    basis = {r.row_id: {(x.receipt["clock"], x.receipt["seed"]) for x in first if x.row_id == r.row_id} for r in first}
    assert all(len(pairs) == 1 for pairs in basis.values())
    assert len(set().union(*basis.values())) == len(ROWS), "other rows have others"
    assert all(dt.datetime.fromisoformat(clock).tzinfo for pairs in basis.values() for clock, _ in pairs)
    assert {(r.receipt["seed"]) for r in first} & {r.receipt["seed"] for r in second} == set(), "and other replicates"
    assert {r.rollout_id for r in first} & {r.rollout_id for r in second} == set()


def test_records_hold_all_figures() -> None:
    replies = [Completion(None, call(("get_weather", {"city": "Oslo"})).tool_calls, "tool_call", Usage(100, 10, "exact"), 0.5, "exact", 1.5),
               Completion(None, call(("submit", {"left": 1})).tool_calls, "tool_call", Usage(200, 20, "estimated"), 0.25, "estimated", 2.0)]  # fmt: skip
    (record,) = run(WORLD.task(), ScriptedModel(replies), {"t": TOOL_CALL}, rows=ROWS[:1])
    row = ROWS[0]
    assert (record.candidate, record.row_id, record.row_hash, record.cluster) == ("t", row.id, row.row_hash, row.cluster)
    assert (record.outcome, record.error_class, record.outputs) == ("ok", None, {"left": 1})
    assert (record.model_calls, record.tool_calls, record.input_tokens, record.output_tokens) == (2, 1, 300, 30)
    assert (record.usage_source, record.cost_usd, record.cost_source) == ("estimated", 0.75, "estimated")
    assert (record.latency_s, record.latency_source) == (3.5, "measured")
    assert record.used_tools == {"get_weather"} and set(record.components) == {"number", "state"}
    assert [e["kind"] for e in record.journal][:2] == ["run_started", "model_call"]
    assert record.receipt["calls"][0]["latency_s"] >= 0 and record.receipt["run_id"].startswith("rollout-")
    table = summarise([record])["t"]
    assert (table["n"], table["tokens_in"], table["tokens_out"], table["cost_usd"]) == (1, 300, 30, 0.75)


def test_unknown_costs_and_counts_stay_unknown_and_a_price_table_reaches_stored_runs(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    model = WORLD.model()
    (bare,) = run(WORLD.task(), model, {"d": DIRECT}, rows=ROWS[:1], store=store)
    assert (bare.cost_usd, bare.cost_source) == (None, "unknown")
    asked = len(model.requests)
    (priced,) = run(WORLD.task(), model, {"d": DIRECT}, rows=ROWS[:1], store=store, prices=worlds.PRICES)
    assert priced.reused and len(model.requests) == asked
    assert priced.cost_usd == pytest.approx((bare.input_tokens * 1.0 + bare.output_tokens * 4.0) / 1e6)
    assert priced.cost_source == "estimated"
    store.close()

    uncounted = ScriptedModel(lambda request: Completion("[[ ## left ## ]]\n1", usage=Usage(None, 5, "unknown")), worlds.NAME)
    (blind,) = run(WORLD.task(), uncounted, {"d": DIRECT}, rows=ROWS[:1], prices=worlds.PRICES)
    assert (blind.usage_source, blind.cost_usd, blind.cost_source) == ("unknown", None, "unknown")


def test_dse_evaluate_opens_no_holdout(tmp_path: Path) -> None:
    task = WORLD.task()
    with pytest.raises(Refused):
        dse.evaluate(task, DIRECT, lm=WORLD.model(), split="holdout")
    records = dse.evaluate(task, DIRECT, lm=WORLD.model(), split="search", max_rows=3, store=tmp_path / "a.db", prices=worlds.PRICES)
    assert len(records) == 3 and all(r.cost_usd for r in records)
    again = WORLD.model()
    assert all(r.reused for r in dse.evaluate(task, DIRECT, lm=again, split="search", max_rows=3, store=str(tmp_path / "a.db")))
    assert again.requests == []


@pytest.mark.parametrize("rows", [-1, 0, 2.5, "3", True])
def test_a_number_of_rows_is_one(rows: Any) -> None:
    with pytest.raises(UserError, match="from 1 up"):
        dse.evaluate(WORLD.task(), DIRECT, lm=WORLD.model(), max_rows=rows)


def test_a_task_says_what_is_wrong_with_it() -> None:
    with pytest.raises(dse.DseError, match="requires tools"):
        WORLD.task(required=["nothing"])
    with pytest.raises(dse.DseError, match="dataset"):
        WORLD.task(dataset=[{"request": "x"}]).load_dataset()
    assert WORLD.task(modes=iter(["direct"])).modes == ("direct",)


# ---- the store --------------------------------------------------------------------------------------------


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Store(path).close()
    Store(path).close()
    with sqlite3.connect(path) as c:
        c.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", [str(SCHEMA_VERSION + 1)])
    c.close()
    with pytest.raises(StoreError, match="newer version") as caught:
        Store(path)
    assert f"schema {SCHEMA_VERSION + 1}" in str(caught.value)


@pytest.mark.parametrize("statement", ["CREATE TABLE invoices (id)", "CREATE TABLE meta (key TEXT, value TEXT)", "CREATE TABLE meta (n)"])
def test_a_foreign_database_is_left_alone(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "a.db"
    with sqlite3.connect(path) as c:
        c.execute(statement)
    c.close()
    with pytest.raises(StoreError):
        Store(path)
    with sqlite3.connect(path) as c:
        assert c.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone() == (1,)
    c.close()


def test_what_cannot_be_a_store(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("This is a long text and no database at all. " * 40)
    (tmp_path / "folder.db").mkdir()
    for place in (text, tmp_path / "folder.db", text / "below" / "a.db"):
        with pytest.raises(StoreError):
            Store(place)
    with pytest.raises(StoreError, match="No such kind"):
        Store("mysql://localhost/x")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store("postgresql://nobody@127.0.0.1:1/x?connect_timeout=2")


def test_a_store_that_becomes_unusable_is_infrastructure(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = Store(path)
    store.record({"dataset": "d", "revision": "r", "compile_id": "c", "row_hashes": ["h"], "purpose": "p"})
    with sqlite3.connect(path) as c:
        c.execute("DROP TABLE openings")
        c.execute("DROP TABLE rollouts")
    c.close()
    with pytest.raises(StoreUnavailable, match="read"):
        store.openings()
    with pytest.raises(StoreUnavailable):
        run(WORLD.task(), WORLD.model(), {"d": DIRECT}, rows=ROWS[:1], store=store)
    store.close()


def test_two_stores_are_made_at_the_same_time(tmp_path: Path) -> None:
    import threading

    failures: list[Exception] = []

    def make() -> None:
        try:
            Store(tmp_path / "a.db").close()
        except Exception as exc:
            failures.append(exc)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_runs_are_kept_and_shown(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    program = dse.Program(AskWarehouse, DIRECT, lm=WORLD.model(), store=store)
    prediction = program(request=ROWS[0].request)
    run_id = prediction.receipt["run_id"]
    assert [r["run_id"] for r in store.runs()] == [run_id]
    receipt, entries = store.run(run_id)
    assert receipt == prediction.receipt and [e["seq"] for e in entries] == list(range(len(entries)))
    with pytest.raises(StoreError, match="no such run"):
        store.run("nothing")
    with pytest.raises(StoreError, match="already"):
        asyncio.run(program.execute(program.new_run({"request": ROWS[0].request}, run_id=run_id)))
    assert store.run(run_id) == (receipt, entries)
    store.close()


@dse.tool(effect="write", revision="1")
def note(ctx: dse.ToolContext[list[str]], text: str) -> int:
    """Note a text; gives how many there are."""
    raise NotImplementedError


class Noted(dse.Signature):
    """Note what is asked for."""

    wish: str = dse.InputField()
    count: int = dse.OutputField()
    tools = [note]


@dse.metric(revision="1")
def noted_once(example: Any, prediction: Any, ctx: MetricContext) -> float:
    return float(ctx.state == [example.wish])


@dataclasses.dataclass
class Outages:
    """What a world depends on: away `left` times at `place`."""

    place: str
    left: int
    error: type[Exception] = ConnectionError
    worlds: int = 0

    def reach(self, place: str) -> None:
        if place == self.place and self.left:
            self.left -= 1
            raise self.error("the shelf is away")

    def task(self, **options: Any) -> dse.Task:
        @dse.environment(revision="1", **options)
        def paper(example: Any) -> Any:
            self.worlds += 1
            self.reach("factory")
            lines: list[str] = []

            def write(ctx: dse.ToolContext[Any], text: str) -> int:
                lines.append(text)
                self.reach("tool")
                return len(lines)

            def state() -> list[str]:
                self.reach("state")
                return list(lines)

            yield dse.World(tools={"note": write}, state=state)
            self.reach("cleaning up")

        data = dse.Dataset.from_rows([{"id": f"r{n}", "wish": f"wish {n}"} for n in range(20)], name="wishes", fields={"wish": "input"})
        return dse.Task(Noted, dataset=data, metric=noted_once, environment=paper)

    def evaluate(self, naps: Naps, **options: Any) -> tuple[RolloutRecord, int]:
        def reply(request: Any) -> Any:
            if request["messages"][-1]["role"] == "tool":
                return call(("submit", {"count": 1}))
            return call(("note", {"text": rows[0].wish}))

        task = self.task(**options)
        rows = task.load_dataset().split("search")[:1]
        model = ScriptedModel(reply)
        plan = seed_plan(task.spec, "tool_call", limits=task.limits)
        (record,) = run(task, model, {"t": plan}, rows=rows, sleep=naps)
        return record, len(model.requests)


@pytest.mark.parametrize("place", ["factory", "tool", "state", "cleaning up"])
def test_what_an_environment_names_as_infrastructure_is_tried_again_and_never_scored(place: str) -> None:
    outages, naps = Outages(place, 2, ConnectionRefusedError), Naps()
    record, asked = outages.evaluate(naps, infrastructure=(ConnectionError, TimeoutError))
    assert (record.score, record.outcome, asked) == (1.0, "ok", 2), "nothing is asked for twice"
    assert outages.worlds == 3 and len(naps.taken) == 2 and [c["outcome"] for c in record.receipt["calls"]] == ["ok"]
    with pytest.raises(InfrastructureError, match="the shelf is away") as caught:
        Outages(place, 99).evaluate(Naps(), infrastructure=(ConnectionError,))
    assert caught.value.details["attempts"] == 8


def test_what_a_tool_raises_is_otherwise_seen_by_the_program() -> None:
    for error, options in ((ConnectionError, {}), (ValueError, {"infrastructure": (ConnectionError,)})):
        record, _ = Outages("tool", 1, error).evaluate(Naps(), **options)
        assert record.receipt["calls"][0]["fault"] == "DSE209" and record.outcome == "ok"
    environment = Outages("tool", 1).task().environment
    other = Outages("tool", 1).task(infrastructure=(TimeoutError, ConnectionError)).environment
    assert environment is not None and other is not None and environment.revision == "1"
    assert other.revision == "1+builtins.ConnectionError,builtins.TimeoutError", "rollouts of the one are none of the other"


def test_a_recorded_environment_does_not_record_what_is_nobodys_failure(tmp_path: Path) -> None:
    outages = Outages("tool", 1)
    task = outages.task(infrastructure=(ConnectionError,))
    recording = dse.Environment.recorded(tmp_path / "effects.jsonl", inner=task.environment, mode="record")
    task = dataclasses.replace(task, environment=recording)
    rows = task.load_dataset().split("search")[:1]
    model = ScriptedModel(lambda r: call(("submit", {"count": 1}) if r["messages"][-1]["role"] == "tool" else ("note", {"text": rows[0].wish})))
    (record,) = run(task, model, {"t": seed_plan(task.spec, "tool_call", limits=task.limits)}, rows=rows, sleep=Naps())
    recording.close()  # type: ignore[attr-defined]
    assert record.score == 1.0 and "away" not in (tmp_path / "effects.jsonl").read_text()


@pytest.mark.parametrize("wrong", ["ConnectionError", int, BaseException, dse.errors.ToolFailed])
def test_what_infrastructure_can_be(wrong: Any) -> None:
    with pytest.raises(UserError, match="takes exception types"):
        Outages("tool", 1).task(infrastructure=(wrong,))


def test_the_ledger_counts_openings_that_overlap() -> None:
    store = Store(":memory:")

    def opening(compile_id: str, *rows: str) -> int:
        return store.record({"dataset": "d", "revision": "r", "compile_id": compile_id, "row_hashes": rows, "purpose": "gate"})

    assert opening("one", "a", "b") == 1
    assert opening("one", "b", "a") == 1, "the same compile again is the same opening"
    assert opening("two", "b", "c") == 2
    assert opening("three", "d") == 1, "other rows"
    assert opening("four", "a", "c") == 3
    assert len(store.openings()) == 4
    store.close()


# ---- rates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("environment", [None, "deps", "tools"])
def test_what_others_call_is_no_rollouts_failure(concurrency: int, environment: str | None) -> None:
    """Each rollout may make two calls in a window; the third is refused, whoever else calls and however fast."""

    @dse.tool(effect="pure", rate=(2, 0.05 if environment is None else 3600.0), timeout_s=0.04, revision="1")
    def double(ctx: dse.ToolContext[Any], n: int) -> int:
        """Double it."""
        return 2 * n

    class Double(dse.Signature):
        """Double it."""

        n: int = dse.InputField()
        result: int = dse.OutputField()
        tools = [double]

    def reply(request: Any) -> Any:
        told = [m["content"] for m in request["messages"] if m["role"] == "tool"]
        if len(told) < 3:
            return call(("double", {"n": len(told)}))
        return call(("submit", {"result": sum("limited" in one for one in told)}))

    @dse.environment(revision="1")
    def world(example: Any) -> dse.World:
        def instead(n: int) -> int:
            return 2 * n

        return dse.World(deps={}) if environment == "deps" else dse.World(tools={"double": instead})

    rows = [{"id": f"r{n}", "n": n, "result": 1} for n in range(30)]
    task = dse.Task(Double, dataset=dse.Dataset.from_rows(rows, name="n", fields={"n": "input", "result": "label"}),
                    metric=dse.metric(lambda e, p, c: float(p.result == e.result), revision="1", name="right"),
                    environment=world if environment else None)  # fmt: skip
    records = dse.evaluate(task, "tool_call", lm=ScriptedModel(reply, "scripted/d"), concurrency=concurrency)
    assert {r.score for r in records} == {1.0}
    assert {tuple(c["outcome"] for c in r.receipt["calls"]) for r in records} == {("ok", "ok", "refused")}
