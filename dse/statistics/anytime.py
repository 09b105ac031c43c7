"""Evidence that may be looked at after every value: e-processes and confidence sequences."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dse.statistics.values import TIE, Interval, Scores, checked_numbers, in_range, open_share

# Bets of an e-process, as shares of the largest one that can never lose everything.
_BETS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4)
_LARGEST = 700.0  # exp of more is no float


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
    open_share(alpha, "alpha")
    least = in_range(least, "least", -2.0, 0.0, open_ends=True)
    values = checked_numbers(differences, "differences", least - TIE, 1 - least)
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
    open_share(level, "level")
    numbers = checked_numbers(values, "values", 0.0, 1.0)
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
