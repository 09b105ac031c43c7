"""Compile: find candidates, race them on the data, gate the winner on the sealed holdout, emit an artifact.

Search rows give allow-lists, demonstrations and proposals; candidates race on the same select rows; only the select
winner and the incumbent run on the sealed holdout, once. What the artifact says is a function of the inputs, the
registry and ledger at the start, and the recorded outcomes: a compile that was killed goes on, and ends alike.
"""

from __future__ import annotations

import dataclasses
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
from dse.canonical import canonical_json, digest
from dse.compiler import forecast as forecasts
from dse.compiler.allowlist import AllowLists, allow_lists, exposure
from dse.compiler.budget import Budget
from dse.compiler.choose import Measured, Removal, front, measure, removals, winner
from dse.compiler.evidence import Spending, table_row
from dse.compiler.forecast import Forecast
from dse.compiler.gate import GateResult, PairedRow, gate
from dse.compiler.gate import evidence as gate_evidence
from dse.compiler.models import Models, Reflector
from dse.compiler.race import Arm, Item, Outcome, RaceResult, make_race
from dse.compiler.search import Proposal, Proposer, Search
from dse.compiler.space import Candidate, Space, candidates, fitting_modes, with_proposals
from dse.contracts.tool import source_revision
from dse.errors import (
    ArtifactNotFound,
    ContaminatedSplit,
    DatasetError,
    DseError,
    MissingHoldout,
    Refused,
    Unserialisable,
    UserError,
)
from dse.evaluation.evaluator import Evaluator, Progress, RolloutRecord, cassette_of, live_reads, summarise
from dse.evaluation.executor import Executor, check_executor, executor_for
from dse.evaluation.judge import Meter
from dse.evaluation.sampling import spread
from dse.evaluation.task import Task
from dse.objective import unknown
from dse.plan import SEMANTICS_VERSION, Plan
from dse.portal import run_sync
from dse.strategies.base import baseline_plan, check_plan, needs_model, seed_plan

if TYPE_CHECKING:
    from dse.evaluation.dataset import Dataset, Example
    from dse.models.prices import PriceTable
    from dse.store.journal import Store

__all__ = ["CompileResult", "Rows", "acompile", "aforecast", "compile", "forecast"]

MIN_HOLDOUT_CLUSTERS = 8
ALLOCATIONS = ("race", "grid", "uniform", "sign_test")


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
        spent: of the budget, by this compile and what it went on from; `accounts`: the same per stage and model.
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


def compile(
    task: Task, *, lm: Any, registry: Registry | str | Path = "artifacts", store: Store | str | Path | None = None,
    budget: Budget | None = None, prices: PriceTable | None = None, rows: Rows | None = None, space: Space | None = None,
    search: Sequence[Proposer] = (), reflection_lm: Any = None, allocation: str = "race", replicates: int = 1,
    executor: Executor | str = "local", record: str | Path | Sequence[str | Path] | None = None, concurrency: int = 8, seed: int = 0, success: float = 1.0,
    progress: Progress | None = None, say: Callable[[str], None] | None = None, model_label: str | None = None,
) -> CompileResult:  # fmt: skip
    """Compile a task against its dataset.

    Started again after it was stopped or killed, the same call goes on: nothing that was answered is paid for twice, and
    it ends with the artifact of an undisturbed run.

    Args:
        lm: a dspy model string, ``replay:FILE``, a ``dspy.LM``, an engine or a ``LanguageModel``; or a list of them, of
            which the best one is chosen. The first is the baseline's.
        registry: where artifacts and aliases live; the incumbent is its ``champion``, or the baseline plan.
        store: rollouts, scores and the ledger of holdout openings; default ``<registry>/dse.db``.
        budget: hard bounds, checked before every request. What a recording answers is not counted.
        prices: a named price table; without it costs are what the model's engine reports.
        rows: how many rows of each split.
        space: modes, allow-lists and demonstrations to try.
        search: what proposes further candidates, in this order: ``dse.Evolve()``, ``dse.Distill()``, ``dse.Cascades()``,
            ``dse.Demonstrations()``, ``dse.DspyOptimizer(...)``, or a `Proposer` of your own.
        reflection_lm: the model that proposers reflect with; default the first of `lm`.
        allocation: how the select split is spent: ``race``, or a baseline: ``grid`` (every candidate on every row),
            ``uniform`` (all on the same part of the rows that half a grid pays for), ``sign_test``.
        replicates: runs of each row on the holdout, whose mean counts; more where the model is stochastic.
        executor: where rollouts run: ``local``, ``ray`` (a Ray cluster) or an `Executor`; models, budget, recording and
            store stay with this process.
        record: a cassette file (one per model); hits are replayed, only misses are asked for.
        success: score from which a search run counts as solved.
        seed: of the race's order of rows, of proposers, and of the gate's Monte Carlo test, where one is needed.
        say: receives a line at the start of each stage.
        model_label: what the completions are, e.g. "recorded from a large language model"; default from the model.

    Raises:
        DatasetError, EnvironmentRequired, BudgetExhausted, InfrastructureError, UserError
    """
    return run_sync(lambda: acompile(
        task, lm=lm, registry=registry, store=store, budget=budget, prices=prices, rows=rows, space=space, search=search,
        reflection_lm=reflection_lm, allocation=allocation, replicates=replicates, executor=executor, record=record,
        concurrency=concurrency, seed=seed, success=success, progress=progress, say=say, model_label=model_label))  # fmt: skip


