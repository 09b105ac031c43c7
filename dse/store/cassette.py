"""Cassettes: recorded completions that replay exactly.

`RecordModel` writes one while it asks a live model, `ReplayModel` answers from one without any model, `compact` makes
a finished recording small. The file itself is described in `dse.store.cassette_format`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import datetime
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from pydantic import ValidationError

from dse.canonical import canonical_json, parse_json
from dse.errors import CassetteError, DseError, LimitExceeded, Unserialisable
from dse.models.lm import Completion, LanguageModel, Request, canonical_request
from dse.store.cassette_format import (
    HEADER_START,
    MAX_BYTES,
    Call,
    Cassette,
    Entry,
    Header,
    blob_id,
    encode,
    encode_blob,
    is_gz,
    read_bounded,
    request_key,
    write_whole,
)

_Flight: TypeAlias = "concurrent.futures.Future[Exception | None]"  # a question under way; what it failed with

__all__ = ["Cassette", "Entry", "Header", "RecordModel", "ReplayModel", "compact", "request_key"]


class ReplayModel:
    """A recorded model: exact, in any order, any number of times, from any thread. Nothing is waited for.

    Raises:
        CassetteMiss: for a request that was not recorded.
        LimitExceeded: where the recorded model refused the request for its length.
    """

    def __init__(self, cassette: Cassette) -> None:
        self.cassette = cassette
        self.name = cassette.header.model
        self.params: dict[str, Any] = dict(cassette.header.params)
        self.supports_tools = cassette.header.supports_tools

    async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        entry = self.cassette.lookup(self.cassette.key(request, replicate=replicate, occurrence=occurrence))
        if entry is None:
            raise self.cassette.miss(request, replicate=replicate, occurrence=occurrence)
        return entry.completion(self.cassette.header)

    async def aclose(self) -> None:
        """Nothing to close."""


def _version() -> str:
    from dse import __version__

    return __version__


def _lock(file: BinaryIO, path: Path) -> None:
    """Hold the file for this recorder alone until it is closed (where the platform has file locks)."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        raise CassetteError("The cassette is being recorded by somebody else", value=str(path), file=str(path),
                            remedy="Wait for the other recording, or record to another file.") from exc  # fmt: skip


