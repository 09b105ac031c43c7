"""The history of one signature's aliases: a journal of moves, and the file that says where they stand.

The line in ``history.jsonl`` is written first and is what counts; ``aliases.json`` follows. A crash in between
leaves the history one line ahead, which readers see through and the next move repairs; a last line without its
newline never counted. Any other disagreement of the two files is an error, not a guess.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dse.artifacts.files import read_file, write_atomic
from dse.canonical import canonical_json, parse_json
from dse.contracts.signature import validation_summary
from dse.errors import ArtifactInvalid, ArtifactNotFound, ArtifactTampered, DseError, StoreUnavailable
from dse.files import sync_folder

__all__ = ["LOCK_WAIT_S", "Journal", "Release", "locked"]

LOCK_WAIT_S = 30.0
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # who can plant a link here must not choose what gets locked, cut or appended to
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_ONLY_APPENDED = "Restore the history; it is only ever appended to."
_Id = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Release(BaseModel):
    """One line of the history.

    Attributes:
        seq: 1, 2, 3 ... without gaps.
        time: UTC. by: who. reason: why, as given.
        action: promote and rollback move ``champion`` and ``previous``; alias moves any other.
        alias: the one that the action is about; before, after: the artifacts it named (None: nothing).
        verdict: of the artifact it names now. aliases: all aliases after the move.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seq: int
    time: str
    by: str
    action: Literal["promote", "rollback", "alias"]
    reason: str
    alias: str
    before: _Id | None
    after: _Id | None
    verdict: str | None
    aliases: dict[str, _Id]


class Journal:
    """History and aliases of one signature's folder, read and checked against each other. Hold the lock.

    Raises:
        ArtifactInvalid: a line or file that cannot be read. ArtifactTampered: a line is missing, or the two
            files contradict each other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.releases = _read_history(folder / "history.jsonl")
        self.aliases = dict(self.releases[-1].aliases) if self.releases else {}
        before = self.releases[-2].aliases if len(self.releases) > 1 else {}
        self._written = _read_aliases(folder / "aliases.json")
        if self._written is not None and self._written not in (self.aliases, before):
            raise ArtifactTampered("aliases.json does not fit history.jsonl", value=str(folder),
                                   remedy="Aliases are not edited by hand. Restore both files, or delete aliases.json to "
                                          "go by the history.")  # fmt: skip

    def champions(self) -> list[str]:
        """The releases that a rollback can step back through; the last one is the champion."""
        stack: list[str] = []
        for release in self.releases:
            if release.action == "promote" and release.after is not None:
                stack.append(release.after)
            elif release.action == "rollback" and stack:
                stack.pop()
        return stack

    def move(self, action: Literal["promote", "rollback", "alias"], alias: str, aliases: dict[str, str], *, by: str | None,
             reason: str, verdict: str | None) -> None:  # fmt: skip
        """Record a move to `aliases` and make it. The lock must be exclusive.

        Raises:
            StoreUnavailable: nothing was changed.
        """
        self.settle()
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        release = Release(seq=len(self.releases) + 1, time=now, by=by or _user(), action=action, reason=reason.strip(),
                          alias=alias, before=self.aliases.get(alias), after=aliases.get(alias), verdict=verdict,
                          aliases=aliases)  # fmt: skip
        _append(self.folder / "history.jsonl", canonical_json(release.model_dump()) + b"\n")
        with contextlib.suppress(StoreUnavailable):  # the move is made; the next one writes this file first
            write_atomic(self.folder / "aliases.json", canonical_json(aliases) + b"\n")

    def settle(self) -> None:
        """Finish an earlier move that was cut off between history and aliases. The lock must be exclusive.

        Raises:
            StoreUnavailable: nothing was changed.
        """
        if self.releases and self._written != self.aliases:
            write_atomic(self.folder / "aliases.json", canonical_json(self.aliases) + b"\n")
            self._written = dict(self.aliases)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"


def _read_history(path: Path) -> list[Release]:
    try:
        data = read_file(path)
    except ArtifactNotFound:
        return []
    releases: list[Release] = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):  # what follows the last newline was never finished
        where = f"{path}, line {number}"
        try:
            releases.append(Release.model_validate(parse_json(line, source=where)))
        except (DseError, ValidationError) as exc:
            what = validation_summary(exc) if isinstance(exc, ValidationError) else str(exc)
            raise ArtifactInvalid(f"{where} is not a release", value=what, remedy=_ONLY_APPENDED) from None
        if releases[-1].seq != number:
            raise ArtifactTampered(f"{path} lacks or repeats a line", value=f"line {number} has seq {releases[-1].seq}",
                                   remedy=_ONLY_APPENDED)  # fmt: skip
        move, before = releases[-1], releases[-2].aliases if number > 1 else {}
        if (move.before, move.after) != (before.get(move.alias), move.aliases.get(move.alias)):
            raise ArtifactTampered(f"{where} contradicts itself or the line before", value=move.alias,
                                   remedy=_ONLY_APPENDED)  # fmt: skip
    return releases


def _read_aliases(path: Path) -> dict[str, str] | None:
    try:
        data = parse_json(read_file(path), source=str(path))
    except ArtifactNotFound:
        return None
    except StoreUnavailable:
        raise
    except DseError as exc:
        raise ArtifactInvalid(f"{path} cannot be read", value=str(exc),
                              remedy="Delete it: the history says where the aliases stand.") from None  # fmt: skip
    return data if isinstance(data, dict) else {"": ""}  # fits no history


def _append(path: Path, line: bytes) -> None:
    try:
        with open(path, "a+b", buffering=0, opener=lambda name, flags: os.open(name, flags | _NOFOLLOW, 0o666)) as stream:
            stream.seek(0)
            whole = stream.read().rfind(b"\n") + 1
            stream.truncate(whole)  # an unfinished line of a crashed writer never counted
            try:
                if stream.write(line) != len(line):
                    raise OSError("only a part was written")
                os.fsync(stream.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    stream.truncate(whole)
                raise
    except OSError as exc:
        raise StoreUnavailable("The history cannot be written", value=f"{path}: {exc}",
                               remedy="Check the permissions and the free space; nothing was changed.") from exc  # fmt: skip
    sync_folder(path.parent)


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a signature's folder. It is on history.jsonl, which is never replaced, and ends with the process.

    Args:
        shared: for readers. Without a history there is nothing that could move, and nothing to lock.

    Raises:
        StoreUnavailable: the lock cannot be had within `LOCK_WAIT_S` seconds, or the folder cannot be written.
    """
    flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT | _NOFOLLOW
    try:
        handle = os.open(folder / "history.jsonl", flags | os.O_CLOEXEC | _NONBLOCK, 0o666)
    except FileNotFoundError:
        if not shared:
            raise StoreUnavailable("There is no folder for this signature", value=str(folder),
                                   remedy="Put an artifact of it first.") from None  # fmt: skip
        yield
        return
    except OSError as exc:
        raise StoreUnavailable("The registry cannot be opened", value=f"{folder}: {exc}",
                               remedy="Check the permissions and the disk.") from exc  # fmt: skip
    try:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnavailable("Another process holds the registry's lock", value=str(folder),
                                           remedy="Wait for it, or end it.") from None  # fmt: skip
                time.sleep(0.01)
            except OSError as exc:  # a file system without locks
                raise StoreUnavailable("The registry cannot be locked", value=f"{folder}: {exc}",
                                       remedy="Keep the registry on a file system with flock.") from exc  # fmt: skip
        if not shared:
            for leftover in folder.glob(".*.json.*.tmp"):  # of a writer that was killed: whoever writes here holds the lock
                leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)
