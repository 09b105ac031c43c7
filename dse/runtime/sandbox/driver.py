"""The driver of one guest: what is done with the interpreter, from one suspension to the next.

Everything here blocks and runs in the session's thread, one piece at a time. The guest is started or handed results and
driven on until it waits for the host, ends or fails: that is a *turn*. Calls of async names are answered at once with a
future and collected; the turn ends when every guest task waits. A call of any other name ends the turn by itself, unknown
names included: the interpreter has no list of allowed names, whoever answers the calls does.

The clock stands still and sleeping takes no time; both and the random numbers come from the caller.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime
from typing import Any

from dse.errors import SandboxUnavailable, Unserialisable
from dse.runtime.sandbox import faults
from dse.runtime.sandbox.convert import NotPlain, bounded_repr, to_observation
from dse.runtime.sandbox.crossing import Prints, argument, placeholder, refused, wire
from dse.runtime.sandbox.feed_time import FeedTime
from dse.runtime.sandbox.pools import Kept, WorkerPool
from dse.runtime.sandbox.records import ExternalCall, Failed, Finished, GuestError, Result, SandboxLimits, Turn, Waiting
from dse.runtime.sandbox.shims import source_of

__all__ = ["Driver"]

_LONGEST_S = 1e9  # more than anybody waits; the interpreter takes no more than 1e19


class Driver:
    """One guest in the interpreter, and what is counted for it.

    Attributes:
        interpreter_s: seconds spent in turns so far.
        guest: the interpreter's session; None before the first feed and once it is let go.
        snapshot: where the guest waits; None between feeds.
        pending: ids of the calls that it waits for there.
        pid: of the worker process.
        dead: why no turn can run any more.
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
    ) -> None:
        self.interpreter_s = 0.0
        self.guest: Any = None
        self.snapshot: Any = None
        self.pending: tuple[int, ...] = ()
        self.pid: int | None = None
        self.dead: GuestError | None = None
        self._feed_time = FeedTime()
        self._workers, self._limits, self._seed, self._clock = workers, limits, seed, clock
        self._async_names, self._known_names = async_names, async_names | sync_names
        self._whole = False  # the guest stands where it can be led back to its beginning
        self._imports = imports
        self._imported: bool | None = False  # None: perhaps
        self._loaded: set[str] = set()
        self._feeds = 0
        self._source = self._shift = 0  # the feed that the present code is in, and lines of ours before it
        self._calls = 0  # external calls so far
        self._suspensions = 0
        self._inner: dict[int, int] = {}  # our call id -> the interpreter's, which restarts at every feed
        self._fresh: list[ExternalCall] = []  # async calls that no Waiting has reported yet
        self._open: set[int] = set()  # async calls without a result
        self._prints = Prints(limits.print_bytes)

    # --- the guest: had, loaded, dumped, let go

    def check_out(self) -> None:
        """Get a guest.

        Raises:
            SandboxUnavailable: no worker became free in time, or there can be none any more.
        """
        self.guest = self._workers.lend(
            longest_s=min(self._limits.feed_s, _LONGEST_S),
            limits=self._bounds(),
            os_policy={"datetime": self._clock, "sleep": "zero", "random_start": {"seed": self._seed}},
        )
        self.pid = self.guest.worker_pid

    def _bounds(self) -> dict[str, Any]:
        """The limits as the interpreter takes them."""
        limits = self._limits
        return {
            "max_feed_duration_secs": min(limits.feed_s, _LONGEST_S),
            "max_memory": limits.memory_bytes,
            "max_recursion_depth": limits.recursion,
            "max_suspensions": max(1, limits.suspensions - self._suspensions),  # a dump forgets its count
        }

    def load(self, data: bytes, state: Mapping[str, Any]) -> None:
        """Get a guest that goes on where another one was dumped.

        Raises:
            SandboxUnavailable: no worker could be had in time, or the interpreter does not take it.
        """
        import pydantic_monty

        # The interpreter counts the suspension that it is loaded in once more.
        self._suspensions = state["suspensions"] - (1 if state["suspended"] else 0)
        self.check_out()
        self._suspensions = state["suspensions"]
        self._prints = Prints(self._limits.print_bytes, state["printed"])
        try:
            if state["suspended"]:
                self.snapshot = self.guest.load_snapshot(data, print_callback=self._prints.write)
            else:
                self.guest.load_session(data)
        except (pydantic_monty.MontyError, RuntimeError, ValueError) as error:
            raise SandboxUnavailable("a frozen guest cannot be loaded", value=f"{type(error).__name__}: {error}") from error
        self._calls, self._feeds, self.interpreter_s = state["calls"], state["feeds"], state["interpreter_s"]
        self._inner = {ours: theirs for ours, theirs in state["inner"]}
        self.pending, self._shift = tuple(state["pending"]), state["shift"]
        self._loaded, self._imported = set(state["loaded"]), state["imported"]
        self._source = state.get("source", self._feeds - 1)

    def dump(self) -> bytes | None:
        """The guest as bytes; it goes on as if nothing had been. None when the worker is gone."""
        try:
            data: bytes = (self.guest if self.snapshot is None else self.snapshot).dump()
            return data
        except Exception as error:
            if self.guest is None or faults.is_interpreters(error):
                return None  # the next turn says what happened
            raise

    def state(self) -> dict[str, Any]:
        """What :meth:`load` needs besides the bytes of :meth:`dump`, at the same point."""
        return {
            "suspended": self.snapshot is not None,
            "calls": self._calls,
            "suspensions": self._suspensions,
            "inner": [[ours, theirs] for ours, theirs in self._inner.items()],
            "pending": list(self.pending if self.snapshot is not None else ()),
            "loaded": sorted(self._loaded),
            "imported": self._imported,
            "feeds": self._feeds,
            "source": self._source,
            "shift": self._shift,
            "interpreter_s": self.interpreter_s,
            "printed": self._prints.counts(),
        }

    def end(self, why: str) -> None:
        """No turn runs any more, unless there is a reason already."""
        self.dead = self.dead or faults.crash(why)

    def let_go(self) -> tuple[Any, Any]:
        """Part from the guest: the guest, and where it waits."""
        guest, self.guest, snapshot, self.snapshot = self.guest, None, self.snapshot, None
        return guest, snapshot

    def lead_back(self, guest: Any, snapshot: Any) -> tuple[Hashable, Kept] | None:
        """What a guest that was let go stays as, for :meth:`WorkerPool.take_back`; None where it does not."""
        return None

    # --- turns

    def _feed_quietly(self, code: str) -> None:
        self._feeds += 1
        self.guest.feed_run(code, print_callback=lambda stream, text: None)

    def begin(self, code: str, inputs: dict[str, Any], shims: Sequence[str]) -> Turn:
        """The first turn of a feed.

        Raises:
            Unserialisable: an input that cannot enter the guest. SandboxUnavailable: as :meth:`check_out`.
        """
        self._prints = Prints(self._limits.print_bytes)
        self._inner.clear()
        self._fresh.clear()
        self._open.clear()
        if self.guest is None:
            self.check_out()
        self._feed_time.begin(self.pid)
        return self._feed(code, inputs, shims)

    def _feed(self, code: str, inputs: dict[str, Any], shims: Sequence[str]) -> Turn:
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
                return self.guest.feed_start(before + code, inputs=inputs, print_callback=self._prints.write)
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

    def answer(self, results: dict[int, Result]) -> Turn:
        """The turn after the guest was handed results of some pending calls.

        Raises:
            Unserialisable: a value that cannot enter the guest; it waits on.
        """
        snapshot = self.snapshot
        # the order of this dict is the order in which the guest's tasks go on
        answers = {self._inner[i]: wire(results[i]) for i in sorted(results)}

        def step() -> Any:
            try:
                if type(snapshot).__name__ == "FutureSnapshot":
                    following = snapshot.resume(answers)
                else:
                    following = snapshot.resume(next(iter(answers.values())))
            except Exception as error:
                if refusal := refused(error, "a result"):
                    raise refusal from None
                raise
            self._open.difference_update(results)
            return following

        return self._drive(step)

    def _drive(self, step: Callable[[], Any]) -> Turn:
        """Goes from suspension to suspension until the host has to do something."""
        started, cpu = time.perf_counter(), time.thread_time()
        self._whole = False
        try:
            snapshot = step()
            while True:
                kind = type(snapshot).__name__
                if kind != "MontyComplete":
                    self._suspensions += 1
                if (fault := self._too_many(snapshot)) is not None:
                    self.dead = fault
                    self.snapshot, self._fresh = None, []
                    return Failed(fault, self._prints.take(last=True))
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
                        self.snapshot, self.pending, self._whole = snapshot, (call.call_id,), not self._open
                        return Waiting((call,), self.pending, self._prints.take())
                elif kind == "NameLookupSnapshot":
                    name = snapshot.variable_name
                    known = name in self._known_names
                    snapshot = snapshot.resume(value=placeholder(name)) if known else snapshot.resume()
                elif kind == "FutureSnapshot":
                    inner = set(snapshot.pending_call_ids)
                    if not inner:
                        snapshot = snapshot.resume({})  # raises: nothing can ever arrive
                        continue
                    self.snapshot = snapshot
                    calls, self._fresh = tuple(self._fresh), []
                    self.pending = tuple(sorted(i for i, n in self._inner.items() if n in inner))
                    return Waiting(calls, self.pending, self._prints.take())
                else:
                    self.snapshot = None
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
            self.snapshot = None
            self._fresh = []
            fault = self._explained(faults.from_exception(error, f"<python-input-{self._source}>", self._shift), error)
            took_s, cpu_s = time.perf_counter() - started, time.thread_time() - cpu
            if fault.limit == "interpreter_s" and self._feed_time.starved(self._limits.feed_s, took_s, cpu_s):
                fault = faults.crash("its time limit passed, and the machine gave it less than a tenth of that")
            if fault.dead:
                self.dead = fault
            self._whole = fault.kind == "runtime" and not fault.dead and not self._open
            return Failed(fault, self._prints.take(last=True))
        finally:
            spent = time.perf_counter() - started
            self.interpreter_s += spent
            self._feed_time.add(spent, time.thread_time() - cpu)

    def _too_many(self, snapshot: Any) -> GuestError | None:
        """Why a guest that is suspended may not go on, where the interpreter does not hold that limit itself."""
        return None

    def _explained(self, fault: GuestError, error: BaseException) -> GuestError:
        """A fault as the author of the code may know it."""
        return fault

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
