"""Decisions about calls: which calls need one, who takes it, and what becomes of a call that has to wait."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dse.contracts.conditions import all_hold
from dse.contracts.tool import ToolContract
from dse.contracts.toolbox import Toolbox
from dse.errors import CassetteMiss, InfrastructureError, RunSuspended, ToolDenied
from dse.redaction import redact, safe_message, without_paths
from dse.runtime.history import CallRecord, diverged
from dse.runtime.run import Run
from dse.threads import being_cancelled, in_thread

__all__ = ["ApprovalRequest", "Approvals"]

@dataclass(frozen=True)
class ApprovalRequest:
    """A call that waits for a decision, with what the decider must see."""

    tool: str
    call_id: int
    effect: str
    arguments: Mapping[str, Any]
    arguments_hash: str
    run_id: str


def _needs_approval(contract: ToolContract, wire: Mapping[str, Any], toolbox: Toolbox) -> bool:
    """Whether a call needs a decision; whatever cannot be decided does."""
    approval = contract.approval
    if approval is None:
        return False
    if approval.always:
        return True
    if approval.rule is not None:
        rule = toolbox.rules.get(f"{approval.rule}@{approval.version}")
        try:
            answer = None if rule is None else rule(copy.deepcopy(dict(wire)))
            return True if answer is None else bool(answer)
        except Exception:
            return True
    return all_hold(contract.conditions, wire, contract.parameters)


class Approvals:
    """Gets decisions about the calls of one run.

    Args:
        approve: as for the dispatcher.

    Attributes:
        pending: calls that wait for a decision nobody here can take.
    """

    def __init__(self, run: Run, approve: Callable[[ApprovalRequest], Any] | None) -> None:
        self._run = run
        self._approve = approve
        self.pending: list[dict[str, Any]] = []

    async def require(
        self, contract: ToolContract, wire: dict[str, Any], arguments_hash: str, call_id: int, record: CallRecord | None,
        toolbox: Toolbox,
    ) -> None:  # fmt: skip
        """Pass only a call that needs no decision, or was granted: before, from elsewhere, or now.

        Raises:
            ToolDenied: it was refused.
            RunSuspended: nobody here can decide.
            InfrastructureError: whoever was asked gave no decision.
        """
        if not _needs_approval(contract, wire, toolbox):
            return
        run = self._run
        if record is not None and record.approval is not None:  # decided before, and then something else ended the run
            return _decided(contract, record.approval["granted"], record.approval["reason"])
        decided = run.decisions.get(call_id)
        if decided is not None and decided.arguments_hash != arguments_hash:
            raise diverged(None, f"a decision about other arguments of {contract.name}", wire)
        if decided is not None:
            run.journal.add("approval", call_id=call_id, tool=contract.name, arguments_hash=arguments_hash,
                            granted=decided.granted, reason=decided.reason, by=decided.by, at=decided.at)  # fmt: skip
            return _decided(contract, decided.granted, decided.reason)
        if self._approve is None:
            self.pending.append({
                "tool": contract.name, "call_id": call_id, "effect": contract.effect,
                "arguments": redact(wire, contract.sensitive), "arguments_hash": arguments_hash})  # fmt: skip
            raise self.suspended(contract.name)
        request = ApprovalRequest(contract.name, call_id, contract.effect, copy.deepcopy(wire), arguments_hash, run.run_id)
        try:
            with run.waiting():
                decision = await self._decision(request)
        except (Exception, SystemExit, asyncio.CancelledError) as exc:
            if being_cancelled(exc) or isinstance(exc, CassetteMiss):
                raise
            raise InfrastructureError(
                f"No decision about {contract.name} could be had", value=safe_message(exc),
                remedy="The tool was not run; correct the function given as approve=.") from exc  # fmt: skip
        answer, reason = decision if isinstance(decision, tuple) and len(decision) == 2 else (decision, "")
        granted = answer is True  # anything else that happens to be true is no decision
        reason = without_paths(str(reason))
        run.journal.add("approval", call_id=call_id, tool=contract.name, arguments_hash=arguments_hash, granted=granted,
                        reason=reason)  # fmt: skip
        await run.journal.durable()
        _decided(contract, granted, reason)

    def suspended(self, name: str) -> RunSuspended:
        """What ends a run that waits. Calls of the same round that wait as well join this very list."""
        run = self._run
        remedy = "Decide with Store.approve or Store.deny (or `dse runs approve`), then resume the run."
        if run.journal.log is None:
            remedy = "Give the program approve=, a function that decides, or a store=, where the run can wait."
        return RunSuspended(f"{name} needs a decision before it runs", value=run.run_id, remedy=remedy,
                            run_id=run.run_id, pending=self.pending)  # fmt: skip

    async def _decision(self, request: ApprovalRequest) -> Any:
        approve = self._approve
        assert approve is not None
        if inspect.iscoroutinefunction(approve) or inspect.iscoroutinefunction(getattr(approve, "__call__", None)):  # noqa: B004
            return await approve(request)
        # In a thread: a person who is asked there must not stop every other run.
        decision = await in_thread("dse-approval", lambda: approve(request))
        return await decision if inspect.isawaitable(decision) else decision


def _decided(contract: ToolContract, granted: bool, reason: str) -> None:
    if not granted:
        raise ToolDenied(f"{contract.name} was denied" + (f": {reason}" if reason else ""),
                         remedy="Do not try the same call again.")  # fmt: skip
