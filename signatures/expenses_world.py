"""The company behind the AuditExpenses task: people, budgets and expenses made from one integer.

`CompanyWorld(seed)` is read-only and cheap (the staff list is made at once, expenses on first look), and the
same seed gives the same company on every machine and Python version. Money is whole cents inside and
a float with two decimals outside.
"""

from __future__ import annotations

import calendar
import datetime as dt
import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Literal, TypeVar, get_args

from pydantic import BaseModel

__all__ = [
    "CATEGORIES", "DEMO_SEED", "QUARTERS", "Category", "Closure", "CompanyWorld", "Currency", "CustomBudget",
    "DefaultBudget", "EmployeeProfile", "Expense", "Level", "Member", "PolicyTopic", "Quarter", "Status", "Team", "Vendor",
]  # fmt: skip

Category = Literal["travel", "meals", "software", "equipment", "training"]
Quarter = Literal["Q1", "Q2", "Q3", "Q4"]
Level = Literal["junior", "senior", "lead"]
Status = Literal["pending", "approved", "paid", "rejected", "withdrawn", "rebilled"]
Currency = Literal["EUR", "USD", "GBP", "CHF", "SEK", "PLN", "JPY"]
PolicyTopic = Literal["general", "travel", "meals", "software", "equipment", "training"]

CATEGORIES: tuple[Category, ...] = get_args(Category)
QUARTERS: tuple[Quarter, ...] = get_args(Quarter)
YEAR = 2025
DEMO_SEED = 20_250_131  # a company that no row of the dataset uses


class Team(BaseModel):
    name: str
    department: str
    manager: str


class Member(BaseModel):
    user_id: int
    name: str
    level: Level
    leave_months: list[str]  # whole months, "2025-05"


class Expense(BaseModel):
    item_id: str
    date: dt.date
    category: Category
    amount: float
    currency: Currency
    status: Status
    note: str


class CustomBudget(BaseModel):
    user_id: int
    category: Category
    amount_eur: float
    per: Literal["quarter", "year"]
    quarters: list[Quarter]
    reason: str


class DefaultBudget(BaseModel):
    category: Category
    level: Level
    amount_eur: float


class EmployeeProfile(BaseModel):
    user_id: int
    name: str
    email: str
    office: str
    started: dt.date
    languages: list[str]


class Closure(BaseModel):
    date: dt.date
    office: str
    reason: str


class Vendor(BaseModel):
    name: str
    country: str
    categories: list[Category]


T = TypeVar("T")
_MASK = (1 << 64) - 1


