"""What a compile will take, before it spends anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dse.errors import DseError, ModelUnavailable
from dse.statistics import minimum_detectable_effect

if TYPE_CHECKING:
    from dse.contracts.tool import ToolContract
    from dse.evaluation.dataset import Example
    from dse.evaluation.metric import Metric
    from dse.evaluation.task import Task
    from dse.limits import Limits
    from dse.models.lm import Completion
    from dse.models.prices import PriceTable
    from dse.plan import Plan

__all__ = ["Forecast", "JudgeForecast", "ModeForecast", "above_limit", "first_request_tokens", "judging", "most_of", "most_of_tools", "per_run"]

#: Model and tool calls of a run and tokens of an answer, where no earlier run of the mode says more.
_CALLS = {"direct": 1.0, "code": 1.5, "tool_call": 4.0}
_TOOL_CALLS = 3.0
_ANSWER_TOKENS = 300
_JUDGE_TOKENS = 1_000  # of one request to a judge and its answer
_DISCORDANCE = 0.34  # rows in which two candidates differ; measured on real pairs of programs


@dataclass(frozen=True)
class ModeForecast:
    """One run of a mode: expected and most model calls and tokens, and where the expectation comes from.

    ``most_tokens`` is None without ``Limits(tokens=)``: answers and what tools return may be of any size. ``tools_usd`` is what
    its tools cost by their contracts, and at most as often as its limits let it call them.
    """

    model_calls: float
    most_model_calls: float
    tokens: float
    most_tokens: float | None
    source: str
    tools_usd: float = 0.0
    most_tools_usd: float = 0.0


@dataclass(frozen=True)
class JudgeForecast:
    """One rollout's judgement, all repeats together: expected requests and tokens, and where the expectation comes from.

    ``recorded``: a replay answers them. Otherwise nothing but a `Budget` bounds them: a metric asks as often as it likes.
    """

    model: str
    repeats: int
    model_calls: float
    tokens: float
    recorded: bool
    source: str


@dataclass(frozen=True)
class Forecast:
    """The plan of a compile and what it is expected to take; nothing was spent for it.

    Costs are those of models and tools, and None where a model has no price. ``most_*`` are what it takes if every run uses all that its limits allow, or the budget
    where that is less; None where nothing bounds it, and `unbounded` says why. What proposers run and ask comes to that:
    only a `Budget` bounds it. So do requests that failed and are made again, where the budget does not count them, and of
    a run that reaches ``Limits(tokens=)`` what its last request took beyond that.

    Attributes:
        rows: per split. stages: rollouts per stage, expected and at most.
        mde: the smallest true gain in quality that the sealed rows find with 80% probability, if a third of the rows
            differ; None where they can find none.
        judge: of a judge metric; its requests are in the sums.
        tools_usd, most_tools_usd: of the costs, what tools take; at most: as often as the limits of all runs let them.
        notes: what else is known before.
        openings: how often any of these sealed rows were opened before in the store, under whatever name; the same compile
            that looks again with the same two programs adds nothing to it.
    """

    signature: str
    models: tuple[str, ...]
    modes: Mapping[str, ModeForecast]
    rows: Mapping[str, int]
    clusters: int
    candidates: int
    stages: Mapping[str, tuple[int, int]]
    model_calls: float
    most_model_calls: float | None
    tokens: float
    most_tokens: float | None
    usd: float | None
    most_usd: float | None
    mde: float | None
    openings: int
    recorded: bool
    proposers: tuple[str, ...] = ()
    budget: Mapping[str, Any] = field(default_factory=dict)
    judge: JudgeForecast | None = None
    unbounded: tuple[str, ...] = ()
    tools_usd: float = 0.0
    most_tools_usd: float | None = 0.0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        def money(value: float | None) -> str:
            return f"{value:.2f} USD" if value is not None else "unknown (no price)" if self.usd is None else "unbounded USD"

        def number(value: float | None, unit: str) -> str:
            return f"unbounded {unit}" if value is None else f"{value:.0f} {unit}"

        lines = [f"{self.signature}: {self.candidates} candidates before proposals, model {', '.join(self.models)}"]
        if self.proposers:
            lines.append(f"  proposals: {', '.join(self.proposers)} (what they take comes to all of this)")
        for stage, (expected, most) in self.stages.items():
            lines.append(f"  {stage}: about {expected} rollouts, at most {most}")
        for mode, one in self.modes.items():
            any_number = "any number" if one.most_tokens is None else f"{one.most_tokens:.0f}"
            lines.append(f"  {mode}: {one.model_calls:.1f} model calls and {one.tokens:.0f} tokens a run, at most "
                         f"{one.most_model_calls:.0f} and {any_number} ({one.source})"
                         + (f"; tools {one.tools_usd:.2f} USD, at most {one.most_tools_usd:.2f}" if one.most_tools_usd else ""))  # fmt: skip
        if self.judge is not None:
            judge, times = self.judge, f" in {self.judge.repeats} judgements" if self.judge.repeats > 1 else ""
            lines.append(f"  judge {judge.model}: {judge.model_calls:.1f} model calls and {judge.tokens:.0f} tokens a rollout{times} ("
                         + ("a recording answers them" if judge.recorded else judge.source) + ")")  # fmt: skip
        lines.append(f"  expected: {self.model_calls:.0f} model calls, {self.tokens:.0f} tokens, {money(self.usd)}"
                     + ("; a recording answers them" if self.recorded else ""))  # fmt: skip
        without = " (before proposals)" if self.proposers else ""
        lines.append(f"  at most{without}: {number(self.most_model_calls, 'model calls')}, {number(self.most_tokens, 'tokens')}, "
                     f"{money(self.most_usd)}")  # fmt: skip
        if self.most_tools_usd:
            lines.append(f"  of that tools: {self.tools_usd:.2f} USD expected, at most {self.most_tools_usd:.2f} USD")
        lines += [f"  no bound: {why}" for why in self.unbounded]
        lines += [f"  note: {note}" for note in self.notes]
        bounds = {name: bound for name, bound in self.budget.items() if bound is not None}
        lines.append(f"  budget: {', '.join(f'{v:g} {k}' for k, v in bounds.items()) or 'none'}")
        lines.append(f"  {self.clusters} independent sealed rows find "
                     + ("no gain" if self.mde is None else f"a gain of {self.mde:.2f} or more in quality with 80% probability")
                     + ", if a third of the rows differ")  # fmt: skip
        if self.openings:
            lines.append(f"  the holdout was opened {'once' if self.openings == 1 else f'{self.openings} times'} before: another "
                         f"look is tested at 0.05/{self.openings + 1}")  # fmt: skip
        return "\n".join(lines)


def detectable(rows: int, clusters: int) -> float | None:
    return minimum_detectable_effect(max(1, min(rows, clusters)), discordance=_DISCORDANCE)


class _Probe:
    """A model that is asked, and never answers: it gives the size of a first request without spending anything."""

    supports_tools = True

    def __init__(self, name: str, params: Mapping[str, Any], tools: bool) -> None:
        self.name, self.params, self.supports_tools = name, dict(params), tools
        self.request: Any = None

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        self.request = request
        raise ModelUnavailable("A forecast asks no model", kind="other")

    async def aclose(self) -> None:
        """Nothing to close."""


async def first_request_tokens(task: Task, plan: Plan, model: Any, example: Example) -> int:
    """Input tokens (estimated) of the first request of a run; 0 where none is made."""
    from dse.models.lm import estimate_usage
    from dse.program import Program

    probe = _Probe(model.name, model.params, model.supports_tools)
    program = Program(task.signature, plan, lm=probe, toolbox=task.toolbox, deps=task.deps)
    try:
        await program.execute(program.new_run(example.inputs, evaluation=True), deps=object() if task.deps is None else None)
    except DseError:
        pass
    return 0 if probe.request is None else estimate_usage(probe.request, "").input_tokens or 0


def most_of(plan: Plan) -> tuple[float, float | None]:
    """The most model calls and tokens that the limits of a plan let one run use."""
    from dse.strategies.base import needs_model

    if plan.stages:  # all may be tried, each under its own limits
        each = [most_of(stage) for stage in plan.stages]
        return math.fsum(calls for calls, _ in each), together([tokens for _, tokens in each])
    return _most(plan.limits) if needs_model(plan) else (0.0, 0.0)


def most_of_tools(plan: Plan, contracts: Mapping[str, ToolContract]) -> float:
    """The most USD that the limits of a plan let the tools of one run take, by the contracts of those that have a price."""
    if plan.stages:
        return math.fsum(most_of_tools(stage, contracts) for stage in plan.stages)
    return _most_of_tools(plan.limits, [contracts[name] for name in plan.allow if name in contracts])


def _most_of_tools(limits: Limits, contracts: Sequence[ToolContract]) -> float:
    tries = _tries(limits)
    left, usd = tries * limits.tool_calls, 0.0
    for contract in sorted(contracts, key=lambda one: -one.cost_usd):  # the dearest as often as may be, then the next
        bounds = [b for b in (contract.max_calls, limits.calls_per_tool.get(contract.name)) if b is not None]
        calls = min(left, *bounds) if bounds else left  # per run: they go on counting when it starts again
        usd, left = usd + calls * contract.cost_usd, left - calls
    return usd if limits.cost_usd is None else min(usd, tries * limits.cost_usd)


def _tries(limits: Limits) -> int:
    """How often a run may start, each time with limits as new."""
    return 1 + limits.max_retries if "retry" in limits.outcomes.values() else 1


def _most(limits: Limits) -> tuple[float, float | None]:
    tries = _tries(limits)
    return float(tries * limits.model_calls), None if limits.tokens is None else float(tries * limits.tokens)


def together(amounts: Sequence[float | None]) -> float | None:
    """The sum; None as soon as one of them is unbounded."""
    return None if None in amounts else math.fsum(one for one in amounts if one is not None)


def judging(metric: Metric, earlier: Sequence[Mapping[str, Any]]) -> JudgeForecast | None:
    """Of a judge metric, from the components of earlier scores, else from assumptions that the forecast names."""
    judge = metric.judge
    if judge is None:
        return None
    model, replayed = str(judge.identity["model"]), judge.replays
    known = [one for one in earlier if "judge_calls" in one]
    if not known:
        return JudgeForecast(model, judge.repeats, float(judge.repeats), float(judge.repeats * _JUDGE_TOKENS), replayed,
                             "assumed: one request a judgement, no earlier ones")  # fmt: skip
    n = len(known)
    tokens = math.fsum(one["judge_tokens_in"] + one["judge_tokens_out"] for one in known) / n
    return JudgeForecast(model, judge.repeats, math.fsum(one["judge_calls"] for one in known) / n, tokens, replayed,
                         f"as {n} earlier rollouts")  # fmt: skip


def per_run(mode: str, first: int, earlier: Sequence[Mapping[str, Any]], limits: Limits,
            contracts: Sequence[ToolContract] = ()) -> ModeForecast:  # fmt: skip
    """From earlier rollouts of the mode in the store, else from assumptions that the forecast names.

    Args:
        contracts: of the tools that may be called and have a price.
    """
    most_tools = _most_of_tools(limits, contracts)
    ceiling, most_tokens = _most(limits)
    if earlier:
        n = len(earlier)
        calls = math.fsum(r["model_calls"] for r in earlier) / n
        tokens = math.fsum((r["input_tokens"] or 0) + (r["output_tokens"] or 0) for r in earlier) / n
        tools = math.fsum(r.get("tools_usd", 0.0) for r in earlier) / n if contracts else 0.0
        source = f"as {n} earlier rollouts"
    else:
        tools = min(most_tools, _TOOL_CALLS * math.fsum(one.cost_usd for one in contracts) / max(1, len(contracts)))
        calls = min(_CALLS.get(mode, 2.0), ceiling)
        # Each round repeats what went before.
        tokens = calls * first + _ANSWER_TOKENS * calls * (calls + 1) / 2
        source = "assumed: no earlier rollouts"
    return ModeForecast(calls, ceiling, tokens, most_tokens, source, tools, max(tools, most_tools))


def above_limit(modes: Mapping[str, ModeForecast], task: Task, prices: PriceTable | None, models: Sequence[str]) -> str | None:
    """Which modes may go beyond ``max_cost`` in one run, as a note: nothing is left out before it runs for what it may cost."""
    bound, capped = task.objective.max_cost, task.limits.cost_usd
    rate = price(prices, models, 1.0, most=True)
    if bound is None or rate is None:
        return None
    over = []
    for mode, one in modes.items():
        most = math.inf if one.most_tokens is None else one.most_tokens * rate + one.most_tools_usd
        if capped is not None:
            most = min(most, _tries(task.limits) * capped)
        if most > bound:
            over.append(f"{mode} any amount" if math.isinf(most) else f"{mode} up to {most:.4g} USD")
    return (f"a run may cost more than Objective(max_cost) of {bound:g} USD: {', '.join(over)}; left out before it runs is only what "
            "costs more at the least") if over else None  # fmt: skip


def price(prices: PriceTable | None, models: Sequence[str], tokens: float, *, most: bool = False) -> float | None:
    """USD for tokens that are spread evenly over models, and of which four fifths go in; at most: all at the dearest rate.

    None where a model has no price.
    """
    pairs = [prices.models.get(model) for model in models] if prices is not None else []
    known = [pair for pair in pairs if pair is not None]
    if not known or len(known) < len(pairs):
        return None
    rate = max(map(max, known)) if most else math.fsum(0.8 * pair[0] + 0.2 * pair[1] for pair in known) / len(known)
    return tokens * rate / 1e6
