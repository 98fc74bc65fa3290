"""The host: whatever an engine does, its call gets an answer in time, and nothing of it is left."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from models.engine.snapshots import FIELDS, MISSING
from models.kernel.errors import InvalidSettings
from models.kernel.settings import settings
from orchestrator_tasks.engine import host, hosts
from orchestrator_tasks.engine.adapter import Engine
from orchestrator_tasks.engine.hosts import Interrupt, Interrupted, call_engine, check_engine, close_host
from tests.service.waiting import eventually

AT = 180_000
MEMORY_MB = 128
SOON = 0.5  # seconds that an engine has which will not answer
LONG = 30.0


@pytest.fixture(autouse=True)
def wild(environment: pytest.MonkeyPatch) -> Iterator[None]:
    environment.setenv("ENGINE_MODULE", "tests.engine.wild")
    settings.cache_clear()
    yield
    close_host()


def request(symbol: str, path: Path | None = None, mode: str = "truth") -> dict[str, Any]:
    parts = {part: dict.fromkeys(names, MISSING) for part, names in FIELDS.items()}
    parts["market"]["structure_levels"] = {"path": str(path)}
    return {"mode": mode, "input": {"symbol": symbol, "timestamp": AT, **parts}, "state": None, "config": None}


def call(symbol: str, timeout: float = LONG, path: Path | None = None, interrupt: Interrupt | None = None) -> Any:
    return call_engine(request(symbol, path), timeout, MEMORY_MB, interrupt)


def drivers(symbol: str) -> list[str]:
    return list(call(symbol)["ok"]["regime_output"]["drivers"])


def host_pid() -> int:
    assert hosts.caller.host is not None
    return hosts.caller.host.process.pid


def is_running(pid: int) -> bool:
    """Whether it lives; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def noted(path: Path) -> list[int]:
    """The numbers of the engine's process and of its parent, once it has said them."""
    eventually(path.exists, within=LONG, what="the engine runs")
    return [int(word) for word in path.read_text().split()]


WAITS = """
import os
from orchestrator_tasks.engine.host import own_input
control = own_input()
print(os.get_blocking(control.fileno()))
"""


def test_a_host_waits_for_its_call_also_when_its_caller_s_sockets_do_not_wait() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(LONG)  # as every socket of beat has, by the default that Celery sets there
        said = subprocess.run([sys.executable, "-c", WAITS], stdin=far, stderr=subprocess.PIPE, text=True, check=True)
    assert said.stderr.strip() == "True"


def test_a_call_is_answered_with_what_the_engine_says() -> None:
    assert call("calm") == {
        "ok": {
            "regime_output": {
                "symbol": "calm",
                "timestamp": AT,
                "regime": "CHOP_BALANCED",
                "confidence": 1.0,
                "drivers": ["calm"],
                "invalidations": [],
                "permissions": [],
            }
        }
    }


