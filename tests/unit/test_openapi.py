"""The OpenAPI document against the code: routes, problems, schemas and examples are all there, and nothing else."""

import inspect
import json
import re
from typing import Any

import falcon
import falcon.inspect
import falcon.testing
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from api import docs, openapi, schemas
from api.app import build
from api.dependencies import Dependencies
from api.errors import PROBLEM_JSON, PROBLEMS
from api.openapi_calls import CALLS
from api.openapi_examples import EXAMPLES
from core.settings import Settings

PAGES = {"GET /docs", "GET /redoc"}
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def app() -> openapi.App:
    """The application; nothing is there that it could connect to."""
    nowhere = {"database_url": "postgresql://nobody@127.0.0.1:1/none", "redis_url": "redis://127.0.0.1:1/0"}
    dependencies = Dependencies.make(Settings(secret_key="not secret at all, but long enough", **nowhere))
    app = build(dependencies)
    assert isinstance(app, openapi.App)
    return app


@pytest.fixture(scope="module")
def client(app: openapi.App) -> falcon.testing.TestClient:
    return falcon.testing.TestClient(app)


@pytest.fixture(scope="module")
def document(client: falcon.testing.TestClient) -> dict[str, Any]:
    return client.simulate_get("/openapi.json").json


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every operation as `METHOD /path`."""
    return {
        f"{method.upper()} {path}": operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


def test_it_is_valid_openapi(document: dict[str, Any]):
    assert document["openapi"].startswith("3.1.")
    validate(document)


def test_router_table_and_document_have_the_same_calls(app: openapi.App, document: dict[str, Any]):
    routed = {
        f"{method.method} {re.sub(r':[a-z]+}', '}', route.path)}"
        for route in falcon.inspect.inspect_routes(app)
        for method in route.methods
        if not method.internal
    }
    assert set(operations(document)) == routed - PAGES
    assert set(CALLS) == routed - PAGES


def test_every_call_says_what_it_does_and_who_may(app: openapi.App, document: dict[str, Any]):
    for key, operation in operations(document).items():
        responder = app.responders[key]
        assert operation["summary"] == inspect.getdoc(responder).split("\n")[0]
        assert operation.get("x-roles") == (list(responder.roles) if hasattr(responder, "roles") else None), key
        assert ("security" in operation) == ("401" in operation["responses"] and "x-roles" in operation), key
        assert operation["tags"][0] in {tag["name"] for tag in document["tags"]}
    identifiers = [operation["operationId"] for operation in operations(document).values()]
    assert len(set(identifiers)) == len(identifiers)


def problems(operation: dict[str, Any]) -> dict[str, set[str]]:
    """The codes of an operation by status."""
    found = {}
    for status, response in operation["responses"].items():
        if schema := response.get("content", {}).get(PROBLEM_JSON, {}).get("schema"):
            found[status] = set(schema["allOf"][1]["properties"]["code"]["enum"])
    return found


def test_every_problem_is_some_calls_answer_under_its_status(document: dict[str, Any]):
    named = set()
    for operation in operations(document).values():
        for status, codes in problems(operation).items():
            assert status == "default" or {PROBLEMS[code].status for code in codes} == {int(status)}
            named |= codes
    assert named == set(PROBLEMS)
    assert set(document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]) == set(PROBLEMS)


def test_every_request_schema_is_some_calls_request(document: dict[str, Any]):
    named = set(document["components"]["schemas"])
    defined = {
        name
        for name, each in vars(schemas).items()
        if inspect.isclass(each)
        and issubclass(each, schemas.Body)
        and each not in (schemas.Body, schemas.OperationBody)
    }
    assert defined - named == set()
    assert not [name for name in named if "." in name], "two schemas have the same name"


def test_operations_are_told_apart_by_their_type(document: dict[str, Any]):
    body = operations(document)["POST /v1/operations"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["discriminator"]["propertyName"] == "type"
    assert sorted(body["discriminator"]["mapping"].values()) == sorted(each["$ref"] for each in body["oneOf"])


@pytest.mark.parametrize(
    ("receiver", "valid"),
    [
        ({"to_username": "bob"}, True),
        ({"to_username": "bob", "to_user_id": None}, True),
        ({"to_username": "bob", "to_user_id": "01a1fb36-b9a6-76c2-81f4-000000000000"}, False),
        ({"to_username": None}, False),
        ({}, False),
    ],
)
def test_a_transfer_has_exactly_one_receiver(document: dict[str, Any], receiver: dict[str, Any], valid: bool):
    schema = {"$ref": "#/components/schemas/Transfer", "components": document["components"]}
    assert Draft202012Validator(schema).is_valid({"type": "transfer", "amount": 1, **receiver}) == valid


def test_patterns_are_written_as_browsers_read_them(document: dict[str, Any]):
    assert not re.search(r"\\\\[AZ]|\\\\ud", json.dumps(document))


def test_every_call_has_an_example_and_every_example_was_recorded(document: dict[str, Any]):
    recorded = json.loads(openapi.RECORDED.read_text())
    assert {example.name for example in EXAMPLES} == set(recorded)
    assert len({example.name for example in EXAMPLES}) == len(EXAMPLES)
    assert {example.call for example in EXAMPLES} == set(operations(document))
    shown = json.dumps(document["paths"])
    for name, each in recorded.items():
        assert f'"{name}": {{"value"' in shown or not (each["request"] or each["answer"]), f"{name} is shown nowhere"
    assert "$" not in json.dumps(list(recorded.values())), "a placeholder was recorded"
    assert not re.search(r"eyJ[\w-]+\.", openapi.RECORDED.read_text()), "a token was recorded"


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_pages_load_nothing_from_elsewhere(client: falcon.testing.TestClient, path: str):
    page = client.simulate_get(path)
    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert policy == docs.POLICY
    assert not re.search(r"https?:|\*|unsafe-eval|script-src[^;]*unsafe-inline", policy)
    linked = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(linked) > 3
    assert "//" not in page.text.replace("<!doctype html>", "")
    assert not re.search(r"<script>|<script [^>]*>[^<]", page.text), "no script stands in the page itself"
    for each in linked:
        assert client.simulate_get(each).status_code == 200, each


def test_our_own_scripts_name_no_other_server():
    for file in docs.PAGES.iterdir():
        assert not re.search(r"https?://", file.read_text()), file.name
