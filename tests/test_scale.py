"""What is read and written together is what was read and written one by one."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from benchmarks import compile_cost
from dse import analysis
from dse.errors import StoreUnavailable
from dse.evaluation.evaluator import Evaluator
from dse.store.journal import Store
from dse.store.rollouts import Scored
from dse.store.together import Together
from dse.strategies.base import seed_plan
from dse.testing.worlds import AskWarehouse, PlantedWorld

WORLD = PlantedWorld({"direct": 0.5, "tool_call": 0.9}, clusters=20)
PLANS = {mode: seed_plan(AskWarehouse.spec(), mode) for mode in ("direct", "tool_call")}
METRIC = "stock_right@1"


def evaluated(store: Store) -> list[Any]:
    return anyio.run(lambda: Evaluator(WORLD.task(), WORLD.model(), store, concurrency=16).evaluate(PLANS, WORLD.dataset().split("select")))


def test_outcomes_are_what_the_records_say(store_url: str) -> None:
    store = Store(store_url)
    records = evaluated(store)
    found = store.outcomes(METRIC)
    assert {one.rollout_id: (one.score, one.cluster, one.row_hash, one.latency_s, one.input_tokens, one.model_calls) for one in found} == {
        r.rollout_id: (r.score, r.cluster, r.row_hash, r.latency_s, r.input_tokens, r.model_calls) for r in records}  # fmt: skip
    assert [one[:3] for one in found] == sorted(one[:3] for one in found)
    first = found[0].program_id
    assert store.outcomes(METRIC, programs=[first]) == [one for one in found if one.program_id == first]
    assert store.outcomes(METRIC, signature="AskWarehouse") == found and store.outcomes(METRIC, signature="Other") == []
    assert [one.score for one in store.outcomes("other@1")] == [None] * len(found)
    calls = {rollout_id: calls for rollout_id, *_, calls in store.calls()}
    assert {r.rollout_id: [c["tool"] for c in r.receipt["calls"]] for r in records} == {
        i: [c["tool"] for c in made] for i, made in calls.items()}  # fmt: skip
    store.close()


def test_frames_show_what_rollouts_hold(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    records = {r.rollout_id: r for r in evaluated(store)}
    unscored = {**store.rollout(next(iter(records))), "rollout_id": "sha256:new"}  # type: ignore[dict-item]
    unscored.pop("created")
    store.save_rollout(unscored)
    store.save_score(next(iter(records)), "other@1", 0.5, "so so", {"part": 0.5})
    frame, rows = analysis.rollouts(store), store.rollouts()
    assert list(frame["rollout_id"]) == [row["rollout_id"] for row in rows] and len(rows) == len(records) + 2
    assert list(frame["allow"]) == [tuple(row["allow"]) for row in rows]
    assert list(frame["components"].where(frame["components"].notna(), None)) == [row["components"] for row in rows]
    assert int(frame["score"].isna().sum()) == 1 and gc.isenabled()
    calls = [call for held in (*(r.receipt for r in records.values()), unscored["receipt"]) for call in held["calls"]]
    assert len(analysis.calls(store)) == len(calls)  # a rollout with two scores counts once
    store.close()


def test_a_rollout_is_recorded_once_however_many_come_together(store_url: str) -> None:
    store = Store(store_url)
    evaluated(store)
    row = store.rollouts(with_journal=True)[0]
    again = {k: v for k, v in row.items() if k not in ("metric", "score", "feedback", "components", "created")}
    other = {**again, "rollout_id": "sha256:other", "latency_s": 1}
    kept = store.save_rollouts([{**again, "outcome": "failed"}, other])
    assert [one["outcome"] for one in kept] == ["ok", "ok"] and kept[0] == store.rollout(row["rollout_id"])
    assert kept[1] == store.rollout("sha256:other") and kept[1]["latency_s"] == 1.0
    scores = store.save_scores([Scored("sha256:other", METRIC, 1, "a \0 b", {}), Scored("sha256:other", METRIC, 0.0, None, {})])
    assert [one["value"] for one in scores] == [1.0, 1.0] and scores[0] == store.score("sha256:other", METRIC)
    store.close()


def test_whatever_comes_at_the_same_time_is_written_in_few_transactions() -> None:
    written: list[int] = []
    with_store = Store(":memory:")

    def write(items: Any) -> list[int]:
        written.append(len(items))
        if 13 in items:
            raise ValueError("13")
        if 99 in items:
            raise StoreUnavailable("gone")
        return [10 * item for item in items]

    async def all_of(items: Any) -> list[Any]:
        together: Together[int, int] = Together(with_store, write)
        found: list[Any] = [None] * len(items)

        async def one(at: int, item: int) -> None:
            try:
                found[at] = await together(item)
            except Exception as exc:
                found[at] = exc

        async with anyio.create_task_group() as group:
            for at, item in enumerate(items):
                group.start_soon(one, at, item)
        return found

    assert anyio.run(all_of, list(range(12))) == [10 * n for n in range(12)] and sum(written) == 12 and len(written) <= 3
    *others, bad = anyio.run(all_of, [1, 2, 3, 13])
    assert others == [10, 20, 30] and isinstance(bad, ValueError)
    lost = anyio.run(all_of, [98, 99, 97])
    assert sum(isinstance(one, StoreUnavailable) for one in lost) >= 1 and len({id(one) for one in lost}) == 3
    with_store.close()


def test_what_is_known_is_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second evaluation asks the store twice, however many rollouts it takes from there."""
    store = Store(tmp_path / "a.db")
    before = evaluated(store)
    asked: list[str] = []
    fetch = store._fetch
    monkeypatch.setattr(store, "_fetch", lambda text, given: asked.append(text) or fetch(text, given))
    after = evaluated(store)
    assert [r.rollout_id for r in after] == [r.rollout_id for r in before] and all(r.reused for r in after) and len(asked) == 2
    store.close()


def test_the_benchmark_of_a_compile_has_rows_with_targets() -> None:
    rows = compile_cost.measure(reps=1, clusters=30, rollouts=60)
    assert [row.topic for row in rows] == ["compile", "store", "store", "store", "store", "race"]
    assert all(row.target and "nan" not in row.figures for row in rows) and "60 rows" in rows[1].figures
    assert int(re.search(r"up to (\d+) outcomes told", rows[-1].what)[1]) > 60  # type: ignore[index]
    page = compile_cost.report(rows, "A title", "About it.")
    assert page.startswith("# A title\n\nAbout it.") and page.count("| met |") + page.count("| **missed** |") == 6
