"""The same store in SQLite and in PostgreSQL: opening, runs, decisions, evaluations, several processes; and what only a
server can do: be restarted, crash, lose a connection, lose the answer to a commit."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sqlalchemy as sa
from test_resume import NOTING, Case, Settle, die_inside_a_write, paying, rounds, script, submit, suspended

import dse
from dse.errors import (
    CompileTaken,
    DecisionRefused,
    EffectUnknown,
    JournalTampered,
    ModelUnavailable,
    RunNotResumable,
    RunSuspended,
    RunTaken,
    StoreError,
    StoreUnavailable,
)
from dse.evaluation.evaluator import Evaluator, RolloutRecord
from dse.store.journal import SCHEMA_VERSION, Store
from dse.strategies.base import seed_plan
from dse.testing import call, say
from dse.testing.worlds import AskWarehouse, PlantedWorld

if TYPE_CHECKING:
    from postgresql_server import Server

    Open = Callable[..., Case]

ROOT = Path(__file__).parent.parent
MODES = ("direct", "tool_call", "code")
PATIENCE_S = 60


@pytest.fixture
def case() -> Iterator[Open]:
    """Makes a `Case`, whose store is closed when the test ends."""
    made: list[Case] = []

    def make(*arguments: Any, **options: Any) -> Case:
        made.append(Case(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.store.close()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store(store_url)
    yield opened
    opened.close()


def execute(url: str, *statements: str) -> list[Any]:
    """What the last of these statements gives, past the store."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.begin() as c:
            for statement in statements:
                result = c.exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()


class Child:
    """Another process, which executes a function of this module. Lines are how the two talk."""

    def __init__(self, work: str) -> None:
        path = os.pathsep.join(str(one) for one in (ROOT, ROOT / "tests"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"import test_store_dialects as t; print('ready', flush=True); input(); t.{work}"], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        return line

    def say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> int:
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode in (0, -signal.SIGKILL), errors
        return self.process.returncode


def together(*works: str) -> list[Child]:
    """Processes that begin their work at the same time."""
    children = [Child(work) for work in works]
    for child in children:
        assert child.hear() == "ready"
    for child in children:
        child.say()
    return children


def at_once(works: list[Callable[[], Any]]) -> list[Any]:
    """What each gives or raises, in threads that begin at the same time."""
    gate = threading.Barrier(len(works))

    def one(work: Callable[[], Any]) -> Any:
        gate.wait()
        try:
            return work()
        except Exception as exc:
            return exc

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, works))


# --- opening


def open_and_close(url: str) -> None:
    Store(url).close()


def test_processes_that_open_a_new_store_at_the_same_time_make_it_once(store_url: str) -> None:
    for child in together(*[f"open_and_close({store_url!r})"] * 2):
        assert child.end() == 0
    Store(store_url).close()
    assert execute(store_url, "SELECT * FROM meta") == [("schema_version", str(SCHEMA_VERSION))]


@pytest.mark.parametrize("statement", ["CREATE TABLE invoices (id INTEGER)", "CREATE TABLE meta (key TEXT, value TEXT)",
                                       "CREATE TABLE meta (n INTEGER)"])  # fmt: skip
def test_a_foreign_database_is_left_alone(store_url: str, statement: str) -> None:
    execute(store_url, statement)
    with pytest.raises(StoreError):
        Store(store_url)
    engine = sa.create_engine(store_url.replace("postgresql://", "postgresql+psycopg://"))
    assert len(sa.inspect(engine).get_table_names()) == 1
    engine.dispose()


def test_a_newer_store_is_refused(store_url: str) -> None:
    open_and_close(store_url)
    execute(store_url, f"UPDATE meta SET value = '{SCHEMA_VERSION + 1}'")
    with pytest.raises(StoreError, match="newer version"):
        Store(store_url)


