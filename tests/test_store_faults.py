"""The store when things go wrong outside: full disks, locks, lost files, torn writes, killed and stopped processes, clocks,
forks, closed stores, many runs at once; and stores that hold very many runs.

Run as a program, this file is a nursery: it forks processes that serve one connection each (see `Child`).
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import gc
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import dse
from dse.errors import (
    DecisionRefused,
    DseError,
    EffectUnknown,
    ModelUnavailable,
    RunNotResumable,
    RunSuspended,
    RunTaken,
    StoreError,
    StoreUnavailable,
    UserError,
)
from dse.store.keys import Keys
from dse.strategies.base import seed_plan
from dse.testing import ScriptedModel, call, say

ROOT = Path(__file__).parent.parent
KEYS = Keys([b"k" * 32])
PAD = "p" * 6_000  # more than a page of the database: whatever is recorded needs a new one


class World:
    """What is outside: every effect and every question to the model, in a file that all processes append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, kind: str, **fact: Any) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, (json.dumps({"kind": kind, **fact}) + "\n").encode())
        os.close(file)

    def facts(self, kind: str) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [fact for fact in map(json.loads, lines) if fact["kind"] == kind]

    def paid(self) -> list[int]:
        return [fact["n"] for fact in self.facts("pay")]


@dataclass
class Outside:
    """What tools get as ``ctx.deps``: the world, and what happens at a point of a run."""

    world: World
    at: Callable[[str], Any] = lambda point: None

    async def point(self, name: str) -> None:
        await asyncio.to_thread(self.at, name)


@dse.tool(effect="read")
async def look(ctx: dse.ToolContext[Outside], n: int) -> str:
    """Look something up."""
    await ctx.deps.point(f"look {n}")
    return f"{n} {PAD}"


@dse.tool(effect="write")
async def pay(ctx: dse.ToolContext[Outside], n: int, note: str) -> str:
    """Pay something, each time it is called."""
    await ctx.deps.point(f"before pay {n}")
    ctx.deps.world.add("pay", n=n)
    await ctx.deps.point(f"after pay {n}")
    return f"paid {n} {PAD}"


@dse.tool(effect="write", approval="always")
async def buy(ctx: dse.ToolContext[Outside], n: int) -> str:
    """Buy something, when it was allowed."""
    ctx.deps.world.add("buy", n=n)
    return f"bought {n}"


class Settle(dse.Signature):
    """Settle a matter."""

    matter: str = dse.InputField()
    report: str = dse.OutputField()
    tools = [look, pay, buy]


ROUNDS = (call(("look", {"n": 1}), text=PAD), call(("pay", {"n": 2, "note": PAD})), call(("pay", {"n": 3, "note": PAD})),
          call(("submit", {"report": f"done {PAD}"})))  # fmt: skip
POINTS = ("asked 0", "look 1", "asked 1", "before pay 2", "after pay 2", "asked 2", "before pay 3", "after pay 3", "asked 3")


def in_rounds(outside: Outside, rounds: Any = ROUNDS) -> ScriptedModel:
    async def reply(request: Any) -> Any:
        number = sum(message["role"] == "assistant" for message in request["messages"])
        outside.world.add("asked", number=number)
        await outside.point(f"asked {number}")
        answer = rounds[number]
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args)  # one of its own for each run
        return answer

    return ScriptedModel(reply)


def in_code(*scripts: str) -> ScriptedModel:
    return ScriptedModel(lambda request: say(
        f"[[ ## code ## ]]\n{scripts[request['messages'][-1]['content'].count('Script ')]}\n\n[[ ## completed ## ]]"))  # fmt: skip


