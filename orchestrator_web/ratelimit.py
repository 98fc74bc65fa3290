"""How many requests a second each client may make, counted over all web processes.

Redis holds one counter for each client and second. A process leases a share of the
second's budget at a time, so that most requests ask nobody; the limit is never
exceeded, and a client whose requests are spread over several processes may be refused
at most one share of each other process early. Limits below 40 are exact.

Without Redis each process counts by itself for a while: nobody is refused or kept
waiting because a counter is away.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

import redis
from flask import Response, g, request
from redis.backoff import NoBackoff
from redis.retry import Retry

from models.kernel import clock
from models.kernel.clients import Caller
from models.kernel.errors import TooMany
from models.kernel.hints import redis_url
from models.kernel.once import once
from models.kernel.settings import settings

log = logging.getLogger(__name__)

SHARES = 20  # of a second's budget; a process leases one at a time
PATIENCE_SECONDS = 0.05
OUTAGE_SECONDS = 5.0
COUNTER_SECONDS = 5
SHORTEST_WAIT = 0.01
MOST_BUDGETS = 10_000
EXEMPT = frozenset({("POST", "/estop"), ("DELETE", "/estop")})


@dataclass
class Budget:
    """What this process may still give to one client in one second."""

    second: int = -1
    given: int = 0
    leased: int = 0
    elsewhere: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


budgets: dict[str, Budget] = {}


class Counters:
    """The counters in Redis, left alone for a while after they did not answer."""

    def __init__(self) -> None:
        self.away_until = 0.0
        self.away = False

    def add(self, name: str, amount: int) -> int | None:
        """The counter's new value; None while Redis is away."""
        if self.away and clock.monotonic() < self.away_until:
            return None
        try:
            pipeline = client().pipeline(transaction=False)
            pipeline.incrby(name, amount)
            pipeline.expire(name, COUNTER_SECONDS)
            total = int(pipeline.execute()[0])
        except redis.RedisError as error:
            self.away_until = clock.monotonic() + OUTAGE_SECONDS
            if not self.away:
                log.warning("rates are counted by each process alone", extra={"error": type(error).__name__})
            self.away = True
            return None
        self.away = False
        return total


counters = Counters()


@once
def client() -> redis.Redis:
    """This process's own Redis client: one try, no longer than PATIENCE_SECONDS."""
    return redis.Redis.from_url(
        redis_url(settings().broker_url),
        socket_timeout=PATIENCE_SECONDS,
        socket_connect_timeout=PATIENCE_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


def forget() -> None:
    """Start anew, as a new process would."""
    budgets.clear()
    counters.away = False
    if client.is_made:
        client().close()
    client.cache_clear()


def count_request(caller: Caller) -> None:
    """Count one request of a caller. Raises TooMany when its second is used up."""
    limit = settings().rate_limit if caller.rate_limit is None else caller.rate_limit
    if not limit or (request.method, request.path) in EXEMPT:
        return
    now = clock.wall()
    budget = budgets.get(caller.name)
    if budget is None:
        if len(budgets) >= MOST_BUDGETS:
            budgets.clear()
        budget = budgets.setdefault(caller.name, Budget())
    with budget.lock:
        granted = take(budget, caller.name, limit, int(now))
        remaining = max(0, limit - budget.elsewhere - budget.given)
    g.rate = (limit, remaining, int(now) + 1)
    if not granted:
        text = f"More than {limit} requests in a second"
        raise TooMany(text, code="rate_limited", retry_after=max(SHORTEST_WAIT, int(now) + 1 - now))


def take(budget: Budget, name: str, limit: int, second: int) -> bool:
    """Give one request of this second out of what is leased, or of what can still be."""
    if budget.second != second:
        budget.second, budget.given, budget.leased, budget.elsewhere = second, 0, 0, 0
    if budget.given >= budget.leased and budget.leased + budget.elsewhere < limit:
        lease(budget, name, limit)
    if budget.given >= budget.leased:
        return False
    budget.given += 1
    return True


def lease(budget: Budget, name: str, limit: int) -> None:
    """Lease the next share; what others have leased meanwhile shows in the counter."""
    share = max(1, limit // SHARES)
    total = counters.add(f"orchestrator:rate:{budget.second}:{name}", share)
    if total is None:
        total = budget.leased + share
    before = total - share
    budget.elsewhere = max(0, before - budget.leased)
    budget.leased += max(0, min(share, limit - before))


def tell(response: Response) -> Response:
    """Say in every answer what the caller may still ask for."""
    if "rate" in g:
        limit, remaining, reset = g.rate
        response.headers["X-RateLimit-Limit"] = str(limit)
        response.headers["X-RateLimit-Remaining"] = str(remaining)
        response.headers["X-RateLimit-Reset"] = str(reset)
    return response
