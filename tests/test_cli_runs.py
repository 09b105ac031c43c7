"""`dse runs` by real processes: a run waits for a decision, is shown, decided about, resumed, replayed, forked, judged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import dse
from dse.analysis import timeline
from dse.portal import run_sync
from dse.store.cassette import RecordModel
from dse.store.journal import Store
from dse.testing.scripted import ScriptedModel, call
from tests import artifact_examples
from tests.artifact_examples import MODEL, Audit, make

PLAN = dse.Plan(mode="tool_call", prompts={"act": dse.Prompt(instructions="Find them.")}, allow=("look_up", "send_mail"))
OFFICE = '''
import os
from types import SimpleNamespace

from artifact_examples import Audit


def send_mail(to: str, body: str) -> bool:
    """Send a mail."""
    with open("sent.txt", "a") as file:
        file.write(to + chr(10))
    if os.environ.get("DIE") == "sent":
        os.kill(os.getpid(), 9)
    return True


office = SimpleNamespace(signature=Audit, toolbox=Audit.spec().toolbox().bind("send_mail", send_mail))
'''
MAIL = {"to": "ada@office", "body": "You are over budget: account 4711-0815."}
SCRIPT = [call(("look_up", {"person": "Ada"})), call(("send_mail", MAIL)), call(("submit", {"names": ["Ada"]}))]
TASK = ("--artifact", "audit.json", "--task", "office:office", "--lm", "replay:c.jsonl")
QUESTION = {"question": "Who? \x1b[2J\u202e", "year": 2025}


@dataclass
class Done:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Project:
    """A folder with a module, an artifact and a recording, in which processes of ``dse`` run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, **environment: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "dse.cli", *arguments], capture_output=True, text=True, cwd=self.folder, timeout=120,
            env={**os.environ, "PYTHONPATH": str(Path(dse.__file__).parent.parent), **environment},
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def run(self, **environment: str) -> Done:
        return self("run", "audit.json", *TASK[2:], "--input", json.dumps(QUESTION), "--store", "dse.db", **environment)

    def runs(self, *arguments: str, **environment: str) -> Done:
        return self("runs", *arguments, **environment)

    def suspended(self) -> tuple[str, dict[str, Any]]:
        """A run that waits, and what it waits for."""
        assert self.run().code == 5
        (waiting,) = [one for one in self.runs("pending", "--json").json() if one["run_id"] not in self.known]
        self.known.add(waiting["run_id"])
        return waiting["run_id"], waiting

    def finished(self) -> str:
        run_id, waiting = self.suspended()
        assert self.runs("approve", run_id, "2", "--hash", waiting["arguments_hash"]).code == 0
        assert self.runs("resume", run_id, *TASK).code == 0
        return run_id

    @property
    def sent(self) -> list[str]:
        file = self.folder / "sent.txt"
        return file.read_text().split() if file.exists() else []

    known: set[str]


def record(script: list[Any], file: Path) -> None:
    model = ScriptedModel(script, MODEL["name"], params=MODEL["params"])
    recording = RecordModel(model, file)
    try:
        dse.Program(Audit, PLAN, lm=recording, approve=lambda _: True)(**QUESTION)
    finally:
        run_sync(recording.aclose)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    shutil.copy(artifact_examples.__file__, tmp_path)
    (tmp_path / "office.py").write_text(OFFICE)
    make(PLAN).save(tmp_path / "audit.json")
    record(SCRIPT, tmp_path / "c.jsonl")
    made = Project(tmp_path)
    made.known = set()
    return made


def refused(done: Done, code: int, *words: str) -> None:
    assert done.code == code, (done.out, done.err)
    assert sum(line.startswith("[DSE") for line in done.err.splitlines()) == 1, done.err
    assert "Traceback" not in done.err + done.out
    for word in words:
        assert word in done.err, done.err


# ---- waiting and deciding ---------------------------------------------------------------------------------


