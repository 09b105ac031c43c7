"""Running a given script: no model, the same contracts, the same dispatcher, a receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dse.contracts.script import Script
from dse.contracts.signature import InputField, OutputField, Signature, SignatureSpec
from dse.contracts.toolbox import Toolbox
from dse.errors import InputError, PlanError, ScriptFailed
from dse.limits import Limits
from dse.plan import Plan, Prompt
from dse.portal import run_sync
from dse.program import Prediction, Program
from dse.runtime import sandbox
from dse.runtime.guest import GuestFailed, check, names_used, run_guest, script_problem
from dse.runtime.run import Run
from dse.strategies.base import register

__all__ = ["arun_script", "run_script", "script_of"]

MODE = "run_script"


class _Given:
    """Runs the script that is among the inputs. No mode for a signature of one's own."""

    mode = MODE
    needs_model = False
    seeded = listed = False

    def fits(self, spec: SignatureSpec) -> bool:
        return False

    def seed_prompts(self, spec: SignatureSpec) -> dict[str, Prompt]:
        return {}

    def predictors(self, spec: SignatureSpec) -> dict[str, Any]:
        return {}

    def demo(self, journal: Iterable[Mapping[str, Any]], spec: SignatureSpec, inputs: Mapping[str, Any],
             outputs: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:  # fmt: skip
        return None

    def calls(self, run: Run) -> list[str]:
        """What a script does not call needs no dependencies."""
        return [name for name in run.plan.allow if name in run.inputs["script"].externals]

    async def run(self, run: Run) -> dict[str, Any]:
        script = run.inputs.get("script")
        if not isinstance(script, Script):
            raise PlanError(f"Mode {MODE!r} runs given scripts only", value=run.spec.name, remedy="Use dse.run_script.")
        tools = {name: run.dispatcher.toolbox[name] for name in run.plan.allow}
        contracts = {name: tool.contract for name, tool in tools.items() if tool.nests is None}
        problem = await script_problem(script, contracts, contracts)
        if problem is not None:
            run.journal.add("code_error", stage="check", problems=[["script", None, problem, ""]])
            raise ScriptFailed("The script was not run, nothing happened", value=problem, remedy="Correct the script.")
        contracts = {name: contracts[name] for name in sorted(script.externals)}
        checked = await check(script.source, contracts)
        run.journal.add("feed", code=script.source)
        try:
            outcome = await run_guest(
                checked, contracts, run.dispatcher.call, run=run, inputs=run.wire_inputs["inputs"], pool=sandbox.pool(),
                seed=run.seed, clock=run.clock, most_bytes=run.limits.output_bytes,
            )  # fmt: skip
        except GuestFailed as failed:
            effects = run.effects.summary()
            if failed.printed:
                run.journal.add("print", text=failed.printed)
            run.journal.add("code_error", stage="run", message=failed.what, effects=effects)
            raise ScriptFailed(f"The script failed: {failed.what}", value=f"effects so far: {effects}",
                               remedy=failed.hint or "Correct the script.") from None  # fmt: skip
        return await run.accept_outputs({"value": outcome.value, "printed": outcome.printed})


register(_Given())


def script_of(source: str, signature: type[Signature]) -> Script:
    """The script with this source; its externals are the signature's tools whose names it uses."""
    return Script(source=source, externals=sorted(names_used(source) & set(signature.spec().tool_names)))


def run_script(
    script: Script | Mapping[str, Any], *, signature: type[Signature] | None = None, toolbox: Toolbox | None = None,
    deps: Any = None, allow: Iterable[str] | None = None, inputs: Mapping[str, Any] | None = None,
    limits: Limits | Mapping[str, Any] | None = None, approve: Callable[[Any], Any] | None = None,
    middleware: Sequence[Any] = (), store: Any = None,
) -> Prediction:  # fmt: skip
    """Run a script. ``prediction.value`` is the value of its last line (JSON), ``prediction.printed`` what it printed.

    Every call goes through a dispatcher under the contract of its tool; ``prediction.receipt`` has them.

    Args:
        script: a ``dse.Script``, or its JSON form.
        signature: whose tools are the upper bound; default all tools of the toolbox.
        toolbox: implementations; default the signature's own tools.
        allow: fewer tools.
        inputs: JSON data, there as the variable ``inputs``.
        limits: for this run; tokens and calls of a model do not come up.
        deps, approve, middleware, store: as for ``dse.Program``.

    Raises:
        ScriptFailed: it does not pass the check (nothing happened), or raised; with the receipt in ``details``.
        LimitExceeded, RunSuspended, InfrastructureError
        InputError: this is no script, or inputs are not JSON.
        AllowListError, PlanError, ToolboxError, ContractMismatch
    """
    options: dict[str, Any] = dict(signature=signature, toolbox=toolbox, deps=deps, allow=allow, inputs=inputs, limits=limits,
                                   approve=approve, middleware=middleware, store=store)  # fmt: skip
    return run_sync(lambda: arun_script(script, **options))


async def arun_script(
    script: Script | Mapping[str, Any], *, signature: type[Signature] | None = None, toolbox: Toolbox | None = None,
    deps: Any = None, allow: Iterable[str] | None = None, inputs: Mapping[str, Any] | None = None,
    limits: Limits | Mapping[str, Any] | None = None, approve: Callable[[Any], Any] | None = None,
    middleware: Sequence[Any] = (), store: Any = None,
) -> Prediction:  # fmt: skip
    """`run_script` for async code."""
    if signature is None and toolbox is None:
        raise InputError("Nobody says which tools there are", remedy="Pass signature= or toolbox=.")
    tools = list(signature.spec().tools if signature is not None else toolbox or ())
    name = f"{signature.spec().name}Script" if signature is not None else "GivenScript"
    runnable: type[Signature] = type(name, (Signature,), {
        "__doc__": "Run a given script.", "__module__": __name__, "tools": tools,
        "__annotations__": {"script": Script, "inputs": dict[str, Any], "value": Any, "printed": str},
        "script": InputField(), "inputs": InputField(), "value": OutputField(), "printed": OutputField()})  # fmt: skip
    plan = Plan(
        mode=MODE, prompts={}, allow=tuple(tool.name for tool in tools if tool.nests is None), limits=_limits(limits)
    )
    plan = plan if allow is None else plan.narrowed(allow)
    program = Program(runnable, plan, toolbox=toolbox, deps=deps, approve=approve,
                      middleware=middleware, store=store)  # fmt: skip
    return await program.acall(script=script, inputs=dict(inputs or {}))


def _limits(limits: Limits | Mapping[str, Any] | None) -> Limits:
    if limits is None or isinstance(limits, Limits):
        return limits or Limits()
    try:
        return Limits.model_validate(dict(limits))
    except ValueError as exc:
        raise PlanError("These are no limits", value=str(exc), remedy="See dse.Limits.") from None
