"""Watching promoted artifacts: false alarms are bounded however often one looks, and a drop is found."""

from __future__ import annotations

import datetime as dt
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dse
from dse.analysis.monitor import MonitorReport, monitor, reference_of
from dse.artifacts.artifact import Artifact
from dse.errors import DatasetError, MetricError, UserError
from dse.statistics import clopper_pearson, confidence_sequence, e_process, score_interval
from dse.testing import PlantedWorld, ScriptedModel, call

ROOT = Path(__file__).parent.parent

# --- the e-process


def test_the_formula() -> None:
    differences = [0.5, -1.0, 0.25, 1.0]
    bets = [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4]
    values = [sum(math.prod(1 + b * d for d in differences[:n]) for b in bets) / len(bets) for n in range(1, 5)]
    found = e_process(differences)
    assert found.e_value == pytest.approx(values[-1]) and found.peak == pytest.approx(max(1.0, *values))
    assert (found.n, found.mean, found.crossed) == (4, 0.1875, None)


def test_the_first_crossing_stands() -> None:
    found = e_process([1.0] * 20 + [-1.0] * 50)
    assert found.crossed is not None and found.crossed < 20 and found.e_value < 20 <= found.peak
    assert e_process([1.0] * found.crossed).crossed == found.crossed
    assert e_process([1.0] * (found.crossed - 1)).crossed is None
    assert math.isfinite(e_process([1.0] * 5_000).e_value)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_evidence_is_never_negative_and_bets_never_lose_all(differences: list[float]) -> None:
    found = e_process(differences)
    assert 0 < found.e_value <= found.peak or found.peak == 1.0


