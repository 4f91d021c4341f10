"""Reconciling finds every kind of corruption that it claims to find; the database by itself refuses most of them."""

import itertools
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from cli.stack import Stack
from core import acceptance, db
from core.reconcile import SAMPLES_MAX, TRUTHS, reconcile, violations
from tests.conftest import TEMPLATE, create_database
from tests.integration.conftest import Bank

POPULATED = "kassa_reconcile"

numbers = itertools.count(1)


@pytest.fixture(scope="module")
def populated(servers: Stack) -> str:
    """The name of a database with a small ledger that has some of everything: Alice, Bob and Kassa's own."""
    engine = db.engine(create_database(servers, POPULATED, TEMPLATE), "tests", 2)
    bank = Bank(engine)
    alice, bob = bank.user("alice"), bank.user("bob")
    bank.accept(alice, "deposit", 1000)
    bank.accept(bob, "deposit", 500)
    bank.accept(alice, "transfer", 200, to_user_id=bob.id)
    bank.accept(bob, "withdrawal", 50)
    bank.accept(alice, "withdrawal", 10**6)
    bank.drain()
    taken_back = bank.accept(alice, "deposit", 7).row.id
    with engine.begin() as connection:
        acceptance.request_cancellation(connection, taken_back, 0)
    bank.accept(bob, "transfer", 70, to_user_id=alice.id)
    bank.drain()
    bank.accept(alice, "deposit", 3)
    assert bank.statuses(alice) == ["applied", "applied", "rejected", "canceled", "pending"]
    assert bank.statuses(bob) == ["applied", "applied", "applied"]
    assert (bank.balance(alice), bank.balance(bob)) == (870, 580)
    engine.dispose()
    return POPULATED


@pytest.fixture
def ledger(servers: Stack, populated: str) -> Iterator[sa.Engine]:
    """A copy of the populated ledger, to be corrupted."""
    engine = db.engine(create_database(servers, f"{populated}_{next(numbers)}", populated), "tests", 2)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def sound(servers: Stack, populated: str) -> Iterator[sa.Engine]:
    """A copy of the populated ledger that stays as it is: whatever a test does to it is undone."""
    engine = db.engine(create_database(servers, f"{populated}_sound", populated), "tests", 2)
    yield engine
    assert violations(engine) == []
    engine.dispose()


ALICE = "(SELECT id FROM users WHERE username = 'alice')"
BOB = "(SELECT id FROM users WHERE username = 'bob')"
ALICES = f"(SELECT id FROM accounts WHERE user_id = {ALICE})"
BOBS = f"(SELECT id FROM accounts WHERE user_id = {BOB})"
WORLD = "(SELECT id FROM accounts WHERE kind = 'world' AND lane = 0)"


def of(user: str, seq: int) -> str:
    """The id of a user's operation."""
    return f"(SELECT id FROM operations WHERE user_id = {user} AND seq = {seq})"


def swap_apply_no(one: str, other: str) -> str:
    """Let two operations have been applied in the other order."""
    return f"""
UPDATE operations SET apply_no = (SELECT min(apply_no) + max(apply_no) FROM operations
                                   WHERE id IN ({one}, {other})) - apply_no
 WHERE id IN ({one}, {other})"""


