"""Every row of docs/from-other-services.md, walked through against the running processes."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cli.stack import ROOT
from tests.end_to_end.conftest import PASSWORD, Kassa, User, until
from tests.end_to_end.test_services import on_sale, promote

NOBODY = "01a1fb36-b9a6-76c2-81f4-000000000000"
TABLE = (ROOT / "docs" / "from-other-services.md").read_text()
ROWS = re.findall(r"^\| ([A-E]\d+) \|", TABLE, re.MULTILINE)
WALKS: dict[str, Callable[[Kassa], None]] = {}


def row(*names: str) -> Callable[[Callable[[Kassa], None]], Callable[[Kassa], None]]:
    """Register the walk of a row."""

    def register(walk: Callable[[Kassa], None]) -> Callable[[Kassa], None]:
        WALKS.update(dict.fromkeys(names, walk))
        return walk

    return register


@row("A1", "A5", "B2", "E1")
def balances(kassa: Kassa) -> None:
    alice = kassa.user()
    assert alice.get("/v1/balance").json()["balance"] == 0
    alice.operate(type="deposit", amount=10050)
    assert alice.get("/v1/balance").json()["balance_decimal"] == "100.50"
    assert alice.get(f"/v1/accounts/{alice.account_id}").json()["balance"] == 10050


@row("A2", "B4", "D5")
def deposits(kassa: Kassa) -> None:
    alice = kassa.user()
    made = alice.operate(type="deposit", amount=700).json()
    assert made["status"] == "applied"
    assert alice.get("/v1/operations?type=deposit").json()["items"] == [made]


@row("A3", "A6", "B3", "D9", "D12")
def transfers(kassa: Kassa) -> None:
    alice, bob = kassa.user(deposit=500), kassa.user()
    made = alice.operate(type="transfer", amount=200, to_user_id=bob.id, comment="for the flat").json()
    assert made["status"] == "applied"
    [sent] = alice.get("/v1/operations?type=transfer&direction=outgoing").json()["items"]
    [got] = bob.get("/v1/operations?type=transfer&direction=incoming").json()["items"]
    assert (sent["id"], got["id"]) == (made["id"], made["id"])
    assert (sent["counterparty"]["username"], got["counterparty"]["username"]) == (bob.name, alice.name)
    assert (got["amount"], got["comment"], got["direction"]) == (200, "for the flat", "incoming")
    assert got["created_at"] < got["finished_at"]


@row("A4", "E4")
def only_ones_own(kassa: Kassa) -> None:
    alice, mallory = kassa.user(deposit=500), kassa.user()
    stolen = mallory.operate(type="transfer", amount=1, account_id=alice.account_id, to_user_id=mallory.id)
    assert (stolen.status_code, stolen.json()["code"]) == (404, "account_not_found")
    assert mallory.operate(type="withdrawal", amount=1, user_id=alice.id).status_code == 403
    assert mallory.get(f"/v1/accounts/{NOBODY}").status_code == 404


@row("A7", "C4")
def docs(kassa: Kassa) -> None:
    assert kassa.http.get("/openapi.json").json()["openapi"].startswith("3.1")
    for page in ("/docs", "/redoc"):
        assert kassa.http.get(page).headers["Content-Type"].startswith("text/html")


@row("B1", "C1")
def sessions(kassa: Kassa) -> None:
    alice = kassa.user()
    old = alice.tokens["refresh_token"]
    fresh = kassa.http.post("/v1/auth/refresh", json={"refresh_token": old}).json()
    assert fresh["refresh_token"] != old
    headers = {"Authorization": f"Bearer {fresh['access_token']}"}
    assert kassa.http.get("/v1/balance", headers=headers).status_code == 200
    assert kassa.http.post("/v1/auth/logout", headers=headers).status_code == 204
    assert kassa.http.get("/v1/balance", headers=headers).status_code == 401
    spent = kassa.http.post("/v1/auth/refresh", json={"refresh_token": fresh["refresh_token"]})
    assert (spent.status_code, spent.json()["code"]) == (401, "invalid_refresh_token")
    again = kassa.http.post("/v1/auth/login", json={"username": alice.name, "password": PASSWORD})
    assert again.status_code == 200


@row("B5", "C2", "E2", "E3")
def rejections(kassa: Kassa) -> None:
    alice, bob = kassa.user(deposit=100), kassa.user()
    first = alice.operate(type="withdrawal", amount=60, account_id=alice.account_id, key="operation-1")
    assert (first.json()["status"], first.json()["balance_after"]) == ("applied", 40)
    assert alice.operate(type="withdrawal", amount=60, account_id=alice.account_id, key="operation-1").json() == (
        first.json()
    )
    for more in ({"type": "withdrawal"}, {"type": "transfer", "to_user_id": bob.id}):
        answer = alice.operate(amount=41, **more)
        assert (answer.status_code, answer.json()["status"]) == (200, "rejected")
        assert answer.json()["rejection"]["code"] == "insufficient_funds"
    assert alice.balance() == 40


@row("B6", "C9", "E5")
def at_the_same_instant(kassa: Kassa) -> None:
    alice = kassa.user(deposit=1000)
    kinds = ["deposit", "withdrawal"] * 10
    with ThreadPoolExecutor(len(kinds)) as pool:
        answers = list(pool.map(lambda kind: alice.operate(type=kind, amount=10), kinds))
    assert {answer.json()["status"] for answer in answers} == {"applied"}
    assert alice.balance() == 1000


@row("C3")
def cached_history(kassa: Kassa) -> None:
    alice = kassa.user(deposit=1)
    [operation] = alice.get("/v1/operations").json()["items"]
    for path in ("/v1/operations", operation["links"]["self"], operation["links"]["account"]):
        tag = alice.get(path).headers["ETag"]
        assert alice.get(path, **{"If-None-Match": tag}).status_code == 304
    tag = alice.get("/v1/operations").headers["ETag"]
    for change in (lambda: alice.operate(type="deposit", amount=1), lambda: give(kassa, alice)):
        change()
        changed = alice.get("/v1/operations", **{"If-None-Match": tag})
        assert (changed.status_code, changed.headers["ETag"] != tag) == (200, True)
        tag = changed.headers["ETag"]


def give(kassa: Kassa, receiver: User) -> None:
    """Another user's transfer to the receiver."""
    kassa.user(deposit=5).operate(type="transfer", amount=5, to_user_id=receiver.id)


