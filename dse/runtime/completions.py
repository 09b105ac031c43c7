"""Requests and completions as a journal knows them: ids of requests, and completions as entries and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dse.canonical import canonical_json, sha256_hex
from dse.errors import LimitExceeded, ModelUnavailable

if TYPE_CHECKING:
    from dse.models.lm import Completion, Request

__all__ = ["RequestIds", "entry_of", "recorded_completion", "with_estimated_usage"]

_Texts = dict[int, tuple[Any, bytes]]  # canonical texts by the identity of a part, which is kept so that it stays its own
_tool_texts: _Texts = {}


class RequestIds:
    """Hashes of one run's requests. The text of each message is kept: a conversation only grows, and is asked again."""

    def __init__(self) -> None:
        self._texts: _Texts = {}

    def of(self, request: Request) -> str:
        parts = [_text(message, self._texts) for message in request["messages"]]
        parts += [_text(tool, _tool_texts) for tool in request.get("tools", ())]
        return sha256_hex(b"\n".join(parts) + str(request.get("tool_choice")).encode())


def _text(part: dict[str, Any], texts: _Texts) -> bytes:
    known = texts.get(id(part))
    if known is None or known[0] is not part:
        if len(texts) > 4_096:
            texts.clear()
        known = texts[id(part)] = (part, canonical_json(part))
    return known[1]


def entry_of(completion: Completion, model: str) -> dict[str, Any]:
    """What a journal entry holds of a completion.

    Args:
        model: its name, for the error.

    Raises:
        ModelUnavailable: the reply is nothing that JSON can hold.
    """
    calls = [{"id": c.id, "name": c.name, "arguments": c.arguments, "raw": c.raw} for c in completion.tool_calls]
    reply = {"text": completion.text, "tool_calls": calls}
    try:
        json.dumps(reply, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as exc:  # NaN, half a surrogate pair
        raise ModelUnavailable(f"{model} sent a reply that JSON cannot hold", value=str(exc)) from None
    usage = completion.usage
    return {
        **reply, "finish_reason": completion.finish_reason, "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens, "usage_source": usage.source, "cost_usd": completion.cost_usd,
        "cost_source": completion.cost_source, "latency_s": completion.latency_s, "recorded": completion.recorded,
    }  # fmt: skip


def recorded_completion(entry: Mapping[str, Any]) -> Completion:
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


def with_estimated_usage(completion: Completion, request: Request) -> Completion:
    """A limit on tokens holds also where the model does not count them."""
    from dse.models.lm import estimate_usage

    usage = estimate_usage(request, completion.text, completion.tool_calls)
    return dataclasses.replace(completion, usage=usage)
