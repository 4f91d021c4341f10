"""Accounts: opening one, and finding the one that is there already."""

from dataclasses import dataclass

import sqlalchemy as sa

from core.errors import Refusal
from core.ids import new_id, own_account_id
from core.money import DEFAULT_CURRENCY, is_currency

ACCOUNTS_PER_USER_MAX = 100


@dataclass(frozen=True)
class Opened:
    """The id of an account, and whether it was opened just now."""

    account_id: str
    created: bool


def open_account(connection: sa.Connection, user_id: str, currency: str = DEFAULT_CURRENCY, name: str = "") -> Opened:
    """Open an account, or find the user's account with that currency and name. The user's first becomes the default.

    Raises Refusal: unknown_currency, too_many_accounts.
    """
    if not is_currency(currency):
        raise Refusal("unknown_currency", f"{currency} is not a currency of ISO 4217.", pointer="/currency")
    # The user's row is locked first: two simultaneous openings must not both become the default.
    lane = connection.execute(
        sa.text("SELECT lane FROM users WHERE id = :user FOR NO KEY UPDATE"), {"user": user_id}
    ).scalar_one()
    existing = {
        (row.currency, row.name): row.id
        for row in connection.execute(
            sa.text("SELECT id, currency, name FROM accounts WHERE user_id = :user AND kind = 'main'"),
            {"user": user_id},
        )
    }
    if found := existing.get((currency, name)):
        return Opened(found, created=False)
    if len(existing) >= ACCOUNTS_PER_USER_MAX:
        raise Refusal("too_many_accounts", f"A user has at most {ACCOUNTS_PER_USER_MAX} accounts.")
    ensure_own_accounts(connection, lane, currency)
    account_id = new_id()
    connection.execute(
        sa.text(
            "INSERT INTO accounts (id, user_id, kind, name, currency, is_default)"
            " VALUES (:id, :user, 'main', :name, :currency, :is_default)"
        ),
        {"id": account_id, "user": user_id, "name": name, "currency": currency, "is_default": not existing},
    )
    return Opened(account_id, created=True)


def ensure_own_accounts(connection: sa.Connection, lane: int, currency: str) -> None:
    """Create Kassa's own accounts of a lane and currency where they are missing."""
    for kind in ("world", "revenue"):
        connection.execute(
            sa.text(
                "INSERT INTO accounts (id, kind, currency, lane) VALUES (:id, :kind, :currency, :lane)"
                " ON CONFLICT DO NOTHING"
            ),
            {"id": own_account_id(kind, lane, currency), "kind": kind, "currency": currency, "lane": lane},
        )
