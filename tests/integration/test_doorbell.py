"""Bells on a real Redis: coalesced while unanswered, and no harm or delay to anybody where Redis is dead or hangs.

And what a process asks of its database before it starts.
"""

import base64
import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from prometheus_client import REGISTRY

from cli.servers import LOOPBACK, free_port
from cli.stack import Stack
from core import db
from core.doorbell import BELL_EXPIRES_SECONDS, UNANSWERED_MILLISECONDS_MAX, Doorbell, answer, mark_key, redis_client
from core.errors import NotReady
from tests.conftest import LANES, create_database
from tests.integration.conftest import until

LANE = 3
RING_SECONDS_MAX = 0.05  # what a request may lose to a doorbell


@pytest.fixture
def bells_url(redis_url: str) -> str:
    """A database of the suite's Redis where no worker of an end-to-end test listens."""
    return redis_url.rpartition("/")[0] + "/7"


@pytest.fixture
def client(bells_url: str) -> Iterator[redis.Redis]:
    """A client of that database, which is empty."""
    made = redis_client(bells_url, 5)
    made.flushdb()
    yield made
    made.flushdb()
    made.close()


def bells(outcome: str) -> float:
    """How many bells have had this outcome so far."""
    return REGISTRY.get_sample_value("kassa_doorbell_bells_total", {"outcome": outcome}) or 0.0


def queued(client: redis.Redis, lane: int = LANE) -> list[dict[str, Any]]:
    """The messages on the lane's queue, oldest first."""
    [key] = client.keys(f"*lane.{lane}") or [b"none"]
    return [json.loads(message) for message in reversed(client.lrange(key, 0, -1))]


def ring_and_wait(doorbell: Doorbell, outcome: str, lane: int = LANE) -> None:
    """Ring, and wait until the doorbell's thread has come to this outcome."""
    before = bells(outcome)
    started = time.monotonic()
    doorbell.ring(lane)
    assert time.monotonic() - started < RING_SECONDS_MAX
    until(lambda: bells(outcome) == before + 1)


def ring_together(doorbell: Doorbell, *lanes: int) -> float:
    """Ring lanes at once, and wait for what comes of each. Returns how many bells were sent."""
    before = bells("rung"), bells("coalesced")
    for lane in lanes:
        doorbell.ring(lane)
    until(lambda: bells("rung") + bells("coalesced") == sum(before) + len(lanes))
    return bells("rung") - before[0]


def test_a_bell_says_only_which_lane_may_have_work(client: redis.Redis, bells_url: str):
    ring_and_wait(Doorbell(bells_url), "rung")
    assert sorted(client.keys("*")) == [b"kassa:bell:3", b"kassa:lane.3"]
    [message] = queued(client)
    assert message["headers"]["task"] == "drain"
    assert message["headers"]["expires"] is not None
    assert message["headers"]["retries"] == 0
    arguments, named, _ = json.loads(base64.b64decode(message["body"]))
    assert (arguments, named) == ([LANE], {})


def test_two_rings_are_one_message_until_it_is_answered(client: redis.Redis, bells_url: str):
    doorbell = Doorbell(bells_url)
    ring_and_wait(doorbell, "rung")
    assert client.persist(mark_key(LANE)), "the mark expires by itself, but not in the middle of this test"
    ring_and_wait(doorbell, "coalesced")
    ring_and_wait(doorbell, "coalesced")
    assert len(queued(client)) == 1
    answer(client, LANE)
    ring_and_wait(doorbell, "rung")
    assert len(queued(client)) == 2


def test_bells_of_several_processes_are_one_message_too(client: redis.Redis, bells_url: str):
    ring_and_wait(Doorbell(bells_url), "rung")
    client.persist(mark_key(LANE))
    ring_and_wait(Doorbell(bells_url), "coalesced")
    assert len(queued(client)) == 1


def test_each_lane_has_its_own_bell(client: redis.Redis, bells_url: str):
    doorbell = Doorbell(bells_url)
    for lane in (0, 1, 12):
        ring_and_wait(doorbell, "rung", lane)
        client.persist(mark_key(lane))
    answer(client, 1)
    assert sorted(client.keys("kassa:bell:*")) == [b"kassa:bell:0", b"kassa:bell:12"]
    assert [len(queued(client, lane)) for lane in (0, 1, 12)] == [1, 1, 1]


