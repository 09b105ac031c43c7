"""Scoring artifacts on open rows, for continuous integration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.artifacts.artifact import Artifact
from dse.artifacts.registry import DEFAULT_ROOT, Registry
from dse.errors import DatasetError, UserError
from dse.evaluation.evaluator import Evaluator, Progress, RolloutRecord, model_for, summarise
from dse.evaluation.executor import Executor
from dse.evaluation.sampling import check_rows, spread
from dse.evaluation.task import Task
from dse.loading import load
from dse.portal import run_sync
from dse.statistics import paired_interval
from dse.strategies.base import needs_model

if TYPE_CHECKING:
    from dse.models.prices import PriceTable
    from dse.plan import Plan

__all__ = ["EvalReport", "evaluate_artifact"]


@dataclass(frozen=True)
class EvalReport:
    """What was measured, and which conditions it missed.

    Attributes:
        table: per program (``artifact``, ``against``): quality with interval, cost, tokens, calls, failures.
        difference: mean quality difference to `against` with a 95% interval (low, mean, high), or None.
        failures: conditions that were not met; empty means passed, if there were `conditions`.
        refs, plans: artifact id and plan per program.
    """

    split: str
    table: Mapping[str, Mapping[str, Any]]
    difference: tuple[float, float, float] | None
    failures: Sequence[str]
    records: Sequence[RolloutRecord]
    refs: Mapping[str, str]
    plans: Mapping[str, Plan]
    conditions: bool


def evaluate_artifact(
    ref: Any, task: Task, *, data: Any = None, split: str = "select", lm: Any = None, against: Any = None,
    max_rows: int | None = None, min_score: float | None = None, allow_unproven: bool = False, concurrency: int = 8,
    store: Any = None, progress: Progress | None = None, prices: PriceTable | None = None, executor: Executor | str = "local",
) -> EvalReport:  # fmt: skip
    """Run an artifact, and optionally another one, on the same open rows.

    Args:
        ref: a reference, a file or an ``Artifact``.
        data: a dataset folder or a ``dse.Dataset``; default the task's.
        lm: default the model that the artifact's evidence is for.
        against: an artifact reference, or an alias of the same signature such as ``champion``. The report fails if
            the artifact's mean score is significantly lower (95% interval wholly below 0).
        min_score: the report fails if the mean score is below it.
        store: a ``dse.Store`` or its file; default in memory.
        prices: costs are this table's; default what the model's engine reports.
        executor: where rollouts run: ``local``, ``ray`` or an `Executor`; see `Evaluator`.

    Raises:
        ArtifactError, SignatureMismatch, DatasetError, Refused, InfrastructureError
    """
    if min_score is not None and not 0 <= min_score <= 1:
        raise UserError("A score to reach is a number from 0 to 1", value=min_score, remedy="Write min_score=0.9.")
    check_rows(max_rows)
    if data is not None:
        task = dataclasses.replace(task, dataset=data)
    artifact = ref if isinstance(ref, Artifact) else Registry.resolve(ref)
    pair = {"artifact": artifact}
    if against is not None:
        pair["against"] = _other(ref, against, artifact)

    async def measured() -> list[RolloutRecord]:
        from dse.store.journal import opened

        rows = spread(task.load_dataset().split(split), max_rows)
        if not rows:
            raise DatasetError("There is nothing to evaluate on", value=split, remedy="Use a split with rows.")
        records: list[RolloutRecord] = []
        with opened(store if store is not None else ":memory:") as kept:
            for name, one in pair.items():
                async with model_for(_proven(one) if lm is None else lm, **_params(one, lm)) as model:
                    # Loading checks signature, contracts and model exactly as production does.
                    program = load(one, signature=task.signature, lm=model, toolbox=task.toolbox, deps=task.deps,
                                   allow_unproven=allow_unproven, checks=tuple(task.checks))  # fmt: skip
                    async with Evaluator(task, model, kept, concurrency=concurrency, progress=progress, prices=prices,
                                         executor=executor) as evaluator:  # fmt: skip
                        records += await evaluator.evaluate({name: program.plan}, rows, what=name)
        return records

    records = run_sync(measured)
    table = summarise(records)
    failures = []
    quality = table["artifact"]["quality"]
    if min_score is not None and quality < min_score:
        failures.append(f"mean score {quality:.3f} is below {min_score:g}")
    same = len({one.program_id for one in pair.values()}) == 1
    difference = _difference(records, same=same) if "against" in pair else None
    if difference is not None and difference[2] < 0:
        low, mean, high = difference
        other = pair["against"].artifact_id[7:19]
        failures.append(f"significantly worse than {other}: {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
    refs = {name: one.artifact_id for name, one in pair.items()}
    return EvalReport(split, table, difference, failures, records, refs, {name: one.plan for name, one in pair.items()},
                      conditions=min_score is not None or against is not None)  # fmt: skip


def _proven(artifact: Artifact) -> str | None:
    return artifact.model_name if needs_model(artifact.plan) else None


def _params(artifact: Artifact, lm: Any) -> dict[str, Any]:
    return {} if lm is not None or _proven(artifact) is None else {"params": dict(artifact.params)}


def _difference(records: Sequence[RolloutRecord], *, same: bool) -> tuple[float, float, float]:
    """Mean quality difference with its interval (low, mean, high); one cluster says nothing about others.

    As in the gate, the interval of two programs allows for a win and a loss that these rows did not show; the `same`
    program cannot differ from itself.
    """
    mine = {r.row_hash: r for r in records if r.candidate == "artifact"}
    theirs = {r.row_hash: r for r in records if r.candidate == "against"}
    deltas = [mine[h].score - theirs[h].score for h in mine]
    clusters = [mine[h].cluster for h in mine]
    if len(set(clusters)) < 2:
        return -1.0, sum(deltas) / len(deltas), 1.0
    seen = max(map(abs, deltas))
    interval = paired_interval(deltas, clusters, unseen=0.0 if same else seen if seen > 1e-12 else 1.0)
    return interval.low, interval.estimate, interval.high


def _other(ref: Any, against: Any, artifact: Artifact) -> Artifact:
    if isinstance(against, Artifact):
        return against
    named = str(against)
    if "@" in named or "/" in named or named.endswith(".json"):
        return Registry.resolve(against)
    if isinstance(ref, Artifact):
        root = DEFAULT_ROOT
    elif str(ref).endswith(".json"):  # a file of a registry: <root>/<Signature>/<id>.json
        root = str(Path(ref).resolve().parent.parent)
    else:
        root = str(ref).rpartition("@")[0].rpartition("/")[0] or DEFAULT_ROOT
    return Registry.resolve(f"{root}/{artifact.signature_name}@{named}")
