"""Racing: which candidate runs next on which select item, and who is left in the end. Decides, runs nothing.

    race = make_race(arms, items, protect=[incumbent, cheapest_direct])
    while (batch := race.next()) is not None:      # [(candidate, item, replicate), ...]
        race.tell([Outcome(arm, item, replicate, utility=..., cost=...) ...])
    race.result().winner

Every candidate still in a race runs the same items and replicates. How candidates are dropped is the allocation's:
see `dse.compiler.allocation`. What the race says about a candidate is what it was selected by, and no estimate of how
good it is: that comes from the sealed holdout alone.

Same arms, items, seed and outcomes give the same batches and the same result, in whatever order outcomes are told.
An infrastructure failure is never told: it is run again, or the compile ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from dse.canonical import digest
from dse.compiler.allocation import ALLOCATIONS, Board, Step
from dse.compiler.pooling import Design, Posterior
from dse.errors import MetricError, UserError

__all__ = ["Arm", "Cell", "Item", "Outcome", "Race", "RaceResult", "Round", "Standing", "make_race"]

Cell = tuple[str, int, int]
"""A rollout to run: the candidate's name, the item's index, the replicate."""


@dataclass(frozen=True)
class Arm:
    """A candidate.

    Args:
        name: unique.
        factors: what it shares with others, such as mode, prompt, allow and model.
        unit_cost: expected cost of one rollout, in any unit that all arms and outcomes share (USD, tokens, runs).
    """

    name: str
    factors: Mapping[str, str] = field(default_factory=dict)
    unit_cost: float = 1.0


@dataclass(frozen=True)
class Item:
    """A select row; rows of one ``cluster`` are not independent. None: a cluster of its own."""

    key: str
    cluster: str | None = None


class Outcome(NamedTuple):
    """What one rollout gave: utility (any finite number) and the cost that it took, in the arms' unit."""

    arm: str
    item: int
    replicate: int
    utility: float
    cost: float = 1.0


@dataclass(frozen=True)
class Round:
    """What was run at one step, and who stayed.

    Attributes:
        name: of the stage. arms: who ran. units: (item, replicate) pairs that each of them has run by then.
        rollouts, cost: run and spent in this round. dropped: who left after it, and why. kept: who stayed.
    """

    name: str
    arms: tuple[str, ...]
    units: int
    rollouts: int
    cost: float
    kept: tuple[str, ...]
    dropped: Mapping[str, str]


@dataclass(frozen=True)
class Standing:
    """Where a candidate stands.

    Attributes:
        mean: expected utility as the allocation estimates it; sd: posterior standard deviation of its distance from the
            mean of all, None where the allocation does not pool. raw_mean: plain mean of what the candidate itself gave, None if it never ran.
        n: rollouts told. cost: spent on it. finalist: it reached the last stage. broken: why it cannot be chosen.
    """

    name: str
    mean: float
    sd: float | None
    raw_mean: float | None
    n: int
    cost: float
    finalist: bool
    broken: str | None


