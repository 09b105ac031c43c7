"""Tool contracts: declaration, identity, schemas, stubs, validation and the way to the guest and back."""

from __future__ import annotations

import ast
import datetime as dt
import enum
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Optional
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import TypedDict

import dse
from dse.canonical import canonical_json
from dse.contracts.schema import adapter_for, dump_wire, guest_from_wire, schema_of, wire_from_guest
from dse.contracts.stubs import function_schema, stubs_for
from dse.errors import ContractError, ContractMismatch, InvalidValue, SignatureError, ToolboxError, Unserialisable


class Currency(enum.Enum):
    EUR = "EUR"
    USD = "USD"


class Line(BaseModel):
    amount: Decimal
    currency: Currency
    when: dt.datetime
    day: dt.date
    tags: set[str] = set()
    note: Optional[str] = None  # noqa: UP045
    children: list[Line] = []


@dataclass
class Window:
    first: int
    span: tuple[int, str]


class Loose(TypedDict, total=False):
    a: int


@dse.tool(effect="read")
async def get_lines(
    ctx: dse.ToolContext[dict], user: int, window: Window, ident: UUID, quarter: Literal["Q1", "Q2"] = "Q1",
    extra: Loose | None = None, by: dict[str, float] = {},  # noqa: B006
) -> list[Line]:  # fmt: skip
    """Lines of one person.

    Args:
        user: the person's id,
            as a number
        quarter: which quarter
    """
    return []


class TestDeclaration:
    def test_schema_is_complete_and_hides_the_context(self) -> None:
        contract = get_lines.contract
        assert contract.description == "Lines of one person."
        assert list(contract.parameters["properties"]) == ["user", "window", "ident", "quarter", "extra", "by"]
        assert contract.parameters["required"] == ["user", "window", "ident"]
        assert contract.parameters["properties"]["user"] == {
            "type": "integer",
            "description": "the person's id, as a number",
        }
        assert contract.parameters["additionalProperties"] is False
        line = contract.returns["$defs"]["Line"]
        assert line["properties"]["amount"] == {"type": "string", "format": "decimal"}
        assert set(line["required"]) == set(line["properties"]), "what a tool returns has every field"

    def test_defaults_follow_the_effect(self) -> None:
        @dse.tool(effect="write")
        def put(n: int) -> None: ...

        assert (put.contract.idempotent, put.contract.concurrency) == (False, "ordered")
        assert (get_lines.contract.idempotent, get_lines.contract.concurrency) == (True, "parallel")

    @pytest.mark.parametrize("source, word", [
        ("def t(a) -> int: ...", "annotation"),
        ("def t(*a: int) -> int: ...", "variadic"),
        ("def t(**a: int) -> int: ...", "variadic"),
        ("def t(a: int, /) -> int: ...", "positional-only"),
        ("def t(a: int): ...", "return type"),
        ("def max(a: int) -> int: ...", "builtin"),
        ("def match(a: int) -> int: ...", "keyword"),
        ("def submit(a: int) -> int: ...", "reserved"),
        ("def _t(a: int) -> int: ...", "underscore"),
        ("def tü(a: int) -> int: ...", "ASCII"),
        ("def t(a: 'Missing') -> int: ...", "resolved"),
        ("def t(a: object()) -> int: ...", "pydantic"),
        ("def t(a: Callable[[int], int]) -> int: ...", "JSON"),
        ("def t(a: int, _b: int) -> int: ...", "underscore"),
        ("def t(a: int, c: dse.ToolContext, d: dse.ToolContext) -> int: ...", "second context"),
    ])  # fmt: skip
    def test_incomplete_declarations_are_refused(self, source: str, word: str) -> None:
        from collections.abc import Callable

        namespace: dict[str, Any] = {"dse": dse, "Callable": Callable}
        exec(source, namespace)
        fn = next(v for k, v in namespace.items() if k not in ("dse", "Callable", "__builtins__"))
        with pytest.raises(ContractError, match=word) as caught:
            dse.tool(fn, effect="read")
        assert caught.value.remedy

    @pytest.mark.parametrize("policy", [
        {"timeout_s": 0}, {"max_calls": 0}, {"rate": (0, 1.0)}, {"cost_usd": -1.0}, {"cost_usd": float("nan")},
        {"max_output_bytes": 0}, {"sensitive": ["nothing"]}, {"effect": "delete"},
    ])  # fmt: skip
    def test_bad_policies_are_refused(self, policy: dict[str, Any]) -> None:
        def t(a: int) -> int: ...

        with pytest.raises((ContractError, InvalidValue)):
            dse.tool(t, **{"effect": "read", **policy})

    def test_approval_has_one_form_and_names_real_arguments(self) -> None:
        def pay(amount: float) -> None: ...

        made = dse.tool(pay, effect="write", approval=dse.Approval(when={"amount": {"gt": 100}}))
        assert made.contract.approval.when == {"amount": {"gt": 100}}
        with pytest.raises(ContractError, match="no parameter"):
            dse.tool(pay, effect="write", approval=dse.Approval(when={"sum": {"gt": 100}}))
        with pytest.raises(InvalidValue):
            dse.Approval(always=True, rule="x", version="1")
        with pytest.raises(InvalidValue):
            dse.Approval(rule="x")

    def test_a_body_makes_an_implementation(self) -> None:
        @dse.tool(effect="pure")
        def declared(a: int) -> int:
            """Only declared."""

        @dse.tool(effect="pure")
        def implemented(a: int) -> None:
            return None

        assert declared.fn is None and implemented.fn is not None
        with pytest.raises(ContractError, match="without an implementation"):
            declared(1)


