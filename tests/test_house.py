"""The house: which module may import which, and what stays unloaded until needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dse

ROOT = Path(dse.__file__).parent
# Rooms from the top floor down. A module may import its own floor's room and anything below it.
FLOORS: list[tuple[str, ...]] = [
    ("cli",),
    ("cli_evidence", "cli_runs"),
    ("shell",),
    ("doctor",),
    ("analysis",),
    ("compiler",),
    ("interop", "scripts"),
    ("evaluation",),
    ("loading",),
    ("program",),
    ("resuming",),
    ("durable",),
    ("strategies",),
    ("runtime",),
    ("artifacts", "store"),
    ("models",),
    ("plan",),
    ("contracts",),
    ("objective", "limits", "statistics", "portal", "threads"),
    ("canonical", "declared", "files", "redaction", "telemetry"),
    ("errors",),
]
# Imports inside functions that go up on purpose, each with its reason.
LAZY_UP = {
    ("program", "interop"),  # Program.as_dspy() is a door, opened only when called
    ("models", "store"),  # resolve_model("replay:FILE") opens a cassette
}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def modules() -> list[Path]:
    return [p for p in ROOT.rglob("*.py") if "testing" not in p.relative_to(ROOT).parts and p != ROOT / "__init__.py"]


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(module, inside a TYPE_CHECKING block) for every dse import of a file, lazy ones included."""
    tree = ast.parse(path.read_text())
    typing_only = {id(sub) for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
                   for sub in ast.walk(node)}  # fmt: skip
    found = []
    for node in ast.walk(tree):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found += [(name, id(node) in typing_only) for name in names if name == "dse" or name.startswith("dse.")]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    mine = path.relative_to(ROOT).parts[0].removesuffix(".py")
    wrong = []
    for module, typing_only in imports_of(path):
        theirs = room(module)
        if typing_only or theirs in ("", mine) or (mine, theirs) in LAZY_UP:
            continue
        if theirs == "testing" or floor(theirs) < floor(mine) or (floor(theirs) == floor(mine) and theirs != mine):
            wrong.append(module)
    assert not wrong, f"{mine} may not import {wrong}"


def test_only_the_sandbox_room_imports_the_interpreter() -> None:
    users = {
        p.relative_to(ROOT).parts[:2]
        for p in ROOT.rglob("*.py")
        if re.search(r"^\s*(import|from) pydantic_monty", p.read_text(), re.M)
    }
    assert users == {("runtime", "sandbox")}


def test_the_runtime_never_imports_the_compiler() -> None:
    code = "import dse, dse.program, dse.runtime.dispatcher, dse.strategies.base, sys; print([m for m in sys.modules if m.startswith('dse.compiler')])"
    assert run(code) == "[]"


HEAVY = ("dspy", "pandas", "sqlalchemy", "scipy", "pydantic_monty", "matplotlib", "litellm", "opentelemetry", "ray")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("code", ["import dse", "import dse; dse.tool, dse.Signature, dse.Plan, dse.Limits, dse.Toolbox",
                                  "import dse.artifacts.artifact, dse.artifacts.registry"])  # fmt: skip
def test_light_imports(code: str) -> None:
    shown = run(f"{code}\nimport sys\nprint([m for m in {HEAVY!r} if m in sys.modules])")
    assert shown == "[]"


def test_public_names() -> None:
    assert dse.__all__ == [
            "__version__", "Approval", "Artifact", "Budget", "Cascades", "Check", "Dataset", "Decision",
            "Demonstrations", "Distill", "DseError", "DspyOptimizer", "Environment", "Evolve", "Example", "InputField",
            "Judge", "Limits", "Metric", "MetricContext", "Objective", "OutputField", "Plan", "Prediction",
            "PriceTable", "Program", "Prompt", "Proposal", "Proposer", "Rate", "Registry", "Rows", "RunHandle", "Score",
            "Script", "Search", "Signature", "Space", "Store", "Task", "Tool", "ToolContext", "ToolContract", "Toolbox",
            "World", "arun_script", "check", "compile", "environment", "evaluate", "forecast", "load", "metric",
            "run_script", "script_tool", "tool",
        ]  # fmt: skip
    for name in dse.__all__:
        assert getattr(dse, name) is not None


def test_error_tree_is_documented_coded_and_pickles() -> None:
    import pickle

    from dse import errors

    classes = [getattr(errors, name) for name in errors.__all__]
    assert len({cls.code for cls in classes}) == len(classes)
    for cls in classes:
        assert cls.__name__ in errors.__doc__
        made = cls("It failed", value={"a": 1}, remedy="Do this.", line=3)
        again = pickle.loads(pickle.dumps(made))
        assert (type(again), str(again), again.details) == (cls, str(made), {"line": 3})
        assert cls.code in str(made) and "Do this." in str(made)
