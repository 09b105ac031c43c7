"""One tool, one policy: the same contract gives the same outcome in ``tool_call`` and in ``code`` mode.

Each case is a table row of tools and calls. A scripted engine makes the same calls as native tool calls and as a script;
receipts, effects, what the model is told, and the journal of the calls are compared, and both are what the row expects.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pytest
from pydantic import BaseModel, Field

import dse
from dse.contracts.tool import ToolContract
from dse.models.lm import resolve_model
from dse.portal import run_sync
from dse.testing import ScriptedEngine, call, say

MODES = ("tool_call", "code")
Calls = list[tuple[str, Any]]  # (tool, arguments as a dict or as JSON text)


class Part(BaseModel):
    name: str
    amount: int = Field(ge=0)


class Login(BaseModel):
    user: str
    token: str


@dataclass
class Made:
    """The tools of one run, and what they noted."""

    tools: list[Any]
    notes: list[Any] = field(default_factory=list)


@dataclass
class Case:
    """A row.

    Attributes:
        make: fresh tools.
        rounds: calls that are made together, round by round.
        expect: (outcome, fault code) of each call, in call order.
        effects: the receipt's summary of them.
        error: code of the error that ends the run, None for an answer.
        told: what the model must be told about the last fault; empty where the modes word it themselves.
        notes: what the tools must have noted; None where it does not matter.
        value: what the first call gives.
    """

    name: str
    covers: str
    make: Callable[[], Made]
    rounds: list[Calls]
    expect: list[tuple[str, str | None]]
    effects: str = "none"
    error: str | None = None
    told: str = ""
    worded_by_mode: bool = False
    notes: Any = None
    value: Any = ...
    allow: tuple[str, ...] | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    approve: Any = None
    rules: dict[str, Any] = field(default_factory=dict)


# --- the two ways to make the same calls


def native(rounds: list[Calls]) -> ScriptedEngine:
    replies: list[Any] = [call(*calls) for calls in rounds]
    return ScriptedEngine([*replies, *[call(("submit", {"answer": "done"}))] * 3])


def script(rounds: list[Calls]) -> str:
    """A script that makes the calls, hides their types from the check, and prints what each gave."""
    names = sorted({name for calls in rounds for name, _ in calls})
    lines = ["import json", "from typing import TYPE_CHECKING", "if TYPE_CHECKING:", "    unknown = other = json.loads('1')"]
    lines += ["async def one(tool, text):", "    try:", "        return ['ok', await tool(**json.loads(text))]",
              "    except Exception as error:", "        return ['fault', str(error)]"]  # fmt: skip
    lines += [f"async def call_{name}(**given):\n    return await {name}(**given)" for name in names]
    for calls in rounds:
        made = ", ".join(f"one(call_{name}, {(g if isinstance(g, str) else json.dumps(g))!r})" for name, g in calls)
        lines += [f"for gave in await asyncio.gather({made}):", "    print(json.dumps(gave))"]
    return "\n".join(lines)


def scripted(rounds: list[Calls]) -> ScriptedEngine:
    texts = [f"[[ ## code ## ]]\n{script(rounds)}", *["[[ ## code ## ]]\nsubmit(answer='done')"] * 3]
    return ScriptedEngine([say(text) for text in texts])


@dataclass
class Ran:
    made: Made
    error: dse.DseError | None
    receipt: dict[str, Any]
    journal: list[dict[str, Any]]
    requests: list[Any]
    told: list[Any]
    """What the model was told about each call, in call order: ("ok", value) or ("fault", message)."""

    @property
    def calls(self) -> list[dict[str, Any]]:
        kept = ("call_id", "tool", "effect", "outcome", "fault", "message", "arguments", "arguments_hash", "result_hash",
                "idempotency_key")  # fmt: skip
        return [{key: one.get(key) for key in kept} for one in self.receipt["calls"]]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Of calls, in call order: parallel ones end in any order."""
        found = [{k: v for k, v in e.items() if k not in ("seq", "latency_s")}
                 for e in self.journal if e["kind"].startswith("tool_") or e["kind"] == "approval"]  # fmt: skip
        return sorted(found, key=lambda e: e["call_id"])


