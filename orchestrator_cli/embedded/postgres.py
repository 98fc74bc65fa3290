"""The embedded Postgres: durable, on a unix socket only, with a password all the same.

The password is needed because inside a user namespace every foreign uid looks like the
server's own, which would make peer authentication believe anybody.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
from functools import cached_property
from pathlib import Path

import psycopg2

from orchestrator_cli.embedded import identity, orphans
from orchestrator_cli.embedded.binaries import postgres_binary
from orchestrator_cli.embedded.server import Server
from orchestrator_cli.errors import CannotStart
from orchestrator_cli.home import make_directory, socket_directory, write_secret

ROLE = "orchestrator"
DATABASE = "orchestrator"
SOCKET = ".s.PGSQL.5432"

CONFIGURATION = """\
# Written anew at every start by orchestrator_cli/embedded/postgres.py.
listen_addresses = ''
unix_socket_directories = '{sockets}'
unix_socket_permissions = 0700
password_encryption = 'scram-sha-256'
max_connections = 200
shared_buffers = '256MB'
huge_pages = off
fsync = on
synchronous_commit = on
full_page_writes = on
max_wal_size = '2GB'
autovacuum_naptime = '10s'
log_destination = 'stderr'
logging_collector = off
log_line_prefix = '%m [%p] '
# An error's detail and its statement hold values, secrets among them; the service logs its own errors without.
log_error_verbosity = terse
log_min_error_statement = panic
log_checkpoints = off
timezone = 'UTC'
log_timezone = 'UTC'
"""
ACCESS = "local all all scram-sha-256\n"
FIRST_STATEMENTS = "ALTER ROLE {role} PASSWORD '{password}';\nCREATE DATABASE {database};\n"


class Postgres(Server):
    """One embedded Postgres whose data lies in `directory`."""

    name = "Postgres"

    # Fast shutdown: ends the sessions, writes a checkpoint. SIGTERM would wait for clients to leave.
    ending = signal.SIGINT

    @property
    def sockets(self) -> Path:
        return socket_directory(self.directory)

    @cached_property
    def identity(self) -> identity.Identity:
        return identity.choose(self.directory, postgres_binary("postgres"))

    def prepare(self) -> None:
        """Idempotent: a cluster exists, is configured, and nothing of an earlier run holds it."""
        make_directory(self.directory, 0o711)
        orphans.clear(self.data / "postmaster.pid", self.data, self.ending)
        for name in (SOCKET, SOCKET + ".lock"):
            (self.sockets / name).unlink(missing_ok=True)
        if not self.data.exists():
            self._create()
        self._refuse_another_version()
        (self.data / "postgresql.conf").write_text(CONFIGURATION.format(sockets=self.sockets))
        (self.data / "pg_hba.conf").write_text(ACCESS)
        for directory in (self.data, self.sockets):
            self.identity.own(directory)

    def _create(self) -> None:
        """Build the cluster beside its place and move it there, so that a half-made one is never used."""
        fresh = self.directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self.identity.own(fresh)
        password = secrets.token_urlsafe(24)
        write_secret(self.directory / "password", password)
        self._run([postgres_binary("initdb"), *self._initdb_options(fresh)])
        statements = FIRST_STATEMENTS.format(role=ROLE, password=password, database=DATABASE)
        self._run([postgres_binary("postgres"), "--single", "-D", str(fresh), "postgres"], statements)
        fresh.rename(self.data)

    @staticmethod
    def _initdb_options(directory: Path) -> list[str]:
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--encoding=UTF8"]
        return ["-D", str(directory), "-U", ROLE, "--auth=reject", *locale]

    def _run(self, command: list[str], statements: str = "") -> None:
        done = subprocess.run(
            [*self.identity.prefix, *command], input=statements, capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or "ERROR:" in done.stderr:
            reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise CannotStart(f"the database in {self.directory} could not be created: {reason}")

    def _refuse_another_version(self) -> None:
        wrote = (self.data / "PG_VERSION").read_text().strip()
        asked = subprocess.run([postgres_binary("postgres"), "--version"], capture_output=True, text=True, check=True)
        if asked.stdout.split()[-1].split(".")[0] != wrote:
            raise CannotStart(
                f"the data in {self.data} was written by Postgres {wrote}, this is {asked.stdout.strip()}",
                next_step="move it away to start anew, or carry it over with pg_dump",
            )

    def command(self) -> list[str]:
        return [*self.identity.prefix, postgres_binary("postgres"), "-D", str(self.data)]

    def url(self, database: str = DATABASE) -> str:
        password = (self.directory / "password").read_text().strip()
        return f"postgresql://{ROLE}:{password}@/{database}?host={self.sockets}"

    def answers(self) -> bool:
        try:
            psycopg2.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True
