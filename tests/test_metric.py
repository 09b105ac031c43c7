"""Metrics: what they accept, what they refuse, and what the shipped ones say."""

from __future__ import annotations

import datetime as dt
import math
import pickle
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dse
from dse.errors import BudgetExhausted, CassetteMiss, MetricError, ModelUnavailable, RunFailed
from dse.evaluation.dataset import Example
from dse.evaluation.metric import Metric, MetricContext, Score, exact_match, metric, numeric, same_wire, set_f1
from dse.testing.scripted import ScriptedModel, call

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def score(what: Metric, labels: dict[str, Any], outputs: dict[str, Any], ctx: MetricContext | None = None) -> Score:
    example = Example("e1", {"q": 1}, labels)
    return anyio.run(what.score, example, SimpleNamespace(outputs=outputs), ctx)


def given_back(result: Any) -> Score:
    return score(metric(lambda example, prediction, ctx: result, revision="1", name="fixed"), {}, {})


# ---- Score ------------------------------------------------------------------------------------------------


def test_score_keeps_plain_numbers():
    parts = {"recall": 1, "ok": True}
    made = Score(True, "fine", parts)
    parts["later"] = 2
    assert made.value == 1.0 and type(made.value) is float and float(made) == 1.0
    assert made.components == {"recall": 1.0, "ok": 1.0} and made.feedback == "fine"
    assert pickle.loads(pickle.dumps(made)) == made and hash(made) == hash(Score(1, "fine"))
    with pytest.raises(AttributeError):
        made.value = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("value", [-0.001, 1.001, float("nan"), float("inf"), "1", None, [1], 1j, Decimal("0.5"), 10**400])
def test_values_that_are_no_score(value: Any):
    with pytest.raises(MetricError) as caught:
        Score(value)
    assert caught.value.code == "DSE160" and caught.value.remedy
    with pytest.raises(MetricError, match="'fixed' on example 'e1'"):
        given_back(value)


@pytest.mark.parametrize(
    "more", [{"feedback": None}, {"feedback": 3}, {"components": [1]}, {"components": {"a": "1"}},
             {"components": {"a": float("nan")}}, {"components": {1: 1.0}}],
)  # fmt: skip
def test_malformed_parts_of_a_score(more: dict[str, Any]):
    with pytest.raises(MetricError):
        Score(0.5, **more)


@given(st.floats(0, 1) | st.booleans() | st.integers(0, 1) | st.fractions(0, 1))
def test_any_number_in_range_is_a_score(value: Any):
    assert given_back(value) == Score(float(value))


def test_numpy_scalars_are_numbers():
    numpy = pytest.importorskip("numpy")
    for value in (numpy.float32(0.5), numpy.float64(0.5), numpy.bool_(True), numpy.int64(1), numpy.array(0.5)):
        assert given_back(value).value == float(value)
    for value in (numpy.array([0.5]), numpy.float32("nan"), numpy.str_("1")):
        with pytest.raises(MetricError):
            given_back(value)


# ---- declaring --------------------------------------------------------------------------------------------


def test_declared_metric_is_callable_as_written():
    @metric(revision="2", kind="judge")
    def close(example: Any, prediction: Any, ctx: Any) -> Any:
        """How close."""
        return example.goal, prediction, ctx.state

    assert isinstance(close, Metric)
    assert (close.name, close.revision, close.kind, close.__doc__) == ("close", "2", "judge", "How close.")
    assert close(Example("e", {}, {"goal": 4}), 5, MetricContext(state=6)) == (4, 5, 6)
    assert close(Example("e", {}, {"goal": 4}), 5)[2] is None
    assert metric(close) is close


def test_revision_defaults_to_the_source():
    def make(text: str) -> Metric:
        scope: dict[str, Any] = {}
        exec(f"def f(example, prediction, ctx):\n    return {text}", scope)
        return metric(scope["f"])

    assert make("1.0").revision == make("1.0").revision != make("0.5").revision
    assert make("1.0").revision.startswith("src-") and make("1.0").kind == "exact" and make("1.0").name == "f"


