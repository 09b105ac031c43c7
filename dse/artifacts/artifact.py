"""Artifacts: immutable, content-addressed JSON that fixes a program and carries the evidence for it.

A file holds ``{"content": ..., "envelope": ...}``. ``artifact_id`` is the digest of the content without that
field: a pure function of the compile's inputs and recorded outcomes. Times, hosts and versions are in the
envelope, which has a digest of its own (over ``{"artifact_id", "envelope"}``, so that it fits one artifact only)
and may be signed (seal.py). A file may be laid out differently, but what it parses to must give the same ids.
Loading refuses everything that it does not know; ``verify`` recomputes tables and the gate from the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError

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
from dse.artifacts.format import (
    AGAIN,
    MIGRATIONS,
    SAME_IDS,
    fields_left_out,
    first_difference,
    migrated,
    parsed,
    short,
    stored_id,
    without_id,
)
from dse.artifacts.seal import load_key, verify_seal
from dse.artifacts.verify import GATE_LEVEL, Check, Recompute, VerifyReport, check_gate, check_ids, check_tables
from dse.canonical import canonical_json, sha256_hex
from dse.contracts.signature import validation_summary
from dse.contracts.tool import ToolContract
from dse.errors import ArtifactInvalid, ArtifactTampered, DseError
from dse.plan import Plan

__all__ = ["GATE_LEVEL", "MIGRATIONS", "SCHEMA_VERSION", "Artifact", "Change", "Check", "VerifyReport", "published_schema"]


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
        for check in check_tables(content):
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
        raw = parsed(data, source)
        version = raw["content"].get("schema_version")
        if type(version) is int and version == SCHEMA_VERSION:
            made = cls._parsed(data, source)
            made._text = made.content, without_id(made._as_written(raw["content"], source))
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
                                  remedy=AGAIN) from None  # fmt: skip
        except DseError as exc:  # a contract or objective that could never have been declared
            raise ArtifactInvalid(f"{source} is not an artifact that this dse knows", value=str(exc),
                                  remedy=AGAIN) from None  # fmt: skip

    def _as_written(self, written: dict[str, Any], source: str) -> dict[str, Any]:
        """The content as data, which has to be what was written: a field left out would be filled with a default."""
        dump = self.content.model_dump(mode="json")
        if dump != written:
            where, found, wanted = first_difference(written, dump, "content")
            raise ArtifactInvalid(f"{source}: {where} is not as dse writes it", value=short(found),
                                  remedy=f"It would be read as {short(wanted)}. {AGAIN}")  # fmt: skip
        return dump

    @classmethod
    def _migrated(cls, raw: dict[str, Any], source: str) -> Artifact:
        content, envelope, data = raw["content"], raw["envelope"], migrated(raw, source)
        draft = cls._parsed(canonical_json(data), source)
        draft._as_written(data["content"], source)
        now, allowed = draft.content, set(draft.plan.allow)
        if content["schema_version"] not in SAME_IDS and allowed == set(draft.contracts):
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
            self._text = self.content, without_id(self.content.model_dump(mode="json"))
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
                                       remedy=f"The file was changed after it was written. {AGAIN}",
                                       artifact_id=self.artifact_id)  # fmt: skip

    def _ids(self) -> list[Check]:
        stored = self._stored
        own = self._computed_id() if stored is None else stored_id(stored["content"])
        sealed = (self.envelope.compute_digest(self.artifact_id) if stored is None
                  else envelope_digest(self.artifact_id, stored["envelope"]))  # fmt: skip
        return check_ids(self.content, own, self.envelope.digest, sealed)

    def verify(self, recompute: Recompute | None = None) -> VerifyReport:
        """Recompute what can be recomputed from the artifact alone, offline.

        Args:
            recompute: `dse.compiler.gate.recompute`; without it the gate's figures and verdict are not checked.
        """
        return VerifyReport(self.artifact_id, (*self._ids(), *check_tables(self.content), check_gate(self.evidence, recompute)))

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


def published_schema() -> dict[str, Any]:
    """The JSON Schema of artifact files; ``schema.json`` next to this module is its text."""
    schema = Artifact.model_json_schema(mode="serialization", by_alias=True)
    left_out = {of.__name__: fields_left_out(of) for of in (Plan, Evidence, CandidateRow, IncumbentData)}
    for of, model in (("Artifact", schema), *schema["$defs"].items()):
        model.pop("description", None)  # docstrings are for readers of the code, and change without the format
        model.pop("title", None)
        # A file states everything, also what has a default, but what came with version 2 where it is empty.
        model["required"] = sorted(set(model["properties"]) - left_out.get(of, set()))
        for part in model["properties"].values():
            part.pop("title", None)
            part.pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"dse artifact, version {SCHEMA_VERSION}", **schema}
