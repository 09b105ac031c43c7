"""The signature, the environment and the metric: the end state of all databases must be that of the gold calls."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dse
from dse.errors import MetricError

from .data import dataset
from .office import Office
from .tools import SCOPE, TOOLS

__all__ = ["Verdict", "Workplace", "end_state", "judge", "make_task"]

CASED = ("status", "list_name", "board")  # letter case counts here, and nowhere else


class Workplace(dse.Signature):
    """Do what the user asks for in the user's calendar, mailbox, projects, customers and website.

    - Change exactly what is asked for. Where what the user makes a condition does not hold, or where there is nothing
      to change, change nothing.
    - Find out before you change: ids and email addresses come from searches. A search gives five results at most,
      so narrow it by text and time where there could be more.
    - Days and hours are relative to `now`. Meetings start at 9:00 or later and end at 18:00 or earlier.
    """

    query: str = dse.InputField(desc="what the user asks for")
    now: str = dse.InputField(desc="the present day and time")
    report: str = dse.OutputField(desc="what was changed, in one sentence")
    tools = [*TOOLS]


_BY_NAME = {one.contract.name: one for one in TOOLS}
_Changes = Mapping[str, Mapping[str, Mapping[str, str] | None]]


async def _execute(calls: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    office = Office()
    for number, made in enumerate(calls, 1):
        context = dse.ToolContext(deps=office, run_id="gold", call_id=number, idempotency_key=str(number), deadline=0.0)
        await _BY_NAME[made["tool"]](context, **made["args"])
    return office.changes()


def end_state(calls: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What calls (``{"tool", "args"}``) change in fresh databases, through the very tools that programs call."""
    return asyncio.run(_execute(calls))


def _plain(changes: _Changes) -> dict[tuple[str, str], dict[str, str] | None]:
    """By table and id, as it is compared."""
    return {
        (table, key): None if row is None else {f: v if f in CASED else v.lower() for f, v in row.items()}
        for table, rows in changes.items()
        for key, row in rows.items()
    }


@dataclass(frozen=True)
class Verdict:
    """What an end state is worth.

    Attributes:
        right: it is the one that was to be reached.
        idle: doing nothing would have been right.
        unwanted: something was changed, and the end state is wrong (as in the published results).
        stray: something was changed where nothing was to be, or in a table that was to stay as it is.
    """

    right: bool
    idle: bool
    unwanted: bool
    stray: bool
    feedback: str


def judge(gold: _Changes, made: _Changes) -> Verdict:
    wanted, found = _plain(gold), _plain(made)
    right = wanted == found
    told = [f"{_verb(one, wanted)} missing" for one in wanted if one not in found]
    told += [f"{_verb(one, found)} unwanted" for one in found if one not in wanted]
    told += [f"{' '.join(one)} should be {wanted[one]}, is {found[one]}" for one in wanted if one in found and wanted[one] != found[one]]
    return Verdict(right, not wanted, bool(found) and not right, not {t for t, _ in found} <= {t for t, _ in wanted},
                   "; ".join(told[:6]) or "the end state is right")  # fmt: skip


def _verb(one: tuple[str, str], changes: Mapping[tuple[str, str], Any]) -> str:
    return f"{' '.join(one)} {'deleted' if changes[one] is None else changes[one]}:"


@dse.environment(revision="1")
def office_of(example: Any) -> Iterator[dse.World]:
    """Fresh databases per rollout; the state is what was changed in them."""
    office = Office()
    yield dse.World(deps=office, state=office.changes)


@dse.metric(revision="1")
async def same_end_state(example: Any, prediction: Any, ctx: dse.MetricContext) -> dse.Score:
    """1.0 where all databases are as the gold calls leave them, else 0."""
    if ctx.state is None:
        raise MetricError("This metric scores the end state, and there is none",
                          remedy="Evaluate with the task's environment.")  # fmt: skip
    verdict = judge(await _execute(example.labels["gold_calls"]), ctx.state)
    parts = {"idle": float(verdict.idle), "unwanted": float(verdict.unwanted), "stray": float(verdict.stray)}
    return dse.Score(float(verdict.right), verdict.feedback, parts)


@functools.cache
def make_task() -> dse.Task:
    """The task, without data loaded before it is asked for. The toolkits of both domains stay on every allow-list:
    requests for tools that no search template needs are still requests of these domains."""
    return dse.Task(
        Workplace, dataset=dataset(), metric=same_end_state, environment=office_of, required=SCOPE, modes=("tool_call", "code"),
        # A right change is worth 25 cents; a tool that cannot be called any more is worth half a point.
        objective=dse.Objective(cost_weight=4.0, exposure_weight=0.005, max_quality_loss=0.05),
        limits=dse.Limits(model_calls=10, tool_calls=60),
    )  # fmt: skip
