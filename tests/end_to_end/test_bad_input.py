"""Everything that the contract names as bad, each with its status; and no input whatever gets a 5xx."""

import json
import socket
from urllib.parse import urlsplit

import pytest

from tests.end_to_end.conftest import PASSWORD, Kassa, User

DEPOSIT = b'{"type": "deposit", "amount": %s}'
OPERATIONS = "/v1/operations"
FAR_TOO_MUCH = 6_000_000  # bytes: more than sockets keep


@pytest.fixture
def alice(kassa: Kassa) -> User:
    return kassa.user()


def send(alice: User, body: bytes, content_type: str = "application/json") -> tuple[int, str, str]:
    """Status, code and pointer of the answer to a body."""
    answer = alice.kassa.http.post(OPERATIONS, content=body, headers=alice.headers | {"Content-Type": content_type})
    document = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert document["accepted"] is False
    assert document["status"] == answer.status_code
    return answer.status_code, document["code"], document.get("errors", [{}])[0].get("pointer", "")


@pytest.mark.parametrize(
    "amount",
    ["true", "1.0", "1e2", '"100"', "0", "-1", "-0", "1000000000000001", "9" * 5000, "null", "[1]", "{}", "1e400"],
)
def test_amounts_that_are_none(alice: User, amount: str):
    assert send(alice, DEPOSIT % amount.encode()) == (422, "validation_failed", "/amount")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        DEPOSIT % b"NaN",
        DEPOSIT % b"-Infinity",
        DEPOSIT % b"01",
        b'{"type": "deposit", "amount": 1, "amount": 2}',
        b'{"type": "deposit", "amount": 1, "comment": "\xff\xfe"}',
        b"\xef\xbb\xbf" + DEPOSIT % b"1",
        (DEPOSIT % b"1").decode().encode("utf-16"),
        b"[" * 60_000,
        b'{"a":' * 10_000,
    ],
)
def test_bodies_that_are_no_json(alice: User, body: bytes):
    assert send(alice, body) == (400, "malformed_json", "")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"amount": 1}, "/type"),
        ({"type": "gift", "amount": 1}, "/type"),
        ({"type": 5, "amount": 1}, "/type"),
        ({"type": "deposit"}, "/amount"),
        ({"type": "deposit", "amount": 1, "balance": 5}, "/balance"),
        ({"type": "deposit", "amount": 1, "account_id": "mine"}, "/account_id"),
        ({"type": "deposit", "amount": 1, "comment": "x" * 501}, "/comment"),
        ({"type": "deposit", "amount": 1, "comment": "a\0b"}, "/comment"),
        ({"type": "deposit", "amount": 1, "comment": "\ud800"}, "/comment"),
        ({"type": "deposit", "amount": 1, "metadata": {"a": 1}}, "/metadata/..."),
        ({"type": "deposit", "amount": 1, "metadata": {"a": {"b": "c"}}}, "/metadata/..."),
        ({"type": "transfer", "amount": 1}, ""),
        ({"type": "transfer", "amount": 1, "to_username": "a", "to_user_id": "b"}, "/to_user_id"),
        ([], ""),
        ("deposit", ""),
        (None, ""),
    ],
)
def test_bodies_of_the_wrong_shape(alice: User, body: object, pointer: str):
    assert send(alice, json.dumps(body).encode()) == (422, "validation_failed", pointer)


def test_declared_and_delivered(alice: User):
    good = DEPOSIT % b"1"
    assert send(alice, good, "text/plain")[:2] == (415, "unsupported_media_type")
    assert send(alice, good, "")[:2] == (415, "unsupported_media_type")
    assert send(alice, DEPOSIT % b"1" + b" " * 70_000)[:2] == (413, "body_too_large")
    headers = alice.headers | {"Content-Type": "application/json"}
    chunked = alice.kassa.http.post(OPERATIONS, content=iter([good]), headers=headers)
    assert (chunked.status_code, chunked.json()["code"]) == (411, "length_required")
    for key in ("", "x" * 256, "caf\xe9"):
        answer = alice.kassa.http.post(
            OPERATIONS, content=good, headers={**headers, "Idempotency-Key": key.encode("latin-1")}
        )
        assert (answer.status_code, answer.json()["code"]) == (400, "bad_idempotency_key")
    assert alice.balance() == 0, "none of it was stored"


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        ("", "missing_token"),
        ("Basic YTpi", "missing_token"),
        ("Bearer", "missing_token"),
        ("Bearer nonsense", "invalid_token"),
        ("Bearer eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.eyJzdWIiOiJ4In0.", "invalid_token"),
    ],
)
def test_without_a_token_there_is_nothing(kassa: Kassa, authorization: str, code: str):
    for method, path in (("GET", "/v1/balance"), ("POST", OPERATIONS), ("GET", OPERATIONS)):
        answer = kassa.http.request(method, path, headers={"Authorization": authorization})
        assert (answer.status_code, answer.json()["code"]) == (401, code)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_names_and_passwords(kassa: Kassa):
    def register(**body: object) -> tuple[int, str]:
        answer = kassa.http.post("/v1/auth/register", json=body)
        return answer.status_code, answer.json()["code"]

    taken = kassa.user().name
    assert register(username=taken.upper(), password=PASSWORD) == (409, "username_taken")
    assert register(username="a b", password=PASSWORD) == (422, "validation_failed")
    assert register(username="fine", password="short") == (422, "validation_failed")
    assert register(username="fine", password=PASSWORD, role="admin") == (422, "validation_failed")
    assert register(username="fine", password=PASSWORD, email="nonsense") == (422, "validation_failed")
    wrong = kassa.http.post("/v1/auth/login", json={"username": taken, "password": "wrong"})
    unknown = kassa.http.post("/v1/auth/login", json={"username": "nobody-here", "password": "wrong"})
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json() == unknown.json()


def test_paths_and_methods(kassa: Kassa):
    alice = kassa.user()
    for path in ("/", "/v1", "/v1/operations/", "/v1/operations/5", "/v1/accounts/me", "/v1/%00", "/v1/../etc/passwd"):
        answer = alice.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = kassa.http.put(OPERATIONS)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/operations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"FROB /v1/operations HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /v1/operations?limit=%ff%fe HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"POST /v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    ],
)
def test_what_is_hardly_http_is_a_4xx_problem(kassa: Kassa, request_bytes: bytes):
    address = urlsplit(kassa.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert 400 <= int(head.split()[1]) < 500
    assert b"application/problem+json" in head
    assert json.loads(body)["accepted"] is False


def test_who_sends_far_too_much_and_closes_is_told(kassa: Kassa, alice: User):
    """Its body is refused unread; to close on what has not been read would take the answer away."""
    address = urlsplit(kassa.url)
    head = (
        "POST /v1/operations HTTP/1.1\r\nHost: kassa\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Authorization: {alice.headers['Authorization']}\r\nContent-Length: {FAR_TOO_MUCH}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode() + b" " * FAR_TOO_MUCH)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer
