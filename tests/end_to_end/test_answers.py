"""How answers leave: small ones in one piece, and whole where there is no body."""

import re
import socket
import time
from urllib.parse import urlsplit

import pytest

from tests.end_to_end.conftest import Kassa

TIMES = 20
ANSWERS = 4  # of a file of 1.5 MB: together more than the system keeps for a connection


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/health/live"), ("GET", "/v1/nothing"), ("HEAD", "/health/live"), ("HEAD", "/v1/nothing")],
)
def test_an_answer_comes_in_one_piece(kassa: Kassa, method: str, path: str):
    address = urlsplit(kassa.url)
    request = f"{method} {path} HTTP/1.1\r\nHost: kassa\r\n\r\n".encode()
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        for _ in range(TIMES):
            connection.sendall(request)
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length: "))
            assert len(body) == (0 if method == "HEAD" else int(length.split()[1]))


def test_who_reads_late_gets_everything(kassa: Kassa):
    address, path = urlsplit(kassa.url), re.findall(r'src="([^"]+bundle[^"]*)"', kassa.http.get("/docs").text)[0]
    whole, got = kassa.http.get(path).content, b""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        connection.settimeout(10)
        connection.connect((address.hostname, address.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: kassa\r\n\r\n".encode() * ANSWERS)
        time.sleep(1)
        while len(got) < ANSWERS * len(whole) or not got.endswith(whole[-1000:]):
            part = connection.recv(2**20)
            assert part, f"cut off after {len(got)} bytes"
            got += part
    assert got.count(whole) == ANSWERS
