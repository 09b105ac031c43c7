"""From a scenario to one mail: draws wordings, fills slots, dresses the text, and records every mention.

A mention is ``{"kind", "role", "text"}``: kind "order", "money", "date" or "other", role "counts" (it decides a
label), "aside" (it does not) or "written" (the date line of a forwarded mail), text exactly as it stands in the mail.
Money has "factor" (how often it counts), dates may have "base" (the day they were written, when not `received`) and
"lang" (when it is not that of the mail).
"""

from __future__ import annotations

import random
import re
from datetime import date, datetime, timedelta, timezone
from typing import Any

from tickets_material import dates, dressing
from tickets_material.model import FLAGS, ISSUE_FACTS, Scenario

SLOT = re.compile(r"\{(=?[A-Za-z0-9_]+)(?:<(f\d))?((?::[a-z_]+)*)\}")
CHOICE = re.compile(r"\[([^\[\]]*)\]")
TOKEN = re.compile("\ue000(\\d+)\ue001")
#: Kinds of deadline that careful reading alone does not settle are drawn a little more often.
WEIGHT = {"end_week": 7, "before": 9, "middle": 4, "workdays": 3, "weekday": 3, "date": 2, "end_month": 3}
STYLES = (("plain", 50), ("typos", 18), ("lower", 9), ("html", 9), ("wrapped", 8), ("caps", 6))


