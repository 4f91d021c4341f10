"""The logs of all processes: one request can be followed to its end, and nothing secret is in them."""

import json
from pathlib import Path
from typing import Any

from tests.end_to_end.conftest import PASSWORD, Kassa, until


def events(log_directory: Path, process: str) -> list[dict[str, Any]]:
    """The JSON lines of a process so far."""
    lines = (log_directory / f"{process}.log").read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_a_request_is_followed_from_its_id_to_the_drain(kassa: Kassa, log_directory: Path):
    alice = kassa.user()
    answer = alice.post("/v1/operations", {"type": "deposit", "amount": 1}, **{"X-Request-Id": "follow-me-1"})
    assert answer.headers["X-Request-Id"] == "follow-me-1"
    operation_id = answer.json()["id"]
    [request] = [event for event in events(log_directory, "api") if event.get("request_id") == "follow-me-1"]
    assert (request["user"], request["operation"], request["status"]) == (alice.id, operation_id, 202)

    def drained() -> list[dict[str, Any]]:
        found = events(log_directory, "worker") + events(log_directory, "sweeper")
        return [event for event in found if "follow-me-1" in str(event.get("operations"))]

    until(lambda: bool(drained()))
    [drain] = drained()
    assert drain["lane"] == request["lane"]
    assert {
        "id": operation_id,
        "user": alice.id,
        "request_id": "follow-me-1",
        "status": "applied",
    } in drain["operations"]


def test_a_forged_request_id_is_replaced_and_makes_no_line(kassa: Kassa, log_directory: Path):
    for forged in ("a b", "x" * 129, '"}', "\x1b[31m"):
        answer = kassa.http.get("/health/live", headers={"X-Request-Id": forged.encode()})
        assert answer.status_code in (200, 400)
        assert answer.headers.get("X-Request-Id") != forged
    assert "[31m" not in (log_directory / "api.log").read_text()


def test_nothing_secret_is_in_any_log(kassa: Kassa, log_directory: Path):
    alice = kassa.user()
    kassa.http.post("/v1/auth/login", json={"username": alice.name, "password": "planted-wrong-password"})
    kassa.http.post("/v1/auth/register", json={"username": alice.name, "password": "planted-password-2"})
    kassa.http.post("/v1/auth/refresh", json={"refresh_token": "planted-refresh-token"})
    kassa.http.get("/v1/balance", headers={"Authorization": "Bearer planted-access-token"})
    kassa.http.get("/v1/balance?token=planted-query-token", headers=alice.headers)
    kassa.kill("worker")
    environment = kassa.stack.environment
    secrets = {
        PASSWORD,
        "planted-",
        "$argon2id$",
        environment["SECRET_KEY"],
        environment["DATABASE_URL"].split(":")[2].split("@")[0],
        environment["REDIS_URL"].split(":")[2].split("@")[0],
        *kassa.issued,
    }
    assert alice.tokens["refresh_token"] in secrets
    for log in sorted(log_directory.glob("*.log")):
        text = log.read_text(errors="replace")
        assert [secret for secret in secrets if secret in text] == [], log.name
