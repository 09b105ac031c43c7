"""Tools cost something to leave out, or they do not: a wider allow-list wins where its rows show it, and the figures are theirs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import dse
from dse.analysis.explanation import explain
from dse.analysis.report import print_compile
from dse.statistics import paired_interval
from dse.testing.worlds import PlantedWorld

READS = ("find_item", "get_stock")
EVERY = ("find_item", "get_stock", "get_weather", "reserve")
WORLD = PlantedWorld({"tool_call": 0.3, "code": 1.0}, clusters=80, writes=0.0, detours=0.0)
PRICE = 0.01  # of an effect


def data(every: int) -> dse.Dataset:
    """No search row reserves anything, so that the search proposes to do without; every so many-th of the other rows does."""
    assignment = WORLD.dataset().assignment
    rows = WORLD.rows()
    for row in [row for row in rows if assignment[row["site"]] != "search"][::every]:
        item = row["request"].removeprefix("How many pieces of ").removesuffix(" are left?")
        row.update(request=f"Reserve 2 pieces of {item}. What is left then?", reserved=2, left=row["left"] - 2)
    return dse.Dataset.from_rows(rows, name="warehouse", fields={"request": "input", "left": "label", "reserved": "label", "site": "meta"},
                                 cluster_key="site", assignment=assignment)  # fmt: skip


def compiled(folder: Path, every: int, **options: Any) -> dse.CompileResult:
    task = WORLD.task(dataset=data(every), modes=["tool_call", "code"], objective=dse.Objective(exposure_weight=PRICE))
    result = dse.compile(task, lm=WORLD.model(), registry=folder, **options)
    assert result.lists.all == EVERY and result.lists.union == result.lists.minimal == READS
    return result


def told(result: dse.CompileResult) -> str:
    out = io.StringIO()
    print_compile(Console(file=out, width=400), result)
    return out.getvalue()


def check_figures(result: dse.CompileResult) -> None:
    """Every pair of lists that differ in nothing else is there, with the figures of the rows that both ran on."""
    scores: dict[str, dict[str, tuple[float, str]]] = {}
    for record in result.records["select"]:
        scores.setdefault(record.candidate, {})[record.row_hash] = (record.score, record.cluster)
    pairs = {(f"{mode}/all/seed", f"{mode}/union/seed") for mode in ("tool_call", "code")}
    assert {(one.wide, one.narrow) for one in result.removals} == {(w, n) for w, n in pairs if w in scores and n in scores}
    for one in result.removals:
        rows = sorted(scores[one.wide].keys() & scores[one.narrow].keys())
        changes = [scores[one.narrow][row][0] - scores[one.wide][row][0] + 2 * PRICE for row in rows]
        interval = paired_interval(changes, [scores[one.wide][row][1] for row in rows], unseen=1.0)
        assert (one.removed, one.effects, one.rows) == (("get_weather", "reserve"), 2, len(rows))
        assert one.change == pytest.approx(sum(changes) / len(rows))
        assert (one.low, one.high) == pytest.approx((interval.low, interval.high)) and one.low < one.change < one.high
        line = (f"without get_weather, reserve: {one.change:+.3f} [{one.low:+.3f}, {one.high:+.3f}] in utility on {one.rows} select rows "
                f"({one.narrow} against {one.wide}); 2 effects less")  # fmt: skip
        assert line in explain(result.artifact) and line in told(result)
    assert [one.model_dump() for one in result.artifact.evidence.removals] == [
        {**one.to_dict(), "removed": one.removed} for one in result.removals]  # fmt: skip


@pytest.mark.parametrize("allocation", ["race", "grid"])
def test_a_wider_list_wins_where_the_rows_need_its_tools(tmp_path: Path, allocation: str) -> None:
    result = compiled(tmp_path, 3, allocation=allocation)
    assert (result.winner, result.verdict) == ("code/all/seed", "PROMOTE")
    assert result.artifact.plan.allow == EVERY and not result.artifact.evidence.removed_tools
    check_figures(result)
    mine = next(one for one in result.removals if one.wide == "code/all/seed")
    needing = {row.row_hash for row in data(3).split("select") if row.reserved}
    ran = {r.row_hash for r in result.records["select"] if r.candidate == mine.narrow}
    assert mine.change == pytest.approx(2 * PRICE - len(needing & ran) / len(ran)), "what cannot be reserved is lost, and nothing else"
    assert len(needing & ran) >= 4, "every one of them a win and no loss: p = 1/16 at most"


def test_a_gain_that_could_be_chance_is_not_earned(tmp_path: Path) -> None:
    """The wider list is the better one on these rows as well, and by more than its price."""
    result = compiled(tmp_path, 24, allocation="grid")
    assert result.winner == "code/union/seed" and result.artifact.plan.allow == READS
    check_figures(result)
    mine = next(one for one in result.removals if one.wide == "code/all/seed")
    needing = [row for row in data(24).split("select") if row.reserved]
    assert 0 < len(needing) < 4 and mine.change == pytest.approx(2 * PRICE - len(needing) / mine.rows) and mine.change < 0
    why = (f"code/all/seed is not shown to be better than code/union/seed, which has fewer tools (p = {0.5 ** len(needing):.2g} "
           "on select rows)")  # fmt: skip
    assert result.artifact.evidence.race.chosen_because == why and f"Chosen: {why}." in explain(result.artifact)
    assert [(t["name"], t["effect"]) for t in result.artifact.evidence.removed_tools] == [("reserve", "write"), ("get_weather", "read")]
    assert "What can no longer happen: reserve." in explain(result.artifact)
