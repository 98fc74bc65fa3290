"""The `orchestrator` command."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from models.kernel.errors import InvalidSettings, OrchestratorError
from models.kernel.settings import variables
from orchestrator_cli.addresses import database_url
from orchestrator_cli.commands.clients import clients
from orchestrator_cli.commands.dead_letters import dead_letters
from orchestrator_cli.commands.doctor import doctor
from orchestrator_cli.commands.engine import engine
from orchestrator_cli.commands.estop import estop
from orchestrator_cli.commands.schedules import schedules
from orchestrator_cli.commands.tickets import tickets
from orchestrator_cli.errors import CANNOT, EXIT_CODES, INTERRUPTED, WRONG_USAGE, CommandFailed, WrongUsage
from orchestrator_cli.output import AS_JSON, printing, show, table


class PlainErrors(click.Group):
    """Whatever stops a command is said on stderr in a line or two, never by a traceback."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta[AS_JSON] = "--json" in args  # before they are understood, which may fail
        try:
            with in_plain_words():
                return super().parse_args(context, args)
        except WrongUsage as error:
            refuse(context, error, error.exit_code, error.next_step)

    def invoke(self, context: click.Context) -> Any:
        try:
            with in_plain_words():
                return super().invoke(context)
        except CommandFailed as error:
            refuse(context, error, error.exit_code, error.next_step, error.problem)
        except InvalidSettings as error:
            refuse(context, error, WRONG_USAGE, "`orchestrator settings` lists what can be set")
        except OrchestratorError as error:
            refuse(context, error, CANNOT)
        except BrokenPipeError:
            raise  # who read our output has left: click ends quietly
        except OSError as error:
            refuse(
                context, OrchestratorError(os_line(error), code="os_error"), CANNOT, BY_ERRNO.get(error.errno or 0, "")
            )
        except UnicodeError:
            refuse(context, OrchestratorError("an argument is not UTF-8 text", code="wrong_usage"), WRONG_USAGE)
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            sys.exit(INTERRUPTED)


@contextlib.contextmanager
def in_plain_words() -> Iterator[None]:
    """Words on the command line that click does not take are errors as any other. Raises WrongUsage."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise  # nothing was asked for: the help is shown
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "orchestrator"
        raise WrongUsage(error.format_message(), next_step=f"`{path} --help` says what it takes") from None


BY_ERRNO = {
    errno.ENOENT: "name a file that exists, to write to one in a folder that exists",
    errno.ENOTDIR: "name a file in a folder that exists",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOSPC: "make room, or name a file on another disk",
    errno.EACCES: "let this user read or write it, or name another file",
    errno.EROFS: "name a file on a disk that can be written to",
}


def os_line(error: OSError) -> str:
    """`day.jsonl: No such file or directory`."""
    said = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {said}" if isinstance(error.filename, str | bytes) else said


def refuse(
    context: click.Context,
    error: OrchestratorError,
    exit_code: int,
    next_step: str = "",
    problem: dict[str, Any] | None = None,
) -> NoReturn:
    """End with what happened and what to do next; with --json as one object that holds what the service said."""
    sys.stdout.flush()
    message = "; ".join(error.message.splitlines())
    if context.meta.get(AS_JSON):
        told = {"code": error.code, "message": message, **(problem or {}), "next_step": next_step or None}
        click.echo(json.dumps(told, ensure_ascii=False), err=True)
    else:
        click.echo(f"orchestrator: {message}", err=True)
        if next_step:
            click.echo(f"  next: {next_step}", err=True)
    sys.exit(exit_code)


@click.group(
    "orchestrator", cls=PlainErrors, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]}
)
def main() -> None:
    """Robot tickets, engine runs, training runs, inference tasks and a droplet mesh over one durable kernel.

    Settings come from the environment; `orchestrator settings` lists them. Commands that ask the running service
    find it by --url and --token, else ORCHESTRATOR_URL and ORCHESTRATOR_TOKEN, else on the local home.
    """


def run_up(procfile: Path | None) -> None:
    from orchestrator_cli.up import up

    up(os.environ, procfile) if procfile else up(os.environ)


@main.command()
@click.option(
    "--procfile",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Which processes to run; the project's Procfile unless given.",
)
def up(procfile: Path | None) -> None:
    """Start everything and keep it running until Ctrl-C."""
    run_up(procfile)


@main.command()
@click.option("--down", metavar="REVISION", help="Take the schema back to this revision instead.")
def migrate(down: str | None) -> None:
    """Bring the database's schema up to date."""
    url = database_url()
    act = migration(down)
    act(url)


def migration(down: str | None) -> Callable[[str], None]:
    from orchestrator_cli import migrate as steps

    return (lambda url: steps.downgrade(url, down)) if down else steps.upgrade


@main.command()
@printing
def settings() -> None:
    """List every setting: its variable, its default, what it means."""
    rows = [
        {"variable": name, "default": default_of(item), "meaning": item.metadata["help"]}
        for name, item in variables().items()
    ]
    show(rows, table(["variable", "default", "meaning"], rows, limit=None))


def default_of(item: Any) -> str:
    return ",".join(sorted(item.default)) if isinstance(item.default, frozenset) else str(item.default)


for group in (doctor, clients, tickets, estop, dead_letters, schedules, engine):
    main.add_command(group)


if __name__ == "__main__":
    main()
