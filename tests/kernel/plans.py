"""What statements cost, read off their plans: how many rows they touch, not how long they take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event


def rows_of(plan: dict[str, Any]) -> float:
    """Rows that the scans of a plan produced, or that any part of it threw away."""
    own = sum(value for key, value in plan.items() if key.startswith("Rows Removed"))
    if "Scan" in plan["Node Type"] and plan["Node Type"] not in {"CTE Scan", "WorkTable Scan"}:
        own += plan.get("Actual Rows", 0)
    return own * plan.get("Actual Loops", 1) + sum(rows_of(part) for part in plan.get("Plans", []))


@contextmanager
def rows_touched(connection: Connection) -> Iterator[list[float]]:
    """Meanwhile, how many rows each statement touched, as EXPLAIN (ANALYZE) of the same statement says.

    The statement is explained inside a savepoint that is rolled back, and then carried out.
    """
    touched: list[float] = []

    def explain(_connection: Any, cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        own = cursor.connection.cursor()
        own.execute("BEGIN" if cursor.connection.autocommit else "SAVEPOINT before")
        own.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {sql}", parameters)
        touched.append(rows_of(own.fetchone()[0][0]["Plan"]))
        own.execute("ROLLBACK" if cursor.connection.autocommit else "ROLLBACK TO before")
        own.close()

    event.listen(connection, "before_cursor_execute", explain)
    try:
        yield touched
    finally:
        event.remove(connection, "before_cursor_execute", explain)
