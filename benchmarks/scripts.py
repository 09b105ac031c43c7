"""What a distilled script costs: against the same task in other modes, and as the first thing a process does.

The scripts are those that the recorded compiles of the shipped tasks distilled; the compiles are replayed to get at them,
which takes minutes. They answer what they recognise and abstain from the rest. The other modes replay the completions that
were recorded of a language model, on the same rows: their time holds no waiting for a model. Modes take turns row by row;
ratios are of the same row in the same turn. Cold starts are processes of their own, in turn with
``python -c "import dspy"``; their artifact holds a script of two lines, which nothing distilled.

python -m benchmarks.scripts [--write]          prints the table; --write puts it into benchmarks/SCRIPTS.md
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dse
from benchmarks.measure import Row, Spread, Stopwatch, interleaved
from benchmarks.run import machine, table
from benchmarks.shipped import ROOT, SHIPPED, Shipped
from dse.errors import Abstained, CassetteMiss, RunFailed
from dse.evaluation.metric import MetricContext
from dse.plan import Plan
from dse.portal import run_sync
from dse.strategies.base import seed_plan

__all__ = ["TARGET_COLD", "TARGET_RUN_MS", "cold_start", "distilled", "measure"]

TARGET_RUN_MS = 5.0
TARGET_COLD = 0.2
RESULTS = Path(__file__).with_name("SCRIPTS.md")


def distilled(shipped: Shipped) -> Plan:
    """The plan of mode ``script`` that the task's recorded compile distilled."""
    with tempfile.TemporaryDirectory() as registry:
        result = shipped.replayed(registry)
    return next(one.plan for one in result.candidates.values() if one.plan.mode == "script")


def measure(*, reps: int = 15, rows: int = 8, scripts: Mapping[str, Plan] | None = None) -> list[Row]:
    """The distilled scripts against the replayed modes.

    Args:
        scripts: plans of mode ``script`` by task, of which these alone are measured; by default every task's compile is replayed.
    """
    made = []
    for shipped in SHIPPED:
        if scripts is not None and shipped.name not in scripts:
            continue
        bench = _Bench(shipped, distilled(shipped) if scripts is None else scripts[shipped.name])
        made += bench.rows(list(bench.common(rows)), reps)
    return made


class _Bench:
    """The script and the seeds of the modes that answer the task, run on rows in their worlds."""

    def __init__(self, shipped: Shipped, script: Plan) -> None:
        self.name, self.task = shipped.name, shipped.task()
        model = f"replay:{shipped.cassette}"
        self.others = ("code", "tool_call") if self.task.spec.tools else ("direct",)
        self.modes = ("script", *self.others)
        plans = {"script": script, **{mode: seed_plan(self.task.spec, mode) for mode in self.others}}
        self.programs = {mode: dse.Program(self.task.signature, plan, lm=model) for mode, plan in plans.items()}
        self.data = self.task.load_dataset()

    def run(self, mode: str, example: Any) -> tuple[Any, float, float]:
        """Usage and score with wall and CPU seconds of one run; making its world and scoring are not counted."""
        environment, program = self.task.environment, self.programs[mode]

        async def once() -> tuple[Any, float, float]:
            async with environment.enter(example) if environment is not None else contextlib.nullcontext(dse.World()) as world:
                run = program.new_run(example.inputs, evaluation=True)
                with Stopwatch() as watch:
                    prediction = await program.execute(run, deps=world.deps, approve=lambda _: True)
                state = world.state() if world.state is not None else None
            context = MetricContext(run=prediction.receipt, state=state, lm=None)
            score = await self.task.metric.score(example, prediction, context)
            return {"usage": prediction.receipt["usage"], "score": score.value}, watch.wall, watch.cpu

        return run_sync(once)  # in a loop that goes on between runs, as a program's own calls do

    def coverage(self) -> str:
        """On how many rows of the search and select splits the script answers, abstains and fails."""
        scores, left, failed = [], 0, 0
        for example in (*self.data.split("search"), *self.data.split("select")):
            try:
                done, *_ = self.run("script", example)
            except Abstained:
                left += 1
            except RunFailed:
                failed += 1
            else:
                scores.append(done["score"])
        whole = len(scores) + left + failed
        return f"{len(scores)} of {whole}, score {statistics.mean(scores):.2f}; it abstains from {left} and fails on {failed}"

    def common(self, most: int) -> Iterator[Any]:
        """Rows that the script answers and of which there are recorded completions in both other modes."""
        found = 0
        for example in (*self.data.split("search"), *self.data.split("select")):
            try:
                for mode in self.modes:
                    self.run(mode, example)
            except (CassetteMiss, RunFailed):
                continue
            yield example
            found += 1
            if found == most:
                return

    def rows(self, chosen: list[Any], reps: int) -> list[Row]:
        # As they are used: script after script. Ratios are of runs in turn, in which each finds the caches of the others.
        alone = [self.run("script", example) for _ in range(reps) for example in chosen]
        wall: dict[str, list[float]] = {mode: [] for mode in self.modes}
        cpu: dict[str, list[float]] = {mode: [] for mode in self.modes}
        usage: dict[str, list[dict[str, Any]]] = {mode: [] for mode in self.modes}
        for rep in range(reps):
            for number, example in enumerate(chosen):
                turn = (rep + number) % len(self.modes)
                for mode in (*self.modes[turn:], *self.modes[:turn]):
                    done, seconds, used = self.run(mode, example)
                    wall[mode].append(1000 * seconds)
                    cpu[mode].append(1000 * used)
                    if rep == 0:
                        usage[mode].append({**done["usage"], "score": done["score"]})

        def mean(mode: str, name: str) -> float:
            return statistics.mean(one[name] for one in usage[mode])

        tokens = {mode: mean(mode, "input_tokens") + mean(mode, "output_tokens") for mode in self.modes}
        script, work_alone = (Spread.of([1000 * run[place] for run in alone]) for place in (1, 2))
        what = f"`{self.name}`, {len(chosen)} rows that the distilled script answers"
        made = [
            Row("script", f"{what}: a run in mode script, one after another", f"{script.text(1)} ms; CPU {work_alone.text(1)} ms; "
                f"{mean('script', 'tool_calls'):.0f} tool calls, {mean('script', 'model_calls'):.0f} model calls, "
                f"score {mean('script', 'score'):.2f}", f"median below {TARGET_RUN_MS:g} ms, no model call",
                script.median < TARGET_RUN_MS and not mean("script", "model_calls")),
        ]  # fmt: skip
        for mode in self.others:
            times = Spread.of([a / b for a, b in zip(wall[mode], wall["script"], strict=True)])
            work = Spread.of([a / b for a, b in zip(cpu[mode], cpu["script"], strict=True)])
            made.append(Row("script", f"the same rows in mode {mode}, replayed, in turn with the script", f"{tokens[mode]:.0f} tokens a run against "
                            f"{tokens['script']:.0f}; {times.text(1)} times the wall time, {work.text(1)} times the CPU; "
                            f"{mean(mode, 'model_calls'):.1f} model calls, score {mean(mode, 'score'):.2f}"))  # fmt: skip
        made.append(Row("script", f"`{self.name}`: rows of search and select that this script answers", self.coverage()))
        return made


