"""The management of schedules: what they show, what may be done to them, and what is refused."""

from __future__ import annotations

import pytest
from flask import Flask

import celeryconfig
from models.kernel.schedules import Run, claim, declare, finish
from models.kernel.session import statement
from tests.web.service import Api, assert_problem, each, key_with, rows

JOBS = "/scheduler/jobs"
FIELDS = {
    "name", "every_seconds", "paused", "running", "last_started_at", "last_finished_at", "last_duration_ms",
    "last_error", "next_at", "runs", "misses",
}  # fmt: skip
STRANGE = ["unknown", "%00", "tallies%00", "tallies%0A", "x" * 1000, "%ED%A0%80", "%F0%9F%98%80", "'--", "%2e", "a%20b"]


@pytest.fixture(autouse=True)
def declared(database: str) -> None:
    with statement() as connection:
        declare(connection, celeryconfig.SCHEDULES)


def begin(name: str = "tallies") -> Run:
    with statement() as connection:
        run = claim(connection, {name})
    assert run is not None
    return run


def told() -> list[tuple[str, str, str, str]]:
    found = rows("SELECT * FROM ledger WHERE subject_kind = 'schedule' ORDER BY seq")
    return [(row["topic"], row["subject_id"], row["actor"], row["correlation_id"]) for row in found]


def test_every_schedule_is_listed_by_name_with_all_there_is_to_know(reader: Api) -> None:
    jobs = reader.get(JOBS).get_json()["jobs"]
    assert [job["name"] for job in jobs] == sorted(celeryconfig.SCHEDULES)
    assert {job["name"]: job["every_seconds"] for job in jobs} == celeryconfig.SCHEDULES
    for job in jobs:
        assert job.keys() == FIELDS
        assert reader.get(f"{JOBS}/{job['name']}").get_json() == job
        assert (job["runs"], job["misses"], job["paused"], job["running"]) == (0, 0, False, False)
        assert job["last_started_at"] is job["last_finished_at"] is job["last_duration_ms"] is job["last_error"] is None


def test_a_run_is_seen_while_it_goes_and_after_it_failed(reader: Api) -> None:
    run = begin()
    job = reader.get(f"{JOBS}/tallies").get_json()
    assert (job["running"], job["runs"]) == (True, 1)
    with statement() as connection:
        finish(connection, run, "OSError: disk")
    job = reader.get(f"{JOBS}/tallies").get_json()
    assert (job["running"], job["last_error"]) == (False, "OSError: disk")
    assert job["last_duration_ms"] >= 0
    assert job["last_started_at"] <= job["last_finished_at"] < job["next_at"]


def test_a_pause_a_resumption_and_a_run_are_answered_done_and_told(api: Api) -> None:
    asked = {"X-Correlation-Id": "asked-1"}
    paused = api.post(f"{JOBS}/tallies/pause", headers=asked)
    assert paused.status_code == 200
    assert (paused.get_json()["paused"], paused.get_json()["next_at"]) == (True, None)
    with statement() as connection:
        assert claim(connection, {"tallies"}) is None
    resumed = api.post(f"{JOBS}/tallies/resume", headers=asked).get_json()
    assert resumed["paused"] is False
    with statement() as connection:
        assert claim(connection, {"tallies"}) is None
    ran = api.post(f"{JOBS}/tallies/run", headers=asked).get_json()
    assert ran["next_at"] < resumed["next_at"]
    assert begin().missed == 0
    topics = ("schedule_paused", "schedule_resumed", "schedule_run_requested")
    assert told() == [(topic, "tallies", "admin", "asked-1") for topic in topics]


def test_what_is_paused_or_runs_is_not_run_on_request(api: Api) -> None:
    api.post(f"{JOBS}/tallies/pause")
    assert assert_problem(api.post(f"{JOBS}/tallies/run"), 409)["code"] == "schedule_paused"
    begin("partitions")
    assert assert_problem(api.post(f"{JOBS}/partitions/run"), 409)["code"] == "schedule_running"
    assert [row[0] for row in told()] == ["schedule_paused", "refused", "refused"]


@each("name", STRANGE)
def test_an_unknown_schedule_is_not_found(api: Api, name: str) -> None:
    assert_problem(api.get(f"{JOBS}/{name}"), 404)
    for act in ("pause", "resume", "run"):
        assert_problem(api.post(f"{JOBS}/{name}/{act}"), 404)


def test_a_name_with_a_nul_is_not_told_as_one_that_nobody_asked_for(api: Api) -> None:
    assert assert_problem(api.get(f"{JOBS}/a%00b"), 404)["detail"] == "There is no schedule 'a\ufffdb'"


def test_looking_needs_read_and_changing_needs_admin(app: Flask, reader: Api, anonymous: Api) -> None:
    writer = Api(app, key_with("read", "write", name="writer"))
    for act in ("pause", "resume", "run"):
        assert_problem(writer.post(f"{JOBS}/tallies/{act}"), 403)
        assert_problem(reader.post(f"{JOBS}/tallies/{act}"), 403)
        assert_problem(anonymous.post(f"{JOBS}/tallies/{act}"), 401)
    assert_problem(anonymous.get(JOBS), 401)
    assert reader.get(f"{JOBS}/tallies").get_json()["paused"] is False


def test_other_methods_and_acts_are_refused(api: Api) -> None:
    assert_problem(api.post(JOBS, json={}), 405)
    assert_problem(api.call("DELETE", f"{JOBS}/tallies"), 405)
    assert_problem(api.get(f"{JOBS}/tallies/pause"), 405)
    assert_problem(api.post(f"{JOBS}/tallies/stop"), 404)


def test_missed_due_times_are_in_the_metrics(api: Api) -> None:
    with statement() as connection:
        connection.exec_driver_sql("UPDATE schedules SET next_at = next_at - interval '1 hour'")
    run = begin()
    with statement() as connection:
        finish(connection, run)
    assert 'orchestrator_events_total{kind="schedule",label="",topic="schedule_missed"} 1.0' in api.get("/metrics").text
    assert api.get(f"{JOBS}/tallies").get_json()["misses"] == run.missed >= 719
