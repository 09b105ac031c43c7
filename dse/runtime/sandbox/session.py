"""A guest session: one guest in a worker process, as the code that runs it sees it.

Feeding and resuming a guest each take a *turn* in a thread (:mod:`dse.runtime.sandbox.driver` says what happens in it),
which ends when the guest waits for the host, ends or fails. Between turns a session holds a worker process and no thread,
so many sessions can wait for slow tools. When nobody waits for a turn any more its worker is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, TypeVar

from dse.errors import SandboxUnavailable, Unserialisable
from dse.runtime.sandbox.driver import Driver
from dse.runtime.sandbox.pools import WorkerPool
from dse.runtime.sandbox.records import Failed, Result, Turn, Waiting

__all__ = ["Session"]

_Turn = TypeVar("_Turn", bound=Turn | list[Turn] | None)
_KILL_AFTER_S = 0.25  # how long a turn may go on after nobody waits for it any more


class _Places:
    """A semaphore; the one of `threading` is a sixth of what a short turn costs."""

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *_: object) -> None:
        self._free.put(None)


# Guests that compute at the same time: more would only stretch each other's time limits.
_cores = _Places(2 * (os.cpu_count() or 1))


def _anew() -> None:
    """A forked child has none of its parent's turns."""
    global _cores
    _cores = _Places(2 * (os.cpu_count() or 1))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)


