"""The checker: what is wrong is found before anything runs, and sound code is not turned away."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

import pytest

from dse.errors import ContractError, SandboxUnavailable
from dse.runtime import sandbox
from dse.runtime.sandbox import PRELUDE, Checker, Diagnostic, Finished, Raise, Value, Waiting, lint
from dse.runtime.sandbox.verdict import fits

STUBS = """
from typing import Any, Literal, NoReturn, NotRequired, TypedDict

class Person(TypedDict):
    id: int
    name: str
    dept: NotRequired[str]

class Expense(TypedDict):
    id: int
    amount: float
    category: Literal["travel", "food"]
    date: str

class OverBudget(TypedDict):
    name: str
    spent: float

async def get_team(dept: str) -> list[Person]:
    \"\"\"People of a department.\"\"\"
    ...

async def get_expenses(user_id: int, quarter: Literal["Q1", "Q2", "Q3", "Q4"], category: Literal["travel", "food"] | None = None) -> list[Expense]: ...
async def find_person(name: str) -> Person | None: ...
def submit(*, over_budget: list[OverBudget], total: float = 0.0) -> NoReturn: ...
"""
DECLARATIONS = "question: str\nlimit: float"
TOOLS = frozenset({"get_team", "get_expenses", "find_person"})


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def check(code: str, **more: Any) -> list[Diagnostic]:
    return run(sandbox.checker().check(**{"stubs": STUBS, "declarations": DECLARATIONS, "code": code, **more}))


def errors(code: str, **more: Any) -> list[Diagnostic]:
    return [d for d in check(code, **more) if d.severity == "error"]


# Scripts as models write them, with the containers, unions and untyped helpers that make checkers doubt.
SOUND = r"""
team = await get_team("eng")
all_expenses = await asyncio.gather(*[get_expenses(p["id"], "Q1") for p in team])
over = []
for person, items in zip(team, all_expenses):
    spent = sum(e["amount"] for e in items if e["category"] == "travel")
    if spent > limit:
        over.append({"name": person["name"], "spent": spent})
submit(over_budget=over)
---
over: list[OverBudget] = []
team = await get_team("eng")
for p in team:
    es = await get_expenses(p["id"], "Q2", category="travel")
    s = sum(map(lambda e: e["amount"], es))
    if s > 5:
        over.append({"name": p["name"], "spent": s})
submit(over_budget=over, total=len(over))
---
async def spent(p):
    es = await get_expenses(p["id"], "Q1")
    return p["name"], sum(e["amount"] for e in es)
results = await asyncio.gather(*map(spent, await get_team("eng")))
rows = [{"name": n, "spent": s} for n, s in results if s > limit]
submit(over_budget=rows)
---
quarters = ["Q1", "Q2"]
team = await get_team("eng")
for q in quarters:
    for p in team:
        es = await get_expenses(p["id"], q)
        print(p["name"], len(es))
---
p = await find_person("Ann")
if p is None:
    raise ValueError("nobody")
es = await get_expenses(p["id"], "Q1")
len(es)
---
p = await find_person("Ann")
es = await get_expenses(p["id"], "Q1")
len(es)
---
totals = {}
for p in await get_team("eng"):
    for e in await get_expenses(p["id"], "Q1"):
        totals[p["name"]] = totals.get(p["name"], 0) + e["amount"]
top = max(totals, key=totals.get)
best = max(totals.items(), key=lambda kv: kv[1])[0]
submit(over_budget=[{"name": top, "spent": totals[top]}])
---
from collections import defaultdict
by = defaultdict(list)
for p in await get_team("eng"):
    by[p.get("dept", "none")].append(p)
stats = {k: {"n": len(v), "names": sorted(x["name"] for x in v)} for k, v in by.items()}
for k, v in stats.items():
    v["n"] += 1
    print(k, ", ".join(v["names"]))
---
row = {"name": "a", "spent": 0.0, "tags": []}
row["spent"] += 5
row["tags"].append("x")
row["name"].upper()
submit(over_budget=[row])
---
best = None
for p in await get_team("eng"):
    if best is None or p["id"] > best["id"]:
        best = p
