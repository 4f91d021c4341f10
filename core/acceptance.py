"""Step 3 of the story: an operation is accepted in one statement, and only then does the client get its receipt.

The statement resolves the accounts, takes the user's next `seq` under the user's row lock, and inserts the operation
and its place in the queue.
It does all of it or nothing: a used idempotency key undoes the `seq` with it, so that numbers have no gaps.

`turn` is the operation's place in its lane, by start-time fair queueing: one after the user's previous operation, but
not before what the lane is at now. So a user's operations keep their order, and a user who hands in ten thousand at
once does not make the others on the lane wait for all of them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from core import lanes, services, views
from core.db import Prepared
from core.errors import Refusal
from core.ids import new_id
from core.limits import Bounds
from core.metrics import REFUSED
from core.operations import Command
from core.services import Quote

UNBOUNDED = Bounds()
TRIES_MAX = 3  # where no reason for a refusal is left when it is looked for: a price, say, that has just changed

ACCEPT = Prepared(
    "accept",
    [
        *("uuid", "uuid", "uuid", "text", "bigint"),  # id, user, who asks, type, amount
        *("uuid", "uuid", "text", "uuid"),  # account, receiver by user id, username or account id
        *("text", "jsonb", "text", "bytea", "text"),  # comment, metadata, idempotency key, hash, request id
        *("uuid", "bigint", "text", "numeric", "date", "text"),  # service, price, its currency, rate, its date, paid in
        *("uuid", "text[]"),  # the session in which it is asked for, and the roles that may; NULL: whoever asks may
        "bigint",  # how many unfinished operations the user may have
    ],
    """
WITH source AS (
    SELECT id, currency FROM accounts
     WHERE user_id = $2 AND kind = 'main' AND (id = $6 OR ($6 IS NULL AND is_default))
), receiver_user AS (
    SELECT id FROM users WHERE id = $7 UNION ALL SELECT id FROM users WHERE lower(username) = lower($8)
), receiver AS (
    (SELECT a.id, a.user_id FROM receiver_user r JOIN accounts a ON a.user_id = r.id CROSS JOIN source
      WHERE a.kind = 'main' AND r.id <> $2
      ORDER BY a.currency = source.currency DESC, a.is_default DESC, a.id LIMIT 1)
    UNION ALL
    SELECT a.id, a.user_id FROM accounts a CROSS JOIN source
     WHERE a.id = $9 AND a.kind = 'main' AND a.id <> source.id
), taken AS (
    UPDATE users SET next_seq = next_seq + 1, turn = greatest(users.turn + 1, lanes.turn)
      FROM lanes, source
     WHERE users.id = $2 AND lanes.id = users.lane AND users.disabled_at IS NULL
       AND users.next_seq - (SELECT done_seq FROM progress WHERE user_id = $2) < $23
       AND ($21 IS NULL OR EXISTS (
            SELECT FROM sessions s JOIN users asker ON asker.id = s.user_id
             WHERE s.id = $21 AND s.user_id = $3 AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
               AND asker.disabled_at IS NULL AND asker.role = ANY ($22)))
       AND ($12 IS NULL OR NOT EXISTS (SELECT FROM operations WHERE user_id = $2 AND idempotency_key = $12))
       AND ($4 <> 'transfer' OR EXISTS (SELECT FROM receiver))
       AND ($4 <> 'purchase' OR (source.currency = $20 AND EXISTS (
            SELECT FROM services WHERE id = $15 AND price = $16 AND services.currency = $17)))
    RETURNING users.id AS user_id, users.username, users.next_seq AS seq, users.lane, users.turn
), accepted AS (
    INSERT INTO operations (id, user_id, requested_by, seq, lane, type, account_id, counterparty_id, amount,
                            currency, comment, metadata, idempotency_key, request_hash, request_id,
                            service_id, price, price_currency, rate, rate_date, created_at)
    SELECT $1, taken.user_id, $3, taken.seq, taken.lane, $4, source.id, receiver.id, $5,
           source.currency, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, clock_timestamp()
      FROM taken CROSS JOIN source LEFT JOIN receiver ON true
    RETURNING *
), queued AS (
    INSERT INTO queue (lane, turn, operation_id)
    SELECT taken.lane, taken.turn, accepted.id FROM accepted CROSS JOIN taken
)
SELECT accepted.*, taken.username, receiver.user_id AS counterparty_user_id, u.username AS counterparty_username,
       NULL::bigint AS balance_after, NULL::bigint AS counterparty_balance_after,
       taken.seq - (SELECT done_seq FROM progress WHERE user_id = $2) AS user_pending,
       (SELECT name FROM services WHERE id = accepted.service_id) AS service_name
  FROM accepted CROSS JOIN taken LEFT JOIN receiver ON true LEFT JOIN users u ON u.id = receiver.user_id
