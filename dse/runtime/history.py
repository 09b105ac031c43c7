"""The journal of a run, and the record of an earlier execution that a run follows again.

A run that goes on after a crash, after a wait for a decision, or after its interpreter worker died executes its
strategy from the start. As long as the record lasts, completions and tool outcomes come from it, nothing is asked or
executed twice, and every step is compared with what was recorded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dse.canonical import sha256_hex
from dse.errors import ReplayDiverged

__all__ = ["CALLS", "NESTED", "PATH", "CallRecord", "Frozen", "Journal", "Recording", "RunLog", "shown_id"]

PATH = frozenset({"model_call", "model_error", "feed", "print", "observation", "code_error", "repair", "round", "delivered",
                  "stage", "checked", "stage_ended", "retry", "run_finished"})  # fmt: skip
"""Kinds that come one after another, in an order that is the same whenever the run is executed."""
CALLS = frozenset({"tool_intent", "tool_outcome", "tool_refused", "approval"})
"""Kinds that belong to one tool call; parallel calls mix."""
_INCIDENTAL = frozenset({"seq", "latency_s", "idempotency_key", "recorded", "shown", "dead", "usage_source", "cost_usd",
                         "cost_source", "by", "at", "given"})  # fmt: skip

_text = json.JSONEncoder(sort_keys=True).encode  # made once: it compares every entry that is followed
_path_text = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


NESTED = 1_000_000
"""Ids of the calls that call number n makes begin above n times this: they do not depend on what runs beside it."""


def shown_id(call_id: int) -> str:
    """A call's id for people: ``7``, and ``7.2`` for the second call that call 7 made."""
    return str(call_id) if call_id < NESTED else f"{shown_id(call_id // NESTED)}.{call_id % NESTED}"


@dataclass(frozen=True)
class Frozen:
    """A guest as bytes, with what its driver has to know.

    Attributes:
        data: the interpreter's own dump.
        driver: JSON data: what the session and the strategy have to remember.
        seq: how many journal entries came before it.
        interpreter: version of the interpreter that made it; no other one can load it.
    """

    data: bytes
    driver: Mapping[str, Any]
    seq: int
    interpreter: str


class RunLog(Protocol):
    """Where a journal is kept. `put` is cheap; what was put is safe after the next `durable`.

    Attributes:
        eager: what happens is kept while it happens, not only when the run stops.
    """

    eager: bool

    def put(self, entry: Mapping[str, Any], active_s: float) -> None: ...

    async def durable(self) -> None: ...

    async def keep(self, frozen: Frozen) -> None: ...


@dataclass
class CallRecord:
    """What is recorded of one tool call."""

    intent: Mapping[str, Any] | None = None
    outcome: Mapping[str, Any] | None = None
    refused: Mapping[str, Any] | None = None
    approval: Mapping[str, Any] | None = None
    proposed: Mapping[str, Any] | None = None  # what was to be decided, where its arguments may differ when made again
    again: Mapping[str, Any] | None = None  # it begins once more, because of a decision
    retried: bool = False  # somebody decided that it may be executed again

    @property
    def settled(self) -> Mapping[str, Any] | None:
        """The entry with what the program was told; None while nothing reached it."""
        if self.outcome is not None and self.outcome["outcome"] in ("ok", "fault") and _is_told(self.outcome):
            return self.outcome
        return self.refused if self.refused is not None and _is_told(self.refused) else None

    @property
    def started(self) -> int:
        """Position of the last entry that says that it begins."""
        return max((int(entry["seq"]) for entry in (self.intent, self.again) if entry is not None), default=-1)

    @property
    def open_since(self) -> int | None:
        """Position of the intent of a call that nobody knows the end of."""
        if self.intent is None or self.settled is not None or self.retried:
            return None
        if self.outcome is not None and self.outcome.get("effect_state") == "none":
            return None
        if self.outcome is None and self.refused is not None and self.refused["seq"] > self.started:
            return None  # its intent could not be recorded in time, and so it was not executed
        return int(self.intent["seq"])


def _is_told(entry: Mapping[str, Any]) -> bool:
    """Whether an entry ended in a result or a fault of the tool, not in the end of the run."""
    fault = entry.get("fault")
    return entry.get("outcome") == "ok" or (isinstance(fault, str) and fault.startswith("DSE2"))


