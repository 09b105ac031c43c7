"""The shell face: every command in a project of its own, its exit codes, and no traceback for coded errors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import dse
from dse.cli import main
from dse.portal import run_sync
from dse.store.cassette import RecordModel
from dse.store.journal import Store
from dse.testing.scripted import ScriptedModel, say
from dse.testing.worlds import NAME, PRICES, AskWarehouse, PlantedWorld, Warehouse

PROJECT = '''
import dse
from dse.testing.worlds import AskWarehouse, PlantedWorld, Warehouse, find_item, get_weather

world = PlantedWorld({"direct": 1.0, "tool_call": 0.25}, clusters=30, writes=0.0)
task = world.task(modes=["direct", "tool_call"], dataset="data")
unsafe = world.task(modes=["tool_call"], dataset="data", environment=None)
number = 7


def deps():
    return Warehouse("anything")
'''
WORLD = PlantedWorld({"direct": 1.0, "tool_call": 0.25}, clusters=30, writes=0.0)
ROW = WORLD.dataset().split("select")[0]
INPUT = json.dumps({"request": ROW.request})


@dataclass
class Done:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def cli(*arguments: str, stdin: str = "") -> Done:
    """``dse ...`` in this process and the current folder."""
    out, err, kept = io.StringIO(), io.StringIO(), (sys.argv, sys.stdin)
    sys.argv, sys.stdin = ["dse", *arguments], io.StringIO(stdin)
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as exc:
        code = exc.code
    finally:
        sys.argv, sys.stdin = kept
    return Done(0 if code is None else int(code), out.getvalue(), err.getvalue())


def refused(done: Done, code: int, *words: str) -> None:
    """A coded error: its exit code, one message, no traceback."""
    assert done.code == code, (done.out, done.err)
    assert sum(line.startswith("[DSE") for line in done.err.splitlines()) == 1, done.err
    assert "Traceback" not in done.err + done.out
    for word in words:
        assert word in done.err, done.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a dataset, a recording and a compile by replay of it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "planted.py").write_text(PROJECT)
    WORLD.dataset().save(folder / "data")
    (folder / "prices.json").write_text(json.dumps(PRICES.to_dict()))
    task = WORLD.task(modes=["direct", "tool_call"], dataset=folder / "data")
    dse.compile(task, lm=WORLD.model(), registry=folder / "recorded", record=folder / "c.jsonl", allocation="grid")
    shutil.rmtree(folder / "recorded")
    here, path = os.getcwd(), list(sys.path)
    os.chdir(folder)
    try:
        done = cli("compile", "planted:task", "--lm", "replay:c.jsonl", "--prices", "prices.json")
        (folder / "compiled.txt").write_text(done.out)
        assert done.code == 0, done.err
    finally:
        os.chdir(here)
        sys.path[:] = path
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the project as the current folder."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("COLUMNS", raising=False)
    yield folder
    sys.modules.pop("planted", None)


def champion() -> dse.Artifact:
    return dse.Registry("artifacts").get("AskWarehouse@champion")


def record(model: ScriptedModel, file: str) -> None:
    """The champion's plan on one row, recorded."""
    recorder = RecordModel(model, file)
    try:
        dse.Program(AskWarehouse, champion().plan, lm=recorder)(request=ROW.request)
    finally:
        run_sync(recorder.aclose)


# ---- compile and eval -------------------------------------------------------------------------------------


def test_compile_prints_the_decision(project: Path) -> None:
    shown = (project / "compiled.txt").read_text()
    assert "direct/none/seed <- winner" in shown and "tool_call/all/seed <- incumbent" in shown
    assert "PROMOTE" in shown and "planted prices" in shown and f"recorded from {NAME}" in shown
    artifact = champion()
    assert artifact.artifact_id[:19] in shown and artifact.plan.mode == "direct"
    assert max(map(len, shown.splitlines())) > 90, "a table that is not squeezed into 80 columns"


