"""Accepting: numbers without gaps under any crowd, one operation for each key, refusals without a trace, fair turns."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from core import lanes
from core.accounts import open_account
from core.errors import Refusal
from tests.integration.conftest import Bank, User
from worker.drain import drain_batch

NOBODY = "01a1fb36-b9a6-76c2-81f4-000000000000"


def trace(bank: Bank) -> list[tuple[Any, ...]]:
    """All that accepting may change."""
    return [
        *bank.rows("SELECT id, next_seq, done_seq, turn FROM users JOIN progress ON user_id = id ORDER BY id"),
        *bank.rows("SELECT id, status FROM operations ORDER BY id"),
        *bank.rows("SELECT operation_id, turn FROM queue ORDER BY operation_id"),
    ]


def refusal(bank: Bank, user: User, *arguments: Any, **fields: Any) -> Refusal:
    """The refusal that an operation must get, without leaving a trace."""
    before = trace(bank)
    with pytest.raises(Refusal) as refused:
        bank.accept(user, *arguments, **fields)
    assert trace(bank) == before
    return refused.value


def crowns(bank: Bank, user: User) -> str:
    """A second account of the user's, in another currency."""
    with bank.engine.begin() as connection:
        return open_account(connection, user.id, "CZK").account_id


def test_what_is_accepted_stands_as_it_was_asked_for(bank: Bank):
    alice, bob = bank.user(), bank.user()
    metadata = {"b": "2", "a": "'\"\\ \U0001f600"}
    accepted = bank.accept(
        *(alice, "transfer", 250),
        to_user_id=bob.id,
        comment="r\u00e9nt '; --",
        metadata=metadata,
        idempotency_key="key",
        request_id="request",
    )
    assert not accepted.replayed
    row = accepted.row
    assert (row.seq, row.status, row.type, row.amount, row.currency) == (1, "pending", "transfer", 250, "RUB")
    assert (row.user_id, row.requested_by, row.lane) == (alice.id, alice.id, alice.lane)
    assert (row.account_id, row.counterparty_id) == (alice.account_id, bob.account_id)
    assert (row.username, row.counterparty_user_id, row.counterparty_username) == (alice.name, bob.id, bob.name)
    stored = bank.rows("SELECT id, comment, metadata, idempotency_key, request_id FROM operations")
    assert stored == [(row.id, "r\u00e9nt '; --", metadata, "key", "request")]
    moved = "SELECT next_seq, done_seq FROM users JOIN progress ON user_id = id WHERE id = :id"
    assert bank.rows(moved, id=alice.id) == [(1, 0)]
    assert bank.value("SELECT next_seq FROM users WHERE id = :id", id=bob.id) == 0


def test_twenty_at_once_get_numbers_without_a_gap(bank: Bank):
    alice = bank.user()
    keys = [f"key-{number % 50}" for number in range(200)] + [None] * 100
    random.Random(1).shuffle(keys)
    with ThreadPoolExecutor(20) as crowd:
        accepted = list(crowd.map(lambda key: bank.accept(alice, idempotency_key=key), keys))
    fresh = [one for one in accepted if not one.replayed]
    assert sorted(one.row.seq for one in fresh) == list(range(1, 151))
    assert len(accepted) - len(fresh) == 150
    by_key: dict[str, set[str]] = {}
    for key, one in zip(keys, accepted, strict=True):
        if key:
            by_key.setdefault(key, set()).add(one.row.id)
    assert len(by_key) == 50
    assert all(len(ids) == 1 for ids in by_key.values()), "a key stands for one operation"
    assert bank.rows("SELECT next_seq, turn FROM users WHERE id = :id", id=alice.id) == [(150, 150)]
    query = "SELECT count(*), min(seq), max(seq), count(DISTINCT turn) FROM operations JOIN queue ON operation_id = id"
    assert bank.rows(query) == [(150, 1, 150, 150)]


def test_a_crowd_with_one_key_makes_one_operation(bank: Bank):
    alice = bank.user()
    with ThreadPoolExecutor(20) as crowd:
        accepted = list(crowd.map(lambda _: bank.accept(alice, amount=5, idempotency_key="one"), range(60)))
    assert sum(not one.replayed for one in accepted) == 1
    assert len({one.row.id for one in accepted}) == 1
    assert bank.value("SELECT next_seq FROM users WHERE id = :id", id=alice.id) == 1


