"""Writing together what comes at the same time, in one transaction."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from dse.errors import StoreUnavailable

if TYPE_CHECKING:
    from dse.store.journal import Store

__all__ = ["Together"]

Item = TypeVar("Item")
Kept = TypeVar("Kept")


class _Waiting:
    """An item, and what became of it."""

    def __init__(self, item: Any) -> None:
        self.item = item
        self.done = False
        self.kept: Any = None
        self.error: Exception | None = None


class Together(Generic[Item, Kept]):
    """Awaited with an item, gives what the store has then. Whoever comes while something is being written is written next.

    Args:
        write: a method of the store that takes several items, and gives something for each.
    """

    def __init__(self, store: Store, write: Callable[[Sequence[Item]], list[Kept]]) -> None:
        self._store, self._write = store, write
        self._queue: list[_Waiting] = []
        self._lock = anyio.Lock()

    async def __call__(self, item: Item) -> Kept:
        mine = _Waiting(item)
        self._queue.append(mine)
        with anyio.CancelScope(shield=True):  # it is paid for
            async with self._lock:
                if not mine.done:
                    batch, self._queue = self._queue, []
                    await self._commit(batch)
        if mine.error is not None:
            raise mine.error
        kept: Kept = mine.kept
        return kept

    async def _commit(self, batch: list[_Waiting]) -> None:
        try:
            kept = await self._store.threaded(self._write, [one.item for one in batch])
            for one, result in zip(batch, kept, strict=True):
                one.kept = result
        except Exception as exc:
            if len(batch) > 1 and not isinstance(exc, StoreUnavailable):  # what one cannot write is not the fault of others
                for one in batch:
                    await self._commit([one])
                return
            for one in batch:  # each raises an error of its own
                one.error = pickle.loads(pickle.dumps(exc)) if isinstance(exc, StoreUnavailable) else exc
        for one in batch:
            one.done = True
