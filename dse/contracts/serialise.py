"""From validated Python values to plain JSON data.

Asking pydantic to refuse values that are not of their type (``warnings="error"``) takes several times as long as all the
rest, and more so the more threads there are. Where validating has just made the value, and every part of its type is one that
pydantic makes itself, there is nothing to refuse: such types are found once, and the others are dumped with the question.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

__all__ = ["dump", "dump_model"]

# Kinds of core schemas whose validated values are exactly of the type that serialising expects. Not among them: functions
# of users, and classes whose instances validation passes as they are, whatever has become of them.
_EXACT = frozenset(
    {"any", "bool", "bytes", "date", "datetime", "decimal", "definition-ref", "definitions", "dict", "enum", "float", "int", "list",
     "literal", "none", "nullable", "set", "frozenset", "str", "time", "timedelta", "tuple", "typed-dict", "typed-dict-field",
     "union", "uuid"}
)  # fmt: skip
_MADE = frozenset({"model", "model-fields", "model-field", "default"})  # of a model that `make_model` made


def dump(adapter: TypeAdapter[Any], value: Any) -> Any:
    """`value`, which `adapter` has just validated, as JSON data.

    Raises:
        pydantic_core.PydanticSerializationError: it is not of its type after all, or has no JSON form.
    """
    return adapter.dump_python(value, mode="json", by_alias=True, warnings=_care(adapter))


def dump_model(made: BaseModel) -> dict[str, Any]:
    """The same for an instance of a model from `make_model` that has just been validated."""
    return made.model_dump(mode="json", by_alias=True, warnings=_care(type(made)))


@functools.lru_cache(maxsize=4096)
def _care(of: TypeAdapter[Any] | type[BaseModel]) -> Literal[False, "error"]:
    if isinstance(of, TypeAdapter):
        return False if _is_exact(of.core_schema, _EXACT) else "error"
    return False if _is_exact(of.__pydantic_core_schema__, _EXACT | _MADE) else "error"


def _is_exact(schema: Any, kinds: frozenset[str]) -> bool:
    """Whether a core schema consists of these kinds, and what is in the fields of a model of the exact ones."""
    kind = schema["type"]
    if kind not in kinds or "serialization" in schema or schema.get("post_init") or schema.get("custom_init"):
        return False
    if kind in ("literal", "enum", "any", "none", "definition-ref"):
        return True
    if kind == "definitions":
        return _is_exact(schema["schema"], kinds) and all(_is_exact(one, _EXACT) for one in schema["definitions"])
    if kind == "model":
        return _is_exact(schema["schema"], kinds)
    if kind in ("model-fields", "typed-dict"):
        if schema.get("computed_fields") or schema.get("extras_schema"):
            return False
        return all(_is_exact(field, kinds) for field in schema["fields"].values())
    if kind == "model-field":
        inner = schema["schema"]
        return _is_exact(inner["schema"] if inner["type"] == "default" else inner, _EXACT)
    if kind == "union":
        return all(_is_exact(one[0] if isinstance(one, tuple) else one, kinds) for one in schema["choices"])
    parts = [schema[name] for name in ("schema", "items_schema", "keys_schema", "values_schema") if name in schema]
    return all(_is_exact(one, kinds) for part in parts for one in (part if isinstance(part, list) else [part]))
