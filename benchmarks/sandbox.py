"""What the guarantees around guest code cost: dse's sandbox path against bare pydantic-monty.

dse: lint, type check, checkout, run, with every call through the dispatcher (allow-list, validated arguments and
results, budgets, journal, receipts). Bare: checkout with type check and stubs, ``feed_run`` with the same function as
a plain external, nothing validated or recorded. Both get a script they have not seen before. Bare scripts call a
plain function, dse's await it: that is what each of them offers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Row, interleaved
from benchmarks.scenario import Scenario, new_script, scenario

__all__ = ["TARGET", "measure"]

TARGET = 3.0


def measure(*, reps: int = 15, calls: tuple[int, ...] = (1, 100)) -> list[Row]:
    """Milliseconds for one script, from checkout to the returned worker, and ratios to bare pydantic-monty."""
    import pydantic_monty

    loop = asyncio.new_event_loop()
    try:
        with pydantic_monty.Monty(request_timeout=30.0) as monty:
            return [row for number in calls for row in _rows(number, loop, monty, reps)]
    finally:
        loop.close()


def _rows(number: int, loop: asyncio.AbstractEventLoop, monty: Any, reps: int) -> list[Row]:
    units = max(1, 10 // number) if reps > 1 else 1
    sequential, gathered = scenario(number), scenario(number, parallel=True)
    cases = {
        "sequential": _ours(sequential, loop, units), "gathered": _ours(gathered, loop, units),
        "bare": _bare(sequential, monty, units, type_check=True), "unchecked": _bare(sequential, monty, units, type_check=False),
    }  # fmt: skip
    samples = interleaved(cases, reps=reps, units=units)
    rows = []
    for base, name in (("bare", "bare with type check"), ("unchecked", "bare without type check")):
        for ours in ("sequential", "gathered"):
            if number == 1 and ours == "gathered":
                continue
            ratio, cpu = samples[ours].ratio(samples[base]), samples[ours].cpu_ratio(samples[base])
            target = base == "bare"
            rows.append(Row(
                "sandbox", f"checkout, check, run with {number} {ours if number > 1 else 'single'} calls, against {name}",
                f"{samples[ours].ms().text()} ms against {samples[base].ms().text()} ms: {ratio.text()}x; CPU {cpu.text()}x",
                f"at most {TARGET:g}x" if target else "", ratio.median <= TARGET if target else None,
            ))  # fmt: skip
    return rows


def _ours(task: Scenario, loop: asyncio.AbstractEventLoop, units: int) -> Callable[[], None]:
    # The room between the model and the sandbox: no model is asked here.
    from dse.runtime.dispatcher import Dispatcher
    from dse.strategies.code import _CodeSession

    program = task.program("code")

    async def one() -> None:
        run = program.new_run({"question": task.question})
        run.dispatcher = Dispatcher(run, program.toolbox)
        session = _CodeSession(run)
        try:
            told = await session.round(new_script(task.script))
        finally:
            await session.close()
        if session.outputs != {"total": task.total} or len(run.receipts) != task.calls:
            raise AssertionError(f"the script did not do its work: {told}")

    async def some() -> None:
        for _ in range(units):
            await one()

    return lambda: loop.run_until_complete(some())


def _bare(task: Scenario, monty: Any, units: int, *, type_check: bool) -> Callable[[], None]:
    from benchmarks.scenario import expense
    from dse.contracts.stubs import stubs_for

    spec = task.signature.spec()
    stubs = stubs_for([tool.contract for tool in spec.tools], outputs=spec.output_schema)
    stubs = re.sub(r"->\s*NoReturn", "-> None", stubs.replace("async def", "def"))
    script = task.script.replace("await ", "")
    limits = {"max_feed_duration_secs": 10.0, "max_memory": 256 * 2**20, "max_suspensions": 100_000}

    def one() -> None:
        submitted: list[float] = []
        calls = 0

        def get_expense(user_id: int, quarter: str) -> dict[str, Any]:
            nonlocal calls
            calls += 1
            return dict(expense(user_id, quarter))

        def submit(total: float) -> None:
            submitted.append(total)

        with monty.checkout(type_check=type_check, type_check_stubs=stubs if type_check else None, limits=limits) as session:
            session.feed_run(new_script(script), external_lookup={"get_expense": get_expense, "submit": submit})
        if submitted != [task.total] or calls != task.calls:
            raise AssertionError("the bare script did not do its work")

    def some() -> None:
        for _ in range(units):
            one()

    return some
