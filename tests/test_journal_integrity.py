"""Kept runs against whoever can write to their database: every change is noticed, and nothing is executed because of it.

Keys and encryption: where keys come from, how they change, and what an encrypted store shows.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import random
import sqlite3
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

import dse
from dse.errors import DecisionRefused, JournalTampered, RunSuspended, StoreError
from dse.store.keys import Keys, rotate
from dse.store.runlog import decode_event, encode_event
from dse.store.tables import COLUMNS, tables
from dse.strategies.base import seed_plan
from dse.testing import ScriptedModel, call, say

SECRET = "marzipan-elephant"  # comes up in inputs, arguments, results, prints, scripts, answers and decisions
PADDING = [f"{SECRET}-{number}" for number in range(20)]
_script = """found = await look(word=word)
print('found', found)
paid = await pay(word=found, n={n})
submit(answer=paid)"""


@dse.tool(effect="read")
async def look(ctx: dse.ToolContext[list[Any]], word: str) -> str:
    """Look something up."""
    ctx.deps.append(("look", word))
    return f"{word} found"


@dse.tool(effect="write", approval="always")
async def pay(ctx: dse.ToolContext[list[Any]], word: str, n: int) -> str:
    """Pay."""
    ctx.deps.append(("pay", word, n))
    return f"paid {n} for {word}"


class Buy(dse.Signature):
    """Buy something."""

    word: str = dse.InputField()
    answer: str = dse.OutputField()
    tools = [look, pay]


class Sell(Buy):
    """Sell something."""


def in_code(n: int = 1) -> Callable[[Any], Any]:
    return lambda request: say(f"[[ ## code ## ]]\n{_script.format(n=n)}\n\n[[ ## completed ## ]]")


def in_rounds(request: Any) -> Any:
    """look, pay twice, submit; each round after what the conversation holds."""
    rounds = (call(("look", {"word": SECRET})), call(("pay", {"word": SECRET, "n": 1}), ("pay", {"word": SECRET, "n": 2})),
              call(("submit", {"answer": f"{SECRET} is yours"})))  # fmt: skip
    return rounds[sum(message["role"] == "assistant" for message in request["messages"])]


@dataclass
class Shop:
    """A store with its database opened beside it, by somebody who may write to it."""

    place: Path
    store: dse.Store
    done: list[Any] = field(default_factory=list)
    models: list[ScriptedModel] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._beside = sqlite3.connect(self.place, isolation_level=None)

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def program(self, signature: type[dse.Signature] = Buy, mode: str = "code", reply: Any = None, **more: Any) -> dse.Program:
        model = ScriptedModel(reply or (in_code() if mode == "code" else in_rounds))
        self.models.append(model)
        plan = seed_plan(signature.spec(), mode)
        return dse.Program(signature, plan, lm=model, deps=self.done, **{"store": self.store, **more})

    def suspended(self, program: dse.Program) -> str:
        """A run that waits for decisions."""
        with pytest.raises(RunSuspended) as caught:
            program(word=SECRET)
        return str(caught.value.details["run_id"])

    def decide(self, run_id: str, *, grant: bool = True) -> None:
        for one in self.store.pending(run_id):
            decide = self.store.approve if grant else self.store.deny
            decide(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="anna")

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._beside.execute(statement, values).fetchall()

    def close(self) -> None:
        self._beside.close()
        self.store.close()

    def seen(self) -> tuple[list[Any], int]:
        """Effects on the world, and what the models were asked."""
        return list(self.done), sum(len(model.requests) for model in self.models)

    def refuses(self, program: dse.Program, run_id: str) -> JournalTampered:
        """Resuming is refused, and nothing happens."""
        before = self.seen()
        with pytest.raises(JournalTampered) as caught:
            program.resume(run_id)
        assert self.seen() == before
        assert caught.value.code == "DSE183" and caught.value.remedy
        return caught.value


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with opened(tmp_path / "runs.db") as shop:
        yield shop


KEYS = Keys([b"k" * 32])


def opened(place: Path, *, keys: Keys | None = KEYS) -> Shop:
    return Shop(place, dse.Store(place, keys=keys))


# --- single bits


def _flips(value: Any, rng: random.Random, most: int) -> Iterator[tuple[str, Any]]:
    """`value` with each single bit flipped, or some of them: an SQL expression with what it is made of."""
    if isinstance(value, int):
        bits = rng.sample(range(63), min(most, 63))
        yield from (("?", value ^ (1 << bit)) for bit in bits)
        return
    raw = value if isinstance(value, bytes) else struct.pack("<d", value) if isinstance(value, float) else value.encode()
    for bit in sorted(rng.sample(range(len(raw) * 8), min(most, len(raw) * 8))):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        if isinstance(value, float):
            yield "?", struct.unpack("<d", changed)[0]
        else:
            yield ("?" if isinstance(value, bytes) else "CAST(? AS TEXT)"), bytes(changed)


def _refused_flips(shop: Shop, program: dse.Program, run_id: str, table: str, columns: dict[str, int], where: str = "") -> int:
    rng, tried = random.Random(f"{table}{where}"), 0
    for column, most in columns.items():
        ((row, value),) = shop.sql(f"SELECT rowid, {column} FROM {table} WHERE run_id = ? {where}", run_id)
        for expression, changed in _flips(value, rng, most):
            try:
                shop.sql(f"UPDATE {table} SET {column} = {expression} WHERE rowid = ?", changed, row)
            except sqlite3.IntegrityError:  # a number that another entry has
                continue
            shop.refuses(program, run_id)
            tried += 1
        shop.sql(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", value, row)
    return tried


def test_no_bit_of_a_snapshot_can_be_flipped(shop: Shop) -> None:
    program = shop.program()
    run_id = shop.suspended(program)
    shop.decide(run_id)
    columns = {"data": 400, "driver": 300, "mac": 200, "seq": 63, "interpreter": 60, "key_id": 96}
    assert _refused_flips(shop, program, run_id, "snapshots", columns) >= 1_000
    assert program.resume(run_id).answer == f"paid 1 for {SECRET} found"  # as it was, it still goes on
    assert shop.seen() == ([("look", SECRET), ("pay", f"{SECRET} found", 1)], 1)


def test_no_bit_of_a_journal_entry_or_decision_or_row_can_be_flipped(shop: Shop) -> None:
    program = shop.program()
    run_id = shop.suspended(program)
    shop.decide(run_id)
    columns = {"entry": 25, "kind": 10, "active_s": 10, "seq": 10, "mac": 15, "key_id": 10}
    last = len(shop.store.journal(run_id).entries) - 1
    tried = sum(_refused_flips(shop, program, run_id, "events", columns, f"AND seq = {seq}") for seq in (0, 2, last))
    decided = {"mac": 40, "key_id": 30, "arguments_hash": 30, "decided_at": 30, "decided_by": 20, "call_id": 10, "granted": 1}
    tried += _refused_flips(shop, program, run_id, "approvals", decided)
    tried += _refused_flips(shop, program, run_id, "runs", {"head": 40, "hidden": 30, "receipt": 40})
    assert tried >= 400
    assert program.resume(run_id).answer


def test_no_bit_of_what_waits_for_a_decision_can_be_flipped(shop: Shop) -> None:
    program = shop.program(approval_expires_s=3600)
    run_id = shop.suspended(program)
    (waiting,) = shop.store.pending(run_id)
    row = dict(zip(("tool", "effect", "arguments", "requested", "expires", "mac", "key_id"), shop.sql(
        "SELECT tool, effect, arguments, requested, expires, mac, key_id FROM approvals")[0], strict=True))  # fmt: skip
    for column, value in row.items():
        for expression, changed in _flips(value, random.Random(column), 12):
            shop.sql(f"UPDATE approvals SET {column} = {expression}", changed)
            with pytest.raises(JournalTampered):
                shop.store.pending()
            shop.refuses(program, run_id)
        shop.sql(f"UPDATE approvals SET {column} = ?", value)
    shop.sql("UPDATE approvals SET arguments = ?", json.dumps({"word": "something harmless", "n": 1}))
    with pytest.raises(JournalTampered):  # a person must not be shown one thing and decide about another
        shop.store.approve(run_id, waiting["call_id"], arguments_hash=waiting["arguments_hash"], by="anna")
    assert shop.sql("SELECT granted FROM approvals") == [(None,)]


@pytest.mark.parametrize("value", [None, 700, 7.5, b"\xff\x00", b"abc", "\u00e9"], ids=repr)
@pytest.mark.parametrize(("table", "column"), [
    ("events", "entry"), ("events", "kind"), ("events", "mac"), ("events", "key_id"), ("events", "active_s"),
    ("snapshots", "data"), ("snapshots", "driver"), ("snapshots", "mac"), ("snapshots", "key_id"), ("snapshots", "seq"),
    ("snapshots", "interpreter"), ("approvals", "mac"), ("approvals", "key_id"), ("approvals", "arguments_hash"),
    ("approvals", "reason"), ("approvals", "decided_by"), ("runs", "head"), ("runs", "hidden"), ("runs", "receipt"),
])  # fmt: skip
def test_a_database_may_hold_anything(tmp_path: Path, table: str, column: str, value: Any) -> None:
    place = _waiting_shop(tmp_path)
    with opened(place) as shop:
        program, run_id = shop.program(), shop.store.runs()[0]["run_id"]
        try:
            shop.sql(f"UPDATE {table} SET {column} = ?", value)
        except sqlite3.IntegrityError:
            return  # the table itself refuses NULL
        shop.refuses(program, run_id)


def test_a_value_of_another_type_with_the_same_bytes_is_another_value(shop: Shop) -> None:
    program = shop.program()
    run_id = shop.suspended(program)
    shop.sql("UPDATE events SET entry = CAST(entry AS BLOB) WHERE seq = 1")
    shop.refuses(program, run_id)


# --- things that are genuine, and stand elsewhere


def test_snapshots_of_another_run_position_program_or_interpreter(shop: Shop) -> None:
    one, other, foreign = shop.program(), shop.program(reply=in_code(2)), shop.program(Sell)
    mine, twin, theirs, alien = (shop.suspended(program) for program in (one, one, other, foreign))
    for run_id in (mine, twin, theirs, alien):
        shop.decide(run_id)
    columns = "seq, interpreter, driver, data, key_id, mac"
    kept = shop.sql(f"SELECT {columns} FROM snapshots WHERE run_id = ?", mine)[0]
    assignment = ", ".join(f"{name} = ?" for name in columns.split(", "))
    for run_id in (twin, theirs, alien):
        shop.sql(f"UPDATE snapshots SET {assignment} WHERE run_id = ?",
                 *shop.sql(f"SELECT {columns} FROM snapshots WHERE run_id = ?", run_id)[0], mine)  # fmt: skip
        shop.refuses(one, mine)
    for seq in range(-1, kept[0] + 3):  # the right one at another position
        if seq != kept[0]:
            shop.sql(f"UPDATE snapshots SET {assignment} WHERE run_id = ?", seq, *kept[1:], mine)
            shop.refuses(one, mine)
    shop.sql(f"UPDATE snapshots SET {assignment} WHERE run_id = ?", kept[0], "1.3.0", *kept[2:], mine)
    shop.refuses(one, mine)
    shop.sql(f"UPDATE snapshots SET {assignment} WHERE run_id = ?", *kept, mine)
    assert one.resume(mine).answer == f"paid 1 for {SECRET} found"


def test_a_snapshot_of_another_history_of_the_same_run(shop: Shop, tmp_path: Path) -> None:
    """Set back to an earlier true state and decided otherwise, a run has entries of the same numbers."""
    program = shop.program(reply=lambda request: say(
        "[[ ## code ## ]]\na = None\ntry:\n    a = await pay(word='x', n=1)\nexcept Exception:\n    pass\n"
        "b = await pay(word='y', n=2)\nsubmit(answer=f'{a} {b}')\n\n[[ ## completed ## ]]"))  # fmt: skip
    run_id = shop.suspended(program)
    backup = {table: shop.sql(f"SELECT * FROM {table}") for table in ("runs", "events", "snapshots", "approvals")}
    shop.decide(run_id, grant=True)
    with pytest.raises(RunSuspended):
        program.resume(run_id)
    paid = shop.sql("SELECT * FROM snapshots")[0]
    for table, rows in backup.items():
        shop.sql(f"DELETE FROM {table}")
        for row in rows:
            shop.sql(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)
    shop.decide(run_id, grant=False)
    with pytest.raises(RunSuspended):
        program.resume(run_id)
    shop.decide(run_id)
    entries = shop.store.journal(run_id).entries
    assert paid[1] <= len(entries)  # there is a place for it
    shop.sql("DELETE FROM snapshots")
    shop.sql(f"INSERT INTO snapshots VALUES ({', '.join('?' * len(paid))})", *paid)
    shop.refuses(program, run_id)


def _changes(run_id: str, other: str, last: int) -> dict[str, list[tuple[str, tuple[Any, ...]]]]:
    two = "UPDATE events SET seq = ? WHERE run_id = ? AND seq = ?"
    copied = "INSERT INTO events SELECT ?, ?, kind, entry, active_s, key_id, mac FROM events WHERE run_id = ? AND seq = ?"
    removed = "DELETE FROM events WHERE run_id = ? AND seq = ?"
    return {
        "swapped": [(two, (-1, run_id, 2)), (two, (2, run_id, 3)), (two, (3, run_id, -1))],
        "the first deleted": [(removed, (run_id, 0))],
        "one deleted": [(removed, (run_id, 3))],
        "one deleted, the rest moved up": [(removed, (run_id, 3)), *[(two, (n - 1, run_id, n)) for n in range(4, last + 1)]],
        "the last duplicated": [(copied, (run_id, last + 1, run_id, last))],
        "one duplicated inside": [*[(two, (n + 1, run_id, n)) for n in range(last, 3, -1)], (copied, (run_id, 4, run_id, 3))],
        "from another run": [(removed, (run_id, 3)), (copied, (run_id, 3, other, 3))],
        "all from another run": [("DELETE FROM events WHERE run_id = ?", (run_id,)),
                                 *[(copied, (run_id, n, other, n)) for n in range(last + 1)]],
        "appended from another run": [(copied, (run_id, last + 1, other, last))],
        "all deleted": [("DELETE FROM events WHERE run_id = ?", (run_id,))],
        "the last cut off": [(removed, (run_id, last))],
        "half cut off": [("DELETE FROM events WHERE run_id = ? AND seq >= ?", (run_id, last // 2))],
        "cut off, and the head of another run": [
            (removed, (run_id, last)), ("UPDATE runs SET head = (SELECT head FROM runs WHERE run_id = ?) WHERE run_id = ?", (other, run_id))],
        "cut off, without a head": [(removed, (run_id, last)), ("UPDATE runs SET head = NULL WHERE run_id = ?", (run_id,))],
        "cut off, with a shorter head": [
            (removed, (run_id, last)),
            ("UPDATE runs SET head = ? || substr(head, instr(head, ':')) WHERE run_id = ?", (last, run_id))],
        "less durable": [("UPDATE runs SET durability = 'exit' WHERE run_id = ?", (run_id,))],
        "nothing hidden": [("UPDATE runs SET hidden = '{\"names\":[],\"results\":[],\"replies\":false}' WHERE run_id = ?", (run_id,))],
        "another receipt": [("UPDATE runs SET receipt = (SELECT receipt FROM runs WHERE run_id = ?) WHERE run_id = ?", (other, run_id))],
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["code", "tool_call"])
@pytest.mark.parametrize("change", list(_changes("", "", 9)))
def test_a_changed_journal(shop: Shop, mode: str, change: str) -> None:
    program = shop.program(mode=mode)
    run_id, other = shop.suspended(program), shop.suspended(program)
    shop.decide(run_id)
    last = len(shop.store.journal(run_id).entries) - 1
    assert last > 4
    for statement, values in _changes(run_id, other, last)[change]:
        shop.sql(statement, *values)
    shop.refuses(program, run_id)
    for look in (lambda: shop.store.run(run_id), lambda: program.fork(run_id, 1, value="x")):
        with pytest.raises(JournalTampered):
            look()
    assert program.resume(other) if not shop.decide(other) else None  # its neighbour goes on


def test_a_run_under_the_name_of_another(shop: Shop) -> None:
    program = shop.program()
    run_id, other = shop.suspended(program), shop.suspended(program)
    shop.decide(run_id)
    for table in ("runs", "events", "snapshots", "approvals"):
        shop.sql(f"DELETE FROM {table} WHERE run_id = ?", other)
        shop.sql(f"UPDATE {table} SET run_id = ? WHERE run_id = ?", other, run_id)
    shop.refuses(program, other)


def test_a_run_under_another_program(shop: Shop) -> None:
    program, other = shop.program(), shop.program(Sell)
    run_id = shop.suspended(program)
    shop.decide(run_id)
    shop.sql("UPDATE runs SET program_id = ?", other.program_id)
    shop.refuses(other, run_id)


def test_a_finished_run_that_is_said_to_be_unfinished_executes_nothing(shop: Shop) -> None:
    program = shop.program(mode="tool_call", approve=lambda request: True)
    first = program(word=SECRET)
    before, asked = list(shop.done), shop.seen()[1]
    shop.sql("UPDATE runs SET outcome = 'infrastructure'")
    assert program.resume(first.receipt["run_id"]).outputs == first.outputs
    assert (shop.done, shop.seen()[1]) == (before, asked)


# --- decisions


def test_decisions_that_nobody_took(shop: Shop) -> None:
    program = shop.program(mode="tool_call")
    run_id, other = shop.suspended(program), shop.suspended(program)
    one, two = (row["call_id"] for row in shop.store.pending(run_id))
    kept = shop.sql("SELECT * FROM approvals")
    names = [row[1] for row in shop.sql("PRAGMA table_info(approvals)")]

    def restore() -> None:
        shop.sql("DELETE FROM approvals")
        for row in kept:
            shop.sql(f"INSERT INTO approvals VALUES ({', '.join('?' * len(row))})", *row)

    shop.sql("UPDATE approvals SET granted = 1, reason = '', decided_by = 'anna', decided_at = requested")
    shop.refuses(program, run_id)
    restore()
    waiting = {row["call_id"]: row["arguments_hash"] for row in shop.store.pending(run_id)}
    shop.store.deny(run_id, one, arguments_hash=waiting[one], by="anna", reason="too expensive")
    shop.decide(other)
    kept = shop.sql("SELECT * FROM approvals")
    for column, value in {"granted": 1, "reason": "just do it", "decided_by": "berta", "decided_at": "2020-01-01T00:00:00+00:00",
                          "arguments_hash": waiting[two], "mac": None, "key_id": None}.items():  # fmt: skip
        shop.sql(f"UPDATE approvals SET {column} = ? WHERE run_id = ? AND call_id = ?", value, run_id, one)
        shop.refuses(program, run_id)
        restore()
    decided = [name for name in names if name not in ("run_id", "call_id")]
    for source in ((run_id, one), (other, one), (other, two)):  # to another call, from another run
        taken = shop.sql(f"SELECT {', '.join(decided)} FROM approvals WHERE run_id = ? AND call_id = ?", *source)[0]
        shop.sql(f"UPDATE approvals SET {', '.join(f'{name} = ?' for name in decided)} WHERE run_id = ? AND call_id = ?",
                 *taken, run_id, two)  # fmt: skip
        shop.refuses(program, run_id)
        restore()
    shop.sql("UPDATE approvals SET granted = NULL WHERE run_id = ?", run_id)  # to have it decided again
    shop.refuses(program, run_id)
    with pytest.raises(JournalTampered):
        shop.store.approve(run_id, one, arguments_hash=waiting[one], by="carl")
    assert not [effect for effect in shop.done if effect[0] == "pay"]


def test_a_deleted_request_waits_again(shop: Shop) -> None:
    program = shop.program()
    run_id = shop.suspended(program)
    shop.decide(run_id)
    shop.sql("DELETE FROM approvals")
    with pytest.raises(RunSuspended):
        program.resume(run_id)
    assert len(shop.store.pending(run_id)) == 1 and shop.done == [("look", SECRET)]


def test_a_decision_needs_names_that_are_text(shop: Shop) -> None:
    run_id = shop.suspended(shop.program())
    (one,) = shop.store.pending(run_id)
    for words in ({"by": "\ud800"}, {"by": "anna", "reason": "\udfff"}):
        with pytest.raises(DecisionRefused):
            shop.store.deny(run_id, one["call_id"], arguments_hash=one["arguments_hash"], **words)
    assert len(shop.store.pending(run_id)) == 1


# --- keys


KEY, KEY2 = "0f" * 32, "1e" * 32


def _waiting_shop(folder: Path, **more: Any) -> Path:
    """A store with one run that waits, decided."""
    place = folder / f"{uuid.uuid4().hex}.db"
    with opened(place, **more) as shop:
        shop.decide(shop.suspended(shop.program()))
    return place


def _resumed(place: Path, **more: Any) -> Any:
    with opened(place, **more) as shop:
        prediction = shop.program().resume(shop.store.runs()[0]["run_id"])
        assert [effect[0] for effect in shop.done] == ["pay"]
        return prediction


@pytest.fixture
def no_keys(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("DSE_KEY", "DSE_KEY_FILE", "DSE_ENCRYPTION_KEY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_key_of_the_store_s_own(tmp_path: Path, no_keys: pytest.MonkeyPatch) -> None:
    place = _waiting_shop(tmp_path, keys=None)
    key = place.with_name(place.name + ".key")
    assert key.stat().st_mode & 0o777 == 0o600 and len(bytes.fromhex(key.read_text())) == 32
    assert not list(tmp_path.glob(".*"))  # no draft is left behind
    key.chmod(0o640)
    with pytest.raises(StoreError, match="Others can read"):
        _resumed(place, keys=None)
    key.chmod(0o600)
    assert _resumed(place, keys=None).answer


@pytest.mark.parametrize("text", [b"", b"abc\n", b"zz" * 32, b"00" * 15, b"\xff\xfe" * 20, b"00" * 32 + b"\n00\n"])
def test_a_key_file_that_is_none(tmp_path: Path, no_keys: pytest.MonkeyPatch, text: bytes) -> None:
    place = tmp_path / "runs.db"
    key = tmp_path / "runs.db.key"
    key.write_bytes(text)
    key.chmod(0o600)
    with opened(place, keys=None) as shop, pytest.raises(StoreError) as caught:
        shop.program(approve=lambda request: True)(word=SECRET)
    assert caught.value.code == "DSE182" and caught.value.remedy


def test_a_key_from_the_environment(tmp_path: Path, no_keys: pytest.MonkeyPatch) -> None:
    no_keys.setenv("DSE_KEY", KEY)
    place = _waiting_shop(tmp_path, keys=None)
    assert not list(tmp_path.glob("*.key"))
    no_keys.setenv("DSE_KEY", KEY2)
    with pytest.raises(JournalTampered) as caught:  # the wrong one: it names the one that is needed
        _resumed(place, keys=None)
    assert caught.value.value == Keys([bytes.fromhex(KEY)]).current
    no_keys.setenv("DSE_KEY", f"{KEY2}, {KEY}")
    assert _resumed(place, keys=None).answer
    for bad in ("0f" * 15, "nothex", f"{KEY},", f"{KEY},00"):
        no_keys.setenv("DSE_KEY", bad)
        with opened(place, keys=None) as shop, pytest.raises(StoreError):
            shop.store.keys  # noqa: B018
    no_keys.delenv("DSE_KEY")
    no_keys.setenv("DSE_KEY_FILE", str(tmp_path / "missing"))
    with opened(place, keys=None) as shop, pytest.raises(StoreError, match="missing"):
        shop.store.keys  # noqa: B018
    rotate(tmp_path / "named")
    no_keys.setenv("DSE_KEY_FILE", str(tmp_path / "named"))
    assert _resumed(_waiting_shop(tmp_path, keys=None), keys=None).answer


def test_two_processes_that_make_the_key_at_once(tmp_path: Path, no_keys: pytest.MonkeyPatch) -> None:
    """Whoever is second uses the key of the first."""
    code = ("import sys\nfrom pathlib import Path\nfrom dse.store.keys import Keys\nprint('ready', flush=True)\n"
            "for n in range(40):\n sys.stdin.readline()\n print(Keys.find(Path(sys.argv[1]) / f'{n}.key').current, flush=True)")  # fmt: skip
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], text=True, stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, env={**os.environ}) for _ in range(2)]  # fmt: skip
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for number in range(40):
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        ids = {child.stdout.readline().strip() for child in children if child.stdout is not None}
        assert ids == {Keys.find(tmp_path / f"{number}.key").current}
    for child in children:
        child.communicate()
    assert not list(tmp_path.glob(".*"))


def test_threads_of_one_store_agree_on_a_key(tmp_path: Path, no_keys: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        found.append(shop.store.keys.current)

    with opened(tmp_path / "runs.db", keys=None) as shop:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_rotation(tmp_path: Path, no_keys: pytest.MonkeyPatch) -> None:
    place = _waiting_shop(tmp_path, keys=None)
    key = place.with_name(place.name + ".key")
    old = Keys.find(key).current
    fresh = rotate(key)
    assert fresh != old and key.stat().st_mode & 0o777 == 0o600
    with opened(place, keys=None) as shop:
        program, run_id = shop.program(), shop.store.runs()[0]["run_id"]
        before = len(shop.store.journal(run_id).entries)  # what the old key signed is verified
        assert program.resume(run_id).answer
        assert {row[0] for row in shop.sql("SELECT key_id FROM events WHERE seq < ?", before)} == {old}
        assert {row[0] for row in shop.sql("SELECT key_id FROM events WHERE seq >= ?", before)} == {fresh}
        assert program.replay(run_id).answer
        kept = shop.suspended(program)
        # Another process rotates while this one has the store open: what that one decides is understood here.
        newest = rotate(key)
        with opened(place, keys=None) as elsewhere:
            elsewhere.decide(kept)
        assert shop.sql("SELECT key_id FROM approvals WHERE run_id = ?", kept) == [(newest,)]
        assert program.resume(kept).answer
    key.write_text(key.read_text().splitlines()[0] + "\n")
    with opened(place, keys=None) as shop:
        with pytest.raises(JournalTampered, match="key that is not here") as caught:
            shop.store.run(run_id)
        assert caught.value.value == old and "key file" in caught.value.remedy


# --- encryption


def _raw(place: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (place, *place.parent.glob(f"{place.name}-*")))


def _everything(shop: Shop) -> str:
    """One run that waits and one that ended, in both modes, decided for and against."""
    code, rounds, store = shop.program(), shop.program(mode="tool_call"), shop.store
    for program in (code, rounds):
        run_id = shop.suspended(program)
        shop.decide(run_id)
        assert program.resume(run_id).answer
    denied = shop.suspended(rounds)
    for one in store.pending(denied):
        store.deny(denied, one["call_id"], arguments_hash=one["arguments_hash"], by="anna", reason=f"no {SECRET}")
    waiting = shop.suspended(code)
    assert SECRET in json.dumps(store.pending(waiting)) and SECRET in json.dumps(store.run(waiting))
    return waiting


def test_an_encrypted_store_shows_nothing(tmp_path: Path, no_keys: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "clear.db") as shop:
        _everything(shop)
        assert SECRET.encode() in _raw(tmp_path / "clear.db")  # the search finds what is there
    no_keys.setenv("DSE_ENCRYPTION_KEY", Fernet.generate_key().decode())
    place = tmp_path / "runs.db"
    with opened(place, keys=None) as shop:
        waiting = _everything(shop)
        assert SECRET.encode() not in _raw(place) and (tmp_path / "runs.db-wal").stat().st_size
        assert b"submit(answer" not in _raw(place)
        shop.decide(waiting)
    assert SECRET.encode() not in _raw(place)
    assert _resumed(place, keys=None).answer == f"paid 1 for {SECRET} found"


def test_encryption_keys_that_are_missing_wrong_or_new(tmp_path: Path, no_keys: pytest.MonkeyPatch) -> None:
    first, second = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    no_keys.setenv("DSE_ENCRYPTION_KEY", first)
    place = _waiting_shop(tmp_path, keys=None)
    for value, said in (("", "is encrypted"), (second, "cannot be decrypted"), ("short", "not a Fernet key")):
        no_keys.setenv("DSE_ENCRYPTION_KEY", value)
        with pytest.raises(StoreError, match=said) as caught:
            _resumed(place, keys=None)
        assert caught.value.code == "DSE182" and caught.value.remedy
    no_keys.setenv("DSE_ENCRYPTION_KEY", f"{second},{first}")  # rotation: the first encrypts
    assert _resumed(place, keys=None).answer
    no_keys.setenv("DSE_ENCRYPTION_KEY", second)
    with opened(place, keys=None) as shop, pytest.raises(StoreError, match="cannot be decrypted"):
        shop.store.run(shop.store.runs()[0]["run_id"])
    assert _resumed(_waiting_shop(tmp_path, keys=None), keys=None).answer


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_reason_may_look_as_if_it_were_encrypted(tmp_path: Path, no_keys: pytest.MonkeyPatch, encrypted: bool) -> None:
    cipher = Fernet(Fernet.generate_key())
    if encrypted:
        no_keys.setenv("DSE_ENCRYPTION_KEY", Fernet.generate_key().decode())
    for number, reason in enumerate(("gAAAA looks wrong", "gAAAA", cipher.encrypt(b"").decode(), "-gAAAA", "--gAAAA", "-", "")):
        place = tmp_path / f"{number}.db"
        with opened(place, keys=None) as shop:
            run_id = shop.suspended(shop.program())
            (one,) = shop.store.pending(run_id)
            shop.store.deny(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="ann", reason=reason)
            assert shop.sql("SELECT reason FROM approvals")[0][0] != reason or not encrypted
        with opened(place, keys=None) as shop:
            assert [made["reason"] for made in shop.store.journal(run_id).decisions.values()] == [reason]


def test_encryption_switched_on_for_a_store_that_has_runs(tmp_path: Path, no_keys: pytest.MonkeyPatch) -> None:
    place = _waiting_shop(tmp_path, keys=None)
    no_keys.setenv("DSE_ENCRYPTION_KEY", Fernet.generate_key().decode())
    assert _resumed(place, keys=None).answer  # what is in clear is read, what is new is not in clear
    with opened(place, keys=None) as shop:
        receipt, entries = shop.store.run(shop.store.runs()[0]["run_id"])
        assert receipt is not None and receipt["outcome"] == "ok" and entries[-1]["kind"] == "run_finished"
        rows = shop.sql("SELECT entry FROM events ORDER BY seq")
    assert rows[0][0].startswith("{") and rows[-1][0].startswith("gAAAA")


# --- the decoder


def test_signed_text_that_is_no_entry_is_a_coded_error() -> None:
    keys = Keys([b"k" * 32])
    good = encode_event(keys, "r", "p", "", {"seq": 0, "kind": "print", "text": "x"}, 1.5)
    assert decode_event(keys, "r", "p", "", good, 0)["text"] == "x"
    for text in ("", "{", "[]", "null", '{"seq":1,"kind":"print"}', '{"seq":0,"kind":"feed"}', "[" * 100_000, '{"seq":' + "9" * 5_000 + "}"):
        row = {**good, "entry": text, "mac": keys.mac("event", "r", "p", 0, "", "1.5", text)}
        with pytest.raises(JournalTampered):
            decode_event(keys, "r", "p", "", row, 0)


def test_expiry_is_as_it_was_asked_for(shop: Shop) -> None:
    program = shop.program(approval_expires_s=60)
    run_id = shop.suspended(program)
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(days=900)).isoformat()
    shop.sql("UPDATE approvals SET expires = ?", later)
    shop.refuses(program, run_id)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_what_is_read_of_a_run_is_all_that_is_kept_of_it(dialect: str) -> None:
    kept = tables(dialect).tables
    assert {name: tuple(column.name for column in kept[name].c) for name in COLUMNS} == COLUMNS
