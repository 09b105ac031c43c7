"""Prompts by reflective evolution: what is learnt, what is told, what is asked again, and what ends it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from searching import Searching, taught_model

import dse
from dse.compiler import feedback
from dse.compiler.bridge import in_thread
from dse.compiler.evolve import Evolve, accepted, block_of, divided
from dse.compiler.search import Proposal, Proposer, Search
from dse.errors import BudgetExhausted, UserError
from dse.evaluation.dataset import Example
from dse.store.cassette import Cassette, RecordModel, ReplayModel
from dse.store.journal import opened
from dse.testing.scripted import ScriptedModel, call, say
from dse.testing.worlds import NAME, PlantedWorld

POOR = PlantedWorld({"direct": 0.3, "tool_call": 0.3, "code": 0.3}, clusters=80, detours=0.0)
GOOD = replace(POOR, success={"direct": 0.3, "tool_call": 0.95, "code": 0.95})
TAUGHT = "Here is what to change.\n```\nAnswer a request to a warehouse. Count everything twice.\n```"


def searching(model: Any = None, reflection: Any = None, **options: Any) -> Searching:
    return Searching(POOR, model or taught_model(POOR, GOOD, "twice"),
                     reflection or ScriptedModel(lambda request: say(TAUGHT), "scripted/reflection"),
                     modes=options.pop("modes", ("tool_call",)), **options)  # fmt: skip


def propose(one: Searching, proposer: Any, seed: int = 0) -> Sequence[Proposal]:
    async def run() -> Sequence[Proposal]:
        return await proposer.propose(await one.search(seed))

    return asyncio.run(run())


# ---- what comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, predictor", [("tool_call", "act"), ("code", "code")])
def test_better_instructions_are_found_and_proposed(mode: str, predictor: str) -> None:
    one = searching(modes=(mode,))
    found = propose(one, Evolve(rounds=3))
    assert isinstance(Evolve(), Proposer)
    assert [p.prompt for p in found] == ["evolved"] and found[0].rows == ()
    plan = found[0].plan
    assert plan.mode == mode and plan.allow == ("find_item", "get_stock", "reserve"), "the smallest allow-list"
    assert plan.prompts[predictor].instructions == "Answer a request to a warehouse. Count everything twice."
    assert "validation rows" in found[0].notes[0] and any(mode in line for line in one.said)


def test_tools_that_were_used_on_unsolved_rows_stay_within_reach() -> None:
    """What is sufficient is known from solved rows only: here `direct` solves them all, and needs no tool."""
    world = PlantedWorld({"direct": 1.0, "tool_call": 0.0}, clusters=60, writes=0.3, detours=0.0)
    better = replace(world, success={"direct": 1.0, "tool_call": 1.0})
    one = Searching(world, taught_model(world, better, "twice"), ScriptedModel(lambda request: say(TAUGHT), "scripted/reflection"),
                    modes=("direct", "tool_call"))  # fmt: skip
    found = propose(one, Evolve(rounds=2, modes=("tool_call",)))
    assert [p.plan.allow for p in found] == [("find_item", "get_stock", "reserve")]


def test_instructions_that_change_nothing_are_not_proposed() -> None:
    idle = ScriptedModel(lambda request: say("```\nAnswer with care.\n```"), "scripted/reflection")
    assert propose(searching(reflection=idle), Evolve(rounds=3)) == []


@pytest.mark.parametrize("reply, why", [
    ("I would not change a thing.", ""),
    ("```\nCall `async def find_item(name: str)` and count twice.\n```", "stub of 'find_item'"),
    (f"```\n{'count twice ' * 2000}\n```", "characters"),
    ("```\nReply with [[ ## left ## ]], counted twice.\n```", "marker"),
])  # fmt: skip
def test_texts_that_are_no_instructions_are_never_run(reply: str, why: str) -> None:
    one = searching(reflection=ScriptedModel(lambda request: say(reply), "scripted/reflection"))
    assert propose(one, Evolve(rounds=2)) == []
    assert all("twice" not in str(plan.prompts) for plans, _ in one.evaluated for plan in plans.values())
    assert not why or any(why in line for line in one.said)


def test_a_search_with_too_few_rows_proposes_nothing_and_says_so() -> None:
    one = searching(rows=8)
    assert propose(one, Evolve()) == [] and not one.evaluated and "too few" in one.said[0]


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="at least 8"):
        Evolve(minibatch=7)
    with pytest.raises(UserError, match="round"):
        Evolve(rounds=0)


def test_no_more_is_spent_than_was_announced() -> None:
    one = searching(reflection=ScriptedModel(lambda request: say(f"```\nTry {len(request['messages'][0]['content'])}.\n```"),
                                             "scripted/reflection"), modes=("tool_call", "direct"))  # fmt: skip
    proposer = Evolve(rounds=4)
    propose(one, proposer)
    rollouts, reflections = proposer.at_most(24, 2)
    assert sum(len(rows) for _, rows in one.evaluated) <= rollouts and 0 < len(one.prompts) <= reflections == 8


@pytest.mark.skipif("overlays" not in dse.Plan.model_fields, reason="plans of this version have no overlays")
def test_descriptions_of_tools_evolve_on_request() -> None:
    """A model that reads about stock in the description of a tool does better."""

    def reply(request: Any) -> Any:
        told = str([tool["description"] for tool in request["tools"]])
        return (GOOD if "as counted" in told else POOR).reply(request)

    def reflect(request: Any) -> Any:
        asked = request["messages"][0]["content"]
        return say("```\nPieces that are left, as counted.\n```" if "the description of the tool `get_stock`" in asked else "no idea")

    one = searching(ScriptedModel(reply, NAME), ScriptedModel(reflect, "scripted/reflection"))
    (found,) = propose(one, Evolve(rounds=4, overlays=True))
    assert found.plan.overlays == {"get_stock": "Pieces that are left, as counted."}
    assert found.plan.prompts["act"].instructions == "Answer a request to a warehouse."
    assert "Pieces that are left.\n```" in next(p for p in one.prompts if "of the tool `get_stock`" in p)


# ---- how it decides ---------------------------------------------------------------------------------------


def test_a_child_is_taken_by_a_paired_test_on_rows_and_whole_clusters() -> None:
    rows = [str(i) for i in range(8)]
    assert accepted([1, 1, 0, 0, 0, 0, 0, 0], rows) and accepted([1, 1, 1, 1, -1, 0, 0, 0], rows)
    assert not accepted([1, 0, 0, 0, 0, 0, 0, 0], rows), "strictly better is not enough"
    assert not accepted([1, 1, 1, -1, 0, 0, 0, 0], rows) and not accepted([0] * 8, rows)
    assert not accepted([1, 1, 1, 1, 0, 0, 0, 0], ["a"] * 4 + ["b"] * 4), "one cluster won, not four rows"


def test_rows_to_learn_from_and_rows_to_validate_on_share_no_cluster() -> None:
    rows = [Example(f"{c}-{i}", {"request": f"{c} {i}"}, cluster=f"c{c}") for c in range(10) for i in range(3)]
    learn, validate = divided(rows, 12, seed=3)
    assert not {r.cluster for r in learn} & {r.cluster for r in validate} and len(learn) == 12
    assert divided(list(reversed(rows)), 12, seed=3) == (learn, validate) != divided(rows, 12, seed=4)
    same = [Example(str(i), {"request": str(i)}, cluster="all") for i in range(10)]
    assert [len(part) for part in divided(same, 8, seed=0)] == [8, 2]


def test_a_minibatch_holds_no_row_twice_and_no_validation_row() -> None:
    one = searching(reflection=ScriptedModel(lambda r: say("```\nsame as ever\n```"), "scripted/reflection"), rows=21)
    propose(one, Evolve(rounds=5))
    validation, *batches = [rows for _, rows in one.evaluated]
    assert len(validation) == 11 and batches
    for batch in batches:
        assert len(set(batch)) == len(batch) == 8 and not set(batch) & set(validation)


# ---- the same again ---------------------------------------------------------------------------------------


def test_starting_again_asks_nothing_new_and_proposes_the_same(tmp_path: Path) -> None:
    tape = tmp_path / "reflections.jsonl"
    written = iter(range(100))
    fresh = ScriptedModel(lambda request: say(f"```\nAttempt {next(written)}. Count twice.\n```"), "scripted/reflection")
    with opened(tmp_path / "runs.db") as store:
        first = searching(reflection=RecordModel(fresh, tape), store=store, modes=("tool_call", "code"))
        found = propose(first, Evolve(rounds=3))
    asyncio.run(first.reflection.aclose())
    assert found and first.prompts
    with opened(tmp_path / "runs.db") as store:
        again = searching(reflection=ReplayModel(Cassette.open(tape)), store=store, modes=("tool_call", "code"))
        assert propose(again, Evolve(rounds=3)) == found
    assert again.model.requests == [] and again.prompts == first.prompts


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_search_that_was_cut_off_ends_as_the_undisturbed_one(tmp_path: Path, stop_at: int) -> None:
    """The process may die at any point: here the budget is over before one of the requests for rollouts."""
    whole = searching()
    expected = propose(whole, Evolve(rounds=3))
    with opened(tmp_path / "runs.db") as store:
        cut, left = searching(store=store), iter(range(stop_at - 1))

        def spend() -> None:
            if next(left, None) is None:
                raise BudgetExhausted("The budget is over")

        cut.on_evaluate = spend
        with pytest.raises(BudgetExhausted):
            propose(cut, Evolve(rounds=3))
        again = searching(store=store)
        assert propose(again, Evolve(rounds=3)) == expected
    assert again.prompts == whole.prompts
    assert len(cut.model.requests) + len(again.model.requests) == len(whole.model.requests), "nothing is paid for twice"


def test_another_seed_takes_another_path() -> None:
    one, other = searching(), searching()
    propose(one, Evolve(rounds=2), seed=0)
    propose(other, Evolve(rounds=2), seed=1)
    assert one.evaluated[0][1] != other.evaluated[0][1]


# ---- what ends it -----------------------------------------------------------------------------------------


def test_a_budget_that_ends_during_reflection_gets_through_at_once() -> None:
    asked = []

    def reply(request: Any) -> Any:
        asked.append(request)
        raise BudgetExhausted("The budget is over")

    with pytest.raises(BudgetExhausted):
        propose(searching(reflection=ScriptedModel(reply, "scripted/reflection")), Evolve())
    assert len(asked) == 1, "gepa itself would go on and ask again"


def test_cancelling_ends_the_thread_and_what_it_waits_for() -> None:
    ended: list[str] = []
    begun = asyncio.Event()

    async def forever() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.append("waited for")

    def work(bridge: Any) -> None:
        try:
            bridge.call(forever)
        finally:
            ended.append("thread")

    async def run() -> None:
        task = asyncio.create_task(in_thread(work, "test"))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert sorted(ended) == ["thread", "waited for"] and not any(t.name == "dse-test" for t in threading.enumerate())


def test_what_an_optimizer_raises_is_raised() -> None:
    def work(bridge: Any) -> None:
        raise KeyError("its own")

    with pytest.raises(KeyError, match="its own"):
        asyncio.run(in_thread(work, "test"))


# ---- what is told -----------------------------------------------------------------------------------------


def test_the_reflection_model_is_told_what_happened_and_what_was_expected() -> None:
    one = searching(modes=("tool_call",))
    propose(one, Evolve(rounds=1))
    told = one.prompts[0]
    for part in ("Answer a request to a warehouse.", "Output `left`: pieces that are left in the end", "Tool `reserve` (write)",
                 '- find_item({"name": ', "gave {", 'called submit with {"left": ', "Submitted: {", 'Expected: {"left": ',
                 "Feedback: expected", "Score: 0", "Effects: completed [reserve#"):  # fmt: skip
        assert part in told, part
    assert told.index("Score: 0") < told.index("Score: 1"), "the worst first, and one that was solved"
    assert "/" not in told.replace("and/or", ""), "no paths"


def journal_of(mode: str, reply: Any, **options: Any) -> tuple[Any, Any, Any]:
    """A record of one row, its example and the spec."""
    task = POOR.task(**options)
    row = next(r for r in task.load_dataset().split("search") if not r.reserved)
    from dse.evaluation.evaluator import Evaluator
    from dse.strategies.base import seed_plan

    evaluator = Evaluator(task, ScriptedModel(reply, NAME))
    (record,) = asyncio.run(evaluator.evaluate({mode: seed_plan(task.spec, mode)}, [row]))
    return record, row, task.spec


def script(*codes: str) -> ScriptedModel:
    return [say(f"[[ ## code ## ]]\n```python\n{code}\n```") for code in codes]  # type: ignore[return-value]


def test_scripts_are_told_with_diagnostics_hints_and_errors_of_the_guest() -> None:
    told = feedback.described(*journal_of("code", script(
        "submit(left=find_item(name='x'))", "x = await find_item(name=3)", "print('so far')\nx = await find_item(name='no such')",
        "import os\nos.listdir('/')", "1 + 1", "submit(left=7)")))  # fmt: skip
    assert told.count("the script was refused before it ran: line 1") >= 2 and "Hint:" in told
    assert "the script failed: Printed:\nso far" in told and "there is no item called 'no such'" in told
    assert "the script ended without an answer" in told and "```python\nsubmit(left=7)\n```" in told
    assert 'Submitted: {"left": 7}' in told and len(told) <= feedback.MAX_EXAMPLE_CHARS


def test_failures_are_told_with_their_reason() -> None:
    told = feedback.described(*journal_of("tool_call", lambda request: call(("find_item", {"nme": 1}), ("sbmit", "{"))))
    assert "find_item({}) was refused:" in told and "Ended as: LimitExceeded" in told and "Submitted: nothing" in told
    told = feedback.described(*journal_of("tool_call", lambda request: call(("submit", {"left": "many"}))))
    assert "not accepted: left:" in told and "Ended as: OutputInvalid" in told


def test_the_order_in_which_parallel_calls_end_is_not_told() -> None:
    record, row, spec = journal_of("tool_call", POOR.reply)
    calls = [e for e in record.journal if e["kind"] == "tool_outcome"]
    twin = {**calls[0], "call_id": 9, "tool": "get_weather"}
    at = record.journal.index(calls[0])
    one = [*record.journal[:at], twin, *record.journal[at:]]
    other = [*record.journal[: at + 1], twin, *record.journal[at + 1 :]]
    assert one != other
    told = [feedback.described(replace(record, journal=journal), row, spec) for journal in (one, other)]
    assert told[0] == told[1] and "get_weather" in told[0]


def test_host_paths_and_tracebacks_in_feedback_are_left_out() -> None:
    record, row, spec = journal_of("direct", lambda request: say("[[ ## left ## ]]\n1\n\n[[ ## completed ## ]]"))
    text = 'Traceback (most recent call last):\n  File "/home/me/metric.py", line 3, in score\n    boom\nValueError: no /etc/passwd here'
    told = feedback.described(replace(record, feedback=text), row, spec)
    assert "/home/me" not in told and "/etc/passwd" not in told and "ValueError" in told
    assert "by and/or for 3/4" in feedback.described(replace(record, feedback="by and/or for 3/4"), row, spec)


def test_everything_is_bounded() -> None:
    record, row, spec = journal_of("code", script(*[f"print('{'x' * 9000}')\nraise ValueError('{i}')" for i in range(6)]))
    big = replace(record, feedback="y" * 50_000)
    told = feedback.described(big, row, spec)
    assert len(told) <= feedback.MAX_EXAMPLE_CHARS and "Expected:" in told and "Score: 0" in told
    assert len(feedback.chosen([big] * 50)) == feedback.MAX_EXAMPLES


class AskSecret(dse.Signature):
    """Find the owner's code."""

    owner: str = dse.InputField()
    pin: str = dse.InputField(sensitive=True)
    found: str = dse.OutputField()


