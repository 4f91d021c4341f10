"""Draining a lane: each user's order, exactly once, by however many at once; defects, faults and kills stay contained.

Every test ends with a reconciled ledger: see the fixture `bank`.
"""

import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import psutil
import psycopg2
import pytest
import sqlalchemy as sa

from core import acceptance, lanes, ledger, rules
from core.lanes import TURNS_MAX
from core.operations import Account, Applied, Operation, Outcome, Posting, Shelf
from tests.conftest import LANES
from tests.integration.conftest import SETTLE_SECONDS, Bank, User, aside, until
from worker import apart
from worker.drain import Decide, drain, drain_batch
from worker.sweeper import PATIENT_AFTER_LOOKS, Sweeper

HELD_SECONDS = 0.3
UNLUCKY = 666  # the amount that cannot be written, or not decided
HALF: Any = Fraction(1, 2)  # an amount that is none


def cancel(bank: Bank, operation_id: str) -> None:
    """What `DELETE /v1/operations/{id}` does."""
    with bank.engine.begin() as connection:
        acceptance.request_cancellation(connection, operation_id, 0)


def refuse_to_write(bank: Bank, amount: int = UNLUCKY) -> None:
    """From now on an entry with this amount breaks a rule of the schema."""
    bank.execute(f"ALTER TABLE entries ADD CONSTRAINT planted CHECK (amount <> {amount}) NOT VALID")


def test_an_empty_lane_and_one_that_is_not_there(bank: Bank):
    for lane in (0, 99, -1):
        done = bank.drain(lane)
        assert (done.counts, done.remaining) == ({}, False)


def locked_with_others(connection: sa.Connection, lane: int, few: int) -> tuple[list[int], bool]:
    """The lanes that are locked then, and whether that leaves a trace on disk."""
    locked = lanes.lock_with_others(connection, lane, few)
    return locked, connection.exec_driver_sql("SELECT pg_current_xact_id_if_assigned()").scalar_one() is not None


def test_a_look_for_work_takes_other_lanes_along_and_leaves_no_trace_where_there_is_none(bank: Bank):
    with bank.engine.begin() as connection:
        assert locked_with_others(connection, 0, 9) == ([], False)
    for lane in (1, 2, 2, 3):
        bank.accept(bank.user_on(lane))
    with bank.engine.begin() as held, bank.engine.begin() as connection:
        lanes.lock(held, 3, wait=True)
        assert locked_with_others(connection, 0, 9) == ([0, 1, 2], True)
    for few, locked in ((3, [2, 1, 3]), (2, [2])):
        with bank.engine.begin() as connection:
            assert lanes.lock_with_others(connection, 2, few) == locked
    with bank.engine.begin() as connection:
        assert lanes.lock_with_others(connection, 99, 9) == []
    for lane in (1, 2, 3):
        bank.drain(lane)


def test_each_users_operations_are_applied_in_the_order_accepted(bank: Bank):
    users = [bank.user() for _ in range(3)]
    for number in range(30):
        for user in users:
            bank.accept(user, "deposit" if number % 3 else "withdrawal", number + 1)
    while bank.counts()["pending"]:
        drain_batch(bank.engine, 0, 7, wait=True)
    for user in users:
        applied = bank.rows("SELECT seq, apply_no FROM operations WHERE user_id = :id ORDER BY apply_no", id=user.id)
        assert [seq for seq, _ in applied] == list(range(1, 31))
        amounts = bank.rows("SELECT amount FROM entries WHERE account_id = :id ORDER BY id", id=user.account_id)
        expected = [number + 1 if number % 3 else -number - 1 for number in range(1, 30)]
        assert [amount for (amount,) in amounts] == expected, "the first withdrawal alone found nothing"
        assert bank.value("SELECT done_seq FROM progress WHERE user_id = :id", id=user.id) == 30


