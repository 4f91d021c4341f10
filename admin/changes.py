"""The few things that administrators change, each in one transaction; who changed what is logged."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import structlog

from admin.forms import minor_units
from admin.search import as_id
from core import services, users
from core.accounts import open_account
from core.errors import Refusal

log = structlog.get_logger("kassa.admin")


class NotChanged(Exception):
    """The database refused. What it says of a row may hold secrets: it is neither shown nor logged."""

    def __init__(self) -> None:
        super().__init__("The database refused this change; nothing was changed.")


def attempt(change: Callable[..., Any], engine: sa.Engine, by: sa.Row, *arguments: Any) -> Any:
    """Make one of the changes below. Raises Refusal, or NotChanged, of which only the kind is logged."""
    try:
        return change(engine, by, *arguments)
    except sa.exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None)
        log.error(
            "change_failed",
            by=by.username,
            change=change.__name__,
            error=type(error).__name__,
            pgcode=getattr(cause, "pgcode", None),
            constraint=getattr(getattr(cause, "diag", None), "constraint_name", None),
        )
        raise NotChanged from None


def change_user(engine: sa.Engine, by: sa.Row, user_id: str, given: dict[str, Any]) -> None:
    """Change a user's names and role, and enable or disable it. Raises Refusal last_admin."""
    with engine.begin() as connection:
        users.change(connection, user_id, given)
    log.info("user_changed", by=by.username, user_id=user_id, role=given["role"], disabled=given["disabled"])


def open_account_for(engine: sa.Engine, by: sa.Row, given: dict[str, Any]) -> str:
    """Open an account for the user named, or find the one that is there. Returns its id. Raises Refusal."""
    find = sa.text("SELECT id FROM users WHERE lower(username) = lower(:name) OR id = :id")
    with engine.begin() as connection:
        user_id = connection.execute(find, {"name": given["user"], "id": as_id(given["user"])}).scalars().first()
        if user_id is None:
            raise Refusal("user_not_found", "There is no such user.")
        opened = open_account(connection, user_id, given["currency"], given["name"])
    log.info("account_opened", by=by.username, user_id=user_id, account_id=opened.account_id, created=opened.created)
    return opened.account_id


def create_service(engine: sa.Engine, by: sa.Row, given: dict[str, Any]) -> str:
    """Put a service on sale. Returns its id."""
    with engine.begin() as connection:
        service_id = services.create(connection, priced(given)).id
    log.info("service_created", by=by.username, service_id=service_id, **given)
    return str(service_id)


def change_service(engine: sa.Engine, by: sa.Row, service_id: str, given: dict[str, Any]) -> None:
    """Change a service."""
    with engine.begin() as connection:
        services.change(connection, service_id, priced(given))
    log.info("service_changed", by=by.username, service_id=service_id, **given)


def priced(given: dict[str, Any]) -> dict[str, Any]:
    """The form's price, a decimal, in minor units."""
    return given | {"price": minor_units(given["price"], given["currency"])}
