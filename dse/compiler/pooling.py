"""What is known about each candidate from all of them: an additive empirical-Bayes fit over their factors.

Candidate ``a`` on item ``j`` has utility ``theta_a + b_j + e_aj``. The items' effects ``b_j`` are free, so that only
differences on common items count. ``theta`` has variance from every factor (mode, prompt, allow-list, model), from the
interaction of mode and prompt, and of its own; the errors of candidates that share a level are correlated, too. All
variances are estimated: the errors' by least squares on the residuals, those of ``theta`` by restricted maximum
likelihood with a weak prior. The fit checks itself twice. Where interactions are large, their variance is, and little is shrunk. And a
candidate that lies far from what all others predict for it keeps its own mean.

Numpy only, no I/O, no random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Design", "Posterior", "pool"]

_Array = np.ndarray[Any, np.dtype[Any]]

_STEPS = 24
# What is expected of every component's standard deviation, as a share of one rollout's noise, with the weight of about
# four candidates (the mode of an inverse gamma prior of shape 1). Few candidates that happen to agree do not prove that
# all are equal.
_EXPECTED = 0.08
# Standard errors between a candidate's own mean and what the others predict for it, beyond which its own mean stands.
_OUTLIER = 2.5


@dataclass(frozen=True)
class Design:
    """Which candidates share what: for each component the level of every candidate."""

    levels: Mapping[str, _Array]

    @classmethod
    def of(cls, factors: Sequence[Mapping[str, Any]]) -> Design:
        """One component per factor with two levels or more that some candidates share, and mode x prompt."""
        names = sorted({name for each in factors for name in each})
        columns = {name: [str(each.get(name)) for each in factors] for name in names}
        if "mode" in columns and "prompt" in columns:
            columns["mode x prompt"] = [f"{a}\0{b}" for a, b in zip(columns["mode"], columns["prompt"], strict=True)]
        levels: dict[str, _Array] = {}
        for name, column in columns.items():
            index = np.unique(np.array(column), return_inverse=True)[1]
            same = any(np.array_equal(index, other) for other in levels.values())
            if 1 < index.max() + 1 < len(factors) and not same:
                levels[name] = index
        return cls(levels)

    def indicators(self) -> dict[str, _Array]:
        """Per component the matrix (candidates x levels) of zeros and ones."""
        return {name: np.eye(index.max() + 1)[index] for name, index in self.levels.items()}


@dataclass(frozen=True)
class Posterior:
    """What the fit says.

    Attributes:
        mean: expected utility of each candidate, on the items that were run.
        cov: posterior covariance; only differences between candidates have a meaning.
        spread: standard deviation of ``theta`` by component ("candidate" is what no factor explains).
        noise: standard deviation of one rollout about its candidate and item.
        design_effect: how much more the means vary because items come in clusters.
        outliers: candidates that keep their own mean.
        prior, information, noise_cov: covariance of ``theta`` and of one item's errors, and the precision of the data.
    """

    mean: _Array
    cov: _Array
    spread: Mapping[str, float]
    noise: float
    design_effect: float
    outliers: tuple[int, ...]
    prior: _Array
    information: _Array
    noise_cov: _Array

    @property
    def sd(self) -> _Array:
        """Posterior standard deviation of each candidate's distance from the mean of all."""
        rows = self.cov.mean(axis=0)
        found: _Array = np.sqrt(np.maximum(np.diag(self.cov) - 2 * rows + rows.mean(), 0))
        return found

    def after(self, arms: Sequence[int], items: float) -> _Array:
        """The posterior covariance once `arms` have run so many more items in common."""
        information = self.information.copy()
        chosen = np.ix_(arms, arms)
        information[chosen] += items / self.design_effect * _contrasts(self.noise_cov[chosen])
        return _posterior(self.prior, information)

    def gains(self, leader: int, arms: Sequence[int], items: float) -> _Array:
        """For each candidate: what running `arms` on so many more items is expected to gain by preferring it.

        The expected positive part of its lead over `leader` as it will be estimated then.
        """
        left = self.after(arms, items)
        change = self.cov - left
        diag = np.diag(change)
        move = np.sqrt(np.maximum(diag + diag[leader] - 2 * change[leader], 0))
        behind = self.mean[leader] - self.mean
        found = np.zeros(len(behind))
        moved = move > 1e-12
        z = behind[moved] / move[moved]
        found[moved] = move[moved] * (np.exp(-z * z / 2) / np.sqrt(2 * np.pi) - z * _upper_tail(z))
        found = np.maximum(found, 0)
        found[leader] = 0
        return found


