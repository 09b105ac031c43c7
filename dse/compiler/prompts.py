"""Bootstrapped demonstrations: successful, verified runs on search rows, as data for a plan's prompts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from dse.canonical import canonical_json, parse_json
from dse.contracts.signature import SignatureSpec
from dse.errors import ContaminatedSplit
from dse.evaluation.dataset import Example
from dse.evaluation.evaluator import RolloutRecord
from dse.plan import Prompt
from dse.redaction import Secrets
from dse.strategies.base import strategy

__all__ = ["MAX_DEMO_BYTES", "bootstrap"]

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
        if record.row_hash not in rows:
            raise ContaminatedSplit("A demonstration would come from outside the search split", value=record.row_id,
                                    remedy="Bootstrap from search rollouts only.")  # fmt: skip
        if record.outcome != "ok" or record.score < success or not record.used_tools <= set(allow):
            continue
        demo = one.demo(record.journal, spec, rows[record.row_hash].inputs, record.outputs or {})
        if demo is None:
            continue
        text = canonical_json(_without_secrets(demo, record, spec, rows[record.row_hash]))
        if len(text) <= MAX_DEMO_BYTES:
            # Parsed back: the prompt that is measured has its keys in the order of the one that an artifact carries.
            found.append((len(text), record.row_hash, record.cluster, record.used_tools, parse_json(text)))
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
               for name, prompt in one.seed_prompts(spec).items()}  # fmt: skip
    return prompts, [item[1] for item in chosen]


def _without_secrets(demo: dict[str, Any], record: RolloutRecord, spec: SignatureSpec, example: Example) -> dict[str, Any]:
    """`demo` as it may be put into an artifact."""
    contracts = {tool.name: tool.contract for tool in spec.tools}
    whole = {name for name, contract in contracts.items() if "return" in contract.sensitive}
    names = spec.sensitive.union(*(contract.sensitive for contract in contracts.values())) - {"return"}
    if not names and not whole:
        return demo
    secrets = Secrets(names)
    for fields in (example.inputs, record.outputs):
        secrets.remember(fields, names)
    for entry in record.journal:
        for call in entry["calls"] if entry["kind"] == "round" else ():
            secrets.remember(call["arguments"], names)
            secrets.remember(call["result"], None if call["name"] in whole else names)
    hidden: dict[str, Any] = secrets.hide(demo)
    return hidden
