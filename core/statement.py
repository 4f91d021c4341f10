"""Statements: an account's entries between two moments, with the balances before and after.

An account's entries are numbered, and their times rise with the numbers. So a moment is found among them by halving,
some twenty steps in an account of a million entries, and no index by time has to be kept up by every drain.
"""

from collections.abc import Iterator
from datetime import datetime

import sqlalchemy as sa

from core import views
from core.money import decimal_string
from core.views import Point

PAGE_ENTRIES_MAX = 1_000

LAST_BEFORE = """
WITH RECURSIVE search (low, high) AS (
    SELECT 0::bigint, version FROM accounts WHERE id = :account
    UNION ALL
    SELECT CASE WHEN e.created_at {before} :moment THEN mid ELSE low END,
           CASE WHEN e.created_at {before} :moment THEN high ELSE mid - 1 END
      FROM (SELECT low, high, (low + high + 1) / 2 AS mid FROM search WHERE low < high) AS half
      JOIN entries e ON e.account_id = :account AND e.account_version = half.mid)
SELECT s.low AS version, coalesce(e.balance_after, 0) AS balance
  FROM (SELECT low FROM search WHERE low >= high LIMIT 1) AS s
  LEFT JOIN entries e ON e.account_id = :account AND e.account_version = s.low"""

ENTRIES = """
SELECT entry.account_version AS entry_version, entry.amount AS entry_amount, entry.balance_after AS entry_balance,
       entry.created_at AS entry_created_at, o.id, o.type, o.comment, o.currency, o.user_id, u.username, o.account_id,
       o.counterparty_id, c.user_id AS counterparty_user_id, cu.username AS counterparty_username
  FROM entries entry
  JOIN operations o ON o.id = entry.operation_id
  JOIN users u ON u.id = o.user_id
  LEFT JOIN accounts c ON c.id = o.counterparty_id
  LEFT JOIN users cu ON cu.id = c.user_id
 WHERE entry.account_id = :account AND entry.account_version > :after AND entry.account_version <= :last
 ORDER BY entry.account_version LIMIT :limit"""


def point(connection: sa.Connection, account_id: str, moment: datetime, *, inclusive: bool) -> Point:
    """Where the account stood before a moment, or, if `inclusive`, at it."""
    query = LAST_BEFORE.format(before="<=" if inclusive else "<")
    row = connection.execute(sa.text(query), {"account": account_id, "moment": moment}).one()
    return Point(row.version, row.balance)


def entries(connection: sa.Connection, account_id: str, after: int, last: int, limit: int) -> list[views.Document]:
    """The account's entries numbered above `after` up to `last`, at most `limit`, each with what it was for."""
    parameters = {"account": account_id, "after": after, "last": last, "limit": limit}
    return [entry(row, account_id) for row in connection.execute(sa.text(ENTRIES), parameters)]


def entry(row: sa.Row, account_id: str) -> views.Document:
    """One line of a statement."""
    incoming = row.counterparty_id == account_id
    return {
        "version": row.entry_version,
        "created_at": views.moment(row.entry_created_at),
        "amount": row.entry_amount,
        "amount_decimal": decimal_string(row.entry_amount, row.currency),
        "balance_after": row.entry_balance,
        "balance_after_decimal": decimal_string(row.entry_balance, row.currency),
        "operation_id": row.id,
        "type": row.type,
        "counterparty": views.sender(row) if incoming else views.receiver(row),
        "comment": row.comment,
    }


def pages(engine: sa.Engine, account_id: str, after: int, last: int) -> Iterator[list[views.Document]]:
    """All entries above `after` up to `last`, a bounded page at a time, so that no statement fills the memory."""
    while after < last:
        with engine.connect() as connection:
            found = entries(connection, account_id, after, last, PAGE_ENTRIES_MAX)
        yield found
        after = found[-1]["version"]
