"""One run: its identity, inputs, journal, meter and effects. Strategies get one of these and nothing else."""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
from pydantic import ValidationError

from dse import telemetry
from dse.canonical import canonical_json, sha256_hex
from dse.contracts.check import Check
from dse.contracts.script import Script, scripts_in
from dse.contracts.signature import SignatureSpec
from dse.errors import (
    InfrastructureError,
    InputError,
    LimitExceeded,
    ModelError,
    ModelUnavailable,
    OutputInvalid,
    SandboxUnavailable,
    SignatureError,
    Unserialisable,
)
from dse.limits import Meter
from dse.plan import Plan
from dse.redaction import Secrets, safe_message
from dse.runtime.clock import ActiveClock
from dse.runtime.history import CALLS, Journal, diverged, shown_id
from dse.runtime.made import may_differ

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
        self._texts: _Texts = {}
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
        if _canonical(given) == canonical_json(self.wire_inputs):
            return  # the same would be read again
        try:
            again = self.spec.wire_inputs(self.spec.validate_inputs(self.wire_inputs))
            changed = _first_difference(self.wire_inputs, again)
        except InputError as exc:
            changed = str(exc.value)
        except Exception as exc:  # a validator that cannot take what it gave itself
            changed = type(exc).__name__ if self.spec.sensitive else safe_message(exc)
        if changed is not None:
            raise SignatureError("An input changes when what was written down is read again", value=changed,
                                 remedy="Use a type that reads its own JSON form: no field that is only written, only "
                                        "read or read by another name, and no serializer with a form of its own.")  # fmt: skip

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
        key = self._request_id(request)
        occurrence = self._occurrences[key]
        self.meter.before_model_call()  # first: what ends the run here left no entry of a call
        recorded = self.recorded("model_call", "model_error")
        if recorded is not None and (recorded["request"], recorded["occurrence"]) != (key, occurrence):
            raise diverged(recorded, "another request", {"predictor": predictor, "request": key})
        if recorded is None and self.model is None:
            raise InfrastructureError("This run has no model", remedy="Give the program an lm.")
        self._occurrences[key] += 1
        try:
            completion = _completion(recorded) if recorded else await self._ask(request, predictor, occurrence)
        except LimitExceeded as exc:  # the model's own limit, the context
            exc.details.setdefault("outcome", self.limits.outcome(exc.details.get("limit", "context")))
            self.journal.add("model_error", predictor=predictor, request=key, occurrence=occurrence,
                             limit=exc.details.get("limit", "context"), message=exc.what)  # fmt: skip
            await self.journal.durable()
            raise
        if self.limits.tokens is not None and None in (completion.usage.input_tokens, completion.usage.output_tokens):
            completion = _with_estimated_usage(completion, request)
        self.meter.after_model_call(completion)
        calls = [{"id": c.id, "name": c.name, "arguments": c.arguments, "raw": c.raw} for c in completion.tool_calls]
        entry = {"text": completion.text, "tool_calls": calls}
        try:
            json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, TypeError) as exc:  # NaN, half a surrogate pair
            raise ModelUnavailable(f"{self._model_name} sent a reply that JSON cannot hold", value=str(exc)) from None
        usage = completion.usage
        self.journal.add(
            "model_call", predictor=predictor, request=key, occurrence=occurrence, **entry,
            finish_reason=completion.finish_reason, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens,
            usage_source=usage.source, cost_usd=completion.cost_usd, cost_source=completion.cost_source,
            latency_s=completion.latency_s, recorded=completion.recorded,
        )  # fmt: skip
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

    def _request_id(self, request: Request) -> str:
        """Hash of a request. The text of each message is kept: a conversation only grows, and is asked again and again."""
        parts = [_text(message, self._texts) for message in request["messages"]]
        parts += [_text(tool, _tool_texts) for tool in request.get("tools", ())]
        return sha256_hex(b"\n".join(parts) + str(request.get("tool_choice")).encode())

    async def accept_outputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Validated outputs in wire form.

        Raises:
            pydantic.ValidationError, ValueError: they do not fit the signature, or are too large and the step fails.
            LimitExceeded: they are too large and the run ends.
            SignatureError: a type whose stored form reads as another value.
        """
        if self.secrets.names:
            self.secrets.remember(values, self.spec.sensitive)
        given = _canonical(values)  # now: a validator may change what is in them
        try:
            typed = self.spec.validate_outputs(values)
            wire = self.spec.wire_outputs(typed)
            if self.secrets.names:
                self.secrets.remember(wire, self.spec.sensitive)
            text = canonical_json(wire)
            if text != given and any(may_differ(field.adapter) for field in self.spec.outputs.values()):
                wire = self._as_accepted(wire, given)
                text = canonical_json(wire)
            changed = None if text == given else self._changed(wire)  # the same would be read again
            size = len(text)
        except ValidationError:
            raise
        except Unserialisable as exc:
            raise ValueError(f"{exc.what}. {exc.remedy}") from None
        except Exception as exc:  # a validator of the signature's types that cannot take what the model gave
            raise ValueError(f"the outputs cannot be validated: {safe_message(exc)}") from None
        if changed is not None:
            raise SignatureError("An output changes when what was written down is read again", value=changed,
                                 remedy="Use a type and validators that leave their own result as it is.")  # fmt: skip
        if size > self.limits.output_bytes:
            if self.limits.outcome("output_bytes") == "fail_step":
                raise ValueError(f"the outputs take {size} bytes; {self.limits.output_bytes} are allowed")
            raise self.meter.exceeded("output_bytes", size, self.limits.output_bytes)
        for path, script in scripts_in(typed):
            await self._check_script(path, script)
        return wire

    def _as_accepted(self, wire: dict[str, Any], given: bytes | None) -> dict[str, Any]:
        """Outputs as they were made of the same before; what is made here first is noted."""
        journal, noted = self.journal, None if given is None else f"sha256:{sha256_hex(given)}"
        place = journal.place
        known = journal.recording.accepted.get(place) if journal.recording is not None else None
        if known is None:
            journal.add("accepted", place=place, given=noted, outputs=wire)
        elif known["given"] == noted:
            return copy.deepcopy(dict(known["outputs"]))
        return wire

    async def _check_script(self, path: str, script: Script) -> None:
        """A script among the outputs may call what the plan allows (in a mode without tools: what the signature declares).

        Raises:
            ValueError: with what is wrong, in words for the model.
        """
        from dse.runtime.guest import script_problem

        contracts = {tool.name: tool.contract for tool in self.spec.tools if tool.nests is None}
        allow = contracts if self.plan.mode == "direct" else self.plan.allow
        problem = await script_problem(script, contracts, allow)
        if problem is not None:
            raise ValueError(f"{path}: {problem}")

    def _changed(self, wire: Mapping[str, Any]) -> str | None:
        """Name of an output whose stored form reads as something else; results are stored, scored and shown in it."""
        return _first_difference(wire, self.spec.wire_outputs(self.spec.validate_outputs(wire)))

    def invalid(self, problem: str) -> OutputInvalid:
        return OutputInvalid("No output that fits the signature", value=problem,
                             remedy="See the run's receipt for what the model returned.")  # fmt: skip

    def limit(self, name: str, used: Any, allowed: Any) -> LimitExceeded:
        return self.meter.exceeded(name, used, allowed)


def _first_difference(wire: Mapping[str, Any], again: Mapping[str, Any]) -> str | None:
    return next((name for name in wire if canonical_json(again[name]) != canonical_json(wire[name])), None)


def _canonical(values: Mapping[str, Any]) -> bytes | None:
    """The canonical text of values; None for those that JSON cannot hold."""
    try:
        return canonical_json(dict(values))
    except (Unserialisable, RecursionError):
        return None


_Texts = dict[int, tuple[Any, bytes]]  # canonical texts by the identity of a part, which is kept so that it stays its own
_tool_texts: _Texts = {}


def _text(part: dict[str, Any], texts: _Texts) -> bytes:
    known = texts.get(id(part))
    if known is None or known[0] is not part:
        if len(texts) > 4_096:
            texts.clear()
        known = texts[id(part)] = (part, canonical_json(part))
    return known[1]


def _completion(entry: Mapping[str, Any]) -> Completion:
    """The completion that a journal entry holds.

    Raises:
        LimitExceeded: the model had refused the request for its length.
    """
    from dse.models.lm import Completion, ToolCallPart, Usage

    if entry["kind"] == "model_error":
        raise LimitExceeded(entry["message"], limit=entry["limit"])
    return Completion(
        entry["text"], tuple(ToolCallPart(c["id"], c["name"], c["arguments"], c["raw"]) for c in entry["tool_calls"]),
        entry["finish_reason"], Usage(entry["input_tokens"], entry["output_tokens"], entry["usage_source"]),
        entry["cost_usd"], entry["cost_source"], entry["latency_s"], recorded=entry["recorded"],
    )  # fmt: skip


def _with_estimated_usage(completion: Completion, request: Request) -> Completion:
    """A limit on tokens holds also where the model does not count them."""
    import dataclasses

    from dse.models.lm import estimate_usage

    usage = estimate_usage(request, completion.text, completion.tool_calls)
    return dataclasses.replace(completion, usage=usage)
