"""One attempt at a rollout: one run of one candidate on one example, as the plain row that a store keeps.

Wherever it happens, in this process or in a worker, it is this function: what a rollout is does not depend on who runs it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from dse.canonical import canonical_json, digest, parse_json
from dse.errors import (
    DseError,
    EnvironmentRequired,
    MetricError,
    ModelUnavailable,
    RunFailed,
    RunSuspended,
    Unserialisable,
    UserError,
)
from dse.evaluation.environment import Environment, World
from dse.program import Prediction, Program
from dse.runtime.execution import Middleware, Next, ToolCall

if TYPE_CHECKING:
    from dse.evaluation.dataset import Example
    from dse.models.lm import Completion, LanguageModel

__all__ = ["Answered", "Pay", "Rollout", "attempt", "cassette_of"]

Pay = Callable[[str, float], Awaitable[None]]


@dataclass(frozen=True)
class Rollout:
    """What is to be run.

    Attributes:
        deps: for runs outside an environment.
        kept: the times of the model's answers are those of a recording: a replay gives the same.
        pay: awaited with name and price before a tool that has a price is executed; what it raises ends the attempt.
    """

    rollout_id: str
    program: Program
    example: Example
    replicate: int
    environment: Environment | None
    deps: Any
    kept: bool
    pay: Pay | None = None


async def attempt(rollout: Rollout, model: LanguageModel | None) -> dict[str, Any]:
    """Run it to its end.

    Args:
        model: asked instead of the program's own.

    Returns:
        The row; times of this machine are in it only where the model's answers were not recorded ones.

    Raises:
        InfrastructureError, UserError, BudgetExhausted: nobody's score.
    """
    program, example, rollout_id = rollout.program, rollout.example, rollout.rollout_id
    # Clock and random come from the row, so that all candidates see the same on the same row.
    basis = int(digest([example.row_hash, rollout.replicate])[7:], 16)
    clock = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(minutes=basis % 525_600)
    run = program.new_run(example.inputs, run_id=f"rollout-{rollout_id[7:39]}", seed=basis % 2**48, clock=clock,
                          evaluation=True, replicate=rollout.replicate)  # fmt: skip
    run.model = model
    environment = rollout.environment
    entered = environment.enter(example) if environment else contextlib.nullcontext(World(deps=rollout.deps))
    prediction: Prediction | None = None
    error: Exception | None = None
    state = None
    unpaid: list[Exception] = []
    paying = () if rollout.pay is None else (_paying(rollout.pay, unpaid),)
    async with entered as world:
        toolbox = world.bound(program.toolbox) if environment else None  # outside one, dependencies are the real ones
        approve = world.approve or (_yes if environment else None)
        try:
            prediction = await program.execute(run, deps=world.deps, toolbox=toolbox, approve=approve,
                                               middleware=(*world.middleware, *paying))  # fmt: skip
        except RunFailed as exc:
            error = exc
        except RunSuspended as exc:
            raise EnvironmentRequired("A call needs a decision, and nobody decides during an evaluation",
                                      value=exc.what, remedy="Give the task an environment=.") from exc  # fmt: skip
        if unpaid:  # whatever the world made of it
            raise unpaid[0]
        state = _end_state(world)
    receipt = prediction.receipt if prediction else error.details["receipt"]  # type: ignore[union-attr]
    usage = receipt["usage"]
    recorded = [e["recorded"] for e in run.journal.entries if e["kind"] == "model_call"]
    replayed = bool(recorded) and all(recorded)
    # Times of this machine say nothing about a recorded run, and differ between two replays of it.
    stable = {**receipt, "usage": {k: v for k, v in usage.items() if k not in ("active_s", "interpreter_s")},
              "calls": [{k: v for k, v in c.items() if k != "latency_s"} for c in receipt["calls"]]}  # fmt: skip
    return {
        "rollout_id": rollout_id, "program_id": program.program_id, "signature": program.spec.name,
        "mode": program.plan.mode, "model": program.lm.name if program.lm else None, "allow": list(program.plan.allow),
        "row_id": example.id, "row_hash": example.row_hash, "cluster": example.cluster, "replicate": rollout.replicate,
        "outcome": "ok" if prediction else "failed", "error_class": type(error).__name__ if error else None,
        "outputs": prediction.outputs if prediction else None, "end_state": state,
        "receipt": stable if replayed else dict(receipt), "journal": run.journal.entries,
        "model_calls": usage["model_calls"], "tool_calls": usage["tool_calls"],
        "input_tokens": usage["input_tokens"], "output_tokens": usage["output_tokens"],
        "usage_source": usage["usage_source"], "cost_usd": usage["cost_usd"], "cost_source": usage["cost_source"],
        "latency_s": usage["model_latency_s"], "latency_source": "recorded" if replayed or rollout.kept else "measured",
    }  # fmt: skip


def _paying(pay: Pay, unpaid: list[Exception]) -> Middleware:
    """Innermost: what a recording or a world answers in the tool's place costs nothing, what a world tries again costs again."""

    async def layer(call: ToolCall, proceed: Next) -> Any:
        if call.contract.cost_usd:
            try:
                await pay(call.name, call.contract.cost_usd)
            except Exception as exc:
                unpaid.append(exc)
                raise
        return await proceed(call)

    return layer


