"""Allow-lists from runs: the smallest sufficient set against brute force, and what data cannot say."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dse.compiler.allowlist import EXACT_UP_TO, allow_lists, exposure, smallest_sufficient

TOOLS = "abcdef"
runs = st.frozensets(st.sampled_from(TOOLS))
rows = st.lists(st.lists(runs, min_size=1, max_size=4), max_size=6)


def sufficient(chosen: frozenset[str], by_row: list[list[frozenset[str]]]) -> bool:
    return all(any(tools <= chosen for tools in one) for one in by_row)


def brute_force(by_row: list[list[frozenset[str]]], required: frozenset[str]) -> frozenset[str]:
    """All sets, small ones and alphabetically early ones first."""
    others = sorted(set(TOOLS) - required)
    for size in range(len(others) + 1):
        for extra in itertools.combinations(others, size):
            if sufficient(required | set(extra), by_row):
                return required | set(extra)
    raise AssertionError("all tools together are always enough")


@given(rows, st.frozensets(st.sampled_from(TOOLS), max_size=2))
def test_smallest_sufficient_is_the_smallest(by_row: list[list[frozenset[str]]], required: frozenset[str]) -> None:
    found, certain = smallest_sufficient(by_row, required)
    assert certain and found == brute_force(by_row, required)


@given(rows, st.randoms())
def test_the_order_of_rows_and_runs_does_not_matter(by_row: list[list[frozenset[str]]], random: Any) -> None:
    shuffled = [random.sample(one, len(one)) for one in by_row]
    random.shuffle(shuffled)
    assert smallest_sufficient(shuffled) == smallest_sufficient(by_row)


def test_rows_without_runs_ask_for_nothing() -> None:
    assert smallest_sufficient([[], [frozenset("a")], []]) == (frozenset("a"), True)
    assert smallest_sufficient([]) == (frozenset(), True)


many = [f"t{n:02}" for n in range(40)]


@given(st.lists(st.lists(st.frozensets(st.sampled_from(many), min_size=1, max_size=3), min_size=2, max_size=3), max_size=25),
       st.frozensets(st.sampled_from(many), max_size=2))  # fmt: skip
def test_greedy_beyond_the_exact_reach_is_sufficient_and_says_so(by_row: list[list[frozenset[str]]], required: frozenset[str]) -> None:
    found, certain = smallest_sufficient(by_row, required)
    assert required <= found and sufficient(found, by_row)
    assert found <= required.union(*(tools for one in by_row for tools in one)), "nothing that no run used"
    if not certain:
        options = set().union(*(tools for one in by_row for tools in one)) - required
        assert len(options) > EXACT_UP_TO


def test_a_hard_case_is_reported_as_greedy() -> None:
    pairs = [[frozenset({many[2 * n]}), frozenset({many[2 * n + 1]})] for n in range(12)]
    found, certain = smallest_sufficient(pairs)
    assert not certain and sufficient(found, pairs) and len(found) == 12
    forced = [[frozenset({name})] for name in many]
    assert smallest_sufficient(forced) == (frozenset(many), True), "without a choice there is nothing to search"


@dataclass
class Record:
    """What allow_lists looks at."""

    row_hash: str
    used_tools: frozenset[str]
    score: float = 1.0
    outcome: str = "ok"


def test_lists_come_from_successful_runs_only() -> None:
    records = [
        Record("1", frozenset("ab")), Record("1", frozenset("abc")),
        Record("2", frozenset("d"), score=0.9), Record("3", frozenset("e"), outcome="failed"),
        Record("4", frozenset("b")),
    ]  # fmt: skip
    lists: Any = allow_lists(records, tuple("edcba"))  # type: ignore[arg-type]
    assert (lists.all, lists.union, lists.minimal) == (tuple("abcde"), tuple("abc"), tuple("ab"))
    assert (lists.solved_rows, lists.exact) == (2, True)
    easier = allow_lists(records, tuple("edcba"), success=0.9)  # type: ignore[arg-type]
    assert (easier.union, easier.minimal, easier.solved_rows) == (tuple("abcd"), tuple("abd"), 3)
    kept = allow_lists(records, tuple("edcba"), required=("e",))  # type: ignore[arg-type]
    assert (kept.union, kept.minimal) == (tuple("abce"), tuple("abe"))


def test_without_a_solved_row_nothing_is_left_out() -> None:
    lists = allow_lists([Record("1", frozenset("a"), score=0.0)], ("b", "a"))  # type: ignore[list-item]
    assert lists.all == lists.union == lists.minimal == ("a", "b") and lists.solved_rows == 0


def test_exposure_counts_what_reads_or_writes() -> None:
    assert exposure(["a", "b", "c"], {"a": "pure", "b": "read", "c": "write", "d": "write"}) == 2
