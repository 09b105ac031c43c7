"""Why an artifact is what it is, in words and numbers, from its evidence alone; and what nobody knows about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dse.analysis.frames import _artifact
from dse.analysis.report import _interval, _money, openings_note, race_lines
from dse.analysis.verdict import gate_lines, new_clusters

__all__ = ["explain"]

_SHOWN = 8


def explain(artifact: Any) -> str:
    """In words and numbers: why this mode, these prompts and this allow-list; what was tried and what it cost; what is not known.

    `artifact` may also be a reference (``artifacts/Name@champion``) or a file.
    """
    artifact = _artifact(artifact)
    sections = (_tried, _mode, _prompts, _tools, _gate, _spent, _not_known)
    program = artifact.program
    first = f"{program.signature['name']} runs in mode {program.plan.mode} with {program.model.name}."
    return "\n\n".join([first, *("\n".join(lines) for section in sections if (lines := list(section(artifact))))])


def _own(artifact: Any) -> Any:
    """The artifact's row in the table of candidates, or None."""
    return next((row for row in artifact.evidence.modes if row["program_id"] == artifact.program.program_id), None)


def _label(artifact: Any) -> str:
    row = _own(artifact)
    return str(artifact.program.plan.mode if row is None else row["candidate"])


def _incumbent(artifact: Any) -> str:
    evidence = artifact.evidence
    names = {row["program_id"]: row["candidate"] for row in evidence.modes}
    return str(names.get(evidence.incumbent["program_id"], evidence.incumbent["mode"]))


def _tokens(row: Any) -> float | None:
    parts = (row["tokens_in"], row["tokens_out"])
    return None if None in parts else parts[0] + parts[1]


def _by_quality(rows: Sequence[Any]) -> list[Any]:
    return sorted(rows, key=lambda row: -1.0 if row["quality"] is None else row["quality"], reverse=True)


def _listed(names: Sequence[str], most: int = _SHOWN) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- what was tried


def _tried(artifact: Any) -> Iterator[str]:
    evidence = artifact.evidence
    raced = (race := evidence.get("race")) is not None and race["rollouts"] < race["grid_rollouts"]
    yield f"Tried on {'select rows' if raced else 'the same select rows'} ({evidence.candidates_tried} candidates):"
    for row in _by_quality(evidence.modes):
        mark = " <- this artifact" if row["program_id"] == artifact.program.program_id else ""
        tokens, model = _tokens(row), row.get("model")
        yield (f"  {row['candidate']:32} quality {'?' if row['quality'] is None else _interval(row)}, {row['model_calls']:.1f} "
               f"model calls, {'?' if tokens is None else f'{tokens:.0f}'} tokens"
               + (f", {row['n']} rows" if raced else "") + (f", {model}" if model and len(evidence.get('models', ())) > 1 else "")
               + mark)  # fmt: skip
    if evidence.get("race") is not None:
        yield from race_lines(evidence)
    for number, one in enumerate(race["rounds"] if raced else (), 1):
        left = _listed([f"{name} ({why})" for name, why in one["dropped"].items()], 4)
        yield f"  round {number}: {one['rollouts']} rollouts, {one['rows']} rows; {len(one['kept'])} stayed" + (f"; left: {left}" if left else "")
    pruned: Mapping[str, str] = evidence.get("pruned") or {}
    if pruned:
        yield f"Never run ({len(pruned)}): " + _listed([f"{name} ({why})" for name, why in pruned.items()])


# --- why this mode, these prompts, this allow-list


def _mode(artifact: Any) -> Iterator[str]:
    """The artifact's row beside the best of every other mode."""
    mine, plan = _own(artifact), artifact.program.plan
    if plan.mode == "script":
        yield f"Mode script: a program of {len((plan.script or '').splitlines())} lines, no model call at run time."
        yield from _constants(artifact, plan, "the script")
    for number, stage in enumerate(getattr(plan, "stages", ()), 1):
        yield f"Stage {number}: mode {stage.mode}, tools: {', '.join(stage.allow) or 'none'}."
        yield from _constants(artifact, stage, f"the script of stage {number}")
    if getattr(plan, "stages", ()):
        yield f"A stage hands over on: {', '.join(plan.knobs.get('escalate', ()))}."
    others: dict[str, Any] = {}
    for row in _by_quality(artifact.evidence.modes):
        if row["mode"] != plan.mode:
            others.setdefault(row["mode"], row)
    if mine is None or not others:
        return
    yield f"Why mode {plan.mode}: on the select rows that each ran"
    for mode, row in others.items():
        yield f"  against {mode} at its best ({row['candidate']}): {_compared(mine, row)}"


