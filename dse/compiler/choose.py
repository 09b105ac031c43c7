"""From select rollouts to the one candidate that goes to the gate: utilities, limits, the Pareto front, allow-lists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dse.compiler.allowlist import exposure
from dse.compiler.space import Candidate
from dse.errors import UserError
from dse.evaluation.evaluator import RolloutRecord
from dse.objective import Objective, unknown
from dse.plan import Plan
from dse.statistics import clopper_pearson, lower_bound, paired_interval, quantile, score_interval, sign_flip

__all__ = ["Measured", "Removal", "cost_unknown", "front", "measure", "out_of_limits", "removals", "winner"]

#: A candidate leaves the race where its rollouts show, with one side of this level, that it cannot keep within a limit.
_SHOWN = 0.05
#: Differences in utility below this are none.
_TIE = 1e-12
#: A wider allow-list wins over its narrower twin only where its gain has a p of at most this.
WIDENING = 0.10


@dataclass(frozen=True)
class Measured:
    """A candidate on select rows: means per run, and the utility of each row (mean of its replicates).

    Attributes:
        broken: which hard limit of the objective the means miss; empty for none.
        exposure: effects that the plan can have.
    """

    candidate: Candidate
    by_row: Mapping[str, float]
    clusters: Mapping[str, str]
    utility: float
    quality: float
    cost_usd: float | None
    p95_latency_s: float
    tokens: float
    exposure: int
    broken: str = ""


def measure(
    candidates: Mapping[str, Candidate], records: Sequence[RolloutRecord], objective: Objective, effects: Mapping[str, str],
) -> dict[str, Measured]:  # fmt: skip
    """Every candidate that has select rollouts.

    Raises:
        UserError: the objective needs a cost that is unknown.
    """
    by_name: dict[str, list[RolloutRecord]] = {}
    for record in records:
        if objective.needs_cost and record.cost_usd is None:
            raise cost_unknown(objective)
        by_name.setdefault(record.candidate, []).append(record)
    measured = {}
    most = exposure(effects, effects)
    for name, mine in by_name.items():
        one, n = candidates[name], len(mine)
        removed = most - exposure(one.plan.allow, effects)
        utilities = [objective.utility(r.score, r.cost_usd, r.latency_s, removed) for r in mine]
        by_row: dict[str, list[float]] = {}
        for record, utility in zip(mine, utilities, strict=True):
            by_row.setdefault(record.row_hash, []).append(utility)
        costs = [r.cost_usd for r in mine]
        quality = math.fsum(r.score for r in mine) / n
        cost = None if None in costs else math.fsum(c for c in costs if c is not None) / n
        slowest = quantile([r.latency_s for r in mine], 0.95)
        broken = _broken(objective, quality, cost, slowest)
        measured[name] = Measured(
            one, {row: math.fsum(of_row) / len(of_row) for row, of_row in by_row.items()}, {r.row_hash: r.cluster for r in mine},
            math.fsum(utilities) / n, quality, cost, slowest,
            math.fsum(r.input_tokens + r.output_tokens for r in mine) / n, exposure(one.plan.allow, effects), broken,
        )  # fmt: skip
    return measured


def cost_unknown(objective: Objective) -> UserError:
    """The error where `objective` needs a cost that nobody knows."""
    return unknown("cost", "cost_weight" if objective.cost_weight else "max_cost")


def _broken(objective: Objective, quality: float, cost: float | None, slowest: float) -> str:
    for name, bound, value, worse in (
        ("max_cost", objective.max_cost, cost, 1), ("max_p95_latency_s", objective.max_p95_latency_s, slowest, 1),
        ("min_quality", objective.min_quality, quality, -1),
    ):  # fmt: skip
        if bound is not None and value is not None and (value - bound) * worse > 0:
            return name
    return ""


def out_of_limits(records: Sequence[RolloutRecord], objective: Objective) -> str:
    """The hard limit of the objective that rollouts of one candidate show to be out of its reach; empty for none.

    Stricter than what `measure` calls broken: a mean of few rollouts may still come back within its limit.
    """
    if len({r.cluster for r in records}) < 2:
        return ""
    clusters = [r.cluster for r in records]
    if objective.max_cost is not None:
        over = [r.cost_usd - objective.max_cost for r in records if r.cost_usd is not None]
        if len(over) == len(records) and lower_bound(over, clusters, alpha=_SHOWN, unseen=max(over) - min(over)) > 0:
            return "max_cost"
    if objective.max_p95_latency_s is not None:
        by_row: dict[str, list[bool]] = {}  # runs of one row are no further rows: each row counts once, by its share
        for record in records:
            by_row.setdefault(record.row_hash, []).append(record.latency_s > objective.max_p95_latency_s)
        slow = math.floor(math.fsum(sum(runs) / len(runs) for runs in by_row.values()) + 1e-9)
        if clopper_pearson(slow, len(by_row), level=1 - 2 * _SHOWN).low > 1 - 0.95:
            return "max_p95_latency_s"
    if objective.min_quality is not None:
        if score_interval([r.score for r in records], clusters, level=1 - 2 * _SHOWN).high < objective.min_quality:
            return "min_quality"
    return ""


def winner(measured: Mapping[str, Measured], among: Iterable[str] | None = None,
           expected: Mapping[str, float] | None = None) -> tuple[str, str]:  # fmt: skip
    """The candidate for the gate, and why not the one with the highest mean, where that is another one.

    Highest mean utility within the limits; among equals fewer effects, fewer tokens, then by name. A wider allow-list
    has to earn its gain: its narrower twin (the same but for tools and demonstrations) is taken unless the wider one is
    better on the same rows with p <= 0.1 (sign-flip, one-sided). Nothing is taken while another one is nowhere worse and somewhere better:
    what pooling expects of a candidate comes from others as well, its rows do not.

    Args:
        expected: utilities to rank by instead of the means, such as a race's pooled ones.
    """
    expected = expected or {}

    def rank(name: str) -> tuple[Any, ...]:
        one = measured[name]
        return bool(one.broken), -round(expected.get(name, one.utility), 9), one.exposure, round(one.tokens, 6), name

    names = list(measured if among is None else among)
    best, why = min(names, key=rank), ""
    # What pooling says of two that gave the same on every row comes from others: they are equal.
    alike = [name for name in names if measured[name].by_row == measured[best].by_row and not measured[name].broken]
    if alike and not measured[best].broken:
        best = min(alike, key=lambda name: (measured[name].exposure, round(measured[name].tokens, 6), name))
    seen: set[str] = set()
    while True:
        seen.add(best)
        mine = measured[best]
        twins = [name for name in names if _narrower(measured[name], mine) and bool(measured[name].broken) <= bool(mine.broken)]
        for twin in sorted(twins, key=rank):
            rows = sorted(mine.by_row.keys() & measured[twin].by_row.keys())
            gains = [mine.by_row[row] - measured[twin].by_row[row] for row in rows]
            p = sign_flip(gains, [mine.clusters[row] for row in rows]).p_value if rows else 1.0
            if p > WIDENING:
                why = f"{best} is not shown to be better than {twin}, which has fewer tools (p = {p:.2g} on select rows)"
                best = twin
                break
        else:
            better = [n for n in names if n not in seen and _dominates(measured[n], mine) and not _narrower(mine, measured[n])]
            if not better:
                return best, why
            beaten, best = best, min(better, key=rank)
            why = f"{best} is nowhere worse than {beaten} on select rows, and somewhere better"


def _dominates(one: Measured, other: Measured) -> bool:
    """Whether `one` is within the limits, and on the same rows nowhere worse and somewhere better."""
    if one.broken or other.broken or one.by_row.keys() != other.by_row.keys():
        return False
    gains = [value - other.by_row[row] for row, value in one.by_row.items()]
    return min(gains) >= -_TIE and max(gains) > _TIE


def _narrower(one: Measured, than: Measured) -> bool:
    """Whether `one` is `than` with fewer tools: the same model and plan, and demonstrations found in the same way."""
    mine, other = one.candidate, than.candidate
    if not set(mine.plan.allow) < set(other.plan.allow):
        return False
    same = all(mine.factors[name] == other.factors[name] for name in ("mode", "prompt", "model"))
    return same and _without_demos(mine.plan) == _without_demos(other.plan.narrowed(allow=mine.plan.allow))


def _without_demos(plan: Plan) -> Plan:
    """Demonstrations show the tools that may be called: those of a narrower list cannot be the same."""
    bare = {name: prompt.model_copy(update={"demos": ()}) for name, prompt in plan.prompts.items()}
    return plan.model_copy(update={"prompts": bare, "stages": tuple(map(_without_demos, plan.stages))})


def front(measured: Mapping[str, Measured], among: Iterable[str]) -> tuple[str, ...]:
    """Names that no other one of `among` beats in quality, cost, p95 latency and effects at once; best quality first."""
    names = [name for name in among if not measured[name].broken]

    def figures(name: str) -> tuple[float, ...]:
        one = measured[name]
        paid = one.tokens if one.cost_usd is None else one.cost_usd
        return -one.quality, paid, one.p95_latency_s, one.exposure

    def beaten(name: str) -> bool:
        mine = figures(name)
        return any(all(a <= b for a, b in zip(figures(other), mine, strict=True)) and figures(other) != mine for other in names)

    return tuple(sorted((name for name in names if not beaten(name)), key=lambda name: (*figures(name), name)))


@dataclass(frozen=True)
class Removal:
    """What it costs to leave tools out: `narrow` minus `wide` on the same select rows (utility, 95% interval)."""

    wide: str
    narrow: str
    removed: tuple[str, ...]
    effects: int
    change: float
    low: float
    high: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        return {"wide": self.wide, "narrow": self.narrow, "removed": list(self.removed), "effects": self.effects,
                "change": self.change, "low": self.low, "high": self.high, "rows": self.rows}  # fmt: skip


def removals(measured: Mapping[str, Measured], effects: Mapping[str, str]) -> list[Removal]:
    """The measured cost of every pair of allow-lists that differ in nothing else."""
    found = []
    for wide_name, wide in measured.items():
        for narrow_name, narrow in measured.items():
            if not _narrower(narrow, wide):
                continue
            rows = sorted(wide.by_row.keys() & narrow.by_row.keys())
            clusters = [wide.clusters[row] for row in rows]
            if len(set(clusters)) < 2:
                continue
            interval = paired_interval([narrow.by_row[row] - wide.by_row[row] for row in rows], clusters, unseen=1.0)
            removed = tuple(sorted(set(wide.candidate.plan.allow) - set(narrow.candidate.plan.allow)))
            found.append(Removal(wide_name, narrow_name, removed, exposure(removed, effects), interval.estimate, interval.low,
                                 interval.high, len(rows)))  # fmt: skip
    return found
