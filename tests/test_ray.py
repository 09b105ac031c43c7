"""Rollouts on a real Ray cluster of several processes: the same as local ones, whatever happens to a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from ray_examples import COUNT, another, counting, counting_model, failing, leaving, rare, rows, stateless, twice

import dse
from dse.compiler.budget import Budget, BudgetedModel, Purse
from dse.errors import BudgetExhausted, CassetteMiss, InfrastructureError, MetricError, UserError, WorkerLost
from dse.evaluation.evaluator import Evaluator, RolloutRecord
from dse.evaluation.executor import Executor, LocalExecutor
from dse.store.cassette import RecordModel
from dse.store.journal import Store, opened
from dse.strategies.base import seed_plan
from dse.strategies.script import script_plan
from dse.testing.scripted import ScriptedModel
from dse.testing.worlds import AskWarehouse, PlantedWorld

ray = pytest.importorskip("ray", reason="Ray is not installed: rollouts on a cluster are not tested")

WORLD = PlantedWorld({"direct": 0.5, "tool_call": 0.9, "code": 0.9}, clusters=20)
TIMES = ("latency_s", "active_s", "interpreter_s")
TOOL_CALL = {"tools": seed_plan(COUNT, "tool_call")}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def workers(cluster: None) -> Iterator[Executor]:
    from dse.evaluation.ray_executor import RayExecutor

    executor = RayExecutor(workers=2)
    yield executor
    anyio.run(executor.aclose)


async def evaluated(task: dse.Task, model: Any, plans: Any = TOOL_CALL, examples: Any = None, **options: Any) -> list[RolloutRecord]:
    store = options.pop("store", None) or Store(":memory:")
    evaluator = Evaluator(task, model, store, **options)
    try:
        return await evaluator.evaluate(plans, rows() if examples is None else examples)
    finally:
        store.close()


def run(*args: Any, **options: Any) -> list[RolloutRecord]:
    return anyio.run(lambda: evaluated(*args, **options))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in (*TIMES, "created")}
    return [without_times(v) for v in value] if isinstance(value, (list, tuple)) else value


def kept(place: Path | str) -> list[dict[str, Any]]:
    """All that a store holds of rollouts, without times; calls of one round end in any order, here as in one process."""
    store = Store(place)
    found = [without_times(row) for row in store.rollouts(with_journal=True)]
    store.close()
    for row in found:
        ends = sorted((e for e in row["journal"] if e["kind"] in ("tool_intent", "tool_outcome")), key=lambda e: (e["call_id"], e["kind"]))
        rest = [e for e in row["journal"] if e["kind"] not in ("tool_intent", "tool_outcome")]
        row["journal"] = [{k: v for k, v in e.items() if k != "seq"} for e in (*rest, *ends)]
        row["receipt"]["calls"].sort(key=lambda call: call["call_id"])
    return found


# ---- the same as local ------------------------------------------------------------------------------------


def test_a_cluster_gives_the_rows_that_one_process_gives(workers: Executor, tmp_path: Path) -> None:
    """All modes, an environment with an end state, writes, failures, and a recording that grows here."""
    plans = {mode: seed_plan(AskWarehouse.spec(), mode) for mode in ("direct", "tool_call", "code")}
    examples = WORLD.dataset().split("select")
    records, asked = {}, {}
    for name, executor in {"local": LocalExecutor(), "ray": workers}.items():
        model = WORLD.model()
        recording = RecordModel(model, tmp_path / f"{name}.jsonl")
        records[name] = run(WORLD.task(), recording, plans, examples, store=Store(tmp_path / f"{name}.db"), executor=executor)
        anyio.run(recording.aclose)
        asked[name] = len(model.requests)
    assert [r.rollout_id for r in records["ray"]] == [r.rollout_id for r in records["local"]]
    assert [r.score for r in records["ray"]] == [r.score for r in records["local"]] and {r.score for r in records["ray"]} == {0, 1}
    assert kept(tmp_path / "ray.db") == kept(tmp_path / "local.db") and asked["ray"] == asked["local"]
    answers = [sorted((tmp_path / f"{name}.jsonl").read_text().splitlines()[1:]) for name in records]
    assert answers[0] == answers[1]


def test_a_replay_on_a_cluster_has_no_times_of_its_own(workers: Executor, tmp_path: Path) -> None:
    recording = RecordModel(counting_model("double"), tmp_path / "a.jsonl")
    run(counting(), recording)
    anyio.run(recording.aclose)
    found = []
    for executor in (LocalExecutor(), workers):
        records = run(counting(), dse_replay(tmp_path / "a.jsonl"), executor=executor)
        found.append([(r.rollout_id, dict(r.receipt), r.latency_s, r.latency_source) for r in records])
    assert found[0] == found[1] and {source for *_, source in found[0]} == {"recorded"}


def dse_replay(path: Path) -> Any:
    from dse.models.lm import resolve_model

    return resolve_model(f"replay:{path}")


def test_a_compile_on_a_cluster_ends_with_the_artifact_of_a_local_one(workers: Executor, tmp_path: Path) -> None:
    world = PlantedWorld({"direct": 0.5, "tool_call": 0.9, "code": 0.9}, clusters=30)
    task = world.task(modes=["direct", "tool_call", "code"])
    recorded = RecordModel(world.model(), tmp_path / "c.jsonl")
    size = dse.Rows(search=4, select=6, holdout=8)
    local = dse.compile(task, lm=recorded, registry=tmp_path / "local", rows=size)
    anyio.run(recorded.aclose)
    made = [dse.compile(task, lm=f"replay:{tmp_path / 'c.jsonl'}", registry=tmp_path / name, rows=size, executor=executor)
            for name, executor in (("one", "local"), ("many", workers))]  # fmt: skip
    assert made[0].artifact.artifact_id == made[1].artifact.artifact_id
    assert (made[1].winner, made[1].verdict) == (local.winner, local.verdict)


def test_a_cluster_and_a_postgresql_store_together(workers: Executor, postgresql_server: Any, postgresql_database: str, tmp_path: Path) -> None:
    """Rollouts made elsewhere, kept in a database server: rows, artifact and ledger are those of one process and a file."""
    world = PlantedWorld({"direct": 0.5, "tool_call": 0.9, "code": 0.9}, clusters=30)
    task = world.task(modes=["direct", "tool_call", "code"])
    url = str(postgresql_server.url(postgresql_database))
    made, held, looks, asked = [], [], [], []
    for place, executor in ((str(tmp_path / "local.db"), "local"), (url, workers)):
        model = world.model()
        result = dse.compile(task, lm=model, registry=tmp_path / str(len(made)), rows=dse.Rows(search=4, select=6, holdout=8),
                             store=place, executor=executor)  # fmt: skip
        made.append(result)
        asked.append(len(model.requests))
        held.append(sorted(kept(place), key=lambda row: row["rollout_id"]))
        with opened(place) as store:
            looks.append(without_times(store.openings()))
    assert made[0].artifact.artifact_id == made[1].artifact.artifact_id
    assert (made[1].winner, made[1].verdict, made[1].table) == (made[0].winner, made[0].verdict, made[0].table)
    assert held[0] == held[1] and len(held[0]) > 50 and asked[0] == asked[1] and looks[0] == looks[1]
    model = world.model()  # started again on the cluster: everything is in the server
    again = dse.compile(task, lm=model, registry=tmp_path / "again", rows=dse.Rows(search=4, select=6, holdout=8), store=url,
                        executor=workers)  # fmt: skip
    assert not model.requests and again.artifact.program_id == made[0].artifact.program_id


def test_tools_run_in_the_workers_and_the_model_here(workers: Executor) -> None:
    asked_in = set()

    class Here(ScriptedModel):
        async def complete(self, request: Any, **which: Any) -> Any:
            asked_in.add(os.getpid())
            return await super().complete(request, **which)

    script = counting_model("where")
    records = run(counting(), Here(lambda request: script._player.next(request), "scripted/count"), executor=workers)
    places = {r.outputs["result"] for r in records if r.outputs}
    assert len(places) == 2 and os.getpid() not in places and asked_in == {os.getpid()}
    assert places == set(anyio.run(workers.pids))  # type: ignore[attr-defined]


@pytest.mark.parametrize("check", [twice, dse.check(lambda i, o: o["result"] == 2 * i["n"], name="twice", revision="1")],
                         ids=["of a module", "of nobody"])  # fmt: skip
def test_a_check_of_a_cascade_goes_with_the_task(workers: Executor, check: Any) -> None:
    script = script_plan(COUNT, "submit(result=2 * n if n < 4 else 1)")
    plan = dse.Plan.cascade(script, seed_plan(COUNT, "tool_call"), check=check)
    model = counting_model("double")
    records = run(counting(checks=[check]), model, {"checked": plan}, executor=workers)
    assert [r.score for r in records] == [1.0] * 8 and len(model.requests) == 8  # two for each row that the script got wrong


def test_a_rate_holds_for_all_workers_together(workers: Executor) -> None:
    began = time.monotonic()
    records = run(counting(), counting_model("rare"), executor=workers)
    outcomes = [r.receipt["calls"][0]["outcome"] for r in records]
    assert outcomes == ["ok"] * 8, "each made one call, whatever the others did"
    assert time.monotonic() - began >= 2 * rare.contract.rate.per_s, "eight calls, three at a time"


# ---- a worker that is lost --------------------------------------------------------------------------------


def test_rollouts_of_a_killed_worker_are_started_again(workers: Executor, tmp_path: Path) -> None:
    """SIGKILL in the middle of a tool. What the model had answered is not asked again."""
    expected = run(counting(), counting_model("double"), store=Store(tmp_path / "local.db"))
    os.mkfifo(tmp_path / "pipe")
    killed, model, pauses = [], counting_model("double"), []

    def kill() -> None:
        pid = int((tmp_path / "pipe").read_text())  # comes when the tool is running
        killed.append(pid)
        os.kill(pid, signal.SIGKILL)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    records = run(counting(deps=str(tmp_path)), model, store=Store(tmp_path / "ray.db"), executor=workers, sleep=pause)
    killer.join()
    assert killed and killed[0] not in anyio.run(workers.pids)  # type: ignore[attr-defined]
    assert pauses and [r.rollout_id for r in records] == [r.rollout_id for r in expected]
    assert kept(tmp_path / "ray.db") == kept(tmp_path / "local.db")
    assert len(model.requests) == sum(r.model_calls for r in records)


def test_a_rollout_that_ends_every_worker_ends_the_evaluation(workers: Executor, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def kill() -> None:
        for _ in range(2):
            pid = int((tmp_path / "pipe").read_text())
            (tmp_path / "first").unlink()
            os.kill(pid, signal.SIGKILL)

    async def no_pause(seconds: float) -> None:
        """The test need not wait."""

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(WorkerLost) as caught:
        run(counting(deps=str(tmp_path)), counting_model("double"), examples=rows(1), executor=workers, attempts=2, sleep=no_pause)
    killer.join()
    assert caught.value.code == "DSE407" and isinstance(caught.value, InfrastructureError) and caught.value.details["attempts"] == 2
    assert [r.score for r in run(counting(), counting_model("double"), executor=workers)] == [1.0] * 8


# ---- errors and ends --------------------------------------------------------------------------------------


def test_a_budget_is_one_for_all_workers(workers: Executor) -> None:
    inner = counting_model("double")
    with pytest.raises(BudgetExhausted) as caught:
        run(counting(), BudgetedModel(inner, Budget(model_calls=5)), executor=workers)
    assert len(inner.requests) == 5 and caught.value.details["spent"]["model_calls"] == 5


def test_tools_of_all_workers_are_paid_for_out_of_one_purse(workers: Executor) -> None:
    purse = Purse(Budget(usd=1.0))
    with pytest.raises(BudgetExhausted, match="A call of dear"):
        run(counting(), counting_model("dear"), executor=workers, pay=purse.pay_tool)
    (paid,) = purse.by_stage()
    assert (paid["tool"], paid["tool_calls"], paid["cost_usd"]) == ("dear", 3, 0.9)


def test_errors_keep_their_class_and_their_words(workers: Executor, tmp_path: Path) -> None:
    recording = RecordModel(counting_model("double"), tmp_path / "a.jsonl")
    run(counting(), recording, examples=rows(1))
    anyio.run(recording.aclose)
    cases: list[tuple[type[Exception], dse.Task, Any, str]] = [
        (UserError, counting(environment=failing), counting_model("double"), "Environment 'failing' made no world for row 'row1'"),
        (MetricError, counting(environment=stateless), counting_model("double"), "must be plain JSON data"),
        (CassetteMiss, counting(), dse_replay(tmp_path / "a.jsonl"), ""),
        (UserError, counting(environment=another), counting_model("double"), "another version of the task"),
        (UserError, counting(deps=threading.Lock()), counting_model("double"), "cannot be sent to workers"),
    ]  # fmt: skip
    for kind, task, model, words in cases:
        with pytest.raises(kind) as caught:
            run(task, model, examples=rows(2)[-1:], executor=workers)
        assert type(caught.value) is kind and words in str(caught.value), caught.value
    with pytest.raises(ZeroDivisionError) as foreign:
        run(counting(), ScriptedModel(lambda request: 1 // 0, "scripted/count"), examples=rows(1), executor=workers)
    assert "ray_worker.py" in "".join(foreign.value.__notes__)


def test_whoever_gives_up_leaves_no_world_behind(workers: Executor, tmp_path: Path) -> None:
    """The evaluation is cancelled while the model is asked: the environment in the worker is left."""
    os.mkfifo(tmp_path / "pipe")
    asked = threading.Event()

    async def reply(request: Any) -> Any:
        asked.set()
        await anyio.sleep_forever()

    async def given_up() -> None:
        example = dse.Example("row", {"n": 1}, {"result": 2}, {"pipe": str(tmp_path / "pipe")})
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: evaluated(counting(environment=leaving), ScriptedModel(reply, "scripted/count"),
                                               examples=[example], executor=workers))  # fmt: skip
            await anyio.to_thread.run_sync(asked.wait)
            group.cancel_scope.cancel()

    anyio.run(given_up)
    assert (tmp_path / "pipe").read_text() == "left"


def test_closing_an_executor_ends_its_workers(cluster: None) -> None:
    from dse.evaluation.ray_executor import RayExecutor

    executor = RayExecutor(cpus=0, workers=1)
    run(counting(), counting_model("double"), executor=executor)
    assert len(anyio.run(executor.pids)) == 1
    anyio.run(executor.aclose)
    assert anyio.run(executor.pids) == [] and ray.is_initialized()
    for bad in (0, 1.5, "2"):
        with pytest.raises(UserError):
            RayExecutor(workers=bad)  # type: ignore[arg-type]


def test_a_cluster_without_room_is_an_infrastructure_failure(cluster: None) -> None:
    from dse.evaluation.ray_executor import RayExecutor

    executor = RayExecutor(workers=1, cpus=64, start_s=0.2)
    with pytest.raises(WorkerLost, match="No worker started within"):
        run(counting(), counting_model("double"), executor=executor, attempts=1)
    anyio.run(executor.aclose)


SCRIPT = """
import dse

