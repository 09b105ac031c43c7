"""The shipped task TriageTicket: its labels, rows, builder and metric."""

from __future__ import annotations

import calendar
import json
import re
import subprocess
import sys
from collections import Counter
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dse
from dse.evaluation.splits import input_text, near_duplicates, similar_pairs
from signatures import tickets as task_module

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "datasets" / "tickets"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in (FOLDER / "data.jsonl").read_text("utf-8").splitlines()]
INPUTS = ("subject", "body", "received")

# -- the labels once more, from the words of the mail ---------------------------------------------------------

WEEKDAYS = [  # Monday first, all languages
    "monday montag lundi lunes maandag segunda-feira lunedì poniedziałek poniedziałku",
    "tuesday dienstag mardi martes dinsdag terça-feira martedì wtorek wtorku",
    "wednesday mittwoch mercredi miércoles woensdag quarta-feira mercoledì środę środy",
    "thursday donnerstag jeudi jueves donderdag quinta-feira giovedì czwartek czwartku",
    "friday freitag vendredi viernes vrijdag sexta-feira venerdì piątek piątku",
    "saturday samstag samedi sábado zaterdag sabato sobotę soboty",
    "sunday sonntag dimanche domingo zondag domenica niedzielę niedzieli",
]
MONTHS = [
    "january januar janvier enero januari janeiro gennaio stycznia",
    "february februar février febrero februari fevereiro febbraio lutego",
    "march märz mars marzo maart março marca",
    "april avril abril aprile kwietnia",
    "may mai mayo mei maio maggio maja",
    "june juni juin junio junho giugno czerwca",
    "july juli juillet julio julho luglio lipca",
    "august août agosto augustus sierpnia",
    "september septembre septiembre setembro settembre września",
    "october oktober octobre octubre outubro ottobre października",
    "november novembre noviembre novembro listopada",
    "december dezember décembre diciembre dezembro dicembre grudnia",
]
NEXT_WEEK = ("next week", "nächster woche", "semaine prochaine", "semana que viene", "volgende week", "próxima semana",
             "prossima settimana", "w przyszłym tygodniu", "przyszłego tygodnia")  # fmt: skip
THIS_WEEK = ("of the week", "of this week", "week is out", "ende der woche", "in dieser woche", "fin de la semaine",
             "acabe la semana", "de esta semana", "van de week", "deze week", "fim da semana", "esta semana",
             "della settimana", "końca tygodnia", "w tym tygodniu")  # fmt: skip
MONTH_END = ("of the month", "month end", "month is out", "des monats", "monatsende", "fin du mois", "acabe el mes",
             "fin de mes", "van de maand", "fim do mês", "fine del mese", "fine mese", "końca miesiąca")  # fmt: skip
FORTNIGHT = ("two weeks", "a fortnight", "zwei wochen", "deux semaines", "dos semanas", "twee weken", "duas semanas",
             "due settimane", "dwóch tygodni")  # fmt: skip
MIDDLE = ("mid-", "middle of", "mitte", "la mi-", "mediados", "half ", "meados", "metà", "połowy")
BEFORE = ("before ", "vor dem", "avant ", "antes de", "antes do", "vóór", "prima del", "przed ")
OVERMORROW = ("day after tomorrow", "übermorgen", "après-demain", "pasado mañana", "overmorgen", "depois de amanhã",
              "dopodomani", "pojutrz")  # fmt: skip
TOMORROW = ("tomorrow", "morgen", "demain", "mañana", "amanhã", "domani", "jutr")
TODAY = ("today", "heute", "aujourd'hui", "ce soir", "hoy", "vandaag", "hoje", "oggi", "stasera", "dzisiaj")


WORKING_DAYS = "(working|business|arbeitst|jours ouvr|días labor|werkd|dias úteis|giorni lav|dni rob)"


def has(text: str, options: tuple[str, ...]) -> bool:
    return any(option in text for option in options)


