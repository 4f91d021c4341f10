"""Many operations accepted in one statement, each for itself: what cannot be accepted is told, the rest is stored.

The statement is that of `core/acceptance.py` for arrays. A user's operations of a batch take consecutive `seq` in the
order of the batch: all of them where there is room, which is one visit of the user's row; else the first ones. Nobody
waits for each other's users in a circle: batches are stored one after another (`Limits.admission_of_all`), and whoever
else holds a user's row waits for no other.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from core import acceptance, views
from core.db import Prepared, array, text_array
from core.errors import Refusal
from core.ids import new_id
from core.limits import Bounds, Limits
from core.operations import Command, Type

Errors = list[dict[str, Any]]

ACCEPT = Prepared(
    "accept_batch",
    [
        *("uuid", "uuid", "text", "bytea"),  # batch, who asks, request id, hash of the whole batch
        *("int[]", "uuid[]", "uuid[]", "text[]", "bigint[]"),  # place in the batch, id, user, type, amount
        *("uuid[]", "uuid[]", "text[]", "uuid[]"),  # account, receiver by user id, username or account id
        *("text[]", "text[]"),  # comment, metadata
        "bigint",  # how many unfinished operations a user may have
    ],
    """
WITH item AS (
    SELECT * FROM unnest($5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
        AS i (place, id, user_id, type, amount, account_id, to_user_id, to_username, to_account_id, comment, metadata)
), resolved AS (
    SELECT item.*, source.id AS source_id, source.currency, receiver.id AS receiver_id,
           coalesce(coalesce(item.to_user_id, named.id) = item.user_id OR item.to_account_id = source.id, false)
               AS to_self
      FROM item
      LEFT JOIN accounts source
        ON source.user_id = item.user_id AND source.kind = 'main'
       AND (source.id = item.account_id OR (item.account_id IS NULL AND source.is_default))
      LEFT JOIN users named ON lower(named.username) = lower(item.to_username)
      LEFT JOIN LATERAL (
        (SELECT a.id FROM accounts a
          WHERE a.user_id = coalesce(item.to_user_id, named.id) AND a.kind = 'main' AND a.user_id <> item.user_id
          ORDER BY a.currency = source.currency DESC, a.is_default DESC, a.id LIMIT 1)
        UNION ALL
        SELECT a.id FROM accounts a WHERE a.id = item.to_account_id AND a.kind = 'main' AND a.id <> source.id
      ) AS receiver ON item.type = 'transfer'
), sound AS (
    SELECT * FROM resolved WHERE source_id IS NOT NULL AND (type <> 'transfer' OR receiver_id IS NOT NULL)
), wanted AS (
    SELECT user_id, count(*) AS operations FROM sound GROUP BY user_id
), roomy AS (
    UPDATE users SET next_seq = next_seq + operations,
                     turn = greatest(users.turn + 1, lanes.turn) + operations - 1
      FROM wanted, progress, lanes
     WHERE users.id = wanted.user_id AND disabled_at IS NULL
       AND progress.user_id = wanted.user_id AND next_seq - done_seq + operations <= $16 AND lanes.id = users.lane
    RETURNING users.id, users.lane, users.next_seq - operations AS seq, users.turn - operations AS turn,
              operations AS granted, $16 - next_seq + done_seq AS room
), tight AS (
    SELECT users.id, least(operations, $16 - next_seq + done_seq) AS granted
      FROM wanted JOIN progress USING (user_id) JOIN users ON users.id = user_id
     WHERE user_id NOT IN (SELECT id FROM roomy) AND disabled_at IS NULL
       FOR NO KEY UPDATE OF users
), squeezed AS (
    UPDATE users SET next_seq = next_seq + granted, turn = greatest(users.turn + 1, lanes.turn) + granted - 1
      FROM tight, lanes
     WHERE users.id = tight.id AND granted > 0 AND lanes.id = users.lane
    RETURNING users.id, users.lane, users.next_seq - granted AS seq, users.turn - granted AS turn, granted
), taken AS (
    SELECT id, lane, seq, turn, granted FROM roomy UNION ALL SELECT * FROM squeezed
), acceptable AS (
    SELECT * FROM (
        SELECT sound.*, taken.lane, taken.seq, taken.turn, taken.granted,
               row_number() OVER (PARTITION BY user_id ORDER BY place) AS nth
          FROM sound JOIN taken ON taken.id = sound.user_id) AS numbered
     WHERE nth <= granted
), accepted AS (
    INSERT INTO operations (id, user_id, requested_by, seq, lane, type, account_id, counterparty_id, amount,
                            currency, comment, metadata, request_hash, request_id, created_at, batch_id, batch_index)
    SELECT id, user_id, $2, seq + nth, lane, type, source_id, receiver_id, amount,
           currency, comment, metadata::jsonb, $4, $3, clock_timestamp(), $1, place
      FROM acceptable
), queued AS (
    INSERT INTO queue (lane, turn, operation_id) SELECT lane, turn + nth, id FROM acceptable
)
SELECT whole.*, refused.*
  FROM (SELECT ARRAY(SELECT DISTINCT lane FROM taken) AS lanes,
               coalesce((SELECT room FROM roomy WHERE id = $2), (SELECT 0 FROM tight WHERE id = $2)) AS own_room)
           AS whole
  LEFT JOIN (
    SELECT r.place, r.source_id, r.receiver_id, r.to_self,
           EXISTS (SELECT FROM tight WHERE tight.id = r.user_id) AS crowded,
           EXISTS (SELECT FROM users WHERE id = r.user_id AND disabled_at IS NOT NULL) AS disabled
      FROM resolved r WHERE r.place NOT IN (SELECT place FROM acceptable)) AS refused ON true
""",
)

# A batch's operations got their ids one after another: between the first and the last are few of others.
ITEMS = Prepared(
    "batch_items",
    ["uuid", "uuid", "uuid"],
    "SELECT batch_index, id, status FROM operations WHERE id BETWEEN $1 AND $2 AND batch_id = $3",
)


@dataclass(frozen=True)
class Header:
    """Of a whole batch: who asks, under which idempotency key, in which request."""

    requested_by: str
    idempotency_key: str | None
    request_id: str | None


@dataclass(frozen=True)
class Stored:
    """A stored batch, the lanes to be rung, and whether it was there before.

    If it was not: what was accepted by type, how its sender sees it, and own_room: how many more unfinished operations
    its sender may have, where any of these are the sender's own.
    """

    batch_id: str
    lanes: Sequence[int]
    replayed: bool
    accepted: Counter[Type] = field(default_factory=Counter)
    document: dict[str, Any] | None = None
    own_room: int | None = None


def accept(
    connection: sa.Connection,
    commands: Mapping[int, Command],
    invalid: Mapping[int, Errors],
    header: Header,
    limits: Limits,
) -> Stored:
    """Store the batch and what can be accepted of it, in the caller's transaction.

    commands: by place in the batch. invalid: the errors of the other places.
    Raises Refusal idempotency_key_reused, overloaded; Simultaneous.
    """
    request_hash = hash_of(commands, invalid)
    if replayed := replay(connection, header, request_hash):
        return replayed
    batch_id = new_id()
    asked = (batch_id, header.requested_by, header.request_id, request_hash)
    ids = {place: new_id() for place in commands}
    with limits.admission_of_all(connection, len(commands)) as admission:
        bounds = limits.bounds(admission.room)
        rows = ACCEPT.rows(connection, (*asked, *columns(ids, commands), bounds.user_pending_max))
        refused = {row.place: [error_of(row, commands[row.place], bounds)] for row in rows if row.place is not None}
        accepted = [place for place in commands if place not in refused]
        admission.stored = len(accepted)
    refused |= invalid
    size = len(commands) + len(invalid)
    batch = insert(connection, batch_id, header, request_hash, size, ids.values(), refused)
    results: list[dict[str, Any]] = [{"index": place, "id": ids[place], "status": "pending"} for place in accepted]
    results += [{"index": place, "errors": errors} for place, errors in refused.items()]
    results.sort(key=lambda result: result["index"])
    return Stored(
        batch_id,
        rows[0].lanes,
        replayed=False,
        accepted=Counter(commands[place].type for place in accepted),
        document=document(batch, results),
        own_room=rows[0].own_room,
    )


def insert(
    connection: sa.Connection,
    batch_id: str,
    header: Header,
    request_hash: bytes,
    size: int,
    operation_ids: Collection[str],
    refused: dict[int, Errors],
) -> sa.Row:
    """Store the batch itself. Raises Simultaneous."""
    query = """
INSERT INTO batches (id, requested_by, idempotency_key, request_hash, size, refused,
                     first_operation_id, last_operation_id)
VALUES (:id, :by, :key, :hash, :size, CAST(:refused AS jsonb), :first, :last) RETURNING id, created_at"""
    values = {
        "id": batch_id,
        "by": header.requested_by,
        "key": header.idempotency_key,
        "hash": request_hash,
        "size": size,
        "first": min(operation_ids, default=batch_id),
        "last": max(operation_ids, default=batch_id),
        "refused": msgspec.json.encode({str(place): refused[place] for place in sorted(refused)}).decode(),
    }
    try:
        return connection.execute(sa.text(query), values).one()
    except IntegrityError as error:
        if acceptance.constraint_of(error) == "batches_requested_by_idempotency_key_key":
            raise Simultaneous from None
        raise


def is_known(connection: sa.Connection, requested_by: str, key: str) -> bool:
    """Whether there is a batch under the key."""
    query = "SELECT EXISTS (SELECT FROM batches WHERE requested_by = :by AND idempotency_key = :key)"
    return bool(connection.execute(sa.text(query), {"by": requested_by, "key": key}).scalar_one())


class Simultaneous(Exception):
    """Another request has just stored a batch under this key: undo everything, and ask again."""


def hash_of(commands: Mapping[int, Command], invalid: Mapping[int, Errors]) -> bytes:
    """SHA-256 of everything that was asked for."""
    asked = [(place, command.user_id, *acceptance.asked_for(command)) for place, command in sorted(commands.items())]
    return hashlib.sha256(msgspec.json.encode((asked, sorted(invalid)))).digest()


def replay(connection: sa.Connection, header: Header, request_hash: bytes) -> Stored | None:
    """The batch that the caller's key stands for already, or None. Raises Refusal idempotency_key_reused."""
    if header.idempotency_key is None:
        return None
    row = connection.execute(
        sa.text("SELECT id, request_hash FROM batches WHERE requested_by = :by AND idempotency_key = :key"),
        {"by": header.requested_by, "key": header.idempotency_key},
    ).one_or_none()
    if row is None:
        return None
    if bytes(row.request_hash) != request_hash:
        raise acceptance.key_reused()
    return Stored(row.id, (), replayed=True)


def columns(ids: Mapping[int, str], commands: Mapping[int, Command]) -> list[Any]:
    """The commands, and the ids that they get, as arrays, in the order of ACCEPT's parameters from the fifth on."""
    asked = commands.values()
    return [
        array(ids),
        array(ids.values()),
        array(command.user_id for command in asked),
        array(command.type for command in asked),
        array(command.amount for command in asked),
        array(command.account_id for command in asked),
        array(command.to_user_id for command in asked),
        text_array(command.to_username for command in asked),
        array(command.to_account_id for command in asked),
        text_array(command.comment for command in asked),
        text_array(acceptance.metadata_json(command) for command in asked),
    ]


def error_of(row: Any, command: Command, bounds: Bounds) -> dict[str, Any]:
    """Why an item was refused, in the order of precedence of `core/acceptance.py`."""
    if row.source_id is None and not row.disabled:
        refusal = acceptance.no_account(command)
    elif command.type == "transfer" and row.receiver_id is None and not row.disabled:
        refusal = acceptance.no_receiver(command, to_self=row.to_self)
    elif row.crowded:
        refusal = acceptance.too_many_pending(bounds)
    else:  # so it is, too, for one who was disabled while the statement waited
        refusal = Refusal("user_disabled", "The user is disabled, and can do nothing.")
    return {"pointer": refusal.pointer or "", "code": refusal.code, "detail": refusal.detail}


def find(connection: sa.Connection, batch_id: str) -> sa.Row | None:
    """The batch's row, or None."""
    return connection.execute(sa.text("SELECT * FROM batches WHERE id = :id"), {"id": batch_id}).one_or_none()


def items(connection: sa.Connection, batch: sa.Row) -> list[dict[str, Any]]:
    """What became of each item, in the order of the batch: its operation and status, or its errors."""
    asked = (batch.first_operation_id, batch.last_operation_id, batch.id)
    found: dict[int, dict[str, Any]] = {
        row.batch_index: {"index": row.batch_index, "id": row.id, "status": row.status}
        for row in ITEMS.rows(connection, asked)
    }
    for place, errors in (views.as_json(batch.refused) or {}).items():
        found[int(place)] = {"index": int(place), "errors": errors}
    return [found[place] for place in sorted(found)]


def document(batch: sa.Row, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch as its sender sees it: counts by status, and every item."""
    counts: dict[str, int] = {}
    for result in results:
        status = result.get("status", "refused")
        counts[status] = counts.get(status, 0) + 1
    return {
        "batch_id": batch.id,
        "atomic": False,
        "accepted": len(results) - counts.get("refused", 0),
        "counts": counts,
        "created_at": views.moment(batch.created_at),
        "items": list(results),
    }
