"""Concurrency classes of tool calls within one run.

Calls are admitted in the order in which they were made: ``parallel`` calls together, ``ordered`` calls one at
a time among themselves, an ``exclusive`` call alone, with nothing overtaking it.

A call that *nests* (a script) makes calls of its own and does nothing besides. They stand in the order where
their script stands, before everything made after it. They wait for other calls, never for a script: not for
their own, which waits for them, and for no other, whose calls may come behind them. So every call waits only
for calls that run, or stand before it: there is always one that can go on.
"""

from __future__ import annotations

import asyncio
import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

__all__ = ["Admission", "Ticket"]


@dataclass(eq=False)
class Ticket:
    """A place in the order of calls. Taken when the call is made, used when it may start."""

    kind: str
    place: tuple[int, ...] = ()
    nests: bool = False
    ready: asyncio.Future[None] | None = None
    held: int = 0  # threads of a call that has ended, which nobody can end
    left: bool = False  # given up, but for these


class _Ahead:
    """What runs already, or stands before the call that is looked at."""

    def __init__(self, kinds: Iterable[str]) -> None:
        kinds = set(kinds)
        self.some, self.ordered, self.exclusive = bool(kinds), "ordered" in kinds, "exclusive" in kinds

    def add(self, kind: str) -> None:
        self.some = True
        self.ordered = self.ordered or kind == "ordered"
        self.exclusive = self.exclusive or kind == "exclusive"

    def blocks(self, kind: str) -> bool:
        return self.exclusive or (kind == "exclusive" and self.some) or (kind == "ordered" and self.ordered)


class _Admitted:
    """Between entering and leaving, a call runs. A class, because every call passes here."""

    def __init__(self, admission: Admission, ticket: Ticket) -> None:
        self.admission, self.ticket = admission, ticket

    async def __aenter__(self) -> None:
        try:
            self.ticket.ready = asyncio.get_running_loop().create_future()
            self.admission._admit()
            await self.ticket.ready
        except BaseException:
            self.admission.withdraw(self.ticket)
            raise

    async def __aexit__(self, *_: object) -> None:
        self.admission.withdraw(self.ticket)


@dataclass
class Admission:
    """Decides which calls run now. One event loop, no locks."""

    waiting: list[Ticket] = field(default_factory=list)  # by place
    active: list[Ticket] = field(default_factory=list)
    made: int = 0

    def ticket(self, kind: str, *, nests: bool = False, parent: Ticket | None = None) -> Ticket:
        """The next place in the order; with a `parent`, behind its earlier calls."""
        self.made += 1
        ticket = Ticket(kind, (*(parent.place if parent else ()), self.made), nests)
        if parent is None:
            self.waiting.append(ticket)  # nobody's place is behind the newest of the program's own
        else:
            bisect.insort(self.waiting, ticket, key=lambda t: t.place)
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Give the place up, before or after admission; one that is held is kept until it is let go."""
        if ticket.held:
            ticket.left = True
            return
        for tickets in (self.waiting, self.active):
            if ticket in tickets:
                tickets.remove(ticket)
                self._admit()

    def hold(self, ticket: Ticket) -> Callable[[], None]:
        """Keep the place until the function that this gives is called."""
        ticket.held += 1

        def let_go() -> None:
            ticket.held -= 1
            if ticket.left and not ticket.held:
                self.withdraw(ticket)

        return let_go

    def admitted(self, ticket: Ticket) -> _Admitted:
        """Wait until `ticket` may run; give its place up on exit."""
        return _Admitted(self, ticket)

    def _admit(self) -> None:
        """Start every ticket that may: one pass, because hundreds may wait."""
        if not self.waiting:
            return
        every = _Ahead(t.kind for t in self.active)  # what calls of the program wait for
        calls = _Ahead(t.kind for t in self.active if not t.nests)  # what calls of a script wait for
        for ticket in list(self.waiting):
            if calls.exclusive:
                return  # nothing overtakes an exclusive call
            ahead = calls if len(ticket.place) > 1 else every
            # A ticket that is not waiting yet (still being checked) keeps its place in the order.
            if ticket.ready is not None and not ahead.blocks(ticket.kind):
                self.waiting.remove(ticket)
                self.active.append(ticket)
                if not ticket.ready.done():
                    ticket.ready.set_result(None)
            every.add(ticket.kind)
            if not ticket.nests:
                calls.add(ticket.kind)