PLANTS = [
    (
        "money_goes_where_the_type_says",
        "a deposit at another user's expense",
        f"UPDATE entries SET account_id = {BOBS}, account_version = 99"
        f" WHERE operation_id = {of(ALICE, 1)} AND account_id = {WORLD}",
    ),
    (
        "purchases_are_applied_once",
        "bought by no operation",
        "INSERT INTO purchases (user_id, service_id, operation_id)"
        f" SELECT {ALICE}, gen_random_uuid(), gen_random_uuid()",
    ),
    (
        "purchases_are_applied_once",
        "applied and not noted",
        "UPDATE operations SET type = 'purchase', service_id = gen_random_uuid(), price = 1, price_currency = 'RUB'"
        f" WHERE id = {of(BOB, 2)}",
    ),
    (
        "entries_sum_to_zero",
        "money out of nothing",
        f"UPDATE entries SET amount = amount + 1, balance_after = balance_after + 1 WHERE operation_id = {of(ALICE, 1)}"
        f" AND account_id = {ALICES}",
    ),
    (
        "operations_sum_to_zero",
        "one operation's kopeck in another's entry",
        f"UPDATE entries SET amount = amount + CASE WHEN operation_id = {of(ALICE, 1)} THEN 1 ELSE -1 END"
        f" WHERE account_id = {WORLD} AND operation_id IN ({of(ALICE, 1)}, {of(BOB, 1)})",
    ),
    (
        "entries_belong_to_applied_operations",
        "entries of a failed operation",
        f"UPDATE operations SET status = 'failed', account_version = NULL WHERE id = {of(ALICE, 1)}",
    ),
    (
        "entries_belong_to_applied_operations",
        "entries of no operation",
        f"UPDATE entries SET operation_id = gen_random_uuid() WHERE operation_id = {of(ALICE, 1)}",
    ),
    (
        "entries_belong_to_applied_operations",
        "entries of no account",
        f"DELETE FROM accounts WHERE id = {BOBS}",
    ),
    (
        "applied_operations_have_their_entries",
        "another amount than was entered",
        f"UPDATE operations SET amount = amount + 1 WHERE id = {of(ALICE, 1)}",
    ),
    (
        "applied_operations_have_their_entries",
        "a deposit that was entered as a withdrawal",
        f"UPDATE entries SET amount = -amount WHERE operation_id = {of(BOB, 1)}",
    ),
    (
        "applied_operations_have_their_entries",
        "another line of the account",
        f"UPDATE operations SET account_version = account_version + 1 WHERE id = {of(ALICE, 2)}",
    ),
    (
        "applied_operations_have_their_entries",
        "another line of the receiver's account",
        f"UPDATE operations SET counterparty_version = NULL WHERE id = {of(ALICE, 2)}",
    ),
    (
        "applied_operations_have_their_entries",
        "another receiver",
        f"UPDATE operations SET counterparty_id = {WORLD} WHERE id = {of(ALICE, 2)}",
    ),
    (
        "applied_operations_have_two_entries",
        "none at all",
        f"DELETE FROM entries WHERE operation_id = {of(BOB, 2)}",
    ),
    (
        "applied_operations_have_two_entries",
        "applied twice",
        f"""
INSERT INTO entries (operation_id, account_id, account_version, amount, balance_after)
SELECT {of(BOB, 1)}, id, version + 1, sign * 500, balance + sign * 500
  FROM (SELECT *, CASE WHEN id = {BOBS} THEN 1 ELSE -1 END AS sign FROM accounts) AS a WHERE id IN ({BOBS}, {WORLD});
UPDATE accounts SET version = version + 1, balance = balance + CASE WHEN id = {BOBS} THEN 500 ELSE -500 END
 WHERE id IN ({BOBS}, {WORLD})""",
    ),
    ("balance_is_sum_of_entries", "a rounder balance", f"UPDATE accounts SET balance = 1000 WHERE id = {ALICES}"),
    (
        "balance_is_sum_of_entries",
        "a balance without any entry",
        "UPDATE accounts SET balance = 1 WHERE kind = 'revenue'",
    ),
    ("version_is_count_of_entries", "a version too many", f"UPDATE accounts SET version = 4 WHERE id = {ALICES}"),
    (
        "version_is_count_of_entries",
        "the last line numbered higher",
        f"UPDATE entries SET account_version = 9 WHERE account_id = {BOBS} AND account_version = 4",
    ),
    (
        "chain_is_unbroken",
        "another running balance",
        f"UPDATE entries SET balance_after = 801 WHERE account_id = {ALICES} AND account_version = 2",
    ),
    (
        "chain_is_unbroken",
        "another first balance",
        f"UPDATE entries SET balance_after = 999 WHERE account_id = {ALICES} AND account_version = 1",
    ),
    (
        "chain_is_unbroken",
        "a line left out",
        f"UPDATE entries SET account_version = 9 WHERE account_id = {BOBS} AND account_version = 4",
    ),
    (
        "nothing_below_zero",
        "a debt",
        f"ALTER TABLE accounts DROP CONSTRAINT accounts_balance_not_negative;"
        f"UPDATE accounts SET balance = -1 WHERE id = {ALICES}",
    ),
    (
        "nothing_below_zero",
        "a debt in the past",
        f"UPDATE entries SET balance_after = -1 WHERE account_id = {BOBS} AND account_version = 2",
    ),
    ("seq_is_gapless", "a number that was never used", f"UPDATE users SET next_seq = next_seq + 1 WHERE id = {BOB}"),
    ("seq_is_gapless", "a lost operation", f"DELETE FROM operations WHERE id = {of(ALICE, 5)}"),
    ("seq_is_gapless", "a lost operation in between", f"DELETE FROM operations WHERE id = {of(ALICE, 3)}"),
    ("seq_is_gapless", "a hole", f"UPDATE operations SET seq = 6 WHERE id = {of(ALICE, 5)}"),
    (
        "seq_is_gapless",
        "a start at 2",
        f"UPDATE operations SET seq = 4 WHERE id = {of(BOB, 1)}; UPDATE users SET next_seq = 4 WHERE id = {BOB}",
    ),
    (
        "operations_have_a_user",
        "nobody's operation",
        f"UPDATE operations SET user_id = gen_random_uuid() WHERE id = {of(BOB, 3)}",
    ),
    ("operations_have_a_user", "another lane", f"UPDATE operations SET lane = 1 WHERE id = {of(ALICE, 5)}"),
    ("operations_have_a_user", "a user who is gone", f"DELETE FROM users WHERE id = {BOB}"),
    ("the_queue_holds_what_is_pending", "a pending operation that is not there", "DELETE FROM queue"),
    ("the_queue_holds_what_is_pending", "a pending operation on another lane", "UPDATE queue SET lane = 1"),
    (
        "the_queue_holds_what_is_pending",
        "a finished operation",
        f"INSERT INTO queue (lane, turn, operation_id) VALUES (0, 1, {of(BOB, 1)})",
    ),
    (
        "the_queue_holds_what_is_pending",
        "a pending operation twice",
        "INSERT INTO queue (lane, turn, operation_id) SELECT lane, turn + 1, operation_id FROM queue",
    ),
    (
        "nobody_is_overtaken",
        "pending again",
        "UPDATE operations SET status = 'pending', apply_no = NULL, finished_at = NULL, account_version = NULL"
        f" WHERE id = {of(BOB, 2)}",
    ),
    ("applied_in_order_of_seq", "the other way round", swap_apply_no(of(BOB, 1), of(BOB, 2))),
    ("applied_in_order_of_seq", "a rejection out of turn", swap_apply_no(of(ALICE, 2), of(ALICE, 3))),
    ("applied_in_order_of_seq", "a cancellation out of turn", swap_apply_no(of(ALICE, 3), of(ALICE, 4))),
    (
        "accounts_follow_order_of_application",
        "two who paid into one account, the other way round",
        swap_apply_no(of(BOB, 1), of(ALICE, 2)),
    ),
    (
        "apply_no_is_unique",
        "one number twice",
        "UPDATE operations SET apply_no = (SELECT apply_no FROM operations WHERE id = " + of(BOB, 1) + ")"
        f" WHERE id = {of(ALICE, 1)}",
    ),
    (
        "done_seq_is_the_finished_prefix",
        "behind",
        f"UPDATE progress SET done_seq = done_seq - 1 WHERE user_id = {BOB}",
    ),
    (
        "done_seq_is_the_finished_prefix",
        "ahead of what is pending",
        f"UPDATE progress SET done_seq = done_seq + 1 WHERE user_id = {ALICE}",
    ),
    (
        "done_seq_is_the_finished_prefix",
        "ahead of what was accepted",
        f"UPDATE users SET next_seq = next_seq - 1 WHERE id = {BOB}",
    ),
    (
        "done_seq_is_the_finished_prefix",
        "nowhere",
        f"DELETE FROM progress WHERE user_id = {BOB}",
    ),
]


