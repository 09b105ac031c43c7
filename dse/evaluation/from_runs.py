"""Rows out of kept runs: what production was asked, with answers that somebody stands for.

Nothing sensitive leaves the store, and no row that a candidate was ever tried on can be judged on again:

* A signature with sensitive fields is refused, unless they are to be dropped. Their values, and those of sensitive tool
  arguments and results, are redacted wherever they come up in other fields; a run whose label would hold one is left out.
* Rows that resemble one another share a cluster, and so a split.
* A cluster with a row that rollouts or the open splits of another dataset have seen, or nearly so, goes into ``search``.
* A cluster with a row of a sealed holdout, opened or not, or one that resembles it, is left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from dse.canonical import digest
from dse.errors import DatasetError, Refused
from dse.evaluation import importers
from dse.evaluation.importers import malformed
from dse.evaluation.rows import Example, checks
from dse.evaluation.splits import SPLITS, input_text, input_texts, near_duplicates, similar_pairs
from dse.redaction import REDACTED
from dse.store.journal import Store, opened
from dse.store.runs import hidden

if TYPE_CHECKING:
    from dse.evaluation.dataset import Dataset
    from dse.store.runs import Kept

__all__ = ["from_runs"]


@dataclass
class _Row:
    """A run as a row. `raw` are inputs in clear, to compare with; they never leave."""

    run_id: str
    created: str
    raw: dict[str, Any]
    inputs: dict[str, Any]
    labels: dict[str, Any]
    meta: dict[str, Any]
    key: str | None  # of the cluster, in clear
    rank: tuple[bool, float, str]
    cluster: str = ""


class _Fields:
    """What of a signature becomes a row.

    Raises:
        Refused: some of it is sensitive, and not to be dropped.
    """

    def __init__(self, spec: Any, drop_sensitive: bool) -> None:
        contracts = [tool.contract for tool in spec.tools]
        self.spec = spec
        self.names = set(spec.sensitive).union(*({n for n in c.sensitive if n != "return"} for c in contracts), set())
        self.results = {c.name for c in contracts if "return" in c.sensitive}
        declared = [*spec.inputs, *spec.outputs]
        self.dropped = [name for name in declared if name in self.names]
        if self.dropped and not drop_sensitive:
            raise Refused(
                "The signature has sensitive fields, and rows would carry them out of the store", value=", ".join(self.dropped),
                remedy="Pass drop_sensitive=True (--drop-sensitive): rows are made without these fields.")  # fmt: skip
        self.inputs = {name: field for name, field in spec.inputs.items() if name not in self.names}
        self.outputs = {name: field for name, field in spec.outputs.items() if name not in self.names}
        if not self.inputs:
            raise Refused("All inputs are sensitive", value=", ".join(self.dropped), remedy="There is nothing to make rows of.")
        self.complete = not any(getattr(spec.inputs.get(name), "required", False) for name in self.dropped)

    def hide(self, kept: Kept) -> tuple[list[dict[str, Any]], bool]:
        """A journal without anything sensitive, then or now; and whether more fields were sensitive when it ran."""
        then = json.loads(kept.row["hidden"])
        names = {"names": sorted(self.names.union(then["names"])), "results": sorted(self.results.union(then["results"])),
                 "replies": then["replies"]}  # fmt: skip
        return hidden(kept.entries, names), bool(set(then["names"]) & (self.inputs.keys() | self.outputs.keys()))


def from_runs(
    cls: type[Dataset], store: Store | str | Path, signature: Any, *, name: str, cluster_key: str | None,
    labels: str | Path | Mapping[str, Mapping[str, Any]] | None, judged: tuple[str, float] | None,
    beside: Iterable[Dataset], used: Iterable[Store | str | Path], drop_sensitive: bool,
    say: Callable[[str], object] | None, about: Mapping[str, Any],
) -> Dataset:  # fmt: skip
    """See `Dataset.from_runs`."""
    spec = signature.spec()
    fields = _Fields(spec, drop_sensitive)
    corrected = dict(_corrections(labels))
    left_out: Counter[str] = Counter()
    with ExitStack() as stack:
        place = stack.enter_context(opened(store))
        rows = list(_rows(place, fields, corrected, judged, cluster_key, labels, left_out))
        rows = _without_copies(rows, left_out)
        stores = [place, *(stack.enter_context(opened(other)) for other in used)]
        for row, cluster in zip(rows, _clusters(rows, cluster_key in fields.names), strict=True):
            row.cluster = cluster
        tried, sealed = _seen(rows, stores, list(beside), fields)
    left_out["of a cluster with a row like one of a sealed holdout"] += sum(row.cluster in sealed for row in rows)
    rows = [row for row in rows if row.cluster not in sealed]
    notes = _notes(spec, fields, corrected, judged, rows, tried, left_out)
    for note in notes:
        if say is not None:
            say(note)
    if not rows:
        raise DatasetError("No run gives a row", value=spec.name, remedy="; ".join(notes))
    own = "cluster" if "cluster" not in {*spec.inputs, *spec.outputs} else "cluster_of_run"
    roles = {**dict.fromkeys(fields.inputs, "input"), **dict.fromkeys(rows[0].labels, "label"),
             **dict.fromkeys(rows[0].meta, "meta"), own: "meta"}  # fmt: skip
    flat = [{"id": row.run_id, **row.inputs, **row.labels, **row.meta, own: row.cluster} for row in rows]
    made = cls.from_rows(
        flat, name=name, fields=roles, cluster_key=own, assignment={row.cluster: "search" for row in rows if row.cluster in tried},
        **{"source": " ".join(notes), "builder": "dse dataset from-runs", "signature": f"{signature.__module__}:{signature.__name__}",
           **about},
    )  # fmt: skip
    if fields.complete:
        made.check(signature)
    return made


# ---- choosing ---------------------------------------------------------------------------------------------


def _corrections(labels: str | Path | Mapping[str, Mapping[str, Any]] | None) -> Iterator[tuple[str, tuple[int, dict[str, Any]]]]:
    """By run id: where it is written, and its labels."""
    if labels is None:
        return
    if isinstance(labels, Mapping):
        for line, (run_id, given) in enumerate(labels.items(), 1):
            yield run_id, (line, dict(given))
        return
    seen: dict[str, int] = {}
    for line, row in importers.read_jsonl(Path(labels)):
        run_id = row.pop("run_id", None)
        if not isinstance(run_id, str):
            raise malformed("there is no run id", str(labels), line, "run_id", value=run_id,
                            remedy='Write {"run_id": "...", "<output>": ...} on each line.')  # fmt: skip
        if run_id in seen:
            raise malformed("the run was named before", str(labels), line, "run_id", value=run_id,
                            remedy=f"Remove this line or line {seen[run_id]}.")  # fmt: skip
        seen[run_id] = line
        yield run_id, (line, row)


def _rows(
    store: Store, fields: _Fields, corrected: Mapping[str, tuple[int, dict[str, Any]]], judged: tuple[str, float] | None,
    cluster_key: str | None, labels: Any, left_out: Counter[str],
) -> Iterator[_Row]:  # fmt: skip
    where = str(labels) if isinstance(labels, (str, Path)) else "labels"
    values = {one["run_id"]: one["value"] for one in store.judgements() if judged is not None and one["name"] == judged[0]}
    extra = sorted(set().union(*(given.keys() for _, given in corrected.values())) - set(fields.spec.outputs))
    if bad := [one for one in extra if one in fields.spec.inputs or one == "id"]:
        raise malformed(f"the field {bad[0]!r} is no output", where, 1, bad[0], remedy="Labels name outputs, or fields of their own.")
    if cluster_key is not None and cluster_key not in fields.spec.inputs and cluster_key not in extra:
        raise DatasetError("The cluster key is neither an input nor a field of the labels", value=cluster_key, field="cluster_key",
                           remedy=f"The inputs are {', '.join(fields.spec.inputs)}.")  # fmt: skip
    heads = {run["run_id"]: run for run in store.receipts(signature=fields.spec.name)}
    for run_id, (line, _) in corrected.items():
        if run_id not in heads:
            raise malformed(f"the store has no run of {fields.spec.name} with this id", where, line, "run_id", value=run_id,
                            remedy="`dse runs list` shows what there is.")  # fmt: skip
    tests = checks(SimpleNamespace(inputs=fields.inputs, outputs=fields.outputs),
                   {**dict.fromkeys(fields.inputs, "input"), **dict.fromkeys(fields.outputs, "label")}, "from runs")  # fmt: skip
    for run_id, head in heads.items():
        line, given = corrected.get(run_id, (0, None))
        good_enough = judged is not None and values.get(run_id, -1.0) >= judged[1]
        if given is None and not good_enough and (corrected or judged is not None or labels is not None):
            left_out["not among the labels, or not judged that well"] += 1
            continue
        if given is None and head["outcome"] != "ok":
            left_out["without an answer"] += 1
            continue
        kept = store.journal(run_id, snapshots=False) if head["durability"] is not None else None
        problem, row = _row(fields, head, kept, given, extra, cluster_key, tests, (where, line))
        if row is None:
            left_out[problem] += 1
            continue
        row.rank = (given is not None, values.get(run_id, -1.0), row.created)
        yield row


def _row(
    fields: _Fields, head: Mapping[str, Any], kept: Kept | None, given: dict[str, Any] | None, extra: Sequence[str],
    cluster_key: str | None, tests: Sequence[Any], where: tuple[str, int],
) -> tuple[str, _Row | None]:  # fmt: skip
    """The row, or why there is none.

    Raises:
        MalformedRow: a label that somebody wrote does not fit.
    """
    if kept is None or not kept.entries:
        return "kept without what it takes", None
    if any(entry["kind"] == "forked" for entry in kept.entries):
        return "forks, in which something was made up", None
    shown, more = fields.hide(kept)
    if more:
        return "with fields that were sensitive when they ran", None
    raw = {name: value for name, value in kept.entries[0]["inputs"].items() if name in fields.inputs}
    inputs = {name: value for name, value in shown[0]["inputs"].items() if name in fields.inputs}
    ended = [(entry, clean) for entry, clean in zip(kept.entries, shown, strict=True) if entry["kind"] == "run_finished"]
    said, clean = (ended[-1][0]["outputs"] or {}, ended[-1][1]["outputs"] or {}) if ended else ({}, {})
    own = {name: said[name] for name in fields.outputs if name in said}
    if any(clean[name] != value for name, value in own.items() if given is None or name not in given):
        return "with an answer that holds something sensitive", None
    if given is not None:
        given = {name: value for name, value in given.items() if name not in fields.dropped}
        if _shown(fields, kept, given) != given:
            return "with a label that holds something sensitive", None
    whole = {**own, **(given or {})}
    for name in (*fields.outputs, *extra):
        if name not in whole:
            if given is None and name in fields.outputs:
                return "of another form of the signature", None
            raise malformed(f"the label {name!r} of run {head['run_id']} is missing", *where, name,
                            remedy="Give it for every run that becomes a row.")  # fmt: skip
    for role, name, test in tests:
        if role == "input" and name not in inputs:
            return "of another form of the signature", None
        problem = test(inputs[name] if role == "input" else whole[name])
        if problem is not None:
            if role == "label" and given is not None and name in given:
                raise malformed(f"the label {name!r} {problem[0]}", *where, name, value=whole[name], remedy=problem[1])
            return "of another form of the signature, or redacted beyond use", None
    value = None
    if cluster_key is not None:
        value = whole.get(cluster_key) if cluster_key in extra else kept.entries[0]["inputs"].get(cluster_key)
        if value is not None and (not isinstance(value, (str, int)) or isinstance(value, bool) or value == ""):
            raise malformed(f"the cluster key {cluster_key!r} of run {head['run_id']} is not a name", *where, cluster_key,
                            remedy="Choose a field with strings or integers, or null for a row on its own.")  # fmt: skip
    meta = {cluster_key: whole[cluster_key]} if cluster_key is not None and cluster_key in extra else {}
    labels = {name: whole[name] for name in (*fields.outputs, *extra) if name not in meta}
    return "", _Row(head["run_id"], head["created"], raw, inputs, labels, meta, None if value is None else str(value),
                    (False, 0.0, ""))  # fmt: skip


def _shown(fields: _Fields, kept: Kept, labels: dict[str, Any]) -> Any:
    """Labels as the run's own journal would show them."""
    last = {"seq": len(kept.entries), "kind": "labels", "given": labels}
    return fields.hide(replace(kept, entries=[*kept.entries, last]))[0][-1]["given"]


