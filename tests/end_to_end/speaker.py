"""A small application for test_http1.py: gunicorn serves it with the API's own settings and worker."""

import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from api.http1 import Body

BUSY_SECONDS = 0.005
FAILURES = {"/fails": LookupError, "/misses": FileNotFoundError}
HEADS = {
    "/splits": ("200 OK", [("X-Name", "a\r\nX-Other: b"), ("Content-Length", "0")]),
    "/streams": ("200 OK", []),
    "/breaks": ("200 OK", []),
    "/nothing": ("204 No Content", []),
    "/closes": ("204 No Content", []),
}
Start = Callable[[str, list[tuple[str, str]]], Any]


def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """What a path does is said where it is tested."""
    path = environ["PATH_INFO"]
    if path in FAILURES:
        raise FAILURES[path]("on purpose")
    if path in HEADS:
        start(*HEADS[path])
        return Stream(path)
    told = {name: value for name, value in environ.items() if isinstance(value, str)}
    if path in ("/half", "/halves"):
        told["half"] = environ["wsgi.input"].read(2).decode()
    if path not in ("/unread", "/half"):
        told["body"] = environ["wsgi.input"].read().decode()
    dwell(path)
    if path == "/bodies":
        told["bodies"] = str(sum(isinstance(each, Body) for each in gc.get_objects()))
    body = json.dumps(told).encode()
    start("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def dwell(path: str) -> None:
    """Wait, or be busy."""
    if path == "/slow":
        time.sleep(1)
    over = time.perf_counter() + BUSY_SECONDS
    while path == "/busy" and time.perf_counter() < over:
        pass


class Stream:
    """Three parts, the second of them empty."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __iter__(self) -> Iterator[bytes]:
        yield b"one"
        yield b""
        if self.path == "/breaks":
            raise LookupError("on purpose")
        yield b"two"

    def close(self) -> None:
        print("the stream is closed", flush=True)
        if self.path == "/closes":
            raise LookupError("on purpose")
