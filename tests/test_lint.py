"""The lint: what is rewritten gives what Python gives; what cannot work gets an error with a hint."""

from __future__ import annotations

import ast
import asyncio
import inspect
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.runtime import sandbox
from dse.runtime.sandbox import Finished, Value, Waiting, extract_code, lint
from dse.runtime.sandbox.rewrite import neutral, rewrite
from dse.runtime.sandbox.shim_source import SOURCES
from dse.runtime.sandbox.shims import MODULES, PREFIX, provided, source_of

TOOLS = frozenset({"fetch", "search"})
CLOCK = datetime(2026, 3, 4, 12, tzinfo=UTC)


def guest(code: str) -> Any:
    """The value of the rewritten code in the interpreter; tools give back their first argument."""

    async def main() -> Any:
        session = await sandbox.pool().open(seed=1, clock=CLOCK, async_names=TOOLS)
        try:
            checked = lint(code, tool_names=TOOLS)
            assert checked.ok, checked.errors
            assert checked.code.count("\n") >= code.rstrip().count("\n")
            turn = await session.feed(checked.code, shims=checked.shims)
            calls: dict[int, Any] = {}
            while isinstance(turn, Waiting):
                calls |= {c.call_id: c for c in turn.calls}
                turn = await session.resume({i: Value(calls[i].args[0]) for i in turn.pending})
            assert isinstance(turn, Finished), (turn, checked.code)
            return turn.value
        finally:
            await session.aclose()

    return asyncio.run(main())


def python(code: str) -> Any:
    """The value of the code in Python itself: of the last expression, or of the last assignment."""
    tree = ast.parse(code)
    last = tree.body[-1]
    if isinstance(last, ast.Expr):
        tree.body[-1] = ast.copy_location(ast.Assign([ast.Name("dse_value", ast.Store())], last.value), last)
        target = "dse_value"
    else:
        assert isinstance(last, ast.Assign)
        target = ast.unparse(last.targets[0])
    space: dict[str, Any] = {"__name__": "__main__"}

    async def main() -> None:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        made = eval(compile(ast.fix_missing_locations(tree), "code", "exec", flags=flags), space)
        if inspect.iscoroutine(made):
            await made

    asyncio.run(main())
    return eval(target, space)


