"""The notebook is what its builder makes, runs from top to bottom, and is committed with its outputs."""

from __future__ import annotations

import nbformat
import pytest

pytest.importorskip("nbclient")

from benchmarks import notebook


def test_committed_with_outputs_and_in_step_with_its_builder() -> None:
    stored = nbformat.read(notebook.PATH, as_version=4)
    built = notebook.build()
    assert [c.source for c in stored.cells] == [c.source for c in built.cells]
    outputs = [output for cell in stored.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 9, "three plots for each of three tasks"


@pytest.mark.filterwarnings("default")
def test_runs_from_top_to_bottom() -> None:
    executed = notebook.execute(notebook.build())
    texts = [o.get("text", "") for c in executed.cells if c.cell_type == "code" for o in c.outputs]
    assert any("AuditExpenses runs in mode" in text for text in texts)
