"""Frozen pydantic models that a developer writes out: a wrong field is a coded error, not a page of pydantic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dse.errors import InvalidValue

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = ["Declared"]


class _Coded(ModelMetaclass):
    """Turns pydantic's error into ours where the class itself is called.

    Validation inside other models (an artifact's, a plan's) does not go through here and reports as pydantic does.
    """

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*args, **fields)
        except ValidationError as exc:
            known: Any = cls
            first = exc.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            told = first["msg"].removeprefix("Value error, ")
            raise InvalidValue(
                f"dse.{cls.__name__} cannot have this {place}: {told}" if place else f"dse.{cls.__name__}: {told}",
                value=repr(first["input"]) if place else None, remedy=f"Its fields: {', '.join(known.model_fields)}.",
                field=place) from None  # fmt: skip


class Declared(BaseModel, metaclass=_Coded):
    """Frozen, and without unknown fields.

    Raises:
        InvalidValue: a field is unknown, of the wrong type or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
