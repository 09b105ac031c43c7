"""The store: runs with their journals, rollouts, scores and the ledger of holdout openings, in one SQL database.

SQLite in WAL mode by default. SQLAlchemy is imported when a store is opened, never by ``import dse``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import os
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import anyio.lowlevel
import anyio.to_thread

from dse.canonical import canonical_json, digest
from dse.errors import StoreError, StoreUnavailable
from dse.store import postgresql
from dse.store.keys import Keys
from dse.store.place import make_file, parsed
from dse.store.progress import ProgressTables
from dse.store.rollouts import RolloutTables
from dse.store.runs import RunTables
from dse.store.tables import COLUMNS, OPENED_INPUTS, SCHEMA_VERSION, UNTESTED, migrate, tables
from dse.store.writer import Batch, Writer, taken

__all__ = ["SCHEMA_VERSION", "Store", "opened"]

T = TypeVar("T")
_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("dse_store_threads")


def _text(value: Any) -> str | None:
    return None if value is None else canonical_json(value).decode()


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)


class Store(RunTables, RolloutTables, ProgressTables):
    """One database of runs, rollouts, scores and holdout openings.

    Args:
        url: a file path (``~`` is the user's home), or an SQLAlchemy URL of SQLite or PostgreSQL (``postgresql://user@host/base``, which needs
            ``pip install 'dse-compiler[postgresql]'`` and a key in ``DSE_KEY`` or ``DSE_KEY_FILE``); ``:memory:`` keeps it
            in the process.
        keys: what journals are signed and encrypted with; default `Keys.find`.
        busy_s: how long to wait for another process that writes, and for a server to answer, in seconds.

    Raises:
        StoreError: it cannot be opened, or a newer version of dse made it.
    """

    def __init__(self, url: str | Path = "dse.db", *, keys: Keys | None = None, busy_s: float = 30.0) -> None:
        import sqlalchemy as sa
        from sqlalchemy.pool import StaticPool

        self.url = str(url)
        target, file = parsed(self.url)
        self.dialect = target.drivername.partition("+")[0]
        memory = self.dialect == "sqlite" and file is None
        self._mark = "?" if self.dialect == "sqlite" else "%s"
        named = postgresql.shown(self.url)
        if file is not None and target.query.get("mode", "rwc") == "rwc":
            make_file(file)
        options: dict[str, Any] = {"poolclass": StaticPool} if memory else {}
        if self.dialect == "sqlite":
            options["connect_args"] = {"check_same_thread": False, "timeout": busy_s}
        else:
            options.update(postgresql.connections(self.url, busy_s))
        self._sa = sa
        self._memory, self._busy_s = memory, busy_s
        self.place = f"memory {id(self)}" if memory else named if file is None else str(file)
        self._given_keys = keys
        self._keys: Keys | None = keys
        self.writer = Writer(self)
        self._shared = memory  # one connection for all threads: readers wait for writers, too
        self._lock = threading.RLock()  # SQLite has one writer; waiting here is cheaper than in the database
        try:
            self._engine = sa.create_engine(target, **options)
        except ImportError as exc:
            raise StoreError("The store cannot be opened", value=named,
                             remedy=f"pip install 'dse-compiler[postgresql]' ({exc})") from exc  # fmt: skip
        except (sa.exc.ArgumentError, ValueError) as exc:
            raise StoreError("The store cannot be opened", value=named,
                             remedy="Correct its URL: postgresql://user@host:port/base.") from exc  # fmt: skip
        weakref.finalize(self, self._engine.dispose).atexit = False  # when nobody has it any more
        if self.dialect == "sqlite":
            sa.event.listen(self._engine, "connect", _pragmas)
            sa.event.listen(self._engine, "begin", _begin)
        else:
            postgresql.watch(sa, self._engine)
        self._inode: tuple[int, int] | None = None
        try:
            if not self._is_current():
                self._prepare()
        except (sa.exc.DBAPIError, sqlite3.Error) as exc:
            self._engine.dispose()
            why = f"{type(getattr(exc, 'orig', exc)).__name__}: {getattr(exc, 'orig', exc)}"
            raise StoreError("The store cannot be opened", value=named,
                             remedy=f"Is it a dse store and writable? ({why})") from exc  # fmt: skip
        except StoreError:
            self._engine.dispose()
            raise
        self._inode = self._on_disk()

    @functools.cached_property
    def _tables(self) -> Any:
        """SQLAlchemy's description of all tables: half of the time of opening a store, and not needed to go on with a run."""
        return tables(self.dialect).tables

    def _on_disk(self) -> tuple[int, int] | None:
        """Which file the store is; None for one that is none, or is gone."""
        if self.dialect != "sqlite" or self._memory:
            return None
        try:
            about = os.stat(self.place)
        except OSError:
            return None
        return about.st_dev, about.st_ino

    def _is_current(self) -> bool:
        """Whether the tables are there as they should be: to know that, nobody has to wait for those who write."""
        try:
            with self._engine.connect() as c:
                found = c.exec_driver_sql("SELECT value FROM meta WHERE key = 'schema_version'").scalar()
            return str(found) == str(SCHEMA_VERSION)
        except self._sa.exc.DBAPIError:
            return False

    def _prepare(self) -> None:
        meta = self._tables["meta"]
        with self._lock, self._engine.connect().execution_options(dse_write=True) as c:
            if self.dialect == "sqlite":
                self._ready(c.connection.driver_connection, False)
            with c.begin():
                self._make(c, meta)

    def _make(self, c: Any, meta: Any) -> None:
        """The tables, all or none of them, made or changed by one process."""
        if self.dialect == "postgresql":
            postgresql.transaction(c, power=True, busy_s=self._busy_s)
            postgresql.lock(c, postgresql.TABLES)
        others = self._sa.inspect(c).get_table_names()
        if "meta" not in others:
            if others:
                raise StoreError("This database belongs to something else", value=f"tables: {', '.join(others[:5])}",
                                 remedy="Give the store a database of its own.")  # fmt: skip
            meta.metadata.create_all(c)
            c.execute(meta.insert().values(key="schema_version", value=str(SCHEMA_VERSION)))
        found = c.execute(self._sa.select(meta.c.value).where(meta.c.key == "schema_version")).scalar()
        if found is None or not found.isdecimal():
            raise StoreError("This database belongs to something else", value=postgresql.shown(self.url),
                             remedy="Give the store a database of its own.")  # fmt: skip
        if int(found) > SCHEMA_VERSION:
            raise StoreError("The store was made by a newer version of dse", value=f"schema {found}",
                             remedy=f"This dse reads schemas up to {SCHEMA_VERSION}: update it.")  # fmt: skip
        if int(found) < SCHEMA_VERSION:
            migrate(c, meta.metadata, int(found))

    @property
    def keys(self) -> Keys:
        """What journals are signed with; found when first needed."""
        if self._keys is None:
            place = None
            if self._memory:
                self._keys = Keys([secrets.token_bytes(32)])
                return self._keys
            if self.dialect == "sqlite":
                place = Path(f"{self.place}.key")
            self._keys = Keys.find(place)
        return self._keys

    def after_fork(self) -> None:
        """A forked child has connections of its own; those of its parent stay open, unused."""
        self._lock = threading.RLock()  # the parent may have held it
        if not self._memory:
            _inherited.append(self._engine.pool)
            self._engine.dispose(close=False)

    def close(self) -> None:
        """Write what runs have handed over. Runs that are still on end with a `StoreUnavailable`, and can be resumed."""
        self.writer.close()
        self._engine.dispose()

    @contextlib.contextmanager
    def _write(self, *, power: bool = False) -> Iterator[Any]:
        """A transaction that writes.

        Args:
            power: what it commits survives the loss of power, not only the end of the process.

        Raises:
            StoreUnavailable: of its end nobody may know: what was lost on the way to the commit may be there or not.
            StoreError: the database cannot hold a value.
        """
        try:
            with self._lock, self._engine.connect().execution_options(dse_write=True) as connection:
                if self.dialect == "sqlite":
                    driver: Any = connection.connection.driver_connection
                    self._ready(driver, power)
                    try:
                        with connection.begin():
                            yield connection
                    finally:
                        if power:
                            driver.execute("PRAGMA synchronous=NORMAL")
                else:
                    with connection.begin():
                        postgresql.transaction(connection, power=power, busy_s=self._busy_s)
                        yield connection
        except self._sa.exc.DataError as exc:
            raise StoreError("The store cannot hold this", value=str(exc.orig),
                             remedy="Leave out what its database has no room for (PostgreSQL: NUL characters).") from exc  # fmt: skip
        except (self._sa.exc.DBAPIError, self._sa.exc.TimeoutError, sqlite3.Error) as exc:
            if isinstance(exc, (self._sa.exc.IntegrityError, self._sa.exc.ProgrammingError)):
                raise  # what was written is wrong, not the store
            raise StoreUnavailable("The store could not be written", value=str(getattr(exc, "orig", exc)),
                                   remedy="Free disk space, or end what holds the database.") from exc  # fmt: skip

    def _ready(self, connection: Any, power: bool) -> None:
        """Before each transaction of SQLite that writes.

        Args:
            connection: the driver's.

        Raises:
            StoreUnavailable: the file is gone; SQLite would go on writing into one that nobody can find.
        """
        if self._inode is not None and self._on_disk() != self._inode:
            raise StoreUnavailable("The store's file was deleted or replaced", value=self.place,
                                   remedy="Restore it, and open the store again.")  # fmt: skip
        if power:
            connection.execute("PRAGMA synchronous=FULL")

    def _rows(self, query: Any) -> list[Any]:
        try:
            with self._lock if self._shared else contextlib.nullcontext(), self._engine.connect() as c:
                return list(c.execute(query).mappings())
        except (self._sa.exc.DBAPIError, self._sa.exc.TimeoutError, sqlite3.Error) as exc:
            raise StoreUnavailable("The store could not be read", value=str(getattr(exc, "orig", exc)),
                                   remedy="Check the file and the disk, or the server.") from exc  # fmt: skip

    def _read(self, table: str, run_id: str) -> list[dict[str, Any]]:
        """All rows of a table about a run, entries in their order: `_rows` without compiling a query."""
        names = COLUMNS[table]
        order = " ORDER BY seq" if table == "events" else ""
        found = self._fetch(f"SELECT {', '.join(names)} FROM {table} WHERE run_id = {self._mark}{order}", (run_id,))
        return [dict(zip(names, row, strict=True)) for row in found]

    def _fetch(self, text: str, given: tuple[Any, ...], make: Callable[[Iterable[Any]], Any] = list) -> Any:
        """The rows of a query that is text, for reading: SQLAlchemy takes several times as long.

        Args:
            make: what to make of them while they come; by default a list.
        """
        try:
            with self._lock if self._shared else contextlib.nullcontext():
                if self.dialect == "sqlite":
                    with contextlib.closing(self._engine.raw_connection()) as pooled:
                        return make(cast("Any", pooled.driver_connection).execute(text, given))
                with self._engine.connect() as c:
                    return make(c.exec_driver_sql(text, given).fetchall())
        except (self._sa.exc.DBAPIError, self._sa.exc.TimeoutError, sqlite3.Error) as exc:
            raise StoreUnavailable("The store could not be read", value=str(getattr(exc, "orig", exc)),
                                   remedy="Check the file and the disk, or the server.") from exc  # fmt: skip

    async def threaded(self, fn: Callable[..., T], *args: Any) -> T:
        """Run a method of this store off the event loop, in threads that serve only stores."""
        try:
            limiter = _limiter.get()
        except LookupError:
            limiter = anyio.CapacityLimiter(4)
            _limiter.set(limiter)
        return await anyio.to_thread.run_sync(lambda: fn(*args), limiter=limiter)

    @contextlib.contextmanager
    def _directly(self, *, power: bool) -> Iterator[Callable[[str, Any], Any]]:
        """Like `_write`, but gives a function that executes a text with parameters (a list of them: once for each).

        SQLAlchemy takes several times as long as SQLite for what the writer does, and the writer does it for every call.
        """
        if self.dialect != "sqlite":
            with self._write(power=power) as c:
                yield c.exec_driver_sql
            return
        try:
            with self._lock, contextlib.closing(self._engine.raw_connection()) as pooled:
                connection: Any = pooled.driver_connection
                self._ready(connection, power)
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    yield lambda text, given: (
                        connection.executemany(text, given) if isinstance(given, list) else connection.execute(text, given))
                    connection.execute("COMMIT")
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    if power:
                        connection.execute("PRAGMA synchronous=NORMAL")
        except (self._sa.exc.DBAPIError, self._sa.exc.TimeoutError, sqlite3.Error) as exc:
            if isinstance(exc, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
                raise
            raise StoreUnavailable("The store could not be written", value=str(getattr(exc, "orig", exc)),
                                   remedy="Free disk space, or end what holds the database.") from exc  # fmt: skip

    def write_batches(self, batches: Sequence[Batch]) -> None:
        """Write what several runs want to be written; a run that another process has gets an error of its own."""
        ids = tuple({batch.run_id for batch in batches})
        lock = " ORDER BY r.run_id FOR UPDATE" if self.dialect == "postgresql" else ""  # nobody takes them over meanwhile
        with self._directly(power=any(batch.power for batch in batches)) as execute:
            found = list(execute(
                "SELECT r.run_id, r.epoch, (SELECT max(e.seq) FROM events e WHERE e.run_id = r.run_id) FROM runs r "
                f"WHERE r.run_id IN ({', '.join([self._mark] * len(ids))}){lock}", ids))  # fmt: skip
            epochs = {run_id: epoch for run_id, epoch, _ in found}
            rows: list[dict[str, Any]] = []
            kept: dict[str, dict[str, Any]] = {}
            heads: dict[str, str | None] = {}
            # What the store really has: a server that crashed may have lost what it had said that it has.
            ends: dict[str, int] = {run_id: 0 if seq is None else seq + 1 for run_id, _, seq in found}
            for batch in batches:
                if epochs.get(batch.run_id) != batch.epoch:
                    batch.error = taken(batch.run_id)
                    continue
                if batch.events and batch.events[0]["seq"] < ends[batch.run_id]:  # by a commit whose answer was lost?
                    found = execute(f"SELECT seq, mac FROM events WHERE run_id = {self._mark}", (batch.run_id,))
                    there = {seq: mac for seq, mac in found}
                    if any(there.get(row["seq"], row["mac"]) != row["mac"] for row in batch.events):
                        batch.error = StoreUnavailable("Something else writes to the journal of this run", value=batch.run_id,
                                                       remedy="Look for who can write to the store.")  # fmt: skip
                        continue
                    batch.events = [row for row in batch.events if row["seq"] not in there]
                if not batch.follows(ends):
                    batch.error = StoreUnavailable("An earlier part of the journal could not be written", value=batch.run_id,
                                                   remedy="Resume the run when the store can be written again.")  # fmt: skip
                    continue
                rows += batch.events
                heads[batch.run_id] = batch.head or heads.get(batch.run_id)
                if batch.snapshot is not None:
                    kept[batch.run_id] = {**batch.snapshot, "created": _now()}
            if rows:
                execute(self._insertion("events", rows[0]), rows)
            if newer := [(head, run_id) for run_id, head in heads.items() if head is not None]:
                execute(f"UPDATE runs SET head = {self._mark} WHERE run_id = {self._mark}", newer)
            for run_id, row in kept.items():  # only the newest is of use
                execute(f"DELETE FROM snapshots WHERE run_id = {self._mark}", (run_id,))
                execute(self._insertion("snapshots", row), row)

    def _insertion(self, table: str, row: Mapping[str, Any]) -> str:
        marks = (f":{name}" if self.dialect == "sqlite" else f"%({name})s" for name in row)
        return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(marks)})"

    # --- ledger and compiles

    def record(self, entry: Mapping[str, Any]) -> int:
        """Record an opening of a holdout and count the openings that overlap it, this one included.

        The same compile opening the same rows again for the same purpose is the same opening. Openings overlap that have a row hash or the
        inputs of a row in common; of those that an earlier version recorded only the row hashes are known. Openings in which
        no two programs were compared (`UNTESTED`) are kept, and do not count; the first of all counts as one.

        Args:
            entry: dataset, revision, compile_id, purpose, row_hashes, and input_hashes where they are known.
        """
        o, r = self._tables["openings"], self._tables["opening_rows"]
        hashes = sorted(set(entry["row_hashes"]))
        key = digest([entry["dataset"], entry["revision"], entry["compile_id"], entry.get("purpose", ""), hashes])
        rows = _known_by(entry)
        with self._write(power=True) as c:
            if self.dialect == "postgresql":  # of two that open at the same time, one has to see the other
                postgresql.lock(c, postgresql.LEDGER)
            c.execute(self._insert(o).values(id=key, dataset=entry["dataset"], revision=entry["revision"], created=_now(),
                                             compile_id=entry["compile_id"], purpose=entry.get("purpose", ""))
                      .on_conflict_do_nothing())  # fmt: skip
            if rows:
                c.execute(self._insert(r).on_conflict_do_nothing(), [{"opening_id": key, "row_hash": h} for h in rows])
            opened = {one for query in self._opened_with(rows) for one in c.execute(query).scalars()}
        return max(1, len(opened))

    def overlapping(self, entry: Mapping[str, Any]) -> int:
        """Count the openings that `record` would find to overlap, and record nothing.

        Args:
            entry: row_hashes, and input_hashes where they are known.
        """
        return len({row["opening_id"] for query in self._opened_with(_known_by(entry)) for row in self._rows(query)})

    def _opened_with(self, rows: Sequence[str]) -> Iterator[Any]:
        o, r = self._tables["openings"], self._tables["opening_rows"]
        tested = ~o.c.purpose.startswith(UNTESTED, autoescape=True)
        for start in range(0, len(rows), 500):
            of_rows = r.c.row_hash.in_(rows[start : start + 500])
            yield self._sa.select(r.c.opening_id).join(o, o.c.id == r.c.opening_id).where(of_rows, tested).distinct()

    def openings(self) -> list[dict[str, Any]]:
        return [dict(r) for r in self._rows(self._sa.select(self._tables["openings"]))]

    def save_compile(self, compile_id: str, signature: str, artifact_id: str, report: Mapping[str, Any]) -> None:
        t = self._tables["compiles"]
        values = {"signature": signature, "artifact_id": artifact_id, "created": _now(), "report": _text(report)}
        with self._write() as c:
            c.execute(self._insert(t).values(compile_id=compile_id, **values)
                      .on_conflict_do_update(index_elements=["compile_id"], set_=values))  # fmt: skip

    def compiles(self) -> list[dict[str, Any]]:
        found = self._rows(self._sa.select(self._tables["compiles"]).order_by(self._tables["compiles"].c.created))
        return [{**r, "report": _value(r["report"])} for r in found]

    def _insert(self, table: Any) -> Any:
        if self.dialect == "postgresql":
            from sqlalchemy.dialects.postgresql import insert as postgresql

            return postgresql(table)
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


def _known_by(entry: Mapping[str, Any]) -> list[str]:
    """What the ledger has of rows: their hashes, and those of their inputs."""
    return sorted(set(entry["row_hashes"])) + sorted(OPENED_INPUTS + one for one in set(entry.get("input_hashes", ())))


_inherited: list[Any] = []


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat()


def _begin(connection: Any) -> None:
    """Whoever will write says so at once: a reader that turns into a writer could fail halfway."""
    writes = connection.get_execution_options().get("dse_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _pragmas(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin` says
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()

