"""Datasets: rows are checked, splits stay put, the holdout stays sealed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime as dt
import enum
import hashlib
import json
import pickle
import random
import subprocess
import sys
import time
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, TypeAdapter

from dse.canonical import digest
from dse.errors import (
    ContaminatedSplit,
    DatasetChanged,
    DatasetError,
    DseError,
    DuplicateRow,
    MalformedRow,
    MissingHoldout,
    Refused,
    Unserialisable,
)
from dse.evaluation.dataset import Dataset, Example, input_text, near_duplicates, seal
from dse.evaluation.holdout import Holdout
from dse.evaluation.importers import write_atomic
from dse.evaluation.splits import assign, similar_pairs
from dse.store.journal import Store

FIELDS = {"question": "input", "answer": "label", "scenario": "meta"}
QUOTA = {"search": 0.4, "select": 0.3, "holdout": 0.3}


def words(seed: Any, n: int = 12) -> str:
    """Text that resembles no other seed's."""
    return " ".join(hashlib.sha256(f"{seed}/{i}".encode()).hexdigest()[: 3 + i % 5] for i in range(n))


def make_rows(n: int = 40, per_cluster: int = 2, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "question": words(i), "answer": f"secret-{i}", "scenario": f"s{i // per_cluster}"}
        for i in range(start, start + n)
    ]


def make(rows: list[dict[str, Any]] | None = None, **more: Any) -> Dataset:
    options: dict[str, Any] = {"name": "demo", "fields": FIELDS, "cluster_key": "scenario", **more}
    return Dataset.from_rows(make_rows() if rows is None else rows, **options)


class Ledger:
    def __init__(self, answer: Any = None) -> None:
        self.entries: list[dict[str, Any]] = []
        self.answer = answer

    def record(self, entry: dict[str, Any]) -> Any:
        self.entries.append(entry)
        return len(self.entries) if self.answer is None else self.answer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make().save(tmp_path / "demo")
    return tmp_path / "demo"


def edit(folder: Path, **changes: Any) -> None:
    """Change keys of dataset.json by hand; "split__x" reaches into the split, None as value of a key removes it."""
    file = folder / "dataset.json"
    data = json.loads(file.read_text())
    for key, value in changes.items():
        where, name = (data["split"], key[7:]) if key.startswith("split__") else (data, key)
        if value is ...:
            del where[name]
        else:
            where[name] = value
    file.write_text(json.dumps(data))


# ---- examples ---------------------------------------------------------------------------------------------


def test_example_gives_its_fields_as_attributes():
    row = Example("e1", {"question": "why"}, {"answer": 42, "question": "shadowed"}, {"world": {"seed": 7}}, "c")
    assert (row.id, row.cluster, row.question, row.answer, row.world) == ("e1", "c", "why", 42, {"seed": 7})
    assert Example("e1", {}).cluster == "e1"
    with pytest.raises(AttributeError, match="no field 'colour'; it has: question"):
        _ = row.colour


def test_example_hashes_are_of_content_without_id_and_cluster():
    one = Example("a", {"q": 1}, {"l": 2}, {"m": 3}, "c")
    same = Example("b", {"q": 1}, {"l": 2}, {"m": 3}, "d")
    assert one.row_hash == same.row_hash == digest({"inputs": {"q": 1}, "labels": {"l": 2}, "meta": {"m": 3}})
    other = Example("a", {"q": 1}, {"l": 2}, {"m": 4}, "c")
    assert one.row_hash != other.row_hash and one.input_hash == other.input_hash == digest({"q": 1})
    assert one != same and one == Example("a", {"q": 1}, {"l": 2}, {"m": 3}, "c") and len({one, same, one}) == 2


def test_what_a_world_does_to_an_example_reaches_nobody_else():
    row = Example("e", {"q": ["a"]}, {}, {"world": {"items": [1]}})
    row.meta["world"]["items"].append(2)
    row.world["items"].clear()
    row.inputs["q"].append("b")
    row.q.append("c")
    assert row.meta == {"world": {"items": [1]}} and row.inputs == {"q": ["a"]}
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.id = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        del row.cluster


def test_example_copies_its_arguments_and_refuses_what_json_cannot_hold():
    given_inputs = {"q": [1]}
    row = Example("e", given_inputs)
    given_inputs["q"].append(2)
    assert row.inputs == {"q": [1]}
    with pytest.raises(Unserialisable):
        Example("e", {"q": float("nan")})
    with pytest.raises(DatasetError):
        Example(7, {})  # type: ignore[arg-type]


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_example_pickles_and_copies(inputs: dict[str, Any]):
    row = Example("e", inputs, {"l": 1}, {"m": None}, "c")
    for twin in (pickle.loads(pickle.dumps(row)), copy.copy(row), copy.deepcopy(row)):
        assert twin == row and twin.inputs == row.inputs == inputs and twin.row_hash == row.row_hash
        assert twin.labels == {"l": 1} and twin.cluster == "c" and twin.input_hash == digest(inputs)


# ---- revision ---------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(12)))
def test_revision_and_splits_do_not_depend_on_row_order(order: list[int]):
    rows = make_rows(12, 1)
    one, other = make(rows), make([rows[i] for i in order])
    assert one.revision == other.revision
    assert one.assignment == other.assignment and one.split_hashes == other.split_hashes


def test_revision_changes_with_content_roles_and_name_but_not_with_ids():
    base = make()
    rows = make_rows()
    assert make([{**row, "id": "x" + row["id"]} for row in rows]).revision == base.revision
    assert make([{**rows[0], "answer": "new"}, *rows[1:]]).revision != base.revision
    assert make(rows[1:]).revision != base.revision
    assert make(name="other").revision != base.revision
    assert make(fields={**FIELDS, "answer": "meta"}).revision != base.revision


# ---- splits -----------------------------------------------------------------------------------------------


def test_splits_meet_the_quota_and_hold_whole_clusters():
    data = make(make_rows(200, 4))
    counts = {name: split["rows"] for name, split in data.describe()["splits"].items()}
    assert counts == {"search": 80, "select": 60, "holdout": 60}
    search = {row.cluster for row in data.split("search")}
    assert not search & {row.cluster for row in data.split("select")}
    assert data.describe()["clusters"] == 50 == len(data.assignment)


