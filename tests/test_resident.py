"""Scripts whose guest stays between runs: which may, that they say what they say elsewhere, and that nothing is left in it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dse
from dse.errors import LimitExceeded, RunSuspended, ScriptFailed
from dse.runtime import sandbox
from dse.runtime.sandbox import Failed, Finished, Sandbox, SandboxLimits, Value, Waiting
from dse.strategies.script import script_plan

CLOCK = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
TOOLS = frozenset({"look"})
ENDS = frozenset({"submit"})


class Ran(NamedTuple):
    said: Any  # what was submitted, or class, message and line of what went wrong
    printed: str
    worker: int
    before: int  # runs that its guest had been through


def kept(source: str, inputs: Iterable[str] = ("n",)) -> Any:
    lint = sandbox.lint(source, tool_names=TOOLS, known_names={*inputs, "asyncio", "datetime", "Decimal"})
    assert lint.ok, lint.errors
    return sandbox.resident(lint, tuple(inputs), TOOLS | ENDS)


async def ran(box: Sandbox, source: str, *, stay: bool = True, limits: SandboxLimits | None = None, clock: datetime = CLOCK,
              **inputs: Any) -> Ran:  # fmt: skip
    """One run of a script; calls of ``look(x)`` give ``10 * x``."""
    lint = sandbox.lint(source, tool_names=TOOLS, known_names={*inputs, "asyncio", "datetime", "Decimal"})
    found = kept(source, inputs) if stay else None
    imports = "import asyncio, datetime\nfrom decimal import Decimal"
    session = box.session(seed=1, clock=clock, limits=limits, async_names=TOOLS, sync_names=ENDS, imports=imports, resident=found)
    said, printed = None, ""
    try:
        turn = await session.feed(found.call if found else lint.code, inputs=inputs, shims=lint.shims)
        while isinstance(turn, Waiting):
            printed += turn.prints
            if turn.calls and turn.calls[0].name == "submit":
                said = turn.calls[0].args
                break
            turn = await session.resume({i: Value(10) for i in turn.pending})
        if isinstance(turn, Failed):
            said = (turn.error.class_name, turn.error.message, turn.error.line)
        elif isinstance(turn, Finished):
            said = ("ended", turn.value_repr)
        stayed = getattr(session._driver, "kept", None)  # a guest of its own has none
        last = turn.prints if not isinstance(turn, Waiting) else ""
        return Ran(said, printed + last, session._pid or 0, stayed.runs if stayed else 0)
    finally:
        await anyio.to_thread.run_sync(session._leave)  # as aclose() does, which does not wait for it


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Sandbox]:
    async with Sandbox(**options) as box:
        yield box


def run(work: Any, **options: Any) -> Any:
    async def main() -> Any:
        async with opened(**options) as box:
            return await work(box)

    return anyio.run(main)


SAME = {
    "patterns": "import re\nm = re.search(r'(\\w+)-(\\d+)', f'order abc-{n}')\nsubmit(m.group(2), re.sub(r'\\d', '#', str(n)))",
    "a module that is not imported": "submit(re.findall('[a-z]', f'a{n}b'), json.dumps([n]))",
    "tools": "a, b = await asyncio.gather(look(n), look(n + 1))\nsubmit(a + b + n)",
    "a main function": "async def main():\n    return await look(n)\nx = asyncio.run(main())\nsubmit(x)",
    "text of several lines": "text = '''a\n    b\n\n  c'''\nq = f'''{n}\n  {text}\n'''\nsubmit(text, q, 'x' 'y'\n    if n else\n\"\"\"\nz\"\"\")",
    "helpers": "count = 0\ndef up(k):\n    found = [k]\n    found.append(n)\n    return found\nlast = [up(i) for i in range(3)]\nsubmit(last, count)",
    "continued lines": "x = 1 + \\\n  n\nif x: y = 2; z = 3\nelse:\n\ty = 4; z = 5\nsubmit(x, y, z)",
    "an error": "import re\nx = [1]\n\ny = x[n + 3]\nsubmit(y)",
    "an error in a helper": "def deep(k):\n    if k == 0:\n        return {}['gone']\n    return deep(k - 1)\n\ndeep(n)\nsubmit(1)",
    "an error in a pattern": "import re\n\nre.search('[', 'x')\nsubmit(1)",
    "a value at the end": "x = n + 1\nx * 2",
    "a value of several lines at the end": "x = [n]\nx.append(2); [\n  x,\n  n]",
    "no value at the end": "x = n\nif x:\n    print('big', x)",
    "a caught error": "try:\n    x = {}[n]\nexcept Exception as exc:\n    x = repr(exc)\nprint(x)\nsubmit(x)",
    "an undefined name": "if n > 90:\n    x = 1\nprint(n)\nsubmit(x)",
    "an undefined name in a helper": "def give():\n    return [x for _ in range(2)]\nif n > 90:\n    x = 1\nsubmit(give())",
    "an undefined name of a helper": "def give(k):\n    if k > 90:\n        y = 1\n    return y\nsubmit(give(n))",
    "compiled patterns": "import re\np = re.compile(r'(?P<k>\\w+)=(\\d+)')\nm = p.match(f'ab={n}')\nsubmit(m.group('k'), p.sub('-', f'a=1 b={n}'))",
    "a call over two lines": "import re\ny = (re\n  .search('a', f'{n}'))\nz = {}['k']",
    "a call shown in text": "import re\nsubmit(f\"{re.sub('a', 'b', 'ca')=}\")",
    "arguments that do not fit": "import re\ntry:\n    re.search(*('a',))\nexcept Exception as exc:\n    print(exc)\nre.sub('a', 'b')",
    "a message of its own": "raise ValueError(\"cannot access local variable 'n' where it is not associated with a value\")",
    "a variable of a helper's helper": "def f(k):\n    def g():\n        return q\n    if k > 90:\n        q = 1\n    return g()\nsubmit(f(n))",
    "deep calls": "def down(k):\n    return 0 if k == 0 else down(k - 1)\nprint(down(190))\nsubmit(down(900))",
    "shims": "import statistics\nfrom collections import Counter\nc = Counter('aab')\nsubmit(statistics.median([n, 3, 4]), c.most_common(1))",
}  # fmt: skip


@pytest.mark.parametrize("source", SAME.values(), ids=SAME.keys())
def test_a_guest_that_stays_says_what_one_of_its_own_says(source: str) -> None:
    async def work(box: Sandbox) -> None:
        for before, n in enumerate((2, 5, 2, 0)):
            fresh, stayed = await ran(box, source, stay=False, n=n), await ran(box, source, n=n)
            assert stayed[:2] == fresh[:2] and stayed.before == before

    assert kept(source) is not None
    run(work, max_workers=3)


REACHES = {
    "the clock": "submit(str(datetime.datetime.now()))",
    "the clock by another name": "from datetime import date as d\nclock = d\nsubmit(str(clock.today()))",
    "random numbers": "import random\nsubmit(random.random())",
    "a global name": "def keep():\n    global seen\n    seen = n\nkeep()\nsubmit(seen)",
    "a class": "class Seen:\n    all = []\nSeen.all.append(n)\nsubmit(Seen.all)",
    "an attribute of a shim": "import statistics\nstatistics.seen = n\nsubmit(statistics.seen)",
    "an attribute by its name": "import statistics\nsetattr(statistics, 'seen', n)\nsubmit(1)",
    "the context of decimals": "import decimal\ndecimal.getcontext().prec = n\nsubmit(1)",
    "code from text": "exec('import statistics')\nsubmit(1)",
    "a builtin that it binds later": "total = sum([n])\nsum = 3\nsubmit(total)",
    "a module before it is imported": "x = datetime.date(2026, 1, n)\nimport datetime\nsubmit(str(x))",
    "going on after the end": "try:\n    submit(n)\nexcept BaseException:\n    print('still here')",
    "going on after the end, unnamed": "try:\n    submit(n)\nexcept:\n    print('still here')",
    "a last word": "try:\n    submit(n)\nfinally:\n    print('still here')",
    "places in memory": "submit(id([n]) > 0)",
    "what is kept": "dse_x_patterns_kept = {}\nsubmit(n)",
    "what is filled": "submit(len(dse_x_ballast))",
    "what is kept, read": "submit(len(dse_x_patterns_kept))",
    "tasks": "t = asyncio.create_task(look(n))\nsubmit(await t)",
    "a way out of the function": "x = n\nreturn x",
    "the context of decimals by an attribute's name":
        "import decimal, operator\noperator.attrgetter('setcontext')(decimal)(decimal.Context(prec=n + 1))\nsubmit(str(Decimal(1) / 3))",
    "the context of decimals by a pattern":
        "import decimal\nmatch decimal:\n    case object(setcontext=f):\n        f(decimal.Context(prec=n + 1))\nsubmit(str(Decimal(1) / 3))",
    "a builtin that a default binds": "t = len([n])\ndef f(x=(len := 3)):\n    return x\nsubmit(t)",
    "a builtin that a decorator binds": "t = len([n])\n@(len := (lambda f: f))\ndef g():\n    return 1\nsubmit(t)",
    "a tool as a value": "f = look\nx = await f(n)\nsubmit(x)",
    "the flags of a context of decimals": "import decimal\ndecimal.ExtendedContext.divide(Decimal(1), Decimal(3))\nsubmit(n)",
    "a variable of the script for a helper": "x = 1\ndef f():\n    nonlocal x\n    x = n\nf()\nsubmit(x)",
    "places in text": "print(iter([n]))\nsubmit(n)",
    "places in text of a module": "import itertools\nprint(itertools.cycle([n]))\nsubmit(n)",
    "too many variables": "\n".join(f"v{i} = {i}" for i in range(300)) + "\nsubmit(v0)",
}


@pytest.mark.parametrize("source", REACHES.values(), ids=REACHES.keys())
def test_what_could_reach_from_one_run_to_another_has_a_guest_of_its_own(source: str) -> None:
    lint = sandbox.lint(source, tool_names=TOOLS, known_names={"n", "asyncio", "datetime", "Decimal"})
    assert sandbox.resident(lint, ("n",), TOOLS | ENDS) is None


def test_variables_end_with_their_run() -> None:
    """Names that one run binds and another one reads, in every way that a script has."""
    source = """
