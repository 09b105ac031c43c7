"""What searching gained on the shipped tasks, on their sealed holdouts, mode by mode; by replay of the recordings.

    python -m benchmarks.searched [--write]        writes benchmarks/SEARCHED.md and the README's table

Each mode's seed program (its signature's own words, all tools) is *before*; the program of this mode that select rows
expect to be best is *after*. The compile itself runs only its winner and the incumbent on the holdout; the others are
run after it has decided, for this table alone, and the ledger names that opening.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shipped import PRICES, ROOT, SHIPPED, Shipped
from dse.compiler.compile import CompileResult
from dse.evaluation.dataset import Example
from dse.evaluation.evaluator import Evaluator, RolloutRecord, summarise
from dse.evaluation.task import Task
from dse.models.lm import LanguageModel
from dse.models.prices import PriceTable
from dse.portal import run_sync
from dse.store.cassette import Cassette
from dse.store.journal import opened

__all__ = ["README", "REPORT", "Searched", "between", "chosen", "measured", "replayed", "report", "summary", "table"]

REPORT = Path(__file__).with_name("SEARCHED.md")
README = ROOT / "README.md"
_START, _END = "<!-- searched: python -m benchmarks.searched --write -->", "<!-- end of searched -->"


@dataclass(frozen=True)
class Searched:
    """A compile, and what the best of each mode did on its holdout rows, by candidate."""

    shipped: Shipped
    result: CompileResult
    records: Mapping[str, Sequence[RolloutRecord]]


def chosen(result: CompileResult) -> dict[str, tuple[str | None, str]]:
    """By mode the seed's name, if it has one, and that of the winner or else the highest expected utility on select rows."""
    assert result.race is not None
    expected = {one.name: one.mean for one in result.race.ranking if one.mean is not None}
    best: dict[str, tuple[str | None, str]] = {}
    for mode in sorted({one.plan.mode for one in result.candidates.values()}):
        mine = [name for name, one in result.candidates.items() if one.plan.mode == mode and name in expected]
        seed = next((name for name in mine if name in (f"{mode}/all/seed", f"{mode}/none/seed")), None)
        if mine:
            first = min(mine, key=lambda name: (-round(expected[name], 9), name != seed, name))
            best[mode] = seed, result.winner if result.winner in mine else first
    return best


def measured(shipped: Shipped, result: CompileResult, lm: LanguageModel, registry: Path, *, task: Task | None = None,
             concurrency: int = 8, progress: Any = None) -> Searched:  # fmt: skip
    """Run on the compile's holdout rows what `chosen` names and it has not run there."""
    task = task or shipped.task()
    records = {name: [r for r in result.records["holdout"] if r.candidate == name] for name in (result.winner, result.incumbent)}
    missing = sorted({name for pair in chosen(result).values() for name in pair if name} - records.keys())
    hashes = {r.row_hash for r in result.records["holdout"]}

    async def run() -> list[RolloutRecord]:
        with opened(registry / "dse.db") as store:
            rows: Sequence[Example] = task.load_dataset().open_holdout(  # type: ignore[assignment]
                store, purpose=f"table of {task.spec.name}", select=lambda sealed: [r for r in sealed if r.row_hash in hashes])
            async with Evaluator(task, lm, store, concurrency=concurrency, prices=PriceTable.load(PRICES), progress=progress) as runs:
                return await runs.rollouts([(n, result.candidates[n].plan, row) for n in missing for row in rows], what="table")  # fmt: skip

    if missing:
        for record in run_sync(run):
            records.setdefault(record.candidate, []).append(record)
    return Searched(shipped, result, records)


def replayed(shipped: Shipped, registry: Path, **options: Any) -> Searched:
    """Compile by replay, and measure."""
    from dse.models.lm import resolve_model

    result = shipped.replayed(registry, **options)
    return measured(shipped, result, resolve_model(f"replay:{shipped.cassette}"), registry)