def test_rows_without_a_cluster_key_stand_alone():
    data = make(cluster_key=None)
    assert all(row.cluster == row.id for row in data) and data.describe()["clusters"] == 40
    rows = [{**row, "scenario": None if i % 2 else 7} for i, row in enumerate(make_rows())]
    clusters = set(make(rows).assignment)
    assert clusters == {"7"} | {f"r{i}" for i in range(1, 40, 2)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=60),
    st.lists(st.integers(1, 30), max_size=30),
    st.lists(st.integers(0, 20), max_size=60),
    st.text(min_size=1, max_size=4),
)
def test_placements_never_change(first: list[int], later: list[int], growth: list[int], salt: str):
    sizes = {f"c{i}": size for i, size in enumerate(first)}
    placed = assign(sizes, QUOTA, salt, {})
    assert placed.keys() == sizes.keys()
    grown = {name: size + extra for (name, size), extra in zip(sizes.items(), [*growth, *[0] * 60], strict=False)}
    grown |= {f"new{i}": size for i, size in enumerate(later)}
    again = assign(grown, QUOTA, salt, placed)
    assert placed.items() <= again.items() and again.keys() == grown.keys()
    assert assign(dict(reversed(grown.items())), QUOTA, salt, placed) == again


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=30, max_size=80), st.text(min_size=1, max_size=4))
def test_quota_is_met_within_a_cluster(sizes: list[int], salt: str):
    by_name = {f"c{i}": size for i, size in enumerate(sizes)}
    placed = assign(by_name, QUOTA, salt, {})
    for split, share in QUOTA.items():
        rows = sum(size for name, size in by_name.items() if placed[name] == split)
        assert abs(rows - share * sum(sizes)) <= max(sizes)


def test_one_giant_cluster_does_not_starve_the_holdout():
    for salt in "abcdefgh":
        placed = assign({"giant": 100, "a": 1, "b": 1}, QUOTA, salt, {})
        assert sorted(placed.values()) == ["holdout", "search", "select"] and placed["giant"] == "search"


def test_new_clusters_fill_what_lacks():
    sizes = {f"c{i}": 1 for i in range(20)}
    everything_open = dict.fromkeys([f"c{i}" for i in range(10)], "search")
    placed = assign(sizes, QUOTA, "s", everything_open)
    assert sum(split == "search" for split in placed.values()) == 10
    assert sum(split == "holdout" for split in placed.values()) == 5


def test_clusters_are_dealt_by_hash_not_by_name_or_size():
    sizes = {f"c{i:03}": 1 for i in range(300)}
    one, other = assign(sizes, QUOTA, "salt-1", {}), assign(sizes, QUOTA, "salt-2", {})
    assert 100 < sum(one[name] != other[name] for name in sizes) < 260
    first_half = sum(one[f"c{i:03}"] == "holdout" for i in range(150))
    assert 25 < first_half < 65


@pytest.mark.parametrize(
    ("quota", "error"),
    [
        ({"search": 0.5, "select": 0.5, "holdout": 0}, MissingHoldout),
        ({"search": 0.5, "select": 0.5}, MissingHoldout),
        ({"search": 0.5, "holdout": 0.5}, DatasetError),
        ({"search": 0.5, "select": 0.5, "holdout": 0.3}, DatasetError),
        ({"search": 0.4, "select": 0.3, "holdout": 0.3, "test": 0}, DatasetError),
        ({"search": True, "select": 0.3, "holdout": 0.3}, DatasetError),
        ({"search": -0.4, "select": 0.7, "holdout": 0.7}, DatasetError),
        ([0.4, 0.3, 0.3], DatasetError),
    ],
)
def test_bad_quotas(quota: Any, error: type[DseError]):
    with pytest.raises(error) as caught:
        make(quota=quota)
    assert type(caught.value) is error and caught.value.details["field"] == "quota"


def test_missing_holdout():
    with pytest.raises(MissingHoldout, match="no row is in the holdout"):
        make(make_rows(2))
    with pytest.raises(MissingHoldout):
        make([])


# ---- the seal ---------------------------------------------------------------------------------------------


def test_holdout_is_refused_and_out_of_sight():
    data = make()
    with pytest.raises(Refused, match="sealed"):
        data.split("holdout")
    with pytest.raises(DatasetError, match="no such split"):
        data.split("train")
    opened = data.open_holdout(Ledger())
    secrets = [row.labels["answer"] for row in opened]
    assert len(secrets) == 12
    assert len(data) == len(list(data)) == len(data.rows) == 28
    shown = repr(data) + repr(vars(data)) + str(data.describe()) + repr(data.holdout_summary()) + repr(data.overlaps(["x"]))
    shown += pickle.dumps((data.rows, data.split("search"), data.split("select"))).decode("latin-1")

    def is_shown(answer: str) -> bool:
        return f"{answer}'" in shown or f"{answer}\x94" in shown  # in a repr, in a pickle

    assert all(is_shown(row.answer) for row in data) and not any(map(is_shown, secrets))
    assert not {row.id for row in opened} & {row.id for row in data}
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(Refused):
            attempt(data)


def test_opening_is_recorded_first_and_counted():
    data, ledger = make(), Ledger()
    opened = data.open_holdout(ledger, purpose="gate", compile_id="c-1")
    (entry,) = ledger.entries
    assert set(entry) == {"dataset", "revision", "row_hashes", "input_hashes", "purpose", "compile_id"}
    assert (entry["dataset"], entry["revision"]) == ("demo", data.revision)
    assert (entry["purpose"], entry["compile_id"]) == ("gate", "c-1")
    assert entry["row_hashes"] == sorted(row.row_hash for row in opened)
    assert entry["input_hashes"] == sorted(row.input_hash for row in opened)
    assert isinstance(opened, Holdout) and opened.openings == 1 and "secret" not in repr(opened)
    assert data.open_holdout(ledger).openings == 2
    assert all(data.assignment[row.cluster] == "holdout" for row in opened)
    twin = pickle.loads(pickle.dumps(opened))
    assert twin == opened and twin.openings == 1
    summary = data.holdout_summary()
    assert summary == {"rows": 12, "clusters": 6, "hash": digest(entry["row_hashes"])}


def test_a_holdout_stays_opened_when_another_field_is_added():
    rows = make_rows()
    data, other = make(rows), make([{**row, "asked_by": "somebody"} for row in rows], fields={**FIELDS, "asked_by": "meta"})
    with contextlib.closing(Store(":memory:")) as store:
        first = data.open_holdout(store, compile_id="one")
        again = other.open_holdout(store, compile_id="two")
        assert first.openings == 1 and again.openings == 2
        assert {row.inputs["question"] for row in first} == {row.inputs["question"] for row in again}
        assert not {row.row_hash for row in first} & {row.row_hash for row in again}
        assert sorted(row_hash for row_hash, inputs, sealed in store.measured() if sealed and inputs is None) == sorted(
            row.row_hash for row in (*first, *again))  # fmt: skip
        assert make(make_rows(start=100)).open_holdout(store, compile_id="three").openings == 1, "other inputs"


