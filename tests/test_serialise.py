"""From Python values to JSON data: the quick way gives what the careful one gives, and nothing passes that it would refuse."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field, PlainSerializer, TypeAdapter
from typing_extensions import TypedDict

import dse
from dse.contracts.serialise import dump, dump_model
from dse.testing import ScriptedModel, call


class Colour(enum.Enum):
    RED = "red"
    TWO = 2


class Row(TypedDict):
    name: str
    size: NotRequired[float | None]
    tags: list[str]


PLAIN: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()), (float, st.floats(allow_nan=False) | st.integers(-9, 9)), (str, st.text()), (bool, st.booleans()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)), (dt.date, st.dates()), (dt.datetime, st.datetimes()),
    (dt.timedelta, st.timedeltas()), (UUID, st.uuids()), (Colour, st.sampled_from(Colour)),
    (Literal["a", 3], st.sampled_from(["a", 3])),
    (Row, st.fixed_dictionaries({"name": st.text(), "tags": st.lists(st.text(), max_size=3)}, optional={"size": st.none() | st.floats(0, 9)})),
]  # fmt: skip


@st.composite
def typed_values(draw: st.DrawFn, depth: int = 2) -> tuple[Any, Any]:
    """A type and a value of it."""
    kind = draw(st.sampled_from(["plain", "list", "dict", "optional", "tuple", "union"])) if depth else "plain"
    if kind == "plain":
        type_, values = draw(st.sampled_from(PLAIN))
        return type_, draw(values)
    type_, value = draw(typed_values(depth - 1))
    if kind == "list":
        return list[type_], [value] * draw(st.integers(0, 2))
    if kind == "dict":
        return dict[str, type_], {draw(st.text(max_size=5)): value}
    if kind == "optional":
        return type_ | None, draw(st.sampled_from([None, value]))
    other, another = draw(typed_values(depth - 1))
    return (tuple[type_, other], (value, another)) if kind == "tuple" else (type_ | other, draw(st.sampled_from([value, another])))


@given(typed_values())
def test_plain_types_are_dumped_as_with_all_care(pair: tuple[Any, Any]) -> None:
    type_, value = pair
    adapter = TypeAdapter(type_)
    made = adapter.validate_python(value)
    assert dump(adapter, made) == adapter.dump_python(made, mode="json", by_alias=True, warnings="error")


class Part(BaseModel):
    size: int


class Loose(BaseModel):
    size: int = Field(default_factory=lambda: "many")  # type: ignore[arg-type]


@dataclass
class Piece:
    size: int


Wrong = Annotated[int, AfterValidator(lambda value: f"{value} pieces")]


def changed(made: Any) -> Any:
    made.size = "many"  # no validation: pydantic takes an instance as it is
    return made


@pytest.mark.parametrize(("type_", "value"), [
    (Part, changed(Part(size=1))), (list[Part], [changed(Part(size=1))]), (Piece, changed(Piece(size=1))),
    (Part | None, changed(Part(size=1))), (dict[str, Piece], {"a": changed(Piece(size=1))}), (Wrong, 3),
    (TypedDict("Order", {"count": Wrong}), {"count": 3}), (list[Wrong], [1]), (tuple[int, Wrong], (1, 2)),
])  # fmt: skip
def test_a_value_that_is_not_of_its_type_after_all_is_refused(type_: Any, value: Any) -> None:
    adapter = TypeAdapter(type_)
    with pytest.raises(ValueError, match="UnexpectedValue"):
        dump(adapter, adapter.validate_python(value))


def test_types_that_serialise_themselves_are_asked() -> None:
    shouted = TypeAdapter(list[Annotated[str, PlainSerializer(str.upper)]])
    assert dump(shouted, ["a"]) == ["A"]


def test_models_within_arguments_are_dumped_with_care() -> None:
    @dse.tool(effect="read")
    def weigh(part: Loose, times: int = 1) -> int:
        """Weigh."""
        return times

    made = weigh.params.model_validate({"part": {}})
    with pytest.raises(ValueError, match="UnexpectedValue"):
        dump_model(made)
    assert dump_model(weigh.params.model_validate({"part": {"size": 2}})) == {"part": {"size": 2}, "times": 1}


def test_a_tool_that_returns_a_spoilt_instance_breaks_its_contract() -> None:
    @dse.tool(effect="read")
    def part() -> Part:
        """A part."""
        return changed(Part(size=1))

    class Ask(dse.Signature):
        """Ask for it."""

        question: str = dse.InputField()
        answer: str = dse.OutputField()
        tools = [part]

    model = ScriptedModel([call(("part", {})), call(("submit", {"answer": "none"}))])
    (receipt,) = dse.Program(Ask, "tool_call", lm=model)(question="x").receipt["calls"]
    assert receipt["outcome"] == "fault" and "returned" in receipt["message"]
