"""Slots of rated tools, for the calls of one run.

In production a call waits for the window that all runs of a toolbox share, for as long as the tool may take, and is refused
where that is too long. An evaluation must not judge a candidate by that: how full the window is depends on what else runs
and how fast. There a call is refused for the calls of its own rollout only, and no clock decides; what the shared window
asks for on top is waited for however long it takes, as nobody's active time.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio.lowlevel

from dse.contracts.tool import Rate, ToolContract
from dse.contracts.toolbox import Toolbox
from dse.errors import ToolRateLimited

if TYPE_CHECKING:
    from dse.runtime.nesting import Caller
    from dse.runtime.run import Run

__all__ = ["Rates"]


class Rates:
    """Makes calls of rated tools wait, or refuses them.

    Args:
        clock, sleep: in seconds.
    """

    def __init__(self, run: Run, toolbox: Toolbox, clock: Callable[[], float], sleep: Callable[[float], Awaitable[Any]]) -> None:
        self._run, self._toolbox, self._clock, self._sleep = run, toolbox, clock, sleep
        self._alone: dict[str, _Alone] = {}

    def passed(self, slot: float, rate: Rate) -> bool:
        """Whether a slot was so long ago that another one is needed."""
        return self._clock() - slot > rate.per_s / 10

    async def slot(self, contract: ToolContract, rate: Rate, call_id: int, caller: Caller | None) -> float:
        """Wait for a slot; gives its time.

        Raises:
            ToolRateLimited: the next one is further away than the tool's time limit.
        """
        if self._run.evaluation:
            return await self._in_evaluation(contract, rate, call_id, caller)
        now = self._clock()
        wait = await self._toolbox.slot(contract.name, rate, now, contract.timeout_s)
        if wait is None:
            raise _limited(contract, rate)
        if wait > 0:
            await self._sleep(wait)
        return now + wait

    async def _in_evaluation(self, contract: ToolContract, rate: Rate, call_id: int, caller: Caller | None) -> float:
        alone = self._alone.setdefault(contract.name, _Alone(rate))
        begins = alone.granted.get(call_id)
        if begins is None:
            begins = alone.grant(call_id, contract)
        now = self._clock()
        own = alone.wait(now)
        shared = own
        if contract.name not in self._toolbox.apart:
            shared = await self._toolbox.slot(contract.name, rate, now, float("inf")) or 0.0
        await anyio.lowlevel.checkpoint()  # calls made together are all decided about before the time of the run goes on
        alone.now = max(alone.now, begins)
        if own > 0:
            await self._sleep(own)
        if (rest := now + shared - self._clock()) > 0:
            with self._run.waiting(), contextlib.nullcontext() if caller is None else caller.waiting():
                await self._sleep(rest)
        return now + max(own, shared)


@dataclass
class _Alone:
    """The window of one tool as if nothing but this run called it.

    It is refused on a time of its own, in which calls take none and only waiting for a slot does; how long is waited in fact
    goes by the clock.

    Attributes:
        now: seconds waited so far.
        granted: the time of each call that may be made.
    """

    rate: Rate
    now: float = 0.0
    granted: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begins: deque[float] = deque(maxlen=self.rate.calls)
        self._started: deque[float] = deque(maxlen=self.rate.calls)

    def grant(self, call_id: int, contract: ToolContract) -> float:
        begins = self._next(self._begins, self.now)
        if begins - self.now > contract.timeout_s:
            raise _limited(contract, self.rate)
        self._begins.append(begins)
        self.granted[call_id] = begins
        return begins

    def wait(self, now: float) -> float:
        """Seconds until a call may start in fact."""
        starts = self._next(self._started, now)
        self._started.append(starts)
        return starts - now

    def _next(self, window: deque[float], now: float) -> float:
        return now if len(window) < self.rate.calls else max(now, window[0] + self.rate.per_s)


def _limited(contract: ToolContract, rate: Rate) -> ToolRateLimited:
    return ToolRateLimited(f"{contract.name} is limited to {rate.calls} calls in {rate.per_s:g} s", remedy="Call it less often.")
