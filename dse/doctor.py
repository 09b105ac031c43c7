"""Looks at the local installation and says what is off: versions, sandbox, checker, caches, files, permissions.

Nothing is asked of a network and nothing is changed, except that a store and the temporary folder are opened for
writing. ``dse doctor`` prints what `examine` gives.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import dse
from dse.errors import DseError

__all__ = ["Finding", "examine"]

State = Literal["ok", "wrong", "skipped"]
_EXIT_S = 10.0
_STUBS = "async def dse_look_up(person: str) -> int: ...\n"
# Telemetry libraries copy prompts, completions and tool arguments into spans when one of these is on.
_CAPTURE = ("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "TRACELOOP_TRACE_CONTENT", "DSE_CAPTURE_CONTENT")
_OFF = ("", "0", "false", "no", "off", "no_content")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``remedy`` says what to do where ``state`` is wrong, and why it was not looked at where skipped."""

    name: str
    state: State
    detail: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.name}: {self.state}" + (f" ({self.detail})" if self.detail else "")
        return f"{text}. {self.remedy}" if self.remedy and self.state == "wrong" else text

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(
    *, registry: str | Path = "artifacts", store: str | Path | None = None, folder: str | Path = ".",
    environ: Mapping[str, str] | None = None, requirements: tuple[str, list[str]] | None = None,
) -> list[Finding]:  # fmt: skip
    """Everything, in a fixed order. A check that cannot be made because it fails itself is wrong, never an exception.

    Args:
        registry: a folder of artifacts; skipped where there is none.
        store: a store's file; default ``dse.db`` and the registry's, as far as they exist.
        folder: where ``.env`` files would lie.
        environ: default the process's.
        requirements: ``(python, dependencies)`` as pyproject.toml writes them; default this installation's.
    """
    root, env = Path(registry), os.environ if environ is None else environ
    stores: list[Path | str] = [store if "://" in str(store) else Path(store)] if store is not None else [path for path in (Path("dse.db"), root / "dse.db") if path.exists()]
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", lambda: _versions(requirements)), ("sandbox", _sandbox), ("checker", _checker), ("model cache", _caches),
        ("artifacts", lambda: _artifacts(root)), ("store", lambda: _stores(stores, given=store is not None)),
        ("secrets", lambda: _secrets(Path(folder), env)), ("temporary folder", _temporary), ("telemetry", lambda: _telemetry(env)),
    ]  # fmt: skip
    found: list[Finding] = []
    for name, check in checks:
        try:
            found += check()
        except DseError as exc:
            found.append(Finding(name, "wrong", f"[{exc.code}] {exc.what}", exc.remedy))
        except Exception as exc:
            found.append(Finding(name, "wrong", f"{type(exc).__name__}: {exc}", "Reinstall dse and its dependencies."))
    return found


# ---- versions ---------------------------------------------------------------------------------------------


def _declared() -> tuple[str, list[str]] | None:
    """What pyproject.toml of a checkout says, else what the installed package says."""
    import tomllib
    from importlib import metadata

    file = Path(dse.__file__).parent.parent / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "dse-compiler":
            return project["requires-python"], project["dependencies"]
    try:
        about = metadata.metadata("dse-compiler")
    except metadata.PackageNotFoundError:
        return None
    return about["Requires-Python"] or "", metadata.requires("dse-compiler") or []


def _versions(given: tuple[str, list[str]] | None) -> Iterator[Finding]:
    from importlib import metadata

    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:
        yield Finding("versions", "skipped", "packaging is not installed")
        return
    declared = given or _declared()
    if declared is None:
        yield Finding("versions", "wrong", "dse-compiler is not installed and there is no pyproject.toml", "Install dse.")
        return
    python = ".".join(map(str, sys.version_info[:3]))
    yield _version("Python", python, SpecifierSet(declared[0]).contains(python), declared[0])
    for text in declared[1]:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Finding(wanted.name, "wrong", "not installed", f"pip install '{text}'")
            continue
        yield _version(wanted.name, version, wanted.specifier.contains(version, prereleases=True), str(wanted.specifier))
        if wanted.name == "pydantic-monty":  # its parts are released together; a mix is untested
            for part in ("pydantic-monty-client", "pydantic-monty-runtime"):
                with contextlib.suppress(metadata.PackageNotFoundError):
                    found = metadata.version(part)
                    yield _version(part, found, found == version, f"=={version}")


def _version(name: str, version: str, fits: bool, bounds: str) -> Finding:
    return Finding(name, "ok" if fits else "wrong", f"{version}, wanted {bounds}", "" if fits else f"Install {name} {bounds}.")


