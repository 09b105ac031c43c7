"""What the proposers of a compile give: each sees search rows and what those before it ran, and nothing it gives may show
more than that."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dse.compiler.allowlist import AllowLists
from dse.compiler.doors import door
from dse.compiler.models import Models, Reflector
from dse.compiler.options import Options
from dse.compiler.revision import revision_of
from dse.compiler.rollouts import Rollouts
from dse.compiler.search import Evaluate, Proposal, Proposer, Search
from dse.compiler.space import Candidate, with_proposals
from dse.errors import ContaminatedSplit, UserError
from dse.evaluation.evaluator import RolloutRecord
from dse.evaluation.sampling import spread
from dse.plan import Plan
from dse.strategies.base import check_plan

if TYPE_CHECKING:
    from dse.evaluation.dataset import Example

__all__ = ["with_proposed"]


async def with_proposed(
    options: Options, models: Models, runs: Rollouts, reflector: Reflector, found: dict[str, Candidate],
    rows: Sequence[Example], records: Sequence[RolloutRecord], lists: AllowLists,
) -> tuple[dict[str, Candidate], list[RolloutRecord], list[dict[str, Any]]]:  # fmt: skip
    """The candidates with those that were proposed, all rollouts on search rows so far, and a report per proposer.

    Args:
        rows, records: of the search so far.
    """
    every, reports = list(records), []
    split = options.data.split("search")
    allowed = {row.row_hash for row in split}
    ran = {row.row_hash for row in rows}
    more = [row for row in spread(split, None) if row.row_hash not in ran]
    pool = {name: Proposal(one.plan, one.factors["prompt"], one.rows) for name, one in found.items()
            if one.model == models.names[0]}  # fmt: skip
    run_as: dict[str, str] = {}  # the name under which a plan's records are, by its id

    for one in options.proposers:
        stage = models.purse.stage = f"search: {one.name}"
        options.say(stage)
        made: list[RolloutRecord] = []
        asked = len(reflector.asked)
        with door(_evaluate(runs, stage, allowed, made, run_as)) as evaluate, door(reflector.__call__) as reflect:
            proposals = list(await one.propose(Search(
                spec=options.spec, toolbox=options.toolbox, limits=options.task.limits, required=tuple(options.task.required),
                modes=options.modes, models=models.names, rows=rows, records=tuple(every), lists=lists,
                evaluate=evaluate, reflect=reflect, success=options.success,
                seed=options.seed, say=options.say, objective=options.task.objective, more=more, pool=dict(pool))))  # fmt: skip
        for proposal in proposals:
            _check(options, one, proposal, allowed)
        before = set(found)
        found = with_proposals(found, [(one.name, proposal) for proposal in proposals], lists, models.names)
        for proposal in proposals:
            plan_id = proposal.plan.plan_id
            pool[run_as.get(plan_id, f"{one.name}: {proposal.prompt} {plan_id[7:19]}")] = proposal
        if reflector.asked[asked:]:
            runs.spending.reflections.setdefault(stage, []).extend(reflector.asked[asked:])
        reports.append({
            "name": one.name, "revision": revision_of(one), "candidates": [n for n in found if n not in before],
            "rollouts": len({r.rollout_id for r in made}), "reflections": len(reflector.asked) - asked,
            "notes": [note for proposal in proposals for note in proposal.notes]})  # fmt: skip
        every += made
    return found, every, reports


def _evaluate(runs: Rollouts, stage: str, allowed: set[str], made: list[RolloutRecord], run_as: dict[str, str]) -> Evaluate:
    """What a proposer runs plans with.

    Args:
        allowed: hashes of the rows that it may use.
        made: takes the records. run_as: takes the name under which they are, by the plan's id.
    """

    async def evaluate(plans: Mapping[str, Plan], examples: Sequence[Example], model: str | None = None, /, *,
                       replicate: int = 0) -> list[RolloutRecord]:  # fmt: skip
        if not {example.row_hash for example in examples} <= allowed:
            raise ContaminatedSplit("A proposer may run search rows only", value=stage,
                                    remedy="Use the rows of the search it was given.")  # fmt: skip
        name = model or runs.models[0]
        if name not in runs.models:
            raise UserError("No such model in this compile", value=name, remedy=f"Use {', '.join(runs.models)}.")
        fresh = await runs.every(stage, plans, examples, name, replicate=replicate)
        run_as.update({plan.plan_id: one for one, plan in plans.items()})
        made.extend(fresh)
        return fresh

    return evaluate


def _check(options: Options, one: Proposer, proposal: Any, allowed: set[str]) -> None:
    """Refuse what is no proposal, or shows more than search rows."""
    if not isinstance(proposal, Proposal):
        raise UserError("A proposer gives proposals", value=f"{one.name}: {proposal!r}", remedy="Return dse.Proposal(...).")
    strange = sorted(set(proposal.rows) - allowed)
    if strange:
        raise ContaminatedSplit("A proposal shows rows that are not search rows", value=strange[0],
                                remedy="Show rows of the search only.", proposer=one.name)  # fmt: skip
    check_plan(options.spec, proposal.plan)
    demos = [demo for prompt in proposal.plan.components.values() for demo in prompt.demos]
    shown = [{name: demo[name] for name in options.spec.inputs if name in demo} for demo in demos]
    shown += [demo["inputs"] for demo in demos if isinstance(demo.get("inputs"), Mapping)]
    if beyond := options.data.beyond_search(shown):
        raise ContaminatedSplit("A proposal demonstrates rows that are not search rows", value=", ".join(beyond),
                                remedy="Show rows of the search only.", proposer=one.name)  # fmt: skip
    if quoted := options.data.quoted(_texts(proposal.plan)):
        raise ContaminatedSplit("A proposal quotes inputs of rows that are not search rows", value=", ".join(quoted),
                                remedy="Show rows of the search only.", proposer=one.name)  # fmt: skip


def _texts(plan: Plan) -> list[str]:
    """Every text of a plan that a model reads or a script holds."""
    found: list[str] = []
    pending: list[Any] = [plan.model_dump(mode="json")]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, (dict, list)):
            pending.extend(value.values() if isinstance(value, dict) else value)
    with contextlib.suppress(SyntaxError):  # pruning says so
        tree = ast.parse(plan.script or "")
        found += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return found + [text for stage in plan.stages for text in _texts(stage)]
