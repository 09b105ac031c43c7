"""What a compile is given of rows, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from dse.artifacts.artifact import Artifact
from dse.compiler.allowlist import AllowLists
from dse.compiler.choose import Removal
from dse.compiler.gate import GateResult
from dse.compiler.race import RaceResult
from dse.compiler.space import Candidate
from dse.declared import known_fields
from dse.errors import UserError
from dse.evaluation.evaluator import RolloutRecord
from dse.plan import Plan

__all__ = ["CompileResult", "Rows"]


@known_fields
@dataclass(frozen=True)
class Rows:
    """How many rows of each split to use, spread over clusters; None for all."""

    search: int | None = 10
    select: int | None = None
    holdout: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and (type(value) is not int or value < 1):
                raise UserError(f"The number of {name} rows is a whole number from 1", value=repr(value),
                                remedy="Use None for all rows.")  # fmt: skip


@dataclass
class CompileResult:
    """What a compile gave.

    Attributes:
        artifact: of the select winner, with its verdict.
        ref: the registry reference it was stored under.
        table: per candidate on the select rows that it ran on: quality with interval, cost, tokens, calls, failures.
        holdout_table: winner and incumbent on the sealed holdout.
        winner, incumbent: candidate names; `plans`: all candidates.
        race: how the select split was spent; `front`: names of the Pareto front.
        removals: what leaving tools out cost, measured.
        records: all rollouts by stage (``search``, ``select``, ``holdout``).
        notes: what a reader should know (live reads, an inexact allow-list ...).
        spent: of the budget, by this compile and what it went on from; `accounts`: the same per stage and model or tool, as
            `dse.compiler.budget.Purse.by_stage` gives it. What the results came from, paid for now or earlier, is in
            ``artifact.evidence.stages``.
    """

    artifact: Artifact
    ref: str
    gate: GateResult
    table: Mapping[str, Mapping[str, Any]]
    holdout_table: Mapping[str, Mapping[str, Any]]
    winner: str
    incumbent: str
    plans: Mapping[str, Plan]
    lists: AllowLists
    records: Mapping[str, Sequence[RolloutRecord]]
    notes: Sequence[str] = ()
    spent: Mapping[str, Any] = field(default_factory=dict)
    accounts: Sequence[Mapping[str, Any]] = ()
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    race: RaceResult | None = None
    front: Sequence[str] = ()
    removals: Sequence[Removal] = ()

    @property
    def verdict(self) -> str:
        return self.gate.verdict
