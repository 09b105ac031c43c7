"""The main job, offline: compile the shipped tasks by replay, show the decisions, load an artifact, run it.

Every completion comes from a recording of a real language model; nothing is asked over a network.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from rich.console import Console

import dse
from benchmarks.shipped import ROOT, SHIPPED
from dse.analysis.report import print_compile


def results(out: Path = ROOT / "out" / "demo") -> Path:
    """The folder of the demo's artifacts and store; compiles by replay what is not there yet."""
    for shipped in SHIPPED:
        name = shipped.task().spec.name
        if shipped.cassette.exists() and not (out / name / "aliases.json").exists():
            shipped.replayed(out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(ROOT / "out" / "demo"), help="folder for artifacts and the store")
    parser.add_argument("--only", action="append", choices=[s.name for s in SHIPPED], help="one task")
    args = parser.parse_args()
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    shutil.rmtree(args.out, ignore_errors=True)
    names: list[str] = []
    for shipped in SHIPPED:
        if args.only and shipped.name not in args.only:
            continue
        if not shipped.cassette.exists():
            console.print(f"{shipped.name}: no recording at {shipped.cassette.relative_to(ROOT)}; `make record` makes one")
            continue
        started = time.monotonic()
        lm = f"replay:{shipped.cassette}"
        console.rule(shipped.name)
        result = shipped.replayed(args.out)
        print_compile(console, result)
        console.print(f"Compiled by replay in {time.monotonic() - started:.1f} s.\n")

        inputs, deps = shipped.extra(shipped.load())
        name = result.artifact.program.signature["name"]
        names.append(f"{name}@{'champion' if result.verdict == 'PROMOTE' else 'candidate'}")
        which = "the new champion" if result.verdict == "PROMOTE" else "the candidate, which the gate did not let replace the champion,"
        program = dse.load(f"{args.out}/{name}@{result.artifact.artifact_id}", signature=shipped.task().signature, lm=lm, deps=deps)
        console.print(f"Loaded {which} {program!r}; an input that is not in the data:", markup=False)
        console.print(f"  {dict(inputs)}", markup=False)
        prediction = program(**inputs)
        console.print(f"  -> {prediction}", markup=False)
        console.print(f"  expected: {shipped.expected}", markup=False)
        usage = prediction.receipt["usage"]
        console.print(f"  {usage['model_calls']} model calls, {usage['tool_calls']} tool calls, effects: "
                      f"{prediction.receipt['effects']}\n", markup=False)  # fmt: skip
    if names:
        folder = Path(args.out).resolve()
        shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        console.print(f"Artifacts and the store of all runs are in {shown}. Next:", markup=False)
        console.print(f"  dse artifacts list --registry {shown}", markup=False, soft_wrap=True)
        for name in names:
            console.print(f"  dse explain {shown}/{name}", markup=False, soft_wrap=True)
        console.print("  make notebook", markup=False)


if __name__ == "__main__":
    main()
