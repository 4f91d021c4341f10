"""The OpenAPI 3.1 document: assembled from the routes, the schemas, the table of problems and the table of calls."""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import falcon
import msgspec
from apispec import APISpec
from falcon.routing import map_http_methods

from api import answers
from api.auth import EVERYONE
from api.errors import PROBLEM_JSON, PROBLEMS
from api.openapi_calls import (
    CALLS,
    ELSEWHERE,
    EVERY_CALL,
    HEADERS,
    REQUEST_HEADERS,
    TAGS,
    WITH_BODY,
    WITH_DATABASE,
    WITH_TOKEN,
    Call,
)
from api.responses import CSV

Document = dict[str, Any]

VERSION = "1"
RECORDED = Path(__file__).parent / "openapi_examples.json"
DESCRIPTION = """
Kassa takes operations on accounts, stores them durably before it answers, and applies each user's in order.

- Every refusal is a problem document (RFC 9457). With `"accepted": false` nothing was stored, for certain. After a
  timeout, or another 5xx, nobody knows: repeat the request with the same `Idempotency-Key`.
- Money is an integer of minor units: `10050` is 100.50 RUB. Ids are UUIDs of version 7, times RFC 3339 in UTC.
- Somebody else's id answers exactly like one that does not exist.
"""
EXACTLY_ONE = {"Transfer": ("to_user_id", "to_username", "to_account_id")}
"""Fields of which one must be there, and not null; `api/schemas.py` says so in code."""