@pytest.mark.parametrize(
    ("fn", "more"),
    [
        (lambda example: 1, {}),
        (lambda example, prediction: 1, {}),
        (lambda example, prediction, *, ctx: 1, {}),
        (lambda example, prediction, ctx: 1, {"kind": "guess"}),
        (lambda example, prediction, ctx: 1, {"revision": ""}),
        (lambda example, prediction, ctx: 1, {"revision": 1}),
        ("exact", {}),
    ],
)
def test_declarations_that_cannot_work(fn: Any, more: dict[str, Any]):
    with pytest.raises(MetricError) as caught:
        metric(fn, **more)
    assert caught.value.remedy


# ---- scoring ----------------------------------------------------------------------------------------------


def test_sync_and_async_functions_and_callables():
    async def later(example: Any, prediction: Any, ctx: Any) -> float:
        await anyio.lowlevel.checkpoint()
        return prediction.outputs["n"] / example.labels["n"]

    class Callable_:
        def __call__(self, example: Any, prediction: Any, ctx: Any) -> Score:
            return Score(0.25, "quarter")

    assert score(metric(later), {"n": 4}, {"n": 2}) == Score(0.5)
    assert score(metric(lambda e, p, trace=None: p.outputs["n"] == e.n), {"n": 4}, {"n": 4}) == Score(1.0)
    assert score(metric(Callable_(), revision="1"), {}, {}) == Score(0.25, "quarter")


def test_context_reaches_the_function():
    seen: list[Any] = []
    ctx = MetricContext(run={"mode": "code"}, state={"a": 1}, lm="model")
    score(metric(lambda e, p, c: seen.append((c, e.id)) or 1), {}, {}, ctx)
    assert seen == [(ctx, "e1")] and ctx.run == {"mode": "code"}


