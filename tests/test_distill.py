"""Distilled scripts: written, checked, measured, improved; what the reflection model is shown and what it is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from typing_extensions import TypedDict

import dse
from dse.canonical import digest
from dse.compiler.distill import Distill, memorised
from dse.compiler.distill_prompt import MAX_PROMPT
from dse.compiler.search import Proposal, Proposer
from dse.errors import BudgetExhausted
from dse.evaluation.dataset import Dataset
from dse.testing.scripted import ScriptedModel, call, say
from dse.testing.worlds import PRICES, PlantedWorld
from tests.distilling import Searching, fenced, searching

ASK = r'asked = re.fullmatch(r"How many pieces of ([a-z ]+) are left\?", request)'
DO = r'wanted = re.fullmatch(r"Reserve (\d+) pieces of ([a-z ]+)\. What is left then\?", request)'
GOOD = f"""import re
{ASK}
{DO}
if asked is None and wanted is None:
    abstain("another form")
if asked is not None:
    item = await find_item(asked.group(1))
    submit(left=await get_stock(item["item_id"]))
elif wanted is not None:
    item = await find_item(wanted.group(2))
    submit(left=await reserve(item["item_id"], int(wanted.group(1))))"""
ONLY_ASKED = f"""import re
{ASK}
if asked is None:
    abstain("not a plain question")
