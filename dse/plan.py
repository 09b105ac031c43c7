"""Plan: one candidate. What an artifact carries and the runtime executes, as data."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dse.canonical import canonical_json, digest
from dse.contracts.signature import SignatureSpec
from dse.contracts.toolbox import Toolbox
from dse.errors import AllowListError, PlanError
from dse.limits import Limits

__all__ = ["SEMANTICS_VERSION", "Plan", "Prompt", "program_id"]

# Part of every rollout's identity: raised whenever the same plan and completions could take another path.
SEMANTICS_VERSION = 1


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompt(_Data):
    """Instructions and demonstrations of one predictor. Tool stubs and sandbox rules are never part of it."""

    instructions: str
    demos: tuple[dict[str, Any], ...] = ()

    @field_validator("demos")
    @classmethod
    def _json(cls, demos: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        canonical_json(list(demos))
        return demos


class Plan(_Data):
    """How a signature is executed.

    Attributes:
        mode: name of a registered strategy (``direct``, ``tool_call``, ``code``).
        prompts: per predictor of that strategy.
        allow: names of the tools that may be called, sorted; nothing else can be.
        knobs: settings of the strategy, e.g. ``{"demos_from": ...}``; unknown ones are refused by it.
        limits: what a run may use.
    """

    mode: str
    prompts: dict[str, Prompt]
    allow: tuple[str, ...] = ()
    knobs: dict[str, Any] = Field(default_factory=dict)
    limits: Limits = Limits()

    @field_validator("allow")
    @classmethod
    def _sorted(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(allow)) != len(allow):
            raise ValueError("allow names a tool twice")
        return tuple(sorted(allow))

    @functools.cached_property
    def plan_id(self) -> str:
        return digest(self.model_dump(mode="json"))

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
            plan = plan.model_copy(update={"allow": tuple(sorted(allow))})
        if limits:
            if not isinstance(limits, Mapping):
                raise PlanError("Limits are given by name", value=limits, remedy='Write limits={"model_calls": 3}.')
            unknown = sorted(set(limits) - set(Limits.model_fields))
            if unknown:
                raise PlanError("There is no such limit", value=", ".join(unknown),
                                remedy=f"Limits are: {', '.join(Limits.model_fields)}.")  # fmt: skip
            try:
                plan = plan.model_copy(update={"limits": plan.limits.tightened(**limits)})
            except (ValueError, AttributeError) as exc:
                raise PlanError(
                    "Limits can be lowered, never raised", value=str(exc), remedy="Use a lower number."
                ) from None
        return Plan.model_validate(plan.model_dump())


def program_id(spec: SignatureSpec, plan: Plan, toolbox: Toolbox, model_name: str, params: Mapping[str, Any]) -> str:
    """hash(signature, contracts of the allowed tools, plan, model and parameters)."""
    contracts = {name: [toolbox[name].contract.interface_id, toolbox[name].contract.policy_id] for name in plan.allow}
    return digest({"signature": spec.signature_id, "contracts": contracts, "plan": plan.plan_id,
                   "model": model_name, "params": dict(params)})  # fmt: skip
