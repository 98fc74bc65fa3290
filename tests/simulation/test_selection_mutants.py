"""The machine of `test_selection.py` is checked: a kernel without one of its rules is found out."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Connection, literal, text, true

from models.kernel import backlog, job_parts, jobs
from models.kernel.prepared import prepare
from tests.kernel import parcel
from tests.kernel.conftest import connection, road  # noqa: F401 - fixtures
from tests.simulation import simulated_kernel
from tests.simulation.simulated_kernel import Kernel
from tests.simulation.test_selection import SOME, Selection

Patch = pytest.MonkeyPatch
FIRST_FOUND = settings(
    SOME, max_examples=300, derandomize=True, print_blob=False, report_multiple_bugs=False, phases=[Phase.generate]
)


def rewritten(patch: Patch, name: str, old: str, new: str) -> None:
    """A statement of the backlog with other words."""
    sql = str(getattr(backlog, name))
    assert old in sql
    patch.setattr(backlog, name, text(sql.replace(old, new)))
    if name == "_PICK":
        types = {"queue": "text", "slots": "int", "aging": "float8", "aged_slots": "int"}
        patch.setattr(backlog, "PICK", prepare(getattr(backlog, name), types))


def no_aging(patch: Patch) -> None:
    rewritten(patch, "_PICK", "make_interval(secs => :aging)", "(:aging * interval '1 year')")


def unfair_tenants(patch: Patch) -> None:
    rewritten(patch, "_PICK", "priority, turn, run_at, id", "priority, run_at, id")


def fair_within_a_pick_alone(patch: Patch) -> None:
    rewritten(patch, "_PICK", "coalesce(places.taken, 0)", "0")


def early_retries(patch: Patch) -> None:
    rewritten(patch, "_PICK", "AND run_at <= clock_timestamp()", "")


def the_last_comes_first(patch: Patch) -> None:
    rewritten(patch, "_WAKE", "ORDER BY priority, id LIMIT 1", "ORDER BY priority, id DESC LIMIT 1")


def forgotten_hand_backs(patch: Patch) -> None:
    rewritten(patch, "_HAND_BACK", "SET dispatched_at = NULL, dispatches = 0", "SET dispatches = 0")


def parking_on_the_road(patch: Patch) -> None:
    rewritten(patch, "_PARK", "waits = true, ", "")


def put_off_with_its_age(patch: Patch) -> None:
    rewritten(patch, "_PUT_OFF", ", run_at = clock_timestamp()", "")


def no_patience(patch: Patch) -> None:
    rewritten(patch, "_SEND_AGAIN", "power(2,", "power(0,")


def passed_over_by_anybody(patch: Patch) -> None:
    rewritten(patch, "_SEND_PASSED_OVER", "other.priority < jobs.priority AND ", "")


def rebuilt(patch: Patch) -> None:
    """The acts on parcels, compiled anew from what is patched."""
    patch.setattr(parcel, "SETTLE", parcel.move("moving", "delivered failed", job=parcel.Job.END, **parcel.ENDS))
    patch.setattr(parcel, "RETRY", parcel.move("moving", "queued", job=parcel.Job.RETRY))
    patch.setattr(parcel, "RELEASE", parcel.move("moving", "queued", job=parcel.Job.RETURN))
    for kind in simulated_kernel.KINDS:
        patch.setitem(simulated_kernel.ASKS, kind, simulated_kernel.asking(*kind))


def ghosts_that_settle(patch: Patch) -> None:
    patch.setattr(job_parts, "guard_of", lambda _job, _given: true())
    rebuilt(patch)


def lanes_whose_turn_is_not_kept(patch: Patch) -> None:
    """Nobody is ever before another."""
    patch.setattr(job_parts, "tuple_", lambda *_: literal(1))
    rebuilt(patch)


def births_that_do_not_wait(patch: Patch) -> None:
    patch.setattr(job_parts, "or_", lambda *_: literal(False))
    rebuilt(patch)


def senders_who_are_never_calm(patch: Patch) -> None:
    """Whoever owes something sends it, however much was sent just now."""
    patch.setattr(job_parts, "FEW_MESSAGES", 1000)
    rebuilt(patch)


def leases_without_end(patch: Patch) -> None:
    patch.setattr(jobs, "list_lost", lambda _connection: {})


MUTANTS = [
    no_aging,
    unfair_tenants,
    fair_within_a_pick_alone,
    early_retries,
    the_last_comes_first,
    forgotten_hand_backs,
    parking_on_the_road,
    put_off_with_its_age,
    no_patience,
    passed_over_by_anybody,
    ghosts_that_settle,
    lanes_whose_turn_is_not_kept,
    births_that_do_not_wait,
    senders_who_are_never_calm,
    leases_without_end,
]


@pytest.mark.parametrize("mutate", MUTANTS)
def test_a_kernel_without_one_of_the_rules_is_found_out(
    connection: Connection,  # noqa: F811
    monkeypatch: Patch,
    mutate: Callable[[Patch], None],
) -> None:
    kernel = Kernel(connection)
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(functools.partial(Selection, kernel, [0]), settings=FIRST_FOUND)


def test_two_at_work_in_one_lane_are_found_out(connection: Connection) -> None:  # noqa: F811
    kernel = Kernel(connection)
    connection.execute(text("DROP INDEX jobs_lane_leased_ix"))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(functools.partial(Selection, kernel, [0]), settings=FIRST_FOUND)