else:
    item = await find_item(asked.group(1))
    submit(left=await get_stock(item["item_id"]))"""
BLIND = 'abstain("no idea")'


def distilled(answers: Any, *, world: PlantedWorld | None = None, rows: int = 10, knobs: Any = None, prices: Any = None,
              **task: Any) -> tuple[list[Proposal], Searching]:  # fmt: skip
    world = world or PlantedWorld()

    async def go() -> tuple[list[Proposal], Searching]:
        async with searching(world.task(**task), world.model(), answers, rows=rows, prices=prices) as made:
            return list(await Distill(**(knobs or {})).propose(made.search)), made

    return asyncio.run(go())


def test_it_is_a_proposer() -> None:
    assert isinstance(Distill(), Proposer) and Distill().name == "distill"


def test_a_good_first_script_is_proposed_as_it_is() -> None:
    proposals, made = distilled([fenced(GOOD)])
    (only,) = proposals
    assert (only.plan.mode, only.plan.script, only.prompt) == ("script", GOOD, "distilled")
    assert only.plan.allow == ("find_item", "get_stock", "reserve"), "the tools that it names, and no weather"
    assert set(only.rows) == {row.row_hash for row in made.search.rows}
    assert [run[1:] for run in made.runs] == [(10, 1)] and len(made.prompts) == 1
    assert "10 right, 0 wrong" in only.notes[0]


def test_the_prompt_shows_the_task_its_stubs_rows_and_how_they_were_solved() -> None:
    _, made = distilled([fenced(GOOD)])
    (prompt,) = made.prompts
    assert "Answer a request to a warehouse." in prompt
    assert "async def get_stock(item_id: int) -> int:" in prompt
    assert "def abstain(reason: str" in prompt and "def submit(*, left: int)" in prompt
    assert all(row.request in prompt and f'"left": {row.left}' in prompt for row in made.search.rows)
    solved = next(r for r in made.search.records if r.candidate.startswith("code") and r.score == 1)
    script = next(entry["code"] for entry in solved.journal if entry["kind"] == "feed")
    assert script in prompt, "a verified script"
    assert "get_weather(" in prompt and "find_item(name=" in prompt, "samples of results"
    assert not any(row.id in prompt for row in made.search.rows)


def test_a_script_that_does_not_pass_the_check_goes_back_without_rollouts() -> None:
    wrong = GOOD.replace('item["item_id"]', 'item["number"]')
    proposals, made = distilled([fenced(wrong), fenced(GOOD)])
    assert len(proposals) == 1 and proposals[0].plan.script == GOOD
    assert [after for _, _, after in made.runs] == [2], "nothing ran before the second prompt"
    assert wrong in made.prompts[1] and "It was not run" in made.prompts[1]
    assert "number" in made.prompts[1].split("It was not run")[1], "the diagnostic names the key"


def test_what_never_passes_the_check_is_given_up() -> None:
    proposals, made = distilled(lambda prompt: fenced("submit(left='many')"))
    assert (proposals, made.runs, len(made.prompts)) == ([], [], 3)
    assert "no script passed the check" in made.said[-1]


def test_a_wrong_script_is_repaired_from_its_failures() -> None:
    wrong = GOOD.replace("submit(left=await get_stock", "submit(left=1 + await get_stock")
    proposals, made = distilled([fenced(wrong), fenced(GOOD)])
    assert proposals[0].plan.script == GOOD and len(made.prompts) == 2
    told = made.prompts[1]
    row = next(row for row in made.search.rows if not row.reserved)
    assert wrong in told and "## Wrong answers" in told and row.request in told
    assert f'Submitted: {{"left": {row.left + 1}}}' in told and f"expected {row.left} left" in told
    assert "get_stock(item_id=" in told.split("## Wrong answers")[1], "the calls of the failed run"


def test_what_a_script_raises_is_told() -> None:
    wrong = GOOD.replace("int(wanted.group(1))", "int(wanted.group(2))")
    _, made = distilled([fenced(wrong), fenced(GOOD)], rows=20)
    assert "## Failures" in made.prompts[1] and "ValueError" in made.prompts[1]


def test_an_attempt_that_is_worth_less_is_dropped_and_the_next_prompt_says_so() -> None:
    worse = GOOD.replace("submit(left=await get_stock(item[\"item_id\"]))", "submit(left=1)")
    world = PlantedWorld({"direct": 0.2, "tool_call": 1.0, "code": 1.0})
    proposals, made = distilled([fenced(ONLY_ASKED), fenced(worse), fenced(GOOD)], world=world)
    assert proposals[0].plan.script == GOOD
    assert ONLY_ASKED in made.prompts[2] and worse in made.prompts[2] and "was dropped" in made.prompts[2]
    assert any("not kept" in line for line in made.said)


def test_the_same_script_again_ends_the_rounds() -> None:
    _, made = distilled(lambda prompt: fenced(ONLY_ASKED), world=PlantedWorld(writes=0.5))
    assert len(made.prompts) == 2 and len(made.runs) == 1


def test_memorised_rows_are_refused() -> None:
    rows = PlantedWorld().dataset().split("search")
    table = "answers = {" + ", ".join(f"{row.request!r}: {row.left}" for row in rows) + "}\n"
    table += "if request not in answers:\n    abstain()\nelse:\n    submit(left=answers[request])"
    proposals, made = distilled([fenced(table), fenced(GOOD)])
    assert proposals[0].plan.script == GOOD and [after for _, _, after in made.runs] == [2]
    assert "occurs in the input of one example only" in made.prompts[1]


def test_what_counts_as_memorised() -> None:
    rows = [dse.Example(f"row-{n}", {"text": f"please look after the {name} in hall {n}"}, {"x": n})
            for n, name in enumerate(["green lamp", "blue lamp", "old red door"])]  # fmt: skip
    assert memorised('x = "look after the green lamp"', rows)
    assert memorised('x = f"look after the green lamp {1}"', rows)
    assert memorised("x = 'row-1'", rows) == ["line 1: 'row-1' is the id of a row"]
    assert not memorised('x = "please look after the "', rows), "in all of them"
    assert not memorised('x = "blue lamp"', rows), "short texts are how rules read"
    assert not memorised('"look after the green lamp"\nx = 1  # look after the green lamp', rows), "comments"
    assert not memorised('x = "look after the green lamp"', rows, "You look after the green lamp."), "known to all"
    assert not memorised("x = (", rows)


@pytest.mark.parametrize("code", [
    '"look after " + "the green lamp"', 'y + "look after" + " the green" + " lamp" + y', '("look " + "after ") + ("the " + "green lamp")',
    '"look after " "the green lamp"', '"look %s the %s lamp" % ("after", "green")', '"look after the %s" % "green lamp"',
    '"look after the {} {}".format("green", "lamp")', '"look after {what}".format(what="the green lamp")',
    '" ".join(["look", "after", "the", "green", "lamp"])', '"".join(("look after ", "the green lamp"))',
    """f"look after {'the green'} lamp\"""", """f"{y} look after {'the ' + 'green'} lamp {y}\"""",
    '" ".join(["look after", "the {} lamp".format("gre" + "en")]) + y', '{y: ["look after the " + "green lamp"]}',
])  # fmt: skip
def test_what_is_put_together_from_constants_counts_as_memorised(code: str) -> None:
    rows = [dse.Example(f"row-{n}", {"text": f"please look after the {name} in hall {n}"}, {"x": n})
            for n, name in enumerate(["green lamp", "blue lamp", "old red door"])]  # fmt: skip
    (line, *more) = memorised(f"y = 1\nx = {code}", rows)
    assert line.startswith("line 2: ") and "occurs in the input of one example only" in line and not more
    assert not memorised(f"y = 1\nx = {code}".replace("gre", "yel"), rows)


