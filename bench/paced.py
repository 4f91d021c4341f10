"""Figures in milliseconds, from an open loop: requests leave at a constant rate, however long the answers take, and
each is timed from the moment at which it was due. So a stall counts for every request that it held up.
"""

import http.client
import json
import statistics
import threading
import time
from itertools import count as counter
from typing import Any

from bench.stack import Bench, wait_until_applied
from cli.servers import LOOPBACK, CannotStart
from core import db

SENDERS = 24
SHARE_OF_CAPACITY = 0.3
BACKLOG = 20_000
LIGHT_USERS = 50
LIGHT_RATE = 100  # a second, of all light users together
LIGHT_SECONDS = 3


def latency(bench: Bench) -> dict[str, float]:
    """Accepting, and from acceptance to application, at 30 % of what `single` reached."""
    rate = SHARE_OF_CAPACITY * statistics.median(bench.figures["single"])
    users = [line.split() for line in (bench.stack.data_dir / "users.txt").read_text().splitlines()]
    with db.autocommit(bench.engine).connect() as connection:
        [[last]] = connection.exec_driver_sql("SELECT coalesce(max(apply_no), 0) FROM operations")

    def transfer(number: int) -> tuple[str, dict[str, str], bytes]:
        sender, receiver = users[number * 7919 % len(users)], users[(number * 7919 + 1) % len(users)]
        body = {"type": "transfer", "amount": 1, "to_account_id": receiver[1]}
        return sender[0], {}, json.dumps(body).encode()

    used = time.process_time()
    accepted = paced(bench, rate, bench.seconds, transfer)
    wait_until_applied(bench)
    query = """
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY took), percentile_cont(0.99) WITHIN GROUP (ORDER BY took)
  FROM (SELECT 1000 * extract(epoch FROM finished_at - created_at) AS took FROM operations WHERE apply_no > %s) AS o"""
    with db.autocommit(bench.engine).connect() as connection:
        [[p50, p99]] = connection.exec_driver_sql(query, (last,))
    bench.notes.setdefault("latency", []).append(
        {"rate": rate, "generator_share_of_a_core": (time.process_time() - used) / bench.seconds}
    )
    return {
        "accept_p50": percentile(accepted, 50),
        "accept_p99": percentile(accepted, 99),
        "applied_p50": float(p50),
        "applied_p99": float(p99),
    }


def fair(bench: Bench) -> dict[str, float]:
    """Light users who wait for their outcome, without and beside a user of their lane with 20,000 queued operations."""
    with db.autocommit(bench.engine).connect() as connection:
        lane_of = {row.id: row.lane for row in connection.exec_driver_sql("SELECT id, lane FROM users")}
    users = [line.split() for line in (bench.stack.data_dir / "users.txt").read_text().splitlines()]
    heavy, *light = [user for user in users if lane_of[user[2]] == lane_of[users[0][2]]][: LIGHT_USERS + 1]

    def deposit(number: int) -> tuple[str, dict[str, str], bytes]:
        return light[number % len(light)][0], {"Prefer": "wait=5"}, b'{"type":"deposit","amount":1}'

    alone = percentile(paced(bench, LIGHT_RATE, LIGHT_SECONDS, deposit), 99)
    item = {"type": "transfer", "amount": 1, "user_id": heavy[2], "to_account_id": light[0][1]}
    batch = json.dumps({"operations": [item] * 1_000}).encode()
    api = http.client.HTTPConnection(LOOPBACK, int(bench.stack.environment["PORT"]), timeout=60)
    for _ in range(BACKLOG // 1_000):
        post(api, "/v1/operations/batch", bench.service, {}, batch)
    beside = percentile(paced(bench, LIGHT_RATE, LIGHT_SECONDS, deposit), 99)
    wait_until_applied(bench)
    return {"light_p99_alone": alone, "light_p99_beside": beside}


def paced(bench: Bench, rate: float, seconds: float, request: Any) -> list[float]:
    """Milliseconds that each answer took, from when its request was due. `request(n)`: token, headers and body."""
    numbers, started, took = counter(), time.monotonic() + 0.1, []
    errors: list[BaseException] = []

    def send() -> None:
        connection = http.client.HTTPConnection(LOOPBACK, int(bench.stack.environment["PORT"]), timeout=30)
        try:
            while (due := started + (number := next(numbers)) / rate) < started + seconds:
                time.sleep(max(0.0, due - time.monotonic()))
                post(connection, "/v1/operations", *request(number))
                took.append((time.monotonic() - due) * 1000)
        except BaseException as error:
            errors.append(error)

    senders = [threading.Thread(target=send) for _ in range(SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    if errors:
        raise CannotStart(f"a request failed: {errors[0]!r}")
    return took


def post(connection: http.client.HTTPConnection, path: str, token: str, headers: dict[str, str], body: bytes) -> None:
    """One request. Raises CannotStart unless it was accepted."""
    sent = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **headers}
    connection.request("POST", path, body, sent)
    answer = connection.getresponse()
    text = answer.read()
    if answer.status >= 300:
        raise CannotStart(f"{path} answered {answer.status}: {text.decode()}")


def percentile(values: list[float], percent: int) -> float:
    """The value that `percent` of a hundred do not exceed."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