def _constants(artifact: Any, plan: Any, whose: str) -> Iterator[str]:
    """Tools that successful runs looked things up with, and a script does not call."""
    from dse.runtime.guest import names_used

    if plan.mode != "script":
        return
    effects = {t["name"]: t["effect"] for t in artifact.evidence.removed_tools}
    effects.update({name: contract.effect for name, contract in artifact.program.contracts.items()})
    called = names_used(plan.script or "")
    gone = [name for name in artifact.evidence.allow_lists.get("union", ()) if name not in called and effects.get(name) != "write"]
    if gone:
        yield (f"  successful runs used {', '.join(gone)}, which {whose} does not call: not looked up at run time any more; "
               "what they gave in search rows may stand in the script as constants")  # fmt: skip


def _compared(mine: Any, row: Any) -> str:
    parts = []
    if None not in (mine["quality"], row["quality"]):
        difference = mine["quality"] - row["quality"]
        parts.append("equal quality" if abs(difference) < 5e-4 else f"quality {difference:+.3f}")
    for what, one, other in (("tokens", _tokens(mine), _tokens(row)), ("USD", mine["cost_usd"], row["cost_usd"]),
                             ("seconds", mine["latency_s"], row["latency_s"])):  # fmt: skip
        if one is not None and other:
            parts.append(f"{one / other:.2f} times the {what}")
    if mine["failures"] or row["failures"]:
        parts.append(f"{mine['failures']} failed runs against {row['failures']}")
    return ", ".join(parts) or "nothing that was measured of both"


def _prompts(artifact: Any) -> Iterator[str]:
    plan, evidence, row = artifact.program.plan, artifact.evidence, _own(artifact)
    every = getattr(plan, "components", plan.prompts)
    demos = sum(len(prompt.demos) for prompt in every.values())
    author = next((one for one in evidence.get("proposers", ()) if row is not None and row["candidate"] in one["candidates"]), None)
    words = "seed instructions" if author is None else f"as {author['name']} proposed them"
    yield (f"Prompts: {words} with {demos} demonstration{'' if demos == 1 else 's'} from search rows." if demos else
           f"Prompts: {words}, no demonstrations.")  # fmt: skip
    if row is not None:
        for other in evidence.modes:
            same = other["mode"] == row["mode"] and tuple(other["allow"]) == tuple(row["allow"]) and other is not row
            if same and other.get("model") == row.get("model"):
                yield f"  against {other['candidate']}, with the same tools: {_compared(row, other)}"
    overlays = getattr(plan, "overlays", None)
    if overlays:
        yield f"  it reads other descriptions of: {', '.join(sorted(overlays))}"
    for one in evidence.get("proposers", ()):
        yield (f"  {one['name']}: {len(one['candidates'])} candidates from {one['rollouts']} rollouts on search rows and "
               f"{one['reflections']} requests to the reflection model" + "".join(f"; {note}" for note in one["notes"]))  # fmt: skip


def _tools(artifact: Any) -> Iterator[str]:
    evidence, plan = artifact.evidence, artifact.program.plan
    yield f"Tools it may call: {', '.join(plan.allow) or 'none'}."
    if evidence.removed_tools:
        yield "Declared but out of reach: " + ", ".join(f"{t['name']} ({t['effect']})" for t in evidence.removed_tools) + "."
        writes = [t["name"] for t in evidence.removed_tools if t["effect"] == "write"]
        if writes:
            yield f"What can no longer happen: {', '.join(writes)}."
        weight = evidence.paired.objective.exposure_weight
        gone = evidence.paired.baseline_exposure - evidence.paired.candidate_exposure
        if weight and gone > 0:
            yield f"  {gone:g} effects less than the incumbent's, worth {weight * gone:+.3f} of utility"
    lists = evidence.allow_lists
    if plan.allow and lists.get("minimal") is not None:
        proof = "" if lists.get("exact", True) else ", searched greedily: a smaller list may do"
        yield (f"  of {len(lists.get('all', ()))} declared tools successful runs used {len(lists.get('union', ()))}; {len(lists['minimal'])} "
               f"are enough for the {lists.get('solved_rows', '?')} search rows that were solved{proof}")  # fmt: skip
    for one in evidence.get("removals", ()):
        yield (f"  without {', '.join(one['removed'])}: {one['change']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}] in utility on "
               f"{one['rows']} select rows ({one['narrow']} against {one['wide']}); {one['effects']:g} effects less")  # fmt: skip


