"""Budgets: hard bounds on what a compile may spend, checked before every request to a model.

One `Purse` is shared by all that a compile asks: task models, the reflection model, judges. Spending is kept per
stage and model, and is what a report accounts for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from dse.errors import BudgetExhausted, DseError, ModelUnavailable, UserError

if TYPE_CHECKING:
    from dse.models.lm import Completion, LanguageModel, Usage
    from dse.models.prices import PriceTable

__all__ = ["Budget", "BudgetedModel", "Purse"]

# Output tokens assumed for a request that is still to be made, where the model has no bound of its own.
ASSUMED_OUTPUT_TOKENS = 4_096
_OUTPUT_BOUNDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a compile may spend, on proposals, rollouts and judges together. None means no bound.

    Attributes:
        usd: money; needs a `PriceTable`, which also says what a request will cost at most before it is made.
        model_calls: requests to the models, retries included. Answers from a recording are none.
        tokens: input and output together; a request counts beforehand with the most that it can take.
        minutes: wall time; a request that is under way when they end is given up, and no wait for the model goes beyond.
    """

    usd: float | None = None
    model_calls: int | None = None
    minutes: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("usd", "model_calls", "minutes", "tokens"):
            value = getattr(self, name)
            kinds = int if name in ("model_calls", "tokens") else (int, float)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf):
                raise UserError(f"Budget {name} must be a number above 0", value=repr(value),
                                remedy="Leave it out for no bound.")  # fmt: skip

    @property
    def bounds_spending(self) -> bool:
        return any(bound is not None for bound in (self.usd, self.model_calls, self.tokens))


_AMOUNTS = ("model_calls", "input_tokens", "output_tokens", "usd")


