"""What a request may not set it cannot name: every body of the OpenAPI document refuses every field but its own."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from core import sessions, settings, tables
from tests.end_to_end.conftest import Kassa
from tests.end_to_end.security.test_ownership import refs

ELSEWHERE = {"is_admin", "is_staff", "is_superuser", "permissions", "balances", "__proto__", "constructor"}
VALUE = "admin"


@pytest.fixture(scope="module")
def document(running: Kassa) -> dict[str, Any]:
    return running.http.get("/openapi.json").json()


def bodies(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each call, and each of its bodies: method, path, schema."""
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            for name in sorted(all_refs(document, refs(call.get("requestBody", {})))):
                schema = document["components"]["schemas"][name]
                if "properties" in schema:
                    yield method, path, schema


def all_refs(document: dict[str, Any], names: set[str]) -> set[str]:
    """The schemas, and those that they are made of."""
    below = {each for name in names for each in refs(document["components"]["schemas"][name])}
    return names if below <= names else all_refs(document, names | below)


def everything(document: dict[str, Any]) -> set[str]:
    """Every name by which something is shown, or stored."""
    shown = {name for each in document["components"]["schemas"].values() for name in each.get("properties", {})}
    return shown | {column.name for table in tables.metadata.tables.values() for column in table.columns} | ELSEWHERE


@pytest.fixture
def headers(kassa: Kassa) -> dict[str, str]:
    """Of an administrator, whom no role keeps from anything."""
    admin = kassa.user()
    with kassa.engine.begin() as connection:
        connection.execute(sa.text("UPDATE users SET role = 'admin' WHERE id = :id"), {"id": admin.id})
        token = sessions.open_session(connection, settings.load(kassa.stack.environment), admin.id)["access_token"]
    kassa.issued.add(token)
    return {"Authorization": f"Bearer {token}"}


def with_more(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By name: a body of that schema's type with that name in it, which is not its own."""
    tags = {name: each["enum"][0] for name, each in schema["properties"].items() if "enum" in each}
    return {name: {**tags, name: VALUE} for name in sorted(everything(document) - set(schema["properties"]))}


def test_no_body_takes_a_field_that_is_not_its_own(kassa: Kassa, document: dict[str, Any], headers: dict[str, str]):
    called = set()
    for method, path, schema in bodies(document):
        called.add((method, path))
        for name, body in with_more(document, schema).items():
            url = path.replace("{id}", str(uuid.uuid4()))
            answer = kassa.http.request(method, url, json=body, headers=headers)
            assert answer.status_code == 422, f"{method} {path} {body}: {answer.text}"
            assert answer.json()["errors"][0]["pointer"] == f"/{name}", f"{method} {path} {body}: {answer.text}"
    assert len(called) > 10


def test_nor_does_an_item_of_a_batch(kassa: Kassa, document: dict[str, Any], headers: dict[str, str]):
    schemas = [schema for _, path, schema in bodies(document) if path == "/v1/operations"]
    asked = [(name, body) for schema in schemas for name, body in with_more(document, schema).items()]
    items = {"operations": [body for _, body in asked]}
    batch = kassa.http.post("/v1/operations/batch", json=items, headers=headers).json()
    assert [item["errors"][0]["pointer"] for item in batch["items"]] == [f"/{name}" for name, _ in asked]
