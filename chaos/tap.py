"""A tap on a connection to PostgreSQL, which strikes at one statement: before it is sent, after it was carried out, or
by cutting the connection within it or within its answer.

It reads the protocol as far as needed: psycopg2 sends each statement as one simple query message.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cli.servers import LOOPBACK

When = Literal["before", "after", "within", "answering"]
BEGIN_HERE = "SELECT 'the tap counts from here'"
READY = b"Z"  # PostgreSQL's word for: carried out, and ready for the next
TERMINATE = b"X"


@dataclass
class Tap:
    """Listens on `port`, leads to the server on `target`. `act` is called before or after statement `number`.

    Statements are counted from 0, and only after one that is BEGIN_HERE: before it a connection is set up.
    act: returns whether the connection goes on; it may take its time. cut: where it strikes within a statement or its
    answer, so many bytes get through. sizes: the bytes of each statement and of its answer.
    """

    target: int
    number: int = -1
    when: When = "before"
    act: Callable[[], bool] = lambda: True
    cut: int = 0
    statements: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    port: int = 0
    _counts: bool = False

    def __enter__(self) -> "Tap":
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        gone = contextlib.suppress(EOFError, OSError)
        with gone, client, socket.create_connection((LOOPBACK, self.target)) as server:
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each statement takes 40 ms
            self._begin(client, server)
            while self._exchange(client, server):
                pass

    def _begin(self, client: socket.socket, server: socket.socket) -> None:
        """Startup: pass on until the server is ready for the first statement."""
        client.settimeout(60)
        server.settimeout(60)
        while True:
            length = receive(client, 4)
            rest = receive(client, struct.unpack("!I", length)[0] - 4)
            if struct.unpack("!I", rest[:4])[0] in (80877103, 80877104):  # asks for TLS or GSSAPI: there is none
                client.sendall(b"N")
                continue
            server.sendall(length + rest)
            break
        while True:
            kind, message = read_message(server)
            client.sendall(message)
            if kind == READY:
                return
            if kind == b"R" and struct.unpack("!I", message[5:9])[0] not in (0, 12):  # the client must answer
                server.sendall(read_message(client)[1])

    def _exchange(self, client: socket.socket, server: socket.socket) -> bool:
        """One statement and its answer. Returns whether there may be another."""
        kind, message = read_message(client)
        counted, when = False, ""
        if kind == b"Q":
            statement = message[5:-1].decode(errors="replace")
            counted = self._counts
            if counted:
                when = self.when if len(self.statements) == self.number else ""
                self.statements.append(statement)
            self._counts = counted or statement == BEGIN_HERE
        if kind == TERMINATE or (when == "before" and not self.act()):
            return False
        if when == "within":
            server.sendall(message[: self.cut])
            return False
        server.sendall(message)
        answer = read_answer(server)
        if counted:
            self.sizes.append((len(message), len(answer)))
        if when == "after" and not self.act():
            return False
        client.sendall(answer[: self.cut] if when == "answering" else answer)
        return when != "answering"


def read_answer(server: socket.socket) -> bytes:
    """All that the server says to a statement."""
    answer, kind = b"", b""
    while kind != READY:
        kind, message = read_message(server)
        answer += message
    return answer


def read_message(connection: socket.socket) -> tuple[bytes, bytes]:
    """The kind of a message, and all of it."""
    head = receive(connection, 5)
    return head[:1], head + receive(connection, struct.unpack("!I", head[1:])[0] - 4)


def receive(connection: socket.socket, length: int) -> bytes:
    """So many bytes. Raises EOFError."""
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data