def _without_copies(rows: list[_Row], left_out: Counter[str]) -> list[_Row]:
    """One run per input: a corrected one, else the best judged, else the newest."""
    best: dict[str, _Row] = {}
    for row in rows:
        key = digest(row.inputs)
        if key in best:
            left_out["with the inputs of another one"] += 1
        if key not in best or row.rank > best[key].rank:
            best[key] = row
    return sorted(best.values(), key=lambda row: (row.created, row.run_id))


# ---- keeping splits apart ---------------------------------------------------------------------------------


def _clusters(rows: Sequence[_Row], nameless: bool) -> list[str]:
    """The cluster of each row: of one key, or resembling each other. Called by the key, where that may be shown."""
    parent = list(range(len(rows)))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    first: dict[str, int] = {}
    for index, row in enumerate(rows):
        if row.key is not None:
            parent[root(index)] = root(first.setdefault(row.key, index))
    for a, b, _ in similar_pairs(input_texts([row.inputs for row in rows]), list(range(len(rows)))):
        parent[root(a)] = root(b)
    members: dict[int, list[_Row]] = {}
    for index, row in enumerate(rows):
        members.setdefault(root(index), []).append(row)

    def called(group: list[_Row]) -> str:
        shown = [json.dumps([row.inputs, row.meta]) for row in group]
        keys = [row.key for row, text in zip(group, shown, strict=True) if row.key is not None and REDACTED not in text]
        return min(keys) if keys and not nameless else min(row.run_id for row in group)

    names = {one: called(group) for one, group in members.items()}
    return [names[root(index)] for index in range(len(rows))]