print(best["name"])
---
import json
data = json.loads('{"a": [1, 2]}')
data["a"][0] + 1
d = {}
d["x"] = 1
d["y"] = "s"
d["z"] = [1]
d["z"].append(2)
---
import re
m = re.search(r"(\d+)", question)
n = int(m.group(1))
words = re.findall(r"\w+", question.lower())
n + len(words)
---
import re
m = re.search(r"(\d+)", question)
n = int(m.group(1)) if m else 0
n
---
from datetime import datetime, timedelta
ds = [datetime.strptime(e["date"], "%Y-%m-%d") for e in await get_expenses(1, "Q1")]
late = [d for d in ds if d > datetime.now() - timedelta(days=30)]
(max(ds) - min(ds)).days if ds else None
---
def total(items, key="amount"):
    return sum(i[key] for i in items)
total(await get_expenses(1, "Q1"))
---
from dataclasses import dataclass, field
@dataclass
class Stat:
    name: str
    total: float = 0
    items: list = field(default_factory=list)
st = Stat("a")
st.total += 5.5
st.items.append(1)
[s.name for s in sorted([st], key=lambda s: s.total, reverse=True)]
---
question = question.strip()
parts = question.split(",")
question = parts
len(question)
---
async def main():
    team = await get_team("eng")
    out = []
    for p in team:
        for e in await get_expenses(p["id"], "Q4"):
            if e["amount"] > 10 and e["category"] in ("travel", "food"):
                out.append((p["name"], e["amount"]))
    return out
if __name__ == "__main__":
    print(asyncio.run(main()))
---
res = await asyncio.gather(get_team("a"), get_expenses(1, "Q1"))
team, exps = res
team[0]["name"], exps[0]["amount"]
---
results = await asyncio.gather(*[find_person(n) for n in ["a", "b"]], return_exceptions=True)
good = [r for r in results if not isinstance(r, Exception)]
names = [g["name"] for g in good if g]
names
---
tasks = [asyncio.create_task(get_expenses(i, "Q1")) for i in range(3)]
done = await asyncio.gather(*tasks)
sum(e["amount"] for es in done for e in es)
---
sem = asyncio.Semaphore(5)
async def one(i):
    async with sem:
        return await get_expenses(i, "Q1")
rs = await asyncio.gather(*(one(i) for i in range(3)))
len(rs[0])
---
import statistics
xs = [e["amount"] for e in await get_expenses(1, "Q1")]
round(statistics.mean(xs), 2), statistics.median(xs), statistics.stdev(xs) if len(xs) > 1 else 0
---
counts = {}
for e in await get_expenses(1, "Q1"):
    counts.setdefault(e["category"], []).append(e["amount"])
{k: sum(v) for k, v in counts.items()}
---
acc = {"travel": 0, "food": 0}
for e in await get_expenses(1, "Q1"):
    acc[e["category"]] += e["amount"]
sorted(acc.items(), key=lambda kv: (-kv[1], kv[0]))[:1]
---
people = {p["id"]: p for p in await get_team("eng")}
x = people.get(3)
name = x["name"] if x else "?"
people.get(4)["name"]
---
try:
    r = await find_person("x")
    print(r["name"])
except (KeyError, TypeError, ValueError) as e:
    print("failed", e)
---
limit = float(limit)
q = "Q1" if limit > 3 else "Q2"
es = await get_expenses(1, q)
f"{sum(e['amount'] for e in es):,.2f}"
---
q = "Q" + str(1)
await get_expenses(1, q)
---
text = question
import math
val = None
for tok in text.split():
    try:
        val = float(tok)
    except ValueError:
        continue
print(val * 2)
---
users = await get_team("eng")
user_map = dict(map(lambda u: (u["id"], u["name"]), users))
ids = list(user_map.keys())
first = next((u for u in users if u["name"].startswith("A")), None)
if first:
    print(first["id"])
print(next(u for u in users)["name"])
---
def f(a: int = None, b: list = None) -> dict:
    b = b or []
    return {"a": a, "b": b}
