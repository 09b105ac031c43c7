"""The doctor on a sound installation and on deliberately broken ones, through the command line and as a function."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from artifact_examples import forge, make, replaced, run
from test_cli import cli

import dse
from dse.canonical import canonical_json
from dse.doctor import Finding, examine
from dse.runtime import sandbox
from dse.store.journal import Store

GOOD = (">=3.11", ["pydantic>=2", "pydantic-monty==1.4.0", "nowhere>1; extra == 'dev'"])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a registry and a store, as the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("DSE_ARTIFACT_KEY", "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"):
        monkeypatch.delenv(name, raising=False)
    made = make()
    registry = dse.Registry(tmp_path / "artifacts")
    registry.put(made)
    registry.promote(f"Audit@{made.artifact_id}")
    Store(tmp_path / "dse.db").close()
    (tmp_path / "dse.db.key").write_text("0" * 64)
    (tmp_path / "dse.db.key").chmod(0o600)
    return tmp_path


def quick(**options: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(**{"requirements": GOOD, "environ": {}, **options})}


def wrong(**options: Any) -> dict[str, Finding]:
    """What is wrong, each with something to do about it."""
    found = {name: finding for name, finding in quick(**options).items() if finding.state == "wrong"}
    assert all(finding.remedy and finding.remedy in str(finding) for finding in found.values())
    return found


def test_a_sound_project(here: Path) -> None:
    found = quick()
    assert not [str(finding) for finding in found.values() if finding.state != "ok"]
    for name in ("Python", "pydantic-monty", "interpreter runs code", "interpreter refuses unknown names", "interpreter workers end",
                 "interpreter reaches no files", "checker notices a type error", "checker workers end",
                 "dspy's response cache is off under dse", "artifacts", "store dse.db", "key dse.db.key", "temporary folder",
                 "telemetry captures no content"):  # fmt: skip
        assert found[name].state == "ok", found[name]
    assert "1 verified" in found["artifacts"].detail and "nowhere" not in found


def test_this_installation_is_sound(here: Path) -> None:
    done = cli("doctor", "--json")
    told = done.json()
    assert done.code == 0 and told["ok"] is True, told
    names = {finding["name"] for finding in told["findings"]}
    assert {"dspy", "pydantic-monty", "numpy", "SQLAlchemy", "interpreter runs code"} <= names
    assert all(set(finding) == {"name", "state", "detail", "remedy"} for finding in told["findings"])


def test_the_exit_code_says_that_something_is_wrong(here: Path) -> None:
    (here / "dse.db.key").chmod(0o644)
    done = cli("doctor")
    assert done.code == 1 and "key dse.db.key: wrong (mode 0644). chmod 0600 dse.db.key" in done.out
    assert done.out.splitlines()[-1].startswith("1 wrong, ")
    assert cli("doctor", "--json").json()["ok"] is False


def test_looking_changes_nothing(here: Path) -> None:
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file() and path.suffix != ".db"}
    quick()
    after = {path: path.read_bytes() for path in here.rglob("*") if path.is_file() and not path.name.startswith("dse.db-")}
    assert {path: text for path, text in after.items() if path.suffix != ".db"} == before


@pytest.mark.parametrize(("requirements", "name", "told"), [
    ((">=9.9", []), "Python", "wanted >=9.9"),
    ((">=3.11", ["pydantic>=99"]), "pydantic", "wanted >=99"),
    ((">=3.11", ["pydantic-monty==1.3.0"]), "pydantic-monty", "wanted ==1.3.0"),
    ((">=3.11", ["dse-no-such-package>=1"]), "dse-no-such-package", "not installed"),
])  # fmt: skip
def test_versions_out_of_bounds(here: Path, requirements: Any, name: str, told: str) -> None:
    found = wrong(requirements=requirements)
    assert list(found) == [name] and told in found[name].detail


def test_no_interpreter(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the native module cannot start a worker, both services are wrong, and nothing is raised."""
    import pydantic_monty

    def broken(**options: Any) -> Any:
        raise OSError("no worker binary")

    monkeypatch.setattr(pydantic_monty, "Monty", broken)
    found = wrong()
    assert set(found) == {"sandbox", "checker"}
    assert "DSE403" in found["sandbox"].detail and "Reinstall" in found["sandbox"].remedy


