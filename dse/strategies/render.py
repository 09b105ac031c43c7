"""From predictors to messages and back, with dspy's own adapter.

A predictor is a dspy signature plus the instructions and demos of the plan. Rendering and parsing are
dspy's; the model is asked by the run, so that limits, journal and recordings see every call.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
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
    return {"role": "user", "content": _adapter().format_user_message_content(signature, dict(inputs))}


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
        content = _adapter().format_user_message_content(self.base, dict(inputs), main_request=True)
        return [*self._head, {"role": "user", "content": content}]

    def parse(self, text: str) -> dict[str, Any]:
        """The output fields in `text`.

        Raises:
            ValueError: with what is missing or ill-typed, in words for the model.
        """
        from dspy.utils.exceptions import AdapterParseError

        try:
            values = dict(_adapter().parse(self.base, text))
        except AdapterParseError as exc:
            raise ValueError(_parse_problem(exc, self.base, text)) from None
        except Exception as exc:
            raise ValueError(f"the reply could not be read: {safe_message(exc)}") from None
        for name, field in self.base.output_fields.items():
            # dspy reads every reply for `str | None` as text, so None could not be said.
            if isinstance(values[name], str) and values[name] in ("null", "None") and _may_be_none(field.annotation):
                values[name] = None
        return values


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
