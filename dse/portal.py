"""The sync face: one event loop in a thread of its own, for scripts, threads and notebooks."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

    from anyio.from_thread import BlockingPortal

__all__ = ["finish_sync", "run_sync", "start_soon"]

T = TypeVar("T")
_lock = threading.Lock()
_portal: BlockingPortal | None = None
_loop: asyncio.AbstractEventLoop | None = None
_manager: AbstractContextManager[BlockingPortal] | None = None
_inherited: list[Any] = []
_finishing: set[asyncio.Future[Any]] = set()


def _get() -> tuple[BlockingPortal, asyncio.AbstractEventLoop]:
    global _portal, _manager, _loop
    with _lock:
        if _portal is None or _loop is None:
            from anyio.from_thread import start_blocking_portal

            _manager = start_blocking_portal()
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


def _here(portal: BlockingPortal) -> bool:
    """Whether this is the portal thread."""
    return threading.get_ident() == getattr(portal, "_event_loop_thread_id", None)


def start_soon(fn: Callable[..., Awaitable[T]], *args: Any) -> Future[T]:
    """Start ``fn(*args)`` on the portal thread; cancelling the future cancels it."""
    portal, loop = _get()
    if _here(portal):
        raise RuntimeError("a sync call inside dse's own event loop would wait for itself: use the async face")

    async def task() -> T:
        return await fn(*args)

    coroutine = task()
    try:
        # A third of what the portal's own task group takes; what still runs at the end is cancelled with the loop.
        return asyncio.run_coroutine_threadsafe(coroutine, loop)
    except BaseException:
        coroutine.close()
        raise


def run_sync(fn: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run ``fn(*args)`` on the portal thread and wait for it. Not from the portal thread itself.

    Being interrupted (Ctrl-C) cancels what runs there.
    """
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []
    given_up = threading.Event()

    async def run() -> T:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        if given_up.is_set():
            raise asyncio.CancelledError
        return await fn(*args)

    future: Future[T] | None = None
    try:
        future = start_soon(run)
        return future.result()
    except BaseException:
        # An interrupt may come while the task is being started: then there is no future to cancel yet.
        if future is None or not future.done():
            given_up.set()
            for loop, task in running:
                if task is not None:
                    loop.call_soon_threadsafe(task.cancel)
        raise


def finish_sync(fn: Callable[[], Awaitable[Any]]) -> None:
    """`run_sync` for a finaliser, which may be called in any thread and when the interpreter is leaving."""
    if _portal is None:
        return  # closed: what ran there was cancelled
    if _here(_portal):
        task = asyncio.ensure_future(fn())
        _finishing.add(task)
        task.add_done_callback(_finishing.discard)
    else:
        run_sync(fn)
