"""The part of the store that keeps rollouts and their scores.

Rows are written many at a time, and read as what is asked for: a receipt or a journal is parsed only for who wants it.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic_core import from_json

from dse.canonical import canonical_json

__all__ = ["Outcome", "RolloutTables", "Scored", "uncollected"]

_JSON = {"allow", "outputs", "end_state", "receipt", "journal"}
_LARGE = {"outputs", "end_state", "receipt", "journal"}
_REAL = ("cost_usd", "latency_s")
_MOST = 500  # parameters of one statement


class Scored(NamedTuple):
    """A score that is to be kept."""

    rollout_id: str
    metric: str
    value: float
    feedback: str | None
    components: Mapping[str, float]


class Outcome(NamedTuple):
    """What comparing candidates needs of one rollout: nothing that has to be parsed."""

    program_id: str
    row_hash: str
    replicate: int
    rollout_id: str
    cluster: str
    outcome: str
    cost_usd: float | None
    cost_source: str
    latency_s: float
    input_tokens: int
    output_tokens: int
    model_calls: int
    score: float | None


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """While millions of small objects are made, looking for garbage among them takes a third of the time, and finds none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class RolloutTables:
    """Mixed into `Store`."""

    _directly: Callable[..., contextlib.AbstractContextManager[Callable[[str, Any], Any]]]
    _insertion: Callable[[str, Mapping[str, Any]], str]
    _fetch: Callable[..., Any]
    _tables: Any
    _mark: str  # stands for a parameter in the text of a statement
    dialect: str

    # --- writing

    def save_rollouts(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Record rollouts in one transaction, each once: a second recording of the same id changes nothing.

        Returns:
            The rows as the store has them, of which some may be there from before.
        """
        made, kept = _now(), []
        texts: list[dict[str, Any]] = []
        for row in rows:
            values: dict[str, Any] = {k: _text(v) if k in _JSON else v for k, v in row.items()}
            for name in _REAL:  # as a column gives them back
                values[name] = None if values[name] is None else float(values[name])
            texts.append({**values, "created": made})
        with self._directly(power=False) as execute:
            for values in texts:
                statement = f"{self._insertion('rollouts', values)} ON CONFLICT DO NOTHING"
                kept.append(execute(statement, values).rowcount == 1)
            done = [{"owner": values["rollout_id"]} for values in texts]  # its completions need not be kept apart any more
            mark = ":owner" if self.dialect == "sqlite" else "%(owner)s"
            execute(f"DELETE FROM answers WHERE owner = {mark}", done)
        there = self.rollouts_of([values["rollout_id"] for values, new in zip(texts, kept, strict=True) if not new])
        return [_row(values) if new else there[values["rollout_id"]] for values, new in zip(texts, kept, strict=True)]

    def save_rollout(self, row: Mapping[str, Any]) -> None:
        """Record a rollout once; a second recording of the same id changes nothing."""
        self.save_rollouts([row])

    def save_scores(self, scores: Sequence[Scored]) -> list[dict[str, Any]]:
        """Record scores in one transaction, each once.

        Returns:
            The scores as the store has them, of which some may be there from before.
        """
        rows, new = [], []
        for one in scores:
            # What a metric says of an output may quote what no text column takes.
            feedback = None if one.feedback is None else one.feedback.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
            rows.append({**one._asdict(), "value": float(one.value), "feedback": feedback,
                         "components": _text(dict(one.components))})  # fmt: skip
        with self._directly(power=False) as execute:
            for row in rows:
                new.append(execute(f"{self._insertion('scores', row)} ON CONFLICT DO NOTHING", row).rowcount == 1)
        kept = []
        for row, made in zip(rows, new, strict=True):
            there = None if made else self.score(row["rollout_id"], row["metric"])
            kept.append(there or {**row, "components": _value(row["components"])})
        return kept

    def save_score(self, rollout_id: str, metric: str, value: float, feedback: str, components: Mapping[str, float]) -> None:
        self.save_scores([Scored(rollout_id, metric, value, feedback, components)])

    # --- reading some

    def rollout(self, rollout_id: str) -> dict[str, Any] | None:
        return self.rollouts_of([rollout_id]).get(rollout_id)

    def rollouts_of(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """By id, those that there are, with everything."""
        names = [column.name for column in self._tables["rollouts"].c]
        found = self._among(f"SELECT {', '.join(names)} FROM rollouts WHERE rollout_id IN", ids)
        return {row[0]: _row(dict(zip(names, row, strict=True))) for row in found}

    def score(self, rollout_id: str, metric: str) -> dict[str, Any] | None:
        return self.scores_of([rollout_id], metric).get(rollout_id)

    def scores_of(self, ids: Iterable[str], metric: str) -> dict[str, dict[str, Any]]:
        """By id of the rollout, those that there are."""
        names = ("rollout_id", "metric", "value", "feedback", "components")
        found = self._among(f"SELECT {', '.join(names)} FROM scores WHERE metric = {self._mark} AND rollout_id IN", ids, metric)
        return {row[0]: {**dict(zip(names, row, strict=True)), "components": _value(row[4])} for row in found}

    def _among(self, statement: str, ids: Iterable[str], *first: Any) -> Iterator[Any]:
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), _MOST):
            some = wanted[start : start + _MOST]
            yield from self._fetch(f"{statement} ({', '.join([self._mark] * len(some))})", (*first, *some))

    # --- reading all

    def _of(self, signature: str | None) -> tuple[str, tuple[Any, ...]]:
        return ("", ()) if signature is None else (f" WHERE signature = {self._mark}", (signature,))

    @uncollected()
    def outcomes(self, metric: str, *, signature: str | None = None, programs: Iterable[str] | None = None) -> list[Outcome]:
        """What comparing candidates needs, without receipts and journals; in the order (program, row, replicate).

        Args:
            metric: ``name@revision``; a rollout that it did not score has a score of None.
            programs: only of these program ids.
        """
        statement = f"SELECT {', '.join(Outcome._fields[:-1])} FROM rollouts"
        scores: dict[str, float] = self._fetch(
            f"SELECT rollout_id, value FROM scores WHERE metric = {self._mark}", (metric,), dict)
        made, score = tuple.__new__, scores.get

        def outcomes(rows: Iterable[Any]) -> list[Outcome]:
            return [made(Outcome, (*row, score(row[3]))) for row in rows]

        if programs is not None:
            found = outcomes(self._among(f"{statement} WHERE program_id IN", programs))
        else:
            where, given = self._of(signature)
            found = self._fetch(f"{statement}{where} ORDER BY {', '.join(Outcome._fields[:4])}", given, outcomes)
        found.sort()  # ids differ: nothing behind them is compared; what has an order already takes no time
        return found

    def rollouts(self, *, with_journal: bool = False) -> list[dict[str, Any]]:
        """All rollouts joined with their scores, one row per (rollout, metric)."""
        names, rows = self.rollout_table(_LARGE if with_journal else ("outputs", "receipt"))
        parsed = _JSON | {"components"}
        return [{k: _value(v) if k in parsed else v for k, v in zip(names, row, strict=True)} for row in rows]

    def rollout_table(self, large: Iterable[str] = (), *, signature: str | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Names of columns, and rows: all rollouts joined with their scores, JSON as text, in the order (rollout, metric).

        Args:
            large: of the large columns, those that are wanted.
        """
        hidden = _LARGE.difference(large)
        names = [column.name for column in self._tables["rollouts"].c if column.name not in hidden]
        where, given = self._of(signature)
        scores: dict[str, list[tuple[Any, ...]]] = {}
        for rollout_id, *score in self._fetch("SELECT rollout_id, metric, value, feedback, components FROM scores", ()):
            scores.setdefault(rollout_id, []).append(tuple(score))
        found = self._fetch(f"SELECT {', '.join(names)} FROM rollouts{where}", given)
        found.sort(key=_first)
        rows = [(*row, *score) for row in found for score in sorted(scores.get(row[0], _NO_SCORE), key=_first)]
        return [*names, "metric", "score", "feedback", "components"], rows

    def calls(self, signature: str | None = None) -> Iterator[tuple[str, str, str, list[dict[str, Any]]]]:
        """(rollout id, signature, mode, tool calls as in the receipt) of every rollout, in the order of ids."""
        part = "json_extract(receipt, '$.calls')" if self.dialect == "sqlite" else "(CAST(receipt AS json) -> 'calls')"
        where, given = self._of(signature)
        found = self._fetch(f"SELECT rollout_id, signature, mode, CAST({part} AS TEXT) FROM rollouts{where}", given)
        found.sort(key=_first)
        texts = (row[3] or "[]" for row in found)
        # One text of all of them is parsed in half the time.
        for row, calls in zip(found, from_json(f"[{','.join(texts)}]"), strict=True):
            yield row[0], row[1], row[2], calls


_NO_SCORE = [(None, None, None, None)]
_first = operator.itemgetter(0)


def _row(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _value(v) if k in _JSON else v for k, v in values.items()}


def _text(value: Any) -> str | None:
    return None if value is None else canonical_json(value).decode()


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat()
