"""Logging in, sessions and passwords, against a real database: who gets in, who does not, and how often."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import falcon.testing
import msgspec
import pytest
import sqlalchemy as sa

from api.auth import client_address
from core import identity, passwords, sessions, users
from core.attempts import LOGIN_TRIES_PER_ACCOUNT_MAX, LOGIN_TRIES_PER_ADDRESS_MAX
from core.db import autocommit
from core.errors import Refusal
from core.settings import Settings
from tests.conftest import LANES
from tests.integration.conftest import Bank, User, aside, until

SETTINGS = Settings(database_url="postgresql://", redis_url="redis://", secret_key="k" * 32, lanes=LANES)
PASSWORD, OTHER = "correct horse", "battery staple"
PASSWORD_HASH = passwords.hash_password(PASSWORD)
ADDRESS = "192.0.2.1"


@pytest.fixture
def alice(bank: Bank) -> User:
    """A user with a password."""
    user = bank.user("Alice")
    bank.execute("UPDATE users SET password_hash = :hash WHERE id = :id", hash=PASSWORD_HASH, id=user.id)
    return user


def log_in(bank: Bank, name: str = "alice", password: str = PASSWORD, address: str = ADDRESS) -> dict[str, Any]:
    return identity.log_in(bank.engine, SETTINGS, name, password, address)


def outcome(work: Callable[[], Any]) -> str:
    """The code of the refusal, or "fine"."""
    try:
        work()
    except Refusal as refusal:
        return refusal.code
    return "fine"


def caller_of(bank: Bank, tokens: dict[str, Any]) -> identity.Caller:
    """Who a pair of tokens stands for. Raises Refusal invalid_token."""
    with bank.autocommit.connect() as connection:
        return identity.caller(connection, *sessions.read_access_token(SETTINGS, tokens["access_token"]))


def refresh(bank: Bank, tokens: dict[str, Any]) -> dict[str, Any] | None:
    with bank.engine.begin() as connection:
        return sessions.refresh(connection, SETTINGS, tokens["refresh_token"])


@contextmanager
def hashing_held() -> Iterator[None]:
    """Nobody gets a turn at hashing meanwhile."""
    with ExitStack() as held:
        for _ in range(passwords.HASHES_AT_ONCE_MAX):
            held.enter_context(passwords.hashing)
        yield


def test_logging_in(bank: Bank, alice: User):
    tokens = log_in(bank, "aLICE")
    caller = caller_of(bank, tokens)
    assert (caller.id, caller.username, caller.role) == (alice.id, "Alice", "user")
    assert tokens["refresh_expires_in"] == SETTINGS.refresh_token_seconds
    stored = bank.value("SELECT token_hash FROM refresh_tokens")
    assert tokens["refresh_token"].encode() not in bytes(stored)


@pytest.mark.parametrize("name", ["Alice", "nobody", "disabled", "passwordless"])
def test_ten_wrong_guesses_at_any_name_and_no_more(bank: Bank, alice: User, name: str):
    bank.user("passwordless")
    disabled = bank.user("disabled")
    bank.execute(
        "UPDATE users SET disabled_at = now(), password_hash = :hash WHERE id = :id", id=disabled.id, hash=PASSWORD_HASH
    )
    guesses = [outcome(lambda: log_in(bank, name, "wrong")) for _ in range(LOGIN_TRIES_PER_ACCOUNT_MAX + 2)]
    assert guesses == ["invalid_credentials"] * LOGIN_TRIES_PER_ACCOUNT_MAX + ["too_many_tries"] * 2
    assert outcome(lambda: log_in(bank, name.upper(), PASSWORD, "192.0.2.99")) == "too_many_tries"
    bank.execute("UPDATE attempts SET window_ends_at = clock_timestamp()")
    right = outcome(lambda: log_in(bank, name, PASSWORD))
    assert right == ("fine" if name == "Alice" else "invalid_credentials")


def test_a_success_gives_all_tries_back_to_the_account_and_none_to_the_address(bank: Bank, alice: User):
    for _ in range(LOGIN_TRIES_PER_ACCOUNT_MAX - 1):
        assert outcome(lambda: log_in(bank, password="wrong")) == "invalid_credentials"
    log_in(bank)
    assert bank.rows("SELECT key, count FROM attempts") == [(f"login/address/{ADDRESS}", 9)]


def test_an_address_has_its_own_limit_over_all_names(bank: Bank, alice: User):
    assert outcome(lambda: log_in(bank, "first", "wrong")) == "invalid_credentials"
    bank.execute("UPDATE attempts SET count = :count WHERE key LIKE '%address%'", count=LOGIN_TRIES_PER_ADDRESS_MAX - 1)
    assert outcome(lambda: log_in(bank, "second", "wrong")) == "invalid_credentials"
    assert outcome(lambda: log_in(bank, "third", "wrong")) == "too_many_tries"
    assert outcome(lambda: log_in(bank)) == "too_many_tries"
    assert outcome(lambda: log_in(bank, address="192.0.2.2")) == "fine"


def test_a_crowd_of_guesses_gets_ten_and_a_crowd_of_right_ones_gets_in(bank: Bank, alice: User):
    with ThreadPoolExecutor(8) as pool:
        right = Counter(pool.map(lambda _: outcome(lambda: log_in(bank)), range(24)))
        wrong = Counter(pool.map(lambda _: outcome(lambda: log_in(bank, password="wrong")), range(24)))
    assert right == {"fine": 24}
    assert wrong == {"invalid_credentials": 10, "too_many_tries": 14}


def test_a_right_guess_that_a_crowd_overtook_comes_too_late(bank: Bank, alice: User, other_engine: sa.Engine):
    looked = """
SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'kassa-other'
   AND state = 'idle' AND query LIKE '%password_hash%'"""
    with hashing_held():
        guess = aside(lambda: outcome(lambda: identity.log_in(other_engine, SETTINGS, "alice", PASSWORD, ADDRESS)))
        until(lambda: bank.rows(looked))  # it had tries left, and is waiting to be hashed without a connection
        bank.execute("INSERT INTO attempts VALUES ('login/account/alice', 10, clock_timestamp() + interval '1 minute')")
    assert guess.result(10) == "too_many_tries"


def test_beyond_twelve_who_wait_for_a_hash_others_are_sent_away_at_once_and_uncounted(bank: Bank, alice: User):
    with hashing_held():
        waiting = [aside(lambda: outcome(lambda: log_in(bank))) for _ in range(passwords.HASHES_WAITING_MAX)]
        until(lambda: passwords.waiting._value == 0)
        assert outcome(lambda: log_in(bank)) == "busy"
        assert outcome(lambda: log_in(bank, "nobody", "wrong")) == "busy"
        assert outcome(lambda: identity.hash_first_password(bank.engine, PASSWORD, ADDRESS)) == "busy"
        assert not any(found.done() for found in waiting)
        assert bank.rows("SELECT key FROM attempts") == []
    assert [found.result(10) for found in waiting] == ["fine"] * passwords.HASHES_WAITING_MAX
    assert outcome(lambda: log_in(bank)) == "fine"
    assert outcome(lambda: log_in(bank, password="wrong")) == "invalid_credentials"
    assert passwords.waiting._value == passwords.HASHES_WAITING_MAX, "every place was given back"


def test_registrations_are_limited_by_the_clients_address(bank: Bank):
    def register(address: str) -> str:
        return outcome(lambda: identity.hash_first_password(bank.engine, PASSWORD, address))

    assert register(ADDRESS) == "fine"
    bank.execute("UPDATE attempts SET count = :count", count=identity.REGISTRATIONS_PER_ADDRESS_MAX - 1)
    assert [register(ADDRESS) for _ in range(3)] == ["fine", "too_many_tries", "too_many_tries"]
    assert register("192.0.2.2") == "fine"
    bank.execute("UPDATE attempts SET window_ends_at = clock_timestamp()")
    assert register(ADDRESS) == "fine"


@pytest.mark.parametrize("change", ["password_hash = 'another'", "disabled_at = clock_timestamp()"])
def test_a_login_overtaken_by_a_change_of_the_user_opens_no_session(bank: Bank, alice: User, change: str):
    with bank.held("SELECT id FROM users WHERE id = :id FOR UPDATE", id=alice.id) as connection:
        login = aside(lambda: outcome(lambda: log_in(bank)))
        until(lambda: bank.waiting_for_lock("kassa-tests"))
        connection.execute(sa.text(f"UPDATE users SET {change} WHERE id = :id"), {"id": alice.id})
    assert login.result(10) == "invalid_credentials"
    assert bank.rows("SELECT id FROM sessions") == []


def test_a_chain_of_refreshes_is_one_session_that_stays_alive(bank: Bank, alice: User):
    tokens = first = log_in(bank)
    bank.execute("UPDATE sessions SET expires_at = clock_timestamp() + interval '1 minute'")
    for _ in range(3):
        following = refresh(bank, tokens)
        assert following is not None
        assert following["refresh_token"] != tokens["refresh_token"]
        tokens = following
    assert caller_of(bank, tokens).session_id == caller_of(bank, first).session_id
    assert bank.value("SELECT expires_at > clock_timestamp() + interval '29 days' FROM sessions")


def test_a_spent_token_ends_the_session_once_the_grace_is_over(bank: Bank, alice: User):
    first = log_in(bank)
    second = refresh(bank, first)
    again = refresh(bank, first)
    assert second is not None
    assert again is not None, "within the grace"
    bank.execute("UPDATE refresh_tokens SET spent_at = spent_at - interval '11 seconds'")
    assert refresh(bank, first) is None
    for tokens in (first, second, again):
        assert outcome(lambda tokens=tokens: caller_of(bank, tokens)) == "invalid_token"
        assert refresh(bank, tokens) is None


def test_refreshes_at_the_same_instant_all_go_on_with_the_session(bank: Bank, alice: User):
    first = log_in(bank)
    for _ in range(5):
        with ThreadPoolExecutor(8) as pool:
            pairs = list(pool.map(lambda _, tokens=first: refresh(bank, tokens), range(8)))
        assert None not in pairs
        assert len({pair["refresh_token"] for pair in pairs if pair}) == 8
        first = pairs[0] or {}
    assert caller_of(bank, first).id == alice.id


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE users SET disabled_at = clock_timestamp()",
        "UPDATE sessions SET ended_at = clock_timestamp()",
        "UPDATE sessions SET expires_at = clock_timestamp()",
    ],
)
def test_what_ends_a_session_ends_both_tokens(bank: Bank, alice: User, change: str):
    tokens = log_in(bank)
    bank.execute(change)
    assert outcome(lambda: caller_of(bank, tokens)) == "invalid_token"
    assert refresh(bank, tokens) is None


def test_a_refresh_token_that_outlived_its_time_is_dead_though_its_session_goes_on(bank: Bank, alice: User):
    tokens = log_in(bank)
    assert refresh(bank, {"refresh_token": "nonsense"}) is None
    bank.execute("UPDATE refresh_tokens SET created_at = created_at - interval '31 days'")
    assert refresh(bank, tokens) is None
    assert caller_of(bank, tokens).id == alice.id


def test_changing_the_password_ends_the_other_sessions(bank: Bank, alice: User):
    here, there = log_in(bank), log_in(bank)
    caller = caller_of(bank, here)

    def change(current: str | None, new: str) -> str:
        return outcome(lambda: identity.change_password(bank.engine, caller, current, new, ADDRESS))

    assert change(None, OTHER) == "validation_failed"
    assert change("wrong", OTHER) == "invalid_credentials"
    assert caller_of(bank, there).id == alice.id
    assert change(PASSWORD, OTHER) == "fine"
    assert caller_of(bank, here).id == alice.id
    assert outcome(lambda: caller_of(bank, there)) == "invalid_token"
    assert refresh(bank, there) is None
    assert refresh(bank, here) is not None
    assert (outcome(lambda: log_in(bank)), outcome(lambda: log_in(bank, password=OTHER))) == (
        "invalid_credentials",
        "fine",
    )


def test_guesses_at_the_current_password_are_limited_like_logins(bank: Bank, alice: User):
    caller = caller_of(bank, log_in(bank))
    guesses = Counter(
        outcome(lambda: identity.change_password(bank.engine, caller, "wrong", OTHER, ADDRESS)) for _ in range(12)
    )
    assert guesses == {"invalid_credentials": 10, "too_many_tries": 2}
    assert outcome(lambda: log_in(bank)) == "too_many_tries"


def test_a_first_password_needs_no_current_one_and_the_second_does(bank: Bank):
    bob = bank.user("bob")
    with bank.engine.begin() as connection:
        tokens = sessions.open_session(connection, SETTINGS, bob.id)
    caller = caller_of(bank, tokens)
    identity.change_password(bank.engine, caller, None, PASSWORD, ADDRESS)
    assert outcome(lambda: identity.change_password(bank.engine, caller, None, OTHER, ADDRESS)) == "validation_failed"
    assert outcome(lambda: log_in(bank, "bob")) == "fine"


def test_old_sessions_and_tokens_are_forgotten_and_live_ones_kept(bank: Bank, alice: User):
    ended, expired, live = log_in(bank), log_in(bank), log_in(bank)
    long_ago = "clock_timestamp() - interval '25 hours'"
    for tokens, column in ((ended, "ended_at"), (expired, "expires_at")):
        bank.execute(f"UPDATE sessions SET {column} = {long_ago} WHERE id = :id", id=caller_of(bank, tokens).session_id)
    refresh(bank, live)
    bank.execute("UPDATE refresh_tokens SET created_at = created_at - interval '31 days' WHERE spent_at IS NOT NULL")
    with autocommit(bank.engine).connect() as connection:
        assert sessions.forget_old(connection, SETTINGS) == 2
    assert bank.value("SELECT count(*) FROM refresh_tokens") == 1
    assert caller_of(bank, live).id == alice.id


def test_administrators_who_dismiss_each_other_at_once_leave_one(bank: Bank):
    admins = [bank.user(f"admin-{number}") for number in range(6)]
    bank.execute("UPDATE users SET role = 'admin'")

    def dismiss(number: int) -> str:
        change = {"disabled": True} if number % 2 else {"role": "user"}
        with bank.engine.begin() as connection:
            return outcome(lambda: users.change(connection, admins[number].id, change))

    with ThreadPoolExecutor(6) as pool:
        assert Counter(pool.map(dismiss, range(6))) == {"fine": 5, "last_admin": 1}
    assert bank.value("SELECT count(*) FROM users WHERE role = 'admin' AND disabled_at IS NULL") == 1


@pytest.mark.parametrize(
    ("behind_proxy", "named", "address"),
    [(True, "198.51.100.7", "198.51.100.7"), (True, None, "192.0.2.1"), (False, "198.51.100.7", "192.0.2.1")],
)
def test_the_clients_address_is_believed_from_our_proxy_only(behind_proxy: bool, named: str | None, address: str):
    settings = msgspec.structs.replace(SETTINGS, behind_proxy=behind_proxy)
    headers = {"X-Real-IP": named} if named else {}
    request = falcon.testing.create_req(remote_addr="192.0.2.1", headers=headers)
    assert client_address(settings, request) == address