f(1)["a"]
---
spent_by = {}
for p in await get_team("x"):
    spent_by[p["name"]] = {"spent": 0.0, "n": 0}
    for e in await get_expenses(p["id"], "Q3"):
        spent_by[p["name"]]["spent"] += e["amount"]
        spent_by[p["name"]]["n"] += 1
rank = sorted(spent_by.items(), key=lambda kv: kv[1]["spent"], reverse=True)
submit(over_budget=[{"name": n, "spent": round(v["spent"], 2)} for n, v in rank])
---
rows = []
for p in await get_team("x"):
    rows.append({"name": p["name"], "spent": 1.5, "id": p["id"]})
rows.sort(key=lambda r: r["spent"], reverse=True)
total = sum(r["spent"] for r in rows)
submit(over_budget=[{"name": r["name"], "spent": r["spent"]} for r in rows], total=total)
---
rows = [{"name": p["name"], "dept": p.get("dept")} for p in await get_team("x")]
rows = sorted(rows, key=lambda r: r["dept"])
groups = {}
for r in rows:
    groups[r["dept"]] = groups.get(r["dept"], 0) + 1
groups
---
value = (await get_team("x"))[0].get("dept")
value.upper()
---
x = [1, "a", None]
for v in x:
    if isinstance(v, str):
        print(v.upper())
y = [None] * 3
y[0] = 5
z = {"a": None}
z["a"] = 3
w = []
w += [1]
w[0] + 1
---
import itertools
for k, g in itertools.groupby(sorted(await get_expenses(1, "Q1"), key=lambda e: e["category"]), key=lambda e: e["category"]):
    print(k, sum(e["amount"] for e in g))
---
d = dict(a=1)
d["b"] = "x"
m = {**d, "c": []}
m["c"].append(1)
t = (1, "a")
n, s = t
s.upper(), n + 1
"""
SOUND_SCRIPTS = [text.strip("\n") for text in SOUND.split("\n---\n")]


@pytest.mark.parametrize("code", SOUND_SCRIPTS)
def test_sound_code_has_no_errors(code: str) -> None:
    assert errors(code) == []


def answer(call: Any) -> Any:
    people = [{"id": 1, "name": "Ann", "dept": "eng"}, {"id": 2, "name": "Bob", "dept": "eng"}]
    if call.name == "get_team":
        return Value(people)
    if call.name == "find_person":
        return Value(people[0])
    if call.name == "get_expenses":
        return Value([{"id": 9, "amount": 12.5, "category": "travel", "date": "2026-01-05"}])
    return Raise("RuntimeError", "submitted")


@pytest.mark.parametrize("code", SOUND_SCRIPTS)
def test_sound_code_runs(code: str) -> None:
    """The scripts above really run: finding no error in them is right."""

    async def main() -> None:
        session = await sandbox.pool().open(seed=1, clock=datetime(2026, 1, 1, tzinfo=UTC), async_names=TOOLS)
        try:
            found = lint(code, tool_names=TOOLS)
            assert found.ok, found.errors
            inputs = {"question": "Who, of 7 people, spent over 5", "limit": 5.0}
            turn = await session.feed(found.code, shims=found.shims, inputs=inputs)
            calls: dict[int, Any] = {}
            while isinstance(turn, Waiting):
                calls |= {c.call_id: c for c in turn.calls}
                turn = await session.resume({i: answer(calls[i]) for i in turn.pending})
            if not isinstance(turn, Finished):
                assert turn.error.message == "submitted" or turn.error.class_name in ("TypeError", "AttributeError"), turn
        finally:
            await session.aclose()

    run(main())


WRONG = r"""
team = get_team("eng")
team[0]
---
get_team("eng")
---
await get_team(5)
---
await get_team()
---
await get_team("a", "b")
---
await get_team(department="a")
---
await get_expenses(1, "Q5")
---
await get_expenses("1", "Q1")
---
(await get_team("a"))[0].name
---
(await get_team("a"))[0]["nam"]
---
for p in get_team("a"):
    print(p)
