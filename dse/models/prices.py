"""What tokens cost: a named, dated price table, and a model that applies it.

A cost is ``exact`` only where the provider counted the tokens and the table knows the model, ``estimated`` where
the tokens were estimated, and unknown (None) otherwise. Unknown is never zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from dse.canonical import parse_json
from dse.errors import ModelError

if TYPE_CHECKING:
    from dse.models.lm import Completion, LanguageModel, Request, Usage

__all__ = ["PriceTable", "PricedModel"]


def _rate(model: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ModelError(f"The price of {model!r} is not a number of US dollars per million tokens", value=value,
                         remedy="Give two numbers >= 0: input and output.")  # fmt: skip
    return float(value)


@dataclass(frozen=True)
class PriceTable:
    """Prices in US dollars per million tokens.

    Args:
        name: what the table is, e.g. ``"openai list prices"``.
        as_of: the day the prices were read, ``YYYY-MM-DD``.
        models: model name (as in `LanguageModel.name`) to (input, output) price per million tokens.
    """

    name: str
    as_of: str
    models: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked: dict[str, tuple[float, float]] = {}
        for model, pair in self.models.items():
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise ModelError(f"The price of {model!r} is not a pair", value=pair,
                                 remedy="Give (input, output) in US dollars per million tokens.")  # fmt: skip
            checked[model] = (_rate(model, pair[0]), _rate(model, pair[1]))
        object.__setattr__(self, "models", MappingProxyType(checked))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy does not pickle
        return PriceTable, (self.name, self.as_of, dict(self.models))

    @classmethod
    def from_dict(cls, data: Any) -> PriceTable:
        """From ``{"name", "as_of", "models": {model: [in, out]}}``; other keys are refused."""
        if not isinstance(data, dict) or set(data) != {"name", "as_of", "models"}:
            raise ModelError("A price table has the keys name, as_of and models, and no others",
                             value=sorted(data) if isinstance(data, dict) else data)  # fmt: skip
        if not isinstance(data["name"], str) or not isinstance(data["as_of"], str):
            raise ModelError("name and as_of of a price table are strings", value=(data["name"], data["as_of"]))
        if not isinstance(data["models"], dict):
            raise ModelError("models of a price table is an object", value=data["models"])
        return cls(data["name"], data["as_of"], data["models"])

    @classmethod
    def load(cls, path: str | Path) -> PriceTable:
        """From a JSON file."""
        try:
            text = Path(path).read_bytes()
        except OSError as exc:
            raise ModelError("The price table cannot be read", value=str(path), remedy=str(exc)) from exc
        return cls.from_dict(parse_json(text, source=str(path)))

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "as_of": self.as_of, "models": {k: list(v) for k, v in self.models.items()}}

    def cost(self, model: str, usage: Usage) -> tuple[float | None, Literal["exact", "estimated", "unknown"]]:
        """US dollars for `usage` of `model`, and how well that is known."""
        pair = self.models.get(model)
        if pair is None or usage.input_tokens is None or usage.output_tokens is None or usage.source == "unknown":
            return None, "unknown"
        dollars = (usage.input_tokens * pair[0] + usage.output_tokens * pair[1]) / 1e6
        return dollars, "exact" if usage.source == "exact" else "estimated"


class PricedModel:
    """A model whose costs come from `prices` and from nowhere else (a model missing there has unknown cost)."""

    def __init__(self, inner: LanguageModel, prices: PriceTable) -> None:
        self.inner = inner
        self.prices = prices
        self.name = inner.name
        self.params = inner.params
        self.supports_tools = inner.supports_tools

    async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        completion = await self.inner.complete(request, replicate=replicate, occurrence=occurrence)
        cost, source = self.prices.cost(self.name, completion.usage)
        return replace(completion, cost_usd=cost, cost_source=source)

    async def aclose(self) -> None:
        await self.inner.aclose()
