"""Retention drops whole partitions that nobody needs, oldest first, and nothing else."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, Connection, MetaData, Table, Text, select, text

from models.kernel.ledger import note
from models.kernel.retention import drop_old_partitions, get_earliest_seq
from models.kernel.session import transaction
from models.kernel.tallies import roll_tallies
from models.kernel.webhooks.feeding import feed_webhooks
from tests.conftest import forget
from tests.kernel.races import alone

parcels = Table("parcels", MetaData(), Column("id", Text), Column("state", Text))
LIVE = {"parcel": select(parcels.c.id).where(parcels.c.state != "delivered")}
FIRST, SECOND = "ledger_0000000000000000001", "ledger_0000000000005000001"
PARCEL = "INSERT INTO parcels (id, tenant, priority, tries, state, correlation_id) VALUES ('p', 't', 1, 1, :state, 'c')"


def write(connection: Connection, seq: int, age_days: int, subject: str = "p") -> None:
    connection.execute(text("SELECT setval('ledger_seq', :seq, false)"), {"seq": seq})
    connection.execute(
        text(
            "INSERT INTO ledger (subject_kind, subject_id, revision, topic, actor, correlation_id, at)"
            " VALUES ('parcel', :subject, 0, 'said', 'test', 'c', clock_timestamp() - make_interval(days => :age))"
        ),
        {"subject": subject, "age": age_days},
    )


def keep(environment: pytest.MonkeyPatch, days: int) -> None:
    environment.setenv("ORCHESTRATOR_LEDGER_KEEP_DAYS", str(days))
    forget()


@pytest.fixture
def written(connection: Connection) -> Connection:
    """Two partitions of old rows, all of them counted, and one of today."""
    write(connection, 1, 90)
    write(connection, 5_000_001, 60)
    write(connection, 10_000_001, 0)
    while connection.scalar(text("SELECT seq FROM tally_position")) < 10_000_001:
        assert roll_tallies(connection, at_most=10_000_000)
    feed_webhooks()
    return connection


def drop(live: dict[str, object] | None = None) -> list[str]:
    return list(alone(lambda c: drop_old_partitions(c, LIVE if live is None else live)))


def test_what_is_old_and_read_goes_and_the_rest_stays(written: Connection, environment: pytest.MonkeyPatch) -> None:
    keep(environment, 30)
    assert drop() == [FIRST, SECOND]
    assert alone(get_earliest_seq) == 10_000_001
    assert alone(lambda c: c.scalar(text("SELECT count(*) FROM ledger"))) == 1
    assert drop() == []


def test_by_default_everything_is_kept(written: Connection) -> None:
    assert drop() == []
    assert alone(get_earliest_seq) == 1


def test_what_is_young_enough_is_kept(written: Connection, environment: pytest.MonkeyPatch) -> None:
    keep(environment, 70)
    assert drop() == [FIRST]
    assert alone(get_earliest_seq) == 5_000_001


def test_the_history_of_a_live_subject_is_kept_until_it_has_ended(
    written: Connection, environment: pytest.MonkeyPatch
) -> None:
    keep(environment, 30)
    alone(lambda c: c.execute(text(PARCEL), {"state": "moving"}))
    assert drop() == []
    alone(lambda c: c.execute(text("UPDATE parcels SET state = 'delivered'")))
    assert drop() == [FIRST, SECOND]


@pytest.mark.parametrize("reader", ["tally_position", "webhook_position"])
def test_what_a_reader_of_the_ledger_has_not_passed_is_kept(
    written: Connection, environment: pytest.MonkeyPatch, reader: str
) -> None:
    keep(environment, 30)
    alone(lambda c: c.execute(text(f"UPDATE {reader} SET seq = 9999999")))
    assert drop() == [FIRST]
    alone(lambda c: c.execute(text(f"UPDATE {reader} SET seq = 10000000")))
    assert drop() == [SECOND]


def test_the_partition_that_is_written_is_never_dropped(
    connection: Connection, environment: pytest.MonkeyPatch
) -> None:
    keep(environment, 1)
    write(connection, 1, 90)
    assert roll_tallies(connection)
    assert drop() == []


def test_partitions_go_while_others_write(written: Connection, environment: pytest.MonkeyPatch) -> None:
    keep(environment, 30)
    note(written, "before", subject=("parcel", "q"), actor="test", correlation_id="c")
    assert drop() == [FIRST, SECOND]
    with transaction() as writer:
        note(writer, "during", subject=("parcel", "q"), actor="test", correlation_id="c")
        assert drop() == []
    assert alone(lambda c: c.scalar(text("SELECT count(*) FROM ledger WHERE topic IN ('before', 'during')"))) == 2


def test_one_that_was_taken_out_by_a_process_that_died_is_dropped_by_the_next(
    written: Connection, environment: pytest.MonkeyPatch
) -> None:
    keep(environment, 30)
    alone(lambda c: c.execute(text(f"ALTER TABLE ledger DETACH PARTITION {FIRST} CONCURRENTLY")))
    assert alone(get_earliest_seq) == 5_000_001
    assert drop() == [FIRST, SECOND]


def test_an_interrupted_detachment_is_finished(written: Connection, environment: pytest.MonkeyPatch) -> None:
    """A reader that holds an old snapshot lets the detachment time out when it is half done."""
    keep(environment, 30)
    with transaction() as reader:
        reader.execute(text("SELECT count(*) FROM ledger"))
        hurried = f"ALTER TABLE ledger DETACH PARTITION {FIRST} CONCURRENTLY"

        def hurry(connection: Connection) -> None:
            connection.execute(text("SET statement_timeout = 300"))
            with pytest.raises(Exception, match=r"timeout|canceling"):
                connection.execute(text(hurried))
            connection.execute(text("RESET statement_timeout"))

        alone(hurry)
    pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
    assert alone(lambda c: c.scalar(text(pending))) == 1
    assert alone(get_earliest_seq) == 5_000_001
    assert drop() == [FIRST, SECOND]
