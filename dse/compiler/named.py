"""Proposers by name, for a shell."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from dse.compiler.search import Proposer
from dse.errors import UserError

__all__ = ["NAMES", "proposers"]

NAMES = {
    "demonstrations": ("dse.compiler.prompts", "Demonstrations"),
    "evolve": ("dse.compiler.evolve", "Evolve"),
    "distill": ("dse.compiler.distill", "Distill"),
    "cascades": ("dse.compiler.cascades", "Cascades"),
}


def proposers(names: Iterable[str]) -> list[Proposer]:
    """With their default settings, in the order in which they build on each other; ``all`` for every one.

    Raises:
        UserError: there is none of this name.
    """
    asked = list(names)
    unknown = sorted(set(asked) - {*NAMES, "all"})
    if unknown:
        raise UserError("Nothing of this name proposes candidates", value=unknown[0], remedy=f"Choose {', '.join(NAMES)} or all.")
    return [getattr(importlib.import_module(module), attribute)() for name, (module, attribute) in NAMES.items()
            if name in asked or "all" in asked]  # fmt: skip
