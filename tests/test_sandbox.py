"""The sandbox with the real interpreter: turns, limits, crashes, determinism, many sessions."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.errors import SandboxUnavailable, Unserialisable
from dse.runtime import sandbox
from dse.runtime.sandbox import Failed, Finished, Raise, Sandbox, SandboxLimits, Session, Turn, Value, Waiting, lint
from dse.runtime.sandbox.convert import NotPlain, bounded_repr, to_plain
from dse.runtime.sandbox.feed_time import cpu_seconds

CLOCK = datetime(2026, 3, 4, 12, tzinfo=UTC)
ASYNC = frozenset({"fetch", "other"})
SYNC = frozenset({"submit"})


def run(work: Callable[[Sandbox], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    async def main() -> Any:
        async with Sandbox(**options) as box:
            return await work(box)

    return asyncio.run(main())


async def opened(box: Sandbox, **options: Any) -> Session:
    return await box.open(**{"seed": 7, "clock": CLOCK, "async_names": ASYNC, "sync_names": SYNC, **options})


Answer = Callable[[Any], Any]


async def drive(
    session: Session, turn: Turn, answer: Answer = lambda call: Value(call.args[0])
) -> tuple[Turn, list[str], str]:
    """Answers every pending call; gives the last turn, the names called, and everything printed."""
    calls: dict[int, Any] = {}
    prints = turn.prints
    while isinstance(turn, Waiting):
        calls |= {call.call_id: call for call in turn.calls}
        turn = await session.resume({i: answer(calls[i]) for i in turn.pending})
        prints += turn.prints
    return turn, [call.name for call in calls.values()], prints


def result(code: str, *, answer: Answer = lambda call: Value(call.args[0]), **options: Any) -> Any:
    """The value of some code, linted as it would be in use."""

    async def work(box: Sandbox) -> Any:
        session = await opened(box, **options)
        checked = lint(code, tool_names=ASYNC | SYNC)
        assert checked.ok, checked.errors
        turn, _, _ = await drive(session, await session.feed(checked.code, shims=checked.shims), answer)
        assert isinstance(turn, Finished), turn
        return turn.value

    return run(work)


def failure(code: str, limits: SandboxLimits | None = None) -> tuple[Failed, Turn]:
    """How some code fails, and what the session says to the next feed."""

    async def work(box: Sandbox) -> tuple[Failed, Turn]:
        session = await opened(box, limits=limits)
        turn, _, _ = await drive(session, await session.feed(code))
        assert isinstance(turn, Failed), turn
        return turn, await session.feed("1 + 1")

    return run(work)


# --- turns


def test_values_prints_and_state() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        first = await session.feed("x = 20\nprint('hi', x)\nx + 1")
        assert first == Finished(21, "hi 20\n", "21")
        assert (await session.feed("x * 2")).value == 40
        assert (await session.feed("total", inputs={"total": {"a": [1, 2.5, None]}})).value == {"a": [1, 2.5, None]}
        await session.aclose()
        await session.aclose()
        closed = await session.feed("1")
        assert isinstance(closed, Failed) and closed.error.kind == "crash" and closed.error.dead

    run(work)


def test_a_gather_of_100_calls_waits_once() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        turn = await session.feed("sum(await asyncio.gather(*[fetch(i, flag=True) for i in range(100)]))")
        assert isinstance(turn, Waiting)
        assert turn.pending == tuple(range(100)) == tuple(call.call_id for call in turn.calls)
        assert turn.calls[7].args == (7,) and turn.calls[7].kwargs == {"flag": True} and turn.calls[7].is_async
        turn = await session.resume({i: Value(i) for i in range(100)})
        assert isinstance(turn, Finished) and turn.value == 4950

    run(work)


TWO_AWAITS = """
async def worker(i):
    a = await fetch(i)
    print('first', i, a)
    b = await other(a + 1)
    print('second', i, b)
    return b
