"""Programs as ``dspy.Module``: dspy's optimizers and ``dspy.Evaluate`` can drive the predictors of a plan.

The module's ``dspy.Predict`` objects hold instructions and demos; a forward runs the program with whatever
they hold at that moment and reports each model call to dspy's trace. Tools still go through the dispatcher.
"""

from __future__ import annotations

import copy
from typing import Any

import dspy

from dse.errors import EnvironmentRequired
from dse.evaluation.environment import Environment
from dse.evaluation.rows import Example
from dse.plan import Plan, Prompt
from dse.portal import run_sync
from dse.strategies.base import predictors

__all__ = ["DseModule", "as_dspy"]


class DseModule(dspy.Module):  # type: ignore[misc]
    """A program as a dspy module. Inputs as keywords; gives a ``dspy.Prediction`` of the outputs.

    It asks the program's own model, or the one given by ``set_lm``; ``dspy.settings.lm`` is not used. An environment's
    factory gets an example with the inputs of the call and nothing else.

    A forward is an evaluation: a tool's rate refuses a call for the calls of its own run only, as everywhere where runs are
    measured. What others take of the rate is waited for, and is nobody's active time; tools of the environment's own do not
    wait for it.
    """

    def __init__(self, program: Any, environment: Environment | None = None) -> None:
        super().__init__()
        self._program = _Shared(program)
        self._environment = _Shared(environment)
        prompts = program.plan.components
        for name, signature in predictors(program.spec, program.plan).items():
            prompt = prompts[name]
            predict = dspy.Predict(signature.with_instructions(prompt.instructions))
            predict.demos = [dict(demo) for demo in prompt.demos]
            setattr(self, name, predict)

    def current_plan(self) -> Plan:
        """The plan with the instructions and demos that the predictors hold now."""
        program = self._program.value
        prompts = {}
        for name in program.plan.components:
            predict = getattr(self, name)
            demos = tuple(_plain(demo) for demo in predict.demos)
            prompts[name] = Prompt(instructions=predict.signature.instructions, demos=demos)
        plan: Plan = program.plan.with_prompts(prompts)
        return plan

    def forward(self, **inputs: Any) -> dspy.Prediction:
        return run_sync(self._forward, inputs, dspy.settings.trace)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        return await self._forward(inputs, dspy.settings.trace)

    async def _forward(self, inputs: dict[str, Any], trace: list[Any] | None) -> dspy.Prediction:
        from dse.program import Program

        base = self._program.value
        chosen = next((predict.lm for predict in self.predictors() if predict.lm is not None), base.lm)  # set_lm(...)
        program = Program(base.signature, self.current_plan(), lm=chosen, toolbox=base.toolbox, deps=base.deps,
                          approve=base.approve, middleware=base.middleware, store=base.store, checks=tuple(base.checks.values()))  # fmt: skip
        run = program.new_run(inputs, evaluation=True)
        if trace is not None:
            def traced(name: str, given: Any, outputs: Any) -> None:
                stage = f"stage{run.stages[-1]['number']}_" if run.stages else ""
                trace.append((getattr(self, stage + name), given, dspy.Prediction(**outputs)))

            run.trace = traced
        environment = self._environment.value
        if environment is None:
            made = await program.execute(run)
        else:
            # dspy hands over the inputs only: the world cannot depend on labels or meta fields.
            example = Example(run.run_id, run.wire_inputs)
            async with environment.enter(example) as world:
                approve = world.approve or (lambda _: True)
                made = await program.execute(run, deps=world.deps, toolbox=world.bound(program.toolbox), approve=approve,
                                             middleware=world.middleware)  # fmt: skip
        return dspy.Prediction(**{name: getattr(made, name) for name in program.spec.outputs})


class _Shared:
    """Kept by reference when a module is copied: models, pools and stores are not data."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def __copy__(self) -> _Shared:
        return self


def _plain(demo: Any) -> dict[str, Any]:
    """A demo as plain data: dspy's optimizers add examples and predictions with typed values."""
    from pydantic import TypeAdapter

    data = dict(demo.items()) if hasattr(demo, "items") else dict(demo)
    data.pop("augmented", None)
    return {k: TypeAdapter(Any).dump_python(v, mode="json") for k, v in copy.copy(data).items()}


def as_dspy(program: Any, environment: Any = None) -> DseModule:
    """See `Program.as_dspy`."""
    if environment is not None and not isinstance(environment, Environment):
        from dse.evaluation.environment import environment as declare

        environment = declare(environment)
    writes = [n for n in program.plan.allow if program.toolbox[n].contract.effect == "write"]
    if writes and environment is None:
        raise EnvironmentRequired("An optimizer would run write tools", value=", ".join(writes),
                                  remedy="Pass environment=, which is entered anew at every forward.")  # fmt: skip
    return DseModule(program, environment)


