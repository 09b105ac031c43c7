"""The evaluator: candidates x examples, once each, recorded.

A rollout is one run of one candidate on one example. Its id covers everything that could change what happens
(program, row, replicate, environment, implementations, semantics), so a rollout that is in the store is never
run again, and a changed metric only scores again. A candidate's failure is a score of 0; a failure of anything
else is retried and then aborts the evaluation.
"""

from __future__ import annotations

import contextlib
import functools
import random
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from dse import telemetry
from dse.canonical import digest
from dse.errors import (
    BudgetExhausted,
    CassetteMiss,
    CompileTaken,
    EnvironmentRequired,
    InfrastructureError,
)
from dse.evaluation.executor import Executor, check_executor, executor_for
from dse.evaluation.judge import Meter
from dse.evaluation.metric import MetricContext, Score
from dse.evaluation.rollout import Answered, Pay, Rollout, cassette_of
from dse.evaluation.task import Task
from dse.plan import SEMANTICS_VERSION, Plan
from dse.program import Prediction, Program
from dse.store.rollouts import Scored
from dse.store.together import Together
from dse.strategies.base import seed_plan

if TYPE_CHECKING:
    from dse.evaluation.dataset import Example
    from dse.models.lm import Completion, LanguageModel
    from dse.models.prices import PriceTable
    from dse.store.journal import Store

__all__ = ["Evaluator", "LiveReads", "RolloutRecord", "cassette_of", "evaluate", "summarise"]

Progress = Callable[[str, int, int], None]


class LiveReads(UserWarning):
    """Read tools run outside an environment: the evidence depends on the live world."""


@dataclass(frozen=True)
class RolloutRecord:
    """One scored rollout.

    Attributes:
        score: in [0, 1]; 0 for a candidate's failure.
        outcome: ``ok`` or ``failed``; `error_class` says why it failed.
        cost_usd: of model and tools; None where unknown; `cost_source` is ``exact``, ``estimated`` or ``unknown``.
        latency_s: seconds of all the model's answers together; `latency_source` is ``recorded`` where a cassette
            holds them (a replay gives the same), else ``measured``.
        reused: it was in the store already.
    """

    rollout_id: str
    candidate: str
    row_id: str
    row_hash: str
    cluster: str
    score: float
    components: Mapping[str, float]
    feedback: str
    outcome: str
    error_class: str | None
    outputs: Mapping[str, Any] | None
    receipt: Mapping[str, Any]
    journal: Sequence[Mapping[str, Any]]
    model_calls: int
    tool_calls: int
    input_tokens: int
    output_tokens: int
    usage_source: str
    cost_usd: float | None
    cost_source: str
    latency_s: float
    latency_source: str
    reused: bool = False

    def __repr__(self) -> str:  # receipt and journal would fill a page
        error = f" {self.error_class}" if self.error_class else ""
        return f"<dse.RolloutRecord {self.candidate} row {self.row_id!r}: score {self.score:.3g}, {self.outcome}{error}>"

    @property
    def used_tools(self) -> frozenset[str]:
        """Tools that gave a result in this run."""
        return frozenset(c["tool"] for c in self.receipt["calls"] if c["outcome"] == "ok")


