"""The sync face: one event loop in a thread of its own, for scripts, threads and notebooks."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from anyio.abc import BlockingPortal

__all__ = ["run_sync"]

T = TypeVar("T")
_lock = threading.Lock()
_portal: BlockingPortal | None = None
_manager: AbstractContextManager[BlockingPortal] | None = None
_pid = 0


def _get() -> BlockingPortal:
    global _portal, _manager, _pid
    with _lock:
        if _portal is None or _pid != os.getpid():  # a forked child has no portal thread
            from anyio.from_thread import start_blocking_portal

            _manager = start_blocking_portal()
            _portal = _manager.__enter__()
            _pid = os.getpid()
        return _portal


@atexit.register
def _close() -> None:
    global _portal, _manager
    if _manager is not None and _pid == os.getpid():
        manager, _manager, _portal = _manager, None, None
        manager.__exit__(None, None, None)


def run_sync(fn: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run ``fn(*args)`` on the portal thread and wait for it. Not from the portal thread itself."""
    portal = _get()
    if threading.get_ident() == getattr(portal, "_event_loop_thread_id", None):
        raise RuntimeError("a sync call inside dse's own event loop would wait for itself: use the async face")
    return portal.call(fn, *args)
