"""The strategy protocol and registry. A strategy executes a plan's mode on one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from dse.contracts.signature import SignatureSpec
from dse.errors import PlanError
from dse.limits import Limits
from dse.plan import Plan, Prompt
from dse.runtime.run import Run

__all__ = ["Strategy", "baseline_plan", "check_plan", "modes", "register", "seed_plan", "strategy"]


class Strategy(Protocol):
    """What a mode has to provide. Stateless: everything about one run is in `Run`."""

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
_BUILT_IN = {"direct": "dse.strategies.direct", "tool_call": "dse.strategies.tool_call", "code": "dse.strategies.code"}


def register(one: Strategy) -> Strategy:
    _registry[one.mode] = one
    return one


def modes() -> tuple[str, ...]:
    """Names of all known modes."""
    return tuple(sorted({*_BUILT_IN, *_registry}))


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


def seed_plan(spec: SignatureSpec, mode: str, allow: Iterable[str] | None = None, limits: Limits | None = None) -> Plan:
    """The plan to start from in a mode: seed prompts and, by default, all declared tools (none for ``direct``)."""
    if allow is None:
        allow = () if mode == "direct" else spec.tool_names
    return Plan(mode=mode, prompts=strategy(mode).seed_prompts(spec), allow=tuple(allow), limits=limits or Limits())


def baseline_plan(spec: SignatureSpec, limits: Limits | None = None) -> Plan:
    """``tool_call`` with all declared tools and the seed prompt; ``direct`` where the signature has none."""
    return seed_plan(spec, "tool_call" if spec.tools else "direct", limits=limits)


def check_plan(spec: SignatureSpec, plan: Plan) -> None:
    """Refuse a plan that its signature or its strategy does not cover.

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
                        remedy=f"It needs exactly: {', '.join(sorted(expected))}.")  # fmt: skip
    if plan.mode == "direct" and plan.allow:
        raise PlanError("Mode 'direct' calls no tools", value=", ".join(plan.allow), remedy="Leave allow empty.")
    if plan.knobs:
        raise PlanError(f"Mode {plan.mode!r} has no such knobs", value=", ".join(sorted(plan.knobs)), remedy="Remove them.")