# ---- sandbox and checker ----------------------------------------------------------------------------------


def _sandbox() -> Iterator[Finding]:
    from dse.portal import run_sync

    before = _children()
    told = run_sync(_session)
    yield Finding("interpreter runs code", "ok" if told["sum"] else "wrong", told["sum_detail"], "Reinstall pydantic-monty.")
    yield Finding("interpreter refuses unknown names", "ok" if told["unknown"] else "wrong", told["unknown_detail"],
                  "Do not run programs with this interpreter: reinstall pydantic-monty.")  # fmt: skip
    yield Finding("interpreter reaches no files", "ok" if told["files"] else "wrong", told["files_detail"],
                  "Do not run programs with this interpreter: reinstall pydantic-monty.")  # fmt: skip
    yield _gone("interpreter workers end", before)


async def _session() -> dict[str, Any]:
    from dse.runtime.sandbox import Failed, Finished, Sandbox

    told: dict[str, Any] = {}
    async with Sandbox(max_workers=1, checkout_timeout_s=30.0) as box:
        for name, code in (("sum", "21 * 2"), ("unknown", "dse_no_such_name"), ("files", "open('/etc/hostname').read()")):
            session = await box.open(seed=1, clock=datetime(2026, 1, 1, tzinfo=UTC))
            try:
                turn = await session.feed(code)
            finally:
                await session.aclose()
            if name == "sum":
                told[name] = isinstance(turn, Finished) and turn.value == 42
            else:  # an unknown call may also come out as a question to the host, which answers names on the list only
                told[name] = isinstance(turn, Failed)
            told[f"{name}_detail"] = "" if told[name] else f"{code} gave {str(turn)[:200]}"
    return told


def _checker() -> Iterator[Finding]:
    from dse.portal import run_sync

    before = _children()
    wrong, right = run_sync(_check_canary)
    noticed = any(item.severity == "error" for item in wrong)
    yield Finding("checker notices a type error", "ok" if noticed else "wrong", "" if noticed else "no error was reported",
                  "Code would run unchecked: reinstall pydantic-monty.")  # fmt: skip
    sound = not any(item.severity == "error" for item in right)
    yield Finding("checker accepts sound code", "ok" if sound else "wrong", "; ".join(item.message for item in right)[:200],
                  "Reinstall pydantic-monty.")  # fmt: skip
    yield _gone("checker workers end", before)


async def _check_canary() -> tuple[list[Any], list[Any]]:
    from dse.runtime.sandbox import Checker

    async with Checker(max_workers=1) as checker:
        await checker.validate_stubs(_STUBS)
        return (await checker.check(stubs=_STUBS, code="found: str = await dse_look_up(5)"),
                await checker.check(stubs=_STUBS, code="found: int = await dse_look_up('ann')\nfound"))  # fmt: skip


def _children() -> set[int] | None:
    """Process ids of this process's running children; None where the system does not tell."""
    own = os.getpid()
    found: set[int] = set()
    try:
        entries = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return None
    for entry in entries:
        try:
            fields = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[1]) == own and fields[0] != "Z":  # one that ended and was not asked for its exit code yet
            found.add(int(entry))
    return found


def _gone(name: str, before: set[int] | None) -> Finding:
    if before is None:
        return Finding(name, "skipped", "this system does not list processes")
    deadline = time.monotonic() + _EXIT_S
    while left := (_children() or set()) - before:
        if time.monotonic() > deadline:
            return Finding(name, "wrong", f"still there after {_EXIT_S:g} s: {sorted(left)}", "Report this; end them by hand.")
        time.sleep(0.05)
    return Finding(name, "ok")


# ---- models, artifacts, stores ----------------------------------------------------------------------------


def _caches() -> Iterator[Finding]:
    from dse.models.engines import DspyModel

    lm = DspyModel.from_string("openai/gpt-5-mini", {"api_key": "none"})._lm
    off = not lm.cache and not lm.num_retries
    yield Finding("dspy's response cache is off under dse", "ok" if off else "wrong",
                  "" if off else f"cache={lm.cache}, num_retries={lm.num_retries}",
                  "Measurements would be of cached answers: use the dspy version that dse was tested with.")  # fmt: skip


