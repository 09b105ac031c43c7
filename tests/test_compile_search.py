"""A compile with proposers, several models, budgets that all share, and processes that die."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import dse
from benchmarks import compile_chaos
from dse.compiler.budget import BudgetedModel, Purse
from dse.compiler.choose import measure, winner
from dse.compiler.revision import revision_of
from dse.compiler.rollouts import Rollouts
from dse.errors import BudgetExhausted, ContaminatedSplit, UserError
from dse.evaluation.evaluator import Evaluator
from dse.evaluation.holdout import Holdout, Sealed
from dse.evaluation.judge import rating
from dse.portal import run_sync
from dse.strategies.base import seed_plan
from dse.testing.scripted import ScriptedModel, say
from dse.testing.worlds import NAME, PlantedWorld

WORLD = PlantedWorld({"direct": 1.0, "tool_call": 0.25}, clusters=40, writes=0.0)
MODES = {"modes": ["direct", "tool_call"]}


@dataclass(frozen=True)
class Told:
    """Proposes what the reflection model says, as instructions of mode ``direct``."""

    rows: tuple[str, ...] = ()
    name: str = "told"

    async def propose(self, search: dse.Search) -> Sequence[dse.Proposal]:
        text = await search.reflect("How should one answer?")
        seed = seed_plan(search.spec, "direct", limits=search.limits)
        prompts = {name: dse.Prompt(instructions=f"{one.instructions}\n{text}") for name, one in seed.prompts.items()}
        plan = dse.Plan(mode="direct", prompts=prompts, limits=search.limits)
        await search.evaluate({"direct/none/told": plan}, search.rows[:2], None)
        return [dse.Proposal(plan, "told", self.rows, ("as told",))]


def reflecting(world: PlantedWorld = WORLD, name: str = "scripted/planted") -> ScriptedModel:
    def reply(request: Any) -> Any:
        if request["messages"][0]["content"].startswith("How should"):
            return say("Count well.")
        return world.reply(request)

    return ScriptedModel(reply, name)


def test_what_a_proposer_gives_is_raced_and_accounted_for(tmp_path: Path) -> None:
    model = reflecting()
    result = dse.compile(WORLD.task(**MODES), lm=model, registry=tmp_path, search=[Told()])
    evidence = result.artifact.evidence
    assert "direct/none/told" in result.table and result.candidates["direct/none/told"].source == "told"
    (report,) = evidence.proposers
    assert (report.name, report.candidates, report.rollouts, report.reflections) == ("told", ("direct/none/told",), 2, 1)
    assert report.notes == ("as told",) and evidence.reflection_model == model.name
    stages = {one.stage: one.model_calls for one in evidence.stages}
    assert stages["search: told"] == 3, "two rollouts of one call, one reflection"
    assert sum(stages.values()) == evidence.spend.model_calls == len(model.requests) == result.spent["model_calls"]


def test_the_same_compile_again_asks_for_no_reflection_twice(tmp_path: Path) -> None:
    model = reflecting()
    first = dse.compile(WORLD.task(**MODES), lm=model, registry=tmp_path / "a", store=tmp_path / "s.db", search=[Told()])
    asked = len(model.requests)
    again = dse.compile(WORLD.task(**MODES), lm=model, registry=tmp_path / "b", store=tmp_path / "s.db", search=[Told()])
    assert len(model.requests) == asked and again.artifact.program_id == first.artifact.program_id


def test_a_proposal_may_show_search_rows_only(tmp_path: Path) -> None:
    shown = WORLD.dataset().split("select")[0].row_hash
    with pytest.raises(ContaminatedSplit, match="not search rows"):
        dse.compile(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path, search=[Told((shown,))])


@dataclass(frozen=True)
class Peeking:
    """Runs a select row."""

    row: Any
    name: str = "peeking"
    revision: str = "1"

    async def propose(self, search: dse.Search) -> Sequence[dse.Proposal]:
        assert not any(hasattr(search, name) for name in ("dataset", "data", "task", "open_holdout"))
        await search.evaluate({"x": seed_plan(search.spec, "direct")}, [self.row], None)
        return []


def test_a_proposer_cannot_run_rows_of_another_split(tmp_path: Path) -> None:
    with pytest.raises(ContaminatedSplit, match="search rows only"):
        dse.compile(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path, search=[Peeking(WORLD.dataset().split("select")[0])])


def test_what_is_no_proposer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="proposers"):
        dse.compile(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path, search=[Told])  # type: ignore[list-item]


def test_the_best_of_several_models_wins_and_is_named(tmp_path: Path) -> None:
    weak = PlantedWorld({"direct": 0.2, "tool_call": 0.25}, clusters=40, writes=0.0)
    models = [reflecting(weak, "scripted/weak"), reflecting(WORLD, "scripted/strong")]
    result = dse.compile(WORLD.task(**MODES), lm=models, registry=tmp_path)
    assert result.artifact.model_name == "scripted/strong" and result.winner.endswith("@scripted/strong")
    evidence = result.artifact.evidence
    assert evidence.incumbent.model == "scripted/weak" and evidence.models == ("scripted/weak", "scripted/strong")
    assert {row.model for row in evidence.modes} == set(evidence.models)
    with pytest.raises(UserError, match="given twice"):
        dse.compile(WORLD.task(**MODES), lm=[models[0], models[0]], registry=tmp_path / "twice")


def test_tokens_are_a_budget_that_proposals_share(tmp_path: Path) -> None:
    model = reflecting()
    with pytest.raises(BudgetExhausted, match="tokens") as caught:
        dse.compile(WORLD.task(**MODES), lm=model, registry=tmp_path, search=[Told()], budget=dse.Budget(tokens=30_000))
    assert caught.value.details["spent"]["tokens"] <= 30_000 and model.requests


def test_a_forecast_spends_nothing(tmp_path: Path) -> None:
    model = reflecting()
    told = dse.forecast(WORLD.task(**MODES), lm=model, registry=tmp_path, rows=dse.Rows(search=5), search=[Told()])
    assert not model.requests and told.proposers == ("told",) and not dse.Registry(tmp_path).aliases("AskWarehouse")
    assert set(told.modes) == {"direct", "tool_call"} and 0 < told.tokens and told.usd is None
    assert told.most_model_calls is not None and told.model_calls < told.most_model_calls and told.mde is not None
    assert "at most" in str(told) and "unknown (no price)" in str(told)


@pytest.mark.parametrize("store", [None, "stores/mine.db", "sqlite:///{}/stores/mine.db"])
def test_a_forecast_makes_no_file(tmp_path: Path, store: str | None) -> None:
    given = {} if store is None else {"store": store.format(tmp_path) if "://" in store else tmp_path / store}
    told = dse.forecast(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path / "artifacts", record=tmp_path / "new" / "c.jsonl",
                        reflection_lm=reflecting(name="scripted/other"), search=[Told()], **given)  # fmt: skip
    assert told.model_calls and list(tmp_path.iterdir()) == []


def test_a_forecast_leaves_what_is_there_as_it_is(tmp_path: Path) -> None:
    options: dict[str, Any] = {"registry": tmp_path, "record": tmp_path / "c.jsonl"}
    dse.compile(WORLD.task(**MODES), lm=reflecting(), **options)

    def files() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    before = files()
    told = dse.forecast(WORLD.task(**MODES), lm=reflecting(), **options)
    assert "earlier rollouts" in str(told) and told.openings == 1 and files() == before


def test_the_most_that_is_forecast_is_at_the_price_of_the_dearest_model(tmp_path: Path) -> None:
    models = [reflecting(name="scripted/cheap"), reflecting(name="scripted/dear")]
    prices = dse.PriceTable("p", "2026-01-01", {"scripted/cheap": (1.0, 4.0), "scripted/dear": (100.0, 400.0)})
    options: dict[str, Any] = {"lm": models, "registry": tmp_path, "prices": prices}
    task = WORLD.task(**MODES, limits=dse.Limits(model_calls=3, tokens=1500))
    told = dse.forecast(task, **options)
    result = dse.compile(task, **options)
    assert told.usd is not None and told.most_usd is not None and result.spent["usd"] <= told.most_usd and told.usd <= told.most_usd
    one = dse.PriceTable("p", "2026-01-01", {"scripted/cheap": (1.0, 4.0)})
    assert dse.forecast(task, **options | {"prices": one}).most_usd is None, "the price of one of them is unknown"


def test_a_forecast_bounds_only_what_has_a_bound(tmp_path: Path) -> None:
    prices = dse.PriceTable("p", "2026-01-01", {NAME: (1.0, 4.0)})
    options: dict[str, Any] = {"lm": reflecting(), "registry": tmp_path, "prices": prices}
    open_ = dse.forecast(WORLD.task(**MODES), **options)
    assert (open_.most_tokens, open_.most_usd) == (None, None) and open_.usd and open_.modes["direct"].most_tokens is None
    assert "unbounded tokens, unbounded USD" in str(open_) and "no bound: tokens, without Limits(tokens=)" in str(open_)
    limited = dse.forecast(WORLD.task(**MODES, limits=dse.Limits(model_calls=3, tokens=500)), **options)
    rollouts = sum(most for _, most in limited.stages.values())
    assert (limited.most_model_calls, limited.most_tokens) == (3 * rollouts, 500 * rollouts)
    assert limited.most_usd == pytest.approx(500 * rollouts * 4e-6) and "unbounded" not in str(limited) and not limited.unbounded
    again = dse.forecast(WORLD.task(**MODES, limits=dse.Limits(model_calls=3, tokens=500, outcomes={"tokens": "retry"})), **options)
    assert (again.most_model_calls, again.most_tokens) == (6 * rollouts, 1000 * rollouts), "an attempt begins with limits as new"
    paid = dse.forecast(WORLD.task(**MODES), budget=dse.Budget(model_calls=50, tokens=9000, usd=0.5), **options)
    assert (paid.most_model_calls, paid.most_tokens, paid.most_usd) == (50, 9000, 0.5) and not paid.unbounded
    with_proposals = dse.forecast(WORLD.task(**MODES), search=[Told()], budget=dse.Budget(model_calls=10**6), **options)
    assert with_proposals.most_model_calls == 10**6, "proposals may take what the budget has left"


def test_a_forecast_says_what_one_run_may_cost_beyond_the_hard_limit(tmp_path: Path) -> None:
    prices = dse.PriceTable("p", "2026-01-01", {NAME: (1.0, 4.0)})

    def note(most: float | None, **limits: Any) -> str:
        task = WORLD.task(**MODES, objective=dse.Objective(max_cost=most), limits=dse.Limits(**limits))
        return "; ".join(dse.forecast(task, lm=reflecting(), registry=tmp_path, prices=prices).notes)

    assert "Objective(max_cost) of 0.001 USD: direct any amount, " in note(0.001)
    assert "direct up to 0.002 USD, " in note(0.001, tokens=500), "500 tokens at the dearer of both rates"
    assert "direct up to 0.0015 USD, " in note(0.001, cost_usd=0.0015)
    assert note(0.002, tokens=500) == note(0.001, cost_usd=0.001) == note(None) == ""


def test_a_forecast_counts_the_judge(tmp_path: Path) -> None:
    opinions = ScriptedModel(lambda request: "I say 4", "scripted/judge")

    @dse.metric(kind="judge", revision="1", judge=dse.Judge(opinions, repeats=3))
    async def well_put(example: Any, prediction: Any, ctx: dse.MetricContext) -> float:
        return float(await ctx.lm.ask(f"{example.request} {prediction.left}", parse=rating(1, 5)))

    task = WORLD.task(**MODES, metric=well_put, limits=dse.Limits(tokens=50_000))
    options: dict[str, Any] = {"lm": reflecting(), "registry": tmp_path}
    plain, told = dse.forecast(WORLD.task(**MODES), **options), dse.forecast(task, **options)
    rollouts = sum(about for about, _ in told.stages.values())
    assert told.model_calls == pytest.approx(plain.model_calls + 3 * rollouts) and told.tokens > plain.tokens
    assert (told.most_model_calls, told.most_tokens) == (None, None)
    assert "at most: unbounded model calls" in str(told) and "no bound: a metric asks its judge" in str(told)
    bounded = dse.forecast(task, budget=dse.Budget(model_calls=700, tokens=10**6), **options)
    assert (bounded.most_model_calls, bounded.most_tokens) == (700, 10**6) and "no bound" not in str(bounded)
    result = dse.compile(task, **options)
    assert 0.5 < told.model_calls / result.spent["model_calls"] < 2
    after = dse.forecast(task, **options).judge
    records = [r for stage in result.records.values() for r in stage if "judge_calls" in r.components]
    assert after is not None and after.model_calls == 3 and after.source.startswith("as ")
    assert after.tokens == pytest.approx(sum(r.components["judge_tokens_in"] + r.components["judge_tokens_out"] for r in records)
                                         / len(records), rel=0.1)  # fmt: skip


def test_a_forecast_does_not_claim_to_bound_proposals(tmp_path: Path) -> None:
    told = dse.forecast(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path, search=[Told()])
    assert "what they take comes to all of this" in str(told) and "at most (before proposals): " in str(told)
    assert "at most: " in str(dse.forecast(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path))


def test_replicates_are_averaged_on_the_holdout(tmp_path: Path) -> None:
    result = dse.compile(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path, replicates=2)
    rows = WORLD.dataset().holdout_summary()["rows"]
    assert len(result.records["holdout"]) == 4 * rows and result.gate.n_rows == rows
    assert result.artifact.evidence.replicates == 2


class Moody(ScriptedModel):
    """Without tools it has no answer in its second and third run of a row."""

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Any:
        found = await super().complete(request, replicate=replicate, occurrence=occurrence)
        return found if request.get("tools") or replicate == 0 else replace(found, text="no answer")


def test_all_candidates_run_the_same_rows_and_replicates_on_select(tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 1.0, "tool_call": 0.6}, clusters=60, writes=0.0)
    options: dict[str, Any] = {"lm": Moody(world.reply, "scripted/planted"), "allocation": "grid", "rows": dse.Rows(8, 16, 16)}
    task = world.task(modes=["direct", "tool_call"])
    result = dse.compile(task, registry=tmp_path, replicates=3, **options)
    rows = {name: Counter(r.row_hash for r in result.records["select"] if r.candidate == name) for name in result.candidates}
    assert all(one == rows[result.winner] for one in rows.values()) and set(rows[result.winner].values()) == {3}
    assert len({r.rollout_id for r in result.records["select"]}) == len(rows) * 3 * len(rows[result.winner])
    effects = {name: task.toolbox[name].contract.effect for name in task.spec.tool_names}  # type: ignore[index]
    direct = measure(result.candidates, result.records["select"], task.objective, effects)["direct/none/seed"]
    assert direct.utility == pytest.approx(1 / 3) and all(u == pytest.approx(1 / 3) for u in direct.by_row.values())
    assert result.winner.startswith("tool_call/"), "once in three runs is not often enough"
    told = dse.forecast(task, registry=tmp_path / "told", replicates=3, **options)
    once = dse.forecast(task, registry=tmp_path / "told", **options)
    assert told.stages["select"][1] == 3 * once.stages["select"][1]


def test_a_second_look_at_the_same_rows_is_discounted(tmp_path: Path) -> None:
    store = tmp_path / "dse.db"
    first = dse.compile(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path / "one", store=store)
    second = dse.compile(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path / "other", store=store, seed=1)
    assert (first.gate.alpha, second.gate.alpha) == (0.05, 0.025)
    assert second.artifact.evidence.holdout_openings == 2


def test_a_compile_that_is_started_again_after_keep_makes_no_other_look(tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 0.1, "tool_call": 0.8, "code": 0.75}, clusters=60)
    made = []
    for _ in range(3):
        model = world.model()
        made.append(dse.compile(world.task(), lm=model, registry=tmp_path, rows=dse.Rows(8, 18, 18)))
    assert not model.requests and made[0].verdict != "PROMOTE" and made[0].winner != made[0].incumbent
    assert [(one.artifact.evidence.holdout_openings, one.gate.alpha) for one in made] == [(1, 0.05)] * 3


FIELDS = {"request": "input", "left": "label", "reserved": "label", "site": "meta"}


def named(name: str, world: PlantedWorld = WORLD, **changes: Any) -> dse.Dataset:
    rows = [{**row, **changes} for row in world.rows()]
    return dse.Dataset.from_rows(rows, name=name, fields=FIELDS, cluster_key="site", salt="warehouse-1")


def other_import(name: str) -> dse.Dataset:
    """The same data as a table program may have saved it."""
    rows = [{**row, "request": f"  {str(row['request']).replace('How', 'HOW')} "} for row in WORLD.rows()]
    return dse.Dataset.from_rows(rows, name=name, fields=FIELDS, cluster_key="site", salt="warehouse-1")


@pytest.mark.parametrize(("data", "rows", "before"), [
    (named("warehouse"), None, 2), (named("another name"), None, 2), (named("warehouse", reserved=7), None, 2),
    (named("warehouse"), 8, 2), (other_import("warehouse"), None, 2), (named("warehouse", PlantedWorld({"direct": 1.0, "tool_call": 0.25}, writes=0.0, seed=9)), None, 0),
], ids=["the same", "another name", "other labels", "some rows", "another import", "other rows, the same name"])  # fmt: skip
def test_a_forecast_counts_the_looks_that_the_gate_counts(tmp_path: Path, data: dse.Dataset, rows: int | None, before: int) -> None:
    store = tmp_path / "dse.db"
    for seed in (1, 2):
        dse.compile(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path / str(seed), store=store, seed=seed)
    options: dict[str, Any] = {"lm": reflecting(), "registry": tmp_path / "3", "store": store, "rows": dse.Rows(holdout=rows)}
    said: list[str] = []
    told = dse.forecast(WORLD.task(**MODES, dataset=data), **options)
    result = dse.compile(WORLD.task(**MODES, dataset=data), say=said.append, **options)
    assert told.openings == before and result.artifact.evidence.holdout_openings == before + 1
    assert result.gate.alpha == pytest.approx(0.05 / (before + 1))
    line = f"another look is tested at 0.05/{before + 1}"
    assert (line in str(told)) == any(line in one for one in said) == bool(before)


def test_a_wider_allow_list_has_to_earn_its_gain(tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 0.1, "tool_call": 0.9}, clusters=40, detours=0.0)
    result = dse.compile(world.task(**MODES), lm=reflecting(world), registry=tmp_path, allocation="grid")
    task = world.task(**MODES)
    effects = {name: task.toolbox[name].contract.effect for name in task.spec.tool_names}  # type: ignore[index]
    found = measure(result.candidates, result.records["select"], task.objective, effects)
    wide, narrow = "tool_call/all/seed", next(n for n in result.table if n.startswith("tool_call") and n != "tool_call/all/seed")
    assert set(result.plans[narrow].allow) < set(result.plans[wide].allow)
    assert winner(found, [wide, narrow], {wide: 1.0, narrow: 0.99})[0] == narrow, "a better estimate alone is not enough"
    assert any((one.wide, one.narrow) == (wide, narrow) for one in result.removals)


def test_a_killed_compile_ends_as_an_undisturbed_one() -> None:
    """A sample of ``make chaos``: compiles in processes of their own, killed at random moments."""
    command = [sys.executable, "-m", "benchmarks.compile_chaos", "--kills", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(compile_chaos.__file__).parent.parent)
    assert done.returncode == 0 and done.stdout.rstrip().endswith(": 0 wrong"), done.stdout + done.stderr


@dataclass(frozen=True)
class Tuned:
    """Proposes instructions that end in words of its settings; one of the settings is a function."""

    words: dict[str, str]
    make: Any = str.upper
    name: str = "tuned"

    async def propose(self, search: dse.Search) -> Sequence[dse.Proposal]:
        seed = seed_plan(search.spec, "direct", limits=search.limits)
        prompts = {name: dse.Prompt(instructions=f"{one.instructions} {self.make(self.words['end'])}") for name, one in seed.prompts.items()}
        return [dse.Proposal(dse.Plan(mode="direct", prompts=prompts, limits=search.limits), "tuned")]


def test_every_setting_of_a_proposer_makes_another_compile() -> None:
    """Else the same rows of the holdout could be looked at again for nothing, with a proposer that was changed."""

    def bound(size: int) -> Any:
        return lambda metric: size

    pairs: list[tuple[Any, Any]] = [
        (Tuned({"end": "a"}), Tuned({"end": "b"})), (Tuned({"end": "a"}), Tuned({"end": "a"}, str.lower)),
        (Tuned({"end": "x" * 300 + "a"}), Tuned({"end": "x" * 300 + "b"})),
        (dse.DspyOptimizer(bound(1)), dse.DspyOptimizer(bound(2))), (dse.DspyOptimizer(lambda m: 1), dse.DspyOptimizer(lambda m: 2)),
        (dse.DspyOptimizer(bound(1), compile={"trials": 3}), dse.DspyOptimizer(bound(1), compile={"trials": 4})),
        (dse.DspyOptimizer(functools.partial(bound(1), 2)), dse.DspyOptimizer(functools.partial(bound(1), 3))),
    ]  # fmt: skip
    for one, other in pairs:
        assert revision_of(one) != revision_of(other), (one, other)
    assert revision_of(Tuned({"end": "a"})) == revision_of(Tuned({"end": "a"}))
    assert revision_of(dse.DspyOptimizer(bound(1))) == revision_of(dse.DspyOptimizer(bound(1)))
    assert revision_of(dse.DspyOptimizer(object())) == revision_of(dse.DspyOptimizer(object())), "no addresses"


def test_a_changed_proposer_pays_for_its_look_at_the_holdout(tmp_path: Path) -> None:
    for number, end in enumerate("abc", 1):
        result = dse.compile(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path / end, store=tmp_path / "s.db",
                             search=[Tuned({"end": end})])  # fmt: skip
        assert result.artifact.evidence.holdout_openings == number and result.gate.alpha == 0.05 / number


@dataclass
class Looking:
    """Looks for whatever could lead to other rows than those of the search."""

    found: list[str]
    kept: list[Any]
    name: str = "looking"
    revision: str = "1"

    async def propose(self, search: dse.Search) -> Sequence[dse.Proposal]:
        pending: list[tuple[str, Any]] = [("search", search)]
        seen: set[int] = set()
        while pending:
            path, value = pending.pop()
            if id(value) in seen or isinstance(value, (str, bytes, int, float, type(None), type, types.ModuleType)):
                continue
            seen.add(id(value))
            if isinstance(value, (dse.Dataset, dse.Store, dse.Task, Holdout, Sealed, Evaluator, Rollouts)):
                self.found.append(f"{path}: {type(value).__name__}")
                continue
            pending += [(f"{path}{name}", part) for name, part in held(value)]
        self.found += [] if len(seen) > 100 else ["hardly anything was looked at"]
        with pytest.raises(ContaminatedSplit):
            await search.evaluate({}, WORLD.dataset().split("select")[:1])
        self.kept.append(search)
        return []


def held(value: Any) -> Iterator[tuple[str, Any]]:
    """What one comes to from a value without the globals of modules."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{number}]", part) for number, part in enumerate(value))
    yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
    slots = [name for one in type(value).__mro__ for name in getattr(one, "__slots__", ()) if name != "__weakref__"]
    yield from ((f".{name}", getattr(value, name)) for name in slots if hasattr(value, name))
    for name in ("__self__", "__func__", "__wrapped__", "__defaults__", "__kwdefaults__"):
        yield f".{name}", getattr(value, name, None)
    yield from ((f".<{number}>", cell.cell_contents) for number, cell in enumerate(getattr(value, "__closure__", None) or ()))


