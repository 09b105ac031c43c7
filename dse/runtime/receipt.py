"""The receipt of a run: how it is made, its published JSON Schema, and a check against it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.canonical import canonical_json
from dse.errors import DseError, InfrastructureError, RunFailed, RunSuspended, UserError
from dse.redaction import REDACTED, Secrets, redact, safe_message

if TYPE_CHECKING:
    from dse.runtime.run import Run

__all__ = ["check_receipt", "hidden_error", "outcome_of", "receipt_of", "receipt_schema"]

_KINDS = (
    (RunSuspended, "suspended"), (RunFailed, "failed"), (InfrastructureError, "infrastructure"), (DseError, "refused"),
    (asyncio.CancelledError, "cancelled"),
)  # fmt: skip


def outcome_of(exc: BaseException | None) -> str:
    """``ok``, ``suspended``, ``failed``, ``infrastructure``, ``refused``, ``cancelled`` or ``crashed``."""
    if exc is None:
        return "ok"
    return next((outcome for cls, outcome in _KINDS if isinstance(exc, cls)), "crashed")


def hidden_error(exc: BaseException | None, secrets: Secrets) -> dict[str, Any] | None:
    """What ended a run as plain data, without sensitive values; a DseError gives them up itself, too."""
    if exc is None:
        return None
    if not isinstance(exc, DseError):
        what = secrets.text(safe_message(exc))
        return {"code": None, "class": type(exc).__name__, "what": what, "value": None, "remedy": ""}
    error: dict[str, Any] = secrets.scrub(exc.to_dict())
    if secrets.replies and isinstance(exc, RunFailed) and error["value"] is not None:
        error["value"] = REDACTED  # may quote an output that did not fit
    if secrets.names:
        exc.what, exc.value, exc.remedy = error["what"], error["value"], error["remedy"]
    return error


def receipt_of(run: Run, *, model: str | None, outcome: str, outputs: Mapping[str, Any] | None, error: Mapping[str, Any] | None,
               details: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    """The receipt of a run that ended or stopped, without sensitive values.

    Args:
        error: from `hidden_error`. details: of what ended it.
    """
    return {
        "run_id": run.run_id, "program_id": run.program_id, "signature": run.spec.name,
        "mode": run.plan.mode, "model": model, "outcome": outcome, "error": error,
        "limit": details.get("limit"), "limit_outcome": details.get("outcome"),
        "inputs": _shown(run, run.wire_inputs), "outputs": None if outputs is None else _shown(run, outputs),
        "effects": run.effects.summary(), "calls": [run.secrets.scrub(call) for call in run.receipts],
        "usage": dict(run.meter.to_dict()), "attempts": run.attempt + 1, "seed": run.seed,
        "clock": run.clock.isoformat(), "transcript_hash": run.journal.transcript_hash(),
        **({"stages": _stages(run)} if run.stages else {}),
    }  # fmt: skip


def _shown(run: Run, fields: Mapping[str, Any]) -> Any:
    return run.secrets.scrub(redact(dict(fields), run.spec.sensitive))


def _stages(run: Run) -> list[dict[str, Any]]:
    """How the stages of a cascade ended, fit to be shown: a reason may quote an input or an output."""
    hidden = {"reason": REDACTED} if run.secrets.replies else {}
    return [{**run.secrets.scrub(stage), **(hidden if stage["reason"] is not None else {})} for stage in run.stages]


def receipt_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of receipts; ``receipt.schema.json`` next to this module is its text."""
    schema: dict[str, Any] = json.loads(Path(__file__).with_name("receipt.schema.json").read_text(encoding="utf-8"))
    return schema


def check_receipt(receipt: Mapping[str, Any]) -> None:
    """Refuse what is no receipt of this version.

    Raises:
        Unserialisable: it is not plain JSON data.
        UserError: it does not fit the schema; ``details["path"]`` says where.
    """
    import jsonschema  # dspy needs it anyhow; slow to import

    plain = json.loads(canonical_json(receipt))
    errors = jsonschema.Draft202012Validator(receipt_schema()).iter_errors(plain)
    worst = jsonschema.exceptions.best_match(errors)
    if worst is not None:
        raise UserError(f"A receipt does not fit its schema at {worst.json_path}", value=worst.message,
                        remedy="See dse.runtime.receipt.receipt_schema().", path=worst.json_path)  # fmt: skip
