"""Where rollouts run: in this process, or in workers on one machine or many.

The driver, the process that evaluates, keeps what there is only one of: the model with its budget and recording, the store,
the metric, and the rates of tools. An executor runs everything else of a rollout: its strategy, the sandbox, the tools and
the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dse.errors import UserError
from dse.evaluation.rollout import Rollout, attempt

if TYPE_CHECKING:
    from dse.models.lm import LanguageModel

__all__ = ["Executor", "LocalExecutor", "check_executor", "executor_for"]


@runtime_checkable
class Executor(Protocol):
    """Runs one attempt at a rollout at a time, many at once.

    The row it gives is the one that `dse.evaluation.rollout.attempt` gives, and it raises what that raises: an error of a
    worker's keeps its class, code and details. A worker that is lost is an ``InfrastructureError``: the evaluator asks again.
    """

    async def run(self, rollout: Rollout, model: LanguageModel | None) -> dict[str, Any]: ...

    async def aclose(self) -> None: ...


class LocalExecutor:
    """Runs rollouts in this process: as many at once as the evaluator starts, on one core."""

    async def run(self, rollout: Rollout, model: LanguageModel | None) -> dict[str, Any]:
        return await attempt(rollout, model)

    async def aclose(self) -> None:
        """Nothing to close."""


def check_executor(executor: Executor | str) -> None:
    """
    Raises:
        UserError: it is none, or needs what is not installed.
    """
    if isinstance(executor, str) and executor in ("local", "ray"):
        if executor == "ray":
            from dse.evaluation.ray_executor import needs_ray

            needs_ray()
    elif isinstance(executor, (str, type)) or not isinstance(executor, Executor):
        raise UserError("No such executor", value=executor,
                        remedy="Use 'local', 'ray' or an object such as RayExecutor(workers=4).")  # fmt: skip


def executor_for(executor: Executor | str) -> Executor:
    """The executor of that name, started here and to be closed here; or `executor` itself, which is its owner's to close."""
    if not isinstance(executor, str):
        return executor
    if executor == "local":
        return LocalExecutor()
    from dse.evaluation.ray_executor import RayExecutor

    return RayExecutor()
