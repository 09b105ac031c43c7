"""What a compile costs besides its model, and how fast a large store is read and a race decides.

CPU time is that of this process (event loop, store, this benchmark's scripted model) and of its children (sandbox and
checker), divided by the model calls. The model answers at once, so nothing hides behind waiting.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import dse
from benchmarks.measure import Row, Spread, Stopwatch, _ended_children, _running_children
from dse import analysis
from dse.compiler.race import Arm, Item, Outcome, make_race
from dse.evaluation.evaluator import Evaluator
from dse.portal import run_sync
from dse.store.journal import Store
from dse.strategies.base import seed_plan
from dse.testing.worlds import PRICES, PlantedWorld

__all__ = ["TARGETS", "big_store", "measure"]

TARGETS = {"call_ms": 10.0, "frames_s": 3.0, "outcomes_s": 1.0, "step_s": 1.0}
METRIC = "stock_right@1"
OUT = Path(__file__).with_name("COMPILE_COST.md")


def measure(*, reps: int = 5, clusters: int = 120, concurrency: int = 16, rollouts: int = 100_000) -> list[Row]:
    """CPU per model call of whole compiles, times of reading a store of `rollouts` rollouts, and of a race's decisions on as many."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_compiles(reps, clusters, concurrency), *_reads(Path(folder) / "big.db", reps, rollouts), _decisions(reps, rollouts)]


def _compiles(reps: int, clusters: int, concurrency: int) -> list[Row]:
    each: list[float] = []
    children: list[float] = []
    calls = rollouts = 0
    for rep in range(reps + 1):
        world = PlantedWorld(clusters=clusters if rep else 30)
        model = world.model()
        with tempfile.TemporaryDirectory() as folder:
            before = _ended_children() + _running_children()
            with Stopwatch() as watch:
                result = dse.compile(world.task(), lm=model, registry=folder, prices=PRICES, concurrency=concurrency)
            theirs = _ended_children() + _running_children() - before
        if rep:  # imports, the sandbox and the checker start once
            calls, rollouts = len(model.requests), sum(map(len, result.records.values()))
            each.append(1000 * watch.cpu / calls)
            children.append(1000 * theirs / calls)
    cpu = Spread.of(each)
    return [Row(
        "compile", f"a whole compile, {rollouts} rollouts, {calls} model calls, {concurrency} at once: CPU per model call",
        f"{cpu.text()} ms, of which {Spread.of(children).text()} ms in children", f"at most {TARGETS['call_ms']:g} ms",
        cpu.median <= TARGETS["call_ms"],
    )]  # fmt: skip


