"""The layout of artifact files, as plain data: parsing one, its id, and bringing earlier versions forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from dse.artifacts.content import SCHEMA_VERSION, CandidateRow, Evidence, IncumbentData, envelope_digest
from dse.canonical import canonical_json, parse_json, sha256_hex
from dse.errors import ArtifactInvalid, ArtifactTampered, ArtifactVersion, DseError
from dse.plan import Plan

__all__ = [
    "AGAIN", "MIGRATIONS", "SAME_IDS", "fields_left_out", "first_difference", "migrated", "parsed", "short", "stored_id", "without_id",
]  # fmt: skip

#: {old version: function from a file's data ({"content", "envelope"}) to that of a later version}. Ids inside are
#: recomputed afterwards, but for versions in `SAME_IDS`; ``artifact_id`` and the file's bytes stay those that were stored.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
SAME_IDS = {1}
"""Versions whose programs were written as today's: the ids in such a file have to be today's as well."""

AGAIN = "Restore the file from where it was made, or compile again."


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 has fields that are left out where they are empty; all others are as they were."""
    evidence = data["content"]["evidence"]
    parts: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (Plan, data["content"]["program"]["plan"]), (Evidence, evidence), (IncumbentData, evidence["incumbent"]),
        *((CandidateRow, row) for row in evidence["modes"])]  # fmt: skip
    for of, part in parts:
        if strange := part.keys() & fields_left_out(of):
            raise ValueError(f"version 1 has no {', '.join(sorted(strange))}")
    data["content"]["schema_version"] = 2
    return data


def fields_left_out(of: type[BaseModel]) -> set[str]:
    """Fields that came with version 2, and are in a file only where they say something."""
    return {name for name, field in of.model_fields.items() if field.exclude_if is not None}


MIGRATIONS[1] = _from_1


def parsed(data: bytes, source: str) -> dict[str, Any]:
    """The two parts of a file, not checked further.

    Raises:
        ArtifactInvalid: it has others.
    """
    try:
        raw = parse_json(data, source=source)
    except DseError as exc:
        raise ArtifactInvalid(exc.what, value=exc.value, remedy=AGAIN, **exc.details) from None
    parts = raw if isinstance(raw, dict) else {}
    if set(parts) != {"content", "envelope"} or not all(isinstance(part, dict) for part in parts.values()):
        raise ArtifactInvalid(f"{source} is not an artifact", value=short(raw),
                              remedy='An artifact is {"content": {...}, "envelope": {...}}.')  # fmt: skip
    return parts


def migrated(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """The data of a file of an earlier version, brought forward; `raw` stays as it is.

    Raises:
        ArtifactInvalid, ArtifactVersion
        ArtifactTampered: the ids of the file do not fit what is in it.
    """
    content, envelope, version = raw["content"], raw["envelope"], raw["content"].get("schema_version")
    if type(version) is not int:
        raise ArtifactInvalid(f"{source} has no schema version", value=short(version), remedy=AGAIN)
    if version not in MIGRATIONS:
        remedy = "Upgrade dse." if version > SCHEMA_VERSION else f"Compile again for version {SCHEMA_VERSION}."
        raise ArtifactVersion(f"{source} has a schema version that this dse cannot read", value=version, remedy=remedy)
    _same("artifact_id", content.get("artifact_id"), stored_id(content), source)
    _same("envelope digest", envelope.get("digest"), envelope_digest(content["artifact_id"], envelope), source)
    data: dict[str, Any] = parse_json(canonical_json(raw))  # a copy: migrations may change what they are given
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
    return data


def without_id(content: dict[str, Any]) -> bytes:
    """The text that an artifact's id is the hash of."""
    return canonical_json({key: value for key, value in content.items() if key != "artifact_id"})


def stored_id(content: dict[str, Any]) -> str:
    """The id that belongs to a content as it is written."""
    return "sha256:" + sha256_hex(without_id(content))


def _same(what: str, written: Any, computed: str, source: str) -> None:
    if written != computed:
        raise ArtifactTampered(f"{source}: {what} does not fit the content", value=written,
                               remedy=f"The file was changed after it was written. {AGAIN}")  # fmt: skip


def first_difference(found: Any, wanted: Any, path: str) -> tuple[str, Any, Any]:
    """Where two JSON values that are not equal differ first, and what is there in each."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(key for key in found if key not in wanted)]:
            if key not in found or key not in wanted:
                return f"{path}.{key}", found.get(key, "nothing"), wanted.get(key, "nothing")
            if found[key] != wanted[key]:
                return first_difference(found[key], wanted[key], f"{path}.{key}")
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            if one != other:
                return first_difference(one, other, f"{path}[{index}]")
    return path, found, wanted


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"
