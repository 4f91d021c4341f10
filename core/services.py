"""Services on sale: what administrators offer, and the price that a purchase takes at the moment of acceptance."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from core import rates
from core.db import array
from core.errors import Refusal
from core.ids import new_id
from core.money import AMOUNT_MAX, decimal_string, is_currency
from core.operations import Applied, Operation, Outcome, Shelf

SERVICE_COLUMNS = "id, name, description, price, currency, active, created_at"


@dataclass(frozen=True)
class Quote:
    """What a service costs an account right now.

    amount: minor units of account_currency. price: minor units of the service's. rate: units of the account's
    currency for one of the service's, None where they are the same.
    """

    amount: int
    price: int
    price_currency: str
    rate: Decimal | None
    rate_date: date | None
    account_currency: str


def quote(connection: sa.Connection, service_id: str, account_currency: str) -> Quote:
    """The price of a service in an account's currency. Raises Refusal: service_not_found, rates_unavailable."""
    service = find(connection, service_id)
    if service is None:
        raise Refusal("service_not_found", "There is no such service.", pointer="/service_id")
    if service.currency == account_currency:
        return Quote(service.price, service.price, service.currency, None, None, account_currency)
    rate = rates.find(connection, service.currency, account_currency)
    if rate is None:
        raise Refusal("rates_unavailable", f"No rate from {service.currency} to {account_currency} is known.")
    amount = rates.convert(service.price, service.currency, account_currency, rate.rate)
    if not 0 < amount <= AMOUNT_MAX:
        raise Refusal("price_out_of_range", f"The price cannot be paid in {account_currency}.", pointer="/service_id")
    return Quote(amount, service.price, service.currency, rate.rate, rate.rate_date, account_currency)


def find(connection: sa.Connection, service_id: str) -> sa.Row | None:
    """The service's row, or None."""
    query = sa.text(f"SELECT {SERVICE_COLUMNS} FROM services WHERE id = :id")
    return connection.execute(query, {"id": service_id}).one_or_none()


def get(connection: sa.Connection, service_id: str) -> sa.Row:
    """The service's row. Raises Refusal service_not_found."""
    row = find(connection, service_id)
    if row is None:
        raise Refusal("service_not_found", "There is no such service.")
    return row


def page(
    connection: sa.Connection, *, active: bool, currency: str | None, limit: int, after: str | None
) -> tuple[list[sa.Row], str | None]:
    """Services in the order in which they were put on sale, and the id to go on after, or None."""
    query = sa.text(
        f"SELECT {SERVICE_COLUMNS} FROM services WHERE active = :active"
        " AND (CAST(:currency AS text) IS NULL OR currency = :currency)"
        " AND (CAST(:after AS uuid) IS NULL OR id > CAST(:after AS uuid)) ORDER BY id LIMIT :limit"
    )
    parameters = {"active": active, "currency": currency, "after": after, "limit": limit + 1}
    rows = list(connection.execute(query, parameters))
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


def create(connection: sa.Connection, fields: dict[str, Any]) -> sa.Row:
    """Put a service on sale. Raises Refusal unknown_currency."""
    require_currency(fields["currency"])
    query = sa.text(
        "INSERT INTO services (id, name, description, price, currency, active)"
        f" VALUES (:id, :name, :description, :price, :currency, :active) RETURNING {SERVICE_COLUMNS}"
    )
    return connection.execute(query, {"id": new_id(), **fields}).one()


def change(connection: sa.Connection, service_id: str, fields: dict[str, Any]) -> sa.Row:
    """Change some columns of a service. Purchases keep what they took. Raises Refusal."""
    if "currency" in fields:
        require_currency(fields["currency"])
    if not fields:
        return get(connection, service_id)
    settings = ", ".join(f"{name} = :{name}" for name in fields)
    query = sa.text(f"UPDATE services SET {settings} WHERE id = :id RETURNING {SERVICE_COLUMNS}")
    row = connection.execute(query, {"id": service_id, **fields}).one_or_none()
    if row is None:
        raise Refusal("service_not_found", "There is no such service.")
    return row


def require_currency(code: str) -> None:
    """Raise Refusal unknown_currency unless it is one of ISO 4217."""
    if not is_currency(code):
        raise Refusal("unknown_currency", f"{code} is not a currency of ISO 4217.", pointer="/currency")


def shelf(connection: sa.Connection, operations: Sequence[Operation]) -> Shelf:
    """What the decisions about a batch need to know; one look, and none where nobody buys anything.

    The lane's lock keeps it true until the batch is written, since all of a user's purchases are on the user's lane.
    """
    wanted = [(operation.user_id, operation.service_id) for operation in operations if operation.service_id]
    if not wanted:
        return Shelf()
    query = """
SELECT w.user_id, w.service_id, NOT s.active, p.operation_id IS NOT NULL
  FROM unnest(%s::uuid[], %s::uuid[]) AS w (user_id, service_id) JOIN services s ON s.id = w.service_id
  LEFT JOIN purchases p ON p.user_id = w.user_id AND p.service_id = w.service_id"""
    users, ids = zip(*wanted, strict=True)
    rows = connection.exec_driver_sql(query, (array(users), array(ids))).all()
    inactive = frozenset(service_id for _, service_id, is_inactive, _ in rows if is_inactive)
    return Shelf(inactive, {(user_id, service_id) for user_id, service_id, _, was_bought in rows if was_bought})


def record_purchases(connection: sa.Connection, decided: Sequence[tuple[Operation, Outcome]]) -> None:
    """Note who has bought what, in the transaction that applies it."""
    applied = [operation for operation, outcome in decided if operation.service_id and isinstance(outcome, Applied)]
    if applied:
        connection.exec_driver_sql(
            "INSERT INTO purchases (user_id, service_id, operation_id)"
            " SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[])",
            (
                array(operation.user_id for operation in applied),
                array(operation.service_id for operation in applied),
                array(operation.id for operation in applied),
            ),
        )


def document(row: sa.Row) -> dict[str, Any]:
    """A service as everyone sees it."""
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "price": row.price,
        "price_decimal": decimal_string(row.price, row.currency),
        "currency": row.currency,
        "active": row.active,
    }


def revenue(connection: sa.Connection, first: date, until: date) -> list[dict[str, Any]]:
    """Revenue of purchases applied on days from `first` to before `until` (UTC), by service and currency paid."""
    query = sa.text("""
SELECT s.id, s.name, o.currency, count(*) AS purchases, sum(o.amount)::bigint AS revenue
  FROM purchases p JOIN operations o ON o.id = p.operation_id JOIN services s ON s.id = p.service_id
 WHERE p.created_at >= CAST(:first AS date) AND p.created_at < CAST(:until AS date)
 GROUP BY s.id, o.currency ORDER BY s.name, s.id, o.currency""")
    return [
        {
            "service_id": row.id,
            "service": row.name,
            "currency": row.currency,
            "purchases": row.purchases,
            "revenue": row.revenue,
            "revenue_decimal": decimal_string(row.revenue, row.currency),
        }
        for row in connection.execute(query, {"first": first, "until": until})
    ]