@dataclass(frozen=True)
class RaceResult:
    """How a race ended.

    Attributes:
        ranking: finalists that are not broken first, best first; then the others, by how long they stayed.
        stopped: why no further rollout was asked for.
        rounds: one by one. rollouts, spent: in all. grid_rollouts: what the full grid would have run.
        pooled: the fit at the end (spread by component, noise, design effect, outliers); empty without one.
    """

    ranking: tuple[Standing, ...]
    rounds: tuple[Round, ...]
    stopped: str
    rollouts: int
    spent: float
    grid_rollouts: int
    pooled: Mapping[str, Any]

    @property
    def winner(self) -> str | None:
        """The best finalist that is not broken; None if there is none."""
        return next((each.name for each in self.ranking if each.finalist and each.broken is None), None)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON data."""
        return {
            "winner": self.winner, "stopped": self.stopped, "rollouts": self.rollouts, "spent": self.spent,
            "grid_rollouts": self.grid_rollouts, "pooled": dict(self.pooled),
            "ranking": [dict(vars(each)) for each in self.ranking],
            "rounds": [vars(each) | {"arms": list(each.arms), "kept": list(each.kept), "dropped": dict(each.dropped)}
                       for each in self.rounds],
        }  # fmt: skip


class Race:
    """One race; made by `make_race`."""

    def __init__(self, arms: Sequence[Arm], items: Sequence[Item], *, allocation: str, seed: int,
                 budget_units: float | None, protect: Iterable[str], replicates: int) -> None:  # fmt: skip
        self._names = [arm.name for arm in arms]
        self._index = {name: number for number, name in enumerate(self._names)}
        self._replicates = replicates
        order = _spread(items, seed)
        # Items before replicates: a second replicate of an item says less than another item.
        self._units = [(item, replicate) for replicate in range(replicates) for item in order]
        self._place = {unit: number for number, unit in enumerate(self._units)}
        labels = [items[item].cluster if items[item].cluster is not None else f"\0{item}" for item, _ in self._units]
        clusters = np.unique(labels, return_inverse=True)[1].ravel()
        shape = (len(arms), len(self._units))
        self._board = Board(
            values=np.full(shape, np.nan), costs=np.zeros(shape), clusters=clusters,
            declared=np.array([arm.unit_cost for arm in arms], dtype=float), design=Design.of([a.factors for a in arms]),
            modes=np.unique([str(arm.factors.get("mode")) for arm in arms], return_inverse=True)[1].ravel(),
            protected=tuple(sorted({self._index[name] for name in protect})), budget=budget_units,
        )  # fmt: skip
        self._allocation = ALLOCATIONS[allocation](self._board)
        self._broken: dict[int, str] = {}
        self._open: set[tuple[int, int]] = set()
        self._step: Step | None = None
        self._rounds: list[Round] = []
        self._stopped: str | None = None
        self._spent_before = 0.0

    def next(self) -> list[Cell] | None:
        """The rollouts to run now, in the order of the arms; None when the race is over.

        Raises:
            UserError: outcomes of the batch before are missing.
        """
        if self._open:
            arm, unit = min(self._open)
            raise UserError("The last batch has not been told in full", value=(self._names[arm], *self._units[unit]),
                            remedy="Tell the outcome of every rollout; run again what failed for outside reasons.",
                            missing=len(self._open))  # fmt: skip
        while self._stopped is None:
            step = self._allocation.step()
            self._close(step)
            if isinstance(step, str):
                self._stopped = step
                break
            units = self._board.affordable(step.arms, step.units)
            if units < step.units:
                step = Step(step.arms, units, step.name, step.dropped)
                self._allocation.exhausted = True
            missing = np.argwhere(np.isnan(self._board.values[list(step.arms), :units]))
            self._step, self._spent_before = step, float(self._board.costs.sum())
            self._open = {(step.arms[row], int(unit)) for row, unit in missing}
            if self._open:
                return [(self._names[arm], *self._units[unit]) for arm, unit in sorted(self._open)]
            if self._allocation.exhausted:
                self._stopped = "the budget does not pay for another common item"
        return None

    def tell(self, outcomes: Iterable[Outcome], broken: Mapping[str, str] | None = None) -> None:
        """What rollouts gave, in any order and any number of calls.

        Args:
            broken: candidates that violate a hard limit, and how; each leaves the race, and a protected one stays for
                comparison only. A candidate once broken stays so.

        Raises:
            UserError: a rollout that was not asked for, or an unknown candidate.
            MetricError: a utility or cost that is not a finite number.
        """
        for arm, item, replicate, utility, cost in outcomes:
            index = self._index.get(arm)
            cell = (-1 if index is None else index, self._place.get((item, replicate), -1))
            if cell not in self._open:
                raise UserError("The race did not ask for this rollout, or has its outcome", value=(arm, item, replicate),
                                remedy="Tell what next() asked for, once.")  # fmt: skip
            if not (math.isfinite(utility) and math.isfinite(cost) and cost >= 0):
                raise MetricError("A utility must be a finite number, a cost one of at least 0", value=(utility, cost),
                                  remedy="A failed run scores 0; a broken one is run again.")  # fmt: skip
            self._board.values[cell] = utility
            self._board.costs[cell] = cost
            self._open.discard(cell)
        for name, why in (broken or {}).items():
            if name not in self._index:
                raise UserError("No such candidate", value=name, remedy="Name an arm of this race.")
            self._broken.setdefault(self._index[name], why)
            self._open = {cell for cell in self._open if cell[0] != self._index[name] or cell[0] in self._board.protected}
            self._board.broken.add(self._index[name])

    def result(self) -> RaceResult:
        """Where the candidates stand: final once `next` gave None, provisional before."""
        board, names = self._board, self._names
        ran = ~np.isnan(board.values)
        counts, sums = ran.sum(axis=1), np.where(ran, board.values, 0.0).sum(axis=1)
        posterior: Posterior | None = self._allocation.posterior() if ran.any() else None
        raw = np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)
        means = raw if posterior is None else posterior.mean
        finalists = set(self._allocation.finalists or self._allocation.alive)
        standings = [
            Standing(
                name=names[index], mean=float(means[index]), sd=None if posterior is None else float(posterior.sd[index]),
                raw_mean=float(raw[index]) if counts[index] else None, n=int(counts[index]),
                cost=math.fsum(board.costs[index].tolist()),
                finalist=index in finalists, broken=self._broken.get(index),
            )
            for index in range(len(names))
        ]  # fmt: skip
        order = sorted(range(len(names)), key=lambda i: (
            not standings[i].finalist or standings[i].broken is not None, 0 if standings[i].finalist else -standings[i].n,
            *board.rank_key(i, means)))  # fmt: skip
        pooled = {} if posterior is None else {
            "spread": dict(posterior.spread), "noise": posterior.noise, "design_effect": posterior.design_effect,
            "outliers": [names[index] for index in posterior.outliers]}  # fmt: skip
        return RaceResult(tuple(standings[i] for i in order), tuple(self._rounds), self._stopped or "not over",
                          int(counts.sum()), math.fsum(board.costs.ravel().tolist()), int(board.values.size),
                          MappingProxyType(pooled))  # fmt: skip

    def _close(self, after: Step | str) -> None:
        """Write down the round that has just been told, and who left after it."""
        if self._step is None:
            return
        done = self._step
        dropped = dict(self._allocation.leaving)
        cost = float(self._board.costs.sum()) - self._spent_before
        before = sum(each.rollouts for each in self._rounds)
        self._rounds.append(Round(
            done.name, tuple(self._names[i] for i in done.arms), done.units,
            int((~np.isnan(self._board.values)).sum()) - before, cost,
            tuple(self._names[i] for i in done.arms if i not in dropped),
            MappingProxyType({self._names[i]: why for i, why in dropped.items()})))  # fmt: skip
        self._step = None


def _spread(items: Sequence[Item], seed: int) -> list[int]:
    """Items by hash, the first of every cluster before the second of any."""
    def key(text: str) -> str:
        return digest([seed, text])

    groups: dict[str, list[int]] = {}
    for index in sorted(range(len(items)), key=lambda i: key(items[i].key)):
        cluster = items[index].cluster
        groups.setdefault(f"\0{index}" if cluster is None else cluster, []).append(index)
    rounds = [(place, order, index) for order, group in enumerate(groups.values()) for place, index in enumerate(group)]
    return [index for _, _, index in sorted(rounds)]


def make_race(
    arms: Sequence[Arm], items: Sequence[Item], *,
    allocation: Literal["race", "grid", "uniform", "sign_test"] = "race", seed: int = 0,
    budget_units: float | None = None, protect: Iterable[str] = (), replicates: int = 1,
) -> Race:  # fmt: skip
    """A race between candidates on the select items.

    Args:
        arms: the candidates. Among equals the cheaper wins, then the one named first here.
        items: the select rows.
        allocation: "race" halves in cost units, ranks by pooled estimates and stops when the rest cannot matter;
            "grid" runs everything; "uniform" gives all the same items, as many as the budget pays for; "sign_test"
            drops who is worse than the leader by a sign test at level .10.
        seed: of the order of the items.
        budget_units: the most that the rollouts may be expected to cost, in the arms' unit; a batch that would go
            beyond is shortened to fewer common items. "uniform" needs it.
        protect: arms that are never dropped before the end, such as the incumbent.
        replicates: rollouts of each item.

    Raises:
        UserError: no arm or item, two of one name, an unknown name or allocation, or a number that cannot be.
    """
    names = [arm.name for arm in arms]
    protect = tuple(protect)
    for good, what, value in (
        (bool(arms) and bool(items), "A race needs arms and items", f"{len(arms)} arms, {len(items)} items"),
        (len(set(names)) == len(names), "Two arms have one name", sorted(n for n in names if names.count(n) > 1)[:1]),
        (len({item.key for item in items}) == len(items), "Two items have one key", None),
        (allocation in ALLOCATIONS, "No such allocation", allocation),
        (set(protect) <= set(names), "A protected arm is not in the race", sorted(set(protect) - set(names))[:1]),
        (all(math.isfinite(arm.unit_cost) and arm.unit_cost >= 0 for arm in arms), "A unit cost is not an amount", None),
        (type(replicates) is int and replicates >= 1, "Replicates are counted from 1", replicates),
        (budget_units is None or (math.isfinite(budget_units) and budget_units >= 0), "A budget is not an amount",
         budget_units),
        (budget_units is not None or allocation != "uniform", "A uniform allocation needs budget_units", None),
    ):
        if not good:
            raise UserError(what, value=value, remedy=f"See make_race; allocations are {', '.join(ALLOCATIONS)}.")
    return Race(arms, items, allocation=allocation, seed=seed, budget_units=budget_units, protect=protect,
                replicates=replicates)  # fmt: skip
