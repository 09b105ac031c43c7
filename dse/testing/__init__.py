"""For tests of programs and tasks: scripted models and engines, a loopback model server with faults, planted worlds."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "AsyncScriptedEngine": "scripted", "FakeOpenAI": "server", "Faults": "faults", "PlantedWorld": "worlds",
    "ScriptedEngine": "scripted", "ScriptedModel": "scripted", "answers": "faults", "call": "scripted",
    "register_loopback_provider": "server", "say": "scripted",
}  # fmt: skip
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dse.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dse.testing.{_EXPORTS[name]}"), name)
