"""Compile: find candidates, race them on the data, gate the winner on the sealed holdout, emit an artifact.

Search rows give allow-lists, demonstrations and proposals; candidates race on the same select rows; only the select
winner and the incumbent run on the sealed holdout, once. What the artifact says is a function of the inputs, the
registry and ledger at the start, and the recorded outcomes: a compile that was killed goes on, and ends alike.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse import telemetry
from dse.artifacts.artifact import Artifact
from dse.artifacts.registry import Registry
from dse.canonical import digest
from dse.compiler.allowlist import AllowLists, allow_lists, exposure
from dse.compiler.budget import Budget
from dse.compiler.choose import measure, out_of_limits, winner
from dse.compiler.emit import Emit
from dse.compiler.evidence import Spending
from dse.compiler.forecast import Forecast
from dse.compiler.models import Models, Reflector
from dse.compiler.race import Arm, Item, Outcome, RaceResult, make_race
from dse.compiler.result import CompileResult, Rows
from dse.compiler.revision import revision_of
from dse.compiler.search import Proposal, Proposer, Search
from dse.compiler.space import Candidate, Space, candidates, fitting_modes, with_proposals
from dse.errors import ArtifactNotFound, BudgetExhausted, ContaminatedSplit, UserError
from dse.evaluation.evaluator import Evaluator, Progress, RolloutRecord, cassette_of, live_reads
from dse.evaluation.executor import Executor, check_executor, executor_for
from dse.evaluation.judge import Meter
from dse.evaluation.sampling import spread
from dse.evaluation.task import Task
from dse.objective import unknown
from dse.plan import Plan
from dse.portal import run_sync
from dse.store.place import parsed
from dse.store.tables import UNTESTED
from dse.strategies.base import baseline_plan, check_plan, needs_model, seed_plan
from dse.threads import have

if TYPE_CHECKING:
    from dse.evaluation.dataset import Dataset, Example
    from dse.models.prices import PriceTable
    from dse.store.journal import Store

__all__ = ["CompileResult", "Rows", "acompile", "aforecast", "compile", "forecast"]

ALLOCATIONS = ("race", "grid", "uniform", "sign_test")


def compile(
    task: Task, *, lm: Any, registry: Registry | str | Path = "artifacts", store: Store | str | Path | None = None,
    budget: Budget | None = None, prices: PriceTable | None = None, rows: Rows | None = None, space: Space | None = None,
    search: Sequence[Proposer] = (), reflection_lm: Any = None, allocation: str = "race", replicates: int = 1,
    executor: Executor | str = "local", record: str | Path | Sequence[str | Path] | None = None, concurrency: int = 8, seed: int = 0, success: float = 1.0,
    progress: Progress | None = None, say: Callable[[str], None] | None = None, model_label: str | None = None,
    take_over: bool = False,
) -> CompileResult:  # fmt: skip
    """Compile a task against its dataset.

    Started again after it was stopped or killed, the same call goes on: nothing that was answered is paid for twice, and
    it ends with the artifact of an undisturbed run. While a process is at it, the same call on the same store is refused
    everywhere else.

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
        take_over: go on with this compile also when a process on another machine, whose end nobody here can see, had it last.

    Raises:
        DatasetError, EnvironmentRequired, BudgetExhausted, InfrastructureError, UserError
        CompileTaken: another process is at this compile.
    """
    return run_sync(lambda: acompile(
        task, lm=lm, registry=registry, store=store, budget=budget, prices=prices, rows=rows, space=space, search=search,
        reflection_lm=reflection_lm, allocation=allocation, replicates=replicates, executor=executor, record=record,
        concurrency=concurrency, seed=seed, success=success, progress=progress, say=say, model_label=model_label,
        take_over=take_over))  # fmt: skip


async def acompile(task: Task, **options: Any) -> CompileResult:
    """`compile` for async code; same arguments."""
    return await _Compile(task, **options).run()


def forecast(task: Task, **options: Any) -> Forecast:
    """What `compile` with the same arguments will take. Asks no model, runs no tool, opens no holdout, makes no file."""
    return run_sync(lambda: aforecast(task, **options))


async def aforecast(task: Task, **options: Any) -> Forecast:
    """`forecast` for async code."""
    return await _Compile(task, **options).ahead()


class _Compile(Emit):
    store: Store
    models: Models
    evaluators: Mapping[str, Evaluator]
    reflect: Reflector
    judges: Meter
    compile_id: str
    look_id: str

    def __init__(
        self, task: Task, *, lm: Any, registry: Registry | str | Path = "artifacts", store: Any = None,
        budget: Budget | None = None, prices: PriceTable | None = None, rows: Rows | None = None, space: Space | None = None,
        search: Sequence[Proposer] = (), reflection_lm: Any = None, allocation: str = "race", replicates: int = 1,
        executor: Executor | str = "local", record: Any = None, concurrency: int = 8, seed: int = 0, success: float = 1.0, progress: Progress | None = None,
        say: Callable[[str], None] | None = None, model_label: str | None = None, take_over: bool = False,
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
        self.label, self.take_over = model_label, take_over
        self.notes: list[str] = []
        judge = task.metric.judge
        self.spending = Spending(None if judge is None else str(judge.identity["model"]))
        self.reports: list[dict[str, Any]] = []  # of proposers
        self.pruned: dict[str, str] = {}
        self.started = time.monotonic()
        self.data: Dataset = task.load_dataset()
        self.modes = fitting_modes(self.spec, task.modes)
        assert task.toolbox is not None
        self.effects = {name: task.toolbox[name].contract.effect for name in self.spec.tool_names}

    @telemetry.compiling
    async def run(self) -> CompileResult:
        return await self._with_models()

    async def ahead(self) -> Forecast:
        from dse.store.journal import opened

        self._check_data()
        with opened(_if_there(self.store_place)) as self.store:
            self.models = Models(self.lm, self.reflection_lm, budget=self.budget, prices=self.prices, record=self.record, make=False)
            try:
                self._check_objective()
                return await self._forecast()
            finally:
                await self.models.aclose()

    async def _with_models(self) -> CompileResult:
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
                    return await self._stages()
                finally:
                    if runner is not self.executor:
                        await runner.aclose()
            finally:
                await self.models.aclose()

    def _evaluator(self, name: str, runner: Executor) -> Evaluator:
        return Evaluator(self.task, self.models.by_name[name], self.store, concurrency=self.concurrency, prices=self.prices,
                         executor=runner, judge_meter=self.judges, progress=self.progress, pay=self.models.purse.pay_tool, before_pause=self.models.budgeted[name].before_wait)  # fmt: skip

    def _check_objective(self) -> None:
        objective = self.task.objective
        self._check_judge()
        for name, model in self.models.by_name.items():
            cassette = cassette_of(model)
            if objective.needs_cost and not self.models.cost_can_be_known(name):
                raise unknown("cost", _field(objective, "cost_weight", "max_cost"))
            if objective.needs_latency and cassette is not None and cassette.header.latency != "representative":
                raise unknown("latency", _field(objective, "latency_weight", "max_p95_latency_s"))

    # --- stages

    async def _stages(self) -> CompileResult:
        await self._tell_plan()
        key = digest(self._inputs())
        champion, self.notes = self._champion()
        state: dict[str, Any] = {"parent": champion.artifact_id if champion else None, "notes": self.notes}
        state, spent = await have(
            lambda: self.store.begin_compile(key, state, take_over=self.take_over), lambda _: self.store.leave_compile(key),
            self.store.threaded)  # fmt: skip
        try:
            compiled = await self._begun(key, state, spent)
            await self.store.threaded(self.store.finish_compile, key)
            return compiled
        except BudgetExhausted as exc:  # requests that were under way have ended since
            exc.details["spent"] = spent_now = self.models.purse.spent()
            exc.value = str(spent_now)
            raise
        finally:
            self.models.purse.kept = None
            await asyncio.shield(asyncio.ensure_future(self.store.threaded(self.store.leave_compile, key)))

    async def _begun(self, key: str, state: Mapping[str, Any], spent: Mapping[str, Any] | None) -> CompileResult:
        parent = self._parent(state)
        self.notes = [str(note) for note in state["notes"] or ()]
        if spent is not None:
            self.models.purse.restore(spent)
            self.say("plan: goes on where an earlier compile of the same inputs stopped")
        self.models.purse.kept = lambda data: self.store.keep_spending(key, data)
        self.reflect = Reflector(self.models, self.store, key)
        base = parent.plan if parent is not None else baseline_plan(self.spec, self.task.limits)
        base_model = parent.model_name if parent is not None and parent.model_name in self.models.names else self.models.names[0]
        self.compile_id = digest([self._inputs(), self._program_id(base, base_model), state["parent"]])
        # An artifact that was kept, and is now the champion with the same program, makes no other look of the same compile.
        self.look_id = digest([self._inputs(), self._program_id(base, base_model), None])

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
        expected = {s.name: s.mean for s in result.ranking if s.mean is not None}
        most = max((s.n for s in result.ranking if s.finalist and s.name in measured), default=0)
        among = [s.name for s in result.ranking if (s.finalist or s.n >= most) and s.name in measured]  # who left last is as well known
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
        return await self._emit(found, lists, (rows, records), selected, opened, chosen, why, incumbent, parent, result, measured)

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

            async def reflect(prompt: str) -> str:  # the reflector holds the store: rollouts on all rows that were ever opened
                return await self.reflect(prompt)

            asked = len(self.reflect.asked)
            proposals = list(await one.propose(Search(
                spec=self.spec, toolbox=self.task.toolbox, limits=self.task.limits, required=tuple(self.task.required),  # type: ignore[arg-type]
                modes=self.modes, models=self.models.names, rows=rows, records=tuple(every), lists=lists, evaluate=evaluate,
                reflect=reflect, success=self.success, seed=self.seed, say=self.say, objective=self.task.objective,
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
        demos = [demo for prompt in proposal.plan.components.values() for demo in prompt.demos]
        shown = [{name: demo[name] for name in self.spec.inputs if name in demo} for demo in demos]
        shown += [demo["inputs"] for demo in demos if isinstance(demo.get("inputs"), Mapping)]
        if beyond := self.data.beyond_search(shown):
            raise ContaminatedSplit("A proposal demonstrates rows that are not search rows", value=", ".join(beyond),
                                    remedy="Show rows of the search only.", proposer=one.name)  # fmt: skip
        if quoted := self.data.quoted(_texts(proposal.plan)):
            raise ContaminatedSplit("A proposal quotes inputs of rows that are not search rows", value=", ".join(quoted),
                                    remedy="Show rows of the search only.", proposer=one.name)  # fmt: skip

    async def _prune(self, found: Mapping[str, Candidate], incumbent: str) -> dict[str, Candidate]:
        """Without the candidates of which it is certain, before any model call, that they cannot be used."""
        from dse.compiler.prune import why_not

        kept = {}
        for name, one in found.items():
            why = None
            if name != incumbent:
                assert self.task.toolbox is not None
                if missing := sorted(set(self.task.required) - set(one.plan.allow)):
                    self.pruned[name] = f"it cannot call what the task requires: {', '.join(missing)}"
                    continue
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
        of_arm: dict[str, list[RolloutRecord]] = {name: [] for name in found}
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
                    of_arm[name].append(record)
            over = {name: out_of_limits(mine, objective) for name, mine in of_arm.items()}
            race.tell(outcomes, {name: limit for name, limit in over.items() if limit})
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

        # Another winner of the same compile is another look: a proposer may have changed in a way that its revision misses.
        programs = dict.fromkeys(self._program_id(one.plan, one.model)[7:19] for one in (mine, incumbent))
        kind = "gate" if len(programs) > 1 else UNTESTED
        rows = self.data.open_holdout(self.store, compile_id=self.look_id, select=choose,
                                      purpose=f"{kind} {self.spec.name}: {' against '.join(programs)}")  # fmt: skip
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


def _texts(plan: Plan) -> list[str]:
    """Every text of a plan that a model reads or a script holds."""
    found: list[str] = []
    pending: list[Any] = [plan.model_dump(mode="json")]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, (dict, list)):
            pending.extend(value.values() if isinstance(value, dict) else value)
    with contextlib.suppress(SyntaxError):  # pruning says so
        tree = ast.parse(plan.script or "")
        found += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return found + [text for stage in plan.stages for text in _texts(stage)]


def _if_there(store: Any) -> Any:
    """Where a store is, or one in memory in place of a file that would have to be made."""
    if isinstance(store, (str, Path)):
        file = parsed(str(store))[1]
        if file is not None and not file.exists():
            return ":memory:"
    return store


def _field(objective: Any, weight: str, limit: str) -> str:
    return weight if getattr(objective, weight) else limit


def _refuse_shown(shown: Sequence[str], rows: set[str], split: str) -> None:
    """The incumbent's demonstrations come from an earlier compile, maybe of other splits."""
    both = sorted(rows & set(shown))
    if both:
        raise ContaminatedSplit(f"The champion's demonstrations are among the {split} rows", value=both[0],
                                remedy="Splits are kept for good: pass the earlier assignment, or promote a program "
                                       "without these demonstrations first.", rows=both)  # fmt: skip


def _label(model: Any) -> str:
    """What the completions are: the source that a recording names, or the model's name."""
    cassette = cassette_of(model)
    return str(model.name if cassette is None else cassette.header.source)
