"""How the API's worker speaks HTTP: a real gunicorn, with the API's settings, serves a small application of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.http1 import CLIENT_PAUSE_SECONDS_MAX, HEAD_BYTES_MAX, TARGET_BYTES_MAX
from cli.servers import LOOPBACK, free_port

GUNICORN = [sys.executable, "-m", "gunicorn", "--config", "api/gunicorn.conf.py", "tests.end_to_end.speaker:app"]
START_SECONDS_MAX = 20
PIECES_APART = 100
EAGER_REQUESTS = 200
MANY_BODIES = 100
PROMPT_SECONDS = 5  # far less than a connection may be idle

Speak = Callable[..., bytes]


class Server:
    """The running gunicorn."""

    def __init__(self, log: Path) -> None:
        self.port, self.log = free_port(0), log
        environment = os.environ | {"PORT": str(self.port), "API_PROCESSES": "1"}
        environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
        with log.open("w") as written:
            self.process = subprocess.Popen(GUNICORN, env=environment, stdout=written, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                self.connect().close()
                return
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)

    def connect(self) -> socket.socket:
        return socket.create_connection((LOOPBACK, self.port), timeout=CLIENT_PAUSE_SECONDS_MAX + 5)

    def speak(self, request: bytes, piece: int = 100_000) -> bytes:
        """Everything that is answered to these bytes, sent in pieces of so many, and then the end."""
        with self.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(request), piece):
                connection.sendall(request[start : start + piece])
                if start < PIECES_APART * piece:
                    time.sleep(0.001)  # or they would come together after all
            connection.shutdown(socket.SHUT_WR)
            return rest(connection)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(40)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("gunicorn") / "log")
    yield running
    running.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "log")
    yield running
    running.stop()


@pytest.fixture
def speak(server: Server) -> Speak:
    return server.speak


def rest(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def get(path: str, *fields: str, method: str = "GET", body: str = "", version: str = "1.1") -> bytes:
    length = (f"Content-Length: {len(body)}",) if body else ()
    return "\r\n".join((f"{method} {path} HTTP/{version}", "Host: kassa", *fields, *length, "", body)).encode()


def answers(said: bytes) -> list[tuple[int, dict[str, str], Any]]:
    """Status, fields and JSON body of each answer, of which every one has a Content-Length."""
    told = []
    while said:
        head, _, said = said.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        length = int(fields.get("content-length", 0))
        body, said = said[:length], said[length:]
        assert len(body) == length
        told.append((int(status.split()[1]), fields, json.loads(body) if body else None))
    return told


def statuses(said: bytes) -> list[int]:
    return [status for status, _, _ in answers(said)]


@pytest.mark.parametrize("piece", [1, 7, 64, 100_000])
def test_one_after_another_however_it_comes(speak: Speak, piece: int):
    chunks = "4;a=b\r\nchun\r\n2\r\nks\r\n0\r\nX-Late: x\r\n\r\n"
    said = speak(
        get("/a?x=1")
        + get("/b", method="POST", body="body")
        + get("/c", "Transfer-Encoding: chunked", method="POST")
        + chunks.encode()
        + get("/%d1%8f", "X-Long: " + "l" * 5000, "Connection: close"),
        piece,
    )
    told = answers(said)
    assert [status for status, _, _ in told] == [200] * 4
    assert [fields["connection"] for _, fields, _ in told] == ["keep-alive"] * 3 + ["close"]
    first, second, third, fourth = (body for _, _, body in told)
    assert (first["PATH_INFO"], first["QUERY_STRING"], first["REQUEST_METHOD"]) == ("/a", "x=1", "GET")
    assert (second["body"], second["CONTENT_LENGTH"], second["REQUEST_METHOD"]) == ("body", "4", "POST")
    assert (third["body"], "HTTP_X_LATE" in third) == ("chunks", False)
    assert (fourth["PATH_INFO"].encode("latin-1").decode(), fourth["HTTP_X_LONG"]) == ("/я", "l" * 5000)


def test_what_the_application_is_told(speak: Speak):
    fields = ("X-A: 1 \t", "x-a: 2", "X_A: 3", "Script-Name: /x", "SCRIPT_NAME: /y", "Content-Type: a/b", "X-\xe9: z")
    (refused,) = answers(speak(get("/", *fields)))
    assert refused[0] == 400
    ((_, _, told),) = answers(speak(get("/", *fields[:-1], "X-B: \xe9")))
    assert (told["HTTP_X_A"], told["SCRIPT_NAME"], told["CONTENT_TYPE"]) == ("1,2", "", "a/b")
    assert (told["HTTP_X_B"], told["HTTP_HOST"], told["REMOTE_ADDR"]) == ("\xc3\xa9", "kassa", LOOPBACK)
    assert told["SERVER_PORT"] != told["REMOTE_PORT"]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a/../b//c", "/a/../b//c", ""),
        ("//host/a", "//host/a", ""),
        ("/a?b?c=%20", "/a", "b?c=%20"),
        ("/a#b?c", "/a", ""),
        ("http://host/a?b", "/a", "b"),
        ("HTTPS://host?a", "/", "a"),
        ("http://[host", "/", ""),
        ("*", "*", ""),
    ],
)
def test_targets(speak: Speak, target: str, path: str, query: str):
    ((_, _, told),) = answers(speak(get(target, method="OPTIONS")))
    assert (told["PATH_INFO"], told["QUERY_STRING"]) == (path, query)


@pytest.mark.parametrize(
    ("request_bytes", "connection"),
    [
        (get("/"), "keep-alive"),
        (get("/", "Connection: close"), "close"),
        (get("/", version="1.0"), "close"),
        (get("/", "Connection: keep-alive", version="1.0"), "keep-alive"),
    ],
)
def test_who_may_send_another(speak: Speak, request_bytes: bytes, connection: str):
    told = answers(speak(request_bytes * 2))
    assert [fields["connection"] for _, fields, _ in told] == [connection] * (2 if connection == "keep-alive" else 1)


def test_who_asks_for_another_protocol_is_answered_in_this_one(speak: Speak):
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    for piece in (1, 100_000):
        said = speak(get("/", *upgrade, method="POST", body="body") + get("/", *upgrade) + get("/last"), piece)
        told = answers(said)
        assert [status for status, _, _ in told] == [200] * 3
        assert [body["body"] for _, _, body in told] == ["body", "", ""]
    chunks = get("/", *upgrade, "Transfer-Encoding: chunked", method="POST") + b"1\r\na\r\n0\r\n\r\n"
    assert statuses(speak(chunks)) == [411]


def test_who_asks_whether_to_send_a_body_is_told(server: Server):
    with server.connect() as connection:
        connection.sendall(get("/", "Expect: 100-continue", "Content-Length: 4", method="POST"))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"body" + get("/", "Connection: close"))
        (_, _, told), last = answers(rest(connection))
    assert (told["body"], last[0]) == ("body", 200)
    unread = get("/unread", "Expect: 100-continue", "Content-Length: 4", method="POST")
    ((status, fields, _),) = answers(server.speak(unread))
    assert (status, fields["connection"]) == (200, "close")
    assert statuses(server.speak(get("/", "Expect: the unexpected"))) == [417]
    old = get("/", "Expect: 100-continue", method="POST", body="body", version="1.0")
    assert statuses(server.speak(old, len(old) - 1)) == [200]


@pytest.mark.parametrize("piece", [1000, 100_000])
def test_limits(speak: Speak, piece: int):
    def told(request: bytes) -> list[int]:
        return statuses(speak(request, piece))

    assert told(get("/" + "a" * (TARGET_BYTES_MAX - 1))) == [200]
    assert told(get("/" + "a" * TARGET_BYTES_MAX)) == [414]
    assert told(b"GET /" + b"a" * 100_000) == [414]
    room = HEAD_BYTES_MAX - len("/Host: kassa\r\nX-A: \r\n")
    assert told(get("/", "X-A: " + "a" * room)) == [200]
    assert told(get("/", "X-A: " + "a" * (room + 1))) == [431]
    assert told(get("/", *(f"X-{number}: a" for number in range(5000)))) == [431]
    assert told(b"GET / HTTP/1.1\r\nX-A: " + b"a" * 10 * HEAD_BYTES_MAX) == [431]
    assert told(b"GET / HTTP/1.1\r\n" + b"a" * 10 * HEAD_BYTES_MAX) == [431]
    endless = get("/", "Transfer-Encoding: chunked", method="POST") + b"0\r\nX-A: " + b"a" * 10 * HEAD_BYTES_MAX
    assert told(endless)[-1] == 431 or told(endless) == [200]  # the body ends there, and the connection with it
    long_body = get("/", method="POST", body="b" * 1_000_000) + get("/")
    assert told(long_body) == [200, 200]


@pytest.mark.parametrize(
    "nonsense",
    [
        *(b"nonsense\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/2.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        *(b"\x16\x03\x01\x02\x00\x01\x00", b"FROB / HTTP/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n"),
        *(b"GET / HTTP/1.1\nHost: a\n\n", b"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", b"GET / HTTP/1.1\r\nX : a\r\n\r\n"),
        *(b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n"),
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\na",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"DELETE / HTTP/1.1\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"Content-Type: a\r\n" * 2 + b"\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("piece", [1, 100_000])
def test_after_nonsense_nothing_is_read(speak: Speak, nonsense: bytes, piece: int):
    """Neither in what it calls its body, nor after it; what came before is answered."""
    first, last = answers(speak(get("/before") + nonsense + get("/after") * 3, piece))
    assert (first[0], last[0], last[2]["code"], last[2]["accepted"]) == (200, 400, "malformed_request", False)
    assert (last[1]["connection"], last[1]["content-type"]) == ("close", "application/problem+json")


def test_a_body_is_read_once(speak: Speak):
    for piece in (1, 100_000):
        ((_, _, told),) = answers(speak(get("/halves", method="POST", body="body"), piece))
        assert (told["half"], told["body"]) == ("bo", "dy")


def test_no_more_of_a_body_is_waited_for_than_is_asked_for(server: Server):
    with server.connect() as connection:
        connection.sendall(get("/half", "Content-Length: 9", method="POST") + b"bo")
        ((status, fields, told),) = answers(rest(connection))
    assert (status, fields["connection"], told["half"]) == (200, "close", "bo")


def test_who_sends_many_at_once_lets_others_go_between(server: Server):
    with server.connect() as eager, server.connect() as other:
        eager.sendall(get("/busy") * EAGER_REQUESTS)
        served = eager.recv(65536)
        other.sendall(get("/"))
        assert statuses(other.recv(65536)) == [200]
        eager.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            served += eager.recv(2**20)
        assert served.count(b"200 OK") < EAGER_REQUESTS // 2


def test_a_body_that_breaks_off_or_is_no_body(speak: Speak):
    (short,) = answers(speak(get("/", "Content-Length: 9", method="POST") + b"four"))
    assert (short[1]["connection"], short[2]["body"]) == ("close", "four")
    chunks = get("/", "Transfer-Encoding: chunked", method="POST") + b"4\r\nfour\r\nx\r\n" + get("/smuggled")
    assert statuses(speak(chunks)) == [400]
    (broken,) = answers(speak(chunks, len(chunks) - 50))  # the application is reading it
    assert (broken[1]["connection"], broken[2]["body"]) == ("close", "four")


def test_who_is_answered_before_its_body_is_read_gets_the_answer(speak: Speak):
    ((status, fields, _),) = answers(speak(get("/unread", method="POST", body="b" * 5_000_000) + get("/after")))
    assert (status, fields["connection"]) == (200, "close")


def test_a_client_that_pauses_within_its_body_is_given_up(server: Server):
    with server.connect() as connection:
        connection.sendall(get("/", "Content-Length: 9", method="POST") + b"four")
        began = time.monotonic()
        assert rest(connection) == b""
    assert CLIENT_PAUSE_SECONDS_MAX - 1 < time.monotonic() - began < CLIENT_PAUSE_SECONDS_MAX + 4


def test_what_has_no_length_comes_in_chunks(speak: Speak):
    said = speak(get("/streams") + get("/streams", method="HEAD") + get("/nothing") + get("/"))
    head, chunks, head_only, nothing, last, _ = said.split(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert chunks == b"3\r\none\r\n3\r\ntwo\r\n0"
    assert b"Transfer-Encoding" not in head_only + nothing + last
    assert nothing.startswith(b"HTTP/1.1 204 No Content")
    head, _, body = speak(get("/streams", "Connection: keep-alive", version="1.0")).partition(b"\r\n\r\n")
    assert (b"Connection: close" in head, body) == (True, b"onetwo")


def test_what_breaks_off_is_seen_to_and_closed(server: Server):
    for path in ("/streams", "/breaks"):
        before = server.log.read_text().count("the stream is closed")
        said = server.speak(get(path) + get("/after"))
        assert server.log.read_text().count("the stream is closed") == before + 1
    assert said.endswith(b"\r\n\r\n3\r\none\r\n")


@pytest.mark.parametrize("path", ["/fails", "/misses", "/splits"])
def test_a_defect_is_told_and_logged(server: Server, path: str):
    ((status, fields, told),) = answers(server.speak(get(path) + get("/after")))
    assert (status, fields["connection"], told["code"]) == (500, "close", "internal_error")
    assert "x-other" not in fields
    assert "the application failed" in server.log.read_text()


def test_after_an_answer_without_a_body_no_other_comes(speak: Speak):
    assert speak(get("/closes") + get("/after")).count(b"HTTP/1.1") == 1


def bodies(server: Server) -> int:
    """How many bodies of requests, each with all that belongs to it, the server keeps."""
    ((_, _, told),) = answers(server.speak(get("/bodies")))
    return int(told["bodies"])


def test_who_sends_many_at_once_is_read_bit_by_bit(server: Server):
    with server.connect() as eager:
        eager.sendall(get("/slow", "Content-Length: 1", method="POST"))
        time.sleep(0.1)
        eager.sendall(b"b" + get("/") * 2_000)
        time.sleep(0.3)
        assert bodies(server) < MANY_BODIES
        eager.shutdown(socket.SHUT_WR)
        assert statuses(rest(eager)) == [200] * 2_001


def test_nothing_is_kept_of_who_has_left(server: Server):
    for first in (get("/fails"), get("/", "Content-Length: 9", method="POST"), b"nonsense", get("/slow")):
        for _ in range(20):
            with server.connect() as leaving:
                leaving.sendall(first + get("/") * 20)
    deadline = time.monotonic() + PROMPT_SECONDS
    while bodies(server) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert bodies(server) == 1, "garbage is seldom looked for"


def test_to_stop_waits_for_requests_and_not_for_connections(own_server: Server):
    with own_server.connect() as idle, own_server.connect() as begun, own_server.connect() as slow:
        idle.sendall(get("/"))
        assert statuses(idle.recv(65536)) == [200]
        begun.sendall(b"GET / HT")
        slow.sendall(get("/slow"))
        time.sleep(0.3)
        os.kill(own_server.process.pid, signal.SIGTERM)
        began = time.monotonic()
        assert (rest(idle), rest(begun)) == (b"", b"")
        ((status, fields, _),) = answers(rest(slow))
        assert (status, fields["connection"]) == (200, "close")
        assert own_server.process.wait(PROMPT_SECONDS) == 0
    assert time.monotonic() - began < PROMPT_SECONDS
    assert "Traceback" not in own_server.log.read_text()
