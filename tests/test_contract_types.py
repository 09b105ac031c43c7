"""Types of declarations: what a model may fill in, what can be read from JSON, and that no mode changes a value on its way."""

from __future__ import annotations

import datetime as dt
import enum
import json
from collections.abc import Callable, Generator, Iterable
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, TypeVar, Union
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, PlainSerializer, Strict, TypeAdapter
from typing_extensions import TypeAliasType, TypedDict

import dse
from dse.contracts.schema import dump_wire, guest_from_wire, schema_of, wire_from_guest
from dse.errors import ContractError, ContractMismatch, DseError, InvalidValue, SignatureError
from dse.testing import ScriptedModel, call, say

T = TypeVar("T")
Context = TypeAliasType("Context", dse.ToolContext[dict])
ContextOf = TypeAliasType("ContextOf", dse.ToolContext[T], type_params=(T,))
Given = NewType("Given", dse.ToolContext)
STRICT = {"check_errors": 0, "runtime_errors": 0, "repairs": 0}


def tool_of(returns: Any, fn: Callable[..., Any], effect: str = "read", **takes: Any) -> dse.Tool:
    fn.__annotations__ = {**takes, "return": returns}
    fn.__doc__ = "It."
    return dse.tool(fn, effect=effect)  # type: ignore[no-any-return, call-overload]


def taking(kind: Any) -> dse.Tool:
    def take(it):  # type: ignore[no-untyped-def]
        return repr(it)

    return tool_of(str, take, it=kind)


def giving(kind: Any, value: Any) -> dse.Tool:
    def give():  # type: ignore[no-untyped-def]
        return value

    return tool_of(kind, give)


def task(*tools: dse.Tool, out: Any = str, **inputs: Any) -> Any:
    body = {"__doc__": "Do it.", "__annotations__": {"q": str, **inputs, "answer": out}, "tools": list(tools),
            "q": dse.InputField(), **{name: dse.InputField() for name in inputs}, "answer": dse.OutputField()}  # fmt: skip
    return type("Do", (dse.Signature,), body)


def by_code(source: str, *tools: dse.Tool, out: Any = str, inputs: dict[str, Any] | None = None, **values: Any) -> Any:
    one = dse.Program(task(*tools, out=out, **(inputs or {})), "code",
                      lm=ScriptedModel(lambda _: say(f"[[ ## code ## ]]\n{source}")))  # fmt: skip
    return one.narrowed(limits=STRICT)(q="?", **values).answer


def by_call(tool: dse.Tool, **arguments: Any) -> str:
    model = ScriptedModel([call((tool.name, arguments)), call(("submit", {"answer": "done"}))])
    dse.Program(task(tool), "tool_call", lm=model, deps={"admin": False})(q="?")
    return str(next(m["content"] for m in model.requests[-1]["messages"] if m["role"] == "tool"))


class TestContextParameter:
    @pytest.mark.parametrize("kind", [
        dse.ToolContext | None, Optional[dse.ToolContext], Optional[dse.ToolContext[dict]],  # noqa: UP045
        Annotated[dse.ToolContext, "given"], Annotated[dse.ToolContext[dict] | None, "given"],
        Optional[Annotated[dse.ToolContext, "given"]], Context, Context | None, ContextOf[dict], Given,  # noqa: UP045
        "dse.ToolContext | None", "Optional[Annotated[dse.ToolContext[dict], 'given']]", "Context",
    ])  # fmt: skip
    def test_however_it_is_annotated_the_model_neither_sees_nor_forges_it(self, kind: Any) -> None:
        def wipe(table, ctx=None):  # type: ignore[no-untyped-def]
            return "none" if ctx is None else repr(ctx.deps)

        made = tool_of(str, wipe, "write", table=str, ctx=kind)
        assert made.context_parameter == "ctx" and list(made.contract.parameters["properties"]) == ["table"]
        assert by_call(made, table="t") == "{'admin': False}"
        assert "ctx: Extra inputs are not permitted" in by_call(made, table="t", ctx={"deps": {"admin": True}, "run_id": "r"})

    def test_what_it_says_of_its_dependencies_is_known(self) -> None:
        def wipe(ctx=None):  # type: ignore[no-untyped-def]
            return ""

        assert tool_of(str, wipe, ctx=dse.ToolContext[Line] | None).deps_type == "Line"

    @pytest.mark.parametrize("kind", [
        list[dse.ToolContext], dse.ToolContext | str, dict[str, dse.ToolContext[int]], Optional[list[Given]],  # noqa: UP045
        Annotated[dse.ToolContext | int, "given"], "list[Context]", "Mine", "Holding",
        Annotated[dse.ToolContext | int, BeforeValidator(lambda value: value)],
    ])  # fmt: skip
    def test_anywhere_else_it_is_refused(self, kind: Any) -> None:
        with pytest.raises(ContractError, match=r"'it' .*holds a ToolContext") as caught:
            taking(kind)
        assert caught.value.remedy
        with pytest.raises(ContractError, match=r"returns.*holds a ToolContext"):
            giving(kind, None)
        with pytest.raises(SignatureError, match=r"Do\.x .*holds a ToolContext"):
            task(x=kind)


