"""Where attacks run: a program with tools that record their calls, a scripted engine, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dse
from dse.testing import ScriptedEngine, say

SECRET = "env-secret-5d1c7f"  # in the host's environment while attacks run
LIMITS: dict[str, Any] = {
    "interpreter_s": 0.5, "memory_bytes": 24 * 2**20, "suspensions": 2_000, "tool_calls": 200, "print_bytes": 2_000,
    "model_calls": 4, "active_s": 60,
}  # fmt: skip
AT_ONCE = 6
PATIENCE_S = 45  # only how long an attempt that hangs may hang


@dataclass
class Ledger:
    """Which implementations ran in one run, and with what."""

    calls: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.calls}


Context = dse.ToolContext[Ledger]


@dse.tool(effect="read")
async def look(ctx: Context, key: str) -> str:
    """Look something up."""
    ctx.deps.calls.append(("look", key))
    return f"value of {key}"


@dse.tool(effect="pure")
def double(ctx: Context, n: int) -> int:
    """Twice a number."""
    ctx.deps.calls.append(("double", n))
    return 2 * n


@dse.tool(effect="pure")
async def keep(ctx: Context, value: Any) -> str:
    """Take any value."""
    ctx.deps.calls.append(("keep", value))
    return type(value).__name__


@dse.tool(effect="read")
async def fail(ctx: Context, key: str) -> str:
    """Always fails, with a text that quotes the host."""
    ctx.deps.calls.append(("fail", key))
    raise RuntimeError(f"Traceback (most recent call last):\n  File \"{__file__}\", line 1, in fail\n{SECRET} {Path.cwd()}/x")


@dse.tool(effect="write")
async def pay(ctx: Context, amount: int) -> str:
    """Pay somebody."""
    ctx.deps.calls.append(("pay", amount))
    return "paid"


@dse.tool(effect="read")
async def vault(ctx: Context, name: str) -> str:
    """What nobody may read."""
    ctx.deps.calls.append(("vault", name))
    return "the crown jewels"


ALLOWED = ("look", "double", "keep", "fail")


class Job(dse.Signature):
    """Answer with the tools."""

    question: str = dse.InputField()
    answer: str = dse.OutputField()
    tools = [look, double, keep, fail, pay, vault]


def scripted(*replies: str, last: str = "submit(answer='done')", verbatim: bool = False) -> ScriptedEngine:
    """An engine that answers with these scripts, and then for ever with the last one."""
    left = list(replies)

    def reply(request: Any) -> Any:
        text = left.pop(0) if left else last
        return say(text if verbatim else f"[[ ## code ## ]]\n{text}\n\n[[ ## completed ## ]]")

    return ScriptedEngine(reply)


@dataclass(frozen=True)
class Attack:
    """One attempt.

    Attributes:
        name: the test's id.
        scripts: what the model sends, round by round; then it submits ``done``.
        shows: what must hold, in words.
        answer: the only answer that is right; None for any.
        codes: errors with which the run may end instead; without an answer expected, the run must not crash.
        stopped: the first script must be refused before anything runs.
        limits: where they differ from `LIMITS`.
        calls: how many implementations may have run at most.
        said: a text that the model must have been told.
        verbatim: the replies are sent as they are, without field markers.
    """

    name: str
    scripts: tuple[str, ...]
    shows: str
    answer: str | None = None
    codes: tuple[str, ...] = ("DSE301", "DSE302", "DSE303")
    stopped: bool = False
    limits: dict[str, Any] = field(default_factory=dict)
    calls: int | None = None
    said: str = ""
    verbatim: bool = False


def attack(name: str, script: str | tuple[str, ...], shows: str, **options: Any) -> Attack:
    return Attack(name, (script,) if isinstance(script, str) else script, shows, **options)


@dataclass
class Seen:
    """What came of an attempt."""

    ledger: Ledger
    answer: str | None
    error: BaseException | None
    receipt: dict[str, Any]
    journal: list[dict[str, Any]]
    requests: list[Any]
    seconds: float

    @property
    def kinds(self) -> list[str]:
        return [entry["kind"] for entry in self.journal]

    def told(self, scripts: Iterable[str] = ()) -> str:
        """Everything the model was sent, without what it wrote itself."""
        texts = [str(m.get("content")) for request in self.requests for m in request["messages"]]
        texts += [json.dumps(m["tool_calls"]) for r in self.requests for m in r["messages"] if m.get("tool_calls")]
        text = "\n".join(texts)
        for script in scripts:
            text = text.replace(script.replace("\r\n", "\n").replace("\r", "\n").strip("\n"), "")
        return text


async def observe(program: dse.Program, engine: Any, question: str) -> Seen:
    """Run a program to whatever end and keep everything."""
    ledger, started = Ledger(), time.perf_counter()
    answer, error = None, None
    run = program.new_run({"question": question})
    try:
        prediction = await asyncio.wait_for(program.execute(run, deps=ledger), PATIENCE_S)
        answer, receipt = prediction.answer, dict(prediction.receipt)
    except dse.DseError as exc:
        error, receipt = exc, exc.details["receipt"]
    except Exception as exc:  # never right; the test says so
        error, receipt = exc, {}
    return Seen(ledger, answer, error, receipt, list(run.journal.entries), list(engine.requests), time.perf_counter() - started)


async def attempt(one: Attack) -> Seen:
    engine = scripted(*one.scripts, verbatim=one.verbatim)
    return await observe(code_program(engine, one.limits), engine, marker(one.name))


def code_program(engine: Any, limits: dict[str, Any] | None = None) -> dse.Program:
    plan = dse.Program(Job, "code", lm=engine).plan
    plan = plan.model_copy(update={"allow": ALLOWED, "limits": dse.Limits(**{**LIMITS, **(limits or {})})})
    return dse.Program(Job, plan, lm=engine)


def marker(name: str) -> str:
    """The input of a run: nobody else may ever see it."""
    return f"input-of-{name}-7c3a"


def run_batch(attacks: Iterable[Attack], one_by: Callable[[Attack], Any] = attempt) -> dict[str, Seen]:
    """All attempts, several at once, and then one honest run that must succeed."""

    async def go() -> dict[str, Seen]:
        gate = asyncio.Semaphore(AT_ONCE)

        async def guarded(one: Attack) -> tuple[str, Seen]:
            async with gate:
                return one.name, await one_by(one)

        seen = dict(await asyncio.gather(*[guarded(one) for one in attacks]))
        seen["canary"] = await canary()
        return seen

    before = os.environ.get("DSE_ATTACK_SECRET")
    os.environ["DSE_ATTACK_SECRET"] = SECRET
    try:
        return asyncio.run(go())
    finally:
        if before is None:
            del os.environ["DSE_ATTACK_SECRET"]


CANARY = "xs = await asyncio.gather(*[double(i) for i in range(3)])\nsubmit(answer=str(sum(xs)) + await look('a'))"


async def canary() -> Seen:
    engine = scripted(CANARY)
    return await observe(code_program(engine), engine, "canary")


_HOST = [SECRET, "Traceback (most recent call last)", "site-packages", "pydantic_monty", str(Path.home()) + "/",
         str(Path(dse.__file__).parent), str(Path(__file__).parent), sys.prefix, os.getcwd(), tempfile.gettempdir()]  # fmt: skip


def leaks(text: str) -> list[str]:
    """Pieces of the host in a text."""
    return [piece for piece in _HOST if piece in text]


def check(one: Attack, seen: Seen, others: Iterable[str]) -> None:
    """What must hold after every attempt."""
    assert seen.ledger.names <= set(ALLOWED), f"reached {seen.ledger.names}"
    if seen.error is not None:
        assert isinstance(seen.error, dse.DseError), repr(seen.error)
        assert seen.error.code in one.codes, str(seen.error)
        assert seen.receipt["outcome"] != "ok" and seen.receipt["error"]["code"] == seen.error.code
    else:
        assert seen.receipt["outcome"] == "ok"
    if one.answer is not None:
        assert seen.answer == one.answer, seen.answer if seen.error is None else str(seen.error)
    told = seen.told(one.scripts)
    receipt = json.dumps(seen.receipt, ensure_ascii=False)
    assert not leaks(told) and not leaks(receipt), (leaks(told), leaks(receipt))
    for other in others:
        assert marker(other) not in told and marker(other) not in receipt
    called = [call for call in seen.receipt["calls"] if call["outcome"] == "ok"]
    assert {call["tool"] for call in called} <= set(ALLOWED)
    assert len(seen.ledger.calls) <= seen.kinds.count("tool_intent")  # nothing ran unrecorded
    if one.calls is not None:
        assert len(seen.ledger.calls) <= one.calls, seen.ledger.calls[:5]
    if one.stopped:
        first = next(e for e in seen.journal if e["kind"] in ("code_error", "feed"))
        assert first["kind"] == "code_error" and first["stage"] == "check", first
        assert not seen.ledger.calls
    if one.said:
        assert one.said in told, told[-1500:]
