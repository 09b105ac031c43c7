"""Mode script: a distilled program, checked once, without a model; and what a plan may lay over a tool's description."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import dse
from dse.compiler.space import fitting_modes
from dse.errors import Abstained, LimitExceeded, NoSubmission, OutputInvalid, PlanError, RunSuspended, ScriptFailed
from dse.evaluation.evaluator import Evaluator
from dse.plan import program_id
from dse.runtime import sandbox
from dse.runtime.receipt import check_receipt
from dse.strategies.base import baseline_plan, check_plan, modes, needs_model, seed_modes, seed_plan
from dse.strategies.script import check_script, script_api, script_plan
from dse.testing import ScriptedModel, call, say
from tests.artifact_examples import SPEC as AUDIT
from tests.artifact_examples import Audit, add_up, evidence, look_up, send_mail

CALLS: list[tuple[str, int]] = []


@dse.tool(effect="read")
async def look(n: int) -> int | None:
    """Look something up."""
    CALLS.append(("look", n))
    return n * 10 if n > 0 else None


@dse.tool(effect="write", idempotent=True)
def book(n: int) -> str:
    """Book it."""
    CALLS.append(("book", n))
    return f"booked {n}"


class Ask(dse.Signature):
    """Answer the question."""

    n: int = dse.InputField()
    answer: int = dse.OutputField(desc="ten times n, plus one")
    tools = [look, book]


SPEC = Ask.spec()
GOOD = """x = await look(n)
if x is None:
    abstain(f"there is no {n}")