await asyncio.gather(*[worker(i) for i in range(5)])
"""


def test_two_awaits_in_five_coroutines() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        first = await session.feed(TWO_AWAITS)
        assert isinstance(first, Waiting) and [c.name for c in first.calls] == ["fetch"] * 5
        second = await session.resume({i: Value(i * 10) for i in first.pending})
        assert isinstance(second, Waiting) and [(c.name, c.args) for c in second.calls] == [
            ("other", (i * 10 + 1,)) for i in range(5)
        ]
        assert second.prints == "".join(f"first {i} {i * 10}\n" for i in range(5))
        last = await session.resume({i: Value(i) for i in second.pending})
        assert isinstance(last, Finished) and last.value == list(second.pending) == [5, 6, 7, 8, 9]

    run(work)


def test_the_order_of_results_is_that_of_the_calls() -> None:
    async def transcript(box: Sandbox, reverse: bool) -> tuple[Any, str]:
        session = await opened(box)
        turn = await session.feed(TWO_AWAITS)
        prints = ""
        while isinstance(turn, Waiting):
            prints += turn.prints
            turn = await session.resume({i: Value(i) for i in sorted(turn.pending, reverse=reverse)})
        return turn.value, prints + turn.prints

    async def work(box: Sandbox) -> None:
        assert await transcript(box, False) == await transcript(box, True)

    run(work)


def test_partial_results() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        turn = await session.feed(TWO_AWAITS)
        turn = await session.resume({3: Value(30)})
        assert isinstance(turn, Waiting) and turn.pending == (0, 1, 2, 4, 5)
        assert [(c.call_id, c.name, c.args) for c in turn.calls] == [(5, "other", (31,))]
        turn = await session.resume({5: Value("done")})
        assert isinstance(turn, Waiting) and turn.calls == () and turn.pending == (0, 1, 2, 4)
        with pytest.raises(ValueError, match="calls"):
            await session.resume({5: Value(1)})
        with pytest.raises(ValueError, match="calls"):
            await session.resume({})

    run(work)


def test_a_sync_call_is_waited_for_alone() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        turn = await session.feed("task = fetch(1)\nx = submit(answer=5)\n(x, await task)")
        assert isinstance(turn, Waiting) and turn.pending == (1,)
        assert [(c.name, c.kwargs, c.is_async) for c in turn.calls] == [("submit", {"answer": 5}, False)]
        turn = await session.resume({1: Value("taken")})
        assert isinstance(turn, Waiting) and [c.name for c in turn.calls] == ["fetch"] and turn.pending == (0,)
        turn = await session.resume({0: Value("late")})
        assert isinstance(turn, Finished) and turn.value == ("taken", "late")

    run(work)


def test_unknown_names_surface_as_sync_calls_and_raise_where_they_stand() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        turn = await session.feed("try:\n    nothing(1)\nexcept NameError as e:\n    r = str(e)\nr")
        assert isinstance(turn, Waiting) and turn.calls[0].name == "nothing" and not turn.calls[0].is_async
        turn = await session.resume({turn.pending[0]: Raise("NameError", "name 'nothing' is not defined")})
        assert isinstance(turn, Finished) and turn.value == "name 'nothing' is not defined"
        turn = await session.feed("x = 1\nnothing")
        assert isinstance(turn, Failed) and turn.error.class_name == "NameError" and turn.error.line == 2

    run(work)


def test_tools_as_values_and_call_ids_over_feeds() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        turn = await session.feed("f = fetch\nopen_it = [submit]\n(await f(3), open_it[0](4))")
        assert isinstance(turn, Waiting) and turn.calls[0].name == "fetch"
        turn, names, _ = await drive(session, turn)
        assert isinstance(turn, Finished) and turn.value == (3, 4) and names == ["fetch", "submit"]
        turn = await session.feed("await f(9)")
        assert isinstance(turn, Waiting) and turn.calls[0].call_id == 2

    run(work)


def test_calls_that_nobody_awaits_are_told_and_gone() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        turn = await session.feed("later = fetch(1)\n5")
        assert isinstance(turn, Finished) and turn.value == 5
        assert [(c.name, c.args) for c in turn.unawaited] == [("fetch", (1,))]
        turn = await session.feed("await later")
        assert isinstance(turn, Failed) and "make the call again" in turn.error.message and not turn.error.dead
        assert (await session.feed("6")).value == 6

    run(work)


def test_exceptions_for_the_guest() -> None:
    code = """
    seen = []
    for i in range(4):
        try:
            await fetch(i)
        except Exception as e:
            seen.append((type(e).__name__, str(e)))
    seen
    """
    given_ = [
        Raise("ValueError", "bad"),
        Raise("PermissionError", "no"),
        Raise("ToolDenied", "never"),
        Raise("MemoryError", "x"),
    ]
    value = result(textwrap.dedent(code), answer=lambda call: given_[call.args[0]])
    assert value == [
        ("ValueError", "bad"), ("PermissionError", "no"), ("RuntimeError", "ToolDenied: never"), ("RuntimeError", "MemoryError: x"),
    ]  # fmt: skip


def test_results_and_inputs_that_cannot_enter() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        with pytest.raises(Unserialisable) as caught:
            await session.feed("x", inputs={"x": object()})
        assert caught.value.code == "DSE141"
        turn = await session.feed("r = await asyncio.gather(fetch(1), fetch(2))\nraise TypeError('Cannot convert this')")
        assert isinstance(turn, Waiting)
        with pytest.raises(Unserialisable):
            await session.resume({0: Value(object()), 1: Value(1)})
        turn = await session.resume({0: Value(1), 1: Value(1)})
        assert isinstance(turn, Failed) and turn.error.class_name == "TypeError" and turn.error.line == 2

    run(work)


def test_a_feed_that_a_check_stands_before() -> None:
    """Refused code does not run and takes no worker from others; later code starts in the same state."""
    checked: list[str] = []

    def says(answer: bool) -> Callable[[], bool]:
        def check() -> bool:
            checked.append(threading.current_thread().name)
            return answer

        return check

    def raises() -> bool:
        raise KeyError("the check itself failed")

    async def work(box: Sandbox) -> None:
        session = box.session(seed=7, clock=CLOCK, sync_names=SYNC)
        assert await session.feed_if(says(False), "x = 1", inputs={"x": 0}) is None
        assert box.room  # although only one worker may run
        with pytest.raises(KeyError):
            await session.feed_if(raises, "x = 1")
        await session.aclose()
        session = box.session(seed=7, clock=CLOCK, sync_names=SYNC)
        turn = await session.feed_if(says(True), "y = x + 1\ny", inputs={"x": 1})
        assert isinstance(turn, Finished) and turn.value == 2
        assert not box.room
        assert await session.feed_if(says(False), "y = 7") is None
        turn = await session.feed("y")
        assert isinstance(turn, Finished) and turn.value == 2
        await session.aclose()
        assert isinstance(await session.feed_if(says(True), "y"), Failed)  # without asking
        assert len(checked) == 3 and threading.current_thread().name not in checked

    run(work, max_workers=1)


def test_a_cancelled_check_begins_nothing() -> None:
    begun, go = threading.Event(), threading.Event()

    def check() -> bool:
        begun.set()
        return go.wait(30)

    async def work(box: Sandbox) -> None:
        session = box.session(seed=7, clock=CLOCK, sync_names=SYNC)
        task = asyncio.create_task(session.feed_if(check, "while True: pass"))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        assert (await (await opened(box)).feed("1 + 1")).value == 2  # type: ignore[union-attr]

    run(work, max_workers=1)


def test_misuse_is_refused() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        with pytest.raises(RuntimeError):
            await session.resume({0: Value(1)})
        await session.feed("await fetch(1)")
        with pytest.raises(RuntimeError):
            await session.feed("1")
        with pytest.raises(ValueError, match="time zone"):
            await box.open(seed=1, clock=datetime(2026, 1, 1))
        with pytest.raises(ValueError, match="both"):
            await box.open(seed=1, clock=CLOCK, async_names=ASYNC, sync_names=ASYNC)
        with pytest.raises(ValueError, match="no such shim"):
            await (await opened(box)).feed("1", shims=["os"])

    run(work)
    with pytest.raises(ValueError, match="feed_s"):
        SandboxLimits(feed_s=0)
    with pytest.raises(ValueError, match="max_workers"):
        Sandbox(max_workers=0)


# --- data at the door


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (
            "@dataclass\nclass P:\n    x: int\n    tags: list\nawait fetch([P(1, [P(2, [])])])",
            [{"x": 1, "tags": [{"x": 2, "tags": []}]}],
        ),
        ("await fetch({'a': (1, 2.5, None, True), 'b': {3}})", {"a": (1, 2.5, None, True), "b": {3}}),
        ("await fetch([x * 2 for x in range(3)])", [0, 2, 4]),
        ("await fetch('<b>not a repr</b>')", "<b>not a repr</b>"),
    ],
)
def test_arguments_are_plain(code: str, arguments: Any) -> None:
    seen = []
    result("from dataclasses import dataclass\n" + code, answer=lambda call: seen.append(call.args[0]) or Value(None))
    assert seen == [arguments]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("class P:\n    x = 1\nsubmit(answer=P())", "`answer` holds an instance of class P; pass a dict"),
        ("submit([1, lambda x: x])", "argument 1 holds <function '<lambda>' at 0x"),
        ("submit({'a': fetch(1)})", "was not awaited; put `await` before it"),
        ("submit({1: 2}.keys())", "wrap it in list"),
        ("import math\nsubmit(math.sqrt)", "<function sqrt at 0x"),
        ("class P:\n    def m(self):\n        return 1\nsubmit(P().m)", "<bound method>, which is not data"),
        ("submit(iter([1]))", "<list_iterator object>, which is not data"),
        ("import itertools\nsubmit(itertools.count())", "<itertools.count object>, which is not data"),
        ("import re\nsubmit(re.match('a', 'ab'))", "<re.Match object; span=(0, 1)"),
        ("submit(len)", "`len`, which is not data"),
        ("submit(int)", "`int`, which is not data"),
        ("x = 1\nfor _ in range(300):\n    x = [x]\nsubmit(x)", "levels deep"),
    ],
)
def test_arguments_that_are_not_data_never_reach_a_tool(code: str, said: str) -> None:
    failed, after = failure(code)
    assert failed.error.class_name == "TypeError" and said in failed.error.message and failed.error.kind == "runtime"
    assert isinstance(after, Finished) and after.value == 2


def test_what_a_value_shows() -> None:
    assert result("[1, 'a']") == [1, "a"]
    assert result("class P:\n    x = 1\n[P(), len, int]") == ["<P object>", "<len>", "<class 'int'>"]

    async def work(box: Sandbox) -> None:
        session = await opened(box)
        turn = await session.feed("[{'n': i} for i in range(10000)]")
        assert isinstance(turn, Finished) and len(turn.value_repr) < 2100
        assert turn.value_repr.startswith(
            "list of 10000 items, beginning: [{'n': 0}, {'n': 1}"
        ) and turn.value_repr.endswith("…")
        turn = await session.feed("x = 0\nfor _ in range(5000):\n    x = [x]\nx")
        assert isinstance(turn, Finished) and "..." in turn.value_repr

    run(work)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(plain)
def test_plain_values_stay_and_short_reprs_are_exact(value: Any) -> None:
    assert to_plain(value) == value
    full = repr(value)
    assert bounded_repr(value, len(full)) == full
    assert len(bounded_repr(value, 20)) <= max(len(full), 20) + 60


def test_text_that_stands_for_a_function_is_refused() -> None:
    with pytest.raises(NotPlain):
        to_plain(["<function 'f' at 0xc>"])
    assert to_plain("dict_keys([1]) and more") == "dict_keys([1]) and more"


@settings(max_examples=25, deadline=None)
@given(st.lists(plain, min_size=1, max_size=8))
def test_values_survive_both_ways(values: list[Any]) -> None:
    async def main() -> None:
        session = await sandbox.pool().open(seed=1, clock=CLOCK, async_names=ASYNC)
        try:
            turn = await session.feed("y = await fetch(x)\n(x, y)", inputs={"x": values})
            assert isinstance(turn, Waiting) and turn.calls[0].args == (values,)
            turn = await session.resume({0: Value(values)})
            assert isinstance(turn, Finished) and turn.value == (values, values)
        finally:
            await session.aclose()

    asyncio.run(main())


# --- limits


@pytest.mark.parametrize(
    ("code", "limits", "limit"),
    [
        ("while True: pass", {"feed_s": 0.2}, "interpreter_s"),
        ("try:\n    while True: pass\nexcept TimeoutError:\n    pass", {"feed_s": 0.2}, "interpreter_s"),
        ("x = []\nwhile True: x.append('abc' * 100)", {"memory_bytes": 2**24}, "memory_bytes"),
        ("'a' * 10**10", {}, "memory_bytes"),
        ("','.join(['a' * 1000] * 1000000)", {"memory_bytes": 2**24}, "memory_bytes"),
        ("for i in range(100): await fetch(i)", {"suspensions": 20}, "suspensions"),
        ("try:\n    for i in range(100): await fetch(i)\nexcept Exception:\n    pass", {"suspensions": 20}, "suspensions"),
    ],
)
def test_limits_end_the_session(code: str, limits: dict[str, Any], limit: str) -> None:
    failed, after = failure(code, SandboxLimits(**limits))
    assert (failed.error.kind, failed.error.limit, failed.error.dead) == ("limit", limit, True)
    assert isinstance(after, Failed) and after.error.dead


@pytest.mark.parametrize("code", [
    "for i in range(50):\n    await fetch(i)",
    "for i in range(50):\n    submit(i)",
    "for i in range(20):\n    await asyncio.gather(fetch(i), other(i))",
], ids=["sequential", "sync", "gathered"])  # fmt: skip
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 20])
def test_the_limit_of_suspensions_is_where_it_was_after_a_guest_was_frozen(code: str, limit: int) -> None:
    limits = SandboxLimits(suspensions=limit)

    async def answered(box: Sandbox, frozen_at: Callable[[int], bool]) -> int:
        """Times that the guest was answered before its limit, when it is frozen and thawed at some of them."""
        session, turns = await opened(box, limits=limits), 0
        turn = await session.feed("1 + 1")  # a feed that has ended is no suspension
        assert isinstance(turn, Finished)
        turn = await session.feed(code)
        while isinstance(turn, Waiting):
            if frozen_at(turns):
                frozen = await session.freeze()
                assert frozen is not None
                await session.aclose()
                session = await box.thaw(*frozen, limits=limits, seed=7, clock=CLOCK, async_names=ASYNC, sync_names=SYNC)
            turns += 1
            turn = await session.resume({number: Value(0) for number in session.waits_for})
        assert isinstance(turn, Failed) and turn.error.limit == "suspensions", turn
        return turns

    async def work(box: Sandbox) -> list[int]:
        cases: list[Callable[[int], bool]] = [lambda n: False, lambda n: n == 0, lambda n: n == 1, lambda n: True]
        return [await answered(box, case) for case in cases]

    assert len(set(run(work))) == 1


def test_a_native_operation_that_ignores_the_clock_is_killed() -> None:
    failed, after = failure("10 ** (10 ** 7)", SandboxLimits(feed_s=0.2))
    assert (failed.error.limit, failed.error.dead) == ("interpreter_s", True)
    assert isinstance(after, Failed)


@pytest.mark.parametrize("feed_s", [30.0, 1e300])
def test_the_time_limit_of_a_guest_is_what_was_declared_however_short_the_pool_s_own_is(feed_s: float) -> None:
    async def work(box: Sandbox) -> tuple[Turn, float]:
        short = await opened(box)  # both kinds of workers in one pool
        session = await opened(box, limits=SandboxLimits(feed_s=feed_s))
        turn = await session.feed("n = 0\nfor i in range(12_000_000): n += 1\nn")
        assert isinstance(await short.feed("1"), Finished)
        return turn, session.interpreter_s

    turn, spent = run(work, request_timeout_s=0.25)
    assert isinstance(turn, Finished) and turn.value == 12_000_000
    assert spent > 0.25  # or it would say nothing


def test_a_time_limit_beyond_the_pool_s_own_still_ends_a_guest() -> None:
    async def work(box: Sandbox) -> tuple[Turn, float]:
        session = await opened(box, limits=SandboxLimits(feed_s=0.8))
        return await session.feed("while True: pass"), session.interpreter_s

    failed, spent = run(work, request_timeout_s=0.25)
    assert isinstance(failed, Failed) and failed.error.limit == "interpreter_s"
    assert spent >= 0.75


def test_recursion_can_be_handled() -> None:
    failed, after = failure("def f(n): return f(n + 1)\nf(0)", SandboxLimits(recursion=50))
    assert (failed.error.kind, failed.error.limit, failed.error.dead, failed.error.line) == ("limit", "recursion", False, 1)
    assert isinstance(after, Finished)
    code = "def depth(n):\n    try:\n        return depth(n + 1)\n    except RecursionError:\n        return n\ndepth(0)"
    assert result(code, limits=SandboxLimits(recursion=50)) < 50


def test_errors_that_only_look_like_limits() -> None:
    for code, name in [("raise TimeoutError('late')", "TimeoutError"), ("raise MemoryError('full')", "MemoryError")]:
        failed, after = failure(code)
        assert (failed.error.kind, failed.error.class_name, failed.error.dead) == ("runtime", name, False)
        assert isinstance(after, Finished)


def test_a_print_flood_is_cut_and_told() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box, limits=SandboxLimits(print_bytes=1000))
        turn = await session.feed("for i in range(5000): print('häuser', i)\n'end'")
        assert isinstance(turn, Finished) and turn.value == "end"
        kept, _, note = turn.prints.partition("\n[printed ")
        assert 990 <= len(kept.encode()) <= 1000 and note.endswith("cut]\n")
        assert (await session.feed("print('again')")).prints == "again\n"
        flood = await opened(box, limits=SandboxLimits(print_bytes=1000, feed_s=0.2))
        ended = await flood.feed("while True: print('x' * 1000)")
        assert isinstance(ended, Failed) and ended.error.limit == "interpreter_s" and len(ended.prints) < 1100

    run(work)


@pytest.mark.parametrize(
    ("code", "kind", "name", "line"),
    [
        ("x = 1\ndef (:", "syntax", "SyntaxError", 2),
        ("x = 1\nclass A(ValueError): pass", "unsupported", "NotImplementedError", 2),
        ("x = {}\nx['k']", "runtime", "KeyError", 2),
        ("def f():\n    return 1 / 0\n\nf()", "runtime", "ZeroDivisionError", 2),
        ("raise NotImplementedError('later')", "runtime", "NotImplementedError", 1),
        ("import json\njson.loads('{')", "runtime", "json.JSONDecodeError", 2),
        ("sorted([1], key=lambda x: fetch(x))", "unsupported", "NotImplementedError", 1),
        ("open('/etc/passwd')", "runtime", "PermissionError", 1),
        ("import numpy", "runtime", "ModuleNotFoundError", 1),
    ],
)
def test_errors_say_what_and_where(code: str, kind: str, name: str, line: int) -> None:
    failed, after = failure(code)
    assert (failed.error.kind, failed.error.class_name, failed.error.line) == (kind, name, line)
    assert "monty" not in failed.error.message.lower()
    assert isinstance(after, Finished) and after.value == 2


def test_lines_are_those_of_the_feed_even_with_shims_and_earlier_functions() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        await session.feed("def broken():\n    x = 1\n    return x / 0")
        checked = lint("import statistics\nm = statistics.mean([1])\n\nbroken()", tool_names=[])
        turn = await session.feed(checked.code, shims=checked.shims)
        assert isinstance(turn, Failed) and turn.error.line == 4
        turn = await session.feed("import statistics".replace("import statistics", "1 / 0"))
        assert isinstance(turn, Failed) and turn.error.line == 1

    run(work)


def test_there_is_no_way_out() -> None:
    for code in (
        "import os\nos.environ['PATH']",
        "import os\nos.listdir('/')",
        "from pathlib import Path\nPath('/etc').exists()",
    ):
        failed, _ = failure(code)
        assert failed.error.class_name in ("PermissionError", "RuntimeError")


# --- determinism

RANDOM = """
import random, time
from datetime import datetime, date, timezone
time.sleep(3600)
await asyncio.sleep(3600)
[random.random(), random.randint(1, 10**9), random.Random().random(), random.sample(range(100), 5),
 datetime.now(), datetime.now(timezone.utc), date.today(), time.time(), time.monotonic(), list({'b', 'a', 'c'})]
