"""The room that a simulated robot stands in: pure geometry, in metres, degrees and seconds.

The room is a walled rectangle with three boxes in it; x runs along the long wall, y
along the short one, and angles grow counter-clockwise from the x axis (the yaw of
ROS REP 103). A robot is a disc. To drive it turns on the spot to the direction it
was given and moves in a straight line until its time is up or its hull touches
something, where it stays. A straight line has a closed form, so no step size stands
between the speed and the distance, and a position at any moment costs the same.

Every target has a room of its own: robots do not meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

ROBOT_RADIUS: Final = 0.25
TOUCH: Final = 1e-9
"""Below this many metres two surfaces touch; it keeps rounding from gluing a robot to a wall."""

STRAIGHT: Final = 1e-12
SCAN_POINTS: Final = 360
SIDES: Final = {"front": 0.0, "left": 90.0, "rear": 180.0, "right": 270.0}


@dataclass(frozen=True)
class Pose:
    """Where a robot stands (metres) and looks (degrees in [0, 360))."""

    x: float
    y: float
    heading: float


@dataclass(frozen=True)
class Travel:
    """A movement and what was measured of it: where it led, how many metres, whether a surface ended it."""

    pose: Pose
    distance: float
    collided: bool


@dataclass(frozen=True)
class Box:
    """A rectangle along the axes, from (west, south) to (east, north)."""

    west: float
    south: float
    east: float
    north: float

    def grown(self, by: float) -> Box:
        return Box(self.west - by, self.south - by, self.east + by, self.north + by)


WALLS: Final = Box(0.0, 0.0, 20.0, 12.0)
OBSTACLES: Final = (Box(13.0, 4.0, 17.0, 5.0), Box(8.0, 6.5, 9.5, 8.0), Box(5.0, 9.0, 5.6, 9.6))
START: Final = Pose(2.0, 2.0, 0.0)
"""Where a robot stands that was never moved: all three boxes are in sight."""

FLOOR: Final = WALLS.grown(-ROBOT_RADIUS)
BLOCKED: Final = tuple(box.grown(ROBOT_RADIUS) for box in OBSTACLES)


def travel(pose: Pose, speed: float, direction: float, seconds: float) -> Travel:
    """Drive from `pose` at `speed` m/s towards `direction` (degrees, absolute) for `seconds`.

    The distance is at most speed x seconds; less when a surface was in the way.
    """
    heading = direction % 360.0
    wanted = max(0.0, speed * seconds)
    across, up = unit(heading)
    free = min([leave(FLOOR, pose, across, up), *(enter(box, pose, across, up) for box in BLOCKED)])
    distance = min(wanted, free)
    landed = Pose(
        clamp(pose.x + across * distance, FLOOR.west, FLOOR.east),
        clamp(pose.y + up * distance, FLOOR.south, FLOOR.north),
        heading,
    )
    return Travel(landed, distance, collided=wanted > free)


def ranges(pose: Pose) -> dict[str, float]:
    """Metres from the hull to the nearest surface at front, left, rear and right."""
    return {side: sight(pose, pose.heading + angle)[0] for side, angle in SIDES.items()}


def scan(pose: Pose, points: int = SCAN_POINTS) -> list[float]:
    """Metres from the hull to the nearest surface, `points` rays all around, the first straight ahead."""
    return [distance for distance, _ in rays(pose, points)]


def obstacles_detected(pose: Pose, points: int = SCAN_POINTS) -> int:
    """How many boxes at least one ray of a scan ends on; walls are no obstacles, hidden boxes are not seen."""
    return len({box for _, box in rays(pose, points) if box is not None})


def rays(pose: Pose, points: int) -> Iterator[tuple[float, Box | None]]:
    return (sight(pose, pose.heading + 360.0 * ray / points) for ray in range(points))


def sight(pose: Pose, angle: float) -> tuple[float, Box | None]:
    """The nearest surface along one ray: metres from the hull, and the box it belongs to (None: a wall)."""
    across, up = unit(angle)
    nearest, seen = leave(WALLS, pose, across, up), None
    for box in OBSTACLES:
        distance = enter(box, pose, across, up)
        if distance < nearest:
            nearest, seen = distance, box
    return max(0.0, nearest - ROBOT_RADIUS), seen


def unit(angle: float) -> tuple[float, float]:
    """The unit vector of an angle. A ray meant to be parallel to a wall is exactly parallel."""
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (0.0 if abs(across) < STRAIGHT else across), (0.0 if abs(up) < STRAIGHT else up)


def leave(box: Box, pose: Pose, across: float, up: float) -> float:
    """Metres until a ray from inside a box leaves it."""
    x_exit = crossing(box.west, box.east, pose.x, across)[1] if across else math.inf
    y_exit = crossing(box.south, box.north, pose.y, up)[1] if up else math.inf
    return max(0.0, min(x_exit, y_exit))


def enter(box: Box, pose: Pose, across: float, up: float) -> float:
    """Metres until a ray from outside a box enters it; infinity when it misses or only touches it."""
    x_entry, x_exit = crossing(box.west, box.east, pose.x, across)
    y_entry, y_exit = crossing(box.south, box.north, pose.y, up)
    entry, leaving = max(x_entry, y_entry), min(x_exit, y_exit)
    if leaving <= TOUCH or leaving - entry <= TOUCH:
        return math.inf
    return max(0.0, entry)


def crossing(low: float, high: float, start: float, step: float) -> tuple[float, float]:
    """Where a ray enters and leaves the strip between two parallel lines (Kay and Kajiya's slab method)."""
    if step == 0.0:
        inside = low + TOUCH < start < high - TOUCH
        return (-math.inf, math.inf) if inside else (math.inf, -math.inf)
    first, second = (low - start) / step, (high - start) / step
    return min(first, second), max(first, second)


def clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