def test_a_sound_ledger_reconciles(sound: sa.Engine):
    findings = list(reconcile(sound))
    assert [finding.truth for finding in findings] == list(TRUTHS)
    assert all((finding.violations, finding.samples) == (0, ()) for finding in findings)


@pytest.mark.parametrize(("truth", "kind", "corruption"), PLANTS, ids=[f"{truth}: {kind}" for truth, kind, _ in PLANTS])
def test_a_planted_corruption_is_found(ledger: sa.Engine, truth: str, kind: str, corruption: str):
    with ledger.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")  # switches the triggers off
        assert connection.exec_driver_sql(corruption).rowcount > 0, "nothing was corrupted"
    found = {finding.truth: finding for finding in violations(ledger)}
    assert truth in found, sorted(found)
    assert found[truth].violations >= 1
    assert len(found[truth].samples) == min(found[truth].violations, SAMPLES_MAX)
    assert all("=" in sample for sample in found[truth].samples)


def test_every_truth_has_its_planted_corruption():
    assert {truth for truth, _, _ in PLANTS} == set(TRUTHS)


def test_all_are_counted_and_a_few_are_shown(ledger: sa.Engine):
    with ledger.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        connection.exec_driver_sql("UPDATE operations SET lane = 3")
    [finding] = [finding for finding in violations(ledger) if finding.truth == "operations_have_a_user"]
    assert (finding.violations, len(finding.samples)) == (8, SAMPLES_MAX)