def test_a_run_waits_is_approved_and_goes_on(project: Project) -> None:
    refused(project.run(), 5, "DSE310", "send_mail")
    (waiting,) = project.runs("pending", "--json").json()
    run_id, arguments_hash = waiting["run_id"], waiting["arguments_hash"]
    assert waiting["arguments"] == {"to": MAIL["to"], "body": "[redacted]"} and project.sent == []
    readable = project.runs("pending").out
    assert arguments_hash in readable and f"call 2 of run {run_id}: send_mail (write)" in readable and 'to = "ada@office"' in readable
    assert "account 4711" not in readable
    refused(project.runs("resume", run_id, *TASK), 5, "DSE310")  # nobody has decided
    done = project.runs("approve", run_id[:8], "2", "--hash", arguments_hash[: len("sha256:") + 12], "--by", "Bo")
    assert (done.code, run_id in done.out) == (0, True), done.err
    assert project.runs("pending").out == "nothing waits\n"
    resumed = project.runs("resume", run_id[:8], *TASK, "--receipt")
    assert resumed.code == 0, resumed.err
    assert resumed.json()["outputs"] == {"names": ["Ada"]} and project.sent == [MAIL["to"]]
    assert resumed.json()["receipt"]["effects"] == "completed [send_mail#2]"
    shown = project.runs("show", run_id, "--journal").out
    assert "call 2 send_mail was approved by Bo" in shown
    refused(project.runs("resume", run_id, *TASK), 2, "DSE184", "over")
    assert project.sent == [MAIL["to"]]


def test_a_denied_call_never_happens_and_the_program_is_told(project: Project) -> None:
    record([*SCRIPT[:2], call(("submit", {"names": ["Ada"]}))], project.folder / "c.jsonl")
    run_id, waiting = project.suspended()
    assert project.runs("deny", run_id, "2", "--hash", waiting["arguments_hash"]).code == 2, "a reason is needed"
    assert project.runs("deny", run_id, "2", "--hash", waiting["arguments_hash"], "--reason", "not today", "--by", "Bo").code == 0
    # What the model is told now was never recorded: the run stops for outside reasons, the decision stays.
    refused(project.runs("resume", run_id, *TASK), 3, "DSE402")
    shown = project.runs("show", run_id, "--journal").out
    assert "call 2 send_mail was denied by Bo" in shown and "not today" in shown and "DSE205" in shown
    assert project.sent == []


def test_a_decision_is_about_what_was_shown(project: Project) -> None:
    run_id, waiting = project.suspended()
    digits = waiting["arguments_hash"].removeprefix("sha256:")
    other = ("0" if digits[0] != "0" else "1") + digits[1:]
    for given in ("sha256:" + digits[:11], "everything!!!", digits + "0", other[:12]):
        refused(project.runs("approve", run_id, "2", "--hash", given), 2, "DSE185")
    refused(project.runs("deny", run_id, "2", "--hash", other, "--reason", "x"), 2, "DSE185")
    refused(project.runs("approve", run_id, "3", "--hash", digits), 2, "DSE185", "No such call")
    refused(project.runs("approve", run_id, "two", "--hash", digits), 2, "DSE100")
    refused(project.runs("approve", "nothing", "2", "--hash", digits), 2, "DSE182")
    assert [one["call_id"] for one in project.runs("pending", run_id, "--json").json()] == [2], "nothing was decided"
    assert project.runs("approve", run_id, "2", "--hash", digits[:12].upper()).code == 0
    refused(project.runs("deny", run_id, "2", "--hash", digits, "--reason", "too late"), 2, "DSE185", "decided already")


def test_a_run_needs_the_program_that_it_was_started_with(project: Project) -> None:
    run_id, _ = project.suspended()
    refused(project.runs("resume", run_id, *TASK[2:]), 2, "DSE100", "--artifact")
    refused(project.runs("resume", run_id, *TASK, "--mode", "tool_call"), 2, "DSE100")
    refused(project.runs("resume", run_id, "--mode", "code", *TASK[2:]), 2, "DSE184", "another program")
    refused(project.runs("resume", run_id, *TASK, "--allow", "look_up"), 2, "DSE184", "another program")
    refused(project.runs("resume", "ffff", *TASK), 2, "DSE182")
    refused(project.runs("resume", run_id, *TASK, "--store", "elsewhere.db"), 2, "DSE182")
    assert not (project.folder / "elsewhere.db").exists()
    (listed,) = project.runs("list", "--outcome", "suspended", "--json").json()
    assert listed["run_id"] == run_id, "it is as it was"


# ---- a process that dies ----------------------------------------------------------------------------------


