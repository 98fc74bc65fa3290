"""The reference behaviour of contracts/tickets.md, point by point. Deviations: docs/differences.md."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from models.tickets.operations import Outcome
from tests.web.service import DRIVE, REFUSED, Api, assert_problem, carry_out, finished, take

TICKET_MEMBERS = {
    "id", "command", "params", "priority", "status", "timeout_seconds", "metadata", "created_at", "updated_at",
    "started_at", "completed_at", "result", "error",
}  # fmt: skip
ADDED_TO_TICKET = {"target", "error_code"}


def test_the_root_says_what_the_service_is_and_counts_tickets_by_state(api: Api, anonymous: Api) -> None:
    api.create()
    failed = finished(api, REFUSED)
    said = anonymous.get("/").get_json()
    assert {name: said[name] for name in ("service", "version", "status")} == {
        "service": "orchestrator-ren", "version": "0.1.0", "status": "operational",
    }  # fmt: skip
    assert failed
    assert said["tickets"] == {
        "total": 2, "pending": 1, "queued": 0, "executing": 0, "completed": 0, "failed": 1, "cancelled": 0,
    }  # fmt: skip


def test_a_ticket_is_created_with_201_and_every_member_of_the_contract(api: Api) -> None:
    answer = api.post("/ticket", json={**DRIVE, "priority": "high", "timeout_seconds": 60, "metadata": {"by": "me"}})
    ticket = answer.get_json()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/ticket/{ticket['id']}"
    assert ticket.keys() == TICKET_MEMBERS | ADDED_TO_TICKET
    assert {name: ticket[name] for name in ("command", "params", "priority", "timeout_seconds", "metadata")} == {
        **DRIVE, "priority": "high", "timeout_seconds": 60, "metadata": {"by": "me"},
    }  # fmt: skip
    assert ticket["status"] == "pending"
    assert [ticket[name] for name in ("started_at", "completed_at", "result", "error")] == [None] * 4


def test_what_a_ticket_leaves_out_gets_the_documented_defaults(api: Api) -> None:
    ticket = api.create(command="scan")
    assert {name: ticket[name] for name in ("params", "priority", "timeout_seconds", "metadata", "target")} == {
        "params": {}, "priority": "normal", "timeout_seconds": 300, "metadata": {}, "target": "default",
    }  # fmt: skip


def test_a_timeout_of_null_means_the_default(api: Api) -> None:
    assert api.create(command="scan", timeout_seconds=None)["timeout_seconds"] == 300


def test_an_id_is_tick_the_day_in_utc_and_eight_hex_digits(api: Api) -> None:
    ticket = api.create()
    day = ticket["created_at"][:10].replace("-", "")
    assert re.fullmatch(f"tick-{day}-[0-9a-f]{{8}}", ticket["id"])


def test_times_are_iso_8601_with_an_offset(api: Api) -> None:
    ticket = api.get(f"/ticket/{finished(api)}").get_json()
    for name in ("created_at", "updated_at", "started_at", "completed_at"):
        offset = datetime.fromisoformat(ticket[name]).utcoffset()
        assert offset is not None, name
        assert offset.total_seconds() == 0


@pytest.mark.parametrize("priority", ["low", "normal", "high", "critical"])
def test_each_priority_is_accepted_and_kept(api: Api, priority: str) -> None:
    assert api.create(command="scan", priority=priority)["priority"] == priority


@pytest.mark.parametrize(
    "params",
    [
        {"speed": 3.5, "duration_seconds": 1},
        {"speed": "fast", "duration_seconds": 1},
        {"speed": True},
        {"speed": None, "anything": [1, {"deep": "er"}]},
        {"duration_seconds": 1e300},
    ],
)
def test_unsafe_and_wrongly_typed_params_are_created_and_kept_as_they_came(api: Api, params: dict[str, object]) -> None:
    assert api.create(command="drive", params=params)["params"] == params


def test_any_text_is_a_command_at_creation(api: Api) -> None:
    for command in ("levitate", "", "ドライブ", "a'; DROP TABLE tickets; --", "😀" * 256):
        ticket = api.create(command=command)
        assert api.get(f"/ticket/{ticket['id']}").get_json()["command"] == command


def test_a_field_that_the_request_does_not_know_is_ignored(api: Api) -> None:
    ticket = api.create(command="scan", status="completed", id="tick-20200101-00000000", colour="red")
    assert ticket["status"] == "pending"
    assert ticket["id"] != "tick-20200101-00000000"


def test_a_ticket_is_read_back_as_it_was_answered(api: Api) -> None:
    ticket = api.create()
    assert api.get(f"/ticket/{ticket['id']}").get_json() == ticket


@pytest.mark.parametrize("ticket_id", ["tick-20200101-00000000", "nonsense", "tick-20200101-0000000G", "é"])
def test_an_unknown_ticket_is_404_in_the_reference_s_words(api: Api, ticket_id: str) -> None:
    problem = assert_problem(api.get(f"/ticket/{ticket_id}"), 404)
    assert problem["detail"] == f"Ticket '{ticket_id}' not found"
    problem = assert_problem(api.post("/execute", json={"ticket_id": ticket_id}), 404)
    assert problem["detail"] == f"Ticket '{ticket_id}' not found"
    assert problem["code"] == "ticket_not_found"


@pytest.mark.parametrize("outcome", [Outcome("completed", result={"x": 1}), REFUSED])
def test_a_terminal_ticket_is_not_executed_again_unless_forced(api: Api, outcome: Outcome) -> None:
    ticket_id = finished(api, outcome)
    problem = assert_problem(api.post("/execute", json={"ticket_id": ticket_id}), 409)
    assert problem["detail"] == f"Ticket already in terminal state: {outcome.to}. Use force=true to re-execute."
    assert problem["state"] == outcome.to
    assert problem["code"] == "ticket_terminal"
    assert api.accept(ticket_id, force=True).status_code == 202


@pytest.mark.parametrize("force", [False, True])
def test_a_ticket_that_is_going_is_409_even_when_forced(api: Api, force: bool) -> None:
    ticket_id = api.create()["id"]
    api.accept(ticket_id)
    problem = assert_problem(api.post("/execute", json={"ticket_id": ticket_id, "force": force}), 409)
    assert problem["detail"] == "Ticket is already queued"
    take(ticket_id)
    problem = assert_problem(api.post("/execute", json={"ticket_id": ticket_id, "force": force}), 409)
    assert problem["detail"] == "Ticket is already executing"


def test_an_accepted_execution_is_202_with_the_members_of_an_outcome(api: Api) -> None:
    ticket_id = api.create()["id"]
    answer = api.accept(ticket_id)
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/ticket/{ticket_id}"
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert "Orchestrator-Awaits" not in answer.headers
    assert answer.get_json() == {
        "ticket_id": ticket_id, "status": "queued", "result": None, "error": None, "error_code": None,
        "execution_time_ms": 0.0, "message": "Execution accepted",
    }  # fmt: skip


def test_a_preference_is_read_as_a_token_and_not_as_a_piece_of_text(api: Api) -> None:
    for prefer, asynchronous in {
        "Respond-Async, wait=10": True, "wait=10,respond-async": True, "respond-async;x=1": True,
        "not-respond-async": False, 'return="respond-async"': False,
    }.items():  # fmt: skip
        answer = api.post("/execute", json={"ticket_id": api.create()["id"]}, headers={"Prefer": prefer})
        assert ("Preference-Applied" in answer.headers) is asynchronous, prefer
        assert ("Orchestrator-Awaits" in answer.headers) is not asynchronous, prefer


def test_a_forced_run_clears_what_the_run_before_it_left(api: Api) -> None:
    ticket_id = finished(api, REFUSED)
    assert api.get(f"/ticket/{ticket_id}").get_json()["error"] == REFUSED.error
    api.accept(ticket_id, force=True)
    ticket = api.get(f"/ticket/{ticket_id}").get_json()
    assert [ticket[name] for name in ("started_at", "completed_at", "result", "error", "error_code")] == [None] * 5
    carry_out(ticket_id)
    assert api.get(f"/ticket/{ticket_id}").get_json()["status"] == "completed"


def test_a_pending_ticket_is_cancelled_and_says_by_whom(api: Api) -> None:
    ticket_id = api.create()["id"]
    cancelled = api.post(f"/ticket/{ticket_id}/cancel")
    assert cancelled.status_code == 200
    assert cancelled.get_json()["status"] == "cancelled"
    assert cancelled.get_json()["error"] == "Cancelled by admin"
    problem = assert_problem(api.post(f"/ticket/{ticket_id}/cancel"), 409)
    assert problem["detail"] == "Ticket already in terminal state: cancelled"
    problem = assert_problem(api.post("/execute", json={"ticket_id": ticket_id}), 409)
    assert problem["detail"] == "Ticket already in terminal state: cancelled. Use force=true to re-execute."


def test_the_list_has_the_reference_s_members_newest_first(api: Api) -> None:
    made = [api.create(command=name)["id"] for name in ("one", "two", "three")]
    page = api.get("/tickets").get_json()
    assert {name: page[name] for name in ("total", "limit", "offset")} == {"total": 3, "limit": 100, "offset": 0}
    assert [ticket["id"] for ticket in page["tickets"]] == made[::-1]
    assert page["tickets"][0].keys() == TICKET_MEMBERS | ADDED_TO_TICKET


def test_limit_and_offset_page_through_the_list_and_leave_the_total_alone(api: Api) -> None:
    made = [api.create(command="scan")["id"] for _ in range(5)]
    page = api.get("/tickets?limit=2&offset=1").get_json()
    assert [ticket["id"] for ticket in page["tickets"]] == made[::-1][1:3]
    assert (page["total"], page["limit"], page["offset"]) == (5, 2, 1)
    beyond = api.get("/tickets?offset=5").get_json()
    assert (beyond["total"], beyond["tickets"]) == (5, [])


def test_the_total_counts_what_the_filter_leaves_before_paging(api: Api) -> None:
    for command, priority in (("scan", "low"), ("scan", "high"), ("stop", "high")):
        api.create(command=command, priority=priority, target="robot-7")
    finished(api, command="scan")
    for query, total in {
        "status=pending": 3, "status=completed": 1, "status=cancelled": 0, "command=scan": 3, "priority=high": 2,
        "target=robot-7": 3, "status=pending&command=scan&priority=low": 1,
    }.items():  # fmt: skip
        page = api.get(f"/tickets?{query}&limit=1").get_json()
        assert (page["total"], len(page["tickets"])) == (total, min(total, 1)), query
        assert page["total_is_estimate"] is False


def test_a_whole_number_may_be_spelled_with_a_point(api: Api) -> None:
    assert api.create(command="scan", timeout_seconds=5.0)["timeout_seconds"] == 5
