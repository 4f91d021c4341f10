"""Profiles, and what administrators do with users: find, change, disable."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from core import sessions
from core.errors import Refusal
from core.identity import get_user, taken
from core.views import Document, moment

COLUMNS = ("first_name", "last_name", "username", "email", "bio", "role")
ADMINS_LOCK = 7_238_002  # of pg_advisory_xact_lock: administrators resign one after the other


def profile(row: sa.Row) -> Document:
    """A user as the user sees it."""
    return {
        "id": row.id,
        "username": row.username,
        "email": row.email,
        "role": row.role,
        "first_name": row.first_name,
        "last_name": row.last_name,
        "bio": row.bio,
        "created_at": moment(row.created_at),
    }


def full_profile(row: sa.Row) -> Document:
    """A user as administrators and auditors see it."""
    return profile(row) | {"disabled": row.disabled_at is not None}


def change(connection: sa.Connection, user_id: str, changes: Mapping[str, Any]) -> sa.Row:
    """Change some of COLUMNS and, with `disabled`, whether the user may do anything. Returns the user's row.

    Raises Refusal: user_not_found, username_taken, email_taken, last_admin.
    """
    if changes.get("disabled") or changes.get("role", "admin") != "admin":
        require_another_admin(connection, user_id)
    assignments = [f"{column} = :{column}" for column in COLUMNS if column in changes]
    if "email" in changes:
        assignments.append("email_confirmed_at = CASE WHEN lower(email) = lower(:email) THEN email_confirmed_at END")
    if "disabled" in changes:
        assignments.append("disabled_at = CASE WHEN :disabled THEN coalesce(disabled_at, clock_timestamp()) END")
    if assignments:
        statement = f"UPDATE users SET {', '.join(assignments)} WHERE id = :id"
        try:
            connection.execute(sa.text(statement), {**changes, "id": user_id})
        except IntegrityError as error:
            raise taken(error) from None
    if changes.get("disabled"):
        sessions.end_all(connection, user_id)
    return get_user(connection, user_id)


def require_another_admin(connection: sa.Connection, user_id: str) -> None:
    """Raise Refusal last_admin if without this user there is no active administrator. Holds until the commit."""
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADMINS_LOCK})
    query = "SELECT id FROM users WHERE role = 'admin' AND disabled_at IS NULL LIMIT 2"
    if list(connection.execute(sa.text(query)).scalars()) == [user_id]:
        raise Refusal("last_admin", "This is the only active administrator: make another one first.")


def page(
    connection: sa.Connection, search: str | None, limit: int, cursor: str | None
) -> tuple[Sequence[sa.Row], str | None]:
    """Users, oldest first, and the cursor of the next page or None.

    search: part of the username, in any capitals and taken by the letter. Raises Refusal bad_cursor.
    """
    query = """
SELECT * FROM users
 WHERE (CAST(:after AS uuid) IS NULL OR id > CAST(:after AS uuid))
   AND strpos(lower(username), lower(:search)) > 0 ORDER BY id LIMIT :limit"""
    after = read_cursor(cursor) if cursor else None
    rows = connection.execute(sa.text(query), {"after": after, "search": search or "", "limit": limit + 1}).all()
    return rows[:limit], write_cursor(rows[limit - 1].id) if len(rows) > limit else None


def write_cursor(user_id: str) -> str:
    """An opaque mark behind a user."""
    return base64.urlsafe_b64encode(UUID(user_id).bytes).decode().rstrip("=")


def read_cursor(cursor: str) -> str:
    """The id of the user that a cursor stands behind. Raises Refusal bad_cursor."""
    try:
        return str(UUID(bytes=base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))
    except (ValueError, binascii.Error):
        raise Refusal("bad_cursor", "Use next_cursor as it was given.") from None
