"""``dse.Script``: scripts as outputs, checked in every mode, and run later without a model."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import dse
from dse.cli import main
from dse.contracts.script import scripts_in
from dse.errors import (
    AllowListError,
    InputError,
    LimitExceeded,
    OutputInvalid,
    PlanError,
    RunSuspended,
    ScriptFailed,
    ToolboxError,
)
from dse.runtime import sandbox
from dse.scripts import script_of
from dse.store.journal import Store
from dse.testing.scripted import ScriptedModel, call, say


class Till:
    def __init__(self) -> None:
        self.sold: list[str] = []


@dse.tool(effect="read")
async def price(name: str) -> float:
    """Price of a thing."""
    return {"tea": 2.5, "cup": 7.25}[name]


@dse.tool(effect="write")
def sell(ctx: dse.ToolContext[Till], name: str) -> str:
    """Sell a thing."""
    ctx.deps.sold.append(name)
    return f"sold {name}"


class PlanSale(dse.Signature):
    """Write a script that sells things."""

    wish: str = dse.InputField()
    plan: dse.Script = dse.OutputField()
    tools = [price, sell]


class Step(BaseModel):
    title: str
    script: dse.Script | None = None


GOOD = {"source": "await sell(inputs['name'])\nawait price('tea')", "externals": ["price", "sell"]}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"source": "await price(3)", "externals": ["price"]}, "plan: line 1: Argument to function `price`"),
    ({"source": "x = (", "externals": []}, "line 1"),
    ({"source": "import numpy", "externals": []}, "numpy"),
    ({"source": "await price('tea')", "externals": []}, "externals does not name: price"),
    ({"source": "1 + 1", "externals": ["price"]}, "externals names tools that the source never calls: price"),
    ({"source": "await steal('tea')", "externals": ["steal"]}, "may not be called: steal; there are: price, sell"),
    ({"source": "await price('tea')", "externals": ["price", "price"]}, "names a tool twice"),
    ({"source": "submit(plan=1)", "externals": []}, "submit"),
]


def replies(mode: str, *outputs: dict[str, Any]) -> ScriptedModel:
    made: list[Any] = []
    for output in outputs:
        if mode == "direct":
            made.append(say(f"[[ ## plan ## ]]\n{json.dumps(output)}\n\n[[ ## completed ## ]]"))
        elif mode == "tool_call":
            made.append(call(("submit", {"plan": output})))
        else:
            made.append(say(f"[[ ## code ## ]]\nsubmit(plan={output!r})\n\n[[ ## completed ## ]]"))
    return ScriptedModel(made)


@pytest.mark.parametrize("mode", ["direct", "tool_call", "code"])
def test_every_mode_hands_a_bad_script_back_and_takes_a_good_one(mode: str) -> None:
    model = replies(mode, BAD[0][0], GOOD)
    prediction = dse.Program(PlanSale, mode, lm=model, deps=Till())(wish="tea")
    assert prediction.plan == dse.Script(**GOOD) and prediction.outputs["plan"] == GOOD
    told = str(model.requests[1]["messages"][-1]["content"])
    assert "plan: line 1: Argument to function `price` is incorrect" in told.replace("\\", "")


@pytest.mark.parametrize("bad, words", BAD)
def test_what_is_wrong_is_said(bad: dict[str, Any], words: str) -> None:
    model = replies("tool_call", bad, GOOD)
    events = list(dse.Program(PlanSale, "tool_call", lm=model, deps=Till()).stream(wish="tea"))
    assert words in next(event["problem"] for event in events if event["kind"] == "repair")
    assert events[-1]["kind"] == "result" and not any(event["kind"] == "tool_intent" for event in events)


def test_repairs_are_bounded() -> None:
    model = replies("tool_call", *[bad for bad, _ in BAD[:3]])
    with pytest.raises(OutputInvalid):
        dse.Program(PlanSale, "tool_call", lm=model, deps=Till())(wish="tea")


def test_a_narrowed_program_takes_narrower_scripts() -> None:
    model = replies("tool_call", GOOD, {"source": "await price('tea')", "externals": ["price"]})
    program = dse.Program(PlanSale, "tool_call", lm=model, deps=Till()).narrowed(allow=["price"])
    assert program(wish="tea").plan.externals == ["price"]
    assert "may not be called: sell; there are: price" in str(model.requests[1]["messages"][-1]["content"])


def test_without_tools_a_script_may_only_compute() -> None:
    class Compute(dse.Signature):
        """Write a script."""

        wish: str = dse.InputField()
        plan: dse.Script = dse.OutputField()

    model = replies("direct", GOOD, {"source": "inputs['n'] * 2", "externals": []})
    assert dse.Program(Compute, "direct", lm=model)(wish="?").plan.source == "inputs['n'] * 2"
    assert "may not be called: price, sell; there are: none" in str(model.requests[1]["messages"][-1]["content"])


def test_scripts_inside_other_outputs_are_checked() -> None:
    class Steps(dse.Signature):
        """Write scripts."""

        wish: str = dse.InputField()
        steps: list[Step] = dse.OutputField()
        tools = [price, sell]

    bad, good = ({"steps": [{"title": "none"}, {"title": "some", "script": one}]} for one in (BAD[0][0], GOOD))
    model = ScriptedModel([call(("submit", bad)), call(("submit", good))])
    assert dse.Program(Steps, "tool_call", lm=model, deps=Till())(wish="?").steps[1].script == dse.Script(**GOOD)
    assert "steps.1.script: line 1: Argument" in str(model.requests[1]["messages"][-1]["content"])
    found = dict(scripts_in({"a": (dse.Script(**GOOD),), "b": {"c": dse.Script(**GOOD)}, "d": 1}))
    assert list(found) == ["a.0", "b.c"]


def test_the_check_does_not_hold_up_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker's thread waits for something that only the loop can do meanwhile."""
    checker, go = sandbox.checker(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    real = checker._check

    def check(*arguments: Any) -> Any:
        loops[0].call_soon_threadsafe(go.set)
        assert go.wait(30), "the loop went on"
        return real(*arguments)

    monkeypatch.setattr(checker, "_check", check)
    output = {"source": "await price('cup')  # never checked before", "externals": ["price"]}
    program = dse.Program(PlanSale, "tool_call", lm=replies("tool_call", output), deps=Till())

    async def run() -> Any:
        loops.append(asyncio.get_running_loop())
        return await program.acall(wish="?")

    assert asyncio.run(run()).plan.externals == ["price"] and go.is_set()


# --- running one --------------------------------------------------------------------------------------


def test_a_script_runs_without_a_model_and_leaves_a_receipt(tmp_path: Path) -> None:
    till = Till()
    store = Store(str(tmp_path / "runs.db"))
    made = dse.run_script(dse.Script(**GOOD), signature=PlanSale, deps=till, inputs={"name": "cup"}, store=store)
    assert (made.value, made.printed, till.sold) == (2.5, "", ["cup"])
    receipt = made.receipt
    assert (receipt["mode"], receipt["model"], receipt["signature"]) == ("run_script", None, "PlanSaleScript")
    assert receipt["effects"] == "completed [sell#1]" and receipt["usage"]["model_calls"] == 0
    assert [(c["tool"], c["outcome"]) for c in receipt["calls"]] == [("sell", "ok"), ("price", "ok")]
    assert receipt["inputs"] == {"script": GOOD, "inputs": {"name": "cup"}}
    assert store.run(receipt["run_id"])[0]["outcome"] == "ok"


def test_a_toolbox_is_enough_and_json_is_a_script() -> None:
    made = dse.run_script(
        {"source": "print('hi')\nawait price('tea')", "externals": ["price"]}, toolbox=dse.Toolbox([price])
    )
    assert (made.value, made.printed) == (2.5, "hi\n")

    async def run() -> Any:
        return await dse.arun_script(script_of("await price('cup')", PlanSale), signature=PlanSale)

    assert asyncio.run(run()).value == 7.25


def test_what_is_refused_never_runs() -> None:
    till = Till()
    for bad, words in BAD:
        with pytest.raises(ScriptFailed) as caught:
            dse.run_script(dse.Script(**bad), signature=PlanSale, deps=till)
        assert words.removeprefix("plan: ") in caught.value.value and caught.value.details["receipt"]["effects"] == "none"
    with pytest.raises(ScriptFailed, match="may not be called: sell"):
        dse.run_script(dse.Script(**GOOD), signature=PlanSale, deps=till, allow=["price"])
    with pytest.raises(AllowListError):
        dse.run_script(dse.Script(**GOOD), signature=PlanSale, deps=till, allow=["price", "steal"])
    with pytest.raises(ToolboxError):
        dse.run_script(dse.Script(**GOOD), signature=PlanSale, toolbox=dse.Toolbox([price]))
    with pytest.raises(InputError, match="Nobody says which tools"):
        dse.run_script(dse.Script(**GOOD))
    with pytest.raises(InputError):
        dse.run_script({"source": "1"}, signature=PlanSale)
    with pytest.raises(PlanError):
        dse.run_script(dse.Script(**GOOD), signature=PlanSale, limits={"interpreter_s": "long"})
    assert till.sold == []
    with pytest.raises(ValidationError):
        dse.Script(source="1", externals=[], model="m")  # type: ignore[call-arg]


def test_a_failing_script_says_where_and_what_it_did() -> None:
    script = {"source": "await sell('tea')\nprint('so far')\n{'a': 1}['b']", "externals": ["sell"]}
    with pytest.raises(ScriptFailed) as caught:
        dse.run_script(script, signature=PlanSale, deps=Till())
    assert caught.value.code == "DSE305" and caught.value.what == "The script failed: line 3: KeyError: b"
    assert caught.value.details["receipt"]["effects"] == "completed [sell#1]"


def test_policies_and_limits_hold() -> None:
    @dse.tool(effect="write", approval="always")
    def pay(amount: int) -> str:
        """Pay."""
        return "paid"

    box = dse.Toolbox([pay])
    script = dse.Script(source="await pay(3)", externals=["pay"])
    assert dse.run_script(script, toolbox=box, approve=lambda request: request.arguments == {"amount": 3}).value == "paid"
    with pytest.raises(RunSuspended):
        dse.run_script(script, toolbox=box)
    with pytest.raises(ScriptFailed, match="PermissionError: pay was denied"):
        dse.run_script(script, toolbox=box, approve=lambda request: False)
    with pytest.raises(LimitExceeded):
        dse.run_script(script, toolbox=box, approve=lambda request: True, limits={"tool_calls": 0})
    with pytest.raises(ScriptFailed, match="longer than its time limit"):
        dse.run_script(
            {"source": "while True:\n    pass", "externals": []}, toolbox=box, limits=dse.Limits(interpreter_s=0.2)
        )


def test_a_given_script_cannot_call_a_script_tool() -> None:
    class Both(dse.Signature):
        """Write a script."""

        wish: str = dse.InputField()
        plan: dse.Script = dse.OutputField()
        tools = [price, dse.script_tool([price])]

    script = {"source": "await run_script('1')", "externals": ["run_script"]}
    with pytest.raises(ScriptFailed, match="may not be called: run_script"):
        dse.run_script(script, signature=Both)
    model = replies("tool_call", script, {"source": "await price('tea')", "externals": ["price"]})
    assert dse.Program(Both, "tool_call", lm=model, deps=Till())(wish="?").plan.externals == ["price"]


def test_running_a_script_loads_no_model_library() -> None:
    code = """
import dse, sys

@dse.tool(effect="pure")
def double(n: int) -> int:
    \"\"\"Twice n.\"\"\"
    return 2 * n

made = dse.run_script({"source": "await double(4)", "externals": ["double"]}, toolbox=dse.Toolbox([double]))
print(made.value, [m for m in ("dspy", "litellm", "pandas", "sqlalchemy", "scipy") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8", "[]"]


def test_the_mode_is_no_mode_for_signatures() -> None:
    with pytest.raises(PlanError):
        dse.Program(PlanSale, dse.Plan(mode="run_script", prompts={}))(wish="?")


# --- from the shell -----------------------------------------------------------------------------------

MODULE = '''
import dse


class Till:
    pass


@dse.tool(effect="read")
async def price(name: str) -> float:
    """Price of a thing."""
    return {"tea": 2.5, "cup": 7.25}[name]


@dse.tool(effect="read")
def who(ctx: dse.ToolContext[str]) -> str:
    """Who asks."""
    return ctx.deps


class PlanSale(dse.Signature):
    """Write a script that sells things."""

    wish: str = dse.InputField()
    plan: dse.Script = dse.OutputField()
    tools = [price, who]


def deps():
    return "me"
'''


def cli(*arguments: str) -> tuple[int, str, str]:
    out, err, kept = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["dse", "run-script", *arguments]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as exc:
        code = exc.code
    finally:
        sys.argv = kept
    return int(code or 0), out.getvalue(), err.getvalue()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "shop_for_scripts.py").write_text(MODULE)
    (tmp_path / "plan.py").write_text("print(inputs)\n[await price(inputs['name']), await who()]\n")
    plan = {"source": "await price(inputs['name'])", "externals": ["price"]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("shop_for_scripts", None)


def test_run_script_from_the_shell(project: Path) -> None:
    where = ("--signature", "shop_for_scripts:PlanSale")
    code, out, err = cli("plan.json", *where, "--input", "name=cup")
    assert (code, json.loads(out)) == (0, {"value": 7.25, "printed": ""}), err
    code, out, err = cli("plan.py", *where, "--deps", "shop_for_scripts:deps", "--input", "name=tea", "--input", 'n={"a": [1]}',
                         "--store", "runs.db", "--receipt")  # fmt: skip
    shown = json.loads(out)
    assert (code, shown["outputs"]["value"]) == (0, [2.5, "me"]), err
    assert shown["receipt"]["inputs"]["inputs"] == {"name": "tea", "n": {"a": [1]}}
    assert Store("runs.db").run(shown["receipt"]["run_id"])[0]["mode"] == "run_script"


@pytest.mark.parametrize("arguments, code, word", [
    (("plan.json", "--input", "name=cup", "--allow", "who"), 1, "may not be called: price"),
    (("plan.json", "--input", "name=cup", "--allow", "steal"), 2, "never widened"),
    (("plan.json", "--input", "name=steak"), 1, "price failed: KeyError"),
    (("plan.json", "--input", "name"), 2, "NAME=VALUE"),
    (("plan.json", "--input", "a=1", "--input", "a=2"), 2, "twice"),
    (("plan.txt",), 2, ".json or a .py"),
    (("missing.py",), 2, "cannot be read"),
    (("list.json",), 2, "is an object"),
    (("broken.json",), 2, "DSE"),
    (("other.json",), 2, "externals"),
])  # fmt: skip
def test_mistakes_are_one_line_and_an_exit_code(project: Path, arguments: tuple[str, ...], code: int, word: str) -> None:
    (project / "list.json").write_text("[]")
    (project / "broken.json").write_text("{")
    (project / "other.json").write_text('{"source": "1"}')
    found, _, err = cli(*arguments, "--signature", "shop_for_scripts:PlanSale")
    assert (found, sum(line.startswith("[DSE") for line in err.splitlines())) == (code, 1), err
    assert word in err and "Traceback" not in err
