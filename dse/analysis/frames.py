"""pandas frames of candidates, rollouts and calls, from a store or an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.errors import UserError
from dse.store.rollouts import uncollected

if TYPE_CHECKING:
    import pandas as pd

    from dse.artifacts.artifact import Artifact
    from dse.store.journal import Store

__all__ = ["calls", "candidates", "paired", "rollouts", "runs"]

_CANDIDATE = (
    "candidate", "mode", "allow", "n", "quality", "quality_low", "quality_high", "cost_usd", "cost_source", "tokens_in",
    "tokens_out", "usage_source", "latency_s", "latency_source", "model_calls", "tool_calls", "failures",
)  # fmt: skip
_ROLLOUT = (
    "rollout_id", "program_id", "signature", "mode", "model", "allow", "row_id", "row_hash", "cluster", "replicate",
    "outcome", "error_class", "metric", "score", "feedback", "components", "model_calls", "tool_calls", "input_tokens",
    "output_tokens", "usage_source", "cost_usd", "cost_source", "latency_s", "latency_source", "created", "candidate",
    "stage",
)  # fmt: skip
_RUN = (
    "run_id", "program_id", "artifact_id", "signature", "mode", "model", "outcome", "error_code", "limit", "created", "updated",
    "attempts", "model_calls", "tool_calls", "input_tokens", "output_tokens", "usage_source", "cost_usd", "cost_source",
    "model_latency_s", "active_s", "effects",
)  # fmt: skip
_CALL = ("rollout_id", "signature", "mode", "call_id", "tool", "effect", "outcome", "fault", "latency_s")


def _frame(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    """With all columns, also where there are no rows."""
    import pandas as pd

    return pd.DataFrame({name: [row.get(name) for row in rows] for name in columns}, columns=list(columns))


def _artifact(source: Any) -> Any:
    """An artifact, also from a reference to one."""
    if isinstance(source, (str, Path)):
        from dse.artifacts.registry import Registry

        return Registry.resolve(source)
    if not hasattr(source, "evidence"):
        raise UserError("This is no artifact", value=type(source).__name__,
                        remedy="Pass a dse.Artifact, or a reference such as artifacts/Name@champion.")  # fmt: skip
    return source


def _store(source: Any) -> Store:
    if not hasattr(source, "compiles"):
        raise UserError("This is no store", value=repr(source),
                        remedy="Pass a dse.Store, for example dse.Store('artifacts/dse.db').")  # fmt: skip
    found: Store = source
    return found


def candidates(source: Artifact | Store | str | Path, compile_id: str | None = None) -> pd.DataFrame:
    """One row per candidate on select rows. `source` may also be a reference to an artifact.

    Columns: candidate, mode, allow (tuple), n, quality, quality_low, quality_high (95%), cost_usd, cost_source,
    tokens_in, tokens_out (per run), usage_source, latency_s, latency_source, model_calls, tool_calls (per run),
    failures; from an artifact also program_id, from a store compile_id and signature.
    """
    if not hasattr(source, "compiles"):
        rows = [{**dict(row), "allow": tuple(row.allow)} for row in _artifact(source).evidence.modes]
        return _frame(rows, (*_CANDIDATE, "program_id"))
    rows = [
        {"compile_id": compiled["compile_id"], "signature": compiled["signature"], "candidate": name,
         "mode": name.split("/")[0], **row, "allow": tuple(row["allow"])}
        for compiled in source.compiles() if compile_id in (None, compiled["compile_id"])
        for name, row in compiled["report"]["table"].items()
    ]  # fmt: skip
    return _frame(rows, ("compile_id", "signature", *_CANDIDATE))


@uncollected()
def rollouts(store: Store, signature: str | None = None) -> pd.DataFrame:
    """One row per (rollout, metric), and per rollout without a score: what ran, how it went, what it used.

    Columns: rollout_id, program_id, signature, mode, model, allow, row_id, row_hash, cluster, replicate, outcome,
    error_class, metric, score, feedback, components, model_calls, tool_calls, input_tokens, output_tokens,
    usage_source, cost_usd and cost_source (as priced when it ran), latency_s, latency_source, created; and candidate
    and stage, the name and the part of a compile under which it was used last (None: outside a compile).
    """
    import pandas as pd

    named: dict[str, tuple[str, str]] = {}
    for compiled in _store(store).compiles():
        for stage, pairs in compiled["report"]["rollouts"].items():
            for name, rollout_id in pairs:
                named[rollout_id] = (name, stage)
    names, rows = store.rollout_table(signature=signature)
    columns: dict[str, list[Any]] = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    used = [named.get(rollout_id, (None, None)) for rollout_id in columns["rollout_id"]]
    columns["candidate"], columns["stage"] = [name for name, _ in used], [stage for _, stage in used]
    lists = {text: tuple(json.loads(text or "[]")) for text in set(columns["allow"])}
    columns["allow"] = [lists[text] for text in columns["allow"]]
    parts = {text: json.loads(text or "null") for text in set(columns["components"])}
    columns["components"] = [None if parts[text] is None else parts[text].copy() for text in columns["components"]]
    return pd.DataFrame(columns, columns=list(_ROLLOUT))


@uncollected()
def calls(store: Store, signature: str | None = None) -> pd.DataFrame:
    """One row per tool call: rollout_id, signature, mode, call_id, tool, effect, outcome, fault, latency_s (None where the
    run was replayed)."""
    import pandas as pd

    own = _CALL[3:]
    rows = [(*rollout, *[call.get(name) for name in own])
            for *rollout, calls in _store(store).calls(signature) for call in calls]  # fmt: skip
    return pd.DataFrame(rows, columns=list(_CALL))


def paired(artifact: Artifact | str | Path) -> pd.DataFrame:
    """The sealed rows of an artifact's gate. `artifact` may also be a reference.

    Columns: row_hash, cluster, candidate_score, incumbent_score, candidate_cost, incumbent_cost, candidate_latency,
    incumbent_latency, difference (of the scores), utility_difference (under the objective: what the gate tests).
    """
    import pandas as pd

    evidence = _artifact(artifact).evidence.paired
    frame = pd.DataFrame([list(row) for row in evidence.rows], columns=list(evidence.columns))
    objective, removed = evidence.objective, evidence.baseline_exposure - evidence.candidate_exposure
    frame["difference"] = frame["candidate_score"] - frame["incumbent_score"]
    frame["utility_difference"] = [
        objective.utility(a - b, _less(cost, other_cost), _less(latency, other_latency), removed)
        for _, _, a, b, cost, other_cost, latency, other_latency in evidence.rows
    ]
    return frame


def runs(store: Store, signature: str | None = None) -> pd.DataFrame:
    """One row per kept run, oldest first: what ran, how it ended, what it used, how it was judged.

    Columns: run_id, program_id, artifact_id (None without one), signature, mode, model, outcome, error_code, limit, created,
    updated, attempts, model_calls, tool_calls, input_tokens, output_tokens, usage_source, cost_usd, cost_source,
    model_latency_s and active_s (seconds), effects; all after ``updated`` as of its last stop. And a column
    ``judged.<name>`` for every name of a judgement, with its value.
    """
    judged: dict[str, dict[str, float]] = {}
    for one in _store(store).judgements():
        judged.setdefault(one["run_id"], {})[f"judged.{one['name']}"] = one["value"]
    rows = []
    for run in store.receipts(signature=signature):
        receipt = run["receipt"] or {}
        error = receipt.get("error") or {}
        rows.append({**receipt, **receipt.get("usage", {}), **run, "error_code": error.get("code"), **judged.get(run["run_id"], {})})
    names = sorted({name for row in rows for name in row if name.startswith("judged.")})
    return _frame(rows, (*_RUN, *names))


def _less(mine: float | None, theirs: float | None) -> float | None:
    return None if mine is None or theirs is None else mine - theirs
