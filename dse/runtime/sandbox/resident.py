"""Scripts that run again and again: which may keep their guest between runs, and what the interpreter is given then.

The interpreter compiles every regular expression anew in every run, which takes a script with hundreds of them most of
its time. A guest that stays has its script as a function and its patterns compiled. A script may stay where nothing that
it does in one run can reach the next one, and where clock and random numbers are not asked: everything it binds is a
variable of that function. What is left besides are modules and functions, which a guest cannot change, and patterns,
which are the same whoever compiles them. The rules err on the side of a guest of its own.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import keyword
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from dse.runtime.sandbox.lint import LintResult
from dse.runtime.sandbox.records import GuestError
from dse.runtime.sandbox.shims import PREFIX
from dse.runtime.sandbox.source import Source, parse, walk_scope

__all__ = ["BALLAST", "Resident", "as_written", "resident"]

_FUNCTION = PREFIX + "script"
_INPUT = PREFIX + "input"
_PATTERNS = PREFIX + "patterns"  # a shim
BALLAST = PREFIX + "ballast"  # fills the memory that a guest may keep and does not
_MODULES = frozenset(  # without state
    {"asyncio", "base64", "binascii", "bisect", "collections", "copy", "datetime", "decimal", "functools", "heapq",
     "itertools", "json", "math", "operator", "re", "statistics", "string", "textwrap", "tomllib", "typing", "unicodedata"}
)  # fmt: skip
# Names and attributes that ask the clock, reach state that outlives a call, or get at such by a text.
_ASKS = frozenset({"now", "today", "utcnow"})
_REACHES = frozenset(
    {"getattr", "setattr", "delattr", "eval", "exec", "compile", "globals", "locals", "vars", "__import__", "__builtins__",
     "getcontext", "setcontext", "localcontext", "BasicContext", "DefaultContext", "ExtendedContext", "attrgetter", "NameError", "UnboundLocalError",  # the latter is what it would be here
     "BaseException", "KeyboardInterrupt", "SystemExit"}  # what ends a run inside the guest
)  # fmt: skip
_ARGUMENTS = {  # of the cached functions, in order; calls of another shape are left to the module and its errors
    "search": ("pattern", "string", "flags"), "match": ("pattern", "string", "flags"), "fullmatch": ("pattern", "string", "flags"),
    "findall": ("pattern", "string", "flags"), "finditer": ("pattern", "string", "flags"), "compile": ("pattern", "flags"),
    "sub": ("pattern", "repl", "string", "count", "flags"), "split": ("pattern", "string", "maxsplit", "flags"),
}  # fmt: skip
_OPTIONAL = frozenset({"flags", "count", "maxsplit"})
_MOST = 250  # variables: a function of the interpreter captures at most 255, and takes as many arguments
_PLACES = frozenset({"id", "hash", "iter", "cycle"})  # tell where things are in memory, or are shown by that
_ASYNCIO = frozenset({"gather", "run", "sleep"})
_REFUSED = (ast.ClassDef, ast.Global, ast.With, ast.AsyncWith)
_UNBOUND = re.compile(r"cannot access (local|free) variable '(\w+)' where it is not associated with a value.*")
_THERE = frozenset({"asyncio", "datetime", "Decimal"})  # imported for every script


class Resident(NamedTuple):
    """A script whose guest may stay.

    Attributes:
        definitions: fed once to every guest.
        call: fed in every run, with the inputs as variables.
        forget: fed after every run.
        needs: shims that the definitions use.
        inputs: what each input is called where the call is fed: no name that a shim could use.
        names: that the script itself binds, or gets as inputs.
    """

    definitions: str
    call: str
    forget: str
    needs: tuple[str, ...]
    inputs: Mapping[str, str]
    names: frozenset[str]

    def __hash__(self) -> int:
        return hash(self.definitions)


@functools.lru_cache(maxsize=256)
def resident(lint: LintResult, inputs: tuple[str, ...], functions: frozenset[str]) -> Resident | None:
    """What keeps the guest of a script between runs; None where it gets a guest of its own each time.

    Args:
        lint: of the script, without errors.
        inputs: names of its inputs.
        functions: names that the host answers: tools and what ends the script.
    """
    try:
        source = Source.of(lint.code)
        if any(_reasons(source, lint, frozenset(inputs), functions)):
            return None
        text, cached = _with_patterns(source, lint)
        body = _indented(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    awaits = any(isinstance(node, ast.Await) for node in walk_scope(source.tree.body))
    given = tuple(f"{_INPUT}{number}" for number in range(len(inputs)))
    needs = (*lint.shims, _PATTERNS) if cached else lint.shims
    return Resident(
        definitions=f"{'async ' if awaits else ''}def {_FUNCTION}({', '.join(inputs)}):\n{body}",
        call=f"{'await ' if awaits else ''}{_FUNCTION}({', '.join(given)})",
        forget=" = ".join((*given, "None")),
        needs=tuple(dict.fromkeys(needs)),
        inputs=dict(zip(inputs, given, strict=True)),
        names=frozenset(inputs) | _variables(source),
    )


def as_written(fault: GuestError, function: str | None, names: Collection[str]) -> GuestError:
    """An error as it would be where the variables of the script were not those of a function.

    Args:
        function: that raised it.
        names: of the script's variables.
    """
    found = _UNBOUND.fullmatch(fault.message)
    if found is None or fault.class_name not in ("NameError", "UnboundLocalError") or found[2] not in names:
        return fault
    if found[1] == "local" and function != _FUNCTION:
        return fault
    return dataclasses.replace(fault, class_name="NameError", message=f"name '{found[2]}' is not defined")


def _reasons(source: Source, lint: LintResult, inputs: frozenset[str], functions: frozenset[str]) -> Iterator[str]:
    """Why a script cannot be a function that forgets everything between two calls."""
    for node in source.of_kinds(*_REFUSED):
        yield type(node).__name__
    for node in source.of_kinds(ast.Try, getattr(ast, "TryStar", ast.Try)):
        if node.finalbody or any(handler.type is None for handler in node.handlers):
            yield "it could go on when its run has ended"
    for need in lint.shims:
        if need.removeprefix(PREFIX).partition(".")[0] not in _MODULES | {"m"} or need == f"{PREFIX}asyncio":
            yield need
    for node in source.of_kinds(ast.Nonlocal):
        yield from inputs.union(_variables(source)).intersection(node.names)  # no module lets that pass
    for node in source.of_kinds(ast.MatchClass):
        yield from (name for name in node.kwd_attrs if name in _ASKS | _REACHES or name.startswith("__"))
    for node in source.of_kinds(ast.Attribute):
        if node.attr == "compile" and isinstance(node.ctx, ast.Load) and _is_re(source, lint, node.value):
            continue
        if node.attr in _ASKS | _REACHES | _PLACES or node.attr.startswith("__") or not isinstance(node.ctx, ast.Load):
            yield node.attr
        if source.resolve(node.value) == "asyncio" and node.attr not in _ASYNCIO:
            yield node.attr
    for node in source.of_kinds(ast.Name):
        if node.id in _REACHES or node.id.startswith((_FUNCTION, _INPUT, _PATTERNS, BALLAST)):
            yield node.id
        if node.id in _PLACES - inputs and (node.id not in source.bound or node.id in source.imports):
            yield node.id
    called = {id(node.func) for node in source.of_kinds(ast.Call)}
    for node in source.of_kinds(ast.Name):
        if node.id in functions and id(node) not in called:
            yield f"{node.id} is asked for once in a guest, and each time in others"
    yield from _imports(source)
    provided = {need.rpartition(".")[2] for need in lint.shims}
    fixed = functions | set(dir(builtins)) | _THERE | provided
    own = set(_own(source))
    if len(inputs | _variables(source)) > _MOST:
        yield "too many variables"
    for name in inputs:
        if not name.isidentifier() or keyword.iskeyword(name) or unicodedata.normalize("NFKC", name) != name or name in _THERE:
            yield name
    for node in source.of_kinds(ast.Return, ast.Yield, ast.YieldFrom):
        if node in own:
            yield "it is no module"
    for name, node in source.bindings:
        imported = isinstance(node, (ast.Import, ast.ImportFrom))
        # Whatever was there before is not there any more where a function binds it later.
        if node in own and (name in inputs if imported else name in fixed or name.startswith(PREFIX)):
            yield name


def _own(source: Source) -> Iterator[ast.AST]:
    """Nodes in the scope of the script, those among them that belong to a nested function's head."""
    todo: list[ast.AST] = [*source.tree.body]
    while todo:
        for node in walk_scope([todo.pop()]):
            yield node
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                todo += [value for value in (*node.args.defaults, *node.args.kw_defaults) if value is not None]
                todo += getattr(node, "decorator_list", ())


