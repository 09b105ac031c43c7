"""Functions that do not lead to what stands behind them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from dse.errors import UserError

__all__ = ["door"]

F = TypeVar("F", bound=Callable[..., Any])

_behind: dict[int, Callable[..., Any]] = {}
_numbers = itertools.count()


class _Door:
    """Neither an attribute nor a closure of it is the function that it calls."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._number not in _behind:
            raise UserError("This search has ended", remedy="Use what a search holds while it proposes.")
        return _behind[self._number](*args, **kwargs)


@contextlib.contextmanager
def door(function: F) -> Iterator[F]:
    """Calls `function` for as long as it is open, and shows nothing of it.

    No barrier against code that means harm: that reads the memory of the process. It keeps what is searched with from
    being found by following what one holds, as inspection, copying and pickling do.
    """
    number = next(_numbers)
    _behind[number] = function
    try:
        yield cast(F, _Door(number))
    finally:
        del _behind[number]
