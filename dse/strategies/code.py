"""Mode ``code``: the model writes Python against typed stubs, which runs in the sandbox.

Every script is linted and type-checked before anything runs. Tools are ``async`` functions, so that
``asyncio.gather`` fans out; ``submit(...)`` gives the answer. Variables persist between rounds. What went
wrong comes back as a record with class, message, hint and the effects so far.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import anyio
from pydantic import ValidationError

from dse.contracts.schema import guest_from_wire, wire_from_guest
from dse.contracts.signature import SignatureSpec, dspy_signature, validation_summary
from dse.contracts.stubs import input_declarations, stubs_for
from dse.contracts.tool import ToolContract
from dse.errors import (
    LimitExceeded,
    NoSubmission,
    SandboxUnavailable,
    ToolArgumentError,
    ToolDenied,
    ToolFault,
    ToolNotAllowed,
    ToolTimeout,
    Unserialisable,
)
from dse.plan import Prompt
from dse.runtime import sandbox
from dse.runtime.run import Run
from dse.strategies.base import register
from dse.strategies.render import Predictor

__all__ = ["Code"]

_RULES = '''"""Functions and types you can use. Write plain Python that calls them.

The inputs are there as variables: {inputs}. Tools are async: `await tool(...)`, or several at once with
`await asyncio.gather(...)`; top-level await works. End by calling `submit(...)`: only that is an answer. If you do
not submit, you are shown what the script printed and the value of its last line; variables are kept for your next
script. This is a small Python: standard modules such as asyncio, json, re, math, datetime, decimal, collections,
itertools, functools and statistics; no files, no network, no class inheritance, no generators with yield, no eval.
"""'''
_GUEST_ERRORS = {ToolNotAllowed: "NameError", ToolArgumentError: "ValueError", ToolTimeout: "TimeoutError",
                 ToolDenied: "PermissionError"}  # fmt: skip
_IMPORTS = "import asyncio, datetime\nfrom decimal import Decimal"  # there for every script, as the stubs suggest


@functools.lru_cache(maxsize=256)
def _code_signature(base: Any) -> Any:
    import dspy

    signature = base
    for name in list(base.output_fields):
        signature = signature.delete(name)
    signature = signature.append("api", dspy.InputField(desc="what the script can use"), type_=str)
    signature = signature.append("transcript", dspy.InputField(desc="scripts so far, with what they gave"), type_=str)
    return signature.append("code", dspy.OutputField(desc="the Python script to run now"), type_=str)


class Code:
    mode = "code"
    needs_model = True

    def fits(self, spec: SignatureSpec) -> bool:
        return bool(spec.tools)

    def seed_prompts(self, spec: SignatureSpec) -> dict[str, Prompt]:
        text = f"{spec.instructions}\n\nSolve this by writing one Python script, as direct as the task allows."
        return {"code": Prompt(instructions=text)}

    def predictors(self, spec: SignatureSpec) -> dict[str, Any]:
        return {"code": _code_signature(dspy_signature(spec))}

    def demo(self, journal: Iterable[Mapping[str, Any]], spec: SignatureSpec, inputs: Mapping[str, Any],
             outputs: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:  # fmt: skip
        """The script of a run that solved its row with the first one."""
        feeds = []
        for entry in journal:
            if entry["kind"] == "feed":
                feeds.append(entry["code"])
            elif entry["kind"] in ("code_error", "repair", "tool_refused"):
                return None
        if len(feeds) != 1:
            return None
        return {"code": {**inputs, "api": "(as below)", "transcript": "(nothing yet)", "code": feeds[0]}}

    async def run(self, run: Run) -> dict[str, Any]:
        session = _CodeSession(run)
        try:
            return await session.loop()
        finally:
            await session.close()


class _Texts(NamedTuple):
    """What the checker and the model are told about a task; the same in all runs of a program."""

    declarations: str
    checker_stubs: str
    api: str


_texts: dict[tuple[str, ...], _Texts] = {}


def _texts_for(spec: SignatureSpec, contracts: tuple[ToolContract, ...]) -> _Texts:
    key = (spec.signature_id, *(contract.interface_id for contract in contracts))
    if key not in _texts:
        if len(_texts) >= 256:
            _texts.clear()
        stubs = stubs_for(contracts, outputs=spec.output_schema)
        classes, declarations = input_declarations(spec.input_schema)
        # Models sometimes await `submit`; harmless, because a valid answer ends the run inside the call.
        lenient = stubs_for(contracts, outputs=spec.output_schema, checking=True).replace(") -> NoReturn:", ") -> Any:")
        head = "from typing import Any, Literal, NotRequired, TypedDict"
        _texts[key] = _Texts(
            declarations,
            "\n".join([head, _IMPORTS, classes, lenient]),
            f"{_RULES.format(inputs=', '.join(spec.inputs))}\n{stubs}",
        )
    return _texts[key]


class _CodeSession:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.contracts = {name: run.dispatcher.toolbox[name].contract for name in run.plan.allow}
        texts = _texts_for(run.spec, tuple(self.contracts.values()))
        self.declarations, self.checker_stubs, self.api = texts.declarations, texts.checker_stubs, texts.api
        self.known = frozenset(run.spec.inputs) | {"asyncio", "datetime", "Decimal"}
        self.session: sandbox.Session | None = None
        self.tasks: dict[int, asyncio.Task[Any]] = {}
        self.earlier: list[str] = []
        self.transcript: list[str] = []
        self.check_errors = 0
        self.runtime_errors = 0
        self.repairs = 0
        self.last_problem = ""
        self.outputs: dict[str, Any] | None = None

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()
        if self.session is not None:
            session, self.session = self.session, None
            self.run.meter.interpreter_s += session.interpreter_s
            await session.aclose()

    # --- rounds

    async def loop(self) -> dict[str, Any]:
        run = self.run
        limits = run.limits
        await sandbox.checker().validate_stubs(self.checker_stubs)
        predictor = Predictor("code", _code_signature(dspy_signature(run.spec)), run.plan.prompts["code"])
        while True:
            inputs = {**run.wire_inputs, "api": self.api, "transcript": "\n\n".join(self.transcript) or "(nothing yet)"}
            completion = await run.complete({"messages": predictor.messages(inputs), "tools": []}, predictor="code")
            code = self._code_of(completion.text or "", predictor)
            if run.trace:
                run.trace("code", inputs, {"code": code})
            record = await self.round(code)
            if self.outputs is not None:
                return self.outputs
            self.transcript.append(f"Script {len(self.transcript) + 1}:\n```python\n{code}\n```\n{record}")
            if self.check_errors > limits.check_errors or self.runtime_errors > limits.runtime_errors:
                raise run.invalid(self.last_problem)
            if self.repairs > limits.repairs:
                raise run.invalid(self.last_problem)
            if run.meter.model_calls >= limits.model_calls:
                raise NoSubmission("The rounds ended without a submitted answer", value=self.last_problem or None,
                                   remedy="See the run's receipt.", limit="model_calls")  # fmt: skip

    def _code_of(self, text: str, predictor: Predictor) -> str:
        try:
            text = predictor.parse(text)["code"]
        except ValueError:
            pass  # a reply without field markers may still hold a script
        return sandbox.extract_code(text)

    async def round(self, code: str) -> str:
        """Check and run one script; gives what the model is told."""
        run = self.run
        if not code.strip():
            return self._refused([("empty", None, "the reply holds no script", "Write a Python script.")])
        lint = sandbox.lint(code, tool_names=self.contracts, output_names=run.spec.outputs, known_names=self.known)
        problems = [(d.rule, d.line, d.message, d.hint) for d in lint.errors]
        if not problems:
            problems = await self._check(code)
        if problems:
            return self._refused(problems)
        run.journal.add("feed", code=code)
        return await self._drive(lint, code)

    async def _check(self, code: str) -> list[tuple[Any, ...]]:
        """What is wrong with a script. The first session opens meanwhile; when nothing may run, it is given back."""
        opening = asyncio.create_task(self._open()) if self.session is None else None
        try:
            found = await sandbox.checker().check(
                stubs=self.checker_stubs, declarations=self.declarations, earlier=(_IMPORTS, *self.earlier), code=code)  # fmt: skip
            problems = [(d.rule, d.line, d.message, d.hint) for d in found if d.severity == "error"]
            if opening is not None and not problems:
                await opening
                opening = None
            return problems
        finally:
            if opening is not None:
                opening.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.gather(opening, return_exceptions=True)
                    await self.close()

    def _refused(self, problems: list[tuple[Any, ...]]) -> str:
        self.check_errors += 1
        lines = []
        for rule, line, message, hint in problems[:10]:
            where = f"line {line}: " if line else ""
            lines.append(f"- {where}{message} [{rule}]" + (f" Hint: {hint}" if hint else ""))
        self.last_problem = lines[0][2:]
        self.run.journal.add("code_error", stage="check", problems=[list(p) for p in problems[:10]])
        return "Not run, nothing happened:\n" + "\n".join(lines)

    def _failed(self, name: str, message: str, line: int | None, hint: str = "") -> str:
        self.runtime_errors += 1
        self.last_problem = f"{name}: {message}"
        effects = self.run.effects.summary()
        self.run.journal.add("code_error", stage="run", **{"class": name}, message=message, line=line, effects=effects)
        record = f"Error: {name}: {message}" + (f" (line {line})" if line else "")
        return record + (f"\nHint: {hint}" if hint else "") + f"\nEffects so far: {effects}"

    # --- the sandbox

    async def _open(self) -> None:
        run, limits = self.run, self.run.limits
        self.session = await sandbox.pool().open(
            limits=sandbox.SandboxLimits(
                feed_s=limits.interpreter_s, memory_bytes=limits.memory_bytes, recursion=limits.recursion,
                suspensions=limits.suspensions, print_bytes=limits.print_bytes,
            ),
            seed=run.seed, clock=run.clock, async_names=frozenset(self.contracts), sync_names=frozenset({"submit"}),
        )  # fmt: skip
        values = {name: guest_from_wire(run.wire_inputs[name], field.schema) for name, field in run.spec.inputs.items()}
        turn = await self.session.feed(_IMPORTS, inputs=values)
        if not isinstance(turn, sandbox.Finished):
            raise SandboxUnavailable("The inputs could not be handed to the sandbox", value=repr(turn))

    async def _drive(self, lint: Any, code: str) -> str:
        """Run one feed to its end, answering every external call through the dispatcher."""
        run = self.run
        session = self.session
        assert session is not None
        prints: list[str] = []
        turn = await session.feed(lint.code, shims=lint.shims)
        while isinstance(turn, sandbox.Waiting):
            self._collect(turn, prints)
            results: dict[int, Any] = {}
            for call in turn.calls:
                if call.name == "submit":
                    results[call.call_id] = self._submit(call)
                    if self.outputs is not None:
                        await self._settle()
                        return ""
                else:
                    self.tasks[call.call_id] = asyncio.create_task(run.dispatcher.call(call.name, call.args, call.kwargs))
            waiting = [i for i in turn.pending if i in self.tasks]
            if waiting and not results:
                # In evaluation all pending calls settle first, so that latencies cannot change the path.
                done_when = asyncio.ALL_COMPLETED if run.evaluation else asyncio.FIRST_COMPLETED
                await asyncio.wait([self.tasks[i] for i in waiting], return_when=done_when)
                for call_id in waiting:
                    if self.tasks[call_id].done():
                        results[call_id] = self._result(self.tasks.pop(call_id))
                run.journal.add("delivered", calls=sorted(results))
            turn = await session.resume(results)
        self._collect(turn, prints)
        await self._settle()
        text = "".join(prints)
        shown = f"Printed:\n{text}\n" if text else ""
        self.earlier.append(code)  # also code that failed: what it defined before is still there
        if isinstance(turn, sandbox.Failed):
            return shown + await self._guest_failed(turn.error)
        for call in turn.unawaited:
            shown += f"{call.name}(...) was called without await: it did not run\n"
        value = turn.value_repr if turn.value is not None else ""
        run.journal.add("observation", value=value)
        if value:
            shown += f"Value of the last line: {value}\n"
        return (shown or "It printed nothing and its last line has no value.\n") + "Nothing was submitted yet."

    def _collect(self, turn: Any, prints: list[str]) -> None:
        if turn.prints:
            prints.append(turn.prints)
            self.run.journal.add("print", text=turn.prints)

    async def _settle(self) -> None:
        """Calls that the script started and never awaited still count: wait for them."""
        if self.tasks:
            done = await asyncio.gather(*self.tasks.values(), return_exceptions=True)
            self.tasks.clear()
            for one in done:
                if isinstance(one, BaseException) and not isinstance(one, ToolFault):
                    raise one

    def _result(self, task: asyncio.Task[Any]) -> Any:
        try:
            result = task.result()
        except ToolFault as fault:
            kind = next((name for cls, name in _GUEST_ERRORS.items() if isinstance(fault, cls)), "RuntimeError")
            return sandbox.Raise(kind, fault.message)
        return sandbox.Value(guest_from_wire(result.value, self.contracts[result.receipt["tool"]].returns))

    def _submit(self, call: Any) -> Any:
        names = list(self.run.spec.outputs)
        try:
            if len(call.args) > len(names):
                raise ValueError(f"submit() takes {len(names)} arguments but {len(call.args)} were given")
            values = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
            self.outputs = self.run.accept_outputs({k: wire_from_guest(v, k) for k, v in values.items()})
            return sandbox.Value(None)
        except ValidationError as exc:
            problem = validation_summary(exc)
        except Unserialisable as exc:
            problem = f"{exc.what}. {exc.remedy}"
        except ValueError as exc:
            problem = str(exc)
        self.repairs += 1
        self.last_problem = problem
        self.run.journal.add("repair", predictor="code", problem=problem)
        return sandbox.Raise("ValueError", f"The answer does not fit: {problem}")

    async def _guest_failed(self, error: Any) -> str:
        run = self.run
        if error.kind == "crash":
            raise SandboxUnavailable("The interpreter worker died", value=error.message,
                                     remedy="Run it again; the run's receipt lists the effects so far.")  # fmt: skip
        if error.kind == "limit":
            name = error.limit or "interpreter_s"
            outcome = run.limits.outcome(name)
            if outcome != "fail_step":
                raise LimitExceeded(f"The script reached its limit of {name}", value=error.message,
                                    remedy=f"Raise Limits({name}=...) if the task needs it.", limit=name,
                                    outcome=outcome)  # fmt: skip
        hint = sandbox.hint_for(error)
        if error.dead:
            await self.close()
            self.earlier.clear()
            hint = f"{hint} All variables are lost: start afresh.".strip()
        return self._failed(error.class_name, error.message, error.line, hint)


register(Code())
