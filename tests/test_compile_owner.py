"""One process at a time is at a compile: others are told who has it, and nobody waits for one that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

import dse
from dse.errors import CompileTaken, ModelUnavailable
from dse.store.owner import me
from dse.testing.scripted import ScriptedModel
from dse.testing.worlds import NAME, PlantedWorld

WORLD = PlantedWorld({"direct": 1.0, "tool_call": 0.25}, clusters=30, writes=0.0)


class Watched(ScriptedModel):
    """Calls `before` with the number of each question, in a thread: one loop may serve several compiles."""

    def __init__(self, before: Callable[[int], None]) -> None:
        super().__init__(WORLD.reply, NAME)
        self.before, self.asked = before, 0

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Any:
        self.asked += 1
        await anyio.to_thread.run_sync(self.before, self.asked)
        return await super().complete(request, replicate=replicate, occurrence=occurrence)


def compiled(folder: Path, before: Callable[[int], None] = lambda asked: None, **options: Any) -> tuple[dse.CompileResult, int]:
    """One compile: the result, and how often it asked."""
    model = Watched(before)
    result = dse.compile(WORLD.task(modes=["direct", "tool_call"]), lm=model, registry=folder, **options)
    return result, model.asked


def stand_still(folder: str, number: int) -> None:
    """In a process of its own: compile, say when question `number` comes, and go on when told to."""

    def before(asked: int) -> None:
        if asked == number:
            print("asked", flush=True)
            sys.stdin.readline()

    try:
        print(json.dumps(compiled(Path(folder), before, concurrency=1)[1]), flush=True)
    except CompileTaken as exc:
        print(json.dumps(exc.to_dict()), flush=True)


@contextlib.contextmanager
def other_process(folder: Path, number: int) -> Iterator[subprocess.Popen[str]]:
    code = f"from tests.test_compile_owner import stand_still; stand_still({str(folder)!r}, {number})"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          cwd=Path(__file__).parent.parent) as child:  # fmt: skip
        try:
            assert child.stdout is not None and child.stdout.readline() == "asked\n"
            yield child
        finally:
            child.kill()


def execute(folder: Path, statement: str, *values: Any) -> list[Any]:
    with contextlib.closing(sqlite3.connect(folder / "dse.db")) as c, c:
        return c.execute(statement, values).fetchall()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dse.CompileResult, int]:
    return compiled(tmp_path_factory.mktemp("undisturbed"))


def test_a_second_process_is_told_who_has_it_and_asks_nothing(tmp_path: Path, undisturbed: tuple[dse.CompileResult, int]) -> None:
    def never(asked: int) -> None:
        pytest.fail("paid for twice")

    with other_process(tmp_path, 5) as child:
        with pytest.raises(CompileTaken, match=f"process {child.pid} on {os.uname().nodename}, since 20.*Wait for it") as caught:
            compiled(tmp_path, never)
        assert caught.value.code == "DSE408" and caught.value.details["since"] in str(caught.value)
        with pytest.raises(CompileTaken):
            compiled(tmp_path, never, take_over=True)  # that is for other machines: this one is seen to live
        out, _ = child.communicate("\n")
        assert json.loads(out) == undisturbed[1]
    assert execute(tmp_path, "SELECT * FROM unfinished") == []
    assert compiled(tmp_path)[1] < undisturbed[1], "its rollouts are there for the next one"


def test_a_dead_process_is_followed_at_once(tmp_path: Path, undisturbed: tuple[dse.CompileResult, int]) -> None:
    with other_process(tmp_path, 20) as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        result, asked = compiled(tmp_path)
    assert result.artifact.artifact_id == undisturbed[0].artifact.artifact_id
    assert asked == undisturbed[1] - 19 and result.spent["model_calls"] >= undisturbed[1]


def test_of_two_threads_one_compiles(tmp_path: Path, undisturbed: tuple[dse.CompileResult, int]) -> None:
    there, go, results = threading.Event(), threading.Event(), []

    def before(asked: int) -> None:
        if asked == 3:
            there.set()
            assert go.wait(60)

    thread = threading.Thread(target=lambda: results.append(compiled(tmp_path, before, concurrency=1)))
    thread.start()
    assert there.wait(60)
    try:
        with pytest.raises(CompileTaken, match="This process is at this compile already"):
            compiled(tmp_path)
        other = compiled(tmp_path, seed=1)[0]  # another compile is nobody else's
    finally:
        go.set()
        thread.join()
    assert other.artifact.artifact_id != results[0][0].artifact.artifact_id and results[0][1] <= undisturbed[1]


def test_a_compile_that_failed_is_nobodys(tmp_path: Path, undisturbed: tuple[dse.CompileResult, int]) -> None:
    def down(asked: int) -> None:
        if asked > 10:
            raise ModelUnavailable("away", retry_after_s=1e6)

    with pytest.raises(ModelUnavailable):
        compiled(tmp_path, down)
    assert execute(tmp_path, "SELECT owner, since FROM unfinished") == [(None, None)]
    with other_process(tmp_path, 1) as child:
        out, _ = child.communicate("\n")
    assert json.loads(out) < undisturbed[1]


def elsewhere() -> str:
    return f"far-away/{me().partition('/')[2]}"


def test_one_of_another_machine_is_taken_over_when_asked_for(tmp_path: Path, undisturbed: tuple[dse.CompileResult, int]) -> None:
    with other_process(tmp_path, 5) as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    execute(tmp_path, "UPDATE unfinished SET owner = ?", elsewhere())
    with pytest.raises(CompileTaken, match=r"another machine.*on far-away, since.*--take-over"):
        compiled(tmp_path)
    assert compiled(tmp_path, take_over=True)[0].artifact.artifact_id == undisturbed[0].artifact.artifact_id


def test_who_was_taken_over_stops(tmp_path: Path) -> None:
    def before(number: int) -> None:
        nonlocal asked
        asked = number
        if number == 7:
            execute(tmp_path, "UPDATE unfinished SET owner = ?", elsewhere())

    asked = 0
    with pytest.raises(CompileTaken, match="took this compile over"):
        compiled(tmp_path, before, concurrency=1)
    assert asked == 7
    assert execute(tmp_path, "SELECT owner FROM unfinished") == [(elsewhere(),)], "what the other one has stays its own"


def test_a_compile_that_is_cancelled_while_its_store_is_busy_can_be_started_again(tmp_path: Path) -> None:
    """Cancelled after its first write has begun to wait: whenever that write is done, nobody has the compile."""
    task = WORLD.task(modes=["direct", "tool_call"])
    dse.Store(tmp_path / "dse.db").close()

    async def main() -> str:
        other = sqlite3.connect(tmp_path / "dse.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        reached = asyncio.Event()
        first = asyncio.ensure_future(dse.compiler.compile.acompile(
            task, lm=Watched(lambda n: None), registry=tmp_path, say=lambda line: reached.set()))  # fmt: skip
        await reached.wait()
        await asyncio.sleep(0.2)  # it waits for the store now; earlier or later is as good
        first.cancel()
        other.execute("ROLLBACK")
        with pytest.raises(asyncio.CancelledError):
            await first
        for _ in range(200):  # the write that was under way ends by itself
            try:
                return (await dse.compiler.compile.acompile(task, lm=Watched(lambda n: None), registry=tmp_path)).verdict
            except CompileTaken:
                await asyncio.sleep(0.05)
        return "taken for good"

    assert asyncio.run(main()) == "PROMOTE"
