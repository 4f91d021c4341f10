"""Who is asking: users, passwords, sessions and their tokens.

An access token (JWT, RFC 9068) names its session, and every request looks the session up: ending it ends the token at
once. A refresh token is opaque, stored as a hash, and works once (RFC 9700, 4.14).
"""

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import jwt
import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy.exc import IntegrityError

from core import lanes
from core.accounts import open_account
from core.db import Prepared
from core.errors import Refusal
from core.ids import new_id
from core.settings import Settings

ISSUER = AUDIENCE = "kassa"
TOKEN_TYPE = "at+jwt"
ALGORITHM = "HS256"
HASHES_AT_ONCE_MAX = 2  # each takes 19 MiB and some 30 ms of a core: a crowd logging in must not starve the others
REFRESH_GRACE_SECONDS = 10  # for a client that lost the answer in which its next token was

hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)  # OWASP's minimum for argon2id
NOBODYS_HASH = hasher.hash(secrets.token_hex())
hashing = threading.BoundedSemaphore(HASHES_AT_ONCE_MAX)
tokens = jwt.PyJWT(options={"enforce_minimum_key_length": True})

CALLER = Prepared(
    "caller",
    ["uuid", "uuid"],
    """
SELECT u.id, u.username, u.role, s.id AS session_id
  FROM sessions s JOIN users u ON u.id = s.user_id
 WHERE s.id = $1 AND u.id = $2 AND s.ended_at IS NULL AND s.expires_at > clock_timestamp() AND u.disabled_at IS NULL
""",
)


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
        return self.role in ("service", "auditor", "admin")


def register(connection: sa.Connection, settings: Settings, username: str, password: str, email: str | None) -> str:
    """Make a user with a first account. Returns the user's id. Raises Refusal: username_taken, email_taken."""
    with hashing:
        password_hash = hasher.hash(password)
    return insert_user(connection, settings, username, email, password_hash)