SAME = [
    "x = 5",
    "a, b = 1, 'z'",
    "x = y = [1]",
    "d = {'a': 1, 'b': 3}\nmax(d, key=d.get)",
    "d = {'a': 1, 'b': 3}\nsorted(d, key=d.get, reverse=True)",
    "m = {}\nm['é'] = 2; x = max(m, key=m.get)  # ümläut, (comment",
    "sorted(['B', 'a'], key=str.lower)",
    "words = ['B', 'a']\nwords.sort(key=str.lower)\nwords",
    "list(map(str.strip, [' a ', 'b ']))",
    "list(map(int, ['1', '2']))",
    "list(map(lambda a, b: a + b, [1, 2], [3, 4]))",
    "list(map(\n    lambda x: x + 1,  # a, b (c\n    [1, 2],\n))",
    "list(map(lambda x: list(map(lambda y: x * y, [1, 2])), [3, 4]))",
    "list(filter(lambda x: x > 1, [1, 2, 3]))",
    "list(map(int, filter(str.isdigit, ['1', 'a', '2'])))",
    "list(filter(None, [0, 1, '', 'a']))",
    "sum(map(lambda r: r['a'], [{'a': 1}, {'a': 2}]))",
    "next(x for x in [1, 2, 3] if x > 1)",
    "next((x for x in [1] if x > 1), None)",
    "next((x for x in [1] if x > 1), 'none')",
    "next(iter({'k': 1}))",
    "next(filter(lambda x: x > 1, [1, 2, 3]))",
    "g = (x * 2 for x in [1, 2])\na = next(g)\nb = next(g)\n(a, b)",
    "e = enumerate('ab')\nnext(e)",
    "d = {1: 2, 3: 4}\ndel d[1]\nd",
    "l = [1, 2, 3]\ndel l[0]\nl",
    "l = [1, 2, 3, 4]\ndel l[1:3], l[-1]\nl",
    "def f():\n    x = 1\n    d = {'a': [1, 2]}\n    if x: del x, d['a'][0]\n    return d\nf()",
    "import statistics\nxs = [2, 4, 4, 5, 9]\n[statistics.mean(xs), statistics.median(xs), statistics.mode(xs), statistics.pstdev([1, 3])]",
    "import statistics as st\n[st.fmean([1, 2]), st.mean([1, 2]), st.median_low([1, 2]), st.median_high([1, 2]), st.multimode('aabb')]",
    "from statistics import mean, stdev as sd, quantiles\n(mean([1.5, 2.5]), round(sd([1, 2, 4]), 12), quantiles([1, 2, 3, 4, 5], n=4))",
    "import statistics\nstatistics.quantiles([1, 5, 2, 8], n=10, method='inclusive')",
    "import statistics\ntry:\n    statistics.mean([])\nexcept statistics.StatisticsError as e:\n    r = str(e)\nr",
    "import statistics\nround(statistics.correlation([1, 2, 3], [1, 3, 2]), 12), statistics.variance([1, 2, 4.5])",
    "import json, statistics\njson.dumps(statistics.median([1, 2]))",
    "import heapq\nh = []\nfor x in [5, 1, 4, 1, 3]: heapq.heappush(h, x)\n[heapq.heappop(h) for _ in range(5)]",
    "import heapq\nh = [5, 2, 9, 1]\nheapq.heapify(h)\n[heapq.heappushpop(h, 0), heapq.heapreplace(h, 7), sorted(h)]",
    "from heapq import nlargest, nsmallest\nnlargest(2, [1, 5, 3]), nsmallest(2, ['bb', 'a'], key=len)",
    "from operator import itemgetter, attrgetter\nsorted([{'a': 2, 'b': 1}, {'a': 1, 'b': 5}], key=itemgetter('a', 'b'))",
    "import operator, functools\nfunctools.reduce(operator.mul, [1, 2, 3, 4])",
    "import string\n'a-b!'.translate(str.maketrans('', '', string.punctuation)), string.ascii_letters[:3]",
    "'abc'.translate(str.maketrans('ab', 'xy')), 'abc'.translate({98: None, 99: 'Z'})",
    "import calendar\n[calendar.monthrange(2024, 2), calendar.isleap(1900), calendar.month_name[3], calendar.day_abbr[0]]",
    "import textwrap\n[textwrap.dedent('  a\\n    b\\n'), textwrap.indent('a\\nb', '> '), textwrap.shorten('hello big world', 12)]",
    "from contextlib import suppress\nwith suppress(KeyError, ValueError):\n    {}['a']\n5",
    "from collections import OrderedDict, Counter\nOrderedDict([(1, 2)]), Counter('aab').most_common(1)",
    "from collections.abc import Iterable, Mapping\nisinstance({}, Mapping), isinstance([], Iterable), isinstance(5, Iterable)",
    "from typing import Any, TypedDict, cast, Awaitable\nclass R(TypedDict):\n    '''doc'''\n    a: int\n    b: str\n\nr: R = {'a': 1, 'b': 'x'}\ncast(int, r['a'])",
    "import typing as t\nclass R(t.TypedDict, total=False):\n    a: int\nR(a=1)",
    "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: int = 5\np = P(1)\n(p.x, p.y, p[1])",
    "from typing import List, Optional, NewType\nU = NewType('U', int)\ndef f(x: Optional[int] = None) -> List[int]:\n    return [x or 0]\nf(U(3))",
    "from dataclasses import dataclass, asdict, replace, field\n@dataclass(slots=True)\nclass A:\n    x: int\n    y: list = field(default_factory=list)\nasdict(replace(A(1), x=2))",
    "class A(object):\n    def f(self): return 1\nA().f()",
    "import re\nre.sub(r'\\d', lambda m: str(int(m.group()) * 2), 'a1b2')",
    "import re\ndef up(m): return m[0].upper()\nre.sub('[ab]', up, 'abcab', count=2)",
    "import re\np = re.compile(r'(\\w)(\\d)')\np.sub(lambda m: m.group(2) + m.group(1), 'a1 b2')",
    "import json, datetime\njson.dumps({'a': [datetime.date(2026, 1, 1)], 'b': (1, None)}, default=str, sort_keys=True)",
    "from datetime import date\n[tuple(date(y, m, d).isocalendar()) for y, m, d in [(2026, 1, 1), (2021, 1, 3), (2024, 12, 30), (2026, 7, 15)]]",
    "from datetime import date, datetime\ndate(2026, 1, 5).isocalendar()[1], date(2026, 1, 5).toordinal(), datetime(2026, 1, 5, 3).isocalendar().week",
    "import datetime\ndatetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).utcoffset()",
    "from datetime import datetime, UTC\ndatetime(2026, 1, 1, tzinfo=UTC).isoformat()",
    "(2.0).is_integer(), 2.5.is_integer(), (1 + 6).bit_length(), (0).bit_length(), '{a}'.format_map({'a': 1})",
    "s = {1, 2, 3}\ns.difference_update([1], {2})\ns.symmetric_difference_update({3, 4})\nsorted(s)",
    "stack = []\npush = stack.append\npush(1)\npush(2)\nstack",
    "low = str.lower\nlow('ABC'), str.upper('abc'), str.join('-', ['a', 'b']), dict.fromkeys([1, 2])",
    "sorted([3, 1], key=[1, 2, 3].index)",
    "callable(len), callable(lambda: 1), callable(5), callable(int)",
    "try:\n    raise OSError('x')\nexcept (ConnectionError, IOError) as e:\n    r = str(e)\nr",
    "from functools import wraps, lru_cache\ndef deco(f):\n    @wraps(f)\n    def g(*a): return f(*a) + 1\n    return g\n@deco\ndef h(): return 3\nh()",
    "from __future__ import annotations\nimport math\nmath.floor(2.5)",
    "from os import path\nimport collections.abc\nr = 5",
    "f'{1:>3}' + f\"{'a'!r}\" + '\\\\d'",
    "x = [1, 2]\nx[0] = 5\ny = x",
    "async def main():\n    return 5\nawait main()",
    "import asyncio\nasync def w(i): return i * 2\nts = [asyncio.create_task(w(i)) for i in range(3)]\nawait asyncio.gather(*ts)",
    "import asyncio\nfrom asyncio import gather, create_task\nasync def w(i): return i\nawait gather(create_task(w(1)), w(2))",
    "import asyncio\nasync def w(i):\n    if i == 1: raise ValueError('x')\n    return i\n[str(r) for r in await asyncio.gather(*[w(i) for i in range(3)], return_exceptions=True)]",
    "import asyncio\nsem = asyncio.Semaphore(2)\nasync def w(i):\n    async with sem:\n        return i\nawait asyncio.gather(*(w(i) for i in range(3)))",
    "import asyncio\nasync def w(sem, i):\n    async with sem, asyncio.timeout(5):\n        return i\nawait w(asyncio.Semaphore(2), 4)",
    "import asyncio as aio\nasync def w(): return 1\nr = []\nfor c in aio.as_completed([w(), w()]):\n    r.append(await c)\nr",
    "import asyncio\nasync def w(): return 1\n(await asyncio.wait_for(w(), timeout=1), await asyncio.to_thread(len, 'abc'), await asyncio.shield(w()))",
    "import asyncio\ntry:\n    raise TimeoutError('late')\nexcept asyncio.TimeoutError as e:\n    r = str(e)\nr",
]  # fmt: skip


