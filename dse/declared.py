"""What a developer writes out: a wrong field is a coded error, not a page of pydantic, nor a bare TypeError."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dse.errors import InvalidValue

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = ["Declared", "known_fields"]

T = TypeVar("T")


def known_fields(cls: type[T]) -> type[T]:
    """A class decorator for dataclasses: a field that there is not is a coded error.

    Raises:
        InvalidValue: when the class is called with it.
    """
    made, names = cls.__init__, [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]

    @functools.wraps(made)
    def init(self: Any, *args: Any, **given: Any) -> None:
        if unknown := sorted(set(given) - set(names)):
            raise InvalidValue(f"dse.{cls.__name__} has no field of this name", value=", ".join(unknown),
                               remedy=f"Its fields: {', '.join(names)}.")  # fmt: skip
        made(self, *args, **given)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


class _Coded(ModelMetaclass):
    """Turns pydantic's error into ours where the class itself is called.

    Validation inside other models (an artifact's, a plan's) does not go through here and reports as pydantic does.
    """

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*args, **fields)
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            known: Any = cls
            for part in first["loc"][:-1]:  # of what is inside, its own fields
                inner = getattr(known, "model_fields", {}).get(part)
                known = getattr(inner, "annotation", None)
            known = known if isinstance(known, type) and issubclass(known, BaseModel) else cls
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
