"""A TCP proxy on a link between two processes, which breaks it in every way in which a network can.

All links live in one thread with an event loop of its own; `Link.set` may be called from any thread, and the mode
holds for connections that exist as well as for new ones. What a mode has swallowed is gone: connections that lost bytes
are reset when it ends, as TCP would.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cli.servers import LOOPBACK

CHUNK = 64 * 1024
Kind = Literal["pass", "refuse", "hang", "swallow_up", "swallow_down", "delay", "reset_after", "cut_at", "cut_answer"]


@dataclass(frozen=True)
class Mode:
    """What a link does. Up is from the client to the server.

    pass; refuse: connections are reset at once; hang: bytes stop, nothing is lost; swallow_up, swallow_down: half-open,
    one way's bytes are lost; delay: each chunk waits `seconds`; reset_after: each connection is reset after `length`
    more bytes either way; cut_at: a connection is cut `length` bytes after the beginning of `pattern` on the way up,
    counting on through the answer once the pattern's own message is over; cut_answer: only what comes back after the
    pattern counts.
    """

    kind: Kind = "pass"
    seconds: float = 0.0
    length: int = 0
    pattern: bytes = b""


PASS = Mode()


class Link:
    """One link: listens on `port` of the loopback, and leads to `target` there."""

    def __init__(self, name: str, target: int, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.target = target
        self.mode = PASS
        self.cuts = 0  # connections that a mode has reset so far
        self.listener = socket.create_server((LOOPBACK, 0), backlog=512)
        self.port: int = self.listener.getsockname()[1]
        self._loop = loop
        self._connections: set[Connection] = set()
        self._changed = asyncio.Event()

    def set(self, mode: Mode) -> None:
        """Behave so from now on."""
        self._loop.call_soon_threadsafe(self._set, mode)

    def reset(self) -> None:
        """Reset every connection once."""
        self._loop.call_soon_threadsafe(self.reset_all)

    def _set(self, mode: Mode) -> None:
        self.mode = mode
        self._changed.set()
        self._changed = asyncio.Event()
        for connection in list(self._connections):
            connection.budget = mode.length
            if connection.lost or mode.kind == "refuse":
                connection.reset()

    def reset_all(self) -> None:
        """The same, from within the loop."""
        for connection in list(self._connections):
            connection.reset()

    async def changed(self) -> None:
        """Return when the mode is another."""
        await self._changed.wait()

    async def serve(self) -> None:
        """Accept for ever."""
        server = await asyncio.start_server(self._join, sock=self.listener)
        async with server:
            await server.serve_forever()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = (reader, writer)
        while self.mode.kind == "hang":
            await self.changed()
        if self.mode.kind == "refuse":
            abort(writer)
            return
        try:
            server = await asyncio.open_connection(LOOPBACK, self.target)
        except OSError:
            abort(writer)
            return
        connection = Connection(self, client[1], server[1])
        self._connections.add(connection)
        try:
            await asyncio.gather(
                connection.carry(client[0], server[1], up=True), connection.carry(server[0], client[1], up=False)
            )
        finally:
            connection.reset(count=False)
            self._connections.discard(connection)


class Connection:
    """Two sockets joined."""

    def __init__(self, link: Link, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.link = link
        self.client = client
        self.server = server
        self.lost = False  # bytes were swallowed
        self.budget = link.mode.length
        self.cutting = False  # the pattern of `cut_at` was seen: the budget runs
        self.asked = False  # the pattern of `cut_answer` was seen
        self.over = False

    def reset(self, *, count: bool = True) -> None:
        """End both sides: the client is told by a reset, the server gets what was sent to it before."""
        if self.over:
            return
        self.over = True
        self.link.cuts += count
        abort(self.client)
        with contextlib.suppress(Exception):
            self.server.close()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """Carry bytes one way until an end closes."""
        try:
            while data := await reader.read(CHUNK):
                data = await self._treated(data, up=up)
                if self.over:
                    return
                writer.write(data)
                await writer.drain()
                if self.cutting and self.budget <= 0:
                    self.reset()
                    return
            if not self.over and writer.can_write_eof():
                writer.write_eof()
        except (OSError, RuntimeError):  # one end was reset, and so is the other
            self.reset(count=False)

    async def _treated(self, data: bytes, *, up: bool) -> bytes:
        """What becomes of a chunk in the link's mode. The rest of it is lost with the connection."""
        while self.link.mode.kind == "hang":
            await self.link.changed()
        mode = self.link.mode
        if mode.kind == "delay":
            await asyncio.sleep(mode.seconds)
        elif mode.kind == ("swallow_up" if up else "swallow_down"):
            self.lost = True
            return b""
        elif mode.kind == "reset_after":
            self.cutting = True
            data = self._within_budget(data)
        elif mode.kind == "cut_at":
            data = self._cut(data, mode, up=up)
        elif mode.kind == "cut_answer":
            data = self._cut_answer(data, mode, up=up)
        return data

    def _cut(self, data: bytes, mode: Mode, *, up: bool) -> bytes:
        if self.cutting:
            return self._within_budget(data)
        place = data.find(mode.pattern) if up else -1
        if place < 0:
            return data
        self.cutting, self.budget = True, mode.length
        return data[:place] + self._within_budget(data[place:])

    def _cut_answer(self, data: bytes, mode: Mode, *, up: bool) -> bytes:
        if up:
            if not self.asked and mode.pattern in data:
                self.asked, self.budget = True, mode.length
            return data
        if not self.asked:
            return data
        self.cutting = True
        return self._within_budget(data)

    def _within_budget(self, data: bytes) -> bytes:
        allowed = data[: max(0, self.budget)]
        self.budget -= len(data)
        return allowed


def abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset."""
    with contextlib.suppress(Exception):
        connected: socket.socket = writer.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


class Network:
    """All links, in a thread of their own."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def link(self, name: str, target: int) -> Link:
        """A new link to a port of the loopback."""
        made = Link(name, target, self._loop)
        self.links[name] = made
        asyncio.run_coroutine_threadsafe(made.serve(), self._loop)
        return made

    def heal(self) -> None:
        """Every link passes again."""
        for link in self.links.values():
            link.set(PASS)

    def close(self) -> None:
        """End all connections."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for link in self.links.values():
            link.reset_all()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network that is closed in the end."""
    made = Network()
    try:
        yield made
    finally:
        made.close()
