"""Vacuums of the queue: its rows live for milliseconds, and each look at a lane has to pass those that are dead.

PostgreSQL's own vacuum comes once a minute at most; by then a lane of a busy system has ten thousand dead entries. So
each process of a worker vacuums after so many operations of its own. Where that fails, PostgreSQL's own still comes.
"""

import time
from contextlib import suppress

import sqlalchemy as sa
import structlog

from core.db import autocommit

FINISHED_BETWEEN = 20_000  # operations; their entries fill seven pages of the index in each of sixteen lanes
SECONDS_MAX = 2  # of a vacuum, which takes milliseconds: the task that it is part of has ten
# Of a process's time. What an open transaction may still look at, a long report's perhaps, is not removed: until it
# ends, each vacuum reads all of that in vain.
SHARE_MAX = 0.05
VACUUM = "VACUUM (SKIP_LOCKED) queue"

log = structlog.get_logger("kassa.worker")


class Vacuums:
    """When a process vacuums. It is told what its drains have finished."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = autocommit(engine)
        self._finished = 0
        self._not_before = 0.0  # monotonic: by then those before have had their share of the time

    def after(self, finished: int) -> bool:
        """So many operations more are finished. Returns whether it has vacuumed, or somebody else is at it."""
        self._finished += finished
        started = time.monotonic()
        if self._finished < FINISHED_BETWEEN or started < self._not_before:
            return False
        self._finished = 0
        try:
            self._vacuum()
        except sa.exc.SQLAlchemyError as error:
            log.warning("queue_not_vacuumed", error=repr(error))
            return False
        finally:
            ended = time.monotonic()
            self._not_before = ended + (ended - started) / SHARE_MAX
        return True

    def _vacuum(self) -> None:
        with self._engine.connect() as connection:
            connection.exec_driver_sql(f"SET statement_timeout = '{SECONDS_MAX}s'")
            try:
                connection.exec_driver_sql(VACUUM)
            finally:
                with suppress(sa.exc.SQLAlchemyError):  # a connection that is lost takes its settings along
                    connection.exec_driver_sql("RESET statement_timeout")