class Mine(dse.ToolContext[str]):
    pass


class Holding(BaseModel):
    context: dse.ToolContext[str] | None = None


class Line(BaseModel):
    amounts: list[Decimal]
    by: dict[str, Decimal]
    some: set[Decimal]


class Moved(BaseModel):
    kind: Literal["moved"] = "moved"
    value: dt.date


class Note(BaseModel):
    kind: Literal["note"] = "note"
    value: str


class Dated(BaseModel):
    value: dt.date
    cost: Decimal


class Named(BaseModel):
    value: str
    cost: str


class Timed(BaseModel):
    value: dt.datetime


class Titled(BaseModel):
    value: str


Event = Annotated[Moved | Note, Field(discriminator="kind")]
# A text in another form than its format: the schema says date and decimal, whatever the functions write.
Odd = Annotated[dt.date, PlainSerializer(lambda day: f"{day:%d.%m.%Y}")]


class TestUnions:
    @pytest.mark.parametrize("text", ["please call back", "2024-05-01", "20240501", "1E+3", ""])
    def test_the_member_is_found_by_what_is_in_the_value(self, text: str) -> None:
        note = Note(value=text)
        assert by_code("submit(answer=await take(await give()))", giving(Event, note), taking(Event)) == repr(note)
        assert by_code("submit(answer=await take(it))", taking(Event), inputs={"it": Event}, it=note) == repr(note)

    def test_the_member_that_is_meant_is_typed(self) -> None:
        day = giving(Event, Moved(value=dt.date(2024, 5, 1)))
        assert by_code("submit(answer=str((await give())['value'].year))", day) == "2024"
        assert by_code("submit(answer=str(await give()))", giving(dt.datetime | dt.date, dt.date(2024, 5, 1))) == "2024-05-01"

    @pytest.mark.parametrize("kind, value", [
        (Decimal | str, "01234"), (Decimal | str, "1_000"), (Decimal | str, "NaN"), (dt.date | str, "20240501"),
        (Dated | Named, Named(value="2024-05-01", cost="007")), (Dated | Named, Named(value="soon", cost="1")),
        (list[dt.date] | list[str], ["2024-05-01", "x"]), (dict[str, Decimal] | dict[str, str], {"a": "1", "b": "02"}),
        (UUID | dt.date, dt.date(2024, 5, 1)), (list[float] | list[int], [1, 2]),
        (tuple[dt.date, int] | tuple[str, int], ("20240501", 1)),
        (dt.datetime | str, "2026-01-01T00:00:00Z"), (dt.datetime | str, "2026-01-01T00:00:00+00:00"), (dt.datetime | str, "UTC"),
        (str | dt.datetime | None, "2026-01-01T01:02:03.500000Z"), (dt.time | str, "10:00:00Z"), (dt.time | str, "10:00Z"),
        (list[dt.datetime] | list[str], ["2026-01-01T00:00:00Z"]), (dict[str, dt.datetime | str], {"a": "2026-01-01T00:00:00Z"}),
        (Timed | Titled, Titled(value="2026-01-01T00:00:00Z")),
        (set[int] | list[int], [3, 1, 2]), (set[int] | list[int], [1, 2, 3]), (set[int] | list[int], [2, 2]),
        (list[int] | set[int] | None, [3, 1, 2]), (list[set[str] | list[str]], [["b", "a"], ["a", "b"]]),
        (dict[str, frozenset[int] | list[int]], {"a": [3, 1]}),
    ])  # fmt: skip
    def test_values_pass_through_code_unchanged(self, kind: Any, value: Any) -> None:
        assert by_code("submit(answer=await take(await give()))", giving(kind, value), taking(kind)) == repr(value)

    @pytest.mark.parametrize("kind", [set[str] | list[str], list[str] | set[str], dict[str, set[str] | list[str]]])
    def test_a_set_of_a_union_is_told_in_a_fixed_order_and_a_list_in_its_own(self, kind: Any) -> None:
        def told(value: Any) -> Any:
            adapter = TypeAdapter(kind)
            typed = adapter.validate_python({"a": value} if "dict" in str(kind) else value)
            wire = dump_wire(adapter, typed, schema_of(adapter, "serialization"))
            return wire["a"] if isinstance(wire, dict) else wire

        assert told({"b", "c", "a", "d"}) == ["a", "b", "c", "d"]
        assert told(["b", "c", "a", "d"]) == ["b", "c", "a", "d"]

    def test_texts_and_lists_of_unions_are_recorded_and_told_as_they_were_given(self) -> None:
        got: list[Any] = []

        @dse.tool(effect="pure")
        def keep(at: dt.datetime | str, which: set[int] | list[int]) -> list[str | set[int] | list[int] | dt.datetime]:
            """Keep."""
            got.append((at, which))
            return [at, which]

        class Kept(dse.Signature):
            """Keep these."""

            at: dt.datetime | str = dse.InputField()
            which: set[int] | list[int] = dse.InputField()
            then: dt.datetime | str = dse.OutputField()
            those: set[int] | list[int] = dse.OutputField()
            tools = [keep]

        given = {"at": "2026-01-01T00:00:00Z", "which": [3, 1, 2]}
        expected = {"then": given["at"], "those": given["which"]}
        script = "kept = await keep(at, which)\nsubmit(then=kept[0], those=kept[1])"
        replies = {"tool_call": [call(("keep", given)), call(("submit", expected))], "code": [say(f"[[ ## code ## ]]\n{script}")],
                   "direct": [say("[[ ## then ## ]]\n2026-01-01T00:00:00Z\n\n[[ ## those ## ]]\n[3, 1, 2]")]}  # fmt: skip
        for mode, scripted in replies.items():
            got.clear()
            made = dse.Program(Kept, mode, lm=ScriptedModel(list(scripted)))(**given)
            assert (made.then, made.those) == tuple(expected.values()), mode
            assert made.receipt["inputs"] == given and made.receipt["outputs"] == expected
            assert got == ([] if mode == "direct" else [tuple(given.values())])
            assert [one["arguments"] for one in made.receipt["calls"]] == [given] * len(got)

    def test_a_text_that_its_format_cannot_read_stays_text(self) -> None:
        tools = giving(dict[str, Odd], {"day": dt.date(2024, 1, 2)}), giving(Odd | None, dt.date(2024, 1, 2))
        for tool, source in zip(tools, ["(await give())['day']", "await give()"], strict=True):
            assert by_code(f"submit(answer=str({source}))", tool) == "02.01.2024"

    WIRE = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=4)
        | st.sampled_from(["2024-05-01", "20240501", "01", "1E+3", "NaN", "PT1H", "1:00", "12:00:00", "\ud800", 10**400]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "value", "cost"]), inner), max_leaves=6,
    )  # fmt: skip
    FORMATS = ("date-time", "date", "time", "duration", "decimal", "uuid", "binary", "base64", "email")
    SCHEMA = st.recursive(
        st.sampled_from([{"type": "string", "format": name} for name in FORMATS])
        | st.sampled_from([{"type": name} for name in ("string", "integer", "number", "boolean", "null")] + [{"const": "moved"}, {}]),
        lambda inner: st.builds(lambda of: {"anyOf": of}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda of, unique: {"type": "array", "items": of, "uniqueItems": unique}, inner, st.booleans())
        | st.builds(lambda of: {"type": "object", "properties": of},
                    st.dictionaries(st.sampled_from(["kind", "value", "cost"]), inner))
        | st.builds(lambda of: {"type": "array", "prefixItems": of}, st.lists(inner, max_size=2)), max_leaves=6,
    )  # fmt: skip

    @given(WIRE, SCHEMA)
    @example("\ud800", {"type": "string", "format": "binary"})
    @example(10**400, {"type": "number"})
    def test_reading_never_raises(self, wire: Any, schema: dict[str, Any]) -> None:
        before = repr(wire)
        guest_from_wire(wire, schema)
        assert repr(wire) == before

    VALUES = st.one_of(
        st.text(max_size=6), st.none(),
        st.sampled_from(["2024-05-01", "20240501", "01", "PT1H", "P1D", "24:00", "1.0", "2024-05-01T00:00:00Z", "2024-05-01T00:00Z",
                         "2024-05-01T00:00:00.5Z", "2024-05-01T00:00:00+00:00"]),
        st.integers(-(10**6), 10**6), st.dates(), st.datetimes(), st.uuids(),
        st.decimals(allow_nan=False, allow_infinity=False), st.builds(Moved, value=st.dates()),
        st.builds(Note, value=st.text(max_size=3) | st.dates().map(str)),
        st.builds(Named, value=st.dates().map(str), cost=st.sampled_from(["1", "01"])),
    )  # fmt: skip
    ANY = TypeAdapter(Union[None, int, dt.date, dt.datetime, UUID, Decimal, Moved, Note, Dated, Named, str])  # noqa: UP007

    @given(VALUES)
    @example(dt.datetime(2024, 5, 1, tzinfo=dt.UTC))
    def test_there_and_back_is_the_same_text(self, value: Any) -> None:
        schema = schema_of(self.ANY, "serialization")
        wire = dump_wire(self.ANY, self.ANY.validate_python(value), schema)
        back = self.ANY.validate_python(wire_from_guest(guest_from_wire(wire, schema)))
        assert json.dumps(dump_wire(self.ANY, back, schema)) == json.dumps(wire)

    def test_members_that_hold_each_other_do_not_take_for_ever(self) -> None:
        def member(last: Any) -> dict[str, Any]:
            child = {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}
            return {"type": "object", "properties": {"a": child, "b": child, "last": last}, "required": ["last"]}

        schema = {"$ref": "#/$defs/B", "$defs": {"A": member({"type": "integer"}), "B": member({"type": "string", "format": "date"})}}
        wire: dict[str, Any] = {"last": "2024-05-01"}
        for _ in range(60):
            wire = {"a": wire, "b": wire, "last": "x"} if _ < 1 else {"a": wire, "last": "2024-05-01"}
        found = guest_from_wire(wire, schema)
        assert found["last"] == found["a"]["last"] == dt.date(2024, 5, 1)


