"""Type check of guest code before it runs, in workers of its own.

The *gate check*: the text that would run is fed to a type-checking session behind a statement that always raises.
Type errors and unsupported syntax stop the feed before that statement, so nothing is ever executed. Earlier code and
the inputs' declarations stand before the code; remarks about them are left out and lines count from the code.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import anyio
import anyio.to_thread

from dse.canonical import digest
from dse.errors import ContractError, SandboxUnavailable
from dse.runtime.sandbox import faults
from dse.runtime.sandbox.pools import WorkerPool
from dse.runtime.sandbox.records import Diagnostic
from dse.runtime.sandbox.rewrite import neutral, rewrite
from dse.runtime.sandbox.shims import PREFIX, source_of
from dse.runtime.sandbox.source import bound_names, parse
from dse.runtime.sandbox.verdict import TypeTable, is_harmless, judge

__all__ = ["PRELUDE", "Checker"]

PRELUDE = Path(__file__).with_name("prelude.pyi").read_text(encoding="utf-8")
"""Stubs that stand before every other: what the type checker does not know of the interpreter."""

_COMMENT = re.compile(r"#[^\n]*")
_NAMES = set(re.findall(r"^(?:(?:def|class|from \w+ import \w+ as|import \w+ as) )?(\w+)", PRELUDE, re.MULTILINE))
_PROVIDED = re.compile(rf"\b(?:{'|'.join(sorted(_NAMES))})\b")
_GATE = "1 / 0\n"  # the checker takes it for an expression like any other, a cheap one, and what follows for reachable
_PASSED = "ZeroDivisionError: division by zero"
_CANARY = "def dse_canary(value: int) -> str: ...\n"
_FEEDS_PER_SESSION = 500  # a worker grows with every check
_LEAN_AFTER = 2  # checks with the same stubs


class Checker:
    """Checks code against stubs. Answers are cached by content, but for those that took too long: the code may be what
    takes long, or the machine may be what is slow.

    Args:
        max_workers: checks at the same time; a worker takes about 35 MiB.
        request_timeout_s: time for one check. Types can be made to explode, and no other limit covers that.
        cache_size: how many answers are kept, and how many verdicts about stubs.
    """

    def __init__(self, max_workers: int = 2, *, request_timeout_s: float = 10.0, cache_size: int = 2048) -> None:
        self._workers = WorkerPool(max_workers=max_workers, request_timeout_s=request_timeout_s, checkout_timeout_s=60.0)
        self._free = threading.Condition()
        self._idle: list[_Bench] = []
        self._busy = 0
        self._size = cache_size
        self._cache: OrderedDict[tuple[str, str, str], tuple[Diagnostic, ...]] = OrderedDict()
        self._valid: OrderedDict[str, ContractError | None] = OrderedDict()  # by stubs
        self._leans: dict[str, int | str] = {}  # by text without the prelude: checks so far, then "good" or "bad"
        self._validating = threading.Lock()
        self._lock = threading.Lock()

    async def __aenter__(self) -> Checker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the workers. Idempotent."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close)

    def close(self) -> None:
        self._workers.close()

    @property
    def usable(self) -> bool:
        """False once it is closed, and in the child of a fork."""
        return self._workers.state in ("new", "open")

    @property
    def room(self) -> bool:
        """Whether :meth:`check_here` would begin at once; it may not be so any more when it is called."""
        return self._busy < self._workers.max_workers

    async def check(self, *, stubs: str, code: str, declarations: str = "", earlier: Sequence[str] = ()) -> list[Diagnostic]:
        """What is wrong with ``code``, errors and warnings in order of lines. Nothing runs.

        Args:
            stubs: ``.pyi`` text of the tools, without :data:`PRELUDE`.
            declarations: lines such as ``question: str`` for variables that exist before.
            earlier: code of the same session that ran before, failed pieces included, as its author wrote it.
            code: as its author wrote it; it is rewritten in here like the lint does.

        Raises:
            SandboxUnavailable: no worker could be had.
        """
        key = (stubs, declarations, digest([list(earlier), code]))
        found = self._known(key)
        if found is None:
            found = await self._in_thread(self._check_and_keep, key, tuple(earlier), code)
        return list(found)

    def check_here(self, *, stubs: str, code: str, declarations: str = "", earlier: Sequence[str] = ()) -> list[Diagnostic]:
        """Like :meth:`check`, in this thread, which waits: for a turn that begins with a check."""
        self._workers.refuse_if_unusable()
        key = (stubs, declarations, digest([list(earlier), code]))
        found = self._known(key)
        return list(self._check_and_keep(key, tuple(earlier), code) if found is None else found)

    def _known(self, key: tuple[str, str, str]) -> tuple[Diagnostic, ...] | None:
        with self._lock:
            if key not in self._cache:
                return None
            self._cache.move_to_end(key)
            return self._cache[key]

    def _check_and_keep(self, key: tuple[str, str, str], earlier: tuple[str, ...], code: str) -> tuple[Diagnostic, ...]:
        try:
            found = tuple(self._check(key[0], key[1], earlier, code))
        except _TookTooLong:
            return (Diagnostic(0, 0, "too-complex", "the code takes too long to check", "write it more simply"),)
        with self._lock:
            self._cache[key] = found
            while len(self._cache) > self._size:
                self._cache.popitem(last=False)
        return found

    async def validate_stubs(self, stubs: str, declarations: str = "") -> None:
        """Makes sure that the checker really checks with these stubs: broken ones switch it off in silence.

        Args:
            declarations: of the checks to come, whose session then serves for this as well: starting one takes longer
                than all that is asked of it here.

        Raises:
            ContractError: a syntax error, an unknown type, or calls that are not checked.
            SandboxUnavailable: it took too long, which says nothing about the stubs, or no worker could be had.
        """
        known, error = self._validity(stubs)
        if not known:
            error = await self._in_thread(self._validate_once, stubs, declarations)
        if error is not None:
            raise ContractError(error.what, value=error.value, remedy=error.remedy, **error.details)

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        self._workers.refuse_if_unusable()
        # a check is short and its worker goes back to the bench by itself: a cancelled one ends unnoticed
        return await self._workers.threads.run(lambda: work(*arguments))

    # --- in the thread

    def _check(self, stubs: str, declarations: str, earlier: tuple[str, ...], code: str) -> list[Diagnostic]:
        text = _COMMENT.sub(_checked, code.replace("\r\n", "\n").replace("\r", "\n"))
        earlier = tuple(_COMMENT.sub(_checked, piece) for piece in earlier)
        known = _defined(stubs) | _defined(declarations)
        rewritten = rewrite(text, known)
        before = [rewrite(neutral(piece), known) for piece in earlier]
        needs = dict.fromkeys(need for piece in [*before, rewritten] for need in piece.needs if not need.startswith(PREFIX))
        named = any("asyncio" in text for piece in [*before, rewritten] for text in (piece.run, piece.check))
        head = [*(["import asyncio"] if named else []), *(source_of(need) for need in needs)]
        prefix = _GATE + "".join(f"{piece}\n" for piece in [*head, *(piece.check.rstrip("\n") for piece in before)])
        # Where nothing names what is in the prelude, a check without it finds the same.
        whole = _names_provided(prefix) or _names_provided(rewritten.check)
        enough = (_joined(stubs, declarations)[1],) if whole else self._with_lean(stubs, declarations)
        found = self._gate(enough, prefix, rewritten.check)
        if found is None:  # earlier code cannot be parsed: without it, names are not known
            short = "".join(f"{piece}\n" for piece in head)
            found = self._gate(enough, _GATE + short, rewritten.check) or []
            found = [f for f in found if f.get("code") != "unresolved-reference"]
        if not found:
            return []
        types = _typed_dicts(_parsed(stubs))
        tree = _parsed(rewritten.check)
        names = known | (frozenset(name for name, _ in bound_names(tree)) if tree else frozenset())
        lines, shown = text.split("\n"), rewritten.check.split("\n")
        remarks: dict[tuple[int, str, str], Diagnostic] = {}
        for item in found:
            if isinstance(item, Diagnostic):
                remarks.setdefault((item.line, item.rule, ""), item)
                continue
            line, column = item["line"], item["column"]
            remark = judge(item, line, column, tree, types, names)
            if remark is None or (remark.rule == "unresolved-import" and _guarded(tree, line)):
                continue
            same = 0 < line <= len(lines) and lines[line - 1] == shown[line - 1]
            last = min(remark.line, len(lines))
            remark = Diagnostic(last, remark.col if same else 0, remark.rule, remark.message, remark.hint, remark.severity)
            remarks.setdefault((line, remark.rule, remark.message), remark)
        return sorted(remarks.values(), key=lambda d: (d.line, d.col))

    def _gate(self, stubs: tuple[str, ...], prefix: str, code: str) -> list[Any] | None:
        """Raw diagnostics with lines of ``code``; None when the prefix itself cannot be parsed.

        Args:
            stubs: texts of which each will do, the best first.

        Raises:
            _TookTooLong: nobody knows what it would have found.
        """
        try:
            return self._gate_once(stubs, prefix, code)
        except _Died:  # maybe while it waited
            return self._gate_once(stubs, prefix, code, fresh=True)

    def _gate_once(self, stubs: tuple[str, ...], prefix: str, code: str, *, fresh: bool = False) -> list[Any] | None:
        import pydantic_monty

        shift = prefix.count("\n")
        with self._bench(stubs, fresh) as bench:
            try:
                snapshot = bench.guest.feed_start(prefix + code)
                while type(snapshot).__name__ == "FunctionSnapshot" and snapshot.function_name == "import_stubs":
                    snapshot = snapshot.resume_auto()  # a module nobody knows; the check follows
            except pydantic_monty.MontyTypingError as error:
                every = [
                    {**d, "line": d["location"]["row"] - shift, "column": d["location"]["column"]}
                    for d in json.loads(error.display())
                ]
                syntax = [d for d in every if d["code"] == "invalid-syntax" and not is_harmless(d)]
                if any(d["line"] <= 0 for d in syntax):
                    return None
                # after a syntax error everything else is guesswork
                return syntax[:1] or [d for d in every if d["line"] > 0]
            except pydantic_monty.MontyCrashedError as error:
                bench.broken = True
                if error.timed_out:
                    raise _TookTooLong from error
                if bench.feeds:
                    raise _Died from error
                raise SandboxUnavailable("a checking worker ended unexpectedly", remedy="Check again") from error
            except (pydantic_monty.MontySyntaxError, pydantic_monty.MontyRuntimeError) as error:
                frames = error.traceback()
                if str(error) == _PASSED and [(f.line, f.function_name) for f in frames] == [(1, "<module>")]:
                    return []
                fault = faults.from_exception(error, frames[-1].filename if frames else "")
                if fault.limit == "interpreter_s":
                    raise _TookTooLong from error
                if frames and frames[-1].line <= shift:
                    return None
                line = (fault.line or shift) - shift
                return [Diagnostic(line, frames[-1].column if frames else 0, fault.kind, fault.message)]
            raise SandboxUnavailable("the checker ran what it checks", value=type(snapshot).__name__)  # cannot be

    @contextmanager
    def _bench(self, stubs: tuple[str, ...], fresh: bool) -> Iterator[_Bench]:
        """A session with one of these stubs, for one check; used ones only when it need not be fresh."""
        with self._free:
            while self._busy >= self._workers.max_workers:
                self._free.wait()
            self._busy += 1
            fitting = [] if fresh else [b for text in stubs for b in reversed(self._idle) if b.stubs == text]
            bench = fitting[0] if fitting else None
            if bench is not None:
                self._idle.remove(bench)
            elif self._busy + len(self._idle) > self._workers.max_workers:
                # One without the prelude goes first: the new one does for what it did.
                poorer = [b for b in self._idle if stubs[0].endswith(b.stubs)]
                out = poorer[0] if poorer else self._idle[0]
                self._idle.remove(out)
                out.close()
        try:
            if bench is None:
                bench = _Bench(self._workers, stubs[0])
            yield bench
        except BaseException:
            if bench is not None:
                bench.broken = True
            raise
        finally:
            with self._free:
                self._busy -= 1
                if bench is not None:
                    bench.feeds += 1
                    if bench.broken or bench.feeds >= _FEEDS_PER_SESSION:
                        bench.close()
                    else:
                        self._idle.append(bench)
                self._free.notify()

    def _validity(self, stubs: str) -> tuple[bool, ContractError | None]:
        """Whether there is a verdict about stubs, and what it found."""
        with self._lock:
            if stubs not in self._valid:
                return False, None
            self._valid.move_to_end(stubs)
            return True, self._valid[stubs]

    def _validate_once(self, stubs: str, declarations: str) -> ContractError | None:
        with self._validating:  # many runs of a program that has just been started ask at the same time
            known, error = self._validity(stubs)
            if known:
                return error
            try:
                error = self._validate(stubs, declarations)
            except _TookTooLong as late:
                raise SandboxUnavailable("checking the tool stubs took too long", value=f"{self._workers.request_timeout_s:g} s",
                                         remedy="Run it again when the machine has less to do") from late  # fmt: skip
            with self._lock:
                self._valid[stubs] = error
                while len(self._valid) > self._size:
                    self._valid.popitem(last=False)
            return error

    def _validate(self, stubs: str, declarations: str) -> ContractError | None:
        remedy = "Use types that stubs can express: TypedDict, Literal, lists, dicts, numbers, text, dates"
        try:
            tree = cast("ast.Module", parse(stubs))
        except SyntaxError as error:
            return ContractError("tool stubs are not valid Python", value=f"line {error.lineno}: {error.msg}", remedy=remedy)
        # 1. The stub text as code: unknown names and modules are reported there, and only there.
        ignored = {"empty-body", "invalid-return-type", "invalid-overload", "invalid-parameter-default"}
        full = _joined(stubs, declarations)[1]
        inside = textwrap.indent(f"{stubs}\npass\n", " ")  # of a function: its names are its own, not those of the session
        for item in self._gate((full,), f"{_GATE}def dse_stubs():\n", inside) or []:
            code, text = (item.rule, item.message) if isinstance(item, Diagnostic) else (item["code"], item["message"])
            line = item.line if isinstance(item, Diagnostic) else item["line"]
            if code not in ignored and code != "unsupported":
                return ContractError("tool stubs cannot be checked", value=f"line {line}: {text}", remedy=remedy, line=line)
        # 2. Canaries: a wrong call of a function next to the tools, and of each tool, must be reported.
        functions = _functions(tree)
        if (missed := self._missed(full, functions)) is not None:
            return ContractError("wrong calls are not noticed with these tool stubs", value=missed, remedy=remedy)
        # 3. No part of a tool's signature may be unknown to the checker.
        probes = [f"reveal_type({f.name})" for f in functions]
        for item in self._gate((full,), _GATE, "\n".join(probes)) or []:
            if not isinstance(item, Diagnostic) and item["code"] == "revealed-type" and "Unknown" in item["message"]:
                name = functions[item["line"] - 1].name
                return ContractError(
                    "a tool's type is unknown to the checker", value=f"{name}: {item['message']}", remedy=remedy
                )
        return None

    def _missed(self, stubs: str, functions: list[_Function]) -> str | None:
        """A wrong call of a function next to the tools, or of one of them, that is not reported; None if all are."""
        probes = ['dse_canary("x")', *(f"{f.name}(dse_no_such_parameter=0)" for f in functions if f.args.kwarg is None)]
        found = self._gate((stubs,), _GATE, "\n".join(probes)) or []
        reported = {item["line"] for item in found if not isinstance(item, Diagnostic) and item["code"] != "unused-awaitable"}
        return next((probe for number, probe in enumerate(probes, 1) if number not in reported), None)

    def _with_lean(self, stubs: str, declarations: str) -> tuple[str, ...]:
        """The texts that a check may stand behind which needs no prelude, the best first.

        Without the prelude a check takes a fifth less. That is worth a session of its own only where checks go on and
        no other has to end for it, and that one must notice wrong calls as well.
        """
        lean, full = _joined(stubs, declarations)
        if lean == full:
            return (full,)
        with self._lock:
            if len(self._leans) > self._size:
                self._leans.clear()
            seen = self._leans.get(lean, 0)
            if isinstance(seen, int) and seen < _LEAN_AFTER:
                self._leans[lean] = seen + 1
                return (full,)
        with self._free:
            full_up = self._busy + len(self._idle) >= self._workers.max_workers
            if full_up and not any(bench.stubs == lean for bench in self._idle):
                return (full,)
        if isinstance(seen, int):
            tree = _parsed(stubs)
            try:
                seen = "good" if tree is not None and self._missed(lean, _functions(tree)) is None else "bad"
            except _TookTooLong:
                return (full,)  # nobody knows yet
            with self._lock:
                self._leans[lean] = seen
        return (lean, full) if seen == "good" else (full,)


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(tree: ast.AST) -> list[_Function]:
    return [n for n in getattr(tree, "body", ()) if isinstance(n, _Function)]


class _Died(Exception):
    """The worker of a used session is gone."""


class _TookTooLong(Exception):
    """A check was not finished in time."""


class _Bench:
    """A type-checking session with fixed stubs, used again and again."""

    def __init__(self, workers: WorkerPool, stubs: str) -> None:
        self.stubs, self.feeds, self.broken = stubs, 0, False
        self.guest: Any = workers.lend(
            type_check=True,
            type_check_format="json",
            type_check_stubs=stubs,
            limits={"max_feed_duration_secs": 5.0, "max_memory": 64 * 2**20, "max_suspensions": 1_000_000},
            os_policy={"sleep": "zero"},
        )
        self._workers = workers
        workers.holders.add(self)

    def natives(self) -> tuple[Any, ...]:
        return (self.guest,)

    def close(self) -> None:
        guest, self.guest = self.guest, None
        if guest is not None:
            self._workers.take_back(guest)


@lru_cache(maxsize=256)
def _joined(stubs: str, declarations: str) -> tuple[str, str]:
    """What a check stands behind, without and with the prelude; the same twice where the stubs themselves need it."""
    text = f"{_returning(stubs)}\n{declarations}\n{_CANARY}"
    full = f"{PRELUDE}\n{text}"
    return (full if _names_provided(text) else text), full


def _names_provided(text: str) -> bool:
    """Whether a text has a name of the prelude anywhere, in any spelling of its letters."""
    return _PROVIDED.search(text if text.isascii() else unicodedata.normalize("NFKC", text)) is not None


def _parsed(text: str) -> ast.AST | None:
    try:
        return cast("ast.Module", parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@lru_cache(maxsize=256)
def _defined(text: str) -> frozenset[str]:
    """Names that stubs or declarations define."""
    tree = _parsed(text)
    return frozenset(name for name, _ in bound_names(tree)) if tree else frozenset()


@lru_cache(maxsize=256)
def _returning(stubs: str) -> str:
    """``NoReturn`` functions as ordinary ones: nothing would be checked after a call of them."""
    return re.sub(r"->\s*(?:typing\.)?(?:NoReturn|Never)\s*:", "-> None:", stubs)


def _typed_dicts(tree: ast.AST | None) -> TypeTable:
    table: dict[str, dict[str, str]] = {}
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, ast.ClassDef) and any("TypedDict" in ast.unparse(base) for base in node.bases):
            fields = {
                st.target.id: ast.unparse(st.annotation)
                for st in node.body
                if isinstance(st, ast.AnnAssign) and isinstance(st.target, ast.Name)
            }
            table[node.name] = {name: text for name, text in fields.items() if not text.startswith("NotRequired")}
    return table


def _guarded(tree: ast.AST | None, line: int) -> bool:
    """Whether a line lies in the body of a ``try`` with handlers."""
    return tree is not None and any(
        isinstance(n, ast.Try) and n.handlers and n.body[0].lineno <= line <= (n.body[-1].end_lineno or 0)
        for n in ast.walk(tree)
    )


def _checked(comment: re.Match[str]) -> str:
    """A comment of the same length that switches no check off (``# type: ignore``)."""
    return re.sub(r"ignore|no_type_check", lambda word: "-" * len(word[0]), comment[0], flags=re.IGNORECASE)
