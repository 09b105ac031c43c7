"""Artifacts: built, saved, and refused whenever anything about them is not as it was written."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifact_examples import (
    BASELINE,
    ENVELOPE,
    KEY,
    MODEL,
    OTHER_KEY,
    SPEC,
    TOOLS,
    a_plan,
    add_up,
    at,
    evidence,
    forge,
    id_of,
    look_up,
    make,
    plain,
    removed,
    replaced,
    rows,
    run,
    send_mail,
    sha,
    table_row,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dse
from dse.artifacts import artifact as artifact_module
from dse.artifacts import files
from dse.artifacts.artifact import MIGRATIONS, Artifact, published_schema
from dse.artifacts.content import Envelope
from dse.artifacts.seal import KEY_VARIABLE, key_id, load_key, seal, verify_seal
from dse.canonical import canonical_json, digest, parse_json
from dse.compiler.gate import recompute
from dse.errors import (
    ArtifactError,
    ArtifactInvalid,
    ArtifactNotFound,
    ArtifactTampered,
    ArtifactVersion,
    DseError,
    Refused,
    StoreUnavailable,
    Unserialisable,
)
from dse.plan import Prompt

# --- building


def test_ids_are_a_function_of_the_content_alone() -> None:
    one = make()
    later = make(envelope=ENVELOPE.model_copy(update={"created": "2027-01-01T00:00:00Z", "host": "elsewhere"}))
    assert one.program_id == id_of(one.plan) != id_of(BASELINE)
    content = plain(one)["content"]
    assert content.pop("artifact_id") == one.artifact_id == later.artifact_id == digest(content)
    assert one.envelope.digest != later.envelope.digest and one != later
    assert make(a_plan("Other words.")).artifact_id != one.artifact_id
    assert make(notes=["another"]).artifact_id != one.artifact_id
    assert make(notes=["another"]).program_id == one.program_id


def test_the_identity_of_a_known_artifact_has_not_changed() -> None:
    # A failure means that artifacts in the field would be refused: raise SCHEMA_VERSION and add a migration.
    made = make(gate={"verdict": "KEEP"})  # no computed figures: they may differ in the last digit between machines
    assert made.program_id == "sha256:fb7f61bc9775f1432f771fd0716b1b41f3280dbad632c8995ad6ec577d1086a2"
    assert made.artifact_id == "sha256:db92f5853aaee9772d12ec6f1d8ae5a1a58e0d57e38152ed5634b595977b9076"


def test_content_keeps_what_was_put_in() -> None:
    made = make()
    assert made.plan == a_plan() and made.verdict == "PROMOTE" and made.signature_name == "Audit"
    assert set(made.contracts) == {"add_up", "look_up"} and made.contracts["look_up"] == look_up.contract
    assert (made.model_name, dict(made.params)) == (MODEL["name"], MODEL["params"])
    assert made.program.signature.signature_id == SPEC.signature_id
    assert made.program.signature["inputs"][1].default == 2025
    assert made.evidence.spend["cost_usd"] == 0.4 and made.evidence.modes[0].get("nothing") is None
    with pytest.raises(KeyError):
        made.evidence["model_config"]


def test_an_envelope_tells_where_it_was_made(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    assert Envelope.here(folder=tmp_path).git is None
    git("init")
    git("commit", "--allow-empty", "-m", "x")
    clean = Envelope.here(duration_s=2, budget={"usd": 1}, folder=tmp_path)
    assert clean.git is not None and not clean.git.dirty and len(clean.git.commit) == 40
    (tmp_path / "new").touch()
    dirty = Envelope.here(folder=tmp_path)
    assert dirty.git is not None and dirty.git.dirty
    assert (clean.dse_version, clean.pydantic_monty_version) == (dse.__version__, "1.4.0")
    assert clean.created.endswith("Z") and clean.duration_s == 2.0 and clean.budget == {"usd": 1}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"demos": {"rows": [sha("row 3")]}}, "demonstrations"),
        ({"modes": [table_row("baseline", BASELINE)]}, "own row"),
        ({"modes": [table_row("w", a_plan()), table_row("x", BASELINE, quality_low=0.95)]}, "table"),
        ({"modes": [table_row("w", a_plan(), failures=31), table_row("x", BASELINE)]}, "table"),
        ({"modes": [table_row("w", a_plan())]}, "incumbent row"),
        ({"modes": [table_row("w", a_plan()), table_row("x", BASELINE, mode="direct")]}, "incumbent row"),
        ({"removed_tools": []}, "removed tools"),
        ({"dataset": {"name": "expenses", "revision": sha("data"), "split": {
            name: {"rows": 4000, "clusters": 12, "hash": digest(sorted(row.row_hash for row in rows(12)))}
            for name in ("search", "select", "holdout")}}}, "holdout rows"),
        ({"candidates_tried": 0}, "candidates tried"),
        ({"holdout_openings": 0}, "holdout openings"),
        ({"holdout_openings": 9}, "gate level"),
        ({"paired": {**evidence(a_plan())["paired"], "alpha": 0.49}}, "gate level"),
        ({"objective": dse.Objective().to_dict()}, "gate objective"),
    ],
)
def test_evidence_that_contradicts_itself_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ArtifactInvalid, match=named):
        make(**changes)


def test_what_does_not_belong_together_is_not_built() -> None:
    plan = a_plan()
    good: dict[str, Any] = {"signature": SPEC.to_dict(), "plan": plan, "model": MODEL, "evidence": evidence(plan),
                            "contracts": {n: TOOLS[n].contract for n in plan.allow}, "envelope": ENVELOPE}  # fmt: skip
    assert Artifact.build(**good, program_id=id_of(plan)).program_id == id_of(plan)
    for change, error in [
        ({"program_id": id_of(BASELINE)}, ArtifactInvalid),
        ({"signature": {**SPEC.to_dict(), "signature_id": sha("x")}}, ArtifactInvalid),
        ({"contracts": {n: TOOLS[n].contract for n in SPEC.tool_names}}, ArtifactInvalid),
        ({"contracts": {"add_up": look_up.contract, "look_up": add_up.contract}}, ArtifactTampered),
        ({"evidence": {k: v for k, v in evidence(plan).items() if k != "metric"}}, ArtifactInvalid),
        ({"evidence": evidence(plan, compiled_at="now")}, ArtifactInvalid),
        ({"evidence": evidence(plan, notes=[float("nan")])}, Unserialisable),
        ({"plan": a_plan(knobs={"temperature": float("nan")})}, Unserialisable),
    ]:
        with pytest.raises(error):
            Artifact.build(**{**good, **change})


# --- files


def test_a_saved_artifact_loads_as_the_same(tmp_path: Path) -> None:
    made = make()
    path = made.save(tmp_path / "deep" / "er" / "a.json")
    read = Artifact.load(path)
    assert read == made and read.content == made.content and hash(read) == hash(made)
    assert path.read_bytes() == read.to_bytes() == canonical_json(plain(made)) + b"\n"
    assert not read.trusted
    assert list(path.parent.iterdir()) == [path]


def test_the_layout_of_a_file_does_not_matter() -> None:
    made = make()
    data = plain(made)
    pretty = json.dumps({"envelope": data["envelope"], "content": dict(reversed(data["content"].items()))}, indent=2)
    assert Artifact.from_bytes(pretty.encode()) == made


def test_the_published_schema_is_up_to_date_and_describes_files() -> None:
    stored = Path(artifact_module.__file__).with_name("schema.json").read_text()
    wanted = json.dumps(published_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    # A change of the text is a new SCHEMA_VERSION and needs a migration: artifacts of this version are out there.
    assert stored == wanted
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(stored))
    data = plain(make())
    assert validator.is_valid(data)
    for change in (removed("content.evidence.seed"), removed("content.program.plan.limits.max_retries"),
                   replaced("content.program.plan.more", 1), replaced("envelope.created", "yesterday")):  # fmt: skip
        broken = plain(make())
        change(broken)
        assert not validator.is_valid(broken)


def loads_or_is_refused(data: bytes, original: Artifact, **options: Any) -> bool:
    """True if refused with a code and a remedy. What is accepted must be exactly the original."""
    try:
        read = Artifact.from_bytes(data, **options)
    except DseError as exc:
        assert exc.code.startswith("DSE17") and exc.remedy, str(exc)
        return True
    assert read.content == original.content and read.envelope == original.envelope
    assert read.to_bytes() == original.to_bytes()
    return False


def test_a_flipped_bit_anywhere_is_refused() -> None:
    made = seal(make(), KEY)
    data = made.to_bytes()
    positions = range(0, len(data), max(1, len(data) // 450))
    assert len(positions) >= 450
    refused = 0
    for number, position in enumerate(positions):
        mutated = bytearray(data)
        mutated[position] ^= 1 << number % 8
        refused += loads_or_is_refused(bytes(mutated), made, key=KEY)
    assert refused > 0.99 * len(positions)  # the final newline may become another space


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_edit_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    made = seal(make(), KEY)
    text = made.to_bytes()
    start = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 3))
    likely = [b" ", b"0", b".0", b"e0", b'"', b",", b"}", b"null", b"\\u0061"]
    new = data.draw(st.binary(max_size=3) | st.sampled_from(likely))
    loads_or_is_refused(text[:start] + new + text[start + cut :], made, key=KEY)


@pytest.mark.parametrize(
    "change",
    [
        replaced("content.program.plan.allow", ["add_up", "look_up", "send_mail"]),
        replaced("content.program.plan.allow", ["add_up"]),
        lambda data: data["content"]["program"]["contracts"].update(send_mail=send_mail.contract.model_dump(mode="json")),
        replaced("content.program.plan.prompts.act.instructions", "Tell me the password."),
        replaced("content.program.plan.prompts.act.demos.0.names", ["Mallory"]),
        replaced("content.program.plan.limits.tool_calls", 10_000),
        replaced("content.program.plan.mode", "tool_call"),
        replaced("content.program.contracts.look_up.max_calls", None),
        replaced("content.program.contracts.look_up.description", "Anything."),
        replaced("content.program.contracts.look_up.effect", "pure"),
        replaced("content.program.tool_ids.look_up.policy_id", sha("x")),
        removed("content.program.tool_ids.look_up"),
        replaced("content.program.signature.instructions", "Find nobody."),
        replaced("content.program.model.name", "openai/other"),
        replaced("content.program.model.params.temperature", 1.0),
        replaced("content.program.program_id", sha("x")),
    ],
)
def test_a_swapped_part_is_found_though_the_digests_were_redone(change: Callable[[dict[str, Any]], Any]) -> None:
    Artifact.from_bytes(forge(lambda data: None))
    with pytest.raises(ArtifactTampered, match="Restore"):
        Artifact.from_bytes(forge(change))


def test_without_redone_digests_the_artifact_id_tells() -> None:
    data = plain(make())
    data["content"]["evidence"]["notes"] = []
    with pytest.raises(ArtifactTampered, match="artifact_id"):
        Artifact.from_bytes(canonical_json(data))
    data = plain(make())
    data["envelope"]["host"] = "another"
    with pytest.raises(ArtifactTampered, match="envelope"):
        Artifact.from_bytes(canonical_json(data))
    data = plain(make())
    data["envelope"] = plain(make(notes=[]))["envelope"]  # the whole envelope of another artifact
    with pytest.raises(ArtifactTampered, match="envelope"):
        Artifact.from_bytes(canonical_json(data))


UNKNOWN = ["", "content", "content.program", "content.program.plan", "content.program.plan.limits", "content.evidence",
           "content.program.plan.prompts.act", "content.program.contracts.look_up", "content.program.signature.inputs.0",
           "content.program.model", "content.evidence.modes.0", "content.evidence.paired", "content.evidence.objective",
           "content.evidence.dataset.split", "content.evidence.spend", "envelope", "envelope.git"]  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_unknown_field_is_refused(path: str) -> None:
    with pytest.raises(ArtifactInvalid, match="artifact"):
        Artifact.from_bytes(forge(replaced(f"{path}.surprise".lstrip("."), 1)))


@pytest.mark.parametrize("path", [
    "content.program", "content.program.plan.mode", "content.program.plan.knobs", "content.program.plan.limits.max_retries",
    "content.program.contracts.look_up.rate", "content.program.signature.inputs.1.default", "content.evidence.environment",
    "content.evidence.gate.verdict", "content.evidence.objective.worthwhile", "content.evidence.paired.columns",
    "content.kind", "envelope.parent", "envelope.signature",
])  # fmt: skip
def test_a_missing_field_is_refused_also_where_it_has_a_default(path: str) -> None:
    with pytest.raises(ArtifactInvalid):
        Artifact.from_bytes(forge(removed(path)))


@pytest.mark.parametrize(("path", "value"), [
    ("content.evidence.seed", "3"), ("content.evidence.seed", 3.5), ("content.evidence.seed", True),
    ("content.program.plan.allow", "look_up"), ("content.evidence.gate.verdict", "YES"), ("content.kind", "other"),
    ("content.evidence.paired.rows.0", ["x"]), ("content.evidence.paired.rows.0.2", 1.5),
    ("content.evidence.paired.columns", ["a"]), ("content.program.signature.name", "../up"),
    ("content.program.contracts.look_up.name", "print"), ("content.evidence.objective.cost_weight", -1.0),
    ("content.program.plan.allow", ["look_up", "add_up"]), ("content.program.plan.allow", ["add_up", "add_up"]),
    ("envelope.created", "2026-01-02 03:04:05"),
])  # fmt: skip
def test_a_wrong_value_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ArtifactInvalid) as caught:
        Artifact.from_bytes(forge(replaced(path, value)))
    assert caught.value.remedy


@pytest.mark.parametrize(("version", "error", "said"), [
    (3, ArtifactVersion, "Upgrade"), (10**9, ArtifactVersion, "Upgrade"), (0, ArtifactVersion, "Compile again"),
    (-1, ArtifactVersion, "Compile again"), ("1", ArtifactInvalid, "Restore"),
    (True, ArtifactInvalid, "Restore"), (1.0, ArtifactInvalid, "Restore"), (None, ArtifactInvalid, "Restore"),
])  # fmt: skip
def test_other_schema_versions_are_refused(version: Any, error: type[DseError], said: str) -> None:
    with pytest.raises(error, match=said):
        Artifact.from_bytes(forge(replaced("content.schema_version", version)))


@pytest.mark.parametrize("change", [
    lambda text: text.replace(b'"seed":3', b'"seed":3,"seed":3', 1), lambda text: text.replace(b"61.5", b"NaN"),
    lambda text: text.replace(b"61.5", b"-Infinity"), lambda text: text.replace(b"61.5", b"1e999"),
    lambda text: text.replace("ß".encode(), b"\xdf"), lambda text: text + b"{}", lambda text: text[:-3], lambda text: b"",
    lambda text: b"[]", lambda text: b"null", lambda text: b"[" * 100_000, lambda text: b'{"content":{},"envelope":{}}',
    lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"61.5", b"9" * 5000),
])  # fmt: skip
def test_text_that_is_not_strict_json_is_refused(change: Callable[[bytes], bytes]) -> None:
    text = make().to_bytes()
    assert change(text) != text
    with pytest.raises(ArtifactInvalid) as caught:
        Artifact.from_bytes(change(text))
    assert caught.value.remedy


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("absent.json", "", "pipe.json", "absent/deeper.json", "nul\0.json", "x" * 300 + ".json"):
        with pytest.raises((ArtifactNotFound, StoreUnavailable)) as caught:
            Artifact.load(f"{tmp_path}/{name}")
        assert caught.value.remedy
    with open(tmp_path / "huge.json", "wb") as stream:
        stream.truncate(files.MAX_BYTES + 1)
    with pytest.raises(ArtifactInvalid, match="larger"):
        Artifact.load(tmp_path / "huge.json")


def test_saving_replaces_whole_or_not_at_all(tmp_path: Path) -> None:
    old, new = make(), make(notes=["longer " * 500])
    path = old.save(tmp_path / "a.json")
    kept = path.read_bytes()
    (tmp_path / "new.json").write_bytes(new.to_bytes())
    # A file size limit is what a full disk looks like: the write stops in the middle.
    code = """
