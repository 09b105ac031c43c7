"""Keys of a store: everything a run leaves there is authenticated, and encrypted if you want.

The authentication key comes from ``DSE_KEY`` (hex, or several separated by commas: the first signs, all verify), from
the file named by ``DSE_KEY_FILE``, or from ``STORE.key`` beside an SQLite store, which is made when first needed.
Encryption at rest needs ``pip install 'dse-compiler[encryption]'`` and a Fernet key in ``DSE_ENCRYPTION_KEY`` (several
separated by commas: the first encrypts, all decrypt).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dse.errors import JournalTampered, StoreError
from dse.files import write_whole

__all__ = ["Keys", "Signer", "rotate", "write_private"]

_LEAST_BYTES = 16
_TOKEN = re.compile(rb"gAAAA[\w-]{93,}={0,2}", re.ASCII)  # of Fernet: version, time, vector, a block or more, HMAC
_LIKE_A_TOKEN = re.compile(rb"-*gAAAA")  # text in clear that begins like this is kept with a further "-" before it


class Keys:
    """A ring of authentication keys, and a cipher or none.

    Args:
        ring: keys, at least 16 bytes each; the first signs, all verify.
        encryption: Fernet keys; the first encrypts, all decrypt.

    Raises:
        StoreError: no key, a short one, or the library for encryption is missing.
    """

    def __init__(self, ring: Iterable[bytes], encryption: Iterable[str | bytes] = ()) -> None:
        keys = list(ring)
        if not keys or any(len(key) < _LEAST_BYTES for key in keys):
            raise StoreError("A store needs a key of at least 16 bytes", remedy="Give one as 32 or more hex digits.")
        self._ring = {key_id(key): key for key in keys}
        self.current = key_id(keys[0])
        self._begun: dict[str, Signer] = {}  # by key id
        self._file: Path | None = None
        self._cipher = _cipher(list(encryption))

    @classmethod
    def find(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> Keys:
        """The keys of a store.

        Args:
            file: where its own key lies, made when it is missing; None for a store without a place of its own.

        Raises:
            StoreError: there is none, or others can read it.
        """
        encryption = [part.strip() for part in environment.get("DSE_ENCRYPTION_KEY", "").split(",") if part.strip()]
        if given := environment.get("DSE_KEY"):
            return cls((_bytes(part, "DSE_KEY") for part in given.split(",")), encryption)
        named = environment.get("DSE_KEY_FILE")
        path = Path(named) if named else file
        if path is None:
            raise StoreError("This store has no key", remedy="Set DSE_KEY or DSE_KEY_FILE (`openssl rand -hex 32`).")
        if not path.exists():
            if named:
                raise StoreError("The key file is missing", value=named, remedy="Correct DSE_KEY_FILE.")
            _make(path)
        keys = cls(_read(path), encryption)
        keys._file = path
        return keys

    # --- authentication

    def mac(self, *parts: str | bytes | int | None) -> str:
        """Keyed digest (HMAC-SHA-256, hex) of parts, with the current key; borders and kinds count."""
        return self._begun_with(self.current).mac(*parts)

    def signer(self, *parts: str | bytes | int | None) -> Signer:
        """Gives what `mac` does of texts that begin with these parts."""
        return self._begun_with(self.current).after(*parts)

    def _begun_with(self, key: str) -> Signer:
        if key not in self._begun:
            self._begun[key] = Signer(hmac.new(self._ring[key], digestmod=hashlib.sha256))
        return self._begun[key]

    def verify(self, mac: Any, *parts: str | bytes | int | None, key: Any, what: str) -> None:
        """
        Args:
            mac, key: as they were found, whatever they are; a database may hold anything.

        Raises:
            JournalTampered: these parts were not signed with that key, or the key is not here.
        """
        if isinstance(key, str) and key not in self._ring and self._file is not None:
            for one in _read(self._file):  # another process may have put a new key in front
                self._ring.setdefault(key_id(one), one)
        if isinstance(key, str) and key not in self._ring:
            raise JournalTampered(f"{what} was written with a key that is not here", value=key,
                                  remedy="Add that key to DSE_KEY, or to the key file.")  # fmt: skip
        signed = isinstance(mac, str) and mac.isascii() and isinstance(key, str)
        if not signed or not hmac.compare_digest(self._begun_with(key).mac(*parts), mac):
            raise JournalTampered(f"{what} was changed, moved, or written with another key", value=key,
                                  remedy="Do not use it; look for who can write to the store.")  # fmt: skip

    # --- encryption

    def seal(self, text: str) -> str:
        if self._cipher is not None:
            return self._cipher.encrypt(text.encode()).decode()  # type: ignore[no-any-return]
        return f"-{text}" if _LIKE_A_TOKEN.match(text.encode()) else text

    def seal_bytes(self, data: bytes) -> bytes:
        return self._cipher.encrypt(data) if self._cipher is not None else data

    def open(self, text: str) -> str:
        return self.open_bytes(text.encode()).decode()

    def open_bytes(self, data: bytes) -> bytes:
        """
        Raises:
            StoreError: encrypted, and the key for it is not here.
        """
        if not _TOKEN.fullmatch(data):
            return data[1:] if data.startswith(b"-") and _LIKE_A_TOKEN.match(data) else data
        if self._cipher is None:
            raise StoreError("This store is encrypted", remedy="Set DSE_ENCRYPTION_KEY.")
        from cryptography.fernet import InvalidToken

        try:
            return self._cipher.decrypt(data)  # type: ignore[no-any-return]
        except InvalidToken:
            raise StoreError("An entry of the store cannot be decrypted",
                             remedy="Set DSE_ENCRYPTION_KEY to the key it was written with.") from None  # fmt: skip


def rotate(path: str | Path) -> str:
    """Put a new key in front of a key file; what the old ones signed stays valid. Gives the new key's id.

    Processes that have the store open learn to verify with it when they meet it, and sign with it from their next start.
    """
    place = Path(path)
    old = place.read_text(encoding="ascii") if place.exists() else ""
    fresh = secrets.token_hex(32)
    write_private(place, f"{fresh}\n{old}", replace=True)
    return key_id(bytes.fromhex(fresh))


class Signer:
    """An HMAC-SHA-256 that has begun. Going on with a copy costs a fraction of beginning with the key."""

    def __init__(self, begun: hmac.HMAC) -> None:
        self._begun = begun

    def after(self, *parts: str | bytes | int | None) -> Signer:
        """The same, gone on with these parts."""
        further = self._begun.copy()
        further.update(_framed(parts))
        return Signer(further)

    def mac(self, *parts: str | bytes | int | None) -> str:
        """Hex digest of all parts so far and these."""
        return self.after(*parts)._begun.hexdigest()


def _framed(parts: Iterable[str | bytes | int | None]) -> bytes:
    """Parts with their kinds and lengths."""
    framed: list[bytes] = []
    for part in parts:
        if isinstance(part, str):
            data = part.encode()
            framed += (b"t%d:" % len(data), data)
        elif isinstance(part, bytes):
            framed += (b"b%d:" % len(part), part)
        else:
            data = repr(part).encode()
            framed += (b"v%d:" % len(data), data)
    return b"".join(framed)


def key_id(key: bytes) -> str:
    """A short public name of a key."""
    return hashlib.sha256(b"dse key id" + key).hexdigest()[:12]


def _bytes(text: str, where: str) -> bytes:
    try:
        return bytes.fromhex(text.strip())
    except ValueError:
        raise StoreError("A key is not hexadecimal", value=where, remedy="`openssl rand -hex 32` makes one.") from None


def _read(path: Path) -> list[bytes]:
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise StoreError("Others can read the key of the store", value=str(path), remedy=f"chmod 600 {path}")
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as exc:
        raise StoreError("The key file cannot be read", value=str(path), remedy=str(exc)) from None
    return [_bytes(line, str(path)) for line in lines]


def _make(path: Path) -> None:
    try:
        write_private(path, secrets.token_hex(32) + "\n", replace=False)
    except FileExistsError:
        pass  # another process was faster: its key is the key
    except OSError as exc:
        raise StoreError("The key of the store cannot be made", value=str(path), remedy=str(exc)) from exc


def write_private(path: Path, text: str, *, replace: bool) -> None:
    """A file with this text: all of it or nothing, and never readable by others.

    Raises:
        FileExistsError: there is one, and it is not to be replaced. OSError: it cannot be written.
    """
    write_whole(path, [text.encode("ascii")], fsync=True, mode=0o600, replace=replace)


def _cipher(keys: list[str | bytes]) -> Any:
    if not keys:
        return None
    try:
        from cryptography.fernet import Fernet, MultiFernet
    except ImportError:
        raise StoreError("Encryption needs a library that is not installed",
                         remedy="pip install 'dse-compiler[encryption]'") from None  # fmt: skip
    try:
        return MultiFernet([Fernet(key) for key in keys])
    except ValueError as exc:
        raise StoreError("An encryption key is not a Fernet key", remedy=str(exc)) from None
