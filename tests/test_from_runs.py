"""Judged runs become rows: right labels, nothing sensitive, and nothing that was tried on before is judged on again."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

import dse
from dse import analysis
from dse.errors import DatasetError, JournalTampered, MalformedRow, MetricError, MissingHoldout, Refused, StoreError
from dse.evaluation.evaluator import Evaluator
from dse.evaluation.splits import input_text, near_duplicates
from dse.portal import run_sync
from dse.store.journal import Store
from dse.strategies.base import seed_plan
from dse.testing.scripted import ScriptedModel, call, say
from dse.testing.worlds import AskWarehouse, PlantedWorld
from tests.test_cli import cli, refused

WORLD = PlantedWorld({"direct": 1.0}, clusters=40, writes=0.0)
ROWS = WORLD.rows()
QUOTA = {"search": 0.3, "select": 0.3, "holdout": 0.4}


def ask(store: Store, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Runs of the champion in production: request -> run id."""
    program = dse.Program(AskWarehouse, "direct", lm=WORLD.model(), store=store)
    return {row["request"]: program(request=row["request"]).receipt["run_id"] for row in rows}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = Store(tmp_path / "runs.db")
    yield made
    made.close()


def everything(data: dse.Dataset) -> dict[str, tuple[str, Any]]:
    """Row id -> (split, example), the sealed rows among them."""
    return {item.example.id: (split, item.example) for item, split in zip(data._placed(), data._split_of, strict=True)}


# ---- judgements -------------------------------------------------------------------------------------------


def test_runs_are_judged_and_the_last_word_holds(store: Store) -> None:
    one, other = ask(store, ROWS[:2]).values()
    store.judge(one, "helpful", 0.25, feedback="too short", judge="Ada")
    store.judge(one, "helpful", 1, judge="Bo")
    store.judge(one, "polite", True)
    store.judge(other, "helpful", 0.5)
    assert [(j["name"], j["value"], j["feedback"], j["judge"]) for j in store.judgements(one)] == [
        ("helpful", 1.0, "", "Bo"), ("polite", 1.0, "", "")]  # fmt: skip
    assert len(store.judgements()) == 3
    for value in (-0.1, 1.1, float("nan"), "1", None):
        with pytest.raises(MetricError):
            store.judge(one, "helpful", value)  # type: ignore[arg-type]
    with pytest.raises(MetricError, match="name"):
        store.judge(one, " ", 1.0)
    with pytest.raises(StoreError, match="no such run"):
        store.judge("nothing", "helpful", 1.0)
    store.prune(before=dt.datetime.now(dt.UTC) + dt.timedelta(days=1))
    assert store.judgements() == []


def test_the_frame_of_runs(store: Store) -> None:
    assert list(analysis.runs(store)["run_id"]) == []
    one, other = ask(store, ROWS[:2]).values()
    with pytest.raises(dse.DseError):
        dse.Program(AskWarehouse, "direct", lm=ScriptedModel(lambda _: say("no")), store=store)(request="What?")
    store.judge(one, "helpful", 0.25)
    frame = analysis.runs(store).set_index("run_id")
    assert list(frame["outcome"]) == ["ok", "ok", "failed"] and frame["error_code"].iloc[2] == "DSE302"
    assert frame.loc[one, "judged.helpful"] == 0.25 and frame["judged.helpful"].isna().sum() == 2
    assert frame.loc[other, "model_calls"] == 1 and frame.loc[other, "input_tokens"] > 0
    assert (frame["cost_source"] == "unknown").all() and frame["cost_usd"].isna().all()
    assert analysis.runs(store, signature="Other").empty


def test_a_run_is_found_by_the_beginning_of_its_id(store: Store) -> None:
    program = dse.Program(AskWarehouse, "direct", lm=WORLD.model(), store=store)
    for run_id in ("abc-1", "abc-12", "ABD-1", "a_c"):
        run_sync(program.execute, program.new_run({"request": ROWS[0]["request"]}, run_id=run_id))
    assert [store.find_run(text) for text in ("abc-1", "abc-12", "ABD", "a_")] == ["abc-1", "abc-12", "ABD-1", "a_c"]
    for wrong in ("", "abd", "%", "ab_"):
        with pytest.raises(StoreError, match="no such run"):
            store.find_run(wrong)
    with pytest.raises(StoreError, match="Several"):
        store.find_run("abc")


