"""Toolbox: contracts bound to implementations, each with a revision. The one capability surface."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from dse.canonical import digest
from dse.contracts.revision import source_revision
from dse.contracts.schema import adapter_for
from dse.contracts.tool import Rate, Tool, ToolContract, tool
from dse.errors import ContractMismatch, ToolboxError

__all__ = ["Toolbox"]

Rule = Callable[[dict[str, Any]], bool]
Slots = Callable[[str, Rate, float], Awaitable[float | None]]  # as `Toolbox.reserve_slot`, of the process that keeps the rates


class Toolbox:
    """Tools by name, and the named approval rules that their contracts mention.

    Args:
        tools: declared tools (``@dse.tool``); those without a body must be bound before a run needs them.
        rules: ``{"name@version": callable(arguments) -> bool}``: True means the call needs a decision.
    """

    def __init__(self, tools: Iterable[Any] = (), *, rules: Mapping[str, Rule] | None = None) -> None:
        self._tools: dict[str, Tool] = {}
        self._windows: dict[str, deque[float]] = {}  # start times per rated tool, shared by merged copies
        self._lock = threading.Lock()
        self.rules: dict[str, Rule] = dict(rules or {})
        self.elsewhere: Slots | None = None
        self.apart: frozenset[str] = frozenset()  # tools that a world implements: no call of theirs reaches what a rate protects
        for one in tools:
            self.add(one)

    def add(self, one: Tool | Callable[..., Any]) -> Toolbox:
        """Add a declared tool. A plain function is refused: its effect is unknown.

        Raises:
            ToolboxError
        """
        if not isinstance(one, Tool):
            raise ToolboxError("A toolbox takes tools declared with @dse.tool", value=repr(one),
                               remedy="Decorate the function, which states its effect.")  # fmt: skip
        if one.name in self._tools and self._tools[one.name] is not one:
            raise ToolboxError("Two tools have the same name", value=one.name, remedy="Rename one of them.")
        self._tools[one.name] = one
        return self

    def bind(self, name: str, fn: Callable[..., Any], *, revision: str | None = None) -> Toolbox:
        """Give the declared tool `name` the implementation `fn` (same parameters and types).

        Raises:
            ToolboxError: unknown name.
            ContractMismatch: `fn` has another interface than the contract.
        """
        old = self[name]
        if isinstance(fn, Tool):
            new = fn
        else:
            c = old.contract
            new = tool(fn, effect=c.effect, name=c.name, description=c.description, revision=revision)
        if _shape(new.contract) != _shape(old.contract):
            raise ContractMismatch(f"The implementation bound to {name!r} has another interface than its contract",
                                   value=_difference(_shape(new.contract), _shape(old.contract)),
                                   remedy="Give it the same parameters, types, defaults and return type.")  # fmt: skip
        self._tools[name] = dataclasses.replace(
            old, fn=new.fn, params=new.params, returns=new.returns, context_parameter=new.context_parameter,
            revision=revision or new.revision or source_revision(fn), nests=new.nests, _declared=fn, deps_type=new.deps_type,
        )  # fmt: skip
        return self

    def bind_contract(self, contract: ToolContract, fn: Callable[..., Any], *, revision: str | None = None) -> Toolbox:
        """Bind a contract that exists only as data; arguments arrive as the plain values of its schema."""
        params = adapter_for(contract.parameters)
        one = Tool(contract, fn, _PlainParams(params, contract), adapter_for(contract.returns), None,  # type: ignore[arg-type]
                   revision or source_revision(fn), _declared=fn)  # fmt: skip
        return self.add(one)

    def merged(self, overrides: Mapping[str, Callable[..., Any]]) -> Toolbox:
        """A copy in which some implementations are replaced (an environment's, a test's)."""
        copy = Toolbox(rules=self.rules)
        copy._tools = dict(self._tools)
        copy._windows, copy._lock, copy.elsewhere, copy.apart = self._windows, self._lock, self.elsewhere, self.apart
        for name, fn in overrides.items():
            copy.bind(name, fn)
        return copy

    def in_world(self, overrides: Mapping[str, Callable[..., Any]], apart: Iterable[str]) -> Toolbox:
        """A copy for one run in a world that replaces some implementations; the tools `apart` are its own."""
        copy = self.merged({})
        for name, fn in overrides.items():
            copy.bind(name, fn, revision="world")  # of one run: nothing is stored under it, and reading a world takes time
        copy.apart |= frozenset(apart)
        return copy

    def replaced(self, tools: Iterable[Tool]) -> Toolbox:
        """A copy with these in place of the tools of the same names; rates go on being shared."""
        copy = self.merged({})
        copy._tools |= {one.name: one for one in tools}
        return copy

    def __getitem__(self, name: str) -> Tool:
        try:
            return self._tools[name]
        except KeyError:
            raise ToolboxError("The toolbox has no such tool", value=name,
                               remedy=f"It has: {', '.join(sorted(self._tools)) or 'none'}.") from None  # fmt: skip

    def get(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def check_deps(self, names: Iterable[str]) -> None:
        """Refuse a run without dependencies of tools that say which they take.

        Raises:
            ToolboxError
        """
        for name in names:
            tool = self._tools[name]
            if tool.fn is not None and tool.deps_type:
                raise ToolboxError(f"{name} takes ToolContext[{tool.deps_type}], and no deps= were given", value=None,
                                   remedy="Pass deps= to the program or the call, or yield dse.World(deps=...) from the "
                                          "environment.")  # fmt: skip

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __repr__(self) -> str:
        return f"<dse.Toolbox {', '.join(self._tools)}>"

    def reserve_slot(self, name: str, rate: Rate, now: float, longest_s: float) -> float | None:
        """Seconds to wait for the next free slot of a rated tool, or None if that is longer than `longest_s`."""
        with self._lock:
            window = self._windows.setdefault(name, deque(maxlen=rate.calls))
            start = now if len(window) < rate.calls else max(now, window[0] + rate.per_s)
            if start - now > longest_s:
                return None
            window.append(start)
            return start - now

    async def slot(self, name: str, rate: Rate, now: float, longest_s: float) -> float | None:
        """`reserve_slot`, in the process that keeps the rates."""
        if self.elsewhere is not None:
            return await self.elsewhere(name, rate, longest_s)
        return self.reserve_slot(name, rate, now, longest_s)

    def contracts(self) -> dict[str, ToolContract]:
        return {name: one.contract for name, one in self._tools.items()}

    def revision(self, names: Iterable[str]) -> str:
        """One id for the implementations of `names`."""
        return digest({name: self[name].revision for name in sorted(names)})


def _shape(contract: ToolContract) -> dict[str, Any]:
    """What callers rely on: all of the schemas but the texts, in one order."""
    return {"parameters": _bare(contract.parameters), "returns": _bare(contract.returns)}


def _bare(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_bare(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    bare: dict[str, Any] = {}
    for key, value in sorted(schema.items()):
        if key in ("description", "title"):
            continue
        if key in ("properties", "$defs", "patternProperties") and isinstance(value, dict):  # keys are names here
            bare[key] = {name: _bare(one) for name, one in sorted(value.items())}
        elif key in ("default", "const", "enum", "examples"):  # values, not schemas
            bare[key] = value
        else:
            bare[key] = sorted(value) if key == "required" else _bare(value)
    return bare


def _difference(new: Any, old: Any, where: str = "") -> str:
    """The first place in which two shapes differ, and how."""
    if isinstance(new, dict) and isinstance(old, dict):
        for key in sorted({*new, *old}):
            path = f"{where}.{key}" if where else key
            if key not in new or key not in old:
                return f"{path} {'is missing' if key in old else 'is new'}"
            if new[key] != old[key]:
                return _difference(new[key], old[key], path)
    return f"{where}: {new} instead of {old}"


class _PlainParams:
    """Parameters of a contract without Python types: validates to, and dumps, plain values."""

    def __init__(self, adapter: TypeAdapter[Any], contract: ToolContract) -> None:
        self.adapter = adapter
        self.names = tuple(contract.parameters.get("properties", {}))

    def validate(self, wire: Mapping[str, Any]) -> dict[str, Any]:
        made = self.adapter.validate_python(wire)
        if isinstance(made, dict):
            return {}
        given: dict[str, Any] = made.model_dump(mode="json", by_alias=True)
        return {name: given.pop(name, None) for name in self.names} | given  # every parameter has a value; what is inside may not