def _yes(_: Any) -> bool:
    return True


def _end_state(world: World) -> Any:
    """A copy, so that cleaning the world up cannot change it."""
    if world.state is None:
        return None
    try:
        return parse_json(canonical_json(world.state()))
    except Unserialisable as exc:
        raise MetricError("An environment's end state must be plain JSON data", value=exc.what,
                          remedy="Return dicts, lists, strings and numbers from state().") from None  # fmt: skip
    except DseError:
        raise
    except Exception as exc:
        raise UserError(f"The end state of a world cannot be read: {type(exc).__name__}", value=str(exc),
                        remedy="Correct the environment's state().") from exc  # fmt: skip


class Answered:
    """A model that is not asked again what it answered in an earlier attempt at the same rollout, or an earlier process.

    ``given`` counts the answers of this attempt, ``longest_s`` is the time of the slowest. ``unanswered_s`` is the time
    that brought none: requests that were given up, and what a patient model waited besides its successful attempts.
    """

    def __init__(self, inner: LanguageModel, answers: dict[str, Completion],
                 keep: Callable[[str, Completion], Awaitable[None]] | None = None) -> None:  # fmt: skip
        self.inner = inner
        self._keep = keep
        self.name = inner.name
        self.params = inner.params
        self.supports_tools = inner.supports_tools
        self._answers = answers
        self.given = 0
        self.longest_s = 0.0
        self.unanswered_s = 0.0

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        key = digest([request, occurrence])
        if key not in self._answers:
            started, answering_s = anyio.current_time(), 0.0
            try:
                completion = await self.inner.complete(request, replicate=replicate, occurrence=occurrence)
                answering_s = completion.latency_s or anyio.current_time() - started
            finally:
                self.longest_s = max(self.longest_s, answering_s)
                self.unanswered_s += max(0.0, anyio.current_time() - started - answering_s)
            self._answers[key] = completion
            if self._keep is not None:
                await self._keep(key, completion)
        self.given += 1
        return self._answers[key]

    def fell_silent(self, active_s: float) -> bool:
        """Whether a run that used up its time did so for want of answers, and not by asking for many."""
        return self.unanswered_s > max(2 * self.longest_s, active_s / 10)

    def silence(self, active_s: float) -> ModelUnavailable:
        """An endpoint that used up the run's time says nothing about the candidate."""
        return ModelUnavailable(f"{self.name} gave no answer until the run's active time was over", kind="timeout",
                                value=f"{active_s:g} s", unanswered_s=self.unanswered_s,
                                remedy="It is asked again. Raise Limits(active_s=...) if the model is just slow.")  # fmt: skip

    async def aclose(self) -> None:
        """The inner model is not ours."""


def cassette_of(model: Any) -> Any:
    """The cassette that `model` answers from or records to, through its wrappers; None without one."""
    while model is not None:
        if (cassette := getattr(model, "cassette", None)) is not None:
            return cassette
        model = getattr(model, "inner", None)
    return None
