"""Mode cascade: who takes over, when nobody may, one run with one receipt, and plans that are refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anyio
import dspy
import pytest

import dse
from dse.errors import (
    Abstained,
    InfrastructureError,
    LimitExceeded,
    ModelError,
    ModelUnavailable,
    OutputInvalid,
    PlanError,
    RunFailed,
    RunSuspended,
    ScriptFailed,
    UserError,
)
from dse.evaluation.evaluator import Evaluator
from dse.plan import program_id
from dse.runtime.receipt import check_receipt
from dse.strategies.base import check_plan, needs_model, predictors, seed_plan, strategy
from dse.strategies.script import script_plan
from dse.testing import ScriptedModel, call, say


class Outside:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.keys: list[str] = []


@dse.tool(effect="read")
async def look(ctx: dse.ToolContext[Outside], n: int) -> int:
    """Look."""
    ctx.deps.calls.append(("look", n))
    return n * 10


@dse.tool(effect="write", idempotent=True)
async def book(ctx: dse.ToolContext[Outside], n: int) -> str:
    """Book."""
    ctx.deps.calls.append(("book", n))
    ctx.deps.keys.append(ctx.idempotency_key)
    return f"booked {n}"


@dse.tool(effect="write")
async def pay(ctx: dse.ToolContext[Outside], n: int) -> str:
    """Pay."""
    ctx.deps.calls.append(("pay", n))
    return f"paid {n}"


class Settle(dse.Signature):
    """Settle a matter."""

    n: int = dse.InputField()
    report: str = dse.OutputField()
    tools = [look, book, pay]


SPEC = Settle.spec()
LEAVES = script_plan(SPEC, "if n > 5:\n    abstain(f'{n} is too much')\nsubmit(report=f'script {await look(n)}')")
FAILS = script_plan(SPEC, "a = [await look(n)]\nsubmit(report=str(a[n]))")
ANSWERS = seed_plan(SPEC, "direct")


def direct(text: str = "by the model") -> Any:
    return say(f"[[ ## report ## ]]\n{text}\n\n[[ ## completed ## ]]")


def coded(*scripts: str) -> Any:
    def reply(request: Any) -> Any:
        asked = request["messages"][-1]["content"]
        return say(f"[[ ## code ## ]]\n{scripts[asked.count('Script ')]}\n\n[[ ## completed ## ]]")

    return reply


class Case:
    def __init__(self, plan: dse.Plan, reply: Any = None, **more: Any) -> None:
        self.outside = Outside()
        self.model = ScriptedModel(reply or (lambda request: direct()))
        self.program = dse.Program(Settle, plan, lm=self.model, deps=self.outside, **more)

    def __call__(self, n: int) -> dse.Prediction:
        made = self.program(n=n)
        check_receipt(made.receipt)
        return made

    def fails(self, kind: type[dse.DseError], n: int = 9) -> dict[str, Any]:
        with pytest.raises(kind) as caught:
            self.program(n=n)
        receipt = dict(caught.value.details["receipt"])
        check_receipt(receipt)
        return receipt


def ends(receipt: Any) -> list[tuple[str, str, bool]]:
    return [(stage["mode"], stage["ended"], stage["escalated"]) for stage in receipt["stages"]]


# --- who takes over


def test_what_a_script_leaves_the_next_stage_takes() -> None:
    case = Case(dse.Plan.cascade(LEAVES, ANSWERS))
    own, left = case(2), case(9)
    assert own.report == "script 20" and ends(own.receipt) == [("script", "accepted", False)]
    assert not own.receipt["usage"]["model_calls"]
    assert left.report == "by the model" and left.receipt["usage"]["model_calls"] == 1
    assert ends(left.receipt) == [("script", "abstain", True), ("direct", "accepted", False)]
    first = left.receipt["stages"][0]
    assert (first["number"], first["code"]) == (1, "DSE306") and "9 is too much" in first["reason"]
    assert left.receipt["mode"] == "cascade" and left.receipt["model"] == case.model.name


def test_stages_come_in_the_order_of_the_plan_whatever_their_modes() -> None:
    def reply(request: Any) -> Any:
        text = str(request["messages"])
        if request.get("tools"):
            return call(("submit", {"report": "called"}))
        return say("```python\nsubmit(report=str(await look(n)))\n```") if "top-level await" in text else say("no markers at all")

    quick = dse.Limits(repairs=0)
    script = script_plan(SPEC, "abstain('always')\nsubmit(report='')")
    code, tools = seed_plan(SPEC, "code", ["look"]), seed_plan(SPEC, "tool_call", ["book"])
    for stages, modes in [((script, code, tools), ["script", "code"]), ((ANSWERS, script, tools), ["direct", "script", "tool_call"]),
                          ((ANSWERS, code), ["direct", "code"])]:  # fmt: skip
        made = Case(dse.Plan.cascade(*stages, limits=quick), reply)(1)
        assert [stage["mode"] for stage in made.receipt["stages"]] == modes


@pytest.mark.parametrize(("first", "kind", "error"), [
    (LEAVES, "abstain", Abstained), (FAILS, "exception", ScriptFailed), (ANSWERS, "validation", OutputInvalid),
])  # fmt: skip
def test_the_rule_of_the_plan_decides(first: dse.Plan, kind: str, error: type[RunFailed]) -> None:
    def reply(request: Any) -> Any:
        return call(("submit", {"report": "called"})) if request.get("tools") else say("nothing of use")

    last = seed_plan(SPEC, "tool_call", ["look"])
    others = sorted({"abstain", "exception", "validation"} - {kind})
    assert Case(dse.Plan.cascade(first, last, escalate=[kind]), reply)(9).report == "called"
    receipt = Case(dse.Plan.cascade(first, last, escalate=others), reply).fails(error)
    assert ends(receipt) == [(first.mode, kind, False)]


def test_the_last_stage_has_nobody_after_it() -> None:
    receipt = Case(dse.Plan.cascade(ANSWERS, LEAVES), lambda request: say("nothing of use")).fails(Abstained)
    assert ends(receipt) == [("direct", "validation", True), ("script", "abstain", False)]


def test_a_limit_hands_over_only_where_it_fails_a_step() -> None:
    first = seed_plan(SPEC, "code", ["look"])
    last = script_plan(SPEC, "submit(report=str(n))")
    reply = coded(*["print(1)"] * 5)
    handed = Case(dse.Plan.cascade(first, last, limits=dse.Limits(model_calls=2, outcomes={"model_calls": "fail_step"})), reply)(3)
    assert handed.report == "3" and ends(handed.receipt)[0] == ("code", "exception", True)
    receipt = Case(dse.Plan.cascade(first, last, limits=dse.Limits(model_calls=2)), reply).fails(LimitExceeded)
    assert ends(receipt) == [("code", "stopped", False)] and receipt["limit_outcome"] == "abort"
    again = Case(dse.Plan.cascade(first, last, limits=dse.Limits(model_calls=2, outcomes={"model_calls": "retry"})), reply)
    receipt = again.fails(LimitExceeded)
    assert receipt["attempts"] == 2 and receipt["usage"]["model_calls"] == 4 and len(receipt["stages"]) == 1


def test_time_is_shared_by_the_stages() -> None:
    async def reply(request: Any) -> Any:
        await asyncio.Event().wait()

    limits = dse.Limits(active_s=0.2, outcomes={"active_s": "fail_step"})
    receipt = Case(dse.Plan.cascade(ANSWERS, LEAVES, limits=limits), reply).fails(LimitExceeded)
    assert receipt["limit"] == "active_s" and ends(receipt) == [("direct", "stopped", False)]


def test_what_is_nobodys_fault_never_hands_over(tmp_path: Path) -> None:
    downs = [ModelUnavailable("down"), direct()]
    case = Case(dse.Plan.cascade(ANSWERS, LEAVES), lambda request: downs.pop(0), store=tmp_path / "runs.db")
    receipt = case.fails(InfrastructureError)
    assert receipt["outcome"] == "infrastructure" and ends(receipt) == [("direct", "stopped", False)]
    assert case.program.resume(receipt["run_id"]).report == "by the model"


def test_limits_and_meter_are_those_of_one_run() -> None:
    counted = script_plan(SPEC, "a = [await look(i) for i in range(3)]\nif a:\n    abstain()\nsubmit(report='')")
    after = script_plan(SPEC, "submit(report=str([await look(i) for i in range(3)]))")
    made = Case(dse.Plan.cascade(counted, after))(1)
    assert made.receipt["usage"]["tool_calls"] == 6 and made.receipt["usage"]["calls_per_tool"] == {"look": 6}
    assert [one["call_id"] for one in made.receipt["calls"]] == [1, 2, 3, 4, 5, 6]
    receipt = Case(dse.Plan.cascade(counted, after, limits=dse.Limits(tool_calls=5))).fails(LimitExceeded)
    assert ends(receipt) == [("script", "abstain", True), ("script", "stopped", False)]
    own = dse.Limits(calls_per_tool={"look": 4})
    assert "line 1" in Case(dse.Plan.cascade(counted, after, limits=own)).fails(ScriptFailed)["error"]["what"]


# --- the allow-list of each stage


def test_while_a_stage_runs_its_own_allow_list_holds() -> None:
    """The model of the first stage asks for a tool of the second, and the other way round."""

    def reply(request: Any) -> Any:
        names = [tool["name"] for tool in request["tools"]]
        said = [message for message in request["messages"] if message["role"] == "assistant"]
        if not said:
            return call(("look", {"n": 1}), ("book", {"n": 1}))
        return say("I give up") if "look" in names else call(("submit", {"report": "done"}))

    plan = dse.Plan.cascade(seed_plan(SPEC, "tool_call", ["look"]), seed_plan(SPEC, "tool_call", ["book"]))
    case = Case(plan, reply)
    made = case(1)
    assert plan.allow == ("book", "look") and case.outside.calls == [("look", 1), ("book", 1)]
    assert [(one["tool"], one["outcome"]) for one in made.receipt["calls"]] == [
        ("look", "ok"), ("book", "refused"), ("look", "refused"), ("book", "ok")]  # fmt: skip
    assert {one.get("fault") for one in made.receipt["calls"] if one["outcome"] == "refused"} == {"DSE201"}


# --- effects


WRITES = script_plan(SPEC, "if n > 5:\n    abstain('too much')\na = await pay(n)\nsubmit(report=a)")


def test_writes_that_may_be_repeated_keep_their_keys_in_every_stage() -> None:
    first = script_plan(SPEC, "a = await book(1)\nb = await book(1)\nif a:\n    abstain()\nsubmit(report=b)")
    second = script_plan(SPEC, "a = await book(1)\nb = await book(2)\nsubmit(report=a + b)")
    case = Case(dse.Plan.cascade(first, second))
    made = case(1)
    keys = case.outside.keys
    assert keys[0] == keys[2] and len(set(keys)) == 3, "the same call of another stage is the same call"
    assert made.receipt["effects"] == "completed [book#1, book#2, book#3, book#4]"


def test_nobody_takes_over_after_a_write_that_must_not_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans that could come to it are refused; should one run all the same, the run ends there."""
    late = script_plan(SPEC, "a = await pay(n)\nif n > 5:\n    abstain('too late')\nsubmit(report=a)")
    plan = dse.Plan.cascade(late, ANSWERS, escalate=["abstain"])
    with pytest.raises(PlanError, match="after a write"):
        Case(plan)
    monkeypatch.setattr("dse.strategies.cascade._check_effects", lambda plan, contracts: None)
    case = Case(plan)
    assert case(1).report == "paid 1"
    receipt = case.fails(Abstained)
    assert receipt["limit_outcome"] == "fail_step" and receipt["effects"] == "completed [pay#1]"
    assert "completed [pay#1]" in receipt["error"]["remedy"] and ends(receipt) == [("script", "abstain", False)]
    assert not case.model.requests


