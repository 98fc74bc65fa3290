"""The life of one ticket, asked over HTTP; what the robot really did is read from its own rows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from models.tickets import contracts
from tests.service.running import ASYNC, ENDED, SCALE, Running, drive
from tests.service.waiting import eventually

LONG = 280  # simulated seconds: 28 real ones, longer than any test waits
DOCUMENTED = {"command", "executed", "speed", "direction", "duration_seconds", "distance_traveled"}


def test_a_drive_executes_and_answers_with_the_documented_result(service: Running, robot: str) -> None:
    ticket_id = service.create(**drive(robot, seconds=5, speed=1.5))
    answer = service.execute(ticket_id)
    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() >= {"ticket_id", "status", "result", "error", "execution_time_ms", "message"}
    assert (body["ticket_id"], body["status"], body["error"]) == (ticket_id, "completed", None)
    assert body["message"] == "Execution completed successfully"
    assert body["execution_time_ms"] >= 5 / SCALE * 1000
    result = body["result"]
    assert result.keys() >= DOCUMENTED
    assert result["executed"] is True
    assert result["distance_traveled"] == 7.5
    contracts.check("imu.v1", result["sensors"]["imu"])
    contracts.check("ultrasonic.v1", result["sensors"]["ultrasonic"])
    ticket = service.ticket(ticket_id)
    assert (ticket["status"], ticket["result"]) == ("completed", result)
    (motion,) = service.motions(ticket_id)
    assert motion["end_reason"] == "elapsed"
    assert motion["distance"] == pytest.approx(7.5)


def test_an_unsafe_drive_is_created_and_fails_at_execution_with_the_documented_text(
    service: Running, robot: str
) -> None:
    ticket_id = service.create(**drive(robot, speed=3.5))
    answer = service.execute(ticket_id)
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["error"] == "Speed 3.5 exceeds safety threshold of 3.0 m/s"
    assert answer.json()["message"] == "Execution failed: Speed 3.5 exceeds safety threshold of 3.0 m/s"
    assert service.motions(ticket_id) == []


def test_an_unknown_command_fails_at_execution_with_the_documented_text(service: Running) -> None:
    answer = service.execute(service.create(command="dance"))
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.json()["error"] == "Unknown command: dance"


def test_a_scan_reads_sensors_that_keep_their_contracts(service: Running, robot: str) -> None:
    result = service.execute(service.create(command="scan", target=robot)).json()["result"]
    assert result["scan_points"] == 360
    contracts.check("imu.v1", result["sensors"]["imu"])
    contracts.check("ultrasonic.v1", result["sensors"]["ultrasonic"])


def test_a_drive_that_outlasts_its_timeout_is_stopped_at_the_timeout(service: Running, robot: str) -> None:
    ticket_id = service.create(**drive(robot, LONG, timeout_seconds=1))
    answer = service.execute(ticket_id)
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.json()["error"] == "Execution timed out after 1s"
    (motion,) = service.motions(ticket_id)
    assert motion["end_reason"] == "timeout"
    assert 0.8 * SCALE < motion["lasted"] < 10 * SCALE < LONG
    assert motion["distance"] == pytest.approx(motion["lasted"], abs=0.1)
    stands = service.row("SELECT * FROM sim_robots WHERE target = %s", robot)
    assert (stands["started_at"], stands["speed"]) == (None, 0)
    assert stands["x"] == motion["to_x"]


def test_a_caller_who_prefers_not_to_wait_gets_202_and_where_to_look(service: Running, robot: str) -> None:
    ticket_id = service.create(**drive(robot, LONG))
    answer = service.execute(ticket_id, ASYNC)
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/ticket/{ticket_id}"
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert answer.json()["status"] == "queued"
    service.wait_until(ticket_id, "executing")
    service.ask("POST", f"/ticket/{ticket_id}/cancel")


def test_what_runs_is_not_set_going_a_second_time_not_even_by_force(service: Running, robot: str) -> None:
    ticket_id = service.go(**drive(robot, LONG))
    service.wait_until_moving(ticket_id)
    for force in (False, True):
        again = service.execute(ticket_id, force=force)
        assert again.status_code == 409
        assert again.json()["detail"] == "Ticket is already executing"
    service.ask("POST", f"/ticket/{ticket_id}/cancel")
    assert len(service.motions(ticket_id)) == 1


def test_force_runs_a_ticket_again_that_has_ended(service: Running, robot: str) -> None:
    ticket_id = service.create(**drive(robot))
    assert service.execute(ticket_id).json()["status"] == "completed"
    refused = service.execute(ticket_id)
    assert refused.status_code == 409
    assert refused.json()["detail"] == "Ticket already in terminal state: completed. Use force=true to re-execute."
    assert service.execute(ticket_id, force=True).json()["status"] == "completed"
    assert len(service.motions(ticket_id)) == 2


def test_a_cancelled_ticket_that_waits_for_its_robot_never_moves_it(service: Running, robot: str) -> None:
    first = service.go(**drive(robot, LONG))
    service.wait_until_moving(first)
    waiting = service.go(**drive(robot))
    cancelled = service.ask("POST", f"/ticket/{waiting}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    service.ask("POST", f"/ticket/{first}/cancel")
    after = service.create(**drive(robot))
    assert service.execute(after).json()["status"] == "completed"
    assert service.motions(waiting) == []
    assert service.ticket(waiting)["status"] == "cancelled"


def test_cancelling_a_drive_stops_the_robot_and_answers_the_waiting_caller(service: Running, robot: str) -> None:
    ticket_id = service.create(**drive(robot, LONG))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(service.execute, ticket_id)
        service.wait_until_moving(ticket_id)
        assert service.ask("POST", f"/ticket/{ticket_id}/cancel").json()["status"] == "cancelled"
        answer = waiting.result(20)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    (motion,) = eventually(
        lambda: [m for m in service.motions(ticket_id) if m["ended_at"]], what="the motion has ended"
    )
    assert motion["end_reason"] == "cancelled"
    assert motion["ended_at"] < motion["until"]
    assert service.topics(ticket_id).count("ticket_cancelled") == 1


def test_a_motion_that_cannot_start_in_time_fails_as_expired_and_never_moves(service: Running, robot: str) -> None:
    first = service.go(**drive(robot, LONG))
    service.wait_until_moving(first)
    late = service.create(**drive(robot))
    answer = service.execute(late, expires_in_seconds=1)
    assert (answer.status_code, answer.json()["status"], answer.json()["error_code"]) == (200, "failed", "expired")
    service.ask("POST", f"/ticket/{first}/cancel")
    assert service.wait_until(first, *ENDED)["status"] == "cancelled"
    assert service.execute(service.create(**drive(robot))).json()["status"] == "completed"
    assert service.motions(late) == []


def test_a_stop_passes_the_drive_that_holds_its_robot(service: Running, robot: str) -> None:
    moving = service.go(**drive(robot, LONG))
    service.wait_until_moving(moving)
    assert service.execute(service.create(command="stop", target=robot)).json()["status"] == "completed"
    ended = service.wait_until(moving, *ENDED)
    assert (ended["status"], ended["error_code"]) == ("failed", "stop")
    assert ended["error"] == "The robot was stopped on the way: stop"
    (motion,) = service.motions(moving)
    assert motion["ended_at"] < motion["until"]
