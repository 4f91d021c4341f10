"""Batches: many operations at once, each accepted or refused for itself, and each applied in its user's order."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.end_to_end.conftest import Kassa, User, until
from tests.end_to_end.test_services import promote

NOBODY = "01a1fb36-b9a6-76c2-81f4-000000000000"
BATCH = "/v1/operations/batch"


def finished(sender: User, batch: dict) -> dict:
    """The batch when nothing of it is pending any more."""
    path = f"/v1/batches/{batch['batch_id']}"
    until(lambda: "pending" not in sender.get(path).json()["counts"])
    return sender.get(path).json()


def accepted(kassa: Kassa) -> Counter[str]:
    """How many operations of each type have been accepted, as Kassa counts."""
    counted = re.findall(r'kassa_operations_accepted_total{type="(\w+)"} (\d+)', kassa.http.get("/metrics").text)
    return Counter({kind: int(count) for kind, count in counted})


def test_each_operation_is_accepted_or_refused_for_itself(kassa: Kassa):
    alice, bob = kassa.user(deposit=100), kassa.user()
    answer = alice.post(
        BATCH,
        {
            "operations": [
                {"type": "deposit", "amount": 50},
                {"type": "withdrawal", "amount": 0},
                {"type": "transfer", "amount": 120, "to_username": bob.name, "comment": "a", "metadata": {"k": "v"}},
                {"type": "transfer", "amount": 1, "to_user_id": NOBODY},
                {"type": "transfer", "amount": 1, "to_user_id": alice.id},
                {"type": "withdrawal", "amount": 1000},
                {"type": "deposit", "amount": 1, "account_id": bob.account_id},
                {"type": "deposit", "amount": 1, "user_id": bob.id},
                {"type": "purchase", "service_id": NOBODY},
                "nonsense",
                {"type": "withdrawal", "amount": 30},
            ]
        },
    )
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/v1/batches/{answer.json()['batch_id']}"
    items = answer.json()["items"]
    assert [item["index"] for item in items] == list(range(11))
    assert {item["index"]: item["errors"][0]["code"] for item in items if "errors" in item} == {
        1: "out_of_range",
        3: "receiver_not_found",
        4: "self_transfer",
        6: "account_not_found",
        7: "forbidden",
        8: "not_in_a_batch",
        9: "wrong_type",
    }
    done = finished(alice, answer.json())
    assert done["counts"] == {"applied": 3, "rejected": 1, "refused": 7}
    statuses = {item["index"]: item.get("status") for item in done["items"] if "id" in item}
    assert statuses == {0: "applied", 2: "applied", 5: "rejected", 10: "applied"}
    seqs = [alice.get(f"/v1/operations/{item['id']}").json()["seq"] for item in done["items"] if "id" in item]
    assert seqs == [2, 3, 4, 5], "in the order of the batch"
    transfer = alice.get(f"/v1/operations/{done['items'][2]['id']}").json()
    assert (transfer["comment"], transfer["metadata"]) == ("a", {"k": "v"})
    assert (alice.balance(), bob.balance()) == (0, 120)
    assert bob.get(f"/v1/batches/{done['batch_id']}").status_code == 404


def test_what_is_refused_is_not_counted_as_accepted(kassa: Kassa):
    alice, before = kassa.user(), accepted(kassa)
    to_nobody = {"type": "transfer", "amount": 1, "to_user_id": NOBODY}
    answer = alice.post(BATCH, {"operations": [{"type": "deposit", "amount": 1}, to_nobody, to_nobody]})
    assert answer.json()["accepted"] == 1
    assert accepted(kassa) - before == {"deposit": 1}


def test_a_service_hands_in_for_many_users_at_once(kassa: Kassa):
    service = promote(kassa, kassa.user(), "service")
    users = [kassa.user() for _ in range(10)]
    operations = [{"type": "deposit", "amount": 10, "user_id": user.id} for user in users * 30]
    operations += [
        {"type": "transfer", "amount": 7, "user_id": user.id, "to_user_id": users[(i + 1) % 10].id}
        for i, user in enumerate(users * 10)
    ]
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda _: service.post(BATCH, {"operations": operations}).json(), range(4)))
    for batch in batches:
        assert batch["accepted"] == 400
        assert finished(service, batch)["counts"] == {"applied": 400}
    assert [user.balance() for user in users] == [4 * 300] * 10


def test_one_key_is_one_batch_however_often_and_however_simultaneously(kassa: Kassa):
    alice, body = kassa.user(), {"operations": [{"type": "deposit", "amount": 1}] * 20 + [{"type": "gift"}]}
    key = {"Idempotency-Key": "the-batch"}
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: alice.post(BATCH, body, **key), range(10)))
    assert Counter(answer.status_code for answer in answers) == {202: 10}
    assert len({answer.json()["batch_id"] for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 9
    assert finished(alice, answers[0].json())["counts"] == {"applied": 20, "refused": 1}
    assert alice.balance() == 20
    other = alice.post(BATCH, {"operations": body["operations"][1:]}, **key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_batches_of_the_wrong_shape(kassa: Kassa):
    alice = kassa.user()
    one = {"type": "deposit", "amount": 1}
    for body in ({}, {"operations": []}, {"operations": [one] * 10_001}, {"operations": one}, [one]):
        answer = alice.post(BATCH, body)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    atomic = alice.post(BATCH, {"operations": [one], "atomic": True})
    assert (atomic.status_code, atomic.json()["code"]) == (422, "atomic_not_supported")
    large = alice.post(BATCH, {"operations": [{**one, "comment": "x" * 500}] * 10_000})
    assert large.status_code == 202, "5 MB is within what a batch may have"
    assert finished(alice, large.json())["counts"] == {"applied": 10_000}
    assert alice.balance() == 10_000
