"""Fuzzing in short: Hypothesis and seeded mutations on every target of tests/fuzz/targets.py."""

from __future__ import annotations

import ast
import functools
import json
import keyword
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fuzz.targets import EXPECTED, SEEDS, TARGETS, same_types
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import mutate
from dse.canonical import canonical_json, parse_json
from dse.contracts.stubs import stubs_for
from dse.contracts.tool import ToolContract
from dse.errors import ContractError, DseError, MalformedJSON, Unserialisable
from dse.portal import run_sync
from dse.runtime import sandbox

ROOT = Path(__file__).parent.parent
SHORT = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Slow ones get fewer mutations here; benchmarks/fuzz.py runs all of them for as long as it is told.
MUTATIONS = {"artifact": 400, "verified_cassette": 300, "cassette": 600, "dataset": 300}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(max_size=4)
    | st.just(float("nan")) | st.sampled_from([4299, 4300, 5000]).map(lambda n: 10**n) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


def accepted(target: str, data: bytes) -> bool:
    """True if the target took `data`, False if it refused it with a coded error; anything else fails the test."""
    try:
        TARGETS[target](data)
    except EXPECTED as exc:
        assert isinstance(exc, DseError) and exc.code != "DSE000" and str(exc)
        return False
    return True


@pytest.mark.parametrize("target", TARGETS)
def test_seeds(target: str) -> None:
    assert any([accepted(target, seed) for seed in SEEDS(target)])
    assert not all(accepted(target, data) for data in (b"", b"\0", b"\xff", b"{", b"[" * 10**5))


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_seeds(target: str) -> None:
    rng = random.Random(f"{target}-1")
    corpus = SEEDS(target)
    outcomes = [accepted(target, mutate(rng, corpus)) for _ in range(MUTATIONS.get(target, 2000))]
    assert not all(outcomes)


@SHORT
@given(target=st.sampled_from(sorted(TARGETS)), data=st.binary(max_size=200))
@example(target="canonical", data=b"[" * 201 + b"]" * 201)
@example(target="canonical", data=b'"\\ud800"')
@example(target="canonical", data=b"1" * 4300)
def test_any_bytes(target: str, data: bytes) -> None:
    accepted(target, data)


@SHORT
@given(JSON)
def test_json_round_trip(value: Any) -> None:
    text = canonical_json(value)
    again = parse_json(text)
    assert same_types(again, value) and canonical_json(again) == text
    assert parse_json(json.dumps(value, indent=3)) == value  # layout and escapes do not matter
    accepted("canonical", text)


@SHORT
@given(ANYTHING)
def test_anything_has_canonical_json_or_a_coded_error(value: Any) -> None:
    try:
        text = canonical_json(value)
    except Unserialisable as exc:
        assert exc.remedy and len(str(exc)) < 3000
    else:
        assert canonical_json(parse_json(text)) == text


@SHORT
@given(JSON, st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999", "9" * 4301, '"\\ud800"', '{"a":1,"a":1}', "[" * 300 + "]" * 300]), st.data())
def test_one_bad_value_anywhere_refuses_the_text(value: Any, bad: str, data: st.DataObject) -> None:
    for wrapped in ([value, "@"], {"k": "@", "v": value}, [[{"x": ["@", value]}]]):
        text = json.dumps(wrapped).replace('"@"', bad, 1)
        if data.draw(st.booleans()):
            text += " \n"
        with pytest.raises(MalformedJSON):
            parse_json(text)
    with pytest.raises(MalformedJSON):
        parse_json(json.dumps([value]) + "[]")


# stubs from contracts

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda n: n not in ("self",))
TEXT = st.text(max_size=30)
FIELDS = st.sampled_from(["a", "name", "class", "a b", "ß", "ﬁ", "__x", "x\ny", '"', "a'b", "1st", "", "Ω"])


