"""Those who use the service while it burns. Each draws what it does from the seed, asks, and keeps what it was told."""

from __future__ import annotations

import collections
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import orjson

from tests.chaos.history import Call, History

ROBOTS = 6
TRIES = 4
TIMEOUT_SECONDS = 20.0
ASYNC = {"Prefer": "respond-async"}


class Caller:
    """One caller with one connection at a time; when nothing answers it opens another."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.chance = random.Random(f"{name}:{world.seed}")
        self.client: httpx.Client | None = None
        self.keys = 0

    def ask(
        self,
        kind: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        about: dict[str, Any] | None = None,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Call:
        """One request; its correlation id is its number in the history."""
        call = self.world.history.begin(self.name, kind, {"path": path, "body": body, **(about or {})}, key)
        sent = {"X-Correlation-Id": call.correlation_id, **(headers or {})}
        if key is not None:
            sent["Idempotency-Key"] = key
        try:
            answer = self.connection().request(method, path, json=body, headers=sent)
            told = orjson.loads(answer.content)
        except (httpx.HTTPError, orjson.JSONDecodeError, OSError):
            self.hang_up()
            self.world.over.wait(0.1)
            return self.world.history.end(call, None)
        kept = {name: value for name, value in answer.headers.items() if name in ("idempotency-replayed",)}
        if answer.status_code >= 500:
            self.world.over.wait(0.1)
        return self.world.history.end(call, answer.status_code, told, kept)

    def ask_until_told(self, kind: str, path: str, body: Any, **about: Any) -> Call:
        """A creating request under a key of its own, sent again until it is answered, and sometimes after that."""
        self.keys += 1
        key = f"{self.name}-{self.world.seed}-{self.keys}"
        for item in body.get("tickets", [body]):
            item["metadata"] = {"key": key}
        for _ in range(TRIES):
            call = self.ask(kind, "POST", path, body, key=key, about=about)
            if call.is_acknowledged:
                break
            self.world.over.wait(0.2)
        if self.chance.random() < 0.15:
            self.ask(kind, "POST", path, body, key=key, about=about)
        return call

    def connection(self) -> httpx.Client:
        if self.client is None:
            headers = {"Authorization": f"Bearer {self.world.token}"}
            self.client = httpx.Client(
                base_url=self.world.url, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False
            )
        return self.client

    def hang_up(self) -> None:
        if self.client is not None:
            with contextlib.suppress(Exception):
                self.client.close()
            self.client = None

    def rest(self, shortest: float, longest: float) -> None:
        self.world.over.wait(self.chance.uniform(shortest, longest))


class World:
    """What the callers share: where the service is, when to end, and which tickets there are."""

    def __init__(self, url: str, token: str, seed: int, history: History) -> None:
        self.url, self.token, self.seed, self.history = url, token, seed, history
        self.over = threading.Event()
        self.first_tick_ms = 0
        self.recent: collections.deque[str] = collections.deque(maxlen=60)
        self.threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def robot(self, chance: random.Random) -> str:
        return f"r{chance.randrange(ROBOTS)}"

    def start(self, name: str, act: Callable[[Caller], None]) -> None:
        """Have a caller do this again and again until the end."""
        caller = Caller(self, name)

        def go_on() -> None:
            try:
                while not self.over.is_set():
                    act(caller)
            except BaseException as error:  # a mistake of the caller's own, which the run must not hide
                self.failures.append(error)
            finally:
                caller.hang_up()

        thread = threading.Thread(target=go_on, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(2 * TIMEOUT_SECONDS)
            if thread.is_alive():
                raise AssertionError(f"{thread.name} does not end")
        if self.failures:
            raise self.failures[0]


def draft(world: World, chance: random.Random) -> dict[str, Any]:
    """A ticket: mostly a drive of a tenth of a second to three, at ten simulated seconds in a real one."""
    command = chance.choices(["drive", "scan", "stop", "brake"], [70, 24, 3, 3])[0]
    params = {"speed": 1.0, "direction": chance.choice([0, 90, 180, 270]), "duration_seconds": chance.uniform(1, 20)}
    priority = chance.choice(["critical", "high", "normal", "low"])
    ticket = {"command": command, "target": world.robot(chance), "priority": priority}
    return {**ticket, "params": params if command == "drive" else {}}


def drive_robots(caller: Caller) -> None:
    """Create a ticket and carry it out, waiting for the outcome or not; now and then twice, or again by force."""
    world, chance = caller.world, caller.chance
    body = draft(world, chance)
    if chance.random() < 0.6:
        made = caller.ask_until_told("create", "/ticket", body)
    else:
        made = caller.ask("create", "POST", "/ticket", body)
    if made.is_acknowledged:
        world.recent.append(made.answer["id"])
        for body in executions(made.answer["id"], chance):
            waits = chance.random() < 0.3
            caller.ask("execute", "POST", "/execute", body, headers=None if waits else ASYNC)
    caller.rest(0.05, 0.4)


def executions(ticket_id: str, chance: random.Random) -> Iterator[dict[str, Any]]:
    body: dict[str, Any] = {"ticket_id": ticket_id}
    if chance.random() < 0.15:
        body["expires_in_seconds"] = chance.choice([1, 2, 5])
    yield body
    if chance.random() < 0.1:
        yield {**body, "force": True}


def cancel_and_repeat(caller: Caller) -> None:
    """Cancel some ticket, or run it again."""
    caller.rest(0.3, 1.2)
    if caller.world.recent:
        ticket_id = caller.chance.choice(list(caller.world.recent))
        if caller.chance.random() < 0.6:
            caller.ask("cancel", "POST", f"/ticket/{ticket_id}/cancel", about={"ticket": ticket_id})
        else:
            caller.ask("execute", "POST", "/execute", {"ticket_id": ticket_id, "force": True}, headers=ASYNC)


def work_in_batches(caller: Caller) -> None:
    """Create several at once and set them going by an operation; cancel or replay some by another."""
    world, chance = caller.world, caller.chance
    size = chance.randint(3, 12)
    body = {"tickets": [draft(world, chance) for _ in range(size)]}
    made = caller.ask_until_told("batch", "/tickets/batch", body, size=size)
    if made.is_acknowledged:
        ids = [ticket["id"] for ticket in made.answer["tickets"]]
        caller.ask("bulk_execute", "POST", "/tickets/execute", {"ids": ids})
        world.recent.extend(ids[:3])
        if chance.random() < 0.3:
            caller.ask("bulk_cancel", "POST", "/tickets/cancel", {"ids": ids[: size // 2]})
        if chance.random() < 0.3:
            caller.ask("bulk_replay", "POST", "/tickets/replay", {"ids": ids})
    caller.rest(1.5, 4.0)


def stop_everything(caller: Caller) -> None:
    """Engage the e-stop of all or of one robot, hold it for a moment, and release it."""
    caller.rest(5.0, 11.0)
    if caller.world.over.is_set():
        return
    scope = caller.chance.choice(["all", caller.world.robot(caller.chance)])
    caller.ask("engage", "POST", "/estop", {"scope": scope, "reason": "chaos"}, about={"scope": scope})
    caller.rest(0.5, 2.5)
    release(caller, scope)


def release(caller: Caller, scope: str, tries: int = 60) -> None:
    """Release until it is done: nothing moves before."""
    for _ in range(tries):
        body = {"scope": scope, "reason": "chaos is over"}
        if caller.ask("release", "DELETE", "/estop", body, about={"scope": scope}).is_acknowledged:
            return
        caller.chance.random()
        threading.Event().wait(0.3)


def keep_time(caller: Caller) -> None:
    """Pause, resume and run schedules."""
    caller.rest(1.0, 3.0)
    name = caller.chance.choice(["tallies", "housekeeping", "partitions"])
    caller.ask("pause", "POST", f"/scheduler/jobs/{name}/pause", about={"name": name})
    caller.rest(0.5, 3.0)
    for _ in range(TRIES):
        if caller.ask("resume", "POST", f"/scheduler/jobs/{name}/resume", about={"name": name}).is_acknowledged:
            break
    caller.ask("run", "POST", f"/scheduler/jobs/{name}/run", about={"name": name})


def look_around(caller: Caller) -> None:
    """Read what there is to read."""
    for path in ("/", "/tickets?limit=20", "/telemetry/events", "/telemetry/metrics", "/estop", "/operations"):
        caller.ask("read", "GET", path)
        caller.rest(0.2, 0.6)


CREW: dict[str, Callable[[Caller], None]] = {
    "driver-1": drive_robots,
    "driver-2": drive_robots,
    "driver-3": drive_robots,
    "canceller": cancel_and_repeat,
    "batcher": work_in_batches,
    "stopper": stop_everything,
    "timekeeper": keep_time,
    "watcher": look_around,
}
