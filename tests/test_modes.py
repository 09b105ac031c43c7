"""Modes ``direct`` and ``tool_call`` (native and as text) with scripted models."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import dse
from dse.errors import LimitExceeded, ModelUnavailable, NoSubmission, OutputInvalid
from dse.models.lm import Completion, ToolCallPart
from dse.plan import Prompt
from dse.strategies.base import seed_plan, strategy
from dse.testing.scripted import ScriptedModel, call, say


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Item(BaseModel):
    name: str
    amount: Decimal


@dataclasses.dataclass
class Place:
    city: str
    floor: int = 0


class Describe(dse.Signature):
    """Describe the order in plain terms."""

    order: str = dse.InputField(desc="the order")
    due: dt.date = dse.InputField()
    items: list[Item] = dse.OutputField()
    place: Place = dse.OutputField()
    color: Color = dse.OutputField()
    kind: Literal["new", "old"] = dse.OutputField()
    when: dt.datetime = dse.OutputField()
    note: str | None = dse.OutputField()


INPUTS = {"order": "two pens", "due": dt.date(2026, 3, 1)}
OUTPUTS: dict[str, Any] = {
    "items": [{"name": "pen", "amount": "2.50"}], "place": {"city": "Ulm", "floor": 3}, "color": "red", "kind": "new",
    "when": "2026-03-01T12:00:00Z", "note": None,
}  # fmt: skip


def fields(values: dict[str, Any]) -> str:
    """A reply in the chat format."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    parts = [f"[[ ## {name} ## ]]\n{text}" for name, text in texts.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def check_typed(prediction: Any) -> None:
    assert prediction.items == [Item(name="pen", amount=Decimal("2.50"))]
    assert prediction.place == Place("Ulm", 3)
    assert prediction.color is Color.RED and prediction.kind == "new" and prediction.note is None
    assert prediction.when == dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    assert prediction.outputs == OUTPUTS


# --- direct -------------------------------------------------------------------------------------------


def test_direct_gives_typed_outputs_and_sends_no_tools() -> None:
    model = ScriptedModel([fields(OUTPUTS)])
    check_typed(dse.Program(Describe, "direct", lm=model)(**INPUTS))
    request = model.requests[0]
    assert request["tools"] == [] and "tool_choice" not in request
    system, user = request["messages"]
    assert "Describe the order in plain terms." in system["content"]
    assert "two pens" in user["content"] and "2026-03-01" in user["content"]


class Number(dse.Signature):
    """Give the number."""

    question: str = dse.InputField()
    number: float = dse.OutputField()


BAD_REPLIES = {
    "nothing": "", "no markers": "the answer is 4", "wrong type": fields({"number": "four"}),
    "not a number": fields({"number": "NaN"}), "other field": fields({"answer": "4"}),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_REPLIES.values(), ids=BAD_REPLIES)
def test_direct_hands_an_invalid_reply_back_with_the_problem(bad: str) -> None:
    model = ScriptedModel([bad, fields({"number": 4})])
    prediction = dse.Program(Number, "direct", lm=model)(question="?")
    assert prediction.number == 4
    first, reply, complaint = model.requests[1]["messages"][1:]
    assert first == model.requests[0]["messages"][1]
    assert reply == {"role": "assistant", "content": bad}
    assert "cannot be used: " in complaint["content"] and complaint["role"] == "user"
    assert prediction.receipt["usage"]["model_calls"] == 2


def test_direct_tells_what_was_wrong() -> None:
    model = ScriptedModel([fields({"answer": "4"}), fields({"number": "four"}), fields({"number": 4})])
    dse.Program(Number, "direct", lm=model)(question="?")
    complaints = [request["messages"][-1]["content"] for request in model.requests[1:]]
    assert "number" in complaints[0] and "lacks" in complaints[0]
    assert "four" in complaints[1]


@pytest.mark.parametrize("repairs", [0, 1, 3])
def test_direct_repairs_are_bounded(repairs: int) -> None:
    model = ScriptedModel(lambda request: "no")
    plan = seed_plan(Number.spec(), "direct", limits=dse.Limits(repairs=repairs))
    with pytest.raises(OutputInvalid) as info:
        dse.Program(Number, plan, lm=model)(question="?")
    assert len(model.requests) == repairs + 1
    assert info.value.details["receipt"]["outcome"] == "failed"


def test_direct_takes_a_completion_without_text_as_an_invalid_reply() -> None:
    model = ScriptedModel([Completion(text=None), fields({"number": 1})])
    assert dse.Program(Number, "direct", lm=model)(question="?").number == 1


class Even:
    """A number whose validation complains in its own way, or crashes."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls.check, core_schema.int_schema())

    @staticmethod
    def check(value: int) -> int:
        if value < 0:
            raise RuntimeError("/srv/app/even.py cannot handle this")
        if value % 2:
            raise ValueError("must be even")
        return value


class EvenNumber(dse.Signature):
    """Give an even number."""

    question: str = dse.InputField()
    number: Even = dse.OutputField()


def test_direct_repairs_what_only_the_signatures_own_validators_refuse() -> None:
    model = ScriptedModel([fields({"number": 3}), fields({"number": -2}), fields({"number": 4})])
    prediction = dse.Program(EvenNumber, "direct", lm=model)(question="?")
    assert prediction.outputs == {"number": 4}
    assert "must be even" in model.requests[1]["messages"][-1]["content"]
    assert "/srv" not in model.requests[2]["messages"][-1]["content"]


def test_direct_demos_are_a_conversation() -> None:
    demos = tuple({**json_inputs(order), **OUTPUTS, "kind": kind} for order, kind in (("one", "old"), ("two", "new")))
    plan = dse.Plan(mode="direct", prompts={"answer": dse.Prompt(instructions="Be brief.", demos=demos)})
    model = ScriptedModel([fields(OUTPUTS)])
    dse.Program(Describe, plan, lm=model)(**INPUTS)
    messages = model.requests[0]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "Be brief." in messages[0]["content"] and "plain terms" not in messages[0]["content"]
    assert "one" in messages[1]["content"] and "old" in messages[2]["content"]
    assert "two pens" in messages[5]["content"]


def json_inputs(order: str) -> dict[str, Any]:
    return {"order": order, "due": "2026-01-01"}


def test_a_demo_from_a_direct_run_can_be_used_again() -> None:
    program = dse.Program(Describe, "direct", lm=ScriptedModel([fields(OUTPUTS)]))
    run = program.new_run(INPUTS)
    made = asyncio.run(program.execute(run))
    demo = strategy("direct").demo(run.journal.entries, program.spec, run.wire_inputs, made.outputs)
    assert demo is not None
    plan = dse.Plan(mode="direct", prompts={"answer": dse.Prompt(instructions="x", demos=(demo["answer"],))})
    model = ScriptedModel([fields(OUTPUTS)])
    check_typed(dse.Program(Describe, plan, lm=model)(**INPUTS))
    shown = model.requests[0]["messages"][2]["content"]
    assert "Ulm" in shown and "2026-03-01" in shown


# --- tool_call ----------------------------------------------------------------------------------------


@dse.tool(effect="read")
async def get_price(name: str) -> Decimal:
    """Price of one thing.

    Args:
        name: the thing
    """
    return {"pen": Decimal("2.50"), "ink": Decimal("9.00")}[name]


@dse.tool(effect="read")
def find_things(text: str = "") -> list[str]:
    """Names of things."""
    return [name for name in ("pen", "ink") if text in name]


@dse.tool(effect="write")
def order_thing(name: str, count: int) -> str:
    """Order something."""
    return f"ordered {count} {name}"


class Shop(dse.Signature):
    """Answer questions about the shop."""

    question: str = dse.InputField()
    total: Decimal = dse.OutputField(desc="in euros")
    names: list[str] = dse.OutputField()
    tools = [get_price, find_things, order_thing]


ANSWER = {"total": "11.50", "names": ["pen", "ink"]}
SUBMIT = ("submit", ANSWER)


def as_text(*calls: tuple[str, dict[str, Any]]) -> str:
    return fields({"tool_calls": [{"name": name, "arguments": arguments} for name, arguments in calls]})


class Asked:
    """A tool_call program over scripted rounds, each a list of calls, in native or in text form."""

    def __init__(self, native: bool, *rounds: Any, **options: Any) -> None:
        replies = [r if not isinstance(r, list) else (call(*r) if native else say(as_text(*r))) for r in rounds]
        self.native = native
        self.model = ScriptedModel(replies, supports_tools=native)
        allow, limits = options.pop("allow", None), dse.Limits(**options.pop("limits", {}))
        plan = options.pop("plan", None) or seed_plan(Shop.spec(), "tool_call", allow, limits)
        self.program = dse.Program(Shop, plan, lm=self.model, **options)
        self.run = self.program.new_run({"question": "how much is all?"})

    def __call__(self) -> Any:
        return asyncio.run(asyncio.wait_for(self.program.execute(self.run), 30))

    def results(self, request: int) -> list[str]:
        """What the model was told about its calls, as of one request."""
        messages = self.model.requests[request]["messages"]
        if self.native:
            return [m["content"] for m in messages if m["role"] == "tool"]
        transcript = messages[-1]["content"].split("[[ ## transcript ## ]]\n")[1].split("\n\n")[0]
        return [line.split(" -> ", 1)[-1] for line in transcript.splitlines()]

    @property
    def kinds(self) -> list[str]:
        return [entry["kind"] for entry in self.run.journal.entries]


both = pytest.mark.parametrize("native", [True, False], ids=["native", "text"])


@both
def test_rounds_of_calls_lead_to_typed_outputs(native: bool) -> None:
    asked = Asked(native, [("find_things", {})], [("get_price", {"name": "pen"}), ("get_price", {"name": "ink"})], [SUBMIT])
    prediction = asked()
    assert prediction.total == Decimal("11.50") and prediction.names == ["pen", "ink"]
    assert prediction.outputs == ANSWER
    assert asked.results(2) == ['["pen", "ink"]', "2.50", "9.00"]
    assert prediction.receipt["usage"]["calls_per_tool"] == {"find_things": 1, "get_price": 2}
    assert [c["tool"] for c in prediction.receipt["calls"]] == ["find_things", "get_price", "get_price"]


def test_native_requests_carry_schemas_and_a_conversation() -> None:
    asked = Asked(True, [("find_things", {"text": "p"})], [SUBMIT])
    asked()
    first, second = asked.model.requests
    assert [tool["name"] for tool in first["tools"]] == ["find_things", "get_price", "order_thing", "submit"]
    by_name = {tool["name"]: tool for tool in first["tools"]}
    assert by_name["get_price"]["parameters"] == get_price.contract.parameters
    assert by_name["get_price"]["description"].startswith("Price of one thing.")
    assert by_name["submit"]["parameters"]["required"] == ["total", "names"]
    assert first["tools"] == second["tools"] and first["tool_choice"] == "auto"
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "tool"]
    assistant, tool = second["messages"][2:]
    assert assistant["tool_calls"] == [{"id": tool["tool_call_id"], "name": "find_things", "arguments": {"text": "p"}}]


def test_text_mode_sends_no_native_tools_but_describes_them() -> None:
    asked = Asked(False, [("find_things", {})], [SUBMIT])
    asked()
    for request in asked.model.requests:
        assert request["tools"] == []
    described = asked.model.requests[0]["messages"][-1]["content"]
    for word in ("get_price", "find_things", "order_thing", "submit", "Price of one thing.", "in euros"):
        assert word in described


def test_the_text_fallback_follows_from_the_model() -> None:
    native, text = Asked(True, [SUBMIT]), Asked(False, [SUBMIT])
    assert native().outputs == text().outputs
    assert native.program.plan == text.program.plan  # the same plan: only the model differs


@both
def test_prompts_hold_instructions_and_never_tools(native: bool) -> None:
    asked = Asked(native, [SUBMIT])
    asked()
    prompt = asked.program.plan.prompts["act"]
    system = asked.model.requests[0]["messages"][0]
    assert system["role"] == "system" and "Answer questions about the shop." in system["content"]
    for name in ("get_price", "find_things", "order_thing", "Price of one thing"):
        assert name not in prompt.instructions and name not in system["content"]


@both
def test_only_allowed_tools_are_shown_and_callable(native: bool) -> None:
    asked = Asked(native, [("order_thing", {"name": "pen", "count": 1})], [SUBMIT], allow=["find_things"])
    prediction = asked()
    request = asked.model.requests[0]
    shown = json.dumps(request["tools"]) if native else request["messages"][-1]["content"]
    assert "find_things" in shown and "order_thing" not in shown
    assert "not defined" in asked.results(1)[0] and "ToolNotAllowed" in asked.results(1)[0]
    assert prediction.receipt["effects"] == "none" and prediction.receipt["calls"][0]["outcome"] == "refused"


@both
@pytest.mark.parametrize(
    ("name", "arguments", "cls"),
    [
        ("nope", {}, "ToolNotAllowed"), ("get_price", {}, "ToolArgumentError"),
        ("get_price", {"name": 3}, "ToolArgumentError"), ("get_price", {"name": "cup"}, "ToolFailed"),
    ],
)  # fmt: skip
def test_faults_come_back_as_typed_records(native: bool, name: str, arguments: dict[str, Any], cls: str) -> None:
    asked = Asked(native, [(name, arguments)], [SUBMIT])
    asked()
    record = json.loads(asked.results(1)[0])
    assert record["error"]["class"] == cls and record["error"]["message"]


@both
def test_an_invalid_submission_is_repaired(native: bool) -> None:
    asked = Asked(native, [("submit", {"total": "much"})], [("submit", {**ANSWER, "extra": 1})], [SUBMIT])
    assert asked().outputs == ANSWER
    assert "total" in asked.results(1)[0] and "names: Field required" in asked.results(1)[0]
    assert "extra" in asked.results(2)[1]
    assert asked.kinds.count("repair") == 2


@both
@pytest.mark.parametrize("repairs", [0, 2])
def test_invalid_submissions_are_bounded(native: bool, repairs: int) -> None:
    asked = Asked(native, *[[("submit", {})]] * 10, limits={"repairs": repairs})
    with pytest.raises(OutputInvalid) as info:
        asked()
    assert len(asked.model.requests) == repairs + 1
    assert "Field required" in str(info.value)


def test_arguments_that_are_no_json_are_told_and_counted() -> None:
    asked = Asked(True, [("get_price", '{"name": ')], [("submit", "{")], [SUBMIT])
    prediction = asked()
    assert "not a JSON object" in asked.results(1)[0] and "not a JSON object" in asked.results(2)[1]
    sent = asked.model.requests[1]["messages"][2]["tool_calls"]
    assert sent == [{"id": sent[0]["id"], "name": "get_price", "raw": '{"name": '}]  # the model sees what it wrote
    receipt = prediction.receipt
    assert [(c["tool"], c["outcome"], c["fault"]) for c in receipt["calls"]] == [("get_price", "refused", "DSE202")]
    assert receipt["usage"]["tool_calls"] == 1


@pytest.mark.parametrize("reply", ["I think it is 11.50", "", fields({"tool_calls": []})])
@both
def test_a_reply_without_a_call_is_nudged_and_then_fails(native: bool, reply: str) -> None:
    asked = Asked(native, *[reply] * 10, limits={"repairs": 1})
    unreadable = not native and "tool_calls" not in reply
    with pytest.raises(NoSubmission):
        asked()
    assert len(asked.model.requests) == 2
    last = asked.model.requests[1]["messages"][-1]["content"]
    assert ("could not be used" if unreadable else "submit") in last
    answered = Asked(native, reply, [SUBMIT], limits={"repairs": 1})
    assert answered().outputs == ANSWER


@both
def test_the_last_problem_says_how_a_run_failed(native: bool) -> None:
    silent = fields({"tool_calls": []})
    with pytest.raises(NoSubmission):
        Asked(native, [("submit", {})], silent, limits={"repairs": 1})()
    with pytest.raises(OutputInvalid):
        Asked(native, silent, [("submit", {})], limits={"repairs": 1})()


@both
def test_rounds_without_end_hit_the_limit_of_model_calls(native: bool) -> None:
    asked = Asked(native, *[[("find_things", {})]] * 10, limits={"model_calls": 3})
    with pytest.raises(LimitExceeded) as info:
        asked()
    assert info.value.details["limit"] == "model_calls" and len(asked.model.requests) == 3


def meeting(parties: int) -> Callable[..., Any]:
    barrier = asyncio.Barrier(parties)

    async def find_things(text: str = "") -> list[str]:
        await barrier.wait()  # passes only when all calls of the round are under way
        return [text]

    return find_things


@both
def test_calls_of_one_round_run_concurrently_and_answer_in_call_order(native: bool) -> None:
    calls = [("find_things", {"text": str(n)}) for n in range(12)]

    async def main() -> None:
        box = Shop.spec().toolbox().bind("find_things", meeting(12))
        asked = Asked(native, calls, [SUBMIT], toolbox=box)
        await asyncio.wait_for(asked.program.execute(asked.run), 30)
        assert asked.results(1) == [json.dumps([str(n)]) for n in range(12)]

    asyncio.run(main())


@both
def test_submit_together_with_other_calls(native: bool) -> None:
    asked = Asked(native, [SUBMIT, ("order_thing", {"name": "pen", "count": 2})])
    prediction = asked()
    assert prediction.outputs == ANSWER
    assert prediction.receipt["effects"] == "completed [order_thing#1]"  # what was asked for is done before it ends


@both
def test_an_invalid_submit_beside_other_calls_still_gives_their_results(native: bool) -> None:
    asked = Asked(native, [("submit", {}), ("find_things", {})], [SUBMIT])
    asked()
    first, second = asked.results(1)
    assert "Field required" in first and json.loads(second) == ["pen", "ink"]


@both
def test_of_two_submits_the_first_valid_one_counts(native: bool) -> None:
    other = ("submit", {"total": "1", "names": []})
    assert Asked(native, [SUBMIT, other])().outputs == ANSWER
    asked = Asked(native, [("submit", {}), other, SUBMIT])
    assert asked().outputs == {"total": "1", "names": []}
    assert "repair" not in asked.kinds


@both
def test_two_invalid_submits_of_one_round_are_one_repair(native: bool) -> None:
    asked = Asked(native, [("submit", {}), ("submit", {"names": 3})], [SUBMIT], limits={"repairs": 1})
    assert asked().outputs == ANSWER
    assert asked.kinds.count("repair") == 1
    assert len(asked.results(1)) == 2


def parts(*idents: str) -> Completion:
    made = tuple(ToolCallPart(ident, "find_things", {"text": str(n)}) for n, ident in enumerate(idents))
    return Completion(text=None, tool_calls=made, finish_reason="tool_call")


class Verbatim(ScriptedModel):
    """Does not fill in ids that the script left empty."""

    async def complete(self, request: Any, **options: Any) -> Any:
        await super().complete(request, **options)
        return self.script[len(self.requests) - 1]

    def __init__(self, script: list[Completion]) -> None:
        super().__init__(script)
        self.script = script


def test_duplicate_and_missing_ids_are_made_unique() -> None:
    submit = Completion(text=None, tool_calls=(ToolCallPart("a", *SUBMIT),))
    model = Verbatim([parts("a", "a", "", "", "call_1"), parts("a", "b"), submit])
    program = dse.Program(Shop, "tool_call", lm=model)
    program(question="?")
    messages = model.requests[2]["messages"]
    asked = [c["id"] for m in messages for c in m.get("tool_calls", ())]
    answered = [m["tool_call_id"] for m in messages if m["role"] == "tool"]
    assert asked == answered and len(set(asked)) == 7
    assert asked[0] == "a" and "b" in asked  # good ids stay
    by_id = {m["tool_call_id"]: m["content"] for m in messages if m["role"] == "tool"}
    first_round = [c for c in messages[2]["tool_calls"]]
    matching = [[name for name in ("pen", "ink") if c["arguments"]["text"] in name] for c in first_round]
    assert [json.loads(by_id[c["id"]]) for c in first_round] == matching


def test_a_call_without_a_name_is_refused_and_the_run_goes_on() -> None:
    nameless = Completion(text=None, tool_calls=(ToolCallPart("x", "", {}),))
    model = Verbatim([nameless, Completion(text=None, tool_calls=(ToolCallPart("y", *SUBMIT),))])
    assert dse.Program(Shop, "tool_call", lm=model)(question="?").outputs == ANSWER


def test_text_beside_calls_is_kept_in_the_conversation() -> None:
    asked = Asked(True, call(("find_things", {}), text="Let me look."), [SUBMIT])
    asked()
    assert asked.model.requests[1]["messages"][2]["content"] == "Let me look."


def test_a_reply_that_json_cannot_hold_is_the_models_failure_to_answer() -> None:
    asked = Asked(True, Completion(text=None, tool_calls=(ToolCallPart("x", "find_things", {"text": float("nan")}),)))
    asked.model._player.script = [Completion(text="\ud800")]  # type: ignore[assignment]
    with pytest.raises(ModelUnavailable):
        asked()


@pytest.mark.parametrize("bad", [
    '{"name": "find_things", "arguments": {"text": "caf\\ud83d"}}',
    '{"name": "find_things", "arguments": {"text\\ud83d": "x"}}',
    '{"name": "find\\ud83d", "arguments": {}}',
    '{"name": "submit", "arguments": {"total": "\\ud83d"}}',
])  # fmt: skip
def test_half_a_character_in_a_call_as_text_is_handed_back(bad: str, tmp_path: Path) -> None:
    asked = Asked(False, say(f"[[ ## tool_calls ## ]]\n[{bad}]\n\n[[ ## completed ## ]]"), [SUBMIT], store=tmp_path / "runs.db")
    assert asked().outputs == ANSWER
    assert asked.kinds.count("repair") == 1 and "round" not in asked.kinds
    assert "half a surrogate pair" in asked.model.requests[1]["messages"][-1]["content"]
    assert asked.program.replay(asked.run.run_id).outputs == ANSWER


# --- demonstrations -----------------------------------------------------------------------------------


def recorded_demo(native: bool) -> dict[str, Any]:
    asked = Asked(native, [("find_things", {})], [("get_price", {"name": "pen"}), ("get_price", {"name": "ink"})], [SUBMIT])
    made = asked()
    demo = strategy("tool_call").demo(asked.run.journal.entries, Shop.spec(), asked.run.wire_inputs, made.outputs)
    assert demo is not None
    return demo["act"]


def with_demo(demo: dict[str, Any]) -> dse.Plan:
    prompt = dse.Prompt(instructions="Answer questions about the shop.", demos=(demo,))
    return dse.Plan(mode="tool_call", prompts={"act": prompt}, allow=Shop.spec().tool_names)


def test_a_native_demo_is_the_conversation_it_was() -> None:
    asked = Asked(True, [SUBMIT], plan=with_demo(recorded_demo(True)))
    asked()
    messages = asked.model.requests[0]["messages"]
    roles = ["system", "user", "assistant", "tool", "assistant", "tool", "tool", "assistant", "tool", "user"]
    assert [m["role"] for m in messages] == roles
    names = [c["name"] for m in messages for c in m.get("tool_calls", ())]
    assert names == ["find_things", "get_price", "get_price", "submit"]
    assert [m["content"] for m in messages if m["role"] == "tool"] == ['["pen", "ink"]', "2.50", "9.00", "accepted"]
    asked_ids = [c["id"] for m in messages for c in m.get("tool_calls", ())]
    assert asked_ids == [m["tool_call_id"] for m in messages if m["role"] == "tool"] and len(set(asked_ids)) == 4
    assert messages[1]["content"] == messages[-1]["content"]  # the demo's question is shown exactly as the real one


def test_a_text_demo_shows_its_calls_and_its_answer() -> None:
    asked = Asked(False, [SUBMIT], plan=with_demo(recorded_demo(False)))
    asked()
    _, question, answer, _ = asked.model.requests[0]["messages"]
    assert 'get_price({"name": "ink"}) -> 9.00' in question["content"]
    assert "submit" in answer["content"] and "11.50" in answer["content"]


@both
def test_a_demo_made_by_dspy_can_be_used(native: bool) -> None:
    demo = {"question": "how many pens?", "tools": "[]", "transcript": "(nothing yet)", "tool_calls": [
        {"name": "submit", "arguments": {"total": "0", "names": ["pen"]}}], "augmented": True}  # fmt: skip
    asked = Asked(native, [SUBMIT], plan=with_demo(demo))
    assert asked().outputs == ANSWER
    messages = asked.model.requests[0]["messages"]
    assert "how many pens?" in messages[1]["content"]
    said = messages[2]["tool_calls"][0]["arguments"]["names"] if native else messages[2]["content"]
    assert "pen" in said and "submit" in json.dumps(messages[2])


@both
@pytest.mark.parametrize("mistake", [("nope", {}), ("submit", {})])
def test_a_path_with_mistakes_is_no_demo(native: bool, mistake: Any) -> None:
    asked = Asked(native, [mistake], [SUBMIT])
    made = asked()
    assert strategy("tool_call").demo(asked.run.journal.entries, Shop.spec(), {}, made.outputs) is None


_TEXTS = st.text() | st.sampled_from(["  x \n", "\0", "\0001\0", "[[ ## question ## ]]", "{question}", "\\1", ""])


@given(st.dictionaries(st.sampled_from(["question", "api", "transcript", "other"]), _TEXTS | st.integers() | st.none()))
@settings(max_examples=200, deadline=None)
def test_requests_are_what_dspys_adapter_writes(inputs: dict[str, Any]) -> None:
    import dspy

    from dse.strategies.render import Predictor, inputs_message

    signature = dspy.Signature("question, api, transcript -> code, total: float")
    write = dspy.ChatAdapter().format_user_message_content
    found = Predictor("p", signature, Prompt(instructions="do it")).messages(inputs)[-1]
    assert found == {"role": "user", "content": write(signature, dict(inputs), main_request=True)}
    assert inputs_message(signature, inputs) == {"role": "user", "content": write(signature, dict(inputs))}
