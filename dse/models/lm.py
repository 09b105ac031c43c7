"""The one door to language models.

A `LanguageModel` takes a `Request` (plain JSON data in the OpenAI chat shape) and gives a `Completion`. Whatever is
behind it (a dspy model string, a `dspy.LM`, an engine object, a cassette, a script), it fails in three ways only:
`ModelUnavailable` (nobody's fault, retry), `ModelError` (the caller's mistake, never retried) and `LimitExceeded`
with ``details["limit"] == "context"`` (the conversation outgrew the model: the candidate failed).

dspy is imported only when a live model is resolved.
"""

from __future__ import annotations

import copy
import json
import math
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Required, TypedDict, runtime_checkable

import anyio

from dse.errors import InfrastructureError, ModelError, ModelUnavailable
from dse.models.prices import PricedModel, PriceTable

__all__ = [
    "Completion", "LanguageModel", "PriceTable", "PricedModel", "Request", "RetryingModel", "ToolCallPart", "Usage",
    "canonical_request", "estimate_usage", "resolve_model", "wait_asked_for",
]  # fmt: skip

Source = Literal["exact", "estimated", "unknown"]


class Request(TypedDict, total=False):
    """What a model is asked, as plain JSON data.

    ``messages``: ``{"role": "system"|"user"|"assistant"|"tool", "content": str | None}``; an assistant message may
    have ``tool_calls: [{"id", "name", "arguments": dict}]`` (with ``raw`` and no ``arguments`` where the model's
    JSON was malformed), a tool message has ``tool_call_id``.
    ``tools``: ``[{"name", "description", "parameters": JSON schema}]``, may be empty.
    ``tool_choice``: ``"auto"``, ``"required"`` or None.
    """

    messages: Required[list[dict[str, Any]]]
    tools: list[dict[str, Any]]
    tool_choice: Literal["auto", "required"] | None


@dataclass(frozen=True)
class ToolCallPart:
    """One tool call of a completion. `arguments` is None when the model's JSON was malformed; `raw` then holds it."""

    id: str
    name: str
    arguments: dict[str, Any] | None
    raw: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of one completion. A count that nobody gave is None, and the source is then ``unknown``."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    source: Source = "unknown"

    def __post_init__(self) -> None:
        _amount("input_tokens", self.input_tokens)
        _amount("output_tokens", self.output_tokens)


@dataclass(frozen=True)
class Completion:
    """What a model answered.

    ``finish_reason`` is ``stop``, ``tool_call``, ``length``, ``content_filter`` or ``error``. ``latency_s`` is the
    time of the one successful attempt, in seconds; from a cassette it is the recorded time.
    """

    text: str | None
    tool_calls: tuple[ToolCallPart, ...] = ()
    finish_reason: str = "stop"
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    cost_source: Source = "unknown"
    latency_s: float = 0.0
    model: str = ""
    recorded: bool = False

    def __post_init__(self) -> None:
        _amount("cost_usd", self.cost_usd)
        _amount("latency_s", self.latency_s)


def _amount(name: str, value: float | None) -> None:
    """Refuse what would count limits and budgets down, or never reach them."""
    if value is not None and not 0 <= value < math.inf:
        raise ModelError(f"A completion's {name} is no amount", value=value, remedy="Give a number from 0 up, or None.")


@runtime_checkable
class LanguageModel(Protocol):
    """A model: `name` and `params` identify it (they go into ``program_id``), `complete` asks it.

    `replicate` and `occurrence` (how often this very request came up before in the rollout) tell otherwise equal
    requests apart; only a cassette uses them.
    """

    name: str
    params: dict[str, Any]
    supports_tools: bool

    async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion: ...

    async def aclose(self) -> None: ...


_ROLES = ("system", "user", "assistant", "tool")
_MESSAGE_KEYS = frozenset(("role", "content", "tool_calls", "tool_call_id"))
_CALL_KEYS = frozenset(("id", "name", "arguments", "raw"))
_TOOL_KEYS = frozenset(("name", "description", "parameters"))
_REQUEST_KEYS = frozenset(("messages", "tools", "tool_choice"))


