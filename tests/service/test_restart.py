"""Ctrl-C in the middle of everything, and the next start on the same home."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.service.running import ENDED, Running, drive
from tests.service.test_watching import assert_counts_agree

LONG = 280  # simulated seconds


def test_ctrl_c_in_mid_drive_stops_robots_and_service_and_the_next_start_carries_on(
    service: Running, robot: str
) -> None:
    pending = service.create(**drive(f"{robot}-pending"))
    moving = [service.go(**drive(f"{robot}-{n}", LONG)) for n in range(4)]
    for ticket_id in moving:
        service.wait_until_moving(ticket_id)
    queued = service.go(**drive(f"{robot}-0"))
    late = service.accept(service.create(**drive(f"{robot}-1")), expires_in_seconds=3)
    before = {row["id"]: row["state"] for row in service.rows("SELECT id, state FROM tickets")}
    assert service.stop() < 10
    assert service.alive() == []

    service.start()
    after = {row["id"]: row["state"] for row in service.rows("SELECT id, state FROM tickets")}
    assert after.keys() == before.keys()
    untouched = {ticket_id for ticket_id, state in before.items() if state in (*ENDED, "pending")}
    assert {ticket_id: after[ticket_id] for ticket_id in untouched} == {i: before[i] for i in untouched}
    assert after[pending] == "pending"
    assert_counts_agree(service)

    for ticket_id in moving:
        ended = service.wait_until(ticket_id, *ENDED)
        assert (ended["status"], ended["error_code"]) == ("failed", "shutdown")
        assert ended["error"] == "The worker was shut down; the robot was stopped"
        (motion,) = service.motions(ticket_id)
        assert motion["end_reason"] == "shutdown"
        assert motion["ended_at"] < motion["until"]
    assert service.wait_until(queued, *ENDED)["status"] == "completed"
    expired = service.wait_until(late, *ENDED)
    assert (expired["status"], expired["error_code"]) == ("failed", "expired")
    assert service.motions(late) == []
    assert service.execute(pending).json()["status"] == "completed"


def test_a_caller_who_waits_at_ctrl_c_is_told_that_its_execution_was_accepted(service: Running, robot: str) -> None:
    ticket_id = service.create(**drive(robot, LONG))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.execute, ticket_id)
        service.wait_until_moving(ticket_id)
        service.stop()
        told = waiting.result(timeout=10)
    service.start()
    assert (told.status_code, told.json()["status"]) == (202, "queued")
    assert service.wait_until(ticket_id, *ENDED)["error_code"] == "shutdown"


def test_the_ledger_says_that_the_service_stopped_and_started(service: Running) -> None:
    question = "SELECT topic FROM ledger WHERE subject_kind = 'service' ORDER BY seq"
    if len(service.rows(question)) == 1:
        service.stop()
        service.start()
    assert [row["topic"] for row in service.rows(question)][-2:] == ["service_stopped", "service_started"]
