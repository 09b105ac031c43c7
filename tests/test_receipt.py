"""Receipts: every run leaves one JSON document that fits the published schema, however it ends."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import dse
from dse.errors import DseError, InputError, ModelError, ModelUnavailable, ToolFailed, Unserialisable, UserError
from dse.evaluation.evaluator import Evaluator
from dse.runtime import receipt as receipt_module
from dse.runtime.receipt import check_receipt, receipt_schema
from dse.store.cassette import RecordModel
from dse.strategies.base import seed_plan
from dse.testing.scripted import ScriptedModel, call, say
from dse.testing.worlds import PlantedWorld

PATIENCE_S = 30  # only how long a hanging test may hang


@dse.tool(effect="read", cost_usd=0.1)
def double(n: int) -> int:
    """Double a number."""
    if n < 0:
        raise ToolFailed(f"{n} is negative")
    return 2 * n


@dse.tool(effect="write", idempotent=True)
def note(text: str) -> str:
    """Keep a note."""
    if text == "broken":
        raise ZeroDivisionError("the disk is full")
    return text


@dse.tool(effect="write", approval="always", sensitive=("pin", "return"), cost_usd=0.3)
def pay(amount: int, pin: str) -> str:
    """Pay."""
    return f"paid {amount} with {pin}"


@dse.tool(effect="write", approval="always", cost_usd=0.6)
def refund(amount: int) -> str:
    """Pay back."""
    return f"paid back {amount}"


class Ask(dse.Signature):
    """Answer with a number."""

    question: str = dse.InputField()
    secret: str = dse.InputField(sensitive=True, default="")
    number: int = dse.OutputField()
    tools = [double, note, pay, refund]


def native(*calls: tuple[str, Any]) -> Any:
    return call(*calls)


def script(*lines: str) -> Any:
    return say("[[ ## code ## ]]\n" + "\n".join(lines) + "\n\n[[ ## completed ## ]]")


DIRECT = say("[[ ## number ## ]]\n42\n\n[[ ## completed ## ]]")
NATIVE = native(("submit", {"number": 42}))
SCRIPT = script("submit(number=42)")
OK = {"direct": DIRECT, "tool_call": NATIVE, "code": SCRIPT}
USELESS = {"direct": say("what?"), "tool_call": say("what?"), "code": script("submit(number='what?')")}
PAYING = {"tool_call": native(("pay", {"amount": 1, "pin": "4711-0815"})), "code": script("await pay(1, '4711-0815')")}
MODES = tuple(OK)


def program(mode: str, replies: Any, *, limits: dict[str, Any] | None = None, **options: Any) -> dse.Program:
    return dse.Program(Ask, seed_plan(Ask.spec(), mode, limits=dse.Limits(**limits or {})), lm=ScriptedModel(replies), **options)


def by_sync(one: dse.Program) -> Any:
    return one(question="?", secret="tiger-lily").receipt


def by_async(one: dse.Program) -> Any:
    return asyncio.run(one.acall(question="?", secret="tiger-lily")).receipt


def by_start(one: dse.Program) -> Any:
    return one.start(question="?", secret="tiger-lily").result(PATIENCE_S).receipt


def by_stream(one: dse.Program) -> Any:
    *_, last = one.stream(question="?", secret="tiger-lily")
    if last["kind"] == "error":
        raise last["error"]
    return last["prediction"].receipt


FACES = [by_sync, by_async, by_start, by_stream]


def receipt_of(one: dse.Program, face: Callable[[dse.Program], Any] = by_sync) -> dict[str, Any]:
    try:
        receipt = face(one)
    except DseError as error:
        receipt = error.details["receipt"]
    check_receipt(receipt)
    assert "tiger-lily" not in repr(receipt) and "4711-0815" not in repr(receipt)
    return receipt


# --- every way to end -----------------------------------------------------------------------------------

ENDS: list[tuple[str, str, Callable[[str], Any], dict[str, Any]]] = [
    ("ok", "ok", lambda mode: [OK[mode]], {}),
    ("invalid", "failed", lambda mode: [USELESS[mode]] * 9, {}),
    ("limit", "failed", lambda mode: [USELESS[mode]] * 9, {"model_calls": 1}),
    ("retried", "failed", lambda mode: [USELESS[mode]] * 9, {"tokens": 1, "outcomes": {"tokens": "retry"}}),
    ("infrastructure", "infrastructure", lambda mode: [ModelUnavailable("down")], {}),
    ("refused", "refused", lambda mode: [ModelError("bad key")], {}),
]


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("outcome", "replies", "limits"), [e[1:] for e in ENDS], ids=[e[0] for e in ENDS])
def test_receipts_fit_the_schema(
    mode: str, outcome: str, replies: Callable[[str], Any], limits: dict[str, Any], face: Any
) -> None:
    receipt = receipt_of(program(mode, replies(mode), limits=limits), face)
    assert (receipt["outcome"], receipt["mode"], receipt["signature"]) == (outcome, mode, "Ask")
    assert receipt["attempts"] == (2 if "outcomes" in limits else 1)
    assert receipt["inputs"]["secret"] == "[redacted]"


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
@pytest.mark.parametrize("mode", ["tool_call", "code"])
def test_a_suspended_run(mode: str, face: Any) -> None:
    receipt = receipt_of(program(mode, [PAYING[mode]]), face)
    assert receipt["outcome"] == "suspended" and receipt["error"]["code"] == "DSE310"
    assert receipt["calls"][0] | {"arguments_hash": None} == {
        "call_id": 1, "tool": "pay", "effect": "write", "arguments": {"amount": 1, "pin": "[redacted]"}, "arguments_hash": None,
        "result_hash": None, "outcome": "refused", "latency_s": 0.0, "fault": "DSE310",
        "message": "pay needs a decision before it runs"}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_crashed_run(mode: str) -> None:
    def broken(request: Any) -> Any:
        raise ZeroDivisionError("in /srv/model.py")

    store = dse.Store(":memory:")
    with pytest.raises(ZeroDivisionError):
        program(mode, broken, store=store)(question="?")
    receipt, _ = store.run(store.runs()[0]["run_id"])
    check_receipt(receipt)
    assert receipt["outcome"] == "crashed" and receipt["error"]["code"] is None


class Kept(dse.Store):
    """A store in memory that says when a run was kept."""

    def __init__(self) -> None:
        super().__init__(":memory:")
        self.kept = threading.Event()

    def stop_run(self, *args: Any, **kwargs: Any) -> None:
        super().stop_run(*args, **kwargs)
        self.kept.set()


@pytest.mark.parametrize("face", ["async", "start"])
@pytest.mark.parametrize("mode", ["tool_call", "code"])
def test_a_cancelled_run(mode: str, face: str) -> None:
    store, begun = Kept(), threading.Event()

    async def double(n: int) -> int:
        begun.set()
        await asyncio.sleep(PATIENCE_S)
        return n

    reply = native(("double", {"n": 1})) if mode == "tool_call" else script("await double(1)")
    one = program(mode, [reply], store=store, toolbox=Ask.spec().toolbox().bind("double", double))

    async def main() -> None:
        task = asyncio.create_task(one.acall(question="?"))
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    if face == "async":
        asyncio.run(main())
    else:
        handle = one.start(question="?")
        assert begun.wait(PATIENCE_S)
        handle.cancel()
    assert store.kept.wait(PATIENCE_S)  # a handle ends at once, its run a moment later
    receipt, _ = store.run(store.runs()[0]["run_id"])
    check_receipt(receipt)
    assert (receipt["outcome"], receipt["error"]["class"]) == ("cancelled", "CancelledError")
    assert [c["outcome"] for c in receipt["calls"]] == ["cancelled"]


@pytest.mark.parametrize("mode", ["tool_call", "code"])
def test_calls_of_every_kind(mode: str) -> None:
    calls: list[tuple[str, Any]] = [
        ("double", {"n": 1}), ("double", {"n": -1}), ("double", {"n": "x"}), ("nothing", {}), ("note", {"text": "a"}),
        ("note", {"text": "broken"}), ("pay", {"amount": 1, "pin": "4711-0815"}), ("x" * 200, {}),
    ]  # fmt: skip
    tried = [f"try:\n    await tool('{name}', {arguments!r})\nexcept Exception: pass" for name, arguments in calls]
    if mode == "tool_call":
        calls.insert(3, ("double", "{broken"))
        replies = [native(*calls), NATIVE]
    else:
        # Only what the type checker lets through reaches the dispatcher.
        tried = ["a: Any = 'x'", "async def quietly(c):\n    try:\n        return await c\n    except Exception as e:\n        return None"]
        runs = ["double(1)", "double(-1)", "note('a')", "note('broken')", "pay(1, '4711-0815')"]
        replies = [script(*tried[1:], f"r = [await quietly(c) for c in [{', '.join(runs)}]]", "submit(number=42)")]
    receipt = receipt_of(program(mode, replies, approve=lambda request: True))
    found = {(c["tool"][:7], c["outcome"], c.get("fault")) for c in receipt["calls"]}
    wanted = {("double", "ok", None), ("double", "fault", "DSE209"), ("note", "ok", None), ("note", "fault", "DSE209"),
              ("pay", "ok", None)}  # fmt: skip
    if mode == "tool_call":
        wanted |= {("double", "refused", "DSE202"), ("nothing", "refused", "DSE201"), ("xxxxxxx", "refused", "DSE201")}
    assert found == wanted
    assert receipt["effects"].startswith("completed [note#") and "unknown [note#" in receipt["effects"]


def test_costs_that_were_given_back_leave_no_dust() -> None:
    # 0.3 + 0.6 - 0.3 - 0.6 is less than nothing in binary fractions, in this order and in the other.
    denied = native(("pay", {"amount": 1, "pin": "4711-0815"}), ("refund", {"amount": 1}))
    receipt = receipt_of(program("tool_call", [denied, NATIVE], approve=lambda request: False))
    assert [c["fault"] for c in receipt["calls"]] == ["DSE205"] * 2
    assert receipt["usage"]["tool_cost_usd"] == 0.0 and receipt["usage"]["calls_per_tool"] == {"pay": 1, "refund": 1}


def test_a_loaded_artifact_stamps_its_receipts(tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 1.0, "tool_call": 0.25}, clusters=30, writes=0.0)
    result = dse.compile(world.task(modes=["direct", "tool_call"]), lm=world.model(), registry=tmp_path)
    loaded = dse.load(result.artifact, signature=result.records["search"][0] and world.task().signature, lm=world.model())
    receipt = loaded(request=world.rows()[0]["request"]).receipt
    check_receipt(receipt)
    assert (receipt["artifact_id"], receipt["unproven"]) == (result.artifact.artifact_id, False)
    for stage in result.records.values():
        for record in stage:
            check_receipt(record.receipt)


def test_the_stored_receipt_of_a_replayed_rollout(tmp_path: Path) -> None:
    world = PlantedWorld({"code": 1.0}, clusters=5)
    row = world.dataset().split("search")[0]
    path = tmp_path / "one.jsonl"
    plan = seed_plan(world.task().spec, "code")

    async def rollout(model: Any) -> Any:
        return (await Evaluator(world.task(), model).evaluate({"code": plan}, [row]))[0].receipt

    async def main() -> tuple[Any, Any]:
        recording = RecordModel(world.model(), path, source="a script")
        first = await rollout(recording)
        await recording.aclose()
        from dse.models.lm import resolve_model

        return first, await rollout(resolve_model(f"replay:{path}"))

    live, replayed = asyncio.run(main())
    check_receipt(live)
    check_receipt(replayed)
    assert "active_s" in live["usage"] and "active_s" not in replayed["usage"]
    assert replayed["calls"] and not any("latency_s" in one for one in replayed["calls"])


# --- odd text -------------------------------------------------------------------------------------------

HALF = "half a pair \ud800"  # no UTF-8 text can hold it


@pytest.mark.parametrize("error", [ToolFailed, ValueError])
@pytest.mark.parametrize(("mode", "replies"), [("tool_call", [native(("double", {"n": 1})), NATIVE]),
                                               ("code", [script("await double(1)"), SCRIPT])])  # fmt: skip
def test_a_tool_that_fails_with_odd_text(mode: str, replies: Any, error: type[Exception]) -> None:
    def double(n: int) -> int:
        raise error(HALF)

    one = program(mode, replies, toolbox=Ask.spec().toolbox().bind("double", double), store=dse.Store(":memory:"))
    receipt = receipt_of(one)
    assert receipt["outcome"] == "ok" and receipt["calls"][0]["message"].endswith("half a pair \ufffd")


@pytest.mark.parametrize("error", [ModelUnavailable(HALF, value=HALF, remedy=HALF), ValueError(HALF)], ids=["dse", "other"])
def test_a_model_that_fails_with_odd_text(error: Exception) -> None:
    store = dse.Store(":memory:")
    with pytest.raises(type(error)):
        program("direct", [error], store=store)(question="?")
    receipt, _ = store.run(store.runs()[0]["run_id"])
    check_receipt(receipt)
    assert "half a pair \ufffd" in receipt["error"]["what"]


class Odd(dse.Signature):
    """Answer with a number."""

    text: str = dse.InputField(sensitive=True, default="")
    rate: float = dse.InputField(default=0.0)
    number: int = dse.OutputField()


@pytest.mark.parametrize("inputs", [{"text": HALF}, {"rate": float("nan")}, {"rate": float("inf")}], ids=str)
def test_an_input_that_json_cannot_hold_is_refused_before_anything_runs(inputs: dict[str, Any]) -> None:
    model = ScriptedModel([DIRECT])
    with pytest.raises(InputError, match=next(iter(inputs))) as info:
        dse.Program(Odd, "direct", lm=model)(**inputs)
    assert model.requests == [] and "half" not in str(info.value)


# --- the schema -----------------------------------------------------------------------------------------


def objects(schema: Any, path: str = "$") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object with declared fields, outside of conditions."""
    if schema.get("type") == "object" and "properties" in schema:
        yield path, schema
    for name, sub in {**schema.get("properties", {}), **schema.get("$defs", {})}.items():
        if isinstance(sub, dict):
            yield from objects(sub, f"{path}.{name}")