submit(answer=x + 1)
"""


def program(source: str, *, limits: dict[str, Any] | None = None, **more: Any) -> dse.Program:
    return dse.Program(Ask, script_plan(SPEC, source, limits=dse.Limits(**limits or {})), **more)


def failed(source: str, kind: type[dse.DseError], n: int = 3, **limits: Any) -> dict[str, Any]:
    with pytest.raises(kind) as caught:
        program(source, limits=limits)(n=n)
    receipt = dict(caught.value.details["receipt"])
    check_receipt(receipt)
    assert receipt["outcome"] == "failed" and receipt["error"]["class"] == kind.__name__
    return receipt


# --- running


def test_a_script_answers_without_a_model() -> None:
    made = program(GOOD)(n=3)
    receipt = made.receipt
    check_receipt(receipt)
    assert made.answer == 31 and (receipt["mode"], receipt["model"]) == ("script", None)
    assert receipt["usage"]["model_calls"] == 0 and receipt["usage"]["calls_per_tool"] == {"look": 1}
    assert [one["outcome"] for one in receipt["calls"]] == ["ok"] and receipt["usage"]["interpreter_s"] > 0


def test_tools_fan_out_and_inputs_and_standard_modules_are_there() -> None:
    source = "import json\nfound = await asyncio.gather(*[look(i) for i in range(1, n + 1)])\n" \
             "submit(answer=sum(x for x in json.loads(json.dumps(found)) if x is not None))"  # fmt: skip
    assert program(source)(n=4).answer == 100


def test_a_model_that_is_given_is_not_used() -> None:
    model = ScriptedModel(lambda request: pytest.fail("a script asks no model"))
    with_one, without = program(GOOD, lm=model), program(GOOD)
    assert with_one.program_id == without.program_id == program_id(SPEC, without.plan, without.toolbox, "none", {})
    assert with_one(n=1).answer == 11 and with_one.lm is None


def test_abstaining_with_nobody_to_take_over_is_a_failure_of_its_own() -> None:
    source = 'b = await book(n)\nabstain(reason="not sure")'
    receipt = failed(source, Abstained)
    assert receipt["error"]["value"] == "not sure" and receipt["error"]["code"] == "DSE306"
    assert receipt["effects"] == "completed [book#1]"
    assert failed("abstain()\nsubmit(answer=1)", Abstained)["error"]["value"] is None


def test_what_a_script_raises_is_told_with_its_line_and_a_hint() -> None:
    receipt = failed("a = await book(1)\nx: dict[str, int] = {}\nsubmit(answer=x['gone'])", ScriptFailed)
    assert "line 3: KeyError: gone" in receipt["error"]["what"] and "completed [book#1]" in receipt["error"]["value"]
    assert receipt["error"]["remedy"]


def test_an_answer_that_does_not_fit_is_no_answer_and_may_be_handled() -> None:
    class Small(dse.Signature):
        """Answer."""

        n: int = dse.InputField()
        word: str = dse.OutputField()
        sizes: list[int] = dse.OutputField()

    source = "from typing import Any\nodd: Any = [n, 'x']\nsubmit(word='a', sizes=odd)"
    with pytest.raises(OutputInvalid, match="sizes"):
        dse.Program(Small, script_plan(Small.spec(), source))(n=1)
    handled = f"{source.removesuffix('submit(word=' + repr('a') + ', sizes=odd)')}try:\n    submit(word='a', sizes=odd)\n" \
              "except ValueError:\n    submit(word='b', sizes=[n])"  # fmt: skip
    assert dse.Program(Small, script_plan(Small.spec(), handled))(n=1).sizes == [1]


def test_a_script_that_ends_without_an_answer_has_failed() -> None:
    receipt = failed("if n > 5:\n    submit(answer=n)\n", NoSubmission)
    assert receipt["outputs"] is None


def test_limits_hold() -> None:
    receipt = failed("while n:\n    pass\nsubmit(answer=1)", ScriptFailed, interpreter_s=0.2)
    assert "Time" in receipt["error"]["what"]
    receipt = failed("while n:\n    pass\nsubmit(answer=1)", LimitExceeded, interpreter_s=0.2, outcomes={"interpreter_s": "abort"})
    assert (receipt["limit"], receipt["limit_outcome"]) == ("interpreter_s", "abort")
    assert failed("for i in range(9):\n    await look(1)\nsubmit(answer=1)", LimitExceeded, tool_calls=3)["limit"] == "tool_calls"


def test_a_script_calls_what_its_plan_allows_and_nothing_else() -> None:
    assert script_plan(SPEC, GOOD).allow == ("look",)
    with pytest.raises(PlanError, match="look"):
        dse.Program(Ask, script_plan(SPEC, GOOD, allow=["book"]))
    with pytest.raises(PlanError, match="does not pass the check"):
        program(GOOD).narrowed(allow=[])
    assert program(GOOD).narrowed(limits={"tool_calls": 1})(n=2).answer == 21


# --- the check


@pytest.mark.parametrize(("source", "said"), [
    ("submit(answer='x')", "Expected `int`"), ("submit(answer=unknown)", "not defined"), ("print(n)", "never calls submit"),
    ("import numpy\nsubmit(answer=1)", "numpy"), ("submit(answer=await look('x') or 0)", "look"), ("x = (\nsubmit(answer=1)", "line"),
    ("if n:\n    submit(answer=1)\nsubmit(answer='x')", "line 3"), ("def abstain():\n    pass\nsubmit(answer=1)", "abstain"),
    ("abstain(1)", "abstain"), ("submit(answer=1, more=2)", "more"), ("open('/etc/passwd')\nsubmit(answer=1)", "no files"),
])  # fmt: skip
def test_a_script_that_does_not_pass_the_check_is_no_plan(source: str, said: str) -> None:
    with pytest.raises(PlanError, match="does not pass the check") as caught:
        dse.Program(Ask, script_plan(SPEC, source, allow=["look"]))
    assert said in str(caught.value)


def test_the_check_is_open_to_those_who_write_scripts() -> None:
    contracts = {"look": look.contract}
    found = asyncio.run(check_script(SPEC, "submit(answer=nothing)", contracts))
    assert [one.rule for one in found.problems] == ["unresolved-reference"] and "line 1" in found.describe()
    assert asyncio.run(check_script(SPEC, GOOD, contracts)).problems == ()
    api = script_api(SPEC, contracts)
    assert "def abstain(reason: str = \"\") -> NoReturn" in api and "async def look(n: int) -> int | None" in api
    assert "def submit(*, answer: int) -> NoReturn" in api and "book" not in api


def test_a_script_is_checked_before_its_runs_and_never_again(tmp_path: Path) -> None:
    made = program(GOOD + "# once", store=tmp_path / "runs.db")
    sandbox.checker().close()
    assert [made(n=n).answer for n in (1, 2)] == [11, 21]
    assert program(GOOD + "# once")(n=3).answer == 31, "another program with the same script and tools"
    assert sandbox.checker()._workers.state == "new", "no check was made"


def test_a_program_can_be_made_inside_an_event_loop() -> None:
    async def make() -> int:
        prediction = await program(GOOD + "# inside").acall(n=5)
        return int(prediction.answer)

    assert asyncio.run(make()) == 51


# --- plans


def test_there_is_no_plan_to_start_from() -> None:
    for mode in ("script", "cascade"):
        with pytest.raises(PlanError, match="no plan to start from"):
            seed_plan(SPEC, mode)
        with pytest.raises(PlanError, match="no plan to start from"):
            dse.Program(Ask, mode)
        assert mode in modes() and mode not in seed_modes()
    assert baseline_plan(SPEC).mode == "tool_call"
    assert set(fitting_modes(SPEC, None)) == {"direct", "tool_call", "code"}
    assert fitting_modes(SPEC, ("script", "code")) == ("code",)
    with pytest.raises(PlanError, match="plan to start from"):
        fitting_modes(SPEC, ("script",))


def test_a_task_may_name_script_and_cascade_but_not_the_mode_of_given_scripts() -> None:
    import dse.scripts  # registers it

    assert "run_script" not in modes() and dse.scripts.MODE == "run_script"
    options: dict[str, Any] = {"dataset": "datasets/none", "metric": lambda example, prediction, ctx: 1.0}
    assert dse.Task(Ask, modes=("script", "cascade", "code"), **options).modes == ("script", "cascade", "code")
    with pytest.raises(PlanError, match="modes that there are not"):
        dse.Task(Ask, modes=("run_script",), **options)


def test_scripts_stages_and_overlays_belong_where_they_are_used() -> None:
    script, code = script_plan(SPEC, GOOD), seed_plan(SPEC, "code")
    for plan, said in [
        (code.model_copy(update={"script": GOOD}), "has no script"), (script.model_copy(update={"script": None}), "needs a script"),
        (code.model_copy(update={"stages": (script, code)}), "has no stages"),
        (script.model_copy(update={"overlays": {"look": "x"}}), "no model reads"),
        (seed_plan(SPEC, "code", ["look"]).model_copy(update={"overlays": {"book": "x"}}), "not allowed"),
        (code.model_copy(update={"overlays": {"look": "  "}}), "has no text"),
        (script.model_copy(update={"knobs": {"escalate": ["abstain"]}}), "no such knobs"),
    ]:  # fmt: skip
        with pytest.raises(PlanError, match=said):
            check_plan(SPEC, plan)
    with pytest.raises(ValueError):
        dse.Plan(mode="script", prompts={}, script="")


def test_plans_without_them_have_the_ids_that_they_had() -> None:
    plain = dse.Plan(mode="code", prompts={"code": dse.Prompt(instructions="Do it.")}, allow=("look",))
    assert set(plain.model_dump()) == {"mode", "prompts", "allow", "knobs", "limits"}
    assert plain.plan_id == dse.Plan.model_validate(plain.model_dump()).plan_id
    overlaid = plain.model_copy(update={"overlays": {"look": "Finds."}})
    assert overlaid.plan_id != plain.plan_id and overlaid.narrowed(allow=[]).overlays == {}
    assert not needs_model(script_plan(SPEC, GOOD)) and needs_model(plain)


def test_prompts_are_named_and_replaced_one_by_one() -> None:
    plain = seed_plan(SPEC, "code")
    other = dse.Prompt(instructions="Otherwise.")
    assert plain.with_prompts({"code": other}).prompts == {"code": other} and plain.with_prompts({}) == plain
    with pytest.raises(PlanError, match="no such prompts"):
        plain.with_prompts({"act": other})


# --- what the model reads about tools


@pytest.mark.parametrize("mode", ["tool_call", "code"])
def test_an_overlay_replaces_what_the_model_reads_and_nothing_else(mode: str) -> None:
    asked: list[Any] = []

    def reply(request: Any) -> Any:
        asked.append(json.dumps(request))
        return call(("submit", {"answer": 1})) if mode == "tool_call" else say("```python\nsubmit(answer=1)\n```")

    plain = seed_plan(SPEC, mode)
    plan = plain.model_copy(update={"overlays": {"look": "Finds ten times n."}})
    programs = [dse.Program(Ask, one, lm=ScriptedModel(reply)) for one in (plan, plain, plan)]
    for one in programs:
        one(n=1)
    assert ["Finds ten times n." in text for text in asked] == [True, False, True]
    assert ["Look something up." in text for text in asked] == [False, True, False]
    assert all("Book it." in text for text in asked) and asked[0] == asked[2]
    assert programs[0].program_id != programs[1].program_id and programs[0].toolbox["look"].contract == look.contract


# --- artifacts


def test_an_artifact_with_a_script_runs_without_a_model_and_without_heavy_imports(tmp_path: Path) -> None:
    plan = script_plan(AUDIT, "notes = await look_up(question)\nsubmit(names=[f'{n}: {year}' for n in notes] or ['nobody'])")
    artifact = audit_artifact(plan)
    path = artifact.save(tmp_path / "a.json")
    loaded = dse.load(path, signature=Audit)
    assert loaded(question="Who?").outputs == {"names": ["nobody"]} and loaded.program_id == artifact.program_id
    assert artifact.model_name == "none" and loaded(question="Who?").receipt["unproven"] is False
    declared = "\n\n".join(map(inspect.getsource, (look_up.fn, send_mail.fn, add_up.fn, Audit)))
    (tmp_path / "light.py").write_text(f"from typing import Literal\nimport dse\n{declared}")
    code = f"""
