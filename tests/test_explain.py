"""What is said about an artifact: why this mode, these prompts and tools, what was tried and spent, and what nobody knows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dse
from dse.analysis.explanation import explain
from dse.artifacts.artifact import SCHEMA_VERSION
from dse.artifacts.content import Content
from dse.testing.worlds import PRICES, PlantedWorld

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "artifacts").glob("*/*.json"))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Any:
    world = PlantedWorld({"direct": 0.2, "tool_call": 0.9, "code": 1.0}, clusters=60, writes=0.25)
    objective = dse.Objective(cost_weight=4.0, exposure_weight=0.01, max_quality_loss=0.05)
    return dse.compile(world.task(objective=objective), lm=world.model(), prices=PRICES,
                       registry=tmp_path_factory.mktemp("planted")).artifact  # fmt: skip


def changed(artifact: Any, plan: dict[str, Any] | None = None, **evidence: Any) -> str:
    """The words for the same artifact with other evidence."""
    parts = {"program": artifact.program, "evidence": artifact.evidence.model_copy(update=evidence)}
    if plan:
        parts["program"] = artifact.program.model_copy(update={"plan": artifact.program.plan.model_copy(update=plan)})
    return explain(SimpleNamespace(artifact_id=artifact.artifact_id, **parts))


def section(text: str, start: str) -> str:
    """The paragraph that begins like that."""
    return next(part for part in text.split("\n\n") if part.startswith(start))


# --- a compile of which the truth is known


def test_the_whole_text_in_its_order(artifact: Any) -> None:
    text = explain(artifact)
    assert text == explain(artifact)
    starts = [part.split(" ")[0].rstrip(":") for part in text.split("\n\n")]
    assert starts == ["AskWarehouse", "Tried", "Why", "Prompts", "Tools", "Objective", "It", "Not"]
    assert text.startswith("AskWarehouse runs in mode code with scripted/planted.\n")


def test_why_this_mode(artifact: Any) -> None:
    rows = {row.candidate: row for row in artifact.evidence.modes}
    mine = next(row for row in rows.values() if row.program_id == artifact.program.program_id)
    why = section(explain(artifact), "Why mode code: on the select rows that each ran").splitlines()[1:]
    assert {line.split()[1] for line in why} == {row.mode for row in rows.values()} - {"code"}
    for line in why:
        best = max((row for row in rows.values() if row.mode == line.split()[1]), key=lambda row: row.quality)
        assert f"quality {mine.quality - best.quality:+.3f}" in line or "equal quality" in line
        tokens = (mine.tokens_in + mine.tokens_out) / (best.tokens_in + best.tokens_out)
        assert f"{tokens:.2f} times the tokens, {mine.cost_usd / best.cost_usd:.2f} times the USD" in line


def test_why_these_tools(artifact: Any) -> None:
    tools = section(explain(artifact), "Tools it may call: find_item, get_stock, reserve.")
    assert "Declared but out of reach: get_weather (read)." in tools
    assert "1 effects less than the incumbent's, worth +0.010 of utility" in tools
    solved = artifact.evidence.allow_lists["solved_rows"]
    assert f"3 are enough for the {solved} search rows that were solved" in tools
    assert "What can no longer happen" not in tools  # a tool that reads does nothing


def test_what_was_measured_and_spent(artifact: Any) -> None:
    text, evidence = explain(artifact), artifact.evidence
    assert f"Gate on {evidence.gate['n_rows']} sealed rows in {evidence.gate['n_clusters']} clusters: PROMOTE" in text
    assert f"It took {evidence.spend.model_calls} completions" in text and f"{evidence.spend.cost_usd:.4f} USD" in text
    tried = section(text, "Tried on")
    for row in evidence.modes:
        assert f"{row.candidate:32} quality {row.quality:.3f} [{row.quality_low:.2f}, {row.quality_high:.2f}]" in tried
    assert tried.count("<- this artifact") == 1


def test_what_is_not_known(artifact: Any) -> None:
    unknown = section(explain(artifact), "Not known:")
    assert f"differences below {artifact.evidence.gate['mde']:.3f} in utility would mostly go unseen" in unknown
    assert "how many tokens it really takes: they are estimated" in unknown
    assert "what latency would be worth: the objective has no price for it" in unknown
    assert "how it does on inputs unlike the dataset's, and with any other model" in unknown
    assert "opened" not in unknown and "simulator" not in unknown and "judge" not in unknown


# --- evidence of other kinds


def test_evidence_that_does_not_suffice(artifact: Any) -> None:
    gate = {**artifact.evidence.gate, "verdict": "INSUFFICIENT", "rows_needed": 321}
    text = changed(artifact, gate=gate)
    assert "whether it is better than the incumbent: about 321 more sealed rows like these, in 321 new clusters, would decide" in text
    paired = changed(artifact, gate={**gate, "n_clusters": gate["n_rows"] // 2, "n_rows": gate["n_rows"] // 2 * 2})
    assert "about 321 more sealed rows like these, in 161 new clusters, would decide" in paired
    none = changed(artifact, gate={**gate, "rows_needed": None, "mde": None})
    assert "these rows cannot say" in none and "this holdout can find no difference" in none


def test_evidence_to_be_read_with_care(artifact: Any) -> None:
    evidence = artifact.evidence
    spend = evidence.spend.model_copy(update={"usage_source": "unknown", "cost_usd": None, "input_tokens": None, "cost_source": "unknown"})
    metric = evidence.metric.model_copy(update={"kind": "judge"})
    environment = evidence.environment.model_copy(update={"name": "warehouse+simulated"})
    split = evidence.dataset.split.model_copy(update={"holdout": evidence.dataset.split.holdout.model_copy(update={"rows": 1_000})})
    rows = tuple(row.model_copy(update={"failures": 2, "latency_source": "measured"}) for row in evidence.modes)
    text = changed(artifact, spend=spend, metric=metric, environment=environment, holdout_openings=3, modes=rows,
                   dataset=evidence.dataset.model_copy(update={"split": split}), notes=("read tools make it live",))  # fmt: skip
    for words in (
        "an unknown number of tokens (unknown); cost unknown", "how many tokens it really takes: they are unknown",
        "what it costs: no price was known", "how right the judge is: stock_right asks a model",
        "some of their answers were made up by a simulator", "was opened 3 times in this store",
        f"how it does on the other {1_000 - evidence.gate['n_rows']} of 1000 sealed rows", "read tools make it live",
        "why 2 of its", "how long it takes elsewhere: latency was measured on one machine",
    ):  # fmt: skip
        assert words in text, words


def test_rows_without_figures(artifact: Any) -> None:
    rows = tuple(row.model_copy(update={"quality": None, "tokens_in": None, "cost_usd": None, "latency_s": None})
                 if row.mode == "direct" else row for row in artifact.evidence.modes)  # fmt: skip
    text = changed(artifact, modes=rows)
    assert "quality ?, " in text and "? tokens" in text
    assert "against direct at its best (direct/none/seed): nothing that was measured of both" in text


def test_what_a_larger_search_adds_is_told_where_it_is(artifact: Any) -> None:
    mine = next(row.candidate for row in artifact.evidence.modes if row.program_id == artifact.program.program_id)
    other = next(row.candidate for row in artifact.evidence.modes if row.candidate != mine)
    extra = {
        "race": {"allocation": "halving", "rollouts": 50, "grid_rollouts": 200, "units": 1.0, "grid_units": 4.0,
                 "rounds": [{"rollouts": 20, "rows": 4, "kept": [mine], "dropped": {other: "behind by 0.3"}}],
                 "finalists": [mine], "chosen_because": "it led on utility"},
        "proposers": [{"name": "reflection", "revision": "1", "candidates": [mine], "rollouts": 24, "reflections": 6,
                       "notes": ["two were worse"]}],
        "pruned": {"code/all/long": "could cost more than max_cost"},
        "front": [mine, other],
        "removals": [{"wide": "code/all/seed", "narrow": mine, "removed": ["get_weather"], "effects": 1, "change": 0.012,
                      "low": -0.01, "high": 0.034, "rows": 18}],
        "stages": [{**artifact.evidence.spend.model_dump(), "stage": stage, "model": "scripted/planted", "rollouts": 7}
                   for stage in ("search", "select")],
        "reflection_model": "scripted/thinker", "replicates": 2,
    }  # fmt: skip
    content = Content.model_validate(json.loads(json.dumps({
        "schema_version": SCHEMA_VERSION, "kind": "dse-artifact", "artifact_id": artifact.artifact_id,
        "program": artifact.program.model_dump(mode="json"), "evidence": artifact.evidence.model_dump(mode="json") | extra})))  # fmt: skip
    text = explain(SimpleNamespace(program=content.program, evidence=content.evidence))
    for words in (
        "Tried on select rows", "Select took 50 of the 200 rollouts of a full grid", "Chosen: it led on utility.",
        f"round 1: 20 rollouts, 4 rows; 1 stayed; left: {other} (behind by 0.3)", f"Pareto front of quality, cost, latency and effects: {mine}",
        "Never run (1): code/all/long (could cost more than max_cost)", "Prompts: as reflection proposed them",
        "reflection: 1 candidates from 24 rollouts on search rows and 6 requests to the reflection model; two were worse",
        f"without get_weather: +0.012 [-0.010, +0.034] in utility on 18 select rows ({mine} against code/all/seed)",
        "search, scripted/planted: 7 rollouts", "prompts were proposed with scripted/thinker",
    ):  # fmt: skip
        assert words in text, words
    assert "each ran once" not in text


def test_scripts_and_cascades(artifact: Any) -> None:
    plan = artifact.program.plan
    assert "Mode script: a program of 2 lines, no model call" in changed(artifact, {"mode": "script", "script": "x = 1\nsubmit(left=x)"})
    staged = changed(artifact, {"mode": "cascade", "stages": (plan, plan), "knobs": {"escalate": ["abstain", "exception"]}, "prompts": {}})
    assert "Stage 2: mode code, tools: find_item, get_stock, reserve." in staged
    assert "A stage hands over on: abstain, exception." in staged


def test_a_script_that_does_not_look_things_up_any_more(artifact: Any) -> None:
    plan, union = artifact.program.plan, list(artifact.evidence.allow_lists["union"])
    assert {"find_item", "get_stock"} <= set(union)
    told = "used get_stock, get_weather, which {} does not call: not looked up at run time any more"
    source = "found = await find_item(name)\nsubmit(left=4)"
    text = changed(artifact, {"mode": "script", "script": source})
    assert told.format("the script") in text and "may stand in the script as constants" in text
    script = plan.model_copy(update={"mode": "script", "script": source})
    cascade = {"mode": "cascade", "stages": (script, plan), "knobs": {"escalate": ["abstain"]}, "prompts": {}}
    text = changed(artifact, cascade)
    assert told.format("the script of stage 1") in text and "of stage 2 does not" not in text
    every = source + "".join(f"\nawait {name}()" for name in union)
    assert "not looked up" not in changed(artifact, {"mode": "script", "script": every})


def test_writes_that_are_gone(artifact: Any) -> None:
    removed = (*artifact.evidence.removed_tools, artifact.evidence.removed_tools[0].model_copy(update={"name": "burn", "effect": "write"}))
    assert "What can no longer happen: burn." in changed(artifact, removed_tools=removed)


# --- what is shipped


@pytest.mark.parametrize("file", [f for f in SHIPPED if f.name != "aliases.json"], ids=lambda f: f"{f.parent.name}-{f.stem[:8]}")
def test_shipped_artifacts(file: Path) -> None:
    data = json.loads(file.read_text())
    content = Content.model_validate(data["content"])
    evidence, plan = content.evidence, content.program.plan
    text = explain(SimpleNamespace(program=content.program, evidence=evidence, artifact_id=content.artifact_id))
    assert text.startswith(f"{content.program.signature.name} runs in mode {plan.mode} with {content.program.model.name}.")
    assert f"({evidence.candidates_tried} candidates):" in text
    assert f"sealed rows in {evidence.gate['n_clusters']} clusters: {evidence.gate['verdict']}" in text
    assert f"Tools it may call: {', '.join(plan.allow) or 'none'}." in text
    assert all(f"{tool.name} ({tool.effect})" in text for tool in evidence.removed_tools)
    assert all(tool.name in text.partition("no longer happen:")[2] for tool in evidence.removed_tools if tool.effect == "write")
    assert f"It took {evidence.spend.model_calls} completions" in text and evidence.model_label in text
    assert all(f"because {reason}" in text for reason in evidence.gate["reasons"])
    assert all(note in text.partition("Not known:")[2] for note in evidence.notes)
    assert len({row.mode for row in evidence.modes}) == 1 or f"Why mode {plan.mode}" in text
