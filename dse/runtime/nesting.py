"""A call that makes further calls of the same run: what a script tool is given, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from dse.contracts.tool import Tool
from dse.errors import ToolFault
from dse.runtime.admission import Ticket

if TYPE_CHECKING:
    from dse.runtime.dispatcher import CallResult, Dispatcher

__all__ = ["NESTED", "Caller"]

NESTED = 1_000_000
"""Ids of the calls that call number n makes begin above n times this: they do not depend on what runs beside it."""


class Caller:
    """A running call of a script tool, and the way from it to the tools it may call.

    Attributes:
        allow: tools that may be called: those that the script tool names, that the plan allows, and that are
            bound as the script tool knows them (so that its effect is never weaker than theirs).
    """

    def __init__(self, dispatcher: Dispatcher, tool: Tool, ticket: Ticket, call_id: int) -> None:
        self.dispatcher = dispatcher
        self.ticket = ticket
        self.call_id = call_id
        self._ended: list[Exception] = []
        self.allow = frozenset(name for name, interface in (tool.nests or {}).items() if self._fits(name, interface))
        self._scope: anyio.CancelScope | None = None
        self._waiting = 0
        self._left = 0.0
        self._made = 0

    def reserve(self) -> int:
        """The id of the next call."""
        self._made += 1
        return self.call_id * NESTED + self._made

    def _fits(self, name: str, interface: str) -> bool:
        bound = self.dispatcher.toolbox.get(name) if name in self.dispatcher.allow else None
        return bound is not None and bound.nests is None and bound.contract.interface_id == interface

    async def call(self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> CallResult:
        """Call a tool of the run, under its own policy; raises what ``Dispatcher.call`` raises."""
        try:
            return await self.dispatcher.call(name, args, kwargs, caller=self)
        except ToolFault:
            raise
        except Exception as exc:
            self.ending(exc)
            raise

    def ending(self, exc: Exception) -> None:
        """`exc` ends the run: it is no failure of the implementation."""
        self._ended.append(exc)

    def ends(self, exc: BaseException) -> bool:
        return any(exc is one for one in self._ended)

    def within(self, scope: anyio.CancelScope) -> None:
        """The time that the script tool has."""
        self._scope = scope

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Waiting for a decision about a nested call: that time is not the script's."""
        scope = self._scope
        if scope is None:
            yield
            return
        if self._waiting == 0:
            self._left = scope.deadline - anyio.current_time()
            scope.deadline = float("inf")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if self._waiting == 0:
                scope.deadline = anyio.current_time() + self._left
