"""The tables of the planted worlds in SELECTION.md: every target with whether it is met, and every cell that misses one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.selection.planted import COST_TARGET, PRICED_GATES, code
from benchmarks.selection.worlds import Spec
from dse.statistics import clopper_pearson

__all__ = ["render"]

_Cells = Sequence[Mapping[str, Any]]
_RIVALS = {"sign_test": "sign-test race (its cost)", "gepa's rule": "gepa's rule", "minibatches": "MIPROv2-like",
           "WilcoxonPruner": "Optuna WilcoxonPruner"}  # fmt: skip
_MOST_LOST = 0.5  # points of regret beyond the full grid's
_COVERAGE = (0.93, 0.97)
_FALSE, _FALSE_BOUND = 0.05, 0.06


def render(cells: _Cells) -> str:
    """The section of SELECTION.md."""
    other = sum(each.get("code") != code() for each in cells)
    lines = [
        f"{len(cells)} cells of {min(c['worlds'] for c in cells):,} worlds or more. Regret is in points of true utility "
        "lost by the choice, mean and 95th percentile over worlds; cost is the share of the full grid's. "
        "\"P(best)\" is how often the truly best candidate is chosen. Differences are paired by world, with 95% intervals.",
        *(["", f"{other} of {len(cells)} cells are figures of other code of the race, the pooling, the gate or the statistics "
           "than stands here now; `--stale` runs them anew."] if other else []),
        "", *_targets(cells), *_missed(cells), "", "### Regret and cost", "",
        _row("world", "race", "P(best)", "cost", "full grid", "P(best)", "uniform at equal cost", "race - grid", "race - uniform"),
        _row("---", *["---:"] * 8),
    ]  # fmt: skip
    for each in sorted(cells, key=lambda c: (-c["spec"]["arms"], c["spec"]["kind"] != "grid", c["spec"]["kind"],
                                             c["spec"]["items"], c["spec"]["gap"], c["spec"]["discordance"])):  # fmt: skip
        race, grid, uniform = (each["ways"][name] for name in ("race", "grid", "uniform"))
        lines.append(_row(_name(each), f"{race['regret']:.2f} / {race['p95']:.1f}", f"{race['best']:.0%}", f"{race['cost']:.0%}",
                          f"{grid['regret']:.2f} / {grid['p95']:.1f}", f"{grid['best']:.0%}",
                          f"{uniform['regret']:.2f} / {uniform['p95']:.1f}", _signed(each["against_grid"]),
                          _signed(each["against_uniform"])))  # fmt: skip
    return "\n".join([*lines, *_against(cells), *_gate(cells)])


# --- targets


def _targets(cells: _Cells) -> list[str]:
    """What was promised, whether it is kept in all cells, and the cell that keeps it least."""
    lines = [_row("target", "", "cells that meet it", "worst cell", "its figure"), _row("---", "---", "---:", "---", "---:")]

    def line(what: str, mine: _Cells, meets: Sequence[bool], worst: Mapping[str, Any], figure: str) -> None:
        lines.append(_row(what, _verdict(all(meets)), f"{sum(meets)} of {len(mine)}", _name(worst), figure))

    for arms, most in COST_TARGET.items():
        mine = [c for c in cells if c["spec"]["arms"] == arms]
        if not mine:
            continue
        costly = max(mine, key=lambda c: c["ways"]["race"]["cost"])
        line(f"K={arms}: cost at most {most:.0%} of the grid's", mine, [c["ways"]["race"]["cost"] <= most for c in mine], costly,
             f"{costly['ways']['race']['cost']:.1%}")  # fmt: skip
        lossy = max(mine, key=lambda c: c["against_grid"][0])
        line(f"K={arms}: regret at most the grid's + {_MOST_LOST} points", mine, [c["against_grid"][0] <= _MOST_LOST for c in mine], lossy,
             _signed(lossy["against_grid"]))  # fmt: skip
        differ = [c for c in mine if c["against_grid"][1:] != [0.0, 0.0]]
        means = [statistics.mean(c["against_grid"][0] for c in some or mine) for some in (mine, differ)]
        lines.append(_row(f"K={arms}: the same, mean of its cells (no target)", "", "",
                          f"cost {statistics.mean(c['ways']['race']['cost'] for c in mine):.0%}",
                          f"{means[0]:+.2f}; {means[1]:+.2f} over the {len(differ)} where a choice matters"))  # fmt: skip
    worst = max(cells, key=lambda c: c["against_uniform"][1])
    line("against uniform at equal cost: interval never above 0", cells, [c["against_uniform"][1] <= 1e-9 for c in cells], worst,
         _signed(worst["against_uniform"]))  # fmt: skip
    whole = [c for c in cells if not _first_only(c)]
    if whole:
        worst = max(whole, key=lambda c: _false(c)[1])
        line("false promotions at most 5%, upper bound at most 6%", whole, [_few_false(c) for c in whole], worst, _false_text(worst))
    for items in sorted({c["spec"]["items"] for c in cells}):
        mine = [c for c in cells if c["spec"]["items"] == items and c["intervals"]]
        if not mine:
            continue
        share = sum(c["covered"] for c in mine) / sum(c["intervals"] for c in mine)
        worst = max(mine, key=lambda c: abs(_coverage(c) - 0.95))
        lines.append(_row(f"N={items}: coverage of the sealed interval 93-97%", _verdict(_inside(share)),
                          f"{share:.1%} over all; {sum(_inside(_coverage(c)) for c in mine)} of {len(mine)} cells inside", _name(worst),
                          f"{_coverage(worst):.2%}"))  # fmt: skip
    return lines


def _missed(cells: _Cells) -> list[str]:
    """Every cell that misses a target, by name, and what the table counts and does not."""
    lines: list[str] = []
    for arms in COST_TARGET:
        mine = [c for c in cells if c["spec"]["arms"] == arms]
        lost = sorted((c for c in mine if c["against_grid"][0] > _MOST_LOST), key=lambda c: -c["against_grid"][0])
        if lost:
            lines += ["", f"K={arms}: {len(lost)} of {len(mine)} cells lose more than {_MOST_LOST} points to the full grid:", ""]
            lines += [f"- {_name(c)}: {_signed(c['against_grid'])} at {c['ways']['race']['cost']:.1%} of its cost" for c in lost]
        elif mine:
            lines += ["", f"K={arms}: no cell of {len(mine)} loses more than {_MOST_LOST} points to the full grid."]
    outside = [c for c in cells if c["intervals"] and not _inside(_coverage(c))]
    if outside:
        low = sum(_coverage(c) < _COVERAGE[0] for c in outside)
        lines += ["", "Coverage is judged by the mean over the cells of an N. Cells outside 93-97% "
                  f"({low} below: intervals too narrow; {len(outside) - low} above: wider than they need be):", ""]  # fmt: skip
        lines += [f"- {_name(c)}: {_coverage(c):.2%}" for c in sorted(outside, key=_coverage, reverse=True)]
    elif any(c["intervals"] for c in cells):
        lines += ["", "Coverage: no cell is outside 93-97%."]
    first = [c for c in cells if _first_only(c)]
    if first:
        worst = max(first, key=lambda c: _false(c)[1])
        few = sum(_few_false(c) for c in first)
        lines += ["", f"The line of false promotions leaves out those whose gates ran on the first {PRICED_GATES} worlds: "
                  f"{_names(first)}. {few} of these {len(first)} meet the target as well; the worst is {_name(worst)}, {_false_text(worst)}."]  # fmt: skip
    return lines


# --- rivals


def _against(cells: _Cells) -> list[str]:
    """Other rules, and how often each loses significantly less than the race."""
    lines = ["", "### Against other rules at equal cost", "",
             "Paired differences of regret, race minus the other, in points, with how many worlds. Rivals run on the first worlds of a cell "
             "only, the slowest in few cells:", ""]  # fmt: skip
    for name, title in _RIVALS.items():
        ran = [c["ways"][name] for c in cells if name in c["ways"]]
        if ran:
            numbers = sorted({way["worlds"] for way in ran})
            worlds = f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
            lines.append(f"- {title.removesuffix(' (its cost)')}: {worlds} worlds in each of {len(ran)} of {len(cells)} cells; its regret is "
                         f"significantly less than the race's in {sum(map(_less, ran))}, more in {sum(map(_more, ran))}")  # fmt: skip
    lines += _sign_test(cells)
    lines += ["", _row("world", *_RIVALS.values()), _row("---", *["---:"] * len(_RIVALS))]
    for each in cells:
        shown = []
        for name in _RIVALS:
            way = each["ways"].get(name)
            text = "" if way is None else f"{_signed(way['race_less'])}, n={way['worlds']}"
            shown.append(f"{text} ({way['cost']:.0%})" if way and name == "sign_test" else text)
        lines.append(_row(_name(each), *shown))
    return lines


def _sign_test(cells: _Cells) -> list[str]:
    """The baseline that chooses its own cost, by number of candidates."""
    parts = []
    for arms in COST_TARGET:
        mine = [c for c in cells if c["spec"]["arms"] == arms and "sign_test" in c["ways"]]
        if not mine:
            continue
        ways = [c["ways"]["sign_test"] for c in mine]
        theirs, ours = (statistics.mean(c["ways"][name]["cost"] for c in mine) for name in ("sign_test", "race"))
        parts.append(f"K={arms}, less in {sum(map(_less, ways))} and more in {sum(map(_more, ways))} of {len(mine)} cells, at {theirs:.0%} of "
                     f"the grid's cost on average where the race takes {ours:.0%}")  # fmt: skip
    return ["", "The sign-test race chooses its own cost (in brackets). Its regret against the race's, significantly: " + "; ".join(parts)
            + "."] if parts else []  # fmt: skip


def _less(way: Mapping[str, Any]) -> bool:
    """The rival's regret is less: the whole interval of race - rival is above 0."""
    return bool(way["race_less"][1] > 1e-9)


