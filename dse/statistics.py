"""Paired tests, intervals and planning arithmetic. No I/O, no state.

Every function takes plain sequences of numbers. Rows that share a cluster label are not independent: they
are flipped, resampled and counted together; without labels each row is its own cluster. Differences are
``candidate - incumbent``, all tests are one-sided ("the candidate is better"). Results do not depend on the
order of the rows, except those of `e_process`, which follows it; and Monte Carlo steps draw their bits from `random.Random(seed)`, whose stream is stable
across Python and numpy versions.

Errors: `MetricError` for a value that is not a finite number or lies outside its range, `DatasetError` for
rows and clusters that cannot be used, `UserError` for a level, power or effect that makes no sense.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dse.errors import DatasetError, MetricError, UserError

__all__ = [
    "EProcess", "Interval", "PairedTest", "bootstrap_interval", "clopper_pearson", "confidence_sequence",
    "degrees_of_freedom", "detectable", "e_process", "is_binary",
    "lower_bound", "mcnemar", "mcnemar_power", "minimum_detectable_effect", "paired_interval", "quantile",
    "required_rows", "score_interval", "sign_flip", "skewness", "wilson",
]  # fmt: skip

Scores = Sequence[float]
Labels = Sequence[Hashable] | None

# Sign patterns are counted from two lists of sums, one for each half of the clusters, of at most this length.
_HALF = 2**16
# Sums closer to a tie than this share of the total are ties; floats such as 0.1 + 0.2 - 0.3 are not zero.
_TIE = 1e-11
_CHUNK = 4_000_000
# How much rows of one cluster are taken to correlate where clusters differ in size; see `_spread`.
_WITHIN = 0.1
# Bets of an e-process, as shares of the largest one that can never lose everything.
_BETS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
_LARGEST = 700.0  # exp of more is no float


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided interval, in the unit of the values.

    ``se`` is the (cluster-robust) standard error of ``estimate``, None where the method has none;
    ``n`` counts rows and ``clusters`` clusters.
    """

    estimate: float
    low: float
    high: float
    level: float
    se: float | None
    n: int
    clusters: int
    method: str

    __pydantic_config__ = {"extra": "forbid"}  # for readers of recorded intervals

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class PairedTest:
    """A one-sided paired test of "the candidate is better".

    ``statistic`` is the mean paired difference per row; ``exact`` says that ``p_value`` was counted, not
    sampled. ``wins``, ``losses`` and ``ties`` count clusters (rows, where each row is its own cluster).
    """

    p_value: float
    statistic: float
    method: str
    exact: bool
    n: int
    clusters: int
    wins: int
    losses: int
    ties: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON data."""
        return asdict(self)


def _numbers(values: Scores, what: str, low: float = -math.inf, high: float = math.inf) -> list[float]:
    result = []
    for index, value in enumerate(values):
        try:
            number = math.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise MetricError(f"{what}[{index}] is not a finite number", value=repr(value),
                              remedy="A failed run scores 0; a broken one is run again.")  # fmt: skip
        if not low <= number <= high:
            raise MetricError(f"{what}[{index}] lies outside [{low:g}, {high:g}]", value=number,
                              remedy="Scale the metric into its range.")  # fmt: skip
        result.append(number)
    if not result:
        raise DatasetError(f"{what} is empty", remedy="Pass at least one row.")
    return result


def _grouped(values: list[float], clusters: Labels) -> list[tuple[float, int]]:
    """(sum, size) of each cluster, in an order that does not depend on the order of the rows."""
    if clusters is None:
        return sorted((value, 1) for value in values)
    labels = list(clusters)
    if len(labels) != len(values):
        raise DatasetError("Every row needs one cluster label", value=f"{len(labels)} for {len(values)} rows",
                           remedy="Pass as many labels as rows, or None for independent rows.")  # fmt: skip
    groups: dict[Hashable, list[float]] = {}
    for label, value in zip(labels, values, strict=True):
        groups.setdefault(label, []).append(value)
    return sorted((math.fsum(group), len(group)) for group in groups.values())


def _within(value: Any, what: str, low: float, high: float, *, open_ends: bool = False) -> float:
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not real or not low <= value <= high or (open_ends and value in (low, high)):
        where = f"strictly between {low:g} and {high:g}" if open_ends else f"in [{low:g}, {high:g}]"
        raise UserError(f"{what} must lie {where}", value=repr(value), remedy="Correct the argument.")
    return float(value)


def _share(value: float, what: str) -> float:
    return _within(value, what, 0, 0.5 if what == "alpha" else 1, open_ends=True)


def _count(value: Any, what: str, low: int, high: float = math.inf) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise DatasetError(f"{what} must be a whole number from {low} to {high:g}", value=repr(value),
                           remedy="Count the rows again.")  # fmt: skip
    return value


def _two_clusters(count: int) -> None:
    if count < 2:
        raise DatasetError("An interval needs at least two clusters", value=count,
                           remedy="Add rows of other clusters.")  # fmt: skip


def is_binary(values: Scores) -> bool:
    """Whether all values are exactly 0 or 1."""
    return all(value in (0, 1) for value in values)


def _t(df: float, p: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, p))


def _z(p: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(p))


def sign_flip(differences: Scores, clusters: Labels = None, *, seed: int = 0,
              draws: int = 100_000) -> PairedTest:  # fmt: skip
    """Paired sign-flip permutation test of mean difference > 0, flipping whole clusters.

    The p-value is the share of sign patterns of the cluster sums whose total is at least the observed one. It
    is exact (counted) with at most 32 clusters that differ, and with far more when sums repeat, as those of 0/1
    scores do; otherwise it is (1 + hits) / (1 + draws) over `draws` seeded random patterns. Valid when the
    differences are symmetric about zero under the null hypothesis. Never below 2^-clusters.

    Raises:
        MetricError: a difference is not a finite number. DatasetError: no rows, or labels that do not fit.
    """
    draws = int(_within(draws, "draws", 1, math.inf))
    values = _numbers(differences, "differences")
    groups = _grouped(values, clusters)
    tie = _TIE * math.fsum(abs(value) for value in values)
    sums = [total for total, _ in groups if abs(total) > tie]
    wins = sum(total > 0 for total in sums)
    # A pattern that flips the set A reaches the observed total exactly when the sum over A is <= 0, so p is the
    # share of subsets with such a sum. Clusters with sum zero change nothing on either side of that count.
    halves = _halves(sums, tie)
    exact = halves is not None
    p = _counted_share(*halves, tie) if halves is not None else _sampled_share(sums, tie, seed, draws)
    method = "sign-flip permutation, " + ("exact" if exact else f"{draws} draws, seed {seed}")
    return PairedTest(min(1.0, p), math.fsum(values) / len(values), method, exact, len(values), len(groups),
                      wins, len(sums) - wins, len(groups) - len(sums))  # fmt: skip


_Groups = list[tuple[float, int]]


def _halves(sums: list[float], tie: float) -> tuple[_Groups, _Groups] | None:
    """The sums as (value, how often) in two groups of clusters, None where counting takes too long."""
    groups: _Groups = []
    for value in sums:  # sorted
        if groups and value - groups[-1][0] <= tie:
            groups[-1] = (groups[-1][0], groups[-1][1] + 1)
        else:
            groups.append((value, 1))
    halves: tuple[_Groups, _Groups] = ([], [])
    sizes = [1, 1]
    for value, often in sorted(groups, key=lambda group: -group[1]):
        smaller = sizes.index(min(sizes))
        halves[smaller].append((value, often))
        sizes[smaller] *= often + 1
    return halves if max(sizes) <= _HALF else None


def _counted_share(one: _Groups, other: _Groups, tie: float) -> float:
    """The share of all subsets whose sum is <= 0, by meeting in the middle."""
    import numpy as np

    lists = []
    for half in (one, other):
        totals, shares = np.zeros(1), np.ones(1)
        for value, often in half:
            chosen = [math.comb(often, k) / 2**often for k in range(often + 1)]
            totals = np.add.outer(totals, value * np.arange(often + 1)).ravel()
            shares = np.multiply.outer(shares, chosen).ravel()
        lists.append((totals, shares))
    (left, left_shares), (right, right_shares) = lists
    order = np.argsort(right, kind="stable")
    up_to = np.concatenate([np.zeros(1), np.cumsum(right_shares[order])])
    return float(left_shares @ up_to[np.searchsorted(right[order], tie - left, side="right")])


def _sampled_share(sums: list[float], tie: float, seed: int, draws: int) -> float:
    import numpy as np

    bits = random.Random(seed)
    values = np.array(sums)
    width = (len(sums) + 7) // 8
    hits, left = 0, draws
    while left:
        count = min(left, max(1, _CHUNK // (8 * width)))
        raw = np.frombuffer(bits.randbytes(count * width), dtype=np.uint8).reshape(count, width)
        chosen = np.unpackbits(raw, axis=1)[:, : len(sums)].astype(np.float64)
        hits += int((chosen @ values <= tie).sum())
        left -= count
    return (1 + hits) / (1 + draws)


def mcnemar(wins: int, losses: int, *, ties: int = 0) -> PairedTest:
    """Exact one-sided McNemar test: P(X >= wins) for X ~ Binomial(wins + losses, 1/2).

    Args:
        wins: rows where only the candidate is right.
        losses: rows where only the incumbent is right.
        ties: rows where both are right or both wrong; they only enter the statistic's denominator.
    """
    n = _count(wins, "wins", 0) + _count(losses, "losses", 0) + _count(ties, "ties", 0)
    _count(n, "the number of rows", 1)
    differ = wins + losses
    ways, below = 1, 0
    for k in range(losses + 1):  # P(X >= wins) = P(X <= losses), in whole numbers
        below += ways
        ways = ways * (differ - k) // (k + 1)
    p = below / 2**differ
    return PairedTest(p, (wins - losses) / n, "McNemar, exact", True, n, n, wins, losses, ties)


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
    _two_clusters(len(sizes))
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
    _share(level, "level")
    _within(unseen, "unseen", 0, math.inf)
    values = _numbers(differences, "differences")
    groups = _grouped(values, clusters)
    n, count = len(values), len(groups)
    _two_clusters(count)
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
    reach = _t(df, (1 + level) / 2) * se
    method = "cluster-robust t" + (", one unseen win and loss" if unseen else "")
    return Interval(mean, mean - reach, mean + reach, level, se, n, count, method)


def lower_bound(differences: Scores, clusters: Labels = None, *,
                alpha: float = 0.05, unseen: float = 0.0) -> float:  # fmt: skip
    """One-sided lower confidence bound (level 1 - alpha) of the mean difference: see `paired_interval`."""
    return paired_interval(differences, clusters, level=1 - 2 * _share(alpha, "alpha"), unseen=unseen).low


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

    _share(level, "level")
    if method not in ("bca", "percentile"):
        raise UserError("The method must be 'bca' or 'percentile'", value=method, remedy="Use 'bca'.")
    draws = int(_within(draws, "draws", 100, math.inf))
    numbers = _numbers(values, "values")
    groups = _grouped(numbers, clusters)
    count = len(groups)
    _two_clusters(count)
    sums = np.array([total for total, _ in groups])
    sizes = np.array([size for _, size in groups], dtype=np.float64)
    bits = random.Random(seed)
    means = np.empty(draws)
    step = max(1, _CHUNK // count)
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
            bias, skew = _z(float(below)), float((gaps**3).sum()) / (6 * spread**1.5)
            shifted = [bias + _z(tail) for tail in tails]
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
    _count(successes, "successes", 0, _count(n, "n", 1))
    rate = successes / n
    low, high = _wilson(rate, n, _z((1 + _share(level, "level")) / 2))
    return Interval(rate, low, high, level, math.sqrt(rate * (1 - rate) / n), n, n, "Wilson")


def clopper_pearson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Exact (conservative) Clopper-Pearson interval for a rate of independent rows."""
    from scipy.special import betaincinv

    _count(successes, "successes", 0, _count(n, "n", 1))
    tail = (1 - _share(level, "level")) / 2
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
    _share(level, "level")
    values = _numbers(scores, "scores", 0.0, 1.0)
    groups = _grouped(values, clusters)
    n, count = len(values), len(groups)
    binary = is_binary(values)
    if binary and count == n:
        return wilson(round(math.fsum(values)), n, level=level)
    mean = min(1.0, max(0.0, math.fsum(values) / n))
    if count < 2:
        return Interval(mean, 0.0, 1.0, level, None, n, count, "single cluster")
    weights, df = _spread([size for _, size in groups])
    se = math.sqrt(_squares(groups, mean, weights)) / n
    effective = mean * (1 - mean) / se**2 if se > _TIE else n * n / sum(size * size for _, size in groups)
    if binary:
        effective = min(effective, float(n))
    low, high = _wilson(mean, effective, _t(df, (1 + level) / 2))
    return Interval(mean, low, high, level, se, n, count, "Wilson, effective rows")