@pytest.mark.parametrize("code", SAME)
def test_rewritten_code_gives_what_python_gives(code: str) -> None:
    assert guest(code) == python(code)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("async def main():\n    return 5\nasyncio.run(main())", 5),
        ("async def main():\n    return 5\nif __name__ == '__main__':\n    asyncio.run(main())", 5),
        ("async def main():\n    return 5\nif '__main__' == __name__:\n    print('x')\n    result = asyncio.run(main())\n", 5),
        ("x = 5\nif __name__ == '__main__':\n    print(x)\n", None),
        ("x = 1\ndel x", None),
        ("x = 1  # the end\n# really\n\n", 1),
        ("x = 1\nx += 2", 3),
        ("x: int = 4", 4),
        ("x: int", None),
        ("for i in range(3): pass", None),
        ("return 7", 7),
        ("json.dumps({'a': math.floor(1.5)})", '{"a": 1}'),
        ("Counter('aab').most_common(1) + [timedelta(days=1).days]", [("a", 2), 1]),
        ("@dataclass\nclass P:\n    x: int = 3\nP().x", 3),
        ("statistics.mean([1, 3]) + len(string.digits)", 12),
        ("datetime.datetime.now().year", 2026),
        ("from datetime import datetime\ndatetime.utcnow().isoformat()", "2026-03-04T12:00:00"),
        ("await asyncio.gather(*map(fetch, [1, 2]))", [1, 2]),
        ("await asyncio.gather(*map(lambda x: fetch(x + 1), [1, 2]))", [2, 3]),
        ("import statistics\nlist(map(statistics.mean, [[1, 3], [5]]))", [2, 5]),
        ("async def one(x): return await fetch(x)\nawait asyncio.gather(*map(one, [1, 2]), return_exceptions=True)", [1, 2]),
        ("try:\n    import numpy\nexcept ImportError:\n    numpy = None\nnumpy is None", True),
    ],
)  # fmt: skip
def test_what_only_the_sandbox_does(code: str, value: Any) -> None:
    assert guest(code) == value


