"""Who has a run or a compile: which process, on which machine, and whether it still lives."""

from __future__ import annotations

import functools
import os
import platform
import uuid
from pathlib import Path

__all__ = ["described", "is_alive", "is_here", "me"]

_process = uuid.uuid4().hex[:8]


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    """Host, boot and process namespace: where process ids mean the same thing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = space = ""
    return f"{platform.node()}/{boot}/{space}"


def _started(pid: int) -> str:
    """When a process started, in the kernel's own units; empty where nobody says."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def me() -> str:
    pid = os.getpid()
    return f"{_machine()}|{pid}|{_started(pid)}|{_process}"


def described(owner: str) -> str:
    """An owner for people: process and host."""
    machine, _, rest = owner.partition("|")
    return f"process {rest.partition('|')[0] or 'unknown'} on {machine.partition('/')[0] or 'an unknown host'}"


def is_here(owner: str) -> bool:
    """Whether an owner is, or was, a process of this machine since it was started."""
    return owner.split("|")[0] == _machine()


def is_alive(owner: str) -> bool:
    """Whether an owner on this machine still runs."""
    if owner == me():
        return True
    try:
        _, number, started, _ = owner.split("|")
        pid = int(number)
        os.kill(pid, 0)
    except (ValueError, OverflowError, ProcessLookupError):  # or this is no owner at all
        return False
    except PermissionError:
        pass
    now = _started(pid)  # of a process that may not be looked at, nobody says: then it lives
    return (not now or now == started) and _not_a_zombie(pid)


def _not_a_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True