SCHEMA_1 = (
    "CREATE TABLE meta (key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (key))",
    "CREATE TABLE runs (run_id TEXT NOT NULL, program_id TEXT NOT NULL, signature TEXT NOT NULL, mode TEXT, model TEXT, "
    "outcome TEXT NOT NULL, created TEXT NOT NULL, receipt TEXT NOT NULL, PRIMARY KEY (run_id))",
    "CREATE INDEX ix_runs_created ON runs (created)",
    "CREATE TABLE events (run_id TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, entry TEXT NOT NULL, "
    "PRIMARY KEY (run_id, seq))",
    "CREATE TABLE rollouts (rollout_id TEXT NOT NULL, program_id TEXT NOT NULL, signature TEXT, mode TEXT, model TEXT, "
    "allow TEXT, row_id TEXT, row_hash TEXT NOT NULL, cluster TEXT, replicate INTEGER, outcome TEXT NOT NULL, "
    "error_class TEXT, outputs TEXT, end_state TEXT, receipt TEXT, journal TEXT, model_calls INTEGER, tool_calls INTEGER, "
    "input_tokens INTEGER, output_tokens INTEGER, usage_source TEXT, cost_usd FLOAT, cost_source TEXT, latency_s FLOAT, "
    "latency_source TEXT, created TEXT, PRIMARY KEY (rollout_id))",
    "CREATE INDEX ix_rollouts_program_id ON rollouts (program_id)",
    "CREATE INDEX ix_rollouts_row_hash ON rollouts (row_hash)",
    "CREATE TABLE scores (rollout_id TEXT NOT NULL, metric TEXT NOT NULL, value FLOAT NOT NULL, feedback TEXT, "
    "components TEXT, PRIMARY KEY (rollout_id, metric))",
    "CREATE TABLE openings (id TEXT NOT NULL, dataset TEXT, revision TEXT, compile_id TEXT, purpose TEXT, created TEXT, "
    "PRIMARY KEY (id))",
    "CREATE TABLE opening_rows (opening_id TEXT NOT NULL, row_hash TEXT NOT NULL, PRIMARY KEY (opening_id, row_hash))",
    "CREATE INDEX ix_opening_rows_row_hash ON opening_rows (row_hash)",
    "CREATE TABLE compiles (compile_id TEXT NOT NULL, signature TEXT, artifact_id TEXT, created TEXT, report TEXT, "
    "PRIMARY KEY (compile_id))",
    "INSERT INTO meta VALUES ('schema_version', '1')",
    "INSERT INTO runs VALUES ('old', 'p', 'Settle', 'direct', 'm', 'infrastructure', '2026-01-01T00:00:00+00:00', "
    """'{"run_id":"old"}')""",
    """INSERT INTO events VALUES ('old', 0, 'run_started', '{"kind":"run_started","seq":0}')""",
    "INSERT INTO rollouts (rollout_id, program_id, row_hash, outcome, outputs, cost_usd) VALUES "
    """('r', 'p', 'h', 'ok', '{"n":1}', 0.1)""",
    "INSERT INTO scores VALUES ('r', 'm', 0.25, 'nearly', '{}')",
    "INSERT INTO openings VALUES ('o', 'd', 'v', 'c', 'gate', '2026-01-01T00:00:00+00:00')",
    "INSERT INTO opening_rows VALUES ('o', 'h')",
    "INSERT INTO compiles VALUES ('c', 'Settle', 'a', '2026-01-01T00:00:00+00:00', '{}')",
)


def test_a_store_of_the_first_schema_is_brought_forward_with_all_that_is_in_it(store_url: str, case: Open) -> None:
    execute(store_url, *SCHEMA_1)
    assert at_once([lambda: open_and_close(store_url)] * 3) == [None] * 3
    assert execute(store_url, "SELECT value FROM meta") == [(str(SCHEMA_VERSION),)]
    if store_url.startswith("sqlite"):
        found = execute(store_url, "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'rollouts' AND sql IS NOT NULL")
        assert sorted(found) == [("ix_rollouts_compared",), ("ix_rollouts_row_hash",)]
    new = case(store_url, "direct", rounds(say("[[ ## report ## ]]\nfine")))
    store = new.store
    assert [(run["run_id"], run["outcome"]) for run in store.runs()] == [("old", "infrastructure")]
    assert store.run("old") == ({"run_id": "old"}, [{"kind": "run_started", "seq": 0}])
    (rollout,) = store.rollouts()
    assert (rollout["outputs"], rollout["cost_usd"], rollout["score"], rollout["feedback"]) == ({"n": 1}, 0.1, 0.25, "nearly")
    (outcome,) = store.outcomes("m")
    assert (outcome.program_id, outcome.row_hash, outcome.cost_usd, outcome.score) == ("p", "h", 0.1, 0.25)
    assert store.record({"dataset": "d", "revision": "v", "compile_id": "d", "row_hashes": ["h"]}) == 2
    assert [one["compile_id"] for one in store.compiles()] == ["c"]
    with pytest.raises(RunNotResumable, match="kept without"):
        store.take_run("old", None)
    made = new.program(matter="x")
    assert new.program.replay(made.receipt["run_id"]).report == "fine"


