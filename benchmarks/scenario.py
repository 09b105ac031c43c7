"""The task that the speed figures are measured on: look up n expenses, one after the other, and give their sum.

The same functions are the tools of both sides, and the same scripted engine answers both: in rounds (one tool call
each, then ``submit``) or with one script. Replies carry their token counts, so that the engine has little to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import TypedDict

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import dse
from dse.limits import Limits
from dse.models.lm import Completion, ToolCallPart, Usage
from dse.plan import Plan
from dse.strategies.base import seed_plan
from dse.testing.scripted import ScriptedEngine

__all__ = ["Gauge", "Scenario", "expense", "new_script", "scenario"]

Quarter = Literal["Q1", "Q2", "Q3", "Q4"]
_USAGE = Usage(200, 20, "exact")
_numbers = itertools.count()


class Expense(TypedDict):
    """One expense."""

    user_id: int
    quarter: str
    amount: float
    category: str


def expense(user_id: int, quarter: str) -> Expense:
    return {"user_id": user_id, "quarter": quarter, "amount": 10.0 + user_id, "category": "travel"}


def new_script(script: str) -> str:
    """`script` with a number that no other has in this process: the checker keeps its answers by content."""
    return f"# script {next(_numbers)}\n{script}"


class Gauge:
    """How many tools run at the same time, and how many did at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


@dataclass(frozen=True)
class Scenario:
    """`calls` tool calls, then the answer.

    Attributes:
        signature: with the tool.
        function: the tool's plain function, for dspy.
        engine: answers in rounds if it is given tools, else with `script`.
        script: what the engine writes in code mode.
    """

    calls: int
    signature: type[dse.Signature]
    function: Callable[..., Any]
    engine: ScriptedEngine
    script: str
    question: str = "What did these people spend on travel in Q1?"

    @property
    def total(self) -> float:
        return sum(10.0 + i for i in range(self.calls))

    def plan(self, mode: str) -> Plan:
        limits = Limits(model_calls=self.calls + 2, tool_calls=max(500, self.calls))
        return seed_plan(self.signature.spec(), mode, limits=limits)

    def program(self, mode: str) -> dse.Program:
        """The dse side: a program with a plan and no store. Its model can be awaited, as all that dspy names can."""
        return dse.Program(self.signature, self.plan(mode), lm=self.engine.twin())

    def react(self) -> Any:
        """The dspy side: ``dspy.ReActV2`` on plain functions. Call it within `react_context`."""
        import dspy

        return dspy.ReActV2(self.signature.as_dspy(), [self.function], max_iters=self.calls + 2)

    def react_context(self, *, adapter: str = "json") -> Callable[[], Any]:
        """Makes contexts with settings that favour ReActV2: native calls, no history, no trace, no cache."""
        import dspy

        engine = self.engine
        lm = dspy.LM(engine.name, engine=engine, async_engine=engine.twin(), cache=False, num_retries=0)
        chosen = dspy.JSONAdapter() if adapter == "json" else dspy.ChatAdapter(use_native_function_calling=True)
        return lambda: dspy.context(lm=lm, adapter=chosen, disable_history=True, trace=None)

    def check(self, prediction: Any) -> None:
        """Refuse a rollout that did not do the work."""
        if prediction.total != self.total:
            raise AssertionError(f"the rollout gave {prediction.total} instead of {self.total}")

    def forget(self) -> None:
        """Drop the requests that the engine keeps."""
        self.engine.requests.clear()


def scenario(
    calls: int, *, asynchronous: bool = True, delay_s: float = 0.0, parallel: bool = False, gauge: Gauge | None = None
) -> Scenario:
    """A scenario with an async or a sync tool that waits `delay_s` seconds.

    Args:
        gauge: counts the sync tools that run.
        parallel: all calls in one round, in code gathered; else one after the other.
    """

    async def get_expense(user_id: int, quarter: Quarter) -> Expense:
        """Expense of one person in one quarter.

        Args:
            user_id: the person's id
            quarter: the quarter of this year
        """
        if delay_s:
            await asyncio.sleep(delay_s)
        return expense(user_id, quarter)

    def get_expense_sync(user_id: int, quarter: Quarter) -> Expense:
        """Expense of one person in one quarter.

        Args:
            user_id: the person's id
            quarter: the quarter of this year
        """
        with gauge or contextlib.nullcontext():
            if delay_s:
                time.sleep(delay_s)
        return expense(user_id, quarter)

    get_expense_sync.__name__ = "get_expense"
    function: Any = get_expense if asynchronous else get_expense_sync

    class AddExpenses(dse.Signature):
        """Add up the expenses of the people in question."""

        question: str = dse.InputField(desc="what to find out")
        total: float = dse.OutputField(desc="the sum of all amounts")
        tools = [dse.tool(function, effect="read")]

    if parallel:
        script = (f"found = await asyncio.gather(*[get_expense(user_id=i, quarter='Q1') for i in range({calls})])\n"
                  "submit(total=sum(one['amount'] for one in found))")  # fmt: skip
    else:
        script = (f"total = 0.0\nfor i in range({calls}):\n    found = await get_expense(user_id=i, quarter='Q1')\n"
                  "    total += found['amount']\nsubmit(total=total)")  # fmt: skip
    answer = sum(10.0 + i for i in range(calls))

    def reply(request: Any) -> Completion:
        if not request["tools"]:
            code = new_script(script)
            return Completion(f"[[ ## code ## ]]\n```python\n{code}\n```\n\n[[ ## completed ## ]]", usage=_USAGE)
        done = sum(1 for message in request["messages"] if message["role"] == "tool")
        if done >= calls:
            parts = [ToolCallPart("", "submit", {"total": answer})]
        else:
            last = calls if parallel else done + 1
            parts = [ToolCallPart("", "get_expense", {"user_id": i, "quarter": "Q1"}) for i in range(done, last)]
        return Completion(None, tuple(parts), "tool_call", _USAGE)

    return Scenario(calls, AddExpenses, function, ScriptedEngine(reply, "scripted/benchmark"), script)
