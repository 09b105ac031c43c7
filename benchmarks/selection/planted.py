"""Planted worlds through the real race and the real gate, against other ways to choose."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.selection.rivals import RIVALS
from benchmarks.selection.worlds import Spec, World, draw
from dse.compiler.gate import GateResult, PairedRow, gate
from dse.compiler.race import Race, RaceResult, make_race
from dse.objective import Objective
from dse.statistics import clopper_pearson

__all__ = ["CELLS", "COST_TARGET", "PRICED_GATES", "cell", "code", "drive", "judge", "one_world", "run", "sealed_gate"]

SEED = 20_260_301
#: Cost at which the race has to reach the full grid's regret + 0.5 points, by number of candidates.
COST_TARGET = {48: 0.30, 12: 0.60, 4: 1.00}
#: Worlds of each cell on which slower rivals run; Optuna's pruner is the slowest.
SAMPLED = {"sign_test": 400, "gepa's rule": 400, "minibatches": 400, "WilcoxonPruner": 25}
_WILCOXON = (Spec("grid", 0.15, 0.34, 100, 12), Spec("grid", 0.15, 0.34, 30, 48), Spec("grid", 0.15, 0.34, 30, 12))
#: The gate on priced, larger holdouts is Monte Carlo and slow.
PRICED_GATES = 500


def _cells() -> list[Spec]:
    found: list[Spec] = []
    for items in (100, 30, 200, 60):
        found += [Spec("grid", gap, 0.34, items, arms) for gap in (0.15, 0.05) for arms in (48, 12, 4)]
        kinds = ("null", "interaction") if items != 100 else (
            "null", "interaction", "needle", "rare", "infra", "clusters", "cost", "null_cost")  # fmt: skip
        found += [Spec(kind, 0.15, 0.34, items, arms) for kind in kinds for arms in (48, 12, 4)
                  if (kind, arms) != ("interaction", 4)]  # fmt: skip
        found += [Spec("grid", 0.15, 0.15, items, arms) for arms in (48, 12, 4)]
    return found


#: All cells, the most telling first: a run that is cut short has whole cells.
CELLS = _cells()


def drive(world: World, race: Race) -> RaceResult:
    """Run a race on a world's matrices."""
    utility, cost = world.utility.tolist(), world.cost.tolist()
    while (batch := race.next()) is not None:
        race.tell((name, item, replicate, utility[int(name[1:])][item], cost[int(name[1:])][item])
                  for name, item, replicate in batch)  # fmt: skip
    return race.result()


def sealed_gate(world: World, winner: int) -> GateResult:
    """The gate of the compile on the world's sealed rows: the race's winner against the incumbent."""
    mine, theirs = world.sealed_quality[winner].tolist(), world.sealed_quality[world.incumbent].tolist()
    priced = world.cost_weight > 0
    prices = [world.sealed_price[arm].tolist() if priced else [None] * len(mine) for arm in (winner, world.incumbent)]
    rows = [PairedRow(f"h{index:04}", cluster, a, b, p, q) for index, (cluster, a, b, p, q) in
            enumerate(zip(world.sealed_clusters, mine, theirs, *prices, strict=True))]  # fmt: skip
    return gate(rows, objective=Objective(cost_weight=world.cost_weight))


def one_world(spec: Spec, number: int, sampled: Mapping[str, int] = SAMPLED) -> dict[str, Any]:
    """Every way to choose on one world: regret in utility and the share of the full grid's cost; the gate's verdict."""
    world = draw(spec, SEED, number)
    names = [arm.name for arm in world.arms]
    protect = [names[world.incumbent], names[world.cheapest]]
    grid_cost, best = float(world.cost.sum()), float(world.truth.max())

    def chosen(arm: int, spent: float) -> list[float]:
        return [best - float(world.truth[arm]), spent / grid_cost]

    result = drive(world, make_race(world.arms, world.items, protect=protect))
    assert result.winner is not None
    winner = names.index(result.winner)
    per_item = world.cost.sum(axis=0)
    affordable = max(1, math.ceil(result.spent / per_item.mean()))  # rounded in favour of the uniform allocation
    found: dict[str, Any] = {
        "race": chosen(winner, result.spent),
        "grid": chosen(int(world.utility.mean(axis=1).argmax()), grid_cost),
        "uniform": chosen(int(world.utility[:, :affordable].mean(axis=1).argmax()), float(per_item[:affordable].sum())),
    }
    if number < sampled.get("sign_test", 0):
        other = drive(world, make_race(world.arms, world.items, allocation="sign_test", protect=protect))
        assert other.winner is not None
        found["sign_test"] = chosen(names.index(other.winner), other.spent)
    for place, (name, rival) in enumerate(RIVALS.items()):
        asked = name != "WilcoxonPruner" or spec in _WILCOXON
        if asked and number < sampled.get(name, 0):
            arm = rival(world, result.spent, np.random.default_rng([SEED, number, place]))
            found[name] = chosen(arm, result.spent)
    gain = float(world.truth[winner] - world.truth[world.incumbent])
    if winner == world.incumbent:
        found["gate"] = ["SAME", False, None]
    elif world.cost_weight == 0 or spec.items <= 30 or number < PRICED_GATES:
        verdict = sealed_gate(world, winner)
        covered = verdict.mean_difference.low <= gain <= verdict.mean_difference.high
        found["gate"] = [verdict.verdict, verdict.verdict == "PROMOTE" and gain <= 1e-12, covered]
    return found


