"""The feed: whatever the order of commits, each event is read once and in the order of its number."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from models.kernel.errors import Unavailable
from models.kernel.feed import CursorExpired, Follower, Selection, begin_at_horizon, list_page, list_rows
from models.kernel.ledger import note
from models.kernel.session import transaction
from tests.kernel.races import alone, together, until

CREATED = "INSERT INTO ledger (seq, subject_kind, subject_id, revision, topic, actor, correlation_id, body)"


def say(connection: Connection, topic: str, subject: str = "p", **body: str) -> None:
    note(connection, topic, subject=("parcel", subject), actor="test", correlation_id="c", body=body)


def topics(follower: Follower, connection: Connection) -> list[str]:
    return [row["topic"] for row in follower.read(connection)]


def test_events_are_read_once_and_in_order(connection: Connection) -> None:
    follower = begin_at_horizon(connection)
    for topic in ("one", "two"):
        say(connection, topic)
    assert topics(follower, connection) == ["one", "two"]
    say(connection, "three")
    assert topics(follower, connection) == ["three"]
    assert topics(follower, connection) == []


class Naive:
    """A reader that remembers the highest number it saw, and nothing else."""

    def __init__(self) -> None:
        self.position = 0

    def read(self, connection: Connection) -> list[str]:
        rows = list_rows(connection, self.position, 100)
        self.position = max([self.position, *(row["seq"] for row in rows)])
        return [row["topic"] for row in rows]


def test_what_draws_its_number_early_and_commits_late_is_read_in_its_place(connection: Connection) -> None:
    follower, naive, seen = Follower(0), Naive(), list[str]()
    with transaction() as late:
        say(late, "late")
        say(connection, "early")
        seen += naive.read(connection)
        assert topics(follower, connection) == []
        assert follower.waits
        assert topics(follower, connection) == []
    assert topics(follower, connection) == ["late", "early"]
    assert not follower.waits
    assert seen + naive.read(connection) == ["early"], "without the rule the late one is lost"


def test_what_was_rolled_back_holds_the_others_up_no_longer_than_itself(connection: Connection) -> None:
    follower = Follower(0)
    with transaction() as never:
        say(never, "never")
        say(connection, "after")
        assert topics(follower, connection) == []
        never.rollback()
    assert topics(follower, connection) == ["after"]


def test_rows_before_a_gap_are_read_at_once(connection: Connection) -> None:
    follower = Follower(0)
    say(connection, "before")
    with transaction() as late:
        say(late, "late")
        say(connection, "beyond")
        assert topics(follower, connection) == ["before"]
    assert topics(follower, connection) == ["late", "beyond"]


def test_a_writer_that_comes_after_the_gap_was_seen_holds_nothing_up(connection: Connection) -> None:
    follower = Follower(0)
    with transaction() as first, transaction() as second:
        say(first, "first")
        say(connection, "beyond")
        assert topics(follower, connection) == []
        say(second, "second")
        first.commit()
        assert topics(follower, connection) == ["first", "beyond"]


def test_one_that_ends_between_the_read_and_the_list_of_writers_is_not_lost(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in neither: only the second read, in a new statement, finds it."""
    from models.kernel import feed

    ask = feed.list_writers
    with transaction() as late:
        say(late, "late")
        say(connection, "early")

        def commit_first(reading: Connection) -> object:
            late.commit()
            return ask(reading)

        monkeypatch.setattr(feed, "list_writers", commit_first)
        follower = Follower(0)
        assert topics(follower, connection) == []
        assert topics(follower, connection) == ["late", "early"]


def test_a_follower_begins_behind_what_is_still_being_written(connection: Connection) -> None:
    with ThreadPoolExecutor(1) as pool:
        with transaction() as late:
            say(late, "late")
            begun = pool.submit(alone, begin_at_horizon)
            question = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%virtualtransaction = ANY%'"
            until(lambda: connection.scalar(text(question)) or begun.done(), "the horizon is looked for")
            assert not begun.done()
        follower = begun.result(20)
    assert topics(follower, connection) == []
    say(connection, "next")
    assert topics(follower, connection) == ["next"]


def test_a_follower_does_not_begin_while_a_writer_outlasts_the_patience(connection: Connection) -> None:
    with transaction() as late:
        say(late, "late")
        with pytest.raises(Unavailable) as refused:
            begin_at_horizon(connection)
    assert refused.value.code == "ledger_undecided"


