"""Metrics: how good one prediction is, as a number from 0 to 1 with feedback that a person (or model) can use.

A metric is a function ``(example, prediction, ctx) -> float | bool | Score``, sync or async. It declares what it is
(``kind="exact"`` or ``"judge"``) and a revision; stored scores belong to (name, revision), so a changed metric scores
again. What a metric gets wrong is an error of its own, never a bad score for the candidate.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import inspect
import json
import math
import numbers
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from dse.canonical import digest
from dse.errors import BudgetExhausted, InfrastructureError, MetricError, PriceMissing

__all__ = ["Metric", "MetricContext", "Score", "exact_match", "metric", "numeric", "same_wire", "set_f1"]

Kind = Literal["exact", "judge"]
_SHOWN_ITEMS = 5


@dataclass(frozen=True)
class Score:
    """What a metric says about one prediction.

    Attributes:
        value: in [0, 1]; 1 is right.
        feedback: what was missing, wrong or extra; shown to people and to prompt proposers.
        components: further finite numbers by name, for tables.

    Raises:
        MetricError: a value out of range, NaN or not a number; feedback that is not text; a malformed component.
    """

    value: float
    feedback: str = ""
    components: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        value = _number(self.value)
        if value is None or not 0 <= value <= 1:  # NaN fails the comparison
            raise MetricError("A score's value is not a number from 0 to 1", value=self.value,
                              remedy="Scale it to [0, 1], 1 for right.")  # fmt: skip
        if not isinstance(self.feedback, str):
            raise MetricError("A score's feedback is not text", value=self.feedback, remedy="Pass a string.")
        if not isinstance(self.components, Mapping):
            raise MetricError("A score's components are not a mapping", value=self.components,
                              remedy="Pass {name: number}.")  # fmt: skip
        components: dict[str, float] = {}
        for name, part in self.components.items():
            number = _number(part)
            if not isinstance(name, str) or number is None or not math.isfinite(number):
                raise MetricError(f"The component {name!r} of a score is not a finite number under a name", value=part,
                                  remedy="Pass {name: number}.")  # fmt: skip
            components[name] = number
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "components", components)

    def __float__(self) -> float:
        return self.value


def _number(value: Any) -> float | None:
    """`value` as a float if it is a real number or a bool, numpy's scalars included."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class MetricContext:
    """What a metric may look at besides the prediction.

    Attributes:
        run: the receipt of the run.
        state: end state of the environment, or None without one.
        lm: of a metric with a judge, its model for this judgement (`dse.evaluation.judge.JudgeLM`); else None.
        schemas: the JSON Schema of each output by name, from the signature; without it values are compared as written.
    """

    run: Mapping[str, Any] = field(default_factory=dict)
    state: Any = None
    lm: Any = None
    schemas: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Metric:
    """A scoring function with its name, revision and kind. Made by `metric`.

    Calling it calls the function as it was written; `score` is what the evaluator uses.
    """

    def __init__(
        self, fn: Callable[..., Any], *, name: str, revision: str, kind: Kind = "exact", judge: Any = None
    ) -> None:
        self.fn = fn
        self.name = name
        self.own_revision = revision
        self.kind = kind
        self.judge = judge
        functools.update_wrapper(self, fn, updated=())

    @property
    def revision(self) -> str:
        """The function's revision, and of a judge its model, parameters and number of repeats."""
        if self.judge is None:
            return self.own_revision
        return f"{self.own_revision}+{self.judge.judge_id}x{self.judge.repeats}"

    def __repr__(self) -> str:
        return f"<dse.Metric {self.name} {self.revision} ({self.kind})>"

    def __call__(self, example: Any, prediction: Any, ctx: MetricContext | None = None) -> Any:
        return self.fn(example, prediction, MetricContext() if ctx is None else ctx)

    async def score(self, example: Any, prediction: Any, ctx: MetricContext | None = None) -> Score:
        """The validated score of one prediction.

        Raises:
            MetricError: the function raised, or gave something else than a score in [0, 1].
            InfrastructureError, BudgetExhausted, PriceMissing: as raised in the function (by a judge's model): not its mistake.
        """
        try:
            result = self(example, prediction, ctx)
            if inspect.isawaitable(result):
                result = await result
            return self._checked(result)
        except (InfrastructureError, BudgetExhausted, PriceMissing):
            raise
        except MetricError as exc:
            raise self._error(f"{exc.what}", example, value=exc.value, remedy=exc.remedy, **exc.details) from exc
        except Exception as exc:
            raise self._error(f"It raised {type(exc).__name__}", example, value=str(exc) or None,
                              remedy="Correct the metric or the row; the prediction was not scored.",
                              exception=type(exc).__name__) from exc  # fmt: skip

    def _checked(self, result: Any) -> Score:
        if isinstance(result, Score):
            return result
        if _number(result) is None:
            raise MetricError(f"It gave a {type(result).__name__}, not a score", value=repr(result),
                              remedy="Return a number from 0 to 1, a bool or a dse.Score.")  # fmt: skip
        return Score(result)

    def _error(self, what: str, example: Any, **details: Any) -> MetricError:
        ident = getattr(example, "id", None)
        return MetricError(f"Metric {self.name!r} on example {ident!r}: {what}",
                           **{**details, "metric": self.name, "example": ident})  # fmt: skip