def test_a_compile_that_an_earlier_version_left_unfinished_is_nobodys(store_url: str) -> None:
    open_and_close(store_url)
    execute(store_url, "ALTER TABLE unfinished DROP COLUMN owner", "ALTER TABLE unfinished DROP COLUMN since",
            """INSERT INTO unfinished VALUES ('k', '{"parent": null}', '{"by": [], "elapsed_s": 1.5}')""",
            "UPDATE meta SET value = '4'")  # fmt: skip
    assert at_once([lambda: open_and_close(store_url)] * 3) == [None] * 3
    assert execute(store_url, "SELECT value FROM meta") == [(str(SCHEMA_VERSION),)]
    with contextlib.closing(Store(store_url)) as store:
        assert store.begin_compile("k", {"parent": "other"}) == ({"parent": None}, {"by": [], "elapsed_s": 1.5})
        with pytest.raises(CompileTaken):
            store.begin_compile("k", {})
        store.keep_spending("k", {"by": [], "elapsed_s": 2.5})
        store.leave_compile("k")
        assert store.begin_compile("k", {})[1] == {"by": [], "elapsed_s": 2.5}
        store.finish_compile("k")
        store.leave_compile("k")
    assert execute(store_url, "SELECT * FROM unfinished") == []


# --- runs


def outage(mode: str, down: list[bool]) -> Callable[[Any], Any]:
    """Look, report; while `down`, the model is gone where it would report."""
    if mode == "direct":
        good = rounds(say("[[ ## report ## ]]\nnobody can know"), say("[[ ## report ## ]]\nfine"))
    elif mode == "code":
        good = script("a = await look(1)\nprint(a)", "b = await book(2)\nsubmit(report=f'{a} {b}')")
    else:
        def good(request: Any) -> Any:
            return rounds(call(("look", {"n": 1})), call(("book", {"n": 2})), submit(request))(request)

    def reply(request: Any) -> Any:
        text = str(request["messages"])
        if down[0] and (mode == "direct" or "10" in text):
            raise ModelUnavailable("The model is gone")
        return good(request)

    return reply


@pytest.mark.parametrize("mode", MODES)
def test_runs_are_kept_listed_shown_resumed_replayed_and_forked(store_url: str, case: Open, mode: str) -> None:
    down = [True]
    first = case(store_url, mode, outage(mode, down))
    with pytest.raises(ModelUnavailable) as caught:
        first.program(matter="ünïcode \x00 \U0001f980", pin="4711-secret")
    run_id = caught.value.details["run_id"]
    assert [(run["run_id"], run["mode"], run["outcome"]) for run in first.store.runs()] == [(run_id, mode, "infrastructure")]
    assert first.store.runs(outcome="ok") == []

    down[0] = False
    second = case(store_url, mode, outage(mode, down))
    prediction = second.program.resume(run_id)
    assert first.ledger.calls + second.ledger.calls == ([] if mode == "direct" else [("look", 1), ("book", 2)])
    receipt, entries = second.store.run(run_id)
    assert receipt == prediction.receipt and [e["seq"] for e in entries] == list(range(len(entries)))
    assert entries[0]["inputs"]["matter"] == "ünïcode \x00 \U0001f980" and "4711-secret" not in repr((receipt, entries))
    with pytest.raises(RunNotResumable, match="over"):
        first.program.resume(run_id)
    third = case(store_url, mode, outage(mode, down))
    assert third.program.replay(run_id).outputs == prediction.outputs and not third.model.requests and not third.ledger.calls
    if mode != "direct":
        forked = third.program.fork(run_id, 1, value=77)
        assert "77" in third.program.resume(forked).report
        assert {run["run_id"] for run in third.store.runs(outcome="ok")} == {run_id, forked}


@pytest.mark.parametrize("durability", ["exit", "call", "power"])
def test_each_durability_keeps_a_run_that_ends(store_url: str, case: Open, durability: str) -> None:
    one = case(store_url, "tool_call", outage("tool_call", [False]), durability=durability)
    made = one.program(matter="x")
    assert one.store.run(made.receipt["run_id"])[0] == made.receipt
    assert one.program.replay(made.receipt["run_id"]).outputs == made.outputs


# --- decisions


@pytest.mark.parametrize("mode", ["tool_call", "code"])
def test_calls_wait_are_decided_and_expire(store_url: str, case: Open, mode: str) -> None:
    first = case(store_url, mode, paying(mode), approval_expires_s=3600.0)
    run_id = suspended(first)
    one, other = first.store.pending(run_id)
    assert [one["arguments"], other["arguments"]] == [{"amount": 5}, {"amount": 6}] and len(first.store.pending()) == 2
    with pytest.raises(DecisionRefused, match="other arguments"):
        first.store.approve(run_id, one["call_id"], arguments_hash=other["arguments_hash"], by="ann")
    first.store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="ann")
    late = suspended(first)
    first.store.deny(run_id, other["call_id"], arguments_hash=other["arguments_hash"], by="bob", reason="zu viel, Ω")
    report = case(store_url, mode, paying(mode)).program.resume(run_id).report
    assert "paid 5" in report and "zu viel, Ω" in report and "paid 6" not in report

    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=2)
    first.store.now = lambda: later  # type: ignore[method-assign]
    with pytest.raises(DecisionRefused, match="too late"):
        first.store.approve(late, one["call_id"], arguments_hash=one["arguments_hash"], by="ann")
    assert first.store.pending() == []
    assert first.program.resume(late).report.count("nobody decided in time") == 2


