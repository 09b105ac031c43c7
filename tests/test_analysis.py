"""Frames and plots of a compile."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dse
from dse import analysis
from dse.analysis.plots import pareto_front
from dse.compiler.compile import CompileResult
from dse.testing.worlds import PRICES, PlantedWorld

WORLD = PlantedWorld({"direct": 0.9, "tool_call": 0.3}, clusters=40)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompileResult, dse.Store]:
    folder = tmp_path_factory.mktemp("analysis")
    task = WORLD.task(modes=["direct", "tool_call"])
    result = dse.compile(task, lm=WORLD.model(), registry=folder, prices=PRICES)
    return result, dse.Store(folder / "dse.db")


def test_candidates_from_artifact_and_store_agree(compiled: tuple[CompileResult, dse.Store]) -> None:
    result, store = compiled
    from_artifact, from_store = analysis.candidates(result.artifact), analysis.candidates(store)
    assert set(from_artifact["candidate"]) == set(result.plans) == set(from_store["candidate"])
    joined = from_artifact.merge(from_store, on="candidate")
    assert (joined["quality_x"] == joined["quality_y"]).all() and (joined["n_x"] == joined["n_y"]).all()
    row = from_artifact.set_index("candidate").loc[result.winner]
    assert row["quality"] == result.table[result.winner]["quality"] and row["quality_low"] <= row["quality"] <= row["quality_high"]
    assert isinstance(row["allow"], tuple)


def test_rollouts_and_calls(compiled: tuple[CompileResult, dse.Store]) -> None:
    result, store = compiled
    rollouts = analysis.rollouts(store, "AskWarehouse")
    assert len(rollouts) == len({r.rollout_id for records in result.records.values() for r in records})
    assert {"rollout_id", "mode", "score", "outcome", "cost_usd", "cost_source", "latency_s", "candidate", "stage"} <= set(rollouts.columns)
    assert set(rollouts["stage"]) == {"search", "select", "holdout"}
    assert analysis.rollouts(store, "Nobody").empty
    calls = analysis.calls(store)
    assert set(calls["mode"]) == {"tool_call"} and set(calls["tool"]) <= {"find_item", "get_stock", "reserve", "get_weather"}
    assert len(calls) == rollouts["tool_calls"].sum()


def test_paired(compiled: tuple[CompileResult, dse.Store]) -> None:
    result, _ = compiled
    rows = analysis.paired(result.artifact)
    assert len(rows) == result.gate.n_rows
    assert rows["difference"].mean() == pytest.approx(result.gate.quality_difference.estimate)


def test_plots_show_every_row(compiled: tuple[CompileResult, dse.Store]) -> None:
    result, store = compiled
    frame = analysis.candidates(store)
    quality = analysis.plot_quality(frame)
    assert len(quality.get_yticks()) == len(frame)
    pareto = analysis.plot_pareto(frame)
    assert sum(len(c.get_offsets()) for c in pareto.collections) == len(frame) and "USD" in pareto.get_xlabel()
    rows = analysis.paired(result.artifact)
    wins = analysis.plot_wins(rows)
    assert len(wins.patches) == len(rows) and f"{(rows['difference'] > 0).sum()} wins" in wins.get_title()
    matplotlib.pyplot.close("all")


def test_unknown_costs_are_shown_as_tokens(compiled: tuple[CompileResult, dse.Store]) -> None:
    frame = analysis.candidates(compiled[1]).assign(cost_usd=None)
    assert analysis.plot_pareto(frame).get_xlabel().startswith("tokens per run")
    matplotlib.pyplot.close("all")


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    frame = pd.DataFrame(points, columns=["cost", "quality"])
    front = pareto_front(frame, "cost")
    for cost, quality in points:
        covered = front[(front["cost"] <= cost) & (front["quality"] >= quality)]
        assert not covered.empty
    beaten = [(a, b) for a in front.itertuples() for b in frame.itertuples()
              if b.cost <= a.cost and b.quality > a.quality]  # fmt: skip
    assert not beaten


def test_an_empty_store_gives_empty_frames(tmp_path: Path) -> None:
    store = dse.Store(tmp_path / "empty.db")
    assert analysis.candidates(store).empty and analysis.rollouts(store).empty and analysis.calls(store).empty
