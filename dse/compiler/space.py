"""The candidates of a compile: modes x allow-lists x prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dse.compiler.allowlist import AllowLists
from dse.compiler.prompts import bootstrap
from dse.contracts.signature import SignatureSpec
from dse.errors import PlanError, UserError
from dse.evaluation.dataset import Example
from dse.evaluation.evaluator import RolloutRecord
from dse.limits import Limits
from dse.plan import Plan
from dse.strategies.base import modes as known_modes
from dse.strategies.base import seed_modes, seed_plan, strategy

__all__ = ["Space", "candidates", "fitting_modes"]

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


def candidates(
    spec: SignatureSpec, modes: Sequence[str], lists: AllowLists, records: Sequence[RolloutRecord],
    search: Sequence[Example], *, space: Space, limits: Limits, success: float = 1.0,
) -> tuple[dict[str, Plan], dict[str, list[str]]]:  # fmt: skip
    """Plans by name (``mode/allow-list/prompt``), without duplicates; and per name the rows its demos come from."""
    plans: dict[str, Plan] = {}
    sources: dict[str, list[str]] = {}
    seen: set[str] = set()

    def add(name: str, plan: Plan, rows: list[str]) -> None:
        if plan.plan_id not in seen:
            seen.add(plan.plan_id)
            plans[name] = plan
            sources[name] = rows

    for mode in modes:
        named = {name: allow for name, allow in lists.named().items() if name in space.allow_of(mode)}
        mine: Mapping[str, tuple[str, ...]] = {"none": ()} if mode == "direct" else named
        of_mode = [r for r in records if r.candidate.split("/")[0] == mode]
        for label, allow in mine.items():
            add(f"{mode}/{label}/seed", seed_plan(spec, mode, allow, limits), [])
        shown = mine if space.cross else {list(mine)[-1]: list(mine.values())[-1]}
        k = space.demos_of(mode)
        for label, allow in shown.items() if k else ():
            made = bootstrap(spec, mode, of_mode, search, allow, k=k, success=success)
            if made is not None:
                prompts, rows = made
                add(f"{mode}/{label}/demos", Plan(mode=mode, prompts=prompts, allow=tuple(allow), limits=limits), rows)
    return plans, sources
