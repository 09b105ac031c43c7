"""What it costs to keep runs, and how fast they go on.

    python -m benchmarks.durable                    everything, about four minutes on two cores
    python -m benchmarks.durable cost events        some topics, printed
    python -m benchmarks.durable --write            everything, and into its section of ``benchmarks/RESULTS.md``

The store is an SQLite file on disk, new for every topic. ``cost``: a code run of 100 tool calls whose script holds 1,000
dicts, with a store against without. ``events``: entries in the journals of 50 concurrent runs, counted in the database.
``resume``: a process ends itself with SIGKILL inside the last of 100 calls, another one goes on; its imports and its
program are there before the clock starts, everything else is measured: opening the store, the first interpreter.
``waiting``: 1,000 runs that wait for an approval, and go on. ``many``: a store of 10,000 runs against one of 10.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import dse
from benchmarks.measure import Row, Spread, Stopwatch, _children, interleaved
from benchmarks.run import DURABLE, RESULTS, machine, table
from benchmarks.scenario import Expense, new_script
from benchmarks.shipped import ROOT
from dse.errors import RunSuspended
from dse.limits import Limits
from dse.models.lm import Completion, ToolCallPart, Usage
from dse.runtime import sandbox
from dse.store.journal import Store
from dse.store.runlog import Durability
from dse.store.runs import request
from dse.strategies.base import seed_plan
from dse.testing import ScriptedModel

__all__ = ["TOPICS", "main", "section"]

HEAP = 1_000
STEPS = 2_000_000  # of a loop: a guest is kept only where executing its script again takes longer than that
TARGET_COST, TARGET_EVENTS, TARGET_RESUME_MS, TARGET_MANY = 3.0, 2_000, 100.0, 2.0
_USAGE = Usage(200, 20, "exact")
_question = "What did these people spend on travel in Q1?"


# --- the task


@dse.tool(effect="read")
async def get_expense(ctx: dse.ToolContext[Any], user_id: int, quarter: str) -> Expense:
    """Expense of one person in one quarter.

    Args:
        user_id: the person's id
        quarter: the quarter of this year
    """
    if ctx.deps is not None:
        ctx.deps(user_id)
    return {"user_id": user_id, "quarter": quarter, "amount": 10.0 + user_id, "category": "travel"}


@dse.tool(effect="write")
async def book_expense(user_id: int, quarter: str) -> Expense:
    """Book the expense of one person.

    Args:
        user_id: the person's id
        quarter: the quarter of this year
    """
    return {"user_id": user_id, "quarter": quarter, "amount": 10.0 + user_id, "category": "travel"}


@dse.tool(effect="write", approval=dse.Approval(always=True))
async def pay(amount: float) -> str:
    """Pay an amount.

    Args:
        amount: in euros
    """
    return f"paid {amount}"


class AddExpenses(dse.Signature):
    """Add up the expenses of the people in question."""

    question: str = dse.InputField(desc="what to find out")
    total: float = dse.OutputField(desc="the sum of all amounts")
    tools = [get_expense, book_expense]


class Pay(dse.Signature):
    """Pay what is due."""

    question: str = dse.InputField(desc="what is due")
    answer: str = dse.OutputField(desc="what was done")
    tools = [pay]


def _script(calls: int, *, heap: int, gathered: bool = False, tool: str = "get_expense", steps: int = 0) -> str:
    kept = f"n = 0\nfor i in range({steps}):\n    n += i\n" if steps else ""
    kept += f"heap = [{{'id': i, 'name': f'person {{i}}', 'amount': i * 1.5}} for i in range({heap})]\n" if heap else ""
    if gathered:
        return (f"{kept}found = await asyncio.gather(*[{tool}(user_id=i, quarter='Q1') for i in range({calls})])\n"
                "submit(total=sum(one['amount'] for one in found))")  # fmt: skip
    return (f"{kept}total = 0.0\nfor i in range({calls}):\n    found = await {tool}(user_id=i, quarter='Q1')\n"
            "    total += found['amount']\nsubmit(total=total)")  # fmt: skip


def _code(script: Callable[[], str]) -> ScriptedModel:
    def reply(request: Any) -> Completion:
        return Completion(f"[[ ## code ## ]]\n```python\n{script()}\n```\n\n[[ ## completed ## ]]", usage=_USAGE)

    return ScriptedModel(reply)


def _rounds(signature: type[dse.Signature], calls: int) -> ScriptedModel:
    """One call per round, then the answer."""

    def reply(request: Any) -> Completion:
        done = sum(1 for message in request["messages"] if message["role"] == "tool")
        if signature is Pay:
            part = ToolCallPart("", "submit", {"answer": "done"}) if done else ToolCallPart("", "pay", {"amount": 5.0})
        elif done < calls:
            part = ToolCallPart("", "get_expense", {"user_id": done, "quarter": "Q1"})
        else:
            part = ToolCallPart("", "submit", {"total": _total(calls)})
        return Completion(None, (part,), "tool_call", _USAGE)

    return ScriptedModel(reply)


def _total(calls: int) -> float:
    return sum(10.0 + i for i in range(calls))


def _program(signature: type[dse.Signature], mode: str, model: ScriptedModel, store: Store | None, calls: int = 1,
             durability: Durability = "call", deps: Any = None) -> dse.Program:  # fmt: skip
    plan = seed_plan(signature.spec(), mode, limits=Limits(model_calls=calls + 2, tool_calls=max(500, calls)))
    return dse.Program(signature, plan, lm=model, store=store, durability=durability, deps=deps)


def _counted(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        return cast("int", connection.execute("SELECT count(*) FROM events").fetchone()[0])


# --- topics


def cost(folder: Path, *, reps: int = 9, calls: int = 100) -> list[Row]:
    """Wall time with a store against without, in turn."""
    loop = asyncio.new_event_loop()
    store = Store(folder / "cost.db")
    durabilities: tuple[Durability, ...] = ("exit", "call", "power")
    shapes = {f"{calls} sequential calls": {}, f"{calls} gathered calls": {"gathered": True},
              f"{calls} sequential writes": {"tool": "book_expense"}}  # fmt: skip
    rows = []
    for shape, options in shapes.items():
        def model(options: dict[str, Any] = options) -> ScriptedModel:
            return _code(lambda: new_script(_script(calls, heap=HEAP, **options)))

        programs = {"none": _program(AddExpenses, "code", model(), None, calls)}
        for durability in durabilities:
            programs[durability] = _program(AddExpenses, "code", model(), store, calls, durability)

        def case(program: dse.Program) -> Callable[[], None]:
            def run() -> None:
                done = loop.run_until_complete(program.acall(question=_question))
                if done.total != _total(calls):
                    raise AssertionError(f"the run gave {done.total}")
                cast("ScriptedModel", program.lm).requests.clear()

            return run

        samples = interleaved({name: case(program) for name, program in programs.items()}, reps=reps, warmup=2 if reps > 1 else 1)
        base = samples["none"]
        for durability in durabilities:
            ratio, cpu = samples[durability].ratio(base), samples[durability].cpu_ratio(base)
            bound = durability == "call" and "writes" not in shape
            rows.append(Row(
                "cost", f"code, {shape}, {HEAP} dicts, durability={durability!r} against no store",
                f"{samples[durability].ms().text(0)} ms against {base.ms().text(0)} ms: {ratio.text()}x; CPU {cpu.text()}x",
                f"at most {TARGET_COST:g}x" if bound else "", ratio.median <= TARGET_COST if bound else None,
            ))  # fmt: skip
    store.close()
    loop.close()
    return rows


def events(folder: Path, *, reps: int = 9, runs: int = 50, calls: int = 10) -> list[Row]:
    """Journal entries in the database per second of wall time, and what the same runs take without a journal, in turn.

    The target is about the journal. In mode ``tool_call`` the runs themselves take least, so that it is held most.
    """
    loop = asyncio.new_event_loop()
    rows = []
    for mode in ("tool_call", "code"):
        path = folder / f"{mode}.db"
        store = Store(path)
        programs = {}
        for side in (store, None):
            model = _rounds(AddExpenses, calls) if mode == "tool_call" else _code(lambda: new_script(_script(calls, heap=0)))
            programs[side] = _program(AddExpenses, mode, model, side, calls)

        async def together(program: dse.Program) -> None:
            for done in await asyncio.gather(*(program.acall(question=_question) for _ in range(runs))):
                if done.total != _total(calls):
                    raise AssertionError(f"the run gave {done.total}")

        rates, alone, mine = [], [], []
        for rep in range(reps + 1):
            before, took = _counted(path), {}
            for side, program in programs.items():
                with Stopwatch() as watch:
                    loop.run_until_complete(together(program))
                cast("ScriptedModel", program.lm).requests.clear()
                took[side] = watch
            if rep:  # the first repetition starts the workers
                count = _counted(path) - before
                rates.append(count / took[store].wall)
                alone.append(count / took[None].wall)
                mine.append(1e6 * (took[store].cpu - took[None].cpu) / count)
        rate = Spread.of(rates)
        store.close()
        rows.append(Row(
            "events", f"{mode}, {runs} concurrent runs of {calls} calls, durability='call'",
            f"{rate.text(0)} events/s; the same runs without a store take as long as {Spread.of(alone).text(0)} events/s would; "
            f"CPU of the journal {Spread.of(mine).text(0)} us per event",
            f"at least {TARGET_EVENTS}/s" if mode == "tool_call" else "",
            rate.median >= TARGET_EVENTS if mode == "tool_call" else None,
        ))  # fmt: skip
    loop.close()
    return rows


def resume(folder: Path, *, reps: int = 7, calls: int = 100) -> list[Row]:
    """From SIGKILL inside the last call to the result, in another process."""
    found: dict[str, list[dict[str, float]]] = {"a snapshot": [], "replay": []}
    for rep in range(reps):
        for how in list(found)[:: 1 if rep % 2 else -1]:
            place = folder / f"{how[:6].strip()}-{rep}.db"
            killed = _child("start", place, how, calls)
            if killed.returncode != -signal.SIGKILL:
                raise RuntimeError(f"the process ended with {killed.returncode}: {killed.stderr}")
            done = _child("resume", place, how, calls)
            if done.returncode:
                raise RuntimeError(done.stderr)
            found[how].append(json.loads(done.stdout))
    rows = []
    for how, figures in found.items():
        wall = Spread.of([one["ms"] for one in figures])
        opening, cpu = Spread.of([one["open"] for one in figures]), Spread.of([one["cpu"] for one in figures])
        rows.append(Row(
            "resume", f"from the last of {calls} calls, {HEAP} dicts, by {how}"
            + (f" (its script counted to {STEPS:,} before)" if how == "a snapshot" else ""),
            f"{wall.text(0)} ms, {opening.text(0)} of them to open the store; CPU {cpu.text(0)} ms",
            f"at most {TARGET_RESUME_MS:g} ms", wall.median <= TARGET_RESUME_MS,
        ))  # fmt: skip
    return rows


def _child(what: str, place: Path, how: str, calls: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.durable", "--child", what, str(place), how, str(calls)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def _in_child(what: str, place: str, how: str, calls: str) -> None:
    """The process that is killed, or the one that goes on."""
    import anyio._backends._asyncio  # noqa: F401  imports do not count
    import dspy  # noqa: F401
    import pydantic_monty  # noqa: F401
    import sqlalchemy.dialects.sqlite  # noqa: F401

    last = int(calls) - 1

    def kill(user_id: int) -> None:
        if user_id == last:
            os.kill(os.getpid(), signal.SIGKILL)

    program = _program(AddExpenses, "code", _code(lambda: _script(last + 1, heap=HEAP, steps=STEPS if how == "a snapshot" else 0)), None, last + 1,
                       deps=kill if what == "start" else None)  # fmt: skip
    run_id = "killed"
    if what == "start":
        program.store = Store(place)
        asyncio.run(program.execute(program.new_run({"question": _question}, run_id=run_id)))
        raise AssertionError("the process was not killed")
    started, cpu = time.perf_counter(), Stopwatch()
    with cpu:
        program.store = Store(place)
        opened = time.perf_counter()
        done = asyncio.run(program.aresume(run_id, snapshots=how == "a snapshot"))
        ended = time.perf_counter()
    if done.total != _total(last + 1) or len(done.receipt["calls"]) != last + 1:
        raise AssertionError(done)
    print(json.dumps({"ms": 1000 * (ended - started), "open": 1000 * (opened - started), "cpu": 1000 * cpu.cpu}))


async def _some_at_a_time(runs: Iterable[Awaitable[Any]], most: int = 32) -> list[Any]:
    gate = asyncio.Semaphore(most)

    async def one(run: Awaitable[Any]) -> Any:
        async with gate:
            return await run

    return await asyncio.gather(*map(one, runs))


async def _suspended(program: dse.Program, run_id: str) -> None:
    try:
        await program.execute(program.new_run({"question": "The rent."}, run_id=run_id))
    except RunSuspended:
        return
    raise AssertionError("the run did not wait")


def _payer(mode: str, store: Store) -> dse.Program:
    model = _rounds(Pay, 1) if mode == "tool_call" else _code(lambda: "submit(answer=await pay(amount=5.0))")
    return _program(Pay, mode, model, store, 1)


def _approve_all(store: Store) -> int:
    waiting = store.pending()
    for one in waiting:
        store.approve(one["run_id"], one["call_id"], arguments_hash=one["arguments_hash"], by="benchmark")
    return len(waiting)


def _without_pool() -> tuple[int, int]:
    """Processes and threads without what the pool keeps at hand; a run that had a worker would lose it.

    Threads of a closed pool end by themselves, some time after: counted at once, they made any number, also below 0.
    """
    pool = sandbox.pool()
    pool.close()
    pool._workers.threads.stop(10.0)
    return len(_children()), threading.active_count()


def waiting(folder: Path, *, runs: int = 1_000) -> list[Row]:
    """Processes and threads before and after runs that wait, and the time until all of them have ended."""
    rows = []
    for mode in ("tool_call", "code"):
        store = Store(folder / f"{mode}.db")
        program = _payer(mode, store)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(_some_at_a_time(_suspended(program, f"first-{i}") for i in range(32)))
        before = _without_pool()
        took = []
        started = time.perf_counter()
        loop.run_until_complete(_some_at_a_time(_suspended(program, f"run-{i}") for i in range(runs)))
        took.append(time.perf_counter() - started)
        pool = len(_children()) - before[0]
        after = _without_pool()
        started = time.perf_counter()
        approved = _approve_all(store)
        took.append(time.perf_counter() - started)
        started = time.perf_counter()
        done = loop.run_until_complete(_some_at_a_time(program.aresume(f"run-{i}") for i in range(runs)))
        took.append(time.perf_counter() - started)
        if approved != runs + 32 or any(one.receipt["effects"] == "none" for one in done):
            raise AssertionError("some runs did not end")
        loop.close()
        store.close()
        started_ms, approved_ms, resumed_ms = (1000 * seconds / runs for seconds in took)
        rows.append(Row(
            "waiting", f"{mode}, {runs} runs that wait for an approval, then approved and resumed to the end",
            f"{after[0] - before[0]} processes and {after[1] - before[1]} threads more than before, none of the {pool} idle "
            f"workers of the pool needed; per run {started_ms:.1f} ms until it waits, {approved_ms:.1f} ms to approve, "
            f"{resumed_ms:.1f} ms to resume and end",
            "no process, no thread", after[0] <= before[0] and after[1] <= before[1],
        ))  # fmt: skip
    return rows


_COPY = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
INSERT INTO {table} ({columns}) SELECT {values} FROM {table}, n WHERE run_id = :run_id
"""


