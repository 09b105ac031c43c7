"""The candidates of a compile: modes x allow-lists x prompts x models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dse.compiler.allowlist import AllowLists
from dse.compiler.prompts import bootstrap
from dse.compiler.search import Proposal
from dse.contracts.signature import SignatureSpec
from dse.errors import PlanError, UserError
from dse.evaluation.dataset import Example
from dse.evaluation.evaluator import RolloutRecord
from dse.limits import Limits
from dse.plan import Plan
from dse.strategies.base import modes as known_modes
from dse.strategies.base import needs_model, seed_modes, seed_plan, strategy

__all__ = ["Candidate", "Space", "candidates", "fitting_modes", "with_proposals"]

_LISTS = ("all", "union", "minimal")  # from the widest to the narrowest


@dataclass(frozen=True)
class Space:
    """What is tried.

    Attributes:
        allow: names among ``all``, ``union``, ``minimal``, for every mode or per mode.
        demos: demonstrations per prompt, one number or one per mode; 0 for none.
        cross: every prompt with every allow-list. By default one factor varies at a time: seed prompts with every
            allow-list, demonstrations with the smallest.
    """

    allow: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ("all", "union", "minimal")
    demos: int | Mapping[str, int] = 2
    cross: bool = False

    def __post_init__(self) -> None:
        lists = self.allow.items() if isinstance(self.allow, Mapping) else [("all modes", self.allow)]
        for mode, names in lists:
            if not isinstance(names, tuple) or not names or not set(names) <= set(_LISTS):
                raise UserError("A space tries named allow-lists, for all modes or per mode", value=f"{mode}: {names!r}",
                                remedy=f"Give a tuple of some of: {', '.join(_LISTS)}.")  # fmt: skip
        numbers = self.demos.items() if isinstance(self.demos, Mapping) else [("all modes", self.demos)]
        for mode, number in numbers:
            if type(number) is not int or number < 0:
                raise UserError("A space tries a number of demonstrations, for all modes or per mode",
                                value=f"{mode}: {number!r}", remedy="Give whole numbers; 0 for none.")  # fmt: skip
        for mode, _ in (*lists, *numbers):
            if mode != "all modes" and mode not in known_modes():
                raise UserError("A space names a mode that there is not", value=mode,
                                remedy=f"The modes are: {', '.join(known_modes())}.")  # fmt: skip

    def allow_of(self, mode: str) -> tuple[str, ...]:
        return self.allow if isinstance(self.allow, tuple) else self.allow.get(mode, ("all",))

    def demos_of(self, mode: str) -> int:
        return self.demos if isinstance(self.demos, int) else self.demos.get(mode, 0)

    def most(self, mode: str) -> int:
        """Candidates that a mode can have, without proposals; fewer where allow-lists are equal or no run can be shown."""
        lists = 1 if mode == "direct" else len(self.allow_of(mode))
        return lists + (0 if not self.demos_of(mode) else lists if self.cross else 1)


@dataclass(frozen=True)
class Candidate:
    """A plan with the model it runs on.

    Attributes:
        name: ``mode/allow-list/prompt``, with ``@model`` where several models are tried.
        model: name of the task model.
        factors: mode, allow-list, prompt and model, by name: what a race pools over.
        rows: hashes of the search rows that the plan shows.
        source: what proposed it; "space" for seeds and bootstrapped demonstrations.
    """

    name: str
    plan: Plan
    model: str
    factors: Mapping[str, str]
    rows: tuple[str, ...] = ()
    source: str = "space"


def fitting_modes(spec: SignatureSpec, asked: Iterable[str] | None) -> tuple[str, ...]:
    """The modes with a plan to start from: those asked for, or all that fit the signature.

    Raises:
        PlanError: an asked mode does not fit, or none of them has a plan to start from.
    """
    if asked is None:
        return tuple(mode for mode in seed_modes() if strategy(mode).fits(spec))
    chosen = tuple(mode for mode in dict.fromkeys(asked) if mode in seed_modes())
    if not chosen:
        raise PlanError(f"{spec.name} needs a mode that has a plan to start from",
                        remedy=f"Add one of: {', '.join(fitting_modes(spec, None))}.")  # fmt: skip
    for mode in chosen:
        if not strategy(mode).fits(spec):
            raise PlanError(f"Mode {mode!r} does not fit {spec.name}", value=mode, remedy="Leave it out.")
    return chosen


class _Candidates:
    """Candidates by name, without duplicates."""

    def __init__(self, models: Sequence[str]) -> None:
        self.models = models
        self.found: dict[str, Candidate] = {}
        self._seen: set[tuple[str, str]] = set()

    def add(self, mode: str, allow: str, prompt: str, plan: Plan, rows: Sequence[str], source: str = "space") -> None:
        models = self.models if needs_model(plan) else self.models[:1]
        for model in models:
            if (plan.plan_id, model) in self._seen:
                continue
            self._seen.add((plan.plan_id, model))
            name = stem = f"{mode}/{allow}/{prompt}" + (f"@{model}" if len(self.models) > 1 and len(models) > 1 else "")
            number = 1
            while name in self.found:
                number += 1
                name = f"{stem}-{number}"
            factors = {"mode": mode, "allow": allow, "prompt": prompt if number == 1 else f"{prompt}-{number}", "model": model}
            self.found[name] = Candidate(name, plan, model, factors, tuple(rows), source)


def candidates(
    spec: SignatureSpec, modes: Sequence[str], lists: AllowLists, records: Sequence[RolloutRecord],
    search: Sequence[Example], *, space: Space, limits: Limits, success: float = 1.0, models: Sequence[str] = ("",),
) -> dict[str, Candidate]:  # fmt: skip
    """Seeds and bootstrapped demonstrations by name, without duplicates."""
    made = _Candidates(models)
    for mode in modes:
        named = {name: allow for name, allow in lists.named().items() if name in space.allow_of(mode)}
        mine: Mapping[str, tuple[str, ...]] = {"none": ()} if mode == "direct" else named
        of_mode = [r for r in records if r.candidate.split("/")[0] == mode]
        for label, allow in mine.items():
            made.add(mode, label, "seed", seed_plan(spec, mode, allow, limits), [])
        shown = mine if space.cross else {list(mine)[-1]: list(mine.values())[-1]}
        k = space.demos_of(mode)
        for label, allow in shown.items() if k else ():
            taught = bootstrap(spec, mode, of_mode, search, allow, k=k, success=success)
            if taught is not None:
                prompts, rows = taught
                made.add(mode, label, "demos", Plan(mode=mode, prompts=prompts, allow=tuple(allow), limits=limits), rows)
    return made.found


def with_proposals(
    found: Mapping[str, Candidate], proposals: Iterable[tuple[str, Proposal]], lists: AllowLists, models: Sequence[str],
) -> dict[str, Candidate]:  # fmt: skip
    """The candidates and what proposers (by name) added to them."""
    made = _Candidates(models)
    made.found = dict(found)
    made._seen = {(one.plan.plan_id, one.model) for one in found.values()}
    for source, one in proposals:
        plan = one.plan
        label = next((name for name, allow in reversed(lists.named().items()) if set(allow) == set(plan.allow)), "own")
        made.add(plan.mode, label if plan.allow else "none", one.prompt, plan, one.rows, source)
    return made.found
