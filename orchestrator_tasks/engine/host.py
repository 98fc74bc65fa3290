"""The engine's host: `python -m orchestrator_tasks.engine.host MODULE PARENT`, which forks a child for each call.

It has one thread, no database and no broker. It imports the engine once, and each call begins from that same state:
whatever it leaves behind, in memory, threads or processes of its own, ends with it. The child has a bound on its
memory, the host holds it to its deadline and kills it, and both end when the process that calls is gone.

Frames go over the socket that is standard input: eight bytes of length, then JSON. What the engine prints goes to
standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import orjson

from models.engine.canonical import canonical
from models.engine.snapshots import MISSING, engine_input
from models.kernel import clock
from models.kernel.errors import InvalidSettings
from orchestrator_tasks.engine.adapter import TRUTH, Engine, Snapshot, Store, answer
from orchestrator_tasks.engine.checks import EngineFailed

TIMEOUT = "engine_timeout"
LENGTH = struct.Struct("!Q")
LARGEST_ANSWER = 4 * 2**20  # bytes
LIBC = ctypes.CDLL(None)
REHEARSALS = 12  # until Python has nothing more to find out about it
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36
PARENT_FIELD, SESSION_FIELD = 1, 3


class Gone(Exception):
    """The other end is closed: whoever called has ended, or wants the call no more."""


def read_frame(connection: socket.socket) -> bytes:
    """One whole frame; raises Gone."""
    (length,) = LENGTH.unpack(read_exactly(connection, LENGTH.size))
    return read_exactly(connection, length)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise Gone
        data += part
    return bytes(data)


def frame(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


def failure(kind: str, detail: str) -> bytes:
    return orjson.dumps({"error_kind": kind, "error_detail": detail})


def prctl(option: int, value: int) -> None:
    """Linux alone has it; elsewhere the closed socket has to do."""
    with contextlib.suppress(AttributeError):
        LIBC.prctl(option, value, 0, 0, 0)


def die_with(parent: int) -> None:
    """Be killed when the thread that made this process ends; `parent` may have ended before it was said."""
    prctl(SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def kill(process: int) -> None:
    """The process and the group that it leads, where there are such."""
    for act in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            act(process, signal.SIGKILL)


def kill_where(field: int, value: int) -> None:
    """Kill every process with this value in this field of its /proc/PID/stat, counted after its name."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[field]) == value:
                kill(int(status.parent.name))


# --- the child -------------------------------------------------------------------------------------------------------


def bound_memory(megabytes: int) -> None:
    """So much beyond what is mapped already; without /proc there is no telling what that is, and so no bound."""
    with contextlib.suppress(OSError), Path("/proc/self/statm").open("rb", 0) as mapped:
        limit = int(mapped.read().split()[0]) * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def live(engine: Engine, host: socket.socket) -> None:
    """The child's whole life: wait for a call, carry it out, say what came of it. It does not return."""
    try:
        rehearse()
        call = orjson.loads(read_frame(host))
        bound_memory(call["memory_mb"])
        host.sendall(frame(encoded(answer(engine, call["request"]))))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:  # not even its failure could be told, for want of memory
        os._exit(1)
    finally:
        os._exit(0)


def rehearse() -> bytes:
    """Touch the memory that our own part of a call writes to, so that it is copied before somebody waits."""
    given = engine_input('{"symbol": "X", "normalized": {"market": {"price": 1.5}, "flow": {"cvd": null}}}', 0)
    output = {"symbol": "X", "timestamp": 0, "regime": "X", "confidence": 0.5}
    lists: dict[str, list[str]] = {"drivers": ["x"], "invalidations": [], "permissions": []}
    stub = Engine(lambda _: output | lists, print, Snapshot, Store, Any, None, MISSING)
    return encoded(answer(stub, {"mode": TRUTH, "input": given}))


def encoded(found: dict[str, Any]) -> bytes:
    body = canonical(found).encode()
    if len(body) > LARGEST_ANSWER:
        return failure(EngineFailed.code, f"what the engine answered is larger than {LARGEST_ANSWER} bytes")
    return body


# --- the host --------------------------------------------------------------------------------------------------------


