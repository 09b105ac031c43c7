"""Paired tests, intervals and planning arithmetic. No I/O, no state.

Every function takes plain sequences of numbers. Rows that share a cluster label are not independent: they
are flipped, resampled and counted together; without labels each row is its own cluster. Differences are
``candidate - incumbent``, all tests are one-sided ("the candidate is better"). Results do not depend on the
order of the rows, except those of `e_process`, which follows it; Monte Carlo steps draw their bits from
`random.Random(seed)`, whose stream is stable across Python and numpy versions.

Errors: `MetricError` for a value that is not a finite number or lies outside its range, `DatasetError` for
rows and clusters that cannot be used, `UserError` for a level, power or effect that makes no sense.
"""

from dse.statistics.anytime import EProcess, confidence_sequence, e_process
from dse.statistics.intervals import (
    bootstrap_interval,
    clopper_pearson,
    degrees_of_freedom,
    lower_bound,
    paired_interval,
    quantile,
    score_interval,
    skewness,
    wilson,
)
from dse.statistics.paired import mcnemar, sign_flip
from dse.statistics.planning import detectable, mcnemar_power, minimum_detectable_effect, required_rows
from dse.statistics.values import Interval, PairedTest, is_binary

__all__ = [
    "EProcess", "Interval", "PairedTest", "bootstrap_interval", "clopper_pearson", "confidence_sequence",
    "degrees_of_freedom", "detectable", "e_process", "is_binary",
    "lower_bound", "mcnemar", "mcnemar_power", "minimum_detectable_effect", "paired_interval", "quantile",
    "required_rows", "score_interval", "sign_flip", "skewness", "wilson",
]  # fmt: skip