---
await nothing(1)
---
undefined + 1
---
submit(over_budget="x")
---
submit(over_budget=[{"nam": "a", "spent": 1}])
---
submit(over_budget=[{"name": "a", "spent": "1"}])
---
submit(rows=[])
---
submit()
---
submit(over_budget=["Ann"])
---
names = [p["name"] for p in await get_team("a")]
submit(over_budget=names)
---
submit(over_budget=[], total="x")
---
await submit(over_budget=[])
---
x = await len([1])
---
await asyncio.gather(get_team("a"), get_team(1))
---
r = await asyncio.gather(*[get_team(i) for i in range(3)])
---
import statistics
statistics.averge([1])
---
question.foo()
---
question + 1
---
(await get_expenses(1, "Q1"))["amount"]
---
len(5)
---
team = await get_team("eng")
team.filter(lambda p: True)
---
sum(e["amount"] for e in get_expenses(1, "Q1"))
---
async def f(p):
    es = get_expenses(p, "Q1")
    return sum(e["amount"] for e in es)
await f(1)
---
p = await find_person("a")
p.name
---
rows = [{"nam": "x"}]
submit(over_budget=rows)
"""


@pytest.mark.parametrize("code", [text.strip("\n") for text in WRONG.split("\n---\n")])
def test_wrong_code_is_found(code: str) -> None:
    found = errors(code)
    assert found and all(1 <= d.line <= code.count("\n") + 1 for d in found)


@pytest.mark.parametrize(
    ("code", "line", "rule", "words"),
    [
        ("x = 1\nteam = get_team('a')\nteam[0]", 3, "not-subscriptable", ["un-awaited list[Person]", "await"]),
        ("get_team('a')", 1, "unused-awaitable", ["await"]),
        ("(await get_team('a'))[0].name", 1, "unresolved-attribute", ['write ["name"]']),
        ("await get_tem('a')", 1, "unresolved-reference", ["did you mean `get_team`?"]),
        ("questoin.upper()", 1, "unresolved-reference", ["did you mean `question`?"]),
        ("import statistics\nstatistics.averge([1])", 2, "unresolved-attribute", ["`statistics` has no `averge`", "mean"]),
        ("await len([1])", 1, "invalid-await", ["leave out"]),
        ("(await get_team('a'))['name']", 1, "invalid-argument-type", ["cannot be indexed"]),
        ("x = 1\n\ndef (:", 3, "invalid-syntax", ["identifier"]),
        ("def f():\n    yield 1", 2, "unsupported", ["yield"]),
        ("submit(over_budget=[{'nam': 'a', 'spent': 1}])", 1, "invalid-key", ["did you mean"]),
    ],
)
def test_what_is_said(code: str, line: int, rule: str, words: list[str]) -> None:
    fitting = [d for d in errors(code) if d.rule == rule]
    assert fitting and fitting[0].line == line
    assert all(word in f"{fitting[0].message} {fitting[0].hint}" for word in words), fitting
    assert "dse_" not in fitting[0].message + fitting[0].hint


def test_syntax_errors_come_alone() -> None:
    assert [d.rule for d in check("x = (\ny = undefined")] == ["invalid-syntax"]


def test_doubts_are_warnings() -> None:
    (doubt,) = check("p = await find_person('a')\np['id']")
    assert (doubt.severity, doubt.line, doubt.rule) == ("warning", 2, "not-subscriptable")


def test_nothing_is_executed() -> None:
    assert check("print('never')\nwhile True:\n    pass") == []


def test_annotations_and_top_level_return_are_no_errors() -> None:
    assert errors("def f(x: 'pd.DataFrame') -> List[Missing]:\n    return x\nif question:\n    return f(1)\nreturn 2") == []


def test_newer_syntax_than_the_hosts() -> None:
    assert errors('d = {"a": 1}\nf"{d["a"]}"') == []
    assert [d.line for d in errors('d = {"a": 1}\nf"{d["a"]}"\nnothing')] == [3]


def test_earlier_code_counts_but_is_not_blamed() -> None:
    earlier = [
        "x = 1\nundefined_before\nraise ValueError('a')",
        "import json\ny = json.dumps(x)\nsubmit(over_budget=[])\nz = 's'",
    ]
    assert check("y.upper() + z", earlier=earlier) == []
    (found,) = errors("a = 1\nz.foo", earlier=earlier)
    assert found.line == 2
    assert [d.line for d in errors("x.foo")] == [1]
    # code that stopped half-way cannot be parsed: then names are not known, but calls still are
    assert errors("mystery + 1", earlier=["def (:"]) == []
    assert [d.rule for d in errors("await get_team(5)", earlier=["def (:"])] == ["invalid-argument-type"]


def test_a_name_may_change_its_type_from_feed_to_feed() -> None:
    assert check("a = 's'\na.upper()", earlier=["a = 1"]) == []


def test_lines_after_rewriting_are_the_authors() -> None:
    code = "import json, statistics\nfrom typing import (\n    Any,\n    TypedDict,\n)\nclass R(TypedDict):\n    a: int\n\nx = next(r for r in [1])\nnothing"
    (found,) = errors(code)
    assert (found.line, found.col, found.rule) == (10, 1, "unresolved-reference")


def test_modules_that_are_missing() -> None:
    assert [d.rule for d in errors("import numpy\nnumpy.array")] == ["unresolved-import"]
    assert errors("try:\n    import numpy\nexcept ImportError:\n    numpy = None") == []


def test_answers_are_cached_by_content() -> None:
    async def main() -> None:
        async with Checker() as checker:
            await checker.check(stubs=STUBS, code="x = 1")
            code = "\n".join(f"v{i} = (await get_team('a'))[{i}]" for i in range(60))
            started = time.perf_counter()
            first = await checker.check(stubs=STUBS, code=code)
            once = time.perf_counter() - started
            started = time.perf_counter()
            assert await checker.check(stubs=STUBS, code=code) == first
            assert time.perf_counter() - started < once
            assert await checker.check(stubs=STUBS, code=code, earlier=["get_team = 1"]) is not first

    run(main())


@pytest.mark.parametrize("code", [*SOUND_SCRIPTS, *(text.strip("\n") for text in WRONG.split("\n---\n"))])
def test_a_check_finds_the_same_with_and_without_the_prelude(code: str) -> None:
    assert check(f"{code}\n# a name of the prelude: hasattr") == check(code)


@pytest.mark.parametrize(
    "code",
    ["hasattr({}, 'a')", "\uff48asattr({}, 'a')", "xs = list(map(str, [1]))\nxs[0].upper()",
     "try:\n    1\nexcept FileNotFoundError:\n    2", "import statistics\nstatistics.mean([1])"],
)  # fmt: skip
def test_the_prelude_is_there_for_code_that_names_it_in_any_spelling(code: str) -> None:
    assert check(code) == []


def test_sessions_with_the_prelude_do_for_code_without_it() -> None:
    async def main() -> None:
        async with Checker(max_workers=1) as checker:
            for code in ("x = 1", "hasattr({}, 'a')", "y = 1", "z = 1"):
                assert await checker.check(stubs=STUBS, code=code) == []
            assert [bench.feeds for bench in checker._idle] == [4]

    run(main())


def test_a_session_without_the_prelude_comes_when_checks_go_on_and_never_in_place_of_another() -> None:
    async def main() -> None:
        async with Checker(max_workers=2) as checker:
            await checker.validate_stubs(STUBS)
            for number in range(6):
                assert await checker.check(stubs=STUBS, code=f"x = {number}") == []
                assert await checker.check(stubs=STUBS, code=f"tool_that_is_not_there({number})") != []
            with_it, without = sorted(checker._idle, key=lambda bench: len(bench.stubs), reverse=True)
            assert PRELUDE in with_it.stubs and PRELUDE not in without.stubs and without.feeds > 6

    run(main())


def test_many_checks_at_once_with_different_stubs() -> None:
    async def main() -> None:
        async with Checker(max_workers=2) as checker:

            async def one(i: int) -> None:
                stubs = f"def tool_{i % 5}(x: int) -> int: ...\n"
                assert await checker.check(stubs=stubs, code=f"tool_{i % 5}({i})") == []
                (found,) = await checker.check(stubs=stubs, code=f"\ntool_{(i + 1) % 5}({i})")
                assert found.line == 2

            await asyncio.gather(*(one(i) for i in range(40)))

    run(main())


def test_a_check_that_takes_too_long_is_an_answer() -> None:
    async def main() -> None:
        async with Checker(request_timeout_s=0.05) as checker:
            code = "\n".join(
                f"v{i} = [x for x in range({i}) if x > {i}] + [str(v{i - 1} if {i} else 0)]" for i in range(1500)
            )
            (found,) = await checker.check(stubs="", code=f"v0 = []\n{code}")
            assert (found.rule, found.severity) == ("too-complex", "error")

    run(main())


def test_a_check_that_a_slow_machine_did_not_finish_says_nothing_about_the_code() -> None:
    async def main() -> None:
        async with Checker(max_workers=1, request_timeout_s=3.0) as checker:
            for name in ("check", "validate"):
                stubs = f"async def {name}(n: int) -> int: ...\n"

                async def once(name: str = name, stubs: str = stubs) -> list[str]:
                    if name == "check":
                        return [found.rule for found in await checker.check(stubs=stubs, code="await check(2)")]
                    try:
                        await checker.validate_stubs(stubs)
                    except SandboxUnavailable as late:
                        assert late.remedy
                        return [late.what]
                    return []

                assert await checker.check(stubs=stubs, code=f"await {name}(1)") == []
                os.kill(checker._idle[0].guest.worker_pid, signal.SIGSTOP)
                assert await once() == ["too-complex" if name == "check" else "checking the tool stubs took too long"]
                assert await once() == []  # as if nothing had been

    run(main())


def test_verdicts_about_stubs_are_kept_up_to_a_number() -> None:
    async def main() -> None:
        async with Checker(max_workers=1, cache_size=2) as checker:
            for name in "abc":
                await checker.validate_stubs(f"def {name}(x: int) -> int: ...\n")
                with pytest.raises(ContractError):
                    await checker.validate_stubs(f"def {name}(x: int -> int: ...\n")
            assert len(checker._valid) == 2

    run(main())


def test_a_worker_that_died_is_replaced() -> None:
    async def main() -> None:
        async with Checker(max_workers=1) as checker:
            assert await checker.check(stubs="", code="1") == []
            os.kill(checker._idle[0].guest.worker_pid, signal.SIGKILL)
            assert len(await checker.check(stubs="", code="nothing")) == 1

    run(main())


@pytest.mark.parametrize(
    "code", ["while True: pass", "1 / 0", "raise ZeroDivisionError('division by zero')", "ZeroDivisionError = 3", "dict = {}",
             "async def dse(): ...", "import asyncio"],
)  # fmt: skip
def test_nothing_of_the_code_runs(code: str) -> None:
    assert run(sandbox.checker().check(stubs="", code=code)) == []


def test_stubs_that_many_ask_for_at_once_are_validated_once() -> None:
    async def main() -> None:
        async with Checker(max_workers=2) as checker:
            await asyncio.gather(*(checker.validate_stubs("def f(a: int) -> int: ...\n") for _ in range(20)))
            assert sum(bench.feeds for bench in checker._idle) <= 3  # as many as for one

    run(main())


def test_a_closed_checker() -> None:
    async def main() -> None:
        checker = Checker()
        await checker.check(stubs="", code="1")
        await checker.aclose()
        with pytest.raises(SandboxUnavailable):
            await checker.check(stubs="", code="2")

    run(main())


# --- stubs

TYPED = "from typing import Any, Literal, NotRequired, TypedDict\n"


@pytest.mark.parametrize(
    "stubs",
    [
        "",
        STUBS,
        TYPED + "class R(TypedDict):\n    a: int\nasync def t(x: int = ..., *, y: list[R] | None = None) -> list[R]: ...\n",
        TYPED + "class N(TypedDict):\n    kids: list['N']\nasync def f() -> N: ...\n",
        TYPED + 'R = TypedDict("R", {"my-key": int, "class": str})\ndef f(q: str) -> R: ...\n',
        TYPED + "def f(q: Any, **more: int) -> Any: ...\n",
        "import datetime\nfrom decimal import Decimal\nasync def f(a: datetime.date, d: Decimal = ...) -> datetime.datetime: ...\n",
        "".join(f"async def f{i}(x: int) -> int: ...\n" for i in range(60)),
    ],
)
def test_stubs_that_check(stubs: str) -> None:
    run(sandbox.checker().validate_stubs(stubs))
    run(sandbox.checker().validate_stubs(stubs))


@pytest.mark.parametrize(
    ("stubs", "words"),
    [
        ("def s(q: str -> int: ...\n", "not valid Python"),
        ("def s(q: Missing) -> int: ...\n", "Missing"),
        ("async def s(q: str) -> list[Missing]: ...\n", "Missing"),
        ("from pydantic import BaseModel\nclass M(BaseModel):\n    a: int\ndef f(q: str) -> M: ...\n", "pydantic"),
        ("from uuid import UUID\ndef f(q: UUID) -> int: ...\n", "uuid"),
        ("async def f(a: Literal['x']) -> int: ...\n", "Literal"),
        ("def f(q): ...\n", "unknown"),
        ("def f(q: int) -> int: ...\ndef f(**k: int) -> int: ...\ndef dse_canary(x): ...\n", "f"),
    ],
)
def test_stubs_that_would_switch_the_check_off(stubs: str, words: str) -> None:
    for _ in range(2):
        with pytest.raises(ContractError, match=words) as caught:
            run(sandbox.checker().validate_stubs(stubs))
        assert caught.value.code == "DSE110"


def test_the_prelude_checks_and_knows_every_shim() -> None:
    from dse.runtime.sandbox.shims import MODULES, PREFIX, PROVIDED, provided

    assert errors(PRELUDE.partition("@_overload")[0], stubs="") == []
    for module in MODULES:
        code = "\n".join(f"{PREFIX}{module}.{name}" for name in sorted(provided(module)))
        assert errors(code, stubs="") == [], module
    for module in PROVIDED:
        code = "\n".join(f"{PREFIX}{module}.{name}" for name in sorted(PROVIDED[module]))
        assert errors(code, stubs="") == [], module
    assert errors("\n".join(f"{PREFIX}m.{name}" for name in sorted(provided("m"))), stubs="") == []


# --- types

TABLE = {"Row": {"name": "str", "n": "float"}}


@pytest.mark.parametrize(
    ("expected", "found", "verdict"),
    [
        ("str", "int", False),
        ("str", 'Literal["x"]', True),
        ("float", "int", True),
        ("int", "float", True),  # the checker widens: an int may be in there
        ("int", "int | None", True),
        ("int", "str | None", False),
        ("str | None", "None", True),
        ('Literal["a", "b"]', "str", True),
        ('Literal["a", "b"]', "int", False),
        ('Literal["a", "b"]', 'Literal["c"]', False),
        ("list[float]", "list[int]", True),
        ("list[str]", "list[int]", False),
        ("list[str]", "list[Unknown]", True),
        ("list[str]", "dict[str, str]", False),
        ("Sequence[str]", "list[str]", True),
        ("list[Row]", "list[dict[str, str | float]]", True),
        ("list[Row]", "list[dict[str, str]]", False),
        ("list[Row]", "list[Row | dict[str, str | int]]", True),
        ("list[Row]", "list[Row | str]", False),
        ("list[Row]", "list[str]", False),
        ("Row", "dict[str, Any]", True),
        ("Row", 'dict[Literal["name"], str | float]', False),
        ("(x: int) -> str", "int", False),
        ("(x: int) -> str", "int | None", True),
    ],
)
def test_whether_a_value_could_fit(expected: str, found: str, verdict: bool) -> None:
    assert fits(expected, found, TABLE) is verdict