@dataclass
class Place:
    """A store in a folder, and the world beside it."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = self.folder / "runs.db"
        self.outside = Outside(World(self.folder / "world"))
        self.store = self.opened()

    @property
    def world(self) -> World:
        return self.outside.world

    def opened(self) -> dse.Store:
        return dse.Store(self.path, keys=KEYS, **self.options)

    def reopened(self) -> None:
        self.store.close()
        self.store = self.opened()

    def program(self, mode: str = "tool_call", lm: Any = None, **more: Any) -> dse.Program:
        lm = lm if lm is not None else in_rounds(self.outside)
        return dse.Program(Settle, seed_plan(Settle.spec(), mode), lm=lm, deps=self.outside, **{"store": self.store, **more})

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(statement, values).fetchall()

    def finish(self, run_id: str) -> tuple[dse.Prediction, int]:
        """Resume to the end, deciding as somebody who looks; and how many writes had to be decided about."""
        program, decisions = self.program(), {}
        try:
            return program.resume(run_id), 0
        except EffectUnknown as error:
            kept = self.store.journal(run_id).entries
            told = {e["call_id"] for e in kept if e["kind"] == "tool_outcome"}
            recorded = Counter(e["arguments"]["n"] for e in kept if e["kind"] == "tool_intent" and e["call_id"] in told)
            for one in error.details["unknown"]:
                n = one["arguments"]["n"]
                happened = self.world.paid().count(n) > recorded[n]
                decisions[one["call_id"]] = dse.Decision("done", f"paid {n} {PAD}") if happened else dse.Decision("retry")
        return program.resume(run_id, decisions=decisions), len(decisions)

    def sound(self, run_id: str) -> None:
        """The journal is whole and signed, leads to the same result once more, and no snapshot is left."""
        receipt, entries = self.store.run(run_id)
        assert receipt is not None and receipt["outcome"] == "ok"
        assert [entry["seq"] for entry in entries] == list(range(len(entries)))
        assert self.program().replay(run_id).report == f"done {PAD}"
        assert self.sql("SELECT count(*) FROM snapshots WHERE run_id = ?", run_id) == [(0,)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.store.close()


def fails(program: dse.Program, **more: Any) -> StoreUnavailable:
    with pytest.raises(StoreUnavailable) as caught:
        program(matter=PAD) if not more else program.resume(**more)
    assert caught.value.code == "DSE404" and caught.value.remedy
    return caught.value


# --- disks


class Disk:
    """Sets a PRAGMA of SQLite before each transaction that writes, on the connection that is about to.

    Attributes:
        writes: transactions so far.
        broken: which of them, counted from 1, meet a disk that is broken.
    """

    def __init__(self, broken: str, whole: str) -> None:
        self.pragmas = {True: broken, False: whole}
        self.reset()

    def reset(self, broken: Callable[[int], bool] = lambda n: False, meanwhile: Callable[[int], Any] = lambda n: None) -> None:
        self.writes, self.broken, self.meanwhile = 0, broken, meanwhile

    def __call__(self, connection: Any) -> None:
        self.writes += 1
        connection.execute(f"PRAGMA {self.pragmas[self.broken(self.writes)]}").fetchall()
        self.meanwhile(self.writes)


FULL, READ_ONLY = ("max_page_count = 1", "max_page_count = 1073741823"), ("query_only = 1", "query_only = 0")


@pytest.fixture
def disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    made = Disk(*getattr(request, "param", FULL))
    ready = dse.Store._ready

    def with_this_disk(self: dse.Store, connection: Any, power: bool) -> None:
        ready(self, connection, power)
        made(connection)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dse.Store, "_ready", with_this_disk)
        yield made


@pytest.mark.parametrize("durability", ["call", "power"])
@pytest.mark.parametrize("lasting", [True, False], ids=["until space is made", "once"])
@pytest.mark.parametrize("disk", [FULL, READ_ONLY], indirect=True, ids=["full", "read-only"])
def test_a_disk_that_fails_at_any_point(place: Place, disk: Disk, lasting: bool, durability: Any) -> None:
    program = place.program(durability=durability)
    disk.reset()
    assert program(matter=PAD).report == f"done {PAD}"
    points = disk.writes
    assert points >= 9
    decided = 0
    for point in range(1, points + 1):
        place.world.path.unlink()
        disk.reset((lambda n, at=point: n >= at) if lasting else (lambda n, at=point: n == at))
        error = fails(place.program(durability=durability))
        paid = place.world.paid()
        disk.reset()
        if point == 1:  # it never began, and nothing happened
            assert not place.world.path.exists()
            place.world.path.touch()
            continue
        receipt, run_id = error.details["receipt"], error.details["run_id"]
        completed = re.findall(r"pay#\d", error.details["effects"].partition("completed [")[2])
        assert len(completed) == len(paid), (point, error.details["effects"])
        assert receipt["run_id"] == run_id and receipt["effects"] == error.details["effects"]
        assert receipt["outcome"] == ("ok" if point >= points - 1 else "infrastructure")  # the end, and that it ended
        asked = len(place.world.facts("asked"))
        prediction, unknown = place.finish(run_id)
        decided += unknown
        assert prediction.report == f"done {PAD}" and place.world.paid() == [2, 3]
        # What could not be recorded is asked for once more at most.
        assert len(place.world.facts("asked")) <= 5 and asked <= 4
        place.sound(run_id)
    # Lasting: two payments whose end could not be recorded. Once: they are known not to have begun.
    assert decided == (2 if lasting else 0)


def test_a_disk_that_fails_once_leaves_no_gap(place: Place, disk: Disk) -> None:
    """Of calls that end side by side, the first could not be recorded and the second could be."""
    rounds = (call(("look", {"n": 1}), ("look", {"n": 2})), ROUNDS[3])
    broken, both = threading.Event(), threading.Event()
    disk.reset(lambda n: n >= 3)
    run_id = fails(place.program(lm=in_rounds(place.outside, rounds))).details["run_id"]

    @dse.tool(effect="read", name="look")
    async def linked(ctx: dse.ToolContext[Outside], n: int) -> str:
        """Look something up."""
        if n == 2:
            await asyncio.to_thread(broken.wait, 30)
            asyncio.get_running_loop().call_soon(both.set)  # when this call has handed over its outcome, too
        return f"{n} {PAD}"

    def meanwhile(number: int) -> None:
        if number == 3:  # the run is taken, and goes on: this is the outcome of the first call
            broken.set()
            assert both.wait(30)

    toolbox = Settle.spec().toolbox().merged({"look": linked})
    program = place.program(lm=in_rounds(place.outside, rounds), toolbox=toolbox)
    disk.reset(lambda n: n == 3, meanwhile)
    fails(program, run_id=run_id)
    assert both.is_set()
    disk.reset()
    numbers = [row[0] for row in place.sql("SELECT seq FROM events WHERE run_id = ? ORDER BY seq", run_id)]
    assert numbers == list(range(len(numbers)))
    assert program.resume(run_id).report == f"done {PAD}"


@pytest.mark.parametrize("disk", [READ_ONLY], indirect=True)
def test_a_store_that_can_only_be_read(tmp_path: Path, disk: Disk) -> None:
    disk.reset(lambda n: True)
    with pytest.raises(StoreError, match="readonly") as caught:
        dse.Store(tmp_path / "runs.db")
    assert caught.value.code == "DSE182"


def test_a_database_that_is_locked_for_too_long(tmp_path: Path) -> None:
    place = Place(tmp_path, {"busy_s": 0.02})
    code = ("import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\nfor line in sys.stdin:\n"
            " c.execute(line)\n print('done', flush=True)")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code, str(place.path)], text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:  # fmt: skip

        def tell(statement: str) -> None:
            assert other.stdin is not None and other.stdout is not None
            print(statement, file=other.stdin, flush=True)
            assert other.stdout.readline() == "done\n"

        place.outside.at = lambda point: tell("BEGIN EXCLUSIVE") if point == "before pay 2" else None
        error = fails(place.program())
        assert "locked" in str(error) and error.details["effects"] == "completed [pay#2]"
        assert fails(place.program(), run_id=error.details["run_id"]) and place.world.paid() == [2]
        place.outside.at = lambda point: None
        tell("ROLLBACK")
        assert place.finish(error.details["run_id"])[1] == 1 and place.world.paid() == [2, 3]
        assert other.stdin is not None
        other.stdin.close()
    place.sound(error.details["run_id"])
    place.store.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_deleted_or_replaced_under_a_run(place: Place, tmp_path: Path, replaced: bool) -> None:
    saved = tmp_path / "saved"
    saved.mkdir()

    def remove(point: str) -> None:
        if point == "before pay 2":
            for path in tmp_path.glob("runs.db*"):
                path.rename(saved / path.name)
            if replaced:
                dse.Store(place.path, keys=KEYS).close()

    place.outside.at = remove
    error = fails(place.program())  # not a run that ends well and is kept nowhere
    assert "deleted or replaced" in str(error)
    assert error.details["effects"] == "completed [pay#2]" and place.world.paid() == [2]
    place.outside.at = lambda point: None
    assert "deleted or replaced" in str(fails(place.program()))
    place.store.close()
    for path in tmp_path.glob("runs.db*"):
        path.unlink()
    for path in saved.iterdir():
        path.rename(tmp_path / path.name)
    place.store = place.opened()
    assert place.finish(error.details["run_id"])[1] == 1 and place.world.paid() == [2, 3]
    place.sound(error.details["run_id"])


# --- other processes


class Child:
    """A process of its own that starts and resumes runs in a store, and stops where it is told to."""

    def __init__(self, nursery: Nursery, folder: Path, **options: Any) -> None:
        self._nursery = nursery
        with socket.socket(socket.AF_UNIX) as listening:
            address = nursery.folder / f"{nursery.count}.sock"
            nursery.count += 1
            listening.bind(str(address))
            listening.listen()
            self.pid = nursery.tell("fork", address=str(address), folder=str(folder), **options)
            connection, _ = listening.accept()
        self._file = connection.makefile("rw")
        connection.close()

    def tell(self, **order: Any) -> None:
        print(json.dumps(order), file=self._file, flush=True)

    def hear(self) -> dict[str, Any]:
        line = self._file.readline()
        return json.loads(line) if line else {"gone": True}

    def until(self, point: str) -> None:
        heard = self.hear()
        assert heard == {"at": point}, heard

    def end(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)
        assert self._nursery.tell("wait", pid=self.pid) == -number
        self._file.close()

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        assert self._nursery.tell("stopped", pid=self.pid) == signal.SIGSTOP


class Nursery:
    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._process = subprocess.Popen([sys.executable, __file__], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip

    def tell(self, what: str, **order: Any) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"do": what, **order}), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("s"))
    yield made
    made.close()


def _nurse() -> None:
    import dspy  # noqa: F401  (once, instead of in every child)

    import dse.strategies.tool_call  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "fork":
            pid = os.fork()
            if pid == 0:
                try:
                    _serve(order)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                finally:
                    os._exit(1)
            print(pid, flush=True)
        elif order["do"] == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(order["pid"], 0)[1]), flush=True)
        else:
            print(os.WSTOPSIG(os.waitpid(order["pid"], os.WUNTRACED)[1]), flush=True)


def _serve(options: dict[str, Any]) -> None:
    signal.alarm(120)  # nobody's child for long
    if options.get("elsewhere"):
        platform.node = lambda: "another machine"
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(options["address"])
    file = connection.makefile("rw")
    stops: list[str] = []

    def at(point: str) -> None:
        if point in stops:
            print(json.dumps({"at": point}), file=file, flush=True)
            file.readline()

    place = Place(Path(options["folder"]))
    place.outside.at = at
    program = place.program(durability=options.get("durability", "call"))
    for line in file:
        order = json.loads(line)
        stops[:] = order.get("stops", [])
        try:
            if order["do"] == "resume":
                decisions = {call_id: dse.Decision("retry") for call_id in order.get("retry", ())}
                prediction = program.resume(order["run_id"], decisions=decisions)
            elif order["do"] == "forked":
                prediction = _forked(program)
            else:
                run = program.new_run({"matter": PAD}, run_id=order["run_id"])
                prediction = asyncio.run(program.execute(run))
            answer = {"report": prediction.report}
        except DseError as error:
            answer = {"error": error.code, "said": str(error), "effects": error.details.get("effects"), "run_id": error.details.get("run_id")}
        print(json.dumps(answer), file=file, flush=True)


def _forked(program: dse.Program) -> dse.Prediction:
    """A child of a process that has used its store uses the same one; and so does its parent, before and after."""
    program(matter=PAD)
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            program(matter=PAD)
            status = 0
        os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    return program(matter=PAD)


def _kept(place: Place, run_id: str) -> Counter[str]:
    return Counter(entry["kind"] for entry in place.store.journal(run_id).entries)


@pytest.mark.parametrize("durability", ["call", "power"])
def test_what_is_durable_survives_being_killed_at_any_point(place: Place, nursery: Nursery, durability: str) -> None:
    for number, point in enumerate(POINTS):
        run_id = f"run {number}"
        place.world.path.unlink(missing_ok=True)
        child = Child(nursery, place.folder, durability=durability)
        child.tell(do="run", run_id=run_id, stops=[point])
        child.until(point)
        child.end()
        kept, asked = _kept(place, run_id), int(point[-1]) if point.startswith("asked") else POINTS[:number].count("asked 0")
        done = sum(name in POINTS[:number] for name in ("asked 0", "asked 1", "asked 2"))
        assert kept["model_call"] == (done if "asked" in point else len([p for p in POINTS[:number] if "asked" in p]))
        outcomes = ("look 1", "after pay 2", "after pay 3")  # recorded before the model is asked again
        assert kept["tool_outcome"] == len([p for p in outcomes if f"asked {outcomes.index(p) + 1}" in POINTS[: number + 1]])
        assert kept["tool_intent"] - kept["tool_outcome"] == ("pay" in point)  # a write is known before it can happen
        assert place.store.runs(1)[0]["outcome"] == "lost" and asked >= 0
        prediction, unknown = place.finish(run_id)
        assert prediction.report == f"done {PAD}" and place.world.paid() == [2, 3] and unknown == ("pay" in point)
        assert Counter(fact["number"] for fact in place.world.facts("asked"))[int(point[-1])] <= 2
        assert len(place.world.facts("asked")) == 4 + point.startswith("asked")
        place.sound(run_id)


def test_a_decision_to_retry_holds_for_one_time(place: Place, nursery: Nursery) -> None:
    for attempt in range(3):  # killed in a payment, and in its repetition, and in the repetition of that
        child = Child(nursery, place.folder)
        retry = {} if attempt == 0 else {"retry": [2]}
        child.tell(do="resume" if attempt else "run", run_id="again", stops=["after pay 2"], **retry)
        child.until("after pay 2")
        child.end()
        assert place.world.paid() == [2] * (attempt + 1)
        with pytest.raises(EffectUnknown) as caught:
            place.program().resume("again")
        assert [one["call_id"] for one in caught.value.details["unknown"]] == [2]
    decided = {2: dse.Decision("done", f"paid 2 {PAD}")}
    assert place.program().resume("again", decisions=decided).report == f"done {PAD}"
    assert place.world.paid() == [2, 2, 2, 3]
    place.sound("again")


def test_a_run_that_is_written_when_it_stops_is_lost_with_its_process(place: Place, nursery: Nursery) -> None:
    child = Child(nursery, place.folder, durability="exit")
    child.tell(do="run", run_id="lost", stops=["asked 3"])
    child.until("asked 3")
    assert place.store.runs() == []
    child.end()
    assert place.store.runs() == [] and place.world.paid() == [2, 3]
    with pytest.raises(RunNotResumable):
        place.program().resume("lost")
    kept = place.program(durability="exit")(matter=PAD)
    place.sound(kept.receipt["run_id"])


def test_a_torn_last_write(place: Place, nursery: Nursery, tmp_path: Path) -> None:
    """The write-ahead log of a killed process, cut and damaged: SQLite keeps the whole transactions, and so their runs."""
    child = Child(nursery, place.folder)
    child.tell(do="run", run_id="torn", stops=["asked 3"])
    child.until("asked 3")
    child.end()
    whole, paid = _kept(place, "torn"), tmp_path / "world"
    log = (tmp_path / "runs.db-wal").read_bytes()
    database, facts, rng, seen = place.path.read_bytes(), paid.read_bytes(), random.Random(1), set()
    cuts = [0, 1, 31, 32, 33, len(log) - 1, len(log), *sorted(rng.sample(range(len(log)), 24))]
    for number, cut in enumerate([*cuts, *(-one for one in rng.sample(range(64, len(log)), 6))]):
        other = Place.__new__(Place)
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / "runs.db").write_bytes(database)
        (folder / "world").write_bytes(facts)
        damaged = log[:cut] if cut >= 0 else log[:-cut] + bytes([log[-cut] ^ 16]) + log[-cut + 1 :]
        (folder / "runs.db-wal").write_bytes(damaged)
        other.__init__(folder)  # type: ignore[misc]
        try:
            kept = _kept(other, "torn")
            assert all(kept[kind] <= whole[kind] for kind in kept)
            seen.add(sum(kept.values()))
            assert other.finish("torn")[0].report == f"done {PAD}"
            other.sound("torn")
        except RunNotResumable:
            assert other.sql("SELECT count(*) FROM events") == [(0,)]  # its beginning is not there; nothing of it is
        finally:
            other.store.close()
            shutil.rmtree(folder)
    assert len(seen) >= 4 and sum(whole.values()) in seen


def test_of_two_processes_that_resume_one_run_exactly_one_has_it(place: Place, nursery: Nursery) -> None:
    broken = place.program(lm=in_rounds(place.outside, (ROUNDS[0], ModelUnavailable("away"))))
    run_ids = []
    for _ in range(20):
        with pytest.raises(ModelUnavailable) as caught:
            broken(matter=PAD)
        run_ids.append(caught.value.details["run_id"])
    children = [Child(nursery, place.folder) for _ in range(2)]
    won: Counter[int] = Counter()
    for run_id in run_ids:
        place.world.path.unlink()
        for child in children:
            child.tell(do="resume", run_id=run_id, stops=["before pay 2"])
        heard = {number: child.hear() for number, child in enumerate(children)}
        assert {"at": "before pay 2"} in heard.values(), heard
        winner = next(number for number, one in heard.items() if one == {"at": "before pay 2"})
        assert heard[1 - winner]["error"] == "DSE405"
        with pytest.raises(RunTaken):  # nor for anybody else
            place.program().resume(run_id, take_over=True)
        children[winner].tell(go=True)
        assert children[winner].hear() == {"report": f"done {PAD}"}
        assert place.world.paid() == [2, 3]
        place.sound(run_id)
        won[winner] += 1
    for child in children:
        child.end()
    assert sum(won.values()) == 20


def test_of_many_threads_that_resume_one_run_exactly_one_has_it(place: Place) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        place.program(lm=in_rounds(place.outside, (ROUNDS[0], ModelUnavailable("away"))))(matter=PAD)
    run_id, taken = caught.value.details["run_id"], threading.Semaphore(0)
    place.outside.at = lambda point: [taken.acquire() for _ in range(7)] if point == "before pay 2" else None
    barrier, results = threading.Barrier(8), []

    def resume(program: dse.Program) -> None:
        barrier.wait()
        try:
            results.append(program.resume(run_id).report)
        except RunTaken:
            results.append("taken")
            taken.release()

    programs = [place.program(store=place.opened() if number % 2 else place.store) for number in range(8)]
    threads = [threading.Thread(target=resume, args=[program]) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [f"done {PAD}", *["taken"] * 7] and place.world.paid() == [2, 3]
    place.sound(run_id)
    for program in programs:
        assert program.store is not None
        program.store.close()


@pytest.mark.parametrize("point", ["look 1", "asked 1", "asked 2"])
def test_an_owner_that_was_stopped_and_taken_over_does_nothing_more(place: Place, nursery: Nursery, point: str) -> None:
    child = Child(nursery, place.folder, elsewhere=True)
    child.tell(do="run", run_id="taken", stops=[point])
    child.until(point)
    child.stop()
    with pytest.raises(RunTaken, match="another machine"):
        place.program().resume("taken")
    assert place.program().resume("taken", take_over=True).report == f"done {PAD}"
    before = place.world.paid()
    child.tell(go=True)
    os.kill(child.pid, signal.SIGCONT)
    heard = child.hear()
    assert heard["error"] == "DSE405" and heard["run_id"] == "taken"
    assert place.world.paid() == before == [2, 3]
    place.sound("taken")
    child.end()


def test_a_stopped_process_of_this_machine_is_not_gone(place: Place, nursery: Nursery) -> None:
    child = Child(nursery, place.folder)
    child.tell(do="run", run_id="mine", stops=["asked 2"])
    child.until("asked 2")
    child.stop()
    with pytest.raises(RunTaken, match="A process that lives"):
        place.program().resume("mine", take_over=True)
    child.tell(go=True)
    os.kill(child.pid, signal.SIGCONT)
    assert child.hear() == {"report": f"done {PAD}"} and place.world.paid() == [2, 3]
    child.end()


def test_an_owner_that_nobody_can_make_sense_of(place: Place) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        place.program(lm=in_rounds(place.outside, (ModelUnavailable("away"),)))(matter=PAD)
    run_id = caught.value.details["run_id"]
    place.program()(matter=PAD)
    here = __import__("dse.store.owner", fromlist=["me"]).me().split("|")[0]
    for odd in ("", "nonsense", here, f"{here}|x|y|z", f"{here}|{10**30}|1|a", f"{here}|1"):
        place.sql("UPDATE runs SET owner = ?, outcome = 'running' WHERE run_id = ?", odd, run_id)
        assert place.store.runs(outcome="running") or place.store.runs(outcome="lost")
        if odd in ("", "nonsense"):
            with pytest.raises(RunTaken):
                place.program().resume(run_id)
    assert place.program().resume(run_id).report == f"done {PAD}"


def test_a_store_that_is_carried_over_a_fork(place: Place, nursery: Nursery) -> None:
    child = Child(nursery, place.folder)
    child.tell(do="forked")
    assert child.hear() == {"report": f"done {PAD}"}
    child.end()
    assert [run["outcome"] for run in place.store.runs()] == ["ok"] * 3 and place.world.paid() == [2, 3] * 3
    for run in place.store.runs():
        place.sound(run["run_id"])


# --- clocks


def test_a_clock_that_goes_backwards(place: Place) -> None:
    start = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)
    rounds = (call(("buy", {"n": 1})), ROUNDS[3])

    def clock(**since: float) -> None:
        place.store.now = lambda: start + dt.timedelta(**since)  # type: ignore[method-assign]

    def suspended(**more: Any) -> str:
        with pytest.raises(RunSuspended) as caught:
            place.program(lm=in_rounds(place.outside, rounds), **more)(matter="x")
        return str(caught.value.details["run_id"])

    def decided(run_id: str) -> None:
        (one,) = place.store.pending(run_id)
        place.store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="anna")

    clock()
    early, late = suspended(approval_expires_s=60), suspended(approval_expires_s=60)
    clock(hours=-3)
    back = suspended()
    assert [run["run_id"] for run in place.store.runs()][-1] == back  # it is listed where its clock says
    assert {one["run_id"] for one in place.store.pending()} == {early, late, back}  # not too late for any of them
    decided(early)
    clock(seconds=-59)
    assert place.program(lm=in_rounds(place.outside, rounds)).resume(early).report == f"done {PAD}"
    receipt, entries = place.store.run(early)
    assert receipt is not None and [entry["seq"] for entry in entries] == list(range(len(entries)))
    clock(seconds=60)
    hashed = place.sql("SELECT arguments_hash FROM approvals WHERE run_id = ?", late)[0][0]
    assert {one["run_id"] for one in place.store.pending()} == {back}
    with pytest.raises(DecisionRefused, match="too late"):
        place.store.approve(late, 1, arguments_hash=hashed, by="anna")
    assert place.program(lm=in_rounds(place.outside, rounds)).resume(late).report == f"done {PAD}"
    clock(hours=-9)  # once taken, that it was too late stays so
    (denied,) = [entry for entry in place.store.run(late)[1] if entry["kind"] == "approval"]
    assert (denied["granted"], denied["by"]) == (False, "expiry")
    assert [fact["n"] for fact in place.world.facts("buy")] == [1]
    assert place.store.prune(before=start - dt.timedelta(seconds=58)) == 1  # `early` stopped by that clock


def test_pruning_knows_time_zones(place: Place) -> None:
    now = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)
    place.store.now = lambda: now  # type: ignore[method-assign]
    place.program()(matter=PAD)
    east, west = (dt.timezone(dt.timedelta(hours=hours)) for hours in (9, -9))
    assert place.store.prune(before=(now - dt.timedelta(hours=1)).astimezone(east)) == 0
    assert place.store.prune(before=(now + dt.timedelta(hours=1)).astimezone(west)) == 1


@pytest.mark.parametrize("wrong", [
    {"before": "2100-01-01"}, {"before": dt.datetime(2100, 1, 1)}, {"before": dt.date(2100, 1, 1)}, {"before": None},
    {"before": dt.datetime(2100, 1, 1, tzinfo=dt.UTC), "outcomes": "ok"},
])  # fmt: skip
def test_pruning_before_no_time_is_refused(place: Place, wrong: dict[str, Any]) -> None:
    place.program()(matter=PAD)
    with pytest.raises(UserError) as caught:
        place.store.prune(**wrong)
    assert caught.value.code == "DSE100" and caught.value.value is wrong.get("outcomes", wrong["before"]) and caught.value.remedy
    assert len(place.store.runs()) == 1


# --- one store and many runs


def test_two_hundred_runs_at_once_in_one_store(place: Place) -> None:
    program = place.program()

    async def all_of_them() -> list[dse.Prediction]:
        return await asyncio.gather(*(program.acall(matter=f"{number}") for number in range(200)))

    predictions = asyncio.run(all_of_them())
    assert len({one.receipt["run_id"] for one in predictions}) == 200
    assert Counter(place.world.paid()) == {2: 200, 3: 200}
    assert [run["outcome"] for run in place.store.runs(300)] == ["ok"] * 200
    kinds = set()
    for one in predictions:
        receipt, entries = place.store.run(one.receipt["run_id"])
        assert receipt == one.receipt
        kinds.add(tuple(entry["kind"] for entry in entries))
    assert len(kinds) == 1


def test_what_one_run_cannot_write_does_not_stop_the_others(place: Place) -> None:
    """Somebody else's row stands where one of the runs wants to write."""
    program = place.program()

    async def all_of_them() -> list[Any]:
        runs = [program.new_run({"matter": "x"}, run_id=f"run {number}") for number in range(30)]
        for seq in range(1, 12):
            place.sql("INSERT INTO events (run_id, seq, kind, entry) VALUES ('run 7', ?, 'odd', '{}')", seq)
        return await asyncio.gather(*(program.execute(run) for run in runs), return_exceptions=True)

    results = asyncio.run(all_of_them())
    assert isinstance(results.pop(7), StoreUnavailable)
    assert [type(one) for one in results] == [dse.Prediction] * 29


