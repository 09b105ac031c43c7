"""The reference answer: what an audit of a `CompanyWorld` must find, in whole cents.

An `ask` is the machine-readable meaning of a question (stored with each row as meta data, never shown to a model):

    {"parts": [{"teams": [...]} or {"people": [...], "cells": [["travel", "Q2"], ...]}, ...],
     "exclude": [user ids], "level" | "not_level": str, "leave" | "custom": "only" | "without",
     "min_over": EUR, "min_ratio": percent, "pick": str, "count": int}

Keys that do not apply are absent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from signatures.expenses_world import (
    ASSET_LIMIT,
    COUNTED,
    CompanyWorld,
    Member,
    convert_cents,
    quarter_months,
)

RULES = ("pending", "status", "refunds", "currency", "asset", "leave", "custom", "custom_quarters", "per_year", "strict")


class Finding(NamedTuple):
    """One person, category and quarter, over budget or not; cents."""

    member: Member
    category: str
    quarter: str
    spent: int
    budget: int
    on_leave: bool
    custom_applies: bool

    @property
    def over(self) -> int:
        return self.spent - self.budget


def scope(world: CompanyWorld, part: dict[str, Any]) -> list[Member]:
    """The people a part of a question is about, each once."""
    people = [m for team in part.get("teams", ()) for m in world.members(team)]
    people += [world.member(user_id) for user_id in part.get("people", ())]
    return list({m.user_id: m for m in people}.values())


def counted_items(world: CompanyWorld, user_id: int, category: str, quarter: str, rules: Iterable[str]) -> list[int]:
    cents: list[int] = []
    for item in world.expenses(user_id, quarter, category):
        amount = round(item.amount * 100)
        if "currency" in rules:
            amount = convert_cents(amount, item.currency, item.date)
        if item.status == "pending" and "pending" not in rules:
            continue
        if item.status not in COUNTED and "status" in rules:
            continue
        if amount < 0 and "refunds" not in rules:
            continue
        if category == "equipment" and amount > ASSET_LIMIT and "asset" in rules:
            continue
        cents.append(amount)
    return cents


def finding(world: CompanyWorld, member: Member, category: str, quarter: str, default: int, rules: Iterable[str]) -> Finding:
    """`default` is the unreduced default budget in cents."""
    custom = world.custom_budget(member.user_id, category)
    months = [month for month in quarter_months(quarter) if month in member.leave_months]
    applies = custom is not None and quarter in custom.quarters
    budget = default * (3 - len(months)) // 3 if "leave" in rules else default
    if custom is not None and "custom" in rules and (applies or "custom_quarters" not in rules):
        budget = round(custom.amount_eur * 100)
        if custom.per == "year" and "per_year" in rules:
            budget //= 4
    spent = sum(counted_items(world, member.user_id, category, quarter, rules))
    return Finding(member, category, quarter, spent, budget, bool(months), applies)


def considered(world: CompanyWorld, ask: dict[str, Any], rules: Iterable[str] = RULES) -> list[Finding]:
    """Every person, category and quarter that the question is about, over budget or not, after its filters."""
    defaults = {(d.category, d.level): round(d.amount_eur * 100) for d in world.default_budgets()}
    found: dict[tuple[int, str, str], Finding] = {}
    for part in ask["parts"]:
        for member in scope(world, part):
            if member.user_id in ask.get("exclude", ()):
                continue
            if member.level != ask.get("level", member.level) or member.level == ask.get("not_level"):
                continue
            for category, quarter in part["cells"]:
                each = finding(world, member, category, quarter, defaults[category, member.level], rules)
                if "leave" in ask and each.on_leave != (ask["leave"] == "only"):
                    continue
                if "custom" in ask and each.custom_applies != (ask["custom"] == "only"):
                    continue
                found[member.user_id, category, quarter] = each
    return list(found.values())


def is_over(each: Finding, ask: dict[str, Any], rules: Iterable[str] = RULES) -> bool:
    if each.over < 0 or (each.over == 0 and "strict" in rules):
        return False
    if each.over <= ask.get("min_over", 0) * 100 and "min_over" in ask:
        return False
    return "min_ratio" not in ask or each.over * 100 > ask["min_ratio"] * each.budget


def picked(world: CompanyWorld, ask: dict[str, Any], over: list[Finding]) -> list[Finding]:
    pick = ask.get("pick")
    count = ask.get("count", 1)
    if pick is None:
        return over
    if pick == "most":
        return sorted(over, key=lambda f: -f.over)[:count]
    if pick == "least":
        return sorted(over, key=lambda f: f.over)[:count]
    if pick == "most_ratio":
        return sorted(over, key=lambda f: -f.over / f.budget)[:count]
    if pick == "most_people":
        by_team = {
            team: {m.user_id for m in world.members(team)} & {f.member.user_id for f in over}
            for team in ask["parts"][0]["teams"]
        }
        ahead = max(by_team.values(), key=len)
        return [f for f in over if f.member.user_id in ahead]
    cells = [tuple(cell) for cell in ask["parts"][0]["cells"]]
    of_person: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for f in over:
        of_person[f.member.user_id].add((f.category, f.quarter))
    if pick in ("every_quarter", "every_category"):
        return [f for f in over if len(of_person[f.member.user_id]) == len(cells)]
    if pick == "exactly_one":
        return [f for f in over if len(of_person[f.member.user_id]) == 1]
    if pick == "only_last":
        return [f for f in over if of_person[f.member.user_id] == {cells[-1]}]
    raise ValueError(f"no such pick: {pick}")


def as_label(each: Finding) -> dict[str, Any]:
    return {
        "user_id": each.member.user_id,
        "name": each.member.name,
        "category": each.category,
        "quarter": each.quarter,
        "spent_eur": each.spent / 100,
        "budget_eur": each.budget / 100,
    }


def answer(world: CompanyWorld, ask: dict[str, Any], findings: list[Finding],
           rules: Iterable[str] = RULES) -> list[dict[str, Any]]:  # fmt: skip
    chosen = picked(world, ask, [f for f in findings if is_over(f, ask, rules)])
    return sorted(map(as_label, chosen), key=lambda entry: (entry["user_id"], entry["category"], entry["quarter"]))


def solve(world: CompanyWorld, ask: dict[str, Any], rules: Iterable[str] = RULES) -> list[dict[str, Any]]:
    """The gold list, ordered by person, category and quarter. Fewer `rules` give the mistakes of a careless reader."""
    return answer(world, ask, considered(world, ask, rules), rules)


def needed_calls(world: CompanyWorld, findings: list[Finding], lookups: int) -> int:
    """Tool calls of a reader who wastes none: look-ups, expenses, budgets, policy texts, conversions."""
    if not findings:
        return lookups
    pairs = {(f.member.user_id, f.category, f.quarter) for f in findings}
    categories = {category for _, category, _ in pairs}
    everything = len(categories) == 5  # fetched with one call a quarter
    fetches = {(u, q) for u, _, q in pairs} if everything else pairs
    conversions = sum(
        item.currency != "EUR" and item.status in COUNTED
        for user_id, category, quarter in pairs
        for item in world.expenses(user_id, quarter, category)
    )
    budgets = {(u, c) for u, c, _ in pairs}
    return lookups + len(fetches) + len(budgets) + 1 + 1 + len(categories) + conversions
