"""``dse monitor`` and ``dse explain``: what speaks for an artifact, before and after its promotion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dse.shell import CHECK_FAILED, open_store, out, say

__all__ = ["add_to"]


def monitor_command(
    ref: Annotated[str, typer.Argument(help="Artifact reference.")],
    store: Annotated[str, typer.Option(help="Database of runs.")] = "dse.db",
    name: Annotated[str | None, typer.Option(help="Name of the judgements that count; default the only one.")] = None,
    alpha: Annotated[float, typer.Option(help="Chance of ever asking for the rollback of an artifact that keeps its promise.")] = 0.05,
    reference: Annotated[float | None, typer.Option(help="Mean score to keep; default from the sealed evidence.")] = None,
    max_loss: Annotated[float | None, typer.Option(help="Loss in mean score that is accepted; default the objective's.")] = None,
    group_by: Annotated[str | None, typer.Option(help="Input field: of runs of equal value only the first judged counts.")] = None,
    against: Annotated[str | None, typer.Option(help="Compare with the judged runs of this artifact instead, e.g. previous.")] = None,
    paired: Annotated[bool, typer.Option(help="With --against: runs of equal inputs only.")] = False,
    count_failures: Annotated[bool, typer.Option(help="Runs that failed count 0; only where all others are judged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Whether an artifact's judged runs still are what it was promoted for; exit code 1 where they speak for a rollback."""
    from dse.analysis.monitor import monitor
    from dse.artifacts.registry import Registry

    artifact = Registry.resolve(ref)
    other = None
    if against is not None:
        whose = str(Path(ref).parent) if ref.endswith(".json") else ref.rpartition("@")[0] or ref  # a file is in its name's folder
        named = against if "@" in against or against.endswith(".json") else f"{whose}@{against}"
        other = Registry.resolve(named)
    report = monitor(artifact, open_store(store, existing=True), name=name, reference=reference, max_loss=max_loss, alpha=alpha,
                     group_by=group_by, against=other, paired=paired, count_failures=count_failures)  # fmt: skip
    if as_json:
        out.print_json(data=report.to_dict())
    else:
        say(str(report))
    if report.advice == "rollback":
        raise typer.Exit(CHECK_FAILED)


def explain_command(ref: Annotated[str, typer.Argument(help="Artifact reference.")]) -> None:
    """Say in words and numbers why this mode, these prompts and this allow-list, what it cost, and what is not known."""
    from dse.analysis.explanation import explain
    from dse.artifacts.registry import Registry

    say(explain(Registry.resolve(ref)))


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("monitor")(monitor_command)
    app.command("explain")(explain_command)