def test_a_store_that_is_closed_while_runs_are_on(place: Place) -> None:
    closing = threading.Event()
    place.outside.at = lambda point: closing.set() if point == "look 1" else None
    handles = [place.program().start(matter=f"{number}") for number in range(12)]
    assert closing.wait(30)
    place.store.close()
    place.store.close()  # once more does nothing
    errors = []
    for handle in handles:
        try:
            assert handle.result().report == f"done {PAD}"
        except StoreUnavailable as error:
            errors.append(error)
    assert errors and all("closed" in str(error) for error in errors)
    assert "closed" in str(fails(place.program()))
    place.outside.at = lambda point: None
    place.store = place.opened()
    for error in errors:
        if run_id := error.details.get("run_id"):
            with contextlib.suppress(RunNotResumable):  # closed before it began
                place.finish(run_id)
                place.sound(run_id)
    paid = Counter(place.world.paid())
    assert paid[2] == paid[3] <= 12


def test_a_thread_that_cannot_be_started_costs_one_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    start, refused = threading.Thread.start, []

    def start_if_there_is_room(self: threading.Thread) -> None:
        if self.name == "dse-store" and len(refused) < 2:  # once for the run, once for how it stopped
            refused.append(self)
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_room)

    async def both() -> dse.Prediction:
        with pytest.raises(StoreUnavailable, match="could not be started"):
            await place.program().acall(matter="x")
        assert len(refused) == 2
        return await place.program().acall(matter="y")

    assert asyncio.run(asyncio.wait_for(both(), 60)).report == f"done {PAD}"
    (left,) = (run["run_id"] for run in place.store.runs() if run["outcome"] != "ok")
    assert place.finish(left)[0].report == f"done {PAD}"
    place.sound(left)
    assert place.world.paid() == [2, 3, 2, 3]


