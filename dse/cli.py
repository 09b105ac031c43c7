"""The shell face: ``dse compile | eval | run | artifacts | runs | stubs | dataset | explain``."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from dse import __version__
from dse.errors import BudgetExhausted, DseError, InfrastructureError, UserError

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Compile declared tasks into measured programs.")  # fmt: skip
artifacts_app = typer.Typer(no_args_is_help=True, help="List, show, compare, verify and promote artifacts.")
runs_app = typer.Typer(no_args_is_help=True, help="Runs kept in a store.")
dataset_app = typer.Typer(no_args_is_help=True, help="Check and seal datasets.")
app.add_typer(artifacts_app, name="artifacts")
app.add_typer(runs_app, name="runs")
app.add_typer(dataset_app, name="dataset")
out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)

# Exit codes: 0 fine, 1 a check failed (score, verification), 2 the user's mistake, 3 infrastructure, 4 budget.
CHECK_FAILED, USER, INFRASTRUCTURE, BUDGET = 1, 2, 3, 4

RegistryOption = Annotated[str, typer.Option("--registry", help="Folder of artifacts and aliases.")]


def load_object(spec: str) -> Any:
    """``package.module:NAME``, with the current folder importable."""
    module, _, name = spec.partition(":")
    if not name:
        raise UserError("Expected MODULE:NAME", value=spec, remedy="For example signatures.expenses:task.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise UserError("The module cannot be imported", value=str(exc), remedy="Run this where it is importable.") from exc
    if not hasattr(found, name):
        raise UserError(f"{module} has no {name!r}", value=spec, remedy="Name the task object in it.")
    return getattr(found, name)


def _prices(path: str | None) -> Any:
    from dse.models.prices import PriceTable

    return PriceTable.load(path) if path else None


class _Bars:
    """Progress of rollouts on a terminal; silent elsewhere."""

    def __init__(self) -> None:
        self.progress = Progress(TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(), console=err,
                                 transient=True, disable=not err.is_terminal)  # fmt: skip
        self.tasks: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.progress.add_task(what, total=total)
        self.progress.update(self.tasks[what], completed=done)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit()


@app.command("compile")
def compile_command(
    task: Annotated[str, typer.Argument(help="MODULE:TASK")],
    lm: Annotated[str, typer.Option(help="A dspy model string, or replay:FILE.")],
    registry: RegistryOption = "artifacts",
    store: Annotated[str | None, typer.Option(help="Database of rollouts; default REGISTRY/dse.db.")] = None,
    record: Annotated[str | None, typer.Option(help="Record completions to this cassette; hits are replayed.")] = None,
    prices: Annotated[str | None, typer.Option(help="A price table (JSON).")] = None,
    max_model_calls: Annotated[int | None, typer.Option(help="Requests to the model at most.")] = None,
    budget_usd: Annotated[float | None, typer.Option(help="Money at most; needs prices.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Wall time at most.")] = None,
    search_rows: Annotated[int, typer.Option(help="Search rows to use.")] = 10,
    select_rows: Annotated[int | None, typer.Option(help="Select rows to use; default all.")] = None,
    holdout_rows: Annotated[int | None, typer.Option(help="Holdout rows to use; default all.")] = None,
    concurrency: Annotated[int, typer.Option(help="Rollouts at a time.")] = 8,
    seed: int = 0,
) -> None:
    """Measure candidates on the data, gate the winner, emit an artifact."""
    from dse.analysis.report import print_compile
    from dse.compiler.budget import Budget
    from dse.compiler.compile import Rows
    from dse.compiler.compile import compile as compile_task

    bars = _Bars()
    with bars.progress:
        result = compile_task(
            load_object(task), lm=lm, registry=registry, store=store, record=record, prices=_prices(prices),
            budget=Budget(usd=budget_usd, model_calls=max_model_calls, minutes=max_minutes),
            rows=Rows(search_rows, select_rows, holdout_rows), concurrency=concurrency, seed=seed,
            progress=bars, say=err.print,
        )  # fmt: skip
    print_compile(out, result)


@app.command("eval")
def eval_command(
    ref: Annotated[str, typer.Argument(help="Artifact reference, e.g. artifacts/Name@champion.")],
    task: Annotated[str, typer.Option(help="MODULE:TASK with signature, metric and environment.")],
    data: Annotated[str | None, typer.Option(help="Dataset folder; default the task's.")] = None,
    split: Annotated[str, typer.Option(help="search or select; the holdout stays sealed.")] = "select",
    lm: Annotated[str | None, typer.Option(help="Default the proven model.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Fail below this mean score.")] = None,
    against: Annotated[str | None, typer.Option(help="Also run this artifact or alias; fail if significantly worse.")] = None,
    max_rows: int | None = None,
    allow_unproven: bool = False,
    concurrency: int = 8,
    store: Annotated[str | None, typer.Option(help="Database of rollouts; default in memory.")] = None,
) -> None:
    """Score an artifact on open rows; the exit code says whether it passed."""
    from dse.analysis.report import print_eval
    from dse.evaluation.report import evaluate_artifact

    bars = _Bars()
    with bars.progress:
        report = evaluate_artifact(
            ref, load_object(task), data=data, split=split, lm=lm, against=against, max_rows=max_rows, min_score=min_score,
            allow_unproven=allow_unproven, concurrency=concurrency, store=store, progress=bars,
        )  # fmt: skip
    print_eval(out, report)
    if report.failures:
        raise typer.Exit(CHECK_FAILED)


@app.command("run")
def run_command(
    ref: Annotated[str, typer.Argument(help="Artifact reference.")],
    task: Annotated[str, typer.Option(help="MODULE:TASK, or MODULE:SIGNATURE.")],
    input: Annotated[str, typer.Option("--input", help="Inputs as a JSON object, @FILE or - for standard input.")],
    lm: Annotated[str | None, typer.Option(help="Default the proven model.")] = None,
    deps: Annotated[str | None, typer.Option(help="MODULE:OBJECT (or factory) handed to tools.")] = None,
    allow: Annotated[str | None, typer.Option(help="Comma-separated tools: narrows the allow-list.")] = None,
    store: Annotated[str | None, typer.Option(help="Database to keep the run in.")] = None,
    allow_unproven: bool = False,
    receipt: Annotated[bool, typer.Option(help="Print the receipt as well.")] = False,
) -> None:
    """Load an artifact and run it on one input."""
    from dse.canonical import parse_json
    from dse.contracts.signature import Signature
    from dse.program import load

    text = sys.stdin.read() if input == "-" else Path(input[1:]).read_text() if input.startswith("@") else input
    found = load_object(task)
    signature = found if isinstance(found, type) and issubclass(found, Signature) else found.signature
    dependencies = load_object(deps) if deps else getattr(found, "deps", None)
    program = load(
        ref, signature=signature, lm=lm, toolbox=getattr(found, "toolbox", None),
        deps=dependencies() if isinstance(dependencies, type) or callable(dependencies) else dependencies,
        allow=[name.strip() for name in allow.split(",") if name.strip()] if allow is not None else None,
        store=_store(store), allow_unproven=allow_unproven,
    )  # fmt: skip
    values = parse_json(text, source="--input")
    if not isinstance(values, dict):
        raise UserError("--input must be a JSON object", value=type(values).__name__, remedy='For example {"question": "..."}.')
    prediction = program(**values)
    out.print_json(data={"outputs": prediction.outputs, "receipt": prediction.receipt} if receipt else prediction.outputs)


@app.command("stubs")
def stubs_command(task: Annotated[str, typer.Argument(help="MODULE:TASK or MODULE:SIGNATURE")]) -> None:
    """Print the typed stubs that the type checker and the model see."""
    from dse.contracts.stubs import stubs_for

    found = load_object(task)
    spec = found.spec() if callable(getattr(found, "spec", None)) else found.spec
    text = stubs_for([tool.contract for tool in spec.tools], outputs=spec.output_schema)
    from dse.portal import run_sync
    from dse.runtime import services

    run_sync(services.checker().validate_stubs, text)
    print(text, end="")


@app.command("explain")
def explain_command(ref: Annotated[str, typer.Argument(help="Artifact reference.")]) -> None:
    """Say in words why this mode, these prompts and this allow-list."""
    from dse.analysis.report import explain
    from dse.artifacts.registry import Registry

    out.print(explain(Registry.resolve(ref)))


# --- artifacts


@artifacts_app.command("list")
def artifacts_list(registry: RegistryOption = "artifacts", signature: str | None = None) -> None:
    """All artifacts with their aliases."""
    from dse.artifacts.registry import Registry

    found = Registry(registry)
    table = Table("signature", "artifact", "mode", "model", "verdict", "aliases")
    for artifact in found.list(signature):
        name = artifact.program.signature["name"]
        aliases = [alias for alias, ident in found.aliases(name).items() if ident == artifact.artifact_id]
        table.add_row(name, artifact.artifact_id[7:19], artifact.program.plan.mode, artifact.program.model.name,
                      str(artifact.evidence.gate.get("verdict")), ", ".join(sorted(aliases)))  # fmt: skip
    out.print(table)


@artifacts_app.command("show")
def artifacts_show(ref: str) -> None:
    """Summary of one artifact."""
    from dse.artifacts.registry import Registry

    out.print(Registry.resolve(ref).summary(), markup=False)


@artifacts_app.command("diff")
def artifacts_diff(ref: str, other: str) -> None:
    """What differs between two artifacts."""
    from dse.artifacts.registry import Registry

    for change in Registry.resolve(ref).diff(Registry.resolve(other)):
        out.print(str(change), markup=False)


@artifacts_app.command("verify")
def artifacts_verify(ref: str) -> None:
    """Recompute ids, interval and verdict from the evidence; offline."""
    from dse.artifacts.registry import Registry
    from dse.compiler.gate import recompute

    report = Registry.resolve(ref).verify(recompute=recompute)
    out.print(str(report), markup=False)
    if not report.ok:
        raise typer.Exit(CHECK_FAILED)


@artifacts_app.command("promote")
def artifacts_promote(
    ref: str,
    reason: Annotated[str, typer.Option(help="Why; recorded. Needed where the verdict is not PROMOTE.")] = "",
    by: Annotated[str, typer.Option(help="Who decides; recorded.")] = "",
    registry: RegistryOption = "artifacts",
) -> None:
    """Make an artifact the champion."""
    from dse.artifacts.registry import Registry

    Registry(registry).promote(ref, reason=reason, by=by or os.environ.get("USER", "unknown"))
    out.print(f"{ref} is champion now", markup=False)


@artifacts_app.command("rollback")
def artifacts_rollback(
    signature: str, reason: Annotated[str, typer.Option(help="Why; recorded.")], by: str = "", registry: RegistryOption = "artifacts"
) -> None:
    """Make the previous champion the champion again."""
    from dse.artifacts.registry import Registry

    Registry(registry).rollback(signature, reason=reason, by=by or os.environ.get("USER", "unknown"))
    out.print(f"{signature} rolled back", markup=False)


# --- runs and datasets


def _store(url: str | None) -> Any:
    from dse.store.journal import Store

    return Store(url) if url else None


@runs_app.command("list")
def runs_list(store: str = "dse.db", limit: int = 20) -> None:
    """The newest runs."""
    table = Table("run", "signature", "mode", "outcome", "created")
    for run in _store(store).runs(limit):
        table.add_row(run["run_id"], run["signature"], run["mode"], run["outcome"], run["created"][:19])
    out.print(table)


@runs_app.command("show")
def runs_show(run_id: str, store: str = "dse.db", journal: bool = False) -> None:
    """Receipt of a run, and its journal."""
    receipt, entries = _store(store).run(run_id)
    out.print_json(data={"receipt": receipt, "journal": entries} if journal else receipt)


@dataset_app.command("check")
def dataset_check(path: str, task: Annotated[str | None, typer.Option(help="Also check rows against this task.")] = None) -> None:
    """Load a dataset with all checks and say what is in it."""
    from dse.evaluation.dataset import Dataset

    data = Dataset.load(path)
    if task:
        data.check(load_object(task).signature)
    out.print_json(data=data.describe())


@dataset_app.command("seal")
def dataset_seal(path: str) -> None:
    """Write revision and split assignment; existing assignments never change."""
    from dse.evaluation.dataset import Dataset, seal

    seal(path)
    out.print_json(data=Dataset.load(path).describe())


def main() -> None:
    """Entry point: coded errors become one line and an exit code."""
    try:
        app(standalone_mode=True)
    except BudgetExhausted as exc:
        err.print(str(exc), markup=False)
        sys.exit(BUDGET)
    except InfrastructureError as exc:
        err.print(str(exc), markup=False)
        sys.exit(INFRASTRUCTURE)
    except DseError as exc:
        err.print(str(exc), markup=False)
        sys.exit(USER)


if __name__ == "__main__":
    main()

