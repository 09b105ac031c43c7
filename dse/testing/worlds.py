"""Planted worlds: a task of which it is known which mode solves which row, and a scripted model that acts it out.

A warehouse is asked how many pieces of an item are left; some requests also reserve some. Two tools are always
needed, which two depends on the request, and the weather never matters. Whether a mode solves a row is decided by a
hash of (seed, mode, request) against the planted rate, so that every run of a world is the same.

    world = PlantedWorld({"direct": 0.2, "tool_call": 0.5, "code": 0.95})
    result = dse.compile(world.task(), lm=world.model(), registry="artifacts")
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import TypedDict

import dse
from dse.canonical import digest
from dse.errors import ToolFailed
from dse.evaluation.dataset import Dataset
from dse.models.lm import Completion, Request
from dse.testing.scripted import ScriptedModel, call, say

__all__ = ["NAME", "PRICES", "AskWarehouse", "PlantedWorld", "Warehouse", "stock_right", "warehouse"]

NAME = "scripted/planted"
PRICES = dse.PriceTable("planted prices", "2026-01-01", {NAME: (1.0, 4.0)})

_REQUEST = re.compile(r"^\[\[ ## request ## \]\]\n(.+)$", re.MULTILINE)
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvwz" for vowel in "aeiou"]


def _number(*parts: Any) -> int:
    return int(digest(list(parts))[7:23], 16)


def _name(*parts: Any) -> str:
    """Three made-up words: no two rows of a world resemble each other."""
    syllables = [_SYLLABLES[_number(*parts, place) % len(_SYLLABLES)] for place in range(12)]
    return " ".join("".join(syllables[start : start + 4]) for start in (0, 4, 8))


def _item_of(request: str) -> str:
    found = re.search(r"pieces of ([a-z ]+?)(?: are left\?|\.)", request)
    if found is None:
        raise ValueError(f"not a request to this warehouse: {request!r}")
    return found[1]


# ---- the task ---------------------------------------------------------------------------------------------


class Item(TypedDict):
    """An item of the warehouse."""

    item_id: int
    shelf: str


class Warehouse:
    """One item and what was reserved of it."""

    def __init__(self, item: str) -> None:
        self.item = item
        self.item_id = 1_000 + _number("id", item) % 9_000
        self.stock = 5 + _number("stock", item) % 46
        self.reserved = 0

    def checked(self, item_id: int) -> Warehouse:
        if item_id != self.item_id:
            raise ToolFailed(f"there is no item {item_id}")
        return self


@dse.tool(effect="read", revision="1")
def find_item(ctx: dse.ToolContext[Warehouse], name: str) -> Item:
    """The item of that name."""
    if name != ctx.deps.item:
        raise ToolFailed(f"there is no item called {name!r}")
    return {"item_id": ctx.deps.item_id, "shelf": f"S{ctx.deps.item_id % 90}"}


@dse.tool(effect="read", revision="1")
def get_stock(ctx: dse.ToolContext[Warehouse], item_id: int) -> int:
    """Pieces that are left."""
    world = ctx.deps.checked(item_id)
    return world.stock - world.reserved


@dse.tool(effect="write", revision="1")
def reserve(ctx: dse.ToolContext[Warehouse], item_id: int, amount: int) -> int:
    """Reserve pieces; gives how many are left then."""
    world = ctx.deps.checked(item_id)
    world.reserved += amount
    return world.stock - world.reserved


@dse.tool(effect="read", revision="1")
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


class AskWarehouse(dse.Signature):
    """Answer a request to a warehouse."""

    request: str = dse.InputField(desc="what to find out or do")
    left: int = dse.OutputField(desc="pieces that are left in the end")
    tools = [find_item, get_stock, reserve, get_weather]


@dse.environment(revision="1")
def warehouse(example: Any) -> Any:
    """A warehouse with the item of the request. Needs no other field of the row."""
    world = Warehouse(_item_of(example.request))
    yield dse.World(deps=world, state=lambda: {"reserved": world.reserved})


@dse.metric(revision="1")
def stock_right(example: Any, prediction: Any, ctx: dse.MetricContext) -> dse.Score:
    """The right number, and reserved exactly what was to be reserved."""
    number, state = prediction.left == example.left, ctx.state == {"reserved": example.reserved}
    told = "" if number and state else f"expected {example.left} left and {example.reserved} reserved"
    return dse.Score(float(number and state), told, {"number": float(number), "state": float(state)})


# ---- the world --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlantedWorld:
    """Rows, task and model of one world. Equal arguments make equal worlds.

    Args:
        success: the share of rows that each mode solves; a mode that is left out solves none.
        clusters, rows_per_cluster: of the dataset (40% search, 30% select, 30% holdout).
        writes: the share of rows with a reservation, which mode ``direct`` cannot solve.
        detours: the share of rows on which mode ``tool_call`` asks for the weather, too.
        same_rows: all modes find the same rows hard, so that modes of equal success are equal on every row.
    """

    success: Mapping[str, float] = field(default_factory=lambda: {"direct": 0.2, "tool_call": 0.5, "code": 0.95})
    clusters: int = 60
    rows_per_cluster: int = 1
    writes: float = 0.25
    detours: float = 0.3
    same_rows: bool = False
    seed: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """Flat rows: id, request, left, reserved, site (the cluster)."""
        found = []
        for cluster in range(self.clusters):
            for place in range(self.rows_per_cluster):
                item = _name(self.seed, cluster, place)
                amount = 1 + _number("amount", item) % 4 if self._chance("write", item) < self.writes else 0
                request = f"How many pieces of {item} are left?"
                if amount:
                    request = f"Reserve {amount} pieces of {item}. What is left then?"
                found.append({"id": f"row-{cluster:03}-{place}", "request": request, "reserved": amount,
                              "left": Warehouse(item).stock - amount, "site": f"site-{cluster:03}"})  # fmt: skip
        return found

    def dataset(self) -> Dataset:
        fields = {"request": "input", "left": "label", "reserved": "label", "site": "meta"}
        return Dataset.from_rows(self.rows(), name="warehouse", fields=fields, cluster_key="site")

    def task(self, **changes: Any) -> dse.Task:
        """The task; `changes` are further arguments of ``dse.Task``."""
        given = {"dataset": self.dataset(), "metric": stock_right, "environment": warehouse} | changes
        return dse.Task(AskWarehouse, **given)

    def model(self, *, latency_s: float = 0.25, **options: Any) -> ScriptedModel:
        """A model that acts as planted, called `NAME`; `options` are further arguments of ``ScriptedModel``."""
        return ScriptedModel(self.reply, NAME, latency_s=latency_s, **options)

    # ---- what is planted

    def _chance(self, *parts: Any) -> float:
        return _number(self.seed, *parts) / 16.0**16

    def solves(self, mode: str, request: str) -> bool:
        """Whether `mode`, given the tools it needs, solves the row with that request."""
        if mode == "direct" and request.startswith("Reserve"):
            return False
        return self._chance("solves", *(() if self.same_rows else (mode,)), request) < self.success.get(mode, 0.0)

    def tools_of(self, mode: str, request: str) -> frozenset[str]:
        """The tools that `mode` calls on that request, if it may call them all."""
        if mode == "direct":
            return frozenset()
        needed = {"find_item", "reserve" if request.startswith("Reserve") else "get_stock"}
        if mode == "tool_call" and self._chance("detour", request) < self.detours:
            needed.add("get_weather")
        return frozenset(needed)

    # ---- acting it out

    def reply(self, request: Request) -> Completion:
        """The answer of the model: plays the mode that the request is made for."""
        messages = request["messages"]
        start = max(i for i, m in enumerate(messages) if m["role"] == "user" and _REQUEST.search(m["content"]))
        asked = _REQUEST.search(messages[start]["content"])
        assert asked is not None
        text = asked[1].strip()
        world = Warehouse(_item_of(text))
        amount = int(text.split()[1]) if text.startswith("Reserve") else 0
        if request["tools"]:
            return self._round(text, world, amount, {t["name"] for t in request["tools"]}, messages[start:])
        if "[[ ## code ## ]]" in messages[0]["content"]:
            return say(f"[[ ## code ## ]]\n```python\n{self._script(text, world, amount, messages[start]['content'])}\n```")
        left = world.stock - amount + (not self.solves("direct", text))
        return say(f"[[ ## left ## ]]\n{left}\n\n[[ ## completed ## ]]")

    def _round(self, text: str, world: Warehouse, amount: int, tools: set[str], since: list[dict[str, Any]]) -> Completion:
        act = "reserve" if amount else "get_stock"
        done = [c["name"] for m in since for c in m.get("tool_calls", ())]
        if not {"find_item", act} <= tools:
            return call(("submit", {"left": -1}))
        if not done:
            detour = "get_weather" in tools & self.tools_of("tool_call", text)
            return call(("find_item", {"name": world.item}), *[("get_weather", {"city": "Oslo"})] * detour)
        if act not in done:
            return call((act, {"item_id": world.item_id} | ({"amount": amount} if amount else {})))
        return call(("submit", {"left": world.stock - amount + (not self.solves("tool_call", text))}))

    def _script(self, text: str, world: Warehouse, amount: int, api: str) -> str:
        act = f"reserve(item_id=item['item_id'], amount={amount})" if amount else "get_stock(item_id=item['item_id'])"
        if not all(f"async def {name}(" in api for name in ("find_item", act.split("(")[0])):
            return "submit(left=-1)"
        return (f"item = await find_item(name={world.item!r})\nleft = await {act}\n"
                f"submit(left=left{'' if self.solves('code', text) else ' + 1'})")  # fmt: skip
