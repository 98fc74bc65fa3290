"""Where a running service keeps its things, and who may run on it.

home/
  admin.token        the operator's credential, mode 0600
  postgres/ valkey/  the embedded servers' data
  logs/              one file for each process, which writes it itself; rotated
  run/               lock, address, members, scripts and the supervisor's configuration
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator_cli.errors import CannotStart

SOCKET_DIRECTORY_LIMIT = 80
"""A unix socket's whole path has 107 bytes; the rest is for file names that others choose."""

PLAIN = re.compile(r"[A-Za-z0-9/._-]+")


def make_directory(path: Path, mode: int = 0o700) -> Path:
    """Create what is missing; one clear line when the place does not allow it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable", str(path))
    except OSError as error:
        raise CannotStart(
            f"{path} cannot be used: {error.strerror}", next_step="set ORCHESTRATOR_HOME to a directory of your own"
        ) from None
    return path


def socket_directory(directory: Path) -> Path:
    """A private directory for unix sockets: inside `directory`, or short under /tmp when that is deep or odd.

    Odd means a character that would need quoting in a URL. The name under /tmp follows
    from the path, so every process of one home finds the same place.
    """
    inside = directory / "sockets"
    if len(os.fsencode(inside)) <= SOCKET_DIRECTORY_LIMIT and PLAIN.fullmatch(str(inside)):
        return make_directory(inside)
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return private(Path(tempfile.gettempdir()), f"orchestrator-{os.geteuid()}-{digest}")


def release_sockets(directory: Path) -> None:
    """Remove the short directory under /tmp once its servers are gone; what is inside the home stays."""
    path = socket_directory(directory)
    if path.parent != directory:
        with contextlib.suppress(OSError):
            path.rmdir()


def private(parent: Path, name: str) -> Path:
    """A directory that only we can have made, though anybody may write to its parent."""
    if len(os.fsencode(parent)) > SOCKET_DIRECTORY_LIMIT - len(name) - 1 or not PLAIN.fullmatch(str(parent)):
        parent = Path("/tmp")  # noqa: S108 - the directory below is checked to be ours and closed to others
    path = parent / name
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    ours = {0, 65534} if os.geteuid() == 0 else {os.geteuid()}  # root hands the directory to whom Postgres runs as
    if path.is_symlink() or not path.is_dir() or (found.st_mode & 0o077) or found.st_uid not in ours:
        raise CannotStart(f"{path} belongs to somebody else", next_step="set ORCHESTRATOR_HOME to a shorter path")
    return path


@dataclass(frozen=True)
class Home:
    """The directory named by ORCHESTRATOR_HOME."""

    directory: Path

    @classmethod
    def at(cls, path: Path) -> Home:
        """Absolute, so that every process agrees on it wherever it runs."""
        return cls(Path(os.path.abspath(path)))

    def prepare(self) -> None:
        # A server that may not run as root has to pass through; what is inside is closed one by one.
        make_directory(self.directory, 0o711 if os.geteuid() == 0 else 0o700)
        for directory in (self.run, self.logs):
            make_directory(directory)

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    def log(self, program: str) -> Path:
        return self.logs / f"{program}.log"

    @property
    def members(self) -> Path:
        """The file that every process of this home keeps open."""
        return self.run / "members"

    @property
    def socket_owners(self) -> tuple[Path, ...]:
        """The directories of this home that have a place for sockets."""
        servers = (self.directory / "postgres", self.directory / "valkey")
        return (self.run, *(directory for directory in servers if directory.exists()))

    @property
    def address(self) -> Path:
        """The file that says where the service which runs on this home answers."""
        return self.run / "address"

    @property
    def token(self) -> Path:
        return self.directory / "admin.token"

    @property
    def supervisor_socket(self) -> Path:
        return socket_directory(self.run) / "supervisor.sock"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One service on one home at a time; the lock ends with this process, however it ends."""
        self.prepare()
        descriptor = os.open(self.run / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._take(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "another process"
            raise CannotStart(
                f"Orchestrator already runs on {self.directory} (process {holder})",
                next_step="stop it first, or set ORCHESTRATOR_HOME to another directory",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
