"""What the search box of each page finds. Ids and names are matched whole where a table grows without end."""

from uuid import UUID

import sqlalchemy as sa

from core.tables import accounts, entries, operations, rates, services, users


def as_id(term: str) -> str | None:
    """The term as an id, or None."""
    try:
        return str(UUID(term.strip()))
    except ValueError:
        return None


def user_ids(name: str) -> sa.ScalarSelect:
    """The user with that name, if there is one."""
    return sa.select(users.c.id).where(sa.func.lower(users.c.username) == name.strip().lower()).scalar_subquery()


def find_users(term: str) -> sa.ColumnElement[bool]:
    """Users by a part of their name or address."""
    part = term.strip()
    by_name = users.c.username.icontains(part, autoescape=True) | users.c.email.icontains(part, autoescape=True)
    return by_name | (users.c.id == as_id(term))


def find_accounts(term: str) -> sa.ColumnElement[bool]:
    """Accounts by id, owner, currency, or a part of their name."""
    if found := as_id(term):
        return (accounts.c.id == found) | (accounts.c.user_id == found)
    return (
        (accounts.c.user_id == user_ids(term))
        | (accounts.c.currency == term.strip().upper())
        | accounts.c.name.icontains(term.strip(), autoescape=True)
    )


def find_operations(term: str) -> sa.ColumnElement[bool]:
    """Operations by id, account, user (name or id), or idempotency key."""
    by_key = operations.c.idempotency_key == term.strip()
    if found := as_id(term):
        columns = (operations.c.id, operations.c.user_id, operations.c.account_id, operations.c.counterparty_id)
        return sa.or_(by_key, *(column == found for column in columns))
    return by_key | (operations.c.user_id == user_ids(term))


def find_entries(term: str) -> sa.ColumnElement[bool]:
    """Entries by account or operation."""
    if found := as_id(term):
        return (entries.c.account_id == found) | (entries.c.operation_id == found)
    return sa.false()


def find_services(term: str) -> sa.ColumnElement[bool]:
    """Services by a part of their name, by currency or id."""
    by_name = services.c.name.icontains(term.strip(), autoescape=True)
    return by_name | (services.c.currency == term.strip().upper()) | (services.c.id == as_id(term))


def find_rates(term: str) -> sa.ColumnElement[bool]:
    """Rates of a currency."""
    return rates.c.currency == term.strip().upper()
