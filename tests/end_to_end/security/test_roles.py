"""Who may call what, from the router itself: every call by every role, and by nobody."""

import uuid
from collections.abc import Callable

import httpx
import pytest
import sqlalchemy as sa

from api.app import build
from api.dependencies import Dependencies
from core import sessions, settings
from tests.end_to_end.conftest import Kassa

ROLES = ("user", "service", "auditor", "admin")
FOR_ALL = {  # calls that need no token
    *("POST /v1/auth/register", "POST /v1/auth/login", "POST /v1/auth/refresh", "POST /v1/auth/email"),
    *("POST /v1/auth/token", "GET /health/live", "GET /health/ready", "GET /metrics"),
    *("GET /openapi.json", "GET /v1/services", "GET /v1/services/{id}"),
}
WITH_BODY = ("POST", "PATCH", "PUT")


@pytest.fixture(scope="module")
def responders(running: Kassa) -> dict[str, Callable]:
    """Every call of the router, with what answers it."""
    dependencies = Dependencies.make(settings.load(running.stack.environment))
    return build(dependencies).responders  # type: ignore[attr-defined]


def ask(kassa: Kassa, call: str, token: str = "") -> httpx.Response:
    """A call with an empty body, and an id that nobody has."""
    method, path = call.split(" ")
    body = {"json": {}} if method in WITH_BODY else {}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return kassa.http.request(method, path.replace("{id}", str(uuid.uuid4())), headers=headers, **body)


def token_of(kassa: Kassa, user_id: str) -> str:
    """A token of a session of its own: some calls end theirs."""
    configuration = settings.load(kassa.stack.environment)
    with kassa.engine.begin() as connection:
        token = sessions.open_session(connection, configuration, user_id)["access_token"]
    kassa.issued.add(token)
    return token


def test_what_needs_no_token_is_known(responders: dict[str, Callable]):
    unguarded = {call for call, responder in responders.items() if not hasattr(responder, "roles")}
    assert unguarded >= FOR_ALL
    assert {call for call in unguarded if "/v1" in call} == {call for call in FOR_ALL if "/v1" in call}
    assert not {call for call in unguarded if call.startswith(("PATCH", "DELETE", "PUT"))}


def test_nobody_gets_in_without_a_token(kassa: Kassa, responders: dict[str, Callable]):
    guarded = [call for call, responder in responders.items() if hasattr(responder, "roles")]
    assert len(guarded) > 20
    assert {call: ask(kassa, call).status_code for call in guarded} == dict.fromkeys(guarded, 401)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_gets_in_where_the_router_says_so_and_nowhere_else(
    kassa: Kassa, responders: dict[str, Callable], role: str
):
    user = kassa.user()
    with kassa.engine.begin() as connection:
        connection.execute(sa.text("UPDATE users SET role = :role WHERE id = :id"), {"role": role, "id": user.id})
    for call, responder in responders.items():
        if hasattr(responder, "roles"):
            answer = ask(kassa, call, token_of(kassa, user.id))
            shut_out = answer.status_code == 403 and answer.json()["code"] == "forbidden"
            assert shut_out == (role not in responder.roles), f"{call} by {role}: {answer.status_code} {answer.text}"
            assert answer.status_code != 401