if n == 1:
    secret = [n]
    def teller(x=[]):
        x.append(secret)
        return x
    for loop in [7]:
        pass
    teller()
names = []
try:
    names.append(secret)
except Exception as exc:
    names.append(str(exc)[:30])
try:
    names.append(teller())
except Exception as exc:
    names.append('none')
try:
    names.append(loop)
except Exception as exc:
    names.append('none')
submit(names)
"""

    async def work(box: Sandbox) -> None:
        first, then = await ran(box, source, n=1), await ran(box, source, n=2)
        assert first.said == ([[1], [[1], [1]], 7],)
        assert then.before == 1 and then.said[0][1:] == ["none", "none"]
        assert "variable" in then.said[0][0]

    run(work)


def test_inputs_are_forgotten_and_patterns_made_of_them_are_bounded() -> None:
    async def work(box: Sandbox) -> None:
        source = "import re\nfound = [bool(re.search(f'{n}x{i}', 'a')) for i in range(1500)]\nsubmit(len(found))"
        await ran(box, source, n=1)
        assert (await ran(box, source, n=2)).before == 1
        session = box.session(seed=1, clock=CLOCK, async_names=TOOLS, sync_names=ENDS, resident=kept(source),
                              imports="import asyncio, datetime\nfrom decimal import Decimal")  # fmt: skip
        session._check_out()
        assert session._driver.kept is not None
        assert session._driver.guest.feed_run("(dse_x_input0, len(dse_x_patterns_kept))") == (None, 1024)
        await session.aclose()

    run(work)


def test_calls_that_nobody_answered_cost_the_guest_its_place() -> None:
    async def work(box: Sandbox) -> None:
        source = "a = look(n)\nb = look(n + 1)\nx = await a\nsubmit(x)"
        assert [(await ran(box, source, n=1)).said for _ in range(2)] == [(10,), (10,)]
        half = "async def one():\n    return await look(n)\nasync def two():\n    submit(7)\nawait asyncio.gather(one(), two())"
        assert kept(half) is not None
        session = box.session(seed=1, clock=CLOCK, async_names=TOOLS, sync_names=ENDS, resident=kept(half),
                              imports="import asyncio, datetime\nfrom decimal import Decimal")  # fmt: skip
        turn = await session.feed(kept(half).call, inputs={"n": 1})
        assert isinstance(turn, Waiting) and turn.calls[0].name == "submit"
        await anyio.to_thread.run_sync(session._leave)
        again = box.session(seed=1, clock=CLOCK, async_names=TOOLS, sync_names=ENDS, resident=kept(half))
        again._check_out()
        assert again._driver.kept is None
        await again.aclose()

    run(work)


def test_a_guest_that_died_while_nobody_used_it_is_replaced() -> None:
    async def work(box: Sandbox) -> None:
        source = "import re\nprint('once')\nsubmit(bool(re.search('a', str(n))))"
        first = await ran(box, source, n=1)
        os.kill(first.worker, signal.SIGKILL)
        then = await ran(box, source, n=1)
        assert then[:2] == first[:2] == ((False,), "once\n") and then.worker != first.worker
        assert (await ran(box, source, n=2)).before == 1

    run(work)


def test_limits_hold_for_a_guest_that_stays() -> None:
    limits = SandboxLimits(memory_bytes=16 * 2**20, feed_s=1.0, suspensions=6, recursion=40, print_bytes=100)

    async def work(box: Sandbox) -> None:
        ways = {
            "memory": "x = []\nwhile n > 1:\n    x.append('a' * 100_000)\nsubmit(len(x))",
            "time": "while n > 1:\n    pass\nsubmit(0)",
            "calls": "for i in range(2 + 9 * (n > 1)):\n    await look(i)\nsubmit(0)",
            "depth": "def down(k):\n    return 0 if k == 0 else down(k - 1)\nsubmit(down(2 + 60 * (n > 1)))",
        }
        for way, source in ways.items():
            fine = [await ran(box, source, limits=limits, n=1) for _ in range(2)]
            assert fine[0].said == (0,) and fine[1].before == 1, way
            over = await ran(box, source, limits=limits, n=2)
            fresh = await ran(box, source, stay=False, limits=limits, n=2)
            # Short of memory it is given up: a guest of its own says what is so.
            assert over.said == fresh.said or (way, over.said[0], fresh.said[0]) == ("memory", "SandboxCrash", "MemoryError")
            assert over.before == 2, way
            again = await ran(box, source, limits=limits, n=1)
            assert again.said == (0,) and again.before == 0, way
        prints = "print('x' * 60 * n)\nsubmit(0)"
        printed = [(await ran(box, prints, limits=limits, n=n)).printed for n in (1, 2, 1)]
        assert [len(text) for text in printed] == [61, 100, 61]

    run(work)


def test_every_run_finds_the_memory_that_it_is_promised() -> None:
    """Cycles are not collected by the interpreter at once; a guest that they fill does not stay."""
    limits = SandboxLimits(memory_bytes=8 * 2**20)
    source = "x = [[i] for i in range(20_000)]\nx.append(x)\nsubmit(len(x))"

    async def work(box: Sandbox) -> None:
        seen = [await ran(box, source, limits=limits, n=1) for _ in range(40)]
        assert {one.said for one in seen} == {(20_001,)}
        assert 1 < [one.before for one in seen].count(0) < 40

    run(work)


def test_a_run_has_no_more_memory_than_it_is_given_either() -> None:
    """Whatever earlier runs left or freed: what a guest does not keep is filled."""
    limits = SandboxLimits(memory_bytes=16 * 2**20)
    source = "if n:\n    x = [[i] for i in range(20_000)]\n    x.append(x)\ny = 'a' * (size * 2**20)\nsubmit(len(y))"

    async def work(box: Sandbox) -> None:
        for n, size, fits in [(0, 15, True), (1, 8, True), (0, 17, False), (0, 15, True), (1, 8, True), (0, 15, True), (0, 17, False)]:
            for stay in (False, True):
                done = await ran(box, source, stay=stay, limits=limits, n=n, size=size)
                assert (done.said == (size * 2**20,)) is fits, (n, size, stay, done)

    run(work)


def test_guests_that_stay_leave_their_workers_to_whoever_needs_one() -> None:
    async def work(box: Sandbox) -> None:
        one, other = "submit(n)", "submit(n + 1)"
        assert (await ran(box, one, n=1)).said == (1,)
        assert (await ran(box, other, n=1)).said == (2,)
        assert (await ran(box, one, n=3)).said == (3,)
        said: dict[int, Any] = {}

        async def note(n: int) -> None:
            said[n] = (await ran(box, one if n % 2 else other, n=n)).said

        async with anyio.create_task_group() as group:
            for n in range(12):
                group.start_soon(note, n)
        assert said == {n: (n if n % 2 else n + 1,) for n in range(12)}

    run(work, max_workers=1)
    run(work, max_workers=2)


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.sampled_from([r"(\w)(b)?", "[", "(?i)AB", "a|b", r"^x$", r"\bx\b", "", r"\d{2,}", "x*"]) | st.text("ab\\w.[]()*+?^$", max_size=6),
    text=st.text("abxAB 1é\n", max_size=12), flags=st.sampled_from(["0", "re.I", "re.M", "re.I | re.S", "None"]),
)  # fmt: skip
def test_kept_patterns_answer_as_the_module_does(pattern: str, text: str, flags: str) -> None:
    show = "def show(m):\n    return m if m is None else (m.group(0), m.start(), m.groups())\n"
    asks = [f"re.{name}(p, t, flags={flags})" for name in ("search", "match", "fullmatch")]
    asks = [f"show({ask})" for ask in asks] + [
        f"[show(m) for m in re.finditer(p, t, {flags})]", f"re.findall(p, t, {flags})", f"re.split(p, t, 1, {flags})",
        f"re.sub(p, '<>', t, flags={flags})", f"re.compile(p, {flags}).findall(t)", "re.search(re.compile(p), t) is None", "re.search(p, None)",
    ]  # fmt: skip
    parts = [f"try:\n    out.append({ask})\nexcept Exception as exc:\n    out.append(str(exc))" for ask in asks]
    source = "import re\nout = []\n" + show + "\n".join(parts) + "\nsubmit(out)"

    async def work() -> None:
        stayed = [await ran(_box(), source, p=pattern, t=text) for _ in range(2)]
        assert stayed[0].said == stayed[1].said == (await ran(_box(), source, stay=False, p=pattern, t=text)).said

    anyio.run(work)


def _box() -> Sandbox:
    return sandbox.pool()


# --- through a program


class Code(dse.Signature):
    """The number behind the letters."""

    text: str = dse.InputField()
    number: int = dse.OutputField()


SCRIPT = "import re\nm = re.search(r'[a-z]+-(\\d+)', text)\nif text == 'wrong':\n    m = {}['x']\nsubmit(number=int(m.group(1)))"


def patterns_kept(program: dse.Program) -> list[int]:
    """How many patterns each guest that waits for the next run of a program's script has compiled."""
    spec = program.signature.spec()
    lint = sandbox.lint(program.plan.script or "", tool_names={"abstain", *spec.tool_names}, output_names=spec.outputs,
                        known_names={*spec.inputs, "asyncio", "datetime", "Decimal"})  # fmt: skip
    found = sandbox.resident(lint, tuple(spec.inputs), frozenset({"submit", "abstain", *spec.tool_names}))
    kept = [one.guest for (kind, *_), guests in sandbox.pool()._workers._kept.items() if kind == found for one in guests]
    return [guest.feed_run("len(dse_x_patterns_kept)") for guest in kept]


