"""Demonstrations: from which runs, across modes, what is shown of them and what is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from searching import Searching
from typing_extensions import TypedDict

import dse
from dse.compiler.prompts import Demonstrations, bootstrap, taught
from dse.compiler.prune import why_not
from dse.compiler.search import Proposal, Proposer
from dse.compiler.teaching import as_script, calls_of, replays
from dse.errors import ContaminatedSplit, UserError
from dse.evaluation.evaluator import Evaluator, RolloutRecord
from dse.plan import Plan
from dse.strategies.base import seed_plan
from dse.testing.scripted import ScriptedModel, call, say
from dse.testing.worlds import NAME, PlantedWorld

WORLD = PlantedWorld({"direct": 0.3, "tool_call": 0.4, "code": 0.9}, clusters=60)
TEACHER = PlantedWorld({"direct": 0.0, "tool_call": 1.0, "code": 0.0}, clusters=60, detours=0.0)


def proposals(world: PlantedWorld, proposer: Demonstrations, **options: Any) -> tuple[Searching, list[Proposal], Any]:
    one = Searching(world, world.model(), ScriptedModel([], "scripted/none"), **options)

    async def run() -> Any:
        search = await one.search()
        return search, list(await proposer.propose(search))

    search, found = asyncio.run(run())
    return one, found, search


# ---- what is proposed -------------------------------------------------------------------------------------


def test_each_mode_gets_its_own_demonstrations_and_those_of_the_other() -> None:
    one, found, search = proposals(WORLD, Demonstrations())
    assert isinstance(Demonstrations(), Proposer)
    assert [(p.plan.mode, p.prompt) for p in found] == [
        ("direct", "demos"), ("tool_call", "demos"), ("tool_call", "taught"), ("code", "demos"), ("code", "taught")]  # fmt: skip
    assert not one.prompts and not one.evaluated, "nothing is asked and nothing run"
    rows = {row.row_hash for row in search.rows}
    solved = {(r.receipt["mode"], r.row_hash) for r in search.records if r.score == 1.0}
    teachers = {"tool_call": "code", "code": "tool_call"}
    for p in found:
        source = p.plan.mode if p.prompt == "demos" else teachers[p.plan.mode]
        assert set(p.rows) <= rows and all((source, row) in solved for row in p.rows), "solved, by whom it is said to be"
        assert len({row for row in p.rows}) == len(p.rows) == 2
    assert found == proposals(WORLD, Demonstrations())[1]


def test_plans_with_demonstrations_are_not_pruned_and_run() -> None:
    _, found, search = proposals(WORLD, Demonstrations())

    async def run() -> list[RolloutRecord]:
        for p in found:
            assert await why_not(search.spec, search.toolbox, p.plan, search.limits) is None
        return await search.evaluate({f"{p.plan.mode}/{p.prompt}": p.plan for p in found}, search.rows[:3], None)

    assert all(record.outcome == "ok" for record in asyncio.run(run()))


def test_what_a_mode_did_not_solve_itself_is_taught_first() -> None:
    _, found, search = proposals(WORLD, Demonstrations())
    plan = next(p for p in found if (p.plan.mode, p.prompt) == ("tool_call", "taught"))
    mine = {r.row_hash for r in search.records if r.receipt["mode"] == "tool_call" and r.score == 1.0}
    assert not set(plan.rows) & mine


def test_without_across_and_for_chosen_modes_only() -> None:
    _, found, _ = proposals(WORLD, Demonstrations(k=1, across=False, modes=("code",)))
    assert [(p.plan.mode, p.prompt, len(p.rows)) for p in found] == [("code", "demos", 1)]
    with pytest.raises(UserError, match="at least one"):
        Demonstrations(k=0)


def test_nothing_solved_nothing_shown() -> None:
    none = PlantedWorld({}, clusters=40)
    assert proposals(none, Demonstrations())[1] == []


def test_a_record_of_another_split_is_refused() -> None:
    one, _, search = proposals(WORLD, Demonstrations())
    stray = replace(search.records[0], row_hash=one.rows_of["select"][0].row_hash)
    with pytest.raises(ContaminatedSplit):
        bootstrap(search.spec, "code", [stray], search.rows, search.lists.minimal)
    with pytest.raises(ContaminatedSplit):
        asyncio.run(taught(search.spec, search.toolbox, "code", [stray], search.rows, search.lists.minimal))


@pytest.mark.parametrize("writes", [0.0, 0.5])
def test_of_runs_that_show_the_same_the_shorter_one_is_taken(writes: float) -> None:
    """A third of the runs is long-winded, a third is shortest and wrong; in every mode, and from one mode to the other."""
    world = PlantedWorld({"tool_call": 1.0, "code": 1.0}, clusters=100, writes=writes, detours=0.0)
    requests = sorted(row["request"] for row in world.rows())
    wrong, long_winded = set(requests[::3]), set(requests[1::3])

    def reply(request: Any) -> Any:
        asked = request["messages"][1]["content"].partition("[[ ## request ## ]]\n")[2].splitlines()[0]
        said = world.reply(request)
        if not request["tools"]:
            if asked in wrong:
                return say("[[ ## code ## ]]\nsubmit(left=-1)")
            begin = said.text.splitlines()[2]
            assert begin.startswith("item = await find_item")
            return say(said.text.replace(begin, f"{begin}\n{begin}")) if asked in long_winded else said
        if asked in wrong:
            return call(("submit", {"left": -1}))
        first = not any(message["role"] == "tool" for message in request["messages"])
        made = [(one.name, one.arguments) for one in said.tool_calls]
        return call(*made, *made) if asked in long_winded and first else said

    one = Searching(world, ScriptedModel(reply, NAME), ScriptedModel([], "scripted/none"), modes=("tool_call", "code"), rows=30)
    search = asyncio.run(one.search())
    found = asyncio.run(Demonstrations().propose(search))
    requests_of = {row.row_hash: row.request for row in search.rows}
    solved = {(r.receipt["mode"], requests_of[r.row_hash]) for r in search.records if r.score == 1.0}
    for mode in ("tool_call", "code"):
        assert {request for m, request in solved if m == mode} == set(requests_of.values()) - wrong
    assert set(requests_of.values()) & wrong and set(requests_of.values()) & long_winded
    assert [(p.plan.mode, p.prompt) for p in found] == [(m, p) for m in ("tool_call", "code") for p in ("demos", "taught")]
    for proposal in found:
        shown = [requests_of[row] for row in proposal.rows]
        assert len(shown) == 2 and not set(shown) & (wrong | long_winded), (proposal.plan.mode, proposal.prompt)
        assert {request.startswith("Reserve") for request in shown} == ({False, True} if writes else {False}), "all tools are shown"


@pytest.mark.parametrize("prompt", ["demos", "taught"])
def test_of_two_runs_of_one_row_the_shorter_one_is_taken_in_any_order(prompt: str) -> None:
    world = PlantedWorld({"tool_call": 1.0, "code": 1.0}, clusters=60, writes=0.0, detours=0.0)
    twice = "item = await find_item(name='{0}')\nitem = await find_item(name='{0}')\nsubmit(left=await get_stock(item_id=item['item_id']))"
    (long, row, task), (short, _, _) = (code_run(code, world) for code in (twice.replace("{0}", "{name}"), twice.split("\n", 1)[1].replace("{0}", "{name}")))
    assert long.score == short.score == 1.0 and long.used_tools == short.used_tools and long.tool_calls == short.tool_calls + 1
    for records in ([long, short], [short, long]):
        if prompt == "demos":
            made = bootstrap(task.spec, "code", records, [row], task.spec.tool_names)
        else:
            made = asyncio.run(taught(task.spec, task.toolbox, "tool_call", records, [row], task.spec.tool_names))
        assert made is not None and str(made[0]).count("find_item") == 1


# ---- from scripts to calls --------------------------------------------------------------------------------


def test_a_script_becomes_the_calls_that_it_made() -> None:
    _, found, search = proposals(WORLD, Demonstrations())
    plan = next(p for p in found if (p.plan.mode, p.prompt) == ("tool_call", "taught"))
    for demo, row in zip(plan.plan.prompts["act"].demos, plan.rows, strict=True):
        record = next(r for r in search.records if r.receipt["mode"] == "code" and r.row_hash == row)
        made = [(c["tool"], c["arguments"]) for c in record.receipt["calls"]]
        shown = [call for one in demo["rounds"] for call in one["calls"]]
        assert [(c["name"], c["arguments"]) for c in shown] == made and demo["outputs"] == record.outputs
        assert len(demo["rounds"]) == len(made), "one after the other, as the script awaited them"


def code_run(code: str, world: PlantedWorld = WORLD, reserved: bool = False) -> tuple[RolloutRecord, Any, Any]:
    task = world.task()
    row = next(r for r in task.load_dataset().split("search") if bool(r.reserved) is reserved)
    name = row.request.split("pieces of ")[1].split(" are")[0].split(".")[0]
    model = ScriptedModel(lambda request: say(f"[[ ## code ## ]]\n```python\n{code.format(name=name, left=row.left)}\n```"), NAME)
    (record,) = asyncio.run(Evaluator(task, model).evaluate({"code": seed_plan(task.spec, "code")}, [row]))
    return record, row, task


def test_calls_made_at_once_are_shown_in_one_round() -> None:
    record, _, _ = code_run("item, told = await asyncio.gather(find_item(name='{name}'), get_weather(city='Oslo'))\n"
                            "submit(left=await get_stock(item_id=item['item_id']))")  # fmt: skip
    groups = calls_of(record)
    assert groups is not None and [[made.name for made in group] for group in groups] == [["find_item", "get_weather"], ["get_stock"]]


@pytest.mark.parametrize("code", [
    "try:\n    await find_item(name='nothing')\nexcept Exception:\n    pass\nsubmit(left={left})",
    "item = await find_item(name='{name}')\nfor _ in range(13):\n    left = await get_stock(item_id=item['item_id'])\nsubmit(left=left)",
    "submit(left={left})",
])  # fmt: skip
def test_runs_with_mistakes_with_very_many_calls_or_with_none_teach_nothing(code: str) -> None:
    record, row, task = code_run(code)
    assert record.score == 1.0
    assert asyncio.run(taught(task.spec, task.toolbox, "tool_call", [record], [row], task.spec.tool_names)) is None


# ---- from calls to scripts --------------------------------------------------------------------------------


def test_calls_become_a_script_that_was_executed() -> None:
    _, found, search = proposals(TEACHER, Demonstrations(), modes=("tool_call", "code"))
    plan = next(p for p in found if (p.plan.mode, p.prompt) == ("code", "taught"))
    scripts = [demo["code"] for demo in plan.plan.prompts["code"].demos]
    assert all("['item_id']" in script and "submit(left=" in script for script in scripts), "values come from where they stood"
    assert {word for script in scripts for word in ("get_stock", "reserve") if word in script} == {"get_stock", "reserve"}, "coverage"
    record = next(r for r in search.records if r.row_hash == plan.rows[0])
    assert not any(str(record.outputs["left"]) in line for line in scripts[0].splitlines() if "submit" in line)


def tool_run() -> tuple[RolloutRecord, Any, Any]:
    task = TEACHER.task()
    row = next(r for r in task.load_dataset().split("search") if not r.reserved)
    (record,) = asyncio.run(Evaluator(task, TEACHER.model()).evaluate({"tool_call": seed_plan(task.spec, "tool_call")}, [row]))
    assert record.score == 1.0
    return record, row, task


def replay(script: str, record: RolloutRecord, row: Any, task: Any) -> bool:
    contracts = {name: task.toolbox[name].contract for name in task.spec.tool_names}
    return asyncio.run(replays(script, record, task.spec, row.inputs, contracts))


def test_a_script_that_does_something_else_is_not_verified() -> None:
    record, row, task = tool_run()
    script = as_script(record, row.inputs)
    assert script is not None and replay(script, record, row, task)
    for wrong in (
        script.replace("['item_id']", "['item_id'] + 1"),  # another argument
        script.replace("submit(left=", "submit(left=1 + "),  # another answer
        script.replace("submit(", "x = dict("),  # no answer
        script.splitlines()[0] + "\nsubmit(left=5)",  # a call too few
        "await get_weather(city='Oslo')\n" + script,  # a call too many
        script.replace("['item_id']", "['itm_id']"),  # does not pass the check
        script + "\nraise ValueError",  # never reached: the answer ends it
    ):
        assert replay(wrong, record, row, task) is wrong.endswith("ValueError"), wrong


def test_an_answer_that_stands_nowhere_makes_no_script() -> None:
    record, row, _ = tool_run()
    assert as_script(replace(record, outputs={"left": 987_654}), row.inputs) is None
    both = [dict(e, result=e["result"] | {"item_id": 5, "shelf": "5"} if isinstance(e.get("result"), dict) else 5) if e["kind"] == "tool_outcome"
            else e for e in record.journal]  # fmt: skip
    assert as_script(replace(record, journal=both, outputs={"left": 5}), row.inputs) is None, "in two places: nobody knows which"


# ---- secrets ----------------------------------------------------------------------------------------------


class Account(TypedDict):
    """An account."""

    number: str
    balance: int


@dse.tool(effect="read", revision="1", sensitive=("number", "pin"))
def open_account(owner: str, pin: str) -> Account:
    """The account of an owner."""
    return {"number": f"DE00{pin}", "balance": 41}


class AskBalance(dse.Signature):
    """Say what is on the account."""

    request: str = dse.InputField()
    balance: int = dse.OutputField()
    tools = [open_account]


@pytest.mark.parametrize("mode", ["code", "tool_call"])
@pytest.mark.parametrize("teacher", ["code", "tool_call"])
def test_no_demonstration_holds_a_sensitive_value(mode: str, teacher: str) -> None:
    """Also one that a script states, and that stands in free text among the inputs."""
    rows = [{"id": str(i), "request": f"I am owner {i}, my pin is 88{i:03}", "balance": 41} for i in range(30)]
    data = dse.Dataset.from_rows(rows, name="accounts", fields={"request": "input", "balance": "label"})
    task = dse.Task(AskBalance, dataset=data, metric=lambda example, prediction, ctx: float(prediction.balance == example.balance))
    row = data.split("search")[0]
    pin = row.request[-5:]

    def reply(request: Any) -> Any:
        if not request["tools"]:
            return say(f"[[ ## code ## ]]\n```python\na = await open_account(owner='me', pin='{pin}')\nsubmit(balance=a['balance'])\n```")
        told = any(m["role"] == "tool" for m in request["messages"])
        return call(("submit", {"balance": 41})) if told else call(("open_account", {"owner": "me", "pin": pin}))

    with pytest.warns(UserWarning, match="live"):
        (record,) = asyncio.run(Evaluator(task, ScriptedModel(reply, NAME)).evaluate({teacher: seed_plan(task.spec, teacher)}, [row]))
    assert record.score == 1.0 and pin in str(record.journal)
    if mode == teacher:
        made = bootstrap(task.spec, mode, [record], [row], task.spec.tool_names)
    else:
        made = asyncio.run(taught(task.spec, task.toolbox, mode, [record], [row], task.spec.tool_names))
    if (mode, teacher) == ("code", "tool_call"):
        assert made is None, "a script with a hole is no script"
    else:
        assert made is not None and pin not in str(made) and "[redacted]" in str(made)
        assert Plan(mode=mode, prompts=made[0], allow=task.spec.tool_names).plan_id
