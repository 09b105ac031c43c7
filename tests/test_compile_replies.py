"""A budget and replies of any length: how far beyond a bound a compile can go, and who has to wait for that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from paying import NAME, PRICES, ROWS, answered, ledger, saying, total

import dse
from dse.compiler.budget import BudgetedModel, Purse
from dse.errors import BudgetExhausted, ModelUnavailable
from dse.models.lm import Completion, RetryingModel, Usage


class Long:
    """Answers with so many tokens, each time after the other requests had their turn."""

    supports_tools = True

    def __init__(self, *lengths: int, params: dict[str, Any] | None = None, asked: int = 200, fails: int = 0) -> None:
        self.name, self.params, self.lengths, self.input, self.fails = NAME, params or {}, lengths, asked, fails
        self.requests: list[Any] = []
        self.together: list[int] = []  # requests under way when each one began
        self.under_way = 0

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        self.requests.append(request)
        number = len(self.requests) - 1
        self.under_way += 1
        self.together.append(self.under_way)
        try:
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
        finally:
            self.under_way -= 1
        if number < self.fails:
            raise ModelUnavailable("cut off", kind="transport")
        said = self.lengths[min(number - self.fails, len(self.lengths) - 1)]
        return replace(answered("NO"), usage=Usage(self.input, said, "exact"), model=self.name)

    async def aclose(self) -> None:
        """Nothing to close."""


BOTH = (dse.Budget(usd=0.2), dse.Budget(tokens=20_000))


@pytest.mark.parametrize("budget", BOTH, ids=["usd", "tokens"])
def test_a_reply_longer_than_any_before_goes_beyond_once_and_alone(tmp_path: Path, budget: dse.Budget) -> None:
    model = Long(30_000)
    with pytest.raises(BudgetExhausted) as caught:
        dse.compile(saying(), lm=model, registry=tmp_path, prices=PRICES, budget=budget, rows=ROWS)
    spent = caught.value.details["spent"]
    assert len(model.requests) == 1 and (spent["tokens"], spent["usd"]) == (30_200, 0.3002)
    assert "0.3002" in str(caught.value), "what was spent, not what was known when the next one was refused"
    assert sum(amounts["usd"] for *_, amounts in ledger(tmp_path)["by"]) == 0.3002


@pytest.mark.parametrize("budget", [dse.Budget(usd=2.0), dse.Budget(tokens=200_000)], ids=["usd", "tokens"])
def test_the_longest_reply_so_far_is_set_aside(tmp_path: Path, budget: dse.Budget) -> None:
    model = Long(30_000)
    with pytest.raises(BudgetExhausted) as caught:
        dse.compile(saying(), lm=model, registry=tmp_path, prices=PRICES, budget=budget, rows=ROWS)
    spent = caught.value.details["spent"]
    assert spent["usd"] <= 2.0 and spent["tokens"] <= 200_000 and len(model.requests) == 6
    assert model.together[0] == 1 and max(model.together) > 1, "the first goes alone, the others do not"
    assert spent["usd"] == pytest.approx(6 * 0.3002), "those under way had ended"


@pytest.mark.parametrize("budget", BOTH, ids=["usd", "tokens"])
def test_a_process_that_goes_on_knows_the_longest_reply(tmp_path: Path, budget: dse.Budget) -> None:
    model = Long(15_000)
    options: dict[str, Any] = {"lm": model, "registry": tmp_path, "prices": PRICES, "rows": ROWS}
    larger = dse.Budget(usd=0.29) if budget.usd else dse.Budget(tokens=28_000)
    with pytest.raises(BudgetExhausted):
        dse.compile(saying(), budget=budget, **options)
    assert len(model.requests) == 1 and ledger(tmp_path)["longest"] == {NAME: 15_000}
    with pytest.raises(BudgetExhausted):
        dse.compile(saying(), budget=larger, **options)
    assert len(model.requests) == 1, "4,096 tokens would have fitted"


def test_until_one_was_answered_requests_go_one_at_a_time(tmp_path: Path) -> None:
    model = Long(100, fails=3)
    result = dse.compile(saying(), lm=model, registry=tmp_path, prices=PRICES, budget=dse.Budget(usd=50), rows=ROWS, concurrency=4)
    assert model.together[:4] == [1, 1, 1, 1] and max(model.together) > 1
    assert total(result, "unanswered") == 3 and total(result, "unanswered_usd") > 3 * 4096 * 10e-6
    for one in (dse.Budget(model_calls=10_000), dse.Budget(minutes=5)):
        free = Long(100)
        dse.compile(saying(), lm=free, registry=tmp_path / str(one), prices=PRICES, budget=one, rows=ROWS, concurrency=4)
        assert max(free.together[:4]) > 1, "nothing to be careful of"


def test_with_a_bound_on_replies_nothing_waits_and_nothing_goes_beyond(tmp_path: Path) -> None:
    model = Long(1000, params={"max_tokens": 1000})
    with pytest.raises(BudgetExhausted) as caught:
        dse.compile(saying(), lm=model, registry=tmp_path, prices=PRICES, budget=dse.Budget(usd=0.1), rows=ROWS, concurrency=4)
    assert max(model.together[:4]) > 1 and 0.08 < caught.value.details["spent"]["usd"] <= 0.1


def test_a_request_that_was_larger_than_estimated_teaches(tmp_path: Path) -> None:
    """Characters say little about tokens in some languages."""
    dear = dse.PriceTable("p", "2026-01-01", {NAME: (100.0, 1.0)})
    model = Long(10, params={"max_tokens": 10}, asked=3000)
    with pytest.raises(BudgetExhausted) as caught:
        dse.compile(saying(), lm=model, registry=tmp_path, prices=dear, budget=dse.Budget(usd=2.0), rows=ROWS, concurrency=1)
    assert caught.value.details["spent"]["usd"] <= 2.0 and len(model.requests) == 6
    assert ledger(tmp_path)["factor"][NAME] > 5


def test_a_request_that_waits_for_the_first_one_loses_no_time_of_its_own() -> None:
    """The timeout of a patient model begins when its request may be made."""

    async def asked(timeouts: list[float]) -> Counter[str]:
        from dse.compiler.models import Models

        model = RetryingModel(Long(100), timeout_s=60, before_attempt=None)
        models = Models(model, None, budget=dse.Budget(usd=50), prices=PRICES, record=None)
        inner = models.budgeted[NAME]
        begun: Counter[str] = Counter()
        within = inner.complete

        async def watched(request: Any, **options: Any) -> Completion:
            begun["within a timeout"] += 1
            begun["waiting within"] += inner.purse.alone != {}
            return await within(request, **options)

        inner.complete = watched  # type: ignore[method-assign]
        first = anyio.Event()

        async def one(number: int) -> None:
            if number:
                await first.wait()
            else:
                first.set()
            await models.default.complete({"messages": [{"role": "user", "content": f"question {number}"}], "tools": []})

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(one, number)
        return begun

    assert anyio.run(asked, []) == {"within a timeout": 4, "waiting within": 0}


def test_what_another_loop_left_behind_keeps_nobody_waiting() -> None:
    """The first request is cancelled: the next one goes, in whatever loop."""
    purse = Purse(dse.Budget(usd=1))
    model = BudgetedModel(Long(100), purse.budget, PRICES, purse=purse)
    question: Any = {"messages": [{"role": "user", "content": "?"}], "tools": []}

    async def given_up() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await model.complete(question)

    anyio.run(given_up)
    assert purse.alone == {} and purse.by_stage()[0]["unanswered"] == 1
    assert anyio.run(model.complete, question).usage.output_tokens == 100
