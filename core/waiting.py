"""Step 7 of the story: clients that wait are told after the commit.

One thread in each process listens to what drains tell with their commits (`core/notices.py`), and hands it to whoever
waits for it. That is a hint, as a bell is: a look at the database every quarter of a second is the guarantee.
"""

import select
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from core import notices, views
from core.notices import Finished

LOOK_SECONDS = 0.25
LOOK_AGAIN_SECONDS = 0.02  # for who is about to wait for something of which a notice could not tell
RECENT_MAX = 1_000  # finished operations are remembered: what was accepted a moment ago may be among them
PAUSE_AFTER_ERROR_SECONDS = 0.5

log = structlog.get_logger("kassa.waiting")


class Waiting:
    """Wakes whoever waits for an operation to finish."""

    def __init__(self, engine: sa.Engine, waiters_max: int) -> None:
        """engine: in autocommit. waiters_max: how many may wait at once; the others are not kept."""
        self._engine = engine
        self._waiters_max = waiters_max
        self._waiting = 0
        self._waiters: dict[str, list[Waiter]] = {}
        self._recent: OrderedDict[str, Finished] = OrderedDict()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def until_finished(self, operation_id: str, seconds: float) -> Finished | None:
        """What has become of the operation. None when `seconds` have passed, or at once if too many wait."""
        if recent := self._recent.get(operation_id):
            return recent
        waiter = Waiter()
        if seconds <= 0 or not self._enter(operation_id, waiter):
            return None
        try:
            waiter.event.wait(seconds)
            return waiter.finished
        finally:
            self._leave(operation_id, waiter)

    def _enter(self, operation_id: str, waiter: "Waiter") -> bool:
        """Returns False where too many wait."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run_forever, name="waiting", daemon=True)
                self._thread.start()
            if self._waiting == self._waiters_max:
                return False
            if recent := self._recent.get(operation_id):  # it has just been told
                waiter.tell(recent)
            self._waiting += 1
            self._waiters.setdefault(operation_id, []).append(waiter)
            return True

    def _leave(self, operation_id: str, waiter: "Waiter") -> None:
        with self._lock:
            self._waiting -= 1
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
            complete = self.hear(database.notifies)
            left = next_look - time.monotonic()
            if left <= 0 or not complete:
                self.look(connection)
                next_look = time.monotonic() + (LOOK_SECONDS if complete else LOOK_AGAIN_SECONDS)
            elif poll.poll(1000 * left):
                database.poll()

    def hear(self, notifications: list[Any]) -> bool:
        """Pass on what drains have told. Returns False if there is more than they could tell."""
        complete = True
        while notifications:
            try:
                finished = notices.read(notifications.pop(0).payload)
            except msgspec.MsgspecError as error:  # a worker of another version
                log.info("notice_not_understood", error=repr(error))
                finished = None
            self._tell(finished or ())
            complete = complete and finished is not None
        return complete

    def look(self, connection: sa.Connection) -> None:
        """Tell all whose operation is finished, whatever was heard of it."""
        with self._lock:
            ids = list(self._waiters)
        if ids:
            self._tell(views.find_finished(connection, ids))

    def _tell(self, finished: Iterable[Finished]) -> None:
        with self._lock:
            for each in finished:
                self._recent[each.id] = each
                for waiter in self._waiters.get(each.id, ()):
                    waiter.tell(each)
            while len(self._recent) > RECENT_MAX:
                self._recent.popitem(last=False)


class Waiter:
    """One who waits, and what has become of the operation once that is known."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.finished: Finished | None = None

    def tell(self, finished: Finished) -> None:
        """Wake them up."""
        self.finished = finished
        self.event.set()
