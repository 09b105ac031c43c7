"""AuditExpenses: who exceeded which expense budget.

A question names teams, people, categories and quarters in somebody's own words; answering it takes looking up who is
meant, fetching their expenses and budgets (a fan-out of 5 to 30 calls) and adding up by the rules of the company.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

import dse
from signatures.expenses_world import (
    DEMO_SEED,
    Category,
    Closure,
    CompanyWorld,
    Currency,
    CustomBudget,
    DefaultBudget,
    EmployeeProfile,
    Expense,
    Member,
    PolicyTopic,
    Quarter,
    Team,
    Vendor,
    convert_cents,
)

__all__ = [
    "AuditExpenses", "OverBudget", "company_world", "demo_world", "example_question", "over_budget_f1", "task",
]  # fmt: skip

Context = dse.ToolContext[CompanyWorld]


class OverBudget(BaseModel):
    """One person over one budget in one quarter; amounts in EUR, rounded to 2 places."""

    user_id: int
    name: str
    category: Category
    quarter: Quarter
    spent_eur: float
    budget_eur: float


@dse.tool(effect="read", idempotent=True, timeout_s=5)
def list_teams(ctx: Context) -> list[Team]:
    """All teams of the company with department and manager."""
    return ctx.deps.teams()


@dse.tool(effect="read", idempotent=True, timeout_s=5)
async def get_team_members(ctx: Context, team: str) -> list[Member]:
    """The people of one team (managers are not members); empty when there is no team of this name.

    Args:
        team: exact name of the team
    """
    return ctx.deps.members(team)


@dse.tool(effect="read", idempotent=True, timeout_s=5)
def find_employee(ctx: Context, name: str) -> list[Member]:
    """Everyone whose name contains the given words.

    Args:
        name: first name, surname or both
    """
    return ctx.deps.find(name)


@dse.tool(effect="read", idempotent=True, timeout_s=5)
async def get_expenses(ctx: Context, user_id: int, quarter: Quarter, category: Category | None = None) -> list[Expense]:
    """Expense line items of one person in one quarter of 2025, in the currency in which they were paid.

    Args:
        user_id: the person's id
        category: items of every category when left out
    """
    return ctx.deps.expenses(user_id, quarter, category)


@dse.tool(effect="read", idempotent=True, timeout_s=5)
def get_default_budgets(ctx: Context) -> list[DefaultBudget]:
    """The budgets per category and level."""
    return ctx.deps.default_budgets()


@dse.tool(effect="read", idempotent=True, timeout_s=5)
async def get_custom_budget(ctx: Context, user_id: int, category: Category) -> CustomBudget | None:
    """The budget agreed with one person for one category, if there is one."""
    return ctx.deps.custom_budget(user_id, category)


@dse.tool(effect="read", idempotent=True, timeout_s=5)
def get_policy(ctx: Context, topic: PolicyTopic) -> str:
    """What the expense policy of the company says about a topic."""
    return ctx.deps.policy(topic)


@dse.tool(effect="pure", idempotent=True, timeout_s=5)
async def convert_currency(ctx: Context, amount: float, currency: Currency, on_date: dt.date) -> float:
    """An amount in EUR, rounded to cents.

    Args:
        amount: in `currency`, may be negative
        on_date: the day whose rate is used, in 2025
    """
    return convert_cents(round(amount * 100), currency, on_date) / 100


@dse.tool(effect="read", idempotent=True, timeout_s=5)
def get_employee_profile(ctx: Context, user_id: int) -> EmployeeProfile:
    """Contact data of one person: mail address, office, first day, languages."""
    return ctx.deps.profile(user_id)


@dse.tool(effect="read", idempotent=True, timeout_s=5)
def get_office_calendar(ctx: Context, quarter: Quarter) -> list[Closure]:
    """Days of a quarter on which an office is closed."""
    return ctx.deps.closures(quarter)


@dse.tool(effect="read", idempotent=True, timeout_s=5)
def list_vendors(ctx: Context, category: Category) -> list[Vendor]:
    """Suppliers with a framework contract for a category."""
    return ctx.deps.vendors(category)


class AuditExpenses(dse.Signature):
    """Find who exceeded which expense budget in 2025, no more and no less than the question asks for.

    Budgets hold for one person, one category and one calendar quarter. Give one entry for each person, category and
    quarter in which the spending that counts was above the budget that applied, with both amounts in EUR. The list
    is empty when nobody meant by the question was over budget, or when the question is about a team or person that
    the company does not have.
    """

    question: str = dse.InputField(desc="What somebody wants to know, in their own words")
    over_budget: list[OverBudget] = dse.OutputField(desc="One entry per person, category and quarter over budget")
    tools = [
        list_teams,
        get_team_members,
        find_employee,
        get_expenses,
        get_default_budgets,
        get_custom_budget,
        get_policy,
        convert_currency,
        get_employee_profile,
        get_office_calendar,
        list_vendors,
    ]


@dse.environment(revision="1")  # raise it whenever CompanyWorld makes something else of a seed
def company_world(example: dse.Example) -> Iterator[dse.World]:
    """The row's own company; every tool only reads."""
    world = CompanyWorld(example.meta["world_seed"])
    yield dse.World(deps=world, state=lambda: world.snapshot())


