"""Judge metrics: pinned, recorded, metered, asked more than once, and never a score where nobody judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import dse
from dse.compiler.budget import Budget, BudgetedModel
from dse.errors import BudgetExhausted, CassetteMiss, MetricError, ModelUnavailable
from dse.evaluation.evaluator import Evaluator, RolloutRecord
from dse.evaluation.judge import Judge, Meter, judge_summary, rating
from dse.portal import run_sync
from dse.strategies.base import seed_plan
from dse.testing import ScriptedModel, say


class Answer(dse.Signature):
    """Answer."""

    question: str = dse.InputField()
    reply: str = dse.OutputField()


ROWS = [dse.Example(f"r{n}", {"question": f"Number {n}?"}) for n in range(4)]
PRICES = dse.PriceTable("made up", "2026-01-01", {"scripted/judge": (10.0, 10.0), "scripted/model": (0.0, 0.0)})


def polite(judge: Judge, *, ask: str = "Rate from 1 to 5", revision: str = "1", attempts: int = 3) -> Any:
    @dse.metric(kind="judge", revision=revision, judge=judge, name="polite")
    async def metric(example: Any, prediction: Any, ctx: dse.MetricContext) -> dse.Score:
        value = await ctx.lm.ask(f"{ask}: {prediction.reply}", system="You judge.", parse=rating(1, 5), attempts=attempts)
        return dse.Score(value, f"judged {value:g}", {"raw": value})

    return metric


def candidate() -> ScriptedModel:
    return ScriptedModel(lambda request: f"[[ ## reply ## ]]\n{request['messages'][-1]['content'].split('Number ')[1][0]}")


def evaluate(metric: Any, store: Any = None, meter: Meter | None = None, rows: Any = None) -> list[RolloutRecord]:
    task = dse.Task(Answer, dataset=None, metric=metric)
    options = {} if meter is None else {"judge_meter": meter}
    evaluator = Evaluator(task, candidate(), store or dse.Store(":memory:"), concurrency=1, **options)
    return run_sync(lambda: evaluator.evaluate({"it": seed_plan(task.spec, "direct")}, rows or ROWS))


def grades(*replies: str, **options: Any) -> ScriptedModel:
    return ScriptedModel([say(reply) for reply in replies], "scripted/judge", **options)


def test_a_judge_scores() -> None:
    model = ScriptedModel(lambda request: f"I say {request['messages'][-1]['content'][-1]}, or rather 4", "scripted/judge")
    records = evaluate(polite(Judge(model)))
    assert [r.score for r in records] == [0.75] * 4 and records[0].feedback == "judged 0.75"
    assert records[0].components["judge_calls"] == 1 and "judge_disagreement" not in records[0].components
    assert [m["role"] for m in model.requests[0]["messages"]] == ["system", "user"]


def test_repeats_are_averaged_and_their_disagreement_is_known() -> None:
    model = grades("1", "5", "5")
    record = evaluate(polite(Judge(model, repeats=3)), rows=ROWS[:1])[0]
    assert record.score == pytest.approx(2 / 3)
    assert record.components["judge_disagreement"] == pytest.approx(0.57735, abs=1e-4)
    assert record.components["judge_agreement"] == pytest.approx(1 / 3)
    assert record.components["judge_calls"] == 3 and record.components["raw"] == pytest.approx(2 / 3)
    assert record.feedback == "judged 1"  # of the repeat that is nearest to the mean
    summary = judge_summary([record])["it"]
    assert summary["judged"] == 1 and summary["judge_agreement"] == pytest.approx(1 / 3)


def test_an_evaluation_tells_of_its_judge(tmp_path: Path) -> None:
    import io

    from rich.console import Console

    from dse.analysis.report import print_eval
    from dse.evaluation.report import evaluate_artifact
    from dse.testing.worlds import PlantedWorld

    world = PlantedWorld({"direct": 1.0}, clusters=40, writes=0.0)
    artifact = dse.compile(world.task(modes=["direct"]), lm=world.model(), registry=tmp_path).artifact
    opinions = iter(range(10_000))

    @dse.metric(kind="judge", revision="1", judge=Judge(ScriptedModel(lambda r: f"{4 + next(opinions) % 2}", "scripted/judge"), repeats=2))
    async def plausible(example: Any, prediction: Any, ctx: Any) -> float:
        return await ctx.lm.ask(f"{example.request} {prediction.left}", parse=rating(1, 5))  # type: ignore[no-any-return]

    report = evaluate_artifact(artifact, world.task(metric=plausible), lm=world.model(), concurrency=1)
    shown = io.StringIO()
    print_eval(Console(file=shown, width=200), report)
    assert "rows: repeats apart by 0.177 (standard deviation), 0% of pairs equal, 2.0 calls" in shown.getvalue()


def test_a_judge_that_agrees_with_itself() -> None:
    record = evaluate(polite(Judge(grades("3", "3"), repeats=2)), rows=ROWS[:1])[0]
    assert (record.score, record.components["judge_disagreement"], record.components["judge_agreement"]) == (0.5, 0.0, 1.0)


def test_a_failed_run_is_not_judged() -> None:
    model = grades()
    task = dse.Task(Answer, dataset=None, metric=polite(Judge(model)))
    evaluator = Evaluator(task, ScriptedModel(lambda request: "nothing of use"), dse.Store(":memory:"))
    record = run_sync(lambda: evaluator.rollout("it", seed_plan(task.spec, "direct"), ROWS[0]))
    assert record.outcome == "failed" and record.score == 0 and not model.requests
    assert judge_summary([record]) == {}


# --- recorded


def test_what_was_recorded_is_judged_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    live = Judge(grades(*"123451234512"), repeats=3, cassette=path)
    first = evaluate(polite(live))
    live.close()
    replay = Judge(f"replay:{path}", repeats=3)
    second = evaluate(polite(replay))
    assert [(r.score, r.feedback) for r in second] == [(r.score, r.feedback) for r in first]
    assert [dict(r.components) for r in second] == [dict(r.components) for r in first]
    assert polite(replay).revision == polite(live).revision  # of one model, live or not: scores stay valid
    with pytest.raises(CassetteMiss):
        evaluate(polite(Judge(f"replay:{path}", repeats=4)))
    with pytest.raises(CassetteMiss):
        evaluate(polite(replay, ask="Rate strictly"))


def test_recording_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    one = Judge(grades("1", "2"), cassette=path)
    evaluate(polite(one), rows=ROWS[:2])
    one.close()
    model = grades("3", "4")
    two = Judge(model, cassette=path)
    assert [r.score for r in evaluate(polite(two))] == [0.0, 0.25, 0.5, 0.75]
    assert len(model.requests) == 2
    two.close()


def test_declaring_a_judge_opens_no_file(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    one = Judge(grades("5"), cassette=path)
    metric = polite(one)
    task = dse.Task(Answer, dataset=None, metric=metric)
    assert task.metric.revision == polite(Judge(grades("5"))).revision and "scripted/judge" in repr(metric) + repr(one)
    assert not path.exists()
    other = Judge(grades("1"), cassette=path)
    assert polite(other).revision == metric.revision
    assert evaluate(metric, rows=ROWS[:1])[0].score == 1.0 and path.exists()  # nobody else had it open
    one.close()
    assert evaluate(polite(other), rows=ROWS[:1])[0].score == 1.0  # recorded
    other.close()
    assert "replay:nowhere.jsonl" in repr(Judge("replay:nowhere.jsonl"))


# --- pinned, and stored


def test_the_revision_is_of_the_model_too() -> None:
    def revision(**options: Any) -> str:
        repeats = options.pop("repeats", 1)
        return polite(Judge(grades(**options), repeats=repeats)).revision

    assert revision() == revision()
    assert len({revision(), revision(params={"temperature": 1}), revision(repeats=2)}) == 3
    named = [polite(Judge(name, params=p)).revision for name, p in (
        ("openai/one", {}), ("openai/two", {}), ("openai/one", {"temperature": 1}), ("openai/one", {"api_key": "secret"}))]  # fmt: skip
    assert len(set(named)) == 3 and named[0] == named[3]  # a key is no part of what is asked


def test_scores_are_kept_per_replicate() -> None:
    store = dse.Store(":memory:")
    model = grades(*"1234", *"2345")
    evaluate(polite(Judge(model, repeats=1)), store)
    again = evaluate(polite(Judge(model, repeats=2)), store)
    assert len(model.requests) == 8  # the first judgements stand
    assert [r.score for r in again] == [0.125, 0.375, 0.625, 0.875] and all(r.reused for r in again)
    evaluate(polite(Judge(model, repeats=2)), store)
    evaluate(polite(Judge(model, repeats=2)), store)
    assert len(model.requests) == 8


def test_a_judge_that_was_stopped_pays_for_nothing_twice() -> None:
    store = dse.Store(":memory:")
    model = ScriptedModel([say("1"), say("2"), ModelUnavailable("down")], "scripted/judge")
    with pytest.raises(ModelUnavailable):
        evaluate(polite(Judge(model, repeats=3)), store, rows=ROWS[:1])
    rest = grades("3")
    assert evaluate(polite(Judge(rest, repeats=3)), store, rows=ROWS[:1])[0].score == 0.25
    assert len(rest.requests) == 1


# --- what goes wrong


def test_a_reply_that_cannot_be_read_is_asked_for_again() -> None:
    model = grades("very polite", "7", "so be it: 5")
    record = evaluate(polite(Judge(model)), rows=ROWS[:1])[0]
    assert record.score == 1.0 and record.components["judge_calls"] == 3
    assert "it holds no number" in model.requests[1]["messages"][-1]["content"]
    assert "7 is not between 1 and 5" in model.requests[2]["messages"][-1]["content"]


def test_one_that_never_can_is_an_error_of_the_metric() -> None:
    store = dse.Store(":memory:")
    with pytest.raises(MetricError, match=r"'polite'.*could not be read in 2 attempts") as caught:
        evaluate(polite(Judge(grades("no", "no")), attempts=2), store, rows=ROWS[:1])
    assert caught.value.code == "DSE160"
    assert [row["score"] for row in store.rollouts()] == [None]


def test_a_judge_that_is_away_is_no_score() -> None:
    store = dse.Store(":memory:")
    with pytest.raises(ModelUnavailable):
        evaluate(polite(Judge(ScriptedModel([ModelUnavailable("down")], "scripted/judge"))), store, rows=ROWS[:1])
    assert [row["score"] for row in store.rollouts()] == [None]


@pytest.mark.parametrize("repeats", [0, True, 1.5])
def test_repeats_that_are_none(repeats: Any) -> None:
    with pytest.raises(MetricError):
        Judge(grades(), repeats=repeats)


def test_a_judge_needs_a_judge_metric() -> None:
    with pytest.raises(MetricError, match="goes together"):
        dse.metric(lambda example, prediction, ctx: 1.0, judge=Judge(grades()))
    with pytest.raises(MetricError, match="goes together"):
        dse.metric(lambda example, prediction, ctx: 1.0, kind="judge", judge="openai/gpt-5")


@pytest.mark.parametrize(("text", "value"), [
    ("4", 0.75), ("Out of 5 I give 2.", 0.25), ("1.5", 0.125), ("", None), ("0", None), ("3 out of 5", 0.5), ("4/5", 0.75),
    ("**4** / 5", 0.75), ("4 (out of 5)", 0.75), ("3 von 5 Punkten", 0.5), ("4.5/5.0", 0.875), ("Rating: **4**", 0.75),
    ("1-5: 3", 0.5), ("On a scale from 1 to 5 it is a 2", 0.25), ("I looked at 10 things: 4", 0.75), ("4, yes, 4", 0.75),
    ("It has 2 faults.\n\n**Rating:** 4", 0.75), ("It has 2 faults.\n4/5", 0.75), ("3 of 5 lines are rude.\nRating: 2", 0.25),
    ("between 2 and 3", None), ("3-4", None), ("4,5", None), ("I give it 4. (5 would be perfect)", None), ("10", None),
    ("3/5 for tone, 4/5 for content", None), ("7/5", None), ("4/10", None), ("Rating: 3\n5 would be perfect", None),
])  # fmt: skip
def test_ratings(text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(ValueError):
            rating(1, 5)(text)
    else:
        assert rating(1, 5)(text) == value


def test_an_ambiguous_rating_is_asked_for_again() -> None:
    asked: list[Any] = []

    def reply(request: Any) -> Any:
        asked.append(request)
        return say("I give it 4. (5 would be perfect)" if len(asked) == 1 else "4 out of 5")

    [record] = evaluate(polite(Judge(ScriptedModel(reply, "scripted/judge"))), dse.Store(":memory:"), rows=ROWS[:1])
    assert record.score == 0.75 and "several numbers" in asked[1]["messages"][-1]["content"]


# --- metered


def test_what_a_judge_uses_is_counted_apart() -> None:
    meter = Meter()
    records = evaluate(polite(Judge(grades(*"12345123"), repeats=2, prices=PRICES)), meter=meter)
    spent = meter.spent()
    assert (spent["calls"], spent["replayed"]) == (8, 0) and spent["cost_usd"] > 0
    assert sum(r.components["judge_cost_usd"] for r in records) == pytest.approx(spent["cost_usd"])
    assert all(r.model_calls == 1 for r in records)  # of the candidate
    assert judge_summary(records)["it"]["judge_calls"] == 2


def test_a_compile_accounts_for_its_judge(tmp_path: Path) -> None:
    """By the scores that are kept: a compile that goes on from a store says what one says that was not stopped."""
    from io import StringIO

    from rich.console import Console

    from dse.analysis.report import print_compile
    from dse.testing.worlds import PlantedWorld

    world = PlantedWorld({"direct": 1.0, "tool_call": 0.25}, clusters=30, writes=0.0)
    replies: Any = Judge(ScriptedModel(lambda request: "5", "scripted/judge"), repeats=2, prices=PRICES)

    @dse.metric(kind="judge", revision="1", judge=replies)
    async def plausible(example: Any, prediction: Any, ctx: dse.MetricContext) -> float:
        return await ctx.lm.ask(f"{prediction.left}?", parse=rating(1, 5))

    task = dataclasses.replace(world.task(modes=["direct", "tool_call"]), metric=plausible)
    first = dse.compile(task, lm=world.model(), registry=tmp_path / "a", store=tmp_path / "runs.db")
    stages = {(one.stage, one.model): one for one in first.artifact.evidence.stages}
    judged = stages["holdout: judge", "scripted/judge"]
    sealed = {r.rollout_id: r for r in first.records["holdout"]}.values()
    assert judged.model_calls == sum(r.components["judge_calls"] for r in sealed) > 0 and judged.rollouts == len(sealed)
    assert judged.cost_usd is not None and judged.cost_usd > 0 and judged.usage_source == "estimated"
    total = first.artifact.evidence.spend
    assert total["model_calls"] == sum(one.model_calls for one in first.artifact.evidence.stages)
    shown = StringIO()
    print_compile(Console(file=shown, width=200), first)
    assert "holdout: judge, scripted/judge" in shown.getvalue() and "repeats apart by 0.000" in shown.getvalue()
    again = dse.compile(task, lm=world.model(), registry=tmp_path / "b", store=tmp_path / "runs.db")
    mine = [[one for one in each.artifact.evidence.stages if "judge" in one.stage] for each in (first, again)]
    assert mine[0] == mine[1], "nothing was asked again, and it is all accounted for"


def test_a_recorded_judge_costs_nothing_now(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    live = Judge(grades(*"1234"), cassette=path, prices=PRICES)
    paid = Meter()
    evaluate(polite(live), meter=paid)
    live.close()
    meter = Meter()
    evaluate(polite(Judge(f"replay:{path}", prices=PRICES)), meter=meter)
    assert meter.spent()["replayed"] == 4 and meter.spent()["cost_usd"] == 0.0 < paid.spent()["cost_usd"]


def test_a_budget_holds_for_judges() -> None:
    made: list[BudgetedModel] = []

    def wrap(model: Any, free: bool) -> Any:
        made.append(BudgetedModel(model, Budget(model_calls=3), free=free, owned=False))
        return made[-1]

    store = dse.Store(":memory:")
    model = grades(*"12345")
    with pytest.raises(BudgetExhausted):
        evaluate(polite(Judge(model)), store, Meter(wrap))
    assert len(made) == 1 and made[0].calls == 3 == len(model.requests)
    assert len([row for row in store.rollouts() if row["metric"] and "#" not in row["metric"]]) == 3
