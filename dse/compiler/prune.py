"""Placeholder until merged."""
from __future__ import annotations

from typing import Any


def why_not(*args: Any, **kw: Any) -> str | None:
    return None