class Stream:
    """splitmix64 over a hashed key: the same numbers everywhere, and cheap to start."""

    def __init__(self, *key: object) -> None:
        text = "|".join(str(part) for part in key)
        self._state = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def bits(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + self.bits() % (high - low + 1)

    def chance(self, percent: int) -> bool:
        return self.bits() % 100 < percent

    def pick(self, items: Sequence[T]) -> T:
        return items[self.bits() % len(items)]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        pool = list(items)
        return [pool.pop(self.bits() % len(pool)) for _ in range(min(count, len(pool)))]

    def weighted(self, weights: dict[str, int]) -> str:
        point = self.bits() % sum(weights.values())
        for name, weight in weights.items():
            point -= weight
            if point < 0:
                return name
        raise AssertionError("weights are positive")


FIRST_NAMES = (
    "Ada Adrián Agnieszka Aiko Alva Amara Amir Anaïs Anton Aoife Arjun Astrid Bao Beatriz Benedikt Bilal Bronwen Carla "
    "Cem Chiara Chloé Dagmar Daniel Darya Davide Dilan Eero Elif Emeka Esra Ewa Fatima Felix Femke Finn Gabriela "
    "Goran Grace Hamza Hanne Haruto Hedda Hugo Ibrahim Idris Ilse Imani Inês Ingrid Irena Isak Ivana Jana Jerome "
    "Jin Joana Jonas José Judit Kaja Kamil Karim Katya Kenji Kofi Lars Laszlo Leila Linh Livia Lorenzo Lucía Łukasz "
    "Mads Maeve Malik Marek Margit Marta Mateo Meera Mei Milan Mireille Moritz Naima Nadia Nils Noor Oksana Olga "
    "Omar Oskar Otto Paavo Paloma Pavel Petra Priya Quentin Rafael Rania Renata Rohan Rosa Ruth Sabine Samir Sanne "
    "Saskia Selin Signe Silvia Sofía Søren Stefan Svea Tariq Tessa Thabo Tiago Tomasz Ulrike Uma Valeria Vera Viktor "
    "Wanda Willem Xenia Yara Yusuf Zahra Zoë Zuzana"
).split()
SURNAMES = (
    "Abara Aguilar Almeida Andersen Arslan Bakker Banerjee Barros Bauer Becker Bergström Bianchi Brandt Castillo "
    "Cavalcanti Chaudhry Cohen Conti Cruz Dąbrowski Delgado Demir Diallo Dubois Eriksen Esposito Fischer Fontaine "
    "Fujita Gallo Garnier Ghosh Grabowski Gupta Haddad Hakimi Hansen Hartmann Hashimoto Herrera Hofer Horvat Hughes "
    "Ibarra Iyer Jansen Jensen Kaplan Kaya Keller Kimura Kowalczyk Krüger Kuznetsov Lefèvre Lindqvist Lombardi Lund "
    "Mahlangu Marchetti Mbeki McAllister Mendes Meyer Moreau Mukherjee Murphy Nakamura Navarro Nguyen Novák Nowak "
    "Nyström Obi Okafor Oliveira Olsen Osei Özdemir Pacheco Papadakis Pereira Petrov Pham Popescu Quiroga Rahman "
    "Ramirez Rautio Reyes Ricci Riedel Rossi Sahin Salazar Sandoval Sato Schneider Serrano Silva Simmons Sokolov "
    "Sørensen Steiner Suzuki Szabó Takahashi Tanaka Thorne Tran Turner Ueda Urbański Vadász Valente Vasquez Verbeek "
    "Virtanen Visser Vogel Weber Wieczorek Winkler Yamada Yıldız Zhang Zieliński"
).split()
DEPARTMENTS: dict[str, tuple[str, ...]] = {
    "Engineering": ("Platform Core", "Platform Tools", "Mobile", "Data Platform", "Payments", "Site Reliability"),
    "Marketing": ("Brand", "Growth", "Data Insights", "Events", "Content Studio"),
    "Sales": ("Sales North", "Sales South", "Key Accounts", "Partnerships", "Inside Sales"),
    "Operations": ("Logistics", "Facilities", "Procurement", "Field Service", "Service Desk"),
    "Research": ("Applied Research", "User Research", "Lab Support", "Materials Lab"),
    "Customer Care": ("Onboarding", "Customer Support", "Customer Success", "Renewals"),
    "Finance": ("Treasury", "Controlling", "Payroll", "Accounts Payable"),
}
BASE_BUDGETS: dict[Category, tuple[int, int, int]] = {  # EUR a quarter for juniors; every amount divides by 3
    "travel": (900, 1200, 1500),
    "meals": (180, 240, 300),
    "software": (150, 210, 300),
    "equipment": (420, 480, 600),
    "training": (360, 450, 600),
}
LEVEL_PERCENT: dict[Level, int] = {"junior": 100, "senior": 150, "lead": 200}
ASSET_LIMIT = 80_000  # cents: a single equipment item above this is not charged to anybody's budget
COUNTED = ("pending", "approved", "paid")

POLICY: dict[str, str] = {
    "general": (
        "Budgets are set per person, category and calendar quarter; nothing is carried over. An expense uses up "
        "budget from the day it is handed in, whether or not finance has looked at it or paid it out yet. What "
        "finance turned down, what the person took back and what a client is billed for does not use up budget. "
        "Amounts in other currencies are converted one by one at the rate of the day of the expense. For each month "
        "of leave in a quarter the default budget of that quarter is cut by a third. A personally agreed budget "
        "takes the place of the default, is not added to it, and leave does not change it; if it was agreed per "
        "year, a quarter of it is available in each quarter. A budget is exceeded by spending more than it, not by "
        "spending all of it."
    ),
    "travel": (
        "Travel covers journeys, hotels and local transport. Trips that combine work and holiday are charged for the "
        "work part only, which is the amount handed in. See topic 'general' for the rules of all budgets."
    ),
    "meals": (
        "Meals covers food and drink on duty and with guests. Whoever paid hands in the whole bill; shares of "
        "colleagues are not split off. See topic 'general' for the rules of all budgets."
    ),
    "software": (
        "Software covers licences and online services. A licence paid for a whole year is charged in full on its "
        "date, it is not spread over the year. See topic 'general' for the rules of all budgets."
    ),
    "equipment": (
        "Equipment covers hardware, furniture and accessories. A single item of more than 800 EUR is an asset of the "
        "company: it is booked elsewhere and uses up nobody's budget. See topic 'general' for the rules of all budgets."
    ),
    "training": (
        "Training covers course and exam fees and books; the journey there is travel. See topic 'general' for the "
        "rules of all budgets."
    ),
}

RATES: dict[str, int] = {  # millionths of a EUR for one unit, before the monthly movement
    "USD": 918_000, "GBP": 1_172_000, "CHF": 1_054_000, "SEK": 88_400, "PLN": 234_100, "JPY": 6_130,
}  # fmt: skip
NOTES: dict[Category, tuple[str, ...]] = {
    "travel": ("Train to client", "Hotel, two nights", "Flight, economy", "Airport taxi", "Rental car", "Parking",
               "Night train", "Tram and bus day passes", "Hotel, one night", "Ferry", "Rail card", "Mileage, own car"),
    "meals": ("Lunch with client", "Team dinner", "Catering for workshop", "Coffee and cake for visitors",
              "Working lunch", "Dinner on business trip", "Breakfast meeting", "Sandwiches, late shift",
              "Farewell lunch", "Pizza, release evening"),
    "software": ("Diagram tool, monthly", "Design plug-in", "Cloud notebook credits", "Password manager, yearly",
                 "Screen recorder", "Font licence", "Survey tool", "Code assistant seat", "PDF editor, yearly",
                 "Translation service"),
    "equipment": ("Monitor", "Headset", "Keyboard and mouse", "Docking station", "Desk lamp", "Webcam", "Office chair",
                  "Cables and adapters", "External disk", "Tablet stand", "Label printer"),
    "training": ("Online course", "Exam fee", "Two textbooks", "Language lessons", "Workshop seat", "Video course",
                 "Conference ticket", "First-aid course", "Coaching session", "Certification renewal"),
}  # fmt: skip
REFUND_NOTES: dict[Category, tuple[str, ...]] = {
    "travel": ("Refund, cancelled flight", "Refund, rail delay", "Refund, hotel cancelled"),
    "meals": ("Credit note, caterer", "Refund, double charge"),
    "software": ("Refund, unused seats", "Credit note, downgrade"),
    "equipment": ("Returned, wrong model", "Refund, faulty headset"),
    "training": ("Refund, course called off", "Refund, exam moved"),
}
ASSET_NOTES = ("Laptop", "Workstation", "Standing desk, electric", "Large-format printer", "Camera body")
UNCOUNTED_NOTES = {
    "rejected": ("no receipt", "private part", "outside policy", "handed in twice"),
    "withdrawn": ("handed in by mistake", "paid by colleague", "wrong cost centre"),
    "rebilled": ("project Alder", "client Norrland AB", "client Ferro & Figli", "project Kestrel"),
}
CUSTOM_REASONS = ("clients far away", "relocation", "hardware refresh", "mentoring role",
                  "agreed at yearly review", "temporary project", "new office set-up")  # fmt: skip
OFFICES = ("Berlin", "Lisbon", "Tallinn", "Kraków", "Lyon", "Malmö")
# How the spending of one person, quarter and category is arranged around the budget that applies to it.
SHAPES = {
    "under": 33, "over": 10, "uncounted_lure": 9, "pending_over": 7, "refund_under": 7, "refund_over": 3,
    "foreign_under": 5, "foreign_over": 6, "exact": 5, "just_over": 5, "just_under": 4, "nothing": 4,
}  # fmt: skip


def fold(text: str) -> str:
    """Lower case without accents, for looking names up."""
    plain = unicodedata.normalize("NFKD", text.casefold().replace("ł", "l").replace("ø", "o").replace("ı", "i"))
    return " ".join("".join(c for c in plain if not unicodedata.combining(c)).split())


def convert_cents(cents: int, currency: str, on: dt.date) -> int:
    """Cents of `currency` in cents of EUR at the rate of that day, halves away from zero."""
    if currency == "EUR":
        return cents
    if on.year != YEAR:
        raise ValueError(f"There are rates for {YEAR} only, not for {on.isoformat()}")
    month = Stream("rate", currency, on.month).between(-45, 45)  # thousandths
    daily = Stream("rate", currency, on.isoformat()).between(-6, 6)
    micro = RATES[currency] * (1000 + month + daily)  # millionths of a thousandth
    value = (abs(cents) * micro + 500_000_000) // 1_000_000_000
    return value if cents >= 0 else -value


def quarter_months(quarter: Quarter) -> list[str]:
    first = 3 * QUARTERS.index(quarter) + 1
    return [f"{YEAR}-{month:02d}" for month in range(first, first + 3)]


class CompanyWorld:
    """One company in 2025, made from `seed`. Nothing can be changed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = Stream("staff", seed)
        schedule = {category: rng.pick(amounts) for category, amounts in BASE_BUDGETS.items()}
        self._defaults: dict[tuple[Category, Level], int] = {
            (category, level): base * percent
            for category, base in schedule.items()
            for level, percent in LEVEL_PERCENT.items()
        }
        surnames = rng.sample(SURNAMES, len(SURNAMES))
        ids = rng.sample(range(1000, 10_000), 100)
        self._teams: dict[str, Team] = {}
        self._rosters: dict[str, list[Member]] = {}
        for department in rng.sample(tuple(DEPARTMENTS), 4):
            count = rng.pick((1, 2, 2, 2, 3))
            manager = ""
            for name in rng.sample(DEPARTMENTS[department], count):
                if not manager or not rng.chance(35):  # some managers lead two teams of a department
                    manager = f"{rng.pick(FIRST_NAMES)} {surnames.pop()}"
                self._teams[name] = Team(name=name, department=department, manager=manager)
                firsts = rng.sample(FIRST_NAMES, rng.pick((5, 5, 5, 6, 6, 7, 8, 9)))
                self._rosters[name] = [
                    Member(
                        user_id=ids.pop(),
                        name=f"{first} {surnames.pop()}",
                        level="lead" if place == 0 else rng.pick(("junior", "junior", "senior", "senior", "lead")),
                        leave_months=self._leave(rng),
                    )
                    for place, first in enumerate(firsts)
                ]
        if rng.chance(40):  # somebody works for a second team as well
            home, guest = rng.sample(tuple(self._rosters), 2)
            member = self._rosters[home][-1]
            if all(other.name.split()[0] != member.name.split()[0] for other in self._rosters[guest]):
                self._rosters[guest].append(member)
        self._members = {member.user_id: member for roster in self._rosters.values() for member in roster}
        self._by_folded_name = {fold(name): name for name in self._teams}
        self._cells: dict[tuple[int, Quarter, Category], list[Expense]] = {}
        self._customs: dict[tuple[int, Category], CustomBudget | None] = {}

    @staticmethod
    def _leave(rng: Stream) -> list[str]:
        if not rng.chance(22):
            return []
        first = rng.between(1, 11)
        months = [first, first + 1] if rng.chance(50) else [first]
        return [f"{YEAR}-{month:02d}" for month in months]

    def teams(self) -> list[Team]:
        return sorted(self._teams.values(), key=lambda team: team.name)

    def members(self, team: str) -> list[Member]:
        """Everyone in a team; empty for a team that does not exist."""
        return list(self._rosters.get(self._by_folded_name.get(fold(team), ""), ()))

    def find(self, name: str) -> list[Member]:
        """People whose name contains every word of `name`."""
        words = fold(name).split()
        if not words:
            return []
        return [m for m in self._members.values() if all(word in fold(m.name) for word in words)]

    def member(self, user_id: int) -> Member:
        try:
            return self._members[user_id]
        except KeyError:
            raise LookupError(f"There is no employee {user_id}") from None

    def default_budgets(self) -> list[DefaultBudget]:
        return [
            DefaultBudget(category=category, level=level, amount_eur=cents / 100)
            for (category, level), cents in self._defaults.items()
        ]

    def custom_budget(self, user_id: int, category: Category) -> CustomBudget | None:
        key = (user_id, category)
        if key not in self._customs:
            self._customs[key] = self._make_custom(self.member(user_id), category)
        return self._customs[key]

    def expenses(self, user_id: int, quarter: Quarter, category: Category | None = None) -> list[Expense]:
        """Line items by date; of every category when none is given."""
        member = self.member(user_id)
        wanted = CATEGORIES if category is None else (category,)
        items: list[Expense] = []
        for each in wanted:
            key = (user_id, quarter, each)
            if key not in self._cells:
                self._cells[key] = self._make_cell(member, quarter, each)
            items.extend(self._cells[key])
        return sorted(items, key=lambda item: (item.date, item.item_id))

    def policy(self, topic: PolicyTopic) -> str:
        return POLICY[topic]

    def profile(self, user_id: int) -> EmployeeProfile:
        member = self.member(user_id)
        rng = Stream("profile", self.seed, user_id)
        return EmployeeProfile(
            user_id=user_id,
            name=member.name,
            email=f"{fold(member.name).replace(' ', '.')}@norvik.example",
            office=rng.pick(OFFICES),
            started=dt.date(rng.between(2012, 2024), rng.between(1, 12), 1),
            languages=rng.sample(("English", "German", "French", "Polish", "Portuguese", "Swedish"), 2),
        )

    def closures(self, quarter: Quarter) -> list[Closure]:
        rng = Stream("closures", self.seed, quarter)
        return [
            Closure(date=self._day(rng, quarter), office=office, reason=rng.pick(("public holiday", "inventory", "move")))
            for office in rng.sample(OFFICES, 3)
        ]

    def vendors(self, category: Category) -> list[Vendor]:
        rng = Stream("vendors", self.seed, category)
        names = rng.sample(("Aventa", "Borealis", "Cordoba & Co", "Delphin", "Estrel", "Fjordline", "Gamma Supply"), 4)
        return [
            Vendor(name=name, country=rng.pick(("DE", "PT", "SE", "PL", "FR", "GB")), categories=[category])
            for name in sorted(names)
        ]

    def snapshot(self) -> dict[str, int]:
        return {"world_seed": self.seed}

    # -- how the expenses are made ---------------------------------------------------------------

    @staticmethod
    def _day(rng: Stream, quarter: Quarter) -> dt.date:
        month = 3 * QUARTERS.index(quarter) + rng.between(1, 3)
        return dt.date(YEAR, month, rng.between(1, calendar.monthrange(YEAR, month)[1]))

    def _applying(self, member: Member, quarter: Quarter, category: Category) -> int:
        """The budget in cents that the expenses are arranged around."""
        custom = self.custom_budget(member.user_id, category)
        if custom is not None and quarter in custom.quarters:
            return round(custom.amount_eur * 100) // (4 if custom.per == "year" else 1)
        away = sum(month in member.leave_months for month in quarter_months(quarter))
        return self._defaults[category, member.level] // 3 * (3 - away)

    def _make_custom(self, member: Member, category: Category) -> CustomBudget | None:
        rng = Stream("custom", self.seed, member.user_id, category)
        if not rng.chance(24):
            return None
        default = self._defaults[category, member.level]
        amount = (default * rng.pick((50, 60, 75, 125, 150, 175)) // 100 + 500) // 1000 * 1000  # whole tens of EUR
        kind = rng.weighted({"always": 45, "yearly": 25, "sometimes": 30})
        quarters = sorted(rng.sample(QUARTERS, rng.between(1, 2))) if kind == "sometimes" else list(QUARTERS)
        return CustomBudget(
            user_id=member.user_id,
            category=category,
            amount_eur=amount * (4 if kind == "yearly" else 1) / 100,
            per="year" if kind == "yearly" else "quarter",
            quarters=quarters,
            reason=rng.pick(CUSTOM_REASONS),
        )

    def _make_cell(self, member: Member, quarter: Quarter, category: Category) -> list[Expense]:
        rng = Stream("cell", self.seed, member.user_id, quarter, category)
        budget = self._applying(member, quarter, category)
        shape = rng.weighted(SHAPES)
        items: list[tuple[int, Currency, Status, str]] = []  # cents, currency, status, note
        notes = list(rng.sample(NOTES[category], 9))

        def part(low: int, high: int) -> int:
            return budget * rng.between(low, high) // 100

        def settled() -> Status:
            return "pending" if rng.chance(15) else rng.pick(("approved", "paid"))

        def split(total: int, pieces: int, step: int = 1) -> list[int]:
            while True:
                shares = [rng.between(60, 140) for _ in range(pieces)]
                parts = [total * share // sum(shares) // step * step for share in shares[1:]]
                parts.append(total - sum(parts))
                if category != "equipment" or max(parts) <= 70_000:  # well below the asset limit
                    return parts
                pieces += 1

        def add(total: int, status: Status | None = None, currency: Currency = "EUR", step: int = 1,
                pieces: tuple[int, int] = (2, 4)) -> None:  # fmt: skip
            for cents in split(total, rng.between(*pieces), step):
                if currency != "EUR":
                    micro = RATES[currency]
                    unit = 100 if currency == "JPY" else 1  # whole yen
                    cents = max(unit, cents * 1_000_000 // micro // unit * unit)
                items.append((cents, currency, status or settled(), notes[len(items) % len(notes)]))

        def add_uncounted(total: int, pieces: tuple[int, int] = (1, 2)) -> None:
            status: Status = rng.pick(("rejected", "rejected", "withdrawn", "rebilled"))
            for cents in split(total, rng.between(*pieces)):
                note = f"{notes[len(items) % len(notes)]}, {rng.pick(UNCOUNTED_NOTES[status])}"
                items.append((cents, "EUR", status, note))

        def add_refund(total: int) -> None:
            for cents in split(total, 1):
                items.append((-cents, "EUR", rng.pick(("approved", "paid")), rng.pick(REFUND_NOTES[category])))

        foreign: Currency = "EUR"
        if shape == "under":
            add(part(30, 85))
        elif shape == "over":
            add(part(108, 160), pieces=(2, 5))
        elif shape == "uncounted_lure":
            add(part(55, 90))
            add_uncounted(part(55, 80))
        elif shape == "pending_over":
            add(part(65, 90), rng.pick(("approved", "paid")))
            add(part(45, 60), "pending", pieces=(1, 2))
        elif shape == "refund_under":
            spent = part(112, 135)
            add(spent)
            add_refund(spent - part(65, 93))
        elif shape == "refund_over":
            spent = part(135, 160)
            add(spent)
            add_refund(spent - part(108, 116))
        elif shape == "foreign_under":
            foreign = rng.pick(("SEK", "PLN", "JPY", "USD"))
            add(part(25, 40))
            add(part(28, 42), currency=foreign, pieces=(1, 2))
        elif shape == "foreign_over":
            foreign = rng.pick(("GBP", "GBP", "CHF", "USD"))
            add(part(35, 48), pieces=(1, 2))
            add(part(72, 80), currency=foreign, pieces=(1, 2))
        elif shape == "exact":
            add(budget, step=50, pieces=(2, 3))  # halves of a EUR add up exactly as floats too
        elif shape == "just_over":
            add(budget + rng.between(100, 1500))
        elif shape == "just_under":
            add(budget - rng.between(100, 1500))
        if shape in ("under", "over", "foreign_over", "just_over", "refund_over") and rng.chance(22):
            add_uncounted(part(10, 25), pieces=(1, 1))
        if shape in ("under", "over", "foreign_under") and rng.chance(10):
            foreign = foreign if foreign != "EUR" else rng.pick(("USD", "GBP", "SEK"))
            add(part(4, 9), currency=foreign, pieces=(1, 1))
        if category == "equipment" and shape != "nothing" and rng.chance(35):
            items.append((rng.between(89_000, 190_000), "EUR", rng.pick(("approved", "paid")), rng.pick(ASSET_NOTES)))
        return self._dated(rng, quarter, category, items)

    def _dated(self, rng: Stream, quarter: Quarter, category: Category,
               items: list[tuple[int, Currency, Status, str]]) -> list[Expense]:  # fmt: skip
        """Days of foreign items differ, so that adding before or after converting is the same for everyone."""
        taken: set[dt.date] = set()
        made: list[Expense] = []
        for cents, currency, status, note in items:
            day = self._day(rng, quarter)
            while currency != "EUR" and day in taken:
                day = self._day(rng, quarter)
            taken.add(day)
            made.append(Expense(item_id=f"E{rng.between(100_000, 999_999)}", date=day, category=category,
                                amount=cents / 100, currency=currency, status=status, note=note))  # fmt: skip
        return sorted(made, key=lambda item: (item.date, item.item_id))