def _copies(store: Store, path: Path, run_id: str, count: int) -> None:
    """Rows of `count` more runs like one: nobody resumes them, they only stand in the way. Calls that wait are signed."""
    with sqlite3.connect(path) as connection:
        for table in ("runs", "events", "snapshots", "approvals"):
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            new = {"run_id": "run_id || '-' || i", "created": "substr(created, 1, 11) || printf('%012d', i)"}
            text = _COPY.format(table=table, columns=", ".join(names), values=", ".join(new.get(n, n) for n in names))
            connection.execute(text, {"count": count, "run_id": run_id})
        connection.row_factory = sqlite3.Row
        (program_id,) = connection.execute("SELECT program_id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        rows = connection.execute("SELECT rowid, * FROM approvals WHERE run_id LIKE ?", (f"{run_id}-%",)).fetchall()
        signed = [(store.keys.mac(*request(program_id, dict(row))), row["rowid"]) for row in rows]
        connection.executemany("UPDATE approvals SET mac = ? WHERE rowid = ?", signed)


def many(folder: Path, *, reps: int = 9, runs: int = 10_000) -> list[Row]:
    """The same questions to a store of 10 runs and to a large one."""
    loop = asyncio.new_event_loop()
    stores: dict[int, Store] = {}
    programs: dict[int, dse.Program] = {}
    for size in (reps + 2, runs):
        path = folder / f"{size}.db"
        store = stores[size] = Store(path)
        program = programs[size] = _payer("tool_call", store)
        for number in range(reps + 2):
            loop.run_until_complete(_suspended(program, f"run-{number}"))
        _approve_all(store)
        loop.run_until_complete(program.aresume("run-0"))
        loop.run_until_complete(_suspended(program, "waits"))
        if size == runs:  # nine of ten have ended
            _copies(stores[size], path, "run-0", (runs - reps - 3) * 9 // 10)
            _copies(stores[size], path, "waits", (runs - reps - 3) // 10)
    left = {size: iter(range(1, reps + 2)) for size in stores}

    def resumed(size: int) -> None:
        loop.run_until_complete(programs[size].aresume(f"run-{next(left[size])}"))

    def case(ask: Callable[[int], Any], size: int, times: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                ask(size)

        return run

    asked: dict[str, tuple[Callable[[int], Any], int]] = {
        "list the newest 10": (lambda size: stores[size].runs(10), 20),
        "list the newest 10 that wait": (lambda size: stores[size].runs(10, outcome="suspended"), 20),
        "what one run waits for": (lambda size: stores[size].pending("waits"), 20),
        "resume one": (resumed, 1),
    }
    small, large = stores
    rows = []
    for what, (ask, times) in asked.items():
        samples = interleaved({str(size): case(ask, size, times) for size in stores}, reps=reps, units=times)
        base, ours = samples[str(small)], samples[str(large)]
        ratio = ours.ratio(base)
        rows.append(Row(
            "many", f"{what}: of {runs} runs against of about 10",
            f"{ours.ms().text()} ms against {base.ms().text()} ms: {ratio.text()}x; CPU {ours.cpu_ratio(base).text()}x",
            f"at most {TARGET_MANY:g}x", ratio.median <= TARGET_MANY,
        ))  # fmt: skip
    with Stopwatch() as watch:
        found = len(stores[large].pending())
    rows.append(Row("many", f"all calls that wait, of {runs} runs", f"{1000 * watch.wall:.0f} ms for {found} of them"))
    for store in stores.values():
        store.close()
    loop.close()
    return rows


TOPICS: dict[str, Callable[[Path], list[Row]]] = {
    "cost": cost, "events": events, "resume": resume, "waiting": waiting, "many": many,
}  # fmt: skip


def section(rows: Sequence[Row], facts: Sequence[str], *, shared: bool, took_s: float) -> str:
    """The results as a section of ``RESULTS.md``."""
    noise = " The machine was shared with other work while this ran." if shared else ""
    lines = "\n".join(f"- {fact}" for fact in facts)
    return f"""
## Runs that are kept

Written by `python -m benchmarks.durable --write` on {dt.datetime.now(dt.UTC):%Y-%m-%d} in {took_s:.0f} s.{noise} The store is an SQLite file on disk.
Figures are medians with (smallest..largest), ratios are taken within a repetition; what is measured is at the top of
`benchmarks/durable.py`.

{lines}

{table(rows)}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", help=f"of {', '.join(TOPICS)}; default all")
    parser.add_argument("--write", action="store_true", help="write the section of RESULTS.md")
    parser.add_argument("--shared", action="store_true", help="say that other work ran on the machine")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        _in_child(*args.child)
        return 0
    if unknown := set(args.topics) - set(TOPICS):
        parser.error(f"no such topic: {', '.join(sorted(unknown))}; there are {', '.join(TOPICS)}")
    facts, started = machine(), time.monotonic()
    rows: list[Row] = []
    for topic in args.topics or TOPICS:
        with tempfile.TemporaryDirectory() as folder:
            rows += TOPICS[topic](Path(folder))
        print(f"{topic}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    text = section(rows, facts, shared=args.shared, took_s=time.monotonic() - started)
    print(text)
    if args.write:
        before = RESULTS.read_text(encoding="utf-8").partition(DURABLE)[0].rstrip()
        RESULTS.write_text(f"{before}\n\n{DURABLE}\n{text}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
