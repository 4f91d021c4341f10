"""Services on sale, purchases, the revenue report; statements and balances of the past."""

import csv
import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from tests.end_to_end.conftest import Kassa, User


def promote(kassa: Kassa, user: User, role: str) -> User:
    """Give a user a role, as an administrator would."""
    with kassa.engine.begin() as connection:
        connection.execute(sa.text("UPDATE users SET role = :role WHERE id = :id"), {"role": role, "id": user.id})
    return user


@pytest.fixture
def admin(kassa: Kassa) -> User:
    return promote(kassa, kassa.user(), "admin")


def on_sale(admin: User, **fields: object) -> dict:
    """A new service."""
    answer = admin.post("/v1/services", {"name": "massage", "price": 2500, **fields})
    assert answer.status_code == 201, answer.text
    assert admin.get(answer.headers["Location"]).json() == answer.json()
    return answer.json()


def test_a_service_is_bought_once_at_its_price(kassa: Kassa, admin: User):
    alice, service = kassa.user(deposit=10_000), on_sale(admin, description="an hour")
    bought = alice.operate(type="purchase", service_id=service["id"], comment="for my back").json()
    assert (bought["status"], bought["amount"], bought["balance_after"]) == ("applied", 2500, 7500)
    assert bought["purchase"] == {
        "service_id": service["id"],
        "service": "massage",
        "price": 2500,
        "price_decimal": "25.00",
        "price_currency": "RUB",
        "rate": None,
        "rate_date": None,
    }
    again = alice.operate(type="purchase", service_id=service["id"]).json()
    assert (again["status"], again["rejection"]["code"]) == ("rejected", "already_purchased")
    assert [item["id"] for item in alice.get("/v1/operations?type=purchase&status=applied").json()["items"]] == [
        bought["id"]
    ]
    assert alice.balance() == 7500


def test_of_many_simultaneous_purchases_one_is_applied(kassa: Kassa, admin: User):
    alice, service = kassa.user(deposit=100_000), on_sale(admin)
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: alice.operate(type="purchase", service_id=service["id"]), range(20)))
    assert Counter(answer.json()["status"] for answer in answers) == {"applied": 1, "rejected": 19}
    assert alice.balance() == 97_500


def test_a_price_is_frozen_at_acceptance_and_unavailable_is_rejected(kassa: Kassa, admin: User):
    alice, bob, service = kassa.user(deposit=10_000), kassa.user(deposit=10_000), on_sale(admin)
    first = alice.operate(type="purchase", service_id=service["id"], key="one").json()
    changed = kassa.http.patch(f"/v1/services/{service['id']}", json={"price": 9999}, headers=admin.headers)
    assert changed.json()["price"] == 9999
    replayed = alice.operate(type="purchase", service_id=service["id"], key="one")
    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert replayed.json() == first
    assert kassa.http.delete(f"/v1/services/{service['id']}", headers=admin.headers).status_code == 204
    late = bob.operate(type="purchase", service_id=service["id"]).json()
    assert (late["status"], late["rejection"]["code"]) == ("rejected", "service_unavailable")
    assert bob.operate(type="purchase", service_id=alice.id).json()["code"] == "service_not_found"
    assert bob.balance() == 10_000


def test_a_price_in_another_currency_is_converted_and_both_are_shown(kassa: Kassa, admin: User):
    alice, service = kassa.user(deposit=1_000_000), on_sale(admin, price=1000, currency="USD")
    bought = alice.operate(type="purchase", service_id=service["id"]).json()
    purchase = bought["purchase"]
    assert (purchase["price"], purchase["price_currency"], bought["currency"]) == (1000, "USD", "RUB")
    assert bought["amount"] == round(1000 * float(purchase["rate"]))
    assert purchase["rate_date"]
    assert alice.balance() == 1_000_000 - bought["amount"]


def test_only_administrators_sell_and_everyone_looks(kassa: Kassa, admin: User):
    alice, service = kassa.user(), on_sale(admin, currency="CZK")
    body = {"name": "x", "price": 1}
    assert alice.post("/v1/services", body).status_code == 403
    assert kassa.http.post("/v1/services", json=body).status_code == 401
    assert admin.post("/v1/services", {**body, "currency": "ZZZ"}).json()["code"] == "unknown_currency"
    assert admin.post("/v1/services", {**body, "price": 0}).status_code == 422
    listed, path = [], "/v1/services?currency=CZK&limit=1"
    while path:
        page = kassa.http.get(path).json()
        listed += page["items"]
        path = page["next_cursor"] and f"/v1/services?currency=CZK&limit=1&cursor={page['next_cursor']}"
    assert service in listed
    assert {item["currency"] for item in listed} == {"CZK"}


