"""Another user's id answers exactly like one that nobody has: on every route, in path, body, query and batch item."""

import uuid
from typing import Any

import httpx
import pytest

from tests.end_to_end.conftest import Kassa, User

# Every path with an id in it, and whose ids it takes. A new route must be entered here to pass.
OWNED = {
    "/v1/users/{id}": "user",
    "/v1/accounts/{id}": "account",
    "/v1/accounts/{id}/statement": "account",
    "/v1/operations/{id}": "operation",
    "/v1/batches/{id}": "batch",
}
PUBLIC = {"/v1/services/{id}"}
# Every field of a body or query that takes an id: whose, or None where anybody's may be named by contract.
FIELDS = {
    "account_id": "account",
    "user_id": "user",
    **dict.fromkeys(("to_user_id", "to_account_id", "service_id", "cursor")),
}
BODIES: dict[str, Any] = {"PATCH": {"first_name": "Mallory"}, "POST": {}, "PUT": {}}
SAME_FOR_NOBODY = {"date", "x-request-id"}


@pytest.fixture(scope="module")
def document(running: Kassa) -> dict[str, Any]:
    return running.http.get("/openapi.json").json()


@pytest.fixture
def mallory(kassa: Kassa) -> User:
    return kassa.user(deposit=1_000)


@pytest.fixture
def ids(kassa: Kassa) -> dict[str, str]:
    """Of another user."""
    victim = kassa.user()
    operation = victim.operate(type="deposit", amount=5).json()["id"]
    batch = victim.post("/v1/operations/batch", {"operations": [{"type": "deposit", "amount": 1}]}).json()["batch_id"]
    return {"user": victim.id, "account": victim.account_id, "operation": operation, "batch": batch}


def seen(answer: httpx.Response) -> tuple[Any, ...]:
    """All that an answer gives away."""
    headers = {name: value for name, value in answer.headers.items() if name not in SAME_FOR_NOBODY}
    return answer.status_code, headers, answer.content


def paths_with_ids(document: dict[str, Any]) -> set[str]:
    return {path for path in document["paths"] if "{id}" in path}


def id_fields(found: Any) -> set[str]:
    """Names of all properties and parameters that take a UUID, anywhere below."""
    names: set[str] = set()
    if isinstance(found, dict):
        for name, schema in found.get("properties", {}).items():
            names |= {name} if takes_id(schema) else set()
        if found.get("in") == "query" and takes_id(found["schema"]):
            names.add(found["name"])
    for below in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        names |= id_fields(below)
    return names


def takes_id(schema: dict[str, Any]) -> bool:
    return any(each.get("format") == "uuid" for each in (schema, *schema.get("anyOf", [])))


def requests_in(document: dict[str, Any]) -> list[Any]:
    """What clients send: the parameters of all calls, and the schemas of all bodies."""
    calls = [call for path in document["paths"].values() for call in path.values()]
    bodies = {ref for call in calls for ref in refs(call.get("requestBody", {}))}
    schemas, done = document["components"]["schemas"], set()
    while bodies - done:
        name = (bodies - done).pop()
        done.add(name)
        bodies |= refs(schemas[name])
    return [*(call.get("parameters", []) for call in calls), *(schemas[name] for name in sorted(done))]


def refs(found: Any) -> set[str]:
    if isinstance(found, dict):
        here = {found["$ref"].rpartition("/")[2]} if isinstance(found.get("$ref"), str) else set()
        return here.union(*(refs(each) for each in found.values()))
    return set().union(*(refs(each) for each in found)) if isinstance(found, list) else set()


def test_no_id_is_forgotten_here(document: dict[str, Any]):
    assert paths_with_ids(document) == set(OWNED) | PUBLIC
    assert id_fields(requests_in(document)) == set(FIELDS)


@pytest.mark.parametrize("path", sorted(OWNED))
def test_in_a_path(document: dict[str, Any], mallory: User, ids: dict[str, str], path: str):
    for method in map(str.upper, document["paths"][path]):
        body = {"json": BODIES[method]} if method in BODIES else {}

        def ask(id_: str, method: str = method, body: dict[str, Any] = body) -> tuple[Any, ...]:
            url = path.replace("{id}", id_)
            return seen(mallory.kassa.http.request(method, url, headers=mallory.headers, **body))

        theirs, nobodys = ask(ids[OWNED[path]]), ask(str(uuid.uuid4()))
        assert theirs == nobodys, f"{method} {path}"
        assert theirs[0] in (403, 404)


@pytest.mark.parametrize("kind", ["deposit", "withdrawal", "transfer", "purchase"])
def test_in_a_body_and_in_an_item_of_a_batch(kassa: Kassa, mallory: User, ids: dict[str, str], kind: str):
    rest = {"transfer": {"to_user_id": kassa.user().id}, "purchase": {"service_id": str(uuid.uuid4())}}.get(kind, {})
    body: dict[str, Any] = {"type": kind, **rest} | ({} if kind == "purchase" else {"amount": 1})
    for name in ("account_id", "user_id"):
        for wrap, path in ((False, "/v1/operations"), (True, "/v1/operations/batch")):

            def ask(id_: str, wrap: bool = wrap, path: str = path, name: str = name) -> tuple[Any, ...]:
                item = body | {name: id_}
                answer = mallory.post(path, {"operations": [item]} if wrap else item)
                if not wrap:
                    return seen(answer)
                document = answer.json()
                return answer.status_code, document["accepted"], document["items"]

            assert ask(ids[FIELDS[name] or ""]) == ask(str(uuid.uuid4()))
    assert mallory.get("/v1/operations?limit=100").json()["items"][0]["type"] == "deposit", "nothing was added"


def test_in_a_query(mallory: User, ids: dict[str, str]):
    theirs, nobodys = (
        seen(mallory.get(f"/v1/operations?account_id={each}")) for each in (ids["account"], uuid.uuid4())
    )
    assert theirs[2] == nobodys[2]


def test_what_a_transfer_tells_its_sender_is_what_the_sender_named(kassa: Kassa, mallory: User, ids: dict[str, str]):
    told = mallory.operate(type="transfer", amount=1, to_account_id=ids["account"]).json()
    assert told["counterparty"]["account_id"] == ids["account"]
    assert "balance" not in told["counterparty"]
    assert mallory.get(f"/v1/accounts/{ids['account']}").status_code == 404