@dse.tool(effect="pure")
def add(n: int) -> int:
    return n + offset()

def offset() -> int:
    return 1

class Add(dse.Signature):
    '''Add.'''
    n: int = dse.InputField()
    result: int = dse.OutputField()
    tools = [add]

if __name__ == "__main__":
    import sys
    assert "ray" not in sys.modules
    from dse.testing.scripted import ScriptedModel, call
    fields = {"n": "input", "result": "label"}
    data = dse.Dataset.from_rows([{"id": f"r{n}", "n": n, "result": n + 1} for n in range(40)], name="add", fields=fields)
    task = dse.Task(Add, dataset=data, metric=lambda example, prediction, ctx: float(prediction.result == 2))
    model = ScriptedModel(lambda request: call(("submit", {"result": int(request["messages"][-1]["content"])}))
                          if request["messages"][-1]["role"] == "tool" else call(("add", {"n": 1})))
    records = dse.evaluate(task, "tool_call", lm=model, executor="ray")
    import ray
    print(sum(r.score for r in records) == len(records) > 0, ray.is_initialized())
"""


def test_a_script_by_itself_has_a_cluster_as_long_as_it_needs_one(tmp_path: Path) -> None:
    """What a script declares is found by workers, too."""
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-W", "error", "script.py"], text=True, capture_output=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["True", "False"]


def test_a_signature_that_nobody_can_import_is_refused_here(workers: Executor) -> None:
    class Local(dse.Signature):
        """Local."""

        n: int = dse.InputField()
        result: int = dse.OutputField()

    task = dse.Task(Local, dataset=None, metric=lambda *_: 1.0)
    plans = {"direct": seed_plan(Local.spec(), "direct")}
    with pytest.raises(UserError, match="Declare the signature at the top of a module"):
        run(task, counting_model("double"), plans, executor=workers)


def test_without_ray_the_error_says_what_to_install() -> None:
    code = ("import sys; sys.modules['ray'] = None\nimport dse\nfrom dse.evaluation.evaluator import Evaluator\n"
            "try: Evaluator(None, None, executor='ray')\nexcept dse.DseError as exc: print(exc)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert "pip install 'dse-compiler[ray]'" in done.stdout and "DSE100" in done.stdout
    for bad in ("spark", 7, None, LocalExecutor):
        with pytest.raises(UserError, match="No such executor"):
            Evaluator(counting(), None, executor=bad)  # type: ignore[arg-type]
