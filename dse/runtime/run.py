"""One run: its identity, inputs, journal, meter and effects. Strategies get one of these and nothing else."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import ValidationError

from dse.canonical import canonical_json, sha256_hex
from dse.contracts.script import Script, scripts_in
from dse.contracts.signature import SignatureSpec
from dse.errors import (
    InfrastructureError,
    LimitExceeded,
    ModelError,
    ModelUnavailable,
    OutputInvalid,
    Unserialisable,
)
from dse.limits import Meter
from dse.plan import Plan
from dse.runtime.redaction import Secrets, safe_message

if TYPE_CHECKING:
    from dse.models.lm import Completion, LanguageModel, Request
    from dse.runtime.dispatcher import Dispatcher

__all__ = ["Effects", "Journal", "Run"]


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
        path = [seen, [{k: v for k, v in e.items() if k not in _INCIDENTAL} for e in calls]]
        # Canonical text, made directly: entries hold JSON data already, and a guest's odd text must not fail a run.
        text = json.dumps(path, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + sha256_hex(text.encode("utf-8", "surrogatepass"))


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
        self.secrets = Secrets(spec.sensitive, replies=any(f.sensitive for f in spec.outputs.values()))
        self.secrets.remember(self.wire_inputs, spec.sensitive)
        self.effects = Effects()
        self.receipts: list[dict[str, Any]] = []
        self.dispatcher: Dispatcher = None  # type: ignore[assignment]  # set by the program right after
        self.trace: Callable[[str, dict[str, Any], dict[str, Any]], None] | None = None
        self._occurrences: Counter[str] = Counter()
        self._texts: _Texts = {}
        self.attempt = 0
        self._scope: anyio.CancelScope | None = None
        self._waiting = 0
        self._paused_at = 0.0
        self._left = 0.0

    # --- active time

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """One attempt, bounded by ``active_s``.

        Raises:
            LimitExceeded: it took longer.
        """
        with anyio.move_on_after(self.limits.active_s) as scope:
            self._scope = scope
            self._waiting = 0
            yield
        if scope.cancelled_caught:
            allowed = f"{self.limits.active_s:g} s"
            raise self.meter.exceeded("active_s", allowed, allowed)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Waiting for a decision: the time inside does not count as active."""
        scope = self._scope
        if scope is None:
            yield
            return
        if self._waiting == 0:
            self._paused_at = anyio.current_time()
            self._left = scope.deadline - self._paused_at
            scope.deadline = float("inf")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if self._waiting == 0:
                now = anyio.current_time()
                scope.deadline = now + self._left
                self.meter.waited_s += now - self._paused_at

    def start(self) -> None:
        """The run begins now."""
        self.meter.started = time.monotonic()

    def again(self) -> None:
        """Begin the next attempt: fresh limits, the same run."""
        self.attempt += 1
        self.meter = self.meter.fresh()

    # --- the model

    async def complete(self, request: Request, *, predictor: str) -> Completion:
        """Ask the model, within the limits; journals the request's id and the completion.

        Raises:
            LimitExceeded, ModelUnavailable, ModelError, CassetteMiss
        """
        if self.model is None:
            raise InfrastructureError("This run has no model", remedy="Give the program an lm.")
        self.meter.before_model_call()
        key = self._request_id(request)
        occurrence = self._occurrences[key]
        self._occurrences[key] += 1
        try:
            completion = await self.model.complete(request, replicate=self.replicate, occurrence=occurrence)
        except LimitExceeded as exc:  # the model's own limit, the context
            exc.details.setdefault("outcome", self.limits.outcome(exc.details.get("limit", "context")))
            raise
        if self.limits.tokens is not None and None in (completion.usage.input_tokens, completion.usage.output_tokens):
            completion = _with_estimated_usage(completion, request)
        self.meter.after_model_call(completion)
        calls = [{"id": c.id, "name": c.name, "arguments": c.arguments, "raw": c.raw} for c in completion.tool_calls]
        entry = {"text": completion.text, "tool_calls": calls}
        try:
            json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, TypeError) as exc:  # NaN, half a surrogate pair
            raise ModelUnavailable(f"{self.model.name} sent a reply that JSON cannot hold", value=str(exc)) from None
        self.journal.add(
            "model_call", predictor=predictor, request=key, occurrence=occurrence, **entry,
            finish_reason=completion.finish_reason, input_tokens=completion.usage.input_tokens,
            output_tokens=completion.usage.output_tokens, latency_s=completion.latency_s, recorded=completion.recorded,
        )  # fmt: skip
        if self.limits.cost_usd is not None and completion.cost_usd is None:
            raise ModelError("A limit on cost cannot be kept: the model's cost is unknown", value=self.model.name,
                             remedy="Give prices (dse.PriceTable), or remove Limits(cost_usd=...).")  # fmt: skip
        self.meter.check_model_call()
        return completion

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
        """
        if self.secrets.names:
            self.secrets.remember(values, self.spec.sensitive)
        try:
            typed = self.spec.validate_outputs(values)
            wire = self.spec.wire_outputs(typed)
            if self.secrets.names:
                self.secrets.remember(wire, self.spec.sensitive)
            size = len(canonical_json(wire))
        except ValidationError:
            raise
        except Unserialisable as exc:
            raise ValueError(f"{exc.what}. {exc.remedy}") from None
        except Exception as exc:  # a validator of the signature's types that cannot take what the model gave
            raise ValueError(f"the outputs cannot be validated: {safe_message(exc)}") from None
        if size > self.limits.output_bytes:
            if self.limits.outcome("output_bytes") == "fail_step":
                raise ValueError(f"the outputs take {size} bytes; {self.limits.output_bytes} are allowed")
            raise self.meter.exceeded("output_bytes", size, self.limits.output_bytes)
        for path, script in scripts_in(typed):
            await self._check_script(path, script)
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

    def invalid(self, problem: str) -> OutputInvalid:
        return OutputInvalid("No output that fits the signature", value=problem,
                             remedy="See the run's receipt for what the model returned.")  # fmt: skip

    def limit(self, name: str, used: Any, allowed: Any) -> LimitExceeded:
        return self.meter.exceeded(name, used, allowed)


_Texts = dict[int, tuple[Any, bytes]]  # canonical texts by the identity of a part, which is kept so that it stays its own
_tool_texts: _Texts = {}


def _text(part: dict[str, Any], texts: _Texts) -> bytes:
    known = texts.get(id(part))
    if known is None or known[0] is not part:
        if len(texts) > 4_096:
            texts.clear()
        known = texts[id(part)] = (part, canonical_json(part))
    return known[1]


def _with_estimated_usage(completion: Completion, request: Request) -> Completion:
    """A limit on tokens holds also where the model does not count them."""
    import dataclasses

    from dse.models.lm import estimate_usage

    usage = estimate_usage(request, completion.text, completion.tool_calls)
    return dataclasses.replace(completion, usage=usage)
