"""Registration, passwords, sessions; and who may call what."""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import falcon
import sqlalchemy as sa
import structlog

from api.dependencies import Dependencies
from api.requests import read_json
from api.responses import send
from api.schemas import Credentials, NewPassword, RefreshToken, Registration
from core import identity, sessions, views
from core.errors import Refusal
from core.settings import Settings

EVERYONE = ("user", "service", "auditor", "admin")

Responder = Callable[..., None]


def allowed(*roles: str, looks_itself: bool = False) -> Callable[[Responder], Responder]:
    """Let only callers of these roles through, with the Caller in `request.context.caller`.

    looks_itself: the responder's own statement looks whether the session lasts, which saves a round trip. It finds the
    Bearer in `request.context.bearer`, and calls `require` where its statement found nothing.
    Raises Refusal: missing_token, invalid_token, forbidden.
    """

    def guard(responder: Responder) -> Responder:
        @wraps(responder)
        def guarded(self: Any, request: falcon.Request, response: falcon.Response, **parameters: Any) -> None:
            response.set_header("Cache-Control", "private, no-cache")
            request.context.bearer = read_bearer(self.dependencies, request)
            if not looks_itself:
                require(self.dependencies, request, roles)
            try:
                responder(self, request, response, **parameters)
            except (Refusal, falcon.HTTPError):  # who may not ask at all is told that, and nothing else
                if looks_itself:
                    require(self.dependencies, request, roles)
                raise

        guarded.roles = roles  # type: ignore[attr-defined]
        return guarded

    return guard


@dataclass(frozen=True, slots=True)
class Bearer:
    """What a sound token says. Whether its session still lasts is another question."""

    session_id: str
    user_id: str


def read_bearer(dependencies: Dependencies, request: falcon.Request) -> Bearer:
    """Whom the token of a request names. Raises Refusal: missing_token, invalid_token."""
    scheme, _, token = (request.auth or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Refusal("missing_token", "Send Authorization: Bearer <access token>; POST /v1/auth/login gives one.")
    bearer = Bearer(*sessions.read_access_token(dependencies.settings, token.strip()))
    structlog.contextvars.bind_contextvars(user=bearer.user_id)
    return bearer


def require(
    dependencies: Dependencies, request: falcon.Request, roles: Collection[str], connection: sa.Connection | None = None
) -> identity.Caller:
    """The caller of a request, if the session lasts and the role is one of these. Raises Refusal.

    connection: of who holds one already. To wait for a second one would be to wait for others who do the same.
    """
    caller = authenticate(dependencies, request, connection)
    if caller.role not in roles:
        raise Refusal("forbidden", "Your role does not allow this.")
    return caller


def authenticate(
    dependencies: Dependencies, request: falcon.Request, connection: sa.Connection | None = None
) -> identity.Caller:
    """The caller of a request, kept in `request.context.caller`. Raises Refusal: missing_token, invalid_token."""
    bearer = read_bearer(dependencies, request)
    with nullcontext(connection) if connection is not None else dependencies.reader.connect() as held:
        request.context.caller = identity.caller(held, bearer.session_id, bearer.user_id)
    caller: identity.Caller = request.context.caller
    return caller


def caller_if_any(dependencies: Dependencies, request: falcon.Request) -> identity.Caller | None:
    """The caller of a request that needs none; None, too, where the token is not valid."""
    try:
        return authenticate(dependencies, request)
    except Refusal:
        return None


def client_address(settings: Settings, request: falcon.Request) -> str:
    """The IP address of the client, by which tries are counted: a header is believed only from a proxy of ours."""
    named = request.get_header("X-Real-IP") if settings.behind_proxy else None
    return named or request.remote_addr


class Auth:
    """`/v1/auth/...`"""

    def __init__(self, dependencies: Dependencies) -> None:
        self.dependencies = dependencies

    def on_post_register(self, request: falcon.Request, response: falcon.Response) -> None:
        """Make a user with a default account."""
        asked: Registration = read_json(request, Registration)
        address = client_address(self.dependencies.settings, request)
        password_hash = identity.hash_first_password(self.dependencies.engine, asked.password, address)
        with self.dependencies.engine.begin() as connection:
            user_id = identity.insert_user(
                connection, self.dependencies.settings, asked.username, asked.email, password_hash
            )
            document = {
                "user": identity.user_document(identity.get_user(connection, user_id)),
                "account": views.account(views.get_default_account(connection, user_id)),
            }
        send(response, document, falcon.HTTP_201)

    def on_post_login(self, request: falcon.Request, response: falcon.Response) -> None:
        """Exchange a password for a session's tokens."""
        asked: Credentials = read_json(request, Credentials)
        address = client_address(self.dependencies.settings, request)
        tokens = identity.log_in(
            self.dependencies.engine, self.dependencies.settings, asked.username, asked.password, address
        )
        send_secret(response, tokens)

    def on_post_refresh(self, request: falcon.Request, response: falcon.Response) -> None:
        """Exchange a refresh token for the session's next tokens."""
        asked: RefreshToken = read_json(request, RefreshToken)
        with self.dependencies.engine.begin() as connection:
            tokens = sessions.refresh(connection, self.dependencies.settings, asked.refresh_token)
        if tokens is None:
            raise Refusal("invalid_refresh_token", "The refresh token is unknown, spent or expired: log in again.")
        send_secret(response, tokens)

    @allowed(*EVERYONE)
    def on_post_logout(self, request: falcon.Request, response: falcon.Response) -> None:
        """End the session; its tokens are refused from now on."""
        with self.dependencies.reader.connect() as connection:
            sessions.end(connection, request.context.caller.session_id)
        response.status = falcon.HTTP_204

    @allowed(*EVERYONE)
    def on_post_logout_everywhere(self, request: falcon.Request, response: falcon.Response) -> None:
        """End all sessions of the caller, this one, too."""
        with self.dependencies.reader.connect() as connection:
            sessions.end_all(connection, request.context.caller.id)
        response.status = falcon.HTTP_204

    @allowed(*EVERYONE)
    def on_post_password(self, request: falcon.Request, response: falcon.Response) -> None:
        """Change the password, and end all other sessions."""
        asked: NewPassword = read_json(request, NewPassword)
        address = client_address(self.dependencies.settings, request)
        identity.change_password(
            self.dependencies.engine, request.context.caller, asked.current_password, asked.new_password, address
        )
        response.status = falcon.HTTP_204


def send_secret(response: falcon.Response, document: dict[str, Any]) -> None:
    """Answer with what nobody on the way may keep."""
    send(response, document)
    response.set_header("Cache-Control", "no-store")
