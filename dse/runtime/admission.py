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


@dataclass
class Admission:
    """Decides which calls run now. One event loop, no locks."""

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

    def _admit(self) -> None:
        """Start every ticket that may: one pass, because hundreds may wait."""
        before = bool(self.active)  # something is active, or ahead in the order
        ordered = any(t.kind == "ordered" for t in self.active)
        exclusive = any(t.kind == "exclusive" for t in self.active)
        for ticket in list(self.waiting):
            if exclusive:
                return  # nothing overtakes an exclusive call
            blocked = (ticket.kind == "exclusive" and before) or (ticket.kind == "ordered" and ordered)
            # A ticket that is not waiting yet (still being checked) keeps its place in the order.
            if ticket.ready is not None and not blocked:
                self.waiting.remove(ticket)
                self.active.append(ticket)
                if not ticket.ready.done():
                    ticket.ready.set_result(None)
            before = True
            ordered = ordered or ticket.kind == "ordered"
            exclusive = ticket.kind == "exclusive"
