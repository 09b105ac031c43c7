"""Mistakes of a developer are told before anything runs: which one, and what to write instead."""

from __future__ import annotations

from typing import Any

import pytest

import dse
from dse.errors import AllowListError, ContractError, InvalidValue, PlanError, ToolboxError, UserError
from dse.evaluation.dataset import Dataset
from dse.testing.scripted import ScriptedModel, call, say


class Library:
    titles = ("Emma", "Ulysses")


@dse.tool(effect="read")
def get_titles(ctx: dse.ToolContext[Library]) -> list[str]:
    """All titles."""
    return list(ctx.deps.titles)


@dse.tool(effect="read")
def get_hours(ctx: dse.ToolContext[Library | None], day: str) -> str:
    """Opening hours."""
    return "9 to 5"


class Ask(dse.Signature):
    """Answer."""

    question: str = dse.InputField()
    titles: int = dse.OutputField()
    tools = [get_titles, get_hours]


ANSWER = [call(("get_titles", {})), call(("submit", {"titles": 2}))]


def program(mode: str = "tool_call", **options: Any) -> dse.Program:
    return dse.Program(Ask, mode, lm=ScriptedModel(list(ANSWER)), **options)


@pytest.mark.parametrize("make, words", [
    (lambda: dse.Limits(tool_cals=1), ("tool_cals", "tool_calls")),
    (lambda: dse.Limits(tool_calls="many"), ("tool_calls", "many")),
    (lambda: dse.Limits(outcomes={"tokenz": "abort"}), ("tokenz",)),
    (lambda: dse.Approval(), ("exactly one of",)),
    (lambda: dse.Approval(when={"a": {"greater": 1}}), ("greater", "'gt'")),
    (lambda: dse.Rate(calls=0, per_s=1), ("calls", "greater than or equal to 1")),
])  # fmt: skip
def test_declared_values_are_refused_with_a_code(make: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidValue) as caught:
        make()
    text = str(caught.value)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, dse.DseError)
    assert text.startswith("[DSE101] dse.") and "pydantic" not in text and all(word in text for word in words), text


def test_what_is_declared_still_validates_inside_other_models() -> None:
    plan = program().plan
    assert dse.Plan.model_validate(plan.model_dump(mode="json")) == plan
    assert dse.Plan.model_validate_json(plan.model_dump_json()).limits == dse.Limits()


def test_options_of_a_tool() -> None:
    def look(day: str) -> str:
        """Look.

        Args:
            day: of the week
        """
        return day

    with pytest.raises(ContractError, match=r"no such option \(got: timeout\).*timeout_s"):
        dse.tool(effect="read", timeout=5)
    with pytest.raises(ContractError, match="one of pure, read, write"):
        dse.tool(look)
    assert dse.tool(look, effect="read").contract.parameters["properties"]["day"]["description"] == "of the week"
    look.__doc__ = "Look.\n\nArgs:\n    date: of the week"
    with pytest.raises(ContractError, match=r"parameters that it does not have \(got: date\)"):
        dse.tool(look, effect="read")


def test_dependencies_that_a_tool_asks_for_are_given() -> None:
    for mode in ("tool_call", "code"):
        one = program(mode)
        with pytest.raises(ToolboxError, match=r"get_titles takes ToolContext\[Library\], and no deps= were given"):
            one(question="How many?")
        assert one.lm.requests == [], "nothing was asked"
    assert program()(question="How many?", deps=Library()).titles == 2
    assert program(deps=Library())(question="How many?").titles == 2
    without = dse.Program(Ask, program().plan.narrowed(allow=["get_hours"]), lm=ScriptedModel([call(("submit", {"titles": 0}))]))
    assert without(question="None?").titles == 0, "a tool that takes None may have None"


def test_a_bound_implementation_says_itself_what_it_takes() -> None:
    def get_titles() -> list[str]:
        return ["Emma", "Ulysses"]

    toolbox = Ask.spec().toolbox().bind("get_titles", get_titles)
    assert program(toolbox=toolbox)(question="How many?").titles == 2


def test_what_narrows_a_program() -> None:
    one = program(deps=Library())
    with pytest.raises(AllowListError, match=r"a list of names \(got: 'get_titles'\)"):
        one.narrowed(allow="get_titles")
    with pytest.raises(AllowListError, match=r"Not on the allow-list.*\(got: get_titels\)"):
        one.narrowed(allow=["get_titels"])
    with pytest.raises(PlanError, match=r"no such limit \(got: tool_cals\)"):
        one.narrowed(limits={"tool_cals": 2})
    with pytest.raises(PlanError, match="never raised"):
        one.narrowed(limits={"tool_calls": 2000})
    with pytest.raises(UserError, match="middleware= is a list"):
        program(middleware=lambda call, proceed: proceed(call))


def dataset() -> Dataset:
    words = ["tent", "lamp", "sofa", "book", "coat", "bike", "pen", "shoe", "cup", "hat"]
    rows = [{"id": word, "question": f"{word} " * 9, "titles": 2} for word in words]
    return Dataset.from_rows(rows, name="ask", fields={"question": "input", "titles": "label"})


def test_a_task_knows_the_modes_and_evaluates_one_by_its_name() -> None:
    def right(example: Any, prediction: Any, ctx: Any) -> float:
        return float(prediction.titles == example.titles)

    with pytest.raises(PlanError, match=r"modes that there are not \(got: cod\).*code, direct,.* tool_call"):
        dse.Task(Ask, dataset=dataset(), metric=right, modes=["cod"])
    task = dse.Task(Ask, dataset=dataset(), metric=right, limits=dse.Limits(model_calls=1))
    model = ScriptedModel(lambda request: say("[[ ## titles ## ]]\n2"))
    records = dse.evaluate(task, "direct", lm=model, split="select")
    assert records and {record.score for record in records} == {1.0}
    assert {record.candidate for record in records} == {"direct"}
    assert repr(records[0]) == f"<dse.RolloutRecord direct row {records[0].row_id!r}: score 1, ok>"


def test_numbers_of_a_csv_file_are_declared(tmp_path: Any) -> None:
    path = tmp_path / "asked.csv"
    words = ["tent", "lamp", "sofa", "book", "coat", "bike", "pen", "shoe", "cup", "hat"]
    path.write_text("id,question,titles,reader\n" + "".join(f"{w},{' '.join([w] * 9)},2,Ada\n" for w in words))
    options: dict[str, Any] = {"name": "ask", "fields": {"question": "input", "titles": "label"}}
    with pytest.raises(dse.DseError, match=r"drop=\['reader'\]"):
        Dataset.from_csv(path, **options)
    with pytest.raises(dse.DseError, match=r"is text, .*json_fields="):
        Dataset.from_csv(path, drop=["reader"], **options).check(Ask)
    Dataset.from_csv(path, drop=["reader"], json_fields=["titles"], **options).check(Ask)


def test_a_final_period_is_not_doubled() -> None:
    assert str(UserError("Set the key.", remedy="Do it.")) == "[DSE100] Set the key. Do it."
    assert str(UserError("Set the key.")) == "[DSE100] Set the key."
