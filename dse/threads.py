"""Threads for work that would stop an event loop: turns of guests, checks, tools that are plain functions.

Handing work over is most of what a short piece of it costs. A queue and one wake-up of the event loop take half of what
an executor with its futures takes, and these threads outlive event loops.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import anyio.lowlevel

from dse.errors import SandboxUnavailable

__all__ = ["Threads", "being_cancelled", "have", "in_thread", "shared"]

T = TypeVar("T")
_OF_A_NAME = 512  # plain functions of users that run at the same time: tools, and who is asked for decisions
_Job = Callable[[], None]


class Threads:
    """Up to `most` threads, started when they are needed; work waits in order of arrival.

    They are daemons, and end when nobody has needed them for `idle_s` seconds. An owner may end them before (:meth:`stop`).
    """

    def __init__(self, most: int, name: str, *, idle_s: float = 10.0) -> None:
        self._most, self._name, self._idle_s = most, name, idle_s
        self._queue: SimpleQueue[Callable[[], _Job | None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._stopped = False
        self.busy = 0
        """Pieces of work that run or wait."""

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work()``. When the waiting task is cancelled, the work goes on and nobody hears of it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        mailbox = _mailbox(loop)
        context = contextvars.copy_context()

        def job() -> _Job:
            result: Any = None
            error: BaseException | None = None
            try:
                result = context.run(work)
            except BaseException as exc:  # a panic of the native module is not an Exception
                error = exc

            def tell() -> None:
                nonlocal error
                mailbox.put(future, result, error)
                error = None  # its traceback holds the frames that hold it

            return tell

        self.hand(job)
        return await future

    def hand(self, job: Callable[[], _Job | None]) -> None:
        """Has ``job()`` done by and by, and then what it returns. Nobody waits for it; it must not raise.

        Where the system gives no further thread, the threads that there are do it.

        Raises:
            SandboxUnavailable: :meth:`stop` was called, or there is no thread and none can be started.
        """
        with self._lock:
            if self._stopped:
                raise SandboxUnavailable("the sandbox is closed", remedy="Create a new one")
            if len(self._threads) < min(self.busy + 1, self._most):
                thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as exc:
                    if not self._threads:
                        raise SandboxUnavailable("a thread could not be started", value=f"{self._name}: {exc}",
                                                 remedy="Run it again when there are fewer threads or processes") from exc  # fmt: skip
                else:
                    self._threads.add(thread)
            self.busy += 1
            self._queue.put(job)

    def stop(self, timeout_s: float = 0.0) -> None:
        """Ends the threads once the queue is empty, and waits that long for each of them. Idempotent."""
        with self._lock:
            threads = list(self._threads)
            if not self._stopped:
                self._stopped = True
                for _ in threads:
                    self._queue.put(None)
        for thread in threads if timeout_s else ():
            thread.join(timeout_s)

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            then = job()
            with self._lock:
                self.busy -= 1
            if then is not None:
                then()
            del job, then  # not kept until the next one comes

    def _next(self) -> Callable[[], _Job | None] | None:
        """The next piece of work; None to end."""
        while True:
            try:
                return self._queue.get(timeout=self._idle_s)
            except Empty:
                with self._lock:
                    if len(self._threads) > self.busy and not self._stopped:  # the others do for what has been put
                        self._threads.discard(threading.current_thread())
                        return None


_shared: dict[str, Threads] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.clear)  # a forked child has none of these threads


def shared(name: str, most: int) -> Threads:
    """The threads of this name in this process, made when they are first asked for; nobody stops them."""
    found = _shared.get(name)
    return found if found is not None else _shared.setdefault(name, Threads(most, name))


async def in_thread(name: str, work: Callable[[], T], *, left: Callable[[], Callable[[], Any]] | None = None) -> T:
    """The result of ``work()`` in a thread of this name; cancelled, it goes on and nobody hears of it.

    Args:
        left: called when this is cancelled while the work goes on; what it gives is called in the event loop when that
            has ended.
    """
    await anyio.lowlevel.checkpoint_if_cancelled()  # then it does not even begin
    going = _Going(work)
    try:
        result: T = await shared(name, _OF_A_NAME).run(going)
    except BaseException:
        if left is not None:
            going.leave(left)
        raise
    if going.closed is not None:
        raise going.closed
    return result


class _Going:
    """Work in a thread, and whether it has ended."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.closed: GeneratorExit | None = None  # raised by the work; from a future it would close who awaits it
        self._work = work
        self._lock = threading.Lock()
        self._ended = False
        self._tell: Callable[[], Any] | None = None

    def __call__(self) -> Any:
        try:
            return self._work()
        except GeneratorExit as exc:
            self.closed = exc
        finally:
            with self._lock:
                self._ended, tell = True, self._tell
            if tell is not None:
                tell()

    def leave(self, left: Callable[[], Callable[[], Any]]) -> None:
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._ended:
                return
            then = left()

            def tell() -> None:
                with contextlib.suppress(RuntimeError):  # it is closed
                    loop.call_soon_threadsafe(then)

            self._tell = tell


async def have(take: Callable[[], T], give_back: Callable[[T], None], threaded: Callable[[Callable[[], T]], Awaitable[T]]) -> T:
    """What ``take()`` gives, in a thread; given back there where this task is cancelled meanwhile: somebody else may want it.

    Args:
        threaded: awaits a function in a thread.
    """
    lock, left, had = threading.Lock(), False, False
    taken: list[T] = []

    def work() -> T:
        nonlocal had
        taken.append(take())
        with lock:
            had = not left
        if left:
            give_back(taken[0])
        return taken[0]

    try:
        return await threaded(work)
    except BaseException:
        with lock:
            left = True
        if had:  # it was about to be told
            give_back(taken[0])
        raise


def being_cancelled(error: BaseException) -> bool:
    """Whether `error` cancels this task; anybody's function may also raise CancelledError all by itself."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


class _Results(list[tuple["asyncio.Future[Any]", Any, "BaseException | None"]]):
    """A list that can be referred to weakly."""


class _Mailbox:
    """Results for one event loop, which is woken once for all that come until it looks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # the key under which this is kept
        self._lock = threading.Lock()
        self._come: Callable[[], _Results | None] = _nothing  # what the loop was woken for; with the loop they are gone

    def put(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        with self._lock:
            come = self._come()
            if come is not None:
                come.append((future, result, error))
                return
            come = _Results([(future, result, error)])
            self._come = weakref.ref(come)
        if (loop := self._loop()) is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self._empty, come)

    def _empty(self, come: _Results) -> None:
        with self._lock:
            self._come = _nothing
        for future, result, error in come:
            _settle(future, result, error)


def _nothing() -> None:
    return None


_mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()


def _mailbox(loop: asyncio.AbstractEventLoop) -> _Mailbox:
    found = _mailboxes.get(loop)
    if found is None:
        found = _mailboxes[loop] = _Mailbox(loop)
    return found


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):  # which no future takes
        error, cause = RuntimeError("the function raised StopIteration"), error
        error.__cause__ = cause
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
