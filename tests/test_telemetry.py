"""Telemetry: which spans and metrics there are, how they hang together, and what they must not say."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import dse
from dse import telemetry
from dse.compiler.compile import Rows
from dse.errors import (
    InfrastructureError,
    LimitExceeded,
    ModelUnavailable,
    NoSubmission,
    RunSuspended,
    StoreUnavailable,
    ToolFailed,
    UserError,
)
from dse.models.lm import Completion, Usage
from dse.store.cassette import RecordModel
from dse.strategies.base import seed_plan
from dse.testing.scripted import ScriptedModel, call, say
from dse.testing.worlds import PlantedWorld

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

PATIENCE_S = 30  # only how long a hanging test may hang


@dataclass
class Reports:
    """What was reported: spans by name, the tree of them, metrics."""

    tracer_provider: Any
    meter_provider: Any
    exporter: Any
    reader: Any

    def configure(self, **options: Any) -> None:
        telemetry.configure(self.tracer_provider, self.meter_provider, **options)

    @property
    def tracer(self) -> Any:
        return self.tracer_provider.get_tracer("the caller")

    @property
    def spans(self) -> list[Any]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: (span.start_time, span.context.span_id))

    def named(self, start: str) -> list[Any]:
        return [span for span in self.spans if span.name.split(" ")[0] == start]

    def one(self, start: str) -> Any:
        (span,) = self.named(start)
        return span

    def tree(self, span: Any = None) -> Any:
        """Nested (name, children), siblings by name."""
        parent = None if span is None else span.context.span_id
        below = [s for s in self.spans if (s.parent.span_id if s.parent else None) == parent]
        return sorted((s.name, self.tree(s)) for s in below)

    def text(self) -> str:
        """Everything that was reported, as one text."""
        return "\n".join([*(span.to_json() for span in self.spans), self.reader.get_metrics_data().to_json()
                          if self.metrics else ""])  # fmt: skip

    @property
    def metrics(self) -> dict[str, list[Any]]:
        """Data points by the name of the metric."""
        data = self.reader.get_metrics_data()
        found: dict[str, list[Any]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    found.setdefault(metric.name, []).extend(metric.data.data_points)
        return found


@pytest.fixture
def reports() -> Iterator[Reports]:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider(metric_readers=[reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    made = Reports(tracers, meters, exporter, reader)
    made.configure()
    yield made
    telemetry.disable()
    tracers.shutdown()
    meters.shutdown()


@dse.tool(effect="read")
async def double(ctx: dse.ToolContext[Any], n: int) -> int:
    """Double a number."""
    if ctx.deps is not None:
        with ctx.deps.start_as_current_span(f"work {n}"):
            await asyncio.sleep(0)
    return 2 * n


@dse.tool(effect="read")
def halve(ctx: dse.ToolContext[Any], n: int) -> int:
    """Half of a number; in a thread."""
    if n % 2:
        raise ToolFailed(f"{n} is odd")
    if ctx.deps is not None:
        ctx.deps.start_span(f"work {n}").end()
    return n // 2


@dse.tool(effect="write", approval="always", sensitive=("pin",))
def pay(amount: int, pin: str) -> str:
    """Pay."""
    return f"paid {amount} with {pin}"


class Ask(dse.Signature):
    """Answer with a number."""

    question: str = dse.InputField()
    number: int = dse.OutputField()
    tools = [double, halve, pay]


SUBMIT = call(("submit", {"number": 42}))
BOTH = [call(("double", {"n": 1}), ("double", {"n": 2}), ("halve", {"n": 84})), SUBMIT]
SCRIPT = "a, b, c = await asyncio.gather(double(1), double(2), halve(84))\nsubmit(number=c)"
DIRECT = "[[ ## number ## ]]\n42\n\n[[ ## completed ## ]]"
WORK = [("execute_tool double", [("work 1", [])]), ("execute_tool double", [("work 2", [])]),
        ("execute_tool halve", [("work 84", [])])]  # fmt: skip
CHAT = ("chat model", [])


def code(*scripts: str) -> list[Any]:
    return [say(f"[[ ## code ## ]]\n{script}\n\n[[ ## completed ## ]]") for script in scripts]


def program(replies: Any, mode: str = "tool_call", *, limits: dict[str, Any] | None = None, **options: Any) -> dse.Program:
    plan = seed_plan(Ask.spec(), mode, limits=dse.Limits(**limits or {}))
    return dse.Program(Ask, plan, lm=options.pop("lm", None) or ScriptedModel(replies), **options)


MODES = [
    ("direct", [say(DIRECT)], [CHAT]),
    ("tool_call", BOTH, [CHAT, CHAT, *WORK]),
    ("code", code(SCRIPT), [CHAT, *WORK, ("feed", [])]),
]


# --- the tree -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", ["sync", "async", "start", "stream", "astream"])
@pytest.mark.parametrize(("mode", "replies", "below"), MODES, ids=[m[0] for m in MODES])
def test_the_tree_of_a_run(reports: Reports, mode: str, replies: Any, below: Any, face: str) -> None:
    one = program(replies, mode, deps=reports.tracer)

    async def astream() -> None:
        async for _ in one.astream(question="?"):
            pass

    faces: dict[str, Callable[[], Any]] = {
        "sync": lambda: one(question="?"),
        "async": lambda: asyncio.run(one.acall(question="?")),
        "start": lambda: one.start(question="?").result(PATIENCE_S),
        "stream": lambda: list(one.stream(question="?")),
        "astream": lambda: asyncio.run(astream()),
    }
    with reports.tracer.start_as_current_span("caller"):
        faces[face]()
    assert reports.tree() == [("caller", [("invoke_agent Ask", sorted(below))])]
    assert {span.status.status_code for span in reports.spans} == {StatusCode.UNSET}
    assert {span.context.trace_id for span in reports.spans} == {reports.one("caller").context.trace_id}


def test_without_a_span_of_the_caller_a_run_is_a_root(reports: Reports) -> None:
    program(BOTH)(question="?")
    assert [name for name, _ in reports.tree()] == ["invoke_agent Ask"]


def test_concurrent_runs_keep_apart(reports: Reports) -> None:
    def echo(request: Any) -> Any:
        last = request["messages"][-1]
        number = int(last["content"].split("]]")[-1]) if last["role"] == "user" else 0
        return SUBMIT if last["role"] == "tool" else call(("double", {"n": number}), ("double", {"n": number}))

    async def main() -> None:
        one = program(echo, deps=reports.tracer)
        await asyncio.gather(*(one.acall(question=str(n)) for n in range(1, 6)))

    with reports.tracer.start_as_current_span("caller"):
        asyncio.run(main())
    runs = [[("chat model", []), ("chat model", []), *[("execute_tool double", [(f"work {n}", [])])] * 2] for n in range(1, 6)]
    assert reports.tree() == [("caller", [("invoke_agent Ask", run) for run in runs])]
    ids = [span.attributes["dse.run_id"] for span in reports.named("invoke_agent")]
    assert len(set(ids)) == 5
    for span in reports.named("invoke_agent"):
        mine = [s for s in reports.named("execute_tool") if s.parent.span_id == span.context.span_id]
        assert {s.attributes["dse.run_id"] for s in mine} == {span.attributes["dse.run_id"]}


def test_a_program_inside_a_tool_is_below_the_call(reports: Reports) -> None:
    inner = program([say(DIRECT)], "direct")

    def double(n: int) -> int:
        return inner(question="?").number  # sync, in the tool's thread

    program([call(("double", {"n": 1})), SUBMIT], toolbox=Ask.spec().toolbox().bind("double", double))(question="?")
    below = [("execute_tool double", [("invoke_agent Ask", [CHAT])])]
    assert reports.tree() == [("invoke_agent Ask", [CHAT, CHAT, *below])]


def test_the_tree_of_a_compile(reports: Reports, tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 1.0, "tool_call": 0.25}, clusters=30, writes=0.0)
    task = world.task(modes=["direct", "tool_call"])
    with reports.tracer.start_as_current_span("caller"):
        result = dse.compile(task, lm=world.model(), registry=tmp_path, rows=Rows(search=2, select=3, holdout=8))
    ((caller, ((compiled, rollouts),)),) = reports.tree()
    assert (caller, compiled) == ("caller", "compile AskWarehouse")
    assert {name for name, _ in rollouts} == {"rollout AskWarehouse"}
    records = [record for stage in result.records.values() for record in stage]
    assert len(rollouts) == len(records)
    # Every rollout that was not in the store already is one run; a direct run is one completion and nothing else.
    runs = [below for _, below in rollouts if below]
    assert {name for run in runs for name, _ in run} == {"invoke_agent AskWarehouse"}
    assert len(runs) == sum(not record.reused for record in records)
    span = reports.one("compile")
    assert span.attributes["dse.verdict"] == result.verdict and span.attributes["dse.winner"] == result.winner
    assert span.attributes["dse.artifact_id"] == result.artifact.artifact_id
    wanted = sorted((r.rollout_id, r.candidate, r.score, r.reused) for r in records)
    names = ("rollout_id", "candidate", "score", "reused")
    assert sorted(tuple(s.attributes[f"dse.{name}"] for name in names) for s in reports.named("rollout")) == wanted
    own = {(p.attributes["dse.operation"], p.count) for p in reports.metrics["dse.operation.duration"]}
    assert own == {("compile", 1), ("rollout", len(runs))}


def test_what_a_metric_does_is_below_the_rollout(reports: Reports) -> None:
    from dataclasses import replace

    def judged(example: Any, prediction: Any, ctx: dse.MetricContext) -> float:
        reports.tracer.start_span("judge").end()
        return 0.5

    world = PlantedWorld({"direct": 1.0}, clusters=5, writes=0.0)
    task = replace(world.task(modes=["direct"]), metric=judged)
    dse.evaluate(task, seed_plan(task.spec, "direct"), lm=world.model(), split="search", max_rows=1)
    assert reports.tree() == [("rollout AskWarehouse", [("invoke_agent AskWarehouse", [("chat planted", [])]), ("judge", [])])]
    assert reports.one("rollout").attributes["dse.score"] == 0.5


def test_a_compile_that_cannot_go_on(reports: Reports, tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 1.0}, clusters=30, writes=0.0)
    down = ScriptedModel(lambda request: ModelUnavailable("down", retry_after_s=1_000))  # longer than anybody waits
    with pytest.raises(InfrastructureError):
        dse.compile(world.task(modes=["direct"]), lm=down, registry=tmp_path, concurrency=1)
    for name in ("compile", "rollout", "invoke_agent", "chat"):
        span = reports.one(name)
        assert (span.attributes["error.type"], span.status.status_code) == ("DSE401", StatusCode.ERROR)


# --- what is in it --------------------------------------------------------------------------------------


def exact(text: str | None, *calls: tuple[str, dict[str, Any]], tokens: tuple[int, int]) -> Completion:
    from dataclasses import replace

    made = call(*calls) if calls else say(text or "")
    return replace(made, usage=Usage(*tokens, "exact"), cost_usd=0.25, cost_source="exact")


def test_attributes_follow_the_conventions(reports: Reports) -> None:
    replies = [exact(None, ("double", {"n": 1}), ("nothing", {}), tokens=(100, 10)),
               exact(None, ("submit", {"number": 2}), tokens=(200, 20))]  # fmt: skip
    lm = ScriptedModel(replies, params={"temperature": 0.5, "max_tokens": 100, "stop": ["x"]})
    made = program(None, lm=lm, stamp={"artifact_id": "sha256:abc", "unproven": False})(question="?")
    run = reports.one("invoke_agent")
    wanted = {
        "gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": "scripted", "gen_ai.request.model": "model",
        "gen_ai.agent.name": "Ask", "gen_ai.usage.input_tokens": 300, "gen_ai.usage.output_tokens": 30,
        "dse.run_id": made.receipt["run_id"], "dse.program_id": made.receipt["program_id"], "dse.mode": "tool_call",
        "dse.outcome": "ok", "dse.cost_usd": 0.5, "dse.cost_source": "exact", "dse.model_calls": 2, "dse.tool_calls": 2,
        "dse.attempts": 1, "dse.effects": "none", "dse.artifact_id": "sha256:abc", "dse.unproven": False,
        "dse.usage_source": "exact",
    }  # fmt: skip
    assert dict(run.attributes) == wanted | {"dse.active_s": run.attributes["dse.active_s"]}
    assert (run.kind, run.instrumentation_scope.name) == (SpanKind.INTERNAL, "dse")
    assert run.instrumentation_scope.schema_url == telemetry.SCHEMA_URL == "https://opentelemetry.io/schemas/1.41.0"
    assert run.instrumentation_scope.version == dse.__version__

    chat = reports.named("chat")[0]
    assert (chat.name, chat.kind) == ("chat model", SpanKind.CLIENT)
    assert dict(chat.attributes) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "scripted", "gen_ai.request.model": "model",
        "gen_ai.request.temperature": 0.5, "gen_ai.request.max_tokens": 100, "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 10, "gen_ai.response.model": "scripted/model",
        "gen_ai.response.finish_reasons": ("tool_call",), "dse.usage_source": "exact", "dse.cost_usd": 0.25,
        "dse.cost_source": "exact", "dse.recorded": False, "dse.predictor": "act", "dse.run_id": run.attributes["dse.run_id"],
    }  # fmt: skip

    tool, refused = reports.named("execute_tool")
    assert (tool.name, tool.kind) == ("execute_tool double", SpanKind.INTERNAL)
    assert dict(tool.attributes) == {
        "gen_ai.operation.name": "execute_tool", "gen_ai.provider.name": "dse", "gen_ai.tool.name": "double",
        "gen_ai.tool.type": "function", "gen_ai.tool.call.id": "1", "dse.tool.effect": "read", "dse.tool.outcome": "ok",
        "dse.tool.latency_s": made.receipt["calls"][0]["latency_s"], "dse.run_id": run.attributes["dse.run_id"],
    }  # fmt: skip
    # A name that the model made up is its output, and there is no end of such names.
    assert (refused.name, refused.attributes["gen_ai.tool.name"]) == ("execute_tool _OTHER", "_OTHER")
    assert refused.attributes["error.type"] == "DSE201" and refused.attributes["dse.tool.outcome"] == "refused"
    assert "nothing" not in reports.text()


@pytest.mark.parametrize(("name", "provider", "model"), [
    ("openai/gpt-5-mini", "openai", "gpt-5-mini"), ("openrouter/meta/llama", "openrouter", "meta/llama"),
    ("bedrock/some.model", "aws.bedrock", "some.model"), ("gemini/pro", "gcp.gemini", "pro"), ("local", "_OTHER", "local"),
])  # fmt: skip
def test_providers_have_the_names_of_the_conventions(reports: Reports, name: str, provider: str, model: str) -> None:
    lm = ScriptedModel([SUBMIT])
    lm.name = name
    program(None, lm=lm)(question="?")
    span = reports.one("chat")
    assert (span.attributes["gen_ai.provider.name"], span.attributes["gen_ai.request.model"]) == (provider, model)
    assert span.name == f"chat {model}"


@pytest.mark.parametrize(("mode", "replies"), [("tool_call", BOTH), ("code", code(SCRIPT))])
def test_gathered_calls_have_their_own_ids(reports: Reports, mode: str, replies: Any) -> None:
    made = program(replies, mode, deps=reports.tracer)(question="?")
    by_call = {s.attributes["gen_ai.tool.call.id"]: s for s in reports.named("execute_tool")}
    assert {i: s.attributes["gen_ai.tool.name"] for i, s in by_call.items()} == {
        str(c["call_id"]): c["tool"] for c in made.receipt["calls"]
    }
    assert set(by_call) == {"1", "2", "3"}
    for call_id, work in (("1", "work 1"), ("2", "work 2"), ("3", "work 84")):
        (span,) = [s for s in reports.spans if s.name == work]
        assert span.parent.span_id == by_call[call_id].context.span_id


def test_a_feed_says_what_became_of_the_script(reports: Reports) -> None:
    made = program(code("submitt(1)", "x = 1 // 0", SCRIPT), "code")(question="?")
    failed, good = reports.named("feed")  # the first script was refused before anything ran
    assert (failed.attributes["error.type"], failed.status.status_code) == ("ZeroDivisionError", StatusCode.ERROR)
    assert failed.attributes["dse.submitted"] is False and good.attributes["dse.submitted"] is True
    assert "error.type" not in good.attributes and good.status.status_code is StatusCode.UNSET
    total = made.receipt["usage"]["interpreter_s"]
    assert 0 < failed.attributes["dse.interpreter_s"] + good.attributes["dse.interpreter_s"] <= total + 2e-6  # rounded each
    refused, crashed = reports.one("invoke_agent").events
    assert (refused.name, dict(refused.attributes)) == ("dse.code_error", {"dse.stage": "check", "dse.rules": ("unresolved-reference",)})
    assert dict(crashed.attributes) == {"dse.stage": "run", "dse.class": "ZeroDivisionError", "dse.line": 1}
    (point,) = [p for p in reports.metrics["dse.operation.duration"] if "error.type" not in p.attributes]
    assert dict(point.attributes) == {"dse.operation": "feed", "gen_ai.agent.name": "Ask"} and point.count == 1


def test_what_was_decided_on_the_way_are_events(reports: Reports) -> None:
    paying = [say("no call"), call(("pay", {"amount": 1, "pin": "quince-0815"})), SUBMIT]
    program(paying, approve=lambda request: (False, "not quince-0815 again"))(question="?")
    (repair,) = reports.one("invoke_agent").events
    assert (repair.name, dict(repair.attributes)) == ("dse.repair", {"dse.predictor": "act"})
    tool = reports.one("execute_tool")
    (approval,) = tool.events
    assert dict(approval.attributes) == {"dse.tool": "pay", "dse.call_id": 1, "dse.granted": False}
    assert (tool.attributes["error.type"], tool.attributes["dse.tool.outcome"]) == ("DSE205", "refused")


def test_a_retried_run_is_one_span(reports: Reports) -> None:
    limits = {"model_calls": 1, "outcomes": {"model_calls": "retry"}}
    program([call(("double", {"n": 1})), SUBMIT], limits=limits)(question="?")
    run = reports.one("invoke_agent")
    assert run.attributes["dse.attempts"] == 2 and run.attributes["dse.model_calls"] == 2
    assert [dict(e.attributes) for e in run.events] == [{"dse.limit": "model_calls", "dse.attempt": 1}]


# --- failures -------------------------------------------------------------------------------------------


def ends(span: Any) -> tuple[Any, ...]:
    return span.attributes.get("error.type"), span.status.status_code, span.status.description


def test_a_tool_that_fails(reports: Reports) -> None:
    program([call(("halve", {"n": 7})), SUBMIT])(question="?")
    assert ends(reports.one("execute_tool")) == ("DSE209", StatusCode.ERROR, "ToolFailed")
    assert reports.one("execute_tool").attributes["dse.tool.outcome"] == "fault"
    assert ends(reports.one("invoke_agent")) == (None, StatusCode.UNSET, None)
    assert "odd" not in reports.text()


def test_a_limit(reports: Reports) -> None:
    with pytest.raises(LimitExceeded):
        program([call(("double", {"n": 1}))] * 3, limits={"model_calls": 2})(question="?")
    run = reports.one("invoke_agent")
    assert ends(run) == ("DSE301", StatusCode.ERROR, "LimitExceeded")
    assert (run.attributes["dse.limit"], run.attributes["dse.outcome"]) == ("model_calls", "failed")
    assert len(reports.named("chat")) == 2  # the third was never sent


def test_no_submission(reports: Reports) -> None:
    with pytest.raises(NoSubmission):
        program([say("no")] * 5)(question="?")
    assert ends(reports.one("invoke_agent"))[0] == "DSE303"


def test_a_model_that_cannot_be_had(reports: Reports) -> None:
    with pytest.raises(ModelUnavailable):
        program([ModelUnavailable("down: no route to 10.1.2.3")])(question="?")
    for name in ("chat", "invoke_agent"):
        assert ends(reports.one(name)) == ("DSE401", StatusCode.ERROR, "ModelUnavailable")
    assert reports.one("invoke_agent").attributes["dse.outcome"] == "infrastructure"
    assert "10.1.2.3" not in reports.text()
    assert reports.one("invoke_agent").events == ()  # no exception event: its stack and text are not ours to tell
    durations = reports.metrics["gen_ai.client.operation.duration"]
    assert {p.attributes["gen_ai.operation.name"]: p.attributes["error.type"] for p in durations} == {
        "chat": "DSE401", "invoke_agent": "DSE401"}  # fmt: skip
    assert "gen_ai.client.token.usage" not in reports.metrics


def test_waiting_for_a_decision_is_no_error(reports: Reports) -> None:
    with pytest.raises(RunSuspended):
        program([call(("pay", {"amount": 1, "pin": "quince-0815"}))])(question="?")
    for name, key in (("invoke_agent", "dse.outcome"), ("execute_tool", "dse.tool.outcome")):
        assert ends(reports.one(name)) == (None, StatusCode.UNSET, None)
        assert reports.one(name).attributes[key] == "suspended"


def test_a_bug_passes_as_it_is(reports: Reports) -> None:
    def broken(request: Any) -> Any:
        raise ZeroDivisionError("in /srv/model.py")

    with pytest.raises(ZeroDivisionError):
        program(broken)(question="?")
    assert ends(reports.one("invoke_agent")) == ("ZeroDivisionError", StatusCode.ERROR, "ZeroDivisionError")
    assert reports.one("invoke_agent").attributes["dse.outcome"] == "crashed"


def test_a_cancelled_run_ends_its_spans(reports: Reports) -> None:
    async def main() -> None:
        held = asyncio.Event()

        async def double(n: int) -> int:
            held.set()
            await asyncio.sleep(PATIENCE_S)
            return n

        one = program([call(("double", {"n": 1}))], toolbox=Ask.spec().toolbox().bind("double", double))
        task = asyncio.create_task(one.acall(question="?"))
        await held.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    for name in ("invoke_agent", "execute_tool"):
        assert ends(reports.one(name)) == ("CancelledError", StatusCode.ERROR, "CancelledError")
    assert reports.one("invoke_agent").attributes["dse.outcome"] == "cancelled"


def test_a_store_that_cannot_be_written(reports: Reports) -> None:
    class FullDisk(dse.Store):
        def stop_run(self, *args: Any, **kwargs: Any) -> None:
            raise StoreUnavailable("The store could not be written", value="disk full")

    with pytest.raises(StoreUnavailable):
        program([SUBMIT], store=FullDisk(":memory:"))(question="?")
    run = reports.one("invoke_agent")
    assert (run.attributes["error.type"], run.attributes["dse.outcome"]) == ("DSE404", "ok")


def test_what_goes_wrong_in_telemetry_changes_no_run(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            if span.name.startswith("execute_tool"):
                raise RuntimeError("no room for spans")

        def on_end(self, span: Any) -> None:
            raise RuntimeError("nobody takes spans")

    tracers = TracerProvider()
    tracers.add_span_processor(Broken())
    telemetry.configure(tracers)
    try:
        assert program(BOTH)(question="?").number == 42
    finally:
        telemetry.disable()
        tracers.shutdown()
    assert {record.message for record in caplog.records if record.name == "dse.telemetry"} == {"telemetry failed"}


# --- metrics --------------------------------------------------------------------------------------------


def test_tokens_and_durations_are_measured(reports: Reports) -> None:
    replies = [exact(None, ("double", {"n": 1}), tokens=(100, 10)), exact(None, ("submit", {"number": 2}), tokens=(200, 20))]
    program(replies)(question="?")
    tokens = {p.attributes["gen_ai.token.type"]: p for p in reports.metrics["gen_ai.client.token.usage"]}
    assert {kind: (p.sum, p.count, p.max) for kind, p in tokens.items()} == {"input": (300, 2, 200), "output": (30, 2, 20)}
    asked = {"gen_ai.provider.name": "scripted", "gen_ai.request.model": "model", "gen_ai.response.model": "scripted/model"}
    assert dict(tokens["input"].attributes) == {
        "gen_ai.operation.name": "chat", "gen_ai.token.type": "input", "dse.usage_source": "exact", **asked}  # fmt: skip
    assert tokens["input"].explicit_bounds[:3] == (1, 4, 16) and tokens["input"].explicit_bounds[-1] == 67_108_864
    durations = {p.attributes["gen_ai.operation.name"]: p for p in reports.metrics["gen_ai.client.operation.duration"]}
    assert {name: p.count for name, p in durations.items()} == {"chat": 2, "execute_tool": 1, "invoke_agent": 1}
    assert dict(durations["chat"].attributes) == {"gen_ai.operation.name": "chat", **asked}
    assert durations["execute_tool"].attributes["gen_ai.tool.name"] == "double"
    assert 0 < durations["chat"].sum <= durations["invoke_agent"].sum < PATIENCE_S
    assert durations["chat"].explicit_bounds[:2] == (0.01, 0.02) and durations["chat"].explicit_bounds[-1] == 81.92


def test_estimated_tokens_say_so(reports: Reports) -> None:
    program([SUBMIT])(question="?")
    assert {p.attributes["dse.usage_source"] for p in reports.metrics["gen_ai.client.token.usage"]} == {"estimated"}


def test_a_replay_asks_nobody_and_uses_nothing(reports: Reports, tmp_path: Path) -> None:
    recording = RecordModel(ScriptedModel([SUBMIT]), tmp_path / "one.jsonl", source="a script")
    program(None, lm=recording)(question="?")
    asyncio.run(recording.aclose())
    count = sum(p.count for p in reports.metrics["gen_ai.client.token.usage"])
    program(None, lm=f"replay:{tmp_path / 'one.jsonl'}")(question="?")
    assert [span.attributes["dse.recorded"] for span in reports.named("chat")] == [False, True]
    assert sum(p.count for p in reports.metrics["gen_ai.client.token.usage"]) == count == 2
    chats = [p for p in reports.metrics["gen_ai.client.operation.duration"] if p.attributes["gen_ai.operation.name"] == "chat"]
    assert sum(p.count for p in chats) == 1


# --- content and secrets --------------------------------------------------------------------------------


class Count(dse.Signature):
    """Answer with a number; nothing here is sensitive."""

    question: str = dse.InputField()
    number: int = dse.OutputField()
    tools = [double, halve]


class Consult(dse.Signature):
    """Answer a patient."""

    name: str = dse.InputField(sensitive=True)
    symptom: str = dse.InputField()
    advice: str = dse.OutputField()
    tools = [double, pay]


class Whisper(dse.Signature):
    """Answer a secret."""

    question: str = dse.InputField()
    secret: str = dse.OutputField(sensitive=True)
    tools = [double]


def test_no_content_unless_asked_for(reports: Reports) -> None:
    for mode, replies, _ in MODES:
        program(replies, mode)(question="marmalade in the attic")
    told = reports.text()
    for word in ("marmalade", "attic", "Double a number", "Answer with a number", "gather", '"n"', '"number"'):
        assert word not in told, word
    assert not {key for span in reports.spans for key in span.attributes} & {
        "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.tool.call.arguments", "gen_ai.tool.call.result",
        "dse.inputs", "dse.outputs", "dse.code"}  # fmt: skip


def test_content_in_the_form_of_the_conventions(reports: Reports) -> None:
    reports.configure(content=True)
    dse.Program(Count, "tool_call", lm=ScriptedModel(BOTH))(question="marmalade in the attic")
    first, second = reports.named("chat")
    (reply,) = json.loads(first.attributes["gen_ai.output.messages"])
    assert (reply["role"], reply["finish_reason"]) == ("assistant", "tool_call")
    assert reply["parts"][0] == {"type": "tool_call", "id": "call_1", "name": "double", "arguments": {"n": 1}}
    system, user, assistant, *results = json.loads(second.attributes["gen_ai.input.messages"])
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["parts"][0]["type"] == "text" and "marmalade" in user["parts"][0]["content"]
    assert [part["name"] for part in assistant["parts"]] == ["double", "double", "halve"]
    assert [r["parts"][0] for r in results] == [
        {"type": "tool_call_response", "id": f"call_{n}", "response": text} for n, text in ((1, "2"), (2, "4"), (3, "42"))]  # fmt: skip
    halved = reports.named("execute_tool")[2]
    assert halved.attributes["gen_ai.tool.call.arguments"] == '{"n": 84}'
    assert halved.attributes["gen_ai.tool.call.result"] == "42"
    run = reports.one("invoke_agent")
    assert json.loads(run.attributes["dse.inputs"]) == {"question": "marmalade in the attic"}
    assert json.loads(run.attributes["dse.outputs"]) == {"number": 42}


def test_content_of_scripts_and_errors(reports: Reports) -> None:
    reports.configure(content=True)
    scripts = ["y = await halve(7)", "submit(number=2)"]
    dse.Program(Count, "code", lm=ScriptedModel(code(*scripts)))(question="?")
    assert [span.attributes["dse.code"] for span in reports.named("feed")] == scripts
    assert "7 is odd" in reports.one("execute_tool").status.description
    assert "7 is odd" in reports.one("invoke_agent").events[0].attributes["dse.message"]


SECRETS = ("Ada Lovelace", "kumquat", "xyz", 'say "no"', r"say \"no\"", "tiger-lily")


def consult(request: Any) -> Any:
    if request["messages"][-1]["role"] == "tool":
        return call(("submit", {"advice": "rest, Ada Lovelace"}))
    return call(("pay", {"amount": 3, "pin": 'say "no"'}), ("pay", {"amount": 4, "pin": "xyz"}), ("pay", {"pin": "kumquat"}))


@pytest.mark.parametrize("content", [False, True])
def test_sensitive_fields_are_hidden_everywhere(reports: Reports, content: bool) -> None:
    reports.configure(content=content)
    dse.Program(Consult, "tool_call", lm=ScriptedModel(consult), approve=lambda request: (False, "no more xyz, say \"no\""))(
        name="Ada Lovelace", symptom="cough")  # fmt: skip
    scripts = code("a = await pay(1, 'kumquat')\nprint(a, 'xyz')", "submit(advice='rest, Ada Lovelace and kumquat')")
    dse.Program(Consult, "code", lm=ScriptedModel(scripts), approve=lambda request: True)(name="Ada Lovelace", symptom="cough")
    dse.Program(Whisper, "tool_call", lm=ScriptedModel([say("it is tiger-lily"), call(("submit", {"secret": "tiger-lily"}))]))(
        question="?")  # fmt: skip
    failing = ScriptedModel(code("assert 1 == 2, 'tiger-lily'"))
    with pytest.raises(LimitExceeded):
        dse.Program(Whisper, seed_plan(Whisper.spec(), "code", limits=dse.Limits(model_calls=1)), lm=failing)(question="?")
    told = reports.text()
    for secret in SECRETS:
        assert secret not in told and json.dumps(secret)[1:-1] not in told, secret
    assert ("cough" in told) is content  # what is not sensitive is shown where it stands alone
    if content:
        one = next(s for s in reports.named("execute_tool") if s.attributes.get("gen_ai.tool.call.arguments"))
        assert json.loads(one.attributes["gen_ai.tool.call.arguments"]) == {"amount": 3, "pin": "[redacted]"}


# --- off ------------------------------------------------------------------------------------------------


def test_off_by_default_and_when_disabled(reports: Reports) -> None:
    telemetry.disable()
    program(BOTH)(question="?")
    assert reports.spans == [] and reports.metrics == {}
    reports.configure()
    program(BOTH)(question="?")
    assert len(reports.named("invoke_agent")) == 1


def test_disabling_while_a_run_goes_on_ends_its_spans(reports: Reports) -> None:
    def double(n: int) -> int:
        telemetry.disable()
        return 2 * n

    toolbox = Ask.spec().toolbox().bind("double", double)
    program([call(("double", {"n": 1})), call(("halve", {"n": 2})), SUBMIT], toolbox=toolbox)(question="?")
    assert reports.tree() == [("invoke_agent Ask", [CHAT, ("execute_tool double", [])])]


RUN = """
import sys, json
import dse
from dse.testing.scripted import ScriptedModel, call
class Ask(dse.Signature):
    "Answer."
    question: str = dse.InputField()
    number: int = dse.OutputField()
{before}
dse.Program(Ask, "direct", lm=ScriptedModel(["[[ ## number ## ]]\\n42"]))(question="?")
{after}
"""


def script(before: str = "", after: str = "", **env: str) -> Any:
    return subprocess.run([sys.executable, "-W", "default::RuntimeWarning", "-c", RUN.format(before=before, after=after)],
                          capture_output=True, text=True, timeout=PATIENCE_S, env={**os.environ, **env})  # fmt: skip


def test_nothing_of_opentelemetry_is_imported_while_it_is_off() -> None:
    # dspy's own dependencies may bring it along, so what is asked is who imported it.
    done = script("sys.modules.update({m: None for m in ('opentelemetry', 'opentelemetry.sdk')})",
                  "print(dse.telemetry.active)")  # fmt: skip
    assert (done.stdout.strip(), done.returncode) == ("None", 0), done.stderr


GLOBAL = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""


def test_the_environment_switches_it_on_with_the_global_providers() -> None:
    done = script(GLOBAL, "print(sorted(s.name for s in exporter.get_finished_spans()))", DSE_TELEMETRY="1")
    assert done.stdout.strip() == "['chat model', 'invoke_agent Ask']", done.stderr
    assert script(GLOBAL, "print(len(exporter.get_finished_spans()))", DSE_TELEMETRY="0").stdout.strip() == "0"


def test_without_opentelemetry_the_environment_only_warns() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None\nimport dse.telemetry\nprint(dse.telemetry.active)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "DSE_TELEMETRY": "1"})  # fmt: skip
    assert done.stdout.strip() == "None" and "DSE_TELEMETRY=1 has no effect" in done.stderr


def test_configuring_without_opentelemetry_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(UserError, match=r"dse-compiler\[telemetry\]"):
        telemetry.configure()
    assert telemetry.active is None