@row("C5")
def to_oneself(kassa: Kassa) -> None:
    alice = kassa.user(deposit=1)
    assert alice.operate(type="transfer", amount=1, to_username=alice.name).json()["code"] == "self_transfer"


@row("C6")
def invalid_amounts(kassa: Kassa) -> None:
    alice = kassa.user()
    for amount in (0, -1, 1.5, "1", None, 10**15 + 1):
        assert alice.operate(type="deposit", amount=amount).json()["errors"][0]["pointer"] == "/amount"


@row("C7")
def without_login(kassa: Kassa) -> None:
    assert kassa.http.get("/v1/operations").json()["code"] == "missing_token"


@row("C8")
def what_does_not_exist(kassa: Kassa) -> None:
    alice = kassa.user(deposit=1)
    assert alice.get(f"/v1/operations/{NOBODY}").status_code == 404
    assert alice.get("/v1/nonsense").status_code == 404
    assert alice.operate(type="transfer", amount=1, to_user_id=NOBODY).status_code == 404


@row("D3")
def accounts(kassa: Kassa) -> None:
    alice = kassa.user()
    opened = alice.post("/v1/accounts", {"currency": "EUR", "name": "holidays"})
    again = alice.post("/v1/accounts", {"currency": "EUR", "name": "holidays"})
    assert (opened.status_code, again.status_code) == (201, 200)
    assert opened.json() == again.json()
    assert opened.json() in alice.get("/v1/accounts").json()["items"]


