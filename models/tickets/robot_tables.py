"""The rows of the simulated robots; `robots` is the only module that writes them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)

from models.kernel.metadata import metadata

WITHIN_LIMITS = (
    "speed >= 0 AND speed <= 3 AND direction >= 0 AND direction < 360"
    " AND seconds >= 0 AND seconds <= 300 AND time_scale > 0 AND time_scale <= 1000"
)

sim_robots = Table(
    "sim_robots",
    metadata,
    Column("target", Text, primary_key=True),
    # where it stood when it last came to rest
    Column("x", Double, nullable=False),
    Column("y", Double, nullable=False),
    Column("heading", Double, nullable=False),
    # the motion that it is in; at rest all of these are null but speed, which is 0
    Column("speed", Double, nullable=False, server_default=text("0")),
    Column("direction", Double),
    Column("seconds", Double),
    Column("time_scale", Double),
    Column("started_at", DateTime(timezone=True)),
    Column("until", DateTime(timezone=True)),
    Column("ticket_id", Text),
    # the highest fence that it has obeyed
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("x >= 0 AND x <= 1000 AND y >= 0 AND y <= 1000 AND heading >= 0 AND heading < 360", name="pose"),
    CheckConstraint("fence >= 0", name="fence"),
    CheckConstraint(
        "(num_nonnulls(direction, seconds, time_scale, started_at, until, ticket_id) = 0 AND speed = 0) OR"
        " (num_nulls(direction, seconds, time_scale, started_at, until, ticket_id) = 0"
        f" AND until >= started_at AND {WITHIN_LIMITS})",
        name="motion",
    ),
)

sim_motions = Table(
    "sim_motions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("target", Text, ForeignKey("sim_robots.target"), nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("command", Text, nullable=False),
    Column("ticket_id", Text, nullable=False),
    Column("speed", Double, nullable=False),
    Column("direction", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("time_scale", Double, nullable=False),
    Column("from_x", Double, nullable=False),
    Column("from_y", Double, nullable=False),
    Column("began_at", DateTime(timezone=True), nullable=False),
    Column("until", DateTime(timezone=True), nullable=False),
    # written once, together, by whatever ended it
    Column("ended_at", DateTime(timezone=True)),
    Column("ended_by", BigInteger),
    Column("end_reason", Text),
    Column("to_x", Double),
    Column("to_y", Double),
    Column("distance", Double),
    Column("collided", Boolean),
    UniqueConstraint("target", "fence"),
    CheckConstraint(f"fence > 0 AND until >= began_at AND {WITHIN_LIMITS}", name="motion"),
    CheckConstraint(
        "num_nulls(ended_at, ended_by, end_reason, to_x, to_y, distance, collided) = 7 OR"
        " (num_nulls(ended_at, ended_by, end_reason, to_x, to_y, distance, collided) = 0"
        " AND ended_at >= began_at AND ended_at <= until AND ended_by >= fence"
        " AND distance >= 0 AND distance <= speed * seconds + 0.000001)",
        name="end",
    ),
)
Index(
    "sim_motions_one_at_a_time",
    sim_motions.c.target,
    unique=True,
    postgresql_where=sim_motions.c.ended_at.is_(None),
)
