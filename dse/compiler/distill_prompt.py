"""What the reflection model is told when it writes or improves a script: bounded, redacted, the same every time.

All texts come from search rows and from rollouts on them. Sensitive fields and their values are hidden everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dse.canonical import digest
from dse.contracts.signature import SignatureSpec
from dse.evaluation.evaluator import RolloutRecord
from dse.redaction import REDACTED, Secrets

if TYPE_CHECKING:
    from dse.evaluation.dataset import Example

__all__ = ["MAX_PROMPT", "Briefing", "Outcome", "abbreviated", "clipped"]

MAX_PROMPT = 30_000  # characters of one prompt, unless the stubs alone take most of them
_TRACE, _RESULTS, _LINES = 2_400, 6_000, 220  # characters: of one run, of all sample results, of one line of a run
_BRIEF = 240  # of what is expected, where many rows are to be seen

_GOAL = """\
Write one Python script that does the task below for any input, without a language model. It is run in a sandbox, once \
for each input, on inputs that you have not seen. Nobody looks at what it prints.

- Where it is sure of the answer it calls `submit(...)`: that ends it.
- Where it is not sure it calls `abstain("why, in a few words")`: that ends it, too, and a language model does the task \
instead. That is slower and costs money, but is usually right. A wrong answer costs far more than abstaining: no look-up \
that finds nothing or several things, no wording that you did not foresee and no leftover words that you cannot explain \
should end in a guess.
- Free text: read the forms that rules can read (patterns, keywords, names that a tool lists), make sure that nothing in \
the text is left over that could change the answer (exceptions, negations, second thoughts, further requests), and \
abstain on the rest. A script that handles a third of the inputs rightly is worth having; one that handles all of them \
and is wrong on some is worth nothing.
- The examples only show what inputs are like; yours will have other names, numbers and wordings. Look things up with the \
tools, compute by the rules of the task, and never compare with an input of an example: scripts that hold text of {long} \
or more characters from the input of a single example are refused.
- It has to be fast: decide whether to abstain before you call tools where you can, make no call that you do not need, and \
make calls that do not depend on each other in one `await asyncio.gather(...)`."""

_WRITES = """\
- Tools that change something ({tools}): once one was called nobody else can take over. So read and decide first, in \
functions that return None where they are not sure; then `if plan is None: abstain("...")` as a statement of its own at \
the top level of the script; and name such a tool only in statements after that (in a function: only in one that is \
defined after that). Anything else is refused."""
_REPLY = "Reply with the whole script in one ```python block."


@dataclass(frozen=True)
class Outcome:
    """How a script did on one row.

    Attributes:
        said: ``right`` (solved), ``wrong`` (answered, not solved), ``abstained`` or ``failed``.
        reason: why it abstained or failed.
    """

    example: Example
    record: RolloutRecord
    said: str
    reason: str = ""


# --- values as text


def clipped(text: str, most: int) -> str:
    """`text`, or its beginning with how much was left out."""
    return text if len(text) <= most else f"{text[:most].rstrip()} ... ({len(text) - most} more characters)"


def abbreviated(value: Any, most: int = 400, *, items: int = 4, text: int = 1_200) -> str:
    """JSON of `value`: of long lists the first `items`, of long texts the first `text` characters, in all at most `most`."""

    def short(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: short(item) for key, item in part.items()}
        if isinstance(part, (list, tuple)):
            rest = len(part) - items
            return [*map(short, part[:items]), *([f"... {rest} more"] if rest > 0 else [])]
        return clipped(part, text) if isinstance(part, str) else part

    return clipped(json.dumps(short(value), ensure_ascii=False, default=str), most)


def _calls(record: RolloutRecord) -> Iterator[dict[str, Any]]:
    """Calls in the order of their outcomes: tool, arguments, result, and what went wrong."""
    asked: dict[Any, Any] = {}
    for entry in record.journal:
        if entry["kind"] == "tool_intent":
            asked[entry["call_id"]] = entry["arguments"]
        elif entry["kind"] == "tool_outcome":
            ok = entry["outcome"] == "ok"
            yield {"call_id": entry["call_id"], "tool": entry["tool"], "arguments": asked.get(entry["call_id"]),
                   "result": entry["result"], "problem": None if ok else entry["message"] or entry["outcome"]}  # fmt: skip


@dataclass(frozen=True)
class Briefing:
    """What does not change over the rounds.

    Args:
        api: the rules of the sandbox and the typed stubs, as the script is checked against them.
        rows: search rows, those to be shown first in front.
        shown: how many of them are shown with how they were solved.
        solved: verified rollouts by row hash, the most telling one first.
        records: all rollouts, for samples of what tools return.
        long: characters from which text of a single row is refused.
    """

    spec: SignatureSpec
    api: str
    rows: Sequence[Example]
    shown: int
    solved: Mapping[str, Sequence[RolloutRecord]]
    records: Sequence[RolloutRecord]
    secrets: Secrets
    long: int
    most: int = MAX_PROMPT

    # --- prompts

    def first(self) -> str:
        """Asks for a script."""
        head = self._head()
        results = self._results(_RESULTS)
        room = self.most - len(head) - len(results) - len(_REPLY) - 100
        return self._whole(head, results, self._examples(room), _REPLY)

    def repair(self, script: str, problems: str) -> str:
        """Asks for a script that passes the check."""
        told = (f"## Your script\n```python\n{self._safe(script)}\n```\n\n## It was not run\n{self._safe(problems)}\n\n"
                "Correct that, and whatever else is wrong in the same way.")  # fmt: skip
        head = self._head()
        return self._whole(head, self._results(max(0, min(_RESULTS, self.most - len(head) - len(told) - 200))), told, _REPLY)

    def improve(self, script: str, outcomes: Sequence[Outcome], later: tuple[str, Sequence[Outcome], str] | None) -> str:
        """Asks for a better script.

        Args:
            outcomes: of `script`.
            later: an attempt to improve it that was not better: the script, its outcomes, and why it was dropped.
        """
        head, results = self._head(), self._results(_RESULTS // 2)
        parts = [f"## The present script\n```python\n{self._safe(script)}\n```\n\n## What it did\n{_summary(outcomes)}"]
        if later is not None:
            tried, did, why = later
            body = f"```python\n{self._safe(tried)}\n```\n" if len(tried) < 6_000 else ""
            parts.append(f"## A later attempt that was dropped: {why}\n{body}{_summary(did)}")
        ask = ("Write a better version: first of all correct what is wrong or fails (abstain where rules cannot tell), then "
               "handle more of the inputs that it abstains on, as far as general rules can read them. Keep what works. "
               f"{_REPLY}")  # fmt: skip
        room = self.most - len(head) - len(results) - sum(map(len, parts)) - len(ask) - 200
        trouble = {"wrong": "Wrong answers", "failed": "Failures"}
        for said, title in trouble.items():
            mine = [o for o in outcomes if o.said == said]
            known = {o.example.row_hash for o in mine}
            mine += [o for o in (later[1] if later else ()) if o.said == said and o.example.row_hash not in known]
            room -= self._add(parts, title, [self._trouble(o) for o in mine], room * 2 // 3)
        rest = [f"{self._row(o.example, _BRIEF)}\nIt abstained: {self._safe(o.reason)}"
                for o in outcomes if o.said == "abstained"]  # fmt: skip
        room -= self._add(parts, "Inputs that it abstains on", rest, room * 3 // 4)
        self._add(parts, "Inputs that it gets right, and must go on to",
                  [self._row(o.example, _BRIEF) for o in outcomes if o.said == "right"], room)  # fmt: skip
        return self._whole(head, results, *parts, ask)

    # --- parts

    def _whole(self, *parts: str) -> str:
        return "\n\n".join(part for part in parts if part)

    def _safe(self, text: str) -> str:
        return self.secrets.text(text)

    def _head(self) -> str:
        outputs = "\n".join(f"- {f.name}: {f.desc}" for f in self.spec.outputs.values() if f.desc)
        inputs = "\n".join(f"- {f.name}: {f.desc}" for f in self.spec.inputs.values() if f.desc)
        return self._whole(
            _GOAL.format(long=self.long) + self._writes(),
            f"## The task\n{self.spec.instructions}", inputs and f"Inputs:\n{inputs}",
            outputs and f"Outputs:\n{outputs}",
            f"## What the script can use\n```python\n{self.api.strip()}\n```",
        )  # fmt: skip

    def _writes(self) -> str:
        tools = ", ".join(tool.name for tool in self.spec.tools if not tool.contract.repeatable)
        return "\n" + _WRITES.format(tools=tools) if tools else ""

    def _results(self, room: int) -> str:
        """What tools returned: what was the same wherever it was asked for, then samples of the rest."""
        given: dict[str, dict[str, dict[str, set[str]]]] = {}  # tool -> arguments -> result -> rows
        for record in self.records:
            for call in _calls(record):
                if call["tool"] in self.secrets.results:
                    call["result"] = REDACTED
                shown = self.secrets.hide({key: call[key] for key in ("arguments", "result", "problem")})
                problem = shown["problem"]
                text = abbreviated(shown["result"], 1_600) if problem is None else f"raises: {clipped(str(problem), 200)}"
                given.setdefault(call["tool"], {}).setdefault(_given(shown["arguments"], 120), {}).setdefault(
                    text, set()).add(record.row_hash)  # fmt: skip
        constant, samples = [], []
        for tool, calls in sorted(given.items()):
            varied = []
            for arguments, results in sorted(calls.items()):
                (text, rows), = list(results.items())[:1]
                if len(results) == 1 and len(rows) > 1:
                    constant.append(f"{tool}({arguments}) -> {text}")
                else:
                    varied += [f"{tool}({arguments}) -> {text}" for text in results]
            apart = _apart(sorted(varied, key=digest), 3)
            samples.append([clipped(line, 500 if place else 1_000) for place, line in enumerate(apart)])
        text = ""
        if constant:
            text = "## What tools gave, the same in every example that asked\n"
            text += "It may be built into the script instead of asked for: fewer tools are better.\n"
            text += _fitting(constant, room * 2 // 3)
        rest = [line for one in _in_turn(samples) for line in one]
        if rest:
            text += "\n\n" if text else ""
            text += f"## Samples of what tools gave (abbreviated)\n{_fitting(rest, room - len(text))}"
        return text

    def _examples(self, room: int) -> str:
        """Examples with how they were solved, then as many rows without as there is room for."""
        first = [self._row(row) for row in self.rows[: self.shown]]
        solved = [self._solution(row) for row in self.rows[: self.shown]]
        left = room - sum(len(text) + 60 for text in first)
        further = [f"### {self._row(row, _BRIEF)}" for row in self.rows[self.shown :]]
        reserved = min(left // 2, sum(map(len, further)))  # how inputs vary says more than one more solution
        blocks = []
        for number, (row, how) in enumerate(zip(first, solved, strict=True), 1):
            text = f"### Example {number}\n{row}"
            if how and len(how) <= left - reserved:
                text += f"\n{how}"
                left -= len(how)
            blocks.append(text)
        shown = _fitting(blocks, room, "\n\n")
        text = f"## Examples\n{shown}"
        if further and (more := _fitting(further, room - len(text) - 40)):
            text += f"\n\n## Further rows\n{more}"
        return text

    def _row(self, row: Example, expected: int = 900) -> str:
        hide = self.secrets.hide
        return (f"Inputs: {abbreviated(hide(row.inputs), 1_800, items=12)}\n"
                f"Expected: {abbreviated(hide(row.labels), expected, items=6)}")  # fmt: skip

    def _solution(self, row: Example) -> str:
        runs = self.solved.get(row.row_hash, ())
        if not runs or (not runs[0].receipt["calls"] and set(row.labels) == set(self.spec.outputs)):
            return ""  # nothing to see besides the answer
        return f"How a language model solved it:\n{self._trace(runs[0])}"

    def _trouble(self, outcome: Outcome) -> str:
        record = outcome.record
        lines = [self._row(outcome.example)]
        if outcome.said == "wrong":
            lines.append(f"Submitted: {abbreviated(self.secrets.hide(record.outputs), 900, items=6)}\n"
                         f"Score {record.score:.3g}. {clipped(self._safe(record.feedback), 600)}")  # fmt: skip
        else:
            lines.append(f"It failed: {clipped(self._safe(outcome.reason or record.feedback), 800)}")
        lines.append(self._trace(record, scripts=False))
        return "\n".join(line for line in lines if line)

    def _trace(self, record: RolloutRecord, *, scripts: bool = True) -> str:
        """Scripts of a run with what they printed; without scripts, its calls."""
        feeds = [entry["code"] for entry in record.journal if entry["kind"] == "feed"]
        if feeds and scripts:
            return clipped(self._safe("\n".join(_scripts(record.journal))), _TRACE)
        lines: list[str] = []
        per_tool: dict[str, int] = {}
        for call in _calls(record):
            per_tool[call["tool"]] = per_tool.get(call["tool"], 0) + 1
            if per_tool[call["tool"]] <= 4:
                result = REDACTED if call["tool"] in self.secrets.results else self.secrets.hide(call["result"])
                told = abbreviated(result, _LINES, items=3) if call["problem"] is None else f"raises: {call['problem']}"
                lines.append(f"{call['tool']}({_given(self.secrets.hide(call['arguments']), 80)}) -> {told}")
        lines += [f"... {count - 4} more calls of {tool}" for tool, count in per_tool.items() if count > 4]
        if scripts and record.outputs is not None:
            lines.append(f"submit: {abbreviated(self.secrets.hide(record.outputs), 400)}")
        return clipped(self._safe("\n".join(lines)), _TRACE)

    def _add(self, parts: list[str], title: str, blocks: list[str], room: int) -> int:
        """A section with the blocks that fit; gives its length."""
        text = _fitting([f"- {block}" for block in blocks], room - len(title) - 10) if blocks else ""
        if text:
            parts.append(f"## {title}\n{text}")
        return len(parts[-1]) + 2 if text else 0


def _given(arguments: Mapping[str, Any] | None, most: int) -> str:
    """Arguments as in a call; those that are null say nothing."""
    return ", ".join(f"{key}={abbreviated(value, most)}" for key, value in (arguments or {}).items() if value is not None)


def _summary(outcomes: Sequence[Outcome]) -> str:
    counts = {said: sum(o.said == said for o in outcomes) for said in ("right", "wrong", "abstained", "failed")}
    return f"Of {len(outcomes)} rows: " + ", ".join(f"{count} {said}" for said, count in counts.items()) + "."


def _scripts(journal: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Feeds of a code run; what they showed in between is in the samples of tools."""
    for entry in journal:
        if entry["kind"] == "feed":
            yield f"```python\n{entry['code'].strip()}\n```"
        elif entry["kind"] == "observation":
            yield f"(it printed {len(entry['shown'])} characters, and then ran:)"
        elif entry["kind"] == "code_error" and entry["stage"] == "run":
            yield f"(that failed: {entry['message']})"


def _apart(lines: Sequence[str], most: int) -> list[str]:
    """At most `most` lines that begin their results differently, as far as there are such."""
    seen: dict[str, list[str]] = {}
    for line in lines:
        seen.setdefault(line.split(" -> ", 1)[-1][:3], []).append(line)
    groups = list(seen.values())
    found = [group[place] for place in range(most) for group in groups if place < len(group)]
    return found[:most]


def _in_turn(groups: Sequence[Sequence[str]]) -> Iterator[list[str]]:
    """First lines of all groups, then second ones, and so on."""
    for place in range(max(map(len, groups), default=0)):
        yield [group[place] for group in groups if place < len(group)]


def _fitting(blocks: Sequence[str], room: int, between: str = "\n") -> str:
    """The first blocks that fit, and how many do not."""
    kept: list[str] = []
    for block in blocks:
        if len(block) + len(between) > room:
            break
        kept.append(block)
        room -= len(block) + len(between)
    left = len(blocks) - len(kept)
    return between.join([*kept, *([f"(and {left} more)"] if left and kept else [])])
