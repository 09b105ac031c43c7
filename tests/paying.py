"""Tasks for tests of budgets: repeat a word in capitals, or look it up with tools that are paid for."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import dse
from dse.models.lm import Completion
from dse.testing.scripted import ScriptedModel, call, say

NAME = "scripted/m"
PRICES = dse.PriceTable("p", "2026-01-01", {NAME: (1.0, 10.0)})
ROWS = dse.Rows(search=8, select=12, holdout=12)
EXECUTED: list[str] = []


@dse.tool(effect="pure", cost_usd=0.50, revision="1")
def lookup(q: str) -> str:
    """A look-up that is paid for.

    Args:
        q: what to look up.
    """
    EXECUTED.append(q)
    return q.upper()


@dse.tool(effect="pure", cost_usd=0.25, max_calls=2, revision="1")
def glance(q: str) -> str:
    """A cheaper look-up.

    Args:
        q: what to look up.
    """
    EXECUTED.append(q)
    return q.upper()


class Ask(dse.Signature):
    """Look it up."""

    q: str = dse.InputField()
    a: str = dse.OutputField()
    tools = [lookup, glance]


class Say(dse.Signature):
    """Repeat it in capitals."""

    q: str = dse.InputField()
    a: str = dse.OutputField()


@dse.metric(revision="1")
def right(example: Any, prediction: Any, ctx: Any) -> float:
    return float(prediction.a == example.a)


def _words() -> list[str]:
    syllables = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "tu")
    return [a + b + c + d for a in syllables for b in syllables for c in syllables[:3] for d in syllables[:2]]


def data(rows: int = 60) -> dse.Dataset:
    words = _words()[:: 600 // rows][:rows]
    return dse.Dataset.from_rows([{"id": f"r{i}", "q": q, "a": q.upper()} for i, q in enumerate(words)], name="say",
                                 fields={"q": "input", "a": "label"})  # fmt: skip


def asked_for(request: Any) -> str:
    told = [m["content"] for m in request["messages"] if m["role"] == "user" and "## q ##" in m["content"]]
    return str(told[-1].split("## q ## ]]\n")[1].split("\n")[0])


def answered(a: str) -> Completion:
    return say(f"[[ ## a ## ]]\n{a}\n\n[[ ## completed ## ]]")


def looking_up(tool: str = "lookup") -> ScriptedModel:
    def reply(request: Any) -> Any:
        q = asked_for(request)
        if not request["tools"]:
            return answered("NO")
        last = request["messages"][-1]
        return call(("submit", {"a": last["content"].strip('"')})) if last["role"] == "tool" else call((tool, {"q": q}))

    return ScriptedModel(reply, NAME, params={"max_tokens": 100})


def asking(**options: Any) -> dse.Task:
    return dse.Task(Ask, **{"dataset": data(), "metric": right, "modes": ["direct", "tool_call"]} | options)


def saying(**options: Any) -> dse.Task:
    return dse.Task(Say, **{"dataset": data(), "metric": right} | options)


def total(result: Any, what: str) -> float:
    return sum(one[what] for one in result.accounts)


def ledger(folder: Path) -> dict[str, Any]:
    """What the store keeps of a compile that did not end."""
    found: dict[str, Any] = json.loads(sqlite3.connect(folder / "dse.db").execute("SELECT spent FROM unfinished").fetchone()[0])
    return found
