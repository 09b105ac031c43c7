"""Tests, intervals and planning arithmetic against known values, brute force and seeded simulation."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from dse.errors import DatasetError, MetricError, UserError
from dse.statistics import (
    Interval,
    bootstrap_interval,
    clopper_pearson,
    degrees_of_freedom,
    detectable,
    lower_bound,
    mcnemar,
    mcnemar_power,
    minimum_detectable_effect,
    paired_interval,
    quantile,
    required_rows,
    score_interval,
    sign_flip,
    skewness,
    wilson,
)

differences = st.lists(st.integers(-20, 20).map(lambda k: k / 20), min_size=1, max_size=10)


def brute_force(values: list[float], labels: list[str] | None = None) -> float:
    """Share of all sign patterns whose total reaches the observed one, in exact integers (20ths)."""
    sums: dict[object, int] = {}
    for index, value in enumerate(values):
        key = labels[index] if labels else index
        sums[key] = sums.get(key, 0) + round(value * 20)
    totals = list(sums.values())
    patterns = list(itertools.product((1, -1), repeat=len(totals)))
    hits = sum(sum(s * t for s, t in zip(p, totals, strict=True)) >= sum(totals) for p in patterns)
    return hits / len(patterns)


# --- sign flip


def test_sign_flip_by_hand() -> None:
    # The observed total is 4. Of the 8 sign patterns only the observed one (4) and 3 + 2 + 1 = 6 reach it.
    result = sign_flip([3.0, 2.0, -1.0])
    assert result.p_value == 2 / 8
    assert result.exact and result.statistic == pytest.approx(4 / 3)
    assert (result.wins, result.losses, result.ties) == (2, 1, 0)


def test_sign_flip_counts_ties_despite_rounding() -> None:
    # 0.1 + 0.2 - 0.3 is 5.6e-17 in floats; the pattern must count as a tie with the observed total of zero.
    assert sign_flip([0.1, 0.2, -0.3]).p_value == brute_force([0.1, 0.2, -0.3]) == 5 / 8


def test_sign_flip_flips_whole_clusters() -> None:
    # Eight equal wins in two clusters are two observations, not eight.
    wins = [1.0] * 8
    assert sign_flip(wins).p_value == 2**-8
    assert sign_flip(wins, ["a"] * 4 + ["b"] * 4).p_value == 2**-2
    # Differences that cancel inside their cluster say nothing.
    assert sign_flip([1.0, -1.0, 1.0, -1.0], ["a", "a", "b", "b"]).p_value == 1.0


@given(differences, st.lists(st.sampled_from("abcdef"), min_size=10, max_size=10))
def test_sign_flip_equals_full_enumeration(values: list[float], labels: list[str]) -> None:
    assert sign_flip(values).p_value == pytest.approx(brute_force(values), abs=1e-12)
    labels = labels[: len(values)]
    assert sign_flip(values, labels).p_value == pytest.approx(brute_force(values, labels), abs=1e-12)


@given(differences, st.randoms(use_true_random=False))
def test_sign_flip_ignores_row_order(values: list[float], shuffler: random.Random) -> None:
    rows = [(value, f"c{index % 4}") for index, value in enumerate(values)]
    expected = sign_flip(*zip(*rows, strict=True))
    shuffler.shuffle(rows)
    assert sign_flip(*zip(*rows, strict=True)) == expected


@given(differences, st.integers(0, 9), st.floats(0, 2))
def test_sign_flip_is_monotone(values: list[float], index: int, lift: float) -> None:
    before = sign_flip(values).p_value
    better = list(values)
    better[index % len(better)] += lift
    assert 0 < sign_flip(better).p_value <= before <= 1


@settings(max_examples=5, deadline=None)
@given(st.integers(33, 60), st.integers(0, 2**32))
def test_monte_carlo_ignores_row_order_and_never_reaches_zero(n: int, seed: int) -> None:
    source = random.Random(seed)
    values = [source.uniform(0.1, 1) for _ in range(n)]
    first = sign_flip(values, seed=1, draws=500)
    source.shuffle(values)
    assert sign_flip(values, seed=1, draws=500) == first
    assert not first.exact
    assert first.p_value == 1 / 501  # no random pattern is all-plus; the observed one counts once


def test_repeated_sums_are_counted_exactly_beyond_32_clusters() -> None:
    source = random.Random(5)
    sums = [source.choice((-3, -2, -1, 1, 2, 3, 4)) for _ in range(45)]
    distribution = {0: 1}
    for value in sums:
        after: dict[int, int] = {}
        for total, ways in distribution.items():
            for sign in (value, -value):
                after[total + sign] = after.get(total + sign, 0) + ways
        distribution = after
    expected = sum(ways for total, ways in distribution.items() if total >= sum(sums)) / 2**45
    result = sign_flip([value / 7 for value in sums])
    assert result.exact and result.p_value == pytest.approx(expected, rel=1e-9)


def test_monte_carlo_agrees_with_the_exact_count() -> None:
    source = random.Random(8)
    values = [source.gauss(0.2, 1) for _ in range(32)]
    exact = sign_flip(values)
    sampled = sign_flip([*values, 1e-6], seed=3)  # one cluster too many to count, too small to matter
    assert exact.exact and not sampled.exact
    spread = math.sqrt(exact.p_value * (1 - exact.p_value) / 100_000)
    assert sampled.p_value == pytest.approx(exact.p_value, abs=4 * spread)
    assert sign_flip([*values, 1e-6], seed=3) == sampled
    assert sign_flip([*values, 1e-6], seed=4).p_value != sampled.p_value


def test_sign_flip_holds_its_level_under_the_null() -> None:
    source = random.Random(11)
    runs = 2000
    hits = sum(sign_flip([source.gauss(0, 1) for _ in range(12)]).p_value <= 0.05 for _ in range(runs))
    assert clopper_pearson(hits, runs, level=0.999).low <= 0.05
    assert hits / runs > 0.03  # and it is not asleep


# --- McNemar


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (4, 1), (10, 2), (2, 10), (40, 25), (7, 7)])
def test_mcnemar_equals_the_binomial_test(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1.0
    assert mcnemar(wins, losses, ties=3).p_value == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60))
def test_mcnemar_is_sign_flip_on_binary_rows(wins: int, losses: int, ties: int) -> None:
    rows = [1.0] * wins + [-1.0] * losses + [0.0] * ties
    exact, flipped = mcnemar(wins, losses, ties=ties), sign_flip(rows)
    assert flipped.exact and flipped.p_value == pytest.approx(exact.p_value, rel=1e-12)
    assert flipped.statistic == pytest.approx(exact.statistic)
    assert mcnemar(wins + 1, losses, ties=ties).p_value <= exact.p_value


# --- intervals


def test_paired_interval_without_clusters_is_the_t_interval() -> None:
    values = [0.5, -0.25, 1.0, 0.0, 0.75, 0.1]
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    interval = paired_interval(values)
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high))
    assert interval.se == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)))
    one_sided = stats.ttest_1samp(values, 0, alternative="greater").confidence_interval(0.95)
    assert lower_bound(values, alpha=0.05) == pytest.approx(one_sided.low)


def dense(sizes: list[int], correlation: float = 0.1) -> tuple[np.ndarray, float]:
    """Weights and degrees of freedom of the variance of a mean, from the covariance matrix of the clusters' residual sums."""
    n = np.array(sizes, dtype=float)
    working = np.diag(n * (1 + (n - 1) * correlation))
    centred = np.eye(len(n)) - np.outer(n / n.sum(), np.ones(len(n)))
    residuals = centred @ working @ centred.T
    weights = np.diag(working) / np.diag(residuals)
    scaled = np.sqrt(np.outer(weights, weights)) * residuals
    return weights, float(np.trace(scaled) ** 2 / (scaled**2).sum())


