"""Demonstrations across modes: what a solved run in one mode shows a program in another.

A run in mode ``code`` is a conversation with the tools like any other: its calls and results, in order, make a
demonstration for ``tool_call``. Nothing in it is made up: the calls were made in the row's own environment and the
answer was scored. The reverse needs a script that nobody wrote. It is put together from the calls, with values taken
from where they first stood, and used only if it passes lint and gate check and, executed in the sandbox against the
recorded results, makes the same calls and submits the same answer.
"""

from __future__ import annotations

import datetime as dt
import keyword
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dse.canonical import canonical_json
from dse.compiler.prune import check_script
from dse.contracts.schema import guest_from_wire, wire_from_guest
from dse.contracts.signature import SignatureSpec
from dse.contracts.tool import ToolContract
from dse.errors import Unserialisable
from dse.evaluation.evaluator import RolloutRecord
from dse.runtime.history import NESTED

__all__ = ["Made", "as_rounds", "as_script", "calls_of", "replays"]

_CLOCK = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_MOST_CALLS = 12  # more make no example that a model learns from


class Made(NamedTuple):
    """One call that gave a result."""

    call_id: int
    name: str
    arguments: Mapping[str, Any]
    result: Any


def calls_of(record: RolloutRecord) -> list[list[Made]] | None:
    """The calls of a run, as groups of calls that were under way together; None where something went wrong on the way."""
    groups: list[list[Made]] = []
    started: dict[int, tuple[str, Mapping[str, Any]]] = {}
    joining = False  # no call of the present group has ended yet
    group_of: dict[int, int] = {}
    for entry in record.journal:
        kind = entry["kind"]
        if kind in ("code_error", "repair", "tool_refused", "retry", "approval"):
            return None
        if kind == "tool_intent" and entry["call_id"] < NESTED:
            if not joining:
                groups.append([])
            joining = True
            started[entry["call_id"]] = (entry["tool"], entry["arguments"])
            group_of[entry["call_id"]] = len(groups) - 1
        elif kind == "tool_outcome" and entry["call_id"] < NESTED:
            joining = False
            if entry["outcome"] != "ok" or entry["call_id"] not in started:
                return None
            name, arguments = started.pop(entry["call_id"])
            groups[group_of[entry["call_id"]]].append(Made(entry["call_id"], name, arguments, entry["result"]))
    if started or sum(map(len, groups)) > _MOST_CALLS:
        return None
    return [sorted(group, key=lambda made: made.call_id) for group in groups]


def as_rounds(record: RolloutRecord, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """A demonstration for mode ``tool_call``."""
    groups = calls_of(record)
    if not groups:
        return None
    rounds = [{"calls": [{"name": m.name, "arguments": dict(m.arguments), "result": m.result} for m in group]} for group in groups]
    return {"act": {"inputs": dict(inputs), "rounds": rounds, "outputs": dict(record.outputs or {})}}


def as_script(record: RolloutRecord, inputs: Mapping[str, Any]) -> str | None:
    """A script that makes the calls of a run and submits its answer.

    None where an output stands neither in a result nor among the inputs: a script could only state it, and would show
    an answer as if there were no need to find it.
    """
    groups = calls_of(record)
    if not groups:
        return None
    places = [(_known(value), name) for name, value in inputs.items()]
    lines: list[str] = []
    number = 0
    for group in groups:
        names, expressions, found = [], [], []
        for made in group:
            number += 1
            name = f"{made.name}_{number}"
            if any(keyword.iskeyword(key) or not key.isidentifier() for key in made.arguments):
                return None
            given = ", ".join(f"{key}={_expression(value, places)}" for key, value in made.arguments.items())
            names.append(name)
            expressions.append(f"{made.name}({given})")
            found += list(_places(made.result, name))
        if len(group) == 1:
            lines.append(f"{names[0]} = await {expressions[0]}")
        else:
            lines.append(f"{', '.join(names)} = await asyncio.gather(\n    " + ",\n    ".join(expressions) + ",\n)")
        places += found
    answer = []
    for name, value in (record.outputs or {}).items():
        where = _place_of(value, places)
        if where is None:
            return None
        answer.append(f"{name}={where}")
    return "\n".join([*lines, f"submit({', '.join(answer)})"])


async def replays(
    script: str, record: RolloutRecord, spec: SignatureSpec, inputs: Mapping[str, Any], contracts: Mapping[str, ToolContract],
) -> bool:  # fmt: skip
    """Whether a script passes lint and gate check, makes exactly the recorded calls and submits the recorded outputs.

    It runs in the sandbox; a call that is not the recorded one ends it, so no tool is needed.

    Raises:
        SandboxUnavailable
    """
    from dse.runtime import sandbox
    from dse.strategies.checking import IMPORTS

    groups = calls_of(record) or []
    left = [made for group in groups for made in group]
    contracts = {name: contracts[name] for name in sorted({made.name for made in left})}
    checked = await check_script(script, spec, contracts)
    if checked.problems:
        return False
    session = sandbox.pool().session(
        limits=sandbox.SandboxLimits(feed_s=5.0), seed=0, clock=_CLOCK, imports=IMPORTS,
        async_names=frozenset(contracts), sync_names=frozenset({"submit"}))  # fmt: skip
    values = {name: guest_from_wire(inputs[name], field.schema) for name, field in spec.inputs.items() if name in inputs}
    try:
        turn = await session.feed(checked.lint.code, inputs=values, shims=checked.lint.shims)
        while isinstance(turn, sandbox.Waiting):
            results: dict[int, Any] = {}
            for call in turn.calls:
                wire = {key: wire_from_guest(value, key) for key, value in call.kwargs.items()}
                if call.name == "submit":
                    return not left and not call.args and canonical_json(wire) == canonical_json(dict(record.outputs or {}))
                made = left.pop(0) if left else None
                if made is None or call.args or (call.name, canonical_json(wire)) != (made.name, canonical_json(dict(made.arguments))):
                    return False
                contract = contracts[call.name]
                results[call.call_id] = sandbox.Value(guest_from_wire(made.result, contract.returns))
            turn = await session.resume(results)
        return False
    except Unserialisable:
        return False
    finally:
        await session.aclose()


# --- where a value stood first


def _known(value: Any) -> bytes:
    return canonical_json(value)


def _places(value: Any, path: str) -> Iterator[tuple[bytes, str]]:
    """Every value in a result, with the expression that gives it."""
    yield _known(value), path
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _places(item, f"{path}[{key!r}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _places(item, f"{path}[{index}]")


def _place_of(value: Any, places: Sequence[tuple[bytes, str]]) -> str | None:
    """The one place where a value stands; None if it stands nowhere, or in several that may differ on another row."""
    known = _known(value)
    found = [path for text, path in places if text == known]
    return found[0] if len(found) == 1 else None


def _expression(value: Any, places: Sequence[tuple[bytes, str]]) -> str:
    where = _place_of(value, places)
    return where if where is not None else repr(value)
