"""The shell face: ``dse compile | eval | run | run-script | artifacts | runs | stubs | dataset | explain | monitor | doctor``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from dse import __version__
from dse.cli_evidence import add_to
from dse.cli_runs import runs_app
from dse.errors import (
    ArtifactNotFound,
    ArtifactTampered,
    BudgetExhausted,
    DseError,
    InfrastructureError,
    MalformedJSON,
    RunSuspended,
    UserError,
)
from dse.shell import (
    BUDGET,
    CHECK_FAILED,
    INFRASTRUCTURE,
    SUSPENDED,
    USER,
    dependencies,
    err,
    load_spec,
    load_task,
    names,
    open_store,
    out,
    say,
)

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Compile declared tasks into measured programs.")  # fmt: skip
artifacts_app = typer.Typer(no_args_is_help=True, help="List, show, compare, verify and promote artifacts.")
dataset_app = typer.Typer(no_args_is_help=True, help="Check and seal datasets.")
app.add_typer(artifacts_app, name="artifacts")
app.add_typer(runs_app, name="runs")
app.add_typer(dataset_app, name="dataset")
add_to(app)


RegistryOption = Annotated[str, typer.Option("--registry", help="Folder of artifacts and aliases.")]
# Where the reference may name it as well:
WhereOption = Annotated[str | None, typer.Option(
    "--registry", help="Folder of artifacts and aliases; default the reference's (FOLDER/Name...), else artifacts.")]


def _registry(ref: str, root: str | None) -> Any:
    """The registry that an option or the reference itself names."""
    from dse.artifacts.registry import Registry

    if root is None:
        path = Path(ref)
        if ref.endswith(".json"):  # <root>/<Signature>/<id>.json
            root = str(path.resolve().parent.parent)
        elif "/" in ref:
            root = str(path.parent)
    return Registry(root or "artifacts")


def _signature_of(ref: str) -> str:
    """``Name`` of ``Name``, ``folder/Name`` and either with an alias or id after an ``@``."""
    return ref.rpartition("/")[2].partition("@")[0]


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
    lm: Annotated[list[str], typer.Option(help="A dspy model string, or replay:FILE; given several times, the best is chosen.")],
    registry: RegistryOption = "artifacts",
    store: Annotated[str | None, typer.Option(help="Database of rollouts; default REGISTRY/dse.db.")] = None,
    record: Annotated[list[str] | None, typer.Option(help="Record completions to this cassette (one per model); hits are "
                                                          "replayed.")] = None,
    prices: Annotated[str | None, typer.Option(help="A price table (JSON); needed where the objective prices cost and the "
                                                    "provider reports none.")] = None,
    max_model_calls: Annotated[int | None, typer.Option(help="Requests to the models at most.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens at most, in and out.")] = None,
    budget_usd: Annotated[float | None, typer.Option(help="Money at most; needs prices.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Wall time at most.")] = None,
    search_rows: Annotated[int, typer.Option(help="Search rows to use.")] = 10,
    select_rows: Annotated[int | None, typer.Option(help="Select rows to use; default all.")] = None,
    holdout_rows: Annotated[int | None, typer.Option(help="Holdout rows to use; default all.")] = None,
    search: Annotated[list[str] | None, typer.Option(help="What proposes candidates: evolve (prompts), distill (scripts), "
                                                          "cascades, demonstrations, or all.")] = None,
    reflection_lm: Annotated[str | None, typer.Option(help="The model that proposals are made with; default the first --lm.")] = None,
    allocation: Annotated[str, typer.Option(help="How the select rows are spent: race, grid, uniform or sign_test.")] = "race",
    replicates: Annotated[int, typer.Option(help="Runs of every select and holdout row.")] = 1,
    executor: Annotated[str, typer.Option(help="Where rollouts run: local, or ray (a Ray cluster; needs the extra dse[ray]).")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will take, and spend nothing.")] = False,
    take_over: Annotated[bool, typer.Option("--take-over", help="Also if a process on another machine, which is gone, had it.")] = False,
    concurrency: Annotated[int, typer.Option(help="Rollouts at a time.")] = 8,
    seed: int = 0,
) -> None:
    """Find and measure candidates on the data, gate the winner, emit an artifact.

    Before anything is spent it says how many rollouts it takes at most, and after the search how many model calls are
    expected. KEEP and INSUFFICIENT are results: the exit code is 0. After PROMOTE the artifact is @champion and the
    old one @previous; otherwise it is @candidate. Killed, the same command goes on where it stopped;
    while one is at it, a second one is refused.
    """
    from dse.analysis.report import print_compile
    from dse.compiler.budget import Budget
    from dse.compiler.compile import Rows, forecast
    from dse.compiler.compile import compile as compile_task
    from dse.compiler.named import proposers

    options: dict[str, Any] = dict(
        lm=lm if len(lm) > 1 else lm[0], registry=registry, store=store,
        record=None if not record else record if len(record) > 1 else record[0], prices=_prices(prices),
        budget=Budget(usd=budget_usd, model_calls=max_model_calls, minutes=max_minutes, tokens=max_tokens),
        rows=Rows(search_rows, select_rows, holdout_rows), search=proposers(search or ()), reflection_lm=reflection_lm,
        allocation=allocation, replicates=replicates, executor=executor, concurrency=concurrency, seed=seed,
        take_over=take_over,
    )  # fmt: skip
    if dry_run:
        out.print(str(forecast(load_task(task), **options)), markup=False)
        return
    bars = _Bars()
    with bars.progress:
        result = compile_task(load_task(task), progress=bars, say=err.print, **options)
    print_compile(out, result)


@app.command("eval")
def eval_command(
    ref: Annotated[str, typer.Argument(help="Artifact reference, e.g. artifacts/Name@champion.")],
    task: Annotated[str, typer.Option(help="MODULE:TASK with signature, metric and environment.")],
    data: Annotated[str | None, typer.Option(help="Dataset folder; default the task's.")] = None,
    split: Annotated[str, typer.Option(help="search or select; the holdout stays sealed.")] = "select",
    lm: Annotated[str | None, typer.Option(help="Default the proven model.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Fail below this mean score.")] = None,
    against: Annotated[str | None, typer.Option(help="Another artifact or alias; fail if significantly worse.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Rows to use; default all.")] = None,
    allow_unproven: Annotated[bool, typer.Option(help="Accept another model than the proven one.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Rollouts at a time.")] = 8,
    store: Annotated[str | None, typer.Option(help="Database of rollouts; default in memory.")] = None,
    prices: Annotated[str | None, typer.Option(help="A price table (JSON), for costs.")] = None,
) -> None:
    """Score an artifact on open rows; the exit code says whether it passed."""
    from dse.analysis.report import print_eval
    from dse.evaluation.report import evaluate_artifact

    bars = _Bars()
    with bars.progress:
        report = evaluate_artifact(
            ref, load_task(task), data=data, split=split, lm=lm, against=against, max_rows=max_rows, min_score=min_score,
            allow_unproven=allow_unproven, concurrency=concurrency, store=store, progress=bars,
            prices=_prices(prices),
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
    deps: Annotated[str | None, typer.Option(help="MODULE:OBJECT (or function that makes it) handed to tools.")] = None,
    allow: Annotated[str | None, typer.Option(help="Comma-separated tools: narrows the allow-list.")] = None,
    store: Annotated[str | None, typer.Option(help="Database to keep the run in.")] = None,
    allow_unproven: Annotated[bool, typer.Option(help="Accept another model than the proven one.")] = False,
    receipt: Annotated[bool, typer.Option(help="Print the receipt as well.")] = False,
) -> None:
    """Load an artifact and run it on one input."""
    from dse.loading import load

    values = _inputs(input)
    found, signature = load_spec(task)
    program = load(
        ref, signature=signature, lm=lm, toolbox=getattr(found, "toolbox", None), deps=dependencies(found, deps),
        allow=names(allow), store=open_store(store) if store else None, allow_unproven=allow_unproven,
        checks=getattr(found, "checks", ()),
    )  # fmt: skip
    prediction = program(values)
    out.print_json(data={"outputs": prediction.outputs, "receipt": prediction.receipt} if receipt else prediction.outputs)


@app.command("run-script")
def run_script_command(
    file: Annotated[str, typer.Argument(help="FILE.json with source and externals, or FILE.py.")],
    signature: Annotated[str, typer.Option(help="MODULE:SIGNATURE, or MODULE:TASK: whose tools there are.")],
    input: Annotated[list[str] | None, typer.Option("--input", help="NAME=VALUE for the dict `inputs`; JSON, else text.")] = None,
    deps: Annotated[str | None, typer.Option(help="MODULE:OBJECT (or function that makes it) handed to tools.")] = None,
    allow: Annotated[str | None, typer.Option(help="Comma-separated tools: narrows the allow-list.")] = None,
    store: Annotated[str | None, typer.Option(help="Database to keep the run in.")] = None,
    receipt: Annotated[bool, typer.Option(help="Print the receipt as well.")] = False,
) -> None:
    """Check a script and run it, without any model."""
    from dse.scripts import run_script

    found, declared = load_spec(signature)
    prediction = run_script(
        _script(file, declared), signature=declared, toolbox=getattr(found, "toolbox", None), deps=dependencies(found, deps),
        allow=names(allow), inputs=_named_inputs(input or []), store=open_store(store) if store else None,
    )  # fmt: skip
    out.print_json(data={"outputs": prediction.outputs, "receipt": prediction.receipt} if receipt else prediction.outputs)


def _script(file: str, signature: Any) -> Any:
    from dse.canonical import parse_json
    from dse.scripts import script_of

    if not file.endswith((".json", ".py")):
        raise UserError("A script is a .json or a .py file", value=file, remedy="Rename it.")
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError("The script cannot be read", value=file, remedy=str(exc)) from exc
    if file.endswith(".py"):
        return script_of(text, signature)
    data = parse_json(text, source=file)
    if not isinstance(data, dict):
        raise UserError("A script in JSON is an object", value=type(data).__name__, remedy="It has source and externals.")
    return data


def _named_inputs(given: list[str]) -> dict[str, Any]:
    from dse.canonical import parse_json

    values: dict[str, Any] = {}
    for one in given:
        name, found, text = one.partition("=")
        if not found or not name:
            raise UserError("--input takes NAME=VALUE", value=one, remedy="For example --input customer=7.")
        if name in values:
            raise UserError("--input names a value twice", value=name, remedy="Give it once.")
        try:
            values[name] = parse_json(text, source="--input")
        except MalformedJSON:
            values[name] = text
    return values


def _inputs(source: str) -> dict[str, Any]:
    from dse.canonical import parse_json

    try:
        text = sys.stdin.read() if source == "-" else Path(source[1:]).read_text(encoding="utf-8") if source.startswith("@") else source
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError("The input file cannot be read", value=source, remedy=str(exc)) from exc
    values = parse_json(text, source="--input")
    if not isinstance(values, dict):
        raise UserError("--input must be a JSON object", value=type(values).__name__,
                        remedy='For example {"question": "..."}.')  # fmt: skip
    return values


@app.command("stubs")
def stubs_command(task: Annotated[str, typer.Argument(help="MODULE:TASK or MODULE:SIGNATURE")]) -> None:
    """Print the typed stubs that the type checker and the model see."""
    from dse.contracts.stubs import stubs_for
    from dse.portal import run_sync
    from dse.runtime import sandbox

    spec = load_spec(task)[1].spec()
    text = stubs_for([tool.contract for tool in spec.tools], outputs=spec.output_schema)
    run_sync(sandbox.checker().validate_stubs, text)
    print(text, end="")


@app.command("doctor")
def doctor_command(
    registry: RegistryOption = "artifacts",
    store: Annotated[str | None, typer.Option(help="A store to look at; default dse.db and REGISTRY/dse.db.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at this installation and its files; exit code 1 if something is wrong."""
    from dse.doctor import examine

    found = examine(registry=registry, store=store)
    wrong = [finding for finding in found if finding.state == "wrong"]
    if as_json:
        out.print_json(data={"ok": not wrong, "findings": [finding.to_dict() for finding in found]})
    else:
        for finding in found:
            say(str(finding))
        say(f"{len(wrong)} wrong, {sum(finding.state == 'ok' for finding in found)} ok")
    if wrong:
        raise typer.Exit(CHECK_FAILED)


