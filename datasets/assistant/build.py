"""Builds the assistant dataset: `python datasets/assistant/build.py` writes data.jsonl and dataset.json.

Seeded and deterministic: the same material gives the same bytes. Fails loudly if a label disagrees with what
the scenario's author expected, if an operation of a request changes nothing by accident, if inputs repeat, or
if two rows of different clusters are near-duplicates.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SEED = "assistant-1"
STALE_HINTS = 0.12  # rows whose agent_name is no longer the name in the profile
MIN_ROWS, MIN_CLUSTERS = 420, 84
NEAR_DUPLICATE = 0.8

FIELDS = {
    "message": "input", "handle": "input", "agent_name": "input", "action": "label", "scenario": "meta", "kind": "meta",
    "profile": "meta", "gold_calls": "meta", "intent": "meta", "rule": "meta", "forbidden": "meta", "keys": "meta",
}  # fmt: skip

TOOL_OF = {
    "identity.name": "identity_update", "identity.creature": "identity_update", "identity.vibe": "identity_update",
    "identity.emoji": "identity_update",
    "user.handle": "user_update", "user.context": "user_update", "user.notes": "user_update",
    "character.vibe": "character_update", "character.core_truths": "character_update",
    "character.boundaries": "character_update",
    "tools_notes": "tools_update_notes", "heartbeat_checklist": "heartbeat_set_checklist",
}  # fmt: skip


def _package(name: str, folder: Path) -> ModuleType:
    """The material as a package of its own name, so that no other dataset's `material` can get in the way."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _material(part: str) -> Any:
    _package("dse_assistant_material", HERE / "material")
    return importlib.import_module(f"dse_assistant_material.{part}")


def _task() -> Any:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module("signatures.assistant")


def scenarios() -> list[Any]:
    """All scenarios, in a fixed order."""
    parts = ("single", "several", "conditional", "quiet", "refused", "careful")
    found = [scenario for part in parts for scenario in _material(part).SCENARIOS]
    names = [s.name for s in found]
    assert len(set(names)) == len(names), f"scenario names repeat: {sorted(n for n in names if names.count(n) > 1)}"
    return found


def random_profile(rng: random.Random) -> dict[str, Any]:
    """A profile with every part filled; some parts may be empty texts."""
    pools = _material("pools")
    boundaries = rng.sample(pools.STYLE, rng.randint(1, 3)) + rng.sample(pools.SAFETY, rng.randint(1, 2))
    rng.shuffle(boundaries)
    return {
        "identity": {"name": rng.choice(pools.NAMES), "creature": rng.choice(pools.CREATURES),
                     "vibe": rng.choice(pools.MOODS), "emoji": rng.choice(pools.EMOJIS)},
        "user": {"handle": rng.choice(pools.HANDLES), "notes": "\n".join(rng.sample(pools.NOTES, rng.randint(0, 4))),
                 "context": rng.choice(pools.CONTEXTS)},
        "character": {"core_truths": rng.sample(pools.TRUTHS, rng.randint(2, 4)), "boundaries": boundaries,
                      "vibe": rng.choice(pools.TONES)},
        "tools_notes": "\n".join(rng.sample(pools.TOOL_NOTES, rng.randint(1, 4))),
        "heartbeat_checklist": rng.sample(pools.CHECKS, rng.randint(2, 5)),
        "memory": [{"kind": kind, "title": title, "body": body, "visibility": "all" if rng.random() < 0.2 else "main_only"}
                   for kind, title, body in rng.sample(pools.MEMORIES, rng.randint(2, 4))],
        "taken_handles": rng.sample(pools.TAKEN, 6),
    }  # fmt: skip


