"""Frames, plots and reports from a store or an artifact. pandas and matplotlib load when first needed."""

from __future__ import annotations

from typing import Any

_EXPORTS = {
    "calls": "dse.analysis.frames", "candidates": "dse.analysis.frames", "paired": "dse.analysis.frames",
    "rollouts": "dse.analysis.frames", "runs": "dse.analysis.frames", "plot_pareto": "dse.analysis.plots",
    "plot_quality": "dse.analysis.plots", "plot_wins": "dse.analysis.plots", "explain": "dse.analysis.explanation",
}  # fmt: skip
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'dse.analysis' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)
