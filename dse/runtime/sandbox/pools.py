"""Worker processes: starting, lending, closing, and what a fork or the end of the process means for them."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple, Protocol

from dse.errors import SandboxUnavailable
from dse.threads import Threads

__all__ = ["Kept", "WorkerPool"]

_LOOK_AGAIN_S = 1.0  # a session that nobody closed frees its place when it is collected, and says so to nobody
_LAST_S = 1.0  # how long the end of the process waits for a thread whose worker has ended
_STAY = max(4, 2 * (os.cpu_count() or 1))  # guests that stay: as many as can compute at the same time
_TOO_FULL = 3
_LATE_S = 2.0  # how much longer than its limit a guest may take to be told of it; the interpreter kills it after one second
_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
_started = False  # a native pool was started in this process
_forked = False  # ... and this process is a fork of that one: the native module hangs in here


class _Holder(Protocol):
    def natives(self) -> Iterable[Any]:
        """The interpreter's objects that this one holds."""


class Kept(NamedTuple):
    """A guest that stays between two runs of the same script.

    Attributes:
        guest: the interpreter's session.
        feeds: that it has had.
        source: number of the feed that its script is in.
        runs: that it has been through.
    """

    guest: Any
    feeds: int
    source: int
    runs: int


class _Waiter:
    """Somebody who waits for a place, in some event loop."""

    def __init__(self, holder: _Holder, loop: asyncio.AbstractEventLoop, called: asyncio.Future[None]) -> None:
        self.holder, self.loop, self.called = holder, loop, called
        self.placed = False

    def call(self) -> None:
        if not self.called.done():
            self.called.set_result(None)


