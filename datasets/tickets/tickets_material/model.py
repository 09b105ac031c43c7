"""What a scenario is: one hand-written mail with slots, and the facts that its wording states.

Template syntax (subject, body and alternatives):

    [a|b|c]      wordings that mean the same; one is drawn (may be nested)
    {who}        an alternative from `alts`: wording *and* facts differ
    {o1} {x1}    an order the mail is about / an order mentioned aside;  {r1} a range of three orders
    {m1}         an amount of money; `refund` says how it counts, otherwise it does not
    {d1} {e1}    a deadline ("by Friday") / a day something is needed for ("on 14 May")
    {p1} {q1}    a date that is no deadline: promised or planned / past;  {f1} the date line of a forwarded mail
    {d1<f1}      a deadline that somebody wrote on day f1;  {d1:soon} {d1:late} restrict how far away it is
    {n_phone}    a number that means nothing here (phone, tracking, invoice, serial, case, customer, rma, shop)
    {=502}       a literal number of three or more digits
    {name} {city} colour

A line that ends in " /" breaks there; other single line breaks are joined, blank lines divide paragraphs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Facts of one issue and their defaults. `fault` is what went wrong on our side (a category), `wish` what is
#: asked where nothing went wrong; `level`: "down" does not work at all, "work" something to do, "answer" no more
#: than an answer; `reach`: "one" customer, a "household", "many".
ISSUE_FACTS: dict[str, Any] = {
    "fault": None, "wish": None, "level": "work", "reach": "one",
    "over": False, "test": False, "danger": False, "exposed": False,
}  # fmt: skip

#: Facts of the whole mail.
FLAGS = ("legal", "press", "data", "person", "death", "repeat")

MAIL_FACTS = ("refund", "reply", *FLAGS)

Alternative = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Scenario:
    """One cluster of the dataset."""

    key: str
    subject: str
    body: str
    lang: str = "en"
    facts: dict[str, Any] = field(default_factory=dict)
    more: tuple[dict[str, Any], ...] = ()
    alts: dict[str, list[Alternative]] = field(default_factory=dict)
    money: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cur: str = "EUR"
    rows: int = 5
    bare: bool = False
    signed: bool = False
    tail: bool = True


def scenario(key: str, subject: str, body: str, *, lang: str = "en", alts: dict[str, list[Alternative]] | None = None,
             money: dict[str, tuple[int, ...]] | None = None, cur: str = "EUR", rows: int = 5, bare: bool = False,
             signed: bool = False, tail: bool = True, more: tuple[dict[str, Any], ...] = (),
             **facts: Any) -> Scenario:  # fmt: skip
    """A scenario from its text and facts.

    Args:
        bare: no greeting, closing or signature is added (very short mails, own sign-off).
        signed: a greeting may be added, but no closing or signature.
        tail: a quoted automatic reply may follow.
        more: facts of further issues in the same mail, in the order of mention.
        facts: facts of the first issue and of the mail.

    Raises:
        ValueError: for a fact that does not exist.
    """
    known = set(ISSUE_FACTS) | set(MAIL_FACTS)
    for source in (facts, *(f for options in (alts or {}).values() for _, f in options), *more):
        for name in source:
            if name.split(".")[-1] not in known:
                raise ValueError(f"scenario {key}: unknown fact {name!r}")
    return Scenario(key, subject, body, lang, facts, more, alts or {}, money or {}, cur, rows, bare, signed, tail)