def named(text: str, table: list[str]) -> int | None:
    """Index of the weekday or month in `text`."""
    words = set(re.findall(r"[^\W\d_]+(?:-feira)?", text))
    found = [index for index, names in enumerate(table) if words & set(names.split())]
    return found[0] if found else None


def step(day: date, wanted: Any) -> date:
    """The first day after `day` that is wanted."""
    for _ in range(400):
        day += timedelta(days=1)
        if wanted(day):
            return day
    raise AssertionError("no such day")


def meant(phrase: str, written: date) -> date:
    """What a date phrase in any of the languages means when it was written on day `written`."""
    text = phrase.lower()
    if iso := re.search(r"\d{4}-\d\d-\d\d", text):
        return date.fromisoformat(iso[0])
    if amount := re.search(r"(\d+) (hours|stunden|heures|horas|uur|ore|godzin)", text):
        return written + timedelta(hours=int(amount[1]))
    if amount := re.search(rf"(\d+) {WORKING_DAYS}", text):
        day = written
        for _ in range(int(amount[1])):
            day = step(day, lambda d: d.weekday() <= 4)
        return day
    if amount := re.search(r"(\d+) (days|tagen|jours|días|dagen|dias|giorni|dni)\b", text):
        return written + timedelta(days=int(amount[1]))
    if has(text, FORTNIGHT):
        return written + timedelta(weeks=2)
    weekday, month, number = named(text, WEEKDAYS), named(text, MONTHS), re.search(r"\b(\d{1,2})(?!\d)", text)
    if numeric := re.search(r"(\d\d?)\.(\d\d)\.", text):
        return step(written, lambda d: (d.day, d.month) == (int(numeric[1]), int(numeric[2])))
    if month is not None:
        day = 15 if has(text, MIDDLE) and not number else int(number[1])  # type: ignore[index]
        found = step(written, lambda d: (d.day, d.month - 1) == (day, month))
        return found - timedelta(days=1) if has(text, BEFORE) else found
    if has(text, MONTH_END):
        return written.replace(day=calendar.monthrange(written.year, written.month)[1])
    following = step(written, lambda d: d.weekday() == 0)
    if weekday is not None:
        start = following - timedelta(days=1) if has(text, NEXT_WEEK) else written
        return step(start, lambda d: d.weekday() == weekday)
    if has(text, NEXT_WEEK):
        return following + timedelta(days=4)
    if has(text, THIS_WEEK):
        return following - timedelta(days=3)
    for days, words in ((2, OVERMORROW), (1, TOMORROW), (0, TODAY)):
        if has(text, words):
            return written + timedelta(days=days)
    assert number is not None, phrase
    return step(written, lambda d: d.day == int(number[1]))


def money(text: str) -> Fraction:
    digits = re.search(r"\d[\d.,' ]*", text)
    assert digits is not None, text
    plain = digits[0].rstrip(" .,'")
    cents = re.search(r"[.,](\d\d)$", plain)
    whole = re.sub(r"\D", "", plain[: cents.start()] if cents else plain)
    return Fraction(whole) + Fraction(int(cents[1]) if cents else 0, 100)


def currency(text: str) -> str:
    signs = {"EUR": "€|eur", "GBP": "£|gbp|pound", "USD": r"\$|usd|dollar", "CHF": r"chf|frank|franc|fr\.", "PLN": "zł|pln"}
    found = [code for code, pattern in signs.items() if re.search(pattern, text.lower())]
    assert len(found) == 1, text
    return found[0]


def mentions(row: dict[str, Any], kind: str, role: str = "counts") -> list[dict[str, Any]]:
    return [m for m in row["mentions"] if m["kind"] == kind and m["role"] == role]


def orders(row: dict[str, Any]) -> list[str]:
    numbers: set[int] = set()
    for mention in mentions(row, "order"):
        found = [int(n) for n in re.findall(r"\d+", mention["text"])]
        numbers |= set(range(min(found), max(found) + 1))
    return [f"ORD-{n:06d}" for n in sorted(numbers)]


