"""Who is chosen: within the limits, never a dominated one, with what the task requires, and without sealed rows in its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import dse
from dse.compiler.choose import measure, out_of_limits, winner
from dse.errors import ContaminatedSplit
from dse.objective import Objective
from dse.strategies.base import seed_plan
from dse.strategies.script import script_plan
from dse.testing.scripted import ScriptedModel
from dse.testing.worlds import PlantedWorld

WORLD = PlantedWorld({"direct": 1.0, "tool_call": 0.25}, clusters=40, writes=0.0)
MODES = {"modes": ["direct", "tool_call"]}


@pytest.mark.parametrize("allocation", ["race", "grid", "uniform"])
def test_candidates_beyond_a_hard_limit_do_not_crowd_out_those_within(tmp_path: Path, allocation: str) -> None:
    small, big = (PlantedWorld(success, clusters=200) for success in ({"tool_call": 0.3, "code": 0.7}, {"tool_call": 1.0, "code": 1.0}))
    models = [ScriptedModel(small.reply, "scripted/small"), ScriptedModel(big.reply, "scripted/big")]
    prices = dse.PriceTable("p", "2026-01-01", {"scripted/small": (1.0, 4.0), "scripted/big": (30.0, 120.0)})
    result = dse.compile(small.task(modes=["tool_call", "code"], objective=Objective(max_cost=0.005)), lm=models, registry=tmp_path,
                         prices=prices, allocation=allocation, rows=dse.Rows(12, 40, 40))  # fmt: skip
    assert result.winner.startswith("code/") and result.winner.endswith("@scripted/small") and result.verdict == "PROMOTE"
    if allocation == "race":
        gone = {name: why for one in result.race.rounds for name, why in one.dropped.items()}
        assert {why for name, why in gone.items() if name.endswith("@scripted/big")} == {"broken"}, gone


def test_a_limit_is_missed_for_good_only_where_the_rollouts_show_it(tmp_path: Path) -> None:
    result = dse.compile(WORLD.task(**MODES), lm=WORLD.model(), registry=tmp_path, allocation="grid")
    mine = [r for r in result.records["select"] if r.candidate == "tool_call/all/seed"]
    assert out_of_limits(mine, Objective(min_quality=0.9)) == "min_quality"
    assert out_of_limits(mine[:1], Objective(min_quality=0.9)) == "", "one row says little"
    share = sum(r.score for r in mine) / len(mine)
    assert out_of_limits(mine, Objective(min_quality=min(0.99, share + 0.02))) == "", "it may come back"
    slow = [r.latency_s for r in mine]
    assert out_of_limits(mine, Objective(max_p95_latency_s=max(slow) + 1)) == ""
    assert out_of_limits(mine, Objective(max_p95_latency_s=min(slow) / 2)) == "max_p95_latency_s"
    few = [replace(r, latency_s=9.0 if number == 0 else 1.0) for number, r in enumerate(mine[:8])]
    assert out_of_limits(few * 20, Objective(max_p95_latency_s=5.0)) == "", "further runs of the same rows are no further rows"


def test_what_is_nowhere_better_is_not_chosen_whatever_is_expected_of_it(tmp_path: Path) -> None:
    task = WORLD.task(**MODES)
    result = dse.compile(task, lm=WORLD.model(), registry=tmp_path, allocation="grid")
    effects = {name: task.toolbox[name].contract.effect for name in task.spec.tool_names}  # type: ignore[index]
    found = measure(result.candidates, result.records["select"], task.objective, effects)
    assert winner(found, ["tool_call/all/seed", "direct/none/seed"], {"tool_call/all/seed": 1.0, "direct/none/seed": 0.5})[0] == "direct/none/seed"


@dataclass(frozen=True)
class Proposing:
    """Proposes these plans."""

    plans: tuple[dse.Plan, ...]
    name: str = "proposing"
    revision: str = "1"

    async def propose(self, search: dse.Search) -> Sequence[dse.Proposal]:
        return [dse.Proposal(plan, f"mine-{number}") for number, plan in enumerate(self.plans)]


def test_what_a_task_requires_is_on_every_list_proposals_included(tmp_path: Path) -> None:
    task = WORLD.task(modes=["direct", "tool_call", "code"], required=["get_weather"])
    narrow = seed_plan(task.spec, "code", [n for n in task.spec.tool_names if n != "get_weather"], task.limits)
    result = dse.compile(task, lm=WORLD.model(), registry=tmp_path, search=[Proposing((narrow,))], rows=dse.Rows(8, 12, 12))
    assert all("get_weather" in plan.allow for plan in result.plans.values()), result.plans
    assert sum("requires: get_weather" in why for why in result.artifact.evidence.pruned.values()) >= 2, "mode direct has no tools at all"


def quoting(how: str, task: dse.Task, row: Any) -> dse.Plan:
    said, left = row.inputs["request"], row.labels["left"]
    seed = seed_plan(task.spec, "direct", limits=task.limits)
    if how == "instructions":
        return seed.with_prompts({n: dse.Prompt(instructions=f"{p.instructions}\n{said.upper()}  {left}") for n, p in seed.prompts.items()})
    if how == "demonstration":
        demo = {"request": f" {said}\n", "left": left}
        return seed.with_prompts({n: dse.Prompt(instructions=p.instructions, demos=(demo,)) for n, p in seed.prompts.items()})
    escaped = "".join(f"\\x{ord(char):02x}" for char in said)
    return script_plan(task.spec, f'if request == "{escaped}":\n    submit(left={left})\nabstain("no")')


@pytest.mark.parametrize("how", ["instructions", "demonstration", "script"])
@pytest.mark.parametrize("split", ["select", "holdout"])
def test_rows_of_other_splits_are_found_wherever_a_proposal_holds_them(tmp_path: Path, how: str, split: str) -> None:
    task, data = WORLD.task(**MODES), WORLD.dataset()
    rows = data.split("select") if split == "select" else data.open_holdout(dse.Store(":memory:"), compile_id="c")
    options: dict[str, Any] = {"lm": WORLD.model(), "registry": tmp_path, "rows": dse.Rows(6, 9, 9)}
    with pytest.raises(ContaminatedSplit, match="quotes inputs") as caught:
        dse.compile(task, search=[Proposing((quoting(how, task, rows[0]),))], **options)
    assert caught.value.value == split
    if split == "select":
        fine = dse.compile(task, search=[Proposing((quoting(how, task, data.split("search")[0]),))], **options)
        assert any("mine" in name for name in {**fine.candidates, **fine.artifact.evidence.pruned})


def answering(task: dse.Task, script: str, allow: Sequence[str]) -> dse.Plan:
    """A cascade that begins with this script; its second stage may call these tools."""
    second = seed_plan(task.spec, "tool_call", allow, task.limits)
    return dse.Plan.cascade(script_plan(task.spec, script, limits=task.limits), second)


def test_fewer_tools_are_priced_against_the_same_program_only(tmp_path: Path) -> None:
    """Cascades share a label; one that begins otherwise, or goes on in another mode, is another program."""
    task = WORLD.task(modes=["tool_call", "code"])
    tools = list(task.spec.tool_names)
    first, other = 'abstain("never sure")\n', 'abstain("not at all")\n'
    plans = {
        "wide": answering(task, first, tools), "narrow": answering(task, first, tools[:1]), "other": answering(task, other, tools[:1]),
        "direct": dse.Plan.cascade(script_plan(task.spec, first, limits=task.limits), seed_plan(task.spec, "direct", limits=task.limits)),
    }  # fmt: skip

    class Named(Proposing):
        async def propose(self, search: dse.Search) -> Sequence[dse.Proposal]:
            return [dse.Proposal(plan, "cascade") for plan in self.plans]

    result = dse.compile(task, lm=WORLD.model(), registry=tmp_path, allocation="grid", search=[Named(tuple(plans.values()))],
                         rows=dse.Rows(8, 16, 16))  # fmt: skip
    name_of = {plan.plan_id: name for name, plan in result.plans.items()}
    names = {name: name_of[plan.plan_id] for name, plan in plans.items() if plan.plan_id in name_of}
    assert set(names) == set(plans), "all of them ran"
    cascades = {(one.wide, one.narrow) for one in result.removals if "cascade" in one.wide}
    assert cascades == {(names["wide"], names["narrow"])}
    priced = next(one for one in result.removals if one.wide == names["wide"])
    scores = {name: {r.row_hash: r.score for r in result.records["select"] if r.candidate == names[name]} for name in ("wide", "narrow")}
    change = [scores["narrow"][row] - score for row, score in scores["wide"].items()]
    assert priced.rows == len(change) > 8 and priced.change == pytest.approx(sum(change) / len(change)) != 0
    assert set(priced.removed) == set(tools[1:])


@pytest.mark.parametrize("source", ["submit(left=get_stock(request))", "import numpy\nsubmit(left=1)", "submit(left=(1)"])
def test_a_proposed_script_that_cannot_run_is_left_out_and_the_compile_goes_on(tmp_path: Path, source: str) -> None:
    task = WORLD.task(**MODES)
    broken = script_plan(task.spec, source, allow=(), limits=task.limits)
    result = dse.compile(task, lm=WORLD.model(), registry=tmp_path, search=[Proposing((broken,))], rows=dse.Rows(8, 12, 12))
    assert any("the script does not pass the check: line" in why for why in result.artifact.evidence.pruned.values())
    assert not any(r.receipt["mode"] == "script" for records in result.records.values() for r in records)
    assert "direct/none/seed" in result.candidates, "the others were raced"