def _more(way: Mapping[str, Any]) -> bool:
    return bool(way["race_less"][2] < -1e-9)


# --- the gate


def _gate(cells: _Cells) -> list[str]:
    lines = ["", "### The gate on sealed rows", "",
             "The race's winner against the incumbent, as many sealed rows as select rows, the gate of every compile at 5%. A promotion is "
             "false when the winner is truly not better. Where prices count and N > 30, on the first "
             f"{PRICED_GATES} worlds.", "",
             _row("world", "gates", "PROMOTE", "KEEP", "INSUFFICIENT", "winner is incumbent", "false promotions",
                  "upper bound (Clopper-Pearson)", "coverage of the 95% interval"), _row("---", *["---:"] * 8)]  # fmt: skip
    for each in cells:
        count, verdicts, (false, bound) = _gates(each), each["verdicts"], _false(each)
        decided = [verdicts[name] for name in ("PROMOTE", "KEEP", "INSUFFICIENT")]
        lines.append(_row(_name(each), count, *(f"{number / count:.0%}" for number in (*decided, count - sum(decided))), f"{false:.2%}",
                          f"{bound:.2%}", f"{_coverage(each):.1%}" if each["intervals"] else ""))  # fmt: skip
    return lines


def _first_only(cell: Mapping[str, Any]) -> bool:
    """Its gates ran on the first worlds. Of the others those are in its figures whose winner is the incumbent."""
    return bool(cell["gates"] < cell["worlds"])


