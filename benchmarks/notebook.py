"""Write and execute ``notebooks/compile_analysis.ipynb``; its outputs are committed."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from benchmarks.shipped import ROOT

PATH = ROOT / "notebooks" / "compile_analysis.ipynb"

CELLS = [
    ("md", "# What a compile measured\n\nThe demo's results, read from its store and artifacts. Completions were recorded from a large language "
           "model and are replayed; token usage is estimated, latency is not representative, and money is under the price table "
           "`illustrative-2026-11`."),
    ("code", "import os, sys\nfrom pathlib import Path\n\nroot = next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / 'pyproject.toml').exists())\n"
             "os.chdir(root)\nsys.path.insert(0, str(root))\n\nimport pandas as pd\nimport dse\nfrom benchmarks.demo import results\nfrom dse import analysis\n\n"
             "folder = results()          # compiled by replay if it is not there yet\nstore = dse.Store(folder / 'dse.db')\nregistry = dse.Registry(folder)\n\n\n"
        "def newest(name):\n    aliases = registry.aliases(name)\n    return registry.get(f\"{name}@{aliases.get('candidate', aliases['champion'])}\")\n\n\n"
             "pd.set_option('display.width', 160, 'display.max_columns', 20, 'display.precision', 3)"),
    ("md", "## Candidates\n\nMean score on the select rows with a 95% interval; all candidates ran on the same rows."),
    ("code", "candidates = analysis.candidates(store)\ncandidates[['signature', 'candidate', 'n', 'quality', 'quality_low', 'quality_high', "
             "'model_calls', 'tool_calls', 'tokens_in', 'tokens_out', 'cost_usd', 'failures']]"),
    ("code", "%matplotlib inline\nimport matplotlib.pyplot as plt\n\nfor name, frame in candidates.groupby('signature'):\n"
             "    analysis.plot_quality(frame).set_title(name)\n    plt.show()"),
    ("md", "## Quality against cost"),
    ("code", "for name, frame in candidates.groupby('signature'):\n    analysis.plot_pareto(frame).set_title(name)\n    plt.show()"),
    ("md", "## The gate: winner against incumbent on the sealed holdout, row by row\n\nDifferences are in utility under the task's objective, as the gate counts "
           "them: quality with cost and removed tools priced in. `plot_wins(rows, by='quality')` shows the scores alone."),
    ("code", "for name in sorted(candidates['signature'].unique()):\n    artifact = newest(name)\n"
             "    rows = analysis.paired(artifact)\n    ax = analysis.plot_wins(rows)\n    gate = artifact.evidence.gate\n"
             "    ax.set_title(f\"{name}: {gate['verdict']}, {ax.get_title()}\", fontsize=9)\n    plt.show()"),
    ("md", "## Why\n\nWhat an artifact says about itself."),
    ("code", "print(analysis.explain(newest('AuditExpenses')))"),
    ("md", "## Calls\n\nWhich tools the rollouts called, per mode, and how calls ended."),
    ("code", "calls = analysis.calls(store)\ncalls.groupby(['signature', 'mode', 'tool', 'outcome']).size().unstack(fill_value=0)"),
    ("md", "## Where rows were lost\n\nSelect rows that no candidate solved, with the metric's feedback."),
    ("code", "rollouts = analysis.rollouts(store)\nselect = rollouts[rollouts['stage'] == 'select']\nbest = select.groupby(['signature', 'row_id'])['score'].max()\n"
             "lost = best[best < 1.0].reset_index()\nlost.groupby('signature').size().rename('rows below 1.0')"),
]  # fmt: skip


def build() -> nbformat.NotebookNode:
    cells = [new_markdown_cell(text) if kind == "md" else new_code_cell(text) for kind, text in CELLS]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index:02d}"
    made = new_notebook(cells=cells)
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return made


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of the machine that ran it
    return notebook


def main() -> None:
    PATH.parent.mkdir(exist_ok=True)
    nbformat.write(execute(build()), PATH)
    print(f"wrote {PATH.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
