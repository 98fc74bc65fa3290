"""The e-stop: what it ends, what it keeps from starting, what it lets pass, and how it is released."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError

from models.kernel import latch
from models.kernel.clients import Caller
from models.kernel.dead_letters import list_letters
from models.kernel.errors import Conflict
from models.kernel.session import statement, transaction
from models.tickets import estop, operations, queries, robots
from models.tickets.stops import list_due_stops
from tests.kernel.races import DEADLINE_SECONDS, meanwhile, waits_or_ends
from tests.tasks.owed import Owed, change, rows
from tests.tickets.rover import ROBOT, all_motions, begin, stop

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def owed(database: str, writer: Caller) -> Owed:
    return Owed(writer)


@pytest.fixture
def engage(writer: Caller) -> Any:
    """Engage a scope, without the sweep that follows."""

    def act(scope: str = "all", reason: str = "smoke") -> bool:
        with statement() as connection:
            return estop.engage_estop(connection, scope, reason, writer)

    return act


@pytest.fixture
def release(writer: Caller) -> Any:
    def act(scope: str = "all", *, force: bool = False) -> tuple[bool, estop.Swept]:
        with statement() as connection:
            return estop.release_estop(connection, scope, "all clear", writer, force=force)

    return act


def sweep() -> estop.Swept:
    with statement() as connection:
        return estop.sweep_tickets(connection, "guardian")


def created(owed: Owed, command: str = "drive", target: str = ROBOT) -> str:
    params = {"speed": 1.0, "duration_seconds": 5} if command == "drive" else {}
    draft = {"command": command, "params": params, "target": target}
    draft |= {"priority": "normal", "timeout_seconds": 30, "metadata": {}}
    with statement() as connection:
        return str(operations.create_tickets(connection, [draft], owed.caller)[0]["id"])


def accept(owed: Owed, ticket_id: str, *, force: bool = False) -> Any:
    with statement() as connection:
        return operations.accept_execution(
            connection, ticket_id, expires_in_seconds=60, force=force, caller=owed.caller
        )


def state(ticket_id: str) -> str:
    return str(rows("SELECT state FROM tickets WHERE id = :id", id=ticket_id)[0]["state"])


class TestSweeping:
    def test_what_moves_and_what_is_queued_fails_and_leaves_a_dead_letter(self, owed: Owed, engage: Any) -> None:
        moving, queued, pending = owed("drive"), owed("scan"), created(owed)
        moving.take()
        assert engage()
        swept = sweep()
        assert swept == estop.Swept(revoked=2, left=0)
        with statement() as connection:
            assert estop.list_stopped_tickets(connection, "all") == [moving.ticket_id]
            assert estop.list_stopped_tickets(connection, "another") == []
        for job in (moving, queued):
            ticket = job.ticket
            assert (ticket["state"], ticket["error_code"]) == ("failed", "emergency_stop")
            assert ticket["error"] == "Emergency stop of everything: smoke"
        assert state(pending) == "pending"
        with statement() as connection:
            letters = list_letters(connection, code="emergency_stop")
            assert {letter["subject_id"] for letter in letters} == {moving.ticket_id, queued.ticket_id}
        assert rows("SELECT FROM jobs") == []

    def test_only_what_moved_is_ordered_a_stop(self, owed: Owed, engage: Any) -> None:
        moving, scanning = owed("drive", target="a"), owed("scan", target="b")
        owed("drive", target="c")
        fence = moving.take().fence
        scanning.take()
        engage()
        sweep()
        with statement() as connection:
            (order,) = list_due_stops(connection)
        assert (order["target"], order["reason"]) == ("a", "emergency_stop")
        assert order["fence"] > fence

    def test_a_stop_over_one_robot_leaves_the_others_alone(self, owed: Owed, engage: Any) -> None:
        mine, others = owed("drive", target="a"), owed("drive", target="b")
        engage("a")
        assert sweep().revoked == 1
        assert (mine.ticket["state"], others.ticket["state"]) == ("failed", "queued")
        assert mine.ticket["error"] == "Emergency stop of a: smoke"

    def test_what_stops_a_robot_is_not_swept(self, owed: Owed, engage: Any) -> None:
        jobs = [owed("stop"), owed("brake")]
        engage()
        assert sweep().revoked == 0
        assert [job.ticket["state"] for job in jobs] == ["queued", "queued"]

    def test_nothing_is_swept_while_nothing_is_engaged(self, owed: Owed, engage: Any, release: Any) -> None:
        engage()
        release()
        job = owed("drive")
        assert sweep() == estop.Swept()
        assert job.ticket["state"] == "queued"

    def test_a_sweep_ends_more_than_one_batch(self, owed: Owed, engage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(estop, "BATCH", 2)
        for _ in range(5):
            owed("scan")
        engage()
        assert (sweep().revoked, rows("SELECT FROM jobs")) == (5, [])

    def test_a_sweep_that_is_cut_short_says_what_is_left(
        self, owed: Owed, engage: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(estop, "BATCH", 2)
        for _ in range(5):
            owed("scan")
        engage()
        with statement() as connection:
            swept = estop.sweep_tickets(connection, "guardian", seconds=-1)
        assert (swept.revoked, swept.left) == (2, 3)

    def test_a_ticket_that_somebody_holds_keeps_no_other_robot_moving(self, owed: Owed, engage: Any) -> None:
        held, other = owed("drive", target="a"), owed("drive", target="b")
        for job in (held, other):
            job.take()
        engage()

        def hold(connection: Connection) -> None:
            connection.execute(text("SELECT FROM tickets WHERE id = :id FOR UPDATE"), {"id": held.ticket_id})

        _, swept = meanwhile(hold, lambda connection: estop.sweep_tickets(connection, "guardian"))
        assert swept == estop.Swept(revoked=1, left=1)
        assert (held.ticket["state"], other.ticket["state"]) == ("executing", "failed")
        assert sweep() == estop.Swept(revoked=1, left=0)


class TestAccepting:
    @pytest.mark.parametrize("scope", ["all", ROBOT])
    @pytest.mark.parametrize("command", ["drive", "scan", "dance"])
    def test_nothing_but_a_stop_is_accepted(self, owed: Owed, engage: Any, scope: str, command: str) -> None:
        ticket_id = created(owed, command)
        engage(scope)
        with pytest.raises(Conflict) as refused:
            accept(owed, ticket_id)
        assert refused.value.code == "emergency_stop"
        assert "smoke" in refused.value.message
        assert state(ticket_id) == "pending"
        assert rows("SELECT FROM jobs") == []

    @pytest.mark.parametrize("command", ["stop", "brake"])
    def test_a_stop_and_a_brake_are_accepted(self, owed: Owed, engage: Any, command: str) -> None:
        engage()
        assert accept(owed, created(owed, command))["state"] == "queued"

    def test_an_ended_ticket_is_not_forced_past_it_and_runs_again_after_it(
        self, owed: Owed, engage: Any, release: Any
    ) -> None:
        job = owed("drive")
        engage()
        sweep()
        with pytest.raises(Conflict) as refused:
            accept(owed, job.ticket_id, force=True)
        assert (refused.value.code, state(job.ticket_id)) == ("emergency_stop", "failed")
        release()
        assert accept(owed, job.ticket_id, force=True)["state"] == "queued"

    def test_a_stop_over_one_robot_lets_the_others_be_executed(self, owed: Owed, engage: Any) -> None:
        engage("a")
        assert accept(owed, created(owed, target="b"))["state"] == "queued"

    def test_an_execution_that_waited_while_it_was_engaged_is_swept(self, owed: Owed, engage: Any) -> None:
        """It carries on with the snapshot from before, in which nothing was engaged."""
        ticket_id = created(owed)
        with ThreadPoolExecutor(1) as pool:
            with transaction() as connection:
                connection.execute(text("SELECT FROM tickets WHERE id = :id FOR UPDATE"), {"id": ticket_id})
                slow = pool.submit(accept, owed, ticket_id)
                waits_or_ends(slow)
                assert engage()
                assert sweep().revoked == 0
            assert slow.result(DEADLINE_SECONDS)["state"] == "queued"
        assert sweep().revoked == 1
        assert state(ticket_id) == "failed"


class TestReleasing:
    def test_what_was_queued_before_a_release_is_ended_first(self, owed: Owed, engage: Any, release: Any) -> None:
        job = owed("drive")
        engage()
        released, swept = release()
        assert (released, swept.revoked) == (True, 1)
        assert job.ticket["error_code"] == "emergency_stop"

    def test_while_something_is_still_being_ended_nothing_is_released(
        self, owed: Owed, engage: Any, release: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(estop, "count_latched_tickets", lambda *_, **__: 3)
        engage()
        with pytest.raises(Conflict) as refused:
            release()
        assert refused.value.code == "estop_sweeping"
        with statement() as connection:
            assert latch.find_latch(connection, "all") is not None

    def test_a_release_of_everything_keeps_a_single_robot_stopped(self, owed: Owed, engage: Any, release: Any) -> None:
        engage()
        engage("a")
        assert release()[0] is True
        with pytest.raises(Conflict):
            accept(owed, created(owed, target="a"))
        assert accept(owed, created(owed, target="b"))["state"] == "queued"

    def test_releasing_what_is_not_engaged_says_so(self, release: Any) -> None:
        assert release("a") == (False, estop.Swept())

    def test_each_act_is_told_to_the_ledger_once(self, engage: Any, release: Any) -> None:
        for act in (engage, engage, release, release):
            act()
        told = rows("SELECT topic, subject_id, actor, reason FROM ledger WHERE subject_kind = 'latch' ORDER BY seq")
        assert [tuple(row.values()) for row in told] == [
            ("estop_engaged", "all", "writer", "smoke"),
            ("estop_released", "all", "writer", "all clear"),
        ]


class TestTheRobot:
    @pytest.mark.parametrize("scope", ["all", ROBOT])
    def test_it_begins_no_motion_while_it_is_stopped(self, engage: Any, scope: str) -> None:
        engage(scope)
        with pytest.raises(robots.Stopped, match="smoke"):
            begin()
        assert all_motions() == []

    def test_it_moves_while_another_is_stopped(self, engage: Any) -> None:
        engage("another")
        assert begin().remaining > 0

    def test_it_moves_after_a_release(self, engage: Any, release: Any) -> None:
        engage()
        release()
        assert begin().remaining > 0

    def test_it_begins_nothing_that_is_older_than_a_stop_on_its_way(
        self, owed: Owed, engage: Any, release: Any
    ) -> None:
        """Revoked and released before the stop reached it: the revoked command must not slip through."""
        fence = owed("drive").take().fence
        engage()
        sweep()
        with pytest.raises(Conflict, match="may still move: rover"):
            release()
        release(force=True)
        with pytest.raises(robots.StaleFence, match="owed a stop"):
            begin(fence)
        assert all_motions() == []
        change("UPDATE stop_orders SET done_at = clock_timestamp()")
        newer = owed("drive").take().fence
        assert begin(newer).remaining > 0

    def test_it_can_still_be_stopped(self, engage: Any) -> None:
        begin(1)
        engage()
        robot = stop(2)
        assert robot is not None
        assert not robot.moving


@pytest.mark.parametrize("name", ["all", "ALL", "All"])
def test_no_robot_may_be_called_all(owed: Owed, name: str) -> None:
    with pytest.raises(IntegrityError, match="tickets_target_check"):
        created(owed, target=name)


def test_a_sweep_over_one_robot_reads_no_other_robots_backlog(owed: Owed, engage: Any) -> None:
    """The questions of a sweep run along an index of what is going on, however much waits elsewhere."""
    for _ in range(3):
        owed("scan", target="b")
    change(
        "INSERT INTO tickets (command, params, priority, timeout_seconds, metadata, target, tenant, created_by, state,"
        " correlation_id) SELECT 'scan', '{}', 'normal', 30, '{}', 'b' || n, 't', 'c', 'queued', 'x'"
        " FROM generate_series(1, 20000) AS n"
    )
    change("ANALYZE tickets")
    engage("a")
    asked = queries.latched_tickets("queued", everything=False).limit(500)
    sql = str(asked.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}))
    plan = "\n".join(row["QUERY PLAN"] for row in rows("EXPLAIN " + sql))
    assert "tickets_live_ix" in plan
    assert "target = latches.scope" in plan