class Session:
    """One guest: its variables live from feed to feed. Not for use by two tasks at the same time."""

    def __init__(self, workers: WorkerPool, driver: Driver) -> None:
        self._workers, self._driver = workers, driver
        workers.holders.add(self)
        self._lock = threading.Lock()
        self._in_turn = False
        self._abandoned = False

    @property
    def interpreter_s(self) -> float:
        """Seconds spent in turns so far: an upper bound of the time the guest computed."""
        return self._driver.interpreter_s

    async def feed(self, code: str, *, inputs: Mapping[str, Any] | None = None, shims: Sequence[str] = ()) -> Turn:
        """Runs code until it waits, ends or fails.

        Args:
            inputs: variables to set before, plain data.
            shims: what the lint says the code needs (``LintResult.shims``); loaded once per session.

        Raises:
            Unserialisable: an input that cannot enter the guest; nothing ran.
            SandboxUnavailable: the session had no worker yet, and none could be had in time.
        """
        await self._ready_to_feed()
        return await self._turn(lambda: self._begin(code, dict(inputs or {}), shims))

    async def feed_if(
        self, check: Callable[[], bool], code: str, *, inputs: Mapping[str, Any] | None = None, shims: Sequence[str] = ()
    ) -> Turn | None:
        """Like :meth:`feed`, after ``check()`` in the same thread, which saves handing over twice.

        None if that says no: the session is as it was before. A session that has ended answers without asking.
        """

        def work() -> Turn | None:
            if check() and not self._abandoned:
                return self._begin(code, dict(inputs or {}), shims)
            self._give_up_place()
            return None

        await self._ready_to_feed()
        return await self._turn(work)

    async def _ready_to_feed(self) -> None:
        if self._driver.snapshot is not None:
            raise RuntimeError("the guest still waits for results: resume it, or close the session")
        if self._driver.guest is None and self._driver.dead is None and self._workers.state != "forked":
            await self._workers.place(self)

    async def resume(self, results: dict[int, Result]) -> Turn:
        """Hands results to the guest, in ascending order of call id whatever the order of the dict.

        Raises:
            Unserialisable: a value that cannot enter the guest; the guest waits on, resume it again.
        """
        self._check_results(results)
        return await self._turn(lambda: self._driver.answer(results))

    async def resume_along(
        self, results: dict[int, Result], known: Callable[[Waiting], dict[int, Result] | None], *, most: int = 32
    ) -> list[Turn]:
        """Like :meth:`resume`, and goes on by itself while ``known(turn)`` gives the results of a turn, up to `most` turns.

        Handing a turn over costs more than a turn whose results are there already. Gives all turns, the last one is where
        the guest is now.

        Args:
            known: called in the session's thread; None where the caller has to go on.
        """
        answer = self._driver.answer

        def work() -> list[Turn]:
            turns: list[Turn] = [answer(results)]
            while len(turns) < most and isinstance(turn := turns[-1], Waiting) and not self._abandoned:
                given = known(turn)
                if given is None:
                    break
                try:
                    turns.append(answer(given))
                except Unserialisable:
                    break  # the guest waits on: the caller gives the same, and hears of it
            return turns

        self._check_results(results)
        turns = await self._turn(work)
        return [turns] if isinstance(turns, Failed) else turns

    def _check_results(self, results: dict[int, Result]) -> None:
        driver = self._driver
        if driver.snapshot is None:
            raise RuntimeError("the guest does not wait for results")
        if not results or not results.keys() <= set(driver.pending):
            raise ValueError(f"results must be for some of the calls {list(driver.pending)}, not {sorted(results)}")

    async def aclose(self) -> None:
        """Returns the worker, or ends it when a turn is still running; a guest that may stay is led back to its beginning.

        Idempotent; done by another thread soon after.
        """
        self._driver.end("the session was closed")
        if self._driver.guest is not None:
            try:
                self._workers.threads.hand(self._leave)
                return
            except SandboxUnavailable:
                pass  # closed meanwhile
        self._leave()

    @property
    def waits_for(self) -> tuple[int, ...]:
        """Ids of the calls without which the guest cannot go on; empty between feeds."""
        return self._driver.pending if self._driver.snapshot is not None else ()

    async def freeze(self) -> tuple[bytes, dict[str, Any]] | None:
        """The guest as bytes, and what :meth:`Sandbox.thaw` needs besides; the session stays usable.

        Between feeds, or while the guest waits and every call has been reported. None when the worker is gone.
        """
        data: bytes | None = await self._in_thread(self._driver.dump)
        return (data, self._driver.state()) if data is not None else None

    # --- the worker: lent for the first feed, and given back

    def _begin(self, code: str, inputs: dict[str, Any], shims: Sequence[str]) -> Turn:
        try:
            return self._driver.begin(code, inputs, shims)
        except BaseException:
            self._give_up_place()
            raise

    def _check_out(self) -> None:
        try:
            self._driver.check_out()
        except BaseException:
            self._give_up_place()
            raise

    def _load(self, data: bytes, state: Mapping[str, Any]) -> None:
        try:
            self._driver.load(data, state)
        except BaseException:
            with self._lock:
                self._leave_locked()
            raise

    def _give_up_place(self) -> None:
        """A session that has got no worker lets others have its place."""
        if self._driver.guest is None:
            self._workers.take_back(None, self)

    @property
    def _pid(self) -> int | None:
        """Of the worker process."""
        return self._driver.pid

    def natives(self) -> tuple[Any, ...]:
        return self._driver.guest, self._driver.snapshot

    def _leave(self) -> None:
        with self._lock:
            self._driver.end("the session was closed")
            guest, snapshot = (None, None) if self._in_turn else self._driver.let_go()
            running, stays = self._in_turn, not self._abandoned
        if running:
            self._abandon()
            return
        keep = None
        try:
            if stays:
                with _cores:
                    keep = self._driver.lead_back(guest, snapshot)
        finally:
            self._workers.take_back(guest, self, keep)

    def _leave_locked(self) -> None:
        guest, _ = self._driver.let_go()
        self._workers.take_back(guest, self)

    # --- turns in threads, and what nobody waits for any more

    async def _turn(self, work: Callable[[], _Turn]) -> _Turn | Failed:
        if self._workers.state == "forked":
            self._workers.refuse_if_unusable()
        driver = self._driver
        if driver.dead is None and self._workers.state == "closed":
            driver.end("the sandbox was closed")
        if driver.dead is not None:
            return Failed(driver.dead)
        turn: _Turn = await self._in_thread(work)
        return turn

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        """Runs ``work`` in a thread. When the task is cancelled meanwhile, the session is given up."""

        def run() -> Any:
            with self._lock:
                if self._abandoned:
                    return None
                self._in_turn = True
            try:
                with _cores:
                    return work()
            finally:
                with self._lock:
                    self._in_turn = False
                    if self._abandoned:
                        self._leave_locked()

        done = False
        try:
            result = await self._workers.threads.run(run)
            done = True
            return result
        except Exception:
            done = True
            raise
        finally:
            if not done:
                self._abandon()

    def _abandon(self) -> None:
        """Nobody waits for the running turn any more: it may end by itself, but not take long."""
        with self._lock:
            self._driver.end("the turn was cancelled")
            if not self._in_turn:
                self._abandoned = True
                self._leave_locked()
                return
            if self._abandoned:
                return
            self._abandoned = True
        timer = threading.Timer(_KILL_AFTER_S, self._kill)
        timer.daemon = True
        timer.start()

    def _kill(self) -> None:
        with self._lock:
            # only while a turn runs: the worker is ours then, and its pid not reused
            if self._in_turn and (pid := self._pid) is not None and self._workers.state == "open":
                with contextlib.suppress(ProcessLookupError):  # it has just died, and is about to be replaced
                    os.kill(pid, signal.SIGKILL)