async def acompile(task: Task, **options: Any) -> CompileResult:
    """`compile` for async code; same arguments."""
    return await _Compile(task, **options).run()


def forecast(task: Task, **options: Any) -> Forecast:
    """What `compile` with the same arguments will take. Asks no model, runs no tool, opens no holdout."""
    return run_sync(lambda: aforecast(task, **options))


async def aforecast(task: Task, **options: Any) -> Forecast:
    """`forecast` for async code."""
    return await _Compile(task, **options).ahead()


class _Compile:
    store: Store
    models: Models
    evaluators: Mapping[str, Evaluator]
    reflect: Reflector
    judges: Meter
    compile_id: str

    def __init__(
        self, task: Task, *, lm: Any, registry: Registry | str | Path = "artifacts", store: Any = None,
        budget: Budget | None = None, prices: PriceTable | None = None, rows: Rows | None = None, space: Space | None = None,
        search: Sequence[Proposer] = (), reflection_lm: Any = None, allocation: str = "race", replicates: int = 1,
        executor: Executor | str = "local", record: Any = None, concurrency: int = 8, seed: int = 0, success: float = 1.0, progress: Progress | None = None,
        say: Callable[[str], None] | None = None, model_label: str | None = None,
    ) -> None:  # fmt: skip
        self.task, self.spec = task, task.spec
        self.registry = registry if isinstance(registry, Registry) else Registry(registry)
        self.store_place = store if store is not None else Path(self.registry.root) / "dse.db"
        self.lm, self.reflection_lm, self.record = lm, reflection_lm, record
        self.budget, self.prices = budget or Budget(), prices
        self.rows, self.space = rows or Rows(), space or Space()
        self.proposers = tuple(search)
        for one in self.proposers:
            if not isinstance(one, Proposer) or isinstance(one, type):
                raise UserError("search= takes proposers", value=repr(one), remedy="Write search=[dse.Evolve(), ...].")
        if allocation not in ALLOCATIONS:
            raise UserError("No such allocation", value=allocation, remedy=f"Choose {', '.join(ALLOCATIONS)}.")
        if type(replicates) is not int or replicates < 1:
            raise UserError("Replicates are counted from 1", value=repr(replicates), remedy="Use 1.")
        check_executor(executor)
        self.allocation, self.replicates, self.executor = allocation, replicates, executor
        self.concurrency, self.progress = concurrency, progress
        self.seed, self.success = seed, success
        self.say = say or (lambda _: None)
        self.label = model_label
        self.notes: list[str] = []
        self.spending = Spending()
        self.reports: list[dict[str, Any]] = []  # of proposers
        self.pruned: dict[str, str] = {}
        self.started = time.monotonic()
        self.data: Dataset = task.load_dataset()
        self.modes = fitting_modes(self.spec, task.modes)
        assert task.toolbox is not None
        self.effects = {name: task.toolbox[name].contract.effect for name in self.spec.tool_names}

    @telemetry.compiling
    async def run(self) -> CompileResult:
        return await self._with_models(self._stages)

    async def ahead(self) -> Forecast:
        return await self._with_models(self._forecast)

    async def _with_models(self, work: Callable[[], Any]) -> Any:
        from dse.store.journal import opened

        self._check_data()
        with opened(self.store_place) as self.store:
            self.models = Models(self.lm, self.reflection_lm, budget=self.budget, prices=self.prices, record=self.record)
            try:
                self._check_objective()
                self.label = self.label or _label(self.models.default)
                runner = executor_for(self.executor)
                try:
                    self.judges = Meter(self.models.judging)
                    self.evaluators = {name: self._evaluator(name, runner) for name in self.models.names}
                    return await work()
                finally:
                    if runner is not self.executor:
                        await runner.aclose()
            finally:
                await self.models.aclose()

    def _evaluator(self, name: str, runner: Executor) -> Evaluator:
        return Evaluator(self.task, self.models.by_name[name], self.store, concurrency=self.concurrency, prices=self.prices,
                         executor=runner, judge_meter=self.judges, progress=self.progress, before_pause=self.models.budgeted[name].before_wait)  # fmt: skip

    def _check_data(self) -> None:
        """What can be known before anything runs."""
        clusters = self.data.holdout_summary()["clusters"]
        usable = clusters if self.rows.holdout is None else min(clusters, self.rows.holdout)
        if usable < MIN_HOLDOUT_CLUSTERS:
            raise MissingHoldout(f"The holdout has fewer than {MIN_HOLDOUT_CLUSTERS} clusters", value=usable,
                                 remedy="Add rows of more clusters, or use more of them; a gate could not decide "
                                        "anything.")  # fmt: skip
        gain = forecasts.detectable(usable, usable)
        self.say(f"plan: {usable} independent sealed rows find "
                 + ("no gain" if gain is None else f"a gain of {gain:.2f} or more in quality with 80% probability")
                 + ", if a third of the rows differ")  # fmt: skip
        for split in ("search", "select"):
            if not self.data.split(split):
                raise DatasetError(f"The dataset has no {split} rows", value=self.data.name,
                                   remedy=f"Give {split} a share of the quota.")  # fmt: skip

    def _check_objective(self) -> None:
        objective = self.task.objective
        for name, model in self.models.by_name.items():
            cassette = cassette_of(model)
            if objective.needs_cost and not self.models.cost_can_be_known(name):
                raise unknown("cost", _field(objective, "cost_weight", "max_cost"))
            if objective.needs_latency and cassette is not None and cassette.header.latency != "representative":
                raise unknown("latency", _field(objective, "latency_weight", "max_p95_latency_s"))

    # --- before anything is paid for

    def _sizes(self) -> tuple[int, int, int]:
        """Search, select and holdout rows that will be used."""
        sealed = self.data.holdout_summary()["rows"]
        search, select = (len(spread(self.data.split(s), getattr(self.rows, s))) for s in ("search", "select"))
        return search, select, sealed if self.rows.holdout is None else min(sealed, self.rows.holdout)

    def _most(self) -> int:
        """Candidates before proposals, the incumbent among them."""
        return 1 + len(self.models.names) * sum(self.space.most(mode) for mode in self.modes)

    async def _tell_plan(self) -> None:
        """How many rollouts this takes at most, and how often the holdout was open."""
        search, select, holdout = self._sizes()
        most, opened = self._most(), 2 * holdout * self.replicates
        rollouts = search * len(self.modes) + select * most + opened
        times = f" x {self.replicates}" if self.replicates > 1 else ""
        self.say(f"plan: at most {rollouts} rollouts: {search} search rows x {len(self.modes)} modes, {select} select rows x "
                 f"{most} candidates, {holdout} holdout rows x 2{times}; "
                 + (f"proposals of {', '.join(p.name for p in self.proposers)} come to that; " if self.proposers else "")
                 + ("a recording answers them" if self.models.free else "each asks the model at least once"))  # fmt: skip
        before = await self._openings()
        if before:
            self.say(f"plan: the holdout of {self.data.name} was opened {'once' if before == 1 else f'{before} times'} before "
                     f"in this store: the next look is tested at 0.05/{before + 1}")  # fmt: skip

    async def _openings(self) -> int:
        openings = await self.store.threaded(self.store.openings)
        return sum(opening["dataset"] == self.data.name for opening in openings)

    async def _forecast(self) -> Forecast:
        search, select, holdout = self._sizes()
        first = self.models.default
        earlier: dict[str, list[Any]] = {}
        for row in await self.store.threaded(self.store.rollouts):
            if row["signature"] == self.spec.name and row["model"] == first.name:
                earlier.setdefault(row["mode"], []).append(row)
        examples = self.data.split("search")[:1]
        limits = self.task.limits
        modes = {}
        for mode in self.modes:
            plan = seed_plan(self.spec, mode, limits=limits)
            size = await forecasts.first_request_tokens(self.task, plan, first, examples[0])
            modes[mode] = forecasts.per_run(mode, size, earlier.get(mode, []), limits.model_calls, limits.tokens)
        each = {mode: self.space.most(mode) * len(self.models.names) for mode in self.modes}
        most = sum(each.values()) + 1
        raced = most if self.allocation == "grid" or most <= 4 else max(4, math.ceil(0.4 * most))
        gated = holdout * self.replicates
        stages = {"search": (search * len(modes),) * 2, "select": (select * raced, select * most), "holdout": (2 * gated,) * 2}
        share = raced / most

        def total(per: str, most_of: bool) -> float:
            figures = {mode: getattr(one, per) for mode, one in modes.items()}
            dearest = max(figures.values())
            runs = math.fsum(figures[mode] * (search + select * each[mode] * (1.0 if most_of else share)) for mode in modes)
            mean = math.fsum(figures.values()) / len(figures)
            return runs + (select * dearest + 2 * gated * dearest if most_of else select * mean + 2 * gated * mean)

        tokens, ceiling = total("tokens", False), total("most_tokens", True)
        clusters = self.data.holdout_summary()["clusters"]
        usable = clusters if self.rows.holdout is None else min(clusters, self.rows.holdout)
        return Forecast(
            signature=self.spec.name, models=self.models.names, modes=modes, clusters=usable, candidates=most, stages=stages,
            rows={"search": search, "select": select, "holdout": holdout}, model_calls=total("model_calls", False),
            most_model_calls=total("most_model_calls", True), tokens=tokens, most_tokens=ceiling,
            usd=forecasts.price(self.prices, first.name, tokens),
            most_usd=forecasts.price(self.prices, first.name, ceiling, most=True), mde=forecasts.detectable(usable, usable),
            openings=await self._openings(), recorded=self.models.free, proposers=tuple(p.name for p in self.proposers),
            budget=asdict(self.budget),
        )  # fmt: skip

    def _tell_rest(self, found: Mapping[str, Candidate], incumbent: Plan, searched: Sequence[RolloutRecord],
                   call_s: float | None) -> None:  # fmt: skip
        """After the search: what select and holdout will ask of the model, by what each mode asked on search rows."""
        if self.models.free:
            return
        asked: dict[str, list[int]] = {}
        for record in searched:
            asked.setdefault(str(record.receipt["mode"]), []).append(record.model_calls)
        per_run = {mode: sum(calls) / len(calls) for mode, calls in asked.items()}
        each = [per_run.get(one.plan.mode, 1.0) for one in found.values()]
        _, select, holdout = self._sizes()
        calls = select * sum(each) + holdout * (per_run.get(incumbent.mode, 1.0) + sum(each) / len(each))
        text = f"plan: about {calls:.0f} more model calls ({', '.join(f'{m} {c:.1f}' for m, c in per_run.items())} per run)"
        if call_s is not None:
            text += f", about {max(1, round(calls * call_s / 60))} min at the pace so far"
        budget = self.budget.model_calls
        if budget is not None:
            left = budget - self.models.purse.calls
            text += f"; the budget has {left} left" + (", likely too few" if left < calls else "")
        self.say(text)

    # --- stages

    async def _stages(self) -> CompileResult:
        await self._tell_plan()
        key = digest(self._inputs())
        champion, self.notes = self._champion()
        state = {"parent": champion.artifact_id if champion else None, "notes": self.notes}
        state, spent = await self.store.threaded(self.store.begin_compile, key, state)
        parent = self._parent(state)
        self.notes = list(state["notes"])
        if spent is not None:
            self.models.purse.restore(spent)
            self.say("plan: goes on where an earlier compile of the same inputs stopped")
        self.models.purse.kept = lambda data: self.store.keep_spending(key, data)
        self.reflect = Reflector(self.models, self.store, key)
        base = parent.plan if parent is not None else baseline_plan(self.spec, self.task.limits)
        base_model = parent.model_name if parent is not None and parent.model_name in self.models.names else self.models.names[0]
        self.compile_id = digest([self._inputs(), self._program_id(base, base_model), state["parent"]])

        purse = self.models.purse
        asked, started = purse.calls, time.monotonic()
        rows, records, lists = await self._search()
        asked, took_s = purse.calls - asked, time.monotonic() - started
        found = candidates(self.spec, self.modes, lists, records, rows, space=self.space, limits=self.task.limits,
                           success=self.success, models=self.models.names)  # fmt: skip
        found, records, lists = await self._proposals(found, rows, records, lists)
        incumbent = next((n for n, c in found.items() if (c.plan.plan_id, c.model) == (base.plan_id, base_model)), None)
        if incumbent is None:
            incumbent = "champion" if parent is not None else "baseline"
            shown = tuple(parent.evidence.demos.rows) if parent is not None else ()
            factors = {"mode": base.mode, "allow": "own", "prompt": "own", "model": base_model}
            found[incumbent] = Candidate(incumbent, base, base_model, factors, shown, incumbent)
        found = await self._prune(found, incumbent)
        self._tell_rest(found, base, records, took_s / asked if asked else None)
        purse.stage = "select"
        selected, result = await self._select(found, incumbent, records)
        measured = measure(found, selected, self.task.objective, self.effects)
        expected = {s.name: s.mean for s in result.ranking}
        most = max(s.n for s in result.ranking if s.finalist)  # who left after the last row is as well known
        among = [s.name for s in result.ranking if (s.finalist or s.n >= most) and s.name in measured]
        chosen, why = winner(measured, among, expected)
        purse.stage = "holdout"
        opened = await self._holdout(found[chosen], found[incumbent])
        environment = self.task.environment
        if environment is not None and environment.note and "simulat" in environment.note:
            self.notes.append(environment.note)
        if alike := self.data.holdout_alike():
            self.notes.append(f"{alike} of {self.data.holdout_summary()['rows']} sealed rows resemble sealed rows of other clusters "
                              "closely; clusters count as independent")  # fmt: skip
        live = set().union(*(one.live for one in self.evaluators.values()))
        if live:
            self.notes.append(live_reads(live))
        if not lists.exact:
            self.notes.append("the smallest allow-list was searched greedily: a smaller one may exist")
        compiled = await self._emit(found, lists, (rows, records), selected, opened, chosen, why, incumbent, parent, result, measured)
        await self.store.threaded(self.store.finish_compile, key)
        return compiled

    async def _search(self) -> tuple[list[Example], list[RolloutRecord], AllowLists]:
        rows = spread(self.data.split("search"), self.rows.search)
        seeds = {f"{mode}/{'none' if mode == 'direct' else 'all'}/seed": seed_plan(self.spec, mode, limits=self.task.limits)
                 for mode in self.modes}  # fmt: skip
        self.say(f"search: {len(seeds)} seed programs on {len(rows)} rows")
        evaluator = self.evaluators[self.models.names[0]]
        if self.task.objective.needs_cost:  # unknown costs show after one rollout, before the rest is paid for
            first = await evaluator.evaluate(dict([next(iter(seeds.items()))]), rows[:1], what="cost")
            self._check_costs(first)
        records = await evaluator.evaluate(seeds, rows, what="search")
        self.spending.add("search", records, self.models.names[0])
        lists = allow_lists(records, self.spec.tool_names, self.task.required, success=self.success)
        return rows, records, lists

    async def _proposals(
        self, found: dict[str, Candidate], rows: Sequence[Example], records: list[RolloutRecord], lists: AllowLists,
    ) -> tuple[dict[str, Candidate], list[RolloutRecord], AllowLists]:  # fmt: skip
        """What the proposers give, each of which sees what those before it ran."""
        every = list(records)
        split = self.data.split("search")
        allowed = {row.row_hash for row in split}
        ran = {row.row_hash for row in rows}
        more = [row for row in spread(split, None) if row.row_hash not in ran]
        pool = {name: Proposal(one.plan, one.factors["prompt"], one.rows) for name, one in found.items()
                if one.model == self.models.names[0]}  # fmt: skip
        run_as: dict[str, str] = {}  # the name under which a plan's records are, by its id
        for one in self.proposers:
            stage = self.models.purse.stage = f"search: {one.name}"
            self.say(f"search: {one.name}")
            made: list[RolloutRecord] = []

            async def evaluate(plans: Mapping[str, Plan], examples: Sequence[Example], model: str | None = None, /, *,
                               replicate: int = 0, made: list[RolloutRecord] = made,
                               stage: str = stage) -> list[RolloutRecord]:  # fmt: skip
                if not {example.row_hash for example in examples} <= allowed:
                    raise ContaminatedSplit("A proposer may run search rows only", value=stage,
                                            remedy="Use the rows of the search it was given.")  # fmt: skip
                name = model or self.models.names[0]
                if name not in self.evaluators:
                    raise UserError("No such model in this compile", value=name, remedy=f"Use {', '.join(self.models.names)}.")
                fresh = await self.evaluators[name].evaluate(plans, examples, replicate=replicate, what=stage)
                run_as.update({plan.plan_id: one for one, plan in plans.items()})
                made.extend(fresh)
                self.spending.add(stage, fresh, name)
                return fresh

            asked = len(self.reflect.asked)
            proposals = list(await one.propose(Search(
                spec=self.spec, toolbox=self.task.toolbox, limits=self.task.limits, required=tuple(self.task.required),  # type: ignore[arg-type]
                modes=self.modes, models=self.models.names, rows=rows, records=tuple(every), lists=lists, evaluate=evaluate,
                reflect=self.reflect, success=self.success, seed=self.seed, say=self.say, objective=self.task.objective,
                more=more, pool=dict(pool))))  # fmt: skip
            for proposal in proposals:
                self._check_proposal(one, proposal, allowed)
            before = set(found)
            found = with_proposals(found, [(one.name, proposal) for proposal in proposals], lists, self.models.names)
            for proposal in proposals:
                plan_id = proposal.plan.plan_id
                pool[run_as.get(plan_id, f"{one.name}: {proposal.prompt} {plan_id[7:19]}")] = proposal
            if self.reflect.asked[asked:]:
                self.spending.reflections.setdefault(stage, []).extend(self.reflect.asked[asked:])
            self.reports.append({
                "name": one.name, "revision": revision_of(one), "candidates": [n for n in found if n not in before],
                "rollouts": len({r.rollout_id for r in made}), "reflections": len(self.reflect.asked) - asked,
                "notes": [note for proposal in proposals for note in proposal.notes]})  # fmt: skip
            every += made
        return found, every, lists

    def _check_proposal(self, one: Proposer, proposal: Any, allowed: set[str]) -> None:
        if not isinstance(proposal, Proposal):
            raise UserError("A proposer gives proposals", value=f"{one.name}: {proposal!r}", remedy="Return dse.Proposal(...).")
        strange = sorted(set(proposal.rows) - allowed)
        if strange:
            raise ContaminatedSplit("A proposal shows rows that are not search rows", value=strange[0],
                                    remedy="Show rows of the search only.", proposer=one.name)  # fmt: skip
        check_plan(self.spec, proposal.plan)

    async def _prune(self, found: Mapping[str, Candidate], incumbent: str) -> dict[str, Candidate]:
        """Without the candidates of which it is certain, before any model call, that they cannot be used."""
        from dse.compiler.prune import why_not

        kept = {}
        for name, one in found.items():
            why = None
            if name != incumbent:
                assert self.task.toolbox is not None
                why = await why_not(self.spec, self.task.toolbox, one.plan, self.task.limits, self.prices,
                                    objective=self.task.objective, model=one.model)  # fmt: skip
            if why is None:
                kept[name] = one
            else:
                self.pruned[name] = why
        return kept

    def _check_costs(self, records: Sequence[RolloutRecord]) -> None:
        objective = self.task.objective
        if objective.needs_cost and any(r.cost_usd is None for r in records):
            raise unknown("cost", _field(objective, "cost_weight", "max_cost"))

    async def _select(self, found: Mapping[str, Candidate], incumbent: str,
                      searched: Sequence[RolloutRecord]) -> tuple[list[RolloutRecord], RaceResult]:  # fmt: skip
        rows = spread(self.data.split("select"), self.rows.select)
        _refuse_shown(found[incumbent].rows, {row.row_hash for row in rows}, "select")
        self.say(f"select: {len(found)} candidates on {len(rows)} rows")
        costs = self._unit_costs(found, searched)
        arms = [Arm(name, one.factors, costs[name]) for name, one in found.items()]
        protect = {incumbent, *sorted((n for n, c in found.items() if c.plan.mode == "direct"), key=lambda n: (costs[n], n))[:1]}
        budget = math.fsum(costs.values()) * len(rows) / 2 if self.allocation == "uniform" else None
        race = make_race(arms, [Item(row.row_hash, row.cluster) for row in rows], allocation=self.allocation, seed=self.seed,  # type: ignore[arg-type]
                         protect=sorted(protect), budget_units=budget)  # fmt: skip
        objective, most = self.task.objective, exposure(self.effects, self.effects)
        selected: list[RolloutRecord] = []
        while (batch := race.next()) is not None:
            outcomes = []
            for model in self.models.names:
                cells = [(name, item) for name, item, _ in batch if found[name].model == model]
                records = await self.evaluators[model].rollouts(
                    [(name, found[name].plan, rows[item]) for name, item in cells], what="select")  # fmt: skip
                self._check_costs(records)
                self.spending.add("select", records, model)
                selected += records
                for (name, item), record in zip(cells, records, strict=True):
                    removed = most - exposure(found[name].plan.allow, self.effects)
                    utility = objective.utility(record.score, record.cost_usd, record.latency_s, removed)
                    outcomes.append(Outcome(name, item, 0, utility, self._paid(record)))
            race.tell(outcomes)
        order = {row.row_hash: number for number, row in enumerate(rows)}
        names = {name: number for number, name in enumerate(found)}
        selected.sort(key=lambda r: (order[r.row_hash], names[r.candidate]))
        return selected, race.result()

    def _paid(self, record: RolloutRecord) -> float:
        """What a rollout took, in the race's unit: USD where there is a price table, else tokens."""
        if self.prices is not None and record.cost_usd is not None:
            return record.cost_usd
        return float((record.input_tokens or 0) + (record.output_tokens or 0))

    def _unit_costs(self, found: Mapping[str, Candidate], searched: Sequence[RolloutRecord]) -> dict[str, float]:
        """Expected per candidate: as its own search rollouts, else those of its mode, else the dearest mode's."""
        by_plan: dict[str, list[float]] = {}
        by_mode: dict[str, list[float]] = {}
        for record in searched:
            by_plan.setdefault(record.receipt["program_id"], []).append(self._paid(record))
            by_mode.setdefault(record.receipt["mode"], []).append(self._paid(record))
        means = {mode: math.fsum(paid) / len(paid) for mode, paid in by_mode.items()}
        costs = {}
        for name, one in found.items():
            own = by_plan.get(self._program_id(one.plan, one.model))
            costs[name] = math.fsum(own) / len(own) if own else means.get(one.plan.mode, max(means.values(), default=1.0))
        return costs

    async def _holdout(self, mine: Candidate, incumbent: Candidate) -> tuple[list[RolloutRecord], int]:
        """Open the sealed holdout, once, for the winner and the incumbent."""
        summary = self.data.holdout_summary()

        def choose(sealed: Sequence[Any]) -> list[Any]:
            chosen = spread(sealed, self.rows.holdout)
            _refuse_shown(incumbent.rows, {row.row_hash for row in chosen}, "holdout")
            return chosen

        rows = self.data.open_holdout(self.store, compile_id=self.compile_id, purpose=f"gate {self.spec.name}",
                                      select=choose)  # fmt: skip
        pair = {mine.name: mine, incumbent.name: incumbent}
        self.say(f"holdout: {' against '.join(pair)} on {len(rows)} of {summary['rows']} sealed rows")
        records: list[RolloutRecord] = []
        for replicate in range(self.replicates):
            for model in self.models.names:
                jobs = [(one.name, one.plan, row) for row in rows for one in pair.values() if one.model == model]
                made = await self.evaluators[model].rollouts(jobs, replicate=replicate, what="holdout")
                self._check_costs(made)
                self.spending.add("holdout", made, model)
                records += made
        return records, rows.openings

    # --- the incumbent

    def _champion(self) -> tuple[Artifact | None, list[str]]:
        """The champion if this task can run it; and why not, where it cannot."""
        try:
            champion = self.registry.get(f"{self.spec.name}@champion")
        except ArtifactNotFound:
            return None, []
        why = self._other(champion)
        return (None, [f"the champion is of {why}: compared with the baseline instead, and not replaced"]) if why else (champion, [])

    def _parent(self, state: Mapping[str, Any]) -> Artifact | None:
        return self.registry.get(f"{self.spec.name}@{state['parent']}") if state["parent"] else None

    def _other(self, champion: Artifact) -> str:
        """Why the champion cannot be run here; empty if it can."""
        toolbox = self.task.toolbox
        assert toolbox is not None
        if champion.program.signature.signature_id != self.spec.signature_id:
            return "another signature"
        model = self.models.by_name.get(champion.model_name)
        if needs_model(champion.plan) and (model is None or dict(champion.params) != dict(model.params)):
            return "another model"
        if any(name not in self.effects or toolbox[name].contract.interface_id != contract.interface_id
               for name, contract in champion.contracts.items()):  # fmt: skip
            return "other tools"
        return ""

    # --- identity

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
        options = {"objective": self.task.objective, "seed": self.seed, "alpha": 0.05 / max(1, openings)}
        finished = [s.name for s in race.ranking if s.finalist]
        pareto = front(measured, [name for name in finished if name in measured])
        costs = removals(measured, self.effects)

        def build(name: str) -> tuple[Artifact, GateResult]:
            rows = _paired(records, name, incumbent)
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
            spent=self.models.purse.spent(), accounts=self.spending.stages(), candidates=found, race=race, front=pareto,
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


