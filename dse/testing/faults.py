"""Seeded faults for the loopback server: what goes wrong with a share of its requests, the same in every run.

server = FakeOpenAI(answers(script), faults=Faults(rate=0.3, seed=7))

Whether a request goes wrong, and how, is decided by a hash of the seed, the request and how often it came before: the
order in which concurrent requests arrive changes nothing, and a repeated request has a new chance.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dse.errors import ModelError
from dse.models.lm import Completion, Request
from dse.testing.reactions import Reaction, cut, dropped, hang, malformed, ok, raw, stalled, status, truncated

if TYPE_CHECKING:
    from dse.testing.scripted import Script

__all__ = ["OUTSIDE", "REPLIES", "Faults", "answers"]

_RETRY_AFTER_S = 2
_PAGE = b"<html><body><h1>Bad gateway</h1></body></html>"


def _date(seconds: float) -> str:
    return email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds), usegmt=True)


def _whole(reaction: Reaction) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(reaction.body)
    return body


def _changed(reaction: Reaction, finish: str, change: Callable[[dict[str, Any]], None]) -> Reaction:
    """The honest completion with another message."""
    body = _whole(reaction)
    choice = body["choices"][0]
    change(choice["message"])
    choice["finish_reason"] = finish
    return replace(reaction, body=json.dumps(body).encode())


def _cut_short(message: dict[str, Any]) -> None:
    message["content"] = (message["content"] or "")[: len(message["content"] or "") // 3]
    for call in message.get("tool_calls", ()):
        function = call["function"]
        function["arguments"] = function["arguments"][: len(function["arguments"]) // 3]


def _functions(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls of a message; a text becomes a message with one call."""
    if not message.get("tool_calls"):
        message["content"] = None
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": {"name": "no_such_tool", "arguments": "{}"}}]
    return [call["function"] for call in message["tool_calls"]]


def _other_tool(message: dict[str, Any]) -> None:
    for function in _functions(message):
        function["name"] = "no_such_tool"


def _broken_arguments(message: dict[str, Any]) -> None:
    for function in _functions(message):
        function["arguments"] = '{"name": "unfinis'


def _foreign_arguments(message: dict[str, Any]) -> None:
    for function in _functions(message):
        function["arguments"] = '{"colour": ["green"], "depth": null}'


_KINDS: dict[str, Callable[[Reaction], Reaction]] = {
    "429": lambda honest: status(429, "slow down"),
    "429-seconds": lambda honest: status(429, "slow down", retry_after=_RETRY_AFTER_S),
    "429-date": lambda honest: status(429, "slow down", retry_after=_date(_RETRY_AFTER_S)),
    "500": lambda honest: status(500),
    "502": lambda honest: Reaction(status=502, body=_PAGE, headers={"Content-Type": "text/html"}),
    "503": lambda honest: status(503, retry_after=_RETRY_AFTER_S),
    "hang": lambda honest: hang(),
    "stall": stalled,
    "drop": lambda honest: dropped(),
    "cut": cut,
    "malformed": lambda honest: malformed(),
    "truncated": truncated,
    "error-in-200": lambda honest: raw('{"error": {"message": "overloaded", "code": 503}}'),
    "no-choices": lambda honest: replace(honest, body=json.dumps({**_whole(honest), "choices": []}).encode()),
    "empty": lambda honest: ok(""),
    "length": lambda honest: _changed(honest, "length", _cut_short),
    "unknown-tool": lambda honest: _changed(honest, "tool_calls", _other_tool),
    "broken-arguments": lambda honest: _changed(honest, "tool_calls", _broken_arguments),
    "foreign-arguments": lambda honest: _changed(honest, "tool_calls", _foreign_arguments),
}
REPLIES = ("length", "unknown-tool", "broken-arguments", "foreign-arguments")
"""Faults that are bad replies of the model itself: the candidate has to cope with them."""
OUTSIDE = tuple(kind for kind in _KINDS if kind not in REPLIES)
"""Faults of the endpoint: nobody's program failed."""