def writers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "dse-store"}


def test_stores_that_nobody_has_any_more_leave_neither_threads_nor_files(tmp_path: Path) -> None:
    before, ended = writers(), 0
    for number in range(4):
        place = Place(tmp_path)
        place.store.close()
        program = place.program(store=f"{place.path}")
        assert program(matter=f"{number}").report == f"done {PAD}"
        (mine,) = writers() - before
        del program
        gc.collect()
        mine.join(30)
        ended += not mine.is_alive()
        with contextlib.closing(place.opened()) as store:
            assert [run["outcome"] for run in store.runs()] == ["ok"] * (number + 1)
    assert ended == 4
    if (files := Path("/proc/self/fd")).exists():
        assert not [one for one in files.iterdir() if os.path.realpath(one).startswith(str(tmp_path))]


def test_what_was_submitted_is_written_although_nobody_has_the_store(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.store.close()
    before = writers()

    async def submitted() -> str:
        store = place.opened()
        log = store.new_log("left", "p", "call")
        log.put({"seq": 0, "kind": "run_started"}, 0.0)
        store.open_run(log, {"signature": "S", "mode": "direct", "model": "m", "hidden": []})
        with sqlite3.connect(place.path, isolation_level=None) as beside:
            beside.execute("BEGIN IMMEDIATE")  # the writer waits
            log.put({"seq": 1, "kind": "print"}, 0.0)
            waiting = asyncio.ensure_future(log.durable())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            gone = weakref.ref(store)
            del store, log, waiting
            gc.collect()
            assert gone() is not None  # what waits has it
            beside.execute("ROLLBACK")
        beside.close()
        (thread,) = writers() - before
        for _ in range(3_000):
            await asyncio.sleep(0.01)
            gc.collect()
            if not thread.is_alive():
                break
        assert gone() is None and not thread.is_alive()
        return "left"

    run_id = asyncio.run(submitted())
    assert place.sql("SELECT seq FROM events WHERE run_id = ?", run_id) == [(0,), (1,)]


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_new_store_is_for_its_user_alone_and_one_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        place = Place(tmp_path / "new")
        assert place.program()(matter="x").report == f"done {PAD}"
        modes = {path.name: path.stat().st_mode & 0o777 for path in place.folder.glob("runs.db*")}
        assert modes == {"runs.db": 0o600, "runs.db-wal": 0o600, "runs.db-shm": 0o600}
        place.path.chmod(0o640)
        place.reopened()
        assert place.program()(matter="x").report == f"done {PAD}"
        assert place.path.stat().st_mode & 0o777 == (place.folder / "runs.db-wal").stat().st_mode & 0o777 == 0o640
        place.store.close()
    finally:
        os.umask(old)


def test_a_store_in_memory(tmp_path: Path) -> None:
    store, outside = dse.Store(":memory:"), Outside(World(tmp_path / "world"))
    script = "found = await look(n=1)\nprint(found[:1])\nbought = await buy(n=2)\nsubmit(report=bought)"
    program = dse.Program(Settle, seed_plan(Settle.spec(), "code"), lm=in_code(script), deps=outside, store=store)
    with pytest.raises(RunSuspended) as caught:
        program(matter="x")
    run_id = caught.value.details["run_id"]
    (one,) = store.pending()
    store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="anna")
    assert program.resume(run_id).report == program.replay(run_id).report == "bought 2"
    other = program.fork(run_id, one["call_id"], value="nothing")
    assert program.resume(other).report == "nothing" and len(outside.world.facts("buy")) == 1

    async def many() -> None:
        quick = dse.Program(Settle, seed_plan(Settle.spec(), "tool_call"), lm=in_rounds(outside), deps=outside, store=store)
        await asyncio.gather(*(quick.acall(matter="x") for _ in range(30)))

    asyncio.run(many())
    assert len(store.runs(100)) == 32
    assert store.prune(before=dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1)) == 32 and store.runs() == []
    store.close()


