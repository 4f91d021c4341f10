"""gunicorn's gevent worker: a connection, be it slow or waiting, holds a few kilobytes and no thread.

gunicorn starts, watches and stops the processes; api/http1.py speaks with the clients.
"""

from types import FrameType
from typing import Any

import gevent
import psycopg2
from gunicorn.workers.ggevent import GeventWorker
from psycogreen.gevent import gevent_wait_callback
from psycopg2.extensions import STATUS_SETUP, set_wait_callback

from api.http1 import BetweenRequests, Connection

CONNECT_SECONDS_MAX = 3  # as core.db.TCP says; libpq keeps to it only where it may block
ANSWER_SECONDS_MAX = 20  # longer than any statement may take (core.db.SESSION)


class Worker(GeventWorker):
    """A GeventWorker that speaks HTTP as api/http1.py does, and for which psycopg2 waits as everything else."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.between_requests: set[BetweenRequests] = set()

    def patch(self) -> None:
        """Have everything that waits, psycopg2 included, let others work meanwhile."""
        super().patch()
        set_wait_callback(wait_for_postgres)

    def handle(self, listener: Any, client: Any, address: tuple[Any, ...]) -> None:
        """Serve a client until the connection ends."""
        Connection(self, listener, client, address).serve()

    def handle_exit(self, signal: int, frame: FrameType | None) -> None:
        """Finish the requests that are under way, and close the connections that have none."""
        super().handle_exit(signal, frame)
        for connection in list(self.between_requests):
            gevent.get_hub().loop.run_callback(connection.close)


def wait_for_postgres(connection: Any) -> None:
    """psycopg2's wait callback: let others work until PostgreSQL answers, but not for ever."""
    seconds = CONNECT_SECONDS_MAX if connection.status == STATUS_SETUP else ANSWER_SECONDS_MAX
    try:
        gevent_wait_callback(connection, timeout=seconds)
    except TimeoutError:
        raise psycopg2.OperationalError(f"PostgreSQL did not answer within {seconds} s") from None
