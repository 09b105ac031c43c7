"""Recorded environments: what was recorded is what a replay gives, in every mode, and nothing else ever is."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dse
from benchmarks.shipped import SHIPPED
from dse.errors import (
    CassetteError,
    CassetteMiss,
    ContractMismatch,
    EnvironmentRequired,
    ToolFailed,
    UserError,
)
from dse.evaluation.evaluator import Evaluator, RolloutRecord
from dse.evaluation.sampling import spread
from dse.models.lm import resolve_model
from dse.portal import run_sync
from dse.store.effects import EffectCassette, compact_effects
from dse.strategies.base import seed_plan
from dse.strategies.script import script_plan
from dse.testing import PlantedWorld, ScriptedModel, call, say
from dse.testing.worlds import warehouse

MODES = ("tool_call", "code")


class Shelf:
    """A world of numbers under names."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {"a": 1}
        self.asked = 0


Context = dse.ToolContext[Shelf]


@dse.tool(effect="read", revision="1")
def look(ctx: Context, name: str) -> int | None:
    """The number under a name."""
    ctx.deps.asked += 1
    return ctx.deps.held.get(name)


@dse.tool(effect="read", revision="1")
async def total(ctx: Context) -> Decimal:
    """The sum of all."""
    ctx.deps.asked += 1
    return Decimal(sum(ctx.deps.held.values()))


@dse.tool(effect="write", revision="1")
async def put(ctx: Context, name: str, number: int) -> dict[str, int]:
    """Put a number under a name."""
    if number < 0:
        raise ToolFailed("no negative numbers")
    if number == 13:
        raise ValueError("13 in /srv/shelf/data")
    ctx.deps.held[name] = number
    return dict(sorted(ctx.deps.held.items()))


@dse.tool(effect="write", revision="1", approval="always")
def drop(ctx: Context, name: str) -> bool:
    """Take a number away."""
    return ctx.deps.held.pop(name, None) is not None


@dse.tool(effect="pure", revision="1")
def double(number: int) -> int:
    """Twice the number."""
    if number > 1_000:
        raise OverflowError("too large")
    return 2 * number


TOOLS = [look, total, put, drop, double]


class Ask(dse.Signature):
    """Answer."""

    question: str = dse.InputField()
    answer: str = dse.OutputField()
    tools = TOOLS


@dse.environment(revision="1")
def shelf(example: Any) -> Iterator[dse.World]:
    world = Shelf()
    yield dse.World(deps=world, state=lambda: {"held": dict(world.held)},
                    approve=lambda request: (request.arguments["name"] != "keep", "that one stays"))  # fmt: skip


@dse.metric(revision="1")
def held(example: Any, prediction: Any, ctx: dse.MetricContext) -> float:
    return min(1.0, len(ctx.state["held"]) / 3)


Rounds = list[list[tuple[str, dict[str, Any]]]]


def script(rounds: Rounds) -> str:
    """The calls as a script that shows what each gave."""
    names = sorted({name for calls in rounds for name, _ in calls})
    lines = ["import asyncio, json", "from typing import TYPE_CHECKING", "if TYPE_CHECKING:", "    unknown = json.loads('1')",
             "async def one(tool, text):", "    try:", "        return str(await tool(**json.loads(text)))",
             "    except Exception as error:", "        return str(error)"]  # fmt: skip
    lines += [f"async def call_{name}(**given):\n    return await {name}(**given)" for name in names]
    for calls in rounds:
        made = ", ".join(f"one(call_{name}, {json.dumps(arguments)!r})" for name, arguments in calls)
        lines += [f"for gave in await asyncio.gather({made}):", "    print(gave)"]
    return "\n".join(lines)


def model(mode: str, rounds: Rounds) -> ScriptedModel:
    """Makes the calls, and answers."""
    if mode == "tool_call":
        return ScriptedModel([*(call(*calls) for calls in rounds), call(("submit", {"answer": "done"}))])
    texts = [f"[[ ## code ## ]]\n{script(rounds)}", "[[ ## code ## ]]\nsubmit(answer='done')"]
    return ScriptedModel([say(text) for text in texts])


def task(environment: Any, **more: Any) -> dse.Task:
    rows = dse.Dataset.from_rows([{"id": f"r{n}", "question": f"what about {n}?"} for n in range(40)], name="shelves",
                                 fields={"question": "input"})  # fmt: skip
    return dse.Task(Ask, **{"dataset": rows, "metric": held, "environment": environment} | more)


def rollout(environment: Any, mode: str | dse.Plan, lm: ScriptedModel, row: int = 0, **more: Any) -> RolloutRecord:
    """One rollout in a store of its own."""

    async def go() -> RolloutRecord:
        made = task(environment, **more)
        evaluator = Evaluator(made, lm, dse.Store(":memory:"), attempts=1)
        example = made.load_dataset().split("search")[row]
        plan = seed_plan(made.spec, mode) if isinstance(mode, str) else mode
        return await evaluator.rollout("it", plan, example)

    return run_sync(go)


