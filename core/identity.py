"""Who is asking: users, their passwords, and the caller behind a request's token."""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from core import attempts, lanes, passwords, sessions
from core.accounts import open_account
from core.attempts import LOGINS_FROM_ADDRESS, LOGINS_OF_ACCOUNT, Limit, Tries
from core.db import Prepared, autocommit
from core.errors import Refusal
from core.ids import new_id
from core.settings import Settings

REGISTRATIONS_PER_ADDRESS_MAX = 1000  # an hour; tried ones, too: each costs a hash
REGISTRATIONS_FROM_ADDRESS = Limit("register/address", REGISTRATIONS_PER_ADDRESS_MAX, 3600)

USERNAME_CHARACTERS_MAX = 150
USERNAME = r"\A[A-Za-z0-9_.@+-]+\Z"
NEW_USERNAME = r"\A(?![Mm][Ee]\Z)[A-Za-z0-9_.@+-]+\Z"  # "me" is whoever asks: /v1/users/me

CALLER = Prepared("caller", ["uuid", "uuid"], sessions.caller_of("$1", "$2"))


@dataclass(frozen=True, slots=True)
class Caller:
    """The user behind a request."""

    id: str
    username: str
    role: str
    session_id: str

    @property
    def acts_for_others(self) -> bool:
        """Whether the caller may act for any user by naming `user_id`."""
        return self.role == "service"

    @property
    def reads_everything(self) -> bool:
        """Whether the caller may read what is not the caller's own."""
        return reads_everything(self.role)


def reads_everything(role: str) -> bool:
    """Whether a role may read what is not its user's own."""
    return role in ("service", "auditor", "admin")


def hash_first_password(engine: sa.Engine, password: str, address: str) -> str:
    """The hash of a password with which somebody registers, counted. No connection is held while it is made.

    address: the client's. Raises Refusal: too_many_tries; busy, which is not counted.
    """
    tries = [Tries(REGISTRATIONS_FROM_ADDRESS, attempts.network_of(address))]
    with autocommit(engine).connect() as connection:
        attempts.require_left(connection, tries)
    password_hash = passwords.hash_password(password)
    with autocommit(engine).connect() as connection:
        attempts.count(connection, tries)
    return password_hash


def insert_user(
    connection: sa.Connection, settings: Settings, username: str, email: str | None, password_hash: str | None
) -> str:
    """Make a user with a first account. Returns the user's id. Raises Refusal: username_taken, email_taken."""
    user_id = new_id()
    try:
        connection.execute(
            sa.text(
                "WITH made AS (INSERT INTO users (id, username, email, password_hash, lane)"
                " VALUES (:id, :username, :email, :password_hash, :lane) RETURNING id)"
                " INSERT INTO progress (user_id) SELECT id FROM made"
            ),
            {
                "id": user_id,
                "username": username,
                "email": email,
                "password_hash": password_hash,
                "lane": lanes.of_user(user_id, settings.lanes),
            },
        )
    except IntegrityError as error:
        raise taken(error) from None
    open_account(connection, user_id)
    return user_id


def taken(error: IntegrityError) -> Exception:
    """The refusal that a broken unique index of `users` stands for, or the error itself."""
    constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", None)
    if constraint == "users_username_key":
        return Refusal("username_taken", "Somebody has this username: choose another.", pointer="/username")
    if constraint == "users_email_key":
        return Refusal("email_taken", "Somebody has this e-mail address.", pointer="/email")
    return error


def log_in(engine: sa.Engine, settings: Settings, username: str, password: str, address: str) -> dict[str, Any]:
    """Open a session and return its tokens. No connection is held while the password is hashed.

    address: the client's. Raises Refusal: too_many_tries; busy; invalid_credentials, as slowly for unknown names.
    """
    tries = login_tries(username, address)
    with autocommit(engine).connect() as connection:
        attempts.require_left(connection, tries)
        row = connection.execute(
            sa.text("SELECT id, password_hash, disabled_at FROM users WHERE lower(username) = lower(:username)"),
            {"username": username},
        ).one_or_none()
    password_hash = row.password_hash if row and row.disabled_at is None else None
    right = passwords.matches(password_hash, password)
    if row is None or not right:
        raise wrong_password(engine, tries)
    with engine.begin() as connection:
        attempts.require_left(connection, tries[:1])  # whom a crowd of wrong guesses has overtaken comes too late
        attempts.forget(connection, tries[0])
        lock_unchanged(connection, row.id, password_hash)
        return sessions.open_session(connection, settings, row.id)