def test_what_the_predecessors_left_decides(bank: Bank):
    alice, bob = bank.user(), bank.user()
    for kind, amount in (("withdrawal", 1), ("deposit", 5), ("withdrawal", 6), ("withdrawal", 5), ("withdrawal", 1)):
        bank.accept(alice, kind, amount)
    bank.accept(alice, "deposit", 9)
    bank.accept(alice, "transfer", 9, to_user_id=bob.id)
    assert bank.drain().counts == {"applied": 4, "rejected": 3}
    assert bank.statuses(alice) == ["rejected", "applied", "rejected", "applied", "rejected", "applied", "applied"]
    codes = bank.rows(
        "SELECT rejection->>'code', rejection->>'available' FROM operations WHERE seq IN (1, 3) ORDER BY seq"
    )
    assert codes == [("insufficient_funds", "0"), ("insufficient_funds", "5")]
    assert (bank.balance(alice), bank.balance(bob)) == (0, 9)


def test_two_at_once_on_one_lane_apply_everything_once(bank: Bank, other_engine: sa.Engine):
    users = [bank.user() for _ in range(5)]
    for number in range(300):
        bank.accept(users[number % 5])
    start = threading.Barrier(2)

    def work(engine: sa.Engine) -> int:
        start.wait()
        applied = 0
        while counts := drain_batch(engine, 0, 11, wait=True):
            applied += counts["applied"]
        return applied

    both = [aside(lambda engine=engine: work(engine)) for engine in (bank.engine, other_engine)]
    shares = [one.result(20) for one in both]
    assert sum(shares) == 300
    assert [bank.balance(user) for user in users] == [60] * 5
    assert bank.value("SELECT count(*) FROM entries") == 600


def test_crosswise_transfers_over_four_lanes_do_not_lock_each_other_out(bank: Bank):
    users = [bank.user_on(number % LANES) for number in range(40)]
    for user in users:
        bank.accept(user, amount=50)
    for lane in range(LANES):
        bank.drain(lane)
    for step, (number, user) in itertools.product(range(1, 13), enumerate(users)):
        receiver = users[(number + (step if number % 2 else -step)) % len(users)]
        bank.accept(user, "transfer", 10 * (1 + step % 3), to_user_id=receiver.id)
    start = threading.Barrier(LANES)

    def work(lane: int) -> int:
        start.wait()
        finished = 0
        while counts := drain_batch(bank.engine, lane, 4, wait=True):  # raises if the database finds a deadlock
            finished += counts.total()
        return finished

    drains = [aside(lambda lane=lane: work(lane)) for lane in range(LANES)]
    assert sum(one.result(30) for one in drains) == 12 * 40
    balances = [bank.balance(user) for user in users]
    assert sum(balances) == 40 * 50
    assert min(balances) >= 0
    assert bank.counts()["pending"] == 0
    assert bank.counts()["applied"] > 100


def test_a_decision_that_raises_fails_its_own_operation(bank: Bank):
    alice, bob = bank.user(), bank.user()
    for amount in (1, UNLUCKY, 2):
        for user in (alice, bob):
            bank.accept(user, amount=amount)

    def decide(operation: Operation, accounts: Mapping[str, Account], shelf: Shelf) -> Outcome:
        if operation.amount == UNLUCKY and operation.user_id == alice.id:
            raise ZeroDivisionError("a defect")
        return rules.decide(operation, accounts, shelf)

    assert drain_batch(bank.engine, 0, 100, wait=True, decide=decide) == {"applied": 5, "failed": 1}
    assert bank.statuses(alice) == ["applied", "failed", "applied"]
    assert bank.statuses(bob) == ["applied"] * 3
    assert (bank.balance(alice), bank.balance(bob)) == (3, 3 + UNLUCKY)


