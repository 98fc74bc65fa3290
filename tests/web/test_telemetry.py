"""Telemetry in the documented shapes, right whether the tallies were rolled or not; /metrics agrees with the ledger."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.kernel.ledger import note
from models.kernel.session import statement
from models.kernel.tallies import roll_tallies
from orchestrator_web import __main__ as process
from tests.web.service import DONE, REFUSED, Api, finished, rows, settle, take


def roll() -> None:
    with statement() as connection:
        assert roll_tallies(connection)


def without_times(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for item in items:
        assert datetime.fromisoformat(item["timestamp"]).utcoffset() is not None
    return [{name: value for name, value in item.items() if name != "timestamp"} for item in items]


def test_each_event_has_exactly_the_documented_members(api: Api) -> None:
    done = finished(api)
    failed = finished(api, REFUSED, command="drive", params={"speed": 3.5}, priority="high")
    said = api.get("/telemetry/events").get_json()
    assert said.keys() == {"count", "events"}
    times = {row["id"]: row["execution_time_ms"] for row in rows("SELECT id, execution_time_ms FROM tickets")}
    about = [{"ticket_id": ticket_id, "command": "drive"} for ticket_id in (done, failed)]
    assert without_times(said["events"]) == [
        {"type": "ticket_created", "data": {**about[0], "priority": "normal"}},
        {"type": "execution_started", "data": about[0]},
        {"type": "execution_completed", "data": {**about[0], "execution_time_ms": times[done]}},
        {"type": "ticket_created", "data": {**about[1], "priority": "high"}},
        {"type": "execution_started", "data": about[1]},
        {
            "type": "execution_failed",
            "data": {**about[1], "error": REFUSED.error, "execution_time_ms": times[failed]},
        },
    ]
    assert said["count"] == 6


def test_each_metric_has_exactly_the_documented_members(api: Api) -> None:
    finished(api)
    finished(api, REFUSED, command="juggle")
    said = api.get("/telemetry/metrics").get_json()
    drive, juggle = {"command": "drive"}, {"command": "juggle"}
    first, second = (
        row["execution_time_ms"] for row in rows("SELECT execution_time_ms FROM tickets ORDER BY created_at")
    )
    assert without_times(said["metrics"]) == [
        {"name": "tickets.created", "value": 1.0, "tags": drive},
        {"name": "tickets.total", "value": 1.0, "tags": {}},
        {"name": "execution.latency_ms", "value": first, "tags": {**drive, "status": "success"}},
        {"name": "execution.success", "value": 1.0, "tags": drive},
        {"name": "tickets.created", "value": 1.0, "tags": juggle},
        {"name": "tickets.total", "value": 2.0, "tags": {}},
        {"name": "execution.latency_ms", "value": second, "tags": {**juggle, "status": "failed"}},
        {"name": "execution.failure", "value": 1.0, "tags": juggle},
    ]
    assert said["count"] == 8
    assert all(isinstance(item["value"], float) for item in said["metrics"])


def test_the_service_s_own_start_and_stop_are_events(api: Api) -> None:
    process.tell("service_started", service=process.NAME, version=process.VERSION)
    api.create()
    process.tell("service_stopped", service=process.NAME)
    events = without_times(api.get("/telemetry/events").get_json()["events"])
    assert events[0] == {"type": "service_started", "data": {"service": "orchestrator-ren", "version": "0.1.0"}}
    assert events[-1] == {"type": "service_stopped", "data": {"service": "orchestrator-ren", "total_tickets": 1}}


def test_the_lists_show_the_last_hundred_and_count_all(api: Api) -> None:
    for number in range(60):
        api.create(command=f"command-{number}")
    for number in range(3):
        finished(api, command=f"last-{number}")
    metrics = api.get("/telemetry/metrics").get_json()
    assert (metrics["count"], len(metrics["metrics"])) == (63 * 2 + 3 * 2, 100)
    assert metrics["metrics"][-1]["tags"] == {"command": "last-2"}
    totals = [item["value"] for item in metrics["metrics"] if item["name"] == "tickets.total"]
    assert totals == [float(number) for number in range(63 - len(totals) + 1, 64)]
    events = api.get("/telemetry/events").get_json()
    assert (events["count"], len(events["events"])) == (63 + 3 * 2, 69)
    for number in range(40):
        api.create(command=f"more-{number}")
    events = api.get("/telemetry/events").get_json()
    assert (events["count"], len(events["events"])) == (109, 100)
    assert events["events"][-1]["data"]["command"] == "more-39"
    at = [datetime.fromisoformat(event["timestamp"]) for event in events["events"]]
    assert at == sorted(at)


def test_nothing_changes_when_the_tallies_roll_halfway(api: Api) -> None:
    def everything() -> list[Any]:
        return [api.get(path).get_json() for path in ("/", "/telemetry/metrics", "/telemetry/events")]

    finished(api)
    finished(api, REFUSED)
    api.post("/ticket/tick-20200101-00000000/cancel")
    before = everything()
    roll()
    assert everything() == before
    finished(api)
    halfway = everything()
    assert halfway[0]["tickets"]["completed"] == 2
    assert halfway[1]["count"] == before[1]["count"] + 4
    assert halfway[2]["count"] == before[2]["count"] + 3
    roll()
    assert everything() == halfway


def test_latency_is_kept_by_command_and_status(api: Api) -> None:
    for outcome in (DONE, DONE, REFUSED):
        finished(api, outcome)
    for rolled in (False, True):
        if rolled:
            roll()
        entries = api.get("/telemetry/metrics").get_json()["latency"]
        assert [(entry["command"], entry["status"], entry["count"]) for entry in entries] == [
            ("drive", "failed", 1), ("drive", "success", 2),
        ]  # fmt: skip
        for entry in entries:
            assert entry.keys() == {"command", "status", "count", "mean_ms", "p50_ms", "p95_ms"}
            assert 0 <= entry["mean_ms"] <= entry["p95_ms"]


def test_a_cancelled_execution_is_an_event_and_neither_success_nor_failure(api: Api) -> None:
    ticket_id = api.create()["id"]
    api.accept(ticket_id)
    take(ticket_id)
    assert api.post(f"/ticket/{ticket_id}/cancel").status_code == 200
    events = without_times(api.get("/telemetry/events").get_json()["events"])
    assert [event["type"] for event in events] == ["ticket_created", "execution_started", "ticket_cancelled"]
    metrics = api.get("/telemetry/metrics").get_json()
    assert [item["name"] for item in metrics["metrics"]] == ["tickets.created", "tickets.total"]
    assert metrics["count"] == 2


def samples(api: Api) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """What /metrics says: sample name -> labels -> value."""
    answer = api.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


@pytest.mark.parametrize("rolled", [False, True])
def test_the_prometheus_numbers_are_the_ledger_s(api: Api, rolled: bool) -> None:
    finished(api)
    finished(api, REFUSED, command="juggle")
    if rolled:
        roll()
    running = api.create()["id"]
    api.accept(running)
    attempt = take(running)
    found = samples(api)
    states = {dict(labels)["state"]: value for labels, value in found["orchestrator_subjects"].items() if value}
    counted = {row["state"]: row["n"] for row in rows("SELECT state, count(*) AS n FROM tickets GROUP BY 1")}
    assert states == counted == {"completed": 1, "failed": 1, "executing": 1}
    told = rows("SELECT subject_kind, topic, label, count(*) AS n FROM ledger GROUP BY 1, 2, 3")
    assert found["orchestrator_events_total"] == {
        (("kind", row["subject_kind"]), ("label", row["label"]), ("topic", row["topic"])): row["n"] for row in told
    }
    assert found["orchestrator_elapsed_seconds_count"] == {
        (("kind", "ticket"), ("label", "drive"), ("topic", "execution_completed")): 1,
        (("kind", "ticket"), ("label", "other"), ("topic", "execution_failed")): 1,
    }
    elapsed = rows("SELECT sum(elapsed_ms) / 1000 AS s FROM ledger")[0]["s"]
    assert sum(found["orchestrator_elapsed_seconds_sum"].values()) == pytest.approx(elapsed)
    settle(attempt)
    assert sum(samples(api)["orchestrator_elapsed_seconds_count"].values()) == 3


def test_a_histogram_s_buckets_only_grow(api: Api) -> None:
    finished(api)
    buckets = [
        (float(dict(labels)["le"].replace("+Inf", "inf")), value)
        for labels, value in samples(api)["orchestrator_elapsed_seconds_bucket"].items()
    ]
    assert [value for _, value in sorted(buckets)] == sorted(value for _, value in buckets)
    assert max(buckets) == (float("inf"), 1.0)


def test_each_answer_is_counted_by_method_route_and_status_and_by_nothing_a_caller_makes_up(api: Api) -> None:
    before = samples(api)["orchestrator_http_request_seconds_count"]
    for number in range(5):
        api.get(f"/ticket/tick-20200101-{number:08x}")
        api.get(f"/made-up-{number}")
        api.call(f"MADEUP{number}", "/tickets")
    after = samples(api)["orchestrator_http_request_seconds_count"]
    grown = {labels: after[labels] - before.get(labels, 0) for labels in after if after[labels] != before.get(labels)}
    assert grown == {
        (("method", "GET"), ("path", "/ticket/<ticket_id>"), ("status", "404")): 5,
        (("method", "GET"), ("path", "none"), ("status", "404")): 5,
        (("method", "other"), ("path", "none"), ("status", "405")): 5,
        (("method", "GET"), ("path", "/metrics"), ("status", "200")): 1,
    }


def test_the_roles_that_run_are_told_apart_from_those_that_do_not(api: Api) -> None:
    from models.kernel.processes import beat

    with statement() as connection:
        beat(connection, "dispatcher")
    up = {dict(labels)["role"]: value for labels, value in samples(api)["orchestrator_role_up"].items()}
    assert up["dispatcher"] == 1
    assert up["guardian"] == 0


def test_a_note_of_another_kind_disturbs_no_ticket_count(api: Api) -> None:
    finished(api)
    before = [api.get(path).get_json() for path in ("/", "/telemetry/metrics")]
    with statement() as connection:
        note(connection, "ticket_created", subject=("engine", "x"), actor="test", correlation_id="c")
    assert [api.get(path).get_json() for path in ("/", "/telemetry/metrics")] == before
