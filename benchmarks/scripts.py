"""What a distilled script costs: against the same task in modes code and tool_call, and as the first thing a process does.

The tasks are the shipped ``assistant`` and ``expenses`` with scripts written by hand, which answer what they recognise and
abstain from the rest. The other modes replay the completions that were recorded of a language model, on the same
rows: their time holds no waiting for a model. Modes take turns row by row; ratios are of the same row in the same turn.
Cold starts are processes of their own, in turn with ``python -c "import dspy"``.

python -m benchmarks.scripts [--write]          prints the table; --write puts it into benchmarks/SCRIPTS.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dse
from benchmarks.measure import Row, Spread, Stopwatch, interleaved
from benchmarks.run import machine, table
from benchmarks.shipped import ROOT, SHIPPED, Shipped
from dse.errors import Abstained, CassetteMiss, RunFailed
from dse.evaluation.metric import MetricContext
from dse.portal import run_sync
from dse.strategies.base import seed_plan
from dse.strategies.script import script_plan

__all__ = ["SCRIPTS", "TARGET_COLD", "TARGET_RUN_MS", "cold_start", "measure"]

TARGET_RUN_MS = 5.0
TARGET_COLD = 0.2
RESULTS = Path(__file__).with_name("SCRIPTS.md")
MODES = ("script", "code", "tool_call")

# Requests in a few plain forms; everything else is left, before anything is changed.
ASSISTANT = r'''
import re

text = message.strip()
listed = [line[2:].strip() for line in text.split("\n") if line.startswith("- ")]
head = text.split("\n")[0]
profile = await get_profile()
checklist, boundaries = profile["heartbeat_checklist"], profile["character"]["boundaries"]
changes = []
if listed and re.fullmatch(r"New heartbeat checklist.*:", head):
    changes = [("checklist", listed)] if checklist != listed else []
elif listed and re.fullmatch(r"The tool notes are a mess\. Replace the whole thing by:", head):
    changes = [("tools", "\n".join(listed))]
elif re.fullmatch(r".*Empty the heartbeat checklist, all of it\.", text):
    changes = [("checklist", [])] if checklist else []
elif found := re.fullmatch(r"(Daily|Long-term) memory, visible to everyone: (.+)", text):
    changes = [("memory", found.group(2))]
elif found := re.fullmatch(r"notes about me, please add all of them one per line: (.+)", text):
    changes = [("notes", "\n".join(part.strip() for part in found.group(1).split(";")))]
elif found := re.fullmatch(r"Remove every boundary that mentions (\w+), as long as it isn't a Safety: one\.", text):
    kept = [one for one in boundaries if one.startswith("Safety:") or found.group(1).lower() not in one.lower()]
    changes = [("boundaries", kept)] if kept != boundaries else []
else:
    abstain("not a request in one of the forms that this program knows")

for what, value in changes:
    if what == "checklist":
        await heartbeat_set_checklist(value)
    elif what == "tools":
        await tools_update_notes(value)
    elif what == "notes":
        await user_update(notes=value)
    elif what == "boundaries":
        await character_update(boundaries=value)
    else:
        kind = "daily" if text.startswith("Daily") else "long_term"
        await memory_append(kind, " ".join(value.split()[:4]), value, "all")
submit(action="applied" if changes else "nothing_to_do")
'''.lstrip()

# Questions that name one team, one category and one quarter in words that leave no doubt; everything else is left.
EXPENSES = r'''
import re

teams = [team["name"] for team in await list_teams() if team["name"] in question]
quarters = {q for q in ("Q1", "Q2", "Q3", "Q4") if q in question}
categories = {c for c in ("travel", "meals", "software", "equipment", "training") if c in question.lower()}
plain = re.fullmatch(r"Who (on the|in) .+ (exceeded their|went over budget).+\?|.+ / .+ / .+ -> over budget\?", question)
if not plain or len(teams) != 1 or len(quarters) != 1 or len(categories) != 1:
    abstain("not a question about one team, one category and one quarter")
category, quarter = categories.pop(), quarters.pop()

members, defaults = await asyncio.gather(get_team_members(teams[0]), get_default_budgets())
default = {d["level"]: d["amount_eur"] for d in defaults if d["category"] == category}
first = 3 * int(quarter[1]) - 2
months = {f"2025-{month:02d}" for month in range(first, first + 3)}


async def audit(member):
    items, custom = await asyncio.gather(
        get_expenses(member["user_id"], quarter, category), get_custom_budget(member["user_id"], category))
    items = [item for item in items if item["status"] in ("pending", "approved", "paid")]
    amounts = await asyncio.gather(*[convert_currency(i["amount"], i["currency"], i["date"]) for i in items if i["currency"] != "EUR"])
    amounts += [item["amount"] for item in items if item["currency"] == "EUR"]
    if category == "equipment":
        amounts = [amount for amount in amounts if amount <= 800]
    spent = round(sum(amounts), 2)
    budget = default[member["level"]] * (3 - len(months & set(member["leave_months"]))) / 3
    if custom is not None and quarter in custom["quarters"]:
        budget = custom["amount_eur"] / (4 if custom["per"] == "year" else 1)
    budget = round(budget, 2)
    return {"user_id": member["user_id"], "name": member["name"], "category": category, "quarter": quarter,
            "spent_eur": spent, "budget_eur": budget}


found = await asyncio.gather(*[audit(member) for member in members])
submit(over_budget=[one for one in found if one["spent_eur"] > one["budget_eur"]])
'''.lstrip()
SCRIPTS = {"assistant": ASSISTANT, "expenses": EXPENSES}


def measure(*, reps: int = 15, rows: int = 8) -> list[Row]:
    """The scripts against the replayed modes."""
    made = []
    for name in SCRIPTS:
        bench = _Bench(next(one for one in SHIPPED if one.name == name))
        answered, left = bench.coverage()
        made += bench.rows(list(bench.common(rows)), answered, left, reps)
    return made


class _Bench:
    """The three modes as programs, run on rows of the task in their worlds."""

    def __init__(self, shipped: Shipped) -> None:
        self.name, self.task = shipped.name, shipped.task()
        model = f"replay:{shipped.cassette}"
        plans = {"script": script_plan(self.task.spec, SCRIPTS[self.name]), **{mode: seed_plan(self.task.spec, mode) for mode in MODES[1:]}}
        self.programs = {mode: dse.Program(self.task.signature, plan, lm=model) for mode, plan in plans.items()}
        self.data = self.task.load_dataset()

    def run(self, mode: str, example: Any) -> tuple[Any, float, float]:
        """Usage and score with wall and CPU seconds of one run; making its world and scoring are not counted."""
        environment, program = self.task.environment, self.programs[mode]

        async def once() -> tuple[Any, float, float]:
            async with environment.enter(example) as world:
                run = program.new_run(example.inputs, evaluation=True)
                with Stopwatch() as watch:
                    prediction = await program.execute(run, deps=world.deps, approve=lambda _: True)
                state = world.state() if world.state is not None else None
            context = MetricContext(run=prediction.receipt, state=state, lm=None)
            score = await self.task.metric.score(example, prediction, context)
            return {"usage": prediction.receipt["usage"], "score": score.value}, watch.wall, watch.cpu

        return run_sync(once)  # in a loop that goes on between runs, as a program's own calls do

    def coverage(self) -> tuple[list[float], int]:
        """Scores of the rows of the search and select splits that the script answers, and how many it leaves."""
        scores, left = [], 0
        for example in (*self.data.split("search"), *self.data.split("select")):
            try:
                done, *_ = self.run("script", example)
            except Abstained:
                left += 1
            else:
                scores.append(done["score"])
        return scores, left

    def common(self, most: int) -> Iterator[Any]:
        """Rows that the script answers and of which there are recorded completions in both other modes."""
        found = 0
        for example in (*self.data.split("search"), *self.data.split("select")):
            try:
                for mode in MODES:
                    self.run(mode, example)
            except (CassetteMiss, RunFailed):
                continue
            yield example
            found += 1
            if found == most:
                return

    def rows(self, chosen: list[Any], answered: list[float], left: int, reps: int) -> list[Row]:
        wall: dict[str, list[float]] = {mode: [] for mode in MODES}
        cpu: dict[str, list[float]] = {mode: [] for mode in MODES}
        usage: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
        for rep in range(reps):
            for number, example in enumerate(chosen):
                turn = (rep + number) % len(MODES)
                for mode in (*MODES[turn:], *MODES[:turn]):
                    done, seconds, used = self.run(mode, example)
                    wall[mode].append(1000 * seconds)
                    cpu[mode].append(1000 * used)
                    if rep == 0:
                        usage[mode].append({**done["usage"], "score": done["score"]})

        def mean(mode: str, name: str) -> float:
            return statistics.mean(one[name] for one in usage[mode])

        tokens = {mode: mean(mode, "input_tokens") + mean(mode, "output_tokens") for mode in MODES}
        script = Spread.of(wall["script"])
        what = f"`{self.name}`, {len(chosen)} rows that the script answers"
        target = self.name == "assistant"  # a usual run; one of `expenses` makes more than twenty calls
        made = [
            Row("script", f"{what}: a run in mode script", f"{script.text(1)} ms; CPU {Spread.of(cpu['script']).text(1)} ms; "
                f"{mean('script', 'tool_calls'):.0f} tool calls, {mean('script', 'model_calls'):.0f} model calls, "
                f"score {mean('script', 'score'):.2f}", f"median below {TARGET_RUN_MS:g} ms, no model call" if target else "",
                script.median < TARGET_RUN_MS and not mean("script", "model_calls") if target else None),
        ]  # fmt: skip
        for mode in MODES[1:]:
            times = Spread.of([a / b for a, b in zip(wall[mode], wall["script"], strict=True)])
            work = Spread.of([a / b for a, b in zip(cpu[mode], cpu["script"], strict=True)])
            made.append(Row("script", f"the same rows in mode {mode}, replayed", f"{tokens[mode]:.0f} tokens a run against "
                            f"{tokens['script']:.0f}; {times.text(1)} times the wall time, {work.text(1)} times the CPU; "
                            f"{mean(mode, 'model_calls'):.1f} model calls, score {mean(mode, 'score'):.2f}"))  # fmt: skip
        whole = len(answered) + left
        made.append(Row("script", f"`{self.name}`: rows of search and select that this script answers",
                        f"{len(answered)} of {whole}, score {statistics.mean(answered):.2f}; it abstains from {left}"))  # fmt: skip
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