OPERATION = f"""
INSERT INTO operations (id, user_id, requested_by, seq, lane, type, account_id, amount, currency, request_hash)
VALUES (gen_random_uuid(), {ALICE}, {ALICE}, %s, 0, 'deposit', {ALICES}, %s, 'RUB', '')"""
FINISH = f"UPDATE operations SET finished_at = now(), apply_no = 99, status = %s WHERE id = {of(ALICE, 5)}"

REFUSED = {
    "an entry is changed": ("UPDATE entries SET balance_after = balance_after + 1", "entries are append-only"),
    "an entry is deleted": (f"DELETE FROM entries WHERE account_id = {ALICES}", "entries are append-only"),
    "entries are truncated": ("TRUNCATE entries", "entries are append-only"),
    "an entry of nothing": (
        f"INSERT INTO entries (operation_id, account_id, account_version, amount, balance_after)"
        f" VALUES (gen_random_uuid(), {ALICES}, 4, 0, 870)",
        "entries_amount_not_zero",
    ),
    "two entries on one line": (
        f"INSERT INTO entries (operation_id, account_id, account_version, amount, balance_after)"
        f" VALUES (gen_random_uuid(), {ALICES}, 3, 1, 871)",
        "entries_account_id_account_version_key",
    ),
    "an applied operation is changed": (
        f"UPDATE operations SET comment = 'x' WHERE id = {of(ALICE, 1)}",
        "a finished operation never changes",
    ),
    "an applied operation is pending again": (
        "UPDATE operations SET status = 'pending', apply_no = NULL, finished_at = NULL, account_version = NULL"
        f" WHERE id = {of(ALICE, 1)}",
        "a finished operation never changes",
    ),
    "a rejected operation is changed": (
        f"UPDATE operations SET rejection = '{{}}' WHERE id = {of(ALICE, 3)}",
        "a finished operation never changes",
    ),
    "a canceled operation is changed": (
        f"UPDATE operations SET cancel_requested = false WHERE id = {of(ALICE, 4)}",
        "a finished operation never changes",
    ),
    "a finished operation is deleted": (f"DELETE FROM operations WHERE id = {of(ALICE, 1)}", "are kept for ever"),
    "a pending operation is deleted": (f"DELETE FROM operations WHERE id = {of(ALICE, 5)}", "are kept for ever"),
    "operations are truncated": ("TRUNCATE operations", "are kept for ever"),
    "a user goes below zero": (
        f"UPDATE accounts SET balance = -1 WHERE id = {ALICES}",
        "accounts_balance_not_negative",
    ),
    "revenue goes below zero": (
        "UPDATE accounts SET balance = -1 WHERE kind = 'revenue' AND lane = 0",
        "accounts_balance_not_negative",
    ),
    "a second operation in one place": (OPERATION % (5, 1), "operations_user_id_seq_key"),
    "an operation in place 0": (OPERATION % (0, 1), "operations_seq_positive"),
    "an operation about nothing": (OPERATION % (6, 0), "operations_amount_positive"),
    "an operation about less than nothing": (OPERATION % (6, -1), "operations_amount_positive"),
    "applied without a number": (
        f"UPDATE operations SET status = 'applied', finished_at = now(), account_version = 4 WHERE id = {of(ALICE, 5)}",
        "operations_finished_has_apply_no",
    ),
    "canceled without a number": (
        f"UPDATE operations SET status = 'canceled', finished_at = now() WHERE id = {of(ALICE, 5)}",
        "operations_finished_has_apply_no",
    ),
    "finished without a moment": (
        f"UPDATE operations SET status = 'failed', apply_no = 99 WHERE id = {of(ALICE, 5)}",
        "operations_finished_has_apply_no",
    ),
    "pending with a number": (
        f"UPDATE operations SET apply_no = 99 WHERE id = {of(ALICE, 5)}",
        "operations_finished_has_apply_no",
    ),
    "rejected without a reason": (FINISH % "'rejected'", "operations_rejected_has_reason"),
    "failed with a reason": (FINISH % "'failed', rejection = '{}'", "operations_rejected_has_reason"),
    "applied without an entry": (FINISH % "'applied'", "operations_applied_has_entry"),
    "an unknown status": (FINISH % "'lost'", "operations_status_known"),
    "fewer than none accepted": (f"UPDATE users SET next_seq = -1 WHERE id = {BOB}", "users_next_seq_not_negative"),
    "fewer than none done": (
        f"UPDATE progress SET done_seq = -1 WHERE user_id = {BOB}",
        "progress_done_seq_not_negative",
    ),
    "a second default account": (
        "INSERT INTO accounts (id, user_id, kind, currency, is_default)"
        f" VALUES (gen_random_uuid(), {ALICE}, 'main', 'USD', true)",
        "accounts_user_default_key",
    ),
    "a second world": (
        "INSERT INTO accounts (id, kind, currency, lane) VALUES (gen_random_uuid(), 'world', 'RUB', 0)",
        "accounts_kind_lane_currency_key",
    ),
    "a world that somebody owns": (
        "INSERT INTO accounts (id, user_id, kind, currency, lane)"
        f" VALUES (gen_random_uuid(), {ALICE}, 'world', 'USD', 0)",
        "accounts_owner_or_lane",
    ),
    "the same name in capitals": (
        "INSERT INTO users (id, username, lane) VALUES (gen_random_uuid(), 'ALICE', 0)",
        "users_username_key",
    ),
}