def test_a_program_keeps_its_guest_and_compiles_its_patterns_once() -> None:
    source = "import re\npatterns = [f'{k}[a-z]' for k in range(20)]\nsubmit(number=sum(bool(re.search(p, text)) for p in patterns))"
    program = dse.Program(Code, script_plan(Code.spec(), source))
    for text, number in [("3a", 1), ("3a", 1), ("none", 0), ("1a2b", 2)] * 3:
        assert program(text=text).number == number
        wait_for(lambda: set(patterns_kept(program)) == {20})


def wait_for(met: Any) -> None:
    """Guests are given back by a thread: bounded, and no figure of speed."""
    deadline = time.monotonic() + 30
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Clash(dse.Signature):
    """Count the letters."""

    len: int = dse.InputField()
    id: str = dse.InputField()
    number: int = dse.OutputField()


def test_inputs_may_be_called_as_builtins_are() -> None:
    source = "import re\nx = re.findall('[a-z]', id)\nn = 0\nfor _ in x:\n    n += len\nsubmit(number=n)"
    program = dse.Program(Clash, script_plan(Clash.spec(), source))
    assert [program(len=k, id=text).number for k, text in [(2, "ab"), (3, "a-b-c"), (2, "")]] == [4, 9, 0]
    wait_for(lambda: patterns_kept(program))


