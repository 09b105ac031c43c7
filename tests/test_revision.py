"""Revisions of metrics, tools and environments: what is changed is scored and run again, and what is not is not."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import dse
from dse.testing.worlds import PlantedWorld
from signatures import assistant, expenses, tickets

ROOT = Path(dse.__file__).parent.parent
WORLD = PlantedWorld({"direct": 0.9}, clusters=40, writes=0.0)


def revision(fn: Any) -> str:
    """That of a metric; tools and environments have the same."""
    made: str = dse.metric(fn).revision
    assert dse.environment(lambda example: dse.World()).revision.startswith("src-")
    return made


# --- what one metric can be and another


def near(example: Any, prediction: Any, ctx: Any, *, off: int = 0) -> float:
    return float(abs(prediction.left - example.left) <= off)


def far(example: Any, prediction: Any, ctx: Any) -> float:
    return float(prediction.left != example.left)


class Near:
    """A metric that is an object."""

    def __init__(self, off: Any, handle: Any = None) -> None:
        self.off = off
        self.handle = handle

    def __call__(self, example: Any, prediction: Any, ctx: Any) -> float:
        return float(abs(prediction.left - example.left) <= self.off)

    def score(self, example: Any, prediction: Any, ctx: Any) -> float:
        return self(example, prediction, ctx)


class Slotted:
    __slots__ = ("off",)

    def __init__(self, off: int) -> None:
        self.off = off

    def __call__(self, example: Any, prediction: Any, ctx: Any) -> float:
        return float(self.off)


class Half(Near):
    share = 0.5


class Third(Near):
    share = 0.3


@dataclasses.dataclass(frozen=True)
class Options:
    off: int
    within: Any = None


class Size(enum.Enum):
    SMALL = 1
    LARGE = 100


def within(off: Any) -> Callable[..., float]:
    def close(example: Any, prediction: Any, ctx: Any) -> float:
        return float(abs(prediction.left - example.left) <= off)

    return close


def helped(off: Any) -> Callable[..., float]:
    def allowed(distance: int) -> bool:
        return distance <= off

    def close(example: Any, prediction: Any, ctx: Any) -> float:
        return float(allowed(abs(prediction.left - example.left)))

    return close


def twice(inner: Callable[..., float]) -> Callable[..., float]:
    def squared(example: Any, prediction: Any, ctx: Any) -> float:
        return inner(example, prediction, ctx) ** 2

    return squared


def chosen(strict: bool) -> Callable[..., float]:
    def one(example: Any, prediction: Any, ctx: Any) -> float:
        return float(prediction.left == example.left)

    def other(example: Any, prediction: Any, ctx: Any) -> float:
        return 1.0

    taken = one if strict else other

    def judged(example: Any, prediction: Any, ctx: Any) -> float:
        return taken(example, prediction, ctx)

    return judged


def defaulted(off: int) -> Callable[..., float]:
    def close(example: Any, prediction: Any, ctx: Any, off: int = off) -> float:
        return float(abs(prediction.left - example.left) <= off)

    return close


def scaled(factor: float) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """A decorator that leads inspection to what it wraps."""

    def wrap(fn: Callable[..., float]) -> Callable[..., float]:
        @functools.wraps(fn)
        def outer(*args: Any) -> float:
            return factor * fn(*args)

        return outer

    return wrap


def partly(fn: Any, **bound: Any) -> Any:
    made = functools.partial(fn, **bound)
    made.__name__ = "near"  # type: ignore[attr-defined]
    return made


def written(code: str) -> Any:
    """A class as after an edit of its file; its source is nowhere to be found."""
    names: dict[str, Any] = {}
    exec(f"class Right:\n    def __call__(self, example, prediction, ctx):\n        return {code}", names)
    return names["Right"]()


def local(off: int) -> Any:
    class Close:
        def __call__(self, example: Any, prediction: Any, ctx: Any) -> float:
            return float(abs(prediction.left - example.left) <= off)

    return Close()


OTHERS: dict[str, tuple[Any, Any]] = {
    "closure": (within(0), within(100)),
    "closure over a dict": (within({"off": 0}), within({"off": 1})),
    "closure over a list of lists": (within([[1], [2]]), within([[1, 2]])),
    "closure over a set": (within({"a", "b"}), within({"a", "c"})),
    "closure over a dataclass": (within(Options(0)), within(Options(1))),
    "closure over an enum": (within(Size.SMALL), within(Size.LARGE)),
    "closure over a pattern": (within(re.compile("a")), within(re.compile("a", re.IGNORECASE))),
    "closure over a number of another kind": (within(1), within(Decimal(1))),
    "closure over a day": (within(dt.date(2026, 1, 1)), within(dt.date(2026, 1, 2))),
    "closure over a partial": (within(functools.partial(max, 1)), within(functools.partial(max, 2))),
    "closure over a function": (twice(near), twice(far)),
    "closure over a closure": (twice(within(0)), twice(within(1))),
    "closure over a chosen function": (chosen(True), chosen(False)),
    "closure over an object that is called": (twice(Near(0)), twice(Near(1))),
    "closure over another metric": (twice(dse.metric(near, revision="1")), twice(dse.metric(near, revision="2"))),
    "what a helper closes over": (helped(0), helped(1)),
    "default that was computed": (defaulted(0), defaulted(1)),
    "decorator's closure": (scaled(0.5)(near), scaled(0.25)(near)),
    "partial": (partly(near, off=0), partly(near, off=100)),
    "partial of another function": (partly(near), partly(far)),
    "partial of a partial": (partly(partly(near, off=1)), partly(partly(near, off=2))),
    "object's state": (Near(0), Near(1)),
    "object's state in slots": (Slotted(0), Slotted(1)),
    "object's state in depth": (Near({"a": Options(1)}), Near({"a": Options(2)})),
    "object's class attribute": (Half(0), Third(0)),
    "object's code": (written("1.0"), written("0.0")),
    "object's class closure": (local(0), local(1)),
    "method": (Near(0).score, Near(1).score),
    "lambdas in one line": (lambda e, p, c: 0.0, lambda e, p, c: 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_metric_has_another_revision(name: str) -> None:
    one, other = OTHERS[name]
    assert revision(one) != revision(other)
    assert revision(one) == revision(one)


SAME: dict[str, tuple[Any, Any]] = {
    "closures": (within({"off": [0]}), within({"off": [0]})),
    "objects": (Near(3), Near(3)),
    "partials": (partly(near, off=3), partly(near, off=3)),
    "methods": (Near(3).score, Near(3).score),
    "opaque values in closures": (within(object()), within(object())),
    "opaque values in objects": (Near(1, object()), Near(1, object())),
    "opaque values in dataclasses": (within(Options(1, object())), within(Options(1, object()))),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_parts_make_one_revision(name: str) -> None:
    one, other = SAME[name]
    assert revision(one) == revision(other)


def test_plain_functions_have_the_revision_of_their_source_alone() -> None:
    """Stored rollouts and committed artifacts are known by it: what is merely called is no part of it, as ever."""
    import json

    def bare() -> Callable[..., float]:
        def plain(example: Any, prediction: Any, ctx: Any) -> float:
            return 1.0

        return plain

    def around(handle: Any) -> Callable[..., Any]:
        def helper() -> Any:
            return handle

        def uses(example: Any, prediction: Any, ctx: Any) -> float:
            return float(bool(helper() and json))

        return uses

    assert revision(bare()) == revision(bare())
    assert revision(around(object())) == revision(around(object())) != revision(around(1))
    assert revision(functools.cache(near)) == revision(near), "a wrapper that adds no value"


def test_what_holds_itself_has_a_revision() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    one = Near(0)
    one.handle = one.score
    deep: Any = 0
    for _ in range(5_000):
        deep = [deep]
    for fn in (within(loop), one, within(deep), within(10**5_000)):
        assert revision(fn) == revision(fn)
    assert revision(within(10**5_000)) != revision(within(10**5_000 + 1))


def test_tools_and_environments_alike() -> None:
    def stock(factor: int) -> Any:
        @dse.tool(effect="read")
        def stock(name: str) -> int:
            """Look it up."""
            return len(name) * factor

        return stock

    def world(stocked: dict[str, int]) -> Any:
        @dse.environment
        def shelf(example: Any) -> dse.World:
            return dse.World(deps=dict(stocked))

        return shelf

    assert stock(1).revision == stock(1).revision != stock(2).revision
    assert stock(1).contract.interface_id == stock(2).contract.interface_id
    assert world({"a": 1}).revision == world({"a": 1}).revision != world({"a": 2}).revision
    box = dse.Toolbox([stock(1)])
    assert box.revision(["stock"]) != dse.Toolbox([stock(1)]).bind("stock", stock(2)).revision(["stock"])


def test_the_same_in_every_process(tmp_path: Path) -> None:
    """Sets, addresses and hashes of texts differ between processes; revisions must not."""
    (tmp_path / "made.py").write_text('''
import dse, functools
class Right:
    def __init__(self, **state): self.__dict__.update(state)
    def __call__(self, e, p, c): return float(p.a in {"x", "y", "z"})
def close(one):
    return lambda e, p, c: one
names = {}
exec("def bare(e, p, c): return float(p.a in {'x', 'y', 'z'}) or [q for q in map(lambda x: x, ())]", names)
values = [{"b", "a", "c"}, frozenset("xyz"), {"k": {1, 2}}, Right(of={"u", "v"}), functools.partial(close, {"s", "t"}), close]
print([dse.metric(fn).revision for fn in [*map(close, values), Right(a={"q", "r"}), names["bare"]]])
''')
    told = {subprocess.run([sys.executable, "made.py"], env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
                           cwd=tmp_path, capture_output=True, text=True, check=True).stdout for seed in ("1", "2", "3")}  # fmt: skip
    assert len(told) == 1


def test_the_shipped_tasks_keep_theirs() -> None:
    """Artifacts in the repository carry these."""
    found = {task.spec.name: task.toolbox.revision(task.spec.tool_names) for task in (assistant.task, expenses.task, tickets.task)}  # type: ignore[union-attr]
    written = {name: {dse.Registry(ROOT / "artifacts").get(f"{name}@champion").evidence.toolbox_revision} for name in found}
    assert {name: {one} for name, one in found.items()} == written


# --- what it is for


@pytest.mark.parametrize("name", ["closure", "partial", "object's code", "object's state", "method"])
def test_a_changed_metric_scores_stored_rollouts_again(name: str, tmp_path: Path) -> None:
    for fn in OTHERS[name]:
        task = WORLD.task(metric=dse.metric(fn, name="same"), modes=["direct"])
        records = [dse.evaluate(task, "direct", lm=WORLD.model(), store=tmp_path / f"{where}.db") for where in ("shared", fn.__hash__())]
        assert [r.score for r in records[0]] == [r.score for r in records[1]], "as in a store of its own"


def test_a_changed_tool_runs_again(tmp_path: Path) -> None:
    def counted(factor: int) -> Any:
        @dse.tool(effect="pure")
        def count(n: int) -> int:
            """Multiply it."""
            return n * factor

        return count

    from dse.testing.scripted import ScriptedModel, call

    def reply(request: Any) -> Any:
        last = request["messages"][-1]
        return call(("submit", {"result": int(last["content"])})) if last["role"] == "tool" else call(("count", {"n": 1}))

    for factor in (1, 2):
        class Count(dse.Signature):
            """Count."""

            n: int = dse.InputField()
            result: int = dse.OutputField()
            tools = [counted(factor)]

        rows = [{"id": f"r{n}", "n": n, "result": factor} for n in range(20)]
        data = dse.Dataset.from_rows(rows, name="counts", fields={"n": "input", "result": "label"})
        metric = dse.metric(lambda example, prediction, ctx: float(prediction.result) / 2, revision="1", name="half")
        records = dse.evaluate(dse.Task(Count, dataset=data, metric=metric), "tool_call", lm=ScriptedModel(reply, "scripted/c"),
                               store=tmp_path / "s.db")  # fmt: skip
        assert {r.outputs["result"] for r in records if r.outputs} == {factor} and not any(r.reused for r in records)
