"""Every Python block of the README and the docs runs, and every shell command that needs no key and no network."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)


def commands(page: Path) -> list[str]:
    """The ``dse ...`` commands of a page's shell blocks, continued lines joined."""
    text = "".join(SHELL.findall(page.read_text())).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("dse ")]


def needs_a_key(command: str) -> bool:
    model = re.search(r"--lm (\S+)", command)
    return model is not None and not model[1].startswith("replay:")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_shell_commands_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In this process; what a command writes goes to ``out/`` on the page and to a folder of its own here."""
    from dse.cli import main

    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    ran = []
    for command in commands(page):
        if needs_a_key(command):
            continue
        words = [re.sub(r"^out/", f"{tmp_path}/", word) for word in shlex.split(command)]
        monkeypatch.setattr(sys, "argv", words)
        printed, code = io.StringIO(), 0
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                main()
            except SystemExit as exc:
                code = int(exc.code or 0)
        assert code == 0, f"{command}\n{printed.getvalue()}"
        ran.append(words[1])
    if page.name == "README.md":
        assert ran == ["dataset", "stubs", "compile", "artifacts", "explain", "eval", "explain"]


def test_commands_that_need_a_key_have_options_that_there_are() -> None:
    import typer.main

    from dse.cli import app

    command = typer.main.get_command(app)
    kept = [line for page in PAGES for line in commands(page) if needs_a_key(line)]
    assert kept
    for line in kept:
        name, *arguments = shlex.split(line)[1:]
        command.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    text = page.read_text()
    module = types.ModuleType(f"docs_{page.stem}")  # annotations are resolved in the module of a declaration
    monkeypatch.setitem(sys.modules, module.__name__, module)
    blocks = list(BLOCK.finditer(text))
    for found in blocks:
        if 'executor="ray"' in found[1] or "RayExecutor" in found[1]:
            pytest.importorskip("ray", reason=f"Ray is not installed: the rest of {page.name} is not run")
        line = text[: found.start()].count("\n") + 1
        code = found[1].replace('"runs.db"', repr(str(tmp_path / "runs.db")))  # kept in a folder of its own
        exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)
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
        shell = "\n".join(re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.M | re.S))  # console: with names of your own
        spans = "\n".join(re.findall(r"`(dse [^`]+)`", text))
        for line in re.findall(r"^dse ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", f"{shell}\n{spans}", re.M):
            assert line[0] in command.commands, line
            sub = getattr(command.commands[line[0]], "commands", None)
            if sub is not None and line[1]:
                assert line[1] in sub, line