def big_store(path: Path, rollouts: int) -> Store:
    """A store of that many rollouts: real ones of three modes, each again and again under other ids."""
    world, store = PlantedWorld({"direct": 0.5, "tool_call": 0.9, "code": 0.9}, clusters=40), Store(path)
    plans = {mode: seed_plan(world.task().spec, mode) for mode in ("direct", "tool_call", "code")}
    run_sync(lambda: Evaluator(world.task(), world.model(), store).evaluate(plans, world.dataset().split("select")))
    tables = {}
    for name in ("rollouts", "scores"):
        columns = [column.name for column in store._tables[name].c]
        tables[name] = [dict(zip(columns, row, strict=True)) for row in store._fetch(f"SELECT {', '.join(columns)} FROM {name}", ())]
    scores = {row["rollout_id"]: row for row in tables["scores"]}
    made: dict[str, list[dict[str, Any]]] = {"rollouts": [], "scores": []}
    for number in range(rollouts - len(tables["rollouts"])):
        row = tables["rollouts"][number % len(tables["rollouts"])]
        other = "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()
        made["rollouts"].append({**row, "rollout_id": other, "replicate": 1 + number // len(tables["rollouts"])})
        made["scores"].append({**scores[row["rollout_id"]], "rollout_id": other})
    with store._directly(power=False) as execute:
        for name, rows in made.items():
            if rows:
                execute(store._insertion(name, rows[0]), rows)
    return store


def _reads(path: Path, reps: int, rollouts: int) -> list[Row]:
    store = big_store(path, rollouts)
    found = store.outcomes(METRIC)
    some = sorted({one.program_id for one in found})[:1]
    cases = {
        "analysis.rollouts(store)": (lambda: analysis.rollouts(store), "frames_s"),
        "analysis.calls(store)": (lambda: analysis.calls(store), "frames_s"),
        "Store.outcomes(metric): scores and costs per candidate and row": (lambda: store.outcomes(METRIC), "outcomes_s"),
        "Store.outcomes of a third of the programs": (lambda: store.outcomes(METRIC, programs=some), "outcomes_s"),
    }  # fmt: skip
    rows = []
    for what, (read, target) in cases.items():
        times, count = [], len(read())
        for _ in range(reps):
            with Stopwatch() as watch:
                read()
            times.append(watch.wall)
        wall = Spread.of(times)
        rows.append(Row("store", f"{rollouts} rollouts, {path_mb(path)} MB: {what}", f"{count} rows in {wall.text()} s",
                        f"under {TARGETS[target]:g} s: the median decides, the range is shown", wall.median < TARGETS[target]))  # fmt: skip
    store.close()
    return rows


_ARMS, _REPLICATES = 48, 6
_SHARE = 0.26  # of the full grid, which a race of so many arms asks for


def _decisions(reps: int, rollouts: int) -> Row:
    """A race that is told some `rollouts` outcomes in all: its slowest `next()` counts, and the end with the whole ranking."""
    items = max(10, math.ceil(rollouts / (_SHARE * _ARMS * _REPLICATES)))
    slowest: list[tuple[float, float]] = []
    end: list[float] = []
    told = 0
    for rep in range(reps):
        source = random.Random(rep)
        arms = [Arm(f"c{n}", {"mode": str(n % 4), "prompt": str(n // 4 % 6), "allow": str(n // 24)}) for n in range(_ARMS)]
        quality = {arm.name: source.uniform(0.5, 0.7) for arm in arms}
        race = make_race(arms, [Item(f"i{n}", f"cluster{n // 2}") for n in range(items)], protect=["c0"], replicates=_REPLICATES)
        batch, steps, told = race.next(), [], 0
        while batch is not None:
            race.tell(Outcome(*cell, utility=float(source.random() < quality[cell[0]])) for cell in batch)
            told += len(batch)
            gc.collect()
            with Stopwatch() as watch:
                batch = race.next()
                if batch is None:
                    race.result()
            steps.append((watch.wall, watch.cpu))
        slowest.append(max(steps))
        end.append(steps[-1][0])
    wall, cpu = (Spread.of(list(each)) for each in zip(*slowest, strict=True))
    return Row("race", f"the race's decision step with up to {told} outcomes told ({_ARMS} candidates, {items} rows, {_REPLICATES} replicates): "
               "its slowest `next()`", f"{wall.text()} s, CPU {cpu.text()} s; the last one, with the ranking, {Spread.of(end).text()} s",
               f"under {TARGETS['step_s']:g} s: the median decides, the range is shown", wall.median < TARGETS["step_s"])  # fmt: skip


def path_mb(path: Path) -> int:
    return round(path.stat().st_size / 1e6)


def report(rows: list[Row], title: str, about: str) -> str:
    """A page with a table of the rows."""
    from benchmarks.run import machine

    lines = [f"# {title}", "", about, "", *(f"- {fact}" for fact in machine()), "", "| what | measured, median (lowest..highest) | target | |", "|---|---|---|---|"]
    for row in rows:
        met = "" if row.met is None else "met" if row.met else "**missed**"
        lines.append(f"| {row.what} | {row.figures} | {row.target} | {met} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name}")
    parser.add_argument("--reps", type=int, default=5)
    args = parser.parse_args()
    page = report(measure(reps=args.reps), "What a compile costs besides its model",
                  "Made by `python -m benchmarks.compile_cost --write`. CPU is that of this process and its children, with a "
                  "scripted model that answers at once (its own CPU is counted, too).")  # fmt: skip
    print(page)
    if args.write:
        OUT.write_text(page)


if __name__ == "__main__":
    main()