def test_of_two_who_decide_at_the_same_time_one_is_told(store_url: str, case: Open) -> None:
    first = case(store_url, "tool_call", paying("tool_call"))
    other = case(store_url, "tool_call", paying("tool_call"))
    for _ in range(3):
        run_id = suspended(first)
        for call_ in first.store.pending(run_id):
            key = {"arguments_hash": call_["arguments_hash"]}
            works: list[Callable[[], Any]] = [
                lambda: first.store.approve(run_id, call_["call_id"], by="ann", **key),  # noqa: B023
                lambda: other.store.deny(run_id, call_["call_id"], by="bob", **key),  # noqa: B023
            ]
            told = at_once(works)
            assert sorted(type(one).__name__ for one in told) == ["DecisionRefused", "NoneType"], told


def test_a_write_of_which_nobody_knows_needs_a_decision(store_url: str, case: Open) -> None:
    (child,) = together(f"die_inside_a_write({store_url!r}, 'tool_call')")
    assert child.end() == -signal.SIGKILL
    next_ = case(store_url, "tool_call", NOTING["tool_call"])
    (run,) = next_.store.runs(outcome="lost")
    with pytest.raises(EffectUnknown) as caught:
        next_.program.resume(run["run_id"])
    assert caught.value.details["unknown"] == [{"call_id": 2, "tool": "note", "arguments": {"n": 7}}]
    prediction = next_.program.resume(run["run_id"], decisions={2: dse.Decision("done", "noted 7", by="ann")})
    assert next_.ledger.calls == [] and "booked 1" in prediction.report and "noted 7" in prediction.report


assert die_inside_a_write  # what the child executes


def test_prune_forgets_what_is_over_and_nothing_else(store_url: str, case: Open) -> None:
    waits = case(store_url, "tool_call", paying("tool_call"))
    kept = suspended(waits)
    done = case(store_url, "tool_call", outage("tool_call", [False]))
    gone = done.program(matter="x").receipt["run_id"]
    hour = dt.timedelta(hours=1)
    assert done.store.prune(before=dt.datetime.now(dt.UTC) - hour) == 0
    assert done.store.prune(before=dt.datetime.now(dt.UTC) + hour) == 1
    assert [run["run_id"] for run in done.store.runs()] == [kept]
    assert execute(store_url, f"SELECT * FROM events WHERE run_id = '{gone}'") == []
    assert len(done.store.pending(kept)) == 2
    assert done.store.prune(before=dt.datetime.now(dt.UTC) + hour, outcomes=["suspended"]) == 1
    assert done.store.runs() == [] and done.store.pending() == []


# --- rollouts, scores, the ledger, compiles

WORLD = PlantedWorld({"direct": 0.5, "tool_call": 1.0, "code": 1.0}, clusters=20)
ROWS = WORLD.dataset().split("select")
DIRECT = seed_plan(AskWarehouse.spec(), "direct")


def evaluate(url: str, model: Any, rows: Any) -> list[RolloutRecord]:
    store = Store(url)
    try:
        return anyio.run(lambda: Evaluator(WORLD.task(), model, store).evaluate({"direct": DIRECT}, rows))
    finally:
        store.close()


def test_an_evaluation_goes_on_where_another_one_stopped(store_url: str) -> None:
    first, second, third = WORLD.model(), WORLD.model(), WORLD.model()
    half = evaluate(store_url, first, ROWS[:2])
    whole = evaluate(store_url, second, ROWS)
    assert [r.reused for r in whole] == [True, True] + [False] * (len(ROWS) - 2) and len(second.requests) == len(ROWS) - 2
    assert [dataclasses.replace(r, reused=False) for r in whole[:2]] == half
    again = evaluate(store_url, third, ROWS)
    assert third.requests == [] and [dataclasses.replace(r, reused=True) for r in whole] == again
    store = Store(store_url)
    rows = store.rollouts(with_journal=True)
    store.close()
    assert len(rows) == len(ROWS) and all(row["journal"] and row["score"] is not None for row in rows)
    assert [row["rollout_id"] for row in rows] == sorted(row["rollout_id"] for row in rows)


