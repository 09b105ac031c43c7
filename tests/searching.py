"""A search for tests of proposers: a planted world whose model can be taught by instructions or demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dse.compiler.allowlist import allow_lists
from dse.compiler.search import Search
from dse.evaluation.evaluator import Evaluator, RolloutRecord
from dse.models.lm import LanguageModel
from dse.plan import Plan
from dse.store.journal import Store
from dse.strategies.base import seed_plan
from dse.testing.scripted import ScriptedModel
from dse.testing.worlds import NAME, PlantedWorld

__all__ = ["Searching", "taught_model"]


def taught_model(world: PlantedWorld, better: PlantedWorld, word: str) -> ScriptedModel:
    """A model that acts like `better` where `word` is in its instructions, else like `world`."""

    def reply(request: Any) -> Any:
        return (better if word in request["messages"][0]["content"] else world).reply(request)

    return ScriptedModel(reply, NAME, latency_s=0.25)


@dataclass
class Searching:
    """What a compile gives a proposer, made from the same parts. Counts what is asked for."""

    world: PlantedWorld
    model: LanguageModel
    reflection: LanguageModel
    store: Store = field(default_factory=lambda: Store(":memory:"))
    modes: tuple[str, ...] = ("direct", "tool_call", "code")
    rows: int = 24
    task_options: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    evaluated: list[tuple[Mapping[str, Plan], list[str]]] = field(default_factory=list)
    on_evaluate: Callable[[], None] = field(default=lambda: None)

    async def search(self, seed: int = 0) -> Search:
        task = self.world.task(**self.task_options)
        self.rows_of = {name: task.load_dataset().split(name) for name in ("search", "select")}
        rows = self.rows_of["search"][: self.rows]
        evaluator = Evaluator(task, self.model, self.store)
        plans = {f"{mode}/all/seed": seed_plan(task.spec, mode, limits=task.limits) for mode in self.modes}
        records = await evaluator.evaluate(plans, rows)
        allowed = {row.row_hash for row in rows}

        async def evaluate(plans: Mapping[str, Plan], rows: Sequence[Any], model: str | None = None, *,
                           replicate: int = 0) -> list[RolloutRecord]:  # fmt: skip
            assert {row.row_hash for row in rows} <= allowed, "a row from outside the search"
            self.on_evaluate()
            self.evaluated.append((plans, [row.row_hash for row in rows]))
            return await evaluator.evaluate(plans, rows, replicate=replicate)

        async def reflect(prompt: str) -> str:
            self.prompts.append(prompt)
            return (await self.reflection.complete({"messages": [{"role": "user", "content": prompt}]})).text or ""

        return Search(spec=task.spec, toolbox=task.toolbox, limits=task.limits, required=task.required, modes=self.modes,
                      models=(self.model.name,), rows=rows, records=records,
                      lists=allow_lists(records, task.spec.tool_names, task.required), evaluate=evaluate, reflect=reflect,
                      seed=seed, say=self.said.append)  # fmt: skip