class TestIdentity:
    def test_contracts_are_data(self) -> None:
        contract = get_lines.contract
        text = canonical_json(contract.model_dump(mode="json"))
        again = dse.ToolContract.model_validate(json.loads(text))
        assert again == contract and (again.interface_id, again.policy_id) == (contract.interface_id, contract.policy_id)

    @pytest.mark.parametrize("field, value", [
        ("name", "other"), ("description", "Other."), ("effect", "write"),
        ("parameters", {"type": "object", "properties": {}}), ("returns", {"type": "null"}),
    ])  # fmt: skip
    def test_interface_fields_change_only_the_interface(self, field: str, value: Any) -> None:
        old = get_lines.contract
        new = dse.ToolContract.model_validate({**old.model_dump(), field: value})
        assert new.interface_id != old.interface_id and new.policy_id == old.policy_id

    @pytest.mark.parametrize("field, value", [
        ("idempotent", False), ("timeout_s", 1.0), ("max_calls", 3), ("rate", {"calls": 1, "per_s": 1.0}), ("cost_usd", 0.1),
        ("approval", {"always": True}), ("concurrency", "exclusive"), ("max_output_bytes", 10), ("sensitive", ("user",)),
    ])  # fmt: skip
    def test_policy_fields_change_only_the_policy(self, field: str, value: Any) -> None:
        old = get_lines.contract
        new = dse.ToolContract.model_validate({**old.model_dump(), field: value})
        assert new.interface_id == old.interface_id and new.policy_id != old.policy_id

    def test_every_field_is_covered(self) -> None:
        tested = {"name", "description", "effect", "parameters", "returns", "idempotent", "timeout_s", "max_calls", "rate",
                  "cost_usd", "approval", "concurrency", "max_output_bytes", "sensitive"}  # fmt: skip
        assert set(dse.ToolContract.model_fields) == tested


class TestToolbox:
    def test_bind_checks_the_interface(self) -> None:
        @dse.tool(effect="read")
        def look(key: str) -> int:
            """Look."""

        box = dse.Toolbox([look])
        before = box.revision(["look"])

        async def found(key: str) -> int:
            return 1

        box.bind("look", found)
        assert box["look"].fn is found and box["look"].contract == look.contract and box.revision(["look"]) != before
        with pytest.raises(ContractMismatch):
            box.bind("look", lambda_with(int))
        with pytest.raises(ToolboxError, match="no such tool"):
            box.bind("other", found)
        with pytest.raises(ToolboxError):
            dse.Toolbox([found])

    def test_revision_follows_the_source_or_is_given(self) -> None:
        def look(key: str) -> int:
            return 1

        assert dse.tool(look, effect="read").revision.startswith("src-")
        assert dse.tool(look, effect="read", revision="7").revision == "7"


@pytest.mark.parametrize("kind, default", [(int, "z"), (float, float("nan")), (list[int], ["x"]), (str, object()), (dt.date, "2026-01-01")])
def test_a_default_fits_its_type(kind: Any, default: Any) -> None:
    def look(key: Any = default) -> str:
        return ""

    look.__annotations__["key"] = kind
    with pytest.raises(ContractError, match="default of 'key' in 'look' does not fit"):
        dse.tool(look, effect="read")


def lambda_with(kind: type) -> Any:
    def found(key: int) -> str:
        return ""

    return found


