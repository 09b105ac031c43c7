"""What no dataset may be: rows that are not those of its revision, a row twice, or inputs that two splits share."""

from __future__ import annotations

from collections.abc import Sequence

from dse.errors import ContaminatedSplit, DatasetChanged, DuplicateRow
from dse.evaluation.rows import Placed
from dse.evaluation.splits import SPLITS, input_texts, similar_pairs

__all__ = ["refuse_changes", "refuse_copies", "refuse_overlap"]


def refuse_changes(where: str, stored: str, revision: str, unplaced: list[str]) -> None:
    """Rows whose `revision` is not the `stored` one, or clusters of them that have no split.

    Raises:
        DatasetChanged
    """
    remedy = f"If the rows are meant to be like this, accept them: dse dataset seal {where}, or dse.Dataset.seal(path)."
    if not stored:
        raise DatasetChanged(f"{where} has no revision yet", remedy=remedy, file=where, field="revision",
                             computed=revision)  # fmt: skip
    if stored != revision:
        raise DatasetChanged(f"{where}: the rows, field roles or name are not those of the revision", value=stored,
                             remedy=remedy, file=where, field="revision", computed=revision)  # fmt: skip
    if unplaced:
        raise DatasetChanged(f"{where}: {len(unplaced)} clusters have no split", value=unplaced[0], remedy=remedy,
                             file=where, field="assignment")  # fmt: skip


def refuse_copies(placed: Sequence[Placed]) -> None:
    """Two rows with one id, or with the same content.

    Raises:
        DuplicateRow
    """
    ids: dict[str, Placed] = {}
    contents: dict[str, Placed] = {}
    for item in placed:
        earlier = ids.setdefault(item.example.id, item)
        if earlier is not item:
            raise DuplicateRow(f"The id of {item} is that of line {earlier.line} of {earlier.source}", value=item.example.id,
                               remedy="Give every row its own id.", file=item.source, line=item.line, field="id",
                               other_line=earlier.line)  # fmt: skip
        earlier = contents.setdefault(item.example.row_hash, item)
        if earlier is not item:
            raise DuplicateRow(f"The content of {item} is that of {earlier}", value=item.example.row_hash,
                               remedy="Remove one of them.", file=item.source, line=item.line,
                               rows=[earlier.example.id, item.example.id], other_line=earlier.line)  # fmt: skip


def refuse_overlap(where: str, placed: Sequence[Placed], split_of: Sequence[str]) -> None:
    """The same or nearly the same inputs in two splits; `split_of` gives that of each row.

    Raises:
        ContaminatedSplit
    """
    rows = [item.example for item in placed]
    texts = input_texts([row._inputs for row in rows])
    pair: tuple[int, int, float] | None = None
    bare: dict[str, int] = {}  # rows without any text: only equal inputs are alike
    for index, text in enumerate(texts):
        if not text.strip():
            first = bare.setdefault(rows[index].input_hash, index)
            if split_of[first] != split_of[index]:
                pair = (first, index, 1.0)
                break
    if pair is None:
        pair = next(iter(similar_pairs(texts, [SPLITS.index(split) for split in split_of], limit=1)), None)
    if pair is None:
        return
    one, other, similarity = pair
    how = "the same inputs" if similarity == 1.0 else f"nearly the same inputs ({similarity:.2f} alike)"
    raise ContaminatedSplit(
        f"{where}: {split_of[one]} row {rows[one].id!r} and {split_of[other]} row {rows[other].id!r} have {how}",
        remedy="Give rows that resemble each other one cluster, or remove one of the two.",
        rows=[rows[one].id, rows[other].id], splits=[split_of[one], split_of[other]], similarity=similarity,
        clusters=[rows[one].cluster, rows[other].cluster],
    )  # fmt: skip