def test_rollouts_and_scores_are_kept_once_and_come_in_one_order(store: Store) -> None:
    row = {"rollout_id": "r", "program_id": "p", "row_hash": "h", "outcome": "ok", "outputs": {"a": ["\x00", 1]},
           "cost_usd": 0.1 + 0.2, "latency_s": 1e-300}  # fmt: skip
    store.save_rollout(row)
    store.save_rollout({**row, "outcome": "failed"})
    found = store.rollout("r")
    assert found is not None and {name: found[name] for name in row} == row and store.rollout("s") is None
    for metric in ("b", "A", "a-b", "ab", "Ä", "_"):
        store.save_score("r", metric, 0.5, "half\x00 right \ud800", {"x": 1.0})
        store.save_score("r", metric, 1.0, "", {})
    score = store.score("r", "b")
    assert score is not None and (score["value"], score["components"]) == (0.5, {"x": 1.0})
    assert score["feedback"].startswith("half") and "\x00" not in score["feedback"]
    assert [one["metric"] for one in store.rollouts()] == ["A", "_", "a-b", "ab", "b", "Ä"], "by characters, in every database"


def opening(compile_id: str, *rows: str) -> dict[str, Any]:
    return {"dataset": "d", "revision": "r", "compile_id": compile_id, "row_hashes": rows, "purpose": "gate"}


def test_the_ledger_counts_openings_that_overlap(store: Store) -> None:
    assert store.record(opening("one", "a", "b")) == 1
    assert store.record(opening("one", "b", "a")) == 1, "the same compile again is the same opening"
    assert store.record(opening("two", "b", "c")) == 2
    assert store.record(opening("three", "d")) == 1, "other rows"
    assert store.record(opening("four", "a", "c", *(f"row {n}" for n in range(1200)))) == 3
    assert len(store.openings()) == 4


def test_openings_at_the_same_time_are_all_counted(store_url: str) -> None:
    stores = [Store(store_url) for _ in range(4)]
    if stores[0].dialect == "postgresql":  # commits take their time: all four could count before one is done
        execute(store_url, "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); "
                "RETURN NULL; END $$", "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON openings DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION wait()")  # fmt: skip
    works = [lambda s=s, n=n: s.record(opening(f"compile {n}", "h", f"h{n}")) for n, s in enumerate(stores)]
    assert sorted(at_once(works)) == [1, 2, 3, 4]
    for one in stores:
        one.close()


def test_a_compile_is_kept_in_its_newest_state(store_url: str) -> None:
    stores = [Store(store_url) for _ in range(3)]
    stores[0].save_compile("c", "Settle", "a0", {"text": "\x00ä"})
    assert at_once([lambda s=s: s.save_compile("d", "Settle", "a", {"n": 1}) for s in stores]) == [None] * 3
    stores[0].save_compile("c", "Settle", "a1", {"text": "b"})
    assert [(c["compile_id"], c["artifact_id"]) for c in sorted(stores[1].compiles(), key=lambda c: c["compile_id"])] == [
        ("c", "a1"), ("d", "a")]  # fmt: skip
    for one in stores:
        one.close()


# --- several processes


def run_some(url: str, count: int) -> None:
    one = Case(url, "tool_call", outage("tool_call", [False]))

    async def all_() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(lambda: one.program.acall(matter="x"))

    anyio.run(all_)
    one.store.close()


def take_all(url: str) -> None:
    """Say which of the runs this process got, and have them until told otherwise."""
    store = Store(url)
    got = []
    for run in sorted(store.runs(), key=lambda run: str(run["run_id"])):
        try:
            store.take_run(run["run_id"], None)
            got.append(run["run_id"])
        except RunTaken:
            pass
    print(" ".join(got) or "nothing", flush=True)
    input()
    store.close()


def test_processes_write_at_the_same_time_and_a_run_has_one_of_them(store_url: str, case: Open) -> None:
    for child in together(*[f"run_some({store_url!r}, 6)"] * 2):
        assert child.end() == 0
    waits = case(store_url, "tool_call", paying("tool_call"))
    done = waits.store.runs()
    assert len(done) == 12 and {run["outcome"] for run in done} == {"ok"}
    for run in done:
        entries = waits.store.journal(run["run_id"]).entries
        assert entries[-1]["kind"] == "run_finished" and [e["seq"] for e in entries] == list(range(len(entries)))
    assert waits.store.prune(before=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)) == 12

    runs = {suspended(waits) for _ in range(12)}
    children = together(*[f"take_all({store_url!r})"] * 2)
    got = [[] if (line := child.hear()) == "nothing" else line.split() for child in children]
    assert len(got[0]) + len(got[1]) == 12 and {*got[0], *got[1]} == runs, "every run has one process, and no run has two"
    with pytest.raises(RunTaken, match="lives"):
        waits.program.resume(next(iter(runs)))
    for child in children:
        child.say()
        assert child.end() == 0
    assert len(waits.store.runs(outcome="lost")) == 12
    assert suspended_again(waits, next(iter(runs)))


