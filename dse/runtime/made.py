"""Values that a type makes up: a default factory, or a function of its own, may give something else every time.

An execution that follows a record is given the same as the earlier one, and must not make something else of it. Where that
could happen, the journal says what was given, as a hash, beside what became of it.
"""

from __future__ import annotations

import functools
from typing import Any

from pydantic import BaseModel, TypeAdapter

from dse.canonical import canonical_json, sha256_hex
from dse.errors import Unserialisable

__all__ = ["hash_of", "may_differ"]

_OWN = ("default_factory", "computed_fields", "post_init", "custom_init")  # in a core schema: code of the type's author


@functools.lru_cache(maxsize=4096)
def may_differ(of: type[BaseModel] | TypeAdapter[Any]) -> bool:
    """Whether validating the same twice may give two different values."""
    return _has_own(of.core_schema if isinstance(of, TypeAdapter) else of.__pydantic_core_schema__)


def _has_own(part: Any) -> bool:
    if isinstance(part, dict):
        if any(part.get(name) for name in _OWN) or str(part.get("type", "")).startswith("function-"):
            return True
        return any(_has_own(value) for name, value in part.items() if name != "metadata")
    return isinstance(part, (list, tuple)) and any(map(_has_own, part))


def hash_of(given: Any) -> str | None:
    """Hash of what was given; None for what JSON cannot hold."""
    try:
        return f"sha256:{sha256_hex(canonical_json(given))}"
    except (Unserialisable, RecursionError):
        return None