# --- artifacts


@artifacts_app.command("list")
def artifacts_list(
    signature: Annotated[str | None, typer.Argument(help="Only those of this signature: Name, or FOLDER/Name.")] = None,
    registry: WhereOption = None,
) -> None:
    """All artifacts with their aliases."""
    where = _registry(signature or "", registry)
    if not where.root.is_dir():
        raise ArtifactNotFound("There is no registry here", value=str(where.root), remedy="Name its folder with --registry.")
    table = Table("signature", "artifact", "mode", "model", "verdict", "aliases", "made")
    broken = []
    for row in where.list(_signature_of(signature) if signature else None):
        if row.error:
            broken.append(f"{row.path}: {row.error}")
        if row.artifact_id:
            aliases = ", ".join(row.aliases)
            against = "baseline" if row.baseline else "champion" if row.champion else ""  # it is what it was measured against
            verdict = f"{row.verdict} ({against})" if against else row.verdict
            cells = (row.signature, row.artifact_id[7:19], row.mode, row.model, verdict, aliases, row.created)
            table.add_row(*(escape(cell or "") for cell in cells))
    out.print(table if table.row_count else f"no artifacts of {signature or 'any signature'} in {where.root}", soft_wrap=True)
    for line in broken:
        err.print(line, markup=False, soft_wrap=True)
    if broken:
        raise typer.Exit(CHECK_FAILED)


