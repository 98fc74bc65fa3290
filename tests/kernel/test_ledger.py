"""The ledger: it only grows, and nothing that was written to it is ever left out of the counts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import IntegrityError

from models.kernel import clock
from models.kernel.horizon import find_horizon
from models.kernel.ledger import PARTITIONS_AHEAD, count_partitions_ahead, list_history, make_partitions, note
from models.kernel.parsers import postgres_url
from models.kernel.session import statement, transaction
from models.kernel.tallies import count_states, read_tallies, roll_tallies
from tests.conftest import named, on_server
from tests.kernel import parcel
from tests.kernel.races import alone, together, until

POSITION = text("SELECT seq FROM tally_position")
LAST = text("SELECT max(seq) FROM ledger")


def say(connection: Connection, topic: str = "said") -> None:
    note(connection, topic, subject=("parcel", "p"), actor="test", correlation_id="c", body={"n": 1})


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger SET actor = 'nobody'",
        "DELETE FROM ledger",
        "TRUNCATE ledger",
        "UPDATE {partition} SET actor = 'nobody'",
        "DELETE FROM {partition}",
        "TRUNCATE {partition}",
    ],
)
def test_the_ledger_takes_no_change_but_a_new_row(connection: Connection, change: str) -> None:
    say(connection)
    partition = connection.scalar(text("SELECT tableoid::regclass::text FROM ledger"))
    with pytest.raises(IntegrityError, match="append-only"):
        connection.execute(text(change.format(partition=partition)))
    assert connection.scalar(text("SELECT count(*) FROM ledger WHERE actor = 'test'")) == 1


def test_a_partition_made_later_is_append_only_too(connection: Connection, environment: pytest.MonkeyPatch) -> None:
    connection.execute(text("SELECT setval('ledger_seq', 20000001)"))
    assert make_partitions(connection) >= 1
    connection.execute(text("SELECT setval('ledger_seq', 24999999)"))
    say(connection)
    partition = connection.scalar(text("SELECT tableoid::regclass::text FROM ledger"))
    with pytest.raises(IntegrityError, match="append-only"):
        connection.execute(text(f"TRUNCATE {partition}"))


def test_a_history_reads_oldest_first(connection: Connection) -> None:
    for topic in ("one", "two", "three"):
        say(connection, topic)
    assert [row["topic"] for row in list_history(connection, "parcel", "p", limit=2)] == ["one", "two"]


def test_partitions_are_made_ahead_of_need(connection: Connection) -> None:
    assert count_partitions_ahead(connection) == PARTITIONS_AHEAD
    assert make_partitions(connection) == 0
    connection.execute(text("SELECT setval('ledger_seq', 14999999)"))
    assert count_partitions_ahead(connection) == 1
    assert make_partitions(connection) == PARTITIONS_AHEAD - 1
    assert count_partitions_ahead(connection) == PARTITIONS_AHEAD


def test_rows_go_on_across_the_edge_of_a_partition(connection: Connection) -> None:
    connection.execute(text("SELECT setval('ledger_seq', 4999999)"))
    for _ in range(3):
        say(connection)
    assert connection.scalar(text("SELECT count(DISTINCT tableoid) FROM ledger")) == 2


def test_a_partition_is_made_while_writers_write(connection: Connection) -> None:
    connection.execute(text("SELECT setval('ledger_seq', 14999999)"))
    with transaction() as writer:
        say(writer)
        assert make_partitions(connection) >= 1


def test_two_makers_of_partitions_do_not_collide(road: str) -> None:
    alone(lambda c: c.execute(text("SELECT setval('ledger_seq', 19999999)")))
    together(make_partitions, make_partitions, make_partitions)
    alone(say)
    assert alone(count_partitions_ahead) >= PARTITIONS_AHEAD


def test_counts_include_what_is_not_rolled_yet(connection: Connection) -> None:
    parcel.pack(connection, "a", "b")
    assert count_states(connection, "parcel") == {"packed": 2}
    assert roll_tallies(connection)
    parcel.ask(connection, "a")
    assert count_states(connection, "parcel") == {"packed": 1, "queued": 1}
    assert roll_tallies(connection)
    assert count_states(connection, "parcel") == {"packed": 1, "queued": 1}
    assert connection.scalar(POSITION) == connection.scalar(LAST)


def test_a_transaction_that_drew_a_low_number_and_commits_late_is_not_lost(connection: Connection) -> None:
    with transaction() as late:
        parcel.pack(late, "late")
        parcel.pack(connection, "early")
        assert not roll_with_little_patience(connection)
        assert count_states(connection, "parcel") == {"packed": 1}
        assert connection.scalar(POSITION) == 0
    assert roll_tallies(connection)
    assert count_states(connection, "parcel") == {"packed": 2}
    assert connection.scalar(POSITION) == 2


def roll_with_little_patience(connection: Connection) -> bool:
    return find_horizon(connection, patience_seconds=0.05) is not None


def test_a_number_that_was_drawn_and_rolled_back_holds_nothing_up(connection: Connection) -> None:
    with transaction() as other:
        parcel.pack(other, "never")
        other.rollback()
    parcel.pack(connection, "p")
    assert roll_tallies(connection)
    assert count_states(connection, "parcel") == {"packed": 1}


def test_readers_of_the_ledger_do_not_hold_the_horizon_up(connection: Connection) -> None:
    parcel.pack(connection, "p")
    with transaction() as reader:
        reader.execute(text("SELECT * FROM ledger")).all()
        assert find_horizon(connection, patience_seconds=0.05) == 1


LOOKING = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE query LIKE '%virtualtransaction = ANY%' AND pid <> pg_backend_pid() AND datname = current_database()"
)


def test_a_writer_who_comes_later_does_not_hold_the_horizon_up(connection: Connection) -> None:
    """Whoever began after the number was read has drawn a higher one."""
    with ThreadPoolExecutor(1) as pool, transaction() as first, transaction() as second:
        say(first)
        looking = pool.submit(alone, lambda c: find_horizon(c, 20.0))
        until(lambda: connection.scalar(LOOKING), "the horizon is being looked for")
        say(second)
        first.commit()
        assert looking.result(20) == 1


def test_a_writer_in_another_database_does_not_hold_the_horizon_up(
    postgres_server: str, connection: Connection
) -> None:
    """A database copied from the same template has the same relation ids."""
    parcel.pack(connection, "p")
    on_server(postgres_server, "CREATE DATABASE beside TEMPLATE migrated")
    engine = create_engine(postgres_url(named(postgres_server, "beside")))
    try:
        with engine.begin() as other:
            say(other)
            assert find_horizon(connection, patience_seconds=0.05) == 1
    finally:
        engine.dispose()
        on_server(postgres_server, "DROP DATABASE beside WITH (FORCE)")


def test_two_rollers_at_once_count_once(road: str) -> None:
    names = [f"p{n:03}" for n in range(300)]
    with statement() as connection:
        parcel.pack(connection, *names)

    def roll(connection: Connection) -> None:
        for _ in range(10):
            roll_tallies(connection, at_most=7)

    def write(connection: Connection) -> None:
        for name in names[:40]:
            parcel.ask(connection, name)

    together(roll, write, roll, roll)
    with statement() as connection:
        while connection.scalar(POSITION) < connection.scalar(LAST):
            assert roll_tallies(connection)
        assert count_states(connection, "parcel") == {"packed": 260, "queued": 40}
        assert connection.scalar(text("SELECT sum(value) FROM tallies WHERE measure = 'topic'")) == 340


def test_every_answered_move_is_counted_by_whoever_reads_while_another_rolls(road: str) -> None:
    def write(connection: Connection) -> None:
        for n in range(60):
            parcel.pack(connection, f"p{n}")
            assert count_states(connection, "parcel")["packed"] == n + 1

    def roll(connection: Connection) -> None:
        until(lambda: roll_tallies(connection) and connection.scalar(LAST) == 60, "everything is rolled")

    together(write, roll)


def test_elapsed_times_fall_into_cumulative_buckets(connection: Connection) -> None:
    insert = text(
        "INSERT INTO ledger (subject_kind, subject_id, revision, topic, label, elapsed_ms, actor, correlation_id)"
        " VALUES ('parcel', 'p', 0, 'done', 'van', :ms, 'test', 'c')"
    )
    for ms in (3, 5, 70, 1e9):
        connection.execute(insert, {"ms": ms})
    for _ in range(2):
        found = {row.bucket: row.value for row in read_tallies(connection, "parcel", "elapsed")}
        assert (found["5"], found["50"], found["100"], found["300000"], found["+Inf"]) == (2, 2, 3, 3, 4)
        assert found["sum"] == 1e9 + 78
        assert roll_tallies(connection)


def test_the_horizon_gives_up_in_time(connection: Connection) -> None:
    with transaction() as late:
        say(late)
        began = clock.monotonic()
        assert find_horizon(connection, patience_seconds=0.2) is None
        assert clock.monotonic() - began < 5
