"""What a reflection model is told about rollouts: inputs, steps, problems, what was submitted and what was expected.

All of it comes from stored records, in an order that does not depend on which of several calls ended first, so that
equal outcomes give equal text. Sensitive fields and values are hidden, host paths left out, everything is bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dse.compiler.secrets import secrets_of
from dse.contracts.signature import SignatureSpec
from dse.contracts.toolbox import Toolbox
from dse.evaluation.dataset import Example
from dse.evaluation.evaluator import RolloutRecord
from dse.redaction import Secrets, without_paths
from dse.runtime.sandbox import extract_code

__all__ = ["MAX_EXAMPLES", "MAX_EXAMPLE_CHARS", "chosen", "described", "of_task"]

MAX_EXAMPLES = 8
MAX_EXAMPLE_CHARS = 3_000
_VALUE_CHARS, _SCRIPT_CHARS, _TEXT_CHARS = 400, 1_500, 800
_FRAME = re.compile(r'^\s*File "|^\s*Traceback \(most recent call last\)')


def of_task(spec: SignatureSpec, toolbox: Toolbox, allow: Sequence[str]) -> str:
    """The task in words: what it is, its fields, and the tools that may be called."""
    lines = [spec.instructions.strip(), ""]
    for role, fields in (("Input", spec.inputs), ("Output", spec.outputs)):
        lines += [f"{role} `{f.name}`" + (f": {f.desc}" if f.desc else "") for f in fields.values()]
    for name in allow:
        contract = toolbox[name].contract
        summary = next(iter(contract.description.strip().splitlines()), "")
        lines.append(f"Tool `{name}` ({contract.effect}): {summary}")
    return "\n".join(lines)


def chosen(records: Iterable[RolloutRecord], *, most: int = MAX_EXAMPLES) -> list[RolloutRecord]:
    """The worst first, and one or two that were solved for contrast; equal ones in order of their rows' hashes."""
    ranked = sorted(records, key=lambda record: (record.score, record.row_hash))
    poor = [record for record in ranked if record.score < 1.0]
    good = [record for record in ranked if record.score >= 1.0]
    keep = min(len(good), 2, max(1, most - len(poor)))
    return [*poor[: most - keep], *good[:keep]]


def described(record: RolloutRecord, example: Example, spec: SignatureSpec) -> str:
    """One rollout, in at most `MAX_EXAMPLE_CHARS` characters; the end (score, feedback) is never cut."""
    secrets = secrets_of(record, spec, example)
    head = f"Inputs: {_shown(secrets.hide(example.inputs), 2 * _VALUE_CHARS)}\nSteps:\n"
    error = record.receipt.get("error") or {}
    tail = [f"Submitted: {_shown(secrets.hide(record.outputs), _VALUE_CHARS) if record.outputs is not None else 'nothing'}"]
    if example.labels:
        tail.append(f"Expected: {_shown(secrets.hide(example.labels), _VALUE_CHARS)}")
    if record.outcome != "ok":
        said = ". ".join(str(part) for part in (error.get("what"), error.get("value")) if part)
        tail.append(f"Ended as: {record.error_class}: {_cut(_safe(secrets.text(said)), _VALUE_CHARS)}")
    tail.append(f"Effects: {record.receipt.get('effects', 'none')}")
    tail.append(f"Score: {record.score:.3g}" + "".join(f", {n} {v:.3g}" for n, v in sorted(record.components.items())))
    if record.feedback and record.outcome == "ok":
        tail.append(f"Feedback: {_cut(_safe(secrets.text(record.feedback)), _TEXT_CHARS)}")
    end = "\n".join(tail)
    return head + _cut("\n".join(_steps(record, secrets)) or "- none", MAX_EXAMPLE_CHARS - len(head) - len(end) - 1) + "\n" + end


