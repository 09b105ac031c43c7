"""dspy's optimizers as sources of candidates.

An optimizer gets a dspy module of the mode's predictors, search rows as examples, and a metric. A forward is a rollout
of the search: with the row's own environment, stored, metered, scored by the task's metric. What an optimizer asks its
language model for goes to the reflection model of the search. What it leaves in the predictors becomes a plan.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from dse.canonical import canonical_json, digest, parse_json
from dse.compiler import feedback
from dse.compiler.bridge import Bridge, in_thread
from dse.compiler.evolve import divided, reach
from dse.compiler.prompts import MAX_DEMO_BYTES
from dse.compiler.prune import text_problem
from dse.compiler.search import Proposal, Search
from dse.compiler.secrets import secrets_of
from dse.errors import DseError, UserError
from dse.evaluation.dataset import Example
from dse.evaluation.evaluator import RolloutRecord
from dse.interop import _plain, _Shared
from dse.plan import Plan, Prompt
from dse.redaction import safe_message
from dse.strategies.base import seed_plan, strategy

__all__ = ["DspyOptimizer"]


@dataclass(frozen=True)
class DspyOptimizer:
    """Proposes, per mode, what an optimizer of dspy makes of the seed plan.

    Only demonstrations from rollouts of this search that solved their row are kept, while it works as in what comes out:
    the optimizers themselves also take steps of runs that failed, and labelled rows that nobody ran.

    Args:
        factory: makes the optimizer from a metric: ``lambda metric: dspy.MIPROv2(metric=metric, auto="light")``.
        name: of the source and of what it proposes.
        modes: to work on; default all of the search.
        compile: further arguments of the optimizer's ``compile``. ``trainset``, and ``valset`` and ``seed`` where it takes
            them, come from the search: half of the search rows each.

    Raises (when it proposes):
        UserError: the optimizer failed, or a package that it needs is missing.
    """

    factory: Callable[[Callable[..., Any]], Any]
    name: str = "dspy"
    modes: tuple[str, ...] | None = None
    compile: Mapping[str, Any] = field(default_factory=dict)

    async def propose(self, search: Search) -> Sequence[Proposal]:
        proposals = []
        for mode in search.modes:
            if (self.modes is not None and mode not in self.modes) or not strategy(mode).seed_prompts(search.spec):
                continue
            base = seed_plan(search.spec, mode, reach(search, mode), search.limits)
            try:
                plan, rows = await in_thread(functools.partial(self._run, search, base), f"{self.name}-{mode}")
            except DseError:
                raise
            except ImportError as exc:
                missing = next((n for n in ("optuna", "numpy") if n in str(exc)), exc.name or "a package")
                raise UserError(f"{self.name} needs {missing}, which is not installed", value=safe_message(exc),
                                remedy=f"pip install {missing}, or leave {self.name} out.") from exc  # fmt: skip
            except Exception as exc:
                raise UserError(f"{self.name} failed on mode {mode!r}", value=safe_message(exc),
                                remedy="Correct its arguments, or leave it out.") from exc  # fmt: skip
            problems = [text_problem(prompt.instructions, search.spec) for prompt in plan.prompts.values()]
            if plan.plan_id == base.plan_id or any(problems):
                search.say(f"{self.name}: {mode}: {next(filter(None, problems), 'nothing but the seed plan')}: not proposed")
                continue
            note = f"{self.name} in {mode}: {len(rows)} demonstrations, each from a search rollout that solved its row"
            proposals.append(Proposal(plan, self.name, rows, (note,)))
        return proposals

    def _run(self, search: Search, base: Plan, bridge: Bridge) -> tuple[Plan, tuple[str, ...]]:
        """The optimizer, in a thread."""
        link = _Link(search, base, bridge)
        lm = dspy.LM("dse/reflection", engine=_Reflection(link), cache=False, num_retries=0, temperature=1.0)
        with dspy.context(lm=lm, disable_history=True, trace=[]):
            optimizer = self.factory(link.metric)
            takes = inspect.signature(optimizer.compile).parameters
            given: dict[str, Any] = dict(self.compile)
            learn: Sequence[Example] = search.rows
            if "valset" in takes and len(search.rows) > 1:
                learn, validate = divided(search.rows, len(search.rows) // 2, search.seed)
                given.setdefault("valset", [link.example(row) for row in validate])
            if "seed" in takes:
                given.setdefault("seed", search.seed)
            module = optimizer.compile(_Searched(link), trainset=[link.example(row) for row in learn], **given)
            plan: Plan = module.current_plan()
        demos = [demo for prompt in plan.prompts.values() for demo in prompt.demos]
        return plan, tuple(dict.fromkeys(link.verified[digest(demo)] for demo in demos))


class _Link:
    """What a module needs of the search. Shared by all its copies."""

    def __init__(self, search: Search, base: Plan, bridge: Bridge) -> None:
        self.search, self.base, self.bridge = search, base, bridge
        self.verified: dict[str, str] = {}  # digest of a demonstration -> hash of the row that its run solved
        self.rows = {self._key(self.example(row)): row for row in reversed(search.rows)}
        self.by_inputs = {digest(row.inputs): row for row in reversed(search.rows)}

    def example(self, row: Example) -> dspy.Example:
        return dspy.Example(**{**row.labels, **row.inputs}).with_inputs(*row.inputs)

    def _key(self, example: Any) -> str:
        return digest({name: value for name, value in example.items() if name != "augmented"})

    def rollout(self, plan: Plan, row: Example, replicate: int) -> RolloutRecord:
        plans = {f"{plan.mode}/reach/dspy": plan}
        return self.bridge.call(self.search.evaluate, plans, [row], None, replicate=replicate)[0]

    def metric(self, example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        """The task's score of the rollout behind a prediction; while demonstrations are gathered, whether it is solved."""
        ran = prediction.get("dse_ran")
        row = self.rows[self._key(example)]
        record = ran.value[0]
        if record.row_hash != row.row_hash:  # rows of equal inputs have different labels
            record = self.rollout(ran.value[1], row, ran.value[2])
        if pred_name is not None or pred_trace is not None:
            return dspy.Prediction(score=record.score, feedback=feedback.described(record, row, self.search.spec))
        return record.score >= self.search.success if trace is not None else record.score

    def shown(self, record: RolloutRecord, row: Example) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """Inputs and outputs of each predictor for dspy's trace; those of a solved run are remembered as verified."""
        spec, one = self.search.spec, strategy(self.base.mode)
        secrets = secrets_of(record, spec, row)
        if record.outcome == "ok" and record.score >= self.search.success:
            demo = one.demo(record.journal, spec, row.inputs, record.outputs or {})
            if demo is not None and len(text := canonical_json(secrets.hide(demo))) <= MAX_DEMO_BYTES:
                plain: dict[str, dict[str, Any]] = parse_json(text)
                for fields in plain.values():
                    self.verified.setdefault(digest(fields), row.row_hash)
                last = {name: next(reversed([k for k in fields if k in ("outputs", "code", *spec.outputs)])) for name, fields in plain.items()}
                return {name: ({k: v for k, v in fields.items() if k != last[name]}, {last[name]: fields[last[name]]})
                        for name, fields in plain.items()}  # fmt: skip
        said = {"what_happened": feedback.described(record, row, spec)}
        return {name: (secrets.hide(row.inputs), said) for name in self.base.prompts}


