"""What a guest was given in an earlier execution, looked up before it is counted.

A guest that follows a record may be given recorded results in its own thread, many turns at a time. Nothing of the run is
touched there: afterwards the run passes the same turns one by one, compares and counts each as always, and where it does
not come to the same results, the guest was ahead on another path, and the run ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dse.contracts.schema import guest_from_wire
from dse.contracts.tool import ToolContract
from dse.runtime import sandbox

if TYPE_CHECKING:
    from dse.runtime.history import Recording

__all__ = ["Ahead"]


class Ahead:
    """Gives the recorded results of a turn; None where the run itself has to look.

    That is where anything but one delivery of all calls of this turn comes next, or one of them did not end well.

    Args:
        next_id: of the next call.
    """

    def __init__(self, recording: Recording, next_id: int, contracts: Mapping[str, ToolContract]) -> None:
        self._recording, self._contracts = recording, contracts
        self._at, self._next_id = recording.at, next_id

    def __call__(self, turn: sandbox.Waiting) -> dict[int, sandbox.Result] | None:
        path, at = self._recording.path, self._at
        if turn.prints:
            if at >= len(path) or (path[at]["kind"], path[at].get("text")) != ("print", turn.prints):
                return None
            at += 1
        ids = range(self._next_id, self._next_id + len(turn.calls))
        if turn.pending != tuple(call.call_id for call in turn.calls) or at >= len(path):
            return None
        if path[at]["kind"] != "delivered" or path[at]["calls"] != list(ids):
            return None
        results: dict[int, sandbox.Result] = {}
        for call, call_id in zip(turn.calls, ids, strict=True):
            record = self._recording.calls.get(call_id)
            entry = record.settled if record is not None else None
            if entry is None or entry["tool"] != call.name or entry.get("outcome") != "ok" or call.name not in self._contracts:
                return None
            results[call.call_id] = sandbox.Value(guest_from_wire(entry["result"], self._contracts[call.name].returns))
        self._at, self._next_id = at + 1, self._next_id + len(turn.calls)
        return results
