"""Judges: metrics that ask a model, pinned, recorded, metered, and asked more than once.

    @dse.metric(kind="judge", revision="1", judge=Judge("openai/gpt-5", cassette="judge.jsonl", repeats=3))
    async def polite(example, prediction, ctx):
        return await ctx.lm.ask(f"How polite is this, from 1 to 5?\\n{prediction.reply}", parse=rating(1, 5))

The judge's model and parameters and the number of repeats are part of the metric's revision. Each repeat asks at a
replicate of its own, and is stored on its own; the score is their mean, and how far they were apart is in its
components. What a judge costs is counted apart from what the candidates cost.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dse.canonical import digest
from dse.errors import MetricError, ModelUnavailable
from dse.evaluation.metric import Metric, MetricContext, Score

if TYPE_CHECKING:
    from dse.models.lm import Completion, LanguageModel
    from dse.models.prices import PriceTable

__all__ = ["Judge", "JudgeLM", "Meter", "judge_summary", "rating", "score_repeatedly"]

_VALUE = r"(?:(?<![\w.])-)?\d+(?:\.\d+)?"
_NUMBER = re.compile(_VALUE)
_MARKUP = r"[\s*_`()\[\]]*"
_OF = r"(?:/|\b(?:out\s+of|of|von|sur|de|su|van)\b)"
_SHARE = re.compile(rf"({_VALUE}){_MARKUP}{_OF}{_MARKUP}({_VALUE})", re.IGNORECASE)  # 4/5, 4 out of 5
_TOP = re.compile(rf"\b(?:out\s+of|von|sur){_MARKUP}({_VALUE})", re.IGNORECASE)  # out of 5, ...
_SCALE = re.compile(rf"({_VALUE})\s*(?:-|–|\.\.|\b(?:to|bis|à|a)\b)\s*({_VALUE})", re.IGNORECASE)  # 1-5, 1 to 5
_ALONE = re.compile(rf"(?:[\W_]*(?:[^\W\d]+\s+){{0,2}}[^\W\d]+{_MARKUP}[:=])?{_MARKUP}({_VALUE})[\s.*_`]*")  # 4, Rating: 4
_SAME = 1e-9
Wrap = Callable[["LanguageModel", bool], "LanguageModel"]
_wrap: ContextVar[Callable[[LanguageModel], LanguageModel] | None] = ContextVar("dse_judge_wrap", default=None)


class Judge:
    """The model that a judge metric asks.

    Args:
        model: a dspy model string, ``replay:FILE``, or a `LanguageModel`. A replay has the identity of the model that it
            was recorded from: scores that are stored stay valid.
        params: sampling and connection parameters for a model string.
        repeats: how often a prediction is judged, each time at another replicate.
        cassette: a file that answers what it knows and records the rest.
        prices: costs are this table's.

    Raises:
        MetricError: repeats below 1.

    No file is opened before the judge is asked; but a replay is read to tell its model.
    """

    def __init__(self, model: Any, *, params: Mapping[str, Any] | None = None, repeats: int = 1,
                 cassette: str | Path | None = None, prices: PriceTable | None = None) -> None:  # fmt: skip
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise MetricError("A judge is asked at least once", value=repeats, remedy="Write repeats=3.")
        self.model = model
        self.params = dict(params or {})
        self.repeats = repeats
        self.cassette = None if cassette is None else Path(cassette)
        self.prices = prices
        self._bare: LanguageModel | None = None
        self._opened: LanguageModel | None = None

    def __repr__(self) -> str:
        named = self.model if isinstance(self.model, str) else self.identity["model"]
        return f"<dse.Judge {named} x{self.repeats}>"

    @property
    def identity(self) -> dict[str, Any]:
        """Name and sampling parameters of the model, whether it is live or recorded."""
        if isinstance(self.model, str) and not self.replays:
            from dse.models.engines import _CLIENT_KEYS

            sampling = {k: v for k, v in self.params.items() if v is not None and k not in _CLIENT_KEYS}
            return {"model": self.model, "params": sampling}
        model = self._model()  # no file of a recording is opened to tell who would be asked
        return {"model": model.name, "params": dict(model.params)}

    def _model(self) -> LanguageModel:
        if self._bare is None:
            from dse.models.lm import resolve_model

            self._bare = resolve_model(self.model, params=self.params or None)
        return self._bare

    @property
    def replays(self) -> bool:
        """Whether a recording answers everything."""
        return isinstance(self.model, str) and self.model.startswith("replay:")

    @property
    def recorded(self) -> bool:
        """Whether its recording answers anything: then it may answer everything."""
        if self.cassette is None or not self.cassette.exists():
            return False
        with self.cassette.open("rb") as file:
            return len(list(itertools.islice(file, 2))) == 2  # besides the header

    @property
    def judge_id(self) -> str:
        """Changes exactly when the model or its sampling parameters change."""
        return f"judge-{digest(self.identity)[7:17]}"

    def opened(self) -> LanguageModel:
        """The model, kept open until `close`: recorded outside, then patient, then what the evaluator puts around it."""
        if self._opened is None:
            from dse.models.lm import RetryingModel

            live = isinstance(self.model, str) and not self.replays
            model: LanguageModel = _Wrapped(self._model(), self.replays)
            if live:
                model = RetryingModel(model)
            if self.cassette is not None:
                from dse.store.cassette import RecordModel

                model = RecordModel(model, self.cassette)
                self._release = weakref.finalize(self, model._file.close)
            if self.prices is not None:
                from dse.models.prices import PricedModel

                model = PricedModel(model, self.prices)
            self._opened = model
        return self._opened

    def close(self) -> None:
        """Give the recording's file back; the judge opens it again when it is asked."""
        if self._opened is not None and self.cassette is not None:
            self._release()
        self._opened = self._bare = None


