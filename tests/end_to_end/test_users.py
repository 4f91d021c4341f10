"""Profiles and users through the public API: who may see and change what, and that nobody else may."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from cli.stack import ROOT
from core.ids import new_id
from tests.end_to_end.conftest import PASSWORD, Kassa, User

NOBODY = "01a1fb36-b9a6-76c2-81f4-000000000000"
ROLES = ("user", "service", "auditor", "admin")

Answer = httpx.Response


@pytest.fixture
def alice(kassa: Kassa) -> User:
    return kassa.user()


def user_of(kassa: Kassa, role: str) -> User:
    """A new user of a role."""
    user = kassa.user()
    with kassa.engine.begin() as connection:
        connection.execute(sa.text("UPDATE users SET role = :role WHERE id = :id"), {"role": role, "id": user.id})
    return user


@pytest.fixture
def admin(kassa: Kassa) -> User:
    return user_of(kassa, "admin")


def patch(user: User, path: str, body: Any) -> Answer:
    return user.kassa.http.patch(path, json=body, headers=user.headers)


def delete(user: User, path: str) -> Answer:
    return user.kassa.http.delete(path, headers=user.headers)


def refused(answer: Answer) -> tuple[int, str]:
    """Status and code of a refusal that stored nothing."""
    assert answer.json()["accepted"] is False
    return answer.status_code, answer.json()["code"]


def test_a_profile_is_changed_field_by_field(alice: User):
    before = alice.get("/v1/users/me").json()
    assert set(before) == {"id", "username", "email", "role", "first_name", "last_name", "bio", "created_at"}
    assert (before["id"], before["username"], before["role"]) == (alice.id, alice.name, "user")
    assert before["created_at"].endswith("Z")
    name = f"renamed-{alice.name}"
    changes = {"first_name": "Ада", "last_name": "L'ovelace", "bio": "'; --\n", "email": f"{name}@example.com"}
    for field, value in [*changes.items(), ("username", name)]:
        assert patch(alice, "/v1/users/me", {field: value}).json()[field] == value
    after = alice.get("/v1/users/me")
    assert after.json() == before | changes | {"username": name}
    assert patch(alice, "/v1/users/me", {}).json() == after.json()
    assert alice.get("/v1/users/me", **{"If-None-Match": after.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize(
    "body",
    [
        {"role": "admin"},
        {"id": NOBODY},
        {"disabled": False},
        {"disabled_at": None},
        {"password_hash": "x"},
        {"created_at": "2026-01-01T00:00:00Z"},
        {"lane": 0},
        {"first_name": "fine", "role": "user"},
        {"first_name": None},
        {"first_name": 5},
        {"first_name": "a\0b"},
        {"last_name": "x" * 151},
        {"bio": "x" * 2001},
        {"email": "nonsense"},
        {"username": "me"},
        {"username": "ME"},
        {"username": ""},
        {"username": "a b"},
        {"username": "x" * 151},
        [],
        "role",
    ],
)
def test_nothing_else_can_be_set(alice: User, body: Any):
    before = alice.get("/v1/users/me").json()
    assert refused(patch(alice, "/v1/users/me", body)) == (422, "validation_failed")
    assert alice.get("/v1/users/me").json() == before


def test_names_and_addresses_are_one_users(kassa: Kassa, alice: User):
    bob = kassa.user()
    email = f"{bob.name}@example.com"
    assert patch(bob, "/v1/users/me", {"email": email}).status_code == 200
    assert refused(patch(alice, "/v1/users/me", {"username": bob.name.upper()})) == (409, "username_taken")
    assert refused(patch(alice, "/v1/users/me", {"email": email.upper()})) == (409, "email_taken")
    assert patch(alice, "/v1/users/me", {"username": alice.name.upper()}).status_code == 200, "one's own is free"
    for name in ("me", "Me"):
        registered = kassa.http.post("/v1/auth/register", json={"username": name, "password": PASSWORD})
        assert refused(registered) == (422, "validation_failed")


@pytest.mark.parametrize("role", ROLES)
def test_who_may_do_what(kassa: Kassa, alice: User, role: str):
    caller, path = user_of(kassa, role), f"/v1/users/{alice.id}"
    reads, writes = role in ("auditor", "admin"), role == "admin"
    assert caller.get("/v1/users/me").json()["role"] == role
    assert caller.get("/v1/users?limit=1").status_code == (200 if reads else 403)
    assert caller.get(path).status_code == (200 if reads else 403)
    assert caller.get(f"/v1/users/{NOBODY}").status_code == (404 if reads else 403)
    assert patch(caller, path, {"first_name": "x"}).status_code == (200 if writes else 403)
    assert patch(caller, f"/v1/users/{NOBODY}", {"first_name": "x"}).status_code == (404 if writes else 403)
    if not writes:
        assert refused(patch(caller, f"/v1/users/{caller.id}", {"role": "admin"})) == (403, "forbidden")
        assert refused(delete(caller, f"/v1/users/{caller.id}")) == (403, "forbidden")
    assert delete(caller, f"/v1/users/{NOBODY}").status_code == (404 if writes else 403)
    assert delete(caller, path).status_code == (204 if writes else 403)
    assert (alice.get("/v1/users/me").status_code == 401) is writes


def test_without_a_token_there_is_nobody(kassa: Kassa, alice: User):
    for method, path in (("GET", "me"), ("PATCH", "me"), ("GET", alice.id), ("PATCH", alice.id), ("DELETE", alice.id)):
        assert kassa.http.request(method, f"/v1/users/{path}").status_code == 401
    assert kassa.http.get("/v1/users").status_code == 401


def test_roles_and_disabling_take_effect_at_once(kassa: Kassa, alice: User, admin: User):
    path = f"/v1/users/{alice.id}"
    assert patch(admin, path, {"role": "auditor", "first_name": "Ada"}).json()["role"] == "auditor"
    assert alice.get("/v1/users").status_code == 200
    assert patch(admin, path, {"role": "user"}).status_code == 200
    assert alice.get("/v1/users").status_code == 403
    assert refused(patch(admin, path, {"role": "emperor"})) == (422, "validation_failed")
    assert patch(admin, path, {"disabled": True}).json()["disabled"] is True
    assert refused(alice.operate(type="deposit", amount=1)) == (401, "invalid_token")
    refreshed = kassa.http.post("/v1/auth/refresh", json={"refresh_token": alice.tokens["refresh_token"]})
    assert refreshed.status_code == 401
    assert delete(admin, path).status_code == 204, "disabled already"
    assert patch(admin, path, {"disabled": False}).json()["disabled"] is False
    assert alice.get("/v1/users/me").status_code == 401, "its sessions have ended for good"
    login = kassa.http.post("/v1/auth/login", json={"username": alice.name, "password": PASSWORD})
    assert login.status_code == 200


def test_money_for_a_disabled_user_arrives_all_the_same(kassa: Kassa, admin: User):
    alice, bob = kassa.user(), kassa.user(deposit=10)
    assert delete(admin, f"/v1/users/{alice.id}").status_code == 204
    sent = bob.operate(type="transfer", amount=10, to_user_id=alice.id)
    assert sent.json()["status"] == "applied"


def test_users_are_found_by_any_part_of_the_name_by_the_letter(kassa: Kassa, admin: User):
    part = new_id()
    names = [f"{part}_a", f"{part}xa", f"{part}-B", f"{part}.b"]
    for name in names:
        kassa.user(name=name)

    def found(search: str) -> list[str]:
        answer = admin.kassa.http.get("/v1/users", params={"search": search}, headers=admin.headers)
        return [user["username"] for user in answer.json()["items"]]

    assert found(part) == names
    assert found(part.upper()) == names
    assert found(f"{part[-8:]}_") == [names[0]], "no wildcard"
    assert found(f"{part}-b") == [names[2]]
    for nobody in (f"{part}%", f"{part}\\", "' OR true --"):
        assert found(nobody) == []
    assert refused(admin.get("/v1/users?search=%00")) == (422, "validation_failed")
    assert refused(admin.get(f"/v1/users?search={'x' * 151}")) == (422, "validation_failed")


def test_all_users_are_seen_once_page_by_page(kassa: Kassa, admin: User):
    part = new_id()
    names = [kassa.user(name=f"{part}-{number}").name for number in range(5)]
    path, seen = f"/v1/users?search={part}&limit=2", []
    while path:
        answer = admin.get(path)
        seen += [user["username"] for user in answer.json()["items"]]
        path = answer.links["next"]["url"] if "next" in answer.links else ""
        assert bool(path) == bool(answer.json()["next_cursor"])
    assert seen == names
    for cursor in ("nonsense", "AAAA", "\u0430"):
        answer = kassa.http.get("/v1/users", params={"cursor": cursor}, headers=admin.headers)
        assert refused(answer) == (400, "bad_cursor")


@pytest.fixture
def only_admin(kassa: Kassa, admin: User) -> Iterator[User]:
    """The only administrator, while the test runs."""
    statement = "UPDATE users SET role = 'user' WHERE role = 'admin' AND id <> :id RETURNING id"
    with kassa.engine.begin() as connection:
        others = list(connection.execute(sa.text(statement), {"id": admin.id}).scalars())
    yield admin
    with kassa.engine.begin() as connection:
        restore = "UPDATE users SET role = 'admin' WHERE id = ANY (CAST(:ids AS uuid[]))"
        connection.execute(sa.text(restore), {"ids": others})


def test_the_last_active_administrator_stays(kassa: Kassa, only_admin: User):
    admin = only_admin
    path = f"/v1/users/{admin.id}"
    for body in ({"role": "user"}, {"disabled": True}, {"role": "auditor", "first_name": "x"}):
        assert refused(patch(admin, path, body)) == (409, "last_admin")
    assert refused(delete(admin, path)) == (409, "last_admin")
    assert patch(admin, path, {"role": "admin", "disabled": False, "bio": "still here"}).status_code == 200
    second = kassa.user()
    assert patch(admin, f"/v1/users/{second.id}", {"role": "admin"}).status_code == 200
    assert patch(admin, path, {"role": "user"}).status_code == 200
    assert refused(delete(second, f"/v1/users/{second.id}")) == (409, "last_admin")


def create_admin(kassa: Kassa, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run ./kassa create-admin, not on a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "cli", "create-admin", *arguments],
        env=kassa.stack.environment,
        cwd=ROOT,
        input=given,
        text=True,
        capture_output=True,
        check=False,
    )


def role_after_login(kassa: Kassa, name: str, password: str) -> str:
    login = kassa.http.post("/v1/auth/login", json={"username": name, "password": password})
    assert login.status_code == 200, login.text
    headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
    return kassa.http.get("/v1/users/me", headers=headers).json()["role"]


def test_create_admin_makes_and_promotes(kassa: Kassa, alice: User):
    name = f"root-{alice.name}"
    made = create_admin(kassa, name, "--password-stdin", given="correct horse\n")
    assert (made.returncode, made.stderr) == (0, "")
    assert name in made.stdout
    assert role_after_login(kassa, name, "correct horse") == "admin"

    assert create_admin(kassa, alice.name.upper()).returncode == 0
    assert alice.get("/v1/users/me").json()["role"] == "admin", "and the session goes on"
    assert role_after_login(kassa, alice.name, PASSWORD) == "admin"

    reset = create_admin(kassa, alice.name, "--password-stdin", given="battery staple\n")
    assert reset.returncode == 0
    assert alice.get("/v1/users/me").status_code == 401
    assert role_after_login(kassa, alice.name, "battery staple") == "admin"


def test_create_admin_refuses_in_one_line(kassa: Kassa, alice: User):
    for arguments, given, said in (
        (["a b"], "", "username"),
        (["me"], "", "username"),
        ([f"new-{alice.name}"], "", "--password-stdin"),
        ([f"new-{alice.name}", "--password-stdin"], "short\n", "password"),
        ([f"new-{alice.name}", "--password-stdin"], "", "password"),
    ):
        refusal = create_admin(kassa, *arguments, given=given)
        assert refusal.returncode == 1
        assert refusal.stderr.startswith("kassa create-admin: ")
        assert len(refusal.stderr.splitlines()) == 1
        assert said in refusal.stderr


@pytest.mark.parametrize(("second", "code"), [("correct horse", 0), ("another horse", 1)])
def test_create_admin_asks_twice_on_a_terminal(kassa: Kassa, alice: User, second: str, code: int):
    name = f"typed-{code}-{alice.name}"
    keyboard, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "create-admin", name],
        env=kassa.stack.environment,
        cwd=ROOT,
        stdin=terminal,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        for prompt, typed in ((b"Password: ", "correct horse"), (b"The same again: ", second)):
            said = b""
            while not said.endswith(prompt):
                said += (byte := os.read(process.stderr.fileno(), 1))
                assert byte, said
            os.write(keyboard, f"{typed}\n".encode())
        process.communicate(timeout=20)
    os.close(keyboard)
    os.close(terminal)
    assert process.returncode == code
    if code == 0:
        assert role_after_login(kassa, name, "correct horse") == "admin"