def _upper_tail(z: _Array) -> _Array:
    from math import erfc, sqrt

    return np.array([0.5 * erfc(value / sqrt(2)) for value in z])


def _contrasts(noise: _Array) -> _Array:
    """The precision of one item about differences between candidates with errors of this covariance."""
    inverse = np.linalg.inv(noise)
    rows = inverse.sum(axis=1)
    found: _Array = inverse - np.outer(rows, rows) / rows.sum()
    return found


def _posterior(prior: _Array, information: _Array) -> _Array:
    inner = np.linalg.solve(np.eye(len(prior)) + information @ prior, information)
    left = prior - prior @ inner @ prior
    found: _Array = (left + left.T) / 2
    return found


@dataclass(frozen=True)
class _Pattern:
    """Items that the same candidates have run: their number, means and residuals' squares."""

    arms: _Array
    items: int
    means: _Array
    residuals: _Array


def _patterns(values: _Array) -> list[_Pattern]:
    seen = ~np.isnan(values)
    packed = np.packbits(seen, axis=0)
    _, first, which = np.unique(packed, axis=1, return_index=True, return_inverse=True)
    which = which.ravel()
    found = []
    for number in np.argsort(first, kind="stable"):
        columns = np.flatnonzero(which == number)
        arms = np.flatnonzero(seen[:, columns[0]])
        if len(arms) < 2:  # nobody to compare with
            continue
        block = values[np.ix_(arms, columns)]
        means = block.mean(axis=1)
        found.append(_Pattern(arms, len(columns), means, block - means[:, None] - block.mean(axis=0) + means.mean()))
    return found


def _noise(patterns: Sequence[_Pattern], indicators: Mapping[str, _Array], count: int, unseen: float) -> _Array:
    """The errors' covariance: a variance per component that candidates share, fitted to the residuals' products.

    One difference of size `unseen` that the items did not show enters it: few items on which all agree prove nothing.
    """
    size = len(indicators) + 1
    gram, moments = np.zeros((size, size)), np.zeros(size)
    gram[-1, -1], moments[-1] = 1.0, unseen**2
    stacked = np.hstack([*indicators.values(), np.zeros((count, 0))])
    starts = np.cumsum([0, *(matrix.shape[1] for matrix in indicators.values())])[:-1]
    for pattern in patterns:
        if pattern.items < 2:
            continue
        levels, k, weight = stacked[pattern.arms], len(pattern.arms), pattern.items - 1
        if size > 1:
            levels = levels - levels.sum(axis=0) / k
            inner = levels.T @ levels
            blocks = np.add.reduceat(np.add.reduceat(inner**2, starts, axis=0), starts, axis=1)
            gram[:-1, :-1] += weight * blocks
            traces = np.add.reduceat(np.diag(inner), starts)
            gram[:-1, -1] += weight * traces
            gram[-1, :-1] += weight * traces
            moments[:-1] += np.add.reduceat(((levels.T @ pattern.residuals) ** 2).sum(axis=1), starts)
        gram[-1, -1] += weight * (k - 1)
        moments[-1] += (pattern.residuals**2).sum()
    own = moments[-1] / gram[-1, -1]
    parts = np.zeros(size)
    parts[-1] = own
    active = list(range(size))
    while len(active) > 1:  # least squares without negative variances: the most negative leaves
        fitted = np.linalg.lstsq(gram[np.ix_(active, active)], moments[active], rcond=None)[0]
        if fitted.min() >= 0 and fitted[-1] >= 0.2 * own:
            parts[:] = 0
            parts[active] = fitted
            break
        active.pop(int(np.argmin(fitted[:-1])))
    found: _Array = parts[-1] * np.eye(count)
    for part, matrix in zip(parts[:-1], indicators.values(), strict=True):
        if part > 0:
            found += part * (matrix @ matrix.T)
    return found