def refund(row: dict[str, Any]) -> dict[str, str] | None:
    asked = {m["text"]: Fraction(m["factor"]) for m in mentions(row, "money")}
    if not asked:
        return None
    total = sum((factor * money(text) for text, factor in asked.items()), Fraction(0))
    (code,) = {currency(text) for text in asked}
    return {"amount": f"{float(total):.2f}", "currency": code}


def deadline(row: dict[str, Any]) -> date | None:
    received = datetime.fromisoformat(row["received"]).date()
    return min((meant(m["text"], date.fromisoformat(m["base"]) if "base" in m else received)
                for m in mentions(row, "date")), default=None)  # fmt: skip


def urgency(issue: dict[str, Any]) -> int:
    return {
        issue["level"] == "answer": 4,
        issue["level"] == "work": 3,
        issue["level"] == "down": 2,
        issue["level"] == "down" and issue["reach"] == "many": 1,
        issue["over"] or issue["test"]: 3,
        issue["danger"] or issue["exposed"]: 1,
    }[True]


def relabelled(row: dict[str, Any]) -> dict[str, Any]:
    issues = row["issues"]
    first = sorted(range(len(issues)), key=lambda i: (urgency(issues[i]), i))[0]
    level, due, money_back = urgency(issues[first]), deadline(row), refund(row)
    if due is not None and level in (3, 4) and (due - datetime.fromisoformat(row["received"]).date()).days < 3:
        level -= 1
    return {
        "category": issues[first]["fault"] if issues[first]["fault"] is not None else issues[first]["wish"],
        "priority": f"P{level}",
        "order_ids": orders(row),
        "refund": money_back,
        "deadline": None if due is None else str(due),
        "needs_human": any([row["flags"], any(i["danger"] or i["exposed"] for i in issues),
                            money_back is not None and float(money_back["amount"]) > 200]),
    }  # fmt: skip


def test_labels_computed_a_second_time_are_the_stored_ones():
    for row in ROWS:
        again = relabelled(row)
        assert again == {name: row[name] for name in again}, row["id"]


def test_language_is_that_of_the_mail_unless_another_is_asked_for():
    asks = {"de": ("germ",), "en": ("in english", "in het engels")}  # "Germman" in a mail with typos
    for row in ROWS:
        if row["language"] == row["written_in"]:
            assert not re.search(r"answer(?: me)? in german|answer in english|in het engels", row["body"], re.I), row["id"]
        else:
            assert has(row["body"].lower(), asks[row["language"]]), row["id"]


def test_forwarded_mails_say_when_they_were_written():
    based = [(row, m) for row in ROWS for m in row["mentions"] if "base" in m]
    assert len(based) >= 8
    for row, mention in based:
        lines = [re.search(r"\d{1,2} \w{3,9} \d{4}", m["text"])[0] for m in mentions(row, "date", "written")]  # type: ignore[index]
        days = [datetime.strptime(re.sub(r" (\w{3})\w* ", r" \1 ", line), "%d %b %Y").date() for line in lines]
        assert date.fromisoformat(mention["base"]) in days, row["id"]


def leftover(row: dict[str, Any]) -> str:
    text = f"{row['subject']}\n{row['body']}"
    for mention in sorted(row["mentions"], key=lambda m: -len(m["text"])):
        short = mention["text"].removesuffix(".")
        assert short in text or mention["text"] in text, (row["id"], mention)
    for mention in sorted(row["mentions"], key=lambda m: -len(m["text"])):
        text = text.replace(mention["text"], "\0").replace(mention["text"].removesuffix("."), "\0")
    return text


def test_no_number_stands_in_a_mail_that_is_not_accounted_for():
    for row in ROWS:
        assert not re.search(r"\d{3}", leftover(row)), row["id"]


