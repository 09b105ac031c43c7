"""Cascades from search records: what they promise is what they do, and what must not hand over is never proposed."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest

import dse
from dse.compiler.cascades import Cascades, cascades, hands_over, rule_of
from dse.compiler.search import Proposal, Proposer, Search
from dse.contracts.check import check
from dse.errors import PlanError
from dse.evaluation.evaluator import RolloutRecord
from dse.plan import Plan
from dse.strategies.base import seed_plan
from dse.strategies.script import script_plan
from dse.testing.worlds import PRICES, PlantedWorld
from tests.distilling import Searching, searching

PRICED = dse.Objective(cost_weight=20.0)
READS = ("find_item", "get_stock")
ASKED = r"""import re
asked = re.fullmatch(r"How many pieces of ([a-z ]+) are left\?", request)
if asked is None:
    abstain("not a plain question")
else:
    item = await find_item(asked.group(1))
    submit(left=await get_stock(item["item_id"]))"""


async def with_script(made: Searching, source: str = ASKED, name: str = "script/own/mine") -> Search:
    """The search after a script has been measured."""
    plan = script_plan(made.search.spec, source, limits=made.search.limits)
    records = await made.evaluator.evaluate({name: plan}, made.search.rows)
    pool = {**made.search.pool, name: Proposal(plan, "mine", rows=("sha256:row",))}
    return replace(made.search, records=[*made.search.records, *records], pool=pool)


def run(world: PlantedWorld, work: Any, **options: Any) -> Any:
    rows = options.pop("rows", 16)

    async def go() -> Any:
        task = world.task(**({"objective": PRICED} | options))
        async with searching(task, world.model(), rows=rows, prices=PRICES) as made:
            return await work(made)

    return asyncio.run(go())


def modes_of(proposal: Proposal) -> list[str]:
    return [stage.mode for stage in proposal.plan.stages]


def test_it_is_a_proposer() -> None:
    assert isinstance(Cascades(), Proposer)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_cascade_promises_is_what_it_does(seed: int) -> None:
    """Composed of stored rollouts, to the last digit; and better than each of its stages."""

    async def work(made: Searching) -> None:
        search = await with_script(made)
        proposals = await Cascades().propose(search)
        assert 1 <= len(proposals) <= 4
        for proposal in proposals:
            together = await made.utility(proposal.plan)
            stages = [await made.utility(stage) for stage in proposal.plan.stages]
            promised = float(proposal.notes[0].rsplit("is ", 1)[1].split()[0])
            assert together - max(stages) == pytest.approx(promised, abs=6e-4) and together > max(stages)
            assert proposal.plan.mode == "cascade" and proposal.rows in ((), ("sha256:row",))
            assert (proposal.rows == ()) == ("script" not in modes_of(proposal))

    run(PlantedWorld({"direct": 0.3, "tool_call": 0.9, "code": 0.7}, writes=0.4, seed=seed), work)


def test_nothing_runs_for_it() -> None:
    async def work(made: Searching) -> None:
        search = await with_script(made)
        before = len(made.evaluator.model.requests)  # type: ignore[union-attr]
        assert await Cascades().propose(search)
        assert len(made.evaluator.model.requests) == before and made.runs == []  # type: ignore[union-attr]

    run(PlantedWorld(writes=0.4), work)


def test_without_a_price_a_cascade_that_only_saves_is_no_better() -> None:
    async def work(made: Searching) -> None:
        assert await Cascades().propose(await with_script(made, ASKED)) == []

    run(PlantedWorld({"tool_call": 1.0, "code": 1.0}, writes=0.4), work, objective=dse.Objective())


def test_the_number_is_bounded_and_the_first_stage_may_be_given() -> None:
    async def work(made: Searching) -> None:
        search = await with_script(made)
        found = await cascades(search, search.pool, most=1)
        assert len(found) == 1
        (other,) = await cascades(search, search.pool, most=1, first="script/own/mine")
        assert modes_of(other)[0] == "script"
        assert await cascades(search, search.pool, first="nobody") == []

    run(PlantedWorld(writes=0.4), work)


def failing(records: list[RolloutRecord], rows: set[str], error: str, **receipt: Any) -> list[RolloutRecord]:
    """The records, as if the runs on these rows had failed."""
    return [replace(r, score=0.0, outcome="failed", error_class=error, outputs=None, receipt={**r.receipt, **receipt})
            if r.row_hash in rows else r for r in records]  # fmt: skip


async def read_only(made: Searching, error: str, *, tools: tuple[str, ...] = READS, **receipt: Any) -> list[Proposal]:
    """Cascades where code fails on half of the rows, and has only these tools."""
    rows = {row.row_hash for row in made.search.rows[::2]}
    records = [r for r in made.search.records if r.candidate == "tool_call/all/seed"]
    code = failing([r for r in made.search.records if r.candidate == "code/all/seed"], rows, error, **receipt)
    pool = {"tool_call/all/seed": made.search.pool["tool_call/all/seed"],
            "code/all/seed": Proposal(seed_plan(made.search.spec, "code", tools, made.search.limits), "seed")}  # fmt: skip
    return list(await Cascades().propose(replace(made.search, records=[*records, *code], pool=pool)))


@pytest.mark.parametrize(("error", "receipt", "taken"), [
    ("OutputInvalid", {}, True), ("NoSubmission", {}, True), ("ScriptFailed", {}, True),
    ("LimitExceeded", {"limit_outcome": "abort"}, False), ("LimitExceeded", {"limit_outcome": "fail_step"}, True),
])  # fmt: skip
def test_code_first_where_tool_calls_take_what_fails(error: str, receipt: dict[str, Any], taken: bool) -> None:
    async def work(made: Searching) -> None:
        found = await read_only(made, error, **receipt)
        assert [modes_of(p) for p in found] == ([["code", "tool_call"]] if taken else [])
        if taken:
            assert found[0].plan.knobs["escalate"] == ["abstain", "exception", "validation"]
            assert "hands over 8 of 16" in found[0].notes[0]

    run(PlantedWorld({"tool_call": 0.7, "code": 1.0}, writes=0.0), work)


def test_a_stage_that_could_have_written_never_hands_over() -> None:
    async def work(made: Searching) -> None:
        assert await read_only(made, "OutputInvalid", tools=(*READS, "reserve")) == []
        plan = made.search.pool["code/all/seed"].plan
        with pytest.raises(PlanError, match="write that must not be repeated"):
            rule_of(made.search, plan)

    run(PlantedWorld({"tool_call": 1.0, "code": 1.0}, writes=0.0), work)


RESERVES = r"""import re
wanted = re.fullmatch(r"Reserve (\d+) pieces of ([a-z ]+)\. What is left then\?", request)
if wanted is None:
    abstain("no reservation")