def test_sensitive_values_are_told_nowhere() -> None:
    rows = [{"id": str(i), "owner": f"owner {i} with 77{i:04}", "pin": f"77{i:04}", "found": "c"} for i in range(40)]
    data = dse.Dataset.from_rows(rows, name="secrets", fields={"owner": "input", "pin": "input", "found": "label"})
    task = dse.Task(AskSecret, dataset=data, metric=lambda example, prediction, ctx: dse.Score(0.0, f"pin {example.pin} is wrong"))
    from dse.evaluation.evaluator import Evaluator
    from dse.strategies.base import seed_plan

    row = data.split("search")[0]
    model = ScriptedModel(lambda request: say(f"[[ ## found ## ]]\nfor {row.pin}\n\n[[ ## completed ## ]]"), NAME)
    (record,) = asyncio.run(Evaluator(task, model).evaluate({"direct": seed_plan(task.spec, "direct")}, [row]))
    told = feedback.described(record, row, task.spec)
    assert row.pin in str(record.journal) and row.pin not in told and told.count("[redacted]") >= 4


# ---- parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply, text", [
    ("```\nDo it.\n```", "Do it."), ("Well:\n```text\nDo it.\nWell.\n```\nDone.", "Do it.\nWell."), ("```Do it well.```", "Do it well."),
    ("nothing", None), ("``` \n ```", None), ("```only begun", None), ("```\na\n```py\nb\n```\nc\n```", "a\n```py\nb\n```\nc"),
])  # fmt: skip
def test_the_text_is_what_stands_between_the_fences(reply: str, text: str | None) -> None:
    assert block_of(reply) == text


def test_a_proposer_of_ones_own_takes_ten_lines() -> None:
    class Shorter:
        name = "shorter"

        async def propose(self, search: Search) -> Sequence[Proposal]:
            text = await search.reflect(f"Say this in five words: {search.spec.instructions}")
            plan = dse.Plan(mode="direct", prompts={"answer": dse.Prompt(instructions=text)}, limits=search.limits)
            scores = [record.score for record in await search.evaluate({"shorter": plan}, search.rows, None)]
            return [Proposal(plan, "shorter")] if any(scores) else []

    one = searching(reflection=ScriptedModel(lambda request: say("Say what is left."), "scripted/reflection"), modes=("direct",))
    found = propose(one, Shorter())
    assert isinstance(Shorter(), Proposer)
    assert found[0].plan.prompts["answer"].instructions == "Say what is left."
