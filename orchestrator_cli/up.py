"""`orchestrator up`: everything from nothing to ready, and back to nothing on Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from models.kernel.settings import Settings, load
from orchestrator_cli import checks, leftovers, procfile, readiness, supervise
from orchestrator_cli.addresses import base_url
from orchestrator_cli.embedded.postgres import Postgres
from orchestrator_cli.embedded.valkey import Valkey
from orchestrator_cli.errors import CannotStart
from orchestrator_cli.home import Home
from orchestrator_cli.migrate import ROOT
from orchestrator_cli.rotation import Rotation
from orchestrator_cli.screen import say, step
from orchestrator_cli.supervise import Program
from orchestrator_cli.supervisor import Supervisor

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SERVER_SECONDS = 30
WATCH_SECONDS = 1.0


@dataclass
class Run:
    """One run of the service: what was chosen, where it lives, which servers are its own."""

    chosen: Settings
    home: Home
    commands: dict[str, str]
    supervisor: Supervisor
    postgres: Postgres | None = None
    valkey: Valkey | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def database_url(self) -> str:
        return self.postgres.url() if self.postgres else self.chosen.database_url

    @property
    def broker_url(self) -> str:
        return self.valkey.url() if self.valkey else self.chosen.broker_url


def up(environ: Mapping[str, str], commands_from: Path = ROOT / "Procfile") -> None:
    """Start everything, watch it until a signal comes, stop everything.

    Raises InvalidSettings or CannotStart when the service cannot run here.
    """
    chosen = load(environ)
    home = Home.at(chosen.home)
    with ended_by_signals(), home.locked():
        run = Run(chosen, home, procfile.read(commands_from), Supervisor(home))
        try:
            bring_up(run, environ)
            summary(run)
            watch(run.supervisor)
        except KeyboardInterrupt:
            say()
        finally:
            bring_down(run.supervisor)
            home.address.unlink(missing_ok=True)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """A termination or a closed terminal ends the run as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in ENDINGS:
        signal.signal(number, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        say()
    finally:
        ignore_signals()


def ignore_signals() -> None:
    """The end is under way and has a deadline of its own: a second Ctrl-C changes nothing."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def bring_up(run: Run, environ: Mapping[str, str]) -> None:
    say(f"Orchestrator, home {run.home.directory}")
    with step("Checks") as current:
        leftovers.clear(run.home.members, patience=12)
        checks.ports(run.chosen)
        checks.robots(run.chosen)
        if "cpu" in run.commands:
            checks.engine()
        current.note(f"ports {run.chosen.port} and {run.chosen.flower_port} are free")
    run.home.address.write_text(f"{base_url(run.chosen, run.chosen.port)}\n")
    servers = prepare_servers(run)
    environment = environment_for(run, environ)
    os.environ.update(environment)
    with step("Supervisor") as current:
        programs = supervise.from_procfile(run.commands)
        run.supervisor.start(ROOT, [*servers, *programs], environment)
        wait_for_servers(run)
        current.note(" and ".join(program.name for program in servers) or "no embedded servers")
    prepare_data(run)
    with step("Processes") as current:
        run.supervisor.launch(programs)
        current.note(" ".join(run.commands))
    with step("Ready") as current:
        readiness.wait(run.supervisor, base_url(run.chosen, run.chosen.port), current)


def prepare_servers(run: Run) -> list[Program]:
    """Reach the servers that the settings name, get embedded ones ready for the rest."""
    programs = []
    with step("Postgres") as current:
        if run.chosen.database_url:
            current.note(checks.database(run.chosen.database_url))
        else:
            run.postgres = Postgres(run.home.directory / "postgres")
            current.note("embedded" if run.postgres.data.exists() else "embedded, making a new database")
            run.postgres.prepare()
            programs.append(
                supervise.server("postgres", run.postgres.command(), supervise.DATABASE, run.postgres.ending)
            )
    with step("Valkey") as current:
        if run.chosen.broker_url:
            current.note(checks.broker(run.chosen.broker_url))
        else:
            run.valkey = Valkey(run.home.directory / "valkey")
            run.valkey.prepare()
            current.note("embedded")
            programs.append(supervise.server("valkey", run.valkey.command(), supervise.BROKER, run.valkey.ending))
    return programs


def wait_for_servers(run: Run) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    for server in (run.postgres, run.valkey):
        if server is not None:
            try:
                server.wait_ready(deadline)
            except CannotStart:
                readiness.explain(run.supervisor)
                raise


def environment_for(run: Run, environ: Mapping[str, str]) -> dict[str, str]:
    """What every process is told: resolved addresses, and this environment's programs first."""
    programs = str(Path(sys.executable).parent)
    return {
        **environ,
        "DATABASE_URL": run.database_url,
        "BROKER_URL": run.broker_url,
        "ORCHESTRATOR_HOME": str(run.home.directory),
        "PORT": str(run.chosen.port),
        "FLOWER_PORT": str(run.chosen.flower_port),
        "PATH": os.pathsep.join([programs, environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }


def prepare_data(run: Run) -> None:
    """Schema and credential. Imported here: their modules read settings that are only complete now."""
    from orchestrator_cli import admin, migrate

    with step("Migrations"):
        migrate.upgrade(run.database_url)
    with step("Admin token") as current:
        current.note(admin.ensure_token(run.home))


def summary(run: Run) -> None:
    api = base_url(run.chosen, run.chosen.port)
    token = shlex.quote(str(run.home.token))
    say()
    say(f"Ready in {time.monotonic() - run.started:.1f} s.")
    say(f"  API      {api}")
    say(f"  Docs     {api}/docs")
    say(f"  Flower   {base_url(run.chosen, run.chosen.flower_port)}")
    say(f"  Token    {run.home.token}  (send it as: Authorization: Bearer ...)")
    say(f"  Logs     {run.home.logs}")
    say()
    say(f'  curl -H "Authorization: Bearer $(cat {token})" {api}/tickets')
    say()
    say("Ctrl-C stops everything; the data stays.")


def watch(supervisor: Supervisor) -> None:
    """Say when a process was started again, and keep the logs small; return never, unless the supervisor itself ends.

    Raises CannotStart when it does.
    """
    rotation = Rotation(tell=lambda text: say(f"  {text}"))
    starts = {name: info["start"] for name, info in supervisor.states().items()}
    while not supervisor.has_ended():
        time.sleep(WATCH_SECONDS)
        states = supervisor.states()
        rotation.look(map(supervisor.home.log, states))
        for name, info in states.items():
            if info["statename"] == "RUNNING" and info["start"] != starts.get(name):
                starts[name] = info["start"]
                say(f"  {name} had ended and was started again (process {info['pid']})")
    reason = f": {supervisor.said[-1]}" if supervisor.said else ""
    raise CannotStart(f"the supervisor ended unexpectedly{reason}", next_step=f"see {supervisor.home.logs}")


def bring_down(supervisor: Supervisor) -> None:
    ignore_signals()
    if supervisor.process is None:
        return
    with step("Stopping") as current:
        forced = supervisor.stop()
        current.note(f"{forced} processes had to be ended by force" if forced else "nothing is left running")