def _refuse(where: str, what: str, value: Any) -> ModelError:
    return ModelError(f"A model request cannot be sent: {where} {what}", value=value,
                      remedy="See dse.models.lm.Request for the shape of a request.")  # fmt: skip


def _canonical_call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, dict) or not set(call) <= _CALL_KEYS:
        raise _refuse(where, "is not a tool call {id, name, arguments}", call)
    if not isinstance(call.get("id"), str) or not call["id"]:
        raise _refuse(where, "has no id", call)
    if not isinstance(call.get("name"), str) or not call["name"]:
        raise _refuse(where, "has no name", call)
    result: dict[str, Any] = {"id": call["id"], "name": call["name"]}
    if isinstance(call.get("arguments"), dict):
        result["arguments"] = call["arguments"]
    elif call.get("arguments") is None and isinstance(call.get("raw"), str):
        result["raw"] = call["raw"]
    else:
        raise _refuse(where, "needs arguments (an object), or raw where the model's JSON was malformed", call)
    return result


def _canonical_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not set(message) <= _MESSAGE_KEYS:
        raise _refuse(where, "is not a message {role, content, tool_calls, tool_call_id}", message)
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise _refuse(where, f"has a role that is none of {', '.join(_ROLES)}", role)
    calls = message.get("tool_calls")
    if content is not None and not isinstance(content, str):
        raise _refuse(where, "has content that is not text", content)
    result: dict[str, Any] = {"role": role}
    if content is not None:
        result["content"] = content
    elif role != "assistant":
        raise _refuse(where, "has no content", message)
    if calls:
        if role != "assistant" or not isinstance(calls, (list, tuple)):
            raise _refuse(where, "may not have these tool_calls (only an assistant message has a list of them)", calls)
        result["tool_calls"] = [_canonical_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if role == "tool":
        if not isinstance(message.get("tool_call_id"), str) or not message["tool_call_id"]:
            raise _refuse(where, "is a tool result without tool_call_id", message)
        result["tool_call_id"] = message["tool_call_id"]
    elif message.get("tool_call_id") is not None:
        raise _refuse(where, "has a tool_call_id but is no tool result", message)
    return result


def canonical_request(request: Request) -> Request:
    """The request with everything that says nothing left out, so that equal questions are equal data.

    ``content: None``, empty ``tool_calls`` and a ``tool_choice`` that changes nothing (``auto`` without tools) are
    dropped; the value is not copied deeply.

    Raises:
        ModelError: for a shape that `Request` does not describe.
    """
    if not isinstance(request, dict) or not set(request) <= _REQUEST_KEYS:
        raise _refuse("it", "is not {messages, tools, tool_choice}", request)
    messages, tools, choice = request.get("messages"), request.get("tools") or [], request.get("tool_choice")
    if not isinstance(messages, (list, tuple)) or not messages:
        raise _refuse("messages", "must be a list with at least one message", messages)
    if not isinstance(tools, (list, tuple)):
        raise _refuse("tools", "is not a list", tools)
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not set(tool) <= _TOOL_KEYS or not isinstance(tool.get("parameters"), dict):
            raise _refuse(f"tools[{index}]", "is not {name, description, parameters}", tool)
        name = tool.get("name")
        if not isinstance(name, str) or not name or name in seen:
            raise _refuse(f"tools[{index}]", "has no name of its own", name)
        seen.add(name)
    if choice not in (None, "auto", "required"):
        raise _refuse("tool_choice", "is not auto, required or None", choice)
    if choice == "required" and not tools:
        raise _refuse("tool_choice", "is 'required' but there are no tools", choice)
    result: Request = {
        "messages": [_canonical_message(message, f"messages[{i}]") for i, message in enumerate(messages)],
        "tools": list(tools),
    }
    if choice is not None and tools:
        result["tool_choice"] = choice
    return result


def _characters(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":"), ensure_ascii=False))


