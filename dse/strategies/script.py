"""Mode ``script``: a program written when the task was compiled solves the signature; no model is asked.

It is Python like that of mode ``code``: inputs are variables, tools are ``async`` functions, ``submit(...)`` gives the
answer. ``abstain(reason)`` leaves the input to somebody else: the next stage of a cascade, or nobody. Lint and gate
check come once for each script and its contracts, before any run.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from dse.contracts.check import Check
from dse.contracts.schema import wire_from_guest
from dse.contracts.signature import SignatureSpec
from dse.contracts.stubs import stubs_for
from dse.contracts.tool import ToolContract
from dse.errors import Abstained, NoSubmission, PlanError, ScriptFailed, Unserialisable
from dse.limits import Limits
from dse.plan import Plan, Prompt
from dse.runtime import sandbox
from dse.runtime.guest import Checked, names_used, settle
from dse.runtime.run import Run
from dse.strategies.base import register
from dse.strategies.checking import IMPORTS, CheckerTexts, checker_texts, lint_and_check
from dse.strategies.code import _CodeSession

__all__ = ["Script", "check_script", "script_api", "script_plan"]

_RULES = '''"""Functions and types that the program can use. It is plain Python that calls them.

The inputs are there as variables: {inputs}. Tools are async: `await tool(...)`, or several at once with
`await asyncio.gather(...)`; top-level await works. End by calling `submit(...)`: only that is an answer; without it the
program has failed. Where the program cannot be sure of the answer, call `abstain("why")` instead, and before any call
that changes state. This is a small Python: standard modules such as asyncio, json, re, math, datetime, decimal,
collections, itertools, functools and statistics; no files, no network, no class inheritance, no generators with yield,
no eval. Nobody reads what it prints.
"""'''
_KEPT = 512  # scripts whose check is remembered
_HINT = re.compile(r"^Hint: (.*)$", re.MULTILINE)


class _Texts(NamedTuple):
    """What the checker and an author are told about the scripts of a signature with these tools."""

    checker: CheckerTexts
    api: str


_texts: dict[tuple[str, ...], _Texts] = {}
_checked: OrderedDict[tuple[str, ...], Checked] = OrderedDict()
_lock = threading.Lock()


def _key(spec: SignatureSpec, contracts: Iterable[ToolContract]) -> tuple[str, ...]:
    return (spec.signature_id, *(contract.interface_id for contract in contracts))


def _texts_for(spec: SignatureSpec, contracts: Mapping[str, ToolContract]) -> _Texts:
    key = _key(spec, contracts.values())
    if key not in _texts:
        if len(_texts) >= 256:
            _texts.clear()
        checking = checker_texts(spec, contracts.values(), abstain=True)
        written = stubs_for(contracts.values(), outputs=spec.output_schema, abstain=True)
        _texts[key] = _Texts(checking, f"{_RULES.format(inputs=', '.join(spec.inputs))}\n{written}")
    return _texts[key]


def script_api(spec: SignatureSpec, contracts: Mapping[str, ToolContract]) -> str:
    """What an author of a script has to know: the rules, and the stubs of these tools, ``submit`` and ``abstain``."""
    return _texts_for(spec, contracts).api


async def check_script(spec: SignatureSpec, source: str, contracts: Mapping[str, ToolContract]) -> Checked:
    """Lint and gate check of a script for mode ``script``. Nothing runs; the answer is kept.

    Args:
        contracts: of the tools that it may call, by name.

    Returns:
        Without ``problems`` it may run; ``describe()`` says them in words for its author.

    Raises:
        ContractError: the checker cannot check calls of these tools.
        SandboxUnavailable: no worker could be had.
    """
    key = (*_key(spec, contracts.values()), source)
    with _lock:
        if key in _checked:
            _checked.move_to_end(key)
            return _checked[key]
    found = await _check(spec, source, contracts)
    with _lock:
        _checked[key] = found
        while len(_checked) > _KEPT:
            _checked.popitem(last=False)
    return found


async def _check(spec: SignatureSpec, source: str, contracts: Mapping[str, ToolContract]) -> Checked:
    checked = await lint_and_check(spec, source, contracts, lambda: _texts_for(spec, contracts).checker,
                                   ends=("abstain",))  # fmt: skip
    if not checked.problems and not names_used(source) & {"submit", "abstain"}:
        return Checked(checked.lint, (sandbox.Diagnostic(0, 0, "not-submitted", "the script never calls submit()"),))
    return checked


def script_plan(
    spec: SignatureSpec, source: str, *, allow: Iterable[str] | None = None, limits: Limits | None = None
) -> Plan:
    """A plan of mode ``script``; it allows the tools whose names the source uses, unless `allow` says otherwise."""
    chosen = names_used(source) & set(spec.tool_names) if allow is None else allow
    return Plan(mode="script", prompts={}, allow=tuple(chosen), limits=limits or Limits(), script=source)


class Script:
    mode = "script"
    needs_model = False
    seeded = False

    def fits(self, spec: SignatureSpec) -> bool:
        return True

    def seed_prompts(self, spec: SignatureSpec) -> dict[str, Prompt]:
        return {}

    def predictors(self, spec: SignatureSpec) -> dict[str, Any]:
        return {}

    def demo(self, journal: Iterable[Mapping[str, Any]], spec: SignatureSpec, inputs: Mapping[str, Any],
             outputs: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:  # fmt: skip
        return None

    def prepare(self, spec: SignatureSpec, plan: Plan, contracts: Mapping[str, ToolContract],
                checks: Mapping[str, Check]) -> None:  # fmt: skip
        """Refuse a script that does not pass the check with these tools.

        Raises:
            PlanError, ContractError, SandboxUnavailable
        """
        assert plan.script is not None
        mine = {name: contracts[name] for name in plan.allow}
        checked = _checked_now(spec, plan.script, mine)
        if checked.problems:
            raise PlanError("The plan's script does not pass the check", value=checked.describe(3),
                            remedy="Correct the script, or allow the tools that it calls.")  # fmt: skip

    def get_ready(self) -> None:
        sandbox.pool().start_soon()

    async def run(self, run: Run) -> dict[str, Any]:
        session = _ScriptSession(run)
        try:
            return await session.loop()
        finally:
            await session.close()


def _checked_now(spec: SignatureSpec, source: str, contracts: Mapping[str, ToolContract]) -> Checked:
    """`check_script` for code that cannot wait: a program may be made inside an event loop."""
    with _lock:
        known = _checked.get((*_key(spec, contracts.values()), source))
    if known is not None:
        return known
    ended: list[Checked | BaseException] = []

    def work() -> None:
        try:
            ended.append(asyncio.run(check_script(spec, source, contracts)))
        except BaseException as exc:
            ended.append(exc)

    thread = threading.Thread(target=work, name="dse-check")
    thread.start()
    thread.join()
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


class _ScriptSession(_CodeSession):
    """The guest of mode ``code``, with one script that is given."""

    ends = frozenset({"submit", "abstain"})

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.stays = False  # its guest is one that stays for the next run
        self.refused = ""  # what was wrong with the last submission
        self.error: tuple[str, str, int | None, str] | None = None  # class, message, line and hint of what it raised

    async def loop(self) -> dict[str, Any]:
        run, source = self.run, self.run.plan.script
        assert source is not None
        checked = await check_script(run.spec, source, self.contracts)
        if checked.problems:  # tools of an environment may be others than those of the program
            raise ScriptFailed("The script was not run, nothing happened", value=checked.describe(),
                               remedy="Correct the script.")  # fmt: skip
        fed = run.journal.add("feed", code=source)
        record = await self._along(fed, source)
        if record is None:
            await self._drive(checked.lint, source)
        elif run.journal.recording is not None:
            self._recall(run.journal.recording.path[run.journal.recording.at - 1])
        if self.outputs is not None:
            return self.outputs
        if self.refused:
            raise run.invalid(self.refused)
        if self.error is not None:
            name, message, line, hint = self.error
            where = f"line {line}: " if line else ""
            raise ScriptFailed(f"The script failed: {where}{name}: {message}", value=f"effects so far: {run.effects.summary()}",
                               remedy=hint or "Compile again with this input among the search rows.")  # fmt: skip
        raise NoSubmission("The script ended without submit()", remedy="Compile again with this input among the search rows.")

    async def _feed(self, lint: Any, check: Any = None) -> Any:
        """Begin the script, in a guest that has run it before where that makes no difference."""
        run = self.run
        kept = sandbox.resident(lint, tuple(run.spec.inputs), frozenset(self.contracts) | self.ends)
        if kept is None or run.own_guest or self.session is not None or self.next_guest is not None:
            return await super()._feed(lint, check)
        if not sandbox.pool().may_stay(kept, self._bounds(), IMPORTS):
            return await super()._feed(lint, check)
        self.stays = True
        self.session = sandbox.pool().session(
            limits=self._bounds(), seed=run.seed, clock=run.clock, imports=IMPORTS, resident=kept, **self._names()
        )  # fmt: skip
        return await self.session.feed(kept.call, inputs=self._inputs())

    async def _freeze(self, *, after_s: float | None = None) -> None:
        """A guest that stays is not frozen: its script is executed again, in a guest that has its patterns or as long as
        loading them would take."""
        if not self.stays:
            await super()._freeze(after_s=after_s)

    async def _guest_failed(self, error: Any) -> str:
        if self.stays and error.kind == "crash":  # for one that was too full, nothing is lost but time
            self.run.own_guest = True
        return await super()._guest_failed(error)

    async def _submit(self, call: Any) -> Any:
        if call.name == "abstain":
            await settle(self.tasks)
            self._abstain(call)
        result = await super()._submit(call)
        self.refused = "" if self.outputs is not None else self.last_problem
        return result

    def _abstain(self, call: Any) -> None:
        values = [*call.args, *call.kwargs.values()]
        try:
            reason = wire_from_guest(values[0]) if values else ""
        except Unserialisable:
            reason = ""
        reason = reason if isinstance(reason, str) else ""
        raise Abstained("The script left this input to somebody else", value=reason or None,
                        remedy="A cascade hands it over to its next stage.")  # fmt: skip

    def _failed(self, name: str, message: str, line: int | None, hint: str = "", dead: bool = False) -> str:
        self.error = (name, message, line, hint)
        return super()._failed(name, message, line, hint, dead)

    def _recall(self, end: Mapping[str, Any]) -> None:
        """What a script that was passed along its record raised, or was refused."""
        if end["kind"] == "code_error":
            hint = _HINT.search(end["shown"])
            self.error = (end["class"], end["message"], end["line"], hint[1] if hint else "")
        if self.repairs:
            entries = reversed(self.run.journal.entries[: end["seq"]])
            self.refused = next(entry["problem"] for entry in entries if entry["kind"] == "repair")


register(Script())
