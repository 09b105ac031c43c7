"""Where a store is: what its URL says, read once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from dse.errors import StoreError
from dse.store import postgresql
from dse.store.keys import write_private

if TYPE_CHECKING:
    from sqlalchemy import URL

__all__ = ["make_file", "parsed"]


def parsed(text: str) -> tuple[URL, Path | None]:
    """The URL to connect to, and the file of an SQLite store: None for one that is none.

    Args:
        text: a file path or an SQLAlchemy URL. ``~`` at the beginning of a path is the user's home.

    Raises:
        StoreError: neither of the two, or another kind of database.
    """
    import sqlalchemy as sa

    try:
        if "://" not in text:
            return _at(sa.URL.create("sqlite", database=text or "."))
        url = sa.make_url(text)
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        kind = url.drivername.partition("+")[0]
        if kind in ("sqlite", "postgresql"):
            return _at(url) if kind == "sqlite" else (url, None)
    except (sa.exc.ArgumentError, ValueError) as exc:
        raise StoreError("The store cannot be opened", value=postgresql.shown(text),
                         remedy="Correct its URL: postgresql://user@host:port/base.") from exc  # fmt: skip
    raise StoreError("No such kind of store", value=postgresql.shown(text), remedy="Use a file path, sqlite:// or postgresql://.")


def _at(url: URL) -> tuple[URL, Path | None]:
    if url.database in (None, "", ":memory:"):
        return url, None
    named = str(url.database)
    if named.startswith("file:") and "uri" in url.query:  # SQLite's own kind of URL
        name = unquote(urlsplit(named).path)
        return url, None if name == ":memory:" or url.query.get("mode") == "memory" else Path(os.path.realpath(name))
    file = os.path.realpath(os.path.expanduser(named))
    return url.set(database=file), Path(file)


def make_file(file: Path) -> None:
    """An empty file, for the user alone, where there is none: SQLite would let others read it, and what lies beside it gets
    its mode.

    Raises:
        StoreError: its folder cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError("The store's folder cannot be made", value=str(file.parent), remedy=str(exc)) from exc
    if os.path.exists(file):
        return
    try:
        write_private(file, "", replace=False)
    except OSError:
        pass  # somebody else made it just now; or it cannot be made, and SQLite says why
