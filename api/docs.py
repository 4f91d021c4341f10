"""The API's documents: OpenAPI, and Swagger UI and ReDoc on top of it, with nothing loaded from elsewhere.

The files of the two come with the package `fastapi-offline`. It is found, and never imported.
"""

from importlib.util import find_spec
from pathlib import Path

import falcon
import msgspec

from api import openapi
from api.responses import send_tagged

PAGES = Path(__file__).parent / "static"
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # both write style elements as they draw
        "img-src 'self' data:",
        "font-src 'self' data:",
        "connect-src 'self'",  # the document, and what is tried out
        "worker-src 'self' blob:",  # ReDoc searches in a worker that it makes
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
"""A Content-Security-Policy under which the two pages work, and can load nothing from anywhere else."""


class Docs:
    """`/openapi.json`, `/docs` and `/redoc`"""

    def __init__(self) -> None:
        self.document = msgspec.Raw()  # the same bytes for everyone, made once

    def on_get_openapi(self, request: falcon.Request, response: falcon.Response) -> None:
        """This document."""
        send_tagged(request, response, self.document)

    def on_get_swagger(self, _request: falcon.Request, response: falcon.Response) -> None:
        """Swagger UI: read the calls, and try them out."""
        send_page(response, "swagger.html")

    def on_get_redoc(self, _request: falcon.Request, response: falcon.Response) -> None:
        """ReDoc: read the calls."""
        send_page(response, "redoc.html")


def install(app: openapi.App) -> None:
    """Add the document of all routes that `app` has by now, and the pages that show it; so this comes last."""
    docs = Docs()
    app.add_route("/openapi.json", docs, suffix="openapi")
    docs.document = msgspec.Raw(msgspec.json.encode(openapi.document(app.responders)))
    app.add_route("/docs", docs, suffix="swagger")
    app.add_route("/redoc", docs, suffix="redoc")
    app.add_static_route("/docs/pages", PAGES)
    app.add_static_route("/docs/assets", assets())


def assets() -> Path:
    """Where the files of Swagger UI and ReDoc are."""
    package = find_spec("fastapi_offline")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "static"


def send_page(response: falcon.Response, name: str) -> None:
    """Answer with one of our pages."""
    response.content_type = falcon.MEDIA_HTML
    response.data = (PAGES / name).read_bytes()
    response.set_header("Content-Security-Policy", POLICY)
    response.set_header("X-Content-Type-Options", "nosniff")