def test_a_replay_is_the_first_operation_as_it_is_now(bank: Bank):
    alice, bob = bank.rich(100), bank.user()
    asked: dict[str, Any] = {"amount": 30, "to_username": bob.name, "idempotency_key": "rent"}
    first = bank.accept(alice, "transfer", metadata={"a": "1", "b": "2"}, **asked)
    again = bank.accept(alice, "transfer", metadata={"b": "2", "a": "1"}, **asked)
    assert (again.replayed, again.row.status) == (True, "pending")
    assert dict(again.row._asdict()) | {"user_pending": 1} == dict(first.row._asdict())
    bank.drain()
    late = bank.accept(alice, "transfer", metadata={"a": "1", "b": "2"}, **asked)
    assert (late.replayed, late.row.id, late.row.seq) == (True, first.row.id, 2)
    assert (late.row.status, late.row.balance_after, late.row.counterparty_balance_after) == ("applied", 70, 30)
    assert bank.value("SELECT next_seq FROM users WHERE id = :id", id=alice.id) == 2


def test_a_key_is_its_users_own(bank: Bank):
    alice, bob = bank.user(), bank.user()
    one, other = (bank.accept(user, idempotency_key="same") for user in (alice, bob))
    assert not one.replayed
    assert not other.replayed
    assert one.row.id != other.row.id


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("transfer", {"amount": 31}),
        ("withdrawal", {"to_user_id": None}),
        ("transfer", {"comment": "other"}),
        ("transfer", {"metadata": {"a": "2"}}),
        ("transfer", {"metadata": {}}),
        ("transfer", {"to_user_id": NOBODY}),
        ("transfer", {"account_id": NOBODY}),
    ],
)
def test_a_key_used_for_something_else_is_refused(bank: Bank, kind: str, change: dict[str, Any]):
    alice, bob = bank.user(), bank.user()
    asked: dict[str, Any] = {"amount": 30, "to_user_id": bob.id, "metadata": {"a": "1"}, "idempotency_key": "rent"}
    bank.accept(alice, "transfer", **asked)
    assert refusal(bank, alice, kind, **{**asked, **change}).code == "idempotency_key_reused"
    assert bank.accept(alice).row.seq == 2, "the refusal took no number"


@pytest.mark.parametrize("whose", ["nobody's", "another's", "the world's"])
def test_an_account_that_is_not_the_users(bank: Bank, whose: str):
    alice, bob = bank.user(), bank.user()
    world = bank.value("SELECT id FROM accounts WHERE kind = 'world'")
    account_id = {"nobody's": NOBODY, "another's": bob.account_id, "the world's": world}[whose]
    refused = refusal(bank, alice, "withdrawal", account_id=account_id)
    assert (refused.code, refused.pointer) == ("account_not_found", "/account_id")


def test_a_user_who_does_not_exist(bank: Bank):
    ghost = User(NOBODY, "ghost", 0, NOBODY)
    refused = refusal(bank, ghost, "deposit")
    assert (refused.code, refused.pointer) == ("account_not_found", None)


def test_a_receiver_who_does_not_exist(bank: Bank):
    alice = bank.user()
    world = bank.value("SELECT id FROM accounts WHERE kind = 'world'")
    for name, value in (
        ("to_user_id", NOBODY),
        ("to_username", "nobody"),
        ("to_account_id", NOBODY),
        ("to_account_id", world),
        ("to_user_id", alice.account_id),
    ):
        refused = refusal(bank, alice, "transfer", **{name: value})
        assert (refused.code, refused.pointer) == ("receiver_not_found", f"/{name}")


def test_a_transfer_to_oneself(bank: Bank):
    alice = bank.user("alice")
    other_account = crowns(bank, alice)
    for name, value in (
        ("to_user_id", alice.id),
        ("to_username", "alice"),
        ("to_username", "ALICE"),
        ("to_account_id", alice.account_id),
    ):
        refused = refusal(bank, alice, "transfer", **{name: value})
        assert (refused.code, refused.pointer) == ("self_transfer", f"/{name}")
    refused = refusal(bank, alice, "transfer", account_id=other_account, to_account_id=other_account)
    assert refused.code == "self_transfer"
    between = bank.accept(alice, "transfer", to_account_id=other_account).row
    assert (between.counterparty_id, between.counterparty_user_id) == (other_account, alice.id)