@artifacts_app.command("show")
def artifacts_show(ref: str) -> None:
    """Summary of one artifact."""
    from dse.artifacts.registry import Registry

    say(Registry.resolve(ref).summary())


@artifacts_app.command("diff")
def artifacts_diff(ref: str, other: str) -> None:
    """What differs between two artifacts."""
    from dse.artifacts.registry import Registry

    for change in Registry.resolve(ref).diff(Registry.resolve(other)):
        say(str(change))


@artifacts_app.command("verify")
def artifacts_verify(ref: str) -> None:
    """Recompute ids, interval and verdict from the evidence; offline."""
    from dse.artifacts.registry import Registry
    from dse.compiler.gate import recompute

    try:
        report = Registry.resolve(ref).verify(recompute=recompute)
    except ArtifactTampered as exc:
        say(str(exc))
        raise typer.Exit(CHECK_FAILED) from None
    say(str(report))
    if not report.ok:
        raise typer.Exit(CHECK_FAILED)


@artifacts_app.command("promote")
def artifacts_promote(
    ref: str,
    reason: Annotated[str, typer.Option(help="Why; recorded. Needed where the verdict is not PROMOTE.")] = "",
    by: Annotated[str, typer.Option(help="Who decides; recorded.")] = "",
    registry: WhereOption = None,
) -> None:
    """Make an artifact the champion."""
    _registry(ref, registry).promote(ref, reason=reason, by=by or os.environ.get("USER", "unknown"))
    say(f"{ref} is champion now")


