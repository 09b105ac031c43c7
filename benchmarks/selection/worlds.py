"""Planted worlds as matrices: which candidate solves which item is drawn, how good each is, is known.

A candidate is right on an item when a latent normal exceeds its threshold: ``mu_a + item + item x mode + own``. The
thresholds give every candidate exactly the quality that was planted; the shared parts set how often two differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dse.compiler.race import Arm, Item

__all__ = ["MODES", "Spec", "World", "draw"]

MODES = ("direct", "tool_call", "code", "script")
_PROMPTS = {4: 1, 12: 3, 48: 6}
_BASE = 0.6
_Array = np.ndarray[Any, np.dtype[Any]]

# Latent correlation of two candidates of different modes and of quality 0.6 that differ on this share of the items.
_SHARED = {0.15: 0.8838, 0.34: 0.4473}
# Share of the rest that belongs to the mode: modes differ in which items they solve.
_OF_MODE = 0.3


@dataclass(frozen=True)
class Spec:
    """One cell of the benchmark.

    Args:
        kind: "grid", or what is special about it (see `draw`).
        gap: the best candidate's utility above the mean of all.
        discordance: share of items on which two candidates of different modes and of quality .6 differ.
        items: of the select split, and as many of the sealed holdout.
        arms: number of candidates: 4 modes x 1, 3 or 6 prompts x 1 or 2 allow-lists.
    """

    kind: str
    gap: float
    discordance: float
    items: int
    arms: int

    @property
    def name(self) -> str:
        return f"{self.kind}, K={self.arms}, N={self.items}, gap {self.gap:.2f}, discordance {self.discordance:.2f}"


@dataclass(frozen=True)
class World:
    """One draw. Matrices are arms x items; costs are in units of one rollout of the incumbent.

    ``truth`` is each candidate's expected utility. ``cost`` is what a rollout costs including rollouts that failed for
    outside reasons before it: those never give a score.
    """

    spec: Spec
    arms: tuple[Arm, ...]
    items: tuple[Item, ...]
    truth: _Array
    quality: _Array
    utility: _Array
    cost: _Array
    sealed_quality: _Array
    sealed_price: _Array
    sealed_clusters: tuple[str, ...]
    cost_weight: float
    incumbent: int
    cheapest: int


def _effects(spec: Spec, factors: _Array, rng: np.random.Generator) -> _Array:
    count = spec.arms
    if spec.kind == "null":
        return np.zeros(count)
    if spec.kind == "needle":
        effects = np.zeros(count)
        effects[rng.integers(1, count)] = 1.0
    else:
        shares = {"mode": 0.4, "prompt": 0.35, "allow": 0.1, "own": 0.15, "cell": 0.0}
        if spec.kind == "interaction":
            shares = {"mode": 0.1, "prompt": 0.1, "allow": 0.05, "own": 0.05, "cell": 0.7}
        cell = factors[0] * (factors[1].max() + 1) + factors[1]
        effects = np.zeros(count)
        for share, levels in zip(shares.values(), (*factors, np.arange(count), cell), strict=True):
            effects += np.sqrt(share) * rng.normal(size=levels.max() + 1)[levels]
    effects -= effects.mean()
    return effects * spec.gap / effects.max()


def draw(spec: Spec, seed: int, number: int) -> World:
    """World `number` of a cell. Kinds besides "grid" (factors add up, small own effects):

    null: all candidates are equally good. interaction: 70% of the variance is mode x prompt. needle: one candidate is
    better, all others are equal. rare: one candidate is right on the rare items (`gap` of them) on which nobody else is,
    and like all others elsewhere. infra: a fifth of the rollouts of one mode fail for outside reasons and are run again.
    clusters: items in groups of four, half of every latent part is the group's. cost: prices count, costs are lognormal
    (sigma 1.2) and depend on the mode. null_cost: the same with equal utilities.
    """
    rng = np.random.default_rng([seed, number])
    prompts = _PROMPTS[spec.arms]
    index = np.arange(spec.arms)
    factors = np.array([index % 4, index // 4 % prompts, index // (4 * prompts)])
    arms_of_mode = factors[0]
    priced = spec.kind.endswith("cost")
    price = np.array([1.0, 2.0, 1.5, 0.5])[arms_of_mode] if priced else np.ones(spec.arms)
    weight = 0.05 if priced else 0.0
    kind = spec.kind.removesuffix("_cost") if spec.kind != "cost" else "grid"
    effects = _effects(Spec(kind, spec.gap, spec.discordance, spec.items, spec.arms), factors, rng)
    if spec.kind == "rare":
        effects = np.zeros(spec.arms)
    truth = _BASE + effects
    if priced:
        truth = truth - weight * price.mean()
    chance = np.clip(truth + weight * price if priced else truth, 0.01, 0.99)
    truth = chance - weight * price
    shared = _SHARED[spec.discordance]
    clustered = spec.kind == "clusters"
    specialist = int(rng.integers(1, spec.arms))

    def outcomes(count: int) -> tuple[_Array, _Array]:
        group = np.arange(count) // 4 if clustered else np.arange(count)

        def part(rows: int) -> _Array:
            own = rng.standard_normal((rows, count))
            return np.sqrt(0.5) * own + np.sqrt(0.5) * rng.standard_normal((rows, group[-1] + 1))[:, group] if clustered else own

        latent = np.sqrt(shared) * part(1) + np.sqrt((1 - shared) * (1 - _OF_MODE)) * part(spec.arms)
        latent += np.sqrt((1 - shared) * _OF_MODE) * part(4)[arms_of_mode]
        right = (latent > -_quantile(chance)[:, None]).astype(float)
        if spec.kind == "rare":
            rare = rng.random(count) < spec.gap
            right[:, rare] = 0.0
            right[specialist, rare] = 1.0
        amount = price[:, None] * (np.exp(1.2 * rng.standard_normal((spec.arms, count)) - 0.72) if priced else 1.0)
        return right, np.broadcast_to(amount, right.shape).astype(float)

    quality, amount = outcomes(spec.items)
    sealed, sealed_price = outcomes(spec.items)
    if spec.kind == "rare":
        truth = (1 - spec.gap) * truth
        truth[specialist] += spec.gap
    spent = amount.copy()
    if spec.kind == "infra":
        flaky = arms_of_mode == 2
        spent[flaky] += rng.geometric(0.8, size=(int(flaky.sum()), spec.items)) - 1
    labels = [f"c{i // 4}" if clustered else f"r{i}" for i in range(spec.items)]
    arms = tuple(Arm(f"a{i}", {"mode": MODES[factors[0][i]], "prompt": f"p{factors[1][i]}", "allow": f"l{factors[2][i]}"},
                     float(price[i])) for i in range(spec.arms))  # fmt: skip
    items = tuple(Item(f"i{i}", labels[i]) for i in range(spec.items))
    return World(spec, arms, items, truth, quality, quality - weight * amount, spent, sealed, sealed_price,
                 tuple(labels), weight, 1, 0)  # fmt: skip


def _quantile(chance: _Array) -> _Array:
    from scipy.special import ndtri

    found: _Array = ndtri(chance)
    return found
