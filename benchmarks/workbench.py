"""WorkBench's calendar and email requests through a compile: tool calls against scripts, all tools against the toolkits.

    python -m benchmarks.workbench record --lm local/large-language-model --base-url http://127.0.0.1:8000/v1
    python -m benchmarks.workbench replay --write        the committed recording; writes benchmarks/WORKBENCH.md

Needs WorkBench's files, see tests/workbench/data.py. The recording holds hashes of the requests and what the model
answered, nothing else. Programs meet templates on the holdout that neither search nor select has seen.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import live_model
from benchmarks.shipped import PRICES, ROOT
from dse.compiler.compile import CompileResult, Rows
from dse.compiler.compile import compile as compile_task
from dse.compiler.space import Space
from dse.errors import BudgetExhausted
from dse.evaluation.task import Task
from dse.models.prices import PriceTable
from dse.statistics import score_interval
from dse.store.cassette import Cassette, RecordModel, compact
from dse.store.journal import Store

if TYPE_CHECKING:
    from dse.evaluation.evaluator import RolloutRecord
    from dse.models.lm import Completion, LanguageModel, Request

__all__ = ["CASSETTE", "REPORT", "ROWS", "SPACE", "Outcome", "compiled", "estimate", "main", "record", "report"]

CASSETTE = ROOT / "tests" / "workbench" / "recording.jsonl.gz"
REPORT = Path(__file__).with_name("WORKBENCH.md")
# The holdout has 12 templates: three rows of each. The other splits have 4 each.
ROWS = Rows(search=4, select=8, holdout=36)
# The minimal list is the toolkits of both domains, which the task requires.
SPACE = Space(allow={"tool_call": ("all",), "code": ("all", "minimal")}, demos=0)
DOMAINS = ("calendar", "email")
PER_RUN = {"tool_call": 3.7, "code": 1.4}  # requests, for the estimate: rounds and a submission; scripts with some repairs


def estimate(rows: Rows = ROWS, space: Space = SPACE) -> tuple[int, int]:
    """Requests that a recording takes by `PER_RUN`, and rollouts: two seeds, all candidates, winner and incumbent."""
    both = sum(PER_RUN.values())
    candidates = [mode for mode in PER_RUN for _ in space.allow_of(mode)]
    assert rows.search is not None and rows.select is not None and rows.holdout is not None
    asked = rows.search * both + rows.select * sum(PER_RUN[mode] for mode in candidates) + rows.holdout * both
    return round(asked), len(PER_RUN) * (rows.search + rows.holdout) + len(candidates) * rows.select


class Capped:
    """A model that is asked `most` times at most, in this process."""

    def __init__(self, inner: LanguageModel, most: int) -> None:
        self.inner, self.most, self.asked = inner, most, 0
        self.name, self.params, self.supports_tools = inner.name, inner.params, inner.supports_tools

    async def complete(self, request: Request, *, replicate: int = 0, occurrence: int = 0) -> Completion:
        if self.asked >= self.most:
            raise BudgetExhausted(f"{self.most} requests were made", value=self.asked,
                                  remedy="All answers are kept: record again with a larger --max-requests to go on.")  # fmt: skip
        self.asked += 1
        return await self.inner.complete(request, replicate=replicate, occurrence=occurrence)

    async def aclose(self) -> None:
        await self.inner.aclose()


# ---- compiling --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """A compile, and the end state of every rollout by its id."""

    result: CompileResult
    states: Mapping[str, Any]


def compiled(lm: Any, *, task: Task | None = None, concurrency: int = 4, progress: Any = None, say: Any = None) -> Outcome:
    """One compile in a registry and a store of its own."""
    from tests.workbench.task import make_task

    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "runs.db"
        result = compile_task(task or make_task(), lm=lm, registry=folder, store=store, prices=PriceTable.load(PRICES), rows=ROWS,
                              space=SPACE, concurrency=concurrency, progress=progress, say=say)  # fmt: skip
        with contextlib.closing(Store(store)) as kept:
            ids = {r.rollout_id for records in result.records.values() for r in records}
            states = {one: (kept.rollout(one) or {})["end_state"] for one in sorted(ids)}
    return Outcome(result, states)


def record(args: argparse.Namespace) -> Outcome:
    from dse.portal import run_sync
    from tests.workbench.task import make_task

    asked, rollouts = estimate()
    print(f"About {asked} requests for {rollouts} rollouts ({', '.join(f'{m} {n}' for m, n in PER_RUN.items())} a run), and "
          f"{args.max_requests} at most. What {args.work} holds is not asked again.", flush=True)  # fmt: skip
    raw = Path(args.work)
    raw.parent.mkdir(parents=True, exist_ok=True)
    live = Capped(live_model(args), args.max_requests)
    model = RecordModel(live, raw, source=args.source, usage=args.usage, latency=args.latency, requests="hash", notes=args.notes)
    # A slow endpoint must not end runs early: what a limit cuts off would be missing from the recording.
    task = make_task()
    task = dataclasses.replace(task, limits=task.limits.model_copy(update={"active_s": 36_000.0}))
    try:
        made = compiled(model, task=task, concurrency=args.concurrency, progress=_progress, say=lambda line: print(line, flush=True))
    finally:
        run_sync(model.aclose)
        print(f"{live.asked} requests were made", flush=True)
    compact(raw, args.cassette)
    return made


def _progress(what: str, done: int, total: int) -> None:
    if done % 10 == 0 or done == total:
        print(f"{what}: {done}/{total}", flush=True)


# ---- the table --------------------------------------------------------------------------------------------


def _verdicts(records: Sequence[RolloutRecord], states: Mapping[str, Any]) -> list[Any]:
    """Of end states, also those of failed runs: what these changed, they changed."""
    from tests.workbench.data import requests
    from tests.workbench.task import end_state, judge

    gold = {row["id"]: row["gold_calls"] for row in requests()}
    return [judge(end_state(gold[r.row_id]), states[r.rollout_id]) for r in records]


def _line(name: str, records: Sequence[RolloutRecord], states: Mapping[str, Any], tools: int) -> str:
    verdicts, n = _verdicts(records, states), len(records)
    scores = [r.score for r in records]
    quality = math.fsum(scores) / n
    interval = score_interval(scores, [r.cluster for r in records])
    idle = sum(v.idle for v in verdicts) / n
    costs = [r.cost_usd for r in records]
    cost = "unknown" if None in costs else f"{1000 * math.fsum(c or 0.0 for c in costs) / n:.2f}"
    source = next((s for s in ("unknown", "estimated") if any(r.cost_source == s for r in records)), "exact")
    failed = sum(r.outcome != "ok" for r in records)
    return (f"| {name} | {tools} | {n} | {quality:.3f} ({interval.low:.2f}..{interval.high:.2f}) | {quality - idle:+.3f} | "
            f"{_shares(records, scores)} | {sum(v.unwanted for v in verdicts)} | {sum(v.stray for v in verdicts)} | {failed} | "
            f"{sum(r.model_calls for r in records) / n:.2f} | {sum(r.input_tokens for r in records) / n:.0f} / "
            f"{sum(r.output_tokens for r in records) / n:.0f} | {cost} ({source}) |")  # fmt: skip


def _shares(records: Sequence[RolloutRecord], values: Sequence[float]) -> str:
    """The mean of each domain, in the order of the column's name."""
    found = []
    for domain in DOMAINS:
        mine = [value for record, value in zip(records, values, strict=True) if record.cluster.startswith(f"{domain}/")]
        found.append(f"{math.fsum(mine) / len(mine):.2f}" if mine else "none")
    return ", ".join(found)


