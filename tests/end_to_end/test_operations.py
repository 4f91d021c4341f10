"""Operations through the public API: deposits, withdrawals, transfers, and what is refused."""

import base64
import signal

import pytest

from tests.end_to_end.conftest import Kassa, until

NOBODY = "01a1fb36-b9a6-76c2-81f4-000000000000"


def test_deposit_is_applied_and_read_back(kassa: Kassa):
    alice = kassa.user()
    answer = alice.operate(type="deposit", amount=10050, comment="salary", metadata={"month": "11"})
    assert answer.status_code == 200
    assert answer.headers["Preference-Applied"] == "wait=10"
    operation = answer.json()
    assert operation["status"] == "applied"
    assert (operation["seq"], operation["balance_after"], operation["account_version"]) == (1, 10050, 1)
    assert operation["amount_decimal"] == "100.50"
    assert operation["metadata"] == {"month": "11"}
    assert alice.get(answer.headers["Location"]).json() == operation
    balance = alice.get("/v1/balance").json()
    assert (balance["balance"], balance["balance_decimal"], balance["version"]) == (10050, "100.50", 1)


def test_without_waiting_the_receipt_is_a_202_to_poll(kassa: Kassa):
    alice = kassa.user()
    receipt = alice.operate(wait=0, type="deposit", amount=1)
    assert receipt.status_code == 202
    assert receipt.json()["status"] == "pending"
    assert receipt.headers["Retry-After"] == "1"
    assert receipt.headers["Location"] == receipt.json()["links"]["self"]
    finished = alice.get(receipt.headers["Location"] + "?wait=10")
    assert finished.json()["status"] == "applied"
    assert "Retry-After" not in finished.headers


@pytest.mark.parametrize("named", ["to_user_id", "to_username", "to_account_id"])
def test_transfer_by_each_name_of_the_receiver(kassa: Kassa, named: str):
    alice, bob = kassa.user(deposit=500), kassa.user()
    receiver = {"to_user_id": bob.id, "to_username": bob.name.upper(), "to_account_id": bob.account_id}[named]
    operation = alice.operate(type="transfer", amount=200, comment="rent", **{named: receiver}).json()
    assert (operation["status"], operation["balance_after"]) == ("applied", 300)
    assert operation["counterparty"] == {"user_id": bob.id, "username": bob.name, "account_id": bob.account_id}
    seen_by_bob = bob.get(operation["links"]["self"]).json()
    assert (seen_by_bob["direction"], seen_by_bob["balance_after"]) == ("incoming", 200)
    assert seen_by_bob["counterparty"]["username"] == alice.name
    assert (alice.balance(), bob.balance()) == (300, 200)


@pytest.mark.parametrize("kind", ["withdrawal", "transfer"])
def test_more_than_there_is_is_rejected_with_the_facts(kassa: Kassa, kind: str):
    alice, bob = kassa.user(deposit=100), kassa.user()
    body = {"to_user_id": bob.id} if kind == "transfer" else {}
    operation = alice.operate(type=kind, amount=250, **body).json()
    assert operation["status"] == "rejected"
    assert operation["rejection"]["code"] == "insufficient_funds"
    assert (operation["rejection"]["available"], operation["rejection"]["shortfall"]) == (100, 150)
    assert operation["balance_after"] is None
    assert (alice.balance(), bob.balance()) == (100, 0)
    assert bob.get(operation["links"]["self"]).status_code == 404, "what was rejected is the sender's own affair"


def test_transfer_to_oneself_or_to_nobody_is_refused_at_once(kassa: Kassa):
    alice = kassa.user(deposit=100)
    for receiver in ({"to_user_id": alice.id}, {"to_username": alice.name}, {"to_account_id": alice.account_id}):
        answer = alice.operate(type="transfer", amount=1, **receiver)
        assert (answer.status_code, answer.json()["code"]) == (422, "self_transfer")
        assert answer.json()["accepted"] is False
    for receiver in ({"to_user_id": NOBODY}, {"to_username": "nobody-at-all"}, {"to_account_id": NOBODY}):
        answer = alice.operate(type="transfer", amount=1, **receiver)
        assert (answer.status_code, answer.json()["code"]) == (404, "receiver_not_found")
    assert alice.get("/v1/operations").json()["items"][0]["type"] == "deposit", "nothing was stored"


def test_what_is_somebody_elses_is_not_found(kassa: Kassa):
    alice, mallory = kassa.user(deposit=100), kassa.user()
    operation_id = alice.operate(type="deposit", amount=1).json()["id"]

    def answers(path: str, theirs: str) -> list[tuple[int, object]]:
        found = [mallory.get(path.format(theirs)), mallory.get(path.format(NOBODY))]
        return [(answer.status_code, answer.json()) for answer in found]

    for path, theirs in (("/v1/operations/{}", operation_id), ("/v1/accounts/{}", alice.account_id)):
        other, none = answers(path, theirs)
        assert other == none
        assert other[0] == 404
    taken = mallory.operate(type="withdrawal", amount=1, account_id=alice.account_id)
    assert (taken.status_code, taken.json()["code"]) == (404, "account_not_found")
    acting = mallory.operate(type="withdrawal", amount=1, user_id=alice.id)
    assert (acting.status_code, acting.json()["code"]) == (403, "forbidden")
    assert alice.balance() == 101


