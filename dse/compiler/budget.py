"""Budgets: bounds on what a compile may spend, checked before every request to a model and every tool that has a price.

One `Purse` is shared by all that a compile pays for: task models, the reflection model, judges, tools. Spending is kept
per stage and model or tool, and is what a report accounts for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from dse.declared import known_fields
from dse.errors import BudgetExhausted, DseError, ModelUnavailable, PriceMissing, UserError

if TYPE_CHECKING:
    from dse.models.lm import Completion, LanguageModel, Usage
    from dse.models.prices import PriceTable

__all__ = ["Budget", "BudgetedModel", "Purse", "check_price"]

# Output tokens assumed for a request that is still to be made, where neither the model's parameters bound them nor has it
# given a longer reply before.
ASSUMED_OUTPUT_TOKENS = 4_096
_TELLING_TOKENS = 100  # of a request, from which on the estimate of its size can be judged by what was counted
_OUTPUT_BOUNDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@known_fields
@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a compile may spend, on proposals, rollouts and judges together. None means no bound.

    Attributes:
        usd: money, for models and tools; needs a `PriceTable`, which also says what a request will cost at most before it
            is made. A tool costs ``cost_usd`` of its contract each time that it is executed, in an environment as well,
            and is not executed where that would go beyond.
        model_calls: requests to the models, retries included. Answers from a recording are none.
        tokens: input and output together; a request counts beforehand with the most that it can take.
        minutes: wall time; a request that is under way when they end is given up, and no wait for the model goes beyond.

    ``model_calls``, and what tools cost, are never exceeded. How far ``usd`` and ``tokens`` are kept depends on what is
    known of a request before it is made:

    * The reply of a model with ``max_tokens`` has that bound. Without it 4,096 tokens are assumed, or the longest reply
      that this model has given so far in this compile where that is longer; its first request goes alone. Only a reply
      that is longer than all before it can go beyond, by what it has more than that: one at first, afterwards as many as
      are under way at once.
    * The request itself is estimated, as a quarter of its characters, and at least as many tokens per character as any
      request of this model had so far that the provider counted. Where that is too few, the difference goes beyond.

    ``BudgetExhausted.details["spent"]`` is what was spent when the compile ended, whatever it was before.
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


_AMOUNTS = ("model_calls", "input_tokens", "output_tokens", "usd", "tool_calls", "refused", "unanswered", "unanswered_usd")


@dataclass
class Purse:
    """What one compile has spent, and what is set aside for requests under way.

    ``by`` has the amounts per (stage, model), ``by_tool`` per (stage, tool), ``under_way`` the most that each request under
    way can take, ``longest`` the longest reply of each model whose replies nothing bounds, and ``factor`` how many times
    its estimate a request of each model took at most. `kept` is called with `dump` before each request that a budget
    bounds, and after each; a compile that goes on after its process died gets them back with `restore`, so that a budget
    bounds all its processes together.
    """

    budget: Budget
    clock: Callable[[], float] = time.monotonic
    kept: Callable[[Mapping[str, Any]], None] | None = None
    stage: str = "search"
    by: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    by_tool: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)
    factor: dict[str, float] = field(default_factory=dict)
    alone: dict[str, anyio.Event] = field(default_factory=dict)
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
        """Per stage and model or tool, the stages in the order in which they began: what there is to account for.

        Of ``model_calls``, ``refused`` cost nothing, and ``unanswered`` ended without an answer and may have been paid for:
        they are in ``cost_usd`` with ``unanswered_usd``, the most that they can have cost.
        """
        kinds = (("model", self.by), ("tool", self.by_tool))
        order = list(dict.fromkeys(stage for _, each in kinds for stage, _ in each))
        found = [{"stage": stage, "model": None, "tool": None, kind: name,
                  **{("cost_usd" if k == "usd" else k): (round(v, 6) if "usd" in k else int(v)) for k, v in amounts.items()}}
                 for kind, each in kinds for (stage, name), amounts in each.items()]  # fmt: skip
        return sorted(found, key=lambda one: order.index(one["stage"]))

    def elapsed_s(self) -> float:
        return self.clock() - self.started

    def seconds_left(self) -> float:
        """Of the budget's minutes; infinite without a bound."""
        minutes = self.budget.minutes
        return math.inf if minutes is None else self.started + minutes * 60 - self.clock()

    def dump(self) -> dict[str, Any]:
        """All that is spent, and what requests under way can take at most: if this process dies, they may have been paid for."""
        by = [[*key, dict(amounts)] for key, amounts in self.by.items()]
        by += [[self.stage, model, {**dict(zip(_AMOUNTS, (0, *most), strict=False)), "unanswered": 1, "unanswered_usd": most[2]}]
               for model, most in self.under_way]  # fmt: skip
        return {"by": by, "by_tool": [[*key, dict(amounts)] for key, amounts in self.by_tool.items()],
                "longest": dict(self.longest), "factor": dict(self.factor), "elapsed_s": self.elapsed_s()}  # fmt: skip

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from what `dump` gave in an earlier process."""
        for stage, model, amounts in data["by"]:
            self.add(model, stage=stage, **amounts)
        for stage, tool, amounts in data.get("by_tool", ()):
            self._add(self.by_tool, stage, tool, amounts)
        self.longest.update(data.get("longest", {}))
        self.factor.update(data.get("factor", {}))
        self.started -= data["elapsed_s"]

    def add(self, model: str, *, stage: str | None = None, **amounts: float) -> None:
        self._add(self.by, stage or self.stage, model, amounts)

    def _add(self, by: dict[tuple[str, str], dict[str, float]], stage: str, name: str, amounts: Mapping[str, float]) -> None:
        mine = by.setdefault((stage, name), dict.fromkeys(_AMOUNTS, 0))
        for what, amount in amounts.items():
            mine[what] += amount
        self.calls += int(amounts.get("model_calls", 0))
        self.tokens += int(amounts.get("input_tokens", 0) + amounts.get("output_tokens", 0))
        self.usd += amounts.get("usd", 0.0)

    async def pay_tool(self, tool: str, cost_usd: float) -> None:
        """To be called before a tool is executed: it may be paid for from then on.

        Raises:
            BudgetExhausted: it would go beyond the money; or the time is over.
        """
        if self.seconds_left() < 0:
            raise self.exhausted("minutes", "The next call of a tool would")
        if self.beyond_usd(cost_usd):
            raise self.exhausted("usd", f"A call of {tool} would")
        self._add(self.by_tool, self.stage, tool, {"tool_calls": 1, "usd": cost_usd})
        self.settle()

    def beyond_usd(self, cost_usd: float) -> bool:
        bound = self.budget.usd
        return bound is not None and self.usd + self.reserved_usd + cost_usd > bound * (1 + 1e-9)  # sums of floats

    def learn(self, model: str, estimated: int, asked: int | None, said: int | None, bounded: bool) -> None:
        """What a model that answered says about its next requests and replies."""
        if asked is not None and estimated >= _TELLING_TOKENS:
            self.factor[model] = max(self.factor.get(model, 1.0), asked / estimated)
        if not bounded:
            self.longest[model] = max(self.longest.get(model, 0), said or 0)

    def settle(self) -> None:
        """What was spent is kept."""
        if self.kept is not None:
            self.kept(self.dump())

    def exhausted(self, name: str, what: str = "The next request could") -> BudgetExhausted:
        bound = getattr(self.budget, name)
        return BudgetExhausted(f"{what} exceed the budget of {bound} {name}", value=str(self.spent()),
                               remedy="Everything paid for is stored: run it again with a larger budget to go on.",
                               spent=self.spent())  # fmt: skip


def check_price(model: str, budget: Budget, prices: PriceTable | None, *, whose: str = "the model") -> None:
    """
    Raises:
        PriceMissing: the budget bounds money, and what a request of `model` costs is not known.
    """
    if budget.usd is not None and (prices is None or model not in prices.models):
        raise PriceMissing(f"A budget in money needs a price for {whose}", value=model,
                           remedy="Pass prices=dse.PriceTable(...) that has it, or bound model_calls instead.")  # fmt: skip


@dataclass
class BudgetedModel:
    """A model that refuses a request which could exceed the budget.

    Sits below retries, so each one counts, and below a recording, whose answers cost nothing. With `free` (a replay)
    only the time is bounded. A request that ended without an answer or a refusal may have been paid for: it counts
    with the most it could cost. Models that share a `purse` share the budget. Where money or tokens are bounded and nothing
    bounds a reply, the first request goes alone until one was answered: the others wait, and know then what to expect.
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
        bounds = [self.params[name] for name in _OUTPUT_BOUNDS if self.params.get(name)]
        self._bound: int | None = int(bounds[0]) if bounds else None
        if not self.free:
            check_price(self.name, self.budget, self.prices)

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

    async def before_attempt(self) -> None:
        """Wait while another request goes alone. To be called outside of a timeout: waiting is not the model's time."""
        while (first := self.purse.alone.get(self.name)) is not None and self._unknown():
            await first.wait()

    def _unknown(self) -> bool:
        """Whether nothing at all is known of how long a reply can be, and it matters."""
        return (self._bound is None and not self.free and self.name not in self.purse.longest
                and (self.budget.usd is not None or self.budget.tokens is not None))  # fmt: skip

    def _most(self, estimated: int) -> tuple[int, int, float]:
        """The most that a request can take: input tokens, output tokens, USD."""
        from dse.models.lm import Usage

        purse = self.purse
        output = max(ASSUMED_OUTPUT_TOKENS, purse.longest.get(self.name, 0)) if self._bound is None else self._bound
        asked = math.ceil(estimated * purse.factor.get(self.name, 1.0))
        return asked, output, self._price(Usage(asked, output, "estimated")) or 0.0

    def _check(self, most: tuple[int, int, float]) -> None:
        """
        Raises:
            BudgetExhausted: a request that takes the most it can would go beyond.
        """
        budget, purse = self.budget, self.purse
        if self.seconds_left() < 0:
            raise purse.exhausted("minutes")
        if self.free:
            return
        if budget.model_calls is not None and purse.calls + 1 > budget.model_calls:
            raise purse.exhausted("model_calls")
        if budget.tokens is not None and purse.tokens + purse.reserved_tokens + most[0] + most[1] > budget.tokens:
            raise purse.exhausted("tokens")
        if purse.beyond_usd(most[2]):
            raise purse.exhausted("usd")

    def _price(self, usage: Usage) -> float | None:
        return None if self.prices is None else self.prices.cost(self.name, usage)[0]

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        await self.before_attempt()
        if not self._unknown():
            return await self._ask(request, replicate, occurrence)
        first = self.purse.alone[self.name] = anyio.Event()
        try:
            return await self._ask(request, replicate, occurrence)
        finally:  # without an answer, the next one goes alone
            del self.purse.alone[self.name]
            first.set()

    async def _ask(self, request: Any, replicate: int, occurrence: int) -> Completion:
        if self.free:
            self._check((0, 0, 0.0))
            with anyio.move_on_after(self.seconds_left()):
                return await self.inner.complete(request, replicate=replicate, occurrence=occurrence)
            raise self.purse.exhausted("minutes", "A request that is given up would")
        from dse.models.lm import Usage, estimate_usage

        purse, estimated = self.purse, estimate_usage(request, "").input_tokens or 0
        most = self._most(estimated)
        self._check(most)
        purse.add(self.name, model_calls=1)
        purse.reserved_usd += most[2]
        purse.reserved_tokens += most[0] + most[1]
        ticket = (self.name, most)
        purse.under_way.append(ticket)
        if self.budget.bounds_spending:
            purse.settle()
        completion: Completion | None = None
        try:
            with anyio.move_on_after(self.seconds_left()):
                completion = await self.inner.complete(request, replicate=replicate, occurrence=occurrence)
            if completion is None:
                self._spend(None, None, most, unanswered=True)
        except ModelUnavailable as exc:
            asked, said = exc.details.get("input_tokens"), exc.details.get("output_tokens")
            if asked is not None and said is not None:  # an answer that cannot be used
                purse.learn(self.name, estimated, asked, said, self._bound is not None)
                self._spend(Usage(asked, said, "exact"), exc.details.get("cost_usd"), most, unanswered=True)
            elif exc.details.get("status") is None:
                self._spend(None, exc.details.get("cost_usd"), most, unanswered=True)
            else:
                purse.add(self.name, refused=1, usd=(exc.details.get("cost_usd") or 0.0) if self.prices is None else 0.0)
            raise
        except DseError:
            purse.add(self.name, refused=1)
            raise
        except BaseException:  # given up by whoever asked
            self._spend(None, None, most, unanswered=True)
            raise
        finally:
            purse.reserved_usd -= most[2]
            purse.reserved_tokens -= most[0] + most[1]
            purse.under_way.remove(ticket)
            if completion is not None:
                usage = completion.usage
                purse.learn(self.name, estimated, usage.input_tokens if usage.source == "exact" else None,
                            usage.output_tokens, self._bound is not None)  # fmt: skip
                self._spend(usage, completion.cost_usd, most)
            purse.settle()
        if completion is None:
            raise purse.exhausted("minutes", "A request that is given up would")
        return completion

    def _spend(self, usage: Usage | None, reported: float | None, most: tuple[int, int, float], *,
               unanswered: bool = False) -> None:  # fmt: skip
        """Count what was spent: by the table, else as reported, else the most there can have been."""
        cost = self._price(usage) if usage is not None else None
        if cost is None:
            cost = reported if self.prices is None and reported is not None else most[2]
        asked, said = most[:2] if usage is None else (usage.input_tokens, usage.output_tokens)
        self.purse.add(self.name, usd=cost, input_tokens=most[0] if asked is None else asked,
                       output_tokens=most[1] if said is None else said,
                       unanswered=int(unanswered), unanswered_usd=cost if unanswered else 0.0)  # fmt: skip

    async def aclose(self) -> None:
        """Close the model, where it is `owned`."""
        if self.owned:
            await self.inner.aclose()