def told(lm: ScriptedModel) -> list[Any]:
    """Everything the model was told."""
    return [request["messages"] for request in lm.requests]


def seen(record: RolloutRecord) -> dict[str, Any]:
    """A rollout without what differs between two machines."""
    calls = [{k: v for k, v in c.items() if k not in ("latency_s", "idempotency_key")} for c in record.receipt["calls"]]
    return {"outcome": record.outcome, "score": record.score, "outputs": record.outputs, "calls": calls,
            "effects": record.receipt["effects"], "components": dict(record.components), "feedback": record.feedback,
            "transcript": record.receipt["transcript_hash"]}  # fmt: skip


def record_and_replay(path: Path, mode: str, rounds: Rounds) -> tuple[dict[str, Any], list[Any]]:
    """Both give the same; gives it."""
    recording = dse.Environment.recorded(path, inner=shelf, mode="record")
    first = model(mode, rounds)
    recorded = seen(rollout(recording, mode, first))
    recording.close()
    second = model(mode, rounds)
    replayed = seen(rollout(dse.Environment.recorded(path), mode, second))
    assert (replayed, told(second)) == (recorded, told(first))
    return recorded, told(first)


# --- the same in every mode


@pytest.mark.parametrize("mode", MODES)
def test_a_recording_gives_what_the_world_gave(mode: str, tmp_path: Path) -> None:
    rounds: Rounds = [
        [("look", {"name": "a"}), ("total", {})],
        [("put", {"name": "b", "number": 5})],
        [("look", {"name": "b"}), ("total", {}), ("double", {"number": 4})],
        [("put", {"name": "b", "number": -1}), ("put", {"name": "c", "number": 13}), ("double", {"number": 2_000})],
        [("drop", {"name": "a"}), ("drop", {"name": "keep"})],
        [("total", {}), ("look", {"name": "a"})],
    ]
    bare = model(mode, rounds)
    plain = seen(rollout(shelf, mode, bare))
    recorded, said = record_and_replay(tmp_path / "r.jsonl", mode, rounds)
    assert (recorded, said) == (plain, told(bare))
    live = model(mode, rounds)
    assert seen(rollout(dse.Environment.recorded(tmp_path / "no.jsonl", inner=shelf, mode="live"), mode, live)) == plain
    assert not (tmp_path / "no.jsonl").exists()
    outcomes = [(c["tool"], c["outcome"], c.get("fault")) for c in recorded["calls"]]
    assert outcomes.count(("put", "fault", "DSE209")) == 2 and ("drop", "refused", "DSE205") in outcomes
    assert "shelf/data" not in (tmp_path / "r.jsonl").read_text()  # no host path in what is shared


