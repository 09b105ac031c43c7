"""Rollouts per second with CPU-bound tools: in this process, and on a Ray cluster of 1, 2 and 4 workers.

All cases run in turns, on the same rollouts. How much there is to gain is bounded by the processors of the machine, which
the page names; what a cluster costs is seen with tools that compute nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

import dse
from benchmarks.compile_cost import report
from benchmarks.measure import Row, Spread, interleaved
from dse.evaluation.evaluator import Evaluator
from dse.evaluation.executor import Executor, LocalExecutor
from dse.store.journal import Store
from dse.strategies.base import seed_plan
from dse.testing.scripted import ScriptedModel, call

__all__ = ["Compute", "measure"]

OUT = Path(__file__).with_name("FANOUT.md")


@dse.tool(effect="pure", revision="1")
def work(rounds: int) -> int:
    """Computes in Python for a while: some 30 ms for 100 rounds."""
    total = 0
    for number in range(rounds * 4000):
        total = (total * 31 + number) % 1_000_003
    return total


class Compute(dse.Signature):
    """Compute."""

    n: int = dse.InputField()
    result: int = dse.OutputField()
    tools = [work]


def _reply(rounds: int) -> Callable[[Any], Any]:
    def reply(request: Any) -> Any:
        done = sum(message["role"] == "tool" for message in request["messages"])
        return call(("submit", {"result": 1})) if done >= 3 else call(("work", {"rounds": rounds}))

    return reply


def measure(*, reps: int = 3, rollouts: int = 48, rounds: int = 100, workers: tuple[int, ...] = (1, 2, 4)) -> list[Row]:
    """Rollouts per second, per number of workers, with tools that compute and with tools that do not."""
    import ray

    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        from dse.evaluation.ray_executor import RayExecutor

        executors: dict[str, Executor] = {"this process": LocalExecutor()}
        executors |= {f"Ray, {count} worker{'s' * (count > 1)}": RayExecutor(workers=count, cpus=0) for count in workers}
        rows = []
        for what, size in (("three tools of CPU-bound Python each", rounds), ("three tools that compute nothing", 0)):
            rows += _compared(executors, what, size, reps, rollouts)
        for executor in executors.values():
            anyio.run(executor.aclose)
        return rows
    finally:
        ray.shutdown()


def _compared(executors: dict[str, Executor], what: str, size: int, reps: int, rollouts: int) -> list[Row]:
    task = dse.Task(Compute, dataset=None, metric=lambda example, prediction, ctx: 1.0, modes=["tool_call"])
    plans = {"tools": seed_plan(Compute.spec(), "tool_call")}
    examples = [dse.Example(f"row{n}", {"n": n}) for n in range(rollouts)]

    def case(executor: Executor) -> Callable[[], None]:
        async def go() -> None:
            store = Store(":memory:")
            records = await Evaluator(task, ScriptedModel(_reply(size)), store, concurrency=16, executor=executor).evaluate(plans, examples)
            store.close()
            assert len(records) == rollouts and all(r.tool_calls == 3 and r.outcome == "ok" for r in records)

        return lambda: anyio.run(go)

    samples = interleaved({name: case(executor) for name, executor in executors.items()}, reps=reps)
    base = samples["this process"]
    rows = []
    for name, sample in samples.items():
        rate = Spread.of([rollouts / seconds for seconds in sample.wall])
        times = Spread.of([b / a for a, b in zip(sample.wall, base.wall, strict=True)])
        rows.append(Row("fanout", f"{what}: {name}", f"{rate.text(1)} rollouts/s; {times.text()}x this process"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name}")
    parser.add_argument("--reps", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    page = report(measure(reps=args.reps), "Rollouts on more than one processor",
                  "Made by `python -m benchmarks.fanout --write`: 48 rollouts in mode `tool_call`, three tool calls and four model "
                  "calls each, 16 at once. The scripted model answers at once, in this process: every model call of a worker "
                  f"comes here and goes back. The machine has {os.cpu_count()} processors.")  # fmt: skip
    print(page)
    if args.write:
        OUT.write_text(page)


if __name__ == "__main__":
    main()
