"""What is fuzzed: each target takes any bytes and either returns or raises an error of dse. Anything else is a finding.

Targets assert what must hold of input that is accepted. Hypothesis and seeded mutations drive them in
``tests/test_fuzz.py``, coverage-guided fuzzing in ``benchmarks/fuzz.py``.
"""

from __future__ import annotations

import ast
import functools
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dse.artifacts.artifact import Artifact
from dse.artifacts.history import Release
from dse.canonical import canonical_json, deeper_than, digest, parse_json
from dse.compiler.gate import recompute
from dse.contracts.stubs import function_schema, input_declarations, stubs_for
from dse.contracts.tool import ToolContract
from dse.errors import DseError, JournalTampered
from dse.evaluation.dataset import Dataset
from dse.store.cassette_format import Cassette, read_bounded

__all__ = ["EXPECTED", "SEEDS", "TARGETS", "decode_journal"]

ROOT = Path(__file__).parent.parent.parent
EXPECTED = (DseError,)
_SMALL = 2**20


# ---- targets ----------------------------------------------------------------------------------------------


def canonical(data: bytes) -> None:
    """What strict JSON accepts has one canonical text, which reads back as the same and is its own canonical text."""
    value = parse_json(data)
    text = canonical_json(value)
    again = parse_json(text)
    assert again == value and same_types(again, value)
    assert canonical_json(again) == text
    assert digest(value) == digest(again)
    assert not deeper_than(value, 200)
    json.loads(data)  # never more than the standard library accepts


def artifact(data: bytes) -> None:
    """A whole artifact survives a round trip; its checks and texts never fail in another way than by saying so."""
    made = Artifact.from_bytes(data, source="fuzzed")
    assert Artifact.from_bytes(made.to_bytes()).artifact_id == made.artifact_id
    made.verify(recompute=recompute)
    made.summary()


def history(data: bytes) -> None:
    """A line of a registry's history."""
    value = parse_json(data)
    try:
        release = Release.model_validate(value)
    except ValidationError:
        return
    assert parse_json(canonical_json(release.model_dump())) == value


def decode_journal(data: bytes) -> Any:
    """What the store makes of an entry's text that its key has signed, whoever had that key."""
    from dse.store.runlog import decode_event

    keys = _keys()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise JournalTampered("A value is not text") from None  # as the store says of what its database cannot read
    row = {"seq": 3, "kind": "call", "entry": text, "active_s": 0.5, "key_id": keys.current,
           "mac": keys.mac("event", "r-1", "program", 3, "", "0.5", text)}  # fmt: skip
    return decode_event(keys, "r-1", "program", "", row, 3)


def journal(data: bytes) -> None:
    """A stored journal entry, as its text in the database: it is data, and of the kind and place that its row says.

    Unsigned, the same text is refused before anything looks into it.
    """
    entry = decode_journal(data)
    assert (entry["seq"], entry["kind"]) == (3, "call")
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"))  # as the store writes it, half characters and all
    assert json.dumps(decode_journal(text.encode()), sort_keys=True, separators=(",", ":")) == text


def stored(data: bytes) -> None:
    """Every column of a journal row from anywhere: nothing but what was signed is ever taken."""
    from dse.store.runlog import decode_event

    value = parse_json(data)
    parts = value if isinstance(value, list) else [value]
    names = ("seq", "kind", "entry", "active_s", "key_id", "mac")
    given = dict(zip(names, parts, strict=False))
    row = {"seq": 3, "kind": "call", "entry": "{}", "active_s": 0.5, "key_id": _keys().current, "mac": "0" * 64, **given}
    good = json.loads(_STORED)
    assert decode_event(_keys(), "r-1", "program", "", row, 3) == json.loads(_ENTRY)
    assert all(row[name] == good[place] for place, name in enumerate(names))


def cassette(data: bytes) -> None:
    """A recording: what parses can be written, verified and replayed. Starts with gzip's magic bytes: a compressed one."""
    if data[:2] == b"\x1f\x8b":
        path = _folder() / "fuzzed.jsonl.gz"
        path.write_bytes(data)
        data = read_bounded(path, _SMALL)
    path = Path("fuzzed.jsonl")
    parsed, kept = Cassette.parse(path, data)
    if parsed is None:
        assert b"\n" not in data
        return
    assert kept is None or data[kept - 1 : kept] == b"\n"
    for entry in parsed:
        try:
            entry.completion(parsed.header)
        except DseError:
            assert entry.error is not None
        parsed.request(entry)
    request: Any = {"messages": [{"role": "user", "content": "hello"}], "tools": []}
    parsed.key(request)


