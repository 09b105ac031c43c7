"""The shipped recordings: what they say about themselves, and that replaying them gives the committed artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

import dse
from benchmarks import searched
from benchmarks.shipped import ROOT, SHIPPED, Shipped
from dse.compiler.compile import CompileResult
from dse.compiler.gate import recompute
from dse.store.cassette import Cassette


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[searched.Searched, Path]]:
    made = {}
    for shipped in SHIPPED:
        registry = tmp_path_factory.mktemp(shipped.name)
        made[shipped.name] = searched.replayed(shipped, registry, concurrency=3), registry
    return made


@pytest.fixture(scope="module")
def compiled(measured: dict[str, tuple[searched.Searched, Path]]) -> dict[str, tuple[CompileResult, Path]]:
    return {name: (one.result, registry) for name, (one, registry) in measured.items()}


each = pytest.mark.parametrize("shipped", SHIPPED, ids=lambda s: s.name)


@each
def test_the_recording_says_what_it_is(shipped: Shipped) -> None:
    header = Cassette.open(shipped.cassette).header
    assert header.source == "recorded from a large language model"
    assert (header.usage, header.latency, header.dse_version) == ("estimated", "not representative", dse.__version__)
    assert header.supports_tools and header.recorded >= "2026-11-23"


@each
def test_rows_and_modes(shipped: Shipped, compiled: dict[str, tuple[CompileResult, Path]]) -> None:
    result, _ = compiled[shipped.name]
    assert len({r.row_hash for r in result.records["holdout"]}) == (40 if shipped.name == "expenses" else 120)
    expected = {"direct"} if shipped.name == "tickets" else {"direct", "tool_call", "code"}
    assert expected < {plan.mode for plan in result.plans.values()} <= {*expected, "script", "cascade"}
    if "tool_call" in expected:  # native calls: the journal shows calls, not text
        calls = [
            e
            for r in result.records["select"]
            if r.candidate.startswith("tool_call")
            for e in r.journal
            if e["kind"] == "model_call"
        ]
        assert calls and any(e["tool_calls"] for e in calls)


@each
def test_replay_gives_the_committed_artifact(shipped: Shipped, compiled: dict[str, tuple[CompileResult, Path]]) -> None:
    result, _ = compiled[shipped.name]
    name = result.artifact.program.signature["name"]
    committed = dse.Registry(ROOT / "artifacts").get(
        f"{name}@candidate" if result.verdict != "PROMOTE" else f"{name}@champion"
    )
    assert committed.artifact_id == result.artifact.artifact_id
    assert committed.verify(recompute=recompute).ok


def test_what_searching_gained_is_what_the_readme_says(measured: dict[str, tuple[searched.Searched, Path]]) -> None:
    """Before and after on sealed rows, per mode, with costs: recomputed from the recordings."""
    every = [measured[shipped.name][0] for shipped in SHIPPED]
    assert searched.between(searched.README.read_text(encoding="utf-8")) == searched.summary(every)
    assert searched.REPORT.read_text(encoding="utf-8") == searched.report(every)


@each
def test_the_winner_runs_on_an_input_that_is_not_in_the_data(
    shipped: Shipped, compiled: dict[str, tuple[CompileResult, Path]]
) -> None:
    result, registry = compiled[shipped.name]
    inputs, deps = shipped.extra(shipped.load())
    assert all(e.inputs != inputs for split in ("search", "select") for e in shipped.task().load_dataset().split(split))
    program = dse.load(f"{registry}/{result.artifact.program.signature['name']}@{result.artifact.artifact_id}",
                       signature=shipped.task().signature, lm=f"replay:{shipped.cassette}", deps=deps)  # fmt: skip
    assert program(**inputs).receipt["outcome"] == "ok"


@each
def test_no_demonstration_is_near_a_holdout_or_select_row(
    shipped: Shipped, compiled: dict[str, tuple[CompileResult, Path]]
) -> None:
    from dse.evaluation.dataset import near_duplicates

    result, _ = compiled[shipped.name]
    task = shipped.task()
    texts = [" ".join(str(v) for v in demo_inputs(demo, task).values()) for plan in result.plans.values()
             for prompt in plan.prompts.values() for demo in prompt.demos]  # fmt: skip
    holdout = {r.row_hash: r for r in result.records["holdout"]}
    others = [" ".join(str(v) for v in r.receipt["inputs"].values()) for r in (*holdout.values(), *result.records["select"])]
    assert not near_duplicates(texts, others)


def demo_inputs(demo: dict, task: dse.Task) -> dict:
    values = demo.get("inputs", demo)
    return {name: values[name] for name in task.spec.inputs}
