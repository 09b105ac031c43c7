"""What of rollouts must not be shown to a model or written into an artifact."""

from __future__ import annotations

from collections.abc import Iterable, Set

from dse.contracts.signature import SignatureSpec
from dse.evaluation.dataset import Example
from dse.evaluation.evaluator import RolloutRecord
from dse.redaction import Secrets

__all__ = ["secrets_of", "secrets_of_all"]


def secrets_of(record: RolloutRecord, spec: SignatureSpec, example: Example) -> Secrets:
    """The sensitive names of a task, and their values in this rollout."""
    return secrets_of_all(spec, [example], [record])


def secrets_of_all(spec: SignatureSpec, rows: Iterable[Example], records: Iterable[RolloutRecord]) -> Secrets:
    """The sensitive names of a task, and their values in these rows and rollouts, as far as they can be known."""
    contracts = {tool.name: tool.contract for tool in spec.tools}
    whole = {name for name, contract in contracts.items() if "return" in contract.sensitive}
    names = spec.sensitive.union(*(contract.sensitive for contract in contracts.values())) - {"return"}
    secrets = Secrets(names, replies=any(f.sensitive for f in spec.outputs.values()))
    secrets.results.update(whole)
    if not names and not whole:
        return secrets
    for row in rows:
        for fields in (row.inputs, row.labels):
            secrets.remember(fields, names)
    for record in records:
        secrets.remember(record.outputs, names)
        _remember_journal(secrets, record, names, whole)
    return secrets


def _remember_journal(secrets: Secrets, record: RolloutRecord, names: Set[str], whole: Set[str]) -> None:
    """Values that passed through a run: also what was only asked for, or refused.

    Args:
        whole: tools whose whole result is sensitive.
    """
    for entry in record.journal:
        kind = entry["kind"]
        for call in entry["calls"] if kind == "round" else ():
            secrets.remember(call["arguments"], names)
            secrets.remember(call["result"], None if call["name"] in whole else names)
        if kind == "model_call":
            for call in entry["tool_calls"]:
                secrets.remember(call["arguments"], names)
        elif kind in ("tool_intent", "tool_refused"):
            secrets.remember(entry.get("arguments"), names)
        elif kind == "tool_outcome":
            secrets.remember(entry["result"], None if entry["tool"] in whole else names)
