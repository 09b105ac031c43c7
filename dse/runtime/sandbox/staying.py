"""The driver of a guest that stays: it runs one script, again and again, and keeps what its patterns took to compile.

Which scripts may, and what becomes of them, is in :mod:`dse.runtime.sandbox.resident`. Every run finds the guest as the
first one did: led back to its beginning, with as much free memory, and with its calls counted anew.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from datetime import datetime
from typing import Any

from dse.runtime.sandbox import faults
from dse.runtime.sandbox.crossing import Prints, refused
from dse.runtime.sandbox.driver import Driver
from dse.runtime.sandbox.pools import Kept, WorkerPool
from dse.runtime.sandbox.records import GuestError, SandboxLimits, Turn
from dse.runtime.sandbox.resident import BALLAST, Resident, as_written
from dse.runtime.sandbox.shims import source_of

__all__ = ["ResidentDriver"]

_ROOM = 128 * 2**20  # bytes at most for what a guest keeps: some patterns take 500 kB
_RUNS = 1000  # of one guest
_ENDED = "the run has ended"
_OVER = re.compile(r"memory limit exceeded: (\d+) bytes > \d+ bytes")


class ResidentDriver(Driver):
    """A driver whose guest runs one script, and may have run it before.

    Args:
        resident: the script. Nothing but its call can be fed, and once.

    Attributes:
        kept: the guest as it had stayed; None for a fresh one.
    """

    def __init__(
        self,
        workers: WorkerPool,
        limits: SandboxLimits,
        seed: int,
        clock: datetime,
        async_names: frozenset[str],
        sync_names: frozenset[str],
        imports: str,
        resident: Resident,
    ) -> None:
        super().__init__(workers, limits, seed, clock, async_names, sync_names, imports)
        self.kept: Kept | None = None
        self._resident = resident
        # What a guest does not use of it is filled: every run has as much left.
        self._room = min(limits.memory_bytes, _ROOM)

    @property
    def _kind(self) -> Hashable:
        """Guests of one kind can take each other's place."""
        return self._resident, self._limits, self._imports

    # --- the guest

    def check_out(self) -> None:
        """Get a guest: one that has stayed, where there is one.

        Raises:
            SandboxUnavailable: no worker became free in time, or there can be none any more.
        """
        if (kept := self._workers.kept(self._kind)) is None:
            return super().check_out()
        self.kept, self.guest, self._feeds, self._source, self._shift = kept, kept.guest, kept.feeds, kept.source, 1
        self._loaded, self._imported = set(self._resident.needs), True
        self.pid = self.guest.worker_pid

    def _bounds(self) -> dict[str, Any]:
        bounds = super()._bounds()
        return bounds | {
            "max_memory": bounds["max_memory"] + self._room,
            "max_recursion_depth": bounds["max_recursion_depth"] + 3,  # the script is a call itself, a kept pattern takes two
            # It counts on from run to run; a run's own are counted here.
            "max_suspensions": min(bounds["max_suspensions"] * _RUNS, 2**63 - 1),
        }

    def lead_back(self, guest: Any, snapshot: Any) -> tuple[Hashable, Kept] | None:
        """What a guest that was let go stays as, for :meth:`WorkerPool.take_back`; None where it may not, or cannot."""
        runs = self.kept.runs if self.kept is not None else 0
        if guest is None or not self._whole or runs + 1 >= _RUNS or self._workers.state != "open":
            return None
        if not self._led_back(guest, snapshot):
            return None
        return self._kind, Kept(guest, self._feeds, self._source, runs + 1)

    def _led_back(self, guest: Any, snapshot: Any) -> bool:
        """End the run inside the guest, and make sure that the next one finds as much memory as it is promised."""
        try:
            if snapshot is not None:
                try:
                    snapshot.resume({"exc_type": "KeyboardInterrupt", "message": _ENDED})
                except Exception as error:
                    if not str(error).endswith(f"KeyboardInterrupt: {_ENDED}"):
                        return False
                else:
                    return False  # it went on
            used = self._used(guest)
            if used is None or used > self._room:
                return False
            self._feeds += 1
            guest.feed_run(_fill(self._room - used), print_callback=lambda stream, text: None)
            return True
        except BaseException as error:  # a panic of the native module is not an Exception
            if faults.is_interpreters(error):
                return False
            raise

    def _used(self, guest: Any) -> int | None:
        """Bytes that a guest holds between runs: what it says when it is asked for more than there can be."""
        whole = self._limits.memory_bytes + self._room
        self._feeds += 1
        try:
            guest.feed_run(f"{self._resident.forget}\n{BALLAST} = None\nbytes({whole})", print_callback=lambda stream, text: None)
        except Exception as error:
            found = _OVER.search(str(error))
            return int(found[1]) - whole if found else None
        return None

    # --- turns

    def _feed(self, code: str, inputs: dict[str, Any], shims: Sequence[str]) -> Turn:
        if code != self._resident.call:
            raise ValueError("this guest runs the script that it was made for, and nothing else")
        given = {self._resident.inputs[name]: value for name, value in inputs.items()}
        return self._drive(lambda: self._call_script(given))

    def _call_script(self, given: dict[str, Any]) -> Any:
        """Begin a run; a guest that has died while it waited is replaced."""
        resident = self._resident
        for last in (self.kept is None, True):
            if self._imported is False:
                self._feed_quietly("\n".join((self._imports, *map(source_of, resident.needs))))
                self._source, self._shift = self._feeds, 1
                self._feed_quietly(f"{resident.definitions}\n{_fill(self._room)}")
                self._loaded, self._imported = set(resident.needs), True
            self._feeds += 1
            try:
                return self.guest.feed_start(resident.call, inputs=given, print_callback=self._prints.write)
            except Exception as error:
                if refusal := refused(error, "an input"):
                    self._feeds -= 1
                    raise refusal from None
                if last or type(error).__name__ != "MontyCrashedError" or error.timed_out:  # type: ignore[attr-defined]
                    raise
            self._workers.take_back(self.guest)
            self.guest, self.kept, self.pid, self._imported, self._feeds = None, None, None, False, 0
            self._prints = Prints(self._limits.print_bytes)
            super().check_out()  # a fresh one
            self._feed_time.change_worker(self.pid)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _too_many(self, snapshot: Any) -> GuestError | None:
        if self._suspensions <= self._limits.suspensions:
            return None
        place, line = snapshot.position, None
        if place.filename == f"<python-input-{self._source}>":
            line = self._resident.definitions.encode()[: place.start].count(b"\n") + 1 - self._shift
        return faults.suspended_too_often(line)

    def _explained(self, fault: GuestError, error: BaseException) -> GuestError:
        if fault.kind == "runtime":
            frames = error.traceback()  # type: ignore[attr-defined]
            return as_written(fault, frames[-1].function_name if frames else None, self._resident.names)
        if fault.limit == "memory_bytes":
            # Maybe because of what this guest keeps: executed again in one of its own, the script says whether it is.
            self._workers.is_full(self._kind)
            return faults.crash("what it keeps left too little memory")
        return fault


def _fill(size: int) -> str:
    return f"{BALLAST} = bytes({size})\nNone"  # zeros that nobody looks at take no memory of the machine