@pytest.mark.parametrize("sizes", [[3, 2, 1], [1] * 12, [4] * 9, [40] + [1] * 40, [1, 1], [5, 1], [16, 8, 8, 4, 2, 2, 1, 1]])
def test_weights_and_degrees_of_freedom_are_those_of_the_whole_matrix(sizes: list[int]) -> None:
    source = np.random.default_rng(len(sizes))
    labels = [number for number, size in enumerate(sizes) for _ in range(size)]
    values = source.normal(size=len(labels))
    weights, df = dense(sizes)
    sums = np.array([(values - values.mean())[np.array(labels) == number].sum() for number in range(len(sizes))])
    interval = paired_interval(values.tolist(), labels)
    assert degrees_of_freedom(labels) == pytest.approx(max(1.0, df))
    assert interval.se == pytest.approx(math.sqrt(float(weights @ sums**2)) / len(labels))
    assert interval.high - interval.estimate == pytest.approx(stats.t.ppf(0.975, df) * interval.se)
    if len(set(sizes)) == 1:  # equal clusters: what every textbook says
        assert df == pytest.approx(len(sizes) - 1) and weights == pytest.approx(len(sizes) / (len(sizes) - 1))


def test_two_pairs_among_single_rows_change_little() -> None:
    values = np.random.default_rng(4).normal(size=40).tolist()
    interval = paired_interval(values, [0, 0, 1, 1, *range(2, 38)])
    sums = [values[0] + values[1], values[2] + values[3], *values[4:]]
    sizes = [2, 2] + [1] * 36
    simple = math.sqrt(sum((t - s * interval.estimate) ** 2 for t, s in zip(sums, sizes, strict=True)) / 40**2 * 38 / 37)
    assert interval.se == pytest.approx(simple, rel=0.02) and 30 < degrees_of_freedom([0, 0, 1, 1, *range(2, 38)]) < 37


