"""The gate: one paired test of one candidate against the incumbent on the sealed holdout.

**Statistic.** Each row gives a utility difference under the objective,

    U = (score difference) - cost_weight (USD difference) - latency_weight (seconds difference)
        + exposure_weight (effects removed),

candidate minus incumbent, and the test asks whether its mean is above zero: an exact McNemar test when scores
are 0 or 1, every cluster is one row and nothing but quality is priced, otherwise a sign-flip permutation test
that flips whole clusters. A difference that is the same on every row (an effect removed) gives 2^-clusters.

**Quality floor.** Prices never buy back quality below the floor. Tests and bounds share one alpha and all must
hold, so no correction for several tests is needed.

* ``min_quality``: the one-sided lower bound of the candidate's mean score reaches it.
* ``max_quality_loss``, when anything but quality is priced, holds in one of three ways: no row scores worse;
  or quality by itself is significantly better (the same paired test); or the one-sided lower bound of the
  quality difference is at least ``-max_quality_loss``. When only quality counts, promotion already requires it to
  be significantly better: nothing to add.
* No row worse in n clusters still leaves ``1 - alpha^(1/n)`` of all clusters that may lose (31% with 8 clusters,
  17% with 16, 7.2% with 40), each of them a full point. Where this is within ``max_quality_loss``, the floor is shown.
  Where it is not, 16 clusters or fewer are INSUFFICIENT; with more, no row worse is enough. That is a rule, not
  a test at alpha: it lets a cheaper or safer candidate of equal quality win with a ``max_quality_loss`` of 0, which no
  number of clusters could show, or of 0.05, which takes 59. A candidate that truly loses 5% of the clusters passes
  it with probability ``0.95^n``: 42% with 17 clusters, 13% with 40. The reasons say what is not shown.

**Hard limits** (``max_cost`` on the mean, ``max_p95_latency_s`` on the nearest-rank 95th percentile) hold for
what was measured on these rows.

**Verdict.**

* PROMOTE: p <= alpha, the floor holds, the limits hold.
* KEEP: a limit or a floor is not met as measured; or no row is better (ties keep the incumbent); or the test
  is not significant and the 95% interval of the gain ends below ``worthwhile``.
* INSUFFICIENT: the floor is met as measured but not shown; or the test is not significant and the interval
  still holds a gain of ``worthwhile`` or lies wholly above zero. ``rows_needed`` further rows like these, in new
  clusters, would decide, with probability `power`, if the true gain is the larger of the measured one and
  ``worthwhile`` (for a floor: if the true quality is as measured).

The test is exact for differences that are symmetric about zero under the null hypothesis, as two programs of
equal merit have them. Where few large losses balance many small gains it fires too often (exponential losses, 32
clusters: 12% at alpha 5%); a promotion on such rows says so. What never happened in these rows no test can see:
intervals therefore allow for one win and one loss that the rows did not show. In the interval of the gain, which
plans, these are as large as the largest quality difference seen (a full point where all are ties). In the bound that
holds the floor they are a full point always, the whole range of a score: rows that got worse by 0.001 do not show that
none can fail. Thereby no bound on 40 independent rows lies above -0.057.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from dse import statistics
from dse.compiler.verdict import GateResult, PairedRow, Verdict, amount
from dse.errors import ArtifactInvalid, DuplicateRow, MissingHoldout, UserError
from dse.objective import Objective, unknown
from dse.statistics import Interval

__all__ = ["MIN_CLUSTERS", "GateResult", "PairedRow", "Verdict", "evidence", "gate", "recompute"]

#: Fewer independent clusters decide nothing: with 7, a gain of 20 points is found 40 times in 100.
MIN_CLUSTERS = 8
#: So few clusters without a worse row do not stand for a floor that they do not show.
_FEW = 16
_LEVEL = 0.95
_SKEWED = -1.0
_TIE = 1e-12


def gate(
    rows: Iterable[PairedRow],
    *,
    objective: Objective,
    baseline_exposure: float = 0,
    candidate_exposure: float = 0,
    alpha: float = 0.05,
    power: float = 0.8,
    seed: int = 0,
) -> GateResult:
    """Decide whether the candidate replaces the incumbent. See the module for the rules.

    Args:
        rows: every holdout row once, in any order; average replicates first.
        baseline_exposure, candidate_exposure: effects that the incumbent and the candidate can have (for
            example the number of tools with effects on their allow-lists).
        alpha: one-sided level of the test and of each bound.
        power: what ``mde`` and ``rows_needed`` are planned for.
        seed: for the Monte Carlo test, used only where there are too many sign patterns to count.

    Raises:
        MissingHoldout: fewer than 8 clusters. DuplicateRow: a row twice.
        UserError: a cost or latency is unknown and the objective needs it, or an argument is out of range.
    """
    ordered = sorted(rows, key=lambda row: row.row_hash)
    clusters = [row.cluster for row in ordered]
    _check(ordered, len(set(clusters)), objective)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError("The seed must be a whole number", value=repr(seed), remedy="Use 0.")
    removed = _exposure(baseline_exposure) - _exposure(candidate_exposure)
    facts = _Facts(ordered, clusters, objective, removed, alpha, power, seed)
    verdict, reasons, rows_needed = facts.decide()
    signs = [0 if abs(value) <= _TIE else math.copysign(1, value) for value in facts.utility]
    return GateResult(
        verdict=verdict,
        reasons=tuple(reasons),
        p_value=facts.test.p_value,
        test=f"{facts.test.method}, one-sided",
        mean_difference=facts.gain,
        quality_difference=facts.quality_gain,
        candidate_quality=facts.candidate,
        incumbent_quality=facts.incumbent,
        quality_floor=facts.floor,
        quality_lower_bound=facts.quality_bound,
        mde=facts.mde,
        candidate_cost=facts.candidate_cost,
        incumbent_cost=facts.incumbent_cost,
        candidate_p95_latency_s=facts.candidate_p95,
        incumbent_p95_latency_s=facts.incumbent_p95,
        n_rows=len(ordered),
        n_clusters=facts.count,
        wins=signs.count(1),
        losses=signs.count(-1),
        ties=signs.count(0),
        rows_needed=rows_needed,
        alpha=float(alpha),
        power=float(power),
        seed=seed,
    )


def _check(rows: Sequence[PairedRow], clusters: int, objective: Objective) -> None:
    for before, row in itertools.pairwise(rows):
        if before.row_hash == row.row_hash:
            raise DuplicateRow("A holdout row occurs twice", value=row.row_hash,
                               remedy="Average the replicates of a row first.")  # fmt: skip
    if clusters < MIN_CLUSTERS:
        raise MissingHoldout(f"The holdout has {clusters} clusters; a verdict needs {MIN_CLUSTERS}",
                             remedy=f"Add rows of at least {MIN_CLUSTERS - clusters} further clusters.",
                             clusters=clusters, rows=len(rows))  # fmt: skip
    for row in rows:
        for quantity, weight, limit in (("cost", "cost_weight", "max_cost"),
                                        ("latency", "latency_weight", "max_p95_latency_s")):  # fmt: skip
            candidate, incumbent = (getattr(row, f"{who}_{quantity}") for who in ("candidate", "incumbent"))
            if getattr(objective, weight) and (candidate is None or incumbent is None):
                raise unknown(quantity, weight)
            if getattr(objective, limit) is not None and candidate is None:
                raise unknown(quantity, limit)


def _exposure(value: Any) -> float:
    number = amount(value)
    if number is None or number < 0:
        raise UserError("An exposure must be a finite number of at least 0", value=repr(value),
                        remedy="Count the effects that the plan's allow-list permits.")  # fmt: skip
    return number


class _Facts:
    """Everything measured on the rows, and the verdict that follows from it."""

    def __init__(self, rows: Sequence[PairedRow], clusters: list[str], objective: Objective, removed: float,
                 alpha: float, power: float, seed: int) -> None:  # fmt: skip
        self.objective, self.alpha, self.power = objective, alpha, power
        self.n, self.count = len(rows), len(set(clusters))
        mine = [row.candidate_score for row in rows]
        theirs = [row.incumbent_score for row in rows]
        self.quality = [a - b for a, b in zip(mine, theirs, strict=True)]
        self.utility = [  # utility is linear, so the utility of the differences is the difference in utility
            objective.utility(
                difference,
                _minus(row.candidate_cost, row.incumbent_cost),
                _minus(row.candidate_latency, row.incumbent_latency),
                removed,
            )
            for row, difference in zip(rows, self.quality, strict=True)
        ]
        priced_exposure = objective.exposure_weight * removed != 0
        self.priced = bool(objective.cost_weight or objective.latency_weight or priced_exposure)
        self.same = removed == 0 and all(
            row.candidate_score == row.incumbent_score
            and row.candidate_cost == row.incumbent_cost
            and row.candidate_latency == row.incumbent_latency
            for row in rows
        )
        exact = self.count == self.n and statistics.is_binary(mine + theirs)
        quality_test = (
            statistics.mcnemar(self.quality.count(1), self.quality.count(-1), ties=self.quality.count(0))
            if exact
            else statistics.sign_flip(self.quality, clusters, seed=seed)
        )
        self.test = statistics.sign_flip(self.utility, clusters, seed=seed) if self.priced else quality_test
        self.skewness = statistics.skewness(self.utility, clusters)
        # The largest quality difference seen stands for one that was not; where none was seen, a full point.
        seen = max(map(abs, self.quality))
        unseen = seen if seen > _TIE else 1.0
        self.gain = statistics.paired_interval(self.utility, clusters, level=_LEVEL, unseen=unseen)
        # The floor is a promise. Whatever was seen, a run may fail and score 0: it allows for a full point.
        unseen = 1.0 if self.priced else unseen
        self.quality_gain = statistics.paired_interval(self.quality, clusters, level=_LEVEL, unseen=unseen)
        self.quality_bound = statistics.lower_bound(self.quality, clusters, alpha=alpha, unseen=unseen)
        self.candidate = statistics.score_interval(mine, clusters, level=_LEVEL)
        self.incumbent = statistics.score_interval(theirs, clusters, level=_LEVEL)
        self.absolute_bound = statistics.score_interval(mine, clusters, level=1 - 2 * alpha).low
        assert self.gain.se is not None
        can_reach = 0.5**self.count <= alpha
        detectable = statistics.detectable(self.gain.se, statistics.degrees_of_freedom(clusters), alpha=alpha, power=power)
        if exact and not self.priced:  # the standard error of few rows that differ says little about the exact test
            differ = sum(value != 0 for value in self.quality) / self.n
            self.mde = statistics.minimum_detectable_effect(self.n, discordance=differ, alpha=alpha, power=power)
        else:
            self.mde = detectable if can_reach else None
        self.none_worse = min(self.quality) >= -_TIE
        self.hidden = 1 - alpha ** (1 / self.count)  # clusters that may be worse where none was
        self.floor = self._floor(quality_test.p_value)
        self.candidate_cost = _mean([row.candidate_cost for row in rows])
        self.incumbent_cost = _mean([row.incumbent_cost for row in rows])
        self.candidate_p95 = _p95([row.candidate_latency for row in rows])
        self.incumbent_p95 = _p95([row.incumbent_latency for row in rows])

    def _floor(self, p_quality: float) -> str:
        allowed = -self.objective.max_quality_loss
        if not self.priced:
            return "not priced"
        if self.none_worse and (self.count > _FEW or self.hidden <= -allowed):
            return "no row worse"
        if p_quality <= self.alpha:
            return "quality better"
        if self.quality_bound >= allowed:
            return "bound"
        if self.none_worse:
            return "unproven"
        # A mean on the floor itself, with rows on both sides, is never shown by more rows like these.
        return "unproven" if self.quality_gain.estimate > allowed + _TIE else "unmet"

    def decide(self) -> tuple[Verdict, list[str], int | None]:
        if self.same:
            return "KEEP", ["the candidate behaves like the incumbent on every row (same program)"], None
        broken = self._broken()
        if broken:
            return "KEEP", broken + self._notes(), None
        gain = f"mean utility difference {self.gain.estimate:+.4g}, p = {self.test.p_value:.4g}"
        if max(self.utility) <= _TIE:
            return "KEEP", [f"no row is better, and ties keep the incumbent: {gain}"], None
        significant = self.test.p_value <= self.alpha
        unproven, needed = self._unproven()
        if significant and not unproven:
            return "PROMOTE", [f"better: {gain}", *self._notes()], None
        if significant:
            return "INSUFFICIENT", [*unproven, f"better, but not promoted for that reason: {gain}"], needed
        worthwhile = self.objective.worthwhile
        if self.gain.high < worthwhile and self.gain.low <= 0:
            why = f"not better: {gain}; the 95% interval ends at {self.gain.high:+.4g}, below a worthwhile gain"
            return "KEEP", [f"{why} of {worthwhile:g}"], None
        target = max(self.gain.estimate, worthwhile)
        assert self.gain.se is not None
        reachable = math.ceil(math.log2(1 / self.alpha))  # clusters without which no p can reach alpha
        needed = max(needed or 1, self._more(self.gain.se, target),
                     math.ceil((reachable - self.count) * self.n / self.count))  # fmt: skip
        why = f"not decided: {gain}, 95% interval {self.gain.low:+.4g} to {self.gain.high:+.4g}"
        more = f"about {self._rows(needed)} would find a true gain of {target:.4g} with power {self.power:g}"
        return "INSUFFICIENT", [why, more, *unproven], needed

    def _broken(self) -> list[str]:
        """Limits and floors that are not met as measured."""
        objective, found = self.objective, []
        if objective.max_cost is not None and (self.candidate_cost or 0.0) > objective.max_cost:
            found.append(f"mean cost {self.candidate_cost:.4g} USD is above max_cost {objective.max_cost:g}")
        if objective.max_p95_latency_s is not None and (self.candidate_p95 or 0.0) > objective.max_p95_latency_s:
            limit = f"max_p95_latency_s {objective.max_p95_latency_s:g}"
            found.append(f"95th percentile of latency {self.candidate_p95:.4g} s is above {limit}")
        if objective.min_quality is not None and self.candidate.estimate <= objective.min_quality:
            found.append(f"mean quality {self.candidate.estimate:.4g} is not above min_quality "
                         f"{objective.min_quality:g}")  # fmt: skip
        if self.floor == "unmet":
            found.append(f"mean quality difference {self.quality_gain.estimate:+.4g} with worse rows is not within "
                         f"max_quality_loss {objective.max_quality_loss:g}")  # fmt: skip
        return found

    def _unproven(self) -> tuple[list[str], int | None]:
        """Floors that are met as measured but not shown, and the further rows that would show all of them."""
        objective, found, rows = self.objective, [], []
        if objective.min_quality is not None and self.absolute_bound < objective.min_quality:
            rows.append(self._more_for_rate(self.candidate, objective.min_quality))
            found.append(f"min_quality {objective.min_quality:g} is not shown: mean quality "
                         f"{self.candidate.estimate:.4g}, lower bound {self.absolute_bound:.4g}; "
                         f"about {self._rows(rows[-1])} would show it")  # fmt: skip
        if self.floor == "unproven" and self.none_worse:
            target = min(_FEW + 1, self._showing())
            rows.append(max(1, math.ceil((target - self.count) * self.n / self.count)))
            found.append(f"max_quality_loss {objective.max_quality_loss:g} is not shown: {self._unseen()}; "
                         f"about {self._rows(rows[-1])} would do, if none of them is worse")  # fmt: skip
        elif self.floor == "unproven":
            assert self.quality_gain.se is not None
            distance = self.quality_gain.estimate + objective.max_quality_loss
            rows.append(self._more(self.quality_gain.se, distance))
            found.append(f"max_quality_loss {objective.max_quality_loss:g} is not shown: mean quality difference "
                         f"{self.quality_gain.estimate:+.4g}, lower bound {self.quality_bound:+.4g}; "
                         f"about {self._rows(rows[-1])} would show it")  # fmt: skip
        return found, max(rows, default=None)

    def _showing(self) -> float:
        """Clusters without a worse row that show the floor at this alpha."""
        loss = self.objective.max_quality_loss
        return 1 if loss >= 1 else math.ceil(math.log(self.alpha) / math.log1p(-loss)) if loss > 0 else math.inf

    def _unseen(self) -> str:
        return (f"no row scored worse; with {self.count} clusters, up to {self.hidden:.1%} worse ones cannot be "
                f"excluded at level {1 - self.alpha:g}")  # fmt: skip

    def _rows(self, more: int) -> str:
        """Further rows in words: those of known clusters say little, so the clusters are named."""
        clusters = math.ceil(more * self.count / self.n)
        return f"{more} more rows in {clusters} new cluster{'s' * (clusters != 1)}"

    def _more(self, se: float, distance: float) -> int:
        """Further rows (in new clusters, as many to each as now) until a true mean this far from the margin is found with the wanted power."""
        needed = statistics.required_rows(distance, sd=se * math.sqrt(self.n), alpha=self.alpha, power=self.power)
        return max(1, needed - self.n)

    def _more_for_rate(self, rate: Interval, margin: float) -> int:
        """As `_more`, for a mean score: its variance is taken at the margin, as Wilson's interval does."""
        spread = rate.estimate * (1 - rate.estimate)
        design = self.n * rate.se**2 / spread if rate.se and spread > 0 else self.n / self.count
        sd = math.sqrt(margin * (1 - margin) * design)
        needed = statistics.required_rows(rate.estimate - margin, sd=sd, alpha=self.alpha, power=self.power)
        return max(1, needed - self.n)

    def _notes(self) -> list[str]:
        """What a reader should know besides the deciding reason."""
        objective, found = self.objective, []
        if self.floor == "no row worse":
            found.append(self._unseen())
            if self.hidden > objective.max_quality_loss:
                showing = self._showing()
                found[-1] += (f", so that max_quality_loss {objective.max_quality_loss:g} is met and not shown ("
                              f"{f'{showing} clusters' if math.isfinite(showing) else 'no number of clusters'} would show it)")  # fmt: skip
        elif self.floor in ("quality better", "bound"):
            found.append(f"quality holds ({self.floor}): mean difference {self.quality_gain.estimate:+.4g}, "
                         f"lower bound {self.quality_bound:+.4g}")  # fmt: skip
        if self.skewness < _SKEWED:
            found.append(f"p is optimistic: differences are skewed towards losses (skewness {self.skewness:.2g})")
        for measured, limit, name in (
            (self.incumbent_cost, objective.max_cost, "max_cost"),
            (self.incumbent_p95, objective.max_p95_latency_s, "max_p95_latency_s"),
        ):
            if measured is not None and limit is not None and measured > limit:
                found.append(f"the incumbent itself breaks {name}: {measured:.4g}")
        return found