""",
)


@dataclass(frozen=True)
class Accepted:
    """The stored operation, in the form that `core.views.operation` shows, and whether it was there before."""

    row: Any
    replayed: bool


@dataclass(frozen=True)
class Asker:
    """Who asks, not looked up yet: the accepting statement does that, too, and stores nothing unless the session lasts
    and its user has one of the roles. `require` raises the Refusal that says what is missing.
    """

    session_id: str
    roles: Sequence[str]
    require: Callable[[sa.Connection], None]


def accept(
    connection: sa.Connection, command: Command, asker: Asker | None = None, bounds: Bounds = UNBOUNDED
) -> Accepted:
    """Store the operation durably; `connection` commits each statement by itself.

    asker: None where it is known already that `command.requested_by` may ask for it.
    Raises Refusal, having stored nothing, in this order of precedence: what the asker lacks, idempotency_key_reused,
    overloaded, user_disabled, too_many_pending, account_not_found, service_not_found, rates_unavailable,
    price_out_of_range, price_changed, self_transfer, receiver_not_found.
    """
    request_hash = hash_of(command)
    for _ in range(TRIES_MAX):
        row = None if bounds.refusal else insert(connection, command, request_hash, asker, bounds)
        if row is not None:
            return Accepted(row, replayed=False)
        if asker:
            asker.require(connection)
        if replayed := replay(connection, command, request_hash):
            return replayed
        if bounds.refusal:
            REFUSED.labels("overloaded").inc()
            raise bounds.refusal
        if refusal := explain(connection, command, bounds):
            raise refusal
    raise Refusal("price_changed", "What is asked for is being changed right now: ask again.")


def insert(
    connection: sa.Connection,
    command: Command,
    request_hash: bytes,
    asker: Asker | None = None,
    bounds: Bounds = UNBOUNDED,
) -> Any:
    """Run the accepting statement. Returns the stored operation, or None where nothing was stored."""
    try:
        offered = quote_of(connection, command)
        return ACCEPT.row(connection, parameters_of(command, request_hash, offered, asker, bounds))
    except Refusal:  # a retry of what was bought must not fail because nothing can be bought any more
        return None
    except IntegrityError as error:
        if constraint_of(error) != "operations_user_id_idempotency_key_key":
            raise
        return None


def quote_of(connection: sa.Connection, command: Command) -> Quote | None:
    """What a purchase costs the account now, or None for the other types. Raises Refusal, as `accept` does.

    The accepting statement takes the quote only if the service's price is still the same.
    """
    if command.service_id is None:
        return None
    source = find_source(connection, command)
    if source is None:
        raise no_account(command)
    return services.quote(connection, command.service_id, source.currency)


def parameters_of(
    command: Command, request_hash: bytes, offered: Quote | None, asker: Asker | None, bounds: Bounds
) -> tuple[Any, ...]:
    """The parameters of ACCEPT, in order."""
    return (
        new_id(),
        command.user_id,
        command.requested_by,
        command.type,
        offered.amount if offered else command.amount,
        command.account_id,
        command.to_user_id,
        command.to_username,
        command.to_account_id,
        command.comment,
        metadata_json(command),
        command.idempotency_key,
        request_hash,
        command.request_id,
        command.service_id,
        *((offered.price, offered.price_currency, offered.rate, offered.rate_date) if offered else (None,) * 4),
        offered.account_currency if offered else None,
        *((asker.session_id, list(asker.roles)) if asker else (None, None)),
        bounds.user_pending_max,
    )


def request_cancellation(connection: sa.Connection, operation_id: str, lane: int) -> None:
    """Mark a pending operation, so that its turn ends it as canceled; a finished one stays as it is.

    The mark is made under the lane's lock, since a drain that has read the operation may be applying it right now.
    """
    lanes.lock(connection, lane, wait=True)
    connection.execute(
        sa.text("UPDATE operations SET cancel_requested = true WHERE id = :id AND status = 'pending'"),
        {"id": operation_id},
    )


def hash_of(command: Command) -> bytes:
    """SHA-256 of what was asked for, by which a retry is told from another request under the same key."""
    return hashlib.sha256(msgspec.json.encode(asked_for(command))).digest()


def asked_for(command: Command) -> tuple[Any, ...]:
    """What makes a request the same as another."""
    return (
        command.type,
        command.amount,
        command.account_id,
        command.to_user_id,
        command.to_username,
        command.to_account_id,
        command.comment,
        sorted(command.metadata.items()),
        *((command.service_id,) if command.service_id else ()),
    )


def constraint_of(error: IntegrityError) -> str | None:
    """The name of the constraint that a statement broke; the schema gives each a meaning."""
    diagnosis = getattr(error.orig, "diag", None)
    return diagnosis.constraint_name if diagnosis else None


def repeat(connection: sa.Connection, command: Command, asker: Asker) -> Accepted | None:
    """What was stored under the command's key, without storing anything, or None.

    Raises Refusal: what the asker lacks, idempotency_key_reused.
    """
    asker.require(connection)
    return replay(connection, command, hash_of(command))


def replay(connection: sa.Connection, command: Command, request_hash: bytes) -> Accepted | None:
    """The operation that this user's key already stands for, or None. Raises Refusal if it was another request."""
    if command.idempotency_key is None:
        return None
    row = views.find_operation_by_key(connection, command.user_id, command.idempotency_key)
    if row is None:
        return None
    if bytes(row.request_hash) != request_hash:
        raise key_reused()
    return Accepted(row, replayed=True)


