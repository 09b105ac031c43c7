"""TriageTicket: what a support mail is about, how urgent it is, and the facts in it.

No tools. Mails come in eight languages, with forwarded threads, several issues in one, numbers that mean nothing and
dates that bind nobody.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

import dse

__all__ = ["DEMO_INPUT", "DEMO_LABELS", "FIELDS", "Refund", "TriageTicket", "task", "triage_score"]

Category = Literal[
    "billing", "delivery", "defect", "service", "account", "return", "cancellation", "question", "other"
]
Priority = Literal["P1", "P2", "P3", "P4"]
Currency = Literal["EUR", "USD", "GBP", "CHF", "PLN"]
Language = Literal["en", "de", "fr", "es", "nl", "pt", "it", "pl"]


class Refund(BaseModel):
    """Money that somebody wants back."""

    amount: Decimal
    currency: Currency


class TriageTicket(dse.Signature):
    """Triage a mail to the support of Halden, a maker of smart-home devices (Hub, Eye camera, Bell doorbell, Warm
    thermostat, Key door lock) with a cloud service (Vault recordings) and an app and dashboard (Home).

    Priorities: P1 a service or device is down for more than one user; P2 it is down for one; P3 anything else that we
    have to do something about; P4 no more than an answer is needed, or nothing at all. With several issues in one mail,
    category and priority are those of the most urgent.
    """

    subject: str = dse.InputField(desc="Subject line of the mail.")
    body: str = dse.InputField(desc="Text of the mail as it arrived.")
    received: dt.datetime = dse.InputField(desc="When the mail arrived, with UTC offset.")

    category: Category = dse.OutputField(
        desc="What the mail is about: billing (charges, invoices), delivery (parcels on their way, wrong or damaged on "
        "arrival), defect (a device fails), service (faults of app, dashboard, cloud, codes, badges, connections), "
        "account (login, profile, personal data), return, cancellation, question, other."
    )
    priority: Priority = dse.OutputField(desc="P1 (highest) to P4.")
    order_ids: list[str] = dse.OutputField(
        desc="Our orders that the mail is about, written ORD- and six digits: ORD-000123."
    )
    refund: Refund | None = dse.OutputField(desc="The money that the sender asks us to pay back, or null.")
    deadline: dt.date | None = dse.OutputField(
        desc="The date by which the sender needs it done or answered, or null. Relative dates count from the day they were "
        "written: `received`, unless they stand in an older, forwarded mail."
    )
    language: Language = dse.OutputField(desc="The language to answer in.")
    needs_human: bool = dse.OutputField(
        desc="True when a person has to decide, for instance because of legal threats or danger."
    )


FIELDS = ("category", "priority", "order_ids", "refund", "deadline", "language", "needs_human")

#: Money counts as equal up to this difference.
TOLERANCE = Decimal("0.01")


def _set_f1(expected: list[str], got: list[str]) -> float:
    """F1 of two sets; 1 when both are empty."""
    want, have = set(expected), set(got)
    if not want and not have:
        return 1.0
    return 2 * len(want & have) / (len(want) + len(have))


def _refund_score(expected: dict[str, Any] | None, got: dict[str, Any] | None) -> float:
    """1 for amount and currency, 0.5 for the amount in another currency."""
    if expected is None or got is None:
        return float(expected is None and got is None)
    try:
        close = abs(Decimal(str(expected["amount"])) - Decimal(str(got["amount"]))) <= TOLERANCE
    except InvalidOperation:
        return 0.0
    return (1.0 if expected["currency"] == got["currency"] else 0.5) if close else 0.0


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['amount']} {value['currency']}"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dse.metric(revision="1")
def triage_score(example: dse.Example, prediction: Any, ctx: dse.MetricContext) -> dse.Score:
    """Mean of the seven fields: exact for scalars, set F1 for orders, amount and currency for the refund."""
    expected, got = example.labels, prediction.outputs
    parts: dict[str, float] = {}
    wrong = []
    for name in FIELDS:
        if name == "order_ids":
            parts[name] = _set_f1(expected[name], got[name])
        elif name == "refund":
            parts[name] = _refund_score(expected[name], got[name])
        else:
            parts[name] = float(expected[name] == got[name])
        if parts[name] < 1:
            wrong.append(f"{name}: expected {_shown(expected[name])}, got {_shown(got[name])}")
    return dse.Score(sum(parts.values()) / len(parts), feedback="; ".join(wrong), components=parts)


#: A mail that is not in the dataset, for demonstrations.
DEMO_INPUT = {
    "subject": "Re: your parcel #60312 // and one more thing",
    "body": (
        "Hej Halden,\n\nthe two Warm thermostats from 60312 came on Monday, thanks, they hang on the wall and do their "
        "job.\n\nLess good: since the weekend no one in our co-working space (we are about forty people) can open the "
        "front door with the app. It says \"not authorised\" and that's it. The caretaker lets us in one by one. A "
        "client visits us on the 20th, it has to work by then!\n\nApart from that, ORD-7741 was cancelled in January "
        "(invoice RE-20417) but you kept 79,90 EUR of the 159,80 EUR. Please transfer the rest.\n\nBest from Malmö\n"
        "Astrid\n\nTel. +46 40 123 45 67"
    ),
    "received": "2026-03-11T08:42:00+01:00",
}

#: What `DEMO_INPUT` should give.
DEMO_LABELS = {
    "category": "service",
    "priority": "P1",
    "order_ids": ["ORD-007741"],
    "refund": {"amount": "79.90", "currency": "EUR"},
    "deadline": "2026-03-20",
    "language": "en",
    "needs_human": False,
}

task = dse.Task(
    TriageTicket,
    dataset=Path(__file__).resolve().parent.parent / "datasets" / "tickets",
    metric=triage_score,
    # A mail triaged right is worth 25 cents.
    objective=dse.Objective(cost_weight=4.0, max_quality_loss=0.05),
)
