"""Artifacts for readers: a summary, and the differences between two."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dse.artifacts.artifact import Artifact
    from dse.artifacts.content import CandidateRow
    from dse.plan import Plan, Prompt

__all__ = ["Change", "differences", "summarise"]

_NOTHING = object()


@dataclass(frozen=True)
class Change:
    """One difference between two artifacts.

    Attributes:
        what: where, as a dotted path (``plan.allow``, ``plan.prompts.answer``, ``evidence.quality`` ...).
        before, after: the values; None where there is none.
        text: for readers; a unified diff for prompts. ``str()`` gives it as well.
    """

    what: str
    before: Any
    after: Any
    text: str

    def __str__(self) -> str:
        return self.text


def differences(old: Artifact, new: Artifact) -> list[Change]:
    """What `new` has different from `old`, the program first, then the evidence; empty for equal content."""
    if old.artifact_id == new.artifact_id:
        return []
    found: list[Change] = []
    before, after = old.content.program, new.content.program
    found += _leaves_changed("signature", before.signature.model_dump(mode="json"), after.signature.model_dump(mode="json"))
    found += _leaves_changed("model", before.model.model_dump(mode="json"), after.model.model_dump(mode="json"))
    one, other = old.plan, new.plan
    found += _scalar("plan.mode", one.mode, other.mode)
    found += _names("plan.allow", one.allow, other.allow)
    mine, theirs = one.components, other.components
    for name in sorted(mine.keys() | theirs.keys()):
        found += _prompt(f"plan.prompts.{name}", mine.get(name), theirs.get(name))
    found += _text("plan.script", one.script, other.script)
    found += _leaves_changed("plan.overlays", one.overlays, other.overlays)
    found += _stages(one, other)
    found += _leaves_changed("plan.knobs", one.knobs, other.knobs)
    found += _leaves_changed("plan.limits", one.limits.model_dump(mode="json"), other.limits.model_dump(mode="json"))
    for name in sorted(before.contracts.keys() & after.contracts.keys()):
        found += _leaves_changed(f"contracts.{name}", before.contracts[name].model_dump(mode="json"),
                                 after.contracts[name].model_dump(mode="json"))  # fmt: skip
    return found + _evidence(old, new)


def _evidence(old: Artifact, new: Artifact) -> list[Change]:
    found: list[Change] = []
    rows = own_row(old), own_row(new)
    mine, theirs = ({} if row is None else row.model_dump(mode="json") for row in rows)
    for figure in ("quality", "quality_low", "quality_high", "cost_usd", "tokens_in", "tokens_out", "latency_s",
                   "model_calls", "tool_calls", "failures", "n"):  # fmt: skip
        found += _scalar(f"evidence.{figure}", mine.get(figure), theirs.get(figure))
    removed = [tuple(tool.name for tool in artifact.evidence.removed_tools) for artifact in (old, new)]
    found += _names("evidence.removed_tools", *removed)
    skip = {"modes", "paired", "allow_lists", "removed_tools", "notes"}
    found += _leaves_changed("evidence", old.evidence.model_dump(mode="json", exclude=skip),
                             new.evidence.model_dump(mode="json", exclude=skip))  # fmt: skip
    hashes = [{row[0] for row in artifact.evidence.paired.rows} for artifact in (old, new)]
    if hashes[0] != hashes[1]:
        text = f"evidence.paired: {len(hashes[0])} -> {len(hashes[1])} holdout rows, {len(hashes[0] & hashes[1])} in both"
        found.append(Change("evidence.paired", len(hashes[0]), len(hashes[1]), text))
    if not found and old.evidence != new.evidence:
        found.append(Change("evidence", None, None, "evidence: other figures per row, candidate or allow-list"))
    return found


def own_row(artifact: Artifact) -> CandidateRow | None:
    """The row of the candidates' table that is this program's."""
    return next((row for row in artifact.evidence.modes if row.program_id == artifact.program_id), None)


def _shown(value: Any) -> str:
    if value is None or value is _NOTHING:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _scalar(what: str, before: Any, after: Any) -> list[Change]:
    if before == after and type(before) is type(after):
        return []
    change = f"{what}: {_shown(before)} -> {_shown(after)}"
    if isinstance(before, (int, float)) and isinstance(after, (int, float)) and not isinstance(before, bool):
        change += f" ({after - before:+.4g})"
    return [Change(what, before, after, change)]


def _names(what: str, before: tuple[str, ...], after: tuple[str, ...]) -> list[Change]:
    if set(before) == set(after):
        return []
    signs = [f"+{name}" for name in sorted(set(after) - set(before))]
    signs += [f"-{name}" for name in sorted(set(before) - set(after))]
    return [Change(what, before, after, f"{what}: {' '.join(signs)}")]


def _lines(prompt: Prompt | None) -> list[str]:
    if prompt is None:
        return []
    lines = prompt.instructions.splitlines()
    for number, demo in enumerate(prompt.demos, 1):
        lines.append(f"--- demonstration {number}")
        lines += json.dumps(demo, ensure_ascii=False, indent=1, sort_keys=True).splitlines()
    return lines


def _prompt(what: str, before: Prompt | None, after: Prompt | None) -> list[Change]:
    if before == after:
        return []
    lines = difflib.unified_diff(_lines(before), _lines(after), what, what, n=2, lineterm="")
    text = "\n".join(lines) or f"{what}: only white space differs"
    return [Change(what, before and before.model_dump(mode="json"), after and after.model_dump(mode="json"), text)]


def _text(what: str, before: str | None, after: str | None) -> list[Change]:
    if before == after:
        return []
    lines = difflib.unified_diff((before or "").splitlines(), (after or "").splitlines(), what, what, n=2, lineterm="")
    return [Change(what, before, after, "\n".join(lines) or f"{what}: only white space differs")]


def _stages(one: Plan, other: Plan) -> list[Change]:
    """What differs in the stages of a cascade besides their prompts."""
    found: list[Change] = []
    for number, (before, after) in enumerate(itertools.zip_longest(one.stages, other.stages), 1):
        what = f"plan.stages.{number}"
        found += _scalar(f"{what}.mode", before and before.mode, after and after.mode)
        found += _names(f"{what}.allow", before.allow if before else (), after.allow if after else ())
        found += _text(f"{what}.script", before.script if before else None, after.script if after else None)
        found += _leaves_changed(f"{what}.overlays", before.overlays if before else {}, after.overlays if after else {})
        found += _leaves_changed(f"{what}.knobs", before.knobs if before else {}, after.knobs if after else {})
    return found


def _executed(plan: Plan) -> str:
    """Mode, stages and size of a plan in a line."""
    prompts = plan.components.values()
    parts = [f"{len(prompts)} prompts with {sum(len(prompt.demos) for prompt in prompts)} demonstrations"] if prompts else []
    scripts = [one.script for one in (plan, *plan.stages) if one.script]
    parts += [f"a script of {len(text.splitlines())} lines" for text in scripts]
    stages = f" ({' -> '.join(stage.mode for stage in plan.stages)})" if plan.stages else ""
    return f"{plan.mode}{stages}, {', '.join(parts) or '0 prompts with 0 demonstrations'}"


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Paths to everything that is not an object; fields of a list of named objects go by their names."""
    if isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
        value = {one["name"]: one for one in value}
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    else:
        yield path, value


