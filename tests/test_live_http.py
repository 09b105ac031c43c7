"""Live models over real HTTP, against a loopback server that speaks the OpenAI chat protocol and misbehaves."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from dse.errors import DseError, LimitExceeded, ModelError, ModelUnavailable
from dse.models.lm import Completion, PriceTable, Request, RetryingModel, Usage, resolve_model
from dse.store.cassette import RecordModel
from dse.testing.server import (
    FakeOpenAI,
    Reaction,
    cut,
    hang,
    malformed,
    ok,
    raw,
    register_loopback_provider,
    slow,
    status,
    truncated,
    unregister_loopback_provider,
)

TOOL = {
    "name": "get_expenses",
    "description": "Expense line items of one person.",
    "parameters": {
        "type": "object",
        "properties": {"user_id": {"type": "integer"}, "quarter": {"enum": ["Q1", "Q2"]}},
        "required": ["user_id", "quarter"],
    },
}
ASK: Request = {"messages": [{"role": "user", "content": "hello"}], "tools": [], "tool_choice": None}
ASK_TOOLS: Request = {
    "messages": [{"role": "system", "content": "Use the tools."}, {"role": "user", "content": "Who overspent?"}],
    "tools": [TOOL],
    "tool_choice": "required",
}


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # a proxy in the environment must not see loopback traffic
    yield
    unregister_loopback_provider("loopback")


def with_server(
    reactions: list[Reaction] | Callable[[dict[str, Any]], Reaction],
    main: Callable[[Any, FakeOpenAI], Awaitable[Any]],
    **params: Any,
) -> Any:
    """Run ``await main(model, server)`` with a live model of that server."""

    async def run(server: FakeOpenAI) -> Any:
        model = resolve_model("loopback/test-model", params=params)
        try:
            return await main(model, server)
        finally:
            await model.aclose()

    with FakeOpenAI(reactions) as server:
        register_loopback_provider("loopback", server.base_url)
        return asyncio.run(run(server))


def complete(reaction: Reaction, request: Request = ASK, **params: Any) -> Completion:
    return with_server([reaction], lambda model, server: model.complete(request), **params)


def failure(reaction: Reaction, **params: Any) -> DseError:
    with pytest.raises(DseError) as caught:
        complete(reaction, **params)
    return caught.value


class Waits(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def retried(*reactions: Reaction, attempts: int = 4, timeout_s: float | None = None) -> tuple[Any, list[float], int]:
    """(completion or error, waits, requests received) of a retrying model."""
    waits = Waits()

    async def main(model: Any, server: FakeOpenAI) -> tuple[Any, list[float], int]:
        retrying = RetryingModel(model, attempts=attempts, sleep=waits, timeout_s=timeout_s)
        try:
            return await retrying.complete(ASK), waits, server.count
        except DseError as exc:
            return exc, waits, server.count

    return with_server(list(reactions), main)


def test_plain_text_with_exact_usage_and_sampling_parameters() -> None:
    async def main(model: Any, server: FakeOpenAI) -> Completion:
        assert (model.name, model.params) == ("loopback/test-model", {"temperature": 0.5, "max_tokens": 64, "seed": 7})
        done = await model.complete(ASK)
        assert server.paths == ["/v1/chat/completions"]
        assert server.bodies == [
            {"model": "test-model", "messages": ASK["messages"], "temperature": 0.5, "max_completion_tokens": 64, "seed": 7}
        ]
        return done

    done = with_server([ok("hi there", usage=(11, 3))], main, temperature=0.5, max_tokens=64, seed=7)
    assert (done.text, done.tool_calls, done.finish_reason, done.recorded) == ("hi there", (), "stop", False)
    assert done.usage == Usage(11, 3, "exact")
    assert (done.cost_usd, done.cost_source) == (None, "unknown")  # no catalogue knows this model
    assert 0 < done.latency_s < 30


def test_native_tool_calls_there_and_back() -> None:
    async def main(model: Any, server: FakeOpenAI) -> None:
        assert model.supports_tools
        first = await model.complete(ASK_TOOLS)
        assert [(c.id, c.name, c.arguments) for c in first.tool_calls] == [
            ("call_1", "get_expenses", {"user_id": 7, "quarter": "Q1"}),
            ("call_2", "get_expenses", {"user_id": 8, "quarter": "Q2"}),
        ]
        assert (first.text, first.finish_reason) == ("Looking.", "tool_call")
        calls = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in first.tool_calls]
        followed = await model.complete({
            "messages": [
                *ASK_TOOLS["messages"],
                {"role": "assistant", "content": first.text, "tool_calls": calls},
                {"role": "tool", "tool_call_id": "call_1", "content": "[120.5]"},
                {"role": "tool", "tool_call_id": "call_2", "content": "[]"},
            ],
            "tools": [TOOL],
            "tool_choice": "auto",
        })  # fmt: skip
        assert followed.text == "Seven did."
        sent, then = server.bodies
        assert sent["tools"] == [{"type": "function", "function": TOOL}]
        assert (sent["tool_choice"], then["tool_choice"]) == ("required", "auto")
        assert [m["role"] for m in then["messages"]] == ["system", "user", "assistant", "tool", "tool"]
        again = then["messages"][2]
        assert again["content"] == "Looking."
        assert [(c["id"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in again["tool_calls"]] == [
            ("call_1", "get_expenses", {"user_id": 7, "quarter": "Q1"}),
            ("call_2", "get_expenses", {"user_id": 8, "quarter": "Q2"}),
        ]
        assert [(m["tool_call_id"], m["content"]) for m in then["messages"][3:]] == [("call_1", "[120.5]"), ("call_2", "[]")]

    calls = [("get_expenses", {"user_id": 7, "quarter": "Q1"}), ("get_expenses", {"user_id": 8, "quarter": "Q2"})]
    with_server([ok("Looking.", calls), ok("Seven did.")], main)


def test_hidden_reasoning_goes_back_with_the_calls_it_led_to() -> None:
    from dspy import lm15

    reply = json.loads(ok(None, [("get_expenses", {"user_id": 7, "quarter": "Q1"})]).body)
    reply["choices"][0]["message"]["reasoning_content"] = "I should look."

    async def main(server: FakeOpenAI) -> None:
        model = resolve_model("loopback/test-model")
        first = await model.complete(ASK_TOOLS)
        turn = {"role": "assistant", "content": None, "tool_calls": [
            {"id": c.id, "name": c.name, "arguments": c.arguments} for c in first.tool_calls]}  # fmt: skip
        result = {"role": "tool", "tool_call_id": "call_1", "content": "[]"}
        await model.complete({**ASK_TOOLS, "messages": [*ASK_TOOLS["messages"], turn, result]})
        elsewhere = {"role": "user", "content": "another conversation"}
        await model.complete({**ASK_TOOLS, "messages": [elsewhere, turn, result]})
        await model.aclose()
        assert first.text is None
        assert server.bodies[1]["messages"][2]["reasoning_content"] == "I should look."
        assert not server.bodies[2]["messages"][1].get("reasoning_content")

    with FakeOpenAI([raw(json.dumps(reply)), ok("done")]) as server:
        definition = lm15.ProviderDefinition.chat(
            lm15.AccessPolicy(provider="loopback", base_url=server.base_url), placeholder_key="none",
            compat=lm15.OpenAIChatCompat(thinking_replay="native"),
        )  # fmt: skip
        lm15.register_provider(definition, supports=lm15.ModelSupport(function_calling=True), replace=True)
        asyncio.run(main(server))


@pytest.mark.parametrize("arguments", ['{"user_id": 7', "[1, 2]", '"text"', "7", '{"a": 1, "a": 2}', '{"a": "\\ud800"}',
                                       '{"user_id": NaN}', '{"user_id": [-Infinity, 1]}'])  # fmt: skip
def test_malformed_tool_arguments_are_kept_as_they_came(arguments: str) -> None:
    good = ("get_expenses", {"user_id": 7, "quarter": "Q1"})
    done = complete(ok("Let me see", [good, ("get_expenses", arguments), good], usage=(30, 4)), ASK_TOOLS)
    assert (done.text, done.finish_reason, done.usage) == ("Let me see", "tool_call", Usage(30, 4, "exact"))
    assert [c.arguments for c in done.tool_calls] == [good[1], None, good[1]]
    assert [c.raw for c in done.tool_calls] == [None, arguments, None]


def test_half_a_surrogate_in_a_text_is_replaced() -> None:
    body = '{"choices": [{"message": {"content": "a\\ud800b"}, "finish_reason": "stop"}]}'
    assert complete(raw(body)).text == "a\ufffdb"


def test_an_argument_that_looks_like_a_marker_is_an_argument() -> None:
    calls = [("get_expenses", {"partial_json": "x"}), ("get_expenses", ""), ("get_expenses", {"value": 1})]
    done = complete(ok(None, calls), ASK_TOOLS)
    assert [c.arguments for c in done.tool_calls] == [{"partial_json": "x"}, {}, {"value": 1}]


def test_malformed_arguments_can_be_sent_back() -> None:
    async def main(model: Any, server: FakeOpenAI) -> None:
        turn = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "name": "get_expenses", "raw": "{oops"}]}
        result = {"role": "tool", "tool_call_id": "c", "content": "The arguments are not JSON."}
        await model.complete({**ASK_TOOLS, "messages": [*ASK_TOOLS["messages"], turn, result]})
        sent = server.bodies[0]["messages"][2]["tool_calls"][0]["function"]["arguments"]
        assert "{oops" in json.loads(sent).values()

    with_server([ok("x")], main)


def test_429_is_retried_after_the_time_it_names() -> None:
    done, waits, count = retried(status(429, retry_after=7), ok("hello"))
    assert (done.text, waits, count) == ("hello", [7.0], 2)
    error, waits, count = retried(status(429, retry_after=9999), ok("never"))
    assert isinstance(error, ModelUnavailable)
    assert (error.details["status"], error.details["retry_after_s"], waits, count) == (429, 9999.0, [], 1)


@pytest.mark.parametrize(
    ("reaction", "kind"),
    [
        (status(500), "server"),
        (status(503, retry_after=1), "server"),
        (status(408), "timeout"),
        (status(409), "request"),
        (status(429), "rate_limit"),
        (cut(), "transport"),
        (truncated(), "malformed"),
        (malformed(), "malformed"),
        (raw("[]"), "malformed"),
        (raw('{"choices": 5}'), "malformed"),
        (raw('{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": -1}}'), "malformed"),
        (raw('{"choices": [{"message": {"tool_calls": [{"function": {"arguments": "{}"}}]}}]}'), "malformed"),
        (raw('{"choices": []}'), "empty"),
        (ok(""), "empty"),
        (raw(b"\xff\xfe"), "malformed"),
    ],
)
def test_what_is_nobodys_fault_is_asked_again(reaction: Reaction, kind: str) -> None:
    done, waits, count = retried(reaction, ok("hello"))
    assert (done.text, len(waits), count) == ("hello", 1, 2)
    error, _, count = retried(reaction, attempts=2)
    assert isinstance(error, ModelUnavailable)
    assert (error.details["kind"], error.details["attempts"], count) == (kind, 2, 2)


def test_a_server_that_hangs_is_given_up_and_asked_again() -> None:
    done, waits, count = retried(hang(), ok("hello"), timeout_s=0.3)
    assert (done.text, len(waits), count) == ("hello", 1, 2)
    error = failure(hang(), timeout=0.2)  # the connection's own limit
    assert isinstance(error, ModelUnavailable)


def test_a_slow_answer_is_an_answer_and_its_time_is_reported() -> None:
    assert complete(slow(0.15, ok("late"))).latency_s >= 0.14


def test_nobody_listening_is_nobodys_fault() -> None:
    async def main() -> None:
        model = resolve_model("loopback/test-model")
        with pytest.raises(ModelUnavailable) as caught:
            await model.complete(ASK)
        assert caught.value.details["kind"] == "transport"
        await model.aclose()

    with FakeOpenAI([ok("x")]) as server:
        register_loopback_provider("loopback", server.base_url)
    asyncio.run(main())


@pytest.mark.parametrize(
    ("reaction", "kind"),
    [
        (status(401, "bad key"), "auth"),
        (status(403), "auth"),
        (status(402), "billing"),
        (status(404, error_code="model_not_found"), "model"),
        (status(400), "request"),
        (status(422), "request"),
        (status(418), "request"),
    ],
)
def test_the_callers_mistakes_are_not_retried(reaction: Reaction, kind: str) -> None:
    error, waits, count = retried(reaction, ok("never"))
    assert isinstance(error, ModelError)
    assert (error.details["kind"], waits, count) == (kind, [], 1)
    assert error.remedy and "To fix" not in str(error)


def test_an_outgrown_context_is_the_candidates_failure() -> None:
    error, waits, count = retried(status(400, "too many tokens", error_code="context_length_exceeded"), ok("never"))
    assert isinstance(error, LimitExceeded)
    assert (error.details["limit"], waits, count) == ("context", [], 1)


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_an_answer_cut_by_the_provider_stays_an_answer(reason: str) -> None:
    done = complete(ok("as far as it", finish_reason=reason))
    assert (done.text, done.finish_reason) == ("as far as it", reason)
    assert complete(ok(None, finish_reason=reason)).finish_reason == reason


def test_a_refusal_is_text() -> None:
    body = json.loads(ok(None).body)
    body["choices"][0]["message"]["refusal"] = "I will not."
    assert complete(raw(json.dumps(body))).text == "I will not."


def test_unreported_usage_is_unknown_not_zero() -> None:
    assert complete(ok("x", usage=None)).usage == Usage(None, None, "unknown")


def test_costs_come_from_the_table_or_from_dspys_catalogue() -> None:
    from dspy import lm15

    prices = PriceTable("list", "2026-01-31", {"loopback/test-model": (1.0, 10.0)})

    async def priced(model: Any, server: FakeOpenAI) -> Completion:
        return await resolve_model(model, prices=prices).complete(ASK)

    done = with_server([ok("x", usage=(1000, 100))], priced)
    assert (done.cost_usd, done.cost_source) == (pytest.approx(0.002), "exact")

    async def catalogue(server: FakeOpenAI) -> Completion:
        model = resolve_model("loopback/gpt-4.1-mini")
        done = await model.complete(ASK)
        await model.aclose()
        return done

    with FakeOpenAI([ok("x", usage=(1_000_000, 0), model="gpt-4.1-mini")]) as server:
        definition = lm15.ProviderDefinition.chat(
            lm15.AccessPolicy(provider="loopback", base_url=server.base_url), placeholder_key="none",
            compat=lm15.OpenAIChatCompat(),
        )  # fmt: skip
        lm15.register_provider(definition, metadata_namespaces=("openai",), replace=True)
        done = asyncio.run(catalogue(server))
    assert done.cost_usd is not None and 0 < done.cost_usd < 100
    assert done.cost_source == "estimated"


def test_dspy_keeps_no_history_no_cache_and_does_not_retry() -> None:
    import dspy
    from dspy.clients.base_lm import GLOBAL_HISTORY

    lm = None
    before = len(GLOBAL_HISTORY)

    async def main(server: FakeOpenAI) -> None:
        nonlocal lm
        lm = dspy.LM("loopback/test-model", temperature=0.0)  # caching and retries as dspy has them
        model = resolve_model(lm)
        assert (await model.complete(ASK)).text == (await model.complete(ASK)).text == "same"
        assert server.count == 2
        with pytest.raises(ModelUnavailable):
            await model.complete(ASK)
        assert server.count == 3
        await model.aclose()  # borrowed: the caller's connections stay
        await lm.aclose()

    with FakeOpenAI([ok("same"), ok("same"), status(500)]) as server:
        register_loopback_provider("loopback", server.base_url)
        asyncio.run(main(server))
    assert lm is not None and lm.history == [] and len(GLOBAL_HISTORY) == before
    assert (lm.cache, lm.num_retries) == (True, 3)


def test_many_calls_at_once_keep_their_answers_and_costs_apart() -> None:
    def echo(body: dict[str, Any]) -> Reaction:
        text = body["messages"][-1]["content"]
        return ok(f"echo {text}", usage=(int(text), 1))

    async def main(model: Any, server: FakeOpenAI) -> list[Completion]:
        asks = [model.complete({"messages": [{"role": "user", "content": str(i)}]}) for i in range(24)]
        return await asyncio.gather(*asks)

    done = with_server(echo, main)
    assert [(c.text, c.usage.input_tokens) for c in done] == [(f"echo {i}", i) for i in range(24)]


def test_a_model_can_be_used_in_one_event_loop_after_another() -> None:
    with FakeOpenAI([ok("x")]) as server:
        register_loopback_provider("loopback", server.base_url)
        model = resolve_model("loopback/test-model")

        async def once() -> str | None:
            done = await model.complete(ASK)
            await model.aclose()
            return done.text

        assert [asyncio.run(once()) for _ in range(3)] == ["x"] * 3


def test_a_live_recording_replays(tmp_path: Any) -> None:
    async def main(model: Any, server: FakeOpenAI) -> Completion:
        recorder = RecordModel(model, tmp_path / "c.jsonl", source="a loopback server")
        first = await recorder.complete(ASK_TOOLS)
        again = await recorder.complete(ASK_TOOLS)
        await recorder.aclose()
        assert (server.count, first.recorded, again.recorded) == (1, False, True)
        return first

    calls: list[Any] = [("get_expenses", {"user_id": 7, "quarter": "Q1"}), ("get_expenses", "{bad")]
    live = with_server([ok("Looking.", calls), status(500)], main, temperature=0.25)
    replay = resolve_model(f"replay:{tmp_path / 'c.jsonl'}")
    assert (replay.name, replay.params) == ("loopback/test-model", {"temperature": 0.25})
    played = asyncio.run(replay.complete(ASK_TOOLS))
    assert (played.text, played.tool_calls, played.usage, played.latency_s) == (
        live.text, live.tool_calls, live.usage, live.latency_s)  # fmt: skip


def test_litellm_is_never_imported() -> None:
    code = (
        "import sys, asyncio\n"
        "from dse.models.lm import resolve_model\n"
        "from dse.testing.server import FakeOpenAI, ok, register_loopback_provider\n"
        "async def main():\n"
        "    model = resolve_model('loopback/test-model', params={'temperature': 0.0})\n"
        "    print((await model.complete({'messages': [{'role': 'user', 'content': 'hi'}]})).text)\n"
        "    await model.aclose()\n"
        "with FakeOpenAI([ok('yes')]) as server:\n"
        "    register_loopback_provider('loopback', server.base_url)\n"
        "    asyncio.run(main())\n"
        "print('litellm' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout.split()) == (0, ["yes", "False"]), done.stderr