def test_of_lanes_rung_together_each_has_its_own_bell(client: redis.Redis, bells_url: str):
    doorbell = Doorbell(bells_url)
    ring_and_wait(doorbell, "rung", 1)
    client.persist(mark_key(1))
    assert ring_together(doorbell, 0, 1, 12) == 2
    assert [len(queued(client, lane)) for lane in (0, 1, 12)] == [1, 1, 1]
    for lane in (0, 12):
        client.persist(mark_key(lane))
    assert ring_together(doorbell, 0, 1, 12) == 0
    answer(client, 12)
    assert ring_together(doorbell, 0, 1, 12) == 1
    assert [len(queued(client, lane)) for lane in (0, 1, 12)] == [1, 1, 2]


def test_a_lost_bell_is_missed_for_a_moment_only(client: redis.Redis, bells_url: str):
    ring_and_wait(Doorbell(bells_url), "rung")
    assert 0 < client.pttl(mark_key(LANE)) <= UNANSWERED_MILLISECONDS_MAX <= 1_000
    assert BELL_EXPIRES_SECONDS * 1_000 >= UNANSWERED_MILLISECONDS_MAX


def test_a_flushed_redis_takes_the_next_bell(client: redis.Redis, bells_url: str):
    doorbell = Doorbell(bells_url)
    ring_and_wait(doorbell, "rung")
    client.flushdb()
    ring_and_wait(doorbell, "rung")
    assert len(queued(client)) == 1


def test_nothing_to_ring_is_no_bell(client: redis.Redis, bells_url: str):
    assert Doorbell(bells_url).run_once() == 0
    assert client.keys("*") == []


@pytest.fixture(params=["refuses", "hangs"])
def dead_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A Redis that is not there, or takes connections and never says a word."""
    port = free_port(0)
    if request.param == "refuses":
        yield f"redis://{LOOPBACK}:{port}/0"
        return
    with socket.create_server((LOOPBACK, port)):
        yield f"redis://{LOOPBACK}:{port}/0"


def test_a_dead_redis_keeps_nobody_waiting(dead_url: str):
    doorbell = Doorbell(dead_url)
    errors = bells("error")
    slowest = 0.0
    for lane in range(LANES):
        started = time.monotonic()
        doorbell.ring(lane)
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < RING_SECONDS_MAX
    until(lambda: bells("error") >= errors + LANES)


def test_a_dead_redis_is_counted_and_raises_nothing(dead_url: str):
    doorbell = Doorbell(dead_url)
    doorbell._lanes.update({0, 1})  # as `ring` does, without its thread
    errors, rung = bells("error"), bells("rung")
    started = time.monotonic()
    assert doorbell.run_once() == 0
    assert time.monotonic() - started < 3, "every wait on the broker is bounded"
    assert (bells("error"), bells("rung")) == (errors + 2, rung)


def test_an_answer_to_a_dead_redis_raises_nothing(dead_url: str):
    started = time.monotonic()
    answer(redis_client(dead_url), LANE)
    assert time.monotonic() - started < 1


def test_a_doorbell_rings_again_after_its_connections_were_cut(client: redis.Redis, bells_url: str):
    doorbell = Doorbell(bells_url)
    ring_and_wait(doorbell, "rung")
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    answer(client, LANE)

    def rung_again() -> bool:
        doorbell.ring(LANE)
        return len(queued(client)) == 2

    until(rung_again)


def ready(engine: sa.Engine, lane_count: int = LANES) -> None:
    """Ask as each process does at its start; Alembic says what it found in the log."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    db.require_ready(engine, lane_count)


def test_a_migrated_database_is_ready(engine: sa.Engine):
    ready(engine)


@pytest.mark.parametrize("value", ["local", "remote_write", "remote_apply", "on"])
def test_whatever_waits_for_the_disk_is_durable_enough(engine: sa.Engine, value: str):
    set_synchronous_commit(engine, value)
    ready(engine)


def test_a_database_that_could_forget_is_refused(engine: sa.Engine):
    set_synchronous_commit(engine, "off")
    with pytest.raises(NotReady, match=r"synchronous_commit=off .* set synchronous_commit=on"):
        ready(engine)


def set_synchronous_commit(engine: sa.Engine, value: str) -> None:
    """For all new sessions of the database."""
    with db.autocommit(engine).connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {engine.url.database} SET synchronous_commit = {value}")
    engine.dispose()


def test_a_database_that_was_not_migrated_is_refused(servers: Stack):
    engine = db.engine(create_database(servers, "test_doorbell_blank"), "tests", 1)
    with pytest.raises(NotReady, match=r"schema None, .* \./kassa migrate"):
        ready(engine)
    engine.dispose()


def test_another_versions_database_is_refused(engine: sa.Engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(NotReady, match="schema 9999"):
        ready(engine)


def test_a_database_with_too_few_lanes_is_refused(engine: sa.Engine):
    ready(engine, LANES - 1)
    with pytest.raises(NotReady, match=f"LANES={LANES + 1}"):
        ready(engine, LANES + 1)