def test_the_schema_is_one_and_describes_every_field() -> None:
    schema = receipt_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    found = dict(objects(schema))
    assert set(found) == {"$", "$.error", "$.call", "$.usage", "$.stage"}
    for path, one in found.items():
        assert one["additionalProperties"] is False and set(one["required"]) <= set(one["properties"]), path
        for name, field in one["properties"].items():
            assert len(field["description"]) > 15, f"{path}.{name}"
    for name, field in found["$.usage"]["properties"].items():  # units
        unit = {"_s": "econds", "_usd": "US dollars", "_tokens": "Tokens"}.get(name[name.rfind("_"):])
        assert unit is None or unit in field["description"], name
    assert receipt_schema() is not receipt_schema()


def test_the_schema_is_part_of_the_package() -> None:
    root = Path(dse.__file__).parent
    patterns = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["dse"]
    stored = Path(receipt_module.__file__).with_name("receipt.schema.json")
    assert any(stored in root.glob(pattern) for pattern in patterns)
    assert stored.read_text() == json.dumps(receipt_schema(), indent=2, ensure_ascii=False) + "\n"


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return receipt_of(program("tool_call", [native(("double", {"n": 1}), ("nothing", {})), NATIVE]))


def test_every_field_is_needed_and_no_other_is_taken(good: dict[str, Any]) -> None:
    for path in ((), ("usage",), ("calls", 0), ("calls", 1)):
        names = list(at(good, path))
        # Times of this machine are left out of what is stored of a replay.
        for name in set(names) - {"latency_s", "active_s", "interpreter_s"}:
            broken = copy.deepcopy(good)
            del at(broken, path)[name]
            refused(broken)
        broken = copy.deepcopy(good)
        at(broken, path)["more"] = 1
        refused(broken)


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def refused(receipt: dict[str, Any]) -> str:
    with pytest.raises(UserError, match="does not fit its schema") as info:
        check_receipt(receipt)
    return str(info.value.details["path"])


