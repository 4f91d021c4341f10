"""Step 7 of the story: clients that wait are told after the commit.

One thread in each process listens to what drains tell with their commits (`core/notices.py`), and hands it to whoever
waits for it. That is a hint, as a bell is: a look at the database every quarter of a second is the guarantee.
"""

import select
import threading
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from core import notices, views
from core.notices import Finished

LOOK_SECONDS = 0.25
RECENT_MAX = 1_000  # finished operations are remembered: what was accepted a moment ago may be among them
PAUSE_AFTER_ERROR_SECONDS = 0.5

log = structlog.get_logger("kassa.waiting")
Outcome = tuple[Finished, datetime]


class Waiting:
    """Wakes whoever waits for an operation to finish."""

    def __init__(self, engine: sa.Engine, waiters_max: int) -> None:
        """engine: in autocommit. waiters_max: how many may wait at once; the others are not kept."""
        self._engine = engine
        self._slots = threading.BoundedSemaphore(waiters_max)
        self._waiters: dict[str, list[Waiter]] = {}
        self._recent: dict[str, Outcome] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def until_finished(self, operation_id: str, seconds: float) -> Outcome | None:
        """What has become of it, and when. None when `seconds` have passed, or at once if too many wait."""
        if seconds <= 0 or not self._slots.acquire(blocking=False):
            return None
        waiter = Waiter()
        try:
            if not self._enter(operation_id, waiter):
                waiter.event.wait(seconds)
            return waiter.outcome
        finally:
            self._leave(operation_id, waiter)
            self._slots.release()

    def _enter(self, operation_id: str, waiter: "Waiter") -> bool:
        """Returns whether its outcome is there already."""
        with self._lock:
            waiter.outcome = self._recent.get(operation_id)
            self._waiters.setdefault(operation_id, []).append(waiter)
            if self._thread is None and waiter.outcome is None:
                self._thread = threading.Thread(target=self._run_forever, name="waiting", daemon=True)
                self._thread.start()
            return waiter.outcome is not None

    def _leave(self, operation_id: str, waiter: "Waiter") -> None:
        with self._lock:
            waiters = self._waiters[operation_id]
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[operation_id]

    def _run_forever(self) -> None:
        while True:
            try:
                with self._engine.connect() as connection:
                    self._listen(connection)
            except Exception as error:  # the database is away: those who wait look for themselves when time is up
                log.warning("waiting_interrupted", error=repr(error))
                time.sleep(PAUSE_AFTER_ERROR_SECONDS)

    def _listen(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"LISTEN {notices.CHANNEL}")
        database: Any = connection.connection.dbapi_connection
        poll = select.poll()
        poll.register(database.fileno(), select.POLLIN)
        next_look = 0.0
        while True:
            complete, now = self.hear(database.notifies), time.monotonic()
            if now >= next_look or not complete:
                self.look(connection)
                next_look = now + LOOK_SECONDS
            elif poll.poll(1000 * (next_look - now)):
                database.poll()

    def hear(self, notifications: list[Any]) -> bool:
        """Pass on what drains have told. Returns False if there is more than they could tell."""
        complete = True
        while notifications:
            try:
                notice = notices.read(notifications.pop(0).payload)
            except msgspec.MsgspecError:  # a worker of another version
                complete = False
            else:
                self._tell([(finished, notice.finished_at) for finished in notice.finished or ()])
                complete = complete and notice.finished is not None
        return complete

    def look(self, connection: sa.Connection) -> None:
        """Tell all whose operation is finished, whatever was heard of it."""
        with self._lock:
            ids = list(self._waiters)
        if ids:
            self._tell(views.find_finished(connection, ids))

    def _tell(self, outcomes: Iterable[Outcome]) -> None:
        with self._lock:
            for outcome in outcomes:
                operation_id = outcome[0].id
                self._recent[operation_id] = outcome
                for waiter in self._waiters.get(operation_id, ()):
                    waiter.outcome = outcome
                    waiter.event.set()
            while len(self._recent) > RECENT_MAX:
                del self._recent[next(iter(self._recent))]


class Waiter:
    """One who waits, and the operation's outcome once it is there."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.outcome: Outcome | None = None
