"""What a loopback server may do with one request, good and bad."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

__all__ = ["Reaction", "cut", "dropped", "hang", "malformed", "ok", "raw", "slow", "stalled", "status", "truncated"]

_LONG = "a reply that is long enough to be cut in two"


@dataclass(frozen=True)
class Reaction:
    """What the server does with one request: send `body`, in full or in part, at once or not at all.

    ``cut``: half of the body, then the connection ends; ``stall``: half of it, then nothing; ``drop``: the connection
    ends before any byte; ``hang``: nothing.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    how: Literal["whole", "cut", "stall", "drop", "hang"] = "whole"
    delay_s: float = 0.0


def ok(
    text: str | None = None, calls: Sequence[tuple[str, dict[str, Any] | str]] = (), *, finish_reason: str | None = None,
    usage: tuple[int, int] | None = (100, 20), model: str = "fake-model", first_id: int = 1,
) -> Reaction:  # fmt: skip
    """A completion of text and tool calls; arguments given as a string are sent as they are (for malformed JSON)."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{index}", "type": "function",
             "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)}}
            for index, (name, given) in enumerate(calls, first_id)
        ]  # fmt: skip
    body: dict[str, Any] = {
        "id": "chatcmpl-fake", "object": "chat.completion", "created": 0, "model": model,
        "choices": [{"index": 0, "message": message,
                     "finish_reason": finish_reason or ("tool_calls" if calls else "stop")}],
    }  # fmt: skip
    if usage is not None:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Reaction(body=json.dumps(body).encode())


def status(code: int, message: str = "scripted failure", *, retry_after: float | str | None = None,
           error_code: str | None = None) -> Reaction:  # fmt: skip
    """An error reply in OpenAI's envelope."""
    body = {"error": {"message": message, "type": "scripted", "code": error_code}}
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Reaction(status=code, body=json.dumps(body).encode(), headers=headers)


def raw(body: str | bytes, *, code: int = 200) -> Reaction:
    """Any body."""
    return Reaction(status=code, body=body.encode() if isinstance(body, str) else body)


def malformed() -> Reaction:
    """A gateway's HTML page behind a 200."""
    return Reaction(body=b"<html><body>upstream is having a day</body></html>", headers={"Content-Type": "text/html"})


def truncated(reaction: Reaction | None = None) -> Reaction:
    """Half of a completion's JSON in a reply that is complete as HTTP."""
    whole = reaction or ok(_LONG)
    return replace(whole, body=whole.body[: len(whole.body) // 2])


def cut(reaction: Reaction | None = None) -> Reaction:
    """Half of a reply, then the connection is closed."""
    return replace(reaction or ok(_LONG), how="cut")


def stalled(reaction: Reaction | None = None) -> Reaction:
    """Half of a reply, then nothing until the server is closed."""
    return replace(reaction or ok(_LONG), how="stall")


def dropped() -> Reaction:
    """The connection is closed before anything is sent."""
    return Reaction(how="drop")


def hang() -> Reaction:
    """No reply until the server is closed."""
    return Reaction(how="hang")


def slow(seconds: float, reaction: Reaction | None = None) -> Reaction:
    """A reply after `seconds` of real time."""
    return replace(reaction or ok("late"), delay_s=seconds)
