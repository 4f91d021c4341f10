"""Vacuums of the queue: its rows live for milliseconds, and each look at a lane has to pass those that are dead.

PostgreSQL's own vacuum comes once a minute at most; by then a lane of a busy system has ten thousand dead entries. So
each process of a worker vacuums after so many operations of its own. Where that fails, PostgreSQL's own still comes.
"""

import time

import sqlalchemy as sa
import structlog

from core.db import autocommit

FINISHED_BETWEEN = 20_000  # operations; their entries fill seven pages of the index in each of sixteen lanes
SHARE_MAX = 0.05  # of the time: what a long report could still see is not removed, and is looked at each time
VACUUM = "VACUUM (SKIP_LOCKED) queue"

log = structlog.get_logger("kassa.worker")


class Vacuums:
    """When a process vacuums. What it drains is told to it."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = autocommit(engine)
        self._finished = 0
        self._not_before = 0.0

    def after(self, finished: int) -> bool:
        """So many operations more are finished. Returns whether it has vacuumed; raises nothing."""
        self._finished += finished
        started = time.monotonic()
        if self._finished < FINISHED_BETWEEN or started < self._not_before:
            return False
        self._finished = 0
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql(VACUUM)
        except sa.exc.SQLAlchemyError as error:
            log.warning("queue_not_vacuumed", error=repr(error))
        ended = time.monotonic()
        self._not_before = ended + (ended - started) / SHARE_MAX
        return True