def test_openings_that_were_recorded_by_row_hash_alone_still_count():
    data = make()
    with contextlib.closing(Store(":memory:")) as store:
        hashes = sorted(row.row_hash for row in data.open_holdout(Ledger()))
        old = {"dataset": "demo", "revision": data.revision, "row_hashes": hashes, "purpose": "gate", "compile_id": "one"}
        assert store.record(old) == 1
        assert data.open_holdout(store, compile_id="one").openings == 1, "the same compile again is the same opening"
        assert data.open_holdout(store, compile_id="two").openings == 2


def test_part_of_the_holdout_is_chosen_blindly():
    data, ledger = make(), Ledger()
    seen: list[Any] = []

    def some(rows: Any) -> Any:
        seen.extend(rows)
        return rows[3:0:-1]

    opened = data.open_holdout(ledger, select=some)
    assert len(seen) == 12 and {f for row in seen for f in row._fields} == {"id", "cluster", "row_hash"}
    assert [row.id for row in opened] == [seen[3].id, seen[2].id, seen[1].id]
    assert ledger.entries[0]["row_hashes"] == sorted(row.row_hash for row in opened)
    open_row = data.rows[0]
    for choice in (lambda rows: [], lambda rows: [rows[0], rows[0]], lambda rows: [open_row]):
        with pytest.raises(Refused):
            data.open_holdout(ledger, select=choice)
    assert len(ledger.entries) == 1


@pytest.mark.parametrize("answer", [0, -1, True, "1", 1.0])
def test_an_unconfirmed_opening_is_refused(answer: Any):
    with pytest.raises(Refused, match="did not confirm"):
        make().open_holdout(Ledger(answer))


def test_no_ledger_no_holdout():
    for ledger in (None, object(), {"record": 1}):
        with pytest.raises(Refused, match="ledger only"):
            make().open_holdout(ledger)  # type: ignore[arg-type]

    class Broken:
        def record(self, entry: dict[str, Any]) -> int:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        make().open_holdout(Broken())


# ---- files ------------------------------------------------------------------------------------------------


def test_save_and_load_round_trip(folder: Path):
    data, again = make(), Dataset.load(folder)
    assert again.revision == data.revision and again.assignment == data.assignment
    assert again.rows == data.rows and again.split_hashes == data.split_hashes and again.path == folder
    lines = (folder / "data.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"r{i}" for i in range(40)]
    stored = json.loads((folder / "dataset.json").read_text())
    assert list(stored) == [
        "format", "name", "signature", "fields", "cluster_key", "license", "source", "builder", "split", "revision",
    ]  # fmt: skip
    assert stored["revision"] == data.revision and stored["split"]["algorithm"] == "quota-hash-1"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=6, max_size=6))
def test_any_text_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]):
    rows = [
        {"id": f"r{i}", "question": words(i), "answer": [text, None, 1.0], "scenario": i} for i, text in enumerate(texts)
    ]
    folder = tmp_path_factory.mktemp("any")
    made = make(rows)
    made.save(folder)
    again = Dataset.load(folder)
    assert again.revision == made.revision
    everything = {row.id: row.labels["answer"] for row in (*again, *again.open_holdout(Ledger()))}
    assert everything == {row["id"]: row["answer"] for row in rows}


def test_saving_again_changes_no_byte(folder: Path):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    Dataset.load(folder).save()
    assert seal(folder).revision == Dataset.seal(folder).revision
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert set(before) == {"dataset.json", "data.jsonl"}


def test_saving_what_was_loaded_leaves_the_rows_as_written(folder: Path):
    file = folder / "data.jsonl"
    file.write_text(file.read_text().replace('": "', '":   "'))
    before = file.read_bytes()
    Dataset.load(folder).save()
    assert file.read_bytes() == before


@pytest.mark.parametrize("fail_at", [0, 1])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, fail_at: int):
    target = tmp_path / "data.jsonl"
    target.write_bytes(b"old")

    def chunks() -> Any:
        for i in range(3):
            if i == fail_at:
                raise OSError("disk full")
            yield b"new"

    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, chunks())
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_a_crash_between_the_two_files_loses_no_row(folder: Path, tmp_path: Path):
    bigger = Dataset.load(folder).append(make_rows(10, 2, start=40))
    bigger.save(tmp_path / "copy")
    (folder / "data.jsonl").write_bytes((tmp_path / "copy" / "data.jsonl").read_bytes())
    with pytest.raises(DatasetChanged):
        Dataset.load(folder)
    settled = seal(folder)
    assert settled.revision == bigger.revision and settled.assignment == bigger.assignment


def test_append_keeps_placements_and_changes_nothing_else(folder: Path):
    data = Dataset.load(folder)
    bigger = data.append([*make_rows(20, 2, start=100), {**make_rows(1, 2, start=900)[0], "scenario": "s0"}])
    assert data.assignment.items() <= bigger.assignment.items()
    assert data.describe()["rows"] == 40 and bigger.describe()["rows"] == 61
    assert bigger.revision != data.revision
    bigger.save()
    assert Dataset.load(folder).assignment == bigger.assignment


def test_a_dataset_goes_on_after_it_was_saved(tmp_path: Path):
    data = make()
    data.save(tmp_path / "demo")
    bigger = data.append(make_rows(4, 2, start=40))
    bigger.save()
    bigger.append(make_rows(4, 2, start=44)).save()
    assert Dataset.load(tmp_path / "demo").describe()["rows"] == 48


def test_append_is_all_or_nothing(folder: Path):
    data = Dataset.load(folder)
    good, bad = make_rows(2, 2, start=50)
    with pytest.raises(MalformedRow) as caught:
        data.append([good, {**bad, "colour": "red"}])
    assert caught.value.details["line"] == 2 and caught.value.details["field"] == "colour"
    with pytest.raises(DuplicateRow, match="r3"):
        data.append([{**good, "id": "r3"}])
    assert Dataset.load(folder).describe()["rows"] == 40


def test_a_folder_changed_by_someone_else_is_not_overwritten(folder: Path):
    mine, theirs = Dataset.load(folder), Dataset.load(folder)
    theirs.append(make_rows(4, 2, start=60)).save()
    before = (folder / "data.jsonl").read_bytes()
    with pytest.raises(DatasetChanged, match="changed since it was loaded"):
        mine.append(make_rows(4, 2, start=70)).save()
    assert (folder / "data.jsonl").read_bytes() == before


