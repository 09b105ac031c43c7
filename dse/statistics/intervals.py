"""Intervals for mean differences, scores and rates, whole clusters at a time."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal

from dse.errors import UserError
from dse.statistics.values import (
    CHUNK,
    TIE,
    Interval,
    Labels,
    Scores,
    checked_numbers,
    cluster_sums,
    in_range,
    is_binary,
    need_two_clusters,
    normal_quantile,
    open_share,
    t_quantile,
    whole_number,
)

# How much rows of one cluster are taken to correlate where clusters differ in size; see `_spread`.
_WITHIN = 0.1


def _spread(sizes: Sequence[float]) -> tuple[list[float], float]:
    """For clusters of these sizes: what the square of each one's residual sum counts, and the degrees of freedom of the
    variance that these make (Bell and McCaffrey, 2002, for a mean; in closed form).

    Working model: rows of one cluster correlate by `_WITHIN`, so that a cluster's sum varies by v = n (1 + (n - 1) _WITHIN).
    With p = n / N and V = sum v, the residual sum r_c = T_c - p_c T of a cluster has the variance
    v_c (1 - 2 p_c) + p_c^2 V; weighted by v_c over this, the squares add up to V without bias, however large a cluster is.
    Two of them have the covariance p_c p_d V - p_d v_c - p_c v_d, and Satterthwaite's degrees of freedom are
    V^2 / sum_cd (weight_c weight_d cov_cd^2). Equal clusters have weights C / (C - 1) and C - 1 degrees of freedom.
    """
    rows = math.fsum(sizes)
    shares = [size / rows for size in sizes]
    v = [size * (1 + (size - 1) * _WITHIN) for size in sizes]
    whole = math.fsum(v)
    a = [x / (x * (1 - 2 * p) + p * p * whole) for x, p in zip(v, shares, strict=True)]
    each = list(zip(a, v, shares, strict=True))
    one, two, both = (math.fsum(values) for values in zip(*((w * x * x, w * p * p, w * p * x) for w, x, p in each), strict=True))
    pairs = 2 * one * two + (whole * two) ** 2 + 2 * both**2 - 4 * whole * two * both  # of all clusters, with themselves as well
    own = math.fsum((w * (2 * p * x - p * p * whole)) ** 2 for w, x, p in each)
    df = whole**2 / (math.fsum(x * x for x in v) + pairs - own)
    return a, min(max(1.0, df), float(len(sizes) - 1))


def degrees_of_freedom(clusters: Sequence[Hashable]) -> float:
    """Degrees of freedom of a mean over rows with these cluster labels, from 1 to clusters - 1 (clusters of equal size).

    One cluster with half of all rows leaves about 1.5, however many others there are: its own error is seen once.

    Raises:
        DatasetError: fewer than two clusters.
    """
    sizes = sorted(Counter(clusters).values())
    need_two_clusters(len(sizes))
    return _spread(sizes)[1]


def _squares(groups: list[tuple[float, int]], mean: float, weights: list[float]) -> float:
    return math.fsum(a * (total - size * mean) ** 2 for a, (total, size) in zip(weights, groups, strict=False))


def paired_interval(differences: Scores, clusters: Labels = None, *,
                    level: float = 0.95, unseen: float = 0.0) -> Interval:  # fmt: skip
    """Mean paired difference per row with a cluster-robust t interval.

    ``SE^2 = sum_c a_c (sum_{j in c} (D_j - mean))^2 / n^2``. The bias-reducing weights a_c and the degrees of freedom
    follow from the sizes of the clusters (Bell and McCaffrey, 2002, for rows that correlate by 0.1 within a cluster).
    With clusters of equal size they are C / (C - 1) and C - 1. Where one cluster holds many of the rows they
    are what keeps the level: with C - 1, the lower end misses it up to eight times too often.

    Args:
        unseen: size of one win and one loss that these rows did not show. One imaginary cluster of average
            size on each side of the mean, this far away, enters the variance (after Bonett and Price, 2012,
            for paired proportions). Without it, rows that rarely or never differ give an interval of little
            or no width, and its lower end misses its level two to three times too often.

    Raises:
        DatasetError: fewer than two clusters.
    """
    open_share(level, "level")
    in_range(unseen, "unseen", 0, math.inf)
    values = checked_numbers(differences, "differences")
    groups = cluster_sums(values, clusters)
    n, count = len(values), len(groups)
    need_two_clusters(count)
    mean = math.fsum(values) / n
    sizes: list[float] = [size for _, size in groups]
    weights, df = _spread(sizes)
    if unseen:
        average = n / count
        weights, _ = _spread([*sizes, average, average])
        squares = _squares(groups, mean, weights) + 2 * weights[-1] * (unseen * average) ** 2
        se = math.sqrt(squares) / (n + 2 * average)
    else:
        se = math.sqrt(_squares(groups, mean, weights)) / n
    reach = t_quantile(df, (1 + level) / 2) * se
    method = "cluster-robust t" + (", one unseen win and loss" if unseen else "")
    return Interval(mean, mean - reach, mean + reach, level, se, n, count, method)


def lower_bound(differences: Scores, clusters: Labels = None, *,
                alpha: float = 0.05, unseen: float = 0.0) -> float:  # fmt: skip
    """One-sided lower confidence bound (level 1 - alpha) of the mean difference: see `paired_interval`."""
    return paired_interval(differences, clusters, level=1 - 2 * open_share(alpha, "alpha"), unseen=unseen).low


def bootstrap_interval(values: Scores, clusters: Labels = None, *,
                       level: float = 0.95, draws: int = 2000, method: Literal["bca", "percentile"] = "bca",
                       seed: int = 0) -> Interval:  # fmt: skip
    """Mean per row with a cluster bootstrap interval: whole clusters are drawn with replacement.

    "bca" corrects bias and skew (Efron, 1987) and falls back to "percentile" where all resamples agree.
    ``se`` is the standard deviation of the resampled means.

    Raises:
        DatasetError: fewer than two clusters.
    """
    import numpy as np
    from scipy.special import ndtr

    open_share(level, "level")
    if method not in ("bca", "percentile"):
        raise UserError("The method must be 'bca' or 'percentile'", value=method, remedy="Use 'bca'.")
    draws = int(in_range(draws, "draws", 100, math.inf))
    numbers = checked_numbers(values, "values")
    groups = cluster_sums(numbers, clusters)
    count = len(groups)
    need_two_clusters(count)
    sums = np.array([total for total, _ in groups])
    sizes = np.array([size for _, size in groups], dtype=np.float64)
    bits = random.Random(seed)
    means = np.empty(draws)
    step = max(1, CHUNK // count)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        raw = np.frombuffer(bits.randbytes(rows * count * 4), dtype="<u4").reshape(rows, count)
        picks = (raw.astype(np.uint64) * count) >> np.uint64(32)
        means[start : start + rows] = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    mean = math.fsum(numbers) / len(numbers)
    tails = [(1 - level) / 2, (1 + level) / 2]
    if method == "bca":
        below = ((means < mean).sum() + 0.5 * (means == mean).sum()) / draws
        left_out = (sums.sum() - sums) / (sizes.sum() - sizes)  # jackknife: each cluster left out once
        gaps = left_out.mean() - left_out
        spread = float((gaps**2).sum())
        if 0 < below < 1 and spread > 0:
            bias, skew = normal_quantile(float(below)), float((gaps**3).sum()) / (6 * spread**1.5)
            shifted = [bias + normal_quantile(tail) for tail in tails]
            tails = [float(ndtr(bias + shift / (1 - skew * shift))) for shift in shifted]
        else:
            method = "percentile"
    low, high = (float(np.quantile(means, tail)) for tail in tails)
    return Interval(mean, low, high, level, float(means.std(ddof=1)), len(numbers), count,
                    f"cluster bootstrap, {method}, {draws} draws, seed {seed}")  # fmt: skip


def _wilson(share: float, n: float, quantile: float) -> tuple[float, float]:
    square = quantile**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    reach = quantile / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    low = 0.0 if share == 0 else max(0.0, middle - reach)
    return low, 1.0 if share == 1 else min(1.0, middle + reach)


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson interval for a rate of independent rows."""
    whole_number(successes, "successes", 0, whole_number(n, "n", 1))
    rate = successes / n
    low, high = _wilson(rate, n, normal_quantile((1 + open_share(level, "level")) / 2))
    return Interval(rate, low, high, level, math.sqrt(rate * (1 - rate) / n), n, n, "Wilson")


