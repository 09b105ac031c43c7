"""Kills runs wherever they can be killed, and looks whether anybody notices.

    python -m benchmarks.chaos --kills 300
    DSE_KEY=$(openssl rand -hex 32) python -m benchmarks.chaos --store postgresql://user@host/base

Each trial executes one run in a process of its own and ends that process with ``kill -9`` at a random one of its
points: before and after every write of the journal, when the model is asked, before and after a tool takes effect.
Another process resumes the run (and is killed, too, now and then) until it ends. Or the interpreter's worker is killed
at a suspension. Then: the same outputs as an undisturbed run, no write twice, no recorded completion asked for again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dse
from dse.errors import DseError, EffectUnknown
from dse.runtime import sandbox
from dse.store.journal import Store
from dse.testing import ScriptedModel, call, say

__all__ = ["SCENARIOS", "Outcome", "trial", "undisturbed"]


class World:
    """What is outside: a file to which every effect and every question to the model is appended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **fact: Any) -> None:
        line = json.dumps(fact, sort_keys=True) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, line.encode())
        os.close(file)

    def facts(self, kind: str) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [fact for fact in map(json.loads, lines) if fact["kind"] == kind]


class Reaper:
    """Counts the points of a process and ends it, or a worker, at one of them."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.seen = at, 0

    def point(self, victim: int | None = None) -> None:
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid() if victim is None else victim, signal.SIGKILL)


@dataclass
class Outside:
    """What tools get as ``ctx.deps``."""

    world: World
    reaper: Reaper
    rng: random.Random

    async def effect(self, ctx: dse.ToolContext[Outside], tool: str, n: int) -> None:
        await asyncio.sleep(self.rng.random() * 0.003)  # so that parallel calls end in any order
        self.reaper.point()
        self.world.add(kind="effect", tool=tool, n=n, key=ctx.idempotency_key)
        self.reaper.point()


@dse.tool(effect="read")
async def look(ctx: dse.ToolContext[Outside], n: int) -> int:
    """Look something up."""
    await ctx.deps.effect(ctx, "look", n)
    return n * 10


@dse.tool(effect="write", idempotent=True)
async def book(ctx: dse.ToolContext[Outside], n: int) -> str:
    """Book something, once per key."""
    await ctx.deps.effect(ctx, "book", n)
    return f"booked {n}"


@dse.tool(effect="write")
async def pay(ctx: dse.ToolContext[Outside], n: int) -> str:
    """Pay something, each time it is called."""
    await ctx.deps.effect(ctx, "pay", n)
    return f"paid {n}"


RESULTS: dict[str, Callable[[int], Any]] = {"pay": lambda n: f"paid {n}"}


class Settle(dse.Signature):
    """Settle a matter."""

    matter: str = dse.InputField()
    report: str = dse.OutputField()
    tools = [look, book, pay]


class Delegate(dse.Signature):
    """Settle a matter with scripts."""

    matter: str = dse.InputField()
    report: str = dse.OutputField()
    tools = [look, book, pay, dse.script_tool([look, book, pay])]


class Answer(dse.Signature):
    """Answer."""

    matter: str = dse.InputField()
    number: int = dse.OutputField()


def _rounds(*replies: Any) -> Callable[[Any], Any]:
    """Replies by how often the model has spoken in the conversation."""
    return lambda request: replies[sum(message["role"] == "assistant" for message in request["messages"])]


def _scripts(*scripts: str) -> Callable[[Any], Any]:
    """Scripts by how many the transcript holds."""

    def reply(request: Any) -> Any:
        asked = request["messages"][-1]["content"]
        return say(f"[[ ## code ## ]]\n{scripts[asked.count('Script ')]}\n\n[[ ## completed ## ]]")

    return reply


def _calls(*calls: tuple[str, int]) -> Any:
    return call(*((name, {"n": n}) for name, n in calls))


@dataclass(frozen=True)
class Scenario:
    signature: type[dse.Signature]
    mode: str
    reply: Callable[[Any], Any]
    limits: dict[str, Any]
    gathered: bool = False
    made: Callable[[], dse.Plan] | None = None

    def plan(self) -> dse.Plan:
        if self.made is not None:
            return self.made()
        from dse.strategies.base import seed_plan

        return seed_plan(self.signature.spec(), self.mode, limits=dse.Limits(**self.limits))


_WRITING = ("import random\na = [await look(i) for i in range(3)]\nb = await asyncio.gather(pay(1), book(2), look(3))\n"
            "r = random.random()\nc = await book(2)\nsubmit(report=f'{a} {b} {c}')")  # fmt: skip
_LEAVING = "a = await asyncio.gather(book(1), look(2))\nb = await book(2)\nif b:\n    abstain('not mine')\nsubmit(report='none')"


def _script() -> dse.Plan:
    from dse.strategies.script import script_plan

    return script_plan(Settle.spec(), _WRITING)


def _cascade() -> dse.Plan:
    """A script that leaves after writes that may be repeated, one that fails, and code that makes the same writes."""
    from dse.strategies.base import seed_plan
    from dse.strategies.script import script_plan

    spec = Settle.spec()
    failing = script_plan(spec, "a = await book(1)\nsubmit(report=a[1_000])")
    return dse.Plan.cascade(script_plan(spec, _LEAVING), failing, seed_plan(spec, "code"))


_DONE = call(("submit", {"report": "done"}))
SCENARIOS: dict[str, Scenario] = {
    "direct": Scenario(Answer, "direct", _rounds(say("[[ ## number ## ]]\nmany"), say("[[ ## number ## ]]\n7")), {}),
    "tool_call": Scenario(
        Settle, "tool_call",
        _rounds(_calls(("look", 1)), _calls(("pay", 2)), _calls(("book", 3)), _calls(("pay", 2)), _DONE), {},
    ),
    "tool_call gathered": Scenario(
        Settle, "tool_call",
        _rounds(_calls(("look", 1), ("look", 2), ("book", 3), ("pay", 4), ("pay", 5), ("book", 3)),
                _calls(("look", 6), ("book", 7), ("look", 8)), _DONE), {}, gathered=True,
    ),
    "code": Scenario(
        Settle, "code",
        _scripts("import random\na = [await look(i) for i in range(3)]\nb = await pay(1)\nr = random.random()\nprint(a, b)",
                 "c = await book(2)\nd = await pay(1)\nsubmit(report=f'{a} {b} {c} {d}')"), {},
    ),
    "code gathered": Scenario(
        Settle, "code",
        _scripts("a = await asyncio.gather(look(1), book(2), look(3), pay(4), book(2))\nprint(a)",
                 "async def one(i):\n    x = await look(i)\n    return x, await book(x)\n"
                 "b = await asyncio.gather(*[one(i) for i in range(4)], pay(9))\nsubmit(report=f'{a} {b}')"),
        {}, gathered=True,
    ),
    "script": Scenario(Settle, "script", _scripts(), {}, gathered=True, made=_script),
    "cascade": Scenario(
        Settle, "cascade",
        _scripts("a = await asyncio.gather(book(1), look(2), pay(3))\nprint(a)", "b = await book(2)\nsubmit(report=f'{a} {b}')"),
        {}, gathered=True, made=_cascade,
    ),
    "script tool": Scenario(
        Delegate, "tool_call",
        _rounds(call(("run_script", {"code": "a = await look(1)\nb = await asyncio.gather(pay(2), book(3), book(3))\n[a, b]"}),
                     ("look", {"n": 4})),
                call(("run_script", {"code": "[await pay(2), await book(5)]"})), _DONE), {}, gathered=True,
    ),
    "code retry": Scenario(
        Settle, "code",
        _scripts("a = await book(1)\nb = await asyncio.gather(book(2), look(3))\nc = await book(4)",
                 "d = [await book(i) for i in range(5, 9)]\nsubmit(report=str([a, b, c, d]))"),
        {"tool_calls": 6, "outcomes": {"tool_calls": "retry"}}, gathered=True,
    ),
}  # fmt: skip


# --- one process


def _program(scenario: Scenario, outside: Outside, store: Store) -> dse.Program:
    def asked(request: Any) -> Any:
        outside.world.add(kind="asked", messages=len(request["messages"]), size=len(json.dumps(request)))
        outside.reaper.point()
        return scenario.reply(request)

    return dse.Program(scenario.signature, scenario.plan(), lm=ScriptedModel(asked), deps=outside, store=store)


def _hooks(reaper: Reaper, worker: bool) -> None:
    """Points of this process at which it, or its worker, may end. Only ever in a child that ends anyway."""
    if worker:
        for name in ("resume", "resume_along"):
            going_on = getattr(sandbox.Session, name)

            async def struck(self: Any, *args: Any, _going_on: Any = going_on) -> Any:
                reaper.point(self._pid)
                return await _going_on(self, *args)

            setattr(sandbox.Session, name, struck)
        return
    for name in ("write_batches", "open_run", "stop_run"):
        original = getattr(Store, name)

        def around(self: Any, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            reaper.point()
            result = _original(self, *args, **kwargs)
            reaper.point()
            return result

        setattr(Store, name, around)


def _decide(error: EffectUnknown, world: World, path: Any) -> dict[int, dse.Decision]:
    """What a person would do: look whether it happened."""
    decisions: dict[int, dse.Decision] = {}
    settled = Counter(entry["arguments"]["n"] for entry in path)
    for one in error.details["unknown"]:
        n = one["arguments"]["n"]
        happened = sum(fact["n"] == n for fact in world.facts("effect") if fact["tool"] == one["tool"])
        done = happened > settled[n]
        decisions[one["call_id"]] = dse.Decision("done", RESULTS[one["tool"]](n)) if done else dse.Decision("retry")
    return decisions


def _live(scenario: Scenario, place: Path, run: str, reaper: Reaper, seed: int, url: str | None) -> None:
    """Start or resume a run, to its end.

    Args:
        url: of the store; default a file in `place`.
    """
    world = World(place / f"{run}.world")
    outside = Outside(world, reaper, random.Random(seed))
    store = Store(place / "runs.db" if url is None else url)
    run_id = f"{place.parent.name} {place.name} {run}"  # several cases may share a store
    program = _program(scenario, outside, store)

    async def go() -> Any:
        decisions: dict[int, dse.Decision] = {}
        while True:
            try:
                known = {run["run_id"]: run["outcome"] for run in store.runs(1000)}
                if run_id not in known:
                    made = await program.execute(program.new_run({"matter": "x"}, run_id=run_id, seed=1))
                elif known[run_id] in ("ok", "failed"):  # the process ended between the last write and the end
                    receipt = store.run(run_id)[0] or {}
                    return receipt["outputs"] or {"error": receipt["error"]["code"]}, receipt
                else:
                    made = await program.aresume(run_id, decisions=decisions)
                return made.outputs, made.receipt
            except EffectUnknown as error:
                entries = store.journal(run_id).entries
                done = {e["call_id"] for e in entries if e["kind"] == "tool_outcome" and e["outcome"] == "ok"}
                settled = [e for e in entries if e["kind"] == "tool_intent" and e["tool"] == "pay" and e["call_id"] in done]
                decisions = _decide(error, world, settled)
                world.add(kind="decided", count=len(decisions))

    try:
        result, receipt = asyncio.run(go())
    except DseError as error:
        result, receipt = {"error": error.code}, error.details.get("receipt", {})
    world.add(kind="result", result=result, points=reaper.seen, transcript=receipt.get("transcript_hash"),
              effects=receipt.get("effects"), usage={k: receipt.get("usage", {}).get(k) for k in ("model_calls", "tool_calls")})  # fmt: skip
    store.close()


def _warm() -> None:
    """Import here, once, what every child would import: a trial takes a fraction of the time."""
    import dspy  # noqa: F401
    import pydantic_monty  # noqa: F401

    import dse.strategies.code
    import dse.strategies.render
    import dse.strategies.tool_call  # noqa: F401

    with contextlib.suppress(ImportError):
        import psycopg  # noqa: F401
    Store(":memory:").close()


def _forked(work: Callable[[], None]) -> int:
    """Run `work` in a child; its exit status, negative for a signal."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sandbox.pool().close()
            sandbox.checker().close()
            os._exit(status)
    _, waited = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(waited)


