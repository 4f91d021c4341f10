"""How answers leave: small ones in one piece, and whole where there is no body."""

import socket
from urllib.parse import urlsplit

import pytest

from tests.end_to_end.conftest import Kassa

TIMES = 20


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