def _minus(mine: float | None, theirs: float | None) -> float | None:
    return None if mine is None or theirs is None else mine - theirs


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _p95(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.quantile(known, 0.95) if len(known) == len(values) else None


def evidence(
    rows: Iterable[PairedRow],
    *,
    objective: Objective,
    baseline_exposure: float = 0,
    candidate_exposure: float = 0,
    alpha: float = 0.05,
    power: float = 0.8,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything `recompute` needs, as plain JSON data: the arguments of `gate`, rows sorted by hash."""
    return {
        "rows": [row.to_list() for row in sorted(rows, key=lambda row: row.row_hash)],
        "objective": objective.to_dict(),
        "baseline_exposure": baseline_exposure,
        "candidate_exposure": candidate_exposure,
        "alpha": alpha,
        "power": power,
        "seed": seed,
    }


def recompute(evidence: Mapping[str, Any]) -> GateResult:
    """The gate's result from recorded evidence alone: nothing is run and no recorded figure is trusted.

    Args:
        evidence: what `evidence` wrote; further keys are ignored, none of its own may be missing.

    Raises:
        ArtifactInvalid: a key is missing or a row does not have eight fields.
        UserError: as `gate`.
    """
    arguments = ("objective", "baseline_exposure", "candidate_exposure", "alpha", "power", "seed")
    missing = [key for key in ("rows", *arguments) if key not in evidence]
    if missing:
        raise ArtifactInvalid("The gate's evidence is incomplete", value=", ".join(missing),
                              remedy="Restore the artifact as it was written, or compile again.")  # fmt: skip
    if not isinstance(evidence["rows"], (list, tuple)):
        raise ArtifactInvalid("The rows of the gate's evidence are not a list", value=repr(evidence["rows"]),
                              remedy="Restore the artifact as it was written, or compile again.")  # fmt: skip
    rows = []
    for index, row in enumerate(evidence["rows"]):
        if not isinstance(row, (list, tuple)) or len(row) != len(fields(PairedRow)):
            raise ArtifactInvalid(f"Row {index} of the gate's evidence does not have eight fields", value=row,
                                  remedy="Restore the artifact as it was written, or compile again.")  # fmt: skip
        rows.append(PairedRow(*row))
    given = {key: evidence[key] for key in arguments}
    return gate(rows, **{**given, "objective": Objective.model_validate(given["objective"])})
