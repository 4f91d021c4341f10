"""Overload is refused before anything is stored; what is stored can still be asked about, and is applied in order."""

import contextlib
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from cli.run import answers
from cli.servers import LOOPBACK, free_port
from cli.stack import Process, procfile, stop_group
from core.limits import LOOK_SECONDS
from tests.end_to_end.conftest import Kassa, User, until

PENDING_MAX, USER_PENDING_MAX, PENDING_SECONDS_MAX = 120, 30, 10
SLOW_CLIENTS = 200
PATIENT_SECONDS = 1.0
LAST_LOOK_SECONDS = 0.3  # by which a drain that finds nothing more has ended
ONE_DEPOSIT = b'{"operations": [{"type": "deposit", "amount": 1}]}'


@pytest.fixture(scope="module")
def narrow(running: Kassa) -> Iterator[str]:
    """The address of another API on the same database, two processes of it, with small limits."""
    port = str(free_port(0))
    environment = dict(running.stack.environment) | {
        "PORT": port,
        "API_PROCESSES": "2",
        "PENDING_MAX": str(PENDING_MAX),
        "USER_PENDING_MAX": str(USER_PENDING_MAX),
        "PENDING_SECONDS_MAX": str(PENDING_SECONDS_MAX),
    }
    log = running.stack.data_dir / "log" / "narrow.log"
    process = Process("narrow", ["/bin/sh", "-c", f"exec {procfile()['api']}"], environment, log)
    process.start()
    url = f"http://{LOOPBACK}:{port}"
    try:
        until(lambda: answers(f"{url}/health/live"))
        yield url
    finally:
        stop_group(process.running.pid, "narrow")
        process.running.wait()


@pytest.fixture(autouse=True)
def calm(running: Kassa) -> None:
    """Both processes begin each test with another look, by which there is room."""
    until(lambda: running.pending() == 0)
    time.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def nobody_applies(kassa: Kassa) -> Iterator[None]:
    """Workers and sweeper stand still, none of them in a drain: it may only take so long."""
    until(lambda: kassa.pending() == 0)
    time.sleep(LAST_LOOK_SECONDS)
    for name in ("worker", "sweeper"):
        kassa.signal(name, signal.SIGSTOP)
    try:
        yield
    finally:
        for name in ("worker", "sweeper"):
            kassa.signal(name, signal.SIGCONT)


@contextlib.contextmanager
def somebody_counts(kassa: Kassa) -> Iterator[None]:
    """Somebody takes very long to count what waits."""
    with kassa.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.exec_driver_sql("SELECT FROM load FOR NO KEY UPDATE")
        yield


def deposit(url: str, user: User, key: str = "", amount: int = 1) -> httpx.Response:
    """Hand in a deposit, without waiting for its end."""
    headers = user.headers | ({"Idempotency-Key": key} if key else {})
    return httpx.post(f"{url}/v1/operations", json={"type": "deposit", "amount": amount}, headers=headers, timeout=20)