def test_compile_options_reach_the_compile(project: Path) -> None:
    done = cli("compile", "planted:task", "--lm", "replay:c.jsonl", "--registry", "other", "--store", "other.db", "--search-rows", "6",
               "--select-rows", "5", "--holdout-rows", "8", "--concurrency", "2", "--seed", "3", "--executor", "local")  # fmt: skip
    assert done.code == 0, done.err
    candidate = dse.Registry("other").get("AskWarehouse@candidate")
    split = candidate.evidence.dataset.split
    assert (split.search.rows, split.select.rows, len(candidate.evidence.paired.rows)) == (6, 5, 8)
    assert candidate.evidence.seed == 3 and (project / "other.db").exists() and not (project / "other" / "dse.db").exists()


def test_a_dry_run_leaves_nothing_behind(project: Path) -> None:
    before = sorted(project.rglob("*"))
    done = cli("compile", "planted:task", "--lm", "openai/gpt-5-mini", "--registry", "dry", "--record", "dry/c.jsonl", "--dry-run")
    assert done.code == 0 and "at most" in done.out and sorted(project.rglob("*")) == before


def test_compile_exit_codes(project: Path) -> None:
    compiling = ("compile", "planted:task", "--registry", "fresh")
    refused(cli(*compiling, "--lm", "replay:c.jsonl", "--max-minutes", "0.000001"), 4, "DSE320", "budget")
    (project / "half.jsonl").write_text("".join((project / "c.jsonl").read_text().splitlines(keepends=True)[:30]))
    refused(cli(*compiling, "--lm", "replay:half.jsonl"), 3, "DSE402")
    refused(cli(*compiling, "--lm", "replay:missing.jsonl"), 2, "DSE180")
    refused(cli("compile", "planted:unsafe", "--lm", "replay:c.jsonl", "--registry", "fresh"), 2, "DSE161", "reserve")
    refused(cli(*compiling, "--lm", "replay:c.jsonl", "--holdout-rows", "3"), 2, "DSE153")
    refused(cli(*compiling, "--lm", "replay:c.jsonl", "--record", "d.jsonl"), 2, "DSE181")
    refused(cli(*compiling, "--lm", "replay:c.jsonl", "--prices", "data/dataset.json"), 2, "DSE181")
    (project / "data" / "data.jsonl").write_text("{}")
    refused(cli(*compiling, "--lm", "replay:c.jsonl"), 2, "DSE15", "data.jsonl")


@pytest.mark.parametrize("spec, word", [
    ("planted", "MODULE:NAME"), (":task", "MODULE:NAME"), ("..planted:task", "MODULE:NAME"), ("nowhere:task", "cannot be imported"),
    ("planted:nothing", "no 'nothing'"), ("planted:number", "not a dse.Task"),
])  # fmt: skip
def test_a_task_that_is_none(project: Path, spec: str, word: str) -> None:
    refused(cli("compile", spec, "--lm", "replay:c.jsonl"), 2, word)
    refused(cli("run", "artifacts/AskWarehouse@champion", "--task", spec, "--input", INPUT), 2, word.removeprefix("not a "))


@pytest.mark.parametrize("body, word", [
    ("def", "SyntaxError"), ("import dse\nfrom dse import nothing", "ImportError"), ("x = 1\nint('a')", "broken.py, line 2"),
    ("import dse\n@dse.tool(effect='odd')\ndef f(): ...", "DSE110"),
])  # fmt: skip
def test_a_module_that_raises_is_the_users_error(project: Path, body: str, word: str) -> None:
    (project / "broken.py").write_text(body)
    try:
        refused(cli("compile", "broken:task", "--lm", "replay:c.jsonl"), 2, word)
    finally:
        sys.modules.pop("broken", None)


