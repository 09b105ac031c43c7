"""``dse runs``: kept runs are listed, shown, decided about, resumed, replayed, explored, judged and forgotten."""

from __future__ import annotations

import datetime as dt
import os
import re
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dse.errors import DecisionRefused, MalformedJSON, ReplayDiverged, RunFailed, UserError
from dse.shell import CHECK_FAILED, dependencies, err, load_spec, names, open_store, out, say, user

__all__ = ["runs_app"]

runs_app = typer.Typer(no_args_is_help=True, help="Runs kept in a store.")

OUTCOMES = ("ok", "failed", "suspended", "infrastructure", "refused", "cancelled", "crashed", "forked", "running", "lost")
_LEAST_DIGITS = 12  # of a hash that somebody types

StoreOption = Annotated[str, typer.Option(help="Database of runs.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the beginning of it.")]
CallArgument = Annotated[str, typer.Argument(metavar="CALL", help="Number of a call: 7, or 7.2 for the second call that 7 made.")]
HashOption = Annotated[str, typer.Option("--hash", help="Hash of the arguments that you saw; 12 digits or more.")]
ByOption = Annotated[str, typer.Option(help="Who decides; recorded. Default the user.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]
ArtifactOption = Annotated[str | None, typer.Option(help="Artifact reference: what the run was started with.")]
ModeOption = Annotated[str | None, typer.Option(help="Instead of an artifact: the seed plan of this mode.")]
TaskOption = Annotated[str, typer.Option(help="MODULE:TASK, or MODULE:SIGNATURE.")]
LmOption = Annotated[str | None, typer.Option(help="Default the proven model.")]
DepsOption = Annotated[str | None, typer.Option(help="MODULE:OBJECT (or function that makes it) handed to tools.")]
AllowOption = Annotated[str | None, typer.Option(help="Comma-separated tools: as the run was narrowed.")]
UnprovenOption = Annotated[bool, typer.Option(help="Accept another model than the proven one.")]


@runs_app.command("list")
def runs_list(
    store: StoreOption = "dse.db",
    limit: Annotated[int, typer.Option(min=1)] = 20,
    outcome: Annotated[str | None, typer.Option(help=f"Only those: {', '.join(OUTCOMES)}.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The newest runs. A run whose process is gone is lost, and can be resumed."""
    found = open_store(store, existing=True).runs(limit, outcome=None if outcome is None else _outcome(outcome))
    if as_json:
        out.print_json(data=found)
        return
    table = Table("run", "signature", "mode", "outcome", "created")
    for run in found:
        table.add_row(*(escape(cell or "") for cell in (run["run_id"], run["signature"], run["mode"], run["outcome"],
                                                        run["created"][:19])))  # fmt: skip
    out.print(table)


@runs_app.command("show")
def runs_show(
    run: RunArgument,
    store: StoreOption = "dse.db",
    journal: Annotated[bool, typer.Option(help="What happened, in order, as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """One run, without what is sensitive: inputs, outputs, errors, effects, and what it waits for."""
    from dse.analysis.timeline import print_run

    kept = open_store(store, existing=True)
    run_id = kept.find_run(run)
    receipt, entries = kept.run(run_id)
    if as_json:
        out.print_json(data={"receipt": receipt, "journal": entries} if journal else receipt)
        return
    print_run(out, next(kept.receipts(run_id=run_id)), entries, kept.pending(run_id), kept.judgements(run_id), journal=journal)


# --- decisions


@runs_app.command("pending")
def runs_pending(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Only those of this run.")] = None,
    store: StoreOption = "dse.db", as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Calls that wait for a decision, with all of their arguments (sensitive ones are redacted) and the hash of them."""
    from dse.analysis.timeline import pending_lines

    kept = open_store(store, existing=True)
    found = kept.pending(None if run is None else kept.find_run(run))
    if as_json:
        out.print_json(data=found)
        return
    for call in found:
        for line in pending_lines(call):
            out.print(line, soft_wrap=True)
    if not found:
        say("nothing waits")


@runs_app.command("approve")
def runs_approve(
    run: RunArgument, call: CallArgument, arguments_hash: HashOption, by: ByOption = "", store: StoreOption = "dse.db"
) -> None:
    """Let a call happen when its run is resumed. Decides about the arguments with that hash and no others."""
    kept = open_store(store, existing=True)
    run_id, call_id = kept.find_run(run), _call_id(call)
    kept.approve(run_id, call_id, arguments_hash=_hash(kept, run_id, call_id, arguments_hash), by=by or user())
    say(f"call {call} of run {run_id} may happen: `dse runs resume` goes on")


@runs_app.command("deny")
def runs_deny(
    run: RunArgument, call: CallArgument, arguments_hash: HashOption,
    reason: Annotated[str, typer.Option(help="Why; the program is told.")],
    by: ByOption = "", store: StoreOption = "dse.db",
) -> None:  # fmt: skip
    """Refuse a call: its program is told, and may handle it when the run is resumed."""
    kept = open_store(store, existing=True)
    run_id, call_id = kept.find_run(run), _call_id(call)
    kept.deny(run_id, call_id, arguments_hash=_hash(kept, run_id, call_id, arguments_hash), by=by or user(), reason=reason)
    say(f"call {call} of run {run_id} is denied: `dse runs resume` goes on")


def _hash(store: Any, run_id: str, call_id: int, given: str) -> str:
    """The whole hash of what waits, where `given` is a beginning of it; else `given`, which the store refuses."""
    digits = given.removeprefix("sha256:").lower()
    if not re.fullmatch(rf"[0-9a-f]{{{_LEAST_DIGITS},64}}", digits):
        raise DecisionRefused("A decision needs the hash of the arguments that it is about", value=given,
                              remedy=f"`dse runs pending` shows it; {_LEAST_DIGITS} of its digits or more.")  # fmt: skip
    for call in store.pending(run_id):
        if call["call_id"] == call_id and call["arguments_hash"].startswith(f"sha256:{digits}"):
            return str(call["arguments_hash"])
    return f"sha256:{digits}"


def _call_id(text: str) -> int:
    """``7`` and ``7.2`` as they are shown, and plain ids."""
    from dse.runtime.history import NESTED

    if not re.fullmatch(r"\d+(\.\d+)*", text):
        raise UserError("A call has a number", value=text, remedy="`dse runs show RUN --journal` shows it: 7, or 7.2.")
    first, *inner = (int(part) for part in text.split("."))
    for part in inner:
        first = first * NESTED + part
    return first


# --- going on


@runs_app.command("resume")
def runs_resume(
    run: RunArgument, task: TaskOption, artifact: ArtifactOption = None, mode: ModeOption = None, lm: LmOption = None,
    deps: DepsOption = None, allow: AllowOption = None, store: StoreOption = "dse.db",
    decide: Annotated[list[str] | None, typer.Option(help="CALL=retry, CALL=done:JSON or CALL=fail:REASON: about a write of "
                                                          "which nobody knows whether it happened.")] = None,
    by: ByOption = "",
    snapshots: Annotated[bool, typer.Option(help="Without them scripts are executed again, along the journal.")] = True,
    take_over: Annotated[bool, typer.Option(help="Also when another machine had it, and is known to be gone.")] = False,
    allow_unproven: UnprovenOption = False,
    receipt: Annotated[bool, typer.Option(help="Print the receipt as well.")] = False,
) -> None:  # fmt: skip
    """Go on with a run that was suspended, was stopped from outside, or whose process is gone.

    Exit code 5: it waits for a decision again.
    """
    decisions = dict(_decision(one, by or user()) for one in decide or [])
    program, run_id = _program(run, artifact, mode, task, lm, deps, allow, store, allow_unproven)
    prediction = program.resume(run_id, decisions=decisions, snapshots=snapshots, take_over=take_over)
    out.print_json(data={"outputs": prediction.outputs, "receipt": prediction.receipt} if receipt else prediction.outputs)


@runs_app.command("replay")
def runs_replay(
    run: RunArgument, task: TaskOption, artifact: ArtifactOption = None, mode: ModeOption = None, lm: LmOption = None,
    allow: AllowOption = None, store: StoreOption = "dse.db", allow_unproven: UnprovenOption = False,
) -> None:  # fmt: skip
    """Execute a finished run again from its journal alone; exit code 1 if it takes another path."""
    program, run_id = _program(run, artifact, mode, task, lm, None, allow, store, allow_unproven)
    try:
        ended = program.replay(run_id).receipt
    except RunFailed as exc:  # as it did
        ended = exc.details["receipt"]
    except ReplayDiverged as exc:
        _differs(exc)
    recorded = next(program.store.receipts(run_id=run_id))["receipt"]
    if recorded["transcript_hash"] != ended["transcript_hash"]:
        _differs(ReplayDiverged("The receipt was not written about this journal", value=recorded["transcript_hash"]))
    say(f"the same path: run {run_id}, {ended['outcome']}, {ended['transcript_hash']}")


def _differs(exc: ReplayDiverged) -> Any:
    err.print(str(exc), markup=False, soft_wrap=True)
    raise typer.Exit(CHECK_FAILED)


@runs_app.command("fork")
def runs_fork(
    run: RunArgument, call: CallArgument, task: TaskOption,
    value: Annotated[str | None, typer.Option(help="What the call gives instead, as JSON.")] = None,
    error: Annotated[str | None, typer.Option(help="The message with which it fails instead.")] = None,
    artifact: ArtifactOption = None, mode: ModeOption = None, lm: LmOption = None, allow: AllowOption = None,
    store: StoreOption = "dse.db", allow_unproven: UnprovenOption = False,
) -> None:  # fmt: skip
    """A new run that is the old one up to a call, which gives something else. Prints its id; resume it to see the rest."""
    if (value is None) == (error is None):
        raise UserError("A fork needs what the call gives instead", remedy="Give either --value JSON or --error TEXT.")
    program, run_id = _program(run, artifact, mode, task, lm, None, allow, store, allow_unproven)
    given = _json(value, "--value") if value is not None else None
    say(program.fork(run_id, _call_id(call), value=given, error=error))


def _program(
    run: str, artifact: str | None, mode: str | None, task: str, lm: str | None, deps: str | None, allow: str | None, store: str,
    allow_unproven: bool,
) -> tuple[Any, str]:  # fmt: skip
    """The program that a run belongs to, with its store, and the run's id."""
    from dse.loading import load
    from dse.program import Program

    if (artifact is None) == (mode is None):
        raise UserError("Say what the run was started with", remedy="Give either --artifact REF or --mode MODE.")
    kept = open_store(store, existing=True)
    run_id = kept.find_run(run)
    found, signature = load_spec(task)
    options = {"lm": lm, "toolbox": getattr(found, "toolbox", None), "deps": dependencies(found, deps), "store": kept,
               "checks": getattr(found, "checks", ())}  # fmt: skip
    if artifact is not None:
        return load(artifact, signature=signature, allow=names(allow), allow_unproven=allow_unproven, **options), run_id
    program = Program(signature, str(mode), **options)
    return program if allow is None else program.narrowed(names(allow)), run_id


def _decision(text: str, by: str) -> tuple[int, Any]:
    from dse.durable import Decision

    call, _, rest = text.partition("=")
    action, _, more = rest.partition(":")
    if not call or action not in ("retry", "done", "fail") or (action == "retry") == bool(more):
        raise DecisionRefused("--decide takes CALL=retry, CALL=done:JSON or CALL=fail:REASON", value=text,
                              remedy='For example 3=done:{"id": 7}.')  # fmt: skip
    if action == "done":
        return _call_id(call), Decision("done", _json(more, "--decide"), by=by)
    return _call_id(call), Decision("fail" if action == "fail" else "retry", reason=more, by=by)


def _json(text: str, source: str) -> Any:
    from dse.canonical import parse_json

    try:
        return parse_json(text, source=source)
    except MalformedJSON as exc:
        raise type(exc)(exc.what, value=text, remedy='Write JSON; text in quotes: \'"text"\'.') from None


# --- afterwards


@runs_app.command("score")
def runs_score(
    run: RunArgument,
    name: Annotated[str, typer.Option(help="Of what is judged, for example helpful.")],
    value: Annotated[float, typer.Option(help="From 0 to 1, 1 for right.")],
    feedback: Annotated[str, typer.Option(help="In words; kept as it is.")] = "",
    judge: Annotated[str, typer.Option(help="Who says so. Default the user.")] = "",
    store: StoreOption = "dse.db",
) -> None:
    """Note how good a run turned out to be. A later value of the same name replaces the earlier one."""
    kept = open_store(store, existing=True)
    run_id = kept.find_run(run)
    kept.judge(run_id, name, value, feedback=feedback, judge=judge or user())
    say(f"run {run_id}: {name} {value:g}")


@runs_app.command("prune")
def runs_prune(
    older_than: Annotated[str, typer.Option(help="Time since they stopped: 30d, 12h, 90m.")],
    outcome: Annotated[list[str] | None, typer.Option(help="Only those; default ok and failed, which are over.")] = None,
    store: StoreOption = "dse.db",
) -> None:
    """Forget runs with their journals, decisions and judgements, for good."""
    before = dt.datetime.now(dt.UTC) - _duration(older_than)
    outcomes = [_outcome(one) for one in outcome or ["ok", "failed"]]
    say(f"{open_store(store, existing=True).prune(before=before, outcomes=outcomes)} runs forgotten")


@runs_app.command("rotate-key")
def runs_rotate_key(store: StoreOption = "dse.db") -> None:
    """Sign with a new key from now on; what older keys signed stays valid. Start processes that have the store open again."""
    say(f"the store signs with key {open_store(store, existing=True).rotate_key(os.environ)} now")


def _outcome(name: str) -> str:
    if name not in OUTCOMES:
        raise UserError("There is no such outcome", value=name, remedy=f"The outcomes are {', '.join(OUTCOMES)}.")
    return name


def _duration(text: str) -> dt.timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if found is None:
        raise UserError("This is no length of time", value=text, remedy="For example 30d, 12h, 90m or 45s.")
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
    try:
        return dt.timedelta(**{units[found[2]]: int(found[1])})
    except OverflowError:
        raise UserError("This is too long a time", value=text, remedy="For example 30d.") from None