class _Wrapped:
    """A model with what the evaluator at work puts around it: a budget."""

    def __init__(self, inner: LanguageModel, free: bool) -> None:
        self.inner, self.free = inner, free
        self.name, self.params, self.supports_tools = inner.name, inner.params, inner.supports_tools

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        wrap = _wrap.get()
        model = self.inner if wrap is None else wrap(self.inner)
        return await model.complete(request, replicate=replicate, occurrence=occurrence)

    async def aclose(self) -> None:
        await self.inner.aclose()


class Meter:
    """What the judges of one evaluator used, and the way to their budget.

    Args:
        wrap: ``wrap(model, free) -> model``, called once per judge model; `free` for a replay. What it gives is asked
            below retries and below a recording, such as a ``BudgetedModel``.
    """

    def __init__(self, wrap: Wrap | None = None) -> None:
        self.wrap = wrap
        self.calls = self.replayed = self.input_tokens = self.output_tokens = 0
        self.cost_usd: float | None = 0.0
        self._wrapped: dict[int, tuple[Any, LanguageModel]] = {}

    def add(self, completion: Completion) -> None:
        self.calls += 1
        self.replayed += completion.recorded
        self.input_tokens += completion.usage.input_tokens or 0
        self.output_tokens += completion.usage.output_tokens or 0
        if not completion.recorded:  # a recorded answer was paid for before
            known = self.cost_usd is not None and completion.cost_usd is not None
            self.cost_usd = self.cost_usd + completion.cost_usd if known else None  # type: ignore[operator]

    def spent(self) -> dict[str, Any]:
        """Calls, of these answered from a recording, tokens, and USD paid now (None: not known)."""
        return {"calls": self.calls, "replayed": self.replayed, "input_tokens": self.input_tokens,
                "output_tokens": self.output_tokens, "cost_usd": self.cost_usd}  # fmt: skip

    @contextlib.contextmanager
    def around(self, judge: Judge) -> Any:
        """The judge's model is asked through `wrap` meanwhile."""

        def through(model: LanguageModel) -> LanguageModel:
            if self.wrap is None:
                return model
            if id(model) not in self._wrapped:  # the model is kept too: its id is not given to another one
                self._wrapped[id(model)] = (model, self.wrap(model, judge.replays))
            return self._wrapped[id(model)][1]

        token = _wrap.set(through)
        try:
            yield
        finally:
            _wrap.reset(token)


