"""Many clients at the same instant, against the real processes."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import httpx

from tests.end_to_end.conftest import Answer, Kassa, User


def at_once(calls: list[Callable[[], Answer]]) -> list[Answer]:
    """The answers to calls that begin at the same instant."""
    barrier = Barrier(len(calls))

    def call(what: Callable[[], Answer]) -> Answer:
        barrier.wait()
        return what()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_100_and_1_at_the_same_instant_make_101(kassa: Kassa):
    alice = kassa.user()
    for _ in range(5):
        before = alice.balance()
        at_once([lambda: alice.operate(type="deposit", amount=100), lambda: alice.operate(type="deposit", amount=1)])
        assert alice.balance() == before + 101


def test_of_50_withdrawals_of_everything_one_is_applied(kassa: Kassa):
    alice = kassa.user(deposit=777)
    answers = at_once([lambda: alice.operate(type="withdrawal", amount=777)] * 50)
    assert Counter(answer.json()["status"] for answer in answers) == {"applied": 1, "rejected": 49}
    assert {answer.json()["seq"] for answer in answers} == set(range(2, 52))
    assert alice.balance() == 0


def test_20_users_sending_crosswise_lose_nothing(kassa: Kassa):
    users = [kassa.user(deposit=1000) for _ in range(20)]

    def send(sender: Any, receiver: Any) -> Callable[[], Answer]:
        return lambda: sender.operate(type="transfer", amount=7, to_user_id=receiver.id)

    rounds = [send(sender, users[(i + step) % 20]) for step in range(1, 4) for i, sender in enumerate(users)]
    answers = at_once(rounds)
    assert Counter((answer.status_code, answer.json()["status"]) for answer in answers) == {(200, "applied"): 60}
    assert sum(user.balance() for user in users) == 20_000


def test_100_requests_with_one_key_make_one_operation(kassa: Kassa):
    alice = kassa.user()
    answers = at_once([lambda: alice.operate(type="deposit", amount=5, key="the-key")] * 100)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1, "100 equal answers"
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 99
    assert alice.balance() == 5
    quoted = alice.operate(type="deposit", amount=5, key='"the-key"')
    assert quoted.content == answers[0].content
    other = alice.operate(type="deposit", amount=6, key="the-key")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert kassa.user().operate(type="deposit", amount=6, key="the-key").status_code == 200, "a key is one user's"


def test_retries_and_drains_do_not_wait_for_each_other(kassa: Kassa):
    """Two clients of one user send the same keys again and again, while what they stand for is being applied."""
    alice = kassa.user()
    keys = [f"retried-{number}" for number in range(150)]

    def send_all(_client: int) -> list[int]:
        return [alice.operate(wait=0, type="deposit", amount=1, key=key).status_code for key in keys]

    with ThreadPoolExecutor(6) as pool:
        statuses = [status for answers in pool.map(send_all, range(6)) for status in answers]
    assert set(statuses) == {202}
    seq = alice.operate(type="deposit", amount=1).json()["seq"]
    assert (seq, alice.balance()) == (151, 151)


def test_many_retries_at_once_are_all_served_and_keep_nobody_waiting(kassa: Kassa):
    """More users than the API has connections repeat what is stored: none may hold one and wait for another."""
    users = [kassa.user() for _ in range(48)]
    stored = [user.operate(type="deposit", amount=5, key="stored").json()["id"] for user in users]

    def retry(user: User) -> list[tuple[int, str | None]]:
        with httpx.Client(base_url=kassa.url, headers=user.headers | {"Idempotency-Key": "stored"}, timeout=20) as http:
            answers = [http.post("/v1/operations", json={"type": "deposit", "amount": 5}) for _ in range(5)]
        return [(answer.status_code, answer.json().get("id")) for answer in answers]

    with ThreadPoolExecutor(len(users)) as pool:
        retried = list(pool.map(retry, users))
    assert retried == [[(202, operation)] * 5 for operation in stored]


def test_seq_is_gapless_and_in_the_order_of_acceptance(kassa: Kassa):
    alice = kassa.user()
    answers = at_once([lambda: alice.operate(wait=0, type="deposit", amount=1)] * 60)
    assert sorted(answer.json()["seq"] for answer in answers) == list(range(1, 61))
    last = alice.operate(type="deposit", amount=1).json()
    assert (last["seq"], last["balance_after"], last["account_version"]) == (61, 61, 61)
