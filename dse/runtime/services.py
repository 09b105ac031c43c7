"""What all runs of a process share: the interpreter pool and the checker pool, started when first needed."""

from __future__ import annotations

import threading

from dse.runtime.sandbox import Checker, Sandbox

__all__ = ["checker", "configure", "pool"]

DEFAULT_WORKERS = 64

_lock = threading.Lock()
_pool: Sandbox | None = None
_checker: Checker | None = None
_workers = DEFAULT_WORKERS


def configure(*, max_workers: int) -> None:
    """Set how many guest sessions may be open at a time (each holds a worker process of about 8 MB while it lives).

    Takes effect for the pool that is made next; call it before the first run.
    """
    global _workers, _pool
    with _lock:
        if max_workers != _workers and _pool is not None:
            _pool.close()
            _pool = None
        _workers = max_workers


def pool() -> Sandbox:
    """The pool that runs guest code."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = Sandbox(max_workers=_workers, checkout_timeout_s=300.0)
        return _pool


def checker() -> Checker:
    """The pool that checks guest code; small, because a check takes milliseconds."""
    global _checker
    with _lock:
        if _checker is None:
            _checker = Checker(max_workers=2)
        return _checker
