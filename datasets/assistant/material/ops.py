"""How a scenario is written: what is said, with which parameters, and what it asks for.

A scenario's `do(p, v)` gets the initial profile and the row's parameters and gives the *intent*: a list of
operations below, or a refusal. Operations say what is meant ("add this item"); build.py turns them into tool
calls ("set the checklist to these items").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Op = list[Any]
Profile = dict[str, Any]


class V(dict[str, Any]):
    """A row's parameters, with attribute access."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None


def name(x: str) -> Op:
    return ["set", "identity.name", x]


def creature(x: str) -> Op:
    return ["set", "identity.creature", x]


def mood(x: str) -> Op:
    return ["set", "identity.vibe", x]


def emoji(x: str) -> Op:
    return ["set", "identity.emoji", x]


def handle(x: str) -> Op:
    return ["set", "user.handle", x]


def context(x: str) -> Op:
    return ["set", "user.context", x]


def tone(x: str) -> Op:
    return ["set", "character.vibe", x]


def note(x: str) -> Op:
    return ["add", "user.notes", x]


def truth(x: str) -> Op:
    return ["add", "character.core_truths", x]


def untruth(x: str) -> Op:
    return ["remove", "character.core_truths", x]


def bound(x: str) -> Op:
    return ["add", "character.boundaries", x]


def unbound(x: str) -> Op:
    return ["remove", "character.boundaries", x]


def tnote(x: str) -> Op:
    return ["add", "tools_notes", x]


def untnote(x: str) -> Op:
    return ["remove", "tools_notes", x]


def tnotes(items: list[str]) -> Op:
    return ["replace", "tools_notes", items]


def check(x: str) -> Op:
    return ["add", "heartbeat_checklist", x]


def uncheck(x: str) -> Op:
    return ["remove", "heartbeat_checklist", x]


def checks(items: list[str]) -> Op:
    return ["replace", "heartbeat_checklist", items]


def daily(x: str, vis: str = "main_only") -> Op:
    return ["memory", "daily", x, vis]


def lasting(x: str, vis: str = "main_only") -> Op:
    return ["memory", "long_term", x, vis]


def export() -> Op:
    return ["export"]


@dataclass(frozen=True)
class Refuse:
    """The request breaks `rule`; `shown` is the text in the message (or profile) that shows it."""

    rule: str
    shown: str


@dataclass(frozen=True)
class Scenario:
    """One cluster.

    Args:
        name: the cluster's name.
        kind: the family of difficulty, such as ``one`` or ``conditional``.
        say: texts with ``{parameters}``; a row uses its own ``say``, or the next text in turn. ``{me}`` and ``{agent}``
            are the hints.
        rows: the parameters of each row; ``act`` is the action its author expects (the builder compares).
        do: the intent, from profile and parameters.
        setup: changes the random profile so that the row means something.
        forbid: operations (``calls``) and texts (``text``) that must not come about.
        act: the expected action where the row gives none.
        partly: some operations may already be satisfied by the profile.
        derived: stored values come from the profile, so they need not stand in the message.
    """

    name: str
    kind: str
    say: list[str]
    rows: list[dict[str, Any]]
    do: Callable[[Profile, V], list[Op] | Refuse]
    setup: Callable[[Profile, V], None] | None = None
    forbid: Callable[[Profile, V], dict[str, Any]] | None = None
    act: str = "applied"
    partly: bool = False
    derived: bool = False
    keys: dict[str, list[str]] = field(default_factory=dict)


def fill(p: Profile, path: str, value: Any) -> None:
    """Set one value of the initial profile, such as ``identity.emoji``."""
    *parts, last = path.split(".")
    for part in parts:
        p = p[part]
    p[last] = value


def put(p: Profile, path: str, *items: str, at: int = 0) -> None:
    """Make sure that `items` are in a list, or are lines of a text, of the initial profile."""
    *parts, last = path.split(".")
    for part in parts:
        p = p[part]
    if isinstance(p[last], str):
        old = [line for line in p[last].splitlines() if line and line not in items]
        p[last] = "\n".join([*old[:at], *items, *old[at:]])
    else:
        old = [item for item in p[last] if item not in items]
        p[last] = [*old[:at], *items, *old[at:]]


def none(p: Profile, v: V) -> list[Op]:
    """Nothing is asked for."""
    return []
