"""The file format of cassettes: reading, keys, and what to say about a request that is not there.

A cassette is a JSONL file (gzip when its name ends in ``.gz``):

    {"format": "dse-cassette-1", "source": ..., "model": ..., "params": {...}, "supports_tools": ..., ...}
    {"blob": "<id>", "value": {...}}       a message, or a list of tools, once
    {"key": "<key>", "messages": ["<id>", ...], "text": ..., "finish": "stop", "usage": [812, 95], ...}

A key is the hash of (canonical request, model, parameters, replicate, occurrence), a blob id the hash of its value.
Long prompts repeat in hundreds of requests and are stored once. Unknown fields, broken lines and oversized files are
refused. A line counts once its newline is on disk, so a recording can be killed at any time.
"""

from __future__ import annotations

import copy
import difflib
import gzip
import io
import json
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dse import files
from dse.canonical import canonical_json, parse_json, sha256_hex
from dse.errors import CassetteError, CassetteMiss, LimitExceeded, MalformedJSON
from dse.models.lm import Completion, Request, ToolCallPart, Usage, canonical_request

__all__ = [
    "HEADER_START",
    "MAX_BYTES",
    "Call",
    "Cassette",
    "Entry",
    "Header",
    "blob_id",
    "encode",
    "encode_blob",
    "is_gz",
    "read_bounded",
    "request_key",
    "write_whole",
]  # fmt: skip

HEADER_START = b'{"format":"dse-cassette-'
MAX_BYTES = 256 * 2**20
MAX_LINE_BYTES = 16 * 2**20  # JSON can take twenty times its length in memory
_ID = 16  # hex digits of a blob id; a clash is noticed on reading
_KEY = 32
_CHUNK = 2**20
_RERECORD = "Record it again, or restore the file."

BlobId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Header(_Line):
    """The first line: where the recording comes from, and how far its figures can be trusted."""

    format: Literal["dse-cassette-1"] = "dse-cassette-1"
    source: str
    model: str
    params: dict[str, Any] = {}
    supports_tools: bool
    recorded: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    dse_version: str
    usage: Literal["exact", "estimated"]
    latency: Literal["representative", "not representative"]
    requests: Literal["full", "hash"] = "full"
    notes: str = ""


class Call(_Line):
    id: str
    name: str
    arguments: dict[str, Any] | None = None
    raw: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Call:
        if (self.arguments is None) == (self.raw is None):
            raise ValueError("a call has either arguments or raw")
        return self


class Entry(_Line):
    """One recorded completion. With ``error`` the model refused the request for its length."""

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    messages: list[BlobId] = []
    tools: BlobId | None = None
    tool_choice: Literal["auto", "required"] | None = None
    replicate: Count = 0
    occurrence: Count = 0
    text: str | None = None
    calls: list[Call] = []
    finish: str = "stop"
    usage: Annotated[list[Count | None], Field(min_length=2, max_length=2)] = [None, None]
    usage_source: Literal["estimated"] | None = None
    cost_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    cost_source: Literal["exact", "estimated"] | None = None
    latency_s: Seconds = 0.0
    model: str | None = None
    error: str | None = None

    def completion(self, header: Header) -> Completion:
        """The completion, as it was; raises `LimitExceeded` where the model refused."""
        if self.error is not None:
            raise LimitExceeded(self.error, limit="context", model=header.model, recorded=True,
                                remedy="Use fewer rounds or shorter results, or a model with more room.")  # fmt: skip
        known = self.usage[0] is not None and self.usage[1] is not None
        estimated = header.usage == "estimated" or self.usage_source == "estimated"
        calls = tuple(ToolCallPart(c.id, c.name, copy.deepcopy(c.arguments), c.raw) for c in self.calls)
        cost_source: Any = "unknown"
        if self.cost_usd is not None:
            cost_source = "estimated" if estimated else self.cost_source or "estimated"
        return Completion(
            text=self.text, tool_calls=calls, finish_reason=self.finish,
            usage=Usage(self.usage[0], self.usage[1], ("estimated" if estimated else "exact") if known else "unknown"),
            cost_usd=self.cost_usd, cost_source=cost_source,
            latency_s=self.latency_s, model=self.model or header.model, recorded=True,
        )  # fmt: skip


