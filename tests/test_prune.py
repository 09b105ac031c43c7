"""Static pruning: what is left out before any model call, with its reason, and what is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import dse
from dse.compiler.prune import run_cost, text_problem, why_not
from dse.evaluation.evaluator import Evaluator
from dse.plan import Plan, Prompt
from dse.strategies.base import seed_plan
from dse.testing.worlds import NAME, PRICES, AskWarehouse, PlantedWorld

SPEC = AskWarehouse.spec()
TOOLS = SPEC.toolbox()
ROW = {"request": "How many pieces of x are left?"}
SCRIPT = "item = await find_item(name='x')\nsubmit(left=await get_stock(item_id=item['item_id']))"


def why(plan: Plan, limits: dse.Limits | None = None, prices: Any = None, **options: Any) -> str | None:
    return asyncio.run(why_not(SPEC, TOOLS, plan, limits or plan.limits, prices, **options))


def plan(mode: str, *demos: dict[str, Any], instructions: str = "Do it.", **changes: Any) -> Plan:
    seed = seed_plan(SPEC, mode)
    prompts = {name: Prompt(instructions=instructions, demos=demos) for name in seed.prompts}
    return Plan.model_validate({**seed.model_dump(), "prompts": {n: p.model_dump() for n, p in prompts.items()}, **changes})


def code(script: Any) -> dict[str, Any]:
    return {**ROW, "api": "(as below)", "transcript": "(nothing yet)", "code": script}


def trajectory(**changes: Any) -> dict[str, Any]:
    calls = [{"name": "find_item", "arguments": {"name": "x"}, "result": {"item_id": 1, "shelf": "S"}}]
    return {"inputs": ROW, "rounds": [{"calls": calls}], "outputs": {"left": 4}, **changes}


def scripted(source: str, *allow: str) -> Plan:
    return Plan(mode="script", prompts={}, allow=allow, script=source)


ANSWERING = "item = await find_item(name='x')\nsubmit(left=await get_stock(item_id=item['item_id']))"


@pytest.mark.parametrize("good", [
    *[seed_plan(SPEC, mode) for mode in ("direct", "tool_call", "code")],
    plan("direct", {**ROW, "left": 3}), plan("tool_call", trajectory()), plan("code", code(SCRIPT)),
    plan("tool_call", trajectory(inputs={"request": "[redacted]"}, outputs={"left": "[redacted]"})),
    scripted(ANSWERING, "find_item", "get_stock"), Plan.cascade(scripted("abstain('unsure')"), seed_plan(SPEC, "direct")),
])  # fmt: skip
def test_nothing_is_said_against_plans_that_can_work(good: Plan) -> None:
    assert why(good) is None


@pytest.mark.parametrize("bad, reason", [
    (plan("direct", instructions=" \n"), "answer: the instructions are empty"),
    (plan("direct", instructions="a" * 12_001), "12001 characters"),
    (plan("code", instructions="def submit(left: int): ..."), "stub of 'submit'"),
    (plan("tool_call", instructions='get_stock takes {"properties": {"item_id": {}}}'), "schema"),
    (plan("direct", instructions="Write [[ ## left ## ]] first."), "marker"),
    (plan("tool_call", allow=("find_item", "delete_all")), "does not declare: delete_all"),
    (plan("direct", allow=("find_item",)), "calls no tools"),
    (plan("code", code("submit(left=await get_stock(item_id='one'))")), "demonstration 1: line 1"),
    (scripted("submit(left=await get_stock(item_id='one'))", "get_stock"), "script does not pass the check: line 1"),
    (scripted(ANSWERING, "find_item"), "script does not pass the check: line 2"),
    (scripted("submit(left=(1)"), "script does not pass the check"),
    (scripted("import numpy\nsubmit(left=1)"), "script does not pass the check: line 1"),
    (scripted("print(1)"), "never calls submit()"),
    (Plan.cascade(scripted("submit(left='many')"), seed_plan(SPEC, "direct")), "stage 1: the script does not pass"),
    (plan("code", code("submit(left=await delete_all())")), "demonstration 1"),
    (plan("code", code(SCRIPT), code(3)), "demonstration 2: it has no script"),
    (plan("code", code("submit(left=await get_stock(item_id=1))"), allow=("find_item",)), "demonstration 1"),
    (plan("tool_call", trajectory(), allow=("get_stock",)), "calls what is not allowed: find_item"),
    (plan("tool_call", trajectory(outputs={"left": "many"})), "its outputs do not fit: left"),
    (plan("tool_call", trajectory(inputs={"question": "?"})), "its inputs do not fit"),
    (plan("tool_call", {**ROW, "left": 3}), "no inputs, rounds and outputs"),
    (plan("direct", {**ROW, "left": "many"}), "its outputs do not fit"),
])  # fmt: skip
def test_what_cannot_work_is_left_out_with_its_reason(bad: Plan, reason: str) -> None:
    said = why(bad)
    assert said is not None and reason in said


def test_a_plan_may_not_have_wider_limits_than_the_task() -> None:
    narrow = dse.Limits(model_calls=3)
    assert why(seed_plan(SPEC, "direct", limits=dse.Limits(model_calls=2)), narrow) is None
    assert "wider" in (why(seed_plan(SPEC, "direct", limits=dse.Limits(model_calls=4)), narrow) or "")
    assert "no model call" in (why(seed_plan(SPEC, "direct", limits=dse.Limits(model_calls=0))) or "")


# ---- cost -------------------------------------------------------------------------------------------------


def test_what_costs_too_much_at_the_least_is_left_out() -> None:
    long = plan("direct", instructions="word " * 2_000)
    objective = dse.Objective(max_cost=0.0005)
    assert "at the least, and Objective(max_cost) is $0.0005" in (why(long, prices=PRICES, objective=objective, model=NAME, examples=[ROW]) or "")
    assert why(plan("direct"), prices=PRICES, objective=objective, model=NAME, examples=[ROW]) is None
    capped = plan("direct", instructions="word " * 2_000, limits=dse.Limits(cost_usd=0.0005).model_dump())
    assert "Limits(cost_usd)" in (why(capped, prices=PRICES, model=NAME) or "")
    assert why(long, prices=PRICES, objective=objective, model="unknown/model") is None, "what is not known prunes nothing"


@pytest.mark.parametrize("mode", ["direct", "tool_call", "code"])
def test_real_runs_lie_between_the_least_and_the_most(mode: str) -> None:
    world = PlantedWorld({"direct": 1.0, "tool_call": 1.0, "code": 1.0}, clusters=20)
    task = world.task()
    seed = seed_plan(task.spec, mode)
    rows = task.load_dataset().split("search")
    records = asyncio.run(Evaluator(task, world.model(), prices=PRICES).evaluate({mode: seed}, rows))
    cost = run_cost(task.spec, task.toolbox, seed, PRICES, NAME, input_chars=min(len(row.request) for row in rows))
    assert cost is not None and all(cost[0] < record.cost_usd < cost[1] for record in records if record.cost_usd is not None)
    assert all(record.cost_usd is not None for record in records)


def test_limits_bound_the_most_that_a_run_can_cost() -> None:
    def most(**limits: Any) -> float:
        found = run_cost(SPEC, TOOLS, seed_plan(SPEC, "tool_call", limits=dse.Limits(**limits)), PRICES, NAME)
        assert found is not None
        return found[1]

    assert most(model_calls=1) < most(model_calls=5) < most(model_calls=20)
    assert most(tokens=5_000) < most() and most(cost_usd=0.001) < most(model_calls=5)
    assert run_cost(SPEC, TOOLS, seed_plan(SPEC, "direct"), PRICES, "unknown/model") is None


@pytest.mark.parametrize("text", ["Use find_item, then get_stock. Write `left = await get_stock(...)`.", "def helper(): pass"])
def test_strategy_may_name_tools(text: str) -> None:
    assert text_problem(text, SPEC) is None