def estimate_usage(request: Request, text: str | None, tool_calls: tuple[ToolCallPart, ...] = ()) -> Usage:
    """Tokens guessed as a quarter of the characters, marked ``estimated``."""
    canonical = canonical_request(request)
    asked = _characters(canonical["messages"]) + (_characters(canonical["tools"]) if canonical["tools"] else 0)
    said = len(text or "")
    for call in tool_calls:
        said += len(call.name)
        said += len(call.raw or "") if call.arguments is None else _characters(call.arguments)
    return Usage(-(-asked // 4), max(1, -(-said // 4)), "estimated")


def wait_asked_for(error: InfrastructureError) -> float:
    """Seconds that an endpoint asked to be left alone; 0 where it said nothing that can be waited for."""
    asked = error.details.get("retry_after_s")
    if isinstance(asked, bool) or not isinstance(asked, (int, float)) or not math.isfinite(asked):
        return 0.0
    return max(0.0, float(asked))


def _time_left() -> float:
    """Seconds until the run, or whatever else surrounds this call, is cut off."""
    return anyio.current_effective_deadline() - anyio.current_time()


class RetryingModel:
    """Asks again when a model is unavailable; every other failure passes at once.

    A wait that would outlast the time there is (the run's ``active_s``, a cancel scope of the caller) is not begun:
    an outage then ends as what it is, and not as a limit that the program reached.

    Args:
        inner: the model.
        attempts: how often to ask at most, >= 1.
        base_s, max_s: the wait before attempt k+1 is ``min(max_s, base_s * 2**(k-1))``, times a jitter in
            [0.5, 1) from a generator seeded with `seed`.
        max_retry_after_s: an endpoint that asks for a longer wait than this is not waited for.
        timeout_s: seconds for one attempt, or None.
        before_attempt: called as ``await before_attempt(request, attempt)`` before every paid attempt (the first is
            1); what it raises, such as `BudgetExhausted`, ends the call.
        before_wait: called with the seconds before every wait; what it raises, such as `BudgetExhausted`, ends the call.
        sleep: ``await sleep(seconds)``.
        time_left: seconds that a wait may take; by default until the surrounding cancel scopes end.

    Raises:
        ModelUnavailable: after the last attempt, or the last one that there was time for, with ``details["attempts"]``.
    """

    def __init__(
        self, inner: LanguageModel, attempts: int = 4, base_s: float = 0.5, max_s: float = 30.0, *,
        max_retry_after_s: float = 120.0, timeout_s: float | None = None,
        before_attempt: Callable[[Request, int], Awaitable[None]] | None = None,
        before_wait: Callable[[float], None] | None = None, sleep: Callable[[float], Awaitable[Any]] = anyio.sleep,
        time_left: Callable[[], float] = _time_left, seed: int = 0,
    ) -> None:  # fmt: skip
        if attempts < 1:
            raise ModelError("RetryingModel needs at least one attempt", value=attempts)
        self.inner = inner
        self.name = inner.name
        self.params = inner.params
        self.supports_tools = inner.supports_tools
        self.attempts = attempts
        self.base_s = base_s
        self.max_s = max_s
        self.max_retry_after_s = max_retry_after_s
        self.timeout_s = timeout_s
        self.before_attempt = before_attempt
        self.before_wait = before_wait
        self._sleep = sleep
        self._time_left = time_left
        self._random = random.Random(seed)

    async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        for attempt in range(1, self.attempts + 1):
            if self.before_attempt is not None:
                await self.before_attempt(request, attempt)
            try:
                return await self._ask(request, replicate, occurrence)
            except ModelUnavailable as exc:
                exc.details["attempts"] = attempt
                asked = wait_asked_for(exc)
                if attempt == self.attempts or asked > self.max_retry_after_s:
                    raise
                backoff = min(self.max_s, self.base_s * 2 ** (attempt - 1)) * (0.5 + self._random.random() / 2)
                wait, left = max(backoff, asked), self._time_left()
                if wait >= left:
                    exc.details.update(wait_s=wait, time_left_s=max(0.0, left))
                    raise
                if self.before_wait is not None:
                    self.before_wait(wait)
            await self._sleep(wait)
        raise AssertionError("unreachable")

    def over(self, inner: LanguageModel, before_wait: Callable[[float], None] | None = None) -> RetryingModel:
        """The same patience with `inner`; `before_wait` is called besides this model's own."""
        mine, other = self.before_wait, copy.copy(self)

        def both(seconds: float) -> None:
            for check in (mine, before_wait):
                if check is not None:
                    check(seconds)

        other.inner, other.before_wait = inner, both
        return other

    async def _ask(self, request: Request, replicate: int, occurrence: int) -> Completion:
        if self.timeout_s is None:
            return await self.inner.complete(request, replicate=replicate, occurrence=occurrence)
        with anyio.move_on_after(self.timeout_s):
            return await self.inner.complete(request, replicate=replicate, occurrence=occurrence)
        raise ModelUnavailable(f"{self.name} gave no answer within {self.timeout_s:g} s", kind="timeout",
                               remedy="It is asked again; raise timeout_s if the model is just slow.")  # fmt: skip

    async def aclose(self) -> None:
        await self.inner.aclose()


def _is_dspy_lm(spec: Any) -> bool:
    dspy = sys.modules.get("dspy")  # an instance can only exist when dspy is imported
    return dspy is not None and isinstance(spec, dspy.BaseLM)


def resolve_model(
    spec: Any, *, record: str | Path | None = None, prices: PriceTable | None = None,
    params: dict[str, Any] | None = None,
) -> LanguageModel:  # fmt: skip
    """A `LanguageModel` from whatever names one.

    Args:
        spec: a dspy model string (``"openai/gpt-5-mini"``), a `dspy.LM`, an lm15 engine object (sync or async
            ``complete(Request) -> Response``), a `LanguageModel`, or ``"replay:FILE"``.
        record: a cassette file (.jsonl) that answers what it knows and records the rest.
        prices: replaces every cost by this table's.
        params: sampling and connection parameters for a model string, or sampling parameters for an engine.

    Raises:
        ModelError: for a spec that can never work.
        CassetteError: for a cassette that cannot be read or written.
    """
    model: LanguageModel
    takes_params = True
    if isinstance(spec, str) and spec.startswith("replay:"):
        from dse.store.cassette import Cassette, ReplayModel

        if record is not None:
            raise ModelError("A replay is not recorded", value=spec, remedy="Give a live model, or no record=.")
        model, takes_params = ReplayModel(Cassette.open(spec[len("replay:") :])), False
    elif isinstance(spec, str):
        from dse.models.engines import DspyModel

        model = DspyModel.from_string(spec, params or {})
    elif _is_dspy_lm(spec):
        from dse.models.engines import from_dspy_lm

        model, takes_params = from_dspy_lm(spec), False
    elif all(hasattr(spec, name) for name in ("name", "params", "supports_tools", "complete")):
        model, takes_params = spec, False
    elif callable(getattr(spec, "complete", None)):
        from dse.models.engines import EngineModel

        model = EngineModel(spec, params=params)
    else:
        raise ModelError("This names no language model", value=spec,
                         remedy="Give a dspy model string such as 'openai/gpt-5-mini', a dspy.LM, an lm15 engine, "
                                "a LanguageModel, or 'replay:FILE'.")  # fmt: skip
    if params and not takes_params:
        raise ModelError("params= can only be given with a model string or an engine", value=sorted(params),
                         remedy="Set them on the model itself.")  # fmt: skip
    if record is not None:
        from dse.store.cassette import RecordModel

        model = RecordModel(model, record)
    return model if prices is None else PricedModel(model, prices)
