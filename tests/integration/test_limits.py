"""The limits of a process: what it knows while it looks, and what it counts as refused."""

import pytest
from prometheus_client import REGISTRY

from core import acceptance, db, limits
from core.errors import Refusal
from core.limits import Limits
from core.operations import Command
from tests.integration.conftest import Bank, User

PENDING_MAX, PENDING_SECONDS_MAX = 3, 10


@pytest.fixture
def narrow(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> Limits:
    """Small limits, looked at before every operation, with one connection to look by."""
    monkeypatch.setattr(limits, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(limits, "COUNTING_SHARE", float("inf"))
    url = bank.engine.url.render_as_string(hide_password=False)
    engine = db.engine(url, "tests", 1, pool_wait_seconds=0.1)
    seconds = PENDING_SECONDS_MAX
    return Limits(db.autocommit(bank.engine), engine, user_pending=2, pending=PENDING_MAX, pending_seconds=seconds)


def room(narrow: Limits, wanted: int) -> int:
    """How many of the wanted may be stored."""
    with narrow.admission(wanted) as admission:
        return admission.room


def hand_in(bank: Bank, narrow: Limits, user: User, key: str) -> acceptance.Accepted:
    """Hand in a deposit, within the limits."""
    command = Command(type="deposit", user_id=user.id, requested_by=user.id, amount=1, idempotency_key=key)
    with narrow.admission(1) as admission:
        return acceptance.accept(admission.connection, command, None, narrow.bounds(admission.room))


def refused(code: str) -> float:
    """How many operations were refused under the code so far."""
    return REGISTRY.get_sample_value("kassa_operations_refused_total", {"code": code}) or 0.0


def test_nobody_is_let_in_while_somebody_looks_whether_it_still_waits_too_long(bank: Bank, narrow: Limits):
    bank.accept(bank.user())
    bank.execute("UPDATE operations SET created_at = created_at - interval '1 minute'")
    assert room(narrow, 1) == 0
    with narrow._engine.connect(), bank.engine.begin() as connection:  # so that a look gets no connection
        for _ in range(2):
            with pytest.raises(Refusal, match="overloaded"), narrow.admission_of_all(connection, 1):
                pass
    bank.drain()
    assert room(narrow, 1) == 1


def test_who_is_full_looks_again_and_has_room_when_there_is_some(bank: Bank, narrow: Limits):
    user = bank.user()
    assert room(narrow, 5) == PENDING_MAX
    for _ in range(PENDING_MAX):
        bank.accept(user)
    assert room(narrow, 1) == 0
    with bank.held("SELECT FROM load FOR NO KEY UPDATE"):
        assert room(narrow, 1) == 0, "without waiting for those who count"
    bank.drain()
    assert room(narrow, 1) == 1


def test_only_what_is_refused_is_counted_as_refused(bank: Bank, narrow: Limits):
    alice, bob = bank.user(), bank.user()
    for key in ("first", "second"):
        hand_in(bank, narrow, alice, key)
    before = {code: refused(code) for code in ("overloaded", "too_many_pending")}
    with pytest.raises(Refusal, match="too_many_pending"):
        hand_in(bank, narrow, alice, "third")
    hand_in(bank, narrow, bob, "first")
    with pytest.raises(Refusal, match="overloaded"):
        hand_in(bank, narrow, bob, "second")
    assert hand_in(bank, narrow, bob, "first").replayed
    assert {code: refused(code) - before[code] for code in before} == {"overloaded": 1, "too_many_pending": 1}
    bank.drain()


def test_processes_know_of_each_other_what_they_let_in(bank: Bank, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "LOOK_SECONDS", 0.0)
    one, other = (
        Limits(db.autocommit(bank.engine), bank.engine, user_pending=2, pending=100_000, pending_seconds=60)
        for _ in range(2)
    )
    assert room(one, 10) == 10
    monkeypatch.setattr(limits, "COUNTING_SHARE", 1e-9)  # nobody counts again
    assert room(one, 10) == 10
    with bank.engine.begin() as connection, one.admission_of_all(connection, 80_000) as admission:
        admission.stored = 80_000
    with bank.engine.begin() as connection:
        with pytest.raises(Refusal, match="overloaded"), other.admission_of_all(connection, 15_000):
            pass
        with other.admission_of_all(connection, 14_900) as admission:
            admission.stored = 14_900
    assert bank.value("SELECT counted + let_in FROM load") == 94_920
    assert room(other, 90) == 90, "where only a count can tell, one operation after another is worth it"
    assert bank.value("SELECT counted + let_in FROM load") == 0


def test_counting_takes_a_small_share_of_the_time(bank: Bank, narrow: Limits, monkeypatch: pytest.MonkeyPatch):
    assert room(narrow, 1) == 1
    bank.execute("UPDATE load SET count_seconds = 0.4, counted = 2")
    monkeypatch.setattr(limits, "COUNTING_SHARE", 0.05)
    with bank.engine.begin() as connection:
        with pytest.raises(Refusal, match="overloaded"), narrow.admission_of_all(connection, 1):
            pass
        connection.exec_driver_sql("UPDATE load SET counted_at = counted_at - interval '8 seconds'")
        with narrow.admission_of_all(connection, 1):
            pass
