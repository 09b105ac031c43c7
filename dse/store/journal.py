"""The store: runs with their journals, rollouts, scores and the ledger of holdout openings, in one SQL database.

SQLite in WAL mode by default. SQLAlchemy is imported when a store is opened, never by ``import dse``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from dse.canonical import canonical_json, digest
from dse.errors import StoreError, StoreUnavailable

__all__ = ["SCHEMA_VERSION", "Store", "opened"]

SCHEMA_VERSION = 1
T = TypeVar("T")
_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("dse_store_threads")


def _text(value: Any) -> str | None:
    return None if value is None else canonical_json(value).decode()


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _tables() -> Any:
    import sqlalchemy as sa

    meta = sa.MetaData()
    text, number, real = sa.Text, sa.Integer, sa.Float
    sa.Table("meta", meta, sa.Column("key", text, primary_key=True), sa.Column("value", text, nullable=False))
    sa.Table(
        "runs", meta, sa.Column("run_id", text, primary_key=True), sa.Column("program_id", text, nullable=False),
        sa.Column("signature", text, nullable=False), sa.Column("mode", text), sa.Column("model", text),
        sa.Column("outcome", text, nullable=False), sa.Column("created", text, nullable=False, index=True),
        sa.Column("receipt", text, nullable=False),
    )  # fmt: skip
    sa.Table(
        "events", meta, sa.Column("run_id", text, primary_key=True), sa.Column("seq", number, primary_key=True),
        sa.Column("kind", text, nullable=False), sa.Column("entry", text, nullable=False),
    )  # fmt: skip
    sa.Table(
        "rollouts", meta, sa.Column("rollout_id", text, primary_key=True),
        sa.Column("program_id", text, nullable=False, index=True), sa.Column("signature", text),
        sa.Column("mode", text), sa.Column("model", text), sa.Column("allow", text),
        sa.Column("row_id", text), sa.Column("row_hash", text, nullable=False, index=True),
        sa.Column("cluster", text), sa.Column("replicate", number), sa.Column("outcome", text, nullable=False),
        sa.Column("error_class", text), sa.Column("outputs", text), sa.Column("end_state", text), sa.Column("receipt", text),
        sa.Column("journal", text), sa.Column("model_calls", number), sa.Column("tool_calls", number),
        sa.Column("input_tokens", number), sa.Column("output_tokens", number), sa.Column("usage_source", text),
        sa.Column("cost_usd", real), sa.Column("cost_source", text), sa.Column("latency_s", real),
        sa.Column("latency_source", text), sa.Column("created", text),
    )  # fmt: skip
    sa.Table(
        "scores", meta, sa.Column("rollout_id", text, primary_key=True), sa.Column("metric", text, primary_key=True),
        sa.Column("value", real, nullable=False), sa.Column("feedback", text), sa.Column("components", text),
    )  # fmt: skip
    sa.Table(
        "openings", meta, sa.Column("id", text, primary_key=True), sa.Column("dataset", text), sa.Column("revision", text),
        sa.Column("compile_id", text), sa.Column("purpose", text), sa.Column("created", text),
    )  # fmt: skip
    sa.Table(
        "opening_rows", meta, sa.Column("opening_id", text, primary_key=True),
        sa.Column("row_hash", text, primary_key=True, index=True),
    )  # fmt: skip
    sa.Table(
        "compiles", meta, sa.Column("compile_id", text, primary_key=True), sa.Column("signature", text),
        sa.Column("artifact_id", text), sa.Column("created", text), sa.Column("report", text),
    )  # fmt: skip
    return meta


class Store:
    """One database of runs, rollouts, scores and holdout openings.

    Args:
        url: a file path or an SQLAlchemy URL (``sqlite:///dse.db``); ``:memory:`` keeps it in the process.

    Raises:
        StoreError: it cannot be opened, or another version of dse made it.
    """

    def __init__(self, url: str | Path = "dse.db") -> None:
        import sqlalchemy as sa
        from sqlalchemy.pool import StaticPool

        self.url = str(url)
        target = self.url if "://" in self.url else f"sqlite:///{self.url}"
        memory = target.endswith(":memory:") or target == "sqlite://"
        if not target.startswith("sqlite"):
            raise StoreError("Only SQLite stores are supported", value=self.url, remedy="Use a file path.")
        if not memory:
            folder = Path(target.removeprefix("sqlite:///")).expanduser().absolute().parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise StoreError("The store's folder cannot be made", value=str(folder), remedy=str(exc)) from exc
        options: dict[str, Any] = {"poolclass": StaticPool} if memory else {}
        self._sa = sa
        self._shared = memory  # one connection for all threads: readers wait for writers, too
        self._lock = threading.RLock()  # SQLite has one writer; waiting here is cheaper than in the database
        self._engine = sa.create_engine(target, connect_args={"check_same_thread": False, "timeout": 30}, **options)
        sa.event.listen(self._engine, "connect", _pragmas)
        self._tables = _tables().tables
        try:
            self._prepare()
        except (sa.exc.DatabaseError, sqlite3.Error) as exc:
            self._engine.dispose()
            why = f"{type(getattr(exc, 'orig', exc)).__name__}: {getattr(exc, 'orig', exc)}"
            raise StoreError("The store cannot be opened", value=self.url,
                             remedy=f"Is it a dse store and writable? ({why})") from exc  # fmt: skip
        except StoreError:
            self._engine.dispose()
            raise

    def _prepare(self) -> None:
        meta = self._tables["meta"]
        with self._lock, self._engine.begin() as c:
            if not self._sa.inspect(c).has_table("meta"):
                c.exec_driver_sql("BEGIN IMMEDIATE")  # all tables or none, and one process makes them
                others = self._sa.inspect(c).get_table_names()
                if "meta" not in others:
                    if others:
                        raise StoreError("This database belongs to something else", value=f"tables: {', '.join(others[:5])}",
                                         remedy="Give the store a file of its own.")  # fmt: skip
                    meta.metadata.create_all(c)
                    c.execute(meta.insert().values(key="schema_version", value=str(SCHEMA_VERSION)))
            found = c.execute(self._sa.select(meta.c.value).where(meta.c.key == "schema_version")).scalar()
        if found is None:
            raise StoreError("This database belongs to something else", value=self.url,
                             remedy="Give the store a file of its own.")  # fmt: skip
        if found != str(SCHEMA_VERSION):
            raise StoreError("The store was made by another version of dse", value=f"schema {found}",
                             remedy=f"This dse reads schema {SCHEMA_VERSION}.")  # fmt: skip

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def _write(self) -> Iterator[Any]:
        try:
            with self._lock, self._engine.begin() as connection:
                yield connection
        except (self._sa.exc.OperationalError, self._sa.exc.TimeoutError, sqlite3.Error) as exc:
            raise StoreUnavailable("The store could not be written", value=str(getattr(exc, "orig", exc)),
                                   remedy="Free disk space, or end what holds the database.") from exc  # fmt: skip

    def _rows(self, query: Any) -> list[Any]:
        try:
            with self._lock if self._shared else contextlib.nullcontext(), self._engine.connect() as c:
                return list(c.execute(query).mappings())
        except (self._sa.exc.DatabaseError, self._sa.exc.TimeoutError, sqlite3.Error) as exc:
            raise StoreUnavailable("The store could not be read", value=str(getattr(exc, "orig", exc)),
                                   remedy="Check the file and the disk.") from exc  # fmt: skip

    async def threaded(self, fn: Callable[..., T], *args: Any) -> T:
        """Run a method of this store off the event loop, in threads that serve only stores."""
        try:
            limiter = _limiter.get()
        except LookupError:
            limiter = anyio.CapacityLimiter(4)
            _limiter.set(limiter)
        return await anyio.to_thread.run_sync(lambda: fn(*args), limiter=limiter)

    # --- runs

    def save_run(self, receipt: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
        """Write a finished run and its journal, in one transaction.

        Raises:
            StoreError: the store has a run of that id already.
        """
        runs, events = self._tables["runs"], self._tables["events"]
        values = {name: receipt[name] for name in ("run_id", "program_id", "signature", "mode", "model", "outcome")}
        with self._write() as c:
            if not c.execute(self._insert(runs).values(**values, created=_now(), receipt=_text(receipt))
                             .on_conflict_do_nothing()).rowcount:  # fmt: skip
                raise StoreError("The store has a run of this id already", value=receipt["run_id"],
                                 remedy="Give every run an id of its own.")  # fmt: skip
            c.execute(events.insert(), [{"run_id": receipt["run_id"], "seq": e["seq"], "kind": e["kind"], "entry": _text(e)}
                                        for e in entries])  # fmt: skip

    def runs(self, limit: int = 50) -> list[dict[str, Any]]:
        """The newest runs: run_id, signature, mode, model, outcome, created."""
        t = self._tables["runs"]
        columns = [t.c.run_id, t.c.signature, t.c.mode, t.c.model, t.c.outcome, t.c.created]
        return [dict(r) for r in self._rows(self._sa.select(*columns).order_by(t.c.created.desc()).limit(limit))]

    def run(self, run_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Receipt and journal of one run.

        Raises:
            StoreError: no such run.
        """
        t, e = self._tables["runs"], self._tables["events"]
        found = self._rows(self._sa.select(t.c.receipt).where(t.c.run_id == run_id))
        if not found:
            raise StoreError("The store has no such run", value=run_id, remedy="`dse runs list` shows what there is.")
        entries = self._rows(self._sa.select(e.c.entry).where(e.c.run_id == run_id).order_by(e.c.seq))
        return _value(found[0]["receipt"]), [_value(r["entry"]) for r in entries]

    # --- rollouts and scores

    def save_rollout(self, row: Mapping[str, Any]) -> None:
        """Record a rollout once; a second recording of the same id changes nothing."""
        t = self._tables["rollouts"]
        values = {k: _text(v) if k in _JSON else v for k, v in row.items()}
        with self._write() as c:
            c.execute(self._insert(t).values(created=_now(), **values).on_conflict_do_nothing())

    def rollout(self, rollout_id: str) -> dict[str, Any] | None:
        t = self._tables["rollouts"]
        found = self._rows(self._sa.select(t).where(t.c.rollout_id == rollout_id))
        return {k: _value(v) if k in _JSON else v for k, v in found[0].items()} if found else None

    def save_score(self, rollout_id: str, metric: str, value: float, feedback: str, components: Mapping[str, float]) -> None:
        t = self._tables["scores"]
        with self._write() as c:
            c.execute(self._insert(t).values(rollout_id=rollout_id, metric=metric, value=value, feedback=feedback,
                                             components=_text(dict(components))).on_conflict_do_nothing())  # fmt: skip

    def score(self, rollout_id: str, metric: str) -> dict[str, Any] | None:
        t = self._tables["scores"]
        found = self._rows(self._sa.select(t).where(t.c.rollout_id == rollout_id, t.c.metric == metric))
        return {**found[0], "components": _value(found[0]["components"])} if found else None

    def rollouts(self, *, with_journal: bool = False) -> list[dict[str, Any]]:
        """All rollouts joined with their scores, one row per (rollout, metric)."""
        t, s = self._tables["rollouts"], self._tables["scores"]
        columns = [c for c in t.c if with_journal or c.name not in ("journal", "end_state")]
        query = self._sa.select(*columns, s.c.metric, s.c.value.label("score"), s.c.feedback, s.c.components).join(
            s, s.c.rollout_id == t.c.rollout_id, isouter=True).order_by(t.c.rollout_id, s.c.metric)  # fmt: skip
        json_columns = _JSON | {"components"}
        return [{k: _value(v) if k in json_columns else v for k, v in r.items()} for r in self._rows(query)]

    # --- ledger and compiles

    def record(self, entry: Mapping[str, Any]) -> int:
        """Record an opening of a holdout and count the openings that overlap it, this one included.

        The same compile opening the same rows again is the same opening.

        Args:
            entry: dataset, revision, compile_id, purpose, row_hashes.
        """
        o, r = self._tables["openings"], self._tables["opening_rows"]
        rows = sorted(set(entry["row_hashes"]))
        key = digest([entry["dataset"], entry["revision"], entry["compile_id"], rows])
        with self._write() as c:
            c.execute(self._insert(o).values(id=key, dataset=entry["dataset"], revision=entry["revision"], created=_now(),
                                             compile_id=entry["compile_id"], purpose=entry.get("purpose", ""))
                      .on_conflict_do_nothing())  # fmt: skip
            if rows:
                c.execute(self._insert(r).on_conflict_do_nothing(), [{"opening_id": key, "row_hash": h} for h in rows])
            opened: set[str] = set()
            for start in range(0, len(rows), 500):
                query = self._sa.select(r.c.opening_id).where(r.c.row_hash.in_(rows[start : start + 500])).distinct()
                opened |= set(c.execute(query).scalars())
        return len(opened)

    def openings(self) -> list[dict[str, Any]]:
        return [dict(r) for r in self._rows(self._sa.select(self._tables["openings"]))]

    def save_compile(self, compile_id: str, signature: str, artifact_id: str, report: Mapping[str, Any]) -> None:
        t = self._tables["compiles"]
        with self._write() as c:
            c.execute(t.delete().where(t.c.compile_id == compile_id))
            c.execute(t.insert().values(compile_id=compile_id, signature=signature, artifact_id=artifact_id, created=_now(),
                                        report=_text(report)))  # fmt: skip

    def compiles(self) -> list[dict[str, Any]]:
        found = self._rows(self._sa.select(self._tables["compiles"]).order_by(self._tables["compiles"].c.created))
        return [{**r, "report": _value(r["report"])} for r in found]

    def _insert(self, table: Any) -> Any:
        from sqlalchemy.dialects.sqlite import insert

        return insert(table)


@contextlib.contextmanager
def opened(store: Store | str | Path) -> Iterator[Store]:
    """`store` itself, or the store at that place, which is closed again."""
    if isinstance(store, Store):
        yield store
        return
    made = Store(store)
    try:
        yield made
    finally:
        made.close()


_JSON = {"allow", "outputs", "end_state", "receipt", "journal"}


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat()


def _pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()

