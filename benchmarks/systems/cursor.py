"""The cursor of the page after a ticket, on DATABASE_URL: `python -m benchmarks.systems.cursor CREATED_AT ID`."""

from __future__ import annotations

import sys
from datetime import datetime

from orchestrator_web.paging import write_cursor

if __name__ == "__main__":
    print(write_cursor({}, (datetime.fromisoformat(sys.argv[1]), sys.argv[2])))