def test_an_exception_is_the_metrics_mistake():
    @metric(revision="1")
    def broken(example: Any, prediction: Any, ctx: Any) -> float:
        return prediction.outputs["missing"]

    with pytest.raises(MetricError) as caught:
        score(broken, {}, {})
    error = caught.value
    assert "'broken'" in str(error) and "'e1'" in str(error) and "KeyError" in str(error)
    assert error.details == {"metric": "broken", "example": "e1", "exception": "KeyError"}
    assert isinstance(error.__cause__, KeyError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_exception_in_an_async_metric_and_a_candidates_error_raised_by_a_metric():
    async def broken(example: Any, prediction: Any, ctx: Any) -> float:
        raise RunFailed("a metric may not fail the candidate")

    with pytest.raises(MetricError, match="It raised RunFailed"):
        score(metric(broken), {}, {})


def test_a_metrics_own_metric_error_keeps_its_words():
    def strict(example: Any, prediction: Any, ctx: Any) -> float:
        raise MetricError("there is no end state", value="x", remedy="Use an environment.", extra=1)

    with pytest.raises(MetricError, match=r"'strict' on example 'e1': there is no end state.*Use an environment") as caught:
        score(metric(strict), {}, {})
    assert caught.value.details == {"extra": 1, "metric": "strict", "example": "e1"}


@pytest.mark.parametrize("kind", [ModelUnavailable, CassetteMiss, BudgetExhausted])
def test_what_is_nobodys_mistake_passes_through(kind: type[Exception]):
    async def judge(example: Any, prediction: Any, ctx: Any) -> float:
        raise kind("the judge's model")

    with pytest.raises(kind) as caught:
        score(metric(judge, kind="judge"), {}, {})
    assert type(caught.value) is kind


def test_cancelling_a_metric_is_not_an_error_of_it():
    async def slow(example: Any, prediction: Any, ctx: Any) -> float:
        await anyio.sleep_forever()
        return 1.0

    async def run() -> bool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await metric(slow).score(Example("e", {}), SimpleNamespace(outputs={}), None)
        return scope.cancelled_caught

    assert anyio.run(run)


# ---- comparing --------------------------------------------------------------------------------------------


def test_same_wire():
    assert same_wire({"a": [1, 2.0], "b": None}, {"b": None, "a": [1.0, 2]})
    assert same_wire((1, 2), [1, 2])
    different = [
        (1, True), (0, False), (0, None), ("1", 1), ([1, 2], [2, 1]), ([1], [1, 1]), ({"a": 1}, {"a": 1, "b": None}),
        ([True], [1]), ({"a": {"b": 0}}, {"a": {"b": False}}), ("", None), ([], {}),
    ]  # fmt: skip
    for one, other in different:
        assert not same_wire(one, other) and not same_wire(other, one)


@given(JSON)
def test_every_value_is_the_same_as_itself(value: Any):
    assert same_wire(value, value) and same_wire([value], [value])


# ---- exact_match ------------------------------------------------------------------------------------------


def test_exact_match_of_all_outputs():
    labels = {"name": "Ann", "total": 3.0, "extra label": 1}
    assert score(exact_match(), labels, {"name": "Ann", "total": 3}) == Score(
        1.0, "All as expected.", {"name": 1.0, "total": 1.0}
    )
    wrong = score(exact_match(), labels, {"name": "Bob", "total": 3})
    assert (wrong.value, wrong.components) == (0.0, {"name": 0.0, "total": 1.0})
    assert wrong.feedback == 'name: expected "Ann", got "Bob"'


def test_exact_match_of_some_fields():
    labels, outputs = {"name": "Ann", "total": 3}, {"name": "Ann", "total": 4, "thought": "hm"}
    assert score(exact_match("name"), labels, outputs).value == 1.0
    assert score(exact_match(["name", "total"]), labels, outputs).value == 0.0
    for field, told in ((None, "no label 'thought'"), ("thought", "no label 'thought'"), ("nme", "no label 'nme'")):
        with pytest.raises(MetricError, match=told):
            score(exact_match(field), labels, outputs)
    with pytest.raises(MetricError, match="no output 'name'"):
        score(exact_match("name"), labels, {"total": 3})
    with pytest.raises(MetricError, match="no output to compare"):
        score(exact_match(), labels, {})


def test_exact_match_after_normalising():
    labels, outputs = {"a": {"x": ["One  Two "]}}, {"a": {"x": [" one two"]}}
    assert score(exact_match("a", normalise="text"), labels, outputs).value == 1.0
    for normalise in (None, "casefold", "whitespace"):
        assert score(exact_match("a", normalise=normalise), labels, outputs).value == 0.0
    for whole, apart in (("Café É", "cafe\u0301 e\u0301"), ("주문", "\u110c\u116e\u1106\u116e\u11ab")):
        assert score(exact_match("a", normalise="text"), {"a": whole}, {"a": apart}).value == 1.0
    assert score(exact_match("a", normalise="text"), {"a": "ﬁt ²"}, {"a": "fit 2"}).value == 0.0, "other characters"
    assert score(exact_match("a", normalise=lambda value: sorted(value)), {"a": [2, 1]}, {"a": [1, 2]}).value == 1.0
    for wrong in ({"normalise": "lower"}, {"field": []}):
        with pytest.raises(MetricError):
            exact_match(**wrong)


@given(JSON, JSON)
def test_exact_match_never_fails_on_a_candidates_output(label: Any, output: Any):
    made = exact_match("a")(SimpleNamespace(labels={"a": label}), SimpleNamespace(outputs={"a": output}))
    assert made.value == float(same_wire(label, output))


def test_odd_text_from_a_candidate_is_only_wrong():
    for made in (exact_match("a"), set_f1("a")):
        wrong = score(made, {"a": ["x"]}, {"a": ["\ud83d"]})
        assert wrong.value == 0.0 and wrong.feedback.encode()


# ---- numeric ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "output", "tolerance", "right"),
    [
        (10, 10.0, {}, True),
        (10, 10.01, {}, False),
        (1.0, 1.1, {"abs_tol": 0.1}, True),  # 1.1 - 1.0 > 0.1 in binary
        (0.3, 0.1 + 0.2, {}, False),
        (0.3, 0.1 + 0.2, {"abs_tol": 1e-12}, True),
        (200, 202, {"rel_tol": 0.01}, True),
        (200, 202.1, {"rel_tol": 0.01}, False),
        (-200, -202, {"rel_tol": 0.01}, True),
        (0, 0.001, {"rel_tol": 0.5}, False),
        (200, 202, {"rel_tol": 0.001, "abs_tol": 5}, True),
        ("12.50", "12.5", {}, True),
        ("12.50", 12.5, {}, True),
        (None, None, {}, True),
        (None, 0, {}, False),
        (0, None, {}, False),
        (1, True, {}, False),
        (1, "one", {}, False),
        (1, "NaN", {"abs_tol": 5}, False),
        (1, "1e999999999", {"abs_tol": 5}, False),
        (1, [1], {}, False),
        (10**30, 10**30 + 1, {}, False),
    ],
)
def test_numeric(label: Any, output: Any, tolerance: dict[str, float], right: bool):
    made = score(numeric("n", **tolerance), {"n": label}, {"n": output})
    assert made.value == float(right)
    assert right or "expected" in made.feedback