def metric(
    fn: Callable[..., Any] | None = None, /, *, revision: str | None = None, kind: Kind = "exact", name: str | None = None,
    judge: Any = None,
) -> Any:  # fmt: skip
    """Declare a metric: ``@metric`` or ``@metric(revision="1")``.

    Args:
        revision: change it when the meaning changes; default a hash of the function's own source and of what was put
            into it (closures, partials, state), which does not see changes in what the function calls.
        kind: ``exact`` (a computation) or ``judge`` (asks a model).
        name: default the function's name.
        judge: a `dse.Judge`, the model that the function finds as ``ctx.lm``; only with ``kind="judge"``.

    Raises:
        MetricError: not a function of three positional arguments, unknown kind, empty revision.
    """
    if fn is None:
        return lambda function: metric(function, revision=revision, kind=kind, name=name, judge=judge)
    if isinstance(fn, Metric):
        return fn
    if not callable(fn):
        raise MetricError("A metric is a function", value=repr(fn), remedy="Decorate (example, prediction, ctx) -> float.")
    if kind not in ("exact", "judge"):
        raise MetricError("Unknown kind of metric", value=kind, remedy='Use kind="exact" or kind="judge".')
    if judge is not None and (kind != "judge" or not hasattr(judge, "judge_id")):
        raise MetricError('judge= is a dse.Judge, and goes together with kind="judge"', value=judge,
                          remedy='Write @dse.metric(kind="judge", judge=dse.Judge("provider/model")).')  # fmt: skip
    if revision is not None and (not isinstance(revision, str) or not revision):
        raise MetricError("A metric's revision is not a text", value=revision, remedy='Write revision="1".')
    try:
        inspect.signature(fn).bind(None, None, None)
    except ValueError:  # a builtin without a signature: found out when it is called
        pass
    except TypeError:
        raise MetricError("A metric takes (example, prediction, ctx)", value=str(inspect.signature(fn)),
                          remedy="Declare three positional parameters.") from None  # fmt: skip
    return Metric(fn, name=name or str(getattr(fn, "__name__", type(fn).__name__)),
                  revision=_source_revision(fn) if revision is None else revision, kind=kind, judge=judge)  # fmt: skip


def _source_revision(fn: Callable[..., Any]) -> str:
    from dse.contracts.revision import source_revision

    return source_revision(fn)


# ---- comparing plain JSON data ----------------------------------------------------------------------------


def _tidy(value: Any) -> Any:
    """`value` with integral floats as integers, so that 1 and 1.0 are one number."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {key: _tidy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tidy(item) for item in value]
    return value


def same_wire(a: Any, b: Any) -> bool:
    """Whether two plain JSON values are equal: 1 equals 1.0, true does not equal 1, order counts in lists only."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_wire(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same_wire, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _meant(value: Any, schema: Any) -> Any:
    """A plain JSON value in the one form that all equal values of a field's type have: 425.10 as 425.1, times in UTC.

    Raises:
        ValueError, TypeError, ArithmeticError: the type does not read it.
    """
    from dse.contracts.schema import guest_from_wire

    return _one_form(guest_from_wire(value, schema))


