"""The sandbox as its users see it: a pool of interpreter workers that gives sessions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Any

import anyio
import anyio.to_thread

from dse.errors import SandboxUnavailable
from dse.runtime.sandbox.driver import Driver
from dse.runtime.sandbox.pools import WorkerPool
from dse.runtime.sandbox.records import SandboxLimits
from dse.runtime.sandbox.resident import Resident
from dse.runtime.sandbox.session import Session
from dse.runtime.sandbox.staying import ResidentDriver

__all__ = ["Sandbox"]


class Sandbox:
    """A pool of interpreter workers that run guest code.

    Args:
        max_workers: sessions that can be open at the same time; workers start when they are needed.
        request_timeout_s: a worker that does not answer within this time is killed; where ``feed_s`` is longer, within
            that.
        checkout_timeout_s: how long :meth:`open` waits for a free worker.
    """

    def __init__(self, *, max_workers: int = 64, request_timeout_s: float = 30.0, checkout_timeout_s: float = 60.0) -> None:
        self._workers = WorkerPool(
            max_workers=max_workers, request_timeout_s=request_timeout_s, checkout_timeout_s=checkout_timeout_s
        )

    async def __aenter__(self) -> Sandbox:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Starts the first worker. :meth:`open` does it too."""
        if self._workers.state != "open":
            await anyio.to_thread.run_sync(self._workers.start)

    def start_soon(self) -> None:
        """Begins to start the first worker, in a thread. Why it cannot be started is told to whoever needs it."""

        def job() -> None:
            with contextlib.suppress(Exception):
                self._workers.start()

        if self._workers.state == "new":
            with contextlib.suppress(SandboxUnavailable):
                self._workers.threads.hand(job)

    def may_stay(self, resident: Resident, limits: SandboxLimits, imports: str) -> bool:
        """Whether guests of a script are worth keeping: False once they have been too full again and again."""
        return self._workers.may_stay((resident, limits, imports))

    async def aclose(self) -> None:
        """Ends all workers; open sessions fail from then on. Idempotent."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close)

    def close(self) -> None:
        """Like :meth:`aclose`, for places without an event loop."""
        self._workers.close()

    @property
    def usable(self) -> bool:
        """False once it is closed, and in the child of a fork."""
        return self._workers.state in ("new", "open")

    @property
    def room(self) -> bool:
        """Whether a new session would get a worker without waiting for others."""
        return self._workers.room

    @property
    def threads_in_use(self) -> int:
        """Turns that run in a thread or wait for one right now."""
        return self._workers.threads.busy

    async def open(
        self,
        *,
        seed: int,
        clock: datetime,
        limits: SandboxLimits | None = None,
        async_names: frozenset[str] = frozenset(),
        sync_names: frozenset[str] = frozenset(),
    ) -> Session:
        """A fresh session, with its worker. Parameters as for :meth:`session`.

        Raises:
            SandboxUnavailable: no worker could be had in time.
        """
        session = self.session(seed=seed, clock=clock, limits=limits, async_names=async_names, sync_names=sync_names)
        await self._workers.place(session)
        await session._in_thread(session._check_out)
        return session

    def session(
        self,
        *,
        seed: int,
        clock: datetime,
        limits: SandboxLimits | None = None,
        async_names: frozenset[str] = frozenset(),
        sync_names: frozenset[str] = frozenset(),
        imports: str = "import asyncio",
        resident: Resident | None = None,
    ) -> Session:
        """A fresh session that gets a worker with its first feed.

        Args:
            seed: start of the guest's random numbers.
            clock: the guest's time, with a zone. It does not move.
            async_names: names whose calls the guest awaits.
            sync_names: names whose calls return directly. A name that is in neither set surfaces as a
                direct call as well, but cannot be used as a value.
            imports: statements that run first, ``import asyncio`` among them; lines of errors do not count them.
            resident: the script that it will run, once: its first feed must be of ``resident.call``. It may get a guest
                that has run this script before, and leaves it to the next one.

        Raises:
            SandboxUnavailable: the sandbox is closed, or belongs to a parent process.
        """
        if clock.tzinfo is None:
            raise ValueError("clock needs a time zone")
        if async_names & sync_names:
            raise ValueError(f"both async and sync: {sorted(async_names & sync_names)}")
        self._workers.refuse_if_unusable()
        given = (self._workers, limits or SandboxLimits(), seed, clock, async_names, sync_names, imports)
        return Session(self._workers, Driver(*given) if resident is None else ResidentDriver(*given, resident))

    async def thaw(
        self,
        data: bytes,
        driver: Mapping[str, Any],
        *,
        seed: int,
        clock: datetime,
        limits: SandboxLimits | None = None,
        async_names: frozenset[str] = frozenset(),
        sync_names: frozenset[str] = frozenset(),
        imports: str = "import asyncio",
    ) -> Session:
        """The session that :meth:`Session.freeze` gave, in a worker of this pool.

        The interpreter does not check what it loads: hand it only what is known to be whole and its own.

        Raises:
            SandboxUnavailable: no worker could be had in time, or the interpreter does not take it.
        """
        self._workers.refuse_if_unusable()
        guest = Driver(self._workers, limits or SandboxLimits(), seed, clock, async_names, sync_names, imports)
        session = Session(self._workers, guest)
        await self._workers.place(session)
        await session._in_thread(lambda: session._load(data, driver))
        return session
