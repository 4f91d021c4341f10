"""A Central Bank on loopback: its document, in its encoding, and a real HTTP server that serves it, or misbehaves."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cli.servers import LOOPBACK

Behaviour = Callable[[BaseHTTPRequestHandler], Any]
DRIP_SECONDS = 0.02  # between two bytes of a server that drips

over = threading.Event()  # never set: a pause that no signal ends


def document(day: str = "15.03.2022", /, *, encoding: str = "windows-1251", **rates: str) -> bytes:
    """A document of the Bank's form, with each rate as its Value, or as "Nominal/Value"."""
    entries = []
    for code, rate in rates.items():
        nominal, _, value = rate.rpartition("/")
        entries.append(
            f'<Valute ID="R01"><NumCode>000</NumCode><CharCode>{code}</CharCode><Nominal>{nominal or 1}</Nominal>'
            f"<Name>Название валюты</Name><Value>{value}</Value><VunitRate>{value}</VunitRate></Valute>"
        )
    text = f'<?xml version="1.0" encoding="{encoding}"?><ValCurs Date="{day}" name="Foreign Currency Market">'
    return (text + "".join(entries) + "</ValCurs>").encode(encoding)


def serves(body: bytes, status: int = 200, *, length: int | None = None, **headers: str) -> Behaviour:
    """Answers with a body, whose length may be a lie."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/xml; charset=windows-1251")
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def endless(handler: BaseHTTPRequestHandler) -> None:
    """A body that never ends, as fast as it goes."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(b"<!-- more -->" * 5000)


def drips_body(handler: BaseHTTPRequestHandler) -> None:
    """A body of which one byte comes after another, for ever."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n<ValCurs>")
    drip(handler, b" ")


def drips_headers(handler: BaseHTTPRequestHandler) -> None:
    """A header of which one byte comes after another, for ever."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Padding: ")
    drip(handler, b"x")


def silent(_handler: BaseHTTPRequestHandler) -> None:
    """Takes the request, and says nothing for longer than anybody waits."""
    over.wait(3)


def drip(handler: BaseHTTPRequestHandler, byte: bytes) -> None:
    """One byte after another until the client has gone."""
    while not over.wait(DRIP_SECONDS):
        handler.wfile.write(byte)
        handler.wfile.flush()


class Server(ThreadingHTTPServer):
    """Clients that cut it off are what it is for."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_about: Any) -> None:
        """A client has hung up."""


@contextmanager
def central_bank(behave: Behaviour, port: int = 0) -> Iterator[str]:
    """A server that answers every GET in that way. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behave(self)

        def log_message(self, *_message: Any) -> None:
            """What is served is no news."""

    with Server((LOOPBACK, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{server.server_port}/scripts/XML_daily.asp"
        finally:
            server.shutdown()
            thread.join()
