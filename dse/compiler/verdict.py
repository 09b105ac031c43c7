"""What goes into the gate and what comes out: paired rows, and the verdict with its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from dse.canonical import canonical_json
from dse.errors import ArtifactInvalid, DatasetError, MetricError
from dse.statistics import Interval

__all__ = ["GateResult", "PairedRow", "Verdict", "amount"]

Verdict = Literal["PROMOTE", "KEEP", "INSUFFICIENT"]


@dataclass(frozen=True)
class PairedRow:
    """One holdout row, run by both. Scores in [0, 1], costs in USD, latencies in seconds, None = unknown.

    Rows that share a ``cluster`` are not independent; a row of its own has its row_hash as cluster.
    """

    row_hash: str
    cluster: str
    candidate_score: float
    incumbent_score: float
    candidate_cost: float | None = None
    incumbent_cost: float | None = None
    candidate_latency: float | None = None
    incumbent_latency: float | None = None

    def __post_init__(self) -> None:
        for name in ("row_hash", "cluster"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text:
                raise DatasetError(f"A paired row needs a {name}", value=repr(text),
                                   remedy="Use the row's hash, also as cluster of an independent row.")  # fmt: skip
        for name in ("candidate_score", "incumbent_score"):
            score = amount(getattr(self, name))
            if score is None or not 0 <= score <= 1:
                raise MetricError(f"{name} is not a score in [0, 1]", value=repr(getattr(self, name)),
                                  remedy="Scale the metric; a failed run scores 0.", row=self.row_hash)  # fmt: skip
            object.__setattr__(self, name, score)
        for name in ("candidate_cost", "incumbent_cost", "candidate_latency", "incumbent_latency"):
            if getattr(self, name) is None:
                continue
            paid = amount(getattr(self, name))
            if paid is None or paid < 0:
                raise DatasetError(f"{name} is not a finite amount of at least 0", value=repr(getattr(self, name)),
                                   remedy="Use None for an unknown amount.", row=self.row_hash)  # fmt: skip
            object.__setattr__(self, name, paid)

    def to_list(self) -> list[Any]:
        """The row as evidence: the fields in their order."""
        return [getattr(self, field.name) for field in fields(self)]


def amount(value: Any) -> float | None:
    """A finite number of this value, None where it is none."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class GateResult:
    """What the gate found. Differences are candidate minus incumbent, per row; intervals are two-sided 95%.

    Attributes:
        verdict: what happens to the incumbent; ``reasons`` say why, the deciding one first.
        p_value: one-sided p of the mean utility difference; ``test`` names the test.
        mean_difference: utility difference. quality_difference: score difference.
        quality_floor: how ``max_quality_loss`` stands: "not priced" (only quality counts), "no row worse",
            "quality better", "bound", or, where it does not hold, "unproven" or "unmet".
        quality_lower_bound: one-sided lower bound (level 1 - alpha) of the score difference.
        mde: utility gain that this holdout finds with probability ``power``; None where it can find none.
        candidate_cost, incumbent_cost: mean USD per run. candidate_p95_latency_s, incumbent_p95_latency_s:
            seconds. None where a row's is unknown.
        wins, losses, ties: rows by utility difference.
        rows_needed: further rows that would decide an INSUFFICIENT, otherwise None. They belong to new clusters, with
            ``n_rows / n_clusters`` rows each as those measured: more rows of known clusters would not do.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    p_value: float
    test: str
    mean_difference: Interval
    quality_difference: Interval
    candidate_quality: Interval
    incumbent_quality: Interval
    quality_floor: str
    quality_lower_bound: float
    mde: float | None
    candidate_cost: float | None
    incumbent_cost: float | None
    candidate_p95_latency_s: float | None
    incumbent_p95_latency_s: float | None
    n_rows: int
    n_clusters: int
    wins: int
    losses: int
    ties: int
    rows_needed: int | None
    alpha: float
    power: float
    seed: int

    __pydantic_config__ = {"extra": "forbid"}

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON data."""
        return {**asdict(self), "reasons": list(self.reasons)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GateResult:
        """Read `to_dict` back.

        Raises:
            ArtifactInvalid: an unknown or missing field, or a value of the wrong type.
        """
        try:
            return TypeAdapter(cls).validate_json(canonical_json(dict(data)), strict=True)
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactInvalid(f"The gate's result is malformed at {where!r}: {first['msg']}",
                                  remedy="Restore it from the artifact as it was written.") from None  # fmt: skip

    def disagreements(self, other: GateResult, *, tolerance: float = 1e-9) -> list[str]:
        """Fields that differ: floats by more than `tolerance`, all else at all. Reasons are not compared."""
        found: list[str] = []
        _compare(self.to_dict(), other.to_dict(), "", tolerance, found)
        return found


def _compare(mine: Any, theirs: Any, path: str, tolerance: float, found: list[str]) -> None:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in mine:
            if key != "reasons":
                _compare(mine[key], theirs[key], f"{path}.{key}".lstrip("."), tolerance, found)
    elif isinstance(mine, float) and isinstance(theirs, float):
        if not math.isclose(mine, theirs, rel_tol=tolerance, abs_tol=tolerance):
            found.append(path)
    elif mine != theirs:
        found.append(path)