class Half(enum.Enum):
    HALF = 0.5
    FULL = 1.0


class Share(enum.Enum):
    LOW = Decimal("1.5")


class Day(enum.Enum):
    FIRST = dt.date(2024, 1, 1)


class Color(enum.Enum):
    RED = "red"


class Missing(enum.Enum):
    LOW = Decimal("1.5")

    @classmethod
    def _missing_(cls, value: object) -> Any:
        return cls.LOW if value == "1.5" else None


class Exact(BaseModel):
    model_config = ConfigDict(strict=True)
    due: dt.date
    amount: Decimal
    pair: tuple[int, int] = (1, 2)
    color: Color = Color.RED


UserId = NewType("UserId", int)
Numbers = TypeAliasType("Numbers", list[int])
ListOf = TypeAliasType("ListOf", list[T], type_params=(T,))


class TestReadable:
    @pytest.mark.parametrize("kind", [Iterable[int], Generator[int, None, None], dict[str, Iterable[int]], Iterable[int] | None])
    def test_what_can_be_read_once_is_refused(self, kind: Any) -> None:
        with pytest.raises(ContractError, match=r"'it' .*once only") as caught:
            taking(kind)
        assert "list[" in caught.value.remedy
        for field in ({"x": kind}, {"out": kind}):
            with pytest.raises(SignatureError, match="once only"):
                task(**field)

    @pytest.mark.parametrize("kind", [Share, Day, Share | None, list[Share], Literal[b"x"], Literal[Color.RED]], ids=str)
    def test_constants_that_json_cannot_hold_are_refused(self, kind: Any) -> None:
        with pytest.raises(ContractError, match="JSON cannot hold") as caught:
            taking(kind)
        assert caught.value.remedy
        with pytest.raises(SignatureError, match="JSON cannot hold"):
            task(out=kind)
        task(x=kind)  # a program has the values themselves

    @pytest.mark.parametrize("kind, wire", [
        (Half, 0.5), (Color, "red"), (Missing, "1.5"), (Literal["a", 1, None], 1), (list[Color] | None, ["red"]),
        (Annotated[Share, BeforeValidator(lambda value: Share(Decimal(value)))], "1.5"),
    ])  # fmt: skip
    def test_what_can_be_read_goes_on_being_read(self, kind: Any, wire: Any) -> None:
        assert by_call(taking(kind), it=wire) == repr(TypeAdapter(kind).validate_python(wire))

    def test_an_enum_of_floats_has_a_stub(self) -> None:
        assert by_code("submit(answer=await take(0.5))", taking(Half)) == repr(Half.HALF)
        assert by_code("submit(answer=await take(await give()))", giving(Half, Half.FULL), taking(Half)) == repr(Half.FULL)

    def test_strict_types_take_the_json_of_their_values(self) -> None:
        wire = {"due": "2024-01-01", "amount": "1.5", "pair": [3, 4], "color": "red"}
        made = Exact(due=dt.date(2024, 1, 1), amount=Decimal("1.5"), pair=(3, 4))
        assert by_call(taking(Exact), it=wire) == repr(made)
        assert by_call(taking(Annotated[dt.date, Strict()]), it="2024-01-01") == repr(made.due)
        source = "submit(answer=await take({'due': datetime.date(2024, 1, 1), 'amount': Decimal('1.5'), 'pair': (3, 4), 'color': 'red'}))"
        assert by_code(source, taking(Exact)) == repr(made)
        assert "it.amount" in by_call(taking(Exact), it={**wire, "amount": [1]})
        assert "it: Input should be a valid integer" in by_call(taking(Annotated[int, Strict()]), it="1")
        with pytest.raises(SignatureError, match="strict date"):
            task(out=Exact)
        assert by_code("submit(answer=str(it['due'].year))", inputs={"it": Exact}, it=made) == "2024"
        assert by_code("submit(answer=str(it['due'].year))", inputs={"it": Exact}, it=wire) == "2024"

    @pytest.mark.parametrize("kind", [JsonValue, Numbers, ListOf[int], list[UserId], Annotated[Numbers, Field(min_length=1)]], ids=str)
    @pytest.mark.parametrize("mode", ["direct", "tool_call", "code"])
    def test_names_for_types_are_types_of_fields(self, kind: Any, mode: str) -> None:
        replies = {"direct": say("[[ ## answer ## ]]\n[7]\n\n[[ ## completed ## ]]"), "tool_call": call(("submit", {"answer": [7]})),
                   "code": say("[[ ## code ## ]]\nsubmit(answer=x)")}  # fmt: skip
        one = dse.Program(task(taking(int), out=kind, x=kind, y=UserId), mode, lm=ScriptedModel([replies[mode]]))
        assert one(q="?", x=[7], y=7).answer == [7]


