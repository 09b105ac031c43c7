"""What a compile or an evaluation measured, as terminal tables and plain words. Every figure carries its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dse.analysis.verdict import gate_lines

__all__ = ["decision_table", "print_compile", "print_eval"]


def _number(value: Any, pattern: str = "{:.3f}") -> str:
    return "?" if value is None else pattern.format(value)


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['quality']:.3f} [{row['quality_low']:.2f}, {row['quality_high']:.2f}]"


def _marked(text: str, source: str) -> str:
    return text + {"estimated": " est.", "unknown": " ?"}.get(source, "")


def decision_table(table: Mapping[str, Mapping[str, Any]], *, winner: str = "", incumbent: str = "", title: str = "",
                   plans: Mapping[str, Any] | None = None, notes: bool = True) -> Table:  # fmt: skip
    """Candidates with quality and 95% interval, calls, tokens and cost per run, best quality first."""
    shown = Table(title=title or None, title_justify="left")
    for name in ("candidate", "tools", "quality (95%)", "model calls", "tool calls", "tokens", "USD/run", "failed"):
        shown.add_column(name, justify="left" if name in ("candidate", "quality (95%)") else "right")
    priced = any(row["cost_usd"] is not None for row in table.values())
    for name, row in sorted(table.items(), key=lambda item: -item[1]["quality"]):
        marks = [text for text, other in (("winner", winner), ("incumbent", incumbent)) if name == other]
        label = escape(name) + (f" [bold]<- {', '.join(marks)}[/]" if marks else "")
        tools = str(len(plans[name].allow)) if plans and name in plans else ""
        cost = _marked(_number(row["cost_usd"], "{:.5f}"), row["cost_source"] if row["cost_usd"] is not None else "")
        shown.add_row(label, tools, escape(_interval(row)), f"{row['model_calls']:.1f}", f"{row['tool_calls']:.1f}",
                      _marked(f"{row['tokens_in'] + row['tokens_out']:.0f}", row["usage_source"]), cost if priced else "-",
                      f"{row['failures']}/{row['n']}")  # fmt: skip
    return shown


def print_compile(console: Console, result: Any) -> None:
    """The decision table, the gate and the artifact of a compile."""
    evidence = result.artifact.evidence
    rows = max(row["n"] for row in result.table.values())
    console.print(decision_table(result.table, winner=result.winner, incumbent=result.incumbent, plans=result.plans,
                                 title=f"{result.artifact.program.signature['name']}: {len(result.table)} candidates on "
                                       f"{rows} select rows"))  # fmt: skip
    for line in race_lines(evidence):
        console.print(line, markup=False)
    for line in gate_lines(result.artifact, result.winner, result.incumbent, result.holdout_table):
        console.print(line, markup=False)
    lists = result.lists.named()
    enough = "all of them needed" if lists["union"] == lists["minimal"] else f"{len(lists['minimal'])} sufficient"
    if lists["all"]:
        console.print(f"Allow-lists: {len(lists['all'])} declared, {len(lists['union'])} used by successful runs, "
                      f"{enough} ({', '.join(lists['minimal']) or 'none'})", markup=False)  # fmt: skip
    for one in evidence.removals:
        console.print(f"  without {', '.join(one.removed)}: {one.change:+.3f} [{one.low:+.3f}, {one.high:+.3f}] in utility on "
                      f"{one.rows} select rows ({one.narrow} against {one.wide}); {one.effects} effects less", markup=False)  # fmt: skip
    spend = evidence.spend
    console.print(f"Completions: {evidence.model_label}; {spend['model_calls']} of them, "
                  f"{spend['input_tokens'] + spend['output_tokens']} tokens ({spend['usage_source']}), "
                  f"cost {_money(evidence)}", markup=False)  # fmt: skip
    if len(evidence.stages) > 1:
        for one in evidence.stages:
            console.print(f"  {one.stage}, {one.model}: {one.rollouts} rollouts, {one.model_calls} completions"
                          + ("" if one.cost_usd is None else f", {one.cost_usd:.4f} USD"), markup=False)  # fmt: skip
    console.print(spent_line(result.accounts), markup=False)
    for line in judge_lines(result.records["holdout"], {name: f"{name} on sealed rows" for name in result.plans}):
        console.print(line, markup=False)
    for name, why in evidence.pruned.items():
        console.print(f"Not tried: {name}: {why}", markup=False)
    for note in result.notes:
        console.print(f"Note: {note}", markup=False)
    if evidence.holdout_openings > 1:
        console.print(f"Note: {openings_note(evidence.holdout_openings)}", markup=False)
    console.print(f"Artifact {result.ref} in mode {result.artifact.program.plan.mode}", markup=False)


def spent_line(accounts: Sequence[Mapping[str, Any]]) -> str:
    """What a compile paid for, by its accounts: besides what the result came from, what failed and was asked again."""

    def total(what: str) -> Any:
        return math.fsum(one[what] for one in accounts)

    if not accounts:
        return "Paid for by this compile: nothing"
    tokens = total("input_tokens") + total("output_tokens")
    text = f"Paid for by this compile: {total('model_calls'):.0f} requests to models, {tokens:.0f} tokens"
    if tools := total("tool_calls"):
        text += f", {tools:.0f} calls of tools with a price"
    if usd := total("cost_usd"):
        text += f", {usd:.4f} USD"
    if refused := total("refused"):
        text += f"; refused: {refused:.0f}"
    if unanswered := total("unanswered"):
        text += f"; asked without an answer: {unanswered:.0f}, up to {total('unanswered_usd'):.4f} USD"
    return text


def race_lines(evidence: Any) -> list[str]:
    """How the select split was spent, and which candidates no other one beats in everything."""
    race = evidence.race
    if race is None:
        return []
    lines = []
    if race.rollouts < race.grid_rollouts:
        lines.append(f"Select took {race.rollouts} of the {race.grid_rollouts} rollouts of a full grid, in {len(race.rounds)} "
                     "rounds; a row shows the rows that its candidate ran on.")  # fmt: skip
    lines.append(f"Chosen: {race.chosen_because}.")
    if len(evidence.front) > 1:
        lines.append(f"Pareto front of quality, cost, latency and effects: {', '.join(evidence.front)}.")
    return lines


def _money(evidence: Any) -> str:
    spend = evidence.spend
    if spend["cost_usd"] is None:
        return "unknown"
    return f"{spend['cost_usd']:.4f} USD ({spend['cost_source']}, prices: {evidence.price_table or 'of the provider'})"


def print_eval(console: Console, report: Any) -> None:
    """The table of an evaluation and its conditions."""
    labels = {name: f"{report.plans[name].mode} {ref[7:19]} ({name})" for name, ref in report.refs.items()}
    console.print(decision_table({labels[name]: row for name, row in report.table.items()},
                                 plans={labels[name]: plan for name, plan in report.plans.items()},
                                 title=f"{next(iter(report.table.values()))['n']} rows of split {report.split}"))  # fmt: skip
    for line in judge_lines(report.records, labels):
        console.print(line, markup=False)
    if report.difference:
        low, mean, high = report.difference
        console.print(f"Difference in quality: {mean:+.3f} [{low:+.3f}, {high:+.3f}]", markup=False)
    for failure in report.failures:
        console.print(f"FAILED: {failure}", markup=False)
    if not report.failures:
        console.print("passed" if report.conditions else "measured; nothing was asked of it (--min-score, --against)",
                      markup=False)  # fmt: skip


def judge_lines(records: Any, labels: Mapping[str, str]) -> list[str]:
    """How far a judge disagreed with itself, and what it took; nothing where no judge was asked.

    Args:
        labels: what candidates are called.
    """
    from dse.evaluation.judge import judge_summary

    lines = []
    for name, row in judge_summary(records).items():
        apart = (f"repeats apart by {row['judge_disagreement']:.3f} (standard deviation), {row['judge_agreement']:.0%} of pairs equal, "
                 if "judge_disagreement" in row else "asked once, so its disagreement is not known, ")  # fmt: skip
        cost = f", {row['judge_cost_usd']:.5f} USD" if "judge_cost_usd" in row else ""
        lines.append(f"Judge on {labels.get(name, name)}, {row['judged']:.0f} rows: {apart}{row['judge_calls']:.1f} calls, "
                     f"{row['judge_tokens_in'] + row['judge_tokens_out']:.0f} tokens{cost} per row")  # fmt: skip
    return lines


def openings_note(openings: int) -> str:
    """What a p-value is worth on a holdout that was opened `openings` times in its store."""
    return (f"this holdout (or part of it) was opened {openings} times in this store: "
            f"p was tested at 0.05/{openings}")  # fmt: skip
