"""One run: its identity, inputs, journal, meter and effects. Strategies get one of these and nothing else."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio.lowlevel

from dse import telemetry
from dse.contracts.check import Check
from dse.contracts.signature import SignatureSpec
from dse.errors import (
    InfrastructureError,
    LimitExceeded,
    ModelError,
    OutputInvalid,
    SandboxUnavailable,
)
from dse.limits import Meter
from dse.plan import Plan
from dse.redaction import Secrets
from dse.runtime.accepting import accept_outputs, check_inputs
from dse.runtime.clock import ActiveClock
from dse.runtime.completions import RequestIds, entry_of, recorded_completion, with_estimated_usage
from dse.runtime.history import CALLS, Journal, diverged, shown_id

if TYPE_CHECKING:
    from dse.models.lm import Completion, LanguageModel, Request
    from dse.runtime.dispatcher import Dispatcher
    from dse.runtime.history import Frozen

__all__ = ["Decided", "Effects", "Journal", "Run"]


@dataclass
class Effects:
    """Writes of a run that completed, or of which it is not known whether they did."""

    items: list[dict[str, Any]] = field(default_factory=list)

    def add(self, tool: str, call_id: int, status: str, idempotent: bool) -> None:
        self.items.append({"tool": tool, "call_id": call_id, "status": status, "idempotent": idempotent})

    @property
    def repeatable(self) -> bool:
        """True while starting again could not repeat a write that must not be repeated."""
        return all(item["idempotent"] for item in self.items)

    def summary(self) -> str:
        """``none``, or what completed and what is unknown."""
        if not self.items:
            return "none"
        parts = []
        for status in ("completed", "unknown"):
            names = [f"{i['tool']}#{shown_id(i['call_id'])}" for i in sorted(self.items, key=_call_id) if i["status"] == status]
            if names:
                parts.append(f"{status} [{', '.join(names)}]")
        return ", ".join(parts)


def _call_id(item: Mapping[str, Any]) -> int:
    return int(item["call_id"])


@dataclass(frozen=True)
class Decided:
    """What somebody decided about a call that waited: granted or not, why, who and when (ISO 8601)."""

    granted: bool
    reason: str
    by: str
    at: str
    arguments_hash: str


class Run:
    """The session of one execution of a program on one input."""

    def __init__(
        self, *, run_id: str, program_id: str, spec: SignatureSpec, plan: Plan, inputs: Mapping[str, Any],
        model: LanguageModel | None, seed: int, clock: dt.datetime, evaluation: bool = False, replicate: int = 0,
    ) -> None:  # fmt: skip
        self.run_id = run_id
        self.program_id = program_id
        self.spec = spec
        self.plan = plan
        self.limits = plan.limits
        self.inputs = dict(inputs)
        self.wire_inputs = spec.wire_inputs(self.inputs)
        self.model = model
        self.seed = seed
        self.clock = clock
        self.evaluation = evaluation
        self.replicate = replicate
        self.meter = Meter(self.limits)
        self.journal = Journal()
        self.secrets = Secrets(spec.sensitive, replies=any(f.sensitive for f in spec.outputs.values()))
        self.secrets.remember(self.wire_inputs, spec.sensitive)
        self.effects = Effects()
        self.receipts: list[dict[str, Any]] = []
        self.stages: list[dict[str, Any]] = []  # of a cascade: those that ran, and how each ended
        self.checks: Mapping[str, Check] = {}
        self.dispatcher: Dispatcher = None  # type: ignore[assignment]  # set by the program right after
        self.trace: Callable[[str, dict[str, Any], dict[str, Any]], None] | None = None
        self._occurrences: Counter[str] = Counter()
        self._request_ids = RequestIds()
        self.decisions: dict[int, Decided] = {}  # by call id, from elsewhere
        self.lost: SandboxUnavailable | None = None  # what says that the guest of this run died
        self.own_guest = False  # its script does not run in one that has run before
        self.frozen: Frozen | None = None  # a guest to go on with, instead of executing its scripts again
        self.expires_s: float | None = None  # how long a decision may take
        self.timer = ActiveClock(self.limits.active_s, self._waited)
        self.journal.elapsed = self.timer.active_s

    # --- attempts and their active time

    @property
    def attempt(self) -> int:
        """The number of the attempt that is executed, from 0."""
        return self.timer.attempt

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """One attempt, bounded by ``active_s``.

        Raises:
            LimitExceeded: it took longer.
        """
        follows = self.journal.recording is not None and self.journal.recording.peek() is not None
        with self.timer.bounded(behind=follows) as scope:
            yield
        if scope.cancelled_caught:
            raise self._out_of_time()

    def active_s(self) -> float:
        """Active seconds of this attempt so far."""
        return self.timer.active_s()

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Waiting for a decision: the time inside does not count as active."""
        return self.timer.waiting()

    def _waited(self, seconds: float) -> None:
        self.meter.waited_s += seconds

    def _out_of_time(self) -> LimitExceeded:
        allowed = f"{self.limits.active_s:g} s"
        return self.meter.exceeded("active_s", allowed, allowed)

    def start(self) -> None:
        """The run begins now, or goes on."""
        self.meter.started = time.monotonic() - sum(self.timer.spent_s)

    def again(self) -> None:
        """Begin the next attempt: fresh limits, the same run."""
        self.timer.attempt += 1
        self.meter = self.meter.fresh()

    def follow(self, *, only: bool = False) -> None:
        """Begin from the inputs, along what the journal holds already: everything is counted anew.

        Args:
            only: nothing may happen that is not recorded.
        """
        began = self.meter.began
        self.journal.follow(only=only)
        self.meter = Meter(self.limits)
        self.meter.started = began
        self.effects = Effects()
        self.receipts.clear()
        self._occurrences.clear()
        self.timer.attempt = 0

    def check_inputs(self, given: Mapping[str, Any]) -> None:
        """Hold inputs to what is written down of them: models and scripts see that, and a run that goes on reads it again.

        Raises:
            SignatureError
        """
        check_inputs(self, given)

    def guest_lost(self, exc: SandboxUnavailable) -> SandboxUnavailable:
        """Mark `exc` as the loss of this run's own guest: what a tool raises may look the same, and is none."""
        self.lost = exc
        return exc

    def recorded(self, *kinds: str) -> Mapping[str, Any] | None:
        """The entry of what happens now, where an earlier execution left one; None where nobody was before.

        Raises:
            ReplayDiverged: something else was recorded, or nothing new may happen.
            LimitExceeded: there the earlier execution ran out of time.
        """
        recording = self.journal.recording
        if recording is None:
            return None
        entry = recording.peek()
        if entry is None:
            if recording.only:
                raise diverged(None, " or ".join(kinds), {})
            self.timer.caught_up()
            return None
        if entry["kind"] in kinds:
            return entry
        self.ran_out(entry)
        raise diverged(entry, " or ".join(kinds), {})

    def ran_out(self, entry: Mapping[str, Any]) -> None:
        """Time is not the same twice: where the record says that it ran out, it does."""
        if entry["kind"] in ("retry", "run_finished") and entry.get("limit") == "active_s":
            raise self._out_of_time()

    def _ended_after(self, entry: Mapping[str, Any]) -> None:
        """As `ran_out`, where time ran out after `entry` and before anything was called."""
        then = self.journal.recording.peek() if self.journal.recording is not None else None
        if then is None or then.get("limit") != "active_s":
            return
        calls = (one["seq"] for one in self.journal.entries[entry["seq"] : then["seq"]] if one["kind"] in CALLS)
        if not any(calls):
            self.ran_out(then)

    # --- the model

    async def complete(self, request: Request, *, predictor: str) -> Completion:
        """Ask the model, within the limits; journals the request's id and the completion.

        Raises:
            LimitExceeded, ModelUnavailable, ModelError, CassetteMiss
        """
        await anyio.lowlevel.checkpoint()  # where neither model nor tools wait, limits on time still end the run
        key = self._request_ids.of(request)
        occurrence = self._occurrences[key]
        self.meter.before_model_call()  # first: what ends the run here left no entry of a call
        recorded = self.recorded("model_call", "model_error")
        if recorded is not None and (recorded["request"], recorded["occurrence"]) != (key, occurrence):
            raise diverged(recorded, "another request", {"predictor": predictor, "request": key})
        if recorded is None and self.model is None:
            raise InfrastructureError("This run has no model", remedy="Give the program an lm.")
        self._occurrences[key] += 1
        try:
            completion = recorded_completion(recorded) if recorded else await self._ask(request, predictor, occurrence)
        except LimitExceeded as exc:  # the model's own limit, the context
            exc.details.setdefault("outcome", self.limits.outcome(exc.details.get("limit", "context")))
            self.journal.add("model_error", predictor=predictor, request=key, occurrence=occurrence,
                             limit=exc.details.get("limit", "context"), message=exc.what)  # fmt: skip
            await self.journal.durable()
            raise
        if self.limits.tokens is not None and None in (completion.usage.input_tokens, completion.usage.output_tokens):
            completion = with_estimated_usage(completion, request)
        self.meter.after_model_call(completion)
        entry = entry_of(completion, self._model_name)
        self.journal.add("model_call", predictor=predictor, request=key, occurrence=occurrence, **entry)
        await self.journal.durable()  # it is paid for
        if recorded is not None:
            self._ended_after(recorded)
        if self.limits.cost_usd is not None and completion.cost_usd is None:
            raise ModelError("A limit on cost cannot be kept: the model's cost is unknown", value=self._model_name,
                             remedy="Give prices (dse.PriceTable), or remove Limits(cost_usd=...).")  # fmt: skip
        self.meter.check_model_call()
        return completion

    async def _ask(self, request: Request, predictor: str, occurrence: int) -> Completion:
        assert self.model is not None
        asking = self.model.complete(request, replicate=self.replicate, occurrence=occurrence)
        return await (telemetry.chat(self, request, predictor, asking) if telemetry.active else asking)

    @property
    def _model_name(self) -> str:
        return self.model.name if self.model is not None else "the model"

    async def accept_outputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Validated outputs in wire form.

        Raises:
            pydantic.ValidationError, ValueError: they do not fit the signature, or are too large and the step fails.
            LimitExceeded: they are too large and the run ends.
            SignatureError: a type whose stored form reads as another value.
        """
        return await accept_outputs(self, values)

    def invalid(self, problem: str) -> OutputInvalid:
        return OutputInvalid("No output that fits the signature", value=problem,
                             remedy="See the run's receipt for what the model returned.")  # fmt: skip

    def limit(self, name: str, used: Any, allowed: Any) -> LimitExceeded:
        return self.meter.exceeded(name, used, allowed)
