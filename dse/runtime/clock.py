"""The active time of a run: what its limit bounds, and what waiting for a decision does not use up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import anyio

__all__ = ["ActiveClock", "spent_by_attempt"]


class ActiveClock:
    """Seconds that the attempts of a run are active, also those that an earlier process executed of them.

    Args:
        allowed_s: for each attempt.
        waited: told how many seconds an attempt waited, whenever it goes on.

    Attributes:
        attempt: the number of the one that is executed, from 0.
        spent_s: of each attempt, up to where its record ends: what is executed along the record takes no further time.
    """

    def __init__(self, allowed_s: float, waited: Callable[[float], None]) -> None:
        self.allowed_s = allowed_s
        self.attempt = 0
        self.spent_s: list[float] = []
        self._waited = waited
        self._now: Callable[[], float] = time.monotonic  # in an attempt: the clock of its event loop, which deadlines go by
        self._began = 0.0
        self._scope: anyio.CancelScope | None = None
        self._behind = False
        self._waiting = 0
        self._paused_at = 0.0
        self._left = 0.0

    @contextlib.contextmanager
    def bounded(self, *, behind: bool) -> Iterator[anyio.CancelScope]:
        """One attempt, which is cancelled when its time is over.

        Args:
            behind: it begins along a record, where time does not count until it has `caught_up`.
        """
        self._now = asyncio.get_running_loop().time
        self._began = self._now() - self._spent
        with anyio.move_on_after(None if behind else max(0.0, self.allowed_s - self._spent)) as scope:
            self._scope, self._behind = scope, behind
            self._waiting = 0
            yield scope

    @property
    def _spent(self) -> float:
        return self.spent_s[self.attempt] if self.attempt < len(self.spent_s) else 0.0

    def caught_up(self) -> None:
        """The record is used up, or something new happens: from here on time counts again."""
        scope, behind, self._behind = self._scope, self._behind, False
        if behind and scope is not None and self._waiting == 0:
            self._began = self._now() - self._spent
            scope.deadline = self._began + self.allowed_s

    def active_s(self) -> float:
        """Active seconds of this attempt so far."""
        if self._scope is None:
            return 0.0
        until = self._paused_at if self._waiting else self._now()
        return max(0.0, until - self._began)

    def keep(self) -> None:
        """This attempt is executed again along what is recorded of it: the time that it took so far stays used up."""
        self.spent_s = [*self.spent_s[: self.attempt], self.active_s()]

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Waiting for a decision: the time inside does not count as active."""
        scope = self._scope
        if scope is None:
            yield
            return
        if self._waiting == 0:
            self._paused_at = self._now()
            self._left = scope.deadline - self._paused_at
            scope.deadline = float("inf")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if self._waiting == 0:
                now = self._now()
                scope.deadline = now + self._left
                self._waited(now - self._paused_at)
                self._began += now - self._paused_at


def spent_by_attempt(entries: Iterable[Mapping[str, Any]], active_s: Sequence[float]) -> list[float]:
    """Active seconds of each attempt that a journal tells of.

    Args:
        active_s: of the attempt that an entry belongs to, when it was written.
    """
    attempts = [0.0]
    for entry, seconds in zip(entries, active_s, strict=True):
        attempts[-1] = max(attempts[-1], seconds)
        if entry["kind"] == "retry":  # which is the last of the attempt before
            attempts.append(0.0)
    return attempts
