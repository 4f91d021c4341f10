"""Statements of an account, and its balance at any moment."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import falcon
import sqlalchemy as sa

from api.auth import EVERYONE, allowed
from api.dependencies import Dependencies
from api.requests import read_query
from api.responses import is_known_state, send, send_csv, wants_csv
from api.schemas import StatementQuery
from core import statement, views
from core.errors import Refusal
from core.identity import Caller
from core.money import decimal_string
from core.views import Point

COLUMNS = ("version", "created_at", "type", "amount", "balance_after", "counterparty", "comment", "operation_id")


class Statements:
    """`/v1/accounts/{id}/statement`"""

    def __init__(self, dependencies: Dependencies) -> None:
        self.dependencies = dependencies

    @allowed(*EVERYONE)
    def on_get(self, request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """Opening balance, entries and closing balance: JSON a page at a time, or all of it as CSV."""
        query: StatementQuery = read_query(request, StatementQuery)
        caller: Caller = request.context.caller
        with self.dependencies.reader.connect() as connection:
            account = views.find_account(connection, str(id))
            if account is None or (account.user_id != caller.id and not caller.reads_everything):
                raise Refusal("account_not_found", "You have no such account.")
            if is_known_state(request, response, account.version):
                return
            opening, closing = bounds(connection, account, query)
            after = max(opening.version, query.cursor)
            entries: list[views.Document] = []
            if not wants_csv(request):
                entries = statement.entries(connection, account.id, after, closing.version, query.limit)
        if wants_csv(request):
            pages = statement.pages(self.dependencies.reader, account.id, opening.version, closing.version)
            send_csv(response, f"statement-{account.id}.csv", COLUMNS, csv_pages(account, opening, closing, pages))
            return
        more = bool(entries) and entries[-1]["version"] < closing.version
        send(response, document(account, query, opening, closing, entries, more))


def bounds(connection: sa.Connection, account: sa.Row, query: StatementQuery) -> tuple[Point, Point]:
    """Where the account stood at the beginning and at the end of the statement."""
    opening, closing = Point(0, 0), Point(account.version, account.balance)
    if query.since is not None:
        opening = statement.point(connection, account.id, query.since, inclusive=False)
    if query.until is not None:
        closing = statement.point(connection, account.id, query.until, inclusive=False)
    return opening, closing if closing.version >= opening.version else opening


def document(
    account: sa.Row, query: StatementQuery, opening: Point, closing: Point, entries: list[views.Document], more: bool
) -> views.Document:
    """A page of a statement as JSON; `next_cursor` is the version of its last entry, or None at the end."""
    return {
        "account_id": account.id,
        "currency": account.currency,
        "from": views.moment(query.since),
        "to": views.moment(query.until),
        "opening_balance": opening.balance,
        "opening_balance_decimal": decimal_string(opening.balance, account.currency),
        "entries": entries,
        "closing_balance": closing.balance,
        "closing_balance_decimal": decimal_string(closing.balance, account.currency),
        "next_cursor": entries[-1]["version"] if more else None,
    }


def csv_pages(
    account: sa.Row, opening: Point, closing: Point, pages: Iterable[list[views.Document]]
) -> Iterable[Iterable[Sequence[Any]]]:
    """The rows of a statement as CSV: the opening balance, every entry, the closing balance."""
    yield [balance_row("opening balance", opening, account.currency)]
    for page in pages:
        yield [entry_row(entry) for entry in page]
    yield [balance_row("closing balance", closing, account.currency)]


def balance_row(name: str, point: Point, currency: str) -> Sequence[Any]:
    """The first and the last row."""
    return (point.version, "", name, "", decimal_string(point.balance, currency), "", "", "")


def entry_row(entry: views.Document) -> Sequence[Any]:
    """One entry as a row."""
    return (
        entry["version"],
        entry["created_at"],
        entry["type"],
        entry["amount_decimal"],
        entry["balance_after_decimal"],
        (entry["counterparty"] or {}).get("username", ""),
        entry["comment"] or "",
        entry["operation_id"],
    )
