"""Mistakes of a developer are told before anything runs: which one, and what to write instead."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import dse
from dse.errors import (
    AllowListError,
    ArtifactNotFound,
    ContractError,
    DatasetError,
    InvalidValue,
    MetricError,
    PlanError,
    SignatureError,
    ToolboxError,
    UserError,
)
from dse.evaluation.dataset import Dataset
from dse.evaluation.metric import exact_match
from dse.testing.scripted import ScriptedModel, call, say
from dse.testing.worlds import PRICES, PlantedWorld


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
    (lambda: dse.Plan(mode="direct", prompts={}, alow=["get_titles"]), ("alow", "allow")),
    (lambda: dse.Plan(mode="direct", prompts={}, limits={"tool_cals": 1}), ("limits.tool_cals", "tool_calls")),
    (lambda: dse.Prompt(instructions="Answer.", demo=()), ("demo", "demos")),
    (lambda: dse.Rows(serch=3), ("serch", "search")),
    (lambda: dse.Task(Ask, datset=None, dataset=None, metric=exact_match()), ("datset", "dataset")),
    (lambda: task(limits={"tool_cals": 3}), ("tool_cals", "tool_calls")),
    (lambda: task(limits="tool_calls=3"), ("tool_calls=3", "dse.Limits(")),
    (lambda: task(objective=4), ("4", "dse.Objective(")),
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


@pytest.mark.parametrize("expires", ["1d", dt.timedelta(days=1), -5, 0, True, float("nan"), float("inf")])
def test_the_time_for_a_decision_is_a_number_of_seconds(expires: Any) -> None:
    with pytest.raises(UserError, match="approval_expires_s= is a number of seconds above 0"):
        program(approval_expires_s=expires)
    assert program(approval_expires_s=0.5).approval_expires_s == 0.5


def test_what_is_given_for_something_else() -> None:
    with pytest.raises(UserError, match=r"approve= is a function.*\(got: True\)"):
        program(approve=True)
    for make in (lambda one: dse.Program(one, "direct", lm=ScriptedModel([])),
                 lambda one: dse.load(object(), signature=one),
                 lambda one: dse.Task(one, dataset=None, metric=exact_match())):  # fmt: skip
        with pytest.raises(SignatureError, match=r"task\.signature"):
            make(task())
        with pytest.raises(SignatureError, match=r"derives from dse\.Signature"):
            make(Library)


def task(**options: Any) -> dse.Task:
    return dse.Task(Ask, dataset=dataset(), **{"metric": exact_match(), **options})


def test_what_a_task_is_made_of() -> None:
    assert task(limits={"tool_calls": 3}).limits == dse.Limits(tool_calls=3)
    assert task(objective={"cost_weight": 2.0}).objective == dse.Objective(cost_weight=2.0)
    with pytest.raises(PlanError, match=r"limits name tools.*\(got: get_titels\)"):
        task(limits={"calls_per_tool": {"get_titels": 1}})
    with pytest.raises(UserError, match=r"cost_wieght"):
        task(objective={"cost_wieght": 2.0})
    with pytest.raises(UserError, match=r"environment is a function.*\(got: 'office'\)"):
        task(environment="office")
    with pytest.raises(MetricError, match=r"when it is called.*Write metric=exact_match\(\.\.\.\)"):
        task(metric=exact_match)
    with pytest.raises(MetricError, match="not its name"):
        task(metric="exact_match")


def test_limits_as_a_mapping_hold_in_an_evaluation_and_in_a_compile(tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 0.2, "tool_call": 0.9, "code": 1.0}, clusters=40)
    made = world.task(limits={"model_calls": 7})
    result = dse.compile(made, lm=world.model(), prices=PRICES, registry=tmp_path)
    assert result.artifact.plan.limits == dse.Limits(model_calls=7)
    records = dse.evaluate(made, "direct", lm=world.model(), max_rows=2)
    assert len(records) == 2


def test_what_analysis_looks_at(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no store.*Pass a dse.Store"):
        dse.analysis.runs(tmp_path / "runs.db")
    for _ in range(2):  # also when it was used before
        with pytest.raises(UserError, match="no artifact"):
            dse.analysis.explain(dse.Store(":memory:"))
    with pytest.raises(ArtifactNotFound, match="no registry here"):
        dse.analysis.explain(f"{tmp_path}/nowhere/Ask@champion")


def test_rows_that_say_where_their_mistake_is(tmp_path: Path) -> None:
    words = ["tent", "lamp", "sofa", "book", "coat", "bike", "pen", "shoe", "cup", "hat"]
    rows = [{"question": f"{word} " * 9, "titles": 2} for word in words]
    options: dict[str, Any] = {"name": "ask", "fields": {"question": "input", "titles": "label"}}
    with pytest.raises(DatasetError, match=r"the id of the row.*id_field=None makes ids"):
        Dataset.from_rows(rows, **options)
    path = tmp_path / "asked.csv"
    path.write_text("id;question;titles\n" + "".join(f"{word};{' '.join([word] * 9)};2\n" for word in words))
    with pytest.raises(DatasetError, match=r'several names in it.*id;question;titles.*delimiter=";"'):
        Dataset.from_csv(path, **options)
    Dataset.from_csv(path, delimiter=";", json_fields="titles", **options).check(Ask)
    with pytest.raises(DatasetError, match=r"no argument of this name \(got: json_fields\).*of from_csv"):
        Dataset.from_rows(rows, id_field=None, json_fields=["titles"], **options)
    jsonl = tmp_path / "asked.jsonl"
    jsonl.write_text("".join(f'{{"question": "{" ".join([word] * 9)}", "titles": 2}}\n' for word in words))
    pandas = pytest.importorskip("pandas")
    for read in (lambda **more: Dataset.from_rows(rows, **more), lambda **more: Dataset.from_jsonl(jsonl, **more),
                 lambda **more: Dataset.from_pandas(pandas.DataFrame(rows), **more)):  # fmt: skip
        assert len(read(id_field=None, drop=(), **options)) > 0
        with pytest.raises(DatasetError, match="no row has the field 'reader' that is to be dropped"):
            read(id_field=None, drop=["reader"], **options)


class Price(dse.Signature):
    """Give the price, if there is one."""

    question: str = dse.InputField()
    price: Decimal | None = dse.OutputField()


def test_empty_cells_are_null_where_that_is_said(tmp_path: Path) -> None:
    words = ["tent", "lamp", "sofa", "book", "coat", "bike", "pen", "shoe", "cup", "hat"]
    path = tmp_path / "prices.csv"
    path.write_text("id,question,price\n" + "".join(f"{w},{' '.join([w] * 9)},{'' if w == 'tent' else '1.50'}\n" for w in words))
    options: dict[str, Any] = {"name": "prices", "fields": {"question": "input", "price": "label"}}
    with pytest.raises(DatasetError, match=r"it is empty text.*null_fields="):
        Dataset.from_csv(path, **options).check(Price)
    with pytest.raises(DatasetError, match="no column 'prize'"):
        Dataset.from_csv(path, null_fields=["prize"], **options)
    data = Dataset.from_csv(path, null_fields=["price"], **options)
    data.check(Price)
    found = {row.id: row.price for split in ("search", "select") for row in data.split(split)}
    assert {found[word] for word in found if word != "tent"} == {"1.50"} and found.get("tent") is None


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