@dataclass
class Purse:
    """What one compile has spent, and what is set aside for requests under way.

    ``by`` has the amounts per (stage, model), ``under_way`` the most that each request under way can take. `kept` is called
    with `dump` before each request that a budget bounds, and after each; a compile that goes on
    after its process died gets them back with `restore`, so that a budget bounds all its processes together.
    """

    budget: Budget
    clock: Callable[[], float] = time.monotonic
    kept: Callable[[Mapping[str, Any]], None] | None = None
    stage: str = "search"
    by: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    reserved_usd: float = 0.0
    reserved_tokens: int = 0
    under_way: list[tuple[str, tuple[int, int, float]]] = field(default_factory=list)
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def spent(self) -> dict[str, Any]:
        return {"model_calls": self.calls, "tokens": self.tokens, "usd": round(self.usd, 6),
                "minutes": round(self.elapsed_s() / 60, 3)}  # fmt: skip

    def by_stage(self) -> list[dict[str, Any]]:
        """Per stage and model, in the order in which they began."""
        return [{"stage": stage, "model": model, **{k: (round(v, 6) if k == "usd" else int(v)) for k, v in amounts.items()}}
                for (stage, model), amounts in self.by.items()]  # fmt: skip

    def elapsed_s(self) -> float:
        return self.clock() - self.started

    def seconds_left(self) -> float:
        """Of the budget's minutes; infinite without a bound."""
        minutes = self.budget.minutes
        return math.inf if minutes is None else self.started + minutes * 60 - self.clock()

    def dump(self) -> dict[str, Any]:
        """All that is spent, and what requests under way can take at most: if this process dies, they may have been paid for."""
        by = [[*key, dict(amounts)] for key, amounts in self.by.items()]
        by += [[self.stage, model, dict(zip(_AMOUNTS, (0, *most), strict=True))] for model, most in self.under_way if any(most)]
        return {"by": by, "elapsed_s": self.elapsed_s()}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from what `dump` gave in an earlier process."""
        for stage, model, amounts in data["by"]:
            self.add(model, stage=stage, **amounts)
        self.started -= data["elapsed_s"]

    def add(self, model: str, *, stage: str | None = None, model_calls: float = 0, input_tokens: float = 0,
            output_tokens: float = 0, usd: float = 0.0) -> None:  # fmt: skip
        mine = self.by.setdefault((stage or self.stage, model), dict.fromkeys(_AMOUNTS, 0))
        for name, amount in zip(_AMOUNTS, (model_calls, input_tokens, output_tokens, usd), strict=True):
            mine[name] += amount
        self.calls += int(model_calls)
        self.tokens += int(input_tokens + output_tokens)
        self.usd += usd

    def settle(self) -> None:
        """What was spent is kept."""
        if self.kept is not None:
            self.kept(self.dump())

    def exhausted(self, name: str, what: str = "The next request could") -> BudgetExhausted:
        bound = getattr(self.budget, name)
        return BudgetExhausted(f"{what} exceed the budget of {bound} {name}", value=str(self.spent()),
                               remedy="Everything paid for is stored: run it again with a larger budget to go on.",
                               spent=self.spent())  # fmt: skip


@dataclass
class BudgetedModel:
    """A model that refuses a request which could exceed the budget.

    Sits below retries, so each one counts, and below a recording, whose answers cost nothing. With `free` (a replay)
    only the time is bounded. A request that ended without an answer or a refusal may have been paid for: it counts
    with the most it could cost. Models that share a `purse` share the budget.
    """

    inner: LanguageModel
    budget: Budget
    prices: PriceTable | None = None
    free: bool = False
    owned: bool = True
    clock: Callable[[], float] = time.monotonic
    purse: Purse = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.purse is None:
            self.purse = Purse(self.budget, self.clock)
        self.name = self.inner.name
        self.params: dict[str, Any] = self.inner.params
        self.supports_tools = self.inner.supports_tools
        if self.budget.usd is not None and not self.free and (self.prices is None or self.name not in self.prices.models):
            raise UserError("A budget in money needs a price for the model", value=self.name,
                            remedy="Pass prices=dse.PriceTable(...) that has it, or bound model_calls instead.")  # fmt: skip

    @property
    def calls(self) -> int:
        return self.purse.calls

    @property
    def spent_usd(self) -> float:
        return self.purse.usd

    def spent(self) -> dict[str, Any]:
        return self.purse.spent()

    def seconds_left(self) -> float:
        return self.purse.seconds_left()

    def before_wait(self, seconds: float) -> None:
        """To be called before a wait for the model.

        Raises:
            BudgetExhausted: it would last longer than the budget's minutes.
        """
        if seconds >= self.seconds_left():
            raise self.purse.exhausted("minutes", f"A wait of {seconds:.3g} s for the model would")

    def _reserve(self, request: Any) -> tuple[int, int, float]:
        """The most that a request can take: input tokens, output tokens, USD."""
        budget, purse = self.budget, self.purse
        if self.seconds_left() < 0:
            raise purse.exhausted("minutes")
        if self.free:
            return 0, 0, 0.0
        if budget.model_calls is not None and purse.calls + 1 > budget.model_calls:
            raise purse.exhausted("model_calls")
        if budget.usd is None and budget.tokens is None:
            return 0, 0, 0.0
        from dse.models.lm import Usage, estimate_usage

        bounds = [self.params[name] for name in _OUTPUT_BOUNDS if self.params.get(name)]
        output = int(bounds[0]) if bounds else ASSUMED_OUTPUT_TOKENS
        known = estimate_usage(request, "").input_tokens or 0
        if budget.tokens is not None and purse.tokens + purse.reserved_tokens + known + output > budget.tokens:
            raise purse.exhausted("tokens")
        cost = self._price(Usage(known, output, "estimated")) or 0.0
        if budget.usd is not None and purse.usd + purse.reserved_usd + cost > budget.usd:
            raise purse.exhausted("usd")
        return known, output, cost

    def _price(self, usage: Usage) -> float | None:
        return None if self.prices is None else self.prices.cost(self.name, usage)[0]

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        from dse.models.lm import Usage

        known, output, reserved = most = self._reserve(request)
        purse = self.purse
        if not self.free:
            purse.add(self.name, model_calls=1)
        purse.reserved_usd += reserved
        purse.reserved_tokens += known + output
        ticket = (self.name, most)
        if not self.free:
            purse.under_way.append(ticket)
            if self.budget.bounds_spending:
                purse.settle()
        completion: Completion | None = None
        try:
            with anyio.move_on_after(self.seconds_left()):
                completion = await self.inner.complete(request, replicate=replicate, occurrence=occurrence)
        except ModelUnavailable as exc:
            asked, said = exc.details.get("input_tokens"), exc.details.get("output_tokens")
            refused = exc.details.get("status") is not None
            self._spend(Usage(asked, said, "exact") if asked is not None and said is not None else None,
                        exc.details.get("cost_usd"), (0, 0, 0.0) if refused else most)  # fmt: skip
            raise
        except DseError:  # refused
            raise
        except BaseException:  # given up by whoever asked
            self._spend(None, None, most)
            raise
        finally:
            purse.reserved_usd -= reserved
            purse.reserved_tokens -= known + output
            if not self.free:
                purse.under_way.remove(ticket)
            if not self.free and completion is None:
                purse.settle()
        if completion is None:
            self._spend(None, None, most)
            raise purse.exhausted("minutes", "A request that is given up would")
        if not self.free:
            self._spend(completion.usage, completion.cost_usd, most)
            purse.settle()
        return completion

    def _spend(self, usage: Usage | None, reported: float | None, otherwise: tuple[int, int, float]) -> None:
        """Count what was spent: by the table, else as reported, else `otherwise`."""
        known, output, reserved = otherwise
        cost = self._price(usage) if usage is not None else None
        if cost is None:
            cost = reported if self.prices is None and reported is not None else reserved
        asked, said = (known, output) if usage is None else (usage.input_tokens, usage.output_tokens)
        self.purse.add(self.name, usd=cost, input_tokens=known if asked is None else asked,
                       output_tokens=output if said is None else said)  # fmt: skip

    async def aclose(self) -> None:
        """Close the model, where it is `owned`."""
        if self.owned:
            await self.inner.aclose()
