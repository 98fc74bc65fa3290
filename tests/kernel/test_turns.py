"""Jobs that keep their turn: while one rests until it is tried again, nobody of its lane is carried out before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, text

from models.kernel.backlog import park_job, pick_jobs, wake_lanes
from models.kernel.jobs import Spec
from tests.kernel import parcel
from tests.kernel.races import meanwhile, together

LONG = 3600.0


def in_turn(of: Any) -> Spec:
    return replace(parcel.carriage(of), keeps_turn=True)


ASK_IN_TURN = parcel.move("packed", "queued", owes=in_turn)


def send(connection: Connection, *names: str, ordered: bool = True, **columns: Any) -> list[int]:
    parcel.pack(connection, *names, **{"van": "v", **columns})
    act = ASK_IN_TURN if ordered else parcel.ASK
    act(connection, [{"id": name} for name in names], actor="test")
    return [parcel.job_of(connection, name)["id"] for name in names]


def waits(connection: Connection, *names: str) -> list[bool]:
    return [bool(parcel.job_of(connection, name)["waits"]) for name in names]


def picked(connection: Connection) -> list[int]:
    return [job.id for job in pick_jobs(connection, parcel.QUEUE, 99, 60.0)]


def rest(connection: Connection, job_id: int) -> None:
    """Its attempt has failed, and it is tried again in an hour."""
    parcel.retry(connection, parcel.take_one(connection, job_id), LONG)


def test_a_job_that_rests_is_not_overtaken_by_those_that_waited_behind_it(connection: Connection) -> None:
    first, *_ = send(connection, "a", "b", "c")
    rest(connection, first)
    assert waits(connection, "a", "b", "c") == [False, True, True]
    assert wake_lanes(connection) == 0
    assert picked(connection) == []


def test_a_job_that_keeps_no_turn_is_overtaken_while_it_rests(connection: Connection) -> None:
    first, second, _ = send(connection, "a", "b", "c", ordered=False)
    rest(connection, first)
    assert waits(connection, "a", "b", "c") == [False, False, True]
    assert picked(connection) == [second]


def test_who_is_owed_behind_a_resting_job_waits(connection: Connection) -> None:
    (first,) = send(connection, "a")
    rest(connection, first)
    send(connection, "b")
    send(connection, "c", ordered=False)
    assert waits(connection, "b", "c") == [True, True]
    assert wake_lanes(connection) == 0


def test_who_is_owed_behind_a_resting_job_that_keeps_no_turn_is_ready(connection: Connection) -> None:
    (first,) = send(connection, "a", ordered=False)
    rest(connection, first)
    (second,) = send(connection, "b", ordered=False)
    assert picked(connection) == [second]


def test_one_that_is_given_back_keeps_its_turn(connection: Connection) -> None:
    first, *_ = send(connection, "a", "b")
    parcel.release(connection, parcel.take_one(connection, first))
    assert waits(connection, "a", "b") == [False, True]
    assert wake_lanes(connection) == 0
    assert picked(connection) == [first]


def test_the_order_goes_on_once_the_first_has_ended(connection: Connection) -> None:
    first, second, third = send(connection, "a", "b", "c")
    rest(connection, first)
    parcel.set_job(connection, first, "run_at = clock_timestamp()")
    parcel.deliver(connection, parcel.take_one(connection, first))
    assert waits(connection, "b", "c") == [False, True]
    rest(connection, second)
    parcel.set_job(connection, second, "run_at = clock_timestamp()")
    parcel.fail(connection, parcel.take_one(connection, second))
    assert picked(connection) == [third]


def test_the_cancel_of_one_behind_wakes_nobody_past_a_resting_job(connection: Connection) -> None:
    first, *_ = send(connection, "a", "b", "c")
    rest(connection, first)
    parcel.cancel(connection, "b")
    assert waits(connection, "a", "c") == [False, True]
    assert picked(connection) == []


def test_the_cancel_of_a_resting_job_wakes_the_next(connection: Connection) -> None:
    first, second, _ = send(connection, "a", "b", "c")
    rest(connection, first)
    parcel.cancel(connection, "a")
    assert waits(connection, "b", "c") == [False, True]
    assert picked(connection) == [second]


def test_an_urgent_one_that_was_parked_is_woken_before_a_resting_job(connection: Connection) -> None:
    """Turns are kept among equals: a better priority goes first, as in every lane."""
    first, *_ = send(connection, "a", "b", priority=2)
    taken = parcel.take_one(connection, first)
    (urgent,) = send(connection, "u", priority=0)
    park_job(connection, urgent)
    parcel.retry(connection, taken, LONG)
    assert waits(connection, "u", "b") == [False, True]


@pytest.mark.parametrize("end", [parcel.deliver, parcel.fail])
def test_however_the_first_ends_exactly_the_second_is_woken(connection: Connection, end: Callable[..., Any]) -> None:
    first, *_ = send(connection, "a", "b", "c")
    end(connection, parcel.take_one(connection, first))
    assert waits(connection, "b", "c") == [False, True]


@pytest.mark.parametrize("off", [(), ("hashjoin", "indexscan", "material", "hashagg", "sort")])
def test_nobody_overtakes_whatever_the_plan(connection: Connection, off: tuple[str, ...]) -> None:
    first, *_ = send(connection, *"abcdefgh")
    for method in off:
        connection.execute(text(f"SET enable_{method} = off"))
    rest(connection, first)
    assert waits(connection, *"abcdefgh") == [False, *[True] * 7]
    parcel.cancel(connection, "a")
    assert waits(connection, *"bcdefgh") == [False, *[True] * 6]


def test_who_comes_while_the_first_is_being_put_to_rest_does_not_overtake_it(connection: Connection) -> None:
    (first,) = send(connection, "a")
    taken = parcel.take_one(connection, first)
    meanwhile(lambda c: parcel.retry(c, taken, LONG), lambda c: send(c, "b"))
    assert waits(connection, "a", "b") == [False, True]
    assert wake_lanes(connection) == 0


def test_who_comes_while_the_first_ends_is_woken_by_the_sweep_at_the_latest(connection: Connection) -> None:
    (first,) = send(connection, "a")
    taken = parcel.take_one(connection, first)
    meanwhile(lambda c: parcel.deliver(c, taken), lambda c: send(c, "b"))
    wake_lanes(connection)
    assert waits(connection, "b") == [False]


def test_a_waiter_that_somebody_is_changing_is_not_passed_over(connection: Connection) -> None:
    first, second, _ = send(connection, "a", "b", "c")
    taken = parcel.take_one(connection, first)
    meanwhile(lambda c: parcel.set_job(c, second, "priority = priority"), lambda c: parcel.deliver(c, taken))
    assert waits(connection, "b", "c") == [True, True]
    assert wake_lanes(connection) == 1
    assert waits(connection, "b", "c") == [False, True]


def test_a_lane_under_many_hands_is_carried_out_in_order(connection: Connection) -> None:
    """Four at once take whatever is ready, and every other attempt rests; nobody is ever at work out of turn."""
    names = [f"p{n:02d}" for n in range(12)]
    send(connection, *names, tries=9)
    ended: list[str] = []

    def work(c: Connection) -> None:
        while len(ended) < len(names):
            wake_lanes(c)
            for job in pick_jobs(c, parcel.QUEUE, 9, 60.0):
                for taken in parcel.take(c, job.id):
                    assert taken["id"] == names[len(ended)]
                    if taken["attempt"] == 1:
                        parcel.retry(c, taken, 0.0)
                    else:
                        ended.append(taken["id"])
                        parcel.deliver(c, taken)

    together(*[work] * 4)
    assert ended == names
