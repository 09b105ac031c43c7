"""What a feed takes: wall time, and processor of the worker and of the host."""

from __future__ import annotations

import os

__all__ = ["FeedTime", "cpu_seconds"]


class FeedTime:
    """Of one feed, over all its turns, in seconds."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._cpu_before_s: float | None = None  # of the worker, when the feed began
        self._wall_s = self._host_cpu_s = 0.0

    def begin(self, pid: int | None) -> None:
        """A feed begins in the worker `pid`."""
        self._wall_s = self._host_cpu_s = 0.0
        self.change_worker(pid)

    def change_worker(self, pid: int | None) -> None:
        """The feed begins again in another worker; what the host did for it so far counts."""
        self._pid, self._cpu_before_s = pid, cpu_seconds(pid)

    def add(self, wall_s: float, cpu_s: float) -> None:
        """A turn has ended: its wall time, and what the host's thread computed in it."""
        self._wall_s += wall_s
        self._host_cpu_s += cpu_s

    def starved(self, limit_s: float, wall_s: float, cpu_s: float) -> bool:
        """Whether a feed that reached its time limit had less processor than a tenth of it: that says nothing about the guest.

        What the host did for it meanwhile (its prints) counts as the guest's. Not known where there is no /proc. A guest
        that says so before its time is over is not believed.

        Args:
            wall_s, cpu_s: of the present turn, as for :meth:`add`.
        """
        spent = cpu_seconds(self._pid)
        if spent is None or self._cpu_before_s is None or self._wall_s + wall_s < 0.9 * limit_s:
            return False
        return spent - self._cpu_before_s + self._host_cpu_s + cpu_s < limit_s / 10


def cpu_seconds(pid: int | None) -> float | None:
    """Processor time of a process so far; None where nobody tells."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