def test_eval_says_by_exit_code_whether_an_artifact_is_good_enough(project: Path) -> None:
    evaluating = ("eval", "artifacts/AskWarehouse@champion", "--task", "planted:task", "--lm", "replay:c.jsonl")
    good = cli(*evaluating, "--min-score", "0.99")
    assert (good.code, "passed" in good.out) == (0, True), good.err
    missed = cli("eval", "artifacts/AskWarehouse@previous", *evaluating[2:], "--min-score", "0.9")
    assert missed.code == 1 and "FAILED: mean score" in missed.out and missed.err == ""
    plain = cli(*evaluating, "--prices", "prices.json")
    assert plain.code == 0 and "nothing was asked of it" in plain.out and "est." in plain.out
    better = cli(*evaluating, "--against", "previous")
    assert better.code == 0 and "Difference in quality: +" in better.out
    worse = cli("eval", "artifacts/AskWarehouse@previous", *evaluating[2:], "--against", "champion")
    assert worse.code == 1 and "significantly worse" in worse.out
    file = str(next(Path("artifacts/AskWarehouse").glob("????????????????.json")).resolve())
    for against in ("champion", "artifacts/AskWarehouse@champion", file):
        assert cli("eval", file, *evaluating[2:], "--against", against, "--max-rows", "4").code in (0, 1)


def test_eval_keeps_rollouts_and_the_seal(project: Path) -> None:
    evaluating = ("eval", "artifacts/AskWarehouse@champion", "--task", "planted:task", "--lm", "replay:c.jsonl")
    assert cli(*evaluating, "--split", "search", "--max-rows", "10", "--store", "kept.db").code == 0
    store = Store("kept.db")
    found = {r["row_id"] for r in store.rollouts()}
    assert len(found) == 10 and found < {r.id for r in WORLD.dataset().split("search")}
    store.close()
    refused(cli(*evaluating, "--split", "holdout"), 2, "DSE190", "sealed", "Only a compile opens it")
    for score in ("nan", "1.5", "-1", "inf"):
        refused(cli(*evaluating, "--min-score", score), 2, "from 0 to 1")
    refused(cli("eval", "artifacts/AskWarehouse@nothing", *evaluating[2:]), 2, "DSE174")
    refused(cli(*evaluating, "--data", "nowhere"), 2, "DSE150")
    refused(cli(*evaluating[:-2], "--lm", "replay:missing.jsonl"), 2, "DSE180")


# ---- run --------------------------------------------------------------------------------------------------

RUN = ("run", "artifacts/AskWarehouse@champion", "--task", "planted:task", "--lm", "replay:c.jsonl")


def test_run_takes_inputs_inline_from_a_file_and_from_standard_input(project: Path) -> None:
    (project / "in.json").write_text(INPUT)
    for done in (cli(*RUN, "--input", INPUT), cli(*RUN, "--input", "@in.json"), cli(*RUN, "--input", "-", stdin=INPUT)):
        assert done.code == 0, done.err
        assert done.json() == {"left": ROW.left}
    signature = cli("run", RUN[1], "--task", "dse.testing.worlds:AskWarehouse", *RUN[4:], "--input", INPUT)
    assert signature.json() == {"left": ROW.left}


def test_run_can_show_its_receipt_and_keep_the_run(project: Path) -> None:
    done = cli(*RUN, "--input", INPUT, "--receipt", "--store", "runs.db")
    receipt = done.json()["receipt"]
    assert (receipt["outcome"], receipt["artifact_id"], receipt["unproven"]) == ("ok", champion().artifact_id, False)
    listed = cli("runs", "list", "--store", "runs.db")
    assert receipt["run_id"] in listed.out and listed.code == 0
    shown = cli("runs", "show", receipt["run_id"], "--store", "runs.db", "--json")
    assert shown.json() == receipt
    assert cli("runs", "show", receipt["run_id"][:8], "--store", "runs.db", "--json").json() == receipt, "the beginning is enough"
    cli(*RUN, "--input", INPUT, "--store", "runs.db")
    refused(cli("runs", "show", "", "--store", "runs.db"), 2, "DSE1")
    whole = cli("runs", "show", receipt["run_id"], "--store", "runs.db", "--journal", "--json").json()
    assert whole["receipt"] == receipt and whole["journal"][0]["kind"] == "run_started"
    refused(cli("runs", "show", "nothing", "--store", "runs.db"), 2, "DSE182")
    refused(cli("runs", "list", "--store", "elsewhere.db"), 2, "DSE182")
    assert not (project / "elsewhere.db").exists()