def _variables(source: Source) -> frozenset[str]:
    own = set(_own(source))
    return frozenset(name for name, node in source.bindings if node in own)


def _is_re(source: Source, lint: LintResult, node: ast.expr) -> bool:
    """Whether this is the module by its own name."""
    known = source.imports.get("re") == "re" or ("re" not in source.bound and "re" in lint.shims)
    return known and isinstance(node, ast.Name) and node.id == "re"


def _plain(call: ast.Call, names: tuple[str, ...]) -> bool:
    """Whether these arguments fit for sure."""
    given = {*names[: len(call.args)], *(one.arg for one in call.keywords)}
    return (
        not any(isinstance(one, ast.Starred) for one in call.args)
        and len(call.args) + len(call.keywords) == len(given)
        and given <= set(names) <= given | _OPTIONAL
    )


def _imports(source: Source) -> Iterator[str]:
    """Imports that are not of modules without state, or that come after a use of what they bind."""
    first: dict[str, int] = {}
    for node in source.of_kinds(ast.Name):
        first[node.id] = min(first.get(node.id, source.end(node)), source.start(node))
    for node in source.of_kinds(ast.Import, ast.ImportFrom):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        yield from (name for name in modules if name not in _MODULES)
        for alias in node.names:
            name = (alias.asname or alias.name).partition(".")[0]
            if alias.name == "*" or alias.name in _ASKS | _REACHES or name in dir(builtins):
                yield alias.name
            if source.parents[node] is not source.tree or first.get(name, source.end(node)) < source.start(node):
                yield f"{name} is used before it is imported"  # in a function that is another error


