"""A kept run for people: what it was given, what happened in order, how it stopped, what it waits for.

What a model or a tool wrote never reaches the terminal as it is: whatever is not printable (escape sequences, marks that
turn the direction of writing) is shown as an escape.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from dse.runtime.history import shown_id

__all__ = ["pending_lines", "print_run", "run_lines", "timeline", "visible"]

_SHORT = 300  # characters of a value; --json has all of it


def visible(text: str) -> str:
    """`text` with everything that is not printable, but line breaks, as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _value(value: Any, longest: int = _SHORT) -> str:
    text = visible(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def _words(text: Any) -> str:
    whole = visible(str(text)).replace("\n", " ")
    return whole if len(whole) <= _SHORT else f"{whole[:_SHORT]}… ({len(whole)} characters)"


def _call(name: Any, arguments: Any) -> str:
    given = arguments if isinstance(arguments, Mapping) else {"?": arguments}
    return f"{_words(name)}({', '.join(f'{_words(k)}={_value(v)}' for k, v in given.items())})"


def _fault(entry: Mapping[str, Any]) -> str:
    return f"{entry['fault'] or 'cancelled'}: {_words(entry['message'] or '')}"


def _said(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    usage = "" if entry["input_tokens"] is None else f", {entry['input_tokens']} tokens in, {entry['output_tokens']} out"
    yield f"model ({entry['predictor']}{usage}{', recorded' if entry['recorded'] else ''})", "cyan"
    if entry["text"]:
        yield f"  says {_words(entry['text'])}", ""
    for call in entry["tool_calls"]:
        yield f"  asks for {_call(call['name'], call['arguments'] if call['arguments'] is not None else call['raw'])}", ""


def _outcome(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    name = f"call {shown_id(entry['call_id'])} {_words(entry['tool'])}"
    if entry["outcome"] == "ok":
        yield f"{name} gave {_value(entry['result'])}", ""
    else:
        yield f"{name} failed with {_fault(entry)}", "red"
    if entry["effect_state"] in ("completed", "unknown"):
        yield f"  effect {entry['effect_state']}", "" if entry["effect_state"] == "completed" else "bold red"


def _lines(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    kind = entry["kind"]
    if kind == "model_call":
        yield from _said(entry)
    elif kind == "feed":
        yield "script", "cyan"
        yield from ((f"  {line}", "") for line in visible(entry["code"]).split("\n"))
    elif kind == "tool_intent":
        yield f"call {shown_id(entry['call_id'])} {_call(entry['tool'], entry['arguments'])} begins", ""
    elif kind == "tool_outcome":
        yield from _outcome(entry)
    elif kind == "tool_refused":
        name = "" if entry["call_id"] is None else f"call {shown_id(entry['call_id'])} "
        yield f"{name}{_words(entry['tool'])} was refused with {_fault(entry)}", "red"
    elif kind == "approval":
        by = f" by {_words(entry['by'])}, {entry['at'][:19]}" if entry.get("by") else ""
        why = f": {_words(entry['reason'])}" if entry.get("reason") else ""
        yield (f"call {shown_id(entry['call_id'])} {_words(entry['tool'])} was {'approved' if entry['granted'] else 'denied'}{by}"
               f"{why}"), "green" if entry["granted"] else "red"  # fmt: skip
    elif kind == "decision":
        by = f" by {_words(entry['by'])}" if entry["by"] else ""
        yield f"call {shown_id(entry['call_id'])} {entry['tool']}: somebody decided {entry['action']}{by} {_words(entry['reason'])}", ""
    elif kind == "code_error":
        for place in entry.get("problems") or [[entry.get("message", "")]]:
            yield f"error at {entry['stage']}: {_words(' '.join(str(part) for part in place if part))}", "red"
    elif kind in ("round", "delivered"):
        yield f"{kind} of {_value([shown_id(c) if isinstance(c, int) else c['name'] for c in entry['calls']])}", "dim"
    else:
        yield _plain(entry), "dim"


def _plain(entry: Mapping[str, Any]) -> str:
    facts = {k: v for k, v in entry.items() if k not in ("seq", "kind", "program_id", "seed", "clock", "shown") and v is not None}
    return f"{_words(entry['kind']).replace('_', ' ')} {', '.join(f'{_words(k)} {_value(v)}' for k, v in facts.items())}".rstrip()


def timeline(entries: Iterable[Mapping[str, Any]]) -> Iterator[Text]:
    """A journal, without what is sensitive (`Store.run`), as lines."""
    for entry in entries:
        try:
            lines = list(_lines(entry))
        except (KeyError, TypeError):  # as an earlier version wrote it
            lines = [(_plain(entry), "")]
        for number, (text, style) in enumerate(lines):
            yield Text(f"{entry['seq']:>5}  " if number == 0 else " " * 7, style="dim").append(text, style=style or "default")


def pending_lines(call: Mapping[str, Any]) -> Iterator[Text]:
    """A call that waits for a decision: all of its arguments, nothing is shortened."""
    expires = f", until {call['expires'][:19]}" if call["expires"] else ""
    yield Text(f"call {shown_id(call['call_id'])} of run {call['run_id']}: {call['tool']} ({call['effect']}), "
               f"asked for {call['requested'][:19]}{expires}", style="bold")  # fmt: skip
    for name, value in call["arguments"].items():
        yield Text(f"  {visible(name)} = {_value(value, 10**9)}")
    yield Text(f"  {call['arguments_hash']}")


def run_lines(run: Mapping[str, Any], entries: list[dict[str, Any]], pending: Iterable[Mapping[str, Any]],
              judgements: Iterable[Mapping[str, Any]], *, journal: bool) -> Iterator[Text]:  # fmt: skip
    """A run with its receipt (`Store.receipts`) and journal (`Store.run`), without what is sensitive."""
    receipt = run["receipt"] if run["outcome"] not in ("running", "lost") else None  # that is of an earlier stop
    style = {"ok": "green", "failed": "red"}.get(run["outcome"], "yellow")
    yield Text(f"run {run['run_id']}  ").append(run["outcome"], style=f"bold {style}")
    yield Text(f"{run['signature']} in mode {run['mode']} with {run['model'] or 'no model'}, {run['created'][:19]}")
    inputs = receipt["inputs"] if receipt else entries[0]["inputs"] if entries else {}
    for name, value in inputs.items():
        yield Text(f"  {name} = {_value(value)}")
    if journal:
        yield from timeline(entries)
    if receipt and receipt["outputs"] is not None:
        for name, value in receipt["outputs"].items():
            yield Text("gave ", style="green").append(f"{name} = {_value(value)}", style="default")
    if receipt and receipt["error"]:
        error = receipt["error"]
        got = "" if error["value"] is None else f" (got: {_words(error['value'])})"
        yield Text(f"[{error['code'] or error['class']}] {_words(error['what'])}{got}. {_words(error['remedy'])}", style="red")
    for started in _open(entries):
        yield Text(f"call {shown_id(started['call_id'])} {_call(started['tool'], started['arguments'])} began, and nobody "
                   "recorded its end", style="bold red")  # fmt: skip
    if receipt:
        usage = receipt["usage"]
        cost = "unknown" if usage["cost_usd"] is None else f"{usage['cost_usd']:.5f} USD ({usage['cost_source']})"
        yield Text(f"effects {receipt['effects']}; {usage['model_calls']} model calls, {usage['tool_calls']} tool calls, "
                   f"{usage['input_tokens'] + usage['output_tokens']} tokens ({usage['usage_source']}), cost {cost}")  # fmt: skip
    for call in pending:
        yield Text("waits for a decision about", style="yellow")
        yield from pending_lines(call)
    for one in judgements:
        said = f" ({_words(one['feedback'])})" if one["feedback"] else ""
        by = f" by {_words(one['judge'])}" if one["judge"] else ""
        yield Text(f"judged {_words(one['name'])} {one['value']:g}{by}, {one['created'][:19]}{said}")


def _open(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    begun: dict[int, Mapping[str, Any]] = {}
    for entry in entries:
        if entry["kind"] == "tool_intent":
            begun[entry["call_id"]] = entry
        elif entry["kind"] == "tool_outcome":
            begun.pop(entry["call_id"], None)
    return list(begun.values())


def print_run(console: Console, *given: Any, **options: Any) -> None:
    """Print `run_lines`."""
    for line in run_lines(*given, **options):
        console.print(line, soft_wrap=True)
