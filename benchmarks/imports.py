"""What it costs to begin: importing dse, and loading and verifying an artifact.

Imports run in processes of their own, in turn with ``import pydantic``. dse gives its names lazily, so the names
that every program needs are measured as well; pydantic is lazy too, and does most of its work for the first model.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, Spread, interleaved
from benchmarks.shipped import ROOT

__all__ = ["TARGET_ARTIFACT_MS", "TARGET_IMPORT_MS", "measure"]

TARGET_IMPORT_MS = 150.0
TARGET_ARTIFACT_MS = 20.0
_NAMES = "from dse import Program, Signature, Task, load, tool"
_MODEL = "from pydantic import BaseModel\nclass M(BaseModel):\n    x: int = 0"
_IMPORTS: dict[str, tuple[str, str, float | None]] = {
    "`import dse` over `import pydantic`, whole processes": ("import dse", "import pydantic", TARGET_IMPORT_MS),
    "`from dse import Program, Signature, Task, load, tool` over `import pydantic`": (_NAMES, "import pydantic", None),
    "the same over a process that defines one pydantic model": (_NAMES, _MODEL, None),
}
_COLD = """
import sys, time
import dse
from dse import load
started = time.perf_counter()
from dse.artifacts.artifact import Artifact
artifact = Artifact.load(sys.argv[1])
assert artifact.verify().ok
print((time.perf_counter() - started) * 1000)
"""


def measure(*, reps: int = 15) -> list[Row]:
    """Milliseconds of imports (over pydantic's), and of loading and verifying an artifact."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}

        def python(code: str, *arguments: str) -> str:
            """Run code in a process of its own, with compiled modules as an installed package has them."""
            done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=env, capture_output=True, text=True,
                                  check=True)  # fmt: skip
            return done.stdout.strip()

        rows = [_import_row(what, *pair, python=python, reps=reps) for what, pair in _IMPORTS.items()]
        return [*rows, *_artifact_rows(python, Path(folder), reps=reps)]


def _import_row(what: str, ours: str, base: str, target: float | None, *, python: Callable[..., str], reps: int) -> Row:
    samples = interleaved({"dse": lambda: _ignore(python(ours)), "pydantic": lambda: _ignore(python(base))}, reps=reps)
    over = Spread.of([1000 * (a - b) for a, b in zip(samples["dse"].wall, samples["pydantic"].wall, strict=True)])
    cpu = Spread.of([1000 * (a - b) for a, b in zip(samples["dse"].cpu, samples["pydantic"].cpu, strict=True)])
    return Row(
        "imports", what,
        f"{over.text(0)} ms more ({samples['dse'].ms().text(0)} against {samples['pydantic'].ms().text(0)}); CPU {cpu.text(0)} ms more",
        f"at most {target:g} ms more" if target else "", over.median <= target if target else None,
    )  # fmt: skip


def _ignore(_: object) -> None:
    pass


def _artifact_rows(python: Callable[..., str], folder: Path, *, reps: int) -> list[Row]:
    from dse.artifacts.artifact import Artifact
    from dse.compiler.gate import recompute

    path = example_artifact().save(folder / "artifact.json")
    size = path.stat().st_size / 1000

    def ids_and_tables() -> None:
        if not Artifact.load(path).verify().ok:
            raise AssertionError("the artifact does not hold up")

    def with_gate() -> None:
        if not Artifact.load(path).verify(recompute).ok:
            raise AssertionError("the gate cannot be recomputed")

    samples = interleaved({"load": ids_and_tables, "gate": with_gate}, reps=reps)
    cold = Spread.of([float(python(_COLD, str(path))) for _ in range(1 + reps)][1:])
    load, gate = samples["load"], samples["gate"]
    return [
        Row("imports", f"load and verify an artifact of {size:.0f} kB (ids, tables)", f"{load.ms().text(1)} ms; CPU {load.cpu_ms().text(1)} ms",
            f"at most {TARGET_ARTIFACT_MS:g} ms", load.ms().median <= TARGET_ARTIFACT_MS),
        Row("imports", "the same as the first thing a process does after `from dse import load`, with the imports it needs",
            f"{cold.text(0)} ms"),
        Row("imports", "load and verify, with the gate recomputed from the evidence", f"{gate.ms().text(0)} ms; CPU {gate.cpu_ms().text(0)} ms"),
    ]  # fmt: skip


