"""Builds the AuditExpenses rows: `python datasets/expenses/build.py [--out FOLDER]`.

For every scenario the builder looks through companies (world seeds) in a fixed order for ones in which the question
has the wanted kind of answer, no doubtful case and a bearable number of tool calls. Running it again gives the same
bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from expenses_material import (  # noqa: E402
    CATEGORY_WORDS,
    HALF_WORDS,
    LEVEL_WORDS,
    QUARTER_WORDS,
    SCENARIOS,
    UNKNOWN_PEOPLE,
    UNKNOWN_TEAMS,
    Scenario,
)
from expenses_reference import Finding, answer, considered, is_over, needed_calls, scope, solve  # noqa: E402

from signatures.expenses_world import (  # noqa: E402
    CATEGORIES,
    DEMO_SEED,
    DEPARTMENTS,
    FIRST_NAMES,
    LEVEL_PERCENT,
    QUARTERS,
    CompanyWorld,
    Member,
    Stream,
)

NAME = "expenses"
ROWS = 4  # of each scenario
MIN_CALLS, MAX_CALLS = 5, 30
TRIES = 4000  # companies looked at for one row


class Unfit(Exception):
    """This company cannot carry the scenario; the next one is tried."""


class Word:
    """A slot value with spellings: ``{q:months}``."""

    def __init__(self, plain: str, spellings: dict[str, str]) -> None:
        self.plain, self.spellings = plain, spellings

    def __format__(self, spec: str) -> str:
        return self.spellings[spec]


def category_word(category: str) -> Word:
    index = CATEGORIES.index(category)
    return Word(category, {spec: words[index] for spec, words in CATEGORY_WORDS.items()} | {"": category})


def quarter_word(quarter: str) -> Word:
    index = QUARTERS.index(quarter)
    return Word(quarter, {spec: words[index] for spec, words in QUARTER_WORDS.items()})


def team_word(name: str, rng: Stream) -> Word:
    return Word(name, {"": name, "lower": name.lower(), "typo": misspelt(name, rng)})


def person_word(name: str) -> Word:
    first, last = name.split()
    return Word(name, {"": name, "first": first, "last": last})


def misspelt(name: str, rng: Stream) -> str:
    """Two inner letters of the longest word swapped, or one of them lost."""
    word = max(name.split(), key=len)
    places = [i for i in range(1, len(word) - 2) if word[i] != word[i + 1]]
    at = rng.pick(places)
    wrong = word[:at] + word[at + 1] + word[at] + word[at + 2 :] if rng.chance(60) else word[:at] + word[at + 1 :]
    return name.replace(word, wrong)


# -- what a question is about ------------------------------------------------------------------------


def draw_cells(rng: Stream, shape: str) -> tuple[list[list[str]], dict[str, Any]]:
    """Cells (category, quarter) and the slots that name them. Quarters and halves come in calendar order."""
    categories = rng.sample(CATEGORIES, 2)
    first, second = sorted(rng.sample(QUARTERS, 2))
    half = rng.between(0, 1)
    of_half = list(QUARTERS[2 * half : 2 * half + 2])
    slots: dict[str, Any] = {
        "cat": category_word(categories[0]),
        "cat2": category_word(categories[1]),
        "q": quarter_word(first),
        "q2": quarter_word(second),
        "half": Word(f"H{half + 1}", {spec: words[half] for spec, words in HALF_WORDS.items()}),
    }
    one, two = categories[:1], categories
    if shape == "1q1c":
        quarter = rng.pick(QUARTERS)
        slots["q"] = quarter_word(quarter)
        return [[one[0], quarter]], slots
    if shape == "3q1c":
        start = rng.between(0, 1)
        slots |= {"q": quarter_word(QUARTERS[start]), "q3": quarter_word(QUARTERS[start + 2])}
        return [[one[0], q] for q in QUARTERS[start : start + 3]], slots
    if shape == "cross":
        return [[categories[0], first], [categories[1], second]], slots
    quarters = {"1q": [first], "2q": [first, second], "ye": list(QUARTERS), "ha": of_half}[shape[:2]]
    wanted = list(CATEGORIES) if shape.endswith("5c") else two if shape.endswith("2c") else one
    return [[c, q] for c in wanted for q in quarters], slots


def single_team_managers(world: CompanyWorld) -> dict[str, list[str]]:
    led: dict[str, list[str]] = {}
    for team in world.teams():
        led.setdefault(team.manager, []).append(team.name)
    return led


def need(pool: list[Any], count: int = 1) -> list[Any]:
    if len(pool) < count:
        raise Unfit
    return pool


def homes(world: CompanyWorld, user_id: int) -> list[str]:
    return [t.name for t in world.teams() if any(m.user_id == user_id for m in world.members(t.name))]


def draw_people(rng: Stream, world: CompanyWorld, count: int, *, apart: bool) -> list[Member]:
    teams = [t.name for t in world.teams()]
    if apart:
        people = [rng.pick(world.members(name)) for name in rng.sample(need(teams, count), count)]
        if any(len(homes(world, m.user_id)) > 1 for m in people):
            raise Unfit
    else:
        people = rng.sample(need(world.members(rng.pick(teams)), count), count)
    if any(len(world.find(m.name)) != 1 for m in people):
        raise Unfit
    return people


def draw(rng: Stream, world: CompanyWorld, scenario: Scenario, row: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """One question about `world`: its meaning (`ask`), its slots, and the calls to find out who is meant."""
    kind, options = scenario.kind, scenario.options
    cells, slots = draw_cells(rng, "1q1c" if kind == "parts" else scenario.cells)
    teams = world.teams()
    names = [t.name for t in teams]
    unknown = row < options.get("unknown", 0)
    chosen: list[str] = []
    people: list[Member] = []
    lookups = 1

    if kind in ("team", "team_typo"):
        chosen = [rng.pick(names)]
        if unknown:
            chosen, lookups = [rng.pick(UNKNOWN_TEAMS)], 2
        elif kind == "team_typo":
            lookups = 2
    elif kind in ("two_teams", "parts"):
        chosen = rng.sample(need(names, 2), 2)
        lookups = 2
        if unknown:
            chosen[rng.between(0, 1)], lookups = rng.pick(UNKNOWN_TEAMS), 3
    elif kind == "dept":
        departments = Counter(t.department for t in teams)
        department = rng.pick(need(sorted(d for d, n in departments.items() if n > 1)))
        chosen = [t.name for t in teams if t.department == department]
        slots["dept"] = department
        lookups = 1 + len(chosen)
    elif kind in ("manager", "manager2"):
        led = single_team_managers(world)
        manager = rng.pick(need(sorted(m for m, ts in led.items() if len(ts) == (2 if kind == "manager2" else 1))))
        chosen = led[manager]
        slots["manager"] = person_word(manager)
        lookups = 1 + len(chosen)
    elif kind in ("twin_manager", "twin_dept"):
        chosen = [draw_twin(rng, world, kind, slots)]
        lookups = 2
    elif kind == "colleagues":
        name = rng.pick(names)
        person = rng.pick(world.members(name))
        if len(homes(world, person.user_id)) > 1:
            raise Unfit
        slots["person"] = person_word(person.name)
        chosen = [name]
        lookups = 1 + len(names)  # nothing tells the team of a person but the rosters
    elif kind == "first_names":
        name = rng.pick(names)
        people = rng.sample(need(world.members(name), 3), 3)
        slots["team"] = team_word(name, rng)
    else:
        count = {"person": 1, "people2": 2, "people3": 3, "apart2": 2, "apart3": 3}[kind]
        people = draw_people(rng, world, count, apart=kind.startswith("apart"))
        lookups = count

    if chosen:
        slots["team"] = team_word(chosen[0], rng)
        slots["team2"] = team_word(chosen[-1], rng)
    part: dict[str, Any] = {"people": [m.user_id for m in people]} if people else {"teams": chosen}
    ask: dict[str, Any] = {"parts": [part | {"cells": cells}]}
    if kind == "parts":
        more, more_slots = draw_cells(rng, "1q1c")
        if more == cells or more[0][0] == cells[0][0]:
            raise Unfit
        slots |= {"cat2": more_slots["cat"], "q2": more_slots["q"]}
        ask = {"parts": [{"teams": chosen[:1], "cells": cells}, {"teams": chosen[1:], "cells": more}]}
    for place, person in enumerate(people):
        slots["person" + ("" if place == 0 else str(place + 1))] = person_word(person.name)
    if unknown and kind == "person":
        slots["person"] = person_word(rng.pick(UNKNOWN_PEOPLE))
        ask["parts"][0]["people"] = []
    draw_filters(rng, world, scenario, ask, slots)
    others = [t for t in names if t not in chosen]
    slots["other"] = rng.pick(need(others))
    return ask, slots, lookups


def draw_twin(rng: Stream, world: CompanyWorld, kind: str, slots: dict[str, Any]) -> str:
    """A team that shares a word of its name with another one, told apart by manager or department."""
    teams = world.teams()
    words = Counter(word for t in teams for word in t.name.split())
    pairs = [(t, word) for t in teams for word in t.name.split() if words[word] > 1]
    team, word = rng.pick(need(pairs))
    rivals = [t for t in teams if word in t.name.split() and t.name != team.name]
    if kind == "twin_manager":
        if any(t.manager == team.manager for t in rivals):
            raise Unfit
        slots["manager"] = person_word(team.manager)
    else:
        if any(t.department == team.department for t in rivals):
            raise Unfit
        slots["dept"] = team.department
    slots["word"] = word.lower()
    return team.name


def draw_filters(rng: Stream, world: CompanyWorld, scenario: Scenario, ask: dict[str, Any], slots: dict[str, Any]) -> None:
    options = scenario.options
    if options.get("exclude"):
        roster = scope(world, ask["parts"][0])
        excluded = rng.sample(need(roster, options["exclude"] + 1), options["exclude"])
        ask["exclude"] = [m.user_id for m in excluded]
        for place, person in enumerate(excluded):
            slots["person" + ("" if place == 0 else str(place + 1))] = person_word(person.name)
    if options.get("exclude_self"):
        (self_,) = world.find(slots["person"].plain)
        ask["exclude"] = [self_.user_id]
    for key in ("level", "not_level"):
        if options.get(key):
            level = rng.pick(tuple(LEVEL_PERCENT))
            ask[key] = level
            slots["level"] = Word(level, {spec: words[level] for spec, words in LEVEL_WORDS.items()})
    for key in ("leave", "custom", "pick", "count"):
        if key in options:
            ask[key] = options[key]
    if options.get("min_over"):
        ask["min_over"] = slots["amount"] = rng.pick((25, 40, 50, 75, 100, 120, 150, 200))
    if options.get("min_ratio"):
        ask["min_ratio"] = slots["percent"] = rng.pick((5, 10, 15, 20, 25, 30))


# -- which questions are fit -------------------------------------------------------------------------


def clear_cut(world: CompanyWorld, ask: dict[str, Any], findings: list[Finding]) -> bool:
    """No case in which two careful readers could differ by rounding, and no tie in a ranking."""
    for f in findings:
        if abs(f.over) < 50 and (f.over != 0 or f.spent % 50):
            return False
        if "min_over" in ask and abs(f.over - ask["min_over"] * 100) < 100:
            return False
        if "min_ratio" in ask and abs(f.over / f.budget * 100 - ask["min_ratio"]) < 0.5:
            return False
    over = [f for f in findings if is_over(f, ask)]
    pick, count = ask.get("pick"), ask.get("count", 1)
    if pick in ("most", "least"):
        ranked = sorted((f.over for f in over), reverse=pick == "most")
        return len(ranked) > count and abs(ranked[count - 1] - ranked[count]) >= 200
    if pick == "most_ratio":
        ratios = sorted((f.over / f.budget for f in over), reverse=True)
        return len(ratios) > 1 and ratios[0] - ratios[1] > 0.01
    if pick == "most_people":
        rosters = [{m.user_id for m in world.members(t)} for t in ask["parts"][0]["teams"]]
        numbers = sorted(len(r & {f.member.user_id for f in over}) for r in rosters)
        return not rosters[0] & rosters[1] and numbers[-1] > numbers[-2]
    return True


def filters_matter(world: CompanyWorld, ask: dict[str, Any], gold: list[dict[str, Any]]) -> bool:
    """Whether a reader who overlooks the question's filters gets another answer."""
    if len(ask) == 1:
        return True
    return solve(world, {"parts": ask["parts"]}) != gold