def batch_of(url: str, user: User, key: str = "", body: bytes = ONE_DEPOSIT) -> httpx.Response:
    """Hand in a batch."""
    headers = user.headers | {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
    return httpx.post(f"{url}/v1/operations/batch", content=body, headers=headers, timeout=20)


def test_a_user_has_so_many_unfinished_operations_and_no_more(kassa: Kassa, narrow: str):
    alice, bob = kassa.user(), kassa.user()
    with nobody_applies(kassa):
        with ThreadPoolExecutor(16) as pool:
            answered = list(pool.map(lambda number: deposit(narrow, alice, f"key-{number}"), range(50)))
        assert Counter(answer.status_code for answer in answered) == {202: USER_PENDING_MAX, 429: 20}
        refused = next(answer for answer in answered if answer.status_code == 429)
        assert refused.json()["code"] == "too_many_pending"
        assert refused.json()["accepted"] is False
        assert refused.headers["RateLimit-Policy"] == f'"pending";q={USER_PENDING_MAX}'
        assert refused.headers["RateLimit"].startswith('"pending";r=0;t=')
        assert int(refused.headers["Retry-After"]) >= 1
        accepted = [answer for answer in answered if answer.status_code == 202]
        left = {answer.headers["RateLimit"] for answer in accepted}
        assert left == {f'"pending";r={number}' for number in range(USER_PENDING_MAX)}
        assert deposit(narrow, bob).status_code == 202, "another user has room"
        answer = batch_of(narrow, bob)
        assert answer.headers["RateLimit"] == f'"pending";r={USER_PENDING_MAX - 2}'
        items = {"operations": [{"type": "deposit", "amount": 1}] * (USER_PENDING_MAX + 1)}
        answer = httpx.post(f"{narrow}/v1/operations/batch", json=items, headers=bob.headers)
        assert answer.headers["RateLimit"] == '"pending";r=0'
        batch = answer.json()
        assert batch["accepted"] == USER_PENDING_MAX - 2
        assert [item["errors"][0]["code"] for item in batch["items"][-3:]] == ["too_many_pending"] * 3
        answer = batch_of(narrow, bob)
        assert (answer.json()["accepted"], answer.headers["RateLimit"]) == (0, '"pending";r=0')
    until(lambda: kassa.pending() == 0)
    assert (alice.balance(), bob.balance()) == (USER_PENDING_MAX, USER_PENDING_MAX)
    assert deposit(narrow, alice).status_code == 202


def test_exactly_so_many_wait_and_then_they_are_applied_in_order(kassa: Kassa, narrow: str):
    users = [kassa.user() for _ in range(8)]
    stored = batch_of(narrow, users[-1], "key").json()["batch_id"]
    with nobody_applies(kassa):
        wanted = [(user, f"{user.id}-{number}") for number in range(25) for user in users]
        with ThreadPoolExecutor(32) as pool:
            answered = list(pool.map(lambda each: (each, deposit(narrow, *each)), wanted))
        codes = Counter(answer.json().get("code") for _, answer in answered)
        assert codes == {None: PENDING_MAX, "overloaded": len(wanted) - PENDING_MAX}
        assert kassa.pending() == PENDING_MAX
        (user, key), refused = next(each for each in answered if each[1].status_code == 503)
        assert (refused.json()["accepted"], int(refused.headers["Retry-After"]) >= 1) == (False, True)
        assert batch_of(narrow, user).json()["code"] == "overloaded"
        until(
            lambda: batch_of(narrow, user).is_error and batch_of(narrow, user, body=b"{").json()["code"] == "overloaded"
        )
        again = batch_of(narrow, users[-1], "key")
        assert (again.status_code, again.json()["batch_id"]) == (202, stored), "a retry of a batch is served"
        (happy, used), receipt = next(each for each in answered if each[1].status_code == 202)
        again = deposit(narrow, happy, used)
        assert (again.status_code, again.json()["id"]) == (202, receipt.json()["id"]), "a retry is served"
        assert again.headers["Idempotency-Replayed"] == "true"
        for path in ("/v1/balance", f"/v1/operations/{receipt.json()['id']}", "/v1/operations"):
            assert httpx.get(f"{narrow}{path}", headers=happy.headers).status_code == 200, "reads are served"
        with somebody_counts(kassa):
            for _ in range(8):
                started = time.monotonic()
                assert deposit(narrow, user).json()["code"] == "overloaded"
                assert time.monotonic() - started < PATIENT_SECONDS, "who is refused waits for nobody"
    until(lambda: kassa.pending() == 0)
    assert sum(user.balance() for user in users) == 1 + PENDING_MAX
    until(lambda: deposit(narrow, user, key).status_code == 202)


def test_batches_wait_without_keeping_connections_and_too_many_are_refused_unread(kassa: Kassa, narrow: str):
    alice, bob = kassa.user(), kassa.user()
    mine = deposit(narrow, bob).json()["id"]
    with ThreadPoolExecutor(60) as pool:
        with somebody_counts(kassa):
            batches = [pool.submit(batch_of, narrow, alice) for _ in range(60)]
            until(lambda: batch_of(narrow, alice, body=b"{").json()["code"] == "overloaded")
            started = time.monotonic()
            assert httpx.delete(f"{narrow}/v1/operations/{mine}", headers=bob.headers).status_code in (200, 409)
            assert time.monotonic() - started < PATIENT_SECONDS
        assert {batch.result().status_code for batch in batches} == {202, 503}


def test_nothing_is_let_in_behind_what_has_waited_too_long(kassa: Kassa, narrow: str):
    alice = kassa.user()
    with nobody_applies(kassa):
        assert deposit(narrow, alice).status_code == 202
        until(lambda: deposit(narrow, alice).json().get("code") == "overloaded", PENDING_SECONDS_MAX + 2)
        assert alice.get("/v1/balance").json()["pending_operations"] >= 1
    until(lambda: deposit(narrow, alice).status_code == 202)


def test_a_retry_does_not_wait_for_those_who_count(kassa: Kassa, narrow: str):
    alice = kassa.user()
    stored = deposit(narrow, alice, "stored").json()["id"]
    with somebody_counts(kassa):
        for _ in range(8):
            started = time.monotonic()
            assert deposit(narrow, alice, "stored").json()["id"] == stored
            assert time.monotonic() - started < PATIENT_SECONDS


def test_a_storm_of_retries_that_do_not_wait_harms_nobody(kassa: Kassa, narrow: str):
    alice, stormy = kassa.user(), [kassa.user() for _ in range(5)]

    def storm(number: int) -> Counter[int]:
        seen: Counter[int] = Counter()
        with httpx.Client(headers=stormy[number % 5].headers, timeout=20) as client:
            while time.monotonic() < over:
                headers = {"Idempotency-Key": f"storm-{number}-{seen.total() // 2}"}
                body = {"type": "deposit", "amount": 1}
                seen[client.post(f"{narrow}/v1/operations", json=body, headers=headers).status_code] += 1
        return seen

    with nobody_applies(kassa), ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: deposit(narrow, stormy[number % 5]), range(PENDING_MAX)))
        over = time.monotonic() + 4
        storms = [pool.submit(storm, number) for number in range(16)]
        slowest = 0.0
        while time.monotonic() < over:
            started = time.monotonic()
            assert httpx.get(f"{narrow}/v1/balance", headers=alice.headers).status_code == 200
            slowest = max(slowest, time.monotonic() - started)
        seen = sum((each.result() for each in storms), Counter())
    assert set(seen) <= {202, 429, 503}
    assert seen[429] + seen[503] > 0
    assert slowest < PATIENT_SECONDS
    until(lambda: kassa.pending() == 0)


def test_clients_that_send_a_byte_a_second_keep_nobody_waiting(kassa: Kassa, narrow: str):
    alice = kassa.user()
    head = f"POST /v1/operations HTTP/1.1\r\nHost: kassa\r\nAuthorization: {alice.headers['Authorization']}\r\n"
    text = (head + "Content-Type: application/json\r\nContent-Length: 35\r\n\r\n").encode()
    port = int(narrow.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((LOOPBACK, port))) for _ in range(SLOW_CLIENTS)]
        for number, client in enumerate(slow):
            client.sendall(text[: number + 10])
        for place in range(3):
            for number, client in enumerate(slow):
                client.sendall(text[number + 10 + place : number + 11 + place])
            started = time.monotonic()
            assert deposit(narrow, alice).status_code == 202
            assert time.monotonic() - started < PATIENT_SECONDS
            time.sleep(1)
