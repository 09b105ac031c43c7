"""docs/security.md names a test for every line, and each of them exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")


@functools.cache
def named_in(file: str) -> frozenset[str]:
    """``test_x`` and ``TestClass::test_x`` of a file."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef))}
    return frozenset(name for name in names if name.split("::")[-1].startswith("test_"))


def test_every_named_test_exists() -> None:
    found = REFERENCE.findall(TEXT)
    assert len(found) > 40
    missing = [f"{file}::{name}" for file, name in found if name not in named_in(file)]
    assert not missing


def test_every_line_of_the_checklist_names_a_test() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("|") and not line.startswith(("| what holds |", "|---"))]
    assert len(lines) > 40
    assert not [line for line in lines if not REFERENCE.search(line.rsplit("|", 2)[1])]


def test_every_part_is_there() -> None:
    parts = re.findall(r"^## (.+)$", TEXT, re.M)
    assert parts[:5] == ["Inputs", "Outputs", "Capabilities", "Limits", "Secrets"]
    assert {"Artifacts", "Supply chain", "What is not protected"} <= set(parts)
    assert TEXT.split("## What is not protected")[1].count("\n- ") >= 8