def login_tries(username: str, address: str) -> list[Tries]:
    """What a guess at a password is counted against: the name's account, known or not, and the client's address."""
    return [Tries(LOGINS_OF_ACCOUNT, username), Tries(LOGINS_FROM_ADDRESS, attempts.network_of(address))]


def wrong_password(engine: sa.Engine, tries: list[Tries]) -> Refusal:
    """Count the wrong guess, and return the refusal for it. Raises Refusal too_many_tries."""
    with autocommit(engine).connect() as connection:
        attempts.count(connection, tries)
    return Refusal("invalid_credentials", "The username or the password is wrong.")


def lock_unchanged(connection: sa.Connection, user_id: str, password_hash: str | None) -> None:
    """Hold the user as it was when the password was compared, until the commit.

    Raises Refusal invalid_credentials where the user was disabled, or got another password, in the meantime.
    """
    query = """
SELECT id FROM users
 WHERE id = :id AND password_hash IS NOT DISTINCT FROM :hash AND disabled_at IS NULL FOR NO KEY UPDATE"""
    if connection.execute(sa.text(query), {"id": user_id, "hash": password_hash}).first() is None:
        raise Refusal("invalid_credentials", "The username or the password is wrong.")


def change_password(engine: sa.Engine, caller: "Caller", current: str | None, new: str, address: str) -> None:
    """Give the caller another password, and end all other sessions, which may be a thief's.

    current: may be absent only where the user, made by e-mail code, has none yet.
    Raises Refusal: too_many_tries, validation_failed, invalid_credentials, busy.
    """
    tries = login_tries(caller.username, address)
    with autocommit(engine).connect() as connection:
        attempts.require_left(connection, tries)
        password_hash = get_user(connection, caller.id).password_hash
    if password_hash is not None:
        if current is None:
            detail = "Send your current password, too."
            error = {"pointer": "/current_password", "code": "missing_field", "detail": detail}
            raise Refusal("validation_failed", detail, errors=[error])
        if not passwords.matches(password_hash, current):
            raise wrong_password(engine, tries)
    new_hash = passwords.hash_password(new)
    with engine.begin() as connection:
        attempts.require_left(connection, tries[:1])
        attempts.forget(connection, tries[0])
        lock_unchanged(connection, caller.id, password_hash)
        set_password(connection, caller.id, new_hash, but_session=caller.session_id)


def set_password(connection: sa.Connection, user_id: str, password_hash: str, but_session: str | None = None) -> None:
    """Store a password's hash, and end the user's sessions, all but the one that is named."""
    connection.execute(
        sa.text("UPDATE users SET password_hash = :hash WHERE id = :id"), {"id": user_id, "hash": password_hash}
    )
    sessions.end_all(connection, user_id, but=but_session)


def caller(connection: sa.Connection, session_id: str, user_id: str) -> Caller:
    """The user behind a session. Raises Refusal invalid_token where it has ended."""
    row = CALLER.row(connection, (session_id, user_id))
    if row is None:
        raise Refusal("invalid_token", "The session has ended: log in again.")
    return Caller(row.id, row.username, row.role, row.session_id)


def get_user(connection: sa.Connection, user_id: str) -> sa.Row:
    """The user's row. Raises Refusal user_not_found."""
    row = connection.execute(sa.text("SELECT * FROM users WHERE id = :id"), {"id": user_id}).one_or_none()
    if row is None:
        raise Refusal("user_not_found", "There is no such user.")
    return row


def user_document(row: sa.Row) -> dict[str, Any]:
    """A user as `POST /v1/auth/register` shows it."""
    return {"id": row.id, "username": row.username, "email": row.email, "role": row.role}
