"""Tables of the store, and the steps that bring an older store to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["COLUMNS", "OPENED_INPUTS", "SCHEMA_VERSION", "UNTESTED", "migrate", "tables"]

SCHEMA_VERSION = 5
OPENED_INPUTS = "inputs "
UNTESTED = "no test of"
"""How the purpose of an opening begins that compares nothing: it is recorded, and is no look that a later test pays for."""
COLUMNS = {
    "runs": ("run_id", "program_id", "signature", "mode", "model", "outcome", "created", "receipt", "owner", "epoch",
             "durability", "hidden", "updated", "head"),
    "events": ("run_id", "seq", "kind", "entry", "active_s", "key_id", "mac"),
    "snapshots": ("run_id", "seq", "interpreter", "driver", "data", "key_id", "mac", "created"),
    "approvals": ("run_id", "call_id", "tool", "effect", "arguments", "arguments_hash", "requested", "expires", "granted",
                  "reason", "decided_by", "decided_at", "key_id", "mac"),
}  # fmt: skip
"""What is read of a run, without SQLAlchemy's description of it."""
_COMPARED = ("program_id", "row_hash", "replicate", "rollout_id", "cluster", "outcome", "cost_usd", "cost_source", "latency_s",
             "input_tokens", "output_tokens", "model_calls", "signature")  # fmt: skip


def tables(dialect: str = "sqlite") -> Any:
    """All tables, as SQLAlchemy metadata."""
    import sqlalchemy as sa

    meta = sa.MetaData()
    # Times and ids are compared as text: by their characters, as SQLite does, not by a language's rules.
    text: Any = sa.Text(collation="C") if dialect == "postgresql" else sa.Text()
    number, real, blob = sa.Integer, sa.Float, sa.LargeBinary

    def key(name: str, kind: Any = text) -> Any:
        return sa.Column(name, kind, primary_key=True)

    def must(name: str, kind: Any = text, **more: Any) -> Any:
        return sa.Column(name, kind, nullable=False, **more)

    def may(name: str, kind: Any = text) -> Any:
        return sa.Column(name, kind)

    # Naming both dialects would load both.
    waiting: dict[str, Any] = {f"{dialect}_where": sa.text("granted IS NULL")}

    sa.Table("meta", meta, key("key"), must("value"))
    # --- runs. `outcome` is "running" until a receipt says how it stopped; `epoch` counts who has had the run.
    sa.Table(
        "runs", meta, key("run_id"), must("program_id"), must("signature"), may("mode"), may("model"),
        must("outcome"), must("created", index=True), must("receipt"), may("owner"),
        sa.Column("epoch", number, nullable=False, server_default="0"), may("durability"), may("hidden"), may("updated"),
        may("head"), sa.Index("ix_runs_outcome_created", "outcome", "created"),
    )  # fmt: skip
    sa.Table("events", meta, key("run_id"), key("seq", number), must("kind"), must("entry"), may("active_s", real),
             may("key_id"), may("mac"))  # fmt: skip
    sa.Table("snapshots", meta, key("run_id"), must("seq", number), must("interpreter"), must("driver"), must("data", blob),
             must("key_id"), must("mac"), must("created"))  # fmt: skip
    sa.Table(
        "approvals", meta, key("run_id"), key("call_id", sa.BigInteger), must("tool"), must("effect"), must("arguments"),
        must("arguments_hash"), must("requested"), may("expires"), may("granted", number), may("reason"), may("decided_by"),
        may("decided_at"), may("key_id"), may("mac"),
        sa.Index("ix_approvals_waiting", "requested", "call_id", **waiting),
    )  # fmt: skip
    sa.Table("judgements", meta, key("run_id"), key("name"), must("value", real), may("feedback"), may("judge"),
             must("created"))  # fmt: skip
    # --- rollouts. What is large stands last: SQLite reads a row up to the last column that is asked for.
    # What candidates are compared by is read from an index that holds it all, in its order. Not on a server: what is
    # long does not fit into its indexes, and names of clusters may be.
    here = dialect == "sqlite"
    sa.Table(
        "rollouts", meta, key("rollout_id"), must("program_id", index=not here), may("signature"), may("mode"), may("model"),
        may("allow"), may("row_id"), must("row_hash", index=True), may("cluster"), may("replicate", number),
        must("outcome"), may("error_class"), may("model_calls", number), may("tool_calls", number),
        may("input_tokens", number), may("output_tokens", number), may("usage_source"), may("cost_usd", real),
        may("cost_source"), may("latency_s", real), may("latency_source"), may("created"), may("outputs"), may("end_state"),
        may("receipt"), may("journal"), *([sa.Index("ix_rollouts_compared", *_COMPARED)] if here else []),
    )  # fmt: skip
    sa.Table("scores", meta, key("rollout_id"), key("metric"), must("value", real), may("feedback"), may("components"))
    # --- compiles under way: completions of unfinished rollouts and of reflections, the state each began with, who has it
    sa.Table("answers", meta, key("owner"), key("key"), must("completion"))
    sa.Table("unfinished", meta, key("key"), must("state"), may("spent"), may("owner"), may("since"))
    # --- the ledger of holdout openings; a hash of inputs stands among the row hashes, behind `OPENED_INPUTS`
    sa.Table("openings", meta, key("id"), may("dataset"), may("revision"), may("compile_id"), may("purpose"), may("created"))
    sa.Table("opening_rows", meta, key("opening_id"), sa.Column("row_hash", text, primary_key=True, index=True))
    sa.Table("compiles", meta, key("compile_id"), may("signature"), may("artifact_id"), may("created"), may("report"))
    return meta