@pytest.mark.parametrize("defect", ["does not sum to zero", "touches what is not locked"])
def test_a_decision_that_would_break_a_promise_fails_its_own_operation(bank: Bank, defect: str):
    alice, stranger = bank.user(), bank.user()

    def decide(operation: Operation, accounts: Mapping[str, Account], shelf: Shelf) -> Outcome:
        outcome = rules.decide(operation, accounts, shelf)
        assert isinstance(outcome, Applied)
        if operation.amount != UNLUCKY:
            return outcome
        if defect == "does not sum to zero":
            return Applied((*outcome.postings, Posting(alice.account_id, 1)))
        return Applied((Posting(alice.account_id, 5), Posting(stranger.account_id, -5)))

    for amount in (1, UNLUCKY, 2):
        bank.accept(alice, amount=amount)
    assert drain_batch(bank.engine, 0, 100, wait=True, decide=decide) == {"applied": 2, "failed": 1}
    assert bank.statuses(alice) == ["applied", "failed", "applied"]
    assert (bank.balance(alice), bank.balance(stranger)) == (3, 0)


@pytest.mark.parametrize("unlucky", [[0], [7], [19], [3, 4, 12]])
def test_a_batch_that_cannot_be_written_fails_exactly_the_operation_at_fault(bank: Bank, unlucky: list[int]):
    users = [bank.user() for _ in range(4)]
    refuse_to_write(bank)
    ids = []
    for number in range(20):
        amount = UNLUCKY if number in unlucky else 1
        ids.append(bank.accept(users[number % 4], amount=amount).row.id)
    done = bank.drain()
    assert done.counts == {"applied": 20 - len(unlucky), "failed": len(unlucky)}
    failed = {row[0] for row in bank.rows("SELECT id FROM operations WHERE status = 'failed'")}
    assert failed == {ids[number] for number in unlucky}
    assert sum(bank.balance(user) for user in users) == 20 - len(unlucky)


def test_what_cannot_even_be_sent_fails_alone(bank: Bank):
    alice = bank.rich(10)

    def decide(operation: Operation, accounts: Mapping[str, Account], shelf: Shelf) -> Outcome:
        outcome = rules.decide(operation, accounts, shelf)
        if operation.amount != UNLUCKY:
            return outcome
        return Applied(tuple(Posting(each, half) for each, half in zip(accounts, (HALF, -HALF), strict=True)))

    for amount in (1, UNLUCKY, 2):
        bank.accept(alice, amount=amount)
    assert drain(bank.engine, 0, decide=decide).counts == {"applied": 2, "failed": 1}
    assert bank.balance(alice) == 13


@pytest.mark.parametrize("moment", ["commit", "rollback"])
def test_who_is_cut_off_in_the_end_blames_no_operation(bank: Bank, moment: str):
    alice = bank.user()
    bank.accept(alice)

    def cut_off(_connection: sa.Connection) -> None:
        raise psycopg2.DatabaseError("server closed the connection unexpectedly")

    def decide(operation: Operation, accounts: Mapping[str, Account], shelf: Shelf) -> Outcome:
        if moment == "rollback":  # as a worker that is told to stop, or freezes until its transaction is over
            raise SystemExit
        return rules.decide(operation, accounts, shelf)

    sa.event.listen(bank.engine, moment, cut_off)
    with pytest.raises(psycopg2.DatabaseError):
        drain(bank.engine, 0, decide=decide)
    sa.event.remove(bank.engine, moment, cut_off)
    bank.engine.dispose()
    assert bank.drain().counts == {"applied": 1}


def test_a_failed_operation_moves_nothing_and_its_user_goes_on(bank: Bank):
    alice = bank.rich(2000)
    refuse_to_write(bank, -UNLUCKY)
    for amount in (1, UNLUCKY, 2):
        bank.accept(alice, "withdrawal", amount)
    assert bank.drain().counts == {"applied": 2, "failed": 1}
    assert bank.statuses(alice)[1:] == ["applied", "failed", "applied"]
    assert bank.balance(alice) == 1997
    [(account_version, rejection)] = bank.rows(
        "SELECT account_version, rejection FROM operations WHERE status = 'failed'"
    )
    assert (account_version, rejection) == (None, None)


