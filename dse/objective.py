"""What a task is optimised for: prices that turn quality, cost, latency and capability into one utility.

``utility = score - cost_weight * USD - latency_weight * seconds + exposure_weight * effects removed``

Prices trade, limits do not; a price of 0 means that the quantity does not count. The gate
(`dse.compiler.gate`) decides on utility, within ``min_quality`` and ``max_quality_loss``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from dse.errors import UserError

__all__ = ["Objective"]

_Price = Annotated[float, Field(ge=0)]
_MOST = 1e9  # beyond, a utility could be no number


class Objective(BaseModel):
    """Prices and limits of a task. Scores and utilities share one scale, on which 1.0 is a perfect run.

    Args:
        cost_weight: utility per USD of model and tool cost of one run.
        latency_weight: utility per second of one run. Latency is what was waited for models, as recorded: seconds of tools
            and of this machine would be other ones at every replay, and are not in it.
        exposure_weight: utility per effect that the incumbent can have and the plan cannot (a tool removed).
        max_cost: the most a run may cost on average, in USD.
        max_p95_latency_s: the longest that the 95th percentile of runs may wait for models, in seconds.
        min_quality: mean score that must be shown, below 1 (no number of rows can show 1).
        max_quality_loss: how much lower than the incumbent's the mean score may be when another gain pays for
            it. 0 asks for no loss: see `dse.compiler.gate` for what that means on finite data.
        worthwhile: the smallest gain in utility worth more data. Decides between KEEP and INSUFFICIENT only.

    Raises:
        UserError: a field is unknown, of the wrong type or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    cost_weight: _Price = 0.0
    latency_weight: _Price = 0.0
    exposure_weight: _Price = 0.0
    max_cost: Annotated[float, Field(ge=0)] | None = None
    max_p95_latency_s: Annotated[float, Field(gt=0)] | None = None
    min_quality: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_quality_loss: Annotated[float, Field(ge=0, le=1)] = 0.0
    worthwhile: Annotated[float, Field(gt=0)] = 0.05

    @model_validator(mode="wrap")
    @classmethod
    def _coded(cls, data: Any, handler: ModelWrapValidatorHandler[Objective]) -> Objective:
        try:
            made = handler(data)
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "value"
            known = ", ".join(cls.model_fields)
            raise UserError(f"The objective cannot have this {field}: {first['msg']}",
                            value=repr(first["input"]), field=field,
                            remedy=f"Fields are {known}; none is negative.") from None  # fmt: skip
        for name in ("cost_weight", "latency_weight", "exposure_weight"):
            if getattr(made, name) > _MOST:
                raise UserError(f"The objective cannot have this {name}", value=repr(getattr(made, name)), field=name,
                                remedy=f"A weight is {_MOST:g} at most: a perfect run has a utility of 1.")  # fmt: skip
        return made

    @property
    def needs_cost(self) -> bool:
        """Whether this objective cannot be applied while the cost of a run is unknown."""
        return self.cost_weight > 0 or self.max_cost is not None

    @property
    def needs_latency(self) -> bool:
        """Whether this objective cannot be applied while the latency of a run is unknown."""
        return self.latency_weight > 0 or self.max_p95_latency_s is not None

    def utility(
        self,
        score: float,
        cost: float | None = None,
        latency: float | None = None,
        exposure_removed: float = 0.0,
    ) -> float:
        """Utility of one run.

        Args:
            score: quality in [0, 1].
            cost: USD; may be None (unknown) only while it has no price.
            latency: seconds; may be None (unknown) only while it has no price.
            exposure_removed: effects that the incumbent can have and the plan cannot; negative when it adds.

        Raises:
            UserError: a priced quantity is unknown. An unknown cost is never taken for 0.
        """
        total = score + self.exposure_weight * exposure_removed
        for weight, amount, name, price in (
            (self.cost_weight, cost, "cost", "cost_weight"),
            (self.latency_weight, latency, "latency", "latency_weight"),
        ):
            if weight:
                if amount is None:
                    raise unknown(name, price)
                total -= weight * amount
        return total

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON data; `Objective.model_validate` reads it back."""
        return self.model_dump(mode="json")


def unknown(quantity: str, field: str) -> UserError:
    """The error for a cost or latency that an objective needs and nobody measured."""
    where = ("the model's price (prices=dse.PriceTable.load(FILE), dse compile --prices FILE)" if quantity == "cost" else
             "the recorded latency of every completion")  # fmt: skip
    return UserError(f"The {quantity} of a run is unknown, and the objective's {field} needs it",
                     remedy=f"Supply {where}, or remove {field} from the objective.", field=field)  # fmt: skip
