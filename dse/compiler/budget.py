"""Budgets: hard bounds on what a compile may spend, checked before every request to the model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dse.errors import BudgetExhausted, UserError

if TYPE_CHECKING:
    from dse.models.lm import Completion, LanguageModel
    from dse.models.prices import PriceTable

__all__ = ["Budget", "BudgetedModel"]

# Output tokens assumed for a request that is still to be made, where the model has no bound of its own.
ASSUMED_OUTPUT_TOKENS = 4_096


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a compile may spend. None means no bound.

    Attributes:
        usd: money; needs known prices (a `PriceTable`, or a model whose completions carry their cost).
        model_calls: requests to the model, retries included.
        minutes: wall time.
    """

    usd: float | None = None
    model_calls: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("usd", "model_calls", "minutes"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0):
                raise UserError(f"Budget {name} must be above 0", value=repr(value), remedy="Leave it out for no bound.")


@dataclass
class BudgetedModel:
    """A model that refuses a request which could exceed the budget. Sits below retries, so each one counts."""

    inner: LanguageModel
    budget: Budget
    prices: PriceTable | None = None
    calls: int = 0
    spent_usd: float = 0.0
    reserved_usd: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.name = self.inner.name
        self.params: Mapping[str, Any] = self.inner.params
        self.supports_tools = self.inner.supports_tools
        if self.budget.usd is not None and self.prices is None:
            raise UserError("A budget in money needs prices", value=self.name,
                            remedy="Pass prices=dse.PriceTable(...), or bound model_calls instead.")  # fmt: skip

    def spent(self) -> dict[str, Any]:
        return {"model_calls": self.calls, "usd": round(self.spent_usd, 6),
                "minutes": round((time.monotonic() - self.started) / 60, 3)}  # fmt: skip

    def _reserve(self, request: Any) -> float:
        budget = self.budget
        if budget.model_calls is not None and self.calls + 1 > budget.model_calls:
            raise self._exhausted("model_calls", budget.model_calls)
        if budget.minutes is not None and time.monotonic() - self.started > budget.minutes * 60:
            raise self._exhausted("minutes", budget.minutes)
        if budget.usd is None:
            return 0.0
        from dse.models.lm import Usage, estimate_usage

        assert self.prices is not None
        expected = estimate_usage(request, "")
        output = int(self.params.get("max_tokens") or ASSUMED_OUTPUT_TOKENS)
        cost, _ = self.prices.cost(self.name, Usage(expected.input_tokens, output, "estimated"))
        if cost is None:
            raise UserError("A budget in money needs a price for the model", value=self.name,
                            remedy=f"Add it to the price table {self.prices.name!r}.")  # fmt: skip
        if self.spent_usd + self.reserved_usd + cost > budget.usd:
            raise self._exhausted("usd", budget.usd)
        return cost

    def _exhausted(self, name: str, bound: Any) -> BudgetExhausted:
        return BudgetExhausted(f"The next request could exceed the budget of {bound} {name}", value=str(self.spent()),
                               remedy="Everything paid for is stored: run it again with a larger budget to go on.",
                               spent=self.spent())  # fmt: skip

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        reserved = self._reserve(request)
        self.calls += 1
        self.reserved_usd += reserved
        try:
            completion = await self.inner.complete(request, replicate=replicate, occurrence=occurrence)
        finally:
            self.reserved_usd -= reserved
        if self.prices is not None and completion.cost_usd is None:
            cost, _ = self.prices.cost(self.name, completion.usage)
            self.spent_usd += cost or reserved
        else:
            self.spent_usd += completion.cost_usd or 0.0
        return completion

    async def aclose(self) -> None:
        await self.inner.aclose()
