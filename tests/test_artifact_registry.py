"""The registry: artifacts that never change, aliases that move one recorded step at a time."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifact_examples import (
    ENVELOPE,
    KEY,
    MODEL,
    SPEC,
    TOOLS,
    a_plan,
    evidence,
    make,
    run,
    sha,
)

from dse.artifacts.artifact import Artifact
from dse.artifacts.registry import Registry
from dse.artifacts.seal import seal
from dse.canonical import canonical_json, parse_json
from dse.errors import (
    ArtifactInvalid,
    ArtifactNotFound,
    ArtifactTampered,
    Refused,
)

# --- the registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "artifacts")


def releases(registry: Registry, count: int) -> list[Artifact]:
    """Artifacts of different prompts, put and promoted one after the other."""
    made = [make(a_plan(f"Prompt {i}.")) for i in range(count)]
    for artifact in made:
        registry.put(artifact)
        registry.promote(f"Audit@{artifact.artifact_id}", reason="first try", by="ann")
    return made


def test_putting_and_getting(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make()
    assert registry.list() == [] and registry.aliases("Audit") == {} and registry.history("Audit") == []
    path = registry.put(made)
    assert path == registry.root / "Audit" / f"{made.artifact_id[7:23]}.json"
    before = path.stat().st_mtime_ns
    assert registry.put(make(envelope=ENVELOPE.model_copy(update={"host": "later"}))) == path  # same id: the first one stays
    assert path.stat().st_mtime_ns == before
    registry.set_alias("Audit", "candidate", made.artifact_id, by="ann")
    short = made.artifact_id[:15]
    monkeypatch.chdir(registry.root.parent)
    for ref in ("Audit@candidate", f"Audit@{short}", f"Audit@{made.artifact_id}", "artifacts/Audit@candidate", str(path),
                path, f"{registry.root}/Audit@candidate", Path("artifacts/Audit@candidate")):  # fmt: skip
        assert registry.get(ref) == made
        assert Registry.resolve(ref) == made
    (listed,) = registry.list("Audit")
    assert (listed.artifact_id, listed.aliases) == (made.artifact_id, ("candidate",))
    assert (listed.verdict, listed.mode) == ("PROMOTE", "code")
    assert json.dumps(listed.to_dict())
    registry.set_alias("Audit", "candidate", None)
    assert registry.aliases("Audit") == {}


@pytest.mark.parametrize("ref", [
    "", "Audit", "Audit@", "@champion", "Audit@champion", "Other@champion", "Audit@sha256:", "Audit@sha256:abc",
    "Audit@sha256:" + "g" * 8, "Audit@sha256:" + "0" * 64, "../Audit@champion", "../../etc/Audit@champion",
    "Audit/../x@champion", "..@champion", ".@champion", "Audit@../../x", "Audit@sha256:../../../x", "/Audit@champion",
    "Audit\0@champion", "a\0/Audit@champion", "Audit@CHAMPION",
    "elsewhere/Audit@champion", "Audit@champion\n", "Au dit@champion", "../../no.json", "nul\0.json", "Audit@x.json",
])  # fmt: skip
def test_refs_that_name_nothing_here_are_refused(registry: Registry, ref: str) -> None:
    made = make()
    registry.put(made)
    made.save(registry.root.parent / "Audit" / f"{made.artifact_id[7:23]}.json")  # one level too high
    with pytest.raises(ArtifactNotFound) as caught:
        registry.get(ref)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["../up", "..", "", "a/b", "/etc", "a.b", "x" * 201, "nul\0"])
def test_names_never_leave_the_registry(registry: Registry, name: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: registry.list(name), lambda: registry.aliases(name), lambda: registry.history(name),
        lambda: registry.rollback(name, reason="r"), lambda: registry.set_alias(name, "candidate", None),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ArtifactNotFound):
            call()
    assert not registry.root.exists()


def test_stored_artifacts_are_never_replaced(registry: Registry) -> None:
    one, two = make(), make(notes=[])
    path = registry.put(one)
    path.write_bytes(two.to_bytes())  # another whole artifact under the name of the first
    with pytest.raises(Refused, match="none is ever replaced"):
        registry.put(one)
    with pytest.raises(ArtifactTampered, match="another artifact"):
        registry.get(f"Audit@{one.artifact_id}")
    with pytest.raises(ArtifactTampered):
        registry.get(f"Audit@{one.artifact_id[:15]}")
    path.write_bytes(one.to_bytes().replace(b"Be exact", b"Be exaCt"))
    with pytest.raises(ArtifactTampered):
        registry.put(one)
    (listed,) = registry.list()
    assert listed.artifact_id is None and "DSE171" in str(listed.error)


def test_an_old_id_replayed_under_an_alias_is_refused(registry: Registry) -> None:
    old, new = releases(registry, 2)
    champion = registry.root / "Audit" / f"{new.artifact_id[7:23]}.json"
    champion.write_bytes(old.to_bytes())
    with pytest.raises(ArtifactTampered, match="another artifact"):
        registry.get("Audit@champion")


def test_prefixes_must_be_unique(registry: Registry) -> None:
    made = make()
    path = registry.put(made)
    twin = path.with_name(path.stem[:10] + ("0" if path.stem[10] != "0" else "1") * 6 + ".json")
    twin.write_bytes(make(notes=[]).to_bytes())
    with pytest.raises(ArtifactNotFound, match="Several"):
        registry.get(f"Audit@sha256:{path.stem[:8]}")
    assert registry.get(f"Audit@sha256:{path.stem}") == made
    assert registry.get(f"Audit@{path.stem[:12]}") == made, "as it is listed"
    with pytest.raises(ArtifactNotFound, match="Several"):
        registry.get(f"Audit@{path.stem[:8]}")
    with pytest.raises(ArtifactNotFound):
        registry.get(f"Audit@sha256:{path.stem}{'0' * 48}")


def test_short_ids_name_an_artifact_where_no_alias_does(registry: Registry) -> None:
    one, other = releases(registry, 2)
    short = one.artifact_id[7:19]
    assert registry.get(f"Audit@{short}") == one == Registry.resolve(f"{registry.root}/Audit@{short}")
    registry.set_alias("Audit", "deadbeef", short, by="ann")
    assert registry.get("Audit@deadbeef") == one, "an alias comes first"
    assert registry.promote(f"Audit@{short}", reason="back", by="ann") is not None
    assert registry.aliases("Audit") == {"champion": one.artifact_id, "previous": other.artifact_id, "deadbeef": one.artifact_id}
    with pytest.raises(ArtifactNotFound, match=r"begins like this \(got: sha256:00000000\)"):
        registry.get("Audit@00000000")


def test_what_is_not_there_is_told_apart(registry: Registry) -> None:
    with pytest.raises(ArtifactNotFound, match=r"no registry here.*FOLDER/Name@champion"):
        registry.get("Audit@champion")
    releases(registry, 1)
    with pytest.raises(ArtifactNotFound, match=r"nothing of a signature of this name.*\(got: Audt\). It has: Audit"):
        registry.get("Audt@champion")
    with pytest.raises(ArtifactNotFound, match="nothing of a signature"):
        Registry.resolve(f"{registry.root}/Audt@sha256:00000000")


def test_a_compile_that_found_the_incumbent_says_which_it_was(registry: Registry) -> None:
    plan = a_plan()
    measured, kinds = evidence(plan, better=0, incumbent=plan), {}
    for kind, parent in (("baseline", None), ("champion", sha("champion"))):
        about = {**measured["incumbent"], "kind": kind, "artifact_id": parent}
        kinds[kind] = Artifact.build(signature=SPEC.to_dict(), plan=plan, contracts={n: TOOLS[n].contract for n in plan.allow},
                                     model=MODEL, evidence={**measured, "incumbent": about}, envelope=ENVELOPE)  # fmt: skip
    for one in kinds.values():
        registry.put(one)
    found = {row.artifact_id: (row.baseline, row.champion) for row in registry.list()}
    assert found == {kinds["baseline"].artifact_id: (True, False), kinds["champion"].artifact_id: (False, True)}


def test_a_signature_can_be_added_to_a_stored_artifact(registry: Registry) -> None:
    made = make()
    path = registry.put(made)
    with pytest.raises(Refused):
        Registry(registry.root, key=KEY, require_signature=True).get(path)
    with pytest.raises(Refused):
        Registry(registry.root, key=KEY, require_signature=True).put(made)
    registry.put(seal(made, KEY))
    registry.put(made)  # and not taken away again
    assert Registry(registry.root, key=KEY, require_signature=True).get(path).trusted


def test_promotion_moves_the_aliases_and_is_recorded(registry: Registry) -> None:
    one, two = make(), make(a_plan("Other."), incumbent=a_plan())
    assert one.verdict == two.verdict == "PROMOTE"
    for artifact in (one, two):
        registry.put(artifact)
        registry.set_alias("Audit", "candidate", artifact.artifact_id, by="compile", reason="verdict PROMOTE")
        registry.promote("Audit@candidate", by="compile")
    assert registry.aliases("Audit") == {"champion": two.artifact_id, "previous": one.artifact_id}
    assert parse_json((registry.root / "Audit" / "aliases.json").read_bytes()) == registry.aliases("Audit")
    registry.promote("Audit@champion")  # already is
    history = registry.history("Audit")
    assert [(h.seq, h.action, h.alias, h.before, h.after) for h in history] == [
        (1, "alias", "candidate", None, one.artifact_id), (2, "promote", "champion", None, one.artifact_id),
        (3, "alias", "candidate", None, two.artifact_id), (4, "promote", "champion", one.artifact_id, two.artifact_id),
    ]  # fmt: skip
    assert {h.by for h in history} == {"compile"} and all(h.time.endswith("Z") for h in history)
    assert history[3].verdict == "PROMOTE" and history[0].reason == "verdict PROMOTE"


def test_promotion_without_a_fitting_verdict_needs_a_reason(registry: Registry) -> None:
    weak = make(better=1)
    assert weak.verdict != "PROMOTE"
    registry.put(weak)
    for reason in ("", "  \n"):
        with pytest.raises(Refused, match="reason"):
            registry.promote(f"Audit@{weak.artifact_id}", reason=reason)
    for move in (lambda: registry.promote(f"Audit@{weak.artifact_id}", reason=5), lambda: registry.rollback("Audit", reason=5),
                 lambda: registry.set_alias("Audit", "candidate", weak.artifact_id, by=5)):  # type: ignore[arg-type]  # fmt: skip
        with pytest.raises(Refused, match="are texts"):
            move()
    assert registry.aliases("Audit") == {} and registry.history("Audit") == []
    registry.set_alias("Audit", "champion", weak.artifact_id, reason=" baseline ", by="ann")
    assert [(h.action, h.reason, h.by) for h in registry.history("Audit")] == [("promote", "baseline", "ann")]

    proven_against_another = make()  # its incumbent is the baseline, and the champion is not
    registry.put(proven_against_another)
    with pytest.raises(Refused, match="proven against"):
        registry.promote(f"Audit@{proven_against_another.artifact_id}")
    (registry.root / "Audit" / f"{weak.artifact_id[7:23]}.json").unlink()
    with pytest.raises(Refused, match="cannot be read"):
        registry.promote(f"Audit@{proven_against_another.artifact_id}")
    registry.promote(f"Audit@{proven_against_another.artifact_id}", reason="the champion's file is lost")
    assert registry.get("Audit@champion") == proven_against_another


def test_only_stored_artifacts_get_aliases(registry: Registry, tmp_path: Path) -> None:
    path = make().save(tmp_path / "outside.json")
    with pytest.raises(ArtifactNotFound, match="not stored"):
        registry.promote(path)
    registry.put(make())
    registry.promote(path)  # the same artifact, named by another file
    assert registry.aliases("Audit")["champion"] == make().artifact_id
    for alias in ("previous", "Champion", "", "../x", "a b", "x" * 65):
        with pytest.raises(Refused):
            registry.set_alias("Audit", alias, make().artifact_id)
    with pytest.raises(Refused):
        registry.set_alias("Audit", "champion", None)
    with pytest.raises(ArtifactNotFound):
        registry.set_alias("Audit", "candidate", sha("nothing"))
    with pytest.raises(ArtifactNotFound):
        registry.set_alias("Other", "candidate", "Audit@champion")


def test_rollback_goes_back_release_by_release(registry: Registry) -> None:
    a, b, c = (artifact.artifact_id for artifact in releases(registry, 3))
    with pytest.raises(Refused, match="reason"):
        registry.rollback("Audit", reason=" ")
    assert registry.rollback("Audit", reason="bad answers", by="bo").artifact_id == b
    assert registry.aliases("Audit") == {"champion": b, "previous": a}
    registry.promote(f"Audit@{c}", reason="fixed elsewhere")
    assert registry.aliases("Audit") == {"champion": c, "previous": b}
    registry.rollback("Audit", reason="no")
    registry.rollback("Audit", reason="no")
    assert registry.aliases("Audit") == {"champion": a}
    with pytest.raises(ArtifactNotFound, match="no release"):
        registry.rollback("Audit", reason="no")
    with pytest.raises(ArtifactNotFound, match="no release"):
        registry.rollback("Other", reason="no")
    last = registry.history("Audit")[-1]
    assert (last.action, last.before, last.after, last.reason) == ("rollback", b, a, "no")


def test_rollback_to_a_release_that_is_gone_changes_nothing(registry: Registry) -> None:
    a, b = releases(registry, 2)
    path = registry.root / "Audit" / f"{a.artifact_id[7:23]}.json"
    path.write_bytes(a.to_bytes()[:-50])
    with pytest.raises(ArtifactInvalid):
        registry.rollback("Audit", reason="r")
    path.unlink()
    with pytest.raises(ArtifactNotFound):
        registry.rollback("Audit", reason="r")
    assert registry.aliases("Audit") == {"champion": b.artifact_id, "previous": a.artifact_id}


def test_a_crash_between_history_and_aliases_leaves_a_consistent_state(registry: Registry) -> None:
    a, b = releases(registry, 2)
    folder = registry.root / "Audit"
    before = (folder / "aliases.json").read_bytes()
    third = make(a_plan("third"))
    registry.put(third)
    registry.promote(f"Audit@{third.artifact_id}", reason="r")
    (folder / "aliases.json").write_bytes(before)  # the move was recorded, the file was not yet replaced
    wanted = {"champion": third.artifact_id, "previous": b.artifact_id}
    assert registry.aliases("Audit") == wanted
    with open(folder / "history.jsonl", "ab") as stream:
        stream.write(b'{"seq":4,"acti')  # and the next move broke off while it was being recorded
    assert registry.aliases("Audit") == wanted and len(registry.history("Audit")) == 3
    registry.rollback("Audit", reason="r")
    assert registry.aliases("Audit") == {"champion": b.artifact_id, "previous": a.artifact_id}
    assert [h.seq for h in registry.history("Audit")] == [1, 2, 3, 4]
    (folder / "aliases.json").unlink()
    assert registry.aliases("Audit") == {"champion": b.artifact_id, "previous": a.artifact_id}


@pytest.mark.parametrize(("name", "damage"), [
    ("aliases.json", lambda text: canonical_json({"champion": sha("evil")})), ("aliases.json", lambda text: b"[]"),
    ("aliases.json", lambda text: b"{"), ("history.jsonl", lambda text: b""), ("history.jsonl", lambda text: b"{}\n"),
    ("history.jsonl", lambda text: text.split(b"\n", 1)[1]),
    ("history.jsonl", lambda text: text.replace(b'"champion":"sha256:', b'"champion":"../../x:')),
    ("history.jsonl", lambda text: re.sub(rb'"before":"sha256:.{4}', b'"before":"sha256:0000', text)),
    ("history.jsonl", lambda text: re.sub(rb'"after":"sha256:.{4}', b'"after":"sha256:0000', text, count=1)),
    ("history.jsonl", lambda text: text.replace(b'"alias":"champion"', b'"alias":"previous"')),
])  # fmt: skip
def test_edited_aliases_or_history_are_refused(registry: Registry, name: str, damage: Callable[[bytes], bytes]) -> None:
    releases(registry, 3)
    path = registry.root / "Audit" / name
    path.write_bytes(damage(path.read_bytes()))
    for call in (lambda: registry.aliases("Audit"), lambda: registry.get("Audit@champion"),
                 lambda: registry.rollback("Audit", reason="r")):  # fmt: skip
        with pytest.raises((ArtifactTampered, ArtifactInvalid)) as caught:
            call()
        assert caught.value.remedy
    assert all(row.error and row.artifact_id for row in registry.list())


def test_a_move_that_cannot_be_recorded_is_not_made(registry: Registry) -> None:
    a, b = releases(registry, 2)
    history = registry.root / "Audit" / "history.jsonl"
    kept = history.read_bytes()
    code = """
