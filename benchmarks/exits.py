"""Ends processes in every way a process can end, and looks what is left of them.

    python -m benchmarks.exits --rounds 10

Each trial is a process of its own with real runs in it. It must end with the expected status, in time, without a word
on standard error that is not its own, and no interpreter worker may outlive it (beyond the time its script is allowed).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dse
import dse.models.lm
import dse.strategies.code
import dse.strategies.tool_call
from dse.errors import RunSuspended
from dse.store.journal import Store
from dse.testing import ScriptedModel, call, say

__all__ = ["WAYS", "Ended", "trial"]

FEED_S = 1.0
PATIENCE_S = 60.0


@dse.tool(effect="read")
async def look(n: int) -> int:
    """Look."""
    return n


@dse.tool(effect="read")
async def wait(n: int) -> int:
    """Wait for something that never comes."""
    await asyncio.Event().wait()
    return n


@dse.tool(effect="read")
def block(n: int) -> int:
    """Block a thread for a while."""
    time.sleep(0.2)
    return n


@dse.tool(effect="write", approval="always")
async def pay(n: int) -> int:
    """Pay."""
    return n


class Job(dse.Signature):
    """Do a job."""

    n: int = dse.InputField()
    out: int = dse.OutputField()
    tools = [look, wait, block, pay]


def program(script: str, **more: Any) -> dse.Program:
    from dse.strategies.base import seed_plan

    plan = seed_plan(Job.spec(), "code", limits=dse.Limits(interpreter_s=FEED_S))
    reply = say(f"[[ ## code ## ]]\n{script}\n\n[[ ## completed ## ]]")
    return dse.Program(Job, plan, lm=ScriptedModel(lambda request: reply), **more)


GOOD = "x = await asyncio.gather(look(1), look(2))\nsubmit(out=sum(x))"


def _started(script: str) -> Any:
    """A run on its way: the first tool or the guest is at work."""
    begun = threading.Event()

    async def note(call: Any, proceed: Any) -> Any:
        begun.set()
        return await proceed(call)

    handle = program(f"await look(0)\n{script}", middleware=[note]).start(n=1)
    begun.wait(PATIENCE_S)
    return handle


def finished(_: Path) -> None:
    assert program(GOOD)(n=1).out == 3


def in_asyncio(_: Path) -> None:
    async def many() -> None:
        made = program(GOOD)
        assert [one.out for one in await asyncio.gather(*[made.acall(n=i) for i in range(8)])] == [3] * 8

    asyncio.run(many())


def nobody_waits(_: Path) -> None:
    _started("await wait(1)")


def thread_in_a_tool(_: Path) -> None:
    _started("await asyncio.gather(*[block(i) for i in range(4)])\nsubmit(out=1)")


def guest_computes(_: Path) -> None:
    _started("while True:\n    pass")


def uncaught(_: Path) -> None:
    finished(_)
    sys.stderr = open(os.devnull, "w")
    raise RuntimeError("a mistake of the program's own")


def interrupted(_: Path) -> None:
    made = program("await look(0)\nawait wait(1)")
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        made(n=1)
    except KeyboardInterrupt:
        pass


def suspended(place: Path) -> None:
    store = Store(place / f"{os.getpid()}.db")
    try:
        program("await pay(1)", store=store)(n=1)
    except RunSuspended:
        pass


def rounds_of_tools(_: Path) -> None:
    replies = [call(("look", {"n": 1}), ("block", {"n": 2})), call(("submit", {"out": 5}))]
    assert dse.Program(Job, "tool_call", lm=ScriptedModel(replies))(n=1).out == 5


def terminated(_: Path) -> None:
    _started("await wait(1)")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_S)


def killed(_: Path) -> None:
    _started("while True:\n    pass")
    os.kill(os.getpid(), signal.SIGKILL)


WAYS: dict[Callable[[Path], None], int] = {
    finished: 0, in_asyncio: 0, nobody_waits: 0, thread_in_a_tool: 0, guest_computes: 0, uncaught: 1, interrupted: 0,
    suspended: 0, rounds_of_tools: 0, terminated: -signal.SIGTERM, killed: -signal.SIGKILL,
}  # fmt: skip
"""How a process ends, and the status it must end with (negative: a signal)."""


@dataclass(frozen=True)
class Ended:
    """What was seen of a process that ended.

    Attributes:
        seconds: until it had ended. left: processes of its session that outlived their time.
    """

    status: int
    seconds: float
    said: str
    left: list[int]


class _Child(SystemExit):
    """Ends a forked child through the interpreter's own way out."""


def trial(way: Callable[[Path], None], place: Path) -> Ended:
    """One process that ends in one way."""
    errors = place / "stderr"
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
        signal.alarm(int(PATIENCE_S))
        way(place)
        raise _Child(0)
    _, waited = os.waitpid(pid, 0)
    seconds = time.monotonic() - started
    deadline = time.monotonic() + FEED_S + 5.0  # a worker whose host is gone may finish its script
    while (left := _session(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return Ended(os.waitstatus_to_exitcode(waited), seconds, errors.read_text(), left)


def _session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(int(entry))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="times each way is taken")
    options = parser.parse_args(arguments)
    wrong = total = 0
    print(f"{'way':18} {'status':>6} {'good':>7} {'slowest s':>9}")
    folder = Path(tempfile.mkdtemp())  # removed below and not on the way out, which every child takes as well
    for way, status in WAYS.items():
        good, slowest = 0, 0.0
        for _ in range(options.rounds):
            sys.stdout.flush()
            ended = trial(way, folder)
            slowest = max(slowest, ended.seconds)
            if ended.status == status and not ended.said and not ended.left:
                good += 1
            else:
                print(f"  {way.__name__}: status {ended.status}, left {ended.left}, said {ended.said[-500:]!r}")
        print(f"{way.__name__:18} {status:6} {good:3}/{options.rounds:3} {slowest:9.2f}", flush=True)
        wrong, total = wrong + options.rounds - good, total + options.rounds
    shutil.rmtree(folder)
    print(f"{total - wrong} of {total} clean")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
