"""The same values mean the same in tool calls and in scripts."""

from __future__ import annotations

from typing import Any

import pytest

import dse
from dse.testing.scripted import ScriptedModel, call, say


@dse.tool(effect="pure")
async def save(text: str) -> str:
    """Save a text."""
    return text


class Note(dse.Signature):
    """Save a note."""

    question: str = dse.InputField()
    saved: str = dse.OutputField()
    tools = [save]


STRICT = {"check_errors": 0, "runtime_errors": 0, "repairs": 0}


def scripted(signature: Any, code: str) -> dse.Program:
    """A program that gets one try with `code`."""
    model = ScriptedModel(lambda request: say(f"[[ ## code ## ]]\n{code}"))
    return dse.Program(signature, "code", lm=model).narrowed(limits=STRICT)


@pytest.mark.parametrize("text", [
    "<module>core</module>", "<generator>WordPress 6</generator>", "<class>A</class>", "<function keys> broken",
    "<function keys>", "<Missing object>", "<re.Match object; none>", "dict_keys are fine",
])  # fmt: skip
def test_any_ordinary_text_is_data(text: str) -> None:
    prediction = scripted(Note, f"submit(saved=await save({text!r}))")(question="?")
    assert prediction.saved == text
    model = ScriptedModel([call(("save", {"text": text})), call(("submit", {"saved": text}))])
    prediction = dse.Program(Note, "tool_call", lm=model).narrowed(limits=STRICT)(question="?")
    assert prediction.saved == text and prediction.receipt["calls"][0]["outcome"] == "ok"