def wants_empty(place: int, scenario: Scenario, row: int) -> bool:
    options = scenario.options
    if row < options.get("unknown", 0):
        return scenario.kind != "two_teams"
    if "empty" in options:
        return ROWS - row <= options["empty"]
    if options.get("pick") in ("most", "least", "most_ratio", "most_people"):
        return False
    return place % 9 in (1, 4, 6, 8) and row == place % ROWS


def candidates(scenario: Scenario, row: int, used: set[int]) -> Iterator[tuple[int, CompanyWorld, Stream]]:
    for attempt in range(TRIES):
        rng = Stream(NAME, scenario.id, row, attempt)
        seed = rng.between(100_000, 9_999_999)
        if seed in used or seed == DEMO_SEED:
            continue
        world = CompanyWorld(seed)
        for _ in range(6):
            yield seed, world, rng


def make_row(place: int, scenario: Scenario, row: int, used: set[int], texts: set[str]) -> dict[str, Any]:
    empty = wants_empty(place, scenario, row)
    lured = row > 0  # the careless reading must go wrong in most rows
    max_team = scenario.options.get("max_team", 99)
    text = scenario.texts[row % len(scenario.texts)]
    for seed, world, rng in candidates(scenario, row, used):
        try:
            ask, slots, lookups = draw(rng, world, scenario, row)
        except Unfit:
            continue
        pairs = sum(len(scope(world, part)) * len(part["cells"]) for part in ask["parts"])
        narrowed = any(key in ask for key in ("level", "not_level", "leave", "custom"))
        if pairs > (60 if narrowed else 26) or any(len(scope(world, p)) > max_team for p in ask["parts"]):
            continue
        findings = considered(world, ask)
        gold = answer(world, ask, findings)
        if bool(gold) == empty:
            continue
        nobody = not any(scope(world, part) for part in ask["parts"])
        calls = needed_calls(world, findings, lookups)
        if calls > MAX_CALLS or (calls < MIN_CALLS and not nobody) or not clear_cut(world, ask, findings):
            continue
        if not nobody and not empty and not filters_matter(world, ask, gold):
            continue
        if lured and not nobody and solve(world, ask, ()) == gold:
            continue
        question = text.format(**slots)
        if question in texts:
            continue
        used.add(seed)
        texts.add(question)
        return {
            "id": f"{scenario.id}-{row + 1}",
            "question": question,
            "over_budget": gold,
            "scenario": scenario.id,
            "world_seed": seed,
            "language": scenario.language,
            "kind": scenario.kind,
            "calls": calls,
            "ask": ask,
        }
    raise RuntimeError(f"no company found for {scenario.id}, row {row}")