def test_numeric_says_how_far_off():
    far = score(numeric("n", abs_tol=0.5), {"n": 10}, {"n": 12.25})
    assert far.feedback == "n: expected 10 (within 0.5), got 12.25, off by +2.25"
    assert score(numeric("n"), {"n": 10}, {"n": 9}).feedback == "n: expected 10, got 9, off by -1"
    assert score(numeric("n"), {"n": 10}, {"n": "ten"}).feedback == 'n: expected 10, got "ten", not a number'


def test_numeric_refuses_bad_labels_and_tolerances():
    for label in ("ten", True, [1]):
        with pytest.raises(MetricError, match="label 'n' is not a number"):
            score(numeric("n"), {"n": label}, {"n": 1})
    for tolerance in (-1, math.inf, math.nan, True, "1"):
        with pytest.raises(MetricError, match="tolerance"):
            numeric("n", abs_tol=tolerance)  # type: ignore[arg-type]


# ---- set_f1 -----------------------------------------------------------------------------------------------


def test_set_f1_counts_and_tells():
    made = score(set_f1("who"), {"who": ["a", "b", "c"]}, {"who": ["b", "c", "d", "c"]})
    assert made.value == pytest.approx(2 * 2 / (3 + 3))
    assert made.components == pytest.approx({"precision": 2 / 3, "recall": 2 / 3})
    assert made.feedback == 'who: missing: "a"; extra: "d"; repeated: "c"'
    assert score(set_f1("who"), {"who": [1, 1]}, {"who": [1, 1]}).feedback == "who: repeated: 1"


@pytest.mark.parametrize(
    ("label", "output", "value"),
    [([], [], 1.0), (["a"], [], 0.0), ([], ["a"], 0.0), (None, None, 1.0), (None, [], 0.0), ([], None, 0.0),
     ([1, {"x": 2.0}], [{"x": 2}, 1.0], 1.0), ([1], [True], 0.0), ([[1, 2]], [[2, 1]], 0.0)],
)  # fmt: skip
def test_set_f1_edges(label: Any, output: Any, value: float):
    made = score(set_f1("who"), {"who": label}, {"who": output})
    assert made.value == value and (value == 1.0) == (made.components == {"precision": 1.0, "recall": 1.0})


def test_set_f1_by_key():
    gold = [{"id": 1, "q": "Q1", "sum": 5}, {"id": 1, "q": "Q2", "sum": 6}]
    given_ = [{"id": 1, "q": "Q1", "sum": 99}, {"id": 2, "q": "Q2", "sum": 6}]
    assert score(set_f1("rows"), {"rows": gold}, {"rows": given_}).value == 0.0
    assert score(set_f1("rows", key=("id", "q")), {"rows": gold}, {"rows": given_}).value == 0.5
    assert score(set_f1("rows", key="q"), {"rows": gold}, {"rows": given_}).value == 1.0
    assert score(set_f1("rows", key=lambda row: row["id"]), {"rows": gold}, {"rows": given_}).value == pytest.approx(2 / 3)
    assert score(set_f1("rows", key="q"), {"rows": gold}, {"rows": [{"id": 1}, "odd"]}).value == 0.0
    for bad in ([{"id": 1}], ["odd"]):
        with pytest.raises(MetricError, match="item of the label"):
            score(set_f1("rows", key="q"), {"rows": bad}, {"rows": given_})
    for labels, outputs in (({"rows": "abc"}, {"rows": []}), ({"rows": []}, {"rows": {"a": 1}})):
        with pytest.raises(MetricError, match="not a list"):
            score(set_f1("rows"), labels, outputs)


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_set_f1_is_the_textbook_value(label: list[int], output: list[int]):
    made = set_f1("a")(SimpleNamespace(labels={"a": label}), SimpleNamespace(outputs={"a": output}))
    wanted, found = set(label), set(output)
    precision = len(wanted & found) / len(found) if found else float(not wanted)
    recall = len(wanted & found) / len(wanted) if wanted else float(not found)
    both = precision + recall
    assert made.value == pytest.approx(2 * precision * recall / both if both else 0.0)


