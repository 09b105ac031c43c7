"""Every field of ``dse.Limits`` is enforced, with each of its outcomes.

The limits of the interpreter (``SANDBOX`` below) are tested with code mode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import dse
from dse.errors import (
    InvalidValue,
    LimitExceeded,
    ModelError,
    ModelUnavailable,
    OutputInvalid,
    PlanError,
    RunFailed,
    ToolFailed,
)
from dse.limits import LimitName
from dse.models.lm import Completion, Usage
from dse.strategies.base import seed_plan
from dse.testing.scripted import ScriptedModel, call, say

SANDBOX = {"interpreter_s", "memory_bytes", "recursion", "suspensions", "print_bytes", "check_errors", "runtime_errors"}
COVERED: set[str] = set()


def covers(*fields: str) -> Callable[[Any], Any]:
    COVERED.update(fields)
    return lambda test: test


@dse.tool(effect="read")
def look(n: int = 0) -> str:
    """Look."""
    return f"seen {n}"


@dse.tool(effect="read", cost_usd=0.5)
def dear(n: int = 0) -> str:
    """Look closely."""
    return f"seen {n}"


@dse.tool(effect="write")
def put(n: int = 0) -> str:
    """Write."""
    return "done"


@dse.tool(effect="write", idempotent=True)
def set_to(n: int = 0) -> str:
    """Write the same again."""
    return "done"


class Gate:
    """What `hang` waits for: nothing, while closed."""

    def __init__(self) -> None:
        self.closed = 1  # that many calls hang

    async def pass_or_hang(self) -> None:
        self.closed -= 1
        if self.closed >= 0:
            await asyncio.Event().wait()


@dse.tool(effect="read")
async def hang(ctx: dse.ToolContext[Gate]) -> str:
    """Wait."""
    await ctx.deps.pass_or_hang()
    return "passed"


@dse.tool(effect="write")
async def hang_writing(ctx: dse.ToolContext[Gate]) -> str:
    """Wait and write."""
    await ctx.deps.pass_or_hang()
    return "passed"


class Ask(dse.Signature):
    """Answer."""

    question: str = dse.InputField()
    answer: str = dse.OutputField()
    tools = [look, dear, put, set_to, hang, hang_writing]


SUBMIT = call(("submit", {"answer": "yes"}))
BIG = call(("submit", {"answer": "x" * 500}))


def priced(reply: Completion, tokens: int = 10, cost_usd: float | None = None) -> Completion:
    from dataclasses import replace

    return replace(reply, usage=Usage(tokens, tokens, "exact"), cost_usd=cost_usd,
                   cost_source="unknown" if cost_usd is None else "exact")  # fmt: skip


class Case:
    """A limit, the replies that hit it once, and whether hitting it is a step that can fail alone."""

    def __init__(
        self, name: str, limits: dict[str, Any], hit: list[Any], *, step: bool = False, after: Any = SUBMIT
    ) -> None:
        self.name, self.limits, self.hit, self.step, self.after = name, limits, hit, step, after


CASES = [
    Case("active_s", {"active_s": 0.05}, [call(("hang", {}))]),
    Case("model_calls", {"model_calls": 2}, [call(("look", {})), call(("look", {}))]),
    Case("tool_calls", {"tool_calls": 1}, [call(("look", {}), ("look", {"n": 1}))], step=True),
    Case("tokens", {"tokens": 100}, [priced(call(("look", {})), tokens=60)], after=priced(SUBMIT)),
    Case("cost_usd", {"cost_usd": 0.7}, [priced(call(("dear", {}), ("dear", {"n": 1})), cost_usd=0.0)], step=True,
         after=priced(SUBMIT, cost_usd=0.0)),
    Case("output_bytes", {"output_bytes": 100}, [BIG], step=True),
    Case("context", {}, [LimitExceeded("too long", limit="context")]),
]  # fmt: skip
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


class Ran:
    def __init__(
        self, replies: list[Any], limits: dict[str, Any], *, gate: Gate | None = None, mode: str = "tool_call"
    ) -> None:
        self.model = ScriptedModel(replies)
        self.program = dse.Program(Ask, seed_plan(Ask.spec(), mode, limits=dse.Limits(**limits)), lm=self.model,
                                   deps=gate or Gate())  # fmt: skip
        self.run = self.program.new_run({"question": "?"})
        self.error: RunFailed | None = None
        self.prediction: Any = None
        try:
            self.prediction = asyncio.run(asyncio.wait_for(self.program.execute(self.run), 30))
        except RunFailed as exc:
            self.error = exc
        self.receipt = self.prediction.receipt if self.prediction else self.error.details["receipt"]  # type: ignore[union-attr]


@cases
def test_abort_ends_the_run_at_once(case: Case) -> None:
    COVERED.add(case.name)
    ran = Ran([*case.hit, case.after], {**case.limits, "outcomes": {case.name: "abort"}})
    assert isinstance(ran.error, LimitExceeded)
    assert ran.error.details["limit"] == case.name
    receipt = ran.receipt
    assert (receipt["outcome"], receipt["limit"], receipt["limit_outcome"], receipt["attempts"]) == (
        "failed",
        case.name,
        "abort",
        1,
    )
    assert len(ran.model.requests) == len(case.hit)  # nothing was asked after it


@cases
def test_retry_starts_again_from_the_inputs_with_fresh_limits(case: Case) -> None:
    ran = Ran([*case.hit, case.after], {**case.limits, "outcomes": {case.name: "retry"}})
    assert ran.error is None and ran.prediction.answer == "yes"
    assert ran.receipt["attempts"] == 2
    first, again = ran.model.requests[0], ran.model.requests[len(case.hit)]
    assert again == first  # from the inputs, not from where it was
    occurrences = [
        e["occurrence"] for e in ran.run.journal.entries if e["kind"] == "model_call" and not e["occurrence"] == 0
    ]
    assert occurrences == [1]  # but another question to a cassette
    assert [e["limit"] for e in ran.run.journal.entries if e["kind"] == "retry"] == [case.name]
    assert ran.receipt["usage"]["model_calls"] == len(ran.model.requests)  # totals count both attempts


@cases
def test_retries_are_bounded_and_then_the_run_has_failed(case: Case) -> None:
    gate = Gate()
    gate.closed = 10
    ran = Ran([*case.hit] * 3, {**case.limits, "outcomes": {case.name: "retry"}, "max_retries": 2}, gate=gate)
    assert isinstance(ran.error, LimitExceeded)
    assert (ran.receipt["attempts"], ran.receipt["limit_outcome"]) == (3, "fail_step")
    none = Ran([*case.hit], {**case.limits, "outcomes": {case.name: "retry"}, "max_retries": 0})
    assert (none.receipt["attempts"], none.receipt["limit_outcome"]) == (1, "fail_step")


@cases
@pytest.mark.parametrize("outcome", ["abort", "retry", "fail_step"])
def test_a_run_that_reached_a_limit_can_be_replayed(case: Case, outcome: str, tmp_path: Path) -> None:
    plan = seed_plan(Ask.spec(), "tool_call", limits=dse.Limits(**case.limits, outcomes={case.name: outcome}))
    program = dse.Program(Ask, plan, lm=ScriptedModel([*case.hit * 2, *[case.after] * 3]), deps=Gate(), store=tmp_path / "runs.db")
    made = _ending(lambda: program(question="?"))
    again = _ending(lambda: program.replay(made["run_id"]))
    steady = ("outcome", "limit", "limit_outcome", "attempts", "effects", "outputs", "transcript_hash", "error")
    assert {name: again[name] for name in steady} == {name: made[name] for name in steady}
    if case.name == "active_s":
        return  # where in the call of a model the time ran out is not recorded
    counted = ("model_calls", "tool_calls", "input_tokens", "output_tokens", "tool_cost_usd", "cost_usd")
    assert {name: again["usage"][name] for name in counted} == {name: made["usage"][name] for name in counted}


@cases
def test_a_run_that_stops_after_a_retry_goes_on_along_both_attempts(case: Case, tmp_path: Path) -> None:
    limits = {name: 1.0 if name == "active_s" else bound for name, bound in case.limits.items()}  # time to open a store
    plan = seed_plan(Ask.spec(), "tool_call", limits=dse.Limits(**limits, outcomes={case.name: "retry"}))
    replies = [*case.hit, ModelUnavailable("down"), case.after]
    program = dse.Program(Ask, plan, lm=ScriptedModel(replies), deps=Gate(), store=tmp_path / "runs.db")
    with pytest.raises(ModelUnavailable) as caught:
        program(question="?")
    resumed = program.resume(caught.value.details["run_id"])
    assert resumed.answer == "yes" and resumed.receipt["attempts"] == 2


def test_direct_and_code_runs_out_of_model_calls_can_be_replayed(tmp_path: Path) -> None:
    for mode in ("direct", "code"):
        plan = seed_plan(Ask.spec(), mode, limits=dse.Limits(model_calls=1))
        program = dse.Program(Ask, plan, lm=ScriptedModel([say("nonsense")] * 2), deps=Gate(), store=tmp_path / f"{mode}.db")
        made = _ending(lambda program=program: program(question="?"))
        again = _ending(lambda program=program, made=made: program.replay(made["run_id"]))
        assert made["limit"] == again["limit"] == "model_calls" and made["transcript_hash"] == again["transcript_hash"]


def _ending(run: Callable[[], Any]) -> dict[str, Any]:
    try:
        receipt: dict[str, Any] = run().receipt
    except RunFailed as exc:
        receipt = exc.details["receipt"]
    return receipt


@cases
def test_fail_step_goes_on_where_there_is_a_step(case: Case) -> None:
    limits = {**case.limits, "outcomes": {case.name: "fail_step"}}
    ran = Ran([*case.hit, case.after], limits)
    if case.step:
        assert ran.error is None and ran.prediction.answer == "yes"
        assert ran.receipt["attempts"] == 1
        told = ran.model.requests[-1]["messages"][-1]["content"]
        assert "limit" in told or "allowed" in told
    else:
        assert isinstance(ran.error, LimitExceeded)
        assert (ran.receipt["limit"], ran.receipt["limit_outcome"]) == (case.name, "fail_step")


@cases
@pytest.mark.parametrize(("tool", "attempts"), [("put", 1), ("set_to", 2)])
def test_retry_only_while_effects_are_repeatable(case: Case, tool: str, attempts: int) -> None:
    write = call((tool, {}))
    if case.name in ("tokens", "cost_usd"):
        write = priced(write, tokens=1, cost_usd=0.0)
    limits = {**case.limits, "outcomes": {case.name: "retry"}}
    for name in ("model_calls", "tool_calls"):
        if name in limits:
            limits[name] += 1
    ran = Ran([write, *case.hit, case.after], limits)
    assert ran.receipt["attempts"] == attempts
    if attempts == 1:
        assert isinstance(ran.error, LimitExceeded)
        assert (ran.receipt["limit_outcome"], ran.receipt["effects"]) == ("fail_step", "completed [put#1]")
    else:
        assert ran.error is None


def test_no_retry_after_a_write_of_unknown_effect() -> None:
    ran = Ran([call(("hang_writing", {})), SUBMIT], {"active_s": 0.05, "outcomes": {"active_s": "retry"}})
    assert isinstance(ran.error, LimitExceeded)
    assert ran.receipt["attempts"] == 1
    assert (ran.receipt["limit_outcome"], ran.receipt["effects"]) == ("fail_step", "unknown [hang_writing#1]")


def test_a_failed_run_reports_its_effects() -> None:
    ran = Ran([call(("put", {}))], {"model_calls": 1})
    assert ran.error is not None
    assert ran.error.details["effects"] == ran.receipt["effects"] == "completed [put#1]"


def test_defaults() -> None:
    limits = dse.Limits()
    assert {name: limits.outcome(name) for name in get_args(LimitName)} == {
        "active_s": "abort", "interpreter_s": "fail_step", "memory_bytes": "fail_step", "recursion": "fail_step",
        "suspensions": "fail_step", "model_calls": "abort", "tool_calls": "abort", "tokens": "abort", "cost_usd": "abort",
        "output_bytes": "abort", "context": "abort",
    }  # fmt: skip
    assert dse.Limits(outcomes={"tokens": "retry"}).outcome("tokens") == "retry"


# --- what single limits count -------------------------------------------------------------------------


@covers("tool_calls")
def test_tool_calls_count_all_tools_and_refused_calls() -> None:
    ran = Ran([call(("look", {}), ("nope", {})), call(("dear", {})), SUBMIT], {"tool_calls": 2})
    assert isinstance(ran.error, LimitExceeded) and ran.receipt["usage"]["tool_calls"] == 2
    assert ran.receipt["usage"]["calls_per_tool"] == {"look": 1}
    assert Ran([call(("look", {})), SUBMIT], {"tool_calls": 1}).error is None
    assert Ran([call(("look", {})), SUBMIT], {"tool_calls": 0}).error is not None


@covers("calls_per_tool")
def test_calls_per_tool_are_a_fault_the_program_sees() -> None:
    ran = Ran([call(("look", {}), ("look", {"n": 1}), ("dear", {})), SUBMIT], {"calls_per_tool": {"look": 1}})
    assert ran.error is None
    assert [(c["tool"], c["outcome"], c.get("fault")) for c in ran.receipt["calls"]] == [
        ("look", "ok", None), ("look", "refused", "DSE203"), ("dear", "ok", None)]  # fmt: skip
    assert Ran([call(("look", {})), SUBMIT], {"calls_per_tool": {"look": 0}}).receipt["calls"][0]["fault"] == "DSE203"


@covers("calls_per_tool")
def test_calls_per_tool_go_on_counting_over_retries() -> None:
    again = call(("look", {}))
    ran = Ran(
        [again, again, again, SUBMIT],
        {"model_calls": 2, "outcomes": {"model_calls": "retry"}, "calls_per_tool": {"look": 2}},
    )
    assert ran.error is None and ran.receipt["attempts"] == 2
    assert [c["outcome"] for c in ran.receipt["calls"]] == ["ok", "ok", "refused"]


@covers("calls_per_tool")
def test_a_bound_for_a_tool_that_does_not_exist_is_refused() -> None:
    plan = seed_plan(Ask.spec(), "tool_call", limits=dse.Limits(calls_per_tool={"loook": 1}))
    with pytest.raises(PlanError, match="loook"):
        dse.Program(Ask, plan, lm=ScriptedModel([]))
    with pytest.raises(InvalidValue):
        dse.Limits(calls_per_tool={"look": -1})


@covers("model_calls")
def test_model_calls_count_repairs() -> None:
    ran = Ran([say("no"), SUBMIT], {"model_calls": 1})
    assert isinstance(ran.error, LimitExceeded)
    assert isinstance(Ran([], {"model_calls": 0}).error, LimitExceeded)


@covers("tokens")
def test_tokens_are_checked_after_a_call_too() -> None:
    ran = Ran([priced(SUBMIT, tokens=60)], {"tokens": 100})  # the answer itself was too dear
    assert isinstance(ran.error, LimitExceeded)
    assert Ran([priced(SUBMIT, tokens=50)], {"tokens": 100}).error is None


class Uncounted(ScriptedModel):
    """A model that says nothing of its tokens."""

    async def complete(self, request: Any, **options: Any) -> Any:
        from dataclasses import replace

        return replace(await super().complete(request, **options), usage=Usage())


@covers("tokens")
def test_tokens_are_estimated_where_the_model_does_not_count() -> None:
    plan = seed_plan(Ask.spec(), "tool_call", limits=dse.Limits(tokens=50))
    with pytest.raises(LimitExceeded):
        dse.Program(Ask, plan, lm=Uncounted([SUBMIT]), deps=Gate())(question="?")
    free = dse.Program(Ask, "tool_call", lm=Uncounted([SUBMIT]), deps=Gate())(question="?")
    assert free.receipt["usage"]["usage_source"] == "unknown"


@covers("cost_usd")
def test_cost_of_models_and_tools_together() -> None:
    def costs(model_usd: float, limit: float) -> Ran:
        return Ran([priced(call(("dear", {})), cost_usd=model_usd), priced(SUBMIT, cost_usd=model_usd)], {"cost_usd": limit})

    assert costs(0.1, 0.75).error is None
    assert costs(0.1, 0.75).receipt["usage"]["cost_usd"] == pytest.approx(0.7)
    assert isinstance(costs(0.1, 0.65).error, LimitExceeded)  # the last completion goes over it
    assert isinstance(costs(0.1, 0.55).error, LimitExceeded)  # the tool would
    assert costs(0.1, 0.55).receipt["usage"]["tool_cost_usd"] == 0


@covers("cost_usd")
def test_a_cost_limit_needs_a_model_whose_cost_is_known() -> None:
    plan = seed_plan(Ask.spec(), "tool_call", limits=dse.Limits(cost_usd=5))
    with pytest.raises(ModelError, match="cannot be kept"):
        dse.Program(Ask, plan, lm=ScriptedModel([SUBMIT]), deps=Gate())(question="?")


@covers("output_bytes")
@pytest.mark.parametrize("mode", ["tool_call", "direct"])
def test_output_bytes_are_the_canonical_size(mode: str) -> None:
    def answer(text: str) -> Any:
        return (
            call(("submit", {"answer": text}))
            if mode == "tool_call"
            else say(f"[[ ## answer ## ]]\n{text}\n\n[[ ## completed ## ]]")
        )

    def ran(text: str, **more: Any) -> Ran:
        plan_mode = Ran([answer(text), answer("ok")], {"output_bytes": 20, **more}, mode=mode)
        return plan_mode

    assert ran("é" * 3).error is None  # {"answer":"ééé"} is 19 bytes
    assert isinstance(ran("é" * 4).error, LimitExceeded)
    assert ran("é" * 4, outcomes={"output_bytes": "fail_step"}).prediction.answer == "ok"


@covers("active_s")
def test_active_time_covers_the_model_as_well() -> None:
    async def never(request: Any) -> Any:
        await asyncio.Event().wait()

    plan = seed_plan(Ask.spec(), "direct", limits=dse.Limits(active_s=0.05))
    with pytest.raises(LimitExceeded) as info:
        dse.Program(Ask, plan, lm=ScriptedModel(never))(question="?")
    assert info.value.details["limit"] == "active_s"


@covers("active_s")
def test_a_timeout_of_something_else_is_not_taken_for_the_limit() -> None:
    def fails(request: Any) -> Any:
        raise TimeoutError("elsewhere")

    with pytest.raises(TimeoutError, match="elsewhere"):
        dse.Program(Ask, "direct", lm=ScriptedModel(fails))(question="?")


@covers("repairs")
@pytest.mark.parametrize("repairs", [0, 1, 2])
def test_repairs(repairs: int) -> None:
    ran = Ran([call(("submit", {}))] * 5, {"repairs": repairs})
    assert isinstance(ran.error, OutputInvalid)
    assert len(ran.model.requests) == repairs + 1


@covers("outcomes", "max_retries")
def test_outcomes_name_limits_and_known_outcomes() -> None:
    for bad in ({"tokenz": "abort"}, {"repairs": "retry"}, {"tokens": "explode"}):
        with pytest.raises(InvalidValue):
            dse.Limits(outcomes=bad)  # type: ignore[arg-type]


def test_faults_of_tools_are_no_limit_and_no_retry() -> None:
    @dse.tool(effect="read")
    def fails() -> str:
        raise ToolFailed("not today")

    class Plain(dse.Signature):
        """Answer."""

        question: str = dse.InputField()
        answer: str = dse.OutputField()
        tools = [fails]

    prediction = dse.Program(Plain, "tool_call", lm=ScriptedModel([call(("fails", {})), SUBMIT]))(question="?")
    assert prediction.receipt["attempts"] == 1


# --- lowering -----------------------------------------------------------------------------------------


LOWER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"active_s": 1}),
    ({}, {"model_calls": 0}),
    ({}, {"tokens": 5}),
    ({}, {"cost_usd": 0.1}),
    ({"tokens": 10}, {"tokens": 10}),
    ({}, {"calls_per_tool": {"look": 3}}),
    ({"calls_per_tool": {"look": 3}}, {"calls_per_tool": {"look": 2}}),
    ({}, {"outcomes": {"tool_calls": "fail_step"}}),
    ({"outcomes": {"tokens": "retry"}}, {"outcomes": {"tokens": "abort"}}),
    ({}, {"max_retries": 0}),
]
HIGHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"active_s": 301}),
    ({}, {"model_calls": 21}),
    ({"tokens": 5}, {"tokens": 6}),
    ({"tokens": 5}, {"tokens": None}),
    ({}, {"output_bytes": None}),
    ({}, {"active_s": float("nan")}),
    ({}, {"model_calls": "many"}),
    ({}, {"model_calls": -1}),
    ({"calls_per_tool": {"look": 3}}, {"calls_per_tool": {"look": 4}}),
    ({}, {"calls_per_tool": 3}),
    ({}, {"outcomes": {"tokens": "retry"}}),
    ({}, {"max_retries": 2}),
    ({}, {"nonsense": 1}),
    ({}, {"outcome": 1}),
]


@pytest.mark.parametrize(("old", "change"), LOWER)
def test_limits_can_be_lowered(old: dict[str, Any], change: dict[str, Any]) -> None:
    lower = dse.Limits(**old).tightened(**change)
    for name, value in change.items():
        assert getattr(lower, name) == value


@pytest.mark.parametrize(("old", "change"), HIGHER)
def test_limits_cannot_be_raised(old: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        dse.Limits(**old).tightened(**change)


def test_bounds_per_tool_are_added_not_replaced() -> None:
    limits = dse.Limits(calls_per_tool={"look": 3}, outcomes={"tokens": "fail_step"})
    lower = limits.tightened(calls_per_tool={"dear": 1}, outcomes={"context": "fail_step"})
    assert lower.calls_per_tool == {"look": 3, "dear": 1}
    assert lower.outcomes == {"tokens": "fail_step", "context": "fail_step"}


def test_every_field_is_covered() -> None:
    # `context` is no number of ours: the model says when a conversation outgrew it.
    assert set(dse.Limits.model_fields) == (COVERED | {case.name for case in CASES} - {"context"} | SANDBOX) - {"context"}
    assert {case.name for case in CASES} | SANDBOX >= set(get_args(LimitName))
