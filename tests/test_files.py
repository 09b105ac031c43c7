"""Files that are written whole or not at all."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dse.files import write_whole


@pytest.mark.parametrize("fsync", [False, True])
def test_a_file_is_put_in_place_of_another(tmp_path: Path, fsync: bool) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(b"old")
    write_whole(path, [b"new ", b"text"], fsync=fsync)
    assert path.read_bytes() == b"new text" and list(tmp_path.iterdir()) == [path]


def test_what_goes_wrong_on_the_way_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(b"old")

    def chunks() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, chunks(), fsync=True)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_what_is_not_to_be_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "some.key"
    write_whole(path, [b"first"], fsync=True, mode=0o600, replace=False)
    with pytest.raises(FileExistsError):
        write_whole(path, [b"second"], fsync=True, mode=0o600, replace=False)
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
