"""Accounts and balances."""

from uuid import UUID

import falcon
import sqlalchemy as sa

from api.auth import EVERYONE, Bearer, allowed, require
from api.dependencies import Dependencies
from api.requests import read_json, read_query
from api.responses import send, send_tagged
from api.schemas import AccountQuery, AccountsQuery, NewAccount
from core import accounts, rates, statement, views
from core.errors import Refusal
from core.identity import reads_everything
from core.money import is_currency
from core.views import Asked


class Accounts:
    """`/v1/accounts`, `/v1/accounts/{id}` and `/v1/balance`"""

    def __init__(self, dependencies: Dependencies) -> None:
        self.dependencies = dependencies

    @allowed("user", "service", "admin")
    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        """Open an account, or answer with the one that is there."""
        asked: NewAccount = read_json(request, NewAccount)
        with self.dependencies.engine.begin() as connection:
            opened = accounts.open_account(connection, request.context.caller.id, asked.currency, asked.name)
            row = views.find_account(connection, opened.account_id)
        assert row is not None
        send(response, views.account(row), falcon.HTTP_201 if opened.created else falcon.HTTP_200)
        response.set_header("Location", f"/v1/accounts/{row.id}")

    @allowed(*EVERYONE)
    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        """All accounts of the caller, oldest first."""
        query: AccountsQuery = read_query(request, AccountsQuery)
        require_currency(query.currency)
        with self.dependencies.reader.connect() as connection:
            rows = views.find_accounts(connection, request.context.caller.id)
            items = in_currency(connection, [views.account(row) for row in rows], query.currency)
        send_tagged(request, response, {"items": items})

    @allowed(*EVERYONE, looks_itself=True)
    def on_get_one(self, request: falcon.Request, response: falcon.Response, id: UUID) -> None:
        """One account; with `min_seq`, once the caller's operations up to it are finished."""
        self._show(request, response, str(id))

    @allowed(*EVERYONE, looks_itself=True)
    def on_get_balance(self, request: falcon.Request, response: falcon.Response) -> None:
        """The caller's default account."""
        self._show(request, response, None)

    def _show(self, request: falcon.Request, response: falcon.Response, account_id: str | None) -> None:
        bearer: Bearer = request.context.bearer
        query: AccountQuery = read_query(request, AccountQuery)
        require_currency(query.currency)
        if query.min_seq is not None:
            require(self.dependencies, request, EVERYONE)
            self._wait_for_seq(bearer.user_id, query.min_seq, query.wait)
        row = self.dependencies.accounts.ask(Asked(bearer.session_id, bearer.user_id, account_id))
        if row is None or row.id is None or not (row.user_id == bearer.user_id or reads_everything(row.caller_role)):
            raise Refusal("account_not_found", "You have no such account.")
        document = views.account(row)
        if query.at or query.currency:
            with self.dependencies.reader.connect() as connection:
                then = statement.point(connection, row.id, query.at, inclusive=True) if query.at else None
                [document] = in_currency(connection, [views.account(row, then)], query.currency)
        send_tagged(request, response, document)

    def _wait_for_seq(self, user_id: str, seq: int, seconds: int) -> None:
        """Return when the user's operations up to `seq` are finished. Raises Refusal: validation_failed, not_yet."""
        with self.dependencies.reader.connect() as connection:
            operation_id, accepted, done = progress(connection, user_id, seq)
        if seq > accepted:
            detail = f"You have handed in {accepted} operations so far."
            error = {"parameter": "min_seq", "code": "out_of_range", "detail": detail}
            raise Refusal("validation_failed", detail, errors=[error])
        if done >= seq or operation_id is None:
            return
        self.dependencies.waiting.until_finished(operation_id, seconds)
        with self.dependencies.reader.connect() as connection:
            _, _, done = progress(connection, user_id, seq)
        if done < seq:
            raise Refusal("not_yet", f"{done} of {seq} operations are finished. Nothing is lost: ask again.", done=done)


def require_currency(code: str | None) -> None:
    """Raise Refusal unknown_currency if a currency is asked for that there is not."""
    if code is not None and not is_currency(code):
        detail = f"{code} is not a currency of ISO 4217."
        error = {"parameter": "currency", "code": "unknown_currency", "detail": detail}
        raise Refusal("unknown_currency", detail, errors=[error])


def in_currency(
    connection: sa.Connection, documents: list[views.Document], currency: str | None
) -> list[views.Document]:
    """The accounts, each with its balance also in `currency` if one is given. Raises Refusal rates_unavailable."""
    if currency is None:
        return documents
    known, today = rates.find_all(connection, {each["currency"] for each in documents}, currency), rates.today()
    for each in documents:
        rate = known.get(each["currency"])
        if rate is None:
            raise Refusal("rates_unavailable", f"No rate from {each['currency']} to {currency} is known.")
        each["converted"] = rates.converted(each["balance"], each["currency"], currency, rate, today)
    return documents


def progress(connection: sa.Connection, user_id: str, seq: int) -> tuple[str | None, int, int]:
    """The id of the user's operation `seq`, how many operations were accepted, and how many are finished."""
    query = """
SELECT o.id, u.next_seq, p.done_seq
  FROM users u JOIN progress p ON p.user_id = u.id LEFT JOIN operations o ON o.user_id = u.id AND o.seq = :seq
 WHERE u.id = :user"""
    operation_id, accepted, done = connection.execute(sa.text(query), {"user": user_id, "seq": seq}).one()
    return operation_id, accepted, done