class RecordModel:
    """Answers from the cassette at `path` what it holds, asks `inner` for the rest and records that.

    The same question asked twice at the same time is asked of `inner` once. What the first caller gets is what a
    replay will give (``recorded`` apart). Every answer is on disk, in one write, before it is returned; with `fsync`
    it survives a power cut as well.

    Args:
        inner: the model; its name, params and supports_tools must be those of an existing file.
        path: a ``.jsonl`` file (compact it to ``.gz`` afterwards); made if missing. One recorder at a time.
        source: where the answers come from, e.g. "recorded from a large language model".
        usage: ``estimated`` marks every token count as such.
        latency: whether the recorded times say anything about the model.
        requests: ``full`` keeps the requests (needed to explain a miss), ``hash`` only their keys.
        recorded: the day, ``YYYY-MM-DD``; today by default.

    `source`, `usage`, `latency`, `requests`, `notes` and `recorded` describe a new file; an existing one keeps its own.

    Raises:
        CassetteError: for a file that cannot be continued.
    """

    def __init__(
        self, inner: LanguageModel, path: str | Path, *, source: str | None = None,
        usage: Literal["exact", "estimated"] = "exact",
        latency: Literal["representative", "not representative"] = "representative",
        requests: Literal["full", "hash"] = "full", notes: str = "", recorded: str | None = None,
        fsync: bool = False, max_bytes: int = MAX_BYTES,
    ) -> None:  # fmt: skip
        self.inner = inner
        self.name = inner.name
        self.params = inner.params
        self.supports_tools = inner.supports_tools
        self._path = Path(path)
        self._fsync = fsync
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        if is_gz(self._path):
            raise CassetteError("A recording cannot be appended to a compressed file", value=str(path),
                                remedy="Record to a .jsonl file; compact() turns one into the other.")  # fmt: skip
        try:
            header = Header(
                source=source or f"recorded from {inner.name}", model=inner.name, params=inner.params,
                supports_tools=inner.supports_tools, usage=usage, latency=latency, requests=requests, notes=notes,
                recorded=recorded or datetime.date.today().isoformat(), dse_version=_version(),
            )  # fmt: skip
        except ValidationError as exc:
            raise CassetteError(f"The header of a new recording is not valid: {exc.errors()[0]['msg']}",
                                value=exc.errors()[0].get("input")) from exc  # fmt: skip
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+b", buffering=0)
        except (OSError, ValueError) as exc:
            raise CassetteError(f"The cassette cannot be written: {exc}", value=str(path)) from exc
        self._file: BinaryIO = file
        try:
            _lock(self._file, self._path)
            self.cassette = self._continue(header, max_bytes)
        except BaseException:
            file.close()
            raise

    def _continue(self, header: Header, max_bytes: int) -> Cassette:
        data = read_bounded(self._path, max_bytes)
        cassette, kept = Cassette.parse(self._path, data) if data else (None, None)
        if cassette is not None:
            for field in ("model", "params", "supports_tools"):
                found, here = getattr(cassette.header, field), getattr(header, field)
                if canonical_json(found) != canonical_json(here):
                    raise CassetteError(f"The cassette was recorded with another {field}", value=found, asked=here,
                                        file=str(self._path), remedy="Record to another file.")  # fmt: skip
        elif data and not (data.startswith(HEADER_START) or HEADER_START.startswith(data)):
            raise CassetteError("The file to record to is no cassette", value=str(self._path),
                                file=str(self._path), remedy="Record to another file.")  # fmt: skip
        if kept is not None:  # a line without its newline was never acknowledged
            self._file.truncate(kept)
        if cassette is None:
            self._write(encode(header))
            return Cassette(self._path, header)
        return cassette

    async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        cassette = self.cassette
        key = cassette.key(request, replicate=replicate, occurrence=occurrence)
        while True:
            with self._lock:  # callers may be in several threads, each with its own event loop
                entry, flight = cassette.lookup(key), self._flights.get(key)
                if entry is None and flight is None:
                    mine = self._flights[key] = concurrent.futures.Future()
            if entry is not None:
                return entry.completion(cassette.header)
            if flight is None:
                return await self._ask(mine, key, request, replicate, occurrence)
            error = await asyncio.shield(asyncio.wrap_future(flight))
            if error is not None:
                # A copy, because one exception object must not be raised in two tasks.
                raise copy.copy(error) if isinstance(error, DseError) else error
            # Recorded now; or the one who asked was cancelled, and somebody else has to ask.

    async def _ask(self, flight: _Flight, key: str, request: Request, replicate: int, occurrence: int) -> Completion:
        failure: Exception | None = None
        try:
            if self._file.closed:  # an answer that cannot be kept must not be paid for
                raise CassetteError("The recording is closed", value=str(self._path), remedy="Make a new RecordModel.")
            refusal: LimitExceeded | None = None
            completion: Completion | None = None
            try:
                completion = await self.inner.complete(request, replicate=replicate, occurrence=occurrence)
            except LimitExceeded as exc:  # the same request would be refused again: that is an answer
                if exc.details.get("limit") != "context":
                    raise
                refusal = exc
            entry = self._store(key, request, replicate, occurrence, completion, refusal)
        except Exception as exc:
            failure = exc
            raise
        finally:
            with self._lock:
                del self._flights[key]
            flight.set_result(failure)
        if refusal is not None:
            raise refusal
        stored = entry.completion(self.cassette.header)
        object.__setattr__(stored, "recorded", False)
        return stored

    def _store(
        self, key: str, request: Request, replicate: int, occurrence: int,
        completion: Completion | None, refusal: LimitExceeded | None,
    ) -> Entry:  # fmt: skip
        cassette = self.cassette
        request = canonical_request(request)
        blobs: dict[str, Any] = {}
        fields: dict[str, Any] = {"key": key, "replicate": replicate, "occurrence": occurrence}
        if cassette.header.requests == "full":
            fields["messages"] = [blob_id(message) for message in request["messages"]]
            blobs.update(zip(fields["messages"], request["messages"], strict=True))
            if request["tools"]:
                fields["tools"] = blob_id(request["tools"])
                blobs[fields["tools"]] = request["tools"]
            fields["tool_choice"] = request.get("tool_choice")
        if completion is None:
            fields["error"] = refusal.what if refusal is not None else ""
        else:
            fields |= _answer_fields(completion, cassette.header)
        try:
            entry = Entry(**fields)
            line = encode(entry)
        except (ValidationError, Unserialisable) as exc:
            raise CassetteError(f"An answer of {self.name} cannot be recorded: {exc}", value=key,
                                remedy="Correct the model's Completion.") from exc  # fmt: skip
        with self._lock:
            new = {b: value for b, value in blobs.items() if b not in cassette.blobs}
            self._write(b"".join(encode_blob(b, value) for b, value in new.items()) + line)
            # Parsed back, so that the caller's lists cannot change what is stored.
            cassette.blobs |= {b: parse_json(canonical_json(value)) for b, value in new.items()}
            cassette.entries[key] = entry
        return entry

    def _write(self, data: bytes) -> None:
        start = self._file.seek(0, os.SEEK_END)
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
            if self._fsync:
                os.fsync(self._file.fileno())
        except OSError as exc:  # a full disk must not leave half a line in the middle of the file
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise CassetteError(f"The cassette cannot be written: {exc}", value=str(self._path)) from exc

    async def aclose(self) -> None:
        """Close the file and the inner model."""
        self._file.close()
        await self.inner.aclose()


