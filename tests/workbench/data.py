"""Where the requests and databases are, and the dataset made of them.

A template (ten requests of one wording) is a cluster. In each domain the templates are taken in the order of their
hash: two for search, two for select, all others for the holdout. So every split has both domains, and neither the rows
nor their order decide.
"""

from __future__ import annotations

import csv
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dse.canonical import digest
from dse.evaluation.dataset import Dataset

__all__ = ["NOW", "NO_DATA", "dataset", "folder", "menu", "placements", "requests", "tables"]

PLACE = "DSE_BENCH_DATA"
NO_DATA = f"There is no WorkBench data: set {PLACE} to the folder that holds workbench/"
NOW = "2023-11-30 00:00:00"
DOMAINS = ("calendar", "email")
OPEN = {"search": 2, "select": 2}  # templates per domain; the others are sealed

Table = Mapping[str, Mapping[str, str]]

_FILES = {"calendar": ("calendar_events", "event_id"), "email": ("emails", "email_id"),
          "project_management": ("project_tasks", "task_id"),
          "customer_relationship_manager": ("customer_relationship_manager_data", "customer_id")}  # fmt: skip


def folder() -> Path | None:
    """The folder with requests and databases, or None."""
    root = Path(__file__).resolve().parents[2]
    place = Path(os.environ[PLACE]) if os.environ.get(PLACE) else root.parent / "shared" / "bench"
    found = place / "workbench"
    return found if (found / "tools.jsonl").is_file() else None


def _there() -> Path:
    found = folder()
    if found is None:
        raise FileNotFoundError(NO_DATA)
    return found


def _csv(name: str) -> list[dict[str, str]]:
    with (_there() / "db" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@functools.cache
def tables() -> dict[str, Table]:
    """The databases by table and id. Analytics has visits (numbered, never written) and an empty table of plots."""
    found: dict[str, Table] = {name: {row[key]: row for row in _csv(file)} for name, (file, key) in _FILES.items()}
    found["visits"] = {str(number): row for number, row in enumerate(_csv("analytics_data"))}
    with (_there() / "db" / "email_addresses.csv").open(encoding="utf-8") as file:  # has no header
        found["directory"] = {line.strip(): {"email_address": line.strip()} for line in file if line.strip()}
    return {**found, "analytics": {}}


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (_there() / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@functools.cache
def requests() -> tuple[dict[str, Any], ...]:
    """All requests as they are in the files: ``id``, ``inputs``, ``gold_calls``, ``template`` ..."""
    return tuple(row for domain in DOMAINS for row in _lines(domain))


@functools.cache
def menu() -> dict[str, dict[str, Any]]:
    """The description of every tool by its name: ``params``, ``effect`` ..."""
    return {one["name"]: one for one in _lines("tools")}


def placements() -> dict[str, str]:
    """The split of every template."""
    placed: dict[str, str] = {}
    for domain in DOMAINS:
        templates = sorted({row["template"] for row in requests() if row["template"].startswith(f"{domain}/")}, key=digest)
        splits = [split for split, number in OPEN.items() for _ in range(number)]
        placed |= {name: splits[at] if at < len(splits) else "holdout" for at, name in enumerate(templates)}
    return placed


@functools.cache
def dataset() -> Dataset:
    """All requests; templates never span splits. The sentence of context is the same in all: the signature says it."""
    rows = [{"id": row["id"], "query": row["inputs"]["query"], "now": f"Thursday {NOW}", "gold_calls": row["gold_calls"],
             "template": row["template"]} for row in requests()]  # fmt: skip
    fields = {"query": "input", "now": "input", "gold_calls": "label", "template": "meta"}
    return Dataset.from_rows(rows, name="workbench", fields=fields, cluster_key="template", assignment=placements())
