"""What looks for candidates, and all that it may see and use.

A proposer gets a `Search`: open search rows, rollouts on them, the task models and a reflection model, all metered
by the budget of the compile. Select and holdout rows are not in it: `Search` has no dataset, and nothing that it holds
leads to one or to a store, by attributes, closures or bound objects (`dse.compiler.doors`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dse.compiler.allowlist import AllowLists
from dse.contracts.signature import SignatureSpec
from dse.contracts.toolbox import Toolbox
from dse.evaluation.evaluator import RolloutRecord
from dse.limits import Limits
from dse.objective import Objective
from dse.plan import Plan

if TYPE_CHECKING:
    from dse.evaluation.dataset import Example

__all__ = ["Evaluate", "Proposal", "Proposer", "Reflect", "Search"]



class Evaluate(Protocol):
    """(plans by name, search rows, name of a task model or None for the first) -> records in the order (row, plan).

    `replicate` tells runs of one plan on one row apart, for who needs several.
    """

    def __call__(
        self, plans: Mapping[str, Plan], rows: Sequence[Example], model: str | None = None, /, *, replicate: int = 0
    ) -> Awaitable[list[RolloutRecord]]: ...


#: A prompt to the reflection model -> its text. Recorded, metered and checked against the budget like any request.
Reflect = Callable[[str], Awaitable[str]]


@dataclass(frozen=True)
class Proposal:
    """A candidate to be raced.

    Attributes:
        plan: what would be executed.
        prompt: what distinguishes it within its mode, in one word: ``evolved``, ``demos``, ``distilled`` ...
        rows: hashes of the search rows whose content is in the plan (demonstrations); none of select or holdout.
        notes: what a reader of the report should know.
    """

    plan: Plan
    prompt: str
    rows: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """What a proposer may see and use.

    Attributes:
        spec, toolbox, limits, required: of the task. `toolbox` is for contracts; tools run in `evaluate` only.
        modes: that are considered. models: names of the task models, the first is the default one.
        rows: the search rows. records: seed programs on these rows, by the first model, and what proposers added.
        lists: allow-lists from these records.
        success: score from which a rollout counts as solved. seed: of every random choice.
        evaluate: runs plans on search rows (rollouts in the store are not run again).
        reflect: asks the reflection model.
        say: tells a person what happens.
        objective: of the task, where what a run costs decides.
        more: further search rows, on which nothing was run. What runs without a model can be measured on them for nothing.
        pool: candidates so far, seeds included, by the name that their records carry.
    """

    spec: SignatureSpec
    toolbox: Toolbox
    limits: Limits
    required: tuple[str, ...]
    modes: tuple[str, ...]
    models: tuple[str, ...]
    rows: Sequence[Example]
    records: Sequence[RolloutRecord]
    lists: AllowLists
    evaluate: Evaluate
    reflect: Reflect
    success: float = 1.0
    seed: int = 0
    say: Callable[[str], None] = field(default=lambda _: None)
    objective: Objective = field(default_factory=Objective)
    more: Sequence[Example] = ()
    pool: Mapping[str, Proposal] = field(default_factory=dict)


@runtime_checkable
class Proposer(Protocol):
    """A source of candidates. Equal searches must give equal proposals: all randomness comes from ``search.seed``.

    What it raises ends the compile, except `dse.errors.BudgetExhausted` from `evaluate` and `reflect`, which should
    pass through.
    """

    name: str

    async def propose(self, search: Search) -> Sequence[Proposal]: ...
