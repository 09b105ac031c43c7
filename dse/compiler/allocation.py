"""How a race spends: sequential halving with pooling, and the baselines that it is compared with.

``race`` runs in stages. In each, all that are left run the same further items; then the better half stays (in cost
units: the longest best-ranked list that costs at most half), of a wide field the better third of a longer first stage.
Seats go by pooled utility and, in turn, by what a candidate's own outcomes say: pooling takes a specialist, who is right
on rare items where all others fail, for noise. Where there are many, the best of every mode stays through stage two. At
most four finalists, with what is protected, run the whole select split in steps. After every step a candidate leaves
that is not expected to change the choice: its chance to overtake on the items that are left, times by how much, is worth
next to nothing. When nobody but the leader is left, the race ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from dse.compiler.pooling import Design, Posterior, pool

__all__ = ["ALLOCATIONS", "Board", "Step"]

_Array = np.ndarray[Any, np.dtype[Any]]

FINALISTS = 4


@dataclass(frozen=True)
class Step:
    """`arms` run every unit below `units` that they have not run yet; `dropped` says who left before it."""

    arms: tuple[int, ...]
    units: int
    name: str
    dropped: dict[int, str] = field(default_factory=dict)


@dataclass
class Board:
    """What is known: utilities and costs of arms x units, NaN where nothing ran."""

    values: _Array
    costs: _Array
    clusters: _Array
    declared: _Array
    design: Design
    modes: _Array
    protected: tuple[int, ...]
    budget: float | None
    broken: set[int] = field(default_factory=set)

    @property
    def unit_costs(self) -> _Array:
        """Expected cost of one rollout: the mean of what was spent, with the declared cost as one observation."""
        counts = (~np.isnan(self.values)).sum(axis=1)
        found: _Array = (self.declared + self.costs.sum(axis=1)) / (1 + counts)
        return found

    def rank_key(self, arm: int, means: _Array) -> tuple[Any, ...]:
        """Sorts the better first; among equals the cheaper, then the first in order."""
        return -round(float(means[arm]), 9), float(self.declared[arm]), arm

    def best(self, arms: Sequence[int], means: _Array) -> list[int]:
        return sorted(arms, key=lambda arm: self.rank_key(arm, means))

    def raw_means(self) -> _Array:
        ran = ~np.isnan(self.values)
        found: _Array = np.where(ran, self.values, 0.0).sum(axis=1) / np.maximum(ran.sum(axis=1), 1)
        return found

    def distinctions(self) -> _Array:
        """How far each arm is from the others on its items: the mean distance in standard deviations.

        Mean and deviation are those of the other arms that ran the item, the variance with one more that differs as
        much as is usual. Right where nearly all are wrong counts several times right where half of them are. This finds
        who deserves further items; it is not utility.
        """
        ran = ~np.isnan(self.values)
        count = ran.sum(axis=0)
        level = np.where(ran, self.values, 0.0).sum(axis=0) / np.maximum(count, 1)
        apart = np.where(ran, self.values - level, 0.0)
        others = np.maximum(count - ran, 1)
        variance = np.maximum(((apart**2).sum(axis=0) - apart**2) / others - (apart / others) ** 2, 0.0)
        usual = float(variance[ran].mean()) if ran.any() else 0.0
        scale = np.sqrt((others * variance + usual) / (others + 1))
        distance = apart * (1 + 1 / others)  # from the mean of the others
        differ = ran & (scale > 1e-9 * (1 + np.abs(level)))  # all agree, but for rounding
        scores = np.divide(distance, scale, out=np.zeros_like(distance), where=differ)
        found: _Array = scores.sum(axis=1) / np.maximum(ran.sum(axis=1), 1)
        return found

    def affordable(self, arms: Sequence[int], units: int) -> int:
        """At most `units`, fewer where the budget does not pay for them: the same for all arms."""
        if self.budget is None:
            return units
        missing = np.isnan(self.values[list(arms), :units])
        spent = np.cumsum((missing * self.unit_costs[list(arms)][:, None]).sum(axis=0)) + self.costs.sum()
        fits = spent <= self.budget * (1 + 1e-9)
        return units if fits.all() else int(np.argmin(fits))


class Allocation(Protocol):
    """Decides who runs what next.

    ``alive`` are the arms still in the race, ``finalists`` those that can be chosen in the end (empty: all that are
    alive), ``leaving`` those that the last `step` dropped, with reasons;
    ``exhausted`` is set when the budget cut a step short: then nothing further can be bought.
    """

    alive: list[int]
    finalists: list[int]
    leaving: dict[int, str]
    exhausted: bool

    def __init__(self, board: Board) -> None: ...

    def step(self) -> Step | str:
        """The next step, or why the race is over."""
        ...

    def posterior(self) -> Posterior | None:
        """The fit that ranks, None where plain means do."""
        ...


class _Base:
    def __init__(self, board: Board) -> None:
        self.board = board
        self.count, self.total = board.values.shape
        self.alive = list(range(self.count))
        self.finalists: list[int] = []
        self.leaving: dict[int, str] = {}
        self.exhausted = False
        self.started = False

    def posterior(self) -> Posterior | None:
        return None

    def _remove_broken(self) -> None:
        """Broken arms leave; protected ones stay to be compared with."""
        gone = [arm for arm in self.alive if arm in self.board.broken and arm not in self.board.protected]
        self.leaving = dict.fromkeys(gone, "broken")
        self.alive = [arm for arm in self.alive if arm not in self.leaving]

    def _able(self) -> list[int]:
        return [arm for arm in self.alive if arm not in self.board.broken]


class Grid(_Base):
    """All arms on all items."""

    def step(self) -> Step | str:
        self._remove_broken()
        if self.started:
            return "the budget does not pay for another common item" if self.exhausted else "every item was run"
        self.started = True
        return Step(tuple(self.alive), self.total, "grid")


class Uniform(Grid):
    """All arms on as many items as the budget pays for."""


class SignTest(_Base):
    """Items one block after another; whoever is worse than the leader by a sign test at level .10 leaves."""

    BLOCK: ClassVar[int] = 5
    ALPHA: ClassVar[float] = 0.10

    def step(self) -> Step | str:
        self._remove_broken()
        board, able = self.board, self._able()
        done = int((~np.isnan(board.values[able])).sum(axis=1).min()) if self.started and able else 0
        if self.started and able:
            leader = board.best(able, board.raw_means())[0]
            for arm in able:
                if arm == leader or arm in board.protected:
                    continue
                gaps = board.values[leader, :done] - board.values[arm, :done]
                p = _sign_test(int((gaps > 0).sum()), int((gaps < 0).sum()))
                if p <= self.ALPHA:
                    self.leaving[arm] = f"worse than the leader by a sign test, p = {p:.3g}"
            self.alive = [arm for arm in self.alive if arm not in self.leaving]
        if self.exhausted:
            return "the budget does not pay for another common item"
        if done >= self.total:
            return "every item was run"
        if len(self._able()) < 2 and self.started:
            return "one candidate is left"
        self.started = True
        return Step(tuple(self.alive), min(self.total, done + self.BLOCK), "block")


def _sign_test(wins: int, losses: int) -> float:
    n = wins + losses
    return float(sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n)


class Halving(_Base):
    """Sequential halving in cost units with pooled ranking; see the module."""

    #: A candidate that would gain less by further items, in expectation and in utility, cannot matter. In a wide field
    #: this is shared: many who leave for little each may be worth much together.
    TOLERANCE: ClassVar[float] = 0.0003
    #: With more than this many candidates the best of every mode stays through stage two.
    MANY: ClassVar[int] = 8
    #: Fewest items of the first stage; the share of the split that it takes is FIRST_SHARE * arms ** -FIRST_POWER.
    FIRST: ClassVar[int] = 4
    FIRST_SHARE: ClassVar[float] = 0.56
    FIRST_POWER: ClassVar[float] = 0.38
    #: What a race costs over its first stage, about: a smaller budget makes the first stage smaller.
    WHOLE: ClassVar[float] = 2.2
    #: Every fourth seat of the next stage goes to the best by its own mean: pooling may be wrong about some. With many
    #: candidates every second goes to who is furthest above the others on its items.
    OWN: ClassVar[int] = 4
    MANY_OWN: ClassVar[int] = 2
    #: Cumulative items of a stage over those of the stage before.
    GROWTH: ClassVar[float] = 1.6
    #: From so many on a third of the cost stays instead of half. What that saves pays for a longer first stage and larger
    #: steps: the first stage is where who shows on few items is lost.
    WIDE: ClassVar[int] = 24
    WIDE_FIRST_SHARE: ClassVar[float] = 0.65
    WIDE_GROWTH: ClassVar[float] = 1.65
    FINAL_STEPS: ClassVar[int] = 3

    def __init__(self, board: Board) -> None:
        super().__init__(board)
        self.stage = self.done = self.finals = 0
        self.along: set[int] = set()  # protected arms that are out of the race and only run along
        self.fit: Posterior | None = None
        self.fresh = False
        self.many, self.wide = self.count > self.MANY, self.count >= self.WIDE
        self.tolerance = self.TOLERANCE * self.MANY / self.count if self.wide else self.TOLERANCE

    def posterior(self) -> Posterior | None:
        if self.fit is None or not self.fresh:
            self.fit = pool(self.board.values, self.board.design, self.board.clusters, self.fit)
            self.fresh = True
        return self.fit

    def step(self) -> Step | str:
        self._remove_broken()
        self.fresh = False
        if self.started and self.done < self.total:
            self._drop()
        if not self._able():
            return "every candidate is broken"
        if self.exhausted:
            return "the budget does not pay for another common item"
        if self.started and self.done >= self.total:
            return "every item was run"
        rivals = self._rivals()
        if self.started and len(rivals) < 2:
            return "the remaining items are not expected to change the choice"
        self.started = True
        self.stage += 1
        final = len(rivals) <= FINALISTS or self.finals > 0
        if final and not self.finals:
            self.finalists = list(self.alive)
        self.done = self._target(final)
        return Step(tuple(self.alive), self.done, "final" if final else f"stage {self.stage}")

    def _rivals(self) -> list[int]:
        """Who can still be chosen."""
        return [arm for arm in self._able() if arm not in self.along]

    def _target(self, final: bool) -> int:
        if final:
            step = math.ceil((self.total - self.done) / max(1, self.FINAL_STEPS - self.finals))
            self.finals += 1
            return int(min(self.total, self.done + step))
        share = (self.WIDE_FIRST_SHARE if self.wide else self.FIRST_SHARE) * self.count**-self.FIRST_POWER
        if self.board.budget is not None and (grid := float(self.board.unit_costs.sum()) * self.total) > 0:
            share = min(share, self.board.budget / grid / self.WHOLE)
        first = max(self.FIRST, math.ceil(share * self.total))
        growth = self.WIDE_GROWTH if self.wide else self.GROWTH
        return int(min(self.total, first if self.done == 0 else max(self.done + 1, math.ceil(self.done * growth))))

    def _drop(self) -> None:
        board = self.board
        posterior = self.posterior()
        assert posterior is not None
        rivals = self._rivals()
        if len(rivals) < 2:
            return
        ranked = board.best(rivals, posterior.mean)
        leader = ranked[0]
        gains = posterior.gains(leader, self.alive, self.total - self.done)
        leaving: dict[int, str] = {}
        keep = set(self._half(ranked)) if len(ranked) > FINALISTS else set(ranked)
        if self.stage <= 2 and self.many:
            modes: dict[int, int] = {}
            for arm in ranked:
                modes.setdefault(int(board.modes[arm]), arm)
            keep |= set(modes.values())
        else:
            modes = {}
        # The variances of a wide field are not known from its few first items: until the second stage places alone decide.
        sure = self.stage > 1 or not self.wide
        for place, arm in enumerate(ranked[1:], 2):
            behind = posterior.mean[leader] - posterior.mean[arm]
            if arm not in keep:
                leaving[arm] = f"place {place} of {len(ranked)}, {behind:.3g} behind"
            elif sure and gains[arm] < self.tolerance and arm not in modes.values():
                leaving[arm] = f"{behind:.3g} behind: further items are worth {gains[arm]:.1g} at most"
        self.along |= {arm for arm in leaving if arm in board.protected}
        self.leaving.update({arm: why for arm, why in leaving.items() if arm not in board.protected})
        self.alive = [arm for arm in self.alive if arm not in self.leaving]

    def _half(self, ranked: Sequence[int]) -> list[int]:
        """The best arms that cost at most half of all together, or a third; at least the finalists."""
        every = self.MANY_OWN if self.many else self.OWN
        own = iter(self.board.best(ranked, self.board.distinctions() if self.many else self.board.raw_means()))
        pooled = iter(ranked)
        order: list[int] = []
        for seat in range(1, len(ranked) + 1):
            order.append(next(arm for arm in (own if seat % every == 0 else pooled) if arm not in order))
        costs = self.board.unit_costs[order]
        parts = 3 if self.wide else 2
        limit = costs.sum() / parts
        kept = int((np.cumsum(costs) <= limit * (1 + 1e-9)).sum()) if limit > 0 else math.ceil(len(ranked) / parts)
        return order[: max(FINALISTS, kept)]


ALLOCATIONS: dict[str, type[Allocation]] = {"race": Halving, "grid": Grid, "uniform": Uniform, "sign_test": SignTest}
