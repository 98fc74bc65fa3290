"""The configuration: every wrong key is named with what is wrong, and what means the same is the same."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engine.canonical import canonical, normalise
from models.engine.config import Config, read_config
from models.kernel import clock
from models.kernel.errors import InvalidSettings
from models.kernel.hints import OUTCOMES, WORK
from models.kernel.messages import lists_of
from orchestrator_cli.migrate import ROOT
from orchestrator_tasks.app import app
from tests.engine.desk import body

RETRY = {"min_delay_ms": 100, "max_delay_ms": 1000, "max_attempts": 3}


def wrong(**sections: Any) -> list[str]:
    with pytest.raises(InvalidSettings) as refused:
        read_config(body(**sections))
    return refused.value.message.splitlines()


def source(**keys: Any) -> list[dict[str, Any]]:
    return [{"source_id": "binance", "symbols": ["BTC-USD"], **keys}]


def test_the_example_is_a_valid_configuration_for_a_newcomer() -> None:
    config = read_config(tomllib.loads((ROOT / "examples/engine.toml").read_text()))
    assert config.autostart
    assert config.engine.engine_mode == "hysteresis"
    assert config.scheduler.interval_ms == config.engine.alignment_ms == 10_000
    assert config.engine.hysteresis is not None
    assert config.engine.hysteresis["update_interval_ms"] == 10_000
    assert config.symbols == ("BTC-USD", "ETH-USD", "SOL-USD")


def test_the_least_configuration_has_a_default_for_everything_else() -> None:
    least = {
        "sources": source(),
        "scheduler": {"mode": "timer", "timer_interval_ms": 1000},
        "engine": {"engine_mode": "truth"},
    }
    config = read_config(least)
    assert (config.autostart, config.scheduler.max_catch_up_ticks) == (True, 480)
    assert (config.engine.alignment_ms, config.engine.timeout_ms, config.engine.memory_mb) == (180_000, 10_000, 512)
    assert (config.subscription.stream, config.output_publish.stream) == ("", "")


def test_the_complete_body_means_the_same_and_survives_the_database() -> None:
    config = read_config(body(engine={"hysteresis": {"b": 0.5, "a": True, "c": "x", "d": 3}}))
    again = read_config(normalise(config.body()))
    assert again.body() == config.body()
    assert canonical(again.body()) == canonical(config.body())


def test_the_order_of_sources_and_symbols_means_nothing() -> None:
    one = [{"source_id": "b", "symbols": ["Y", "X"]}, {"source_id": "a", "symbols": ["X"]}]
    other = [{"source_id": "a", "symbols": ["X"]}, {"source_id": "b", "symbols": ["X", "Y"]}]
    assert read_config(body(sources=one)).body() == read_config(body(sources=other)).body()


def test_symbols_are_those_of_all_sources() -> None:
    config = read_config(
        body(sources=[{"source_id": "b", "symbols": ["Y", "X"]}, {"source_id": "a", "symbols": ["X"]}])
    )
    assert config.symbols == ("X", "Y")
    assert config.symbols_by_source == {"a": frozenset({"X"}), "b": frozenset({"X", "Y"})}


CASES: list[tuple[dict[str, Any], str]] = [
    ({"sources": []}, "sources: must be a list of at least one table"),
    ({"sources": ["binance"]}, "sources[0]: must be a table"),
    ({"sources": source(symbols=[])}, "sources[0].symbols: must be a list of at least one symbol"),
    ({"sources": source(symbols=["A", ""])}, "sources[0].symbols: [1] must be a text of 1 to 64 printable characters"),
    ({"sources": source(symbols=["A|B"])}, "sources[0].symbols: [0] must be a text of 1 to 64 printable characters"),
    ({"sources": source(symbols=["A", "A"])}, "sources[0].symbols: [1] names 'A' again"),
    ({"sources": source(source_id=7)}, "sources[0].source_id: must be a text"),
    ({"sources": source() + source()}, "sources[1].source_id: 'binance' is already there: ids must be unique"),
    ({"scheduler": {"mode": "cron"}}, "scheduler.mode: must be timer or boundary, not 'cron'"),
    ({"scheduler": {"mode": "timer"}}, "scheduler.timer_interval_ms: is required when mode is timer"),
    ({"scheduler": {"boundary_delay_ms": -1}}, "scheduler.boundary_delay_ms: must be a whole number of at least 0"),
    (
        {"scheduler": {"boundary_interval_ms": 0}},
        "scheduler.boundary_interval_ms: must be a whole number of at least 1",
    ),
    ({"scheduler": {"boundary_interval_ms": 1.5}}, "scheduler.boundary_interval_ms: must be a whole number"),
    ({"scheduler": {"boundary_interval_ms": True}}, "scheduler.boundary_interval_ms: must be a whole number"),
    ({"scheduler": {"boundary_interval_ms": 10**15}}, "scheduler.boundary_interval_ms: must be at most"),
    (
        {"scheduler": {"boundary_interval_ms": 25_000}},
        "scheduler.boundary_interval_ms: must be a multiple of engine.alignment_ms (10000)",
    ),
    ({"scheduler": {"max_catch_up_ticks": 0}}, "scheduler.max_catch_up_ticks: must be a whole number of at least 1"),
    ({"scheduler": {"boundary_intervall_ms": 1}}, "is no key; did you mean boundary_interval_ms?"),
    ({"engine": {"engine_mode": "both"}}, "engine.engine_mode: must be truth or hysteresis, not 'both'"),
    ({"engine": {"timeout_ms": 0}}, "engine.timeout_ms: must be a whole number of at least 1"),
    ({"engine": {"memory_mb": 1}}, "engine.memory_mb: must be a whole number of at least 16"),
    ({"engine": {"hysteresis": {"a": [1]}}}, "engine.hysteresis: a must be a text, a finite number, true or false"),
    ({"engine": {"hysteresis": {"a": float("nan")}}}, "engine.hysteresis: a must be a text, a finite number"),
    ({"engine_retry": {"max_delay_ms": 5}}, "engine_retry.max_delay_ms: must not be less than min_delay_ms (100)"),
    ({"engine_retry": {"max_attempts": 0}}, "engine_retry.max_attempts: must be a whole number of at least 1"),
    ({"engine_retry": {"max_elapsed_ms": 99}}, "engine_retry.max_elapsed_ms: allows no attempt"),
    ({"buffer_retry": {**RETRY, "min_delay_ms": 0}}, "buffer_retry.min_delay_ms: must be a whole number of at least 1"),
    ({"buffer_retention": {"max_records": 0}}, "buffer_retention.max_records: must be a whole number of at least 1"),
    ({"buffer_retention": {"max_age_ms": -5}}, "buffer_retention.max_age_ms: must be a whole number of at least 1"),
    ({"output_publish": {"max_pending": 0}}, "output_publish.max_pending: must be a whole number of at least 1"),
    ({"subscription": {"stream": 3}}, "subscription.stream: must be a text"),
    ({"autostart": "yes"}, "autostart: must be true or false, not 'yes'"),
    ({"schedular": {}}, "schedular: is no key; did you mean scheduler?"),
    ({"engine": "fast"}, "engine: must be a table"),
]


@pytest.mark.parametrize(("sections", "says"), CASES)
def test_a_wrong_key_is_named_with_what_is_wrong(sections: dict[str, Any], says: str) -> None:
    lines = wrong(**sections)
    assert len(lines) == 1
    assert says in lines[0]
    assert lines[0].split(":")[0].rstrip("]0123456789[") in says or "is no key" in says


def test_all_wrong_keys_are_named_at_once() -> None:
    lines = wrong(engine={"engine_mode": "both", "timeout_ms": 0}, scheduler={"mode": 3}, sauces=[])
    assert [line.split(":")[0] for line in lines] == [
        "sauces",
        "scheduler.mode",
        "engine.engine_mode",
        "engine.timeout_ms",
    ]


@pytest.mark.parametrize("missing", ["sources", "scheduler", "engine"])
def test_what_has_no_default_is_required(missing: str) -> None:
    given = body()
    del given[missing]
    with pytest.raises(InvalidSettings, match=f"^{missing}: is required$"):
        read_config(given)


def test_a_boundary_needs_its_delay_said() -> None:
    given = body()
    del given["scheduler"]["boundary_delay_ms"]
    with pytest.raises(InvalidSettings, match=r"scheduler\.boundary_delay_ms: is required when mode is boundary"):
        read_config(given)


def test_a_timer_s_interval_need_not_be_a_multiple_of_the_alignment() -> None:
    config = read_config(body(scheduler={"mode": "timer", "timer_interval_ms": 7}))
    assert (config.scheduler.interval_ms, config.scheduler.delay_ms) == (7, 0)


def streams(taken: str, given: str) -> dict[str, Any]:
    return {"subscription": {"stream": taken}, "output_publish": {"stream": given}}


def test_outputs_do_not_go_where_events_come_from() -> None:
    assert wrong(**streams("market", "market")) == [
        "subscription.stream: must not be output_publish.stream",
        "output_publish.stream: must not be subscription.stream",
    ]
    assert wrong(**streams("market", "market:refused")) == [
        "output_publish.stream: must not be where subscription.stream's refused entries go (:refused)"
    ]
    assert read_config(body(**streams("market", "market:outputs"))).output_publish.stream == "market:outputs"
    assert read_config(body(**streams("", ""))).subscription.stream == ""


BROKER_KEYS = [
    *(key for queue in app.conf.task_queues for key in lists_of(queue.name)),
    *("celery", "unacked", "unacked_index", "unacked_mutex", "_kombu.binding.io", "io@host.celery.pidbox", "celeryev"),
    *(WORK, OUTCOMES, "orchestrator:rate:1:somebody"),
]


@pytest.mark.parametrize("name", BROKER_KEYS)
def test_no_stream_is_a_key_of_the_service_s_own(name: str) -> None:
    says = "is a key that the service keeps for itself on its broker: choose another name"
    assert wrong(**streams(name, "outputs")) == [f"subscription.stream: {says}"]
    assert wrong(**streams("market", name)) == [f"output_publish.stream: {says}"]


def symbols(number: int, first: int = 0) -> list[str]:
    return [f"{place:064}" for place in range(first, first + number)]


def many(number: int) -> list[dict[str, Any]]:
    return [{"source_id": f"source-{place}", "symbols": ["A"]} for place in range(number)]


TOO_MANY: list[tuple[list[dict[str, Any]], list[str]]] = [
    (
        [{"source_id": "a", "symbols": symbols(10_001)}, {"source_id": "b", "symbols": symbols(10_002)}],
        [
            "sources[0].symbols: must be a list of at most 10000 symbols, not 10001",
            "sources[1].symbols: must be a list of at most 10000 symbols, not 10002",
        ],
    ),
    (
        [{"source_id": "a", "symbols": symbols(10_000)}, {"source_id": "b", "symbols": symbols(2, first=9_999)}],
        ["sources: name 10001 symbols: at most 10000 in all"],
    ),
    (many(1001), ["sources: must be a list of at most 1000 tables, not 1001"]),
]


def test_the_most_symbols_and_sources_are_read_within_a_second() -> None:
    most = [*many(999), {"source_id": "all", "symbols": symbols(9_999)}]
    began = clock.monotonic()
    config = read_config(body(sources=most))
    assert clock.monotonic() - began < 1.0
    assert (len(config.sources), len(config.symbols)) == (1000, 10_000)


@pytest.mark.parametrize(("sources", "says"), TOO_MANY)
def test_more_symbols_or_sources_are_refused_by_name(sources: list[dict[str, Any]], says: list[str]) -> None:
    assert wrong(sources=sources) == says


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(sorted(read_config(body()).body()))


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_whatever_a_file_says_it_is_valid_or_refused_by_name(sections: dict[str, Any]) -> None:
    try:
        config = read_config({**body(), **sections})
    except InvalidSettings as error:
        refused = error.message.splitlines()
        assert refused
        assert [line for line in refused if ": " not in line] == []
    else:
        assert isinstance(config, Config)
        canonical(config.body())
