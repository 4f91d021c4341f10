"""Step 8 of the story: what clients read, each in one statement on the primary, without locks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from core import sessions
from core.db import Prepared, array
from core.money import decimal_string
from core.notices import Finished

Document = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """Where an account stood: how many entries it had, and its balance in minor units."""

    version: int
    balance: int


class Asked(NamedTuple):
    """What is to be read, and by whom, who is not looked up yet."""

    session_id: str
    user_id: str
    id: str | None  # of an account or operation; None: the user's own first account


OPERATION_COLUMNS = """
SELECT o.*, u.username, c.user_id AS counterparty_user_id, cu.username AS counterparty_username,
       e.balance_after, ce.balance_after AS counterparty_balance_after,
       (SELECT name FROM services WHERE id = o.service_id) AS service_name
"""
OPERATION_JOINS = """
  JOIN users u ON u.id = o.user_id
  LEFT JOIN accounts c ON c.id = o.counterparty_id
  LEFT JOIN users cu ON cu.id = c.user_id
  LEFT JOIN entries e ON e.account_id = o.account_id AND e.account_version = o.account_version
  LEFT JOIN entries ce ON ce.account_id = o.counterparty_id AND ce.account_version = o.counterparty_version
"""
OPERATION = Prepared("operation", ["uuid"], f"{OPERATION_COLUMNS} FROM operations o {OPERATION_JOINS} WHERE o.id = $1")
OPERATION_BY_KEY = Prepared(
    "operation_by_key",
    ["uuid", "text"],
    f"{OPERATION_COLUMNS} FROM operations o {OPERATION_JOINS} WHERE o.user_id = $1 AND o.idempotency_key = $2",
)
ASKED = f"""
  FROM unnest($1, $2, $3) WITH ORDINALITY AS asked (session_id, user_id, id, place)
 CROSS JOIN LATERAL ({sessions.caller_of("asked.session_id", "asked.user_id")}) AS caller
"""
OPERATIONS_FOR_CALLERS = Prepared(
    "operations_for_callers",
    ["uuid[]", "uuid[]", "uuid[]"],
    f"""
SELECT asked.place, caller.role AS caller_role, operation.* {ASKED}
  LEFT JOIN LATERAL ({OPERATION_COLUMNS} FROM operations o {OPERATION_JOINS} WHERE o.id = asked.id) AS operation ON true
""",
)
FINISHED = Prepared(
    "finished",
    ["uuid[]"],
    """
SELECT o.id, o.status, o.rejection, o.account_version, o.counterparty_version,
       e.balance_after, ce.balance_after AS counterparty_balance_after, o.finished_at
  FROM operations o
  LEFT JOIN entries e ON e.account_id = o.account_id AND e.account_version = o.account_version
  LEFT JOIN entries ce ON ce.account_id = o.counterparty_id AND ce.account_version = o.counterparty_version
 WHERE o.id = ANY ($1) AND o.status <> 'pending'
""",
)
ACCOUNT_COLUMNS = """
SELECT a.id, a.user_id, a.name, a.currency, a.balance, a.version, a.is_default, a.created_at, a.closed_at,
       coalesce(h.balance, 0) AS held, u.next_seq - p.done_seq AS pending_operations
  FROM accounts a JOIN users u ON u.id = a.user_id JOIN progress p ON p.user_id = u.id
  LEFT JOIN accounts h ON h.main_account_id = a.id
 WHERE a.kind = 'main'
"""
ACCOUNT = Prepared("account", ["uuid"], f"{ACCOUNT_COLUMNS} AND a.id = $1")
DEFAULT_ACCOUNT = Prepared("default_account", ["uuid"], f"{ACCOUNT_COLUMNS} AND a.user_id = $1 AND a.is_default")
ACCOUNTS_FOR_CALLERS = Prepared(
    "accounts_for_callers",
    ["uuid[]", "uuid[]", "uuid[]"],
    f"""
SELECT asked.place, caller.role AS caller_role, account.* {ASKED}
  LEFT JOIN LATERAL ({ACCOUNT_COLUMNS} AND a.id = coalesce(asked.id, (
       SELECT id FROM accounts WHERE user_id = asked.user_id AND kind = 'main' AND is_default))) AS account ON true
""",
)
ACCOUNTS = Prepared("accounts", ["uuid"], f"{ACCOUNT_COLUMNS} AND a.user_id = $1 ORDER BY a.created_at, a.id")


def find_operation(connection: sa.Connection, operation_id: str) -> Any:
    """The operation's row, whoever it belongs to, or None."""
    return OPERATION.row(connection, (operation_id,))


def find_finished(connection: sa.Connection, operation_ids: Sequence[str]) -> list[Finished]:
    """For those of the operations that are finished, what has changed since they were accepted."""
    return [Finished(*row) for row in FINISHED.rows(connection, (array(operation_ids),))]


def as_finished(row: Any, finished: Finished) -> Any:
    """The row of an operation as it was, brought up to its end."""
    return row._replace(**msgspec.structs.asdict(finished))


def find_operation_by_key(connection: sa.Connection, user_id: str, key: str) -> Any:
    """The row of the operation that the user's idempotency key stands for, or None."""
    return OPERATION_BY_KEY.row(connection, (user_id, key))


