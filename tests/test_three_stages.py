"""A chain of three: what a script leaves goes to code, and what code cannot do to the model's own knowledge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dse
from dse.canonical import digest
from dse.compiler.cascades import hands_over
from dse.strategies.script import script_plan
from dse.testing.scripted import ScriptedModel, say

KINDS = ("sum", "riddle", "saying")  # for a script, for code that looks up, for a model that knows
NAME = "scripted/kinds"


@dse.tool(effect="read", revision="1")
def look_up(riddle: str) -> int:
    """The number that a riddle is about."""
    return len(riddle) * 3


class Number(dse.Signature):
    """Say which number is meant."""

    text: str = dse.InputField()
    number: int = dse.OutputField()
    tools = [look_up]


SUMS = """import re
asked = re.fullmatch(r"sum ([0-9]+) and ([0-9]+)", text)
if asked is None:
    abstain("not a sum")
else:
    submit(number=int(asked.group(1)) + int(asked.group(2)))"""


def dataset(kinds: Sequence[str] = KINDS) -> dse.Dataset:
    rows = []
    for n in range(120):
        kind, parts = kinds[n % len(kinds)], [int(digest([n, part])[7:22], 16) for part in range(2)]
        text = f"sum {parts[0]} and {parts[1]}" if kind == "sum" else f"{kind} {parts[0]:x} {parts[1]:x} {n}"
        rows.append({"id": f"r{n}", "text": text, "number": {"sum": sum(parts), "riddle": 3 * len(text), "saying": 1000 + n}[kind]})
    return dse.Dataset.from_rows(rows, name="numbers", fields={"text": "input", "number": "label"})


@dse.metric(revision="1")
def meant(example: Any, prediction: Any, ctx: dse.MetricContext) -> float:
    return float(prediction.number == example.number)


@dse.environment(revision="1")
def nowhere(example: Any) -> dse.World:
    return dse.World()


def model() -> ScriptedModel:
    """In mode code it solves riddles and gives up on all else; answering directly it knows sayings and guesses the rest."""

    def reply(request: Any) -> Any:
        asked = [m["content"] for m in request["messages"] if m["role"] == "user" and "[[ ## text ## ]]" in m["content"]][-1]
        text = asked.partition("[[ ## text ## ]]\n")[2].splitlines()[0]
        if "[[ ## code ## ]]" in request["messages"][0]["content"]:
            code = f"submit(number=await look_up(riddle={text!r}))" if text.startswith("riddle") else "raise ValueError('beyond me')"
            return say(f"[[ ## code ## ]]\n```python\n{code}\n```")
        return say(f"[[ ## number ## ]]\n{1000 + int(text.rpartition(' ')[2]) if text.startswith('saying') else -1}")

    return ScriptedModel(reply, NAME, latency_s=0.1)


@dataclass(frozen=True)
class Sums:
    """Proposes the script, after it ran on the search rows."""

    name: str = "sums"
    revision: str = "1"

    async def propose(self, search: dse.Search) -> Sequence[dse.Proposal]:
        plan = script_plan(search.spec, SUMS, limits=search.limits)
        await search.evaluate({"script/none/sums": plan}, search.rows, None)
        return [dse.Proposal(plan, "sums")]


def compiled(folder: Path, kinds: Sequence[str] = KINDS, **options: Any) -> dse.CompileResult:
    task = dse.Task(Number, dataset=dataset(kinds), metric=meant, environment=nowhere, modes=["direct", "code"], **options)
    return dse.compile(task, lm=model(), registry=folder, search=[Sums(), dse.Cascades()], rows=dse.Rows(search=18))


def modes(plan: dse.Plan) -> list[str]:
    return [stage.mode for stage in plan.stages]


def test_a_chain_of_three_wins_where_each_stage_alone_can_do_a_part(tmp_path: Path) -> None:
    result = compiled(tmp_path)
    assert result.verdict == "PROMOTE" and modes(result.artifact.plan) == ["script", "code", "direct"], result.table
    assert result.table[result.winner]["quality"] == result.holdout_table[result.winner]["quality"] == 1.0
    rows = {row.row_hash: row.text.split()[0] for row in dataset().split("select")}
    stages = {"script": "sum", "code": "riddle", "direct": "saying"}
    for name, one in result.candidates.items():
        mine = [r for r in result.records["select"] if r.candidate == name]
        if one.plan.mode in stages:
            assert {rows[r.row_hash] for r in mine if r.score} == {stages[one.plan.mode]}
        if one.plan.mode == "script":
            assert {rows[r.row_hash] for r in mine if hands_over(r, ("abstain",))} == {"riddle", "saying"}
    won = [r for r in result.records["holdout"] if r.candidate == result.winner]
    asked = {"sum": 1, "riddle": 2, "saying": 3}
    sealed = dataset().open_holdout(dse.Store(":memory:"), compile_id="c")
    kind = {row.row_hash: row.text.split()[0] for row in sealed}
    assert [len(r.receipt["stages"]) for r in won] == [asked[kind[r.row_hash]] for r in won] and len(won) == len(sealed)
    chains = {name: one.plan for name, one in result.candidates.items() if one.plan.mode == "cascade"}
    two = [name for name, plan in chains.items() if len(plan.stages) == 2]
    assert two and all(result.table[name]["quality"] < 1.0 for name in two), "no pair can do it"


def test_the_script_that_costs_nothing_comes_first_also_where_nothing_has_a_price(tmp_path: Path) -> None:
    """Either order of script and code gives the same answers."""
    result = compiled(tmp_path)
    three = [modes(one.plan) for one in result.candidates.values() if len(one.plan.stages) == 3]
    assert three == [["script", "code", "direct"]]


def test_no_third_stage_where_two_do_as_much(tmp_path: Path) -> None:
    result = compiled(tmp_path, ("sum", "saying"))
    assert result.verdict == "PROMOTE" and modes(result.artifact.plan) == ["script", "direct"]
    assert [len(one.plan.stages) for one in result.candidates.values() if one.plan.mode == "cascade"] == [2]