def table(searched: Searched) -> str:
    """Before and after per mode, as Markdown."""
    lines = ["| mode | program | tools | quality (95%) | model calls | tokens in / out | USD per 1000 runs |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    result = searched.result
    for mode, (seed, best) in chosen(result).items():
        for when, name in (("before", seed), ("after", best)):
            if name is None:
                continue
            if when == "after" and name == seed:
                lines.append(f"| {mode} | after: the seed stays | | | | | |")
                continue
            role = "**winner**, " if name == result.winner else "incumbent, " if name == result.incumbent else ""
            lines.append(f"| {mode} | {when}: {role}`{name}` | {len(result.plans[name].allow)} | {_figures(searched.records[name])} |")
    return "\n".join(lines)


def _figures(records: Sequence[RolloutRecord]) -> str:
    row = summarise(records)[records[0].candidate]
    cost = "unknown" if row["cost_usd"] is None else f"{1000 * row['cost_usd']:.2f} ({row['cost_source']})"
    return (f"{row['quality']:.3f} ({row['quality_low']:.3f}..{row['quality_high']:.3f}) | {row['model_calls']:.2f} | "
            f"{row['tokens_in']:.0f} / {row['tokens_out']:.0f} | {cost}")  # fmt: skip


def summary(all_of: Sequence[Searched]) -> str:
    """Before and after of all tasks, one line per task and mode, for the README."""
    lines = ["| task, sealed rows | mode | before: quality, USD per 1000 runs | after: quality (95%), USD per 1000 runs | model calls | program |",
             "| --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for searched in all_of:
        result = searched.result
        sealed = len({r.row_hash for r in result.records["holdout"]})
        task = f"`{result.artifact.program.signature['name']}`, {sealed}"
        for mode, (seed, best) in chosen(result).items():
            before = "none" if seed is None else _short(searched.records[seed], interval=False)
            mark = " **(winner)**" if best == result.winner else ""
            after, calls = ("the seed stays", "") if best == seed else (_short(searched.records[best]), _calls(searched.records[best]))
            lines.append(f"| {task} | {mode}{mark} | {before} | {after} | {calls or _calls(searched.records[best])} | `{best}` |")
            task = ""
        lines.append(f"| | verdict | | **{result.verdict}** against `{result.incumbent}`, p = {result.gate.p_value:.2g} | | |")
    return "\n".join(lines)


def _short(records: Sequence[RolloutRecord], *, interval: bool = True) -> str:
    row = summarise(records)[records[0].candidate]
    reach = f" ({row['quality_low']:.2f}..{row['quality_high']:.2f})" if interval else ""
    return f"{row['quality']:.3f}{reach}, " + ("unknown" if row["cost_usd"] is None else f"{1000 * row['cost_usd']:.2f}")


def _calls(records: Sequence[RolloutRecord]) -> str:
    return f"{sum(r.model_calls for r in records) / len(records):.2f}"


def _section(searched: Searched) -> str:
    result, shipped = searched.result, searched.shipped
    header = Cassette.open(shipped.cassette).header
    sealed = result.records["holdout"]
    rows, clusters = len({r.row_hash for r in sealed}), len({r.cluster for r in sealed})
    race = result.race
    assert race is not None
    reasons = "\n".join(f"- {reason}" for reason in result.gate.reasons)
    proposed = "\n".join(f"- {one.name}: {len(one.candidates)} candidates, {one.rollouts} rollouts, {one.reflections} reflections"
                         for one in result.artifact.evidence.proposers) or "- nothing"  # fmt: skip
    tokens = math.fsum(r.input_tokens + r.output_tokens for r in sealed)
    return f"""## {result.artifact.program.signature["name"]}

{header.source} ({header.model}, {header.recorded}, dse {header.dse_version}); token counts {header.usage}.
{rows} sealed rows in {clusters} clusters; {len(result.candidates)} candidates raced in {race.rollouts} of {race.grid_rollouts} rollouts on select rows.

{table(searched)}

Verdict: **{result.verdict}** for `{result.winner}` against `{result.incumbent}` (p = {result.gate.p_value:.4g}), for {tokens:,.0f} tokens on sealed rows.

{reasons}

Proposed by:

{proposed}
"""


def report(all_of: Sequence[Searched]) -> str:
    sections = "\n".join(_section(one) for one in all_of)
    return f"""# What compiling with search found

Written by `python -m benchmarks.searched --write`, by replay; costs are what the recorded token counts cost by
`{PRICES.name}`, an illustrative table. *Before* is each mode's seed with all tools, *after* the program of this mode that
select rows expect to be best. Only winner and incumbent decide; the other lines were run after the verdict.

{sections}"""


def between(text: str) -> str:
    """What stands between the marks of the README."""
    return text.partition(_START)[2].partition(_END)[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {REPORT.name}")
    parser.add_argument("--only", action="append", choices=[s.name for s in SHIPPED])
    args = parser.parse_args()
    found = []
    for shipped in SHIPPED:
        if not args.only or shipped.name in args.only:
            with tempfile.TemporaryDirectory() as folder:
                found.append(replayed(shipped, Path(folder)))
    text = report(found)
    print(text)
    if args.write:
        if args.only:
            parser.error("--write writes the figures of all tasks")
        REPORT.write_text(text, encoding="utf-8")
        before, _, rest = README.read_text(encoding="utf-8").partition(_START)
        README.write_text(f"{before}{_START}\n{summary(found)}\n{_END}{rest.partition(_END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
