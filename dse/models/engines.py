"""Live models: dspy's language models and lm15 engine objects. The only module here that imports dspy, and late.

dspy's response cache, retries and call history are off: asking again is dse's decision, and answers are stored by
cassettes and journals only.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import re
import time
import traceback
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from dse.canonical import canonical_json, digest, parse_json
from dse.errors import DseError, MalformedJSON, ModelError, ModelUnavailable, Unserialisable
from dse.models.faults import map_error
from dse.models.lm import Completion, Request, ToolCallPart, Usage, canonical_request
from dse.threads import shared

if TYPE_CHECKING:
    import dspy
    from dspy import lm15

__all__ = ["DspyModel", "EngineModel", "from_dspy_lm", "request_from_lm15", "request_to_lm15"]

# Settings of a dspy.LM that belong to the connection or to dspy: no part of what is asked, so not of the identity.
_CLIENT_KEYS = frozenset((
    "api_key", "api_base", "base_url", "headers", "extra_headers", "timeout", "api_version", "organization", "project",
    "azure_ad_token_provider", "extra_query", "custom_llm_provider", "prompt_cache",
))  # fmt: skip
_OURS = {
    "cache": "answers are stored by cassettes",
    "num_retries": "use RetryingModel",
    "rollout_id": "use replicate=",
    "n": "ask several times with replicate=",
    "num_generations": "ask several times with replicate=",
    "engine": "give the engine object itself as the model",
    "async_engine": "give the engine object itself as the model",
    "stream": "completions are not streamed",
}
_SURROGATES = re.compile("[\ud800-\udfff]")
_ENGINE_THREADS = 256  # of all engines that are plain functions
_REMEMBERED = 4096


def _import_dspy() -> Any:
    # Without this the first price look-up tries to download a table.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    import dspy

    return dspy


def _config(lm15: Any, model: str, sampling: dict[str, Any], compat: Any = None) -> lm15.Config:
    """Sampling parameters in OpenAI's names as an lm15 Config; what it cannot carry is refused, never dropped."""
    body = {"model": model, "messages": [{"role": "user", "content": "-"}], **sampling}
    try:
        return lm15.request_from_openai_chat(body, compat=compat).config
    except (lm15.LM15Error, TypeError, ValueError) as exc:
        raise ModelError(f"{model} cannot be given these parameters: {exc}", value=sampling,
                         remedy="Leave the parameter out, or correct its value.") from exc  # fmt: skip


def _identity(model: str, params: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(json.loads(canonical_json(params)))
    except Unserialisable as exc:
        raise ModelError(f"A sampling parameter of {model} is not plain JSON data", value=exc.value,
                         remedy="They are part of a program's identity: give JSON values.") from exc  # fmt: skip


def request_to_lm15(
    request: Request, *, model: str, config: lm15.Config, originals: dict[str, lm15.Message] | None = None
) -> lm15.Request:
    """A request as dspy's engines take it.

    Tool results carry the name of the call they answer, and neighbouring ones share one message (some providers
    insist on either). `originals` maps the digest of a conversation up to and including an assistant message to
    that message as the provider gave it, with hidden reasoning that it may want back.

    Raises:
        ModelError: for a request that has no such form.
    """
    from dspy import lm15

    request = canonical_request(request)
    system: list[str] = []
    messages: list[lm15.Message] = []
    results: list[lm15.ToolResultPart] = []
    names: dict[str, str] = {}
    try:
        for index, message in enumerate(request["messages"]):
            role, content = message["role"], message.get("content")
            if role == "tool":
                call_id = message["tool_call_id"]
                results.append(lm15.ToolResultPart(call_id, (lm15.TextPart(content),), name=names.get(call_id)))
                continue
            if results:
                messages.append(lm15.Message("tool", tuple(results)))
                results = []
            if role == "user":
                messages.append(lm15.Message.user(content))
            elif role == "assistant":
                names.update((call["id"], call["name"]) for call in message.get("tool_calls", ()))
                original = originals.get(digest(request["messages"][: index + 1])) if originals else None
                messages.append(original or _assistant(lm15, message))
            elif not messages:
                if content:
                    system.append(content)
            else:
                messages.append(lm15.Message.developer(content))
        if results:
            messages.append(lm15.Message("tool", tuple(results)))
        if choice := request.get("tool_choice"):
            config = replace(config, tool_choice=replace(config.tool_choice or lm15.ToolChoice(), mode=choice))
        tools = tuple(
            lm15.FunctionTool(tool["name"], tool.get("description"), tool["parameters"]) for tool in request["tools"]
        )
        return lm15.Request(
            model=model, messages=tuple(messages), system="\n\n".join(system) or None, tools=tools, config=config
        )
    except (TypeError, ValueError, KeyError) as exc:
        raise ModelError(f"A model request cannot be sent: {exc}", remedy="Correct the request.") from exc


def _assistant(lm15: Any, message: dict[str, Any]) -> lm15.Message:
    parts: list[Any] = []
    if message.get("content"):
        parts.append(lm15.TextPart(message["content"]))
    for call in message.get("tool_calls", ()):
        # Providers take objects only, so malformed JSON goes back the way lm15 itself reports it.
        given = call["arguments"] if "arguments" in call else {"partial_json": call["raw"]}
        parts.append(lm15.ToolCallPart(call["id"], call["name"], given))
    return lm15.Message("assistant", tuple(parts) or (lm15.TextPart(""),))


def request_from_lm15(request: lm15.Request) -> Request:
    """The other way: an engine's request as our data (used by scripted engines). Media parts are refused."""
    from dspy import lm15

    def text(parts: Any) -> str:
        found = [part.text for part in parts if isinstance(part, lm15.TextPart)]
        if any(part.type in ("image", "audio", "video", "document", "binary") for part in parts):
            raise ModelError("The request holds media, which a scripted engine cannot show", value=request.model)
        return "\n".join(found)

    messages: list[dict[str, Any]] = []
    if request.system:
        system = request.system if isinstance(request.system, str) else text(request.system)
        messages.append({"role": "system", "content": system})
    for message in request.messages:
        if message.role == "tool":
            messages += [{"role": "tool", "tool_call_id": part.id, "content": text(part.content)} for part in message.parts]
            continue
        role = "system" if message.role == "developer" else message.role
        item: dict[str, Any] = {"role": role, "content": text(message.parts)}
        if calls := message.parts_of(lm15.ToolCallPart):
            item["tool_calls"] = [{"id": c.id, "name": c.name, "arguments": c.input} for c in calls]
            item["content"] = item["content"] or None
        messages.append(item)
    tools = [
        {"name": t.name, "description": t.description or "", "parameters": t.parameters}
        for t in request.tools
        if isinstance(t, lm15.FunctionTool)
    ]
    choice = request.config.tool_choice
    mode = choice.mode if choice is not None and choice.mode in ("auto", "required") else None
    return {"messages": messages, "tools": tools, "tool_choice": mode}


def _wire_arguments(response: lm15.Response) -> list[tuple[str, Any]]:
    """(name, arguments as sent) of the tool calls in the reply's body, in order; empty where the body is unknown.

    lm15 turns malformed JSON into an ordinary-looking object, so the body is asked.
    """
    return [(str(call.get("name")), call.get("arguments")) for call in _wire_calls(response.provider_data)]


def _wire_calls(body: Any) -> list[dict[str, Any]]:
    """The objects of a reply's body that hold ``name`` and ``arguments`` of its tool calls, in order."""
    body = body if isinstance(body, dict) else {}
    found: list[dict[str, Any]] = []
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        message = choices[0].get("message")
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and (call.get("type") or "function") == "function":
                found.append(function)
    output = body.get("output")
    for item in output if isinstance(output, list) else ():
        if isinstance(item, dict) and item.get("type") == "function_call":
            found.append(item)
    return found


class _Unread(NamedTuple):
    """A reply of a provider that could not be read, and what it was to be read with."""

    provider: Any
    request: lm15.Request
    reply: Any


def _unread(exc: BaseException) -> _Unread | None:
    """The reply that lm15 could not read, if that is what went wrong.

    The error does not carry it, and nobody else has it: dspy makes its providers itself. So it is taken from where the
    error came from.
    """
    cause: BaseException | None = exc
    while cause is not None:
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            if frame.f_code.co_name == "parse_response":
                return _Unread(*(frame.f_locals.get(name) for name in ("self", "request", "response")))
        cause = cause.__cause__
    return None


def _with_bad_numbers(unread: _Unread) -> lm15.Response | None:
    """The response, if it was refused for NaN or infinity in the arguments of a call; else None.

    Other arguments that are no JSON lm15 lets through. For these it refuses the whole reply, which is read once more
    without the bad arguments.
    """
    provider, request, reply = unread
    try:
        body = reply.json()
        whole, bad = copy.deepcopy(body), False
        for call in _wire_calls(body):
            if isinstance(call["arguments"], str) and _arguments(call["arguments"]) is None:
                call["arguments"], bad = "{}", True
        if not bad:
            return None
        read = provider.parse_response(request, replace(reply, body=json.dumps(body).encode()))
        return replace(read, provider_data=whole)
    except Exception:  # then that reply is refused for something else as well
        return None


def _tool_calls(response: lm15.Response, request: lm15.Request) -> tuple[ToolCallPart, ...]:
    calls = response.tool_calls
    if not calls:
        return ()
    wire = _wire_arguments(response)
    known = len(wire) == len(calls) and all(w[0] == c.name for w, c in zip(wire, calls, strict=True))
    result: list[ToolCallPart] = []
    for index, call in enumerate(calls):
        raw = wire[index][1] if known else None
        if not isinstance(raw, str):
            result.append(_without_body(call, request))
            continue
        result.append(_call(call, _arguments(raw), raw))
    return tuple(result)


def _call(call: lm15.ToolCallPart, arguments: dict[str, Any] | None, raw: str | None) -> ToolCallPart:
    return ToolCallPart(_clean(call.id), _clean(call.name), arguments,
                        _clean(raw or "") if arguments is None else None)  # fmt: skip


def _arguments(raw: str) -> dict[str, Any] | None:
    """The object in `raw`, or None where it holds none that everything later can carry."""
    try:
        arguments = parse_json(raw, source="the arguments") if raw.strip() else {}
        # Deeper by the levels at which a request or a journal holds arguments.
        canonical_json([[[[[[[[[[arguments]]]]]]]]]])
    except (MalformedJSON, Unserialisable):
        return None
    return arguments if isinstance(arguments, dict) else None


def _clean(text: str) -> str:
    """Without lone surrogates, which no UTF-8 text can hold."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def _without_body(call: lm15.ToolCallPart, request: lm15.Request) -> ToolCallPart:
    partial = call.input.get("partial_json")
    if len(call.input) == 1 and isinstance(partial, str):
        schemas = [t.parameters for t in request.tools if t.type == "function" and t.name == call.name]
        if not any("partial_json" in (schema.get("properties") or {}) for schema in schemas):
            return _call(call, None, partial)
    try:
        canonical_json([[[[[[[[[[call.input]]]]]]]]]])
    except Unserialisable:
        return _call(call, None, json.dumps(call.input))
    return _call(call, call.input, None)


def _completion(
    lm15: Any, response: lm15.Response, request: lm15.Request, *, name: str, usage: Usage, latency_s: float,
    cost_usd: float | None = None,
) -> Completion:  # fmt: skip
    said = [part.text for part in response.message.parts if isinstance(part, (lm15.TextPart, lm15.RefusalPart))]
    said += [json.dumps(part.value, ensure_ascii=False) for part in response.message.parts_of(lm15.DataPart)]
    text = _clean("".join(said))
    calls = _tool_calls(response, request)
    if not calls and not text.strip() and response.finish_reason not in ("length", "content_filter"):
        raise ModelUnavailable(f"{name} gave an empty completion", kind="empty", model=name, cost_usd=cost_usd,
                               finish_reason=response.finish_reason, input_tokens=usage.input_tokens,
                               output_tokens=usage.output_tokens, remedy="Ask again.")  # fmt: skip
    return Completion(
        text=text or None, tool_calls=calls, finish_reason=response.finish_reason, usage=usage, cost_usd=cost_usd,
        # A catalogue price of unknown date times exact tokens is still an estimate.
        cost_source="unknown" if cost_usd is None else "estimated", latency_s=latency_s, model=response.model,
    )  # fmt: skip


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _usage(input_tokens: Any, output_tokens: Any) -> Usage:
    asked, said = _count(input_tokens), _count(output_tokens)
    return Usage(asked, said, "unknown" if asked is None or said is None else "exact")


def _check_litellm_knows(model: str, provider: str | None) -> None:
    """dspy hands what its native engines do not know to litellm; a provider unknown there too is a typo."""
    import litellm

    quiet, litellm.suppress_debug_info = litellm.suppress_debug_info, True  # it prints a banner otherwise
    try:
        litellm.get_llm_provider(model, custom_llm_provider=provider)
    except Exception as exc:
        raise ModelError(f"{model} names no provider that dspy or litellm knows", value=model, kind="model",
                         remedy="Give 'provider/model', such as 'openai/gpt-5-mini'.") from exc  # fmt: skip
    finally:
        litellm.suppress_debug_info = quiet


_history_entry: ContextVar[list[dict[str, Any]] | None] = ContextVar("dse_history_entry", default=None)


def _keep_history_entry(entry: dict[str, Any]) -> None:
    """Stands in for `LM.update_history`: the one public place where dspy says what a call cost. Nothing grows."""
    kept = _history_entry.get()
    if kept is not None:
        kept.append(entry)


class DspyModel:
    """A `dspy.LM` as a `LanguageModel`: one attempt per `complete`, no cache, no history."""

    def __init__(self, lm: dspy.LM, *, owned: bool) -> None:
        """`lm` is private to this object (a copy of a caller's, or built here); `owned`: its connections too."""
        from dspy import lm15
        from dspy.clients.backend_selection import select_backend

        self._lm = lm
        self._lm15 = lm15
        self._owned = owned
        lm.update_history = _keep_history_entry
        self.name: str = lm.model
        sampling = {k: v for k, v in lm.kwargs.items() if v is not None and k not in _CLIENT_KEYS and k not in _OURS}
        self.params = _identity(self.name, sampling)
        if lm.model_type != "chat":
            self.params["model_type"] = lm.model_type
        try:
            selection = select_backend(lm)
            if not selection.native and selection.resolution is None:
                _check_litellm_knows(self.name, lm.kwargs.get("custom_llm_provider"))
            self.supports_tools = bool(lm.supports_function_calling)
        except Exception as exc:
            raise map_error(exc, model=self.name, wire=False) from exc
        self._config = _config(lm15, self.name, sampling, getattr(selection.resolution, "compat", None))
        if lm.kwargs.get("prompt_cache") is not None:
            self._config = replace(self._config, cache=lm.kwargs["prompt_cache"])
        self._originals: OrderedDict[str, Any] = OrderedDict()

    @classmethod
    def from_string(cls, model: str, params: dict[str, Any]) -> DspyModel:
        """From ``provider/model``; `params` are sampling parameters and connection settings of `dspy.LM`."""
        for key, instead in _OURS.items():
            if key in params:
                raise ModelError(f"{key!r} is not a parameter of a model", value=params[key], remedy=instead)
        dspy = _import_dspy()
        try:
            lm = dspy.LM(model, cache=False, num_retries=0, **params)
        except Exception as exc:
            raise ModelError(f"{model or 'The empty string'} is no usable model: {exc}",
                             remedy="Give 'provider/model' and parameters that dspy.LM takes.") from exc  # fmt: skip
        return cls(lm, owned=True)

    async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        from dspy import settings

        prepared = request_to_lm15(request, model=self.name, config=self._config, originals=self._originals)
        kept: list[dict[str, Any]] = []
        token = _history_entry.set(kept)
        start = time.perf_counter()
        try:
            with settings.context(disable_history=False, send_stream=None):
                response = await self._lm.acall(prepared)
        except Exception as exc:
            unread = _unread(exc)
            read = None if unread is None else _with_bad_numbers(unread)
            if read is None:
                raise map_error(exc, model=self.name, wire=True) from exc
            response = read
        finally:
            _history_entry.reset(token)
        latency = time.perf_counter() - start
        entry = kept[-1] if kept else {}
        # dspy's figures count cached input everywhere; lm15's leave it out for some providers.
        counted = entry.get("usage") or {}
        if not kept:  # dspy has not seen the response
            counted = {"prompt_tokens": response.usage.input_tokens, "completion_tokens": response.usage.output_tokens}
        usage = _usage(counted.get("prompt_tokens"), counted.get("completion_tokens"))
        completion = _completion(
            self._lm15, response, prepared, name=self.name, usage=usage, latency_s=latency, cost_usd=entry.get("cost")
        )
        self._remember(request, response, completion)
        return completion

    def _remember(self, request: Request, response: lm15.Response, completion: Completion) -> None:
        """Keep an answer that holds more than we show (signed reasoning), to send it back whole in the next round."""
        message = response.message
        plain = all(part.type in ("text", "tool_call") and not part.continuation for part in message.parts)
        if not completion.tool_calls or (plain and not message.continuation):
            return
        turn: dict[str, Any] = {"role": "assistant"}
        if completion.text is not None:
            turn["content"] = completion.text
        turn["tool_calls"] = [
            {"id": c.id, "name": c.name, **({"raw": c.raw} if c.arguments is None else {"arguments": c.arguments})}
            for c in completion.tool_calls
        ]
        self._originals[digest([*canonical_request(request)["messages"], turn])] = message
        while len(self._originals) > _REMEMBERED:
            self._originals.popitem(last=False)

    async def aclose(self) -> None:
        if self._owned:
            await self._lm.aclose()


class EngineModel:
    """An lm15 engine object as a `LanguageModel`, asked directly.

    Its ``name`` (else ``model``) names the model. An async ``complete`` is awaited; a sync one runs in a thread (at
    most 32 at a time per event loop), or right here if the engine says ``inline = True``.
    """

    reports_cost = False  # a response of lm15 has tokens and no price

    def __init__(
        self, engine: Any, *, name: str | None = None, params: dict[str, Any] | None = None,
        config: lm15.Config | None = None,
    ) -> None:  # fmt: skip
        _import_dspy()
        from dspy import lm15

        self._engine = engine
        self._lm15 = lm15
        self.name = name or getattr(engine, "name", None) or getattr(engine, "model", None) or type(engine).__name__
        if not isinstance(self.name, str):
            raise ModelError("The engine's name is not a string", value=self.name)
        self.params = _identity(self.name, params or {})
        self.supports_tools = bool(getattr(engine, "supports_function_calling", False))
        self._config = config if config is not None else _config(lm15, self.name, self.params)
        self._async = _is_async(engine.complete)
        self._inline = getattr(engine, "inline", False) is True

    async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        prepared = request_to_lm15(request, model=self.name, config=self._config)
        start = time.perf_counter()
        try:
            if self._async:
                response = await self._engine.complete(prepared)
            elif self._inline:
                response = self._engine.complete(prepared)
            else:
                response = await shared("dse-engine", _ENGINE_THREADS).run(lambda: self._engine.complete(prepared))
        except Exception as exc:
            error = map_error(exc, model=self.name, wire=False)
            if error is exc:
                raise
            raise error from exc
        latency = time.perf_counter() - start
        if not isinstance(response, self._lm15.Response):
            raise ModelError(f"The engine of {self.name} returned no dspy.lm15.Response", value=type(response).__name__,
                             remedy="complete(Request) must return a Response.")  # fmt: skip
        usage = _usage(response.usage.input_tokens, response.usage.output_tokens)
        return _completion(self._lm15, response, prepared, name=self.name, usage=usage, latency_s=latency)

    async def aclose(self) -> None:
        """Engines are borrowed: nothing to close."""


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def from_dspy_lm(lm: Any) -> DspyModel | EngineModel:
    """A `dspy.LM` that the caller configured; it is copied and stays as it is.

    An LM over a custom engine is asked through that engine directly.
    """
    dspy = _import_dspy()
    if not isinstance(lm, dspy.LM):
        raise ModelError("Only dspy.LM can be used, not another subclass of dspy.BaseLM", value=type(lm).__name__,
                         remedy="Give it an engine: dspy.LM(model, engine=...), or give the engine itself.")  # fmt: skip
    try:
        if isinstance(lm.engine, str):
            return DspyModel(lm.copy(cache=False, num_retries=0), owned=False)
        engine = getattr(lm, "_async_engine_spec", None) or lm.engine
        from dspy import lm15

        sampling = {k: v for k, v in lm.kwargs.items() if v is not None and k not in _CLIENT_KEYS and k not in _OURS}
        model = EngineModel(
            engine, name=lm.model, params=sampling, config=_config(lm15, lm.model, _identity(lm.model, sampling))
        )
        model.supports_tools = bool(lm.supports_function_calling)
        return model
    except DseError:
        raise
    except Exception as exc:
        raise map_error(exc, model=lm.model, wire=False) from exc
