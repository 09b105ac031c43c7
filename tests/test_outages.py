"""An outage that hits one mode alone decides nothing: the compile ends, and goes on as if there had been none."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dse
from dse.errors import InfrastructureError, ModelUnavailable
from dse.evaluation.evaluator import Evaluator
from dse.strategies.base import seed_plan
from dse.strategies.script import script_plan
from dse.testing.scripted import ScriptedModel, say
from dse.testing.worlds import NAME, AskWarehouse, PlantedWorld, Warehouse

WORLDS = {
    "PROMOTE": PlantedWorld({"tool_call": 0.2, "code": 1.0}, clusters=50, detours=0.6),
    "KEEP": PlantedWorld({"tool_call": 1.0, "code": 0.2}, clusters=50, detours=0.6),
}
ROWS = dse.Rows(search=6, select=12, holdout=14)
LONG_S = 1e6  # that an endpoint asks to be left alone: nobody waits for it


class Outage:
    """Down on every second row of a split, for one mode."""

    def __init__(self, world: PlantedWorld, split: str = "", mode: str = "") -> None:
        self.world, self.mode = world, mode
        data = world.dataset()
        rows = [] if not split else data.open_holdout(dse.Store(":memory:"), compile_id="c") if split == "holdout" else data.split(split)
        told = sorted(row.request for row in rows)
        self.requests = told[::2]
        self.hits = 0

    def hit(self, request: str) -> bool:
        down = request in self.requests
        self.hits += down
        return down

    def model(self) -> ScriptedModel:
        def reply(request: Any) -> Any:
            asked = next((one for one in self.requests if one in str(request["messages"])), "")
            if self.mode == ("tool_call" if request["tools"] else "code") and self.hit(asked):
                return ModelUnavailable("down", retry_after_s=LONG_S)
            return self.world.reply(request)

        return ScriptedModel(reply, NAME, latency_s=0.25)


def task(world: PlantedWorld, fails: Callable[[str], bool], error: Callable[[], Exception] | None) -> dse.Task:
    """The tool that only mode tool_call asks is away where `fails` says so."""

    @dse.environment(revision="1", infrastructure=(ConnectionError,))
    def away(example: Any) -> Iterator[dse.World]:
        made = Warehouse(example.request.partition("pieces of ")[2].partition(" are left?")[0].partition(".")[0])

        def get_weather(city: str) -> str:
            if error is not None and fails(example.request):
                raise error()
            return f"It rains in {city}."

        yield dse.World(deps=made, state=lambda: {"reserved": made.reserved}, tools={"get_weather": get_weather})

    return world.task(environment=away, modes=["tool_call", "code"])


@functools.cache
def undisturbed(verdict: str, folder: Path) -> dse.CompileResult:
    world = WORLDS[verdict]
    result = dse.compile(task(world, lambda _: False, None), lm=world.model(), registry=folder / "registry", rows=ROWS)
    assert result.verdict == verdict
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


def tool_away() -> Exception:
    return InfrastructureError("The weather station is away", retry_after_s=LONG_S)


def not_connected() -> Exception:
    return ConnectionError("no route")


@pytest.mark.parametrize("split", ["search", "select", "holdout"])
@pytest.mark.parametrize(("verdict", "mode", "error"), [
    ("KEEP", "tool_call", None), ("PROMOTE", "code", None), ("KEEP", "tool_call", tool_away),
], ids=["model of the better incumbent", "model of the better candidate", "tool of the better incumbent"])  # fmt: skip
def test_nothing_is_decided_in_an_outage_and_all_as_usual_after_it(
    split: str, verdict: str, mode: str, error: Any, tmp_path: Path, folder: Path,
) -> None:  # fmt: skip
    world, plain = WORLDS[verdict], undisturbed(verdict, folder / verdict)
    outage = Outage(world, split, mode)
    model = outage.model() if error is None else world.model()
    with pytest.raises(InfrastructureError):
        dse.compile(task(world, outage.hit, error), lm=model, registry=tmp_path, rows=ROWS)
    assert outage.hits and dse.Registry(tmp_path).aliases("AskWarehouse") == {}
    store = dse.Store(tmp_path / "dse.db")
    stored = store.rollouts()
    store.close()
    assert {row["outcome"] for row in stored} <= {"ok"}, "whose endpoint was away has no score"
    outage.requests, asked = [], len(model.requests)
    again = dse.compile(task(world, outage.hit, error), lm=model, registry=tmp_path, rows=ROWS)
    assert (again.winner, again.verdict, again.table) == (plain.winner, plain.verdict, plain.table)
    assert again.artifact.artifact_id == plain.artifact.artifact_id
    assert 0 < asked < len(model.requests) and again.spent["model_calls"] >= plain.spent["model_calls"]


CATCHES = """try:
    item = await find_item(name="a")
    await get_weather(city="Oslo")
    submit(left=await get_stock(item_id=item["item_id"]))
except BaseException as error:
    submit(left=-1)
"""


@pytest.mark.parametrize("error", [tool_away, not_connected])
@pytest.mark.parametrize("mode", ["code", "script", "cascade"])
def test_no_guest_and_no_next_stage_makes_a_score_of_an_outage(mode: str, error: Any) -> None:
    """A script that catches everything, and a cascade that goes on after every failure."""
    spec = AskWarehouse.spec()
    reads = ("find_item", "get_weather", "get_stock")
    script = script_plan(spec, CATCHES)
    plans = {"code": seed_plan(spec, "code", reads), "script": script,
             "cascade": dse.Plan.cascade(script, seed_plan(spec, "direct"), limits=script.limits)}  # fmt: skip
    model = ScriptedModel(lambda request: say(f"[[ ## code ## ]]\n```python\n{CATCHES}```\n[[ ## left ## ]]\n5"), NAME)
    example = dse.Example("1", {"request": "How many pieces of a are left?"}, {"left": Warehouse("a").stock, "reserved": 0})
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def run(fails: bool) -> Any:
        evaluator = Evaluator(task(WORLDS["KEEP"], lambda _: fails, error), model, dse.Store(":memory:"), attempts=2, sleep=pause)
        return await evaluator.evaluate({"it": plans[mode]}, [example])

    (fine,) = asyncio.run(run(False))
    assert fine.outcome == "ok" and fine.score == 1.0 and not pauses
    asked = len(model.requests)
    with pytest.raises(InfrastructureError):
        asyncio.run(run(True))
    assert len(model.requests) - asked == (1 if mode == "code" else 0), "asked once in two attempts, and no stage after the script"
