"""Compile on planted worlds: the best mode wins, by data that it may use, once, within its budget, reproducibly."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import dse
from dse.compiler.compile import CompileResult, Rows
from dse.compiler.gate import recompute
from dse.compiler.space import Space
from dse.errors import (
    BudgetExhausted,
    ContaminatedSplit,
    DatasetError,
    EnvironmentRequired,
    InfrastructureError,
    MissingHoldout,
    ModelError,
    ModelUnavailable,
    PlanError,
    UserError,
)
from dse.evaluation.dataset import Dataset
from dse.evaluation.evaluator import LiveReads
from dse.models.lm import resolve_model
from dse.store.cassette import Cassette, RecordModel
from dse.store.journal import Store
from dse.testing import worlds
from dse.testing.scripted import ScriptedModel, call, say
from dse.testing.worlds import NAME, PRICES, AskWarehouse, PlantedWorld

WORLD = PlantedWorld()  # code solves 95%, tool_call 50%, direct 20%
QUICK = PlantedWorld({"direct": 1.0, "tool_call": 0.25}, clusters=30, writes=0.0)  # no sandbox needed
QUICK_MODES = {"modes": ["direct", "tool_call"]}


@dataclass
class Compiled:
    """A finished compile with everything around it."""

    world: PlantedWorld
    folder: Path
    model: ScriptedModel
    result: CompileResult = field(init=False)
    stages: dict[str, int] = field(default_factory=dict)  # requests asked before each stage

    def run(self, task: dse.Task | None = None, **options: Any) -> Compiled:
        def say(line: str) -> None:
            self.stages[line.split(":")[0]] = len(self.model.requests)

        given = {"lm": self.model, "registry": self.folder, "say": say} | options
        self.result = dse.compile(task or self.world.task(), **given)
        return self

    @property
    def registry(self) -> dse.Registry:
        return dse.Registry(self.folder)

    @property
    def aliases(self) -> dict[str, str]:
        return self.registry.aliases("AskWarehouse")

    def split_of(self) -> dict[str, str]:
        """The split of every request."""
        assignment = self.world.dataset().assignment
        return {row["request"]: assignment[row["site"]] for row in self.world.rows()}


def quick(folder: Path, world: PlantedWorld = QUICK, dataset: Dataset | None = None, **options: Any) -> Compiled:
    given = QUICK_MODES | ({} if dataset is None else {"dataset": dataset})
    return Compiled(world, folder, world.model()).run(world.task(**given), **options)


@pytest.fixture(scope="module")
def best_code(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(WORLD, tmp_path_factory.mktemp("code"), WORLD.model()).run(prices=PRICES, budget=dse.Budget(minutes=10))


@pytest.fixture(scope="module")
def best_direct(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return quick(tmp_path_factory.mktemp("direct"))


def asked_in(request: Any) -> str:
    """The request of the row that a model request is about."""
    return [m["content"] for m in request["messages"] if m["role"] == "user" and "## request ##" in m["content"]][-1].split("\n")[1]


# ---- the winner -------------------------------------------------------------------------------------------


def test_the_planted_best_mode_wins_over_all_modes(best_code: Compiled) -> None:
    result = best_code.result
    assert {plan.mode for plan in result.plans.values()} == {"direct", "tool_call", "code"}
    assert (result.winner, result.verdict) == ("code/minimal/seed", "PROMOTE"), "the fewest effects and tokens of equals"
    assert result.incumbent == "tool_call/all/seed"
    for name, row in result.table.items():
        mode = name.split("/")[0]
        truth = [WORLD.solves(mode, r.receipt["inputs"]["request"]) for r in result.records["select"] if r.candidate == name]
        assert row["quality"] == pytest.approx(sum(truth) / len(truth)), name


def test_a_program_without_tools_can_win(best_direct: Compiled) -> None:
    assert (best_direct.result.winner, best_direct.result.verdict) == ("direct/none/seed", "PROMOTE")
    artifact = best_direct.result.artifact
    assert artifact.plan.allow == () and len(artifact.evidence.removed_tools) == 4


def test_the_baseline_wins_and_stays(tmp_path: Path) -> None:
    best = quick(tmp_path, PlantedWorld({"direct": 0.1, "tool_call": 0.95}, clusters=30, detours=0.0))
    assert best.result.winner == "tool_call/union/seed", "equal on every row, with fewer effects"
    assert best.result.verdict == "KEEP"
    base, candidate = (best.registry.get(f"AskWarehouse@{alias}") for alias in ("champion", "candidate"))
    assert (base.plan.mode, len(base.plan.allow)) == ("tool_call", 4)
    assert candidate.artifact_id == best.result.artifact.artifact_id != base.artifact_id
    assert "previous" not in best.aliases


def test_removing_an_effect_can_be_worth_something(tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 0.1, "tool_call": 0.95}, clusters=60, detours=0.0)
    safer = Compiled(world, tmp_path, world.model()).run(world.task(objective=dse.Objective(exposure_weight=0.01), **QUICK_MODES))
    assert (safer.result.winner, safer.result.verdict) == ("tool_call/union/seed", "PROMOTE")


def test_a_cheaper_program_wins_by_its_cost(tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 0.9, "tool_call": 0.9}, clusters=60, writes=0.0, same_rows=True)
    task = world.task(objective=dse.Objective(cost_weight=100.0), **QUICK_MODES)
    cheap = Compiled(world, tmp_path, world.model()).run(task, prices=PRICES)
    assert (cheap.result.winner, cheap.result.verdict) == ("direct/none/seed", "PROMOTE")
    assert cheap.result.gate.quality_difference.estimate == 0.0


@pytest.mark.parametrize("objective", [
    {"max_cost": 0.0008}, {"max_p95_latency_s": 0.3}, {"min_quality": 0.5}, {"latency_weight": 2.0},
])  # fmt: skip
def test_limits_of_the_objective_hold_on_select(tmp_path: Path, objective: dict[str, float]) -> None:
    """tool_call takes three requests of 0.25 s; direct one. Without limits, tool_call wins."""
    world = PlantedWorld({"direct": 0.6, "tool_call": 0.95}, clusters=40, writes=0.0)
    found = Compiled(world, tmp_path, world.model()).run(world.task(objective=dse.Objective(**objective), **QUICK_MODES), prices=PRICES)
    assert found.result.winner.split("/")[0] == ("tool_call" if "min_quality" in objective else "direct")


def test_a_null_world_promotes_nothing(tmp_path: Path) -> None:
    same = quick(tmp_path / "same", PlantedWorld({"direct": 0.6, "tool_call": 0.6}, clusters=40, writes=0.0, same_rows=True))
    assert same.result.verdict == "KEEP"
    for seed in range(3):
        world = PlantedWorld({"direct": 0.6, "tool_call": 0.6}, clusters=30, writes=0.0, seed=seed)
        null = quick(tmp_path / str(seed), world)
        assert null.result.verdict != "PROMOTE"
        assert null.registry.get("AskWarehouse@champion").plan.mode == "tool_call"


# ---- allow-lists and demonstrations -----------------------------------------------------------------------


def test_allow_lists_are_those_that_the_plants_imply(best_code: Compiled) -> None:
    requests = {r.receipt["inputs"]["request"] for r in best_code.result.records["search"]}
    assert len(requests) == 10
    by_row = [[WORLD.tools_of(m, r) for m in ("direct", "tool_call", "code") if WORLD.solves(m, r)] for r in sorted(requests)]
    solved = [runs for runs in by_row if runs]
    lists = best_code.result.lists
    assert set(lists.union) == frozenset().union(*itertools.chain(*solved)) == set(AskWarehouse.spec().tool_names)
    smallest = min((set(c) for n in range(5) for c in itertools.combinations(lists.all, n)
                    if all(any(tools <= set(c) for tools in runs) for runs in solved)), key=len)  # fmt: skip
    assert set(lists.minimal) == smallest == {"find_item", "get_stock", "reserve"}
    assert lists.exact and lists.solved_rows == len(solved)
    assert [(t.name, t.effect) for t in best_code.result.artifact.evidence.removed_tools] == [("get_weather", "read")]


def test_a_required_tool_stays(tmp_path: Path) -> None:
    world = PlantedWorld({"tool_call": 0.95}, clusters=40, detours=0.0)
    kept = Compiled(world, tmp_path, world.model()).run(world.task(required=["get_weather"], modes=["tool_call"]))
    assert all("get_weather" in plan.allow for plan in kept.result.plans.values())
    with pytest.raises(PlanError):
        world.task(required=["get_wether"])


def test_demonstrations_come_from_successful_search_rows_only(best_code: Compiled) -> None:
    split_of = best_code.split_of()
    shown = 0
    for name, plan in best_code.result.plans.items():
        for prompt in plan.prompts.values():
            assert len(prompt.demos) <= 2 and (len(prompt.demos) > 0) == name.endswith("/demos")
            for demo in prompt.demos:
                request = demo.get("inputs", demo)["request"]
                assert split_of[request] == "search" and WORLD.solves(plan.mode, request)
                shown += 1
    assert shown >= 3
    text = " ".join(p.model_dump_json() for plan in best_code.result.plans.values() for p in plan.prompts.values())
    assert not [request for request, split in split_of.items() if split != "search" and request in text]


def test_without_a_solved_row_nothing_is_removed_or_shown(tmp_path: Path) -> None:
    hopeless = quick(tmp_path, PlantedWorld({}, clusters=40))
    assert hopeless.result.lists.minimal == hopeless.result.lists.all and hopeless.result.lists.solved_rows == 0
    assert set(hopeless.result.plans) == {"direct/none/seed", "tool_call/all/seed"}
    assert hopeless.result.verdict == "KEEP"


@dataclass
class Teachable:
    """Solves everything once it has been shown how, else few rows."""

    modes: tuple[str, ...]
    world: PlantedWorld = field(init=False)

    def __post_init__(self) -> None:
        self.world = PlantedWorld(dict.fromkeys(self.modes, 0.3), clusters=40, writes=0.5 if "tool_call" in self.modes else 0.0)
        self.taught = replace(self.world, success=dict.fromkeys(self.modes, 1.0))

    def reply(self, request: Any) -> Any:
        first = next(m for m in request["messages"] if m["role"] != "system")
        shown = asked_in({"messages": [first]}) != asked_in(request)
        return (self.taught if shown else self.world).reply(request)

    def compile(self, folder: Path, **options: Any) -> Compiled:
        return Compiled(self.world, folder, ScriptedModel(self.reply, NAME)).run(self.world.task(modes=self.modes), **options)


def test_what_was_measured_is_what_an_artifact_sends(tmp_path: Path) -> None:
    taught = Teachable(("tool_call",)).compile(tmp_path)
    assert (taught.result.winner, taught.result.verdict) == ("tool_call/minimal/demos", "PROMOTE")
    demos = taught.result.artifact.plan.prompts["act"].demos
    arguments = [c["arguments"] for demo in demos for one in demo["rounds"] for c in one["calls"]]
    assert any(list(a) != ["name"] and len(a) == 2 for a in arguments), "a call with two arguments, whose order shows"
    measured = {json.dumps(request) for request in taught.model.requests}  # to the order of keys, which a model sees
    row = taught.result.records["select"][0].receipt["inputs"]
    served = ScriptedModel(taught.model._player.script, NAME)
    program = dse.load(f"{tmp_path}/AskWarehouse@champion", signature=AskWarehouse, lm=served,
                       deps=worlds.Warehouse(worlds._item_of(row["request"])))  # fmt: skip
    program(**row)
    assert served.requests and {json.dumps(request) for request in served.requests} <= measured


def test_sensitive_values_do_not_get_into_an_artifact(tmp_path: Path) -> None:
    @dse.tool(effect="read", sensitive=["secret"])
    def look_up(secret: str) -> str:
        """Look up."""
        return f"found for {secret}"

    class Ask(dse.Signature):
        """Find out."""

        request: str = dse.InputField()
        account: str = dse.InputField(sensitive=True)
        left: int = dse.OutputField()
        tools = [look_up]

    rows = [row | {"account": f"ACCOUNT-{n:04}"} for n, row in enumerate(WORLD.rows())]
    data = Dataset.from_rows(rows, name="asked", cluster_key="site", fields={
        "request": "input", "account": "input", "left": "label", "reserved": "meta", "site": "meta"})  # fmt: skip
    answers = {row["request"]: row["left"] for row in rows}

    def reply(request: Any) -> Any:
        if not request["tools"]:
            return say("[[ ## left ## ]]\n0")
        fields = [m["content"].split("\n") for m in request["messages"] if m["role"] == "user"][-1]
        account, text = (fields[fields.index(f"[[ ## {name} ## ]]") + 1] for name in ("account", "request"))
        if request["messages"][-1]["role"] == "tool":
            return call(("submit", {"left": answers[text]}))
        return call(("look_up", {"secret": account}))

    metric = dse.metric(lambda example, prediction, ctx: prediction.left == example.left, revision="1", name="exact")
    task = dse.Task(Ask, dataset=data, metric=metric, modes=["direct", "tool_call"], environment=lambda example: dse.World())
    result = dse.compile(task, lm=ScriptedModel(reply, NAME), registry=tmp_path)
    shown = result.plans["tool_call/minimal/demos"].prompts["act"].demos
    assert shown and "ACCOUNT" not in str(shown) and "[redacted]" in str(shown)
    assert all(list(demo["inputs"]) == ["account", "request"] for demo in shown), "in the order that a stored artifact has"
    assert not any("ACCOUNT" in path.read_text() for path in (tmp_path / "Ask").glob("*.json"))


# ---- which rows are used for what -------------------------------------------------------------------------


def rows_of(result: CompileResult) -> dict[str, set[str]]:
    used: dict[str, set[str]] = {}
    for record in result.records["select"]:
        used.setdefault(record.candidate, set()).add(record.row_hash)
    return used


def test_all_candidates_of_a_round_run_on_the_same_select_rows(best_code: Compiled) -> None:
    result, every = best_code.result, {r.row_hash for r in WORLD.dataset().split("select")}
    used = rows_of(result)
    assert set(used) == set(result.plans), "each ran, on rows that who stayed longer ran too"
    assert all(a <= b or b <= a for a, b in itertools.combinations(used.values(), 2))
    assert used[result.winner] == used[result.incumbent] == max(used.values(), key=len) <= every
    assert result.race is not None and result.race.rollouts == sum(map(len, used.values())) <= result.race.grid_rollouts
    race = result.artifact.evidence.race
    assert race is not None and (race.rollouts, race.grid_rollouts) == (result.race.rollouts, result.race.grid_rollouts)
    left = {name for one in race.rounds for name in one.dropped}
    assert set(result.plans) - set(race.finalists) <= left, "who did not reach the end has a reason"


def test_the_full_grid_runs_everything(tmp_path: Path) -> None:
    result = quick(tmp_path, allocation="grid").result
    assert set(map(frozenset, rows_of(result).values())) == {frozenset(r.row_hash for r in QUICK.dataset().split("select"))}


def test_the_holdout_is_opened_once_at_the_end_for_winner_and_incumbent(best_code: Compiled) -> None:
    result, split_of = best_code.result, best_code.split_of()
    assert {r.candidate for r in result.records["holdout"]} == {result.winner, result.incumbent}
    count = WORLD.dataset().holdout_summary()["rows"]
    assert len(result.records["holdout"]) == 2 * count == 2 * result.gate.n_rows
    order = [split_of[asked_in(request)] for request in best_code.model.requests]
    start, middle, end = (best_code.stages[name] for name in ("search", "select", "holdout"))
    assert set(order[start:middle]) == {"search"} and set(order[middle:end]) == {"select"} and set(order[end:]) == {"holdout"}
    with_store = Store(best_code.folder / "dse.db")
    (opening,) = with_store.openings()
    with_store.close()
    assert opening["compile_id"] == result.artifact.evidence.inputs_digest and "AskWarehouse" in opening["purpose"]
    assert result.artifact.evidence.holdout_openings == 1


def test_rows_can_be_limited(tmp_path: Path) -> None:
    few = quick(tmp_path, rows=Rows(search=4, select=6, holdout=9))
    assert [len({r.row_hash for r in few.result.records[s]}) for s in ("search", "select", "holdout")] == [4, 6, 9]
    splits = few.result.artifact.evidence.dataset.split
    assert (splits.search.rows, splits.select.rows) == (4, 6)


def test_a_holdout_that_could_decide_nothing_is_refused_before_anything_runs(tmp_path: Path) -> None:
    small = PlantedWorld(clusters=20)
    for world, rows in ((small, None), (WORLD, Rows(holdout=7))):
        model = world.model()
        with pytest.raises(MissingHoldout, match="fewer than 8"):
            dse.compile(world.task(), lm=model, registry=tmp_path, rows=rows)
        assert model.requests == []
    unselected = Dataset.from_rows(WORLD.rows(), name="w", cluster_key="site", quota={"search": 0.5, "select": 0.0, "holdout": 0.5},
                                   fields={"request": "input", "left": "label", "reserved": "label", "site": "meta"})  # fmt: skip
    with pytest.raises(DatasetError, match="no select rows"):
        dse.compile(WORLD.task(dataset=unselected), lm=WORLD.model(), registry=tmp_path)


# ---- verdicts and aliases ---------------------------------------------------------------------------------


def test_promotion_moves_the_champion_and_the_baseline_came_first(best_direct: Compiled) -> None:
    artifact = best_direct.result.artifact
    moves = [(r.action, r.alias, r.verdict, r.reason) for r in best_direct.registry.history("AskWarehouse")]
    assert moves == [("promote", "champion", "KEEP", "baseline"), ("alias", "candidate", "PROMOTE", "verdict PROMOTE"),
                     ("promote", "champion", "PROMOTE", "")]  # fmt: skip
    previous = best_direct.registry.get("AskWarehouse@previous")
    assert (previous.plan.mode, previous.evidence.incumbent.kind) == ("tool_call", "baseline")
    assert best_direct.aliases == {"champion": artifact.artifact_id, "previous": previous.artifact_id}
    assert artifact.verify(recompute=recompute).ok and previous.verify(recompute=recompute).ok


def test_an_artifact_says_what_it_was_compiled_from(best_code: Compiled) -> None:
    evidence, envelope = best_code.result.artifact.evidence, best_code.result.artifact.envelope
    assert (evidence.model_label, evidence.price_table) == (NAME, "planted prices")
    assert (evidence.dataset.revision, evidence.metric.name) == (WORLD.dataset().revision, "stock_right")
    assert evidence.candidates_tried == len(best_code.result.plans) == len(evidence.modes)
    every = {r.rollout_id: r for records in best_code.result.records.values() for r in records}
    assert evidence.spend.model_calls == sum(r.model_calls for r in every.values()) == len(best_code.model.requests)
    assert evidence.spend.cost_usd == pytest.approx(sum(r.cost_usd or 0 for r in every.values()))
    assert (evidence.spend.cost_source, evidence.spend.usage_source) == ("estimated", "estimated")
    assert envelope.budget == {"usd": None, "model_calls": None, "minutes": 10, "tokens": None}
    assert best_code.result.spent["model_calls"] == len(best_code.model.requests)


def test_the_champion_is_the_incumbent_of_the_next_compile(tmp_path: Path) -> None:
    first = quick(tmp_path)
    second = quick(tmp_path)
    incumbent = second.result.artifact.evidence.incumbent
    assert (incumbent.kind, incumbent.artifact_id) == ("champion", first.result.artifact.artifact_id)
    assert second.model.requests == [], "all rollouts are in the store"
    assert second.result.verdict == "KEEP" and second.aliases["champion"] == first.result.artifact.artifact_id
    assert second.aliases["candidate"] == second.result.artifact.artifact_id
    assert second.result.artifact.evidence.holdout_openings == 1, "the champion was chosen again: nothing was compared"
    purposes = [opening["purpose"].split(" AskWarehouse")[0] for opening in Store(tmp_path / "dse.db").openings()]
    assert sorted(purposes) == ["gate", "no test of"], "it is in the ledger all the same"
    third = quick(tmp_path)
    assert third.result.artifact.artifact_id == second.result.artifact.artifact_id


def test_the_ledger_counts_overlapping_holdouts_of_other_compiles(tmp_path: Path) -> None:
    store = Store(tmp_path / "shared.db")
    openings = [quick(tmp_path / str(n), store=store, seed=n).result.artifact.evidence.holdout_openings for n in range(3)]
    other = quick(tmp_path / "other", PlantedWorld({"direct": 0.9}, clusters=40, writes=0.0, seed=5), store=store)
    store.close()
    assert openings == [1, 2, 3] and other.result.artifact.evidence.holdout_openings == 1


def test_insufficient_sets_the_candidate_only(tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 0.75, "tool_call": 0.4}, clusters=30, writes=0.0)
    unsure = quick(tmp_path, world, rows=Rows(holdout=8))
    assert (unsure.result.winner, unsure.result.verdict) == ("direct/none/seed", "INSUFFICIENT")
    assert unsure.registry.get("AskWarehouse@champion").plan.mode == "tool_call"
    assert unsure.aliases["candidate"] == unsure.result.artifact.artifact_id
    assert unsure.result.gate.rows_needed


def test_a_champion_that_cannot_run_here_is_neither_incumbent_nor_replaced(tmp_path: Path) -> None:
    world = replace(QUICK, clusters=60)
    first = quick(tmp_path, world)
    other = Compiled(world, tmp_path, ScriptedModel(world.reply, "scripted/other")).run(world.task(**QUICK_MODES))
    assert other.result.verdict == "PROMOTE" and other.result.artifact.evidence.incumbent.kind == "baseline"
    assert other.aliases["champion"] == first.result.artifact.artifact_id
    assert other.aliases["candidate"] == other.result.artifact.artifact_id
    assert any("another model" in note for note in other.result.notes) and any("not the champion" in n for n in other.result.notes)


class Contested(dse.Registry):
    """A registry in which another compile of the signature ends just when this one has done a step."""

    def __init__(self, root: Path, before: str, other: Callable[[dse.Registry], None]) -> None:
        super().__init__(root)
        self.before, self.other = before, other

    def happen(self, step: str) -> None:
        if step == self.before:
            self.before = ""
            self.other(dse.Registry(self.root))

    def set_alias(self, signature: str, alias: str, *args: Any, **options: Any) -> None:
        super().set_alias(signature, alias, *args, **options)
        self.happen(alias)

    def aliases(self, signature: str) -> dict[str, str]:
        found = super().aliases(signature)
        self.happen("aliases" if not found and (self.root / signature).exists() else "")
        return found


def test_what_another_compile_makes_the_candidate_meanwhile_is_not_promoted(tmp_path: Path) -> None:
    kept = quick(tmp_path / "other", PlantedWorld({"tool_call": 0.9}, clusters=30, writes=0.0)).result.artifact

    def other(registry: dse.Registry) -> None:
        registry.put(kept)
        registry.set_alias("AskWarehouse", "candidate", kept.artifact_id, reason="verdict KEEP")

    mine = quick(tmp_path / "here", registry=Contested(tmp_path / "here", "candidate", other))
    assert (kept.verdict, mine.result.verdict) == ("KEEP", "PROMOTE")
    assert mine.aliases["champion"] == mine.result.artifact.artifact_id and mine.aliases["candidate"] == kept.artifact_id


def test_what_another_compile_promotes_meanwhile_stays_the_champion(tmp_path: Path) -> None:
    theirs = quick(tmp_path / "other", seed=7).result.artifact

    def other(registry: dse.Registry) -> None:
        registry.put(theirs)
        registry.promote(f"AskWarehouse@{theirs.artifact_id}")

    mine = quick(tmp_path / "here", registry=Contested(tmp_path / "here", "aliases", other))
    assert mine.result.verdict == theirs.verdict == "PROMOTE" and mine.result.artifact.artifact_id != theirs.artifact_id
    assert mine.aliases == {"champion": theirs.artifact_id, "candidate": mine.result.artifact.artifact_id}
    assert any("not the champion" in note for note in mine.result.notes)


def test_a_champion_with_a_changed_tool_is_not_run(tmp_path: Path) -> None:
    world = PlantedWorld({"tool_call": 0.9}, clusters=40)
    first = Compiled(world, tmp_path, world.model()).run(world.task(modes=["tool_call"]))
    assert first.registry.get("AskWarehouse@champion").plan.mode == "tool_call"

    @dse.tool(effect="read", name="get_weather")
    def get_forecast(city: str, day: int = 0) -> str:
        """The weather on a day."""
        return "rain"

    class Changed(dse.Signature):
        """Answer a request to a warehouse."""

        request: str = dse.InputField(desc="what to find out or do")
        left: int = dse.OutputField(desc="pieces that are left in the end")
        tools = [worlds.find_item, worlds.get_stock, worlds.reserve, get_forecast]

    Changed.__name__ = "AskWarehouse"
    assert replace(Changed.spec(), name="AskWarehouse").signature_id == AskWarehouse.spec().signature_id
    Changed._spec = replace(Changed.spec(), name="AskWarehouse")
    task = dse.Task(Changed, dataset=world.dataset(), metric=worlds.stock_right, environment=worlds.warehouse, modes=["tool_call"])
    second = Compiled(world, tmp_path, world.model()).run(task)
    assert any("other tools" in note for note in second.result.notes)
    assert second.result.artifact.evidence.incumbent.kind == "baseline"
    assert second.aliases["champion"] == first.aliases["champion"]


def test_a_champion_whose_demonstrations_are_now_judged_on_is_refused(tmp_path: Path) -> None:
    teachable = Teachable(("direct",))
    first = teachable.compile(tmp_path)
    assert first.result.winner.endswith("/demos") and first.result.verdict == "PROMOTE"
    shown = {d["request"] for p in first.result.artifact.plan.prompts.values() for d in p.demos}
    sites = {row["site"] for row in first.world.rows() if row["request"] in shown}
    for split in ("select", "holdout"):
        moved = Dataset.from_rows(first.world.rows(), name="warehouse", cluster_key="site", assignment=dict.fromkeys(sites, split),
                                  fields={"request": "input", "left": "label", "reserved": "label", "site": "meta"})  # fmt: skip
        task = first.world.task(modes=["direct"], dataset=moved)
        model, store = ScriptedModel(teachable.reply, NAME), Store(":memory:")
        with pytest.raises(ContaminatedSplit, match=f"{split} rows"):
            dse.compile(task, lm=model, registry=tmp_path, store=store)
        assert store.openings() == [], "the seal is not broken"
        store.close()


# ---- reproducibility --------------------------------------------------------------------------------------


def test_equal_inputs_give_the_same_artifact(tmp_path: Path, best_direct: Compiled) -> None:
    for n, concurrency in enumerate((1, 5)):
        again = quick(tmp_path / str(n), concurrency=concurrency)
        assert again.result.artifact.artifact_id == best_direct.result.artifact.artifact_id


def test_a_recording_and_its_replays_give_the_same_artifact(tmp_path: Path) -> None:
    """All modes; two recordings made in different orders, each replayed in another one."""
    world = PlantedWorld(clusters=28)
    ids = []
    for n in (1, 6):
        file = tmp_path / f"{n}.jsonl"
        recorded = Compiled(world, tmp_path / f"r{n}", world.model()).run(record=file, concurrency=n)
        replayed = dse.compile(world.task(), lm=f"replay:{file}", registry=tmp_path / f"p{n}", concurrency=7 - n)
        ids += [recorded.result.artifact.artifact_id, replayed.artifact.artifact_id]
    assert len(set(ids)) == 1
    one, other = ([e.key for e in Cassette.open(tmp_path / f"{n}.jsonl")] for n in (1, 6))
    assert sorted(one) == sorted(other)
    artifact = replayed.artifact
    assert artifact.evidence.model_label == f"recorded from {NAME}" and str(tmp_path) not in artifact.to_bytes().decode()
    assert {row.latency_source for row in artifact.evidence.modes} == {"recorded"}


def test_an_artifact_depends_on_what_went_into_it(tmp_path: Path, best_direct: Compiled) -> None:
    base = best_direct.result.artifact
    seeded = quick(tmp_path / "seed", seed=1).result.artifact
    priced = quick(tmp_path / "prices", prices=PRICES).result.artifact
    dearer = quick(tmp_path / "dear", prices=dse.PriceTable("planted prices", "2026-01-01", {NAME: (2.0, 8.0)})).result.artifact
    assert len({a.artifact_id for a in (base, seeded, priced, dearer)}) == 4
    assert len({a.evidence.inputs_digest for a in (base, seeded, priced, dearer)}) == 4
    assert {a.program_id for a in (base, seeded, priced, dearer)} == {base.program_id}


def test_sealed_rows_that_resemble_each_other_are_told(tmp_path: Path, best_direct: Compiled) -> None:
    assert not any("resemble" in note for note in best_direct.result.artifact.evidence.notes)
    plain = QUICK.dataset()
    signed = (" Please look it up in the warehouse and tell me the number, no more than that. I need it before the lorry leaves at "
              "noon, since whatever is missing has to be bought elsewhere, at twice the price. Yours, Ada of the upper shop.")  # fmt: skip
    rows = [row | {"request": row["request"] + signed * (plain.assignment[row["site"]] == "holdout")} for row in QUICK.rows()]
    alike = Dataset.from_rows(rows, name="warehouse", fields=plain.fields, cluster_key="site", assignment=plain.assignment)
    count = alike.holdout_alike()
    notes = quick(tmp_path, QUICK, alike).result.artifact.evidence.notes
    assert count > 1 and any(f"{count} of 9 sealed rows resemble sealed rows of other clusters" in note for note in notes)


def test_which_rows_belong_together_is_part_of_what_went_in(tmp_path: Path) -> None:
    world = replace(QUICK, rows_per_cluster=2)
    data, rows = world.dataset(), world.rows()
    alone = Dataset.from_rows(rows, name="warehouse", fields=data.fields,  # the same rows and splits, each row on its own
                              assignment={row["id"]: data.assignment[row["site"]] for row in rows})  # fmt: skip
    assert (alone.revision, alone.split_hashes) == (data.revision, data.split_hashes)
    assert all(alone.cluster_hashes[split] != data.cluster_hashes[split] for split in ("search", "select", "holdout"))
    together, apart = (quick(tmp_path / name, world, which)
                       for name, which in (("together", data), ("apart", alone)))  # fmt: skip
    assert apart.result.gate.n_clusters == 2 * together.result.gate.n_clusters
    assert apart.result.artifact.evidence.inputs_digest != together.result.artifact.evidence.inputs_digest


# ---- budgets and interruptions ----------------------------------------------------------------------------


@pytest.mark.parametrize("budget, bound", [
    (dse.Budget(model_calls=25), lambda spent: spent["model_calls"] == 25),
    (dse.Budget(usd=0.02), lambda spent: 0.015 < spent["usd"] <= 0.02),
])  # fmt: skip
def test_a_budget_is_kept_and_the_next_run_ends_where_an_undisturbed_one_does(
    tmp_path: Path, best_direct: Compiled, budget: dse.Budget, bound: Any
) -> None:
    params = {"max_tokens": 200}
    whole = Compiled(QUICK, tmp_path / "whole", QUICK.model(params=params)).run(QUICK.task(**QUICK_MODES), prices=PRICES)
    cut = Compiled(QUICK, tmp_path / "cut", QUICK.model(params=params))
    with pytest.raises(BudgetExhausted) as caught:
        cut.run(QUICK.task(**QUICK_MODES), prices=PRICES, budget=budget, concurrency=2)
    assert bound(caught.value.details["spent"]), caught.value.details["spent"]
    assert len(cut.model.requests) == caught.value.details["spent"]["model_calls"]
    assert cut.aliases == {}
    asked = len(cut.model.requests)
    cut.run(QUICK.task(**QUICK_MODES), prices=PRICES, budget=dse.Budget(usd=5.0, model_calls=10_000))
    assert cut.result.artifact.artifact_id == whole.result.artifact.artifact_id
    # Without a recording, the rounds of rollouts that were cut short are asked for again: two at most.
    assert asked <= len(cut.model.requests) <= len(whole.model.requests) + 2 * 2


def test_with_a_recording_nothing_is_paid_for_twice(tmp_path: Path, best_direct: Compiled) -> None:
    file, model = tmp_path / "c.jsonl", QUICK.model()
    rounds = 0
    while rounds < 20:
        rounds += 1
        try:
            result = dse.compile(QUICK.task(**QUICK_MODES), lm=model, registry=tmp_path / "a", store=tmp_path / f"{rounds}.db",
                                 record=file, budget=dse.Budget(model_calls=40))  # fmt: skip
            break
        except BudgetExhausted:
            assert len(model.requests) == 40 * rounds
    assert rounds > 2 and len(model.requests) == len(best_direct.model.requests)
    assert result.artifact.evidence.model_label == f"recorded from {NAME}"


def test_time_is_a_budget_and_a_replay_spends_no_money(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    model = QUICK.model()
    with pytest.raises(BudgetExhausted, match="minutes"):
        dse.compile(QUICK.task(**QUICK_MODES), lm=model, registry=tmp_path / "a", budget=dse.Budget(minutes=1e-9))
    assert model.requests == []
    recorded = quick(tmp_path / "b", record=file, prices=PRICES).result
    budget = dse.Budget(model_calls=1, usd=1e-9)
    replayed = dse.compile(QUICK.task(**QUICK_MODES), lm=f"replay:{file}", registry=tmp_path / "c", budget=budget, prices=PRICES)
    assert replayed.artifact.artifact_id == recorded.artifact.artifact_id
    assert (replayed.spent["model_calls"], replayed.spent["usd"]) == (0, 0.0)
    with pytest.raises(BudgetExhausted):
        dse.compile(QUICK.task(**QUICK_MODES), lm=f"replay:{file}", registry=tmp_path / "d", budget=dse.Budget(minutes=1e-9))


def test_money_needs_a_price(tmp_path: Path) -> None:
    for prices in (None, dse.PriceTable("others", "2026-01-01", {"openai/x": (1, 1)})):
        model = QUICK.model()
        with pytest.raises(UserError, match="price"):
            dse.compile(QUICK.task(), lm=model, registry=tmp_path, budget=dse.Budget(usd=1), prices=prices)
        assert model.requests == []
    for wrong in ({"usd": 0}, {"model_calls": -1}, {"minutes": float("nan")}, {"usd": True}, {"model_calls": 1.5}, {"usd": float("inf")}):
        with pytest.raises(UserError, match="Budget"):
            dse.Budget(**wrong)  # type: ignore[arg-type]


def test_infrastructure_that_fails_in_the_middle_leaves_everything_resumable(tmp_path: Path, best_direct: Compiled) -> None:
    model = QUICK.model()
    healthy = model._player.script
    model._player.script = lambda request: healthy(request) if len(model.requests) < 60 else ModelUnavailable("down", retry_after_s=1e6)
    broken = Compiled(QUICK, tmp_path, model)
    with pytest.raises(InfrastructureError):
        broken.run(QUICK.task(**QUICK_MODES))
    assert broken.aliases == {}
    fresh = Compiled(QUICK, tmp_path, QUICK.model()).run(QUICK.task(**QUICK_MODES))
    assert fresh.result.artifact.artifact_id == best_direct.result.artifact.artifact_id
    assert len(fresh.model.requests) < len(best_direct.model.requests)


# ---- refused early ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective, field", [({"cost_weight": 1.0}, "cost_weight"), ({"max_cost": 1.0}, "max_cost")])
def test_an_unknown_cost_shows_after_the_first_rollout(tmp_path: Path, objective: dict[str, float], field: str) -> None:
    task = QUICK.task(objective=dse.Objective(**objective), modes=["tool_call", "direct"])
    model = QUICK.model()
    with pytest.raises(UserError, match="cost of a run is unknown") as caught:
        dse.compile(task, lm=model, registry=tmp_path)
    assert caught.value.details["field"] == field
    assert len({asked_in(request) for request in model.requests}) == 1 and len(model.requests) == 3
    unpriced = QUICK.model()
    with pytest.raises(UserError, match="cost of a run is unknown"):
        dse.compile(task, lm=unpriced, registry=tmp_path, prices=dse.PriceTable("others", "2026-01-01", {}))
    assert unpriced.requests == []


def test_a_cost_that_nobody_can_know_is_refused_before_the_first_request(tmp_path: Path) -> None:
    """A recording without costs, and an engine whose responses have no price."""
    from dse.portal import run_sync
    from dse.testing.scripted import ScriptedEngine

    recorder = RecordModel(QUICK.model(), tmp_path / "c.jsonl")
    dse.compile(QUICK.task(**QUICK_MODES), lm=recorder, registry=tmp_path / "a")
    run_sync(recorder.aclose)
    priced = QUICK.task(objective=dse.Objective(cost_weight=1.0), **QUICK_MODES)
    told: list[str] = []
    with pytest.raises(UserError, match="cost of a run is unknown") as caught:
        dse.compile(priced, lm=f"replay:{tmp_path / 'c.jsonl'}", registry=tmp_path / "b", say=told.append)
    assert "--prices FILE" in str(caught.value) and not any(line.startswith("search:") for line in told)
    engine = ScriptedEngine([])
    with pytest.raises(UserError, match="cost of a run is unknown"):
        dse.compile(priced, lm=engine, registry=tmp_path / "d")
    assert engine.requests == []


def test_a_compile_says_first_what_it_will_take(tmp_path: Path) -> None:
    told: list[str] = []
    model = QUICK.model()
    rows = Rows(search=5, select=6, holdout=9)

    def say(line: str) -> None:
        told.append(f"{len(model.requests)} {line}")

    options: dict[str, Any] = {"registry": tmp_path, "rows": rows, "say": say}
    with pytest.raises(BudgetExhausted):
        dse.compile(QUICK.task(**QUICK_MODES), lm=model, budget=dse.Budget(model_calls=25), **options)
    # 5 rows x 2 modes, 6 rows x (direct seed and demos, tool_call x 3 allow-lists and demos, the incumbent), 9 rows x 2
    assert any(line.startswith("0 plan: at most 70 rollouts: ") for line in told), told
    more = next(line for line in told if "more model calls" in line)
    assert more.startswith("20 plan: about ") and more.endswith("; the budget has 5 left, likely too few"), more
    assert "direct 1.0, tool_call 3.0 per run" in more
    assert not any("opened" in line for line in told), "the holdout is as new"
    result = dse.compile(QUICK.task(**QUICK_MODES), lm=model, **options)
    expected = int(more.split("about ")[1].split()[0])
    later = len(model.requests) - 20
    assert result.artifact.evidence.holdout_openings == 1 and 0.5 * expected < later < 1.5 * expected, (expected, later)
    told.clear()
    fresh = {**options, "registry": tmp_path / "other", "store": tmp_path / "dse.db"}  # without its champion
    again = dse.compile(QUICK.task(**QUICK_MODES), lm=model, seed=1, **fresh)
    assert again.artifact.evidence.holdout_openings == 2
    assert any("was opened once before in this store" in line for line in told), told


def test_a_cost_that_is_known_at_first_and_not_later_is_refused_before_the_holdout(tmp_path: Path) -> None:
    from dse.models.lm import Usage

    def reply(request: Any) -> Any:
        completion = QUICK.reply(request)
        return completion if len(model.requests) < 60 else replace(completion, usage=Usage(None, 1, "unknown"))

    model = ScriptedModel(reply, NAME)
    store = Store(":memory:")
    with pytest.raises(UserError, match="cost of a run is unknown"):
        dse.compile(QUICK.task(objective=dse.Objective(max_cost=1.0), **QUICK_MODES), lm=model, registry=tmp_path, store=store,
                    prices=PRICES)  # fmt: skip
    assert store.openings() == []
    store.close()


def test_latencies_that_say_nothing_decide_nothing(tmp_path: Path) -> None:
    from dse.portal import run_sync

    recorder = RecordModel(QUICK.model(), tmp_path / "c.jsonl", latency="not representative")
    dse.compile(QUICK.task(**QUICK_MODES), lm=recorder, registry=tmp_path / "a")
    run_sync(recorder.aclose)
    timed = QUICK.task(objective=dse.Objective(latency_weight=0.1), **QUICK_MODES)
    with pytest.raises(UserError, match="latency of a run is unknown"):
        dse.compile(timed, lm=f"replay:{tmp_path / 'c.jsonl'}", registry=tmp_path / "b")


def test_write_tools_without_a_world_are_refused_before_anything_runs(tmp_path: Path) -> None:
    model = WORLD.model()
    with pytest.raises(EnvironmentRequired):
        dse.compile(WORLD.task(environment=None), lm=model, registry=tmp_path)
    assert model.requests == []


def test_live_reads_are_noted_in_the_evidence(tmp_path: Path) -> None:
    class Ask(dse.Signature):
        """Ask for the weather."""

        request: str = dse.InputField()
        left: int = dse.OutputField()
        tools = [worlds.get_weather]

    def reply(request: Any) -> Any:
        return call(("submit", {"left": 1})) if request["tools"] else say("[[ ## left ## ]]\n1")

    metric = dse.metric(lambda example, prediction, ctx: 1.0, revision="1", name="any")
    task = dse.Task(Ask, dataset=WORLD.dataset(), metric=metric, **QUICK_MODES)
    with pytest.warns(LiveReads, match="get_weather"):
        result = dse.compile(task, lm=ScriptedModel(reply, NAME), registry=tmp_path)
    assert any("live" in note and "get_weather" in note for note in result.artifact.evidence.notes)


@pytest.mark.parametrize("make", [
    lambda: Rows(search=0), lambda: Rows(holdout=True), lambda: Space(allow=("some",)), lambda: Space(allow=()),
    lambda: Space(allow={"telepathy": ("all",)}), lambda: Space(demos=-1), lambda: Space(demos={"code": 1.5}),
])  # fmt: skip
def test_impossible_settings_are_refused(make: Any) -> None:
    with pytest.raises(UserError):
        make()


def test_the_space_can_be_narrowed(tmp_path: Path) -> None:
    world = replace(WORLD, clusters=30, detours=0.0)
    narrow = quick(tmp_path / "a", world, space=Space(allow=("minimal",), demos={"direct": 1}))
    assert set(narrow.result.plans) == {"direct/none/seed", "direct/none/demos", "tool_call/minimal/seed", "baseline"}
    assert narrow.result.incumbent == "baseline" and len(narrow.result.plans["baseline"].allow) == 4
    crossed = quick(tmp_path / "b", world, space=Space(cross=True, demos=1))
    assert {"tool_call/all/demos", "tool_call/union/demos"} <= set(crossed.result.plans)


# ---- what is left behind ----------------------------------------------------------------------------------


class Closable(ScriptedModel):
    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
def own_model() -> Iterator[Closable]:
    yield Closable(QUICK.reply, NAME)


def test_what_compile_opened_it_closes_and_nothing_else(tmp_path: Path, own_model: Closable) -> None:
    file = tmp_path / "c.jsonl"
    dse.compile(QUICK.task(**QUICK_MODES), lm=own_model, registry=tmp_path / "a", record=file)
    assert own_model.closed == 0
    again = RecordModel(own_model, file)  # the file is free
    dse.compile(QUICK.task(**QUICK_MODES), lm=again, registry=tmp_path / "b")
    assert not again._file.closed
    from dse.portal import run_sync

    run_sync(again.aclose)
    with pytest.raises(ModelError, match="replay is not recorded"):
        dse.compile(QUICK.task(**QUICK_MODES), lm=resolve_model(f"replay:{file}"), registry=tmp_path / "c", record=tmp_path / "d.jsonl")


def test_a_compile_is_kept_in_its_store(best_code: Compiled) -> None:
    store = Store(best_code.folder / "dse.db")
    (kept,) = store.compiles()
    assert (kept["signature"], kept["artifact_id"]) == ("AskWarehouse", best_code.result.artifact.artifact_id)
    report = kept["report"]
    assert (report["winner"], report["gate"]["verdict"]) == (best_code.result.winner, "PROMOTE")
    assert {stage: len(pairs) for stage, pairs in report["rollouts"].items()} == {
        stage: len(records) for stage, records in best_code.result.records.items()
    }
    store.close()