def test_saving_never_moves_a_cluster(folder: Path):
    with pytest.raises(DatasetChanged, match="has cluster"):
        make(salt="another").save(folder)
    kept = make(make_rows(60), salt="another", assignment=Dataset.load(folder).assignment)
    kept.save(folder)
    assert make().assignment.items() <= Dataset.load(folder).assignment.items()
    with pytest.raises(DatasetError, match="another dataset"):
        make(name="else").save(folder)
    with pytest.raises(DatasetError, match="no folder yet"):
        make().save()


# ---- sealing and changes ----------------------------------------------------------------------------------


def test_builders_leave_the_rest_to_seal(folder: Path):
    finished = (folder / "dataset.json").read_bytes()
    edit(folder, revision="", split__assignment={})
    with pytest.raises(DatasetChanged, match="no revision yet"):
        Dataset.load(folder)
    seal(folder)
    assert (folder / "dataset.json").read_bytes() == finished


@pytest.mark.parametrize("change", ["value", "remove", "add", "name", "role"])
def test_changed_data_is_noticed(folder: Path, change: str):
    file = folder / "data.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    if change == "value":
        file.write_text(file.read_text().replace("secret-7\"", "secret-77\""))
    elif change == "remove":
        file.write_text("".join(lines[1:]))
    elif change == "add":
        file.write_text("".join([*lines, json.dumps(make_rows(1, 2, start=80)[0]) + "\n"]))
    elif change == "name":
        edit(folder, name="renamed")
    else:
        edit(folder, fields={**FIELDS, "answer": "meta"})
    with pytest.raises(DatasetChanged) as caught:
        Dataset.load(folder)
    assert caught.value.details["field"] == "revision" and "seal" in caught.value.remedy
    assert seal(folder).revision == caught.value.details["computed"] == Dataset.load(folder).revision


def test_a_cluster_without_a_split_is_noticed(folder: Path):
    assignment = Dataset.load(folder).assignment
    edit(folder, split__assignment={name: split for name, split in assignment.items() if name != "s3"})
    with pytest.raises(DatasetChanged, match="1 clusters have no split") as caught:
        Dataset.load(folder)
    assert caught.value.value == "s3"
    assert seal(folder).assignment.items() >= {k: v for k, v in assignment.items() if k != "s3"}.items()


def test_a_cluster_that_left_keeps_its_place(folder: Path):
    before = Dataset.load(folder).assignment
    lines = (folder / "data.jsonl").read_text().splitlines(keepends=True)
    (folder / "data.jsonl").write_text("".join(lines[2:]))
    assert seal(folder).assignment == before
    back = Dataset.load(folder).append([json.loads(line) for line in lines[:2]])
    assert back.assignment == before


def test_seal_writes_nothing_when_the_rows_are_bad(folder: Path):
    file = folder / "data.jsonl"
    file.write_text(file.read_text() + file.read_text().splitlines()[0].replace('"r0"', '"again"') + "\n")
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(DuplicateRow):
        seal(folder)
    assert (folder / "dataset.json").read_bytes() == before


# ---- malformed files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "field", "words"),
    [
        ('{"id": "r2", "question": ', None, "not JSON"),
        ('{"id": "r2", "question": NaN, "answer": 1, "scenario": "s"}', None, "NaN"),
        ('{"id": "r2", "question": 1e999, "answer": 1, "scenario": "s"}', None, "too large"),
        ('{"id": "r2", "id": "r3", "question": "q", "answer": 1, "scenario": "s"}', None, "same key twice"),
        ('["r2"]', None, "list, not an object"),
        ("null", None, "NoneType, not an object"),
        ("", None, "empty"),
        ('{"id": "r2", "question": "q", "answer": 1}', "scenario", "missing"),
        ('{"question": "q", "answer": 1, "scenario": "s"}', "id", "missing"),
        ('{"id": "r2", "question": "q", "answer": 1, "scenario": "s", "x": 1}', "x", "not declared"),
        ('{"id": "r2", "question": "q", "answer": 1, "scenari": "s"}', "scenario", "missing"),
        ('{"id": 2, "question": "q", "answer": 1, "scenario": "s"}', "id", "not a string"),
        ('{"id": " ", "question": "q", "answer": 1, "scenario": "s"}', "id", "empty"),
        ('{"id": "r2", "question": "q", "answer": 1, "scenario": ["s"]}', "scenario", "not a name"),
        ('{"id": "r2", "question": "q", "answer": 1, "scenario": true}', "scenario", "not a name"),
        ('{"id": "r2", "question": "\\ud83d", "answer": 1, "scenario": "s"}', "question", "surrogate"),
        ('{"id": "r2", "question": "q", "answer": ' + "[" * 250 + "]" * 250 + ', "scenario": "s"}', "answer", "deeper"),
        ('{"id": "r2", "question": "q", "answer": ' + "[" * 9000 + "]" * 9000 + ', "scenario": "s"}', None, "nested"),
    ],
)
def test_malformed_lines(folder: Path, line: str, field: str | None, words: str):
    file = folder / "data.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = line
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(MalformedRow, match=words) as caught:
        Dataset.load(folder)
    error = caught.value
    assert (error.details["file"], error.details["line"], error.details["field"]) == (str(file), 3, field)
    assert error.code == "DSE151" and error.remedy and f"{file}, line 3" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_bytes_that_are_not_utf8(folder: Path):
    file = folder / "data.jsonl"
    file.write_bytes(file.read_bytes().replace(b"secret-1\"", b"secret-\xff\"", 1))
    with pytest.raises(MalformedRow, match="not UTF-8") as caught:
        Dataset.load(folder)
    assert caught.value.details["line"] == 2


def test_a_line_nested_too_deeply_is_named(folder: Path):
    data = folder / "data.jsonl"
    row = json.loads(data.read_bytes().splitlines()[0])
    row["answer"] = json.loads("[" * 900 + "]" * 900)
    data.write_text(json.dumps(row) + "\n")
    with pytest.raises(MalformedRow, match=r"line 1: .*nested deeper"):
        Dataset.load(folder)


def test_places_that_cannot_be_used(tmp_path: Path):
    data = make(make_rows())
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none", "a\0b"):
        with pytest.raises(DatasetError, match="cannot be written"):
            data.save(place)
    for read in (lambda: Dataset.load("a\0b"), lambda: Dataset.from_jsonl("a\0b", name="d", fields=FIELDS)):
        with pytest.raises(DatasetError, match="cannot be read"):
            read()


def test_arguments_of_the_wrong_type():
    with pytest.raises(DatasetError, match="no such split"):
        make(make_rows()).split([])  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="not a string"):
        make(make_rows(), assignment={5: "search"})


