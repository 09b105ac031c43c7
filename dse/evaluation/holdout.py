"""The sealed holdout: its rows are out of sight until a ledger has recorded that they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

from dse.canonical import digest
from dse.errors import Refused
from dse.evaluation.rows import Example
from dse.evaluation.splits import loose

__all__ = ["Holdout", "Ledger", "Sealed", "SealedRow", "Select"]


class Ledger(Protocol):
    """Keeps count of holdout openings."""

    def record(self, entry: dict[str, Any]) -> int:
        """Store one opening durably; give the openings so far of any overlapping rows, this one included.

        `entry`: ``dataset`` (name), ``revision``, ``row_hashes`` and ``input_hashes`` (sorted lists), ``purpose``,
        ``compile_id``. Equal entries are one opening, however often they are recorded. Rows overlap that have a row hash or
        the inputs in common: another label or meta field does not make a row unseen.
        """
        ...


class Holdout(tuple[Example, ...]):
    """The opened holdout: a tuple of examples, and how often overlapping rows were opened, this time included."""

    openings: int

    def __new__(cls, examples: Iterable[Example], openings: int) -> Holdout:
        self = super().__new__(cls, examples)
        self.openings = openings
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.openings

    def __repr__(self) -> str:
        return f"<dse.Holdout of {len(self)} rows, opening {self.openings}>"


class SealedRow(NamedTuple):
    """What may be known of a sealed row."""

    id: str
    cluster: str
    row_hash: str


Select = Callable[[Sequence[SealedRow]], Iterable[SealedRow]]
"""Chooses sealed rows blindly."""


class Sealed:
    """Keeps the holdout out of sight: no iteration, no telling repr, no pickle, no copy."""

    __slots__ = ("_rows",)

    def __init__(self, rows: tuple[Example, ...]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<sealed: {len(self)} rows>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise Refused("A sealed holdout is not copied or pickled",
                      remedy="Pickle the examples of the open splits, or load the dataset where it is needed.")  # fmt: skip

    def open(
        self, ledger: Ledger, about: Mapping[str, str], *, purpose: str, compile_id: str | None, select: Select | None
    ) -> Holdout:
        """See `Dataset.open_holdout`; `about` names the dataset in the ledger."""
        if not callable(getattr(ledger, "record", None)):
            raise Refused("The holdout is opened with a ledger only", value=type(ledger).__name__,
                          remedy="Pass an object with record(entry) -> openings so far.")  # fmt: skip
        rows, chosen, known = self._chosen(select)
        entry = {**about, **known, "purpose": purpose, "compile_id": compile_id}
        openings = ledger.record(entry)
        if isinstance(openings, bool) or not isinstance(openings, int) or openings < 1:
            raise Refused("The ledger did not confirm the opening", value=openings,
                          remedy="record(entry) gives the number of openings, this one included.")  # fmt: skip
        return Holdout((rows[row_hash] for row_hash in chosen), openings)

    def known_by(self, select: Select | None) -> dict[str, list[str]]:
        """What a ledger knows the chosen rows by."""
        return self._chosen(select)[2]

    def _chosen(self, select: Select | None) -> tuple[dict[str, Example], list[str], dict[str, list[str]]]:
        """All sealed rows by hash, the hashes of the chosen ones, and what a ledger knows these by."""
        rows = {row.row_hash: row for row in self._rows}
        chosen = list(rows)
        if select is not None:
            known = [SealedRow(row.id, row.cluster, row.row_hash) for row in rows.values()]
            chosen = [row.row_hash for row in select(known)]
            if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= rows.keys():
                raise Refused("The chosen rows are none, repeated, or not of this holdout", value=len(chosen),
                              remedy="select(rows) gives some of the rows that it is given.")  # fmt: skip
        # As they are, and as another import of the same data may have them.
        inputs = sorted({one for h in chosen for one in (rows[h].input_hash, digest(loose(rows[h]._inputs)))})
        return rows, chosen, {"row_hashes": sorted(chosen), "input_hashes": inputs}
