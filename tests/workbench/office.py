"""The five databases of one rollout, and what can be done with them. The tools do nothing but call these methods.

Everything is text, as in the files. A request that cannot be met raises ``ToolFailed`` and changes nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dse.errors import ToolFailed

from .data import NOW, tables

__all__ = ["SCORED", "Office"]

SCORED = ("calendar", "email", "analytics", "project_management", "customer_relationship_manager")
MOST = 5  # rows that a search returns
STATUSES = ("Qualified", "Won", "Lost", "Lead", "Proposal")
PRODUCTS = ("Software", "Hardware", "Services", "Consulting", "Training")
SOURCES = ("direct", "referral", "search engine", "social media")
PLOTTED = ("total_visits", "session_duration_seconds", "user_engaged", "visits_direct", "visits_referral",
           "visits_search_engine", "visits_social_media")  # fmt: skip
PLOTS = ("bar", "line", "scatter", "histogram")
_KEYS = {"calendar": "event_id", "email": "email_id", "project_management": "task_id",
         "customer_relationship_manager": "customer_id"}  # fmt: skip

Row = dict[str, str]


def _moment(text: str, name: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is not None:
        raise ToolFailed(f'{name} is not a time like "{NOW}": {text!r}')
    return moment


def _day(text: str, name: str) -> dt.date:
    return _moment(text, name).date()


def _minutes(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ToolFailed(f"a duration is a number of minutes, not {text!r}")
    return int(text)


def _one_of(value: str, known: Sequence[str], name: str) -> None:
    if value not in known:
        raise ToolFailed(f"{name} is one of {', '.join(known)}, not {value!r}")


def _given(**values: str | None) -> None:
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise ToolFailed(f"{' and '.join(missing)} must be given")


class Office:
    """A fresh copy of the databases: rows are replaced, never changed, so that copies can share them."""

    def __init__(self) -> None:
        self._start = tables()
        self.tables: dict[str, dict[str, Mapping[str, str]]] = {name: dict(rows) for name, rows in self._start.items()}

    def changes(self) -> dict[str, dict[str, Row | None]]:
        """What differs from the start, by table and id, None for what is gone: equal exactly for equal databases."""
        found: dict[str, dict[str, Row | None]] = {}
        for name in SCORED:
            old, new = self._start[name], self.tables[name]
            differ = {key: dict(row) for key, row in new.items() if old.get(key) != row} | dict.fromkeys(old.keys() - new.keys())
            if differ:
                found[name] = dict(sorted(differ.items()))
        return found

    # ---- rows in general

    def _row(self, table: str, key: str | None) -> Mapping[str, str]:
        _given(**{_KEYS[table]: key})
        row = self.tables[table].get(str(key))
        if row is None:
            raise ToolFailed(f"there is no {_KEYS[table]} {key!r}")
        return row

    def show(self, table: str, key: str | None, field: str | None) -> Row:
        row = self._row(table, key)
        if field is None:
            return dict(row)
        _one_of(field, list(row), "field")
        return {field: row[field]}

    def delete(self, table: str, key: str | None) -> None:
        self._row(table, key)
        del self.tables[table][str(key)]

    def update(self, table: str, key: str | None, field: str | None, value: str | None) -> None:
        row = self._row(table, key)
        _given(field=field, new_value=value)
        assert field is not None and value is not None
        _one_of(field, [name for name in row if name != _KEYS[table]], "field")
        self._check(field, value)
        self.tables[table][str(key)] = {**row, field: value}

    def add(self, table: str, row: Row) -> str:
        """Add a row under the next free number."""
        for field, value in row.items():
            if value:
                self._check(field, value)
        number = str(max((int(key) for key in self.tables[table]), default=-1) + 1).zfill(8)
        self.tables[table][number] = {_KEYS[table]: number, **row}
        return number

    def _check(self, field: str, value: str) -> None:
        if field == "event_start":
            _moment(value, field)
        elif field == "duration":
            _minutes(value)
        elif field in ("due_date", "follow_up_by", "last_contact_date"):
            _day(value, field)
        elif field == "status":
            _one_of(value, STATUSES, field)
        elif field == "product_interest":
            _one_of(value, PRODUCTS, field)

    def _search(self, table: str, wanted: Callable[[Mapping[str, str]], bool], *, newest: bool = False) -> list[Row]:
        rows: Iterable[Mapping[str, str]] = self.tables[table].values()
        return [dict(row) for row in (reversed(list(rows)) if newest else rows) if wanted(row)][:MOST]

    def _filtered(self, table: str, holds: Mapping[str, str | None], between: Mapping[str, tuple[str | None, str | None]]) -> list[Row]:
        """Rows whose fields hold the texts, in any case, and whose days are within the bounds."""
        texts = {field: text.lower() for field, text in holds.items() if text}
        days = {field: (low and _day(low, field), high and _day(high, field)) for field, (low, high) in between.items() if low or high}
        if not texts and not days:
            raise ToolFailed("say what to search for")

        def within(row: Mapping[str, str], field: str, low: Any, high: Any) -> bool:
            day = dt.date.fromisoformat(row[field]) if row[field] else None
            return day is not None and (not low or day >= low) and (not high or day <= high)

        return self._search(table, lambda row: all(text in row[field].lower() for field, text in texts.items())
                            and all(within(row, field, *bounds) for field, bounds in days.items()))  # fmt: skip

    # ---- calendar, email, directory

    def events(self, query: str, time_min: str | None, time_max: str | None) -> list[Row]:
        text = query.lower()
        low = _moment(time_min, "time_min") if time_min else None
        high = _moment(time_max, "time_max") if time_max else None

        def wanted(row: Mapping[str, str]) -> bool:
            start = _moment(row["event_start"], "event_start")
            end = start + dt.timedelta(minutes=int(row["duration"]))
            named = text in row["event_name"].lower() or text in row["participant_email"].lower()
            return named and (low is None or end >= low) and (high is None or start <= high)

        return self._search("calendar", wanted)

    def emails(self, query: str, date_min: str | None, date_max: str | None) -> list[Row]:
        words = query.lower().split()
        low = _day(date_min, "date_min") if date_min else None
        high = _day(date_max, "date_max") if date_max else None

        def wanted(row: Mapping[str, str]) -> bool:
            text = f"{row['subject']} {row['body']} {row['sender/recipient']}".lower()
            day = dt.date.fromisoformat(row["sent_datetime"][:10])
            return all(word in text for word in words) and (low is None or day >= low) and (high is None or day <= high)

        return self._search("email", wanted, newest=True)

    def send(self, recipient: str | None, subject: str | None, body: str | None) -> str:
        _given(recipient=recipient, subject=subject, body=body)
        assert recipient and subject and body
        name, at, host = recipient.partition("@")
        if not (name and at and "." in host) or " " in recipient:
            raise ToolFailed(f"{recipient!r} is not an email address")
        return self.add("email", {"inbox/outbox": "outbox", "sender/recipient": recipient, "subject": subject,
                                  "sent_datetime": NOW, "body": body})  # fmt: skip

    def addresses(self, name: str) -> list[str]:
        _given(name=name)
        text = ".".join(name.lower().split())
        return [address for address in self.tables["directory"] if text in address.lower()]

    # ---- tasks and customers

    def tasks(self, **holds: str | None) -> list[Row]:
        return self._filtered("project_management", holds, {})

    def customers(self, holds: Mapping[str, str | None], contact: tuple[str | None, str | None],
                  follow_up: tuple[str | None, str | None]) -> list[Row]:  # fmt: skip
        return self._filtered("customer_relationship_manager", holds, {"last_contact_date": contact, "follow_up_by": follow_up})

    # ---- analytics

    def visitor(self, visitor_id: str | None) -> list[Row]:
        _given(visitor_id=visitor_id)
        return self._search("visits", lambda row: row["visitor_id"] == visitor_id)

    def per_day(self, time_min: str | None, time_max: str | None, **equal: str) -> dict[str, list[Row]]:
        """The visits of every day of the range, days without visits too; by default of all days that have data."""
        visits = list(self.tables["visits"].values())
        days = [row["date_of_visit"] for row in visits]
        low = _day(time_min or min(days), "time_min")
        high = _day(time_max or max(days), "time_max")
        if (high - low).days > 3_660:
            raise ToolFailed("the time range is longer than ten years")
        found: dict[str, list[Row]] = {str(low + dt.timedelta(days=at)): [] for at in range((high - low).days + 1)}
        for row in visits:
            if row["date_of_visit"] in found and all(row[field] == value for field, value in equal.items()):
                found[row["date_of_visit"]].append(dict(row))
        return found

    def source_per_day(self, time_min: str | None, time_max: str | None, source: str | None) -> dict[str, list[Row]]:
        _given(traffic_source=source)
        assert source is not None
        _one_of(source, SOURCES, "traffic_source")
        return self.per_day(time_min, time_max, traffic_source=source)

    def plot(self, time_min: str | None, time_max: str | None, value: str | None, kind: str | None) -> str:
        _given(time_min=time_min, time_max=time_max, value_to_plot=value, plot_type=kind)
        assert time_min and time_max and value and kind
        _day(time_min, "time_min"), _day(time_max, "time_max")
        _one_of(value, PLOTTED, "value_to_plot")
        _one_of(kind, PLOTS, "plot_type")
        path = f"plots/{time_min}_{time_max}_{value}_{kind}.png"
        made = self.tables["analytics"]
        made[str(len(made)).zfill(8)] = {"file_path": path}
        return path
