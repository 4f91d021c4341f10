"""HTTP/1.1 with one client: llhttp reads, we keep order, time and limits, and send what the application answers.

The requests of a connection are answered one after another. A body is taken from the client when the application reads
it, and not before. docs/decisions/0014-llhttp.md says what this replaces.
"""

import re
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from types import TracebackType
from typing import Any, NamedTuple

import falcon
import gevent
import msgspec
from gunicorn.util import http_date, unquote_to_wsgi_str
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from api.errors import PROBLEM_JSON, problem
from core.errors import Refusal

TARGET_BYTES_MAX = 4 * 1024
HEAD_BYTES_MAX = 16 * 1024  # of a request's target and fields together
FIELD_BYTES = 4  # of a field, besides name and value
PASSED_ON_BYTES_MAX = 64 * 1024  # at a time, either way
READ_BYTES_MAX = 1024  # at a time, where requests begin: many would be as many dicts
CLIENT_PAUSE_SECONDS_MAX = 10  # a client that neither sends nor takes anything for so long is given up
LAST_REQUEST_SECONDS_MAX = 0.5  # for a request that was sent before its client could know that we stop
LINGER_SECONDS_MAX = 1
VERSIONS = ("1.0", "1.1")
CHUNKED = ("chunked", "1.1")
ONCE = {"HTTP_HOST", "CONTENT_TYPE"}  # fields that two readers of two of them could read differently
BODILESS = re.compile("1|204|304")  # statuses whose answers end with their head
ORIGIN = re.compile("^https?://[^/?#]*", re.IGNORECASE)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ENVIRON = {
    "SCRIPT_NAME": "",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


class ClientLeft(OSError):
    """Of the client's connection, or its silence; no other OSError is the client's."""


class Request(NamedTuple):
    """A request whose head is there."""

    environ: dict[str, Any]  # as PEP 3333 has it
    body: "Body"
    keep_alive: bool  # whether the client may send another


class Connection:
    """One client. The methods `on_...` are llhttp's, which calls them while it reads what has come."""

    def __init__(self, worker: Any, listener: Any, client: Any, address: tuple[Any, ...]) -> None:
        self.worker = worker
        self.client = client
        host, port = listener.getsockname()[:2]
        self.environ = ENVIRON | {
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "REMOTE_ADDR": address[0],
            "REMOTE_PORT": str(address[1]),
        }
        self.parser = HttpRequestParser(self)
        self.requests: deque[Request] = deque()  # those that are not answered yet
        self.arriving: Body | None = None  # the body of which more is to come
        self.unparsed = 0  # bytes of it that llhttp leaves to us
        self.unread = b""  # what has come, and llhttp was not given yet
        self.undigested = 0  # bytes that have come since the last head or part of a body
        self.refusal: Refusal | None = None  # of what is no HTTP: nothing that comes after it can be read

    def serve(self) -> None:
        """Answer request after request, until either side ends it."""
        try:
            while self.answer_next():
                pass
            self.linger()
        except OSError as error:
            self.worker.log.debug("the client left: %r", error)
        finally:
            del self.parser, self.arriving  # they refer to us, as requests do: nobody need look for garbage
            self.requests.clear()
            self.client.close()

    def answer_next(self) -> bool:
        """Answer the next request, or what is none. Returns whether there may be another."""
        request = self.next_request()
        if request is not None:
            return self.answer(request)
        if self.refusal:
            self.refuse(self.refusal)
        return False

    def next_request(self) -> Request | None:
        """The next request, as soon as its head is there; None where none will come."""
        if self.requests:
            gevent.sleep(0)  # who sends many at once lets others go between
        else:
            self.client.settimeout(None)
            with BetweenRequests(self.worker):
                while not self.requests and self.receive(READ_BYTES_MAX):
                    pass
            self.client.settimeout(CLIENT_PAUSE_SECONDS_MAX)
        return self.requests.popleft() if self.requests else None

    def receive(self, size: int) -> bool:
        """Read up to `size` bytes of what the client has sent. Returns whether more may come. Raises ClientLeft."""
        if self.refusal:
            return False
        try:
            came = self.unread or self.client.recv(PASSED_ON_BYTES_MAX)
        except OSError as error:
            raise ClientLeft(str(error)) from None
        data, self.unread = came[:size], came[size:]
        self.undigested += len(data)
        try:
            self.parse(data)
        except HttpParserError as error:  # of a callback that refuses, too
            self.refusal = (self.refusal or not_http(str(error))).with_traceback(None)  # which refers to us
        if self.undigested > 2 * HEAD_BYTES_MAX:
            self.refusal = too_large()
        if self.refusal and self.requests and not self.requests[-1].body.is_whole:
            self.requests.pop()  # it is no request, as has turned out
        return bool(data)

    def parse(self, data: bytes) -> None:
        """Have llhttp read. It stops where a client asks for another protocol; none is spoken here, so it goes on."""
        while data:
            if self.unparsed and self.arriving:
                part, data = data[: self.unparsed], data[self.unparsed :]
                self.unparsed -= len(part)
                self.on_body(part)
                if not self.unparsed:
                    self.complete()
                continue
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            else:
                return

    def on_message_begin(self) -> None:
        """A request begins."""
        self.target = b""
        self.fields: dict[str, Any] = {}
        self.room = HEAD_BYTES_MAX

    def on_url(self, part: bytes) -> None:
        """A part of the request's target."""
        self.target += part
        self.room -= len(part)
        if len(self.target) > TARGET_BYTES_MAX:
            self.reject(Refusal("uri_too_long", f"The address of a request has at most {TARGET_BYTES_MAX} bytes here."))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or one that follows a body in chunks, when the application knows its fields already."""
        self.room -= len(name) + len(value) + FIELD_BYTES
        if self.room < 0:
            self.reject(too_large())
        if b"_" in name:  # it would pass for the field with a hyphen
            return
        key, text = environ_key(name), value.decode("latin-1").rstrip(" \t")
        if key in self.fields and key in ONCE:
            self.reject(not_http(f"it has {name.decode()} twice"))
        self.fields[key] = f"{self.fields[key]},{text}" if key in self.fields else text

    def on_headers_complete(self) -> None:
        """The head is there."""
        self.undigested = 0
        version, fields = self.parser.get_http_version(), self.fields
        if version not in VERSIONS:
            self.reject(not_http(f"HTTP/{version} is not spoken here"))
        if "HTTP_TRANSFER_ENCODING" in fields and (fields["HTTP_TRANSFER_ENCODING"].lower(), version) != CHUNKED:
            self.reject(not_http("its Transfer-Encoding is not chunked alone"))
        if fields.get("HTTP_EXPECT", "100-continue").lower() != "100-continue":
            self.reject(Refusal("expectation_failed", "Nothing but 100-continue can be expected here."))
        if self.parser.should_upgrade() and "HTTP_TRANSFER_ENCODING" in fields:
            self.reject(Refusal("length_required", "Send a body with its Content-Length, or ask for no upgrade."))
        path, query = split(self.target.decode("latin-1"))
        self.arriving = Body(self, int(fields.get("CONTENT_LENGTH", 0)), "HTTP_EXPECT" in fields and version != "1.0")
        head = {
            "REQUEST_METHOD": self.parser.get_method().decode(),
            "PATH_INFO": unquote_to_wsgi_str(path) if "%" in path else path,
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": f"HTTP/{version}",
            "wsgi.input": self.arriving,
        }
        self.requests.append(Request(self.environ | fields | head, self.arriving, self.parser.should_keep_alive()))

    def on_body(self, part: bytes) -> None:
        """A part of the body."""
        self.undigested = 0
        if self.arriving:
            self.arriving.take(part)

    def on_message_complete(self) -> None:
        """The request is there, but for the body of one that asks for another protocol."""
        if self.parser.should_upgrade() and self.arriving:
            self.unparsed = self.arriving.missing
        if not self.unparsed:
            self.complete()

    def complete(self) -> None:
        """The body that was arriving is there."""
        if self.arriving:
            self.arriving.is_whole = True
            self.arriving = None

    def reject(self, refusal: Refusal) -> None:
        """Have llhttp stop: this is no request that can be answered."""
        self.refusal = refusal
        raise refusal

    def answer(self, request: Request) -> bool:
        """Send what the application answers to a request. Returns whether there may be another."""
        answer = Answer(self, request)
        try:
            parts = self.worker.wsgi(request.environ, answer.start)
            try:
                return answer.send(parts, keep_alive=request.keep_alive and request.body.is_whole and self.worker.alive)
            finally:
                if hasattr(parts, "close"):
                    parts.close()
        except ClientLeft:
            raise
        except Exception:
            self.worker.log.exception("the application failed")
            if not answer.has_begun:
                self.refuse(Refusal("internal_error", "This is a defect of ours, and has been logged."))
            return False

    def refuse(self, refusal: Refusal) -> None:
        """Answer with a problem, after which nothing more is read."""
        self.worker.log.info("not answered: %s", refusal)
        body = msgspec.json.encode(problem(refusal.code, refusal.detail))
        status = falcon.code_to_http_status(problem(refusal.code, "")["status"])
        fields = [("Content-Type", PROBLEM_JSON), ("Content-Length", str(len(body)))]
        self.client.settimeout(LINGER_SECONDS_MAX)
        self.send(head_of(status, fields, keep_alive=False) + body)

    def send(self, data: bytes) -> None:
        """Send, bit by bit: each has its time. Raises ClientLeft."""
        try:
            for start in range(0, len(data), PASSED_ON_BYTES_MAX):
                self.client.sendall(data[start : start + PASSED_ON_BYTES_MAX])
        except OSError as error:
            raise ClientLeft(str(error)) from None

    def linger(self) -> None:
        """Say that no more will be sent, and read on for a moment: to close on what is unread would cost the client its
        answer (RFC 9112, 9.6).
        """
        self.client.shutdown(socket.SHUT_WR)
        with gevent.Timeout(LINGER_SECONDS_MAX, False):
            while self.client.recv(PASSED_ON_BYTES_MAX):
                pass


class Body:
    """What the application reads of a request's body, its `wsgi.input`."""

    def __init__(self, connection: Connection, length: int, is_held_back: bool) -> None:
        self.connection = connection
        self.missing = length  # bytes that are to come, where that is known
        self.is_held_back = is_held_back  # until the client hears that it may send it
        self.is_whole = False
        self.came = bytearray()  # and was not read yet

    def take(self, part: bytes) -> None:
        """A part has come."""
        self.came += part
        self.missing -= len(part)

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, or all; fewer where the body ends, or where its client breaks off.

        Raises ClientLeft where that pauses for CLIENT_PAUSE_SECONDS_MAX.
        """
        if self.is_held_back and not self.is_whole:
            self.connection.send(CONTINUE)
        self.is_held_back = False
        while not self.is_whole and (size < 0 or len(self.came) < size):
            if not self.connection.receive(max(self.missing, READ_BYTES_MAX)):
                break
        part = bytes(self.came if size < 0 else self.came[:size])
        del self.came[: len(part)]
        return part


class Answer:
    """An answer: its head leaves with the first of its body, so that small ones leave in one piece."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self.connection = connection
        self.environ = request.environ
        self.has_begun = False

    def start(self, status: str, fields: list[tuple[str, str]], _error: Any = None) -> None:
        """PEP 3333's `start_response`, but for the `write` that it keeps for old frameworks."""
        self.status, self.fields = status, fields

    def send(self, parts: Iterable[bytes], *, keep_alive: bool) -> bool:
        """Send everything; where its length is not known before, in chunks, or up to the end of the connection.

        keep_alive: whether the connection may go on. Returns whether it does. Raises ClientLeft.
        """
        fields, status = self.fields, self.status
        has_end = any(name.lower() == "content-length" for name, _ in fields)
        if self.environ["REQUEST_METHOD"] == "HEAD" or BODILESS.match(status):
            parts, has_end = (), True
        chunked = not has_end and self.environ["SERVER_PROTOCOL"] == "HTTP/1.1"
        keep_alive = keep_alive and (has_end or chunked)
        if chunked:
            fields, parts = [*fields, ("Transfer-Encoding", "chunked")], in_chunks(parts)
        head = head_of(status, fields, keep_alive=keep_alive)
        for part in parts:
            data, head = head + part, b""
            self.has_begun = True
            self.connection.send(data)
        if head:
            self.has_begun = True
            self.connection.send(head)
        return keep_alive


class BetweenRequests:
    """A connection without a request, which may be closed: after gunicorn's `keepalive` seconds, or when we stop."""

    def __init__(self, worker: Any) -> None:
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


def head_of(status: str, fields: list[tuple[str, str]], *, keep_alive: bool) -> bytes:
    """The head of an answer. Raises ValueError where a field holds what would end it."""
    connection = "keep-alive" if keep_alive else "close"
    lines = [
        f"HTTP/1.1 {status}\r\nServer: gunicorn\r\nDate: {date(int(time.time()))}\r\nConnection: {connection}\r\n",
        *(f"{name}: {value}\r\n" for name, value in fields),
        "\r\n",
    ]
    head = "".join(lines)
    if {head.count("\r"), head.count("\n")} != {len(fields) + 5} or "\0" in head:
        raise ValueError("a field of the answer holds a line break")
    return head.encode("latin-1")


def in_chunks(parts: Iterable[bytes]) -> Iterable[bytes]:
    """A body in chunks (RFC 9112, 7.1)."""
    for part in parts:
        if part:
            yield b"%x\r\n%b\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


def split(target: str) -> tuple[str, str]:
    """Path and query of a request's target, without the server's name that proxies are sent (RFC 9112, 3.2)."""
    path, _, query = ORIGIN.sub("", target).partition("#")[0].partition("?")
    return path or "/", query


def not_http(why: str) -> Refusal:
    """Of what cannot be read."""
    return Refusal("malformed_request", f"The request is no HTTP/1.1 that is understood here: {why}.")


def too_large() -> Refusal:
    """Of a head, or of what follows a body in chunks."""
    return Refusal("headers_too_large", f"The head of a request has at most {HEAD_BYTES_MAX} bytes here.")


@lru_cache(maxsize=256)
def environ_key(name: bytes) -> str:
    """What PEP 3333 calls a field."""
    key = name.decode("latin-1").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


@lru_cache(maxsize=1)
def date(second: int) -> str:
    """The Date of all answers within a second."""
    return http_date(second)
