"""What a worker does about its engine before it takes a run: it checks the engine, and says which it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from models.engine import workers
from models.kernel.errors import InvalidSettings
from models.kernel.processes import process_id
from models.kernel.session import transaction
from models.kernel.settings import settings
from orchestrator_tasks.engine.config import check_file_and_engine
from orchestrator_tasks.engine.hosts import check_engine, close_host
from orchestrator_tasks.engine.tasks import patiently

log = logging.getLogger(__name__)


def begin_worker(role: str) -> None:
    """Check and announce the engine of this process, which works in this role.

    Raises InvalidSettings when ENGINE_MODULE is none, Unavailable when the database stays away.
    """
    said = check_file_and_engine() or look_at_engine()
    if said is not None:
        patiently(lambda: announce(process_id(role), said))


def look_at_engine() -> dict[str, Any] | None:
    """What the engine says of itself where there is no file, and so perhaps no engine: a configuration may yet come."""
    try:
        return check_engine()
    except InvalidSettings as error:
        log.info("there is no engine, and no configuration for one", extra={"error": error.message})
        return None
    finally:
        close_host()


def announce(worker_id: str, said: Mapping[str, Any]) -> None:
    with transaction() as connection:
        workers.announce(connection, worker_id, module=settings().engine_module, **said)
