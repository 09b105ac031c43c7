"""The race: what it asks for, who is left and why, how little it spends; and samples of the selection benchmark."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.selection import __main__ as command
from benchmarks.selection import outcomes, planted, tables
from benchmarks.selection.rivals import RIVALS
from benchmarks.selection.worlds import Spec, draw
from dse.canonical import canonical_json
from dse.compiler.allocation import FINALISTS
from dse.compiler.pooling import Design, pool
from dse.compiler.race import Arm, Item, Outcome, Race, RaceResult, make_race
from dse.errors import MetricError, UserError
from dse.statistics import clopper_pearson

MODES, PROMPTS = 4, 6


def grid_of(count: int, costs: Sequence[float] | None = None) -> list[Arm]:
    return [Arm(f"a{i}", {"mode": f"m{i % MODES}", "prompt": f"p{i // MODES % PROMPTS}"}, costs[i] if costs else 1.0)
            for i in range(count)]  # fmt: skip


def items_of(count: int, cluster: Callable[[int], str | None] = lambda _: None) -> list[Item]:
    return [Item(f"row-{i}", cluster(i)) for i in range(count)]


def drawn(quality: Sequence[float], items: int, seed: int = 0) -> Any:
    """Right or wrong, with a difficulty that all share."""
    source = np.random.default_rng(seed)
    hard = source.uniform(-0.2, 0.2, items)
    return (source.random((len(quality), items)) < np.clip(np.asarray(quality)[:, None] + hard, 0, 1)).astype(float)


def run(race: Race, utility: Any, cost: Callable[[int], float] = lambda _: 1.0,
        batches: list[list[tuple[str, int, int]]] | None = None) -> RaceResult:  # fmt: skip
    while (batch := race.next()) is not None:
        if batches is not None:
            batches.append(batch)
        race.tell([Outcome(n, i, r, float(utility[int(n[1:])][i]), cost(int(n[1:]))) for n, i, r in batch])
    return race.result()


# --- the protocol


def test_candidates_run_the_same_items_and_nothing_twice() -> None:
    utility = drawn(np.linspace(0.4, 0.8, 24), 80)
    batches: list[list[tuple[str, int, int]]] = []
    result = run(make_race(grid_of(24), items_of(80), protect=["a1"]), utility, batches=batches)
    cells = [cell for batch in batches for cell in batch]
    assert len(cells) == len(set(cells)) == result.rollouts == sum(each.rollouts for each in result.rounds)
    for batch in batches:
        per_arm: dict[str, set[int]] = {}
        for name, item, _ in batch:
            per_arm.setdefault(name, set()).add(item)
        assert len({frozenset(seen) for seen in per_arm.values()}) == 1
    for before, after in zip(result.rounds, result.rounds[1:], strict=False):
        assert before.kept == after.arms and set(before.dropped).isdisjoint(after.arms)
        assert all(before.dropped.values())
    assert result.rollouts < result.grid_rollouts / 2
    assert {each.name for each in result.ranking} == {arm.name for arm in grid_of(24)}


def test_the_same_outcomes_give_the_same_race_in_any_order() -> None:
    utility = drawn(np.linspace(0.4, 0.8, 16), 60)
    first, batches = make_race(grid_of(16), items_of(60), seed=3), []
    expected = run(first, utility, batches=batches)
    again = make_race(grid_of(16), items_of(60), seed=3)
    for batch in batches:  # as after a restart: the same questions, outcomes told backwards and in two parts
        assert again.next() == batch
        told = [Outcome(n, i, r, utility[int(n[1:])][i]) for n, i, r in reversed(batch)]
        again.tell(told[:5])
        again.tell(told[5:])
    assert again.next() is None
    assert canonical_json(again.result().to_dict()) == canonical_json(expected.to_dict())
    other: list[list[tuple[str, int, int]]] = []
    run(make_race(grid_of(16), items_of(60), seed=4), utility, batches=other)
    assert other[0] != batches[0]


def test_what_was_not_asked_for_is_refused() -> None:
    race = make_race(grid_of(6), items_of(30))
    batch = race.next()
    assert batch
    name, item, _ = batch[0]
    with pytest.raises(UserError, match="not been told in full") as caught:
        race.next()
    assert caught.value.details["missing"] == len(batch)
    for wrong in (("nobody", item, 0), (name, 99, 0), (name, item, 1)):
        with pytest.raises(UserError, match="did not ask"):
            race.tell([Outcome(*wrong, 1.0)])
    for utility, cost in ((float("nan"), 1.0), (1.0, float("inf")), (1.0, -1.0)):
        with pytest.raises(MetricError):
            race.tell([Outcome(name, item, 0, utility, cost)])
    race.tell([Outcome(name, item, 0, -3.5)])  # utilities are not scores
    with pytest.raises(UserError, match="did not ask"):
        race.tell([Outcome(name, item, 0, 1.0)])
    with pytest.raises(UserError, match="No such candidate"):
        race.tell([], broken={"nobody": "too slow"})


@pytest.mark.parametrize("wrong", [
    {"arms": []}, {"items": []}, {"arms": [Arm("a"), Arm("a")]}, {"items": [Item("x"), Item("x")]}, {"allocation": "luck"},
    {"protect": ["nobody"]}, {"arms": [Arm("a", {}, -1.0)]}, {"replicates": 0}, {"budget_units": -1.0}, {"allocation": "uniform"},
])  # fmt: skip
def test_a_race_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    given = {"arms": grid_of(3), "items": items_of(4)} | wrong
    with pytest.raises(UserError):
        make_race(given.pop("arms"), given.pop("items"), **given)


def test_replicates_come_after_items() -> None:
    asked = make_race(grid_of(2), items_of(3), allocation="grid", replicates=2).next()
    assert asked is not None
    of_one = [(item, replicate) for name, item, replicate in asked if name == "a0"]
    assert len(of_one) == 6 and [replicate for _, replicate in of_one] == [0, 0, 0, 1, 1, 1]
    assert [item for item, _ in of_one[:3]] == [item for item, _ in of_one[3:]]


def test_every_cluster_is_seen_before_one_is_seen_twice() -> None:
    race = make_race(grid_of(12), items_of(60, lambda i: f"c{i % 12}"))
    batch = race.next()
    assert batch is not None
    first = [item % 12 for name, item, _ in batch if name == "a0"]
    assert len(set(first)) == min(len(first), 12)


# --- who stays


def test_a_clear_winner_ends_the_race_early() -> None:
    utility = drawn([0.97, *[0.2] * 11], 100)
    result = run(make_race(grid_of(12), items_of(100)), utility)
    assert result.winner == "a0" and result.rollouts < 0.5 * result.grid_rollouts
    assert result.stopped == "the remaining items are not expected to change the choice"


def test_a_close_race_runs_to_the_end() -> None:
    utility = drawn([0.6] * 12, 60, seed=5)
    result = run(make_race(grid_of(12), items_of(60), protect=["a0", "a3"]), utility)
    finalists = [each for each in result.ranking if each.finalist]
    assert 2 <= len(finalists) <= FINALISTS + 2
    assert {"a0", "a3"} <= {each.name for each in finalists}
    assert max(each.n for each in finalists) == 60
    assert [each.finalist for each in result.ranking] == sorted((e.finalist for e in result.ranking), reverse=True)
    assert all(each.raw_mean == pytest.approx(utility[int(each.name[1:])].mean()) for each in finalists if each.n == 60)


def test_few_items_on_which_all_agree_do_not_end_a_race() -> None:
    utility = np.ones((2, 30))
    hard = [item for _, item, _ in make_race(grid_of(2), items_of(30), allocation="grid").next() or []][10:30]
    utility[0, hard] = 0.0
    result = run(make_race(grid_of(2), items_of(30)), utility)
    assert result.winner == "a1" and result.rounds[0].units == 10


def test_the_best_of_every_mode_stays_through_stage_two() -> None:
    quality = [0.9 if i % MODES == 0 else 0.3 for i in range(48)]
    arms = grid_of(48)
    result = run(make_race(arms, items_of(100)), drawn(quality, 100))
    modes = {arm.name: arm.factors["mode"] for arm in arms}
    for stage in result.rounds[:2]:
        assert {modes[name] for name in stage.kept} == {f"m{i}" for i in range(MODES)}
    assert modes[result.winner or ""] == "m0"


def specialists(count: int, seed: int, lift: float = 0.0) -> tuple[Any, str]:
    """100 items: on 15, one in every seven that a race asks for, one candidate alone is right. Elsewhere all are alike."""
    order = [item for name, item, _ in make_race(grid_of(count), items_of(100), allocation="grid").next() or [] if name == "a0"]
    who = 1 + seed * 7 % (count - 1)
    utility = drawn([0.6 + lift * (arm == who) for arm in range(count)], 100, seed=seed)
    utility[:, order[3::7]] = 0.0
    utility[who, order[3::7]] = 1.0
    return utility, f"a{who}"


@pytest.mark.parametrize("count", [12, 24, 48])
def test_who_alone_is_right_on_rare_items_is_found(count: int) -> None:
    """Two or three such items in the first stage are no lead in the mean: pooled and plain ranking lose a fifth to a third."""
    found = 0
    for seed in range(20):
        utility, who = specialists(count, seed)
        result = run(make_race(grid_of(count), items_of(100), protect=["a0"]), utility)
        assert who in result.rounds[0].kept
        found += result.winner == who or utility[int((result.winner or "")[1:])].mean() >= utility[int(who[1:])].mean()
    assert found >= 18


def test_rare_success_counts_whatever_utilities_are_measured_in() -> None:
    """Prices and latencies count: utilities are any numbers, also large ones that differ by little."""
    utility, who = specialists(48, 3)
    for scale, shift in ((1.0, -0.4), (50.0, 1000.0), (0.2, 1e6)):
        result = run(make_race(grid_of(48), items_of(100)), utility * scale + shift)
        assert who in result.rounds[0].kept and result.winner == who


def test_where_all_agree_the_cheaper_stay() -> None:
    """0.1 on every item: what rounding leaves is no difference."""
    costs = [2.0 - (arm % 3) / 2 for arm in range(48)]
    arms = [Arm(each.name, each.factors, costs[number]) for number, each in enumerate(grid_of(48))]
    result = run(make_race(arms, items_of(60)), np.full((48, 60), 0.1), lambda arm: costs[arm])
    assert costs[int((result.winner or "")[1:])] == 1.0


def test_a_wide_field_keeps_a_third_after_a_longer_first_stage() -> None:
    utility = drawn([0.6] * 48, 100, seed=2)
    wide, narrow = (run(make_race([Arm(f"a{i}") for i in range(count)], items_of(100)), utility) for count in (48, 12))
    assert [(each.units, len(each.arms)) for each in wide.rounds[:3]] == [(15, 48), (25, 16), (42, 5)]
    assert (narrow.rounds[0].units, len(narrow.rounds[1].arms)) == (22, 6)


def test_what_many_could_gain_together_counts_in_a_wide_field() -> None:
    """A race of 12 lets go who would gain less than 0.0003; one of 48, less than a sixth of that."""
    worlds = [specialists(48, seed)[0] for seed in range(4)]
    left = {arms: [float(why.split()[-3]) for utility in worlds
                   for each in run(make_race(grid_of(48)[:arms], items_of(100)), utility[:arms]).rounds
                   for why in each.dropped.values() if "further items" in why] for arms in (12, 48)}  # fmt: skip
    assert left[48] and max(left[48]) <= 0.00005 + 1e-9  # printed with one digit
    assert max(left[12]) > 0.00005


def test_equal_candidates_rank_by_cost() -> None:
    arms = [Arm("dear", {}, 3.0), Arm("a", {}, 1.0), Arm("b", {}, 1.0)]
    race = make_race(arms, items_of(20), allocation="grid")
    race.tell([Outcome(n, i, r, 0.5, 1.0) for n, i, r in race.next() or []])
    assert race.next() is None
    assert [each.name for each in race.result().ranking] == ["a", "b", "dear"]


def test_halves_are_of_cost() -> None:
    """Two candidates that cost more than all others together: half the cost stays, not half the heads."""
    costs = [20.0, 20.0, *[1.0] * 14]
    arms = [Arm(f"a{i}", {}, cost) for i, cost in enumerate(costs)]
    for seed in range(4):
        utility = drawn([0.65, 0.65, *[0.6] * 14], 100, seed=seed)
        dear = run(make_race(arms, items_of(100)), utility, lambda arm: costs[arm])
        assert sum(costs[int(name[1:])] for name in dear.rounds[0].kept) <= sum(costs) / 2
        assert len(run(make_race([Arm(arm.name) for arm in arms], items_of(100)), utility).rounds[0].kept) == 8


# --- limits


def test_a_broken_candidate_leaves_and_a_protected_one_is_only_compared() -> None:
    race = make_race(grid_of(8), items_of(40), protect=["a1"])
    utility = drawn([0.9, 0.9, *[0.5] * 6], 40)
    batch = race.next()
    assert batch is not None
    half = [Outcome(n, i, r, utility[int(n[1:])][i]) for n, i, r in batch if n != "a0"]
    race.tell(half, broken={"a0": "mean cost 3 USD is above max_cost 1", "a1": "too slow"})  # a0's own rest is not asked for
    result = run(race, utility)
    standing = {each.name: each for each in result.ranking}
    assert result.rounds[0].dropped["a0"] == "broken" and standing["a0"].n == 0
    assert standing["a0"].broken == "mean cost 3 USD is above max_cost 1"
    assert standing["a1"].broken == "too slow" and standing["a1"].n == max(each.n for each in result.ranking)
    assert result.winner not in (None, "a0", "a1")


def test_all_broken_has_no_winner() -> None:
    race = make_race(grid_of(3), items_of(20), protect=["a0"])
    batch = race.next() or []
    race.tell([Outcome(n, i, r, 1.0) for n, i, r in batch], broken={f"a{i}": "limit" for i in range(3)})
    assert race.next() is None and race.result().winner is None
    assert race.result().stopped == "every candidate is broken"


@pytest.mark.parametrize("allocation", ["race", "grid", "uniform", "sign_test"])
def test_a_budget_is_never_exceeded_and_items_stay_common(allocation: Any) -> None:
    utility = drawn([0.6] * 10, 50)
    result = run(make_race(grid_of(10), items_of(50), allocation=allocation, budget_units=137.0), utility)
    assert 100 < result.spent <= 137 and result.winner is not None
    assert all(len({cell.n for cell in result.ranking if cell.name in each.kept}) <= 2 for each in result.rounds[-1:])
    assert "budget" in result.stopped
    poor = run(make_race(grid_of(10), items_of(50), allocation=allocation, budget_units=9.0), utility)
    assert poor.rollouts == 0 and poor.winner is None and poor.ranking[0].raw_mean is None
    canonical_json(poor.to_dict())


def test_what_rollouts_really_cost_counts() -> None:
    """Declared at 1, they cost 5: the race learns that and stops in time."""
    result = run(make_race(grid_of(10), items_of(100), budget_units=1000.0), drawn([0.6] * 10, 100), lambda _: 5.0)
    assert result.spent <= 1000 + 5 * 10 * 17  # the first stage was bought at the declared price


# --- baselines


def test_baselines() -> None:
    utility = drawn(np.linspace(0.3, 0.9, 8), 60)
    full = run(make_race(grid_of(8), items_of(60), allocation="grid"), utility)
    assert full.rollouts == full.grid_rollouts == 480 and full.pooled == {}
    assert full.winner == f"a{utility.mean(axis=1).argmax()}"
    even = run(make_race(grid_of(8), items_of(60), allocation="uniform", budget_units=200.0), utility)
    assert {each.n for each in even.ranking} == {25}
    signs = run(make_race(grid_of(8), items_of(60), allocation="sign_test", protect=["a0"]), utility)
    assert 100 < signs.rollouts < 480 and signs.winner in ("a5", "a6", "a7")
    assert any("sign test" in why for each in signs.rounds for why in each.dropped.values())


# --- pooling


def _means(effects: Any, design: Design, items: int, seed: int) -> tuple[Any, Any]:
    source = np.random.default_rng(seed)
    values = np.asarray(effects)[:, None] + source.normal(0, 0.4, items) + source.normal(0, 0.4, (len(effects), items))
    return pool(values, design), values.mean(axis=1)


def test_pooling_is_closer_than_plain_means_where_factors_add_up() -> None:
    design = Design.of([arm.factors for arm in grid_of(24)])
    effects = np.array([0.1, -0.1, 0.0, 0.05])[np.arange(24) % 4] + np.linspace(-0.1, 0.1, 6)[np.arange(24) // 4]
    pooled, plain = 0.0, 0.0
    for seed in range(20):
        fit, means = _means(effects, design, 10, seed)
        for estimate, total in ((fit.mean, "pooled"), (means, "plain")):
            error = float((((estimate - estimate.mean()) - (effects - effects.mean())) ** 2).mean())
            pooled, plain = (pooled + error, plain) if total == "pooled" else (pooled, plain + error)
    assert pooled < 0.5 * plain


def test_a_strong_interaction_is_seen_and_little_is_shrunk() -> None:
    arms = [Arm(f"a{i}", {"mode": f"m{i % 4}", "prompt": f"p{i // 4 % 6}", "allow": f"l{i // 24}"}) for i in range(48)]
    design = Design.of([arm.factors for arm in arms])
    assert set(design.levels) == {"mode", "prompt", "allow", "mode x prompt"}
    cells = np.random.default_rng(5).normal(0, 0.2, 24)[np.arange(48) % 24]
    fit, means = _means(cells, design, 30, 1)
    assert fit.spread["mode x prompt"] > 2 * max(fit.spread["mode"], fit.spread["allow"])
    centred = means - means.mean()
    assert np.corrcoef(fit.mean, cells)[0, 1] > 0.95
    assert np.abs((fit.mean - fit.mean.mean()) - centred).mean() < 0.3 * np.abs(centred).mean()


def test_a_candidate_unlike_all_others_keeps_its_own_mean() -> None:
    design = Design.of([arm.factors for arm in grid_of(24)])
    effects = np.zeros(24)
    effects[7] = 0.6
    fit, means = _means(effects, design, 20, 3)
    assert 7 in fit.outliers
    assert fit.mean[7] - fit.mean.mean() > 0.85 * (means[7] - means.mean())


def test_clusters_widen_what_is_not_known() -> None:
    source = np.random.default_rng(2)
    values = np.repeat(source.normal(0, 0.5, (6, 15)), 4, axis=1) + source.normal(0, 0.05, (6, 60))
    design, labels = Design.of([{}] * 6), np.arange(60) // 4
    apart, together = pool(values, design), pool(values, design, labels)
    assert apart.design_effect == 1.0 and together.design_effect == pytest.approx(4, abs=0.5)
    assert (together.sd > apart.sd).all()


def test_levels_are_of_the_items_that_were_run() -> None:
    values = np.full((3, 10), np.nan)
    values[:, :5] = [[0.5], [0.4], [0.3]]
    values[0, 5:] = 0.9  # easier items, which only one has run
    fit = pool(values, Design.of([{}] * 3))
    assert fit.mean[0] == pytest.approx(0.7, abs=0.05) and fit.mean[0] > fit.mean[1] > fit.mean[2]
    nothing = pool(np.full((3, 10), np.nan), Design.of([{}] * 3))
    assert np.isfinite(nothing.mean).all() and np.isfinite(nothing.cov).all()


def test_a_decision_after_a_hundred_thousand_rollouts_takes_less_than_a_second() -> None:
    count, total = 48, 5000
    utility = drawn([0.6] * count, total).tolist()
    race = make_race(grid_of(count), items_of(total, lambda i: f"c{i // 3}"))
    slowest, told = 0.0, 0
    while True:
        started = time.process_time()
        batch = race.next()
        slowest = max(slowest, time.process_time() - started)
        if batch is None:
            break
        told += len(batch)
        race.tell([(n, i, r, utility[int(n[1:])][i], 1.0) for n, i, r in batch])
    started = time.process_time()
    race.result()
    assert told > 50_000 and max(slowest, time.process_time() - started) < 1.0
    full = make_race(grid_of(count), items_of(2100), allocation="race")
    values = np.random.default_rng(0).random((count, 2100))
    full._board.values[:] = values  # the worst case: the whole grid known
    started = time.process_time()
    assert pool(full._board.values, full._board.design, full._board.clusters).noise > 0
    assert values.size > 100_000 and time.process_time() - started < 1.0


# --- samples of the benchmark


def test_a_planted_world_is_the_same_every_time_and_as_good_as_it_says() -> None:
    spec = Spec("grid", 0.15, 0.34, 2000, 12)
    one, other = draw(spec, 1, 0), draw(spec, 1, 0)
    assert (one.quality == other.quality).all() and one.truth.max() - one.truth.mean() == pytest.approx(0.15, abs=0.03)
    assert np.abs(one.quality.mean(axis=1) - one.truth).max() < 0.05
    null = draw(Spec("null", 0.15, 0.34, 4000, 12), 1, 0)
    apart = (null.quality[0] != null.quality[1]).mean(), (null.quality[0] != null.quality[4]).mean()
    assert apart[0] == pytest.approx(0.34, abs=0.03) and apart[1] < apart[0]  # same mode: more alike
    flaky = draw(Spec("infra", 0.15, 0.34, 400, 12), 1, 0)
    assert (flaky.cost.mean() - 1) == pytest.approx(0.0625, abs=0.02)  # run again, paid for, no score lost
    rare = draw(Spec("rare", 0.15, 0.34, 2000, 12), 1, 0)
    assert rare.truth.max() - np.sort(rare.truth)[-2] == pytest.approx(0.15)


@pytest.mark.parametrize(("spec", "worlds", "most"), [(Spec("grid", 0.15, 0.34, 60, 48), 60, 0.33),
                                                      (Spec("interaction", 0.15, 0.34, 60, 12), 80, 0.63),
                                                      (Spec("clusters", 0.15, 0.34, 60, 4), 80, 1.0)])  # fmt: skip
def test_the_race_loses_little_and_spends_little(spec: Spec, worlds: int, most: float) -> None:
    figures = planted.judge(spec, [planted.one_world(spec, number, {}) for number in range(worlds)])
    assert figures["ways"]["race"]["cost"] <= most
    assert figures["against_grid"][1] <= 0.5  # points of regret; the lower end, for so few worlds
    assert figures["against_uniform"][1] <= 0
    assert 0.85 <= figures["covered"] / figures["intervals"] <= 1
    assert figures["verdicts"]["PROMOTE"] > figures["false"]


def test_equal_candidates_are_not_promoted() -> None:
    spec = Spec("null", 0.15, 0.34, 60, 12)
    figures = planted.judge(spec, [planted.one_world(spec, number, {}) for number in range(100)])
    assert clopper_pearson(figures["false"], 100, level=0.99).low <= 0.05
    assert figures["false"] == figures["verdicts"]["PROMOTE"]


def test_the_command_keeps_whole_cells_and_writes_between_markers(tmp_path: Path) -> None:
    cells = [Spec("grid", 0.15, 0.34, 30, 4), Spec("null", 0.15, 0.34, 30, 4)]
    figures = [planted.cell(spec, 3) for spec in cells]
    place = tmp_path / "planted.json"
    place.write_text(json.dumps(figures))
    said: list[str] = []
    assert planted.run(3, place=place, processes=1, cells=cells, say=said.append) == json.loads(place.read_text())
    assert said == []  # both were there
    text = tables.render(figures)
    assert "K=4, N=30" in text and "worst cell" in text
    page = tmp_path / "SELECTION.md"
    command.write("planted worlds", "Planted worlds", "old", page)
    command.write("real outcomes", "Real outcomes", "other", page)
    command.write("planted worlds", "Planted worlds", text, page)
    assert "old" not in page.read_text() and "other" in page.read_text() and page.read_text().count("## Planted") == 1


def _figures(kind: str, arms: int, **changed: object) -> dict[str, Any]:
    """A cell as the figures file holds it, with everything as it should be."""
    def way(cost: float, less: float = 0.0) -> dict[str, Any]:
        return {"worlds": 400, "best": 0.5, "regret": 1.0, "p95": 2.0, "cost": cost, "race_less": [less, less - 0.1, less + 0.1]}

    return {"spec": vars(Spec(kind, 0.15, 0.34, 100, arms)), "worlds": 2000, "code": planted.code(), "gates": 2000, "false": 10,
            "ways": {"race": way(0.25), "grid": way(1.0), "uniform": way(0.25, -1.0), "sign_test": way(0.5, -1.0)},
            "against_grid": [0.2, 0.1, 0.3], "against_uniform": [-1.0, -1.1, -0.9], "covered": 1900, "intervals": 2000,
            "verdicts": {"PROMOTE": 100, "KEEP": 200, "INSUFFICIENT": 100, "SAME": 1600}} | changed  # fmt: skip


def test_the_page_names_what_is_missed() -> None:
    good, lossy = _figures("grid", 48), _figures("needle", 48, against_grid=[3.9, 3.6, 4.2])
    wide = _figures("clusters", 48, covered=1980)
    priced = _figures("cost", 48, gates=1700, covered=380, intervals=400)  # 1,300 of them in later worlds, where nothing was decided
    lossy["ways"]["sign_test"]["race_less"] = [1.0, 0.9, 1.1]
    page = tables.render([good, lossy, wide, priced])
    targets = page.split("\n\n")[1].splitlines()[2:]
    assert [line.split(" | ")[1] for line in targets] == ["met", "**missed**", "", "met", "met", "met"]
    assert f"- {Spec(**lossy['spec']).name}: +3.90 (+3.60 to +4.20) at 25.0% of its cost" in page
    assert f"- {Spec(**wide['spec']).name}: 99.00%" in page and "2 of 4 cells" not in page
    assert "1 of 4 cells lose more than 0.5" in page and "(0 below: intervals too narrow; 1 above" in page
    assert "| false promotions at most 5%, upper bound at most 6% | met | 3 of 3 |" in page
    assert "leaves out those whose gates ran on the first 500 worlds: cost, N=100, K=48. 1 of these 1 meet" in page
    assert "| 500 | 20% | 40% | 20% | 20% | 2.00% |" in page  # of the 500, as if the later worlds were not there
    assert "400 worlds in each of 4 of 4 cells; its regret is significantly less than the race's in 1, more in 3" in page
    assert "K=48, less in 1 and more in 3 of 4 cells, at 50% of the grid's cost on average where the race takes 25%" in page
    assert "**missed**" not in tables.render([good]) and "no cell is outside 93-97%" in tables.render([good])


@pytest.mark.parametrize("name", ["gepa's rule", "minibatches", "WilcoxonPruner"])
def test_rivals_choose_within_their_budget(name: str) -> None:
    pytest.importorskip("optuna" if name == "WilcoxonPruner" else "numpy")
    world = draw(Spec("grid", 0.3, 0.15, 30, 4), 1, 1)
    assert RIVALS[name](world, 0.0, np.random.default_rng(0)) == world.incumbent  # nothing to spend
    chosen = [RIVALS[name](world, 110.0, np.random.default_rng(seed)) for seed in range(5)]
    assert np.mean(world.truth[chosen]) >= world.truth[world.incumbent]


def _matrix(path: Path) -> Path:
    source = np.random.default_rng(0)
    lines = ["model,variant,action_format,item,category,correct,output_tokens"]
    for model, qualities in (("one", {"": 0.95, "-FC": 0.4}), ("two", {"": 0.8, "-FC": 0.8})):
        for suffix, quality in qualities.items():
            lines += [f"{model},{model}{suffix},x,i{i:03},c,{int(source.random() < quality)},50" for i in range(60)]
    file = path / outcomes.FILE
    file.write_text("\n".join(lines) + "\n")
    return file


def test_published_outcomes_are_located_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(outcomes.VARIABLE, str(tmp_path))
    assert outcomes.located() is None
    file = _matrix(tmp_path)
    assert outcomes.located() == file
    figures = outcomes.study(file, 5)
    one, two = figures["pairs"]
    assert one.differs and one.difference > 0.3 and not two.differs
    design = figures["designs"]["search 40, select 30, holdout 30"]
    assert design["right"][0] == 1.0 and design["regret"][0] < design["regret"][2]
    page = outcomes.render(figures)
    assert "formats differ" in page
    assert "| one-FC |" in page and [line.count(" / ") for line in page.splitlines() if line.startswith(("| one-FC", "| two-FC"))] == [0, 2]
    assert design["promoted"][1].sum() * figures["splits"] == pytest.approx(design["false"].sum())


def test_published_outcomes_sample() -> None:
    file = outcomes.located()
    if file is None:
        pytest.skip(f"{outcomes.FILE} is not there; set {outcomes.VARIABLE} to its folder")
    figures = outcomes.study(file, 12)
    assert (figures["variants"], figures["items"], len(figures["pairs"])) == (38, 91, 21)
    for design in figures["designs"].values():
        assert design["right"][design["differ"]].mean() >= 0.9
        choice, python, jsons = design["regret"]
        assert choice <= min(python, jsons) / 2
        assert (design["false"] / design["chances"] <= 0.08).all()