@dataclass
class Evaluator:
    """Runs candidates on examples.

    Args:
        task: signature, metric, environment, toolbox.
        model: shared by all candidates.
        store: where rollouts and scores are kept; a private one in memory by default.
        concurrency: rollouts at a time.
        attempts: of one rollout whose infrastructure fails, in a row that gets no further, with growing pauses
            between them. What the model answered in an earlier attempt is not asked for again, also not when this
            evaluator is asked again after a failure.
        base_pause_s: the pause after the k-th of them is ``base_pause_s * 2**(k-1)`` and up to a quarter more, and at
            least what the endpoint asks for; one that asks for more than `max_pause_s` is not waited for.
        before_pause: called with the seconds before each pause; what it raises ends the evaluation.
        sleep: waits between attempts.
        progress: called with (what, done, total).
        prices: costs are this table's, also those of rollouts that were stored under another one.
        executor: where rollouts run: ``local`` (this process), ``ray`` (a Ray cluster, by default one on this machine), or
            an `Executor`, which stays open. The model is asked, metrics are computed and the store is written here.
        judge_meter: counts what a judge metric uses, and can put a budget around its model.
        pay: awaited with name and price before a tool that has a price is executed; what it raises ends the evaluation.

    ``live`` names the read tools that candidates may call outside an environment.
    """

    task: Task
    model: LanguageModel | None
    store: Store | None = None
    concurrency: int = 8
    attempts: int = 8
    base_pause_s: float = 0.5
    max_pause_s: float = 120.0
    before_pause: Callable[[float], None] | None = None
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    progress: Progress | None = None
    prices: PriceTable | None = None
    executor: Executor | str = "local"
    judge_meter: Meter = field(default_factory=Meter)
    pay: Pay | None = None
    live: set[str] = field(default_factory=set)
    _programs: dict[str, Program] = field(default_factory=dict)
    _underway: dict[str, anyio.Lock] = field(default_factory=dict)
    _answers: dict[str, dict[str, Completion]] = field(default_factory=dict)
    _pauses: set[anyio.CancelScope] = field(default_factory=set)
    _ending: bool = False
    _started: Executor | None = None

    def __post_init__(self) -> None:
        if self.store is None:
            from dse.store.journal import Store

            self.store = Store(":memory:")
        check_executor(self.executor)
        self._rows: Together[Mapping[str, Any], dict[str, Any]] = Together(self.store, self.store.save_rollouts)
        self._scores: Together[Scored, dict[str, Any]] = Together(self.store, self.store.save_scores)

    def _executor(self) -> Executor:
        if self._started is None:
            self._started = executor_for(self.executor)
        return self._started

    async def aclose(self) -> None:
        """End the workers, where this evaluator started them."""
        if self._started is not None and self._started is not self.executor:
            started, self._started = self._started, None
            await started.aclose()

    async def __aenter__(self) -> Evaluator:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def program(self, plan: Plan) -> Program:
        if plan.plan_id not in self._programs:
            self._check_effects(plan)
            self._programs[plan.plan_id] = Program(
                self.task.signature, plan, lm=self.model, toolbox=self.task.toolbox, deps=self.task.deps,
                checks=tuple(self.task.checks),
            )  # fmt: skip
        return self._programs[plan.plan_id]

    def _check_effects(self, plan: Plan) -> None:
        if self.task.environment is not None:
            return
        assert self.task.toolbox is not None
        effects = {name: self.task.toolbox[name].contract.effect for name in plan.allow}
        writes = sorted(name for name, effect in effects.items() if effect == "write")
        if writes:
            raise EnvironmentRequired("Write tools would run outside an environment", value=", ".join(writes),
                                      remedy="Give the task an environment=, a fresh world per rollout.")  # fmt: skip
        reads = sorted(name for name, effect in effects.items() if effect == "read")
        if reads:
            self.live.update(reads)
            warnings.warn(live_reads(reads), LiveReads, stacklevel=4)

    def rollout_id(self, program: Program, example: Example, replicate: int = 0) -> str:
        """Everything that could change what happens, as one id."""
        environment = self.task.environment
        # Prices are arithmetic on tokens, unless a run can end because of them.
        prices = self.prices.to_dict() if self.prices and program.plan.limits.cost_usd is not None else None
        return digest({
            "program": program.program_id, "row": example.row_hash, "replicate": replicate,
            "environment": [environment.name, environment.revision] if environment else None,
            "toolbox": program.toolbox.revision(program.plan.allow), "semantics": SEMANTICS_VERSION,
            **({"prices": prices} if prices else {}),
        })  # fmt: skip

    async def evaluate(
        self, candidates: Mapping[str, Plan], examples: Sequence[Example], *, replicate: int = 0, what: str = "rollouts"
    ) -> list[RolloutRecord]:
        """All candidates on all examples; in the order (example, candidate).

        After a failure no further rollout starts and none waits to be tried again; those under way end and are stored,
        then the failure is raised.

        Raises:
            InfrastructureError: it lasted longer than the attempts.
            BudgetExhausted, UserError
        """
        jobs = [(name, plan, example) for example in examples for name, plan in candidates.items()]
        return await self.rollouts(jobs, replicate=replicate, what=what)

    async def rollouts(
        self, jobs: Sequence[tuple[str, Plan, Example]], *, replicate: int = 0, what: str = "rollouts"
    ) -> list[RolloutRecord]:
        """`evaluate` for any pairs of a named candidate and an example, in their order."""
        known = await self._known([self.rollout_id(self.program(plan), example, replicate) for _, plan, example in jobs])
        results: list[RolloutRecord | None] = [None] * len(jobs)
        failures: list[Exception] = []
        slots = anyio.Semaphore(max(1, self.concurrency))
        self._ending = False
        done = 0

        async def one(index: int) -> None:
            nonlocal done
            async with slots:
                if failures:
                    return
                try:
                    results[index] = await self.rollout(*jobs[index], replicate, known)
                except Exception as exc:
                    failures.append(exc)
                    self._ending = True
                    for pause in self._pauses:
                        pause.cancel()
                    return
            done += 1
            if self.progress:
                self.progress(what, done, len(jobs))

        async with anyio.create_task_group() as group:
            for index in range(len(jobs)):
                group.start_soon(one, index)
        if failures:
            raise _first(failures)
        return [r for r in results if r is not None]

    async def _known(self, ids: Sequence[str]) -> _Known:
        """What the store has of these rollouts, read together."""
        store = self.store
        assert store is not None
        return _Known(await store.threaded(store.rollouts_of, ids), await store.threaded(store.scores_of, ids, self._metric_id))

    @property
    def _metric_id(self) -> str:
        return f"{self.task.metric.name}@{self.task.metric.revision}"

    @telemetry.rollout
    async def rollout(self, name: str, plan: Plan, example: Example, replicate: int = 0,
                      known: _Known | None = None) -> RolloutRecord:  # fmt: skip
        """One rollout, from the store if it is there, and its score.

        Args:
            known: what the store has of it; default: it is looked up.
        """
        program = self.program(plan)
        rollout_id = self.rollout_id(program, example, replicate)
        async with self._underway.setdefault(rollout_id, anyio.Lock()):  # two names of one plan run once
            known = known if known is not None else await self._known([rollout_id])
            row, reused = known.rows.get(rollout_id), True
            if row is None:
                # As it was written down, so that a first run and a resumed one go on with the same data to the last detail.
                row, reused = await self._rows(await self._run(program, example, rollout_id, replicate)), False
                known.rows[rollout_id] = row
            scored = known.scores.get(rollout_id)
            if scored is None:
                scored = known.scores[rollout_id] = await self._scored(program, row, example)
        cost, cost_source = self._cost(row)
        return RolloutRecord(
            rollout_id=rollout_id, candidate=name, row_id=example.id, row_hash=example.row_hash, cluster=example.cluster,
            score=scored["value"], components=scored["components"], feedback=scored["feedback"] or "", reused=reused,
            journal=row["journal"], cost_usd=cost, cost_source=cost_source,
            **{k: row[k] for k in ("outcome", "error_class", "outputs", "receipt", "model_calls", "tool_calls",
                                   "input_tokens", "output_tokens", "usage_source", "latency_s", "latency_source")},
        )  # fmt: skip

    async def _scored(self, program: Program, row: Mapping[str, Any], example: Example) -> dict[str, Any]:
        scored = await self._score(program, row, example)
        return await self._scores(Scored(row["rollout_id"], self._metric_id, scored["value"], scored["feedback"],
                                         scored["components"]))  # fmt: skip

    def _cost(self, row: Mapping[str, Any]) -> tuple[float | None, str]:
        if self.prices is None or not row["model_calls"]:
            return row["cost_usd"], row["cost_source"]
        from dse.models.lm import Usage

        usage = Usage(row["input_tokens"], row["output_tokens"], row["usage_source"])
        cost, source = self.prices.cost(row["model"], usage)
        return (None, source) if cost is None else (cost + row["receipt"]["usage"]["tool_cost_usd"], source)

    async def _run(self, program: Program, example: Example, rollout_id: str, replicate: int) -> dict[str, Any]:
        from dse.models.lm import wait_asked_for

        rollout = Rollout(rollout_id, program, example, replicate, self.task.environment, self.task.deps,
                          kept=cassette_of(program.lm) is not None, pay=self.pay)  # fmt: skip
        answers = self._answers.get(rollout_id)
        keep = None
        if program.lm is not None and not rollout.kept:  # a recording keeps them itself
            keep = functools.partial(self._keep_answer, rollout_id)
        if answers is None:
            assert self.store is not None
            answers = await self.store.threaded(self.store.answers, rollout_id) if keep else {}
            self._answers[rollout_id] = answers
        tries, furthest = 0, -1
        while True:
            model = None if program.lm is None else Answered(program.lm, answers, keep)
            try:
                row = await self._executor().run(rollout, model)
                # An endpoint that used up the run's time says nothing about the candidate.
                active_s = program.plan.limits.active_s
                if model is not None and row["receipt"]["limit"] == "active_s" and model.fell_silent(active_s):
                    raise model.silence(active_s)
            except (CassetteMiss, CompileTaken):
                raise  # asking again cannot help
            except InfrastructureError as exc:
                got = model.given if model else 0
                tries, furthest = (1 if got > furthest else tries + 1), max(got, furthest)
                exc.details["attempts"] = tries
                asked = wait_asked_for(exc)
                if tries >= self.attempts or asked > self.max_pause_s:
                    raise
                backoff = self.base_pause_s * 2 ** (tries - 1) * (1 + random.Random(f"{rollout_id}{tries}").random() / 4)
                if not await self._paused(max(asked, backoff)):
                    raise
            else:
                del self._answers[rollout_id]
                return row

    async def _keep_answer(self, rollout_id: str, key: str, completion: Completion) -> None:
        assert self.store is not None
        await self.store.threaded(self.store.save_answer, rollout_id, key, completion)

    async def _paused(self, seconds: float) -> bool:
        """Wait; False where the evaluation ends meanwhile, or already does."""
        if self._ending:
            return False
        if self.before_pause is not None:
            self.before_pause(seconds)
        with anyio.CancelScope() as scope:
            self._pauses.add(scope)
            try:
                await self.sleep(seconds)
            finally:
                self._pauses.discard(scope)
        return not scope.cancel_called

    async def _score(self, program: Program, row: Mapping[str, Any], example: Example) -> dict[str, Any]:
        if row["outcome"] != "ok":
            error = row["receipt"]["error"] or {}
            return {"value": 0.0, "components": {}, "feedback": f"{row['error_class']}: {error.get('what', '')}"
                    + (f" ({error['value']})" if error.get("value") else "")}  # fmt: skip
        prediction = Prediction(program.spec.validate_outputs(row["outputs"]), row["outputs"], row["receipt"])
        context = MetricContext(run=row["receipt"], state=row["end_state"], lm=None,
                                schemas={name: field.schema for name, field in program.spec.outputs.items()})  # fmt: skip
        if self.task.metric.judge is None:
            score = await self.task.metric.score(example, prediction, context)
        else:
            score = await self._judged(row["rollout_id"], example, prediction, context)
        return {"value": score.value, "feedback": score.feedback, "components": dict(score.components)}

    async def _judged(self, rollout_id: str, example: Example, prediction: Prediction, context: MetricContext) -> Score:
        from dse.evaluation.judge import score_repeatedly

        store = self.store
        assert store is not None

        async def load(name: str) -> Any:
            return await store.threaded(store.score, rollout_id, name)

        async def save(name: str, score: Score) -> None:
            await store.threaded(store.save_score, rollout_id, name, score.value, score.feedback, dict(score.components))

        return await score_repeatedly(self.task.metric, example, prediction, context, self.judge_meter, load, save)