def make_rows() -> list[dict[str, Any]]:
    used: set[int] = set()
    texts: set[str] = set()
    return [make_row(place, scenario, row, used, texts) for place, scenario in enumerate(SCENARIOS) for row in range(ROWS)]


def grams(text: str) -> frozenset[str]:
    return frozenset(text[i : i + 5] for i in range(max(1, len(text) - 4)))


def check(rows: list[dict[str, Any]]) -> None:
    """Fails loudly on anything that would make the rows worse than they look."""
    names = {name for name in FIRST_NAMES if any(f" {name} " in f" {t} " for s in SCENARIOS for t in s.texts)}
    assert not names, f"people of the templates share a name with employees: {names}"
    assert not set(UNKNOWN_TEAMS) & {t for ts in DEPARTMENTS.values() for t in ts}
    assert len({s.id for s in SCENARIOS}) == len(SCENARIOS)
    bags = [(row["scenario"], grams(row["question"])) for row in rows]
    for i, (cluster, bag) in enumerate(bags):
        for other, second in bags[:i]:
            if other != cluster:
                shared = len(bag & second)
                alike = shared / (len(bag) + len(second) - shared)
                assert alike < 0.8, f"near-duplicates in {cluster} and {other}: {alike:.2f}"
    empty = sum(not row["over_budget"] for row in rows) / len(rows)
    assert 0.10 <= empty <= 0.15, f"{empty:.3f} of the answers are empty"


