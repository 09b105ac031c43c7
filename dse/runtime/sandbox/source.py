"""A piece of guest code as text and syntax tree, with what the rewriter and the lint ask of it."""

from __future__ import annotations

import ast
import builtins
import functools
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, cast

__all__ = ["Source", "bound_names", "parse", "walk_scope"]

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_NO_NODES = frozenset({"ctx", "op", "ops", "id", "attr", "arg", "kind", "type_comment", "type_ignores", "level"})
_BUILTINS = frozenset(dir(builtins))


_parsing = threading.Lock()


def parse(text: str, mode: str = "exec") -> ast.AST:
    """``ast.parse`` for code that several threads look at.

    CPython 3.11 counts the parser's depth per process, not per thread: two threads that parse at once can get a
    SystemError. One at a time, and again if somebody else was parsing.
    """
    for attempt in range(50):
        try:
            with _parsing:
                return ast.parse(text, mode=mode)
        except SystemError:
            if attempt == 49:
                raise
    raise AssertionError("unreachable: the loop returns or raises")


class Source:
    """Parsed code.

    Positions are UTF-8 byte offsets, as the syntax tree gives them.

    Raises:
        SyntaxError: the host's parser refuses the text. The interpreter's own grammar is a little newer.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.data = text.encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the guest's code, such as invalid escapes
            self.tree = cast("ast.Module", parse(text))
        self._lines = [0]
        while at := self.data.find(b"\n", self._lines[-1]) + 1:
            self._lines.append(at)
        self.nodes: list[ast.AST] = [self.tree]  # level by level, without operators and contexts; they do not change
        self.kinds: dict[type[ast.AST], list[Any]] = {}  # the same by kind
        self.children: dict[ast.AST, list[ast.AST]] = {}
        self.parents: dict[ast.AST, ast.AST] = {}
        self.functions: dict[str, FunctionNode] = {}
        nodes, kinds, parents = self.nodes, self.kinds, self.parents
        for node in nodes:  # which grows meanwhile
            kind = type(node)
            if kind in kinds:
                kinds[kind].append(node)
            else:
                kinds[kind] = [node]
            below = self.children[node] = _children(node)
            nodes += below
            for child in below:
                parents[child] = node
        functions = self.of_kinds(ast.FunctionDef, ast.AsyncFunctionDef)
        imports = self.of_kinds(ast.Import, ast.ImportFrom)
        self.functions.update((node.name, node) for node in functions)
        self.bindings: list[tuple[str, ast.AST]] = list(_bound(nodes))
        self.imports: dict[str, str] = {}  # local name -> "module" or "module.name"
        rebound = {name for name, node in self.bindings if not isinstance(node, (ast.Import, ast.ImportFrom))}
        for node in imports:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    local = alias.asname or alias.name.partition(".")[0]
                    self.imports[local] = alias.name if alias.asname else local
            elif node.module and not node.level:
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for name in rebound:
            self.imports.pop(name, None)
        imported = {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}
        self.bound = rebound | self.imports.keys() | imported

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of(cls, text: str) -> Source:
        """The same, remembered: one piece of code is rewritten, linted and checked right after another."""
        return cls(text)

    def of_kinds(self, *kinds: type[ast.AST]) -> list[Any]:
        """The nodes of these kinds, kind by kind."""
        return [node for kind in kinds for node in self.kinds.get(kind, ())]

    def start(self, node: ast.AST) -> int:
        at: int = self._lines[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return at

    def end(self, node: ast.AST) -> int:
        at: int = self._lines[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return at

    def segment(self, node: ast.AST) -> str:
        return self.data[self.start(node) : self.end(node)].decode()

    def column(self, node: ast.AST) -> int:
        """1-based column in characters."""
        line = self._lines[node.lineno - 1]  # type: ignore[attr-defined]
        return len(self.data[line : self.start(node)].decode()) + 1

    def find(self, char: str, begin: int, end: int) -> int | None:
        """Where a character stands between two nodes, comments not counted."""
        wanted, i = ord(char), begin
        while i < end:
            byte = self.data[i]
            if byte == wanted:
                return i
            if byte == 35:  # a comment runs to the end of its line
                newline = self.data.find(b"\n", i, end)
                if newline < 0:
                    return None
                i = newline
            i += 1
        return None

    def resolve(self, node: ast.AST) -> str | None:
        """The full name of what an expression refers to: ``asyncio.gather``, ``builtins.map``.

        None for local names and everything that is not a plain path.
        """
        if isinstance(node, ast.Name):
            if node.id in self.imports:
                return self.imports[node.id]
            if node.id in self.bound:
                return None
            if node.id in _BUILTINS:
                return f"builtins.{node.id}"
            return "asyncio" if node.id == "asyncio" else None  # asyncio is always there
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value)
            return f"{base}.{node.attr}" if base and not base.startswith("builtins.") else None
        return None


@functools.cache
def _fields(kind: type[ast.AST]) -> tuple[str, ...]:
    """Those that may hold nodes worth looking at."""
    return tuple(name for name in kind._fields if name not in _NO_NODES and kind is not ast.Constant)


def _children(node: ast.AST) -> list[ast.AST]:
    found: list[ast.AST] = []
    for name in _fields(type(node)):  # type: ignore[arg-type]
        value = getattr(node, name, None)
        if type(value) is list:
            found += [item for item in value if isinstance(item, ast.AST)]
        elif value is not None and isinstance(value, ast.AST):
            found.append(value)
    return found


def bound_names(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every binding of a name in any scope: assignments, loops, parameters, imports, definitions."""
    return _bound(ast.walk(tree))


_BINDING = frozenset(
    {ast.Name, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.arg, ast.Import, ast.ImportFrom, ast.ExceptHandler,
     ast.MatchAs, ast.MatchStar, ast.MatchMapping}
)  # fmt: skip


def _bound(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for node in nodes:
        kind = type(node)
        if kind not in _BINDING:
            continue
        if kind is ast.Name:
            if type(node.ctx) is not ast.Load:  # type: ignore[attr-defined]
                yield node.id, node  # type: ignore[attr-defined]
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, ast.arg):
            yield node.arg, node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], node
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node
        elif isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
            yield node.name, node
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest, node


def walk_scope(nodes: list[ast.stmt] | list[ast.AST]) -> Iterator[ast.AST]:
    """All nodes below, without entering functions, lambdas and classes."""
    todo: list[ast.AST] = list(nodes)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            todo.extend(ast.iter_child_nodes(node))
