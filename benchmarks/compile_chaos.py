"""Kills compiles at any moment, runs the same command again, and looks whether anybody notices.

    python -m benchmarks.compile_chaos --kills 60

A compile runs in a process of its own, which ends with ``kill -9`` at a random moment; the next process gets the same
call. It has to end with the artifact of an undisturbed compile, with a replayed model and with a live one (scripted: what
it answers, and the times it reports, are the same every time). The live one is counted from outside, too: it may be asked
again only for what was in flight when the process was killed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dse
import dse.compiler.compile
import dse.strategies.direct
import dse.strategies.tool_call
from dse.store.cassette import RecordModel
from dse.strategies.base import seed_plan
from dse.testing.worlds import PlantedWorld

__all__ = ["Trial", "prepare", "trial"]

WORLD = PlantedWorld({"direct": 0.4, "tool_call": 0.9}, clusters=40, writes=0.1)
CONCURRENCY = 4


@dataclass(frozen=True)
class Hints:
    """A proposer that runs something, asks the reflection model, and proposes prompts."""

    name: str = "hints"
    revision: str = "1"

    async def propose(self, search: dse.Search) -> Sequence[dse.Proposal]:
        found = []
        for number in range(2):
            text = await search.reflect(f"Give hint {number} for: {search.spec.instructions}")
            seed = seed_plan(search.spec, "direct", limits=search.limits)
            prompts = {name: dse.Prompt(instructions=f"{one.instructions}\n\n{text}") for name, one in seed.prompts.items()}
            plan = dse.Plan(mode="direct", prompts=prompts, limits=search.limits)
            await search.evaluate({f"direct/none/hint{number}": plan}, search.rows[:3], None)
            found.append(dse.Proposal(plan, f"hint{number}"))
        return found


class Counted:
    """The scripted model, with a line in a file for every question: what is outside survives a kill."""

    def __init__(self, log: Path) -> None:
        self.inner = WORLD.model()
        self.name, self.params, self.supports_tools = self.inner.name, self.inner.params, self.inner.supports_tools
        self.log = log

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Any:
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, b"asked\n")
        os.close(file)
        if request["messages"][0]["content"].startswith("Give hint"):
            from dse.testing import say

            return say(f"Think of item {request['messages'][0]['content'][10]}.")
        return await self.inner.complete(request, replicate=replicate, occurrence=occurrence)

    async def aclose(self) -> None:
        await self.inner.aclose()


def compiled(folder: Path, model: Any) -> str:
    """One compile; gives its artifact's id."""
    result = dse.compile(WORLD.task(modes=["direct", "tool_call"]), lm=model, registry=folder / "registry", search=[Hints()],
                         concurrency=CONCURRENCY, model_label="scripted")  # fmt: skip
    return result.artifact.artifact_id


def in_process(folder: Path, model: Any, delay_s: float | None) -> str | None:
    """Compile in a process of its own, killed after `delay_s`; the artifact's id, or None where it was killed."""
    answer = folder / "answer"
    child = os.fork()
    if child == 0:
        try:
            if delay_s is not None:
                threading.Thread(target=lambda: (time.sleep(delay_s), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
            started = time.monotonic()
            found = compiled(folder, model(folder))
            answer.write_text(json.dumps([found, time.monotonic() - started]))
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    if status:
        raise SystemExit("a compile failed; see above")
    return str(json.loads(answer.read_text())[0])


def finished(folder: Path) -> str | None:
    """The artifact of a compile that had ended when its process was killed: the same call would begin another one."""
    file = folder / "registry" / "dse.db"
    if not file.exists():
        return None
    with contextlib.closing(sqlite3.connect(file)) as store:
        try:
            if store.execute("SELECT count(*) FROM unfinished").fetchone()[0]:
                return None
            row = store.execute("SELECT artifact_id FROM compiles").fetchone()
        except sqlite3.OperationalError:  # killed while the store was made
            return None
    return None if row is None else str(row[0])


@dataclass(frozen=True)
class Prepared:
    """Undisturbed compiles, replayed and live: their artifacts, how long one takes, how often it asks, and its recording."""

    folder: Path
    artifact_id: str
    live_id: str  # of a live compile: its times are measured, not recorded, and the artifact says so
    took_s: float
    asked: int

    def replay(self, _: Path) -> Any:
        return f"replay:{self.folder / 'recording.jsonl'}"


def prepare(folder: Path) -> Prepared:
    """Run undisturbed compiles: recorded, replayed, and live without a recording."""
    import dspy  # noqa: F401 - loaded once for all processes

    live = folder / "live"
    live.mkdir(parents=True)
    in_process(live, lambda place: RecordModel(Counted(place / "asked"), folder / "recording.jsonl", source="scripted"), None)
    asked = len((live / "asked").read_text().splitlines())
    again = folder / "again"
    again.mkdir()
    found = in_process(again, lambda _: f"replay:{folder / 'recording.jsonl'}", None)
    took = json.loads((again / "answer").read_text())[1]
    alone = folder / "alone"
    alone.mkdir()
    live_id = in_process(alone, lambda place: Counted(place / "asked"), None)
    return Prepared(folder, str(found), str(live_id), took, asked)


@dataclass(frozen=True)
class Trial:
    """What one trial found: an empty `wrong` is as it should be, else it says everything that is not."""

    kind: str
    kills: int
    asked: int
    wrong: str


def trial(prepared: Prepared, folder: Path, *, live: bool, kills: int, seed: int) -> Trial:
    """Kill a compile `kills` times at random moments, let it end, and compare."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    model = (lambda place: Counted(place / "asked")) if live else prepared.replay
    done = 0
    found = None
    while found is None and done < kills:
        found = in_process(folder, model, rng.random() * prepared.took_s * 1.05)
        done += found is None
        found = found or finished(folder)
    if found is None:
        found = in_process(folder, model, None)
    asked = len((folder / "asked").read_text().splitlines()) if live else 0
    wrong = []
    champion = dse.Registry(folder / "registry").aliases("AskWarehouse")
    expected = prepared.live_id if live else prepared.artifact_id
    if found != expected:
        wrong.append(f"artifact {found} instead of {expected}")
    if found not in champion.values():
        wrong.append(f"{found} is neither champion nor candidate: {champion}")
    if live and asked > prepared.asked + done * CONCURRENCY:
        wrong.append(f"asked {asked} times instead of {prepared.asked} + {done} x {CONCURRENCY} in flight")
    return Trial("live" if live else "replayed", done, asked, "; ".join(wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    wrong: list[Trial] = []
    kills = {"live": 0, "replayed": 0}
    again = 0
    try:
        prepared = prepare(place / "undisturbed")
        print(f"undisturbed: {prepared.took_s:.1f} s, {prepared.asked} questions, {prepared.artifact_id[:19]}")
        number = 0
        while sum(kills.values()) < args.kills:
            one = trial(prepared, place / f"{number}", live=number % 2 == 1, kills=1 + number % 3, seed=args.seed * 10_000 + number)
            shutil.rmtree(place / f"{number}")
            kills[one.kind] += one.kills
            again += max(0, one.asked - prepared.asked) if one.kind == "live" else 0
            if one.wrong:
                wrong.append(one)
                print(f"WRONG (seed {args.seed}, trial {number}, {one.kind}): {one.wrong}")
            number += 1
        print(f"{sum(kills.values())} kills of {number} compiles ({kills['replayed']} with a replayed model, {kills['live']} with a "
              f"live one, which was asked {again} questions again): {len(wrong)} wrong")  # fmt: skip
    finally:
        shutil.rmtree(place, ignore_errors=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