@row("D4")
def another_currency(kassa: Kassa) -> None:
    alice = kassa.user(deposit=1_000_000)
    converted = alice.get("/v1/balance?currency=USD").json()["converted"]
    assert converted["currency"] == "USD"
    assert 0 < converted["balance"] < 1_000_000
    assert converted["rate_date"]


@row("D6", "D7", "D8")
def services(kassa: Kassa) -> None:
    alice, service = kassa.user(deposit=5000), on_sale(promote(kassa, kassa.user(), "admin"), price=1200)
    assert service in kassa.http.get("/v1/services?currency=RUB&limit=100").json()["items"]
    bought = alice.operate(type="purchase", service_id=service["id"]).json()
    assert bought["status"] == "applied"
    assert alice.get("/v1/operations?type=purchase").json()["items"] == [bought]
    second = alice.operate(type="purchase", service_id=service["id"]).json()
    assert second["rejection"]["code"] == "already_purchased"


@row("D2")
def profile(kassa: Kassa) -> None:
    alice = kassa.user()
    changed = kassa.http.patch("/v1/users/me", json={"first_name": "Alice", "bio": "hi"}, headers=alice.headers)
    assert changed.status_code == 200
    assert alice.get("/v1/users/me").json()["first_name"] == "Alice"
    assert kassa.http.patch("/v1/users/me", json={"role": "admin"}, headers=alice.headers).status_code == 422


@row("D10")
def roles(kassa: Kassa) -> None:
    admin, moderator = promote(kassa, kassa.user(), "admin"), promote(kassa, kassa.user(), "auditor")
    alice = kassa.user()
    assert alice.get("/v1/users").status_code == 403
    found = moderator.get(f"/v1/users?search={alice.name}").json()["items"]
    assert [user["id"] for user in found] == [alice.id]
    path = f"/v1/users/{alice.id}"
    assert kassa.http.patch(path, json={"role": "service"}, headers=moderator.headers).status_code == 403
    assert kassa.http.patch(path, json={"role": "service"}, headers=admin.headers).json()["role"] == "service"
    assert kassa.http.delete(path, headers=admin.headers).status_code == 204
    assert alice.get("/v1/balance").status_code == 401


@row("D11")
def pages(kassa: Kassa) -> None:
    alice = kassa.user()
    for amount in (3, 1, 2):
        alice.operate(type="deposit", amount=amount)
    for sort, amounts in (("amount", [1, 2, 3]), ("-amount", [3, 2, 1]), ("created_at", [3, 1, 2])):
        first = alice.get(f"/v1/operations?limit=2&sort={sort}").json()
        rest = alice.get(f"/v1/operations?limit=2&sort={sort}&cursor={first['next_cursor']}").json()
        assert [item["amount"] for item in first["items"] + rest["items"]] == amounts


@row("D13")
def revenue(kassa: Kassa) -> None:
    admin = promote(kassa, kassa.user(), "admin")
    service = on_sale(admin, name="sauna")
    kassa.user(deposit=5000).operate(type="purchase", service_id=service["id"])
    report = admin.get("/v1/reports/revenue", Accept="text/csv")
    assert f"{service['id']},sauna,RUB,1,2500,25.00" in report.text


@row("D1")
def email_codes(kassa: Kassa) -> None:
    email = f"{kassa.user().name}@example.com"
    assert kassa.http.post("/v1/auth/email", json={"email": email}).status_code == 202
    until(lambda: bool(kassa.mailbox.codes(email)))
    body = {"email": email, "confirmation_code": kassa.mailbox.codes(email)[0]}
    tokens = kassa.http.post("/v1/auth/token", json=body).json()
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert kassa.http.get("/v1/users/me", headers=headers).json()["email"] == email
    assert kassa.http.get("/v1/balance", headers=headers).json()["balance"] == 0


@pytest.mark.parametrize("name", ROWS)
def test_row(kassa: Kassa, name: str):
    WALKS[name](kassa)


def test_every_row_is_walked_and_every_walk_has_a_row():
    assert sorted(WALKS) == sorted(ROWS)
    assert len(ROWS) == len(set(ROWS))