def find_account(connection: sa.Connection, account_id: str) -> Any:
    """The row of a user's account, whoever it belongs to, or None; Kassa's own accounts are not found."""
    return ACCOUNT.row(connection, (account_id,))


def find_accounts_for(connection: sa.Connection, asked: Sequence[Asked]) -> list[Any]:
    """For each who asks the account's row with their `caller_role`, all in one round trip.

    Its columns are None where there is no such account; the row is None where the session has ended.
    """
    return find_for(connection, ACCOUNTS_FOR_CALLERS, asked)


def find_operations_for(connection: sa.Connection, asked: Sequence[Asked]) -> list[Any]:
    """The same for operations."""
    return find_for(connection, OPERATIONS_FOR_CALLERS, asked)


def find_for(connection: sa.Connection, statement: Prepared, asked: Sequence[Asked]) -> list[Any]:
    """What the statement finds for each who asks, in their places."""
    columns = [array(column) for column in zip(*asked, strict=True)]
    rows = {row.place: row for row in statement.rows(connection, columns)}
    return [rows.get(place) for place in range(1, len(asked) + 1)]


def get_default_account(connection: sa.Connection, user_id: str) -> Any:
    """The row of the user's default account; every user has one."""
    return DEFAULT_ACCOUNT.row(connection, (user_id,))


def find_accounts(connection: sa.Connection, user_id: str) -> Sequence[Any]:
    """The rows of all of the user's accounts, oldest first."""
    return ACCOUNTS.rows(connection, (user_id,))


def may_see_operation(row: Any, user_id: str) -> bool:
    """Whether a plain user may see it: one's own always, another's once it has paid into one's account."""
    return row.user_id == user_id or (row.counterparty_user_id == user_id and row.status == "applied")


def is_incoming(row: Any, reader_id: str) -> bool:
    """Whether the reader is the receiver, and not the sender."""
    return reader_id != row.user_id and reader_id == row.counterparty_user_id


def operation(row: Any, *, incoming: bool = False) -> Document:
    """An operation as its owner sees it, or, if `incoming`, its receiver: with the sender as counterparty, the
    receiver's own account and balance, and without the sender's metadata.
    """
    account_id = row.counterparty_id if incoming else row.account_id
    return {
        "id": row.id,
        "seq": row.seq,
        "type": row.type,
        "status": "canceled" if is_taken_back(row) else row.status,
        "direction": "incoming" if incoming or row.type == "deposit" else "outgoing",
        "amount": row.amount,
        "amount_decimal": decimal_string(row.amount, row.currency),
        "currency": row.currency,
        "account_id": account_id,
        "counterparty": sender(row) if incoming else receiver(row),
        "purchase": purchase(row) if row.service_id else None,
        "comment": row.comment,
        "metadata": {} if incoming else as_json(row.metadata) or {},
        "created_at": moment(row.created_at),
        "finished_at": moment(row.finished_at),
        "rejection": as_json(row.rejection),
        "balance_after": row.counterparty_balance_after if incoming else row.balance_after,
        "account_version": row.counterparty_version if incoming else row.account_version,
        "links": {"self": f"/v1/operations/{row.id}", "account": f"/v1/accounts/{account_id}"},
    }


def is_taken_back(row: Any) -> bool:
    """Whether a pending operation is certain to end as canceled once its turn comes."""
    return row.status == "pending" and bool(row.cancel_requested)


def sender(row: Any) -> Document:
    """The paying side, for the receiver."""
    return {"user_id": row.user_id, "username": row.username, "account_id": row.account_id}


def receiver(row: Any) -> Document | None:
    """The other side, for the payer; None where it is the world."""
    if row.counterparty_user_id is None:
        return None
    return {
        "user_id": row.counterparty_user_id,
        "username": row.counterparty_username,
        "account_id": row.counterparty_id,
    }


def purchase(row: Any) -> Document:
    """What was bought, and the price and rate that were frozen at acceptance."""
    return {
        "service_id": row.service_id,
        "service": row.service_name,
        "price": row.price,
        "price_decimal": decimal_string(row.price, row.price_currency),
        "price_currency": row.price_currency,
        "rate": str(row.rate) if row.rate is not None else None,
        "rate_date": row.rate_date.isoformat() if row.rate_date else None,
    }


def account(row: Any, then: Point | None = None) -> Document:
    """An account, now or as it stood `then`.

    `pending_operations` counts the user's accepted and unfinished operations, on all accounts.
    """
    now = then or Point(row.version, row.balance)
    return {
        "id": row.id,
        "user_id": row.user_id,
        "name": row.name,
        "currency": row.currency,
        "balance": now.balance,
        "balance_decimal": decimal_string(now.balance, row.currency),
        "held": row.held,
        "available": now.balance,
        "version": now.version,
        "pending_operations": row.pending_operations,
        "created_at": moment(row.created_at),
    }


def as_json(value: Any) -> Mapping[str, Any] | None:
    """A jsonb column, which raw statements return as text."""
    return json.loads(value) if isinstance(value, str) else value


def moment(value: datetime | None) -> str | None:
    """RFC 3339 in UTC with microseconds."""
    if value is None:
        return None
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
