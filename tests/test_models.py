"""Requests, retries, prices, scripted models and engines: everything about models that needs no HTTP."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.errors import BudgetExhausted, DseError, LimitExceeded, ModelError, ModelUnavailable
from dse.models.lm import (
    Completion,
    LanguageModel,
    PriceTable,
    Request,
    RetryingModel,
    ToolCallPart,
    Usage,
    canonical_request,
    estimate_usage,
    resolve_model,
)
from dse.testing.scripted import AsyncScriptedEngine, ScriptedEngine, ScriptedModel, call, say

ASK: Request = {"messages": [{"role": "user", "content": "hello"}], "tools": [], "tool_choice": None}
TOOL = {
    "name": "look",
    "description": "Look something up.",
    "parameters": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
}
TALK: Request = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Find a and b."},
        {"role": "assistant", "content": "Looking.", "tool_calls": [
            {"id": "c1", "name": "look", "arguments": {"key": "a"}}, {"id": "c2", "name": "look", "raw": "{oops"},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "not JSON"},
    ],
    "tools": [TOOL],
    "tool_choice": "auto",
}  # fmt: skip


def ask(model: LanguageModel, request: Request = ASK, **which: int) -> Completion:
    return asyncio.run(model.complete(request, **which))


# requests


def test_equal_questions_are_equal_data() -> None:
    loose: Any = {
        "messages": [
            {"role": "user", "content": "hi", "tool_calls": None, "tool_call_id": None},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "name": "f", "arguments": {}, "raw": None}]},
        ],
        "tool_choice": "auto",
    }
    assert canonical_request(loose) == {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "tool_calls": [{"id": "1", "name": "f", "arguments": {}}]},
        ],
        "tools": [],
    }
    assert canonical_request(canonical_request(TALK)) == canonical_request(TALK)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\]"),
        ({"messages": [{"role": "user"}]}, "no content"),
        ({"messages": [{"role": "user", "content": 3}]}, "not text"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "is not a message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "without tool_call_id"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "no tool result"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "only an assistant"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "name": "f"}]}]}, "needs arguments"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}]}, "no id"),
        ({"tools": [{"name": "f"}]}, r"tools\[0\]"),
        ({"tools": [TOOL, TOOL]}, "of its own"),
        ({"tool_choice": "look"}, "tool_choice"),
        ({"tool_choice": "required"}, "no tools"),
        ({"temperature": 1}, "is not {messages"),
    ],
)
def test_a_request_of_another_shape_is_refused(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ModelError, match=where):
        canonical_request({**ASK, **change})  # type: ignore[typeddict-item]


def test_estimated_usage_grows_with_the_text() -> None:
    short, long = estimate_usage(ASK, "x"), estimate_usage(TALK, "x" * 400, (ToolCallPart("1", "f", {"a": 1}),))
    assert short.source == long.source == "estimated"
    assert short.input_tokens is not None and short.input_tokens < (long.input_tokens or 0)
    assert long.output_tokens == -(-(400 + 1 + len('{"a":1}')) // 4)


# what is imported


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_models_cassettes_and_scripts_are_light() -> None:
    heavy = "('dspy','litellm','pandas','sqlalchemy','scipy','numpy','matplotlib','pydantic_monty')"
    code = (
        "import sys, asyncio, tempfile, pathlib\n"
        "from dse.models.lm import resolve_model\n"
        "from dse.store.cassette import RecordModel\n"
        "from dse.testing.scripted import ScriptedModel\n"
        "import dse.testing.server, dse.models.prices\n"
        "path = pathlib.Path(tempfile.mkdtemp()) / 'c.jsonl'\n"
        "request = {'messages': [{'role': 'user', 'content': 'hi'}], 'tools': [], 'tool_choice': None}\n"
        "async def main():\n"
        "    rec = resolve_model(ScriptedModel(['yes']), record=path)\n"
        "    await rec.complete(request)\n"
        "    await rec.aclose()\n"
        "    print((await resolve_model(f'replay:{path}').complete(request)).text)\n"
        "asyncio.run(main())\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
    )
    assert _python(code).split() == ["yes", "[]"]


# scripted models


def test_a_scripted_model_follows_its_list() -> None:
    model = ScriptedModel([call(("look", {"key": "a"}), ("look", "{bad")), say("done"), ModelUnavailable("down"), "x"])
    first = ask(model, TALK)
    assert [(c.id, c.name, c.arguments, c.raw) for c in first.tool_calls] == [
        ("call_3", "look", {"key": "a"}, None),
        ("call_4", "look", None, "{bad"),
    ]
    assert (first.text, first.finish_reason, first.model) == (None, "tool_call", "scripted/model")
    assert first.usage.source == "estimated"
    second = ask(model)
    assert (second.text, second.finish_reason, second.tool_calls) == ("done", "stop", ())
    with pytest.raises(ModelUnavailable):
        ask(model)
    assert ask(model).text == "x"
    with pytest.raises(ModelError, match="4 replies"):
        ask(model)
    assert [len(r["messages"]) for r in model.requests] == [5, 1, 1, 1, 1]


def test_a_script_may_be_a_function_sync_or_async() -> None:
    async def later(request: Request) -> str:
        await asyncio.sleep(0)
        return request["messages"][-1]["content"].upper()

    assert ask(ScriptedModel(lambda request: [ToolCallPart("id", "f", {})])).tool_calls[0].id == "id"
    assert ask(ScriptedModel(later, latency_s=1.5)).text == "HELLO"
    assert ask(ScriptedModel(later, latency_s=1.5)).latency_s == 1.5
    with pytest.raises(ModelError, match="answers with"):
        ask(ScriptedModel(lambda request: 3))  # type: ignore[arg-type, return-value]


def test_scripts_say_that_they_are_scripts() -> None:
    with pytest.raises(ModelError, match="must say so"):
        ScriptedModel([], name="openai/gpt-5")
    with pytest.raises(ModelError, match="must say so"):
        ScriptedEngine([], name="gpt")


def test_a_script_without_tools_refuses_them() -> None:
    with pytest.raises(ModelError, match="supports no tools"):
        ask(ScriptedModel(["x"], supports_tools=False), TALK)


def test_the_recorded_requests_are_copies() -> None:
    model = ScriptedModel(["x", "y"])
    request: Request = {"messages": [{"role": "user", "content": "one"}], "tools": [], "tool_choice": None}
    ask(model, request)
    request["messages"][0]["content"] = "two"
    assert model.requests[0]["messages"][0]["content"] == "one"


# retries


class Waits(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def test_unavailable_models_are_asked_again_with_growing_waits() -> None:
    waits = Waits()
    inner = ScriptedModel([ModelUnavailable("a"), ModelUnavailable("b"), ModelUnavailable("c"), "ok"])
    model = RetryingModel(inner, base_s=1.0, sleep=waits, seed=7)
    assert ask(model).text == "ok"
    assert [low <= wait < 2 * low for low, wait in zip((0.5, 1.0, 2.0), waits, strict=True)] == [True] * 3
    again = Waits()
    ask(RetryingModel(ScriptedModel([ModelUnavailable("")] * 3 + ["ok"]), base_s=1.0, sleep=again, seed=7))
    assert again == waits


def test_the_last_attempt_says_how_many_there_were() -> None:
    waits = Waits()
    inner = ScriptedModel(lambda request: ModelUnavailable("down"))
    with pytest.raises(ModelUnavailable) as caught:
        ask(RetryingModel(inner, attempts=3, sleep=waits))
    assert (len(inner.requests), len(waits), caught.value.details["attempts"]) == (3, 2, 3)


def test_retry_after_is_honoured_and_a_long_one_ends_it() -> None:
    waits = Waits()
    inner = ScriptedModel([ModelUnavailable("", retry_after_s=17.0), "ok"])
    assert ask(RetryingModel(inner, sleep=waits)).text == "ok"
    assert waits == [17.0]
    inner = ScriptedModel([ModelUnavailable("", retry_after_s=3600.0), "ok"])
    with pytest.raises(ModelUnavailable):
        ask(RetryingModel(inner, sleep=waits))
    assert (len(inner.requests), waits) == (1, [17.0])


def test_the_backoff_is_capped() -> None:
    waits = Waits()
    inner = ScriptedModel([ModelUnavailable("")] * 9 + ["ok"])
    ask(RetryingModel(inner, attempts=10, base_s=1, max_s=4, sleep=waits))
    assert max(waits) < 4 and min(waits[2:]) >= 2


@pytest.mark.parametrize("error", [ModelError("bad key"), LimitExceeded("long", limit="context"), RuntimeError("bug")])
def test_other_failures_are_not_retried(error: Exception) -> None:
    inner = ScriptedModel([error, "never"])
    with pytest.raises(type(error)):
        ask(RetryingModel(inner, sleep=Waits()))
    assert len(inner.requests) == 1


def test_a_budget_may_veto_every_paid_attempt() -> None:
    seen: list[int] = []

    async def before(request: Request, attempt: int) -> None:
        seen.append(attempt)
        if attempt == 3:
            raise BudgetExhausted("no money")

    inner = ScriptedModel(lambda request: ModelUnavailable("down"))
    with pytest.raises(BudgetExhausted):
        ask(RetryingModel(inner, attempts=5, before_attempt=before, sleep=Waits()))
    assert (seen, len(inner.requests)) == ([1, 2, 3], 2)


def test_an_attempt_that_takes_too_long_is_given_up() -> None:
    asked = 0

    async def stuck_once(request: Request) -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        return "late but here"

    waits = Waits()
    assert ask(RetryingModel(ScriptedModel(stuck_once), timeout_s=0.02, sleep=waits)).text == "late but here"
    assert len(waits) == 1


def test_retrying_passes_replicate_and_occurrence_on() -> None:
    class Spy(ScriptedModel):
        async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
            return replace(await super().complete(request), text=f"{replicate}/{occurrence}")

    assert ask(RetryingModel(Spy(["x"])), ASK, replicate=3, occurrence=2).text == "3/2"
    with pytest.raises(ModelError):
        RetryingModel(Spy(["x"]), attempts=0)


# prices


def test_costs_are_exact_only_for_exact_tokens_of_a_known_model(tmp_path: Any) -> None:
    path = tmp_path / "prices.json"
    path.write_text('{"name": "list", "as_of": "2026-01-31", "models": {"scripted/model": [2.0, 10]}}')
    prices = PriceTable.load(path)
    assert pickle.loads(pickle.dumps(prices)) == prices
    assert prices.to_dict() == json.loads(path.read_text())

    def cost(usage: Usage, name: str = "scripted/model") -> tuple[float | None, str]:
        model = ScriptedModel([Completion("x", usage=usage, cost_usd=99.0, cost_source="exact")], name=name)
        done = ask(resolve_model(model, prices=prices))
        return done.cost_usd, done.cost_source

    assert cost(Usage(1_000_000, 500_000, "exact")) == (7.0, "exact")
    assert cost(Usage(1_000_000, 500_000, "estimated")) == (7.0, "estimated")
    assert cost(Usage(1_000, None, "unknown")) == (None, "unknown")
    assert cost(Usage(1_000, 1_000, "exact"), "scripted/other") == (None, "unknown")


@pytest.mark.parametrize(
    "data",
    [
        {"name": "x", "as_of": "d"},
        {"name": "x", "as_of": "d", "models": {}, "more": 1},
        {"name": "x", "as_of": "d", "models": {"m": [1]}},
        {"name": "x", "as_of": "d", "models": {"m": [1, -1]}},
        {"name": "x", "as_of": "d", "models": {"m": [1, True]}},
        {"name": 1, "as_of": "d", "models": {}},
        [],
    ],
)
def test_a_wrong_price_table_is_refused(data: Any) -> None:
    with pytest.raises(ModelError):
        PriceTable.from_dict(data)


# resolving


def test_our_own_models_pass_through() -> None:
    model = ScriptedModel(["x"])
    assert resolve_model(model) is model
    assert isinstance(model, LanguageModel)


@pytest.mark.parametrize("spec", [3, None, object(), "", "openai/", "no-such-provider/model"])
def test_what_names_no_model_is_a_user_error(spec: Any) -> None:
    with pytest.raises(ModelError):
        resolve_model(spec)


@pytest.mark.parametrize("params", [{"cache": True}, {"n": 2}, {"wild": 1}, {"temperature": 9}, {"stop": object()}])
def test_parameters_that_cannot_be_sent_are_refused_at_once(params: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        resolve_model("openai/gpt-4.1-mini", params=params)


def test_only_sampling_parameters_are_identity() -> None:
    model = resolve_model("openai/gpt-4.1-mini", params={"temperature": 0.5, "max_tokens": 50, "seed": 3,
                                                         "api_key": "secret", "timeout": 3})  # fmt: skip
    assert model.name == "openai/gpt-4.1-mini"
    assert model.params == {"temperature": 0.5, "max_tokens": 50, "seed": 3}
    assert model.supports_tools is True


def test_params_belong_to_strings_and_engines() -> None:
    with pytest.raises(ModelError, match="params="):
        resolve_model(ScriptedModel(["x"]), params={"temperature": 0})
    assert resolve_model(ScriptedEngine(["x"]), params={"temperature": 0}).params == {"temperature": 0}


# engines


def test_engines_answer_with_tools_and_usage() -> None:
    engine = ScriptedEngine([call(("look", {"key": "a"}), ("look", "{bad"), text="hm"), say("done")])
    for spec in (engine, ScriptedEngine([call(("look", {"key": "a"}), ("look", "{bad"), text="hm"), say("done")]).twin()):
        model = resolve_model(spec)
        assert (model.name, model.supports_tools) == ("scripted/engine", True)
        first = ask(model, TALK)
        assert [(c.name, c.arguments, c.raw) for c in first.tool_calls] == [
            ("look", {"key": "a"}, None),
            ("look", None, "{bad"),
        ]
        assert (first.text, first.finish_reason) == ("hm", "tool_call")
        assert first.usage.source == "exact" and (first.usage.input_tokens or 0) > 20
        assert ask(model).text == "done"


def test_an_engine_sees_the_whole_request() -> None:
    engine = ScriptedEngine(["x"])
    ask(resolve_model(engine), TALK)
    sent = engine.requests[0]
    expected = canonical_request(TALK)
    # Providers take objects only, so malformed arguments travel in the form that lm15 gives them.
    expected["messages"][2]["tool_calls"][1] = {"id": "c2", "name": "look", "arguments": {"partial_json": "{oops"}}
    assert canonical_request(sent) == expected


def test_a_sync_engine_runs_in_a_thread_unless_it_is_inline() -> None:
    import threading

    seen: list[bool] = []

    def script(request: Request) -> str:
        seen.append(threading.current_thread() is threading.main_thread())
        return "x"

    engine = ScriptedEngine(script)
    ask(resolve_model(engine))
    engine.inline = False
    ask(resolve_model(engine))
    ask(resolve_model(engine))  # another event loop
    assert seen == [True, False, False]


def test_many_calls_of_a_blocking_engine_overlap() -> None:
    import threading

    together = threading.Barrier(8, timeout=10)

    def script(request: Request) -> str:
        together.wait()
        return "x"

    engine = ScriptedEngine(script)
    engine.inline = False

    async def main() -> list[Completion]:
        model = resolve_model(engine)
        return await asyncio.gather(*(model.complete(ASK) for _ in range(8)))

    assert [c.text for c in asyncio.run(main())] == ["x"] * 8


def test_engine_failures_are_told_apart() -> None:
    from dspy import lm15

    def outcome(error: Exception) -> DseError:
        with pytest.raises(DseError) as caught:
            ask(resolve_model(AsyncScriptedEngine(lambda request: error)))
        return caught.value

    limited = outcome(lm15.RateLimitError("slow down", status=429, retry_after=3))
    assert isinstance(limited, ModelUnavailable)
    assert (limited.details["retry_after_s"], limited.details["status"]) == (3.0, 429)
    assert isinstance(outcome(ConnectionResetError("gone")), ModelUnavailable)
    assert outcome(TimeoutError()).details["kind"] == "timeout"
    assert isinstance(outcome(ValueError("a bug in the engine")), ModelError)
    assert isinstance(outcome(FileNotFoundError(2, "no such file")), ModelError)
    too_long = outcome(lm15.ContextLengthError("too long"))
    assert isinstance(too_long, LimitExceeded) and too_long.details["limit"] == "context"
    ours = BudgetExhausted("stop")
    assert outcome(ours) is ours


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_an_empty_completion_is_no_answer(text: str | None) -> None:
    with pytest.raises(ModelUnavailable, match="empty") as caught:
        ask(resolve_model(ScriptedEngine([Completion(text)])))
    assert caught.value.details["input_tokens"] > 0
    assert ask(resolve_model(ScriptedEngine([Completion(text, finish_reason="length")]))).finish_reason == "length"


@pytest.mark.parametrize("make", [
    lambda: Completion("x", usage=Usage(-5, 1, "exact")), lambda: Completion("x", usage=Usage(5, -1, "exact")),
    lambda: Completion("x", cost_usd=-3.0), lambda: Completion("x", cost_usd=float("nan")),
    lambda: Completion("x", cost_usd=float("inf")), lambda: Completion("x", latency_s=-1.0),
])  # fmt: skip
def test_a_completion_counts_nothing_down(make: Callable[[], Completion]) -> None:
    with pytest.raises(ModelError, match="is no amount"):
        ask(ScriptedModel(lambda request: make()))


def test_what_is_no_response_is_the_engines_fault() -> None:
    class Odd:
        async def complete(self, request: Any) -> str:
            return "hi"

    with pytest.raises(ModelError, match="returned no"):
        ask(resolve_model(Odd()))


def test_surrogates_and_deep_arguments_do_not_get_through() -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"x": deep}

    class Engine:
        async def complete(self, request: Any) -> Any:
            from dspy import lm15

            parts = [
                lm15.TextPart("a\udc00b"),
                lm15.ToolCallPart("1", "look", {"key": "\ud800"}),
                lm15.ToolCallPart("2", "look", deep),
            ]
            message = lm15.Message("assistant", tuple(parts))
            return lm15.Response(id=None, model="m", message=message, finish_reason="tool_call", usage=lm15.Usage())

    done = ask(resolve_model(Engine()), TALK)
    assert done.text == "a\ufffdb"
    assert [c.arguments for c in done.tool_calls] == [None, None]
    assert done.tool_calls[0].raw == '{"key": "\\ud800"}'


def test_the_error_map_is_total() -> None:
    """Every error class of lm15 and of dspy has a verdict of its own or of a named ancestor below the root."""
    from dspy import lm15
    from dspy.utils import exceptions

    from dse.models.faults import ERROR_KINDS, map_error

    def below(cls: type[Exception]) -> list[type[Exception]]:
        return [cls, *(c for sub in cls.__subclasses__() for c in below(sub))]

    roots = (lm15.LM15Error, exceptions.LMError)
    assert [name for name in ERROR_KINDS if not hasattr(lm15, name) and not hasattr(exceptions, name)] == []
    for cls in {c for root in roots for c in below(root)} - set(roots):
        named = [c.__name__ for c in cls.__mro__ if c.__name__ in ERROR_KINDS and c not in roots]
        assert named, f"{cls} has no verdict"
        retryable = issubclass(cls, (*exceptions._RETRYABLE_LM_ERRORS, *lm15.RETRYABLE_ERRORS))
        for status in (None, 200, 400, 429, 500):
            error = cls(message="message", status=status)
            mapped = map_error(error, model="m", wire=True)
            assert isinstance(mapped, (ModelUnavailable, ModelError, LimitExceeded))
            if retryable:
                assert isinstance(mapped, ModelUnavailable), cls
    for unknown in (Exception("x"), OSError("disk"), KeyError("k"), lm15.LM15Error("new"), exceptions.LMError("new")):
        assert isinstance(map_error(unknown, model="m", wire=False), ModelError)
    assert isinstance(map_error(KeyError("choices"), model="m", wire=True), ModelUnavailable)
    wrapped = exceptions.LMUnexpectedError("boom")
    wrapped.__cause__ = ConnectionResetError("gone")
    assert isinstance(map_error(wrapped, model="m", wire=False), ModelUnavailable)


# dspy.LM


def test_a_scripted_engine_works_inside_dspy_and_dspy_lm_inside_dse() -> None:
    import dspy

    engine = ScriptedEngine(lambda request: f"echo {request['messages'][-1]['content']}")
    lm = dspy.LM("scripted/lm", engine=engine, async_engine=engine.twin(), cache=False, temperature=0.3)
    assert lm("one") == ["echo one"]
    assert asyncio.run(lm.acall("two")) == ["echo two"]
    model = resolve_model(lm)
    assert (model.name, model.params, model.supports_tools) == ("scripted/lm", {"temperature": 0.3}, True)
    before = len(lm.history)
    assert ask(model).text == "echo hello"
    assert len(lm.history) == before  # asked directly: dspy's history does not grow
    only_sync = resolve_model(dspy.LM("scripted/lm", engine=ScriptedEngine(["sync"]), cache=False))
    assert ask(only_sync).text == "sync"


def test_another_kind_of_dspy_model_is_refused() -> None:
    from dspy.utils import DummyLM

    with pytest.raises(ModelError, match="another subclass"):
        resolve_model(DummyLM([{"answer": "x"}]))


def test_a_callers_lm_stays_as_it_is() -> None:
    import dspy

    lm = dspy.LM("openai/gpt-4.1-mini", temperature=0.5, api_key="secret")
    kept = dict(vars(lm))
    model = resolve_model(lm)
    assert model.params == {"temperature": 0.5}
    assert vars(lm) == kept and lm.cache is True


# round trip through lm15

_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
_NAME = st.text("abcdefgh_", min_size=1, max_size=6)
_JSON = st.dictionaries(_TEXT, st.none() | st.booleans() | st.integers() | _TEXT | st.lists(_TEXT, max_size=2), max_size=3)


@st.composite
def _requests(draw: st.DrawFn) -> Request:
    messages: list[dict[str, Any]] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(_TEXT.filter(bool))})
    messages.append({"role": "user", "content": draw(_TEXT)})
    for turn in range(draw(st.integers(0, 3))):
        calls = [
            {"id": f"c{turn}_{i}", "name": draw(_NAME), "arguments": draw(_JSON)} for i in range(draw(st.integers(0, 3)))
        ]
        if calls:
            message: dict[str, Any] = {"role": "assistant", "tool_calls": calls}
            if text := draw(_TEXT):
                message["content"] = text
            messages.append(message)
            messages += [{"role": "tool", "tool_call_id": c["id"], "content": draw(_TEXT)} for c in calls]
        else:
            messages += [{"role": "assistant", "content": draw(_TEXT)}, {"role": "user", "content": draw(_TEXT)}]
    tools = [{"name": name, "description": draw(_TEXT), "parameters": {"type": "object", "properties": {}}}
             for name in draw(st.lists(_NAME, unique=True, max_size=2))]  # fmt: skip
    return {"messages": messages, "tools": tools, "tool_choice": draw(st.sampled_from([None, "auto"])) if tools else None}


@settings(max_examples=60, deadline=None)
@given(_requests())
def test_a_request_survives_the_way_through_lm15(request: Request) -> None:
    from dspy import lm15

    from dse.models.engines import request_from_lm15, request_to_lm15

    back = request_from_lm15(request_to_lm15(request, model="m", config=lm15.Config()))
    assert canonical_request(back) == canonical_request(request)


def test_a_request_without_a_question_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be sent"):
        ask(resolve_model(ScriptedEngine(["x"])), {"messages": [{"role": "system", "content": "rules"}]})