def _gates(cell: Mapping[str, Any]) -> int:
    return min(cell["gates"], PRICED_GATES) if _first_only(cell) else int(cell["gates"])


def _false(cell: Mapping[str, Any]) -> tuple[float, float]:
    """Share of the gates that promote what is not better, and its upper bound."""
    return cell["false"] / _gates(cell), clopper_pearson(cell["false"], _gates(cell)).high


def _few_false(cell: Mapping[str, Any]) -> bool:
    share, bound = _false(cell)
    return share <= _FALSE and bound <= _FALSE_BOUND


def _false_text(cell: Mapping[str, Any]) -> str:
    share, bound = _false(cell)
    return f"{share:.2%}, bound {bound:.2%}"


def _coverage(cell: Mapping[str, Any]) -> float:
    return float(cell["covered"] / cell["intervals"])


def _inside(share: float) -> bool:
    return _COVERAGE[0] <= share <= _COVERAGE[1]


# --- how it is written


def _name(figures: Mapping[str, Any]) -> str:
    return Spec(**figures["spec"]).name


def _names(cells: _Cells) -> str:
    """Of some cells, those that differ in K together."""
    arms: dict[tuple[str, int], list[str]] = {}
    for each in cells:
        arms.setdefault((each["spec"]["kind"], each["spec"]["items"]), []).append(str(each["spec"]["arms"]))
    return "; ".join(f"{kind}, N={items}, K={'/'.join(some)}" for (kind, items), some in arms.items())


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(each) for each in cells) + " |"


def _signed(values: Sequence[float]) -> str:
    return f"{values[0]:+.2f} ({values[1]:+.2f} to {values[2]:+.2f})"