def test_a_write_that_nobody_knows_the_end_of(project: Project) -> None:
    run_id, waiting = project.suspended()
    project.runs("approve", run_id, "2", "--hash", waiting["arguments_hash"])
    assert project.runs("resume", run_id, *TASK, DIE="sent").code == -signal.SIGKILL
    assert project.sent == [MAIL["to"]]
    assert [run["run_id"] for run in project.runs("list", "--outcome", "lost", "--json").json()] == [run_id]
    shown = project.runs("show", run_id[:6]).out
    assert "lost" in shown and 'call 2 send_mail(to="ada@office", body="[redacted]") began, and nobody recorded its end' in shown
    assert "effects" not in shown, "the receipt of an earlier stop says nothing about now"
    refused(project.runs("resume", run_id, *TASK), 5, "DSE311", "send_mail#2")
    for wrong in ("2=maybe", "2=done:{", "2=retry:3", "x=retry"):
        assert project.runs("resume", run_id, *TASK, "--decide", wrong).code == 2
    refused(project.runs("resume", run_id, *TASK, "--decide", "1=retry"), 2, "DSE185")
    refused(project.runs("resume", run_id, *TASK, "--decide", '2=done:"perhaps"'), 2, "DSE185")
    done = project.runs("resume", run_id, *TASK, "--decide", "2=done:true", "--no-snapshots", "--take-over", "--by", "Bo")
    assert (done.code, done.json()) == (0, {"names": ["Ada"]}), done.err
    assert project.sent == [MAIL["to"]], "not sent again"
    assert "somebody decided done by Bo" in project.runs("show", run_id, "--journal").out


# ---- afterwards -------------------------------------------------------------------------------------------


def test_show_is_readable_and_safe_for_a_terminal(project: Project) -> None:
    run_id = project.finished()
    shown = project.runs("show", run_id, "--journal")
    assert shown.code == 0, shown.err
    for part in (f"run {run_id}  ok", "Audit in mode tool_call", 'call 1 look_up(person="Ada", quarter="Q1") begins',
                 "call 1 look_up gave []", "call 2 send_mail gave true", 'gave names = ["Ada"]', "effects completed [send_mail#2]",
                 'body="[redacted]"', "asks for submit"):  # fmt: skip
        assert part in shown.out, (part, shown.out)
    assert "account 4711" not in shown.out and "\x1b" not in shown.out and "\u202e" not in shown.out
    assert "\\u001b[2J\\u202e" in shown.out
    data = project.runs("show", run_id, "--journal", "--json").json()
    assert data["receipt"]["outcome"] == "ok" and data["journal"][0]["kind"] == "run_started"
    refused(project.runs("list", "--outcome", "fine"), 2, "DSE100", "suspended")


def test_what_is_not_printable_is_shown_as_an_escape() -> None:
    entries = [{"seq": 0, "kind": "feed", "code": "a = 1\nb = '\x9b2J\u2066'"},
               {"seq": 1, "kind": "tool_refused", "call_id": 1_000_002, "tool": "x\x1b]0;", "fault": "DSE201", "message": "no\rno"}]  # fmt: skip
    text = "\n".join(line.plain for line in timeline.timeline(entries))
    assert text.splitlines()[1:3] == ["         a = 1", "         b = '\\x9b2J\\u2066'"]
    old = {"seq": 2, "kind": "model_call", "text": "of an earlier version"}
    assert 'text "of an earlier version"' in next(timeline.timeline([old])).plain
    assert "call 1.2 x\\x1b]0; was refused with DSE201: no\\rno" in text


def test_replay_says_whether_the_path_is_the_same(project: Project) -> None:
    run_id = project.finished()
    same = project.runs("replay", run_id, *TASK)
    assert same.code == 0 and "the same path" in same.out and project.sent == [MAIL["to"]]
    stored = Store(project.folder / "dse.db")
    receipt = stored.run(run_id)[0] | {"transcript_hash": "sha256:" + "0" * 64}
    with stored._write() as c:  # somebody who can write to the store, and has no key
        runs = stored._tables["runs"]
        c.execute(runs.update().values(receipt=json.dumps(receipt)))
    refused(project.runs("replay", run_id, *TASK), 2, "DSE183")
    with stored._write() as c:
        events = stored._tables["events"]
        c.execute(events.delete().where(events.c.seq == 3))
    stored.close()
    refused(project.runs("replay", run_id, *TASK), 2, "DSE183")