def verified_cassette(data: bytes) -> None:
    """Recomputed keys, and the explanation of a miss, of whatever messages a recording claims to hold."""
    parsed, _ = Cassette.parse(Path("fuzzed.jsonl"), data)
    if parsed is not None:
        parsed.verify()
        assert parsed.miss({"messages": [{"role": "user", "content": "hello"}], "tools": []}).code == "DSE402"


def stubs(data: bytes) -> None:
    """A contract from data: its stubs parse and describe the same parameters, or it is refused."""
    value = parse_json(data)
    if not isinstance(value, dict):
        return
    try:
        contract = ToolContract.model_validate(value)
    except ValidationError:
        return
    function_schema(contract)
    text = stubs_for([contract])
    tree = ast.parse(text)
    compile(text, "stubs", "exec")  # finds what parsing does not: one parameter twice
    (function,) = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef)]
    assert function.name == contract.name
    names = [argument.arg for argument in function.args.args]
    properties = contract.parameters.get("properties", {})
    required = set(contract.parameters.get("required", ()))
    assert sorted(names) == sorted(properties)
    assert set(names[: len(names) - len(function.args.defaults)]) == set(properties) & required
    allowed = (ast.ImportFrom, ast.Import, ast.ClassDef, ast.Assign, ast.AsyncFunctionDef)
    assert all(isinstance(node, allowed) for node in tree.body)  # a description never becomes a statement
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            assert all(isinstance(part, (ast.AnnAssign, ast.Pass)) or _is_doc(part) for part in node.body)
    classes, declarations = input_declarations(contract.parameters)
    ast.parse(f"from typing import *\n{classes}\n{declarations}")


def dataset(data: bytes) -> None:
    """A dataset folder: the first line is dataset.json, the rest is data.jsonl."""
    folder = _folder() / "data"
    folder.mkdir(exist_ok=True)
    head, _, rows = data.partition(b"\n")
    (folder / "dataset.json").write_bytes(head)
    (folder / "data.jsonl").write_bytes(rows)
    loaded = Dataset.load(folder)
    again = Dataset.from_rows([{"id": row.id, **row.inputs, **row.labels, **row.meta} for row in loaded], name="again",
                              fields=loaded.fields, quota={"search": 0.0, "select": 0.0, "holdout": 1.0})  # fmt: skip
    assert again.describe()["rows"] == len(loaded)


def csv(data: bytes) -> None:
    """A table from anywhere: every cell is text."""
    path = _folder() / "fuzzed.csv"
    path.write_bytes(data)
    loaded = Dataset.from_csv(path, name="demo", fields={"q": "input", "a": "label"})
    assert all(type(row.q) is str and type(row.a) is str for row in loaded)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (canonical, artifact, history, journal, stored, cassette, verified_cassette, stubs, dataset, csv)
}


# ---- helpers ----------------------------------------------------------------------------------------------


def same_types(one: Any, other: Any) -> bool:
    """Equal values of equal types all the way down: 1, 1.0 and True are equal in Python and different in JSON."""
    waiting = [(one, other)]
    while waiting:
        left, right = waiting.pop()
        if type(left) is not type(right):
            return False
        if isinstance(left, dict):
            waiting += [(left[key], right[key]) for key in left]
        elif isinstance(left, list):
            waiting += zip(left, right, strict=True)
    return True