@dataclass
class _Known:
    """Rollouts and scores of the store, by id; what is written is added."""

    rows: dict[str, dict[str, Any]]
    scores: dict[str, dict[str, Any]]


def live_reads(tools: Iterable[str]) -> str:
    return f"read tools outside an environment make the evidence live: {', '.join(sorted(tools))}"


def _first(failures: Sequence[Exception]) -> Exception:
    """The error to show: the user's or the budget's before the infrastructure failures it may have caused."""
    order = (BudgetExhausted, InfrastructureError)
    return min(failures, key=lambda e: next((i + 1 for i, cls in enumerate(order) if isinstance(e, cls)), 0))


def summarise(records: Sequence[RolloutRecord]) -> dict[str, dict[str, Any]]:
    """Per candidate: n, mean quality with a 95% interval, tokens, cost, latency, calls, failures."""
    from dse.statistics import score_interval

    table: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(r.candidate for r in records):
        mine = [r for r in records if r.candidate == name]
        n = len(mine)
        interval = score_interval([r.score for r in mine], [r.cluster for r in mine])
        known = [r.cost_usd for r in mine if r.cost_usd is not None]
        sources = {r.cost_source for r in mine}
        table[name] = {
            "n": n, "quality": sum(r.score for r in mine) / n, "quality_low": interval.low, "quality_high": interval.high,
            "cost_usd": sum(known) / n if len(known) == n else None, "cost_source": _worst(sources),
            "tokens_in": sum(r.input_tokens for r in mine) / n, "tokens_out": sum(r.output_tokens for r in mine) / n,
            "usage_source": _worst({r.usage_source for r in mine}),
            "latency_s": sum(r.latency_s for r in mine) / n,
            "latency_source": "/".join(sorted({r.latency_source for r in mine})),
            "model_calls": sum(r.model_calls for r in mine) / n, "tool_calls": sum(r.tool_calls for r in mine) / n,
            "failures": sum(r.outcome != "ok" for r in mine),
        }  # fmt: skip
    return table


