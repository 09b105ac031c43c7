"""Conditions of approvals: what they are compared with, in which form, and what is refused or asks."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, Field

import dse
from dse.contracts.tool import ToolContract
from dse.errors import ContractError
from dse.strategies.base import seed_plan
from dse.testing import ScriptedModel, call


def deciding(annotation: Any, conditions: dict[str, Any]) -> Any:
    """A tool that takes a value of that type, and needs a decision under these conditions."""

    def act(value: Any) -> int:
        """Act."""
        return 1

    act.__annotations__ = {"value": annotation, "return": int}
    return dse.tool(act, effect="write", approval=dse.Approval(when={"value": conditions}))


def asks(tool: Any, *values: Any, toolbox: dse.Toolbox | None = None) -> list[bool]:
    """For each value: is anybody asked before the tool runs?"""
    task = type("Ask", (dse.Signature,), {
        "__doc__": "Answer.", "__annotations__": {"question": str, "answer": str}, "tools": [tool],
        "question": dse.InputField(), "answer": dse.OutputField()})  # fmt: skip
    asked = []
    for value in values:
        seen: list[Any] = []
        model = ScriptedModel([call(("act", {"value": value})), call(("submit", {"answer": "x"}))])
        program = dse.Program(task, seed_plan(task.spec(), "tool_call"), lm=model, toolbox=toolbox,
                              approve=lambda request, seen=seen: bool(seen.append(request)) or True)  # fmt: skip
        assert [one["outcome"] for one in program(question="?").receipt["calls"]] == ["ok"]
        asked.append(bool(seen))
    return asked


class Urgency(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Payee(BaseModel):
    name: str
    country: str = "DE"


VIP = uuid.UUID("636b28fd-60e5-4d14-ab08-b2736819110b")
Iban = Annotated[str, AfterValidator(lambda text: text.replace(" ", "").upper())]


@pytest.mark.parametrize(
    ("annotation", "conditions", "given", "asked"),
    [
        (Urgency, {"eq": Urgency.HIGH}, ["low", "high"], [False, True]),
        (Urgency, {"ne": Urgency.LOW}, ["low", "high"], [False, True]),
        (Urgency, {"in": {Urgency.HIGH}}, ["low", "high"], [False, True]),
        (Urgency, {"not_in": (Urgency.LOW,)}, ["low", "high"], [False, True]),
        (Urgency | None, {"eq": Urgency.HIGH}, [None, "low", "high"], [False, False, True]),
        (Colour, {"eq": Colour.RED}, ["red", "blue"], [True, False]),
        (Level, {"ge": Level.HIGH}, [1, 2], [False, True]),
        (Level, {"in": [Level.HIGH]}, [1, 2], [False, True]),
        (Literal["a", "b"], {"eq": "b"}, ["a", "b"], [False, True]),
        (list[Urgency], {"eq": (Urgency.HIGH,)}, [["low"], ["high"]], [False, True]),
        (uuid.UUID, {"eq": VIP}, [str(VIP), str(VIP)[::-1].replace("-", "")], [True, False]),
        (uuid.UUID, {"eq": str(VIP).upper()}, [str(VIP)], [True]),
        (uuid.UUID, {"not_in": [VIP]}, [str(VIP)], [False]),
        (Path, {"eq": Path("/etc")}, ["/etc", "/etc/", "/tmp"], [True, True, False]),
        (int, {"eq": "7"}, [7, 8], [True, False]),
        (int, {"gt": "7"}, [7, 8], [False, True]),
        (int, {"gt": 7.5}, [7, 8], [False, True]),
        (int | None, {"eq": None}, [None, 0], [True, False]),
        (int | None, {"gt": 5}, [None, 4, 6], [True, False, True]),
        (Annotated[int, Field(gt=0)], {"gt": 0}, [1], [True]),
        (list[str], {"eq": ("a",)}, [["a"], ["b"]], [True, False]),
        (set[str], {"eq": {"b", "a"}}, [["a", "b"], ["a"]], [True, False]),
        (Iban, {"in": ["de89 3704"]}, ["DE893704", "de 89 3704", "DE89"], [True, True, False]),
        (Payee, {"eq": Payee(name="Ann")}, [{"name": "Ann"}, {"name": "Bo"}], [True, False]),
        (Payee, {"eq": {"name": "Ann"}}, [{"name": "Ann", "country": "DE"}, {"name": "Ann", "country": "FR"}], [True, False]),
        (Decimal, {"ge": Decimal("0.1")}, ["0.1", "0.09", "1"], [True, False, True]),
        (Decimal, {"ge": 0.1}, ["0.1", "0.09", "1"], [True, False, True]),
        (Decimal, {"eq": 5}, ["5.00", "5.01"], [True, False]),
        (Decimal | None, {"lt": Decimal("1.5")}, ["1.4", "1.5", None], [True, False, True]),
        (dt.date, {"gt": dt.date(2026, 1, 31)}, ["2026-01-31", "2026-02-01"], [False, True]),
        (dt.date, {"in": [dt.date(2026, 1, 31)]}, ["2026-01-31", "2026-02-01"], [True, False]),
        (dt.datetime, {"eq": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)},
         ["2026-01-01T00:00:00Z", "2026-01-01T02:00:00+02:00", "2026-01-02T00:00:00Z"], [True, True, False]),
        (dt.datetime, {"eq": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}, ["2026-01-01T00:00:00"], [True]),  # who knows
        (dt.datetime, {"ne": dt.datetime(2026, 1, 1)}, ["2026-01-01T00:00:00Z"], [True]),
        (dt.timedelta, {"gt": dt.timedelta(hours=1)}, ["PT59M", "PT61M"], [False, True]),
    ],
)  # fmt: skip
def test_conditions_are_values_of_the_parameters_type(annotation: Any, conditions: Any, given: Any, asked: list[bool]) -> None:
    assert asks(deciding(annotation, conditions), *given) == asked


@pytest.mark.parametrize(
    ("annotation", "conditions", "told"),
    [
        (Urgency, {"eq": "urgent"}, "'low' or 'high'"), (Urgency, {"ge": Urgency.LOW}, "order"), (int, {"eq": "seven"}, "integer"),
        (int, {"eq": None}, "integer"), (int, {"eq": 7.5}, "integer"), (int | None, {"gt": None}, "not supported"),
        (Path, {"gt": Path("/a")}, "order"), (int, {"in": 7}, "a list of values"), (str, {"in": "abc"}, "a list of values"),
        (int, {"not_in": [1, "x"]}, "integer"), (dict[str, int], {"gt": {"a": 1}}, "not supported"),
        (dt.date, {"gt": "soon"}, "date"), (Payee, {"eq": {"nam": "Ann"}}, "required"), (float, {"gt": float("nan")}, ""),
    ],
)  # fmt: skip
def test_a_condition_that_cannot_be_compared_is_refused_where_it_is_declared(annotation: Any, conditions: Any, told: str) -> None:
    with pytest.raises(ContractError, match="compares 'value'") as refused:
        deciding(annotation, conditions)
    assert told in str(refused.value)


def test_conditions_that_are_json_stay_as_they_are_written() -> None:
    def act(value: Decimal, day: dt.date, n: int | None = None) -> int:
        """Act."""
        return 1

    when = {"value": {"gt": 100}, "day": {"in": ["2026-01-01"]}, "n": {"ne": None}}
    contract = dse.tool(act, effect="write", approval=dse.Approval(when=when)).contract
    assert contract.approval is not None and contract.approval.when == when
    assert contract.policy_id == "sha256:5b24b2206da1835ff191ee3b18db2448c1415edab2727533e1bf9bd5c6984c9c"
    read = ToolContract.model_validate_json(contract.model_dump_json())
    assert read.policy_id == contract.policy_id and read.conditions == contract.conditions


@pytest.mark.parametrize(
    ("conditions", "asked"),
    [({"eq": "7"}, [True, False]), ({"eq": "x"}, [True, True]), ({"in": 7}, [True, True]), ({"in": [8]}, [False, True])],
)  # fmt: skip
def test_a_contract_as_data_asks_where_a_condition_does_not_fit(conditions: dict[str, Any], asked: list[bool]) -> None:
    def act(value: int) -> int:
        """Act."""
        return value

    tool = dse.tool(act, effect="write")
    data = tool.contract.model_dump(mode="json") | {"approval": {"when": {"value": conditions}}}
    toolbox = dse.Toolbox().bind_contract(ToolContract.model_validate(data), act)
    assert asks(tool, 7, 8, toolbox=toolbox) == asked
