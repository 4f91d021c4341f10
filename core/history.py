"""A user's operations, a page at a time: filtered, sorted, and continued by an opaque keyset cursor.

Two roads lead into a history: what the user handed in, and what others have paid into the user's accounts. Each is
read in order from its own index, a page at the most, and the two are merged.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

import msgspec
import sqlalchemy as sa

from core import views
from core.errors import Refusal

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
BigInteger = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
SORT_COLUMNS = {"created_at": ("created_at", "timestamptz"), "amount": ("amount", "bigint")}

OWN = "o.user_id = :user"
OWN_OF_ACCOUNT = "o.user_id = :user AND o.account_id = :account"
PAID = "o.counterparty_id = mine.id AND o.status = 'applied'"
BY_OTHERS = "o.user_id <> :user"  # between a user's own accounts a transfer shows once, but in either account's history
MY_ACCOUNTS = "mine.user_id = :user AND mine.kind = 'main'"

FILTERS = {
    "type": "o.type = :type",
    "status": "o.status = :status",
    "since": "o.created_at >= :since",
    "until": "o.created_at < :until",
    "min_amount": "o.amount >= :min_amount",
    "max_amount": "o.amount <= :max_amount",
}


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which operations, and in which order. Amounts are minor units; `since` is included, `until` is not.

    sort: created_at or amount, with a minus for the largest first.
    """

    limit: int
    cursor: str | None = None
    account_id: str | None = None
    direction: str | None = None
    sort: str = "-created_at"
    type: str | None = None
    status: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    min_amount: int | None = None
    max_amount: int | None = None


@dataclass(frozen=True)
class Page:
    """Operations as the user sees them, and the cursor of the next page or None."""

    items: list[views.Document]
    next_cursor: str | None


def state(connection: sa.Connection, user_id: str) -> tuple[object, ...]:
    """Counters that move with what a history shows: operations accepted and finished, and the accounts' versions."""
    query = """
SELECT u.next_seq, p.done_seq, (SELECT array_agg(version ORDER BY id) FROM accounts WHERE user_id = u.id)
  FROM users u JOIN progress p ON p.user_id = u.id WHERE u.id = :user"""
    return tuple(connection.execute(sa.text(query), {"user": user_id}).one())


def page(connection: sa.Connection, user_id: str, query: Query) -> Page:
    """One page of the user's history. Raises Refusal: bad_cursor, account_not_found."""
    if query.account_id:
        account = views.find_account(connection, query.account_id)
        if account is None or account.user_id != user_id:
            raise Refusal("account_not_found", "You have no such account.")
    column, _ = SORT_COLUMNS[query.sort.removeprefix("-")]
    sql, parameters = statement(user_id, query)
    rows = connection.execute(sa.text(sql), parameters).all()
    items = [views.operation(row, incoming=row.incoming) for row in rows[: query.limit]]
    if len(rows) <= query.limit:
        return Page(items, None)
    last = rows[query.limit - 1]
    return Page(items, write_cursor(query.sort, getattr(last, column), last.id))


def statement(user_id: str, query: Query) -> tuple[str, dict[str, Any]]:
    """The SQL of a page, and its parameters."""
    given = {name: value for name in FILTERS if (value := getattr(query, name)) is not None}
    parameters = {"user": user_id, "account": query.account_id, "limit": query.limit + 1, **given}
    conditions = [FILTERS[name] for name in given]
    column, column_type = SORT_COLUMNS[query.sort.removeprefix("-")]
    order, beyond = ("DESC", "<") if query.sort.startswith("-") else ("ASC", ">")
    if query.cursor:
        parameters["after"], parameters["after_id"] = read_cursor(query.cursor, query.sort)
        conditions.append(f"(o.{column}, o.id) {beyond} (CAST(:after AS {column_type}), CAST(:after_id AS uuid))")
    page = f"ORDER BY o.{column} {order}, o.id {order} LIMIT :limit"
    roads = " UNION ALL ".join(road(conditions, page) for road, conditions in roads_of(query, conditions))
    sql = f"""
  WITH o AS MATERIALIZED (SELECT * FROM ({roads}) AS roads ORDER BY {column} {order}, id {order} LIMIT :limit)
{views.OPERATION_COLUMNS} FROM o {views.OPERATION_JOINS} ORDER BY o.{column} {order}, o.id {order}"""
    return sql, parameters


def roads_of(query: Query, conditions: list[str]) -> list[tuple[Callable[[list[str], str], str], list[str]]]:
    """The roads on which operations enter the history, each with its conditions."""
    own = [OWN_OF_ACCOUNT if query.account_id else OWN, *conditions]
    paid = partial(incoming, MY_ACCOUNTS + (" AND mine.id = :account" if query.account_id else ""))
    received = [PAID, *conditions] if query.account_id else [PAID, BY_OTHERS, *conditions]
    if query.direction == "outgoing":
        return [(outgoing, [*own, "o.type <> 'deposit'"])]
    if query.direction == "incoming":
        return [(outgoing, [*own, "o.type = 'deposit'"]), (paid, received)]
    return [(outgoing, own), (paid, received)]


def outgoing(conditions: list[str], page: str) -> str:
    """What the user handed in, in order from its index."""
    return f"(SELECT o.*, false AS incoming FROM operations o WHERE {' AND '.join(conditions)} {page})"


def incoming(accounts: str, conditions: list[str], page: str) -> str:
    """What others have paid: for each account a page in order from the index, so that no history is read whole."""
    return f"""
(SELECT o.* FROM accounts mine CROSS JOIN LATERAL (
    SELECT o.*, true AS incoming FROM operations o WHERE {" AND ".join([PAID, *conditions])} {page}) AS o
  WHERE {accounts} {page})"""


def write_cursor(sort: str, value: object, operation_id: str) -> str:
    """An opaque mark behind an item."""
    return base64.urlsafe_b64encode(msgspec.json.encode([sort, value, operation_id])).decode().rstrip("=")


def read_cursor(cursor: str, sort: str) -> tuple[object, str]:
    """The sort value and id that a cursor stands behind. Raises Refusal bad_cursor."""
    try:
        decoded = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        mark = tuple[str, Moment, UUID] if sort.endswith("created_at") else tuple[str, BigInteger, UUID]
        cursor_sort, value, operation_id = msgspec.json.decode(decoded, type=mark)
        if cursor_sort != sort:
            raise ValueError("another order")
        if isinstance(value, datetime):
            value = value.astimezone(UTC)
    except (ValueError, OverflowError, binascii.Error, msgspec.MsgspecError):
        raise Refusal("bad_cursor", "Use next_cursor as it was given, with the same sort.") from None
    return value, str(operation_id)