def test_a_call_finds_nothing_that_the_one_before_has_left() -> None:
    answers = [call("calm") for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["ok"]["regime_output"]["confidence"] == 1.0  # its first call, each time


def test_a_rehearsal_goes_the_whole_way_of_a_call() -> None:
    assert orjson.loads(host.rehearse())["ok"]["regime_output"]["symbol"] == "X"


def test_the_host_imports_the_engine_once_and_lives_on() -> None:
    call("calm")
    first = host_pid()
    assert "error_kind" in call("aborts")
    call("calm")
    assert host_pid() == first


@pytest.mark.parametrize(
    ("symbol", "detail"),
    [
        ("raises", "ValueError: it is wrong in <object object at 0x...> and ? more ?"),
        ("exits", "SystemExit: 3"),
        ("is interrupted", "KeyboardInterrupt"),
        ("ends", "the engine ended its process with status 0"),
        ("ends badly", "the engine ended its process with status 7"),
        ("aborts", "the engine's process was ended by SIGABRT"),
        ("breaks memory", "the engine's process was ended by SIGSEGV"),
        ("kills itself", "the engine's process was ended by SIGKILL"),
        ("kills its host", "the engine ended its host"),
        ("grows", "MemoryError"),
        ("asks for all memory", "MemoryError"),
        ("says too much", "what the engine answered is larger than 4194304 bytes"),
        ("closes everything", "the engine ended its process with status 1"),
        ("no such act", "KeyError: 'no such act'"),
    ],
)
def test_an_engine_that_fails_gives_its_call_a_failure_and_the_next_call_a_fresh_start(
    symbol: str, detail: str
) -> None:
    assert call(symbol) == {"error_kind": "engine_failure", "error_detail": detail}
    assert "ok" in call("calm")


def test_an_engine_that_recurses_without_end_fails() -> None:
    failed = call("recurses")
    assert failed["error_kind"] == "engine_failure"
    assert failed["error_detail"].startswith("RecursionError: maximum recursion depth exceeded")


@pytest.mark.parametrize("symbol", ["loops", "loops unsignalled", "counts for ever", "matches for ever"])
def test_an_engine_that_never_ends_is_killed_at_its_deadline(symbol: str) -> None:
    call("calm")
    first = host_pid()
    assert call(symbol, SOON) == {
        "error_kind": "engine_timeout",
        "error_detail": "the engine did not answer within its time",
    }
    assert "ok" in call("calm")
    assert host_pid() == first


def test_a_host_that_hangs_is_killed_with_its_engine_and_made_anew(tmp_path: Path) -> None:
    failed = call("stops its host", SOON, tmp_path / "pid")
    assert failed["error_kind"] == "engine_timeout"
    pids = noted(tmp_path / "pid")
    # the engine's child is ended by the kernel, a moment after the host that it belongs to
    eventually(lambda: not any(map(is_running, pids)), within=LONG, what="host and engine have ended")
    assert "ok" in call("calm")


def test_a_host_that_was_killed_between_two_calls_is_made_anew() -> None:
    call("calm")
    os.kill(host_pid(), signal.SIGKILL)
    eventually(lambda: hosts.caller.host.process.poll() is not None, within=LONG, what="the host has ended")  # type: ignore[union-attr]
    assert "ok" in call("calm")


def test_threads_of_a_call_end_with_it() -> None:
    for _ in range(2):
        assert drivers("leaves a thread") == ["2 threads"]


@pytest.mark.parametrize("symbol", ["leaves a process", "ends before its process"])
def test_processes_of_a_call_end_with_it_even_in_sessions_of_their_own(symbol: str, tmp_path: Path) -> None:
    call(symbol, path=tmp_path / "pid")
    left = noted(tmp_path / "pid")[0]
    eventually(lambda: not is_running(left), within=LONG, what="the engine's own process has ended")
    assert "ok" in call("calm")


def test_a_process_that_is_left_behind_does_not_hold_up_the_answer(tmp_path: Path) -> None:
    assert call("ends before its process", path=tmp_path / "pid")["error_detail"] == (
        "the engine ended its process with status 0"
    )


def test_a_child_that_answers_and_ends_while_it_is_looked_for_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """`poll` looks at one descriptor after the other: the answer may come just behind its look, and the end before."""
    real = select.poll

    class Unlucky:
        def __init__(self) -> None:
            self.poll_all, self.late = real(), 0

        def register(self, end: socket.socket, events: int) -> None:
            self.late = end.fileno() if end is connection else self.late
            self.poll_all.register(end, events)

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
            return [found for found in self.poll_all.poll(milliseconds) if found[0] != self.late]

    ours, theirs = socket.socketpair()
    before = signal.getsignal(signal.SIGCHLD)
    serving = host.Host(Engine.load("tests.engine.wild"), ours)
    child, connection = serving.fork()
    monkeypatch.setattr(select, "poll", Unlucky)
    asked = orjson.dumps({"request": request("calm"), "timeout_seconds": LONG, "memory_mb": MEMORY_MB})
    found = serving.carried_out(asked, child, connection)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, before)
    os.waitpid(child, 0)
    for end in (ours, theirs, connection, serving.ended, serving.ending):
        end.close()
    assert "ok" in orjson.loads(found)


def test_what_the_engine_prints_goes_to_the_log_and_not_into_the_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert drivers("prints") == ["calm"]
    said = capfd.readouterr()
    assert said.out == ""
    assert set(said.err.splitlines()) >= {
        "printed by the engine",
        "written by the engine",
        "complained by the engine",
    }


def test_an_engine_that_writes_to_every_descriptor_fails_alone() -> None:
    assert call("writes everywhere", SOON)["error_kind"] in {"engine_failure", "engine_timeout"}
    assert "ok" in call("calm")


