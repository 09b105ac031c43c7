"""Artifacts: immutable, content-addressed JSON that fixes a program and carries the evidence for it.

A file holds ``{"content": ..., "envelope": ...}``. ``artifact_id`` is the digest of the content without that
field: a pure function of the compile's inputs and recorded outcomes. Times, hosts and versions are in the
envelope, which has a digest of its own (over ``{"artifact_id", "envelope"}``, so that it fits one artifact only)
and may be signed (seal.py). A file may be laid out differently, but what it parses to must give the same ids.
Loading refuses everything that it does not know; ``verify`` recomputes tables and the gate from the evidence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import BaseModel, PrivateAttr, ValidationError

from dse.artifacts.content import (
    NO_ID,
    PAIRED_COLUMNS,
    SCHEMA_VERSION,
    CandidateRow,
    Content,
    Data,
    Envelope,
    Evidence,
    IncumbentData,
    ProgramData,
    envelope_digest,
)
from dse.artifacts.describe import Change, differences, summarise
from dse.artifacts.files import read_file, write_atomic
from dse.artifacts.seal import load_key, verify_seal
from dse.canonical import canonical_json, digest, parse_json, sha256_hex
from dse.contracts.signature import validation_summary
from dse.contracts.tool import ToolContract
from dse.errors import ArtifactInvalid, ArtifactTampered, ArtifactVersion, DseError
from dse.plan import Plan

__all__ = ["MIGRATIONS", "SCHEMA_VERSION", "Artifact", "Change", "Check", "VerifyReport", "published_schema"]

#: {old version: function from a file's data ({"content", "envelope"}) to that of a later version}. Ids inside are
#: recomputed afterwards, but for versions in `_SAME_IDS`; ``artifact_id`` and the file's bytes stay those that were stored.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
_SAME_IDS = {1}
"""Versions whose programs were written as today's: the ids in such a file have to be today's as well."""


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 has fields that are left out where they are empty; all others are as they were."""
    evidence = data["content"]["evidence"]
    parts: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (Plan, data["content"]["program"]["plan"]), (Evidence, evidence), (IncumbentData, evidence["incumbent"]),
        *((CandidateRow, row) for row in evidence["modes"])]  # fmt: skip
    for of, part in parts:
        if strange := part.keys() & _left_out(of):
            raise ValueError(f"version 1 has no {', '.join(sorted(strange))}")
    data["content"]["schema_version"] = 2
    return data


def _left_out(of: type[BaseModel]) -> set[str]:
    """Fields that came with version 2, and are in a file only where they say something."""
    return {name for name, field in of.model_fields.items() if field.exclude_if is not None}


MIGRATIONS[1] = _from_1

GATE_LEVEL = 0.05  # of the first look at a holdout; the k-th at the same rows is tested at a k-th of it
_AGAIN = "Restore the file from where it was made, or compile again."


# ---- reports ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One thing verified: ok is None where it was not asked for."""

    name: str
    ok: bool | None
    detail: str = ""

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAILED", None: "not checked"}[self.ok]
        return f"{self.name}: {mark}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class VerifyReport:
    """What `Artifact.verify` found."""

    artifact_id: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.ok is False)

    def __str__(self) -> str:
        return "\n".join([self.artifact_id, *(f"  {check}" for check in self.checks)])

    def require(self) -> None:
        """Raise ArtifactTampered unless every check held."""
        if self.failed:
            raise ArtifactTampered("The artifact does not hold up", value="; ".join(map(str, self.failed)),
                                   remedy=_AGAIN, artifact_id=self.artifact_id)  # fmt: skip


