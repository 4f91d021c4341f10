"""Redis and workers stopped, frozen, flushed and killed: accepting goes on, and what was accepted is applied."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import redis

from tests.end_to_end.conftest import SETTLE_SECONDS, Kassa, User, until

SLOWER_SECONDS_MAX = 0.3
APPLIED_SECONDS_MAX = 2.0
FROZEN_SECONDS_MAX = 6.0
ACCEPTING_SECONDS_MAX = 3.0
LISTENING_AGAIN_SECONDS_MAX = 5.0  # and not only when the ten seconds are over


def accept_and_time(alice: User, count: int = 10) -> tuple[list[str], float]:
    """Hand in deposits without waiting. Returns their paths and the seconds of the slowest acceptance."""
    paths, slowest = [], 0.0
    for _ in range(count):
        started = time.monotonic()
        receipt = alice.operate(wait=0, type="deposit", amount=1)
        slowest = max(slowest, time.monotonic() - started)
        assert receipt.status_code == 202
        paths.append(receipt.headers["Location"])
    return paths, slowest


def seconds_until_applied(alice: User, paths: list[str]) -> float:
    """Seconds until all of them are applied."""
    started = time.monotonic()
    for path in paths:
        assert alice.get(path + "?wait=20").json()["status"] == "applied"
    return time.monotonic() - started


@pytest.fixture
def broker(kassa: Kassa):
    client = redis.Redis.from_url(kassa.stack.environment["REDIS_URL"])
    yield client
    client.close()
    with httpx.Client(base_url=kassa.url) as fresh:
        until(lambda: fresh.get("/health/ready").json()["broker"] == "up")


def test_with_redis_stopped(kassa: Kassa, broker: redis.Redis):
    alice = kassa.user()
    kassa.kill("redis", and_keep_down=True)
    try:
        paths, slowest = accept_and_time(alice)
        assert slowest <= SLOWER_SECONDS_MAX
        assert seconds_until_applied(alice, paths) <= APPLIED_SECONDS_MAX
        assert kassa.http.get("/health/ready").json()["broker"] == "down"
    finally:
        kassa.revive("redis")


def test_with_redis_frozen(kassa: Kassa, broker: redis.Redis):
    alice = kassa.user()
    kassa.signal("redis", signal.SIGSTOP)
    try:
        paths, slowest = accept_and_time(alice)
        assert slowest <= SLOWER_SECONDS_MAX
        assert seconds_until_applied(alice, paths) <= APPLIED_SECONDS_MAX
    finally:
        kassa.signal("redis", signal.SIGCONT)


def test_with_redis_flushed_again_and_again(kassa: Kassa, broker: redis.Redis):
    alice, paths = kassa.user(), []
    for _ in range(20):
        broker.flushall()
        paths += accept_and_time(alice, 2)[0]
    assert seconds_until_applied(alice, paths) <= APPLIED_SECONDS_MAX
    assert alice.balance() == 40


def test_with_forged_and_doubled_bells(kassa: Kassa, broker: redis.Redis):
    from core.broker import celery_app, lane_queue

    alice = kassa.user()
    celery = celery_app(kassa.stack.environment["REDIS_URL"], [])
    for arguments in ([0], [0], [1], [2], [3], [999], [-1], ["0"], [None], [], [0, 0], [{"lane": 0}]):
        celery.send_task("drain", arguments, queue=lane_queue(0))
    celery.close()
    broker.lpush("kassa:lane.1", b"nonsense", b"{}", b'{"body": "gASVIAAAAAAAAACMBXBvc2l4"}')
    paths, _ = accept_and_time(alice)
    assert seconds_until_applied(alice, paths) <= APPLIED_SECONDS_MAX
    assert alice.balance() == 10


def test_with_every_worker_killed_the_sweeper_applies(kassa: Kassa):
    alice = kassa.user()
    kassa.kill("worker", and_keep_down=True)
    try:
        paths, _ = accept_and_time(alice)
        assert seconds_until_applied(alice, paths) <= APPLIED_SECONDS_MAX
    finally:
        kassa.revive("worker")


def test_a_worker_frozen_with_the_locks_in_hand_loses_them(kassa: Kassa):
    alice = kassa.user()
    with kassa.engine.connect() as connection:  # as if a worker were stopped between locking and committing
        connection.exec_driver_sql("SELECT FROM lanes FOR UPDATE")
        paths, _ = accept_and_time(alice)
        assert seconds_until_applied(alice, paths) <= FROZEN_SECONDS_MAX
        connection.invalidate()


def test_frozen_workers_do_not_stop_the_lanes(kassa: Kassa):
    alice = kassa.user()
    paths, _ = accept_and_time(alice, 30)
    kassa.signal("worker", signal.SIGSTOP)
    try:
        assert seconds_until_applied(alice, paths) <= FROZEN_SECONDS_MAX
    finally:
        kassa.signal("worker", signal.SIGCONT)


def test_one_frozen_worker_after_another_does_not_stop_the_lane_for_longer(kassa: Kassa):
    """A second worker is frozen while it waits for the lock of the first: it must not be handed the lock later."""
    alice = kassa.user()
    kassa.signal("sweeper", signal.SIGSTOP)
    try:
        with kassa.engine.connect() as connection:  # the first
            connection.exec_driver_sql("SELECT FROM lanes FOR UPDATE")
            paths, _ = accept_and_time(alice)
            until(lambda: waiting_for_a_lock(kassa) > 0)
            kassa.signal("worker", signal.SIGSTOP)
            kassa.signal("sweeper", signal.SIGCONT)
            assert seconds_until_applied(alice, paths) <= FROZEN_SECONDS_MAX
            connection.invalidate()
    finally:
        kassa.signal("sweeper", signal.SIGCONT)
        kassa.signal("worker", signal.SIGCONT)


def waiting_for_a_lock(kassa: Kassa) -> int:
    """How many workers' statements wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'kassa-worker'"
    with kassa.engine.connect() as connection:
        return connection.exec_driver_sql(query).scalar_one()


