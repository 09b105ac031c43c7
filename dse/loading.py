"""Loading an artifact: what is refused, and the program that executes exactly its plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.contracts.check import Check
from dse.contracts.signature import Signature
from dse.contracts.toolbox import Toolbox
from dse.errors import ContractMismatch, SignatureMismatch, UnprovenModel
from dse.plan import Plan, spec_of
from dse.program import Program
from dse.runtime.execution import Middleware
from dse.strategies.base import needs_model

if TYPE_CHECKING:
    from dse.artifacts.artifact import Artifact
    from dse.contracts.tool import Rate
    from dse.store.journal import Store
    from dse.store.runlog import Durability

__all__ = ["load", "looser_fields"]


def load(
    ref: str | Path | Artifact, *, signature: type[Signature], lm: Any = None, toolbox: Toolbox | None = None,
    deps: Any = None, allow: Any = None, limits: Mapping[str, Any] | None = None, allow_unproven: bool = False,
    require_signature: bool = False, approve: Callable[[Any], Any] | None = None, middleware: Sequence[Middleware] = (),
    store: Store | str | Path | None = None, durability: Durability = "call", approval_expires_s: float | None = None,
    checks: Sequence[Check] = (),
) -> Program:  # fmt: skip
    """Load an artifact as a program that executes exactly its plan.

    Args:
        ref: ``artifacts/Name@champion``, ``Name@sha256:...``, a file, or an ``Artifact``.
        signature: must be the one that was compiled.
        lm: must be the model that the evidence is for; default that model. Another one needs `allow_unproven`
            and is stamped ``unproven`` on every receipt.
        allow: fewer tools than the artifact allows; `limits`: lower ones.
        store, durability, approval_expires_s, checks: as for `Program`.

    Raises:
        ArtifactError, SignatureMismatch, ContractMismatch, AllowListError, UnprovenModel
    """
    from dse.artifacts.artifact import Artifact
    from dse.artifacts.registry import Registry

    spec = spec_of(signature)
    artifact = ref if isinstance(ref, Artifact) else Registry.resolve(ref)
    if require_signature:
        artifact.require_seal()
    program = artifact.program
    if program.signature.get("signature_id") != spec.signature_id:
        raise SignatureMismatch(
            f"The artifact was compiled for another {program.signature.get('name')}", value=spec.name,
            remedy="Compile again for the changed signature, or load with the one it was made for.")  # fmt: skip
    tools = toolbox if toolbox is not None else spec.toolbox()
    tools = _tightened(tools, program.contracts)
    plan = program.plan.narrowed(allow, limits) if allow is not None or limits else program.plan
    model, stamp = _proven(artifact, lm, plan, allow_unproven)
    return Program(signature, plan, lm=model, toolbox=tools, deps=deps, approve=approve, middleware=middleware, store=store,
                   durability=durability, approval_expires_s=approval_expires_s, stamp=stamp, checks=checks)  # fmt: skip


def _proven(artifact: Artifact, lm: Any, plan: Plan, allow_unproven: bool) -> tuple[Any, dict[str, Any]]:
    proven = artifact.program.model
    stamp: dict[str, Any] = {"artifact_id": artifact.artifact_id, "unproven": False}
    if not needs_model(plan):
        return None, stamp
    from dse.models.lm import resolve_model

    model = resolve_model(proven.name if lm is None else lm, params=dict(proven.params) if lm is None else None)
    if (model.name, dict(model.params)) != (proven.name, dict(proven.params)):
        if not allow_unproven:
            raise UnprovenModel("The artifact's evidence is for another model", value=f"{model.name} {model.params}",
                                remedy=f"Use {proven.name} {proven.params}, compile for the new one, or pass "
                                       "allow_unproven=True, which stamps every receipt.")  # fmt: skip
        stamp["unproven"] = True
    return model, stamp


def _tightened(toolbox: Toolbox, contracts: Mapping[str, Any]) -> Toolbox:
    """The toolbox under the artifact's contracts: same interfaces, and never a looser policy.

    Raises:
        ContractMismatch: another interface, or a policy of the bound tool that is looser than the proven one.
    """
    copy = toolbox.merged({})
    for name, proven in contracts.items():
        bound = copy[name].contract
        if bound.interface_id != proven.interface_id:
            raise ContractMismatch("A tool's interface changed since the artifact was compiled", value=name,
                                   remedy="Compile again, or bind the tool as it was.")  # fmt: skip
        loosened = looser_fields(bound, proven)
        if loosened:
            raise ContractMismatch(f"The policy of {name!r} is looser than the proven one", value=", ".join(loosened),
                                   remedy="Tighten it again, or compile with the new policy.")  # fmt: skip
    return copy


def looser_fields(bound: Any, proven: Any) -> list[str]:
    """Policy fields in which `bound` allows more than `proven`."""
    inf = float("inf")

    def number(value: Any) -> float:
        return inf if value is None else float(value)

    looser = [name for name in ("timeout_s", "max_calls", "max_output_bytes")
              if number(getattr(bound, name)) > number(getattr(proven, name))]  # fmt: skip
    if proven.rate is not None and (bound.rate is None or _most_calls(bound.rate, proven.rate.per_s) > proven.rate.calls):
        looser.append("rate")
    if proven.approval is not None and bound.approval != proven.approval and not (bound.approval and bound.approval.always):
        looser.append("approval")
    if bound.idempotent and not proven.idempotent:
        looser.append("idempotent")
    strictness = {"parallel": 0, "ordered": 1, "exclusive": 2}
    if strictness[bound.concurrency] < strictness[proven.concurrency]:
        looser.append("concurrency")
    if not set(proven.sensitive) <= set(bound.sensitive):
        looser.append("sensitive")
    if bound.cost_usd < proven.cost_usd:
        looser.append("cost_usd")
    return looser


def _most_calls(rate: Rate, seconds: float) -> int:
    """Calls that `rate` lets into a window of `seconds` at most."""
    return rate.calls * math.ceil(seconds / rate.per_s)
