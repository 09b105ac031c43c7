"""Script tools: a tool whose calls run a script, which calls other tools of the same run.

The contract is an ordinary one. What the script calls goes through the dispatcher of the run like any other
call, under the called tool's own policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from dse.canonical import digest
from dse.contracts.signature import validation_summary
from dse.contracts.tool import DEFAULT_OUTPUT_BYTES, Tool, ToolContext, ToolContract, tool
from dse.contracts.toolbox import Toolbox
from dse.errors import ContractError, LimitExceeded, ToolArgumentError, ToolScriptFailed, Unserialisable
from dse.limits import Limits
from dse.runtime import sandbox
from dse.runtime.guest import BOUNDS, GuestFailed, check, run_guest
from dse.runtime.nesting import Caller

__all__ = ["ScriptResult", "script_tool"]

_REVISION = "script-1"
_EFFECTS = ("pure", "read", "write")
_OF_THE_CONTRACT = ("active_s", "output_bytes")
_DESCRIPTION = (
    "Run a Python script, and get the value of its last line and what it printed.\n\n"
    "In it these tools are async functions with the same parameters: {names}. `await` each call, or make several at once "
    "with `await asyncio.gather(...)`; top-level await works. The dict `inputs` is there as a variable. The script is "
    "checked before it runs. This is a small Python: standard modules such as asyncio, json, re, math, datetime, decimal, "
    "collections, itertools, functools and statistics; no files, no network, no class inheritance, no generators with "
    "yield, no eval."
)


class ScriptResult(BaseModel):
    """What a script gave."""

    value: Any = Field(description="value of the last line")
    printed: str


def script_tool(
    toolbox: Toolbox | Iterable[Tool], *, name: str = "run_script", allow: Iterable[str] | None = None,
    limits: Limits | Mapping[str, Any] | None = None, description: str | None = None,
) -> Tool:  # fmt: skip
    """A tool that runs a script over other tools.

    Its effect is the strongest effect among the tools that a script may call. Scripts of one run run one after
    the other (alone, where one of these tools is ``exclusive``); what a script calls at once runs at once, as the
    contracts of these tools allow.

    Args:
        toolbox: where the tools come from that a script may call. At run time those count that the plan allows too,
            bound as they are in the program.
        allow: names of these tools; default all but script tools, which a script can never call.
        limits: ``active_s`` (seconds for one script, decisions not counted), ``interpreter_s``, ``memory_bytes``,
            ``recursion``, ``suspensions``, ``print_bytes``, ``output_bytes`` (result and prints together). Those of
            the run hold as well.
        description: what the model is told, instead of a text that names the tools.

    Raises:
        ToolboxError: `allow` names a tool that the toolbox does not have.
        ContractError: a script tool among the tools, an invalid name, or a limit that does not apply to scripts.
    """
    known = {one.name: one for one in toolbox}
    box = toolbox if isinstance(toolbox, Toolbox) else Toolbox(known.values())
    chosen = [box[one] for one in allow] if allow is not None else [one for one in known.values() if one.nests is None]
    for one in chosen:
        if one.nests is not None or one.name == name:
            raise ContractError("A script cannot call a script tool", value=one.name,
                                remedy="Leave it out of allow: scripts do not nest.")  # fmt: skip
    contracts = {one.name: one.contract for one in sorted(chosen, key=lambda one: one.name)}
    bounds = _limits(limits)

    async def run_script(ctx: ToolContext[Any], code: str, inputs: dict[str, Any] = {}) -> ScriptResult:  # noqa: B006
        """Run a script.

        Args:
            code: Python
            inputs: data for the script
        """
        return await _run(ctx, code, inputs, bounds, made.name)

    made: Tool = tool(
        run_script, name=name, description=description or _DESCRIPTION.format(names=", ".join(contracts) or "none"),
        effect=max((c.effect for c in contracts.values()), key=_EFFECTS.index, default="pure"),
        timeout_s=bounds.active_s, max_output_bytes=min(bounds.output_bytes, DEFAULT_OUTPUT_BYTES),
        concurrency="exclusive" if any(c.concurrency == "exclusive" for c in contracts.values()) else "ordered",
        sensitive=_sensitive(contracts.values()),
        revision=f"{_REVISION}-{digest({'allow': sorted(contracts), 'limits': bounds.model_dump(mode='json')})[7:19]}",
    )  # fmt: skip
    return dataclasses.replace(made, nests={n: c.interface_id for n, c in contracts.items()})


def _limits(limits: Limits | Mapping[str, Any] | None) -> Limits:
    try:
        made = limits if isinstance(limits, Limits) else Limits.model_validate(dict(limits or {}))
    except ValidationError as exc:
        raise ContractError("These are no limits", value=validation_summary(exc), remedy="See dse.Limits.") from None
    foreign = sorted(made.model_fields_set - {*BOUNDS, *_OF_THE_CONTRACT})
    if foreign:
        raise ContractError("These limits do not apply to one script", value=", ".join(foreign),
                            remedy=f"Choose from: {', '.join((*BOUNDS, *_OF_THE_CONTRACT))}.")  # fmt: skip
    return made


def _sensitive(contracts: Iterable[ToolContract]) -> tuple[str, ...]:
    """What a script and its result may hold of what these tools hide: their arguments, a result hidden as a whole.

    A returned field needs no entry here: the run hides it by its name, and its value from when it was seen.
    """
    contracts = list(contracts)
    going_in = any(set(c.sensitive) & set(c.parameters.get("properties", {})) for c in contracts)
    return (
        *(("code", "inputs") if going_in else ()),
        *(("return",) if any("return" in c.sensitive for c in contracts) else ()),
    )


async def _run(ctx: ToolContext[Any], code: str, inputs: dict[str, Any], own: Limits, name: str) -> ScriptResult:
    caller: Caller | None = ctx._caller
    if caller is None:
        raise ContractError("A script tool can only run within a run", value=name,
                            remedy="Call it through a program.")  # fmt: skip
    run, toolbox = caller.dispatcher.run, caller.dispatcher.toolbox
    contracts = {one: toolbox[one].contract for one in sorted(caller.allow)}
    code = sandbox.extract_code(code)
    checked = await check(code, contracts)
    if checked.problems:
        raise ToolArgumentError(f"The script was not run: {checked.describe(3)}")
    try:
        outcome = await run_guest(
            checked, contracts, caller.call, run=run, inputs=inputs, pool=sandbox.script_pool(), own=own,
            seed=run.seed + ctx.call_id, clock=run.clock, most_bytes=toolbox[name].contract.max_output_bytes,
        )  # fmt: skip
    except GuestFailed as failed:
        if failed.printed:
            run.journal.add("print", text=failed.printed)
        hint = f"Hint: {failed.hint}. ".replace("..", ".") if failed.hint else ""
        raise ToolScriptFailed(f"The script failed: {failed.what}",
                               remedy=f"{hint}Effects so far: {run.effects.summary()}.") from None  # fmt: skip
    except Unserialisable as exc:
        raise ToolArgumentError(f"The inputs cannot enter the script: {exc.what}", remedy=exc.remedy) from None
    except LimitExceeded as exc:
        caller.ending(exc)
        raise
    return ScriptResult(value=outcome.value, printed=outcome.printed)
