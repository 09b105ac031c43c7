"""What a test can find before it is made: power, detectable gains, and rows that a gain needs."""

from __future__ import annotations

import math

from dse.errors import UserError
from dse.statistics.values import in_range, normal_quantile, open_share, t_quantile, whole_number


def detectable(se: float, df: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true mean difference that a one-sided test with standard error `se` finds at this power."""
    return (t_quantile(df, 1 - open_share(alpha, "alpha")) + t_quantile(df, open_share(power, "power"))) * se


def _one_of(sd: float | None, discordance: float | None) -> None:
    if (sd is None) == (discordance is None):
        raise UserError("Give exactly one of sd and discordance", value=f"sd={sd}, discordance={discordance}",
                        remedy="sd is for graded scores, discordance for right and wrong.")  # fmt: skip
    if sd is not None:
        in_range(sd, "sd", 0, math.inf)
    if discordance is not None:
        in_range(discordance, "discordance", 0, 1)


def mcnemar_power(n: int, *, gain: float, discordance: float, alpha: float = 0.05) -> float:
    """Probability that the exact one-sided McNemar test on `n` independent rows gives p <= alpha.

    Args:
        gain: true difference in accuracy, in [0, 1].
        discordance: share of rows on which the two differ; raised to `gain` where it is smaller.
    """
    import numpy as np
    from scipy.special import bdtrc, bdtrik, gammaln, xlog1py, xlogy

    open_share(alpha, "alpha")
    whole_number(n, "n", 1)
    differ = max(in_range(discordance, "discordance", 0, 1), in_range(gain, "gain", 0, 1))
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
    open_share(alpha, "alpha")
    open_share(power, "power")
    count = whole_number(whole_number(n, "n", 1) if clusters is None else clusters, "clusters", 1, n)
    effective = n / (1 + (n / count - 1) * in_range(icc, "icc", 0, 1))
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
    in_range(effect, "effect", 0, math.inf if discordance is None else 1)
    in_range(effect, "effect", 0, math.inf, open_ends=True)
    in_range(rows_per_cluster, "rows_per_cluster", 1, math.inf)
    variance = sd**2 if sd is not None else max(discordance or 0.0, effect) - effect**2
    reach = normal_quantile(1 - open_share(alpha, "alpha")) + normal_quantile(open_share(power, "power"))
    rows = max(reach**2 * variance / effect**2, math.ceil(math.log2(1 / alpha)))
    return math.ceil(rows * (1 + (rows_per_cluster - 1) * in_range(icc, "icc", 0, 1)) - 1e-9)
