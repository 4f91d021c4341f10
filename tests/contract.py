"""Holds answers to the OpenAPI document: status, headers, media type, schema, and no field that it does not have."""

import json
import re
from functools import cache
from typing import Any

import httpx
import msgspec
from jsonschema import Draft202012Validator

from api.answers import Problem
from api.errors import PROBLEM_JSON
from api.openapi_calls import CALLS, ELSEWHERE, HEADERS
from api.responses import CSV


class Contract:
    """The document that a running Kassa shows of itself."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.paths = {re.compile(re.sub(r"{\w+}", r"[^/]+", path)): path for path in document["paths"]}

    def call(self, request: httpx.Request) -> str | None:
        """`METHOD /path` of the call that a request is, or None where there is none."""
        for pattern, path in sorted(self.paths.items(), key=lambda item: "{" in item[1]):
            if pattern.fullmatch(request.url.path) and request.method.lower() in self.document["paths"][path]:
                return f"{request.method} {path}"
        return None

    def hold(self, response: httpx.Response) -> None:
        """For httpx's event hooks, which come before the body."""
        response.read()
        self.check(response)

    def check(self, response: httpx.Response) -> None:
        """Fail unless the answer is as documented. What is no call of ours is not looked at."""
        call = self.call(response.request)
        if call is None:
            return
        method, path = call.split(" ")
        documented = self.document["paths"][path][method.lower()]["responses"]
        status = str(response.status_code)
        assert status in documented, f"{call} answers {status}, which is not documented: {response.text[:500]}"
        self.check_headers(call, response, documented[status]["headers"])
        self.check_body(call, response, documented[status].get("content", {}))

    def check_headers(self, call: str, response: httpx.Response, documented: dict[str, Any]) -> None:
        """Every header that the document knows stands at this answer, too, and looks as it says."""
        for name, (_, schema) in HEADERS.items():
            if (value := response.headers.get(name)) is not None:
                assert name in documented, f"{call} answers {response.status_code} with {name}, which is not documented"
                self.validator(json.dumps(schema)).validate(int(value) if schema["type"] == "integer" else value)

    def check_body(self, call: str, response: httpx.Response, documented: dict[str, Any]) -> None:
        """The body is of a documented media type, and fits both the schema and the type behind it."""
        if not documented:
            assert response.content == b"", f"{call} answers {response.status_code} with a body"
            return
        media_type = response.headers["Content-Type"].partition(";")[0]
        assert media_type in documented, f"{call} answers {media_type}"
        body = response.json() if media_type.endswith("json") else response.text
        self.validator(json.dumps(documented[media_type]["schema"])).validate(body)
        if media_type == PROBLEM_JSON:
            msgspec.convert(body, Problem)
            assert body["status"] == response.status_code
            assert body["code"] not in ELSEWHERE or "{" in call
        elif media_type != CSV:
            msgspec.convert(body, CALLS[call].answers[response.status_code])

    @cache  # noqa: B019  # one contract lives as long as the tests
    def validator(self, schema: str) -> Draft202012Validator:
        """A validator of a schema of the document."""
        whole = json.loads(schema) | {"components": self.document["components"]}
        return Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
