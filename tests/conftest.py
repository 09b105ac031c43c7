"""Settings of all tests, and the stores that tests of the store run with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from postgresql_server import Server

settings.register_profile("dse", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("dse")

_NO_SERVER = "There is no PostgreSQL server to test with: "
KEY = "5e" * 32


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """One server per test process (one per worker of pytest-xdist), started when the first test needs it."""
    try:
        import psycopg  # noqa: F401
        from postgresql_server import NoServer, Server
    except ImportError as exc:
        pytest.skip(f"{_NO_SERVER}{exc}")
    try:
        server = Server()
    except NoServer as exc:
        pytest.skip(f"{_NO_SERVER}{exc}")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def postgresql_database(postgresql_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an empty database, and a key for the store in it."""
    monkeypatch.setenv("DSE_KEY", KEY)
    name = postgresql_server.make()
    yield name
    with postgresql_server.connect() as c:
        c.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store can be made, in each of the databases that dse knows."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'runs.db'}"
    database = request.getfixturevalue("postgresql_database")
    return str(request.getfixturevalue("postgresql_server").url(database))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say once, and loudly, that half of the store was not tested."""
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", ())
               if isinstance(report.longrepr, tuple) and _NO_SERVER in report.longrepr[2]]  # fmt: skip
    if reasons:
        terminalreporter.section("PostgreSQL was not tested", sep="!", red=True, bold=True)
        terminalreporter.line(f"{len(reasons)} tests skipped. {reasons[0].removeprefix('Skipped: ')}")
