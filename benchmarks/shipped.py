"""The shipped tasks: how each is compiled and where its recorded completions are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dse
from dse.compiler.compile import CompileResult, Rows
from dse.compiler.compile import compile as compile_task
from dse.compiler.search import Proposer
from dse.compiler.space import Space
from dse.evaluation.task import Task
from dse.models.prices import PriceTable

ROOT = Path(__file__).resolve().parent.parent
PRICES = ROOT / "datasets" / "illustrative-prices.json"


@dataclass(frozen=True)
class Shipped:
    """One shipped task.

    Attributes:
        rows: of each split that its recording covers.
        extra: inputs that are not in the data, and the dependencies to run them with.
        expected: what a right answer to them is, in words.
        search: what proposes further candidates.
    """

    name: str
    module: str
    rows: Rows
    extra: Callable[[Any], tuple[Mapping[str, Any], Any]]
    space: Space
    expected: str
    search: tuple[Proposer, ...]

    @property
    def cassette(self) -> Path:
        return ROOT / "datasets" / self.name / "recording.jsonl.gz"

    def load(self) -> Any:
        return importlib.import_module(self.module)

    def task(self) -> Task:
        return self.load().task

    def compile(self, lm: Any, registry: Path | str, *, task: Task | None = None, **options: Any) -> CompileResult:
        """The one compile of this task that demo, recording and tests share.

        Args:
            lm: a recording, or what is recorded.
        """
        return compile_task(task or self.task(), lm=lm, registry=registry, prices=PriceTable.load(PRICES), rows=self.rows,
                            space=self.space, search=self.search, **options)  # fmt: skip

    def replayed(self, registry: Path | str, **options: Any) -> CompileResult:
        """`compile` with the recorded completions."""
        return self.compile(f"replay:{self.cassette}", registry, **options)


def _expenses(module: Any) -> tuple[Mapping[str, Any], Any]:
    return {"question": module.example_question}, module.demo_world()


def _assistant(module: Any) -> tuple[Mapping[str, Any], Any]:
    return module.DEMO_INPUTS, module.demo_world()


def _tickets(module: Any) -> tuple[Mapping[str, Any], Any]:
    return module.DEMO_INPUT, None


# Tool-by-tool runs are long: their seed is tried with all tools only. Scripts are tried with fewer tools, too.
TOOLS = Space(allow={"tool_call": ("all",), "code": ("all", "minimal")}, demos={"code": 2})
ANSWERS = Space(demos=2)
ACTING = ("code", "tool_call")  # without tools a model can only guess
# Each version of a script runs on all search rows; on free text it tries hundreds of patterns on each. One version is what
# a demo can wait for.
SCRIPT = dse.Distill(rounds=0)

SHIPPED = (
    Shipped("expenses", "signatures.expenses", Rows(search=10, select=30, holdout=40), _expenses, TOOLS,
            "Samir Hakimi, Selin Pereira, Chiara Chaudhry, Emeka Verbeek and Petra Oliveira",
            (dse.Demonstrations(modes=ACTING), dse.Evolve(rounds=3, modes=ACTING), SCRIPT, dse.Cascades(most=3))),
    Shipped("assistant", "signatures.assistant", Rows(search=20, select=24, holdout=120), _assistant, TOOLS,
            "creature and emoji changed, two items added to the list (the sourdough is on it), nothing forgotten",
            (dse.Demonstrations(modes=ACTING), dse.Evolve(rounds=3, modes=ACTING), SCRIPT, dse.Cascades(most=3))),
    Shipped("tickets", "signatures.tickets", Rows(search=24, select=36, holdout=120), _tickets, ANSWERS,
            "service, P1, order ORD-007741 alone (the other is settled), 79.90 EUR, 2026-03-20, en, no person needed",
            (dse.Evolve(rounds=4), SCRIPT, dse.Cascades(most=3))),
)  # fmt: skip