class TestPolicies:
    @pytest.mark.parametrize("policy, word", [
        ({"timeout_s": float("inf")}, "timeout_s"), ({"rate": (5, float("inf"))}, "per_s"), ({"rate": (5,)}, "two numbers"),
        ({"rate": (5, 60.0, 1)}, "two numbers"), ({"rate": ()}, "two numbers"), ({"sensitive": "return"}, "list of names"),
    ])  # fmt: skip
    def test_wrong_ones_are_refused_by_name(self, policy: dict[str, Any], word: str) -> None:
        def look(key: str) -> str:
            return key

        with pytest.raises(DseError, match=word):
            dse.tool(look, effect="read", **policy)

    @pytest.mark.parametrize("name", ["active_s", "interpreter_s", "cost_usd"])
    def test_limits_are_finite(self, name: str) -> None:
        with pytest.raises(InvalidValue, match=name):
            dse.Limits(**{name: float("inf")})


class Loose(TypedDict):
    a: int
    b: NotRequired[str]


class TestBinding:
    @dse.tool(effect="write")
    def transfer(amount: int, description: str = "", fee: int = 0) -> str:
        """Transfer."""
        ...

    def test_defaults_what_is_required_and_every_name_count(self) -> None:
        def other_default(amount: int, description: str = "", fee: int = 50) -> str:
            return ""

        def required(amount: int, description: str, fee: int) -> str:
            return ""

        def other_type(amount: int, description: int = 0, fee: int = 0) -> str:
            return ""

        for fn, where in ((other_default, "fee.default: 50 instead of 0"), (required, "description.default is missing"),
                          (other_type, "description.default: 0 instead of ")):  # fmt: skip
            with pytest.raises(ContractMismatch, match=where):
                dse.Toolbox([self.transfer]).bind("transfer", fn)

    def test_texts_do_not(self) -> None:
        def same(amount: Annotated[int, Field(description="in cents")], description: str = "", fee: int = 0) -> str:
            """Another text.

            Args:
                fee: in cents
            """
            return f"{amount} {fee}"

        assert dse.Toolbox([self.transfer]).bind("transfer", same)["transfer"].fn is same

    def test_a_key_that_was_left_out_is_not_there(self) -> None:
        seen: list[Any] = []

        @dse.tool(effect="read")
        def get(k: Loose, n: int = 5) -> Loose:
            """Get."""
            ...

        def plain(k: Any, n: Any) -> Any:
            seen.append((k, n))
            return dict(k)

        box = dse.Toolbox().bind_contract(get.contract, plain)
        model = ScriptedModel([call(("get", {"k": {"a": 1}})), call(("get", {"k": {"a": 1, "b": "x"}})), call(("submit", {"answer": ""}))])
        dse.Program(task(get), "tool_call", lm=model, toolbox=box)(q="?")
        assert seen == [({"a": 1}, 5), ({"a": 1, "b": "x"}, 5)]
        assert [json.loads(m["content"]) for m in model.requests[-1]["messages"] if m["role"] == "tool"] == [k for k, _ in seen]


@pytest.mark.parametrize("kind, value", [
    (Line, Line(amounts=[Decimal(1)], by={"a": Decimal(2)}, some={Decimal(3)})), (list[Decimal], [Decimal(1)]),
    (dict[str, list[Decimal]], {"a": [Decimal(1)]}), (set[int | Decimal], {1}), (dict[str, Line], {}),
    (list[tuple[Decimal, list[Decimal]]], [(Decimal(1), [])]),
])  # fmt: skip
def test_what_holds_many_decimals_may_be_passed_on(kind: Any, value: Any) -> None:
    assert by_code("submit(answer=await take(await give()))", giving(kind, value), taking(kind)) == repr(value)
    literal = "submit(answer=await take({'amounts': [1, 2.5], 'by': {}, 'some': []}))"
    if kind is Line:  # what is written out may be any number
        assert "Decimal('2.5')" in by_code(literal, taking(kind))
