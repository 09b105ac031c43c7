"""Mode direct: values arrive as the model wrote them."""

from __future__ import annotations

import enum
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

import dse
from dse.errors import OutputInvalid
from dse.testing import ScriptedModel, say


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Share(enum.Enum):
    HALF = 0.5
    ALL = 1.0


class Bill(BaseModel):
    total: Decimal
    rate: float


def answer(annotation: Any, text: str) -> Any:
    task = type("Ask", (dse.Signature,), {
        "__doc__": "Answer.", "__annotations__": {"question": str, "answer": annotation, "why": str},
        "question": dse.InputField(), "answer": dse.OutputField(), "why": dse.OutputField()})  # fmt: skip
    reply = say(f"[[ ## answer ## ]]\n{text}\n\n[[ ## why ## ]]\nso\n\n[[ ## completed ## ]]")
    return dse.Program(task, "direct", lm=ScriptedModel([reply] * 3))(question="?").answer


@pytest.mark.parametrize("digits", ["12345678901234567.89", "100000000000000000000.01", "0.12345678901234567890"])
def test_no_digit_of_a_decimal_is_lost(digits: str) -> None:
    assert str(answer(Decimal, digits)) == digits
    assert str(answer(Decimal | None, digits)) == digits
    assert [str(one) for one in answer(list[Decimal], f"[{digits}, 1.5]")] == [digits, "1.5"]
    bill = answer(Bill, f'{{"total": {digits}, "rate": {digits}}}')
    assert (str(bill.total), bill.rate) == (digits, float(digits))


def test_decimals_that_were_read_well_are_the_same() -> None:
    assert [str(answer(Decimal, text)) for text in ("1.50", "5", '"1.50"', "1e3")] == ["1.5", "5", "1.50", "1000.0"]


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [(Level, "2", Level.HIGH), (Level, "HIGH", Level.HIGH), (Share, "0.5", Share.HALF),
     (Share, "ALL", Share.ALL)],
)  # fmt: skip
def test_members_are_found_by_values_that_are_no_text(annotation: Any, text: str, value: Any) -> None:
    assert answer(annotation, text) == value


def test_what_is_no_member_is_refused() -> None:
    with pytest.raises(OutputInvalid, match="3"):
        answer(Level, "3")