def test_long_feedback_is_cut():
    made = score(set_f1("who"), {"who": []}, {"who": [f"{i}" * 300 for i in range(9)]})
    assert "and 4 more" in made.feedback and "…" in made.feedback and len(made.feedback) < 1000


# ---- equal values of a field's type, written in two ways ---------------------------------------------------


class Quote(dse.Signature):
    """Give the quote."""

    q: str = dse.InputField()
    amount: Decimal = dse.OutputField()
    when: dt.datetime = dse.OutputField()
    parts: list[Decimal | None] = dse.OutputField()
    text: str = dse.OutputField()


LABELS = {"amount": "425.10", "when": "2025-01-01T09:00:00Z", "parts": ["1.50", None], "text": "1.0"}


def quoted(metric: Any, **given: Any) -> tuple[float, str]:
    """The score of a run that gives `given` for LABELS."""
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet"]
    data = dse.Dataset.from_rows([{"id": w, "q": f"{w} " * 8, **LABELS} for w in words], name="quotes",
                                 fields={"q": "input", **dict.fromkeys(LABELS, "label")})  # fmt: skip
    model = ScriptedModel(lambda _: call(("submit", {**LABELS, **given})))
    task = dse.Task(Quote, dataset=data, metric=metric)
    [record] = dse.evaluate(task, "tool_call", lm=model, split="select", max_rows=1)
    return record.score, record.feedback


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ({"amount": "425.1"}, True),
        ({"amount": "4.251E2"}, True),
        ({"amount": "425.1000000000000000000000000000000001"}, False),
        ({"when": "2025-01-01T10:00:00+01:00"}, True),
        ({"when": "2025-01-01T09:00:00"}, False),
        ({"parts": ["1.5", None]}, True),
        ({"parts": [None, "1.5"]}, False),
        ({"text": "1.00"}, False),
    ],
)
def test_exact_match_compares_values_of_the_fields_type(given: dict[str, Any], right: bool):
    value, feedback = quoted(exact_match(), **given)
    assert (value == 1.0) == right, feedback
    assert (quoted(exact_match(normalise="text"), **given)[0] == 1.0) == right


def test_set_f1_compares_items_of_the_fields_type():
    assert quoted(set_f1("parts"), parts=[None, "1.5"]) == (1.0, "parts: all 2 items right.")
    assert quoted(set_f1("parts"), parts=["1.51", None])[0] == 0.5


# ---- identity of the shipped ------------------------------------------------------------------------------


def test_shipped_revisions_are_stable_and_cover_the_parameters():
    # stored scores are found by name and revision: these may change only when the meaning does
    assert (exact_match().name, exact_match().revision) == ("exact_match_outputs", "2-95cb9b4f84ce")
    assert (numeric("n", 0.5).name, numeric("n", 0.5).revision) == ("numeric_n", numeric("n", abs_tol=0.5).revision)
    variants = [
        exact_match(), exact_match("a"), exact_match("b"), exact_match(["a", "b"]), exact_match("a", "text"),
        exact_match("a", "casefold"), exact_match("a", str.strip), exact_match("a", lambda v: v), numeric("a"),
        numeric("a", 1), numeric("a", 0, 1), numeric("b"), set_f1("a"), set_f1("a", "x"), set_f1("a", ("x", "y")),
        set_f1("a", lambda item: item["x"]), set_f1("b"),
    ]  # fmt: skip
    assert len({(m.name, m.revision) for m in variants}) == len(variants)
    assert all(m.kind == "exact" for m in variants)
    assert set_f1("a", "x").revision == set_f1("a", ["x"]).revision
    assert numeric("a", 1).revision == numeric("a", 1.0).revision


def test_fractions_are_fine():
    assert given_back(Fraction(1, 3)).value == pytest.approx(1 / 3)
