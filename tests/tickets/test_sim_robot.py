"""The simulated robots on a real database: fences, clocks, races."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from models.kernel.clock import utcnow
from models.kernel.errors import NotFound
from models.kernel.session import statement, transaction
from models.tickets import robots
from models.tickets.room import START
from tests.tickets.rover import (
    ROBOT,
    WAITING,
    all_motions,
    begin,
    finish,
    let_pass,
    look,
    poll,
    stop,
)

pytestmark = pytest.mark.usefixtures("database")


class TestBeginning:
    def test_a_robot_never_heard_of_stands_at_the_start(self) -> None:
        robot = look()
        assert (robot.pose, robot.fence, robot.moving) == (START, 0, False)

    def test_a_motion_begins_now_and_ends_by_itself(self) -> None:
        motion = begin(seconds=10, time_scale=2.0)
        assert motion.until - motion.began_at == timedelta(seconds=5)
        assert motion.ended_at is None
        assert 0 < motion.remaining <= 5
        assert look().moving

    def test_a_stale_fence_cannot_begin_a_motion(self) -> None:
        stop(7)
        for fence in (6, 7):
            with pytest.raises(robots.StaleFence):
                begin(fence)
        assert all_motions() == []

    def test_the_same_command_cannot_begin_twice(self) -> None:
        begin(3)
        let_pass(60)
        with pytest.raises(robots.StaleFence):
            begin(3)
        assert len(all_motions()) == 1

    def test_a_moving_robot_is_busy_even_for_a_newer_fence(self) -> None:
        begin(1)
        with pytest.raises(robots.RobotBusy, match="ticket-1"):
            begin(2)
        assert look().fence == 1

    def test_nothing_begins_after_its_last_moment(self) -> None:
        with pytest.raises(robots.TooLate):
            begin(1, not_after=utcnow() - timedelta(seconds=1))
        assert not look().moving
        begin(1)

    def test_a_motion_whose_time_is_up_makes_room_for_the_next(self) -> None:
        begin(1, speed=1.0, direction=0, seconds=10)
        let_pass(3600)
        begin(2, speed=1.0, direction=90, seconds=4)
        later, earlier = all_motions()
        assert earlier.end_reason == robots.ELAPSED
        assert earlier.ended_at == earlier.until
        assert earlier.travel.distance == 10
        assert later.ended_at is None
        assert later.travel.pose.x == 12.0

    def test_of_two_that_begin_at_once_one_does(self) -> None:
        barrier = threading.Barrier(2)

        def race(fence: int) -> str:
            barrier.wait()
            try:
                begin(fence)
            except robots.MotionRefused as refused:
                return refused.code
            return "began"

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(race, (1, 2)))
        assert sorted(outcomes) in (["began", "robot_busy"], ["began", "stale_fence"])
        assert len(all_motions()) == 1

    def test_a_begin_that_waited_for_the_row_is_judged_by_the_clock_after_its_wait(self) -> None:
        stop(1)
        with ThreadPoolExecutor(1) as pool:
            with transaction() as holder:
                robots.lock_robot(holder, ROBOT)
                last = utcnow() + timedelta(milliseconds=300)
                pending = pool.submit(begin, 2, not_after=last)
                poll(holder, WAITING)
                poll(holder, text("SELECT clock_timestamp() > :last"), last=last)
            with pytest.raises(robots.TooLate):
                pending.result()

    def test_a_begin_that_waited_behind_a_newer_stop_is_refused(self) -> None:
        stop(1)
        with ThreadPoolExecutor(1) as pool:
            with transaction() as holder:
                robots.stop_motion(holder, ROBOT, 5, "stop")
                pending = pool.submit(begin, 2)
                poll(holder, WAITING)
            with pytest.raises(robots.StaleFence):
                pending.result()
        assert all_motions() == []

    def test_robots_do_not_wait_for_each_other(self) -> None:
        begin(1)
        with transaction() as holder:
            robots.lock_robot(holder, ROBOT)
            assert begin(2, target="another").target == "another"


class TestStopping:
    def test_a_stop_integrates_what_was_driven(self) -> None:
        begin(1, speed=2.0, direction=90, seconds=60)
        let_pass(3)
        robot = stop(2)
        assert robot is not None
        (motion,) = all_motions()
        assert motion.end_reason == "stop"
        assert motion.ended_at is not None
        elapsed = (motion.ended_at - motion.began_at).total_seconds()
        assert elapsed >= 3
        assert motion.travel.distance == pytest.approx(2.0 * elapsed)
        assert robot.pose == motion.travel.pose
        assert robot.pose.y == pytest.approx(2.0 + 2.0 * elapsed)
        assert not robot.moving

    def test_time_passes_faster_at_a_time_scale(self) -> None:
        begin(1, speed=0.1, direction=90, seconds=90, time_scale=10)
        let_pass(3)
        stop(2)
        (motion,) = all_motions()
        assert motion.ended_at is not None
        elapsed = (motion.ended_at - motion.began_at).total_seconds()
        assert motion.travel.distance == pytest.approx(0.1 * 10 * elapsed)

    def test_a_stop_reaches_a_robot_that_was_never_heard_of(self) -> None:
        robot = stop(9)
        assert robot is not None
        assert robot.fence == 9
        with pytest.raises(robots.StaleFence):
            begin(8)

    def test_a_stale_stop_leaves_the_newer_motion_alone(self) -> None:
        stop(4)
        begin(5)
        assert stop(4) is None
        assert look().moving

    def test_a_command_stops_its_own_motion(self) -> None:
        begin(5)
        assert stop(5, "timeout") is not None
        assert all_motions()[0].end_reason == "timeout"

    def test_a_stop_after_the_time_was_up_changes_nothing_that_happened(self) -> None:
        begin(1, seconds=10)
        let_pass(60)
        stop(2)
        (motion,) = all_motions()
        assert (motion.end_reason, motion.ended_at, motion.travel.distance) == (robots.ELAPSED, motion.until, 10)
        assert look().fence == 2

    def test_stopping_twice_is_stopping_once(self) -> None:
        begin(1)
        assert stop(2) is not None
        first = all_motions()
        assert stop(2) is not None
        assert all_motions() == first


class TestFinishing:
    def test_a_motion_is_not_over_before_its_time(self) -> None:
        begin(1)
        assert finish(1).ended_at is None
        assert look().moving

    def test_a_finished_motion_covered_speed_times_time(self) -> None:
        begin(1, speed=1.5, direction=90, seconds=5)
        let_pass(5)
        motion = finish(1)
        assert (motion.end_reason, motion.travel.distance, motion.remaining) == (robots.ELAPSED, 7.5, 0)
        assert finish(1) == motion

    def test_who_was_stopped_by_another_learns_why(self) -> None:
        begin(1)
        stop(2, "brake")
        begin(3)
        assert finish(1).end_reason == "brake"
        assert look().moving

    def test_a_motion_that_never_began_is_not_found(self) -> None:
        with pytest.raises(NotFound):
            finish(1)

    def test_each_motion_begins_where_the_one_before_it_ended(self) -> None:
        for fence, direction in enumerate((0, 90, 180, 45, 300), start=1):
            begin(fence, direction=direction)
            let_pass(fence * 3)
            stop(fence)
        with statement() as connection:
            rows = connection.execute(text("SELECT from_x, from_y, to_x, to_y FROM sim_motions ORDER BY id")).all()
        assert len(rows) == 5
        assert all(before[2:] == after[:2] for before, after in pairwise(rows))

    @pytest.mark.parametrize(
        "nonsense",
        [
            "UPDATE sim_robots SET x = 'NaN'",
            "UPDATE sim_robots SET fence = -1",
            "UPDATE sim_robots SET heading = 360",
            "UPDATE sim_robots SET speed = 3.1",
            "UPDATE sim_robots SET started_at = NULL",
            "UPDATE sim_robots SET until = started_at - interval '1 s'",
            "UPDATE sim_motions SET ended_at = until",
            "UPDATE sim_motions SET seconds = 301",
            "INSERT INTO sim_motions (target, fence, command, ticket_id, speed, direction, seconds, time_scale, from_x,"
            " from_y, began_at, until) SELECT target, 99, command, ticket_id, speed, direction, seconds, time_scale,"
            " from_x, from_y, began_at, until FROM sim_motions",
        ],
    )
    def test_the_database_refuses_nonsense(self, nonsense: str) -> None:
        begin(1)
        with pytest.raises(IntegrityError), transaction() as connection:
            connection.execute(text(nonsense))
