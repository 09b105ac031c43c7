"""One thread per store writes the journals of all its runs: what waits is written together, in one transaction."""

from __future__ import annotations

import asyncio
import queue
import threading
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
    error: BaseException | None = None


class Writer:
    """Commits batches in the order in which they come. Starts with the first one, ends with the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._next: dict[str, int] = {}  # by run: the entry that has to follow

    def follows(self, batch: Batch, ends: dict[str, int]) -> bool:
        """Whether a batch begins where the last one ended: a journal has no gaps.

        Args:
            ends: by run, where those end that are being written with it; this one is noted, too.
        """
        if batch.events:
            first = batch.events[0]["seq"]
            if ends.get(batch.run_id, self._next.get(batch.run_id, first)) != first:
                return False
            ends[batch.run_id] = batch.events[-1]["seq"] + 1
        return True

    def forget(self, run_id: str) -> None:
        self._next.pop(run_id, None)

    def submit(self, batch: Batch) -> None:
        self._queue.put(batch)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="dse-store", daemon=True)
                    self._thread.start()

    def close(self) -> None:
        """Write what was submitted, then end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():
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
            for batch in batches:
                batch.error = StoreUnavailable("The journal could not be written", value=repr(exc))


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