def test_a_guest_whose_patterns_take_its_memory_gives_way_to_one_of_its_own(tmp_path: Path) -> None:
    """Compiled anew each time, they need hardly any; the run goes on by itself, and the script is soon left alone."""
    source = "import re\nprint('begun')\nb = await pay(n)\nfound = [bool(re.search(f'[\\\\w ]{{0,24}}{i}x{n}', 'a')) for i in range(60)]\nsubmit(text=str(sum(found)))"
    limits, store = dse.Limits(memory_bytes=8 * 2**20, interpreter_s=60.0), dse.Store(tmp_path / "runs.db")
    program = dse.Program(Paid, script_plan(Paid.spec(), source, limits=limits), store=store, approve=lambda _: True)
    given_up = []
    for n in range(5):
        done = program(n=n)
        assert done.text == "0" and done.receipt["usage"]["tool_calls"] == 1
        given_up.append(any(entry["kind"] == "resumed" for entry in store.journal(done.receipt["run_id"]).entries))
    assert given_up == [True, True, True, False, False]


def test_a_program_answers_and_fails_the_same_every_time() -> None:
    program = dse.Program(Code, script_plan(Code.spec(), SCRIPT))
    for _ in range(3):
        assert [program(text=f"ab-{i}").number for i in range(3)] == [0, 1, 2]
        with pytest.raises(ScriptFailed, match="line 4: KeyError: x"):
            program(text="wrong")


