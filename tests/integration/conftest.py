"""A bank on a database of the test's own: users, operations, drains; after each test its ledger is reconciled."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
import structlog

from core import db, sessions, settings
from core.acceptance import Accepted, accept
from core.identity import insert_user
from core.operations import Command
from core.reconcile import violations
from tests.conftest import LANES
from worker.drain import Drained, drain

T = TypeVar("T")
GIVEN = {"DATABASE_URL": "postgresql://", "REDIS_URL": "redis://", "SECRET_KEY": "abcdefghijklmnop" * 2}
SETTLE_SECONDS = 10  # for any state to come that a test waits for


# As in production, a traceback is text: the default's coloured ones take longer than a drain has.
structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()])


@dataclass(frozen=True)
class User:
    """A user with a default account in roubles."""

    id: str
    name: str
    lane: int
    account_id: str


class Bank:
    """What the API and the workers would do, called directly."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.autocommit = db.autocommit(engine)
        self._users = 0

    def user(self, name: str = "", lanes: int = 1) -> User:
        """A new user on one of this many lanes."""
        self._users += 1
        name = name or f"user-{self._users}"
        with self.engine.begin() as connection:
            user_id = insert_user(connection, settings.load(GIVEN | {"LANES": str(lanes)}), name, None, None)
        [(lane, account_id)] = self.rows(
            "SELECT u.lane, a.id FROM users u JOIN accounts a ON a.user_id = u.id WHERE u.id = :id", id=user_id
        )
        return User(user_id, name, lane, account_id)

    def session(self, user: User) -> str:
        """The id of the user's first session, begun now."""
        with self.engine.begin() as connection:
            sessions.open_session(connection, settings.load(GIVEN), user.id)
        return str(self.value("SELECT id FROM sessions WHERE user_id = :id", id=user.id))

    def user_on(self, lane: int) -> User:
        """A new user on this very lane."""
        while True:
            user = self.user(lanes=LANES)
            if user.lane == lane:
                return user

    def accept(self, user: User, kind: str = "deposit", amount: int = 1, **fields: Any) -> Accepted:
        """Hand in an operation."""
        command = Command(type=kind, user_id=user.id, requested_by=user.id, amount=amount, **fields)
        with self.autocommit.connect() as connection:
            return accept(connection, command)

    def drain(self, lane: int = 0) -> Drained:
        """Apply all that the lane has pending."""
        return drain(self.engine, lane, seconds=SETTLE_SECONDS)

    def rich(self, amount: int = 1000) -> User:
        """A new user on lane 0 with money, which has been applied."""
        user = self.user()
        self.accept(user, amount=amount)
        assert self.drain().counts == {"applied": 1}
        return user

    def rows(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with self.autocommit.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query), parameters)]

    def value(self, query: str, **parameters: Any) -> Any:
        """The only value of a query."""
        [(value,)] = self.rows(query, **parameters)
        return value

    def execute(self, statement: str, **parameters: Any) -> None:
        """Run a statement, and commit it."""
        with self.autocommit.connect() as connection:
            connection.execute(sa.text(statement), parameters)

    def balance(self, user: User) -> int:
        """The balance of the user's default account."""
        return self.value("SELECT balance FROM accounts WHERE id = :id", id=user.account_id)

    def turn(self, operation_id: str) -> int:
        """The turn of a pending operation."""
        return self.value("SELECT turn FROM queue WHERE operation_id = :id", id=operation_id)

    def statuses(self, user: User) -> list[str]:
        """The statuses of the user's operations in the order of acceptance."""
        return [
            row[0] for row in self.rows("SELECT status FROM operations WHERE user_id = :id ORDER BY seq", id=user.id)
        ]

    def counts(self) -> Counter[str]:
        """How many operations there are by status."""
        return Counter(dict(self.rows("SELECT status, count(*) FROM operations GROUP BY status")))

    @contextmanager
    def held(self, query: str, **parameters: Any) -> Iterator[sa.Connection]:
        """Hold the locks that a query takes, for as long as it takes."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            assert connection.execute(sa.text(query), parameters).all(), "there is nothing to hold"
            yield connection

    def waiting_for_lock(self, application: str) -> list[int]:
        """The backends of an application that wait for a lock."""
        query = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = :application AND wait_event_type = 'Lock'"
        )
        return [row[0] for row in self.rows(query, application=application)]


def until(condition: Callable[[], Any], seconds: float = SETTLE_SECONDS) -> Any:
    """Wait for a state, and return what it is; fails if it does not come."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)
    return found


def aside(work: Callable[[], T]) -> Future[T]:
    """Start work in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@pytest.fixture
def bank(engine: sa.Engine) -> Iterator[Bank]:
    """An empty bank; when the test is over, its ledger reconciles."""
    made = Bank(engine)
    yield made
    assert violations(engine) == []


@pytest.fixture
def other_engine(database_url: str) -> Iterator[sa.Engine]:
    """An engine whose sessions are known as another application's: `kassa-other`."""
    made = db.engine(database_url, "other", 4)
    yield made
    made.dispose()
