"""Type check of guest code before it runs, in workers of its own.

The *gate check*: the text that would run is fed to a type-checking session behind a call that never returns.
Type errors and unsupported syntax stop the feed before that call, so nothing is ever executed. Earlier code and
the inputs' declarations stand before the code; remarks about them are left out and lines count from the code.
"""

from __future__ import annotations

import ast
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

_GATE = "dse_gate"
_COMMENT = re.compile(r"#[^\n]*")
_CANARY = "def dse_canary(value: int) -> str: ...\n"
_FEEDS_PER_SESSION = 500  # a worker grows with every check


class Checker:
    """Checks code against stubs. Answers are cached by content.

    Args:
        max_workers: checks at the same time; a worker takes about 35 MiB.
        request_timeout_s: time for one check. Types can be made to explode, and no other limit covers that.
        cache_size: how many answers are kept.
    """

    def __init__(self, max_workers: int = 2, *, request_timeout_s: float = 10.0, cache_size: int = 2048) -> None:
        self._workers = WorkerPool(max_workers=max_workers, request_timeout_s=request_timeout_s, checkout_timeout_s=60.0)
        self._free = threading.Condition()
        self._idle: list[_Bench] = []
        self._busy = 0
        self._size = cache_size
        self._cache: OrderedDict[str, tuple[Diagnostic, ...]] = OrderedDict()
        self._valid: dict[str, ContractError | None] = {}
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
        key = digest([stubs, declarations, list(earlier), code])
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return list(self._cache[key])
        found: list[Diagnostic] = await self._in_thread(self._check, stubs, declarations, tuple(earlier), code)
        with self._lock:
            self._cache[key] = tuple(found)
            while len(self._cache) > self._size:
                self._cache.popitem(last=False)
        return found

    async def validate_stubs(self, stubs: str) -> None:
        """Makes sure that the checker really checks with these stubs: broken ones switch it off in silence.

        Raises:
            ContractError: a syntax error, an unknown type, or calls that are not checked.
        """
        key = digest(stubs)
        if key not in self._valid:
            self._valid[key] = await self._in_thread(self._validate, stubs)
        if (error := self._valid[key]) is not None:
            raise ContractError(error.what, value=error.value, remedy=error.remedy, **error.details)

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        self._workers.refuse_if_unusable()
        # a check is short and its worker goes back to the bench by itself: a cancelled one ends unnoticed
        return await anyio.to_thread.run_sync(
            lambda: work(*arguments), abandon_on_cancel=True, limiter=self._workers.threads()[0]
        )

    # --- in the thread

    def _check(self, stubs: str, declarations: str, earlier: tuple[str, ...], code: str) -> list[Diagnostic]:
        text = _COMMENT.sub(_checked, code.replace("\r\n", "\n").replace("\r", "\n"))
        earlier = tuple(_COMMENT.sub(_checked, piece) for piece in earlier)
        stub_tree = _parsed(stubs)
        known = frozenset(name for tree in (stub_tree, _parsed(declarations)) if tree for name, _ in bound_names(tree))
        rewritten = rewrite(text, known)
        before = [rewrite(neutral(piece), known) for piece in earlier]
        needs = dict.fromkeys(need for piece in [*before, rewritten] for need in piece.needs if not need.startswith(PREFIX))
        head = ["import asyncio", *(source_of(need) for need in needs)]
        full_stubs = f"{PRELUDE}\n{_returning(stubs)}\n{declarations}\n"
        prefix = "\n".join([f"{_GATE}()", *head, *(piece.check.rstrip("\n") for piece in before)]) + "\n"
        found = self._gate(full_stubs, prefix, rewritten.check)
        if found is None:  # earlier code cannot be parsed: without it, names are not known
            short = "\n".join([f"{_GATE}()", *head]) + "\n"
            found = self._gate(full_stubs, short, rewritten.check) or []
            found = [f for f in found if f.get("code") != "unresolved-reference"]
        types = _typed_dicts(stub_tree)
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

    def _gate(self, stubs: str, prefix: str, code: str) -> list[Any] | None:
        """Raw diagnostics with lines of ``code``; None when the prefix itself cannot be parsed."""
        import pydantic_monty

        shift = prefix.count("\n")
        with self._bench(f"{stubs}def {_GATE}() -> None: ...\n{_CANARY}") as bench:
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
                if not error.timed_out:
                    raise SandboxUnavailable("a checking worker ended unexpectedly", remedy="Check again") from error
                return [Diagnostic(0, 0, "too-complex", "the code takes too long to check", "write it more simply")]
            except (pydantic_monty.MontySyntaxError, pydantic_monty.MontyRuntimeError) as error:
                frames = error.traceback()
                if frames and frames[-1].line <= shift:
                    return None
                fault = faults.from_exception(error, frames[-1].filename if frames else "")
                line = (fault.line or shift) - shift
                return [Diagnostic(line, frames[-1].column if frames else 0, fault.kind, fault.message)]
            try:
                snapshot.resume({"exc_type": "RuntimeError", "message": "checked"})
            except pydantic_monty.MontyError:
                pass
            return []

    @contextmanager
    def _bench(self, stubs: str) -> Iterator[_Bench]:
        """A session with these stubs, for one check; retried once when its worker has died."""
        key = digest(stubs)
        with self._free:
            while self._busy >= self._workers.max_workers:
                self._free.wait()
            self._busy += 1
            fitting = [b for b in self._idle if b.key == key]
            bench = fitting[-1] if fitting else None
            if bench is not None:
                self._idle.remove(bench)
            elif self._busy + len(self._idle) > self._workers.max_workers:
                self._idle.pop(0).close()
        try:
            if bench is not None and not bench.alive():
                bench.close()
                bench = None
            if bench is None:
                bench = _Bench(self._workers, key, stubs)
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

    def _validate(self, stubs: str) -> ContractError | None:
        remedy = "Use types that stubs can express: TypedDict, Literal, lists, dicts, numbers, text, dates"
        try:
            tree = cast("ast.Module", parse(stubs))
        except SyntaxError as error:
            return ContractError("tool stubs are not valid Python", value=f"line {error.lineno}: {error.msg}", remedy=remedy)
        # 1. The stub text as code: unknown names and modules are reported there, and only there.
        ignored = {"empty-body", "invalid-return-type", "invalid-overload", "invalid-parameter-default"}
        for item in self._gate(PRELUDE, f"{_GATE}()\n", stubs) or []:
            code, text = (item.rule, item.message) if isinstance(item, Diagnostic) else (item["code"], item["message"])
            line = item.line if isinstance(item, Diagnostic) else item["line"]
            if code not in ignored and code != "unsupported":
                return ContractError("tool stubs cannot be checked", value=f"line {line}: {text}", remedy=remedy, line=line)
        # 2. Canaries: a wrong call of a function next to the tools, and of each tool, must be reported.
        functions = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        probes = ['dse_canary("x")', *(f"{f.name}(dse_no_such_parameter=0)" for f in functions if f.args.kwarg is None)]
        found = self._gate(f"{PRELUDE}\n{_returning(stubs)}\n", f"{_GATE}()\n", "\n".join(probes)) or []
        reported = {
            item["line"] for item in found if not isinstance(item, Diagnostic) and item["code"] != "unused-awaitable"
        }
        for number, probe in enumerate(probes, 1):
            if number not in reported:
                return ContractError("wrong calls are not noticed with these tool stubs", value=probe, remedy=remedy)
        # 3. No part of a tool's signature may be unknown to the checker.
        probes = [f"reveal_type({f.name})" for f in functions]
        for item in self._gate(f"{PRELUDE}\n{_returning(stubs)}\n", f"{_GATE}()\n", "\n".join(probes)) or []:
            if not isinstance(item, Diagnostic) and item["code"] == "revealed-type" and "Unknown" in item["message"]:
                name = functions[item["line"] - 1].name
                return ContractError(
                    "a tool's type is unknown to the checker", value=f"{name}: {item['message']}", remedy=remedy
                )
        return None


class _Bench:
    """A type-checking session with fixed stubs, used again and again."""

    def __init__(self, workers: WorkerPool, key: str, stubs: str) -> None:
        self.key, self.feeds, self.broken = key, 0, False
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

    def alive(self) -> bool:
        """Whether the worker still answers."""
        try:
            return bool(self.guest.feed_run("1", skip_type_check=True) == 1)
        except Exception:
            return False

    def close(self) -> None:
        guest, self.guest = self.guest, None
        if guest is not None and self._workers.state == "open":
            guest.__exit__(None, None, None)


def _parsed(text: str) -> ast.AST | None:
    try:
        return cast("ast.Module", parse(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


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