def suspended_again(waits: Case, run_id: str) -> bool:
    with pytest.raises(RunSuspended):
        waits.program.resume(run_id)
    return waits.ledger.calls.count(("look", 1)) == 12


def test_killed_anywhere_a_run_ends_as_if_nothing_had_happened(store_url: str) -> None:
    arguments = ["--kills", "12", "--store", store_url, "--only", "tool_call gathered", "--only", "code retry"]
    done = subprocess.run([sys.executable, "-m", "benchmarks.chaos", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " 0 wrong" in done.stdout, done.stdout + done.stderr


# --- what only a server can do


@pytest.fixture
def server_url(postgresql_server: Server, postgresql_database: str) -> str:
    return postgresql_server.url(postgresql_database)


class Meanwhile:
    """Replies of a model: look, note, report. Something happens while it thinks about its second reply."""

    def __init__(self, event: Callable[[], Any]) -> None:
        self.event: Callable[[], Any] | None = event

    def __call__(self, request: Any) -> Any:
        if self.event is not None and any(message["role"] == "assistant" for message in request["messages"]):
            event, self.event = self.event, None
            event()
        return rounds(call(("look", {"n": 1})), call(("note", {"n": 7})), submit(request))(request)


EXPECTED = [("look", 1), ("note", 7)]


@pytest.mark.parametrize(("crash", "durability"), [(False, "call"), (True, "power")])
def test_a_server_that_is_restarted_while_a_run_waits_costs_nothing(
    postgresql_server: Server, server_url: str, case: Open, crash: bool, durability: str,
) -> None:  # fmt: skip
    def restart() -> None:
        postgresql_server.stop(crash=crash)
        postgresql_server.start()

    one = case(server_url, "tool_call", Meanwhile(restart), durability=durability)
    made = one.program(matter="x")
    assert one.ledger.calls == EXPECTED and len(one.model.requests) == 3
    assert one.program.replay(made.receipt["run_id"]).outputs == made.outputs


def test_a_server_that_is_gone_ends_the_run_and_nothing_is_lost(
    postgresql_server: Server, server_url: str, case: Open,
) -> None:  # fmt: skip
    one = case(server_url, "tool_call", Meanwhile(postgresql_server.stop))
    try:
        with pytest.raises(StoreUnavailable) as caught:
            one.program(matter="x")
        with pytest.raises(StoreUnavailable, match="read"):
            one.store.runs()
        with pytest.raises(StoreError, match="cannot be opened"):
            Store(server_url)
    finally:
        postgresql_server.start()
    assert one.ledger.calls == EXPECTED[:1], "the write was not begun, as nobody could note that it would be"
    run_id = caught.value.details["receipt"]["run_id"]
    assert one.program.resume(run_id).report == "10 | noted 7" and one.ledger.calls == EXPECTED
    assert one.store.run(run_id)[0]["outcome"] == "ok"  # type: ignore[index]


def test_a_store_that_forgot_its_newest_entries_ends_the_run_before_the_journal_has_a_gap(server_url: str, case: Open) -> None:
    """As a server does that crashes: what it had not yet written to its disk is undone, all of it in order."""
    names = ("runs", "events", "snapshots")

    def keep() -> None:
        execute(server_url, *(f"CREATE TABLE saved_{name} AS SELECT * FROM {name}" for name in names))

    def lose() -> None:
        execute(server_url, *(f"DELETE FROM {name}" for name in names),
                *(f"INSERT INTO {name} SELECT * FROM saved_{name}" for name in names))  # fmt: skip

    events = [keep, lose]

    def reply(request: Any) -> Any:
        if events:
            events.pop(0)()
        return Meanwhile(lambda: None)(request)

    one = case(server_url, "tool_call", reply)
    with pytest.raises(StoreUnavailable) as caught:
        one.program(matter="x")
    assert one.ledger.calls == EXPECTED[:1]
    run_id = caught.value.details["receipt"]["run_id"]
    assert [e["seq"] for e in one.store.journal(run_id).entries] == [0], "the journal can be read, and goes on from there"
    assert one.program.resume(run_id).report == "10 | noted 7"
    assert one.ledger.calls == [("look", 1), *EXPECTED], "only what is read is done again"


class Held:
    """Holds the rows of all runs, as another process does in the middle of a write."""

    def __init__(self, server: Server, database: str) -> None:
        self.server = server
        self.connection = server.connect(database)
        self.connection.autocommit = False

    def take(self) -> None:
        self.connection.execute("SELECT * FROM runs FOR UPDATE")

    def cut_who_waits(self) -> None:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
        deadline = time.monotonic() + PATIENCE_S
        with self.server.connect() as admin:
            while not admin.execute(query, (self.connection.info.dbname,)).fetchall():
                assert time.monotonic() < deadline, "nobody waits"

    def release(self) -> None:
        self.connection.rollback()
        self.connection.close()


def test_a_connection_that_is_cut_in_the_middle_of_a_write(
    postgresql_server: Server, postgresql_database: str, server_url: str, case: Open,
) -> None:  # fmt: skip
    held = Held(postgresql_server, postgresql_database)
    one = case(server_url, "tool_call", Meanwhile(held.take))
    handle = one.program.start(matter="x")
    try:
        held.cut_who_waits()
    finally:
        held.release()
    with pytest.raises(StoreUnavailable, match="written"):
        handle.result(PATIENCE_S)
    assert [run["outcome"] for run in one.store.runs()] == ["infrastructure"]
    assert one.program.resume(handle.run_id).report == "10 | noted 7" and one.ledger.calls == EXPECTED
    assert len(one.model.requests) == 3, "the reply that could not be written at first was written when the run stopped"


def test_a_lock_that_nobody_releases_is_waited_for_as_long_as_was_said(
    postgresql_server: Server, postgresql_database: str, server_url: str,
) -> None:  # fmt: skip
    held, store = Held(postgresql_server, postgresql_database), Store(server_url, busy_s=0.05)
    ledger = Case(server_url, "tool_call", Meanwhile(held.take))
    ledger.store.close()
    program = dse.Program(Settle, "tool_call", lm=ledger.model, deps=ledger.ledger, store=store)
    try:
        with pytest.raises(StoreUnavailable, match="lock timeout") as caught:
            program(matter="x")
    finally:
        held.release()
    assert program.resume(caught.value.details["receipt"]["run_id"]).report == "10 | noted 7"
    store.close()


class Cutter:
    """Stands between a store and its server. Once armed, the answer to the next commit never arrives."""

    def __init__(self, server: Server) -> None:
        self.target = str(server.folder / ".s.PGSQL.5432")
        self.armed, self.cut = False, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self) -> None:
        self.armed = True

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.target)
            doomed = threading.Event()
            for source, sink, out in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(source, sink, out, doomed), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, out: bool, doomed: threading.Event) -> None:
        with source, sink:
            try:
                while data := source.recv(65536):
                    if out and self.armed and b"COMMIT\0" in data:  # not READ COMMITTED
                        self.armed = False
                        self.cut += 1
                        doomed.set()
                    if not out and doomed.is_set():
                        break
                    sink.sendall(data)
                for one in (source, sink):
                    one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        self.listener.close()