class _Searched(dspy.Module):  # type: ignore[misc]
    """The predictors of a mode; a forward runs the plan that they hold on the search row with these inputs."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = _Shared(link)
        for name, signature in strategy(link.base.mode).predictors(link.search.spec).items():
            setattr(self, name, dspy.Predict(signature.with_instructions(link.base.prompts[name].instructions)))

    def current_plan(self) -> Plan:
        """The plan with the instructions and the verified demonstrations that the predictors hold now."""
        link: _Link = self._link.value
        prompts = {}
        for name in link.base.prompts:
            predict = getattr(self, name)
            demos = [parse_json(canonical_json(_plain(demo))) for demo in predict.demos]
            kept = {digest(demo): demo for demo in demos if digest(demo) in link.verified}
            prompts[name] = Prompt(instructions=predict.signature.instructions, demos=tuple(kept.values())).model_dump()
        return Plan.model_validate({**link.base.model_dump(), "prompts": prompts})

    def forward(self, **inputs: Any) -> dspy.Prediction:
        link: _Link = self._link.value
        plan, row = self.current_plan(), link.by_inputs[digest(inputs)]
        asked = next((predict.lm for predict in self.predictors() if predict.lm is not None), dspy.settings.lm)
        replicate = int(asked.kwargs.get("rollout_id") or 0)
        record = link.rollout(plan, row, replicate)
        if dspy.settings.trace is not None:
            for name, (given, outputs) in link.shown(record, row).items():
                dspy.settings.trace.append((getattr(self, name), given, dspy.Prediction(**outputs)))
        prediction = dspy.Prediction(**(record.outputs or dict.fromkeys(link.search.spec.outputs)))
        prediction["dse_ran"] = _Shared((record, plan, replicate))
        return prediction


class _Reflection:
    """An engine whose every request goes to the reflection model."""

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = False
    supported_params = frozenset(("temperature", "max_tokens"))

    def __init__(self, link: _Link) -> None:
        self._link = link

    def complete(self, request: Any) -> Any:
        from dspy import lm15

        from dse.models.engines import request_from_lm15

        messages = request_from_lm15(request)["messages"]
        text = self._link.bridge.call(self._link.search.reflect, "\n\n".join(m["content"] or "" for m in messages))
        return lm15.Response(id=None, model=request.model, message=lm15.Message("assistant", (lm15.TextPart(text),)),
                             finish_reason="stop", usage=lm15.Usage(input_tokens=0, output_tokens=0))  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reflection:
        return self
