"""Every benchmark runs at its smallest and gives rows that can be shown. No assertion here is about time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import fanout, imports, overhead, run, sandbox, scripts, throughput
from benchmarks.measure import Row, Samples, Spread, interleaved
from benchmarks.scenario import Gauge, Scenario, scenario
from benchmarks.shipped import SHIPPED
from dse.strategies.script import script_plan

SMALLEST: dict[str, Callable[[], list[Row]]] = {
    "overhead": lambda: overhead.measure(reps=1, calls=(1,)),
    "sandbox": lambda: sandbox.measure(reps=1, calls=(1, 3)),
    "imports": lambda: imports.measure(reps=1),
    "throughput": lambda: throughput.measure(reps=1, runs=4, calls=2, react_reps=1, threads=2),
}

TICKET = """submit(category="other", priority="P4", order_ids=[], refund=None, deadline=None, language="en", needs_human=False)
"""


def test_every_topic_is_tried_here() -> None:
    assert set(SMALLEST) == set(run.TOPICS)


@pytest.mark.parametrize("topic", run.TOPICS)
def test_a_benchmark_gives_rows_with_figures_and_targets(topic: str) -> None:
    rows = SMALLEST[topic]()
    assert len(rows) >= 4
    assert len({row.what for row in rows}) == len(rows)
    for row in rows:
        assert row.topic == topic
        assert re.search(r"\d", row.figures) and "nan" not in row.figures
        assert "|" not in row.what + row.figures + row.target  # they stand in a table
        assert (row.met is None) == (row.target == "")
    assert any(row.target for row in rows)


def test_scripts_are_measured_against_the_modes_that_answer_their_task() -> None:
    """With scripts that nothing distilled: they are wrong, answer every row, and run as any other."""
    tasks = {shipped.name: shipped.task() for shipped in SHIPPED}
    written = {"assistant": script_plan(tasks["assistant"].spec, 'submit(action="refused")\n'),
               "tickets": script_plan(tasks["tickets"].spec, TICKET)}  # fmt: skip
    rows = scripts.measure(reps=1, rows=1, scripts=written)
    assert [re.sub(r"`(\w+)`.*", r"\1", row.what) for row in rows] == [
        "assistant", *(f"the same rows in mode {mode}, replayed, in turn with the script" for mode in ("code", "tool_call")), "assistant",
        "tickets", "the same rows in mode direct, replayed, in turn with the script", "tickets"]  # fmt: skip
    assert all(row.topic == "script" and "nan" not in row.figures and "|" not in row.what + row.figures for row in rows)
    assert [row.target for row in rows if row.met is not None] == ["median below 5 ms, no model call"] * 2
    assert all("0 tool calls, 0 model calls" in row.figures for row in (rows[0], rows[4]))
    assert all("it abstains from 0 and fails on 0" in row.figures for row in (rows[3], rows[6]))


def test_cold_starts_are_processes_with_figures() -> None:
    first, *others = scripts.cold_start(reps=1)
    assert [row.topic for row in (first, *others)] == ["cold start"] * 3
    assert first.target == "at most 0.2" and first.met is not None and all(row.met is None for row in others)
    assert all(re.search(r"\d", row.figures) and "nan" not in row.figures for row in (first, *others))


def test_rollouts_are_counted_here_and_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: rollouts on a cluster are not measured")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    rows = fanout.measure(reps=1, rollouts=2, rounds=1, workers=(1,))
    assert [row.what.split(": ") for row in rows] == [
        [tools, where] for tools in ("three tools of CPU-bound Python each", "three tools that compute nothing")
        for where in ("this process", "Ray, 1 worker")]  # fmt: skip
    assert all(row.topic == "fanout" and "rollouts/s" in row.figures and "nan" not in row.figures for row in rows)


def test_the_sides_of_a_comparison_take_turns_and_do_the_same_number_of_times() -> None:
    order: list[str] = []
    samples = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, reps=3, units=2)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert [len(s.wall) for s in samples.values()] == [3, 3]


def test_a_ratio_is_taken_within_a_repetition() -> None:
    ours, base = Samples([1.0, 20.0, 3.0], [1.0] * 3), Samples([2.0, 40.0, 3.0], [2.0] * 3)
    assert ours.ratio(base) == Spread(0.5, 0.5, 1.0)
    assert ours.cpu_ratio(base) == Spread(0.5, 0.5, 0.5)


@pytest.mark.parametrize("mode", ["tool_call", "code"])
@pytest.mark.parametrize("parallel", [False, True])
def test_both_modes_make_the_calls_that_the_scenario_says(mode: str, parallel: bool) -> None:
    task = scenario(3, parallel=parallel)
    prediction = asyncio.run(task.program(mode).acall(question=task.question))
    assert prediction.total == task.total
    assert sorted(call["arguments"]["user_id"] for call in prediction.receipt["calls"]) == [0, 1, 2]
    rounds = {"code": 1, "tool_call": 2 if parallel else 4}[mode]
    assert prediction.receipt["usage"]["model_calls"] == rounds == len(task.engine.requests)


@pytest.mark.parametrize("adapter", ["json", "chat"])
def test_react_makes_the_same_calls_in_as_many_rounds(adapter: str) -> None:
    gauge = Gauge()
    task = scenario(3, asynchronous=False, gauge=gauge)
    module = task.react()
    with task.react_context(adapter=adapter)():
        prediction = module(question=task.question)
    assert (prediction.total, prediction.termination_reason, gauge.most) == (task.total, "submit", 1)
    assert len(task.engine.requests) == 4
    assert all(request["tools"] for request in task.engine.requests)


def test_a_rollout_that_did_not_do_the_work_is_refused() -> None:
    task: Scenario = scenario(2)

    class Wrong:
        total = 0.0

    with pytest.raises(AssertionError, match=r"0\.0 instead of 21\.0"):
        task.check(Wrong())


def test_the_report_has_facts_rows_and_misses() -> None:
    rows = [Row("overhead", "one", "2 ms", "at most 1 ms", False), Row("imports", "two", "1 ms")]
    text = run.report(rows, run.machine(), shared=True, took_s=1.0)
    assert "| overhead | one | 2 ms | at most 1 ms | **missed** |" in text
    assert "| imports | two | 1 ms |  |  |" in text
    assert "shared" in text and "Python 3" in text and "pydantic-monty" in text
    assert "shared" not in run.report(rows, run.machine(), shared=False, took_s=1.0)


def test_work_in_a_child_process_counts_as_cpu_time() -> None:
    import subprocess
    import sys

    code = "sum(range(3_000_000))"

    def child() -> Any:
        subprocess.run([sys.executable, "-c", code], check=True)

    assert interleaved({"child": child}, reps=1, warmup=0)["child"].cpu[0] > 0.005