def test_an_interpreter_and_a_checker_that_let_everything_pass(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def feed(self: Any, code: str, **options: Any) -> Any:
        return sandbox.Finished(value=None, prints="", value_repr="None", unawaited=())

    async def check(self: Any, **options: Any) -> list[Any]:
        return []

    monkeypatch.setattr(sandbox.Session, "feed", feed)
    monkeypatch.setattr(sandbox.Checker, "check", check)
    found = wrong()
    assert set(found) == {"interpreter runs code", "interpreter refuses unknown names", "interpreter reaches no files",
                          "checker notices a type error"}  # fmt: skip
    assert "Do not run" in found["interpreter refuses unknown names"].remedy


def test_tampered_artifacts(here: Path) -> None:
    (path,) = (here / "artifacts" / "Audit").glob("????????????????.json")
    good = path.read_bytes()
    path.write_bytes(good.replace(b"Find them", b"Find thee"))
    (found,) = wrong().values()
    assert "DSE171" in found.detail and path.name in found.name
    path.write_bytes(good)
    forged = dse.Artifact.from_bytes(forge(replaced("content.evidence.gate.verdict", "PROMOTE"), make(better=2)))
    forged.save(path.with_name(f"{forged.artifact_id[7:23]}.json"))
    (found,) = wrong().values()
    assert "gate" in found.detail and "compile again" in found.remedy
    (here / "artifacts" / "Audit" / "aliases.json").write_bytes(canonical_json({"champion": "sha256:" + "0" * 64}))
    assert wrong()


def test_keys_and_secrets_that_others_can_read(here: Path) -> None:
    for mode in (0o640, 0o604, 0o666, 0o700, 0o400):
        (here / "dse.db.key").chmod(mode)
        assert list(wrong()) == ["key dse.db.key"]
    (here / "dse.db.key").unlink()
    (here / "dse.db.key").symlink_to(here / "nothing")
    assert list(wrong()) == ["key dse.db.key"]
    (here / "dse.db.key").unlink()
    assert not wrong()
    (here / ".env").write_text("OPENAI_API_KEY=x")
    (here / ".env").chmod(0o644)
    (here / ".env.example").write_text("OPENAI_API_KEY=")
    (here / "token").write_text("x")
    (here / "token").chmod(0o604)
    found = wrong(environ={"SERVICE_TOKEN_FILE": str(here / "token"), "OPENAI_KEY_FILE": str(here / "gone"), "LOG_FILE": "/dev/null"})
    assert len(found) == 3 and all(name.startswith("secret ") for name in found)
    assert "chmod 0600 .env" in "".join(map(str, found.values()))
    (here / ".env").chmod(0o600)
    (here / "token").chmod(0o600)
    assert not wrong(environ={"SERVICE_TOKEN_FILE": str(here / "token")})


def test_a_short_artifact_key(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSE_ARTIFACT_KEY", "00ff")
    done = cli("doctor", "--json")
    assert done.code == 1
    found = [finding for finding in done.json()["findings"] if finding["state"] == "wrong"]
    assert found and all("DSE170" in finding["detail"] for finding in found)
    assert "00ff" not in done.out


def test_stores_that_are_none_or_of_another_version(here: Path) -> None:
    with sqlite3.connect(here / "dse.db") as connection:
        connection.execute("UPDATE meta SET value = '999' WHERE key = 'schema_version'")
    connection.close()
    (found,) = wrong().values()
    assert "999" in found.detail and "DSE182" in found.detail
    (here / "other.db").write_bytes(b"not a database at all" * 100)
    assert list(wrong(store=here / "other.db")) == [f"store {here / 'other.db'}"]
    assert list(wrong(store=here / "gone.db")) == [f"store {here / 'gone.db'}"]
    assert not (here / "gone.db").exists()


def test_nothing_here_is_not_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = quick()
    assert found["store"].state == found["artifacts"].state == "skipped"
    assert not wrong() and not list(tmp_path.iterdir())


def test_a_temporary_folder_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(here / "gone"))
    assert "TMPDIR" in wrong()["temporary folder"].remedy


@pytest.mark.parametrize(("value", "state"), [("true", "wrong"), ("span_and_event", "wrong"), ("1", "wrong"), ("false", "ok"),
                                              ("", "ok"), ("NO_CONTENT", "ok")])  # fmt: skip
def test_telemetry_that_captures_content(here: Path, value: str, state: str) -> None:
    found = quick(environ={"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": value})
    assert found["telemetry captures no content"].state == state


def test_importing_the_doctor_is_light() -> None:
    code = "import sys, dse.doctor; print([m for m in ('dspy', 'pandas', 'sqlalchemy', 'scipy', 'pydantic_monty') if m in sys.modules])"
    assert run(code) == "[]"