def test_shims_never_touch_names_of_the_guest() -> None:
    """Every shim loaded after a guest that uses the same names as the modules the shims need."""
    code = "math = re = json = datetime = asyncio = collections = heapq = 5"

    async def main() -> None:
        session = await sandbox.pool().open(seed=1, clock=CLOCK)
        await session.feed(code)
        before = "[math, re, json, datetime, asyncio, collections, heapq]"
        turn = await session.feed(before, shims=[PREFIX + name for name in SOURCES])
        assert isinstance(turn, Finished) and turn.value == [5] * 7, turn
        await session.aclose()

    asyncio.run(main())


def test_imports_are_added_only_where_the_name_is_free() -> None:
    assert lint("json.dumps(1)", tool_names=[]).shims == ("json",)
    assert lint("json.dumps(1)", tool_names=[], known_names=["json"]).shims == ()
    assert lint("json.dumps(1)", tool_names=["json"]).shims == ()
    assert lint("def f(json): return json.dumps(1)", tool_names=[]).shims == ()
    assert lint("import json\njson.dumps(1)", tool_names=[]).shims == ()
    assert lint("json.rows", tool_names=[]).shims == ()
    assert lint("statistics.mean(x)", tool_names=[], known_names=["statistics"]).code == "statistics.mean(x)"


def test_code_that_needs_nothing_stays_as_it_is() -> None:
    code = 'rows = [r for r in await search("a")]\nfor r in rows:\n    print(f"{r[\'x\']:>5}")  # ünïcode\nsum(r["n"] for r in rows)\n'
    assert lint(code, tool_names=TOOLS) == sandbox.LintResult(code)


# --- errors


