"""The 27 tools: names, parameters and effects as WorkBench has them, words and results of our own.

What is not found or not given raises, so that results have one type each.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict

import dse
from dse.errors import ToolFailed

from .office import Office

__all__ = ["SCOPE", "TOOLS"]

Ctx = dse.ToolContext[Office]
Text = str | None


class Event(TypedDict):
    """An event of the calendar; the duration is in minutes."""

    event_id: str
    event_name: str
    participant_email: str
    event_start: str
    duration: str


Mail = TypedDict("Mail", {"email_id": str, "inbox/outbox": str, "sender/recipient": str, "subject": str,
                          "sent_datetime": str, "body": str})  # fmt: skip


class Visit(TypedDict):
    """A visit to the website."""

    date_of_visit: str
    visitor_id: str
    page_views: str
    session_duration_seconds: str
    traffic_source: str
    user_engaged: str


class ProjectTask(TypedDict):
    """A task on a board."""

    task_id: str
    task_name: str
    assigned_to_email: str
    list_name: str
    due_date: str
    board: str


class Customer(TypedDict):
    """A customer."""

    customer_id: str
    assigned_to_email: str
    customer_name: str
    customer_email: str
    customer_phone: str
    last_contact_date: str
    product_interest: str
    status: str
    follow_up_by: str
    notes: str


TOOLS: list[dse.Tool] = []


def _read(function: Any) -> Any:
    return _kept(dse.tool(function, effect="read", timeout_s=10))


def _write(function: Any) -> Any:
    return _kept(dse.tool(function, effect="write", timeout_s=10))


def _kept(one: dse.Tool) -> dse.Tool:
    TOOLS.append(one)
    return one


# ---- calendar ---------------------------------------------------------------------------------------------


@_read
async def calendar_get_event_information_by_id(ctx: Ctx, event_id: Text = None, field: Text = None) -> dict[str, str]:
    """One event: a single field of it, or all where no field is named.

    Args:
        event_id: eight digits
        field: event_id, event_name, participant_email, event_start or duration
    """
    return ctx.deps.show("calendar", event_id, field)


@_read
async def calendar_search_events(ctx: Ctx, query: str = "", time_min: Text = None, time_max: Text = None) -> list[Event]:
    """The first five events, earliest first, that match all that is given.

    Args:
        query: a part of the event's name or of the participant's email address; empty for any
        time_min: only events that end at this time or later, "YYYY-MM-DD HH:MM:SS"
        time_max: only events that start at this time or earlier, "YYYY-MM-DD HH:MM:SS"
    """
    return ctx.deps.events(query, time_min, time_max)


@_write
async def calendar_create_event(ctx: Ctx, event_name: Text = None, participant_email: Text = None, event_start: Text = None,
                                duration: Text = None) -> str:  # fmt: skip
    """Put a new event into the calendar; gives its id. All four are needed.

    Args:
        event_start: "YYYY-MM-DD HH:MM:SS"
        duration: in minutes
    """
    row = {"event_name": event_name, "participant_email": participant_email, "event_start": event_start, "duration": duration}
    return ctx.deps.add("calendar", _all(row))


@_write
async def calendar_delete_event(ctx: Ctx, event_id: Text = None) -> str:
    """Remove an event from the calendar.

    Args:
        event_id: eight digits
    """
    ctx.deps.delete("calendar", event_id)
    return "Event deleted."


@_write
async def calendar_update_event(ctx: Ctx, event_id: Text = None, field: Text = None, new_value: Text = None) -> str:
    """Change one field of an event.

    Args:
        event_id: eight digits
        field: event_name, participant_email, event_start or duration
        new_value: replaces the old one
    """
    ctx.deps.update("calendar", event_id, field, new_value)
    return "Event updated."


# ---- email ------------------------------------------------------------------------------------------------


@_read
async def email_get_email_information_by_id(ctx: Ctx, email_id: Text = None, field: Text = None) -> dict[str, str]:
    """One email: a single field of it, or all where no field is named.

    Args:
        email_id: eight digits
        field: email_id, inbox/outbox, sender/recipient, subject, sent_datetime or body
    """
    return ctx.deps.show("email", email_id, field)


@_read
async def email_search_emails(ctx: Ctx, query: str = "", date_min: Text = None, date_max: Text = None) -> list[Mail]:
    """The first five emails, newest first, that match all that is given.

    Args:
        query: words that all occur in subject, body or the other person's address; empty for any
        date_min: only emails of this day or later, "YYYY-MM-DD"
        date_max: only emails of this day or earlier, "YYYY-MM-DD"
    """
    return ctx.deps.emails(query, date_min, date_max)


@_write
async def email_send_email(ctx: Ctx, recipient: Text = None, subject: Text = None, body: Text = None) -> str:
    """Send a new email. All three are needed.

    Args:
        recipient: an email address
    """
    ctx.deps.send(recipient, subject, body)
    return "Email sent."


@_write
async def email_delete_email(ctx: Ctx, email_id: Text = None) -> str:
    """Delete an email.

    Args:
        email_id: eight digits
    """
    ctx.deps.delete("email", email_id)
    return "Email deleted."


@_write
async def email_forward_email(ctx: Ctx, email_id: Text = None, recipient: Text = None) -> str:
    """Forward an email to one recipient.

    Args:
        email_id: eight digits
        recipient: an email address
    """
    mail = ctx.deps.show("email", email_id, None)
    ctx.deps.send(recipient, f"FW: {mail['subject']}", mail["body"])
    return "Email forwarded."


@_write
async def email_reply_email(ctx: Ctx, email_id: Text = None, body: Text = None) -> str:
    """Answer an email; the answer goes to the other person of that email, under its subject.

    Args:
        email_id: eight digits
    """
    mail = ctx.deps.show("email", email_id, None)
    ctx.deps.send(mail["sender/recipient"], mail["subject"], body)
    return "Email replied."


# ---- website ----------------------------------------------------------------------------------------------


@_read
async def analytics_get_visitor_information_by_id(ctx: Ctx, visitor_id: Text = None) -> list[Visit]:
    """The first five visits of one visitor to the website."""
    return ctx.deps.visitor(visitor_id)


@_write
async def analytics_create_plot(ctx: Ctx, time_min: Text = None, time_max: Text = None, value_to_plot: Text = None,
                                plot_type: Text = None) -> str:  # fmt: skip
    """Plot a figure of the website over time; gives the path of the picture. All four are needed.

    Args:
        time_min: first day, "YYYY-MM-DD"
        time_max: last day, "YYYY-MM-DD"
        value_to_plot: total_visits, session_duration_seconds, user_engaged, visits_direct, visits_referral,
            visits_search_engine or visits_social_media
        plot_type: bar, line, scatter or histogram
    """
    return ctx.deps.plot(time_min, time_max, value_to_plot, plot_type)


@_read
async def analytics_total_visits_count(ctx: Ctx, time_min: Text = None, time_max: Text = None) -> dict[str, int]:
    """Visits to the website per day.

    Args:
        time_min: first day, "YYYY-MM-DD"
        time_max: last day, "YYYY-MM-DD"
    """
    return {day: len(rows) for day, rows in ctx.deps.per_day(time_min, time_max).items()}


@_read
async def analytics_engaged_users_count(ctx: Ctx, time_min: Text = None, time_max: Text = None) -> dict[str, int]:
    """Visits of engaged users per day.

    Args:
        time_min: first day, "YYYY-MM-DD"
        time_max: last day, "YYYY-MM-DD"
    """
    return {day: len(rows) for day, rows in ctx.deps.per_day(time_min, time_max, user_engaged="True").items()}


@_read
async def analytics_traffic_source_count(ctx: Ctx, time_min: Text = None, time_max: Text = None,
                                         traffic_source: Text = None) -> dict[str, int]:  # fmt: skip
    """Visits per day that came from one source.

    Args:
        time_min: first day, "YYYY-MM-DD"
        time_max: last day, "YYYY-MM-DD"
        traffic_source: direct, referral, search engine or social media
    """
    return {day: len(rows) for day, rows in ctx.deps.source_per_day(time_min, time_max, traffic_source).items()}


@_read
async def analytics_get_average_session_duration(ctx: Ctx, time_min: Text = None, time_max: Text = None) -> dict[str, float]:
    """Average seconds that a visit took, per day.

    Args:
        time_min: first day, "YYYY-MM-DD"
        time_max: last day, "YYYY-MM-DD"
    """
    days = ctx.deps.per_day(time_min, time_max)
    return {day: sum(float(row["session_duration_seconds"]) for row in rows) / max(1, len(rows)) for day, rows in days.items()}


# ---- projects ---------------------------------------------------------------------------------------------


@_read
async def project_management_get_task_information_by_id(ctx: Ctx, task_id: Text = None, field: Text = None) -> dict[str, str]:
    """One task: a single field of it, or all where no field is named.

    Args:
        task_id: eight digits
        field: task_id, task_name, assigned_to_email, list_name, due_date or board
    """
    return ctx.deps.show("project_management", task_id, field)


@_read
async def project_management_search_tasks(ctx: Ctx, task_name: Text = None, assigned_to_email: Text = None, list_name: Text = None,
                                          due_date: Text = None, board: Text = None) -> list[ProjectTask]:  # fmt: skip
    """The first five tasks whose fields contain the texts given.

    Args:
        due_date: "YYYY-MM-DD"
    """
    return ctx.deps.tasks(task_name=task_name, assigned_to_email=assigned_to_email, list_name=list_name, due_date=due_date,
                          board=board)  # fmt: skip


@_write
async def project_management_create_task(ctx: Ctx, task_name: Text = None, assigned_to_email: Text = None, list_name: Text = None,
                                         due_date: Text = None, board: Text = None) -> str:  # fmt: skip
    """Make a new task; gives its id. All five are needed.

    Args:
        due_date: "YYYY-MM-DD"
    """
    row = {"task_name": task_name, "assigned_to_email": assigned_to_email, "list_name": list_name, "due_date": due_date,
           "board": board}  # fmt: skip
    return ctx.deps.add("project_management", _all(row))


@_write
async def project_management_delete_task(ctx: Ctx, task_id: Text = None) -> str:
    """Delete a task.

    Args:
        task_id: eight digits
    """
    ctx.deps.delete("project_management", task_id)
    return "Task deleted."


@_write
async def project_management_update_task(ctx: Ctx, task_id: Text = None, field: Text = None, new_value: Text = None) -> str:
    """Change one field of a task.

    Args:
        task_id: eight digits
        field: task_name, assigned_to_email, list_name, due_date or board
        new_value: replaces the old one
    """
    ctx.deps.update("project_management", task_id, field, new_value)
    return "Task updated."


# ---- customers --------------------------------------------------------------------------------------------


@_read
async def customer_relationship_manager_search_customers(
    ctx: Ctx, customer_name: Text = None, customer_email: Text = None, product_interest: Text = None, status: Text = None,
    assigned_to_email: Text = None, last_contact_date_min: Text = None, last_contact_date_max: Text = None,
    follow_up_by_min: Text = None, follow_up_by_max: Text = None,
) -> list[Customer]:  # fmt: skip
    """The first five customers whose fields contain the texts given and whose days, "YYYY-MM-DD", are within the bounds."""
    holds = {"customer_name": customer_name, "customer_email": customer_email, "product_interest": product_interest,
             "status": status, "assigned_to_email": assigned_to_email}  # fmt: skip
    contact, follow_up = (last_contact_date_min, last_contact_date_max), (follow_up_by_min, follow_up_by_max)
    return ctx.deps.customers(holds, contact, follow_up)


@_write
async def customer_relationship_manager_update_customer(ctx: Ctx, customer_id: Text = None, field: Text = None,
                                                        new_value: Text = None) -> str:  # fmt: skip
    """Change one field of a customer.

    Args:
        customer_id: eight digits
        field: any field but the id
        new_value: replaces the old one
    """
    ctx.deps.update("customer_relationship_manager", customer_id, field, new_value)
    return "Customer updated."


@_write
async def customer_relationship_manager_add_customer(
    ctx: Ctx, customer_name: Text = None, assigned_to_email: Text = None, status: Text = None, customer_email: Text = None,
    customer_phone: Text = None, last_contact_date: Text = None, product_interest: Text = None, notes: Text = None,
    follow_up_by: Text = None,
) -> str:  # fmt: skip
    """Add a customer; gives the id. Name, the person assigned and the status are needed.

    Args:
        status: Qualified, Won, Lost, Lead or Proposal
        product_interest: Software, Hardware, Services, Consulting or Training
        last_contact_date: "YYYY-MM-DD"
        follow_up_by: "YYYY-MM-DD"
    """
    needed = _all({"customer_name": customer_name, "assigned_to_email": assigned_to_email, "status": status})
    others = {"customer_email": customer_email, "customer_phone": customer_phone, "last_contact_date": last_contact_date,
              "product_interest": product_interest, "follow_up_by": follow_up_by, "notes": notes}  # fmt: skip
    return ctx.deps.add("customer_relationship_manager", {**needed, **{name: value or "" for name, value in others.items()}})


@_write
async def customer_relationship_manager_delete_customer(ctx: Ctx, customer_id: Text = None) -> str:
    """Delete a customer.

    Args:
        customer_id: eight digits
    """
    ctx.deps.delete("customer_relationship_manager", customer_id)
    return "Customer deleted."


# ---- directory --------------------------------------------------------------------------------------------


@_read
async def company_directory_find_email_address(ctx: Ctx, name: str = "") -> list[str]:
    """Email addresses of colleagues.

    Args:
        name: first name, last name or both
    """
    return ctx.deps.addresses(name)


def _all(row: dict[str, str | None]) -> dict[str, str]:
    """The row, all of whose values must be given."""
    missing = [name for name, value in row.items() if not value]
    if missing:
        raise ToolFailed(f"{' and '.join(missing)} must be given")
    return {name: value for name, value in row.items() if value}


SCOPE = tuple(one.contract.name for one in TOOLS if one.contract.name.startswith(("calendar_", "email_", "company_")))
