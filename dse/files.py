"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

__all__ = ["sync_folder", "write_whole"]


def write_whole(path: Path, chunks: Iterable[bytes], *, fsync: bool, mode: int = 0o666, replace: bool = True) -> None:
    """Write beside `path`, then put it in its place in one step; whatever goes wrong, what was there is untouched.

    Args:
        fsync: the data is on the disk before the name is (and the name after `sync_folder`).
        mode: of the new file, less the process's umask.
        replace: False refuses where there is a file already.

    Raises:
        FileExistsError: there is one, and it is not to be replaced. OSError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        (os.replace if replace else os.link)(draft, path)
    finally:
        with contextlib.suppress(OSError):  # it has been moved
            draft.unlink()


def sync_folder(folder: Path) -> None:
    """Make new names in `folder` survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
