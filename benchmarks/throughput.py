"""Many runs at once: 200 concurrent runs, each with five sequential tools that take 50 ms.

No implementation can do more runs per second than the tools' waiting allows (200 / 0.25 s), nor, on one core, than
its own CPU time per run; that CPU time is measured in the same repetition, one run at a time with tools that do not
wait. ReActV2 runs in the two ways that its API has for it: ``asyncio.gather`` over ``acall`` with async tools, and
``dspy.Parallel`` with sync tools in threads; the faster one is compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Row, Samples, Spread, interleaved
from benchmarks.scenario import Gauge, Scenario, scenario

__all__ = ["TARGET_REACT", "TARGET_SHARE", "measure"]

TARGET_SHARE = 0.8
TARGET_REACT = 5.0
MODES = ("tool_call", "code")
_DELAY_S = 0.05
_GIVE_UP_S = 120.0


def measure(*, reps: int = 9, runs: int = 200, calls: int = 5, react_reps: int = 3, threads: int = 64) -> list[Row]:
    """Runs per second, as a share of what is possible and relative to ReActV2; and sync tools in great number."""
    loop = asyncio.new_event_loop()
    try:
        rows = _against_the_ideal(loop, reps, runs, calls)
        rows += _against_react(loop, react_reps, runs, calls, threads)
        return rows + _sync_tools(loop, runs, calls)
    finally:
        loop.close()


def _program_runs(
    task: Scenario, mode: str, loop: asyncio.AbstractEventLoop, runs: int, *, together: bool
) -> Callable[[], None]:
    program = task.program(mode)

    async def all_of_them() -> None:
        if together:
            predictions = await asyncio.wait_for(
                asyncio.gather(*(program.acall(question=task.question) for _ in range(runs))), _GIVE_UP_S)  # fmt: skip
        else:
            predictions = [await program.acall(question=task.question) for _ in range(runs)]
        for prediction in predictions:
            task.check(prediction)
        task.forget()

    return lambda: loop.run_until_complete(all_of_them())


def _against_the_ideal(loop: asyncio.AbstractEventLoop, reps: int, runs: int, calls: int) -> list[Row]:
    alone = max(2, runs // 10)
    cases: dict[str, Callable[[], None]] = {}
    for mode in MODES:
        cases[mode] = _program_runs(scenario(calls, delay_s=_DELAY_S), mode, loop, runs, together=True)
        cases[f"{mode} alone"] = _program_runs(scenario(calls), mode, loop, alone, together=False)
    samples = interleaved(cases, reps=reps)
    ideal = runs / (calls * _DELAY_S)
    rows = []
    for mode in MODES:
        cpu = [seconds / alone for seconds in samples[f"{mode} alone"].cpu]
        rate = [runs / seconds for seconds in samples[mode].wall]
        possible = [min(ideal, 1 / seconds) for seconds in cpu]
        share = Spread.of([have / most for have, most in zip(rate, possible, strict=True)])
        rows.append(Row(
            "throughput", f"{mode}, {runs} concurrent runs, {calls} sequential async tools of {1000 * _DELAY_S:g} ms",
            f"{Spread.of(rate).text(0)} runs/s of {Spread.of(possible).text(0)} possible "
            f"(waiting allows {ideal:.0f}, CPU alone is {Spread.of([1000 * c for c in cpu]).text(1)} ms per run): {share.text()}",
            f"at least {TARGET_SHARE}", share.median >= TARGET_SHARE,
        ))  # fmt: skip
    return rows


def _against_react(loop: asyncio.AbstractEventLoop, reps: int, runs: int, calls: int, threads: int) -> list[Row]:
    asynchronous, synchronous = scenario(calls, delay_s=_DELAY_S), scenario(calls, asynchronous=False, delay_s=_DELAY_S)
    cases = {mode: _program_runs(scenario(calls, delay_s=_DELAY_S), mode, loop, runs, together=True) for mode in MODES}
    cases["gather"] = _react_gather(asynchronous, loop, runs)
    cases["parallel"] = _react_parallel(synchronous, runs, threads)
    _react_gather(asynchronous, loop, 2)()  # what is done only once is done here; a whole batch takes long
    _react_parallel(synchronous, 2, 2)()
    samples = interleaved(cases, reps=reps, warmup=0)
    names = {"gather": "asyncio.gather", "parallel": f"dspy.Parallel, {threads} threads"}
    best = min(names, key=lambda name: samples[name].ms().median)
    rates = "; ".join(f"{label} {_rate(samples[name], runs)}" for name, label in names.items())
    rows = []
    for mode in MODES:
        times = Spread.of([theirs / mine for mine, theirs in zip(samples[mode].wall, samples[best].wall, strict=True)])
        rows.append(Row(
            "throughput", f"{mode} against ReActV2, {runs} concurrent runs, the same tools",
            f"{_rate(samples[mode], runs)} runs/s against {_rate(samples[best], runs)}: {times.text(1)}x (ReActV2: {rates})",
            f"at least {TARGET_REACT:g}x", times.median >= TARGET_REACT,
        ))  # fmt: skip
    return rows


def _rate(samples: Samples, runs: int) -> str:
    return Spread.of([runs / seconds for seconds in samples.wall]).text(1)


def _react_gather(task: Scenario, loop: asyncio.AbstractEventLoop, runs: int) -> Callable[[], None]:
    module, context = task.react(), task.react_context()

    async def all_of_them() -> None:
        for prediction in await asyncio.gather(*(module.acall(question=task.question) for _ in range(runs))):
            task.check(prediction)
        task.forget()

    def case() -> None:
        with context():
            loop.run_until_complete(all_of_them())

    return case


def _react_parallel(task: Scenario, runs: int, threads: int) -> Callable[[], None]:
    import dspy

    module, context = task.react(), task.react_context()

    def case() -> None:
        with context():
            parallel = dspy.Parallel(num_threads=threads, disable_progress_bar=True, timeout=0)
            predictions: Any = parallel([(module, {"question": task.question})] * runs)
        for prediction in predictions:
            task.check(prediction)
        task.forget()

    return case


def _sync_tools(loop: asyncio.AbstractEventLoop, runs: int, calls: int) -> list[Row]:
    rows = []
    for mode, parallel in (("tool_call", False), ("code", False), ("code", True)):
        gauge = Gauge()
        task = scenario(calls, asynchronous=False, delay_s=_DELAY_S, parallel=parallel, gauge=gauge)
        case = _program_runs(task, mode, loop, runs, together=True)
        try:
            wall = interleaved({"sync": case}, reps=1, warmup=0)["sync"].wall[0]
        except TimeoutError:
            figures, finished = f"did not finish within {_GIVE_UP_S:g} s", False
        else:
            figures, finished = f"{runs / wall:.0f} runs/s; at most {gauge.most} tools at the same time", True
        how = "gathered" if parallel else "sequential"
        rows.append(Row("throughput", f"{mode}, {runs} concurrent runs, {calls} {how} sync tools (a thread each)", figures,
                        "finishes", finished))  # fmt: skip
    return rows
