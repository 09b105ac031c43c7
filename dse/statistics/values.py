"""What the other rooms share: the two kinds of result, and the reading of rows, clusters and arguments."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dse.errors import DatasetError, MetricError, UserError

Scores = Sequence[float]
Labels = Sequence[Hashable] | None


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


# Sums closer to a tie than this share of the total are ties; floats such as 0.1 + 0.2 - 0.3 are not zero.
TIE = 1e-11
CHUNK = 4_000_000


def checked_numbers(values: Scores, what: str, low: float = -math.inf, high: float = math.inf) -> list[float]:
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


def cluster_sums(values: list[float], clusters: Labels) -> list[tuple[float, int]]:
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


def in_range(value: Any, what: str, low: float, high: float, *, open_ends: bool = False) -> float:
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not real or not low <= value <= high or (open_ends and value in (low, high)):
        where = f"strictly between {low:g} and {high:g}" if open_ends else f"in [{low:g}, {high:g}]"
        raise UserError(f"{what} must lie {where}", value=repr(value), remedy="Correct the argument.")
    return float(value)


def open_share(value: float, what: str) -> float:
    return in_range(value, what, 0, 0.5 if what == "alpha" else 1, open_ends=True)


def whole_number(value: Any, what: str, low: int, high: float = math.inf) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise DatasetError(f"{what} must be a whole number from {low} to {high:g}", value=repr(value),
                           remedy="Count the rows again.")  # fmt: skip
    return value


def need_two_clusters(count: int) -> None:
    if count < 2:
        raise DatasetError("An interval needs at least two clusters", value=count,
                           remedy="Add rows of other clusters.")  # fmt: skip


def is_binary(values: Scores) -> bool:
    """Whether all values are exactly 0 or 1."""
    return all(value in (0, 1) for value in values)


def t_quantile(df: float, p: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, p))


def normal_quantile(p: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(p))