def _is_doc(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@functools.cache
def _keys() -> Any:
    from dse.store.keys import Keys

    return Keys([b"fuzz" * 8])


_keep: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def _folder() -> Path:
    """In memory where the system has such a place: thousands of small files are written."""
    shm = Path("/dev/shm")
    _keep.append(tempfile.TemporaryDirectory(prefix="dse-fuzz-", dir=shm if shm.is_dir() else None))
    return Path(_keep[-1].name)


# ---- seeds ------------------------------------------------------------------------------------------------

_JSON = [
    b"null", b"-0.0", b"1e308", b"1E-5", b"123456789012345678901234567890", b'"\\ud83d\\ude00"', b'"\\ud83d"', b'"\\u0000"',
    b'{"a":{"b":[1,2.5,"x",true,null]},"\\u00e9":"\xc3\xa9"}', b'[[[[[[1]]]]]]', b'{"a":1,"a":2}', b"NaN", b"\xef\xbb\xbf1",
]  # fmt: skip
_ENTRY = canonical_json({
    "seq": 3, "kind": "call", "run_id": "r-1", "call_id": 1, "name": "look_up", "args": {"person": "Zoë"}, "result": [1, 2.5],
    "effects": "none", "time": "2026-03-04T12:00:00Z",
})  # fmt: skip


_STORED = canonical_json([3, "call", _ENTRY.decode(), 0.5, _keys().current,
                          _keys().mac("event", "r-1", "program", 3, "", "0.5", _ENTRY.decode())])  # fmt: skip


def _contract(parameters: dict[str, Any], returns: dict[str, Any], **more: Any) -> bytes:
    return canonical_json({"name": "look_up", "description": "Looks.\n\nTwice.", "effect": "read", "returns": returns,
                           "parameters": {"type": "object", **parameters}, **more})  # fmt: skip


_CONTRACTS = [
    _contract({"properties": {"a": {"type": "integer", "minimum": 1, "default": 3}}}, {"type": "string", "format": "date-time"}),
    _contract({"properties": {"a": {"$ref": "#/$defs/Node"}}, "required": ["a"],
               "$defs": {"Node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                                                                   "a b": {"type": "string", "pattern": "x\ny"}}}}},
              {"type": "array", "items": {"enum": ["a", "b", 3]}}),
    _contract({"properties": {"q": {"type": ["string", "null"], "description": 'Say "x"\\'}}},
              {"$ref": "#/$defs/R", "$defs": {"R": {"type": "object", "description": '"""', "properties": {"class": {"const": "k"}, "x": {
                  "type": "array", "prefixItems": [{"type": "number"}, {"type": "boolean"}]}}, "required": ["x"]}}}, sensitive=["q"]),
    _contract({"properties": {"q": {"$ref": "#/$defs/Q"}}, "$defs": {"Q": {"$ref": "#/$defs/Q"}}}, {}),
    _contract({"properties": {"d": {"type": "string", "format": "decimal"}, "s": {"type": "array", "uniqueItems": True}}},
              {"type": "object", "additionalProperties": {"type": "integer"}}, rate={"calls": 1, "per_s": 2.0}),
]  # fmt: skip


def _recording() -> bytes:
    return b"\n".join(gzip.decompress((ROOT / "datasets/tickets/recording.jsonl.gz").read_bytes()).split(b"\n")[:6]) + b"\n"


def _dataset() -> list[bytes]:
    rows = [{"id": f"r{i}", "q": f"question {i * 7919} about {i * 104729} and {i * 1299709}", "a": i} for i in range(12)]
    made = Dataset.from_rows(rows, name="demo", fields={"q": "input", "a": "label"})
    folder = _folder() / "seed"
    made.save(folder)
    head = canonical_json(parse_json((folder / "dataset.json").read_bytes()))
    return [head + b"\n" + (folder / "data.jsonl").read_bytes()]


@functools.cache
def seeds(target: str) -> tuple[bytes, ...]:
    """Valid and nearly valid input of one target, to start from."""
    if target == "artifact":
        return tuple(sorted((path.read_bytes() for path in (ROOT / "artifacts").glob("*/????????????????.json")), key=len)[:2])
    if target == "history":
        return tuple(line for path in sorted((ROOT / "artifacts").glob("*/history.jsonl")) for line in path.read_bytes().splitlines())
    if target == "cassette":
        whole = _recording()
        return whole, whole[:2000], gzip.compress(whole, mtime=0)
    if target == "verified_cassette":
        return (_recording(),)
    if target == "stubs":
        return tuple(_CONTRACTS)
    if target == "dataset":
        return tuple(_dataset())
    if target == "stored":
        return _STORED, b"[3]", b"[null]"
    if target == "csv":
        return (b"id,q,a\n" + b"".join(b'r%d,"question %d, %d",x\n' % (i, i * 7919, i * 104729) for i in range(12)), b"\xef\xbb\xbfid,q,a\n")
    return (*_JSON, _ENTRY)


SEEDS: Callable[[str], tuple[bytes, ...]] = seeds