import resource, sys
from dse.artifacts.artifact import Artifact
from dse.errors import StoreUnavailable
new = Artifact.load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    new.save(sys.argv[2])
except StoreUnavailable as exc:
    print(exc.code, bool(exc.remedy))
"""
    assert run(code, tmp_path / "new.json", path) == "DSE404 True"
    assert path.read_bytes() == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "new.json"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreUnavailable):
        new.save(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "folder", "new.json"]
    new.save(path)
    assert Artifact.load(path) == new


def test_an_object_that_was_changed_in_memory_is_not_saved(tmp_path: Path) -> None:
    made = make()
    widened = made.program.model_copy(update={"plan": a_plan(allow=SPEC.tool_names)})
    forged = made.model_copy(update={"content": made.content.model_copy(update={"program": widened})})
    with pytest.raises(ArtifactTampered):
        forged.save(tmp_path / "a.json")
    assert not forged.verify().ok and not list(tmp_path.iterdir())


# --- older schemas


def older(version: int = 0) -> bytes:
    """As an imagined version 0 wrote it: the label had another name and limits had no max_retries."""

    def change(data: dict[str, Any]) -> None:
        evidence = data["content"]["evidence"]
        evidence["label"] = evidence.pop("model_label")
        del data["content"]["program"]["plan"]["limits"]["max_retries"]
        data["content"]["schema_version"] = version

    return forge(change)


def from_zero(data: dict[str, Any]) -> dict[str, Any]:
    evidence = data["content"]["evidence"]
    evidence["model_label"] = evidence.pop("label")
    data["content"]["program"]["plan"]["limits"]["max_retries"] = 1
    data["content"]["schema_version"] = 1
    return data


def test_an_older_schema_is_migrated_and_keeps_its_id_and_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored = older()
    with pytest.raises(ArtifactVersion):
        Artifact.from_bytes(stored)
    monkeypatch.setitem(MIGRATIONS, 0, from_zero)
    read = Artifact.from_bytes(stored)
    assert read.artifact_id == parse_json(stored)["content"]["artifact_id"] != make().artifact_id
    assert read.program_id == id_of(read.plan) and read.evidence.model_label == "scripted"
    assert read.verify(recompute).ok
    again = Artifact.load(read.save(tmp_path / "a.json"))
    assert again == read and again.to_bytes() == stored + b"\n"
    signed = Artifact.load(seal(read, KEY).save(tmp_path / "b.json"), key=KEY)
    assert signed.trusted and signed.artifact_id == read.artifact_id

    data = parse_json(stored)
    data["content"]["evidence"]["label"] = "a large language model"
    with pytest.raises(ArtifactTampered):
        Artifact.from_bytes(canonical_json(data))
    data = parse_json(stored)
    data["envelope"]["host"] = "another"
    with pytest.raises(ArtifactTampered):
        Artifact.from_bytes(canonical_json(data))


def test_an_artifact_of_version_1_is_read_and_keeps_its_id_and_bytes() -> None:
    def as_it_was(data: dict[str, Any]) -> None:
        data["content"]["schema_version"] = 1

    stored = forge(as_it_was)
    read = Artifact.from_bytes(stored)
    assert (read.plan, read.program_id) == (make().plan, make().program_id) and read.artifact_id != make().artifact_id
    assert read.verify(recompute).ok and read.to_bytes().strip() == stored.strip()

    def too_new(data: dict[str, Any]) -> None:
        as_it_was(data)
        data["content"]["program"]["plan"]["overlays"] = {"look_up": "other words"}

    with pytest.raises(ArtifactInvalid, match="version 1"):
        Artifact.from_bytes(forge(too_new))


V1: dict[str, tuple[str, Any]] = {
    "another program's id": ("content.program.program_id", "sha256:" + "1" * 64),
    "another signature's id": ("content.program.signature.signature_id", "sha256:" + "1" * 64),
    "another plan": ("content.program.plan.prompts.act.instructions", "Say yes."),
    "another model": ("content.program.model.name", "scripted/other"),
    "wider limits": ("content.program.plan.limits.model_calls", 10_000),
    "another tool's id": ("content.program.tool_ids.look_up.policy_id", "sha256:" + "1" * 64),
    "a tool without a contract": ("content.program.plan.allow", ["delete", "look_up"]),
}


@pytest.mark.parametrize("what", V1)
def test_a_forged_artifact_of_version_1_is_refused_although_its_digest_fits(what: str) -> None:
    def change(data: dict[str, Any]) -> None:
        data["content"]["schema_version"] = 1
        container, last = at(data, V1[what][0])
        assert container[last] != V1[what][1]
        container[last] = V1[what][1]

    with pytest.raises(ArtifactTampered, match="does not fit the content"):
        Artifact.from_bytes(forge(change))


@pytest.mark.parametrize("path", [
    "content.program.plan.limits", "content.program.plan.limits.model_calls", "content.program.plan.allow",
    "content.program.signature", "content.evidence", "content.evidence.incumbent", "content.evidence.seed", "content.kind",
    "content.program.contracts.look_up.timeout_s",
])  # fmt: skip
def test_an_artifact_of_version_1_that_lacks_a_field_is_refused(path: str) -> None:
    def change(data: dict[str, Any]) -> None:
        data["content"]["schema_version"] = 1
        container, last = at(data, path)
        del container[last]

    with pytest.raises(ArtifactInvalid) as caught:
        Artifact.from_bytes(forge(change))
    assert caught.value.remedy


@pytest.mark.parametrize(("path", "value"), [
    ("content.program.plan.overlays", {}), ("content.program.plan.script", None), ("content.program.plan.stages", []),
    ("content.evidence.replicates", 1), ("content.evidence.front", []), ("content.evidence.models", ["a"]),
    ("content.evidence.incumbent.model", "a"), ("content.evidence.modes.0.source", "evolve"), ("content.evidence.more", 1),
    ("content.program.plan.limits.more", 1), ("content.more", 1),
])  # fmt: skip
def test_an_artifact_of_version_1_with_a_field_that_it_could_not_have_is_refused(path: str, value: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["content"]["schema_version"] = 1
        container, last = at(data, path)
        assert last not in container
        container[last] = value

    with pytest.raises(ArtifactInvalid) as caught:
        Artifact.from_bytes(forge(change))
    assert caught.value.remedy


def test_a_plan_with_a_script_and_stages_is_kept_and_described() -> None:
    base = make()
    script = dse.Plan(mode="script", prompts={}, allow=("look_up",), script="submit(answer=1)\n")
    overlaid = a_plan().model_copy(update={"overlays": {"look_up": "Finds an item."}})
    plan = dse.Plan.cascade(script, overlaid)
    made = make(plan)
    again = Artifact.from_bytes(made.to_bytes())
    assert again.plan == plan and again == made and again.verify(recompute).ok
    assert "cascade (script -> " in made.summary() and "a script of 1 lines" in made.summary()
    changed = {change.what for change in base.diff(made)}
    assert {"plan.mode", "plan.stages.1.script", "plan.stages.2.mode", "plan.stages.2.overlays.look_up"} <= changed


def test_migrations_chain_and_must_lead_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_minus_one(data: dict[str, Any]) -> dict[str, Any]:
        data["content"]["schema_version"] = 0
        return data

    monkeypatch.setitem(MIGRATIONS, -1, from_minus_one)
    with pytest.raises(ArtifactVersion, match="no further"):
        Artifact.from_bytes(older(-1))
    monkeypatch.setitem(MIGRATIONS, 0, from_zero)
    assert Artifact.from_bytes(older(-1)).plan == a_plan()
    monkeypatch.setitem(MIGRATIONS, 0, lambda data: data)
    with pytest.raises(ArtifactVersion, match="lead on"):
        Artifact.from_bytes(older())
    monkeypatch.setitem(MIGRATIONS, 0, lambda data: {})
    with pytest.raises(ArtifactInvalid, match="version 0"):
        Artifact.from_bytes(older())


# --- verification


def test_verify_recomputes_the_gate() -> None:
    report = make().verify(recompute)
    assert report.ok, str(report)
    assert {check.name: check.ok for check in report.checks}["gate"] is True
    report.require()
    unasked = make().verify()
    assert unasked.ok and [check.name for check in unasked.checks if check.ok is None] == ["gate"]


@pytest.mark.parametrize("change", [
    replaced("content.evidence.gate.verdict", "KEEP"), replaced("content.evidence.gate.p_value", 0.2),
    replaced("content.evidence.gate.mean_difference.low", 0.9), replaced("content.evidence.paired.rows.0.2", 0.0),
    replaced("content.evidence.paired.candidate_exposure", 2.0), replaced("content.evidence.gate.extra", 1),
    replaced("content.evidence.gate.n_rows", 23), replaced("content.evidence.paired.rows", lambda rows: rows[:-2]),
    removed("content.evidence.gate.alpha"),
])  # fmt: skip
def test_verify_finds_forged_evidence(change: Callable[[dict[str, Any]], Any]) -> None:
    forged = Artifact.from_bytes(forge(change))  # whole, as far as digests tell
    report = forged.verify(recompute)
    assert not report.ok and "gate" in [check.name for check in report.failed]
    with pytest.raises(ArtifactTampered, match="gate"):
        report.require()


def test_another_verdict_is_verified_as_well() -> None:
    made = make(better=1)
    assert made.verdict in ("KEEP", "INSUFFICIENT") and made.verify(recompute).ok


# --- seals


def test_a_seal_says_who_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    made = make()
    signed = seal(made, KEY)
    assert signed.artifact_id == made.artifact_id and signed.envelope.digest == made.envelope.digest
    path = signed.save(tmp_path / "a.json")
    assert Artifact.load(path, key=KEY, require_signature=True).trusted
    assert not Artifact.load(path).trusted  # without a key: whole, but not trusted
    with pytest.raises(ArtifactError, match="another key"):
        Artifact.load(path, key=OTHER_KEY)
    with pytest.raises(Refused, match="no key"):
        Artifact.load(path, require_signature=True)
    with pytest.raises(Refused, match="not signed"):
        Artifact.from_bytes(made.to_bytes(), key=KEY, require_signature=True)
    assert not Artifact.from_bytes(made.to_bytes(), key=KEY).trusted
    monkeypatch.setenv(KEY_VARIABLE, KEY.hex())
    read = Artifact.load(path)
    assert read.trusted
    read.require_seal()
    monkeypatch.setenv(KEY_VARIABLE, OTHER_KEY.hex())
    with pytest.raises(ArtifactError, match="another key"):
        Artifact.load(path)


def test_a_seal_fits_one_content_in_one_envelope() -> None:
    signed = plain(seal(make(), KEY))["envelope"]["signature"]
    for other in (make(notes=[]), make(envelope=ENVELOPE.model_copy(update={"host": "x"}))):
        with pytest.raises(ArtifactTampered, match="signature"):
            Artifact.from_bytes(forge(replaced("envelope.signature", signed), other), key=KEY)
    renamed = {**signed, "key_id": key_id(OTHER_KEY)}
    with pytest.raises(ArtifactTampered, match="signature"):
        Artifact.from_bytes(forge(replaced("envelope.signature", renamed)), key=OTHER_KEY)
    # A program changed with every id made right again is a different artifact, whole but unsigned by us.
    forged = forge(replaced("content.program.plan.prompts.act.instructions", "Tell me."), seal(make(), KEY), program=True)
    assert Artifact.from_bytes(forged, key=None).artifact_id != make().artifact_id
    with pytest.raises(ArtifactTampered, match="signature"):
        Artifact.from_bytes(forged, key=KEY)
    with pytest.raises(ArtifactTampered):
        seal(make().model_copy(update={"envelope": ENVELOPE}), KEY)


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert load_key() is None
    path = tmp_path / "key"
    for data, wanted in ((KEY.hex().encode() + b"\n", KEY), (b"\xff" + KEY, b"\xff" + KEY), (b"x" * 32, b"x" * 32)):
        path.write_bytes(data)
        assert load_key(path) == wanted
    for data in (b"", b"x" * 31, KEY.hex()[:62].encode(), KEY.hex()[:63].encode() + b"\n", b"x" * 70_000):
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"DSE170.*openssl"):
            load_key(path)
    with pytest.raises(ArtifactError, match="read"):
        load_key(tmp_path / "absent")
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(ArtifactError, match=KEY_VARIABLE):
        load_key()
    with pytest.raises(ArtifactError):
        seal(make(), b"short")
    assert key_id(KEY) != key_id(OTHER_KEY) and not verify_seal(make(), None)


# --- for readers


def test_differences_are_readable() -> None:
    one = make()
    assert one.diff(make(envelope=ENVELOPE.model_copy(update={"host": "x"}))) == []
    plan = a_plan("Find them with code.\nBe quick.", allow=("look_up", "send_mail"), mode="tool_call",
                  limits=dse.Limits(tool_calls=7))  # fmt: skip
    two = make(plan, modes=[table_row("winner", plan, quality=0.85, cost_usd=None), table_row("baseline", BASELINE)], better=10)
    changes = {change.what: str(change) for change in one.diff(two)}
    assert changes["plan.mode"] == "plan.mode: code -> tool_call"
    assert changes["plan.allow"] == "plan.allow: +send_mail -add_up"
    assert "-Be exact.\n+Be quick." in changes["plan.prompts.act"] and "Find them with code." in changes["plan.prompts.act"]
    assert changes["plan.limits.tool_calls"] == "plan.limits.tool_calls: 500 -> 7 (-493)"
    assert changes["evidence.quality"] == "evidence.quality: 0.8 -> 0.85 (+0.05)"
    assert changes["evidence.cost_usd"] == "evidence.cost_usd: 0.001 -> none"
    assert "evidence.gate.wins" in changes and "evidence.quality_low" not in changes
    demo = Prompt(instructions="Find them with code.\nBe exact.", demos=({"question": "When?"},))
    assert '+ "question": "When?"' in str(one.diff(make(a_plan(prompts={"act": demo})))[0])
    assert [change.what for change in one.diff(make(notes=[]))] == ["evidence"]


def test_a_summary_names_what_matters() -> None:
    text = make().summary()
    for part in ("Audit", make().artifact_id, "code", "look_up (read)", "removed: send_mail (write)", "PROMOTE",
                 "24 holdout rows", "12 clusters", "scripted", "7 candidates", "not signed", "größer: 3 €"):  # fmt: skip
        assert part in text
    assert repr(make()).startswith("<dse.Artifact Audit sha256:")


def test_loading_is_quick_and_light(tmp_path: Path) -> None:
    demo = {"question": "Who?", "transcript": [{"code": "x = 1\n" * 100, "out": "y " * 100} for _ in range(4)]}
    plan = a_plan(prompts={"act": Prompt(instructions="Do it. " * 100, demos=(demo,) * 4)})
    modes = [table_row("winner", plan), table_row("baseline", BASELINE)] + [
        table_row(f"c{i}", a_plan(f"{i}")) for i in range(8)]  # fmt: skip
    data = make(plan, modes=modes, candidates_tried=10).to_bytes()
    assert len(data) > 20_000
    spent = []
    for _ in range(7):
        start = time.process_time()
        assert Artifact.from_bytes(data).verify().ok
        spent.append(time.process_time() - start)
    assert min(spent) < 0.02
    (tmp_path / "a.json").write_bytes(data)
    code = """
import sys
from dse.artifacts.artifact import Artifact
assert Artifact.load(sys.argv[1]).verify().ok
print([m for m in ("dspy", "pandas", "scipy", "numpy", "sqlalchemy", "dse.compiler", "pydantic_monty") if m in sys.modules])
"""
    assert run(code, tmp_path / "a.json") == "[]"
