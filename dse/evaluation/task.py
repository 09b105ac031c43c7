"""Task: a signature with what is needed to measure and run it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dse.contracts.check import Check, checks_by_name
from dse.contracts.signature import Signature, SignatureSpec
from dse.contracts.toolbox import Toolbox
from dse.declared import known_fields
from dse.errors import DatasetError, InvalidValue, MetricError, PlanError, UserError
from dse.evaluation.environment import Environment, environment
from dse.limits import Limits
from dse.objective import Objective
from dse.plan import spec_of
from dse.strategies.base import modes as known_modes

__all__ = ["Task"]


@known_fields
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
        objective: what counts as better, a ``dse.Objective`` or its fields; default quality alone, nothing else has a price.
        limits: of every run, ``dse.Limits`` or a mapping of its fields.
        required: tools that stay on every allow-list; programs without them (mode ``direct`` has no tools) are left out.
        modes: strategies to consider; default all that fit the signature.
        checks: functions declared with ``@dse.check``, for plans that name one.

    Raises:
        PlanError: `required` or `limits` names a tool that the signature does not declare, or `modes` one that there is not.
        InvalidValue: a field, of the task or of its objective or limits, that there is not, or that is out of range.
        SignatureError, MetricError, UserError: the signature, the metric or the environment is none.
    """

    signature: type[Signature]
    dataset: Any
    metric: Any
    environment: Any = None
    toolbox: Toolbox | None = None
    deps: Any = None
    objective: Objective = field(default_factory=Objective)
    limits: Limits = field(default_factory=Limits)  # a mapping becomes one
    required: Iterable[str] = ()
    modes: Iterable[str] | None = None
    checks: Iterable[Check] = ()

    def __post_init__(self) -> None:
        from dse.evaluation import metric as metrics
        from dse.evaluation.metric import Metric, metric

        spec_of(self.signature)
        if self.metric in (metrics.exact_match, metrics.numeric, metrics.set_f1):
            raise MetricError(f"{self.metric.__name__} makes a metric when it is called", value=f"metric={self.metric.__name__}",
                              remedy=f"Write metric={self.metric.__name__}(...).")  # fmt: skip
        if isinstance(self.metric, str):
            raise MetricError("A metric is a function, not its name", value=repr(self.metric),
                              remedy="Write metric=exact_match() (of dse.evaluation.metric), or your own "
                                     "(example, prediction, ctx) -> float.")  # fmt: skip
        if not isinstance(self.metric, Metric):
            object.__setattr__(self, "metric", metric(self.metric))
        if self.environment is not None and not callable(self.environment):
            raise UserError("An environment is a function of an example that makes a dse.World", value=repr(self.environment),
                            remedy="Pass the function itself, declared with @dse.environment.")  # fmt: skip
        for name, kind in (("objective", Objective), ("limits", Limits)):
            given: Any = getattr(self, name)
            if isinstance(given, Mapping):
                given = kind(**given)
                object.__setattr__(self, name, given)
            if not isinstance(given, kind):
                raise InvalidValue(f"dse.Task takes {name}= as a dse.{kind.__name__}, or a mapping of its fields", value=repr(given),
                                   remedy=f"Write {name}=dse.{kind.__name__}(...).")  # fmt: skip
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
        if bounded := sorted(set(self.limits.calls_per_tool) - set(self.spec.tool_names)):
            raise PlanError("The task's limits name tools that its signature does not declare", value=", ".join(bounded),
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