def test_a_commit_whose_answer_is_lost_is_not_written_twice(
    postgresql_server: Server, postgresql_database: str, case: Open,
) -> None:  # fmt: skip
    cutter = Cutter(postgresql_server)
    one = case(f"postgresql://postgres@127.0.0.1:{cutter.port}/{postgresql_database}", "tool_call", Meanwhile(cutter.arm))
    with pytest.raises(StoreUnavailable) as caught:
        one.program(matter="x")
    assert cutter.cut == 1
    run_id = caught.value.details["receipt"]["run_id"]
    entries = one.store.journal(run_id).entries
    assert [e["kind"] for e in entries].count("model_call") == 2 and entries[-1]["kind"] == "run_stopped"
    assert one.program.resume(run_id).report == "10 | noted 7"
    assert one.ledger.calls == EXPECTED and len(one.model.requests) == 3
    one.store.close()
    cutter.close()


def test_power_waits_for_the_disk_of_the_server_and_call_does_not(server_url: str, case: Open) -> None:
    open_and_close(server_url)
    execute(server_url, "CREATE TABLE said (setting TEXT)",
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "INSERT INTO said VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
            "CREATE TRIGGER note AFTER INSERT OR UPDATE ON events FOR EACH STATEMENT EXECUTE FUNCTION note()",
            "CREATE TRIGGER note AFTER INSERT OR UPDATE ON runs FOR EACH STATEMENT EXECUTE FUNCTION note()")  # fmt: skip
    for durability, setting in (("call", "off"), ("power", "on"), ("exit", "off")):
        execute(server_url, "DELETE FROM said")
        case(server_url, "tool_call", outage("tool_call", [False]), durability=durability).program(matter="x")
        said = execute(server_url, "SELECT setting FROM said")
        assert set(said) == {(setting,)} and (len(said) > 5 or durability == "exit"), durability