def _runs_that_go_on(connection: Any, meta: Any) -> None:
    for statement in (
        "ALTER TABLE runs ADD COLUMN owner TEXT",
        "ALTER TABLE runs ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE runs ADD COLUMN durability TEXT",
        "ALTER TABLE runs ADD COLUMN hidden TEXT",
        "ALTER TABLE runs ADD COLUMN updated TEXT",
        "ALTER TABLE runs ADD COLUMN head TEXT",
        "ALTER TABLE events ADD COLUMN active_s FLOAT",
        "ALTER TABLE events ADD COLUMN key_id TEXT",
        "ALTER TABLE events ADD COLUMN mac TEXT",
        "CREATE INDEX IF NOT EXISTS ix_runs_outcome_created ON runs (outcome, created)",
    ):
        connection.exec_driver_sql(statement)
    meta.create_all(connection)


def _compiles_that_go_on(connection: Any, meta: Any) -> None:
    meta.create_all(connection)


def _outcomes_in_an_index(connection: Any, meta: Any) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS ix_rollouts_compared ON rollouts ({', '.join(_COMPARED)})")
        connection.exec_driver_sql("DROP INDEX IF EXISTS ix_rollouts_program_id")  # the new one begins with it


def _compiles_of_somebody(connection: Any, meta: Any) -> None:
    import sqlalchemy as sa

    there = {column["name"] for column in sa.inspect(connection).get_columns("unfinished")}
    for name in ("owner", "since"):
        if name not in there:  # made by an earlier step, from today's tables
            connection.exec_driver_sql(f"ALTER TABLE unfinished ADD COLUMN {name} TEXT")


_STEPS: dict[int, Callable[[Any, Any], None]] = {
    1: _runs_that_go_on, 2: _compiles_that_go_on, 3: _outcomes_in_an_index, 4: _compiles_of_somebody,
}  # fmt: skip
"""From a version to the next one."""


def migrate(connection: Any, meta: Any, found: int) -> None:
    """Bring a store of version `found` forward, inside the caller's transaction."""
    for version in range(found, SCHEMA_VERSION):
        _STEPS[version](connection, meta)
    table = meta.tables["meta"]
    connection.execute(table.update().where(table.c.key == "schema_version").values(value=str(SCHEMA_VERSION)))