names = st.sampled_from(["a", "b", "keep"])
calls_ = st.one_of(
    st.tuples(st.just("look"), st.fixed_dictionaries({"name": names})),
    st.tuples(st.just("total"), st.just({})),
    st.tuples(st.just("put"), st.fixed_dictionaries({"name": names, "number": st.sampled_from([-1, 0, 7, 13])})),
    st.tuples(st.just("drop"), st.fixed_dictionaries({"name": names})),
    st.tuples(st.just("double"), st.fixed_dictionaries({"number": st.sampled_from([1, 5_000])})),
)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(rounds=st.lists(st.lists(calls_, min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_calls(mode: str, rounds: Rounds, tmp_path_factory: pytest.TempPathFactory) -> None:
    record_and_replay(tmp_path_factory.mktemp("any") / "r.jsonl", mode, rounds)


def test_what_one_mode_recorded_another_replays(tmp_path: Path) -> None:
    rounds: Rounds = [[("look", {"name": "a"})], [("put", {"name": "b", "number": 2})], [("total", {})]]
    recorded, _ = record_and_replay(tmp_path / "r.jsonl", "code", rounds)
    replayed = seen(rollout(dse.Environment.recorded(tmp_path / "r.jsonl"), "tool_call", model("tool_call", rounds)))
    for one in (recorded, replayed):
        del one["transcript"]  # another mode, another conversation
        one["calls"] = [{k: c[k] for k in ("tool", "arguments_hash", "result_hash", "outcome")} for c in one["calls"]]
    assert replayed == recorded


@pytest.mark.parametrize("mode", MODES)
def test_calls_together_with_a_write_do_not_depend_on_timing(mode: str, tmp_path: Path) -> None:
    """The read is slow in the world, and takes no time in the replay; both see the state of their place in the order."""
    started: list[str] = []

    @dse.environment(revision="slow")
    def slow(example: Any) -> dse.World:
        world = Shelf()

        async def slow_put(ctx: Context, name: str, number: int) -> dict[str, int]:
            started.append("put")
            for _ in range(20):
                await asyncio.sleep(0)
            world.held[name] = number
            return dict(world.held)

        async def slow_total(ctx: Context) -> Decimal:
            started.append("total")
            await asyncio.sleep(0)
            return Decimal(sum(world.held.values()))

        return dse.World(deps=world, tools={"put": slow_put, "total": slow_total}, state=lambda: {"held": dict(world.held)})

    rounds: Rounds = [[("total", {}), ("put", {"name": "b", "number": 5}), ("total", {}), ("total", {})]]
    path = tmp_path / "r.jsonl"
    recording = dse.Environment.recorded(path, inner=slow, mode="record")
    one = model(mode, rounds)
    recorded = seen(rollout(recording, mode, one))
    recording.close()
    assert started == ["total", "put", "total", "total"]
    two = model(mode, rounds)
    assert (seen(rollout(dse.Environment.recorded(path), mode, two)), told(two)) == (recorded, told(one))
    text = json.dumps(told(two))
    assert text.index("1") < text.index("6")


def test_a_script_tool_is_run_and_what_it_calls_is_recorded(tmp_path: Path) -> None:
    runner = dse.script_tool([look, put], name="run_script")

    class Both(dse.Signature):
        """Answer."""

        question: str = dse.InputField()
        answer: str = dse.OutputField()
        tools = [look, put, runner]

    code = "await put(name='b', number=4)\nawait look(name='b')"
    replies = [call(("run_script", {"code": code})), call(("submit", {"answer": "x"}))]

    def go(environment: Any) -> tuple[Any, Any]:
        lm = ScriptedModel(list(replies))

        async def inner() -> Any:
            rows = [dse.Example("1", {"question": "?"})]
            made = dse.Task(Both, dataset=None, metric=held, environment=environment)
            evaluator = Evaluator(made, lm, dse.Store(":memory:"))
            return await evaluator.rollout("it", seed_plan(made.spec, "tool_call"), rows[0])

        return seen(run_sync(inner)), told(lm)

    recording = dse.Environment.recorded(tmp_path / "r.jsonl", inner=shelf, mode="record")
    recorded = go(recording)
    recording.close()
    assert set(EffectCassette.open(tmp_path / "r.jsonl").tools) == {"look", "put"}
    assert go(dse.Environment.recorded(tmp_path / "r.jsonl")) == recorded
    assert [c["tool"] for c in recorded[0]["calls"]] == ["run_script", "put", "look"]


@pytest.mark.parametrize("name", ["expenses", "assistant"])
def test_shipped_tasks(name: str, tmp_path: Path) -> None:
    shipped = next(s for s in SHIPPED if s.name == name)
    made = shipped.task()
    plans = {mode: seed_plan(made.spec, mode, limits=made.limits) for mode in MODES}
    rows = made.load_dataset().split("select")

    def go(environment: Any) -> list[dict[str, Any]]:
        lm = resolve_model(f"replay:{shipped.cassette}")
        changed = dse.Task(made.signature, dataset=made.dataset, metric=made.metric, environment=environment, limits=made.limits)
        evaluator = Evaluator(changed, lm, dse.Store(":memory:"))
        return [seen(r) for r in run_sync(lambda: evaluator.evaluate(plans, spread(rows, 4 if name == "expenses" else 6)))]

    plain = go(made.environment)
    recording = dse.Environment.recorded(tmp_path / "r.jsonl", inner=made.environment, mode="record")
    recorded = go(recording)
    recording.close()
    replayed = go(dse.Environment.recorded(tmp_path / "r.jsonl"))
    assert replayed == recorded == plain
    assert any(r["calls"] for r in plain)


# --- where no model, or not the model alone, makes the calls

ALONE: Rounds = [
    [("look", {"name": "a"}), ("total", {})], [("put", {"name": "b", "number": 5})], [("put", {"name": "c", "number": 13})],
    [("look", {"name": "b"}), ("total", {}), ("double", {"number": 4})], [("drop", {"name": "a"}), ("drop", {"name": "keep"})], [("total", {})],
]  # fmt: skip
READS: Rounds = [[("look", {"name": "a"}), ("total", {})]]
WRITES: Rounds = [[("put", {"name": "b", "number": 5})], [("total", {}), ("look", {"name": "b"})]]
ENDS = {"answers": "submit(answer=repr(gave))", "fails": "submit(answer=gave[99])", "abstains": "abstain(repr(gave))"}


def alone(rounds: Rounds, end: str = "answers") -> dse.Plan:
    """A plan of mode script: catches whatever can be caught, and ends with all it was told."""
    lines = ["gave = []"]
    for calls in rounds:
        for name, arguments in calls:
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            lines += ["try:", f"    gave.append(str(await {name}({given})))", "except BaseException as error:", "    gave.append(str(error))"]
    return script_plan(Ask.spec(), "\n".join([*lines, ENDS[end]]))


def staged(end: str, then: str) -> dse.Plan:
    return dse.Plan.cascade(alone(READS, end), seed_plan(Ask.spec(), then))


def all_ways(path: Path, plan: dse.Plan, then: str, rounds: Rounds) -> dict[str, Any]:
    """Without a recording, live, recorded and replayed all is the same; gives it."""
    ways = {"bare": lambda: shelf, "live": lambda: dse.Environment.recorded(path, inner=shelf, mode="live"),
            "record": lambda: dse.Environment.recorded(path, inner=shelf, mode="record"), "replay": lambda: dse.Environment.recorded(path)}
    found = {}
    for way, environment in ways.items():
        lm, made = model(then, rounds), environment()
        found[way] = (seen(rollout(made, plan, lm)), told(lm))
        if way == "record":
            made.close()
    assert found["live"] == found["record"] == found["replay"] == found["bare"]
    return found["replay"][0]


def test_a_script_in_a_recording(tmp_path: Path) -> None:
    found = all_ways(tmp_path / "r.jsonl", alone(ALONE), "tool_call", [])
    assert found["outputs"]["answer"].startswith("['1', '1', \"{'a': 1, 'b': 5}\", 'put failed") and found["outcome"] == "ok"
    assert found["score"] == pytest.approx(1 / 3), "the end state is the recorded one"
    calls = [(c["tool"], c["outcome"]) for c in found["calls"]]
    assert len(calls) == 10 and calls[2:4] == [("put", "ok"), ("put", "fault")] and ("drop", "refused") in calls


@pytest.mark.parametrize("end", ["fails", "abstains"])
@pytest.mark.parametrize("then", MODES)
def test_a_cascade_in_a_recording(end: str, then: str, tmp_path: Path) -> None:
    """Both stages meet the same world: what the second one does follows on what the first one did."""
    found = all_ways(tmp_path / "r.jsonl", staged(end, then), then, WRITES)
    assert found["outputs"] == {"answer": "done"} and found["score"] == pytest.approx(2 / 3)
    assert [c["tool"] for c in found["calls"]][:3] == ["look", "total", "put"] and len(found["calls"]) == 5
    one_stage = seen(rollout(dse.Environment.recorded(tmp_path / "r.jsonl"), "code", model("code", [*READS, *WRITES])))
    assert [c["result_hash"] for c in one_stage["calls"]] == [c["result_hash"] for c in found["calls"]], "any mode replays it"


@pytest.mark.parametrize(("known", "stage"), [(READS[:0], 1), ([READS[0][:1]], 1), (READS, 2), ([*READS, WRITES[0]], 2)],
                         ids=["nothing", "the first call", "the first stage", "up to the last read"])  # fmt: skip
@pytest.mark.parametrize("plan", ["script", *MODES])
def test_a_miss_in_a_script_or_a_stage_is_no_score(plan: str, known: Rounds, stage: int, tmp_path: Path) -> None:
    """It is no failure that hands over, nor one that the script can catch; nothing of it is kept."""
    path = recording_of(tmp_path / "r.jsonl", known)
    lm = model("tool_call" if plan == "script" else plan, WRITES)
    pauses: list[float] = []
    store = dse.Store(":memory:")

    async def go() -> Any:
        made = task(dse.Environment.recorded(path))
        evaluator = Evaluator(made, lm, store, before_pause=pauses.append)
        one = alone([*READS, *WRITES]) if plan == "script" else staged("fails", plan)
        return await evaluator.evaluate({"it": one}, made.load_dataset().split("search")[:1])

    with pytest.raises(CassetteMiss) as caught:
        run_sync(go)
    assert caught.value.code == "DSE402" and not pauses and not store.rollouts()
    assert bool(lm.requests) == (stage == 2 and plan != "script"), "whether the second stage was begun"


# --- what is not recorded is never a score


def recording_of(path: Path, rounds: Rounds, **options: Any) -> Path:
    environment = dse.Environment.recorded(path, inner=shelf, mode="record", **options)
    rollout(environment, "tool_call", model("tool_call", rounds))
    environment.close()
    return path


LOOK: Rounds = [[("look", {"name": "a"})]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rounds", "why"), [
    ([[("look", {"name": "b"})]], 'nearest recorded arguments are {"name":"a"}'),
    ([[("total", {})]], "no call of this tool was recorded"),
    ([[("put", {"name": "z", "number": 1})], [("look", {"name": "a"})]], "in 1 other states of a world"),
], ids=["arguments", "tool", "state"])  # fmt: skip
def test_a_miss_is_no_score(mode: str, rounds: Rounds, why: str, tmp_path: Path) -> None:
    known = LOOK + ([[("put", {"name": "z", "number": 1})]] if len(rounds) > 1 else [])
    path = recording_of(tmp_path / "r.jsonl", known)
    pauses: list[float] = []

    async def go() -> Any:
        made = task(dse.Environment.recorded(path))
        evaluator = Evaluator(made, model(mode, rounds), dse.Store(":memory:"), before_pause=pauses.append)
        return await evaluator.evaluate({"it": seed_plan(made.spec, mode)}, made.load_dataset().split("search")[:1])

    with pytest.raises(CassetteMiss) as caught:
        run_sync(go)
    assert why in str(caught.value) and caught.value.code == "DSE402"
    assert not pauses  # asking again cannot help


def test_an_end_state_that_was_not_recorded_is_a_miss(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", [[("look", {"name": "a"})], [("put", {"name": "b", "number": 1})]])
    with pytest.raises(CassetteMiss, match="no end state"):  # this run ends before the write
        rollout(dse.Environment.recorded(path), "tool_call", model("tool_call", LOOK))


def test_another_row_is_another_world(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "own.jsonl", LOOK)
    with pytest.raises(CassetteMiss):
        rollout(dse.Environment.recorded(path), "tool_call", model("tool_call", LOOK), row=1)
    shared: dict[str, Any] = {"state": lambda example: "one shelf for all"}
    path = recording_of(tmp_path / "shared.jsonl", LOOK, **shared)
    other = rollout(dse.Environment.recorded(path, **shared), "tool_call", model("tool_call", LOOK), row=1)
    assert other.receipt["calls"][0]["outcome"] == "ok"


def test_a_pure_tool_has_no_state(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", [[("double", {"number": 4})]])
    assert {e.state for e in EffectCassette.open(path).entries.values()} == {""}


def test_a_changed_interface_is_an_error(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", LOOK)

    @dse.tool(effect="read", name="look", revision="2")
    def look_again(ctx: Context, name: str) -> str:
        """The number under a name, in words."""
        return "one"

    class Other(dse.Signature):
        """Answer."""

        question: str = dse.InputField()
        answer: str = dse.OutputField()
        tools = [look_again]

    made = dse.Task(Other, dataset=None, metric=held, environment=dse.Environment.recorded(path))
    evaluator = Evaluator(made, model("tool_call", LOOK), dse.Store(":memory:"))
    with pytest.raises(ContractMismatch, match="interface changed since its calls were recorded"):
        run_sync(lambda: evaluator.rollout("it", seed_plan(made.spec, "tool_call"), dse.Example("1", {"question": "?"})))


# --- recording


def test_reads_that_are_known_are_not_asked_again_and_writes_keep_the_world_right(tmp_path: Path) -> None:
    worlds: list[Shelf] = []

    @dse.environment(revision="1", name="shelf")
    def watched(example: Any) -> dse.World:
        worlds.append(Shelf())
        world = worlds[-1]
        return dse.World(deps=world, state=lambda: {"held": dict(world.held)})

    rounds: Rounds = [[("look", {"name": "a"})], [("put", {"name": "b", "number": 5})], [("total", {})]]
    recording = dse.Environment.recorded(tmp_path / "r.jsonl", inner=watched, mode="record")
    rollout(recording, "tool_call", model("tool_call", rounds))
    before = (tmp_path / "r.jsonl").read_bytes()
    rollout(recording, "code", model("code", rounds))
    assert (tmp_path / "r.jsonl").read_bytes() == before
    again = rollout(recording, "code", model("code", [*rounds, [("look", {"name": "b"})]]))
    assert [world.asked for world in worlds] == [2, 0, 1]
    assert [world.held for world in worlds] == [{"a": 1, "b": 5}] * 3
    assert again.receipt["calls"][-1]["outcome"] == "ok"
    recording.close()


def test_a_world_that_does_not_repeat_itself_is_found_out(tmp_path: Path) -> None:
    numbers = iter(range(100))

    @dse.environment(revision="1")
    def restless(example: Any) -> dse.World:
        async def fresh_put(ctx: Context, name: str, number: int) -> dict[str, int]:
            return {"id": next(numbers)}

        return dse.World(deps=Shelf(), tools={"put": fresh_put}, state=lambda: {"held": {}})

    write: Rounds = [[("put", {"name": "b", "number": 5})]]
    recording = dse.Environment.recorded(tmp_path / "r.jsonl", inner=restless, mode="record")
    first = rollout(recording, "tool_call", model("tool_call", write))
    second = rollout(recording, "code", model("code", write))  # all of it is recorded: the first recording stands
    hashes = [r.receipt["calls"][0]["result_hash"] for r in (first, second)]
    assert hashes[0] == hashes[1]
    with pytest.raises(CassetteMiss, match=r"after put\(\), whose outcome was not the recorded one"):
        rollout(recording, "tool_call", model("tool_call", [*write, *LOOK]))
    recording.close()


def test_a_tool_that_takes_too_long_does_so_in_the_replay_at_once(tmp_path: Path) -> None:
    @dse.tool(effect="write", revision="1", timeout_s=0.05)
    async def wait(ctx: Context) -> None:
        """Wait for ever."""
        await asyncio.Event().wait()

    class Waits(dse.Signature):
        """Answer."""

        question: str = dse.InputField()
        answer: str = dse.OutputField()
        tools = [wait, look]

    rounds: Rounds = [[("wait", {})], *LOOK]

    def go(environment: Any) -> tuple[Any, Any]:
        lm = model("tool_call", rounds)
        evaluator = Evaluator(dse.Task(Waits, dataset=None, metric=held, environment=environment), lm, dse.Store(":memory:"))
        plan = seed_plan(Waits.spec(), "tool_call")
        return seen(run_sync(lambda: evaluator.rollout("it", plan, dse.Example("1", {"question": "?"})))), told(lm)

    recording = dse.Environment.recorded(tmp_path / "r.jsonl", inner=shelf, mode="record")
    recorded = go(recording)
    recording.close()
    assert recorded[0]["calls"][0]["fault"] == "DSE206"
    assert go(dse.Environment.recorded(tmp_path / "r.jsonl")) == recorded


def test_a_result_that_does_not_fit_its_contract(tmp_path: Path) -> None:
    @dse.environment(revision="1")
    def odd(example: Any) -> dse.World:
        async def odd_put(ctx: Context, name: str, number: int) -> dict[str, int]:
            return {"b": "much"}  # type: ignore[dict-item]

        return dse.World(deps=Shelf(), tools={"put": odd_put}, state=lambda: {"held": {}})

    rounds: Rounds = [[("put", {"name": "b", "number": 5})], *LOOK]
    recording = dse.Environment.recorded(tmp_path / "r.jsonl", inner=odd, mode="record")
    first = model("tool_call", rounds)
    recorded = seen(rollout(recording, "tool_call", first))
    recording.close()
    second = model("tool_call", rounds)
    assert seen(rollout(dse.Environment.recorded(tmp_path / "r.jsonl"), "tool_call", second)) == recorded
    assert told(second) == told(first)
    assert recorded["calls"][0]["fault"] == "DSE207" and "took effect" in recorded["calls"][0]["message"]


# --- the file


def test_a_torn_line_is_dropped_when_the_recording_goes_on(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", LOOK)
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        path.write_bytes(whole[:-cut])
        with pytest.raises(CassetteError, match="torn"):
            EffectCassette.open(path)
        recording_of(path, LOOK)
        assert EffectCassette.open(path).content_id == _content(tmp_path, whole)


def _content(folder: Path, data: bytes) -> str:
    (folder / "other.jsonl").write_bytes(data)
    return EffectCassette.open(folder / "other.jsonl").content_id


def test_the_order_of_recording_and_the_compression_do_not_matter(tmp_path: Path) -> None:
    one: Rounds = [[("look", {"name": "a"})], [("look", {"name": "b"})], [("double", {"number": 2})]]
    first, second = recording_of(tmp_path / "1.jsonl", one), recording_of(tmp_path / "2.jsonl", one[::-1])
    assert first.read_bytes() != second.read_bytes()
    packed = compact_effects(first, tmp_path / "1.jsonl.gz")
    compact_effects(second, tmp_path / "2.jsonl.gz")
    assert (tmp_path / "1.jsonl.gz").read_bytes() == (tmp_path / "2.jsonl.gz").read_bytes()
    revisions = {dse.Environment.recorded(p).revision for p in (first, second, packed.path)}
    assert len(revisions) == 1
    more = recording_of(tmp_path / "3.jsonl", [*one, [("total", {})]])
    assert dse.Environment.recorded(more).revision not in revisions
    with pytest.raises(CassetteError, match="compressed"):
        dse.Environment.recorded(packed.path, inner=shelf, mode="record").cassette  # noqa: B018


@pytest.mark.parametrize(("change", "problem"), [
    (lambda s: s.replace('"state":"', '"state":"0', 1), "string_pattern|pattern|state"),
    (lambda s: s.replace('"arguments":{"name":"a"}', '"arguments":{"name":"b"}'), "its key is not that of its call"),
    (lambda s: s.replace('"outcome":{', '"odd":1,"outcome":{'), "odd"),
    (lambda s: s + s.splitlines()[2] + "\n", "was recorded before"),
    (lambda s: s.replace("dse-effects-1", "dse-effects-9"), "format"),
    (lambda s: s.splitlines()[0] + "\n" + "\n".join(s.splitlines()[2:]) + "\n", "no line above says what"),
    (lambda s: s + "[1]\n", "neither a call"),
    (lambda s: s + '{"end":"' + "0" * 32 + '","value":NaN}\n', "not JSON"),
    (lambda s: "", "empty"),
])  # fmt: skip
def test_a_broken_file_is_refused(change: Callable[[str], str], problem: str, tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", LOOK)
    path.write_text(change(path.read_text()))
    with pytest.raises(CassetteError, match=problem):
        EffectCassette.open(path)


def test_a_result_that_somebody_changed_is_no_answer(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", LOOK)
    path.write_text(path.read_text().replace('"value":1}', '"value":"one"}'))
    with pytest.raises(CassetteMiss, match="does not fit its contract"):
        rollout(dse.Environment.recorded(path), "tool_call", model("tool_call", LOOK))


def test_sizes_are_bounded(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", LOOK)
    with pytest.raises(CassetteError, match="more than 100 bytes"):
        EffectCassette.open(path, max_bytes=100)


def test_one_recorder_at_a_time_and_of_one_environment(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", LOOK)
    first = dse.Environment.recorded(path, inner=shelf, mode="record")
    assert first.cassette.entries
    with pytest.raises(CassetteError, match="by somebody else"):
        dse.Environment.recorded(path, inner=shelf, mode="record").cassette  # noqa: B018
    first.close()
    with pytest.raises(CassetteError, match="another environment"):
        dse.Environment.recorded(path, inner=warehouse, mode="record").cassette  # noqa: B018


# --- secrets


def secret_tools(where: str) -> list[Any]:
    @dse.tool(effect="read", revision="1", sensitive=["token"] if where == "argument" else ["return"])
    def open_door(ctx: Context, token: str) -> str:
        """Open a door."""
        return "a-secret-behind" if where == "result" else "open"

    return [open_door]


def opens(where: str) -> tuple[Any, Rounds]:
    signature = type("Opens", (dse.Signature,), {
        "__doc__": "Answer.", "__annotations__": {"question": str, "answer": str}, "tools": secret_tools(where),
        "question": dse.InputField(), "answer": dse.OutputField()})  # fmt: skip
    return signature, [[("open_door", {"token": "hunter2-and-more"})]]


def open_it(signature: Any, environment: Any, rounds: Rounds) -> Any:
    made = dse.Task(signature, dataset=None, metric=held, environment=environment)
    evaluator = Evaluator(made, model("tool_call", rounds), dse.Store(":memory:"))
    return run_sync(lambda: evaluator.rollout("it", seed_plan(made.spec, "tool_call"), dse.Example("1", {"question": "?"})))


def test_sensitive_arguments_are_not_stored(tmp_path: Path) -> None:
    signature, rounds = opens("argument")
    recording = dse.Environment.recorded(tmp_path / "r.jsonl", inner=shelf, mode="record")
    recorded = seen(open_it(signature, recording, rounds))
    recording.close()
    assert "hunter2" not in (tmp_path / "r.jsonl").read_text()
    assert seen(open_it(signature, dse.Environment.recorded(tmp_path / "r.jsonl"), rounds)) == recorded
    other = [[("open_door", {"token": "hunter3-and-more"})]]
    with pytest.raises(CassetteMiss) as caught:
        open_it(signature, dse.Environment.recorded(tmp_path / "r.jsonl"), other)
    assert "hunter" not in str(caught.value)


def test_sensitive_results_are_refused_unless_they_may_be_kept(tmp_path: Path) -> None:
    signature, rounds = opens("result")
    recording = dse.Environment.recorded(tmp_path / "r.jsonl", inner=shelf, mode="record")
    with pytest.raises(CassetteError, match="results of a tool are sensitive"):
        open_it(signature, recording, rounds)
    recording.close()
    recording = dse.Environment.recorded(tmp_path / "r.jsonl", inner=shelf, mode="record", sensitive="keep")
    recorded = seen(open_it(signature, recording, rounds))
    recording.close()
    assert (tmp_path / "r.jsonl").stat().st_mode & 0o077 == 0
    assert seen(open_it(signature, dse.Environment.recorded(tmp_path / "r.jsonl"), rounds)) == recorded


# --- simulating


def test_what_is_not_recorded_may_be_made_up_and_says_so(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", LOOK)
    asked: list[Any] = []

    def made_up(call: Any) -> Any:
        asked.append(call)
        if call.tool == "put":
            return {call.arguments["name"]: call.arguments["number"]}
        if call.tool == "total":
            return str(call.seed % 10)
        raise ToolFailed("nobody knows")

    made_up.end_state = lambda example, calls: {"held": {str(n): 1 for n in range(len(calls))}}  # type: ignore[attr-defined]
    environment = dse.Environment.recorded(path, mode="simulate", simulator=made_up)
    rounds: Rounds = [*LOOK, [("put", {"name": "b", "number": 2})], [("total", {})], [("look", {"name": "b"})]]
    one, two = model("tool_call", rounds), model("tool_call", rounds)
    first = rollout(environment, "tool_call", one)
    assert seen(rollout(environment, "tool_call", two)) == seen(first) and told(one) == told(two)
    assert [c.tool for c in asked[:3]] == ["put", "total", "look"]
    assert [tool for tool, _, _ in asked[2].earlier] == ["look", "put", "total"]
    assert first.score == 1.0 and first.receipt["calls"][-1]["message"] == "nobody knows"
    assert environment.name == "shelf+simulated" and "made-up answers" in environment.note
    other = dse.Environment.recorded(path, mode="simulate", simulator=made_up, simulator_revision="2")
    assert len({environment.revision, other.revision, dse.Environment.recorded(path).revision}) == 3


@pytest.mark.parametrize("answer", [lambda call: 1 / 0, lambda call: {"no": "decimal"}])
def test_a_simulator_that_fails_is_no_score(answer: Any, tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", LOOK)
    environment = dse.Environment.recorded(path, mode="simulate", simulator=answer)
    with pytest.raises(CassetteMiss, match="simulator"):
        rollout(environment, "tool_call", model("tool_call", [[("total", {})]]))


# --- the rest


def test_identities(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", LOOK)
    made = {mode: dse.Environment.recorded(path, inner=shelf, mode=mode) for mode in ("live", "record", "replay")}
    assert {e.name for e in made.values()} == {"shelf"}
    assert len({e.revision for e in made.values()}) == 3
    before = made["record"].revision
    recording_of(path, [[("total", {})]])
    assert dse.Environment.recorded(path, inner=shelf, mode="record").revision == before  # it may go on
    assert dse.Environment.recorded(path).revision != made["replay"].revision
    assert shelf.note is None and "answered from r.jsonl" in made["replay"].note


@pytest.mark.parametrize("mode", ["live", "record"])
def test_writes_need_an_environment(mode: str, tmp_path: Path) -> None:
    environment = dse.Environment.recorded(tmp_path / "r.jsonl", mode=mode)
    with pytest.raises(EnvironmentRequired):
        rollout(environment, "tool_call", model("tool_call", LOOK))
    environment.close()


def test_reads_need_none(tmp_path: Path) -> None:
    class Reads(dse.Signature):
        """Answer."""

        question: str = dse.InputField()
        answer: str = dse.OutputField()
        tools = [look]

    @dse.metric(revision="1")
    def any_answer(example: Any, prediction: Any, ctx: Any) -> float:
        return 1.0

    def go(environment: Any, deps: Any) -> Any:
        made = dse.Task(Reads, dataset=None, metric=any_answer, environment=environment, deps=deps)
        evaluator = Evaluator(made, model("tool_call", LOOK), dse.Store(":memory:"))
        plan = seed_plan(made.spec, "tool_call")
        return seen(run_sync(lambda: evaluator.rollout("it", plan, dse.Example("1", {"question": "?"}))))

    recording = dse.Environment.recorded(tmp_path / "r.jsonl", mode="record")
    recorded = go(recording, Shelf())
    recording.close()
    assert recorded["calls"][0]["outcome"] == "ok"
    assert go(dse.Environment.recorded(tmp_path / "r.jsonl"), None) == recorded


@pytest.mark.parametrize("options", [
    {"mode": "relive"}, {"mode": "simulate"}, {"mode": "replay", "simulator": print}, {"sensitive": "show"},
])  # fmt: skip
def test_options_that_do_not_go_together(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        dse.Environment.recorded(tmp_path / "r.jsonl", **options)


def test_a_compile_in_a_replayed_world(tmp_path: Path) -> None:
    """The same outcomes as in the world itself, and evidence that names the recording."""
    planted = PlantedWorld(clusters=40, writes=0.5)
    plans = {mode: seed_plan(planted.task().spec, mode) for mode in ("direct", "tool_call", "code")}

    def go(environment: Any) -> list[Any]:
        made = planted.task(environment=environment)
        evaluator = Evaluator(made, planted.model(), dse.Store(":memory:"))
        rows = made.load_dataset().split("select")
        return [seen(r) for r in run_sync(lambda: evaluator.evaluate(plans, rows))]

    recording = dse.Environment.recorded(tmp_path / "r.jsonl", inner=warehouse, mode="record")
    recorded = go(recording)
    recording.close()
    assert go(dse.Environment.recorded(tmp_path / "r.jsonl")) == recorded == go(warehouse)


def test_a_replay_goes_to_another_process_and_a_recording_does_not(tmp_path: Path) -> None:
    path = recording_of(tmp_path / "r.jsonl", LOOK)
    replay = dse.Environment.recorded(path)
    rollout(replay, "tool_call", model("tool_call", LOOK))
    there = pickle.loads(pickle.dumps(replay))
    assert there.revision == replay.revision
    assert seen(rollout(there, "code", model("code", LOOK)))["outcome"] == "ok"
    with pytest.raises(UserError, match="one process"):
        pickle.dumps(dse.Environment.recorded(path, mode="record"))


def test_as_dspy_drives_a_recorded_world(tmp_path: Path) -> None:
    pytest.importorskip("dspy")
    shared: dict[str, Any] = {"state": lambda example: "one shelf"}
    path = recording_of(tmp_path / "r.jsonl", LOOK, **shared)
    program = dse.Program(Ask, "tool_call", lm=model("tool_call", LOOK))
    module = program.as_dspy(environment=dse.Environment.recorded(path, **shared))
    assert module(question="?").answer == "done"