class TestStubs:
    def test_readable_and_valid_python(self) -> None:
        text = stubs_for([get_lines.contract], outputs=TypeAdapter(Line).json_schema())
        ast.parse(text)
        assert "async def get_lines(user: int, window: Window, ident: str, quarter: Literal['Q1', 'Q2'] = 'Q1'," in text
        assert "class Line(TypedDict):" in text and "amount: Decimal" in text and "when: datetime.datetime" in text
        assert "ctx" not in text and "ToolContext" not in text
        assert stubs_for([get_lines.contract]) == stubs_for([get_lines.contract])

    def test_odd_names_become_valid_stubs(self) -> None:
        schema = {
            "type": "object",
            "properties": {"from": {"type": "string"}, "a-b": {"type": "integer"}},
            "required": ["from"],
        }
        contract = dse.ToolContract(name="odd", description='Says """hello""" \\ and "', parameters={"type": "object", "properties": {}},
                                    returns=schema, effect="read")  # fmt: skip
        ast.parse(stubs_for([contract]))

    def test_classes_of_one_name_and_two_shapes_stay_apart(self) -> None:
        def contract(name: str, kind: str) -> dse.ToolContract:
            returns = {
                "$ref": "#/$defs/Item",
                "$defs": {"Item": {"type": "object", "properties": {"x": {"type": kind}}, "required": ["x"]}},
            }
            return dse.ToolContract(
                name=name, description="", parameters={"type": "object", "properties": {}}, returns=returns, effect="read"
            )

        text = stubs_for([contract("one", "string"), contract("two", "integer"), contract("three", "string")])
        assert text.count("class Item(TypedDict)") == 1 and text.count("class Item2(TypedDict)") == 1

    def test_native_schema_has_parameters_and_tells_what_comes_back(self) -> None:
        made = function_schema(get_lines.contract)
        assert made["name"] == "get_lines" and made["parameters"]["required"] == ["user", "window", "ident"]
        assert "Returns list[Line]" in made["description"]


class TestContractAlone:
    """A contract that is only data validates and converts like the typed one."""

    LINES = [{"amount": "1.50", "currency": "EUR", "when": "2026-01-02T03:04:05Z", "day": "2026-01-02", "tags": ["a", "b"],
              "note": None, "children": []}]  # fmt: skip

    def test_arguments(self) -> None:
        adapter = adapter_for(get_lines.contract.parameters)
        good = {"user": 1, "window": {"first": 1, "span": [1, "x"]}, "ident": "12345678123456781234567812345678"}
        adapter.validate_python(good)
        for bad in (
            {},
            {**good, "user": "x"},
            {**good, "quarter": "Q9"},
            {**good, "more": 1},
            {**good, "window": {"first": 1}},
        ):
            with pytest.raises(ValidationError):
                adapter.validate_python(bad)

    def test_returns_convert_to_guest_values_and_back(self) -> None:
        schema = get_lines.contract.returns
        adapter_for(schema).validate_python(self.LINES)
        guest = guest_from_wire(self.LINES, schema)
        assert guest[0]["amount"] == Decimal("1.50") and guest[0]["when"] == dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
        assert guest[0]["day"] == dt.date(2026, 1, 2) and guest[0]["tags"] == {"a", "b"}
        typed = get_lines.returns.validate_python(wire_from_guest(guest))
        assert dump_wire(get_lines.returns, typed, schema) == self.LINES

    def test_recursive_types(self) -> None:
        nested = [{**self.LINES[0], "children": self.LINES}]
        adapter_for(get_lines.contract.returns).validate_python(nested)
        assert guest_from_wire(nested, get_lines.contract.returns)[0]["children"][0]["amount"] == Decimal("1.50")

    def test_reading_leaves_the_wire_value_alone_and_knows_unions_tuples_and_what_is_missing(self) -> None:
        pair = {"type": "array", "prefixItems": [{"type": "string", "format": "date"}, {"type": "number"}]}
        schema: dict[str, Any] = {"type": "object", "properties": {
            "pair": {"anyOf": [{"$ref": "#/$defs/Pair"}, {"type": "null"}]}, "text": {"type": "string"},
            "more": {"$ref": "#/$defs/More"}}, "$defs": {"Pair": pair, "More": {
                "type": "object", "properties": {"cost": {"type": "number"}, "next": {"$ref": "#/$defs/More"}}}}}  # fmt: skip
        wire = {"text": "2026-01-02", "more": {"cost": 1, "next": {"cost": 2}}, "pair": ["2026-01-02", 3]}
        before = json.dumps(wire)
        guest = guest_from_wire(wire, schema)
        assert guest == {"text": "2026-01-02", "more": {"cost": 1.0, "next": {"cost": 2.0}}, "pair": (dt.date(2026, 1, 2), 3.0)}
        assert [type(guest["pair"][1]), type(guest["more"]["next"]["cost"])] == [float, float]
        assert json.dumps(wire) == before
        assert guest_from_wire({"pair": None, "text": "x"}, schema) == {"pair": None, "text": "x"}
        with pytest.raises(KeyError):
            guest_from_wire(1, {"$ref": "#/$defs/Gone"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=12,
)  # fmt: skip


class TestGuestValues:
    @given(JSON)
    def test_plain_json_is_unchanged(self, value: Any) -> None:
        assert wire_from_guest(value) == value

    @given(st.lists(st.one_of(st.dates(), st.datetimes(), st.times(), st.decimals(allow_nan=False, allow_infinity=False),
                              st.timedeltas(dt.timedelta(0), dt.timedelta(9999)))))  # fmt: skip
    def test_typed_values_come_back(self, values: list[Any]) -> None:
        adapters = [TypeAdapter(type(v)) for v in values]
        for value, adapter in zip(values, adapters, strict=True):
            schema = schema_of(adapter, "validation")
            assert guest_from_wire(wire_from_guest(value), schema) == value

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), Decimal("NaN"), object(), {"a": {1: 1, "1": 2}}, b"\xff",
                                       lambda: 1])  # fmt: skip
    def test_what_is_not_data_is_an_error(self, value: Any) -> None:
        with pytest.raises(Unserialisable):
            wire_from_guest(value)

    def test_deep_nesting_is_an_error(self) -> None:
        value: Any = []
        for _ in range(500):
            value = [value]
        with pytest.raises(Unserialisable):
            wire_from_guest(value)