def test_run_with_tools_their_dependencies_and_a_narrower_allow_list(project: Path) -> None:
    request = next(r.request for r in WORLD.dataset().split("select") if WORLD.solves("tool_call", r.request))
    (project / "shop.py").write_text(f"from dse.testing.worlds import Warehouse, _item_of\n\n\ndef shop():\n"
                                     f"    return Warehouse(_item_of({request!r}))\n\n\nopened = shop()\n\n\n"
                                     f"def closed():\n    raise OSError('no key')\n")  # fmt: skip
    running = ("run", "artifacts/AskWarehouse@previous", *RUN[2:], "--input", json.dumps({"request": request}))
    for deps in ("shop:shop", "shop:opened"):
        done = cli(*running, "--deps", deps)
        assert done.code == 0, done.err
        assert done.json() == {"left": Warehouse(request.split("pieces of ")[1].removesuffix(" are left?")).stock}
    refused(cli(*running, "--deps", "shop:closed"), 2, "cannot be made by shop:closed", "OSError: no key", "shop.py, line ")
    refused(cli(*running, "--deps", "shop:shop", "--allow", "launch"), 2, "DSE131")
    refused(cli(*running, "--deps", "shop:shop", "--allow", "get_weather"), 3, "DSE402")
    sys.modules.pop("shop", None)


def test_run_refuses_bad_inputs_and_other_models(project: Path) -> None:
    for given in ("{", "[1]", "@missing.json"):
        assert cli(*RUN, "--input", given).code == 2
    refused(cli(*RUN, "--input", '{"request": 7, "x": 1}'), 2, "DSE122", "request", "x")
    refused(cli(*RUN, "--input", '{"request": "never recorded"}'), 3, "DSE402")
    record(ScriptedModel(WORLD.reply, "scripted/other"), "other.jsonl")
    other = (*RUN[:-1], "replay:other.jsonl", "--input", INPUT)
    refused(cli(*other), 2, "DSE175")
    assert cli(*other, "--allow-unproven", "--receipt").json()["receipt"]["unproven"] is True


def test_a_run_without_an_answer_is_a_failed_check(project: Path) -> None:
    with pytest.raises(dse.DseError):
        record(ScriptedModel(lambda request: say("No."), NAME), "silent.jsonl")
    refused(cli(*RUN[:-1], "replay:silent.jsonl", "--input", INPUT), 1, "DSE302")


# ---- artifacts --------------------------------------------------------------------------------------------


def test_artifacts_are_listed_shown_and_compared(project: Path) -> None:
    new, old = champion(), dse.Registry("artifacts").get("AskWarehouse@previous")
    listed = cli("artifacts", "list")
    assert listed.code == 0 and listed.err == ""
    for artifact, alias in ((new, "champion"), (old, "previous")):
        line = next(line for line in listed.out.splitlines() if artifact.artifact_id[7:19] in line)
        assert alias in line and artifact.plan.mode in line and artifact.verdict in line and NAME in line
    assert cli("artifacts", "list", "AskWarehouse").out == listed.out
    assert new.artifact_id[7:19] not in cli("artifacts", "list", "Other").out
    assert "KEEP (baseline)" in next(line for line in listed.out.splitlines() if "previous" in line)
    assert "no artifacts of Other" in cli("artifacts", "list", "Other").out
    refused(cli("artifacts", "list", "--registry", "nowhere"), 2, "DSE174", "no registry here")
    refused(cli("explain", "artifacts/AskWarehouse@candidate"), 2, "DSE174", "is the champion now")
    shown = cli("artifacts", "show", "artifacts/AskWarehouse@champion")
    assert f"AskWarehouse  {new.artifact_id}" in shown.out, "an id is never broken over two lines"
    diff = cli("artifacts", "diff", "artifacts/AskWarehouse@previous", "artifacts/AskWarehouse@champion")
    assert "plan.mode: tool_call -> direct" in diff.out and "plan.allow: -find_item" in diff.out
    assert cli("artifacts", "diff", "artifacts/AskWarehouse@champion", "artifacts/AskWarehouse@champion").out == ""


