"""Plots of a compile: quality with intervals, quality against cost with the Pareto front, paired wins and losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dse.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["pareto_front", "plot_pareto", "plot_quality", "plot_wins"]

_COLOURS = {"direct": "#7f7f7f", "tool_call": "#1f77b4", "code": "#d95f02", "script": "#1b9e77"}
_DIFFERENCES = {"utility": "utility_difference", "quality": "difference"}
_TIE = 1e-12  # as the gate


def _axes(ax: Axes | None, height: float = 4.0) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(7.5, height), layout="constrained")[1]


def _colour(mode: str) -> str:
    return _COLOURS.get(mode, "#444444")


def plot_quality(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Mean quality of each candidate with its 95% interval, coloured by mode. `frame` from `candidates`."""
    rows = frame.sort_values("quality", kind="stable")
    ax = _axes(ax, 1.2 + 0.4 * len(rows))
    for y, (_, row) in enumerate(rows.iterrows()):
        below, above = row["quality"] - row["quality_low"], row["quality_high"] - row["quality"]
        # Rounding may leave a bound a hair on the wrong side of the mean, which matplotlib refuses.
        ax.errorbar(row["quality"], y, xerr=[[max(0.0, below)], [max(0.0, above)]], fmt="o", color=_colour(row["mode"]),
                    capsize=3)  # fmt: skip
    ax.set_yticks(range(len(rows)), rows["candidate"])
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("mean score on select rows, 95% interval")
    ax.grid(axis="x", alpha=0.3)
    return ax


def pareto_front(frame: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The candidates for which no other has at least their quality at no more `cost`, cheapest first.

    Of several with equal quality and cost, the first.
    """
    ordered = frame.sort_values([cost, "quality"], ascending=[True, False], kind="stable")
    best, keep = float("-inf"), []
    for index, row in ordered.iterrows():
        if row["quality"] > best:
            best = row["quality"]
            keep.append(index)
    return frame.loc[keep]


def plot_pareto(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Quality against cost per run (tokens where no price is known), with the Pareto front."""
    ax = _axes(ax)
    data = frame.assign(tokens=frame["tokens_in"] + frame["tokens_out"])
    cost = "cost_usd" if len(data) and data["cost_usd"].notna().all() else "tokens"
    for mode, group in data.groupby("mode"):
        ax.scatter(group[cost], group["quality"], color=_colour(str(mode)), label=str(mode), zorder=3)
    front = pareto_front(data, cost)
    ax.step(front[cost], front["quality"], where="post", color="black", linewidth=0.8, alpha=0.6, label="Pareto front")
    for _, row in front.iterrows():
        ax.annotate(row["candidate"], (row[cost], row["quality"]), xytext=(4, -10), textcoords="offset points", fontsize=8)
    source = "/".join(sorted(set(data["cost_source" if cost == "cost_usd" else "usage_source"])))
    ax.set_xlabel(f"{'USD' if cost == 'cost_usd' else 'tokens'} per run ({source})")
    ax.set_ylabel("mean score")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax


def plot_wins(frame: pd.DataFrame, ax: Axes | None = None, labels: tuple[str, str] = ("candidate", "incumbent"),
              by: str = "utility") -> Axes:  # fmt: skip
    """Sealed rows by paired difference: wins above zero, losses below. `frame` from `paired`.

    Args:
        by: ``utility``, which is what the gate counts and tests, or ``quality``, the scores alone.

    Raises:
        UserError: `by` is neither.
    """
    if by not in _DIFFERENCES:
        raise UserError("Rows differ in utility or in quality", value=by, remedy="Use by='utility' or by='quality'.")
    column = _DIFFERENCES[by]
    ax = _axes(ax, 3.0)
    rows = frame.sort_values(column, kind="stable").reset_index(drop=True)
    won, lost = rows[column] > _TIE, rows[column] < -_TIE
    colours = ["#1b9e77" if w else "#d62728" if x else "#bbbbbb" for w, x in zip(won, lost, strict=True)]
    ax.bar(range(len(rows)), rows[column], color=colours, width=1.0)
    # Small differences count as much as large ones and are hard to see: a dot on the zero line has each row's colour.
    ax.plot(range(len(rows)), [0] * len(rows), color="#888888", linewidth=0.8, zorder=0)
    ax.scatter(range(len(rows)), [0] * len(rows), color=colours, s=12, zorder=3)
    wins, losses = int(won.sum()), int(lost.sum())
    ax.set_title(f"{labels[0]} against {labels[1]} in {by}: {wins} wins, {losses} losses, {len(rows) - wins - losses} ties",
                 fontsize=10)  # fmt: skip
    ax.set_xlabel("sealed rows")
    ax.set_ylabel(f"difference in {by}")
    most = max(rows[column].abs().max() if len(rows) else 0.0, 0.05)
    ax.set_ylim(-1.05 * most, 1.05 * most)
    return ax