# ---- choosing rows ----------------------------------------------------------------------------------------


def test_outputs_are_labels_and_the_result_is_sealed(store: Store, tmp_path: Path) -> None:
    runs = ask(store, ROWS[:20])
    ask(store, ROWS[:5])  # the same questions again
    said: list[str] = []
    data = dse.Dataset.from_runs(store, AskWarehouse, name="production", quota=QUOTA, say=said.append)
    data.save(tmp_path / "data")
    again = dse.Dataset.load(tmp_path / "data")
    again.check(AskWarehouse)
    assert again.revision == data.revision and data.describe()["rows"] == 20
    assert any("always right" in note for note in said) and "Left out: 5 with the inputs of another one." in said
    assert "always right" in json.loads((tmp_path / "data" / "dataset.json").read_text())["source"]
    left = {row["request"]: row["left"] for row in ROWS}
    for run_id, (_, row) in everything(data).items():
        assert row.left == left[row.request] and (run_id == runs[row.request] or row.request in {r["request"] for r in ROWS[:5]})


def test_only_runs_that_were_judged_well_or_corrected(store: Store, tmp_path: Path) -> None:
    runs = list(ask(store, ROWS[:12]).values())
    for number, run_id in enumerate(runs):
        store.judge(run_id, "helpful", number / 10 if number < 10 else 0.0)
    data = dse.Dataset.from_runs(store, AskWarehouse, name="p", judged=("helpful", 0.4), quota=QUOTA)
    assert set(everything(data)) == set(runs[4:10])
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps({"run_id": run_id, "left": 1000 + n}) + "\n" for n, run_id in enumerate(runs[:4])))
    both = everything(dse.Dataset.from_runs(store, AskWarehouse, name="p", judged=("helpful", 0.4), labels=file, quota=QUOTA))
    assert set(both) == set(runs[:10]) and [both[run_id][1].left for run_id in runs[:4]] == [1000, 1001, 1002, 1003]
    with pytest.raises(DatasetError, match="No run") as caught:
        dse.Dataset.from_runs(store, AskWarehouse, name="p", judged=("polite", 0.4))
    assert "12 not among" in str(caught.value)


def test_failed_runs_have_rows_when_somebody_says_what_was_right(store: Store) -> None:
    silent = dse.Program(AskWarehouse, "direct", lm=ScriptedModel(lambda _: say("no")), store=store)
    ids = []
    for row in ROWS[:6]:
        with pytest.raises(dse.DseError) as caught:
            silent(request=row["request"])
        ids.append(caught.value.details["run_id"])
    with pytest.raises(DatasetError, match="No run"):
        dse.Dataset.from_runs(store, AskWarehouse, name="p")
    labels = {run_id: {"left": 7, "reserved": 0, "site": f"site-{n // 2}"} for n, run_id in enumerate(ids)}
    data = dse.Dataset.from_runs(store, AskWarehouse, name="p", labels=labels, cluster_key="site", quota=QUOTA)
    assert data.fields == {"request": "input", "left": "label", "reserved": "label", "site": "meta", "cluster": "meta"}
    assert data.describe()["clusters"] == 3 and set(data.assignment) == {"site-0", "site-1", "site-2"}
    del labels[ids[0]]["reserved"]
    with pytest.raises(MalformedRow, match="reserved"):
        dse.Dataset.from_runs(store, AskWarehouse, name="p", labels=labels, cluster_key="site")


@pytest.mark.parametrize("lines, word", [
    (['{"left": 1}'], "no run id"), (['{"run_id": "nothing", "left": 1}'], "no run of AskWarehouse"),
    (['{"run_id": "RUN", "left": "many"}'], "left"), (['{"run_id": "RUN", "left": 1}'] * 2, "named before"),
    (['{"run_id": "RUN", "request": "x"}'], "no output"), (["{"], "not"),
])  # fmt: skip
def test_labels_that_do_not_fit(store: Store, tmp_path: Path, lines: list[str], word: str) -> None:
    (run_id,) = ask(store, ROWS[:1]).values()
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(line.replace("RUN", run_id) + "\n" for line in lines))
    with pytest.raises(MalformedRow, match=word):
        dse.Dataset.from_runs(store, AskWarehouse, name="p", labels=file)


