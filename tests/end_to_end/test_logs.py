"""The logs of all processes: one request can be followed to its end, and nothing secret is in them."""

import json
from pathlib import Path
from typing import Any

from tests.end_to_end.conftest import PLANTED, Kassa, until


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


def test_what_is_planted_for_the_end_of_the_session(kassa: Kassa):
    """conftest.py looks through all logs when every test is over; here is something for it to find."""
    alice = kassa.user()
    kassa.http.post("/v1/auth/login", json={"username": alice.name, "password": f"{PLANTED}wrong-password"})
    kassa.http.post("/v1/auth/register", json={"username": alice.name, "password": f"{PLANTED}password"})
    kassa.http.post("/v1/auth/refresh", json={"refresh_token": f"{PLANTED}refresh-token"})
    kassa.http.get("/v1/balance", headers={"Authorization": f"Bearer {PLANTED}access-token"})
    kassa.http.get(f"/v1/balance?token={PLANTED}query-token", headers=alice.headers)
    assert alice.tokens["refresh_token"] in kassa.secrets()
    assert PLANTED in kassa.secrets()
