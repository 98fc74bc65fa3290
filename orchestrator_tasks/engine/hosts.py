"""Calling the engine: one host for each process that calls, made on first use and made anew once it has failed.

    OrchestratorError
    └── Interrupted     the call was ended from outside, for a reason

A host is a child of its caller and ends with it, whichever way that ends.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from models.kernel.errors import InvalidSettings, OrchestratorError, Unavailable
from models.kernel.settings import inherited, settings
from orchestrator_tasks.engine.adapter import CHECK
from orchestrator_tasks.engine.checks import EngineFailed
from orchestrator_tasks.engine.host import SESSION_FIELD, TIMEOUT, Gone, frame, kill, kill_where, read_frame

log = logging.getLogger(__name__)

START_SECONDS = 30.0  # of importing the engine
GRACE_SECONDS = 2.0  # beyond a call's own time, after which its host is given up
CHECK_MEMORY_MB = 512

PASSED_ON = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "SYSTEMROOT")
SAME_EVERYWHERE = {
    "PYTHONHASHSEED": "0",  # sets of texts have one order in all processes
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "OMP_NUM_THREADS": "1",  # sums have one order, and a fork finds no other threads
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class Interrupted(OrchestratorError):
    """The call was ended from outside; `reason` says why."""

    code = "interrupted"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the call was ended: {reason}", code=reason)
        self.reason = reason


class Interrupt:
    """A reason to end a call, set by another thread. The first reason stays."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reason: str | None = None
        self.listener: Callable[[], None] | None = None

    def set(self, reason: str) -> None:
        with self.lock:
            self.reason = self.reason or reason
            if self.listener:
                self.listener()

    @contextlib.contextmanager
    def ending(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` once there is a reason, for the length of the block; it must not wait."""
        with self.lock:
            self.listener = listener
            if self.reason:
                listener()
        try:
            yield
        finally:
            with self.lock:
                self.listener = None


class HostProcess:
    """A host and the socket to it."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "orchestrator_tasks.engine.host", module, str(os.getpid())]
        environment = inherited(*PASSED_ON) | SAME_EVERYWHERE
        with theirs:
            try:
                self.process = subprocess.Popen(  # noqa: S603 - this Python, and a module's name that was checked
                    command, stdin=theirs, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
                )
            except OSError as error:
                self.socket.close()
                raise Unavailable(f"The engine's host cannot be started: {error}") from error
        self.is_ready = False
        self.version: str | None = None

    def call(self, request: Mapping[str, Any], timeout_seconds: float, memory_mb: int) -> dict[str, Any]:
        """What `adapter.answer` says of it; raises Gone when the host has ended, TimeoutError when it hangs."""
        if not self.is_ready and (failed := self.started()):
            return failed
        call = {"request": request, "timeout_seconds": timeout_seconds, "memory_mb": memory_mb}
        self.socket.settimeout(timeout_seconds + GRACE_SECONDS)
        return self.exchange(frame(orjson.dumps(call)))

    def started(self) -> dict[str, Any]:
        """Wait until the engine is imported; says how it failed, if it did."""
        self.socket.settimeout(START_SECONDS)
        hello = self.exchange(b"")
        self.is_ready = "error_kind" not in hello
        self.version = hello.get("engine_version")
        return {} if self.is_ready else hello

    def exchange(self, data: bytes) -> dict[str, Any]:
        try:
            self.socket.sendall(data)
            found: dict[str, Any] = orjson.loads(read_frame(self.socket))
            return found
        except (ConnectionError, orjson.JSONDecodeError):
            raise Gone from None

    def give_up(self) -> None:
        """Let the host see that nobody waits for it any more; from any thread, at once."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Let it end its call and itself; one that does not is killed, with all its processes."""
        self.give_up()
        self.socket.close()
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            kill(self.process.pid)
            kill_where(SESSION_FIELD, self.process.pid)
            self.process.wait()

    def disown(self) -> None:
        """In a process forked from the one that it belongs to: it is none of ours."""
        self.socket.close()
        self.process.returncode = 0


class Caller:
    """The calls of this process: one at a time, to one host."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.host: HostProcess | None = None

    def call(self, request: Mapping[str, Any], timeout: float, memory_mb: int, interrupt: Interrupt) -> dict[str, Any]:
        with self.turn:
            host = self.live_host()
            try:
                with interrupt.ending(host.give_up):
                    found = host.call(request, timeout, memory_mb)
            except (Gone, OSError) as error:
                self.end_host()
                if interrupt.reason:
                    raise Interrupted(interrupt.reason) from None
                return named(host, how_it_failed(error, host))
            except BaseException:  # whoever asks next must not be given this call's answer
                self.end_host()
                raise
            if not host.is_ready:  # the engine cannot be loaded; perhaps it can the next time
                self.end_host()
            return named(host, found)

    def live_host(self) -> HostProcess:
        host = self.host
        if host and (host.module != settings().engine_module or host.process.poll() is not None):
            self.end_host()
        if self.host is None:
            self.host = HostProcess(settings().engine_module)
        return self.host

    def end_host(self) -> None:
        host, self.host = self.host, None
        if host is not None:
            host.end()


def named(host: HostProcess, found: dict[str, Any]) -> dict[str, Any]:
    """The answer with the version of the engine that gave it, or failed to, if it has one."""
    return found if host.version is None else {**found, "engine_version": host.version}


def how_it_failed(error: Exception, host: HostProcess) -> dict[str, Any]:
    status = host.process.returncode
    log.warning("the engine's host has failed and is made anew", extra={"status": status, "error": repr(error)})
    if isinstance(error, TimeoutError):
        said = (
            "the engine did not answer within its time" if host.is_ready else "the engine could not be imported in time"
        )
        return {"error_kind": TIMEOUT, "error_detail": said}
    said = "the engine ended its host" if host.is_ready else "the engine ended the process that imported it"
    return {"error_kind": EngineFailed.code, "error_detail": said}


caller = Caller()


def call_engine(
    request: Mapping[str, Any], timeout_seconds: float, memory_mb: int, interrupt: Interrupt | None = None
) -> dict[str, Any]:
    """One attempt: `{"ok": {...}}`, or `error_kind` and `error_detail`; see `adapter.answer` for both and the request.

    An engine that has a version is named by it, as `engine_version`.

    Raises Interrupted once `interrupt` has a reason (lease lost, shutdown), and Unavailable when no process
    can be started.
    """
    return caller.call(request, timeout_seconds, memory_mb, interrupt or Interrupt())


def check_engine(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Load the engine of ENGINE_MODULE as a worker does; answers its `version` and the `options` that it takes.

    `config` is its hysteresis configuration, which is checked as well. Raises InvalidSettings with what to do.
    """
    found = call_engine({"mode": CHECK, "config": dict(config or {})}, START_SECONDS, CHECK_MEMORY_MB)
    if "ok" not in found:
        raise InvalidSettings(found["error_detail"])
    said: dict[str, Any] = found["ok"]
    return said


def close_host() -> None:
    """End this process's host, if it has one; the next call makes another."""
    with caller.turn:
        caller.end_host()


def forget_host() -> None:
    """A forked process begins without a host: its parent's answers its parent."""
    global caller  # noqa: PLW0603 - the one of this process
    if caller.host is not None:
        caller.host.disown()
    caller = Caller()


atexit.register(close_host)
os.register_at_fork(after_in_child=forget_host)
