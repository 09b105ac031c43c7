"""What of a rollout must not be shown to a model or written into an artifact."""

from __future__ import annotations

from dse.contracts.signature import SignatureSpec
from dse.evaluation.dataset import Example
from dse.evaluation.evaluator import RolloutRecord
from dse.redaction import Secrets

__all__ = ["secrets_of"]


def secrets_of(record: RolloutRecord, spec: SignatureSpec, example: Example) -> Secrets:
    """The sensitive names of a task, and their values in this rollout."""
    contracts = {tool.name: tool.contract for tool in spec.tools}
    whole = {name for name, contract in contracts.items() if "return" in contract.sensitive}
    names = spec.sensitive.union(*(contract.sensitive for contract in contracts.values())) - {"return"}
    secrets = Secrets(names, replies=any(f.sensitive for f in spec.outputs.values()))
    secrets.results.update(whole)
    if not names and not whole:
        return secrets
    for fields in (example.inputs, example.labels, record.outputs):
        secrets.remember(fields, names)
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
    return secrets