@pytest.mark.parametrize(
    ("code", "line", "rule", "words"),
    [
        ("class A: pass\nclass B(A): pass", 2, "unsupported", ["inheritance", "plain class"]),
        ("class E(Exception): pass", 1, "unsupported", ["ValueError"]),
        ("class NotFoundError(AppError): pass", 1, "unsupported", ["ValueError"]),
        ("from enum import Enum", 1, "module", ["string constants"]),
        ("class C(str, Enum):\n    A = 'a'", 1, "unsupported", ["inheritance"]),
        ("class C(Enum):\n    A = 'a'", 1, "unsupported", ["string constants"]),
        ("class P(NamedTuple):\n    x: int\n    def f(self): return 1", 1, "unsupported", ["only declare fields"]),
        ("class M(BaseModel):\n    x: int", 1, "unsupported", ["dataclass"]),
        ("class A:\n    class B: pass", 2, "unsupported", ["nested"]),
        ("class A:\n    @property\n    def f(self): return 1", 2, "unsupported", ["@property", "method and call it"]),
        ("class A:\n    @staticmethod\n    def f(): return 1", 2, "unsupported", ["outside"]),
        ("from dataclasses import dataclass\n@dataclass(order=True)\nclass A:\n    x: int", 2, "unsupported", ["sort by a key"]),
        ("def g():\n    yield 1", 2, "unsupported", ["append to a list"]),
        ("def g():\n    yield from [1]", 2, "unsupported", ["append to a list"]),
        ("async def f():\n    async for x in y: pass", 2, "unsupported", ["for x in await"]),
        ("[x async for x in y]", 1, "unsupported", ["async for"]),
        ("async def f():\n    async with client: pass", 2, "unsupported", ["async with"]),
        ("async def f():\n    async with asyncio.TaskGroup() as tg:\n        tg.create_task(g())", 2, "unsupported", ["TaskGroup", "gather"]),
        ("await asyncio.wait([])", 1, "unsupported", ["gather"]),
        ("from asyncio import Queue", 1, "unsupported", ["Queue"]),
        ("lock = asyncio.Lock()", 1, "unsupported", ["Lock", "leave it out"]),
        ("asyncio.get_event_loop().run_until_complete(f())", 1, "unsupported", ["asyncio.run"]),
        ("t = asyncio.create_task(fetch(1))\nawait t\nt.result()", 3, "unsupported", ["gather"]),
        ("try:\n    pass\nexcept* ValueError:\n    pass", 1, "unsupported", ["except"]),
        ("del a.b", 1, "unsupported", ["None"]),
        ("del a[::2]", 1, "unsupported", ["new list"]),
        ("import numpy as np", 1, "module", ["numpy", "statistics"]),
        ("x = 1\nimport requests", 2, "module", ["only the given tools"]),
        ("from concurrent.futures import ThreadPoolExecutor", 1, "module", ["gather"]),
        ("import fetch", 1, "module", ["call them directly"]),
        ("from math import *", 1, "unsupported", ["names"]),
        ("from .x import y", 1, "unsupported", ["relative"]),
        ("from functools import cmp_to_key", 1, "unsupported", ["key"]),
        ("open('f')", 1, "unavailable", ["no files"]),
        ("x = input()", 1, "unavailable", ["inputs"]),
        ("eval('1')", 1, "unavailable", ["expression itself"]),
        ("f = exec", 1, "unavailable", ["statements"]),
        ("__import__('os')", 1, "unavailable", ["import statement"]),
        ("import sys\nsys.exit(0)", 2, "unsupported", ["run to its end"]),
        ("raise SystemExit", 1, "unavailable", ["run to its end"]),
        ("().__class__.__bases__", 1, "dunder", ["__class__"]),
        ("def f(): pass\nf.__globals__", 2, "dunder", ["__globals__"]),
        ("raise ValueError('a', 1)", 1, "unsupported", ["one message"]),
        ("import json\njson.dumps({}, cls=X)", 2, "unsupported", ["default=str"]),
        ("fetch = 5", 1, "tool-rebound", ["fetch", "another name"]),
        ("def search(q): return 1", 1, "tool-rebound", ["search"]),
        ("for fetch in []: pass", 1, "tool-rebound", ["fetch"]),
        ("def f(submit): pass", 1, "tool-rebound", ["submit"]),
        ("import x.fetch as fetch", 1, "tool-rebound", ["fetch"]),
        ("from tools import fetch", 1, "tool-rebound", ["fetch"]),
        ("dse_x_json = 1", 1, "reserved", ["dse_"]),
        ("sorted(xs, key=lambda x: fetch(x))", 1, "tool-in-callback", ["sorted", "keep the results"]),
        ("max(xs, key=fetch)", 1, "tool-in-callback", ["max"]),
        ("def k(x):\n    return score(x)\ndef score(x):\n    return fetch(x)\nxs.sort(key=k)", 5, "tool-in-callback", ["sort"]),
        ("from collections import defaultdict\ndefaultdict(lambda: fetch(1))", 2, "tool-in-callback", ["defaultdict"]),
        ("   \n", 0, "empty", ["no code"]),
    ],
)  # fmt: skip
def test_errors_come_with_a_place_and_a_hint(code: str, line: int, rule: str, words: list[str]) -> None:
    found = lint(code, tool_names=TOOLS)
    assert not found.ok
    fitting = [d for d in found.errors if d.rule == rule]
    assert fitting, found.diagnostics
    text = " ".join(f"{d.message} {d.hint}" for d in fitting)
    assert fitting[0].line == line and all(word in text for word in words), fitting