def test_line_ends_and_odd_but_valid_text(folder: Path):
    file = folder / "data.jsonl"
    revision = Dataset.load(folder).revision
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n").rstrip())
    assert Dataset.load(folder).revision == revision
    rows = make_rows()
    rows[0]["answer"] = "line\u2028separator \x85 and 😀"
    make(rows).save(folder.parent / "odd")
    odd = folder.parent / "odd" / "data.jsonl"
    odd.write_text("".join(json.dumps(json.loads(line)) + "\n" for line in odd.read_text().split("\n") if line))  # escaped
    assert Dataset.load(folder.parent / "odd").revision == make(rows).revision


def test_duplicates_are_named(folder: Path):
    rows = make_rows()
    with pytest.raises(DuplicateRow) as caught:
        make([*rows, {**rows[5], "question": words("new")}])
    assert caught.value.details["field"] == "id" and "line 41" in str(caught.value) and "line 6" in str(caught.value)
    with pytest.raises(DuplicateRow) as caught:
        make([*rows, {**rows[5], "id": "copy"}])
    assert caught.value.details["rows"] == ["r5", "copy"] and caught.value.details["other_line"] == 6


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"format": 2}, "format"),
        ({"format": ...}, "format"),
        ({"colour": 1}, "colour"),
        ({"name": ...}, "name"),
        ({"name": ""}, "name"),
        ({"license": 3}, "license"),
        ({"revision": 3}, "revision"),
        ({"split": ...}, "split"),
        ({"split": []}, None),
        ({"split__colour": 1}, "colour"),
        ({"split__algorithm": "random"}, "algorithm"),
        ({"split__salt": ...}, "salt"),
        ({"split__salt": ""}, "salt"),
        ({"split__quota": 1}, "quota"),
        ({"split__assignment": []}, "assignment"),
        ({"fields": []}, "fields"),
        ({"fields": {"question": "label", "answer": "label", "scenario": "meta"}}, "fields"),
        ({"fields": {**FIELDS, "answer": "output"}}, "answer"),
        ({"fields": {**FIELDS, "id": "meta"}}, "id"),
        ({"cluster_key": "answer"}, "cluster_key"),
        ({"cluster_key": "nothing"}, "cluster_key"),
        ({"cluster_key": 1}, "cluster_key"),
    ],
)
def test_malformed_headers(folder: Path, changes: dict[str, Any], field: str | None):
    edit(folder, **changes)
    for read in (Dataset.load, seal):
        with pytest.raises(DatasetError) as caught:
            read(folder)
        assert caught.value.details.get("field") == field and caught.value.remedy


def test_assignment_to_a_split_that_does_not_exist(folder: Path):
    edit(folder, split__assignment={**Dataset.load(folder).assignment, "s4": "train"})
    with pytest.raises(DatasetChanged, match="'s4' is assigned to a split that does not exist"):
        Dataset.load(folder)


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "format": 1}', "[]", "\udcff"])
def test_header_that_is_no_json_object(folder: Path, text: str):
    (folder / "dataset.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError) as caught:
        Dataset.load(folder)
    assert caught.value.details["file"] == str(folder / "dataset.json")


def test_missing_files(folder: Path, tmp_path: Path):
    with pytest.raises(DatasetError, match="cannot be read"):
        Dataset.load(tmp_path / "nowhere")
    (folder / "data.jsonl").unlink()
    with pytest.raises(DatasetError, match=r"data\.jsonl cannot be read"):
        Dataset.load(folder)


# ---- contamination ----------------------------------------------------------------------------------------


def across(first: str, second: str, **more: Any) -> Dataset:
    """A dataset with these two questions in different splits."""
    rows = make_rows(20, 1)
    placed = make(rows).assignment
    one = next(row for row in rows if placed[row["scenario"]] == "search")
    other = next(row for row in rows if placed[row["scenario"]] == "holdout")
    one["question"], other["question"] = first, second
    return make(rows, **more)


REPORT = "Who of the sales team went over the travel budget in the second quarter, and by how much in euros?"


@pytest.mark.parametrize(
    ("second", "alike"),
    [
        (REPORT, True),
        (REPORT.upper().replace(" ", " \n\t "), True),
        (REPORT.replace("euros", "dollars"), True),
        (REPORT.replace("second", "third"), True),
        ("Which people in engineering overspent their hotel money in spring?", False),
        (REPORT[:50], False),
    ],
)
def test_near_duplicates_across_splits_are_refused(second: str, alike: bool):
    if not alike:
        assert across(REPORT, second).describe()["rows"] == 20
        return
    with pytest.raises(ContaminatedSplit) as caught:
        across(REPORT, second)
    error = caught.value
    assert sorted(error.details["splits"]) == ["holdout", "search"] and error.details["similarity"] >= 0.8
    assert all(repr(name) in str(error) for name in error.details["rows"]) and REPORT not in str(error)


@pytest.mark.parametrize("text", [
    "Die Übergröße für Müller, Köhler & Söhne: Lieferung der Äpfel höchst ungewöhnlich verspätet",
    "ご注文の品がまだ届いていません。ガラスのコップとバッグです。", "주문하신 상품이 아직 도착하지 않았습니다",
])  # fmt: skip
@pytest.mark.parametrize("form", ["NFD", "NFKC", "NFKD"])
def test_unicode_forms_do_not_make_inputs_different(text: str, form: Any):
    with pytest.raises(ContaminatedSplit) as caught:
        across(text, unicodedata.normalize(form, text))
    assert caught.value.details["similarity"] == 1.0


def test_numbers_do_not_make_long_inputs_different_but_short_ones():
    with pytest.raises(ContaminatedSplit):
        across(REPORT + " Team 17.", REPORT + " Team 18.")
    assert across("What is 17 + 4?", "What is 58 + 9?").describe()["rows"] == 20


def test_near_duplicates_within_a_cluster_are_fine():
    rows = [{**row, "question": f"{words(row['scenario'], 30)} {i}"} for i, row in enumerate(make_rows(40, 4))]
    assert make(rows).describe()["rows"] == 40


def test_sealed_rows_that_resemble_each_other_across_clusters_are_counted():
    assert make().describe()["holdout_alike"] == 0
    rows = make_rows(40, 2)
    placed = make(rows).assignment
    sealed = [row for row in rows if placed[row["scenario"]] == "holdout"]
    for number, row in enumerate(sealed[:3]):  # two of one cluster, one of another
        row["question"] = f"{REPORT} Team {number}."
    for number, row in enumerate(sealed[4:6]):  # of one cluster only
        row["question"] = f"{words('other', 30)} {number}"
    data = make(rows)
    assert [row["scenario"] for row in sealed[:6]] == [row["scenario"] for row in sealed[:6:2] for _ in range(2)]
    assert data.holdout_alike() == data.describe()["holdout_alike"] == 3


def test_very_many_sealed_rows_that_resemble_each_other_are_counted_quickly():
    rows = [{"id": f"r{i}", "question": f"{REPORT} Team {i}.", "answer": i} for i in range(1000)]
    started = time.process_time()
    data = Dataset.from_rows(rows, name="d", fields={"question": "input", "answer": "label"},
                             quota={"search": 0, "select": 0, "holdout": 1.0})  # fmt: skip
    assert data.holdout_alike() > 100
    assert time.process_time() - started < 5


def test_equal_inputs_without_text_are_refused_too():
    rows = [{"id": f"r{i}", "flags": [True] * (i + 1), "answer": i} for i in range(12)]
    fields = {"flags": "input", "answer": "label"}
    assert len(Dataset.from_rows(rows, name="f", fields=fields).assignment) == 12
    for row in rows:
        row["flags"] = [True]
    with pytest.raises(ContaminatedSplit):
        Dataset.from_rows(rows, name="f", fields=fields)


def test_inputs_that_are_the_same_in_all_rows_do_not_make_them_alike():
    fields = {"task": "input", "context": "input", **FIELDS}
    # The same long instruction and list of rules for every short question.
    rows = [{"task": REPORT * 5, "context": {"rules": [words("rules", 60), 7]}, **row, "question": f"{row['id']}, {10**i}?"}
            for i, row in enumerate(make_rows(20, 1))]  # fmt: skip
    data = make(rows, fields=fields)
    assert data.describe()["rows"] == 20 and set(data.assignment.values()) == {"search", "select", "holdout"}
    one, other = (next(row for row in rows if data.assignment[row["scenario"]] == split) for split in ("search", "holdout"))
    one["question"], other["question"] = REPORT, REPORT.upper()
    with pytest.raises(ContaminatedSplit) as caught:  # what tells rows apart still counts
        make(rows, fields=fields)
    assert caught.value.details["similarity"] == 1.0
    one["question"], other["question"] = "r1, 1?", "r2, 2?"
    assert make(rows, fields=fields).describe()["rows"] == 20
    one["task"] = REPORT * 5 + "!"  # not the same in all rows any more
    with pytest.raises(ContaminatedSplit):
        make(rows, fields=fields)
    with pytest.raises(ContaminatedSplit):  # nothing tells them apart
        make([{**row, "task": "", "context": {}, "question": "the same"} for row in rows], fields=fields)


def test_input_text():
    assert input_text({"b": "two", "a": ["one", {"z": 3, "y": "x"}], "c": None, "d": True, "e": 1.5}) == "one x 3 two 1.5"
    assert input_text({}) == ""


def brute(texts: list[str], groups: list[int], threshold: float) -> dict[tuple[int, int], float]:
    composed = [unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()) for text in texts]
    normal = [" ".join(text.casefold().split()) for text in composed]
    grams = [({text[i : i + 5] for i in range(len(text) - 4)} or {text}) if text else set() for text in normal]
    found = {}
    for a, one in enumerate(grams):
        for b, other in enumerate(grams):
            if groups[a] < groups[b] and one and other:
                similarity = len(one & other) / len(one | other)
                if similarity >= threshold:
                    found[a, b] = similarity
    return found