class WorkerPool:
    """The interpreter's pool behind one lock. All methods may be called from any thread.

    Args:
        max_workers: workers at the same time; they start when they are needed.
        request_timeout_s: a worker that does not answer within this time is killed. One lent for longer turns
            (see :meth:`lend`) has longer.
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
        self._natives: dict[float, Any] = {}  # by the time in which their workers must answer
        self._lock = threading.Lock()
        self.threads = Threads(max_workers, "dse-worker")
        weakref.finalize(self, self.threads.stop).atexit = False
        self._places = threading.Lock()
        self._placed: weakref.WeakSet[_Holder] = weakref.WeakSet()
        self._waiting: deque[_Waiter] = deque()
        self._full: Counter[Hashable] = Counter()
        self._kept: OrderedDict[Hashable, list[Kept]] = OrderedDict()  # by kind, the one used last at the end

    async def place(self, holder: _Holder) -> None:
        """Waits until `holder` may have a worker (:meth:`lend` then need not wait), in order of asking.

        Raises:
            SandboxUnavailable: none became free in time, or the pool is closed.
        """
        with self._places:
            if not self._waiting and len(self._placed) < self.max_workers:
                self._placed.add(holder)
                return
            loop = asyncio.get_running_loop()
            waiter = _Waiter(holder, loop, loop.create_future())
            self._waiting.append(waiter)
        deadline = loop.time() + self.checkout_timeout_s
        try:
            while not waiter.called.done():
                left = deadline - loop.time()
                await asyncio.wait([waiter.called], timeout=max(0.0, min(left, _LOOK_AGAIN_S)))
                self._call_waiting()
                if self.state == "closed":
                    self.refuse_if_unusable()
                if left <= 0 and not waiter.placed:
                    raise self.exhausted()
        except BaseException:
            with self._places:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                self._placed.discard(holder)
            self._call_waiting()
            raise

    @property
    def room(self) -> bool:
        """Whether :meth:`place` would not wait."""
        with self._places:
            return not self._waiting and len(self._placed) < self.max_workers

    def _call_waiting(self) -> None:
        with self._places:
            while self._waiting and len(self._placed) < self.max_workers:
                waiter = self._waiting.popleft()
                try:
                    waiter.loop.call_soon_threadsafe(waiter.call)
                except RuntimeError:  # its event loop is closed
                    continue
                waiter.placed = True
                self._placed.add(waiter.holder)

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
            _pools.add(self)  # before: a process that ends meanwhile waits for this lock
            self._natives[self.request_timeout_s] = self._begun(self.request_timeout_s)
            self.state = "open"
            _started = True

    def _begun(self, timeout_s: float) -> Any:
        import pydantic_monty

        try:
            native = pydantic_monty.Monty(
                max_processes=self.max_workers,
                request_timeout=timeout_s,
                checkout_timeout=self.checkout_timeout_s,
            )
            native.__enter__()
        except (OSError, RuntimeError, pydantic_monty.MontyError) as error:
            raise SandboxUnavailable(
                "the interpreter workers cannot be started",
                value=f"{type(error).__name__}: {error}",
                remedy="Reinstall pydantic-monty",
            ) from error
        return native

    def _native(self, longest_s: float) -> Any:
        """The interpreter's pool whose workers have so much time to answer; None once there is none any more.

        The interpreter has one such time for a whole pool: longer ones double, so that there are few.
        """
        timeout_s = self.request_timeout_s
        while longest_s and timeout_s < longest_s + _LATE_S:
            timeout_s *= 2
        if timeout_s > self.request_timeout_s and timeout_s not in self._natives:
            with self._lock:
                if self.state == "open" and timeout_s not in self._natives:
                    self._natives[timeout_s] = self._begun(timeout_s)
        return self._natives.get(timeout_s)

    def refuse_if_unusable(self) -> None:
        """Raises SandboxUnavailable when no worker can be had any more."""
        if self.state == "closed":
            raise SandboxUnavailable("the sandbox is closed", remedy="Create a new one")
        if self.state == "forked" or _forked:
            raise SandboxUnavailable(
                "this process was forked after a sandbox had started; the workers belong to the parent",
                remedy="Start processes with 'spawn' or 'forkserver', or before the first use of a sandbox",
            )

    def lend(self, *, longest_s: float = 0.0, **options: Any) -> Any:
        """An interpreter session with a worker of its own; blocks until one is free.

        Args:
            longest_s: a turn may take so long, though the pool's own time to answer is shorter.

        Raises:
            SandboxUnavailable: none became free in time, or the pool is closed.
        """
        import pydantic_monty

        self.start()
        self._make_room()
        for last in (False, False, True):
            native = self._native(longest_s)
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

    def kept(self, kind: Hashable) -> Kept | None:
        """A guest of this kind that has stayed, for somebody who has a place."""
        with self._places:
            guests = self._kept.get(kind)
            if not guests:
                return None
            self._kept.move_to_end(kind)
            return guests.pop()

    def is_full(self, kind: Hashable) -> None:
        """What a guest of this kind keeps was too much."""
        with self._places:
            self._full[kind] += 1
            if len(self._full) > 1024:
                self._full.clear()

    def may_stay(self, kind: Hashable) -> bool:
        """Whether guests of this kind are worth keeping: they have not been too full again and again."""
        return self._full[kind] < _TOO_FULL

    def _make_room(self) -> None:
        """Guests that only stay for a next run go when all workers are taken."""
        with self._places:
            going = self._surplus(self.max_workers - len(self._placed))
        for one in going:
            self.take_back(one.guest)

    def _surplus(self, most: int) -> list[Kept]:
        """Guests that go if at most so many may stay, those that waited longest first."""
        going: list[Kept] = []
        count = sum(map(len, self._kept.values()))
        for kind, guests in list(self._kept.items()):
            while guests and count > most:
                going.append(guests.pop(0))
                count -= 1
            if not guests:
                del self._kept[kind]
        return going

    def take_back(self, session: Any, holder: _Holder | None = None, keep: tuple[Hashable, Kept] | None = None) -> None:
        """The end of what :meth:`lend` gave, if it did, and of the holder's place.

        Args:
            keep: the session as a guest that stays instead, and its kind.
        """
        if self.state == "forked":
            return
        if keep is not None and self.state == "open":
            with self._places:
                if self.state == "open":
                    self._kept.setdefault(keep[0], []).append(keep[1])
                    self._kept.move_to_end(keep[0])
                going = self._surplus(_STAY)
            for one in going:
                self.take_back(one.guest)
        elif session is not None and self.state == "open":
            import pydantic_monty

            with contextlib.suppress(pydantic_monty.MontyError, RuntimeError):  # it is gone already
                session.__exit__(None, None, None)
        if holder is not None:
            with self._places:
                self._placed.discard(holder)
            self._call_waiting()

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
            natives, self._natives = self._natives, {}
            self.state = "closed"
            with self._places:
                self._kept.clear()
            for native in natives.values():
                native.__exit__(None, None, None)
        self.threads.stop()

    def disown(self) -> None:
        """In the child of a fork: neither use nor clean up what is the parent's; both would break its sessions."""
        import ctypes

        self.state = "forked"
        self._lock, self._places = threading.Lock(), threading.Lock()  # another thread of the parent may have held them
        natives = [*self._natives.values(), *(native for holder in list(self.holders) for native in holder.natives())]
        natives += [kept.guest for guests in self._kept.values() for kept in guests]
        self._kept = OrderedDict()
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


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