@pytest.mark.parametrize("code", [
    '"%1000000000d" % 1', '"%*d" % (1000000000, 1)', '"{:1000000000}".format(1)', '"{:{}}".format(1, 1000000000)', '"%d" % "a"',
    '"{3}".format("a")', '"".join([1])', '"{0}" * 5', '("{0}" * 9).format("a")', '"{}".format(*y)', '"{a}".format(**y)',
    '" + ".join("ab")', f'"{"{0}" * 20_000}".format("{"a" * 20_000}")', " + ".join(['"a"'] * 3_000), "'a' + 1", "f'{1:1000000000}'",
])  # fmt: skip
def test_expressions_that_are_not_worth_computing_are_left_alone(code: str) -> None:
    assert memorised(f"y = []\nx = {code}", [dse.Example("r", {"text": "please look after the green lamp"}, {"x": 1})]) == []


def test_an_abstaining_script_becomes_the_first_stage_of_a_cascade() -> None:
    """Better than the script, which answers half of the rows, and than tool calls, which cost."""
    world = PlantedWorld({"direct": 0.0, "tool_call": 0.9, "code": 0.0}, writes=0.5)
    objective = dse.Objective(cost_weight=100.0)

    async def go() -> None:
        task = world.task(objective=objective, modes=("tool_call",))
        async with searching(task, world.model(), lambda prompt: fenced(ONLY_ASKED), rows=16, prices=PRICES) as made:
            script, *chains = await Distill().propose(made.search)
            chain = next(p for p in chains if [stage.mode for stage in p.plan.stages] == ["script", "tool_call"])
            baseline = made.search.pool["tool_call/all/seed"].plan
            alone = [await made.utility(script.plan), await made.utility(baseline)]
            together = await made.utility(chain.plan)
            assert together > max(alone) + 0.05
            handed = sum(row.request.startswith("Reserve") for row in made.search.rows)
            assert f"hands over {handed} of 16 search rows" in chain.notes[0]
            assert set(chain.rows) == set(script.rows)

    asyncio.run(go())


LATE = f"""import re
{DO}
if wanted is None:
    abstain("no reservation")
else:
    item = await find_item(wanted.group(2))
    left = await reserve(item["item_id"], int(wanted.group(1)))
    if left < 0:
        abstain("too late")
    submit(left=left)"""


def test_abstaining_after_a_write_is_refused_before_anything_runs() -> None:
    proposals, made = distilled([fenced(LATE), fenced(GOOD)])
    assert [after for _, _, after in made.runs] == [2]
    assert "could abstain after a write that must not be repeated" in made.prompts[1]
    assert proposals[0].plan.script == GOOD


def test_two_searches_ask_the_same_and_find_the_same() -> None:
    answers = [fenced(ONLY_ASKED), fenced(GOOD.replace("submit(left=await g", "submit(left=1 + await g")), fenced(GOOD)]
    runs = [distilled(answers, world=PlantedWorld(writes=0.5)) for _ in range(2)]
    (one, first), (other, second) = runs
    assert first.prompts == second.prompts and len(first.prompts) == 3
    assert [p.plan.plan_id for p in one] == [p.plan.plan_id for p in other]
    assert [(p.prompt, p.rows, p.notes) for p in one] == [(p.prompt, p.rows, p.notes) for p in other]


def test_candidates_are_written_from_examples_in_another_order() -> None:
    seen: list[str] = []

    def answer(prompt: str) -> str:
        seen.append(prompt)
        return fenced(GOOD if len(seen) == 1 else GOOD + "\n")

    proposals, _ = distilled(answer, knobs={"candidates": 2})
    assert len(seen) == 2 and seen[0] != seen[1] and len(proposals) == 1, "equal scripts are one candidate"


def test_a_script_that_solves_nothing_is_not_proposed() -> None:
    proposals, made = distilled(lambda prompt: fenced(BLIND))
    assert proposals == [] and "not proposed" in made.said[-1]


def test_rows_without_rollouts_of_a_model_serve_as_well() -> None:
    world = PlantedWorld(writes=0.3)

    async def go() -> None:
        async with searching(world.task(), world.model(), [fenced(ONLY_ASKED), fenced(GOOD)], rows=6) as made:
            more = [row for row in world.dataset().split("search") if row not in made.search.rows]
            asked = len(made.evaluator.model.requests)  # type: ignore[union-attr]
            script, *_ = await Distill().propose(replace(made.search, more=more))
            assert [rows for _, rows, _ in made.runs] == [6 + len(more)] * 2 and len(more) > 10
            assert len(made.evaluator.model.requests) == asked  # type: ignore[union-attr]
            assert set(script.rows) == {row.row_hash for row in (*made.search.rows, *more)}
            assert script.plan.script == GOOD and sum(row.request in made.prompts[0] for row in more) == len(more)

    asyncio.run(go())


