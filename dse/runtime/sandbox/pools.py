"""Worker processes: starting, lending, closing, and what a fork or the end of the process means for them."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Iterable
from typing import Any, Protocol

from dse.errors import SandboxUnavailable
from dse.runtime.sandbox.threads import Threads

__all__ = ["WorkerPool"]

_OPENERS = 4  # threads that may wait for a free worker at the same time
_LAST_S = 1.0  # how long the end of the process waits for a thread whose worker has ended
_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
_started = False  # a native pool was started in this process
_forked = False  # ... and this process is a fork of that one: the native module hangs in here


class _Holder(Protocol):
    def natives(self) -> Iterable[Any]:
        """The interpreter's objects that this one holds."""


class WorkerPool:
    """The interpreter's pool behind one lock. All methods may be called from any thread.

    Args:
        max_workers: workers at the same time; they start when they are needed.
        request_timeout_s: a worker that does not answer within this time is killed.
        checkout_timeout_s: how long :meth:`lend` waits for a free worker.

    Work in workers is done by ``threads``, waiting for a worker by ``openers``: nobody waits while holding a thread
    that others need to go on.
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
        self._lent: weakref.WeakSet[_Holder] = weakref.WeakSet()
        self.threads = Threads(max_workers, "dse-worker")
        self.openers = Threads(_OPENERS, "dse-opener")
        for threads in (self.threads, self.openers):
            weakref.finalize(self, threads.stop).atexit = False

    @property
    def busy(self) -> bool:
        """Whether :meth:`lend` would have to wait: all workers are lent, or others wait already. A hint only."""
        return len(self._lent) + self.openers.busy >= self.max_workers

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

    def lend(self, holder: _Holder, **options: Any) -> Any:
        """An interpreter session with a worker of its own, for `holder`; blocks until one is free.

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
                self._lent.add(holder)
                return session
            except TimeoutError:
                raise self.exhausted() from None
            except pydantic_monty.MontyError as error:  # an idle worker had died
                if last:
                    raise SandboxUnavailable("interpreter workers end before they can be used", value=str(error)) from error

    def take_back(self, holder: _Holder, session: Any) -> None:
        """The end of what :meth:`lend` gave; its worker is free again."""
        if self.state == "open":
            import pydantic_monty

            with contextlib.suppress(pydantic_monty.MontyError, RuntimeError):  # it is gone already
                session.__exit__(None, None, None)
        self._lent.discard(holder)

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
        self.threads.stop()
        self.openers.stop()

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
        # a thread that is still inside the native module when Python ends would abort the process
        pool.threads.stop(_LAST_S)
        pool.openers.stop(_LAST_S)


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