def test_forks_and_changed_journals_give_no_rows(store: Store) -> None:
    @dse.tool(effect="read")
    def look(n: int) -> int:
        """Look."""
        return n

    class Find(dse.Signature):
        """Find."""

        n: int = dse.InputField()
        found: int = dse.OutputField()
        tools = [look]

    model = ScriptedModel(lambda r: call(("submit", {"found": 1})) if r["messages"][-1]["role"] == "tool" else call(("look", {"n": 1})))
    program = dse.Program(Find, "tool_call", lm=model, store=store)
    ids = [program(n=n).receipt["run_id"] for n in range(6)]
    program.resume(fork := program.fork(ids[0], 1, value=5))
    assert program.replay(fork).found == 1
    said: list[str] = []
    data = dse.Dataset.from_runs(store, Find, name="p", say=said.append, quota=QUOTA)
    assert set(everything(data)) == set(ids) and any("1 forks" in note for note in said)
    with pytest.raises(DatasetError, match="cluster key"):
        dse.Dataset.from_runs(store, Find, name="p", cluster_key="customer")
    with store._write() as c:
        events = store._tables["events"]
        c.execute(events.update().where(events.c.run_id == ids[2], events.c.seq == 0).values(active_s=9.0))
    with pytest.raises(JournalTampered):
        dse.Dataset.from_runs(store, Find, name="p")


# ---- what must not leave ----------------------------------------------------------------------------------


@dse.tool(effect="read", sensitive=("return",))
def account_of(person: str) -> str:
    """The account of a person."""
    return f"account-of-{person}"


class Letter(dse.Signature):
    """Answer a letter."""

    text: str = dse.InputField()
    person: str = dse.InputField(sensitive=True)
    answer: str = dse.OutputField()
    tools = [account_of]


def letter_without_marks() -> Any:
    """The same signature before its field was marked, or after the mark was taken away."""
    return type("Letter", (dse.Signature,), {
        "__doc__": "Answer a letter.", "__module__": __name__, "tools": [account_of],
        "__annotations__": {"text": str, "person": str, "answer": str}, "text": dse.InputField(), "person": dse.InputField(),
        "answer": dse.OutputField()})  # fmt: skip


Open = letter_without_marks()


def write(store: Store, signature: Any, answer: str, person: str, *texts: str) -> list[str]:
    model = ScriptedModel(lambda r: call(("submit", {"answer": answer})) if r["messages"][-1]["role"] == "tool"
                          else call(("account_of", {"person": person})))  # fmt: skip
    program = dse.Program(signature, "tool_call", lm=model, store=store)
    return [program(text=text, person=person).receipt["run_id"] for text in texts]


TEXTS = ("Where is my parcel, please?", "I was charged twice in May!", "Can you call me on Friday?", "Please close the account.",
         "The lamp arrived broken.", "How long is the warranty?")  # fmt: skip


def test_sensitive_fields_are_refused_or_dropped_and_their_values_redacted(store: Store, tmp_path: Path) -> None:
    ids = write(store, Letter, "We will see.", "Ada Lovelace", *TEXTS, "This is Ada Lovelace of account-of-Ada Lovelace.")
    leaks = write(store, Letter, "Dear Ada Lovelace", "Ada Lovelace", "Who am I?")
    leaks += write(store, Letter, "It is account-of-Bo", "Bo", "Which account is mine, do you think?")
    with pytest.raises(Refused, match="sensitive") as caught:
        dse.Dataset.from_runs(store, Letter, name="p")
    assert caught.value.value == "person"
    said: list[str] = []
    labels = {run_id: {} for run_id in ids + leaks} | {ids[0]: {"answer": "Ask account-of-Ada Lovelace"}}
    data = dse.Dataset.from_runs(store, Letter, name="p", drop_sensitive=True, quota=QUOTA, say=said.append, labels=labels)
    assert set(everything(data)) == set(ids[1:])
    assert "DROPPED, because they are sensitive: person. The signature needs some of them: these rows alone do not run it." in said
    assert "Something sensitive was redacted in the inputs of 1 rows." in said
    data.save(tmp_path / "data")
    for file in (tmp_path / "data").iterdir():
        assert "Ada" not in file.read_text() and "account-of" not in file.read_text()
    assert "person" not in data.fields


