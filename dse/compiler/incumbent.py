"""Against what a compile compares: the champion, where this task can run it, or else the baseline plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dse.artifacts.artifact import Artifact
from dse.compiler.models import Models
from dse.compiler.options import Options
from dse.compiler.space import Candidate
from dse.errors import ArtifactNotFound, ContaminatedSplit
from dse.plan import Plan
from dse.strategies.base import baseline_plan, needs_model

__all__ = ["Incumbent", "champion_of", "incumbent_of", "refuse_shown"]


@dataclass(frozen=True)
class Incumbent:
    """A plan and its model; `parent`: the champion's artifact, None for the baseline."""

    plan: Plan
    model: str
    parent: Artifact | None

    @property
    def parent_id(self) -> str | None:
        return None if self.parent is None else self.parent.artifact_id

    def among(self, found: Mapping[str, Candidate]) -> tuple[str, dict[str, Candidate]]:
        """Its name, and the candidates with it: it may be one of them already."""
        for name, one in found.items():
            if (one.plan.plan_id, one.model) == (self.plan.plan_id, self.model):
                return name, dict(found)
        name = "champion" if self.parent is not None else "baseline"
        shown = tuple(self.parent.evidence.demos.rows) if self.parent is not None else ()
        factors = {"mode": self.plan.mode, "allow": "own", "prompt": "own", "model": self.model}
        return name, {**found, name: Candidate(name, self.plan, self.model, factors, shown, name)}


def incumbent_of(options: Options, models: Models, parent_id: str | None) -> Incumbent:
    """The one that a compile began with.

    Args:
        parent_id: of the champion at that time; None for the baseline.
    """
    if not parent_id:
        return Incumbent(baseline_plan(options.spec, options.task.limits), models.names[0], None)
    parent = options.registry.get(f"{options.spec.name}@{parent_id}")
    return Incumbent(parent.plan, parent.model_name if parent.model_name in models.names else models.names[0], parent)


def champion_of(options: Options, models: Models) -> tuple[Artifact | None, list[str]]:
    """The champion if this task can run it; and why not, where it cannot."""
    try:
        champion = options.registry.get(f"{options.spec.name}@champion")
    except ArtifactNotFound:
        return None, []
    why = _other(champion, options, models)
    return (None, [f"the champion is of {why}: compared with the baseline instead, and not replaced"]) if why else (champion, [])


def _other(champion: Artifact, options: Options, models: Models) -> str:
    """Why the champion cannot be run here; empty if it can."""
    if champion.program.signature.signature_id != options.spec.signature_id:
        return "another signature"
    model = models.by_name.get(champion.model_name)
    if needs_model(champion.plan) and (model is None or dict(champion.params) != dict(model.params)):
        return "another model"
    if any(name not in options.effects or options.toolbox[name].contract.interface_id != contract.interface_id
           for name, contract in champion.contracts.items()):  # fmt: skip
        return "other tools"
    return ""


def refuse_shown(shown: Sequence[str], rows: set[str], split: str) -> None:
    """The incumbent's demonstrations come from an earlier compile, maybe of other splits."""
    both = sorted(rows & set(shown))
    if both:
        raise ContaminatedSplit(f"The champion's demonstrations are among the {split} rows", value=both[0],
                                remedy="Splits are kept for good: pass the earlier assignment, or promote a program "
                                       "without these demonstrations first.", rows=both)  # fmt: skip