def test_a_disabled_user_does_nothing_and_can_still_be_paid(bank: Bank):
    alice, bob = bank.rich(10), bank.user()
    bank.execute("UPDATE users SET disabled_at = now() WHERE id = :id", id=bob.id)
    for kind in ("deposit", "withdrawal"):
        assert refusal(bank, bob, kind).code == "user_disabled"
    assert bank.accept(alice, "transfer", 4, to_user_id=bob.id).row.status == "pending"
    bank.drain()
    assert (bank.balance(alice), bank.balance(bob)) == (6, 4)


def test_a_disabled_users_transfer_is_refused_for_being_disabled(bank: Bank):
    alice, bob = bank.user(), bank.user()
    bank.execute("UPDATE users SET disabled_at = now() WHERE id = :id", id=bob.id)
    assert refusal(bank, bob, "transfer", to_user_id=alice.id).code == "user_disabled"


def test_of_several_reasons_the_first_in_precedence_is_given(bank: Bank):
    alice = bank.user("alice")
    bank.accept(alice, idempotency_key="key")
    bank.execute("UPDATE users SET disabled_at = now() WHERE id = :id", id=alice.id)
    wrong: dict[str, Any] = {"idempotency_key": "key", "account_id": NOBODY, "to_user_id": alice.id}
    assert refusal(bank, alice, "transfer", **wrong).code == "idempotency_key_reused"
    wrong["idempotency_key"] = None
    assert refusal(bank, alice, "transfer", **wrong).code == "user_disabled"
    bank.execute("UPDATE users SET disabled_at = NULL WHERE id = :id", id=alice.id)
    assert refusal(bank, alice, "transfer", **wrong).code == "account_not_found"
    wrong["account_id"] = None
    assert refusal(bank, alice, "transfer", **wrong).code == "self_transfer"
    wrong["to_user_id"] = NOBODY
    assert refusal(bank, alice, "transfer", **wrong).code == "receiver_not_found"


def test_the_receivers_account_in_the_same_currency_is_preferred(bank: Bank):
    alice, bob = bank.user(), bank.user()
    from_crowns, to_crowns = crowns(bank, alice), crowns(bank, bob)
    roubles = bank.accept(alice, "transfer", to_user_id=bob.id).row
    assert roubles.counterparty_id == bob.account_id
    other = bank.accept(alice, "transfer", account_id=from_crowns, to_username=bob.name).row
    assert (other.currency, other.counterparty_id) == ("CZK", to_crowns)


def test_a_newcomer_does_not_wait_for_all_of_a_heavy_user(bank: Bank):
    heavy, newcomer = bank.user(), bank.user()
    for _ in range(50):
        bank.accept(heavy)
    assert drain_batch(bank.engine, 0, 10, wait=True) == {"applied": 10}
    assert bank.value("SELECT turn FROM lanes WHERE id = 0") == 10
    operation_id = bank.accept(newcomer).row.id
    with bank.engine.begin() as connection:
        assert lanes.lock(connection, 0, wait=True)
        pending = lanes.next_pending(connection, [0], 100)
    assert pending[0].id == operation_id
    assert [operation.seq for operation in pending[1:]] == list(range(11, 10 + lanes.TURNS_MAX))
    assert drain_batch(bank.engine, 0, 1, wait=True) == {"applied": 1}
    assert bank.statuses(newcomer) == ["applied"]


def test_two_who_hand_in_many_take_turns(bank: Bank):
    first, second = bank.user(), bank.user()
    for user in (first, second):
        for _ in range(10):
            bank.accept(user)
    assert drain_batch(bank.engine, 0, 10, wait=True) == {"applied": 10}
    assert bank.statuses(first).count("applied") == bank.statuses(second).count("applied") == 5


def test_who_was_away_gets_no_credit_for_it(bank: Bank):
    busy, back_again = bank.user(), bank.user()
    bank.accept(back_again)
    for _ in range(20):
        bank.accept(busy)
        bank.drain()
    returned, next_of_busy = bank.accept(back_again).row, bank.accept(busy).row
    assert bank.turn(returned.id) == 20, "at the lane's clock, and not where the user left"
    assert bank.turn(next_of_busy.id) == 21
