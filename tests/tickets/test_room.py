"""The room: straight lines, walls that stop a robot, and what its sensors see."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tickets import room
from models.tickets.room import FLOOR, OBSTACLES, ROBOT_RADIUS, START, WALLS, Pose, travel

TOLERANCE = 1e-6


def within(pose: Pose, box: room.Box, margin: float = 0.0) -> bool:
    return box.west + margin < pose.x < box.east - margin and box.south + margin < pose.y < box.north - margin


def fits(pose: Pose) -> bool:
    """Whether a robot may stand here: on the floor and in none of the boxes."""
    on_floor = FLOOR.west <= pose.x <= FLOOR.east and FLOOR.south <= pose.y <= FLOOR.north
    return on_floor and not any(within(pose, box, TOLERANCE) for box in room.BLOCKED)


directions = st.one_of(
    st.floats(0, 360, exclude_max=True),
    st.sampled_from([0, 45, 90, 135, 180, 225, 270, 315, 1e-9, 89.99999999, 359.9999999999]),
)
speeds = st.floats(0, 3)
durations = st.floats(0, 300)
poses = st.builds(
    Pose, st.floats(FLOOR.west, FLOOR.east), st.floats(FLOOR.south, FLOOR.north), st.floats(0, 359)
).filter(fits)
legs = st.lists(st.tuples(speeds, directions, durations), min_size=1, max_size=12)


def test_an_open_floor_is_crossed_at_speed_times_time() -> None:
    done = travel(START, speed=1.5, direction=90, seconds=5)
    assert done.distance == 7.5
    assert (done.pose.x, done.pose.y, done.pose.heading) == (2.0, 9.5, 90)
    assert not done.collided


def test_a_wall_stops_the_hull_of_a_robot() -> None:
    done = travel(START, speed=3, direction=180, seconds=300)
    assert done.pose.x == ROBOT_RADIUS
    assert done.distance == pytest.approx(1.75)
    assert done.collided


def test_a_box_stops_a_robot_too() -> None:
    done = travel(Pose(8.75, 2, 0), speed=1, direction=90, seconds=60)
    assert done.pose.y == pytest.approx(6.5 - ROBOT_RADIUS)
    assert done.collided


def test_a_robot_at_a_wall_can_move_along_it_and_away() -> None:
    at_wall = travel(START, 3, 180, 60).pose
    assert travel(at_wall, 1, 90, 3).distance == 3
    assert travel(at_wall, 1, 0, 3).distance == 3
    assert travel(at_wall, 1, 180, 3).distance == 0


def test_a_robot_at_a_box_can_move_along_it_and_away() -> None:
    at_box = travel(Pose(8.75, 2, 0), 1, 90, 60).pose
    assert travel(at_box, 1, 0, 3).distance == 3
    assert travel(at_box, 1, 270, 3).distance == 3
    assert travel(at_box, 1, 90, 3).distance == 0


def test_reaching_a_wall_exactly_is_no_collision() -> None:
    assert not travel(START, speed=1.75, direction=180, seconds=1).collided


def test_no_time_or_no_speed_is_no_movement_but_a_turn() -> None:
    assert travel(START, 0, 45, 300) == room.Travel(Pose(2.0, 2.0, 45), 0.0, collided=False)
    assert travel(START, 3, 45, 0).distance == 0


@settings(deadline=None)  # a busy machine is no defect
@given(poses, speeds, directions, durations)
def test_a_robot_never_goes_farther_than_its_speed_allows(
    pose: Pose, speed: float, direction: float, seconds: float
) -> None:
    done = travel(pose, speed, direction, seconds)
    moved = math.hypot(done.pose.x - pose.x, done.pose.y - pose.y)
    assert 0 <= done.distance <= speed * seconds
    assert moved == pytest.approx(done.distance, abs=TOLERANCE)
    assert done.collided or done.distance == speed * seconds


@settings(deadline=None)  # a busy machine is no defect
@given(poses, legs)
def test_a_robot_is_never_outside_the_room_or_inside_a_box(pose: Pose, legs: list[tuple[float, float, float]]) -> None:
    for speed, direction, seconds in legs:
        pose = travel(pose, speed, direction, seconds).pose
        assert fits(pose)


@settings(deadline=None)  # a busy machine is no defect
@given(poses, speeds, directions, durations, st.floats(0, 1))
def test_a_drive_in_two_parts_leads_where_the_whole_one_does(
    pose: Pose, speed: float, direction: float, seconds: float, part: float
) -> None:
    whole = travel(pose, speed, direction, seconds)
    first = travel(pose, speed, direction, seconds * part)
    second = travel(first.pose, speed, direction, seconds * (1 - part))
    assert first.distance <= whole.distance + TOLERANCE
    assert first.distance + second.distance == pytest.approx(whole.distance, abs=1e-3)


@settings(deadline=None)  # a busy machine is no defect
@given(poses, directions)
def test_what_is_ahead_is_how_far_a_robot_sees(pose: Pose, direction: float) -> None:
    seen = room.ranges(Pose(pose.x, pose.y, direction))["front"]
    driven = travel(pose, 3, direction, 300).distance
    assert driven <= seen + TOLERANCE


def test_the_four_range_finders_look_along_the_heading() -> None:
    ranges = room.ranges(Pose(2, 2, 0))
    assert ranges == pytest.approx({"front": 17.75, "left": 9.75, "rear": 1.75, "right": 1.75})
    turned = room.ranges(Pose(2, 2, 90))
    assert turned == pytest.approx({"front": 9.75, "left": 1.75, "rear": 1.75, "right": 17.75})


@settings(deadline=None)  # a busy machine is no defect
@given(poses, st.integers(1, 360))
def test_a_scan_reads_finite_lengths_within_the_room(pose: Pose, points: int) -> None:
    readings = room.scan(pose, points)
    assert len(readings) == points
    diagonal = math.hypot(WALLS.east, WALLS.north)
    assert all(0 <= reading <= diagonal for reading in readings)
    assert readings[0] == room.ranges(pose)["front"]


def test_all_three_boxes_are_in_sight_from_the_start() -> None:
    assert room.obstacles_detected(START) == len(OBSTACLES) == 3


def test_a_box_behind_a_box_is_not_seen() -> None:
    pillar_behind_crate = Pose(15, 5 + ROBOT_RADIUS, 90)
    assert room.obstacles_detected(pillar_behind_crate) == 2


@settings(deadline=None)  # a busy machine is no defect
@given(poses)
def test_a_scan_never_sees_more_boxes_than_there_are(pose: Pose) -> None:
    assert 0 <= room.obstacles_detected(pose, points=36) <= len(OBSTACLES)
