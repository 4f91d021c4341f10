"""What the resources work with, made once in each API process."""

from dataclasses import dataclass

import redis
import sqlalchemy as sa

from core import db
from core.doorbell import Doorbell, redis_client
from core.settings import Settings
from core.waiting import Waiting

CONNECTIONS_MAX = 12  # of a process; requests beyond wait core.db.POOL_WAIT_SECONDS for one
WAITERS_MAX = 48  # of a process's 64 threads: the rest always answer those who do not wait


@dataclass(frozen=True)
class Dependencies:
    """engine: for transactions; reader: the same pool in autocommit, for work of one statement."""

    settings: Settings
    engine: sa.Engine
    reader: sa.Engine
    doorbell: Doorbell
    waiting: Waiting
    broker: redis.Redis

    @classmethod
    def make(cls, settings: Settings) -> "Dependencies":
        """Connect nothing yet, but have everything ready to."""
        engine = db.engine(settings.database_url, "api", CONNECTIONS_MAX)
        listener = db.autocommit(db.engine(settings.database_url, "api-waiting", 1))
        return cls(
            settings=settings,
            engine=engine,
            reader=db.autocommit(engine),
            doorbell=Doorbell(settings.redis_url),
            waiting=Waiting(listener, WAITERS_MAX),
            broker=redis_client(settings.redis_url),
        )
