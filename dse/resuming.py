"""Going on with runs of a program's store: resuming them, preparing them for an audit, and forking them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dse import durable
from dse.errors import RunNotResumable, StoreError
from dse.strategies.base import strategy

if TYPE_CHECKING:
    from dse.durable import Decision
    from dse.program import Prediction, Program
    from dse.runtime.run import Run
    from dse.store.journal import Store
    from dse.store.runs import Kept

__all__ = ["fork", "recorded", "resume"]


async def resume(program: Program, run_id: str, *, decisions: Mapping[int, Decision], snapshots: bool, take_over: bool,
                 deps: Any) -> Prediction:  # fmt: skip
    """What `Program.aresume` does."""
    store = _store(program)
    if (get_ready := getattr(strategy(program.plan.mode), "get_ready", None)) is not None:
        get_ready()
    kept = await durable.taken(store, run_id, program.program_id, take_over=take_over, snapshots=snapshots)
    log = kept.log
    assert log is not None
    try:
        run = durable.revive(kept, program.spec, program.plan, program.lm)
        durable.settle(run, program.toolbox, decisions)
        run.journal.add("resumed", reason=kept.row["outcome"])
        return await program.execute(run, deps=deps)
    except BaseException:
        if store.has(log):  # it ended before it could be stopped, or beside that: as it was, others may go on with it
            await asyncio.shield(asyncio.ensure_future(store.threaded(store.release, log, kept.row["outcome"])))
        raise


async def recorded(program: Program, run_id: str) -> Run:
    """A finished run, ready to be executed along its journal alone.

    Raises:
        RunNotResumable, JournalTampered
    """
    store = _store(program)
    kept = await store.threaded(store.journal, run_id)
    _refuse_other(program, kept)
    if kept.row["outcome"] not in ("ok", "failed"):
        raise RunNotResumable("Only a finished run can be replayed", value=kept.row["outcome"], remedy="Resume it first.")
    return durable.revive(kept, program.spec, program.plan, program.lm, only=True)


async def fork(program: Program, run_id: str, call_id: int, value: Any, error: str | None) -> str:
    """What `Program.fork` does."""
    store = _store(program)
    kept = await store.threaded(lambda: store.journal(run_id, snapshots=False))
    _refuse_other(program, kept)
    run = durable.revive(kept, program.spec, program.plan, program.lm)
    outcome = durable.another_outcome(program.toolbox, kept.entries, call_id, value, error)
    entries = durable.copied(kept.entries, call_id, outcome)
    run.run_id = durable.new_id()
    hidden = json.loads(kept.row["hidden"])
    run.secrets.results.update(hidden["results"])
    run.secrets.names.update(hidden["names"])
    names = {"run_id": run.run_id, "program_id": program.program_id}
    await store.threaded(store.copy_run, {**names, **durable.head(run, program.lm)}, entries, program.durability)
    return run.run_id


def _store(program: Program) -> Store:
    if program.store is None:
        raise StoreError("This program keeps no runs", remedy="Give it the store of the run: store='runs.db'.")
    return program.store


def _refuse_other(program: Program, kept: Kept) -> None:
    if kept.row["program_id"] != program.program_id:
        raise RunNotResumable("The run belongs to another program", value=kept.row["program_id"],
                              remedy="Load the artifact, tools and model that it was started with.")  # fmt: skip
