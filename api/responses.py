"""How answers leave: JSON, and an ETag with its 304 where a client may have the answer already."""

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import falcon
import msgspec

CSV = "text/csv"
FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r", "\n")
DECIMAL = re.compile(r"-?\d+(\.\d+)?")


def send(response: falcon.Response, document: Any, status: str = falcon.HTTP_200) -> None:
    """Answer with a JSON document."""
    response.status = status
    response.content_type = falcon.MEDIA_JSON
    response.data = msgspec.json.encode(document)


def send_tagged(request: falcon.Request, response: falcon.Response, document: Any) -> None:
    """Answer with a JSON document and its ETag, or with 304 where the client named that tag (RFC 9110, 13.1.2)."""
    send(response, document)
    if is_known(request, response, response.data or b""):
        response.data = None


def is_known_state(request: falcon.Request, response: falcon.Response, *state: object) -> bool:
    """Whether the client named the ETag of this state of the database, for this request: then 304 is the answer.

    It costs a look at a few counters, and none at the history that they stand for.
    """
    asked = (request.context.caller.id, request.path, request.query_string, wants_csv(request))
    return is_known(request, response, repr((asked, state)).encode(), weak="W/")


def is_known(request: falcon.Request, response: falcon.Response, content: bytes, weak: str = "") -> bool:
    """Set the ETag of a content, and 304 where the client named it."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    response.set_header("ETag", weak + tag)
    named = (request.get_header("If-None-Match") or "").replace("W/", "")
    known = named.strip() == "*" or tag in (part.strip() for part in named.split(","))
    if known:
        response.status = falcon.HTTP_304
    return known


def wants_csv(request: falcon.Request) -> bool:
    """Whether the client prefers CSV to JSON (`Accept: text/csv`)."""
    return request.client_prefers((falcon.MEDIA_JSON, CSV)) == CSV


def send_csv(
    response: falcon.Response, filename: str, columns: Sequence[str], pages: Iterable[Iterable[Sequence[Any]]]
) -> None:
    """Answer with a CSV file (RFC 4180), written as it is sent, so that its length needs no memory."""
    response.content_type = f"{CSV}; charset=utf-8"
    response.set_header("Content-Disposition", f'attachment; filename="{filename}"')
    response.set_header("Vary", "Accept")
    response.stream = csv_lines(columns, pages)


def csv_lines(columns: Sequence[str], pages: Iterable[Iterable[Sequence[Any]]]) -> Iterator[bytes]:
    """A header line, then the rows, a chunk of bytes a page."""
    yield csv_text([columns])
    for page in pages:
        yield csv_text([[defused(cell) for cell in row] for row in page])


def csv_text(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def defused(cell: Any) -> Any:
    """Text that a spreadsheet would run as a formula, made into text by an apostrophe; decimals stay numbers."""
    if isinstance(cell, str) and cell.startswith(FORMULA_BEGINNINGS) and not DECIMAL.fullmatch(cell):
        return f"'{cell}"
    return cell
