"""Sensitive values in whatever form an exception, a validator or a dict brings them up again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field

import dse
from dse.redaction import Secrets
from dse.testing import ScriptedModel, call, say

IBAN = "DE89370400440532013000"
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END KEY-----"
Iban = Annotated[str, AfterValidator(lambda text: text.replace(" ", "").upper())]


class Account(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    number: str = Field(alias="iban")
    tan: str = Field(default="", validation_alias=AliasChoices("pin", "code"))


def first(value: Any) -> str:
    return str(next(iter(value)) if isinstance(value, dict) else value.number if isinstance(value, Account) else value)


def paying(annotation: Any, sensitive: str = "key") -> Any:
    async def pay(key: Any, note: str = "") -> Any:
        """Pay."""
        raise RuntimeError(note + first(key))

    pay.__annotations__ = {"key": annotation, "note": str, "return": annotation}
    return dse.tool(pay, effect="write", sensitive=[sensitive])


def task(tool: Any, **fields: Any) -> type[dse.Signature]:
    return type("Ask", (dse.Signature,), {
        "__doc__": "Answer.", "__annotations__": {"question": str, "answer": str, **dict.fromkeys(fields, str)}, "tools": [tool],
        "question": dse.InputField(), "answer": dse.OutputField(), **fields})  # fmt: skip


def shown(program: dse.Program, **inputs: Any) -> dict[str, str]:
    """Everything that is shown of a run."""
    events = list(program.stream(question="?", **inputs))
    made = events[-1]["prediction"]
    assert program.store is not None
    receipt, journal = program.store.run(events[-1]["run_id"])
    return {"receipt": json.dumps(made.receipt), "stream": json.dumps(events[:-1]), "kept": json.dumps([receipt, journal])}


LEAKS = {
    "lines": (str, PEM, "bad key: ", "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"),
    "spaces": (str, "AB12  CD34", "bad key: ", "AB12 CD34"),
    "path": (str, "user anna, key /srv/keys/anna and 4711", "bad: ", "user anna"),
    **{f"cut at {room}": (str, IBAN, "x" * (281 - room), IBAN[:room]) for room in (4, 5, 16, 21)},
    "cut lines": (str, PEM, "x" * 250 + " ", "--BEGIN"),
    "cut before it is shortened": (str, "secret words of many", " " * 3_950 + "no " + "/a" * 17 + " ", "secret w"),
    "normalised": (Iban, "de89 3704 0044 0532 0130 00", "no account ", IBAN),
    "key": (dict[str, int], {IBAN: 1}, "no account ", IBAN),
    "key like a name": (dict[str, int], {"annabella": 1}, "no account ", "annabella"),
}


@pytest.mark.parametrize("mode", ["tool_call", "code"])
@pytest.mark.parametrize("case", LEAKS)
def test_an_exceptions_text_shows_no_sensitive_value(case: str, mode: str, tmp_path: Path) -> None:
    annotation, key, note, leak = LEAKS[case]
    if mode == "tool_call":
        model = ScriptedModel([call(("pay", {"key": key, "note": note})), call(("submit", {"answer": "d"}))])
    else:
        tried = f"try:\n    await pay({key!r}, {note!r})\nexcept Exception as e:\n    print(e)\nsubmit(answer='d')"
        model = ScriptedModel([say(f"[[ ## code ## ]]\n{tried}")])
    program = dse.Program(task(paying(annotation)), mode, lm=model, store=tmp_path / "runs.db")
    for place, text in shown(program).items():
        assert "pay failed: RuntimeError: " in text or place == "stream", place
        assert leak not in text, place


def test_a_sensitive_input_in_one_line_is_hidden(tmp_path: Path) -> None:
    @dse.tool(effect="read")
    async def look(text: str) -> str:
        """Look."""
        raise RuntimeError("not found: " + text)

    model = ScriptedModel([call(("look", {"text": PEM})), call(("submit", {"answer": "d"}))])
    program = dse.Program(task(look, secret=dse.InputField(sensitive=True)), "tool_call", lm=model, store=tmp_path / "runs.db")
    for text in shown(program, secret=PEM).values():
        assert "MIIEvQ" not in text and "not found: [redacted]" in text


@pytest.mark.parametrize(
    ("sensitive", "given"), [("iban", {"number": IBAN}), ("iban", {"iban": IBAN}), ("tan", {"iban": "x", "code": IBAN})]
)
def test_a_field_is_hidden_by_each_name_that_it_may_be_given_by(sensitive: str, given: Any, tmp_path: Path) -> None:
    model = ScriptedModel([call(("pay", {"key": given})), call(("submit", {"answer": "d"}))])
    program = dse.Program(task(paying(Account, sensitive)), "tool_call", lm=model, store=tmp_path / "runs.db")
    for place, text in shown(program).items():
        assert IBAN not in text, place


def test_names_of_fields_and_structure_stay(tmp_path: Path) -> None:
    def pay(key: Account, limits: dict[str, int]) -> dict[str, int]:
        """Pay."""
        return {"number": 1, IBAN: 2, **limits}

    model = ScriptedModel([call(("pay", {"key": {"iban": IBAN, "pin": "tool"}, "limits": {"x1": 1, IBAN + "1": 2}})),
                           call(("submit", {"answer": "number of outcome"}))])  # fmt: skip
    program = dse.Program(task(dse.tool(pay, effect="write", sensitive=["key"])), "tool_call", lm=model, store=tmp_path / "r.db")
    made = program(question="?")
    (one,) = made.receipt["calls"]
    assert one["tool"] == "pay" and one["outcome"] == "ok" and made.receipt["outputs"] == {"answer": "number of outcome"}
    assert one["arguments"] == {"key": "[redacted]", "limits": {"x1": 1, "[redacted]1": 2}}
    assert program.store is not None
    _, journal = program.store.run(made.receipt["run_id"])
    results = [entry["result"] for entry in journal if entry["kind"] == "tool_outcome"]
    assert results == [{"number": 1, "[redacted]": 2, "x1": 1, "[redacted]1": 2}]


def test_what_the_model_is_told_stays_as_it_was() -> None:
    model = ScriptedModel([call(("pay", {"key": IBAN, "note": "x" * 278})), call(("submit", {"answer": "d"}))])
    dse.Program(task(paying(str)), "tool_call", lm=model)(question="?")
    assert IBAN[:4] in json.dumps(model.requests[-1]["messages"][-1])


@pytest.mark.parametrize(
    ("values", "text", "hidden"),
    [
        (["ab...cdefgh"], "see ab...cdef... there", "see [redacted]... there"),
        (["abcd...efghijk"], "see abcd...zzz…", "see [redacted]...zzz…"),
        (["abcdef", "cdefgh"], "abcdefgh abcd", "[redacted] abcd"),
        (["abcdef"], "abcd\n[cut]\n", "[redacted]\n[cut]\n"),
        (["abcdef"], "abc... abcdef", "abc... [redacted]"),
        (["a \"b\" c\n d"], json.dumps({"m": 'x a "b" c...'}), '{"m": "x [redacted]..."}'),
        ([f"CUST-{i:05}" for i in range(5_000)], "of CUST-04999 and CUST-9 and CUST-0...", "of [redacted] and CUST-9 and [redacted]..."),
        (["k" * 500_000 + "!"], "it is " + "k" * 20_000 + "…", "it is [redacted]…"),
    ],
    ids=range(8),
)  # fmt: skip
def test_values_and_what_is_left_of_them(values: list[str], text: str, hidden: str) -> None:
    secrets = Secrets(["x"])
    secrets.remember({"x": values}, secrets.names)
    assert secrets.text(text) == hidden


@pytest.mark.parametrize("text", ["CUST-0...", "CUST-04999 ", "DE89", "ab...c", "no value in this text. "])
def test_the_time_grows_with_the_text_and_not_faster(text: str) -> None:
    for values in ([f"CUST-{i:05}" for i in range(5_000)], ["DE89" * 50_000 + "!"], ["ab...cdefgh"]):
        secrets = Secrets(["x"])
        secrets.remember({"x": values}, secrets.names)
        took = []
        for size in (20_000, 200_000):
            whole = (text * size)[:size]
            secrets.text(whole)
            began = time.process_time()
            secrets.text(whole)
            took.append(time.process_time() - began)
        assert took[1] < max(40 * took[0], 1.0)  # ten times as long; a square would be a hundred