"""


def test_same_seed_and_clock_same_values() -> None:
    async def work(box: Sandbox) -> tuple[Any, ...]:
        values = []
        for seed, clock in [(1, CLOCK), (1, CLOCK), (2, CLOCK), (1, CLOCK + timedelta(days=1))]:
            values.append((await (await opened(box, seed=seed, clock=clock)).feed(RANDOM)).value)
        return tuple(values)

    one, again, other_seed, other_day = run(work)
    assert one == again
    assert one[0] != other_seed[0] and one[4:] == other_seed[4:]
    assert one[:4] == other_day[:4] and other_day[6] == one[6] + timedelta(days=1)
    assert one[5] == CLOCK and one[7] == CLOCK.timestamp()


# --- workers


def kill_worker(session: Session) -> None:
    os.kill(session._pid, signal.SIGKILL)  # type: ignore[arg-type]


def test_a_killed_worker_ends_its_session_only() -> None:
    async def work(box: Sandbox) -> None:
        waiting, idle, fine = await opened(box), await opened(box), await opened(box)
        assert isinstance(await waiting.feed("await fetch(1)"), Waiting)
        kill_worker(waiting)
        kill_worker(idle)
        for turn in (await waiting.resume({0: Value(1)}), await idle.feed("1")):
            assert isinstance(turn, Failed) and turn.error.kind == "crash" and turn.error.dead
        assert (await fine.feed("1 + 1")).value == 2
        await waiting.aclose()
        await idle.aclose()
        assert (await (await opened(box)).feed("2 + 2")).value == 4

    run(work, max_workers=3)


def test_a_worker_that_died_in_the_pool_is_replaced() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        await session.aclose()
        kill_worker(session)
        assert (await (await opened(box)).feed("1 + 1")).value == 2

    run(work, max_workers=1)


def test_no_free_worker() -> None:
    async def work(box: Sandbox) -> None:
        held = await opened(box)
        with pytest.raises(SandboxUnavailable) as caught:
            await opened(box)
        assert caught.value.code == "DSE403" and "max_workers" in str(caught.value)
        await held.aclose()
        assert (await (await opened(box)).feed("1")).value == 1

    run(work, max_workers=1, checkout_timeout_s=0.2)


def test_opening_waits_for_a_worker() -> None:
    async def work(box: Sandbox) -> None:
        held = await opened(box)
        async with asyncio.TaskGroup() as group:
            later = group.create_task(opened(box))
            await asyncio.sleep(0.05)
            assert not later.done()
            await held.aclose()
        assert (await later.result().feed("1")).value == 1

    run(work, max_workers=1)


def test_a_closed_sandbox() -> None:
    async def main() -> None:
        box = Sandbox()
        session = await opened(box)
        await session.feed("await fetch(1)")
        await box.aclose()
        await box.aclose()
        turn = await session.resume({0: Value(1)})
        assert isinstance(turn, Failed) and turn.error.dead
        await session.aclose()
        with pytest.raises(SandboxUnavailable):
            await opened(box)

    asyncio.run(main())


def test_a_missing_interpreter_is_an_infrastructure_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONTY_BIN", "/nonexistent/monty")
    with pytest.raises(SandboxUnavailable, match="cannot be started"):
        run(lambda box: opened(box))


def test_cancelling_a_turn_frees_the_worker() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        task = asyncio.create_task(session.feed("while True: pass"))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        after = await session.feed("1")
        assert isinstance(after, Failed) and after.error.dead
        # the only worker is back long before the guest's own limit of ten seconds
        with anyio.fail_after(5):
            assert (await (await opened(box)).feed("1")).value == 1
        await session.aclose()

    run(work, max_workers=1)


def test_cancelling_while_opening_frees_the_worker() -> None:
    async def work(box: Sandbox) -> None:
        held = await opened(box)
        task = asyncio.create_task(opened(box))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await held.aclose()
        with anyio.fail_after(5):
            assert (await (await opened(box)).feed("1")).value == 1

    run(work, max_workers=1)


def test_cancelled_sessions_do_not_leak_workers() -> None:
    async def work(box: Sandbox) -> None:
        async def one(i: int) -> None:
            with anyio.move_on_after(0.02 * (i % 3)):
                session = await opened(box)
                try:
                    await session.feed("while True: pass")
                finally:
                    await session.aclose()

        for _ in range(3):
            await asyncio.gather(*(one(i) for i in range(6)))
        with anyio.fail_after(10):
            sessions = [await opened(box) for _ in range(4)]
        assert [(await s.feed("1")).value for s in sessions] == [1] * 4

    run(work, max_workers=4)


def test_sixty_sessions_wait_without_threads() -> None:
    async def work(box: Sandbox) -> None:
        before = threading.active_count()
        sessions = [await opened(box) for _ in range(60)]
        turns = await asyncio.gather(*(s.feed("a, b = await asyncio.gather(fetch(1), fetch(2))\na + b") for s in sessions))
        assert all(isinstance(turn, Waiting) for turn in turns)
        assert box.threads_in_use == 0
        turns = await asyncio.gather(*(s.resume({0: Value(i), 1: Value(1)}) for i, s in enumerate(sessions)))
        assert [turn.value for turn in turns] == [i + 1 for i in range(60)]
        assert threading.active_count() - before <= 61  # idle threads of the event loop's pool at most

    run(work, max_workers=60)


def test_many_sessions_share_few_workers() -> None:
    async def one(box: Sandbox, i: int) -> Any:
        session = box.session(seed=1, clock=CLOCK, async_names=ASYNC)
        try:
            turn = await session.feed("await fetch(1)")  # all of them ask for a worker before any has one
            assert isinstance(turn, Waiting)
            return (await session.resume({0: Value(i)})).value
        finally:
            await session.aclose()

    async def work(box: Sandbox) -> None:
        with anyio.fail_after(30):
            assert await asyncio.gather(*(one(box, i) for i in range(30))) == list(range(30))

    run(work, max_workers=2)


def test_a_session_that_nobody_closed_frees_its_worker() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        later = asyncio.create_task(opened(box))
        await asyncio.sleep(0)
        del session
        with anyio.fail_after(10):
            assert (await (await later).feed("1")).value == 1

    run(work, max_workers=1)


def test_closing_a_sandbox_ends_waiting_for_a_worker() -> None:
    async def work(box: Sandbox) -> None:
        held = await opened(box)
        later = asyncio.create_task(opened(box))
        await asyncio.sleep(0)
        await box.aclose()
        with anyio.fail_after(10), pytest.raises(SandboxUnavailable, match="closed"):
            await later
        await held.aclose()

    run(work, max_workers=1)


@pytest.mark.parametrize("shims", [(), ("json",)])
@pytest.mark.parametrize(
    ("first", "kind", "line"), [("a = 1\n1 / 0", "runtime", 2), ("a = 1\n\nyield a", "unsupported", 3), ("a = 1\nb = (", "syntax", 2)]
)
def test_lines_and_imports_of_a_first_feed_that_fails(first: str, kind: str, line: int, shims: tuple[str, ...]) -> None:
    async def work(box: Sandbox) -> None:
        session = box.session(seed=1, clock=CLOCK, imports="import asyncio, datetime\nfrom decimal import Decimal")
        turn = await session.feed(first, shims=shims)
        assert isinstance(turn, Failed) and (turn.error.kind, turn.error.line) == (kind, line)
        turn = await session.feed("(asyncio.gather is None, str(Decimal('1.5')), datetime.date(2026, 1, 2).day)\n")
        assert isinstance(turn, Finished) and turn.value == (False, "1.5", 2)
        turn = await session.feed("datetime = 5\n1 / 0")
        turn = await session.feed("datetime")
        assert isinstance(turn, Finished) and turn.value == 5
        await session.aclose()

    run(work)


def test_a_variable_of_a_failed_first_feed_is_not_imported_over() -> None:
    async def work(box: Sandbox) -> None:
        session = box.session(seed=1, clock=CLOCK, imports="import asyncio, datetime")
        assert isinstance(await session.feed("datetime = 5\n1 / 0"), Failed)
        turn = await session.feed("datetime")
        assert isinstance(turn, Finished) and turn.value == 5

    run(work)


def test_a_closed_session_runs_nothing() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        await session.aclose()
        turn = await session.feed("1")
        assert isinstance(turn, Failed) and turn.error.dead

    run(work)


def test_one_sandbox_serves_several_event_loops() -> None:
    box = Sandbox(max_workers=4)
    values: list[int] = []

    def serve(n: int) -> None:
        async def main() -> None:
            for i in range(5):
                session = await opened(box)
                turn, _, _ = await drive(session, await session.feed(f"await fetch({n * 10 + i})"))
                values.append(turn.value)  # type: ignore[union-attr]
                await session.aclose()

        asyncio.run(main())

    threads = [threading.Thread(target=serve, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    box.close()
    assert sorted(values) == [n * 10 + i for n in range(4) for i in range(5)]


def test_the_time_of_the_interpreter_is_counted() -> None:
    async def work(box: Sandbox) -> None:
        session = await opened(box)
        await session.feed("for i in range(200000): pass\nawait fetch(1)")
        spent = session.interpreter_s
        assert spent > 0
        await asyncio.sleep(0.2)
        assert session.interpreter_s == spent

    run(work)


# --- the end of the process


def python(code: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    head = "import asyncio, os, sys, threading\nfrom datetime import datetime, timezone\nfrom dse.runtime.sandbox import *\n"
    head += "def open_(box): return box.open(seed=1, clock=datetime(2026, 1, 1, tzinfo=timezone.utc), async_names=frozenset({'fetch'}))\n"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", head + textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.parametrize(
    "code",
    [
        """
        async def main():
            global sessions
            sessions = [await open_(pool()) for _ in range(3)]
            await sessions[0].feed("await fetch(1)")
        asyncio.run(main())
        """,
        """
        async def main():
            global box, session
            box = Sandbox()
            session = await open_(box)
            asyncio.create_task(session.feed("while True: pass"))
            await asyncio.sleep(0.2)
        asyncio.run(main())
        """,
        """
        async def main():
            global session
            session = await open_(Sandbox())
            await session.feed("1")
            await checker().check(stubs="", code="1")
        asyncio.run(main())
        """,
        """
        async def main():
            session = await open_(pool())
            await session.feed("await fetch(1)")
            raise SystemExit(0)
        asyncio.run(main())
        """,
        """
        import pydantic_monty

        boxes = [Sandbox() for _ in range(4)]
        for box in boxes:
            box.start_soon()
        """,
    ],
)
def test_the_process_ends_cleanly_with_open_sessions(code: str) -> None:
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_leaves_the_parents_sessions_alone() -> None:
    done = python("""
        async def begin():
            session = await open_(pool())
            await session.feed("await fetch(1)")
            await checker().check(stubs="", code="1")
            return session

        session = asyncio.run(begin())
        child = os.fork()
        if child == 0:
            for attempt in (lambda: session.resume({0: Value(1)}), lambda: open_(pool()), lambda: open_(Sandbox()),
                            lambda: checker().check(stubs="", code="3")):
                async def main():
                    await attempt()
                try:
                    asyncio.run(main())
                except Exception as error:
                    print(type(error).__name__, flush=True)
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3

        async def go_on():
            turn = await session.resume({0: Value(5)})
            print(turn.value, (await (await open_(pool())).feed("1 + 1")).value)
            print(await checker().check(stubs="", code="2"))

        asyncio.run(go_on())
    """)
    assert (done.stdout.split(), done.stderr, done.returncode) == (["SandboxUnavailable"] * 4 + ["5", "2", "[]"], "", 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_before_the_first_use_is_fine() -> None:
    done = python("""
        async def main():
            os.write(1, f"{(await (await open_(pool())).feed('1 + 1')).value}\\n".encode())  # print writes twice
        child = os.fork()
        asyncio.run(main())
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("2\n2\n", "", 0)


def test_importing_the_room_does_not_load_the_interpreter() -> None:
    done = python("print([m for m in sys.modules if m.startswith('pydantic_monty')])")
    assert done.stdout == "[]\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how much processor a worker had is read from /proc")
def test_a_worker_that_the_machine_kept_waiting_says_nothing_about_the_guest() -> None:
    """Its wall time passed while it was stopped: an infrastructure failure, and no limit that the guest reached."""

    def stopped(pid: int, seconds: float) -> None:
        while not cpu_seconds(pid):  # it has begun
            time.sleep(0.005)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)

    async def work(box: Sandbox) -> Turn:
        session = await opened(box, limits=SandboxLimits(feed_s=2.0))
        await session.feed("x = 1")
        assert session._pid is not None
        feeding = asyncio.ensure_future(session.feed("while True: pass"))
        await anyio.to_thread.run_sync(stopped, session._pid, 1.9)  # most of the limit: the injected fault is time itself
        return await feeding

    ended = run(work)
    assert isinstance(ended, Failed) and (ended.error.kind, ended.error.limit) == ("crash", None)
    assert "less than a tenth" in ended.error.message