def test_a_sensitive_cluster_key_keeps_rows_together_and_is_not_shown(store: Store) -> None:
    ada = write(store, Letter, "Yes.", "Ada Lovelace", *TEXTS[:3])
    bo = write(store, Letter, "Yes.", "Bo Diddley", *TEXTS[3:5])
    eve = write(store, Letter, "Yes.", "Eve Arden", TEXTS[5])
    data = dse.Dataset.from_runs(store, Letter, name="p", drop_sensitive=True, cluster_key="person", quota=QUOTA)
    rows = everything(data)
    assert data.describe()["clusters"] == 3 and set(rows) == {*ada, *bo, *eve}
    for group in (ada, bo, eve):
        assert {rows[run_id][1].cluster for run_id in group} == {min(group)}


def test_a_field_that_became_sensitive_or_was_so_does_not_leave(store: Store) -> None:
    write(store, Open, "Yes, Ada Lovelace.", "Ada Lovelace", *TEXTS)  # kept before the field was marked
    with pytest.raises(DatasetError, match="No run") as caught:
        dse.Dataset.from_runs(store, Letter, name="p", drop_sensitive=True)
    assert "6 with an answer that holds something sensitive" in str(caught.value)
    write(store, Letter, "Yes.", "Ada Lovelace", *TEXTS)
    said: list[str] = []
    data = dse.Dataset.from_runs(store, Open, name="p", quota=QUOTA, say=said.append)  # the mark was taken away again
    assert any("6 with fields that were sensitive when they ran" in note for note in said) and data.describe()["rows"] == 6


# ---- splits -----------------------------------------------------------------------------------------------


def evaluate(rows: Any, store: Store) -> None:
    plan = seed_plan(AskWarehouse.spec(), "direct")
    asyncio.run(Evaluator(WORLD.task(), WORLD.model(), store).evaluate({"d": plan}, rows))


def similar(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "request": row["request"].replace("How many pieces of", "How many pieces  of the")}


def test_near_duplicates_share_a_split(store: Store) -> None:
    ask(store, ROWS[:10])
    program = dse.Program(AskWarehouse, "direct", lm=ScriptedModel(lambda _: say("[[ ## left ## ]]\n3\n\n[[ ## completed ## ]]")), store=store)
    for row in ROWS[:10]:
        program(request=similar(row)["request"])
    data = dse.Dataset.from_runs(store, AskWarehouse, name="p", quota=QUOTA)
    assert data.describe()["rows"] == 20 and data.describe()["clusters"] == 10


def test_what_was_tried_on_is_never_judged_on(store: Store, tmp_path: Path) -> None:
    """Rows and near-duplicates of rollouts go to search; those of an opened or sealed holdout are left out."""
    old = WORLD.dataset()
    evaluator_store = Store(tmp_path / "compile.db")
    tried = [row for row in old.split("search")][:4]
    evaluate(tried, evaluator_store)
    opened = old.open_holdout(evaluator_store, compile_id="c")
    evaluate(opened[:3], evaluator_store)
    fresh = PlantedWorld({"direct": 1.0}, clusters=20, writes=0.0, seed=9)
    production = dse.Program(AskWarehouse, "direct", store=store, lm=ScriptedModel(
        lambda _: say("[[ ## left ## ]]\n3\n\n[[ ## completed ## ]]")))  # fmt: skip

    def asked(*requests: str) -> set[str]:
        return {production(request=request).receipt["run_id"] for request in requests}

    again = asked(tried[0].request, similar({"request": tried[1].request})["request"])
    was_sealed = asked(opened[0].request, similar({"request": opened[1].request})["request"])
    new = asked(*(row["request"] for row in fresh.rows()))
    placed = everything(dse.Dataset.from_runs(store, AskWarehouse, name="p", used=[evaluator_store], quota=QUOTA))
    assert set(placed) == again | new and {placed[run_id][0] for run_id in again} == {"search"}
    assert {split for split, _ in placed.values()} == {"search", "select", "holdout"}
    known = [input_text(row.inputs) for row in [*tried, *opened[:3]]]
    sealed = [input_text(row.inputs) for split, row in placed.values() if split == "holdout"]
    assert sealed and near_duplicates(sealed, known) == []

    # The same from the dataset alone, with the whole of its sealed rows.
    unopened = WORLD.dataset()
    placed = everything(dse.Dataset.from_runs(store, AskWarehouse, name="p", beside=[unopened], quota=QUOTA))
    assert set(placed) == again | new and {placed[run_id][0] for run_id in again} == {"search"}
    assert not was_sealed & set(placed)
    evaluator_store.close()


