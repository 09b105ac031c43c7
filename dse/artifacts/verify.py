"""What can be checked of an artifact from itself alone: its ids, the arithmetic of its tables, and its gate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from dse.artifacts.content import CandidateRow, Content, Evidence
from dse.artifacts.format import AGAIN
from dse.canonical import digest
from dse.errors import ArtifactTampered, DseError

__all__ = ["GATE_LEVEL", "Check", "GateVerdict", "Recompute", "VerifyReport", "check_gate", "check_ids", "check_tables"]

GATE_LEVEL = 0.05  # of the first look at a holdout; the k-th at the same rows is tested at a k-th of it


@dataclass(frozen=True)
class Check:
    """One thing verified: ok is None where it was not asked for."""

    name: str
    ok: bool | None
    detail: str = ""

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAILED", None: "not checked"}[self.ok]
        return f"{self.name}: {mark}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class VerifyReport:
    """What `Artifact.verify` found."""

    artifact_id: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.ok is False)

    def __str__(self) -> str:
        return "\n".join([self.artifact_id, *(f"  {check}" for check in self.checks)])

    def require(self) -> None:
        """Raise ArtifactTampered unless every check held."""
        if self.failed:
            raise ArtifactTampered("The artifact does not hold up", value="; ".join(map(str, self.failed)),
                                   remedy=AGAIN, artifact_id=self.artifact_id)  # fmt: skip


class GateVerdict(Protocol):
    """What `recompute` gives: `dse.compiler.gate.GateResult`, which this module must not import."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], /) -> Self: ...
    def disagreements(self, other: Any, /) -> list[str]: ...


Recompute = Callable[[Mapping[str, Any]], GateVerdict]


def check_ids(content: Content, artifact_id: str, sealed: str, envelope_digest: str) -> list[Check]:
    """Every id against the data it stands for.

    Args:
        artifact_id, envelope_digest: as computed of the file's data, which may be of an earlier version.
        sealed: the envelope's digest as it is written.
    """
    program = content.program
    found = [Check("artifact_id", *_equal(content.artifact_id, artifact_id))]
    allowed, described = set(program.plan.allow), set(program.contracts)
    differ = sorted(allowed ^ described | {name for name, c in program.contracts.items() if c.name != name})
    found.append(Check("allow-list", not differ, f"no contract, or one too many: {', '.join(differ)}" if differ else ""))
    found.append(Check("signature_id", *_equal(program.signature.signature_id, program.signature.compute_id())))
    ids = program.compute_tool_ids()
    wrong = sorted(name for name in ids.keys() | program.tool_ids.keys() if ids.get(name) != program.tool_ids.get(name))
    found.append(Check("tool ids", not wrong, ", ".join(wrong)))
    if not differ:
        found.append(Check("program_id", *_equal(program.program_id, program.compute_id())))
    found.append(Check("envelope digest", *_equal(sealed, envelope_digest)))
    return found


def check_tables(content: Content) -> list[Check]:
    """Arithmetic that needs no statistics."""
    evidence, program = content.evidence, content.program
    rows, holdout = evidence.paired.rows, evidence.dataset.split.holdout
    hashes, clusters = {row[0] for row in rows}, {row[1] for row in rows}
    own = [row for row in evidence.modes if row.program_id == program.program_id]
    others = {row.program_id for row in evidence.modes} - {evidence.incumbent.program_id}
    odd = [row.candidate for row in evidence.modes if row.failures > row.n or not _ordered(row)]
    shown = sorted(hashes & set(evidence.demos.rows))
    same = evidence.paired.objective == evidence.objective
    whole = holdout.hash == digest(sorted(hashes))  # then all of the holdout was judged on
    fits = not whole or (len(rows), len(clusters)) == (holdout.rows, holdout.clusters)
    incumbent = [row for row in evidence.modes if row.program_id == evidence.incumbent.program_id]
    removed = [tool.name for tool in evidence.removed_tools]
    every = evidence.allow_lists.get("all")
    missing = [str(name) for name in every if name not in program.plan.allow] if isinstance(every, list) else removed
    looks = max(1, evidence.holdout_openings)
    level = GATE_LEVEL / looks
    n = evidence.gate.get("n_rows", len(rows)), evidence.gate.get("n_clusters", len(clusters))
    return [
        Check("holdout rows", fits and len(hashes) == len(rows) <= holdout.rows and len(clusters) <= holdout.clusters,
              f"{len(rows)} paired rows ({len(hashes)} distinct) in {len(clusters)} clusters; the holdout has "
              f"{holdout.rows} in {holdout.clusters}"),
        Check("gate counts", n == (len(rows), len(clusters)), f"the gate saw {n[0]} rows in {n[1]} clusters"),
        Check("gate objective", same, "" if same else "the gate was given another one"),
        Check("holdout openings", evidence.holdout_openings > 0 or not rows, f"{evidence.holdout_openings}"),
        Check("gate level", math.isclose(evidence.paired.alpha, level, rel_tol=1e-9),
              f"alpha is {evidence.paired.alpha:g}; look {looks} at these rows is tested at {GATE_LEVEL:g} / {looks}"),
        Check("demonstrations", not shown, f"from the holdout: {', '.join(shown)}" if shown else ""),
        Check("own row", any(row.mode == program.plan.mode and row.allow == program.plan.allow for row in own),
              f"{len(own)} rows of the table are this program's"),
        Check("incumbent row", any(row.mode == evidence.incumbent.mode for row in incumbent),
              f"{len(incumbent)} rows of the table are the incumbent's"),
        Check("removed tools", sorted(removed) == sorted(missing),
              f"written: {', '.join(removed) or 'none'}; not allowed: {', '.join(missing) or 'none'}"),
        Check("table", not odd, f"impossible figures: {', '.join(odd)}" if odd else f"{len(evidence.modes)} rows"),
        Check("candidates tried", evidence.candidates_tried >= len(others),
              f"{evidence.candidates_tried}; the table has {len(others)}"),
    ]  # fmt: skip


def check_gate(evidence: Evidence, recompute: Recompute | None) -> Check:
    """The gate's figures and verdict against those that `recompute` gives; without it they are not checked."""
    if recompute is None:
        return Check("gate", None)
    try:
        result = recompute(evidence.paired.model_dump(mode="json"))
        wrong = result.disagreements(type(result).from_dict(evidence.gate))
        detail = f"recomputed otherwise: {', '.join(wrong)}" if wrong else str(evidence.gate["verdict"])
        return Check("gate", not wrong, detail)
    except DseError as exc:
        return Check("gate", False, str(exc))


def _equal(written: str, computed: str) -> tuple[bool, str]:
    return written == computed, "" if written == computed else f"written {written}, computed {computed}"


def _ordered(row: CandidateRow) -> bool:
    known = [value for value in (row.quality_low, row.quality, row.quality_high) if value is not None]
    return all(low <= high + 1e-9 for low, high in itertools.pairwise(known))