def test_verify_fails_for_what_was_changed(project: Path) -> None:
    good = cli("artifacts", "verify", "artifacts/AskWarehouse@champion")
    assert good.code == 0 and "gate: ok (PROMOTE)" in good.out
    path = next(p for p in Path("artifacts/AskWarehouse").glob("*.json") if champion().artifact_id[7:23] == p.stem)
    path.write_text(path.read_text().replace('"mode":"direct"', '"mode":"code"'))
    changed = cli("artifacts", "verify", "artifacts/AskWarehouse@champion")
    assert changed.code == 1 and "DSE171" in changed.out and "Traceback" not in changed.err
    listed = cli("artifacts", "list")
    assert listed.code == 1 and str(path) in listed.err and "previous" in listed.out
    refused(cli("artifacts", "verify", "artifacts/AskWarehouse@nothing"), 2, "DSE174")


def test_verify_fails_for_a_forged_verdict(project: Path) -> None:
    """An artifact whose ids all fit, but whose verdict does not follow from its rows."""
    from dse.artifacts.artifact import Artifact

    old = dse.Registry("artifacts").get("AskWarehouse@previous")
    evidence = old.evidence.model_dump(mode="json")
    evidence["gate"]["verdict"] = "PROMOTE"
    forged = Artifact.build(signature=old.program.signature.model_dump(mode="json"), plan=old.plan, contracts=dict(old.contracts),
                            model={"name": old.model_name, "params": dict(old.params)}, evidence=evidence)  # fmt: skip
    forged.save("forged.json")
    done = cli("artifacts", "verify", "forged.json")
    assert done.code == 1 and "gate: FAILED" in done.out


def test_promote_and_rollback_need_reasons_and_are_recorded(project: Path) -> None:
    new, old = champion().artifact_id, dse.Registry("artifacts").get("AskWarehouse@previous").artifact_id
    refused(cli("artifacts", "promote", f"AskWarehouse@{old}"), 2, "DSE190", "reason")
    assert cli("artifacts", "promote", f"AskWarehouse@{old}", "--reason", "tools must be used", "--by", "Ada").code == 0
    assert champion().artifact_id == old
    assert cli("artifacts", "rollback", "AskWarehouse").code == 2, "a missing option"
    done = cli("artifacts", "rollback", "AskWarehouse", "--reason", "no, they need not", "--by", "Bo")
    assert done.code == 0 and new[7:19] in done.out
    assert champion().artifact_id == new
    moves = [(r.action, r.by, r.reason) for r in dse.Registry("artifacts").history("AskWarehouse")][-2:]
    assert moves == [("promote", "Ada", "tools must be used"), ("rollback", "Bo", "no, they need not")]
    refused(cli("artifacts", "rollback", "Nothing", "--reason", "x"), 2, "DSE174")


def test_a_registry_is_named_by_the_reference_or_by_an_option(project: Path) -> None:
    shutil.move("artifacts", "arts")
    new, old = (dse.Registry("arts").get(f"AskWarehouse@{alias}").artifact_id for alias in ("champion", "previous"))
    assert cli("artifacts", "list", "arts/AskWarehouse").out == cli("artifacts", "list", "--registry", "arts").out != ""
    done = cli("artifacts", "promote", f"arts/AskWarehouse@{old}", "--reason", "by path")
    assert done.code == 0 and dse.Registry("arts").get("AskWarehouse@champion").artifact_id == old, done.err
    done = cli("artifacts", "rollback", "arts/AskWarehouse", "--reason", "by path")
    assert done.code == 0 and dse.Registry("arts").get("AskWarehouse@champion").artifact_id == new, done.err
    file = f"arts/AskWarehouse/{old[7:23]}.json"
    assert cli("artifacts", "promote", file, "--reason", "by file").code == 0
    assert cli("artifacts", "rollback", "AskWarehouse", "--registry", "arts", "--reason", "by option").code == 0
    assert [r.reason for r in dse.Registry("arts").history("AskWarehouse")][-4:] == ["by path", "by path", "by file", "by option"]
    refused(cli("artifacts", "promote", f"arts/AskWarehouse@{old}", "--registry", "elsewhere", "--reason", "x"), 2, "DSE174")