class GateVerdict(Protocol):
    """What `recompute` gives: `dse.compiler.gate.GateResult`, which this module must not import."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], /) -> Self: ...
    def disagreements(self, other: Any, /) -> list[str]: ...


Recompute = Callable[[Mapping[str, Any]], GateVerdict]


# ---- the artifact -----------------------------------------------------------------------------------------


class Artifact(Data):
    """A compiled program with its evidence. Made by `build`, read by `load`; both give a checked artifact."""

    content: Content
    envelope: Envelope
    _text: tuple[Content, bytes] | None = PrivateAttr(None)  # canonical text of that content, without its id
    _stored: dict[str, Any] | None = PrivateAttr(None)  # the file's data where an older schema was migrated
    _trusted: bool = PrivateAttr(False)

    @classmethod
    def build(
        cls, *, signature: Mapping[str, Any], plan: Plan, contracts: Mapping[str, ToolContract], model: Mapping[str, Any],
        evidence: Mapping[str, Any], program_id: str | None = None, parent: str | None = None,
        duration_s: float | None = None, budget: Mapping[str, Any] | None = None, cwd: str | Path = ".",
        envelope: Envelope | None = None,
    ) -> Artifact:  # fmt: skip
        """Put an artifact together; all ids are computed here.

        Args:
            signature: `SignatureSpec.to_dict()`; a ``signature_id`` in it must be right.
            contracts: of exactly the tools on the plan's allow-list.
            model: ``{"name", "params"}``.
            evidence: the fields of `Evidence` as plain JSON data; ``paired`` as `dse.compiler.gate.evidence` gives it.
            program_id: must be right where given.
            parent, duration_s, budget, cwd: for the envelope (`Envelope.here`), unless `envelope` is given.

        Raises:
            ArtifactInvalid: the evidence lacks a field, has an unknown one, or its tables contradict each other; an id
                or the contracts do not fit the rest.
            Unserialisable: a value that JSON cannot hold (NaN, for example).
        """
        program = {
            "signature": {**signature, "signature_id": NO_ID}, "plan": plan.model_dump(), "program_id": NO_ID,
            "contracts": {name: contract.model_dump() for name, contract in contracts.items()}, "tool_ids": {},
            "model": dict(model),
        }  # fmt: skip
        paired = evidence.get("paired")
        if isinstance(paired, Mapping):
            evidence = {**evidence, "paired": {"columns": list(PAIRED_COLUMNS), **paired}}
        if set(plan.allow) != set(contracts):
            raise ArtifactInvalid("The contracts are not those of the allow-list", value=", ".join(sorted(contracts)),
                                  remedy=f"Give exactly those of: {', '.join(plan.allow) or 'no tools'}.")  # fmt: skip
        envelope = envelope or Envelope.here(duration_s=duration_s, parent=parent, budget=budget, folder=cwd)
        data = {"content": {"schema_version": SCHEMA_VERSION, "kind": "dse-artifact", "artifact_id": NO_ID,
                            "program": program, "evidence": dict(evidence)},
                "envelope": envelope.model_dump()}  # fmt: skip
        draft = cls._parsed(canonical_json(data), "The artifact to build")
        content = _with_ids(draft.content)
        for what, given, right in (("signature_id", signature.get("signature_id"), content.program.signature.signature_id),
                                   ("program_id", program_id, content.program.program_id)):  # fmt: skip
            if given not in (None, right):
                raise ArtifactInvalid(f"The {what} is of something else", value=given,
                                      remedy=f"What was given has {right}.")  # fmt: skip
        made = cls(content=content, envelope=draft.envelope)
        content = content.model_copy(update={"artifact_id": made._computed_id()})
        sealed = {"digest": draft.envelope.compute_digest(content.artifact_id), "signature": None}
        made = cls(content=content, envelope=draft.envelope.model_copy(update=sealed))
        made.check_integrity("The artifact to build")
        for check in made._tables():
            if check.ok is False:
                raise ArtifactInvalid(f"The evidence contradicts itself: {check.name}", value=check.detail,
                                      remedy="Correct what the evidence was collected from.")  # fmt: skip
        return made

    @classmethod
    def load(cls, path: str | Path, *, key: bytes | None = None, require_signature: bool = False) -> Artifact:
        """Read and check a file. Nothing of the file is executed or imported.

        Args:
            key: to check a signature with; default from the environment (`dse.artifacts.seal.load_key`).
            require_signature: refuse an unsigned artifact.

        Raises:
            ArtifactNotFound, ArtifactInvalid, ArtifactVersion, ArtifactTampered, ArtifactError,
            Refused: a signature is required and there is none, or no key for it.
            StoreUnavailable: the file cannot be read.
        """
        return cls.from_bytes(read_file(Path(path)), source=str(path), key=key, require_signature=require_signature)

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = "artifact", key: bytes | None = None,
                   require_signature: bool = False) -> Artifact:  # fmt: skip
        """As `load`, from the bytes of a file; `source` names them in errors."""
        raw = _parse(data, source)
        version = raw["content"].get("schema_version")
        if type(version) is int and version == SCHEMA_VERSION:
            made = cls._parsed(data, source)
            made._text = made.content, _without_id(made._as_written(raw["content"], source))
        else:
            made = cls._migrated(raw, source)
        made.check_integrity(source)
        made._trusted = verify_seal(made, key or load_key(), required=require_signature)
        return made

    @classmethod
    def _parsed(cls, data: bytes, source: str) -> Artifact:
        try:
            return cls.model_validate_json(data, strict=True)
        except ValidationError as exc:
            raise ArtifactInvalid(f"{source} is not an artifact that this dse knows", value=validation_summary(exc),
                                  remedy=_AGAIN) from None  # fmt: skip
        except DseError as exc:  # a contract or objective that could never have been declared
            raise ArtifactInvalid(f"{source} is not an artifact that this dse knows", value=str(exc),
                                  remedy=_AGAIN) from None  # fmt: skip

    def _as_written(self, written: dict[str, Any], source: str) -> dict[str, Any]:
        """The content as data, which has to be what was written: a field left out would be filled with a default."""
        dump = self.content.model_dump(mode="json")
        if dump != written:
            where, found, wanted = _first_difference(written, dump, "content")
            raise ArtifactInvalid(f"{source}: {where} is not as dse writes it", value=_short(found),
                                  remedy=f"It would be read as {_short(wanted)}. {_AGAIN}")  # fmt: skip
        return dump

    @classmethod
    def _migrated(cls, raw: dict[str, Any], source: str) -> Artifact:
        content, envelope, version = raw["content"], raw["envelope"], raw["content"].get("schema_version")
        if type(version) is not int:
            raise ArtifactInvalid(f"{source} has no schema version", value=_short(version), remedy=_AGAIN)
        if version not in MIGRATIONS:
            remedy = "Upgrade dse." if version > SCHEMA_VERSION else f"Compile again for version {SCHEMA_VERSION}."
            raise ArtifactVersion(f"{source} has a schema version that this dse cannot read", value=version, remedy=remedy)
        _same("artifact_id", content.get("artifact_id"), _stored_id(content), source)
        _same("envelope digest", envelope.get("digest"), envelope_digest(content["artifact_id"], envelope), source)
        data = parse_json(canonical_json(raw))  # a copy: migrations may change what they are given
        while version < SCHEMA_VERSION:
            if version not in MIGRATIONS:
                raise ArtifactVersion(f"{source} can be migrated to version {version} and no further", value=version,
                                      remedy="Upgrade dse, or compile again.")  # fmt: skip
            try:
                data = MIGRATIONS[version](data)
                reached = data["content"]["schema_version"]
            except (LookupError, TypeError, ValueError, AttributeError) as exc:
                raise ArtifactInvalid(f"{source} is not a complete artifact of version {version}", value=repr(exc),
                                      remedy="Compile again.") from exc  # fmt: skip
            if reached <= version:
                raise ArtifactVersion(f"The migration of version {version} does not lead on", value=reached,
                                      remedy="Correct MIGRATIONS.")  # fmt: skip
            version = reached
        draft = cls._parsed(canonical_json(data), source)
        draft._as_written(data["content"], source)
        now, allowed = draft.content, set(draft.plan.allow)
        if content["schema_version"] not in _SAME_IDS and allowed == set(draft.contracts):
            now = _with_ids(now)
        made = cls(content=now.model_copy(update={"artifact_id": content["artifact_id"]}),
                   envelope=draft.envelope.model_copy(update={"digest": envelope["digest"]}))  # fmt: skip
        made._stored = raw
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Artifact):
            return NotImplemented
        return self.artifact_id == other.artifact_id and self.envelope == other.envelope

    def __hash__(self) -> int:
        return hash(self.artifact_id)

    def __repr__(self) -> str:
        return f"<dse.Artifact {self.signature_name} {self.artifact_id[:19]} {self.plan.mode} {self.verdict}>"

    __str__ = __repr__

    @property
    def artifact_id(self) -> str:
        return self.content.artifact_id

    @property
    def program(self) -> ProgramData:
        return self.content.program

    @property
    def program_id(self) -> str:
        return self.content.program.program_id

    @property
    def signature_name(self) -> str:
        return self.content.program.signature.name

    @property
    def plan(self) -> Plan:
        return self.content.program.plan

    @property
    def contracts(self) -> Mapping[str, ToolContract]:
        return self.content.program.contracts

    @property
    def model_name(self) -> str:
        return self.content.program.model.name

    @property
    def params(self) -> Mapping[str, Any]:
        return self.content.program.model.params

    @property
    def evidence(self) -> Evidence:
        return self.content.evidence

    @property
    def verdict(self) -> str:
        return str(self.evidence.gate["verdict"])

    @property
    def trusted(self) -> bool:
        """Whether a signature was checked when this was loaded. Digests alone do not say who wrote a file."""
        return self._trusted

    def require_seal(self, key: bytes | None = None) -> None:
        """Refuse this artifact unless it is signed with `key` (default: from the environment).

        Raises:
            Refused, ArtifactError, ArtifactTampered: as `dse.artifacts.seal.verify_seal`.
        """
        self._trusted = verify_seal(self, key or load_key(), required=True)

    def _content_text(self) -> bytes:
        if self._text is None or self._text[0] is not self.content:
            self._text = self.content, _without_id(self.content.model_dump(mode="json"))
        return self._text[1]

    def _computed_id(self) -> str:
        return "sha256:" + sha256_hex(self._content_text())

    def to_bytes(self) -> bytes:
        """The file: canonical JSON and a newline. A migrated artifact gives what was stored."""
        envelope = self.envelope.model_dump(mode="json")
        if self._stored is not None:
            kept = {**self._stored["envelope"], "signature": envelope["signature"]}
            return canonical_json({"content": self._stored["content"], "envelope": kept}) + b"\n"
        content = b'{"artifact_id":"' + self.artifact_id.encode() + b'",' + self._content_text()[1:]  # its first key
        return b'{"content":' + content + b',"envelope":' + canonical_json(envelope) + b"}\n"

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all; an existing one is replaced.

        Raises:
            ArtifactTampered: this object does not fit its ids; nothing is written.
            StoreUnavailable: the file cannot be written; an existing one is as it was.
        """
        self.check_integrity()
        return write_atomic(Path(path), self.to_bytes())

    def check_integrity(self, source: str = "The artifact") -> None:
        """Recompute every id from the data it stands for.

        Raises:
            ArtifactTampered: with the first that differs.
        """
        for check in self._ids():
            if check.ok is False:
                raise ArtifactTampered(f"{source}: {check.name} does not fit the content", value=check.detail,
                                       remedy=f"The file was changed after it was written. {_AGAIN}",
                                       artifact_id=self.artifact_id)  # fmt: skip

    def _ids(self) -> list[Check]:
        program, stored = self.content.program, self._stored
        found = [Check("artifact_id", *_equal(self.artifact_id, self._computed_id() if stored is None
                                              else _stored_id(stored["content"])))]  # fmt: skip
        allowed, described = set(program.plan.allow), set(program.contracts)
        differ = sorted(allowed ^ described | {name for name, c in program.contracts.items() if c.name != name})
        found.append(Check("allow-list", not differ, f"no contract, or one too many: {', '.join(differ)}" if differ else ""))
        found.append(Check("signature_id", *_equal(program.signature.signature_id, program.signature.compute_id())))
        ids = program.compute_tool_ids()
        wrong = sorted(name for name in ids.keys() | program.tool_ids.keys() if ids.get(name) != program.tool_ids.get(name))
        found.append(Check("tool ids", not wrong, ", ".join(wrong)))
        if not differ:
            found.append(Check("program_id", *_equal(program.program_id, program.compute_id())))
        computed = (self.envelope.compute_digest(self.artifact_id) if stored is None
                    else envelope_digest(self.artifact_id, stored["envelope"]))  # fmt: skip
        found.append(Check("envelope digest", *_equal(self.envelope.digest, computed)))
        return found

    def _tables(self) -> list[Check]:
        """Arithmetic that needs no statistics."""
        evidence, program = self.evidence, self.content.program
        rows, holdout = evidence.paired.rows, evidence.dataset.split.holdout
        hashes, clusters = {row[0] for row in rows}, {row[1] for row in rows}
        own = [row for row in evidence.modes if row.program_id == program.program_id]
        others = {row.program_id for row in evidence.modes} - {evidence.incumbent.program_id}
        odd = [row.candidate for row in evidence.modes if row.failures > row.n or not _ordered(row)]
        shown = sorted(hashes & set(evidence.demos.rows))
        same = evidence.paired.objective == evidence.objective
        whole = holdout.hash == digest(sorted(hashes))  # then all of the holdout was judged on
        fits = not whole or (len(rows), len(clusters)) == (holdout.rows, holdout.clusters)
        incumbent = [row for row in evidence.modes if row.program_id == evidence.incumbent.program_id]
        removed = [tool.name for tool in evidence.removed_tools]
        every = evidence.allow_lists.get("all")
        missing = [str(name) for name in every if name not in program.plan.allow] if isinstance(every, list) else removed
        looks = max(1, evidence.holdout_openings)
        level = GATE_LEVEL / looks
        n = evidence.gate.get("n_rows", len(rows)), evidence.gate.get("n_clusters", len(clusters))
        return [
            Check("holdout rows", fits and len(hashes) == len(rows) <= holdout.rows and len(clusters) <= holdout.clusters,
                  f"{len(rows)} paired rows ({len(hashes)} distinct) in {len(clusters)} clusters; the holdout has "
                  f"{holdout.rows} in {holdout.clusters}"),
            Check("gate counts", n == (len(rows), len(clusters)), f"the gate saw {n[0]} rows in {n[1]} clusters"),
            Check("gate objective", same, "" if same else "the gate was given another one"),
            Check("holdout openings", evidence.holdout_openings > 0 or not rows, f"{evidence.holdout_openings}"),
            Check("gate level", math.isclose(evidence.paired.alpha, level, rel_tol=1e-9),
                  f"alpha is {evidence.paired.alpha:g}; look {looks} at these rows is tested at {GATE_LEVEL:g} / {looks}"),
            Check("demonstrations", not shown, f"from the holdout: {', '.join(shown)}" if shown else ""),
            Check("own row", any(row.mode == program.plan.mode and row.allow == program.plan.allow for row in own),
                  f"{len(own)} rows of the table are this program's"),
            Check("incumbent row", any(row.mode == evidence.incumbent.mode for row in incumbent),
                  f"{len(incumbent)} rows of the table are the incumbent's"),
            Check("removed tools", sorted(removed) == sorted(missing),
                  f"written: {', '.join(removed) or 'none'}; not allowed: {', '.join(missing) or 'none'}"),
            Check("table", not odd, f"impossible figures: {', '.join(odd)}" if odd else f"{len(evidence.modes)} rows"),
            Check("candidates tried", evidence.candidates_tried >= len(others),
                  f"{evidence.candidates_tried}; the table has {len(others)}"),
        ]  # fmt: skip

    def verify(self, recompute: Recompute | None = None) -> VerifyReport:
        """Recompute what can be recomputed from the artifact alone, offline.

        Args:
            recompute: `dse.compiler.gate.recompute`; without it the gate's figures and verdict are not checked.
        """
        gate = Check("gate", None)
        if recompute is not None:
            try:
                result = recompute(self.evidence.paired.model_dump(mode="json"))
                wrong = result.disagreements(type(result).from_dict(self.evidence.gate))
                gate = Check("gate", not wrong, f"recomputed otherwise: {', '.join(wrong)}" if wrong else self.verdict)
            except DseError as exc:
                gate = Check("gate", False, str(exc))
        return VerifyReport(self.artifact_id, (*self._ids(), *self._tables(), gate))

    def diff(self, other: Artifact) -> list[Change]:
        """What `other` has different from this one, the program first; empty for the same content."""
        return differences(self, other)

    def summary(self) -> str:
        """A few lines: what it is, what it may call, what it was measured to do, and the verdict."""
        return summarise(self)


