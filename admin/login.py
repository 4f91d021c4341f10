"""Who may see the admin pages: users with the role `admin`, for SESSION_SECONDS after they gave their password.

The cookie names a row of `sessions` and is signed. Every request looks the row and the user up: logging out, being
disabled and losing the role take effect at once.
"""

import hashlib
import hmac
from typing import Any

import anyio.to_thread
import sqlalchemy as sa
import structlog
from sqladmin.authentication import AuthenticationBackend
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from core import attempts, db, passwords, sessions
from core.attempts import LOGINS_FROM_ADDRESS, LOGINS_OF_ACCOUNT, Tries
from core.errors import Refusal
from core.ids import new_id
from core.settings import Settings

SESSION_SECONDS = 8 * 3600  # a working day
USERNAME_CHARACTERS_MAX = 254
PASSWORD_CHARACTERS_MAX = 1024

log = structlog.get_logger("kassa.admin")


def signing_key(secret_key: str) -> str:
    """A key for this purpose alone, derived from SECRET_KEY: a cookie is no access token, nor the reverse."""
    return hmac.new(secret_key.encode(), b"kassa/admin/session-cookie/1", hashlib.sha256).hexdigest()


class Login(AuthenticationBackend):
    """The login page, and the check of every request."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        super().__init__(
            signing_key(settings.secret_key),
            session_cookie="kassa_admin",
            same_site="strict",
            max_age=SESSION_SECONDS,
        )
        self.statements = db.autocommit(engine)

    async def login(self, request: Request) -> Response | bool:
        """Open a session if username and password are those of an administrator."""
        form = await request.form()
        username, password = str(form.get("username", "")), str(form.get("password", ""))
        address = attempts.network_of(request.client.host if request.client else "")
        try:
            session_id = await anyio.to_thread.run_sync(self.open_session, username, password, address)
        except Refusal as refusal:
            raise HTTPException(429, refusal.detail) from None
        request.session.clear()
        if session_id is None:
            log.warning("login_refused", username=username[:USERNAME_CHARACTERS_MAX], address=address)
            return False
        log.info("logged_in", username=username, address=address)
        request.session["id"] = session_id
        return True

    async def logout(self, request: Request) -> Response | bool:
        """End the session, also for a copy of the cookie."""
        if session_id := request.session.get("id"):
            await anyio.to_thread.run_sync(self.end_session, session_id)
        request.session.clear()
        return False

    async def authenticate(self, request: Request) -> Response | bool:
        """Whether the session goes on and its user is still an administrator: `request.state.administrator`."""
        session_id = request.session.get("id")
        row = await anyio.to_thread.run_sync(self.administrator, session_id) if session_id else None
        request.state.administrator = row
        return row is not None

    async def get_user_id(self, request: Request) -> Any:
        """Who is acting."""
        return request.state.administrator.id

    def open_session(self, username: str, password: str, address: str) -> str | None:
        """The id of a new session, or None, as slowly, where the name, the password or the role is not right.

        Tries are counted together with those at the API. Raises Refusal too_many_tries.
        """
        too_long = len(username) > USERNAME_CHARACTERS_MAX or len(password) > PASSWORD_CHARACTERS_MAX
        if too_long or "\0" in username:
            return None
        of_account, from_address = Tries(LOGINS_OF_ACCOUNT, username), Tries(LOGINS_FROM_ADDRESS, address)
        query = sa.text(
            "SELECT id, password_hash FROM users"
            " WHERE lower(username) = lower(:name) AND role = 'admin' AND disabled_at IS NULL"
        )
        with self.statements.connect() as connection:
            attempts.require_left(connection, [of_account, from_address])
            attempts.count(connection, [of_account])
            row = connection.execute(query, {"name": username}).one_or_none()
        right = passwords.matches(row.password_hash if row else None, password)  # slow: without a connection
        with self.statements.connect() as connection:
            if row is None or not right:
                attempts.count(connection, [from_address])
                return None
            attempts.forget(connection, of_account)
            session_id = new_id()
            opening = sa.text(
                "INSERT INTO sessions (id, user_id, expires_at)"
                " VALUES (:id, :user, clock_timestamp() + make_interval(secs => :seconds))"
            )
            connection.execute(opening, {"id": session_id, "user": row.id, "seconds": SESSION_SECONDS})
        return session_id

    def end_session(self, session_id: str) -> None:
        """End the session."""
        with self.statements.connect() as connection:
            sessions.end(connection, session_id)

    def administrator(self, session_id: str) -> sa.Row | None:
        """The administrator whose session it is, or None."""
        query = sa.text(
            "SELECT u.id, u.username FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.id = :id"
            " AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()"
            " AND u.disabled_at IS NULL AND u.role = 'admin'"
        )
        with self.statements.connect() as connection:
            return connection.execute(query, {"id": session_id}).one_or_none()