def _artifacts(root: Path) -> Iterator[Finding]:
    from dse.artifacts.registry import Registry
    from dse.compiler.gate import recompute

    if not root.is_dir():
        yield Finding("artifacts", "skipped", f"there is no folder {root}")
        return
    registry = Registry(root)
    sound = 0
    for row in registry.list():
        if row.error:
            yield Finding(f"artifact {row.path}", "wrong", row.error, "Restore it, or remove it from the registry.")
            continue
        report = registry.get(row.path).verify(recompute=recompute)
        sound += report.ok
        if not report.ok:
            yield Finding(f"artifact {row.path}", "wrong", "; ".join(map(str, report.failed)),
                          "Its evidence does not hold up: do not use it, compile again.")  # fmt: skip
    yield Finding("artifacts", "ok", f"{sound} verified in {root}")


def _stores(paths: list[Path | str], *, given: bool) -> Iterator[Finding]:
    if not paths:
        yield Finding("store", "skipped", "there is none here; name one with --store")
    for path in paths:
        if isinstance(path, str):
            yield _store(path)
            continue
        if not path.is_file():
            yield Finding(f"store {path}", "wrong" if given else "skipped", "no such file", "Name the file of a store.")
            continue
        yield _store(path)
        key = path.with_name(path.name + ".key")
        if os.path.lexists(key):
            yield _private(key, f"key {key}", exactly=0o600)


def _store(path: Path | str) -> Finding:
    from dse.store.journal import SCHEMA_VERSION, Store
    from dse.store.postgresql import shown

    name = shown(str(path))
    try:
        made = Store(path)
    except DseError as exc:
        return Finding(f"store {name}", "wrong", f"[{exc.code}] {exc.what} (got: {exc.value})", exc.remedy)
    try:
        made.runs(1)
    except DseError as exc:
        return Finding(f"store {name}", "wrong", f"[{exc.code}] {exc.what} (got: {exc.value})", exc.remedy)
    finally:
        made.close()
    return Finding(f"store {name}", "ok", f"schema {SCHEMA_VERSION}")


# ---- permissions and environment --------------------------------------------------------------------------


def _private(path: Path, name: str, *, exactly: int | None = None) -> Finding:
    """Whether others are kept out of `path`: with `exactly`, that mode; else nothing for the world."""
    try:
        about = path.stat()
    except OSError as exc:
        return Finding(name, "wrong", f"cannot be looked at: {exc.strerror}", "Restore the file, or unset what names it.")
    mode = stat.S_IMODE(about.st_mode)
    if not stat.S_ISREG(about.st_mode):
        return Finding(name, "wrong", "is no file", "Put the key itself there.")
    fits = mode == exactly if exactly is not None else not mode & 0o007
    wanted = 0o600 if exactly is None else exactly
    return Finding(name, "ok" if fits else "wrong", f"mode {mode:04o}", "" if fits else f"chmod {wanted:04o} {path}")


def _secrets(folder: Path, env: Mapping[str, str]) -> Iterator[Finding]:
    """Files that hold secrets for the environment: ``.env`` and what a variable such as ``..._KEY_FILE`` names."""
    files = {str(path): path for path in sorted(folder.glob(".env*"))
             if path.is_file() and not path.name.endswith((".example", ".sample", ".template"))}  # fmt: skip
    for variable in sorted(env):
        named = variable.upper()
        secret = any(word in named for word in ("KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIALS"))
        if secret and (named.endswith(("_FILE", "_PATH")) or named == "GOOGLE_APPLICATION_CREDENTIALS") and env[variable]:
            files[f"{variable}={env[variable]}"] = Path(env[variable])
    for name, path in files.items():
        yield _private(path, f"secret {name}")
    if not files:
        yield Finding("secret files", "ok", "none found")
    if env.get("DSE_ARTIFACT_KEY"):
        from dse.artifacts.seal import load_key

        if env is os.environ:
            load_key()  # raises for one that is too short
        yield Finding("artifact key", "ok", "set in the environment")


def _temporary() -> Iterator[Finding]:
    try:
        with tempfile.NamedTemporaryFile(prefix="dse-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        yield Finding("temporary folder", "wrong", str(exc), "Free space, or set TMPDIR to a folder that can be written.")
        return
    yield Finding("temporary folder", "ok", tempfile.gettempdir())


def _telemetry(env: Mapping[str, str]) -> Iterator[Finding]:
    on = [f"{name}={env[name]}" for name in _CAPTURE if env.get(name, "").strip().lower() not in _OFF]
    yield Finding("telemetry captures no content", "wrong" if on else "ok", ", ".join(on),
                  "Unset it, unless prompts and tool arguments are meant to leave with the spans." if on else "")  # fmt: skip
