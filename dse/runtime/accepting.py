"""What a run takes in and gives out, held to what is written down of it: a stored value has to read as the same one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dse.canonical import canonical_json, sha256_hex
from dse.contracts.script import Script, scripts_in
from dse.contracts.signature import SignatureSpec
from dse.errors import InputError, SignatureError, Unserialisable
from dse.redaction import safe_message
from dse.runtime.made import may_differ

if TYPE_CHECKING:
    from dse.runtime.run import Run

__all__ = ["accept_outputs", "check_inputs"]


def check_inputs(run: Run, given: Mapping[str, Any]) -> None:
    """Hold inputs to what is written down of them: models and scripts see that, and a run that goes on reads it again.

    Raises:
        SignatureError
    """
    spec, wire = run.spec, run.wire_inputs
    if _canonical(given) == canonical_json(wire):
        return  # the same would be read again
    try:
        changed = _first_difference(wire, spec.wire_inputs(spec.validate_inputs(wire)))
    except InputError as exc:
        changed = str(exc.value)
    except Exception as exc:  # a validator that cannot take what it gave itself
        changed = type(exc).__name__ if spec.sensitive else safe_message(exc)
    if changed is not None:
        raise SignatureError("An input changes when what was written down is read again", value=changed,
                             remedy="Use a type that reads its own JSON form: no field that is only written, only "
                                    "read or read by another name, and no serializer with a form of its own.")  # fmt: skip


async def accept_outputs(run: Run, values: Mapping[str, Any]) -> dict[str, Any]:
    """Validated outputs in wire form.

    Raises:
        pydantic.ValidationError, ValueError: they do not fit the signature, or are too large and the step fails.
        LimitExceeded: they are too large and the run ends.
        SignatureError: a type whose stored form reads as another value.
    """
    spec, secrets, limits = run.spec, run.secrets, run.limits
    if secrets.names:
        secrets.remember(values, spec.sensitive)
    given = _canonical(values)  # now: a validator may change what is in them
    try:
        typed = spec.validate_outputs(values)
        wire = spec.wire_outputs(typed)
        if secrets.names:
            secrets.remember(wire, spec.sensitive)
        text = canonical_json(wire)
        if text != given and any(may_differ(field.adapter) for field in spec.outputs.values()):
            wire = _as_accepted(run, wire, given)
            text = canonical_json(wire)
        changed = None if text == given else _changed(spec, wire)  # the same would be read again
        size = len(text)
    except ValidationError:
        raise
    except Unserialisable as exc:
        raise ValueError(f"{exc.what}. {exc.remedy}") from None
    except Exception as exc:  # a validator of the signature's types that cannot take what the model gave
        raise ValueError(f"the outputs cannot be validated: {safe_message(exc)}") from None
    if changed is not None:
        raise SignatureError("An output changes when what was written down is read again", value=changed,
                             remedy="Use a type and validators that leave their own result as it is.")  # fmt: skip
    if size > limits.output_bytes:
        if limits.outcome("output_bytes") == "fail_step":
            raise ValueError(f"the outputs take {size} bytes; {limits.output_bytes} are allowed")
        raise run.limit("output_bytes", size, limits.output_bytes)
    for path, script in scripts_in(typed):
        await _check_script(run, path, script)
    return wire


def _as_accepted(run: Run, wire: dict[str, Any], given: bytes | None) -> dict[str, Any]:
    """Outputs as they were made of the same before; what is made here first is noted."""
    journal, noted = run.journal, None if given is None else f"sha256:{sha256_hex(given)}"
    place = journal.place
    known = journal.recording.accepted.get(place) if journal.recording is not None else None
    if known is None:
        journal.add("accepted", place=place, given=noted, outputs=wire)
    elif known["given"] == noted:
        return copy.deepcopy(dict(known["outputs"]))
    return wire


async def _check_script(run: Run, path: str, script: Script) -> None:
    """A script among the outputs may call what the plan allows (in a mode without tools: what the signature declares).

    Raises:
        ValueError: with what is wrong, in words for the model.
    """
    from dse.runtime.guest import script_problem

    contracts = {tool.name: tool.contract for tool in run.spec.tools if tool.nests is None}
    allow = contracts if run.plan.mode == "direct" else run.plan.allow
    problem = await script_problem(script, contracts, allow)
    if problem is not None:
        raise ValueError(f"{path}: {problem}")


def _changed(spec: SignatureSpec, wire: Mapping[str, Any]) -> str | None:
    """Name of an output whose stored form reads as something else; results are stored, scored and shown in it."""
    return _first_difference(wire, spec.wire_outputs(spec.validate_outputs(wire)))


def _first_difference(wire: Mapping[str, Any], again: Mapping[str, Any]) -> str | None:
    return next((name for name in wire if canonical_json(again[name]) != canonical_json(wire[name])), None)


def _canonical(values: Mapping[str, Any]) -> bytes | None:
    """The canonical text of values; None for those that JSON cannot hold."""
    try:
        return canonical_json(dict(values))
    except (Unserialisable, RecursionError):
        return None