def test_replay_of_a_program_that_takes_another_path(project: Project) -> None:
    run_id = project.finished()
    stored = Store(project.folder / "dse.db")
    kept = stored.journal(run_id)
    entries = [e if e["kind"] != "tool_outcome" or e["call_id"] != 1 else {**e, "result": ["other"]} for e in kept.entries]
    log = stored.new_log("another", kept.row["program_id"], "call")  # written with the store's key, but it did not happen
    for entry in entries:
        log.put(entry, 0.0)
    stored.open_run(log, {"signature": "Audit", "mode": "tool_call", "model": None, "hidden": json.loads(kept.row["hidden"])})
    stored.stop_run(log, "ok", {})
    stored.close()
    refused(project.runs("replay", "another", *TASK), 1, "DSE406", "Run it with the code")


def test_a_fork_is_a_run_of_its_own(project: Project) -> None:
    run_id = project.finished()
    refused(project.runs("fork", run_id, "1", *TASK), 2, "DSE100")
    refused(project.runs("fork", run_id, "1", *TASK, "--value", "1", "--error", "x"), 2, "DSE100")
    refused(project.runs("fork", run_id, "1", *TASK, "--value", "text"), 2, "DSE140")
    refused(project.runs("fork", run_id, "1", *TASK, "--value", "7"), 2, "DSE185")
    refused(project.runs("fork", run_id, "9", *TASK, "--value", "[]"), 2, "DSE185")
    made = project.runs("fork", run_id, "2", *TASK, "--value", "true")
    assert made.code == 0, made.err
    forked = made.out.strip()
    assert [r["run_id"] for r in project.runs("list", "--outcome", "forked", "--json").json()] == [forked]
    assert "forked" in project.runs("show", forked, "--journal").out
    assert project.runs("resume", forked, *TASK).json() == {"names": ["Ada"]}
    failing = project.runs("fork", run_id, "1", *TASK, "--error", "the archive is closed").out.strip()
    refused(project.runs("resume", failing, *TASK), 3, "DSE402")  # the model never heard that
    assert "the archive is closed" in project.runs("show", failing, "--journal").out
    assert project.sent == [MAIL["to"]]


def test_score_prune_and_rotate_key(project: Project) -> None:
    run_id = project.finished()
    waiting, _ = project.suspended()
    score = ("score", run_id, "--name", "helpful", "--value")
    for wrong in ("1.5", "nan"):
        refused(project.runs(*score, wrong), 2, "DSE160")
    refused(project.runs("score", "nothing", "--name", "x", "--value", "1"), 2, "DSE182")
    assert project.runs(*score, "0.25", "--feedback", "too short", "--judge", "Ada").code == 0
    assert project.runs(*score, "0.75", "--judge", "Bo").code == 0
    shown = project.runs("show", run_id).out
    assert "judged helpful 0.75 by Bo" in shown and "too short" not in shown
    refused(project.runs("prune", "--older-than", "soon"), 2, "DSE100")
    refused(project.runs("prune", "--older-than", "0s", "--outcome", "done"), 2, "DSE100")
    key = (project.folder / "dse.db.key").read_text()
    done = project.runs("rotate-key")
    assert done.code == 0, done.err
    assert (project.folder / "dse.db.key").read_text().endswith(key) and (project.folder / "dse.db.key").stat().st_mode & 0o77 == 0
    assert project.runs("replay", run_id, *TASK).code == 0, "what the old key signed is still valid"
    refused(project.runs("rotate-key", DSE_KEY="ab" * 32), 2, "DSE182", "DSE_KEY")
    assert project.runs("prune", "--older-than", "30d").out == "0 runs forgotten\n"
    assert project.runs("prune", "--older-than", "0s").out == "1 runs forgotten\n"
    assert [run["run_id"] for run in project.runs("list", "--json").json()] == [waiting], "what can go on stays"
    assert project.runs("prune", "--older-than", "0s", "--outcome", "suspended").out == "1 runs forgotten\n"
    assert project.runs("pending").out == "nothing waits\n"
