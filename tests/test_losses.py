"""Losses and interrupts that are not the run's own: nothing is executed twice, and the run is let go with a receipt."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dse
from benchmarks import chaos
from dse.errors import EffectUnknown, InfrastructureError, RunTaken, SandboxUnavailable, StoreUnavailable
from dse.runtime import sandbox
from dse.testing import ScriptedModel, call, say

SUBMIT = call(("submit", {"answer": "done"}))


class Ledger:
    """What really happened outside.

    Attributes:
        breaks: raised by the tools while they are there, one each.
    """

    def __init__(self, *breaks: BaseException) -> None:
        self.paid, self.looked = 0, 0
        self.breaks = list(breaks)

    def maybe_break(self) -> None:
        if self.breaks:
            raise self.breaks.pop()


@dse.tool(effect="write")
async def pay(ctx: dse.ToolContext[Ledger]) -> str:
    """Pay."""
    ctx.deps.paid += 1
    ctx.deps.maybe_break()
    return "paid"


@dse.tool(effect="read")
def look(ctx: dse.ToolContext[Ledger], n: int = 0) -> str:
    """Look."""
    ctx.deps.looked += 1
    ctx.deps.maybe_break()
    return "seen"


@dse.tool(effect="read")
async def peek() -> str:
    """Peek."""
    return "seen"


class Shop(dse.Signature):
    """Keep the shop."""

    question: str = dse.InputField()
    answer: str = dse.OutputField()
    tools = [pay, look, peek, dse.script_tool([peek, pay])]


def program(ledger: Ledger, *replies: Any, **more: Any) -> dse.Program:
    return dse.Program(Shop, more.pop("mode", "tool_call"), lm=ScriptedModel([*replies, SUBMIT]), deps=ledger, **more)


def lost() -> SandboxUnavailable:
    """What a dse program raises inside a tool when its interpreter dies."""
    return SandboxUnavailable("The interpreter worker died", lost=True)


# --- a loss of another run


@pytest.mark.parametrize("mode", ["tool_call", "code"])
def test_a_loss_that_a_tool_raises_is_no_loss_of_its_run(mode: str, tmp_path: Path) -> None:
    ledger = Ledger(*[lost() for _ in range(20)])
    reply = say("[[ ## code ## ]]\nawait pay()\n\n[[ ## completed ## ]]") if mode == "code" else call(("pay", {}))
    shop = program(ledger, reply, mode=mode, store=tmp_path / "runs.db")
    with pytest.raises(SandboxUnavailable) as caught:
        shop(question="?")
    assert ledger.paid == 1 and caught.value.details["effects"] == "unknown [pay#1]"
    with pytest.raises(EffectUnknown):
        shop.resume(caught.value.details["run_id"])
    assert ledger.paid == 1


def test_a_loss_in_middleware_in_a_decision_and_in_a_model_is_none_either() -> None:
    asked = 0

    async def failing(call: Any, proceed: Any) -> Any:
        await proceed(call)
        raise lost()

    def model(request: Any) -> Any:
        nonlocal asked
        asked += 1
        raise lost()

    ledger = Ledger()
    with pytest.raises(SandboxUnavailable):
        program(ledger, call(("pay", {})), middleware=[failing])(question="?")
    assert ledger.paid == 1
    with pytest.raises(InfrastructureError):
        dse.Program(Shop, "tool_call", lm=ScriptedModel(model), deps=ledger)(question="?")
    assert asked == 1


# --- a loss of this run, beside something else


def dying(patch: pytest.MonkeyPatch, *, always: bool = False) -> list[int]:
    """The first worker (or every one) dies when its guest is told a result; gives who died."""
    died: list[int] = []
    resume = sandbox.Session.resume

    async def struck(self: Any, results: Any) -> Any:
        if always or not died:
            died.append(self._pid)
            chaos.Reaper(at=1).point(self._pid)
        return await resume(self, results)

    patch.setattr(sandbox.Session, "resume", struck)
    return died


BOTH = call(("run_script", {"code": "await peek()"}), ("pay", {}))


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_does_not_go_on_in_place_past_a_write_of_unknown_outcome(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(StoreUnavailable("the ledger is down"))
    shop = program(ledger, BOTH, store=tmp_path / "runs.db" if kept else None)
    died = dying(monkeypatch)
    with pytest.raises(EffectUnknown if kept else SandboxUnavailable) as caught:
        shop(question="?")
    assert ledger.paid == 1 and len(died) == 1 and caught.value.details["effects"] == "unknown [pay#2]"
    if kept:
        assert [one["call_id"] for one in caught.value.details["unknown"]] == [2]
        run_id = caught.value.details["run_id"]
        assert shop.store.runs()[0]["outcome"] == "suspended"  # type: ignore[union-attr]
        made = shop.resume(run_id, decisions={2: dse.Decision("done", "paid", by="ann")})
        assert made.answer == "done" and ledger.paid == 1


def test_a_script_tools_own_loss_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    shop = program(ledger, call(("run_script", {"code": "await pay()\nawait peek()"})), store=tmp_path / "runs.db")
    died = dying(monkeypatch)
    made = shop(question="?")
    assert made.answer == "done" and ledger.paid == 1 and len(died) == 1
    assert shop.replay(made.receipt["run_id"]).answer == "done"


def test_losses_without_getting_further_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(*[StoreUnavailable("down") for _ in range(100)])
    died = dying(monkeypatch, always=True)
    with pytest.raises(SandboxUnavailable):
        program(ledger, call(("run_script", {"code": "await peek()"}), ("look", {})))(question="?")
    assert 2 <= len(died) <= 6 and ledger.looked <= 6


def test_an_undecided_write_of_a_script_is_named_as_in_its_receipt(tmp_path: Path) -> None:
    ledger = Ledger(StoreUnavailable("down"))
    shop = program(ledger, call(("run_script", {"code": "await peek()\nawait pay()"})), store=tmp_path / "runs.db")
    with pytest.raises(StoreUnavailable) as caught:
        shop(question="?")
    with pytest.raises(EffectUnknown, match=r"pay#1\.2") as undecided:
        shop.resume(caught.value.details["run_id"])
    (one,) = undecided.value.details["unknown"]
    assert caught.value.details["effects"] == "unknown [pay#1.2]" and one["call_id"] == 1_000_002
    made = shop.resume(caught.value.details["run_id"], decisions={one["call_id"]: dse.Decision("done", "paid")})
    assert made.answer == "done" and ledger.paid == 1


# --- interrupts


class Odd(BaseException):
    """No Exception."""


INTERRUPTS = [KeyboardInterrupt, GeneratorExit, Odd]


def crashed(shop: dse.Program, error: type[BaseException], run: Callable[[], Any]) -> None:
    """It is raised on, and the run is let go with a receipt; then it goes on."""
    with pytest.raises(error):
        run()
    (row,) = shop.store.runs()  # type: ignore[union-attr]
    receipt = shop.store.run(row["run_id"])[0]  # type: ignore[union-attr]
    assert row["outcome"] == "crashed" and receipt is not None
    assert receipt["error"]["class"] == error.__name__ and receipt["outcome"] == "crashed"
    assert shop.resume(row["run_id"]).answer == "done"


@pytest.mark.parametrize("error", INTERRUPTS)
@pytest.mark.parametrize("calls", [1, 2])
def test_an_interrupt_in_a_tool_ends_its_run_and_is_raised_on(error: type[BaseException], calls: int, tmp_path: Path) -> None:
    ledger = Ledger(error())
    shop = program(ledger, call(*[("look", {"n": n}) for n in range(calls)]), store=tmp_path / "runs.db")
    if error is Odd:  # as SystemExit: a failure of the tool
        assert shop(question="?").receipt["calls"][0]["fault"] == "DSE209"
        return
    crashed(shop, error, lambda: shop(question="?"))


@pytest.mark.parametrize("error", INTERRUPTS)
def test_an_interrupt_in_a_model_ends_its_run_and_is_raised_on(error: type[BaseException], tmp_path: Path) -> None:
    left = [error()]

    def reply(request: Any) -> Any:
        if left:
            raise left.pop()
        return SUBMIT

    shop = dse.Program(Shop, "tool_call", lm=ScriptedModel(reply), deps=Ledger(), store=tmp_path / "runs.db")
    crashed(shop, error, lambda: shop(question="?"))


@pytest.mark.parametrize("error", INTERRUPTS)
def test_an_interrupt_in_a_decision_ends_its_run_and_is_raised_on(error: type[BaseException], tmp_path: Path) -> None:
    left = [error()]

    def approve(request: Any) -> bool:
        if left:
            raise left.pop()
        return True

    @dse.tool(effect="write", approval="always")
    async def order() -> str:
        """Order."""
        return "ordered"

    class Orders(dse.Signature):
        """Order."""

        question: str = dse.InputField()
        answer: str = dse.OutputField()
        tools = [order]

    shop = dse.Program(Orders, "tool_call", lm=ScriptedModel([call(("order", {})), SUBMIT]), approve=approve,
                       store=tmp_path / "runs.db")  # fmt: skip
    crashed(shop, error, lambda: shop(question="?"))


def test_an_interrupt_in_an_event_loop_of_ones_own_lets_the_run_go(tmp_path: Path) -> None:
    shop = program(Ledger(KeyboardInterrupt()), call(("look", {}), ("look", {"n": 1})), store=tmp_path / "runs.db")
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(shop.acall(question="?"))
    (row,) = shop.store.runs()  # type: ignore[union-attr]
    assert row["outcome"] in ("crashed", "cancelled") and shop.store.run(row["run_id"])[0] is not None  # type: ignore[union-attr]
    assert shop.resume(row["run_id"]).answer == "done"


def test_a_run_that_is_closed_is_let_go(tmp_path: Path) -> None:
    shop = program(Ledger(), store=tmp_path / "runs.db")

    async def close_it() -> None:
        asked = asyncio.Event()

        async def hang(request: Any) -> Any:
            asked.set()
            await asyncio.Event().wait()

        waiting = dse.Program(Shop, "tool_call", lm=ScriptedModel(hang), deps=Ledger(), store=shop.store)
        task = asyncio.ensure_future(waiting.acall(question="?"))
        await asked.wait()
        coroutine: Any = task.get_coro()
        with contextlib.suppress(RuntimeError):  # anyio does not like it either
            coroutine.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(close_it())
    (row,) = shop.store.runs()  # type: ignore[union-attr]
    assert shop.resume(row["run_id"]).answer == "done", "this process is not at it any more"


def test_what_an_inner_run_says_of_itself_is_not_taken_for_this_one(tmp_path: Path) -> None:
    shop = program(Ledger(RunTaken("A process that lives has this run")), call(("look", {})), store=tmp_path / "runs.db")
    with pytest.raises(RunTaken):
        shop(question="?")
    (row,) = shop.store.runs()  # type: ignore[union-attr]
    assert row["outcome"] == "infrastructure" and shop.resume(row["run_id"]).answer == "done"
