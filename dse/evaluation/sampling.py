"""Choosing some rows of many, the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dse.canonical import digest
from dse.errors import UserError

if TYPE_CHECKING:
    from dse.evaluation.dataset import Example

__all__ = ["check_rows", "spread"]


def check_rows(n: object) -> None:
    """Refuse a number of rows that is none.

    Raises:
        UserError
    """
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
        raise UserError("A number of rows is a whole number from 1 up", value=n, remedy="Leave it out for all rows.")


def spread(examples: Sequence[Example], n: int | None) -> list[Example]:
    """At most `n` examples, over as many clusters as possible, chosen and ordered by hash."""
    clusters: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda e: e.row_hash):
        clusters.setdefault(example.cluster, []).append(example)
    order = sorted(clusters, key=lambda name: digest(name))
    chosen: list[Example] = []
    depth = 0
    while len(chosen) < len(examples) and (n is None or len(chosen) < n):
        layer = [clusters[name][depth] for name in order if depth < len(clusters[name])]
        chosen += layer if n is None else layer[: n - len(chosen)]
        depth += 1
    return chosen