def schemas(names: Any) -> Any:
    """Valid schemas, with hostile texts wherever a text may stand."""
    leaf = st.one_of(
        st.sampled_from([{}, {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"}]),
        st.builds(lambda f, d: {"type": "string", "format": f, "description": d}, st.sampled_from(["date", "decimal", "uuid", "x\ny"]), TEXT),
        st.builds(lambda v: {"enum": v}, st.lists(st.text(max_size=5) | st.integers(-9, 9) | st.none(), min_size=1, max_size=3)),
        st.builds(lambda v: {"const": v}, st.text(max_size=5) | st.integers(-9, 9)),
        st.builds(lambda p, d, m: {"type": "string", "pattern": p, "default": d, "minLength": m}, TEXT, TEXT, st.integers(0, 9)),
        st.builds(lambda n: {"$ref": f"#/$defs/{n}"}, names),
    )  # fmt: skip
    return st.recursive(leaf, lambda inner: st.one_of(
        st.builds(lambda s: {"type": "array", "items": s}, inner),
        st.builds(lambda s: {"type": "array", "prefixItems": s}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda s: {"type": "object", "additionalProperties": s}, inner),
        st.builds(lambda s: {"anyOf": s}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda p, d: {"type": "object", "properties": p, "description": d, "required": sorted(p)[:1]},
                  st.dictionaries(FIELDS, inner, max_size=3), TEXT),
    ), max_leaves=6)  # fmt: skip


DEF_NAMES = st.sampled_from(["Node", "1st", "a b", "Any", "NoReturn", "list", "é", "x\ny"])
SCHEMA = schemas(DEF_NAMES)


@st.composite
def contracts(draw: Any) -> dict[str, Any]:
    """Contracts that refer to definitions that exist, each an object (so that they may refer to one another)."""
    defs = {name: {"type": "object", "properties": draw(st.dictionaries(FIELDS, SCHEMA, max_size=2)), "description": draw(TEXT)}
            for name in ["Node", "1st", "a b", "Any", "NoReturn", "list", "é", "x\ny"]}  # fmt: skip
    properties = draw(st.dictionaries(NAMES.filter(str.isidentifier), SCHEMA, max_size=4))
    return {"name": "look_up", "description": draw(TEXT), "effect": draw(st.sampled_from(["read", "write"])),
            "parameters": {"type": "object", "properties": properties, "$defs": defs,
                           "required": [n for n in properties if draw(st.booleans())]},
            "returns": {**draw(SCHEMA), "$defs": defs}}  # fmt: skip


@settings(SHORT, max_examples=100)
@given(contracts())
def test_stubs_of_any_valid_contract_describe_it(data: dict[str, Any]) -> None:
    if any(keyword.iskeyword(name) for name in data["parameters"]["properties"]):
        with pytest.raises(ContractError):
            stubs_for([ToolContract.model_validate(data)])
        return
    assert accepted("stubs", canonical_json(data))


@functools.cache
def checker() -> sandbox.Checker:
    return sandbox.checker()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contracts())
def test_the_checker_takes_the_stubs_or_says_why_not(data: dict[str, Any]) -> None:
    try:
        text = stubs_for([ToolContract.model_validate(data)])
        run_sync(checker().validate_stubs, text)
    except ContractError as exc:
        assert exc.remedy


@SHORT
@given(st.recursive(st.sampled_from([None, True, 5, "x", [], {}]), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
    st.sampled_from(["type", "properties", "required", "$ref", "$defs", "enum", "const", "anyOf", "items", "prefixItems", "description",
                     "format", "default", "pattern", "additionalProperties", "allOf", "minimum"]), inner, max_size=4), max_leaves=12))  # fmt: skip
def test_schemas_that_are_none_are_refused_with_a_code(schema: Any) -> None:
    parameters = {**schema, "type": "object"} if isinstance(schema, dict) else {"type": "object", "properties": {"a": schema}}
    for data in ({"parameters": parameters, "returns": {}}, {"parameters": {"type": "object"}, "returns": schema}):
        accepted("stubs", canonical_json({"name": "look_up", "description": "", "effect": "read", **data}))


@pytest.mark.parametrize(("properties", "defs"), [
    ({"a b": {}}, {}), ({"class": {}}, {}), ({"ﬁ": {}}, {}), ({"a": {"$ref": "#/$defs/None"}}, {}), ({"a": {"$ref": 5}}, {}),
    ({"a": {"$ref": "#/$defs/A"}}, {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}),
    ({"a": {"$ref": "#/$defs/A"}}, {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}}}),
    ({"a": {"type": "text"}}, {}), ({"a": {"enum": []}}, {}), ({"a": {"enum": [{}]}}, {}), ({"a": {"anyOf": []}}, {}), ({"a": 5}, {}),
    ({"a": {"$ref": "#/$defs/D0"}}, {f"D{i}": {"type": "object", "properties": {"n": {"$ref": f"#/$defs/D{i + 1}"}}} if i < 900 else {}
                                     for i in range(901)}),
], ids=range(13))  # fmt: skip
def test_schemas_that_no_stub_can_express(properties: dict[str, Any], defs: dict[str, Any]) -> None:
    contract = ToolContract(name="look_up", description="", effect="read", returns={},
                            parameters={"type": "object", "properties": properties, "$defs": defs})  # fmt: skip
    with pytest.raises(ContractError) as caught:
        stubs_for([contract])
    assert caught.value.remedy and caught.value.code == "DSE110"


def test_references_below_unknown_keywords_and_properties_called_like_one_are_no_references() -> None:
    odd = {"type": "object", "properties": {"$ref": {"type": "string"}, "x": {"someOf": [{"$ref": "#/$defs/Gone"}]}}}
    for parameters in ({"properties": {"a": odd}}, {"properties": {"a": {"$ref": "#/$defs/Odd"}}, "$defs": {"Odd": odd}}):
        data = {"name": "look_up", "description": "", "effect": "read", "returns": odd, "parameters": {"type": "object", **parameters}}
        assert accepted("stubs", canonical_json(data))


def test_texts_of_a_schema_never_become_code() -> None:
    evil = 'x\n    ...\nimport os\nos.system("touch owned")\n"""\nimport os\n#'
    part = {"type": "object", "properties": {"field": {"type": "string", "pattern": evil, "description": evil, "minLength": evil}},
            "description": evil}  # fmt: skip
    contract = ToolContract(name="look_up", description=evil + "\0", effect="read", returns=part, parameters={
        "type": "object", "properties": {"a": {**part, "pattern": evil, "default": evil}}})  # fmt: skip
    tree = ast.parse(stubs_for([contract]))
    assert [type(node).__name__ for node in tree.body] == ["ImportFrom", "ClassDef", "ClassDef", "AsyncFunctionDef"] or [
        type(node).__name__ for node in tree.body] == ["ImportFrom", "ClassDef", "AsyncFunctionDef"]  # fmt: skip
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Call, ast.Import))]


def test_the_long_run_works_without_the_optional_fuzzer() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.fuzz", "--seconds", "1", "--target", "csv", "--engine", "mutations"],
                          capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| csv | mutations |" in done.stdout and "| 0 |" in done.stdout
