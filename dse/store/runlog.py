"""The durable journal of one run: what the runtime puts, in order, signed, written by the store's writer."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from dse.errors import JournalTampered, StoreUnavailable
from dse.store.writer import Batch

if TYPE_CHECKING:
    from dse.runtime.history import Frozen
    from dse.store.journal import Store
    from dse.store.keys import Keys, Signer

__all__ = ["Durability", "RunLog", "check_head", "decode_event", "decode_snapshot", "head_of", "snapshot_row"]

Durability = Literal["exit", "call", "power"]
MAX_SNAPSHOT_BYTES = 64 * 2**20
_text = json.JSONEncoder(separators=(",", ":")).encode  # made once: this is done for every entry


class RunLog:
    """Appends to the journal of a run that this process has.

    Attributes:
        eager: False for ``durability="exit"``, where everything is written when the run stops.
    """

    def __init__(self, store: Store, run_id: str, program_id: str, epoch: int, durability: Durability, *,
                 mac: str = "", length: int = 0, hidden: str = "", receipt: str = "null") -> None:  # fmt: skip
        self.store = store
        self.run_id = run_id
        self.program_id = program_id
        self.epoch = epoch
        self.durability = durability
        self.eager = durability != "exit"
        self.hidden, self.receipt = hidden, receipt  # as the store has them
        self._mac = mac  # of the last entry: every entry is bound to all before it
        self._signer: Signer | None = None
        self._length = length  # entries so far
        self._rows: list[dict[str, Any]] = []  # not known to be safe yet
        self._submitted = 0  # of these
        self._snapshot: dict[str, Any] | None = None
        self._last: Batch | None = None  # submitted, and its end not heard of
        self._failure: BaseException | None = None

    def put(self, entry: Mapping[str, Any], active_s: float) -> None:
        if self._signer is None:
            self._signer = self.store.keys.signer("event", self.run_id, self.program_id)
        row = _row(self.store.keys, self._signer, self.run_id, self._mac, entry, active_s)
        self._mac, self._length = row["mac"], self._length + 1
        self._rows.append(row)

    def head(self) -> str:
        """What binds the run to the end of its journal, to be written together with that."""
        return head_of(self.store.keys, self.run_id, self.program_id, self._length, self._mac,
                       (self.durability, self.hidden, self.receipt))  # fmt: skip

    def waiting(self) -> list[dict[str, Any]]:
        """What was put and is not written."""
        return self._rows

    def opened(self, epoch: int) -> None:
        """The store has the run, and everything that was put."""
        self.epoch, self._rows, self._submitted = epoch, [], 0

    async def keep(self, frozen: Frozen) -> None:
        if len(frozen.data) > MAX_SNAPSHOT_BYTES:
            return  # executing again costs less than carrying this around
        self._snapshot = snapshot_row(self.store.keys, self.run_id, self.program_id, self._mac, frozen)
        await self.durable()

    async def durable(self) -> None:
        if self.eager:
            await self.flush()

    async def flush(self, *, again: bool = False) -> None:
        """Write everything that was put, whatever the durability.

        Args:
            again: also what could not be written before.

        Raises:
            StoreUnavailable: it could not be written. RunTaken: another process has the run.
        """
        if again and self._failure is not None:
            self._failure, self._submitted, self._last = None, 0, None
        if self._failure is not None:
            raise self._failure
        loop = asyncio.get_running_loop()
        batch = self._last
        if self._submitted < len(self._rows) or self._snapshot is not None:
            rows = self._rows[self._submitted :]
            batch = Batch(self.run_id, self.epoch, rows, self._snapshot, self.durability == "power", loop, self._written,
                          head=self.head() if rows else None, size=len(rows))  # fmt: skip
            try:
                self.store.writer.submit(batch)
            except StoreUnavailable as refused:  # nobody will ever tell what became of it
                self._failure = refused
                raise
            self._snapshot, self._last, self._submitted = None, batch, len(self._rows)
        if batch is not None:
            # Everybody waits for a future of their own: the writer works on it whether or not this task goes on.
            waiter: asyncio.Future[None] = loop.create_future()
            batch.waiters.append(waiter)
            await waiter

    def _written(self, batch: Batch) -> None:
        if batch is self._last:
            self._last = None
        if batch.error is not None:
            self._failure = self._failure or batch.error
        elif self._failure is None:
            del self._rows[: batch.size]
            self._submitted -= batch.size


def encode_event(keys: Keys, run_id: str, program_id: str, before: str, entry: Mapping[str, Any], active_s: float) -> dict[str, Any]:  # fmt: skip
    """A row of the journal. The order of keys is kept, because a model has seen it; text that JSON strictly speaking cannot
    hold (half a surrogate pair) is kept as it is."""
    return _row(keys, keys.signer("event", run_id, program_id), run_id, before, entry, active_s)


def _row(keys: Keys, signer: Signer, run_id: str, before: str, entry: Mapping[str, Any], active_s: float) -> dict[str, Any]:
    text = keys.seal(_text(entry))
    spent = round(active_s, 6)
    mac = signer.mac(entry["seq"], before, repr(spent), text)
    return {"run_id": run_id, "seq": entry["seq"], "kind": entry["kind"], "entry": text, "active_s": spent,
            "key_id": keys.current, "mac": mac}  # fmt: skip


def decode_event(keys: Keys, run_id: str, program_id: str, before: str, row: Mapping[str, Any], expected: int) -> dict[str, Any]:  # fmt: skip
    """The entry of a row.

    Raises:
        JournalTampered: it was changed, or stands elsewhere than it was written.
    """
    what = f"Journal entry {row['seq']} of run {run_id}"
    if row["seq"] != expected:
        raise JournalTampered(f"Journal entry {expected} of run {run_id} is missing", value=row["seq"],
                              remedy="Do not use it; look for who can write to the store.")  # fmt: skip
    parts = ("event", run_id, program_id, row["seq"], before, repr(row["active_s"]), row["entry"])
    keys.verify(row["mac"], *parts, key=row["key_id"], what=what)
    entry = _data(keys, row["entry"], what)
    if (entry.get("seq"), entry.get("kind")) != (row["seq"], row["kind"]):
        raise JournalTampered(f"{what} has another kind than its row", value=row["kind"],
                              remedy="Do not use it; look for who can write to the store.")  # fmt: skip
    return entry


def _data(keys: Keys, text: Any, what: str) -> dict[str, Any]:
    """The object that a stored text holds."""
    try:
        data = json.loads(keys.open(text))
    except (ValueError, TypeError, AttributeError, RecursionError):  # bytes instead of text, no JSON, a number too long
        data = None
    if not isinstance(data, dict):
        raise JournalTampered(f"{what} is not JSON data", value=text,
                              remedy="Do not use it; look for who can write to the store.")  # fmt: skip
    return data


def head_of(keys: Keys, run_id: str, program_id: str, length: int, mac: str, about: tuple[str | None, ...]) -> str:
    """Signed length of a journal, so that nothing can be cut off at its end.

    It is written in the transaction that writes the last of these entries, so no crash comes between the two.

    Args:
        mac: of the last entry.
        about: what else of the run's row it vouches for.
    """
    return f"{length}:{keys.current}:{keys.mac('head', run_id, program_id, length, mac, *about)}"


def check_head(keys: Keys, run_id: str, program_id: str, head: Any, macs: list[str], about: tuple[str | None, ...]) -> None:
    """The journal may be longer than its head says: a process that has the run may just be adding to it.

    Raises:
        JournalTampered: entries were cut off, or the row was changed.
    """
    length, key, mac = [*str(head).split(":"), "", ""][:3]
    count = int(length) if length.isascii() and length.isdecimal() and len(length) < 12 else -1
    if count > len(macs):
        raise JournalTampered(f"Entries were cut off the end of the journal of run {run_id}", value=f"{len(macs)} of {count}",
                              remedy="Do not use it; look for who can write to the store.")  # fmt: skip
    last = macs[count - 1] if count > 0 else ""
    keys.verify(mac, "head", run_id, program_id, count, last, *about, key=key, what=f"What is noted of run {run_id}")


def snapshot_row(keys: Keys, run_id: str, program_id: str, before: str, frozen: Frozen) -> dict[str, Any]:
    driver = keys.seal(_text(frozen.driver))
    data = keys.seal_bytes(zlib.compress(frozen.data, 1))
    mac = keys.mac("snapshot", run_id, program_id, frozen.interpreter, frozen.seq, before, driver, data)
    return {"run_id": run_id, "seq": frozen.seq, "interpreter": frozen.interpreter, "driver": driver, "data": data,
            "key_id": keys.current, "mac": mac}  # fmt: skip


def decode_snapshot(keys: Keys, run_id: str, program_id: str, macs: list[str], row: Mapping[str, Any]) -> tuple[bytes, dict[str, Any]]:  # fmt: skip
    """Dump and driver data of a snapshot.

    Args:
        macs: of the entries of the journal: a snapshot belongs behind those that it was taken after.

    Raises:
        JournalTampered: it was changed, or belongs to another run, program, interpreter, position or history.
    """
    seq, data, what = row["seq"], row["data"], f"The snapshot of run {run_id}"
    if not isinstance(seq, int) or not 0 < seq <= len(macs) or not isinstance(data, (bytes, memoryview)):
        raise JournalTampered(f"{what} belongs to no place of its journal", value=seq, remedy="Resume without snapshots.")
    data = bytes(data)
    keys.verify(row["mac"], "snapshot", run_id, program_id, row["interpreter"], seq, macs[seq - 1], row["driver"], data,
                key=row["key_id"], what=what)  # fmt: skip
    return zlib.decompress(keys.open_bytes(data)), _data(keys, row["driver"], what)
