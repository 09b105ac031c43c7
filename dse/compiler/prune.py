"""Static pruning: which plans need not be measured and why, found without asking any model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dse.canonical import canonical_json
from dse.contracts.signature import SignatureSpec, validation_summary
from dse.contracts.stubs import function_schema
from dse.contracts.tool import ToolContract
from dse.contracts.toolbox import Toolbox
from dse.errors import DseError
from dse.limits import Limits
from dse.objective import Objective
from dse.plan import Plan
from dse.redaction import REDACTED, safe_message
from dse.strategies.base import check_plan, strategy

if TYPE_CHECKING:
    from dse.compiler.space import Candidate
    from dse.models.prices import PriceTable
    from dse.runtime.guest import Checked
    from dse.runtime.sandbox import Diagnostic

__all__ = ["MAX_INSTRUCTIONS", "check_script", "prune", "run_cost", "text_problem", "why_not"]

MAX_INSTRUCTIONS = 12_000  # characters
_CHARS_PER_TOKEN = 4  # as estimated everywhere
_LEAST_CHARS_PER_TOKEN = 8.0  # prose has fewer: for a bound that no tokeniser goes below
_MARKER = re.compile(r"\[\[ ## \w+ ## \]\]")


async def prune(
    found: Mapping[str, Candidate], incumbent: str, spec: SignatureSpec, toolbox: Toolbox, *, limits: Limits,
    required: Iterable[str], prices: PriceTable | None, objective: Objective,
) -> tuple[dict[str, Candidate], dict[str, str]]:  # fmt: skip
    """Who is left without those of whom it is certain, before any model call, that they cannot be used; and why the others
    are not.

    Args:
        incumbent: name of the one that stays in any case.
        limits, required: of the task.
    """
    kept, left_out = {}, {}
    for name, one in found.items():
        if name == incumbent:
            kept[name] = one
        elif missing := sorted(set(required) - set(one.plan.allow)):
            left_out[name] = f"it cannot call what the task requires: {', '.join(missing)}"
        elif (why := await why_not(spec, toolbox, one.plan, limits, prices, objective=objective, model=one.model)) is not None:
            left_out[name] = why
        else:
            kept[name] = one
    return kept, left_out


async def why_not(
    spec: SignatureSpec, toolbox: Toolbox, plan: Plan, limits: Limits, prices: PriceTable | None = None, *,
    objective: Objective | None = None, model: str | None = None, examples: Iterable[Mapping[str, Any]] = (),
) -> str | None:  # fmt: skip
    """Why `plan` can be left out before any model call, or None.

    Args:
        limits: of the task; a plan may have lower ones.
        prices, objective, model: with all three, a run that costs more than ``max_cost`` at the least is left out.
        examples: inputs of rows; the shortest makes the cheapest run.

    Raises:
        SandboxUnavailable: no worker could be had to check a script.
    """
    for number, stage in enumerate(_stages(plan), 1):
        reason = await why_not(spec, toolbox, stage, limits)
        if reason is not None:
            return f"stage {number}: {reason}"
    return _allow(spec, toolbox, plan) or _limits(plan, limits) or _prompts(spec, plan) or _cost(
        spec, toolbox, plan, prices, objective, model, examples) or await _script(spec, toolbox, plan) or await _demos(
        spec, toolbox, plan)  # fmt: skip


def text_problem(text: str, spec: SignatureSpec) -> str | None:
    """What is wrong with instructions, or None: they hold strategy, and nothing that is said elsewhere."""
    if not text.strip():
        return "the instructions are empty"
    if len(text) > MAX_INSTRUCTIONS:
        return f"the instructions have {len(text)} characters; {MAX_INSTRUCTIONS} are allowed"
    if (found := _MARKER.search(text)) is not None:
        return f"the instructions hold a marker of the reply format: {found[0]}"
    names = "|".join(map(re.escape, (*spec.tool_names, "submit")))
    if (found := re.search(rf"\bdef\s+({names})\s*\(", text)) is not None:
        return f"the instructions hold a stub of {found[1]!r}, which would go stale"
    if spec.tools and re.search(r'"parameters"\s*:\s*\{|"properties"\s*:\s*\{', text):
        return "the instructions hold a tool's schema, which would go stale"
    return None


def run_cost(spec: SignatureSpec, toolbox: Toolbox, plan: Plan, prices: PriceTable, model: str, *,
             input_chars: int = 0, output_tokens: int = 4_096) -> tuple[float, float] | None:  # fmt: skip
    """The least and the most that one run can cost in US dollars; None where the model has no price.

    The least: one request with the prompt and the shortest answer. The most: as many requests as the limits allow, each with
    the prompt, everything answered before, and `output_tokens`; a limit on cost or tokens bounds it as well. Costs of
    tools are in it by ``cost_usd`` of their contracts.
    """
    if stages := _stages(plan):  # the first may be enough, or all may be tried under the limits of each
        each = [run_cost(spec, toolbox, stage, prices, model, input_chars=input_chars, output_tokens=output_tokens) for stage in stages]
        known = [cost for cost in each if cost is not None]
        return (known[0][0], sum(most for _, most in known)) if len(known) == len(each) else None
    if not strategy(plan.mode).needs_model:
        return 0.0, _tools_cost(toolbox, plan)
    if model not in prices.models:
        return None
    dollars_in, dollars_out = (price / 1e6 for price in prices.models[model])
    chars = input_chars + sum(len(p.instructions) + len(canonical_json(list(p.demos))) * bool(p.demos) for p in plan.prompts.values())
    chars += sum(len(canonical_json(function_schema(toolbox[name].contract))) for name in plan.allow)
    least = chars / _LEAST_CHARS_PER_TOKEN * dollars_in + dollars_out
    calls = plan.limits.model_calls
    request = chars / _CHARS_PER_TOKEN * 2 + 1_000  # what the mode adds around it
    asked = calls * request + output_tokens * calls * (calls - 1) / 2
    most = asked * dollars_in + calls * output_tokens * dollars_out
    if plan.limits.tokens is not None:
        most = min(most, (plan.limits.tokens + request + output_tokens) * max(dollars_in, dollars_out))
    most += _tools_cost(toolbox, plan)
    if plan.limits.cost_usd is not None:  # checked after each request
        most = min(most, plan.limits.cost_usd + (asked / max(1, calls)) * dollars_in + output_tokens * dollars_out)
    return least, max(least, most)


def _tools_cost(toolbox: Toolbox, plan: Plan) -> float:
    return plan.limits.tool_calls * max((toolbox[name].contract.cost_usd for name in plan.allow), default=0.0)


async def check_script(code: str, spec: SignatureSpec, contracts: Mapping[str, ToolContract]) -> Checked:
    """Lint and gate check of a script of mode ``code`` that may use these tools.

    Raises:
        SandboxUnavailable
    """
    from dse.strategies.checking import checker_texts, lint_and_check

    return await lint_and_check(spec, code, contracts, lambda: checker_texts(spec, contracts.values()))


# --- what is looked at


def _stages(plan: Plan) -> tuple[Plan, ...]:
    return tuple(getattr(plan, "stages", ()))


def _allow(spec: SignatureSpec, toolbox: Toolbox, plan: Plan) -> str | None:
    try:
        check_plan(spec, plan)
        for name in plan.allow:
            toolbox[name]
    except DseError as exc:
        return f"{exc.what[0].lower()}{exc.what[1:]}" + (f": {exc.value}" if exc.value is not None else "")
    return None


def _limits(plan: Plan, limits: Limits) -> str | None:
    mine, given = plan.limits.model_dump(), limits.model_dump()
    try:
        limits.tightened(**{name: value for name, value in mine.items() if value != given[name]})
    except ValueError as exc:
        return f"the plan's limits are wider than the task's: {exc}"
    return "no model call is allowed" if strategy(plan.mode).needs_model and plan.limits.model_calls < 1 else None


def _prompts(spec: SignatureSpec, plan: Plan) -> str | None:
    for name, prompt in plan.prompts.items():
        problem = text_problem(prompt.instructions, spec)
        if problem is not None:
            return f"{name}: {problem}"
    for name, text in getattr(plan, "overlays", {}).items():
        if len(text) > MAX_INSTRUCTIONS:
            return f"the description of {name!r} has {len(text)} characters; {MAX_INSTRUCTIONS} are allowed"
    return None


def _cost(spec: SignatureSpec, toolbox: Toolbox, plan: Plan, prices: PriceTable | None, objective: Objective | None,
          model: str | None, examples: Iterable[Mapping[str, Any]]) -> str | None:  # fmt: skip
    bounds = {"Limits(cost_usd)": plan.limits.cost_usd, "Objective(max_cost)": objective.max_cost if objective else None}
    if prices is None or model is None or all(bound is None for bound in bounds.values()):
        return None
    # The least decides: what may stay below a limit must not be left out unmeasured. That the most is above one says the
    # forecast; the race and the gate compare what was paid. Without examples, inputs count nothing: a lower bound still.
    shortest = min((len(canonical_json(dict(inputs))) for inputs in examples), default=0)
    cost = run_cost(spec, toolbox, plan, prices, model, input_chars=shortest)
    for name, bound in bounds.items():
        if cost is not None and bound is not None and cost[0] > bound:
            return f"a run costs ${cost[0]:.4g} at the least, and {name} is ${bound:.4g}"
    return None


async def _script(spec: SignatureSpec, toolbox: Toolbox, plan: Plan) -> str | None:
    from dse.strategies.script import check_script as check  # a mode of its own, with abstain()

    if plan.mode != "script" or plan.script is None:
        return None
    problems = (await check(spec, plan.script, {name: toolbox[name].contract for name in plan.allow})).problems
    return f"the script does not pass the check: {_first(problems)}" if problems else None


def _first(problems: Sequence[Diagnostic]) -> str:
    return f"line {problems[0].line}: {problems[0].message} [{problems[0].rule}]"


async def _demos(spec: SignatureSpec, toolbox: Toolbox, plan: Plan) -> str | None:
    contracts = {name: toolbox[name].contract for name in plan.allow}
    for name, prompt in plan.prompts.items():
        for number, demo in enumerate(prompt.demos, 1):
            problem = _misfit(demo, spec, plan)
            if problem is None and plan.mode == "code":
                problem = "it has no script"
                if isinstance(code := demo.get("code"), str):
                    problems = (await check_script(code, spec, contracts)).problems
                    problem = _first(problems) if problems else None
            if problem is not None:
                return f"{name}: demonstration {number}: {problem}"
    return None


def _misfit(demo: Mapping[str, Any], spec: SignatureSpec, plan: Plan) -> str | None:
    """Whether a demonstration shows inputs, calls and outputs that there could be; what is redacted fits."""
    if plan.mode == "tool_call":
        if not {"inputs", "rounds", "outputs"} <= set(demo):
            return "it has no inputs, rounds and outputs"
        called = sorted({call["name"] for one in demo["rounds"] for call in one["calls"]} - set(plan.allow))
        if called:
            return f"it calls what is not allowed: {', '.join(called)}"
        inputs, outputs = demo["inputs"], demo["outputs"]
    else:
        inputs = {name: demo[name] for name in spec.inputs if name in demo}
        outputs = {name: demo[name] for name in spec.outputs if name in demo} if plan.mode == "direct" else None
    for given, validate, what in ((inputs, spec.validate_inputs, "inputs"), (outputs, spec.validate_outputs, "outputs")):
        if given is None or REDACTED in str(given):
            continue
        try:
            validate(given)
        except ValidationError as exc:
            return f"its {what} do not fit: {validation_summary(exc)}"
        except DseError as exc:
            return f"its {what} do not fit: {exc.value or exc.what}"
        except Exception as exc:
            return f"its {what} do not fit: {safe_message(exc)}"
    return None
