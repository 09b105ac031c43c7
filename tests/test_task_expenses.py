"""The shipped task AuditExpenses: its labels, rows, builder, tools and metric."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dse
from signatures import expenses as task_module
from signatures.expenses_world import CATEGORIES, QUARTERS, CompanyWorld, convert_cents

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "datasets" / "expenses"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in (FOLDER / "data.jsonl").read_text("utf-8").splitlines()]
TOOLS = {tool.name: tool for tool in task_module.AuditExpenses.spec().tools}


def context(world: CompanyWorld) -> dse.ToolContext[CompanyWorld]:
    return dse.ToolContext(deps=world, run_id="run", call_id=1, idempotency_key="key", deadline=0.0)


async def call(world: CompanyWorld, name: str, /, **arguments: Any) -> Any:
    """One call as a program sees it: plain JSON data back."""
    tool = TOOLS[name]
    made = tool(context(world), **arguments)
    made = await made if tool.is_async else made
    return tool.returns.dump_python(made, mode="json")


# -- labels, computed a second time from what the tools return and what the policy says ---------------


async def audited(world: CompanyWorld, member: dict[str, Any], category: str, quarter: str) -> dict[str, Any]:
    spent = Decimal(0)
    for item in await call(world, "get_expenses", user_id=member["user_id"], quarter=quarter, category=category):
        if item["status"] in ("rejected", "withdrawn", "rebilled"):
            continue
        euros = item["amount"]
        if item["currency"] != "EUR":
            euros = await call(
                world,
                "convert_currency",
                amount=euros,
                currency=item["currency"],
                on_date=dt.date.fromisoformat(item["date"]),
            )
        if category == "equipment" and euros > 800:
            continue
        spent += Decimal(str(euros))
    custom = await call(world, "get_custom_budget", user_id=member["user_id"], category=category)
    months = {f"2025-{3 * int(quarter[1]) - k:02d}" for k in range(3)}
    away = len(months.intersection(member["leave_months"]))
    if custom and quarter in custom["quarters"]:
        budget = Decimal(str(custom["amount_eur"])) / {"quarter": 1, "year": 4}[custom["per"]]
    else:
        defaults = await call(world, "get_default_budgets")
        found = [d["amount_eur"] for d in defaults if (d["category"], d["level"]) == (category, member["level"])]
        budget = Decimal(str(found[0])) / 3 * (3 - away)
    return {
        "member": member, "category": category, "quarter": quarter, "spent": spent, "budget": round(budget, 2),
        "leave": away > 0, "custom": bool(custom) and quarter in custom["quarters"],
    }  # fmt: skip


async def recomputed(world: CompanyWorld, ask: dict[str, Any]) -> list[tuple[Any, ...]]:
    everyone: dict[int, dict[str, Any]] = {}
    rosters: dict[str, set[int]] = {}
    for team in await call(world, "list_teams"):
        members = await call(world, "get_team_members", team=team["name"])
        rosters[team["name"]] = {m["user_id"] for m in members}
        everyone |= {m["user_id"]: m for m in members}
    seen: set[tuple[int, str, str]] = set()
    over = []
    for part in ask["parts"]:
        ids = set(part.get("people", ())).union(*(rosters.get(name, set()) for name in part.get("teams", ())))
        for user_id in sorted(ids - set(ask.get("exclude", ()))):
            member = everyone[user_id]
            if ask.get("level") not in (None, member["level"]) or ask.get("not_level") == member["level"]:
                continue
            for category, quarter in part["cells"]:
                each = await audited(world, member, category, quarter)
                excess = each["spent"] - each["budget"]
                fits = all(each[key] is (ask[key] == "only") for key in ("leave", "custom") if key in ask)
                if not fits or excess <= ask.get("min_over", 0):
                    continue
                if "min_ratio" in ask and excess / each["budget"] <= Decimal(ask["min_ratio"]) / 100:
                    continue
                if (user_id, category, quarter) not in seen:
                    seen.add((user_id, category, quarter))
                    over.append(each)
    return sorted(
        (e["member"]["user_id"], e["member"]["name"], e["category"], e["quarter"], float(e["spent"]), float(e["budget"]))
        for e in cut_down(over, ask, rosters)
    )


def cut_down(over: list[dict[str, Any]], ask: dict[str, Any], rosters: dict[str, set[int]]) -> list[dict[str, Any]]:
    pick, count = ask.get("pick"), ask.get("count", 1)
    by_person: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for each in over:
        by_person[each["member"]["user_id"]].append(each)

    def excess(each: dict[str, Any]) -> Decimal:
        return each["spent"] - each["budget"]

    if pick == "most":
        return sorted(over, key=excess)[-count:]
    if pick == "least":
        return sorted(over, key=excess)[:count]
    if pick == "most_ratio":
        return sorted(over, key=lambda e: e["spent"] / e["budget"])[-count:]
    if pick == "most_people":
        best = max(ask["parts"][0]["teams"], key=lambda team: len(rosters[team] & set(by_person)))
        return [e for e in over if e["member"]["user_id"] in rosters[best]]
    if pick in ("every_quarter", "every_category"):
        return [e for e in over if len(by_person[e["member"]["user_id"]]) == 2]
    if pick == "exactly_one":
        return [e for e in over if len(by_person[e["member"]["user_id"]]) == 1]
    if pick == "only_last":
        last = max(quarter for _, quarter in ask["parts"][0]["cells"])
        return [e for e in over if [x["quarter"] for x in by_person[e["member"]["user_id"]]] == [last]]
    assert pick is None
    return over


def test_every_label_is_what_the_tools_and_the_policy_give():
    async def check() -> None:
        for row in ROWS:
            found = await recomputed(CompanyWorld(row["world_seed"]), row["ask"])
            stored = sorted(tuple(entry.values()) for entry in row["over_budget"])
            assert found == stored, row["id"]

    asyncio.run(check())


# -- rows ----------------------------------------------------------------------------------------------


def test_counts_and_balance():
    clusters = Counter(row["scenario"] for row in ROWS)
    assert len(ROWS) >= 420 and len(clusters) >= 84
    assert max(clusters.values()) <= 5
    assert len({row["id"] for row in ROWS}) == len({row["question"] for row in ROWS}) == len(ROWS)
    assert len({row["world_seed"] for row in ROWS}) == len(ROWS)
    sizes = Counter(len(row["over_budget"]) for row in ROWS)
    assert 0.10 <= sizes[0] / len(ROWS) <= 0.15
    assert max(sizes.values()) / len(ROWS) < 0.35
    shares = Counter(entry["category"] for row in ROWS for entry in row["over_budget"])
    assert set(shares) == set(CATEGORIES) and max(shares.values()) < 1.5 * min(shares.values())
    assert len({row["language"] for row in ROWS}) >= 8


def test_needed_calls_stay_in_bounds():
    outside = [row for row in ROWS if not 5 <= row["calls"] <= 30]
    assert all(row["calls"] < 5 and not row["over_budget"] for row in outside)  # about people who do not exist
    assert len(outside) <= 4


def test_questions_of_different_scenarios_differ():
    def grams(text: str) -> set[str]:
        return {text[i : i + 5] for i in range(len(text) - 4)}

    bags = [(row["scenario"], grams(row["question"])) for row in ROWS]
    bags.append(("demo", grams(task_module.example_question)))
    for i, (scenario, bag) in enumerate(bags):
        for other, second in bags[:i]:
            if other != scenario:
                assert len(bag & second) / len(bag | second) < 0.8, (scenario, other)


def test_questions_name_what_they_are_about():
    """The names behind `ask` stand in the text; teams that are only hinted at are the exception."""
    for row in ROWS:
        world = CompanyWorld(row["world_seed"])
        text = row["question"]
        for part in row["ask"]["parts"]:
            if row["kind"] in ("team", "two_teams", "parts"):
                assert all(team.lower() in text.lower() for team in part["teams"]), row["id"]
            assert all(world.member(user_id).name.split()[0] in text for user_id in part.get("people", ())), row["id"]
        for user_id in row["ask"].get("exclude", ()):
            assert world.member(user_id).name.split()[0] in text, row["id"]
        for number in ("min_over", "min_ratio"):
            assert str(row["ask"].get(number, "")) in text, row["id"]


def test_first_names_are_enough_within_a_team():
    for row in ROWS:
        world = CompanyWorld(row["world_seed"])
        for team in world.teams():
            members = world.members(team.name)
            assert len({m.name.split()[0] for m in members}) == len(members)


def test_no_case_hangs_on_rounding():
    """Sums in floats, item by item or at the end, decide and state every case alike."""
    for row in ROWS[::4]:
        world = CompanyWorld(row["world_seed"])
        for entry in row["over_budget"]:
            items = world.expenses(entry["user_id"], entry["quarter"], entry["category"])
            counted = [i for i in items if i.status in ("pending", "approved", "paid")]
            euros = [convert_cents(round(i.amount * 100), i.currency, i.date) / 100 for i in counted]
            total = sum(e for e in euros if entry["category"] != "equipment" or e <= 800)
            assert total > entry["budget_eur"] + 0.4
            assert round(total, 2) == entry["spent_eur"]


# -- builder -------------------------------------------------------------------------------------------


def test_builder_gives_the_committed_bytes(tmp_path: Path):
    subprocess.run([sys.executable, str(FOLDER / "build.py"), "--out", str(tmp_path)], check=True, capture_output=True)
    assert (tmp_path / "data.jsonl").read_bytes() == (FOLDER / "data.jsonl").read_bytes()
    built, stored = (json.loads((folder / "dataset.json").read_text("utf-8")) for folder in (tmp_path, FOLDER))
    for meta in (built, stored):  # filled in by dse after building
        meta["revision"] = meta["split"]["assignment"] = None
    assert built == stored


def test_dataset_json_covers_every_field():
    meta = json.loads((FOLDER / "dataset.json").read_text("utf-8"))
    assert all(set(meta["fields"]) == set(row) - {"id"} for row in ROWS)
    assert meta["fields"]["question"] == "input" and meta["fields"]["over_budget"] == "label"
    assert meta["fields"][meta["cluster_key"]] == "meta"


# -- company and tools ---------------------------------------------------------------------------------


def test_a_company_is_cheap_and_always_the_same():
    def everything(world: CompanyWorld) -> list[str]:
        people = {m.user_id: m for team in world.teams() for m in world.members(team.name)}
        return [
            *(m.model_dump_json() for m in people.values()),
            *(item.model_dump_json() for user_id in people for q in QUARTERS for item in world.expenses(user_id, q)),
        ]

    assert everything(CompanyWorld(17)) == everything(CompanyWorld(17))
    assert everything(CompanyWorld(17)) != everything(CompanyWorld(18))
    took = []
    for seed in range(40):
        start = time.perf_counter()
        CompanyWorld(seed)
        took.append(time.perf_counter() - start)
    assert sorted(took)[20] < 0.005


@given(st.integers(0, 10**9))
def test_companies_are_well_formed(seed: int):
    world = CompanyWorld(seed)
    teams = world.teams()
    assert 4 <= len(teams) <= 12
    for team in teams:
        members = world.members(team.name)
        assert 5 <= len(members) <= 10
        assert team.manager not in {m.name for m in members}
    member = world.members(teams[0].name)[0]
    assert [m.user_id for m in world.find(member.name)] == [member.user_id]
    for category in CATEGORIES:
        for quarter in QUARTERS:
            for item in world.expenses(member.user_id, quarter, category):
                assert item.category == category
                assert (item.date.month - 1) // 3 == QUARTERS.index(quarter)
                assert abs(item.amount * 100 - round(item.amount * 100)) < 1e-6
                # nothing lies near the limit above which equipment is not charged
                euros = convert_cents(round(item.amount * 100), item.currency, item.date) / 100
                assert category != "equipment" or item.status not in ("pending", "approved", "paid") or not 760 < euros < 840


def test_tools_find_people_and_refuse_nonsense():
    world = CompanyWorld(5)

    async def check() -> None:
        team = (await call(world, "list_teams"))[0]
        members = await call(world, "get_team_members", team=f" {team['name'].upper()} ")
        assert members == await call(world, "get_team_members", team=team["name"]) != []
        assert await call(world, "get_team_members", team="Choir") == []
        assert await call(world, "find_employee", name="  ") == []
        someone = members[0]
        assert someone in await call(world, "find_employee", name=someone["name"].split()[1].upper())
        together = await call(world, "get_expenses", user_id=someone["user_id"], quarter="Q2")
        apart = [
            item
            for category in CATEGORIES
            for item in await call(world, "get_expenses", user_id=someone["user_id"], quarter="Q2", category=category)
        ]
        assert sorted(i["item_id"] for i in together) == sorted(i["item_id"] for i in apart)
        profile = await call(world, "get_employee_profile", user_id=someone["user_id"])
        assert profile["name"] == someone["name"] and "level" not in profile
        assert await call(world, "get_office_calendar", quarter="Q2")
        assert await call(world, "list_vendors", category="travel")
        with pytest.raises(LookupError, match="no employee 1"):
            await call(world, "get_expenses", user_id=1, quarter="Q2")
        with pytest.raises(ValueError, match="2025 only"):
            await call(world, "convert_currency", amount=1.0, currency="USD", on_date=dt.date(2024, 1, 1))

    asyncio.run(check())


def test_names_are_found_without_accents():
    world = CompanyWorld(next(r["world_seed"] for r in ROWS if "Łukasz" in json.dumps(r, ensure_ascii=False)))
    people = {m.user_id: m for team in world.teams() for m in world.members(team.name)}
    for member in people.values():
        if "Łukasz" in member.name:
            assert member.user_id in {m.user_id for m in world.find("lukasz")}


def test_conversion_is_symmetric_and_depends_on_the_day():
    day = dt.date(2025, 3, 4)
    assert convert_cents(12_345, "EUR", day) == 12_345
    assert convert_cents(-12_345, "USD", day) == -convert_cents(12_345, "USD", day)
    assert len({convert_cents(1_000_000, "GBP", dt.date(2025, month, 1)) for month in range(1, 13)}) > 6


def test_every_category_policy_points_to_the_general_rules():
    world = CompanyWorld(1)
    assert all("general" in world.policy(category) for category in CATEGORIES)


def test_only_reading_and_more_tools_than_needed():
    assert {tool.contract.effect for tool in TOOLS.values()} == {"read", "pure"}
    assert {"get_employee_profile", "get_office_calendar", "list_vendors"} < set(TOOLS)
    assert len(TOOLS) == 11
    assert all("ctx" not in tool.contract.parameters["properties"] for tool in TOOLS.values())


def test_environment_gives_the_rows_company():
    async def check() -> None:
        row = ROWS[0]
        example = SimpleNamespace(meta={"world_seed": row["world_seed"]})
        async with task_module.company_world.enter(example) as world:
            assert world.deps.seed == row["world_seed"]
            assert world.state() == {"world_seed": row["world_seed"]}
        async with task_module.company_world.enter(example) as again:
            assert again.deps is not world.deps

    asyncio.run(check())


def test_demo_company_is_not_in_the_data_and_has_an_answer():
    world = task_module.demo_world()
    assert world.seed not in {row["world_seed"] for row in ROWS}
    (team,) = [t for t in world.teams() if t.manager == "Łukasz Nowak"]
    chloe = next(m for m in world.members(team.name) if m.name == "Chloé Takahashi")
    ask = {"parts": [{"teams": [team.name], "cells": [["travel", "Q1"]]}], "exclude": [chloe.user_id]}
    found = asyncio.run(recomputed(world, ask))
    assert {name for _, name, *_ in found} == {
        "Samir Hakimi", "Selin Pereira", "Chiara Chaudhry", "Emeka Verbeek", "Petra Oliveira",
    }  # fmt: skip


# -- metric --------------------------------------------------------------------------------------------

ENTRY = {"user_id": 7, "name": "Ada Lund", "category": "travel", "quarter": "Q2", "spent_eur": 950.25, "budget_eur": 900.0}
OTHER = {"user_id": 8, "name": "Bo Reyes", "category": "meals", "quarter": "Q2", "spent_eur": 200.0, "budget_eur": 180.0}


def score(gold: list[dict[str, Any]], given: list[dict[str, Any]]) -> dse.Score:
    example = SimpleNamespace(labels={"over_budget": gold}, inputs={}, meta={}, id="row")
    prediction = SimpleNamespace(outputs={"over_budget": given})
    return task_module.over_budget_f1(example, prediction, None)


@pytest.mark.parametrize(
    ("gold", "given", "value"),
    [
        ([], [], 1.0),
        ([ENTRY], [], 0.0),
        ([], [ENTRY], 0.0),
        ([ENTRY, OTHER], [OTHER, ENTRY], 1.0),
        ([ENTRY], [ENTRY | {"spent_eur": 950.26, "budget_eur": 899.99}], 1.0),
        ([ENTRY], [ENTRY | {"spent_eur": 950.27}], 0.5),
        ([ENTRY], [ENTRY | {"budget_eur": 1200.0}], 0.5),
        ([ENTRY], [ENTRY | {"name": "Bo Reyes"}], 0.5),
        ([ENTRY], [ENTRY | {"quarter": "Q3"}], 0.0),
        ([ENTRY, OTHER], [ENTRY], 2 / 3),
        ([ENTRY], [ENTRY, OTHER], 2 / 3),
        ([ENTRY], [ENTRY, ENTRY], 2 / 3),
    ],
)
def test_scores(gold: list[dict[str, Any]], given: list[dict[str, Any]], value: float):
    result = score(gold, given)
    assert result.value == pytest.approx(value)
    assert result.components["exact"] == (value == 1.0)


def test_gold_scores_one_and_careless_answers_less():
    for row in ROWS:
        gold = row["over_budget"]
        assert score(gold, gold).value == 1.0
        assert score(gold, []).value == float(not gold)


def test_feedback_says_what_is_missing_extra_and_wrong():
    third = OTHER | {"user_id": 9, "name": "Cy Obi"}
    feedback = score([ENTRY, OTHER], [ENTRY | {"spent_eur": 1.0}, third]).feedback
    assert "Missing: Bo Reyes (8) meals Q2: spent 200.00 of 180.00." in feedback
    assert "Not over budget, or not asked for: Cy Obi (9)" in feedback
    assert "spent 1.00 of 900.00, should be Ada Lund (7) travel Q2: spent 950.25 of 900.00" in feedback
    assert score([], []).feedback == "Right: nobody was over."
    many = [ENTRY | {"user_id": n} for n in range(9)]
    assert "and 4 more" in score(many, []).feedback