def example_artifact(plan: Any = None, signature: Any = None) -> Any:
    """An artifact as a compile of the shipped ``expenses`` task gives it, with invented scores.

    Args:
        plan, signature: of another program, which needs no model, with the same evidence.
    """
    from dse.artifacts.artifact import Artifact
    from dse.compiler.gate import PairedRow, gate
    from dse.compiler.gate import evidence as gate_evidence
    from dse.plan import Plan, Prompt, program_id
    from dse.strategies.base import baseline_plan
    from signatures.expenses import task

    spec, objective = task.spec if signature is None else signature.spec(), task.objective
    toolbox = spec.toolbox()
    model: dict[str, Any] = {"name": "scripted/benchmark", "params": {"temperature": 0.0}} if plan is None else {"name": "none", "params": {}}
    demo = {"question": "Who spent more than planned?", "api": "(as below)", "transcript": "(nothing yet)",
            "code": "\n".join(f"found_{i} = await get_team_members('team {i}')" for i in range(20))}  # fmt: skip
    plan = plan or Plan(
        mode="code", prompts={"code": Prompt(instructions=spec.instructions, demos=(demo, demo))}, allow=spec.tool_names
    )
    base = baseline_plan(spec)

    def id_of(one: Plan) -> str:
        return program_id(spec, one, toolbox, model["name"], model["params"])

    def row(name: str, one: Plan) -> dict[str, Any]:
        return {"candidate": name, "mode": one.mode, "program_id": id_of(one), "allow": list(one.allow), "n": 40, "quality": 0.8,
                "quality_low": 0.7, "quality_high": 0.9, "cost_usd": 0.001, "cost_source": "exact", "tokens_in": 812.5,
                "tokens_out": 90, "usage_source": "exact", "latency_s": 1.5, "latency_source": "recorded", "model_calls": 2,
                "tool_calls": 3.5, "failures": 1}  # fmt: skip

    paired = [
        PairedRow(_sha(f"row {i}"), f"cluster {i // 2}", float(i < 30), float(i % 2), 0.001, 0.002, 1.5, 2.5)
        for i in range(40)
    ]
    given: dict[str, Any] = {"objective": objective, "baseline_exposure": 0, "candidate_exposure": 0, "seed": 3}
    split = {name: {"rows": 40, "clusters": 20, "hash": _sha(name)} for name in ("search", "select", "holdout")}
    evidence = {
        "dataset": {"name": "expenses", "revision": _sha("data"), "split": split},
        "metric": {"name": task.metric.name, "revision": task.metric.revision, "kind": task.metric.kind}, "environment": None,
        "toolbox_revision": toolbox.revision(spec.tool_names), "objective": objective.to_dict(), "seed": 3,
        "inputs_digest": _sha("inputs"), "modes": [row(plan.mode, plan), *(row(f"tool_call {i}", base) for i in range(11))],
        "gate": gate(paired, **given).to_dict(), "paired": gate_evidence(paired, **given),
        "incumbent": {"program_id": id_of(base), "artifact_id": None, "kind": "baseline", "mode": base.mode},
        "candidates_tried": 12, "holdout_openings": 1,
        "spend": {"model_calls": 400, "input_tokens": 325_000, "output_tokens": 36_000, "usage_source": "exact", "cost_usd": 0.4,
                  "cost_source": "estimated"},
        "allow_lists": {"all": list(spec.tool_names), "used": list(plan.allow), "solved_rows": 21, "exact": True},
        "removed_tools": [], "demos": {"rows": [_sha("search row")]}, "model_label": "scripted", "price_table": None, "notes": [],
    }  # fmt: skip
    contracts = {name: toolbox[name].contract for name in plan.allow}
    return Artifact.build(signature=spec.to_dict(), plan=plan, contracts=contracts, model=model, evidence=evidence, cwd=ROOT)


def _sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