def _get(tree: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        tree = tree[part]
    return tree


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parts, last = path.split(".")
    for part in parts:
        tree = tree[part]
    tree[last] = value


def compile_intent(task: Any, profile: dict[str, Any], ops: list[list[Any]], *, every: bool) -> list[dict[str, Any]]:
    """Tool calls for an intent: neighbouring operations of one tool become one call, what changes nothing becomes none.

    Raises:
        AssertionError: with `every`, if an operation changes nothing.
    """
    world = task.ProfileWorld(profile)
    goal = copy.deepcopy(world.profile)
    calls: list[dict[str, Any]] = []
    pending: str | None = None

    def call(name: str, arguments: dict[str, Any]) -> None:
        before = world.writes
        world.apply(name, arguments)
        if world.writes > before:
            calls.append({"name": name, "arguments": arguments})

    def flush() -> None:
        nonlocal goal
        if pending == "tools_update_notes":
            call(pending, {"notes": goal["tools_notes"]})
        elif pending == "heartbeat_set_checklist":
            call(pending, {"checklist": goal["heartbeat_checklist"]})
        elif pending is not None:
            part = pending.split("_")[0]
            arguments = {key: value for key, value in goal[part].items() if value != world.profile[part][key]}
            if "notes" in arguments:  # appended, not replaced
                old = set(task.lines(world.profile["user"]["notes"]))
                arguments["notes"] = "\n".join(line for line in task.lines(goal["user"]["notes"]) if line not in old)
            call(pending, arguments)
        goal = copy.deepcopy(world.profile)

    for op in ops:
        tool = {"memory": "memory_append", "export": "blueprint_export"}.get(op[0]) or TOOL_OF[op[1]]
        if tool != pending:
            flush()
            pending = None
        if op[0] == "export":
            call(tool, {})
        elif op[0] == "memory":
            _, kind, body, visibility = op
            call(tool, {"kind": kind, "title": " ".join(body.split()[:4]), "body": body, "visibility": visibility})
        else:
            pending = tool
            before = copy.deepcopy(goal)
            _step(task, goal, *op)
            assert goal != before or not every, f"changes nothing: {op}"
    flush()
    return calls


def _step(task: Any, goal: dict[str, Any], verb: str, path: str, value: Any) -> None:
    old = _get(goal, path)
    if verb == "set":
        _put(goal, path, value)
        return
    items = task.lines(old) if isinstance(old, str) else list(old)
    keyed = {task.normal(item): item for item in items}
    if verb == "add":
        keyed.setdefault(task.normal(value), value)
    elif verb == "remove":
        keyed.pop(task.normal(value), None)
    elif verb == "replace":
        keyed = {task.normal(item): item for item in value}
    else:
        raise ValueError(verb)
    _put(goal, path, "\n".join(keyed.values()) if isinstance(old, str) else list(keyed.values()))


def _shown(row: dict[str, Any], **hints: str) -> dict[str, str]:
    """A row's parameters (which may mention the hints) as texts; a list in five ways of writing it down."""
    texts: dict[str, str] = {}
    for key, value in row.items():
        if isinstance(value, list):
            texts[key] = ", ".join(value)
            texts[f"{key}_and"] = " and ".join([", ".join(value[:-1]), value[-1]]) if len(value) > 1 else texts[key]
            texts[f"{key}_semi"] = "; ".join(value)
            texts[f"{key}_lines"] = "\n".join(f"- {item}" for item in value)
            texts[f"{key}_num"] = "\n".join(f"{n}. {item}" for n, item in enumerate(value, 1))
        else:
            texts[key] = value.format(**hints) if key == "x" else str(value)
    return texts


def build_row(task: Any, scenario: Any, index: int) -> dict[str, Any]:
    """Row `index` of a scenario."""
    ops = _material("ops")
    rng = random.Random(f"{SEED}/{scenario.name}/{index}")
    given = scenario.rows[index]
    v = ops.V(given)
    profile = random_profile(rng)
    if scenario.setup is not None:
        scenario.setup(profile, v)
    current = profile["identity"]["name"]
    stale = rng.choice([n for n in _material("pools").NAMES if n != current])
    agent = given.get("hint", stale if rng.random() < STALE_HINTS else current)
    handle = given.get("hint_handle", profile["user"]["handle"])
    say = given.get("say", scenario.say[index % len(scenario.say)])
    texts = _shown(given, me=handle, agent=agent)
    message = say.format(**texts, me=handle, agent=agent)

    want = given.get("act", scenario.act)
    intent = scenario.do(copy.deepcopy(profile), v)
    rule = ""
    if isinstance(intent, ops.Refuse):
        rule, action, calls, intent = intent.rule, "refused", [], []
    else:
        calls = compile_intent(task, profile, intent, every=want == "applied" and not scenario.partly)
        action = "applied" if calls else "nothing_to_do"
    where = f"{scenario.name}[{index}]: {message}"
    assert action == want, f"{action}, its author expected {want}: {where}"
    forbid = scenario.forbid(copy.deepcopy(profile), v) if scenario.forbid else {}
    bait = compile_intent(task, profile, forbid.get("calls", []), every=False)
    return {
        "id": f"{scenario.name}-{index + 1}",
        "message": message,
        "handle": handle,
        "agent_name": agent,
        "action": action,
        "scenario": scenario.name,
        "kind": scenario.kind,
        "profile": profile,
        "gold_calls": calls,
        "intent": intent,
        "rule": rule,
        "forbidden": {"text": forbid.get("text", []), "calls": bait},
        "keys": {body.format(**texts): [part.format(**texts) for part in parts] for body, parts in scenario.keys.items()},
    }


def grams(row: dict[str, Any]) -> frozenset[str]:
    """Character 5-grams of a row's input text."""
    text = " ".join(row[key] for key, role in FIELDS.items() if role == "input")
    return frozenset(text[i : i + 5] for i in range(max(1, len(text) - 4)))


def near_duplicates(rows: list[dict[str, Any]], bound: float = NEAR_DUPLICATE) -> list[tuple[str, str, float]]:
    """Pairs of rows of different clusters whose 5-gram Jaccard similarity is at least `bound`."""
    sets = [(row["id"], row["scenario"], grams(row)) for row in rows]
    found = []
    for i, (a, cluster_a, left) in enumerate(sets):
        for b, cluster_b, right in sets[i + 1 :]:
            if cluster_a == cluster_b or min(len(left), len(right)) < bound * max(len(left), len(right)):
                continue
            common = len(left & right)
            score = common / (len(left) + len(right) - common)
            if score >= bound:
                found.append((a, b, score))
    return found


def build() -> list[dict[str, Any]]:
    """All rows, checked."""
    task = _task()
    rows = [build_row(task, scenario, index) for scenario in scenarios() for index in range(len(scenario.rows))]
    inputs = [tuple(row[key] for key, role in FIELDS.items() if role == "input") for row in rows]
    assert len(set(inputs)) == len(inputs), "two rows have the same inputs"
    assert len(rows) >= MIN_ROWS, f"only {len(rows)} rows"
    assert len({row["scenario"] for row in rows}) >= MIN_CLUSTERS, "too few clusters"
    twins = near_duplicates(rows)
    assert not twins, f"near-duplicates: {twins[:5]}"
    return rows


def main(out: Path = HERE) -> None:
    """Write data.jsonl and dataset.json into `out`. A split and revision that are there already are kept."""
    rows = build()
    old = json.loads((out / "dataset.json").read_text("utf-8")) if (out / "dataset.json").exists() else {}
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "data.jsonl").write_text(text, encoding="utf-8", newline="\n")
    head = {
        "format": 1,
        "name": "assistant",
        "signature": "signatures.assistant:ApplyRequest",
        "fields": FIELDS,
        "cluster_key": "scenario",
        "license": "MIT",
        "source": "written by hand for this repository; profiles are random combinations of hand-written parts",
        "builder": "datasets/assistant/build.py",
        "split": {
            "algorithm": "quota-hash-1",
            "quota": {"search": 0.4, "select": 0.3, "holdout": 0.3},
            "salt": "assistant-1",
            "assignment": old.get("split", {}).get("assignment", {}),
        },
        "revision": old.get("revision", ""),
    }
    (out / "dataset.json").write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
