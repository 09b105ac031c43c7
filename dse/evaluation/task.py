"""Task: a signature with what is needed to measure and run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse.contracts.signature import Signature, SignatureSpec
from dse.contracts.toolbox import Toolbox
from dse.evaluation.environment import Environment, environment
from dse.limits import Limits
from dse.objective import Objective

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """What ``dse.compile`` and ``dse eval`` take.

    Attributes:
        signature: the declaration.
        dataset: a folder, or a ``dse.Dataset``.
        metric: ``@dse.metric`` or a plain function ``(example, prediction, ctx) -> float | dse.Score``.
        environment: needed where the signature has write tools; a fresh world per rollout.
        toolbox: implementations; default the signature's own tools.
        deps: dependencies for runs outside an environment.
        objective: what counts as better.
        limits: of every run.
        required: tools that stay on every allow-list.
        modes: strategies to consider; default all that fit the signature.
    """

    signature: type[Signature]
    dataset: Any
    metric: Any
    environment: Environment | Callable[..., Any] | None = None
    toolbox: Toolbox | None = None
    deps: Any = None
    objective: Objective = Objective()
    limits: Limits = Limits()
    required: Iterable[str] = ()
    modes: Iterable[str] | None = None

    def __post_init__(self) -> None:
        from dse.evaluation.metric import Metric, metric

        if not isinstance(self.metric, Metric):
            object.__setattr__(self, "metric", metric(self.metric))
        if self.environment is not None and not isinstance(self.environment, Environment):
            object.__setattr__(self, "environment", environment(self.environment))
        if self.toolbox is None:
            object.__setattr__(self, "toolbox", self.spec.toolbox())
        object.__setattr__(self, "required", tuple(sorted(self.required)))

    @property
    def spec(self) -> SignatureSpec:
        return self.signature.spec()

    def load_dataset(self) -> Any:
        """The dataset, checked against the signature."""
        from dse.evaluation.dataset import Dataset

        data = Dataset.load(self.dataset) if isinstance(self.dataset, (str, Path)) else self.dataset
        data.check(self.signature)
        return data