def quantile(values: Scores, q: float) -> float:
    """Nearest-rank quantile: the smallest value that at least a share `q` of all values does not exceed."""
    numbers = sorted(_numbers(values, "values"))
    _within(q, "q", 0, 1)
    return numbers[max(1, math.ceil(q * len(numbers) - 1e-9)) - 1]


def skewness(differences: Scores, clusters: Labels = None) -> float:
    """Skewness of the cluster sums about the mean difference, 0.0 where they do not vary.

    Below about -1 the sign-flip test and the t interval are too optimistic about a gain.
    """
    values = _numbers(differences, "differences")
    groups = _grouped(values, clusters)
    mean = math.fsum(values) / len(values)
    gaps = [total - size * mean for total, size in groups]
    spread = math.fsum(gap**2 for gap in gaps) / len(gaps)
    if math.sqrt(spread) <= _TIE * max(map(abs, values)):
        return 0.0
    return float(math.fsum(gap**3 for gap in gaps) / len(gaps) / spread**1.5)


def detectable(se: float, df: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true mean difference that a one-sided test with standard error `se` finds at this power."""
    return (_t(df, 1 - _share(alpha, "alpha")) + _t(df, _share(power, "power"))) * se


def _one_of(sd: float | None, discordance: float | None) -> None:
    if (sd is None) == (discordance is None):
        raise UserError("Give exactly one of sd and discordance", value=f"sd={sd}, discordance={discordance}",
                        remedy="sd is for graded scores, discordance for right and wrong.")  # fmt: skip
    if sd is not None:
        _within(sd, "sd", 0, math.inf)
    if discordance is not None:
        _within(discordance, "discordance", 0, 1)


def mcnemar_power(n: int, *, gain: float, discordance: float, alpha: float = 0.05) -> float:
    """Probability that the exact one-sided McNemar test on `n` independent rows gives p <= alpha.

    Args:
        gain: true difference in accuracy, in [0, 1].
        discordance: share of rows on which the two differ; raised to `gain` where it is smaller.
    """
    import numpy as np
    from scipy.special import bdtrc, bdtrik, gammaln, xlog1py, xlogy

    _share(alpha, "alpha")
    _count(n, "n", 1)
    differ = max(_within(discordance, "discordance", 0, 1), _within(gain, "gain", 0, 1))
    if differ == 0:
        return 0.0
    m = np.arange(math.ceil(math.log2(1 / alpha)), n + 1)  # fewer discordant rows can never reach alpha
    log_pmf = gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1) + xlogy(m, differ) + xlog1py(n - m, -differ)
    below = np.ceil(bdtrik(1 - alpha, m, 0.5))  # the most wins that are still not significant, up to rounding
    below = np.where(bdtrc(below - 1, m, 0.5) <= alpha, below - 1, below)
    below = np.where(bdtrc(below, m, 0.5) > alpha, below + 1, below)
    wins_share = (differ + gain) / 2 / differ
    reached = np.ones(len(m)) if wins_share == 1 else bdtrc(below, m, wins_share)
    return min(1.0, float((np.exp(log_pmf) * reached).sum()))


def minimum_detectable_effect(n: int, *, clusters: int | None = None, sd: float | None = None,
                              discordance: float | None = None, icc: float = 1.0, alpha: float = 0.05,
                              power: float = 0.8) -> float | None:  # fmt: skip
    """The smallest true gain that `n` paired rows find with probability `power`, None when there is none.

    Args:
        clusters: number of clusters (default: every row is independent).
        sd: standard deviation of the paired difference, for graded scores (t approximation).
        discordance: share of rows on which candidate and incumbent differ, for right/wrong scores (exact
            McNemar on the effective number of rows; taken as at least the gain itself).
        icc: correlation of differences within a cluster; the default 1 is the cautious end.
    """
    _one_of(sd, discordance)
    _share(alpha, "alpha")
    _share(power, "power")
    count = _count(_count(n, "n", 1) if clusters is None else clusters, "clusters", 1, n)
    effective = n / (1 + (n / count - 1) * _within(icc, "icc", 0, 1))
    if 0.5**count > alpha or (sd is not None and count < 2):
        return None  # even a gain on every row cannot reach alpha
    if sd is not None:
        return detectable(sd / math.sqrt(effective), count - 1, alpha=alpha, power=power)
    assert discordance is not None
    rows = max(1, math.floor(effective + 1e-9))
    if mcnemar_power(rows, gain=1.0, discordance=discordance, alpha=alpha) < power:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if mcnemar_power(rows, gain=middle, discordance=discordance, alpha=alpha) >= power:
            high = middle
        else:
            low = middle
    return high


def required_rows(effect: float, *, sd: float | None = None, discordance: float | None = None,
                  rows_per_cluster: float = 1.0, icc: float = 1.0, alpha: float = 0.05,
                  power: float = 0.8) -> int:  # fmt: skip
    """Rows that find a true gain of `effect` with probability `power` (normal approximation, one-sided).

    ``n = (z_{1-alpha} + z_power)^2 var / effect^2`` times the design effect ``1 + (rows_per_cluster - 1) icc``,
    where the variance is ``sd^2`` or ``discordance - effect^2``; at least as many as a test at alpha needs.
    """
    _one_of(sd, discordance)
    _within(effect, "effect", 0, math.inf if discordance is None else 1)
    _within(effect, "effect", 0, math.inf, open_ends=True)
    _within(rows_per_cluster, "rows_per_cluster", 1, math.inf)
    variance = sd**2 if sd is not None else max(discordance or 0.0, effect) - effect**2
    reach = _z(1 - _share(alpha, "alpha")) + _z(_share(power, "power"))
    rows = max(reach**2 * variance / effect**2, math.ceil(math.log2(1 / alpha)))
    return math.ceil(rows * (1 + (rows_per_cluster - 1) * _within(icc, "icc", 0, 1)) - 1e-9)


@dataclass(frozen=True)
class EProcess:
    """Evidence, gathered one difference at a time, that their mean is above 0.

    ``e_value`` is the evidence now and ``peak`` the most there ever was; at most ``exp(700)``. ``crossed`` is the number
    of differences after which it first reached ``1 / alpha``, None if it never has; from then on the claim stands.
    """

    e_value: float
    peak: float
    crossed: int | None
    n: int
    mean: float
    alpha: float

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON data."""
        return asdict(self)


def e_process(differences: Scores, *, least: float = -1.0, alpha: float = 0.05) -> EProcess:
    """An e-process against "no difference is above 0 on average, whatever came before it".

    ``E_n = average over bets b of prod_j (1 + b D_j)``. If the claim is true, the chance that E_n *ever* reaches
    ``1 / alpha`` is at most `alpha`: it may be looked at after every difference, and looking may stop at any time.

    Args:
        differences: in the order in which they came; none may be below `least`.
        least: the lowest value that a difference can have, below 0. The closer it is, the larger the bets.

    Raises:
        MetricError: a difference lies outside [least, 1 - least].
    """
    _share(alpha, "alpha")
    least = _within(least, "least", -2.0, 0.0, open_ends=True)
    values = _numbers(differences, "differences", least - _TIE, 1 - least)
    bets = [share / -least for share in _BETS]
    logs = [0.0] * len(bets)
    threshold, peak, crossed, now = -math.log(alpha), 0.0, None, 0.0
    for index, value in enumerate(values, 1):
        logs = [log + math.log1p(bet * value) for log, bet in zip(logs, bets, strict=True)]
        top = max(logs)
        now = top + math.log(math.fsum(math.exp(log - top) for log in logs) / len(logs))
        peak = max(peak, now)
        if crossed is None and now >= threshold:
            crossed = index
    return EProcess(math.exp(min(now, _LARGEST)), math.exp(min(peak, _LARGEST)), crossed, len(values),
                    math.fsum(values) / len(values), alpha)  # fmt: skip


def confidence_sequence(values: Scores, *, level: float = 0.95) -> Interval:
    """Mean of values in [0, 1] with an interval that holds at all times at once, however often it is looked at.

    The values that no e-process of either side speaks against, each at half of ``1 - level``. Wider than an interval
    that is looked at once. It presumes a mean that does not change.
    """
    _share(level, "level")
    numbers = _numbers(values, "values", 0.0, 1.0)
    mean = math.fsum(numbers) / len(numbers)

    def bound(found: list[float]) -> float:
        """The lowest mean above that of `found` which is spoken against; at most 1."""
        counts: dict[float, int] = {}
        for value in found:
            counts[value] = counts.get(value, 0) + 1
        low, high = math.fsum(found) / len(found), 1.0
        for _ in range(40):
            middle = (low + high) / 2
            if middle >= 1.0:
                break
            logs = [math.fsum(count * math.log1p(share * (middle - value) / (1 - middle)) for value, count in counts.items())
                    for share in _BETS]  # fmt: skip
            top = max(logs)
            against = top + math.log(math.fsum(math.exp(log - top) for log in logs) / len(logs)) >= math.log(2 / (1 - level))
            low, high = (low, middle) if against else (middle, high)
        return high

    return Interval(mean, 1 - bound([1 - value for value in numbers]), bound(numbers), level, None, len(numbers),
                    len(numbers), "confidence sequence")  # fmt: skip