class JudgeLM:
    """What a judge metric finds as ``ctx.lm``: the judge's model for one judgement. A `LanguageModel`."""

    def __init__(self, inner: LanguageModel, replicate: int, meter: Meter) -> None:
        self.inner = inner
        self.name = inner.name
        self.params = inner.params
        self.supports_tools = inner.supports_tools
        self.replicate = replicate
        self.completions: list[Completion] = []
        self._meter = meter
        self._asked: Counter[str] = Counter()

    async def complete(self, request: Any, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        """Ask; which judgement this is and how often the same was asked in it are added here."""
        key = digest(request)
        self._asked[key] += 1
        completion = await self.inner.complete(request, replicate=self.replicate, occurrence=self._asked[key] - 1)
        self.completions.append(completion)
        self._meter.add(completion)
        return completion

    async def ask(self, prompt: str, *, system: str | None = None, parse: Callable[[str], Any] | None = None,
                  attempts: int = 3) -> Any:  # fmt: skip
        """The answer to a prompt, as text or as what `parse` makes of it.

        Args:
            parse: raises ValueError for a reply that it cannot read; the judge is then told so and asked again.
            attempts: how often to ask at most.

        Raises:
            MetricError: no reply could be read. It is no score: the prompt, the parser or the model has to change.
            InfrastructureError, BudgetExhausted
        """
        messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": prompt})
        text, problem = "", ""
        for _ in range(max(1, attempts)):
            completion = await self.complete({"messages": list(messages), "tools": []})
            text = completion.text or ""
            if completion.finish_reason == "error":
                raise ModelUnavailable(f"{self.name} broke off while it judged", remedy="It is asked again.")
            if parse is None:
                return text
            try:
                return parse(text)
            except ValueError as exc:
                problem = str(exc)
            messages += [{"role": "assistant", "content": text},
                         {"role": "user", "content": f"That could not be read: {problem}. Answer in the form asked for."}]  # fmt: skip
        raise MetricError(f"the judge's reply could not be read in {max(1, attempts)} attempts: {problem}", value=text,
                          remedy="Ask for a plainer form, or correct parse=.")  # fmt: skip

    async def aclose(self) -> None:
        """The judge's model is not closed here."""

    def used(self) -> dict[str, float]:
        """Components of a score: what this judgement took."""
        done = self.completions
        sources = Counter(c.usage.source for c in done)
        found = {"judge_calls": float(len(done)), "judge_calls_exact": float(sources["exact"]),
                 "judge_calls_estimated": float(sources["estimated"]),
                 "judge_tokens_in": float(sum(c.usage.input_tokens or 0 for c in done)),
                 "judge_tokens_out": float(sum(c.usage.output_tokens or 0 for c in done))}  # fmt: skip
        costs = [c.cost_usd for c in done]
        known = [c for c in costs if c is not None]
        return {**found, "judge_cost_usd": math.fsum(known)} if len(known) == len(costs) else found


def rating(low: float, high: float) -> Callable[[str], float]:
    """A parser: the number of a reply, on a scale from `low` (0.0) to `high` (1.0).

    ``4``, ``Rating: 4``, ``4/5``, ``4 out of 5`` and ``on a scale from 1 to 5: 4`` are read; so is a last line that holds
    nothing but the number, whatever is said before. Any other reply with several numbers of the scale raises ValueError,
    after which `JudgeLM.ask` asks again: which of them is the rating would be guessed.
    """

    def parse(text: str) -> float:
        values = [float(value) for value in _ratings(text, low, high)]
        if not values:
            raise ValueError("it holds no number")
        value = values[-1]
        if not low <= value <= high:
            raise ValueError(f"{value:g} is not between {low:g} and {high:g}")
        others = sorted({one for one in values if low <= one <= high})
        if len(others) > 1:
            raise ValueError(f"it holds several numbers between {low:g} and {high:g}: {', '.join(f'{one:g}' for one in others)}")
        return (value - low) / (high - low)

    return parse


def _ratings(text: str, low: float, high: float) -> list[str]:
    """What may be the rating of a reply, in its order."""
    lines = text.strip().splitlines() or [""]
    for part in (lines[-1], text):
        shares = [value for value, top in _SHARE.findall(part) if float(top) == high]
        if shares:
            return shares
        if len(lines) > 1 and part is lines[-1] and (alone := _ALONE.fullmatch(part)):
            return [alone[1]]
    # Words about the scale are no rating.
    text = _SCALE.sub(lambda found: "" if (float(found[1]), float(found[2])) == (low, high) else found[0], text)
    text = _TOP.sub(lambda found: "" if float(found[1]) == high else found[0], text)
    return _NUMBER.findall(text)


async def score_repeatedly(
    metric: Metric, example: Any, prediction: Any, context: MetricContext, meter: Meter,
    load: Callable[[str], Awaitable[Mapping[str, Any] | None]], save: Callable[[str, Score], Awaitable[None]],
) -> Score:  # fmt: skip
    """The mean of a judge's repeated scores; each is kept under (metric, judge, replicate) by `load` and `save`.

    Raises:
        MetricError, InfrastructureError, BudgetExhausted
    """
    judge: Judge = metric.judge
    scores: list[Score] = []
    with meter.around(judge):
        for replicate in range(judge.repeats):
            name = f"{metric.name}@{metric.own_revision}+{judge.judge_id}#{replicate}"
            kept = await load(name)
            if kept is None:
                lm = JudgeLM(judge.opened(), replicate, meter)
                score = await metric.score(example, prediction, replace(context, lm=lm))
                score = Score(score.value, score.feedback, {**score.components, **lm.used()})
                await save(name, score)
            else:
                score = Score(kept["value"], kept["feedback"] or "", kept["components"])
            scores.append(score)
    return _together(scores)


def _together(scores: Sequence[Score]) -> Score:
    n = len(scores)
    mean = math.fsum(s.value for s in scores) / n
    nearest = min(scores, key=lambda s: abs(s.value - mean))
    names = [name for name in scores[0].components if all(name in s.components for s in scores)]
    components = {name: math.fsum(s.components[name] for s in scores) / (1 if name.startswith("judge_") else n) for name in names}
    if n > 1:
        values = [s.value for s in scores]
        pairs = [abs(a - b) <= _SAME for i, a in enumerate(values) for b in values[:i]]
        components["judge_disagreement"] = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
        components["judge_agreement"] = sum(pairs) / len(pairs)
    return Score(min(1.0, max(0.0, mean)), nearest.feedback, components)


def judge_summary(records: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Per candidate, over the rows that were judged: `judged` (rows), `judge_disagreement` (mean of the rows' standard
    deviations between repeats), `judge_agreement` (share of equal pairs of repeats), and calls, tokens and USD of the judge
    per row. Empty for candidates that no judge has seen; what no row has is left out."""
    table: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(r.candidate for r in records):
        rows = [r.components for r in records if r.candidate == name and "judge_calls" in r.components]
        fields = [f for f in rows[0] if f.startswith("judge_") and all(f in row for row in rows)] if rows else []
        if rows:
            table[name] = {"judged": float(len(rows)), **{f: math.fsum(row[f] for row in rows) / len(rows) for f in fields}}
    return table
