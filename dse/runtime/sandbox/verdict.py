"""From the type checker's diagnostics to remarks worth a model's turn.

A remark is an error only when the code as it stands must go wrong: a call that no value of the inferred type
could satisfy, a name that does not exist, a missing ``await``. What the checker infers of the guest's own
lists and dicts is often wider than what is in them (``{"name": "a", "n": 1}`` gives ``str | int`` for both),
so doubts of that kind are warnings, and so is everything about annotations, which never run.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

from dse.runtime.sandbox.records import Diagnostic
from dse.runtime.sandbox.shims import provided
from dse.runtime.sandbox.source import parse

__all__ = ["TypeTable", "fits", "is_harmless", "judge"]

Severity = Literal["error", "warning"]
_DOUBTS = frozenset(
    {"no-matching-overload", "invalid-assignment", "invalid-return-type", "invalid-parameter-default",
     "invalid-type-form", "invalid-declaration", "conflicting-declarations", "invalid-type-arguments",
     "redundant-cast", "possibly-unresolved-reference", "invalid-context-manager"}
)  # fmt: skip
_PAIRS = (
    re.compile(r"Expected `(?P<e>.+)`, found `(?P<f>.+)`$", re.DOTALL),
    re.compile(r"declared type `(?P<e>.+)` on TypedDict `\w+`: value of type `(?P<f>.+)`$", re.DOTALL),
)
_BOUND = re.compile(r"Argument type `(.+?)` does not satisfy")
_OPERANDS = re.compile(r"between objects of type `(.+)` and `(.+)`$", re.DOTALL)
_COROUTINE = re.compile(r"CoroutineType\[")
_CLASS = re.compile(r"Class `dse_x_(\w+)` has no attribute `(\w+)`")
_INDEX = re.compile(
    r"Method `__getitem__` of type .* cannot be called with key of type `(.+)` on object of type `(.+)`$", re.DOTALL
)
# `float` in an inferred type may hold an int: the checker widens a dict of both to `float`.
_SUBTYPES = {"int": {"float", "complex"}, "bool": {"int", "float"}, "float": {"complex", "int"}}
_CONTAINERS = {
    "list": {"list", "Sequence", "MutableSequence", "Iterable", "Collection"},
    "tuple": {"tuple", "Sequence", "Iterable", "Collection"},
    "set": {"set", "Set", "MutableSet", "Iterable", "Collection"}, "frozenset": {"frozenset", "Set", "Iterable"},
    "dict": {"dict", "Mapping", "MutableMapping"},
}  # fmt: skip

TypeTable = Mapping[str, Mapping[str, str]]
"""TypedDict classes of the stubs: name to required fields and their annotations."""


def judge(
    found: Mapping[str, Any], line: int, column: int, tree: ast.AST | None, types: TypeTable, known: frozenset[str]
) -> Diagnostic | None:
    """One remark, or None when it is not worth one.

    Args:
        found: the checker's diagnostic (``code``, ``message``, ``severity``).
        line: its line in the code; ``column`` 1-based.
        tree: the checked text's syntax tree, shifted to the same lines.
        known: names that the guest can use, for suggestions.
    """
    code, message = str(found["code"]), str(found["message"])
    node = _node_at(tree, line, column)
    if is_harmless(found) or (code == "unresolved-reference" and _in_annotation(tree, line, column)):
        return None
    severity: Severity = "error" if found["severity"] in ("error", "major", "fatal") else "warning"
    if severity == "error" and _doubtful(code, message, node, tree, types):
        severity = "warning"
    text, hint = _explain(code, message, types, known)
    return Diagnostic(line, column, code, text if len(text) <= 400 else text[:400] + "…", hint, severity)


def is_harmless(found: Mapping[str, Any]) -> bool:
    """A top-level ``return`` is no error here: it ends the code."""
    return found["code"] == "invalid-syntax" and "`return` statement outside" in found["message"]


def _doubtful(code: str, message: str, node: ast.AST | None, tree: ast.AST | None, types: TypeTable) -> bool:
    if _COROUTINE.search(message):
        return False  # a missing await
    if code in _DOUBTS or "in union `" in message:
        return True
    for pattern in _PAIRS:
        if pair := pattern.search(message):
            return fits(pair["e"], pair["f"], types)
    if bound := _BOUND.search(message):
        return " | " in bound[1]
    if code == "not-subscriptable":
        return "type `None`" in message or (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Subscript))
    if code == "unsupported-operator":
        operands = _OPERANDS.search(message)
        union = operands is not None and (" | " in operands[1] or " | " in operands[2])
        return union or _has_subscript(node)
    if code == "not-iterable":
        return " | " in message or "`None`" in message
    if code == "invalid-key":
        return _written(node, tree)
    return False


def fits(expected: str, found: str, types: TypeTable) -> bool:
    """Whether some value of the inferred type could be of the expected one; True when that cannot be told."""
    try:
        return _fits(_type(expected), _type(found), types)
    except SyntaxError:
        return " | " in found


def _type(text: str) -> ast.expr:
    return cast(ast.Expression, parse(text.strip().rstrip("*"), mode="eval")).body


def _fits(expected: ast.expr, found: ast.expr, types: TypeTable) -> bool:
    if isinstance(found, ast.BinOp):
        members = list(_members(found))
        # the checker puts the expected class into the type of a literal; the rest is what was written
        rest = [m for m in members if not (isinstance(m, ast.Name) and m.id in types and ast.dump(m) == ast.dump(expected))]
        return any(_fits(expected, member, types) for member in rest or members)
    if isinstance(expected, ast.BinOp):
        return any(_fits(member, found, types) for member in _members(expected))
    wanted, given = _head(expected), _head(found)
    if given in ("Unknown", "Any", "object", "Todo") or wanted in ("Unknown", "Any", "object", "Todo"):
        return True
    if wanted == "Literal":
        values = _values(expected)
        if given == "Literal":
            return any(v in values for v in _values(found))
        return given in {type(v).__name__ for v in values}
    if given == "Literal":
        kinds = {type(v).__name__ for v in _values(found)}
        return any(kind == wanted or wanted in _SUBTYPES.get(kind, ()) for kind in kinds)
    if given == "dict" and wanted in types:
        return _could_be(types[wanted], found, types)
    if given == wanted or wanted in _SUBTYPES.get(given, ()):
        return _fit_arguments(expected, found, types)
    if wanted in _CONTAINERS.get(given, ()):
        return _fit_arguments(expected, found, types)
    return False


def _fit_arguments(expected: ast.expr, found: ast.expr, types: TypeTable) -> bool:
    wanted, given = _arguments(expected), _arguments(found)
    if not wanted or len(wanted) != len(given):
        return True
    return all(_fits(e, f, types) for e, f in zip(wanted, given, strict=True))


def _could_be(fields: Mapping[str, str], found: ast.expr, types: TypeTable) -> bool:
    """Whether a dict with values of this type can have all the required fields."""
    arguments = _arguments(found)
    if len(arguments) != 2:
        return True
    keys = _values(arguments[0]) if _head(arguments[0]) == "Literal" else None
    if keys is not None and not set(fields) <= set(keys):
        return False
    try:
        return all(_fits(_type(annotation), arguments[1], types) for annotation in fields.values())
    except SyntaxError:
        return True


def _members(union: ast.expr) -> Iterator[ast.expr]:
    if isinstance(union, ast.BinOp):
        yield from _members(union.left)
        yield from _members(union.right)
    else:
        yield union


def _head(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        return _head(node.value)
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return "None" if isinstance(node, ast.Constant) and node.value is None else "?"


def _arguments(node: ast.expr) -> list[ast.expr]:
    if not isinstance(node, ast.Subscript):
        return []
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _values(literal: ast.expr) -> list[Any]:
    return [a.value for a in _arguments(literal) if isinstance(a, ast.Constant)]


# --- the place in the code


def _node_at(tree: ast.AST | None, line: int, column: int) -> ast.AST | None:
    """The largest expression that begins here."""
    if tree is None:
        return None
    here = [
        node
        for node in ast.walk(tree)
        if isinstance(node, (ast.expr, ast.AugAssign)) and node.lineno == line and node.col_offset == column - 1
    ]
    return max(here, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0), default=None)


def _in_annotation(tree: ast.AST | None, line: int, column: int) -> bool:
    """Annotations are never evaluated."""
    for node in ast.walk(tree) if tree is not None else ():
        for place in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(place, ast.expr) and (place.lineno, place.col_offset) <= (line, column - 1) < (
                place.end_lineno or 0, place.end_col_offset or 0,
            ):  # fmt: skip
                return True
    return False


def _has_subscript(node: ast.AST | None) -> bool:
    return node is not None and any(isinstance(n, ast.Subscript) for n in ast.walk(node))


def _written(node: ast.AST | None, tree: ast.AST | None) -> bool:
    """Whether the code itself puts this key into a dict."""
    if not isinstance(node, ast.Constant) or tree is None:
        return False
    return any(
        isinstance(n, ast.Subscript)
        and isinstance(n.ctx, ast.Store)
        and isinstance(n.slice, ast.Constant)
        and n.slice.value == node.value
        for n in ast.walk(tree)
    )


# --- words


def _explain(code: str, message: str, types: TypeTable, known: frozenset[str]) -> tuple[str, str]:
    if found := _CLASS.search(message):
        names = ", ".join(sorted(provided(found[1])))
        return f"the module `{found[1]}` has no `{found[2]}` here", f"it has {names}"
    message = re.sub(r"\bdse_x_(\w+)", r"\1", message)
    if _COROUTINE.search(message) or code == "unused-awaitable":
        return re.sub(r"CoroutineType\[Any, Any, (.+?)\](?=`)", r"un-awaited \1", message), "put `await` before the call"
    if found := _INDEX.search(message):
        return f"an object of type `{found[2]}` cannot be indexed by `{found[1]}`", ""
    if code == "invalid-await":
        return message, "leave out the `await`"
    if code == "unresolved-reference" and (name := re.search(r"Name `(\w+)`", message)):
        close = difflib.get_close_matches(name[1], known, n=1, cutoff=0.75)
        return f"the name `{name[1]}` is not defined", f"did you mean `{close[0]}`?" if close else ""
    if code == "unresolved-attribute" and (
        found := re.search(r"Object of type `(\w+)(?: \| None)?` has no attribute `(\w+)`", message)
    ):
        if found[2] in types.get(found[1], ()):
            return message, f'it is a dict: write ["{found[2]}"]'
    return message, ""
