"""Frames, plots and words: what a store and an artifact hold, and that figures show all of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import dse
from dse import analysis
from dse.analysis.explanation import explain
from dse.analysis.plots import pareto_front
from dse.analysis.report import decision_table, print_compile, print_eval
from dse.analysis.verdict import gain_parts
from dse.compiler.compile import CompileResult
from dse.evaluation.report import evaluate_artifact
from dse.store.journal import Store
from dse.testing.worlds import NAME, PRICES, PlantedWorld, stock_right

matplotlib.use("Agg")
WORLD = PlantedWorld({"direct": 0.9, "tool_call": 0.4}, clusters=30)
TASK = WORLD.task(modes=["direct", "tool_call"])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CompileResult, Store]]:
    folder = tmp_path_factory.mktemp("analysed")
    store = Store(folder / "dse.db")
    yield dse.compile(TASK, lm=WORLD.model(), registry=folder, store=store, prices=PRICES), store
    store.close()


@pytest.fixture(autouse=True)
def no_open_figures() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


# ---- frames -----------------------------------------------------------------------------------------------

SHARED = ["candidate", "mode", "allow", "n", "quality", "quality_low", "quality_high", "cost_usd", "cost_source", "tokens_in",
          "tokens_out", "usage_source", "latency_s", "latency_source", "model_calls", "tool_calls", "failures"]  # fmt: skip


def test_candidates_are_the_same_from_an_artifact_and_from_a_store(compiled: tuple[CompileResult, Store]) -> None:
    result, store = compiled
    one, other = analysis.candidates(result.artifact), analysis.candidates(store)
    assert list(one.columns) == [*SHARED, "program_id"] and list(other.columns) == ["compile_id", "signature", *SHARED]
    by_name = [frame.sort_values("candidate", ignore_index=True)[SHARED] for frame in (one, other)]
    pd.testing.assert_frame_equal(*by_name)
    assert dict(zip(one["candidate"], one["quality"], strict=True)) == {n: row["quality"] for n, row in result.table.items()}
    assert dict(zip(one["candidate"], one["allow"], strict=True)) == {n: p.allow for n, p in result.plans.items()}
    assert set(other["compile_id"]) == {result.artifact.evidence.inputs_digest} and set(other["signature"]) == {"AskWarehouse"}
    assert len(analysis.candidates(store, compile_id="another")) == 0


def test_rollouts_are_one_row_per_rollout_and_metric(compiled: tuple[CompileResult, Store]) -> None:
    result, store = compiled
    frame = analysis.rollouts(store)
    records = {r.rollout_id: r for stage in result.records.values() for r in stage}
    assert set(frame["rollout_id"]) == set(records) and frame["rollout_id"].is_unique
    assert frame["stage"].value_counts().to_dict() == {stage: len(rows) for stage, rows in result.records.items()}
    for row in frame.itertuples():
        record = records[row.rollout_id]
        assert (row.candidate, row.score, row.cluster, row.metric) == (record.candidate, record.score, record.cluster, "stock_right@1")
        assert (row.input_tokens, row.latency_s, row.cost_source) == (record.input_tokens, record.latency_s, record.cost_source)
        assert row.cost_usd == pytest.approx(record.cost_usd)
    by_name = frame[frame["stage"] == "select"].groupby("candidate")["score"].mean().to_dict()
    assert by_name == pytest.approx({name: row["quality"] for name, row in result.table.items()})
    assert len(analysis.rollouts(store, "Other")) == 0 and len(analysis.rollouts(store, "AskWarehouse")) == len(frame)


def test_calls_are_counted_once_however_often_they_were_scored(compiled: tuple[CompileResult, Store]) -> None:
    result, store = compiled
    records = {r.rollout_id: r for stage in result.records.values() for r in stage}
    before = analysis.calls(store)
    assert list(before.columns) == ["rollout_id", "signature", "mode", "call_id", "tool", "effect", "outcome", "fault", "latency_s"]
    assert len(before) == sum(r.tool_calls for r in records.values()) and set(before["mode"]) == {"tool_call"}
    assert dict(before.groupby("tool")["effect"].first()) == {
        "find_item": "read", "get_stock": "read", "get_weather": "read", "reserve": "write"}  # fmt: skip
    again = dse.metric(stock_right.fn, revision="2", name="stock_right")
    rescored = dse.evaluate(WORLD.task(metric=again), result.plans["tool_call/all/seed"], lm=WORLD.model(), split="select", store=store)
    assert all(r.reused for r in rescored)
    assert len(analysis.rollouts(store)) == len(records) + len(rescored)
    assert len(analysis.calls(store)) == len(before)


def test_paired_rows_are_those_of_the_gate(compiled: tuple[CompileResult, Store]) -> None:
    result, _ = compiled
    frame = analysis.paired(result.artifact)
    assert len(frame) == result.gate.n_rows and frame["row_hash"].is_unique
    assert frame["difference"].mean() == pytest.approx(result.gate.quality_difference.estimate)
    assert ((frame["difference"] > 0).sum(), (frame["difference"] < 0).sum()) == (result.gate.wins, result.gate.losses)
    assert (frame["candidate_cost"] < frame["incumbent_cost"]).all()


def test_an_empty_store_gives_empty_frames_with_their_columns() -> None:
    store = Store(":memory:")
    for frame in (analysis.candidates(store), analysis.rollouts(store), analysis.calls(store)):
        assert len(frame) == 0 and {"mode", "signature"} <= set(frame.columns)
    store.close()


# ---- plots ------------------------------------------------------------------------------------------------


def test_plot_quality_shows_every_candidate_with_its_interval(compiled: tuple[CompileResult, Store]) -> None:
    frame = analysis.candidates(compiled[0].artifact)
    ax = analysis.plot_quality(frame)
    assert len(ax.containers) == len(frame)
    points = sorted(float(c.lines[0].get_xdata()[0]) for c in ax.containers)
    assert points == pytest.approx(sorted(frame["quality"]))
    spans = sorted(tuple(c.lines[2][0].get_segments()[0][:, 0]) for c in ax.containers)
    assert np.allclose(spans, sorted(zip(frame["quality_low"], frame["quality_high"], strict=True)))
    assert sorted(t.get_text() for t in ax.get_yticklabels()) == sorted(frame["candidate"])
    off = frame.assign(quality_high=frame["quality"] - 1e-17, quality_low=frame["quality"] + 1e-17)
    analysis.plot_quality(off, ax)


@pytest.mark.parametrize("priced", [True, False])
def test_plot_pareto_shows_every_candidate_and_the_front(compiled: tuple[CompileResult, Store], priced: bool) -> None:
    frame = analysis.candidates(compiled[0].artifact)
    frame = frame if priced else frame.assign(cost_usd=None)
    ax = analysis.plot_pareto(frame)
    cost = frame["cost_usd"] if priced else frame["tokens_in"] + frame["tokens_out"]
    points = sorted(map(tuple, (p for c in ax.collections for p in c.get_offsets().data)))
    assert len(points) == len(frame) and np.allclose(points, sorted(zip(cost, frame["quality"], strict=True)))
    front = pareto_front(frame.assign(cost=cost), "cost")
    assert sorted(t.get_text() for t in ax.texts) == sorted(front["candidate"])
    assert ax.get_xlabel() == ("USD per run (estimated)" if priced else "tokens per run (estimated)")


def test_plot_wins_shows_every_sealed_row(compiled: tuple[CompileResult, Store]) -> None:
    gate = compiled[0].gate
    ax = analysis.plot_wins(analysis.paired(compiled[0].artifact), labels=("new", "old"))
    heights = [bar.get_height() for bar in ax.patches]
    assert len(heights) == gate.n_rows and heights == sorted(heights)
    assert (sum(h > 0 for h in heights), sum(h < 0 for h in heights)) == (gate.wins, gate.losses)
    assert ax.get_title() == f"new against old in utility: {gate.wins} wins, {gate.losses} losses, {gate.ties} ties"


def test_plots_draw_into_given_axes_and_of_nothing(compiled: tuple[CompileResult, Store]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3)
    frame = analysis.candidates(compiled[0].artifact)
    rows = analysis.paired(compiled[0].artifact)
    drawn = [analysis.plot_quality(frame, axes[0]), analysis.plot_pareto(frame, axes[1]), analysis.plot_wins(rows, axes[2])]
    assert drawn == list(axes)
    figure.canvas.draw()
    assert analysis.plot_quality(frame.iloc[:0]).containers == []
    assert list(analysis.plot_pareto(frame.iloc[:0]).texts) == []


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=14)


@given(points, st.randoms())
def test_the_pareto_front_is_what_no_other_candidate_beats(data: list[tuple[int, int]], random: Any) -> None:
    frame = pd.DataFrame({"cost": [c for c, _ in data], "quality": [q / 5 for _, q in data]})
    front = pareto_front(frame, "cost")
    found = list(zip(front["cost"], front["quality"], strict=True))
    every = set(zip(frame["cost"], frame["quality"], strict=True))
    best = {(c, q) for c, q in every if not any((c2 <= c and q2 >= q) and (c2, q2) != (c, q) for c2, q2 in every)}
    assert set(found) == best and len(found) == len(best)
    assert found == sorted(found), "cheapest first"
    shuffled = pareto_front(frame.sample(frac=1, random_state=random.randrange(100)), "cost")
    assert list(zip(shuffled["cost"], shuffled["quality"], strict=True)) == found


# ---- words ------------------------------------------------------------------------------------------------


def printed(fn: Any, *args: Any) -> str:
    text = io.StringIO()
    fn(Console(file=text, width=160, highlight=False), *args)
    return text.getvalue()


def test_a_compile_is_told_with_all_its_figures(compiled: tuple[CompileResult, Store]) -> None:
    result, _ = compiled
    text = printed(print_compile, result)
    for name, row in result.table.items():
        line = next(line for line in text.splitlines() if name in line)
        assert f"{row['quality']:.3f} [{row['quality_low']:.2f}, {row['quality_high']:.2f}]" in line
        assert f"{row['cost_usd']:.5f} est." in line and f"{row['failures']}/{row['n']}" in line
    assert f"{result.winner} <- winner" in text and f"{result.incumbent} <- incumbent" in text
    assert result.verdict in text and f"p = {result.gate.p_value:.4g}" in text and result.ref in text
    assert f"Completions: {NAME}" in text and "prices: planted prices" in text


def test_a_priced_verdict_is_told_by_its_parts(tmp_path: Path) -> None:
    """Equal quality, lower cost: the gain is in what has a price, and wins are counted in utility."""
    world = PlantedWorld({"direct": 1.0, "tool_call": 1.0}, clusters=60, writes=0.0)
    objective = dse.Objective(cost_weight=4.0, exposure_weight=0.01, max_quality_loss=0.05)
    result = dse.compile(world.task(modes=["direct", "tool_call"], objective=objective), lm=world.model(), registry=tmp_path,
                         prices=PRICES)  # fmt: skip
    gate, text = result.gate, explain(result.artifact)
    parts = gain_parts(result.artifact.evidence.paired)
    assert sum(parts.values()) == pytest.approx(gate.mean_difference.estimate) and set(parts) == {"quality", "cost", "tools"}
    assert (result.verdict, parts["quality"], parts["tools"]) == ("PROMOTE", 0.0, pytest.approx(0.04)) and parts["cost"] > 0
    assert "Objective: quality - 4 x USD + 0.01 per effect removed (prices: planted prices); quality loss at most 0.05" in text
    assert f"is made of: quality +0.000, cost {parts['cost']:+.3f}, tools +0.040" in text
    assert f"wins/losses/ties in utility {gate.wins}/0/0, in quality 0/0/{gate.n_rows}" in text
    assert gate.mean_difference.low < 0 and "one win and one loss that these rows did not show" in text
    rows = analysis.paired(result.artifact)
    assert rows["utility_difference"].mean() == pytest.approx(gate.mean_difference.estimate)
    assert f"{gate.wins} wins, 0 losses, 0 ties" in analysis.plot_wins(rows).get_title()
    assert f"0 wins, 0 losses, {gate.n_rows} ties" in analysis.plot_wins(rows, by="quality").get_title()
    mine, theirs = (result.holdout_table[name] for name in (result.winner, result.incumbent))
    share = 1 - (mine["tokens_in"] + mine["tokens_out"]) / (theirs["tokens_in"] + theirs["tokens_out"])
    assert f"({share:.0%} less)" in printed(print_compile, result)


def test_a_tie_says_what_the_objective_does_not_price(tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 1.0, "tool_call": 1.0}, clusters=40, writes=0.0)
    result = dse.compile(world.task(modes=["direct", "tool_call"]), lm=world.model(), registry=tmp_path)
    assert (result.verdict, result.winner) == ("KEEP", "direct/none/seed")
    text = explain(result.artifact)
    assert "Objective: quality alone; cost, latency and tools have no price" in text
    assert "fewer tokens and 4 tools fewer on select rows; the objective prices neither" in text
    baseline = explain(f"{tmp_path}/AskWarehouse@champion")
    assert "is the baseline itself: there was nothing to test" in baseline and "fewer tokens" not in baseline


def test_analysis_takes_references_and_says_what_else_it_takes(compiled: tuple[CompileResult, Store], tmp_path: Path) -> None:
    artifact = compiled[0].artifact
    dse.Registry(tmp_path).put(artifact)
    ref = f"{tmp_path}/AskWarehouse@{artifact.artifact_id}"
    assert explain(ref) == explain(artifact)
    pd.testing.assert_frame_equal(analysis.paired(ref), analysis.paired(artifact))
    pd.testing.assert_frame_equal(analysis.candidates(ref), analysis.candidates(artifact))
    for call in (lambda: analysis.calls("x.db"), lambda: analysis.rollouts("x.db"), lambda: analysis.paired(7),
                 lambda: analysis.plot_wins(analysis.paired(ref), by="cost")):  # fmt: skip
        with pytest.raises(dse.errors.UserError):
            call()


def test_an_artifact_is_explained_from_itself_alone(compiled: tuple[CompileResult, Store], tmp_path: Path) -> None:
    result, _ = compiled
    result.artifact.save(tmp_path / "a.json")
    text = explain(dse.Artifact.load(tmp_path / "a.json"))
    assert text == explain(result.artifact)
    for name in result.plans:
        assert name in text
    assert f"{result.winner.ljust(32)} quality" in text and "<- this artifact" in text
    assert f"differences below {result.gate.mde:.3f}" in text and "opened" not in text


def test_an_evaluation_is_told_with_its_conditions(compiled: tuple[CompileResult, Store]) -> None:
    artifact = compiled[0].artifact
    report = evaluate_artifact(artifact, TASK, lm=WORLD.model(), against=artifact, min_score=0.999)
    text = printed(print_eval, report)
    assert report.difference == (0.0, 0.0, 0.0) and "Difference in quality: +0.000 [+0.000, +0.000]" in text
    assert report.failures and f"FAILED: {report.failures[0]}" in text
    plain = evaluate_artifact(artifact, TASK, lm=WORLD.model(), prices=PRICES)
    shown = printed(print_eval, plain)
    assert "passed" not in shown and "nothing was asked of it" in shown, "no condition was given"
    assert f"{artifact.plan.mode} {artifact.artifact_id[7:19]} (artifact)" in shown and "est." in shown
    assert "passed" in printed(print_eval, evaluate_artifact(artifact, TASK, lm=WORLD.model(), min_score=0.1))
    one = evaluate_artifact(artifact, TASK, lm=WORLD.model(), against=artifact, max_rows=1)
    assert one.difference == (-1.0, 0.0, 1.0) and not one.failures, "one cluster decides nothing"


def test_unknown_costs_are_not_shown_as_zero() -> None:
    row = {"n": 2, "quality": 0.5, "quality_low": 0.1, "quality_high": 0.9, "cost_usd": None, "cost_source": "unknown", "failures": 0,
           "tokens_in": 10.0, "tokens_out": 5.0, "usage_source": "unknown", "model_calls": 1.0, "tool_calls": 0.0}  # fmt: skip
    priced = row | {"cost_usd": 0.25, "cost_source": "exact", "usage_source": "exact"}
    text = printed(lambda console: console.print(decision_table({"a [x]": row, "b": priced})))
    first, second = (next(line for line in text.splitlines() if name in line) for name in ("a [x]", "│ b"))
    assert " ? " in first and "15 ?" in first and "0.25000" in second and "?" not in second
