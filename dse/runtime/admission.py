"""Concurrency classes of tool calls within one run.

Calls are admitted in the order in which they were made: ``parallel`` calls together, ``ordered`` calls one at
a time among themselves, an ``exclusive`` call alone, with nothing overtaking it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

__all__ = ["Admission", "Ticket"]


@dataclass(eq=False)
class Ticket:
    """A place in the order of calls. Taken when the call is made, used when it may start."""

    kind: str
    ready: asyncio.Future[None] | None = None
    admitted: bool = False


@dataclass
class Admission:
    waiting: list[Ticket] = field(default_factory=list)
    active: list[Ticket] = field(default_factory=list)

    def ticket(self, kind: str) -> Ticket:
        ticket = Ticket(kind)
        self.waiting.append(ticket)
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Give the place up, before or after admission."""
        for tickets in (self.waiting, self.active):
            if ticket in tickets:
                tickets.remove(ticket)
        self._admit()

    @contextlib.asynccontextmanager
    async def admitted(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait until `ticket` may run; give its place up on exit."""
        try:
            ticket.ready = asyncio.get_running_loop().create_future()
            self._admit()
            await ticket.ready
            yield
        finally:
            self.withdraw(ticket)

    def _may_start(self, ticket: Ticket, ahead: list[Ticket]) -> bool:
        if ticket.kind == "exclusive":
            return not self.active and not ahead
        if any(t.kind == "exclusive" for t in (*self.active, *ahead)):
            return False
        if ticket.kind == "ordered":
            return not any(t.kind == "ordered" for t in (*self.active, *ahead))
        return True

    def _admit(self) -> None:
        ahead: list[Ticket] = []
        for ticket in list(self.waiting):
            # A ticket that is not waiting yet (still being checked) keeps its place in the order.
            if ticket.ready is not None and self._may_start(ticket, ahead):
                self.waiting.remove(ticket)
                self.active.append(ticket)
                if not ticket.ready.done():
                    ticket.ready.set_result(None)
            else:
                ahead.append(ticket)
