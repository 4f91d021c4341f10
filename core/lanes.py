"""Lanes: the ordered roads. Whoever holds a lane's lock, and nobody else, applies its operations."""

from collections.abc import Sequence

import sqlalchemy as sa

from core.db import Prepared, array
from core.operations import Operation

LANE_BATCH_OPERATIONS_MAX = 3_000  # bounds how long one transaction holds its locks: some 120 ms
TURNS_MAX = 40  # of a batch: so many operations of one user at most, that others need not wait for all of a crowd

LOCK = Prepared("lock_lane", ["int"], "SELECT id FROM lanes WHERE id = $1 FOR NO KEY UPDATE")
LOCK_IF_FREE = Prepared("lock_free_lane", ["int"], f"{LOCK.sql} SKIP LOCKED")
# The lane itself is waited for before any other is locked, and none of the others is waited for: so nobody waits for
# one lane while holding another. What is known of work is from before the wait: those who have come since have bells.
# Where there is none, nothing is locked: a lock goes to disk like any change.
# LIMIT 1 on what is one row at the most keeps a look-up what it is, here and below: planned while the queue is empty, a
# join would read all of its index.
LOCK_WITH_OTHERS = Prepared(
    "lock_lanes",
    ["int", "int"],
    """
WITH busy AS MATERIALIZED (
    SELECT id FROM lanes WHERE (SELECT true FROM queue WHERE lane = lanes.id LIMIT 1)
), own AS MATERIALIZED (
    SELECT id FROM lanes WHERE id = $1 AND EXISTS (SELECT FROM busy) FOR NO KEY UPDATE
), others AS MATERIALIZED (
    SELECT id FROM lanes
     WHERE id = ANY (ARRAY(SELECT id FROM busy)) AND id <> $1 AND EXISTS (SELECT FROM own)
       AND (SELECT count(*) FROM (SELECT FROM queue WHERE lane = $1 LIMIT $2) AS few) < $2
     ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id FROM own UNION ALL SELECT id FROM others
""",
)
PENDING = Prepared(
    "pending",
    ["int[]", "int", "bigint"],
    """
SELECT o.* FROM (
    SELECT l.place, due.* FROM unnest($1) WITH ORDINALITY AS l (lane, place) CROSS JOIN LATERAL (
        SELECT turn, operation_id, ctid AS ticket FROM queue
         WHERE lane = l.lane AND turn < $3 + (SELECT min(turn) FROM queue WHERE lane = l.lane)
         ORDER BY turn, operation_id LIMIT $2) AS due
     ORDER BY l.place, due.turn, due.operation_id LIMIT $2) AS next
 LEFT JOIN LATERAL (
    SELECT id, user_id, seq, next.turn, next.ticket, lane, type, account_id, counterparty_id, amount, currency,
           cancel_requested, request_id, service_id
      FROM operations WHERE id = next.operation_id LIMIT 1) AS o ON true
 ORDER BY next.place, next.turn, next.operation_id
""",
)
HEADS = """
SELECT lanes.id AS lane, head.operation_id FROM lanes CROSS JOIN LATERAL (
    SELECT operation_id FROM queue WHERE lane = lanes.id ORDER BY turn, operation_id LIMIT 1) AS head
"""
# Of each lane with work: since when the operation whose turn is next has waited.
WAITING_SINCE = """
SELECT lanes.id AS lane, head.created_at FROM lanes CROSS JOIN LATERAL (
    SELECT o.created_at FROM queue JOIN operations o ON o.id = queue.operation_id
     WHERE queue.lane = lanes.id ORDER BY queue.turn, queue.operation_id LIMIT 1) AS head
"""


def ensure(connection: sa.Connection, count: int) -> None:
    """Create lanes 0 to `count` - 1 where they are missing. There are never fewer: users keep their lane for life."""
    connection.execute(
        sa.text("INSERT INTO lanes (id) SELECT generate_series(0, :count - 1) ON CONFLICT DO NOTHING"),
        {"count": count},
    )


def all_ids(connection: sa.Connection) -> list[int]:
    """Every lane there is, whatever LANES says now."""
    return list(connection.execute(sa.text("SELECT id FROM lanes ORDER BY id")).scalars())


def of_user(user_id: str, count: int) -> int:
    """The lane of a new user: the random end of the id spreads users evenly."""
    return int(user_id.replace("-", "")[-8:], 16) % count


def lock(connection: sa.Connection, lane: int, *, wait: bool) -> list[int]:
    """Take the lane's lock until the transaction ends. Returns the lane; nothing if there is no such lane, or, unless
    `wait`, if somebody else holds it.

    A worker waits: one that left would lose a wake-up for what was accepted after the holder's last look.
    """
    return [row.id for row in (LOCK if wait else LOCK_IF_FREE).rows(connection, (lane,))]


def lock_with_others(connection: sa.Connection, lane: int, few: int) -> list[int]:
    """Take the lane's lock, waiting for it; and where fewer than `few` operations are pending there, the locks of all
    other lanes that have work and that nobody else is at. Returns the lanes, `lane` first; nothing if it is not there,
    or if nothing is pending anywhere.
    """
    return [row.id for row in LOCK_WITH_OTHERS.rows(connection, (lane, few))]


def next_pending(connection: sa.Connection, lane_ids: Sequence[int], limit: int) -> list[Operation]:
    """The next operations, lane by lane, each lane's in the order of application, under their locks.

    Raises LookupError where the queue holds what is no operation: the lane stands until somebody has seen to it.
    """
    rows = PENDING.tuples(connection, (array(lane_ids), limit, TURNS_MAX))
    operations = [Operation(*row) for row in rows]
    if any(operation.id is None for operation in operations):
        raise LookupError(f"the queue of lanes {list(lane_ids)} holds what is no operation: run ./kassa verify")
    return operations


def heads(connection: sa.Connection) -> dict[int, str]:
    """For each lane with work: the id of the operation at its head."""
    return {row.lane: row.operation_id for row in connection.exec_driver_sql(HEADS)}
