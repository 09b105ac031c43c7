"""Scripted models that play out calls in whatever form they are asked for: tool calls or a script."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dse.models.lm import Completion, Request
from dse.testing import ScriptedModel, call, say

from .data import requests

__all__ = ["NAME", "Calls", "answer", "greedy", "idle", "obedient", "player"]

NAME = "scripted/workbench"
Calls = Sequence[Mapping[str, Any]]
_QUERY = re.compile(r"\[\[ ## query ## \]\]\n(.*?)\n\n\[\[ ## now ## \]\]", re.DOTALL)


def obedient(row: Mapping[str, Any]) -> Calls:
    """The gold calls."""
    return row["gold_calls"]


def idle(row: Mapping[str, Any]) -> Calls:
    """Nothing."""
    return []


def greedy(row: Mapping[str, Any]) -> Calls:
    """The gold calls, and the first task of the board deleted."""
    return [*row["gold_calls"], {"tool": "project_management_delete_task", "args": {"task_id": "00000149"}}]


def player(calls_of: Callable[[Mapping[str, Any]], Calls]) -> ScriptedModel:
    """A model that makes the calls that a row asks for, one round of calls or one script, and submits."""
    return ScriptedModel(lambda request: answer(request, calls_of), NAME)


def answer(request: Request, calls_of: Callable[[Mapping[str, Any]], Calls]) -> Completion:
    """One reply of such a model. Recognises the row by its query."""
    last = next(found for message in reversed(request["messages"]) if message["role"] == "user"
                for found in [_QUERY.search(message["content"])] if found)  # fmt: skip
    calls = calls_of(next(row for row in requests() if row["inputs"]["query"] == last[1]))
    report = f"{len(calls)} changes"
    if not request["tools"]:
        lines = [f"await {made['tool']}({', '.join(f'{k}={v!r}' for k, v in made['args'].items())})" for made in calls]
        return say("\n".join(["[[ ## code ## ]]", "```python", *lines, f"submit(report={report!r})", "```"]))
    if calls and request["messages"][-1]["role"] != "tool":
        return call(*[(made["tool"], dict(made["args"])) for made in calls])
    return call(("submit", {"report": report}))