def clopper_pearson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Exact (conservative) Clopper-Pearson interval for a rate of independent rows."""
    from scipy.special import betaincinv

    whole_number(successes, "successes", 0, whole_number(n, "n", 1))
    tail = (1 - open_share(level, "level")) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return Interval(successes / n, low, high, level, None, n, n, "Clopper-Pearson")


def score_interval(scores: Scores, clusters: Labels = None, *,
                   level: float = 0.95) -> Interval:  # fmt: skip
    """Mean score with an interval that stays inside [0, 1].

    Independent scores of 0 and 1 get Wilson's interval. All others get Wilson's form with the effective
    number of rows ``mean (1 - mean) / SE^2`` (at most n rows for scores of 0 and 1) and a t quantile, with SE and
    degrees of freedom as in `paired_interval`. Scores that do not vary at all count as one 0/1 observation per
    cluster (``n^2 / sum of squared sizes`` of them). A single cluster says nothing about others: its interval is [0, 1].

    Raises:
        MetricError: a score is outside [0, 1].
    """
    open_share(level, "level")
    values = checked_numbers(scores, "scores", 0.0, 1.0)
    groups = cluster_sums(values, clusters)
    n, count = len(values), len(groups)
    binary = is_binary(values)
    if binary and count == n:
        return wilson(round(math.fsum(values)), n, level=level)
    mean = min(1.0, max(0.0, math.fsum(values) / n))
    if count < 2:
        return Interval(mean, 0.0, 1.0, level, None, n, count, "single cluster")
    weights, df = _spread([size for _, size in groups])
    se = math.sqrt(_squares(groups, mean, weights)) / n
    effective = mean * (1 - mean) / se**2 if se > TIE else n * n / sum(size * size for _, size in groups)
    if binary:
        effective = min(effective, float(n))
    low, high = _wilson(mean, effective, t_quantile(df, (1 + level) / 2))
    return Interval(mean, low, high, level, se, n, count, "Wilson, effective rows")


def quantile(values: Scores, q: float) -> float:
    """Nearest-rank quantile: the smallest value that at least a share `q` of all values does not exceed."""
    numbers = sorted(checked_numbers(values, "values"))
    in_range(q, "q", 0, 1)
    return numbers[max(1, math.ceil(q * len(numbers) - 1e-9)) - 1]


def skewness(differences: Scores, clusters: Labels = None) -> float:
    """Skewness of the cluster sums about the mean difference, 0.0 where they do not vary.

    Below about -1 the sign-flip test and the t interval are too optimistic about a gain.
    """
    values = checked_numbers(differences, "differences")
    groups = cluster_sums(values, clusters)
    mean = math.fsum(values) / len(values)
    gaps = [total - size * mean for total, size in groups]
    spread = math.fsum(gap**2 for gap in gaps) / len(gaps)
    if math.sqrt(spread) <= TIE * max(map(abs, values)):
        return 0.0
    return float(math.fsum(gap**3 for gap in gaps) / len(gaps) / spread**1.5)