def test_many_writers_that_commit_and_roll_back_lose_nothing(road: str) -> None:
    """Four writers, a quarter of whose transactions roll back; one reader on the way."""
    each, seen = 40, list[int]()

    def write(connection: Connection) -> None:
        for n in range(each):
            with transaction() as other:
                say(other, "said")
                if n % 4 == 0:
                    other.rollback()

    def read(connection: Connection) -> None:
        follower = Follower(0)
        until(lambda: seen.extend(row["seq"] for row in follower.read(connection, 7)) or len(seen) >= 4 * each * 3 / 4,
              "all are read")  # fmt: skip

    together(read, write, write, write, write)
    kept = alone(lambda c: list(c.scalars(text("SELECT seq FROM ledger ORDER BY seq"))))
    assert seen == kept


SOME = Selection("parcel", frozenset({"sent"}), facts=(("van", "v1"),))


def place(connection: Connection, seq: int, topic: str = "sent", kind: str = "parcel", van: str = "v1") -> None:
    values = {"seq": seq, "kind": kind, "topic": topic, "body": f'{{"van": "{van}"}}'}
    connection.execute(text(f"{CREATED} VALUES (:seq, :kind, 'p', 0, :topic, 'test', 'c', :body)"), values)


def test_a_page_holds_what_was_selected_and_says_how_far_it_goes(connection: Connection) -> None:
    for seq, change in enumerate([{}, {"topic": "lost"}, {"kind": "van"}, {"van": "v2"}, {}, {}], start=1):
        place(connection, seq, **change)  # type: ignore[arg-type]
    rows, reached = list_page(connection, SOME, 0, 6, limit=2)
    assert ([row["seq"] for row in rows], reached) == ([1, 5], 5)
    rows, reached = list_page(connection, SOME, reached, 6, limit=2)
    assert ([row["seq"] for row in rows], reached) == ([6], 6)
    assert list_page(connection, SOME, 0, 4)[1] == 4


def test_a_page_looks_at_a_bounded_part_of_the_past(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.kernel.feed.WINDOW", 10)
    place(connection, 100)
    after, pages, found = 0, 0, list[int]()
    while after < 120:
        rows, after = list_page(connection, SOME, after, 120)
        found += [row["seq"] for row in rows]
        pages += 1
    assert (found, pages) == ([100], 12)


def test_a_page_behind_what_was_dropped_is_refused(connection: Connection) -> None:
    first = connection.scalar(text("SELECT min(relname) FROM pg_class WHERE relname ~ '^ledger_\\d{19}$'"))
    connection.execute(text(f"ALTER TABLE ledger DETACH PARTITION {first}"))
    with pytest.raises(CursorExpired):
        list_page(connection, SOME, 4_999_999, 5_000_010)
    assert list_page(connection, SOME, 5_000_000, 5_000_010) == ([], 5_000_010)


words = st.sampled_from(["a", "b", "c"])
events = st.fixed_dictionaries({"kind": words, "topic": words, "subject": words, "van": words})
selections = st.builds(
    Selection,
    kind=words,
    topics=st.frozensets(words, min_size=1),
    subject_id=st.none() | words,
    facts=st.just(()) | st.tuples(st.tuples(st.sampled_from(["van", "missing"]), words)),
)


@pytest.fixture
def replayed(connection: Connection) -> Callable[[list[dict[str, str]], Selection], tuple[list[int], list[int]]]:
    """What a selection finds of some events in the past, and of the same ones as they happen."""
    last = [0]

    def replay(happened: list[dict[str, str]], selection: Selection) -> tuple[list[int], list[int]]:
        before = last[0]
        for event in happened:
            subject = (event["kind"], event["subject"])
            note(connection, event["topic"], subject=subject, actor="t", correlation_id="c", body={"van": event["van"]})
        rows = list_rows(connection, before, 1000)
        last[0] = rows[-1]["seq"] if rows else before
        past, _ = list_page(connection, selection, before, last[0], limit=1000)
        return [row["seq"] for row in past], [row["seq"] for row in rows if selection.covers(row)]

    return replay


def test_the_past_and_the_present_are_selected_alike(
    replayed: Callable[[list[dict[str, str]], Selection], tuple[list[int], list[int]]],
) -> None:
    @settings(max_examples=60, deadline=None)
    @given(happened=st.lists(events, max_size=12), selection=selections)
    def alike(happened: list[dict[str, str]], selection: Selection) -> None:
        past, present = replayed(happened, selection)
        assert past == present

    alike()