def test_accepting_resumes_when_postgresql_is_back(kassa: Kassa):
    alice = kassa.user(deposit=100)
    before, _ = accept_and_time(alice, 20)
    kassa.kill("postgres")
    down = alice.operate(wait=0, type="deposit", amount=1)
    assert down.status_code in (202, 503)
    until(lambda: answers(kassa))
    back = until(lambda: alice.operate(wait=0, type="deposit", amount=1, key="back").status_code == 202)
    assert back <= ACCEPTING_SECONDS_MAX
    assert seconds_until_applied(alice, before) <= SETTLE_SECONDS


def end_listening(kassa: Kassa) -> int:
    """End the connections by which those who wait are told. Returns how many there were."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'kassa-api-waiting'"
    with kassa.engine.connect() as connection:
        return len(connection.exec_driver_sql(query).all())


@contextmanager
def nobody_draining(kassa: Kassa) -> Iterator[None]:
    """Workers and sweeper frozen for as long."""
    for process in ("worker", "sweeper"):
        kassa.signal(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in ("worker", "sweeper"):
            kassa.signal(process, signal.SIGCONT)


def test_who_waits_is_told_although_the_listening_connections_are_lost(kassa: Kassa):
    alice = kassa.user()
    with ThreadPoolExecutor(1) as pool:
        with nobody_draining(kassa):
            waiting = pool.submit(alice.operate, wait=10, type="deposit", amount=777)
            until(lambda: end_listening(kassa))
        answer = waiting.result()
    assert (answer.status_code, answer.json()["balance_after"]) == (200, 777)
    assert answer.elapsed.total_seconds() < LISTENING_AGAIN_SECONDS_MAX


def test_what_is_stored_is_never_called_refused(kassa: Kassa):
    """The database dies while the client waits for the outcome of what was accepted before."""
    alice = kassa.user()
    with nobody_draining(kassa), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alice.operate, wait=2, type="deposit", amount=777)
        until(lambda: kassa.pending() == 1)
        kassa.kill("postgres")
        answer = waiting.result()
    assert (answer.status_code, answer.json().get("status")) == (202, "pending")
    until(lambda: answers(kassa))
    until(lambda: alice.get("/v1/balance").json().get("balance") == 777)


def answers(kassa: Kassa) -> bool:
    """Whether PostgreSQL takes connections again."""
    try:
        return kassa.pending() >= 0
    except Exception:
        return False


def test_flower_shows_lanes_and_results(kassa: Kassa):
    alice = kassa.user()
    alice.operate(type="deposit", amount=1)
    alice.operate(type="withdrawal", amount=5)

    def seen() -> bool:
        tasks = httpx.get(f"{kassa.flower}/api/tasks").json().values()
        results = [task["result"] or "" for task in tasks if task["name"] == "drain" and task["state"] == "SUCCESS"]
        return any("'rejected': 1" in result and "'lane'" in result and "'remaining'" in result for result in results)

    until(seen)