@pytest.mark.parametrize("sizes", [[20] + [1] * 30, [40] + [1] * 40, [100] + [1] * 40, [20, 20] + [1] * 20, [4] * 15])
@pytest.mark.parametrize("icc", [0.0, 0.3, 1.0])
def test_a_large_cluster_does_not_make_the_bound_too_narrow(sizes: list[int], icc: float) -> None:
    runs = 4000
    source = np.random.default_rng(round(10 * icc) + sum(sizes))
    n, count = np.array(sizes, dtype=float), len(sizes)
    sums = n * (source.normal(size=(runs, count)) * math.sqrt(icc) + source.normal(size=(runs, count)) * np.sqrt((1 - icc) / n))
    means = sums.sum(axis=1) / n.sum()
    squares = (sums - n * means[:, None]) ** 2
    labels = [number for number, size in enumerate(sizes) for _ in range(size)]
    # One world through the function, so that the sums below are known to be its own.
    one = np.repeat(sums[0] / n, sizes).tolist()
    weights, df = dense(sizes)
    se = np.sqrt(squares @ weights) / n.sum()
    assert lower_bound(one, labels) == pytest.approx(means[0] - stats.t.ppf(0.95, max(1.0, df)) * se[0])
    missed = int((means - stats.t.ppf(0.95, max(1.0, df)) * se > 0).sum())
    assert clopper_pearson(missed, runs, level=0.99).low <= 0.05
    naive = np.sqrt(squares.sum(axis=1) * count / (count - 1)) / n.sum()
    before = float((means - stats.t.ppf(0.95, count - 1) * naive > 0).mean())
    if len(set(sizes)) == 1:
        assert missed / runs == before
    elif icc:
        assert before > 0.1  # what clusters - 1 degrees of freedom would give


def test_an_unseen_win_and_loss_keep_the_interval_open() -> None:
    ties = [0.0] * 40
    assert paired_interval(ties).low == 0.0
    open_ended = paired_interval(ties, unseen=1.0)
    assert open_ended.se == pytest.approx(math.sqrt(2 / 42 / 41))
    assert open_ended.estimate == 0.0 and open_ended.low == -open_ended.high < -0.05
    # With rows that differ often the adjustment hardly matters.
    mixed = [1.0] * 17 + [-1.0] * 17 + [0.0] * 66
    assert paired_interval(mixed, unseen=1.0).high == pytest.approx(paired_interval(mixed).high, rel=0.03)


def _coverage(draw, truth: float, interval, runs: int) -> float:
    hits = 0
    for _ in range(runs):
        found = interval(draw())
        hits += found.low <= truth <= found.high
    return hits / runs