def _design_effect(values: _Array, patterns: Sequence[_Pattern], clusters: _Array) -> float:
    """How much more a mean varies than with independent items, from the products of residuals within clusters."""
    if len(np.unique(clusters)) == len(clusters):
        return 1.0
    seen = ~np.isnan(values)
    items, arms = np.maximum(seen.sum(axis=0), 1), seen.any(axis=1)
    filled = np.where(seen, values, 0.0)
    mine = filled.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    centred = np.where(seen, values - mine[:, None], 0.0)
    centred = np.where(seen, centred - centred.sum(axis=0) / items, 0.0)[arms]
    index = np.unique(clusters, return_inverse=True)[1].ravel()
    sums = np.zeros((len(centred), index.max() + 1))
    np.add.at(sums.T, index, centred.T)
    alone = float((centred**2).sum())
    return max(1.0, float((sums**2).sum()) / alone) if alone > 0 else 1.0


def pool(values: _Array, design: Design, clusters: _Array | None = None, start: Posterior | None = None) -> Posterior:
    """Fit all candidates at once.

    Args:
        values: utilities, candidates x items; NaN where a candidate has not run.
        design: who shares which factor levels.
        clusters: a number per item; items of one cluster are not independent. None: all are.
        start: an earlier fit of fewer items, where the search for the variances begins.
    """
    count = len(values)
    patterns = _patterns(values)
    indicators = design.indicators()
    span = float(np.nanmax(values) - np.nanmin(values)) if (~np.isnan(values)).any() else 0.0
    noise = _noise(patterns, indicators, count, span or 1.0)
    scale = float(np.mean(np.diag(noise)))
    effect = 1.0 if clusters is None else _design_effect(values, patterns, clusters)
    information, observed = np.zeros((count, count)), np.zeros(count)
    for pattern in patterns:
        chosen = np.ix_(pattern.arms, pattern.arms)
        precision = pattern.items / effect * _contrasts(noise[chosen])
        information[chosen] += precision
        observed[pattern.arms] += precision @ pattern.means
    names = [*indicators, "candidate"]
    kernels = np.array([*(matrix @ matrix.T for matrix in indicators.values()), np.eye(count)])
    flat = kernels.reshape(len(names), -1)
    expected = _EXPECTED**2 * scale
    sizes = (np.full(len(names), max(expected, _start(values) / len(names))) if start is None
             else np.array([start.spread[name] ** 2 for name in names]))  # fmt: skip
    identity = np.eye(count)
    right = np.column_stack([information, observed])

    def solve(prior: _Array) -> tuple[_Array, _Array]:
        both = np.linalg.solve(identity + information @ prior, right)
        return both[:, :-1], both[:, -1]

    for _ in range(_STEPS):  # a majorising step: each variance times the root of (explained / expected)
        prior = (sizes @ flat).reshape(count, count)
        weights, scores = solve(prior)
        traces = flat @ weights.ravel() + 4 / sizes
        explained = (kernels @ scores) @ scores + 4 * expected / sizes**2
        before, sizes = sizes, sizes * np.sqrt(np.maximum(explained, 0) / traces)
        if np.abs(sizes - before).max() < 0.02 * sizes.max():
            break
    prior = (sizes @ flat).reshape(count, count)
    weights, scores = solve(prior)
    diagonal = np.maximum(np.diag(weights), 1e-300)
    distance = scores / np.sqrt(diagonal)
    outliers = np.flatnonzero((np.abs(distance) > _OUTLIER) & (np.diag(information) > 0))
    if len(outliers):
        extra = (scores[outliers] / diagonal[outliers]) ** 2 - 1 / diagonal[outliers]
        prior[outliers, outliers] += extra
        weights, scores = solve(prior)
    theta = prior @ scores
    cov = prior - prior @ weights @ prior
    return Posterior(theta + _level(values, theta), (cov + cov.T) / 2,
                     {name: float(np.sqrt(size)) for name, size in zip(names, sizes, strict=True)}, float(np.sqrt(scale)), effect,
                     tuple(int(each) for each in outliers), prior, information, noise)  # fmt: skip


def _start(values: _Array) -> float:
    """A first guess at the variance between candidates: that of their means."""
    seen = ~np.isnan(values)
    ran = seen.sum(axis=1)
    means = np.where(seen, values, 0.0).sum(axis=1)[ran > 0] / ran[ran > 0]
    return float(means.var()) if len(means) else 0.0


def _level(values: _Array, theta: _Array) -> float:
    """What to add to differences so that they are utilities on the items that were run, each item counting once."""
    seen = ~np.isnan(values)
    ran = seen.sum(axis=0)
    used = ran > 0
    if not used.any():
        return 0.0
    left = np.where(seen, values - theta[:, None], 0.0).sum(axis=0)
    return float((left[used] / ran[used]).mean())