_COLD = """
import sys
import dse
sys.path.insert(0, sys.argv[2])
from cold_signature import Look
assert dse.load(sys.argv[1], signature=Look)(n=4).answer == 41
"""
_SIGNATURE = '''
import dse

@dse.tool(effect="read")
async def look(n: int) -> int:
    """Look something up."""
    return n * 10


class Look(dse.Signature):
    """Look it up and add one."""

    n: int = dse.InputField()
    answer: int = dse.OutputField()
    tools = [look]
'''
_FLOOR = """
import asyncio, anyio, pydantic_monty
from pydantic import BaseModel
class M(BaseModel):
    x: int = 0
"""
_MODEL = "from pydantic import BaseModel\nclass M(BaseModel):\n    x: int = 0"


def cold_start(*, reps: int = 11) -> list[Row]:
    """Whole processes: import dse, load an artifact with a script, run it; against ``import dspy``."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": "", "LITELLM_LOCAL_MODEL_COST_MAP": "true"}
        path = _artifact(Path(folder))

        def python(code: str, *arguments: str) -> Callable[[], None]:
            """Code in a process of its own, with compiled modules as an installed package has them."""
            return lambda: subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=env, check=True)  # type: ignore[return-value]

        cases = {"cold": python(_COLD, str(path), folder), "floor": python(_FLOOR), "model": python(_MODEL), "dspy": python("import dspy")}
        samples = interleaved(cases, reps=reps)
    cold, floor, model, dspy = (samples[name] for name in cases)
    share = cold.ratio(dspy)
    return [
        Row("cold start", "a process that imports dse, loads an artifact with a script and runs it, over `import dspy`",
            f"{share.text()}; {cold.ms().text(0)} ms against {dspy.ms().text(0)} ms; CPU {cold.cpu_ratio(dspy).text()}",
            f"at most {TARGET_COLD:g}", share.median <= TARGET_COLD),
        Row("cold start", "for comparison: a process that defines one pydantic model, over the same",
            f"{model.ratio(dspy).text()}; {model.ms().text(0)} ms"),
        Row("cold start", "for comparison: one that imports asyncio, anyio and pydantic_monty besides, over the same",
            f"{floor.ratio(dspy).text()}; {floor.ms().text(0)} ms"),
    ]  # fmt: skip


def _artifact(folder: Path) -> Path:
    """An artifact with a script for `_SIGNATURE`, made in a process of its own."""
    (folder / "cold_signature.py").write_text(_SIGNATURE)
    code = f"""
import sys
sys.path.insert(0, {str(folder)!r})
from benchmarks.imports import example_artifact
from cold_signature import Look
from dse.strategies.script import script_plan
plan = script_plan(Look.spec(), "x = await look(n)\\nsubmit(answer=x + 1)\\n")
example_artifact(plan, Look).save({str(folder / "artifact.json")!r})
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return folder / "artifact.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    parser.add_argument("--only", choices=("runs", "cold"))
    parser.add_argument("--reps", type=int)
    options = parser.parse_args(arguments)
    given = {} if options.reps is None else {"reps": options.reps}
    facts = machine()
    rows = [] if options.only == "cold" else measure(**given)
    rows += [] if options.only == "runs" else cold_start(**given)
    text = "\n".join(["# Scripts that need no model", "", "Made by `python -m benchmarks.scripts --write`. Medians with their range.", "",
                      *(f"- {fact}" for fact in facts), "", table(rows), ""])  # fmt: skip
    print(text)
    if options.write:
        RESULTS.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
