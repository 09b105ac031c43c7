"""Faults from outside: what becomes of runs whose model endpoint fails a share of the requests, per kind of fault.

python -m benchmarks.outside                    all kinds at 30%, about a minute on two cores
python -m benchmarks.outside --rate 0.5 cut hang

Every run is a program of mode direct, tool_call or code over HTTP to a loopback server, through a ``RetryingModel`` of
four attempts whose waits are not waited for. Faults of the endpoint must never be a candidate's failure; bad replies
of the model itself (the last rows) may be. Ends with 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

import dse
from dse.errors import InfrastructureError, RunFailed
from dse.models.lm import RetryingModel, resolve_model
from dse.testing.faults import OUTSIDE, REPLIES, Faults, answers
from dse.testing.server import FakeOpenAI, register_loopback_provider, unregister_loopback_provider
from dse.testing.worlds import AskWarehouse, PlantedWorld, Warehouse

__all__ = ["Outcome", "main", "measure", "table"]

MODES = ("direct", "tool_call", "code")
ATTEMPTS = 4
_SILENCE_S = 0.5  # after which a silent connection is given up


@dataclass(frozen=True)
class Outcome:
    """What became of the runs under one kind of fault (or a mix)."""

    kind: str
    runs: int
    right: int
    wrong: int
    infrastructure: int
    candidate: int
    requests: int
    faults: int

    @property
    def outside(self) -> bool:
        """Whether nobody's program is to blame for this kind."""
        return self.kind not in (*REPLIES, "all replies")

    @property
    def met(self) -> bool:
        return not self.outside or (self.candidate == self.wrong == 0)


async def _no_wait(seconds: float) -> None:
    await anyio.lowlevel.checkpoint()


async def _runs(server: FakeOpenAI, world: PlantedWorld, runs: int) -> list[str]:
    register_loopback_provider("loopback", server.base_url)
    live = resolve_model("loopback/model", params={"timeout": _SILENCE_S})
    model = RetryingModel(live, ATTEMPTS, sleep=_no_wait)
    programs = [dse.Program(AskWarehouse, mode, lm=model) for mode in MODES]
    rows = world.rows()[:runs]

    async def one(number: int) -> str:
        row = rows[number]
        item = row["request"].removeprefix("How many pieces of ").removesuffix(" are left?")
        try:
            done = await programs[number % len(MODES)].acall(request=row["request"], deps=Warehouse(item))
        except InfrastructureError:
            return "infrastructure"
        except RunFailed:
            return "candidate"
        return "right" if done.left == row["left"] else "wrong"

    try:
        return await asyncio.gather(*(one(number) for number in range(runs)))
    finally:
        await live.aclose()
        unregister_loopback_provider("loopback")


def measure(kinds: Sequence[str] = (), *, rate: float = 0.3, runs: int = 60, seed: int = 0) -> list[Outcome]:
    """One outcome per kind, and without `kinds` also without faults and for all kinds mixed."""
    mixes: list[tuple[str, float, Sequence[str]]] = [(kind, rate, [kind]) for kind in kinds or OUTSIDE]
    if not kinds:
        mixes = [("none", 0.0, OUTSIDE), *mixes, ("all outside", rate, OUTSIDE)]
        mixes += [*((kind, rate, [kind]) for kind in REPLIES), ("all replies", rate, REPLIES)]
    world = PlantedWorld(dict.fromkeys(MODES, 1.0), clusters=runs, writes=0.0, seed=seed)
    found = []
    for number, (name, share, mixed) in enumerate(mixes):
        with FakeOpenAI(answers(world.reply), faults=Faults(share, mixed, 100 * seed + number)) as server:
            ended = asyncio.run(_runs(server, world, runs))
        found.append(Outcome(
            name, runs, ended.count("right"), ended.count("wrong"), ended.count("infrastructure"), ended.count("candidate"),
            server.count, sum(kind is not None for kind in server.kinds),
        ))  # fmt: skip
    return found


def table(outcomes: Sequence[Outcome]) -> str:
    """As a Markdown table."""
    lines = ["| fault | runs | right answers | wrong answers | infrastructure failures | candidate failures | faults sent | "
             "requests per run |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for o in outcomes:
        blame = f"{o.candidate}" + ("" if o.met else " **must be 0**") + ("" if o.outside else " (its own replies)")
        lines.append(f"| {o.kind} | {o.runs} | {o.right} | {o.wrong} | {o.infrastructure} | {blame} | {o.faults} | "
                     f"{o.requests / o.runs:.2f} |")  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", choices=[[], *OUTSIDE, *REPLIES], metavar="KIND", help="default: all")
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    os.environ["NO_PROXY"] = "127.0.0.1"  # loopback traffic is not for a proxy
    outcomes = measure(args.kinds, rate=args.rate, runs=args.runs, seed=args.seed)
    print(f"{args.rate:.0%} of the requests fail; {ATTEMPTS} attempts each; modes {', '.join(MODES)} in turn\n")
    print(table(outcomes))
    return 0 if all(outcome.met for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
