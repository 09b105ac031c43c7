"""Guests that are led along their record many turns at a time: nothing else may differ from one turn at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator

import dse
from benchmarks import chaos
from dse.errors import EffectUnknown, LimitExceeded, ReplayDiverged, RunSuspended
from dse.runtime import sandbox
from dse.store.journal import Store
from dse.strategies.base import seed_plan
from dse.testing import ScriptedModel, say


class World:
    """What tools did, and what became different since."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.dies = False


class Law:
    """What arguments have to be."""

    shift, most = 0, 10**9


def lawful(n: int) -> int:
    if n > Law.most:
        raise ValueError("too many")
    return n + Law.shift if n == 20 else n


@pytest.fixture
def law(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda **changed: [monkeypatch.setattr(Law, name, value) for name, value in changed.items()] and None


@dse.tool(effect="read")
async def look(ctx: dse.ToolContext[World], n: Annotated[int, AfterValidator(lawful)]) -> int:
    """Look."""
    ctx.deps.calls.append(f"look {n}")
    if n == 13:
        raise dse.ToolFailed("nobody there")
    return n * 10


@dse.tool(effect="write")
async def note(ctx: dse.ToolContext[World], n: int) -> str:
    """Note."""
    ctx.deps.calls.append(f"note {n}")
    if ctx.deps.dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return f"noted {n}"


@dse.tool(effect="write", approval="always")
async def pay(ctx: dse.ToolContext[World], amount: int) -> str:
    """Pay."""
    ctx.deps.calls.append(f"pay {amount}")
    return f"paid {amount}"


class Tour(dse.Signature):
    """Go around."""

    start: str = dse.InputField()
    report: str = dse.OutputField()
    tools = [look, note, pay]


CALLS = 90
_LOOK = """
async def seen(i):
    try:
        return await look(i)
    except Exception as error:
        return len(str(error))
"""
SCRIPTS = {
    "one by one": "total = 0\nfor i in range({n}):\n    total += await seen(i)",
    "printing": "total = 0\nfor i in range({n}):\n    if i % 3 == 0:\n        print('before', i)\n    total += await seen(i)\n    if i % 4 == 0:\n        print('after', i)",
    "some together": "total = 0\nfor i in range(0, {n}, 3):\n    total += sum(await asyncio.gather(*[seen(j) for j in range(i, i + 3)]))",
    "one of another kind": "total = 0\nfor i in range({n}):\n    total += await seen(i)\n    if i == 40:\n        total += len(await note(i))",
}  # fmt: skip


def replies(script: str, *, pays: bool = True) -> Callable[[Any], Any]:
    """A model that goes around, shows what it found, pays and reports."""
    scripts = [_LOOK + script.format(n=CALLS), "paid = await pay(5)\nsubmit(report=f'{total} {paid}')" if pays else "submit(report=str(total))"]
    return lambda request: say(f"[[ ## code ## ]]\n{scripts[request['messages'][-1]['content'].count('Script ')]}\n\n[[ ## completed ## ]]")


def made(place: Path | str, reply: Callable[[Any], Any], **more: Any) -> dse.Program:
    limits = more.pop("limits", None)
    plan = seed_plan(Tour.spec(), "code", limits=limits or dse.Limits(tool_calls=500))
    return dse.Program(Tour, plan, lm=ScriptedModel(reply), deps=World(), store=Store(place), **more)


def suspended(program: dse.Program) -> str:
    with pytest.raises(RunSuspended) as caught:
        program(start="x")
    (one,) = program.store.pending()  # type: ignore[union-attr]
    program.store.approve(one["run_id"], one["call_id"], arguments_hash=one["arguments_hash"], by="ann")  # type: ignore[union-attr]
    return str(caught.value.details["run_id"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_replay_comes_to_the_same_with_few_hand_overs(tmp_path: Path, name: str) -> None:
    calm = made(tmp_path / "calm.db", replies(SCRIPTS[name]), approve=lambda request: True)
    expected = calm(start="x")
    first = made(tmp_path / "runs.db", replies(SCRIPTS[name]))
    run_id = suspended(first)
    before = first.store.run(run_id)[1]  # type: ignore[union-attr]
    again = made(tmp_path / "runs.db", replies(SCRIPTS[name]))
    turns: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        along, alone = sandbox.Session.resume_along, sandbox.Session.resume

        async def led(self: Any, *given: Any) -> Any:
            turns.append(len(found := await along(self, *given)))
            return found

        async def lone(self: Any, results: Any) -> Any:
            turns.append(1)
            return await alone(self, results)

        patch.setattr(sandbox.Session, "resume_along", led)
        patch.setattr(sandbox.Session, "resume", lone)
        prediction = again.resume(run_id, snapshots=False)
    assert prediction.outputs == expected.outputs and again.deps.calls == ["pay 5"] and not again.lm.requests
    assert prediction.receipt["effects"] == expected.receipt["effects"]
    if name != "some together":  # these may come in pieces, not the same ones in another run
        assert len(turns) <= 12 and max(turns) > 20, turns
        assert prediction.receipt["transcript_hash"] == expected.receipt["transcript_hash"]
    for part in ("model_calls", "tool_calls", "calls_per_tool", "input_tokens"):
        assert prediction.receipt["usage"][part] == expected.receipt["usage"][part]
    told = [[{k: one[k] for k in ("call_id", "tool", "arguments", "arguments_hash", "result_hash", "outcome")} for one in made.receipt["calls"]]
            for made in (prediction, expected)]  # fmt: skip
    assert told[0] == told[1] and len(told[0]) > CALLS
    after = again.store.run(run_id)[1]  # type: ignore[union-attr]
    added = [entry["kind"] for entry in after[len(before) :]]
    assert after[: len(before)] == before and not {"print", "code_error", "tool_refused"} & set(added), "it followed what was there"
    audit = made(tmp_path / "runs.db", replies("raise 'an audit asks no model'")).replay(run_id)
    assert audit.outputs == expected.outputs and audit.receipt["transcript_hash"] == prediction.receipt["transcript_hash"]


@pytest.mark.parametrize("changed", [{"shift": 1}, {"most": 19}], ids=["other arguments", "refused now"])
def test_another_path_within_what_a_guest_was_led_through_is_noticed(
    tmp_path: Path, law: Callable[..., None], changed: dict[str, int]
) -> None:
    run_id = suspended(made(tmp_path / "runs.db", replies(SCRIPTS["printing"])))
    law(**changed)
    other = made(tmp_path / "runs.db", replies(SCRIPTS["printing"]))
    with pytest.raises(ReplayDiverged, match="The journal has tool_") as caught:
        other.resume(run_id, snapshots=False)
    receipt = caught.value.details["receipt"]
    assert other.deps.calls == [] and len(receipt["calls"]) == 21, "no call after it is counted, and none was made"
    assert receipt["usage"]["tool_calls"] == 21
    law(shift=0, most=10**9)
    resumed = made(tmp_path / "runs.db", replies(SCRIPTS["printing"])).resume(run_id, snapshots=False)
    assert resumed.report.endswith("paid 5")


@pytest.mark.parametrize("outcome", ["abort", "retry", "fail_step"])
def test_limits_are_reached_where_they_were(tmp_path: Path, outcome: str) -> None:
    limits = dse.Limits(tool_calls=40, outcomes={"tool_calls": outcome})
    program = made(tmp_path / "runs.db", replies(SCRIPTS["printing"], pays=False), limits=limits)
    again = made(tmp_path / "runs.db", replies(SCRIPTS["printing"], pays=False), limits=limits)
    if outcome == "fail_step":
        expected = program(start="x")
        found = again.replay(expected.receipt["run_id"])
        assert found.outputs == expected.outputs
        receipts = [found.receipt, expected.receipt]
    else:
        with pytest.raises(LimitExceeded) as caught:
            program(start="x")
        with pytest.raises(LimitExceeded) as repeated:
            again.replay(caught.value.details["run_id"])
        receipts = [repeated.value.details["receipt"], caught.value.details["receipt"]]
    assert again.deps.calls == [] and len(program.deps.calls) == 40 * receipts[1]["attempts"]
    assert receipts[0]["transcript_hash"] == receipts[1]["transcript_hash"]
    assert [one["outcome"] for one in receipts[0]["calls"]] == [one["outcome"] for one in receipts[1]["calls"]]
    assert receipts[0]["usage"]["tool_calls"] == receipts[1]["usage"]["tool_calls"]


def die_inside_a_write(place: str) -> None:
    """What a process does that ends in `note`, after 41 recorded calls and before many more."""
    program = made(place, replies(SCRIPTS["one of another kind"]))
    program.deps.dies = True
    program(start="x")


def test_a_write_of_which_nobody_knows_stops_it(tmp_path: Path) -> None:
    place = tmp_path / "runs.db"
    work = f"from tests.test_ahead import die_inside_a_write; die_inside_a_write({str(place)!r})"
    ended = subprocess.run([sys.executable, "-c", work], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    program = made(place, replies(SCRIPTS["one of another kind"]), approve=lambda request: True)
    (run,) = program.store.runs(outcome="lost")  # type: ignore[union-attr]
    with pytest.raises(EffectUnknown):
        program.resume(run["run_id"], snapshots=False)
    assert program.deps.calls == []
    prediction = program.resume(run["run_id"], snapshots=False, decisions={42: dse.Decision("done", "noted it")})
    assert program.deps.calls == [f"look {i}" for i in range(41, CALLS)] + ["pay 5"]
    assert prediction.receipt["effects"].startswith("completed [note#42")


def test_a_worker_that_dies_on_the_way_costs_nothing_but_time(tmp_path: Path) -> None:
    expected = made(tmp_path / "calm.db", replies(SCRIPTS["printing"]), approve=lambda request: True)(start="x")
    run_id = suspended(made(tmp_path / "runs.db", replies(SCRIPTS["printing"])))
    again, reaper = made(tmp_path / "runs.db", replies(SCRIPTS["printing"])), chaos.Reaper(at=2)
    with pytest.MonkeyPatch.context() as patch:
        along = sandbox.Session.resume_along

        async def struck(self: Any, *given: Any) -> Any:
            reaper.point(self._pid)
            return await along(self, *given)

        patch.setattr(sandbox.Session, "resume_along", struck)
        prediction = again.resume(run_id, snapshots=False)
    assert prediction.outputs == expected.outputs and again.deps.calls == ["pay 5"] and reaper.seen > 4
    assert prediction.receipt["usage"]["tool_calls"] == expected.receipt["usage"]["tool_calls"]
