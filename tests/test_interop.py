"""Programs as dspy modules: what dspy's optimizers and evaluation do to one, and what it then sends."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import dse
from dse.errors import EnvironmentRequired, InputError, RunFailed
from dse.evaluation.environment import World
from dse.testing import worlds
from dse.testing.scripted import ScriptedEngine, ScriptedModel, call, say
from dse.testing.worlds import NAME, AskWarehouse, PlantedWorld

WORLD = PlantedWorld({"direct": 0.5, "tool_call": 1.0, "code": 1.0}, clusters=20)
ROWS = WORLD.dataset().split("search")
COUNTING = [row for row in ROWS if not row.reserved]
RESERVING = [row for row in ROWS if row.reserved]


@pytest.fixture(autouse=True)
def quiet_settings() -> Iterator[None]:
    with dspy.context(lm=None, trace=None):
        yield


def module(mode: str, model: Any = None, *, environment: Any = worlds.warehouse, **options: Any) -> Any:
    return dse.Program(AskWarehouse, mode, lm=model or WORLD.model(), **options).as_dspy(environment=environment)


def examples(rows: Any) -> list[dspy.Example]:
    return [dspy.Example(request=row.request, left=row.left).with_inputs("request") for row in rows]


def right(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(prediction.left == example.left)


# ---- running ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["tool_call", "code", "direct"])
def test_a_forward_gives_the_outputs(mode: str) -> None:
    row = next(r for r in COUNTING if WORLD.solves(mode, r.request))
    prediction = module(mode)(request=row.request)
    assert isinstance(prediction, dspy.Prediction) and dict(prediction) == {"left": row.left}


def test_a_forward_can_be_awaited() -> None:
    import asyncio

    prediction = asyncio.run(module("tool_call").acall(request=COUNTING[0].request))
    assert prediction.left == COUNTING[0].left


def test_inputs_and_failures_are_refused_as_everywhere() -> None:
    with pytest.raises(InputError):
        module("direct")(question="?")
    with pytest.raises(RunFailed):
        module("direct", ScriptedModel(lambda request: say("no")))(request=COUNTING[0].request)


def test_write_tools_need_an_environment_which_is_entered_anew_each_time() -> None:
    with pytest.raises(EnvironmentRequired, match="reserve"):
        module("tool_call", environment=None)
    made: list[Any] = []

    def factory(example: Any) -> Any:
        world = worlds.Warehouse(worlds._item_of(example.inputs["request"]))
        made.append((example, world))
        yield World(deps=world)

    row, one = RESERVING[0], module("tool_call", environment=factory)
    assert [one(request=row.request).left for _ in range(2)] == [row.left] * 2
    assert len(made) == 2 and [world.reserved for _, world in made] == [row.reserved] * 2
    assert made[0][0].labels == {} and made[0][0].meta == {}
    reading = dse.Program(AskWarehouse, dse.Program(AskWarehouse, "tool_call", lm=WORLD.model()).plan.narrowed(["find_item", "get_stock"]),
                          lm=WORLD.model(), deps=worlds.Warehouse(worlds._item_of(COUNTING[0].request)))  # fmt: skip
    assert reading.as_dspy()(request=COUNTING[0].request).left == COUNTING[0].left


def test_tools_of_the_world_and_its_decisions_are_used() -> None:
    def get_weather(city: str) -> str:
        return f"snow in {city}"

    def reply(request: Any) -> Any:
        told = [m["content"] for m in request["messages"] if m["role"] == "tool"]
        return call(("submit", {"left": len(told[0])})) if told else call(("get_weather", {"city": "Oslo"}))

    one = module("tool_call", ScriptedModel(reply), environment=lambda example: World(tools={"get_weather": get_weather}))
    assert one(request="?").left == len("snow in Oslo")


@pytest.mark.parametrize("in_world", [True, False])
def test_a_rate_refuses_no_row_for_the_rows_before_it(in_world: bool) -> None:
    @dse.tool(effect="pure", rate=(1, 3600.0 if in_world else 0.05), timeout_s=0.04)
    def length(text: str) -> int:
        """Of a text."""
        return len(text)

    class Measure(dse.Signature):
        """How long is it?"""

        text: str = dse.InputField()
        long: int = dse.OutputField()
        tools = [length]

    def reply(request: Any) -> Any:
        told = [m["content"] for m in request["messages"] if m["role"] == "tool"]
        return call(("submit", {"long": int(told[0])})) if told else call(("length", {"text": "abc"}))

    def in_the_world(text: str) -> int:
        return len(text)

    environment = (lambda example: World(tools={"length": in_the_world})) if in_world else None
    one = dse.Program(Measure, "tool_call", lm=ScriptedModel(reply)).as_dspy(environment=environment)
    rows = [dspy.Example(text=str(n)).with_inputs("text") for n in range(4)]
    scored = dspy.Evaluate(devset=rows, metric=lambda example, made, trace=None: made.long == 3, num_threads=2, display_progress=False)
    assert scored(one).score == 100.0


# ---- what dspy may change ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, predictor", [("direct", "answer"), ("tool_call", "act"), ("code", "code")])
def test_the_trace_holds_each_predictor_that_was_asked(mode: str, predictor: str) -> None:
    one = module(mode)
    assert [name for name, _ in one.named_predictors()] == [predictor]
    with dspy.context(trace=[]):
        one(request=COUNTING[0].request)
        ((asked, inputs, outputs),) = dspy.settings.trace
    assert asked is getattr(one, predictor) and inputs["request"] == COUNTING[0].request
    assert set(asked.signature.output_fields) == set(outputs.keys())


@pytest.mark.parametrize("mode, predictor", [("direct", "answer"), ("tool_call", "act"), ("code", "code")])
def test_an_edited_prompt_is_what_is_sent(mode: str, predictor: str) -> None:
    model = WORLD.model()
    one = module(mode, model)
    predict = getattr(one, predictor)
    predict.signature = predict.signature.with_instructions("Count very, very carefully.")  # what COPRO and MIPRO do
    one(request=COUNTING[0].request)
    assert "Count very, very carefully." in model.requests[0]["messages"][0]["content"]
    assert one.current_plan().prompts[predictor].instructions == "Count very, very carefully."
    assert one.current_plan().mode == mode and set(one.current_plan().allow) == (set() if mode == "direct" else set(AskWarehouse.spec().tool_names))


@pytest.mark.parametrize("mode, predictor", [("direct", "answer"), ("tool_call", "act"), ("code", "code")])
def test_bootstrap_few_shot_puts_its_demonstrations_into_the_prompt(mode: str, predictor: str) -> None:
    model = WORLD.model()
    student = module(mode, model)
    rows = [r for r in COUNTING if WORLD.solves(mode, r.request)][:2]
    optimizer = dspy.BootstrapFewShot(metric=right, max_bootstrapped_demos=2, max_labeled_demos=0)
    better = optimizer.compile(student, trainset=examples(rows))
    demos = better.current_plan().prompts[predictor].demos
    assert len(demos) == 2 and student.current_plan().prompts[predictor].demos == ()
    before = len(model.requests)
    new = next(r for r in COUNTING if r not in rows and WORLD.solves(mode, r.request))
    assert better(request=new.request).left == new.left
    sent = str(model.requests[before]["messages"])
    assert all(row.request in sent for row in rows)
    plan = better.current_plan()
    again = dse.Program(AskWarehouse, plan, lm=model).as_dspy(environment=worlds.warehouse)
    assert again.current_plan() == plan, "an optimized plan is a plan"


def test_labelled_examples_as_demonstrations() -> None:
    model = WORLD.model()
    student = dspy.LabeledFewShot(k=2).compile(module("tool_call", model), trainset=examples(COUNTING[:2]))
    assert student(request=COUNTING[2].request).left == COUNTING[2].left
    shown = [c for m in model.requests[0]["messages"] for c in m.get("tool_calls", ())]
    assert [c["arguments"] for c in shown if c["name"] == "submit"] == [{"left": d.left} for d in student.act.demos]


def test_evaluate_runs_the_module_and_counts_failures_as_zero() -> None:
    rows = COUNTING[:4]
    evaluate = dspy.Evaluate(devset=examples(rows), metric=right, num_threads=2, display_progress=False, failure_score=0.0, max_errors=99)
    expected = sum(WORLD.solves("direct", r.request) for r in rows) / len(rows) * 100
    assert evaluate(module("direct")).score == pytest.approx(expected)
    assert evaluate(module("tool_call")).score == 100.0

    def sometimes(request: Any) -> Any:
        return say("no") if rows[0].request in str(request["messages"]) else WORLD.reply(request)

    assert evaluate(module("tool_call", ScriptedModel(sometimes, NAME))).score == 75.0


def test_another_model_can_be_set() -> None:
    own, engine = WORLD.model(), ScriptedEngine(lambda request: say("[[ ## left ## ]]\n1234"))
    one = module("direct", own)
    one.set_lm(dspy.LM("scripted/engine", engine=engine, async_engine=engine.twin(), cache=False))
    assert one(request=COUNTING[0].request).left == 1234 and own.requests == []
    with dspy.context(lm=dspy.LM("scripted/engine", engine=engine, async_engine=engine.twin(), cache=False)):
        module("direct", own)(request=COUNTING[0].request)
    assert len(own.requests) == 1, "dspy.settings.lm is not used"


# ---- copies -----------------------------------------------------------------------------------------------


def test_copies_share_the_program_and_nothing_else() -> None:
    model = WORLD.model()
    one = module("direct", model)
    other, clean = one.deepcopy(), one.reset_copy()
    other.answer.signature = other.answer.signature.with_instructions("Otherwise.")
    other.answer.demos = [{"request": "r", "left": 1}]
    assert one.current_plan() == clean.current_plan() != other.current_plan()
    for copy in (one, other, clean):
        copy(request=COUNTING[0].request)
    assert len(model.requests) == 3 and "Otherwise." in model.requests[1]["messages"][0]["content"]
    assert one.answer is not other.answer is not clean.answer


def test_state_is_saved_loaded_and_pickled(tmp_path: Path) -> None:
    one = module("direct")
    one.answer.signature = one.answer.signature.with_instructions("Saved.")
    one.answer.demos = [dspy.Example(request="r", left=1)]
    one.save(tmp_path / "state.json")
    other = module("direct")
    other.load(tmp_path / "state.json")
    assert other.current_plan() == one.current_plan() != module("direct").current_plan()
    state = pickle.loads(pickle.dumps(one.dump_state()))
    third = module("direct")
    third.load_state(state)
    assert third.current_plan() == one.current_plan()
