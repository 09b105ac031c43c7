"""The part of the store that keeps what a compile has under way, so that a killed one pays for nothing twice.

``answers`` holds completions of rollouts that are not finished, and those of the reflection model. ``unfinished`` holds,
per compile under way, the state that it began with and what it has spent.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dse.models.lm import Completion

__all__ = ["ProgressTables"]


class ProgressTables:
    """Mixed into `Store`."""

    _sa: Any
    _tables: Any
    _write: Callable[..., contextlib.AbstractContextManager[Any]]
    _directly: Callable[..., contextlib.AbstractContextManager[Any]]
    _rows: Callable[[Any], list[Any]]
    _insert: Callable[[Any], Any]
    _insertion: Callable[[str, Mapping[str, Any]], str]

    # --- completions under way

    def answers(self, owner: str) -> dict[str, Completion]:
        """What `owner` (a rollout, or a compile's reflections) has been answered so far, by key."""
        t = self._tables["answers"]
        found = self._rows(self._sa.select(t.c.key, t.c.completion).where(t.c.owner == owner))
        return {row["key"]: _completion(json.loads(row["completion"])) for row in found}

    def save_answer(self, owner: str, key: str, completion: Completion) -> None:
        """Keep a completion; a second one of the same key changes nothing."""
        row = {"owner": owner, "key": key, "completion": json.dumps(_data(completion))}
        with self._directly(power=False) as execute:
            execute(f"{self._insertion('answers', row)} ON CONFLICT DO NOTHING", row)

    # --- compiles under way

    def begin_compile(self, key: str, state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The state that the unfinished compile `key` began with, else `state`; and what it has spent so far, if anything."""
        t = self._tables["unfinished"]
        with self._write() as c:
            c.execute(self._insert(t).values(key=key, state=json.dumps(dict(state)), spent=None).on_conflict_do_nothing())
            row = c.execute(self._sa.select(t).where(t.c.key == key)).mappings().one()
        return json.loads(row["state"]), None if row["spent"] is None else json.loads(row["spent"])

    def keep_spending(self, key: str, spent: Mapping[str, Any]) -> None:
        mark = self._insertion("unfinished", {"spent": "", "key": ""}).partition("VALUES (")[2].rstrip(")").split(", ")
        with self._directly(power=False) as execute:
            execute(f"UPDATE unfinished SET spent = {mark[0]} WHERE key = {mark[1]}",
                    {"spent": json.dumps(dict(spent)), "key": key})  # fmt: skip

    def finish_compile(self, key: str) -> None:
        t = self._tables["unfinished"]
        with self._write() as c:
            c.execute(t.delete().where(t.c.key == key))


def _data(completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    return {"text": completion.text, "calls": [[c.id, c.name, c.arguments, c.raw] for c in completion.tool_calls],
            "finish": completion.finish_reason, "usage": [usage.input_tokens, usage.output_tokens, usage.source],
            "cost": [completion.cost_usd, completion.cost_source], "latency_s": completion.latency_s,
            "model": completion.model, "recorded": completion.recorded}  # fmt: skip


def _completion(data: Mapping[str, Any]) -> Completion:
    from dse.models.lm import Completion, ToolCallPart, Usage

    return Completion(
        text=data["text"], tool_calls=tuple(ToolCallPart(*call) for call in data["calls"]), finish_reason=data["finish"],
        usage=Usage(*data["usage"]), cost_usd=data["cost"][0], cost_source=data["cost"][1], latency_s=data["latency_s"],
        model=data["model"], recorded=data["recorded"],
    )  # fmt: skip
