"""Limits of a run and the meter that holds it to them.

Every limit has an outcome when it is hit:

``abort``      the run ends as failed at once.
``retry``      the run starts again from its inputs with fresh limits (calls per tool go on counting), at most
               ``max_retries`` times and only while its effects hold no completed or unknown write that is not
               idempotent; otherwise as ``fail_step``.
``fail_step``  the step fails: the program is told and may go on with what is left. Steps are a tool call
               (``tool_calls``, its part of ``cost_usd``), a submission (``output_bytes``) and a script (the limits
               of the interpreter). Where there is no step to fail, the run ends as failed and reports its effects.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from dse.declared import Declared
from dse.errors import LimitExceeded

__all__ = ["LimitName", "Limits", "Meter", "Outcome"]

Outcome = Literal["abort", "retry", "fail_step"]
LimitName = Literal[
    "active_s", "interpreter_s", "memory_bytes", "recursion", "suspensions", "model_calls", "tool_calls", "tokens",
    "cost_usd", "output_bytes", "context",
]  # fmt: skip

_ROUNDING = 1e-9  # USD: three calls of 0.1 come to 0.30000000000000004

_DEFAULT_OUTCOMES: dict[str, Outcome] = {
    "active_s": "abort",
    "interpreter_s": "fail_step",
    "memory_bytes": "fail_step",
    "recursion": "fail_step",
    "suspensions": "fail_step",
    "model_calls": "abort",
    "tool_calls": "abort",
    "tokens": "abort",
    "cost_usd": "abort",
    "output_bytes": "abort",
    "context": "abort",
}


class Limits(Declared):
    """What one run may use.

    Attributes:
        active_s: wall seconds the run is active (waiting for a decision does not count).
        interpreter_s: seconds of guest execution per feed.
        memory_bytes: guest heap.
        recursion: guest call depth.
        suspensions: guest suspensions per session (a sequential await takes two).
        model_calls: completions asked for.
        tool_calls: calls of all tools together (calls that were refused before running included).
        calls_per_tool: further bound per tool; the contract's own ``max_calls`` holds as well.
        tokens: input and output tokens together; estimated where the model does not say.
        cost_usd: model and tool cost together; needs a model whose cost is known (see ``dse.PriceTable``).
        output_bytes: canonical size of the outputs.
        print_bytes: guest prints shown to the model per feed; more is cut, never an error.
        check_errors: feeds refused by lint or type check before the run fails (code mode).
        runtime_errors: feeds that failed while running before the run fails (code mode).
        repairs: invalid outputs or submissions handed back to the model before the run fails.
        outcomes: what a hit limit does, where it differs from the default.
        max_retries: fresh starts that the outcome ``retry`` may take.

    Raises:
        InvalidValue: a field is unknown, of the wrong type or out of range.
    """

    active_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    interpreter_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    memory_bytes: int = Field(default=256 * 2**20, ge=2**20)
    recursion: int = Field(default=200, ge=10)
    suspensions: int = Field(default=100_000, ge=1)
    model_calls: int = Field(default=20, ge=0)
    tool_calls: int = Field(default=500, ge=0)
    calls_per_tool: dict[str, int] = {}
    tokens: int | None = Field(default=None, ge=1)
    cost_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    output_bytes: int = Field(default=1_000_000, ge=1)
    print_bytes: int = Field(default=8_192, ge=256)
    check_errors: int = Field(default=4, ge=0)
    runtime_errors: int = Field(default=4, ge=0)
    repairs: int = Field(default=2, ge=0)
    outcomes: dict[str, Outcome] = {}
    max_retries: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _known(self) -> Limits:
        unknown = set(self.outcomes) - set(get_args(LimitName))
        if unknown:
            raise ValueError(f"outcomes names no limit: {', '.join(sorted(unknown))}")
        if any(bound < 0 for bound in self.calls_per_tool.values()):
            raise ValueError("calls_per_tool cannot be negative")
        return self

    def outcome(self, name: str) -> Outcome:
        return self.outcomes.get(name, _DEFAULT_OUTCOMES[name])

    def tightened(self, **changes: Any) -> Limits:
        """A copy with lower numbers; raising one is refused. Bounds per tool and outcomes are added to what is there.

        Raises:
            ValueError: for a higher limit, an outcome that newly allows a retry, or an unknown name.
        """
        merged: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in type(self).model_fields:
                raise ValueError(f"there is no limit {name!r}")
            old = getattr(self, name)
            if isinstance(old, dict):
                if not isinstance(value, Mapping):
                    raise ValueError(f"{name} takes a mapping")
                value = {**old, **value}
            merged[name] = value
        new = Limits.model_validate({**self.model_dump(), **merged})
        inf = float("inf")
        for name in merged:
            old, value = getattr(self, name), getattr(new, name)
            if name == "calls_per_tool":
                raised = [tool for tool, bound in old.items() if value[tool] > bound]
            elif name == "outcomes":
                raised = [limit for limit in value if new.outcome(limit) == "retry" != self.outcome(limit)]
            else:
                raised = [name] if (inf if value is None else value) > (inf if old is None else old) else []
            if raised:
                raise ValueError(f"{', '.join(raised)} can only be lowered: {old} to {value}")
        return new


class Meter:
    """Counts what one attempt of a run uses; every check comes before the use, and once more after a model call."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.model_calls = 0
        self.tool_calls = 0
        self.per_tool: Counter[str] = Counter()
        self.input_tokens = 0
        self.output_tokens = 0
        self.tokens_unknown = False
        self.model_cost_usd = 0.0
        self.tool_cost_usd = 0.0
        self.cost_sources: set[str] = set()
        self.usage_sources: set[str] = set()
        self.interpreter_s = 0.0
        self.model_latency_s = 0.0
        self.started = time.monotonic()
        self.waited_s = 0.0  # for decisions
        self.earlier: Meter | None = None

    def fresh(self) -> Meter:
        """The meter of the next attempt: limits count anew, but calls per tool go on; totals include this one."""
        meter = Meter(self.limits)
        meter.per_tool = self.per_tool
        meter.earlier = self
        return meter

    def exceeded(self, name: str, used: Any, allowed: Any, **details: Any) -> LimitExceeded:
        return LimitExceeded(f"The run reached its limit of {name}", value=f"{used} of {allowed}",
                             remedy=f"Raise Limits({name}=...) if the task needs it.", limit=name,
                             outcome=self.limits.outcome(name), **details)  # fmt: skip

    def before_model_call(self) -> None:
        limits = self.limits
        if self.model_calls >= limits.model_calls:
            raise self.exceeded("model_calls", self.model_calls, limits.model_calls)
        if limits.tokens is not None and self.input_tokens + self.output_tokens >= limits.tokens:
            raise self.exceeded("tokens", self.input_tokens + self.output_tokens, limits.tokens)
        self.check_cost()
        self.model_calls += 1

    def check_model_call(self) -> None:
        """After a completion: what it used may have been too much."""
        limits = self.limits
        tokens = self.input_tokens + self.output_tokens
        if limits.tokens is not None and tokens > limits.tokens:
            raise self.exceeded("tokens", tokens, limits.tokens)
        if limits.cost_usd is not None and self.cost_usd > limits.cost_usd + _ROUNDING:
            raise self.exceeded("cost_usd", round(self.cost_usd, 6), limits.cost_usd)

    def check_cost(self, extra: float = 0.0) -> None:
        limit = self.limits.cost_usd
        if limit is not None and (self.cost_usd > limit - _ROUNDING or self.cost_usd + extra > limit + _ROUNDING):
            raise self.exceeded("cost_usd", round(self.cost_usd + extra, 6), limit)

    def after_model_call(self, completion: Any) -> None:
        usage = completion.usage
        self.usage_sources.add(usage.source)
        if usage.input_tokens is None or usage.output_tokens is None:
            self.tokens_unknown = True
        self.input_tokens += usage.input_tokens or 0
        self.output_tokens += usage.output_tokens or 0
        self.cost_sources.add(completion.cost_source)
        self.model_cost_usd += completion.cost_usd or 0.0
        self.model_latency_s += completion.latency_s

    def before_tool_call(self, cost_usd: float) -> None:
        if self.tool_calls >= self.limits.tool_calls:
            raise self.exceeded("tool_calls", self.tool_calls, self.limits.tool_calls)
        if cost_usd:
            self.check_cost(cost_usd)
        self.tool_calls += 1

    def charge_tool(self, name: str, cost_usd: float) -> None:
        self.per_tool[name] += 1
        self.tool_cost_usd += cost_usd

    def refund_tool(self, cost_usd: float) -> None:
        """A call that was charged and then refused cost nothing (but still counts as a call)."""
        self.tool_cost_usd = max(0.0, self.tool_cost_usd - cost_usd)  # never below nothing by rounding

    @property
    def began(self) -> float:
        """When the first attempt would have begun had nobody waited for decisions."""
        return self.started + self.waited_s if self.earlier is None else self.earlier.began + self.waited_s

    @property
    def cost_usd(self) -> float:
        return self.model_cost_usd + self.tool_cost_usd

    def to_dict(self) -> Mapping[str, Any]:
        """Totals of this attempt and all earlier ones."""
        chain: list[Meter] = [self]
        while chain[-1].earlier is not None:
            chain.append(chain[-1].earlier)
        first = chain[-1]

        def total(name: str) -> Any:
            return sum(getattr(meter, name) for meter in chain)

        costs = set().union(*(meter.cost_sources for meter in chain))
        usages = set().union(*(meter.usage_sources for meter in chain))
        if any(meter.tokens_unknown for meter in chain):
            usages.add("unknown")
        cost_source = _worst(costs)
        return {
            "model_calls": total("model_calls"), "tool_calls": total("tool_calls"),
            "calls_per_tool": dict(sorted(self.per_tool.items())),
            "input_tokens": total("input_tokens"), "output_tokens": total("output_tokens"), "usage_source": _worst(usages),
            "cost_usd": None if cost_source == "unknown" else total("model_cost_usd") + total("tool_cost_usd"),
            "cost_source": cost_source,
            "tool_cost_usd": total("tool_cost_usd"), "interpreter_s": round(total("interpreter_s"), 6),
            "model_latency_s": total("model_latency_s"),
            "active_s": round(time.monotonic() - first.started - total("waited_s"), 6),
        }  # fmt: skip


def _worst(sources: set[str]) -> str:
    """``exact`` if every part is, ``unknown`` if any part is, else ``estimated``."""
    return next((source for source in ("unknown", "estimated") if source in sources), "exact")
