"""Requests that mean something else than they seem to: nothing but a plain answer comes of them."""

import base64
import csv
import gzip
import io
import json
import os
import pickle
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from tests.end_to_end.conftest import PLANTED, Kassa, User, until

SQL = [
    "'; DROP TABLE operations; --",
    "' OR '1'='1",
    '"; SELECT pg_sleep(10); --',
    "\\'; DELETE FROM entries; --",
    "%s %(id)s :id $1 {0} {}",
    "1) UNION SELECT password_hash FROM users --",
]


@pytest.fixture
def alice(kassa: Kassa) -> User:
    return kassa.user(deposit=100)


@pytest.mark.parametrize("text", SQL)
def test_text_that_looks_like_sql_is_text(alice: User, text: str):
    told = alice.operate(type="deposit", amount=1, comment=text, metadata={"note": text}, key=f"{hash(text)}").json()
    assert (told["comment"], told["metadata"]) == (text, {"note": text})
    assert alice.get("/v1/operations").json()["items"][0]["comment"] == text
    assert alice.operate(type="transfer", amount=1, to_username=text).status_code in (404, 422)
    for path in ("/v1/operations", "/v1/services", "/v1/users"):
        for name in ("cursor", "type", "status", "sort", "username", "limit", "since", "currency"):
            answer = alice.kassa.http.get(path, params={name: text}, headers=alice.headers)
            assert answer.status_code in (200, 400, 403, 422), f"{path} {name}"
    login = alice.kassa.http.post("/v1/auth/login", json={"username": text, "password": text})
    assert login.status_code in (401, 422, 429)


@pytest.mark.parametrize(
    "text", ["=HYPERLINK(1)", "+1", "-1+1", "@SUM(1)", "\t=1", "-1", '"a","b"', "a\nb", "a\r\nb,c"]
)
def test_a_cell_of_a_statement_is_neither_a_formula_nor_two_cells(alice: User, text: str):
    alice.operate(type="deposit", amount=7, comment=text)
    answer = alice.get(f"/v1/accounts/{alice.account_id}/statement", Accept="text/csv")
    assert answer.headers["Content-Type"].startswith("text/csv")
    header, *rows = csv.reader(io.StringIO(answer.text, newline=""))
    [comment] = [row[header.index("comment")] for row in rows if text in row[header.index("comment")]]
    assert {len(row) for row in rows} == {len(header)}
    is_formula = text[0] in "=+-@\t" and text != "-1"
    assert comment == (f"'{text}" if is_formula else text)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-HTTP-Method-Override": "DELETE"},
        {"X-HTTP-Method": "DELETE"},
        {"X-Method-Override": "DELETE"},
        {"X-Original-URL": "/v1/users"},
        {"X-Rewrite-URL": "/v1/users"},
        {"X-Forwarded-Host": "elsewhere.example", "Host": "elsewhere.example"},
        {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"},
        {"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "off"},
        {"SCRIPT_NAME": "/v1"},
        {"SCRIPT_NAME": "/elsewhere", "PATH_INFO": "/v1/users"},
    ],
)
def test_headers_that_would_make_it_another_request_do_not(alice: User, headers: dict[str, str]):
    operation = alice.operate(type="deposit", amount=1).json()
    answer = alice.get(f"/v1/operations/{operation['id']}", **headers)
    assert (answer.status_code, answer.json()["id"]) == (200, operation["id"])
    assert "elsewhere" not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1//balance", "/v1/./balance", "/v1/accounts/../balance", "/v1/%2e%2e/v1/balance"),
        *("/V1/balance", "/v1/Balance", "/v1/balance;a=b", "/v1/balance/", "/v1/balance%00", "/v1/balance%0a"),
        *("/v1/balance%2f", "/v1\\balance", "/v1/balance.json", "/%2e%2e/%2e%2e/etc/passwd", "/v1/%c0%af"),
        *("/docs/../core/settings.py", "/docs/%2e%2e/app.py", "/docs/..%2f..%2fapp.py"),
    ],
)
def test_a_path_is_taken_by_the_letter(kassa: Kassa, alice: User, path: str):
    head, body = raw(kassa, f"GET {path} HTTP/1.1\r\nHost: a\r\n{bearer(alice)}Connection: close\r\n\r\n".encode())
    assert int(head.split()[1]) in (400, 404), path
    assert json.loads(body)["accepted"] is False