def test_warnings() -> None:
    (eager,) = lint("any(fetch(x) for x in xs)", tool_names=TOOLS).diagnostics
    assert (eager.rule, eager.severity) == ("eager", "warning")
    (timeout,) = lint("await asyncio.wait_for(fetch(1), 5)", tool_names=TOOLS).diagnostics
    assert (timeout.rule, timeout.severity) == ("no-timeout", "warning")
    (forgotten,) = lint("a = 1\nb = 2", tool_names=TOOLS, output_names=["a", "b"]).diagnostics
    assert forgotten.rule == "not-submitted" and "submit(a=a, b=b)" in forgotten.hint and forgotten.severity == "warning"
    assert lint("a = 1\nb = 2\nsubmit(a=a, b=b)", tool_names=TOOLS, output_names=["a", "b"]).diagnostics == ()
    assert lint("reduce(lambda a, b: fetch(a), xs)", tool_names=TOOLS).ok  # runs in the guest


def test_what_the_host_cannot_parse_is_left_to_the_gate_check() -> None:
    newer = lint('f"{d["a"]}"\nx = 1', tool_names=TOOLS)
    assert newer.ok and newer.diagnostics[0].rule == "syntax" and newer.diagnostics[0].severity == "warning"
    assert lint("def (:", tool_names=TOOLS).diagnostics[0].line == 1


def test_columns_count_characters() -> None:
    (found,) = lint("ä = 'ü'; eval('1')", tool_names=TOOLS).diagnostics
    assert (found.line, found.col) == (1, 10)
    assert str(found) == "line 1: `eval` is not available here (write the expression itself) [unavailable]"


# --- properties of rewriting


@given(st.sampled_from(SAME), st.sampled_from(SAME))
def test_lines_stay_where_they_are(one: str, two: str) -> None:
    for text in (rewrite(f"{one}\nmarker_name\n{two}").run, rewrite(f"{one}\nmarker_name\n{two}").check):
        assert text.split("\n")[one.count("\n") + 1] == "marker_name"


@given(st.text(alphabet="abd([{}])\n =:.,'\"#lmxf \\", max_size=60))
def test_any_text_can_be_linted(text: str) -> None:
    found = lint(text, tool_names=TOOLS)
    assert isinstance(found.code, str)
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return
    ast.parse(found.code)  # what parsed before parses afterwards


def test_neutral_code_runs_to_its_end() -> None:
    assert neutral("x = 1\nif x:\n    raise ValueError(\n        'a')\nreturn x\ndef f():\n    return 2") == (
        "x = 1\nif x:\n    pass\n\npass\ndef f():\n    return 2"
    )


def test_shims_are_what_they_say() -> None:
    for name in MODULES:
        assert provided(name) and source_of(PREFIX + name) == SOURCES[name]
    assert {"mean", "median", "fmean", "stdev", "pstdev", "variance", "mode", "quantiles"} <= provided("statistics")
    with pytest.raises(ValueError, match="no such shim"):
        source_of("os")


# --- answers of models


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("\n\n  \nx = 1\n\n", "  \nx = 1"),
        ("Here:\n```python\nx = 1\ny = 2\n```\nDone.", "x = 1\ny = 2"),
        ("```py\r\nx = 1\r\n```", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```json\n{}\n```\n```python\nx = 1\n```\n```\noutput\n```", "x = 1"),
        ("```python\nx = 1\n```\nor better\n```python\nx = 2\n```", "x = 2"),
        ("```python\nx = 1\n```\n```python\n\n```", "x = 1"),
        ("```python\nx = 1\nprint(x)", "x = 1\nprint(x)"),
        ("1. Do:\n   ```python\n   if x:\n       y = 1\n   ```", "if x:\n    y = 1"),
        ("~~~python\nx = '```'\n~~~", "x = '```'"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("", ""),
    ],
)  # fmt: skip
def test_extract_code(text: str, code: str) -> None:
    assert extract_code(text) == code
