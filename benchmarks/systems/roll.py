"""Rolls the tallies of DATABASE_URL to the end of its ledger, as the schedule would in time."""

from __future__ import annotations

from sqlalchemy import select

from models.kernel.session import transaction
from models.kernel.tallies import roll_tallies, tally_position

CHUNK = 500_000


def main() -> None:
    seen = -1
    while True:
        with transaction() as connection:
            connection.exec_driver_sql("SET LOCAL statement_timeout = '120s'")
            roll_tallies(connection, CHUNK)
            position = int(connection.scalar(select(tally_position.c.seq)) or 0)
        if position == seen:
            return
        seen = position


if __name__ == "__main__":
    main()
