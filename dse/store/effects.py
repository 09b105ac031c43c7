"""The cassette of tool calls: what tools gave, by (tool, canonical arguments, state), as JSON lines.

    {"format": "dse-effects-1", "source": ..., "recorded": "2026-11-23", "environment": {"name", "revision"}, ...}
    {"tool": "get_stock", "interface": "sha256:...", "effect": "read"}        once, before its first call
    {"key": "<key>", "tool": "get_stock", "arguments": {...}, "state": "<token>", "outcome": {"kind": "value", "value": 7}}
    {"end": "<token>", "value": {...}}                                        the end state of a world
    {"decision": "<key>", "tool": ..., "granted": true, "reason": ""}         about a call that needed approval

A token stands for the state of a world: where it started, and every write since. Sensitive arguments are not stored;
only the key, a hash, knows them. A line counts once its newline is on disk, so a recording can be killed at any time.
Unknown fields, broken lines, keys that are not those of their call and oversized files are refused. Keys of a result
keep their order: a model sees them in it.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import io
import json
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dse.canonical import canonical_json, digest, parse_json, sha256_hex
from dse.errors import CassetteError, CassetteMiss, ContractMismatch, MalformedJSON, StoreUnavailable, Unserialisable
from dse.redaction import redact
from dse.store.cassette_format import MAX_BYTES, MAX_LINE_BYTES, is_gz, read_bounded, write_whole

__all__ = ["EffectCassette", "Outcome", "compact_effects", "effect_key", "next_token", "start_token"]

_RERECORD = "Record it again, or restore the file."
_HEADER_START = b'{"format":"dse-effects-'

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Token = Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")]


def _id(*parts: Any) -> str:
    return sha256_hex(canonical_json(list(parts)))[:32]


def start_token(state: Any) -> str:
    """The state of a world that was made from `state` (plain JSON data)."""
    return _id("start", state)


def effect_key(tool: str, arguments: Mapping[str, Any], token: str) -> str:
    """The key of one call: 32 hex digits. `token` is empty for a pure tool, which knows no state."""
    return _id("call", tool, dict(arguments), token)


def next_token(key: str, outcome: Outcome | None) -> str:
    """The state after a write; with no outcome, after one that was cut off."""
    return _id("after", key, None if outcome is None else outcome.model_dump())


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Environment(_Line):
    name: str
    revision: str


class Header(_Line):
    """The first line: where the recording comes from."""

    format: Literal["dse-effects-1"] = "dse-effects-1"
    source: str
    recorded: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    dse_version: str
    environment: _Environment
    notes: str = ""


class Outcome(_Line):
    """What became of a call.

    ``fault`` is one that the tool raised on purpose, by its code; with `done` the tool had taken effect and its result
    did not fit the contract. ``raised`` is any other exception: its class in `code`, its text in `what`.
    """

    kind: Literal["value", "fault", "raised", "timeout"]
    value: Any = None
    code: str = ""
    what: str = ""
    remedy: str = ""
    done: bool = False


class _Tool(_Line):
    tool: str
    interface: str
    effect: Literal["pure", "read", "write"]


class Entry(_Line):
    key: Id
    tool: str
    arguments: dict[str, Any]
    redacted: bool = False
    state: Token
    outcome: Outcome


class _End(_Line):
    end: Id
    value: Any


class _Decision(_Line):
    decision: Id
    tool: str
    granted: bool
    reason: str = ""


_KINDS: dict[str, type[_Line]] = {"key": Entry, "interface": _Tool, "end": _End, "decision": _Decision}


def _encode(line: _Line) -> bytes:
    data = line.model_dump(exclude_defaults=not isinstance(line, Header))
    canonical_json(data)  # refuses what JSON cannot hold
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"


class EffectCassette:
    """A recording of tool calls: read from `path`, and appended to once `record` has been called."""

    def __init__(self, path: str | Path, header: Header | None = None) -> None:
        self.path = Path(path)
        self.header = header
        self.tools: dict[str, _Tool] = {}
        self.entries: dict[str, Entry] = {}
        self.ends: dict[str, _End] = {}
        self.decisions: dict[str, _Decision] = {}
        self._file: int | None = None
        self._lock = threading.Lock()

    # --- reading

    @classmethod
    def open(cls, path: str | Path, *, max_bytes: int = MAX_BYTES) -> EffectCassette:
        """Read a whole recording; `max_bytes` bounds its decompressed size.

        Raises:
            CassetteError: with ``details["line"]`` for a file that is broken in any way.
        """
        made = cls(path)
        if made._parse(read_bounded(made.path, max_bytes)):
            raise CassetteError("The last line of the recording is torn", value=str(path), file=str(path),
                                remedy="Open it once for recording, which drops the torn line.")  # fmt: skip
        return made

    def _parse(self, data: bytes) -> int:
        """Take in the complete lines; gives the number of bytes of a torn one after them."""
        if not data:
            raise CassetteError("The recording is empty", value=str(self.path), file=str(self.path), line=1, remedy=_RERECORD)
        for number, line in enumerate(io.BytesIO(data), 1):
            if not line.endswith(b"\n"):
                if self.header is None and not (line.startswith(_HEADER_START) or _HEADER_START.startswith(line)):
                    raise self._broken(number, "it is no recording of tool calls")
                return len(line)
            if len(line) > MAX_LINE_BYTES:
                raise self._broken(number, f"it has more than {MAX_LINE_BYTES} bytes")
            self._take(number, line[:-1])
        return 0

    def _broken(self, number: int, problem: str, **details: Any) -> CassetteError:
        return CassetteError(f"Line {number} of the recording: {problem}", value=str(self.path), file=str(self.path),
                             line=number, remedy=_RERECORD, **details)  # fmt: skip

    def _take(self, number: int, line: bytes) -> None:
        try:
            data = parse_json(line, source="the line")
            known = next((kind for name, kind in _KINDS.items() if isinstance(data, dict) and name in data), None)
            if number > 1 and known is None:
                raise self._broken(number, "it is neither a call nor a tool, an end state or a decision")
            parsed = (Header if number == 1 else known or Entry).model_validate(data)
        except MalformedJSON as exc:
            raise self._broken(number, f"not JSON: {exc.what}") from exc
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the line"
            raise self._broken(number, f"{where}: {first['msg']}", field=where) from exc
        if isinstance(parsed, Header):
            self.header = parsed
        elif problem := self._misplaced(parsed) or self._keep(parsed):
            raise self._broken(number, problem)

    def _misplaced(self, line: _Line) -> str | None:
        if not isinstance(line, Entry):
            return None
        tool = self.tools.get(line.tool)
        if tool is None:
            return f"no line above says what {line.tool!r} is"
        if (line.state == "") != (tool.effect == "pure"):
            return "only a pure tool knows no state"
        if not line.redacted and effect_key(line.tool, line.arguments, line.state) != line.key:
            return "its key is not that of its call"
        return None

    def _keep(self, line: _Line) -> str | None:
        """Take one line in; gives what is wrong with it where the same was there before."""
        kept, key = self._place(line)
        if key in kept:
            return f"{key} was recorded before"
        kept[key] = line
        return None

    def _place(self, line: Any) -> tuple[dict[str, Any], str]:
        if isinstance(line, Entry):
            return self.entries, line.key
        if isinstance(line, _Tool):
            return self.tools, line.tool
        return (self.ends, line.end) if isinstance(line, _End) else (self.decisions, line.decision)

    def lines(self) -> list[bytes]:
        """All lines in an order that does not depend on the order of recording."""
        parts: Iterable[Mapping[str, _Line]] = (self.tools, self.entries, self.ends, self.decisions)
        header = [] if self.header is None else [_encode(self.header)]
        return header + [_encode(part[name]) for part in parts for name in sorted(part)]

    @property
    def content_id(self) -> str:
        """Changes exactly when what it answers, or says of itself, changes."""
        return digest([line.decode() for line in self.lines()])

    # --- answers

    def check(self, contracts: Mapping[str, Any]) -> None:
        """Refuse tools that changed since they were recorded.

        Raises:
            ContractMismatch
        """
        for name, known in self.tools.items():
            if name in contracts and contracts[name].interface_id != known.interface:
                raise ContractMismatch("A tool's interface changed since its calls were recorded", value=name,
                                       remedy=f"Record {self.path.name} again, or undo the change.")  # fmt: skip

    def miss(self, contract: Any, arguments: Mapping[str, Any], token: str) -> CassetteMiss:
        """The error for a call that is not there, with the nearest that is; sensitive arguments are not shown."""
        tool, asked = contract.name, redact(dict(arguments), contract.sensitive)
        same = [e for e in self.entries.values() if e.tool == tool]
        if tool not in self.tools:
            why = "no call of this tool was recorded"
        elif equal := [e for e in same if e.arguments == asked and not e.redacted]:
            why = f"the same call was recorded in {len(equal)} other states of a world, never after what happened before here"
        else:
            def text(value: Any) -> str:
                return canonical_json(value).decode()

            near = difflib.get_close_matches(text(asked), sorted({text(e.arguments) for e in same})[:2_000], n=1, cutoff=0.0)
            why = f"the nearest recorded arguments are {near[0][:300]}" if near else "nothing like it was recorded"
        return CassetteMiss(f"{self.path.name} has no answer of {tool} to this call: {why}", value=canonical_json(asked).decode(),
                            remedy='Record it with mode="record" and the environment, or undo the change that altered the call.',
                            tool=tool, state=token, file=str(self.path))  # fmt: skip

    # --- recording

    def record(self, environment: tuple[str, str], *, source: str, notes: str = "", recorded: str | None = None,
               max_bytes: int = MAX_BYTES) -> None:  # fmt: skip
        """Open the file to append to it; made if missing, a torn last line is dropped. One recorder at a time.

        Args:
            environment: name and revision of what is recorded; those of an existing file must be the same.

        Raises:
            CassetteError: for a file that cannot be continued.
        """
        from dse import __version__

        if is_gz(self.path):
            raise CassetteError("A recording cannot be appended to a compressed file", value=str(self.path),
                                remedy="Record to a .jsonl file; compact_effects() turns one into the other.")  # fmt: skip
        try:
            header = Header(source=source, notes=notes, recorded=recorded or datetime.date.today().isoformat(),
                            dse_version=__version__, environment=_Environment(name=environment[0], revision=environment[1]))  # fmt: skip
        except ValidationError as exc:
            raise CassetteError(f"The header of a new recording is not valid: {exc.errors()[0]['msg']}",
                                value=exc.errors()[0].get("input")) from exc  # fmt: skip
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except (OSError, ValueError) as exc:
            raise CassetteError(f"The recording cannot be written: {exc}", value=str(self.path)) from exc
        try:
            _lock(file, self.path)
            data = read_bounded(self.path, max_bytes)
            torn = self._parse(data) if data else 0
            if torn:
                os.ftruncate(file, len(data) - torn)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        self._close = weakref.finalize(self, os.close, file)
        if self.header is None:
            self._append(_encode(header))
            self.header = header
        elif self.header.environment != header.environment:
            self.close()
            raise CassetteError("The recording is of another environment", value=self.header.environment.model_dump(),
                                remedy="Record to another file.", asked=header.environment.model_dump())  # fmt: skip

    def close(self) -> None:
        """Nothing more is recorded."""
        if self._file is not None:
            self._file = None
            self._close()

    def put_call(self, contract: Any, arguments: Mapping[str, Any], token: str, outcome: Outcome) -> Entry:
        """Record a call; gives what is recorded, which is what was recorded first."""
        key = effect_key(contract.name, arguments, token)
        shown = redact(dict(arguments), contract.sensitive)
        entry = Entry(key=key, tool=contract.name, arguments=shown, redacted=shown != arguments, state=token, outcome=outcome)
        tool = _Tool(tool=contract.name, interface=contract.interface_id, effect=contract.effect)
        kept: Entry = self._put(entry, tool)
        return kept

    def put_end(self, token: str, value: Any) -> Any:
        """Record the end state of a world; gives what is recorded."""
        return self._put(_End(end=token, value=value)).value

    def put_decision(self, key: str, tool: str, granted: bool, reason: str) -> tuple[bool, str]:
        """Record a decision; gives what is recorded."""
        made = self._put(_Decision(decision=key, tool=tool, granted=granted, reason=reason))
        return made.granted, made.reason

    def _put(self, line: Any, tool: _Tool | None = None) -> Any:
        kept, key = self._place(line)
        with self._lock:  # rollouts may be in several threads
            if key not in kept:
                try:
                    text = _encode(line)
                    if len(text) > MAX_LINE_BYTES:
                        raise Unserialisable(f"it takes {len(text)} bytes")
                except Unserialisable as exc:
                    raise CassetteError(f"This cannot be recorded: {exc.what}", value=key) from exc
                new = tool is not None and tool.tool not in self.tools
                self._append(_encode(tool) + text if tool is not None and new else text)
                # Parsed back, so that nobody's changes to a value can change what is recorded.
                kept[key] = type(line).model_validate(parse_json(text))
                if tool is not None and new:
                    self.tools[tool.tool] = tool
            return kept[key]

    def _append(self, data: bytes) -> None:
        if self._file is None:
            raise CassetteError("The recording is closed", value=str(self.path), remedy="Make the environment anew.")
        start = os.lseek(self._file, 0, os.SEEK_END)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as exc:  # a full disk must not leave half a line in the middle of the file
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, start)
            raise StoreUnavailable(f"The recording of tool calls cannot be written: {exc}", value=str(self.path)) from exc


def _lock(file: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        raise CassetteError("The recording is being written by somebody else", value=str(path), file=str(path),
                            remedy="Wait for the other recording, or record to another file.") from exc  # fmt: skip


def compact_effects(path_in: str | Path, path_out: str | Path, *, max_bytes: int = MAX_BYTES) -> EffectCassette:
    """Rewrite a finished recording sorted; gzip when `path_out` ends in ``.gz``. Equal content gives equal bytes.

    The file appears in one step. Gives the recording as written.
    """
    cassette, out = EffectCassette.open(path_in, max_bytes=max_bytes), Path(path_out)
    write_whole(out, b"".join(cassette.lines()))
    return EffectCassette.open(out, max_bytes=max_bytes)
