"""The models of a compile: task models and the one that reflects, under one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.canonical import digest
from dse.compiler.budget import Budget, BudgetedModel, Purse
from dse.compiler.evidence import Reflection
from dse.errors import ModelError, UserError
from dse.evaluation.evaluator import cassette_of

if TYPE_CHECKING:
    from dse.models.lm import LanguageModel, RetryingModel
    from dse.models.prices import PriceTable
    from dse.store.journal import Store

__all__ = ["Models", "Reflector", "innermost"]


class Models:
    """Task models by name, in the order given; the first is the default one.

    A model's budget is below its recording and below retries: what is asked for anew is counted, each time.

    Args:
        make: make a recording that is not there yet; without it, such a model is not recorded.
    """

    def __init__(self, lm: Any, reflection: Any, *, budget: Budget, prices: PriceTable | None,
                 record: str | Path | Sequence[str | Path] | None, make: bool = True) -> None:  # fmt: skip
        self._make = make
        self.purse = Purse(budget)
        self.prices = prices
        self.budgeted: dict[str, BudgetedModel] = {}
        self.by_name: dict[str, LanguageModel] = {}
        specs = list(lm) if isinstance(lm, (list, tuple)) else [lm]
        files = list(record) if isinstance(record, (list, tuple)) else [record] * len(specs)
        if not specs or len(files) != len(specs) or (len(specs) > 1 and record is not None and len(set(map(str, files))) == 1):
            raise UserError("Several models need a recording each", value=f"{len(specs)} models",
                            remedy="Pass record=[FILE, ...], one per model.")  # fmt: skip
        for one, file in zip(specs, files, strict=True):
            model, budgeted = self._resolve(one, file)
            if model.name in self.by_name:
                raise UserError("A model is given twice", value=model.name, remedy="Models are told apart by their names.")
            self.by_name[model.name], self.budgeted[model.name] = model, budgeted
        self.names = tuple(self.by_name)
        self.default = self.by_name[self.names[0]]
        self.reflection = self.default
        self._own: LanguageModel | None = None
        if reflection is not None:
            file = None if files[0] is None else Path(str(files[0])).with_suffix(".reflection.jsonl")
            self._own = self.reflection = self._resolve(reflection, file)[0]

    def _resolve(self, lm: Any, record: Any) -> tuple[LanguageModel, BudgetedModel]:
        from dse.models.lm import RetryingModel, resolve_model

        live = resolve_model(lm)
        replayed = getattr(innermost(live), "cassette", None) is not None
        if replayed and record is not None:
            raise ModelError("A replay is not recorded", value=str(record), remedy="Give a live model, or no record=.")
        if not self._make and record is not None and not Path(record).exists():
            record = None
        patient = live if isinstance(live, RetryingModel) else None
        budgeted = BudgetedModel(patient.inner if patient else live, self.purse.budget, self.prices, free=replayed,
                                 owned=live is not lm, purse=self.purse)  # fmt: skip
        model = _patient(patient, budgeted) if patient else budgeted
        return resolve_model(model, record=record, prices=self.prices), budgeted

    def judging(self, model: LanguageModel, free: bool) -> LanguageModel:
        """A judge's model under the same budget."""
        return BudgetedModel(model, self.purse.budget, self.prices, free=free, owned=False, purse=self.purse)

    @property
    def free(self) -> bool:
        """Whether recordings answer everything."""
        return all(one.free for one in self.budgeted.values())

    def cost_can_be_known(self, name: str) -> bool:
        """False where it is certain that no run will have a cost, before one is paid for."""
        if self.prices is not None:
            return name in self.prices.models
        model = self.by_name[name]
        if self.budgeted[name].free:
            return any(entry.cost_usd is not None for entry in cassette_of(model))
        return bool(getattr(innermost(model), "reports_cost", True))

    def described(self) -> list[list[Any]]:
        """Names and parameters, those of the reflection model last."""
        return [[m.name, dict(m.params)] for m in (*self.by_name.values(), self.reflection)]

    async def aclose(self) -> None:
        for model in (*self.by_name.values(), *([self._own] if self._own else [])):
            await model.aclose()


def _patient(given: RetryingModel, budgeted: BudgetedModel) -> RetryingModel:
    """The same patience with the budgeted model, which waits for its turn before the time of an attempt begins."""
    model, own = given.over(budgeted, budgeted.before_wait), given.before_attempt

    async def before_attempt(request: Any, attempt: int) -> None:
        if own is not None:
            await own(request, attempt)
        await budgeted.before_attempt()

    model.before_attempt = before_attempt
    return model


class Reflector:
    """Asks the reflection model. What it answered is kept in the store: the same compile, started again, asks no more."""

    def __init__(self, models: Models, store: Store, key: str) -> None:
        self.models, self.store = models, store
        self.owner = f"reflections-{key}"
        self.asked: list[Reflection] = []
        self._times: dict[str, int] = {}
        self._kept: Mapping[str, Any] | None = None

    async def __call__(self, prompt: str) -> str:
        model = self.models.reflection
        request: Any = {"messages": [{"role": "user", "content": prompt}], "tools": []}
        key = digest([model.name, dict(model.params), prompt])
        occurrence = self._times.get(key, 0)
        self._times[key] = occurrence + 1
        key = f"{key}-{occurrence}"
        if self._kept is None:
            self._kept = await self.store.threaded(self.store.answers, self.owner)
        kept: Mapping[str, Any] = self._kept or {}
        completion = kept.get(key)
        if completion is None:
            completion = await model.complete(request, replicate=0, occurrence=occurrence)
            if cassette_of(model) is None:
                await self.store.threaded(self.store.save_answer, self.owner, key, completion)
        usage = completion.usage
        cost, source = completion.cost_usd, completion.cost_source
        if self.models.prices is not None:
            cost, source = self.models.prices.cost(model.name, usage)
        self.asked.append(Reflection(model.name, usage.input_tokens, usage.output_tokens, usage.source, cost, source))
        return completion.text or ""


def innermost(model: Any) -> Any:
    while (inner := getattr(model, "inner", None)) is not None:
        model = inner
    return model
