"""Programs as dspy modules: dspy's own tools drive them."""

from __future__ import annotations

import copy
from typing import Any

import dspy
import pytest

import dse
from dse.errors import EnvironmentRequired
from dse.testing.scripted import ScriptedModel, say
from dse.testing.worlds import PlantedWorld, warehouse

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Shout(dse.Signature):
    """Repeat the word in capitals."""

    word: str = dse.InputField(desc="any word")
    loud: str = dse.OutputField(desc="the word, louder")


def answer(request: Any) -> Any:
    """Right only when the instructions or a demonstration say how."""
    text = "\n".join(str(m["content"]) for m in request["messages"])
    word = request["messages"][-1]["content"].split("[[ ## word ## ]]\n")[1].split("\n")[0]
    told = "CAPITALS!" in text or len(request["messages"]) > 2
    return say(f"[[ ## loud ## ]]\n{word.upper() if told else word}\n\n[[ ## completed ## ]]")


@pytest.fixture
def program() -> dse.Program:
    return dse.Program(Shout, "direct", lm=ScriptedModel(answer))


TRAIN = [dspy.Example(word=w, loud=w.upper()).with_inputs("word") for w in ("a", "BE", "see", "DO")]


def test_forward_gives_the_outputs_and_the_predictors_are_dspys(program: dse.Program) -> None:
    module = program.as_dspy()
    assert module(word="hi").loud == "hi"
    assert [name for name, _ in module.named_predictors()] == ["answer"]
    assert isinstance(module.answer, dspy.Predict) and module.answer.signature.instructions == "Repeat the word in capitals."


def test_edited_instructions_reach_the_model(program: dse.Program) -> None:
    module = program.as_dspy()
    module.answer.signature = module.answer.signature.with_instructions("CAPITALS!")
    assert module(word="hi").loud == "HI"
    assert module.current_plan().prompts["answer"].instructions == "CAPITALS!"
    assert program(word="hi").loud == "hi", "the program itself is not changed"


def test_bootstrap_few_shot_finds_demonstrations(program: dse.Program) -> None:
    optimizer = dspy.BootstrapFewShot(metric=lambda gold, pred, trace=None: gold.loud == pred.loud, max_bootstrapped_demos=2,
                                      max_labeled_demos=0)  # fmt: skip
    with dspy.context(lm=dspy.LM("openai/none", api_key="none", cache=False)):
        better = optimizer.compile(program.as_dspy(), trainset=TRAIN)
    assert {demo["word"] for demo in better.answer.demos} == {"BE", "DO"}, "only rows that were right without help"
    assert better(word="hi").loud == "HI"


def test_dspy_evaluate_runs_it(program: dse.Program) -> None:
    evaluate = dspy.Evaluate(devset=TRAIN, metric=lambda gold, pred: gold.loud == pred.loud, num_threads=2, display_progress=False)
    assert evaluate(program.as_dspy()).score == 50.0


def test_copies_share_the_model_and_nothing_else(program: dse.Program) -> None:
    module = program.as_dspy()
    other = module.deepcopy()
    third = copy.deepcopy(module)
    other.answer.signature = other.answer.signature.with_instructions("CAPITALS!")
    assert (module(word="x").loud, other(word="x").loud, third(word="x").loud) == ("x", "X", "x")


def test_the_trace_names_the_predictor(program: dse.Program) -> None:
    module = program.as_dspy()
    with dspy.context(trace=[]):
        module(word="hi")
        (entry,) = dspy.settings.trace
    assert entry[0] is module.answer and entry[1] == {"word": "hi"} and entry[2].loud == "hi"


def test_write_tools_need_an_environment_entered_anew_each_time() -> None:
    world = PlantedWorld({"code": 1.0, "tool_call": 1.0})
    request = next(row["request"] for row in world.rows() if row["reserved"])
    program = dse.Program(world.task().signature, "tool_call", lm=world.model())
    with pytest.raises(EnvironmentRequired):
        program.as_dspy()
    entered = []

    def counted(example: Any) -> Any:
        entered.append(example.request)
        yield from warehouse.factory(example)

    module = program.as_dspy(environment=counted)
    first, second = module(request=request), module(request=request)
    assert first.left == second.left, "the second forward sees a fresh world"
    assert entered == [request, request]