def _worst(sources: set[str]) -> str:
    return next((s for s in ("unknown", "estimated") if s in sources), "exact")


async def _evaluate(task: Task, plan: Plan | str, lm: Any, split: str, max_rows: int | None, store: Any, concurrency: int,
                    progress: Progress | None, prices: PriceTable | None,
                    executor: Executor | str) -> list[RolloutRecord]:  # fmt: skip
    from dse.evaluation.sampling import check_rows, spread
    from dse.store.journal import opened

    check_rows(max_rows)
    if isinstance(plan, str):
        plan = seed_plan(task.spec, plan, limits=task.limits)
    rows = spread(task.load_dataset().split(split), max_rows)
    async with model_for(lm, prices=prices) as model:
        with opened(store if store is not None else ":memory:") as kept:
            async with Evaluator(task, model, kept, concurrency=concurrency, progress=progress, prices=prices,
                                 executor=executor) as evaluator:  # fmt: skip
                return await evaluator.evaluate({plan.mode: plan}, rows, what=split)


@contextlib.asynccontextmanager
async def model_for(lm: Any, **options: Any) -> AsyncIterator[LanguageModel | None]:
    """The model that `lm` names, closed afterwards unless it is the caller's own; `options` as in `resolve_model`."""
    from dse.models.lm import resolve_model

    if lm is None:
        yield None
        return
    model = resolve_model(lm, **options)
    try:
        yield model
    finally:
        if isinstance(lm, str):
            await model.aclose()


def evaluate(
    task: Task, plan: Plan | str, *, lm: Any = None, split: str = "select", max_rows: int | None = None, store: Any = None,
    concurrency: int = 8, progress: Progress | None = None, prices: PriceTable | None = None, executor: Executor | str = "local",
) -> list[RolloutRecord]:  # fmt: skip
    """Score one plan on an open split of the task's dataset.

    Args:
        plan: a program's or an artifact's plan, or a mode name for the seed plan of that mode.
        lm: a dspy model string, ``replay:FILE``, a ``dspy.LM``, an engine or a ``LanguageModel``.
        max_rows: at most this many rows, spread over clusters.
        store: a ``dse.Store`` or its file; default in memory.
        prices: costs are this table's.
        executor: where rollouts run: ``local``, ``ray`` or an `Executor`; see `Evaluator`.

    Raises:
        Refused: for the sealed holdout, which only a compile opens.
    """
    from dse.portal import run_sync

    return run_sync(_evaluate, task, plan, lm, split, max_rows, store, concurrency, progress, prices, executor)
