"""The same values mean the same in tool calls and in scripts."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

import dse
from dse.contracts.stubs import stubs_for
from dse.errors import OutputInvalid, SignatureError, UserError
from dse.testing.scripted import ScriptedModel, call, say


@dse.tool(effect="pure")
async def save(text: str) -> str:
    """Save a text."""
    return text


class Note(dse.Signature):
    """Save a note."""

    question: str = dse.InputField()
    saved: str = dse.OutputField()
    tools = [save]


STRICT = {"check_errors": 0, "runtime_errors": 0, "repairs": 0}


def scripted(signature: Any, code: str) -> dse.Program:
    """A program that gets one try with `code`."""
    model = ScriptedModel(lambda request: say(f"[[ ## code ## ]]\n{code}"))
    return dse.Program(signature, "code", lm=model).narrowed(limits=STRICT)


@pytest.mark.parametrize("text", [
    "<module>core</module>", "<generator>WordPress 6</generator>", "<class>A</class>", "<function keys> broken",
    "<function keys>", "<Missing object>", "<re.Match object; none>", "dict_keys are fine",
])  # fmt: skip
def test_any_ordinary_text_is_data(text: str) -> None:
    prediction = scripted(Note, f"submit(saved=await save({text!r}))")(question="?")
    assert prediction.saved == text
    model = ScriptedModel([call(("save", {"text": text})), call(("submit", {"saved": text}))])
    prediction = dse.Program(Note, "tool_call", lm=model).narrowed(limits=STRICT)(question="?")
    assert prediction.saved == text and prediction.receipt["calls"][0]["outcome"] == "ok"


class Item(BaseModel):
    name: str
    price: Decimal = Decimal(1)
    parts: list[Item] = []


class Order(BaseModel):
    id: int
    note: str = ""
    items: list[Item] = []


@dse.tool(effect="read")
async def get_order(id: int) -> Order:
    """One order."""
    return Order(id=id, items=[Item(name="pen", parts=[Item(name="cap")])])


@dse.tool(effect="read")
async def get_orders() -> dict[str, list[Order]]:
    """Orders by place."""
    return {"Ulm": [Order(id=1), Order(id=2, note="x")]}


@dse.tool(effect="pure")
async def value_of(order: Order, others: list[Order] = [], places: dict[str, list[Order]] | None = None) -> float:  # noqa: B006
    """What orders are worth."""
    return float(order.id + len(others) + len(places or {}))


class Worth(dse.Signature):
    """What is it worth?"""

    given: Order = dse.InputField()
    total: float = dse.OutputField()
    last: Order = dse.OutputField()
    seen: list[Order] = dse.OutputField()
    tools = [get_order, get_orders, value_of]


GIVEN = {"id": 5, "items": [{"name": "ink"}]}


@pytest.mark.parametrize(("code", "total"), [
    ("o = await get_order(1)\nsubmit(total=await value_of(o), last=o, seen=[o])", 1.0),
    ("os = await get_orders()\nsubmit(total=await value_of(os['Ulm'][1], os['Ulm'], os), last=os['Ulm'][0], seen=os['Ulm'])", 5.0),
    ("submit(total=await value_of(given), last=given, seen=[given])", 5.0),
    ("submit(total=await value_of({'id': 2}), last={'id': 2}, seen=[{'id': 3, 'note': 'n'}])", 2.0),
    ("given['note'] = 'mine'\no = await get_order(1)\no['note'] = 'mine'\no['items'].append({'name': 'a', 'price': Decimal(2), "
     "'parts': []})\nsubmit(total=await value_of(o, [o, o]), last=o, seen=[])", 3.0),
    ("one = {'id': 7, 'items': [{'name': 'a', 'price': 2.5}]}\nsubmit(total=await value_of({'id': 7, 'items': [{'name': 'a'}]}), "
     "last=await get_order(2), seen=[])", 7.0),
])  # fmt: skip
def test_what_a_tool_returned_can_be_given_on(code: str, total: float) -> None:
    prediction = scripted(Worth, code)(given=GIVEN)
    assert prediction.total == total


@pytest.mark.parametrize(("code", "said"), [
    ("await value_of(5)", "Expected `Order`, found `Literal[5]`"),
    ("await value_of('abc')", "Expected `Order`, found `Literal[\"abc\"]`"),
    ("await value_of({'id': 1}, 'abc')", "[Order]`, found `Literal[\"abc\"]`"),
    ("await value_of({'id': 1}, [1])", "[Order]`, found `list[int]`"),
    ("await value_of({'id': 'x'})", "Expected `Order`"),
    ("await value_of({})", "Missing required key 'id'"),
    ("await value_of({'id': 1, 'items': [{'price': 1}]})", "Expected `Order`"),
    ("await value_of({'id': 1, 'nothing': 1})", "Expected `Order`"),
    ("await value_of((await get_order(1))['items'][0])", "Expected `Order`, found `Item"),
])  # fmt: skip
def test_what_does_not_fit_is_still_found_before_it_runs(code: str, said: str) -> None:
    with pytest.raises(OutputInvalid) as info:
        scripted(Worth, f"{code}\nsubmit(total=1.0, last=given, seen=[])")(given=GIVEN)
    assert said in str(info.value) and info.value.details["receipt"]["calls"] == []


def test_the_stubs_that_a_model_reads_are_plain() -> None:
    spec = Worth.spec()
    stubs = stubs_for([tool.contract for tool in spec.tools], outputs=spec.output_schema)
    assert "others: list[Order] = " in stubs and "ReadOnly" not in stubs and "_In" not in stubs


@pytest.mark.parametrize("name", ["datetime", "Decimal", "asyncio", "submit"])
def test_what_every_script_has_is_no_name_for_anything_else(name: str) -> None:
    fields = {"__doc__": "Do it.", "__annotations__": {name: str, "answer": str}, name: dse.InputField(), "answer": dse.OutputField()}
    with pytest.raises(SignatureError, match="reserved"):
        type("Ask", (dse.Signature,), fields)
    with pytest.raises(UserError, match="reserved"):  # also as a tool

        @dse.tool(effect="pure", name=name)
        def work(text: str) -> str:
            """Work."""
            return text

        class Ask(dse.Signature):
            """Do it."""

            question: str = dse.InputField()
            answer: str = dse.OutputField()
            tools = [work]


@pytest.mark.parametrize(("kind", "value"), [
    (dt.datetime | str, "20240102"), (dt.datetime | str, "2024-01-02"), (dt.datetime | str, "2024-01-02T03:04:05"),
    (str | dt.time, "0304"), (dt.date | str, "20240102"), (dt.timedelta | str, "P1W"), (float | int, 3), (int | float, 2.0),
    (float | int | None, 7), (dt.datetime | str, "soon"), (bool | float | int, True),
    (dt.datetime | None, dt.datetime(2024, 1, 2, tzinfo=dt.UTC)), (float, 3.0),
])  # fmt: skip
def test_a_value_goes_through_a_script_unchanged(kind: Any, value: Any) -> None:
    async def give() -> Any:
        """Give it."""
        return value

    async def take(it: Any) -> str:
        """Take it back."""
        return f"{type(it).__name__} {it}"

    give.__annotations__["return"] = take.__annotations__["it"] = kind

    class Round(dse.Signature):
        """Round trip."""

        question: str = dse.InputField()
        answer: str = dse.OutputField()
        tools = [dse.tool(give, effect="pure"), dse.tool(take, effect="pure")]

    prediction = scripted(Round, "submit(answer=await take(await give()))")(question="?")
    assert prediction.answer == f"{type(value).__name__} {value}"