class Recording:
    """A cursor over the entries of an earlier execution.

    Args:
        only: nothing may happen that is not recorded (an audit).
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]], *, only: bool = False) -> None:
        self.only = only
        self.path: list[Mapping[str, Any]] = []
        self.calls: dict[int, CallRecord] = {}
        self.accepted: dict[int, Mapping[str, Any]] = {}  # outputs that may differ when made again, by their place in the path
        self.at = 0
        for entry in entries:
            kind = entry["kind"]
            if kind in PATH:
                self.path.append(entry)
            elif kind == "accepted":
                self.accepted[entry["place"]] = entry
            elif kind in CALLS or kind in ("tool_proposed", "decision", "retrying"):
                call = self.calls.setdefault(entry["call_id"], CallRecord())
                if kind == "tool_intent":
                    call.intent, call.retried = entry, False
                elif kind == "tool_outcome":
                    call.outcome = entry
                elif kind == "tool_refused":
                    call.refused = entry
                elif kind == "approval":
                    call.approval = entry
                elif kind == "tool_proposed":
                    call.proposed = entry
                elif kind == "retrying":  # from here on, nobody knows again
                    call.again, call.retried = entry, False
                elif entry["action"] == "retry":
                    call.retried = True

    @property
    def length(self) -> int:
        """How far it goes: what is recorded of a call without a result or a fault takes the run no further."""
        return len(self.path) + sum(call.settled is not None for call in self.calls.values())

    def peek(self) -> Mapping[str, Any] | None:
        return self.path[self.at] if self.at < len(self.path) else None

    def take(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The recorded entry that says what happens now; None when the record is used up.

        Raises:
            ReplayDiverged: the record says otherwise.
        """
        entry = self.peek()
        if entry is None:
            return None
        if entry["kind"] != kind or _essence(entry) != _essence({"kind": kind, **data}):
            raise diverged(entry, kind, data)
        self.at += 1
        return entry

    def ended_after(self, entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The end of the attempt that `entry` belongs to, where it is recorded."""
        return next((e for e in self.path if e["seq"] > entry["seq"] and e["kind"] in ("retry", "run_finished")), None)


def diverged(recorded: Mapping[str, Any] | None, kind: str, data: Mapping[str, Any]) -> ReplayDiverged:
    there = "nothing more" if recorded is None else f"{recorded['kind']} at {recorded['seq']}"
    return ReplayDiverged(f"The journal has {there} where the program comes to {kind}", value=_essence(dict(data))[:300],
                          remedy="Run it with the code, tools and models that it was started with.")  # fmt: skip


def _essence(entry: Mapping[str, Any]) -> str:
    return _text({k: v for k, v in entry.items() if k not in _INCIDENTAL})


class Journal:
    """What happened, in order, as plain data. Subscribers see each entry as it is added."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.subscribers: list[Callable[[dict[str, Any]], None]] = []
        self.recording: Recording | None = None
        self.log: RunLog | None = None
        self.elapsed: Callable[[], float] = lambda: 0.0

    def add(self, kind: str, **data: Any) -> Mapping[str, Any]:
        """Add an entry, or pass the one that an earlier execution left here.

        Raises:
            ReplayDiverged: the earlier execution left another one.
        """
        if self.recording is not None and kind in PATH:
            recorded = self.recording.take(kind, data)
            if recorded is not None:
                return recorded
            if self.recording.only:
                raise diverged(None, kind, data)
        entry = {"seq": len(self.entries), "kind": kind, **data}
        self.entries.append(entry)
        if self.log is not None:
            self.log.put(entry, self.elapsed())
        for subscriber in self.subscribers:
            subscriber(entry)
        return entry

    async def durable(self) -> None:
        """Wait until everything added so far is safe, where a store keeps it."""
        if self.log is not None:
            await self.log.durable()

    @property
    def place(self) -> int:
        """How many entries of the path come before what happens now."""
        if self.recording is not None and self.recording.peek() is not None:
            return self.recording.at
        return sum(entry["kind"] in PATH for entry in self.entries)

    def follow(self, *, only: bool = False) -> None:
        """Execute again along what is there."""
        self.recording = Recording(self.entries, only=only)

    def transcript_hash(self) -> str:
        """Id of the path taken: what the model said and was told, and every call with its result.

        Free of timing, of ids that differ between runs, and of the order in which parallel calls ended.
        """
        seen = [{k: v for k, v in e.items() if k not in _INCIDENTAL} for e in self.entries if e["kind"] in PATH]
        calls = sorted((e for e in self.entries if e["kind"] in CALLS), key=lambda e: (e["call_id"] or 0, e["seq"]))
        path = [seen, [{k: v for k, v in e.items() if k not in _INCIDENTAL} for e in calls]]
        # Canonical text, made directly: entries hold JSON data already, and a guest's odd text must not fail a run.
        return "sha256:" + sha256_hex(_path_text(path).encode("utf-8", "surrogatepass"))