def insert_user(
    connection: sa.Connection, settings: Settings, username: str, email: str | None, password_hash: str | None
) -> str:
    """Make a user with a first account. Returns the user's id. Raises Refusal: username_taken, email_taken."""
    user_id = new_id()
    try:
        connection.execute(
            sa.text(
                "INSERT INTO users (id, username, email, password_hash, lane)"
                " VALUES (:id, :username, :email, :password_hash, :lane)"
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


def log_in(connection: sa.Connection, settings: Settings, username: str, password: str) -> dict[str, Any]:
    """Open a session and return its tokens. Raises Refusal invalid_credentials, as slowly for unknown names."""
    row = connection.execute(
        sa.text("SELECT id, password_hash, disabled_at FROM users WHERE lower(username) = lower(:username)"),
        {"username": username},
    ).one_or_none()
    known = row is not None and row.password_hash is not None and row.disabled_at is None
    right = password_matches(row.password_hash if known and row else NOBODYS_HASH, password)
    if not (known and right and row):
        raise Refusal("invalid_credentials", "The username or the password is wrong.")
    return open_session(connection, settings, row.id)


def password_matches(password_hash: str, password: str) -> bool:
    """Whether the password is the one that was hashed; takes some 30 ms either way."""
    with hashing:
        try:
            return hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False


def open_session(connection: sa.Connection, settings: Settings, user_id: str) -> dict[str, Any]:
    """Begin a session of the user. Returns the pair of tokens as `POST /v1/auth/login` shows it."""
    session_id = new_id()
    connection.execute(
        sa.text(
            "INSERT INTO sessions (id, user_id, expires_at)"
            " VALUES (:id, :user, clock_timestamp() + make_interval(secs => :seconds))"
        ),
        {"id": session_id, "user": user_id, "seconds": settings.refresh_token_seconds},
    )
    return issue_pair(connection, settings, user_id, session_id)


def issue_pair(connection: sa.Connection, settings: Settings, user_id: str, session_id: str) -> dict[str, Any]:
    """A new access token and a new refresh token of a session."""
    refresh_token = secrets.token_urlsafe(32)
    connection.execute(
        sa.text("INSERT INTO refresh_tokens (token_hash, session_id) VALUES (:hash, :session)"),
        {"hash": token_hash(refresh_token), "session": session_id},
    )
    return {
        "access_token": access_token(settings, user_id, session_id),
        "token_type": "Bearer",
        "expires_in": settings.access_token_seconds,
        "refresh_token": refresh_token,
        "refresh_expires_in": settings.refresh_token_seconds,
    }


def token_hash(token: str) -> bytes:
    """SHA-256: enough for 256 random bits, which nobody guesses."""
    return hashlib.sha256(token.encode()).digest()


def access_token(settings: Settings, user_id: str, session_id: str) -> str:
    """A signed token that names the user and the session."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user_id,
        "sid": session_id,
        "iat": now,
        "exp": now + settings.access_token_seconds,
        "jti": new_id(),
    }
    return tokens.encode(claims, settings.secret_key, ALGORITHM, headers={"typ": TOKEN_TYPE})


def read_access_token(settings: Settings, token: str) -> tuple[str, str]:
    """The session and the user that a token names. Raises Refusal invalid_token (RFC 8725)."""
    try:
        decoded = tokens.decode_complete(
            token,
            settings.secret_key,
            algorithms=[ALGORITHM],
            issuer=ISSUER,
            audience=AUDIENCE,
            options={"require": ["iss", "aud", "sub", "sid", "iat", "exp", "jti"]},
        )
        if decoded["header"].get("typ") != TOKEN_TYPE:
            raise ValueError("wrong typ")
        claims = decoded["payload"]
        return str(UUID(claims["sid"])), str(UUID(claims["sub"]))
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        raise Refusal("invalid_token", "The access token is malformed, expired or not ours: log in again.") from None


def caller(connection: sa.Connection, settings: Settings, token: str) -> Caller:
    """The user behind an access token. Raises Refusal invalid_token, also where the session has ended."""
    row = CALLER.execute(connection, read_access_token(settings, token)).one_or_none()
    if row is None:
        raise Refusal("invalid_token", "The session has ended: log in again.")
    return Caller(row.id, row.username, row.role, row.session_id)


def refresh(connection: sa.Connection, settings: Settings, refresh_token: str) -> dict[str, Any] | None:
    """Spend a refresh token. Returns the next pair, or None if it is not good; commit in either case.

    A token that was spent before ends its session, for it may have been stolen; but for REFRESH_GRACE_SECONDS a
    second use gives another pair, as the first answer may have been lost.
    """
    row = connection.execute(
        sa.text(
            "SELECT t.spent_at IS NULL OR t.spent_at > clock_timestamp() - make_interval(secs => :grace) AS good,"
            "       s.id AS session_id, s.user_id"
            "  FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id JOIN users u ON u.id = s.user_id"
            " WHERE t.token_hash = :hash AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()"
            "   AND u.disabled_at IS NULL FOR UPDATE OF t, s"
        ),
        {"hash": token_hash(refresh_token), "grace": REFRESH_GRACE_SECONDS},
    ).one_or_none()
    if row is None:
        return None
    if not row.good:
        end_session(connection, row.session_id)
        return None
    connection.execute(
        sa.text("UPDATE refresh_tokens SET spent_at = coalesce(spent_at, clock_timestamp()) WHERE token_hash = :hash"),
        {"hash": token_hash(refresh_token)},
    )
    return issue_pair(connection, settings, row.user_id, row.session_id)


def end_session(connection: sa.Connection, session_id: str) -> None:
    """End a session: its tokens, of both kinds, are refused from the commit on."""
    connection.execute(
        sa.text("UPDATE sessions SET ended_at = clock_timestamp() WHERE id = :id AND ended_at IS NULL"),
        {"id": session_id},
    )


def get_user(connection: sa.Connection, user_id: str) -> sa.Row:
    """The user's row. Raises Refusal user_not_found."""
    row = connection.execute(sa.text("SELECT * FROM users WHERE id = :id"), {"id": user_id}).one_or_none()
    if row is None:
        raise Refusal("user_not_found", "There is no such user.")
    return row


def user_document(row: sa.Row) -> dict[str, Any]:
    """A user as `POST /v1/auth/register` shows it."""
    return {"id": row.id, "username": row.username, "email": row.email, "role": row.role}


def forget_old_sessions(connection: sa.Connection) -> int:
    """Delete sessions that ended or expired a day ago or more, with their refresh tokens. Returns how many."""
    query = "DELETE FROM sessions WHERE least(ended_at, expires_at) < clock_timestamp() - interval '1 day'"
    return connection.execute(sa.text(query)).rowcount