@dataclass(frozen=True)
class Faults:
    """What goes wrong with a share of the requests.

    ``429`` (without Retry-After, ``429-seconds``, ``429-date``: 2 s from now), ``500``, ``502`` (a gateway's page),
    ``503`` (with Retry-After); ``hang`` (no reply), ``stall`` (half a body, then nothing); ``drop`` (the connection
    ends before the headers), ``cut`` (in the middle of the body); ``malformed`` (HTML behind a 200), ``truncated``
    (half of the JSON), ``error-in-200``, ``no-choices``, ``empty`` (a completion without text or calls). In `REPLIES`:
    ``length`` (the first third of the reply, with that finish_reason), ``unknown-tool``, ``broken-arguments`` (no JSON),
    ``foreign-arguments``.

    Args:
        rate: the share of requests that go wrong, in [0, 1].
        kinds: what may go wrong, with equal chances; default `OUTSIDE`.
        seed: another seed, other requests.
        only: decides which request bodies may go wrong at all; default all.
    """

    rate: float = 0.3
    kinds: Sequence[str] = OUTSIDE
    seed: int = 0
    only: Callable[[dict[str, Any]], bool] | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(_KINDS))
        if unknown or not self.kinds or not 0 <= self.rate <= 1:
            raise ModelError("These faults do not exist", value=unknown or self.rate,
                             remedy=f"Use a rate from 0 to 1 and kinds of: {', '.join(_KINDS)}.")  # fmt: skip

    def kind(self, body: dict[str, Any], nth: int) -> str | None:
        """What goes wrong with the `nth` (from 0) request of that body; None if nothing does."""
        if self.only is not None and not self.only(body):
            return None
        text = json.dumps([self.seed, nth, body], sort_keys=True)
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        return None if number >= self.rate else self.kinds[int(number / self.rate * len(self.kinds))]

    @staticmethod
    def applied(kind: str, honest: Reaction) -> Reaction:
        """What is sent instead of `honest`."""
        return _KINDS[kind](honest)


def answers(script: Script | Callable[[Request], Completion]) -> Callable[[dict[str, Any]], Reaction]:
    """A handler for ``FakeOpenAI`` from a sync script function, as ``ScriptedModel`` takes one.

    Tokens are counted as `estimate_usage` does.
    """
    from dse.testing.scripted import _completion

    def handler(body: dict[str, Any]) -> Reaction:
        request = _request(body)
        done = _completion(script(request), request, name="loopback", latency_s=0.0)  # type: ignore[operator]
        calls = [(c.name, (c.raw or "") if c.arguments is None else c.arguments) for c in done.tool_calls]
        usage = (done.usage.input_tokens or 0, done.usage.output_tokens or 0)
        finish = {"tool_call": "tool_calls"}.get(done.finish_reason, done.finish_reason)
        return ok(done.text, calls, finish_reason=finish, usage=usage, first_id=_calls_in(request) + 1)

    return handler


def _calls_in(request: Request) -> int:
    return sum(len(message.get("tool_calls") or ()) for message in request["messages"])


def _request(body: dict[str, Any]) -> Request:
    """An OpenAI chat body as the request that it was made from."""
    messages = []
    for given in body["messages"]:
        role = "system" if given["role"] == "developer" else given["role"]
        message: dict[str, Any] = {"role": role, "content": given.get("content") or ("" if role != "assistant" else None)}
        if given.get("tool_calls"):
            message["tool_calls"] = [{"id": c["id"], "name": c["function"]["name"],
                                      "arguments": json.loads(c["function"]["arguments"])}
                                     for c in given["tool_calls"]]  # fmt: skip
        if role == "tool":
            message["tool_call_id"] = given["tool_call_id"]
        messages.append(message)
    tools = [{key: tool["function"].get(key) or "" for key in ("name", "description")}
             | {"parameters": tool["function"].get("parameters") or {}} for tool in body.get("tools", ())]  # fmt: skip
    return {"messages": messages, "tools": tools, "tool_choice": "auto" if tools else None}
