"""What a store in PostgreSQL needs besides its tables: settings of its connections, its locks, and URLs without passwords.

SQLite lets one writer in at a time. PostgreSQL lets many in, so whatever looks at a row and then decides by it locks that
row (``with_for_update``), and what has to be alone altogether takes one of the locks here.
"""

from __future__ import annotations

import re
import select
import time
from typing import Any

__all__ = ["LEDGER", "TABLES", "connections", "lock", "shown", "transaction", "watch"]

TABLES, LEDGER = 6460757, 6460758  # advisory locks: who makes or changes the tables, who counts openings
_IDLE_S = 30.0  # firewalls and poolers drop connections that were idle for longer, and tell nobody


def shown(url: str) -> str:
    """A URL for people: without its password."""
    return re.sub(r"([?&]password=)[^&]*", r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url))


def connections(url: str, busy_s: float) -> dict[str, Any]:
    """Options of an engine. What the URL says itself wins.

    Args:
        busy_s: how long to wait for a server that does not answer, in seconds.
    """
    seconds = max(2, int(busy_s))  # libpq takes 1 for 2
    wanted = {"connect_timeout": seconds, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3,
              "tcp_user_timeout": seconds * 1000}  # fmt: skip
    return {"connect_args": {name: value for name, value in wanted.items() if f"{name}=" not in url},
            "isolation_level": "READ COMMITTED"}  # fmt: skip


def watch(sa: Any, engine: Any) -> None:
    """Find out that the server has closed a connection before it is used: a run that waited for its model must not fail
    because the server was restarted meanwhile."""

    def checkin(_: Any, record: Any) -> None:
        record.info["since"] = time.monotonic()

    def checkout(connection: Any, record: Any, _: Any) -> None:
        since = record.info.get("since")
        if since is None:
            return  # new
        try:
            if _readable(connection.pgconn.socket) or time.monotonic() - since > _IDLE_S:
                connection.execute("SELECT 1")
                connection.rollback()
        except Exception as exc:
            raise sa.exc.DisconnectionError(str(exc)) from exc

    sa.event.listen(engine, "checkin", checkin)
    sa.event.listen(engine, "checkout", checkout)


def _readable(socket: int) -> bool:
    """Whether the server said something although nobody asked: mostly that it is gone."""
    if not hasattr(select, "poll"):
        return bool(select.select([socket], [], [], 0)[0])
    said = select.poll()
    said.register(socket, select.POLLIN)
    return bool(said.poll(0))


def transaction(connection: Any, *, power: bool, busy_s: float) -> None:
    """Settings of one transaction, in one round trip.

    Args:
        power: wait for the server's disk. Otherwise what is committed outlives this process, but neither a crash of the
            server nor the loss of its power in the fraction of a second that follows.
        busy_s: how long to wait for a lock, in seconds.
    """
    connection.exec_driver_sql(
        "SELECT set_config('lock_timeout', %s, true)" + ("" if power else ", set_config('synchronous_commit', 'off', true)"),
        (f"{max(1, int(busy_s * 1000))}ms",),
    )


def lock(connection: Any, number: int) -> None:
    """Be the only one, until the transaction ends."""
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (number,))
