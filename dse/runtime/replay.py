"""Calls that an earlier execution made: compared and counted again, and answered from its journal, not by a tool."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from dse.canonical import canonical_json, sha256_hex
from dse.contracts.tool import Tool, ToolContract
from dse.errors import ToolDenied, ToolFailed, ToolFault, ToolRateLimited
from dse.redaction import redact
from dse.runtime.calls import Calls, faults_by_code
from dse.runtime.history import NESTED, CallRecord, Recording, diverged
from dse.runtime.run import Run

__all__ = ["Replay"]

Arguments = tuple[dict[str, Any], dict[str, Any], str]  # in wire form, as Python values, hash of the wire form


class Replay:
    """Answers calls from the record that a run follows."""

    def __init__(self, run: Run, calls: Calls) -> None:
        self._run = run
        self._calls = calls
        self._indexed: Recording | None = None
        self._made: dict[int, list[int]] = {}  # by the call that made them

    def compare(self, record: CallRecord, name: str, wire: Mapping[str, Any]) -> None:
        """The call must be the one that was recorded.

        Raises:
            ReplayDiverged
        """
        for entry in (record.intent, record.settled):
            arguments = None if entry is None else entry.get("arguments")
            if entry is not None and (entry["tool"] != name or (arguments is not None and arguments != wire)):
                raise diverged(entry, f"{name}()", {"arguments": dict(wire)})

    def as_recorded(self, record: CallRecord, given: Mapping[str, Any], made: Arguments,
                    read: Callable[[dict[str, Any]], Arguments]) -> Arguments:  # fmt: skip
        """The arguments that were made of the same before, instead of those that were `made` of it now.

        Args:
            read: makes arguments of recorded ones.

        Raises:
            ReplayDiverged: they are needed as Python values, and cannot be read again.
        """
        known = next((entry for entry in (record.intent, record.proposed, record.settled)
                      if entry is not None and entry.get("given") == given["given"] is not None), None)  # fmt: skip
        if known is None or known["arguments"] == made[0]:
            return made
        wire = copy.deepcopy(known["arguments"])
        if record.settled is not None:
            return wire, {}, f"sha256:{sha256_hex(canonical_json(wire))}"
        try:
            again = read(wire)
        except ToolFault:
            again = made
        if again[0] != wire:
            raise diverged(known, f"other arguments of {known['tool']}()", {"arguments": again[0]})
        return again

    def new_here(self, recording: Recording, record: CallRecord | None, contract: ToolContract, receipt: dict[str, Any]) -> None:
        """A call without a recorded result may be executed where the record ends, and only there.

        Raises:
            LimitExceeded: its attempt ended there. ReplayDiverged: something else was recorded.
        """
        last = None if record is None else record.outcome or record.refused
        ended = recording.ended_after(last) if last is not None else None
        if ended is not None and ended.get("limit"):  # it was cancelled when its attempt ended
            if record is not None and record.outcome is not None:
                self._calls.ended(contract, record.outcome, receipt)
            self._run.ran_out(ended)
            raise self._run.limit(ended["limit"], "all", "all")
        if ended is not None or recording.only:
            raise diverged(ended, "a call that was not recorded", {})
        self._run.timer.caught_up()

    def answer(self, contract: ToolContract, entry: Mapping[str, Any], receipt: dict[str, Any]) -> Any:
        """The recorded result of a call, with everything that is counted because of it; its fault is raised."""
        if entry["kind"] == "tool_outcome":
            self._calls.ended(contract, entry, receipt)
        if entry.get("outcome") == "ok":
            return copy.deepcopy(entry["result"])
        fault = faults_by_code().get(entry["fault"], ToolFailed)(entry["message"], remedy=entry["remedy"])
        receipt.update(fault=fault.code, message=self._run.secrets.text(fault.what))
        raise fault

    def told(self, call_id: int) -> Mapping[str, Any]:
        """The entry with what the program was told of a call.

        Raises:
            ReplayDiverged: there is no record of it.
        """
        recording = self._run.journal.recording
        record = recording.calls.get(call_id) if recording else None
        entry = record.settled if record else None
        if entry is None and record is not None and call_id >= NESTED:
            entry = record.outcome or record.refused  # cancelled with the script's call, which is what was told
        if entry is None:
            raise diverged(None, f"call {call_id}", {})
        return entry

    def made_by(self, call_id: int) -> list[int]:
        """Ids of the recorded calls that a script's call made, in order."""
        recording = self._run.journal.recording
        if recording is not self._indexed:  # once for a record: every call of it comes here
            self._indexed, self._made = recording, {}
            for one in sorted(recording.calls if recording else ()):
                if one >= NESTED:
                    self._made.setdefault(one // NESTED, []).append(one)
        return self._made.get(call_id, [])

    def count(self, call_id: int, entry: Mapping[str, Any], tool: Tool | None) -> None:
        """Count a call as if it were made again, without comparing or answering it.

        Args:
            entry: as `told` gave it.
            tool: that was called; None where the name stood for none.
        """
        run = self._run
        recording = run.journal.recording
        intent = recording.calls[call_id].intent if recording else None
        receipt = self._calls.receipt(call_id, entry["tool"], call_id // NESTED if call_id >= NESTED else None)
        meter = run.meter
        meter.tool_calls += 1
        if intent is None:
            receipt.update(fault=entry.get("fault"), message=run.secrets.text(entry.get("message") or ""))
        if tool is None:
            return
        contract = tool.contract
        receipt["effect"] = contract.effect
        if (wire := (intent or entry).get("arguments")) is not None:  # a refused call has them where they were valid
            if contract.sensitive:
                run.secrets.remember(wire, contract.sensitive)
            arguments_hash = f"sha256:{sha256_hex(canonical_json(wire))}"
            receipt.update(arguments=redact(wire, contract.sensitive), arguments_hash=arguments_hash)
            if intent is not None:
                self._calls.keys[call_id] = intent["idempotency_key"]
            self._calls.key(contract, arguments_hash, call_id)
        if intent is None:
            if entry["fault"] in (ToolRateLimited.code, ToolDenied.code):
                meter.charge_tool(contract.name, 0.0)  # it came as far as being counted, and cost nothing
            return
        meter.charge_tool(contract.name, contract.cost_usd)
        if entry["outcome"] == "cancelled":
            self._calls.ended(contract, entry, receipt)
            return
        try:
            self.answer(contract, entry, receipt)
        except ToolFault:
            pass