class Host:
    """Serves one caller over `control` until it is gone. The child for the next call is always forked already."""

    def __init__(self, engine: Engine, control: socket.socket) -> None:
        self.engine = engine
        self.control = control
        self.ended, self.ending = socket.socketpair()  # `ended` is readable when a child has ended
        for end in (self.ended, self.ending):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.ending.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        """Calls, one after another; raises Gone."""
        while True:
            child, connection = self.fork()
            try:
                with connection:
                    call = read_frame(self.control)
                    self.control.sendall(frame(self.carried_out(call, child, connection)))
            finally:
                kill(child)
                sweep(child)

    def fork(self) -> tuple[int, socket.socket]:
        """A child, which waits for its call at the other end."""
        host = os.getpid()
        connection, theirs = socket.socketpair()
        with theirs:
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)
                die_with(host)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (self.control, self.ended, self.ending, connection):
                    end.close()
                live(self.engine, theirs)
        with contextlib.suppress(OSError):  # the child says it as well: whichever comes first
            os.setpgid(child, child)
        return child, connection

    def carried_out(self, call: bytes, child: int, connection: socket.socket) -> bytes:
        """The child's answer, or how it failed; raises Gone. Its processes are killed before anybody hears of it."""
        deadline = clock.monotonic() + orjson.loads(call)["timeout_seconds"]
        try:
            with contextlib.suppress(ConnectionError):  # then how it ended is the answer
                connection.sendall(frame(call))
            return self.waited_for(child, connection, deadline)
        finally:
            kill(child)

    def waited_for(self, child: int, connection: socket.socket, deadline: float) -> bytes:
        poll = select.poll()
        for end in (self.control, connection, self.ended):
            poll.register(end, select.POLLIN)
        received = bytearray()
        while (left := deadline - clock.monotonic()) > 0:
            ready = {number for number, _ in poll.poll(left * 1000 + 1)}
            if self.control.fileno() in ready:  # the caller says nothing during a call: it has closed
                raise Gone
            if connection.fileno() in ready and not receive(connection, received):
                poll.unregister(connection)
            if is_whole(received):
                return bytes(received[LENGTH.size :])
            if self.ended.fileno() in ready and (how := self.how_it_ended(child)):
                # it may have answered and ended since its answer was looked for
                return last_words(connection, received) or failure(EngineFailed.code, how)
        return failure(TIMEOUT, "the engine did not answer within its time")

    def how_it_ended(self, child: int) -> str:
        """Empty while it lives. It stays to be collected, so that its number is nobody else's."""
        with contextlib.suppress(BlockingIOError):
            self.ended.recv(4096)
        found = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return ""
        if found.si_code == os.CLD_EXITED:
            return f"the engine ended its process with status {found.si_status}"
        return f"the engine's process was ended by {signal.Signals(found.si_status).name}"


def receive(connection: socket.socket, received: bytearray) -> bool:
    """Take what has come, and no more than an answer may have; False at its end."""
    part = b""
    with contextlib.suppress(ConnectionError):
        if len(received) <= LENGTH.size + LARGEST_ANSWER:
            part = connection.recv(1 << 20)
    received += part
    return bool(part)


def last_words(connection: socket.socket, received: bytearray) -> bytes:
    """The answer of a child that has ended, if it had sent it whole; else nothing."""
    with contextlib.suppress(BlockingIOError):  # a process of its own still holds the other end
        connection.setblocking(False)
        while receive(connection, received):
            pass
    return bytes(received[LENGTH.size :]) if is_whole(received) else b""


def is_whole(received: bytearray) -> bool:
    return len(received) >= LENGTH.size and len(received) == LENGTH.size + LENGTH.unpack_from(received)[0]


def sweep(child: int) -> None:
    """Collect the killed child, and kill and collect whatever processes it has left to us."""
    os.waitpid(child, 0)
    while has_children():
        kill_where(PARENT_FIELD, os.getpid())


def has_children() -> bool:
    """Whether any live on; those that have ended are collected."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def own_input() -> socket.socket:
    """The socket that was standard input, where nothing that the engine reads or prints can reach it."""
    control = socket.socket(fileno=os.dup(0))
    control.setblocking(True)  # the caller's sockets may have a timeout by default, and then both ends came with it
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return control


def main() -> None:
    module, parent = sys.argv[1:]
    die_with(int(parent))  # while it imports what may never end; afterwards the closed socket tells, for any thread
    control = own_input()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(SET_CHILD_SUBREAPER, 1)
    try:
        engine = Engine.load(module)
    except InvalidSettings as error:
        control.sendall(frame(failure(EngineFailed.code, error.message)))
        return
    prctl(SET_PDEATHSIG, 0)
    control.sendall(frame(orjson.dumps({"engine_version": engine.version})))
    for _ in range(REHEARSALS):  # what is found out here, no child has to find out again
        rehearse()
    gc.collect()
    gc.freeze()  # the children share these pages for as long as nobody writes to them
    with contextlib.suppress(Gone, OSError):
        Host(engine, control).serve()


if __name__ == "__main__":
    main()
