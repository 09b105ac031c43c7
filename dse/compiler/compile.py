"""Compile: measure candidates on the data, gate the winner on the sealed holdout, emit an artifact.

Search rows give allow-lists and demonstrations; all candidates run on the same select rows; only the select
winner and the incumbent run on the sealed holdout, once. What the artifact says is a function of the inputs,
the registry and ledger at the start, and the recorded outcomes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse import telemetry
from dse.artifacts.artifact import Artifact
from dse.artifacts.registry import Registry
from dse.canonical import digest
from dse.compiler.allowlist import AllowLists, allow_lists, exposure
from dse.compiler.budget import Budget, BudgetedModel
from dse.compiler.gate import GateResult, PairedRow, gate
from dse.compiler.gate import evidence as gate_evidence
from dse.compiler.space import Space, candidates, fitting_modes
from dse.errors import ArtifactNotFound, ContaminatedSplit, DatasetError, MissingHoldout, ModelError, Refused, UserError
from dse.evaluation.evaluator import Evaluator, Progress, RolloutRecord, cassette_of, live_reads, summarise
from dse.evaluation.sampling import spread
from dse.evaluation.task import Task
from dse.objective import unknown
from dse.plan import SEMANTICS_VERSION, Plan, program_id
from dse.portal import run_sync
from dse.statistics import minimum_detectable_effect, quantile
from dse.strategies.base import baseline_plan, seed_plan

if TYPE_CHECKING:
    from dse.evaluation.dataset import Dataset, Example
    from dse.models.lm import LanguageModel
    from dse.models.prices import PriceTable
    from dse.store.journal import Store

__all__ = ["CompileResult", "Rows", "acompile", "compile"]

MIN_HOLDOUT_CLUSTERS = 8


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
        table: per candidate on select rows: quality with interval, cost, tokens, calls, failures.
        holdout_table: winner and incumbent on the sealed holdout.
        winner, incumbent: candidate names; `plans`: all candidates.
        records: all rollouts by stage (``search``, ``select``, ``holdout``).
        notes: what a reader should know (live reads, an inexact allow-list ...).
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

    @property
    def verdict(self) -> str:
        return self.gate.verdict


def compile(
    task: Task, *, lm: Any, registry: Registry | str | Path = "artifacts", store: Store | str | Path | None = None,
    budget: Budget | None = None, prices: PriceTable | None = None, rows: Rows | None = None, space: Space | None = None,
    record: str | Path | None = None, concurrency: int = 8, seed: int = 0, success: float = 1.0,
    progress: Progress | None = None, say: Callable[[str], None] | None = None, model_label: str | None = None,
) -> CompileResult:  # fmt: skip
    """Compile a task against its dataset.

    Args:
        lm: a dspy model string, ``replay:FILE``, a ``dspy.LM``, an engine or a ``LanguageModel``.
        registry: where artifacts and aliases live; the incumbent is its ``champion``, or the baseline plan.
        store: rollouts, scores and the ledger of holdout openings; default ``<registry>/dse.db``.
        budget: hard bounds, checked before every request. What a recording answers is not counted.
        prices: a named price table; without it costs are what the model's engine reports.
        rows: how many rows of each split.
        space: what is tried.
        record: a cassette file; hits are replayed, only misses are asked for.
        success: score from which a search run counts as solved.
        seed: of the gate's Monte Carlo test, where one is needed.
        say: receives a line at the start of each stage.
        model_label: what the completions are, e.g. "recorded from a large language model"; default from the model.

    Raises:
        DatasetError, EnvironmentRequired, BudgetExhausted, InfrastructureError, UserError
    """
    return run_sync(lambda: acompile(
        task, lm=lm, registry=registry, store=store, budget=budget, prices=prices, rows=rows, space=space,
        record=record, concurrency=concurrency, seed=seed, success=success, progress=progress, say=say,
        model_label=model_label))  # fmt: skip


async def acompile(task: Task, **options: Any) -> CompileResult:
    """`compile` for async code; same arguments."""
    return await _Compile(task, **options).run()


class _Compile:
    store: Store
    model: LanguageModel
    budgeted: BudgetedModel
    evaluator: Evaluator
    compile_id: str

    def __init__(
        self, task: Task, *, lm: Any, registry: Registry | str | Path = "artifacts", store: Any = None,
        budget: Budget | None = None, prices: PriceTable | None = None, rows: Rows | None = None, space: Space | None = None,
        record: str | Path | None = None, concurrency: int = 8, seed: int = 0, success: float = 1.0,
        progress: Progress | None = None, say: Callable[[str], None] | None = None, model_label: str | None = None,
    ) -> None:  # fmt: skip
        self.task = task
        self.spec = task.spec
        self.registry = registry if isinstance(registry, Registry) else Registry(registry)
        self.store_place = store if store is not None else Path(self.registry.root) / "dse.db"
        self.lm, self.record, self.budget = lm, record, budget or Budget()
        self.prices = prices
        self.rows = rows or Rows()
        self.space = space or Space()
        self.concurrency, self.progress = concurrency, progress
        self.seed = seed
        self.success = success
        self.say = say or (lambda _: None)
        self.label = model_label
        self.notes: list[str] = []
        self.started = time.monotonic()
        self.data: Dataset = task.load_dataset()
        self.modes = fitting_modes(self.spec, task.modes)
        assert task.toolbox is not None
        self.effects = {name: task.toolbox[name].contract.effect for name in self.spec.tool_names}

    @telemetry.compiling
    async def run(self) -> CompileResult:
        from dse.store.journal import opened

        self._check_data()
        with opened(self.store_place) as self.store:
            self.model = self._resolve()
            try:
                self._check_objective()
                self.label = self.label or _label(self.model)
                self.evaluator = Evaluator(self.task, self.model, self.store, concurrency=self.concurrency,
                                           progress=self.progress, prices=self.prices,
                                           before_pause=self.budgeted.before_wait)  # fmt: skip
                return await self._stages()
            finally:
                await self.model.aclose()

    def _check_data(self) -> None:
        """What can be known before anything runs."""
        clusters = self.data.holdout_summary()["clusters"]
        usable = clusters if self.rows.holdout is None else min(clusters, self.rows.holdout)
        if usable < MIN_HOLDOUT_CLUSTERS:
            raise MissingHoldout(f"The holdout has fewer than {MIN_HOLDOUT_CLUSTERS} clusters", value=usable,
                                 remedy="Add rows of more clusters, or use more of them; a gate could not decide "
                                        "anything.")  # fmt: skip
        gain = minimum_detectable_effect(usable, discordance=0.34)
        self.say(f"plan: {usable} independent sealed rows find "
                 + ("no gain" if gain is None else f"a gain of {gain:.2f} or more in quality with 80% probability")
                 + ", if a third of the rows differ")  # fmt: skip
        for split in ("search", "select"):
            if not self.data.split(split):
                raise DatasetError(f"The dataset has no {split} rows", value=self.data.name,
                                   remedy=f"Give {split} a share of the quota.")  # fmt: skip

    def _check_objective(self) -> None:
        objective, cassette = self.task.objective, cassette_of(self.model)
        if objective.needs_cost and not self._costs_can_be_known(cassette):
            raise unknown("cost", _field(objective, "cost_weight", "max_cost"))
        if objective.needs_latency and cassette is not None and cassette.header.latency != "representative":
            raise unknown("latency", _field(objective, "latency_weight", "max_p95_latency_s"))

    def _costs_can_be_known(self, cassette: Any) -> bool:
        """False where it is certain that no run will have a cost, before one is paid for."""
        if self.prices is not None:
            return self.model.name in self.prices.models
        if self.budgeted.free:
            return any(entry.cost_usd is not None for entry in cassette)
        return bool(getattr(_innermost(self.model), "reports_cost", True))

    def _resolve(self) -> LanguageModel:
        """The model, its budget below a recording and below retries: what is asked for anew is counted, each time."""
        from dse.models.lm import RetryingModel, resolve_model

        live = resolve_model(self.lm)
        replayed = getattr(_innermost(live), "cassette", None) is not None
        if replayed and self.record is not None:
            raise ModelError("A replay is not recorded", value=str(self.record), remedy="Give a live model, or no record=.")
        patient = live if isinstance(live, RetryingModel) else None
        self.budgeted = BudgetedModel(patient.inner if patient else live, self.budget, self.prices, free=replayed,
                                      owned=live is not self.lm)  # fmt: skip
        model = patient.over(self.budgeted, self.budgeted.before_wait) if patient else self.budgeted
        return resolve_model(model, record=self.record, prices=self.prices)

    async def _stages(self) -> CompileResult:
        await self._tell_plan()
        asked, started = self.budgeted.calls, time.monotonic()
        search, lists = await self._search()
        asked, took_s = self.budgeted.calls - asked, time.monotonic() - started
        plans, sources = candidates(self.spec, self.modes, lists, search[1], search[0], space=self.space,
                                    limits=self.task.limits, success=self.success)  # fmt: skip
        incumbent, incumbent_plan, parent = self._incumbent(plans)
        if incumbent not in plans:
            plans[incumbent] = incumbent_plan
            sources[incumbent] = list(parent.evidence.demos.rows) if parent else []
        self._tell_rest(plans, incumbent_plan, search[1], took_s / asked if asked else None)
        self.compile_id = self._inputs_digest(incumbent_plan, parent)
        selected = await self._select(plans, sources[incumbent])
        winner = self._winner(plans, selected)
        opened = await self._holdout(winner, plans[winner], incumbent, incumbent_plan, sources[incumbent])
        if self.evaluator.live:
            self.notes.append(live_reads(self.evaluator.live))
        if not lists.exact:
            self.notes.append("the smallest allow-list was searched greedily: a smaller one may exist")
        return await self._emit(plans, sources, lists, search, selected, opened, winner, incumbent, parent)

    # --- what it will take

    def _sizes(self) -> tuple[int, int]:
        """Select and holdout rows that will be used."""
        sealed = self.data.holdout_summary()["rows"]
        select = len(spread(self.data.split("select"), self.rows.select))
        return select, sealed if self.rows.holdout is None else min(sealed, self.rows.holdout)

    async def _tell_plan(self) -> None:
        """Before anything is paid for: how many rollouts this takes at most, and how often the holdout was open."""
        search, (select, holdout) = len(spread(self.data.split("search"), self.rows.search)), self._sizes()
        most = 1 + sum(_most_candidates(self.space, mode) for mode in self.modes)
        rollouts = search * len(self.modes) + select * most + 2 * holdout
        self.say(f"plan: at most {rollouts} rollouts: {search} search rows x {len(self.modes)} modes, {select} select rows x "
                 f"{most} candidates, {holdout} holdout rows x 2; "
                 + ("a recording answers them" if self.budgeted.free else "each asks the model at least once"))  # fmt: skip
        openings = await self.store.threaded(self.store.openings)
        before = sum(opening["dataset"] == self.data.name for opening in openings)
        if before:
            self.say(f"plan: the holdout of {self.data.name} was opened {'once' if before == 1 else f'{before} times'} before "
                     "in this store: every further look makes a small p worth less")  # fmt: skip

    def _tell_rest(self, plans: Mapping[str, Plan], incumbent: Plan, searched: Sequence[RolloutRecord],
                   call_s: float | None) -> None:  # fmt: skip
        """After the search: what select and holdout will ask of the model, by what each mode asked on search rows."""
        if self.budgeted.free:
            return
        asked: dict[str, list[int]] = {}
        for record in searched:
            asked.setdefault(record.candidate.split("/")[0], []).append(record.model_calls)
        per_run = {mode: sum(calls) / len(calls) for mode, calls in asked.items()}
        each = [per_run.get(plan.mode, 1.0) for plan in plans.values()]
        select, holdout = self._sizes()
        calls = select * sum(each) + holdout * (per_run.get(incumbent.mode, 1.0) + sum(each) / len(each))
        text = f"plan: about {calls:.0f} more model calls ({', '.join(f'{m} {c:.1f}' for m, c in per_run.items())} per run)"
        if call_s is not None:
            text += f", about {max(1, round(calls * call_s / 60))} min at the pace so far"
        budget = self.budgeted.budget.model_calls
        if budget is not None:
            left = budget - self.budgeted.calls
            text += f"; the budget has {left} left" + (", likely too few" if left < calls else "")
        self.say(text)

    # --- stages

    async def _search(self) -> tuple[tuple[list[Example], list[RolloutRecord]], AllowLists]:
        rows = spread(self.data.split("search"), self.rows.search)
        seeds = {f"{mode}/{'none' if mode == 'direct' else 'all'}/seed": seed_plan(self.spec, mode, limits=self.task.limits)
                 for mode in self.modes}  # fmt: skip
        self.say(f"search: {len(seeds)} seed programs on {len(rows)} rows")
        if self.task.objective.needs_cost:  # unknown costs show after one rollout, before the rest is paid for
            first = await self.evaluator.evaluate(dict([next(iter(seeds.items()))]), rows[:1], what="cost")
            self._check_costs(first)
        records = await self.evaluator.evaluate(seeds, rows, what="search")
        lists = allow_lists(records, self.spec.tool_names, self.task.required, success=self.success)
        return (rows, records), lists

    def _check_costs(self, records: Sequence[RolloutRecord]) -> None:
        objective = self.task.objective
        if objective.needs_cost and any(r.cost_usd is None for r in records):
            raise unknown("cost", _field(objective, "cost_weight", "max_cost"))

    async def _select(self, plans: Mapping[str, Plan], shown: Sequence[str]) -> list[RolloutRecord]:
        rows = spread(self.data.split("select"), self.rows.select)
        _refuse_shown(shown, {row.row_hash for row in rows}, "select")
        self.say(f"select: {len(plans)} candidates on {len(rows)} rows")
        return await self.evaluator.evaluate(plans, rows, what="select")

    def _incumbent(self, plans: Mapping[str, Plan]) -> tuple[str, Plan, Artifact | None]:
        """The champion if this task can run it, else the baseline plan."""
        try:
            champion = self.registry.get(f"{self.spec.name}@champion")
        except ArtifactNotFound:
            champion = None
        if champion is not None:
            why = self._other(champion)
            if not why:
                plan = champion.plan
                name = next((n for n, p in plans.items() if p.plan_id == plan.plan_id), "champion")
                return name, plan, champion
            self.notes.append(f"the champion is of {why}: compared with the baseline instead, and not replaced")
        plan = baseline_plan(self.spec, self.task.limits)
        name = next((n for n, p in plans.items() if p.plan_id == plan.plan_id), "baseline")
        return name, plan, None

    def _other(self, champion: Artifact) -> str:
        """Why the champion cannot be run here; empty if it can."""
        toolbox = self.task.toolbox
        assert toolbox is not None
        if champion.program.signature.signature_id != self.spec.signature_id:
            return "another signature"
        if (champion.model_name, dict(champion.params)) != (self.model.name, dict(self.model.params)):
            return "another model"
        if any(name not in self.effects or toolbox[name].contract.interface_id != contract.interface_id
               for name, contract in champion.contracts.items()):  # fmt: skip
            return "other tools"
        return ""

    def _utility(self, record: RolloutRecord, plan: Plan) -> float:
        removed = exposure(self.spec.tool_names, self.effects) - exposure(plan.allow, self.effects)
        return self.task.objective.utility(record.score, record.cost_usd, record.latency_s, removed)

    def _winner(self, plans: Mapping[str, Plan], records: Sequence[RolloutRecord]) -> str:
        """Highest mean utility on select within the limits; among equals fewer effects, fewer tokens, then by name."""
        objective = self.task.objective
        self._check_costs(records)

        def rank(name: str) -> tuple[Any, ...]:
            mine = [r for r in records if r.candidate == name]
            plan = plans[name]
            mean = math.fsum(self._utility(r, plan) for r in mine) / len(mine)
            quality = math.fsum(r.score for r in mine) / len(mine)
            cost = math.fsum(r.cost_usd or 0.0 for r in mine) / len(mine)
            slowest, limit = quantile([r.latency_s for r in mine], 0.95), objective.max_p95_latency_s
            broken = (
                (objective.max_cost is not None and cost > objective.max_cost)
                or (limit is not None and slowest > limit)
                or (objective.min_quality is not None and quality < objective.min_quality)
            )
            tokens = sum(r.input_tokens + r.output_tokens for r in mine)
            return broken, -round(mean, 9), exposure(plan.allow, self.effects), tokens, name

        return min(plans, key=rank)

    async def _holdout(self, winner: str, plan: Plan, incumbent: str, incumbent_plan: Plan,
                       shown: Sequence[str]) -> tuple[list[RolloutRecord], int]:  # fmt: skip
        """Open the sealed holdout, once, for the winner and the incumbent."""
        summary = self.data.holdout_summary()

        def choose(sealed: Sequence[Any]) -> list[Any]:
            chosen = spread(sealed, self.rows.holdout)
            _refuse_shown(shown, {row.row_hash for row in chosen}, "holdout")
            return chosen

        rows = self.data.open_holdout(self.store, compile_id=self.compile_id, purpose=f"gate {self.spec.name}",
                                      select=choose)  # fmt: skip
        pair = {winner: plan, incumbent: incumbent_plan}
        self.say(f"holdout: {' against '.join(pair)} on {len(rows)} of {summary['rows']} sealed rows")
        return await self.evaluator.evaluate(pair, rows, what="holdout"), rows.openings

    def _inputs_digest(self, incumbent: Plan, parent: Artifact | None) -> str:
        task, toolbox, space = self.task, self.task.toolbox, self.space
        assert toolbox is not None
        metric, environment = task.metric, task.environment
        return digest({
            "signature": self.spec.signature_id, "semantics": SEMANTICS_VERSION,
            "contracts": {name: [toolbox[name].contract.interface_id, toolbox[name].contract.policy_id]
                          for name in self.spec.tool_names},
            "dataset": [self.data.revision, dict(self.data.split_hashes)], "metric": [metric.name, metric.revision],
            "environment": [environment.name, environment.revision] if environment else None,
            "toolbox": toolbox.revision(self.spec.tool_names), "objective": task.objective.to_dict(),
            "limits": task.limits.model_dump(mode="json"), "required": list(task.required), "modes": list(self.modes),
            "rows": [self.rows.search, self.rows.select, self.rows.holdout],
            "space": {mode: [list(space.allow_of(mode)), space.demos_of(mode), space.cross] for mode in self.modes},
            "success": self.success, "seed": self.seed, "model": [self.model.name, dict(self.model.params)],
            "prices": self.prices.to_dict() if self.prices else None,
            "incumbent": [self._program_id(incumbent), parent.artifact_id if parent else None],
        })  # fmt: skip

    # --- the artifact

    async def _emit(self, plans: Mapping[str, Plan], sources: Mapping[str, list[str]], lists: AllowLists,
                    search: tuple[list[Example], list[RolloutRecord]], selected: list[RolloutRecord],
                    opened: tuple[list[RolloutRecord], int], winner: str, incumbent: str, parent: Artifact | None,
                    ) -> CompileResult:  # fmt: skip
        records, openings = opened
        table = summarise(selected)
        options = {"objective": self.task.objective, "seed": self.seed}

        def build(candidate: str) -> tuple[Artifact, GateResult]:
            rows = _paired(records, candidate, incumbent)
            exposures = {"baseline_exposure": exposure(plans[incumbent].allow, self.effects),
                         "candidate_exposure": exposure(plans[candidate].allow, self.effects)}  # fmt: skip
            result = gate(rows, **options, **exposures)  # type: ignore[arg-type]
            evidence = self._evidence(candidate, incumbent, plans, sources, lists, search, table, [*selected, *records],
                                      openings, result, gate_evidence(rows, **options, **exposures), parent)  # type: ignore[arg-type]  # fmt: skip
            return self._artifact(plans[candidate], evidence, parent), result

        artifact, result = build(winner)
        base = build(incumbent)[0] if parent is None else None
        self._release(artifact, base or parent)
        compiled = CompileResult(
            artifact=artifact, ref=f"{self.spec.name}@{artifact.artifact_id[:19]}", gate=result, table=table,
            holdout_table=summarise(records), winner=winner, incumbent=incumbent, plans=plans, lists=lists,
            records={"search": search[1], "select": selected, "holdout": records}, notes=self.notes,
            spent=self.budgeted.spent(),
        )  # fmt: skip
        await self.store.threaded(self.store.save_compile, self.compile_id, self.spec.name, artifact.artifact_id,
                                  self._report(compiled))  # fmt: skip
        return compiled

    def _release(self, artifact: Artifact, incumbent: Artifact | None) -> None:
        """Store the artifact and move the aliases that its verdict moves."""
        assert incumbent is not None
        name, by, verdict = self.spec.name, "dse compile", artifact.verdict
        self.registry.put(artifact)
        if self.registry.aliases(name).get("champion") is None:  # the baseline is the first: there always is a way back
            self.registry.put(incumbent)
            self.registry.promote(f"{name}@{incumbent.artifact_id}", reason="baseline", by=by, only_first=True)
        self.registry.set_alias(name, "candidate", artifact.artifact_id, reason=f"verdict {verdict}", by=by)
        if verdict == "PROMOTE":
            try:  # by its id, and without a reason: then the registry checks verdict and incumbent under its lock
                self.registry.promote(f"{name}@{artifact.artifact_id}", by=by)
            except Refused:
                self.notes.append("better than the incumbent of this compile, but that is not the champion: "
                                  "it stays the candidate until somebody promotes it with a reason")  # fmt: skip

    def _evidence(
        self, candidate: str, incumbent: str, plans: Mapping[str, Plan], sources: Mapping[str, list[str]], lists: AllowLists,
        search: tuple[list[Example], list[RolloutRecord]], table: Mapping[str, Mapping[str, Any]],
        later: Sequence[RolloutRecord], openings: int, result: GateResult, paired: dict[str, Any], parent: Artifact | None,
    ) -> dict[str, Any]:  # fmt: skip
        task, toolbox = self.task, self.task.toolbox
        assert toolbox is not None
        every = {r.rollout_id: r for r in (*search[1], *later)}.values()
        costs = [r.cost_usd for r in every]
        environment = task.environment
        return {
            "inputs_digest": self.compile_id,
            "dataset": {"name": self.data.name, "revision": self.data.revision, "split": self._splits(search[0])},
            "metric": {"name": task.metric.name, "revision": task.metric.revision, "kind": task.metric.kind},
            "environment": {"name": environment.name, "revision": environment.revision} if environment else None,
            "toolbox_revision": toolbox.revision(self.spec.tool_names),
            "objective": task.objective.to_dict(), "seed": self.seed,
            "modes": [{"candidate": name, "mode": plans[name].mode, "program_id": self._program_id(plans[name]),
                       "allow": list(plans[name].allow), **row} for name, row in table.items()],
            "gate": result.to_dict(), "paired": paired,
            "incumbent": {"program_id": self._program_id(plans[incumbent]), "kind": "champion" if parent else "baseline",
                          "artifact_id": parent.artifact_id if parent else None, "mode": plans[incumbent].mode},
            "candidates_tried": len(table), "holdout_openings": openings,
            "spend": {"model_calls": sum(r.model_calls for r in every), "input_tokens": sum(r.input_tokens for r in every),
                      "output_tokens": sum(r.output_tokens for r in every),
                      "usage_source": _worst(r.usage_source for r in every),
                      "cost_usd": None if None in costs else math.fsum(c for c in costs if c is not None),
                      "cost_source": _worst(r.cost_source for r in every)},
            "allow_lists": {name: list(tools) for name, tools in lists.named().items()}
                           | {"solved_rows": lists.solved_rows, "exact": lists.exact},
            "removed_tools": [{"name": name, "effect": self.effects[name]} for name in self.spec.tool_names
                              if name not in plans[candidate].allow],
            "demos": {"rows": sources.get(candidate, [])},
            "model_label": self.label, "price_table": self.prices.name if self.prices else None,
            "notes": list(self.notes),
        }  # fmt: skip

    def _splits(self, search: Sequence[Example]) -> dict[str, Any]:
        select = spread(self.data.split("select"), self.rows.select)
        described = {name: {"rows": len(rows), "clusters": len({r.cluster for r in rows}),
                            "hash": digest(sorted(r.row_hash for r in rows))}
                     for name, rows in (("search", search), ("select", select))}  # fmt: skip
        return {**described, "holdout": dict(self.data.holdout_summary())}

    def _program_id(self, plan: Plan) -> str:
        assert self.task.toolbox is not None
        return program_id(self.spec, plan, self.task.toolbox, self.model.name, self.model.params)

    def _artifact(self, plan: Plan, evidence: dict[str, Any], parent: Artifact | None) -> Artifact:
        toolbox = self.task.toolbox
        assert toolbox is not None
        return Artifact.build(
            signature=self.spec.to_dict() | {"signature_id": self.spec.signature_id}, plan=plan,
            contracts={name: toolbox[name].contract for name in plan.allow},
            model={"name": self.model.name, "params": dict(self.model.params)}, program_id=self._program_id(plan),
            evidence=evidence, parent=parent.artifact_id if parent else None, duration_s=time.monotonic() - self.started,
            budget=asdict(self.budget), cwd=os.getcwd(),
        )  # fmt: skip

    def _report(self, compiled: CompileResult) -> dict[str, Any]:
        return {"winner": compiled.winner, "incumbent": compiled.incumbent, "gate": compiled.gate.to_dict(),
                "table": {k: {"allow": list(compiled.plans[k].allow), **v} for k, v in compiled.table.items()},
                "holdout_table": {k: dict(v) for k, v in compiled.holdout_table.items()}, "model_label": self.label,
                "rollouts": {stage: [[r.candidate, r.rollout_id] for r in records]
                             for stage, records in compiled.records.items()}}  # fmt: skip


def _most_candidates(space: Space, mode: str) -> int:
    """Candidates that a mode can have; fewer where allow-lists are equal or no run can be shown."""
    lists = 1 if mode == "direct" else len(space.allow_of(mode))
    return lists + (0 if not space.demos_of(mode) else lists if space.cross else 1)


def _innermost(model: Any) -> Any:
    while (inner := getattr(model, "inner", None)) is not None:
        model = inner
    return model


def _field(objective: Any, weight: str, limit: str) -> str:
    return weight if getattr(objective, weight) else limit


def _refuse_shown(shown: Sequence[str], rows: set[str], split: str) -> None:
    """The incumbent's demonstrations come from an earlier compile, maybe of other splits."""
    both = sorted(rows & set(shown))
    if both:
        raise ContaminatedSplit(f"The champion's demonstrations are among the {split} rows", value=both[0],
                                remedy="Splits are kept for good: pass the earlier assignment, or promote a program "
                                       "without these demonstrations first.", rows=both)  # fmt: skip


def _paired(records: Sequence[RolloutRecord], candidate: str, incumbent: str) -> list[PairedRow]:
    mine = {r.row_hash: r for r in records if r.candidate == candidate}
    theirs = {r.row_hash: r for r in records if r.candidate == incumbent}
    return [PairedRow(h, a.cluster, a.score, b.score, a.cost_usd, b.cost_usd, a.latency_s, b.latency_s)
            for h, a in mine.items() for b in (theirs[h],)]  # fmt: skip


def _label(model: Any) -> str:
    """What the completions are: the source that a recording names, or the model's name."""
    cassette = cassette_of(model)
    return str(model.name if cassette is None else cassette.header.source)


def _worst(sources: Any) -> str:
    found = set(sources)
    return next((s for s in ("unknown", "estimated") if s in found), "exact")