class _Blob(_Line):
    blob: BlobId
    value: Any


def encode(line: Header | Entry) -> bytes:
    """One line of the file. Keys keep their order: a model's arguments come back as it wrote them."""
    data = line.model_dump(mode="json", exclude_defaults=isinstance(line, Entry))
    canonical_json(data)  # refuses what JSON cannot hold
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def encode_blob(blob: str, value: Any) -> bytes:
    return canonical_json({"blob": blob, "value": value}) + b"\n"


def blob_id(value: Any) -> str:
    return sha256_hex(canonical_json(value))[:_ID]


def request_key(request: Request, *, model: str, params: dict[str, Any], replicate: int = 0, occurrence: int = 0) -> str:
    """The key under which a completion is stored: 32 hex digits."""
    question = {"request": canonical_request(request), "model": model, "params": params,
                "replicate": replicate, "occurrence": occurrence}  # fmt: skip
    return sha256_hex(canonical_json(question))[:_KEY]


def is_gz(path: Path) -> bool:
    return path.name.endswith(".gz")


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The file's bytes, decompressed, but never more than `max_bytes`."""
    chunks: list[bytes] = []
    size = 0
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
            raise CassetteError("The cassette is no file", value=str(path), file=str(path), remedy="Name a file.")
        with gzip.open(path, "rb") if is_gz(path) else path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > max_bytes:
                    raise CassetteError(f"The cassette holds more than {max_bytes} bytes", value=str(path),
                                        file=str(path), remedy="Raise max_bytes if you trust the file.")  # fmt: skip
                chunks.append(chunk)
    except (OSError, EOFError, ValueError, zlib.error) as exc:  # BadGzipFile is an OSError, a NUL in the name a ValueError
        raise CassetteError(f"The cassette cannot be read: {exc}", value=str(path), file=str(path),
                            remedy="Check the path; a .gz name needs gzip content.") from exc  # fmt: skip
    return b"".join(chunks)