TOLERANCE = 0.01 + 1e-9  # EUR: rounding each item or the total must not matter
SHOWN = 5


def _key(entry: dict) -> tuple[int, str, str]:
    return entry["user_id"], entry["category"], entry["quarter"]


def _told(entry: dict) -> str:
    return (
        f"{entry['name']} ({entry['user_id']}) {entry['category']} {entry['quarter']}: "
        f"spent {entry['spent_eur']:.2f} of {entry['budget_eur']:.2f}"
    )


def _section(title: str, lines: list[str]) -> str:
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"{title}: {'; '.join(lines[:SHOWN])}{more}." if lines else ""


@dse.metric(revision="1")
def over_budget_f1(example: dse.Example, prediction: object, ctx: object) -> dse.Score:
    """F1 over (person, category, quarter), in [0, 1].

    A right key counts 1 with the right name and both amounts within a cent, else 0.5. A key given twice counts once;
    its repetition is an extra entry. Nothing expected and nothing given is 1.0.
    """
    gold = {_key(entry): entry for entry in example.labels["over_budget"]}
    given = prediction.outputs["over_budget"]
    missing = dict(gold)
    extra: list[str] = []
    wrong: list[str] = []
    credit = 0.0
    for entry in given:
        expected = missing.pop(_key(entry), None)
        if expected is None:
            extra.append(_told(entry))
            continue
        amounts_right = all(abs(entry[field] - expected[field]) <= TOLERANCE for field in ("spent_eur", "budget_eur"))
        name_right = entry["name"].strip().casefold() == expected["name"].casefold()
        credit += 1.0 if amounts_right and name_right else 0.5
        if not (amounts_right and name_right):
            wrong.append(f"{_told(entry)}, should be {_told(expected)}")
    found = len(gold) - len(missing)
    total = len(gold) + len(given)
    value = 2 * credit / total if total else 1.0
    parts = (
        _section("Missing", [_told(entry) for entry in missing.values()]),
        _section("Not over budget, or not asked for", extra),
        _section("Right entry, wrong details", wrong),
    )
    feedback = " ".join(part for part in parts if part)
    return dse.Score(
        value,
        feedback or ("Right: nobody was over." if not gold else "All entries right."),
        {
            "exact": float(value == 1.0),
            "precision": found / len(given) if given else float(not gold),
            "recall": found / len(gold) if gold else float(not given),
            "details": (found - len(wrong)) / found if found else float(not gold and not given),
        },
    )


task = dse.Task(
    AuditExpenses,
    dataset=Path(__file__).parent.parent / "datasets" / "expenses",
    metric=over_budget_f1,
    environment=company_world,
    # A right answer is worth 25 cents; a tool that cannot be called any more is worth a tenth of a point.
    objective=dse.Objective(cost_weight=4.0, exposure_weight=0.001, max_quality_loss=0.05),
)

example_question = (
    "A lot of the people under Łukasz Nowak were on the road at the start of the year. Whose trips came to more than "
    "their travel budget for the months up to the end of March 2025, and what are the figures? Leave Chloé Takahashi "
    "out, she has explained hers already."
)


def demo_world() -> CompanyWorld:
    """The company that `example_question` is about; neither is in the dataset."""
    return CompanyWorld(DEMO_SEED)
