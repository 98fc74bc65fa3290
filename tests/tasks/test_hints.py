"""Hints that nobody can take cost their sender little."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from models.kernel import clock
from models.kernel.settings import settings
from models.kernel.silence import SECONDS, Silence
from orchestrator_tasks import hints


class Deaf:
    """A Redis that takes connections and answers nobody."""

    asked = 0

    def pipeline(self, **_: Any) -> Any:
        self.asked += 1
        raise redis.TimeoutError("Timeout reading from socket")


def test_a_silent_redis_is_asked_again_only_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guardian tells of each stop: sixty of them must not wait for sixty timeouts."""
    deaf, silence, now = Deaf(), Silence(), [100.0]
    monkeypatch.setattr(hints, "client", lambda: deaf)
    monkeypatch.setattr(hints, "silence", silence)
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    for _ in range(60):
        hints.ended("a", "b", queue="io")
    assert deaf.asked == 1
    assert silence.lasts(settings().broker_url)
    assert not silence.lasts("redis://another/0")
    now[0] += SECONDS
    hints.owed()
    assert deaf.asked == 2
