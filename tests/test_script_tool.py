"""Script tools: scripts that a model hands to a tool, whose calls are calls of the run like any other."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dse
from dse.errors import ContractError, LimitExceeded, RunSuspended, ToolboxError, ToolNotAllowed
from dse.runtime import sandbox
from dse.runtime.admission import Admission, Ticket
from dse.testing.scripted import ScriptedModel, call, say

PATIENCE_S = 60  # only how long a hanging test may hang


@dse.tool(effect="pure")
def square(n: int) -> int:
    """n times n."""
    return n * n


@dse.tool(effect="read")
async def price(name: str) -> Decimal:
    """Price of a thing."""
    return {"tea": Decimal("2.50"), "cup": Decimal("7.25")}[name]


@dse.tool(effect="write")
async def sell(name: str) -> str:
    """Sell a thing."""
    return f"sold {name}"


def signature(*tools: Any) -> type[dse.Signature]:
    return type("Ask", (dse.Signature,), {
        "__doc__": "Answer.", "__annotations__": {"question": str, "answer": str}, "tools": list(tools),
        "question": dse.InputField(), "answer": dse.OutputField()})  # fmt: skip


SUBMIT = call(("submit", {"answer": "done"}))


class Ran:
    """One program in tool_call mode that hands scripts to a script tool in one round, and what came of it."""

    def __init__(self, tools: list[Any], *codes: str, inputs: dict[str, Any] | None = None, plan: dict[str, Any] | None = None,
                 others: list[Any] | None = None, script: dict[str, Any] | None = None, **options: Any) -> None:  # fmt: skip
        made = dse.script_tool(tools, **(script or {}))
        self.model = ScriptedModel([
            call(*((made.name, {"code": code, **({"inputs": inputs} if inputs else {})}) for code in codes), *(others or [])),
            SUBMIT])  # fmt: skip
        program = dse.Program(signature(*tools, made), "tool_call", lm=self.model, **options)
        if plan:
            program = program.narrowed(**plan)
        self.prediction = program(question="?")
        self.receipt = self.prediction.receipt
        self.calls = {entry["call_id"]: entry for entry in self.receipt["calls"]}
        answers = [m["content"] for m in self.model.requests[-1]["messages"] if m["role"] == "tool"]
        self.answers = [json.loads(text) if text.startswith("{") else text for text in answers]

    @property
    def answer(self) -> Any:
        return self.answers[0]

    @property
    def message(self) -> str:
        return str(self.answer["error"]["message"])


# --- the contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tools, effect", [([], "pure"), ([square], "pure"), ([square, price], "read"), ([sell, square], "write")]
)
def test_the_effect_is_the_strongest_of_its_tools(tools: list[Any], effect: str) -> None:
    contract = dse.script_tool(tools).contract
    assert (contract.effect, contract.idempotent, contract.concurrency) == (effect, effect != "write", "ordered")
    assert list(contract.parameters["properties"]) == ["code", "inputs"] and contract.parameters["required"] == ["code"]


def test_allow_and_description_choose_the_tools() -> None:
    made = dse.script_tool(dse.Toolbox([square, price, sell]), name="compute", allow=["price"])
    assert (made.name, made.contract.effect) == ("compute", "read")
    assert "parameters: price." in made.contract.description
    assert dse.script_tool([square], description="Run it.").contract.description == "Run it."
    assert dse.script_tool([square]).revision != dse.script_tool([price]).revision


def test_one_exclusive_tool_makes_scripts_exclusive() -> None:
    @dse.tool(effect="read", concurrency="exclusive")
    def alone() -> int:
        """Alone."""
        return 1

    assert dse.script_tool([alone, square]).contract.concurrency == "exclusive"


def test_scripts_do_not_nest() -> None:
    first = dse.script_tool([square])
    for tools, allow in (([square, first], ["run_script"]), ([first], ["run_script"])):
        with pytest.raises(ContractError, match="cannot call a script tool"):
            dse.script_tool(tools, name="other", allow=allow)

    @dse.tool(effect="pure", name="again")
    def again() -> int:
        """Again."""
        return 1

    with pytest.raises(ContractError, match="cannot call a script tool"):
        dse.script_tool([again], name="again")
    assert dse.script_tool(dse.Toolbox([square, first]), name="other").nests.keys() == {"square"}
    with pytest.raises(ToolboxError, match="no such tool"):
        dse.script_tool([square], allow=["cube"])


def test_limits_that_nothing_would_enforce_are_refused() -> None:
    for limits in ({"model_calls": 3}, dse.Limits(tool_calls=3), {"no_such": 1}, {"interpreter_s": -1}):
        with pytest.raises(ContractError):
            dse.script_tool([square], limits=limits)
    contract = dse.script_tool([square], limits={"active_s": 7, "output_bytes": 99}).contract
    assert (contract.timeout_s, contract.max_output_bytes) == (7, 99)


def test_what_its_tools_hide_is_hidden_in_scripts() -> None:
    @dse.tool(effect="read", sensitive=["pin", "return"])
    def balance(pin: str) -> int:
        """Balance."""
        return 7

    assert set(dse.script_tool([balance]).contract.sensitive) == {"code", "inputs", "return"}
    ran = Ran([balance], "await balance(inputs['pin'])", inputs={"pin": "pin-of-9876"})
    assert ran.answer == {"value": 7, "printed": ""}
    assert "pin-of-9876" not in str(ran.receipt) and ran.calls[1]["arguments"] == {"code": "[redacted]", "inputs": "[redacted]"}


# --- what a script can do -----------------------------------------------------------------------------


def test_nested_calls_are_calls_of_the_run() -> None:
    ran = Ran([square, price, sell],
              "a, b = await asyncio.gather(price('tea'), price('cup'))\nprint('found')\nawait sell(inputs['what'])\na + b",
              inputs={"what": "tea"})  # fmt: skip
    assert ran.answer == {"value": "9.75", "printed": "found\n"}
    assert [(c["tool"], c["outcome"], c.get("parent")) for c in ran.receipt["calls"]] == [
        ("run_script", "ok", None), ("price", "ok", 1), ("price", "ok", 1), ("sell", "ok", 1)]  # fmt: skip
    assert ran.receipt["effects"] == "completed [sell#1.3]", "the script itself is no second effect"
    assert ran.receipt["usage"]["calls_per_tool"] == {"price": 2, "run_script": 1, "sell": 1}
    assert ran.receipt["usage"]["interpreter_s"] > 0


def test_the_result_is_json_in_wire_form() -> None:
    ran = Ran([square], "[datetime.date(2026, 1, 2), Decimal('1.10'), {3, 1}, (1, None), {'a': 0.5}]")
    assert ran.answer["value"] == ["2026-01-02", "1.10", [1, 3], [1, None], {"a": 0.5}]
    assert Ran([square], "if False:\n    1").answer["value"] is None
    assert "is not data" in Ran([square], "def f(): return 1\nf").message


def test_a_script_tool_with_code_mode() -> None:
    made = dse.script_tool([square, price])
    script = "r = await run_script('sum([await square(2), await square(inputs[\"n\"])])', {'n': 3})\nsubmit(answer=str(r['value']))"
    model = ScriptedModel([say(f"[[ ## code ## ]]\n{script}")])
    prediction = dse.Program(signature(square, price, made), "code", lm=model)(question="?")
    assert prediction.answer == "13"
    assert [(c["tool"], c.get("parent")) for c in prediction.receipt["calls"]] == [
        ("run_script", None), ("square", 1), ("square", 1)]  # fmt: skip


def test_faults_are_exceptions_in_a_script() -> None:
    code = (
        "out = []\nfor n in ('tea', 'nothing'):\n    try:\n        out.append(str(await price(n)))\n"
        "    except RuntimeError as e:\n        out.append(str(e))\nout"
    )
    value = Ran([price], code).answer["value"]
    assert value[0] == "2.50" and "price failed: KeyError" in value[1]


def test_middleware_sees_scripts_and_their_calls() -> None:
    seen = []

    async def layer(one: Any, proceed: Any) -> Any:
        seen.append(one.name)
        return await proceed(one)

    Ran([square], "await square(2)", middleware=[layer])
    assert seen == ["run_script", "square"]


def test_implementations_are_those_of_the_program() -> None:
    made = dse.script_tool([square])
    model = ScriptedModel([call(("run_script", {"code": "await square(2)"})), SUBMIT])
    toolbox = dse.Toolbox([square, made]).merged({"square": lambda_square})
    dse.Program(signature(square, made), "tool_call", lm=model, toolbox=toolbox)(question="?")
    assert '"value": -4' in model.requests[-1]["messages"][-1]["content"]


def lambda_square(n: int) -> int:
    return -n * n


def test_a_world_may_replace_the_script_tool() -> None:
    made = dse.script_tool([sell])

    def pretend(code: str, inputs: dict[str, Any] = {}) -> dse.runtime.script_tool.ScriptResult:  # noqa: B006
        return dse.runtime.script_tool.ScriptResult(value="pretended", printed="")

    model = ScriptedModel([call(("run_script", {"code": "await sell('tea')"})), SUBMIT])
    toolbox = dse.Toolbox([sell, made]).merged({"run_script": pretend})
    prediction = dse.Program(signature(sell, made), "tool_call", lm=model, toolbox=toolbox)(question="?")
    assert prediction.receipt["effects"] == "completed [run_script#1]", "now it is a write like any other"


# --- the check ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code, word", [
    ("await sell('a')\nawait price(3)", "line 2"),
    ("await sell('a')\nsquare(3)", "line 2"),
    ("await sell('a')\nimport numpy", "numpy"),
    ("await sell('a')\nx = (", "line 2"),
    ("await sell('a')\nawait run_script('1')", "run_script"),
    ("await sell('a')\nsubmit(answer='x')", "submit"),
    ("", "no code"),
])  # fmt: skip
def test_nothing_runs_that_does_not_pass_the_check(code: str, word: str) -> None:
    ran = Ran([square, price, sell], code)
    assert ran.answer["error"]["class"] == "ToolArgumentError"
    assert ran.message.startswith("The script was not run") and word in ran.message
    assert [c["tool"] for c in ran.receipt["calls"]] == ["run_script"] and ran.receipt["effects"] == "none"


def test_what_the_plan_does_not_allow_does_not_exist_in_a_script() -> None:
    ran = Ran([price, sell], "await sell('tea')", plan={"allow": ["price", "run_script"]})
    assert "`sell` is not defined" in ran.message and ran.receipt["effects"] == "none"
    ran = Ran([price, sell], "await sell('tea')", script={"allow": ["price"]}, others=[("sell", {"name": "cup"})])
    assert "`sell` is not defined" in ran.message and ran.receipt["effects"] == "completed [sell#2]"


def test_a_call_past_the_check_is_refused_by_the_dispatcher() -> None:
    refused: list[str] = []

    async def layer(one: Any, proceed: Any) -> Any:
        if one.name == "run_script":
            for name in ("sell", "run_script", "price"):
                with pytest.raises(ToolNotAllowed) as caught:
                    await one.context._caller.call(name, ("tea",))
                refused.append(caught.value.code)
        return await proceed(one)

    ran = Ran([square, price, sell], "await square(3)", script={"allow": ["square", "price"]},
              plan={"allow": ["square", "sell", "run_script"]}, middleware=[layer])  # fmt: skip
    assert refused == ["DSE201"] * 3 and ran.answer["value"] == 9
    assert [(c["tool"], c["outcome"], c["parent"]) for c in ran.receipt["calls"] if "parent" in c] == [
        ("sell", "refused", 1), ("run_script", "refused", 1), ("price", "refused", 1), ("square", "ok", 1)]  # fmt: skip


def test_a_tool_that_is_bound_with_another_interface_cannot_be_called() -> None:
    """Else a script tool declared as reading could write."""

    @dse.tool(effect="read", name="sell")
    async def harmless(name: str) -> str:
        """Sell a thing."""
        return "nothing"

    made = dse.script_tool([harmless])
    model = ScriptedModel([call(("run_script", {"code": "await sell('tea')"})), SUBMIT])
    prediction = dse.Program(signature(sell, made), "tool_call", lm=model)(question="?")
    assert made.contract.effect == "read" and prediction.receipt["effects"] == "none"
    assert "`sell` is not defined" in model.requests[-1]["messages"][-1]["content"]


# --- failures -----------------------------------------------------------------------------------------


def test_an_error_comes_with_class_line_hint_and_effects() -> None:
    ran = Ran([sell], "await sell('tea')\nprint('so far')\n{'a': 1}['b']")
    assert ran.answer["error"]["class"] == "ToolScriptFailed"
    assert ran.message == (
        "The script failed: line 3: KeyError: b. Hint: print the keys that are there, or use .get(). "
        "Effects so far: completed [sell#1.1]."
    )
    assert ran.calls[1]["outcome"] == "fault" and ran.calls[1]["fault"] == "DSE215"
    assert ran.receipt["effects"] == "completed [sell#1.1]"


def test_an_uncaught_fault_of_a_tool_ends_the_script() -> None:
    ran = Ran([price], "await price('nothing')")
    assert "line 1: RuntimeError: price failed: KeyError" in ran.message


def test_limits_of_the_script_fail_the_step() -> None:
    ran = Ran([square], "while True:\n    pass", script={"limits": {"interpreter_s": 0.2}})
    assert "the code ran longer than its time limit" in ran.message
    ran = Ran([square], "for i in range(50):\n    await square(i)", script={"limits": {"suspensions": 20}})
    assert "made more calls than its limit" in ran.message


def test_a_limit_of_the_run_keeps_its_outcome() -> None:
    with pytest.raises(LimitExceeded) as caught:
        Ran(
            [square],
            "while True:\n    pass",
            plan={"limits": {"interpreter_s": 0.2, "outcomes": {"interpreter_s": "abort"}}},
        )
    assert caught.value.details["limit"] == "interpreter_s"
    ran = Ran([square], "while True:\n    pass", script={"limits": {"interpreter_s": 0.2}},
              plan={"limits": {"interpreter_s": 5.0, "outcomes": {"interpreter_s": "abort"}}})  # fmt: skip
    assert "the code ran longer" in ran.message


def test_nested_calls_count_in_the_limits_of_the_run() -> None:
    code = "done = 0\ntry:\n    for i in range(9):\n        await square(i)\n        done += 1\nexcept RuntimeError:\n    pass\ndone"
    with pytest.raises(LimitExceeded) as caught:
        Ran([square], code, plan={"limits": {"tool_calls": 4}})
    assert caught.value.details["limit"] == "tool_calls"
    assert len(caught.value.details["receipt"]["calls"]) == 5, "one script, three calls, and the refused one"
    assert (
        Ran([square], code, plan={"limits": {"tool_calls": 4, "outcomes": {"tool_calls": "fail_step"}}}).answer["value"] == 3
    )
    assert Ran([square], code, plan={"limits": {"calls_per_tool": {"square": 5}}}).answer["value"] == 5


def test_result_and_prints_are_bounded_together() -> None:
    ran = Ran([square], "print('é\"' * 400)\n'v' * 50", script={"limits": {"output_bytes": 300}})
    assert ran.answer["value"] == "v" * 50 and ran.answer["printed"].endswith("[cut]\n")
    assert 280 <= len(json.dumps(ran.answer, ensure_ascii=False, separators=(",", ":")).encode()) <= 300
    ran = Ran([sell], "await sell('tea')\n'v' * 500", script={"limits": {"output_bytes": 300}})
    assert "takes 525 bytes; 300 are allowed" in ran.message and "completed [sell#1.1]" in ran.message
    ran = Ran([square], "print('x' * 9000)", script={"limits": {"print_bytes": 1000}})
    assert len(ran.answer["printed"]) < 1100 and "8001 cut" in ran.answer["printed"]


# --- policies of nested calls -------------------------------------------------------------------------


def test_a_nested_call_needs_its_own_decision() -> None:
    @dse.tool(effect="write", approval=dse.Approval(when={"amount": {"gt": 10}}))
    async def pay(amount: int) -> str:
        """Pay."""
        return "paid"

    code = "out = []\nfor n in (5, 50, 500):\n    try:\n        out.append(await pay(n))\n    except PermissionError as e:\n        out.append(str(e))\nout"
    asked: list[Any] = []

    def approve(request: Any) -> Any:
        asked.append((request.tool, dict(request.arguments)))
        return request.arguments["amount"] < 100 or (False, "too much")

    ran = Ran([pay], code, approve=approve)
    assert ran.answer["value"][:2] == ["paid", "paid"] and "denied: too much" in ran.answer["value"][2]
    assert asked == [("pay", {"amount": 50}), ("pay", {"amount": 500})]
    with pytest.raises(RunSuspended) as caught:
        Ran([pay], code)
    receipt = caught.value.details["receipt"]
    assert caught.value.details["pending"][0]["arguments"] == {"amount": 50}
    assert receipt["outcome"] == "suspended" and receipt["effects"] == "completed [pay#1.1]"


def test_calls_in_flight_settle_when_a_run_is_suspended() -> None:
    go: list[asyncio.Event] = []

    @dse.tool(effect="write", approval="always")
    async def pay(amount: int) -> str:
        """Pay."""
        return "paid"

    @dse.tool(effect="write", concurrency="parallel")
    async def slow(n: int) -> int:
        """Takes a few steps."""
        for _ in range(20):
            await asyncio.sleep(0)
        go.append(asyncio.Event())
        return n

    with pytest.raises(RunSuspended) as caught:
        Ran([pay, slow], "await asyncio.gather(slow(1), pay(3))")
    assert go and caught.value.details["receipt"]["effects"] == "completed [slow#1.1]"


def capture(callers: list[Any]) -> Any:
    async def layer(one: Any, proceed: Any) -> Any:
        if one.context._caller is not None:
            callers.append(one.context._caller)
        return await proceed(one)

    return layer


def test_the_timeout_of_a_script_cancels_its_calls_and_their_effects_are_unknown() -> None:
    callers: list[Any] = []
    ended: list[str] = []

    @dse.tool(effect="write", concurrency="parallel")
    async def stuck(n: int) -> int:
        """Never ends."""
        if n == 2:
            callers[0]._scope.deadline = anyio.current_time()  # the script's time is over now
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(f"cancelled {n}")
            raise
        return n

    ran = Ran([stuck, sell], "await sell('tea')\nawait asyncio.gather(stuck(1), stuck(2))", middleware=[capture(callers)],
              script={"limits": {"active_s": 1000}})  # fmt: skip
    assert sorted(ended) == ["cancelled 1", "cancelled 2"]
    effects = "completed [sell#1.1], unknown [stuck#1.2, stuck#1.3]"
    assert ran.answer["error"] == {"class": "ToolTimeout",
                                   "message": f"run_script did not finish within 1000 s. Effects so far: {effects}."}  # fmt: skip
    assert ran.receipt["effects"] == effects
    assert [ran.calls[i]["outcome"] for i in (1, 1_000_001, 1_000_002, 1_000_003)] == [
        "fault", "ok", "cancelled", "cancelled"]  # fmt: skip


def test_a_cancelled_run_accounts_for_the_calls_of_its_script() -> None:
    started = asyncio.Event

    async def main() -> Any:
        begun = started()

        @dse.tool(effect="write")
        async def stuck() -> int:
            """Never ends."""
            begun.set()
            await asyncio.Event().wait()
            return 1

        made = dse.script_tool([stuck])
        model = ScriptedModel([call(("run_script", {"code": "await stuck()"}))])
        program = dse.Program(signature(stuck, made), "tool_call", lm=model)
        run = program.new_run({"question": "?"})
        task = asyncio.create_task(program.execute(run))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return run

    run = asyncio.run(main())
    assert run.effects.summary() == "unknown [stuck#1.1]"
    assert [receipt["outcome"] for receipt in run.receipts] == ["cancelled", "cancelled"]


def test_time_for_a_decision_is_not_the_scripts_time() -> None:
    callers: list[Any] = []
    deadlines: list[float] = []

    @dse.tool(effect="write", approval="always", concurrency="parallel")
    async def pay(amount: int) -> str:
        """Pay."""
        return "paid"

    async def approve(request: Any) -> bool:
        deadlines.append(callers[0]._scope.deadline)
        await asyncio.sleep(0)
        deadlines.append(callers[0]._scope.deadline)
        return True

    ran = Ran([pay], "before = await asyncio.gather(pay(1), pay(2))\nbefore", approve=approve, middleware=[capture(callers)])
    assert ran.answer["value"] == ["paid", "paid"] and deadlines == [float("inf")] * 4
    assert 0 < callers[0]._scope.deadline < float("inf")


# --- concurrency --------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["parallel", "ordered", "exclusive"])
def test_classes_of_script_and_calls_never_wait_for_each_other_in_a_circle(outer: str) -> None:
    """Two scripts in one round beside plain calls, with nested calls of every class."""
    running: list[str] = []
    wrong: list[Any] = []

    def of(kind: str) -> Any:
        async def work(n: int) -> int:
            if (kind == "exclusive" and running) or "exclusive" in running or (kind == "ordered" and "ordered" in running):
                wrong.append((kind, list(running)))
            running.append(kind)
            for _ in range(n):
                await asyncio.sleep(0)
            running.remove(kind)
            return n

        return dse.tool(work, effect="write", name=f"{kind}_one", description="Work.", concurrency=kind)

    tools = [of(kind) for kind in ("parallel", "ordered", "exclusive")]
    made = dse.script_tool(tools)
    made = dse.Tool(**{**vars(made), "contract": made.contract.model_copy(update={"concurrency": outer})})
    code = "sum(await asyncio.gather(ordered_one(3), parallel_one(2), exclusive_one(2), ordered_one(1), parallel_one(1), exclusive_one(1)))"
    round_ = [("parallel_one", {"n": 9}), ("run_script", {"code": code}), ("ordered_one", {"n": 5}), ("run_script", {"code": code}),
              ("exclusive_one", {"n": 2}), ("parallel_one", {"n": 1}), ("run_script", {"code": code})]  # fmt: skip
    model = ScriptedModel([call(*round_), SUBMIT])
    program = dse.Program(signature(*tools, made), "tool_call", lm=model)

    async def main() -> Any:
        return await asyncio.wait_for(program.acall(question="?"), PATIENCE_S)

    prediction = asyncio.run(main())
    assert not wrong and {c["outcome"] for c in prediction.receipt["calls"]} == {"ok"}
    assert len(prediction.receipt["calls"]) == 7 + 3 * 6


CALL = st.tuples(
    st.sampled_from(["parallel", "ordered", "exclusive"]),
    st.integers(0, 3),  # steps before it may start
    st.integers(0, 3),  # steps it runs
)
TOP = st.tuples(CALL, st.none() | st.lists(st.lists(CALL, min_size=1, max_size=3), min_size=1, max_size=3))


@given(st.lists(TOP, max_size=7), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 15)), max_size=3))
@settings(max_examples=300, deadline=None)
def test_no_mix_of_scripts_and_calls_breaks_the_rules_and_all_finish(top: list[Any], cancels: list[tuple[int, int]]) -> None:
    admission = Admission()
    running: list[str] = []  # calls that are no scripts
    scripts: dict[int, str] = {}

    def check_start(kind: str) -> None:
        assert kind != "exclusive" or not running, "an exclusive call runs alone"
        assert "exclusive" not in running
        assert kind != "ordered" or "ordered" not in running, "ordered calls run one at a time"

    async def leaf(what: Any, parent: Ticket | None) -> None:
        kind, before, steps = what
        ticket = admission.ticket(kind, parent=parent)
        try:
            for _ in range(before):
                await asyncio.sleep(0)
            async with admission.admitted(ticket):
                check_start(kind)
                if parent is None:
                    assert "exclusive" not in scripts.values(), "nothing runs beside an exclusive script"
                    assert kind != "ordered" or "ordered" not in scripts.values()
                running.append(kind)
                try:
                    for _ in range(steps):
                        await asyncio.sleep(0)
                finally:
                    running.remove(kind)
        finally:
            admission.withdraw(ticket)

    async def script(index: int, what: Any, rounds: Any) -> None:
        kind, before, _ = what
        ticket = admission.ticket(kind, nests=True)
        children: list[asyncio.Task[None]] = []
        try:
            for _ in range(before):
                await asyncio.sleep(0)
            async with admission.admitted(ticket):
                assert kind != "exclusive" or (not running and not scripts)
                scripts[index] = kind
                try:
                    for one in rounds:
                        children = [asyncio.create_task(leaf(call, ticket)) for call in one]
                        await asyncio.gather(*children)
                finally:
                    for child in children:
                        child.cancel()
                    while not all(child.done() for child in children):
                        with contextlib.suppress(asyncio.CancelledError):  # a script leaves after its calls
                            await asyncio.wait(children)
                    del scripts[index]
        finally:
            admission.withdraw(ticket)

    async def main() -> None:
        tasks = [asyncio.create_task(leaf(what, None) if rounds is None else script(index, what, rounds))
                 for index, (what, rounds) in enumerate(top)]  # fmt: skip
        for step in range(16):
            for index, when in cancels:
                if when == step and index < len(tasks):
                    tasks[index].cancel()
            await asyncio.sleep(0)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
        broken = [r for r in results if isinstance(r, AssertionError)]
        assert not broken, broken

    asyncio.run(main())
    assert not admission.waiting and not admission.active


@pytest.fixture
def two_workers() -> Iterator[None]:
    sandbox.configure(max_workers=2)
    yield
    sandbox.configure(max_workers=64)


def test_programs_that_hold_all_sessions_can_still_run_scripts(two_workers: None) -> None:
    made = dse.script_tool([square])
    script = "r = await run_script('await square(4)')\nsubmit(answer=str(r['value']))"
    program = dse.Program(
        signature(square, made), "code", lm=ScriptedModel(lambda request: say(f"[[ ## code ## ]]\n{script}"))
    )

    async def main() -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*(program.acall(question=str(i)) for i in range(6))), PATIENCE_S)

    assert [prediction.answer for prediction in asyncio.run(main())] == ["16"] * 6


def test_in_evaluation_latencies_do_not_change_the_path() -> None:
    luck = random.Random()

    @dse.tool(effect="read")
    async def wander(n: int) -> int:
        """Takes as long as it takes."""
        for _ in range(luck.randrange(12)):
            await asyncio.sleep(0)
        return n

    made = dse.script_tool([wander])
    code = "async def two(n):\n    return await wander(n) + await wander(n + 10)\nprint(await asyncio.gather(*[two(i) for i in range(4)]))\nimport random\nrandom.random()"
    both = call(("run_script", {"code": code}), ("wander", {"n": 1}), ("run_script", {"code": code}))
    program = dse.Program(
        signature(wander, made), "tool_call", lm=ScriptedModel(lambda r: SUBMIT if len(r["messages"]) > 3 else both)
    )
    clock = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def once(seed: int) -> str:
        luck.seed(seed)
        run = program.new_run({"question": "?"}, run_id="r", seed=5, clock=clock, evaluation=True)
        return str(asyncio.run(program.execute(run)).receipt["transcript_hash"])

    assert len({once(seed) for seed in range(6)}) == 1
