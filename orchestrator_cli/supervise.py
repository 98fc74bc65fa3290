"""Turns programs into a configuration for supervisord.

Stopping has an order, and supervisord itself keeps it, so that it holds as well when
`up` is killed and can no longer say anything: each tier is a group, groups stop one
after the other from the highest priority down, a group's programs together. First the
web, so that no new work comes in; then what hands work out; then the workers, who
finish what they have, and Flower, which only watches; last the servers that remember it.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator_cli import leash, sweep
from orchestrator_cli.errors import CannotStart
from orchestrator_cli.home import Home, write_secret


@dataclass(frozen=True)
class Tier:
    """Programs that stop together: when (higher is sooner), and how long they may take."""

    name: str
    priority: int
    patience: int


# The patiences add up to less than the ten seconds within which Ctrl-C has to be done.
WEB = Tier("web", 60, 3)
CLOCKS = Tier("clocks", 50, 1)
WORKERS = Tier("workers", 40, 3)
BROKER = Tier("broker", 20, 1)
DATABASE = Tier("database", 10, 1)

TIERS = {"web": WEB, "dispatcher": CLOCKS, "guardian": CLOCKS, "beat": CLOCKS, "flower": WORKERS}

SUPERVISORD = """\
; Written anew at every start from the Procfile by orchestrator_cli/supervise.py.
[supervisord]
nodaemon = true
silent = true
{user}logfile = logs/supervisord.log
logfile_maxbytes = 5MB
logfile_backups = 1
pidfile = run/supervisord.pid
childlogdir = logs

[unix_http_server]
file = {socket}
username = orchestrator
password = {password}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[eventlistener:sweep]
command = /bin/sh run/sweep.sh
events = PROCESS_STATE_EXITED, PROCESS_STATE_STOPPED
priority = 1
stdout_logfile = NONE
stderr_logfile = logs/sweep.log
startretries = 1000000
"""

GROUP = """
[group:{name}]
programs = {programs}
priority = {priority}
"""

# stopasgroup stays off: a worker's own children must finish what they have, not be told to stop.
PROGRAM = """
[program:{name}]
command = /bin/sh run/{name}.sh
autostart = {autostart}
autorestart = true
startsecs = 1
startretries = 1000000
stopsignal = {stopsignal}
stopwaitsecs = {patience}
killasgroup = true
redirect_stderr = true
stdout_logfile = logs/{name}.log
stdout_logfile_maxbytes = 0
"""

# What a program logs, to stderr, it writes into its log itself: through supervisord each line would wake it. What it
# prints goes through supervisord all the same, which takes it on a full disk too, where a print that fails would end a
# Celery worker; and the end of that pipe is how supervisord hears at once that the program has ended.
SCRIPT = """\
#!/bin/sh
exec 2>> {log}
cd {root} || exit 1
exec {leash} {command}
"""


@dataclass(frozen=True)
class Program:
    """One process to keep alive: a shell command, its tier, and the signal that ends it well."""

    name: str
    command: str
    tier: Tier
    ending: signal.Signals = signal.SIGTERM
    autostart: bool = False

    @property
    def address(self) -> str:
        """Its name in supervisord's RPC."""
        return f"{self.tier.name}:{self.name}"


def from_procfile(commands: dict[str, str]) -> list[Program]:
    """A process whose name has no tier of its own is a worker."""
    return [Program(name, command, TIERS.get(name, WORKERS)) for name, command in commands.items()]


def server(name: str, argv: list[str], tier: Tier, ending: signal.Signals) -> Program:
    return Program(name, shlex.join(argv), tier, ending, autostart=True)


def write(home: Home, root: Path, programs: list[Program]) -> str:
    """Write the configuration and one script for each program; returns the RPC password.

    Raises CannotStart where a program could not write its log: it would end without a word.

    All names in it are relative to the home, and commands stand in scripts, so that neither a
    path nor a command has to survive supervisord's own quoting and comments.
    """
    password = secrets.token_hex(16)
    for program in programs:
        try_log(home.log(program.name))
        prefix = shlex.join(leash.prefix(program.ending, str(home.members)))
        log = shlex.quote(str(home.log(program.name)))
        script = SCRIPT.format(log=log, root=shlex.quote(str(root)), leash=prefix, command=program.command)
        (home.run / f"{program.name}.sh").write_text(script)
    sweeper = [sys.executable, "-I", "-S", sweep.__file__]
    listener = shlex.join([*leash.prefix(signal.SIGTERM, str(home.members)), *sweeper])
    (home.run / "sweep.sh").write_text(f"#!/bin/sh\nexec {listener}\n")
    write_secret(home.run / "supervisord.conf", configuration(home, programs, password))
    return password


def try_log(path: Path) -> None:
    try:
        path.open("ab").close()
    except OSError as error:
        raise CannotStart(
            f"the log {path} cannot be written: {error.strerror}",
            next_step="let this user write it, or set ORCHESTRATOR_HOME to another directory",
        ) from None


def configuration(home: Home, programs: list[Program], password: str) -> str:
    user = "user = 0\n" if os.geteuid() == 0 else ""  # said aloud, or supervisord warns about root
    parts = [SUPERVISORD.format(user=user, socket=home.supervisor_socket, password=password)]
    for tier in sorted({program.tier for program in programs}, key=lambda tier: tier.priority):
        members = [program for program in programs if program.tier == tier]
        names = ",".join(program.name for program in members)
        parts.append(GROUP.format(name=tier.name, programs=names, priority=tier.priority))
        parts.extend(section(program) for program in members)
    return "".join(parts)


def section(program: Program) -> str:
    return PROGRAM.format(
        name=program.name,
        autostart=str(program.autostart).lower(),
        stopsignal=program.ending.name.removeprefix("SIG"),
        patience=program.tier.patience,
    )
