"""The evaluator: candidates x examples, once each, recorded.

A rollout is one run of one candidate on one example. Its id covers everything that could change what happens
(program, row, replicate, environment, implementations, semantics), so a rollout that is in the store is never
run again, and a changed metric only scores again. A candidate's failure is a score of 0; a failure of anything
else is retried and then aborts the evaluation.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from dse.canonical import canonical_json, digest
from dse.errors import (
    BudgetExhausted,
    CassetteMiss,
    EnvironmentRequired,
    InfrastructureError,
    MetricError,
    RunFailed,
    RunSuspended,
    Unserialisable,
)
from dse.evaluation.environment import World
from dse.evaluation.metric import MetricContext
from dse.evaluation.task import Task
from dse.plan import SEMANTICS_VERSION, Plan
from dse.program import Prediction, Program

if TYPE_CHECKING:
    from dse.evaluation.dataset import Example
    from dse.models.lm import LanguageModel
    from dse.store.journal import Store

__all__ = ["Evaluator", "LiveReads", "RolloutRecord", "evaluate", "summarise"]

Progress = Callable[[str, int, int], None]


class LiveReads(UserWarning):
    """Read tools run outside an environment: the evidence depends on the live world."""


@dataclass(frozen=True)
class RolloutRecord:
    """One scored rollout.

    Attributes:
        score: in [0, 1]; 0 for a candidate's failure.
        outcome: ``ok`` or ``failed``; `error_class` says why it failed.
        cost_usd: None where unknown; `cost_source` is ``exact``, ``estimated`` or ``unknown``.
        latency_s: of the model as recorded, or the wall time of a live run (`latency_source`).
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
        attempts: of one rollout whose infrastructure fails, with growing pauses between them.
        sleep: waits between attempts.
        progress: called with (what, done, total).
    """

    task: Task
    model: LanguageModel | None
    store: Store | None = None
    concurrency: int = 8
    attempts: int = 4
    base_pause_s: float = 0.5
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    progress: Progress | None = None
    _programs: dict[str, Program] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.store is None:
            from dse.store.journal import Store

            self.store = Store(":memory:")

    def program(self, plan: Plan) -> Program:
        if plan.plan_id not in self._programs:
            self._check_effects(plan)
            self._programs[plan.plan_id] = Program(
                self.task.signature, plan, lm=self.model, toolbox=self.task.toolbox, deps=self.task.deps
            )
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
            warnings.warn(f"read tools outside an environment make the evidence live: {', '.join(reads)}", LiveReads,
                          stacklevel=4)  # fmt: skip

    def rollout_id(self, program: Program, example: Example, replicate: int = 0) -> str:
        """Everything that could change what happens, as one id."""
        environment = self.task.environment
        return digest({
            "program": program.program_id, "row": example.row_hash, "replicate": replicate,
            "environment": [environment.name, environment.revision] if environment else None,
            "toolbox": program.toolbox.revision(program.plan.allow), "semantics": SEMANTICS_VERSION,
        })  # fmt: skip

    async def evaluate(
        self, candidates: Mapping[str, Plan], examples: Sequence[Example], *, replicate: int = 0, what: str = "rollouts"
    ) -> list[RolloutRecord]:
        """All candidates on all examples; in the order (example, candidate).

        Raises:
            InfrastructureError: it lasted longer than the attempts.
            BudgetExhausted, UserError
        """
        jobs = [(name, plan, example) for example in examples for name, plan in candidates.items()]
        for plan in candidates.values():
            self.program(plan)
        results: list[RolloutRecord | None] = [None] * len(jobs)
        slots = anyio.Semaphore(max(1, self.concurrency))
        done = 0

        async def one(index: int) -> None:
            nonlocal done
            name, plan, example = jobs[index]
            async with slots:
                results[index] = await self.rollout(name, plan, example, replicate)
            done += 1
            if self.progress:
                self.progress(what, done, len(jobs))

        try:
            async with anyio.create_task_group() as group:
                for index in range(len(jobs)):
                    group.start_soon(one, index)
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None
        return [r for r in results if r is not None]

    async def rollout(self, name: str, plan: Plan, example: Example, replicate: int = 0) -> RolloutRecord:
        """One rollout, from the store if it is there, and its score."""
        assert self.store is not None
        program = self.program(plan)
        rollout_id = self.rollout_id(program, example, replicate)
        row = await self.store.threaded(self.store.rollout, rollout_id)
        reused = row is not None
        if row is None:
            row = await self._run(program, example, rollout_id, replicate)
            await self.store.threaded(self.store.save_rollout, row)
        metric = self.task.metric
        metric_id = f"{metric.name}@{metric.revision}"
        scored = await self.store.threaded(self.store.score, rollout_id, metric_id)
        if scored is None:
            scored = await self._score(program, row, example)
            await self.store.threaded(self.store.save_score, rollout_id, metric_id, scored["value"], scored["feedback"],
                                      scored["components"])  # fmt: skip
        return RolloutRecord(
            rollout_id=rollout_id, candidate=name, row_id=example.id, row_hash=example.row_hash, cluster=example.cluster,
            score=scored["value"], components=scored["components"], feedback=scored["feedback"] or "", reused=reused,
            journal=row["journal"],
            **{k: row[k] for k in ("outcome", "error_class", "outputs", "receipt", "model_calls", "tool_calls", "input_tokens",
                                   "output_tokens", "usage_source", "cost_usd", "cost_source", "latency_s", "latency_source")},
        )  # fmt: skip

    async def _run(self, program: Program, example: Example, rollout_id: str, replicate: int) -> dict[str, Any]:
        for attempt in range(self.attempts):
            try:
                return await self._attempt(program, example, rollout_id, replicate)
            except CassetteMiss:
                raise  # asking again cannot help
            except InfrastructureError as exc:
                if attempt + 1 >= self.attempts:
                    exc.details["attempts"] = self.attempts
                    raise
                pause = exc.details.get("retry_after_s") or self.base_pause_s * 2**attempt
                await self.sleep(pause * (1 + random.Random(f"{rollout_id}{attempt}").random() / 4))
        raise AssertionError("unreachable: the loop returns or raises")

    async def _attempt(self, program: Program, example: Example, rollout_id: str, replicate: int) -> dict[str, Any]:
        # Clock and random come from the row, so that all candidates see the same on the same row.
        basis = int(digest([example.row_hash, replicate])[7:], 16)
        clock = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(minutes=basis % 525_600)
        run = program.new_run(example.inputs, run_id=f"rollout-{rollout_id[7:39]}", seed=basis % 2**48, clock=clock,
                              evaluation=True, replicate=replicate)  # fmt: skip
        environment = self.task.environment
        entered = environment.enter(example) if environment else contextlib.nullcontext(World(deps=self.task.deps))
        prediction: Prediction | None = None
        error: Exception | None = None
        state = None
        async with entered as world:
            toolbox = program.toolbox.merged(world.tools) if world.tools else None
            approve = world.approve or (_yes if environment else None)
            try:
                prediction = await program.execute(run, deps=world.deps, toolbox=toolbox, approve=approve)
            except (RunFailed, RunSuspended) as exc:
                error = exc
            if world.state is not None:
                state = world.state()
                try:
                    canonical_json(state)
                except Unserialisable as exc:
                    raise MetricError("An environment's end state must be plain JSON data", value=exc.what,
                                      remedy="Return dicts, lists, strings and numbers from state().") from None  # fmt: skip
        receipt = prediction.receipt if prediction else error.details["receipt"]  # type: ignore[union-attr]
        usage = receipt["usage"]
        recorded = [e["recorded"] for e in run.journal.entries if e["kind"] == "model_call"]
        replayed = bool(recorded) and all(recorded)
        # Times of this machine say nothing about a recorded run, and differ between two replays of it.
        stable = {**receipt, "usage": {k: v for k, v in usage.items() if k not in ("active_s", "interpreter_s")},
                  "calls": [{k: v for k, v in c.items() if k != "latency_s"} for c in receipt["calls"]]}  # fmt: skip
        return {
            "rollout_id": rollout_id, "program_id": program.program_id, "signature": program.spec.name, "mode": program.plan.mode,
            "model": program.lm.name if program.lm else None, "allow": list(program.plan.allow), "dataset": None,
            "row_id": example.id, "row_hash": example.row_hash, "cluster": example.cluster, "replicate": replicate,
            "outcome": "ok" if prediction else "failed", "error_class": type(error).__name__ if error else None,
            "outputs": prediction.outputs if prediction else None, "end_state": state,
            "receipt": stable if replayed else dict(receipt), "journal": run.journal.entries,
            "model_calls": usage["model_calls"], "tool_calls": usage["tool_calls"],
            "input_tokens": usage["input_tokens"], "output_tokens": usage["output_tokens"],
            "usage_source": usage["usage_source"], "cost_usd": usage["cost_usd"], "cost_source": usage["cost_source"],
            "latency_s": usage["model_latency_s"] if replayed else usage["active_s"],
            "latency_source": "recorded" if replayed else "measured",
        }  # fmt: skip

    async def _score(self, program: Program, row: Mapping[str, Any], example: Example) -> dict[str, Any]:
        if row["outcome"] != "ok":
            error = row["receipt"]["error"] or {}
            return {"value": 0.0, "components": {}, "feedback": f"{row['error_class']}: {error.get('what', '')}"
                    + (f" ({error['value']})" if error.get("value") else "")}  # fmt: skip
        prediction = Prediction(program.spec.validate_outputs(row["outputs"]), row["outputs"], row["receipt"])
        context = MetricContext(run=row["receipt"], state=row["end_state"], lm=None)
        score = await self.task.metric.score(example, prediction, context)
        return {"value": score.value, "feedback": score.feedback, "components": dict(score.components)}


def _yes(_: Any) -> bool:
    return True


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show: a budget or user error before the infrastructure failures it may have caused."""
    flat: list[BaseException] = []

    def walk(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for sub in error.exceptions:
                walk(sub)
        else:
            flat.append(error)

    walk(group)
    order = (BudgetExhausted, InfrastructureError)
    return min(flat, key=lambda e: next((i + 1 for i, cls in enumerate(order) if isinstance(e, cls)), 0))


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
            "latency_s": sum(r.latency_s for r in mine) / n, "latency_source": "/".join(sorted({r.latency_source for r in mine})),
            "model_calls": sum(r.model_calls for r in mine) / n, "tool_calls": sum(r.tool_calls for r in mine) / n,
            "failures": sum(r.outcome != "ok" for r in mine),
        }  # fmt: skip
    return table


def _worst(sources: set[str]) -> str:
    return next((s for s in ("unknown", "estimated") if s in sources), "exact")


async def _evaluate(task: Task, plan: Plan, lm: Any, split: str, max_rows: int | None, store: Any, concurrency: int,
                    progress: Progress | None) -> list[RolloutRecord]:  # fmt: skip
    from dse.evaluation.sampling import spread
    from dse.models.lm import resolve_model

    model = resolve_model(lm) if lm is not None else None
    data = task.load_dataset()
    evaluator = Evaluator(task, model, store, concurrency=concurrency, progress=progress)
    return await evaluator.evaluate({plan.mode: plan}, spread(data.split(split), max_rows), what=split)


def evaluate(task: Task, plan: Plan, *, lm: Any = None, split: str = "select", max_rows: int | None = None, store: Any = None,
             concurrency: int = 8, progress: Progress | None = None) -> list[RolloutRecord]:  # fmt: skip
    """Score one plan on an open split of the task's dataset.

    Raises:
        Refused: for the sealed holdout, which only a compile opens.
    """
    from dse.portal import run_sync

    return run_sync(_evaluate, task, plan, lm, split, max_rows, store, concurrency, progress)
