"""Runs that outlive their process: how they begin and stop in a store, and how they go on."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import anyio

from dse.canonical import canonical_json
from dse.contracts.signature import SignatureSpec
from dse.contracts.tool import ToolContract
from dse.contracts.toolbox import Toolbox
from dse.errors import (
    DecisionRefused,
    EffectUnknown,
    RunNotResumable,
    SandboxUnavailable,
    ToolFailed,
    Unserialisable,
)
from dse.plan import Plan
from dse.runtime.clock import spent_by_attempt
from dse.runtime.history import Frozen, Recording, shown_id
from dse.runtime.run import Decided, Run
from dse.threads import have

if TYPE_CHECKING:
    from dse.models.lm import LanguageModel
    from dse.store.journal import Store
    from dse.store.runlog import Durability
    from dse.store.runs import Kept

__all__ = ["Decision", "begin", "copied", "revive", "settle", "stop", "taken"]


@dataclass(frozen=True)
class Decision:
    """What is decided about a write that was started and of which nobody recorded the end.

    ``Decision("retry")`` executes it again, ``Decision("done", value)`` says that it happened and gave `value`,
    ``Decision("fail", reason=...)`` tells the program that it failed (its effect stays ``unknown``).
    """

    action: Literal["retry", "done", "fail"]
    value: Any = None
    reason: str = ""
    by: str = ""

    def __post_init__(self) -> None:
        if self.action not in ("retry", "done", "fail"):
            raise DecisionRefused("No such decision", value=self.action, remedy="Decide retry, done or fail.")


# --- beginning and stopping


def head(run: Run, model: LanguageModel | None) -> dict[str, Any]:
    """What the store notes about a run besides its journal."""
    secrets = run.secrets
    hidden = {"names": sorted(secrets.names), "results": sorted(secrets.results), "replies": secrets.replies,
              **({} if secrets.fields is None else {"fields": sorted(secrets.fields)})}  # fmt: skip
    return {"signature": run.spec.name, "mode": run.plan.mode, "model": model.name if model else None, "hidden": hidden}


async def begin(run: Run, store: Store | None, durability: Durability, model: LanguageModel | None) -> None:
    """Note that a run begins. With ``durability="exit"`` the store hears of it when it stops."""
    log = store.new_log(run.run_id, run.program_id, durability) if store is not None else None
    run.journal.log = log
    run.journal.add("run_started", program_id=run.program_id, inputs=run.wire_inputs, seed=run.seed,
                    clock=run.clock.isoformat(), mode=run.plan.mode)  # fmt: skip
    if store is not None and log is not None and log.eager:
        try:
            await store.threaded(store.open_run, log, head(run, model))
        except BaseException:
            store.let_go(log)
            raise


async def stop(run: Run, store: Store, outcome: str, receipt: Mapping[str, Any], model: LanguageModel | None) -> None:
    """Write what is left of the journal and how the run stopped; a cancelled run is kept as well.

    Raises:
        StoreUnavailable, RunTaken
    """
    log: Any = run.journal.log
    if log is None:
        return
    with anyio.CancelScope(shield=True):
        try:
            if log.epoch == 0:
                await store.threaded(store.open_run, log, head(run, model))
            await log.flush(again=True)
            pending = run.dispatcher.approvals.pending if outcome == "suspended" else ()
            await store.threaded(store.stop_run, log, outcome, receipt, list(pending), run.expires_s)
        except BaseException:
            store.let_go(log)
            raise


# --- going on


async def taken(store: Store, run_id: str, program_id: str, *, take_over: bool, snapshots: bool) -> Kept:
    """Have a run of the store, with everything about it.

    Raises:
        RunNotResumable, RunTaken, JournalTampered
    """

    def give_back(kept: Kept) -> None:
        if kept.log is not None:
            store.release(kept.log, kept.row["outcome"])

    return await have(lambda: store.take_run(run_id, program_id, take_over=take_over, snapshots=snapshots), give_back, store.threaded)


def revive(kept: Kept, spec: SignatureSpec, plan: Plan, model: LanguageModel | None, *, only: bool = False) -> Run:
    """The run that a journal belongs to, ready to execute along it.

    Raises:
        RunNotResumable: it never began.
    """
    if not kept.entries:
        raise RunNotResumable("The run ended before it began", value=kept.row["run_id"], remedy="Start a new one.")
    started = kept.entries[0]
    run = Run(
        run_id=kept.row["run_id"], program_id=kept.row["program_id"], spec=spec, plan=plan,
        inputs=spec.validate_inputs(started["inputs"]), model=model, seed=started["seed"],
        clock=dt.datetime.fromisoformat(started["clock"]),
    )  # fmt: skip
    run.journal.entries = list(kept.entries)
    run.timer.spent_s = spent_by_attempt(kept.entries, kept.active_s)
    run.decisions = {call_id: Decided(**one) for call_id, one in kept.decisions.items()}
    if kept.snapshot is not None and not only:
        from dse.runtime.sandbox import interpreter_version

        data, driver, seq, interpreter = kept.snapshot
        if interpreter == interpreter_version():  # another one cannot load it: its scripts are executed again
            run.frozen = Frozen(data, driver, seq, interpreter)
    run.journal.log = kept.log
    run.follow(only=only)
    return run


def settle(run: Run, toolbox: Toolbox, decisions: Mapping[int, Decision]) -> None:
    """Take decisions about writes of which nobody knows whether they happened.

    Raises:
        EffectUnknown: one is undecided; the run is as it was.
        DecisionRefused: about a call that needs none, or with a value that its contract does not allow.
    """
    recording = run.journal.recording
    assert recording is not None
    unknown = _unknown(recording, toolbox)
    if extra := sorted(set(decisions) - set(unknown)):
        raise DecisionRefused("These calls need no decision", value=str(extra),
                              remedy=f"Undecided: {sorted(unknown) or 'none'}.")  # fmt: skip
    if open_calls := sorted(set(unknown) - set(decisions)):
        raise _undecided(run, {one: unknown[one] for one in open_calls})
    checked = {call_id: _checked(decision, unknown[call_id][0], toolbox) for call_id, decision in decisions.items()}
    for call_id, decision in sorted(checked.items()):
        contract, intent = unknown[call_id]
        fact = {"call_id": call_id, "tool": contract.name, "by": decision.by, "at": dt.datetime.now(dt.UTC).isoformat()}
        run.journal.add("decision", action=decision.action, reason=decision.reason, **fact)
        if decision.action == "retry":
            continue
        done = decision.action == "done"
        fault = ToolFailed(f"{contract.name} failed: {decision.reason or 'somebody decided so'}; it is not known whether it "
                           "took effect")  # fmt: skip
        run.journal.add(
            "tool_outcome", call_id=call_id, tool=contract.name, outcome="ok" if done else "fault",
            result=decision.value if done else None, fault=None if done else fault.code, message=None if done else fault.what,
            remedy=None if done else "", effect_state="completed" if done else "unknown", latency_s=0.0,
            idempotency_key=intent["idempotency_key"],
        )  # fmt: skip
    run.follow()


def may_go_on(run: Run, record: Recording, lost: SandboxUnavailable) -> None:
    """Whether a run whose guest died may go on where it is: not while nobody knows of a write whether it happened.

    Raises:
        EffectUnknown: a decision is needed, which can be given where the run is kept.
        SandboxUnavailable: `lost`, where it is not.
    """
    if unknown := _unknown(record, run.dispatcher.toolbox):
        if run.journal.log is None:
            raise lost
        raise _undecided(run, unknown) from lost


def _undecided(run: Run, unknown: Mapping[int, tuple[ToolContract, Mapping[str, Any]]]) -> EffectUnknown:
    calls = [{"call_id": one, "tool": contract.name, "arguments": intent["arguments"]}
             for one, (contract, intent) in unknown.items()]  # fmt: skip
    return EffectUnknown(
        "A write was started, and nobody recorded whether it happened",
        value=", ".join(f"{call['tool']}#{shown_id(call['call_id'])}" for call in calls),
        remedy="Find out, then resume with a decision: dse.Decision('done', value), ('retry') or ('fail', reason=...).",
        run_id=run.run_id, unknown=run.secrets.hide(calls),
    )  # fmt: skip


def _unknown(recording: Recording, toolbox: Toolbox) -> dict[int, tuple[ToolContract, Mapping[str, Any]]]:
    found = {}
    for call_id, record in sorted(recording.calls.items()):
        tool = toolbox.get(record.intent["tool"]) if record.intent is not None else None
        if record.open_since is not None and tool is not None and record.intent is not None:
            if tool.contract.effect == "write" and not tool.contract.idempotent and tool.nests is None:
                found[call_id] = (tool.contract, record.intent)
    return found


def _checked(decision: Decision, contract: ToolContract, toolbox: Toolbox) -> Decision:
    """The decision with its value in wire form."""
    if decision.action != "done":
        return decision
    from dse.contracts.schema import dump_wire

    returns = toolbox[contract.name].returns
    try:
        wire = dump_wire(returns, returns.validate_python(decision.value, from_attributes=True), contract.returns)
        canonical_json(wire)
    except (ValueError, Unserialisable) as exc:
        raise DecisionRefused(f"{contract.name} could not have returned this", value=repr(decision.value),
                              remedy=f"Give a value that its contract allows ({type(exc).__name__}).") from None  # fmt: skip
    return Decision("done", wire, decision.reason, decision.by)


# --- exploring


def copied(entries: Sequence[Mapping[str, Any]], call_id: int, outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A journal up to a call's outcome, which is replaced.

    Raises:
        DecisionRefused: the call has no recorded outcome.
    """
    kept: list[dict[str, Any]] = []
    for entry in entries:
        if entry["kind"] == "tool_outcome" and entry["call_id"] == call_id:
            kept.append({**entry, **outcome})
            return [{**one, "seq": number} for number, one in enumerate(kept)]
        kept.append(dict(entry))
    raise DecisionRefused("The run has no call of this number with an outcome", value=call_id,
                          remedy="`dse runs show --journal` lists its calls.")  # fmt: skip


def another_outcome(toolbox: Toolbox, entries: Sequence[Mapping[str, Any]], call_id: int, value: Any,
                    error: str | None) -> dict[str, Any]:  # fmt: skip
    """What replaces the recorded outcome of a call.

    Raises:
        DecisionRefused: a value that the call's contract does not allow.
    """
    if error is not None:
        fault = ToolFailed(error)
        return {"outcome": "fault", "result": None, "fault": fault.code, "message": fault.what, "remedy": ""}
    name = next((e["tool"] for e in entries if e["kind"] == "tool_intent" and e["call_id"] == call_id), None)
    tool = toolbox.get(name) if name is not None else None
    if tool is not None:
        value = _checked(Decision("done", value), tool.contract, toolbox).value
    return {"outcome": "ok", "result": value, "fault": None, "message": None, "remedy": None}


def new_id() -> str:
    return str(uuid.uuid4())
