"""dspy's optimizers on a search: what they see, what they ask, what of their work is kept."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dspy
import pytest
from searching import Searching, taught_model

from dse.compiler.optimizers import DspyOptimizer
from dse.compiler.search import Proposal, Proposer
from dse.errors import BudgetExhausted, UserError
from dse.store.journal import opened
from dse.testing.scripted import ScriptedModel, say
from dse.testing.worlds import NAME, PlantedWorld

POOR = PlantedWorld({"direct": 0.4, "tool_call": 0.4, "code": 0.4}, clusters=80, detours=0.0)
GOOD = replace(POOR, success={"direct": 0.9, "tool_call": 0.95, "code": 0.95})


def any_field(request: Any) -> Any:
    """A reflection model that fills in every field that dspy's own prompts ask for."""
    text = request["messages"][0]["content"]
    fields = re.findall(r"\[\[ ## (\w+) ## \]\]", text.split("Respond with")[-1]) or ["proposed_instruction"]
    said = {"module_advice": '{"act": "Count everything twice.", "code": "Count everything twice.", "answer": "Count everything twice."}',
            "proposed_instruction": "Count everything twice."}  # fmt: skip
    return say("\n\n".join(f"[[ ## {name} ## ]]\n{said.get(name, f'Some {name}.')}" for name in fields if name != "completed")
               + "\n\n[[ ## completed ## ]]")  # fmt: skip


def searching(mode: str, reply: Any = any_field, **options: Any) -> Searching:
    return Searching(POOR, taught_model(POOR, GOOD, "twice"), ScriptedModel(reply, "scripted/reflection"), modes=(mode,), **options)


def propose(one: Searching, proposer: Any) -> Sequence[Proposal]:
    async def run() -> Sequence[Proposal]:
        return await proposer.propose(await one.search())

    return asyncio.run(run())


def bootstrap(metric: Any) -> Any:
    return dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=2, max_labeled_demos=4)


def mipro(metric: Any) -> Any:
    return dspy.MIPROv2(metric=metric, auto=None, num_candidates=3, max_bootstrapped_demos=1, max_labeled_demos=1, num_threads=2)


def simba(metric: Any) -> Any:
    return dspy.SIMBA(metric=metric, bsize=8, num_candidates=2, max_steps=2, max_demos=2, num_threads=2)


MIPRO = DspyOptimizer(mipro, "mipro", compile={"num_trials": 3, "minibatch": False})


def shown_rows(one: Searching, found: Proposal) -> list[Any]:
    texts = [str(demo) for prompt in found.plan.prompts.values() for demo in prompt.demos]
    return [row for text in texts for row in one.rows_of["search"] if row.request in text]


# ---- what comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, predictor", [("direct", "answer"), ("tool_call", "act"), ("code", "code")])
def test_demonstrations_come_from_solved_rollouts_only(mode: str, predictor: str) -> None:
    """Labelled rows, which the optimizer adds besides, were never run."""
    one = searching(mode)
    proposer = DspyOptimizer(bootstrap, "bootstrap")
    (found,) = propose(one, proposer)
    assert isinstance(proposer, Proposer) and found.prompt == "bootstrap"
    demos = found.plan.prompts[predictor].demos
    assert len(demos) == len(found.rows) == 2
    shown = shown_rows(one, found)
    assert {row.row_hash for row in shown} == set(found.rows) and all(POOR.solves(mode, row.request) for row in shown)
    assert found.plan.allow == (() if mode == "direct" else ("find_item", "get_stock", "reserve"))
    assert not one.prompts, "it asks no model of its own"


@pytest.mark.parametrize("mode", ["direct", "tool_call", "code"])
def test_mipro_finds_better_instructions(mode: str) -> None:
    pytest.importorskip("optuna")
    one = searching(mode)
    (found,) = propose(one, MIPRO)
    assert any("twice" in prompt.instructions for prompt in found.plan.prompts.values()) and one.prompts
    assert all(POOR.solves(mode, row.request) or GOOD.solves(mode, row.request) for row in shown_rows(one, found))


class Moody(ScriptedModel):
    """Sometimes better: in every second replicate."""

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Any:
        if replicate % 2:
            self.requests.append(request)
            return replace(GOOD.reply(request), model=NAME)
        return await super().complete(request, replicate=replicate, occurrence=occurrence)


@pytest.mark.parametrize("mode", ["direct", "tool_call", "code"])
def test_simba_learns_from_replicates_that_differ(mode: str) -> None:
    one = searching(mode)
    one.model = Moody(one.model._player.script, NAME)
    (found,) = propose(one, DspyOptimizer(simba, "simba"))
    assert found.prompt == "simba"
    assert any("twice" in prompt.instructions or prompt.demos for prompt in found.plan.prompts.values())
    shown = shown_rows(one, found)
    assert {row.row_hash for row in shown} == set(found.rows) and all(GOOD.solves(mode, row.request) for row in shown)


def test_the_same_search_gives_the_same_proposals_and_pays_once(tmp_path: Any) -> None:
    pytest.importorskip("optuna")
    with opened(tmp_path / "runs.db") as store:
        first = searching("tool_call", store=store)
        found = propose(first, MIPRO)
        again = searching("tool_call", store=store)
        assert propose(again, MIPRO) == found
        assert again.model.requests == [] and sorted(again.prompts) == sorted(first.prompts)


def test_nothing_found_nothing_proposed() -> None:
    one = Searching(PlantedWorld({}, clusters=40), PlantedWorld({}, clusters=40).model(), ScriptedModel(any_field, "scripted/r"), modes=("direct",))
    assert propose(one, DspyOptimizer(bootstrap, "bootstrap")) == [] and "seed plan" in one.said[-1]


# ---- what ends it -----------------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"mipro needs optuna.*pip install optuna"):
        propose(searching("direct"), MIPRO)


def test_what_an_optimizer_cannot_do_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"simba failed on mode 'direct'.*Trainset too small"):
        propose(searching("direct", rows=4), DspyOptimizer(simba, "simba"))


def test_a_budget_that_ends_is_not_swallowed_as_a_bad_score() -> None:
    one = searching("direct")
    asked = []

    def spend() -> None:
        asked.append(1)
        if len(asked) == 5:
            raise BudgetExhausted("The budget is over")

    one.on_evaluate = spend
    with pytest.raises(BudgetExhausted):
        propose(one, DspyOptimizer(simba, "simba"))
    assert len(asked) <= 6, "what was under way, and nothing after it"


def test_a_budget_that_ends_while_it_reflects_gets_through() -> None:
    pytest.importorskip("optuna")

    def reply(request: Any) -> Any:
        raise BudgetExhausted("The budget is over")

    with pytest.raises(BudgetExhausted):
        propose(searching("direct", reply), MIPRO)
