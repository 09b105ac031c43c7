"""Mode ``tool_call``: rounds of tool calls, native where the model can, as text otherwise.

Calls of one round run concurrently as their contracts allow. The answer is given by calling ``submit``,
whose parameters are the output fields.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from dse.contracts.signature import SignatureSpec, dspy_signature, validation_summary
from dse.contracts.stubs import function_schema, presented
from dse.contracts.tool import ToolContract
from dse.errors import NoSubmission, ToolFault
from dse.plan import Prompt
from dse.runtime.dispatcher import gather_calls
from dse.runtime.run import Run
from dse.strategies.base import register
from dse.strategies.render import Predictor, inputs_message

__all__ = ["ToolCalling"]

_SUBMIT = "Give the final answer. Ends the task."
_PROTOCOL = (
    "Call tools as needed, several at once where they do not depend on each other. "
    "When the answer is ready, call `submit` with it; nothing else counts as an answer."
)


class ToolRequest(BaseModel):
    """One call in text mode."""

    name: str
    arguments: dict[str, Any] = {}


@functools.lru_cache(maxsize=256)
def _text_signature(base: Any) -> Any:
    import dspy

    signature = base
    for name in list(base.output_fields):
        signature = signature.delete(name)
    signature = signature.append("tools", dspy.InputField(desc="the tools, as JSON"), type_=str)
    signature = signature.append("transcript", dspy.InputField(desc="calls so far, with results"), type_=str)
    return signature.append("tool_calls", dspy.OutputField(desc="calls to make now"), type_=list[ToolRequest])


@functools.lru_cache(maxsize=256)
def _inputs_only(base: Any) -> Any:
    for name in list(base.output_fields):
        base = base.delete(name)
    return base


_schemas: dict[str, dict[str, Any]] = {}


def _once(key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The native schema of a tool or of ``submit``, made once per interface or signature."""
    if key not in _schemas:
        if len(_schemas) > 1_024:
            _schemas.clear()
        _schemas[key] = make()
    return _schemas[key]


def _native_tools(contracts: Iterable[ToolContract], spec: SignatureSpec) -> list[dict[str, Any]]:
    def submit() -> dict[str, Any]:
        return {"name": "submit", "description": _SUBMIT, "parameters": spec.output_schema}

    tools = [_once(contract.interface_id, functools.partial(function_schema, contract)) for contract in contracts]
    return [*tools, _once(f"submit {spec.signature_id}", submit)]


def _trajectory(demo: Mapping[str, Any], spec: SignatureSpec) -> dict[str, Any]:
    """A demonstration as inputs, rounds and outputs.

    `ToolCalling.demo` makes it so; dspy's optimizers make one from the predictor's fields, whose last word is in
    ``tool_calls``.
    """
    if "rounds" in demo:
        return dict(demo)
    calls = [{"name": c["name"], "arguments": c.get("arguments", {}), "result": None} for c in demo.get("tool_calls", ())]
    answer = next((c["arguments"] for c in calls if c["name"] == "submit"), {name: demo.get(name) for name in spec.outputs})
    others = [c for c in calls if c["name"] != "submit"]
    inputs = {name: demo[name] for name in spec.inputs if name in demo}
    return {"inputs": inputs, "rounds": [{"calls": others}] if others else [], "outputs": answer}


def _message_of(fault: ToolFault) -> dict[str, Any]:
    return {"error": {"class": type(fault).__name__, "message": fault.message}}


