"""Worker processes: starting, lending, closing, and what a fork or the end of the process means for them."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from dse.errors import SandboxUnavailable

__all__ = ["WorkerPool"]

_OPENERS = 4  # threads that may wait for a free worker at the same time
_numbers = itertools.count()
_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
_started = False  # a native pool was started in this process
_forked = False  # ... and this process is a fork of that one: the native module hangs in here


class _Holder(Protocol):
    def natives(self) -> Iterable[Any]:
        """The interpreter's objects that this one holds."""


class WorkerPool:
    """The interpreter's pool behind one lock. All methods but :meth:`threads` may be called from any thread.

    Args:
        max_workers: workers at the same time; they start when they are needed.
        request_timeout_s: a worker that does not answer within this time is killed.
        checkout_timeout_s: how long :meth:`lend` waits for a free worker.
    """

    def __init__(self, *, max_workers: int, request_timeout_s: float, checkout_timeout_s: float) -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {max_workers}")
        self.max_workers = max_workers
        self.request_timeout_s = request_timeout_s
        self.checkout_timeout_s = checkout_timeout_s
        self.state = "new"  # new -> open -> closed; "forked" in the child of a fork
        self.holders: weakref.WeakSet[_Holder] = weakref.WeakSet()
        self._native: Any = None
        self._lock = threading.Lock()
        # limiters belong to an event loop, the pool to all of them
        self._limiters: anyio.lowlevel.RunVar[tuple[anyio.CapacityLimiter, anyio.CapacityLimiter]]
        self._limiters = anyio.lowlevel.RunVar(f"dse-workers-{next(_numbers)}")

    def threads(self) -> tuple[anyio.CapacityLimiter, anyio.CapacityLimiter]:
        """Limiters of the running event loop: for work in workers, and for waiting for a worker.

        Nobody waits on one while holding a place in it.
        """
        try:
            return self._limiters.get()
        except LookupError:
            pair = (anyio.CapacityLimiter(self.max_workers), anyio.CapacityLimiter(_OPENERS))
            self._limiters.set(pair)
            return pair

    def start(self) -> None:
        """Starts the first worker, once.

        Raises:
            SandboxUnavailable: it cannot be started, or the pool is closed or belongs to a parent process.
        """
        global _started
        with self._lock:
            if self.state == "open":
                return
            self.refuse_if_unusable()
            import pydantic_monty

            try:
                native = pydantic_monty.Monty(
                    max_processes=self.max_workers,
                    request_timeout=self.request_timeout_s,
                    checkout_timeout=self.checkout_timeout_s,
                )
                native.__enter__()
            except (OSError, RuntimeError, pydantic_monty.MontyError) as error:
                raise SandboxUnavailable(
                    "the interpreter workers cannot be started",
                    value=f"{type(error).__name__}: {error}",
                    remedy="Reinstall pydantic-monty",
                ) from error
            self._native, self.state = native, "open"
            _pools.add(self)
            _started = True

    def refuse_if_unusable(self) -> None:
        """Raises SandboxUnavailable when no worker can be had any more."""
        if self.state == "closed":
            raise SandboxUnavailable("the sandbox is closed", remedy="Create a new one")
        if self.state == "forked" or _forked:
            raise SandboxUnavailable(
                "this process was forked after a sandbox had started; the workers belong to the parent",
                remedy="Start processes with 'spawn' or 'forkserver', or before the first use of a sandbox",
            )

    def lend(self, **options: Any) -> Any:
        """An interpreter session with a worker of its own; blocks until one is free.

        Raises:
            SandboxUnavailable: none became free in time, or the pool is closed.
        """
        import pydantic_monty

        self.start()
        for last in (False, False, True):
            native = self._native
            if native is None:
                self.refuse_if_unusable()
            session = native.checkout(**options)
            try:
                session.__enter__()
                return session
            except TimeoutError:
                raise self.exhausted() from None
            except pydantic_monty.MontyError as error:  # an idle worker had died
                if last:
                    raise SandboxUnavailable("interpreter workers end before they can be used", value=str(error)) from error

    def exhausted(self) -> SandboxUnavailable:
        return SandboxUnavailable(
            f"no interpreter worker became free within {self.checkout_timeout_s:g} s",
            value=f"{self.max_workers} workers",
            remedy="Close sessions that are done, or raise max_workers",
        )

    def close(self) -> None:
        """Ends all workers; what is lent fails from then on. Idempotent."""
        with self._lock:
            if self.state == "forked":
                return
            native, self._native = self._native, None
            self.state = "closed"
            if native is not None:
                native.__exit__(None, None, None)

    def disown(self) -> None:
        """In the child of a fork: neither use nor clean up what is the parent's; both would break its sessions."""
        import ctypes

        self.state = "forked"
        self._lock = threading.Lock()  # another thread of the parent may have held it
        natives = [self._native, *(native for holder in list(self.holders) for native in holder.natives())]
        for native in natives:
            if native is not None:  # never finalised: its end would speak to the parent's worker
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))


def _disown_all() -> None:
    global _forked
    _forked = _forked or _started
    for pool in list(_pools):
        pool.disown()


def _close_all() -> None:
    for pool in list(_pools):
        pool.close()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