def _answer_fields(completion: Completion, header: Header) -> dict[str, Any]:
    usage = completion.usage
    counted = usage.source != "unknown"
    source = "estimated" if usage.source == "estimated" and header.usage == "exact" else None
    priced = completion.cost_usd is not None and completion.cost_source != "unknown"
    return {
        "text": completion.text,
        "calls": [
            Call(id=c.id, name=c.name, arguments=copy.deepcopy(c.arguments), raw=c.raw if c.arguments is None else None)
            for c in completion.tool_calls
        ],
        "finish": completion.finish_reason,
        "usage": [usage.input_tokens, usage.output_tokens] if counted else [None, None],
        "usage_source": source,
        "cost_usd": float(completion.cost_usd) if priced else None,  # type: ignore[arg-type]
        "cost_source": completion.cost_source if priced else None,
        "latency_s": round(float(completion.latency_s), 6),
        "model": completion.model if completion.model not in ("", header.model) else None,
    }


def compact(path_in: str | Path, path_out: str | Path, *, max_bytes: int = MAX_BYTES) -> Cassette:
    """Rewrite a finished recording sorted and without what nothing refers to; gzip when `path_out` ends in ``.gz``.

    The same entries give the same bytes, in whatever order they were recorded. Requests that share their beginning
    lie together, which is what makes the file small. A plain `path_out` turns a compressed cassette back into one
    that can be recorded to. The file appears in one step.

    Returns:
        The cassette as written.
    """
    cassette = Cassette.open(path_in, max_bytes=max_bytes)
    cassette.verify()
    out = Path(path_out)
    lines = [encode(cassette.header)]
    written: set[str] = set()
    for entry in sorted(cassette, key=lambda e: (e.messages, e.replicate, e.occurrence, e.key)):
        for blob in (*entry.messages, entry.tools):
            if blob is not None and blob not in written:
                written.add(blob)
                lines.append(encode_blob(blob, cassette.blobs[blob]))
        lines.append(encode(entry))
    write_whole(out, b"".join(lines))
    return Cassette.open(out, max_bytes=max_bytes)
