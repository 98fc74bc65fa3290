"""The feed of the webhooks: turns ledger rows into deliveries, once each, whoever reads.

One process at a time reads from a position in a row up to the horizon; the deliveries
and the new position commit together. Only kinds of subjects that were made a source are
told outside, to subscriptions of the subject's own tenant. Deliveries are no source, so
that what happens to them is never delivered; a subscription hears nothing of itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from models.kernel.horizon import find_horizon
from models.kernel.session import statement, transaction
from models.kernel.settings import settings
from models.kernel.transition import Subject
from models.kernel.webhooks import subscriptions as webhooks
from models.kernel.webhooks.moves import BIRTH

MOST_IN_PASS = 500
ACTOR = "feeder"


@dataclass(frozen=True)
class Source:
    """A kind of subject that is told of outside: which topics, and which columns each event shows."""

    subject: Subject
    topics: Collection[str]
    shown: tuple[str, ...] = ()


SOURCES: dict[str, Source] = {}


def register_source(subject: Subject, topics: Collection[str], *shown: str) -> None:
    """Tell the subscriptions of a subject's tenant what happens to it. Its table has a column `tenant`."""
    SOURCES[subject.kind] = Source(subject, topics, shown)


register_source(webhooks.SUBJECT, webhooks.PUBLIC_TOPICS)

_LOOK = text(
    """
    SELECT seq, (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM ledger_seq) AS last,
           (SELECT count(*) FROM webhooks WHERE state = 'enabled') AS subscriptions
      FROM webhook_position
    """
)

# The last number was read in a statement before: whoever subscribes after this one's snapshot wants later numbers.
_PASS_BY = text(
    """
    UPDATE webhook_position SET seq = :upto
     WHERE seq < :upto AND NOT EXISTS (SELECT FROM webhooks WHERE state IN ('enabled'))
    """
)

_HOLD = text("SELECT seq FROM webhook_position FOR UPDATE SKIP LOCKED")
_MOVE_ON = text("UPDATE webhook_position SET seq = :upto")


def subjects_of(sources: Sequence[Source]) -> str:
    """The select of kind, id, tenant and shown columns of the subjects in the news."""
    return " UNION ALL ".join(
        f"""
        SELECT '{source.subject.kind}' AS kind, id, tenant,
               jsonb_build_object({", ".join(f"'{name}', {name}" for name in source.shown)}) AS shown
          FROM {source.subject.table.name}
         WHERE id IN (SELECT subject_id FROM news WHERE subject_kind = '{source.subject.kind}')
        """  # noqa: S608 - names of our own tables
        for source in sources
    )


def owed_query(sources: Sequence[Source]) -> Any:
    """What is owed to whom for the ledger's rows in (after, upto]."""
    told = " OR ".join(f"(subject_kind = '{one.subject.kind}' AND topic = ANY(:{one.subject.kind}))" for one in sources)
    return text(
        f"""
        WITH news AS MATERIALIZED (
            SELECT * FROM ledger
             WHERE seq > :after AND seq <= :upto AND ({told})
        ), subjects AS MATERIALIZED ({subjects_of(sources)})
        SELECT news.seq, news.topic, news.correlation_id, webhooks.id AS webhook_id, webhooks.tenant,
               news.subject_kind, news.subject_id, news.revision, news.from_state, news.to_state,
               news.at, news.body, subjects.shown
          FROM news
          JOIN subjects ON subjects.kind = news.subject_kind AND subjects.id = news.subject_id
          JOIN webhooks ON webhooks.tenant = subjects.tenant AND webhooks.state = 'enabled'
                       AND webhooks.after_seq < news.seq
         WHERE (news.subject_kind, news.subject_id) <> ('webhook', webhooks.id)
           AND EXISTS (SELECT FROM unnest(webhooks.topics) AS filter
                        WHERE news.topic LIKE replace(replace(filter, '_', '\\_'), '*', '%'))
         ORDER BY news.seq, webhooks.id
        """  # noqa: S608
    )


def payload_of(row: Any) -> dict[str, Any]:
    """The body of the message: an event as the live streams show it."""
    data = {
        "seq": row.seq,
        "type": row.topic,
        f"{row.subject_kind}_id": row.subject_id,
        **row.shown,
        "revision": row.revision,
        "from": row.from_state,
        "to": row.to_state,
        "at": row.at.isoformat(),
        "correlation_id": row.correlation_id,
        "data": row.body,
    }
    return {"type": row.topic, "timestamp": row.at.isoformat(), "data": data}


def delivery_of(row: Any, attempts: int) -> dict[str, Any]:
    """The id sorts as the ledger does, since jobs of a lane that are born together take their order from it."""
    return {
        "id": f"msg_{row.seq:019d}_{row.webhook_id.removeprefix('wh_')}",
        "webhook_id": row.webhook_id,
        "tenant": row.tenant,
        "seq": row.seq,
        "topic": row.topic,
        "payload": payload_of(row),
        "max_attempts": attempts,
        "correlation_id": row.correlation_id,
    }


def feed_webhooks(most: int = MOST_IN_PASS) -> tuple[int, bool]:
    """Read on, by a bounded number of rows; answers how many deliveries came of it and whether more rows wait.

    Nothing is read while a writer outlasts the wait for the horizon, or while another process feeds.
    """
    with statement() as connection:
        seen = connection.execute(_LOOK).one()
        if seen.last <= seen.seq:
            return 0, False
        if not seen.subscriptions:
            connection.execute(_PASS_BY, {"upto": seen.last})
            return 0, False
        horizon = find_horizon(connection)
    if horizon is None:
        return 0, False
    with transaction() as connection:
        return feed_upto(connection, horizon, max(1, most // seen.subscriptions))


def feed_upto(connection: Connection, horizon: int, most: int) -> tuple[int, bool]:
    position = connection.scalar(_HOLD)
    if position is None or position >= horizon:
        return 0, False
    upto = min(horizon, position + most)
    sources = list(SOURCES.values())
    asked = {"after": position, "upto": upto, **{kind: sorted(one.topics) for kind, one in SOURCES.items()}}
    owed = connection.execute(owed_query(sources), asked).all()
    if owed:
        attempts = settings().webhook_attempts
        BIRTH(connection, [delivery_of(row, attempts) for row in owed], actor=ACTOR)
    connection.execute(_MOVE_ON, {"upto": upto})
    return len(owed), upto < horizon
