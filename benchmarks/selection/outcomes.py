"""Published outcomes of real models: 38 variants (model x action format) on 91 items, every cell known.

No model is asked. Items are split at random, again and again; one part is for choosing, one for the gate. What a choice
is worth is measured on items that it was not made on.

The figures are read from the folder in ``DSE_BENCH_OUTCOMES``, or ``../shared/bench/outcomes`` beside the project.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dse.compiler.gate import PairedRow, gate
from dse.compiler.race import Arm, Item, RaceResult, make_race
from dse.objective import Objective
from dse.statistics import clopper_pearson, mcnemar

__all__ = ["FILE", "VARIABLE", "Outcomes", "Pair", "located", "read", "render", "study"]

VARIABLE = "DSE_BENCH_OUTCOMES"
FILE = "bfcl_exec.csv"
#: Shares of the items: search, select, holdout. As a compile splits them; and with the search rows, which propose
#: nothing here, used for choosing as well.
SPLITS = {"search 40, select 30, holdout 30": (0.4, 0.3), "select 60, holdout 40": (0.0, 0.6)}
SEED = 7
#: Points over all items from which a pair that does not differ at p < .05 is said to lean.
_LEANS = 5
_Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Pair:
    """One model with two action formats (rows of the matrix), and what all items say about them."""

    model: str
    python: int
    json: int
    difference: float
    p_value: float

    @property
    def differs(self) -> bool:
        """At p < .05 (two-sided exact McNemar) over all items."""
        return self.p_value < 0.05


@dataclass(frozen=True)
class Outcomes:
    """Right or wrong, and output tokens, of variants x items."""

    variants: tuple[str, ...]
    models: tuple[str, ...]
    formats: tuple[str, ...]
    items: tuple[str, ...]
    correct: _Array
    tokens: _Array

    def pairs(self) -> list[Pair]:
        """Every json variant with the python variant of its model."""
        found = []
        for json, (model, how) in enumerate(zip(self.models, self.formats, strict=True)):
            if how != "json":
                continue
            python = next(i for i, m in enumerate(self.models) if m == model and self.formats[i] == "python")
            gaps = self.correct[python] - self.correct[json]
            wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
            ties = len(gaps) - wins - losses
            p = min(1.0, 2 * min(mcnemar(wins, losses, ties=ties).p_value, mcnemar(losses, wins, ties=ties).p_value))
            found.append(Pair(self.variants[json], python, json, float(gaps.mean()), p))
        return found


def located() -> Path | None:
    """The file with the outcomes, None where there is none."""
    root = Path(__file__).parent.parent.parent
    folder = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else root.parent / "shared" / "bench" / "outcomes"
    return folder / FILE if (folder / FILE).is_file() else None


def read(path: Path) -> Outcomes:
    """Read the matrix. A variant's format is in its name: "-FC" variants call functions with JSON, others write Python."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    variants, items = sorted({row["variant"] for row in rows}), sorted({row["item"] for row in rows})
    models = {row["variant"]: row["model"] for row in rows}
    correct, tokens = np.full((len(variants), len(items)), np.nan), np.full((len(variants), len(items)), np.nan)
    for row in rows:
        cell = variants.index(row["variant"]), items.index(row["item"])
        correct[cell], tokens[cell] = float(row["correct"]), float(row["output_tokens"])
    if np.isnan(correct).any():
        raise ValueError(f"{path} is not a complete matrix")
    return Outcomes(tuple(variants), tuple(models[v] for v in variants), tuple("json" if "-FC" in v else "python" for v in variants),
                    tuple(items), correct, tokens)  # fmt: skip


def _race(data: Outcomes, rows: Sequence[int], select: _Array, protect: Sequence[int], seed: int) -> RaceResult:
    """A race between variants on the items `select`; the unit is one rollout."""
    arms = [Arm(data.variants[v], {"model": data.models[v], "mode": data.formats[v]}) for v in rows]
    race = make_race(arms, [Item(data.items[i]) for i in select], protect=[data.variants[v] for v in protect], seed=seed)
    index = {data.variants[v]: v for v in rows}
    while (batch := race.next()) is not None:
        race.tell((name, item, 0, float(data.correct[index[name], select[item]]), 1.0) for name, item, _ in batch)
    return race.result()


def _verdict(data: Outcomes, chosen: int, incumbent: int, sealed: _Array) -> str:
    rows = [PairedRow(data.items[i], data.items[i], float(data.correct[chosen, i]), float(data.correct[incumbent, i]))
            for i in sealed]  # fmt: skip
    return gate(rows, objective=Objective()).verdict


