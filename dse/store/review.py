"""The part of the store that looks back at runs: finding them, judging them, and what was measured on which rows."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dse.errors import MetricError, StoreError
from dse.store import owner
from dse.store.keys import Keys, rotate
from dse.store.tables import OPENED_INPUTS

__all__ = ["ReviewTables", "outcome_of"]

_TOGETHER = 500  # runs, or rows, per query


class ReviewTables:
    """Mixed into `Store`."""

    _sa: Any
    _tables: Any
    _write: Callable[..., contextlib.AbstractContextManager[Any]]
    _rows: Callable[[Any], list[Any]]
    _insert: Callable[[Any], Any]
    now: Any
    dialect: str
    place: str
    _memory: bool
    _keys: Any

    @property
    def keys(self) -> Keys:
        """What journals are signed with."""
        raise NotImplementedError

    def find_run(self, beginning: str) -> str:
        """The id of the one run whose id begins like this.

        Raises:
            StoreError: none does, or several.
        """
        t = self._tables["runs"]
        query = self._sa.select(t.c.run_id).where(t.c.run_id.startswith(beginning, autoescape=True))
        query = query.order_by(t.c.run_id).limit(_TOGETHER)
        found = [row["run_id"] for row in self._rows(query) if row["run_id"].startswith(beginning)]  # LIKE ignores case
        if beginning in found:
            return beginning
        if not beginning or not found:
            raise StoreError("The store has no such run", value=beginning, remedy="`dse runs list` shows what there is.")
        if len(found) > 1:
            raise StoreError("Several runs begin like this", value=beginning, remedy=f"Give more of it: {', '.join(found[:5])}.")
        return str(found[0])

    def receipts(self, *, signature: str | None = None, run_id: str | None = None) -> Iterator[dict[str, Any]]:
        """Runs, oldest first: run_id, program_id, signature, mode, model, outcome, created, updated, durability (None: kept by
        an earlier version), receipt (of its last stop; None before that)."""
        t = self._tables["runs"]
        names = ("run_id", "program_id", "signature", "mode", "model", "outcome", "created", "updated", "durability",
                 "owner", "receipt")  # fmt: skip
        query = self._sa.select(t.c.run_id).order_by(t.c.created, t.c.run_id)
        for column, wanted in ((t.c.signature, signature), (t.c.run_id, run_id)):
            query = query if wanted is None else query.where(column == wanted)
        ids = [row["run_id"] for row in self._rows(query)]
        for start in range(0, len(ids), _TOGETHER):
            some = self._sa.select(*(t.c[name] for name in names)).where(t.c.run_id.in_(ids[start : start + _TOGETHER]))
            for row in self._rows(some.order_by(t.c.created, t.c.run_id)):
                entry = {**row, "outcome": outcome_of(row), "receipt": json.loads(self.keys.open(row["receipt"]))}
                del entry["owner"]
                yield entry

    # --- judgements

    def judge(self, run_id: str, name: str, value: float, *, feedback: str = "", judge: str = "") -> None:
        """Note how good a run turned out to be. One value per run and name: a later one replaces it. When the run was
        judged stays the time of the first one: the monitor's order of runs must not depend on what was corrected.

        Args:
            name: of what is judged, such as ``helpful``.
            value: from 0 to 1, 1 for right, like a metric's score.
            feedback: in words, kept as it is: put nothing sensitive there.
            judge: who says so.

        Raises:
            MetricError: the value or the name is none.
            StoreError: there is no such run.
        """
        if isinstance(value, bool):
            value = float(value)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or not 0 <= value <= 1:
            raise MetricError("A judgement is not a number from 0 to 1", value=value, remedy="Scale it to [0, 1], 1 for right.")
        if not isinstance(name, str) or not name.strip():
            raise MetricError("A judgement has no name", value=name, remedy="Say what is judged, for example helpful.")
        t, runs = self._tables["judgements"], self._tables["runs"]
        values = {"value": float(value), "feedback": feedback, "judge": judge, "created": self.now().isoformat()}
        with self._write() as c:
            if c.execute(self._sa.select(runs.c.run_id).where(runs.c.run_id == run_id)).first() is None:
                raise StoreError("The store has no such run", value=run_id, remedy="`dse runs list` shows what there is.")
            later = {column: values[column] for column in ("value", "feedback", "judge")}
            c.execute(self._insert(t).values(run_id=run_id, name=name, **values).on_conflict_do_update(
                index_elements=["run_id", "name"], set_=later))  # fmt: skip

    def judgements(self, run_id: str | None = None) -> list[dict[str, Any]]:
        """Judgements of one run or of all: run_id, name, value, feedback, judge, created (when it was first judged)."""
        t = self._tables["judgements"]
        query = self._sa.select(t).order_by(t.c.run_id, t.c.name)
        return [dict(row) for row in self._rows(query if run_id is None else query.where(t.c.run_id == run_id))]

    # --- what was measured

    def measured(self) -> Iterator[tuple[str, dict[str, Any] | None, bool]]:
        """What candidates were ever tried on, once per row: its hash, its inputs in clear (None where only the hash is known),
        and whether it came out of a sealed holdout."""
        rollouts, openings = self._tables["rollouts"], self._tables["opening_rows"]
        listed = {row["row_hash"] for row in self._rows(self._sa.select(openings.c.row_hash).distinct())}
        opened = {one for one in listed if not one.startswith(OPENED_INPUTS)}
        first = self._sa.func.min(rollouts.c.rollout_id).label("first")
        ids = [row["first"] for row in self._rows(self._sa.select(first).group_by(rollouts.c.row_hash))]
        found: set[str] = set()
        for start in range(0, len(ids), _TOGETHER):
            query = self._sa.select(rollouts.c.row_hash, rollouts.c.journal).where(
                rollouts.c.rollout_id.in_(ids[start : start + _TOGETHER]))  # fmt: skip
            for row in self._rows(query):
                found.add(row["row_hash"])
                began: dict[str, Any] = next(iter(json.loads(row["journal"] or "[]")), {})
                yield row["row_hash"], began.get("inputs"), row["row_hash"] in opened
        for row_hash in sorted(opened - found):
            yield row_hash, None, True

    # --- keys

    def rotate_key(self, environment: Mapping[str, str]) -> str:
        """Put a new key in front of the key file; what older ones signed stays valid. Gives the new key's public name.

        Processes that have the store open go on with the keys they know: start them again.

        Raises:
            StoreError: the keys are not in a file.
        """
        if environment.get("DSE_KEY"):
            raise StoreError("The key of the store comes from DSE_KEY", remedy="Put a new one in front of it: NEW,OLD.")
        named = environment.get("DSE_KEY_FILE")
        if named and not Path(named).exists():
            raise StoreError("The key file is missing", value=named, remedy="Correct DSE_KEY_FILE.")
        if not named and (self.dialect != "sqlite" or self._memory):
            raise StoreError("This store has no key file", remedy="Set DSE_KEY or DSE_KEY_FILE (`openssl rand -hex 32`).")
        fresh = rotate(named or f"{self.place}.key")
        self._keys = None
        return fresh


def outcome_of(row: Mapping[str, Any]) -> str:
    """The outcome of a row of runs; ``lost`` where nobody has it (a resume of it was refused) or its process on this
    machine is gone."""
    has = row["owner"]
    if row["outcome"] == "running" and (not has or (owner.is_here(has) and not owner.is_alive(has))):
        return "lost"
    return str(row["outcome"])
