"""Task: a signature with what is needed to measure and run it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dse.contracts.check import Check, checks_by_name
from dse.contracts.signature import Signature, SignatureSpec
from dse.contracts.toolbox import Toolbox
from dse.errors import DatasetError, PlanError
from dse.evaluation.environment import Environment, environment
from dse.limits import Limits
from dse.objective import Objective
from dse.strategies.base import modes as known_modes

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """What ``dse.compile`` and ``dse eval`` take.

    Attributes:
        signature: the declaration.
        dataset: a folder, or a ``dse.Dataset``.
        metric: ``@dse.metric`` or a plain function ``(example, prediction, ctx) -> float | dse.Score``.
        environment: ``@dse.environment``, or a plain function or generator; a fresh world per rollout. Needed where
            the signature has write tools.
        toolbox: implementations; default the signature's own tools.
        deps: dependencies for runs outside an environment.
        objective: what counts as better; default quality alone, nothing else has a price.
        limits: of every run.
        required: tools that stay on every allow-list.
        modes: strategies to consider; default all that fit the signature.
        checks: functions declared with ``@dse.check``, for plans that name one.

    Raises:
        PlanError: `required` names a tool that the signature does not declare, or `modes` one that there is not.
    """

    signature: type[Signature]
    dataset: Any
    metric: Any
    environment: Any = None
    toolbox: Toolbox | None = None
    deps: Any = None
    objective: Objective = field(default_factory=Objective)
    limits: Limits = field(default_factory=Limits)
    required: Iterable[str] = ()
    modes: Iterable[str] | None = None
    checks: Iterable[Check] = ()

    def __post_init__(self) -> None:
        from dse.evaluation.metric import Metric, metric

        if not isinstance(self.metric, Metric):
            object.__setattr__(self, "metric", metric(self.metric))
        if self.environment is not None and not isinstance(self.environment, Environment):
            object.__setattr__(self, "environment", environment(self.environment))
        if self.toolbox is None:
            object.__setattr__(self, "toolbox", self.spec.toolbox())
        object.__setattr__(self, "checks", tuple(checks_by_name(self.checks).values()))
        object.__setattr__(self, "required", tuple(sorted(set(self.required))))
        unknown = sorted(set(self.required) - set(self.spec.tool_names))
        if unknown:
            raise PlanError("The task requires tools that its signature does not declare", value=", ".join(unknown),
                            remedy=f"It declares: {', '.join(self.spec.tool_names) or 'no tools'}.")  # fmt: skip
        if self.modes is not None:
            object.__setattr__(self, "modes", (self.modes,) if isinstance(self.modes, str) else tuple(self.modes))
            strange = sorted(set(self.modes) - set(known_modes()))
            if strange:
                raise PlanError("The task names modes that there are not", value=", ".join(strange),
                                remedy=f"The modes are: {', '.join(known_modes())}.")  # fmt: skip

    @property
    def spec(self) -> SignatureSpec:
        return self.signature.spec()

    def load_dataset(self) -> Any:
        """The dataset, checked against the signature.

        Raises:
            DatasetError
        """
        from dse.evaluation.dataset import Dataset

        data = Dataset.load(self.dataset) if isinstance(self.dataset, (str, Path)) else self.dataset
        if not isinstance(data, Dataset):
            raise DatasetError("A task's dataset is a folder or a dse.Dataset", value=type(data).__name__,
                               remedy="Make one with Dataset.from_rows, from_csv, from_pandas ...")  # fmt: skip
        data.check(self.signature)
        return data