def test_what_a_search_holds_leads_to_no_store(tmp_path: Path) -> None:
    """The store of an earlier compile has what came out on select and holdout rows."""
    looking = Looking([], [])
    dse.compile(WORLD.task(**MODES), lm=reflecting(), registry=tmp_path, search=[looking])
    assert looking.found == []
    with pytest.raises(UserError, match="has ended"):
        looking.kept[0].reflect("And now?")


HINT = ["once"]


@dataclass(frozen=True)
class Global:
    """Proposes what a global says, which neither its source nor its settings show."""

    name: str = "global"

    async def propose(self, search: dse.Search) -> Sequence[dse.Proposal]:
        seed = seed_plan(search.spec, "direct", limits=search.limits)
        prompts = {name: dse.Prompt(instructions=f"{one.instructions} Count {HINT[0]}.") for name, one in seed.prompts.items()}
        return [dse.Proposal(dse.Plan(mode="direct", prompts=prompts, limits=search.limits), "global")]


def test_another_winner_of_the_same_compile_is_another_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = PlantedWorld({"direct": 0.2, "tool_call": 0.25}, clusters=40, writes=0.0)

    def compiled(hint: str, times: int) -> dse.CompileResult:
        monkeypatch.setitem(globals(), "HINT", [hint])
        model = ScriptedModel(lambda r: (WORLD if f"Count {hint}" in r["messages"][0]["content"] else poor).reply(r), "scripted/planted")
        return dse.compile(WORLD.task(**MODES), lm=model, registry=tmp_path / f"{hint}{times}", store=tmp_path / "s.db", search=[Global()])

    looks = [compiled(hint, times) for times, hint in enumerate(("once", "twice", "twice", "thrice"))]
    assert len({one.artifact.evidence.inputs_digest for one in looks}) == 1 and {one.winner for one in looks} == {"direct/none/global"}
    assert [one.artifact.evidence.holdout_openings for one in looks] == [1, 2, 2, 3]
    assert looks[-1].gate.alpha == 0.05 / 3


