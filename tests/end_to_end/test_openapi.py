"""The OpenAPI document and the running system say the same: every example is made, and every answer is as documented.

With RECORD_EXAMPLES=1 the answers are kept, and the document shows them.
"""

import json
import os
import re
import signal
from typing import Any

import httpx
import pytest

from api.openapi import RECORDED
from api.openapi_examples import EXAMPLES, Example
from tests.contract import Contract
from tests.end_to_end.conftest import Kassa, until
from tests.end_to_end.test_services import promote
from tests.mailbox import Mailbox

PLACEHOLDER = re.compile(r"\$([a-z][a-z-]*)\.(.+)")
STILL = ("worker", "sweeper")
SECRETS = ("access_token", "refresh_token")
ROWS_SHOWN = 8  # of texts such as the counters


class Day:
    """The examples' answers so far, and what stands in them."""

    def __init__(self, kassa: Kassa, mailbox: Mailbox) -> None:
        self.kassa = kassa
        self.mailbox = mailbox
        self.known: dict[str, Any] = {"eve": {"id": kassa.user().id}}
        for role in ("admin", "auditor"):
            self.known[role] = promote(kassa, kassa.user(), role).tokens
        self.stopped = False

    def filled(self, value: Any) -> Any:
        """A text, or all texts of a mapping, with placeholders replaced."""
        if isinstance(value, dict):
            return {name: self.filled(each) for name, each in value.items()}
        found = PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
        if not found:
            return value
        if found[1] == "mailed":
            until(lambda: bool(self.mailbox.codes(found[2])))
            return self.mailbox.codes(found[2])[-1]
        known = self.known[found[1]]
        for step in found[2].split("."):
            known = known[step]
        return known

    def request(self, example: Example) -> dict[str, Any]:
        """What an example sends, by where it stands."""
        parts = {place: self.filled(getattr(example, place)) for place in ("path", "query", "header")}
        made = {place: values for place, values in parts.items() if values}
        return made if example.body is None else made | {"body": self.filled(example.body)}

    def send(self, example: Example, request: dict[str, Any]) -> httpx.Response:
        """Make the request, and remember the answer."""
        self.stand_still(example.standing_still)
        method, path = example.call.split(" ")
        headers = dict(request.get("header", {}))
        if example.as_:
            headers["Authorization"] = f"Bearer {self.known[example.as_]['access_token']}"
        response = self.kassa.http.request(
            method,
            path.format(**request.get("path", {})),
            params=request.get("query", {}),
            headers=headers,
            **({"json": request["body"]} if "body" in request else {}),
        )
        is_json = response.content and response.headers["Content-Type"].endswith("json")
        body = response.json() if is_json else {}
        self.known[example.name] = {**body, "ETag": response.headers.get("ETag")}
        return response

    def stand_still(self, still: bool) -> None:
        """Stop what applies operations, or let it go on."""
        if still != self.stopped:
            for name in STILL:
                self.kassa.signal(name, signal.SIGSTOP if still else signal.SIGCONT)
            if not still:
                until(lambda: self.kassa.pending() == 0)
        self.stopped = still


@pytest.fixture(scope="module")
def contract(running: Kassa) -> Contract:
    return Contract(running.http.get("/openapi.json").raise_for_status().json())


def test_every_example_is_answered_as_documented(kassa: Kassa, mailbox: Mailbox, contract: Contract):
    day = Day(kassa, mailbox)
    recorded: dict[str, Any] = {}
    try:
        for example in EXAMPLES:
            request = day.request(example)
            response = day.send(example, request)
            assert response.status_code == example.status, f"{example.name}: {response.text}"
            assert contract.call(response.request) == example.call
            contract.check(response)
            if example.code:
                assert response.json()["code"] == example.code, example.name
            answer = shown(response)
            recorded[example.name] = {
                "call": example.call,
                "status": example.status,
                "request": masked(request),
                "answer": answer,
            }
    finally:
        day.stand_still(False)
    if os.environ.get("RECORD_EXAMPLES"):
        RECORDED.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
    before = json.loads(RECORDED.read_text())
    assert {name: shape(each) for name, each in recorded.items()} == {
        name: shape(each) for name, each in before.items()
    }, "record the examples again: RECORD_EXAMPLES=1"


def shown(response: httpx.Response) -> dict[str, Any]:
    """What the document shows of an answer; of its own self, nothing."""
    media_type = response.headers.get("Content-Type", "").partition(";")[0]
    if not response.content or response.request.url.path == "/openapi.json":
        return {}
    if media_type.endswith("json"):
        return {"type": media_type, "body": masked(response.json())}
    text = "".join(response.text.splitlines(keepends=True)[:ROWS_SHOWN])
    return {"type": media_type, "body": text}


def masked(value: Any) -> Any:
    """A document without what would look like a secret."""
    if isinstance(value, list):
        return [masked(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: "…" if name in SECRETS else masked(each) for name, each in value.items()}


def shape(value: Any) -> Any:
    """A document with types in place of values; of a list, its first element; texts that hold rows, as one."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return type(value).__name__


def test_the_document_has_a_tag_and_is_not_sent_twice(kassa: Kassa):
    first = kassa.http.get("/openapi.json")
    again = kassa.http.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
