"""GET /metrics: the engine's numbers under the contract's names, read from rows, with labels that stay few."""

from __future__ import annotations

from typing import Any

from models.engine import operations
from models.engine.control import pause_ingestion
from models.engine.events import EVENT_TYPES
from models.kernel.session import statement, transaction
from models.kernel.tallies import roll_tallies
from tests.engine import desk
from tests.engine.market import lines_of
from tests.web.service import Api
from tests.web.test_telemetry import samples

NAMES = {
    "orchestrator_ingest_count_total",
    "orchestrator_buffer_depth",
    "orchestrator_buffer_age_ms",
    "orchestrator_buffer_append_failures_total",
    "orchestrator_scheduler_ticks_total",
    "orchestrator_scheduler_lag_ms",
    "orchestrator_engine_runs_total",
    "orchestrator_engine_duration_ms_count",
    "orchestrator_engine_duration_ms_sum",
    "orchestrator_publish_count_total",
    "orchestrator_publish_latency_ms_count",
    "orchestrator_publish_latency_ms_sum",
    "orchestrator_backpressure_count_total",
    "orchestrator_backpressure_blocked_ms_total",
}


def value(found: dict[str, Any], name: str, **labels: str) -> float:
    return float(found[name][tuple(sorted(labels.items()))])


def one_of_each(api: Api) -> None:
    """A run that succeeded, one that failed, and a batch for which there was no room."""
    desk.running(buffer_retention={"max_records": 5})
    at = desk.START_MS + desk.INTERVAL_MS
    desk.append(desk.inputs(at), desk.trade("ETH-USD"), now_ms=at)
    desk.plan(at + desk.DELAY_MS + 1)
    done, broken = (desk.take(run) for run in desk.runs())
    with statement() as connection:
        operations.settle_completed(connection, done, {"regime_output": desk.OUTPUT}, desk.WORKER, elapsed_ms=7.0)
    desk.fail(broken)
    refused = api.send("/engine/events", lines_of(*[desk.trade()] * 4), "application/x-ndjson")
    assert refused.status_code == 503, refused.text


def test_the_contract_s_names_are_there(api: Api) -> None:
    one_of_each(api)
    assert samples(api).keys() >= NAMES


def test_what_happened_is_counted_also_before_the_tallies_are_rolled(api: Api) -> None:
    before = samples(api)
    one_of_each(api)
    for rolled in (False, True):
        if rolled:
            with statement() as connection:
                roll_tallies(connection)
        found = samples(api)
        assert value(found, "orchestrator_engine_runs_total", status="success") == 1
        assert value(found, "orchestrator_engine_runs_total", status="failure") == 1
        assert value(found, "orchestrator_engine_duration_ms_sum", status="success") == 7
        for event_type, count in zip(EVENT_TYPES, (2, 1, 1, 0), strict=True):
            assert value(found, "orchestrator_publish_count_total", event_type=event_type) == count
        assert value(found, "orchestrator_ingest_count_total", source_id="binance", event_type="TradeTick") == 1
        assert value(found, "orchestrator_buffer_depth") == 2
        assert value(found, "orchestrator_buffer_age_ms") > 0
        assert value(found, "orchestrator_scheduler_ticks_total") == 2
        assert value(found, "orchestrator_scheduler_lag_ms") == 1
    failures = "orchestrator_buffer_append_failures_total"
    earlier = before.get(failures, {}).get((("code", "buffer_full"),), 0)
    assert value(found, failures, code="buffer_full") == earlier + 1


def test_types_of_a_sender_s_own_count_as_other(api: Api) -> None:
    desk.configure()
    desk.append(*(desk.trade(event_type=f"Own{n}") for n in range(5)), now_ms=desk.START_MS)
    found = samples(api)["orchestrator_ingest_count_total"]
    assert found == {(("event_type", "other"), ("source_id", "binance")): 5}


def test_pauses_are_counted_and_their_time_is_summed(api: Api) -> None:
    desk.running()
    with transaction() as connection:
        pause_ingestion(connection, "the stream is away")
    desk.change("UPDATE engine_control SET blocks = 2, blocked_ms = 1000, blocked_at = now() - interval '1 minute'")
    found = samples(api)
    assert value(found, "orchestrator_backpressure_count_total", domain="ingest") == 1
    assert value(found, "orchestrator_backpressure_count_total", domain="publish") == 2
    assert 61_000 <= value(found, "orchestrator_backpressure_blocked_ms_total", domain="publish") < 121_000
    assert value(found, "orchestrator_engine_ready") == 0


def test_of_an_engine_that_did_nothing_yet_the_numbers_are_nought(api: Api) -> None:
    found = samples(api)
    assert value(found, "orchestrator_scheduler_ticks_total") == 0
    assert value(found, "orchestrator_buffer_depth") == 0
    assert found.get("orchestrator_buffer_age_ms") is None
    assert value(found, "orchestrator_publish_latency_ms_count") == 0


def test_no_state_is_counted_below_zero(api: Api) -> None:
    desk.running()
    states = samples(api)["orchestrator_subjects"]
    assert min(states.values()) == 0
    assert states[("kind", "engine"), ("state", "running")] == 1
