"""What the resources work with, made once in each API process."""

from dataclasses import dataclass

import redis
import sqlalchemy as sa

from core import db
from core.doorbell import Doorbell, redis_client
from core.gathering import Gathering
from core.limits import Limits
from core.settings import Settings
from core.waiting import Waiting

# To the database, of each process; requests beyond wait core.db.POOL_WAIT_SECONDS for one.
READERS_MAX = 8
TRANSACTIONS_MAX = 8
WAITERS_MAX = 1_000  # of a process's connections: the rest always serves those who do not wait


@dataclass(frozen=True)
class Dependencies:
    """engine: for transactions; reader: in autocommit, for work of one statement, accepting an operation included."""

    settings: Settings
    engine: sa.Engine
    reader: sa.Engine
    limits: Limits
    gathering: Gathering
    doorbell: Doorbell
    waiting: Waiting
    broker: redis.Redis

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
        )