def explain(connection: sa.Connection, command: Command, bounds: Bounds) -> Refusal | None:
    """Why nothing was accepted, or None where nothing stands in the way any more: it is asked after the fact."""
    if is_disabled(connection, command.user_id):
        return Refusal("user_disabled", "The user is disabled, and can do nothing.")
    if has_too_many_pending(connection, command.user_id, bounds):
        return too_many_pending(bounds)
    source = find_source(connection, command)
    if source is None:
        return no_account(command)
    if command.service_id:
        services.quote(connection, command.service_id, source.currency)
    elif command.type == "transfer":
        return explain_receiver(connection, command, source.id)
    return None


def explain_receiver(connection: sa.Connection, command: Command, source: str) -> Refusal | None:
    """What is wrong with the receiver of a transfer, or None."""
    if is_own(connection, command, source):
        return no_receiver(command, to_self=True)
    query = sa.text(
        "SELECT 1 FROM accounts a JOIN users u ON u.id = a.user_id WHERE a.kind = 'main'"
        " AND (a.id = :account OR u.id = :user OR lower(u.username) = lower(:name)) LIMIT 1"
    )
    named = {"account": command.to_account_id, "user": command.to_user_id, "name": command.to_username}
    return None if connection.execute(query, named).first() else no_receiver(command, to_self=False)


def no_receiver(command: Command, *, to_self: bool) -> Refusal:
    """The refusal for a receiver who is the sender, or nobody."""
    named = (name for name in ("to_user_id", "to_username", "to_account_id") if getattr(command, name))
    pointer = f"/{next(named)}"
    if to_self:
        return Refusal("self_transfer", "A transfer needs another receiver than its sender.", pointer=pointer)
    return Refusal("receiver_not_found", "There is no such receiver.", pointer=pointer)


def key_reused() -> Refusal:
    """The refusal for a key that stands for another request."""
    return Refusal(
        "idempotency_key_reused",
        "This Idempotency-Key was used with another request: send a new key, or the same body again.",
    )


def metadata_json(command: Command) -> str | None:
    """The command's metadata for a jsonb column."""
    return msgspec.json.encode(command.metadata).decode() if command.metadata else None


def is_disabled(connection: sa.Connection, user_id: str) -> bool:
    """Whether the user was switched off."""
    query = sa.text("SELECT 1 FROM users WHERE id = :id AND disabled_at IS NOT NULL")
    return connection.execute(query, {"id": user_id}).first() is not None


def has_too_many_pending(connection: sa.Connection, user_id: str, bounds: Bounds) -> bool:
    """Whether the user has as many unfinished operations as may be."""
    query = sa.text("SELECT 1 FROM users JOIN progress ON user_id = id WHERE id = :id AND next_seq - done_seq >= :max")
    return connection.execute(query, {"id": user_id, "max": bounds.user_pending_max}).first() is not None


def too_many_pending(bounds: Bounds) -> Refusal:
    """The refusal for a user who has too much unfinished."""
    REFUSED.labels("too_many_pending").inc()
    return Refusal(
        "too_many_pending",
        f"The user has {bounds.user_pending_max} unfinished operations: wait until some are finished.",
        limit=bounds.user_pending_max,
        retry_after_seconds=bounds.retry_after_seconds,
    )


def find_source(connection: sa.Connection, command: Command) -> sa.Row | None:
    """The id and currency of the account that the command is about, or None."""
    query = sa.text(
        "SELECT id, currency FROM accounts WHERE user_id = :user AND kind = 'main'"
        " AND (id = :account OR (CAST(:account AS uuid) IS NULL AND is_default))"
    )
    parameters = {"user": command.user_id, "account": command.account_id}
    return connection.execute(query, parameters).one_or_none()


def no_account(command: Command) -> Refusal:
    """The refusal for an account that the user does not have."""
    pointer = "/account_id" if command.account_id else None
    return Refusal("account_not_found", "The user has no such account.", pointer=pointer)


def is_own(connection: sa.Connection, command: Command, source: str) -> bool:
    """Whether the receiver of a transfer is the sender: the same account, or the same user by id or name."""
    if command.to_account_id:
        return command.to_account_id == source
    query = sa.text("SELECT 1 FROM users WHERE id = :user AND (id = :to_id OR lower(username) = lower(:to_name))")
    found = {"user": command.user_id, "to_id": command.to_user_id, "to_name": command.to_username}
    return connection.execute(query, found).first() is not None
