"""Scripts as data: what a signature may declare as an output, to be run later by whoever decides to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Script", "scripts_in"]


class Script(BaseModel):
    """A Python script to be run later."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        description="Python. Tools are async functions: await each call. The dict `inputs` is there as a variable. "
        "The value of the last line is the result."
    )
    externals: list[str] = Field(description="names of the tools that the source calls: all of them, and no others")


def scripts_in(value: Any, path: str = "") -> Iterator[tuple[str, Script]]:
    """Every script in a typed value, with where it is: ``plan``, ``steps.0``."""
    if isinstance(value, Script):
        yield path or "value", value
        return
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, BaseModel):
        items = iter(value)
    elif isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        items = iter(enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    for key, item in items:
        yield from scripts_in(item, f"{path}.{key}" if path else str(key))
