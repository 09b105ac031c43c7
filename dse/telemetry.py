"""OpenTelemetry spans and metrics, after the semantic conventions for generative AI, version 1.41.0.

Off until ``configure()`` is called or ``DSE_TELEMETRY=1`` is set; then opentelemetry is imported, not before.

    span                      around                                   parent
    ``compile {signature}``   a compile                                the caller's span
    ``rollout {signature}``   one candidate on one row, with its score the compile or evaluation
    ``invoke_agent {...}``    a run, in every mode and face            the rollout, or the caller's span
    ``chat {model}``          one completion, its retries included     the run
    ``execute_tool {name}``   one tool call, refused ones included     the run
    ``feed``                  one script in the sandbox (mode code)    the run

Attributes never hold inputs, outputs, prompts, arguments or results, unless ``configure(content=True)``; sensitive
fields are hidden then, too. Nothing that goes wrong here changes what a run does.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar

from dse.errors import DseError, RunSuspended, UserError

__all__ = ["SCHEMA_URL", "configure", "disable"]

SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.0"
"""The version of the semantic conventions that is followed."""

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)
_HIDDEN = "[redacted]"
_OTHER = "_OTHER"  # stands for names that a model made up
_TOKENS = [4**n for n in range(14)]  # the conventions' bucket boundaries
_SECONDS = [0.01 * 2**n for n in range(14)]
# Names of providers where the conventions have others than model strings.
_PROVIDERS = {
    "azure": "azure.ai.openai", "azure_ai": "azure.ai.inference", "bedrock": "aws.bedrock", "gemini": "gcp.gemini",
    "mistral": "mistral_ai", "vertex_ai": "gcp.vertex_ai", "watsonx": "ibm.watsonx.ai", "xai": "x_ai",
}  # fmt: skip
_SAMPLING = ("temperature", "top_p", "max_tokens", "frequency_penalty", "presence_penalty", "seed")

active: _Telemetry | None = None  # all that is looked at while telemetry is off


def configure(tracer_provider: Any = None, meter_provider: Any = None, *, content: bool = False) -> None:
    """Report spans and metrics from now on; replaces an earlier configuration.

    Args:
        tracer_provider, meter_provider: default the global ones, also when those are set later.
        content: put inputs, outputs, prompts, completions, scripts, arguments and results into attributes.

    Raises:
        UserError: opentelemetry is not installed.
    """
    global active
    try:
        active = _Telemetry(tracer_provider, meter_provider, content)
    except ImportError as exc:
        raise UserError("OpenTelemetry is not installed", value=str(exc),
                        remedy="pip install 'dse-compiler[telemetry]'.") from exc  # fmt: skip


def disable() -> None:
    """Report nothing any more; spans that are open end as usual."""
    global active
    active = None


class _Telemetry:
    """Where spans and metrics go."""

    def __init__(self, tracer_provider: Any, meter_provider: Any, content: bool) -> None:
        from opentelemetry import context, metrics, trace

        from dse import __version__

        self.context, self.trace, self.content = context, trace, content
        self.tracer = trace.get_tracer("dse", __version__, tracer_provider, schema_url=SCHEMA_URL)
        meter = metrics.get_meter("dse", __version__, meter_provider, schema_url=SCHEMA_URL)
        self.tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS)  # fmt: skip
        self.duration = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECONDS)  # fmt: skip
        self.own_duration = meter.create_histogram(
            "dse.operation.duration", "s", "Duration of compiles, rollouts and feeds.",
            explicit_bucket_boundaries_advisory=_SECONDS)  # fmt: skip


# --- one operation --------------------------------------------------------------------------------------


class _Operation:
    """A span and what is measured of it. Subclasses say what it is called and what is in it."""

    client = False
    current = True  # spans that begin inside become its children
    own = False  # the conventions have no such operation

    def __init__(self, on: _Telemetry, name: str, start: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
        self.on = on
        self.measured = dict(measured)
        kinds = on.trace.SpanKind
        self.span = on.tracer.start_span(name, kind=kinds.CLIENT if self.client else kinds.INTERNAL,
                                         attributes=_given({**measured, **start}))  # fmt: skip
        self.token = on.context.attach(on.trace.set_span_in_context(self.span)) if self.current else None
        self.started = time.perf_counter()

    def finish(self, result: Any, exc: BaseException | None) -> dict[str, Any]:
        """Attributes that are known at the end; with ``error.type`` where it failed without raising."""
        return {}

    def measure(self, result: Any, seconds: float, measured: Mapping[str, Any]) -> None:
        (self.on.own_duration if self.own else self.on.duration).record(seconds, measured)

    def end(self, result: Any, exc: BaseException | None) -> None:
        on, seconds = self.on, time.perf_counter() - self.started
        try:
            found = self.finish(result, exc)
            error = found.get("error.type") or _error_type(exc)
            if error is not None:
                found["error.type"] = error
            self.span.set_attributes(_given(found))
            if error is not None:
                self.span.set_status(on.trace.StatusCode.ERROR, self.description(exc))
            self.measure(result, seconds, _given({**self.measured, "error.type": error}))
        finally:
            if self.token is not None:
                on.context.detach(self.token)
            self.span.end()

    def description(self, exc: BaseException | None) -> str | None:
        """Of an error. Its text may quote values, so it is content."""
        return None if exc is None else type(exc).__name__


def _error_type(exc: BaseException | None) -> str | None:
    """The code of a dse error, else the class; waiting for a decision is no error."""
    if exc is None or isinstance(exc, RunSuspended):
        return None
    return exc.code if isinstance(exc, DseError) else type(exc).__qualname__


def _given(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}


def _quietly(work: Callable[[], T]) -> T | None:
    """Telemetry must not change what a run does."""
    try:
        return work()
    except Exception:
        _log.warning("telemetry failed", exc_info=True)
        return None


async def _during(begin: Callable[[], _Operation], work: Callable[[], Awaitable[T]]) -> T:
    operation = _quietly(begin)
    try:
        result = await work()
    except BaseException as exc:
        if operation is not None:
            _quietly(functools.partial(operation.end, None, exc))
        raise
    if operation is not None:
        _quietly(functools.partial(operation.end, result, None))
    return result


_Method = Callable[P, Coroutine[Any, Any, T]]


def _operation(kind: Callable[..., _Operation]) -> Callable[[_Method[P, T]], _Method[P, T]]:
    """A decorator for coroutine methods: while telemetry is on, a call is an operation of that kind."""

    def decorate(method: _Method[P, T]) -> _Method[P, T]:
        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
            on = active
            if on is None:
                return method(*args, **kwargs)
            return _during(lambda: kind(on, *args, **kwargs), lambda: method(*args, **kwargs))

        return call

    return decorate


# --- content --------------------------------------------------------------------------------------------


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace").decode()


def _free(secrets: Any, text: str | None) -> str | None:
    """Free text. Where a run knows anything sensitive, nobody can say what such text holds, however it is escaped."""
    return _HIDDEN if text and (secrets.names or secrets.results or secrets.replies) else text


def _message(message: Mapping[str, Any], secrets: Any) -> dict[str, Any]:
    """A chat message in the form of the conventions."""
    if message["role"] == "tool":
        response = _free(secrets, message["content"])
        return {"role": "tool", "parts": [{"type": "tool_call_response", "id": message["tool_call_id"], "response": response}]}
    parts: list[dict[str, Any]] = []
    if message.get("content"):
        parts.append({"type": "text", "content": _free(secrets, message["content"])})
    for call in message.get("tool_calls") or ():
        given = secrets.hide(call["arguments"]) if call.get("arguments") is not None else _free(secrets, call.get("raw"))
        parts.append({"type": "tool_call", "id": call["id"], "name": call["name"], "arguments": given})
    return {"role": message["role"], "parts": parts}


# --- the operations -------------------------------------------------------------------------------------


def _model(name: str | None) -> dict[str, Any]:
    """Provider and model of a dse model name such as ``openai/gpt-5-mini``."""
    if name is None:
        return {"gen_ai.provider.name": "dse"}
    provider, _, model = name.partition("/")
    if not model:
        provider, model = _OTHER, name
    return {"gen_ai.provider.name": _PROVIDERS.get(provider, provider), "gen_ai.request.model": model}


class _OfRun(_Operation):
    """An operation of a run, whose errors can be told as far as its secrets allow."""

    run: Any

    def description(self, exc: BaseException | None) -> str | None:
        if self.on.content and isinstance(exc, DseError):
            return _free(self.run.secrets, exc.what)
        return super().description(exc)


class _Chat(_OfRun):
    client = True

    def __init__(self, on: _Telemetry, run: Any, request: Any, predictor: str) -> None:
        self.run, self.request = run, request
        asked = {"gen_ai.operation.name": "chat", **_model(run.model.name)}
        given = {name: run.model.params.get(name) for name in _SAMPLING}
        sampling = {f"gen_ai.request.{name}": value for name, value in given.items() if isinstance(value, (int, float))}
        super().__init__(on, f"chat {asked['gen_ai.request.model']}",
                         {**sampling, "dse.run_id": run.run_id, "dse.predictor": predictor}, asked)  # fmt: skip

    def finish(self, result: Any, exc: BaseException | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        secrets = self.run.secrets
        if self.on.content:
            found["gen_ai.input.messages"] = _json([_message(m, secrets) for m in self.request["messages"]])
        if result is None:
            return found
        usage = result.usage
        if self.on.content:
            calls = [{"id": c.id, "name": c.name, "arguments": c.arguments, "raw": c.raw} for c in result.tool_calls]
            said = _message({"role": "assistant", "content": result.text, "tool_calls": calls}, secrets)
            found["gen_ai.output.messages"] = _json([{**said, "finish_reason": result.finish_reason}])
        return {
            **found, "gen_ai.usage.input_tokens": usage.input_tokens, "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.response.model": result.model or None, "gen_ai.response.finish_reasons": [result.finish_reason],
            "dse.usage_source": usage.source, "dse.cost_usd": result.cost_usd, "dse.cost_source": result.cost_source,
            "dse.recorded": result.recorded,
        }  # fmt: skip

    def measure(self, result: Any, seconds: float, measured: Mapping[str, Any]) -> None:
        if result is None:
            return super().measure(result, seconds, measured)
        if result.recorded:
            return None  # nobody was asked and nothing was used
        if result.model:
            measured = {**measured, "gen_ai.response.model": result.model}
        usage = result.usage
        for kind, count in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            if count is not None:
                self.on.tokens.record(count, {**measured, "gen_ai.token.type": kind, "dse.usage_source": usage.source})
        return super().measure(result, seconds, measured)


class _Run(_OfRun):
    def __init__(self, on: _Telemetry, program: Any, run: Any, **_: Any) -> None:
        self.run = run
        asked = {"gen_ai.operation.name": "invoke_agent", **_model(run.model.name if run.model else None),
                 "gen_ai.agent.name": program.spec.name}  # fmt: skip
        stamp = {f"dse.{name}": program.stamp.get(name) for name in ("artifact_id", "unproven")}
        super().__init__(on, f"invoke_agent {program.spec.name}", {
            **stamp, "dse.run_id": run.run_id, "dse.program_id": run.program_id, "dse.mode": run.plan.mode}, asked)  # fmt: skip
        run.journal.subscribers.append(self.event)

    def event(self, entry: Mapping[str, Any]) -> None:
        """What went wrong or was decided on the way, as events of the innermost span."""
        if entry["kind"] in _EVENTS:
            _quietly(lambda: self._event(entry))

    def _event(self, entry: Mapping[str, Any]) -> None:
        kind, names = entry["kind"], _EVENTS[entry["kind"]]
        found = {f"dse.{name}": entry.get(name) for name in names}
        if kind == "code_error" and entry.get("problems"):
            found["dse.rules"] = sorted({str(problem[0]) for problem in entry["problems"]})
        if self.on.content:
            text = entry.get("problem") or entry.get("message") or entry.get("reason")
            found["dse.message"] = _free(self.run.secrets, text)
        self.on.trace.get_current_span().add_event(f"dse.{kind}", _given(found))

    def finish(self, result: Any, exc: BaseException | None) -> dict[str, Any]:
        run = self.run
        run.journal.subscribers.remove(self.event)
        details = exc.details if isinstance(exc, DseError) else {}
        receipt = result.receipt if result is not None else details.get("receipt") or {}
        ended: Mapping[str, Any] = next((e for e in reversed(run.journal.entries) if e["kind"] in ("run_finished", "run_stopped")), {})
        usage = run.meter.to_dict()
        found = {
            "gen_ai.usage.input_tokens": usage["input_tokens"], "gen_ai.usage.output_tokens": usage["output_tokens"],
            "dse.usage_source": usage["usage_source"], "dse.cost_usd": usage["cost_usd"],
            "dse.cost_source": usage["cost_source"], "dse.model_calls": usage["model_calls"],
            "dse.tool_calls": usage["tool_calls"], "dse.active_s": usage["active_s"], "dse.attempts": run.attempt + 1,
            "dse.outcome": ended.get("outcome"), "dse.effects": run.effects.summary(), "dse.limit": details.get("limit"),
        }  # fmt: skip
        if self.on.content:
            found |= {f"dse.{name}": _json(receipt[name]) for name in ("inputs", "outputs") if receipt.get(name) is not None}
        return found


# Journal entries that become events, with what of them is no content.
_EVENTS = {"retry": ("limit", "attempt"), "repair": ("predictor",), "code_error": ("stage", "class", "line"),
           "approval": ("tool", "call_id", "granted")}  # fmt: skip


class _Tool(_OfRun):
    def __init__(self, on: _Telemetry, dispatcher: Any, name: str, *_: Any, **__: Any) -> None:
        self.dispatcher, self.run = dispatcher, dispatcher.run
        self.place = len(self.run.receipts)  # where the receipt of this call will be
        self.tool = dispatcher.toolbox.get(name) if name in dispatcher.allow else None
        shown = _OTHER if self.tool is None else name
        super().__init__(on, f"execute_tool {shown}", {"gen_ai.tool.type": "function", "dse.run_id": self.run.run_id}, {
            "gen_ai.operation.name": "execute_tool", "gen_ai.provider.name": "dse", "gen_ai.tool.name": shown})  # fmt: skip

    def finish(self, result: Any, exc: BaseException | None) -> dict[str, Any]:
        receipt = self.run.receipts[self.place]
        found = {
            "gen_ai.tool.call.id": str(receipt["call_id"]), "dse.tool.effect": receipt["effect"],
            "dse.tool.outcome": "suspended" if isinstance(exc, RunSuspended) else receipt["outcome"],
            "dse.tool.latency_s": receipt["latency_s"],
        }  # fmt: skip
        if self.on.content and self.tool is not None:
            contract, secrets = self.tool.contract, self.run.secrets
            if receipt["arguments"] is not None:
                found["gen_ai.tool.call.arguments"] = _json(secrets.hide(receipt["arguments"]))
            if result is not None:
                hidden = "return" in contract.sensitive
                found["gen_ai.tool.call.result"] = _HIDDEN if hidden else _json(secrets.hide(result.value))
        return found


class _Feed(_OfRun):
    current = False  # tool calls are children of the run in every mode
    own = True

    def __init__(self, on: _Telemetry, session: Any, lint: Any, code: str) -> None:
        self.session, self.run, self.code = session, session.run, code
        self.errors, self.used = session.runtime_errors, self._interpreter_s()
        super().__init__(on, "feed", {"dse.run_id": self.run.run_id},
                         {"dse.operation": "feed", "gen_ai.agent.name": self.run.spec.name})  # fmt: skip

    def _interpreter_s(self) -> float:
        guest = self.session.session
        return float(self.run.meter.interpreter_s + (guest.interpreter_s if guest is not None else 0.0))

    def finish(self, result: Any, exc: BaseException | None) -> dict[str, Any]:
        found: dict[str, Any] = {"dse.interpreter_s": round(self._interpreter_s() - self.used, 6),
                                 "dse.submitted": self.session.outputs is not None}  # fmt: skip
        if self.session.runtime_errors > self.errors:  # the script failed, and the model is told
            last = next(e for e in reversed(self.run.journal.entries) if e["kind"] == "code_error")
            found["error.type"] = last["class"]
        if self.on.content:
            found["dse.code"] = _free(self.run.secrets, self.code)
        return found


class _Rollout(_Operation):
    own = True

    def __init__(self, on: _Telemetry, evaluator: Any, name: str, plan: Any, example: Any, replicate: int = 0,
                 known: Any = None) -> None:
        signature = evaluator.task.spec.name
        super().__init__(on, f"rollout {signature}", {
            "dse.candidate": name, "dse.mode": plan.mode, "dse.plan_id": plan.plan_id, "dse.row_hash": example.row_hash,
            "dse.replicate": replicate}, {"dse.operation": "rollout", "gen_ai.agent.name": signature})  # fmt: skip

    def finish(self, result: Any, exc: BaseException | None) -> dict[str, Any]:
        if result is None:
            return {}
        return {"dse.rollout_id": result.rollout_id, "dse.score": result.score, "dse.outcome": result.outcome,
                "dse.failure": result.error_class, "dse.reused": result.reused, "dse.cost_usd": result.cost_usd,
                "dse.cost_source": result.cost_source}  # fmt: skip

    def measure(self, result: Any, seconds: float, measured: Mapping[str, Any]) -> None:
        if result is None or not result.reused:
            super().measure(result, seconds, measured)


class _Compile(_Operation):
    own = True

    def __init__(self, on: _Telemetry, compiling: Any) -> None:
        signature = compiling.spec.name
        super().__init__(on, f"compile {signature}", {"dse.dataset": compiling.data.name}, {
            "dse.operation": "compile", "gen_ai.agent.name": signature})  # fmt: skip

    def finish(self, result: Any, exc: BaseException | None) -> dict[str, Any]:
        if result is None:
            return {}
        return {"dse.verdict": result.verdict, "dse.winner": result.winner, "dse.incumbent": result.incumbent,
                "dse.artifact_id": result.artifact.artifact_id, "dse.candidates": len(result.plans)}  # fmt: skip


compiling = _operation(_Compile)
rollout = _operation(_Rollout)
running = _operation(_Run)
tool_call = _operation(_Tool)
feed = _operation(_Feed)


async def chat(run: Any, request: Any, predictor: str, asking: Awaitable[T]) -> T:
    """Await a completion as an operation. Only while telemetry is on."""
    on = active
    if on is None:  # switched off just now
        return await asking
    return await _during(lambda: _Chat(on, run, request, predictor), lambda: asking)


if os.environ.get("DSE_TELEMETRY") == "1":
    try:
        configure()
    except UserError as failure:
        warnings.warn(f"DSE_TELEMETRY=1 has no effect. {failure}", RuntimeWarning, stacklevel=1)
