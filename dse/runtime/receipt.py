"""The receipt of a run as a document: its published JSON Schema, and a check against it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dse.canonical import canonical_json
from dse.errors import UserError

__all__ = ["check_receipt", "receipt_schema"]


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
