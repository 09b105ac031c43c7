"""A loopback server that speaks the OpenAI chat protocol and misbehaves on demand.

with FakeOpenAI([status(429, retry_after=2), ok("hello")]) as server:
    register_loopback_provider("loop", server.base_url)
    model = resolve_model("loop/any-name")
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from dse.errors import ModelError

__all__ = [
    "FakeOpenAI", "Reaction", "cut", "hang", "malformed", "ok", "raw", "register_loopback_provider", "slow", "status",
    "truncated", "unregister_loopback_provider",
]  # fmt: skip


@dataclass(frozen=True)
class Reaction:
    """What the server does with one request: send `body`, in full or in part, at once or not at all."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    how: Literal["whole", "cut", "hang"] = "whole"
    delay_s: float = 0.0


def ok(
    text: str | None = None, calls: Sequence[tuple[str, dict[str, Any] | str]] = (), *, finish_reason: str | None = None,
    usage: tuple[int, int] | None = (100, 20), model: str = "fake-model",
) -> Reaction:  # fmt: skip
    """A completion of text and tool calls; arguments given as a string are sent as they are (for malformed JSON)."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{index}", "type": "function",
             "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)}}
            for index, (name, given) in enumerate(calls, 1)
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
    whole = reaction or ok("a reply that is long enough to be cut in two")
    return Reaction(status=whole.status, body=whole.body[: len(whole.body) // 2], headers=whole.headers)


def cut(reaction: Reaction | None = None) -> Reaction:
    """Half of a reply, then the connection is closed."""
    whole = reaction or ok("a reply that is long enough to be cut in two")
    return Reaction(status=whole.status, body=whole.body, headers=whole.headers, how="cut")


def hang() -> Reaction:
    """No reply until the server is closed."""
    return Reaction(how="hang")


def slow(seconds: float, reaction: Reaction | None = None) -> Reaction:
    """A reply after `seconds` of real time."""
    whole = reaction or ok("late")
    return Reaction(status=whole.status, body=whole.body, headers=whole.headers, delay_s=seconds)


class FakeOpenAI:
    """A context manager around the server.

    Args:
        handler: reactions in the order of the requests (the last one repeats), or a function of the request's body.

    ``bodies`` and ``headers`` hold what was received, ``count`` how many requests there were, ``base_url`` is the
    address for a client.
    """

    def __init__(self, handler: Sequence[Reaction] | Callable[[dict[str, Any]], Reaction]) -> None:
        if not callable(handler) and not handler:
            raise ModelError("A fake server needs at least one reaction")
        self._handler = handler
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []

    @property
    def count(self) -> int:
        return len(self.bodies)

    @property
    def base_url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    def _react(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Reaction:
        with self._lock:
            index = len(self.bodies)
            self.paths.append(path)
            self.headers.append(headers)
            self.bodies.append(body)
            if not callable(self._handler):
                return self._handler[min(index, len(self._handler) - 1)]
        return self._handler(body)

    def __enter__(self) -> FakeOpenAI:
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="fake-openai", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, fake: FakeOpenAI) -> None:
        self.fake = fake
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of the server's business."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, or the client waits for the second
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        fake = self.server.fake
        length = int(self.headers.get("Content-Length") or 0)
        try:
            body = json.loads(self.rfile.read(length))
        except ValueError:
            body = {}
        reaction = fake._react(self.path, dict(self.headers.items()), body)
        if reaction.how == "hang":
            fake._closing.wait()
            self.close_connection = True
            return
        if reaction.delay_s:
            fake._closing.wait(reaction.delay_s)
        self.send_response(reaction.status)
        for name, value in {"Content-Type": "application/json", **reaction.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reaction.body)))
        self.end_headers()
        if reaction.how == "cut":
            self.close_connection = True
            self.wfile.write(reaction.body[: len(reaction.body) // 2])
        else:
            self.wfile.write(reaction.body)
        self.wfile.flush()


def register_loopback_provider(name: str, base_url: str) -> None:
    """Let ``dspy.LM("<name>/<model>")`` reach an OpenAI-compatible server with native function calling.

    Replaces an earlier registration of the name; models made before keep theirs. Takes letters, digits and hyphens.
    """
    import os

    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    from dspy import lm15

    definition = lm15.ProviderDefinition.chat(
        lm15.AccessPolicy(provider=name, base_url=base_url), compat=lm15.OpenAIChatCompat(), placeholder_key="none"
    )
    lm15.register_provider(definition, supports=lm15.ModelSupport(function_calling=True), replace=True)


def unregister_loopback_provider(name: str) -> None:
    """Forget the name."""
    from dspy import lm15

    lm15.unregister_provider(name)