def test_a_server_that_only_reads_is_no_store_to_write_to(
    postgresql_server: Server, postgresql_database: str, server_url: str, case: Open,
) -> None:  # fmt: skip
    open_and_close(server_url)
    with postgresql_server.connect() as admin:
        admin.execute(f"ALTER DATABASE {postgresql_database} SET default_transaction_read_only = on")
    one = case(server_url, "direct", rounds(say("[[ ## report ## ]]\nfine")))
    assert one.store.runs() == []
    with pytest.raises(StoreUnavailable, match="read-only"):
        one.program(matter="x")


def test_times_and_ids_are_compared_by_their_characters_whatever_language_the_server_speaks(server_url: str) -> None:
    open_and_close(server_url)
    query = ("SELECT DISTINCT collation_name FROM information_schema.columns "
             "WHERE data_type = 'text' AND table_schema = current_schema()")  # fmt: skip
    assert execute(server_url, query) == [("C",)]


def test_the_key_comes_from_the_environment(server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Open) -> None:
    monkeypatch.delenv("DSE_KEY")
    one = case(server_url, "direct", rounds(say("[[ ## report ## ]]\nfine")))
    with pytest.raises(StoreError, match="has no key") as caught:
        one.program(matter="x")
    assert "DSE_KEY" in caught.value.remedy and caught.value.code == "DSE182"
    (tmp_path / "key").write_text("7a" * 32)
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv("DSE_KEY_FILE", str(tmp_path / "key"))
    run_id = one.program(matter="x").receipt["run_id"]
    monkeypatch.setenv("DSE_KEY", "7b" * 32)
    with pytest.raises(JournalTampered):
        case(server_url, "direct", rounds()).store.run(run_id)


def test_text_that_the_database_cannot_hold_is_refused_with_a_reason(server_url: str, case: Open) -> None:
    one = case(server_url, "tool_call", paying("tool_call"))
    run_id = suspended(one)
    waiting = one.store.pending(run_id)[0]
    with pytest.raises(StoreError, match="NUL"):
        one.store.deny(run_id, waiting["call_id"], arguments_hash=waiting["arguments_hash"], by="bob", reason="no\x00")
    assert len(one.store.pending(run_id)) == 2


@pytest.mark.parametrize("url", ["postgresql://ann:t0p%40secret@127.0.0.1:1/x?connect_timeout=2", "mysql://ann:t0p@secret@host/x",
                                 "postgresql://127.0.0.1:1/x?user=ann&password=t0psecret&connect_timeout=2",
                                 "postgresql://ann:t0psecret@host:port/x"])  # fmt: skip
def test_no_error_shows_the_password_of_a_url(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert "t0p" not in str(caught.value) and "ann" in str(caught.value)


def test_a_url_is_read_once_and_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DSE_KEY", raising=False)
    monkeypatch.chdir(here)
    for number, (url, file) in enumerate({
        "~/x/0.db": home / "x/0.db", f"sqlite+pysqlite:///{home}/1.db": home / "1.db", "sqlite:///~/2.db": home / "2.db",
        "3?a=b#c%41.db": here / "3?a=b#c%41.db", "sqlite:///y/4.db": here / "y/4.db",
        f"sqlite:///file:{home}/z/5.db?uri=true": home / "z/5.db",
    }.items()):  # fmt: skip
        store = Store(url)
        store.save_compile(f"{number}", "S", "a", {})
        assert store.keys.current and store.place == str(file) and file.exists() and Path(f"{file}.key").exists()
        store.close()
        with contextlib.closing(Store(file)) as again:
            assert [one["compile_id"] for one in again.compiles()] == [f"{number}"]
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.suffix == ".db" or path.is_dir()}
    assert made == {"home", "here", "home/x", "home/z", "here/y", "home/x/0.db", "home/1.db", "home/2.db", "home/z/5.db",
                    "here/3?a=b#c%41.db", "here/y/4.db"}  # fmt: skip
    before = set(tmp_path.rglob("*"))
    for url in ("sqlite://", "sqlite:///:memory:", ":memory:", "sqlite:///file::memory:?uri=true"):
        Store(url).close()
    with pytest.raises(StoreError):
        Store(f"sqlite:///file:{home}/none.db?uri=true&mode=ro")
    with pytest.raises(StoreError):
        Store("")
    assert set(tmp_path.rglob("*")) == before