@pytest.mark.parametrize(("statement", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_the_database_itself_refuses(sound: sa.Engine, statement: str, reason: str):
    with sound.connect() as connection, pytest.raises(sa.exc.DBAPIError, match=reason):
        connection.exec_driver_sql(statement)


def test_what_the_refused_statements_are_like_is_otherwise_allowed(sound: sa.Engine):
    """The same statements with lawful values pass, so that the refusals above are for the reason given."""
    with sound.connect() as connection:
        for statement in (
            OPERATION % (6, 1),
            FINISH % "'rejected', rejection = '{}'",
            f"UPDATE accounts SET balance = 0 WHERE id = {ALICES}",
            f"UPDATE accounts SET balance = -1 WHERE id = {WORLD}",
            f"UPDATE users SET next_seq = 0 WHERE id = {BOB}",
            f"UPDATE progress SET done_seq = 0 WHERE user_id = {BOB}",
        ):
            assert connection.exec_driver_sql(statement).rowcount == 1, statement
        connection.rollback()


def test_reconciling_changes_nothing_and_needs_no_lock(sound: sa.Engine):
    with sound.begin() as connection:
        connection.exec_driver_sql("SELECT FROM accounts FOR UPDATE")
        connection.exec_driver_sql("SELECT FROM users FOR UPDATE")
        assert violations(sound) == []
        connection.rollback()