def _one_form(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _one_form(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_one_form(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_one_form(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, Decimal):
        if not value.is_finite():
            return str(value)
        sign, digits, exponent = value.as_tuple()  # normalize() rounds to the digits of the context
        text = "".join(map(str, digits)).lstrip("0")
        kept = text.rstrip("0")
        return f"{'-' * sign}{kept}E{int(exponent) + len(text) - len(kept)}" if kept else "0"
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return value.astimezone(dt.UTC).isoformat()
    return value if isinstance(value, (str, int, float)) or value is None else str(value)


def _same(a: Any, b: Any, schema: Any) -> bool:
    """Whether two plain JSON values are equal as written or, where its type reads both, as values of their field."""
    if schema is None or same_wire(a, b):
        return same_wire(a, b)
    try:
        return same_wire(_meant(a, schema), _meant(b, schema))
    except (ValueError, TypeError, ArithmeticError):
        return False


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 160 else f"{text[:159]}…"


def _show_all(values: Sequence[Any]) -> str:
    more = f" and {len(values) - _SHOWN_ITEMS} more" if len(values) > _SHOWN_ITEMS else ""
    return ", ".join(map(_show, values[:_SHOWN_ITEMS])) + more


def _sides(example: Any, prediction: Any, name: str) -> tuple[Any, Any]:
    """(label, output) of a field."""
    labels = example.labels
    if name not in labels:
        raise MetricError(f"there is no label {name!r}", value=sorted(labels),
                          remedy="Score a field that the dataset declares as label.")  # fmt: skip
    if name not in prediction.outputs:
        raise MetricError(f"there is no output {name!r}", value=sorted(prediction.outputs),
                          remedy="Score a field that the signature declares as output.")  # fmt: skip
    return labels[name], prediction.outputs[name]


# ---- shipped metrics --------------------------------------------------------------------------------------


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


_NORMALISERS: dict[str, Callable[[str], str]] = {
    "casefold": str.casefold,
    "whitespace": lambda text: " ".join(text.split()),
    "text": lambda text: " ".join(_nfc(_nfc(text).casefold()).split()),
}


def _shipped(fn: Callable[..., Any], name: str, version: str, parameters: Any) -> Metric:
    """A metric whose revision covers the version of its code here and its parameters."""
    fn.__name__ = fn.__qualname__ = name
    return Metric(fn, name=name, revision=f"{version}-{digest(parameters)[7:19]}")


def _identity(part: Any) -> Any:
    """What stands for a parameter in a revision: data as it is, a function by name and source."""
    return [getattr(part, "__qualname__", type(part).__qualname__), _source_revision(part)] if callable(part) else part


def exact_match(
    field: str | Sequence[str] | None = None, normalise: str | Callable[[Any], Any] | None = None
) -> Metric:
    """1 when outputs equal their labels as values of their fields, else 0: the decimal 425.1 equals 425.10, and a time
    the same moment in another zone. What a type does not read is compared as plain JSON data.

    Args:
        field: an output, or several; default all outputs, each of which then needs a label.
        normalise: applied to both sides before comparing: ``"casefold"``, ``"whitespace"`` (trimmed, runs as one space)
            or ``"text"`` (both, and one Unicode form: NFC) for every string at any depth, or a function of the whole
            value. The revision covers the function's source; what it calls or closes over is not seen.

    Components: each field's 0 or 1. Feedback: expected and given for each wrong field.
    """
    if normalise is not None and not callable(normalise) and normalise not in _NORMALISERS:
        raise MetricError("Unknown normaliser", value=normalise, remedy=f"Use {', '.join(_NORMALISERS)} or a function.")
    names = None if field is None else (field,) if isinstance(field, str) else tuple(field)
    if names == ():
        raise MetricError("exact_match has no field to compare", value=field, remedy="Name an output, or none for all.")

    def clean(value: Any) -> Any:
        if normalise is None:
            return value
        return normalise(value) if callable(normalise) else _each_string(_NORMALISERS[normalise], value)

    def compare(example: Any, prediction: Any, ctx: MetricContext) -> Score:
        wrong: list[str] = []
        parts: dict[str, float] = {}
        for name in names or tuple(prediction.outputs):
            label, given = _sides(example, prediction, name)
            schema = ctx.schemas.get(name)
            parts[name] = float(_same(clean(given), clean(label), schema) or _same(given, label, schema))
            if not parts[name]:
                wrong.append(f"{name}: expected {_show(label)}, got {_show(given)}")
        if not parts:
            raise MetricError("there is no output to compare", remedy="Declare an output.")
        return Score(float(not wrong), ". ".join(wrong) or "All as expected.", parts)

    shown = "outputs" if names is None else "_".join(names)
    return _shipped(compare, f"exact_match_{shown}", "3" if normalise == "text" else "2", [names, _identity(normalise)])


def _each_string(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_string(change, item) for item in value]
    if isinstance(value, dict):
        return {key: _each_string(change, item) for key, item in value.items()}
    return value


def numeric(field: str, abs_tol: float = 0.0, rel_tol: float = 0.0) -> Metric:
    """1 when an output is within ``max(abs_tol, rel_tol * |label|)`` of its label, else 0; in the field's own unit.

    Numbers and decimals written as strings are compared exactly, in decimal. Null matches null only. A bool is no number.
    """
    for tolerance in (abs_tol, rel_tol):
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < math.inf:
            raise MetricError("A tolerance is not a number from 0 up", value=tolerance, remedy="Write abs_tol=0.01.")
    absolute, relative = Decimal(repr(abs_tol)), Decimal(repr(rel_tol))

    def compare(example: Any, prediction: Any, ctx: MetricContext) -> Score:
        label, given = _sides(example, prediction, field)
        expected, number = _decimal(label), _decimal(given)
        if label is not None and expected is None:
            raise MetricError(f"the label {field!r} is not a number", value=label, remedy="Correct the row.")
        if label is None or number is None:
            right = label is None and given is None
            return Score(right, "" if right else f"{field}: expected {_show(label)}, got {_show(given)}, not a number")
        assert expected is not None
        allowed = max(absolute, relative * abs(expected))
        off = number - expected
        if abs(off) <= allowed:
            return Score(1.0, f"{field}: {_show(given)} is right.")
        return Score(0.0, f"{field}: expected {_show(label)}" + (f" (within {allowed:g})" if allowed else "")
                     + f", got {_show(given)}, off by {off:+g}")  # fmt: skip

    return _shipped(compare, f"numeric_{field}", "1", [field, float(abs_tol), float(rel_tol)])


def _decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = Decimal(value.strip() if isinstance(value, str) else repr(value))
    except InvalidOperation:
        return None
    # beyond 10^±400 arithmetic could overflow, and no float or sensible amount is there
    return number if number.is_finite() and (not number or abs(number.adjusted()) <= 400) else None


def set_f1(field: str, key: str | Sequence[str] | Callable[[Any], Any] | None = None) -> Metric:
    """F1 of the items of a list output against those of its label, as sets: order and repetition do not count.

    Args:
        key: what makes two items the same: by default all of their data, else the named fields of the items, both as values
            of their type (see `exact_match`); or a function of an item (plain JSON data in and out).

    Both empty is 1. Null counts as no list: it matches null only. Components: ``precision``, ``recall``. Feedback
    names missing, extra and repeated items.
    """
    names = None if key is None or callable(key) else (key,) if isinstance(key, str) else tuple(key)

    def item_key(item: Any, label: bool, schema: Any) -> str:
        if schema is not None and not callable(key):
            with contextlib.suppress(ValueError, TypeError, ArithmeticError):  # not read: as it is written
                item = _meant([item], schema)[0]
        if callable(key):
            item = key(item)
        elif names is not None and isinstance(item, dict):
            absent = next((name for name in names if name not in item), None)
            if absent is not None and label:
                raise MetricError(f"an item of the label {field!r} has no {absent!r}", value=item, remedy="Correct the row.")
            item = [item.get(name) for name in names]
        elif names is not None and label:
            raise MetricError(f"an item of the label {field!r} has no fields", value=item, remedy="Leave out key=.")
        return json.dumps(_tidy(item), sort_keys=True)

    def compare(example: Any, prediction: Any, ctx: MetricContext) -> Score:
        label, given = _sides(example, prediction, field)
        for side, value in (("label", label), ("output", given)):
            if value is not None and not isinstance(value, list):
                raise MetricError(f"the {side} {field!r} is not a list", value=value, remedy="Use set_f1 on list fields.")
        if label is None or given is None:
            right = label is None and given is None
            return Score(right, "" if right else f"{field}: expected {_show(label)}, got {_show(given)}",
                         {"precision": float(right), "recall": float(right)})  # fmt: skip
        schema = ctx.schemas.get(field)
        wanted = {item_key(item, True, schema): item for item in label}
        found: dict[str, Any] = {}
        repeated: list[Any] = []
        for item in given:
            one = item_key(item, False, schema)
            if one in found:
                repeated.append(item)
            found.setdefault(one, item)
        hits = len(wanted.keys() & found.keys())
        precision = hits / len(found) if found else float(not wanted)
        recall = hits / len(wanted) if wanted else float(not found)
        value = 2 * hits / (len(wanted) + len(found)) if wanted or found else 1.0
        told = [
            f"{what}: {_show_all(items)}"
            for what, items in (
                ("missing", [item for one, item in wanted.items() if one not in found]),
                ("extra", [item for one, item in found.items() if one not in wanted]),
                ("repeated", repeated),
            )
            if items
        ]
        return Score(value, f"{field}: {'; '.join(told)}" if told else f"{field}: all {len(wanted)} items right.",
                     {"precision": precision, "recall": recall})  # fmt: skip

    parameters = [field, _identity(key) if callable(key) else names]
    return _shipped(compare, f"set_f1_{field}", "2", parameters)
