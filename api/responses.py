"""How answers leave: JSON, and an ETag with its 304 where a client may have the answer already."""

import hashlib
from typing import Any

import falcon
import msgspec


def send(response: falcon.Response, document: Any, status: str = falcon.HTTP_200) -> None:
    """Answer with a JSON document."""
    response.status = status
    response.content_type = falcon.MEDIA_JSON
    response.data = msgspec.json.encode(document)


def send_tagged(request: falcon.Request, response: falcon.Response, document: Any) -> None:
    """Answer with a JSON document and its ETag, or with 304 where the client named that tag (RFC 9110, 13.1.2)."""
    send(response, document)
    tag = hashlib.sha256(response.data or b"").hexdigest()[:32]
    response.set_header("ETag", f'"{tag}"')
    named = (request.get_header("If-None-Match") or "").replace("W/", "")
    if named.strip() == "*" or f'"{tag}"' in (part.strip() for part in named.split(",")):
        response.status = falcon.HTTP_304
        response.data = None