class Cassette:
    """A parsed recording: `header`, and entries by key. Read-only to its users."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.header = header
        self.entries: dict[str, Entry] = {}
        self.blobs: dict[str, Any] = {}

    @classmethod
    def open(cls, path: str | Path, *, max_bytes: int = MAX_BYTES) -> Cassette:
        """Read a whole cassette; `max_bytes` bounds its decompressed size.

        Raises:
            CassetteError: with ``details["line"]`` for a file that is broken in any way.
        """
        path = Path(path)
        cassette, kept = cls.parse(path, read_bounded(path, max_bytes))
        if cassette is None or kept is not None:
            raise CassetteError("The last line of the cassette is torn", value=str(path), file=str(path),
                                remedy="Open it once for recording, which drops the torn line.")  # fmt: skip
        return cassette

    @classmethod
    def parse(cls, path: Path, data: bytes) -> tuple[Cassette | None, int | None]:
        """The cassette of the complete lines, and the number of bytes they take where a torn line follows."""
        if not data:
            raise CassetteError("The cassette is empty", value=str(path), file=str(path), line=1, remedy=_RERECORD)
        cassette = None
        torn = 0
        for number, line in enumerate(io.BytesIO(data), 1):  # one at a time: most of a hostile file is never looked at
            if not line.endswith(b"\n"):
                torn = len(line)
                break
            if len(line) > MAX_LINE_BYTES:
                raise CassetteError(f"Line {number} of the cassette has more than {MAX_LINE_BYTES} bytes", value=str(path),
                                    file=str(path), line=number, remedy=_RERECORD)  # fmt: skip
            if cassette is None:
                cassette = cls(path, cls._line(path, 1, line[:-1], Header))
            else:
                cassette._add_line(number, line[:-1])
        return cassette, len(data) - torn if torn else None

    @staticmethod
    def _line(path: Path, number: int, line: bytes | dict[str, Any], kind: type[Any]) -> Any:
        try:
            data = parse_json(line, source=f"{path.name}, line {number}") if isinstance(line, bytes) else line
            return kind.model_validate(data)
        except MalformedJSON as exc:
            raise CassetteError(f"Line {number} of the cassette is not JSON: {exc.what}", value=str(path),
                                file=str(path), line=number, remedy=_RERECORD) from exc  # fmt: skip
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the line"
            raise CassetteError(f"Line {number} of the cassette, {where}: {first['msg']}", value=first.get("input"),
                                file=str(path), line=number, field=where, remedy=_RERECORD) from exc  # fmt: skip

    def _add_line(self, number: int, line: bytes) -> None:
        try:
            data = parse_json(line)
        except MalformedJSON:
            data = None
        if isinstance(data, dict) and "blob" in data:
            blob = self._line(self.path, number, data, _Blob)
            if blob_id(blob.value) != blob.blob:
                raise CassetteError(f"Line {number} of the cassette: the blob's id is not the hash of its value",
                                    value=blob.blob, file=str(self.path), line=number, remedy=_RERECORD)  # fmt: skip
            self.blobs[blob.blob] = blob.value
            return
        entry = self._line(self.path, number, data if isinstance(data, dict) else line, Entry)
        missing = next((b for b in (*entry.messages, entry.tools) if b is not None and b not in self.blobs), None)
        problem = None
        if missing is not None:
            problem = f"it refers to blob {missing}, which no line above holds"
        elif entry.key in self.entries:
            problem = f"its key {entry.key} was recorded before"
        elif (self.header.requests == "full") != bool(entry.messages):
            problem = "its messages do not fit the header's 'requests'"
        if problem:
            raise CassetteError(f"Line {number} of the cassette: {problem}", value=str(self.path),
                                file=str(self.path), line=number, remedy=_RERECORD)  # fmt: skip
        self.entries[entry.key] = entry

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def lookup(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def key(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> str:
        """The key of `request` asked of the recorded model."""
        return request_key(request, model=self.header.model, params=self.header.params,
                           replicate=replicate, occurrence=occurrence)  # fmt: skip

    def request(self, entry: Entry) -> Request | None:
        """The recorded request (treat it as read-only), or None where only hashes were kept."""
        if not entry.messages:
            return None
        request: Request = {
            "messages": [self.blobs[m] for m in entry.messages],
            "tools": [] if entry.tools is None else self.blobs[entry.tools],
        }
        if entry.tool_choice is not None:
            request["tool_choice"] = entry.tool_choice
        return request

    def verify(self) -> None:
        """Recompute every key from its stored request.

        Raises:
            CassetteError: for the first entry whose key is another's.
        """
        for entry in self:
            request = self.request(entry)
            if request is None:
                continue
            key = self.key(request, replicate=entry.replicate, occurrence=entry.occurrence)
            if key != entry.key:
                raise CassetteError("An entry's key is not that of its request", value=entry.key, file=str(self.path),
                                    expected=key, remedy=_RERECORD)  # fmt: skip

    def miss(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> CassetteMiss:
        """The error for a request that is not there, with the nearest one that is."""
        what, diff = self._explain(canonical_request(request), replicate, occurrence)
        return CassetteMiss(
            f"{self.path.name} has no answer of {self.header.model} to this request "
            f"(replicate {replicate}, occurrence {occurrence}): {what}{diff}",
            remedy="Record it: give record=FILE and a live model, or undo the change that altered the request.",
            file=str(self.path), model=self.header.model, replicate=replicate, occurrence=occurrence, diff=diff.strip(),
            key=self.key(request, replicate=replicate, occurrence=occurrence),
        )  # fmt: skip

    def _explain(self, request: Request, replicate: int, occurrence: int) -> tuple[str, str]:
        if not self.entries:
            return "it holds no entries", ""
        if self.header.requests == "hash":
            return f"it holds {len(self)} others, as hashes only, so the nearest cannot be shown", ""
        wanted = [blob_id(message) for message in request["messages"]]
        tools = blob_id(request["tools"]) if request["tools"] else None
        choice = request.get("tool_choice")
        same = [e for e in self if e.messages == wanted and e.tools == tools and e.tool_choice == choice]
        if same:
            found = ", ".join(f"({e.replicate}, {e.occurrence})" for e in same[:5])
            return f"the same request was recorded for other (replicate, occurrence): {found}", ""
        nearest = self._nearest(request, wanted, tools)
        if nearest.messages == wanted:
            what = "the messages are recorded, with other tools" if nearest.tools != tools else (
                "the messages are recorded, with another tool_choice")  # fmt: skip
            if nearest.tools == tools:
                return f"{what} ({nearest.tool_choice!r})", ""
            before = [] if nearest.tools is None else self.blobs[nearest.tools]
            return what, _diff(_render_tools(before), _render_tools(request["tools"]))
        start = _common(nearest.messages, wanted)
        before = [self.blobs[m] for m in nearest.messages[start:]]
        return (f"the nearest recorded request differs from message {start} on:",
                _diff(_render(before), _render(request["messages"][start:])))  # fmt: skip

    def _nearest(self, request: Request, wanted: list[str], tools: str | None) -> Entry:
        """Most leading messages in common first; among the best dozen the most similar rest."""
        ranked = sorted(
            self,
            key=lambda e: (-_common(e.messages, wanted), e.tools != tools, abs(len(e.messages) - len(wanted)), e.key),
        )[:12]
        best, best_score = ranked[0], -1.0
        for entry in ranked:
            start = _common(entry.messages, wanted)
            before = "\n".join(_render([self.blobs[m] for m in entry.messages[start:]]))[:4000]
            after = "\n".join(_render(request["messages"][start:]))[:4000]
            score = 10 * start + difflib.SequenceMatcher(None, before, after, autojunk=False).quick_ratio()
            if score > best_score:
                best, best_score = entry, score
        return best


def _common(left: list[str], right: list[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _folded(text: str, width: int = 120) -> Iterator[str]:
    """Short lines, so that a difference deep inside a long one is seen."""
    for line in text.splitlines():
        yield from (line[i : i + width] for i in range(0, max(len(line), 1), width))


def _render(messages: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for message in messages:
        if message.get("content") is not None:
            lines += [f"{message['role']}: {line}" for line in _folded(message["content"] or "(empty)")]
        for call in message.get("tool_calls", ()):
            given = call["raw"] if "raw" in call else canonical_json(call["arguments"]).decode()
            lines += _folded(f"{message['role']} calls {call['name']}({given}) as {call['id']}")
    return lines


def _render_tools(tools: list[dict[str, Any]]) -> list[str]:
    return [line for tool in tools for line in _folded(canonical_json(tool).decode())]


def _diff(before: list[str], after: list[str], limit: int = 24, width: int = 160) -> str:
    lines = list(difflib.unified_diff(before, after, "recorded", "asked", lineterm="", n=1))
    shown = [line if len(line) <= width else f"{line[:width]}…" for line in lines[:limit]]
    if len(lines) > limit:
        shown.append(f"… {len(lines) - limit} more lines")
    return "\n" + "\n".join(shown) if shown else ""


def write_whole(out: Path, data: bytes) -> None:
    """A finished recording, compressed where its name ends in ``.gz``; equal data give equal bytes. It appears in one step.

    Raises:
        CassetteError: it cannot be written; what was there before is still there.
    """
    if is_gz(out):
        buffer = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
            file.write(data)
        data = buffer.getvalue()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(out, [data], fsync=False)
    except OSError as exc:
        raise CassetteError(f"The recording cannot be written: {exc}", value=str(out)) from exc
