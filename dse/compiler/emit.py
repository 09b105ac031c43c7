"""The part of a compile that writes down: its identity, the evidence, the artifact, and the aliases that a verdict moves."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dse.artifacts.artifact import GATE_LEVEL, Artifact
from dse.artifacts.registry import Registry
from dse.canonical import digest
from dse.compiler.allowlist import AllowLists, exposure
from dse.compiler.choose import Measured, front, removals
from dse.compiler.evidence import Spending, table_row
from dse.compiler.gate import GateResult, PairedRow, gate
from dse.compiler.gate import evidence as gate_evidence
from dse.compiler.preflight import Preflight
from dse.compiler.race import RaceResult
from dse.compiler.result import CompileResult
from dse.compiler.revision import revision_of
from dse.compiler.space import Candidate
from dse.errors import Refused
from dse.evaluation.evaluator import Evaluator, RolloutRecord, summarise
from dse.evaluation.sampling import spread
from dse.plan import SEMANTICS_VERSION, Plan

if TYPE_CHECKING:
    from dse.evaluation.dataset import Example

__all__ = ["Emit"]


class Emit(Preflight):
    """Mixed into the compile; knows what `Preflight` knows, and:"""

    registry: Registry
    evaluators: Mapping[str, Evaluator]
    seed: int
    success: float
    label: str | None
    notes: list[str]
    spending: Spending
    reports: list[dict[str, Any]]
    pruned: dict[str, str]
    effects: Mapping[str, Any]
    compile_id: str
    started: float

    def _inputs(self) -> dict[str, Any]:
        """Everything that goes into this compile but the incumbent."""
        task, toolbox, space = self.task, self.task.toolbox, self.space
        assert toolbox is not None
        metric, environment = task.metric, task.environment
        return {
            "signature": self.spec.signature_id, "semantics": SEMANTICS_VERSION,
            "contracts": {name: [toolbox[name].contract.interface_id, toolbox[name].contract.policy_id]
                          for name in self.spec.tool_names},
            "dataset": [self.data.revision, dict(self.data.split_hashes), dict(self.data.cluster_hashes)],
            "metric": [metric.name, metric.revision],
            "environment": [environment.name, environment.revision] if environment else None,
            "toolbox": toolbox.revision(self.spec.tool_names), "objective": task.objective.to_dict(),
            "limits": task.limits.model_dump(mode="json"), "required": list(task.required), "modes": list(self.modes),
            "rows": [self.rows.search, self.rows.select, self.rows.holdout],
            "space": {mode: [list(space.allow_of(mode)), space.demos_of(mode), space.cross] for mode in self.modes},
            "search": [[one.name, revision_of(one)] for one in self.proposers],
            "allocation": self.allocation, "replicates": self.replicates,
            "success": self.success, "seed": self.seed, "models": self.models.described(),
            "prices": self.prices.to_dict() if self.prices else None,
        }  # fmt: skip

    def _program_id(self, plan: Plan, model: str) -> str:
        return self.evaluators[model].program(plan).program_id

    # --- the artifact

    async def _emit(self, found: Mapping[str, Candidate], lists: AllowLists,
                    search: tuple[Sequence[Example], Sequence[RolloutRecord]], selected: list[RolloutRecord],
                    opened: tuple[list[RolloutRecord], int], chosen: str, why: str, incumbent: str, parent: Artifact | None,
                    race: RaceResult, measured: Mapping[str, Measured]) -> CompileResult:  # fmt: skip
        records, openings = opened
        table = summarise(selected)
        # The k-th look at the same rows is tested at alpha / k.
        options = {"objective": self.task.objective, "seed": self.seed, "alpha": GATE_LEVEL / max(1, openings)}
        finished = [s.name for s in race.ranking if s.finalist]
        pareto = front(measured, [name for name in finished if name in measured])
        costs = removals(measured, self.effects)

        def build(name: str) -> tuple[Artifact, GateResult]:
            rows = _paired(records, name, incumbent, slowest=self.task.objective.max_p95_latency_s is not None)
            exposures = {"baseline_exposure": exposure(found[incumbent].plan.allow, self.effects),
                         "candidate_exposure": exposure(found[name].plan.allow, self.effects)}  # fmt: skip
            result = gate(rows, **options, **exposures)  # type: ignore[arg-type]
            evidence = {
                **self._evidence(found, name, incumbent, lists, search[0], table, parent),
                "gate": result.to_dict(), "paired": gate_evidence(rows, **options, **exposures),  # type: ignore[arg-type]
                "holdout_openings": openings, "race": self._race_data(race, why, len(table)), "front": list(pareto),
                "removals": [one.to_dict() for one in costs],
            }  # fmt: skip
            return self._artifact(found[name], evidence, parent), result

        artifact, result = build(chosen)
        base = build(incumbent)[0] if parent is None else None
        self._release(artifact, base or parent)
        compiled = CompileResult(
            artifact=artifact, ref=f"{self.spec.name}@{artifact.artifact_id[:19]}", gate=result, table=table,
            holdout_table=summarise(records), winner=chosen, incumbent=incumbent,
            plans={name: one.plan for name, one in found.items()}, lists=lists,
            records={"search": list(search[1]), "select": selected, "holdout": records}, notes=self.notes,
            spent=self.models.purse.spent(), accounts=self.models.purse.by_stage(), candidates=found, race=race, front=pareto,
            removals=costs,
        )  # fmt: skip
        await self.store.threaded(self.store.save_compile, self.compile_id, self.spec.name, artifact.artifact_id,
                                  self._report(compiled))  # fmt: skip
        return compiled

    def _race_data(self, race: RaceResult, why: str, tried: int) -> dict[str, Any]:
        units = [s.cost for s in race.ranking]
        rows = max((s.n for s in race.ranking), default=0)
        per_run = [s.cost / s.n for s in race.ranking if s.n]
        return {
            "allocation": self.allocation, "rollouts": race.rollouts, "grid_rollouts": race.grid_rollouts,
            "units": math.fsum(units), "grid_units": math.fsum(one * rows for one in per_run),
            "rounds": [{"rollouts": one.rollouts, "rows": one.units, "kept": list(one.kept), "dropped": dict(one.dropped)}
                       for one in race.rounds],
            "finalists": [s.name for s in race.ranking if s.finalist],
            "chosen_because": why or f"the highest expected utility of {tried} candidates on select rows",
        }  # fmt: skip

    def _release(self, artifact: Artifact, incumbent: Artifact | None) -> None:
        """Store the artifact and move the aliases that its verdict moves. Done twice, it changes nothing more."""
        assert incumbent is not None
        name, by, verdict = self.spec.name, "dse compile", artifact.verdict
        self.registry.put(artifact)
        aliases = self.registry.aliases(name)
        if aliases.get("champion") == artifact.artifact_id:  # an earlier process got here
            return
        if aliases.get("champion") is None:  # the baseline is the first: there always is a way back
            self.registry.put(incumbent)
            self.registry.promote(f"{name}@{incumbent.artifact_id}", reason="baseline", by=by, only_first=True)
        if aliases.get("candidate") != artifact.artifact_id:
            self.registry.set_alias(name, "candidate", artifact.artifact_id, reason=f"verdict {verdict}", by=by)
        if verdict == "PROMOTE":
            try:  # by its id, and without a reason: then the registry checks verdict and incumbent under its lock
                self.registry.promote(f"{name}@{artifact.artifact_id}", by=by)
            except Refused:
                self.notes.append("better than the incumbent of this compile, but that is not the champion: "
                                  "it stays the candidate until somebody promotes it with a reason")  # fmt: skip

    def _evidence(self, found: Mapping[str, Candidate], name: str, incumbent: str, lists: AllowLists,
                  search: Sequence[Example], table: Mapping[str, Mapping[str, Any]],
                  parent: Artifact | None) -> dict[str, Any]:  # fmt: skip
        task, toolbox = self.task, self.task.toolbox
        assert toolbox is not None
        environment, base = task.environment, found[incumbent]
        return {
            "inputs_digest": self.compile_id,
            "dataset": {"name": self.data.name, "revision": self.data.revision, "split": self._splits(search)},
            "metric": {"name": task.metric.name, "revision": task.metric.revision, "kind": task.metric.kind},
            "environment": {"name": environment.name, "revision": environment.revision} if environment else None,
            "toolbox_revision": toolbox.revision(self.spec.tool_names),
            "objective": task.objective.to_dict(), "seed": self.seed,
            "modes": [table_row(one, row, found[one], self._program_id(found[one].plan, found[one].model))
                      for one, row in table.items()],
            "incumbent": {"program_id": self._program_id(base.plan, base.model), "kind": "champion" if parent else "baseline",
                          "artifact_id": parent.artifact_id if parent else None, "mode": base.plan.mode, "model": base.model},
            "candidates_tried": len(table), "spend": self.spending.total(), "stages": self.spending.stages(),
            "allow_lists": {label: list(tools) for label, tools in lists.named().items()}
                           | {"solved_rows": lists.solved_rows, "exact": lists.exact},
            "removed_tools": [{"name": tool, "effect": self.effects[tool]} for tool in self.spec.tool_names
                              if tool not in found[name].plan.allow],
            "demos": {"rows": list(found[name].rows)},
            "model_label": self.label, "price_table": self.prices.name if self.prices else None,
            "notes": list(self.notes), "proposers": self.reports, "pruned": self.pruned, "models": list(self.models.names),
            "reflection_model": self.models.reflection.name if self.proposers else None, "replicates": self.replicates,
        }  # fmt: skip

    def _splits(self, search: Sequence[Example]) -> dict[str, Any]:
        select = spread(self.data.split("select"), self.rows.select)
        described = {name: {"rows": len(rows), "clusters": len({r.cluster for r in rows}),
                            "hash": digest(sorted(r.row_hash for r in rows))}
                     for name, rows in (("search", search), ("select", select))}  # fmt: skip
        return {**described, "holdout": dict(self.data.holdout_summary())}

    def _artifact(self, one: Candidate, evidence: dict[str, Any], parent: Artifact | None) -> Artifact:
        toolbox, program = self.task.toolbox, self.evaluators[one.model].program(one.plan)
        assert toolbox is not None
        model = {"name": "none", "params": {}} if program.lm is None else {"name": program.lm.name, "params": dict(program.lm.params)}
        return Artifact.build(
            signature=self.spec.to_dict() | {"signature_id": self.spec.signature_id}, plan=one.plan,
            contracts={name: toolbox[name].contract for name in one.plan.allow}, model=model,
            program_id=program.program_id, evidence=evidence, parent=parent.artifact_id if parent else None,
            duration_s=time.monotonic() - self.started, budget=asdict(self.budget), cwd=os.getcwd(),
        )  # fmt: skip

    def _report(self, compiled: CompileResult) -> dict[str, Any]:
        return {"winner": compiled.winner, "incumbent": compiled.incumbent, "gate": compiled.gate.to_dict(),
                "table": {k: {"allow": list(compiled.plans[k].allow), **v} for k, v in compiled.table.items()},
                "holdout_table": {k: dict(v) for k, v in compiled.holdout_table.items()}, "model_label": self.label,
                "race": compiled.race.to_dict() if compiled.race else None, "front": list(compiled.front),
                "pruned": self.pruned, "spent": dict(compiled.spent), "accounts": self.models.purse.by_stage(),
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