@st.composite
def families(draw: st.DrawFn) -> list[str]:
    """Texts, many of them small changes of one another."""
    texts = draw(st.lists(st.text("abc Éße\u0301ﬁ漢\n", max_size=60), min_size=1, max_size=6))
    for _ in range(draw(st.integers(0, 12))):
        text = draw(st.sampled_from(texts))
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 3))
        texts.append(text[:at] + draw(st.text("abcxy ", max_size=3)) + text[at + length :])
    return texts


@settings(max_examples=150, deadline=None)
@given(families(), st.sampled_from([0.3, 0.5, 0.8, 0.9, 1.0]), st.randoms(use_true_random=False))
def test_similar_pairs_are_exactly_those_of_the_definition(texts: list[str], threshold: float, rng: random.Random):
    groups = [rng.randrange(3) for _ in texts]
    pairs = similar_pairs(texts, groups, threshold)
    assert len({pair[:2] for pair in pairs}) == len(pairs)
    assert {(a, b): s for a, b, s in pairs} == brute(texts, groups, threshold)


@settings(max_examples=40, deadline=None)
@given(families(), families())
def test_near_duplicates_of_two_lists(first: list[str], second: list[str]):
    expected = brute([*first, *second], [0] * len(first) + [1] * len(second), 0.8)
    got = near_duplicates(first, second)
    assert [tuple(pair) for pair in got] == sorted((a, b - len(first), s) for (a, b), s in expected.items())


def test_long_near_duplicates_among_many_texts_are_found_quickly():
    rng = random.Random(5)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(800)]
    texts = [" ".join(rng.choices(vocabulary, k=80))[:400] for _ in range(1000)]
    planted = set()
    for i in range(0, 100, 2):
        at = rng.randrange(300)
        texts[i + 1] = texts[i][:at] + "changed words" + texts[i][at + 12 :]
        planted.add((i, i + 1))
    groups = [i % 2 for i in range(1000)]
    started = time.process_time()
    pairs = similar_pairs(texts, groups)
    spent = time.process_time() - started
    assert {pair[:2] for pair in pairs} == planted
    assert spent < 2, f"{spent:.1f} s"


def test_empty_lists_and_texts():
    assert near_duplicates([], ["a"]) == near_duplicates(["a"], []) == near_duplicates(["", "  "], ["", "x"]) == []
    assert near_duplicates(["Hi", "no"], [" hI "]) == [(0, 0, 1.0)]
    assert near_duplicates(["\ud83d lone surrogate"], ["\ud83d lone surrogate"])[0].similarity == 1.0
    with pytest.raises(ValueError, match="threshold"):
        near_duplicates(["a"], ["b"], threshold=0)


def test_overlaps_of_demonstrations_with_any_split():
    data = make()
    sealed = data.open_holdout(Ledger())[0]
    select = data.split("select")[0]
    texts = ["something else entirely", input_text(sealed.inputs) + "!", input_text(select.inputs)]
    found = data.overlaps(texts)
    assert [(o.text, o.split, o.row_id) for o in found] == [(1, "holdout", sealed.id), (2, "select", select.id)]
    assert data.overlaps(texts, ["search"]) == []


# ---- importers --------------------------------------------------------------------------------------------


