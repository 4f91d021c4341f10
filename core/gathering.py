"""Group commit: operations that are asked for at the same time are accepted in one statement and one commit.

What cannot be accepted this way (a used idempotency key, an unknown receiver, a user whose row somebody else holds) is
accepted or refused by `core/acceptance.py` alone, so that nobody waits for another's trouble and every reason is found
in one place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from core import acceptance
from core.acceptance import Accepted, Asker
from core.db import Prepared, array, text_array
from core.ids import new_id
from core.limits import Limits
from core.operations import Command
from core.together import Together

GROUP_MAX = 64

ACCEPT = Prepared(
    "accept_group",
    [
        *("uuid[]", "uuid[]", "uuid[]", "uuid[]", "text[]"),  # id, user, who asks, in which session, roles that may
        *("text[]", "bigint[]", "uuid[]"),  # type, amount, account
        *("uuid[]", "text[]", "uuid[]"),  # receiver by user id, username or account id
        *("text[]", "text[]", "text[]", "text[]", "text[]"),  # comment, metadata, idempotency key, hash, request id
        "bigint",  # how many unfinished operations a user may have
    ],
    """
WITH item AS (
    SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
        AS i (id, user_id, requested_by, session_id, roles, type, amount, account_id,
              to_user_id, to_username, to_account_id, comment, metadata, idempotency_key, request_hash, request_id)
), sound AS (
    SELECT item.*, source.id AS source_id, source.currency, receiver.id AS receiver_id,
           receiver.user_id AS receiver_user_id
      FROM item
      JOIN sessions s ON s.id = item.session_id AND s.user_id = item.requested_by
       AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
      JOIN users asker ON asker.id = item.requested_by
       AND asker.disabled_at IS NULL AND asker.role = ANY (string_to_array(item.roles, ' '))
      JOIN accounts source
        ON source.user_id = item.user_id AND source.kind = 'main'
       AND (source.id = item.account_id OR (item.account_id IS NULL AND source.is_default))
      LEFT JOIN users named ON lower(named.username) = lower(item.to_username)
      LEFT JOIN LATERAL (
        (SELECT a.id, a.user_id FROM accounts a
          WHERE a.user_id = coalesce(item.to_user_id, named.id) AND a.kind = 'main' AND a.user_id <> item.user_id
          ORDER BY a.currency = source.currency DESC, a.is_default DESC, a.id LIMIT 1)
        UNION ALL
        SELECT a.id, a.user_id FROM accounts a
         WHERE a.id = item.to_account_id AND a.kind = 'main' AND a.id <> source.id
      ) AS receiver ON item.type = 'transfer'
     WHERE (item.type <> 'transfer' OR receiver.id IS NOT NULL)
       AND (item.idempotency_key IS NULL OR NOT EXISTS (
            SELECT FROM operations o WHERE o.user_id = item.user_id AND o.idempotency_key = item.idempotency_key))
), locked AS (
    SELECT id FROM users WHERE id = ANY (ARRAY(SELECT user_id FROM sound)) AND disabled_at IS NULL
       AND next_seq - (SELECT done_seq FROM progress WHERE user_id = users.id) < $17
     ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), taken AS (
    UPDATE users SET next_seq = next_seq + 1, turn = greatest(users.turn + 1, lanes.turn)
      FROM lanes
     WHERE users.id = ANY (ARRAY(SELECT id FROM locked)) AND lanes.id = users.lane
    RETURNING users.id, users.username, users.next_seq AS seq, users.lane, users.turn
), numbered AS (
    SELECT sound.*, taken.username, taken.seq, taken.lane, taken.turn, clock_timestamp() AS created_at
      FROM sound JOIN taken ON taken.id = sound.user_id
), accepted AS (
    INSERT INTO operations (id, user_id, requested_by, seq, lane, type, account_id, counterparty_id, amount,
                            currency, comment, metadata, idempotency_key, request_hash, request_id, created_at)
    SELECT id, user_id, requested_by, seq, lane, type, source_id, receiver_id, amount,
           currency, comment, metadata::jsonb, idempotency_key, decode(request_hash, 'hex'), request_id, created_at
      FROM numbered
), queued AS (
    INSERT INTO queue (lane, turn, operation_id) SELECT lane, turn, id FROM numbered
)
SELECT n.id, n.user_id, n.seq, n.lane, n.type, 'pending' AS status, false AS cancel_requested,
       n.source_id AS account_id, n.receiver_id AS counterparty_id, n.amount, n.currency, n.comment,
       n.metadata::jsonb AS metadata, n.created_at, NULL AS finished_at, NULL AS rejection, NULL AS service_id,
       NULL AS account_version, NULL AS counterparty_version, NULL AS balance_after, NULL AS counterparty_balance_after,
       n.username, n.receiver_user_id AS counterparty_user_id, u.username AS counterparty_username,
       n.seq - (SELECT done_seq FROM progress WHERE user_id = n.user_id) AS user_pending
  FROM numbered n LEFT JOIN users u ON u.id = n.receiver_user_id
