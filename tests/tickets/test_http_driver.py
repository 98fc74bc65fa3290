"""The http driver against real buses on loopback: one that behaves, and one for each way not to."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from examples.actuator_bus import Actuate, Bus
from models.kernel import clock
from models.kernel.clock import utcnow
from models.tickets import contracts
from orchestrator_tasks.tickets.drivers import http, registry
from orchestrator_tasks.tickets.drivers.base import Command, DriverFailed, Interrupt, Interrupted, OutcomeUnknown
from orchestrator_tasks.tickets.drivers.http import HttpDriver
from orchestrator_tasks.tickets.drivers.sim import SimDriver

TIMEOUT = 5.0
SHORT = 0.1


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def url_of(bus: Bus) -> str:
    return f"http://127.0.0.1:{bus.server_port}"


@pytest.fixture
def bus() -> Iterator[Bus]:
    with Bus(("127.0.0.1", 0)) as server, serving(server):
        yield server


@pytest.fixture
def driver(bus: Bus) -> HttpDriver:
    return HttpDriver(url_of(bus), TIMEOUT)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STOP_PAUSES", (0.0, 0.0))


class Misbehaving(Actuate):
    """A bus that notes each command and then does what the test says."""

    act: Callable[[Misbehaving, dict[str, Any]], None]

    def accept(self, body: dict[str, Any]) -> None:
        self.server.received.append(body)
        type(self).act(self, body)


@contextmanager
def misbehaving(act: Callable[[Misbehaving, dict[str, Any]], None], timeout: float = TIMEOUT) -> Iterator[Any]:
    """A driver of a bus that acknowledges stops and does `act` with anything else."""

    def either(bus: Misbehaving, body: dict[str, Any]) -> None:
        if body["command"] == "stop":
            bus.answer(200, {"ack": True, "received_at": utcnow().isoformat()})
        else:
            act(bus, body)

    handler = type("Handler", (Misbehaving,), {"act": staticmethod(either)})
    with Bus(("127.0.0.1", 0), handler) as server, serving(server):
        yield HttpDriver(url_of(server), timeout), server


def command(name: str = "drive", fence: int = 1, **changed: Any) -> Command:
    params = {"speed": 1.5, "duration_seconds": 0} if name == "drive" else {}
    facts: dict[str, Any] = {"target": "rover", "not_after": utcnow() + timedelta(seconds=60), "params": params}
    return Command(**{"ticket_id": f"ticket-{fence}", "name": name, "fence": fence} | facts | changed)


def names(bus: Bus) -> list[str]:
    return [body["command"] for body in bus.received]


class Recorded(Interrupt):
    """An interrupt that nobody waits for: it is set, or the time has passed."""

    def __init__(self, reason: str | None = None) -> None:
        super().__init__()
        self.waits: list[float] = []
        self.later = reason

    def wait(self, seconds: float) -> str | None:
        if seconds > 0:
            self.waits.append(seconds)
            if self.later:
                self.set(self.later)
        return super().wait(0)


class TestAWellBehavedBus:
    def test_a_drive_is_sent_as_the_contract_says(self, driver: HttpDriver, bus: Bus) -> None:
        params = {"speed": 1.5, "direction": 90, "duration_seconds": 5, "note": "é"}
        result = driver.carry_out(command(params=params), Recorded())
        (body,) = bus.received
        contracts.check("actuator.v1", body)
        assert (body["command"], body["params"]) == ("drive", params)
        received_at = result.pop("received_at")
        assert contracts.is_date_time(received_at)
        assert result == {
            "command": "drive",
            "executed": True,
            "speed": 1.5,
            "direction": 90,
            "duration_seconds": 5,
            "distance_traveled": 7.5,
            "ack": True,
        }

    def test_a_drive_lasts_as_long_as_the_robot_moves(self, driver: HttpDriver, bus: Bus) -> None:
        interrupt = Recorded()
        driver.carry_out(command(params={"speed": 1, "duration_seconds": 120}), interrupt)
        assert interrupt.waits == [120]
        assert names(bus) == ["drive"]

    def test_an_interrupted_drive_is_stopped_before_the_exception_leaves(self, driver: HttpDriver, bus: Bus) -> None:
        interrupt = Recorded("timeout")
        with pytest.raises(Interrupted) as caught:
            driver.carry_out(command(params={"speed": 1, "duration_seconds": 120}), interrupt)
        assert caught.value.reason == "timeout"
        assert names(bus) == ["drive", "stop"]

    def test_a_revoked_drive_sends_no_stop_that_could_hit_the_next_one(self, driver: HttpDriver, bus: Bus) -> None:
        with pytest.raises(Interrupted) as caught:
            driver.carry_out(command(params={"speed": 1, "duration_seconds": 9}), Recorded("revoked"))
        assert caught.value.reason == "revoked"
        assert names(bus) == ["drive"]

    @pytest.mark.parametrize(("name", "status"), [("stop", "stopped"), ("brake", "braked")])
    def test_a_stop_and_a_brake_are_acknowledged(self, driver: HttpDriver, bus: Bus, name: str, status: str) -> None:
        result = driver.carry_out(command(name), Interrupt())
        assert contracts.is_date_time(result.pop("received_at"))
        assert result == {"command": name, "executed": True, "status": status, "ack": True}
        assert names(bus) == [name]

    def test_the_driver_stops_a_robot_for_whoever_asks(self, driver: HttpDriver, bus: Bus) -> None:
        driver.stop("rover", 2, "cancelled")
        assert names(bus) == ["stop"]

    def test_a_target_of_any_letters_fits_in_a_header(self, driver: HttpDriver, bus: Bus) -> None:
        driver.carry_out(command(target="Räuber 7\r\nX-Evil: 1"), Recorded())
        assert bus.obeyed == {"R%C3%A4uber%207%0D%0AX-Evil:%201": 1}

    def test_a_bus_that_knows_fences_refuses_a_stale_drive(self, driver: HttpDriver, bus: Bus) -> None:
        driver.stop("rover", 5, "stop")
        with pytest.raises(DriverFailed, match=r"refused the command: HTTP 409 .*newer command"):
            driver.carry_out(command(fence=4), Recorded())
        driver.carry_out(command(fence=6), Recorded())

    def test_the_example_answers_as_the_contract_says(self, bus: Bus) -> None:
        with httpx.Client(base_url=url_of(bus), trust_env=False) as client:
            assert client.get("/").json()["status"] == "operational"
            sound = {"timestamp": "2026-11-21T09:30:00Z", "command": "brake", "params": None}
            assert client.post("/actuate", json=sound).json()["ack"] is True
            for broken in ({}, sound | {"command": "scan"}, sound | {"timestamp": "now"}, sound | {"params": 1}, []):
                answer = client.post("/actuate", json=broken)
                assert answer.status_code == 422
                assert answer.json()["detail"]
            assert client.post("/actuate", content=b"{").status_code == 422
            assert client.post("/actuate").status_code == 422
            late = {"X-Not-After": "2020-01-01T00:00:00+00:00"}
            assert client.post("/actuate", json=sound | {"command": "drive"}, headers=late).status_code == 409


class TestWhatIsNeverSent:
    def test_a_scan_is_no_actuator_command(self, driver: HttpDriver, bus: Bus) -> None:
        with pytest.raises(DriverFailed) as caught:
            driver.carry_out(command("scan"), Interrupt())
        assert caught.value.message == "Actuator bus cannot carry out scan"
        assert bus.received == []

    @pytest.mark.parametrize(
        ("name", "params", "text"),
        [
            ("fly", {}, "Unknown command: fly"),
            ("drive", {"speed": 3.5, "duration_seconds": 1}, "Speed 3.5 exceeds safety threshold of 3.0 m/s"),
        ],
    )
    def test_what_is_unsafe_never_leaves(
        self, driver: HttpDriver, bus: Bus, name: str, params: dict[str, Any], text: str
    ) -> None:
        with pytest.raises(DriverFailed) as caught:
            driver.carry_out(command(name, params=params), Interrupt())
        assert caught.value.message == text
        assert bus.received == []

    def test_a_drive_after_its_last_moment_never_leaves(self, driver: HttpDriver, bus: Bus) -> None:
        with pytest.raises(DriverFailed) as caught:
            driver.carry_out(command(not_after=utcnow()), Interrupt())
        assert caught.value.code == "too_late"
        assert bus.received == []

    def test_a_drive_after_the_lease_it_was_cleared_under_never_leaves(self, driver: HttpDriver, bus: Bus) -> None:
        with pytest.raises(DriverFailed) as caught:
            driver.carry_out(command(begin_by=clock.monotonic()), Interrupt())
        assert caught.value.code == "too_late"
        assert bus.received == []

    def test_what_was_interrupted_before_it_began_never_leaves(self, driver: HttpDriver, bus: Bus) -> None:
        interrupt = Interrupt()
        interrupt.set("shutdown")
        with pytest.raises(Interrupted):
            driver.carry_out(command(), interrupt)
        assert bus.received == []

    @pytest.mark.parametrize("value", [float("nan"), "\ud800", object()])
    def test_what_json_cannot_say_never_leaves(self, driver: HttpDriver, bus: Bus, value: Any) -> None:
        params = {"speed": 1, "duration_seconds": 1, "note": value}
        with pytest.raises(DriverFailed, match="cannot be sent"):
            driver.carry_out(command(params=params), Interrupt())
        assert bus.received == []


class TestTheBusAway:
    def test_no_connection_means_that_nothing_was_sent(self) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else's
            driver = HttpDriver(f"http://127.0.0.1:{closed.getsockname()[1]}", TIMEOUT)
            with pytest.raises(DriverFailed, match=r"^Actuator bus unavailable: ") as caught:
                driver.carry_out(command(), Interrupt())
        assert not isinstance(caught.value, OutcomeUnknown)
        assert caught.value.code == "actuator_unavailable"

    def test_a_host_that_does_not_answer_the_call_is_unavailable(self) -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            with full_queue(full.getsockname(), 4):
                driver = HttpDriver(f"http://127.0.0.1:{full.getsockname()[1]}", SHORT)
                with pytest.raises(DriverFailed, match=r"^Actuator bus unavailable: "):
                    driver.carry_out(command(), Interrupt())

    def test_an_environment_proxy_is_not_asked(self, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
        HttpDriver(url_of(bus), TIMEOUT).carry_out(command(), Recorded())
        assert names(bus) == ["drive"]

    def test_a_stop_that_nobody_takes_fails_after_three_tries(self) -> None:
        tried = []

        def refuse(bus: Misbehaving, body: dict[str, Any]) -> None:
            tried.append(body["command"])
            bus.answer(500, {})

        with misbehaving(refuse) as (driver, _), pytest.raises(OutcomeUnknown):
            driver.carry_out(command("brake"), Interrupt())
        assert tried == ["brake"] * 3

    def test_a_stop_is_sent_again_until_it_is_acknowledged(self) -> None:
        answers = iter([500, 500, 200])

        def recover(bus: Misbehaving, _body: dict[str, Any]) -> None:
            bus.answer(next(answers), {"ack": True, "received_at": utcnow().isoformat()})

        with misbehaving(recover) as (driver, server):
            assert driver.carry_out(command("brake"), Interrupt())["executed"]
        assert names(server) == ["brake"] * 3


@contextmanager
def full_queue(address: tuple[str, int], count: int) -> Iterator[None]:
    """Fill the queue of a listener that accepts nobody."""
    callers = [socket.socket() for _ in range(count)]
    for caller in callers:
        caller.setblocking(False)
        caller.connect_ex(address)
    try:
        yield
    finally:
        for caller in callers:
            caller.close()


def raw(answer: bytes) -> Callable[[Misbehaving, dict[str, Any]], None]:
    """Answer with exactly these bytes."""
    return lambda bus, _body: (bus.wfile.write(answer), setattr(bus, "close_connection", True))[1]


def saying(status: int, document: Any) -> Callable[[Misbehaving, dict[str, Any]], None]:
    return lambda bus, _body: bus.answer(status, document)


def page(payload: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(payload) + payload


NOW = "2026-11-21T09:30:00+00:00"


class TestRefusals:
    @pytest.mark.parametrize(
        ("act", "text"),
        [
            (saying(422, {"detail": [{"msg": "no"}]}), "HTTP 422"),
            (saying(400, {}), "HTTP 400"),
            (saying(404, {}), "HTTP 404"),
            (raw(b"HTTP/1.1 307 No\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"), "HTTP 307"),
            (saying(200, {"ack": False, "received_at": NOW}), "ack is false"),
        ],
    )
    def test_a_refused_drive_fails_and_is_not_sent_again(
        self, act: Callable[[Misbehaving, dict[str, Any]], None], text: str
    ) -> None:
        with misbehaving(act) as (driver, server):
            with pytest.raises(DriverFailed, match=f"^Actuator bus refused the command: {text}") as caught:
                driver.carry_out(command(), Recorded())
            assert names(server) == ["drive"]
        assert not isinstance(caught.value, OutcomeUnknown)
        assert caught.value.code == "actuator_refused"


class TestUnknownOutcomes:
    @pytest.mark.parametrize(
        ("act", "text"),
        [
            (saying(500, {}), "HTTP 500"),
            (saying(503, {}), "HTTP 503"),
            (saying(200, {}), "no ack"),
            (saying(200, []), "no ack"),
            (saying(200, {"ack": 1, "received_at": NOW}), "no ack"),
            (saying(200, {"ack": True}), "no ack"),
            (saying(200, {"ack": True, "received_at": "now"}), "no ack"),
            (saying(200, {"ack": True, "received_at": 7}), "no ack"),
            (raw(page(b"<html>fine</html>")), "not JSON"),
            (raw(page(b"")), "not JSON"),
            (raw(page(b"[" * 70_000)), "too long"),
            (raw(page(b"\xff\xfe")), "not JSON"),
            (raw(b""), "did not acknowledge"),
            (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"), "did not acknowledge"),
            (raw(b"220 mail ready\r\n"), "did not acknowledge"),
        ],
    )
    def test_a_drive_without_an_acknowledgement_is_unknown_and_stopped_once(
        self, act: Callable[[Misbehaving, dict[str, Any]], None], text: str
    ) -> None:
        with misbehaving(act) as (driver, server):
            with pytest.raises(OutcomeUnknown, match=text) as caught:
                driver.carry_out(command(), Recorded())
            assert names(server) == ["drive", "stop"]
        assert caught.value.code == "outcome_unknown"
        assert "a stop was delivered" in caught.value.message

    def test_a_bus_that_stays_silent_is_unknown(self) -> None:
        release = threading.Event()
        with misbehaving(lambda _bus, _body: release.wait(60) and None, SHORT) as (driver, server):
            with pytest.raises(OutcomeUnknown, match="did not acknowledge drive"):
                driver.carry_out(command(), Recorded())
            release.set()
            assert names(server) == ["drive", "stop"]

    @pytest.mark.parametrize(
        "head", [b"HTTP/1.1 200 OK\r\nX-Long: ", b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"]
    )
    def test_a_bus_that_trickles_its_answer_is_unknown(self, head: bytes) -> None:
        gone = threading.Event()

        def trickle(bus: Misbehaving, _body: dict[str, Any]) -> None:
            bus.close_connection = True
            bus.wfile.write(head)
            try:
                for _ in range(1000):
                    gone.wait(SHORT / 10)
                    bus.wfile.write(b" ")
            except OSError:
                gone.set()

        with misbehaving(trickle, SHORT) as (driver, _):
            with pytest.raises(OutcomeUnknown, match="no whole answer within"):
                driver.carry_out(command(), Recorded())
            assert gone.wait(60)

    def test_a_drive_that_cannot_be_stopped_is_unknown(self) -> None:
        def deaf(bus: Misbehaving, body: dict[str, Any]) -> None:
            status = 200 if body["command"] == "drive" else 500
            bus.answer(status, {"ack": True, "received_at": NOW})

        handler = type("Handler", (Misbehaving,), {"act": staticmethod(deaf)})
        with Bus(("127.0.0.1", 0), handler) as server, serving(server):
            driver = HttpDriver(url_of(server), TIMEOUT)
            with pytest.raises(OutcomeUnknown, match="may still be moving"):
                driver.carry_out(command(params={"speed": 1, "duration_seconds": 9}), Recorded("cancelled"))
            assert names(server) == ["drive", "stop", "stop", "stop"]


class TestTheChoice:
    @pytest.mark.parametrize(("chosen", "kind"), [("sim", SimDriver), ("http", HttpDriver)])
    def test_the_settings_choose_the_driver(self, chosen: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
        from models.kernel.settings import load

        monkeypatch.setattr(registry, "settings", lambda: load({"ORCHESTRATOR_DRIVER": chosen}))
        registry.driver.cache_clear()
        try:
            assert isinstance(registry.driver(), kind)
            assert registry.driver() is registry.driver()
        finally:
            registry.driver.cache_clear()
