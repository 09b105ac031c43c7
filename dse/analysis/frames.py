"""pandas frames of candidates, rollouts and calls, from a store or an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from dse.artifacts.artifact import Artifact
    from dse.store.journal import Store

__all__ = ["calls", "candidates", "paired", "rollouts"]


def candidates(source: Artifact | Store, compile_id: str | None = None) -> pd.DataFrame:
    """One row per candidate on select rows.

    Columns: candidate, mode, allow (tuple), n, quality, quality_low, quality_high (95%), cost_usd, cost_source,
    tokens_in, tokens_out (per run), usage_source, latency_s, model_calls, tool_calls (per run), failures; from a store
    also compile_id and signature.
    """
    import pandas as pd

    if hasattr(source, "evidence"):
        frame = pd.DataFrame([dict(row) for row in source.evidence.modes])
        if not frame.empty:
            frame["allow"] = frame["allow"].map(tuple)
        return frame
    rows = []
    for compiled in source.compiles():
        if compile_id in (None, compiled["compile_id"]):
            for name, row in compiled["report"]["table"].items():
                rows.append({"compile_id": compiled["compile_id"], "signature": compiled["signature"], "candidate": name,
                             "mode": name.split("/")[0], **row})  # fmt: skip
    return pd.DataFrame(rows)


def rollouts(store: Store, signature: str | None = None) -> pd.DataFrame:
    """One row per (rollout, metric): score, outcome, error_class, tokens, cost, latency, calls, and the stages and
    candidate names under which compiles used it.

    Columns: rollout_id, signature, mode, model, row_id, row_hash, cluster, replicate, outcome, error_class, score, metric,
    feedback, model_calls, tool_calls, input_tokens, output_tokens, usage_source, cost_usd, cost_source, latency_s,
    latency_source, candidate, stage.
    """
    import pandas as pd

    frame = pd.DataFrame(store.rollouts())
    if frame.empty:
        return frame
    named: dict[str, tuple[str, str]] = {}
    for compiled in store.compiles():
        for stage, pairs in compiled["report"]["rollouts"].items():
            for name, rollout_id in pairs:
                named[rollout_id] = (name, stage)
    frame["candidate"] = frame["rollout_id"].map(lambda r: named.get(r, (None, None))[0])
    frame["stage"] = frame["rollout_id"].map(lambda r: named.get(r, (None, None))[1])
    frame = frame.drop(columns=["receipt", "outputs"])
    return frame[frame["signature"] == signature].reset_index(drop=True) if signature else frame


def calls(store: Store, signature: str | None = None) -> pd.DataFrame:
    """One row per tool call: rollout_id, signature, mode, call_id, tool, effect, outcome, fault, latency_s (None where the
    run was replayed)."""
    import pandas as pd

    rows = []
    for rollout in store.rollouts():
        if signature in (None, rollout["signature"]):
            for call in rollout["receipt"]["calls"]:
                rows.append({"rollout_id": rollout["rollout_id"], "signature": rollout["signature"], "mode": rollout["mode"],
                             "call_id": call["call_id"], "tool": call["tool"], "effect": call["effect"],
                             "outcome": call["outcome"], "fault": call.get("fault"), "latency_s": call.get("latency_s")})  # fmt: skip
    return pd.DataFrame(rows)


def paired(artifact: Artifact) -> pd.DataFrame:
    """The sealed rows of an artifact's gate: row_hash, cluster, candidate_score, incumbent_score, costs, latencies, difference."""
    import pandas as pd

    columns = ["row_hash", "cluster", "candidate_score", "incumbent_score", "candidate_cost", "incumbent_cost",
               "candidate_latency", "incumbent_latency"]  # fmt: skip
    frame = pd.DataFrame([list(row) for row in _rows(artifact)], columns=columns)
    frame["difference"] = frame["candidate_score"] - frame["incumbent_score"]
    return frame


def _rows(artifact: Any) -> Any:
    paired_rows = artifact.evidence.paired
    return paired_rows["rows"] if isinstance(paired_rows, dict) else paired_rows.rows
