"""python -m benchmarks.selection [--worlds 2000] [--minutes M] [--fresh | --stale] [--write]

Planted worlds (all cells that the figures file does not have yet) and published outcomes, where they are found. Tables
go to benchmarks/SELECTION.md with --write, between markers; figures stay in benchmarks/selection/planted.json.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # one thread for each of the processes

from benchmarks.selection import outcomes, planted, tables  # noqa: E402

PAGE = Path(__file__).parent.parent / "SELECTION.md"
_TITLE = """# How well candidates are chosen

One command: `python -m benchmarks.selection --write` (`--fresh` runs every cell anew, `--stale` those whose figures are of other code; about an hour on two cores).
The race (`dse/compiler/race.py`), the pooled estimates and the gate are those of every compile; only the outcomes are
planted, or published by others. No model is asked, and no select score is a result: what a choice is worth is the
planted truth, or items that it was not made on.
"""


def write(section: str, title: str, text: str, page: Path = PAGE) -> None:
    """Put `text` between the markers of a section, which is appended if it is not there."""
    start, end = f"<!-- {section} -->", f"<!-- end of {section} -->"
    before = page.read_text() if page.exists() else _TITLE
    if start not in before:
        before += f"\n## {title}\n\n{start}\n{end}\n"
    head, rest = before.split(start, 1)
    page.write_text(f"{head}{start}\n{text}\n{end}{rest.split(end, 1)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.selection", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--worlds", type=int, default=2000, help="planted worlds per cell")
    parser.add_argument("--splits", type=int, default=200, help="random cluster splits of the published outcomes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further cell after this long")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", choices=["planted", "outcomes"])
    parser.add_argument("--stale", action="store_true", help="run the cells anew whose figures are of other code")
    parser.add_argument("--fresh", action="store_true", help="run all cells anew")
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent / "planted.json")
    parser.add_argument("--write", action="store_true", help="write benchmarks/SELECTION.md")
    options = parser.parse_args()
    if options.only != "outcomes":
        if options.fresh:
            options.figures.unlink(missing_ok=True)
        cells = planted.run(options.worlds, place=options.figures, processes=options.processes, minutes=options.minutes,
                            stale=options.stale)
        text = tables.render(cells)
        print(text)
        if options.write:
            write("planted worlds", "Planted worlds", text)
    if options.only != "planted":
        data = outcomes.located()
        if data is None:
            print(f"real outcomes: skipped, {outcomes.FILE} is not there; set {outcomes.VARIABLE} to its folder")
            return
        text = outcomes.render(outcomes.study(data, options.splits))
        print(text)
        if options.write:
            write("real outcomes", "Real outcomes", text)


if __name__ == "__main__":
    main()
