"""Turns Python that the interpreter lacks into Python that it has, line by line the same.

Every rule inserts or replaces short pieces of text between the syntax tree's nodes, so rules nest freely and
no line moves. Two texts come out of one source: the one that runs, and the one that is type-checked, in which
imports stay as they are wherever the checker knows them better than the shims.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from dse.runtime.sandbox.shims import (
    AUTO_MODULES,
    AUTO_NAMES,
    MODULES,
    PREFIX,
    PROVIDED,
    provided,
)
from dse.runtime.sandbox.source import Source, walk_scope

__all__ = ["METHODS", "Rewritten", "callbacks", "guard_of", "neutral", "permits", "rewrite"]

# Methods of builtin types that the interpreter lacks; a shim takes the receiver first.
METHODS = frozenset(
    {"isocalendar", "toordinal", "utcnow", "utcfromtimestamp", "is_integer", "bit_length", "format_map", "translate",
     "difference_update", "intersection_update", "symmetric_difference_update"}
)  # fmt: skip
_TYPES = frozenset({"str", "list", "dict", "set", "frozenset", "tuple", "int", "float", "bytes"})
_CLASS_METHODS = frozenset({"fromkeys", "from_bytes", "fromhex", "maketrans"})
# Positions in which a function is given by name: the argument's index, or the keyword.
_CALLBACKS: dict[str, tuple[int | str, ...]] = {
    "builtins.sorted": ("key",), "builtins.min": ("key",), "builtins.max": ("key",), "functools.reduce": (0,),
    "functools.partial": (0,), "collections.defaultdict": (0,), "itertools.groupby": (1, "key"),
    "itertools.starmap": (0,), "itertools.takewhile": (0,), "itertools.dropwhile": (0,),
    "itertools.filterfalse": (0,), "itertools.accumulate": (1, "func"), "heapq.nlargest": ("key",),
    "heapq.nsmallest": ("key",), "bisect.bisect": ("key",),
}  # fmt: skip
_EXCEPTIONS = {
    "IOError": "OSError", "EnvironmentError": "OSError", "ConnectionError": "OSError", "BlockingIOError": "OSError",
    "BrokenPipeError": "OSError", "ConnectionAbortedError": "OSError", "ConnectionRefusedError": "OSError",
    "ConnectionResetError": "OSError", "InterruptedError": "OSError", "ProcessLookupError": "OSError",
    "ChildProcessError": "OSError", "UnicodeError": "ValueError", "FloatingPointError": "ArithmeticError",
    "IndentationError": "SyntaxError", "TabError": "SyntaxError",
}  # fmt: skip
_TYPING = frozenset(
    {"Any", "Optional", "Union", "List", "Dict", "Tuple", "Set", "FrozenSet", "Iterable", "Iterator", "Sequence",
     "Mapping", "Callable", "Literal", "Final", "TypeVar", "Generic", "Protocol", "Annotated", "TYPE_CHECKING",
     "Generator", "Self", "Type", "ClassVar", "NoReturn", "Never"}
)  # fmt: skip

_IMPORTABLE = MODULES | AUTO_MODULES.keys() | AUTO_NAMES.keys()  # what code may use without an import

_DATACLASS = ("dataclasses.dataclass", "dataclass")


@dataclass(frozen=True, slots=True)
class Rewritten:
    """``run`` goes to the interpreter, ``check`` to the type checker; ``needs`` are loaded before either."""

    run: str
    check: str
    needs: tuple[str, ...] = ()


def rewrite(code: str, known_names: frozenset[str] = frozenset()) -> Rewritten:
    """The code in both forms; text that the host cannot parse comes back as it is.

    Args:
        known_names: tools, inputs and earlier variables: never imported over.
    """
    return _rewrite(code, known_names & _IMPORTABLE)  # lint and check know different names, and share the answer


@lru_cache(maxsize=1024)
def _rewrite(code: str, known_names: frozenset[str]) -> Rewritten:
    try:
        source = Source.of(code)
        rewriter = _Rewriter(source, known_names, checking=False)
        check = run = (result := rewriter.result())[0]
        if rewriter.forked:
            check = _Rewriter(source, known_names, checking=True).result()[0]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Rewritten(code, code)
    return Rewritten(run, check, tuple(result[1]))


def guard_of(statement: ast.stmt) -> bool:
    """Whether a statement is ``if __name__ == "__main__":``."""
    if not isinstance(statement, ast.If) or statement.orelse or not isinstance(statement.test, ast.Compare):
        return False
    sides = [statement.test.left, *statement.test.comparators]
    named = any(isinstance(s, ast.Name) and s.id == "__name__" for s in sides)
    return named and any(isinstance(s, ast.Constant) and s.value == "__main__" for s in sides)


def callbacks(node: ast.Call, name: str) -> Iterable[ast.expr]:
    """Arguments that the interpreter itself will call, for a call of the function with this full name."""
    places = _CALLBACKS.get(name, ())
    if not name and isinstance(node.func, ast.Attribute) and node.func.attr == "sort":
        places = ("key",)
    for place in places:
        if isinstance(place, str):
            yield from (k.value for k in node.keywords if k.arg == place)
        elif place < len(node.args):
            yield node.args[place]


def permits(source: Source, node: ast.AsyncWith) -> bool:
    """Whether all managers are semaphores or timeouts, for which shims put managers that do nothing."""
    kinds = ("asyncio.Semaphore", "asyncio.BoundedSemaphore", "asyncio.timeout")
    made = any(source.resolve(n.func) in kinds for n in source.kinds.get(ast.Call, ()))
    return all(
        source.resolve(e.func) in kinds if isinstance(e, ast.Call) else made and isinstance(e, (ast.Name, ast.Attribute))
        for e in (item.context_expr for item in node.items)
    )


_Closer = Callable[[], None]


class _Rewriter:
    def __init__(self, source: Source, known_names: frozenset[str], *, checking: bool) -> None:
        self.s = source
        self.known = known_names
        self._checking = checking
        self.forked = False  # whether it mattered which of the two forms this is
        self.needs: list[str] = []
        self.edits: list[tuple[int, int, int, int, str]] = []  # (position, class, sequence, end, text)
        calls = source.kinds.get(ast.Call, ())
        self.called = {n.func.id for n in calls if isinstance(n.func, ast.Name)}
        self.nexted = {
            n.args[0].id
            for n in calls
            if n.args and isinstance(n.args[0], ast.Name) and source.resolve(n.func) == "builtins.next"
        }

    @property
    def checking(self) -> bool:
        self.forked = True
        return self._checking

    def result(self) -> tuple[str, list[str]]:
        self._imports_missing()
        for statement in self.s.tree.body:
            self._visit(statement)
        tail = self._trailing()
        data, out, at = self.s.data, bytearray(), 0
        for position, _, _, end, text in sorted(self.edits):
            out += data[at:position] + text.encode()
            at = end
        out += data[at:]
        text = out.decode()
        return (f"{text.rstrip()}\n{tail}" if tail else text), self.needs

    # --- edits. At one position: what closes comes first, then what opens, then replacements.

    def _open(self, at: int, text: str) -> None:
        self.edits.append((at, 1, len(self.edits), at, text))

    def _close(self, at: int, text: str) -> None:
        self.edits.append((at, 0, len(self.edits), at, text))

    def _replace(self, begin: int, end: int, text: str) -> None:
        text += "\n" * (self.s.data.count(b"\n", begin, end) - text.count("\n"))
        self.edits.append((begin, 2, len(self.edits), end, text))

    def _wrap(self, node: ast.AST, before: str, after: str) -> list[_Closer]:
        self._open(self.s.start(node), before)
        return [lambda: self._close(self.s.end(node), after)]

    def _need(self, shim: str) -> str:
        name = PREFIX + shim
        if name not in self.needs:
            self.needs.append(name)
        return name

    def _visit(self, node: ast.AST) -> None:
        handler = _HANDLERS.get(type(node))
        closers = handler(self, node) if handler else []
        if closers is None:  # replaced as a whole
            return
        for child in self.s.children[node]:
            self._visit(child)
        for close in reversed(closers):
            close()

    # --- statements

    def _on_Import(self, node: ast.Import) -> list[_Closer] | None:
        parts = []
        changed = False
        for alias in node.names:
            module, local = alias.name, alias.asname
            if module in MODULES:
                changed = True
                parts.append(f"{local or module} = {self._need(module)}")
            elif module in ("collections.abc", "typing_extensions") and not self.checking:
                changed = True
                shim = self._need("abc" if module == "collections.abc" else "typing")
                if local:
                    parts.append(f"{local} = {shim}")
                elif module == "collections.abc":
                    parts.append("import collections")
                else:
                    parts.append(f"{module} = {shim}")
            else:
                parts.append(f"import {module}" + (f" as {local}" if local else ""))
        if changed:
            self._replace(self.s.start(node), self.s.end(node), "; ".join(parts))
        return None

    def _on_ImportFrom(self, node: ast.ImportFrom) -> list[_Closer] | None:
        module = node.module or ""
        if node.level or any(alias.name == "*" for alias in node.names):
            return None
        if module == "__future__":
            self._replace(self.s.start(node), self.s.end(node), "pass")
            return None
        kept, parts = [], []
        for alias in node.names:
            local = alias.asname or alias.name
            if module == "typing_extensions" and alias.name in _TYPING:
                parts.append(f"from typing import {alias.name} as {local}")
                continue
            if (shimmed := self._shimmed(module, alias.name)) is None:
                kept.append(f"{alias.name} as {alias.asname}" if alias.asname else alias.name)
            elif shimmed:
                parts.append(f"{local} = {shimmed}")
        if parts or len(kept) < len(node.names):
            if kept:
                parts.insert(0, f"from {module} import {', '.join(kept)}")
            self._replace(self.s.start(node), self.s.end(node), "; ".join(parts) or "pass")
        return None

    def _shimmed(self, module: str, name: str) -> str | None:
        """The expression that stands for an imported name; None to leave it, empty to drop it."""
        if module in MODULES:
            return f"{self._need(module)}.{name}"
        if module == "datetime" and name == "UTC":
            return f"{self._need('m')}.UTC"
        if module in PROVIDED and name in PROVIDED[module]:
            if module == "dataclasses" and self.checking:
                return None
            return f"{self._need(module)}.{name}"
        if self.checking:
            return None
        if module in ("typing", "typing_extensions", "collections.abc"):
            if module == "typing" and name in _TYPING:
                return None
            shim = "abc" if name in provided("abc") else "typing"
            # names that only ever stand in annotations have no value here: annotations are not evaluated
            return f"{self._need(shim)}.{name}" if name in provided(shim) else ""
        return None

    def _on_Delete(self, node: ast.Delete) -> list[_Closer]:
        if node.lineno != node.end_lineno or not all(self._deletable(t) for t in node.targets):
            return []
        first = node.targets[0]
        self._replace(self.s.start(node), self.s.start(first), "")
        for one, two in zip(node.targets, node.targets[1:], strict=False):
            self._replace(self.s.end(one), self.s.start(two), "; ")
        closers: list[_Closer] = []
        for target in node.targets:
            end = self.s.end(target)
            if isinstance(target, ast.Name):
                closers.append(partial(self._close, end, " = None"))
            elif isinstance(target, ast.Subscript):
                if isinstance(target.slice, ast.Slice):
                    closers.append(partial(self._close, end, " = []"))
                else:
                    bracket = self.s.find("[", self.s.end(target.value), self.s.start(target.slice))
                    assert bracket is not None
                    self._replace(bracket, bracket + 1, ".pop(")
                    self._replace(end - 1, end, ")")
        return closers

    @staticmethod
    def _deletable(target: ast.expr) -> bool:
        if isinstance(target, ast.Subscript):
            return not (isinstance(target.slice, ast.Slice) and target.slice.step is not None)
        return isinstance(target, ast.Name)

    def _on_ClassDef(self, node: ast.ClassDef) -> list[_Closer] | None:
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and self.s.resolve(decorator.func) in _DATACLASS:
                for option in decorator.keywords:
                    if option.arg == "slots" and isinstance(option.value, ast.Constant):
                        self._replace(self.s.start(option.value), self.s.end(option.value), "False")
        if node.decorator_list or len(node.bases) != 1:
            return []
        base = self.s.resolve(node.bases[0]) or ""
        if base == "builtins.object" and not node.keywords:
            self._replace(self.s.start(node.bases[0]), self.s.end(node.bases[0]), "")
        fields = [st for st in node.body if not (isinstance(st, ast.Expr) and isinstance(st.value, ast.Constant))]
        plain = all(isinstance(st, (ast.AnnAssign, ast.Pass)) for st in fields)
        if plain and base.endswith(".TypedDict"):
            self._replace(self.s.start(node), self.s.end(node), f"{node.name} = dict")
            return None
        if plain and base.endswith(".NamedTuple"):
            named = [st for st in fields if isinstance(st, ast.AnnAssign) and isinstance(st.target, ast.Name)]
            names = ", ".join(repr(st.target.id) for st in named)  # type: ignore[union-attr]
            defaults = ", ".join(self.s.segment(st.value) for st in named if st.value is not None)
            text = f"{node.name} = {self._need('m')}.namedtuple({node.name!r}, [{names}], [{defaults}])"
            self._replace(self.s.start(node), self.s.end(node), text)
            return None
        return []

    def _on_AsyncWith(self, node: ast.AsyncWith) -> list[_Closer]:
        if permits(self.s, node):
            begin = self.s.start(node)
            self._replace(begin, self.s.data.index(b"with", begin), "")
        return []

    def _on_Assign(self, node: ast.Assign) -> list[_Closer]:
        target, value = node.targets[0], node.value
        if len(node.targets) != 1 or not isinstance(target, ast.Name):
            return []
        if target.id in self.nexted and self._is_eager(value):
            return self._wrap(value, "iter(", ")")
        if target.id in self.called and self._is_method(value):
            self._bound(value)
        return []

    # --- expressions

    def _dot(self, node: ast.Attribute) -> int | None:
        """Where the dot before the attribute's name stands."""
        named = self.s.end(node) - len(node.attr.encode())
        dot = self.s.data.rfind(b".", self.s.end(node.value), named)
        return None if dot < 0 or self.s.data[dot + 1 : named].strip() else dot

    def _bound(self, node: ast.expr) -> None:
        """A function that calls the method, for an object taken now: what reading a bound method means."""
        assert isinstance(node, ast.Attribute)
        if (dot := self._dot(node)) is not None:
            self._open(self.s.start(node), "(lambda *dse_a, dse_o=(")
            self._replace(dot, self.s.end(node), f"), **dse_k: dse_o.{node.attr}(*dse_a, **dse_k))")

    def _on_Name(self, node: ast.Name) -> list[_Closer]:
        if not isinstance(node.ctx, ast.Load):
            return []
        if node.id in _EXCEPTIONS and node.id not in self.s.bound:
            self._replace(self.s.start(node), self.s.end(node), _EXCEPTIONS[node.id])
        elif self.s.resolve(node) == "builtins.callable":
            self._replace(self.s.start(node), self.s.end(node), f"{self._need('m')}.callable")
        return []

    def _on_Attribute(self, node: ast.Attribute) -> list[_Closer] | None:
        if not isinstance(node.ctx, ast.Load):
            return []
        value, name = node.value, node.attr
        base = self.s.resolve(value)
        if base in PROVIDED and name in PROVIDED[base]:
            self._replace(self.s.start(value), self.s.end(value), self._need(base))
            return None
        if base == "datetime" and name == "UTC":
            self._replace(self.s.start(node), self.s.end(node), f"{self._need('m')}.UTC")
            return None
        if base in ("typing", "typing_extensions") and name in provided("typing") and not self.checking:
            self._replace(self.s.start(value), self.s.end(value), self._need("typing"))
            return None
        if isinstance(value, ast.Name) and base is None and value.id in MODULES:
            if value.id not in self.s.bound and value.id not in self.known and name in provided(value.id):
                self._replace(self.s.start(value), self.s.end(value), self._need(value.id))
                return None
        if base and base.startswith("builtins.") and base.removeprefix("builtins.") in _TYPES:
            if base == "builtins.str" and name == "maketrans":
                self._replace(self.s.start(value), self.s.end(value), self._need("m"))
            elif name not in _CLASS_METHODS and not name.startswith("__"):
                # methods of builtin types cannot be read off the type
                self._replace(
                    self.s.start(node),
                    self.s.end(node),
                    f"(lambda dse_s, *dse_a, **dse_k: dse_s.{name}(*dse_a, **dse_k))",
                )
            return None
        return []

    def _on_Call(self, node: ast.Call) -> list[_Closer]:
        name = self.s.resolve(node.func) or ""
        starred = any(isinstance(a, ast.Starred) for a in node.args)
        closers: list[_Closer] = []
        if name == "builtins.next" and node.args and not isinstance(node.args[0], (ast.Name, ast.Starred)):
            if self.s.resolve(getattr(node.args[0], "func", node)) != "builtins.iter":
                # a generator that is the only argument shares its parentheses with the call
                shared = self.s.end(node.args[0]) == self.s.end(node)
                closers += self._wrap(node.args[0], "(iter" if shared else "iter(", ")")
        elif name == "builtins.map" and len(node.args) >= 2 and not starred and not node.keywords:
            closers += self._map(node)
        elif name == "builtins.filter" and len(node.args) == 2 and not starred and not _is_none(node.args[0]):
            closers += self._filter(node)
        elif name == "asyncio.gather" and node.keywords:
            self._replace(self.s.start(node.func), self.s.end(node.func), f"{self._need('asyncio')}.gather")
        elif name == "json.dumps" and any(k.arg == "default" for k in node.keywords):
            self._replace(self.s.start(node.func), self.s.end(node.func), f"{self._need('json')}.dumps")
        elif name == "re.sub" and len(node.args) >= 2 and self._is_function(node.args[1]):
            self._replace(self.s.start(node.func), self.s.end(node.func), f"{self._need('re')}.sub")
        elif isinstance(node.func, ast.Attribute) and (not name or node.func.attr in METHODS):
            closers += self._method(node, node.func)
        for argument in callbacks(node, name):
            if self._is_method(argument):
                self._bound(argument)
        return closers

    def _map(self, node: ast.Call) -> list[_Closer]:
        """A comprehension: tools cannot be called inside the interpreter's own ``map``."""
        function, first = node.args[0], node.args[1]
        paren = self.s.find("(", self.s.end(node.func), self.s.start(function))
        comma = self.s.find(",", self.s.end(function), self.s.start(first))
        if paren is None or comma is None or any(isinstance(n, ast.NamedExpr) for n in ast.walk(node)):
            return []
        several = len(node.args) > 2
        self._replace(self.s.start(node.func), paren + 1, "[(")
        call = "*dse_v" if several else "dse_v"
        self._replace(comma, comma + 1, f")({call}) for dse_v in {'zip' if several else ''}(")
        self._drop_comma(node)
        end = self.s.end(node)
        return [lambda: self._close(end, "]")]

    def _filter(self, node: ast.Call) -> list[_Closer]:
        function, first = node.args
        paren = self.s.find("(", self.s.end(node.func), self.s.start(function))
        comma = self.s.find(",", self.s.end(function), self.s.start(first))
        if paren is None or comma is None or any(isinstance(n, ast.NamedExpr) for n in ast.walk(node)):
            return []
        self._replace(self.s.start(node.func), paren + 1, "[dse_v for dse_f in [(")
        self._replace(comma, comma + 1, ")] for dse_v in (")
        self._drop_comma(node)
        end = self.s.end(node)
        return [lambda: self._close(end, " if dse_f(dse_v)]")]

    def _drop_comma(self, node: ast.Call) -> None:
        end = self.s.end(node) - 1
        comma = self.s.find(",", self.s.end(node.args[-1]), end)
        if comma is not None and len(node.args) == 2:
            self._replace(comma, comma + 1, "")

    def _method(self, node: ast.Call, func: ast.Attribute) -> list[_Closer]:
        shim = func.attr if func.attr in METHODS and func.attr not in self.s.functions else None
        if func.attr == "sub" and node.args and self._is_function(node.args[0]):
            shim = "pattern_sub"
        if shim is None or (self.s.resolve(func.value) or "").startswith("builtins."):
            return []
        dot, paren = self._dot(func), self.s.data.find(b"(", self.s.end(func))
        if dot is None or self.s.data[self.s.end(func) : paren].strip():
            return []
        home = self._need("re" if shim == "pattern_sub" else "m")
        self._open(self.s.start(func), f"{home}.{shim}(")
        self._replace(dot, paren + 1, ", " if node.args or node.keywords else "")
        return []

    def _is_method(self, node: ast.expr) -> bool:
        """Whether this is a bound method read as a value. Functions of modules and classes can be read."""
        if not isinstance(node, ast.Attribute):
            return False
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in _TYPES and root.id not in self.s.bound:
            return False
        return not (isinstance(root, ast.Name) and (root.id in self.s.imports or root.id.startswith(PREFIX)))

    def _is_function(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Lambda) or (isinstance(node, ast.Name) and node.id in self.s.functions)

    def _is_eager(self, node: ast.expr) -> bool:
        """Iterators of Python that are lists in the interpreter."""
        if isinstance(node, ast.GeneratorExp):
            return True
        names = {"builtins.map", "builtins.filter", "builtins.zip", "builtins.enumerate", "builtins.reversed"}
        return isinstance(node, ast.Call) and self.s.resolve(node.func) in names

    # --- the whole text

    def _imports_missing(self) -> None:
        for node in self.s.nodes:
            kind = type(node)
            if kind is ast.Name:
                name = node.id  # type: ignore[attr-defined]
                need = AUTO_NAMES[name] if name in ("dataclass", "Decimal", "timedelta") else None
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                name = node.value.id
                need = name if node.attr in AUTO_MODULES.get(name, ()) else None
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                need = AUTO_NAMES.get(name)
            else:
                continue
            if need and name not in self.s.bound and name not in self.known and need not in self.needs:
                self.needs.append(need)

    def _trailing(self) -> str:
        """An expression that makes the value of a final assignment the value of the code."""
        body = self.s.tree.body
        if not body:
            return ""
        last = body[-1]
        if guard_of(last):
            inner = last.body[-1]  # type: ignore[attr-defined]
            if isinstance(inner, ast.Expr):
                self._open(self.s.start(inner), "dse_last = (")
                self._close(self.s.end(inner), ")")
                return "dse_last"
            last = inner
        if isinstance(last, ast.Assign):
            return _named(last.targets[-1])
        if isinstance(last, (ast.AugAssign, ast.AnnAssign)) and last.value is not None:
            return _named(last.target)
        if isinstance(last, ast.Delete):
            return "None"
        return ""


_HANDLERS: dict[type[ast.AST], Callable[[_Rewriter, Any], list[_Closer] | None]] = {
    getattr(ast, name.removeprefix("_on_")): method for name, method in vars(_Rewriter).items() if name.startswith("_on_")
}


def _named(target: ast.expr) -> str:
    if isinstance(target, ast.Name):
        return target.id
    if isinstance(target, (ast.Tuple, ast.List)) and all(isinstance(e, ast.Name) for e in target.elts):
        return ", ".join(e.id for e in target.elts) + ("," if len(target.elts) == 1 else "")  # type: ignore[attr-defined]
    return ""


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


@lru_cache(maxsize=1024)
def neutral(code: str) -> str:
    """Earlier code for the type checker: without top-level ``return`` and ``raise``, after which nothing would be
    checked any more. Lines stay the same."""
    try:
        source = Source.of(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code
    spans = [
        (source.start(n), source.end(n))
        for n in walk_scope(list(source.tree.body))
        if isinstance(n, (ast.Return, ast.Raise))
    ]
    data = source.data
    for begin, end in sorted(spans, reverse=True):
        data = data[:begin] + b"pass" + b"\n" * data.count(b"\n", begin, end) + data[end:]
    return data.decode()
