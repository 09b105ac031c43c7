"""Mode ``code``: the model writes Python against typed stubs, which runs in the sandbox.

Every script is linted and type-checked before anything runs. Tools are ``async`` functions, so that
``asyncio.gather`` fans out; ``submit(...)`` gives the answer. Variables persist between rounds. What went
wrong comes back as a record with class, message, hint and the effects so far.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anyio.to_thread
from pydantic import ValidationError

from dse import telemetry
from dse.contracts.schema import guest_from_wire, wire_from_guest
from dse.contracts.signature import SignatureSpec, dspy_signature, validation_summary
from dse.contracts.stubs import presented, stubs_for
from dse.contracts.tool import ToolContract
from dse.errors import LimitExceeded, SandboxUnavailable, Unserialisable
from dse.plan import Prompt
from dse.runtime import sandbox
from dse.runtime.guest import settle
from dse.runtime.run import Run
from dse.strategies.base import register
from dse.strategies.checking import IMPORTS, CheckerTexts, checker_texts, imports_in, known_names
from dse.strategies.render import Predictor
from dse.strategies.resumable import ResumableGuest

__all__ = ["Code"]

_RULES = '''"""Functions and types you can use. Write plain Python that calls them.

The inputs are there as variables: {inputs}. Tools are async: `await tool(...)`, or several at once with
`await asyncio.gather(...)`; top-level await works. End by calling `submit(...)`: only that is an answer. If you do
not submit, you are shown what the script printed and the value of its last line; variables are kept for your next
script. This is a small Python: standard modules such as asyncio, json, re, math, datetime, decimal, collections,
itertools, functools and statistics; no files, no network, no class inheritance, no generators with yield, no eval.
"""'''


@functools.lru_cache(maxsize=256)
def _code_signature(base: Any) -> Any:
    import dspy

    # At once: every step of changing a signature makes another class.
    fields = {name: (field.annotation, field) for name, field in base.input_fields.items()}
    fields["api"] = (str, dspy.InputField(desc="what the script can use"))
    fields["transcript"] = (str, dspy.InputField(desc="scripts so far, with what they gave"))
    fields["code"] = (str, dspy.OutputField(desc="the Python script to run now"))
    return dspy.Signature(fields, base.instructions)


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

    def get_ready(self) -> None:
        sandbox.pool().start_soon()

    async def run(self, run: Run) -> dict[str, Any]:
        session = _CodeSession(run)
        try:
            return await session.loop()
        finally:
            await session.close()


class _Texts:
    """What the checker and the model are told about a task; the same in all runs of a program."""

    def __init__(self, spec: SignatureSpec, contracts: tuple[ToolContract, ...], shown: tuple[ToolContract, ...]) -> None:
        self._spec, self._contracts = spec, contracts
        self.api = f"{_RULES.format(inputs=', '.join(spec.inputs))}\n{stubs_for(shown, outputs=spec.output_schema)}"

    @functools.cached_property
    def checker(self) -> CheckerTexts:
        """Where all scripts are recorded, nothing is checked."""
        return checker_texts(self._spec, self._contracts)


_texts: dict[tuple[str, ...], _Texts] = {}


def _texts_for(spec: SignatureSpec, contracts: tuple[ToolContract, ...], overlays: Mapping[str, str]) -> _Texts:
    shown = tuple(presented(contract, overlays) for contract in contracts)
    key = (spec.signature_id, *(contract.interface_id for contract in shown))
    if key not in _texts:
        if len(_texts) >= 256:
            _texts.clear()
        _texts[key] = _Texts(spec, contracts, shown)
    return _texts[key]


class _CodeSession(ResumableGuest):
    """The rounds of one run."""

    ends = frozenset({"submit"})

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.texts = _texts_for(run.spec, tuple(self.contracts.values()), run.plan.overlays)
        self.known = known_names(run.spec)
        self.transcript: list[str] = []
        self.check_errors = 0
        self.outputs: dict[str, Any] | None = None

    # --- rounds

    async def loop(self) -> dict[str, Any]:
        run = self.run
        limits = run.limits
        recording = run.journal.recording
        if recording is None or recording.peek() is None:  # what is recorded has passed the check
            await sandbox.checker().validate_stubs(*self.texts.checker)
        predictor = Predictor("code", _code_signature(dspy_signature(run.spec)), run.plan.prompts["code"])
        while True:
            inputs = {**run.wire_inputs, "api": self.texts.api, "transcript": "\n\n".join(self.transcript) or "(nothing yet)"}
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
            await self._freeze()

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
        recorded = run.recorded("feed", "code_error")
        if recorded is not None and recorded["kind"] == "code_error":
            return self._refused([tuple(problem) for problem in recorded["problems"]])
        look = functools.partial(
            sandbox.lint, code, tool_names=self.contracts, output_names=run.spec.outputs, known_names=self.known)  # fmt: skip
        # A long script takes seconds, which other runs must not wait for.
        lint = look() if len(code) < 4_000 else await anyio.to_thread.run_sync(look, abandon_on_cancel=True)
        problems = [(d.rule, d.line, d.message, d.hint) for d in lint.errors]
        if not problems and recorded is None:  # what is recorded has passed the check
            record = await self._check_and_drive(lint, code)
            if record is not None:
                return record
            problems = await self._check(code)
        if problems:
            return self._refused(problems)
        fed = run.journal.add("feed", code=code)
        record = await self._along(fed, code)
        return await self._drive(lint, code) if record is None else record

    async def _check(self, code: str) -> list[tuple[Any, ...]]:
        """What is wrong with a script."""
        await sandbox.checker().validate_stubs(*self.texts.checker)
        return _errors(await sandbox.checker().check(**self._as_checked(code)))

    def _as_checked(self, code: str) -> dict[str, Any]:
        stubs, declarations = self.texts.checker
        return {"stubs": stubs, "declarations": declarations,
                "earlier": (*imports_in(code, *self.earlier), *self.earlier), "code": code}  # fmt: skip

    async def _check_and_drive(self, lint: Any, code: str) -> str | None:
        """Check a script and begin it in one go; None where somebody watches the order of these, or workers are taken."""
        journal = self.run.journal
        if journal.subscribers or journal.recording is not None or telemetry.active is not None:
            return None
        checker = sandbox.checker()
        if not checker.room or (self.session is None and not sandbox.pool().room):
            return None  # nothing waits in a thread of the pool, and what is wrong is said before others end
        await checker.validate_stubs(*self.texts.checker)
        asked, fresh = self._as_checked(code), self.session is None
        problems: list[tuple[Any, ...]] | None = None

        def check() -> bool:
            nonlocal problems
            problems = _errors(checker.check_here(**asked))
            return not problems

        self.prints = []
        try:
            turn = await self._feed(lint, check)
        finally:
            if problems == []:
                journal.add("feed", code=code)
        if problems == []:
            return await self._answer(turn, code)
        if fresh:
            self.session = None
        return self._refused(problems) if problems else None

    def _refused(self, problems: list[tuple[Any, ...]]) -> str:
        self.check_errors += 1
        lines = []
        for rule, line, message, hint in problems[:10]:
            where = f"line {line}: " if line else ""
            lines.append(f"- {where}{message} [{rule}]" + (f" Hint: {hint}" if hint else ""))
        self.last_problem = lines[0][2:]
        self.run.journal.add("code_error", stage="check", problems=[list(p) for p in problems[:10]])
        return "Not run, nothing happened:\n" + "\n".join(lines)

    def _failed(self, name: str, message: str, line: int | None, hint: str = "", dead: bool = False) -> str:
        self.runtime_errors += 1
        self.last_problem = f"{name}: {message}"
        effects = self.run.effects.summary()
        record = f"Error: {name}: {message}" + (f" (line {line})" if line else "")
        record = "".join(self._printed()) + record + (f"\nHint: {hint}" if hint else "") + f"\nEffects so far: {effects}"
        self.run.journal.add("code_error", stage="run", **{"class": name}, message=message, line=line, effects=effects,
                             shown=record, dead=dead)  # fmt: skip
        return record

    def _printed(self) -> list[str]:
        text = "".join(self.prints)
        return [f"Printed:\n{text}\n"] if text else []

    # --- the sandbox

    async def _feed(self, lint: Any, check: Callable[[], bool] | None = None) -> sandbox.Turn | None:
        """Begin a script, the first one in a session of its own with the inputs as variables.

        Args:
            check: says first whether it may begin; None if not.
        """
        if self.session is None and self.next_guest is not None:
            await self._thaw(self.next_guest)
        if self.session is not None:
            if check is not None:
                return await self.session.feed_if(check, lint.code, shims=lint.shims)
            return await self.session.feed(lint.code, shims=lint.shims)
        run, values = self.run, self._inputs()
        self.session = sandbox.pool().session(
            limits=self._bounds(), seed=run.seed, clock=run.clock, imports=IMPORTS, **self._names()
        )  # fmt: skip
        if check is not None:
            return await self.session.feed_if(check, lint.code, inputs=values, shims=lint.shims)
        return await self.session.feed(lint.code, inputs=values, shims=lint.shims)

    def _inputs(self) -> dict[str, Any]:
        wire = self.run.wire_inputs
        return {name: guest_from_wire(wire[name], field.schema) for name, field in self.run.spec.inputs.items()}

    @telemetry.feed
    async def _drive(self, lint: Any, code: str) -> str:
        """Run one feed to its end."""
        self.prints = []
        return await self._answer(await self._feed(lint), code)

    async def _answer(self, turn: Any, code: str) -> str:
        """Answer every external call of a feed through the dispatcher; gives what the model is told."""
        run, session = self.run, self.session
        assert session is not None
        turns = deque([turn])  # where the guest is now, after those that it was led through already
        while isinstance(turn := turns.popleft(), sandbox.Waiting):
            self._collect(turn)
            if turns:
                await self._count(turn)
                continue
            results: dict[int, Any] = {}
            for call in turn.calls:
                if call.name in self.ends:
                    results[call.call_id] = await self._submit(call)
                    if self.outputs is not None:
                        await settle(self.tasks)
                        return ""
                else:
                    self._start(call, run.dispatcher.reserve())
            waiting = [i for i in turn.pending if i in self.tasks]
            if waiting and not results:
                results = await self._wait(waiting)
            turns.extend(await self._resume(session, results))
        self._collect(turn)
        await settle(self.tasks)
        self.earlier.append(code)  # also code that failed: what it defined before is still there
        if isinstance(turn, sandbox.Failed):
            return await self._guest_failed(turn.error)
        shown = "".join(self._printed())
        for call in turn.unawaited:
            shown += f"{call.name}(...) was called without await: it did not run\n"
        value = turn.value_repr if turn.value is not None else ""
        if value:
            shown += f"Value of the last line: {value}\n"
        shown = (shown or "It printed nothing and its last line has no value.\n") + "Nothing was submitted yet."
        run.journal.add("observation", value=value, shown=shown)
        return shown

    async def _along(self, fed: Mapping[str, Any], code: str) -> str | None:
        """What the model is told of a recorded script that need not be executed from its beginning; None when it has to be."""
        told = await self._skip(fed, code)
        return await self._answer(told, code) if isinstance(told, sandbox.Waiting) else told

    async def _submit(self, call: Any) -> Any:
        names = list(self.run.spec.outputs)
        try:
            if len(call.args) > len(names):
                raise ValueError(f"submit() takes {len(names)} arguments but {len(call.args)} were given")
            values = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
            self.outputs = await self.run.accept_outputs({k: wire_from_guest(v, k) for k, v in values.items()})
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
            raise run.guest_lost(SandboxUnavailable("The interpreter worker died", value=error.message,
                                                    remedy="Run it again; the run's receipt lists the effects so far."))  # fmt: skip
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
        return self._failed(error.class_name, error.message, error.line, hint, error.dead)


def _errors(found: Iterable[sandbox.Diagnostic]) -> list[tuple[Any, ...]]:
    return [(d.rule, d.line, d.message, d.hint) for d in found if d.severity == "error"]


register(Code())