@artifacts_app.command("rollback")
def artifacts_rollback(
    signature: Annotated[str, typer.Argument(help="Name, or FOLDER/Name.")],
    reason: Annotated[str, typer.Option(help="Why; recorded.")],
    by: Annotated[str, typer.Option(help="Who decides; recorded.")] = "",
    registry: WhereOption = None,
) -> None:
    """Make the previous champion the champion again."""
    back = _registry(signature, registry).rollback(_signature_of(signature), reason=reason, by=by or os.environ.get("USER", "unknown"))
    say(f"{signature}: {back.artifact_id[7:19]} is champion again")


# --- datasets


@dataset_app.command("check")
def dataset_check(
    path: str,
    task: Annotated[str | None, typer.Option(help="MODULE:TASK or MODULE:SIGNATURE: also check rows against it.")] = None,
) -> None:
    """Load a dataset with all checks and say what is in it."""
    from dse.evaluation.dataset import Dataset

    data = Dataset.load(path)
    if task:
        data.check(load_spec(task)[1])
    out.print_json(data=data.describe())


@dataset_app.command("from-runs")
def dataset_from_runs(
    path: Annotated[str, typer.Argument(help="The new dataset's folder.")],
    task: Annotated[str, typer.Option(help="MODULE:TASK or MODULE:SIGNATURE whose runs become rows.")],
    store: Annotated[str, typer.Option(help="Database of runs.")] = "dse.db",
    name: Annotated[str | None, typer.Option(help="Of the dataset; default that of the folder.")] = None,
    labels: Annotated[str | None, typer.Option(help="JSON Lines with run_id and corrected outputs: only those runs.")] = None,
    judged: Annotated[str | None, typer.Option(help="NAME:LEAST, for example helpful:0.8: only runs judged that well.")] = None,
    cluster_key: Annotated[str | None, typer.Option(help="Input (or field of the labels) whose rows stay together.")] = None,
    beside: Annotated[list[str] | None, typer.Option(help="Another dataset's folder: what it has is not judged on again.")] = None,
    used: Annotated[list[str] | None, typer.Option(help="Another store with rollouts: rows tried there go into search.")] = None,
    drop_sensitive: Annotated[bool, typer.Option(help="Make rows without the sensitive fields.")] = False,
) -> None:
    """Make a sealed dataset of kept runs; what was left out, and why, is said on standard error."""
    from dse.evaluation.dataset import Dataset

    if Path(path, "dataset.json").exists():
        raise UserError("There is a dataset here already", value=path, remedy=f"Name a new folder, and --beside {path}.")
    least = None if judged is None else _least(judged)
    made = Dataset.from_runs(
        open_store(store, existing=True), load_spec(task)[1], name=name or Path(path).resolve().name, labels=labels, judged=least,
        cluster_key=cluster_key, beside=[Dataset.load(other) for other in beside or []],
        used=[open_store(other, existing=True) for other in used or []], drop_sensitive=drop_sensitive,
        say=lambda text: err.print(text, markup=False, soft_wrap=True),
    )  # fmt: skip
    made.save(path)
    out.print_json(data=made.describe())


def _least(judged: str) -> tuple[str, float]:
    name, _, least = judged.rpartition(":")
    try:
        value = float(least)
    except ValueError:
        value = -1.0
    if not name or not 0 <= value <= 1:
        raise UserError("--judged takes NAME:LEAST", value=judged, remedy="For example helpful:0.8.")
    return name, value


@dataset_app.command("seal")
def dataset_seal(path: str) -> None:
    """Write revision and split assignment; existing assignments never change."""
    from dse.evaluation.dataset import seal

    out.print_json(data=seal(path).describe())


def main() -> None:
    """Entry point: coded errors become one line and an exit code."""
    try:
        app(standalone_mode=True)
    except DseError as exc:
        err.print(str(exc), markup=False, soft_wrap=True)
        codes = ((BudgetExhausted, BUDGET), (InfrastructureError, INFRASTRUCTURE), (UserError, USER), (RunSuspended, SUSPENDED))
        sys.exit(next((code for kind, code in codes if isinstance(exc, kind)), CHECK_FAILED))


if __name__ == "__main__":
    main()