class Mail:
    """One row under construction."""

    def __init__(self, scenario: Scenario, index: int, used_numbers: set[int], used_kinds: set[str]) -> None:
        self.scenario = scenario
        self.index = index
        self.rng = random.Random(f"tickets-1/{scenario.key}/{index}")
        self.used_numbers = used_numbers
        self.used_kinds = used_kinds
        self.tokens: list[str] = []
        self.mentions: list[dict[str, Any]] = []
        self.orders: dict[str, int] = {}
        self.texts: dict[str, str] = {}
        self.cents: dict[str, int] = {}
        self.written: dict[str, date] = {}
        self.received = self._received()
        self.currency = self.rng.choice(scenario.cur.split())
        self.facts: dict[str, Any] = dict(scenario.facts)
        self.chosen: dict[str, str] = {}
        self._choose()

    def _received(self) -> datetime:
        """A moment on a weekday; continental mails carry the continental offset."""
        day = date(2024, 9, 2) + timedelta(days=self.rng.randrange(430))
        while day.weekday() > 4:
            day += timedelta(days=1)
        summer = (3, 31) <= (day.month, day.day) <= (10, 26)
        offset = summer + (self.scenario.lang not in ("en", "pt"))
        moment = datetime(day.year, day.month, day.day, self.rng.randrange(6, 23), self.rng.randrange(60))
        return moment.replace(tzinfo=timezone(timedelta(hours=offset)))

    def _choose(self) -> None:
        """One alternative per axis; over the rows of a cluster every axis goes through all of its alternatives."""
        for place, (axis, options) in enumerate(self.scenario.alts.items()):
            order = list(range(len(options)))
            random.Random(f"tickets-1/{self.scenario.key}/{axis}").shuffle(order)
            rounds = self.index // len(order)  # axes of one length must not go in step for ever
            text, facts = options[order[(self.index + place * rounds) % len(order)]]
            self.chosen[axis] = text
            self.facts |= facts

    # ---- facts ---------------------------------------------------------------------------------------------

    def issues(self) -> list[dict[str, Any]]:
        found = [ISSUE_FACTS | issue for issue in ({}, *self.scenario.more)]
        for name, value in self.facts.items():
            where, _, fact = name.rpartition(".")
            if fact in ISSUE_FACTS:
                found[int(where or 1) - 1][fact] = value
        return found

    def flags(self) -> list[str]:
        return [flag for flag in FLAGS if self.facts.get(flag)]

    # ---- text ----------------------------------------------------------------------------------------------

    def words(self, template: str) -> str:
        """`template` with alternatives and wordings drawn; slots still open."""
        for axis in self.chosen:
            template = template.replace("{" + axis + "}", self.chosen[axis])
        while match := CHOICE.search(template):
            template = template[: match.start()] + self.rng.choice(match[1].split("|")) + template[match.end() :]
        return template.replace("{name}", self.name).replace("{city}", self.city)

    def fill(self, template: str) -> str:
        """`template` with every slot replaced by a token that no later step can damage."""
        return SLOT.sub(lambda m: self._token(*self._slot(m[1], m[2], set(filter(None, m[3].split(":"))))), template)

    def _token(self, text: str, mention: dict[str, Any]) -> str:
        self.tokens.append(text)
        record = {"text": text, **mention}
        if record not in self.mentions:
            self.mentions.append(record)
        return f"\ue000{len(self.tokens) - 1}\ue001"

    def _slot(self, name: str, base: str | None, options: set[str]) -> tuple[str, dict[str, Any]]:
        letter = name[0]
        if name.startswith("="):
            return name[1:], {"kind": "other", "role": "aside"}
        if name.startswith("n_"):
            if name not in self.texts:
                self.texts[name] = dressing.number(self.rng, name[2:].rstrip("0123456789"), self.scenario.lang)
            return self.texts[name], {"kind": "other", "role": "aside"}
        if letter in "oxr":
            return self._order(name), {"kind": "order", "role": "aside" if letter == "x" else "counts"}
        if letter == "m":
            factor = str((self.facts.get("refund") or {}).get(name, 0))
            return self._money(name), {"kind": "money", "role": "aside" if factor == "0" else "counts", "factor": factor}
        if letter in "fh":
            return self._date_line(name), {"kind": "date", "role": "written" if letter == "f" else "aside"}
        if letter in "depq":
            return self._date(letter, base, options)
        raise ValueError(f"{self.scenario.key}: unknown slot {name!r}")

    def _order(self, name: str) -> str:
        if name not in self.orders:
            while True:
                digits = self.rng.choice((3, 4, 4, 5, 5, 5, 6))
                value = self.rng.randrange(10 ** (digits - 1) + 1, 10**digits - 3)
                span = set(range(value, value + (3 if name[0] == "r" else 1)))
                if not span & self.used_numbers:
                    break
            self.used_numbers |= span
            self.orders[name] = value
        value = self.orders[name]
        if name[0] == "r":
            style = self.rng.choice(("{a} to {c}", "{a}-{c}", "#{a} to #{c}", "{a}, {b} and {c}", "{a}\u2013{c}",
                                     "ORD-{a:06d} to ORD-{c:06d}", "{a} through {c}"))  # fmt: skip
            return style.format(a=value, b=value + 1, c=value + 2)
        styles = dressing.ORDER_STYLES if self.scenario.lang == "en" else dressing.ORDER_STYLES_OTHER
        return self.rng.choice(styles).format(n=value)

    def _money(self, name: str) -> str:
        if name not in self.texts:
            low, high, *step = self.scenario.money[name]
            cents = 20000
            while abs(cents - 20000) < 1200:  # not too close to the line at which a person decides
                if step:
                    cents = 100 * self.rng.randrange(low, high + 1, step[0])
                else:
                    cents = 100 * self.rng.randrange(low, high) + self.rng.choice((0, 0, 50, 90, 90, 95, 99, 40))
            self.cents[name] = cents
            self.texts[name] = dressing.money_text(self.rng, self.scenario.lang, self.currency, cents)
        return self.texts[name]

    def _date_line(self, name: str) -> str:
        """When a quoted or forwarded mail was written."""
        far = "{f2" in self.scenario.body and name == "f1"
        ago = self.rng.randrange(14, 19) if far else self.rng.randrange(4, 6) if name == "f2" else self.rng.randrange(1, 4)
        day = self.received.date() - timedelta(days=ago)
        self.written[name] = day
        clock = f"{self.rng.randrange(7, 20):02d}:{self.rng.randrange(60):02d}"
        lang = self.scenario.lang
        month = dates.MONTHS[lang].split()[day.month - 1]
        if name[0] == "f":
            month = month[: self.rng.choice((3, 9))]
            return f"{dates.WEEKDAYS[lang].split()[day.weekday()]}, {day.day} {month} {day.year} {clock}"
        point = "." if lang == "de" else ""
        de = " de" if lang in ("es", "pt") else ""
        return f"{day.day}{point}{de} {month}{de} {day.year}, {clock}"

    def _date(self, letter: str, base: str | None, options: set[str]) -> tuple[str, dict[str, Any]]:
        today = self.received.date()
        written = self.written[base] if base else today
        lang = "de" if "de" in options else self.scenario.lang
        mention: dict[str, Any] = {"kind": "date", "role": "counts" if letter in "de" else "aside"}
        if base:
            mention["base"] = written.isoformat()
        if lang != self.scenario.lang:
            mention["lang"] = lang
        if letter == "q" and "future" not in options:
            day = today - timedelta(days=self.rng.randrange(6, 40))
            while not dates.plain_day(day):
                day -= timedelta(days=1)
            text = self.rng.choice(dates.past_phrases(lang, day))
        else:
            text = self._phrase(letter, written, lang, options)
        if "bare" in options:
            text = text.removeprefix("on ")
        if "cap" in options:
            text = text[0].upper() + text[1:]
        if "upper" in options:
            text = text.upper()
        return text, mention

    def _phrase(self, letter: str, written: date, lang: str, options: set[str]) -> str:
        today = self.received.date()
        soon = "soon" in options or ("late" not in options and self.rng.random() < 0.35)
        found: dict[str, list[str]] = {}
        for kind, phrases in dates.deadlines(lang, written, on=letter in "eq").items():
            for text, day in phrases:
                ahead = (day - today).days
                if letter == "p":  # a promise of ours: in a quoted mail it has to be over when that is quoted
                    fits = day < today - timedelta(days=6) if written < today else ahead > 0
                else:
                    fits = 0 <= ahead <= 2 if soon else 3 <= ahead <= 45
                if fits and (kind == "weekday" or "weekday" not in options):
                    found.setdefault(kind, []).append(text)
        kinds = [kind for kind in found if kind not in self.used_kinds] or list(found)
        kind = self.rng.choices(kinds, [WEIGHT.get(kind, 1) for kind in kinds])[0]
        self.used_kinds.add(kind)
        return self.rng.choice(found[kind])

    # ---- the whole mail ------------------------------------------------------------------------------------

    def compose(self) -> tuple[str, str, str]:
        """(subject, body, style)."""
        rng, scenario, lang = self.rng, self.scenario, self.scenario.lang
        self.name = rng.choice(dressing.NAMES[lang])
        self.city = rng.choice(dressing.CITIES[lang])
        subject = self.words(scenario.subject)
        if rng.random() < 0.12:
            subject = rng.choice(dressing.SHOUTS[lang]) + subject
        body = self.words(scenario.body.strip())
        parts = [body]
        if not scenario.bare:
            greeting = rng.choice(dressing.GREETINGS[lang])
            parts.insert(0, greeting)
            if not scenario.signed:
                parts.append(self.words(rng.choice(dressing.CLOSINGS[lang])) + " /\n" + self.name)
                if rng.random() < 0.4:
                    parts.append(self.words(rng.choice(dressing.FOOTERS[lang])))
            if scenario.tail and rng.random() < 0.13:
                parts.append(self.words(rng.choice(dressing.TAILS[lang])))
        text = "\n\n".join(parts)
        subject, text = self.fill(subject), reflow(self.fill(text))
        names, weights = zip(*STYLES, strict=True)
        style = rng.choices(names, weights)[0]
        if scenario.bare and style not in ("typos", "lower"):
            style = "plain"
        text = STYLE_OF[style](text, rng)
        if style == "lower":
            subject = subject.lower()
        return self._reveal(subject), self._reveal(text), style

    def _reveal(self, text: str) -> str:
        def put(match: re.Match[str]) -> str:
            value = self.tokens[int(match[1])]
            # "bis zum 14." at the end of a sentence keeps one full stop
            return value.removesuffix(".") if text[match.end() : match.end() + 1] == "." else value

        return TOKEN.sub(put, text)


