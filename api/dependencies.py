"""What the resources work with, made once in each API process."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis
import sqlalchemy as sa

from core import db, views
from core.doorbell import Doorbell, redis_client
from core.gathering import Gathering
from core.limits import Limits
from core.settings import Settings
from core.together import Together
from core.views import Asked
from core.waiting import Waiting

# To the database, of each process; requests beyond wait core.db.POOL_WAIT_SECONDS for one.
READERS_MAX = 8
TRANSACTIONS_MAX = 8
READ_TOGETHER_MAX = 64
WAITERS_MAX = 1_000  # of a process's connections: the rest always serves those who do not wait


@dataclass(frozen=True)
class Dependencies:
    """engine: for transactions; reader: in autocommit, for work of one statement, accepting an operation included;
    accounts, operations: what is read of them.
    """

    settings: Settings
    engine: sa.Engine
    reader: sa.Engine
    limits: Limits
    gathering: Gathering
    doorbell: Doorbell
    waiting: Waiting
    broker: redis.Redis
    accounts: Together[Asked, Any]
    operations: Together[Asked, Any]

    @classmethod
    def make(cls, settings: Settings) -> "Dependencies":
        """Connect nothing yet, but have everything ready to."""
        listener = db.autocommit_engine(settings.database_url, "api-waiting", 1, settings.api_role)
        reader = db.autocommit_engine(settings.database_url, "api", READERS_MAX, settings.api_role)
        engine = db.engine(settings.database_url, "api", TRANSACTIONS_MAX, role=settings.api_role)
        limits = Limits(
            reader,
            engine,
            user_pending=settings.user_pending_max,
            pending=settings.pending_max,
            pending_seconds=settings.pending_seconds_max,
        )
        return cls(
            settings=settings,
            engine=engine,
            reader=reader,
            limits=limits,
            gathering=Gathering(reader, limits),
            doorbell=Doorbell(settings.redis_url, settings.broker),
            waiting=Waiting(listener, WAITERS_MAX),
            broker=redis_client(settings.redis_url),
            accounts=reading_together(reader, views.find_accounts_for),
            operations=reading_together(reader, views.find_operations_for),
        )


def reading_together(
    reader: sa.Engine, find: Callable[[sa.Connection, Sequence[Asked]], Sequence[Any]]
) -> Together[Asked, Any]:
    """What clients ask for most, read for several of them in one round trip."""

    def find_all(asked: Sequence[Asked]) -> Sequence[Any]:
        with reader.connect() as connection:
            return find(connection, asked)

    def find_all_in_any_case(asked: Sequence[Asked]) -> Sequence[Any]:
        """Where a connection is lost, once more by another: many wait for it."""
        started = time.monotonic()
        try:
            return find_all(asked)
        except sa.exc.DBAPIError as error:
            if not db.is_connection_lost(error) or time.monotonic() - started > db.POOL_WAIT_SECONDS:
                raise
        return find_all(asked)

    return Together(find_all_in_any_case, READ_TOGETHER_MAX)
