"""The business rules alone: what becomes of an operation, why it is refused, and in which order of reasons."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from core.ids import own_account_id
from core.ledger import Books
from core.money import AMOUNT_MAX, BALANCE_MAX, WORLD_BALANCE_MIN
from core.operations import Account, Applied, Canceled, Operation, Outcome, Posting, Rejected
from core.rules import accounts_touched, decide

ALICE, BOB = "alice", "bob"
WORLD = own_account_id("world", 3, "RUB")
TYPES = ("deposit", "withdrawal", "transfer")


def operation(kind: str, amount: int = 100, **changes: object) -> Operation:
    """An operation of Alice's, in roubles, on lane 3; a transfer goes to Bob."""
    made = Operation(
        id="operation",
        user_id="user",
        seq=1,
        turn=1,
        ticket="(0,1)",
        lane=3,
        type=kind,
        account_id=ALICE,
        counterparty_id=BOB if kind == "transfer" else None,
        amount=amount,
        currency="RUB",
        cancel_requested=False,
        request_id=None,
    )
    return replace(made, **changes)


def books(alice: int = 1000, bob: int = 0, world: int = -1000) -> dict[str, Account]:
    """The three accounts with these balances."""
    return {
        ALICE: Account(ALICE, "RUB", alice, 1, is_world=False, closed=False),
        BOB: Account(BOB, "RUB", bob, 1, is_world=False, closed=False),
        WORLD: Account(WORLD, "RUB", world, 1, is_world=True, closed=False),
    }


def changed(accounts: Mapping[str, Account], account_id: str, **changes: object) -> dict[str, Account]:
    """The accounts, one of them otherwise."""
    return {**accounts, account_id: replace(accounts[account_id], **changes)}


def rejected(outcome: Outcome) -> str:
    """The code of a rejection, which the outcome must be."""
    assert isinstance(outcome, Rejected), outcome
    assert outcome.title
    assert outcome.detail.endswith(".")
    return outcome.code


@pytest.mark.parametrize(
    ("kind", "moves"),
    [
        ("deposit", {WORLD: -100, ALICE: 100}),
        ("withdrawal", {ALICE: -100, WORLD: 100}),
        ("transfer", {ALICE: -100, BOB: 100}),
    ],
)
def test_what_an_applied_operation_moves(kind: str, moves: dict[str, int]):
    outcome = decide(operation(kind), books())
    assert isinstance(outcome, Applied)
    assert len(outcome.postings) == 2
    assert {posting.account_id: posting.amount for posting in outcome.postings} == moves
    assert set(accounts_touched(operation(kind))) == set(moves)


@pytest.mark.parametrize(("lane", "currency"), [(3, "RUB"), (4, "RUB"), (3, "USD")])
def test_the_world_is_the_lanes_own_in_the_operations_currency(lane: int, currency: str):
    touched = accounts_touched(operation("deposit", lane=lane, currency=currency))
    assert touched == (own_account_id("world", lane, currency), ALICE)


@pytest.mark.parametrize("kind", ["withdrawal", "transfer"])
def test_all_there_is_may_be_spent_and_not_a_kopeck_more(kind: str):
    assert isinstance(decide(operation(kind, 1000), books(alice=1000)), Applied)
    outcome = decide(operation(kind, 1001), books(alice=1000))
    assert rejected(outcome) == "insufficient_funds"
    assert outcome.facts == {"available": 1000, "shortfall": 1, "currency": "RUB"}
    assert outcome.detail == "10.01 RUB is needed, 10.00 RUB is available."


def test_a_deposit_needs_no_money_of_ones_own():
    assert isinstance(decide(operation("deposit", AMOUNT_MAX), books(alice=0, world=0)), Applied)


@pytest.mark.parametrize(
    ("kind", "closed"),
    [
        ("deposit", ALICE),
        ("deposit", WORLD),
        ("withdrawal", ALICE),
        ("withdrawal", WORLD),
        ("transfer", ALICE),
        ("transfer", BOB),
    ],
)
def test_a_closed_account_neither_pays_nor_is_paid(kind: str, closed: str):
    assert rejected(decide(operation(kind), changed(books(), closed, closed=True))) == "account_closed"


@pytest.mark.parametrize(
    ("kind", "other"), [("deposit", ALICE), ("withdrawal", ALICE), ("transfer", ALICE), ("transfer", BOB)]
)
def test_money_moves_within_one_currency(kind: str, other: str):
    outcome = decide(operation(kind), changed(books(), other, currency="CZK"))
    assert rejected(outcome) == "currency_mismatch"
    assert outcome.facts == {"currency": "RUB", "account_currency": "CZK"}
    assert "RUB" in outcome.detail
    assert "CZK" in outcome.detail


