"""Threads that work is handed to: all of it is done, whatever comes when, and idle threads end."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable

import pytest

from dse.errors import SandboxUnavailable
from dse.threads import Threads, shared


def until(holds: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if holds():
            return
        time.sleep(0.01)
    pytest.fail("it never came to that")


def alive(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_work_beyond_the_threads_waits_and_idle_threads_end_and_come_back() -> None:
    threads = Threads(2, "few", idle_s=0.02)

    async def burst(size: int) -> list[int]:
        return await asyncio.gather(*(threads.run(lambda i=i: i) for i in range(size)))

    for size in (7, 1, 3, 40):  # more than two at a time, so that work waits
        assert asyncio.run(burst(size)) == list(range(size))
        until(lambda: alive("few") == 0)
    assert threads.busy == 0


def test_bursts_at_the_moment_in_which_threads_end_lose_nothing() -> None:
    threads, rng = Threads(3, "restless", idle_s=0.002), random.Random(7)

    async def all_of_it() -> int:
        done = 0
        for _ in range(400):
            done += sum(await asyncio.gather(*(threads.run(lambda: 1) for _ in range(rng.randrange(1, 8)))))
            await asyncio.sleep(rng.choice((0.0, 0.001, 0.002, 0.004)))
        return done

    assert asyncio.run(asyncio.wait_for(all_of_it(), 60)) > 400
    assert alive("restless") <= 3


def test_what_work_raises_arrives_and_the_thread_goes_on() -> None:
    threads = Threads(1, "faulty")

    def fail() -> None:
        raise KeyError("gone")

    async def both() -> str:
        with pytest.raises(KeyError, match="gone"):
            await threads.run(fail)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await threads.run(lambda: next(iter(())))
        return await threads.run(lambda: "here")

    assert asyncio.run(both()) == "here"
    threads.stop(5.0)
    until(lambda: alive("faulty") == 0)


def test_several_event_loops_share_threads_and_each_hears_of_its_own() -> None:
    threads, found = shared("of-the-test", 4), []

    def work(base: int) -> None:
        async def ask() -> list[int]:
            return await asyncio.gather(*(threads.run(lambda i=i: base + i) for i in range(50)))

        found.append((base, asyncio.run(ask())))

    askers = [threading.Thread(target=work, args=(base,)) for base in (0, 1000, 2000)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sorted(found) == [(base, list(range(base, base + 50))) for base in (0, 1000, 2000)]
    assert shared("of-the-test", 4) is threads


def test_a_thread_that_cannot_be_started_is_an_error_or_the_others_do_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, start, full, going = Threads(2, "crowded"), threading.Thread.start, True, threading.Event()

    def start_if_there_is_room(self: threading.Thread) -> None:
        if full and self.name == "crowded":
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_room)

    async def main() -> None:
        nonlocal full
        with pytest.raises(SandboxUnavailable, match="crowded: can't start new thread"):
            await threads.run(lambda: 1)
        full = False
        first = asyncio.create_task(threads.run(going.wait))
        await asyncio.sleep(0)  # it has the one thread
        full = True
        second = asyncio.create_task(threads.run(lambda: 2))
        await asyncio.sleep(0)
        going.set()
        assert await first and await second == 2
        full = False
        assert await asyncio.gather(*(threads.run(lambda i=i: i) for i in range(9))) == list(range(9))

    asyncio.run(asyncio.wait_for(main(), 60))
    assert threads.busy == 0
