"""One-sided paired tests of "the candidate is better": sign flips of whole clusters, and McNemar."""

from __future__ import annotations

import math
import random

from dse.statistics.values import (
    CHUNK,
    TIE,
    Labels,
    PairedTest,
    Scores,
    checked_numbers,
    cluster_sums,
    in_range,
    whole_number,
)

# Sign patterns are counted from two lists of sums, one for each half of the clusters, of at most this length.
_HALF = 2**16


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
    draws = int(in_range(draws, "draws", 1, math.inf))
    values = checked_numbers(differences, "differences")
    groups = cluster_sums(values, clusters)
    tie = TIE * math.fsum(abs(value) for value in values)
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
        count = min(left, max(1, CHUNK // (8 * width)))
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
    n = whole_number(wins, "wins", 0) + whole_number(losses, "losses", 0) + whole_number(ties, "ties", 0)
    whole_number(n, "the number of rows", 1)
    differ = wins + losses
    ways, below = 1, 0
    for k in range(losses + 1):  # P(X >= wins) = P(X <= losses), in whole numbers
        below += ways
        ways = ways * (differ - k) // (k + 1)
    p = below / 2**differ
    return PairedTest(p, (wins - losses) / n, "McNemar, exact", True, n, n, wins, losses, ties)
