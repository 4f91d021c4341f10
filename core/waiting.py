"""Step 7 of the story: clients that wait are told after the commit.

One thread in each process waits for all of them, and reads in one statement what has become of their operations.
PostgreSQL's notification, which a drain's commit sends, is the hint; a look every quarter of a second is the guarantee.
"""

import contextlib
import select
import socket
import threading
import time
from typing import Any

import sqlalchemy as sa
import structlog

from core import views
from core.ledger import FINISHED_CHANNEL

LOOK_SECONDS = 0.25
FIRST_LOOK_SECONDS = 0.02  # for who has come since the last look: the operation may be finished already
PAUSE_AFTER_ERROR_SECONDS = 0.5

log = structlog.get_logger("kassa.waiting")


class Waiting:
    """Wakes whoever waits for an operation to finish."""

    def __init__(self, engine: sa.Engine, waiters_max: int) -> None:
        """engine: in autocommit. waiters_max: how many may wait at once; the others are not kept."""
        self._engine = engine
        self._slots = threading.BoundedSemaphore(waiters_max)
        self._waiters: dict[str, list[Waiter]] = {}
        self._newcomers = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._knock, self._door = socket.socketpair()
        self._knock.setblocking(False)

    def until_finished(self, operation_id: str, seconds: float) -> Any:
        """What `views.find_outcomes` tells of it. None when `seconds` have passed, or at once if too many wait."""
        if seconds <= 0 or not self._slots.acquire(blocking=False):
            return None
        waiter = Waiter()
        try:
            self._enter(operation_id, waiter)
            waiter.event.wait(seconds)
            return waiter.outcome
        finally:
            self._leave(operation_id, waiter)
            self._slots.release()

    def _enter(self, operation_id: str, waiter: "Waiter") -> None:
        with self._lock:
            self._waiters.setdefault(operation_id, []).append(waiter)
            knocked, self._newcomers = self._newcomers, True
            if self._thread is None:
                self._thread = threading.Thread(target=self._run_forever, name="waiting", daemon=True)
                self._thread.start()
        if not knocked:
            with contextlib.suppress(BlockingIOError):  # a full socket means that it has been knocked already
                self._knock.send(b".")

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
        connection.exec_driver_sql(f"LISTEN {FINISHED_CHANNEL}")
        database: Any = connection.connection.dbapi_connection
        poll = select.poll()
        poll.register(database.fileno(), select.POLLIN)
        poll.register(self._door.fileno(), select.POLLIN)
        while True:
            waiting = self.run_once(connection)
            if database.notifies:  # it came during that look, and will not make the socket readable again
                database.notifies.clear()
                continue
            ready = {number for number, _ in poll.poll(LOOK_SECONDS * 1000 if waiting else None)}
            if ready == {self._door.fileno()}:
                self._door.recv(4096)
                ready = {number for number, _ in poll.poll(FIRST_LOOK_SECONDS * 1000)}
            if database.fileno() in ready:
                database.poll()
                database.notifies.clear()

    def run_once(self, connection: sa.Connection) -> int:
        """Wake all whose operation is finished. Returns how many operations are still waited for."""
        with self._lock:
            ids = list(self._waiters)
            self._newcomers = False
        outcomes = views.find_outcomes(connection, ids) if ids else []
        with self._lock:
            for outcome in outcomes:
                for waiter in self._waiters.get(outcome.id, []):
                    waiter.outcome = outcome
                    waiter.event.set()
        return len(ids) - len(outcomes)


class Waiter:
    """One who waits, and the operation's outcome once it is there."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.outcome: Any = None
