"""The head of an answer and its body, to a client that takes only a part."""

import pytest

from api.server import HeadWithBody

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"b" * 1000


class Client:
    """Takes `room` bytes, and then no more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.got = b""

    def sendall(self, data: bytes) -> None:
        self.got += data[: self.room - len(self.got)]
        if len(self.got) == self.room:
            raise TimeoutError


def test_the_head_leaves_with_the_body():
    together = HeadWithBody(client := Client(5000))
    together.sendall(HEAD)
    assert client.got == b""
    together.sendall(BODY)
    together.sendall(BODY)
    together.flush()
    assert client.got == HEAD + BODY + BODY


@pytest.mark.parametrize("room", [10, 500])
def test_where_sending_breaks_off_no_head_follows(room: int):
    together = HeadWithBody(client := Client(room))
    together.sendall(HEAD)
    with pytest.raises(TimeoutError):
        together.sendall(BODY)
    client.room = 5000
    together.flush()
    assert client.got == (HEAD + BODY)[:room]


def test_of_an_answer_that_failed_nothing_is_sent():
    client = Client(5000)
    client.close = lambda: None
    together = HeadWithBody(client)
    together.sendall(HEAD)
    together.close()
    together.flush()
    assert client.got == b""
