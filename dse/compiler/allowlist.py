"""Allow-lists from data: which tools successful runs used, and the fewest that would have been enough."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dse.evaluation.evaluator import RolloutRecord

__all__ = ["AllowLists", "allow_lists", "smallest_sufficient"]

EXACT_UP_TO = 18


@dataclass(frozen=True)
class AllowLists:
    """Candidate allow-lists.

    Attributes:
        all: every declared tool.
        union: every tool that a successful run used.
        minimal: a smallest set such that every row solved by any candidate has a successful run using only it.
        solved_rows: rows that some candidate solved; `exact`: whether `minimal` was found by exhaustive search.
    """

    all: tuple[str, ...]
    union: tuple[str, ...]
    minimal: tuple[str, ...]
    solved_rows: int
    exact: bool

    def named(self) -> dict[str, tuple[str, ...]]:
        return {"all": self.all, "union": self.union, "minimal": self.minimal}


def smallest_sufficient(
    runs_by_row: Iterable[Sequence[frozenset[str]]], required: Iterable[str] = ()
) -> tuple[frozenset[str], bool]:
    """A smallest S with, for every row, at least one run whose tools all lie in S; and whether that is certain.

    Rows without runs ask for nothing. Among sets of equal size, the first in alphabetical order. Exhaustive up to
    18 tools between which there is a choice, greedy beyond.
    """
    must = frozenset(required)
    rows = [_minimal_sets({tools - must for tools in runs}) for runs in runs_by_row if runs]
    forced: frozenset[str] = frozenset().union(*(next(iter(sets)) for sets in rows if len(sets) == 1))
    rows = [sets for sets in rows if not any(tools <= forced for tools in sets)]
    options = sorted(set().union(*(tools for sets in rows for tools in sets)) - forced) if rows else []
    if len(options) > EXACT_UP_TO:
        chosen = set(forced)
        while rows:
            best = min((tools for sets in rows for tools in sets), key=lambda t: (len(t - chosen), sorted(t)))
            chosen |= best
            rows = [sets for sets in rows if not any(tools <= chosen for tools in sets)]
        return must | chosen, False
    for size in range(len(options) + 1):
        for extra in itertools.combinations(options, size):
            chosen_set = forced | set(extra)
            if all(any(tools <= chosen_set for tools in sets) for sets in rows):
                return must | chosen_set, True
    return must | forced | set(options), True


def _minimal_sets(sets: set[frozenset[str]]) -> list[frozenset[str]]:
    """Only the sets that contain no other."""
    return sorted((s for s in sets if not any(o < s for o in sets)), key=lambda s: (len(s), sorted(s)))


def allow_lists(records: Sequence[RolloutRecord], declared: Sequence[str], required: Iterable[str] = (), *,
                success: float = 1.0) -> AllowLists:  # fmt: skip
    """From rollouts of any candidates on search rows; a run is successful from a score of `success`."""
    by_row: dict[str, list[frozenset[str]]] = {}
    for record in records:
        if record.outcome == "ok" and record.score >= success:
            by_row.setdefault(record.row_hash, []).append(record.used_tools)
    keep = frozenset(required)
    if not by_row:  # nothing was solved: the data says nothing about what can be left out
        everything = tuple(sorted(declared))
        return AllowLists(everything, everything, everything, 0, True)
    minimal, exact = smallest_sufficient(by_row.values(), keep)
    union = keep.union(*(tools for runs in by_row.values() for tools in runs))
    return AllowLists(tuple(sorted(declared)), tuple(sorted(union)), tuple(sorted(minimal)), len(by_row), exact)


def exposure(allow: Iterable[str], effects: Mapping[str, str]) -> int:
    """Effects that a plan can have: its tools that read or write something."""
    return sum(effects[name] != "pure" for name in allow)
