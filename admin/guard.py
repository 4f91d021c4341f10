"""What every request passes first: no changes from other sites, no oversized or unstorable input, strict headers."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READING = ("GET", "HEAD", "OPTIONS")
FORM = "application/x-www-form-urlencoded"  # nowhere is a file taken
BODY_BYTES_MAX = 64 * 1024  # the longest form is a service with its description

HEADERS = {
    # Everything comes from this process. Styles: the date and select widgets set them on elements.
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none';"
        " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class Guard:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the headers added to the answer."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added.update(HEADERS)
                if not scope["path"].startswith("/statics/"):
                    added["Cache-Control"] = "no-store"
            await send(message)

        if refusal := refused(scope, headers):
            await refusal(scope, receive, send_with_headers)
        else:
            await self.app(scope, await whole(receive), send_with_headers)


def refused(scope: Scope, headers: Headers) -> PlainTextResponse | None:
    """The answer to a request that goes no further, or None."""
    if "\0" in scope["path"] or b"%00" in scope["query_string"]:
        return PlainTextResponse("NUL is in no name and in no id.\n", 400)
    if scope["method"] in READING:
        return None
    if is_cross_site(headers):
        return PlainTextResponse("This came from another site.\n", 403)
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not length.isdecimal():
        return PlainTextResponse("Say how long the body is.\n", 411)
    if int(length) > BODY_BYTES_MAX:
        return PlainTextResponse("The body is too long.\n", 413)
    if scope["method"] == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        return PlainTextResponse(f"Send a form, without files: {FORM}.\n", 415)
    return None


async def whole(receive: Receive) -> Receive:
    """The same body, all of it here already: where one is left unread, gunicorn closes the connection after the answer,
    and the client's next request may be lost with it.
    """
    messages = [await receive()]
    while messages[-1].get("more_body"):
        messages.append(await receive())
    waiting = iter(messages)

    async def again() -> Message:
        return next(waiting, None) or await receive()

    return again


def is_cross_site(headers: Headers) -> bool:
    """Whether a browser says that another site had it send this. The strict cookie is the first fence, this another.

    Every browser in use sends at least one of the two headers with a POST; what sends neither is no browser, and
    nobody else's cookies are in it.
    """
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")
