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
    "Check": "dse.contracts.check",
    "Dataset": "dse.evaluation.dataset",
    "Cascades": "dse.compiler.cascades",
    "Decision": "dse.durable",
    "Demonstrations": "dse.compiler.prompts",
    "Distill": "dse.compiler.distill",
    "DspyOptimizer": "dse.compiler.optimizers",
    "DseError": "dse.errors",
    "Environment": "dse.evaluation.environment",
    "Evolve": "dse.compiler.evolve",
    "Example": "dse.evaluation.dataset",
    "InputField": "dse.contracts.signature",
    "Judge": "dse.evaluation.judge",
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
    "Proposal": "dse.compiler.search",
    "Proposer": "dse.compiler.search",
    "Rate": "dse.contracts.tool",
    "Registry": "dse.artifacts.registry",
    "Rows": "dse.compiler.compile",
    "RunHandle": "dse.program",
    "Score": "dse.evaluation.metric",
    "Script": "dse.contracts.script",
    "Search": "dse.compiler.search",
    "Signature": "dse.contracts.signature",
    "Space": "dse.compiler.space",
    "Store": "dse.store.journal",
    "Task": "dse.evaluation.task",
    "Tool": "dse.contracts.tool",
    "ToolContext": "dse.contracts.tool",
    "ToolContract": "dse.contracts.tool",
    "Toolbox": "dse.contracts.toolbox",
    "World": "dse.evaluation.environment",
    "arun_script": "dse.scripts",
    "check": "dse.contracts.check",
    "compile": "dse.compiler.compile",
    "environment": "dse.evaluation.environment",
    "evaluate": "dse.evaluation.evaluator",
    "forecast": "dse.compiler.compile",
    "load": "dse.loading",
    "metric": "dse.evaluation.metric",
    "run_script": "dse.scripts",
    "script_tool": "dse.runtime.script_tool",
    "tool": "dse.contracts.tool",
}

__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from dse import telemetry as telemetry
    from dse.artifacts.artifact import Artifact as Artifact
    from dse.artifacts.registry import Registry as Registry
    from dse.compiler.budget import Budget as Budget
    from dse.compiler.cascades import Cascades as Cascades
    from dse.compiler.compile import Rows as Rows
    from dse.compiler.compile import compile as compile
    from dse.compiler.compile import forecast as forecast
    from dse.compiler.distill import Distill as Distill
    from dse.compiler.evolve import Evolve as Evolve
    from dse.compiler.optimizers import DspyOptimizer as DspyOptimizer
    from dse.compiler.prompts import Demonstrations as Demonstrations
    from dse.compiler.search import Proposal as Proposal
    from dse.compiler.search import Proposer as Proposer
    from dse.compiler.search import Search as Search
    from dse.compiler.space import Space as Space
    from dse.contracts.check import Check as Check
    from dse.contracts.check import check as check
    from dse.contracts.script import Script as Script
    from dse.contracts.signature import InputField as InputField
    from dse.contracts.signature import OutputField as OutputField
    from dse.contracts.signature import Signature as Signature
    from dse.contracts.tool import Approval as Approval
    from dse.contracts.tool import Rate as Rate
    from dse.contracts.tool import Tool as Tool
    from dse.contracts.tool import ToolContext as ToolContext
    from dse.contracts.tool import ToolContract as ToolContract
    from dse.contracts.tool import tool as tool
    from dse.contracts.toolbox import Toolbox as Toolbox
    from dse.durable import Decision as Decision
    from dse.errors import DseError as DseError
    from dse.evaluation.dataset import Dataset as Dataset
    from dse.evaluation.dataset import Example as Example
    from dse.evaluation.environment import Environment as Environment
    from dse.evaluation.environment import World as World
    from dse.evaluation.environment import environment as environment
    from dse.evaluation.evaluator import evaluate as evaluate
    from dse.evaluation.judge import Judge as Judge
    from dse.evaluation.metric import Metric as Metric
    from dse.evaluation.metric import MetricContext as MetricContext
    from dse.evaluation.metric import Score as Score
    from dse.evaluation.metric import metric as metric
    from dse.evaluation.task import Task as Task
    from dse.limits import Limits as Limits
    from dse.loading import load as load
    from dse.models.prices import PriceTable as PriceTable
    from dse.objective import Objective as Objective
    from dse.plan import Plan as Plan
    from dse.plan import Prompt as Prompt
    from dse.program import Prediction as Prediction
    from dse.program import Program as Program
    from dse.program import RunHandle as RunHandle
    from dse.runtime.script_tool import script_tool as script_tool
    from dse.scripts import arun_script as arun_script
    from dse.scripts import run_script as run_script
    from dse.store.journal import Store as Store


def __getattr__(name: str) -> Any:
    if name in ("analysis", "telemetry"):  # modules, and no part of what everybody needs
        return importlib.import_module(f"dse.{name}")
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'dse' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