def test_a_run_that_is_kept_goes_on_in_another_guest(tmp_path: Path) -> None:
    store = dse.Store(tmp_path / "runs.db")
    program = dse.Program(Code, script_plan(Code.spec(), SCRIPT), store=store)
    done = program(text="ab-7").receipt["run_id"]
    assert program.replay(done).number == 7
    program(text="ab-8")
    assert program.replay(done).number == 7


@dse.tool(effect="write", approval="always")
def pay(n: int) -> int:
    """Pay."""
    return n


class Paid(dse.Signature):
    """Pay it."""

    n: int = dse.InputField()
    text: str = dse.OutputField()
    tools = [pay]


@pytest.mark.parametrize("snapshots", [True, False])
def test_a_script_that_waited_for_a_decision_goes_on_and_fails_as_it_would_have(tmp_path: Path, snapshots: bool) -> None:
    store = dse.Store(tmp_path / "runs.db")
    source = "import re\nif n > 90:\n    z = '1'\nb = await pay(n)\nif n == 2:\n    submit(text=str(re.findall('[0-9]', f'{b}')))\nsubmit(text=z)"
    program = dse.Program(Paid, script_plan(Paid.spec(), source), store=store)

    def suspended(n: int) -> str:
        with pytest.raises(RunSuspended) as caught:
            program(n=n)
        run_id = str(caught.value.details["run_id"])
        (one,) = [one for one in store.pending() if one["run_id"] == run_id]
        store.approve(run_id, one["call_id"], arguments_hash=one["arguments_hash"], by="test")
        return run_id

    fine, wrong = suspended(2), suspended(3)
    assert program.resume(fine, snapshots=snapshots).text == "['2']"
    with pytest.raises(ScriptFailed, match="line 7: NameError: name 'z' is not defined"):
        program.resume(wrong, snapshots=snapshots)
    assert program.replay(fine).text == "['2']"
    with pytest.raises(ScriptFailed, match="line 7: NameError"):
        program.replay(wrong)


def test_the_clock_of_a_run_is_its_own() -> None:
    async def work(box: Sandbox) -> None:
        source = "submit(str(datetime.datetime.now()))"
        lint = sandbox.lint(source, tool_names=TOOLS, known_names={"n", "datetime"})
        assert sandbox.resident(lint, ("n",), TOOLS | ENDS) is None
        said = [(await ran(box, source, stay=False, clock=CLOCK + timedelta(days=d), n=1)).said for d in (0, 1)]
        assert said[0] != said[1]

    run(work)


def test_a_limit_of_the_plan_ends_a_run_and_the_next_one_is_fine() -> None:
    source = "while text == 'on':\n    pass\nsubmit(number=1)"
    program = dse.Program(Code, script_plan(Code.spec(), source, limits=dse.Limits(interpreter_s=0.5, outcomes={"interpreter_s": "abort"})))
    assert program(text="off").number == 1
    with pytest.raises(LimitExceeded):
        program(text="on")
    assert program(text="off").number == 1