def _with_ids(content: Content) -> Content:
    program = content.program
    signature = program.signature.model_copy(update={"signature_id": program.signature.compute_id()})
    ids = {"signature": signature, "tool_ids": program.compute_tool_ids(), "program_id": program.compute_id()}
    return content.model_copy(update={"program": program.model_copy(update=ids)})


def _without_id(content: dict[str, Any]) -> bytes:
    return canonical_json({key: value for key, value in content.items() if key != "artifact_id"})


def _stored_id(content: dict[str, Any]) -> str:
    return "sha256:" + sha256_hex(_without_id(content))


def _equal(written: str, computed: str) -> tuple[bool, str]:
    return written == computed, "" if written == computed else f"written {written}, computed {computed}"


def _same(what: str, written: Any, computed: str, source: str) -> None:
    if written != computed:
        raise ArtifactTampered(f"{source}: {what} does not fit the content", value=written,
                               remedy=f"The file was changed after it was written. {_AGAIN}")  # fmt: skip


def _ordered(row: CandidateRow) -> bool:
    known = [value for value in (row.quality_low, row.quality, row.quality_high) if value is not None]
    return all(low <= high + 1e-9 for low, high in itertools.pairwise(known))


def _first_difference(found: Any, wanted: Any, path: str) -> tuple[str, Any, Any]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            if key not in found or key not in wanted:
                return f"{path}.{key}", found.get(key, "nothing"), wanted.get(key, "nothing")
            if found[key] != wanted[key]:
                return _first_difference(found[key], wanted[key], f"{path}.{key}")
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            if one != other:
                return _first_difference(one, other, f"{path}[{index}]")
    return path, found, wanted


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"


