"""What a compile was asked for: its arguments, checked and with defaults in place. Nothing of it changes while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.artifacts.registry import Registry
from dse.compiler.allocation import ALLOCATIONS
from dse.compiler.budget import Budget
from dse.compiler.result import Rows
from dse.compiler.search import Proposer
from dse.compiler.space import Space, fitting_modes
from dse.errors import UserError
from dse.evaluation.evaluator import Progress
from dse.evaluation.executor import Executor, check_executor
from dse.evaluation.sampling import spread
from dse.evaluation.task import Task

if TYPE_CHECKING:
    from dse.evaluation.dataset import Dataset, Example
    from dse.models.prices import PriceTable

__all__ = ["Options"]


class Options:
    """The arguments of `dse.compile`, and what follows from them alone.

    Attributes:
        data: the dataset of the task, loaded. toolbox, spec: of the task.
        modes: that fit the signature. effects: of its tools, by name.
        store_place: of the store, which is not opened here.
        started: when it was asked for (monotonic clock).
    """

    def __init__(
        self, task: Task, *, lm: Any, registry: Registry | str | Path = "artifacts", store: Any = None,
        budget: Budget | None = None, prices: PriceTable | None = None, rows: Rows | None = None, space: Space | None = None,
        search: Sequence[Proposer] = (), reflection_lm: Any = None, allocation: str = "race", replicates: int = 1,
        executor: Executor | str = "local", record: Any = None, concurrency: int = 8, seed: int = 0, success: float = 1.0,
        progress: Progress | None = None, say: Callable[[str], None] | None = None, model_label: str | None = None,
        take_over: bool = False,
    ) -> None:  # fmt: skip
        self.task, self.spec = task, task.spec
        self.registry = registry if isinstance(registry, Registry) else Registry(registry)
        self.store_place = store if store is not None else Path(self.registry.root) / "dse.db"
        self.lm, self.reflection_lm, self.record = lm, reflection_lm, record
        self.budget, self.prices = budget or Budget(), prices
        self.rows, self.space = rows or Rows(), space or Space()
        self.proposers = tuple(search)
        for one in self.proposers:
            if not isinstance(one, Proposer) or isinstance(one, type):
                raise UserError("search= takes proposers", value=repr(one), remedy="Write search=[dse.Evolve(), ...].")
        if allocation not in ALLOCATIONS:
            raise UserError("No such allocation", value=allocation, remedy=f"Choose {', '.join(ALLOCATIONS)}.")
        if type(replicates) is not int or replicates < 1:
            raise UserError("Replicates are counted from 1", value=repr(replicates), remedy="Use 1.")
        check_executor(executor)
        self.allocation, self.replicates, self.executor = allocation, replicates, executor
        self.concurrency, self.progress = concurrency, progress
        self.seed, self.success = seed, success
        self.say = say or (lambda _: None)
        self.model_label, self.take_over = model_label, take_over
        self.started = time.monotonic()
        self.data: Dataset = task.load_dataset()
        self.modes = fitting_modes(self.spec, task.modes)
        assert task.toolbox is not None
        self.toolbox = task.toolbox
        self.effects = {name: self.toolbox[name].contract.effect for name in self.spec.tool_names}

    def search_rows(self) -> list[Example]:
        return spread(self.data.split("search"), self.rows.search)

    def select_rows(self) -> list[Example]:
        return spread(self.data.split("select"), self.rows.select)
