"""Run all benchmarks and write ``benchmarks/RESULTS.md``.

python -m benchmarks.run                        everything, about seven minutes on two cores
python -m benchmarks.run overhead imports       some topics, printed and not written
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.shipped import ROOT

__all__ = ["DURABLE", "RESULTS", "TOPICS", "machine", "main", "report", "table"]

TOPICS = ("overhead", "sandbox", "imports", "throughput")
RESULTS = Path(__file__).with_name("RESULTS.md")
DURABLE = "<!-- from here on: python -m benchmarks.durable -->"
_PACKAGES = ("dspy", "pydantic-monty", "pydantic", "anyio")


def machine() -> list[str]:
    """Facts about where and with what the figures were measured, one per line."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    return [
        f"Processor: {_processor()}, {os.cpu_count()} cores; {platform.system()} {platform.machine()}",
        f"Load average at the start (1, 5, 15 minutes): {load}",
        f"Python {platform.python_version()}; {versions}",
        f"Commit: {_commit()}",
    ]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _commit() -> str:
    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        dirty = ask("status", "--porcelain", "--", "dse", "benchmarks")
        return ask("rev-parse", "--short", "HEAD") + (" and uncommitted changes" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def report(rows: Sequence[Row], facts: Sequence[str], *, shared: bool, took_s: float) -> str:
    """The results as Markdown."""
    noise = "The machine was shared with other work while this ran, so the ranges are wide. " if shared else ""
    lines = "\n".join(f"- {fact}" for fact in facts)
    return f"""# Benchmark results

Written by `python -m benchmarks.run` on {dt.datetime.now(dt.UTC):%Y-%m-%d} in {took_s:.0f} s. {noise}Figures are medians with
(smallest..largest). All sides of a ratio ran in turn in one process, and a ratio is taken within a repetition; "CPU" is
the ratio of CPU time, worker processes included. What is compared with what is at the top of each file in this folder.

{lines}

{table(rows)}
"""


def table(rows: Sequence[Row]) -> str:
    marks = {True: "met", False: "**missed**", None: ""}
    lines = (f"| {row.topic} | {row.what} | {row.figures} | {row.target} | {marks[row.met]} |" for row in rows)
    return "\n".join(["| topic | what | measured | target | |", "|---|---|---|---|---|", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topics", nargs="*", help=f"of {', '.join(TOPICS)}; default all")
    parser.add_argument("--shared", action="store_true", help="say in the results that other work ran on the machine")
    args = parser.parse_args(arguments)
    if unknown := set(args.topics) - set(TOPICS):
        parser.error(f"no such topic: {', '.join(sorted(unknown))}; there are {', '.join(TOPICS)}")
    facts, started = machine(), time.monotonic()
    rows: list[Row] = []
    for topic in args.topics or TOPICS:
        for row in importlib.import_module(f"benchmarks.{topic}").measure():
            rows.append(row)
            mark = {True: "met", False: "MISSED", None: ""}[row.met]
            print(
                f"{row.topic}: {row.what}\n    {row.figures}" + (f"  [{row.target}: {mark}]" if row.target else ""),
                flush=True,
            )
    if not args.topics:
        text = report(rows, facts, shared=args.shared, took_s=time.monotonic() - started)
        _, mark, others = RESULTS.read_text(encoding="utf-8").partition(DURABLE)
        RESULTS.write_text(text + (f"\n{mark}{others}" if mark else ""), encoding="utf-8")
        print(f"\nWrote {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