import os, resource, sys
from dse.artifacts.registry import Registry
from dse.errors import StoreUnavailable
size = os.path.getsize(sys.argv[2]) + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    Registry(sys.argv[1]).rollback("Audit", reason="r")
except StoreUnavailable as exc:
    print(exc.code)
"""
    assert run(code, registry.root, history) == "DSE404"
    assert history.read_bytes() == kept
    assert registry.aliases("Audit") == {"champion": b.artifact_id, "previous": a.artifact_id}


def check_chain(registry: Registry) -> int:
    """Every move starts where the one before ended, and the aliases are where the last one left them."""
    history = registry.history("Audit")
    champion = previous = None
    for number, entry in enumerate(history, 1):
        assert entry.seq == number and entry.action == "promote" and entry.before == champion != entry.after
        champion, previous = entry.after, champion
        assert entry.aliases.get("champion") == champion and entry.aliases.get("previous") == previous
    return len(history)


def test_concurrent_promotions_leave_a_valid_state(registry: Registry) -> None:
    made = [make(a_plan(f"Prompt {i}.")) for i in range(8)]
    start, failures = threading.Barrier(9), []

    def work(artifact: Artifact) -> None:
        mine = Registry(registry.root)
        start.wait()
        try:
            for _ in range(4):
                mine.put(artifact)
                mine.promote(f"Audit@{artifact.artifact_id}", reason="race", by=artifact.artifact_id)
        except Exception as exc:  # reported by the main thread
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(artifact,)) for artifact in made]
    for thread in threads:
        thread.start()
    start.wait()
    ids = {artifact.artifact_id for artifact in made}
    while any(thread.is_alive() for thread in threads):
        aliases = registry.aliases("Audit")  # readers never see half a move
        assert set(aliases) <= {"champion", "previous"} and set(aliases.values()) <= ids
        assert len(set(aliases.values())) == len(aliases)
    assert failures == []
    assert 8 <= check_chain(registry) <= 32
    assert {h.after for h in registry.history("Audit")} == ids
    assert sorted(p.name for p in (registry.root / "Audit").iterdir()) == sorted(
        [f"{i[7:23]}.json" for i in ids] + ["aliases.json", "history.jsonl"])  # fmt: skip


PROMOTER = """
import sys
from dse.artifacts.registry import Registry
registry, refs = Registry(sys.argv[1]), sys.argv[2:]
print("ready", flush=True)
while True:
    for ref in refs:
        registry.promote(ref, reason="again", by="loop")
"""


def test_killed_writers_leave_a_valid_state(registry: Registry) -> None:
    made = [make(a_plan(f"Prompt {i}.")) for i in range(4)]
    for artifact in made:
        registry.put(artifact)
    refs = [f"Audit@{artifact.artifact_id}" for artifact in made]
    length = 0
    for kills in range(3):
        writers = [subprocess.Popen([sys.executable, "-c", PROMOTER, registry.root, *half], stdout=subprocess.PIPE)
                   for half in (refs[:2], refs[2:])]  # fmt: skip
        try:
            for writer in writers:
                assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            while len(registry.history("Audit")) < length + 10 + kills:
                assert all(writer.poll() is None for writer in writers)
        finally:
            for writer in writers:
                writer.send_signal(signal.SIGKILL)
                writer.communicate()
        assert check_chain(registry) > length
        registry.promote(refs[kills], reason="after the crash")
        length = check_chain(registry)
        assert registry.get("Audit@champion") == made[kills]
        assert parse_json((registry.root / "Audit" / "aliases.json").read_bytes()) == registry.aliases("Audit")
    assert not [path for path in (registry.root / "Audit").iterdir() if path.suffix == ".tmp"]
