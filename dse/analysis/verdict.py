"""The gate's result in words: what counted, what the gain is made of, and how to read the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["gain_parts", "gate_lines", "new_clusters", "objective_line", "signs"]

_TIE = 1e-12


def objective_line(objective: Any, price_table: str | None = None) -> str:
    """What counts as better, as one line."""
    terms = ["quality"]
    if objective.cost_weight:
        terms.append(f"- {objective.cost_weight:g} x USD")
    if objective.latency_weight:
        terms.append(f"- {objective.latency_weight:g} x seconds")
    if objective.exposure_weight:
        terms.append(f"+ {objective.exposure_weight:g} per effect removed")
    line = "Objective: " + (" ".join(terms) if len(terms) > 1 else "quality alone; cost, latency and tools have no price")
    if objective.cost_weight and price_table:
        line += f" (prices: {price_table})"
    limits = [f"{text} {value:g}{unit}" for text, value, unit in (
        ("cost at most", objective.max_cost, " USD per run"), ("p95 latency at most", objective.max_p95_latency_s, " s"),
        ("quality above", objective.min_quality, ""),
        ("quality loss at most", objective.max_quality_loss if len(terms) > 1 else None, ""),
    ) if value is not None]  # fmt: skip
    return "; ".join([line, *limits])


def gain_parts(paired: Any) -> dict[str, float]:
    """The mean utility difference of the gate's rows, by what it comes from: quality, cost, latency, tools.

    They add up to the gate's mean difference. A quantity without a price is left out; quality never is.
    """
    objective, rows = paired.objective, paired.rows

    def mean(mine: int, theirs: int) -> float:
        return math.fsum(row[mine] - row[theirs] for row in rows) / len(rows)

    parts = {"quality": mean(2, 3)}
    if objective.cost_weight:
        parts["cost"] = -objective.cost_weight * mean(4, 5)
    if objective.latency_weight:
        parts["latency"] = -objective.latency_weight * mean(6, 7)
    if objective.exposure_weight:
        parts["tools"] = objective.exposure_weight * (paired.baseline_exposure - paired.candidate_exposure)
    return parts


def signs(differences: Any) -> str:
    """``wins/losses/ties`` of differences."""
    values = list(differences)
    wins, losses = sum(d > _TIE for d in values), sum(d < -_TIE for d in values)
    return f"{wins}/{losses}/{len(values) - wins - losses}"


def gate_lines(artifact: Any, winner: str, incumbent: str, sealed: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """The gate's result of an artifact in words.

    Args:
        winner, incumbent: names of the two candidates.
        sealed: figures per candidate on the sealed rows, for tokens; an artifact alone has their scores and costs.
    """

    def span(interval: Mapping[str, Any]) -> str:
        return f"{interval['estimate']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"

    evidence = artifact.evidence
    gate, paired, mde = evidence.gate, evidence.paired, evidence.gate["mde"]
    lines = [
        objective_line(paired.objective, evidence.price_table),
        f"Gate on {gate['n_rows']} sealed rows in {gate['n_clusters']} clusters: {gate['verdict']}"
        + (f" ({winner} against {incumbent})" if winner != incumbent else
           f" ({winner} is the {evidence.incumbent['kind']} itself: there was nothing to test)"),
        f"  utility {span(gate['mean_difference'])}, quality {span(gate['quality_difference'])}, "
        f"p = {gate['p_value']:.4g} ({gate['test']})",
    ]
    parts = gain_parts(paired)
    if len(parts) > 1:
        made = ", ".join(f"{name} {part:+.3f}" for name, part in parts.items())
        lines.append(f"  the mean difference {gate['mean_difference']['estimate']:+.3f} is made of: {made}")
    if gate["p_value"] <= gate["alpha"] and gate["mean_difference"]["low"] <= 0:
        lines.append("  (the interval also allows for one win and one loss that these rows did not show; p does not)")
    wins = f"  wins/losses/ties in utility {gate['wins']}/{gate['losses']}/{gate['ties']}"
    lines.append(wins + (f", in quality {signs(row[2] - row[3] for row in paired.rows)}" if len(parts) > 1 else ""))
    lines += [f"  {line}" for line in _sealed(gate, winner, incumbent, sealed)]
    lines.append("  smallest gain this holdout finds with 80% power: " + ("none" if mde is None else f"{mde:.3f}"))
    lines += [f"  because {reason}" for reason in gate["reasons"]]
    if gate.get("rows_needed"):
        lines.append(f"  about {gate['rows_needed']} more rows like these, in {new_clusters(gate)} new clusters, would decide")
    return lines + [f"  {line}" for line in _unpriced(artifact)]


def new_clusters(gate: Mapping[str, Any]) -> int:
    """The clusters that the further rows of an undecided verdict would be in."""
    needed: float = gate["rows_needed"] * gate["n_clusters"] / gate["n_rows"]
    return math.ceil(needed)


def _sealed(gate: Mapping[str, Any], winner: str, incumbent: str,
            sealed: Mapping[str, Mapping[str, Any]] | None) -> list[str]:  # fmt: skip
    """What the two used on the sealed rows."""
    if winner == incumbent:
        return []
    found = []
    if sealed:
        mine, theirs = (sealed[name]["tokens_in"] + sealed[name]["tokens_out"] for name in (winner, incumbent))
        found.append(f"{mine:.0f} tokens per run against {theirs:.0f}{_change(mine, theirs)}")
    mine, theirs = gate["candidate_cost"], gate["incumbent_cost"]
    if mine is not None and theirs is not None:
        found.append(f"{mine:.5f} USD per run against {theirs:.5f}{_change(mine, theirs)}")
    return [f"on the sealed rows {', '.join(found)}"] if found else []


def _change(mine: float, theirs: float) -> str:
    if not theirs:
        return ""
    share = mine / theirs - 1
    return f" ({abs(share):.0%} {'less' if share < 0 else 'more'})" if round(abs(share), 2) else ""


def _unpriced(artifact: Any) -> list[str]:
    """What a candidate of no lower quality saves and the objective does not count."""
    evidence = artifact.evidence
    rows = {row["program_id"]: row for row in evidence.modes}
    mine, theirs = rows.get(artifact.program.program_id), rows.get(evidence.incumbent["program_id"])
    if mine is None or theirs is None or mine is theirs or evidence.gate["verdict"] == "PROMOTE":
        return []
    if evidence.gate["quality_difference"]["estimate"] < 0:
        return []
    saved = []
    tokens, other = (row["tokens_in"] + row["tokens_out"] for row in (mine, theirs))
    if not evidence.paired.objective.cost_weight and other and tokens <= 0.95 * other:
        saved.append(f"{1 - tokens / other:.0%} fewer tokens")
    fewer = len(theirs["allow"]) - len(mine["allow"])
    if not evidence.paired.objective.exposure_weight and fewer > 0:
        saved.append(f"{fewer} {'tool' if fewer == 1 else 'tools'} fewer")
    if not saved:
        return []
    priced = "does not price that" if len(saved) == 1 else "prices neither"
    return [f"it uses {' and '.join(saved)} on select rows; the objective {priced}"]
