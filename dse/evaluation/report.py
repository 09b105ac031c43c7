"""Scoring artifacts on open rows, for continuous integration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dse.artifacts.artifact import Artifact
from dse.artifacts.registry import Registry
from dse.errors import SignatureMismatch
from dse.evaluation.evaluator import Evaluator, Progress, RolloutRecord, summarise
from dse.evaluation.sampling import spread
from dse.evaluation.task import Task
from dse.portal import run_sync
from dse.program import load
from dse.statistics import paired_interval

__all__ = ["EvalReport", "evaluate_artifact"]


@dataclass(frozen=True)
class EvalReport:
    """What was measured, and which conditions it missed.

    Attributes:
        table: per program (``artifact``, ``against``): quality with interval, cost, tokens, calls, failures.
        difference: mean quality difference to `against` with a 95% interval (low, mean, high), or None.
        failures: conditions that were not met; empty means passed.
    """

    split: str
    table: Mapping[str, Mapping[str, Any]]
    difference: tuple[float, float, float] | None
    failures: Sequence[str]
    records: Sequence[RolloutRecord]
    refs: Mapping[str, str]


def evaluate_artifact(
    ref: Any, task: Task, *, data: Any = None, split: str = "select", lm: Any = None, against: Any = None,
    max_rows: int | None = None, min_score: float | None = None, allow_unproven: bool = False, concurrency: int = 8,
    store: Any = None, progress: Progress | None = None,
) -> EvalReport:  # fmt: skip
    """Run an artifact, and optionally another one, on the same open rows.

    Args:
        against: an artifact reference, or an alias of the same signature such as ``champion``. The report fails if
            the artifact's mean score is significantly lower (95% interval wholly below 0).
        min_score: the report fails if the mean score is below it.

    Raises:
        ArtifactError, SignatureMismatch, DatasetError, Refused, InfrastructureError
    """
    if data is not None:
        task = dataclasses.replace(task, dataset=data)
    artifact = ref if isinstance(ref, Artifact) else Registry.resolve(ref)
    pair = {"artifact": artifact}
    if against is not None:
        pair["against"] = _other(ref, against, artifact)
    return run_sync(lambda: _measure(pair, task, split, lm, max_rows, min_score, allow_unproven, concurrency, store, progress))


def _other(ref: Any, against: Any, artifact: Artifact) -> Artifact:
    if isinstance(against, Artifact):
        return against
    if "@" in str(against) or "/" in str(against):
        return Registry.resolve(against)
    root = str(ref).rpartition("/")[0] or "artifacts"
    return Registry.resolve(f"{root}/{artifact.program.signature['name']}@{against}")


async def _measure(pair: Mapping[str, Artifact], task: Task, split: str, lm: Any, max_rows: int | None, min_score: float | None,
                   allow_unproven: bool, concurrency: int, store: Any, progress: Progress | None) -> EvalReport:  # fmt: skip
    from dse.store.journal import Store

    kept = Store(store) if isinstance(store, str) else store
    rows = spread(task.load_dataset().split(split), max_rows)
    records: list[RolloutRecord] = []
    for name, artifact in pair.items():
        # Loading checks signature, contracts and model exactly as production does.
        program = load(artifact, signature=task.signature, lm=lm, toolbox=task.toolbox, deps=task.deps,
                       allow_unproven=allow_unproven)  # fmt: skip
        if program.spec.signature_id != task.spec.signature_id:
            raise SignatureMismatch("The artifact is for another signature", value=program.spec.name, remedy="Use its task.")
        evaluator = Evaluator(task, program.lm, kept, concurrency=concurrency, progress=progress)
        records += await evaluator.evaluate({name: program.plan}, rows, what=name)
    table = summarise(records)
    failures = []
    quality = table["artifact"]["quality"]
    if min_score is not None and quality < min_score:
        failures.append(f"mean score {quality:.3f} is below {min_score:g}")
    difference = None
    if "against" in pair:
        mine = {r.row_hash: r for r in records if r.candidate == "artifact"}
        theirs = {r.row_hash: r for r in records if r.candidate == "against"}
        deltas = [mine[h].score - theirs[h].score for h in mine]
        interval = paired_interval(deltas, [mine[h].cluster for h in mine])
        difference = (interval.low, sum(deltas) / len(deltas), interval.high)
        if interval.high < 0:
            failures.append(f"significantly worse than {against_name(pair)}: {difference[1]:+.3f} "
                            f"[{interval.low:+.3f}, {interval.high:+.3f}]")  # fmt: skip
    refs = {name: artifact.artifact_id for name, artifact in pair.items()}
    return EvalReport(split, table, difference, failures, records, refs)


def against_name(pair: Mapping[str, Artifact]) -> str:
    return pair["against"].artifact_id[7:19]