def execute(case: Case, mode: str) -> Ran:
    made = case.make()
    engine = native(case.rounds) if mode == "tool_call" else scripted(case.rounds)
    prices = dse.PriceTable("test", "2026-01-01", {engine.name: (0.0, 0.0)})
    signature = type("Ask", (dse.Signature,), {
        "__doc__": "Answer.", "__annotations__": {"question": str, "answer": str}, "tools": made.tools,
        "question": dse.InputField(), "answer": dse.OutputField()})  # fmt: skip
    lm = resolve_model(engine, prices=prices)
    plan = dse.Program(signature, mode, lm=lm).plan
    allow = plan.allow if case.allow is None else case.allow
    plan = plan.model_copy(update={"allow": allow, "limits": dse.Limits(**case.limits)})
    toolbox = dse.Toolbox(made.tools, rules=case.rules)
    program = dse.Program(signature, plan, lm=lm, toolbox=toolbox, approve=case.approve)
    run = program.new_run({"question": "?"}, run_id="the-run", seed=1)
    error = None
    try:
        receipt = run_sync(lambda: program.execute(run)).receipt
    except dse.DseError as exc:
        error, receipt = exc, exc.details["receipt"]
    return Ran(made, error, dict(receipt), list(run.journal.entries), list(engine.requests), told(mode, engine.requests))


def told(mode: str, requests: list[Any]) -> list[Any]:
    if mode == "code":
        text = requests[-1]["messages"][-1]["content"]
        return [tuple(json.loads(line)) for line in text.split("\n") if re.match(r'\["(ok|fault)", ', line)]
    said = []
    for message in requests[-1]["messages"]:
        if message["role"] == "tool":
            try:
                value = json.loads(message["content"])
            except ValueError:
                value = message["content"]
            fault = isinstance(value, dict) and value.get("error")
            said.append(("fault", fault["message"]) if fault else ("ok", value))
    return said


# --- tools


def tool(fn: Any = None, **options: Any) -> Any:
    return lambda f: dse.tool(f, **{"effect": "read", **options})


def noted(**options: Any) -> Callable[[], Made]:
    """One tool ``act(n)`` that notes its calls."""

    def make() -> Made:
        made = Made([])

        async def act(n: int = 0) -> int:
            """Act."""
            made.notes.append(n)
            return n

        made.tools.append(dse.tool(act, **{"effect": "read", **options}))
        return made

    return make


def typed() -> Made:
    made = Made([])

    def act(part: Part, kind: Literal["a", "b"] = "a", factor: float = 1.0) -> str:
        """Act."""
        made.notes.append(part.name)
        return f"{part.name} {kind} {part.amount * factor:g}"

    made.tools.append(dse.tool(act, effect="pure"))
    return made


def two() -> Made:
    made = noted()()

    async def other(n: int = 0) -> int:
        """Other."""
        made.notes.append(("other", n))
        return n

    made.tools.append(dse.tool(other, effect="read"))
    return made


def failing(kind: str, **options: Any) -> Callable[[], Made]:
    """One tool that fails or lies in some way."""

    def make() -> Made:
        made, never = Made([]), threading.Event()

        async def act(n: int = 0) -> int:
            """Act."""
            made.notes.append(n)
            if kind == "hang":
                await asyncio.Event().wait()
            if kind == "raise":
                raise KeyError("/srv/app/x.py said no")
            if kind == "declared":
                raise dse.errors.ToolFailed("nothing was done")
            return "many" if kind == "wrong" else n  # type: ignore[return-value]

        def blocking(n: int = 0) -> int:
            """Act."""
            made.notes.append(n)
            never.wait(0.5)
            return n

        def text(n: int = 0) -> str:
            """Act."""
            return "x" * n

        fn = {"block": blocking, "text": text}.get(kind, act)
        made.tools.append(dse.tool(fn, **{"effect": "read", "name": "act", **options}))
        return made

    return make


