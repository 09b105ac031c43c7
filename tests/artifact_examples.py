"""A small program and its evidence, artifacts made of them, and what an attacker would do to their files."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal

import dse
from dse.artifacts.artifact import Artifact
from dse.artifacts.content import Envelope, envelope_digest
from dse.canonical import canonical_json, digest, parse_json
from dse.compiler.gate import PairedRow, gate
from dse.compiler.gate import evidence as gate_evidence
from dse.plan import Plan, Prompt, program_id

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))


def sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@dse.tool(effect="read", timeout_s=5, max_calls=9)
def look_up(person: str, quarter: Literal["Q1", "Q2"] = "Q1") -> list[str]:
    """Notes about a person.

    Args:
        person: full name
    """
    return []


@dse.tool(effect="write", approval="always", sensitive=["body"])
def send_mail(to: str, body: str) -> bool:
    """Send a mail."""
    return True


@dse.tool(effect="pure")
def add_up(amounts: list[float]) -> float:
    """The sum."""
    return sum(amounts)


class Audit(dse.Signature):
    """Find who is over budget."""

    question: str = dse.InputField(desc="what to find out")
    year: int = dse.InputField(default=2025)
    names: list[str] = dse.OutputField()
    tools = [look_up, send_mail, add_up]


SPEC = Audit.spec()
TOOLS = SPEC.toolbox()
MODEL = {"name": "scripted/audit", "params": {"temperature": 0.0}}
BASELINE = Plan(mode="tool_call", prompts={"act": Prompt(instructions="Find them.")}, allow=SPEC.tool_names)


def id_of(plan: Plan) -> str:
    return program_id(SPEC, plan, TOOLS, MODEL["name"], MODEL["params"])


def rows(better: int, n: int = 24) -> list[PairedRow]:
    """n holdout rows in n / 2 clusters; the candidate is right and the incumbent wrong in the first `better`."""
    return [PairedRow(sha(f"row {i}"), f"cluster {i // 2}", 1.0 if i < better else 0.5, 0.0 if i < better else 0.5,
                      0.001, 0.002, 1.5, 2.5) for i in range(n)]  # fmt: skip


def table_row(name: str, plan: Plan, **changes: Any) -> dict[str, Any]:
    return {"candidate": name, "mode": plan.mode, "program_id": id_of(plan), "allow": list(plan.allow), "n": 30,
            "quality": 0.8, "quality_low": 0.7, "quality_high": 0.9, "cost_usd": 0.001, "cost_source": "exact",
            "tokens_in": 812.5, "tokens_out": 90, "usage_source": "exact", "latency_s": 1.5, "latency_source": "recorded",
            "model_calls": 2, "tool_calls": 3.5, "failures": 1, **changes}  # fmt: skip


def evidence(plan: Plan, *, better: int = 12, incumbent: Plan = BASELINE, **changes: Any) -> dict[str, Any]:
    objective = dse.Objective(exposure_weight=0.01)
    given = {"objective": objective, "baseline_exposure": 1, "candidate_exposure": 1, "seed": 3}
    split = {name: {"rows": 40, "clusters": 20, "hash": sha(name)} for name in ("search", "select", "holdout")}
    return {
        "dataset": {"name": "expenses", "revision": sha("data"), "split": split},
        "metric": {"name": "f1", "revision": "1", "kind": "exact"},
        "environment": {"name": "company", "revision": "1"},
        "toolbox_revision": "t-1", "objective": objective.to_dict(), "seed": 3, "inputs_digest": sha("inputs"),
        "modes": [table_row("winner", plan), table_row("baseline", incumbent)][: 1 if plan == incumbent else 2],
        "gate": gate(rows(better), **given).to_dict(), "paired": gate_evidence(rows(better), **given),
        "incumbent": {"program_id": id_of(incumbent), "artifact_id": None, "kind": "baseline", "mode": incumbent.mode},
        "candidates_tried": 7, "holdout_openings": 1,
        "spend": {"model_calls": 400, "input_tokens": 325_000, "output_tokens": 36_000, "usage_source": "exact",
                  "cost_usd": 0.4, "cost_source": "estimated"},
        "allow_lists": {"all": list(SPEC.tool_names), "used": list(plan.allow), "solved_rows": 21, "exact": True},
        "removed_tools": [{"name": t.name, "effect": t.contract.effect} for t in TOOLS if t.name not in plan.allow],
        "demos": {"rows": [sha("search row")]}, "model_label": "scripted", "price_table": None, "notes": ["größer: 3 €"],
        **changes,
    }  # fmt: skip


def a_plan(instructions: str = "Find them with code.\nBe exact.", **changes: Any) -> Plan:
    demo = {"question": "Who?", "transcript": [{"code": "await look_up('Zoë')", "out": "[]"}], "names": ["Zoë"]}
    return Plan(**{"mode": "code", "prompts": {"act": Prompt(instructions=instructions, demos=(demo,))},
                   "allow": ("add_up", "look_up"), "knobs": {"demos_from": "search"}, **changes})  # fmt: skip


ENVELOPE = Envelope(created="2026-01-02T03:04:05.678Z", duration_s=61.5, dse_version="0.1.0", dspy_version="3.4.1",
                    pydantic_monty_version="1.4.0", python="3.11.7", git={"commit": "a" * 40, "dirty": False}, host="h",
                    parent=None, budget={"usd": 2.0}, digest=sha(""), signature=None)  # fmt: skip


def make(plan: Plan | None = None, *, envelope: Envelope = ENVELOPE, **changes: Any) -> Artifact:
    plan = plan or a_plan()
    return Artifact.build(signature=SPEC.to_dict(), plan=plan, contracts={n: TOOLS[n].contract for n in plan.allow},
                          model=MODEL, evidence=evidence(plan, **changes), envelope=envelope)  # fmt: skip


def plain(artifact: Artifact) -> dict[str, Any]:
    return parse_json(artifact.to_bytes())


def forge(change: Callable[[dict[str, Any]], Any], artifact: Artifact | None = None, *, program: bool = False) -> bytes:
    """A file with `change` applied to its data, and the digests made right again: what an editor without a key can do."""
    data = plain(artifact or make())
    change(data)
    content = data["content"]
    if program:
        inner = content["program"]
        content["program"]["program_id"] = digest({
            "signature": inner["signature"]["signature_id"], "plan": digest(inner["plan"]), "model": inner["model"]["name"],
            "contracts": {n: [i["interface_id"], i["policy_id"]] for n, i in inner["tool_ids"].items()},
            "params": inner["model"]["params"]})  # fmt: skip
    content["artifact_id"] = digest({key: value for key, value in content.items() if key != "artifact_id"})
    data["envelope"]["digest"] = envelope_digest(content["artifact_id"], data["envelope"])
    return canonical_json(data)


def at(data: Any, path: str) -> tuple[Any, Any]:
    """The container and the last key of a dotted path."""
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in way:
        data = data[part]
    return data, last


def replaced(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        container, last = at(data, path)
        container[last] = value(container[last]) if callable(value) else value

    return change


def removed(path: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        container, last = at(data, path)
        del container[last]

    return change


def run(code: str, *arguments: Any) -> str:
    """What `code` prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout.strip()