def _parse(data: bytes, source: str) -> dict[str, Any]:
    try:
        raw = parse_json(data, source=source)
    except DseError as exc:
        raise ArtifactInvalid(exc.what, value=exc.value, remedy=_AGAIN, **exc.details) from None
    parts = raw if isinstance(raw, dict) else {}
    if set(parts) != {"content", "envelope"} or not all(isinstance(part, dict) for part in parts.values()):
        raise ArtifactInvalid(f"{source} is not an artifact", value=_short(raw),
                              remedy='An artifact is {"content": {...}, "envelope": {...}}.')  # fmt: skip
    return parts


def published_schema() -> dict[str, Any]:
    """The JSON Schema of artifact files; ``schema.json`` next to this module is its text."""
    schema = Artifact.model_json_schema(mode="serialization", by_alias=True)
    left_out = {of.__name__: _left_out(of) for of in (Plan, Evidence, CandidateRow, IncumbentData)}
    for of, model in (("Artifact", schema), *schema["$defs"].items()):
        model.pop("description", None)  # docstrings are for readers of the code, and change without the format
        model.pop("title", None)
        # A file states everything, also what has a default, but what came with version 2 where it is empty.
        model["required"] = sorted(set(model["properties"]) - left_out.get(of, set()))
        for part in model["properties"].values():
            part.pop("title", None)
            part.pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"dse artifact, version {SCHEMA_VERSION}", **schema}
