"""dse compiles declared tasks into measured programs.

Declare a signature with tools, ``compile`` it against a dataset, ``load`` the artifact and call it.
Importing dse is light: dspy, pandas, SQLAlchemy, scipy and the interpreter load when first needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. Resolved on first use, so that `import dse` stays light.
_EXPORTS = {
    "Approval": "dse.contracts.tool",
    "Artifact": "dse.artifacts.artifact",
    "Budget": "dse.compiler.budget",
    "Dataset": "dse.evaluation.dataset",
    "DseError": "dse.errors",
    "Environment": "dse.evaluation.environment",
    "Example": "dse.evaluation.dataset",
    "InputField": "dse.contracts.signature",
    "Limits": "dse.limits",
    "Metric": "dse.evaluation.metric",
    "MetricContext": "dse.evaluation.metric",
    "Objective": "dse.objective",
    "OutputField": "dse.contracts.signature",
    "Plan": "dse.plan",
    "Prediction": "dse.program",
    "PriceTable": "dse.models.prices",
    "Program": "dse.program",
    "Prompt": "dse.plan",
    "Rate": "dse.contracts.tool",
    "Registry": "dse.artifacts.registry",
    "RunHandle": "dse.program",
    "Score": "dse.evaluation.metric",
    "Signature": "dse.contracts.signature",
    "Store": "dse.store.journal",
    "Task": "dse.evaluation.task",
    "Tool": "dse.contracts.tool",
    "ToolContext": "dse.contracts.tool",
    "ToolContract": "dse.contracts.tool",
    "Toolbox": "dse.contracts.toolbox",
    "World": "dse.evaluation.environment",
    "compile": "dse.compiler.compile",
    "environment": "dse.evaluation.environment",
    "evaluate": "dse.evaluation.evaluator",
    "load": "dse.program",
    "metric": "dse.evaluation.metric",
    "tool": "dse.contracts.tool",
}

__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from dse.artifacts.artifact import Artifact
    from dse.artifacts.registry import Registry
    from dse.compiler.budget import Budget
    from dse.compiler.compile import compile
    from dse.contracts.signature import InputField, OutputField, Signature
    from dse.contracts.tool import Approval, Rate, Tool, ToolContext, ToolContract, tool
    from dse.contracts.toolbox import Toolbox
    from dse.errors import DseError
    from dse.evaluation.dataset import Dataset, Example
    from dse.evaluation.environment import Environment, World, environment
    from dse.evaluation.evaluator import evaluate
    from dse.evaluation.metric import Metric, MetricContext, Score, metric
    from dse.evaluation.task import Task
    from dse.limits import Limits
    from dse.models.prices import PriceTable
    from dse.objective import Objective
    from dse.plan import Plan, Prompt
    from dse.program import Prediction, Program, RunHandle, load
    from dse.store.journal import Store


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'dse' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
