"""The cursor of the page after a ticket, on DATABASE_URL: `python -m benchmarks.systems.cursor CREATED_AT ID`."""

from __future__ import annotations

import sys
from datetime import datetime

from orchestrator_web.app import create_app
from orchestrator_web.paging import write_cursor

if __name__ == "__main__":
    with create_app().test_request_context("/tickets"):  # a cursor belongs to its endpoint
        print(write_cursor({}, (datetime.fromisoformat(sys.argv[1]), sys.argv[2])))