def test_explain_says_why_in_words(project: Path) -> None:
    text = cli("explain", "artifacts/AskWarehouse@champion").out
    assert "runs in mode direct" in text and "p = " in text and "Not known:" in text
    assert "Declared but out of reach: find_item (read), get_stock (read), reserve (write), get_weather (read)." in text
    assert "because better" in text and "wins/losses/ties" in text


# ---- stubs, datasets, the rest ----------------------------------------------------------------------------


def test_stubs(project: Path) -> None:
    for spec in ("planted:task", "dse.testing.worlds:AskWarehouse"):
        done = cli("stubs", spec)
        assert done.code == 0, done.err
        assert "async def reserve(item_id: int, amount: int) -> int:" in done.out and "def submit(*, left: int)" in done.out
        compile(done.out, "stubs.pyi", "exec")
    refused(cli("stubs", "planted:number"), 2, "dse.Signature")


def test_datasets_are_checked_and_sealed(project: Path) -> None:
    done = cli("dataset", "check", "data", "--task", "planted:task")
    assert done.code == 0 and done.json()["splits"]["holdout"]["rows"] == WORLD.dataset().holdout_summary()["rows"]
    more = {"id": "new", "request": "How many pieces of something else entirely are left?", "left": 1, "reserved": 0, "site": "site-new"}
    with (project / "data" / "data.jsonl").open("a") as file:
        file.write(json.dumps(more) + "\n")
    refused(cli("dataset", "check", "data"), 2, "DSE155", "dse dataset seal data")
    before = json.loads((project / "data" / "dataset.json").read_text())["split"]["assignment"]
    sealed = cli("dataset", "seal", "data")
    assert sealed.code == 0 and sealed.json()["rows"] == len(WORLD.rows()) + 1
    after = json.loads((project / "data" / "dataset.json").read_text())["split"]["assignment"]
    assert before.items() < after.items() and "site-new" in after
    assert cli("dataset", "check", "data").json() == sealed.json()
    with (project / "data" / "data.jsonl").open("a") as file:
        file.write(json.dumps(more | {"id": "wrong", "left": "many", "request": "none"}) + "\n")
    cli("dataset", "seal", "data")
    refused(cli("dataset", "check", "data", "--task", "planted:task"), 2, "DSE151", "left")


def test_help_version_and_mistyped_commands() -> None:
    assert cli("--version").out.strip() == dse.__version__
    for command in ([], ["artifacts"], ["runs"], ["dataset"]):
        assert "Usage" in cli(*command, "--help").out
    for command in ("compile", "eval", "run", "stubs", "explain"):
        assert cli(command, "--help").code == 0
    assert cli("comple").code == 2


def test_as_a_process(project: Path) -> None:
    def process(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "dse.cli", *arguments], capture_output=True, text=True, cwd=project,
                              env={**os.environ, "PYTHONPATH": str(Path(dse.__file__).parent.parent)})  # fmt: skip

    answer = process(*RUN, "--input", INPUT)
    assert (answer.returncode, json.loads(answer.stdout)) == (0, {"left": ROW.left}), answer.stderr
    missing = process(*RUN, "--input", '{"request": "never recorded"}')
    assert missing.returncode == 3 and "[DSE402]" in missing.stderr and "Traceback" not in missing.stderr