def _with_patterns(source: Source, lint: LintResult) -> tuple[str, bool]:
    """The text with calls of ``re`` through compiled patterns that are kept; whether there are any."""
    data, found = bytearray(source.data), []
    for node in source.of_kinds(ast.Call):
        func = node.func
        if isinstance(func, ast.Attribute) and func.attr in _ARGUMENTS and _is_re(source, lint, func.value):
            if func.lineno == func.end_lineno and _plain(node, _ARGUMENTS[func.attr]):  # lines stay where they are
                found.append(func)
    if not found:
        return source.text, False
    for func in sorted(found, key=source.start, reverse=True):
        data[source.start(func) : source.end(func)] = f"{_PATTERNS}_{func.attr}".encode()
    changed = _Back().visit(Source(text := data.decode()).tree)
    if ast.dump(changed) != ast.dump(source.tree):
        return source.text, False  # some text shows the call as it is written
    return text, True


class _Back(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id.startswith(_PATTERNS):
            return ast.Attribute(ast.Name("re", ast.Load()), node.id.removeprefix(f"{_PATTERNS}_"), node.ctx)
        return node


def _indented(text: str) -> str:
    """The text as the body of a function, line by line, its last value as what it returns.

    Raises:
        ValueError: it would not mean the same.
    """
    source = Source(text)
    inside = {line for node in source.of_kinds(ast.Constant, ast.JoinedStr) for line in range(node.lineno + 1, node.end_lineno + 1)}
    last = source.tree.body[-1] if source.tree.body else None
    if isinstance(last, ast.Expr):
        at = source.start(last)
        text = (source.data[:at] + b"return " + source.data[at:]).decode()
    lines = text.split("\n")
    body = "\n".join(line if number in inside else f"    {line}" for number, line in enumerate(lines, 1))
    made = parse(f"async def _():\n{body}")
    assert isinstance(made, ast.Module)
    function = made.body[0]
    if len(made.body) != 1 or not isinstance(function, ast.AsyncFunctionDef):
        raise ValueError("it ends the function")
    if isinstance(last, ast.Expr):
        end = function.body[-1]
        if not isinstance(end, ast.Return) or end.value is None:
            raise ValueError("its last value is not returned")
        function.body[-1] = ast.Expr(end.value)
    if ast.dump(ast.Module(function.body, [])) != ast.dump(source.tree):
        raise ValueError("it changes with its place")
    return body
