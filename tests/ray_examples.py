"""Tasks whose rollouts run in other processes: what is declared here is imported there."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dse
from dse.testing.scripted import ScriptedModel, call

__all__ = ["COUNT", "Count", "counting", "counting_model", "rows"]


@dse.tool(effect="pure", revision="1")
def double(ctx: dse.ToolContext[str], n: int) -> int:
    """Twice as much. The first call of all tells a pipe in the folder who it is, and waits for its end."""
    folder = Path(ctx.deps)
    if (folder / "pipe").exists():
        try:
            os.close(os.open(folder / "first", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return 2 * n
        (folder / "pipe").write_text(str(os.getpid()))
        threading.Event().wait(120)
    return 2 * n


@dse.tool(effect="pure", revision="1", rate=(3, 0.5), timeout_s=0.2)
def rare(n: int) -> int:
    """The same number, three times in a while."""
    return n


@dse.tool(effect="pure", revision="1")
def where(n: int) -> int:
    """The process that this runs in."""
    return os.getpid()


@dse.tool(effect="pure", revision="1", cost_usd=0.3)
def dear(n: int) -> int:
    """The same number, for money."""
    return n


@dse.check(revision="1")
def twice(inputs: Any, outputs: Any) -> bool:
    return bool(outputs["result"] == 2 * inputs["n"])


class Count(dse.Signature):
    """Count."""

    n: int = dse.InputField()
    result: int = dse.OutputField()
    tools = [double, rare, where, dear]


COUNT = Count.spec()


def rows(number: int = 8) -> list[Any]:
    return [dse.Example(f"row{n}", {"n": n}, {"result": 2 * n}) for n in range(number)]


@dse.metric(revision="1")
def doubled(example: Any, prediction: Any, ctx: Any) -> float:
    return float(prediction.result == example.result)


def counting(**options: Any) -> dse.Task:
    return dse.Task(Count, **{"dataset": None, "metric": doubled, "deps": "."} | options)


def counting_model(tool: str) -> ScriptedModel:
    """Calls the tool with the row's number, then submits what it gave."""

    def reply(request: Any) -> Any:
        messages = request["messages"]
        told = [m["content"] for m in messages if m["role"] == "tool"]
        if told:
            return call(("submit", {"result": int(told[-1]) if told[-1].isdecimal() else -1}))
        asked = "".join(m["content"] for m in messages if m["role"] == "user")
        return call((tool, {"n": int("".join(c for c in asked.rpartition("[[ ## n ## ]]")[2] if c.isdecimal()))}))

    return ScriptedModel(reply, "scripted/count")


@dse.environment(revision="1")
def failing(example: Any) -> dse.World:
    raise ValueError(f"no world for {example.id}")


@dse.environment(revision="1")
def stateless(example: Any) -> dse.World:
    return dse.World(deps=".", state=lambda: {"odd": object()})


@dse.environment(revision=str(os.getpid()))
def another(example: Any) -> dse.World:
    return dse.World(deps=".")


@dse.environment(revision="1")
def leaving(example: Any) -> Iterator[dse.World]:
    """Tells the pipe that the row names when it is left."""
    try:
        yield dse.World(deps=".")
    finally:
        Path(example.pipe).write_text("left")
