"""Looks at guest code before anything runs: what can be made to work is rewritten, the rest gets a hint.

The type checker knows types and names. The lint knows what the interpreter lacks, what must not happen to
tools, and how to say it so that the next attempt is right.
"""

from __future__ import annotations

import ast
import builtins
import functools
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dse.runtime.sandbox.records import Diagnostic
from dse.runtime.sandbox.rewrite import callbacks, permits, rewrite
from dse.runtime.sandbox.shims import MODULES, PROVIDED
from dse.runtime.sandbox.source import Source

__all__ = ["MAX_SOURCE", "LintResult", "extract_code", "lint"]

MAX_SOURCE = 100_000
"""Characters of one piece of code. Looking at it takes up to a minute per million of them."""

_AVAILABLE = MODULES | {
    "__future__", "asyncio", "base64", "binascii", "bisect", "collections", "collections.abc", "copy", "csv",
    "dataclasses", "datetime", "decimal", "functools", "hashlib", "itertools", "json", "math", "os", "os.path",
    "pathlib", "random", "re", "sys", "time", "tomllib", "typing", "typing_extensions", "unicodedata",
}  # fmt: skip
_INSTEAD = {
    "numpy": "use lists, sum() and the statistics module", "pandas": "use lists of dicts and comprehensions",
    "scipy": "use the statistics and math modules", "requests": "only the given tools reach the outside",
    "httpx": "only the given tools reach the outside", "urllib": "only the given tools reach the outside",
    "aiohttp": "only the given tools reach the outside", "socket": "only the given tools reach the outside",
    "enum": "use string constants", "uuid": "number things with a counter", "fractions": "use decimal.Decimal",
    "logging": "use print()", "pprint": "use print()", "io": "join a list of strings",
    "concurrent": "use asyncio.gather", "threading": "use asyncio.gather", "multiprocessing": "use asyncio.gather",
    "abc": "use plain classes", "pydantic": "use a dataclass or a dict", "types": "use a dict",
    "zoneinfo": "use datetime.timezone with a fixed offset", "pytz": "use datetime.timezone with a fixed offset",
    "copyreg": "use copy", "warnings": "leave it out", "traceback": "use str() of the exception",
    "dateutil": "use datetime.fromisoformat or strptime", "subprocess": "only the given tools reach the outside",
}  # fmt: skip
_NAMES = {
    "open": "there are no files; use the inputs and the tools", "input": "nobody can answer; use the inputs",
    "eval": "write the expression itself", "exec": "write the statements themselves",
    "compile": "write the code itself", "__import__": "use an import statement",
    "globals": "use a dict of your own", "locals": "use a dict of your own", "vars": "use a dict of your own",
    "dir": "the stubs say what there is", "help": "the stubs say what there is",
    "exit": "let the code run to its end", "quit": "let the code run to its end",
    "breakpoint": "use print()", "super": "classes cannot inherit here", "memoryview": "use bytes",
    "bytearray": "use a list of ints and bytes()", "issubclass": "compare the types", "delattr": "assign None",
    "aiter": "use a list", "anext": "use a list",
    "SystemExit": "let the code run to its end",
}  # fmt: skip
_ASYNCIO = {
    "TaskGroup": "use asyncio.gather", "wait": "use asyncio.gather", "Lock": "leave it out: only an `await` switches tasks",
    "Event": "use asyncio.gather", "Queue": "use a list", "Condition": "use asyncio.gather",
    "get_event_loop": "use `await` or asyncio.run", "new_event_loop": "use `await` or asyncio.run",
    "get_running_loop": "use `await`", "current_task": "leave it out", "run_coroutine_threadsafe": "use `await`",
    "open_connection": "only the given tools reach the outside",
}  # fmt: skip
_ASYNCIO_KNOWN = PROVIDED["asyncio"] | {"gather", "run", "sleep", "Task", "Future"}
_METHOD_DECORATORS = {
    "property": "write a method and call it", "staticmethod": "put the function outside of the class",
    "classmethod": "put the function outside of the class", "abstractmethod": "leave it out",
    "cached_property": "write a method and call it", "setter": "assign the attribute directly",
}  # fmt: skip
_FENCE = re.compile(r"^([ \t]*)(```+|~~~+)[ \t]*([\w+-]*)[^\n`]*\n(.*?)(?:^[ \t]*\2[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)


def extract_code(text: str) -> str:
    """The code in a model's answer: the last fenced Python block, or the last unmarked one, or all of the text.

    A fence that is never closed ends with the text.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    blocks = [(found[3].lower(), textwrap.dedent(found[4])) for found in _FENCE.finditer(text)]
    for kinds in (("python", "py", "python3"), ("",)):
        fitting = [body for kind, body in blocks if kind in kinds and body.strip()]
        if fitting:
            return fitting[-1].strip("\n")
    return text.strip("\n")


@dataclass(frozen=True, slots=True)
class LintResult:
    """What came out.

    Attributes:
        code: the text for the interpreter.
        diagnostics: remarks in order of lines; code with an error among them must not run.
        shims: what ``Session.feed`` must load before the code.
    """

    code: str
    diagnostics: tuple[Diagnostic, ...] = ()
    shims: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        return tuple(d for d in self.diagnostics if d.severity == "error")

    @property
    def ok(self) -> bool:
        return not self.errors


def lint(
    code: str,
    *,
    tool_names: Iterable[str],
    output_names: Iterable[str] = (),
    known_names: Iterable[str] = (),
    submit: str = "submit",
) -> LintResult:
    """Checks and rewrites one piece of code. Nothing runs.

    Args:
        tool_names: names the host answers. Code must not bind them, and cannot call them inside ``key=``.
        output_names: outputs of the task, to notice code that computes them and forgets to submit.
        known_names: inputs and variables of earlier code.
        submit: the name of the function that ends the task; treated like a tool.

    A text that the host's parser refuses gives a warning only: the interpreter's grammar is a little newer, and
    the gate check (:class:`dse.runtime.sandbox.Checker`) reports real syntax errors.
    """
    tools = frozenset(tool_names) | {submit}
    code = code.replace("\r\n", "\n").replace("\r", "\n")
    if not code.strip():
        return LintResult(code, (Diagnostic(0, 0, "empty", "there is no code"),))
    if len(code) > MAX_SOURCE:
        said = f"the code has {len(code)} characters; {MAX_SOURCE} are allowed"
        return LintResult(code, (Diagnostic(0, 0, "too-long", said, "write less, and get data from the inputs and tools"),))
    rewritten = rewrite(code, tools | frozenset(known_names))
    try:
        source = Source.of(code)
        found = list(_Linter(source, tools, submit, tuple(output_names)).run())
    except SyntaxError as error:
        remark = Diagnostic(error.lineno or 0, error.offset or 0, "syntax", error.msg, severity="warning")
        return LintResult(rewritten.run, (remark,), rewritten.needs)
    except (ValueError, RecursionError, MemoryError):
        return LintResult(code, (Diagnostic(0, 0, "syntax", "the code cannot be parsed"),))
    unique = {(d.line, d.rule, d.message): d for d in sorted(found, key=lambda d: (d.line, d.col))}
    return LintResult(rewritten.run, tuple(unique.values()), rewritten.needs)


@functools.cache
def _naming(kind: type[ast.AST]) -> tuple[str, ...]:
    """Fields of a node that may hold a name."""
    return tuple(field for field in ("id", "arg", "name", "asname", "rest", "module", "names") if field in kind._fields)


def _is_exception(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, BaseException)


class _Linter:
    def __init__(self, source: Source, tools: frozenset[str], submit: str, outputs: tuple[str, ...]) -> None:
        self.s, self.tools, self.submit, self.outputs = source, tools, submit, outputs
        self.calling = self._functions_that_call_tools()
        named = (*source.kinds.get(ast.Name, ()), *source.kinds.get(ast.Attribute, ()))
        self.tasks = any(source.resolve(n) in ("asyncio.create_task", "asyncio.ensure_future") for n in named)

    def run(self) -> Iterator[Diagnostic]:
        yield from self._names()
        for node in self.s.nodes:
            kind = type(node)
            rule = _RULES.get(kind)
            if rule is not None and (kind is not ast.Name or node.id in _NAMES):  # type: ignore[attr-defined]
                yield from rule(self, node)
        yield from self._submission()

    def _say(self, node: ast.AST, rule: str, message: str, hint: str = "", *, warning: bool = False) -> Diagnostic:
        line, column = node.lineno, self.s.column(node)  # type: ignore[attr-defined]
        return Diagnostic(line, column, rule, message, hint, "warning" if warning else "error")

    def _lacks(self, node: ast.AST, what: str, hint: str) -> Diagnostic:
        return self._say(node, "unsupported", f"{what} not available here", hint)

    # --- names

    def _names(self) -> Iterator[Diagnostic]:
        for name, node in self.s.bindings:
            if name in self.tools:
                yield self._say(node, "tool-rebound", f"`{name}` is a tool and cannot be redefined", "choose another name")
        for node in self.s.nodes:
            fields = _naming(type(node))  # type: ignore[arg-type]
            if not fields:
                continue
            used: list[Any] = [getattr(node, field, None) for field in fields]
            if isinstance(node, (ast.Global, ast.Nonlocal)):
                used = [*node.names]
            for one in used:
                if type(one) is str and one.startswith("dse_") and one not in self.tools:
                    at = node if hasattr(node, "lineno") else self.s.parents[node]
                    yield self._say(at, "reserved", f"`{one}`: names that begin with dse_ are reserved")

    def _on_Name(self, node: ast.Name) -> Iterator[Diagnostic]:
        if isinstance(node.ctx, ast.Load) and node.id not in self.s.bound:
            if node.id not in self.tools:
                yield self._say(node, "unavailable", f"`{node.id}` is not available here", _NAMES[node.id])

    def _on_Attribute(self, node: ast.Attribute) -> Iterator[Diagnostic]:
        name, full = node.attr, self.s.resolve(node) or ""
        if name.startswith("__") and name.endswith("__") and name != "__name__":
            yield self._say(
                node,
                "dunder",
                f"`{name}` cannot be used",
                "use type(x).__name__, isinstance or plain attributes",
            )
        elif full.startswith("asyncio.") and full.count(".") == 1:
            yield from self._asyncio(node, name)
        elif full in ("sys.exit", "os._exit"):
            yield self._lacks(node, f"{full} is", "let the code run to its end")
        elif full == "functools.cmp_to_key":
            yield self._lacks(node, "cmp_to_key is", "sort by a key, such as a tuple")
        elif name == "result" and self.tasks and isinstance(self.s.parents[node], ast.Call):
            yield self._lacks(node, "Task.result() is", "use the list that `await asyncio.gather(...)` returns")

    def _asyncio(self, node: ast.AST, name: str) -> Iterator[Diagnostic]:
        if name in ("wait_for", "timeout"):
            yield self._say(
                node,
                "no-timeout",
                f"asyncio.{name}: the time is not limited here; tools have timeouts of their own",
                warning=True,
            )
        elif name not in _ASYNCIO_KNOWN:
            yield self._lacks(node, f"asyncio.{name} is", _ASYNCIO.get(name, "use `await` and asyncio.gather"))

    # --- imports

    def _on_Import(self, node: ast.Import) -> Iterator[Diagnostic]:
        for alias in node.names:
            yield from self._module(node, alias.name)

    def _on_ImportFrom(self, node: ast.ImportFrom) -> Iterator[Diagnostic]:
        module = node.module or ""
        if node.level:
            yield self._lacks(node, "relative imports are", "use the given tools directly")
        elif any(alias.name == "*" for alias in node.names):
            yield self._lacks(node, "`from ... import *` is", "import the names that you need")
        elif module == "asyncio":
            for alias in node.names:
                yield from self._asyncio(node, alias.name)
        elif module == "functools" and any(alias.name == "cmp_to_key" for alias in node.names):
            yield self._lacks(node, "cmp_to_key is", "sort by a key, such as a tuple")
        else:
            yield from self._module(node, module)

    def _module(self, node: ast.stmt, module: str) -> Iterator[Diagnostic]:
        if module in _AVAILABLE or self._guarded(node):
            return
        hint = _INSTEAD.get(module.partition(".")[0], "")
        if not hint and module.partition(".")[0] in self.tools:
            hint = "tools need no import: call them directly"
        yield self._say(node, "module", f"the module `{module}` is not available here", hint)

    def _guarded(self, node: ast.AST) -> bool:
        """Inside ``try`` with a handler for a missing module."""
        parent = self.s.parents.get(node)
        while parent is not None:
            if isinstance(parent, ast.Try) and node in parent.body:
                for handler in parent.handlers:
                    text = self.s.segment(handler.type) if handler.type else "Exception"
                    if re.search(r"ImportError|ModuleNotFoundError|\bException\b", text):
                        return True
            node, parent = parent, self.s.parents.get(parent)
        return False

    # --- classes and functions

    def _on_ClassDef(self, node: ast.ClassDef) -> Iterator[Diagnostic]:
        yield from self._bases(node)
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and "dataclass" in (self.s.segment(decorator.func)):
                for option in decorator.keywords:
                    off = isinstance(option.value, ast.Constant) and option.value.value is False
                    if option.arg in ("order", "kw_only", "unsafe_hash") and not off:
                        hint = "sort by a key" if option.arg == "order" else "leave the option out"
                        yield self._lacks(decorator, f"dataclass({option.arg}=True) is", hint)
                    elif option.arg in ("repr", "init") and off:
                        yield self._lacks(decorator, f"dataclass({option.arg}=False) is", "leave the option out")
        for statement in node.body:
            if isinstance(statement, ast.ClassDef):
                yield self._lacks(statement, "nested classes are", "put the class outside")
            elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for decorator in statement.decorator_list:
                    name = decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", "")
                    if name in _METHOD_DECORATORS:
                        yield self._lacks(decorator, f"@{name} is", _METHOD_DECORATORS[name])

    def _bases(self, node: ast.ClassDef) -> Iterator[Diagnostic]:
        if not node.bases and not node.keywords:
            return
        base = node.bases[0] if node.bases else None
        name = (self.s.segment(base) if base else "metaclass").rpartition(".")[2]
        fields = [st for st in node.body if not (isinstance(st, ast.Expr) and isinstance(st.value, ast.Constant))]
        plain = all(isinstance(st, (ast.AnnAssign, ast.Pass)) for st in fields) and not node.decorator_list
        if len(node.bases) == 1 and (name == "object" or (plain and name in ("TypedDict", "NamedTuple"))):
            return  # rewritten
        if "Enum" in name or name in ("Flag", "IntFlag"):
            hint = "use string constants, or a dict from name to value"
        elif name.endswith(("Error", "Exception", "Warning")) or _is_exception(name):
            hint = 'raise ValueError("...") or RuntimeError("...") instead of an exception class of your own'
        elif name in ("TypedDict", "NamedTuple"):
            hint = f"a {name} may only declare fields"
        elif name == "BaseModel":
            hint = "use a dataclass or a dict"
        else:
            hint = "use a plain class, a dataclass or a dict"
        yield self._lacks(node, f"class inheritance ({node.name}({name})) is", hint)

    def _on_Yield(self, node: ast.AST) -> Iterator[Diagnostic]:
        yield self._lacks(node, "`yield` is", "append to a list and return it")

    _on_YieldFrom = _on_Yield

    def _on_AsyncFor(self, node: ast.AST) -> Iterator[Diagnostic]:
        yield self._lacks(node, "`async for` is", "use `for x in await ...`")

    def _on_comprehension(self, node: ast.comprehension) -> Iterator[Diagnostic]:
        if node.is_async:
            yield self._lacks(node.target, "`async for` is", "use `for x in await ...`")

    def _on_AsyncWith(self, node: ast.AsyncWith) -> Iterator[Diagnostic]:
        if permits(self.s, node):
            return
        first = node.items[0].context_expr
        name = (self.s.resolve(first.func) if isinstance(first, ast.Call) else None) or ""
        if name != "asyncio.TaskGroup":  # that one is reported where it is named
            yield self._lacks(node, "`async with` is", "use `with`, or asyncio.gather to run calls together")

    def _on_TryStar(self, node: ast.AST) -> Iterator[Diagnostic]:
        yield self._lacks(node, "`except*` is", "use `except`")

    def _on_Delete(self, node: ast.Delete) -> Iterator[Diagnostic]:
        for target in node.targets:
            stepped = isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Slice) and target.slice.step
            if isinstance(target, (ast.Attribute, ast.Tuple, ast.List)) or stepped or node.lineno != node.end_lineno:
                yield self._lacks(node, "this `del` is", "assign None, or build a new list or dict")

    # --- calls

    def _on_Call(self, node: ast.Call) -> Iterator[Diagnostic]:
        name = self.s.resolve(node.func) or ""
        for argument in callbacks(node, name):
            if name not in ("functools.reduce", "functools.partial") and self._calls_tools(argument):
                where = name.rpartition(".")[2] or "sort"
                yield self._say(
                    argument, "tool-in-callback", f"a tool cannot be called inside a callback of {where}",
                    "call it before, for all items, and keep the results in a dict",
                )  # fmt: skip
        if name in ("builtins.any", "builtins.all") and node.args and isinstance(node.args[0], ast.GeneratorExp):
            if self._calls_tools(node.args[0]):
                yield self._say(
                    node, "eager", f"{name.rpartition('.')[2]}() evaluates every item here, so every call is made",
                    "use a loop with break if that matters", warning=True,
                )  # fmt: skip
        if name.startswith("builtins.") and _is_exception(name.removeprefix("builtins.")) and len(node.args) > 1:
            yield self._lacks(node, "an exception with several arguments is", "give it one message")
        if name == "json.dumps" and any(k.arg == "cls" for k in node.keywords):
            yield self._lacks(node, "json.dumps(cls=...) is", "use default=str, or convert the values")

    def _functions_that_call_tools(self) -> frozenset[str]:
        calling: set[str] = set()
        while True:
            more = {name for name, node in self.s.functions.items() if name not in calling and self._reaches(node, calling)}
            if not more:
                return frozenset(calling)
            calling |= more

    def _reaches(self, node: ast.AST, functions: set[str] | frozenset[str]) -> bool:
        return any(
            isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and (n.func.id in self.tools or n.func.id in functions)
            for n in ast.walk(node)
        )

    def _calls_tools(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.tools or node.id in self.calling
        return self._reaches(node, self.calling)

    def _submission(self) -> Iterator[Diagnostic]:
        if not self.outputs or any(n.id == self.submit for n in self.s.kinds.get(ast.Name, ())):
            return
        assigned = {
            t.id for st in self.s.tree.body if isinstance(st, ast.Assign) for t in st.targets if isinstance(t, ast.Name)
        }
        if assigned.issuperset(self.outputs):
            call = ", ".join(f"{name}={name}" for name in self.outputs)
            yield self._say(
                self.s.tree.body[-1], "not-submitted", "the outputs are computed but not submitted",
                f"end with {self.submit}({call})", warning=True,
            )  # fmt: skip


_RULES: dict[type[ast.AST], Callable[[_Linter, Any], Iterator[Diagnostic]]] = {
    getattr(ast, name.removeprefix("_on_")): method for name, method in vars(_Linter).items() if name.startswith("_on_")
}
