"""gunicorn's threaded worker, answering what is no HTTP at all with a problem document like everything else."""

import http
import socket
import struct
from typing import Any

import msgspec
from gunicorn.http import errors as parsing
from gunicorn.util import write_nonblock
from gunicorn.workers.gthread import ThreadWorker

from api.errors import PROBLEM_JSON, STATUS_CODES, problem

CLIENT_PAUSE_SECONDS_MAX = 10  # a client that sends nothing for so long gives its thread back
CLIENT_PAUSE = struct.pack("ll", CLIENT_PAUSE_SECONDS_MAX, 0)  # a timeval

STATUSES: dict[type[Exception], int] = {
    parsing.LimitRequestLine: 414,
    parsing.LimitRequestHeaders: 431,
    parsing.ExpectationFailed: 417,
}


class Worker(ThreadWorker):
    """A ThreadWorker whose refusals are `application/problem+json`, and never a 5xx for what a client sent."""

    def handle(self, connection: Any) -> Any:
        """Serve a connection, whose client may not pause for longer than CLIENT_PAUSE_SECONDS_MAX in a request."""
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, CLIENT_PAUSE)
        return super().handle(connection)

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
        except OSError:
            self.log.debug("the client left before its answer")