import sys, dse
sys.path.insert(0, {str(tmp_path)!r})
from light import Audit
assert dse.load({str(path)!r}, signature=Audit)(question="x").names == ["nobody"]
heavy = ("dspy", "litellm", "pandas", "sqlalchemy", "scipy", "matplotlib", "jsonschema", "dse.models", "dse.compiler")
print([m for m in heavy if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def audit_artifact(plan: dse.Plan) -> dse.Artifact:
    tools = AUDIT.toolbox()
    made = evidence(plan)
    own = program_id(AUDIT, plan, tools, "none", {})
    made["modes"] = [{**made["modes"][0], "program_id": own, "model_calls": 0}, made["modes"][1]]
    return dse.Artifact.build(signature=AUDIT.to_dict(), plan=plan, contracts={n: tools[n].contract for n in plan.allow},
                              model={"name": "none", "params": {}}, evidence=made)  # fmt: skip


def test_a_script_that_does_not_pass_is_refused_when_its_artifact_is_loaded(tmp_path: Path) -> None:
    broken = audit_artifact(script_plan(AUDIT, "notes = await look_up(5)\nsubmit(names=notes)"))
    with pytest.raises(PlanError, match="does not pass the check"):
        dse.load(broken.save(tmp_path / "a.json"), signature=Audit)


def test_a_call_that_needs_a_decision_suspends_a_script_too(tmp_path: Path) -> None:
    plan = script_plan(AUDIT, "ok = await send_mail(question, 'hello')\nsubmit(names=[str(ok)])")
    kept = dse.Program(Audit, plan, store=tmp_path / "runs.db")
    with pytest.raises(RunSuspended) as caught:
        kept(question="ann")
    run_id, (one,) = caught.value.details["run_id"], caught.value.details["pending"]
    assert one["arguments"] == {"to": "ann", "body": "[redacted]"} and kept.store is not None
    kept.store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="bob")
    assert kept.resume(run_id).names == ["True"] and kept.replay(run_id).names == ["True"]


# --- replays of what failed


@pytest.mark.parametrize(("source", "kind"), [
    ("x = await look(0)\nabstain('nothing')", Abstained), ("x: list[int] = []\nsubmit(answer=x[n])", ScriptFailed),
    ("if n > 5:\n    submit(answer=n)", NoSubmission), ("while n:\n    pass\nsubmit(answer=1)", ScriptFailed),
])  # fmt: skip
def test_a_failed_run_is_replayed_to_its_failure(tmp_path: Path, source: str, kind: type[dse.DseError]) -> None:
    kept = program(source, limits={"interpreter_s": 0.2}, store=tmp_path / "runs.db")
    with pytest.raises(kind) as caught:
        kept(n=3)
    with pytest.raises(kind) as again:
        kept.replay(caught.value.details["run_id"])
    errors = [caught.value, again.value]
    assert errors[0].what == errors[1].what and errors[0].value == errors[1].value and errors[0].remedy == errors[1].remedy
    assert errors[0].details["receipt"]["transcript_hash"] == errors[1].details["receipt"]["transcript_hash"]


def test_a_script_is_a_candidate_like_any_other() -> None:
    """Evaluated without a model; its failures are scores."""

    @dse.environment(revision="1")
    def world(example: dse.Example) -> Any:
        yield dse.World()

    @dse.metric(revision="1")
    def right(example: dse.Example, prediction: Any, ctx: Any) -> float:
        return float(prediction.answer == example.labels["answer"])

    rows = [{"id": f"r{n}", "n": n, "answer": n * 10 + 1} for n in range(-4, 60)]
    data = dse.Dataset.from_rows(rows, name="ask", fields={"n": "input", "answer": "label"})
    task = dse.Task(Ask, dataset=data, metric=right, environment=world)
    examples = data.split("search")
    records = anyio.run(lambda: Evaluator(task, None).evaluate({"script": script_plan(SPEC, GOOD)}, examples))
    expected = [1.0 if example.inputs["n"] > 0 else 0.0 for example in examples]
    assert [record.score for record in records] == expected and 0.0 in expected
    assert {record.error_class for record in records if not record.score} == {"Abstained"}
    assert {record.receipt["model"] for record in records} == {None} and all(not r.receipt["usage"]["model_calls"] for r in records)
