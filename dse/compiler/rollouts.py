"""The rollouts of a compile, on whichever of its models: none without a cost that the objective needs, all accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dse.compiler.choose import cost_unknown
from dse.compiler.evidence import Spending
from dse.evaluation.evaluator import Evaluator, RolloutRecord
from dse.objective import Objective
from dse.plan import Plan

if TYPE_CHECKING:
    from dse.evaluation.dataset import Example
    from dse.program import Program

__all__ = ["Rollouts"]


class Rollouts:
    """Runs plans on rows.

    Args:
        evaluators: by the name of their model; the first is that of the default one.
        spending: is told of every rollout, under the stage that asked for it.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator], objective: Objective, spending: Spending) -> None:
        self._evaluators, self._objective, self.spending = evaluators, objective, spending
        self.models = tuple(evaluators)

    def program(self, plan: Plan, model: str) -> Program:
        return self._evaluators[model].program(plan)

    def program_id(self, plan: Plan, model: str) -> str:
        return self.program(plan, model).program_id

    def live(self) -> set[str]:
        """Tools that were asked without a record or a world of their own."""
        return set().union(*(one.live for one in self._evaluators.values()))

    async def check_cost(self, plan: tuple[str, Plan], row: Example) -> None:
        """Run one rollout where the objective needs costs: that they are unknown shows before the rest is paid for.

        Raises:
            UserError: it is.
        """
        if self._objective.needs_cost:
            self._check(await self._evaluators[self.models[0]].evaluate(dict([plan]), [row], what="cost"))

    async def every(self, stage: str, plans: Mapping[str, Plan], rows: Sequence[Example], model: str, *,
                    replicate: int = 0) -> list[RolloutRecord]:  # fmt: skip
        """Each plan on each row, in the order (row, plan)."""
        records = await self._evaluators[model].evaluate(plans, rows, replicate=replicate, what=stage)
        self.spending.add(stage, records, model)
        return records

    async def these(self, stage: str, jobs: Sequence[tuple[str, Plan, Example]], model: str, *,
                    replicate: int = 0) -> list[RolloutRecord]:  # fmt: skip
        """Pairs of a plan and a row, in their order.

        Raises:
            UserError: the objective needs a cost that is unknown.
        """
        records = await self._evaluators[model].rollouts(jobs, replicate=replicate, what=stage)
        self._check(records)
        self.spending.add(stage, records, model)
        return records

    def _check(self, records: Sequence[RolloutRecord]) -> None:
        if self._objective.needs_cost and any(r.cost_usd is None for r in records):
            raise cost_unknown(self._objective)