def study(path: Path, splits: int) -> dict[str, Any]:
    """All figures, for each way to split."""
    data = read(path)
    return {"items": len(data.items), "variants": len(data.variants), "splits": splits, "pairs": data.pairs(),
            "designs": {name: _design(data, splits, *shares) for name, shares in SPLITS.items()}}  # fmt: skip


def _design(data: Outcomes, splits: int, search: float, select: float) -> dict[str, Any]:
    pairs, count = data.pairs(), len(data.items)
    first, last = round(search * count), round((search + select) * count)
    right = np.zeros((splits, len(pairs)), dtype=bool)
    kept = np.zeros((splits, len(pairs), 2), dtype=bool)  # what is deployed is the better one, by incumbent
    promoted = np.zeros((splits, len(pairs), 2), dtype=bool)
    lost = np.zeros((splits, len(pairs), 3))  # the choice, always python, always json
    many = np.zeros((splits, 6))
    spent = 0
    for number in range(splits):
        order = np.random.default_rng([SEED, number]).permutation(count)
        chosen_on, sealed = order[first:last], order[last:]
        unseen = np.concatenate([order[:first], sealed])
        for place, pair in enumerate(pairs):
            result = _race(data, [pair.json, pair.python], chosen_on, [pair.json], number)
            spent += result.rollouts
            choice = pair.python if result.winner == data.variants[pair.python] else pair.json
            better = pair.python if pair.difference > 0 else pair.json
            right[number, place] = choice == better
            held = data.correct[:, unseen].mean(axis=1)
            for column, variant in enumerate((choice, pair.python, pair.json)):
                lost[number, place, column] = held[better] - held[variant] if pair.difference else 0.0
            for column, incumbent in enumerate((pair.json, pair.python)):
                verdict = "KEEP" if choice == incumbent else _verdict(data, choice, incumbent, sealed)
                promoted[number, place, column] = verdict == "PROMOTE"
                kept[number, place, column] = (choice if verdict == "PROMOTE" else incumbent) == better
        everyone = list(range(len(data.variants)))
        baseline = min(range(len(data.variants)), key=lambda v: (data.formats[v] != "json", v))
        result = _race(data, everyone, chosen_on, [baseline], number)
        truth = data.correct[:, unseen].mean(axis=1)
        overall = data.correct.mean(axis=1)
        # Against the best over all items: the best on these rows by chance could be reached by nobody.
        best = truth[int(overall.argmax())]
        grid = int(data.correct[:, chosen_on].mean(axis=1).argmax())
        tokens = float(data.tokens[:, chosen_on].mean())
        used = sum(each.n * float(data.tokens[data.variants.index(each.name)].mean()) for each in result.ranking)
        winner = data.variants.index(result.winner or "")
        many[number] = [best - truth[winner], best - truth[grid], result.rollouts / result.grid_rollouts,
                        used / (tokens * result.grid_rollouts), overall.max() - overall[winner], overall.max() - overall[grid]]  # fmt: skip
    differ = np.array([pair.differs for pair in pairs])
    others = promoted[:, ~differ]
    return {
        "select": last - first, "holdout": count - last, "right": right.mean(axis=0), "differ": differ,
        "deployed": kept.mean(axis=0), "false": others.sum(axis=(0, 1)),
        "promoted": promoted.mean(axis=0), "chances": int(others.shape[0] * others.shape[1]), "found": promoted[:, differ].any(axis=2).mean(),
        "regret": 100 * lost.mean(axis=(0, 1)), "cost": spent / (splits * len(pairs) * 2 * (last - first)),
        "many": [*(100 * many[:, :2].mean(axis=0)), *many[:, 2:4].mean(axis=0), *(100 * many[:, 4:].mean(axis=0))],
        "many_gap": 100 * (many[:, 4] - many[:, 5]),
    }  # fmt: skip