class TestSignatures:
    def test_fields_ids_and_validation(self) -> None:
        class Ask(dse.Signature):
            """Answer."""

            question: str = dse.InputField(desc="what")
            limit: int = dse.InputField(default=3)
            answer: Line = dse.OutputField(sensitive=True)
            tools = [get_lines]

        spec = Ask.spec()
        assert (
            list(spec.inputs) == ["question", "limit"]
            and list(spec.outputs) == ["answer"]
            and spec.tool_names == ("get_lines",)
        )
        assert spec.validate_inputs({"question": "x"}) == {"question": "x", "limit": 3}
        assert spec.sensitive == {"answer"}
        with pytest.raises(dse.DseError, match="question: Field required; q: Extra"):
            spec.validate_inputs({"q": 1})

        class Changed(dse.Signature):
            """Answer."""

            question: str = dse.InputField(desc="what")
            limit: int = dse.InputField(default=4)
            answer: Line = dse.OutputField(sensitive=True)

        assert Changed.spec().signature_id != spec.signature_id

    @pytest.mark.parametrize("body, word", [
        ("class S(dse.Signature):\n  'd'\n  a: str = dse.InputField()", "at least one"),
        ("class S(dse.Signature):\n  a: str = dse.InputField()\n  b: int = dse.OutputField()", "no instructions"),
        ("class S(dse.Signature):\n  'd'\n  a = dse.InputField()\n  b: int = dse.OutputField()", "no type annotation"),
        ("class S(dse.Signature):\n  'd'\n  a: str = dse.InputField()\n  b: int", "neither input nor output"),
        ("class S(dse.Signature):\n  'd'\n  code: str = dse.InputField()\n  b: int = dse.OutputField()", "reserved"),
        ("class S(dse.Signature):\n  'd'\n  a: str = dse.InputField()\n  b: int = dse.OutputField()\n  tools = [print]", "declared tool"),
        ("class S(dse.Signature):\n  'd'\n  a: str = dse.InputField()\n  b: int = dse.OutputField()\n  tools = None", "not a list"),
        ("class S(dse.Signature):\n  'd'\n  a: str = dse.InputField()\n  b: int = dse.OutputField()\n  tools = get_lines", "not a list"),
        ("class S(dse.Signature):\n  'd'\n  a: int = dse.InputField(default='zz')\n  b: int = dse.OutputField()", "default of S.a does not"),
        ("class S(dse.Signature):\n  'd'\n  a: str = dse.InputField(default=object())\n  b: int = dse.OutputField()", "default of S.a does not"),
        ("class S(dse.Signature):\n  'd'\n  a: float = dse.InputField(default=float('nan'))\n  b: int = dse.OutputField()", "finite"),
        ("class S(dse.Signature):\n  'd'\n  a: object() = dse.InputField()\n  b: int = dse.OutputField()", "type"),
    ])  # fmt: skip
    def test_bad_signatures(self, body: str, word: str) -> None:
        with pytest.raises((SignatureError, TypeError), match=word):
            exec(body, {"dse": dse, "get_lines": get_lines})

    def test_dspy_there_and_back(self) -> None:
        import dspy

        adopted = dse.Signature.from_dspy(
            dspy.Signature("question, context: list[str] -> answer: int", "Do it."), tools=[get_lines]
        )
        spec = adopted.spec()
        assert (
            spec.instructions == "Do it." and spec.outputs["answer"].annotation is int and spec.tool_names == ("get_lines",)
        )
        back = adopted.as_dspy()
        assert list(back.input_fields) == ["question", "context"] and back.instructions == "Do it."
        assert back.output_fields["answer"].annotation is int