def test_a_script_may_write_after_its_last_chance_to_abstain() -> None:
    case = Case(dse.Plan.cascade(WRITES, ANSWERS, escalate=["abstain"]))
    assert case(3).report == "paid 3" and case(9).report == "by the model" and case.outside.calls == [("pay", 3)]
    fails = script_plan(SPEC, "if n > 5:\n    abstain()\na = [await pay(n)]\nsubmit(report=a[n])")
    receipt = Case(dse.Plan.cascade(fails, ANSWERS, escalate=["abstain"])).fails(ScriptFailed, 3)
    assert ends(receipt) == [("script", "exception", False)] and receipt["effects"] == "completed [pay#1]"


@pytest.mark.parametrize(("plan", "said"), [
    (dse.Plan.cascade(WRITES, ANSWERS), "before the last"),
    (dse.Plan.cascade(seed_plan(SPEC, "code"), ANSWERS, escalate=["abstain"]), "before the last"),
    (dse.Plan.cascade(seed_plan(SPEC, "tool_call", ["pay"]), ANSWERS, escalate=["exception"]), "before the last"),
    *((dse.Plan.cascade(script_plan(SPEC, source), ANSWERS, escalate=["abstain"]), "could abstain after") for source in (
        "a = await pay(n)\nabstain()", "while n:\n    await pay(n)\n    abstain()", "for i in range(2):\n    if i:\n        abstain()\n    await pay(i)",
        "def stop() -> None:\n    abstain()\nawait pay(n)\nstop()", "stop = abstain\nawait pay(n)\nstop()",
        "task = asyncio.create_task(pay(n))\nabstain()", "both = [pay, abstain]\nsubmit(report='')",
        "async def buy() -> str:\n    return await pay(n)\nif n:\n    abstain()\nsubmit(report=await buy())",
    )),
])  # fmt: skip
def test_a_plan_that_could_break_the_rule_of_effects_is_refused(plan: dse.Plan, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        check_plan(SPEC, plan)
    assert "pay" in str(caught.value.value)


def test_writes_belong_into_the_last_stage_or_may_be_repeated() -> None:
    check_plan(SPEC, dse.Plan.cascade(LEAVES, seed_plan(SPEC, "code")))
    check_plan(SPEC, dse.Plan.cascade(seed_plan(SPEC, "code", ["book", "look"]), seed_plan(SPEC, "tool_call")))
    stricter = SPEC.toolbox()
    careful = dse.tool(book.fn, name="book", description="Book.", effect="write", idempotent=False)
    with pytest.raises(PlanError, match="before the last"):  # as bound now, it must not be repeated
        Case(dse.Plan.cascade(seed_plan(SPEC, "code", ["book"]), ANSWERS),
             toolbox=dse.Toolbox([stricter["look"], careful, stricter["pay"]]))  # fmt: skip


# --- checks


@dse.check(revision="1")
def plausible(inputs: Any, outputs: Any) -> bool:
    return not outputs["report"].endswith("30") and inputs["n"] < 100


CHECKED = dse.Plan.cascade(LEAVES, ANSWERS, check=plausible)


def test_a_check_of_the_user_hands_over(tmp_path: Path) -> None:
    case = Case(CHECKED, checks=[plausible], store=tmp_path / "runs.db")
    assert CHECKED.knobs == {"escalate": ["abstain", "check", "exception", "validation"],
                             "check": {"name": "plausible", "revision": "1"}}  # fmt: skip
    assert case(2).report == "script 20"
    made = case(3)
    assert made.report == "by the model" and ends(made.receipt)[0] == ("script", "check", True)
    mute = dse.check(lambda inputs, outputs: pytest.fail("an audit asks no check"), name="plausible", revision="1")
    audit = Case(CHECKED, checks=[mute], store=case.program.store)
    assert audit.program.replay(made.receipt["run_id"]).report == "by the model"


def test_a_check_may_wait_and_sees_copies() -> None:
    @dse.check
    async def patient(inputs: Any, outputs: Any) -> bool:
        await asyncio.sleep(0)
        inputs["n"], outputs["report"] = 0, "changed"
        return True

    assert Case(dse.Plan.cascade(LEAVES, ANSWERS, check=patient), checks=[patient])(2).report == "script 20"
    assert patient.revision.startswith("src-")


def test_the_check_that_is_bound_is_the_one_that_the_plan_names() -> None:
    for checks, said in [((), "not given"), ([dse.check(plausible.fn, revision="2")], "another revision"),
                         ([dse.check(plausible.fn, name="other", revision="1")], "not given")]:  # fmt: skip
        with pytest.raises(PlanError, match=said):
            Case(CHECKED, checks=checks)
    with pytest.raises(UserError, match="two positional"):
        dse.check(lambda inputs: True)
    with pytest.raises(UserError, match="one name"):
        Case(CHECKED, checks=[plausible, dse.check(plausible.fn, revision="2")])
    with pytest.raises(UserError, match="declared with @dse"):
        Case(CHECKED, checks=[lambda inputs, outputs: True])


@pytest.mark.parametrize("answer", [1, None, "yes", ValueError("broken")])
def test_a_check_that_gives_no_answer_is_a_mistake(answer: Any) -> None:
    @dse.check(revision="1", name="plausible")
    def odd(inputs: Any, outputs: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    receipt = Case(CHECKED, checks=[odd]).fails(UserError, 2)
    assert receipt["outcome"] == "refused" and ends(receipt) == [("script", "stopped", False)]


# --- plans


@pytest.mark.parametrize(("change", "said"), [
    ({"stages": (LEAVES,)}, "at least two"), ({"allow": ()}, "together"), ({"knobs": {}}, "what hands a run over"),
    ({"knobs": {"escalate": []}}, "what hands a run over"), ({"knobs": {"escalate": ["luck"]}}, "what hands a run over"),
    ({"knobs": {"escalate": ["check"]}}, "names it"), ({"knobs": {"escalate": ["abstain"], "more": 1}}, "no such knobs"),
    ({"knobs": {"escalate": ["abstain"], "check": {"name": "a", "revision": "1"}}}, "names it"),
    ({"knobs": {"escalate": ["check"], "check": {"name": "a"}}}, "name and revision"),
    ({"limits": dse.Limits(tool_calls=3)}, "limits of a cascade"), ({"overlays": {"look": "x"}}, "no model reads"),
    ({"stages": (dse.Plan.cascade(LEAVES, ANSWERS), ANSWERS)}, "is no cascade"), ({"script": "submit()"}, "has no script"),
])  # fmt: skip
def test_what_is_no_cascade_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        check_plan(SPEC, dse.Plan.cascade(LEAVES, ANSWERS).model_copy(update=change))


def test_a_broken_script_in_a_stage_is_refused_before_anything_runs() -> None:
    with pytest.raises(PlanError, match="does not pass the check"):
        Case(dse.Plan.cascade(script_plan(SPEC, "submit(report=1)"), ANSWERS))


def test_a_cascade_needs_a_model_where_a_stage_does() -> None:
    scripts = dse.Plan.cascade(LEAVES, script_plan(SPEC, "submit(report='second')"))
    assert not needs_model(scripts) and needs_model(dse.Plan.cascade(LEAVES, ANSWERS))
    made = dse.Program(Settle, scripts, deps=Outside())
    assert made(n=9).report == "second" and made.program_id == program_id(SPEC, scripts, made.toolbox, "none", {})
    with pytest.raises(ModelError, match="needs a model"):
        dse.Program(Settle, dse.Plan.cascade(LEAVES, ANSWERS), deps=Outside())


def test_narrowing_reaches_every_stage() -> None:
    code = seed_plan(SPEC, "code").model_copy(update={"overlays": {"look": "Finds.", "pay": "Pays."}})._fresh()
    plan = dse.Plan.cascade(LEAVES, code)
    narrow = plan.narrowed(allow=["look"], limits={"tool_calls": 7})
    assert [stage.allow for stage in narrow.stages] == [("look",), ("look",)] and narrow.stages[1].overlays == {"look": "Finds."}
    assert {stage.limits.tool_calls for stage in narrow.stages} == {7} and narrow.stages[1].plan_id != code.plan_id
    check_plan(SPEC, narrow)
    assert dse.Plan.model_validate(plan.model_dump(mode="json")) == plan


# --- prompts and demonstrations live in the stages


def test_prompts_and_predictors_are_named_by_their_stage() -> None:
    plan = dse.Plan.cascade(LEAVES, seed_plan(SPEC, "code", ["look"]), ANSWERS)
    assert set(plan.components) == {"stage2_code", "stage3_answer"} == set(predictors(SPEC, plan))
    other = plan.with_prompts({"stage3_answer": dse.Prompt(instructions="Otherwise.")})
    assert other.stages[2].prompts["answer"].instructions == "Otherwise." and other.stages[:2] == plan.stages[:2]
    assert other.stages[2].plan_id != plan.stages[2].plan_id


def test_the_stage_that_answered_shows_how() -> None:
    plan = dse.Plan.cascade(LEAVES, seed_plan(SPEC, "code", ["look"]))
    case = Case(plan, coded("submit(report=str(await look(n)))"))
    for n, names in [(9, {"stage2_code"}), (2, None)]:
        run = case.program.new_run({"n": n})
        made = asyncio.run(case.program.execute(run, deps=case.outside))
        shown = strategy("cascade").demo(run.journal.entries, SPEC, run.wire_inputs, made.outputs)
        assert (shown if names is None else set(shown or ())) == names
        assert shown is None or "await look(n)" in shown["stage2_code"]["code"]


def test_dspy_drives_the_predictors_of_the_stages() -> None:
    asked: list[str] = []

    def reply(request: Any) -> Any:
        asked.append(request["messages"][0]["content"])
        return direct()

    module = Case(dse.Plan.cascade(LEAVES, ANSWERS), reply).program.as_dspy()
    assert [name for name, _ in module.named_predictors()] == ["stage2_answer"]
    module.stage2_answer.signature = module.stage2_answer.signature.with_instructions("Say it in rhyme.")
    with dspy.context(trace=[]):
        assert module(n=9).report == "by the model"
    assert "Say it in rhyme." in asked[0]


# --- kept runs


def test_a_run_goes_on_in_the_stage_where_it_stopped(tmp_path: Path) -> None:
    writing = seed_plan(SPEC, "code")
    source = "a = await book(2)\nb = await pay(3)\nsubmit(report=f'{a} {b}')"
    boxed = dse.Toolbox([look, book, dse.tool(pay.fn, name="pay", description="Pay.", effect="write", approval="always")])
    plan = dse.Plan.cascade(LEAVES, writing)
    for snapshots in (True, False):
        case = Case(plan, coded(source), store=tmp_path / f"{snapshots}.db", toolbox=boxed)
        with pytest.raises(RunSuspended) as caught:
            case.program(n=9)
        receipt, store = caught.value.details["receipt"], case.program.store
        assert ends(receipt) == [("script", "abstain", True), ("code", "stopped", False)] and store is not None
        (one,) = store.pending()
        store.approve(receipt["run_id"], one["call_id"], arguments_hash=one["arguments_hash"], by="ann")
        made = case.program.resume(receipt["run_id"], snapshots=snapshots)
        check_receipt(made.receipt)
        assert made.report == "booked 2 paid 3" and case.outside.calls == [("book", 2), ("pay", 3)]
        assert ends(made.receipt) == [("script", "abstain", True), ("code", "accepted", False)]
        assert len(case.model.requests) == 1 and case.program.replay(receipt["run_id"]).report == made.report


def test_a_fork_may_lead_into_another_stage(tmp_path: Path) -> None:
    first = script_plan(SPEC, "a = await look(n)\nif a > 50:\n    abstain('too much')\nsubmit(report=str(a))")
    case = Case(dse.Plan.cascade(first, ANSWERS), store=tmp_path / "runs.db")
    made = case(2)
    forked = case.program.resume(case.program.fork(made.receipt["run_id"], 1, value=60))
    assert made.report == "20" and forked.report == "by the model"
    broken = case.program.resume(case.program.fork(made.receipt["run_id"], 1, error="closed"))
    assert ends(broken.receipt)[0] == ("script", "exception", True)


def test_what_is_sensitive_is_hidden_in_what_a_stage_ended_with(tmp_path: Path) -> None:
    class Secret(dse.Signature):
        """Answer."""

        pin: str = dse.InputField(sensitive=True)
        answer: str = dse.OutputField()

    spec = Secret.spec()
    plan = dse.Plan.cascade(script_plan(spec, "if pin:\n    abstain(f'not {pin}')\nsubmit(answer='')"),
                            script_plan(spec, "submit(answer='ok')"))  # fmt: skip
    store = dse.Store(tmp_path / "runs.db")
    made = dse.Program(Secret, plan, store=store)(pin="4711-secret")
    assert "[redacted]" in made.receipt["stages"][0]["reason"]
    assert "4711-secret" not in repr((made.receipt, store.run(made.receipt["run_id"])))


# --- artifacts and evaluation


def test_a_task_brings_its_checks_to_an_evaluation() -> None:
    @dse.environment(revision="1")
    def world(example: dse.Example) -> Any:
        yield dse.World(deps=Outside())

    @dse.metric(revision="1")
    def right(example: dse.Example, prediction: Any, ctx: Any) -> float:
        return float(prediction.report == example.labels["report"])

    rows = [{"id": f"r{n}", "n": n, "report": "by the model" if n > 5 or n == 3 else f"script {n * 10}"} for n in range(40)]
    data = dse.Dataset.from_rows(rows, name="settle", fields={"n": "input", "report": "label"})
    task = dse.Task(Settle, dataset=data, metric=right, environment=world, checks=[plausible], modes=("cascade", "direct"))
    records = anyio.run(lambda: Evaluator(task, ScriptedModel(lambda request: direct())).evaluate({"c": CHECKED}, data.split("search")))
    assert {record.score for record in records} == {1.0} and len(records) > 5