class App(falcon.App):
    """A Falcon application that remembers what answers on its routes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.responders: dict[str, Callable] = {}

    def add_route(self, uri_template: str, resource: object, **named: Any) -> None:
        """Add a route as Falcon does, and note its responders as `METHOD /path`."""
        super().add_route(uri_template, resource, **named)
        path = re.sub(r":\w+}", "}", uri_template)
        for method, responder in map_http_methods(resource, suffix=named.get("suffix")).items():
            self.responders[f"{method} {path}"] = responder


def document(responders: dict[str, Callable]) -> Document:
    """The document of these routes. A call that the table does not have is shown with what its responder says."""
    used = dict.fromkeys(tag(key) for key in responders)
    tags = [{"name": name, "description": said} for name, said in used]
    info = {"description": inspect.cleandoc(DESCRIPTION)}
    spec = APISpec("Kassa", VERSION, "3.1.0", info=info, servers=[{"url": "/"}], tags=tags)
    calls = {key: CALLS.get(key, Call({200: answers.OpenApi})) for key in responders}
    schemas = Schemas(calls.values())
    for name, schema in schemas.components.items():
        spec.components.schema(name, schema)
    for name, (said, schema) in HEADERS.items():
        spec.components.header(name, {"description": said, "schema": schema})
    for name, (said, schema) in REQUEST_HEADERS.items():
        spec.components.parameter(name, "header", {"description": said, "schema": schema})
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    recorded = json.loads(RECORDED.read_bytes()) if RECORDED.exists() else {}
    for key, call in calls.items():
        method, path = key.split(" ")
        examples = {name: each for name, each in recorded.items() if each["call"] == key}
        operation = describe(key, responders[key], call, schemas)
        add_examples(operation, examples)
        spec.path(path, operations={method.lower(): operation})
    return spec.to_dict()


class Schemas:
    """The JSON schemas of everything that is sent, in the dialect that browsers and OpenAPI share."""

    def __init__(self, calls: Iterable[Call]) -> None:
        wanted = [answers.Problem]
        for call in calls:
            wanted += [each for each in (call.body, call.query, *call.answers.values()) if each is not None]
        found, components = msgspec.json.schema_components(wanted, ref_template="#/components/schemas/{name}")
        self.of = {repr(each): dialect(schema) for each, schema in zip(wanted, found, strict=True)}
        self.components = {name: dialect(schema) for name, schema in components.items()}
        for name, fields in EXACTLY_ONE.items():
            self.components[name]["oneOf"] = [
                {"required": [each], "not": {"properties": {each: NULL}}} for each in fields
            ]
        for name, schema in self.components.items():
            if hasattr(answers, name):  # clients must not break when an answer shows more than today
                schema.pop("additionalProperties", None)

    def schema(self, wanted: Any) -> Document:
        """The schema of a type, a reference if it has a name."""
        return self.of[repr(wanted)]

    def parameters(self, query: Any) -> Iterator[Document]:
        """The fields of a query as parameters; they are no components of their own."""
        component = self.components[self.schema(query)["$ref"].rpartition("/")[2]]
        for name, schema in component["properties"].items():
            alternatives = [each for each in schema.get("anyOf", []) if each != NULL]
            if alternatives:
                [schema] = alternatives  # absent is the only null that a query knows
            yield {"name": name, "in": "query", "required": name in component.get("required", []), "schema": schema}


TEXT = {"type": "string"}
NULL = {"type": "null"}


def dialect(schema: Any) -> Any:
    """A schema of msgspec's with Python's patterns written as browsers write them, and unions told apart by a field."""
    if isinstance(schema, list):
        return [dialect(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: dialect(value) for name, value in schema.items()}
    if isinstance(made.get("pattern"), str):
        # JSON has no lone surrogates, once it is decoded as it must be.
        made["pattern"] = made["pattern"].replace(r"\A", "^").replace(r"\Z", "$").replace(r"\ud800-\udfff", "")
    if isinstance(made.get("description"), str):
        made["description"] = inspect.cleandoc(made["description"])
    if "discriminator" in made:
        made["oneOf"] = made.pop("anyOf")
    return made


def describe(key: str, responder: Callable, call: Call, schemas: Schemas) -> Document:
    """An operation object, without examples."""
    roles = getattr(responder, "roles", ())
    operation: Document = {
        "operationId": "_".join(re.findall(r"\w+", key.lower())),
        "tags": [tag(key)[0]],
        "summary": inspect.getdoc(responder).split("\n")[0],  # type: ignore[union-attr]  # a linter asks for it
        "description": described(responder, roles, call),
        "parameters": list(parameters(key, call, schemas)),
        "responses": dict(successes(call, schemas)) | dict(refusals(key, roles, call)),
    }
    if roles:
        operation |= {"security": [{"bearer": []}], "x-roles": list(roles)}
    if call.body is not None:
        operation["requestBody"] = {"required": True, "content": content("application/json", schemas.schema(call.body))}
    return operation


def tag(key: str) -> tuple[str, str]:
    """The name and description of the group that a call belongs to."""
    return next(group for beginning, group in TAGS.items() if key.split(" ")[1].startswith(beginning))


def described(responder: Callable, roles: tuple[str, ...], call: Call) -> str:
    """What is to be said of a call beyond its summary."""
    lines = (inspect.getdoc(responder) or "").split("\n")[1:]
    lines.append(f"Roles: {', '.join(roles)}." if roles else "For everyone, without a token.")
    if call.csv:
        lines.append(f"With `Accept: {CSV}` the answer is a CSV file.")
    return "\n\n".join(line for line in lines if line)


def parameters(key: str, call: Call, schemas: Schemas) -> Iterator[Document]:
    """Of the path, the query and the headers."""
    for name in re.findall(r"{(\w+)}", key):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
    if call.query is not None:
        yield from schemas.parameters(call.query)
    for name in ("X-Request-Id", *call.request_headers, *(["If-None-Match"] if call.tagged else [])):
        said, schema = REQUEST_HEADERS[name]
        yield {"name": name, "in": "header", "description": said, "schema": schema}


def successes(call: Call, schemas: Schemas) -> Iterator[tuple[str, Document]]:
    """The answers to what is granted."""
    for status, wanted in call.answers.items():
        names = (*call.headers.get(status, ()), *(["ETag"] if call.tagged else []))
        answer: Document = {"description": STATUSES[status]}
        if wanted is not None:
            answer["content"] = content(call.media_type, schemas.schema(wanted))
        if call.csv:
            answer["content"] |= content(CSV, TEXT)
            names = (*names, "Vary", "Content-Disposition")
        yield str(status), answer | {"headers": headers(*names)}
    if call.tagged:
        yield "304", {"description": STATUSES[304], "headers": headers("ETag")}


STATUSES = {200: "Done.", 201: "Made.", 202: "Accepted.", 204: "Done; there is nothing to say.", 304: "As it was."}


def refusals(key: str, roles: tuple[str, ...], call: Call) -> Iterator[tuple[str, Document]]:
    """The problems, by status, each with the codes that it may have here."""
    by_status: dict[int, list[str]] = {}
    for code in codes(key, roles, call):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    for status, found in sorted(by_status.items()):
        yield str(status), refusal(found)
    elsewhere = refusal(ELSEWHERE)
    elsewhere["headers"] |= headers("Allow")
    yield "default", elsewhere


def codes(key: str, roles: tuple[str, ...], call: Call) -> list[str]:
    """The codes of all problems that a call may answer with."""
    found = [*call.problems, *EVERY_CALL]
    if roles:
        found += WITH_TOKEN
    if roles and set(roles) != set(EVERYONE):
        found.append("forbidden")
    if call.body is not None:
        found += WITH_BODY
    if call.query is not None:
        found.append("validation_failed")
    if "{" in key:
        found.append("not_found")
    if call.database:
        found += WITH_DATABASE
    return sorted(set(found))


def refusal(found: Iterable[str]) -> Document:
    """A response object for some codes, which share a status."""
    codes = list(found)
    statuses = {PROBLEMS[code].status for code in codes}
    names = [name for status, name in PROBLEM_HEADERS.items() if status in statuses]
    schema = {"allOf": [{"$ref": "#/components/schemas/Problem"}, {"properties": {"code": {"enum": codes}}}]}
    lines = [f"- `{code}`: {PROBLEMS[code].title}." for code in codes]
    return {"description": "\n".join(lines), "content": content(PROBLEM_JSON, schema), "headers": headers(*names)}


PROBLEM_HEADERS = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}


def headers(*names: str) -> Document:
    """Header objects of an answer; the request's id is in every one."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def content(media_type: str, schema: Document) -> Document:
    """A media type object."""
    return {media_type: {"schema": schema}}


def add_examples(operation: Document, examples: dict[str, Document]) -> None:
    """Show requests that were made, each with the answer that came."""
    for name, each in examples.items():
        for parameter in operation["parameters"]:
            given = each["request"].get(parameter["in"], {}).get(parameter["name"])
            if given is not None:
                parameter.setdefault("examples", {})[name] = {"value": given}
        if "body" in each["request"]:
            show(operation["requestBody"], "application/json", name, each["request"]["body"])
        if "body" in each["answer"]:
            show(operation["responses"][str(each["status"])], each["answer"]["type"], name, each["answer"]["body"])


def show(place: Document, media_type: str, name: str, value: Any) -> None:
    """Put an example into a request body or a response."""
    place["content"][media_type].setdefault("examples", {})[name] = {"value": value}