def test_who_comes_in_ahead_of_the_operation_at_fault_does_not_fail_in_its_place(bank: Bank):
    """Between the last try to write the operation at fault and its being marked, another may come to the head."""
    heavy, newcomer = bank.user(), bank.user()
    bank.accept(heavy)
    bank.accept(heavy)
    assert bank.drain().counts == {"applied": 2}
    refuse_to_write(bank)
    at_fault = bank.accept(heavy, amount=UNLUCKY).row
    assert bank.turn(at_fault.id) > bank.value("SELECT turn FROM lanes WHERE id = 0"), "there is room ahead of it"
    tries = itertools.count(1)

    def come_in(_connection: sa.Connection) -> None:
        if next(tries) == 1:  # it stands alone, and is known to be at fault
            bank.accept(newcomer, amount=5)

    sa.event.listen(bank.engine, "rollback", come_in)
    done = bank.drain()
    sa.event.remove(bank.engine, "rollback", come_in)
    assert bank.statuses(newcomer) == ["applied"]
    assert bank.statuses(heavy) == ["applied", "applied", "failed"]
    assert done.counts == {"applied": 1, "failed": 1}


def test_a_queue_that_holds_no_operation_is_told(bank: Bank):
    alice = bank.user()
    bank.accept(alice)
    bank.execute("INSERT INTO queue (lane, turn, operation_id) VALUES (0, 0, :id)", id=alice.id)
    with pytest.raises(LookupError, match="verify"):
        bank.drain()
    assert bank.statuses(alice) == ["pending"]
    accepted = bank.value("SELECT created_at FROM operations")
    assert bank.rows(lanes.WAITING_SINCE) == [(0, accepted)], "it is not forgotten behind what is none"
    bank.execute("DELETE FROM queue WHERE operation_id = :id", id=alice.id)
    assert bank.drain().counts == {"applied": 1}


def test_what_was_taken_back_is_canceled_in_its_turn(bank: Bank):
    alice = bank.user()
    ids = [bank.accept(alice, amount=amount).row.id for amount in (1, 2, 4)]
    cancel(bank, ids[1])
    assert bank.statuses(alice) == ["pending"] * 3
    assert bank.drain().counts == {"applied": 2, "canceled": 1}
    assert bank.statuses(alice) == ["applied", "canceled", "applied"]
    assert bank.balance(alice) == 5
    in_order = bank.rows("SELECT id FROM operations ORDER BY apply_no")
    assert [row[0] for row in in_order] == ids
    cancel(bank, ids[0])
    assert bank.value("SELECT cancel_requested FROM operations WHERE id = :id", id=ids[0]) is False
    assert bank.drain().counts == {}


def test_a_cancellation_waits_for_a_drain_that_may_be_applying_it(bank: Bank, other_engine: sa.Engine):
    alice = bank.user()
    operation_id = bank.accept(alice).row.id
    with bank.held("SELECT FROM progress WHERE user_id = :id FOR UPDATE", id=alice.id):
        draining = aside(lambda: drain(other_engine, 0))
        until(lambda: bank.waiting_for_lock("kassa-other"))
        canceling = aside(lambda: cancel(bank, operation_id))
        until(lambda: bank.waiting_for_lock("kassa-tests"))
    assert draining.result(10).counts == {"applied": 1}
    canceling.result(10)
    assert bank.rows("SELECT status, cancel_requested FROM operations") == [("applied", False)]


def test_who_applies_does_not_wait_for_who_accepts(bank: Bank, other_engine: sa.Engine):
    alice = bank.user()
    bank.accept(alice)
    with bank.held("SELECT FROM users WHERE id = :id FOR NO KEY UPDATE", id=alice.id):
        assert aside(lambda: drain(other_engine, 0)).result(10).counts == {"applied": 1}


