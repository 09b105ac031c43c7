"""Watching an artifact after its promotion: does it do in production what it did in its evidence?

The scores of its runs come late, some never, in any order (`Store.judge`, `dse runs score`). An e-process takes them in
the order of judgement and may be looked at any time: the chance that it ever asks for a rollback of an artifact that is as
good as promised is at most alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from dse.canonical import canonical_json, digest
from dse.errors import DatasetError, UserError
from dse.redaction import REDACTED
from dse.statistics import EProcess, Interval, confidence_sequence, e_process, score_interval
from dse.statistics.values import open_share

if TYPE_CHECKING:
    from dse.artifacts.artifact import Artifact
    from dse.store.journal import Store

__all__ = ["MonitorReport", "monitor", "reference_of"]

_LEAST_ROOM = 1e-6


@dataclass(frozen=True)
class MonitorReport:
    """What the judged runs of an artifact say.

    Attributes:
        advice: ``rollback`` once the evidence against the null has ever reached ``1 / alpha``; ``keep`` before that;
            ``nothing judged`` where there is nothing to look at.
        null: what is held to be true until then, in words.
        e: the e-process, None where nothing is judged. Its differences are "how much worse than promised".
        mean: of the scores that counted, with a confidence sequence (None where nothing is judged).
        crossed_at: when the judgement was made that first brought the evidence to ``1 / alpha``.
        judged, unjudged, failed: runs of the artifact with a judgement, without one, and of these that failed.
        notes: what to read the figures with.
    """

    artifact_id: str
    name: str | None
    advice: Literal["rollback", "keep", "nothing judged"]
    null: str
    reference: float | None
    e: EProcess | None
    mean: Interval | None
    other_mean: Interval | None
    crossed_at: str | None
    first_at: str | None
    last_at: str | None
    judged: int
    unjudged: int
    failed: int
    alpha: float
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        judged = "nothing is judged" if self.name is None else f"judged {self.name!r}"
        lines = [f"{self.artifact_id[7:19]}: {self.judged} run{'' if self.judged == 1 else 's'} judged, {self.unjudged} not ({self.failed} of them failed); {judged}",
                 f"  held to be true: {self.null}"]  # fmt: skip
        if self.e is not None and self.mean is not None:
            lines.append(f"  mean score {_span(self.mean)} ({self.mean.level:.0%}, at all times at once), n = {self.e.n}"
                         + (f"; the other's {_span(self.other_mean)}" if self.other_mean else ""))  # fmt: skip
            lines.append(f"  evidence against it: E = {self.e.e_value:.3g} now, {self.e.peak:.3g} at most; "
                         f"{1 / self.alpha:.3g} is enough (alpha = {self.alpha:g})")  # fmt: skip
        if self.crossed_at is not None and self.e is not None:
            lines.append(f"  reached after {self.e.crossed} of them, at {self.crossed_at}")
        advice = {"rollback": "Roll it back: it does worse than it was promoted for.", "keep": "Nothing speaks for a rollback so far.",
                  "nothing judged": "There is nothing to look at: judge runs with `dse runs score`."}  # fmt: skip
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes), advice[self.advice]])


def _span(interval: Interval) -> str:
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


@dataclass(frozen=True)
class _Judged:
    """One judged run."""

    run_id: str
    at: str
    value: float
    inputs: str
    group: str


def reference_of(artifact: Artifact, max_loss: float | None = None) -> float:
    """What an artifact has to keep: the lower end of its sealed mean's 95% interval, less the loss that is accepted.

    Args:
        max_loss: in score; default the objective's ``max_quality_loss``, else 0.

    Raises:
        DatasetError: too few sealed rows to say.
    """
    rows = artifact.evidence.paired.rows
    clusters = [row[1] for row in rows]
    if len(set(clusters)) < 2:
        raise DatasetError("The artifact's evidence has too few sealed rows to say what it has to keep", value=len(rows),
                           remedy="Say it with reference= (--reference).")  # fmt: skip
    loss = artifact.evidence.objective.max_quality_loss if max_loss is None else max_loss
    return max(0.0, score_interval([row[2] for row in rows], clusters).low - (loss or 0.0))


def monitor(
    artifact: Artifact, store: Store, *, name: str | None = None, reference: float | None = None, max_loss: float | None = None,
    alpha: float = 0.05, group_by: str | Callable[[Mapping[str, Any]], Any] | None = None, against: Artifact | str | None = None,
    paired: bool = False, count_failures: bool = False,
) -> MonitorReport:  # fmt: skip
    """Test the judged production runs of an artifact, in the order of their first judgements.

    Args:
        name: of the judgements that count; default the only one that there is.
        reference: the mean score that the runs must have at least; default `reference_of` the artifact.
        max_loss: the loss in mean score that is accepted; default the objective's ``max_quality_loss``, else 0.
        alpha: the chance of ever asking for the rollback of an artifact that is as good as it must be.
        group_by: an input field, or a function of a receipt: runs of equal value (of one user, say) are not independent,
            and only the one judged first counts.
        against: another artifact (or its id), such as ``previous``: instead of a reference, its judged runs.
        paired: compare runs of equal inputs only; else the k-th judged of the one with the k-th of the other.
        count_failures: runs that failed and have no judgement count 0. Only right where all other runs are judged.

    Raises:
        UserError: judgements of several names, or under other names than `name` only, an unknown field, or options that do
            not go together.
        DatasetError: no `reference` follows from the evidence.
    """
    if against is not None and reference is not None:
        raise UserError("Runs are compared with a reference or with another artifact's", value=reference, remedy="Give one.")
    open_share(alpha, "alpha")
    if paired and against is None:
        raise UserError("There is nothing to pair with", remedy="Name the other artifact with against=.")
    for what, value in (("reference", reference), ("max_loss", max_loss)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"A {what} is a number from 0 to 1", value=value, remedy="Write it as a share of a right answer.")
    other_id = None if against is None else str(getattr(against, "artifact_id", against))
    if other_id == artifact.artifact_id:
        raise UserError("An artifact is not compared with itself", value=other_id[7:19], remedy="Name another one with against=.")
    runs = _runs(store, {artifact.artifact_id, *([other_id] if other_id else [])})
    mine = runs[artifact.artifact_id]
    judgements: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in store.judgements():
        judgements.setdefault(one["run_id"], {})[one["name"]] = one
    name = _name(name, judgements, [run["run_id"] for kept in runs.values() for run in kept])
    notes = [f"{n} runs with another model than the proven one were left out" for n in [_unproven(mine)] if n]
    judged = _judged(mine, judgements, name, group_by, count_failures)
    done = {one.run_id for one in judged}
    waiting = [run for run in mine if run["run_id"] not in done and run["receipt"] is not None and not run["receipt"].get("unproven")]
    counted = _first_of_each(judged)
    if len(counted) < len(judged):
        notes.append(f"{len(judged) - len(counted)} runs of groups that had one already do not count")
    if count_failures:
        notes.append("runs that failed count 0: only right if every other run is judged")
    if other_id is None:
        least = reference_of(artifact, max_loss) if reference is None else reference
        null = f"the mean score of its runs is at least {least:.3f}"
        steps = [(least - one.value, one.at) for one in counted]
        lowest, other_mean = least - 1, None
    else:
        loss = max_loss if max_loss is not None else artifact.evidence.objective.max_quality_loss or 0.0
        others = _first_of_each(_judged(runs[other_id], judgements, name, group_by, count_failures))
        pairs = _same_inputs(counted, others) if paired else list(zip(counted, others, strict=False))
        least, lowest = None, -1 - loss
        null = f"its mean score is at least that of {other_id[7:19]}" + (f" less {loss:g}" if loss else "")
        steps = sorted(((b.value - a.value - loss, max(a.at, b.at)) for a, b in pairs), key=lambda step: step[1])
        counted = [a for a, _ in pairs]
        other_mean = confidence_sequence([b.value for _, b in pairs], level=1 - alpha) if pairs else None
        notes.append(f"{len(pairs)} pairs of runs " + ("of equal inputs" if paired else "in the order of judgement; the other's runs "
                     "may be of an earlier time, with other inputs"))  # fmt: skip
    e = e_process([d for d, _ in steps], least=min(lowest, -_LEAST_ROOM), alpha=alpha) if steps else None
    crossed = None if e is None or e.crossed is None else steps[e.crossed - 1][1]
    return MonitorReport(
        artifact.artifact_id, name, "nothing judged" if e is None else "keep" if crossed is None else "rollback", null, least, e,
        confidence_sequence([one.value for one in counted], level=1 - alpha) if steps else None, other_mean, crossed,
        steps[0][1] if steps else None, steps[-1][1] if steps else None, len(judged), len(waiting),
        sum(run["outcome"] == "failed" for run in waiting), alpha, tuple(notes),
    )  # fmt: skip


def _runs(store: Store, wanted: set[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {artifact_id: [] for artifact_id in wanted}
    for run in store.receipts():
        of = (run["receipt"] or {}).get("artifact_id")
        if of in found:
            found[of].append(run)
    return found


def _unproven(runs: Iterable[Mapping[str, Any]]) -> int:
    return sum(bool(run["receipt"].get("unproven")) for run in runs)


def _name(name: str | None, judgements: Mapping[str, Mapping[str, Any]], run_ids: Iterable[str]) -> str | None:
    known = sorted({one for run_id in run_ids for one in judgements.get(run_id, ())})
    if name is not None and known and name not in known:
        raise UserError("No run has a judgement of this name", value=name, remedy=f"The names are: {', '.join(known)}.")
    if name is not None or not known:
        return name
    if len(known) > 1:
        raise UserError("The runs have judgements of several names", value=", ".join(known), remedy="Choose one with name= (--name).")
    return known[0]


def _judged(runs: Sequence[Mapping[str, Any]], judgements: Mapping[str, Mapping[str, Any]], name: str | None, group_by: Any,
            count_failures: bool) -> list[_Judged]:  # fmt: skip
    """The runs that have a score, in the order in which they first got one."""
    found = []
    for run in runs:
        receipt, judgement = run["receipt"], judgements.get(run["run_id"], {}).get(name or "")
        if receipt.get("unproven"):
            continue
        if judgement is not None:
            at, value = judgement["created"], judgement["value"]
        elif count_failures and run["outcome"] == "failed":
            at, value = run["updated"] or run["created"], 0.0
        else:
            continue
        inputs = digest(receipt["inputs"])
        group = run["run_id"] if group_by is None else canonical_json(_group(receipt, group_by)).decode()
        found.append(_Judged(run["run_id"], at, value, inputs, group))
    return sorted(found, key=lambda one: (one.at, one.run_id))


def _group(receipt: Mapping[str, Any], group_by: Any) -> Any:
    if callable(group_by):
        return group_by(receipt)
    if group_by not in receipt["inputs"]:
        raise UserError("Runs cannot be grouped by a field that is no input", value=group_by,
                        remedy=f"The inputs are: {', '.join(receipt['inputs'])}.")  # fmt: skip
    if receipt["inputs"][group_by] == REDACTED:
        raise UserError("Runs cannot be grouped by a sensitive field: it is not kept", value=group_by,
                        remedy="Group by another one.")  # fmt: skip
    return receipt["inputs"][group_by]


def _first_of_each(judged: Iterable[_Judged]) -> list[_Judged]:
    kept: dict[str, _Judged] = {}
    for one in judged:
        kept.setdefault(one.group, one)
    return list(kept.values())


def _same_inputs(mine: Iterable[_Judged], others: Iterable[_Judged]) -> list[tuple[_Judged, _Judged]]:
    """Pairs of runs on equal inputs, each run in one pair at most."""
    waiting: dict[str, list[_Judged]] = {}
    for one in others:
        waiting.setdefault(one.inputs, []).append(one)
    return [(one, waiting[one.inputs].pop(0)) for one in mine if waiting.get(one.inputs)]