def test_no_date_stands_in_a_mail_that_is_not_accounted_for():
    innocent = ("on sunday", "any day but sunday", "saturday supplement", "whole of saturday", "at my door on friday",
                "in march i think")  # fmt: skip
    names = "|".join(name for line in (*WEEKDAYS, *MONTHS) for name in line.split() if name not in ("may", "mai", "mars"))
    for row in ROWS:
        rest = leftover(row).lower().replace("&nbsp;", " ")
        rest = re.sub(r"\s+", " ", rest)
        for phrase in innocent:
            rest = rest.replace(phrase, "")
        assert not re.search(rf"\b({names})\b", rest), (row["id"], re.findall(rf"\b({names})\b", rest))


# -- rows -----------------------------------------------------------------------------------------------------


def test_enough_rows_clusters_and_variety():
    clusters = Counter(row["scenario"] for row in ROWS)
    assert len(ROWS) >= 420 and len(clusters) >= 84 and set(clusters.values()) <= {4, 5}
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert {row["category"] for row in ROWS} == {"billing", "delivery", "defect", "service", "account", "return",
                                                  "cancellation", "question", "other"}  # fmt: skip
    assert min(Counter(row["priority"] for row in ROWS).values()) >= 40
    assert Counter(row["language"] for row in ROWS).most_common(1)[0][1] <= 0.75 * len(ROWS)
    for name, least in (("refund", 100), ("deadline", 180), ("order_ids", 250), ("needs_human", 70)):
        assert least <= sum(bool(row[name]) for row in ROWS) <= len(ROWS) - least, name
    assert sum(m["role"] == "aside" for row in ROWS for m in row["mentions"]) > 400
    assert len({m["text"] for row in ROWS for m in row["mentions"] if m["kind"] == "order"}) > 400


def test_no_near_duplicates_across_clusters():
    clusters = sorted({row["scenario"] for row in ROWS})
    texts = [input_text({"subject": row["subject"], "body": row["body"]}) for row in ROWS]
    assert not similar_pairs(texts, [clusters.index(row["scenario"]) for row in ROWS])


def test_builder_gives_the_committed_bytes(tmp_path: Path):
    subprocess.run([sys.executable, str(FOLDER / "build.py"), "--out", str(tmp_path)], check=True, capture_output=True)
    assert (tmp_path / "data.jsonl").read_bytes() == (FOLDER / "data.jsonl").read_bytes()
    built, stored = (json.loads((folder / "dataset.json").read_text("utf-8")) for folder in (tmp_path, FOLDER))
    for meta in (built, stored):  # filled in by dse after building
        meta["revision"] = meta["split"]["assignment"] = None
    assert built == stored


def test_rows_fit_the_signature():
    meta = json.loads((FOLDER / "dataset.json").read_text("utf-8"))
    spec = task_module.TriageTicket.spec()
    assert meta["signature"] == "signatures.tickets:TriageTicket" and not spec.tools
    assert meta["fields"][meta["cluster_key"]] == "meta"
    for row in ROWS:
        assert set(meta["fields"]) == set(row) - {"id"}
        spec.validate_inputs({name: row[name] for name in INPUTS})
        gold = {name: row[name] for name in task_module.FIELDS}
        assert spec.wire_outputs(spec.validate_outputs(gold)) == gold


# -- metric ---------------------------------------------------------------------------------------------------


def example(row: dict[str, Any]) -> dse.Example:
    labels = {name: row[name] for name in task_module.FIELDS}
    return dse.Example(row["id"], {name: row[name] for name in INPUTS}, labels, {}, row["scenario"])


def predicted(row: dict[str, Any], **changed: Any) -> SimpleNamespace:
    """A prediction like the one of a run: validated, with its wire form."""
    spec = task_module.TriageTicket.spec()
    typed = spec.validate_outputs({name: row[name] for name in task_module.FIELDS} | changed)
    return SimpleNamespace(outputs=spec.wire_outputs(typed), **typed)


def score(row: dict[str, Any], **changed: Any) -> dse.Score:
    return task_module.triage_score(example(row), predicted(row, **changed))