def test_revenue_by_service_as_json_and_csv(kassa: Kassa, admin: User):
    service = on_sale(admin, name="=cmd|' /C calc'!A0", price=700)
    for _ in range(3):
        kassa.user(deposit=1000).operate(type="purchase", service_id=service["id"])
    auditor = promote(kassa, kassa.user(), "auditor")
    month = datetime.now(UTC).strftime("%Y-%m")
    report = auditor.get(f"/v1/reports/revenue?month={month}").json()
    [line] = [item for item in report["items"] if item["service_id"] == service["id"]]
    assert (line["purchases"], line["revenue"], line["revenue_decimal"], line["currency"]) == (3, 2100, "21.00", "RUB")
    table = auditor.get("/v1/reports/revenue", Accept="text/csv")
    assert table.headers["Content-Type"].startswith("text/csv")
    [row] = [row for row in csv.DictReader(io.StringIO(table.text)) if row["service_id"] == service["id"]]
    assert row["service"] == "'=cmd|' /C calc'!A0", "no spreadsheet runs it"
    assert (row["purchases"], row["revenue"]) == ("3", "2100")
    assert auditor.get("/v1/reports/revenue?month=1999-01").json()["items"] == []
    for wrong in ("2026-13", "2026", "9999-12"):
        assert auditor.get(f"/v1/reports/revenue?month={wrong}").status_code == 422
    assert kassa.user().get("/v1/reports/revenue").status_code == 403


def test_a_statement_accounts_for_every_entry(kassa: Kassa):
    alice, bob = kassa.user(deposit=1000), kassa.user()
    alice.operate(type="transfer", amount=300, to_user_id=bob.id, comment='=HYPERLINK("x")')
    middle = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    alice.operate(type="withdrawal", amount=50)
    path = f"/v1/accounts/{alice.account_id}/statement"
    whole = alice.get(path).json()
    assert (whole["opening_balance"], whole["closing_balance"], whole["next_cursor"]) == (0, 650, None)
    assert [(e["version"], e["type"], e["amount"], e["balance_after"]) for e in whole["entries"]] == [
        (1, "deposit", 1000, 1000),
        (2, "transfer", -300, 700),
        (3, "withdrawal", -50, 650),
    ]
    assert whole["entries"][1]["counterparty"]["username"] == bob.name
    before, after = alice.get(f"{path}?to={middle}").json(), alice.get(f"{path}?from={middle}").json()
    assert (before["opening_balance"], before["closing_balance"], len(before["entries"])) == (0, 700, 2)
    assert (after["opening_balance"], after["closing_balance"], len(after["entries"])) == (700, 650, 1)
    pages, cursor = [], 0
    while cursor is not None:
        page = alice.get(f"{path}?limit=2&cursor={cursor}").json()
        pages += page["entries"]
        cursor = page["next_cursor"]
    assert pages == whole["entries"]
    table = list(csv.DictReader(io.StringIO(alice.get(path, Accept="text/csv").text)))
    assert [row["balance_after"] for row in table] == ["0.00", "10.00", "7.00", "6.50", "6.50"]
    assert [row["amount"] for row in table] == ["", "10.00", "-3.00", "-0.50", ""]
    assert table[2]["comment"] == '\'=HYPERLINK("x")'
    for headers in ({}, {"Accept": "text/csv"}):
        tag = alice.get(path, **headers).headers["ETag"]
        assert alice.get(path, **headers, **{"If-None-Match": tag}).status_code == 304
        assert alice.get(f"{path}?limit=1", **headers, **{"If-None-Match": tag}).status_code == 200, "another question"
    incoming = bob.get(f"/v1/accounts/{bob.account_id}/statement").json()["entries"][0]
    assert (incoming["amount"], incoming["counterparty"]["username"]) == (300, alice.name)
    assert bob.get(path).status_code == 404
    assert alice.get(f"{path}?from=yesterday").status_code == 422


def test_the_balance_as_it_was_then(kassa: Kassa):
    alice = kassa.user()
    moments = []
    for _ in range(9):
        alice.operate(type="deposit", amount=1)
        moments.append(datetime.now(UTC).isoformat().replace("+00:00", "Z"))
    path = f"/v1/accounts/{alice.account_id}?at="
    assert [alice.get(path + moment).json()["balance"] for moment in moments] == list(range(1, 10))
    assert [alice.get(path + moment).json()["version"] for moment in moments] == list(range(1, 10))
    assert alice.get(path + "2001-01-01T00:00:00Z").json()["balance"] == 0