def test_only_the_newest_snapshot_of_a_run_is_kept(place: Place) -> None:
    counts = []
    place.outside.at = lambda point: counts.append(place.sql("SELECT count(*), max(seq) FROM snapshots")[0])
    scripts = [f"found = await look(n={number})\nprint(found[:1])" for number in range(4)]
    scripts += ["bought = await buy(n=1)\nsubmit(report=bought)", "submit(report='then not')"]
    program = place.program("code", in_code(*scripts))
    with pytest.raises(RunSuspended) as caught:
        program(matter="x")
    run_id = caught.value.details["run_id"]
    assert [count for count, _ in counts] == [0, 1, 1, 1] and counts[1][1] < counts[2][1] < counts[3][1]
    assert place.sql("SELECT count(*) FROM snapshots") == [(1,)]
    (one,) = place.store.pending()
    place.store.deny(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="anna")
    assert program.resume(run_id).report == "then not"
    assert place.sql("SELECT count(*) FROM snapshots") == [(0,)]


# --- size


OLD, NEW = "2026-01-01T00:00:00+00:00", "2026-06-01T00:00:00+00:00"


@pytest.fixture
def large(place: Place) -> Place:
    """10,000 runs: one in ten waits for a decision, one in a hundred failed, the others are over; half of them are old."""
    with pytest.raises(RunSuspended) as caught:
        place.program("code", in_code("await buy(n=1)\nsubmit(report='x')"))(matter="x")
    model = caught.value.details["run_id"]
    with contextlib.closing(sqlite3.connect(place.path)) as connection:
        connection.row_factory = sqlite3.Row
        for table in ("runs", "events", "snapshots", "approvals"):
            rows = [dict(row) for row in connection.execute(f"SELECT * FROM {table} WHERE run_id = ?", [model])]
            rows = rows[:3]
            names = list(rows[0])
            made = []
            for number in range(10_000):
                outcome = "suspended" if number % 10 == 0 else "failed" if number % 100 == 1 else "ok"
                if table in ("snapshots", "approvals") and outcome != "suspended":
                    continue
                when = {"outcome": outcome, "created": f"{OLD if number % 2 else NEW}#{number:05}", "updated": OLD if number % 2 else NEW}
                when["requested"] = when["created"]
                for row in rows:
                    changed = {**row, **{name: value for name, value in when.items() if name in row}, "run_id": f"run {number}"}
                    made.append([changed[name] for name in names])
            connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(names))})", made)
        connection.execute("INSERT INTO judgements SELECT run_id, 'good', 1.0, NULL, NULL, created FROM runs")
        connection.commit()
    return place


