"""How things are timed here: side by side, interleaved, and never against a fixed clock.

Every repetition runs each case once, in an order that turns from repetition to repetition. A ratio is taken
within a repetition, so that whatever else the machine does hits both sides. CPU time is that of this process and
its worker processes.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Row", "Samples", "Spread", "Stopwatch", "interleaved"]


@dataclass(frozen=True)
class Spread:
    """Median with the smallest and the largest sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}..{self.high:.{digits}f})"


@dataclass
class Samples:
    """Seconds of one case, one entry per repetition: wall time and CPU time, each per unit of work."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def ms(self) -> Spread:
        return Spread.of([1000 * s for s in self.wall])

    def cpu_ms(self) -> Spread:
        return Spread.of([1000 * s for s in self.cpu])

    def ratio(self, base: Samples) -> Spread:
        """Wall time relative to `base`, repetition by repetition."""
        return Spread.of([a / b for a, b in zip(self.wall, base.wall, strict=True)])

    def cpu_ratio(self, base: Samples) -> Spread:
        return Spread.of([a / b for a, b in zip(self.cpu, base.cpu, strict=True)])


@dataclass(frozen=True)
class Row:
    """One line of the results.

    Attributes:
        topic: the file it comes from.
        what: what was measured.
        figures: the measured figures as text, medians with their range.
        target: as text; empty where a figure is there for information.
        met: whether the median meets the target; None without one.
    """

    topic: str
    what: str
    figures: str
    target: str = ""
    met: bool | None = None


def interleaved(
    cases: Mapping[str, Callable[[], None]], *, reps: int, units: int = 1, warmup: int = 1
) -> dict[str, Samples]:
    """Run all cases `reps` times in turn, each call doing `units` pieces of work.

    The garbage collector is emptied before every timed call and stays on during it.
    """
    names = list(cases)
    for _ in range(warmup):
        for name in names:
            cases[name]()
    samples = {name: Samples() for name in names}
    for rep in range(reps):
        turn = rep % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            with Stopwatch() as watch:
                cases[name]()
            samples[name].wall.append(watch.wall / units)
            samples[name].cpu.append(watch.cpu / units)
    return samples


class Stopwatch:
    """``wall`` and ``cpu`` seconds of a block; CPU is that of this process, its ended and its running children."""

    wall = cpu = 0.0

    def __enter__(self) -> Stopwatch:
        # This process is read last here and first at the end: looking at the children is not part of the block.
        self._children = _ended_children() + _running_children()
        self._own, self._started = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._started
        own = time.process_time() - self._own
        self.cpu = own + _ended_children() + _running_children() - self._children


def _ended_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _running_children() -> float:
    """From the scheduler's own account, which counts nanoseconds; 0 where the system has none."""
    total = 0
    for pid in _children():
        folder = f"/proc/{pid}/task"
        try:
            for thread in os.listdir(folder):
                with open(f"{folder}/{thread}/schedstat") as file:
                    total += int(file.read().split()[0])
        except (OSError, ValueError, IndexError):
            continue  # it ended meanwhile, and counts among the ended ones
    return total / 1e9


def _children() -> set[int]:
    found: set[int] = set()
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/children") as file:
                found.update(int(pid) for pid in file.read().split())
        except OSError:
            continue
    return found