def judge(spec: Spec, worlds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a cell. Regret is in points (hundredths of utility)."""
    def regrets(name: str) -> Any:
        return np.array([world[name][0] for world in worlds if name in world]) * 100

    ways = [name for name in worlds[0] if name != "gate"]
    table = {}
    for name in ways:
        lost = regrets(name)
        cost = float(np.mean([world[name][1] for world in worlds if name in world]))
        table[name] = {"worlds": len(lost), "best": float((lost < 1e-7).mean()), "regret": float(lost.mean()),
                       "p95": float(np.quantile(lost, 0.95)), "cost": cost}  # fmt: skip
        if name not in ("race", "grid"):
            table[name]["race_less"] = _paired(regrets("race")[: len(lost)] - lost)
    verdicts = [world["gate"] for world in worlds if "gate" in world]
    counts = {name: sum(each[0] == name for each in verdicts) for name in ("PROMOTE", "KEEP", "INSUFFICIENT", "SAME")}
    false, covered = sum(each[1] for each in verdicts), [each[2] for each in verdicts if each[2] is not None]
    return {
        "spec": vars(spec), "worlds": len(worlds), "ways": table,
        "against_grid": _paired(regrets("race") - regrets("grid")), "against_uniform": table["uniform"]["race_less"],
        "gates": len(verdicts), "verdicts": counts, "false": false,
        "false_upper": clopper_pearson(false, len(verdicts)).high, "covered": sum(covered), "intervals": len(covered),
    }  # fmt: skip


def _paired(differences: Any) -> list[float]:
    """Mean and two-sided 95% interval."""
    mean = float(differences.mean())
    reach = 1.96 * float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return [mean, mean - reach, mean + reach]


def code() -> str:
    """Digest of what decides: figures of other code are shown, and said to be."""
    from dse import statistics
    from dse.compiler import allocation, gate, pooling, race, verdict

    files = [Path(module.__file__ or "") for module in (allocation, gate, pooling, race, verdict)]
    files += sorted(Path(statistics.__file__ or "").parent.glob("*.py"))
    files.append(Path(__file__).with_name("worlds.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _task(job: tuple[Spec, int]) -> dict[str, Any]:
    return one_world(*job)


def cell(spec: Spec, worlds: int, mapper: Callable[..., Iterable[dict[str, Any]]] = map) -> dict[str, Any]:
    """Run one cell."""
    return judge(spec, list(mapper(_task, [(spec, number) for number in range(worlds)]))) | {"code": code()}


def run(worlds: int, *, place: Path, processes: int = 2, minutes: float = math.inf,
        cells: Sequence[Spec] = tuple(CELLS), stale: bool = False, say: Callable[[str], None] = print) -> list[dict[str, Any]]:  # fmt: skip
    """Run all cells that `place` (a JSON file) does not have with as many worlds; stop after `minutes` at a whole cell.

    Args:
        stale: cells whose figures are of other code as well.
    """
    kept = json.loads(place.read_text()) if place.exists() else []
    have = {json.dumps(each["spec"], sort_keys=True): each for each in kept if each["worlds"] >= worlds}
    started = time.monotonic()
    with get_context("spawn").Pool(processes) as pool:
        for spec in cells:
            key = json.dumps(vars(spec), sort_keys=True)
            if key in have and not (stale and have[key]["code"] != code()):
                continue
            if time.monotonic() - started > 60 * minutes:
                say(f"stopped after {minutes:g} min: {len(cells) - len(have)} cells are missing")
                break
            began = time.monotonic()
            have[key] = cell(spec, worlds, lambda task, jobs: pool.map(task, jobs, chunksize=25))
            figures = have[key]
            place.write_text("[\n" + ",\n".join(json.dumps(each) for each in have.values()) + "\n]\n")
            say(f"{spec.name}: race {figures['ways']['race']['regret']:.2f} grid {figures['ways']['grid']['regret']:.2f} "
                f"cost {figures['ways']['race']['cost']:.0%} ({time.monotonic() - began:.0f} s)")  # fmt: skip
    other = sum(each["code"] != code() for each in have.values())
    if other:
        say(f"{other} cells are figures of other code: --stale runs them anew")
    order = {json.dumps(vars(spec), sort_keys=True): place for place, spec in enumerate(CELLS)}
    return sorted(have.values(), key=lambda each: order.get(json.dumps(each["spec"], sort_keys=True), len(order)))
