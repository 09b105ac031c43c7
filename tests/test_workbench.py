"""WorkBench: the tools are those described, end states are scored as published, and modes do not differ in what they do."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import dse
from benchmarks import workbench
from dse.errors import BudgetExhausted, ContaminatedSplit, ToolFailed
from dse.store.cassette import Cassette
from dse.strategies.base import seed_plan
from dse.testing.server import FakeOpenAI, Reaction, ok, unregister_loopback_provider
from tests.workbench import data
from tests.workbench.office import Office
from tests.workbench.players import Calls, answer, greedy, idle, obedient, player
from tests.workbench.tools import SCOPE, TOOLS

ROOT = Path(__file__).resolve().parent.parent
needs_data = pytest.mark.skipif(data.folder() is None, reason=data.NO_DATA)
BY_NAME = {one.contract.name: one for one in TOOLS}


def run(name: str, office: Office, **arguments: Any) -> Any:
    """One call of a tool by the way of programs."""
    import asyncio

    context = dse.ToolContext(deps=office, run_id="r", call_id=1, idempotency_key="1", deadline=0.0)
    return asyncio.run(BY_NAME[name](context, **arguments))


# ---- the tools --------------------------------------------------------------------------------------------


@needs_data
def test_the_tools_have_the_names_parameters_and_effects_of_the_menu() -> None:
    assert BY_NAME.keys() == data.menu().keys() and len(TOOLS) == 27
    for name, described in data.menu().items():
        contract = BY_NAME[name].contract
        properties = contract.parameters["properties"]
        assert (contract.effect, list(properties)) == (described["effect"], [p["name"] for p in described["params"]])
        for parameter in described["params"]:
            mine = properties[parameter["name"]]
            kinds = {kind["type"] for kind in mine.get("anyOf", [mine])}
            assert kinds == ({"string", "null"} if "None" in parameter["type"] else {"string"})
            assert mine["default"] == parameter["default"]
    rows = data.requests()
    assert all(set(row["tools"]) == BY_NAME.keys() for row in rows)
    assert set(SCOPE) == {name for row in rows for name in row["scope_tools"]}


@needs_data
def test_searches_give_five_rows_at_most_within_their_bounds() -> None:
    office = Office()
    for name, arguments in [("calendar_search_events", {}), ("email_search_emails", {}),
                            ("project_management_search_tasks", {"board": "e"}),
                            ("customer_relationship_manager_search_customers", {"customer_name": "a"})]:  # fmt: skip
        assert len(run(name, office, **arguments)) == 5
    event = run("calendar_search_events", office, time_min=data.NOW)[0]
    start, minutes = event["event_start"], int(event["duration"])
    end = f"{start[:11]}{(int(start[11:13]) * 60 + int(start[14:16]) + minutes) // 60:02}:{(int(start[14:16]) + minutes) % 60:02}:00"

    def found(**bounds: str) -> bool:
        query = event["event_name"].upper()
        return event in run("calendar_search_events", office, query=query, **bounds)

    assert found(time_min=end) and not found(time_min=f"{end[:-1]}1")  # it ends then: inclusive
    assert found(time_min=start, time_max=start)
    assert not run("calendar_search_events", office, time_min="2023-12-31", time_max="2023-12-01")
    mails = run("email_search_emails", office, date_min="2023-11-20", date_max="2023-11-21")
    assert mails == sorted(mails, key=lambda mail: mail["sent_datetime"], reverse=True)
    assert {mail["sent_datetime"][:10] for mail in mails} <= {"2023-11-20", "2023-11-21"}
    words = mails[0]["subject"].split()
    assert mails[0]["email_id"] in {
        mail["email_id"] for mail in run("email_search_emails", office, query=" ".join(reversed(words)), date_max=mails[0]["sent_datetime"])
    }  # fmt: skip


@needs_data
def test_what_is_written_is_found_again_and_nothing_else_changes() -> None:
    office, other = Office(), Office()
    made = run("calendar_create_event", office, event_name="Tea", participant_email="a@b.org", event_start="2030-01-02 10:00:00",
               duration="30")  # fmt: skip
    assert made == "00000300" and made not in other.tables["calendar"]
    run("calendar_update_event", office, event_id=made, field="duration", new_value="45")
    assert run("calendar_get_event_information_by_id", office, event_id=made, field="duration") == {"duration": "45"}
    assert office.changes() == {"calendar": {made: {"event_id": made, "event_name": "Tea", "participant_email": "a@b.org",
                                                    "event_start": "2030-01-02 10:00:00", "duration": "45"}}}  # fmt: skip
    run("calendar_delete_event", office, event_id=made)
    assert office.changes() == {} == other.changes()
    mail = run("email_get_email_information_by_id", office, email_id="00000013")
    run("email_reply_email", office, email_id="00000013", body="Yes.")
    run("email_forward_email", office, email_id="00000013", recipient="a@b.org")
    reply, forward = office.changes()["email"].values()
    assert reply is not None and forward is not None
    assert (reply["sender/recipient"], reply["subject"], reply["body"]) == (mail["sender/recipient"], mail["subject"], "Yes.")
    assert (forward["subject"], forward["body"], forward["inbox/outbox"]) == (f"FW: {mail['subject']}", mail["body"], "outbox")
    assert reply["sent_datetime"] == forward["sent_datetime"] == data.NOW
    task = {"task_name": "Sweep", "assigned_to_email": "a@b.org", "list_name": "Backlog", "due_date": "2023-12-01", "board": "Design"}
    number = run("project_management_create_task", office, **task)
    run("project_management_update_task", office, task_id=number, field="list_name", new_value="Completed")
    assert run("project_management_search_tasks", office, task_name="sweep")[0] == {"task_id": number, **task, "list_name": "Completed"}
    customer = run("customer_relationship_manager_add_customer", office, customer_name="Ann Bo", assigned_to_email="a@b.org",
                   status="Lead", follow_up_by="2023-12-24")  # fmt: skip
    run("customer_relationship_manager_update_customer", office, customer_id=customer, field="status", new_value="Won")
    found = run("customer_relationship_manager_search_customers", office, customer_name="ann bo", follow_up_by_min="2023-12-24")
    assert [(one["customer_id"], one["status"], one["notes"]) for one in found] == [(customer, "Won", "")]
    run("customer_relationship_manager_delete_customer", office, customer_id=customer)
    path = run("analytics_create_plot", office, time_min="2023-10-01", time_max="2023-10-09", value_to_plot="total_visits", plot_type="bar")
    assert path == "plots/2023-10-01_2023-10-09_total_visits_bar.png"
    assert set(office.changes()) == {"email", "project_management", "analytics"}


@needs_data
def test_analytics_counts_every_day_of_the_range() -> None:
    office, days = Office(), {"time_min": "2023-10-01", "time_max": "2023-10-31"}
    total = run("analytics_total_visits_count", office, **days)
    assert len(total) == 31 and next(iter(total)) == "2023-10-01"
    rows = [row for row in data.tables()["visits"].values() if row["date_of_visit"].startswith("2023-10")]
    assert total == {day: Counter(row["date_of_visit"] for row in rows)[day] for day in total}
    by_source = [run("analytics_traffic_source_count", office, traffic_source=source, **days)
                 for source in ("direct", "referral", "search engine", "social media")]  # fmt: skip
    assert total == {day: sum(source[day] for source in by_source) for day in total}
    engaged = run("analytics_engaged_users_count", office, **days)
    assert sum(engaged.values()) == sum(row["user_engaged"] == "True" for row in rows)
    average = run("analytics_get_average_session_duration", office, **days)
    assert sum(average[day] * total[day] for day in total) == pytest.approx(sum(float(r["session_duration_seconds"]) for r in rows))
    assert run("analytics_get_visitor_information_by_id", office, visitor_id=rows[0]["visitor_id"])


@needs_data
@pytest.mark.parametrize(("name", "arguments", "said"), [
    ("calendar_delete_event", {}, "event_id must be given"),
    ("calendar_delete_event", {"event_id": "99999999"}, "no event_id '99999999'"),
    ("calendar_update_event", {"event_id": "00000013", "field": "event_id", "new_value": "1"}, "field is one of"),
    ("calendar_update_event", {"event_id": "00000013", "field": "event_start", "new_value": "noon"}, "not a time"),
    ("calendar_create_event", {"event_name": "x", "participant_email": "a@b.c", "event_start": "2023-12-01", "duration": "1 h"}, "minutes"),
    ("calendar_search_events", {"time_min": "2023-12-01T09:00:00+01:00"}, "not a time"),
    ("email_send_email", {"recipient": "nobody", "subject": "s", "body": "b"}, "not an email address"),
    ("email_reply_email", {"email_id": "00000013"}, "body must be given"),
    ("project_management_search_tasks", {}, "what to search for"),
    ("customer_relationship_manager_add_customer", {"customer_name": "A", "assigned_to_email": "a@b.c", "status": "Maybe"}, "status is one of"),
    ("analytics_create_plot", {"time_min": "2023-10-01", "time_max": "2023-10-02", "value_to_plot": "x", "plot_type": "bar"}, "value_to_plot"),
    ("analytics_total_visits_count", {"time_min": "0001-01-01"}, "longer than ten years"),
    ("company_directory_find_email_address", {}, "name must be given"),
])  # fmt: skip
def test_what_cannot_be_done_says_why_and_changes_nothing(name: str, arguments: dict[str, str], said: str) -> None:
    office = Office()
    with pytest.raises(ToolFailed, match=said):
        run(name, office, **arguments)
    assert office.changes() == {}


# ---- scoring and splits -----------------------------------------------------------------------------------


@needs_data
def test_gold_calls_run_and_are_right_and_doing_nothing_is_right_only_where_nothing_is_to_be_written() -> None:
    from tests.workbench.task import end_state, judge

    rows = data.requests()
    golds = [end_state(row["gold_calls"]) for row in rows]
    assert len(rows) == 200 and all(judge(gold, end_state(row["gold_calls"])).right for gold, row in zip(golds, rows, strict=True))
    still = [judge(gold, {}) for gold in golds]
    assert [one.right for one in still] == [one.idle for one in still] == [not row["gold_calls"] for row in rows]
    assert sum(one.right for one in still) == 12 and not any(one.unwanted or one.stray for one in still)
    assert [row["effect"] == "none" for row in rows] == [one.idle for one in still]


def wanted_by(row: Mapping[str, Any], office: Office) -> list[str]:
    """The rows that a request is about, by searching as a careful person would, where its template is a simple one."""
    query, template = row["inputs"]["query"], row["template"]
    first_names = [address.partition(".")[0] for address in office.tables["directory"]]
    person = next((name for name in first_names if re.search(rf"\b{name}\b", query.lower())), "")
    if template in ("calendar/t00", "calendar/t01", "calendar/t02"):  # the first or last on a day
        month, number = re.search(r"(November|December) (\d+)", query).groups()  # type: ignore[union-attr]
        day = f"2023-{11 if month == 'November' else 12}-{int(number):02}"
        found = run("calendar_search_events", office, query=person, time_min=f"{day} 00:00:00", time_max=f"{day} 23:59:59")
        return [found[-1 if " last " in query else 0]["event_id"]]
    if template in ("calendar/t05", "calendar/t08"):  # the next, or all to come
        ids: list[str] = []
        while True:
            low = office.tables["calendar"][ids[-1]]["event_start"] if ids else data.NOW
            found = run("calendar_search_events", office, query=person, time_min=low)
            fresh = [one["event_id"] for one in found if one["event_id"] not in ids]
            if not fresh:
                return ids[:1] if template == "calendar/t05" else sorted(ids)
            ids += fresh
    if template in ("email/t03", "email/t05", "email/t07"):  # the last about something
        subject = re.search(r"about '(.*?)'", query)[1]  # type: ignore[index]
        found = [one for one in run("email_search_emails", office, query=f"{subject} {person if template == 'email/t03' else ''}")
                 if one["subject"] == subject]  # fmt: skip
    else:  # the last from somebody
        found = [one for one in run("email_search_emails", office, query=person) if person in one["sender/recipient"]]
    return [found[0]["email_id"]]


@needs_data
@pytest.mark.parametrize("template", ["calendar/t00", "calendar/t01", "calendar/t02", "calendar/t05", "calendar/t08", "email/t00",
                                      "email/t03", "email/t05", "email/t07", "email/t08"])  # fmt: skip
def test_searches_lead_to_what_the_gold_calls_change(template: str) -> None:
    office = Office()
    for row in (one for one in data.requests() if one["template"] == template):
        gold = sorted({made["args"].get("event_id") or made["args"]["email_id"] for made in row["gold_calls"]})
        assert wanted_by(row, office) == gold, row["id"]


@needs_data
def test_letter_case_counts_in_three_fields_only() -> None:
    from tests.workbench.task import judge

    def made(**fields: str) -> dict[str, Any]:
        return {"project_management": {"00000001": {"task_name": "Sweep", "list_name": "Backlog", "board": "Design"} | fields}}

    assert judge(made(), made(task_name="SWEEP")).right
    assert not judge(made(), made(board="design")).right and not judge(made(), made(list_name="backlog")).right
    wrong = judge(made(), made(task_name="Swap"))
    assert wrong.unwanted and not wrong.stray and "should be" in wrong.feedback
    elsewhere = judge(made(), {**made(), "email": {"00000001": None}})
    assert elsewhere.unwanted and elsewhere.stray and not elsewhere.right and "deleted" in elsewhere.feedback


@needs_data
def test_no_template_spans_splits_and_every_split_has_both_domains() -> None:
    made = data.dataset()
    assert made.describe()["splits"]["holdout"]["clusters"] == 12 and made.holdout_summary()["rows"] == 120
    open_templates = {split: {row.cluster for row in made.split(split)} for split in ("search", "select")}
    assert not open_templates["search"] & open_templates["select"]
    for templates in (*open_templates.values(), {t for t, split in made.assignment.items() if split == "holdout"}):
        assert {template.partition("/")[0] for template in templates} == {"calendar", "email"}
    assert made.revision == data.dataset.__wrapped__().revision and made.assignment == data.placements()


@needs_data
def test_the_sentence_of_context_is_the_same_everywhere_and_says_what_the_signature_says() -> None:
    (context,) = {row["inputs"]["context"] for row in data.requests()}
    assert all(fact in context for fact in ("Thursday", "2023-11-30", "00:00:00", "9am", "6pm"))


@needs_data
def test_a_sentence_that_all_requests_repeat_does_not_make_templates_alike() -> None:
    rows = [{"id": row["id"], **row["inputs"], "template": row["template"]} for row in data.requests()]
    fields = {"query": "input", "context": "input", "template": "meta"}
    made = dse.Dataset.from_rows(rows, name="workbench", fields=fields, cluster_key="template", assignment=data.placements())
    assert made.assignment == data.dataset().assignment
    rows[0]["context"] += " Be brief."  # no longer the same in all: part of what tells rows apart
    with pytest.raises(ContaminatedSplit):
        dse.Dataset.from_rows(rows, name="workbench", fields=fields, cluster_key="template", assignment=data.placements())


def test_without_the_data_there_is_a_reason_and_nothing_fails(tmp_path: Path) -> None:
    code = ("from tests.workbench import data, players, task, tools; print(data.folder(), len(tools.TOOLS), data.NO_DATA)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
                          env={**os.environ, data.PLACE: str(tmp_path)})  # fmt: skip
    assert done.stdout.strip() == f"None 27 {data.NO_DATA}"


# ---- the same in every mode -------------------------------------------------------------------------------

Played = tuple[dict[str, Any], list[tuple[Any, ...]], Any]


def played(mode: str, calls_of: Callable[[Mapping[str, Any]], Calls]) -> list[Played]:
    """Per row what is changed in the end, the calls, and the effects as the receipt has them."""
    from tests.workbench.task import make_task

    task = make_task()
    program = dse.Program(task.signature, seed_plan(task.spec, mode, limits=task.limits), lm=player(calls_of), toolbox=task.toolbox)
    told = ("call_id", "tool", "effect", "arguments_hash", "result_hash", "outcome")
    found = []
    for row in data.requests():
        office = Office()
        receipt = program(query=row["inputs"]["query"], now=f"Thursday {data.NOW}", deps=office).receipt
        found.append((office.changes(), [tuple(one[key] for key in told) for one in receipt["calls"]], receipt["effects"]))
    return found


@needs_data
def test_gold_calls_give_the_gold_end_state_in_both_modes() -> None:
    from tests.workbench.task import end_state, judge

    rows, by_calls, by_scripts = data.requests(), played("tool_call", obedient), played("code", obedient)
    assert by_calls == by_scripts
    for row, (changes, calls, _) in zip(rows, by_calls, strict=True):
        assert judge(end_state(row["gold_calls"]), changes).right and changes == end_state(row["gold_calls"])
        assert [(one[1], one[2], one[-1]) for one in calls] == [(made["tool"], "write", "ok") for made in row["gold_calls"]]


@needs_data
def test_unwanted_side_effects_are_the_same_in_both_modes_and_always_seen() -> None:
    from tests.workbench.task import end_state, judge

    by_calls, by_scripts = played("tool_call", greedy), played("code", greedy)
    assert by_calls == by_scripts
    for row, (changes, calls, _) in zip(data.requests(), by_calls, strict=True):
        verdict = judge(end_state(row["gold_calls"]), changes)
        assert (verdict.right, verdict.unwanted, verdict.stray) == (False, True, True)
        assert [one[-1] for one in calls] == ["ok"] * (len(row["gold_calls"]) + 1)


@needs_data
@pytest.mark.parametrize("mode", ["tool_call", "code"])
@pytest.mark.parametrize(("calls_of", "right"), [(obedient, 80), (idle, 3), (greedy, 0)])
def test_rollouts_score_what_programs_do(mode: str, calls_of: Any, right: int) -> None:
    from tests.workbench.task import make_task

    task = make_task()
    records = [r for split in ("search", "select") for r in dse.evaluate(task, mode, lm=player(calls_of), split=split)]
    gold = {row["id"]: row["gold_calls"] for row in data.requests()}
    assert len(records) == 80 and all(r.outcome == "ok" for r in records)
    assert sum(r.score for r in records) == right  # of 80 rows 3 ask for no change
    assert [r.components["idle"] for r in records] == [float(not gold[r.row_id]) for r in records]
    assert sum(r.components["unwanted"] for r in records) == (80 if calls_of is greedy else 0)


# ---- the recorded compile ---------------------------------------------------------------------------------


def reaction(body: dict[str, Any]) -> Reaction:
    """A model that does what is asked for in scripts, and more than that on every third row in tool calls."""
    messages = [{**message, "content": message.get("content") or ""} for message in body["messages"]]
    tools = body.get("tools") or []

    def calls_of(row: Mapping[str, Any]) -> Calls:
        return (greedy if tools and int(row["id"][-3:]) % 3 == 0 else obedient)(row)

    made = answer({"messages": messages, "tools": tools, "tool_choice": None}, calls_of)
    done = sum(len(message.get("tool_calls") or ()) for message in messages)
    return ok(made.text, [(one.name, one.arguments or {}) for one in made.tool_calls], first_id=done + 1)


@needs_data
def test_a_recording_goes_on_where_it_stopped_and_replays_to_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    cassette, raw = tmp_path / "recording.jsonl.gz", tmp_path / "raw.jsonl"
    options = ["record", "--work", str(raw), "--cassette", str(cassette), "--source", "a script", "--attempts", "1"]
    asked, rollouts = workbench.estimate()
    assert asked <= 260 and rollouts == 104
    with FakeOpenAI(reaction) as server:
        try:
            with pytest.raises(BudgetExhausted):
                workbench.main([*options, "--base-url", server.base_url, "--max-requests", "40"])
            unregister_loopback_provider("local")
            assert server.count == 40 and not cassette.exists()
            workbench.main([*options, "--base-url", server.base_url])
        finally:
            unregister_loopback_provider("local")
        bodies = [json.dumps(body, sort_keys=True) for body in server.bodies]
    assert len(set(bodies)) == len(bodies)  # nothing was asked twice
    recorded = capsys.readouterr().out
    workbench.main(["replay", "--cassette", str(cassette)])
    text = capsys.readouterr().out
    assert text.strip() and recorded.endswith(text)
    assert "**PROMOTE** for code/minimal/seed against tool_call/all/seed" in text and "36 sealed rows of 12 templates" in text
    assert "leaves out 15 of 27 tools" in text and "(estimated) |" in text
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.split("## Select")[0].splitlines() if line.startswith("| ")}
    idle = float(rows["doing nothing"][3])
    code, calls = rows["code/minimal/seed"], rows["tool_call/all/seed"]
    assert code[3].startswith("1.000") and float(code[4]) == pytest.approx(1 - idle, abs=0.001) and code[5:9] == ["1.00, 1.00", "0", "0", "0"]
    unwanted = int(calls[6])
    assert unwanted > 3 and calls[7] == calls[6] and calls[3].startswith(f"{1 - unwanted / 36:.3f}")
    header = Cassette.open(cassette).header
    assert (header.requests, header.usage, header.latency) == ("hash", "estimated", "not representative")
    kept = gzip.decompress(cassette.read_bytes()).decode()
    assert '"blob"' not in kept and not any(word in kept for word in ("[[ ## query", "Return", data.NOW[:10] + " and the"))


@needs_data
@pytest.mark.skipif(not workbench.CASSETTE.exists(), reason="There is no recording of WorkBench: python -m benchmarks.workbench record")
def test_the_committed_recording_gives_the_committed_table() -> None:
    header = Cassette.open(workbench.CASSETTE).header
    assert (header.requests, header.usage, header.latency) == ("hash", "estimated", "not representative")
    outcome = workbench.compiled(f"replay:{workbench.CASSETTE}")
    holdout = outcome.result.records["holdout"]
    assert len({r.row_hash for r in holdout}) >= 30 and len({r.cluster for r in holdout}) >= 8
    opened = {r.cluster for stage in ("search", "select") for r in outcome.result.records[stage]}
    assert not opened & {r.cluster for r in holdout}
    assert {plan.mode for plan in outcome.result.plans.values()} == {"tool_call", "code"}
    assert workbench.report(outcome) == workbench.REPORT.read_text(encoding="utf-8")
