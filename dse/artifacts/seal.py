"""Seals: a keyed signature that says who wrote an artifact, beyond the digests that say it is whole.

The MAC (HMAC-SHA256) covers ``artifact_id`` and the envelope's digest, and through them every byte of content
and envelope. An unsealed artifact is checked for integrity and not trusted: whoever can write the file can
also recompute its digests.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dse.errors import ArtifactError, ArtifactTampered, Refused

if TYPE_CHECKING:
    from dse.artifacts.artifact import Artifact

__all__ = ["KEY_VARIABLE", "Seal", "key_id", "load_key", "make_seal", "seal", "verify_seal"]

KEY_VARIABLE = "DSE_ARTIFACT_KEY"
MIN_KEY_BYTES = 32
_MAX_KEY_BYTES = 65_536
_HEX = re.compile(rb"\s*[0-9a-fA-F]+\s*")
_DOMAIN = b"dse-artifact-seal-1\n"  # so that a MAC made here never fits another use of the same key


class Seal(BaseModel):
    """A signature as data.

    Attributes:
        algorithm: always HMAC-SHA256.
        key_id: tells keys apart without telling the key.
        mac: of artifact id and envelope digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: Literal["hmac-sha256"]
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    mac: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def load_key(path: str | Path | None = None) -> bytes | None:
    """The signing key from a file, or from the environment variable ``DSE_ARTIFACT_KEY``.

    Either holds hex digits (white space around them is ignored) or, with any other character, the key itself
    byte for byte.

    Returns:
        At least 32 bytes, or None when `path` is None and the variable is unset or empty.

    Raises:
        ArtifactError: the file cannot be read, or the key is too short or too long.
    """
    if path is None:
        text = os.environ.get(KEY_VARIABLE, "")
        return _key(os.fsencode(text), KEY_VARIABLE) if text else None
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_KEY_BYTES + 1)
    except OSError as exc:
        raise ArtifactError("The key file cannot be read", value=f"{path}: {exc.strerror}",
                            remedy="Give the path of a file that holds the key.") from None  # fmt: skip
    return _key(data, str(path))


def _key(data: bytes, source: str) -> bytes:
    is_hex = _HEX.fullmatch(data) is not None
    digits = data.strip()
    if is_hex and len(digits) % 2:
        raise ArtifactError(f"The key in {source} has an odd number of hex digits", value=f"{len(digits)} digits",
                            remedy="Make one with: openssl rand -hex 32.")  # fmt: skip
    return _checked(bytes.fromhex(digits.decode()) if is_hex else data, source)


def _checked(key: bytes, source: str = "the key given") -> bytes:
    if not MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
        raise ArtifactError(f"A signing key has {MIN_KEY_BYTES} to {_MAX_KEY_BYTES} bytes",
                            value=f"{len(key)} bytes in {source}",
                            remedy="Make one with: openssl rand -hex 32.")  # fmt: skip
    return key


def key_id(key: bytes) -> str:
    """16 hex digits that name `key`."""
    return hmac.new(_checked(key), b"dse-artifact-key-id", hashlib.sha256).hexdigest()[:16]


def _mac(artifact_id: str, envelope_digest: str, key: bytes) -> str:
    text = _DOMAIN + artifact_id.encode() + b"\n" + envelope_digest.encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def make_seal(artifact_id: str, envelope_digest: str, key: bytes) -> Seal:
    """The seal of one artifact in one envelope.

    Raises:
        ArtifactError: the key is too short or too long.
    """
    return Seal(algorithm="hmac-sha256", key_id=key_id(key), mac=_mac(artifact_id, envelope_digest, key))


def seal(artifact: Artifact, key: bytes) -> Artifact:
    """`artifact` with its envelope signed; content and ids stay as they are.

    Raises:
        ArtifactError: the key is too short or too long.
        ArtifactTampered: the artifact is not whole; nothing is signed unread.
    """
    artifact.check_integrity()
    made = make_seal(artifact.artifact_id, artifact.envelope.digest, key)
    return artifact.model_copy(update={"envelope": artifact.envelope.model_copy(update={"signature": made})})


def verify_seal(artifact: Artifact, key: bytes | None, *, required: bool = False) -> bool:
    """Whether `artifact` carries a seal made with `key`. The digests themselves are checked by the loader.

    Returns:
        True for a good seal; False where there is no seal, or no key to check it with, and none is required.

    Raises:
        Refused: a seal is required and there is none, or no key to check it with.
        ArtifactError: it was sealed with another key, or the key is too short or too long.
        ArtifactTampered: the seal fits neither this content nor this envelope.
    """
    found = artifact.envelope.signature
    if found is None:
        if required:
            raise Refused("The artifact is not signed, and a signature is required", value=artifact.artifact_id,
                          remedy="Use a signed artifact, or sign this one after a review.")  # fmt: skip
        return False
    if key is None:
        if required:
            raise Refused("There is no key to check the artifact's signature with", value=artifact.artifact_id,
                          remedy=f"Set {KEY_VARIABLE} or name a key file.")  # fmt: skip
        return False
    if found.key_id != key_id(key):
        raise ArtifactError("The artifact was signed with another key", value=f"key {found.key_id}",
                            remedy=f"Use the key it was signed with; the one at hand is {key_id(key)}.")  # fmt: skip
    if not hmac.compare_digest(found.mac, _mac(artifact.artifact_id, artifact.envelope.digest, key)):
        raise ArtifactTampered("The artifact's signature does not fit its content and envelope",
                               value=artifact.artifact_id,
                               remedy="Get the artifact again from where it was signed.")  # fmt: skip
    return True
