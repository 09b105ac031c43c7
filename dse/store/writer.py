"""One thread per store writes the journals of all its runs: what waits is written together, in one transaction."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dse.errors import DseError, RunTaken, StoreUnavailable

if TYPE_CHECKING:
    from dse.store.journal import Store

__all__ = ["Batch", "Writer"]

_TOGETHER = 256  # batches per transaction


@dataclass
class Batch:
    """What one run wants to be written, and who waits for it.

    Attributes:
        written: told in the event loop, before those who wait.
    """

    run_id: str
    epoch: int
    events: list[dict[str, Any]]
    snapshot: Mapping[str, Any] | None
    power: bool
    loop: asyncio.AbstractEventLoop
    written: Callable[[Batch], None]
    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    head: str | None = None  # of the journal that ends with these events
    size: int = 0  # entries; `events` shrinks when some turn out to be written
    error: BaseException | None = None


class Writer:
    """Commits batches in the order in which they come. Starts with the first one, ends with the store.

    Attributes:
        closed: nothing is taken any more.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.anew()
        _all.add(self)

    def anew(self) -> None:
        """Begin with nothing: also in a forked child, which has neither this thread nor the runs of its parent."""
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._next: dict[str, int] = {}  # by run: the entry that has to follow
        self.closed = False

    def begins(self, run_id: str, first: int) -> None:
        """This process has a run now, and goes on with entry number `first`."""
        self._next[run_id] = first

    def follows(self, batch: Batch, ends: dict[str, int]) -> bool:
        """Whether a batch begins where the last one ended: a journal has no gaps, and a snapshot no gap before it.

        Args:
            ends: by run, where those end that are being written with it; this one is noted, too.
        """
        end = ends.get(batch.run_id, self._next.get(batch.run_id, -1))
        if batch.events:
            if batch.events[0]["seq"] != end:
                return False
            end = ends[batch.run_id] = batch.events[-1]["seq"] + 1
        return end >= (batch.snapshot["seq"] if batch.snapshot is not None else 0)

    def forget(self, run_id: str) -> None:
        self._next.pop(run_id, None)

    def submit(self, batch: Batch) -> None:
        """From the event loop of the run; what becomes of it is told there.

        Raises:
            StoreUnavailable: the store was closed.
        """
        with self._lock:
            self.check()
            self._queue.put(batch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="dse-store", daemon=True)
                self._thread.start()

    def check(self) -> None:
        """
        Raises:
            StoreUnavailable: the store was closed.
        """
        if self.closed:
            raise StoreUnavailable("The store was closed", value=self._store.url, remedy="Open it again to go on with its runs.")

    def close(self) -> None:
        """Write what was submitted, then end the thread."""
        with self._lock:
            self.closed = True
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=60)

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            batches, last = [first], False
            while len(batches) < _TOGETHER:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    last = True
                    break
                batches.append(more)
            self._commit(batches)
            by_loop: dict[asyncio.AbstractEventLoop, list[Batch]] = {}
            for batch in batches:
                by_loop.setdefault(batch.loop, []).append(batch)
            for loop, those in by_loop.items():
                try:
                    loop.call_soon_threadsafe(_tell, those)
                except RuntimeError:
                    pass  # the loop is closed: nobody waits any more
            if last:
                return

    def _commit(self, batches: list[Batch]) -> None:
        try:
            self._store.write_batches(batches)
            for batch in batches:
                if batch.events and batch.error is None:
                    self._next[batch.run_id] = batch.events[-1]["seq"] + 1
        except StoreUnavailable as failure:
            for batch in batches:
                batch.error = failure
        except BaseException as exc:  # whoever waits must hear of it
            if len(batches) > 1:  # what one run cannot write is not the fault of the others
                for batch in batches:
                    batch.error = None
                    self._commit([batch])
                return
            for batch in batches:
                batch.error = StoreUnavailable("The journal could not be written", value=repr(exc),
                                               remedy="Resume the run; if it happens again, something else writes there.")  # fmt: skip


def _tell(batches: list[Batch]) -> None:
    for batch in batches:
        batch.written(batch)
        for waiter in batch.waiters:
            if waiter.done():
                continue
            if batch.error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(_copy(batch.error))


def _copy(error: BaseException) -> BaseException:
    """Each waiting run raises an error of its own."""
    if isinstance(error, DseError):
        return type(error)(error.what, value=error.value, remedy=error.remedy, **error.details)
    return error


def taken(run_id: str) -> RunTaken:
    return RunTaken("Another process took this run over", value=run_id,
                    remedy="Leave it to that one; this one recorded nothing more.")  # fmt: skip


_all: weakref.WeakSet[Writer] = weakref.WeakSet()


def _after_fork() -> None:
    for writer in list(_all):
        writer.anew()
        writer._store.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
