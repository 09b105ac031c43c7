"""What one rollout costs besides the model: dse against ``dspy.ReActV2`` on the same scripted engine.

Both call the same function the same number of times. ReActV2 and dse's ``tool_call`` mode take one call per round
and a last round for ``submit``; dse's ``code`` mode does all calls in one script. ReActV2 runs with both adapters that
do native calls, without history, trace or cache; the ratio is to the faster one, adapter by adapter chosen per size.
The dse side validates arguments and results, journals every call and writes a receipt; no store is attached.

Everything is measured twice: with all processors, and with one for all threads and processes of both sides. ReActV2 is
one thread. A script has worker processes, and each time one of them answers, somebody is woken up on another processor;
what that takes is the machine's (the row of hand-overs says how much), and on one processor nearly nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from queue import SimpleQueue
from typing import Any

from benchmarks.measure import Row, Spread, interleaved
from benchmarks.scenario import Scenario, scenario
from benchmarks.shipped import ROOT

__all__ = ["TARGETS", "measure"]

TARGETS = {"tool_call": 0.9, "code": 0.5}
_ADAPTERS = {"json": "JSONAdapter", "chat": "ChatAdapter, native"}


def measure(
    *, reps: int = 15, calls: tuple[int, ...] = (1, 5, 20), modes: tuple[str, ...] = ("tool_call", "code")
) -> list[Row]:
    """Wall milliseconds per rollout, and ratios to ReActV2, for each number of calls and each face."""
    rows = _here(reps, calls, modes)
    if not hasattr(os, "sched_setaffinity"):
        return rows
    command = [sys.executable, "-m", "benchmarks.overhead", json.dumps([reps, calls, modes])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    alone = [Row(**json.loads(line)) for line in done.stdout.splitlines()]
    return rows + [replace(row, what=f"on one processor: {row.what}") for row in alone]


def _here(reps: int, calls: tuple[int, ...], modes: tuple[str, ...]) -> list[Row]:
    rows = [_hand_over(reps)]
    for number in calls:
        units = max(1, 20 // number) if reps > 1 else 1
        for face in ("async", "sync"):
            rows += _one(number, face, reps=reps, units=units, modes=modes)
    return rows


def _hand_over(reps: int, times: int = 500) -> Row:
    """One thread wakes another up, which does nothing and wakes it up again."""
    there: SimpleQueue[bool] = SimpleQueue()
    back: SimpleQueue[bool] = SimpleQueue()

    def serve() -> None:
        while there.get():
            back.put(True)

    thread = threading.Thread(target=serve)
    thread.start()
    took = []
    for _ in range(reps + 1):
        started = time.perf_counter()
        for _ in range(times):
            there.put(True)
            back.get()
        took.append((time.perf_counter() - started) / times * 1e6)
    there.put(False)
    thread.join()
    return Row("overhead", "a hand-over to another thread and back", f"{Spread.of(took[1:]).text(0)} us")


def _one(number: int, face: str, *, reps: int, units: int, modes: tuple[str, ...]) -> list[Row]:
    asynchronous = face == "async"
    task = scenario(number, asynchronous=asynchronous)
    loop = asyncio.new_event_loop()
    try:
        cases: dict[str, Callable[[], None]] = {}
        for mode in modes:
            cases[mode] = _ours(task, mode, loop, asynchronous, units)
        for adapter in _ADAPTERS:
            cases[adapter] = _react(task, adapter, loop, asynchronous, units)
        samples = interleaved(cases, reps=reps, units=units)
    finally:
        loop.close()
    adapter = min(_ADAPTERS, key=lambda name: samples[name].ms().median)
    base = samples[adapter]
    rows = []
    for mode in modes:
        ratio, cpu = samples[mode].ratio(base), samples[mode].cpu_ratio(base)
        path = f"{number + 1} rounds" if mode == "tool_call" else "1 script"
        rows.append(Row(
            "overhead", f"{mode}, {number} calls in {path}, {face} face, against ReActV2 ({_ADAPTERS[adapter]})",
            f"{samples[mode].ms().text()} ms against {base.ms().text()} ms: {ratio.text()}x; CPU {cpu.text()}x",
            f"at most {TARGETS[mode]}x", ratio.median <= TARGETS[mode],
        ))  # fmt: skip
    return rows


def _ours(task: Scenario, mode: str, loop: asyncio.AbstractEventLoop, asynchronous: bool, units: int) -> Callable[[], None]:
    program = task.program(mode)
    if asynchronous:
        return _repeat_async(task, loop, lambda: program.acall(question=task.question), units)
    return _repeat(task, lambda: program(question=task.question), units)


def _react(
    task: Scenario, adapter: str, loop: asyncio.AbstractEventLoop, asynchronous: bool, units: int
) -> Callable[[], None]:
    module = task.react()
    if asynchronous:
        run = _repeat_async(task, loop, lambda: module.acall(question=task.question), units)
    else:
        run = _repeat(task, lambda: module(question=task.question), units)
    context = task.react_context(adapter=adapter)

    def case() -> None:
        with context():
            run()

    return case


def _repeat(task: Scenario, rollout: Callable[[], Any], units: int) -> Callable[[], None]:
    def case() -> None:
        for _ in range(units):
            task.check(rollout())
        task.forget()

    return case


def _repeat_async(
    task: Scenario, loop: asyncio.AbstractEventLoop, rollout: Callable[[], Awaitable[Any]], units: int
) -> Callable[[], None]:
    async def all_of_them() -> None:
        for _ in range(units):
            task.check(await rollout())
        task.forget()

    def case() -> None:
        loop.run_until_complete(all_of_them())

    return case


if __name__ == "__main__":
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before any thread and any worker
    _reps, _calls, _modes = json.loads(sys.argv[1])
    for _row in _here(_reps, tuple(_calls), tuple(_modes)):
        print(json.dumps(asdict(_row)), flush=True)
