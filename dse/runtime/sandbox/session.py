"""One guest in a worker process, driven by us from one suspension to the next.

A *turn* runs in a thread: it starts the guest or hands it results, and returns when the guest waits for the
host, ends or fails. Between turns a session holds a worker process and no thread, so many sessions can wait
for slow tools. Calls of async names are answered at once with a future and collected; the turn ends when
every guest task waits. A call of any other name ends the turn by itself, unknown names included: the
interpreter has no list of allowed names, whoever answers the calls does.

Clock and random numbers come from the caller. The clock stands still and sleeping takes no time.
"""

from __future__ import annotations

import os
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from queue import SimpleQueue
from typing import Any, TypeVar

from dse.errors import SandboxUnavailable, Unserialisable
from dse.runtime.sandbox import faults
from dse.runtime.sandbox.convert import NotPlain, bounded_repr, to_observation
from dse.runtime.sandbox.crossing import Prints, argument, placeholder, refused, wire
from dse.runtime.sandbox.pools import Kept, WorkerPool
from dse.runtime.sandbox.records import (
    ExternalCall,
    Failed,
    Finished,
    GuestError,
    Result,
    SandboxLimits,
    Turn,
    Waiting,
)
from dse.runtime.sandbox.resident import Resident, as_written
from dse.runtime.sandbox.shims import source_of

__all__ = ["Session", "cpu_seconds"]

_Turn = TypeVar("_Turn", bound=Turn | list[Turn] | None)
_KEPT_ROOM = 128 * 2**20  # bytes at most for what a guest that stays keeps: some patterns take 500 kB
_KEPT_RUNS = 1000  # of one guest
_ENDED = "the run has ended"
_KILL_AFTER_S = 0.25  # how long a turn may go on after nobody waits for it any more


class _Places:
    """A semaphore; the one of `threading` is a sixth of what a short turn costs."""

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *_: object) -> None:
        self._free.put(None)


# Guests that compute at the same time: more would only stretch each other's time limits.
_cores = _Places(2 * (os.cpu_count() or 1))


def _anew() -> None:
    """A forked child has none of its parent's turns."""
    global _cores
    _cores = _Places(2 * (os.cpu_count() or 1))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)