@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: b=c", "a\nX: y", "a\r\n\r\n<html>", "%0d%0aSet-Cookie:%20b=c"])
def test_no_header_of_an_answer_can_be_written_by_a_request(kassa: Kassa, alice: User, text: str):
    for path in ("/v1/operations?cursor=", "/v1/users/", "/", "/v1/accounts/"):
        quoted = "".join(f"%{byte:02x}" for byte in text.encode())
        answer = kassa.http.get(path + quoted, headers=alice.headers)
        assert answer.status_code < 500
        assert not {"set-cookie", "x"} & set(answer.headers)
    request = f"GET /v1/balance HTTP/1.1\r\nHost: a\r\nX-Request-Id: {text}\r\n{bearer(alice)}Connection: close\r\n\r\n"
    head, _ = raw(kassa, request.encode())
    assert "set-cookie" not in head.lower()


def test_a_body_that_is_packed_is_not_unpacked(alice: User):
    body = gzip.compress(b'{"type": "deposit", "amount": 1' + b" " * 10_000_000 + b"}")
    headers = alice.headers | {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = alice.kassa.http.post("/v1/operations", content=body, headers=headers)
    assert answer.status_code in (400, 413, 415)
    assert answer.json()["accepted"] is False


@pytest.mark.parametrize(
    "text",
    [
        *("\ufb00", "\u0130", "\u0131", "\u202eecila", "\u0430lice", "a\u200bb", "e\u0301", "\ufeff", "\u2028"),
        *("\U0001f642" * 100, "\u03a9" * 500),
    ],
)
def test_any_text_comes_back_as_it_was(alice: User, text: str):
    told = alice.operate(type="deposit", amount=1, comment=text, metadata={"t": text}).json()
    assert (told["comment"], told["metadata"]["t"]) == (text, text)


@pytest.mark.parametrize(
    "name",
    [
        *("\u0430dmin", "\uff21\uff24\uff2d\uff29\uff2e", "admin\u200b", "a\u0301dmin", " admin", "admin "),
        *("ad\nmin", "\ufb00"),
    ],
)
def test_no_username_looks_like_another(kassa: Kassa, name: str):
    answer = kassa.http.post("/v1/auth/register", json={"username": name, "password": "correct horse"})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_on_the_broker_is_not_unpickled(kassa: Kassa, alice: User, tmp_path: Path):
    broker = redis.Redis.from_url(kassa.stack.environment["REDIS_URL"])
    body = base64.b64encode(pickle.dumps(Evil(tmp_path / "evil"))).decode()
    properties = {"delivery_info": {"routing_key": "lane.0"}, "delivery_tag": "1", "body_encoding": "base64"}
    for content_type in ("application/x-python-serialize", "application/json", "pickle"):
        message = {
            "body": body,
            "content-encoding": "binary",
            "content-type": content_type,
            "headers": {"task": "drain", "id": f"{PLANTED}1"},
            "properties": properties,
        }
        for lane in range(4):
            broker.lpush(f"kassa:lane.{lane}", json.dumps(message))
    until(lambda: not any(broker.llen(f"kassa:lane.{lane}") for lane in range(4)))
    broker.close()
    assert not (tmp_path / "evil").exists()
    assert alice.operate(type="deposit", amount=1).json()["status"] == "applied"


def bearer(user: User) -> str:
    """The line of a request's head."""
    return f"Authorization: {user.headers['Authorization']}\r\n"


def raw(kassa: Kassa, request: bytes) -> tuple[str, bytes]:
    """Head and body of the answer to these very bytes."""
    address = urlsplit(kassa.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode(), body