class ToolCalling:
    mode = "tool_call"
    needs_model = True

    def fits(self, spec: SignatureSpec) -> bool:
        return bool(spec.tools)

    def seed_prompts(self, spec: SignatureSpec) -> dict[str, Prompt]:
        return {"act": Prompt(instructions=spec.instructions)}

    def predictors(self, spec: SignatureSpec) -> dict[str, Any]:
        return {"act": _text_signature(dspy_signature(spec))}

    def demo(self, journal: Iterable[Mapping[str, Any]], spec: SignatureSpec, inputs: Mapping[str, Any],
             outputs: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:  # fmt: skip
        """The whole trajectory: rounds of calls with their results, then the submission."""
        rounds: list[dict[str, Any]] = []
        for entry in journal:
            if entry["kind"] == "round":
                rounds.append({"calls": entry["calls"]})
            elif entry["kind"] in ("repair", "tool_refused"):
                return None  # a path with mistakes is no example
        return {"act": {"inputs": dict(inputs), "rounds": rounds, "outputs": dict(outputs)}}

    async def run(self, run: Run) -> dict[str, Any]:
        contracts = (presented(run.dispatcher.toolbox[name].contract, run.plan.overlays) for name in run.plan.allow)
        tools = _native_tools(contracts, run.spec)
        native = run.model is not None and run.model.supports_tools
        return await (_Native(run, tools) if native else _Text(run, tools)).loop()


class _Rounds:
    """What native and text rounds share: dispatching calls, accepting a submission, counting repairs."""

    def __init__(self, run: Run, tools: list[dict[str, Any]]) -> None:
        self.run = run
        self.tools = tools
        self.repairs = 0
        self.problem = ""
        self.outputs: dict[str, Any] | None = None
        self.prompt = run.plan.prompts["act"]

    def repair(self, problem: str, *, submitted: bool = False) -> None:
        self.problem = problem if submitted else ""
        self.repairs += 1
        self.run.journal.add("repair", predictor="act", problem=problem)

    def exhausted(self) -> bool:
        return self.repairs > self.run.limits.repairs

    async def execute(self, calls: list[tuple[str, dict[str, Any] | None]]) -> list[Any]:
        """Results in the order of `calls`: wire values, or error records. Sets `outputs` on a valid submission.

        Args:
            calls: names with arguments (None where the model's JSON was malformed).
        """

        async def one(name: str, arguments: dict[str, Any] | None) -> Any:
            try:
                return (await self.run.dispatcher.call(name, (), arguments, malformed=arguments is None)).value
            except ToolFault as fault:
                return _message_of(fault)

        others = [(i, c) for i, c in enumerate(calls) if c[0] != "submit"]
        settled = await gather_calls([one(*call) for _, call in others])
        results: list[Any] = [None] * len(calls)
        for (index, _), result in zip(others, settled, strict=True):
            if isinstance(result, BaseException):
                raise result
            results[index] = result
        if others:
            self.run.journal.add("round", calls=[
                {"name": c[0], "arguments": c[1], "result": results[i]} for i, c in others])  # fmt: skip
        problems = []
        for index, (name, arguments) in enumerate(calls):
            if name == "submit" and self.outputs is None:
                problem = await self._submit(arguments)
                if problem is None:
                    continue
                problems.append(problem)
                message = f"The answer does not fit: {problem}. Submit again."
                results[index] = {"error": {"class": "ValidationError", "message": message}}
        if problems and self.outputs is None:
            self.repair("; ".join(dict.fromkeys(problems)), submitted=True)
        return results

    async def _submit(self, arguments: dict[str, Any] | None) -> str | None:
        """Take an answer, or say what is wrong with it."""
        if arguments is None:
            return "the arguments are not a JSON object"
        try:
            self.outputs = await self.run.accept_outputs(arguments)
        except ValidationError as exc:
            return validation_summary(exc)
        except ValueError as exc:
            return str(exc)
        return None

    def failed(self) -> Exception:
        if self.problem:
            return self.run.invalid(self.problem)
        return NoSubmission("The rounds ended without a submitted answer", remedy="See the run's receipt.")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _unsendable(calls: Iterable[ToolRequest]) -> str | None:
    """Why calls cannot be shown to the model again, as half a surrogate pair cannot; None if they can."""
    try:
        json.dumps([one.model_dump() for one in calls], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "A call holds half a surrogate pair: write whole characters"
    return None


class _Native(_Rounds):
    def _user(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return inputs_message(_inputs_only(dspy_signature(self.run.spec)), inputs)

    def _demo(self, demo: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
        """A demonstration as the conversation it was."""
        demo = _trajectory(demo, self.run.spec)
        messages = [self._user(demo["inputs"])]
        rounds = [*demo["rounds"], {"calls": [{"name": "submit", "arguments": demo["outputs"], "result": "accepted"}]}]
        for index, one in enumerate(rounds):
            calls = [{"id": f"demo_{number}_{index}_{i}", "name": c["name"], "arguments": c["arguments"]}
                     for i, c in enumerate(one["calls"])]  # fmt: skip
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": _text(c["result"])}
                         for call, c in zip(calls, one["calls"], strict=True)]  # fmt: skip
        return messages

    async def loop(self) -> dict[str, Any]:
        run = self.run
        messages: list[dict[str, Any]] = [{"role": "system", "content": f"{self.prompt.instructions}\n\n{_PROTOCOL}"}]
        for number, demo in enumerate(self.prompt.demos):
            messages += self._demo(demo, number)
        messages.append(self._user(run.wire_inputs))
        used: set[str] = set()
        while not self.exhausted():
            completion = await run.complete(
                {"messages": list(messages), "tools": self.tools, "tool_choice": "auto"}, predictor="act")  # fmt: skip
            if not completion.tool_calls:
                self.repair("no tool was called")
                messages.append({"role": "assistant", "content": completion.text or ""})
                messages.append({"role": "user", "content": "Call a tool, or call `submit` with the final answer."})
                continue
            calls = []
            for call in completion.tool_calls:
                ident, number = call.id, len(used)
                while not ident or ident in used:
                    ident, number = f"call_{number}", number + 1
                used.add(ident)
                calls.append((ident, call))
            messages.append({"role": "assistant", "content": completion.text, "tool_calls": [
                {"id": ident, "name": c.name or "unknown"}
                | ({"raw": c.raw or ""} if c.arguments is None else {"arguments": c.arguments})
                for ident, c in calls]})  # fmt: skip
            results = await self.execute([(c.name, c.arguments) for _, c in calls])
            if self.outputs is not None:
                if run.trace:
                    run.trace("act", dict(run.inputs), {"tool_calls": [
                        {"name": "submit", "arguments": self.outputs}]})  # fmt: skip
                return self.outputs
            messages += [{"role": "tool", "tool_call_id": ident, "content": _text(result)}
                         for (ident, _), result in zip(calls, results, strict=True)]  # fmt: skip
        raise self.failed()


class _Text(_Rounds):
    async def loop(self) -> dict[str, Any]:
        run = self.run
        signature = _text_signature(dspy_signature(run.spec))
        prompt = Prompt(instructions=f"{self.prompt.instructions}\n\n{_PROTOCOL}",
                        demos=tuple(self._demo(demo) for demo in self.prompt.demos))  # fmt: skip
        predictor = Predictor("act", signature, prompt)
        described = json.dumps(self.tools, ensure_ascii=False)
        transcript: list[str] = []
        while not self.exhausted():
            inputs = {**run.wire_inputs, "tools": described, "transcript": "\n".join(transcript) or "(nothing yet)"}
            completion = await run.complete({"messages": predictor.messages(inputs), "tools": []}, predictor="act")
            try:
                parsed = predictor.parse(completion.text or "")["tool_calls"]
                if problem := _unsendable(parsed):
                    raise ValueError(problem)
            except ValueError as exc:
                self.repair(str(exc))
                transcript.append(f"Your last reply could not be used: {exc}")
                continue
            if run.trace:
                run.trace("act", inputs, {"tool_calls": [one.model_dump() for one in parsed]})
            if not parsed:
                self.repair("no tool was called")
                transcript.append("Your last reply called nothing: call a tool, or `submit`.")
                continue
            results = await self.execute([(one.name, one.arguments) for one in parsed])
            if self.outputs is not None:
                return self.outputs
            for one, result in zip(parsed, results, strict=True):
                transcript.append(f"{one.name}({json.dumps(one.arguments, ensure_ascii=False)}) -> {_text(result)}")
        raise self.failed()

    def _demo(self, demo: Mapping[str, Any]) -> dict[str, Any]:
        demo = _trajectory(demo, self.run.spec)
        lines = [f"{c['name']}({json.dumps(c['arguments'], ensure_ascii=False)}) -> {_text(c['result'])}"
                 for one in demo["rounds"] for c in one["calls"]]  # fmt: skip
        return {**demo["inputs"], "tools": "(as below)", "transcript": "\n".join(lines) or "(nothing yet)",
                "tool_calls": [{"name": "submit", "arguments": demo["outputs"]}]}  # fmt: skip


register(ToolCalling())