@pytest.mark.parametrize(("options", "error"), [
    ({"differences": []}, DatasetError), ({"differences": [-1.5]}, MetricError), ({"differences": [float("nan")]}, MetricError),
    ({"differences": [0.0], "alpha": 0.7}, UserError), ({"differences": [0.0], "least": 0.0}, UserError),
    ({"differences": [-0.5], "least": -0.1}, MetricError),
])  # fmt: skip
def test_what_is_no_stream(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        e_process(**options)


STREAMS, LOOKS, ALPHA = 500, 400, 0.05


def streams(rate: Any, seed: int) -> list[list[float]]:
    chance = random.Random(seed)
    return [[float(chance.random() < rate(j)) for j in range(LOOKS)] for _ in range(STREAMS)]


@pytest.mark.parametrize(("reference", "seed"), [(0.5, 1), (0.8, 2), (0.95, 3)])
def test_false_alarms_under_continuous_looking(reference: float, seed: int) -> None:
    """As good as promised, to the point, and looked at after every run: at most alpha of the streams ever raise an alarm."""
    alarms = sum(e_process([reference - x for x in xs], least=reference - 1, alpha=ALPHA).crossed is not None
                 for xs in streams(lambda j: reference, seed))  # fmt: skip
    # Not more than what a true rate of alpha gives by chance: the lower Clopper-Pearson bound is below it.
    assert clopper_pearson(alarms, STREAMS).low <= ALPHA
    assert alarms / STREAMS <= ALPHA + 0.01


def test_a_drop_is_found() -> None:
    found = [e_process([0.9 - x for x in xs], least=-0.1, alpha=ALPHA) for xs in streams(lambda j: 0.9 if j < 100 else 0.7, 4)]
    assert sum(e.crossed is not None for e in found) / STREAMS >= 0.95
    steady = [e_process([0.9 - x for x in xs], least=-0.1).crossed for xs in streams(lambda j: 0.75, 5)]
    assert sorted(c or LOOKS for c in steady)[STREAMS // 2] <= 80


@pytest.mark.parametrize(("rate", "seed"), [(0.5, 6), (0.9, 7)])
def test_the_confidence_sequence_holds_at_all_times(rate: float, seed: int) -> None:
    missed = 0
    for xs in streams(lambda j: rate, seed)[:150]:
        looks = [confidence_sequence(xs[:n]) for n in range(10, LOOKS + 1, 39)]
        missed += any(not one.low <= rate <= one.high for one in looks)
    assert clopper_pearson(missed, 150).low <= 0.05


def test_the_confidence_sequence_narrows() -> None:
    wide, narrow = confidence_sequence([1.0, 0.0] * 10), confidence_sequence([1.0, 0.0] * 500)
    assert 0 <= wide.low < narrow.low < 0.5 < narrow.high < wide.high <= 1
    once = score_interval([1.0, 0.0] * 500)
    assert narrow.high - narrow.low > once.high - once.low
    assert confidence_sequence([1.0] * 3).high == 1.0


# --- runs of a store


class Echo(dse.Signature):
    """Say it again."""

    word: str = dse.InputField()
    user: str = dse.InputField()
    said: str = dse.OutputField()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a champion that was promoted."""
    folder = tmp_path_factory.mktemp("registry")
    world = PlantedWorld({"direct": 0.95, "tool_call": 0.3}, clusters=60, writes=0.0)
    objective = dse.Objective(max_quality_loss=0.05)
    made = dse.compile(world.task(modes=["direct", "tool_call"], objective=objective), lm=world.model(), registry=folder)
    assert made.verdict == "PROMOTE"
    return folder


@pytest.fixture(scope="module")
def artifact(registry: Path) -> Artifact:
    return dse.Registry(registry).get("AskWarehouse@champion")


class Production:
    """A store with runs of artifacts; each is judged an hour after the one before."""

    def __init__(self) -> None:
        self.store = dse.Store(":memory:")
        self.now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        self.store.now = lambda: self.now  # type: ignore[method-assign]
        self.made = 0

    def run(self, artifact_id: str, *, ok: bool = True, user: str = "", word: str = "", unproven: bool = False) -> str:
        self.made += 1
        reply = call(("submit", {"said": "x"}))
        text = "[[ ## said ## ]]\nx" if ok else "nothing"
        stamp = {"artifact_id": artifact_id, "unproven": unproven}
        program = dse.Program(Echo, "direct", lm=ScriptedModel(lambda r: reply if r["tools"] else text), store=self.store, stamp=stamp)
        run = program.new_run({"word": word or str(self.made), "user": user or str(self.made)})
        try:
            program_run(program, run)
        except dse.DseError:
            assert not ok
        return str(run.run_id)

    def judge(self, run_id: str, value: float, name: str = "helpful") -> None:
        self.now += dt.timedelta(hours=1)
        self.store.judge(run_id, name, value)

    def judged(self, artifact_id: str, values: list[float], **options: Any) -> None:
        for value in values:
            self.judge(self.run(artifact_id, **options), value)


def program_run(program: dse.Program, run: Any) -> None:
    from dse.portal import run_sync

    run_sync(lambda: program.execute(run))


def test_a_good_artifact_is_kept_and_a_bad_one_is_not(artifact: Artifact) -> None:
    good, bad = Production(), Production()
    good.judged(artifact.artifact_id, [1.0] * 30)
    bad.judged(artifact.artifact_id, [1.0] * 5 + [0.0] * 25)
    kept = monitor(artifact, good.store)
    assert (kept.advice, kept.judged, kept.name) == ("keep", 30, "helpful") and kept.crossed_at is None
    back = monitor(artifact, bad.store)
    assert back.advice == "rollback" and back.e is not None and back.e.peak >= 20 and back.mean is not None
    assert back.mean.estimate == pytest.approx(5 / 30) and back.mean.high < back.reference
    crossed = back.e.crossed
    assert crossed is not None and 5 < crossed < 30
    assert back.crossed_at == (dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=crossed)).isoformat()
    assert "Roll it back" in str(back) and f"reached after {crossed}" in str(back)
    assert json.loads(json.dumps(back.to_dict()))["advice"] == "rollback"


def test_the_reference_is_what_the_evidence_promised(artifact: Artifact) -> None:
    rows = artifact.evidence.paired.rows
    low = score_interval([r[2] for r in rows], [r[1] for r in rows]).low
    assert reference_of(artifact, 0.0) == pytest.approx(low)
    assert reference_of(artifact, 0.1) == pytest.approx(low - 0.1)
    loss = artifact.evidence.objective.max_quality_loss or 0.0
    assert reference_of(artifact) == pytest.approx(low - loss)
    made = Production()
    made.judged(artifact.artifact_id, [0.5] * 3)
    assert monitor(artifact, made.store, reference=0.4).reference == 0.4


def test_nothing_judged(artifact: Artifact) -> None:
    made = Production()
    made.run(artifact.artifact_id)
    made.run(artifact.artifact_id, ok=False)
    report = monitor(artifact, made.store)
    assert (report.advice, report.judged, report.unjudged, report.failed) == ("nothing judged", 0, 2, 1)
    assert "judge runs with" in str(report) and report.e is None


def test_scores_come_late_and_in_any_order(artifact: Artifact) -> None:
    """The order of judgement counts, not the order of the runs; a run without a score waits."""
    made = Production()
    ids = [made.run(artifact.artifact_id) for _ in range(40)]
    values = {run: float(index % 3 == 0) for index, run in enumerate(ids)}
    for run in reversed(ids[5:]):
        made.judge(run, values[run])
    report = monitor(artifact, made.store, reference=0.6)
    least = 0.6
    expected = e_process([least - values[run] for run in reversed(ids[5:])], least=least - 1)
    assert report.e == expected and (report.judged, report.unjudged) == (35, 5)
    before = report.e
    for run in ids[:5]:
        made.judge(run, 1.0)
    after = monitor(artifact, made.store, reference=0.6).e
    assert after is not None and before is not None and after.n == 40 and after.peak >= before.peak  # what was seen stays


def test_a_run_counts_where_it_was_first_judged(artifact: Artifact) -> None:
    """Else whoever delivers again, or corrects, changes the order, and with it what was reached."""
    made = Production()
    ids = [made.run(artifact.artifact_id) for _ in range(40)]
    values = [1.0] * 32 + [0.0] * 8
    for run, value in zip(ids, values, strict=True):
        made.judge(run, value)
    before = monitor(artifact, made.store, reference=0.8)
    for run in ids[:32]:
        made.judge(run, 1.0)
    assert monitor(artifact, made.store, reference=0.8) == before and before.advice == "keep"
    for run in ids[:5]:
        made.judge(run, 0.0)
    least = 0.8
    corrected = [0.0] * 5 + values[5:]
    assert monitor(artifact, made.store, reference=0.8).e == e_process([least - value for value in corrected], least=least - 1)
    for run in ids[:5]:
        made.judge(run, 1.0)
    assert monitor(artifact, made.store, reference=0.8) == before, "changed and changed back"


def test_only_the_first_of_a_group_counts(artifact: Artifact) -> None:
    made = Production()
    made.judged(artifact.artifact_id, [0.0] * 20, user="one angry person")
    made.judged(artifact.artifact_id, [1.0] * 10)
    assert monitor(artifact, made.store).advice == "rollback"
    report = monitor(artifact, made.store, group_by="user")
    assert report.advice == "keep" and report.e is not None and report.e.n == 11
    assert "19 runs of groups that had one already do not count" in str(report)
    same = monitor(artifact, made.store, group_by=lambda receipt: receipt["inputs"]["user"])
    assert same.e == report.e
    with pytest.raises(UserError, match="no input"):
        monitor(artifact, made.store, group_by="colour")


def test_runs_of_others_do_not_count(artifact: Artifact) -> None:
    made = Production()
    made.judged("sha256:" + "1" * 64, [0.0] * 30)
    made.judged(artifact.artifact_id, [0.0] * 30, unproven=True)
    made.judged(artifact.artifact_id, [1.0] * 3)
    report = monitor(artifact, made.store)
    assert (report.advice, report.judged) == ("keep", 3) and "30 runs with another model" in str(report)


def test_names_of_judgements(artifact: Artifact) -> None:
    made = Production()
    run = made.run(artifact.artifact_id)
    made.judge(run, 1.0, "helpful")
    made.judge(run, 0.0, "polite")
    with pytest.raises(UserError, match="several names"):
        monitor(artifact, made.store)
    assert monitor(artifact, made.store, name="polite").mean.estimate == 0.0  # type: ignore[union-attr]


def test_failed_runs_count_where_asked(artifact: Artifact) -> None:
    made = Production()
    made.judged(artifact.artifact_id, [1.0] * 3)
    for _ in range(20):
        made.run(artifact.artifact_id, ok=False)
    assert monitor(artifact, made.store).advice == "keep"
    report = monitor(artifact, made.store, count_failures=True)
    assert report.advice == "rollback" and report.judged == 23 and any("only right if" in note for note in report.notes)


def test_against_another_artifact(artifact: Artifact) -> None:
    other = "sha256:" + "2" * 64
    made = Production()
    made.judged(other, [1.0] * 40)
    made.judged(artifact.artifact_id, [1.0, 0.0] * 20)
    report = monitor(artifact, made.store, against=other, max_loss=0.1)
    assert report.advice == "rollback" and report.other_mean is not None and report.other_mean.estimate == 1.0
    assert report.null == "its mean score is at least that of 222222222222 less 0.1"
    assert monitor(artifact, made.store, against=other, max_loss=0.6).advice == "keep"


def test_paired_on_equal_inputs(artifact: Artifact) -> None:
    other = "sha256:" + "2" * 64
    made = Production()
    for word in range(30):
        made.judged(other, [1.0], word=f"w{word}", user="u")
    for word in range(10, 50):
        made.judged(artifact.artifact_id, [0.0 if word < 30 else 1.0], word=f"w{word}", user="u")
    report = monitor(artifact, made.store, against=other, paired=True, max_loss=0.0)
    assert report.e is not None and report.e.n == 20 and report.e.mean == 1.0 and report.advice == "rollback"


@pytest.mark.parametrize("options", [
    {"paired": True}, {"reference": 0.5, "against": "sha256:" + "2" * 64}, {"reference": 1.5}, {"max_loss": -0.1}, {"alpha": 0.9},
])  # fmt: skip
def test_options_that_do_not_go_together(options: dict[str, Any], artifact: Artifact) -> None:
    made = Production()
    for judged in ([], [1.0]):
        made.judged(artifact.artifact_id, judged)
        with pytest.raises(UserError):
            monitor(artifact, made.store, **options)


def test_no_artifact_is_compared_with_itself(artifact: Artifact) -> None:
    """All differences would be 0: it would be kept whatever it does."""
    made = Production()
    made.judged(artifact.artifact_id, [0.0] * 30)
    for itself in (artifact, artifact.artifact_id):
        with pytest.raises(UserError, match="with itself"):
            monitor(artifact, made.store, against=itself)


def test_a_name_that_nobody_judges_by_is_a_slip(artifact: Artifact) -> None:
    """With another name beside it, "nothing judged" would be read as "nothing is wrong"."""
    made, other = Production(), "sha256:" + "2" * 64
    assert monitor(artifact, made.store, name="helpfull").advice == "nothing judged", "there is no name to mean instead"
    made.judged(artifact.artifact_id, [0.0] * 30)
    with pytest.raises(UserError, match=r"helpfull.*The names are: helpful\.") as caught:
        monitor(artifact, made.store, name="helpfull")
    assert caught.value.code == "DSE100"
    assert monitor(artifact, made.store, name="helpful").advice == "rollback"
    assert monitor(artifact, made.store, name="helpful", against=other).advice == "nothing judged", "the other has none yet"


# --- the command


def command(*words: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "dse.cli", "monitor", *words], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def test_the_command_says_so_and_its_exit_code_too(artifact: Artifact, registry: Path, tmp_path: Path) -> None:
    made = Production()
    path = str(tmp_path / "runs.db")
    made.store = dse.Store(path)
    made.judged(artifact.artifact_id, [1.0] * 3)
    made.store.close()
    ref = f"{registry}/AskWarehouse@champion"
    code, shown = command(ref, "--store", path)
    assert code == 0 and "Nothing speaks for a rollback so far" in shown
    made.store = dse.Store(path)
    made.judged(artifact.artifact_id, [0.0] * 15)
    made.store.close()
    code, shown = command(ref, "--store", path, "--json")
    assert code == 1 and json.loads(shown)["advice"] == "rollback"
    code, shown = command(ref, "--store", path, "--against", "previous")
    assert code == 0 and "0 pairs of runs" in shown
    file = next(path for path in (registry / "AskWarehouse").glob("*.json") if path.stem in artifact.artifact_id)
    code, same = command(str(file), "--store", path, "--against", "previous")
    assert code == 0 and same == shown
    code, shown = command(ref, "--store", path, "--name", "helpfull")
    assert code == 2 and "DSE100" in shown and "helpful." in shown
    code, shown = command(ref, "--store", str(tmp_path / "none.db"))
    assert code == 2 and "There is no store here" in shown


def test_reports_are_plain(artifact: Artifact) -> None:
    made = Production()
    made.judged(artifact.artifact_id, [1.0])
    report: MonitorReport = monitor(artifact, made.store)
    text = str(report)
    assert text.splitlines()[0].startswith(f"{artifact.artifact_id[7:19]}: 1 run judged, 0 not")
