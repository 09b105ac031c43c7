"""What one rollout costs besides the model: dse against ``dspy.ReActV2`` on the same scripted engine.

Both call the same function the same number of times. ReActV2 and dse's ``tool_call`` mode take one call per round
and a last round for ``submit``; dse's ``code`` mode does all calls in one script. ReActV2 runs with both adapters that
do native calls, without history, trace or cache; the ratio is to the faster one, adapter by adapter chosen per size.
The dse side validates arguments and results, journals every call and writes a receipt; no store is attached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.measure import Row, interleaved
from benchmarks.scenario import Scenario, scenario

__all__ = ["TARGETS", "measure"]

TARGETS = {"tool_call": 0.9, "code": 0.5}
_ADAPTERS = {"json": "JSONAdapter", "chat": "ChatAdapter, native"}


def measure(
    *, reps: int = 9, calls: tuple[int, ...] = (1, 5, 20), modes: tuple[str, ...] = ("tool_call", "code")
) -> list[Row]:
    """Wall milliseconds per rollout, and ratios to ReActV2, for each number of calls and each face."""
    rows: list[Row] = []
    for number in calls:
        units = max(1, 20 // number) if reps > 1 else 1
        for face in ("async", "sync"):
            rows += _one(number, face, reps=reps, units=units, modes=modes)
    return rows


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
    program = task.program(mode, asynchronous=asynchronous)
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
