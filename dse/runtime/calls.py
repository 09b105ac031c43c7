"""What is kept of the calls of a run: a receipt of each, the key it is known by, and what follows from its end.

Executed calls and those that an earlier execution made are kept in the same way, so that nobody can tell them apart.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from dse.canonical import canonical_json, sha256_hex
from dse.contracts.tool import ToolContract
from dse.errors import DseError, RunSuspended, ToolFault
from dse.redaction import safe_message
from dse.runtime.history import NESTED, CallRecord
from dse.runtime.run import Run

__all__ = ["Calls", "faults_by_code", "own_class"]


class Calls:
    """The books of a dispatcher.

    Attributes:
        keys: idempotency keys by call id.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.keys: dict[int, str] = {}
        self._same: Counter[tuple[int, str, str, str]] = Counter()  # equal calls of an attempt

    def begin_stage(self) -> None:
        """Equal calls have equal keys in every stage, as in every attempt."""
        self._same.clear()

    def receipt(self, call_id: int, tool: str, parent: int | None) -> dict[str, Any]:
        """A new receipt: of a refused call, until it is known to be more. `parent` is the call that makes it."""
        receipt: dict[str, Any] = {
            "call_id": call_id, "tool": tool, "effect": None, "arguments": None, "arguments_hash": None, "result_hash": None,
            "outcome": "refused", "latency_s": 0.0, **({} if parent is None else {"parent": parent}),
        }  # fmt: skip
        self._run.receipts.append(receipt)
        return receipt

    def key(self, contract: ToolContract, arguments_hash: str, call_id: int) -> str:
        """The same for the same call of the same run, also when it is made again by a later attempt."""
        within = "" if call_id < NESTED else self.keys[call_id // NESTED]
        same = (self._run.attempt, within, contract.name, arguments_hash)
        self._same[same] += 1
        if call_id not in self.keys:
            text = f"{self._run.run_id}/{within}/{contract.name}/{arguments_hash}/{self._same[same]}"
            self.keys[call_id] = sha256_hex(text.encode())[:32]
        return self.keys[call_id]

    def refused(
        self, exc: BaseException, call_id: int, receipt: dict[str, Any], record: CallRecord | None, wire: dict[str, Any] | None,
        given: Mapping[str, Any],
    ) -> None:
        """Receipt and journal of a call that was not executed.

        Args:
            wire: its arguments, where they were valid.
            given: what else the journal says of them.
        """
        if isinstance(exc, DseError):
            fault, message, remedy = exc.code, exc.what, exc.remedy
        else:
            cancelled = isinstance(exc, asyncio.CancelledError)
            fault, message, remedy = None, "cancelled" if cancelled else safe_message(exc), ""
        recording, before = self._run.journal.recording, None if record is None else record.refused
        if recording is not None and before is not None and recording.ended_after(before) is not None:
            receipt.update(fault=before["fault"], message=self._run.secrets.text(before["message"]))
            return  # it was refused when its attempt ended, and that is what is told again
        receipt.update(fault=fault, message=self._run.secrets.text(message))
        if isinstance(exc, RunSuspended):
            return  # it waits, and nobody has refused it
        if before is None or before["fault"] != fault:
            self._run.journal.add("tool_refused", call_id=call_id, tool=receipt["tool"], fault=fault, message=message,
                                 remedy=remedy, **({} if wire is None else {"arguments": wire, **given}))  # fmt: skip

    def ended(
        self, contract: ToolContract, entry: Mapping[str, Any], receipt: dict[str, Any], text: bytes | None = None
    ) -> None:
        """What follows from the outcome of a call: its receipt, its effect, its secrets.

        Args:
            text: canonical JSON of the result, where somebody has it already.
        """
        run, value = self._run, entry["result"]
        ok = entry["outcome"] == "ok"
        receipt.update(outcome=entry["outcome"], latency_s=entry["latency_s"], idempotency_key=entry["idempotency_key"],
                       result_hash=f"sha256:{sha256_hex(text or canonical_json(value))}" if ok else None)  # fmt: skip
        if not ok:
            receipt.update(fault=entry["fault"], message=run.secrets.text(entry["message"] or ""))
        if contract.effect == "write" and entry["effect_state"] != "none":
            run.effects.add(contract.name, receipt["call_id"], entry["effect_state"], contract.idempotent)
        if contract.sensitive:
            run.secrets.remember(value, None if "return" in contract.sensitive else contract.sensitive)


def own_class(fault: ToolFault) -> type[ToolFault]:
    return next(cls for cls in type(fault).__mro__ if cls.__module__ == ToolFault.__module__)


@functools.cache
def faults_by_code() -> dict[str, type[ToolFault]]:
    """The faults of the error tree by code."""
    kinds = [ToolFault]
    for kind in kinds:
        kinds += [sub for sub in kind.__subclasses__() if sub.__module__ == ToolFault.__module__]
    return {kind.code: kind for kind in kinds}