def test_required_tools_stay() -> None:
    proposals, _ = distilled([fenced(ONLY_ASKED)] * 2, required=("get_weather",))
    assert proposals[0].plan.allow == ("find_item", "get_stock", "get_weather")


def test_an_exhausted_budget_ends_it() -> None:
    def broke(prompt: str) -> str:
        raise BudgetExhausted("The next request could exceed the budget")

    with pytest.raises(BudgetExhausted):
        distilled(broke)


def test_prompts_are_bounded() -> None:
    texts = [f"{n} " + " ".join(digest([n, m])[7:] for m in range(90)) for n in range(40)]
    rows = [{"id": f"r{n}", "text": text, "count": n} for n, text in enumerate(texts)]
    data = Dataset.from_rows(rows, name="long", fields={"text": "input", "count": "label"})

    class Count(dse.Signature):
        """Say the number at the beginning."""

        text: str = dse.InputField()
        count: int = dse.OutputField()

    @dse.metric(revision="1")
    def right(example: Any, prediction: Any, ctx: Any) -> float:
        return float(example.count == prediction.count)

    wrong = "submit(count=len(text))"
    model = ScriptedModel(lambda request: say("[[ ## count ## ]]\n0\n\n[[ ## completed ## ]]"))

    async def go() -> None:
        async with searching(dse.Task(Count, data, right), model, [fenced(wrong), fenced(wrong + "\n")], rows=16) as made:
            assert await Distill().propose(made.search) == []
            assert len(made.prompts) == 2 and all(5_000 < len(prompt) <= MAX_PROMPT for prompt in made.prompts)

    asyncio.run(go())


class Account(TypedDict):
    """An account."""

    iban: str
    balance: float


ACCOUNTS = {f"PIN-{n}{n}7{n}": {"iban": f"XY{n}{n}55501{n}", "balance": 10.0 * n} for n in range(1, 40)}


@dse.tool(effect="read", revision="1", sensitive=["pin", "iban"])
def account(pin: str) -> Account:
    """The account of a PIN."""
    return Account(**ACCOUNTS[pin])


class Balance(dse.Signature):
    """The balance of an account."""

    pin: str = dse.InputField(sensitive=True)
    balance: float = dse.OutputField()
    tools = [account]


def test_sensitive_values_are_in_no_prompt() -> None:
    rows = [{"id": f"r{n}", "pin": pin, "balance": one["balance"]} for n, (pin, one) in enumerate(ACCOUNTS.items())]
    data = Dataset.from_rows(rows, name="accounts", fields={"pin": "input", "balance": "label"})

    @dse.metric(revision="1")
    def right(example: Any, prediction: Any, ctx: Any) -> dse.Score:
        return dse.Score(float(example.balance == prediction.balance), f"for {example.pin}")

    @dse.environment(revision="1")
    def bank(example: Any) -> Any:
        yield dse.World()

    def act(request: Any) -> Any:
        message = request["messages"][1]["content"]
        pin = next(pin for pin in ACCOUNTS if f"{pin}\n" in f"{message}\n")
        if not request["tools"]:
            return say(f"[[ ## code ## ]]\none = await account({pin!r})\nprint(one)\nsubmit(balance=one['balance'])")
        if request["messages"][-1]["role"] == "user":
            return call(("account", {"pin": pin}))
        return call(("submit", {"balance": ACCOUNTS[pin]["balance"]}))

    wrong = ('one = await account(pin)\nif one["balance"] > 150:\n    raise ValueError(one["iban"])\n'
             'if one["balance"] > 100:\n    abstain(f"{pin} is rich")\nsubmit(balance=one["balance"] + 1)')  # fmt: skip
    good = 'one = await account(pin)\nsubmit(balance=one["balance"])'

    async def go() -> None:
        task = dse.Task(Balance, data, right, environment=bank, modes=("tool_call", "code"))
        async with searching(task, ScriptedModel(act), [fenced(wrong), fenced(good)], rows=14) as made:
            assert all(record.score == 1 for record in made.search.records)
            (only,) = await Distill().propose(made.search)
            assert only.plan.script == good
            assert "[redacted]" in made.prompts[0] and "## Wrong answers" in made.prompts[1]
            assert "## Failures" in made.prompts[1] and "## Inputs that it abstains on" in made.prompts[1]
            for prompt in made.prompts:
                assert not [pin for pin, one in ACCOUNTS.items() if pin in prompt or one["iban"] in prompt]

    asyncio.run(go())
