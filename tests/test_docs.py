"""Every Python block of the README and the docs runs; blocks of one page share a namespace."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    text = page.read_text()
    module = types.ModuleType(f"docs_{page.stem}")  # annotations are resolved in the module of a declaration
    monkeypatch.setitem(sys.modules, module.__name__, module)
    blocks = list(BLOCK.finditer(text))
    for found in blocks:
        line = text[: found.start()].count("\n") + 1
        exec(compile("\n" * line + found[1], str(page), "exec"), module.__dict__)
    assert blocks or page.name == "security.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_commands_in_the_docs_exist() -> None:
    import typer.main

    from dse.cli import app

    command = typer.main.get_command(app)
    for page in PAGES:
        text = page.read_text()
        shell = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S))
        spans = "\n".join(re.findall(r"`(dse [^`]+)`", text))
        for line in re.findall(r"^dse ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", f"{shell}\n{spans}", re.M):
            assert line[0] in command.commands, line
            sub = getattr(command.commands[line[0]], "commands", None)
            if sub is not None and line[1]:
                assert line[1] in sub, line