def reflow(text: str) -> str:
    """Paragraphs on one line each; " /" at the end of a line keeps the break."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = re.split(r" ?/\n", " ".join(paragraph.strip().split(" ")))
        joined = "\n".join(re.sub(r"\s+", " ", line).strip() for line in lines).strip()
        if joined:
            paragraphs.append(re.sub(r" /$", "", joined))
    return "\n\n".join(paragraphs)


def typos(text: str, rng: random.Random) -> str:
    """Swapped, lost and doubled letters inside some longer words."""

    def damage(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() > 0.07:
            return word
        at = rng.randrange(1, len(word) - 2)
        kind = rng.randrange(3)
        if kind == 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return word[:at] + (word[at] * 2 if kind == 1 else "") + word[at + 1 :]

    return re.sub(r"(?<![\w@.-])[A-Za-z]?[a-z]{5,}(?![\w@.])", damage, text)


def html(text: str, rng: random.Random) -> str:
    """What is left of a mail that was written in HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = text.replace("\n\n", "<br>\n<br>\n" if rng.random() < 0.5 else "</p>\n<p>")
    if "<p>" in text:
        text = f"<p>{text}</p>"
    return re.sub(" (?=[a-z])", lambda m: "&nbsp;" if rng.random() < 0.04 else m[0], text)


def wrapped(text: str, rng: random.Random) -> str:
    """Hard line breaks."""
    width = rng.randrange(52, 66)
    lines: list[str] = []
    for line in text.split("\n"):
        current = ""
        for word in line.split(" "):
            if current and len(current) + len(word) >= width:
                lines.append(current)
                current = word
            else:
                current = f"{current} {word}" if current else word
        lines.append(current)
    return "\n".join(lines)


def caps(text: str, rng: random.Random) -> str:
    """The longest paragraph begins by shouting."""
    paragraphs = text.split("\n\n")
    at = max(range(len(paragraphs)), key=lambda i: len(paragraphs[i]))
    head, stop, rest = paragraphs[at].partition(". ")
    paragraphs[at] = head.upper() + stop + rest
    return "\n\n".join(paragraphs)


STYLE_OF = {
    "plain": lambda text, rng: text, "lower": lambda text, rng: text.lower(),
    "typos": typos, "html": html, "wrapped": wrapped, "caps": caps,
}  # fmt: skip
