"""What clients note of what they did, and what the database holds in the end: the two sides that the checker compares.

Times are seconds of the harness's monotonic clock. Amounts and balances are minor units.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import sqlalchemy as sa

Outcome = Literal["ok", "refused", "unknown", "unlawful"]
FINAL = ("applied", "rejected", "canceled", "failed")


@dataclass(slots=True, frozen=True)
class Item:
    """One operation that was asked for. `tag`, its comment, tells it from all others; retries share it."""

    tag: str
    user: str
    type: str
    amount: int | None
    to_account: str | None = None
    service: str | None = None


@dataclass(slots=True, frozen=True)
class ToldOperation:
    """What an answer said of an operation; None where it did not say."""

    id: str
    status: str
    tag: str | None = None
    seq: int | None = None
    account: str | None = None
    version: int | None = None
    balance_after: int | None = None


@dataclass(slots=True, frozen=True)
class ToldBalance:
    """What an answer said of an account."""

    account: str
    version: int
    balance: int


@dataclass(slots=True)
class Event:
    """A request and its answer. unknown: it may have been carried out; unlawful: no answer that Kassa may give."""

    kind: Literal["submit", "batch", "cancel", "read"]
    invoked: float
    completed: float = 0.0
    outcome: Outcome = "unknown"
    detail: str = ""
    items: list[Item] = field(default_factory=list)
    operations: list[ToldOperation] = field(default_factory=list)
    balances: list[ToldBalance] = field(default_factory=list)
    canceled: str | None = None  # the id of the operation that was to be taken back


@dataclass(slots=True, frozen=True)
class Row:
    """An operation in the database."""

    id: str
    user: str
    seq: int
    tag: str | None
    type: str
    amount: int
    account: str
    counterparty: str | None
    service: str | None
    status: str
    apply_no: int | None
    version: int | None
    counterparty_version: int | None


@dataclass(slots=True, frozen=True)
class Entry:
    """A line of an account's history in the database."""

    account: str
    version: int
    amount: int
    balance_after: int
    operation: str


def rows_after(connection: sa.Connection, apply_no: int) -> list[Row]:
    """Operations finished after that number, or not at all, in the order of application."""
    query = """
SELECT id, user_id, seq, comment, type, amount, account_id, counterparty_id, service_id, status, apply_no,
       account_version, counterparty_version
  FROM operations WHERE apply_no > %s OR apply_no IS NULL ORDER BY apply_no"""
    return [Row(*row) for row in connection.exec_driver_sql(query, (apply_no,))]


def entries_after(connection: sa.Connection, apply_no: int) -> list[Entry]:
    """Entries of users' accounts that belong to operations after that number."""
    query = """
SELECT e.account_id, e.account_version, e.amount, e.balance_after, e.operation_id
  FROM operations o JOIN entries e ON e.operation_id = o.id JOIN accounts a ON a.id = e.account_id
 WHERE o.apply_no > %s AND a.kind = 'main' ORDER BY e.account_id, e.account_version"""
    return [Entry(*row) for row in connection.exec_driver_sql(query, (apply_no,))]


def keep(events: Iterable[Event], path: Path) -> None:
    """Write the history for whoever looks into a failure, one event a line."""
    with path.open("wb") as file:
        for event in events:
            file.write(msgspec.json.encode(dataclasses.asdict(event)) + b"\n")