def test_another_currency_is_another_account(kassa: Kassa):
    alice, bob = kassa.user(deposit=100), kassa.user()
    opened = alice.post("/v1/accounts", {"currency": "CZK"})
    again = alice.post("/v1/accounts", {"currency": "CZK"})
    assert (opened.status_code, again.status_code) == (201, 200)
    assert opened.json()["id"] == again.json()["id"]
    crowns = opened.json()["id"]
    assert alice.operate(type="deposit", amount=70, account_id=crowns).json()["currency"] == "CZK"
    mixed = alice.operate(type="transfer", amount=10, account_id=crowns, to_user_id=bob.id).json()
    assert (mixed["status"], mixed["rejection"]["code"]) == ("rejected", "currency_mismatch")
    assert alice.post("/v1/accounts", {"currency": "ZZZ"}).json()["code"] == "unknown_currency"
    assert [account["currency"] for account in alice.get("/v1/accounts").json()["items"]] == ["RUB", "CZK"]


def test_what_is_pending_is_canceled_in_its_turn_and_what_is_finished_is_not(kassa: Kassa):
    alice = kassa.user(deposit=10)
    finished = alice.operate(type="deposit", amount=5).json()
    late = kassa.http.delete(finished["links"]["self"], headers=alice.headers)
    assert (late.status_code, late.json()["code"]) == (409, "already_finished")
    for process in ("worker", "sweeper"):
        kassa.signal(process, signal.SIGSTOP)
    try:
        receipt = alice.operate(wait=0, type="withdrawal", amount=15).json()
        canceled = kassa.http.delete(receipt["links"]["self"], headers=alice.headers)
        assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled"), "told at once"
    finally:
        for process in ("worker", "sweeper"):
            kassa.signal(process, signal.SIGCONT)
    until(lambda: alice.get(receipt["links"]["self"]).json()["finished_at"] is not None)
    assert alice.get(receipt["links"]["self"]).json()["status"] == "canceled"
    again = kassa.http.delete(receipt["links"]["self"], headers=alice.headers)
    assert (again.status_code, alice.balance()) == (409, 15)


def test_history_comes_in_pages(kassa: Kassa):
    alice, bob = kassa.user(), kassa.user(deposit=1000)
    for amount in (5, 3, 8):
        alice.operate(type="deposit", amount=amount)
    bob.operate(type="transfer", amount=100, to_user_id=alice.id, comment="from bob")
    found, path = [], "/v1/operations?limit=2"
    while path:
        page = alice.get(path)
        found += page.json()["items"]
        path = page.links.get("next", {}).get("url", "")
        assert bool(path) == bool(page.json()["next_cursor"])
    assert [item["amount"] for item in found] == [100, 8, 3, 5]
    assert (found[0]["direction"], found[0]["comment"]) == ("incoming", "from bob")
    by_amount = alice.get("/v1/operations?sort=amount&direction=incoming&min_amount=4").json()["items"]
    assert [item["amount"] for item in by_amount] == [5, 8, 100]
    assert alice.get("/v1/operations?direction=outgoing").json()["items"] == []
    far = b'["-created_at","0001-01-01T00:00:00+23:59","01a1fb36-b9a6-76c2-81f4-000000000000"]'
    for cursor in ("nonsense", base64.urlsafe_b64encode(far).decode().rstrip("=")):
        assert alice.get(f"/v1/operations?cursor={cursor}").json()["code"] == "bad_cursor"
    odd = base64.urlsafe_b64encode(far.replace(b"0001-", b"2026-")).decode().rstrip("=")
    assert alice.get(f"/v1/operations?cursor={odd}").status_code == 200
    assert alice.get("/v1/operations?limit=0").status_code == 422
    assert alice.get("/v1/operations?colour=red").json()["errors"][0]["code"] == "unknown_field"


def test_reading_ones_own_writes(kassa: Kassa):
    alice = kassa.user()
    seq = max(alice.operate(wait=0, type="deposit", amount=1).json()["seq"] for _ in range(10))
    answer = alice.get(f"/v1/accounts/{alice.account_id}?min_seq={seq}&wait=10")
    assert (answer.status_code, answer.json()["balance"]) == (200, 10)
    assert answer.json()["pending_operations"] == 0
    assert alice.get(f"/v1/accounts/{alice.account_id}?min_seq={seq + 1}").status_code == 422
    unchanged = alice.get(f"/v1/accounts/{alice.account_id}", **{"If-None-Match": answer.headers["ETag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
