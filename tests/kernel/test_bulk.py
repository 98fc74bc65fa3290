"""Operations over many subjects of a domain that the kernel has never heard of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Connection, select

from models.kernel import bulk, bulk_acts, bulk_moves
from models.kernel.bulk import OperationExpired, Run
from models.kernel.bulk_acts import Act, Order, Outcome, Page
from models.kernel.clients import Caller
from models.kernel.errors import Conflict, IllegalTransition, LeaseLost, NotFound
from models.kernel.jobs import list_expired
from models.kernel.session import transaction
from models.kernel.tallies import count_states
from tests.kernel import parcel
from tests.kernel.races import meanwhile

SEND = "parcels.send"
DELAY = "SELECT extract(epoch FROM run_at - clock_timestamp())::float8 FROM jobs"
NOBODY = "00000000-0000-0000-0000-000000000000"


def send_many(connection: Connection, names: Sequence[str], order: Order) -> Outcome:
    moved = {row["id"] for row in parcel.ask(connection, *names)}
    return Outcome(len(moved), {name: "not_packed" for name in names if name not in moved})


def list_next(connection: Connection, filters: Mapping[str, Any], _until: datetime, position: Any, limit: int) -> Page:
    columns = parcel.parcels.c
    wanted = select(columns.id).where(columns.van == filters["van"], columns.id > (position or ""))
    names = list(connection.scalars(wanted.order_by(columns.id).limit(limit)))
    return Page(names, names[-1] if names else position)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The act is known, and chunks are small."""
    monkeypatch.setattr(bulk, "CHUNK", 3)
    monkeypatch.setitem(bulk_acts.REGISTRY, SEND, Act(SEND, send_many, list_next))


def ask(connection: Connection, caller: Caller, **selection: Any) -> str:
    return str(bulk.ask_operation(connection, SEND, caller, **selection)["id"])


def take(connection: Connection, operation_id: str) -> Run:
    job = connection.exec_driver_sql("SELECT id FROM jobs WHERE subject_id = %s", (operation_id,)).scalar()
    taken = bulk.take_operation(connection, int(job or 0), "worker")
    assert taken is not None
    return taken


def advance(taken: Run) -> bool:
    with transaction() as whole:
        return bulk.advance_operation(whole, taken).over


def names(count: int) -> list[str]:
    return [f"p{number:03}" for number in range(count)]


def test_an_operation_moves_chunk_by_chunk_and_counts_as_it_goes(connection: Connection, writer: Caller) -> None:
    parcel.pack(connection, *names(8), van="red")
    taken = take(connection, operation_id := ask(connection, writer, filter={"van": "red"}))
    seen = []
    while not advance(taken):
        row = bulk.get_operation(connection, operation_id)
        seen.append((row["matched"], row["done"], row["position"]))
    assert seen == [(3, 3, "p002"), (6, 6, "p005"), (8, 8, "p007")]
    bulk.settle_operation(connection, taken, "worker")
    assert bulk.get_operation(connection, operation_id)["state"] == "completed"
    assert count_states(connection, "operation") == {"queued": 0, "running": 0, "completed": 1}


def test_a_chunk_and_its_position_commit_together_or_not_at_all(connection: Connection, writer: Caller) -> None:
    parcel.pack(connection, *names(3))
    taken = take(connection, operation_id := ask(connection, writer, ids=names(3)))

    def fail_at_the_end() -> None:
        with transaction() as whole:
            bulk.advance_operation(whole, taken)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_the_end()
    assert bulk.get_operation(connection, operation_id)["position"] is None
    assert {parcel.state_of(connection, name) for name in names(3)} == {"packed"}


def test_a_ghost_neither_advances_nor_ends_an_operation(connection: Connection, writer: Caller) -> None:
    parcel.pack(connection, *names(3))
    ghost = take(connection, operation_id := ask(connection, writer, ids=names(3)))
    assert bulk.release_operation(connection, ghost, "worker")
    live = take(connection, operation_id)
    for act in (
        lambda: advance(ghost),
        lambda: bulk.settle_operation(connection, ghost, "worker"),
        lambda: bulk.retry_operation(connection, ghost, "worker", Conflict("x")),
    ):
        with pytest.raises(LeaseLost):
            act()
    assert not bulk.release_operation(connection, ghost, "worker")
    assert not advance(live)
    assert bulk.get_operation(connection, operation_id)["done"] == 3


def test_a_settle_that_meets_a_cancellation_loses(connection: Connection, writer: Caller) -> None:
    taken = take(connection, operation_id := ask(connection, writer, ids=["p"]))
    with pytest.raises(LeaseLost):
        meanwhile(
            lambda c: bulk.cancel_operation(c, operation_id, writer),
            lambda c: bulk.settle_operation(c, taken, "worker"),
        )
    assert bulk.get_operation(connection, operation_id)["state"] == "cancelled"


def test_a_retry_waits_longer_each_time_and_the_last_failure_is_the_operation_s(
    connection: Connection, writer: Caller
) -> None:
    operation_id = ask(connection, writer, ids=["p"])
    delays = []
    for _ in range(5):
        taken = take(connection, operation_id)
        bulk.retry_operation(connection, taken, "worker", Conflict("It burns", code="fire"))
        delays.append(connection.exec_driver_sql(DELAY).scalar())
        connection.exec_driver_sql("UPDATE jobs SET run_at = clock_timestamp()")
    assert [round(delay) for delay in delays if delay is not None] == [1, 2, 4, 8]
    ended = bulk.get_operation(connection, operation_id)
    assert (ended["state"], ended["error_code"], ended["error"]) == ("failed", "fire", "It burns")


def test_an_operation_that_comes_too_late_does_nothing(connection: Connection, writer: Caller) -> None:
    parcel.pack(connection, "p")
    taken = take(connection, ask(connection, writer, ids=["p"], expires_in_seconds=60))
    connection.exec_driver_sql("UPDATE bulk_operations SET asked_at = asked_at - interval '2 minutes'")
    with pytest.raises(OperationExpired):
        advance(taken)
    assert parcel.state_of(connection, "p") == "packed"


def test_an_operation_that_nobody_took_in_time_fails_as_expired(connection: Connection, writer: Caller) -> None:
    operation_id = ask(connection, writer, ids=["p"])
    connection.exec_driver_sql("UPDATE jobs SET expires_at = clock_timestamp() - interval '1 s'")
    assert bulk.expire_operations(connection, list_expired(connection)[bulk_moves.TASK]) == 1
    assert bulk.get_operation(connection, operation_id)["error_code"] == "expired"


def test_operations_that_do_not_exist_or_have_ended_are_refused(connection: Connection, writer: Caller) -> None:
    for act in (
        lambda: bulk.get_operation(connection, NOBODY),
        lambda: bulk.cancel_operation(connection, NOBODY, writer),
    ):
        with pytest.raises(NotFound):
            act()
    operation_id = ask(connection, writer, ids=["p"])
    bulk.cancel_operation(connection, operation_id, writer)
    with pytest.raises(IllegalTransition) as refused:
        bulk.cancel_operation(connection, operation_id, writer)
    assert refused.value.state == "cancelled"
