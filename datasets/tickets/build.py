"""Builds the TriageTicket rows: `python datasets/tickets/build.py [--out FOLDER]`.

Every mail is put together from slots whose meaning is known, so labels follow from facts. Running it again gives the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from tickets_material import SCENARIOS  # noqa: E402
from tickets_material.dates import deadlines  # noqa: E402
from tickets_material.render import Mail  # noqa: E402

NAME = "tickets"
INPUTS = ("subject", "body", "received")
LABELS = ("category", "priority", "order_ids", "refund", "deadline", "language", "needs_human")
META = ("scenario", "style", "written_in", "issues", "flags", "mentions")
LARGE_REFUND = 200  # above it, in whatever currency, a person decides


class BuildError(Exception):
    """The material breaks a rule of the dataset."""


# ---- labels from facts -----------------------------------------------------------------------------------------


def base_priority(issue: dict[str, Any]) -> int:
    """1 to 4, before a close deadline counts."""
    if issue["danger"] or issue["exposed"]:
        return 1
    if issue["over"] or issue["test"]:
        return 3
    if issue["level"] == "down":
        return 1 if issue["reach"] == "many" else 2
    return 4 if issue["level"] == "answer" else 3


def deadline_of(mail: Mail) -> date | None:
    """The earliest of the days that the mail asks for, from the table that the phrases were made with."""
    found = []
    for mention in mail.mentions:
        if mention["kind"] == "date" and mention["role"] == "counts":
            written = date.fromisoformat(mention["base"]) if "base" in mention else mail.received.date()
            text = mention["text"].lower()
            means = {
                day
                for on in (False, True)
                for phrases in deadlines(mention.get("lang", mail.scenario.lang), written, on=on).values()
                for phrase, day in phrases
                if phrase.lower() == text
            }
            if len(means) != 1:
                raise BuildError(f"{mail.scenario.key}: {text!r} means {sorted(means)}")
            found.append(means.pop())
    return min(found, default=None)


def refund_of(mail: Mail) -> dict[str, str] | None:
    spec = mail.facts.get("refund")
    if not spec:
        return None
    total = sum((Fraction(str(factor)) * mail.cents[slot] for slot, factor in spec.items()), Fraction(0))
    if total.denominator != 1 or total <= 0:
        raise BuildError(f"{mail.scenario.key}: the refund is {total} cents")
    if abs(total - 100 * LARGE_REFUND) < 1000:
        raise BuildError(f"{mail.scenario.key}: a refund of {total} cents is too close to the line")
    return {"amount": str(Decimal(int(total)).scaleb(-2)), "currency": mail.currency}


def orders_of(mail: Mail) -> list[str]:
    numbers = set()
    for slot, value in mail.orders.items():
        if slot[0] != "x":
            numbers |= {value, value + 1, value + 2} if slot[0] == "r" else {value}
    return [f"ORD-{number:06d}" for number in sorted(numbers)]


def labels(mail: Mail) -> dict[str, Any]:
    issues = mail.issues()
    deadline, refund = deadline_of(mail), refund_of(mail)
    main = min(issues, key=base_priority)  # the first of the most urgent
    priority = base_priority(main)
    if deadline and priority > 2 and deadline - mail.received.date() <= timedelta(days=2):
        priority -= 1
    human = bool(mail.flags()) or any(issue["danger"] or issue["exposed"] for issue in issues)
    return {
        "category": main["fault"] or main["wish"],
        "priority": f"P{priority}",
        "order_ids": orders_of(mail),
        "refund": refund,
        "deadline": deadline.isoformat() if deadline else None,
        "language": mail.facts.get("reply") or mail.scenario.lang,
        "needs_human": human or bool(refund and Decimal(refund["amount"]) > LARGE_REFUND),
    }


# ---- rows and checks -------------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    made = []
    numbers: set[int] = set()
    told: set[str] = set()
    for scenario in SCENARIOS:
        kinds: set[str] = set()
        for index in range(scenario.rows):
            mail = Mail(scenario, index, numbers, kinds)
            subject, body, style = mail.compose()
            row = {"id": f"{scenario.key}-{index + 1}", "subject": subject, "body": body,
                   "received": mail.received.isoformat(), **labels(mail), "scenario": scenario.key, "style": style,
                   "written_in": scenario.lang, "issues": mail.issues(), "flags": mail.flags(),
                   "mentions": mail.mentions}  # fmt: skip
            check_row(row)
            facts = json.dumps([scenario.key, mail.chosen, [m["text"] for m in mail.mentions]])
            if facts in told:
                raise BuildError(f"{scenario.key}: two rows tell the same")
            told.add(facts)
            made.append(row)
    return made


def check_row(row: dict[str, Any]) -> None:
    """Every mention stands in the text, and no number stands there that is not a mention."""
    rest = row["subject"] + "\n" + row["body"]
    if re.search("[{}\\[\\]\ue000\ue001|]", rest):
        raise BuildError(f"{row['id']}: template syntax is left in the text: {rest}")
    for mention in sorted(row["mentions"], key=lambda m: -len(m["text"])):
        text = mention["text"]
        if text not in rest and text.removesuffix(".") not in rest:
            raise BuildError(f"{row['id']}: {text!r} is not in the text: {rest}")
    for mention in sorted(row["mentions"], key=lambda m: -len(m["text"])):
        rest = rest.replace(mention["text"], "\0")
    if stray := re.findall(r"\d{3,}", rest):
        raise BuildError(f"{row['id']}: numbers that nobody accounts for: {stray}")


def check_all(made: list[dict[str, Any]]) -> None:
    clusters = {row["scenario"] for row in made}
    if len(made) < 420 or len(clusters) < 84:
        raise BuildError(f"{len(made)} rows in {len(clusters)} clusters are too few")
    grams = []
    for row in made:
        text = f"{row['subject']}\n{row['body']}"
        grams.append((row, {text[i : i + 5] for i in range(len(text) - 4)} or {text}))
    for i, (row, mine) in enumerate(grams):
        for other, theirs in grams[i + 1 :]:
            if row["scenario"] != other["scenario"] and len(mine & theirs) >= 0.8 * len(mine | theirs):
                raise BuildError(f"{row['id']} and {other['id']} are near-duplicates")


def manifest() -> dict[str, Any]:
    fields = dict.fromkeys(INPUTS, "input") | dict.fromkeys(LABELS, "label") | dict.fromkeys(META, "meta")
    return {
        "format": 1, "name": NAME, "signature": "signatures.tickets:TriageTicket",
        "fields": fields, "cluster_key": "scenario",
        "license": "MIT", "source": "Hand-written scenarios, filled in by code; all people and numbers are invented.",
        "builder": "datasets/tickets/build.py",
        "split": {"algorithm": "quota-hash-1", "quota": {"search": 0.4, "select": 0.3, "holdout": 0.3},
                  "salt": f"{NAME}-1", "assignment": {}},
        "revision": "",
    }  # fmt: skip


def write(out: Path, made: list[dict[str, Any]]) -> None:
    """Writes data.jsonl and dataset.json; the stored split and revision stay where nothing else has changed."""
    out.mkdir(parents=True, exist_ok=True)
    data, header = out / "data.jsonl", out / "dataset.json"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made).encode()
    meta = manifest()
    if data.exists() and data.read_bytes() == text and header.exists():
        stored = json.loads(header.read_text(encoding="utf-8"))
        if stored | {"revision": "", "split": stored["split"] | {"assignment": {}}} == meta:
            return
    data.write_bytes(text)
    header.write_bytes((json.dumps(meta, ensure_ascii=False, indent=2) + "\n").encode())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the tickets dataset.")
    parser.add_argument("--out", type=Path, default=HERE)
    out = parser.parse_args(argv).out
    made = rows()
    check_all(made)
    write(out, made)
    print(f"{len(made)} rows, {len({r['scenario'] for r in made})} clusters")
    for name in ("category", "priority", "language", "needs_human"):
        print(f"  {name}:", dict(Counter(str(row[name]) for row in made).most_common()))
    for name in ("order_ids", "refund", "deadline"):
        print(f"  {name}: given in {sum(bool(row[name]) for row in made)}")


if __name__ == "__main__":
    main()
