"""Plan: one candidate. What an artifact carries and the runtime executes, as data."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from dse.canonical import canonical_json, digest
from dse.contracts.check import Check
from dse.contracts.signature import Signature, SignatureSpec
from dse.contracts.toolbox import Toolbox
from dse.declared import Declared
from dse.errors import AllowListError, PlanError, SignatureError
from dse.limits import Limits

__all__ = ["ESCALATIONS", "SEMANTICS_VERSION", "Plan", "Prompt", "program_id", "spec_of"]

# Part of every rollout's identity: raised whenever the same plan and completions could take another path.
SEMANTICS_VERSION = 1
ESCALATIONS = ("abstain", "check", "exception", "validation")
"""What may hand a run over to the next stage of a cascade."""
_STAGED = re.compile(r"stage([1-9]\d*)_(.+)", re.DOTALL)


def spec_of(signature: Any) -> SignatureSpec:
    """What a signature class declares.

    Raises:
        SignatureError: it is something else.
    """
    if not (isinstance(signature, type) and issubclass(signature, Signature)):
        task = hasattr(signature, "signature")
        raise SignatureError("This is no signature class", value=type(signature).__name__ if task else repr(signature),
                             remedy="Pass task.signature (and toolbox=task.toolbox where it has its own)." if task else
                             "Pass a class that derives from dse.Signature.")  # fmt: skip
    return signature.spec()


class Prompt(Declared):
    """Instructions and demonstrations of one predictor. Tool stubs and sandbox rules are never part of it."""

    instructions: str
    demos: tuple[dict[str, Any], ...] = ()

    @field_validator("demos")
    @classmethod
    def _json(cls, demos: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        canonical_json(list(demos))
        return demos


def _unset(value: Any) -> bool:
    return not value


class Plan(Declared):
    """How a signature is executed.

    Attributes:
        mode: name of a registered strategy (``direct``, ``tool_call``, ``code``, ``script``, ``cascade``).
        prompts: per predictor of that strategy.
        allow: names of the tools that may be called, sorted; nothing else can be.
        knobs: settings of the strategy, e.g. ``{"escalate": [...]}`` of a cascade; unknown ones are refused by it.
        limits: what a run may use.
        script: of mode ``script``: the source of the program.
        stages: of mode ``cascade``: the plans to try, in this order. Their limits are those of the cascade.
        overlays: what the model reads about a tool instead of the description in its contract, by name. Contract,
            parameters and policy stay what they are.

    The last three are not in the dump and not in the ids of a plan that does without.

    Raises:
        InvalidValue: a field is unknown, of the wrong type or out of range.
    """

    mode: str
    prompts: dict[str, Prompt]
    allow: tuple[str, ...] = ()
    knobs: dict[str, Any] = Field(default_factory=dict)
    limits: Limits = Limits()
    script: str | None = Field(default=None, min_length=1, exclude_if=_unset)
    stages: tuple[Plan, ...] = Field(default=(), exclude_if=_unset)
    overlays: dict[str, str] = Field(default_factory=dict, exclude_if=_unset)

    @classmethod
    def cascade(
        cls, *stages: Plan, escalate: Sequence[str] = ("abstain", "exception", "validation"), check: Check | None = None,
        limits: Limits | None = None,
    ) -> Plan:
        """A plan that tries plans one after the other.

        Args:
            stages: at least two; they get the limits of the whole.
            escalate: what hands a run over, of ``abstain``, ``exception``, ``validation``; ``check`` with a check.
            check: says of the outputs of every stage but the last whether they are accepted.
            limits: of the whole run; default those of the first stage.
        """
        limits = limits or (stages[0].limits if stages else Limits())
        knobs: dict[str, Any] = {"escalate": sorted({*escalate, *(("check",) if check else ())})}
        if check is not None:
            knobs["check"] = {"name": check.name, "revision": check.revision}
        return cls(mode="cascade", prompts={}, allow=tuple({name for stage in stages for name in stage.allow}), knobs=knobs,
                   limits=limits, stages=tuple(stage.model_copy(update={"limits": limits})._fresh() for stage in stages))  # fmt: skip

    @field_validator("allow")
    @classmethod
    def _sorted(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(allow)) != len(allow):
            raise ValueError("allow names a tool twice")
        return tuple(sorted(allow))

    @functools.cached_property
    def plan_id(self) -> str:
        return digest(self.model_dump(mode="json"))

    @property
    def components(self) -> dict[str, Prompt]:
        """Every prompt of the plan; that of predictor ``code`` in the second stage of a cascade is ``stage2_code``."""
        staged = {f"stage{number}_{name}": prompt for number, stage in enumerate(self.stages, 1)
                  for name, prompt in stage.prompts.items()}  # fmt: skip
        return {**self.prompts, **staged}

    def with_prompts(self, prompts: Mapping[str, Prompt]) -> Plan:
        """The plan with other prompts, named as in `components`; the rest stays.

        Raises:
            PlanError: it has no such prompt.
        """
        if unknown := sorted(set(prompts) - set(self.components)):
            raise PlanError("The plan has no such prompts", value=", ".join(unknown),
                            remedy=f"It has: {', '.join(self.components) or 'none'}.")  # fmt: skip
        own = {name: prompts.get(name, prompt) for name, prompt in self.prompts.items()}
        stages = []
        for number, stage in enumerate(self.stages, 1):
            found = {name: _STAGED.fullmatch(name) for name in prompts if name not in self.prompts}
            mine = {match[2]: prompts[name] for name, match in found.items() if match and int(match[1]) == number}
            stages.append(stage.with_prompts(mine))
        return self.model_copy(update={"prompts": own, "stages": tuple(stages)})._fresh()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Plan:
        """A copy; the id of a changed one is computed anew."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("plan_id", None)
        return copied

    def _fresh(self) -> Plan:
        """A copy that has been checked like a plan from elsewhere."""
        return Plan.model_validate(self.model_dump())

    def narrowed(self, allow: Any = None, limits: Mapping[str, Any] | None = None) -> Plan:
        """The plan with fewer tools or lower limits; never more.

        Args:
            allow: names of tools; `limits`: limit to lower number.

        Raises:
            AllowListError: for a tool that is not on the allow-list, or a string instead of a list of names.
            PlanError: a higher limit, or none that there is.
        """
        plan = self
        if allow is not None:
            if isinstance(allow, str):
                raise AllowListError("allow= is a list of names", value=repr(allow), remedy=f"Write [{allow!r}].")
            allow = set(allow) if isinstance(allow, Iterable) else {None}
            if not all(isinstance(name, str) for name in allow):
                raise PlanError("An allow-list is a list of tool names", remedy='Write allow=["one", "other"].')
            extra = sorted(set(allow) - set(self.allow))
            if extra:
                raise AllowListError("Not on the allow-list, which can be narrowed and never widened", value=", ".join(extra),
                                     remedy=f"Choose from: {', '.join(self.allow) or 'no tools'}.")  # fmt: skip
            plan = plan._allowing(frozenset(allow))
        if limits:
            if not isinstance(limits, Mapping):
                raise PlanError("Limits are given by name", value=limits, remedy='Write limits={"model_calls": 3}.')
            unknown = sorted(set(limits) - set(Limits.model_fields))
            if unknown:
                raise PlanError("There is no such limit", value=", ".join(unknown),
                                remedy=f"Limits are: {', '.join(Limits.model_fields)}.")  # fmt: skip
            try:
                lower = plan.limits.tightened(**limits)
                stages = tuple(stage.model_copy(update={"limits": lower}) for stage in plan.stages)
                plan = plan.model_copy(update={"limits": lower, "stages": stages})
            except (ValueError, AttributeError) as exc:
                raise PlanError(
                    "Limits can be lowered, never raised", value=str(exc), remedy="Use a lower number."
                ) from None
        return plan._fresh()

    def _allowing(self, allow: frozenset[str]) -> Plan:
        """The same with those of its tools that are in `allow`, in every stage."""
        return self.model_copy(update={
            "allow": tuple(name for name in self.allow if name in allow),
            "stages": tuple(stage._allowing(allow) for stage in self.stages),
            "overlays": {name: text for name, text in self.overlays.items() if name in allow},
        })  # fmt: skip


def program_id(spec: SignatureSpec, plan: Plan, toolbox: Toolbox, model_name: str, params: Mapping[str, Any]) -> str:
    """hash(signature, contracts of the allowed tools, plan, model and parameters)."""
    contracts = {name: [toolbox[name].contract.interface_id, toolbox[name].contract.policy_id] for name in plan.allow}
    return digest({"signature": spec.signature_id, "contracts": contracts, "plan": plan.plan_id,
                   "model": model_name, "params": dict(params)})  # fmt: skip
