"""Step 7 of the story: clients that wait are told after the commit.

One thread in each process waits for all of them. PostgreSQL's notification, which a drain's commit sends, is the hint;
a look every quarter of a second is the guarantee.
"""

import contextlib
import select
import socket
import threading
import time
from typing import Any

import sqlalchemy as sa
import structlog

from core.db import array
from core.ledger import FINISHED_CHANNEL

LOOK_SECONDS = 0.25
PAUSE_AFTER_ERROR_SECONDS = 0.5

log = structlog.get_logger("kassa.waiting")


class Waiting:
    """Wakes whoever waits for an operation to finish."""

    def __init__(self, engine: sa.Engine, waiters_max: int) -> None:
        """engine: in autocommit. waiters_max: how many threads may wait at once; the others are not kept."""
        self._engine = engine
        self._slots = threading.BoundedSemaphore(waiters_max)
        self._waiters: dict[str, list[threading.Event]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._knock, self._door = socket.socketpair()
        self._knock.setblocking(False)

    def until_finished(self, operation_id: str, seconds: float) -> None:
        """Return when the operation is finished, or `seconds` have passed, or at once if too many wait already.

        The operation must be looked at afterwards: returning says nothing about its outcome.
        """
        if seconds <= 0 or not self._slots.acquire(blocking=False):
            return
        event = threading.Event()
        try:
            self._enter(operation_id, event)
            event.wait(seconds)
        finally:
            self._leave(operation_id, event)
            self._slots.release()

    def _enter(self, operation_id: str, event: threading.Event) -> None:
        with self._lock:
            self._waiters.setdefault(operation_id, []).append(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run_forever, name="waiting", daemon=True)
                self._thread.start()
        with contextlib.suppress(BlockingIOError):  # a full socket means that it has been knocked already
            self._knock.send(b".")

    def _leave(self, operation_id: str, event: threading.Event) -> None:
        with self._lock:
            events = self._waiters[operation_id]
            events.remove(event)
            if not events:
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
            if self._door.fileno() in ready:
                self._door.recv(4096)
            if database.fileno() in ready:
                database.poll()
                database.notifies.clear()

    def run_once(self, connection: sa.Connection) -> int:
        """Wake all whose operation is finished. Returns how many operations are still waited for."""
        with self._lock:
            ids = list(self._waiters)
        if not ids:
            return 0
        query = "SELECT id FROM operations WHERE id = ANY (%s::uuid[]) AND status <> 'pending'"
        finished = list(connection.exec_driver_sql(query, (array(ids),)).scalars())
        with self._lock:
            for operation_id in finished:
                for event in self._waiters.get(operation_id, []):
                    event.set()
        return len(ids) - len(finished)
