"""Texts that a script holds, also those that it puts together from constants, found without running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["texts"]

_MOST = 1_000_000  # characters that one expression may come to
_WIDE = re.compile(r"%[^%a-zA-Z]*(\d{4}|\*)|\{[^{}]*(\d{4}|\{)")  # pads to thousands of characters, or by an argument
_PLAIN = (str, int, float, bool, type(None))


class _Unknown(Exception):
    """An expression is no constant."""


def texts(tree: ast.AST) -> list[tuple[int, str]]:
    """Lines and texts: every constant, and what ``+``, ``%``, ``str.format``, ``str.join`` and f-strings make of constants.
    Docstrings are comments. What is put together only at run time (a slice, a loop) is not found."""
    comments = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found: dict[tuple[int, str], None] = {}
    inside: set[int] = set()  # of a sum that was looked at whole
    for node in ast.walk(tree):
        if id(node) in comments or not isinstance(node, (ast.Constant, ast.BinOp, ast.JoinedStr, ast.Call)):
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and id(node) not in inside:
            inside |= {id(one) for one in _spine(node)}
            runs = _runs(_operands(node))
        elif isinstance(node, ast.JoinedStr):
            runs = _runs(node.values)
        else:
            runs = _runs([node])
        found.update({(node.lineno, text): None for text in runs})
    return list(found)


def _spine(node: ast.expr) -> Iterator[ast.BinOp]:
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield node
        node = node.left


def _operands(node: ast.expr) -> list[ast.expr]:
    """Of ``a + b + c``, in their order."""
    spine = list(_spine(node))
    return [spine[-1].left, *(one.right for one in reversed(spine))] if spine else [node]


def _runs(parts: Sequence[ast.expr]) -> Iterator[str]:
    """Texts of neighbouring parts that are constant."""
    run: list[str] = []
    for part in parts:
        try:
            value = _value(part)
        except (_Unknown, RecursionError):
            value = None
        if isinstance(value, str):
            run.append(value)
        elif run:
            yield "".join(run)
            run = []
    if run:
        yield "".join(run)


def _value(node: ast.expr) -> Any:
    """The value of a constant expression.

    Raises:
        _Unknown: it is none, or not of a kind that is looked at.
    """
    match node:
        case ast.Constant(value=value) if isinstance(value, _PLAIN):
            return value
        case ast.BinOp(op=ast.Add()):
            return "".join(_text(one) for one in _operands(node))
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) for part in parts)
        case ast.FormattedValue(value=inner, conversion=-1, format_spec=None):
            return _made("{}", "{}".format, [_value(inner)])
        case ast.BinOp(left=left, op=ast.Mod(), right=right):
            given = [_value(one) for one in right.elts] if isinstance(right, ast.Tuple) else [_value(right)]
            template = _text(left)
            return _made(template, lambda *values: template % values, given)
        case ast.Call(func=ast.Attribute(value=of, attr="format"), args=args, keywords=keywords) if all(k.arg for k in keywords):
            named = {str(k.arg): _value(k.value) for k in keywords}
            template, given = _text(of), [_value(one) for one in args]
            return _made(template, lambda *values: template.format(*values[: len(given)], **named), [*given, *named.values()])
        case ast.Call(func=ast.Attribute(value=of, attr="join"), args=[ast.List(elts=parts) | ast.Tuple(elts=parts)], keywords=[]):
            return _made(_text(of) * min(1, len(parts)), lambda *values: _text(of).join(values), [_text(part) for part in parts])
    raise _Unknown


def _text(node: ast.expr) -> str:
    value = _value(node)
    if not isinstance(value, str):
        raise _Unknown
    return value


def _made(template: str, make: Any, values: list[Any]) -> str:
    try:
        if _WIDE.search(template) or (len(template) + 1) * (1 + sum(len(str(value)) for value in values)) > _MOST:
            raise _Unknown
        return str(make(*values))
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError):  # the script would fail, too
        raise _Unknown from None