def render(figures: Mapping[str, Any]) -> str:
    """The section of SELECTION.md."""
    pairs: list[Pair] = figures["pairs"]
    designs = figures["designs"]
    lines = [
        f"{figures['variants']} variants on {figures['items']} items of BFCL (exec), {figures['splits']} random splits; every item is a cluster "
        f"of its own. {len(pairs)} pairs of one model with two action formats (JSON function calls, Python), of which "
        f"{sum(p.differs for p in pairs)} differ at p < .05 over all items. Regret is measured on the rows that were not "
        "used for choosing.", "",
        "| | target | " + " | ".join(designs) + " |", "|---|---:|" + "---:|" * len(designs),
    ]  # fmt: skip

    def line(what: str, target: str, tell: Any) -> None:
        lines.append(f"| {what} | {target} | " + " | ".join(tell(d) for d in designs.values()) + " |")

    line("rows to choose on / sealed", "", lambda d: f"{d['select']} / {d['holdout']}")
    line("formats differ: the better one is chosen, mean over pairs", ">= 90%", lambda d: f"{d['right'][d['differ']].mean():.1%}")
    line("... the worst pair", "", lambda d: f"{d['right'][d['differ']].min():.1%}")
    for place, incumbent in enumerate(("JSON", "Python")):
        line(f"others: false PROMOTE over the incumbent {incumbent}", "<= 5%",
             lambda d, i=place: f"{d['false'][i] / d['chances']:.2%} "
                                f"(bound {clopper_pearson(int(d['false'][i]), d['chances']).high:.2%})")  # fmt: skip
        line("... the worst pair", "", lambda d, i=place: f"{d['promoted'][~d['differ']][:, i].max(initial=0.0):.1%}")
    line("regret of the choice, points", "half of the better constant", lambda d: f"{d['regret'][0]:.2f}")
    line("regret of always Python / always JSON", "", lambda d: f"{d['regret'][1]:.2f} / {d['regret'][2]:.2f}")
    line("rollouts of the race, share of the grid", "", lambda d: f"{d['cost']:.0%}")
    line("formats differ: deployed after the gate is the better one, incumbent JSON / Python", "",
         lambda d: " / ".join(f"{d['deployed'][d['differ']][:, i].mean():.0%}" for i in (0, 1)))  # fmt: skip
    line("all variants at once (K=38): regret of the race / of the full grid over all items, points", "",
         lambda d: f"{d['many'][4]:.2f} / {d['many'][5]:.2f}")  # fmt: skip
    line("... the same on rows not chosen on", "", lambda d: f"{d['many'][0]:.2f} / {d['many'][1]:.2f}")
    line("... difference over all items (95% interval over splits)", "", _gap)
    line("... rollouts / output tokens, share of the grid", "", lambda d: f"{d['many'][2]:.0%} / {d['many'][3]:.0%}")
    lines += ["", "The gate alone decides what is deployed: with so few sealed rows it finds large gains only, and ties keep the "
              "incumbent. Splits overlap, so intervals over them say how much chance is left in these means, and nothing about "
              "other items; and what looks good on some of 91 items looks worse on the rest by that alone.",
              *_leaning(pairs, designs),
              "", "| pair | python - json over all items, points | p | "
              + " | ".join(f"better one chosen ({n}) | false PROMOTE over JSON / Python ({n})" for n in designs) + " |",
              "|---|---:|---:|" + "---:|---:|" * len(designs)]  # fmt: skip
    for place, pair in enumerate(pairs):
        lines.append(f"| {pair.model} | {100 * pair.difference:+.1f} | {pair.p_value:.2g} | "
                     + " | ".join(_of_pair(pair, d["right"][place], d["promoted"][place]) for d in designs.values()) + " |")  # fmt: skip
    return "\n".join(lines)


def _of_pair(pair: Pair, right: float, promoted: _Array) -> str:
    """How often the better one is chosen, and where none is said to be better, how often each is promoted over the other."""
    chosen = "no better one" if pair.difference == 0 else f"{right:.0%}"
    return f"{chosen} | " + ("" if pair.differs else " / ".join(f"{share:.1%}" for share in promoted))


def _leaning(pairs: Sequence[Pair], designs: Mapping[str, Any]) -> list[str]:
    """Why "false" is the strict reading: what is not significant over all items need not be equal."""
    others = [place for place, pair in enumerate(pairs) if not pair.differs]
    lean = [place for place in others if abs(100 * pairs[place].difference) >= _LEANS]
    if not lean:
        return []
    points = sorted(abs(100 * pairs[place].difference) for place in lean)
    theirs, all_of = (sum(float(d["promoted"][some].sum()) for d in designs.values()) for some in (lean, others))
    return ["", f"Of the {len(others)} pairs that do not differ at p < .05, {len(lean)} lean by {points[0]:.0f} to {points[-1]:.0f} points over all "
            f"items, so that \"false\" is the strict reading: {theirs / all_of if all_of else 0:.0%} of these promotions are theirs."]  # fmt: skip


def _gap(design: Mapping[str, Any]) -> str:
    gaps = design["many_gap"]
    reach = 1.96 * gaps.std(ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else float("inf")
    return f"{gaps.mean():+.2f} ({gaps.mean() - reach:+.2f} to {gaps.mean() + reach:+.2f})"
