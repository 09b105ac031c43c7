"""From predictors to messages and back, with dspy's own adapter.

A predictor is a dspy signature plus the instructions and demos of the plan. Rendering and parsing are
dspy's; the model is asked by the run, so that limits, journal and recordings see every call.
"""

from __future__ import annotations

import enum
import functools
import json
import types
import typing
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from dse.canonical import digest
from dse.plan import Prompt
from dse.redaction import safe_message, without_paths

if TYPE_CHECKING:
    import dspy

__all__ = ["Predictor", "inputs_message"]


@functools.cache
def _adapter() -> dspy.ChatAdapter:
    import os

    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    import dspy

    return dspy.ChatAdapter()


def inputs_message(signature: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A user message of only the inputs, without a reminder of the output format."""
    return {"role": "user", "content": _user_content(signature, inputs, main_request=False)}


def _user_content(signature: Any, inputs: Mapping[str, Any], *, main_request: bool) -> str:
    if all(type(value) is str for value in inputs.values()):
        # The adapter puts text in as it is, after building a pydantic serialiser for every value.
        pieces, order = _template(signature, tuple(inputs), main_request)
        values = [inputs[name] for name in order]
        return "".join(part for pair in zip(pieces, [*values, ""], strict=True) for part in pair).strip()
    return str(_adapter().format_user_message_content(signature, dict(inputs), main_request=main_request))


@functools.lru_cache(maxsize=512)
def _template(signature: Any, names: tuple[str, ...], main_request: bool) -> tuple[list[str], list[str]]:
    """What the adapter writes around values that are text, and the names of those values in order."""
    marks = {name: f"\0{index}\0" for index, name in enumerate(names)}
    text = str(_adapter().format_user_message_content(signature, marks, main_request=main_request))
    pieces = text.split("\0")
    return pieces[::2], [names[int(index)] for index in pieces[1::2]]


_prefixes: dict[tuple[int, str], tuple[Any, tuple[dict[str, Any], ...]]] = {}


class Predictor:
    """One prompt of a strategy: renders requests, parses replies.

    Args:
        name: of the predictor in the plan's ``prompts``.
        signature: a dspy signature class with its fields; its instructions are replaced by the prompt's.
        prompt: instructions and demos (dicts with values for the signature's fields).
    """

    def __init__(self, name: str, signature: type[dspy.Signature], prompt: Prompt) -> None:
        self.name = name
        self.prompt = prompt
        self.base = signature
        key = (id(signature), digest(prompt.model_dump(mode="json")))
        if key not in _prefixes:
            if len(_prefixes) > 512:
                _prefixes.clear()
            # The class itself is kept beside the messages, so that its id stays its own.
            _prefixes[key] = (signature, self._prefix(signature.with_instructions(prompt.instructions)))
        self._head = _prefixes[key][1]

    def _prefix(self, signature: Any) -> tuple[dict[str, Any], ...]:
        adapter = _adapter()
        messages = [{"role": "system", "content": adapter.format_system_message(signature)}]
        messages += adapter.format_demos(signature, [dict(demo) for demo in self.prompt.demos])
        return tuple(_plain(message) for message in messages)

    def messages(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """System message, demos and the current inputs (in wire form, where sets have an order), as chat messages."""
        return [*self._head, {"role": "user", "content": _user_content(self.base, inputs, main_request=True)}]

    def parse(self, text: str) -> dict[str, Any]:
        """The output fields in `text`.

        Raises:
            ValueError: with what is missing or ill-typed, in words for the model.
        """
        from dspy.utils.exceptions import AdapterParseError

        try:
            try:
                values = dict(_adapter().parse(self.base, text))
            except AdapterParseError:
                named = _with_names_of_members(self.base, text)
                if named is None:
                    raise
                values = dict(_adapter().parse(self.base, named))
            values |= _exact_decimals(self.base, text)
        except AdapterParseError as exc:
            raise ValueError(_parse_problem(exc, self.base, text)) from None
        except Exception as exc:
            raise ValueError(f"the reply could not be read: {safe_message(exc)}") from None
        for name, field in self.base.output_fields.items():
            # dspy reads every reply for `str | None` as text, so None could not be said.
            if isinstance(values[name], str) and values[name] in ("null", "None") and _may_be_none(field.annotation):
                values[name] = None
        return values


def _sections(signature: Any, text: str) -> Iterator[tuple[str, str]]:
    """The output fields in a reply with their texts, as dspy finds them."""
    from dspy.adapters.chat_adapter import field_header_pattern

    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        match = field_header_pattern.match(line.strip())
        if match:
            found.append((match.group(1), [line[match.end() :].strip()]))
        elif found:
            found[-1][1].append(line)
    seen: set[str] = set()
    for name, lines in found:
        if name in signature.output_fields and name not in seen:
            seen.add(name)
            yield name, "\n".join(lines).strip()


def _with_names_of_members(signature: Any, text: str) -> str | None:
    """The reply with names of enum members in place of values that are no text, which dspy finds by their names only."""
    changed, parts = False, []
    for name, said in _sections(signature, text):
        kind = signature.output_fields[name].annotation
        if isinstance(kind, enum.EnumMeta) and said not in kind.__members__:
            members: list[enum.Enum] = list(kind)
            for member in members:
                if not isinstance(member.value, str) and said in (str(member.value), json.dumps(str(member.value))):
                    said, changed = member.name, True
                    break
        parts.append(f"[[ ## {name} ## ]]\n{said}\n")
    return "\n".join(parts) if changed else None


def _exact_decimals(signature: Any, text: str) -> dict[str, Any]:
    """Decimals whose digits do not fit into the float that dspy reads numbers as; nothing where they do."""
    from pydantic import TypeAdapter

    exact: dict[str, Any] = {}
    for name, said in _sections(signature, text):
        annotation = signature.output_fields[name].annotation
        if not _has_decimals(annotation):
            continue
        lost: list[str] = []

        def number(digits: str, lost: list[str] = lost) -> Any:
            if Decimal(digits) == Decimal(repr(float(digits))):
                return float(digits)
            lost.append(digits)
            return digits

        try:
            value = json.loads(said, parse_float=number)
            if lost:
                exact[name] = TypeAdapter(annotation).validate_python(value)
        except (ValueError, ArithmeticError, RecursionError):
            continue  # what dspy made of it stays
    return exact


@functools.lru_cache(maxsize=512)
def _has_decimals(annotation: Any) -> bool:
    from pydantic import TypeAdapter

    from dse.contracts.schema import schema_of

    return '"decimal"' in json.dumps(schema_of(TypeAdapter(annotation), "validation"), default=str)


def _parse_problem(exc: Any, signature: Any, text: str) -> str:
    missing = [name for name in signature.output_fields if f"[[ ## {name} ## ]]" not in text]
    if missing:
        return f"the reply lacks the field markers of: {', '.join(missing)}"
    lines = [line for line in str(getattr(exc, "message", None) or exc).splitlines() if line.strip()]
    useful = [line for line in lines if "rror" in line or "Input should" in line or "[type=" in line] or lines
    return without_paths(" ".join(useful))


def _may_be_none(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType) and type(None) in typing.get_args(annotation)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, list):  # dspy may give content parts; text is all we have
        content = "".join(part.get("text", "") for part in content)
    return {"role": message["role"], "content": content}
