"""Compile: find candidates, race them on the data, gate the winner on the sealed holdout, emit an artifact.

Search rows give allow-lists, demonstrations and proposals; candidates race on the same select rows; only the select
winner and the incumbent run on the sealed holdout, once. What the artifact says is a function of the inputs, the
registry and ledger at the start, and the recorded outcomes: a compile that was killed goes on, and ends alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse import telemetry
from dse.artifacts.registry import Registry
from dse.canonical import digest
from dse.compiler import holdout
from dse.compiler.allowlist import AllowLists, allow_lists
from dse.compiler.budget import Budget
from dse.compiler.choose import measure, winner
from dse.compiler.emit import Course, emit
from dse.compiler.evidence import Spending
from dse.compiler.forecast import Forecast
from dse.compiler.identity import inputs_of
from dse.compiler.incumbent import champion_of, incumbent_of
from dse.compiler.models import Models, Reflector
from dse.compiler.options import Options
from dse.compiler.preflight import Preflight, check_data
from dse.compiler.proposing import with_proposed
from dse.compiler.prune import prune
from dse.compiler.result import CompileResult, Rows
from dse.compiler.rollouts import Rollouts
from dse.compiler.search import Proposer
from dse.compiler.selecting import select
from dse.compiler.space import Space, candidates
from dse.errors import BudgetExhausted
from dse.evaluation.evaluator import Evaluator, Progress, RolloutRecord, cassette_of, live_reads
from dse.evaluation.executor import Executor, executor_for
from dse.evaluation.judge import Meter
from dse.evaluation.task import Task
from dse.portal import run_sync
from dse.store.place import parsed
from dse.strategies.base import seed_plan
from dse.threads import have

if TYPE_CHECKING:
    from dse.evaluation.dataset import Example
    from dse.models.prices import PriceTable
    from dse.store.journal import Store

__all__ = ["CompileResult", "Rows", "acompile", "aforecast", "compile", "forecast"]


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
        replicates: runs of each select and holdout row, whose mean counts; more where the model is stochastic.
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
    return await _compile(Options(task, **options))


def forecast(task: Task, **options: Any) -> Forecast:
    """What `compile` with the same arguments will take. Asks no model, runs no tool, opens no holdout, makes no file."""
    return run_sync(lambda: aforecast(task, **options))


async def aforecast(task: Task, **options: Any) -> Forecast:
    """`forecast` for async code."""
    return await _forecast(Options(task, **options))


async def _forecast(options: Options) -> Forecast:
    from dse.store.journal import opened

    check_data(options)
    with opened(_if_there(options.store_place)) as store:
        models = Models(options.lm, options.reflection_lm, budget=options.budget, prices=options.prices, record=options.record,
                        make=False)  # fmt: skip
        try:
            preflight = Preflight(options, models, store)
            preflight.check_objective()
            return await preflight.forecast()
        finally:
            await models.aclose()


@telemetry.compiling
async def _compile(options: Options) -> CompileResult:
    """With everything opened that a compile needs, and closed again."""
    from dse.store.journal import opened

    check_data(options)
    with opened(options.store_place) as store:
        models = Models(options.lm, options.reflection_lm, budget=options.budget, prices=options.prices, record=options.record)
        try:
            preflight = Preflight(options, models, store)
            preflight.check_objective()
            label = options.model_label or _label(models.default)
            runner = executor_for(options.executor)
            try:
                compiling = _Compile(options, models, store, _rollouts(options, models, store, runner), preflight, label)
                return await compiling.run()
            finally:
                if runner is not options.executor:
                    await runner.aclose()
        finally:
            await models.aclose()


def _rollouts(options: Options, models: Models, store: Store, runner: Executor) -> Rollouts:
    judges, judge = Meter(models.judging), options.task.metric.judge
    evaluators = {
        name: Evaluator(options.task, model, store, concurrency=options.concurrency, prices=options.prices, executor=runner,
                        judge_meter=judges, progress=options.progress, pay=models.purse.pay_tool,
                        before_pause=models.budgeted[name].before_wait)
        for name, model in models.by_name.items()
    }  # fmt: skip
    return Rollouts(evaluators, options.task.objective, Spending(None if judge is None else str(judge.identity["model"])))


class _Compile:
    """One compile, by the one process that is at it."""

    def __init__(self, options: Options, models: Models, store: Store, runs: Rollouts, preflight: Preflight, label: str) -> None:
        self.options, self.models, self.store, self.runs = options, models, store, runs
        self.preflight, self.label = preflight, label

    async def run(self) -> CompileResult:
        """Take it from its beginning, or from where an earlier process stopped."""
        options, purse, store = self.options, self.models.purse, self.store
        await self.preflight.tell_plan()
        inputs = inputs_of(options, self.models)
        key = digest(inputs)
        champion, notes = champion_of(options, self.models)
        state: dict[str, Any] = {"parent": champion.artifact_id if champion else None, "notes": notes}
        state, spent = await have(
            lambda: store.begin_compile(key, state, take_over=options.take_over), lambda _: store.leave_compile(key),
            store.threaded)  # fmt: skip
        try:
            if spent is not None:
                purse.restore(spent)
                options.say("plan: goes on where an earlier compile of the same inputs stopped")
            purse.kept = lambda data: store.keep_spending(key, data)
            compiled = await self._stages(inputs, key, state)
            await store.threaded(store.finish_compile, key)
            return compiled
        except BudgetExhausted as exc:  # requests that were under way have ended since
            exc.details["spent"] = spent_now = purse.spent()
            exc.value = str(spent_now)
            raise
        finally:
            purse.kept = None
            await asyncio.shield(asyncio.ensure_future(store.threaded(store.leave_compile, key)))

    async def _stages(self, inputs: Mapping[str, Any], key: str, state: Mapping[str, Any]) -> CompileResult:
        """Search, select, holdout.

        Args:
            inputs, key: of this compile, see `inputs_of`.
            state: what was so when it began: the champion then, and what a reader should know of it.
        """
        options, models, runs, purse = self.options, self.models, self.runs, self.models.purse
        base = incumbent_of(options, models, state["parent"])
        program_id = runs.program_id(base.plan, base.model)
        compile_id = digest([inputs, program_id, base.parent_id])
        # An artifact that was kept, and is now the champion with the same program, makes no other look of the same compile.
        look_id = digest([inputs, program_id, None])

        asked, started = purse.calls, time.monotonic()
        rows, records, lists = await self._search()
        asked, took_s = purse.calls - asked, time.monotonic() - started
        found = candidates(options.spec, options.modes, lists, records, rows, space=options.space, limits=options.task.limits,
                           success=options.success, models=models.names)  # fmt: skip
        found, records, reports = await with_proposed(
            options, models, runs, Reflector(models, self.store, key), found, rows, records, lists)  # fmt: skip
        incumbent, found = base.among(found)
        found, pruned = await prune(
            found, incumbent, options.spec, options.toolbox, limits=options.task.limits, required=options.task.required,
            prices=options.prices, objective=options.task.objective)  # fmt: skip
        self.preflight.tell_rest(found, base.plan, records, took_s / asked if asked else None)

        purse.stage = "select"
        selected, race = await select(options, runs, found, incumbent, records)
        measured = measure(found, selected, options.task.objective, options.effects)
        expected = {s.name: s.mean for s in race.ranking if s.mean is not None}
        most = max((s.n for s in race.ranking if s.finalist and s.name in measured), default=0)
        among = [s.name for s in race.ranking if (s.finalist or s.n >= most) and s.name in measured]  # who left last is as well known
        chosen, why = winner(measured, among, expected)

        purse.stage = "holdout"
        sealed, openings = await holdout.meet(options, self.store, runs, found[chosen], found[incumbent], look_id)
        notes = [*(str(note) for note in state["notes"] or ()), *_notes(options, runs, lists)]
        return await emit(options, models, self.store, runs, Course(
            compile_id=compile_id, label=self.label, parent=base.parent, searched=records, lists=lists, reports=reports,
            candidates=found, incumbent=incumbent, pruned=pruned, selected=selected, race=race, measured=measured,
            winner=chosen, why=why, sealed=sealed, openings=openings, notes=notes))  # fmt: skip

    async def _search(self) -> tuple[list[Example], list[RolloutRecord], AllowLists]:
        """The seed program of each mode on the search rows."""
        options, runs = self.options, self.runs
        rows = options.search_rows()
        seeds = {f"{mode}/{'none' if mode == 'direct' else 'all'}/seed": seed_plan(options.spec, mode, limits=options.task.limits)
                 for mode in options.modes}  # fmt: skip
        options.say(f"search: {len(seeds)} seed programs on {len(rows)} rows")
        await runs.check_cost(next(iter(seeds.items())), rows[0])
        records = await runs.every("search", seeds, rows, runs.models[0])
        lists = allow_lists(records, options.spec.tool_names, options.task.required, success=options.success)
        return rows, records, lists


def _notes(options: Options, runs: Rollouts, lists: AllowLists) -> list[str]:
    """What a reader of the result should know."""
    notes = []
    environment = options.task.environment
    if environment is not None and environment.note and "simulat" in environment.note:
        notes.append(environment.note)
    if alike := options.data.holdout_alike():
        notes.append(f"{alike} of {options.data.holdout_summary()['rows']} sealed rows resemble sealed rows of other clusters "
                     "closely; clusters count as independent")  # fmt: skip
    if live := runs.live():
        notes.append(live_reads(live))
    if not lists.exact:
        notes.append("the smallest allow-list was searched greedily: a smaller one may exist")
    return notes


def _if_there(store: Any) -> Any:
    """Where a store is, or one in memory in place of a file that would have to be made."""
    if isinstance(store, (str, Path)):
        file = parsed(str(store))[1]
        if file is not None and not file.exists():
            return ":memory:"
    return store


def _label(model: Any) -> str:
    """What the completions are: the source that a recording names, or the model's name."""
    cassette = cassette_of(model)
    return str(model.name if cassette is None else cassette.header.source)
