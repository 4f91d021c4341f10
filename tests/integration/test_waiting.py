"""Those who wait: what a drain tells with its commit is what the database says."""

import time
from collections.abc import Callable
from threading import Thread, current_thread
from typing import Any

import msgspec
import psycopg2.extensions
import pytest

from core import acceptance, notices, views
from core.lanes import LANE_BATCH_OPERATIONS_MAX, TURNS_MAX
from core.waiting import RECENT_MAX, Waiting
from tests.integration.conftest import Bank, until
from worker.drain import drain_batch

TOO_SHORT_TO_LOOK_SECONDS = 0.001
WAIT_SECONDS = 4


def listen(bank: Bank, act: Callable[[], object]) -> list[Any]:
    """The notifications that come while something is done."""
    with bank.autocommit.connect() as connection:
        connection.exec_driver_sql(f"LISTEN {notices.CHANNEL}")
        act()
        driver: psycopg2.extensions.connection = connection.connection.dbapi_connection  # type: ignore[assignment]
        connection.exec_driver_sql("SELECT")
        connection.exec_driver_sql(f"UNLISTEN {notices.CHANNEL}")
        return driver.notifies


def json_of(row: Any) -> bytes:
    """The operation as clients read it, byte by byte: their ETag is made of it."""
    return msgspec.json.encode(views.operation(row))


def test_what_is_told_is_what_the_database_says(bank: Bank):
    alice, bob = bank.rich(100), bank.user()
    accepted = [
        bank.accept(alice, "deposit", 5).row,
        bank.accept(alice, "withdrawal", 7).row,
        bank.accept(alice, "transfer", 20, to_user_id=bob.id).row,
        bank.accept(alice, "withdrawal", 1_000, comment="more than there is").row,
        bank.accept(bob, "withdrawal", 3).row,
        bank.accept(bob, "deposit", 1).row,
    ]
    with bank.engine.begin() as connection:
        acceptance.request_cancellation(connection, accepted[-1].id, accepted[-1].lane)
    [notification] = listen(bank, bank.drain)
    told = {finished.id: finished for finished in notices.read(notification.payload) or ()}
    with bank.autocommit.connect() as connection:
        seen = {finished.id: finished for finished in views.find_finished(connection, list(told))}
        for row in accepted:
            now = json_of(views.find_operation(connection, row.id))
            assert json_of(views.as_finished(row, told[row.id])) == now
            assert json_of(views.as_finished(row, seen[row.id])) == now
    assert sorted(finished.status for finished in told.values()) == ["applied"] * 3 + [
        "canceled",
        "rejected",
        "rejected",
    ]


def test_of_too_many_it_is_told_that_there_are_some(bank: Bank):
    users = [bank.user() for _ in range(3)]
    accepted = [bank.accept(user) for user in users for _ in range(TURNS_MAX)]
    assert len(accepted) > notices.OPERATIONS_MAX
    [notification] = listen(bank, lambda: drain_batch(bank.engine, 0, LANE_BATCH_OPERATIONS_MAX, wait=True))
    assert notices.read(notification.payload) is None


def test_who_comes_after_it_was_told_is_told_at_once(bank: Bank):
    row, waiting = bank.accept(bank.user()).row, Waiting(bank.engine, waiters_max=1)
    assert waiting.hear(listen(bank, bank.drain))
    finished = waiting.until_finished(row.id, TOO_SHORT_TO_LOOK_SECONDS)
    assert finished
    assert finished.status == "applied"


@pytest.mark.parametrize(
    "payload", ["", "null", "[]", "nonsense", "[" * 7_000, '["2026-01-01T00:00:00Z",[["too","short"]]]']
)
def test_a_notice_that_nobody_understands_makes_them_look(bank: Bank, payload: str):
    """As from a worker of another version."""
    waiting, command = Waiting(bank.engine, waiters_max=1), "SELECT pg_notify(:channel, :payload)"
    told = listen(bank, lambda: bank.execute(command, channel=notices.CHANNEL, payload=payload))
    assert len(told) == 1
    assert not waiting.hear(told)
    assert told == [], "it is heard once"


def test_no_more_are_remembered_than_may_be(bank: Bank):
    waiting = Waiting(bank.engine, waiters_max=1)
    users = [bank.user() for _ in range(2)]  # so that a drain's notice has room for all that it takes
    for _ in range(RECENT_MAX // len(users) + 1):
        for user in users:
            bank.accept(user)
    assert waiting.hear(listen(bank, bank.drain))
    assert len(waiting._recent) == RECENT_MAX


def test_who_is_one_too_many_does_not_wait_until_another_has_gone(bank: Bank):
    waiting = Waiting(bank.engine, waiters_max=1)
    waiting._thread = current_thread()  # which hears what is told, below
    for _ in range(2):
        row = bank.accept(bank.user()).row
        one = Thread(target=waiting.until_finished, args=(row.id, WAIT_SECONDS))
        one.start()
        until(lambda: bool(waiting._waiters))
        started = time.monotonic()
        assert waiting.until_finished(row.id, WAIT_SECONDS) is None
        assert time.monotonic() - started < WAIT_SECONDS / 2, "one too many has waited"
        waiting.hear(listen(bank, bank.drain))
        one.join()
        assert not waiting._waiters