# --- trials


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        effects: (tool, argument) -> how often the world saw it; an idempotent tool counts once per key.
        points: at which it could have been killed.
    """

    result: Any
    transcript: str | None
    effects: dict[tuple[str, int], int]
    reported: str
    usage: dict[str, int]
    asked: int
    points: int
    kills: int
    unknown: int

    def same_as(self, other: Outcome, *, path: bool) -> list[str]:
        """What differs from an undisturbed run."""
        wrong = []
        for name in ("result", "effects", "reported", "usage"):
            if getattr(self, name) != getattr(other, name):
                wrong.append(f"{name}: {getattr(self, name)} instead of {getattr(other, name)}")
        if path and self.transcript != other.transcript:
            wrong.append("another transcript")
        if self.asked > other.asked + self.kills:
            wrong.append(f"asked {self.asked} times instead of {other.asked}, with {self.kills} kills")
        return wrong


def _read(place: Path, run_id: str, kills: int) -> Outcome:
    world = World(place / f"{run_id}.world")
    result = world.facts("result")[-1]
    effects: Counter[tuple[str, int]] = Counter()
    keys: set[str] = set()
    for fact in world.facts("effect"):
        if fact["tool"] == "pay" or (fact["tool"] == "book" and fact["key"] not in keys):
            effects[fact["tool"], fact["n"]] += 1
        keys.add(fact["key"])
    unknown = sum(fact["count"] for fact in world.facts("decided"))
    return Outcome(result["result"], result["transcript"], dict(effects), result["effects"], result["usage"],
                   len(world.facts("asked")), result["points"], kills, unknown)  # fmt: skip


def undisturbed(name: str, place: Path, *, worker: bool, store: str | None = None) -> Outcome:
    """One run that nobody kills."""

    def work() -> None:
        reaper = Reaper()
        _hooks(reaper, worker)
        _live(SCENARIOS[name], place, "undisturbed", reaper, 0, store)

    place.mkdir(parents=True, exist_ok=True)
    if (status := _forked(work)) != 0:
        raise RuntimeError(f"the undisturbed run of {name!r} ended with {status}")
    return _read(place, "undisturbed", 0)


def trial(name: str, place: Path, seed: int, points: int, *, worker: bool, store: str | None = None) -> Outcome:
    """One run that is killed at a random point, resumed, perhaps killed again, and brought to its end."""
    rng = random.Random(seed)
    run_id, kills = f"seed-{seed}", 0
    at = rng.randint(1, points)
    for attempt in range(20):
        reaper = Reaper(at)

        def work(reaper: Reaper = reaper, attempt: int = attempt) -> None:
            _hooks(reaper, worker)
            _live(SCENARIOS[name], place, run_id, reaper, seed * 100 + attempt, store)

        status = _forked(work)
        if status == 0:
            return _read(place, run_id, kills + int(worker))
        if status != -signal.SIGKILL:
            raise RuntimeError(f"{name!r}, seed {seed}: the process ended with {status}")
        kills += 1
        at = rng.randint(1, points) if rng.random() < 0.3 else 0
    raise RuntimeError(f"{name!r}, seed {seed}: the run does not come to its end")


def cases() -> Iterator[tuple[str, bool]]:
    """Scenarios, with the host or the interpreter's worker as the victim."""
    for name, scenario in SCENARIOS.items():
        yield name, False
        if scenario.mode in ("code", "script", "cascade") or name == "script tool":
            yield name, True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="trials over all cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="this scenario; may be given several times")
    parser.add_argument("--store", help="URL of a store; default a file per case")
    options = parser.parse_args(arguments)
    chosen = [case for case in cases() if not options.only or case[0] in options.only]
    per_case = -(-options.kills // len(chosen))
    failures = total = 0
    _warm()
    print(f"{'case':34} {'points':>6} {'trials':>6} {'kills':>5} {'unknown':>7} {'wrong':>5} {'s/trial':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, worker) in enumerate(chosen):
            place = Path(folder) / str(number)
            calm = undisturbed(name, place, worker=worker, store=options.store)
            started, kills, unknown, wrong = time.monotonic(), 0, 0, 0
            for seed in range(options.seed, options.seed + per_case):
                end = trial(name, place, seed, calm.points, worker=worker, store=options.store)
                kills, unknown = kills + end.kills, unknown + end.unknown
                if problems := end.same_as(calm, path=not SCENARIOS[name].gathered):
                    wrong += 1
                    print(f"  {name}, seed {seed}: {'; '.join(problems)}")
            spent = (time.monotonic() - started) / per_case
            victim = f"{name} ({'worker' if worker else 'host'})"
            print(f"{victim:34} {calm.points:6} {per_case:6} {kills:5} {unknown:7} {wrong:5} {spent:7.2f}", flush=True)
            failures, total = failures + wrong, total + kills
    print(f"{total} kills, {failures} wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
