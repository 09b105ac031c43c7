"""One thread per store writes the journals of all its runs: what waits is written together, in one transaction."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

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

    def follows(self, ends: dict[str, int]) -> bool:
        """Whether it begins where its journal ends: that has no gaps, and a snapshot no gap before it.

        Args:
            ends: by run, where the journals end that are being written; this one's new end is noted.
        """
        if self.events:
            if self.events[0]["seq"] != ends[self.run_id]:
                return False
            ends[self.run_id] = self.events[-1]["seq"] + 1
        return ends[self.run_id] >= (self.snapshot["seq"] if self.snapshot is not None else 0)


_Queue: TypeAlias = "queue.SimpleQueue[tuple[Store, Batch] | None]"


class Writer:
    """Commits batches in the order in which they come. Its thread starts with the first one, and ends with the store: when
    that is closed, or when nobody has it any more. What was submitted is written first, because it holds the store.

    Attributes:
        closed: nothing is taken any more.
    """

    def __init__(self, store: Store) -> None:
        self._url = store.url
        self._store = weakref.ref(store)
        self.anew()
        _all.add(self)
        weakref.finalize(store, self._end).atexit = False

    def anew(self) -> None:
        """Begin with nothing: also in a forked child, which has neither this thread nor the runs of its parent."""
        self._queue: _Queue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.closed = False

    def submit(self, batch: Batch) -> None:
        """From the event loop of the run; what becomes of it is told there.

        Raises:
            StoreUnavailable: the store was closed, or has no thread that could write and none can be started.
        """
        with self._lock:
            self.check()
            store = self._store()
            assert store is not None  # who submits has it
            if self._thread is None:
                thread = threading.Thread(target=_work, args=(self._queue,), name="dse-store", daemon=True)
                try:
                    thread.start()
                except RuntimeError as exc:
                    raise StoreUnavailable("The store's thread could not be started", value=str(exc),
                                           remedy="Resume the run when there are fewer threads or processes.") from exc  # fmt: skip
                self._thread = thread
            self._queue.put((store, batch))

    def check(self) -> None:
        """
        Raises:
            StoreUnavailable: the store was closed.
        """
        if self.closed:
            raise StoreUnavailable("The store was closed", value=self._url, remedy="Open it again to go on with its runs.")

    def close(self) -> None:
        """Write what was submitted, then end the thread."""
        with self._lock:
            self.closed = True
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=60)

    def _end(self) -> None:
        """Nobody has the store: nothing waits and nothing will come. Called wherever its last reference went, so no lock."""
        if self._thread is not None:
            self._queue.put(None)


def _work(waiting: _Queue) -> None:
    """The thread: between two turns it has the queue, and no store."""
    while _turn(waiting):
        pass


def _turn(waiting: _Queue) -> bool:
    """Write what waits, or what comes first; False when that was all."""
    first = waiting.get()
    if first is None:
        return False
    store, batches, more = first[0], [first[1]], True
    while len(batches) < _TOGETHER and more:
        try:
            following = waiting.get_nowait()
        except queue.Empty:
            break
        if following is None:
            more = False
        else:
            batches.append(following[1])
    _commit(store, batches)
    by_loop: dict[asyncio.AbstractEventLoop, list[Batch]] = {}
    for batch in batches:
        by_loop.setdefault(batch.loop, []).append(batch)
    for loop, those in by_loop.items():
        try:
            loop.call_soon_threadsafe(_tell, those)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more
    return more


def _commit(store: Store, batches: list[Batch]) -> None:
    try:
        store.write_batches(batches)
    except StoreUnavailable as failure:
        for batch in batches:
            batch.error = failure
    except BaseException as exc:  # whoever waits must hear of it
        if len(batches) > 1:  # what one run cannot write is not the fault of the others
            for batch in batches:
                batch.error = None
                _commit(store, [batch])
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
        if (store := writer._store()) is not None:
            store.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
