"""Models that follow a script: for tests, examples and dry runs without any provider.

Their names start with ``scripted/``, so that no receipt or artifact can mistake one for a language model.

    model = ScriptedModel([call(("get_expenses", {"user_id": 7, "quarter": "Q1"})), say("done")])
    model = ScriptedModel(lambda request: say("yes" if "refund" in request["messages"][-1]["content"] else "no"))
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dse.errors import ModelError
from dse.models.lm import Completion, Request, ToolCallPart, canonical_request, estimate_usage

__all__ = ["AsyncScriptedEngine", "Reply", "Script", "ScriptedEngine", "ScriptedModel", "call", "say"]

Reply = Completion | str | Sequence[ToolCallPart] | Exception
"""What a script answers: a completion, its text, its tool calls, or an exception to raise."""

Script = Callable[[Request], Reply | Awaitable[Reply]] | Sequence[Reply]
"""A (sync or async) function of the request, or replies given in the order of asking."""


def say(text: str, *, finish_reason: str = "stop") -> Completion:
    """A completion that is text."""
    return Completion(text=text, finish_reason=finish_reason)


def call(*calls: tuple[str, dict[str, Any] | str], text: str | None = None) -> Completion:
    """A completion with tool calls: ``call(("name", {...}), ...)``. A string as arguments is malformed JSON.

    Ids are given when the completion is returned: ``call_<n>``, counting on from the calls in the request.
    """
    parts = tuple(
        ToolCallPart("", name, None, given) if isinstance(given, str) else ToolCallPart("", name, given)
        for name, given in calls
    )
    return Completion(text=text, tool_calls=parts, finish_reason="tool_call")


@dataclass
class _Player:
    """Finds the reply to a request. Shared by the sync and the async face of an engine."""

    script: Script
    asked: int = 0

    def next(self, request: Request) -> Any:
        self.asked += 1
        if callable(self.script):
            return self.script(request)
        if self.asked > len(self.script):
            raise ModelError(f"The script has {len(self.script)} replies and was asked {self.asked} times",
                             value=request["messages"][-1].get("content"),
                             remedy="Give more replies, or a function of the request.")  # fmt: skip
        return copy.deepcopy(self.script[self.asked - 1])


def _completion(reply: Any, request: Request, *, name: str, latency_s: float) -> Completion:
    if isinstance(reply, Exception):
        raise reply
    if isinstance(reply, str):
        reply = say(reply)
    elif isinstance(reply, (list, tuple)) and reply and all(isinstance(part, ToolCallPart) for part in reply):
        reply = Completion(text=None, tool_calls=tuple(reply), finish_reason="tool_call")
    if not isinstance(reply, Completion):
        raise ModelError("A script answers with say(...), call(...), text, tool calls or an exception",
                         value=reply)  # fmt: skip
    before = sum(len(message.get("tool_calls") or ()) for message in request["messages"])
    calls = tuple(
        part if part.id else replace(part, id=f"call_{before + index}") for index, part in enumerate(reply.tool_calls, 1)
    )
    usage = reply.usage
    if usage.input_tokens is None and usage.output_tokens is None:
        usage = estimate_usage(request, reply.text, calls)
    return replace(reply, tool_calls=calls, usage=usage, latency_s=reply.latency_s or latency_s, model=reply.model or name)


def _scripted(name: str) -> str:
    if not name.startswith("scripted/"):
        raise ModelError("The name of a scripted model must say so", value=name, remedy="Start it with 'scripted/'.")
    return name


class ScriptedModel:
    """A `LanguageModel` that follows `script`.

    Args:
        script: replies in the order of asking, or a (sync or async) function of the request.
        name: must start with ``scripted/``.
        supports_tools: if False, a request with tools is an error (a text-mode strategy must not send them).
        latency_s: the reported latency; nothing is waited for.
        params: reported sampling parameters.

    ``requests`` holds a copy of every request, in the order of asking. Tokens are estimated unless a reply's
    completion has its own usage.
    """

    def __init__(
        self, script: Script, name: str = "scripted/model", supports_tools: bool = True, latency_s: float = 0.0, *,
        params: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.name = _scripted(name)
        self.params: dict[str, Any] = dict(params or {})
        self.supports_tools = supports_tools
        self.requests: list[Request] = []
        self._latency_s = latency_s
        self._player = _Player(script)

    async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        request = copy.deepcopy(canonical_request(request))
        self.requests.append(request)
        if request["tools"] and not self.supports_tools:
            raise ModelError(f"{self.name} supports no tools, but the request has some",
                             value=[tool["name"] for tool in request["tools"]],
                             remedy="Send tools only where supports_tools is true.")  # fmt: skip
        reply = self._player.next(request)
        if inspect.isawaitable(reply):
            reply = await reply
        return _completion(reply, request, name=self.name, latency_s=self._latency_s)

    async def aclose(self) -> None:
        """Nothing to close."""


def _response(reply: Any, native: Any, request: Request, name: str) -> Any:
    from dspy import lm15

    completion = _completion(reply, request, name=name, latency_s=0.0)
    parts: list[Any] = [lm15.TextPart(completion.text)] if completion.text is not None else []
    for part in completion.tool_calls:
        # lm15's own form of malformed arguments
        given = {"partial_json": part.raw} if part.arguments is None else part.arguments
        parts.append(lm15.ToolCallPart(part.id, part.name, json.loads(json.dumps(given))))
    usage = lm15.Usage(input_tokens=completion.usage.input_tokens, output_tokens=completion.usage.output_tokens)
    return lm15.Response(
        id=None, model=native.model, message=lm15.Message("assistant", tuple(parts) or (lm15.TextPart(""),)),
        finish_reason=completion.finish_reason, usage=usage,
    )  # fmt: skip


class ScriptedEngine:
    """An lm15 engine that follows `script`, with native tools and usage (tokens as `estimate_usage` counts them).

    Works in ``dspy.LM("scripted/model", engine=engine, async_engine=engine.twin())`` and in `resolve_model(engine)`.
    The script must be sync; `twin` (an `AsyncScriptedEngine`) takes an async one too and continues the same script.
    """

    inline = True  # no I/O: dse needs no thread for it
    supports_function_calling = True
    supports_reasoning = False
    supports_response_schema = False
    supported_params = frozenset(("temperature", "max_tokens", "tools", "tool_choice"))

    def __init__(self, script: Script, name: str = "scripted/engine") -> None:
        self.name = _scripted(name)
        self.requests: list[Request] = []
        self._player = _Player(script)

    def _next(self, native: Any) -> tuple[Request, Any]:
        from dse.models.engines import request_from_lm15

        request = request_from_lm15(native)
        self.requests.append(request)
        return request, self._player.next(request)

    def complete(self, request: Any) -> Any:
        """`request`: a dspy.lm15.Request; returns a dspy.lm15.Response."""
        asked, reply = self._next(request)
        if inspect.isawaitable(reply):
            if inspect.iscoroutine(reply):
                reply.close()
            raise ModelError("An async script needs the async engine", value=self.name, remedy="Use engine.twin().")
        return _response(reply, request, asked, self.name)

    def twin(self) -> AsyncScriptedEngine:
        """The async face of the same script and the same ``requests``."""
        return AsyncScriptedEngine(self)


class AsyncScriptedEngine:
    """The async face of a `ScriptedEngine`."""

    supports_function_calling = True
    supports_reasoning = False
    supports_response_schema = False
    supported_params = ScriptedEngine.supported_params

    def __init__(self, engine: ScriptedEngine | Script, name: str = "scripted/engine") -> None:
        self._engine = engine if isinstance(engine, ScriptedEngine) else ScriptedEngine(engine, name)
        self.name = self._engine.name
        self.requests = self._engine.requests

    async def complete(self, request: Any) -> Any:
        asked, reply = self._engine._next(request)
        if inspect.isawaitable(reply):
            reply = await reply
        return _response(reply, request, asked, self.name)
