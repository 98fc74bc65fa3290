"""Alembic, told where the project and its database are."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError

from orchestrator_cli.errors import CannotStart

ROOT = Path(__file__).resolve().parent.parent


def configuration(url: str) -> Config:
    """setup.cfg's [alembic], with the database handed over as an attribute: `%` in a password stays as it is."""
    config = Config(str(ROOT / "setup.cfg"))
    config.set_main_option("script_location", str(ROOT / "migrations").replace("%", "%%"))
    config.attributes["database_url"] = url
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the database to a revision.

    Raises CannotStart when it is of a newer version or cannot be reached.
    """
    run(command.upgrade, url, revision)


def downgrade(url: str, revision: str) -> None:
    """Take the database back to a revision.

    Raises CannotStart as `upgrade` does.
    """
    run(command.downgrade, url, revision)


def run(act: object, url: str, revision: str) -> None:
    assert callable(act)
    try:
        act(configuration(url), revision)
    except (CommandError, SQLAlchemyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CannotStart(f"the database could not be migrated to {revision}: {reason}") from None
