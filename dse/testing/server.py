"""A loopback server that speaks the OpenAI chat protocol and misbehaves on demand.

with FakeOpenAI([status(429, retry_after=2), ok("hello")]) as server:
    register_loopback_provider("loop", server.base_url)
    model = resolve_model("loop/any-name")
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dse.errors import ModelError
from dse.testing.faults import Faults
from dse.testing.reactions import Reaction, cut, dropped, hang, malformed, ok, raw, slow, stalled, status, truncated

__all__ = [
    "FakeOpenAI", "Reaction", "cut", "dropped", "hang", "malformed", "ok", "raw", "register_loopback_provider", "slow",
    "stalled", "status", "truncated", "unregister_loopback_provider",
]  # fmt: skip


class FakeOpenAI:
    """A context manager around the server.

    Args:
        handler: reactions in the order of the requests (the last one repeats), or a function of the request's body.
        faults: what goes wrong with a share of the requests, instead of the handler's reaction.

    ``bodies`` and ``headers`` hold what was received, ``kinds`` what went wrong with each request (None: nothing),
    ``count`` how many requests there were, ``base_url`` is the address for a client.
    """

    def __init__(
        self, handler: Sequence[Reaction] | Callable[[dict[str, Any]], Reaction], *, faults: Faults | None = None
    ) -> None:
        if not callable(handler) and not handler:
            raise ModelError("A fake server needs at least one reaction")
        self._handler = handler
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.kinds: list[str | None] = []
        self._faults = faults
        self._times: Counter[str] = Counter()

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
            text = json.dumps(body, sort_keys=True)
            kind = None if self._faults is None else self._faults.kind(body, self._times[text])
            self._times[text] += 1
            self.kinds.append(kind)
        handler = self._handler
        honest = handler(body) if callable(handler) else handler[min(index, len(handler) - 1)]
        return honest if kind is None else Faults.applied(kind, honest)

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
        if reaction.how in ("hang", "drop"):
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
        if reaction.how in ("cut", "stall"):
            self.close_connection = True
            self.wfile.write(reaction.body[: len(reaction.body) // 2])
            if reaction.how == "stall":
                self.wfile.flush()
                fake._closing.wait()
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
