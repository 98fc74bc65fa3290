"""The example's feed: what it posts is taken, comes in time for its run, and leads to varied regimes."""

from __future__ import annotations

import json
import random
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples import market_feed
from examples.market_feed import Market, second, wanted_timestamps
from models.engine.cadence import engine_timestamp, first_tick
from models.engine.config import read_config
from models.engine.contract import check_event
from models.engine.snapshots import engine_input
from orchestrator_tasks.engine.adapter import Engine, answer

CONFIG = tomllib.loads((Path(market_feed.__file__).parent / "engine.toml").read_text())
BODY = read_config(CONFIG).body()
SYMBOLS = ("BTC-USD", "ETH-USD", "SOL-USD")
START_MS = 1_700_000_000_000


def markets(seed: int) -> dict[str, Market]:
    return {name: Market(name, random.Random(f"{seed} {name}"), market_feed.PRICES[name]) for name in SYMBOLS}


def an_hour(seed: int, seconds: int = 3600) -> list[dict[str, Any]]:
    walking = markets(seed)
    return [event for turn in range(seconds) for event in second(walking, BODY, START_MS + turn * 1000)]


def test_every_event_is_taken_by_the_contract() -> None:
    read = read_config(CONFIG)
    sources = {source.source_id: frozenset(source.symbols) for source in read.sources}
    events = an_hour(1, 60)
    for event in events:
        check_event(json.dumps(event).encode(), sources, read.engine.alignment_ms)
    assert {event["event_type"] for event in events} >= {"TradeTick", "BookTop", "SnapshotInputs", "OpenInterest"}
    assert {event["source_id"] for event in events} == set(sources)


def test_the_same_seed_walks_the_same_way() -> None:
    assert an_hour(1, 60) == an_hour(1, 60) != an_hour(2, 60)


@pytest.mark.parametrize("offset_ms", range(0, 20_000, 1000))
def test_the_inputs_of_a_boundary_come_before_its_tick_whenever_the_feed_started(offset_ms: int) -> None:
    scheduler = read_config(CONFIG).scheduler
    alignment = read_config(CONFIG).engine.alignment_ms
    tick = first_tick(scheduler, START_MS + offset_ms)
    due = engine_timestamp(scheduler, tick, alignment)
    posted = [moment for moment in range(START_MS + offset_ms, tick, 100) if due in wanted_timestamps(BODY, moment)]
    late = tick - (START_MS + offset_ms) <= scheduler.delay_ms / 2
    assert posted or late
    assert all(moment < tick for moment in posted)


def test_with_a_timer_the_present_slot_is_told() -> None:
    timer = {"scheduler": {"mode": "timer"}, "engine": {"alignment_ms": 10_000}}
    assert wanted_timestamps(timer, 25_500) == [20_000]


def test_an_hour_has_varied_regimes() -> None:
    loaded = Engine.load("examples.regime_engine.engine")
    seen: Counter[str] = Counter()
    for event in an_hour(7):
        if event["event_type"] == "SnapshotInputs":
            given = engine_input(json.dumps(event), event["normalized"]["timestamp_ms"])
            seen[answer(loaded, {"mode": "truth", "input": given})["ok"]["regime_output"]["regime"]] += 1
    assert len(seen) >= 7
    assert max(seen.values()) < 0.7 * sum(seen.values())
