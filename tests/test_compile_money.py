"""What a compile pays for: models, judges and tools, within one budget, and accounted for to the last request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from paying import EXECUTED, NAME, PRICES, ROWS, answered, asked_for, asking, ledger, looking_up, saying, total
from rich.console import Console

import dse
from dse.analysis.report import print_compile
from dse.compiler.gate import recompute
from dse.errors import BudgetExhausted, ModelUnavailable, PriceMissing, ToolFailed
from dse.evaluation.judge import Judge, rating
from dse.models.lm import Completion
from dse.testing.scripted import ScriptedModel
from dse.testing.worlds import PlantedWorld

# ---- tools ------------------------------------------------------------------------------------------------


def test_tools_are_paid_for_out_of_the_same_purse(tmp_path: Path) -> None:
    EXECUTED.clear()
    whole = dse.compile(asking(), lm=looking_up(), registry=tmp_path / "whole", prices=PRICES, rows=ROWS)
    executed = len(EXECUTED)
    assert whole.spent["usd"] == pytest.approx(whole.artifact.evidence.spend.cost_usd) and whole.spent["usd"] > executed / 2 > 5
    assert total(whole, "tool_calls") == executed and {one["tool"] for one in whole.accounts} == {None, "lookup"}
    EXECUTED.clear()
    options: dict[str, Any] = {"registry": tmp_path / "cut", "prices": PRICES, "rows": ROWS}
    with pytest.raises(BudgetExhausted, match="lookup") as caught:
        dse.compile(asking(), lm=looking_up(), budget=dse.Budget(usd=2.2), **options)
    spent = caught.value.details["spent"]
    assert len(EXECUTED) == 4 and 2.0 < spent["usd"] <= 2.2, "refused before it is executed"
    (paid,) = ledger(tmp_path / "cut")["by_tool"]
    assert paid[1] == "lookup" and (paid[2]["tool_calls"], paid[2]["usd"]) == (4, 2.0)
    result = dse.compile(asking(), lm=looking_up(), budget=dse.Budget(usd=50), **options)
    assert result.artifact.artifact_id == whole.artifact.artifact_id
    assert total(result, "tool_calls") == len(EXECUTED) <= executed + 4 and total(result, "cost_usd") == pytest.approx(result.spent["usd"])
    EXECUTED.clear()
    again = dse.compile(asking(), lm=looking_up(), budget=dse.Budget(usd=0.01), **{**options, "registry": tmp_path / "again"},
                        store=tmp_path / "cut" / "dse.db")  # fmt: skip
    assert EXECUTED == [] and again.spent["usd"] == 0, "rollouts of the store are paid for"


def test_what_a_world_answers_itself_is_free_and_what_it_hides_still_ends_the_compile(tmp_path: Path) -> None:
    async def cached(call: Any, proceed: Any) -> Any:
        return call.arguments["q"].upper()

    async def hiding(call: Any, proceed: Any) -> Any:
        try:
            return await proceed(call)
        except Exception:
            raise ToolFailed("nothing was found") from None

    def world(layer: Any) -> dse.Environment:
        return dse.Environment(lambda example: dse.World(middleware=[layer]), name="w", revision="1")

    options: dict[str, Any] = {"prices": PRICES, "rows": ROWS, "budget": dse.Budget(usd=1.2)}
    EXECUTED.clear()
    result = dse.compile(asking(environment=world(cached)), lm=looking_up(), registry=tmp_path / "a", **options)
    assert EXECUTED == [] and total(result, "tool_calls") == 0 and result.artifact.evidence.spend.cost_usd > 1.2
    with pytest.raises(BudgetExhausted, match="lookup"):
        dse.compile(asking(environment=world(hiding)), lm=looking_up(), registry=tmp_path / "b", **options)
    assert len(EXECUTED) == 2, "and no rollout is scored for want of money"


def test_a_recorded_world_is_paid_for_once(tmp_path: Path) -> None:
    file = tmp_path / "tools.jsonl"
    own = dse.Environment(lambda example: dse.World(), name="own", revision="1")
    options: dict[str, Any] = {"prices": PRICES, "rows": ROWS}
    record = asking(environment=dse.Environment.recorded(file, inner=own, mode="record"))
    EXECUTED.clear()
    first = dse.compile(record, lm=looking_up(), registry=tmp_path / "a", budget=dse.Budget(usd=50), **options)
    assert total(first, "tool_calls") == len(EXECUTED) > 0
    again = asking(environment=dse.Environment.recorded(file))
    assert dse.forecast(again, lm=looking_up(), registry=tmp_path / "b", **options).most_tools_usd == 0
    result = dse.compile(again, lm=looking_up(), registry=tmp_path / "b", budget=dse.Budget(usd=0.2), **options)
    assert total(result, "tool_calls") == 0 and result.artifact.evidence.spend.cost_usd > 0.2


def test_a_forecast_counts_what_tools_cost(tmp_path: Path) -> None:
    limits = dse.Limits(model_calls=3, tokens=1000, tool_calls=5)
    options: dict[str, Any] = {"lm": looking_up(), "registry": tmp_path, "prices": PRICES, "rows": ROWS}
    told = dse.forecast(asking(limits=limits), **options)
    assert (told.modes["direct"].most_tools_usd, told.modes["tool_call"].most_tools_usd) == (0.0, 5 * 0.5)
    rollouts = sum(most for _, most in told.stages.values())
    assert told.most_tools_usd == 2.5 * rollouts and told.most_usd == pytest.approx(told.most_tools_usd + 1000 * rollouts * 10e-6)
    assert 0 < told.tools_usd < told.usd < told.most_usd and "of that tools: " in str(told)
    bounds: list[tuple[dict[str, Any], float]] = [
        ({"calls_per_tool": {"lookup": 1}}, 0.5 + 2 * 0.25), ({"cost_usd": 0.7}, 0.7), ({"tool_calls": 0}, 0.0),
        ({"outcomes": {"tokens": "retry"}}, 10 * 0.5), ({"tool_calls": 3, "calls_per_tool": {"lookup": 2}}, 1.25),
    ]  # fmt: skip
    for changed, most in bounds:
        one = dse.forecast(asking(limits=limits.model_copy(update=changed)), **options).modes["tool_call"]
        assert one.most_tools_usd == pytest.approx(most), changed
    bounded = dse.forecast(asking(limits=limits), budget=dse.Budget(usd=1.0), **options)
    assert (bounded.most_usd, bounded.most_tools_usd) == (1.0, 1.0)
    result = dse.compile(asking(limits=limits), **options)
    after = dse.forecast(asking(limits=limits), **options)
    assert after.modes["tool_call"].tools_usd == 0.5 and "as " in after.modes["tool_call"].source and result.spent["usd"] <= told.most_usd


# ---- latency of replicates --------------------------------------------------------------------------------


class Slow(ScriptedModel):
    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        found = await super().complete(request, replicate=replicate, occurrence=occurrence)
        return replace(found, latency_s=10.0 if replicate == 2 else 0.5)


@pytest.mark.parametrize("limit", [None, 5.0])
def test_the_limit_on_latency_is_one_on_runs(tmp_path: Path, limit: float | None) -> None:
    world = PlantedWorld({"direct": 0.95, "tool_call": 0.1}, clusters=60, writes=0.0)
    task = world.task(modes=["direct", "tool_call"], objective=dse.Objective(max_p95_latency_s=limit))
    result = dse.compile(task, lm=Slow(world.reply, "scripted/planted"), registry=tmp_path, replicates=3,
                         rows=dse.Rows(search=8, select=16, holdout=16))  # fmt: skip
    if limit is None:
        assert result.verdict == "PROMOTE" and result.gate.candidate_p95_latency_s == pytest.approx(11 / 3)
    else:
        assert result.verdict == "KEEP" and result.gate.candidate_p95_latency_s == 10.0
    assert result.artifact.verify(recompute).ok


# ---- accounts ---------------------------------------------------------------------------------------------


def accounted(folder: Path, reply: Callable[[Any], Any]) -> Any:
    return dse.compile(saying(), lm=ScriptedModel(reply, NAME, params={"max_tokens": 50}), registry=folder, prices=PRICES,
                       budget=dse.Budget(usd=50), rows=dse.Rows(4, 6, 8), concurrency=1)  # fmt: skip


def printed(result: Any) -> str:
    shown = StringIO()
    print_compile(Console(file=shown, width=250), result)
    return shown.getvalue()


def test_every_request_is_in_the_accounts(tmp_path: Path) -> None:
    asked = Counter[str]()

    def failing(request: Any) -> Any:
        asked["all"] += 1
        if asked["all"] == 3:
            asked["cut"] += 1
            return ModelUnavailable("cut off", kind="transport")
        if asked["all"] == 6:
            asked["busy"] += 1
            return ModelUnavailable("busy", kind="rate", status=429)
        return answered(asked_for(request).upper())

    plain = accounted(tmp_path / "plain", lambda request: answered(asked_for(request).upper()))
    rough = accounted(tmp_path / "rough", failing)
    assert rough.artifact.artifact_id == plain.artifact.artifact_id, "what failed is no evidence"
    for result in (plain, rough):
        for mine, theirs in (("model_calls", "model_calls"), ("cost_usd", "usd")):
            assert total(result, mine) == pytest.approx(result.spent[theirs], abs=1e-5)
        assert total(result, "input_tokens") + total(result, "output_tokens") == result.spent["tokens"]
        assert {one["stage"] for one in result.accounts} == {"search", "select", "holdout"}
    assert rough.spent["model_calls"] == asked["all"] == plain.spent["model_calls"] + 2
    assert (total(rough, "unanswered"), total(rough, "refused")) == (1, 1)
    assert total(rough, "unanswered_usd") == pytest.approx(rough.spent["usd"] - plain.spent["usd"], abs=1e-5) and asked["cut"] == 1
    assert "asked without an answer: 1, up to 0.0006 USD" in printed(rough) and "refused: 1" in printed(rough)
    assert "without an answer" not in printed(plain)
    again = accounted(tmp_path / "rough", failing)
    assert list(again.accounts) == [] and again.spent["model_calls"] == 0 and "Paid for by this compile: nothing" in printed(again)
    assert again.artifact.evidence.spend == rough.artifact.evidence.spend


# ---- a judge without a price ------------------------------------------------------------------------------


def judged(**options: Any) -> dse.Task:
    opinions = ScriptedModel(lambda request: "5", "scripted/judge", params={"max_tokens": 5})

    @dse.metric(kind="judge", revision="1", judge=Judge(opinions, **options))
    async def nice(example: Any, prediction: Any, ctx: Any) -> float:
        return float(await ctx.lm.ask(f"1 to 5? {prediction.a}", parse=rating(1, 5)))

    return saying(metric=nice)


def capitals() -> ScriptedModel:
    return ScriptedModel(lambda request: answered(asked_for(request).upper()), NAME, params={"max_tokens": 50})


def test_a_judge_without_a_price_is_refused_before_anything_is_paid_for(tmp_path: Path) -> None:
    model, task = capitals(), judged()
    options: dict[str, Any] = {"lm": model, "registry": tmp_path, "prices": PRICES, "rows": ROWS}
    for what in (dse.forecast, dse.compile):
        with pytest.raises(PriceMissing, match="scripted/judge"):
            what(task, budget=dse.Budget(usd=1), **options)  # type: ignore[operator]
    assert model.requests == [] and not list(tmp_path.glob("**/judge*"))
    assert not dse.forecast(task, budget=dse.Budget(model_calls=500), **options).notes
    both = dse.PriceTable("both", "2026-01-01", {NAME: (1.0, 10.0), "scripted/judge": (1.0, 10.0)})
    result = dse.compile(task, budget=dse.Budget(usd=1), **{**options, "prices": both})
    assert {one["model"] for one in result.accounts} == {NAME, "scripted/judge"}


def test_a_recorded_judge_needs_a_price_for_what_it_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "judge.jsonl"
    options: dict[str, Any] = {"prices": PRICES, "rows": ROWS}
    task = judged(cassette=file)
    with pytest.raises(PriceMissing):
        dse.forecast(task, lm=capitals(), registry=tmp_path / "a", budget=dse.Budget(usd=1), **options)
    dse.compile(task, lm=capitals(), registry=tmp_path / "a", **options)
    told: list[str] = []
    result = dse.compile(task, lm=capitals(), registry=tmp_path / "b", budget=dse.Budget(usd=1), say=told.append, **options)
    task.metric.judge.close()
    assert {one["model"] for one in result.accounts} == {NAME} and any("the judge has no price" in line for line in told)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]))
    task = judged(cassette=file)
    assert "the judge has no price" in str(dse.forecast(task, lm=capitals(), registry=tmp_path / "c", budget=dse.Budget(usd=1), **options))
    with pytest.raises(PriceMissing, match="scripted/judge"):
        dse.compile(task, lm=capitals(), registry=tmp_path / "c", budget=dse.Budget(usd=1), **options)