def test_who_accepts_does_not_wait_for_who_applies(bank: Bank, other_engine: sa.Engine):
    alice = bank.user()
    bank.accept(alice)
    with bank.held("SELECT FROM progress WHERE user_id = :id FOR UPDATE", id=alice.id):
        draining = aside(lambda: drain(other_engine, 0))
        until(lambda: bank.waiting_for_lock("kassa-other"))
        assert aside(lambda: bank.accept(alice)).result(10).row.seq == 2
    assert draining.result(10).counts == {"applied": 1}


HELD = {
    "before anything is written": "SELECT FROM accounts WHERE id = :account FOR UPDATE",
    "in the middle of writing": "SELECT FROM progress WHERE user_id = :user FOR UPDATE",
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD.keys())
def test_a_killed_session_leaves_nothing_half_written(bank: Bank, other_engine: sa.Engine, held: str):
    alice, bob = bank.rich(100), bank.user()
    bank.accept(alice, "transfer", 30, to_user_id=bob.id)
    bank.accept(bob, "deposit", 1)
    entries = bank.value("SELECT count(*) FROM entries")
    with bank.held(held, account=alice.account_id, user=alice.id):
        draining = aside(lambda: drain(other_engine, 0))
        [victim] = until(lambda: bank.waiting_for_lock("kassa-other"))
        bank.execute("SELECT pg_terminate_backend(:pid)", pid=victim)
        with pytest.raises(sa.exc.OperationalError):
            draining.result(10)
    assert bank.value("SELECT count(*) FROM entries") == entries
    assert (bank.balance(alice), bank.balance(bob)) == (100, 0)
    assert bank.statuses(alice) == ["applied", "pending"]
    assert drain(other_engine, 0).counts == {"applied": 2}, "the next drain finds the lane free"
    assert (bank.balance(alice), bank.balance(bob)) == (70, 31)