def _plans(place: Place, work: Callable[[], Any]) -> list[str]:
    """How SQLite looks for what `work` asks for."""
    asked: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            asked.append((statement, parameters[0] if isinstance(parameters, list) else parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert asked
    with contextlib.closing(sqlite3.connect(place.path)) as connection:
        return [row[3] for statement, parameters in asked
                for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]  # fmt: skip


def test_large_stores_are_asked_by_index(large: Place) -> None:
    store = large.store
    kept = store.runs()[0]["run_id"]

    def resumed() -> None:
        (one,) = store.pending(kept)
        store.approve(kept, one["call_id"], arguments_hash=one["arguments_hash"], by="anna")
        assert large.program("code", in_code("")).resume(kept).report == "x"

    pending = lambda: [row for row in store._rows(sa.text("SELECT 1"))] and _quiet(store.pending)  # noqa: E731
    for name, work in {"the first page": store.runs, "failed": lambda: store.runs(outcome="failed"),
                       "over": lambda: store.runs(20, outcome="ok"), "lost": lambda: store.runs(outcome="lost"),
                       "pending": pending, "resume": resumed, "show": lambda: store.run(kept)}.items():  # fmt: skip
        plans = [plan for plan in _plans(large, work) if plan != "SCAN CONSTANT ROW"]
        assert plans, name
        wrong = [plan for plan in plans if not (plan.startswith("SEARCH") or "USING" in plan)]
        if name == "resume":  # which sorts the calls of one run
            wrong = [plan for plan in wrong if not plan.startswith("USE TEMP B-TREE")]
        assert not wrong, (name, wrong)


def _quiet(work: Callable[[], Any]) -> None:
    with contextlib.suppress(DseError):  # rows that were made up here are signed by nobody
        work()


def test_pruning_removes_everything_of_a_run_and_nothing_else(large: Place) -> None:
    tables = ("runs", "events", "snapshots", "approvals", "judgements")

    def rows() -> dict[str, set[Any]]:
        return {table: set(large.sql(f"SELECT * FROM {table}")) for table in tables}

    before = rows()
    gone = {row[0] for row in large.sql("SELECT run_id FROM runs WHERE outcome IN ('ok', 'failed') AND updated = ?", OLD)}
    assert len(gone) == 5_000 and any("run 1" == run_id for run_id in gone)
    assert large.store.prune(before=dt.datetime.fromisoformat("2026-03-01T00:00:00+00:00")) == len(gone)
    assert rows() == {table: {row for row in kept if row[0] not in gone} for table, kept in before.items()}
    waiting = large.sql("SELECT count(*) FROM runs WHERE outcome = 'suspended' AND updated = ?", NEW)[0][0]
    assert large.store.prune(before=dt.datetime.fromisoformat("2026-07-01T00:00:00+00:00"), outcomes=["suspended"]) == waiting
    left = large.sql("SELECT DISTINCT outcome FROM runs")
    assert {row[0] for row in left} <= {"ok", "failed", "suspended"}
    for table in tables[1:]:
        assert large.sql(f"SELECT count(*) FROM {table} WHERE run_id NOT IN (SELECT run_id FROM runs)") == [(0,)]


if __name__ == "__main__":
    _nurse()
