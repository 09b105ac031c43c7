"""The sealed holdout: opened once, for the winner of select and the incumbent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dse.compiler.incumbent import refuse_shown
from dse.compiler.options import Options
from dse.compiler.rollouts import Rollouts
from dse.compiler.space import Candidate
from dse.evaluation.evaluator import RolloutRecord
from dse.evaluation.sampling import spread
from dse.store.tables import UNTESTED

if TYPE_CHECKING:
    from dse.store.journal import Store

__all__ = ["meet"]


async def meet(options: Options, store: Store, runs: Rollouts, mine: Candidate, incumbent: Candidate,
               look_id: str) -> tuple[list[RolloutRecord], int]:  # fmt: skip
    """Run both on the same sealed rows.

    Args:
        look_id: what the ledger counts as one look.

    Returns:
        The rollouts, and how often any of these rows was opened by now.
    """
    summary = options.data.holdout_summary()

    def choose(sealed: Sequence[Any]) -> list[Any]:
        chosen = spread(sealed, options.rows.holdout)
        refuse_shown(incumbent.rows, {row.row_hash for row in chosen}, "holdout")
        return chosen

    # Another winner of the same compile is another look: a proposer may have changed in a way that its revision misses.
    programs = dict.fromkeys(runs.program_id(one.plan, one.model)[7:19] for one in (mine, incumbent))
    kind = "gate" if len(programs) > 1 else UNTESTED
    rows = options.data.open_holdout(store, compile_id=look_id, select=choose,
                                     purpose=f"{kind} {options.spec.name}: {' against '.join(programs)}")  # fmt: skip
    pair = {mine.name: mine, incumbent.name: incumbent}
    options.say(f"holdout: {' against '.join(pair)} on {len(rows)} of {summary['rows']} sealed rows")
    records: list[RolloutRecord] = []
    for replicate in range(options.replicates):
        for model in runs.models:
            jobs = [(one.name, one.plan, row) for row in rows for one in pair.values() if one.model == model]
            records += await runs.these("holdout", jobs, model, replicate=replicate)
    return records, rows.openings
