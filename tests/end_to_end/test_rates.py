"""Balances in another currency on every route that shows one, and rates fetched by the running worker."""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa

from cli.stack import Stack
from core.broker import DEFAULT_QUEUE, celery_app
from tests.central_bank import central_bank, document, serves
from tests.end_to_end.conftest import Answer, Kassa, User, until

SNAPSHOT_DAY = date(2022, 3, 15)
USD = Decimal("115.1963")  # rubles, in the shipped snapshot
EUR = Decimal("127.2343")


@pytest.fixture
def alice(kassa: Kassa) -> User:
    """A user with 10,000.00 rubles."""
    return kassa.user(deposit=1_000_000)


def refused(answer: Answer, status: int, code: str) -> dict:
    """The problem document of a refusal."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["accepted"]) == (code, False)
    return problem


def routes(user: User) -> list[str]:
    """Where a balance is shown."""
    return ["/v1/accounts", f"/v1/accounts/{user.account_id}", "/v1/balance"]


def account(answer: Answer) -> dict:
    """The default account in whichever answer it is."""
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return found["items"][0] if "items" in found else found


def send_fetch_rates(stack: Stack) -> None:
    """What beat does."""
    with celery_app(stack.environment["REDIS_URL"], []) as app:
        app.send_task("fetch_rates", queue=DEFAULT_QUEUE)


def test_a_balance_in_dollars_says_how_it_was_computed(alice: User):
    for route in routes(alice):
        shown = account(alice.get(f"{route}?currency=USD"))
        assert (shown["currency"], shown["balance"]) == ("RUB", 1_000_000), "the account stays what it is"
        converted = shown["converted"]
        assert converted.keys() == {
            *("currency", "balance", "balance_decimal"),
            *("rate", "rate_date", "rate_source", "rate_age_days"),
        }
        assert (converted["currency"], converted["balance"], converted["balance_decimal"]) == ("USD", 8_681, "86.81")
        assert abs(Decimal(converted["rate"]) * USD - 1) < Decimal("1e-20")
        assert converted["rate_date"] == SNAPSHOT_DAY.isoformat()
        assert "shipped snapshot" in converted["rate_source"]
        age = (datetime.now(UTC).date() - SNAPSHOT_DAY).days
        assert converted["rate_age_days"] in (age, age - 1)  # midnight may have passed in between


def test_without_asking_nothing_is_converted(alice: User):
    for route in routes(alice):
        assert "converted" not in account(alice.get(route))


def test_accounts_of_several_currencies(alice: User):
    opened = alice.post("/v1/accounts", {"currency": "EUR"}).json()
    assert alice.operate(type="deposit", amount=100_00, account_id=opened["id"]).json()["status"] == "applied"
    items = alice.get("/v1/accounts?currency=USD").json()["items"]
    expected = round(100_00 * EUR / USD)
    assert [item["converted"]["balance"] for item in items] == [8_681, expected]
    in_yen = alice.get(f"/v1/accounts/{opened['id']}?currency=JPY").json()["converted"]
    assert in_yen["balance_decimal"] == str(in_yen["balance"]) == str(round(100 * EUR / Decimal("0.994486")))


def test_its_own_currency_is_one_to_one(alice: User):
    converted = alice.get("/v1/balance?currency=RUB").json()["converted"]
    assert (converted["balance"], converted["rate"], converted["rate_date"]) == (1_000_000, "1", None)


def test_what_is_no_currency(alice: User):
    for route in routes(alice):
        for code in ("ZZZ", "XAU"):
            problem = refused(alice.get(f"{route}?currency={code}"), 422, "unknown_currency")
            assert problem["errors"][0]["parameter"] == "currency"
        for code in ("usd", "US", "USDT", "%00", "US%44%20", "840"):
            problem = refused(alice.get(f"{route}?currency={code}"), 422, "validation_failed")
            assert problem["errors"][0]["parameter"] == "currency"
        refused(alice.get(f"{route}?currency=USD&currency=EUR"), 422, "validation_failed")
        refused(alice.get(f"{route}?money=USD"), 422, "validation_failed")


def test_a_currency_without_a_known_rate(alice: User):
    for route in routes(alice):
        answer = alice.get(f"{route}?currency=KWD")
        assert "RUB to KWD" in refused(answer, 503, "rates_unavailable")["detail"]
    opened = alice.post("/v1/accounts", {"currency": "KWD"}).json()
    refused(alice.get(f"/v1/accounts/{opened['id']}?currency=USD"), 503, "rates_unavailable")
    refused(alice.get("/v1/accounts?currency=USD"), 503, "rates_unavailable")
    assert account(alice.get("/v1/balance?currency=USD"))["converted"]["balance"] == 8_681


def test_somebody_elses_account_stays_unfound(kassa: Kassa, alice: User):
    mallory = kassa.user()
    refused(mallory.get(f"/v1/accounts/{alice.account_id}?currency=USD"), 404, "account_not_found")
    refused(mallory.get(f"/v1/accounts/{alice.account_id}?currency=KWD"), 404, "account_not_found")


def test_a_client_that_has_it_already_gets_304(alice: User):
    for route in routes(alice):
        tag = alice.get(f"{route}?currency=USD").headers["ETag"]
        again = alice.get(f"{route}?currency=USD", **{"If-None-Match": tag})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
        other = alice.get(f"{route}?currency=EUR", **{"If-None-Match": tag})
        assert other.status_code == 200, "the tag is also of the conversion"
        assert alice.get(route, **{"If-None-Match": tag}).status_code == 200
    before = alice.get("/v1/balance?currency=USD").headers["ETag"]
    alice.operate(type="deposit", amount=1)
    assert alice.get("/v1/balance?currency=USD", **{"If-None-Match": before}).status_code == 200


def test_the_worker_fetches_and_keeps_what_it_has_where_that_fails(kassa: Kassa, log_directory: Path):
    log = log_directory / "worker.log"
    failures = log.read_text().count('"rates_not_fetched"')
    send_fetch_rates(kassa.stack)
    until(lambda: log.read_text().count('"rates_not_fetched"') > failures)
    url = kassa.stack.environment["RATES_URL"]
    day = date(2022, 3, 14)  # before the snapshot, so that the other tests find the rates that they know

    def fetched() -> bool:
        with kassa.engine.connect() as connection:
            query = sa.text("SELECT rubles FROM rates WHERE currency = 'USD' AND rate_date = :day AND source = :url")
            return connection.execute(query, {"day": day, "url": url}).scalar_one_or_none() == Decimal("120.5")

    assert not fetched()
    with central_bank(serves(document("14.03.2022", USD="120,5")), urlsplit(url).port or 0):
        send_fetch_rates(kassa.stack)
        until(fetched)
