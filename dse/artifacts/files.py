"""Reading bounded and writing atomically."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from dse.errors import ArtifactInvalid, ArtifactNotFound, StoreUnavailable

__all__ = ["MAX_BYTES", "read_file", "sync_folder", "write_atomic"]

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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except (OSError, ValueError) as exc:
        raise StoreUnavailable("The file cannot be written", value=f"{path}: {exc}",
                               remedy="Check the permissions and the free space; nothing was changed.") from exc  # fmt: skip
    sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Make new names in `folder` survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
