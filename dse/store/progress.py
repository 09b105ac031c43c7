"""The part of the store that keeps what a compile has under way, so that a killed one pays for nothing twice.

``answers`` holds completions of rollouts that are not finished, and those of the reflection model. ``unfinished`` holds,
per compile under way, the state that it began with, what it has spent, and which process has it: two at one compile
would pay for everything twice, each within a budget of its own.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dse.errors import CompileTaken, StoreUnavailable
from dse.store import owner

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
    place: str
    now: Callable[[], dt.datetime]

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

    def begin_compile(self, key: str, state: Mapping[str, Any], *,
                      take_over: bool = False) -> tuple[dict[str, Any], dict[str, Any] | None]:  # fmt: skip
        """Have the compile `key`: the state that it began with, if it is unfinished, else `state`; and what it has spent so
        far, if anything. A process that is gone is followed at once.

        Args:
            take_over: also when another machine had it last. That one stops when it next keeps what it spent.

        Raises:
            CompileTaken: a process that lives has it, or another thread of this one.
        """
        t, mine = self._tables["unfinished"], (self.place, key)
        with self._write() as c:
            c.execute(self._insert(t).values(key=key, state=json.dumps(dict(state)), spent=None).on_conflict_do_nothing())
            row = c.execute(self._sa.select(t).where(t.c.key == key).with_for_update()).mappings().one()
            self._check_free(row, take_over)
            c.execute(t.update().where(t.c.key == key).values(owner=owner.me(), since=self.now().isoformat(timespec="seconds")))
            _open.add(mine)  # before anybody else of this process can look
        return json.loads(row["state"]), None if row["spent"] is None else json.loads(row["spent"])

    def _check_free(self, row: Mapping[str, Any], take_over: bool) -> None:
        has = row["owner"]
        if has is None:
            return
        about = {"value": f"{owner.described(has)}, since {row['since']}", "owner": owner.described(has), "since": row["since"]}
        if not owner.is_here(has):
            if not take_over:
                raise CompileTaken("A process on another machine has, or had, this compile", **about,
                                   remedy="When it is gone: compile with take_over=True (--take-over).")  # fmt: skip
        elif has == owner.me():
            if (self.place, row["key"]) in _open:
                raise CompileTaken("This process is at this compile already", **about, remedy="Wait for its result.")
        elif owner.is_alive(has):
            raise CompileTaken("A process that lives has this compile", **about,
                               remedy="Wait for it, then the same call has its rollouts for nothing; or end it, then the same "
                                      "call goes on where it stopped.")  # fmt: skip

    def keep_spending(self, key: str, spent: Mapping[str, Any]) -> None:
        """Keep what a compile has spent.

        Raises:
            CompileTaken: another process took it over.
        """
        mark = self._insertion("unfinished", {"spent": "", "key": "", "owner": ""}).partition("VALUES (")[2].rstrip(")").split(", ")
        with self._directly(power=False) as execute:
            done = execute(f"UPDATE unfinished SET spent = {mark[0]} WHERE key = {mark[1]} AND owner = {mark[2]}",
                           {"spent": json.dumps(dict(spent)), "key": key, "owner": owner.me()})  # fmt: skip
        if not done.rowcount:
            raise CompileTaken("Another process took this compile over", value=key[:19], remedy="Wait for its result.")

    def leave_compile(self, key: str) -> None:
        """Let go of a compile that is not finished: whoever makes the same call goes on with it."""
        t = self._tables["unfinished"]
        try:
            with self._write() as c:
                c.execute(t.update().where(t.c.key == key, t.c.owner == owner.me()).values(owner=None, since=None))
        except StoreUnavailable:
            pass  # this process can go on with it, others can when this one has ended
        finally:
            _open.discard((self.place, key))

    def finish_compile(self, key: str) -> None:
        t = self._tables["unfinished"]
        with self._write() as c:
            c.execute(t.delete().where(t.c.key == key, t.c.owner == owner.me()))


_open: set[tuple[str, str]] = set()
"""Compiles that this process has under way."""


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
