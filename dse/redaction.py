"""What must not leave a run: sensitive values in receipts, streams and stored journals; host paths in messages."""

from __future__ import annotations

import bisect
import functools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
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

    Fields are hidden by name. Their values (text and numbers of at least four characters, and the keys of what is free to
    have any) are remembered and hidden wherever they come up again: in messages, prints, scripts, what the model says.

    Attributes:
        names: fields to hide at any depth of arguments, results, inputs and outputs.
        results: tools whose whole result is hidden.
        replies: an output is sensitive, so everything that may hold it before it is parsed is hidden.
        fields: names that types declare, which are no values where they are keys; None where nobody knows them.
    """

    def __init__(self, names: Iterable[str] = (), *, replies: bool = False, fields: Collection[str] | None = None) -> None:
        self.names = set(names)
        self._given = frozenset(self.names)  # fields of the signature; whatever comes later belongs to tools
        self.results: set[str] = set()
        self.replies = replies
        self.fields = fields
        self._values: set[str] = set()
        self._keys: set[str] = set()
        self._index: _Index | None = None

    def remember(self, value: Any, names: Iterable[str] | None = None) -> None:
        """Take note of the values below `names` (None: of everything in `value`)."""
        if isinstance(value, Mapping):
            for key, item in value.items():
                if names is None and isinstance(key, str) and len(key) >= _SHORTEST_SECRET:
                    self._keys.add(key)
                    self._index = None
                self.remember(item, None if names is None or key in names else names)
        elif isinstance(value, (list, tuple, set, frozenset)):
            for item in value:
                self.remember(item, names)
        elif names is None and _is_value(value) and len(text := str(value)) >= _SHORTEST_SECRET and text not in self._values:
            self._values.update(_forms(text))
            self._index = None

    def text(self, text: str) -> str:
        """`text` without any value that is known to be sensitive, or what is left of one that was cut."""
        if not (self._values or self._keys) or len(text) < _SHORTEST_SECRET:
            return text
        return self._known().hidden(text)

    def scrub(self, value: Any) -> Any:
        """JSON data without any value that is known to be sensitive."""
        return self._copy(value, frozenset()) if self._values or self._keys else value

    def hide(self, value: Any) -> Any:
        """A copy of JSON data without sensitive fields and values."""
        return self._copy(value, self.names)

    def _known(self) -> _Index:
        index = self._index
        if index is None or index.fields is not self.fields:
            keys = (form for key in self._keys if not self._is_field(key) for form in _forms(key))
            index = self._index = _Index(self._values.union(keys), self.fields)
        return index

    def _is_field(self, key: str) -> bool:
        return _NAME.fullmatch(key) is not None if self.fields is None else key in self.fields

    def _copy(self, value: Any, names: Iterable[str]) -> Any:
        if isinstance(value, dict):
            made: dict[Any, Any] = {}
            for key, item in value.items():
                shown = REDACTED if key in names else self._copy(item, names)
                if isinstance(key, str) and not _NAME.fullmatch(key) and not self._is_field(key):
                    known, key = key, self.text(key)
                    while key in made or (key != known and key in value):  # none of them replaces another
                        key += "'"
                made[key] = shown
            return made
        if isinstance(value, (list, tuple)):
            return [self._copy(item, names) for item in value]
        if isinstance(value, str):
            return self.text(value)
        return REDACTED if self._values and _is_value(value) and str(value) in self._known().texts else value

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


# --- values in texts

_NAME = re.compile("[a-z]+(?:_[a-z]+)*|[a-z]+(?:[A-Z][a-z]+)+")  # as a field may be called, and few values look
_SIMPLE = re.compile(r"[\w@.,:;+=()#%&$*?!|-]+(?: [\w@.,:;+=()#%&$*?!|-]+)*", re.ASCII)  # reads the same everywhere
_CUT = re.compile(r"\.\.\.|…|\[cut\]|\[printed ")  # what is written where a text was shortened
_PATHLIKE = re.compile(r"[/\\~]|file:|File ")
_FEW = 64
_HEADS = (12, 8, _SHORTEST_SECRET)
_WINDOW = 4_096


def _forms(text: str) -> set[str]:
    """What a value may look like: as it is and within one line; there as in JSON, in a script or in a repr."""
    if _SIMPLE.fullmatch(text):
        return {text}
    plain = {text, text.strip(), " ".join(text.split())}
    head = text[:_LONGEST_TEXT]
    told = _one_line(head) if _PATHLIKE.search(head) else ""
    if len(told.replace("<path>", "").strip()) >= _SHORTEST_SECRET:  # a path alone is gone already
        plain.add(told)
    forms = (form for one in plain for form in
             (one, json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1], repr(one)[1:-1]))  # fmt: skip
    return {form for form in forms if len(form) >= _SHORTEST_SECRET}


class _Index:
    """Finds texts in texts. The time is that of reading the text once for a few of them, and not many times for more."""

    def __init__(self, texts: set[str], fields: Collection[str] | None) -> None:
        self.texts = texts
        self.fields = fields

    @functools.cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.texts)

    @functools.cached_property
    def _by_head(self) -> dict[int, dict[str, list[str]]]:
        heads: dict[int, dict[str, list[str]]] = {size: {} for size in _HEADS}
        for text in self.texts:
            size = next(size for size in _HEADS if len(text) >= size)
            heads[size].setdefault(text[:size], []).append(text)
        return heads

    @functools.cached_property
    def _beginnings(self) -> set[str]:
        return {text[:_SHORTEST_SECRET] for text in self.texts}

    @functools.cached_property
    def _long(self) -> list[str]:
        return [text for text in self.texts if len(text) > _WINDOW]

    @functools.cached_property
    def _cut_inside(self) -> bool:
        return any(_CUT.search(text) for text in self.texts)

    def hidden(self, text: str) -> str:
        """`text` with every known one replaced, and every beginning of one before a sign that something was cut."""
        spans = [*self._whole(text), *self._rests(text)]
        if not spans:
            return text
        parts, done = [], 0
        for start, end in sorted(spans):
            if start >= done:
                parts += [text[done:start], REDACTED]
            done = max(done, end)
        return "".join([*parts, text[done:]])

    def _whole(self, text: str) -> Iterator[tuple[int, int]]:
        for known in self._candidates(text):
            at = text.find(known)
            while at >= 0:
                yield at, at + len(known)
                at = text.find(known, at + len(known))

    def _candidates(self, text: str) -> Iterable[str]:
        if len(self.texts) <= _FEW:
            return self.texts
        size, heads = _SHORTEST_SECRET, self._beginnings
        at_heads = [at for at in range(len(text) - size + 1) if text[at : at + size] in heads]
        there = ((by_head, {text[at : at + size] for at in at_heads}) for size, by_head in self._by_head.items())
        return [known for by_head, parts in there for part in parts & by_head.keys() for known in by_head[part]]

    def _rests(self, text: str) -> Iterator[tuple[int, int]]:
        if "..." not in text and "…" not in text and "[" not in text:
            return
        last, begun, whole = 0, 0, ""
        for mark in _CUT.finditer(text):
            end = mark.start()
            if text[end] == "[":
                end -= 2 if text.endswith("\\n", 0, end) else text.endswith("\n", 0, end)
            if not (whole and whole.startswith(text[last:end], last - begun)):  # else the mark before it belongs to the value
                begun, whole = self._rest(text, last, end) if end > last else (end, "")
            if whole:
                yield begun, end
            if self._cut_inside:  # a value may begin, or go on, in a mark
                last = max(last, end if whole else end - _SHORTEST_SECRET + 1)
            else:
                last, whole = mark.end(), ""

    def _rest(self, text: str, low: int, end: int) -> tuple[int, str]:
        """Where, from `low` on, the longest beginning of a known text begins that ends at `end`, and which text it is."""
        if end - low > _WINDOW:  # longer ones than are looked for below
            for known in self._long:
                at, tries = low - 1, 16
                while tries and 0 <= (at := text.find(known[:64], at + 1, end - _WINDOW)):
                    if known.startswith(text[at:end]):
                        return at, known
                    tries -= 1
            low = end - _WINDOW
        for at in self._begin(text, low, end):
            place = bisect.bisect_left(self._sorted, rest := text[at:end])
            if place < len(self._sorted) and self._sorted[place].startswith(rest):
                return at, self._sorted[place]
        return end, ""

    def _begin(self, text: str, low: int, end: int) -> Iterable[int]:
        """Where, in order, a known text may begin."""
        if len(self._beginnings) > _FEW:
            size = _SHORTEST_SECRET
            return (at for at in range(low, end - size + 1) if text[at : at + size] in self._beginnings)
        found = []
        for head in self._beginnings:
            at = text.find(head, low, end)
            while at >= 0:
                found.append(at)
                at = text.find(head, at + 1, end)
        return sorted(found)


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
_LONGEST_TEXT = 4_000


def without_paths(text: str) -> str:
    """`text` as one line for a model: cut where a traceback begins, host paths as ``<path>``, at most 300 characters.

    Half a surrogate pair is replaced: nothing that is sent or kept could hold it. Whatever is cut ends in ``...``, which
    is how `Secrets` knows what is left of a value.
    """
    text = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."
    text = _one_line(_HALVES.sub("\ufffd", text).split("Traceback (most recent call last)")[0])
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."


def _one_line(text: str) -> str:
    return " ".join(_PATHS.sub("<path>", _FRAMES.sub("<path>", text)).split())


def safe_message(exc: BaseException) -> str:
    """What a model may be told about an exception: its class and text, without host paths or tracebacks."""
    try:
        text = without_paths(str(exc))
    except Exception:  # one that cannot even say what it is
        text = ""
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
