"""The planner beside a model: whenever passes come, late, doubled or not at all for a while, the plan is the same."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine import desk
from tests.engine.desk import DELAY_MS, INTERVAL_MS, START_MS, SYMBOLS

ACTIONS = 70


@dataclass
class Model:
    """The log as a list of (time, symbol); what is planned follows from it and from the boundaries alone."""

    log: list[tuple[int, str]] = field(default_factory=list)

    def runs(self, until_ms: int) -> list[tuple[Any, ...]]:
        """What must be planned for the boundaries before this moment."""
        ends: dict[str, int] = {}
        made = []
        tick = START_MS + DELAY_MS
        while tick < until_ms:
            end = sum(1 for at, _ in self.log if at <= tick)
            for symbol in SYMBOLS:
                own = [seq for seq, (_, of) in enumerate(self.log, 1) if of == symbol]
                begin = ends[symbol] + 1 if symbol in ends else min(own, default=end + 1)
                if begin <= end:
                    made.append((symbol, tick - DELAY_MS, begin, end, sum(1 for seq in own if begin <= seq <= end)))
                    ends[symbol] = end
            tick += INTERVAL_MS
        return made


def planned() -> list[tuple[Any, ...]]:
    return [
        (
            run["symbol"],
            run["engine_timestamp_ms"],
            run["cut_start_ingest_seq"],
            run["cut_end_ingest_seq"],
            sum(run["counts_by_event_type"].values()),
        )
        for run in desk.runs()
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_plan_is_that_of_the_model_whenever_the_planner_comes(database: str, seed: int) -> None:
    chance = random.Random(seed)
    model = Model()
    desk.running()
    now_ms = START_MS
    for _ in range(ACTIONS):
        now_ms += chance.choice([0, 1, 300, 1000, 4000, 9000, 35_000])
        if chance.random() < 0.6:
            symbols = chance.choices(SYMBOLS, weights=[3, 1], k=chance.randint(1, 4))
            appended = desk.append(*(desk.trade(symbol) for symbol in symbols), now_ms=now_ms)
            assert appended.ingest_ts_ms == now_ms
            model.log += [(now_ms, symbol) for symbol in symbols]
        else:
            for _ in range(chance.randint(1, 3)):
                while desk.plan(now_ms).more:
                    pass
            assert planned() == model.runs(now_ms)
    desk.plan(now_ms + INTERVAL_MS)
    assert planned() == model.runs(now_ms + INTERVAL_MS)
    assert len(planned()) > 10