@contextmanager
def frozen_at_every_writing(engine: sa.Engine, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand still before each batch is written, until PostgreSQL has ended the session that holds the lane's lock."""

    def shorten(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET idle_in_transaction_session_timeout = '20ms'")
        connection.commit()

    write = ledger.write

    def freeze_and_write(connection: sa.Connection, *arguments: Any) -> None:
        pid = connection.connection.dbapi_connection.get_backend_pid()
        until(lambda: not bank.rows("SELECT 1 FROM pg_stat_activity WHERE pid = :pid", pid=pid))
        write(connection, *arguments)

    sa.event.listen(engine, "connect", shorten)
    monkeypatch.setattr(ledger, "write", freeze_and_write)
    try:
        yield
    finally:
        monkeypatch.undo()
        sa.event.remove(engine, "connect", shorten)


def test_a_worker_that_was_frozen_meets_a_fault_and_not_a_defect(
    bank: Bank, other_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
):
    """The session that PostgreSQL ended meanwhile says nothing about the operations: none may fail for it."""
    alice = bank.user()
    bank.accept(alice)
    with frozen_at_every_writing(other_engine, bank, monkeypatch), pytest.raises(sa.exc.OperationalError):
        drain(other_engine, 0, seconds=60)
    assert bank.statuses(alice) == ["pending"]
    assert bank.drain().counts == {"applied": 1}


def test_a_drain_waits_for_the_holder_and_then_does_what_is_left(bank: Bank, other_engine: sa.Engine):
    alice = bank.user()
    with bank.held("SELECT id FROM lanes WHERE id = 0 FOR NO KEY UPDATE"):
        draining = aside(lambda: drain(other_engine, 0, wait=True))
        until(lambda: bank.waiting_for_lock("kassa-other"))
        bank.accept(alice)  # accepted after the holder's last look
    assert draining.result(10).counts == {"applied": 1}


def test_a_lane_that_somebody_else_holds_is_left_to_them(bank: Bank):
    bank.accept(bank.user())
    with bank.held("SELECT id FROM lanes WHERE id = 0 FOR NO KEY UPDATE"):
        started = time.monotonic()
        done = drain(bank.engine, 0, wait=False)
        assert time.monotonic() - started < 1, "it did not wait"
        assert (done.counts, done.remaining) == ({}, False)
        assert bank.counts() == {"pending": 1}
    assert drain(bank.engine, 0, wait=False).counts == {"applied": 1}


def test_a_drain_whose_time_is_over_says_that_there_may_be_more(bank: Bank):
    alice = bank.user()
    for _ in range(TURNS_MAX + 1):
        bank.accept(alice)
    done = drain(bank.engine, 0, seconds=0)
    assert (done.counts, done.remaining) == ({"applied": TURNS_MAX}, True)
    done = drain(bank.engine, 0, seconds=0)
    assert (done.counts, done.remaining) == ({"applied": 1}, False)


def test_whoever_waits_is_notified_after_the_commit(bank: Bank, other_engine: sa.Engine):
    bank.accept(bank.user())
    with bank.autocommit.connect() as connection:
        connection.exec_driver_sql("LISTEN kassa_finished")
        listener: Any = connection.connection.dbapi_connection
        assert drain(other_engine, 0).counts == {"applied": 1}
        until(lambda: listener.poll() or listener.notifies)
        assert [note.channel for note in listener.notifies] == ["kassa_finished"]
        listener.notifies.clear()


class Sweeps:
    """A sweeper that looks when it is told to."""

    def __init__(self, bank: Bank, decide: Decide = rules.decide) -> None:
        self.sweeper = Sweeper(bank.engine, decide)

    def look(self) -> dict[int, str]:
        """One look."""
        self.sweeper.look()
        return self.sweeper.heads


def test_the_sweeper_drains_what_did_not_move_between_two_looks(bank: Bank):
    alice = bank.user()
    assert Sweeps(bank).look() == {}
    head = bank.accept(alice).row.id
    bank.accept(alice)
    sweeps = Sweeps(bank)
    assert sweeps.look() == {0: head}
    assert bank.counts() == {"pending": 2}, "at the first look it is fresh"
    sweeps.look()
    assert bank.counts() == {"applied": 2}
    assert sweeps.look() == {}


def test_a_sweep_that_never_ends_does_when_its_sweeper_was_killed(bank: Bank, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(apart, "CHILD_SECONDS_MAX", 0.5)
    monkeypatch.setattr(apart, "DECISION_SECONDS_MAX", SETTLE_SECONDS)
    bank.accept(bank.user())
    sweeping = os.fork()
    if sweeping == 0:
        apart.drain_apart(bank.engine, [0], Counter(), 1.0, for_ever)
    try:
        child = until(lambda: psutil.Process(sweeping).children())[0]
    finally:
        os.kill(sweeping, signal.SIGKILL)
        os.waitpid(sweeping, 0)
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def for_ever(*_: object) -> Outcome:
    """A decision that never ends."""
    while True:
        pass


def test_the_sweeper_leaves_a_lane_alone_that_moves(bank: Bank):
    alice = bank.user()
    for _ in range(4):
        bank.accept(alice)
    sweeps = Sweeps(bank)
    for pending in (3, 2, 1):
        sweeps.look()
        drain_batch(bank.engine, 0, 1, wait=True)  # somebody is at work
        assert bank.counts()["pending"] == pending
    sweeps.look()
    assert bank.counts() == {"applied": 3, "pending": 1}
    sweeps.look()
    assert bank.counts() == {"applied": 4}


def test_the_sweeper_passes_by_a_lane_that_is_held(bank: Bank):
    users: list[User] = [bank.user_on(lane) for lane in range(LANES)]
    for user in users:
        bank.accept(user)
    sweeps = Sweeps(bank)
    sweeps.look()
    with bank.held("SELECT id FROM lanes WHERE id = 0 FOR NO KEY UPDATE"):
        sweeps.look()
        assert [bank.statuses(user) for user in users] == [["pending"], *[["applied"]] * (LANES - 1)]
    sweeps.look()
    assert bank.statuses(users[0]) == ["applied"]


def test_the_sweeper_gets_at_a_lane_that_is_never_free(bank: Bank):
    user, over = bank.user(), threading.Event()
    bank.accept(user)

    def hold_again_and_again() -> None:
        while not over.is_set():
            with bank.held("SELECT id FROM lanes WHERE id = 0 FOR NO KEY UPDATE"):
                time.sleep(HELD_SECONDS)

    with ThreadPoolExecutor(3) as pool:
        holding = [pool.submit(hold_again_and_again) for _ in range(3)]
        try:
            sweeps = Sweeps(bank)
            for _ in range(PATIENT_AFTER_LOOKS + 1):
                sweeps.look()
            assert bank.statuses(user) == ["applied"]
        finally:
            over.set()
        for each in holding:
            each.result()


def kill_at_unlucky(operation: Operation, accounts: Mapping[str, Account], shelf: Shelf) -> Outcome:
    if operation.amount == UNLUCKY:
        os.kill(os.getpid(), signal.SIGKILL)
    return rules.decide(operation, accounts, shelf)


def loop_at_unlucky(operation: Operation, accounts: Mapping[str, Account], shelf: Shelf) -> Outcome:
    while operation.amount == UNLUCKY:
        pass
    return rules.decide(operation, accounts, shelf)


@pytest.mark.parametrize("decide", [kill_at_unlucky, loop_at_unlucky])
def test_an_operation_that_takes_its_process_with_it_fails_alone(bank: Bank, decide: Decide):
    alice, bob = bank.user(), bank.user()
    for amount in (1, UNLUCKY, 2):
        bank.accept(alice, amount=amount)
        bank.accept(bob, amount=amount + 10)
    sweeps = Sweeps(bank, decide)
    for look in range(4):
        assert bank.counts().get("failed", 0) == 0, f"not before look {look}"
        sweeps.look()
    assert (bank.statuses(alice), bank.statuses(bob)) == (["applied", "failed", "applied"], ["applied"] * 3)
    assert (bank.balance(alice), bank.balance(bob)) == (3, 1 + 2 + 30 + UNLUCKY)


def test_a_sweep_that_is_killed_between_decisions_blames_nobody(bank: Bank):
    alice = bank.user()
    bank.accept(alice)
    sweeps = Sweeps(bank)
    sweeps.look()
    with bank.held("SELECT id FROM accounts FOR UPDATE"):
        looking = threading.Thread(target=sweeps.look)
        looking.start()
        until(lambda: bank.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") > 0)
        me = psutil.Process()
        alive = [each for each in me.children() if each.status() != psutil.STATUS_ZOMBIE]
        [child] = [each for each in alive if each.cmdline() == me.cmdline()]  # the others are servers
        child.kill()
        looking.join()
    assert sweeps.sweeper.strikes == {}
    sweeps.look()
    assert bank.statuses(alice) == ["applied"]


def test_the_heads_are_those_that_a_drain_takes_first(bank: Bank):
    users = [bank.user_on(number % LANES) for number in range(8)]
    for user in users:
        bank.accept(user)
        bank.accept(user)
    with bank.engine.begin() as connection:
        heads = lanes.heads(connection)
        firsts = {lane: lanes.next_pending(connection, [lane], 1)[0].id for lane in range(LANES)}
    assert heads == firsts


def test_an_operation_of_a_type_that_nobody_knows_fails_alone(bank: Bank):
    """As a newer API would accept one while an older worker still runs."""
    alice, bob = bank.user(), bank.user()
    strange = bank.accept(alice, amount=1).row.id
    bank.execute("UPDATE operations SET type = 'gift' WHERE id = :id", id=strange)
    bank.accept(alice, amount=2)
    bank.accept(bob, amount=3)
    assert bank.drain().counts == {"failed": 1, "applied": 2}
    assert (bank.statuses(alice), bank.statuses(bob)) == (["failed", "applied"], ["applied"])
    assert (bank.balance(alice), bank.balance(bob)) == (2, 3)