def concurrent(**kinds: Any) -> Callable[[], Made]:
    """Tools that note when they begin and end, with room for others in between."""

    def make() -> Made:
        made = Made([])

        def add(name: str, concurrency: Any) -> None:
            async def act(n: int = 0) -> int:
                """Act."""
                made.notes.append(("begin", name, n))
                for _ in range(20):
                    await asyncio.sleep(0)
                made.notes.append(("end", name, n))
                return n

            made.tools.append(dse.tool(act, effect="read", name=name, concurrency=concurrency))

        for name, concurrency in kinds.items():
            add(name, concurrency)
        return made

    return make


def overlaps(notes: list[Any]) -> int:
    """The most calls at the same time."""
    running = most = 0
    for what, _, _ in notes:
        running += 1 if what == "begin" else -1
        most = max(most, running)
    return most


def secret() -> Made:
    made = Made([])

    async def act(user: str, password: str) -> Login:
        """Log in."""
        if password == "wrong-secret-81":
            raise ValueError(f"bad password {password}")
        return Login(user=user, token="token-secret-17")

    async def whole(n: int = 0) -> str:
        """All of it."""
        return "result-secret-99"

    made.tools.append(dse.tool(act, effect="read", sensitive=["password", "token"]))
    made.tools.append(dse.tool(whole, effect="read", sensitive=["return"]))
    return made


def act(*many: Any) -> Calls:
    return [("act", one if isinstance(one, (dict, str)) else {"n": one}) for one in many]


