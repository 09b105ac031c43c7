"""How a compile ends: the evidence is put together, the artifact made, and the aliases move that its verdict moves."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dse.artifacts.artifact import GATE_LEVEL, Artifact
from dse.canonical import digest
from dse.compiler.allowlist import AllowLists, exposure
from dse.compiler.choose import Measured, front, removals
from dse.compiler.evidence import table_row
from dse.compiler.gate import GateResult, PairedRow, gate
from dse.compiler.gate import evidence as gate_evidence
from dse.compiler.models import Models
from dse.compiler.options import Options
from dse.compiler.race import RaceResult
from dse.compiler.result import CompileResult
from dse.compiler.rollouts import Rollouts
from dse.compiler.space import Candidate
from dse.errors import Refused
from dse.evaluation.evaluator import RolloutRecord, summarise

if TYPE_CHECKING:
    from dse.store.journal import Store

__all__ = ["Course", "emit"]


@dataclass(frozen=True)
class Course:
    """What a compile found out, in the order of its stages.

    Attributes:
        label: what the completions are.
        parent: the champion it began with, None for the baseline. incumbent: name of the candidate that this is.
        searched, selected, sealed: rollouts on search, select and holdout rows.
        reports: of the proposers. pruned: candidates that were left out before select, and why.
        why: the winner is not the one with the highest mean; empty where it is.
        openings: how often any of the sealed rows was opened by now.
        notes: what a reader should know; the end of the compile may add to them.
    """

    compile_id: str
    label: str
    parent: Artifact | None
    searched: Sequence[RolloutRecord]
    lists: AllowLists
    reports: Sequence[Mapping[str, Any]]
    candidates: Mapping[str, Candidate]
    incumbent: str
    pruned: Mapping[str, str]
    selected: Sequence[RolloutRecord]
    race: RaceResult
    measured: Mapping[str, Measured]
    winner: str
    why: str
    sealed: Sequence[RolloutRecord]
    openings: int
    notes: list[str]


async def emit(options: Options, models: Models, store: Store, runs: Rollouts, course: Course) -> CompileResult:
    """Gate the winner, store the artifact and the report, and move the aliases."""
    return await _Emission(options, models, runs, course).done(store)


class _Emission:
    def __init__(self, options: Options, models: Models, runs: Rollouts, course: Course) -> None:
        self.options, self.models, self.runs, self.course = options, models, runs, course
        self.table = summarise(course.selected)
        finished = [s.name for s in course.race.ranking if s.finalist]
        self.front = front(course.measured, [name for name in finished if name in course.measured])
        self.removals = removals(course.measured, options.effects)

    async def done(self, store: Store) -> CompileResult:
        options, course, purse = self.options, self.course, self.models.purse
        artifact, result = self._build(course.winner)
        base = self._build(course.incumbent)[0] if course.parent is None else course.parent
        self._release(artifact, base)
        compiled = CompileResult(
            artifact=artifact, ref=f"{options.spec.name}@{artifact.artifact_id[:19]}", gate=result, table=self.table,
            holdout_table=summarise(course.sealed), winner=course.winner, incumbent=course.incumbent,
            plans={name: one.plan for name, one in course.candidates.items()}, lists=course.lists,
            records={"search": list(course.searched), "select": course.selected, "holdout": course.sealed}, notes=course.notes,
            spent=purse.spent(), accounts=purse.by_stage(), candidates=course.candidates, race=course.race, front=self.front,
            removals=self.removals,
        )  # fmt: skip
        await store.threaded(store.save_compile, course.compile_id, options.spec.name, artifact.artifact_id,
                             self._report(compiled))  # fmt: skip
        return compiled

    def _build(self, name: str) -> tuple[Artifact, GateResult]:
        """The artifact of a candidate, as the gate finds it against the incumbent."""
        options, course = self.options, self.course
        plan, base, objective = course.candidates[name].plan, course.candidates[course.incumbent].plan, options.task.objective
        rows = _paired(course.sealed, name, course.incumbent, slowest=objective.max_p95_latency_s is not None)
        # The k-th look at the same rows is tested at alpha / k.
        given: dict[str, Any] = {
            "objective": objective, "seed": options.seed, "alpha": GATE_LEVEL / max(1, course.openings),
            "baseline_exposure": exposure(base.allow, options.effects), "candidate_exposure": exposure(plan.allow, options.effects),
        }  # fmt: skip
        result = gate(rows, **given)
        return self._artifact(name, {
            **self._evidence(name), "gate": result.to_dict(), "paired": gate_evidence(rows, **given),
            "holdout_openings": course.openings, "race": self._race_data(), "front": list(self.front),
            "removals": [one.to_dict() for one in self.removals],
        }), result  # fmt: skip

    def _race_data(self) -> dict[str, Any]:
        race = self.course.race
        units = [s.cost for s in race.ranking]
        rows = max((s.n for s in race.ranking), default=0)
        per_run = [s.cost / s.n for s in race.ranking if s.n]
        return {
            "allocation": self.options.allocation, "rollouts": race.rollouts, "grid_rollouts": race.grid_rollouts,
            "units": math.fsum(units), "grid_units": math.fsum(one * rows for one in per_run),
            "rounds": [{"rollouts": one.rollouts, "rows": one.units, "kept": list(one.kept), "dropped": dict(one.dropped)}
                       for one in race.rounds],
            "finalists": [s.name for s in race.ranking if s.finalist],
            "chosen_because": self.course.why or f"the highest expected utility of {len(self.table)} candidates on select rows",
        }  # fmt: skip

    def _release(self, artifact: Artifact, incumbent: Artifact) -> None:
        """Store the artifact and move the aliases that its verdict moves. Done twice, it changes nothing more."""
        registry = self.options.registry
        name, by, verdict = self.options.spec.name, "dse compile", artifact.verdict
        registry.put(artifact)
        aliases = registry.aliases(name)
        if aliases.get("champion") == artifact.artifact_id:  # an earlier process got here
            return
        if aliases.get("champion") is None:  # the baseline is the first: there always is a way back
            registry.put(incumbent)
            registry.promote(f"{name}@{incumbent.artifact_id}", reason="baseline", by=by, only_first=True)
        if aliases.get("candidate") != artifact.artifact_id:
            registry.set_alias(name, "candidate", artifact.artifact_id, reason=f"verdict {verdict}", by=by)
        if verdict == "PROMOTE":
            try:  # by its id, and without a reason: then the registry checks verdict and incumbent under its lock
                registry.promote(f"{name}@{artifact.artifact_id}", by=by)
            except Refused:
                self.course.notes.append("better than the incumbent of this compile, but that is not the champion: "
                                         "it stays the candidate until somebody promotes it with a reason")  # fmt: skip

    def _evidence(self, name: str) -> dict[str, Any]:
        options, course, runs, models = self.options, self.course, self.runs, self.models
        task, spec, data, found, parent = options.task, options.spec, options.data, course.candidates, course.parent
        environment, base = task.environment, found[course.incumbent]
        return {
            "inputs_digest": course.compile_id,
            "dataset": {"name": data.name, "revision": data.revision, "split": self._splits()},
            "metric": {"name": task.metric.name, "revision": task.metric.revision, "kind": task.metric.kind},
            "environment": {"name": environment.name, "revision": environment.revision} if environment else None,
            "toolbox_revision": options.toolbox.revision(spec.tool_names),
            "objective": task.objective.to_dict(), "seed": options.seed,
            "modes": [table_row(one, row, found[one], runs.program_id(found[one].plan, found[one].model))
                      for one, row in self.table.items()],
            "incumbent": {"program_id": runs.program_id(base.plan, base.model), "kind": "champion" if parent else "baseline",
                          "artifact_id": parent.artifact_id if parent else None, "mode": base.plan.mode, "model": base.model},
            "candidates_tried": len(self.table), "spend": runs.spending.total(), "stages": runs.spending.stages(),
            "allow_lists": {label: list(tools) for label, tools in course.lists.named().items()}
                           | {"solved_rows": course.lists.solved_rows, "exact": course.lists.exact},
            "removed_tools": [{"name": tool, "effect": options.effects[tool]} for tool in spec.tool_names
                              if tool not in found[name].plan.allow],
            "demos": {"rows": list(found[name].rows)},
            "model_label": course.label, "price_table": options.prices.name if options.prices else None,
            "notes": list(course.notes), "proposers": list(course.reports), "pruned": dict(course.pruned),
            "models": list(models.names), "reflection_model": models.reflection.name if options.proposers else None,
            "replicates": options.replicates,
        }  # fmt: skip

    def _splits(self) -> dict[str, Any]:
        described = {name: {"rows": len(rows), "clusters": len({r.cluster for r in rows}),
                            "hash": digest(sorted(r.row_hash for r in rows))}
                     for name, rows in (("search", self.options.search_rows()), ("select", self.options.select_rows()))}  # fmt: skip
        return {**described, "holdout": dict(self.options.data.holdout_summary())}

    def _artifact(self, name: str, evidence: dict[str, Any]) -> Artifact:
        options, one, parent = self.options, self.course.candidates[name], self.course.parent
        program = self.runs.program(one.plan, one.model)
        model = {"name": "none", "params": {}} if program.lm is None else {"name": program.lm.name, "params": dict(program.lm.params)}
        return Artifact.build(
            signature=options.spec.to_dict() | {"signature_id": options.spec.signature_id}, plan=one.plan,
            contracts={tool: options.toolbox[tool].contract for tool in one.plan.allow}, model=model,
            program_id=program.program_id, evidence=evidence, parent=parent.artifact_id if parent else None,
            duration_s=time.monotonic() - options.started, budget=asdict(options.budget), cwd=os.getcwd(),
        )  # fmt: skip

    def _report(self, compiled: CompileResult) -> dict[str, Any]:
        return {"winner": compiled.winner, "incumbent": compiled.incumbent, "gate": compiled.gate.to_dict(),
                "table": {k: {"allow": list(compiled.plans[k].allow), **v} for k, v in compiled.table.items()},
                "holdout_table": {k: dict(v) for k, v in compiled.holdout_table.items()}, "model_label": self.course.label,
                "race": compiled.race.to_dict() if compiled.race else None, "front": list(compiled.front),
                "pruned": dict(self.course.pruned), "spent": dict(compiled.spent), "accounts": self.models.purse.by_stage(),
                "rollouts": {stage: [[r.candidate, r.rollout_id] for r in records]
                             for stage, records in compiled.records.items()}}  # fmt: skip


def _paired(records: Sequence[RolloutRecord], candidate: str, incumbent: str, *, slowest: bool) -> list[PairedRow]:
    """Per row the means over its replicates.

    Args:
        slowest: of the replicates' latencies the largest instead. Then no more than 5% of the runs are above the 95th
            percentile of the rows, which a mean over runs does not promise.
    """
    by_row: dict[str, dict[str, list[RolloutRecord]]] = {}
    for record in records:
        by_row.setdefault(record.row_hash, {}).setdefault(record.candidate, []).append(record)

    def mean(values: Sequence[float | None]) -> float | None:
        return None if None in values else math.fsum(v for v in values if v is not None) / len(values)

    def both(rows: Mapping[str, Sequence[RolloutRecord]], what: str) -> list[Any]:
        figure = max if slowest and what == "latency_s" else mean
        return [figure([getattr(r, what) for r in rows[name]]) for name in (candidate, incumbent)]

    return [PairedRow(row, rows[candidate][0].cluster, *both(rows, "score"), *both(rows, "cost_usd"), *both(rows, "latency_s"))
            for row, rows in by_row.items()]  # fmt: skip