def test_csv(tmp_path: Path):
    file = tmp_path / "rows.csv"
    lines = ["ticket,text,label,notes"]
    lines += [f'T{i},"{words(i)}, ""quoted""\nsecond line","[{i}, null]",internal' for i in range(10)]
    file.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
    data = Dataset.from_csv(file, name="t", fields={"text": "input", "label": "label"}, id_field="ticket",
                            json_fields=["label"], drop=["notes"])  # fmt: skip
    row = data.rows[0]
    number = int(row.id[1:])
    assert row.inputs == {"text": f'{words(number)}, "quoted"\nsecond line'} and row.labels == {"label": [number, None]}
    assert data.describe()["rows"] == 10


@pytest.mark.parametrize(
    ("text", "error", "line", "field"),
    [
        ("id,q,a\nr1,x\n", MalformedRow, 2, None),
        ("id,q,a\nr1,x,1,2\n", MalformedRow, 2, None),
        ("id,q,a\nr1,\"x\ny\",1\nr2,y,oops\n", MalformedRow, 4, "a"),
        ("id,q,a\nr1,x,NaN\n", MalformedRow, 2, "a"),
        ("id,q,a\nr1,x,\n", MalformedRow, 2, "a"),
        ('id,q,a\nr1,"x"y,1\n', MalformedRow, 2, None),
        ("id,q,q\n", DatasetError, 1, None),
        ("id,,a\n", DatasetError, 1, None),
        ("", DatasetError, 1, None),
        ("id,q\n", DatasetError, 1, "a"),
        ("id,q,a,b\nr1,x,1,2\n", MalformedRow, 2, "b"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, error: type[DseError], line: int, field: str | None):
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(error) as caught:
        Dataset.from_csv(file, name="t", fields={"q": "input", "a": "label"}, json_fields=["a"])
    assert (caught.value.details["line"], caught.value.details.get("field")) == (line, field)
    assert caught.value.details["file"] == str(file)


@pytest.mark.parametrize("delimiter", [";;", "", 5])
def test_a_delimiter_is_one_character(tmp_path: Path, delimiter: Any):
    (tmp_path / "d.csv").write_text("question;answer\n")
    with pytest.raises(DatasetError, match="one character"):
        Dataset.from_csv(tmp_path / "d.csv", name="d", fields={"question": "input", "answer": "label"}, delimiter=delimiter)


def test_csv_that_is_not_utf8(tmp_path: Path):
    file = tmp_path / "rows.csv"
    file.write_bytes("id,q\nr1,x\nr2,caf\xe9\n".encode("latin-1"))
    with pytest.raises(MalformedRow, match="UTF-8") as caught:
        Dataset.from_csv(file, name="t", fields={"q": "input"})
    assert caught.value.details["line"] == 3


def test_jsonl(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"q": words(i), "a": i, "junk": 1}) + "\n" for i in range(10)))
    data = Dataset.from_jsonl(file, name="t", fields={"q": "input", "a": "label"}, id_field=None, drop=["junk"])
    assert all(row.id == "row-" + row.row_hash[7:23] for row in data)
    again = Dataset.from_jsonl(file, name="t", fields={"q": "input", "a": "label"}, id_field=None, drop=["junk"])
    assert again.assignment == data.assignment


class Colour(enum.StrEnum):
    RED = "red"


class Money(BaseModel):
    amount: Decimal
    due: dt.date


@dataclasses.dataclass
class Point:
    x: int


def test_typed_values_take_their_wire_form():
    value = {"c": Colour.RED, "m": Money(amount=Decimal("1.50"), due=dt.date(2024, 2, 1)), "p": (Point(1),),
             "t": dt.datetime(2024, 1, 2, 3, 4, tzinfo=dt.UTC)}  # fmt: skip
    rows = [{"id": f"r{i}", "question": words(i), "answer": value, "scenario": i} for i in range(6)]
    wire = {"c": "red", "m": {"amount": "1.50", "due": "2024-02-01"}, "p": [{"x": 1}], "t": "2024-01-02T03:04:00Z"}
    assert make(rows).rows[0].answer == wire


CYCLE: list[Any] = []
CYCLE.append({"more": CYCLE})


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"x", object(), {1: 2}, float("inf"), "\ud83d", CYCLE, {"n": [10**5000]}], ids=lambda value: type(value).__name__)
def test_values_without_a_wire_form(value: Any):
    rows = make_rows()
    rows[3]["answer"] = [value]
    with pytest.raises(MalformedRow) as caught:
        make(rows)
    assert (caught.value.details["line"], caught.value.details["field"]) == (4, "answer")


def test_rows_that_are_no_rows():
    with pytest.raises(MalformedRow, match="not a dictionary"):
        make([*make_rows(), "row"])  # type: ignore[list-item]
    with pytest.raises(MalformedRow, match="field name"):
        make([{**make_rows()[0], 7: 1}])
    with pytest.raises(DatasetError, match="clusterkey"):
        make(clusterkey="scenario")


def test_pandas():
    pd = pytest.importorskip("pandas")
    rows = make_rows(12, 1)
    frame = pd.DataFrame(rows).assign(n=range(12), f=0.5, when=pd.Timestamp("2024-03-01"), junk=float("nan"))
    frame["maybe"] = pd.Series([None, *["x"] * 11], dtype=object)
    fields = {**FIELDS, "n": "meta", "f": "meta", "when": "meta", "maybe": "meta"}
    data = Dataset.from_pandas(frame, name="p", fields=fields, drop=["junk"])
    first = next(row for row in (*data, *data.open_holdout(Ledger())) if row.id == "r0")
    assert first.meta == {"scenario": "s0", "n": 0, "f": 0.5, "when": "2024-03-01T00:00:00", "maybe": None}
    assert type(first.meta["n"]) is int
    for gap in (float("nan"), pd.NaT, pd.NA):
        frame["f"] = pd.Series([0.5] * 11 + [gap], dtype=object)
        with pytest.raises(MalformedRow) as caught:
            Dataset.from_pandas(frame, name="p", fields=fields, drop=["junk"])
        assert (caught.value.details["line"], caught.value.details["field"]) == (12, "f")
    with pytest.raises(DatasetError, match="DataFrame"):
        Dataset.from_pandas(rows, name="p", fields=FIELDS)
    with pytest.raises(DatasetError, match="unique"):
        Dataset.from_pandas(pd.DataFrame([[1, 2]], columns=["a", "a"]), name="p", fields=FIELDS)


@pytest.fixture(scope="module")
def dspy() -> Any:
    return pytest.importorskip("dspy")


def test_dspy(dspy: Any):
    examples = [dspy.Example(q=words(i), a=Money(amount=Decimal(i), due=dt.date(2024, 1, 1)), n=i).with_inputs("q")
                for i in range(10)]  # fmt: skip
    data = Dataset.from_dspy(examples, name="d", meta=["n"])
    assert data.fields == {"q": "input", "a": "label", "n": "meta"}
    row = data.rows[0]
    assert row.labels == {"a": {"amount": str(row.n), "due": "2024-01-01"}} and row.id.startswith("row-")