def _seen(rows: Sequence[_Row], stores: Sequence[Store], beside: Sequence[Dataset], fields: _Fields) -> tuple[set[str], set[str]]:
    """Clusters with a row that was tried before, and those with one like a row of a sealed holdout."""
    texts = [input_text(row.raw) for row in rows] + [input_text(row.inputs) for row in rows]
    hashes: dict[str, str] = {}  # of the row in each form in which it may have been a row before
    same_inputs: dict[str, str] = {}
    for row in rows:
        for inputs in (row.raw, row.inputs):
            same_inputs[digest(inputs)] = row.cluster
            for meta in ({}, row.meta, {**row.meta, "cluster": row.cluster}):
                hashes[Example(row.run_id, inputs, row.labels, meta).row_hash] = row.cluster
    tried: set[str] = set()
    sealed: set[str] = set()
    for store in stores:
        known: list[tuple[str, bool]] = []
        for row_hash, given, was_sealed in store.measured():
            group = sealed if was_sealed else tried
            part = {name: given[name] for name in fields.inputs if name in given} if given else {}
            group.update(found for found in (hashes.get(row_hash), same_inputs.get(digest(part))) if found is not None)
            known.append((input_text(part), was_sealed))
        for pair in near_duplicates(texts, [text for text, _ in known]):
            (sealed if known[pair.b][1] else tried).add(rows[pair.a % len(rows)].cluster)
    for dataset in beside:
        by_key = {row.key: row.cluster for row in rows if row.key is not None}
        for key, split in dataset.assignment.items():
            if key in by_key:
                (sealed if split == "holdout" else tried).add(by_key[key])
        for item, split in zip(dataset._placed(), dataset._split_of, strict=True):
            group = sealed if split == "holdout" else tried
            known_as = (hashes.get(item.example.row_hash), same_inputs.get(item.example.input_hash))
            group.update(found for found in known_as if found is not None)
        for overlap in dataset.overlaps(texts, SPLITS):
            (sealed if overlap.split == "holdout" else tried).add(rows[overlap.text % len(rows)].cluster)
    return tried, sealed


def _notes(spec: Any, fields: _Fields, corrected: Mapping[str, Any], judged: Any, rows: Sequence[_Row], tried: set[str],
           left_out: Counter[str]) -> list[str]:  # fmt: skip
    notes = [f"{len(rows)} rows of runs of {spec.name}."]
    if fields.dropped:
        notes.append(f"DROPPED, because they are sensitive: {', '.join(fields.dropped)}."
                     + ("" if fields.complete else " The signature needs some of them: these rows alone do not run it."))  # fmt: skip
    changed = sum(row.raw != row.inputs for row in rows)
    if changed:
        notes.append(f"Something sensitive was redacted in the inputs of {changed} rows.")
    if not corrected and judged is None:
        notes.append("The labels are what the program itself said: by them it is always right.")
    if placed := sum(row.cluster in tried for row in rows):
        notes.append(f"In search, because they or their like were tried on before: {placed} rows.")
    notes += [f"Left out: {count} {what}." for what, count in sorted(left_out.items()) if count]
    return notes
