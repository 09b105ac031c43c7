"""Mode ``code``: the model writes Python against typed stubs, which runs in the sandbox.

Every script is linted and type-checked before anything runs. Tools are ``async`` functions, so that
``asyncio.gather`` fans out; ``submit(...)`` gives the answer. Variables persist between rounds. What went
wrong comes back as a record with class, message, hint and the effects so far.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anyio.to_thread
from pydantic import ValidationError

from dse import telemetry
from dse.contracts.schema import guest_from_wire, wire_from_guest
from dse.contracts.signature import SignatureSpec, dspy_signature, validation_summary
from dse.contracts.stubs import input_declarations, presented, stubs_for
from dse.contracts.tool import ToolContract
from dse.errors import (
    LimitExceeded,
    RunSuspended,
    SandboxUnavailable,
    ToolFault,
    Unserialisable,
)
from dse.plan import Prompt
from dse.runtime import sandbox
from dse.runtime.ahead import Ahead
from dse.runtime.dispatcher import gather_calls
from dse.runtime.guest import ends_the_run, result_of, settle
from dse.runtime.history import Frozen, diverged
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
# Executing more than this again costs more than keeping the guest: seconds of interpretation, or calls.
_REPLAY_BOUND_S, _REPLAY_CALLS = 0.05, 32
_IMPORTED = {"asyncio": "import asyncio", "datetime": "import datetime", "Decimal": "from decimal import Decimal"}
_IMPORTS = "\n".join(_IMPORTED.values())  # there for every script, as the stubs suggest


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
        self._classes, self.declarations = input_declarations(spec.input_schema)
        self.api = f"{_RULES.format(inputs=', '.join(spec.inputs))}\n{stubs_for(shown, outputs=spec.output_schema)}"

    @functools.cached_property
    def checker_stubs(self) -> str:
        """Where all scripts are recorded, nothing is checked."""
        # Models sometimes await `submit`; harmless, because a valid answer ends the run inside the call.
        stubs = stubs_for(self._contracts, outputs=self._spec.output_schema, checking=True)
        head = "from typing import Any, Literal, NotRequired, TypedDict"
        return "\n".join([head, _IMPORTS, self._classes, stubs.replace(") -> NoReturn:", ") -> Any:")])


_texts: dict[tuple[str, ...], _Texts] = {}


def _texts_for(spec: SignatureSpec, contracts: tuple[ToolContract, ...], overlays: Mapping[str, str]) -> _Texts:
    shown = tuple(presented(contract, overlays) for contract in contracts)
    key = (spec.signature_id, *(contract.interface_id for contract in shown))
    if key not in _texts:
        if len(_texts) >= 256:
            _texts.clear()
        _texts[key] = _Texts(spec, contracts, shown)
    return _texts[key]


class _CodeSession:
    ends = frozenset({"submit"})  # functions that are no tools

    def __init__(self, run: Run) -> None:
        self.run = run
        self.contracts = {name: run.dispatcher.toolbox[name].contract for name in run.plan.allow}
        self.texts = _texts_for(run.spec, tuple(self.contracts.values()), run.plan.overlays)
        self.known = frozenset(run.spec.inputs) | {"asyncio", "datetime", "Decimal"}
        self.session: sandbox.Session | None = None
        self.tasks: dict[int, asyncio.Task[Any]] = {}  # by the interpreter's call id
        self.calls: dict[int, sandbox.ExternalCall] = {}  # of these tasks
        self.ids: dict[int, int] = {}  # the dispatcher's call ids
        self.prints: list[str] = []  # of the present feed
        self.frozen_at_s = 0.0  # of interpretation
        self.frozen_calls = 0  # made by then
        self.next_guest: Frozen | None = None  # what the next script goes on from
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
        if self.session is not None:
            session, self.session = self.session, None
            self.run.meter.interpreter_s += session.interpreter_s
            self.frozen_at_s = 0.0
            await session.aclose()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        self.tasks.clear()

    # --- rounds

    async def loop(self) -> dict[str, Any]:
        run = self.run
        limits = run.limits
        recording = run.journal.recording
        if recording is None or recording.peek() is None:  # what is recorded has passed the check
            await sandbox.checker().validate_stubs(self.texts.checker_stubs, self.texts.declarations)
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
        await sandbox.checker().validate_stubs(self.texts.checker_stubs, self.texts.declarations)
        return _errors(await sandbox.checker().check(**self._as_checked(code)))

    def _as_checked(self, code: str) -> dict[str, Any]:
        # Imports that no script names are left out: they would be resolved anew in every check.
        imports = [line for name, line in _IMPORTED.items() if any(name in text for text in (code, *self.earlier))]
        return {"stubs": self.texts.checker_stubs, "declarations": self.texts.declarations,
                "earlier": (*imports, *self.earlier), "code": code}  # fmt: skip

    async def _check_and_drive(self, lint: Any, code: str) -> str | None:
        """Check a script and begin it in one go; None where somebody watches the order of these, or workers are taken."""
        journal = self.run.journal
        if journal.subscribers or journal.recording is not None or telemetry.active is not None:
            return None
        checker = sandbox.checker()
        if not checker.room or (self.session is None and not sandbox.pool().room):
            return None  # nothing waits in a thread of the pool, and what is wrong is said before others end
        await checker.validate_stubs(self.texts.checker_stubs, self.texts.declarations)
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
            limits=self._bounds(), seed=run.seed, clock=run.clock, imports=_IMPORTS, **self._names()
        )  # fmt: skip
        if check is not None:
            return await self.session.feed_if(check, lint.code, inputs=values, shims=lint.shims)
        return await self.session.feed(lint.code, inputs=values, shims=lint.shims)

    def _inputs(self) -> dict[str, Any]:
        wire = self.run.wire_inputs
        return {name: guest_from_wire(wire[name], field.schema) for name, field in self.run.spec.inputs.items()}

    def _bounds(self) -> sandbox.SandboxLimits:
        limits = self.run.limits
        return sandbox.SandboxLimits(
            feed_s=limits.interpreter_s, memory_bytes=limits.memory_bytes, recursion=limits.recursion,
            suspensions=limits.suspensions, print_bytes=limits.print_bytes,
        )  # fmt: skip

    def _names(self) -> dict[str, Any]:
        return {"async_names": frozenset(self.contracts), "sync_names": self.ends}

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

    async def _resume(self, session: sandbox.Session, results: dict[int, sandbox.Result]) -> Iterable[sandbox.Turn]:
        """The next turns: more than one only where a record leads the guest from each of them to the next one."""
        recording = self.run.journal.recording
        if recording is None or self.tasks or recording.peek() is None:
            return (await session.resume(results),)
        return await session.resume_along(results, Ahead(recording, self.run.dispatcher.next_id, self.contracts))

    async def _count(self, turn: sandbox.Waiting) -> None:
        """Compare and count the calls of a turn after which the guest was led on with their recorded results.

        Raises:
            ReplayDiverged: they come to something else. DseError: what ends the run at one of them.
        """
        run = self.run
        ids = [run.dispatcher.reserve() for _ in turn.calls]
        done: list[Any] = []
        for call, call_id in zip(turn.calls, ids, strict=True):  # nothing is waited for: the outcomes are recorded
            done += await gather_calls([run.dispatcher.call(call.name, call.args, call.kwargs, call_id=call_id)])
        run.journal.add("delivered", calls=ids)
        for call_id, one in zip(ids, done, strict=True):
            if isinstance(one, ToolFault):
                recording = run.journal.recording
                raise diverged(recording.calls[call_id].settled if recording else None, one.code, {"call_id": call_id}) from one
            if isinstance(one, BaseException):
                raise one

    def _start(self, call: sandbox.ExternalCall, call_id: int) -> None:
        number = call.call_id
        self.calls[number], self.ids[number] = call, call_id
        self.tasks[number] = asyncio.create_task(
            self.run.dispatcher.call(call.name, call.args, call.kwargs, call_id=call_id))  # fmt: skip

    async def _wait(self, waiting: list[int]) -> dict[int, Any]:
        """Results of some of the calls that the guest waits for."""
        run = self.run
        ends = run.recorded("delivered", "retry", "run_finished")
        if ends is not None and ends["kind"] == "delivered":  # what went to the guest then goes to it now
            ready = [i for i in waiting if self.ids[i] in ends["calls"]]
            await asyncio.wait([self.tasks[i] for i in ready])
        else:
            if ends is not None:
                run.ran_out(ends)
            await self._freeze(after_s=_REPLAY_BOUND_S)
            # In evaluation all pending calls settle first, so that latencies cannot change the path.
            all_of_them = run.evaluation or ends is not None
            await asyncio.wait([self.tasks[i] for i in waiting],
                               return_when=asyncio.ALL_COMPLETED if all_of_them else asyncio.FIRST_COMPLETED)  # fmt: skip
            if any(ends_the_run(task) for task in self.tasks.values()):
                await self._stop()
            ready = [i for i in waiting if self.tasks[i].done()]
        run.journal.add("delivered", calls=[self.ids[i] for i in ready])
        return {i: result_of(self.tasks.pop(i), self.contracts) for i in ready}

    def _collect(self, turn: Any) -> None:
        died = isinstance(turn, sandbox.Failed) and turn.error.kind == "crash"
        if turn.prints and not died:  # how far a guest came that died is no part of its path: it is executed again
            self.prints.append(turn.prints)
            self.run.journal.add("print", text=turn.prints)

    # --- guests that outlive their process

    async def _freeze(self, *, after_s: float | None = None) -> None:
        """Keep the guest as it is, where a store keeps the run.

        Args:
            after_s: only when executing its scripts again up to here would take longer.
        """
        log, session, recording = self.run.journal.log, self.session, self.run.journal.recording
        if log is None or session is None or (recording is not None and recording.peek() is not None):
            return
        if not (log.eager or session.waits_for):
            return
        made = self.run.dispatcher.next_id
        if after_s is not None and session.interpreter_s - self.frozen_at_s < after_s and made - self.frozen_calls < _REPLAY_CALLS:
            return
        try:
            calls = [
                {"number": number, "call_id": self.ids[number], "name": call.name,
                 "key": self.run.dispatcher.keys.get(self.ids[number]),
                 "args": [wire_from_guest(value) for value in call.args],
                 "kwargs": {key: wire_from_guest(value, key) for key, value in call.kwargs.items()}}
                for number, call in sorted(self.calls.items()) if number in self.tasks
            ]  # fmt: skip
        except Unserialisable:  # it will be refused; the scripts say what it was
            return
        if (frozen := await session.freeze()) is None:
            return
        data, driver = frozen
        self.frozen_at_s, self.frozen_calls = session.interpreter_s, made
        state = {**driver, "tasks": calls, "next_id": self.run.dispatcher.next_id, "prints": list(self.prints)}
        self.run.frozen = Frozen(data, state, len(self.run.journal.entries), sandbox.interpreter_version())
        await log.keep(self.run.frozen)

    async def _stop(self) -> None:
        """Some call ends the run: let the others end properly; where it waits for a decision, keep the guest.

        Raises:
            DseError
        """
        done = await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        failures = [one for one in done if isinstance(one, BaseException) and not isinstance(one, ToolFault)]
        for failure in failures:
            if not isinstance(failure, RunSuspended):
                raise failure
        await self._freeze()
        raise failures[0]

    async def _along(self, fed: Mapping[str, Any], code: str) -> str | None:
        """Pass a recorded script without executing it, where a frozen guest has it behind or in it.

        None when it has to be executed.
        """
        run = self.run
        recording, frozen = run.journal.recording, run.frozen
        if recording is None:
            return None
        passed: list[Mapping[str, Any]] = []
        end: Mapping[str, Any] | None = None
        for entry in recording.path[recording.at :]:
            if entry["kind"] in ("model_call", "model_error", "retry", "run_finished", "stage_ended"):
                break
            passed.append(entry)
            if entry["kind"] in ("observation", "code_error"):
                end = entry
                break
        if end is not None and (end.get("dead") or (frozen is not None and frozen.seq > end["seq"])):
            self._pass(recording, passed, end["seq"])
            if end["kind"] == "code_error":
                self.runtime_errors += 1
                self.last_problem = f"{end['class']}: {end['message']}"
            self.earlier.append(code)
            self.next_guest = frozen
            if end.get("dead"):
                self.earlier.clear()
                self.next_guest = None
                await self.close()
            return str(end["shown"])
        if frozen is None or not frozen.driver["suspended"] or not fed["seq"] < frozen.seq:
            return None
        self._pass(recording, [entry for entry in passed if entry["seq"] < frozen.seq], frozen.seq)
        await self._thaw(frozen)
        self.prints = list(frozen.driver["prints"])
        for one in frozen.driver["tasks"]:
            call = sandbox.ExternalCall(one["number"], one["name"], tuple(one["args"]), dict(one["kwargs"]), True)
            self._start(call, one["call_id"])
        assert self.session is not None
        return await self._answer(sandbox.Waiting((), self.session.waits_for), code)

    def _pass(self, recording: Any, passed: list[Mapping[str, Any]], until: int) -> None:
        """Count what a script did without executing it."""
        recording.at += len(passed)
        for entry in passed:
            if entry["kind"] == "repair":
                self.repairs += 1
                self.last_problem = entry["problem"]
        waiting = {}
        if self.run.frozen is not None and until == self.run.frozen.seq:
            waiting = {one["call_id"]: one["key"] for one in self.run.frozen.driver["tasks"]}
        dispatcher = self.run.dispatcher
        for call_id, record in sorted(recording.calls.items()):
            first = record.intent or record.refused
            if call_id < dispatcher.next_id or first is None or first["seq"] >= until:
                continue
            if call_id not in waiting:
                dispatcher.restore(call_id)
        dispatcher.keys.update(waiting)
        if waiting:
            dispatcher.next_id = max(dispatcher.next_id, self.run.frozen.driver["next_id"])  # type: ignore[union-attr]

    async def _thaw(self, frozen: Frozen) -> None:
        run, self.next_guest = self.run, None
        try:
            self.session = await sandbox.pool().thaw(frozen.data, frozen.driver, limits=self._bounds(), seed=run.seed,
                                                     clock=run.clock, imports=_IMPORTS, **self._names())  # fmt: skip
        except SandboxUnavailable as exc:
            run.frozen = None  # its scripts are executed again instead
            exc.details["lost"] = True
            raise
        self.frozen_at_s, self.frozen_calls = self.session.interpreter_s, run.dispatcher.next_id

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
            raise SandboxUnavailable("The interpreter worker died", value=error.message, lost=True,
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
        return self._failed(error.class_name, error.message, error.line, hint, error.dead)


def _errors(found: Iterable[sandbox.Diagnostic]) -> list[tuple[Any, ...]]:
    return [(d.rule, d.line, d.message, d.hint) for d in found if d.severity == "error"]


register(Code())
