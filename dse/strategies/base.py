"""The strategy protocol and registry. A strategy executes a plan's mode on one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from dse.contracts.signature import SignatureSpec
from dse.errors import PlanError
from dse.limits import Limits
from dse.plan import Plan, Prompt
from dse.runtime.run import Run

__all__ = ["Strategy", "baseline_plan", "check_plan", "modes", "needs_model", "predictors", "register", "seed_modes", "seed_plan",
           "strategy"]  # fmt: skip


class Strategy(Protocol):
    """What a mode has to provide. Stateless: everything about one run is in `Run`.

    It may have more:

    ``seeded = False``: no plan to start from can be made up; its plans are found by a compile.
    ``listed = False``: no mode for signatures of one's own.
    ``check(spec, plan)``: refuses plans of its mode, knobs included. ``needs(plan)``: instead of `needs_model`.
    ``predictors_of(spec, plan)``: instead of `predictors`.
    ``prepare(spec, plan, contracts, checks)``: refuses a plan with the tools and checks that are bound now (by name).
    ``get_ready()``: begins to start what a run will need, while its record is read.
    ``calls(run)``: the tools that a run may call, where it knows that they are fewer than the plan allows.
    """

    mode: str
    needs_model: bool

    def fits(self, spec: SignatureSpec) -> bool:
        """Whether the mode makes sense for a signature."""

    def seed_prompts(self, spec: SignatureSpec) -> dict[str, Prompt]:
        """The prompts to start from, by predictor name."""

    def predictors(self, spec: SignatureSpec) -> dict[str, Any]:
        """The dspy signature of each predictor."""

    def demo(self, journal: Iterable[Mapping[str, Any]], spec: SignatureSpec, inputs: Mapping[str, Any],
             outputs: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:  # fmt: skip
        """A demonstration per predictor from a successful run, or None if the run shows nothing worth showing."""

    async def run(self, run: Run) -> dict[str, Any]:
        """Execute; gives validated outputs in wire form or raises ``RunFailed``."""


_registry: dict[str, Strategy] = {}
_BUILT_IN = {"direct": "dse.strategies.direct", "tool_call": "dse.strategies.tool_call", "code": "dse.strategies.code",
             "script": "dse.strategies.script", "cascade": "dse.strategies.cascade"}  # fmt: skip
_SEEDS = ("direct", "tool_call", "code")  # of these: known without importing them
_READING = ("tool_call", "code")  # modes in which a model reads about tools


def register(one: Strategy) -> Strategy:
    _registry[one.mode] = one
    return one


def modes() -> tuple[str, ...]:
    """Names of the modes that a plan or a task may name."""
    own = {mode for mode, one in _registry.items() if getattr(one, "listed", True)}
    return tuple(sorted({*_BUILT_IN, *own}))


def seed_modes() -> tuple[str, ...]:
    """The modes that have a plan to start from: all but ``script`` and ``cascade``, whose plans a compile finds."""
    return tuple(mode for mode in modes() if mode in _SEEDS or (mode not in _BUILT_IN and _seeded(strategy(mode))))


def _seeded(one: Strategy) -> bool:
    return bool(getattr(one, "seeded", True))


def strategy(mode: str) -> Strategy:
    """The strategy of a mode.

    Raises:
        PlanError: unknown mode.
    """
    if mode not in _registry and mode in _BUILT_IN:
        import importlib

        importlib.import_module(_BUILT_IN[mode])
    try:
        return _registry[mode]
    except KeyError:
        raise PlanError("No such mode", value=mode, remedy=f"Known modes: {', '.join(modes())}.") from None


def needs_model(plan: Plan) -> bool:
    """Whether running the plan takes a model; a program without one is named ``none`` in its id."""
    one = strategy(plan.mode)
    needs = getattr(one, "needs", None)
    return bool(one.needs_model if needs is None else needs(plan))


def predictors(spec: SignatureSpec, plan: Plan) -> dict[str, Any]:
    """The dspy signature of each of ``plan.components``."""
    one = strategy(plan.mode)
    of_plan = getattr(one, "predictors_of", None)
    found: dict[str, Any] = one.predictors(spec) if of_plan is None else of_plan(spec, plan)
    return found


def seed_plan(spec: SignatureSpec, mode: str, allow: Iterable[str] | None = None, limits: Limits | None = None) -> Plan:
    """The plan to start from in a mode: seed prompts and, by default, all declared tools (none for ``direct``).

    Raises:
        PlanError: there is none, as in modes ``script`` and ``cascade``.
    """
    one = strategy(mode)
    if not _seeded(one):
        raise PlanError(f"Mode {mode!r} has no plan to start from", value=mode,
                        remedy="Compile one, or give a Plan with its script or stages.")  # fmt: skip
    if allow is None:
        allow = () if mode == "direct" else spec.tool_names
    return Plan(mode=mode, prompts=one.seed_prompts(spec), allow=tuple(allow), limits=limits or Limits())


def baseline_plan(spec: SignatureSpec, limits: Limits | None = None) -> Plan:
    """``tool_call`` with all declared tools and the seed prompt; ``direct`` where the signature has none."""
    return seed_plan(spec, "tool_call" if spec.tools else "direct", limits=limits)


def check_plan(spec: SignatureSpec, plan: Plan) -> None:
    """Refuse a plan that its signature or its strategy does not cover, or that could break the rule of effects.

    What needs the sandbox (whether a script passes the check) is up to `prepare`.

    Raises:
        PlanError
    """
    one = strategy(plan.mode)
    extra = sorted(set(plan.allow) - set(spec.tool_names))
    if extra:
        raise PlanError("The plan allows tools that the signature does not declare", value=", ".join(extra),
                        remedy=f"The signature declares: {', '.join(spec.tool_names) or 'no tools'}.")  # fmt: skip
    expected = set(one.seed_prompts(spec))
    if set(plan.prompts) != expected:
        raise PlanError(f"The plan's prompts do not fit mode {plan.mode!r}", value=", ".join(sorted(plan.prompts)),
                        remedy=f"It needs exactly: {', '.join(sorted(expected)) or 'none'}.")  # fmt: skip
    if plan.mode == "direct" and plan.allow:
        raise PlanError("Mode 'direct' calls no tools", value=", ".join(plan.allow), remedy="Leave allow empty.")
    if (plan.script is not None) != (plan.mode == "script"):
        raise PlanError(f"A plan of mode {plan.mode!r} {'needs a' if plan.script is None else 'has no'} script",
                        remedy="Give script= to plans of mode 'script', and to no others.")  # fmt: skip
    if plan.stages and plan.mode != "cascade":
        raise PlanError(f"A plan of mode {plan.mode!r} has no stages", remedy="Stages belong to mode 'cascade'.")
    _check_overlays(plan)
    own = getattr(one, "check", None)
    if own is not None:
        own(spec, plan)
    elif plan.knobs:
        raise PlanError(f"Mode {plan.mode!r} has no such knobs", value=", ".join(sorted(plan.knobs)), remedy="Remove them.")


def _check_overlays(plan: Plan) -> None:
    if not plan.overlays:
        return
    if plan.mode in _BUILT_IN and plan.mode not in _READING:
        raise PlanError(f"In mode {plan.mode!r} no model reads about tools", value=", ".join(sorted(plan.overlays)),
                        remedy="Give overlays to plans of mode tool_call or code; in a cascade, to its stages.")  # fmt: skip
    if extra := sorted(set(plan.overlays) - set(plan.allow)):
        raise PlanError("Overlays describe tools that are not allowed", value=", ".join(extra),
                        remedy=f"Allowed are: {', '.join(plan.allow) or 'no tools'}.")  # fmt: skip
    if empty := sorted(name for name, text in plan.overlays.items() if not text.strip()):
        raise PlanError("An overlay has no text", value=", ".join(empty), remedy="Leave it out: then the contract's holds.")