@pytest.mark.parametrize(
    ("kind", "at_the_limit", "one_beyond"),
    [
        ("deposit", {"alice": BALANCE_MAX - 100}, {"alice": BALANCE_MAX - 99}),
        ("deposit", {"world": WORLD_BALANCE_MIN + 100}, {"world": WORLD_BALANCE_MIN + 99}),
        ("transfer", {"bob": BALANCE_MAX - 100}, {"bob": BALANCE_MAX - 99}),
        ("withdrawal", {"world": BALANCE_MAX - 100}, {"world": BALANCE_MAX - 99}),
    ],
)
def test_no_balance_leaves_the_range_of_exact_sums(kind: str, at_the_limit: dict[str, int], one_beyond: dict[str, int]):
    assert isinstance(decide(operation(kind), books(**at_the_limit)), Applied)
    outcome = decide(operation(kind), books(**one_beyond))
    assert rejected(outcome) == "balance_limit"
    assert outcome.facts == {"limit": BALANCE_MAX}


def test_of_several_reasons_the_first_in_precedence_is_given():
    asked = operation("transfer", cancel_requested=True)
    accounts = books(alice=0, bob=BALANCE_MAX)
    accounts = changed(accounts, BOB, closed=True, currency="CZK")
    assert decide(asked, accounts) == Canceled()
    asked = replace(asked, cancel_requested=False)
    assert rejected(decide(asked, accounts)) == "account_closed"
    accounts = changed(accounts, BOB, closed=False)
    assert rejected(decide(asked, accounts)) == "currency_mismatch"
    accounts = changed(accounts, BOB, currency="RUB")
    assert rejected(decide(asked, accounts)) == "insufficient_funds"
    accounts = changed(accounts, ALICE, balance=100)
    assert rejected(decide(asked, accounts)) == "balance_limit"
    accounts = changed(accounts, BOB, balance=0)
    assert isinstance(decide(asked, accounts), Applied)


@pytest.mark.parametrize("kind", TYPES)
def test_what_was_taken_back_is_canceled(kind: str):
    assert decide(operation(kind, cancel_requested=True), books()) == Canceled()


@pytest.mark.parametrize("kind", TYPES)
def test_a_missing_account_is_a_defect_and_no_rejection(kind: str):
    for missing in accounts_touched(operation(kind)):
        accounts = books()
        del accounts[missing]
        with pytest.raises(KeyError, match=missing):
            decide(operation(kind), accounts)


amounts = st.one_of(st.integers(1, AMOUNT_MAX), st.integers(1, 300))
balances = st.one_of(st.integers(0, BALANCE_MAX), st.integers(0, 300), st.just(BALANCE_MAX))
debts = st.one_of(st.integers(WORLD_BALANCE_MIN, BALANCE_MAX), st.just(WORLD_BALANCE_MIN))
states = st.builds(books, balances, balances, debts)
asked_for = st.builds(operation, st.sampled_from(TYPES), amounts, cancel_requested=st.booleans())


@given(asked_for, states)
def test_an_applied_operation_conserves_money(asked: Operation, accounts: dict[str, Account]):
    outcome = decide(asked, accounts)
    if isinstance(outcome, Applied):
        assert sum(posting.amount for posting in outcome.postings) == 0
        assert {posting.account_id for posting in outcome.postings} == set(accounts_touched(asked))
        assert len(outcome.postings) == len(accounts_touched(asked))
        assert all(posting.amount for posting in outcome.postings)
    else:
        assert isinstance(outcome, Canceled) == asked.cancel_requested


@given(st.lists(asked_for, max_size=20), states)
def test_no_row_of_operations_overdraws_or_loses_money(row: list[Operation], accounts: dict[str, Account]):
    ledger = Books(accounts.values())
    for asked in row:
        outcome = decide(asked, ledger.accounts)
        if isinstance(outcome, Applied):
            ledger.post(asked.id, outcome.postings)
        for account in ledger.accounts.values():
            assert (WORLD_BALANCE_MIN if account.is_world else 0) <= account.balance <= BALANCE_MAX
    total = sum(account.balance for account in accounts.values())
    assert sum(account.balance for account in ledger.accounts.values()) == total


@given(asked_for, states)
def test_a_decision_is_repeatable_and_changes_nothing(asked: Operation, accounts: dict[str, Account]):
    before = dict(accounts)
    assert decide(asked, accounts) == decide(asked, accounts)
    assert accounts == before


def test_a_posting_says_what_its_account_gains():
    assert Posting(ALICE, 5) in decide(operation("deposit", 5), books()).postings
