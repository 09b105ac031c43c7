"""A search to distil in: what a compile hands to a proposer, with a reflection model that is a function."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dse
from dse.compiler.allowlist import allow_lists
from dse.compiler.search import Proposal, Search
from dse.compiler.space import fitting_modes
from dse.evaluation.evaluator import Evaluator, RolloutRecord
from dse.evaluation.sampling import spread
from dse.evaluation.task import Task
from dse.strategies.base import seed_modes, seed_plan

Answers = Callable[[str], str] | Sequence[str]


@dataclass
class Searching:
    """A search and what was asked of it.

    Attributes:
        prompts: to the reflection model, in order. said: to a person.
        runs: names and numbers of rows of every evaluation, and of how many prompts it came after.
    """

    search: Search
    evaluator: Evaluator
    prompts: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    runs: list[tuple[str, int, int]] = field(default_factory=list)

    async def utility(self, plan: dse.Plan) -> float:
        """Mean utility of a plan that is really run on the search rows."""
        records = await self.evaluator.evaluate({"plan": plan}, self.search.rows)
        effects = {tool.name: tool.contract.effect for tool in self.search.spec.tools}
        exposed = sum(effects[name] != "pure" for name in plan.allow)
        objective = self.search.objective
        mean = sum(objective.utility(r.score, r.cost_usd, r.latency_s) for r in records) / len(records)
        return mean - objective.exposure_weight * exposed


@contextlib.asynccontextmanager
async def searching(task: Task, model: Any, answers: Answers = (), *, rows: int = 10, prices: Any = None,
                    seed: int = 0) -> AsyncIterator[Searching]:  # fmt: skip
    """Seed programs are run on the search rows first, as in a compile."""
    evaluator = Evaluator(task, model, prices=prices)
    chosen = spread(task.load_dataset().split("search"), rows)
    modes = fitting_modes(task.spec, task.modes or [mode for mode in seed_modes() if task.spec.tools or mode == "direct"])
    seeds = {f"{mode}/{'none' if mode == 'direct' else 'all'}/seed": seed_plan(task.spec, mode, limits=task.limits)
             for mode in modes}  # fmt: skip
    records = await evaluator.evaluate(seeds, chosen)
    made: Searching

    async def evaluate(plans: Mapping[str, dse.Plan], examples: Sequence[Any], _: str | None) -> list[RolloutRecord]:
        found = await evaluator.evaluate(plans, examples)
        made.runs += [(name, len(examples), len(made.prompts)) for name in plans]
        return found

    async def reflect(prompt: str) -> str:
        made.prompts.append(prompt)
        return answers(prompt) if callable(answers) else answers[len(made.prompts) - 1]

    said: list[str] = []
    search = Search(
        spec=task.spec, toolbox=task.toolbox, limits=task.limits, required=tuple(task.required), modes=modes,
        models=(model.name,), rows=chosen, records=records, lists=allow_lists(records, task.spec.tool_names, task.required),
        evaluate=evaluate, reflect=reflect, seed=seed, say=said.append, objective=task.objective,
        pool={name: Proposal(plan, "seed") for name, plan in seeds.items()},
    )  # fmt: skip
    made = Searching(search, evaluator, said=said)
    yield made


def fenced(script: str) -> str:
    return f"Here it is.\n```python\n{script}\n```\nIt should work."
