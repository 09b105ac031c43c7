"""The part of the store that keeps runs: who has them, their journals, snapshots, decisions and receipts."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dse.canonical import canonical_json
from dse.errors import DecisionRefused, JournalTampered, RunNotResumable, RunTaken, StoreError, StoreUnavailable, UserError
from dse.redaction import Secrets
from dse.store import owner
from dse.store.review import ReviewTables, outcome_of
from dse.store.runlog import Durability, RunLog, check_head, decode_event, decode_snapshot

if TYPE_CHECKING:
    from dse.store.writer import Writer

__all__ = ["Kept", "RunTables", "request"]

FINAL = ("ok", "failed")
"""Outcomes after which a run is over; every other one can go on."""


@dataclass(frozen=True)
class Kept:
    """A run as the store has it.

    Attributes:
        row: what is noted of it; its outcome is that of when it stopped.
        entries: its journal, in clear.
        active_s: active seconds before each entry, counted per attempt.
        snapshot: the newest guest: dump, driver data, position and interpreter version, or None.
        decisions: by call id: granted, reason, by, at, arguments_hash.
        log: what goes on writing; None when it was only read.
    """

    row: Mapping[str, Any]
    entries: list[dict[str, Any]]
    active_s: list[float]
    snapshot: tuple[bytes, dict[str, Any], int, str] | None
    decisions: Mapping[int, Mapping[str, Any]]
    log: RunLog | None


class RunTables(ReviewTables):
    """Mixed into `Store`."""

    _directly: Callable[..., contextlib.AbstractContextManager[Callable[[str, Any], Any]]]
    _insertion: Callable[[str, Mapping[str, Any]], str]
    _read: Callable[[str, str], list[dict[str, Any]]]
    _mark: str  # stands for a parameter in the text of a statement
    writer: Writer
    place: str  # the same for all stores of one database
    now: Callable[[], dt.datetime] = staticmethod(lambda: dt.datetime.now(dt.UTC))

    # --- a run begins, goes on, stops

    def new_log(self, run_id: str, program_id: str, durability: Durability) -> RunLog:
        """The log of a run that the store does not know yet."""
        _open.add((self.place, run_id))
        return RunLog(self, run_id, program_id, 0, durability)  # type: ignore[arg-type]

    def open_run(self, log: RunLog, head: Mapping[str, Any]) -> None:
        """A new run that this process has, with what its log holds so far, in one transaction.

        Args:
            head: signature, mode, model, hidden (what its `Secrets` hides).

        Raises:
            StoreError: the store has a run of that id already.
        """
        self.writer.check()
        now = self.now().isoformat()
        log.hidden = json.dumps(head["hidden"])
        values = {**head, "hidden": log.hidden, "outcome": "running", "created": now, "updated": now,
                  "receipt": log.receipt, "owner": owner.me(), "epoch": 1, "durability": log.durability,
                  "run_id": log.run_id, "program_id": log.program_id, "head": log.head()}  # fmt: skip
        with self._directly(power=log.durability == "power") as execute:
            if not execute(f"{self._insertion('runs', values)} ON CONFLICT DO NOTHING", values).rowcount:
                raise StoreError("The store has a run of this id already", value=log.run_id,
                                 remedy="Give every run an id of its own.")  # fmt: skip
            if rows := log.waiting():
                execute(self._insertion("events", rows[0]), rows)
        log.opened(1)

    def take_run(self, run_id: str, program_id: str | None, *, take_over: bool = False, snapshots: bool = True) -> Kept:
        """Have a run that stopped or whose process is gone, to go on with it.

        Args:
            take_over: also when another machine had it last. What that one still does is not recorded any more.

        Raises:
            RunNotResumable: no such run, finished, or another program's.
            RunTaken: a process that lives has it.
            JournalTampered: something of it was not written with the store's key.
        """
        self.writer.check()
        mine, mark, names = (self.place, run_id), self._mark, ("program_id", "outcome", "owner", "epoch", "durability")
        lock = " FOR UPDATE" if self.dialect == "postgresql" else ""
        epoch = 0
        try:
            with self._directly(power=False) as execute:
                found = execute(f"SELECT {', '.join(names)} FROM runs WHERE run_id = {mark}{lock}", (run_id,)).fetchone()
                row: Any = None if found is None else dict(zip(names, found, strict=True))
                self._check_takeable(row, run_id, program_id, take_over)
                epoch = row["epoch"] + 1
                _open.add(mine)  # before anybody else of this process can look
                execute(f"UPDATE runs SET epoch = {mark}, owner = {mark}, outcome = 'running', updated = {mark} "
                        f"WHERE run_id = {mark}", (epoch, owner.me(), self.now().isoformat(), run_id))  # fmt: skip
        except BaseException:
            if epoch:
                _open.discard(mine)
            raise
        try:
            kept, last = self._journal(run_id, snapshots)
            length, about = len(kept.entries), {name: kept.row[name] for name in ("hidden", "receipt")}
            log = RunLog(self, run_id, row["program_id"], epoch, row["durability"], mac=last, length=length, **about)  # type: ignore[arg-type]
            log.opened(epoch)
        except BaseException:
            self._release(run_id, epoch, row["outcome"])
            raise
        return replace(kept, row={**kept.row, "outcome": row["outcome"]}, log=log)

    def _check_takeable(self, row: Any, run_id: str, program_id: str | None, take_over: bool) -> None:
        if row is None:
            raise RunNotResumable("The store has no such run", value=run_id, remedy="`dse runs list` shows what there is.")
        if row["outcome"] in FINAL:
            raise RunNotResumable("The run is over", value=f"{run_id}: {row['outcome']}",
                                  remedy="Its receipt has the result; `dse runs fork` explores another outcome.")  # fmt: skip
        if row["durability"] is None:
            raise RunNotResumable("The run was kept without what it takes to go on", value=run_id,
                                  remedy="Runs of this version keep it.")  # fmt: skip
        if program_id is not None and row["program_id"] != program_id:
            raise RunNotResumable("The run belongs to another program", value=row["program_id"],
                                  remedy="Load the artifact, tools and model that it was started with.")  # fmt: skip
        has = row["owner"]
        if has is None:
            return
        if owner.is_here(has):
            if not owner.is_alive(has):
                return
            if not (has == owner.me() and (self.place, run_id) not in _open):
                raise RunTaken("A process that lives has this run", value=f"process {has.split('|')[1]}",
                               remedy="Wait for it, or end it.")  # fmt: skip
        elif not take_over:
            raise RunTaken("A process on another machine has, or had, this run", value=has.split("/")[0],
                           remedy="When it is gone: resume with take_over=True (--take-over).")  # fmt: skip

    def stop_run(self, log: RunLog, outcome: str, receipt: Mapping[str, Any],
                 pending: Sequence[Mapping[str, Any]] = (), expires_s: float | None = None) -> None:  # fmt: skip
        """Write how a run stopped and let it go; what waits for a decision is registered.

        Raises:
            RunTaken: another process has it.
        """
        now = self.now()
        log.receipt = self.keys.seal(canonical_json(receipt).decode())
        expires = None if expires_s is None else (now + dt.timedelta(seconds=expires_s)).isoformat()
        try:
            ended = {"outcome": outcome, "receipt": log.receipt, "head": log.head(), "updated": now.isoformat()}
            with self._directly(power=log.durability == "power") as execute:
                mark = self._mark
                done = execute(f"UPDATE runs SET owner = NULL, {', '.join(f'{name} = {mark}' for name in ended)} "
                               f"WHERE run_id = {mark} AND epoch = {mark}", (*ended.values(), log.run_id, log.epoch))  # fmt: skip
                if not done.rowcount:
                    raise RunTaken("Another process took this run over", value=log.run_id)
                for one in pending:
                    row = {"run_id": log.run_id, "call_id": one["call_id"], "tool": one["tool"], "effect": one["effect"],
                           "arguments": self.keys.seal(canonical_json(one["arguments"]).decode()),
                           "arguments_hash": one["arguments_hash"], "requested": now.isoformat(), "expires": expires}  # fmt: skip
                    row |= {"key_id": self.keys.current, "mac": self.keys.mac(*request(log.program_id, row))}
                    execute(f"{self._insertion('approvals', row)} ON CONFLICT DO NOTHING", row)
                if outcome in FINAL:
                    execute(f"DELETE FROM snapshots WHERE run_id = {mark}", (log.run_id,))
        finally:
            self.let_go(log)

    def let_go(self, log: RunLog) -> None:
        """This process does nothing more with a run."""
        _open.discard((self.place, log.run_id))

    def has(self, log: RunLog) -> bool:
        """Whether this process is at a run."""
        return (self.place, log.run_id) in _open

    def release(self, log: RunLog, outcome: str) -> None:
        """Give a run back as it was."""
        self._release(log.run_id, log.epoch, outcome)

    def _release(self, run_id: str, epoch: int, outcome: str) -> None:
        runs = self._tables["runs"]
        try:
            with self._write() as c:
                c.execute(runs.update().where(runs.c.run_id == run_id, runs.c.epoch == epoch).values(owner=None, outcome=outcome))
        finally:  # where even that cannot be written, it still must not look as if this process were at it
            _open.discard((self.place, run_id))

    # --- reading

    def journal(self, run_id: str, *, snapshots: bool = True) -> Kept:
        """A run with its journal in clear, verified.

        Raises:
            RunNotResumable: no such run. JournalTampered: something was not written with the store's key.
        """
        return self._journal(run_id, snapshots)[0]

    def _journal(self, run_id: str, snapshots: bool) -> tuple[Kept, str]:
        """A run, and the MAC that its next entry is bound to."""
        found = self._signed(lambda: self._read("runs", run_id), run_id)
        if not found:
            raise RunNotResumable("The store has no such run", value=run_id, remedy="`dse runs list` shows what there is.")
        row = found[0]
        if row["durability"] is None:
            raise RunNotResumable("The run was kept without what it takes to go on", value=run_id,
                                  remedy="Runs of this version keep it.")  # fmt: skip
        # Snapshot first, then entries: a process that has the run may be adding to them.
        taken = self._signed(lambda: self._read("snapshots", run_id), run_id) if snapshots else []
        rows = self._signed(lambda: self._read("events", run_id), run_id)
        macs: list[str] = []
        entries: list[dict[str, Any]] = []
        for number, event in enumerate(rows):
            entries.append(decode_event(self.keys, run_id, row["program_id"], macs[-1] if macs else "", event, number))
            macs.append(event["mac"])
        about = (row["durability"], row["hidden"], row["receipt"])
        check_head(self.keys, run_id, row["program_id"], row["head"], macs, about)
        snapshot = None
        for shot in taken:
            data, driver = decode_snapshot(self.keys, run_id, row["program_id"], macs, shot)
            snapshot = (data, driver, shot["seq"], shot["interpreter"])
        kept = Kept(row, entries, [event["active_s"] for event in rows], snapshot, self._decisions(run_id, row), None)
        return kept, macs[-1] if macs else ""

    def _signed(self, read: Callable[[], list[Any]], run_id: str) -> list[Any]:
        """Rows of a run that are about to be verified.

        Raises:
            JournalTampered: a value is not even of its column's kind.
        """
        try:
            return read()
        except (TypeError, ValueError) as exc:
            failure = exc
        except StoreUnavailable as exc:
            if "decode to UTF-8" not in str(exc.value):
                raise
            failure = exc.__cause__ or exc  # type: ignore[assignment]
        raise JournalTampered(f"A value kept of run {run_id} is not what its column holds", value=str(failure),
                              remedy="Do not use it; look for who can write to the store.") from None  # fmt: skip

    def runs(self, limit: int = 50, *, outcome: str | None = None) -> list[dict[str, Any]]:
        """The newest runs: run_id, signature, mode, model, outcome, created. A run whose process is gone is ``lost``."""
        t = self._tables["runs"]
        columns = [t.c.run_id, t.c.signature, t.c.mode, t.c.model, t.c.outcome, t.c.created, t.c.owner]
        query = self._sa.select(*columns).order_by(t.c.created.desc())
        if outcome is not None:
            query = query.where(t.c.outcome == ("running" if outcome == "lost" else outcome))
        if outcome not in ("lost", "running"):  # of those only the process says which they are
            query = query.limit(limit)
        shown = [{**row, "outcome": outcome_of(row)} for row in self._rows(query)]
        for entry in shown:
            del entry["owner"]
        return [entry for entry in shown if outcome in (None, entry["outcome"])][:limit]

    def run(self, run_id: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Receipt (None while it runs) and journal of one run, without what is sensitive.

        Raises:
            StoreError: no such run, or changed by somebody else.
        """
        t, e = self._tables["runs"], self._tables["events"]
        found = self._rows(self._sa.select(t).where(t.c.run_id == run_id))
        if not found:
            raise StoreError("The store has no such run", value=run_id, remedy="`dse runs list` shows what there is.")
        if found[0]["durability"] is None:  # kept by an earlier version, which hid things before it wrote
            rows = self._rows(self._sa.select(e.c.entry).where(e.c.run_id == run_id).order_by(e.c.seq))
            return json.loads(found[0]["receipt"]), [json.loads(row["entry"]) for row in rows]
        kept = self.journal(run_id, snapshots=False)
        return json.loads(self.keys.open(kept.row["receipt"])), hidden(kept.entries, json.loads(kept.row["hidden"]))

    # --- decisions about calls that wait

    def pending(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """Calls that wait for a decision: run_id, call_id, tool, effect, arguments, arguments_hash, requested, expires.

        Raises:
            JournalTampered: what would be shown is not what a run asked for.
        """
        t, runs = self._tables["approvals"], self._tables["runs"]
        query = self._sa.select(t, runs.c.program_id).join(runs, runs.c.run_id == t.c.run_id).where(t.c.granted.is_(None))
        query = query.order_by(t.c.requested, t.c.call_id)
        if run_id is not None:
            query = query.where(t.c.run_id == run_id)
        now = self.now().isoformat()
        names = ("run_id", "call_id", "tool", "effect", "arguments", "arguments_hash", "requested", "expires")
        rows = self._signed(lambda: self._rows(query), run_id or "that waits")
        for row in rows:
            self._check_request(row["program_id"], row)
        return [{**{name: row[name] for name in names}, "arguments": json.loads(self.keys.open(row["arguments"]))}
                for row in rows if row["expires"] is None or row["expires"] > now]  # fmt: skip

    def _check_request(self, program_id: Any, row: Mapping[str, Any]) -> None:
        self.keys.verify(row["mac"], *request(program_id, row), key=row["key_id"],
                         what=f"Call {row['call_id']} of run {row['run_id']}, which waits for a decision,")  # fmt: skip

    def approve(self, run_id: str, call_id: int, *, arguments_hash: str, by: str) -> None:
        """Let a call happen when its run is resumed.

        Args:
            arguments_hash: of the arguments that were shown: a decision holds for these and no others.

        Raises:
            DecisionRefused: nothing of that kind waits, other arguments, decided already, or too late.
            JournalTampered: what waits is not what the run asked for.
        """
        self._decide(run_id, call_id, arguments_hash, True, "", by)

    def deny(self, run_id: str, call_id: int, *, arguments_hash: str, by: str, reason: str = "") -> None:
        """Refuse a call: its program gets a ``ToolDenied`` with the reason, and may handle it. Raises like `approve`."""
        self._decide(run_id, call_id, arguments_hash, False, reason, by)

    def _decide(self, run_id: str, call_id: int, arguments_hash: str, granted: bool, reason: str, by: str) -> None:
        t, runs, now = self._tables["approvals"], self._tables["runs"], self.now().isoformat()
        try:
            (reason + by).encode()
        except UnicodeEncodeError:
            raise DecisionRefused("A reason or name that is not text", value=repr(reason + by), remedy="Write it anew.") from None
        reason = self.keys.seal(reason)
        where = (t.c.run_id == run_id, t.c.call_id == call_id)
        with self._write(power=True) as c:
            row = c.execute(self._sa.select(t).where(*where).with_for_update()).mappings().first()
            if row is None:
                raise DecisionRefused("No such call waits for a decision", value=f"{run_id} call {call_id}",
                                      remedy="`dse runs pending` shows what does.")  # fmt: skip
            if row["granted"] is not None:
                raise DecisionRefused("It was decided already", value=f"by {row['decided_by']}, {row['decided_at']}",
                                      remedy="A decision is not taken back; resume the run.")  # fmt: skip
            if row["arguments_hash"] != arguments_hash:
                raise DecisionRefused("The decision is about other arguments than those that wait", value=arguments_hash,
                                      remedy="Look at the call again, and decide about what it shows.")  # fmt: skip
            if row["expires"] is not None and row["expires"] <= now:
                raise DecisionRefused("It is too late for a decision", value=f"expired {row['expires']}",
                                      remedy="Resume the run: the call is denied there.")  # fmt: skip
            program_id = c.execute(self._sa.select(runs.c.program_id).where(runs.c.run_id == run_id)).scalar()
            self._check_request(program_id, row)
            mac = self.keys.mac("decision", run_id, program_id, call_id, arguments_hash, int(granted), reason, by, now)
            c.execute(t.update().where(*where, t.c.granted.is_(None)).values(
                granted=int(granted), reason=reason, decided_by=by, decided_at=now, key_id=self.keys.current, mac=mac))  # fmt: skip

    def _decisions(self, run_id: str, run: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        now = self.now().isoformat()
        decisions: dict[int, dict[str, Any]] = {}
        for row in self._signed(lambda: self._read("approvals", run_id), run_id):
            if row["granted"] is None:
                self._check_request(run["program_id"], row)
                if row["expires"] is None or row["expires"] > now:
                    continue
                granted, reason, by, at = False, "nobody decided in time", "expiry", row["expires"]
            else:
                granted, reason, by, at = bool(row["granted"]), row["reason"], row["decided_by"], row["decided_at"]
                self.keys.verify(
                    row["mac"], "decision", run_id, run["program_id"], row["call_id"], row["arguments_hash"],
                    row["granted"], reason, by, at, key=row["key_id"],
                    what=f"The decision about call {row['call_id']} of run {run_id}",
                )  # fmt: skip
                reason = self.keys.open(reason)
            decisions[row["call_id"]] = {"granted": granted, "reason": reason, "by": by, "at": at,
                                         "arguments_hash": row["arguments_hash"]}  # fmt: skip
        return decisions

    # --- other uses of a journal

    def copy_run(self, head: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], durability: Durability) -> None:
        """A new run that begins with the journal of another one, signed anew, and stands still until it is resumed."""
        log = self.new_log(head["run_id"], head["program_id"], durability)
        for entry in [*entries, {"seq": len(entries), "kind": "forked"}]:  # for good: something in it was made up
            log.put(entry, 0.0)
        self.open_run(log, {name: head[name] for name in ("signature", "mode", "model", "hidden")})
        self._release(log.run_id, log.epoch, "forked")

    def prune(self, *, before: dt.datetime, outcomes: Sequence[str] = FINAL) -> int:
        """Forget runs that stopped before a time, with everything about them; gives how many. Runs that can still go on
        stay, unless their outcome is named (``lost``: their process, on this machine, is gone).

        Args:
            before: with a zone: whose midnight is meant is not guessed where something is forgotten for good.

        Raises:
            UserError: `before` is no time with a zone, or `outcomes` one text. Nothing is forgotten.
        """
        if isinstance(outcomes, str):
            raise UserError("Outcomes are given as a list", value=outcomes, remedy=f"Write outcomes=[{outcomes!r}].")
        if not isinstance(before, dt.datetime) or before.utcoffset() is None:
            raise UserError("Runs are pruned before a time that has a zone", value=before,
                            remedy="Write datetime(2026, 1, 1, tzinfo=UTC), or datetime.now(UTC) - timedelta(days=30).")  # fmt: skip
        runs = self._tables["runs"]
        named = ["running" if outcome == "lost" else outcome for outcome in outcomes if outcome != "running"]
        with self._write() as c:
            query = self._sa.select(runs.c.run_id, runs.c.outcome, runs.c.owner).where(
                self._sa.func.coalesce(runs.c.updated, runs.c.created) < before.astimezone(dt.UTC).isoformat(),
                runs.c.outcome.in_(named))  # fmt: skip
            rows = list(c.execute(query.order_by(runs.c.run_id).with_for_update()).mappings())
            ids = [row["run_id"] for row in rows if row["owner"] is None or outcome_of(row) == "lost"]
            for start in range(0, len(ids), 500):
                some = ids[start : start + 500]
                for name in ("events", "snapshots", "approvals", "judgements", "runs"):
                    table = self._tables[name]
                    c.execute(table.delete().where(table.c.run_id.in_(some)))
        return len(ids)


def request(program_id: Any, row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What is signed of a call that waits: all that is shown to whoever decides."""
    names = ("run_id", "call_id", "tool", "effect", "arguments", "arguments_hash", "requested", "expires")
    return ("request", program_id, *(row[name] for name in names))


_open: set[tuple[str, str]] = set()
"""Runs that this process has open."""


def hidden(entries: Sequence[Mapping[str, Any]], names: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A journal without what is sensitive."""
    secrets = Secrets(names["names"], replies=names["replies"], fields=names.get("fields"))
    secrets.results.update(names["results"])
    for entry in entries:
        if entry["kind"] == "run_started":
            secrets.remember(entry["inputs"], secrets.names)
        elif entry["kind"] in ("tool_intent", "tool_refused"):
            secrets.remember(entry.get("arguments"), secrets.names)
        elif entry["kind"] == "tool_outcome":
            secrets.remember(entry["result"], None if entry["tool"] in secrets.results else secrets.names)
        elif entry["kind"] == "run_finished" and entry["outputs"]:
            secrets.remember(entry["outputs"], secrets.names)
    return [secrets.entry(entry) for entry in entries]
