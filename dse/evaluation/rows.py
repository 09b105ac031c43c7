"""Rows and their header: what ``data.jsonl`` and ``dataset.json`` may hold, checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, NoReturn

from pydantic import ValidationError

from dse.canonical import digest, parse_json, sha256_hex
from dse.errors import DatasetChanged, DatasetError, MalformedJSON
from dse.evaluation.importers import Row, malformed, plain
from dse.evaluation.metric import same_wire
from dse.evaluation.splits import ALGORITHM, SPLITS, check_quota

__all__ = [
    "DEFAULT_QUOTA", "Example", "Header", "Placed", "check_assignment", "checks", "make_header", "place", "read_header",
]  # fmt: skip

DEFAULT_QUOTA = {"search": 0.4, "select": 0.3, "holdout": 0.3}
_MAX_HEADER_BYTES = 128 * 2**20
_ROLES = ("input", "label", "meta")
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Example:
    """One row. Attributes: ``id``, ``inputs``, ``labels``, ``meta``, ``cluster``, ``row_hash``, ``input_hash``.

    The values of fields are attributes as well, looked up in inputs, labels and meta in this order (a field called
    like one of the seven is reached through its dictionary only). Examples are read-only: every access to
    a dictionary or list gives a fresh copy, so that nothing a world or metric does to it reaches another rollout.

    Args:
        id: unique in its dataset, not empty.
        inputs, labels, meta: plain JSON data by field name.
        cluster: rows of one cluster are not independent and never lie in different splits; default the id.

    Raises:
        Unserialisable: a value is not plain JSON data.
    """

    __slots__ = ("_inputs", "_labels", "_meta", "cluster", "id", "row_hash")

    id: str
    cluster: str
    row_hash: str

    def __init__(
        self,
        id: str,
        inputs: Mapping[str, Any],
        labels: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        cluster: str | None = None,
    ) -> None:
        if not isinstance(id, str) or not id or not isinstance(cluster, (str, NoneType)):
            raise DatasetError("An example's id or cluster is not a string", value=[id, cluster],
                               remedy="Give it a string of its own.")  # fmt: skip
        parts = plain(dict(inputs)), plain(dict(labels or {})), plain(dict(meta or {}))
        digest(parts)  # refuses what JSON cannot hold
        self._fill(id, *parts, cluster)

    def _fill(self, id: str, inputs: Any, labels: Any, meta: Any, cluster: str | None) -> None:
        # the canonical JSON of data that is known to have one
        whole = _ENCODER.encode({"inputs": inputs, "labels": labels, "meta": meta})
        put = object.__setattr__
        put(self, "id", id)
        put(self, "_inputs", inputs)
        put(self, "_labels", labels)
        put(self, "_meta", meta)
        put(self, "cluster", id if cluster is None else cluster)
        put(self, "row_hash", "sha256:" + sha256_hex(whole.encode()))

    @classmethod
    def _of(cls, id: str, inputs: Any, labels: Any, meta: Any, cluster: str | None) -> Example:
        """Without copies and checks, for data that has passed them."""
        self = object.__new__(cls)
        self._fill(id, inputs, labels, meta, cluster)
        return self

    @property
    def input_hash(self) -> str:
        """Digest of the inputs alone."""
        return digest(self._inputs)

    @property
    def inputs(self) -> dict[str, Any]:
        copy: dict[str, Any] = _copy(self._inputs)
        return copy

    @property
    def labels(self) -> dict[str, Any]:
        copy: dict[str, Any] = _copy(self._labels)
        return copy

    @property
    def meta(self) -> dict[str, Any]:
        copy: dict[str, Any] = _copy(self._meta)
        return copy

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            for part in (self._inputs, self._labels, self._meta):
                if name in part:
                    return _copy(part[name])
            raise AttributeError(f"example {self.id!r} has no field {name!r}; it has: "
                                 f"{', '.join([*self._inputs, *self._labels, *self._meta])}")  # fmt: skip
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to {name!r}: examples are read-only")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete {name!r}: examples are read-only")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Example):
            return NotImplemented
        return (self.id, self.cluster, self.row_hash) == (other.id, other.cluster, other.row_hash)

    def __hash__(self) -> int:
        return hash((self.id, self.cluster, self.row_hash))

    def __reduce__(self) -> tuple[Any, ...]:
        return Example._of, (self.id, self._inputs, self._labels, self._meta, self.cluster)

    def __repr__(self) -> str:
        return f"dse.Example(id={self.id!r}, cluster={self.cluster!r}, inputs={self._inputs!r})"


def _copy(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copy(item) for key, item in value.items()}
    if type(value) is list:
        return [_copy(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class Header:
    """What ``dataset.json`` says, besides revision and assignment."""

    name: str
    fields: dict[str, str]
    quota: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_QUOTA))
    salt: str
    cluster_key: str | None = None
    signature: str = ""
    license: str = ""
    source: str = ""
    builder: str = ""

    def to_json(self, assignment: Mapping[str, str], revision: str) -> bytes:
        data = {
            "format": 1,
            "name": self.name,
            "signature": self.signature,
            "fields": self.fields,
            "cluster_key": self.cluster_key,
            "license": self.license,
            "source": self.source,
            "builder": self.builder,
            "split": {
                "algorithm": ALGORITHM,
                "quota": self.quota,
                "salt": self.salt,
                "assignment": dict(sorted(assignment.items())),
            },
            "revision": revision,
        }
        return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


_KEYS = {
    "format": True, "name": True, "signature": False, "fields": True, "cluster_key": False, "license": False,
    "source": False, "builder": False, "split": True, "revision": False,
}  # fmt: skip
_SPLIT_KEYS = {"algorithm": True, "quota": True, "salt": True, "assignment": False}


def _text(where: str, data: Mapping[str, Any], key: str, needed: bool = False) -> str:
    value = data.get(key, "")
    if not isinstance(value, str) or (needed and not value.strip()):
        raise DatasetError(f"{where}: {key!r} is not a {'text' if not needed else 'text that says something'}",
                           value=value, file=where, field=key, remedy="Write a string.")  # fmt: skip
    return value


def _object(where: str, data: Any, keys: Mapping[str, bool], what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise DatasetError(f"{where}: {what} is not an object", value=data, file=where, remedy="Write {...}.")
    for key in data:
        if key not in keys:
            raise DatasetError(f"{where}: unknown key {key!r} in {what}", value=data[key], file=where, field=key,
                               remedy=f"The keys are: {', '.join(keys)}.")  # fmt: skip
    for key, needed in keys.items():
        if needed and key not in data:
            raise DatasetError(f"{where}: {what} has no {key!r}", file=where, field=key, remedy="Add it.")
    return data


def make_header(data: Mapping[str, Any], where: str) -> Header:
    """A checked header from flat keyword data (as `Header` has them)."""
    fields, key = data["fields"], data.get("cluster_key")
    if not isinstance(fields, Mapping):
        raise DatasetError(f"{where}: 'fields' is not an object", value=fields, file=where, field="fields",
                           remedy='Write {"<field>": "input" | "label" | "meta"}.')  # fmt: skip
    for name, role in fields.items():
        if name == "id" or not name or not isinstance(name, str):
            raise DatasetError(f"{where}: a field cannot be called {name!r}", file=where, field=str(name),
                               remedy="Every row has an id besides its fields; rename or leave out the field.")  # fmt: skip
        if role not in _ROLES:
            raise DatasetError(f"{where}: the field {name!r} has no known role", value=role, file=where, field=name,
                               remedy=f"The roles are {', '.join(_ROLES)}.")  # fmt: skip
    if "input" not in fields.values():
        raise DatasetError(f"{where}: no field is an input", value=dict(fields), file=where, field="fields",
                           remedy="Give at least one field the role input.")  # fmt: skip
    if key is not None and (not isinstance(key, str) or fields.get(key) not in ("meta", "input")):
        raise DatasetError(f"{where}: the cluster key is not a meta or input field", value=key, file=where,
                           field="cluster_key", remedy="Name one, or null: then each row is its own cluster.")  # fmt: skip
    texts = {name: _text(where, data, name) for name in ("signature", "license", "source", "builder")}
    return Header(name=_text(where, data, "name", True), fields=dict(fields), cluster_key=key,
                   quota=check_quota(data["quota"], f"{where}: the quota"), salt=_text(where, data, "salt", True),
                   **texts)  # fmt: skip


def read_header(file: Path) -> tuple[Header, dict[str, str], str]:
    """Header, assignment and revision of a ``dataset.json``."""
    where = str(file)
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_HEADER_BYTES + 1)
        if len(text) > _MAX_HEADER_BYTES:
            raise DatasetError(f"{where} has more than {_MAX_HEADER_BYTES} bytes", value=where, file=where,
                               remedy="Name a folder with dataset.json and data.jsonl.")  # fmt: skip
        data = parse_json(text, source=where)
    except MalformedJSON as exc:
        raise DatasetError(exc.what, value=exc.value, remedy=exc.remedy, file=where, **exc.details) from None
    except (OSError, ValueError) as exc:  # a path may hold a NUL
        raise DatasetError(f"{where} cannot be read: {getattr(exc, 'strerror', exc)}", value=where, file=where,
                           remedy="Name a folder with dataset.json and data.jsonl.") from None  # fmt: skip
    if isinstance(data, dict) and data.get("format") != 1:
        raise DatasetError(f"{where}: this dse reads format 1", value=data.get("format"), file=where, field="format",
                           remedy="Write the dataset in format 1, or use the dse that it was written with.")  # fmt: skip
    data = _object(where, data, _KEYS, "the dataset")
    split = _object(where, data["split"], _SPLIT_KEYS, "'split'")
    if split["algorithm"] != ALGORITHM:
        raise DatasetError(f"{where}: unknown split algorithm", value=split["algorithm"], file=where, field="algorithm",
                           remedy=f"Write {ALGORITHM!r}.")  # fmt: skip
    header = make_header({**data, "quota": split["quota"], "salt": split["salt"]}, where)
    assignment = check_assignment(split.get("assignment", {}), where)
    return header, assignment, _text(where, data, "revision")


def check_assignment(assignment: Any, where: str) -> dict[str, str]:
    if not isinstance(assignment, Mapping):
        raise DatasetError(f"{where}: the assignment is not an object", value=assignment, file=where, field="assignment",
                           remedy='Write {"<cluster>": "<split>"}.')  # fmt: skip
    for cluster, split in assignment.items():
        if not isinstance(cluster, str):
            raise DatasetError(f"{where}: a cluster's name is not a string", value=cluster, file=where, field="assignment",
                               remedy="Names of clusters are strings, also where a row has a number.")  # fmt: skip
        if split not in SPLITS:
            raise DatasetChanged(f"{where}: cluster {cluster!r} is assigned to a split that does not exist", value=split,
                                 file=where, field="assignment", remedy=f"The splits are {', '.join(SPLITS)}.")  # fmt: skip
    return dict(assignment)


class Placed(NamedTuple):
    """An example and where it came from."""

    example: Example
    source: str
    line: int

    def __str__(self) -> str:
        return f"row {self.example.id!r} ({self.source}, line {self.line})"


def place(header: Header, rows: Iterable[Row], source: str, id_field: str | None = "id") -> list[Placed]:
    """Examples out of flat rows that hold exactly the declared fields."""
    roles = [[name for name, role in header.fields.items() if role == wanted] for wanted in _ROLES]
    width = len(header.fields) + (id_field is not None)
    key = header.cluster_key
    result: list[Placed] = []
    for line, row in rows:
        if len(row) != width or (id_field is not None and id_field not in row):
            _refuse_shape(header, row, source, line, id_field)
        try:
            inputs, labels, meta = ({name: row[name] for name in names} for names in roles)
        except KeyError:
            _refuse_shape(header, row, source, line, id_field)
        cluster = None if key is None else row[key]
        if cluster is not None and (not isinstance(cluster, (str, int)) or isinstance(cluster, bool) or cluster == ""):
            raise malformed(f"the cluster key {key!r} is not a name", source, line, key, value=cluster,
                            remedy="Write a string or an integer, or null for a row on its own.")  # fmt: skip
        if id_field is None:
            ident = "row-" + digest({"inputs": inputs, "labels": labels, "meta": meta})[7:23]
        else:
            ident = row[id_field]
            if not isinstance(ident, str) or not ident.strip():
                raise malformed("the id is not a string" if not isinstance(ident, str) else "the id is empty", source,
                                line, id_field, value=ident, remedy="Give every row a string of its own as id.")  # fmt: skip
        made = Example._of(ident, inputs, labels, meta, None if cluster is None else str(cluster))
        result.append(Placed(made, source, line))
    return result


def _refuse_shape(header: Header, row: Mapping[str, Any], source: str, line: int, id_field: str | None) -> NoReturn:
    for name in (*(() if id_field is None else (id_field,)), *header.fields):
        if name not in row:
            if len(row) == 1 and len(header.fields) > 1 and any(mark in next(iter(row)) for mark in ";\t|"):
                raise malformed(f"the field {name!r} is missing; the only column has several names in it", source, line, name,
                                value=next(iter(row)), remedy='Name what separates the cells: delimiter=";".')  # fmt: skip
            if name == id_field:
                raise malformed(f"the field {name!r} is missing: the id of the row", source, line, name, value=list(row),
                                remedy='Name the column that holds it: id_field="..."; id_field=None makes ids from the '
                                       "content.")  # fmt: skip
            raise malformed(f"the field {name!r} is missing", source, line, name, value=list(row),
                            remedy="Add it, with null where there is no value.")  # fmt: skip
    extra = next(name for name in row if name not in header.fields and name != id_field)
    raise malformed(f"the field {extra!r} is not declared", source, line, extra, value=row[extra],
                    remedy=f"Declare its role, or leave it out: drop=[{extra!r}] when importing. "
                           f"Declared: {', '.join(header.fields)}.")  # fmt: skip


# ---- against a signature ----------------------------------------------------------------------------------

_Check = Callable[[Any], "tuple[str, str] | None"]


def checks(spec: Any, roles: Mapping[str, str], dataset: str) -> list[tuple[str, str, _Check]]:
    """(role, field, check) for every field that `spec` has a type for; a check gives None or (problem, remedy).

    Raises:
        DatasetError: the inputs and outputs of `spec` and the `roles` of the fields do not agree.
    """
    for name in (*spec.inputs, *spec.outputs, *roles):
        role = roles.get(name)
        wanted = "input" if name in spec.inputs else "label" if name in spec.outputs else None
        optional = wanted == "label" or not getattr(spec.inputs.get(name), "required", True)
        if role == wanted or (role is None and optional) or (wanted is None and role in ("label", "meta")):
            continue
        found = "missing" if role is None else f"declared as {role}"
        needed = "has no such input" if wanted is None else f"has it as {wanted.replace('label', 'output')}"
        raise DatasetError(f"Dataset {dataset!r}: the field {name!r} is {found}, and the signature {needed}",
                           value=dict(roles), field=name, remedy="Make dataset.json and the signature agree.")  # fmt: skip
    made = [("input", name, _input_check(spec.inputs[name])) for name in spec.inputs if name in roles]
    return made + [("label", name, _label_check(spec.outputs[name])) for name in spec.outputs if name in roles]


def _input_check(spec: Any) -> _Check:
    def check(value: Any) -> tuple[str, str] | None:
        try:
            spec.adapter.validate_python(_copy(value))
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            if value == "" and _takes_null(spec):
                return "does not fit its type: it is empty text", ("Write null where there is no value; from_csv reads empty "
                                                                   "cells as null in the columns of null_fields=.")  # fmt: skip
            return f"does not fit its type: {place + ': ' if place else ''}{first['msg']}", "Correct the row or the type."
        return None

    return check


def _takes_null(spec: Any) -> bool:
    try:
        return spec.adapter.validate_python(None) is None
    except ValidationError:
        return False


def _label_check(spec: Any) -> _Check:
    from dse.contracts.schema import dump_wire, schema_of

    valid = _input_check(spec)
    schema = getattr(spec, "schema", None) or schema_of(spec.adapter, "validation")

    def check(value: Any) -> tuple[str, str] | None:
        problem = valid(value)
        if problem is None:
            wire = dump_wire(spec.adapter, spec.adapter.validate_python(_copy(value)), schema)
            if not same_wire(wire, value):
                if isinstance(value, str) and not isinstance(wire, str):
                    return ("is text, not in the form in which outputs are written (from_csv reads numbers in json_fields= only)",
                            f"Write {json.dumps(wire, ensure_ascii=False)} without quotes.")  # fmt: skip
                return "is not in the form in which outputs are written", f"Write {json.dumps(wire, ensure_ascii=False)}."
        return problem

    return check