def test_the_engine_knows_no_database_and_no_broker(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DATABASE_URL", "postgresql://me:hunter2@nowhere/db")
    environment.setenv("JWT_SECRET_KEY", "s" * 32)
    settings.cache_clear()
    known = drivers("environment")
    assert set(known) <= {*hosts.PASSED_ON, *hosts.SAME_EVERYWHERE, "LC_CTYPE"}


def test_the_engine_has_no_descriptor_of_ours_but_that_of_its_answer() -> None:
    nothing, count = drivers("descriptors")
    assert nothing == "/dev/null"
    assert int(count) == 5  # three, its answer's, and the one that lists them


def test_the_order_of_a_set_is_the_same_in_every_host() -> None:
    first = drivers("a set")
    close_host()
    assert drivers("a set") == first


def test_a_crash_leaves_no_core_file() -> None:
    assert drivers("core") == ["(0, 0)"]


def test_hysteresis_goes_the_same_way() -> None:
    found = call_engine(request("calm", mode="hysteresis"), LONG, MEMORY_MB)
    assert found["ok"]["state"] is None
    assert found["ok"]["hysteresis_decision"]["selected_output"] == found["ok"]["regime_output"]


def test_an_interrupt_ends_the_call_at_once_and_all_of_it(tmp_path: Path) -> None:
    interrupt, path = Interrupt(), tmp_path / "pid"
    threading.Thread(target=lambda: (noted(path), interrupt.set("lease_lost"), interrupt.set("shutdown"))).start()
    with pytest.raises(Interrupted) as ended:
        call("waits", LONG, path, interrupt)
    assert ended.value.reason == "lease_lost"
    assert not any(is_running(pid) for pid in noted(path))
    assert "ok" in call("calm")


def test_a_call_that_was_interrupted_before_it_began_does_not_begin(tmp_path: Path) -> None:
    interrupt = Interrupt()
    interrupt.set("shutdown")
    with pytest.raises(Interrupted):
        call("marks", LONG, tmp_path / "pid", interrupt)
    assert "ok" in call("calm")
    assert not (tmp_path / "pid").exists()


def test_an_interrupt_after_the_call_ends_nothing() -> None:
    interrupt = Interrupt()
    assert "ok" in call("calm", interrupt=interrupt)
    before = host_pid()
    interrupt.set("shutdown")
    assert "ok" in call("calm")
    assert host_pid() == before


def test_a_call_that_its_own_thread_leaves_early_answers_nobody_else(tmp_path: Path) -> None:
    class Leave(Exception):
        """What a signal's handler raises into the call."""

    def leave(*_: object) -> None:
        raise Leave

    path = tmp_path / "pid"
    before = signal.signal(signal.SIGUSR1, leave)
    threading.Thread(target=lambda: (noted(path), os.kill(os.getpid(), signal.SIGUSR1))).start()
    with pytest.raises(Leave):
        call("waits", LONG, path)
    signal.signal(signal.SIGUSR1, before)
    assert not any(is_running(pid) for pid in noted(path))
    assert call("calm")["ok"]["regime_output"]["symbol"] == "calm"


CALLER = """
from pathlib import Path
from tests.engine.test_host import call
call("waits", 600, Path({path!r}))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_host_and_engine_end_with_the_process_that_called(number: int, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    caller = subprocess.Popen([sys.executable, "-c", CALLER.format(path=str(path))])
    engine, parent = noted(path)
    caller.send_signal(number)
    caller.wait(LONG)
    eventually(lambda: not is_running(engine) and not is_running(parent), within=LONG, what="both have ended")


def test_it_works_in_daemonic_processes_and_each_has_a_host_of_its_own(tmp_path: Path) -> None:
    """Celery's pool is made of such: they may have no children by multiprocessing."""
    call("marks", path=tmp_path / "ours")
    workers = [
        multiprocessing.get_context("fork").Process(target=call, args=("marks", LONG, tmp_path / name), daemon=True)
        for name in ("one", "two")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LONG)
        assert worker.exitcode == 0
    parents = {noted(tmp_path / name)[1] for name in ("ours", "one", "two")}
    assert len(parents) == 3
    assert "ok" in call("calm")


def test_calls_of_several_threads_come_one_after_another() -> None:
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(call("calm"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert answers == [answers[0]] * 8


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("", "it has no function run; an engine has run and run_with_hysteresis"),
        ("import nothing_like_it", "it cannot be imported: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("raise RuntimeError('not today')", "it cannot be imported: RuntimeError: not today"),
        ("raise SystemExit", "it cannot be imported: SystemExit"),
    ],
)
def test_an_engine_that_cannot_be_loaded_is_a_failure_that_says_what_to_do(
    source: str, detail: str, with_module: Callable[[str], None]
) -> None:
    with_module(source)
    expected = f"ENGINE_MODULE=made_up: {detail}"
    assert call("calm") == {"error_kind": "engine_failure", "error_detail": expected}
    with pytest.raises(InvalidSettings) as refused:
        check_engine()
    assert refused.value.message == expected


def test_an_engine_that_ends_the_process_that_imports_it_is_a_failure(with_module: Callable[[str], None]) -> None:
    with_module("import os; os._exit(0)")
    assert call("calm")["error_detail"] == "the engine ended the process that imported it"


def test_an_engine_whose_import_never_ends_is_given_up(
    with_module: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_module("while True: pass")
    monkeypatch.setattr(hosts, "START_SECONDS", SOON)
    monkeypatch.setattr(hosts, "GRACE_SECONDS", SOON)
    assert call("calm")["error_kind"] == "engine_timeout"


def test_a_configuration_is_checked_as_the_engine_will_read_it() -> None:
    check_engine({"min_persistence_updates": 5})
    with pytest.raises(InvalidSettings, match="HysteresisConfig has no field min_updates"):
        check_engine({"min_updates": 5})


@pytest.fixture
def with_module(tmp_path: Path, environment: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes an engine of this source the one that is called."""

    def make(source: str) -> None:
        (tmp_path / "made_up.py").write_text(source)
        environment.setenv("PYTHONPATH", str(tmp_path))
        environment.setenv("ENGINE_MODULE", "made_up")
        settings.cache_clear()

    return make