OK = ("ok", None)
CASES = [
    Case("allowed", "name", noted(), [act(1)], [OK], notes=[1], value=1),
    Case("unknown name", "name", noted(), [[("unknown", {"n": 1})], act(2)], [("refused", "DSE201"), OK], notes=[2],
         told="name 'unknown' is not defined. Available: act."),
    Case("narrowed name", "name", two, [[("other", {"n": 1})], act(2)], [("refused", "DSE201"), OK], allow=("act",), notes=[2],
         told="name 'other' is not defined. Available: act."),
    Case("nested model", "parameters", typed, [act({"part": {"name": "x", "amount": 2}, "kind": "b", "factor": 2})], [OK],
         value="x b 4", notes=["x"]),
    Case("wrong type", "parameters", noted(), [act({"n": "one"})], [("refused", "DSE202")], notes=[],
         told="Invalid arguments for act(): n: Input should be a valid integer"),
    Case("missing", "parameters", typed, [act({})], [("refused", "DSE202")], notes=[], told="part: Field required"),
    Case("extra", "parameters", noted(), [act({"n": 1, "m": 2})], [("refused", "DSE202")], notes=[], told="m: Extra inputs"),
    Case("many extra", "parameters", noted(), [act({f"n{i}": 1 for i in range(50)})], [("refused", "DSE202")], notes=[]),
    Case("wrong enum", "parameters", typed, [act({"part": {"name": "x", "amount": 2}, "kind": "c"})], [("refused", "DSE202")],
         notes=[], told="kind: Input should be 'a' or 'b'"),
    Case("nested wrong", "parameters", typed, [act({"part": {"name": "x", "amount": -1}})], [("refused", "DSE202")], notes=[],
         told="part.amount: Input should be greater than or equal to 0"),
    Case("nested missing", "parameters", typed, [act({"part": {"name": "x"}})], [("refused", "DSE202")], notes=[],
         told="part.amount: Field required"),
    Case("nan", "parameters", typed, [act('{"part": {"name": "x", "amount": 1}, "factor": NaN}')], [("refused", "DSE202")],
         notes=[], worded_by_mode=True),
    Case("infinity", "parameters", typed, [act('{"part": {"name": "x", "amount": 1}, "factor": -Infinity}')],
         [("refused", "DSE202")], notes=[], worded_by_mode=True),
    Case("refused calls count", "parameters", noted(), [act({}, {"n": "x"}, {"m": 1})],
         [OK, ("refused", "DSE202"), ("refused", "DSE202")], limits={"tool_calls": 3}),
    Case("pure", "effect", noted(effect="pure"), [act(1)], [OK]),
    Case("write", "effect", noted(effect="write"), [act(1, 2)], [OK, OK], effects="completed [act#1, act#2]"),
    Case("write that fails", "effect", failing("raise", effect="write"), [act(1)], [("fault", "DSE209")],
         effects="unknown [act#1]", told="it is not known whether it took effect"),
    Case("write that says nothing was done", "effect", failing("declared", effect="write"), [act(1)], [("fault", "DSE209")],
         told="nothing was done"),
    Case("read that fails", "effect", failing("raise"), [act(1)], [("fault", "DSE209")], told="act failed: KeyError: <path>"),
    Case("approval granted", "approval", noted(approval="always"), [act(1)], [OK], approve=lambda request: True, notes=[1]),
    Case("approval denied", "approval", noted(approval="always"), [act(1)], [("refused", "DSE205")], notes=[],
         approve=lambda request: (False, "too much, see /etc/rules"), told="act was denied: too much, see <path>. Do not try"),
    Case("approval denied for one", "approval", noted(approval="always", effect="write"), [act(1, 2, 3)],
         [OK, ("refused", "DSE205"), OK], approve=lambda request: request.arguments["n"] != 2, notes=[1, 3],
         effects="completed [act#1, act#3]"),
    Case("approval when", "approval", noted(approval=dse.Approval(when={"n": {"gt": 5}})), [act(1, 9)], [OK, ("refused", "DSE205")],
         approve=lambda request: False, notes=[1]),
    Case("approval by rule", "approval", noted(approval=dse.Approval(rule="big", version="1")), [act(1, 9)],
         [OK, ("refused", "DSE205")], approve=lambda request: False, rules={"big@1": lambda given: given["n"] > 5}, notes=[1]),
    Case("approval by a rule that raises", "approval", noted(approval=dse.Approval(rule="big", version="1")), [act(1)],
         [("refused", "DSE205")], approve=lambda request: False, rules={"big@1": lambda given: 1 / 0}, notes=[]),
    Case("approval by a rule that is missing", "approval", noted(approval=dse.Approval(rule="big", version="1")), [act(1)],
         [("refused", "DSE205")], approve=lambda request: False, notes=[]),
    Case("approval by nobody", "approval", noted(approval="always"), [act(1)], [("refused", "DSE310")], error="DSE310", notes=[]),
    Case("approver that fails", "approval", noted(approval="always"), [act(1)], [("refused", "DSE400")], error="DSE400", notes=[],
         approve=lambda request: 1 / 0),
    Case("parallel", "concurrency", concurrent(act="parallel"), [act(1, 2, 3)], [OK] * 3),
    Case("ordered", "concurrency", concurrent(act="ordered"), [act(3, 1, 2)], [OK] * 3),
    Case("exclusive", "concurrency", concurrent(act="parallel", alone="exclusive"),
         [[*act(1), ("alone", {"n": 2}), *act(3)]], [OK] * 3),
    Case("max_calls", "max_calls", noted(max_calls=2), [act(1), act(2), act(3)], [OK, OK, ("refused", "DSE203")], notes=[1, 2],
         told="act may be called 2 times in one run, and was"),
    Case("calls_per_tool", "max_calls", noted(max_calls=5), [act(1, 2)], [OK, ("refused", "DSE203")], notes=[1],
         limits={"calls_per_tool": {"act": 1}}, told="act may be called 1 times"),
    Case("tool_calls abort", "max_calls", noted(), [act(1), act(2), act(3)], [OK, OK, ("refused", "DSE301")], error="DSE301",
         limits={"tool_calls": 2}, notes=[1, 2]),
    Case("tool_calls fail_step", "max_calls", noted(), [act(1), act(2), act(3)], [OK, OK, ("refused", "DSE203")], notes=[1, 2],
         limits={"tool_calls": 2, "outcomes": {"tool_calls": "fail_step"}}, told="The run reached its limit of tool_calls"),
    Case("rate", "rate", noted(rate=(2, 1000.0), timeout_s=5), [act(1), act(2), act(3)], [OK, OK, ("refused", "DSE204")],
         notes=[1, 2], told="act is limited to 2 calls in 1000 s"),
    Case("cost abort", "cost_usd", noted(cost_usd=0.4), [act(1), act(2), act(3)], [OK, OK, ("refused", "DSE301")], error="DSE301",
         limits={"cost_usd": 1.0}, notes=[1, 2]),
    Case("cost fail_step", "cost_usd", noted(cost_usd=0.4), [act(1), act(2), act(3)], [OK, OK, ("refused", "DSE203")], notes=[1, 2],
         limits={"cost_usd": 1.0, "outcomes": {"cost_usd": "fail_step"}}, told="The run reached its limit of cost_usd"),
    Case("timeout async", "timeout_s", failing("hang", timeout_s=0.05), [act(1)], [("fault", "DSE206")],
         told="act did not finish within 0.05 s"),
    Case("timeout sync", "timeout_s", failing("block", timeout_s=0.05), [act(1)], [("fault", "DSE206")],
         told="act did not finish within 0.05 s"),
    Case("timeout write", "timeout_s", failing("hang", timeout_s=0.05, effect="write"), [act(1)], [("fault", "DSE206")],
         effects="unknown [act#1]", told="it is not known whether it took effect"),
    Case("timeout sync write", "timeout_s", failing("block", timeout_s=0.05, effect="write"), [act(1)], [("fault", "DSE206")],
         effects="unknown [act#1]", told="it is not known whether it took effect"),
    Case("max_output_bytes", "max_output_bytes", failing("text", max_output_bytes=100), [act(98), act(99)], [OK, ("fault", "DSE208")],
         told="act returned 101 bytes; 100 are allowed"),
    Case("max_output_bytes write", "max_output_bytes", failing("text", max_output_bytes=100, effect="write"), [act(99)],
         [("fault", "DSE208")], effects="completed [act#1]", told="the call itself took effect"),
    Case("return contract", "returns", failing("wrong"), [act(1)], [("fault", "DSE207")],
         told="act returned something else than its contract promises: value: Input should be a valid integer"),
    Case("return contract write", "returns", failing("wrong", effect="write"), [act(1)], [("fault", "DSE207")],
         effects="completed [act#1]", told="the call itself took effect"),
    Case("sensitive", "sensitive", secret, [[("act", {"user": "ann", "password": "open-secret-42"}), ("whole", {})],
                                            [("act", {"user": "bob", "password": "wrong-secret-81"})]],
         [OK, OK, ("fault", "DSE209")]),
    Case("idempotent write", "idempotent", noted(effect="write", idempotent=True), [act(1, 2)], [OK, OK],
         effects="completed [act#1, act#2]"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_modes_do_the_same(case: Case) -> None:
    a, b = (execute(case, mode) for mode in MODES)
    for ran in (a, b):
        assert [(one["outcome"], one.get("fault")) for one in ran.receipt["calls"]] == case.expect
        assert ran.receipt["effects"] == case.effects
        assert (ran.error.code if ran.error else None) == case.error, str(ran.error)
        if case.notes is not None:
            assert ran.made.notes == case.notes
        faults = [text for kind, text in ran.told if kind == "fault"]
        if case.told:
            assert case.told in faults[-1]
        if case.value is not ...:
            assert ran.told[0] == ("ok", case.value)
        assert ran.receipt["usage"]["tool_calls"] == sum(1 for one in case.expect if one[1] not in ("DSE301",)) or case.error or (
            case.limits.get("outcomes"))  # fmt: skip
    if case.worded_by_mode:
        assert [c["fault"] for c in a.calls] == [c["fault"] for c in b.calls]
        assert [(e["kind"], e["tool"], e.get("fault")) for e in a.entries] == [(e["kind"], e["tool"], e.get("fault")) for e in b.entries]
        return
    assert a.calls == b.calls and a.entries == b.entries
    if case.error is None:  # otherwise nobody is told any more
        assert a.told == b.told and len(a.told) == len(case.expect)
    assert a.receipt["usage"]["tool_cost_usd"] == b.receipt["usage"]["tool_cost_usd"]
    assert a.receipt["usage"]["calls_per_tool"] == b.receipt["usage"]["calls_per_tool"]
    assert a.receipt["limit"] == b.receipt["limit"] and a.receipt["limit_outcome"] == b.receipt["limit_outcome"]


@pytest.mark.parametrize("mode", MODES)
def test_concurrency_is_what_it_says(mode: str) -> None:
    ran = {case.name: execute(case, mode).made.notes for case in CASES if case.covers == "concurrency"}
    assert overlaps(ran["parallel"]) == 3
    assert [(what, n) for what, _, n in ran["ordered"]] == [(w, n) for n in (3, 1, 2) for w in ("begin", "end")]
    alone = [what for what in ran["exclusive"]]
    at = alone.index(("begin", "alone", 2))
    assert alone == [("begin", "act", 1), ("end", "act", 1), *alone[at : at + 2], ("begin", "act", 3), ("end", "act", 3)]


@pytest.mark.parametrize("effect, idempotent, again", [("read", None, True), ("pure", None, True), ("write", True, True),
                                                       ("write", False, False)])  # fmt: skip
def test_a_run_starts_again_only_while_its_effects_are_repeatable(effect: str, idempotent: Any, again: bool) -> None:
    case = Case("retry", "effect", noted(effect=effect, idempotent=idempotent), [act(1), act(2)], [],
                limits={"tool_calls": 1, "outcomes": {"tool_calls": "retry"}})  # fmt: skip
    a, b = (execute(case, mode) for mode in MODES)
    for ran in (a, b):
        assert ran.made.notes == [1]
        assert (ran.receipt["attempts"], ran.error is None) == ((2, True) if again else (1, False))
        assert ran.receipt["limit_outcome"] == (None if again else "fail_step")
        assert ran.receipt["effects"] == ("completed [act#1]" if effect == "write" else "none")
    assert a.calls == b.calls and a.entries == b.entries


@pytest.mark.parametrize("mode", MODES)
def test_idempotency_keys_are_there_stable_and_different(mode: str) -> None:
    case = Case("keys", "idempotent", noted(effect="write"), [act(1, 1)], [OK, OK])
    first, again = execute(case, mode), execute(case, mode)
    keys = [one["idempotency_key"] for one in first.receipt["calls"]]
    assert len(set(keys)) == 2 and all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)
    assert keys == [one["idempotency_key"] for one in again.receipt["calls"]]  # the same run and call
    intents = [e["idempotency_key"] for e in first.journal if e["kind"] == "tool_intent"]
    assert intents == keys


SECRETS = ("open-secret-42", "wrong-secret-81", "token-secret-17", "result-secret-99")


@pytest.mark.parametrize("mode", MODES)
def test_sensitive_values_leave_in_no_way(mode: str, tmp_path: Any) -> None:
    case = next(case for case in CASES if case.name == "sensitive")
    made = case.make()
    engine = native(case.rounds) if mode == "tool_call" else scripted(case.rounds)
    signature = type("Ask", (dse.Signature,), {
        "__doc__": "Answer.", "__annotations__": {"question": str, "answer": str}, "tools": made.tools,
        "question": dse.InputField(), "answer": dse.OutputField()})  # fmt: skip
    store = dse.Store(tmp_path / "runs.db")
    try:
        program = dse.Program(signature, mode, lm=engine, store=store)
        events = list(program.stream(question="?"))
        receipt, journal = store.run(events[-1]["run_id"])
    finally:
        store.close()
    shown = json.dumps([event for event in events if event["kind"] != "result"])
    for text in (shown, json.dumps(events[-1]["prediction"].receipt), json.dumps(receipt), json.dumps(journal)):
        assert [one for one in SECRETS if one in text] == []
    asked = json.dumps(engine.requests)
    assert "token-secret-17" in asked  # the model itself works with what the tool gave
    calls = {one["call_id"]: one for one in receipt["calls"]}
    assert calls[1]["arguments"] == {"user": "ann", "password": "[redacted]"}
    outcomes = {e["call_id"]: e["result"] for e in journal if e["kind"] == "tool_outcome"}
    assert outcomes[1] == {"user": "ann", "token": "[redacted]"} and outcomes[2] == "[redacted]"


def test_every_field_of_a_contract_has_a_case() -> None:
    fields = set(ToolContract.model_fields) - {"description"}
    assert {case.covers for case in CASES} == fields
    effects = {"pure", "read", "write"}
    assert set(get_args(ToolContract.model_fields["effect"].annotation)) == effects
