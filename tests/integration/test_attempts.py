"""Counted tries: no more than the limit in a window, whatever crowd comes, and whatever becomes of the request."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from core import attempts
from core.attempts import Limit, Tries
from core.db import autocommit
from core.errors import Refusal

LIMIT = Limit("test", 3, 60)
WIDER = Limit("wider", 30, 600)


@pytest.fixture
def connection(engine: sa.Engine):
    with autocommit(engine).connect() as made:
        yield made


def rows(connection: sa.Connection) -> dict[str, int]:
    """All counts by key."""
    return dict(tuple(row) for row in connection.execute(sa.text("SELECT key, count FROM attempts")))


def end_windows(connection: sa.Connection) -> None:
    """As if all windows were over."""
    connection.execute(sa.text("UPDATE attempts SET window_ends_at = clock_timestamp() - interval '1 second'"))


def test_beyond_the_limit_is_refused_until_the_window_ends(connection: sa.Connection):
    alice = Tries(LIMIT, "alice")
    for _ in range(3):
        attempts.require_left(connection, [alice])
        attempts.count(connection, [alice])
    for refused in (attempts.require_left, attempts.count):
        with pytest.raises(Refusal) as refusal:
            refused(connection, [alice])
        assert refusal.value.code == "too_many_tries"
        assert 50 <= refusal.value.facts["retry_after_seconds"] <= 60
    attempts.require_left(connection, [Tries(LIMIT, "bob"), Tries(WIDER, "alice")])
    end_windows(connection)
    attempts.require_left(connection, [alice])
    attempts.count(connection, [alice])
    assert rows(connection) == {"test/alice": 1}, "a new window, counted from the start"


def test_a_window_is_not_prolonged_by_tries(connection: sa.Connection):
    attempts.count(connection, [Tries(LIMIT, "alice")])
    before = connection.execute(sa.text("SELECT window_ends_at FROM attempts")).scalar_one()
    attempts.count(connection, [Tries(LIMIT, "alice")])
    assert connection.execute(sa.text("SELECT window_ends_at FROM attempts")).scalar_one() == before


def test_one_used_up_limit_of_several_refuses_for_the_longest_of_the_waits(connection: sa.Connection):
    both = [Tries(LIMIT, "alice"), Tries(WIDER, "192.0.2.1")]
    for _ in range(3):
        attempts.count(connection, both)
    with pytest.raises(Refusal):
        attempts.require_left(connection, list(reversed(both)))
    with pytest.raises(Refusal):
        attempts.count(connection, both)
    assert rows(connection) == {"test/alice": 4, "wider/192.0.2.1": 4}, "each was counted"
    connection.execute(sa.text("UPDATE attempts SET count = 30"))
    with pytest.raises(Refusal) as refusal:
        attempts.count(connection, both)
    assert refusal.value.facts["retry_after_seconds"] > 60


def test_capitals_and_length_make_no_other_name(connection: sa.Connection):
    for name in ("alice", "ALICE", "aLiCe"):
        attempts.count(connection, [Tries(LIMIT, name)])
    assert rows(connection) == {"test/alice": 3}
    for end in ("", "x", "y" * 1_000_000):
        attempts.count(connection, [Tries(LIMIT, "\u00e9" * 254 + end)])
    [long] = rows(connection).keys() - {"test/alice"}
    assert len(long) == len("test/") + 254


def test_a_crowd_gets_exactly_the_limit(engine: sa.Engine):
    def attempt(_: int) -> bool:
        try:
            with autocommit(engine).connect() as connection:
                attempts.count(connection, [Tries(WIDER, "alice")])
        except Refusal:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(100))) == WIDER.tries_max


def test_whoever_was_right_begins_anew_alone(connection: sa.Connection):
    attempts.count(connection, [Tries(LIMIT, "alice"), Tries(LIMIT, "bob"), Tries(WIDER, "alice")])
    attempts.forget(connection, Tries(LIMIT, "ALICE"))
    assert rows(connection) == {"test/bob": 1, "wider/alice": 1}


def test_only_windows_that_have_ended_are_forgotten(connection: sa.Connection):
    attempts.count(connection, [Tries(LIMIT, "old")])
    end_windows(connection)
    attempts.count(connection, [Tries(LIMIT, "new")])
    assert attempts.forget_ended(connection) == 1
    assert rows(connection) == {"test/new": 1}


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nonsense", "nonsense"),
        ("", ""),
    ],
)
def test_an_ipv6_client_is_counted_by_its_network(address: str, network: str):
    assert attempts.network_of(address) == network