item = await find_item(wanted.group(2))
submit(left=await reserve(item["item_id"], int(wanted.group(1))))"""


def test_a_script_that_abstains_before_it_writes_hands_over_on_abstaining_alone() -> None:
    async def work(made: Searching) -> None:
        search = await with_script(made, RESERVES)
        assert rule_of(search, search.pool["script/own/mine"].plan) == ("abstain",)
        found = await cascades(search, search.pool, first="script/own/mine")
        assert found and all(p.plan.knobs["escalate"] == ["abstain"] for p in found)
        assert await made.utility(found[0].plan) > max([await made.utility(stage) for stage in found[0].plan.stages])

    run(PlantedWorld({"direct": 0.2, "tool_call": 0.9, "code": 0.9}, writes=0.5), work)


def test_direct_first_where_a_check_knows_what_is_wrong() -> None:
    @check(revision="1")
    def plausible(inputs: Any, outputs: Any) -> bool:
        return bool(outputs["left"] % 2 == 0)

    async def work(made: Searching) -> None:
        search = made.search
        assert not [p for p in await Cascades().propose(search) if modes_of(p)[0] == "direct"]
        # as if direct answers were wrong exactly where they are odd
        records = [replace(r, score=float(r.outputs["left"] % 2 == 0)) if r.candidate.startswith("direct") else r  # type: ignore[index]
                   for r in search.records]  # fmt: skip
        found = await Cascades(checks=(plausible,)).propose(replace(search, records=records))
        first = found[0].plan
        assert first.stages[0].mode == "direct" and found[0].prompt == "cascade-plausible"
        assert first.knobs["check"] == {"name": "plausible", "revision": "1"} and "check" in first.knobs["escalate"]

    run(PlantedWorld({"direct": 0.5, "tool_call": 1.0, "code": 1.0}, writes=0.0), work)


def test_a_run_beyond_the_limits_of_the_whole_is_not_promised() -> None:
    async def work(made: Searching) -> None:
        search = await with_script(made, ASKED)
        tight = search.limits.model_copy(update={"tool_calls": 1})
        assert await cascades(search, search.pool, first="script/own/mine")
        search = replace(search, limits=tight)
        assert await cascades(search, search.pool, first="script/own/mine") == []

    run(PlantedWorld({"direct": 0.0, "tool_call": 0.9, "code": 0.9}, writes=0.5), work)


def test_plans_that_share_too_few_rows_are_not_combined() -> None:
    async def work(made: Searching) -> None:
        search = await with_script(made)
        mine = [r for r in search.records if r.candidate == "script/own/mine"]
        others = [r for r in search.records if r.candidate != "script/own/mine"]
        assert await cascades(replace(search, records=others + mine[:3]), search.pool, first="script/own/mine") == []
        assert await cascades(replace(search, records=[]), search.pool) == []

    run(PlantedWorld(writes=0.4), work)


def test_the_order_of_records_does_not_matter() -> None:
    async def work(made: Searching) -> None:
        search = await with_script(made)
        one = await Cascades().propose(search)
        other = await Cascades().propose(replace(search, records=list(reversed(search.records)),
                                                 pool=dict(reversed(list(search.pool.items())))))  # fmt: skip
        assert [p.plan.plan_id for p in one] == [p.plan.plan_id for p in other] and one

    run(PlantedWorld(writes=0.4), work)


def test_exposure_has_its_price() -> None:
    """The union of allow-lists is what a cascade can do."""

    async def work(made: Searching) -> None:
        assert await Cascades().propose(await with_script(made)) == []

    run(PlantedWorld({"direct": 0.3, "tool_call": 0.9}, writes=0.4), work,
        objective=dse.Objective(cost_weight=1.0, exposure_weight=1.0), modes=("direct", "tool_call"))  # fmt: skip


def test_what_hands_over() -> None:
    world = PlantedWorld(clusters=10)

    async def work(made: Searching) -> None:
        record = made.search.records[0]
        everything = ("abstain", "exception", "validation")
        expected = {"Abstained": "abstain", "OutputInvalid": "validation", "NoSubmission": "validation",
                    "ScriptFailed": "exception"}  # fmt: skip
        assert not hands_over(record, everything)
        for (error, kind), rule in itertools.product(expected.items(), everything):
            (failed,) = failing([record], {record.row_hash}, error)
            assert hands_over(failed, (rule,)) == (rule == kind)

    run(world, work, rows=2)


def test_a_cascade_is_no_stage() -> None:
    async def work(made: Searching) -> None:
        search = await with_script(made)
        (chain,) = await cascades(search, search.pool, most=1)
        records = await made.evaluator.evaluate({"cascade/own/1": chain.plan}, search.rows)
        search = replace(search, records=[*search.records, *records], pool={**search.pool, "cascade/own/1": chain})
        again = await Cascades().propose(search)
        assert again and all(isinstance(stage, Plan) and stage.mode != "cascade" for p in again for stage in p.plan.stages)

    run(PlantedWorld(writes=0.4), work)
