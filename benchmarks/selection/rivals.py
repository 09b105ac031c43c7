"""How others choose, on the same worlds and for the same money: each spends until `budget` is gone.

They see what a compile would show them: candidates one by one, and the outcome of a candidate on an item for the
price of that rollout. All begin with the incumbent. Each returns the index of its choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.selection.worlds import World

__all__ = ["RIVALS", "gepa_rule", "minibatch_search", "wilcoxon_pruner"]


class _Purse:
    """Outcomes for money; what was run once is not paid for again."""

    def __init__(self, world: World, budget: float) -> None:
        self.world, self.left = world, budget
        self.seen = np.zeros(world.utility.shape, dtype=bool)

    def mean(self, arm: int, items: Any) -> float:
        new = items[~self.seen[arm, items]]
        self.left -= float(self.world.cost[arm, new].sum())
        self.seen[arm, new] = True
        return float(self.world.utility[arm, items].mean())


def gepa_rule(world: World, budget: float, rng: np.random.Generator) -> int:
    """Each proposal meets the best so far on 3 items; strictly better: it is validated on all of them."""
    purse, everything = _Purse(world, budget), np.arange(world.spec.items)
    best, score = world.incumbent, purse.mean(world.incumbent, everything)
    for arm in rng.permutation(world.spec.arms):
        if purse.left <= 0:
            break
        if arm == world.incumbent:
            continue
        batch = rng.choice(world.spec.items, 3, replace=False)
        if purse.mean(arm, batch) > purse.mean(best, batch):
            full = purse.mean(arm, everything)
            if full > score:
                best, score = int(arm), full
    return best


def minibatch_search(world: World, budget: float, rng: np.random.Generator) -> int:
    """As MIPROv2: combinations of factor levels by a Parzen estimator, minibatches of 35, every fifth time a full run."""
    purse, everything = _Purse(world, budget), np.arange(world.spec.items)
    levels = np.array([np.unique([arm.factors[name] for arm in world.arms], return_inverse=True)[1] for name in
                       ("mode", "prompt", "allow")])  # fmt: skip
    full = {world.incumbent: purse.mean(world.incumbent, everything)}
    tried, scores, size = [world.incumbent], [full[world.incumbent]], min(35, world.spec.items)
    while purse.left > 0 and len(full) < world.spec.arms and len(tried) < 20 * world.spec.arms:  # repetitions are free
        arm = int(rng.integers(world.spec.arms))
        if len(tried) >= 10:
            order = np.argsort(scores)[::-1]
            good, bad = order[: max(1, len(order) // 4)], order[max(1, len(order) // 4) :]
            ratio = np.zeros(world.spec.arms)
            for column in levels:
                seen = column[np.array(tried)]
                count = column.max() + 1
                shares = [(1 + np.bincount(seen[part], minlength=count)) / (count + len(part)) for part in (good, bad)]
                ratio += np.log(shares[0] / shares[1])[column]
            drawn = rng.choice(world.spec.arms, 24)
            arm = int(drawn[np.argmax(ratio[drawn])])
        tried.append(arm)
        scores.append(purse.mean(arm, rng.choice(world.spec.items, size, replace=False)))
        if len(tried) % 5 == 0:
            means: dict[int, list[float]] = {}
            for each, score in zip(tried, scores, strict=True):
                if each not in full:
                    means.setdefault(each, []).append(score)
            if means:
                best = max(means, key=lambda each: sum(means[each]) / len(means[each]))
                full[best] = purse.mean(best, everything)
    return max(full, key=lambda each: full[each])


def wilcoxon_pruner(world: World, budget: float, rng: np.random.Generator) -> int:
    """Optuna's own WilcoxonPruner (p < .1): candidates are trials, items are steps in a random order.

    It is asked after every fifth item: one question takes it tens of milliseconds.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    purse, best, score = _Purse(world, budget), world.incumbent, -np.inf
    order = [world.incumbent, *(int(arm) for arm in rng.permutation(world.spec.arms) if arm != world.incumbent)]
    for arm in order:
        trial = study.ask()
        pruned = False
        for place, item in enumerate(rng.permutation(world.spec.items), 1):
            if purse.left <= 0:
                return best
            trial.report(purse.mean(arm, np.array([item])), int(item))
            if place % 5 == 0 and trial.should_prune():
                pruned = True
                break
        mean = float(world.utility[arm, purse.seen[arm]].mean())
        study.tell(trial, mean)  # as its documentation has it: a pruned trial reports its mean so far
        if not pruned and mean > score:
            best, score = arm, mean
    return best


RIVALS: dict[str, Callable[[World, float, np.random.Generator], int]] = {
    "gepa's rule": gepa_rule, "minibatches": minibatch_search, "WilcoxonPruner": wilcoxon_pruner}  # fmt: skip
