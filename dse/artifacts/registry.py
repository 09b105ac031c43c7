"""The registry: a folder of immutable artifacts, and the few pointers to them that move.

::

    artifacts/<Signature>/<16 hex digits of the id>.json   artifacts: written once, never changed
    artifacts/<Signature>/history.jsonl                    every move of an alias: when, who, why, from, to
    artifacts/<Signature>/aliases.json                     where the aliases stand after the last line of history

Aliases move under an exclusive file lock; see history.py for what a crash leaves behind.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dse.artifacts.artifact import Artifact
from dse.artifacts.files import write_atomic
from dse.artifacts.history import Journal, Release, locked
from dse.errors import (
    ArtifactError,
    ArtifactInvalid,
    ArtifactNotFound,
    ArtifactTampered,
    DseError,
    Refused,
    StoreUnavailable,
)

__all__ = ["DEFAULT_ROOT", "Listed", "Registry", "Release"]

DEFAULT_ROOT = "artifacts"
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_PREFIX = re.compile(r"sha256:[0-9a-f]{8,64}")
_SHORT = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Listed:
    """One artifact file of a registry. ``error`` says why it cannot be used; then most else is None.

    ``baseline`` or ``champion``: it is the program that its compile measured the candidates against (the task's baseline, or
    the champion of that time), and was not tested itself.
    """

    signature: str
    path: Path
    artifact_id: str | None = None
    aliases: tuple[str, ...] = ()
    mode: str | None = None
    model: str | None = None
    verdict: str | None = None
    created: str | None = None
    error: str | None = None
    baseline: bool = False
    champion: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "aliases": list(self.aliases)}


# Inside the class, `list` is the method.
Listing: TypeAlias = list[Listed]
Releases: TypeAlias = list[Release]


class Registry:
    """Artifacts below `root`. Safe to use from several threads and processes.

    Args:
        root: the folder; made when something is put.
        key: to check signatures with; default from the environment (`dse.artifacts.seal.load_key`).
        require_signature: refuse unsigned artifacts wherever one is read or put.
    """

    def __init__(
        self, root: str | Path = DEFAULT_ROOT, *, key: bytes | None = None, require_signature: bool = False
    ) -> None:
        self.root = Path(root)
        self._reading: dict[str, Any] = {"key": key, "require_signature": require_signature}

    def __repr__(self) -> str:
        return f"<dse.Registry {self.root}>"

    # ---- reading

    @classmethod
    def resolve(cls, ref: str | Path, *, key: bytes | None = None, require_signature: bool = False) -> Artifact:
        """`get` where the reference itself says which registry: ``<root>/<Signature>@...``, default ``artifacts``."""
        root, _ = _split_root(ref)
        return cls(root or DEFAULT_ROOT, key=key, require_signature=require_signature).get(ref)

    def get(self, ref: str | Path) -> Artifact:
        """The artifact that `ref` names, read and checked.

        Args:
            ref: ``Audit@champion`` (any alias), ``Audit@sha256:1234abcd`` or, where no alias has that name,
                ``Audit@1234abcd`` (8 or more hex digits of the id), each with this registry's folder before it (``artifacts/Audit@champion``), or the path of a ``.json`` file.

        Raises:
            ArtifactNotFound: not a reference, or nothing has this name.
            ArtifactError: the file is not what it should be; further errors as `Artifact.load`.
        """
        if _is_path(ref):
            return Artifact.load(ref, **self._reading)
        root, name = _split_root(ref)
        if root is not None and not _same_folder(root, self.root):
            raise ArtifactNotFound("The reference is to another registry", value=str(ref),
                                   remedy=f"This one is {self.root}; use dse.Registry({str(root)!r}).")  # fmt: skip
        signature, target = _names(name)
        self._check_there(signature)
        if _PREFIX.fullmatch(target):
            return self._by_prefix(signature, target)
        aliases = self.aliases(signature)
        if target not in aliases and _SHORT.fullmatch(target):  # as `dse artifacts list` shows ids
            return self._by_prefix(signature, f"sha256:{target}")
        if target not in aliases:
            moved = " A promoted candidate is the champion now." if target == "candidate" and "champion" in aliases else ""
            raise ArtifactNotFound(f"{signature} has no artifact called {target!r}", value=str(ref),
                                   remedy=f"It has: {', '.join(sorted(aliases)) or 'no aliases'}.{moved}")  # fmt: skip
        return self._load(signature, aliases[target])

    def list(self, signature: str | None = None) -> Listing:
        """Every artifact file, by signature and time; unreadable ones are listed with their error."""
        folders = [self._folder(signature)] if signature is not None else sorted(
            folder for folder in _entries(self.root) if folder.is_dir() and _is_name(folder.name))  # fmt: skip
        found: Listing = []
        for folder in folders:
            try:
                names, broken = self.aliases(folder.name), None
            except ArtifactInvalid as exc:
                names, broken = {}, str(exc)
                if folder.is_symlink():  # nothing below it is the registry's
                    found.append(Listed(folder.name, folder, error=broken))
                    continue
            except DseError as exc:
                names, broken = {}, str(exc)
            rows = [self._listed(folder.name, path, names, broken) for path in _files(folder)]
            found += sorted(rows, key=lambda row: (row.created or "", row.path.name))
        return found

    def aliases(self, signature: str) -> dict[str, str]:
        """Alias to artifact id; empty for a signature without any.

        Raises:
            ArtifactTampered: aliases and history contradict each other.
        """
        folder = self._folder(signature)
        if not folder.is_dir():
            return {}
        with locked(folder, shared=True):
            return Journal(folder).aliases

    def history(self, signature: str) -> Releases:
        """All moves of aliases, the oldest first."""
        folder = self._folder(signature)
        if not folder.is_dir():
            return []
        with locked(folder, shared=True):
            return Journal(folder).releases

    # ---- writing

    def put(self, artifact: Artifact) -> Path:
        """Store `artifact`; again is a no-op, except that a signature is added to the same unsigned file.

        Raises:
            Refused: another artifact has this file name, or a signature is required.
            ArtifactTampered: `artifact`, or the stored file, does not fit its id.
        """
        artifact.check_integrity()
        if self._reading["require_signature"]:
            artifact.require_seal(self._reading["key"])
        folder = self._folder(artifact.signature_name)
        path = self._path(artifact.signature_name, artifact.artifact_id)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            self._refuse_outside(path)
            if path.exists():
                stored = Artifact.load(path, key=self._reading["key"])
                if stored.artifact_id != artifact.artifact_id:
                    raise Refused("Another artifact is stored under this name, and none is ever replaced",
                                  value=str(path), remedy=f"Keep {artifact.artifact_id} elsewhere.")  # fmt: skip
                unsigned, signed = stored.envelope, artifact.envelope
                if unsigned.signature or not signed.signature or unsigned.digest != signed.digest:
                    return path
            return write_atomic(path, artifact.to_bytes())

    def set_alias(self, signature: str, alias: str, ref: str | None, *, by: str | None = None, reason: str = "") -> None:
        """Point `alias` (``candidate``, or a name of your own) at a stored artifact; None removes it.

        Args:
            ref: a reference, or the artifact's id by itself.
            alias: ``champion`` is `promote`, with all that it asks for.

        Raises:
            Refused: ``previous``, removing the champion, and names that are none.
            ArtifactNotFound
        """
        _check_words(reason, by)
        if not _ALIAS.fullmatch(alias) or alias == "previous" or (alias == "champion" and ref is None):
            raise Refused("This alias cannot be set", value=alias,
                          remedy="Use promote or rollback for releases; other aliases are lower-case names.")  # fmt: skip
        if ref is not None and (_PREFIX.fullmatch(ref) or _SHORT.fullmatch(ref)):
            ref = f"{signature}@{ref}"
        artifact = None if ref is None else self._stored(ref, signature)
        if artifact is not None and alias == "champion":
            self._release(artifact, reason, by)
            return
        folder = self._folder(signature)
        if artifact is None and not folder.is_dir():
            return
        with locked(folder):
            journal = Journal(folder)
            after = dict(journal.aliases)
            if artifact is None:
                after.pop(alias, None)
            else:
                after[alias] = artifact.artifact_id
            if after != journal.aliases:
                verdict = artifact.verdict if artifact else None
                journal.move("alias", alias, after, by=by, reason=reason, verdict=verdict)

    def promote(self, ref: str | Path, *, reason: str = "", by: str | None = None, only_first: bool = False) -> Artifact:
        """Make a stored artifact the ``champion``; the old one becomes ``previous``. A no-op for the champion itself.

        Args:
            reason: needed unless the gate's verdict is PROMOTE and was reached against the program that is
                champion now (another one may have been promoted since).
            by: who; default the user's name.
            only_first: a no-op if there is a champion.

        Raises:
            Refused: a reason is needed. ArtifactNotFound: the artifact is not stored in this registry.
        """
        _check_words(reason, by)
        artifact = self._stored(ref)
        self._release(artifact, reason, by, only_first)
        return artifact

    def _release(self, artifact: Artifact, reason: str, by: str | None, only_first: bool = False) -> None:
        folder = self._folder(artifact.signature_name)
        with locked(folder):
            journal = Journal(folder)
            old = journal.aliases.get("champion")
            if old is not None and only_first and old != artifact.artifact_id:
                return
            if old == artifact.artifact_id:
                journal.settle()  # the promotion that was cut off may have been this one
                return
            doubt = self._doubt(artifact, old)
            if doubt and not reason.strip():
                raise Refused(f"Promoting this needs a reason: {doubt}", value=artifact.artifact_id,
                              remedy="Give one with reason=...; it is recorded.")  # fmt: skip
            after = {**journal.aliases, "champion": artifact.artifact_id}
            if old is not None:
                after["previous"] = old
            if after.get("candidate") == artifact.artifact_id:
                del after["candidate"]
            journal.move("promote", "champion", after, by=by, reason=reason, verdict=artifact.verdict)

    def rollback(self, signature: str, *, reason: str, by: str | None = None) -> Artifact:
        """Make ``previous`` the champion again; ``previous`` then names the release before that one, if any.

        Raises:
            Refused: there is no reason. ArtifactNotFound: there is no release to go back to, or its file is gone.
        """
        _check_words(reason, by)
        if not reason.strip():
            raise Refused("A rollback needs a reason", value=signature, remedy="Give one with reason=...; it is recorded.")
        folder = self._folder(signature)
        nothing = ArtifactNotFound(f"{signature} has no release to go back to", value=signature,
                                   remedy="Promote another artifact instead.")  # fmt: skip
        if not folder.is_dir():
            raise nothing
        with locked(folder):
            journal = Journal(folder)
            releases = journal.champions()
            if len(releases) < 2:
                raise nothing
            artifact = self._load(signature, releases[-2])  # never point at something that cannot be used
            after = {**journal.aliases, "champion": artifact.artifact_id}
            after.pop("previous", None)
            if len(releases) > 2:
                after["previous"] = releases[-3]
            journal.move("rollback", "champion", after, by=by, reason=reason, verdict=artifact.verdict)
        return artifact

    # ---- inside

    def _check_there(self, signature: str) -> None:
        """
        Raises:
            ArtifactNotFound: no such registry, or nothing of a signature in it.
        """
        if not self.root.is_dir():
            raise ArtifactNotFound("There is no registry here", value=str(self.root),
                                   remedy="Name its folder before the artifact: FOLDER/Name@champion.")  # fmt: skip
        if not self._folder(signature).is_dir():
            there = sorted(folder.name for folder in _entries(self.root) if folder.is_dir() and _is_name(folder.name))
            raise ArtifactNotFound(f"The registry has nothing of a signature of this name: {self.root}", value=signature,
                                   remedy=f"It has: {', '.join(there) or 'nothing'}.")  # fmt: skip

    def _folder(self, signature: str) -> Path:
        if not _is_name(signature):
            raise ArtifactNotFound("This is not the name of a signature", value=signature,
                                   remedy="A signature's name is a Python identifier.")  # fmt: skip
        folder = self.root / signature
        for path in (folder, folder / "history.jsonl", folder / "aliases.json"):
            self._refuse_outside(path)
        return folder

    def _refuse_outside(self, path: Path) -> None:
        """Links within the registry are fine; one that leads out would read, lock or append to what is none of its files.

        Raises:
            ArtifactInvalid
        """
        try:
            if not path.is_symlink() or path.resolve().is_relative_to(self.root.resolve()):
                return
        except (OSError, RuntimeError):  # a loop of links
            pass
        raise ArtifactInvalid("A link in the registry leads out of it", value=str(path),
                              remedy="Remove the link, or put the file itself in its place.")  # fmt: skip

    def _path(self, signature: str, artifact_id: str) -> Path:
        return self._folder(signature) / f"{artifact_id[7:23]}.json"

    def _load(self, signature: str, artifact_id: str) -> Artifact:
        return self._checked(self._path(signature, artifact_id), signature, artifact_id)

    def _checked(self, path: Path, signature: str, prefix: str) -> Artifact:
        self._refuse_outside(path)
        artifact = Artifact.load(path, **self._reading)
        if artifact.signature_name != signature or not artifact.artifact_id.startswith(prefix):
            raise ArtifactTampered("The file holds another artifact than its name says", value=str(path),
                                   remedy="Put the right file back; artifacts are never replaced.",
                                   artifact_id=artifact.artifact_id)  # fmt: skip
        return artifact

    def _by_prefix(self, signature: str, prefix: str) -> Artifact:
        digits = prefix[7:23]
        paths = [path for path in _files(self._folder(signature)) if path.stem.startswith(digits)]
        if len(paths) > 1:
            raise ArtifactNotFound("Several artifacts begin like this", value=prefix,
                                   remedy=f"Give more digits: {', '.join(path.stem for path in paths)}.")  # fmt: skip
        if not paths:
            raise ArtifactNotFound(f"{signature} has no artifact that begins like this", value=prefix,
                                   remedy=f"List them with: dse artifacts list {signature}.")  # fmt: skip
        artifact = self._checked(paths[0], signature, f"sha256:{paths[0].stem}")
        if not artifact.artifact_id.startswith(prefix):  # agrees in the 16 digits of the file name only
            raise ArtifactNotFound(f"{signature} has no artifact that begins like this", value=prefix,
                                   remedy=f"The nearest is {artifact.artifact_id}.")  # fmt: skip
        return artifact

    def _stored(self, ref: str | Path, signature: str | None = None) -> Artifact:
        artifact = self.get(ref)
        if signature is not None and artifact.signature_name != signature:
            raise ArtifactNotFound(f"This is an artifact of {artifact.signature_name}, not of {signature}", value=str(ref),
                                   remedy="Name one of the same signature.")  # fmt: skip
        if _is_path(ref):
            try:
                self._load(artifact.signature_name, artifact.artifact_id)
            except ArtifactNotFound:
                raise ArtifactNotFound("The artifact is not stored in this registry", value=str(ref),
                                       remedy=f"Put it into {self.root} first.") from None  # fmt: skip
        return artifact

    def _doubt(self, artifact: Artifact, champion: str | None) -> str:
        """Why the verdict alone does not carry a promotion; empty if it does."""
        if artifact.verdict != "PROMOTE":
            return f"its verdict is {artifact.verdict}"
        if champion is None:
            return ""
        try:
            current = self._load(artifact.signature_name, champion).program_id
        except ArtifactError as exc:
            return f"the champion cannot be read ({exc.code})"
        proven = artifact.evidence.incumbent.program_id
        return "" if current == proven else f"it was proven against {proven[:19]}, and the champion is {current[:19]}"

    def _listed(self, signature: str, path: Path, names: dict[str, str], broken: str | None) -> Listed:
        try:
            artifact = self._checked(path, signature, f"sha256:{path.stem}")
        except DseError as exc:
            return Listed(signature, path, error=str(exc))
        incumbent = artifact.evidence.incumbent
        same = incumbent.program_id == artifact.program_id
        held = tuple(sorted(name for name, target in names.items() if target == artifact.artifact_id))
        return Listed(signature, path, artifact.artifact_id, held, artifact.plan.mode, artifact.model_name, artifact.verdict,
                      artifact.envelope.created, broken, same and incumbent.kind == "baseline",
                      same and incumbent.kind == "champion")  # fmt: skip


def _check_words(reason: Any, by: Any) -> None:
    if not isinstance(reason, str) or not isinstance(by, str | None):
        raise Refused("A reason, and who gives it, are texts", value=[reason, by], remedy='Write reason="...".')


# ---- names ------------------------------------------------------------------------------------------------


def _is_name(text: str) -> bool:
    return text.isidentifier() and len(text.encode()) <= 200  # no separators, no dots; file systems allow 255 bytes


def _is_path(ref: str | Path) -> bool:
    return str(ref).endswith(".json") or (isinstance(ref, Path) and "@" not in ref.name)


def _split_root(ref: str | Path) -> tuple[Path | None, str]:
    """The registry's folder, if the reference names it, and ``<Signature>@<target>``."""
    if _is_path(ref):
        return None, str(ref)
    before, at, target = str(ref).rpartition("@")
    folder, slash, signature = before.rpartition("/")
    return Path(folder or "/") if slash else None, f"{signature}{at}{target}"


def _names(name: str) -> tuple[str, str]:
    signature, at, target = name.partition("@")
    if not at or not _is_name(signature) or not any(form.fullmatch(target) for form in (_ALIAS, _PREFIX, _SHORT)):
        raise ArtifactNotFound("This is not a reference to an artifact", value=name,
                               remedy="Write Name@champion, Name@sha256:<8 or more hex digits>, or the path of a .json "
                                      "file.")  # fmt: skip
    return signature, target


def _same_folder(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve()
    except (OSError, ValueError, RuntimeError):  # a loop of links, or a NUL in the name
        return False


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        raise StoreUnavailable("The registry cannot be read", value=f"{folder}: {exc}",
                               remedy="Check the permissions and the disk.") from exc  # fmt: skip


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in _entries(folder) if re.fullmatch(r"[0-9a-f]{16}\.json", path.name))
