"""What happens around every request: an id, one log line, and counts."""

import contextlib
import re
import time
from functools import cache
from typing import Any

import falcon
import structlog

from core.ids import new_id
from core.metrics import REQUEST_SECONDS, REQUESTS

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
DISCARDED_BYTES_MAX = 8 * 1024 * 1024  # what nginx lets through

log = structlog.get_logger("kassa.api")
requests_of, seconds_of = cache(REQUESTS.labels), cache(REQUEST_SECONDS.labels)


def discard_body(request: falcon.Request) -> None:
    """Read what is left of a body that was refused unread, so that the connection can go on; but for one whose client
    waits to be told whether to send it.
    """
    small = (request.content_length or 0) <= DISCARDED_BYTES_MAX
    if not request.bounded_stream.eof and small and not request.get_header("Expect"):
        with contextlib.suppress(OSError):
            request.bounded_stream.exhaust()


class RequestLog:
    """Gives each request an id (the client's X-Request-Id, if it is a plain one) and says what became of it."""

    def process_request(self, request: falcon.Request, _response: falcon.Response) -> None:
        """Bind the id to every log line of this request."""
        given = request.get_header("X-Request-Id") or ""
        request.context.request_id = given if REQUEST_ID.fullmatch(given) else new_id()
        request.context.started = time.perf_counter()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request.context.request_id)

    def process_response(
        self, request: falcon.Request, response: falcon.Response, _resource: Any, _succeeded: bool
    ) -> None:
        """Say what became of the request."""
        discard_body(request)
        seconds = time.perf_counter() - request.context.started
        response.set_header("X-Request-Id", request.context.request_id)
        route = request.uri_template or "(none)"
        method = request.method if request.method in falcon.HTTP_METHODS else "(other)"
        requests_of(method, route, response.status_code).inc()
        seconds_of(route).observe(seconds)
        log.info(
            "request",
            method=request.method,
            path=request.path,
            status=response.status_code,
            milliseconds=round(seconds * 1000, 2),
        )
