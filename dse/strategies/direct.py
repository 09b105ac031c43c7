"""Mode ``direct``: one predictor, typed outputs, bounded repair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from dse.contracts.signature import SignatureSpec, dspy_signature, validation_summary
from dse.plan import Prompt
from dse.runtime.run import Run
from dse.strategies.base import register
from dse.strategies.render import Predictor

__all__ = ["Direct"]


class Direct:
    mode = "direct"
    needs_model = True

    def fits(self, spec: SignatureSpec) -> bool:
        return True

    def seed_prompts(self, spec: SignatureSpec) -> dict[str, Prompt]:
        return {"answer": Prompt(instructions=spec.instructions)}

    def predictors(self, spec: SignatureSpec) -> dict[str, Any]:
        return {"answer": dspy_signature(spec)}

    def demo(self, journal: Iterable[Mapping[str, Any]], spec: SignatureSpec, inputs: Mapping[str, Any],
             outputs: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:  # fmt: skip
        return {"answer": {**inputs, **outputs}}

    async def run(self, run: Run) -> dict[str, Any]:
        predictor = Predictor("answer", dspy_signature(run.spec), run.plan.prompts["answer"])
        messages = predictor.messages(run.wire_inputs)
        problem = ""
        for _ in range(run.limits.repairs + 1):
            completion = await run.complete({"messages": messages, "tools": []}, predictor="answer")
            text = completion.text or ""
            try:
                outputs = await run.accept_outputs(predictor.parse(text))
            except ValidationError as exc:
                problem = validation_summary(exc)
            except ValueError as exc:
                problem = str(exc)
            else:
                if run.trace:
                    run.trace("answer", dict(run.inputs), outputs)
                return outputs
            run.journal.add("repair", predictor="answer", problem=problem)
            messages = [
                *messages,
                {"role": "assistant", "content": text},
                {"role": "user", "content": f"That reply cannot be used: {problem}\nAnswer again in the required format."},
            ]
        raise run.invalid(problem)


register(Direct())
