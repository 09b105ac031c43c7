"""The race on select: every candidate on the same rows, until it is clear who cannot win."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dse.compiler.allowlist import exposure
from dse.compiler.choose import out_of_limits
from dse.compiler.incumbent import refuse_shown
from dse.compiler.options import Options
from dse.compiler.race import Arm, Item, Outcome, RaceResult, make_race
from dse.compiler.rollouts import Rollouts
from dse.compiler.space import Candidate
from dse.evaluation.evaluator import RolloutRecord

if TYPE_CHECKING:
    from dse.models.prices import PriceTable

__all__ = ["select"]


async def select(options: Options, runs: Rollouts, found: Mapping[str, Candidate], incumbent: str,
                 searched: Sequence[RolloutRecord]) -> tuple[list[RolloutRecord], RaceResult]:  # fmt: skip
    """Race the candidates: each of `replicates` runs of a row is an item of the race, in the cluster of its row.

    Args:
        incumbent: name of the one that stays in the race to its end.
        searched: rollouts on search rows, by which it is expected what a run takes.

    Returns:
        The rollouts, by row and candidate, and how the race went.
    """
    rows = options.select_rows()
    refuse_shown(found[incumbent].rows, {row.row_hash for row in rows}, "select")
    options.say(f"select: {len(found)} candidates on {len(rows)} rows")
    costs = _unit_costs(runs, found, searched, options.prices)
    arms = [Arm(name, one.factors, costs[name]) for name, one in found.items()]
    protect = {incumbent, *sorted((n for n, c in found.items() if c.plan.mode == "direct"), key=lambda n: (costs[n], n))[:1]}
    budget = math.fsum(costs.values()) * len(rows) * options.replicates / 2 if options.allocation == "uniform" else None
    race = make_race(arms, [Item(row.row_hash, row.cluster) for row in rows], allocation=options.allocation, seed=options.seed,  # type: ignore[arg-type]
                     protect=sorted(protect), budget_units=budget, replicates=options.replicates)  # fmt: skip
    objective, most = options.task.objective, exposure(options.effects, options.effects)
    selected: list[RolloutRecord] = []
    of_arm: dict[str, list[RolloutRecord]] = {name: [] for name in found}
    while (batch := race.next()) is not None:
        outcomes = []
        for model, replicate in itertools.product(runs.models, range(options.replicates)):
            cells = [(name, item) for name, item, number in batch if found[name].model == model and number == replicate]
            jobs = [(name, found[name].plan, rows[item]) for name, item in cells]
            records = await runs.these("select", jobs, model, replicate=replicate) if jobs else []
            selected += records
            for (name, item), record in zip(cells, records, strict=True):
                removed = most - exposure(found[name].plan.allow, options.effects)
                utility = objective.utility(record.score, record.cost_usd, record.latency_s, removed)
                outcomes.append(Outcome(name, item, replicate, utility, _paid(record, options.prices)))
                of_arm[name].append(record)
        over = {name: out_of_limits(mine, objective) for name, mine in of_arm.items()}
        race.tell(outcomes, {name: limit for name, limit in over.items() if limit})
    order = {row.row_hash: number for number, row in enumerate(rows)}
    names = {name: number for number, name in enumerate(found)}
    selected.sort(key=lambda r: (order[r.row_hash], names[r.candidate]))
    return selected, race.result()


def _paid(record: RolloutRecord, prices: PriceTable | None) -> float:
    """What a rollout took, in the race's unit: USD where there is a price table, else tokens."""
    if prices is not None and record.cost_usd is not None:
        return record.cost_usd
    return float((record.input_tokens or 0) + (record.output_tokens or 0))


def _unit_costs(runs: Rollouts, found: Mapping[str, Candidate], searched: Sequence[RolloutRecord],
                prices: PriceTable | None) -> dict[str, float]:  # fmt: skip
    """Expected per candidate: as its own search rollouts, else those of its mode, else the dearest mode's."""
    by_plan: dict[str, list[float]] = {}
    by_mode: dict[str, list[float]] = {}
    for record in searched:
        by_plan.setdefault(record.receipt["program_id"], []).append(_paid(record, prices))
        by_mode.setdefault(record.receipt["mode"], []).append(_paid(record, prices))
    means = {mode: math.fsum(paid) / len(paid) for mode, paid in by_mode.items()}
    costs = {}
    for name, one in found.items():
        own = by_plan.get(runs.program_id(one.plan, one.model))
        costs[name] = math.fsum(own) / len(own) if own else means.get(one.plan.mode, max(means.values(), default=1.0))
    return costs