def revision_of(one: Any) -> str:
    """What identifies a proposer: its settings where they are data, its source, or the ``revision`` that it states."""
    stated = getattr(one, "revision", None)
    if isinstance(stated, str) and stated:
        return stated
    settings: Any = asdict(one) if dataclasses.is_dataclass(one) and not isinstance(one, type) else vars(one)
    try:
        canonical_json(settings)
    except (Unserialisable, DseError, TypeError):
        settings = {name: repr(value)[:200] for name, value in settings.items() if isinstance(value, (str, int, float, bool, tuple))}
    return digest([source_revision(type(one)), settings])[7:19]


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
    """Per row the means over its replicates."""
    by_row: dict[str, dict[str, list[RolloutRecord]]] = {}
    for record in records:
        by_row.setdefault(record.row_hash, {}).setdefault(record.candidate, []).append(record)

    def mean(values: Sequence[float | None]) -> float | None:
        return None if None in values else math.fsum(v for v in values if v is not None) / len(values)

    def both(rows: Mapping[str, Sequence[RolloutRecord]], what: str) -> list[Any]:
        return [mean([getattr(r, what) for r in rows[name]]) for name in (candidate, incumbent)]

    return [PairedRow(row, rows[candidate][0].cluster, *both(rows, "score"), *both(rows, "cost_usd"), *both(rows, "latency_s"))
            for row, rows in by_row.items()]  # fmt: skip


def _label(model: Any) -> str:
    """What the completions are: the source that a recording names, or the model's name."""
    cassette = cassette_of(model)
    return str(model.name if cassette is None else cassette.header.source)
