"""Reading bounded and writing atomically."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dse.errors import ArtifactInvalid, ArtifactNotFound, StoreUnavailable
from dse.files import sync_folder, write_whole

__all__ = ["MAX_BYTES", "read_file", "write_atomic"]

MAX_BYTES = 64 * 2**20
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # a pipe in place of a file must not hang the reader


def read_file(path: Path) -> bytes:
    """A regular file of at most `MAX_BYTES`.

    Raises:
        ArtifactNotFound, ArtifactInvalid, StoreUnavailable
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ArtifactNotFound("This is not a file", value=str(path), remedy="Name an artifact's .json file.")
            data = stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        raise ArtifactNotFound("There is no artifact file here", value=str(path),
                               remedy="List what there is with: dse artifacts list.") from None  # fmt: skip
    except OSError as exc:
        raise StoreUnavailable("The artifact cannot be read", value=f"{path}: {exc.strerror}",
                               remedy="Check the permissions and the disk.") from None  # fmt: skip
    if len(data) > MAX_BYTES:
        raise ArtifactInvalid("The file is larger than any artifact", value=str(path),
                              remedy=f"Artifacts have at most {MAX_BYTES} bytes; name the right file.")  # fmt: skip
    return data


def write_atomic(path: Path, data: bytes) -> Path:
    """Write `data` to `path`, whole or not at all, and durably. Missing folders are made.

    Raises:
        StoreUnavailable: nothing was written; an existing file is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, [data], fsync=True)
    except (OSError, ValueError) as exc:
        raise StoreUnavailable("The file cannot be written", value=f"{path}: {exc}",
                               remedy="Check the permissions and the free space; nothing was changed.") from exc  # fmt: skip
    sync_folder(path.parent)
    return path
