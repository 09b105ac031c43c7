"""Cascades: a cheap program first, another one for what it hands over.

What a cascade would do on a search row is composed of what its stages did there: where the first one answered, its
score and cost; where it handed over, the score of the next one and the costs of both. Nothing is run for it. At
most three are chained, only where that promises more than the best of them, and none whose hand-over could repeat a write.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dse.compiler.allowlist import exposure
from dse.compiler.search import Proposal, Search
from dse.contracts.check import Check
from dse.errors import PlanError
from dse.evaluation.evaluator import RolloutRecord
from dse.plan import Plan
from dse.strategies.base import check_plan

__all__ = ["Cascades", "cascades", "hands_over", "rule_of"]

_FEW = 4  # rows that all stages of a chain must have run on, if there are as many
_BEST, _STAGES = 3, 3  # plans of a mode that are combined (and the cheapest), and stages of a chain
_RULES = (("abstain", "exception", "validation"), ("abstain",))  # the second where a failure could come after a write


@dataclass(frozen=True)
class Cascades:
    """Proposes at most `most` cascades of the candidates so far. To be run after the others.

    Args:
        checks: declared with ``@dse.check``: a stage whose outputs one does not accept hands over, too.
    """

    most: int = 4
    checks: tuple[Check, ...] = ()
    name: str = "cascades"

    async def propose(self, search: Search) -> Sequence[Proposal]:
        return await cascades(search, search.pool, most=self.most, checks=self.checks)


def hands_over(record: RolloutRecord, rule: Sequence[str]) -> bool:
    """Whether this run would go on with the next stage of a cascade that escalates as `rule` says."""
    if record.outcome == "ok":
        return False
    if record.error_class == "LimitExceeded" and record.receipt["limit_outcome"] != "fail_step":
        return False
    kinds = {"Abstained": "abstain", "OutputInvalid": "validation", "NoSubmission": "validation"}
    return kinds.get(record.error_class or "", "exception") in rule


def rule_of(search: Search, plan: Plan) -> tuple[str, ...]:
    """What may hand a run of `plan` over to a next stage: anything, or its abstaining alone.

    Raises:
        PlanError: nothing may, because a write could be repeated.
    """
    refused: PlanError | None = None
    for rule in _RULES:
        try:
            check_plan(search.spec, Plan.cascade(plan, plan, escalate=rule, limits=search.limits))
        except PlanError as exc:
            refused = exc
        else:
            return rule
    assert refused is not None
    raise refused


@dataclass(frozen=True)
class _Run:
    """What a chain of stages did on a row, or would do."""

    score: float
    cost: float | None
    latency_s: float
    model_calls: int
    tool_calls: int
    tokens: int
    hands_over: bool

    def then(self, other: _Run, limits: object) -> _Run:
        """This run, and `other` where it hands over; a run beyond the limits of the whole has failed."""
        if not self.hands_over:
            return self
        both = _Run(
            other.score, None if self.cost is None or other.cost is None else self.cost + other.cost,
            self.latency_s + other.latency_s, self.model_calls + other.model_calls, self.tool_calls + other.tool_calls,
            self.tokens + other.tokens, other.hands_over,
        )  # fmt: skip
        bounds = (("model_calls", both.model_calls), ("tool_calls", both.tool_calls), ("tokens", both.tokens))
        beyond = any((most := getattr(limits, name)) is not None and used > most for name, used in bounds)
        return replace(both, score=0.0, hands_over=False) if beyond else both


@dataclass(frozen=True)
class _Chain:
    names: tuple[str, ...]
    rule: tuple[str, ...]
    check: Check | None
    runs: Mapping[str, _Run]  # by row and replicate
    utility: float
    gain: float  # over the best of its stages
    handed: int  # rows that its first stage hands over

    @property
    def tokens(self) -> float:
        """Of a run, on average: what decides where tokens have no price."""
        return sum(run.tokens for run in self.runs.values()) / len(self.runs)


async def cascades(search: Search, pool: Mapping[str, Proposal], *, most: int = 4, first: str | None = None,
                   checks: Sequence[Check] = ()) -> list[Proposal]:  # fmt: skip
    """At most `most` cascades that promise more utility on the search records than the best of their stages.

    Args:
        pool: candidates by the name that their records carry.
        first: only cascades that begin with this one.
    """
    estimate = _Estimate(search, pool)
    found: list[_Chain] = []
    for check in (None, *checks):
        rejected = {} if check is None else await estimate.rejected(check)
        pairs = [chain for names in estimate.pairs(first) if (chain := estimate.chain(names, check, rejected))]
        longer = [chain for pair in pairs for name in estimate.names if name not in pair.names
                  if (chain := estimate.chain((*pair.names, name), check, rejected))]  # fmt: skip
        found += [chain for chain in (*pairs, *longer) if chain.gain > 1e-9]
    chosen: list[Proposal] = []
    seen: set[tuple[float, ...]] = set()
    for chain in sorted(found, key=lambda c: (-round(c.utility, 9), len(c.names), estimate.exposed(c.names), c.tokens, c.names)):
        did = tuple(round(estimate.utility(run), 9) for _, run in sorted(chain.runs.items()))
        if len(chosen) == most or did in seen:  # equal on every row: the simpler one came first
            continue
        proposal = estimate.proposal(chain)
        if proposal is not None:
            seen.add(did)
            chosen.append(proposal)
    return chosen


class _Estimate:
    """Utilities of chains, from records of their stages."""

    def __init__(self, search: Search, pool: Mapping[str, Proposal]) -> None:
        self.search = search
        self.pool = pool
        self.effects = {name: search.toolbox[name].contract.effect for name in search.spec.tool_names}
        records: dict[str, list[RolloutRecord]] = {}
        for record in search.records:
            if record.candidate in pool and pool[record.candidate].plan.mode != "cascade":
                records.setdefault(record.candidate, []).append(record)
        self.records = {name: _by_row(found) for name, found in records.items()}
        self.rules = {name: self._rule(pool[name].plan) for name in records}
        self.runs = {name: {key: _run(record, _RULES[0]) for key, record in found.items()}
                     for name, found in self.records.items()}  # fmt: skip
        self.names = self._worth_combining()

    def utility(self, run: _Run) -> float:
        return self.search.objective.utility(run.score, run.cost, run.latency_s)

    def exposed(self, names: Sequence[str]) -> int:
        return exposure({tool for name in names for tool in self.pool[name].plan.allow}, self.effects)

    def mean(self, runs: Mapping[str, _Run], keys: Sequence[str], names: Sequence[str]) -> float:
        total = math.fsum(self.utility(runs[key]) for key in keys) / len(keys)
        return total - self.search.objective.exposure_weight * self.exposed(names)

    def _worth_combining(self) -> list[str]:
        """The best plans of each mode, and the cheapest."""
        modes: dict[str, list[str]] = {}
        for name in sorted(self.runs):
            modes.setdefault(self.pool[name].plan.mode, []).append(name)
        chosen: list[str] = []
        for mode in sorted(modes):
            mine = sorted(modes[mode], key=lambda n: (-self.mean(self.runs[n], list(self.runs[n]), (n,)), n))
            cheap = min(mine, key=lambda n: (sum(run.tokens for run in self.runs[n].values()) / len(self.runs[n]), n))
            chosen += dict.fromkeys([*mine[:_BEST], cheap])
        return chosen

    def _rule(self, plan: Plan) -> tuple[str, ...]:
        try:
            return rule_of(self.search, plan)
        except PlanError:
            return ()

    def pairs(self, first: str | None) -> Iterator[tuple[str, str]]:
        for one, other in itertools.permutations(self.names, 2):
            if first is None or one == first:
                yield one, other

    async def rejected(self, check: Check) -> dict[str, frozenset[str]]:
        """Rows by plan whose outputs the check does not accept."""
        spec, rows = self.search.spec, {row.row_hash: row for row in self.search.rows}
        found: dict[str, set[str]] = {}
        for name, records in self.records.items():
            for key, record in records.items():
                if record.outcome != "ok" or record.row_hash not in rows:
                    continue
                inputs = spec.validate_inputs(rows[record.row_hash].inputs)
                if not await check.accepts(inputs, spec.validate_outputs(record.outputs or {})):
                    found.setdefault(name, set()).add(key)
        return {name: frozenset(keys) for name, keys in found.items()}

    def chain(self, names: tuple[str, ...], check: Check | None, rejected: Mapping[str, frozenset[str]]) -> _Chain | None:
        """The chain of these plans; None where the rule of effects or the data forbid it."""
        rule = min((self.rules[name] for name in names[:-1]), key=len)
        if len(names) > _STAGES or not rule or (check is not None and rule != _RULES[0]):
            return None
        keys = [key for key in self.runs[names[0]] if all(key in self.runs[name] for name in names)]
        if len(keys) < min(_FEW, len(self.search.rows)) or not keys:
            return None
        runs: dict[str, _Run] = {}
        handed = 0
        for key in keys:
            stages = [_run(self.records[name][key], rule, key in rejected.get(name, ())) for name in names[:-1]]
            handed += stages[0].hands_over
            runs[key] = stages[0]
            for stage in (*stages[1:], self.runs[names[-1]][key]):
                runs[key] = runs[key].then(stage, self.search.limits)
        utility = self.mean(runs, keys, names)
        best = max(self.mean(self.runs[name], keys, (name,)) for name in names)
        return _Chain(names, rule, check, runs, utility, utility - best, handed)

    def proposal(self, chain: _Chain) -> Proposal | None:
        stages = [self.pool[name] for name in chain.names]
        plan = Plan.cascade(*(stage.plan for stage in stages), escalate=chain.rule, check=chain.check,
                            limits=self.search.limits)  # fmt: skip
        try:
            check_plan(self.search.spec, plan)
        except PlanError as exc:
            self.search.say(f"cascades: {' -> '.join(chain.names)} is no plan: {exc.what}")
            return None
        note = (f"{' -> '.join(chain.names)}: the first hands over {chain.handed} of {len(chain.runs)} search rows; "
                f"composed of their records its utility is {chain.gain:.3f} above that of its best stage")  # fmt: skip
        rows = tuple(sorted({row for stage in stages for row in stage.rows}))
        return Proposal(plan, "cascade" if chain.check is None else f"cascade-{chain.check.name}", rows, (note,))


def _by_row(records: Sequence[RolloutRecord]) -> dict[str, RolloutRecord]:
    """By row and number of the replicate, in the order of the records; a rollout counts once."""
    found: dict[str, RolloutRecord] = {}
    counts: dict[str, int] = {}
    for record in {one.rollout_id: one for one in records}.values():
        counts[record.row_hash] = number = counts.get(record.row_hash, 0) + 1
        found[f"{record.row_hash} {number}"] = record
    return found


def _run(record: RolloutRecord, rule: Sequence[str], rejected: bool = False) -> _Run:
    return _Run(record.score, record.cost_usd, record.latency_s, record.model_calls, record.tool_calls,
                record.input_tokens + record.output_tokens, rejected or hands_over(record, rule))  # fmt: skip