def test_a_row_that_only_a_ledger_knows_is_left_out(store: Store) -> None:
    """Another store opened it in its gate: this one has the hash and nothing else."""
    runs = list(ask(store, ROWS[:8]).values())
    hashes = [dse.Example(runs[0], {"request": ROWS[0]["request"]}, {"left": ROWS[0]["left"]}).row_hash]
    hashes.append(dse.Example(runs[1], {"request": ROWS[1]["request"]}, {"left": ROWS[1]["left"]}, {"cluster": runs[1]}).row_hash)
    store.record({"dataset": "d", "revision": "r", "compile_id": "c", "row_hashes": hashes, "purpose": "gate"})
    assert set(everything(dse.Dataset.from_runs(store, AskWarehouse, name="p", quota=QUOTA))) == set(runs[2:])


def test_a_cluster_stays_on_the_side_on_which_it_was(store: Store) -> None:
    runs = list(ask(store, ROWS[:10]).values())
    labels = {run_id: {"left": n, "customer": f"customer-{n}"} for n, run_id in enumerate(runs)}
    fields = {"text": "input", "left": "label", "customer": "meta"}
    rows = [{"id": f"r{n}", "text": f"{word} question", "left": 1, "customer": f"customer-{n}"}
            for n, word in enumerate(("first", "another", "quite some other"))]  # fmt: skip
    sides = {"customer-0": "search", "customer-1": "select", "customer-2": "holdout"}
    old = dse.Dataset.from_rows(rows, name="old", fields=fields, cluster_key="customer", assignment=sides)
    data = dse.Dataset.from_runs(store, AskWarehouse, name="p", labels=labels, cluster_key="customer", beside=[old], quota=QUOTA)
    placed = everything(data)
    assert runs[2] not in placed and len(placed) == 9
    assert placed[runs[0]][0] == placed[runs[1]][0] == "search"


def test_nothing_left_to_judge_on_is_an_error(store: Store) -> None:
    ask(store, ROWS[:4])
    evaluate([dse.Example(r["id"], {"request": r["request"]}, {"left": r["left"], "reserved": 0}) for r in ROWS[:4]], store)
    with pytest.raises(MissingHoldout):
        dse.Dataset.from_runs(store, AskWarehouse, name="p")


# ---- the shell --------------------------------------------------------------------------------------------


def test_from_the_shell(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = list(ask(store, ROWS[:12]).values())
    for run_id in runs[:10]:
        store.judge(run_id, "helpful", 0.9)
    monkeypatch.chdir(tmp_path)
    making = ("dataset", "from-runs", "--task", "dse.testing.worlds:AskWarehouse", "--store", "runs.db")
    done = cli(*making, "rows", "--judged", "helpful:0.8", "--name", "production")
    assert done.code == 0, done.err
    assert done.json()["rows"] == 10 and "Left out: 2 not among" in done.err
    checked = cli("dataset", "check", "rows", "--task", "dse.testing.worlds:AskWarehouse")
    assert (checked.code, checked.json()) == (0, done.json()), checked.err
    refused(cli(*making, "rows"), 2, "DSE100", "--beside rows")
    refused(cli(*making, "more", "--beside", "rows", "--judged", "helpful:0.8"), 2, "DSE153")
    for wrong in ("helpful", "helpful:much", ":0.5", "helpful:2"):
        refused(cli(*making, "more", "--judged", wrong), 2, "DSE100", "NAME:LEAST")
    refused(cli(*making, "more", "--labels", "nowhere.jsonl"), 2, "DSE150")
    refused(cli(*making, "more", "--store", "nowhere.db"), 2, "DSE182")
    refused(cli("dataset", "from-runs", "more", "--task", "tests.test_from_runs:Letter", "--store", "runs.db"), 2, "DSE190", "person")
    assert not Path("more").exists()