def _gate(artifact: Any) -> Iterator[str]:
    yield from gate_lines(artifact, _label(artifact), _incumbent(artifact))


# --- what it cost


def _spent(artifact: Any) -> Iterator[str]:
    evidence, spend = artifact.evidence, artifact.evidence.spend
    tokens = _tokens({"tokens_in": spend["input_tokens"], "tokens_out": spend["output_tokens"]})
    yield (f"It took {spend['model_calls']} completions, {'an unknown number of' if tokens is None else tokens} tokens "
           f"({spend['usage_source']}); cost {_money(evidence)}. Completions: {evidence.model_label}.")  # fmt: skip
    stages = evidence.get("stages", ())
    for one in stages if len(stages) > 1 else ():
        cost = one["cost_usd"]
        yield (f"  {one['stage']}, {one['model']}: {one['rollouts']} rollouts, {one['model_calls']} completions, "
               f"{'cost unknown' if cost is None else f'{cost:.4f} USD'}")  # fmt: skip
    if evidence.get("reflection_model"):
        yield f"  prompts were proposed with {evidence['reflection_model']}"


# --- what is not known


def _not_known(artifact: Any) -> Iterator[str]:
    evidence, gate = artifact.evidence, artifact.evidence.gate
    yield "Not known:"
    if gate["verdict"] == "INSUFFICIENT":
        needed = gate.get("rows_needed")
        yield "  whether it is better than the incumbent: " + (
            f"about {needed} more sealed rows like these, in {new_clusters(gate)} new clusters, would decide" if needed else "these rows cannot say")
    yield ("  this holdout can find no difference" if gate["mde"] is None else
           f"  differences below {gate['mde']:.3f} in utility would mostly go unseen on this holdout")  # fmt: skip
    sealed = evidence.dataset.split.holdout.rows
    if gate["n_rows"] < sealed:
        yield f"  how it does on the other {sealed - gate['n_rows']} of {sealed} sealed rows"
    if evidence.holdout_openings > 1:
        yield f"  {openings_note(evidence.holdout_openings)}"
    declared = bool(artifact.program.plan.allow or evidence.removed_tools)
    yield from (f"  {line}" for line in _unmeasured(evidence, _own(artifact), declared))
    yield "  how it does on inputs unlike the dataset's, and with any other model"
    yield from (f"  {note}" for note in evidence.notes)


def _unmeasured(evidence: Any, row: Any, tools: bool) -> Iterator[str]:
    spend = evidence.spend
    if spend["usage_source"] != "exact":
        yield f"how many tokens it really takes: they are {spend['usage_source']}"
    if spend["cost_source"] == "estimated" and spend["cost_usd"] is not None:
        yield "what it really costs: the cost is estimated"
    elif spend["cost_usd"] is None:
        yield "what it costs: no price was known"
    objective = evidence.objective
    free = [name for name, weight in (("cost", objective.cost_weight), ("latency", objective.latency_weight),
                                      ("tools", objective.exposure_weight or not tools)) if not weight]  # fmt: skip
    if free:
        yield f"what {' and '.join(free)} would be worth: the objective has no price for {'it' if len(free) == 1 else 'them'}"
    if row is not None and "measured" in row["latency_source"]:
        yield "how long it takes elsewhere: latency was measured on one machine"
    if evidence.metric.kind == "judge":
        yield f"how right the judge is: {evidence.metric.name} asks a model"
    if evidence.environment is not None and evidence.environment.name.endswith("+simulated"):
        yield "how it does with real tools: some of their answers were made up by a simulator"
    if evidence.get("replicates", 1) == 1 and row is not None and row["model_calls"]:
        yield "how much a second run of the same row would differ: each ran once"
    failures = 0 if row is None else row["failures"]
    if failures:
        yield f"why {failures} of its {row['n']} select runs failed (`dse eval` shows them)"
