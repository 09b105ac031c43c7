"""One run: its identity, inputs, journal, meter and effects. Strategies get one of these and nothing else."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dse.canonical import canonical_json, digest, sha256_hex
from dse.contracts.signature import SignatureSpec
from dse.errors import InfrastructureError, LimitExceeded, OutputInvalid
from dse.limits import Meter
from dse.plan import Plan

if TYPE_CHECKING:
    from dse.models.lm import Completion, LanguageModel
    from dse.runtime.dispatcher import Dispatcher

__all__ = ["Effects", "Journal", "Run", "redact"]

REDACTED = "[redacted]"


def redact(value: Any, names: frozenset[str] | set[str]) -> Any:
    """`value` with every field of those names replaced, at any depth."""
    if not names:
        return value
    if isinstance(value, dict):
        return {k: REDACTED if k in names else redact(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [redact(item, names) for item in value]
    return value


class Journal:
    """What happened, in order, as plain data. Subscribers see each entry as it is added."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.subscribers: list[Callable[[dict[str, Any]], None]] = []

    def add(self, kind: str, **data: Any) -> dict[str, Any]:
        entry = {"seq": len(self.entries), "kind": kind, **data}
        self.entries.append(entry)
        for subscriber in self.subscribers:
            subscriber(entry)
        return entry

    def transcript_hash(self) -> str:
        """Id of the path taken: what the model said and was told, and every call with its result.

        Free of timing, of ids that differ between runs, and of the order in which parallel calls ended.
        """
        seen = [{k: v for k, v in e.items() if k not in _INCIDENTAL} for e in self.entries if e["kind"] in _PATH]
        calls = sorted((e for e in self.entries if e["kind"] in _CALLS), key=lambda e: (e["call_id"] or 0, e["seq"]))
        return digest([seen, [{k: v for k, v in e.items() if k not in _INCIDENTAL} for e in calls]])


_PATH = frozenset({"model_call", "feed", "print", "observation", "code_error", "repair", "round", "delivered", "retry",
                   "run_finished"})  # fmt: skip
_CALLS = frozenset({"tool_intent", "tool_outcome", "tool_refused", "approval"})
_INCIDENTAL = frozenset({"seq", "latency_s", "idempotency_key", "recorded"})


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
            names = [f"{i['tool']}#{i['call_id']}" for i in self.items if i["status"] == status]
            if names:
                parts.append(f"{status} [{', '.join(names)}]")
        return ", ".join(parts)


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
        self.effects = Effects()
        self.receipts: list[dict[str, Any]] = []
        self.dispatcher: Dispatcher = None  # type: ignore[assignment]  # set by the program right after
        self.trace: Callable[[str, dict[str, Any], dict[str, Any]], None] | None = None
        self._occurrences: Counter[str] = Counter()
        self.attempt = 0

    async def complete(self, request: dict[str, Any], *, predictor: str) -> Completion:
        """Ask the model, within the limits; journals the request's id and the completion.

        Raises:
            LimitExceeded, ModelUnavailable, ModelError, CassetteMiss
        """
        if self.model is None:
            raise InfrastructureError("This run has no model", remedy="Give the program an lm.")
        self.meter.before_model_call()
        key = sha256_hex(canonical_json(request))
        occurrence = self._occurrences[key]
        self._occurrences[key] += 1
        completion = await self.model.complete(request, replicate=self.replicate, occurrence=occurrence)
        self.meter.after_model_call(completion)
        self.journal.add(
            "model_call", predictor=predictor, request=key, occurrence=occurrence, text=completion.text,
            tool_calls=[{"id": c.id, "name": c.name, "arguments": c.arguments, "raw": c.raw} for c in completion.tool_calls],
            finish_reason=completion.finish_reason, input_tokens=completion.usage.input_tokens,
            output_tokens=completion.usage.output_tokens, latency_s=completion.latency_s, recorded=completion.recorded,
        )  # fmt: skip
        limit = self.limits.tokens
        used = self.meter.input_tokens + self.meter.output_tokens
        if limit is not None and used > limit:
            raise self.meter.exceeded("tokens", used, limit)
        return completion

    def accept_outputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Validated outputs in wire form.

        Raises:
            pydantic.ValidationError: they do not fit the signature.
            LimitExceeded: they are too large.
        """
        typed = self.spec.validate_outputs(values)
        wire = self.spec.wire_outputs(typed)
        size = len(canonical_json(wire))
        if size > self.limits.output_bytes:
            raise self.meter.exceeded("output_bytes", size, self.limits.output_bytes)
        return wire

    def invalid(self, problem: str) -> OutputInvalid:
        return OutputInvalid("No output that fits the signature", value=problem,
                             remedy="See the run's receipt for what the model returned.")  # fmt: skip

    def limit(self, name: str, used: Any, allowed: Any) -> LimitExceeded:
        return self.meter.exceeded(name, used, allowed)
