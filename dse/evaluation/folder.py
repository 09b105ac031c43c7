"""A dataset as a folder: ``dataset.json`` (header, placements, revision) and ``data.jsonl`` (a row a line)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dse.errors import DatasetChanged, DatasetError
from dse.evaluation.importers import inside, write_atomic
from dse.evaluation.rows import Example, Header, read_header

__all__ = ["read_folder", "write_folder", "write_header"]


def read_folder(folder: Path) -> tuple[Header, dict[str, str], str, Path]:
    """Header, assignment and revision, and the file with the rows.

    Raises:
        DatasetError: no such folder, a malformed ``dataset.json``, or one of the two files is a link out of the folder.
    """
    header, assignment, revision = read_header(inside(folder, "dataset.json"))
    return header, assignment, revision, inside(folder, "data.jsonl")


def write_folder(
    folder: Path, header: Header, assignment: Mapping[str, str], revision: str, rows: Iterable[Example], *,
    origin: Path | None, held: str | None,
) -> None:  # fmt: skip
    """Write both files, the rows first; each is replaced in one step.

    Args:
        rows: in the order of the file.
        origin: the folder that the dataset was read from or written to before, and
        held: the revision that it had then.

    Raises:
        DatasetChanged: the folder has another revision than `held`, or assigns a cluster to another split.
        DatasetError: another dataset is there, or it cannot be written.
    """
    with _writing(folder):
        same = origin is not None and folder.resolve() == origin.resolve()
        if (folder / "dataset.json").exists():
            there, placed, found = read_header(folder / "dataset.json")
            if there.name != header.name:
                raise DatasetError(f"{folder} holds another dataset", value=there.name, remedy="Save to another folder.")
            if same and found not in (held, revision):
                raise DatasetChanged(f"{folder} was changed since it was loaded", value=found,
                                     remedy="Load it again and repeat the change.", expected=held)  # fmt: skip
            _refuse_moves(folder, placed, assignment)
        folder.mkdir(parents=True, exist_ok=True)
        if not (same and held == revision):
            write_atomic(folder / "data.jsonl", (_line(row, header.fields) for row in rows))
        _write_header(folder, header.to_json(assignment, revision))


def write_header(folder: Path, header: Header, assignment: Mapping[str, str], revision: str) -> None:
    """Write ``dataset.json`` alone, where it says anything else.

    Raises:
        DatasetError: it cannot be written.
    """
    with _writing(folder):
        _write_header(folder, header.to_json(assignment, revision))


def _write_header(folder: Path, text: bytes) -> None:
    file = folder / "dataset.json"
    if not file.exists() or file.read_bytes() != text:
        write_atomic(file, [text])


def _refuse_moves(folder: Path, placed: Mapping[str, str], assignment: Mapping[str, str]) -> None:
    for cluster, split in placed.items():
        if assignment.get(cluster, split) != split:
            raise DatasetChanged(f"{folder} has cluster {cluster!r} in {split}, not in {assignment[cluster]}",
                                 value=cluster, field="assignment",
                                 remedy="Placements are kept for good: pass assignment=Dataset.load(...).assignment "
                                        "when importing, or save to another folder.")  # fmt: skip


def _line(row: Example, fields: Iterable[str]) -> bytes:
    whole = {**row._inputs, **row._labels, **row._meta}
    flat = {"id": row.id, **{name: whole[name] for name in fields}}
    return (json.dumps(flat, ensure_ascii=False) + "\n").encode()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as exc:  # a path may hold a NUL
        raise DatasetError("The dataset cannot be written", value=f"{folder}: {exc}",
                           remedy="Name a folder that can be written.") from exc  # fmt: skip