def a_row(**labels: Any) -> dict[str, Any]:
    return next(row for row in ROWS if all(row[name] == value for name, value in labels.items()))


def test_gold_scores_one():
    for row in ROWS:
        assert score(row) == dse.Score(1.0, "", dict.fromkeys(task_module.FIELDS, 1.0)), row["id"]


@pytest.mark.parametrize("field", ["category", "priority", "deadline", "language", "needs_human"])
def test_one_wrong_scalar_costs_a_seventh_and_is_named(field: str):
    row = a_row(category="billing", priority="P3", language="en", deadline=None, needs_human=False)
    wrong = {"category": "return", "priority": "P1", "deadline": "2025-01-31", "language": "de", "needs_human": True}[field]
    result = score(row, **{field: wrong})
    assert result.value == pytest.approx(6 / 7)
    assert result.components[field] == 0 and sum(result.components.values()) == 6
    shown = str(wrong).lower() if isinstance(wrong, bool) else wrong
    assert result.feedback.startswith(f"{field}: expected ") and result.feedback.endswith(f"got {shown}")


def test_orders_count_by_set_f1():
    row = next(row for row in ROWS if len(row["order_ids"]) == 2)
    one, two = row["order_ids"]
    assert score(row, order_ids=[two, one, one]).value == 1
    assert score(row, order_ids=[one]).components["order_ids"] == pytest.approx(2 / 3)
    assert score(row, order_ids=[one, "ORD-999999"]).components["order_ids"] == pytest.approx(1 / 2)
    assert score(row, order_ids=[]).components["order_ids"] == 0
    assert score(row, order_ids=[str(int(one[4:])), two]).components["order_ids"] < 1  # not normalised
    assert score(a_row(order_ids=[]), order_ids=["ORD-000001"]).components["order_ids"] == 0


def test_refund_tolerates_a_cent_and_needs_the_currency():
    row = next(row for row in ROWS if row["refund"] and row["refund"]["currency"] == "EUR")
    amount = Decimal(row["refund"]["amount"])

    def part(value: Any) -> float:
        return score(row, refund=value).components["refund"]

    assert part({"amount": str(amount + Decimal("0.01")), "currency": "EUR"}) == 1
    assert part({"amount": float(amount), "currency": "EUR"}) == 1
    assert part({"amount": str(amount + Decimal("0.02")), "currency": "EUR"}) == 0
    assert part({"amount": str(amount), "currency": "USD"}) == 0.5
    assert part(None) == 0
    assert score(a_row(refund=None), refund={"amount": "10", "currency": "EUR"}).components["refund"] == 0
    assert f"expected {amount} EUR, got null" in score(row, refund=None).feedback


@given(st.sampled_from(ROWS), st.sampled_from(ROWS))
def test_the_score_is_the_mean_of_its_parts_and_symmetric(row: dict[str, Any], other: dict[str, Any]):
    gold = {name: other[name] for name in task_module.FIELDS}
    there, back = score(row, **gold), score(other, **{name: row[name] for name in task_module.FIELDS})
    assert there.value == pytest.approx(sum(there.components.values()) / 7)
    assert there.components == pytest.approx(back.components)
    assert (there.value == 1) == (not there.feedback)


# -- the demonstration ----------------------------------------------------------------------------------------


def test_demo_input_is_valid_and_not_in_the_data():
    spec = task_module.TriageTicket.spec()
    spec.validate_inputs(task_module.DEMO_INPUT)
    assert spec.wire_outputs(spec.validate_outputs(task_module.DEMO_LABELS)) == task_module.DEMO_LABELS
    demo = input_text(task_module.DEMO_INPUT)
    assert not near_duplicates([demo], [input_text({name: row[name] for name in INPUTS}) for row in ROWS])
    assert meant("by the 20th", date(2026, 3, 11)).isoformat() == task_module.DEMO_LABELS["deadline"]
