"""The proxy of the chaos harness breaks a link as it says, and heals it."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from chaos.proxy import PASS, Link, Mode, network
from cli.servers import LOOPBACK

SOON = 0.3


@pytest.fixture
def link() -> Iterator[Link]:
    """A link to a server that answers every line with itself in capitals."""
    listener = socket.create_server((LOOPBACK, 0))

    def serve(connected: socket.socket) -> None:
        with connected, contextlib.suppress(ConnectionError):
            while data := connected.recv(65536):
                connected.sendall(data.upper())

    def accept() -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connected,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with network() as made:
        yield made.link("to the echo", listener.getsockname()[1])
    listener.close()


def client(link: Link) -> socket.socket:
    return socket.create_connection((LOOPBACK, link.port), timeout=SOON)


def ask(connected: socket.socket, text: bytes = b"hello") -> bytes:
    connected.sendall(text)
    return connected.recv(65536)


def settled(link: Link, mode: Mode) -> None:
    link.set(mode)
    time.sleep(0.05)


def test_it_passes(link: Link):
    with client(link) as connected:
        assert ask(connected) == b"HELLO"
        assert ask(connected, b"x" * 1000) == b"X" * 1000


def test_refused_connections_are_reset_old_and_new(link: Link):
    with client(link) as old:
        assert ask(old) == b"HELLO"
        settled(link, Mode("refuse"))
        with pytest.raises(ConnectionError):
            ask(old)
        with client(link) as new, pytest.raises(ConnectionError):
            ask(new)
        settled(link, PASS)
        with client(link) as again:
            assert ask(again) == b"HELLO"


def test_what_hangs_arrives_later(link: Link):
    with client(link) as connected:
        settled(link, Mode("hang"))
        with pytest.raises(TimeoutError):
            ask(connected)
        settled(link, PASS)
        assert connected.recv(100) == b"HELLO"


@pytest.mark.parametrize("kind", ["swallow_up", "swallow_down"])
def test_a_half_open_connection_loses_bytes_and_is_reset_in_the_end(link: Link, kind: str):
    with client(link) as connected:
        settled(link, Mode(kind))
        with pytest.raises(TimeoutError):
            ask(connected)
        settled(link, PASS)
        with pytest.raises(ConnectionError):
            ask(connected)


def test_it_delays(link: Link):
    with client(link) as connected:
        settled(link, Mode("delay", seconds=0.05))
        started = time.monotonic()
        assert ask(connected) == b"HELLO"
        assert time.monotonic() - started >= 0.1, "once each way"


@pytest.mark.parametrize(("length", "answer"), [(3, b""), (5, b""), (7, b"HE")])
def test_it_resets_after_so_many_bytes_either_way(link: Link, length: int, answer: bytes):
    settled(link, Mode("reset_after", length=length))
    with client(link) as connected:
        assert answer.startswith(until_reset(connected, b"hello"))  # a reset may overtake the last bytes
    assert link.cuts == 1


def until_reset(connected: socket.socket, text: bytes) -> bytes:
    """What still arrives before the connection is reset."""
    got = b""
    with contextlib.suppress(ConnectionError):
        connected.sendall(text)
        while data := connected.recv(100):
            got += data
        pytest.fail("closed, and not reset")
    return got


def test_it_cuts_at_a_pattern_before_within_and_after_it(link: Link):
    for length in (0, 3, 6, 8):
        settled(link, Mode("cut_at", length=length, pattern=b"COMMIT"))
        with client(link) as connected:
            assert ask(connected, b"insert") == b"INSERT"
            until_reset(connected, b"COMMIT")
    assert link.cuts == 4


def test_it_cuts_an_answer_alone(link: Link):
    for length in (0, 3):
        settled(link, Mode("cut_answer", length=length, pattern=b"COMMIT"))
        with client(link) as connected:
            assert ask(connected, b"insert") == b"INSERT"
            assert b"COMMIT".startswith(until_reset(connected, b"COMMIT"))
    assert link.cuts == 2
