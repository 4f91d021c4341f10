"""gunicorn's gevent worker: a connection, be it slow or waiting, holds a few kilobytes and no thread.

What is no HTTP at all is answered with a problem document like everything else.
"""

import http
import socket
from types import FrameType, TracebackType
from typing import Any

import gevent
import msgspec
import psycopg2
from gunicorn import glogging
from gunicorn.http import errors as parsing
from gunicorn.util import write_nonblock
from gunicorn.workers.ggevent import GeventWorker
from psycogreen.gevent import gevent_wait_callback
from psycopg2.extensions import STATUS_SETUP, set_wait_callback

from api.errors import PROBLEM_JSON, STATUS_CODES, problem

CLIENT_PAUSE_SECONDS_MAX = 10  # a client that neither sends nor takes anything for so long is given up
LINGER_SECONDS_MAX = 1
LAST_REQUEST_SECONDS_MAX = 0.5  # for a request that was sent before its client could know that we stop
CONNECT_SECONDS_MAX = 3  # as core.db.TCP says; libpq keeps to it only where it may block
ANSWER_SECONDS_MAX = 20  # longer than any statement may take (core.db.SESSION)

STATUSES: dict[type[Exception], int] = {
    parsing.LimitRequestLine: 414,
    parsing.LimitRequestHeaders: 431,
    parsing.ExpectationFailed: 417,
}


class Logger(glogging.Logger):
    """gunicorn's own log without its access log: api/middleware.py says what became of each request."""

    def access(self, *_what: Any) -> None:
        """Nothing."""


class Worker(GeventWorker):
    """A GeventWorker whose refusals are `application/problem+json`, and never a 5xx for what a client sent."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.between_requests: set[BetweenRequests] = set()

    def patch(self) -> None:
        """Have everything that waits, psycopg2 included, let others work meanwhile."""
        super().patch()
        set_wait_callback(wait_for_postgres)

    def timeout_ctx(self) -> "BetweenRequests":
        """While a connection waits for its next request, and until that request's head is there."""
        return BetweenRequests(self)

    def handle_request(self, listener_name: Any, request: Any, client: Any, address: Any) -> None:
        """Serve a request, in which the client may not pause for longer than CLIENT_PAUSE_SECONDS_MAX."""
        client.settimeout(CLIENT_PAUSE_SECONDS_MAX)
        together = HeadWithBody(client)
        try:
            super().handle_request(listener_name, request, together, address)
        finally:
            together.flush()
        client.settimeout(None)

    def handle_exit(self, signal: int, frame: FrameType | None) -> None:
        """Finish the requests that are under way, and close the connections that have none."""
        super().handle_exit(signal, frame)
        for connection in list(self.between_requests):
            gevent.get_hub().loop.run_callback(connection.close)

    def handle_error(self, request: Any, client: Any, address: Any, error: BaseException) -> None:
        """Answer a request that could not be parsed, and have the connection closed."""
        if not isinstance(error, parsing.ParseException):
            super().handle_error(request, client, address, error)
            return
        status = STATUSES.get(type(error), 400)
        self.log.info("not HTTP: %s", type(error).__name__)
        detail = f"The request is no HTTP that is understood here ({type(error).__name__})."
        body = msgspec.json.encode(problem(STATUS_CODES[status], detail))
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nConnection: close\r\n"
            f"Content-Type: {PROBLEM_JSON}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            write_nonblock(client, head.encode() + body)
            client.shutdown(socket.SHUT_WR)
            with gevent.Timeout(
                LINGER_SECONDS_MAX, False
            ):  # closing on what is unread would cost the client its answer
                while client.recv(65536):
                    pass
        except OSError:
            self.log.debug("the client left before its answer")


class HeadWithBody:
    """A client's socket for one response: its head, which gunicorn sends first, leaves with the first of its body."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.head: bytes | None = None  # as long as it waits; empty once it has left

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def sendall(self, data: bytes) -> None:
        """Hold the head back; send everything else, after the head."""
        if self.head is None:
            self.head = data
            return
        head, self.head = self.head, b""  # before it is sent: if that breaks off, no head may follow
        self.client.sendall(head + data)

    def sendfile(self, *what: Any, **named: Any) -> Any:
        """Send the head, and after it a file."""
        self.flush()
        return self.client.sendfile(*what, **named)

    def flush(self) -> None:
        """Send the head of a response that has no body, or has one that is not sent from here."""
        if self.head:
            self.sendall(b"")

    def close(self) -> None:
        """The response has failed: nothing more is to be sent."""
        self.head = b""
        self.client.close()


class BetweenRequests:
    """A connection without a request, which may be closed: after gunicorn's `keepalive` seconds, or when we stop."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.greenlet = gevent.getcurrent()
        self.timeout = gevent.Timeout(worker.cfg.keepalive if worker.alive else LAST_REQUEST_SECONDS_MAX)

    def __enter__(self) -> None:
        self.worker.between_requests.add(self)
        self.timeout.start()

    def close(self) -> None:
        """From the hub: end the connection, unless a request has begun meanwhile."""
        if self in self.worker.between_requests:
            self.greenlet.throw(gevent.GreenletExit)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self.timeout.cancel()
        self.worker.between_requests.discard(self)
        return error is self.timeout or isinstance(error, gevent.GreenletExit)


def wait_for_postgres(connection: Any) -> None:
    """psycopg2's wait callback: let others work until PostgreSQL answers, but not for ever."""
    seconds = CONNECT_SECONDS_MAX if connection.status == STATUS_SETUP else ANSWER_SECONDS_MAX
    try:
        gevent_wait_callback(connection, timeout=seconds)
    except TimeoutError:
        raise psycopg2.OperationalError(f"PostgreSQL did not answer within {seconds} s") from None
