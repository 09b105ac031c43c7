"""Datasets: rows with declared field roles, a content-addressed revision, and splits that stay put.

A dataset is a folder with ``dataset.json`` and ``data.jsonl`` (one flat JSON object a line: ``id``, input fields,
label fields, meta fields). ``dataset.json`` holds the role of every field, the quota of the splits, which cluster
of rows belongs to which split, and the revision. Loading verifies all of it; `seal` writes it deliberately.

The holdout is sealed: nothing here hands out its rows except `Dataset.open_holdout`, which tells a ledger first.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from dse.canonical import canonical_json, digest
from dse.errors import DatasetError, MissingHoldout, Refused
from dse.evaluation import importers
from dse.evaluation.folder import read_folder, write_folder, write_header
from dse.evaluation.holdout import Holdout, Ledger, Sealed, Select
from dse.evaluation.importers import Row, malformed
from dse.evaluation.integrity import refuse_changes, refuse_copies, refuse_overlap
from dse.evaluation.rows import (
    DEFAULT_QUOTA,
    Example,
    Header,
    Placed,
    check_assignment,
    checks,
    make_header,
    place,
)
from dse.evaluation.splits import SPLITS, assign, input_text, input_texts, long_texts, near_duplicates, normal, similar_pairs

__all__ = ["Dataset", "Example", "Overlap", "input_text", "near_duplicates", "seal"]

_ALIKE = 10_000  # pairs of sealed rows that resemble each other, after which no more are looked for


class Overlap(NamedTuple):
    """Text number `text` resembles the inputs of a row: its split and id, and the similarity (0.8 to 1)."""

    text: int
    split: str
    row_id: str
    similarity: float


class Dataset:
    """Rows in three splits. Made by `load` and the ``from_...`` importers; never changes (`append` gives a new one).

    ``rows``, iteration and ``len`` cover the open splits (search and select) only. ``split_hashes`` and
    ``cluster_hashes`` are digests, by split, of the sorted row hashes and of these with the cluster of each.
    """

    def __init__(
        self, header: Header, placed: Sequence[Placed], assignment: Mapping[str, str], *, where: str,
        stored: str | None = None, path: Path | None = None,
    ) -> None:  # fmt: skip
        """Internal. With `stored` (a revision) data and assignment must fit; without, new clusters are placed."""
        refuse_copies(placed)
        self._header = header
        self.revision = digest({"name": header.name, "fields": header.fields,
                                "rows": sorted(item.example.row_hash for item in placed)})  # fmt: skip
        sizes: dict[str, int] = {}
        for item in placed:
            sizes[item.example.cluster] = sizes.get(item.example.cluster, 0) + 1
        if stored is not None:
            refuse_changes(where, stored, self.revision, [cluster for cluster in sizes if cluster not in assignment])
        self._assignment = assign(sizes, header.quota, header.salt, assignment)
        self._sources = [(item.source, item.line) for item in placed]
        self._split_of = [self._assignment[item.example.cluster] for item in placed]
        pairs = list(zip((item.example for item in placed), self._split_of, strict=True))
        members = {name: tuple(row for row, split in pairs if split == name) for name in SPLITS}
        if not members["holdout"]:
            raise MissingHoldout(f"{where}: no row is in the holdout", value=f"{len(placed)} rows, {len(sizes)} clusters",
                                 remedy="Add rows in further clusters: nothing is claimed without a holdout.",
                                 file=where)  # fmt: skip
        refuse_overlap(where, placed, self._split_of)
        self._open = {name: members[name] for name in SPLITS if name != "holdout"}
        self._sealed = Sealed(members["holdout"])
        self.rows = tuple(row for row, split in pairs if split != "holdout")
        self._clusters = {name: len({row.cluster for row in rows}) for name, rows in members.items()}
        self.split_hashes = {name: digest(sorted(row.row_hash for row in rows)) for name, rows in members.items()}
        # The same rows under another cluster key are other evidence, which no row hash tells.
        self.cluster_hashes = {name: digest(sorted([row.row_hash, row.cluster] for row in rows)) for name, rows in members.items()}
        self._alike: int | None = None
        self.path = path
        self._on_disk = stored  # the revision that `path` held when it was read or written

    # ---- making one -----------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> Dataset:
        """Read and verify a dataset folder.

        Raises:
            DatasetError: no such folder, or ``dataset.json`` is malformed or of another format, or one of the two files is a
                link out of the folder.
            MalformedRow: with file, line and field.
            DuplicateRow: two rows with one id or the same content.
            DatasetChanged: the rows are not those of the revision, or a cluster has no split.
            MissingHoldout: the quota or the rows leave no holdout.
            ContaminatedSplit: the same or nearly the same inputs in two splits (see `near_duplicates`). Inputs that are
                the same in all rows are not looked at.
        """
        folder = Path(path)
        header, assignment, revision, data = read_folder(folder)
        with _no_cycles():
            placed = place(header, importers.read_jsonl(data), str(data))
            return cls(header, placed, assignment, where=str(folder), stored=revision, path=folder)

    @staticmethod
    def seal(path: str | Path) -> Dataset:
        """See `seal`."""
        return seal(path)

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], *, name: str, fields: Mapping[str, str], id_field: str | None = "id",
        drop: Iterable[str] = (), **about: Any,
    ) -> Dataset:  # fmt: skip
        """From dictionaries. Values may also be pydantic models, dataclasses, dates, decimals, enums and UUIDs.

        Args:
            name: of the dataset; part of its revision.
            fields: the role of every field, ``{"<field>": "input" | "label" | "meta"}``, the id not among them.
            id_field: the key that holds the id; None makes ids from the content.
            drop: keys to leave out.
            about: ``cluster_key`` (a meta or input field; default each row its own cluster), ``quota`` (default 0.4,
                0.3, 0.3), ``salt`` (default "<name>-1"), ``assignment`` (earlier placements of clusters, which stay),
                ``signature``, ``license``, ``source``, ``builder``.

        Raises:
            As `load`, except DatasetChanged.
        """
        return cls._import(importers.read_rows(rows, "rows", drop), "rows", name, fields, id_field, about)

    @classmethod
    def from_jsonl(
        cls, path: str | Path, *, name: str, fields: Mapping[str, str], id_field: str | None = "id",
        drop: Iterable[str] = (), **about: Any,
    ) -> Dataset:  # fmt: skip
        """From a JSON Lines file. Arguments as in `from_rows`."""
        source = Path(path)
        return cls._import(importers.read_jsonl(source, drop), str(source), name, fields, id_field, about)

    @classmethod
    def from_csv(
        cls, path: str | Path, *, name: str, fields: Mapping[str, str], id_field: str | None = "id",
        json_fields: Iterable[str] = (), drop: Iterable[str] = (), delimiter: str = ",",
        null_fields: Iterable[str] = (), **about: Any,
    ) -> Dataset:  # fmt: skip
        """From a CSV file with a header. Cells are strings, but JSON in `json_fields`, and null where they are empty in
        `null_fields`. Else as `from_rows`."""
        source = Path(path)
        rows = importers.read_csv(source, json_fields, drop, delimiter, null_fields)
        return cls._import(rows, str(source), name, fields, id_field, about)

    @classmethod
    def from_pandas(
        cls, frame: Any, *, name: str, fields: Mapping[str, str], id_field: str | None = "id",
        drop: Iterable[str] = (), **about: Any,
    ) -> Dataset:  # fmt: skip
        """From a ``pandas.DataFrame``; None is null, NaN is refused. Arguments as in `from_rows`."""
        return cls._import(importers.read_pandas(frame, "DataFrame", drop), "DataFrame", name, fields, id_field, about)

    @classmethod
    def from_dspy(
        cls, examples: Iterable[Any], *, name: str, meta: Iterable[str] = (), id_field: str | None = None, **about: Any
    ) -> Dataset:
        """From ``dspy.Example`` objects: ``with_inputs`` names the inputs, `meta` the meta fields, the rest are labels.

        Ids are made from the content unless `id_field` names a key. Further arguments as in `from_rows`.
        """
        fields: dict[str, str] = {}
        rows = list(importers.read_dspy(examples, fields, meta, id_field))
        return cls._import(rows, "examples", name, fields, id_field, about)

    @classmethod
    def from_runs(
        cls, store: Any, signature: Any, *, name: str, cluster_key: str | None = None,
        labels: str | Path | Mapping[str, Mapping[str, Any]] | None = None, judged: tuple[str, float] | None = None,
        beside: Iterable[Dataset] = (), used: Iterable[Any] = (), drop_sensitive: bool = False,
        say: Callable[[str], object] | None = None, **about: Any,
    ) -> Dataset:  # fmt: skip
        """From the runs of a signature that a store keeps; ids are those of the runs. ``save`` the result.

        Labels are the outputs of runs that ended well, of all of them or of those that `labels` and `judged` choose.
        Runs with the same inputs give one row. What was left out, and why, goes to `say` and into ``dataset.json``.

        Args:
            store: a ``dse.Store`` or its path.
            cluster_key: an input, or a field of `labels` (then a meta field): rows of one value stay together. Rows that
                resemble each other do anyhow.
            labels: corrected outputs, and fields of your own, by run id, also for runs that failed; or a JSON Lines file of
                them with a ``run_id`` on each line. What a line leaves out comes from the run.
            judged: ``("helpful", 0.8)``: also runs that were judged at least that well (`Store.judge`).
            beside: other datasets. A row like one of their open rows goes into search, one like a sealed row is left out.
            used: further stores whose rollouts count in the same way, as those of `store` do.
            drop_sensitive: make rows without the signature's sensitive fields; otherwise such a signature is refused.
            about: as in `from_rows`, except ``assignment``.

        Raises:
            Refused: the signature has sensitive fields.
            DatasetError: no row is left. MissingHoldout: too few, or too few that were never tried on.
            MalformedRow: a label is missing or does not fit; no such run.
            JournalTampered: something of a run was not written with the store's key.
        """
        from dse.evaluation.from_runs import from_runs

        return from_runs(cls, store, signature, name=name, cluster_key=cluster_key, labels=labels, judged=judged, beside=beside,
                         used=used, drop_sensitive=drop_sensitive, say=say, about=about)  # fmt: skip

    @classmethod
    def _import(
        cls, rows: Iterable[Row], source: str, name: str, fields: Mapping[str, str], id_field: str | None,
        about: dict[str, Any],
    ) -> Dataset:  # fmt: skip
        known = {"cluster_key", "quota", "salt", "assignment", "signature", "license", "source", "builder"}
        for key in sorted(set(about) - known):
            own = " json_fields=, null_fields= and delimiter= are of from_csv: other sources say themselves what type a value has."
            raise DatasetError("A dataset has no argument of this name", value=key, argument=key,
                               remedy=f"It takes: {', '.join(sorted(known))}."
                                      + (own if key in ("json_fields", "null_fields", "delimiter") else ""))  # fmt: skip
        assignment = check_assignment(about.pop("assignment", {}), source)
        data = {"salt": f"{name}-1", "quota": DEFAULT_QUOTA, **about, "name": name, "fields": fields}
        canonical_json([assignment, str(name), *(about.get(key) for key in ("salt", "signature", "license", "source", "builder"))])
        header = make_header(data, source)
        with _no_cycles():
            return cls(header, place(header, rows, source, id_field), assignment, where=source)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> Dataset:
        """A new dataset with `rows` (flat dictionaries with ``id`` and all fields) added; this one is unchanged.

        Every cluster keeps its split; new clusters go where the quota lacks most. ``save`` the result.

        Raises:
            MalformedRow, DuplicateRow, ContaminatedSplit: as `load`; nothing is added then.
        """
        added = place(self._header, importers.read_rows(rows, "appended rows"), "appended rows")
        made = Dataset(self._header, [*self._placed(), *added], self._assignment, where=f"dataset {self.name!r}")
        made.path, made._on_disk = self.path, self._on_disk
        return made

    def save(self, path: str | Path | None = None) -> None:
        """Write the folder, with revision and assignment.

        Each file is replaced in one step: ``data.jsonl`` (left alone when the rows are those on disk), then
        ``dataset.json``. A crash between the two leaves all rows, and a `DatasetChanged` that `seal` settles.

        Args:
            path: the folder, made if needed; default where the dataset was loaded from.

        Raises:
            DatasetChanged: the folder was changed since it was loaded, or assigns a cluster to another split.
            DatasetError: no path is known, or another dataset is there.
        """
        if path is None and self.path is None:
            raise DatasetError("The dataset has no folder yet", value=self.name, remedy="Call save(path).")
        folder = Path(path) if path is not None else self.path
        assert folder is not None
        write_folder(folder, self._header, self._assignment, self.revision, self._all(), origin=self.path, held=self._on_disk)
        self.path, self._on_disk = folder, self.revision

    # ---- what it holds --------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._header.name

    @property
    def signature(self) -> str:
        """Where the signature is, as ``module:Class``, or empty."""
        return self._header.signature

    @property
    def fields(self) -> dict[str, str]:
        """The role of every field."""
        return dict(self._header.fields)

    @property
    def cluster_key(self) -> str | None:
        return self._header.cluster_key

    @property
    def assignment(self) -> dict[str, str]:
        """The split of every cluster."""
        return dict(self._assignment)

    @property
    def quota(self) -> dict[str, float]:
        return dict(self._header.quota)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.rows)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {len(rows)}" for name, rows in self._open.items())
        return f"<dse.Dataset {self.name} {self.revision[:19]}: {counts}, holdout {len(self._sealed)} (sealed)>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._sealed.__reduce_ex__(protocol)

    def split(self, name: str) -> tuple[Example, ...]:
        """The examples of ``"search"`` or ``"select"``, in the order of the file.

        Raises:
            Refused: for the holdout, which only `open_holdout` gives.
            DatasetError: there is no such split.
        """
        if name == "holdout":
            raise Refused("The holdout is sealed", value=self.name,
                          remedy="Only a compile opens it, for its verdict; use search or select.")  # fmt: skip
        if not isinstance(name, str) or name not in self._open:
            raise DatasetError("There is no such split", value=name, remedy=f"The splits are {', '.join(SPLITS)}.")
        return self._open[name]

    def holdout_alike(self) -> int:
        """How many sealed rows are near-duplicates of sealed rows of another cluster (see `near_duplicates`).

        Clusters count as independent in a verdict, and such rows hardly are. Where very many resemble each other this is a
        lower bound: the search ends after 10,000 pairs.
        """
        if self._alike is None:
            rows = self._sealed._rows
            names: dict[str, int] = {}
            groups = [names.setdefault(row.cluster, len(names)) for row in rows]
            texts = input_texts([row._inputs for row in self._all()])
            sealed = [text for text, split in zip(texts, self._split_of, strict=True) if split == "holdout"]
            pairs = similar_pairs(sealed, groups, limit=_ALIKE)
            self._alike = len({index for pair in pairs for index in (pair.a, pair.b)})
        return self._alike

    def describe(self) -> dict[str, Any]:
        """``name``, ``revision``, ``rows``, ``clusters``, per split ``rows``, ``clusters``, ``quota``, ``hash``, and
        ``holdout_alike`` (see there)."""
        splits = {
            name: {"rows": self._split_of.count(name), "clusters": self._clusters[name],
                   "quota": self._header.quota[name], "hash": self.split_hashes[name]}
            for name in SPLITS
        }  # fmt: skip
        return {"name": self.name, "revision": self.revision, "rows": len(self._split_of),
                "clusters": sum(self._clusters.values()), "splits": splits, "holdout_alike": self.holdout_alike()}  # fmt: skip

    def holdout_summary(self) -> dict[str, Any]:
        """``rows`` and ``clusters`` of the holdout, and ``hash``, the digest of its sorted row hashes."""
        return {"rows": len(self._sealed), "clusters": self._clusters["holdout"],
                "hash": self.split_hashes["holdout"]}  # fmt: skip

    def open_holdout(
        self, ledger: Ledger, *, purpose: str = "gate", compile_id: str | None = None,
        select: Select | None = None,
    ) -> Holdout:  # fmt: skip
        """Break the seal, after `ledger` has recorded it.

        Args:
            select: chooses the rows to open, by id, cluster and hash; the others stay sealed and unrecorded.

        Raises:
            Refused: `ledger` cannot record, or does not confirm with a count; `select` chose no rows, or others.
                Whatever ``record`` itself raises goes through. The holdout stays sealed then.
        """
        about = {"dataset": self.name, "revision": self.revision}
        return self._sealed.open(ledger, about, purpose=purpose, compile_id=compile_id, select=select)

    def holdout_openings(self, ledger: Any, *,
                         select: Select | None = None) -> int:  # fmt: skip
        """How many openings of any of these rows the ledger has: what `open_holdout` would add one to. Opens nothing.

        Args:
            ledger: a `dse.Store`, or what else has ``overlapping(entry)``.
            select: as for `open_holdout`.
        """
        return int(ledger.overlapping(self._sealed.known_by(select)))

    def overlaps(self, texts: Sequence[str], splits: Iterable[str] = ("select", "holdout")) -> list[Overlap]:
        """Rows of `splits` whose inputs are near-duplicates of `texts` (demonstrations, say); see `near_duplicates`.

        Make the texts of demonstrations with `input_text`. The holdout may be asked about; its rows stay sealed.
        """
        found: list[Overlap] = []
        for split in splits:
            rows = self._sealed._rows if split == "holdout" else self.split(split)
            pairs = near_duplicates(texts, [input_text(row._inputs) for row in rows])
            found += (Overlap(pair.a, split, rows[pair.b].id, pair.similarity) for pair in pairs)
        return sorted(found)

    def quoted(self, texts: Iterable[str]) -> list[str]:
        """Splits of which these texts hold an input word for word that search does not have. Sealed rows stay sealed.

        Inputs are compared without regard to case, white space and forms of Unicode; those of fewer than 24 characters
        may stand anywhere by chance, and are not looked for.
        """
        whole = " ".join(normal(text) for text in texts)
        known = {text for row in self.split("search") for text in long_texts(row._inputs)}
        held = {"select": self.split("select"), "holdout": self._sealed._rows}
        return [name for name, rows in held.items()
                if any(text in whole for row in rows for text in long_texts(row._inputs) if text not in known)]  # fmt: skip

    def beyond_search(self, inputs: Iterable[Mapping[str, Any]]) -> list[str]:
        """Splits that have a row of exactly one of these inputs, where search has none. Sealed rows stay sealed."""
        wanted = {digest(dict(one)) for one in inputs} - {row.input_hash for row in self.split("search")} if inputs else set()
        held = {"select": self.split("select"), "holdout": self._sealed._rows} if wanted else {}
        return [name for name, rows in held.items() if any(row.input_hash in wanted for row in rows)]

    def check(self, signature: Any) -> None:
        """Check every row, those of the holdout included, against a signature.

        Inputs must be valid. Labels with the name of an output must be valid *and* in the form in which outputs are
        written (all fields of a model, decimals as strings, sets sorted ...), else no right answer would equal them.
        Labels without an output are left to the metric.

        Args:
            signature: has ``spec()`` with ``inputs`` and ``outputs``: name -> field with ``adapter``.

        Raises:
            DatasetError: inputs or outputs do not match the roles of the fields.
            MalformedRow: with file, line and field; values of the holdout are not shown.
        """
        tests = checks(signature.spec(), self._header.fields, self.name)
        for item, split in zip(self._placed(), self._split_of, strict=True):
            for role, name, test in tests:
                value = (item.example._inputs if role == "input" else item.example._labels)[name]
                problem = test(value)
                if problem is not None:
                    told, remedy = problem
                    if split == "holdout":  # what a validator says, and of which part, may hold the value as well
                        told, value, remedy = told.partition(":")[0], None, "Correct the row."
                    raise malformed(f"the {role} {name!r} of row {item.example.id!r} {told}", item.source, item.line, name,
                                    value=value, remedy=remedy)  # fmt: skip

    def _all(self) -> Iterator[Example]:
        """All rows in the order of the file, the sealed ones among them."""
        parts = {"holdout": iter(self._sealed._rows), **{name: iter(rows) for name, rows in self._open.items()}}
        return (next(parts[split]) for split in self._split_of)

    def _placed(self) -> list[Placed]:
        return [Placed(row, *source) for row, source in zip(self._all(), self._sources, strict=True)]


def seal(path: str | Path) -> Dataset:
    """Accept the rows of a dataset folder as they are: place new clusters and write revision and assignment.

    For builders, and after deliberate changes by hand. Placed clusters keep their split; ``data.jsonl`` is not
    touched; the result is the same however often it runs. Gives the dataset.

    Raises:
        As `Dataset.load`, except that revision and assignment need not fit; nothing is written then.
    """
    folder = Path(path)
    header, assignment, _, data = read_folder(folder)
    made = Dataset(header, place(header, importers.read_jsonl(data), str(data)), assignment, where=str(folder))
    write_header(folder, header, made.assignment, made.revision)
    made.path, made._on_disk = folder, made.revision
    return made


@contextlib.contextmanager
def _no_cycles() -> Iterator[None]:
    """Pause the cycle collector: it would walk all rows again and again (40% of the time at 100,000 rows)."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()
