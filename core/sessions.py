"""Sessions and their two tokens.

An access token (JWT, RFC 9068) names its session, and every request looks the session up: ending it ends the token at
once. A refresh token is opaque, stored as a hash, and works once (RFC 9700, 4.14).
"""

import hashlib
import secrets
import time
from functools import lru_cache
from typing import Any
from uuid import UUID

import jwt
import sqlalchemy as sa

from core.errors import Refusal
from core.ids import new_id
from core.settings import Settings

ISSUER = AUDIENCE = "kassa"
TOKEN_TYPE = "at+jwt"
ALGORITHM = "HS256"
TOKENS_REMEMBERED_MAX = 20_000  # some 20 MB
REFRESH_GRACE_SECONDS = 10  # for a client that lost the answer in which its next token was


def caller_of(session: str, user: str) -> str:
    """SQL: the user behind a session, as long as it lasts; it must be the one whom the token names."""
    return f"""
SELECT u.id, u.username, u.role, s.id AS session_id
  FROM sessions s JOIN users u ON u.id = s.user_id
 WHERE s.id = {session} AND u.id = {user}
   AND s.ended_at IS NULL AND s.expires_at > clock_timestamp() AND u.disabled_at IS NULL
"""


tokens = jwt.PyJWT(options={"enforce_minimum_key_length": True})


def open_session(connection: sa.Connection, settings: Settings, user_id: str) -> dict[str, Any]:
    """Begin a session of the user, whose row the caller has locked against being disabled meanwhile.

    Returns the pair of tokens as `POST /v1/auth/login` shows it.
    """
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
        session_id, user_id, expires_at = read_claims(settings.secret_key, token)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        expires_at = 0
    if expires_at <= time.time():
        raise Refusal("invalid_token", "The access token is malformed, expired or not ours: log in again.")
    return session_id, user_id


@lru_cache(maxsize=TOKENS_REMEMBERED_MAX)
def read_claims(secret_key: str, token: str) -> tuple[str, str, float]:
    """The session, the user and the moment of expiry of a token with a right signature: that stays right for ever."""
    decoded = tokens.decode_complete(
        token,
        secret_key,
        algorithms=[ALGORITHM],
        issuer=ISSUER,
        audience=AUDIENCE,
        options={"require": ["iss", "aud", "sub", "sid", "iat", "exp", "jti"]},
    )
    if decoded["header"].get("typ") != TOKEN_TYPE:
        raise ValueError("wrong typ")
    claims = decoded["payload"]
    return str(UUID(claims["sid"])), str(UUID(claims["sub"])), float(claims["exp"])


def refresh(connection: sa.Connection, settings: Settings, refresh_token: str) -> dict[str, Any] | None:
    """Spend a refresh token. Returns the next pair, or None if it is not good; commit in either case.

    A token that was spent before ends its session, for it may have been stolen; but for REFRESH_GRACE_SECONDS a
    second use gives another pair, as the first answer may have been lost. Of two at the same instant the second
    waits for the first's row lock and finds it spent a moment ago: within the grace.
    """
    row = connection.execute(
        sa.text(
            "SELECT t.spent_at IS NULL OR t.spent_at > clock_timestamp() - make_interval(secs => :grace) AS good,"
            "       s.id AS session_id, s.user_id"
            "  FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id JOIN users u ON u.id = s.user_id"
            " WHERE t.token_hash = :hash AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()"
            "   AND t.created_at > clock_timestamp() - make_interval(secs => :lifetime)"
            "   AND u.disabled_at IS NULL FOR UPDATE OF t, s"
        ),
        {
            "hash": token_hash(refresh_token),
            "grace": REFRESH_GRACE_SECONDS,
            "lifetime": settings.refresh_token_seconds,
        },
    ).one_or_none()
    if row is None:
        return None
    if not row.good:
        end(connection, row.session_id)
        return None
    connection.execute(
        sa.text("UPDATE refresh_tokens SET spent_at = coalesce(spent_at, clock_timestamp()) WHERE token_hash = :hash"),
        {"hash": token_hash(refresh_token)},
    )
    # The session lasts as long as its newest refresh token, of which the client is told `refresh_expires_in`.
    connection.execute(
        sa.text("UPDATE sessions SET expires_at = clock_timestamp() + make_interval(secs => :seconds) WHERE id = :id"),
        {"id": row.session_id, "seconds": settings.refresh_token_seconds},
    )
    return issue_pair(connection, settings, row.user_id, row.session_id)


def end(connection: sa.Connection, session_id: str) -> None:
    """End a session: its tokens, of both kinds, are refused from the commit on."""
    connection.execute(
        sa.text("UPDATE sessions SET ended_at = clock_timestamp() WHERE id = :id AND ended_at IS NULL"),
        {"id": session_id},
    )


def end_all(connection: sa.Connection, user_id: str, but: str | None = None) -> int:
    """End the user's sessions, all `but` one. Returns how many."""
    query = """
UPDATE sessions SET ended_at = clock_timestamp()
 WHERE user_id = :user AND ended_at IS NULL AND id IS DISTINCT FROM CAST(:but AS uuid)"""
    return connection.execute(sa.text(query), {"user": user_id, "but": but}).rowcount


def forget_old(connection: sa.Connection, settings: Settings) -> int:
    """Delete what nobody can use any more: sessions over for a day, and expired refresh tokens. Returns how many."""
    sessions = "DELETE FROM sessions WHERE least(ended_at, expires_at) < clock_timestamp() - interval '1 day'"
    refresh_tokens = "DELETE FROM refresh_tokens WHERE created_at < clock_timestamp() - make_interval(secs => :seconds)"
    connection.execute(sa.text(refresh_tokens), {"seconds": settings.refresh_token_seconds})
    return connection.execute(sa.text(sessions)).rowcount