def _steps(record: RolloutRecord, secrets: Secrets) -> list[str]:
    lines: list[str] = []
    arguments: dict[int, Any] = {}
    calls: list[tuple[int, str]] = []  # ended since the last other step; shown in the order in which they began

    def flush() -> None:
        lines.extend(line for _, line in sorted(calls))
        calls.clear()

    for raw in record.journal:
        entry = secrets.entry(raw)
        kind = entry["kind"]
        if kind == "tool_intent":
            arguments[entry["call_id"]] = entry["arguments"]
        elif kind in ("tool_outcome", "tool_refused"):
            number = entry["call_id"] or 0
            calls.append((number, f"- {entry['tool']}({_shown(arguments.get(number, {}), _VALUE_CHARS)}) {_ending(entry)}"))
        elif kind == "approval":
            calls.append((entry["call_id"] or 0, f"- {entry['tool']} was {'approved' if entry['granted'] else 'denied'}"))
        elif kind in _SHOWN_KINDS:
            flush()
            lines += _SHOWN_KINDS[kind](entry, record.receipt.get("mode"))
    flush()
    return lines


def _ending(entry: Mapping[str, Any]) -> str:
    if entry.get("outcome") == "ok":
        return f"gave {_shown(entry['result'], _VALUE_CHARS)}"
    told = ". ".join(str(part).rstrip(".") for part in (entry.get("message"), entry.get("remedy")) if part)
    what = "was refused" if entry["kind"] == "tool_refused" else "failed"
    return f"{what}: {_cut(_safe(told), _VALUE_CHARS)}"


def _model_call(entry: Mapping[str, Any], mode: str | None) -> list[str]:
    if entry["tool_calls"]:  # the calls of tools follow with what they gave
        said = [c for c in entry["tool_calls"] if c["name"] == "submit" or c["arguments"] is None]
        return [f"- called {c['name']} with {_shown(c['arguments'] if c['arguments'] is not None else c['raw'], _VALUE_CHARS)}"
                for c in said]  # fmt: skip
    text = entry["text"] or ""
    if mode == "code":
        return [f"- wrote a script:\n```python\n{_cut(extract_code(text), _SCRIPT_CHARS)}\n```"]
    return [f"- replied: {_cut(text, _VALUE_CHARS)}"]


def _code_error(entry: Mapping[str, Any], _: str | None) -> list[str]:
    if entry["stage"] == "run":
        return [f"- the script failed: {_cut(_safe(entry['shown']), _TEXT_CHARS)}"]
    lines = []
    problems = entry["problems"] if isinstance(entry["problems"], list) else []
    for rule, line, message, hint in problems:
        where = f"line {line}: " if line else ""
        lines.append(f"- the script was refused before it ran: {where}{_safe(message)} [{rule}]" + (f" Hint: {hint}" if hint else ""))
    return lines or ["- the script was refused before it ran"]


_SHOWN_KINDS: dict[str, Callable[[Mapping[str, Any], str | None], list[str]]] = {
    "model_call": _model_call,
    "code_error": _code_error,
    "model_error": lambda entry, _: [f"- the model refused: {_safe(str(entry['message']))}"],
    "observation": lambda entry, _: [f"- the script ended without an answer: {_cut(str(entry['shown']), _TEXT_CHARS)}"],
    "repair": lambda entry, _: [f"- not accepted: {_cut(_safe(str(entry['problem'])), _VALUE_CHARS)}"],
    "retry": lambda entry, _: [f"- started again: the limit of {entry['limit']} was reached"],
}  # fmt: skip


def _shown(value: Any, most: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return _cut(text, most)


def _cut(text: str, most: int) -> str:
    """At most `most` characters: the beginning and the end."""
    if len(text) <= most:
        return text
    left = max(0, (most - 7) * 2 // 3)
    right = max(0, most - 7 - left)
    return f"{text[:left]} [...] {text[len(text) - right :]}"[:most]


def _safe(text: str) -> str:
    """Without frames of a host's traceback and the paths in what is left of it."""
    if not any(_FRAME.search(line) for line in text.splitlines()):
        return text
    return without_paths(re.sub(r"Traceback \(most recent call last\):?", "", text))
