"""The shipped tasks: how each is compiled and where its recorded completions are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse.compiler.compile import Rows
from dse.compiler.space import Space
from dse.evaluation.task import Task

ROOT = Path(__file__).resolve().parent.parent
PRICES = ROOT / "datasets" / "illustrative-prices.json"


@dataclass(frozen=True)
class Shipped:
    """One shipped task.

    Attributes:
        rows: of each split that its recording covers.
        extra: inputs that are not in the data, and the dependencies to run them with.
        expected: what a right answer to them is, in words.
    """

    name: str
    module: str
    rows: Rows
    extra: Callable[[Any], tuple[Mapping[str, Any], Any]]
    space: Space
    expected: str
    allocation: str = "grid"  # a handful of candidates; the recordings hold each of them on every select row

    @property
    def cassette(self) -> Path:
        return ROOT / "datasets" / self.name / "recording.jsonl.gz"

    def load(self) -> Any:
        return importlib.import_module(self.module)

    def task(self) -> Task:
        return self.load().task


def _expenses(module: Any) -> tuple[Mapping[str, Any], Any]:
    return {"question": module.example_question}, module.demo_world()


def _assistant(module: Any) -> tuple[Mapping[str, Any], Any]:
    return module.DEMO_INPUTS, module.demo_world()


def _tickets(module: Any) -> tuple[Mapping[str, Any], Any]:
    return module.DEMO_INPUT, None


# Tool-by-tool runs are long: their one candidate is the baseline. Scripts are tried with fewer tools and with demos.
TOOLS = Space(allow={"tool_call": ("all",), "code": ("all", "minimal")}, demos={"code": 2})
ANSWERS = Space(demos=2)

SHIPPED = (
    Shipped("expenses", "signatures.expenses", Rows(search=10, select=30, holdout=40), _expenses, TOOLS,
            "Samir Hakimi, Selin Pereira, Chiara Chaudhry, Emeka Verbeek and Petra Oliveira"),
    Shipped("assistant", "signatures.assistant", Rows(search=10, select=20, holdout=24), _assistant, TOOLS,
            "creature and emoji changed, two items added to the list (the sourdough is on it), nothing forgotten"),
    Shipped("tickets", "signatures.tickets", Rows(search=16, select=24, holdout=24), _tickets, ANSWERS,
            "service, P1, order ORD-007741 alone (the other is settled), 79.90 EUR, 2026-03-20, en, no person needed"),
)  # fmt: skip