""",
)


@dataclass(frozen=True)
class Candidate:
    """An operation that is asked for, with the id that it will have."""

    operation_id: str
    command: Command
    asker: Asker


class Gathering:
    """Accepts operations for a whole process, as far as its limits have room."""

    def __init__(self, reader: sa.Engine, limits: Limits) -> None:
        self._reader = reader
        self._limits = limits
        # A user's second operation waits for the group after the first.
        self._together: Together[Candidate, Any] = Together(
            self._store, GROUP_MAX, apart=lambda candidate: candidate.command.user_id
        )

    def accept(self, command: Command, asker: Asker) -> Accepted:
        """Store an operation durably, together with others where possible. Raises what `acceptance.accept` does."""
        if command.idempotency_key is not None and self._limits.is_near():
            with self._reader.connect() as connection:
                if repeated := acceptance.repeat(connection, command, asker):
                    return repeated
        if command.service_id is None:
            row = self._together.ask(Candidate(new_id(), command, asker))
            if row is not None:
                return Accepted(row, replayed=False)
        try:
            with self._limits.admission(1) as admission:
                bounds = self._limits.bounds(admission.room)
                accepted = acceptance.accept(admission.connection, command, asker, bounds)
                admission.stored = int(not accepted.replayed)
                return accepted
        except sa.exc.InternalError:  # near the limit, and another has just used this key: that broke the transaction
            with self._reader.connect() as connection:
                return acceptance.accept(connection, command, asker, self._limits.bounds(0))

    def _store(self, group: Sequence[Candidate]) -> list[Any]:
        """The stored operations; None for each that must be tried alone."""
        try:
            with self._limits.admission(len(group)) as admission:
                admitted = (*columns(group[: admission.room]), self._limits.user_pending_max)
                rows = {row.id: row for row in ACCEPT.rows(admission.connection, admitted)} if admission.room else {}
                admission.stored = len(rows)
        except IntegrityError:  # two of the same key at the same time: nothing was stored
            rows = {}
        return [rows.get(candidate.operation_id) for candidate in group]


def columns(group: Sequence[Candidate]) -> list[Any]:
    """The group as arrays, in the order of ACCEPT's parameters."""
    commands = [each.command for each in group]
    return [
        array(each.operation_id for each in group),
        array(command.user_id for command in commands),
        array(command.requested_by for command in commands),
        array(each.asker.session_id for each in group),
        text_array(" ".join(each.asker.roles) for each in group),
        array(command.type for command in commands),
        array(command.amount for command in commands),
        array(command.account_id for command in commands),
        array(command.to_user_id for command in commands),
        text_array(command.to_username for command in commands),
        array(command.to_account_id for command in commands),
        text_array(command.comment for command in commands),
        text_array(acceptance.metadata_json(command) for command in commands),
        text_array(command.idempotency_key for command in commands),
        array(acceptance.hash_of(command).hex() for command in commands),
        text_array(command.request_id for command in commands),
    ]