@pytest.mark.parametrize("n", [40, 100])
def test_paired_interval_coverage(n: int) -> None:
    source = np.random.default_rng(n)

    def binary() -> list[float]:
        return source.choice([1.0, -1.0, 0.0], size=n, p=[0.2, 0.14, 0.66]).tolist()

    def clustered() -> list[float]:
        return (0.05 + np.repeat(source.normal(0, 0.3, n // 4), 4) + source.normal(0, 0.3, n)).tolist()

    labels = [f"c{index // 4}" for index in range(n)]
    assert 0.92 <= _coverage(binary, 0.06, lambda v: paired_interval(v, unseen=1.0), 2000) <= 0.98
    assert 0.92 <= _coverage(clustered, 0.05, lambda v: paired_interval(v, labels), 2000) <= 0.98
    assert _coverage(clustered, 0.05, paired_interval, 500) < 0.85  # what ignoring clusters would do


@pytest.mark.parametrize("n", [40, 100])
def test_score_interval_coverage(n: int) -> None:
    source = np.random.default_rng(n + 1)
    labels = [f"c{index // 4}" for index in range(n)]

    def clustered() -> list[float]:
        return (source.random(n) < np.repeat(source.beta(4, 2, n // 4), 4)).astype(float).tolist()

    assert 0.92 <= _coverage(lambda: source.beta(4, 2, n).tolist(), 2 / 3, score_interval, 2000) <= 0.98
    assert 0.92 <= _coverage(lambda: (source.random(n) < 0.7).astype(float).tolist(), 0.7, score_interval, 2000) <= 0.98
    assert 0.92 <= _coverage(clustered, 2 / 3, lambda v: score_interval(v, labels), 2000) <= 0.985


def test_a_score_interval_counts_a_large_cluster_once() -> None:
    labels = ["large"] * 40 + [f"c{index}" for index in range(40)]
    perfect = score_interval([1.0] * 80, labels)
    assert perfect.low < score_interval([1.0] * 82, [index // 2 for index in range(82)]).low - 0.4  # 41 clusters in both
    source = np.random.default_rng(6)

    def draw() -> list[float]:  # rows of a cluster are right or wrong together
        right = (source.random(41) < 0.7).astype(float)
        return np.repeat(right, [40] + [1] * 40).tolist()

    assert _coverage(draw, 0.7, lambda v: score_interval(v, labels), 1000) >= 0.95


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_bootstrap_coverage(method: str) -> None:
    source = np.random.default_rng(7)

    def draw() -> list[float]:
        return source.beta(2, 2, 40).tolist()

    covered = _coverage(draw, 0.5, lambda v: bootstrap_interval(v, draws=500, method=method), 600)
    assert 0.91 <= covered <= 0.98


def test_bootstrap_agrees_with_scipy_and_repeats() -> None:
    values = np.random.default_rng(2).exponential(size=60).tolist()
    ours = bootstrap_interval(values, draws=20_000, seed=1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, rng=1, method="BCa").confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert bootstrap_interval(values[::-1], draws=20_000, seed=1) == ours
    assert "percentile" in bootstrap_interval([0.5] * 9).method  # no spread to correct for
    # Whole clusters are drawn: four identical rows per cluster carry the information of one.
    repeated = [value for value in values for _ in range(4)]
    labels = [index for index in range(60) for _ in range(4)]
    assert bootstrap_interval(repeated, labels, draws=20_000, seed=1).se == pytest.approx(ours.se)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 10), (7, 10), (10, 10), (150, 200)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_rate_intervals_equal_scipy(successes: int, n: int, level: float) -> None:
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        reference = stats.binomtest(successes, n).proportion_ci(level, method=method)
        interval = ours(successes, n, level=level)
        assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 8))
def test_score_interval_holds_the_mean_and_stays_in_range(scores: list[float], groups: int) -> None:
    interval = score_interval(scores, [index % groups for index in range(len(scores))])
    assert 0 <= interval.low <= interval.estimate + 1e-9
    assert interval.estimate - 1e-9 <= interval.high <= 1
    assert interval.estimate == pytest.approx(sum(scores) / len(scores))


def test_score_interval_special_cases() -> None:
    assert score_interval([1.0] * 40) == wilson(40, 40)
    assert score_interval([1.0] * 40, ["a"] * 40).low == 0.0  # one cluster says nothing about others
    by_cluster = score_interval([1.0] * 40, [index // 4 for index in range(40)])
    assert by_cluster.low == pytest.approx(10 / (10 + stats.t.ppf(0.975, 9) ** 2))  # ten observations, not forty
    # Clusters that balance themselves (one right, one wrong) are not worth more than independent rows.
    balanced = score_interval([1.0, 0.0] * 10 + [1.0, 1.0], [index // 2 for index in range(22)])
    free = wilson(12, 22)
    assert balanced.high - balanced.low >= free.high - free.low
    assert score_interval([0.5] * 40).low < 0.4  # a constant score is no proof of a constant


def test_interval_and_test_to_dict() -> None:
    assert Interval(**paired_interval([0.0, 1.0]).to_dict()) == paired_interval([0.0, 1.0])
    assert sign_flip([1.0, 1.0]).to_dict()["p_value"] == 0.25


def test_quantile_is_nearest_rank() -> None:
    assert quantile(range(1, 101), 0.95) == 95
    assert quantile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(range(1, 101), 0.07) == 7  # 0.07 * 100 is 7.000000000000001 in floats


def test_skewness() -> None:
    values = np.random.default_rng(1).exponential(size=50).tolist()
    assert skewness(values) == pytest.approx(stats.skew(values))
    assert skewness([-value for value in values]) == pytest.approx(-stats.skew(values))
    assert skewness([0.1 + 0.2] * 5) == 0.0


# --- planning


def test_published_sample_sizes() -> None:
    assert required_rows(0.10, discordance=0.34) == pytest.approx(204, abs=1)
    assert required_rows(0.05, discordance=0.34) == pytest.approx(834, abs=1)
    assert required_rows(0.10, sd=math.sqrt(0.33)) == required_rows(0.10, discordance=0.34)
    assert required_rows(0.10, discordance=0.34, rows_per_cluster=4) == pytest.approx(4 * 204, abs=4)
    assert required_rows(0.10, discordance=0.34, rows_per_cluster=4, icc=0.0) == 205
    assert required_rows(0.5, sd=0.0) == 5  # 2^-4 is above 0.05


def test_published_detectable_effects() -> None:
    assert minimum_detectable_effect(10, discordance=0.34) == pytest.approx(0.59, abs=0.02)
    assert minimum_detectable_effect(36, discordance=0.34) == pytest.approx(0.26, abs=0.02)
    assert minimum_detectable_effect(4, discordance=0.34) is None  # 2^-4 > 0.05
    assert minimum_detectable_effect(40, clusters=4, sd=0.5) is None
    assert minimum_detectable_effect(40, clusters=10, discordance=0.34) == minimum_detectable_effect(
        10, discordance=0.34
    )


@pytest.mark.parametrize(("n", "gain", "discordance"), [(10, 0.5, 0.5), (20, 0.3, 0.4), (60, 0.2, 0.34)])
def test_mcnemar_power_equals_full_summation(n: int, gain: float, discordance: float) -> None:
    p10, p01 = (discordance + gain) / 2, (discordance - gain) / 2
    expected = 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            if wins + losses and stats.binom.sf(wins - 1, wins + losses, 0.5) <= 0.05:
                expected += stats.multinomial.pmf([wins, losses, n - wins - losses], n, [p10, p01, 1 - p10 - p01])
    assert mcnemar_power(n, gain=gain, discordance=discordance) == pytest.approx(expected, abs=1e-9)


@given(st.integers(5, 400), st.floats(0.05, 2))
def test_detectable_effect_shrinks_with_rows_and_fits_required_rows(n: int, sd: float) -> None:
    effect, finer = (minimum_detectable_effect(rows, sd=sd) for rows in (n, 2 * n))
    assert effect is not None and finer is not None and finer < effect
    assert effect == pytest.approx(detectable(sd / math.sqrt(n), n - 1))
    assume(n >= 30)  # below that, t and normal quantiles part ways
    assert required_rows(effect, sd=sd) == pytest.approx(n, rel=0.1, abs=2)


# --- bad input


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: sign_flip([]), DatasetError),
        (lambda: sign_flip([1.0, math.nan]), MetricError),
        (lambda: sign_flip([1.0, None]), MetricError),
        (lambda: sign_flip("12"), MetricError),
        (lambda: sign_flip([1.0], ["a", "b"]), DatasetError),
        (lambda: sign_flip([1.0], draws=0), UserError),
        (lambda: mcnemar(-1, 2), DatasetError),
        (lambda: mcnemar(0, 0), DatasetError),
        (lambda: mcnemar(1.5, 2), DatasetError),
        (lambda: paired_interval([1.0]), DatasetError),
        (lambda: paired_interval([1.0, 2.0], level=1.0), UserError),
        (lambda: paired_interval([1.0, 2.0], unseen=-1.0), UserError),
        (lambda: lower_bound([1.0, 2.0], alpha=0.5), UserError),
        (lambda: bootstrap_interval([1.0, 2.0], ["a", "a"]), DatasetError),
        (lambda: bootstrap_interval([1.0, 2.0], method="magic"), UserError),
        (lambda: bootstrap_interval([1.0, 2.0], draws=10), UserError),
        (lambda: score_interval([0.5, 1.2]), MetricError),
        (lambda: wilson(3, 2), DatasetError),
        (lambda: clopper_pearson(0, 0), DatasetError),
        (lambda: quantile([1.0], 1.5), UserError),
        (lambda: minimum_detectable_effect(10), UserError),
        (lambda: minimum_detectable_effect(10, sd=1.0, discordance=0.3), UserError),
        (lambda: minimum_detectable_effect(10, clusters=11, sd=1.0), DatasetError),
        (lambda: minimum_detectable_effect(10, sd=1.0, power=1.0), UserError),
        (lambda: required_rows(0.0, sd=1.0), UserError),
        (lambda: required_rows(1.5, discordance=0.5), UserError),
        (lambda: mcnemar_power(10, gain=2.0, discordance=0.3), UserError),
    ],
)
def test_bad_input_is_a_coded_error_with_a_remedy(call, error: type[UserError]) -> None:
    with pytest.raises(error) as caught:
        call()
    assert caught.value.code.startswith("DSE1") and caught.value.remedy


def test_import_is_light() -> None:
    code = "import sys, dse.statistics; print([m for m in ('numpy', 'scipy', 'pandas', 'dspy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
