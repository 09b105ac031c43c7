"""From a synchronous optimizer, in a thread of its own, to the rollouts and the model of an asynchronous search.

What is awaited runs as a child of the task that started the optimizer: budgets, deadlines and cancellation reach it as
they reach everything else. The first failure ends the search, whatever the optimizer does with exceptions.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio

__all__ = ["Bridge", "Ended", "in_thread"]

T = TypeVar("T")
_LEAVE_S = 10.0  # for the thread to end once it cannot ask any more


class Ended(BaseException):
    """The search is over; unwinds the optimizer's threads. No ``Exception``: optimizers catch those and go on."""


class Bridge:
    """`call` awaits on the loop of the search, from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.failure: BaseException | None = None
        self._loop = loop
        self._jobs: asyncio.Queue[tuple[Future[Any], Callable[[], Awaitable[Any]]] | None] = asyncio.Queue()
        self._lock = threading.Lock()
        self._open: set[Future[Any]] = set()
        self._closed = False

    def call(self, fn: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        """``await fn(*args, **options)``; blocks the calling thread.

        Raises:
            Ended: it failed, or something else did before.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise Ended
            self._open.add(future)
            self._loop.call_soon_threadsafe(self._jobs.put_nowait, (future, lambda: fn(*args, **options)))
        try:
            return future.result()
        finally:
            with self._lock:
                self._open.discard(future)

    def close(self) -> None:
        """Nothing more is answered."""
        with self._lock:
            self._closed = True
            waiting = list(self._open)
        for future in waiting:
            if not future.done():
                future.set_exception(Ended())

    async def answer(self, future: Future[Any], ask: Callable[[], Awaitable[Any]]) -> None:
        try:
            result = await ask()
        except Exception as exc:
            self.failure = self.failure or exc
            self.close()
        else:
            if not future.done():
                future.set_result(result)

    async def serve(self) -> None:
        """Answer until the thread has ended."""
        async with anyio.create_task_group() as group:
            while (job := await self._jobs.get()) is not None:
                group.start_soon(self.answer, *job)

    def ended(self) -> None:
        """The thread is done."""
        self._loop.call_soon_threadsafe(self._jobs.put_nowait, None)


async def in_thread(work: Callable[[Bridge], T], name: str) -> T:
    """``work(bridge)`` in a thread of its own.

    Raises what `work` raises; where something failed that it asked for, that failure. When cancelled, what the thread
    waits for is cancelled, and the thread is told and waited for.
    """
    bridge = Bridge(asyncio.get_running_loop())
    context = contextvars.copy_context()
    done: list[T] = []
    raised: list[BaseException] = []
    over = anyio.Event()
    loop = asyncio.get_running_loop()

    def run() -> None:
        try:
            done.append(context.run(work, bridge))
        except BaseException as exc:
            raised.append(exc)
        try:
            bridge.ended()
            loop.call_soon_threadsafe(over.set)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    threading.Thread(target=run, name=f"dse-{name}", daemon=True).start()
    try:
        await bridge.serve()
    finally:
        bridge.close()
        with anyio.move_on_after(_LEAVE_S, shield=True):
            await over.wait()
    if bridge.failure is not None:
        raise bridge.failure
    if raised:
        raise raised[0]
    return done[0]
