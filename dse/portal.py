"""The sync face: one event loop in a thread of its own, for scripts, threads and notebooks."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

    from anyio.from_thread import BlockingPortal

__all__ = ["finish_sync", "run_sync", "start_soon"]

T = TypeVar("T")
_OWN_LOOP = "a sync call inside dse's own event loop would wait for itself: use the async face"
_lock = threading.Lock()
_portal: BlockingPortal | None = None
_loop: asyncio.AbstractEventLoop | None = None
_manager: AbstractContextManager[BlockingPortal] | None = None
_inherited: list[Any] = []
_finishing: set[asyncio.Future[Any]] = set()


def _get() -> tuple[BlockingPortal, asyncio.AbstractEventLoop]:
    global _portal, _manager, _loop
    with _lock:
        if _portal is not None and _dead(_portal):
            _portal = _manager = _loop = None
        if _portal is None or _loop is None:
            from anyio.from_thread import start_blocking_portal

            _manager = start_blocking_portal(backend_options={"loop_factory": _new_loop})
            _portal = _manager.__enter__()
            _loop = _portal.call(asyncio.get_running_loop)
        return _portal, _loop


def _after_fork() -> None:
    """A forked child has no portal thread. The parent's objects stay referenced: closing them would wait for that thread."""
    global _portal, _manager, _loop, _lock
    _inherited.append((_portal, _manager, _loop))
    _portal = _manager = _loop = None
    _lock = threading.Lock()  # the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _close() -> None:
    """Runs that nobody waits for any more are cancelled, not waited for."""
    global _portal, _manager
    if _manager is not None:
        manager, _manager, _portal = _manager, None, None
        leaving = SystemExit()
        manager.__exit__(SystemExit, leaving, None)


def _new_loop() -> asyncio.AbstractEventLoop:
    """An event loop that goes on when a task raises KeyboardInterrupt or SystemExit: asyncio's would end all others."""
    loop = asyncio.new_event_loop()
    run = loop.run_forever

    def run_forever() -> None:
        while True:
            try:
                return run()
            except (KeyboardInterrupt, SystemExit):
                pass  # the task has it as well, for whoever awaits it; signals reach the main thread only

    loop.run_forever = run_forever  # type: ignore[method-assign]
    return loop


def _dead(portal: BlockingPortal) -> bool:
    """Whether its loop has ended after all."""
    return getattr(portal, "_event_loop_thread_id", None) is None


def _here(portal: BlockingPortal) -> bool:
    """Whether this is the portal thread."""
    return threading.get_ident() == getattr(portal, "_event_loop_thread_id", None)


class _Carried(NamedTuple):
    """A base exception on its way to whoever waits: in the portal's task group it would end all other calls."""

    error: BaseException


async def _carrying(fn: Callable[..., Awaitable[T]], *args: Any) -> T | _Carried:
    try:
        return await fn(*args)
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as exc:
        return _Carried(exc)


def start_soon(fn: Callable[..., Awaitable[T]], *args: Any) -> Future[T]:
    """Start ``fn(*args)`` on the portal thread; cancelling the future cancels it."""
    portal, loop = _get()
    if _here(portal):
        raise RuntimeError(_OWN_LOOP)
    outer: Future[T] = concurrent.futures.Future()
    task: asyncio.Task[T | _Carried] | None = None

    def begin() -> None:
        nonlocal task
        if outer.cancelled():
            outer.set_running_or_notify_cancel()
            return
        task = loop.create_task(_carrying(fn, *args))
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[T | _Carried]) -> None:
        if task.cancelled():
            outer.cancel()
        if not outer.set_running_or_notify_cancel():
            return
        error = task.exception()
        result = None if error else task.result()
        if isinstance(result, _Carried):
            error = result.error
        if error is not None:
            outer.set_exception(error)
        else:
            outer.set_result(result)  # type: ignore[arg-type]

    def stop(_: Any) -> None:
        if outer.cancelled():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(lambda: task is not None and task.cancel())

    # A quarter of what the portal's own task group takes, half of what asyncio's chain of futures does; what still runs
    # at the end is cancelled with the loop.
    loop.call_soon_threadsafe(begin)  # RuntimeError: the loop is closed
    outer.add_done_callback(stop)
    return outer


class _Call:
    """A call that a thread waits for: a lock is all that it takes, a future with its condition costs twice that."""

    __slots__ = ("_done", "_fn", "_given_up", "_loop", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop, fn: Callable[[], Awaitable[Any]]) -> None:
        self._loop, self._fn = loop, fn
        self._task: asyncio.Task[Any] | None = None
        self._given_up = False
        self._done = threading.Lock()
        self._done.acquire()

    def wait(self) -> Any:
        try:
            self._loop.call_soon_threadsafe(self._begin)  # RuntimeError: the loop is closed
            self._done.acquire()
        except BaseException:  # an interrupt, maybe before it began
            self._given_up = True
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop)
            raise
        assert self._task is not None
        if self._task.cancelled():
            raise concurrent.futures.CancelledError
        result = self._task.result()
        if isinstance(result, _Carried):
            raise result.error
        return result

    def _begin(self) -> None:
        if not self._given_up:
            self._task = self._loop.create_task(_carrying(self._fn))
            self._task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[Any]) -> None:
        self._done.release()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()


def run_sync(fn: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run ``fn(*args)`` on the portal thread and wait for it. Not from the portal thread itself.

    Being interrupted (Ctrl-C) cancels what runs there.
    """
    portal, loop = _get()
    if _here(portal):
        raise RuntimeError(_OWN_LOOP)
    result: T = _Call(loop, functools.partial(fn, *args) if args else fn).wait()
    return result


def finish_sync(fn: Callable[[], Awaitable[Any]]) -> None:
    """`run_sync` for a finaliser, which may be called in any thread and when the interpreter is leaving."""
    if _portal is None or _dead(_portal):
        return  # closed: what ran there was cancelled
    if _here(_portal):
        task = asyncio.ensure_future(fn())
        _finishing.add(task)
        task.add_done_callback(_finishing.discard)
    else:
        run_sync(fn)
