"""Budgets: hard bounds on what a compile may spend, checked before every request to the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from dse.errors import BudgetExhausted, DseError, ModelUnavailable, UserError

if TYPE_CHECKING:
    from dse.models.lm import Completion, LanguageModel, Usage
    from dse.models.prices import PriceTable

__all__ = ["Budget", "BudgetedModel"]

# Output tokens assumed for a request that is still to be made, where the model has no bound of its own.
ASSUMED_OUTPUT_TOKENS = 4_096
_OUTPUT_BOUNDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a compile may spend. None means no bound.

    Attributes:
        usd: money; needs a `PriceTable`, which also says what a request will cost at most before it is made.
        model_calls: requests to the model, retries included. Answers from a recording are none.
        minutes: wall time; a request that is under way when they end is given up, and no wait for the model goes beyond.
    """

    usd: float | None = None
    model_calls: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("usd", "model_calls", "minutes"):
            value = getattr(self, name)
            kinds = int if name == "model_calls" else (int, float)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf):
                raise UserError(f"Budget {name} must be a number above 0", value=repr(value),
                                remedy="Leave it out for no bound.")  # fmt: skip


@dataclass
class BudgetedModel:
    """A model that refuses a request which could exceed the budget.

    Sits below retries, so each one counts, and below a recording, whose answers cost nothing. With `free` (a replay)
    only the time is bounded. A request that ended without an answer or a refusal may have been paid for: it counts
    with the most it could cost.
    """

    inner: LanguageModel
    budget: Budget
    prices: PriceTable | None = None
    free: bool = False
    owned: bool = True
    calls: int = 0
    spent_usd: float = 0.0
    reserved_usd: float = 0.0
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()
        self.name = self.inner.name
        self.params: dict[str, Any] = self.inner.params
        self.supports_tools = self.inner.supports_tools
        if self.budget.usd is not None and not self.free and (self.prices is None or self.name not in self.prices.models):
            raise UserError("A budget in money needs a price for the model", value=self.name,
                            remedy="Pass prices=dse.PriceTable(...) that has it, or bound model_calls instead.")  # fmt: skip

    def spent(self) -> dict[str, Any]:
        return {"model_calls": self.calls, "usd": round(self.spent_usd, 6),
                "minutes": round((self.clock() - self.started) / 60, 3)}  # fmt: skip

    def seconds_left(self) -> float:
        """Of the budget's minutes; infinite without a bound."""
        minutes = self.budget.minutes
        return math.inf if minutes is None else self.started + minutes * 60 - self.clock()

    def before_wait(self, seconds: float) -> None:
        """To be called before a wait for the model.

        Raises:
            BudgetExhausted: it would last longer than the budget's minutes.
        """
        if seconds >= self.seconds_left():
            raise self._exhausted("minutes", self.budget.minutes, f"A wait of {seconds:.3g} s for the model would")

    def _reserve(self, request: Any) -> float:
        budget = self.budget
        if self.seconds_left() < 0:
            raise self._exhausted("minutes", budget.minutes)
        if self.free:
            return 0.0
        if budget.model_calls is not None and self.calls + 1 > budget.model_calls:
            raise self._exhausted("model_calls", budget.model_calls)
        if budget.usd is None:
            return 0.0
        from dse.models.lm import Usage, estimate_usage

        bounds = [self.params[name] for name in _OUTPUT_BOUNDS if self.params.get(name)]
        output = int(bounds[0]) if bounds else ASSUMED_OUTPUT_TOKENS
        cost = self._price(Usage(estimate_usage(request, "").input_tokens, output, "estimated")) or 0.0
        if self.spent_usd + self.reserved_usd + cost > budget.usd:
            raise self._exhausted("usd", budget.usd)
        return cost

    def _price(self, usage: Usage) -> float | None:
        return None if self.prices is None else self.prices.cost(self.name, usage)[0]

    def _exhausted(self, name: str, bound: Any, what: str = "The next request could") -> BudgetExhausted:
        return BudgetExhausted(f"{what} exceed the budget of {bound} {name}", value=str(self.spent()),
                               remedy="Everything paid for is stored: run it again with a larger budget to go on.",
                               spent=self.spent())  # fmt: skip

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        from dse.models.lm import Usage

        reserved = self._reserve(request)
        self.calls += not self.free
        self.reserved_usd += reserved
        completion: Completion | None = None
        try:
            with anyio.move_on_after(self.seconds_left()):
                completion = await self.inner.complete(request, replicate=replicate, occurrence=occurrence)
        except ModelUnavailable as exc:
            asked, said = exc.details.get("input_tokens"), exc.details.get("output_tokens")
            refused = exc.details.get("status") is not None
            self._spend(Usage(asked, said, "exact") if asked is not None and said is not None else None,
                        exc.details.get("cost_usd"), 0.0 if refused else reserved)  # fmt: skip
            raise
        except DseError:  # refused
            raise
        except BaseException:  # given up by whoever asked
            self.spent_usd += reserved
            raise
        finally:
            self.reserved_usd -= reserved
        if completion is None:
            self.spent_usd += reserved
            raise self._exhausted("minutes", self.budget.minutes, "A request that is given up would")
        if not self.free:
            self._spend(completion.usage, completion.cost_usd, reserved)
        return completion

    def _spend(self, usage: Usage | None, reported: float | None, otherwise: float) -> None:
        """Count what was spent: by the table, else as reported, else `otherwise`."""
        cost = self._price(usage) if usage is not None else None
        if cost is None:
            cost = reported if self.prices is None and reported is not None else otherwise
        self.spent_usd += cost

    async def aclose(self) -> None:
        """Close the model, where it is `owned`."""
        if self.owned:
            await self.inner.aclose()