ERROR = {"code": "DSE301", "class": "LimitExceeded", "what": "It failed", "value": None, "remedy": ""}


@pytest.mark.parametrize(("path", "value"), [
    (("outcome",), "fine"), (("outcome",), "failed"), (("outputs",), None), (("error",), ERROR), (("limit",), "patience"),
    (("limit",), "tokens"), (("program_id",), "sha256:abc"), (("run_id",), ""), (("clock",), "yesterday"), (("attempts",), 0),
    (("effects",), "completed"), (("inputs",), []), (("seed",), 1.5), (("model",), 3),
    (("usage", "cost_source"), "guessed"), (("usage", "cost_usd"), -1.0), (("usage", "input_tokens"), -1),
    (("usage", "cost_source"), "exact"), (("usage", "calls_per_tool"), {"double": "1"}), (("usage", "active_s"), "1"),
    (("calls", 0, "outcome"), "refused"), (("calls", 0, "result_hash"), None), (("calls", 0, "effect"), "destroy"),
    (("calls", 1, "outcome"), "ok"), (("calls", 1, "fault"), "E1"), (("calls", 1, "idempotency_key"), "0" * 32),
    (("calls", 1, "call_id"), 0),
], ids=str)  # fmt: skip
def test_a_changed_receipt_is_refused(good: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    broken = copy.deepcopy(good)
    assert at(broken, path[:-1]).get(path[-1]) != value
    at(broken, path[:-1])[path[-1]] = value
    assert refused(broken).startswith(f"$.{path[0]}" if path[0] != "outcome" else "$")


def test_a_failed_receipt_needs_its_error() -> None:
    receipt = receipt_of(program("direct", [ModelUnavailable("down")]))
    refused(receipt | {"error": None})
    refused(receipt | {"outputs": {"number": 1}})
    refused(receipt | {"error": receipt["error"] | {"code": "E-1"}})
    refused(receipt | {"error": receipt["error"] | {"trace": "..."}})


@pytest.mark.parametrize("value", [float("nan"), object(), "\ud800", {1: 2}])
def test_what_is_no_json_is_refused(good: dict[str, Any], value: Any) -> None:
    with pytest.raises(Unserialisable):
        check_receipt(good | {"inputs": {"question": value}})
