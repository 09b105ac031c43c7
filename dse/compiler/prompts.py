"""Bootstrapped demonstrations: successful, verified runs on search rows, as data for a plan's prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dse.canonical import canonical_json, parse_json
from dse.compiler.search import Proposal, Search
from dse.compiler.secrets import secrets_of
from dse.compiler.teaching import as_rounds, as_script, replays
from dse.contracts.signature import SignatureSpec
from dse.contracts.toolbox import Toolbox
from dse.errors import ContaminatedSplit, UserError
from dse.evaluation.dataset import Example
from dse.evaluation.evaluator import RolloutRecord
from dse.plan import Plan, Prompt
from dse.redaction import REDACTED
from dse.strategies.base import strategy

__all__ = ["MAX_DEMO_BYTES", "Demonstrations", "bootstrap", "taught"]

MAX_DEMO_BYTES = 12_000


def bootstrap(
    spec: SignatureSpec, mode: str, records: Sequence[RolloutRecord], search: Sequence[Example], allow: Collection[str], *,
    k: int = 2, success: float = 1.0,
) -> tuple[dict[str, Prompt], list[str]] | None:  # fmt: skip
    """Seed prompts of `mode` with up to `k` demonstrations, and the hashes of the rows they come from.

    Only runs with a score of at least `success` that used no tool outside `allow`. The shortest is taken first,
    then whatever shows most tools not shown yet, shorter first, one per cluster. None if there is no such run.
    Sensitive fields and their values are redacted.

    Raises:
        ContaminatedSplit: a record is not from a search row.
    """
    rows = {example.row_hash: example for example in search}
    one = strategy(mode)
    found = []
    for record in records:
        _inside(record, rows)
        if not _solved(record, success, allow):
            continue
        demo = one.demo(record.journal, spec, rows[record.row_hash].inputs, record.outputs or {})
        if demo is None:
            continue
        text = canonical_json(secrets_of(record, spec, rows[record.row_hash]).hide(demo))
        if len(text) <= MAX_DEMO_BYTES:
            # Parsed back: the prompt that is measured has its keys in the order of the one that an artifact carries.
            found.append((len(text), record.row_hash, record.cluster, record.used_tools, parse_json(text)))
    return _prompts(found, one.seed_prompts(spec), k)


_Found = tuple[int, str, str, frozenset[str], Any]  # size, row hash, cluster, tools shown, demonstration


def _prompts(found: list[_Found], seed: Mapping[str, Prompt], k: int) -> tuple[dict[str, Prompt], list[str]] | None:
    """`seed` with at most `k` of what was found, chosen for shortness and then for tools not shown yet."""
    if not found:
        return None
    found.sort(key=lambda item: (item[0], item[1]))
    chosen = [found[0]]
    while len(chosen) < k:
        shown = frozenset().union(*(item[3] for item in chosen))
        clusters = {item[2] for item in chosen}
        rest = [item for item in found if item[2] not in clusters]
        if not rest:
            break
        chosen.append(min(rest, key=lambda item: (-len(item[3] - shown), item[0], item[1])))
    prompts = {name: Prompt(instructions=prompt.instructions, demos=tuple(item[4][name] for item in chosen))
               for name, prompt in seed.items()}  # fmt: skip
    return prompts, [item[1] for item in chosen]


async def taught(
    spec: SignatureSpec, toolbox: Toolbox, mode: str, records: Sequence[RolloutRecord], search: Sequence[Example],
    allow: Collection[str], *, k: int = 2, success: float = 1.0,
) -> tuple[dict[str, Prompt], list[str]] | None:  # fmt: skip
    """Like `bootstrap`, with demonstrations made from solved runs of the other of ``code`` and ``tool_call``.

    Rows that `mode` did not solve itself come first. None if there is nothing to teach.

    Raises:
        ContaminatedSplit: a record is not from a search row.
        SandboxUnavailable: a script could not be checked.
    """
    teacher = {"tool_call": "code", "code": "tool_call"}.get(mode)
    rows = {example.row_hash: example for example in search}
    contracts = {name: toolbox[name].contract for name in allow}
    found: list[_Found] = []
    for record in records:
        _inside(record, rows)
        if record.receipt["mode"] != teacher or not _solved(record, success, allow):
            continue
        example = rows[record.row_hash]
        if mode == "tool_call":
            demo = as_rounds(record, example.inputs)
        else:
            script = as_script(record, example.inputs)
            ok = script is not None and await replays(script, record, spec, example.inputs, contracts)
            demo = {"code": {**example.inputs, "api": "(as below)", "transcript": "(nothing yet)", "code": script}} if ok else None
        if demo is None:
            continue
        text = canonical_json(secrets_of(record, spec, example).hide(demo))
        hidden = mode == "code" and REDACTED in parse_json(text)["code"]["code"]  # a script with a hole is no script
        if len(text) <= MAX_DEMO_BYTES and not hidden:
            found.append((len(text), record.row_hash, record.cluster, record.used_tools, parse_json(text)))
    known = {r.row_hash for r in records if r.receipt["mode"] == mode and r.outcome == "ok" and r.score >= success}
    # One per row: several candidates may have run on it. The rows that are news to the mode go first, whole.
    found = list({item[1]: item for item in sorted(found, key=lambda item: (-item[0], item[1]))}.values())
    news = [item for item in found if item[1] not in known]
    return _prompts(news or found, strategy(mode).seed_prompts(spec), k)


def _inside(record: RolloutRecord, rows: Mapping[str, Example]) -> None:
    if record.row_hash not in rows:
        raise ContaminatedSplit("A demonstration would come from outside the search split", value=record.row_id,
                                remedy="Bootstrap from search rollouts only.")  # fmt: skip


def _solved(record: RolloutRecord, success: float, allow: Collection[str]) -> bool:
    return record.outcome == "ok" and record.score >= success and record.used_tools <= set(allow)


@dataclass(frozen=True)
class Demonstrations:
    """Proposes, per mode, the seed prompt with demonstrations from solved search rollouts. Asks no model, runs nothing.

    Args:
        k: demonstrations per prompt.
        across: what ``code`` solved also teaches ``tool_call``, and the other way round, as a proposal of its own.
        modes: to work on; default all of the search.
    """

    k: int = 2
    across: bool = True
    modes: tuple[str, ...] | None = None
    name: str = "demonstrations"

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            raise UserError("A prompt with demonstrations has at least one", value=repr(self.k), remedy="Give a number from 1.")

    def at_most(self, rows: int, modes: int) -> tuple[int, int]:
        """The most rollouts and reflections: none."""
        return 0, 0

    async def propose(self, search: Search) -> Sequence[Proposal]:
        proposals = []
        for mode in search.modes:
            if (self.modes is not None and mode not in self.modes) or not strategy(mode).seed_prompts(search.spec):
                continue
            allow = () if mode == "direct" else search.lists.minimal
            own = [record for record in search.records if record.receipt["mode"] == mode]
            made = {"demos": bootstrap(search.spec, mode, own, search.rows, allow, k=self.k, success=search.success)}
            if self.across:
                made["taught"] = await taught(search.spec, search.toolbox, mode, search.records, search.rows, allow, k=self.k,
                                              success=search.success)  # fmt: skip
            for prompt, found in made.items():
                if found is not None:
                    prompts, rows = found
                    plan = Plan(mode=mode, prompts=prompts, allow=tuple(allow), limits=search.limits)
                    proposals.append(Proposal(plan, prompt, tuple(rows), (_NOTES[prompt].format(len(rows)),)))
        return proposals


_NOTES = {
    "demos": "{} demonstrations from solved runs of the same mode",
    "taught": "{} demonstrations made from solved runs of the other mode",
}
