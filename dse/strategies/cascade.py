"""Mode ``cascade``: plans one after the other, until one gives an answer that is accepted.

The rule is data in the plan. ``knobs["escalate"]`` names what hands a run over to the next stage:

``abstain``     the stage's script called ``abstain()``.
``exception``   the stage failed in another way than by its outputs. A limit that was hit counts where its outcome is
                ``fail_step``; ``abort`` ends the run, ``retry`` starts it again at its first stage.
``validation``  the stage gave no outputs that fit the signature.
``check``       a check of the user, named in ``knobs["check"]``, did not accept the outputs. The last stage is not
                checked: nobody comes after it.

Failures of the infrastructure and waits for a decision never escalate. Journal, receipt, meter and limits are those of
one run. While a stage runs, its own allow-list holds.

THE RULE OF EFFECTS. A stage hands over only while every write that has completed, or of which nobody knows whether it
did, is idempotent; otherwise the run fails with outcome ``fail_step``. So that no run has to end there, a plan is
refused whose stages before the last could have made such a write when they hand over. They may allow a write that is
not idempotent only if all of this holds: the stage is a ``script``; the plan escalates on abstention alone (an error, a
limit, an answer that does not fit or a check can always come after the write); and the script abstains only in
statements of its top level before the first that names such a tool, by calling ``abstain`` directly.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dse.contracts.check import Check
from dse.contracts.signature import SignatureSpec
from dse.contracts.tool import ToolContract
from dse.errors import Abstained, DseError, LimitExceeded, NoSubmission, OutputInvalid, PlanError, RunFailed
from dse.plan import ESCALATIONS, Plan, Prompt
from dse.runtime.run import Run
from dse.runtime.sandbox.source import parse
from dse.strategies.base import check_plan, needs_model, register, strategy
from dse.strategies.base import predictors as predictors_of_plan

__all__ = ["Cascade"]

_KNOBS = ("escalate", "check")


class Cascade:
    mode = "cascade"
    needs_model = True
    seeded = False

    def fits(self, spec: SignatureSpec) -> bool:
        return True

    def needs(self, plan: Plan) -> bool:
        return any(needs_model(stage) for stage in plan.stages)

    def seed_prompts(self, spec: SignatureSpec) -> dict[str, Prompt]:
        return {}

    def predictors(self, spec: SignatureSpec) -> dict[str, Any]:
        return {}

    def predictors_of(self, spec: SignatureSpec, plan: Plan) -> dict[str, Any]:
        return {f"stage{number}_{name}": one for number, stage in enumerate(plan.stages, 1)
                for name, one in predictors_of_plan(spec, stage).items()}  # fmt: skip

    def demo(self, journal: Iterable[Mapping[str, Any]], spec: SignatureSpec, inputs: Mapping[str, Any],
             outputs: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:  # fmt: skip
        """What the stage that gave the answer has to show."""
        mode, number, mine = "", 0, []
        for entry in journal:
            if entry["kind"] == "stage":
                mode, number, mine = entry["mode"], entry["number"], []
            else:
                mine.append(entry)
        shown = strategy(mode).demo(mine, spec, inputs, outputs) if mode else None
        return None if shown is None else {f"stage{number}_{name}": demo for name, demo in shown.items()}

    def check(self, spec: SignatureSpec, plan: Plan) -> None:
        """Refuse a plan that is no cascade, or that could break the rule of effects.

        Raises:
            PlanError
        """
        if len(plan.stages) < 2:
            raise PlanError("A cascade has at least two stages", value=len(plan.stages), remedy="Make one with Plan.cascade.")
        for stage in plan.stages:
            if stage.mode == "cascade":
                raise PlanError("A stage of a cascade is no cascade", remedy="List all stages in one plan.")
            if stage.limits != plan.limits:
                raise PlanError("The limits of a cascade are those of all of its stages", value=stage.mode,
                                remedy="Make the plan with Plan.cascade(..., limits=...).")  # fmt: skip
            check_plan(spec, stage)
        union = sorted({name for stage in plan.stages for name in stage.allow})
        if list(plan.allow) != union:
            raise PlanError("The allow-list of a cascade is what its stages allow together", value=", ".join(plan.allow),
                            remedy=f"It has to be: {', '.join(union) or 'empty'}.")  # fmt: skip
        _check_knobs(plan)
        _check_effects(plan, {tool.name: tool.contract for tool in spec.tools})

    def prepare(self, spec: SignatureSpec, plan: Plan, contracts: Mapping[str, ToolContract],
                checks: Mapping[str, Check]) -> None:  # fmt: skip
        """The same with the tools that are bound now (their policy may be stricter than the declared one) and the checks.

        Raises:
            PlanError, ContractError, SandboxUnavailable
        """
        _check_effects(plan, contracts)
        _check_bound(plan, checks)
        for stage in plan.stages:
            own = getattr(strategy(stage.mode), "prepare", None)
            if own is not None:
                own(spec, stage, contracts, checks)

    async def run(self, run: Run) -> dict[str, Any]:
        plan = run.plan
        run.stages.clear()
        try:
            for number, stage in enumerate(plan.stages, 1):
                outputs = await _Stage(run, plan, number, stage).run_it()
                if outputs is not None:
                    return outputs
        finally:
            run.plan = plan
        raise AssertionError("the last stage answers or fails")


register(Cascade())


class _Stage:
    """One stage of one run."""

    def __init__(self, run: Run, plan: Plan, number: int, stage: Plan) -> None:
        self.run, self.plan, self.number, self.stage = run, plan, number, stage
        self.last = number == len(plan.stages)
        self.entry: dict[str, Any] = {"number": number, "mode": stage.mode, "ended": "stopped", "escalated": False,
                                      "code": None, "reason": None}  # fmt: skip

    async def run_it(self) -> dict[str, Any] | None:
        """Outputs; None where the next stage takes over.

        Raises:
            DseError: it failed, and nobody takes over.
        """
        run = self.run
        run.stages.append(self.entry)
        began = run.journal.add("stage", number=self.number, mode=self.stage.mode)
        run.plan = self.stage
        run.dispatcher.begin_stage(self.stage.allow)
        frozen, hidden = run.frozen, not self._holds(began)
        if hidden:
            run.frozen = None
        try:
            outputs = await strategy(self.stage.mode).run(run)
            if self.last or await self._accepted(outputs):
                self._end("accepted", None, False)
                return outputs
            kind, failure = "check", RunFailed("The check did not accept the outputs", value=self.plan.knobs["check"]["name"],
                                               remedy="See the run's receipt.")  # fmt: skip
        except RunFailed as exc:
            found, failure = _kind(exc), exc
            if found is None:
                self._note("stopped", exc)
                raise
            kind = found
        except DseError as exc:
            self._note("stopped", exc)
            raise
        finally:
            if hidden and run.frozen is None:
                run.frozen = frozen
        escalates = not self.last and kind in self.plan.knobs["escalate"]
        if escalates and not run.effects.repeatable:
            failure.details["outcome"] = "fail_step"
            failure.remedy = f"Nothing was tried again, because of its effects: {run.effects.summary()}."
            escalates = False
        self._end(kind, failure, escalates)
        if not escalates:
            raise failure
        return None

    def _holds(self, began: Mapping[str, Any]) -> bool:
        """Whether the guest to go on with was kept in this stage."""
        run = self.run
        if run.frozen is None or run.frozen.seq <= began["seq"]:
            return False
        path = run.journal.recording.path if run.journal.recording is not None else ()
        return not any(entry["kind"] == "stage_ended" and began["seq"] < entry["seq"] < run.frozen.seq for entry in path)

    async def _accepted(self, outputs: dict[str, Any]) -> bool:
        run, named = self.run, self.plan.knobs.get("check")
        if named is None:
            return True
        recorded = run.recorded("checked")
        if recorded is None:
            inputs, typed = run.spec.validate_inputs(run.wire_inputs), run.spec.validate_outputs(outputs)
            accepted = await run.checks[named["name"]].accepts(inputs, typed)
        else:
            accepted = recorded["accepted"]
        run.journal.add("checked", check=named["name"], accepted=accepted)
        return bool(accepted)

    def _note(self, ended: str, exc: DseError | None) -> None:
        if exc is not None:
            text = exc.what if exc.value is None else f"{exc.what}: {exc.value}"
            self.entry.update(code=exc.code, reason=text)
        self.entry["ended"] = ended

    def _end(self, ended: str, exc: DseError | None, escalated: bool) -> None:
        self._note(ended, exc)
        self.entry["escalated"] = escalated
        self.run.journal.add("stage_ended", number=self.number, ended=ended, code=self.entry["code"], escalated=escalated,
                             shown=self.entry["reason"])  # fmt: skip


def _kind(exc: RunFailed) -> str | None:
    """What a stage ended in; None for what ends the run."""
    if isinstance(exc, Abstained):
        return "abstain"
    if isinstance(exc, (OutputInvalid, NoSubmission)):
        return "validation"
    if isinstance(exc, LimitExceeded) and exc.details.get("outcome") != "fail_step":
        return None
    return "exception"


def _check_knobs(plan: Plan) -> None:
    if unknown := sorted(set(plan.knobs) - set(_KNOBS)):
        raise PlanError("A cascade has no such knobs", value=", ".join(unknown), remedy=f"It has: {', '.join(_KNOBS)}.")
    rule, named = plan.knobs.get("escalate"), plan.knobs.get("check")
    if not isinstance(rule, (list, tuple)) or not rule or not set(rule) <= set(ESCALATIONS) or len(set(rule)) < len(rule):
        raise PlanError("A cascade says what hands a run over", value=repr(rule),
                        remedy=f'Give knobs={{"escalate": [...]}} with some of: {", ".join(ESCALATIONS)}.')  # fmt: skip
    if ("check" in rule) != (named is not None):
        raise PlanError("A cascade that escalates on a check names it, and no other does", value=repr(named),
                        remedy='Give knobs={"check": {"name": ..., "revision": ...}}, or Plan.cascade(..., check=).')  # fmt: skip
    if named is not None and (not isinstance(named, Mapping) or set(named) != {"name", "revision"}
                              or not all(isinstance(text, str) and text for text in named.values())):  # fmt: skip
        raise PlanError("A check is named by name and revision", value=repr(named),
                        remedy='Give {"name": ..., "revision": ...}.')  # fmt: skip


def _check_bound(plan: Plan, checks: Mapping[str, Check]) -> None:
    named = plan.knobs.get("check")
    if named is None:
        return
    found = checks.get(named["name"])
    if found is None:
        raise PlanError("The plan's check is not given", value=named["name"], remedy="Pass checks=[function].")
    if found.revision != named["revision"]:
        raise PlanError("The check has another revision than the one that the plan was made with",
                        value=f"{found.name}: {found.revision}, not {named['revision']}",
                        remedy="Give the check as it was, or compile again with the new one.")  # fmt: skip


# --- the rule of effects, before anything runs


def _check_effects(plan: Plan, contracts: Mapping[str, ToolContract]) -> None:
    for number, stage in enumerate(plan.stages[:-1], 1):
        writes = {name for name in stage.allow if not contracts[name].repeatable}
        if not writes:
            continue
        shown = f"stage {number} ({stage.mode}): {', '.join(sorted(writes))}"
        if stage.mode != "script" or set(plan.knobs["escalate"]) != {"abstain"}:
            raise PlanError("A stage before the last could hand over after a write that must not be repeated", value=shown,
                            remedy="Put the stage last or leave the tool out of it; a script that is the only one to "
                                   'decide (escalate=["abstain"]) may write after its last abstain().')  # fmt: skip
        if problem := _abstains_late(stage.script or "", writes):
            raise PlanError(f"The script could abstain after a write that must not be repeated: {problem}", value=shown,
                            remedy="Call abstain() directly, in statements before the first that names the tool.")  # fmt: skip


def _abstains_late(source: str, writes: set[str]) -> str | None:
    """Why a script cannot be known to abstain before its writes only; None if it is."""
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "it cannot be parsed"
    written = False
    for statement in tree.body:  # type: ignore[attr-defined]
        names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        written = written or bool(names & writes)
        if "abstain" not in names:
            continue
        if written:
            return f"line {statement.lineno}"
        if any(isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)) for node in _around(statement)):
            return f"line {statement.lineno}: abstain() in a function"
        called = sum(isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "abstain"
                     for node in ast.walk(statement))  # fmt: skip
        named = sum(isinstance(node, ast.Name) and node.id == "abstain" for node in ast.walk(statement))
        if called != named:
            return f"line {statement.lineno}: abstain is not called directly"
    return None


def _around(statement: ast.AST) -> Iterator[ast.AST]:
    """Nodes of a statement that have an ``abstain`` below them."""
    for node in ast.walk(statement):
        if any(isinstance(one, ast.Name) and one.id == "abstain" for one in ast.walk(node)):
            yield node
