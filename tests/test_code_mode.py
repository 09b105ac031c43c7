"""Mode ``code`` end to end: scripts as models write them, through lint, type check, the sandbox and the dispatcher."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal

import pytest
from pydantic import BaseModel

import dse
from dse.errors import LimitExceeded, OutputInvalid, RunSuspended, ToolFailed
from dse.runtime import sandbox
from dse.testing.scripted import ScriptedModel, say


class Item(BaseModel):
    name: str
    price: Decimal
    day: dt.date


ITEMS = [
    Item(name=n, price=Decimal(p), day=dt.date(2026, 1, d))
    for n, p, d in (("tea", "2.50", 1), ("cup", "7.25", 2), ("pot", "19.90", 3))
]


@dse.tool(effect="read")
async def get_item(index: int) -> Item:
    """One item of the shelf.

    Args:
        index: 0 to 2
    """
    return ITEMS[index]


@dse.tool(effect="read")
def count_items(kind: Literal["all", "cheap"] = "all") -> int:
    """How many items there are."""
    return len(ITEMS) if kind == "all" else 1


@dse.tool(effect="write")
def sell(name: str) -> str:
    """Sell an item."""
    if name == "gone":
        raise ToolFailed("it is sold out")
    return f"sold {name}"


class Shelf(dse.Signature):
    """Answer a question about the shelf."""

    question: str = dse.InputField()
    since: dt.date = dse.InputField(default=dt.date(2026, 1, 1))
    total: Decimal = dse.OutputField()
    names: list[str] = dse.OutputField()
    tools = [get_item, count_items, sell]


def model(*scripts: str) -> ScriptedModel:
    left = iter(scripts)
    return ScriptedModel(lambda request: say(f"[[ ## code ## ]]\n{next(left)}\n\n[[ ## completed ## ]]"))


def program(*scripts: str, **limits: Any) -> dse.Program:
    plan = dse.Program(Shelf, "code", lm=ScriptedModel([])).plan
    return dse.Program(Shelf, plan.model_copy(update={"limits": dse.Limits(**limits)}), lm=model(*scripts))


def kinds(made: dse.Program, **inputs: Any) -> list[dict[str, Any]]:
    return [dict(event) for event in made.stream(question="?", **inputs)]


FINISH = "submit(total=1, names=[])"


class TestIdioms:
    @pytest.mark.parametrize("script, names", [
        ("items = await asyncio.gather(*[get_item(i) for i in range(await count_items())])\n"
         "submit(total=sum(i['price'] for i in items), names=[i['name'] for i in items])", ["tea", "cup", "pot"]),
        ("import asyncio\nasync def main():\n    item = await get_item(index=1)\n    submit(total=item['price'], names=[item['name']])\n"
         "asyncio.run(main())", ["cup"]),
        ("from statistics import mean\nsubmit(total=mean([1, 2, 3]), names=['m'])", ["m"]),
        ("d = {'a': 3, 'b': 1}\nsubmit(total=1, names=sorted(d, key=d.get))", ["b", "a"]),
        ("d = {'a': 3, 'b': 1}\nsubmit(total=1, names=[max(d, key=d.get)])", ["a"]),
        ("xs = ['x', 'yy']\nsubmit(total=1, names=[next(x for x in xs if len(x) > 1)])", ["yy"]),
        ("xs = ['x']\nsubmit(total=1, names=[next((x for x in xs if len(x) > 1), 'none')])", ["none"]),
        ("d = {'a': 1, 'b': 2}\ndel d['a']\nsubmit(total=1, names=list(d))", ["b"]),
        ("from collections import Counter, defaultdict\nc = Counter('aab')\nd = defaultdict(list)\nd['k'].append('v')\n"
         "submit(total=1, names=[c.most_common(1)[0][0], d['k'][0]])", ["a", "v"]),
        ("if __name__ == '__main__':\n    submit(total=1, names=['main'])", ["main"]),
        ("submit(total=Decimal('1.10') + 1, names=[str(since), question])", ["2026-01-01", "?"]),
        ("out = []\nfor i in range(2):\n    item = await get_item(i)\n    out.append({'name': item['name'], 'n': i})\n"
         "submit(total=1, names=[o['name'] for o in out])", ["tea", "cup"]),
        ("await submit(total=1, names=['awaited'])", ["awaited"]),
    ])  # fmt: skip
    def test_scripts_that_models_write(self, script: str, names: list[str]) -> None:
        made = program(script)(question="?")
        assert made.names == names and isinstance(made.total, Decimal)

    def test_fenced_code_and_missing_markers(self) -> None:
        plan = dse.Program(Shelf, "code", lm=ScriptedModel([])).plan
        text = f"Here is the script:\n```python\n{FINISH}\n```\nDone."
        assert dse.Program(Shelf, plan, lm=ScriptedModel(lambda r: say(text)))(question="?").total == 1

    def test_inheritance_gets_a_hint_before_anything_runs(self) -> None:
        events = kinds(program("class A: pass\nclass B(A): pass\nawait sell('x')", FINISH))
        error = next(e for e in events if e["kind"] == "code_error")
        assert error["stage"] == "check" and error["problems"][0][3], "a hint"
        assert not any(e["kind"] == "tool_intent" for e in events)
        assert events[-1]["kind"] == "result"

    def test_state_persists_and_the_last_value_is_shown(self) -> None:
        requests: list[Any] = []
        left = iter(["x = await count_items()", "submit(total=x, names=[])"])

        def reply(request: Any) -> Any:
            requests.append(request)
            return say(f"[[ ## code ## ]]\n{next(left)}")

        plan = dse.Program(Shelf, "code", lm=ScriptedModel([])).plan
        assert dse.Program(Shelf, plan, lm=ScriptedModel(reply))(question="?").total == 3
        assert "Value of the last line: 3" in requests[1]["messages"][-1]["content"]


class TestErrors:
    def test_types_are_checked_before_anything_runs(self) -> None:
        events = kinds(program("await sell('x')\nawait get_item('one')", "await sel('x')", "sell('x')", FINISH))
        errors = [e for e in events if e["kind"] == "code_error"]
        assert [e["stage"] for e in errors] == ["check"] * 3
        assert not any(e["kind"] == "tool_intent" for e in events)

    def test_a_record_has_class_message_line_and_effects(self) -> None:
        events = kinds(program("r = await sell('tea')\nprint(r)\n{}['k']", FINISH))
        record = next(e for e in events if e["kind"] == "code_error")
        assert (record["class"], record["line"], record["effects"]) == ("KeyError", 3, "completed [sell#1]")
        assert any(e["kind"] == "print" and "sold tea" in e["text"] for e in events)

    def test_tool_faults_can_be_caught(self) -> None:
        script = "try:\n    await get_item(99)\n    got = 'none'\nexcept Exception as e:\n    got = str(e)\nsubmit(total=1, names=[got])"
        assert "get_item failed: IndexError" in program(script)(question="?").names[0]

    def test_separate_budgets(self) -> None:
        bad_check, bad_run = "nope(1)", "1 / 0"
        assert (
            program(bad_check, bad_check, bad_run, bad_run, FINISH, check_errors=2, runtime_errors=2)(question="?").total
            == 1
        )
        with pytest.raises(OutputInvalid):
            program(bad_check, bad_check, FINISH, check_errors=1)(question="?")
        with pytest.raises(OutputInvalid):
            program(bad_run, bad_run, FINISH, runtime_errors=1)(question="?")
        with pytest.raises(OutputInvalid):
            program(*["submit(total=json.loads('\"x\"'), names=[])"] * 4, FINISH, repairs=1)(question="?")

    def test_invalid_submission_is_explained(self) -> None:
        events = kinds(program("submit(total=json.loads('\"x\"'), names=[])", FINISH))
        assert "total" in next(e for e in events if e["kind"] == "repair")["problem"]

    def test_rounds_end_without_a_submission(self) -> None:
        with pytest.raises(LimitExceeded, match="model_calls") as caught:
            program("x = 1", "x = 2", model_calls=2)(question="?")
        assert caught.value.details["receipt"]["outcome"] == "failed"

    def test_tools_outside_the_allow_list_fail_closed(self) -> None:
        events = kinds(program("await sell('a')", FINISH).narrowed(allow=["get_item"]))
        assert any(e["kind"] == "code_error" for e in events) and events[-1]["kind"] == "result"
        assert not any(e["kind"] == "tool_intent" for e in events)

    def test_approval_inside_a_script(self) -> None:
        @dse.tool(effect="write", approval="always")
        def pay(amount: int) -> str:
            """Pay."""
            return "paid"

        class Pay(dse.Signature):
            """Pay."""

            q: str = dse.InputField()
            out: str = dse.OutputField()
            tools = [pay]

        script = "try:\n    r = await pay(5)\nexcept PermissionError as e:\n    r = str(e)\nsubmit(out=r)"
        assert (
            dse.Program(Pay, "code", lm=model(script), approve=lambda r: r.arguments == {"amount": 5})(q="x").out == "paid"
        )
        assert (
            "denied: too much"
            in dse.Program(Pay, "code", lm=model(script), approve=lambda r: (False, "too much"))(q="x").out
        )
        with pytest.raises(RunSuspended) as caught:
            dse.Program(Pay, "code", lm=model(script))(q="x")
        assert caught.value.details["pending"][0]["arguments"] == {"amount": 5}


class TestLimits:
    @pytest.mark.parametrize("script, limits, name", [
        ("while True: pass", {"interpreter_s": 0.3}, "interpreter_s"),
        ("x = 'a' * 200_000_000", {"memory_bytes": 32 * 2**20}, "memory_bytes"),
        ("for i in range(50):\n    await get_item(0)", {"suspensions": 20}, "suspensions"),
    ])  # fmt: skip
    def test_limits_of_the_interpreter(self, script: str, limits: dict[str, Any], name: str) -> None:
        events = kinds(program(script, FINISH, **limits))
        assert any(e["kind"] == "code_error" and e["stage"] == "run" for e in events) and events[-1]["kind"] == "result"
        with pytest.raises(LimitExceeded) as caught:
            program(script, FINISH, outcomes={name: "abort"}, **limits)(question="?")
        assert caught.value.details["limit"] == name

    def test_recursion(self) -> None:
        script = "def f(n):\n    return f(n + 1)\nf(0)"
        events = kinds(program(script, FINISH, recursion=50))
        assert next(e for e in events if e["kind"] == "code_error")["class"] == "RecursionError"

    def test_retry_starts_again_only_while_effects_allow_it(self) -> None:
        loop = "while True: pass"
        limits = {"interpreter_s": 0.2, "outcomes": {"interpreter_s": "retry"}}
        made = program(loop, FINISH, **limits)(question="?")
        assert made.receipt["attempts"] == 2
        with pytest.raises(LimitExceeded) as caught:
            program(f"await sell('tea')\n{loop}", FINISH, **limits)(question="?")
        assert caught.value.details["outcome"] == "fail_step" and caught.value.details["effects"] == "completed [sell#1]"

    def test_prints_are_cut_not_fatal(self) -> None:
        events = kinds(program("for i in range(20000): print('x' * 50)", FINISH, print_bytes=1000))
        assert sum(len(e["text"]) for e in events if e["kind"] == "print") < 2500 and events[-1]["kind"] == "result"

    def test_tool_calls_end_the_run(self) -> None:
        with pytest.raises(LimitExceeded) as caught:
            program("await asyncio.gather(*[get_item(0) for _ in range(5)])", FINISH, tool_calls=3)(question="?")
        assert caught.value.details["limit"] == "tool_calls"


class TestDeterminism:
    SCRIPT = (
        "import random\nasync def both(i):\n    a = await get_item(i % 3)\n    b = await get_item((i + 1) % 3)\n"
        "    print(i, a['name'], b['name'], random.random())\n    return a['name'] + b['name']\n"
        "names = await asyncio.gather(*[both(i) for i in range(9)])\nprint(datetime.datetime.now())\nsubmit(total=1, names=names)"
    )

    def transcript(self, delays: Callable[[], float], seed: int = 7) -> tuple[str, list[str], str]:
        async def slow(call: Any, proceed: Any) -> Any:
            await asyncio.sleep(delays())
            return await proceed(call)

        plan = dse.Program(Shelf, "code", lm=ScriptedModel([])).plan
        made = dse.Program(Shelf, plan, lm=model(self.SCRIPT), middleware=[slow])

        async def go() -> Any:
            run = made.new_run(
                {"question": "?"}, run_id="r", seed=seed, clock=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), evaluation=True
            )
            prediction = await made.execute(run)
            return prediction.receipt["transcript_hash"], prediction.names, "".join(
                e["text"] for e in run.journal.entries if e["kind"] == "print")  # fmt: skip

        from dse.portal import run_sync

        return run_sync(go)

    def test_shuffled_latencies_give_identical_transcripts(self) -> None:
        shuffled = [random.Random(i) for i in range(4)]
        seen = {str(self.transcript(lambda r=r: r.random() / 200)) for r in shuffled}
        assert len(seen) == 1

    def test_the_seed_matters(self) -> None:
        assert self.transcript(lambda: 0.0)[0] != self.transcript(lambda: 0.0, seed=8)[0]


class TestDemos:
    def test_a_clean_first_script_becomes_a_demo(self) -> None:
        made = program(FINISH)
        run = made.new_run({"question": "?"})
        from dse.portal import run_sync

        prediction = run_sync(lambda: made.execute(run))
        demo = made.strategy.demo(run.journal.entries, made.spec, run.wire_inputs, prediction.outputs)
        assert demo is not None and demo["code"]["code"] == FINISH and demo["code"]["question"] == "?"

    def test_a_path_with_mistakes_is_no_demo(self) -> None:
        made = program("nope(1)", FINISH)
        run = made.new_run({"question": "?"})
        from dse.portal import run_sync

        prediction = run_sync(lambda: made.execute(run))
        assert made.strategy.demo(run.journal.entries, made.spec, run.wire_inputs, prediction.outputs) is None


def test_many_runs_at_once() -> None:
    script = (
        "items = await asyncio.gather(*[get_item(i) for i in range(3)])\nsubmit(total=1, names=[i['name'] for i in items])"
    )
    plan = dse.Program(Shelf, "code", lm=ScriptedModel([])).plan
    made = dse.Program(Shelf, plan, lm=ScriptedModel(lambda r: say(f"[[ ## code ## ]]\n{script}")))

    async def go() -> list[Any]:
        return list(await asyncio.gather(*[made.acall(question=str(i)) for i in range(100)]))

    from dse.portal import run_sync

    assert all(p.names == ["tea", "cup", "pot"] for p in run_sync(go))
    assert sandbox.pool() is sandbox.pool()