def _leaves_changed(what: str, before: Any, after: Any) -> list[Change]:
    old, new = dict(_leaves(before, what)), dict(_leaves(after, what))
    found: list[Change] = []
    for path in [*old, *(path for path in new if path not in old)]:
        one, other = old.get(path, _NOTHING), new.get(path, _NOTHING)
        if one != other and path != "signature.signature_id":  # differs because of what is listed besides it
            found += _scalar(path, None if one is _NOTHING else one, None if other is _NOTHING else other)
    return found


def _interval(value: Any) -> str:
    if isinstance(value, Mapping) and all(isinstance(value.get(key), (int, float)) for key in ("estimate", "low", "high")):
        return f"{value['estimate']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f})"
    return "unknown"


def summarise(artifact: Artifact) -> str:
    """A few lines: what it is, what it may call, what it was measured to do, and the verdict."""
    evidence, plan, gate = artifact.evidence, artifact.plan, artifact.evidence.gate
    row = own_row(artifact)
    removed = [f"{tool.name} ({tool.effect})" for tool in evidence.removed_tools]
    effects = [f"{name} ({contract.effect})" for name, contract in sorted(artifact.contracts.items())]
    spend = evidence.spend
    lines = [
        f"{artifact.signature_name}  {artifact.artifact_id}",
        f"mode       {_executed(plan)}",
        f"model      {artifact.model_name} ({evidence.model_label})",
        f"may call   {', '.join(effects) or 'no tools'}"
        + (f"; removed: {', '.join(removed)}" if removed else ""),
        f"verdict    {artifact.verdict} against the {evidence.incumbent.kind} ({evidence.incumbent.mode}) on "
        f"{len(evidence.paired.rows)} holdout rows in {len({row[1] for row in evidence.paired.rows})} clusters",
        f"utility    {_interval(gate.get('mean_difference'))}, quality {_interval(gate.get('quality_difference'))} "
        f"(differences, 95%), p = {_shown(gate.get('p_value'))}",
    ]  # fmt: skip
    lines += [f"           {reason}" for reason in gate.get("reasons", ())]
    if row is not None:
        lines.append(f"table      quality {_shown(row.quality)} on {row.n} rows, cost {_shown(row.cost_usd)} USD "
                     f"({row.cost_source}), latency {_shown(row.latency_s)} s ({row.latency_source}) per row")  # fmt: skip
    lines += [
        f"measured   {evidence.dataset.name} {evidence.dataset.revision[:19]}, metric {evidence.metric.name}@"
        f"{evidence.metric.revision} ({evidence.metric.kind})"
        + (f", environment {evidence.environment.name}@{evidence.environment.revision}" if evidence.environment else ""),
        f"search     {evidence.candidates_tried} candidates, {spend.model_calls} model calls, "
        f"{_shown(spend.cost_usd)} USD ({spend.cost_source}); holdout opened {evidence.holdout_openings} times",
        f"made       {artifact.envelope.created} with dse {artifact.envelope.dse_version}, "
        + ("signed" if artifact.trusted else "signature not checked" if artifact.envelope.signature else "not signed"),
    ]  # fmt: skip
    return "\n".join([*lines, *(f"note       {note}" for note in evidence.notes)])
