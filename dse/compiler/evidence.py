"""The evidence of a compile, as the data that an artifact carries. No times and no hosts: equal outcomes, equal artifact."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dse.evaluation.evaluator import RolloutRecord

__all__ = ["Reflection", "Spending", "spend", "worst"]


@dataclass(frozen=True)
class Reflection:
    """One answer of the reflection model, or what a judge was asked about one rollout."""

    model: str
    input_tokens: int | None
    output_tokens: int | None
    usage_source: str
    cost_usd: float | None
    cost_source: str
    model_calls: int = 1


@dataclass
class Spending:
    """Every completion that decided something, by stage: what the report accounts for.

    Attributes:
        judge: name of the model that a judge metric asks; its answers are accounted for as ``STAGE: judge``.
    """

    judge: str | None = None
    rollouts: dict[str, dict[str, RolloutRecord]] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    reflections: dict[str, list[Reflection]] = field(default_factory=dict)

    def add(self, stage: str, records: Iterable[RolloutRecord], model: str) -> None:
        """Rollouts of a stage; one that an earlier stage made already is counted there alone."""
        before = {rollout for one in self.rollouts.values() for rollout in one}
        mine = self.rollouts.setdefault(stage, {})
        for record in records:
            if record.rollout_id not in before:
                mine[record.rollout_id] = record
                self.models[record.rollout_id] = model

    def stages(self) -> list[dict[str, Any]]:
        """Per stage and model."""
        found = []
        for stage in dict.fromkeys((*self.rollouts, *self.reflections)):
            by_model: dict[str, list[RolloutRecord | Reflection]] = {}
            for rollout_id, record in self.rollouts.get(stage, {}).items():
                by_model.setdefault(self.models[rollout_id], []).append(record)
            for one in self.reflections.get(stage, []):
                by_model.setdefault(one.model, []).append(one)
            found += [{"stage": stage, "model": model, "rollouts": sum(isinstance(r, RolloutRecord) for r in each),
                       **spend(each)} for model, each in sorted(by_model.items())]  # fmt: skip
            if judged := self._judged(stage):
                found.append({"stage": f"{stage}: judge", "model": self.judge, "rollouts": len(judged), **spend(judged)})
        return found

    def _judged(self, stage: str) -> list[Reflection]:
        """What the judge was asked, as the scores say that are kept: the same after a restart."""
        if self.judge is None:
            return []
        return [asked for record in self.rollouts.get(stage, {}).values() if (asked := _asked(self.judge, record.components))]

    def total(self) -> dict[str, Any]:
        every: list[RolloutRecord | Reflection] = []
        for stage in dict.fromkeys((*self.rollouts, *self.reflections)):
            every += [*self.rollouts.get(stage, {}).values(), *self.reflections.get(stage, ()), *self._judged(stage)]
        return spend(every)


def _asked(judge: str, components: Mapping[str, float]) -> Reflection | None:
    calls = int(components.get("judge_calls", 0))
    if not calls:
        return None
    exact, estimated = (int(components.get(f"judge_calls_{source}", 0)) for source in ("exact", "estimated"))
    source = "exact" if exact == calls else "estimated" if exact + estimated == calls else "unknown"
    read, written = (None if source == "unknown" else int(components[f"judge_tokens_{way}"]) for way in ("in", "out"))
    cost = components.get("judge_cost_usd")
    return Reflection(judge, read, written, source, cost, "unknown" if cost is None else source, calls)


def spend(records: Sequence[RolloutRecord | Reflection]) -> dict[str, Any]:
    """Sums of calls, tokens and cost; None where a part is unknown."""

    def total(values: Iterable[float | None]) -> Any:
        known = list(values)
        return None if None in known else sum(v for v in known if v is not None)

    costs = [r.cost_usd for r in records]
    return {
        "model_calls": sum(r.model_calls for r in records),
        "input_tokens": total(r.input_tokens for r in records), "output_tokens": total(r.output_tokens for r in records),
        "usage_source": worst(r.usage_source for r in records),
        "cost_usd": None if None in costs else math.fsum(c for c in costs if c is not None),
        "cost_source": worst(r.cost_source for r in records),
    }  # fmt: skip


def worst(sources: Iterable[str]) -> str:
    found = set(sources)
    return next((s for s in ("unknown", "estimated") if s in found), "exact")


def table_row(name: str, row: Mapping[str, Any], candidate: Any, program_id: str) -> dict[str, Any]:
    """A candidate's line in the table of the artifact."""
    return {"candidate": name, "mode": candidate.plan.mode, "program_id": program_id, "allow": list(candidate.plan.allow),
            "model": candidate.model, "source": candidate.source, **row}  # fmt: skip
