"""Carries a plan out, stroke by stroke, at its times."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tests.chaos.cluster import Cluster
from tests.chaos.history import History
from tests.chaos.plan import Stroke


def acts_of(cluster: Cluster) -> dict[str, Callable[[Stroke], Any]]:
    proxies = cluster.proxies
    return {
        "kill": lambda stroke: cluster.kill(stroke.victim),
        "kill_child": lambda stroke: cluster.kill_child(stroke.victim),
        "kill_host": lambda stroke: cluster.kill_host(stroke.victim),
        "freeze": lambda stroke: cluster.freeze(stroke.victim),
        "thaw": lambda stroke: cluster.thaw(stroke.victim),
        "hold": lambda stroke: cluster.freeze(stroke.victim),
        "flush_and_let_go": lambda stroke: f"{cluster.flush('valkey')} {cluster.thaw(stroke.victim)}",
        "flush": lambda stroke: cluster.flush(stroke.victim),
        "kill_and_empty": lambda stroke: cluster.kill_and_empty(stroke.victim),
        "stop_at_once": lambda stroke: cluster.stop_at_once(stroke.victim),
        "start": lambda stroke: cluster.start_server(stroke.victim),
        "cut": lambda stroke: proxies[stroke.victim].cut(),
        "delay": lambda stroke: proxies[stroke.victim].slow(stroke.amount),
        "half_open": lambda stroke: proxies[stroke.victim].half_open(),
        "clear": lambda stroke: proxies[stroke.victim].clear(),
        "clog": lambda stroke: cluster.clog(stroke.victim),
        "unclog": lambda stroke: cluster.unclog(stroke.victim),
        "deploy": lambda _stroke: cluster.deploy(),
        "double": lambda _stroke: cluster.double(),
        "single": lambda _stroke: cluster.single(),
    }


def rage(cluster: Cluster, plan: list[Stroke], seconds: float, history: History, say: Callable[[str], None]) -> None:
    """Strike at the times of the plan, and return when so many seconds are over."""
    acts = acts_of(cluster)
    began = time.monotonic()
    pause = threading.Event()
    for stroke in plan:
        pause.wait(max(0.0, began + stroke.at - time.monotonic()))
        told = acts[stroke.act](stroke)
        history.struck(stroke.act, stroke.victim, stroke.at, str(told or ""))
        say(f"{stroke.at:7.2f} s  {stroke.act} {stroke.victim}  {told or ''}")
    pause.wait(max(0.0, began + seconds - time.monotonic()))
