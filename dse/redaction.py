"""What must not leave a run: sensitive values in receipts, streams and stored journals; host paths in messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["REDACTED", "Secrets", "redact", "safe_message", "without_paths"]

REDACTED = "[redacted]"
_SHORTEST_SECRET = 4  # shorter values would take innocent text with them
# Where a journal entry may hold a sensitive output, or argument, before it is parsed.
_UNPARSED = {
    "model_call": ("text",), "repair": ("problem",), "feed": ("code",), "print": ("text",), "observation": ("value", "shown"),
    "code_error": ("message", "problems", "shown"), "stage_ended": ("shown",),
}  # fmt: skip


def redact(value: Any, names: Iterable[str]) -> Any:
    """`value` with every field of those names replaced, at any depth."""
    if not names:
        return value
    if isinstance(value, dict):
        return {k: REDACTED if k in names else redact(v, names) for k, v in value.items()}
    if isinstance(value, list):
        return [redact(item, names) for item in value]
    return value


class Secrets:
    """What the receipt, the streams and the stored journal of one run must not show.

    Fields are hidden by name. Their values (text and numbers of at least four characters) are remembered and
    hidden wherever they come up again: in messages, prints, scripts, what the model says.

    Attributes:
        names: fields to hide at any depth of arguments, results, inputs and outputs.
        results: tools whose whole result is hidden.
        replies: an output is sensitive, so everything that may hold it before it is parsed is hidden.
    """

    def __init__(self, names: Iterable[str] = (), *, replies: bool = False) -> None:
        self.names = set(names)
        self._given = frozenset(self.names)  # fields of the signature; whatever comes later belongs to tools
        self.results: set[str] = set()
        self.replies = replies
        self._values: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def remember(self, value: Any, names: Iterable[str] | None = None) -> None:
        """Take note of the values below `names` (None: of everything in `value`)."""
        if isinstance(value, Mapping):
            for key, item in value.items():
                self.remember(item, None if names is None or key in names else names)
        elif isinstance(value, (list, tuple, set, frozenset)):
            for item in value:
                self.remember(item, names)
        elif names is None and _is_value(value) and len(str(value)) >= _SHORTEST_SECRET:
            text = str(value)
            # also as it stands in JSON, in a script or in a repr
            self._values |= {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1]}
            self._pattern = None

    def text(self, text: str) -> str:
        """`text` without any value that is known to be sensitive."""
        if not self._values:
            return text
        if self._pattern is None:
            longest_first = sorted(self._values, key=lambda value: (-len(value), value))
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        return self._pattern.sub(REDACTED, text)

    def scrub(self, value: Any) -> Any:
        """JSON data without any value that is known to be sensitive."""
        return self._copy(value, frozenset()) if self._values else value

    def hide(self, value: Any) -> Any:
        """A copy of JSON data without sensitive fields and values."""
        return self._copy(value, self.names)

    def _copy(self, value: Any, names: Iterable[str]) -> Any:
        if isinstance(value, dict):
            return {k: REDACTED if k in names else self._copy(v, names) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._copy(item, names) for item in value]
        if isinstance(value, str):
            return self.text(value)
        return REDACTED if self._values and _is_value(value) and str(value) in self._values else value

    def entry(self, entry: Mapping[str, Any], *, live: bool = False) -> dict[str, Any]:
        """A copy of a journal entry that may be shown. Its own keys are structure, whatever fields are called.

        Args:
            live: the run goes on. A script that is about to pass a sensitive argument already holds it, and nobody
                knows yet which of its words that is.
        """
        hidden = self.replies or (live and not self.names <= self._given)
        unparsed = _UNPARSED.get(entry["kind"], ()) if hidden else ()
        shown: dict[str, Any] = {}
        for key, value in entry.items():
            if key in ("seq", "kind"):
                shown[key] = value
            elif key == "result" and value is not None and entry.get("tool") in self.results:
                shown[key] = REDACTED
            elif key in unparsed and value is not None:
                shown[key] = REDACTED
            elif key in ("calls", "tool_calls") and isinstance(value, list):
                shown[key] = [self._call(call) if isinstance(call, dict) else call for call in value]
            else:
                shown[key] = self.hide(value)
        return shown

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        shown = {key: self.hide(value) for key, value in call.items()}
        if "result" in shown and call.get("name") in self.results:
            shown["result"] = REDACTED
        if self.names and shown.get("raw") is not None:
            shown["raw"] = REDACTED  # malformed JSON: nobody knows which part is what
        return shown


def _is_value(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


# --- messages to a model

_PART = r"[^\s/\\\"'<>|]+"  # of a path
_FOLDER = rf"{_PART}(?:\x20{_PART})*"  # may hold spaces
_PATHS = re.compile(
    rf"""(?:File\s+)?(?:
      (?P<q>["'])(?:file:|~|\.{{0,2}}[/\\]|[A-Za-z]:[/\\])[^"'\n]*(?P=q)   # anything quoted that begins like a path
    | (?<=File\x20)(?P<f>["'])[^"'\n]*(?P=f)
    | (?:file:/+|\b[A-Za-z][\w+.-]*:/{{3,}})[^\s"']*                           # file:/a  unix:///a  sqlite:////a
    | (?<!\S)-[A-Za-z]/(?:{_FOLDER}/+)*{_PART}                               # -I/a/b
    | (?<![A-Za-z])[A-Za-z]:[/\\]+(?:{_FOLDER}[/\\]+)*(?:{_PART})?           # C:\a b\c
    | \\\\(?:{_FOLDER}\\+)*(?:{_PART})?                                      # \\server\share
    | (?<![\w/.~])(?:\.{{1,2}}|~\w*)?/(?:{_FOLDER}/+)*{_PART}                # /a/b  ./a  ../a  ~/a
    )(?:,\s*line\s+\d+(?:,\s*in\s+\S+)?)?""",
    re.VERBOSE,
)
_FRAMES = re.compile(r'^[ \t]*File "[^"\n]*", line \d+.*(?:\n[ \t]+\S.*)*', re.MULTILINE)  # with their source lines
_HALVES = re.compile("[\ud800-\udfff]")  # of characters: neither a model nor the sandbox takes them
_LONGEST_MESSAGE = 300


def without_paths(text: str) -> str:
    """`text` as one line for a model: cut where a traceback begins, host paths as ``<path>``, at most 300 characters.

    Half a surrogate pair is replaced: nothing that is sent or kept could hold it.
    """
    text = _HALVES.sub("\ufffd", text[:4_000]).split("Traceback (most recent call last)")[0]
    text = " ".join(_PATHS.sub("<path>", _FRAMES.sub("<path>", text)).split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."


def safe_message(exc: BaseException) -> str:
    """What a model may be told about an exception: its class and text, without host paths or tracebacks."""
    try:
        text = without_paths(str(exc))
    except Exception:  # one that cannot even say what it is
        text = ""
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