class Session:
    """One guest: its variables live from feed to feed. Not for use by two tasks at the same time."""

    def __init__(
        self,
        workers: WorkerPool,
        limits: SandboxLimits,
        seed: int,
        clock: datetime,
        async_names: frozenset[str],
        sync_names: frozenset[str],
        imports: str,
        resident: Resident | None = None,
    ) -> None:
        self.limits = limits
        self.interpreter_s = 0.0
        """Seconds spent in turns so far: an upper bound of the time the guest computed."""
        self._cpu_before_s: float | None = None  # of the worker, when the feed began
        self._host_cpu_s = self._feed_s = 0.0  # of the feed: processor on the host, and wall time
        self._workers = workers
        workers.holders.add(self)
        self._seed, self._clock = seed, clock
        self._async_names, self._known_names = async_names, async_names | sync_names
        self._lock = threading.Lock()
        self._guest: Any = None  # the interpreter's session
        self._snapshot: Any = None  # where the guest waits
        self._pid: int | None = None
        self._in_turn = False
        self._abandoned = False
        self._dead: GuestError | None = None
        self._resident = resident
        self._kept: Kept | None = None  # as it was when this session got it
        self._whole = False  # the guest stands where it can be led back to its beginning
        self._imports = imports
        self._imported: bool | None = False  # None: perhaps
        self._loaded: set[str] = set()
        self._feeds = 0
        self._source = self._shift = 0  # the feed that the present code is in, and lines of ours before it
        self._calls = 0  # external calls so far
        self._suspensions = 0
        self._inner: dict[int, int] = {}  # our call id -> the interpreter's, which restarts at every feed
        self._pending: tuple[int, ...] = ()
        self._fresh: list[ExternalCall] = []  # async calls that no Waiting has reported yet
        self._open: set[int] = set()  # async calls without a result
        self._prints = Prints(limits.print_bytes)

    async def feed(self, code: str, *, inputs: Mapping[str, Any] | None = None, shims: Sequence[str] = ()) -> Turn:
        """Runs code until it waits, ends or fails.

        Args:
            inputs: variables to set before, plain data.
            shims: what the lint says the code needs (``LintResult.shims``); loaded once per session.

        Raises:
            Unserialisable: an input that cannot enter the guest; nothing ran.
            SandboxUnavailable: the session had no worker yet, and none could be had in time.
        """
        await self._ready_to_feed()
        return await self._turn(lambda: self._begin(code, dict(inputs or {}), shims))

    async def feed_if(
        self, check: Callable[[], bool], code: str, *, inputs: Mapping[str, Any] | None = None, shims: Sequence[str] = ()
    ) -> Turn | None:
        """Like :meth:`feed`, after ``check()`` in the same thread, which saves handing over twice.

        None if that says no: the session is as it was before. A session that has ended answers without asking.
        """

        def work() -> Turn | None:
            if check() and not self._abandoned:
                return self._begin(code, dict(inputs or {}), shims)
            if self._guest is None:
                self._workers.take_back(None, self)
            return None

        await self._ready_to_feed()
        return await self._turn(work)

    async def _ready_to_feed(self) -> None:
        if self._snapshot is not None:
            raise RuntimeError("the guest still waits for results: resume it, or close the session")
        if self._guest is None and self._dead is None and self._workers.state != "forked":
            await self._workers.place(self)

    async def resume(self, results: dict[int, Result]) -> Turn:
        """Hands results to the guest, in ascending order of call id whatever the order of the dict.

        Raises:
            Unserialisable: a value that cannot enter the guest; the guest waits on, resume it again.
        """
        self._check_results(results)
        return await self._turn(lambda: self._answer(results))

    async def resume_along(
        self, results: dict[int, Result], known: Callable[[Waiting], dict[int, Result] | None], *, most: int = 32
    ) -> list[Turn]:
        """Like :meth:`resume`, and goes on by itself while ``known(turn)`` gives the results of a turn, up to `most` turns.

        Handing a turn over costs more than a turn whose results are there already. Gives all turns, the last one is where
        the guest is now.

        Args:
            known: called in the session's thread; None where the caller has to go on.
        """

        def work() -> list[Turn]:
            turns: list[Turn] = [self._answer(results)]
            while len(turns) < most and isinstance(turn := turns[-1], Waiting) and not self._abandoned:
                given = known(turn)
                if given is None:
                    break
                try:
                    turns.append(self._answer(given))
                except Unserialisable:
                    break  # the guest waits on: the caller gives the same, and hears of it
            return turns

        self._check_results(results)
        turns = await self._turn(work)
        return [turns] if isinstance(turns, Failed) else turns

    def _check_results(self, results: dict[int, Result]) -> None:
        if self._snapshot is None:
            raise RuntimeError("the guest does not wait for results")
        if not results or not results.keys() <= set(self._pending):
            raise ValueError(f"results must be for some of the calls {list(self._pending)}, not {sorted(results)}")

    async def aclose(self) -> None:
        """Returns the worker, or ends it when a turn is still running. Idempotent; done by another thread soon after."""
        self._dead = self._dead or faults.crash("the session was closed")
        if self._guest is not None:
            try:
                self._workers.threads.hand(self._leave)
                return
            except SandboxUnavailable:
                pass  # closed meanwhile
        self._leave()

    @property
    def waits_for(self) -> tuple[int, ...]:
        """Ids of the calls without which the guest cannot go on; empty between feeds."""
        return self._pending if self._snapshot is not None else ()

    async def freeze(self) -> tuple[bytes, dict[str, Any]] | None:
        """The guest as bytes, and what :meth:`Sandbox.thaw` needs besides; the session stays usable.

        Between feeds, or while the guest waits and every call has been reported. None when the worker is gone.
        """
        data: bytes | None = await self._in_thread(self._dump)
        if data is None:
            return None
        return data, {
            "suspended": self._snapshot is not None,
            "calls": self._calls,
            "suspensions": self._suspensions,
            "inner": [[ours, theirs] for ours, theirs in self._inner.items()],
            "pending": list(self.waits_for),
            "loaded": sorted(self._loaded),
            "imported": self._imported,
            "feeds": self._feeds,
            "source": self._source,
            "shift": self._shift,
            "interpreter_s": self.interpreter_s,
            "printed": self._prints.counts(),
        }

    def _dump(self) -> bytes | None:
        try:
            data: bytes = (self._guest if self._snapshot is None else self._snapshot).dump()
            return data
        except Exception as error:
            if self._guest is None or faults.is_interpreters(error):
                return None  # the next turn says what happened
            raise

    # --- threads

    async def _turn(self, work: Callable[[], _Turn]) -> _Turn | Failed:
        if self._workers.state == "forked":
            self._workers.refuse_if_unusable()
        if self._dead is None and self._workers.state == "closed":
            self._dead = faults.crash("the sandbox was closed")
        if self._dead is not None:
            return Failed(self._dead)
        turn: _Turn = await self._in_thread(work)
        return turn

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        """Runs ``work`` in a thread. When the task is cancelled meanwhile, the session is given up."""

        def run() -> Any:
            with self._lock:
                if self._abandoned:
                    return None
                self._in_turn = True
            try:
                with _cores:
                    return work()
            finally:
                with self._lock:
                    self._in_turn = False
                    if self._abandoned:
                        self._leave_locked()

        done = False
        try:
            result = await self._workers.threads.run(run)
            done = True
            return result
        except Exception:
            done = True
            raise
        finally:
            if not done:
                self._abandon()

    def _abandon(self) -> None:
        """Nobody waits for the running turn any more: it may end by itself, but not take long."""
        with self._lock:
            self._dead = self._dead or faults.crash("the turn was cancelled")
            if not self._in_turn:
                self._abandoned = True
                self._leave_locked()
                return
            if self._abandoned:
                return
            self._abandoned = True
        timer = threading.Timer(_KILL_AFTER_S, self._kill)
        timer.daemon = True
        timer.start()

    def _kill(self) -> None:
        with self._lock:
            # only while a turn runs: the worker is certainly ours then, and its pid not reused
            if self._in_turn and self._pid is not None and self._workers.state == "open":
                os.kill(self._pid, signal.SIGKILL)

    def _leave(self) -> None:
        with self._lock:
            self._dead = self._dead or faults.crash("the session was closed")
            if not self._in_turn:
                self._leave_locked()
                return
        self._abandon()

    def _leave_locked(self) -> None:
        guest, self._guest, snapshot, self._snapshot = self._guest, None, self._snapshot, None
        resident, kept = self._resident, None
        if resident is not None and guest is not None and self._whole and not self._abandoned:
            runs = self._kept.runs if self._kept is not None else 0
            if runs + 1 < _KEPT_RUNS and self._workers.state == "open" and self._led_back(resident, guest, snapshot):
                kept = Kept(guest, self._feeds, self._source, runs + 1)
        self._workers.take_back(guest, self, (self._kind, kept) if kept is not None else None)

    @property
    def _kind(self) -> tuple[Resident | None, SandboxLimits]:
        """Guests of one kind can take each other's place."""
        return self._resident, self.limits

    def _led_back(self, resident: Resident, guest: Any, snapshot: Any) -> bool:
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
            self._feeds += 1
            guest.feed_run(f"{resident.forget}\nbytes({self.limits.memory_bytes}) and None", print_callback=lambda stream, text: None)
            return True
        except Exception as error:
            if faults.is_interpreters(error):
                return False
            raise

    def natives(self) -> tuple[Any, ...]:
        return self._guest, self._snapshot

    def _check_out(self, *, fresh: bool = False) -> None:
        """Get a guest: one that has stayed, where there is one and nobody asks for a fresh one."""
        limits = self.limits
        if self._resident is not None and not fresh and (kept := self._workers.kept(self._kind)) is not None:
            self._kept, self._guest, self._feeds, self._source, self._shift = kept, kept.guest, kept.feeds, kept.source, 1
            self._loaded, self._imported = set(self._resident.needs), True
            self._pid = self._guest.worker_pid
            return
        room = min(limits.memory_bytes, _KEPT_ROOM) if self._resident is not None else 0
        try:
            self._guest = self._workers.lend(
                limits={
                    "max_feed_duration_secs": limits.feed_s,
                    "max_memory": limits.memory_bytes + room,
                    "max_recursion_depth": limits.recursion,
                    # A dump forgets its count; a guest that stays goes on counting, so that we count for each of its runs.
                    "max_suspensions": max(1, limits.suspensions - self._suspensions) * (_KEPT_RUNS if self._resident else 1),
                },
                os_policy={"datetime": self._clock, "sleep": "zero", "random_start": {"seed": self._seed}},
            )
        except BaseException:
            self._workers.take_back(None, self)
            raise
        self._pid = self._guest.worker_pid

    def _load(self, data: bytes, driver: Mapping[str, Any]) -> None:
        import pydantic_monty

        self._suspensions = driver["suspensions"]
        self._check_out()
        self._prints = Prints(self.limits.print_bytes, driver["printed"])
        try:
            if driver["suspended"]:
                self._snapshot = self._guest.load_snapshot(data, print_callback=self._prints.write)
            else:
                self._guest.load_session(data)
        except (pydantic_monty.MontyError, RuntimeError, ValueError) as error:
            with self._lock:
                self._leave_locked()
            raise SandboxUnavailable("a frozen guest cannot be loaded", value=f"{type(error).__name__}: {error}") from error
        self._calls, self._feeds, self.interpreter_s = driver["calls"], driver["feeds"], driver["interpreter_s"]
        self._inner = {ours: theirs for ours, theirs in driver["inner"]}
        self._pending, self._shift = tuple(driver["pending"]), driver["shift"]
        self._loaded, self._imported = set(driver["loaded"]), driver["imported"]
        self._source = driver.get("source", self._feeds - 1)

    # --- what runs in the thread

    def _feed_quietly(self, code: str) -> None:
        self._feeds += 1
        self._guest.feed_run(code, print_callback=lambda stream, text: None)

    def _begin(self, code: str, inputs: dict[str, Any], shims: Sequence[str]) -> Turn:
        self._prints = Prints(self.limits.print_bytes)
        self._inner.clear()
        self._fresh.clear()
        self._open.clear()
        if self._guest is None:
            self._check_out()
        self._cpu_before_s, self._host_cpu_s, self._feed_s = cpu_seconds(self._pid), 0.0, 0.0
        if (resident := self._resident) is not None:
            return self._drive(lambda: self._call_resident(resident, inputs))
        sources = [source_of(need) for need in shims if need not in self._loaded]
        before = ""
        if self._imported is None:  # the first feed failed; where it was not even parsed, nothing is imported
            guarded = textwrap.indent(self._imports, "    ")
            sources.insert(0, f"try:\n    asyncio\nexcept NameError:\n{guarded}")
        elif not self._imported and sources:
            sources.insert(0, self._imports)
        elif not self._imported:
            before = f"{self._imports}\n"  # one feed is cheaper than two

        def step() -> Any:
            if sources:
                self._feed_quietly("\n".join(sources))
                self._loaded.update(shims)
                self._imported = True
            self._source = self._feeds
            self._feeds += 1
            try:
                return self._guest.feed_start(before + code, inputs=inputs, print_callback=self._prints.write)
            except Exception as error:
                if refusal := refused(error, "an input"):
                    self._feeds -= 1  # the interpreter has not counted it
                    raise refusal from None
                raise

        self._shift = before.count("\n")
        turn = self._drive(step)
        if not self._imported:
            self._imported = None if isinstance(turn, Failed) else True
        return turn

    def _call_resident(self, resident: Resident, inputs: dict[str, Any]) -> Any:
        """Begin a run of a script that stays; a guest that has died while it waited is replaced."""
        for last in (self._kept is None, True):
            if self._imported is False:
                self._feed_quietly("\n".join((self._imports, *map(source_of, resident.needs))))
                self._source, self._shift = self._feeds, 1
                self._feed_quietly(resident.definitions)
                self._loaded, self._imported = set(resident.needs), True
            self._feeds += 1
            try:
                return self._guest.feed_start(resident.call, inputs=inputs, print_callback=self._prints.write)
            except Exception as error:
                if refusal := refused(error, "an input"):
                    self._feeds -= 1
                    raise refusal from None
                if last or type(error).__name__ != "MontyCrashedError" or error.timed_out:  # type: ignore[attr-defined]
                    raise
            self._workers.take_back(self._guest)
            self._kept, self._imported, self._feeds = None, False, 0
            self._prints = Prints(self.limits.print_bytes)
            self._check_out(fresh=True)
            self._cpu_before_s = cpu_seconds(self._pid)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _answer(self, results: dict[int, Result]) -> Turn:
        snapshot = self._snapshot
        self._open.difference_update(results)
        # the order of this dict is the order in which the guest's tasks go on
        answers = {self._inner[i]: wire(results[i]) for i in sorted(results)}

        def step() -> Any:
            try:
                if type(snapshot).__name__ == "FutureSnapshot":
                    return snapshot.resume(answers)
                return snapshot.resume(next(iter(answers.values())))
            except Exception as error:
                if refusal := refused(error, "a result"):
                    raise refusal from None
                raise

        return self._drive(step)

    def _drive(self, step: Callable[[], Any]) -> Turn:
        """Goes from suspension to suspension until the host has to do something."""
        started, cpu = time.perf_counter(), time.thread_time()
        self._whole = False
        try:
            snapshot = step()
            while True:
                kind = type(snapshot).__name__
                self._suspensions += 1
                if self._resident is not None and self._suspensions > self.limits.suspensions and kind != "MontyComplete":
                    self._dead = faults.suspended_too_often(self._line_in(self._resident, snapshot.position))
                    return Failed(self._dead, self._prints.take(last=True))
                if kind == "FunctionSnapshot":
                    if snapshot.is_os_function:
                        if snapshot.function_name in ("import", "import_stubs"):
                            snapshot = snapshot.resume_auto()  # no such module
                        else:
                            snapshot = snapshot.resume_not_handled()  # no files, no environment
                        continue
                    call = self._call(snapshot)
                    if isinstance(call, NotPlain):
                        snapshot = snapshot.resume({"exc_type": "TypeError", "message": str(call)})
                    elif call.is_async:
                        self._fresh.append(call)
                        self._open.add(call.call_id)
                        snapshot = snapshot.resume({"future": ...})
                    else:
                        self._snapshot, self._pending, self._whole = snapshot, (call.call_id,), not self._open
                        return Waiting((call,), self._pending, self._prints.take())
                elif kind == "NameLookupSnapshot":
                    name = snapshot.variable_name
                    known = name in self._known_names
                    snapshot = snapshot.resume(value=placeholder(name)) if known else snapshot.resume()
                elif kind == "FutureSnapshot":
                    inner = set(snapshot.pending_call_ids)
                    if not inner:
                        snapshot = snapshot.resume({})  # raises: nothing can ever arrive
                        continue
                    self._snapshot = snapshot
                    calls, self._fresh = tuple(self._fresh), []
                    self._pending = tuple(sorted(i for i, n in self._inner.items() if n in inner))
                    return Waiting(calls, self._pending, self._prints.take())
                else:
                    self._snapshot = None
                    try:
                        value = to_observation(snapshot.output)
                    except Exception as error:  # no Python value: a set of instances, a date out of range
                        if faults.is_interpreters(error):
                            raise
                        value = "<a value that cannot be shown>"
                    unawaited, self._fresh = tuple(self._fresh), []
                    self._whole = not self._open
                    return Finished(value, self._prints.take(last=True), bounded_repr(value), unawaited)
        except Unserialisable:
            raise  # nothing has happened in the guest
        except BaseException as error:  # a panic of the native module is not an Exception
            if not faults.is_interpreters(error):
                raise
            self._snapshot = None
            self._fresh = []
            fault = faults.from_exception(error, f"<python-input-{self._source}>", self._shift)
            if self._resident is not None and fault.kind == "runtime":
                frames = error.traceback()  # type: ignore[attr-defined]
                fault = as_written(fault, frames[-1].function_name if frames else None)
            if fault.limit == "interpreter_s" and self._starved(time.perf_counter() - started, time.thread_time() - cpu):
                fault = faults.crash("its time limit passed, and the machine gave it less than a tenth of that")
            if fault.dead:
                self._dead = fault
            self._whole = fault.kind == "runtime" and not fault.dead and not self._open
            return Failed(fault, self._prints.take(last=True))
        finally:
            spent = time.perf_counter() - started
            self.interpreter_s += spent
            self._feed_s += spent
            self._host_cpu_s += time.thread_time() - cpu

    def _starved(self, wall_s: float, cpu_s: float) -> bool:
        """Whether a feed that reached its time limit had less processor than a tenth of it: that says nothing about the guest.

        What the host did for it meanwhile (its prints) counts as the guest's. Not known where there is no /proc. A guest
        that says so before its time is over is not believed.
        """
        spent, limit = cpu_seconds(self._pid), self.limits.feed_s
        if spent is None or self._cpu_before_s is None or self._feed_s + wall_s < 0.9 * limit:
            return False
        return spent - self._cpu_before_s + self._host_cpu_s + cpu_s < limit / 10

    def _line_in(self, resident: Resident, place: Any) -> int | None:
        """The line of the script that the guest is in."""
        if place.filename != f"<python-input-{self._source}>":
            return None
        return resident.definitions.encode()[: place.start].count(b"\n") + 1 - self._shift

    def _call(self, snapshot: Any) -> ExternalCall | NotPlain:
        name = str(snapshot.function_name)
        try:
            args = tuple(argument(name, i + 1, v) for i, v in enumerate(snapshot.args))
            kwargs = {k: argument(name, k, v) for k, v in snapshot.kwargs.items()}
        except NotPlain as refusal:
            return refusal
        except Exception as error:  # no Python value: a set of instances, a date out of range
            if faults.is_interpreters(error):
                raise
            return NotPlain(f"{name}(): an argument holds a value that is not data")
        call_id = self._calls
        self._calls += 1
        self._inner[call_id] = snapshot.call_id
        return ExternalCall(call_id, name, args, kwargs, name in self._async_names)


def cpu_seconds(pid: int | None) -> float | None:
    """Processor time of a process so far; None where nobody tells."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return None