def write(rows: list[dict[str, Any]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    data, header = out / "data.jsonl", out / "dataset.json"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    meta: dict[str, Any] = {
        "format": 1,
        "name": NAME,
        "signature": "signatures.expenses:AuditExpenses",
        "fields": {
            "question": "input", "over_budget": "label", "scenario": "meta", "world_seed": "meta",
            "language": "meta", "kind": "meta", "calls": "meta", "ask": "meta",
        },
        "cluster_key": "scenario",
        "license": "MIT",
        "source": "Written for dse; people, companies and amounts are invented.",
        "builder": "datasets/expenses/build.py",
        "split": {
            "algorithm": "quota-hash-1",
            "quota": {"search": 0.4, "select": 0.3, "holdout": 0.3},
            "salt": f"{NAME}-1",
            "assignment": {},
        },
        "revision": "",
    }  # fmt: skip
    if data.exists() and data.read_bytes() == text and header.exists():
        stored = json.loads(header.read_text(encoding="utf-8"))
        stored |= {"revision": "", "split": stored["split"] | {"assignment": {}}}
        if stored == meta:  # the same rows: the split made for them stays
            return
    data.write_bytes(text)
    header.write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the AuditExpenses rows.")
    parser.add_argument("--out", type=Path, default=HERE)
    out = parser.parse_args(argv).out
    rows = make_rows()
    check(rows)
    write(rows, out)
    print(f"{len(rows)} rows, {len(SCENARIOS)} scenarios")


if __name__ == "__main__":
    main()