@dataclass(frozen=True)
class Demonstrating:
    """Shows rows without saying whose they are."""

    mode: str
    rows: tuple[Any, ...]
    name: str = "demonstrating"
    revision: str = "1"

    async def propose(self, search: dse.Search) -> Sequence[dse.Proposal]:
        seed = seed_plan(search.spec, self.mode, limits=search.limits)
        demos: list[dict[str, Any]] = [{"request": row.inputs["request"], "left": row.labels["left"]} for row in self.rows]
        if self.mode == "tool_call":
            demos = [{"inputs": {"request": d["request"]}, "rounds": [], "outputs": {"left": d["left"]}} for d in demos]
        prompts = {name: dse.Prompt(instructions=one.instructions, demos=tuple(demos)) for name, one in seed.prompts.items()}
        return [dse.Proposal(seed.with_prompts(prompts), "shown")]


@pytest.mark.parametrize("mode", ["direct", "tool_call"])
@pytest.mark.parametrize("split", ["select", "holdout"])
def test_demonstrations_of_other_splits_are_found_by_their_content(tmp_path: Path, mode: str, split: str) -> None:
    data = WORLD.dataset()
    options: dict[str, Any] = {"lm": reflecting(), "registry": tmp_path, "rows": dse.Rows(select=9, holdout=9)}
    rows = data.split("select") if split == "select" else data.open_holdout(dse.Store(":memory:"), compile_id="c")
    with pytest.raises(ContaminatedSplit, match="demonstrates rows") as caught:
        dse.compile(WORLD.task(**MODES), search=[Demonstrating(mode, tuple(rows[:1]))], **options)
    assert caught.value.value == split
    if split == "select":
        fine = dse.compile(WORLD.task(**MODES), search=[Demonstrating(mode, tuple(data.split("search")[:1]))], **options)
        assert any(name.endswith("/shown") for name in fine.candidates)


def test_requests_under_way_when_a_process_dies_count_in_the_budget() -> None:
    """They may have been paid for: a budget bounds all processes of a compile together."""
    kept: list[Any] = []

    class Dying:
        name, params, supports_tools = "scripted/planted", {"max_tokens": 100}, True

        async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Any:
            later = Purse(dse.Budget(model_calls=1, tokens=1000))  # of the process that goes on
            later.restore(json.loads(json.dumps(kept[-1])))
            assert later.calls == 1 and later.tokens > 100
            with pytest.raises(BudgetExhausted, match="model_calls"):
                await BudgetedModel(self, later.budget, purse=later).complete(request)
            return await ScriptedModel(lambda _: say("x"), self.name).complete(request)

        async def aclose(self) -> None:
            pass

    purse = Purse(dse.Budget(model_calls=1, tokens=1000), kept=kept.append)
    run_sync(BudgetedModel(Dying(), purse.budget, purse=purse).complete, {"messages": [{"role": "user", "content": "x"}]})
    assert len(kept) == 2 and purse.calls == 1 and purse.tokens < 100 and not purse.under_way
    after = Purse(purse.budget)
    after.restore(kept[-1])
    assert (after.calls, after.tokens) == (1, purse.tokens), "what was answered counts with what it took"
