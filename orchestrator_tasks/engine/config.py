"""The engine's configuration file: read, accepted, or refused with the reason kept for the status."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import Any

from models.engine import control
from models.engine.config import read_config
from models.engine.queries import get_status
from models.engine.states import INIT
from models.kernel.clients import Caller
from models.kernel.errors import Conflict, InvalidSettings
from models.kernel.session import statement, transaction
from models.kernel.settings import settings
from orchestrator_tasks.engine.hosts import check_engine, close_host

log = logging.getLogger(__name__)

BEAT = Caller("beat", "default", frozenset(), "engine.config")


def read_file(path: Path) -> dict[str, Any] | None:
    """What the file says, unchecked; None when there is none. Raises InvalidSettings when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidSettings(f"{path}: {error}") from error


def accept_file() -> None:
    """Make the file's configuration the present one, and start an engine that nobody has started or stopped yet.

    A file that was accepted before gives way to what somebody else has accepted since.
    A file that is wrong changes nothing: the engine goes on under its last configuration, tickets go on, and
    the status says what is wrong. Raises Unavailable.
    """
    path = settings().engine_config
    try:
        body = read_file(path)
        if body is None:
            log.info("the engine has no configuration file", extra={"path": str(path)})
            return
        check_options(read_config(body).engine.hysteresis)
        with transaction() as connection:
            version = control.propose_config(connection, body, BEAT.name)
            present = control.get_config(connection)
    except InvalidSettings as error:
        refuse(path, error.message)
        return
    said = "the engine is configured" if version else "the engine's file is unchanged: what was accepted since stays"
    log.info(said, extra={"path": str(path), "version": present and present[0]})
    if present and present[1].autostart:
        start()


def check_options(options: dict[str, Any] | None) -> None:
    """Raises InvalidSettings when the engine does not take these. A module that is no engine is only said."""
    try:
        if options and is_engine():
            check_engine(options)
    finally:
        close_host()


def is_engine() -> bool:
    try:
        check_engine()
    except InvalidSettings as error:
        log.error("the engine cannot be called: its workers do not start", extra={"error": error.message})
        return False
    return True


def refuse(path: Path, why: str) -> None:
    log.error("the engine's configuration is refused; it goes on as before", extra={"path": str(path), "error": why})
    with statement() as connection:
        control.refuse_config(connection, why)


def start() -> None:
    with statement() as connection:
        if get_status(connection)["state"] != INIT:
            return
        try:
            control.start_engine(connection, BEAT)
        except Conflict as error:  # another beat was faster
            log.info("the engine was not started", extra={"reason": error.message})


def check_file_and_engine() -> dict[str, Any] | None:
    """For a worker that would call the engine: what it says of itself. Raises InvalidSettings when it is none.

    Nothing is checked, and None answered, where there is no file: such a service has no runs. What is wrong in the
    file is only said: beat refuses such a file, and runs go by the configuration that was accepted.
    """
    try:
        body = read_file(settings().engine_config)
        if body is None:
            return None
        options = read_config(body).engine.hysteresis
    except InvalidSettings as error:
        log.error("the engine's configuration is refused", extra={"error": error.message})
        options = None
    try:
        said = check_engine()
        tell_options(options)
    finally:
        close_host()
    return said


def tell_options(options: dict[str, Any] | None) -> None:
    try:
        check_options(options)
    except InvalidSettings as error:
        log.error("the engine's configuration is refused", extra={"error": error.message})