def _table(stage: str, outcome: Outcome) -> str:
    records = outcome.result.records[stage]
    by_name = {name: [r for r in records if r.candidate == name] for name in sorted({r.candidate for r in records})}
    rows = list({r.row_hash: r for r in records}.values())  # a race ends early: not every program ran on every row
    still = [v.idle for v in _verdicts(rows, outcome.states)]
    return "\n".join([
        "| program | tools | rows | quality (95%) | minus idle | calendar, email | unwanted | stray | failed | requests | tokens in / out | "
        "USD per 1000 runs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(name, mine, outcome.states, len(outcome.result.plans[name].allow)) for name, mine in by_name.items()),
        f"| doing nothing | 0 | {len(rows)} | {sum(still) / len(still):.3f} | +0.000 | {_shares(rows, still)} | 0 | 0 | 0 | 0 | 0 | 0 |",
    ])  # fmt: skip


def report(outcome: Outcome, cassette: Path = CASSETTE) -> str:
    """The results as Markdown; the same for the same recording."""
    from tests.workbench.data import dataset
    from tests.workbench.task import make_task
    from tests.workbench.tools import TOOLS

    task = make_task()
    result, header = outcome.result, Cassette.open(cassette).header
    templates = {split: part["clusters"] for split, part in dataset().describe()["splits"].items()}
    used = {stage: len({r.row_hash for r in records}) for stage, records in result.records.items()}
    sealed = len({r.cluster for r in result.records["holdout"]})
    removed = [name for name in result.lists.all if name not in result.lists.minimal]
    effects = {one.contract.name: one.contract.effect for one in TOOLS}
    writes = sum(effects[name] == "write" for name in removed)
    reasons = "\n".join(f"- {reason}" for reason in result.gate.reasons)
    return f"""# WorkBench calendar and email

Written by `python -m benchmarks.workbench replay --write`. Completions: {header.source} ({header.model}, {header.recorded});
token counts are {header.usage}, and costs are what these tokens cost by `{PRICES.name}`. Requests and databases:
olly-styles/WorkBench (MIT, arXiv 2405.00823); the tools are an implementation of our own.

A template (ten requests of one wording) is a cluster and never spans splits: {templates["search"]} templates for search,
{templates["select"]} for select, {templates["holdout"]} sealed. Used were {used["search"]} search rows, {used["select"]} of {ROWS.select} select rows (the race ended where all candidates had
solved the same) and {used["holdout"]} sealed rows of {sealed} templates. No prompts or scripts were searched: modes and allow-lists were.
Quality is the share of rows whose databases end exactly as the gold calls leave them. *Minus idle* takes off what doing
nothing scores. *Unwanted*: rows on which something was changed and the end state is wrong; *stray*: changes where none was
to be made, or in another table. Failed runs count with what they changed.

## Sealed holdout: winner and incumbent

{_table("holdout", outcome)}

Verdict: **{result.verdict}** for {result.winner} against {result.incumbent} (p = {result.gate.p_value:.4g}, {result.gate.n_clusters} clusters).

{reasons}

## Select: all candidates, as far as the race went

{_table("select", outcome)}

The narrow list leaves out {len(removed)} of {len(result.lists.all)} tools, {writes} of them tools that write. The
{len(task.required)} tools of the two toolkits that requests are about stay on every list: the task requires them.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record", help="ask a model what is not recorded yet")
    one.add_argument("--lm", default="local/large-language-model", help="dspy model string; with --base-url PROVIDER/MODEL")
    one.add_argument("--base-url", help="an OpenAI-compatible endpoint")
    one.add_argument("--work", default=str(ROOT / "out" / "record" / "workbench.jsonl"), help="where the recording grows")
    one.add_argument("--source", default="recorded from a large language model")
    one.add_argument("--usage", choices=["exact", "estimated"], default="estimated")
    one.add_argument("--latency", choices=["representative", "not representative"], default="not representative")
    one.add_argument("--notes", default="")
    one.add_argument("--timeout-s", type=float, default=600.0)
    one.add_argument("--attempts", type=int, default=4)
    one.add_argument("--concurrency", type=int, default=8)
    one.add_argument("--max-requests", type=int, default=300)
    two = commands.add_parser("replay", help="compile by the recording and show the table")
    two.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    for each in (one, two):
        each.add_argument("--cassette", type=Path, default=CASSETTE)
    args = parser.parse_args(argv)
    outcome = record(args) if args.command == "record" else compiled(f"replay:{args.cassette}")
    text = report(outcome, args.cassette)
    print(text)
    if args.command == "replay" and args.write:
        REPORT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