def test_dspy_examples_that_do_not_fit(dspy: Any):
    good = [dspy.Example(q=words(i), a=i).with_inputs("q") for i in range(4)]
    with pytest.raises(MalformedRow, match="which fields are inputs") as caught:
        Dataset.from_dspy([*good, dspy.Example(q="x", a=1)], name="d")
    assert caught.value.details["line"] == 5
    with pytest.raises(MalformedRow, match="other inputs"):
        Dataset.from_dspy([*good, dspy.Example(q="x", a=1).with_inputs("q", "a")], name="d")
    with pytest.raises(DatasetError, match=r"dspy\.Example"):
        Dataset.from_dspy([{"q": 1}], name="d")
    for meta in (["nothing"], ["q"]):
        with pytest.raises(DatasetError, match=meta[0]):
            Dataset.from_dspy(good, name="d", meta=meta)


# ---- against a signature ----------------------------------------------------------------------------------


@dataclasses.dataclass
class Field:
    adapter: TypeAdapter[Any]


class Verdict(BaseModel):
    colour: Colour
    total: Decimal
    note: str | None = None


class Sig:
    """The public attributes of a signature that a check needs."""

    def __init__(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self.inputs = {name: Field(TypeAdapter(kind)) for name, kind in inputs.items()}
        self.outputs = {name: Field(TypeAdapter(kind)) for name, kind in outputs.items()}

    def spec(self) -> Sig:
        return self


GOOD = {"colour": "red", "total": "2.50", "note": None}


def checked(bad: Any, kind: Any, where: str = "r2", role: str = "label") -> Dataset:
    rows = [{"id": f"r{i}", "question": words(i), "answer": GOOD, "scenario": i} for i in range(10)]
    if kind is not Verdict:
        for row in rows:
            row["answer"] = bad
    next(row for row in rows if row["id"] == where)["answer"] = bad
    return make(rows)


def test_rows_that_fit_a_signature():
    checked(GOOD, Verdict).check(Sig({"question": str}, {"answer": Verdict}))
    checked(3, float).check(Sig({"question": str}, {"answer": float}))
    checked([1, 2], set).check(Sig({"question": str}, {"answer": set[int]}))
    checked("free form", str).check(Sig({"question": str}, {"other": int}))  # a label for the metric only


@pytest.mark.parametrize(
    ("bad", "kind", "told"),
    [
        ({**GOOD, "colour": "blue"}, Verdict, "colour: Input should be 'red'"),
        ({"colour": "red"}, Verdict, "total: Field required"),
        ({**GOOD, "total": 2.5}, Verdict, "form in which outputs are written"),
        ({"colour": "red", "total": "2.50"}, Verdict, "form in which outputs are written"),
        ({**GOOD, "extra": 1}, Verdict, "form in which outputs are written"),
        ("5", int, "is text, not in the form in which outputs are written .*json_fields=.* Write 5 without quotes"),
        (True, int, "form in which outputs are written"),
        ([2, 1], set[int], "form in which outputs are written"),
        ("five", int, "valid integer"),
    ],
)
def test_labels_that_no_output_can_equal(bad: Any, kind: Any, told: str):
    data = checked(bad, kind)
    with pytest.raises(MalformedRow, match=told) as caught:
        data.check(Sig({"question": str}, {"answer": kind}))
    assert caught.value.details["field"] == "answer" and caught.value.details["file"] == "rows"
    assert caught.value.details["line"] == (3 if kind is Verdict else 1)


def test_inputs_are_checked():
    with pytest.raises(MalformedRow, match="valid integer") as caught:
        make().check(Sig({"question": int}, {"answer": str}))
    assert (caught.value.details["line"], caught.value.details["field"]) == (1, "question")


def test_sealed_rows_are_checked_without_showing_them():
    names = {row.id for row in checked(GOOD, Verdict).open_holdout(Ledger())}
    with pytest.raises(MalformedRow) as caught:
        checked({**GOOD, "total": 123456789.5}, Verdict, min(names)).check(Sig({"question": str}, {"answer": Verdict}))
    assert "123456789" not in str(caught.value) + repr(caught.value.details) and caught.value.value is None
    assert min(names) in str(caught.value)


def test_the_words_of_a_validator_show_no_sealed_value():
    def even(n: int) -> int:
        if n % 2:
            raise ValueError(f"{n} is odd")
        return n

    kind = Annotated[int, AfterValidator(even)]
    rows = [{"id": f"r{i}", "question": words(i), "answer": 123456789, "scenario": i} for i in range(10)]
    data = make(rows)
    sealed = {row.id for row in data.open_holdout(Ledger())}
    for where in (data.rows[0].id, min(sealed)):
        one = make([{**row, "answer": row["answer"] if row["id"] == where else 2} for row in rows])
        with pytest.raises(MalformedRow, match=f"{where!r} does not fit its type") as caught:
            one.check(Sig({"question": str}, {"answer": kind}))
        told = str(caught.value) + repr(caught.value.details)
        assert ("123456789" in told) is (where not in sealed)


@pytest.mark.parametrize(
    ("inputs", "outputs", "field"),
    [
        ({"question": str, "context": str}, {"answer": str}, "context"),
        ({}, {"answer": str}, "question"),
        ({"question": str, "answer": str}, {}, "answer"),
        ({"question": str}, {"answer": str, "scenario": str}, "scenario"),
    ],
)
def test_roles_must_agree_with_the_signature(inputs: dict[str, Any], outputs: dict[str, Any], field: str):
    with pytest.raises(DatasetError) as caught:
        make().check(Sig(inputs, outputs))
    assert caught.value.details["field"] == field


def test_check_takes_real_signatures():
    import dse

    class Ask(dse.Signature):
        """Answer."""

        question: str = dse.InputField()
        hint: str = dse.InputField(default="")
        answer: str = dse.OutputField()

    make().check(Ask)


# ---- size and weight --------------------------------------------------------------------------------------


def test_many_rows_load_in_reasonable_time(tmp_path: Path):
    make(make_rows(20_000, 5)).save(tmp_path / "big")
    started = time.process_time()
    data = Dataset.load(tmp_path / "big")
    spent = time.process_time() - started
    assert data.describe()["rows"] == 20_000
    assert spent < 8, f"{spent:.1f} s"  # about 1.5 s on a quiet machine


def test_importing_is_light():
    code = (
        "import sys, dse.evaluation.dataset, dse.evaluation.metric;"
        "heavy = {'dspy', 'pandas', 'sqlalchemy', 'scipy', 'matplotlib', 'pydantic_monty', 'numpy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
