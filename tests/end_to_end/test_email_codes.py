"""E-mail codes through the public API, the broker, the worker and a real mail server."""

import json
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis
import sqlalchemy as sa

from core.broker import DEFAULT_QUEUE, celery_app
from core.ids import new_id
from tests.end_to_end.conftest import PASSWORD, Kassa, User, until
from tests.mailbox import Mailbox

SLOWER_SECONDS_MAX = 0.3
MAIL_SECONDS_MAX = 10
WRONG = "no code"

Answer = httpx.Response


@pytest.fixture(autouse=True)
def all_tries_left(kassa: Kassa) -> None:
    """All tests come from one address."""
    execute(kassa, "DELETE FROM attempts")


@pytest.fixture
def email() -> str:
    """An address that nobody has used yet."""
    return f"{new_id()}@example.com"


def execute(kassa: Kassa, statement: str, **parameters: Any) -> None:
    with kassa.engine.begin() as connection:
        connection.execute(sa.text(statement), parameters)


def ask(kassa: Kassa, email: str) -> Answer:
    return kassa.http.post("/v1/auth/email", json={"email": email})


def receive(kassa: Kassa, mailbox: Mailbox, email: str) -> str:
    """Ask for a code, and wait for its mail."""
    before = len(mailbox.mails(email))
    assert ask(kassa, email).status_code == 202
    until(lambda: len(mailbox.mails(email)) > before, MAIL_SECONDS_MAX)
    return mailbox.codes(email)[-1]


def confirm(kassa: Kassa, email: str, code: str, **headers: str) -> Answer:
    return kassa.http.post("/v1/auth/token", json={"email": email, "confirmation_code": code}, headers=headers)


def refused(answer: Answer) -> tuple[int, str]:
    """Status and code of a refusal that stored nothing."""
    assert answer.json()["accepted"] is False
    return answer.status_code, answer.json()["code"]


def headers_of(tokens: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


def profile(kassa: Kassa, tokens: dict[str, Any]) -> dict[str, Any]:
    return kassa.http.get("/v1/users/me", headers=headers_of(tokens)).json()


def test_a_code_makes_a_user_who_can_do_everything(kassa: Kassa, mailbox: Mailbox, email: str):
    code = receive(kassa, mailbox, email)
    answer = confirm(kassa, email, code)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    tokens = answer.json()
    assert set(tokens) == {"access_token", "token_type", "expires_in", "refresh_token", "refresh_expires_in"}
    made = profile(kassa, tokens)
    assert (made["username"], made["email"], made["role"]) == (email, email, "user")
    headers = headers_of(tokens)
    body = {"type": "deposit", "amount": 5}
    deposit = kassa.http.post("/v1/operations", json=body, headers=headers | {"Prefer": "wait=10"})
    assert (deposit.status_code, deposit.json()["balance_after"]) == (200, 5)
    assert refused(confirm(kassa, email, code)) == (401, "invalid_code"), "a code works once"
    again = confirm(kassa, email, receive(kassa, mailbox, email)).json()
    assert profile(kassa, again)["id"] == made["id"]

    def set_password(**body: str) -> Answer:
        return kassa.http.post("/v1/auth/password", json=body, headers=headers)

    assert set_password(new_password="correct horse").status_code == 204, "there was none"
    assert refused(set_password(new_password="battery staple")) == (422, "validation_failed")
    login = kassa.http.post("/v1/auth/login", json={"username": email, "password": "correct horse"})
    assert login.status_code == 200


def test_known_and_unknown_addresses_are_answered_alike(kassa: Kassa, mailbox: Mailbox, email: str):
    assert confirm(kassa, email, receive(kassa, mailbox, email)).status_code == 200
    known, unknown = ask(kassa, email), ask(kassa, f"nobody-{email}")
    assert (known.status_code, known.json()) == (unknown.status_code, unknown.json())
    assert known.status_code == 202
    wrong = [confirm(kassa, address, WRONG) for address in (email, f"nobody-{email}", "nonsense", "")]
    assert len({answer.content for answer in wrong}) == 1
    assert refused(wrong[0]) == (401, "invalid_code")
    for body in ({"email": "nonsense"}, {"email": "a@b.c\r\nBcc: d@e.f"}, {"email": email, "code": "1"}, {}):
        assert refused(kassa.http.post("/v1/auth/email", json=body)) == (422, "validation_failed")


def test_five_wrong_tries_spend_a_code(kassa: Kassa, mailbox: Mailbox, email: str):
    code = receive(kassa, mailbox, email)
    for _ in range(4):
        assert refused(confirm(kassa, email, WRONG)) == (401, "invalid_code")
    assert confirm(kassa, email, code).status_code == 200, "four are forgiven"
    code = receive(kassa, mailbox, email)
    for _ in range(5):
        assert refused(confirm(kassa, email, WRONG)) == (401, "invalid_code")
    assert refused(confirm(kassa, email, code)) == (401, "invalid_code")


def test_only_the_newest_code_counts_and_only_for_ten_minutes(kassa: Kassa, mailbox: Mailbox, email: str):
    older, newer = receive(kassa, mailbox, email), receive(kassa, mailbox, email)
    assert refused(confirm(kassa, email, older)) == (401, "invalid_code")
    assert refused(confirm(kassa, f"other-{email}", newer)) == (401, "invalid_code")
    execute(kassa, "UPDATE email_codes SET expires_at = expires_at - interval '10 minutes' WHERE email = :e", e=email)
    assert refused(confirm(kassa, email, newer)) == (401, "invalid_code")
    assert confirm(kassa, email, receive(kassa, mailbox, email)).status_code == 200


def test_of_right_tries_at_the_same_instant_one_gets_tokens(kassa: Kassa, mailbox: Mailbox, email: str):
    code = receive(kassa, mailbox, email)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: confirm(kassa, email, code), range(8)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 7}


def test_brute_force_is_limited_over_all_codes_and_a_flush_gives_nothing_back(
    kassa: Kassa, mailbox: Mailbox, email: str
):
    broker = redis.Redis.from_url(kassa.stack.environment["REDIS_URL"])
    for _ in range(2):
        code = receive(kassa, mailbox, email)
        for _ in range(5):
            assert refused(confirm(kassa, email, WRONG)) == (401, "invalid_code")
            broker.flushall()
    broker.close()
    code = receive(kassa, mailbox, email)
    answer = confirm(kassa, email, code)
    assert refused(answer) == (429, "too_many_tries")
    assert 0 < int(answer.headers["Retry-After"]) <= 15 * 60
    execute(kassa, "UPDATE attempts SET window_ends_at = clock_timestamp()")
    assert confirm(kassa, email, code).status_code == 200


def test_a_mailbox_gets_five_mails_an_hour_and_a_client_thirty(kassa: Kassa, mailbox: Mailbox, email: str):
    for _ in range(5):
        code = receive(kassa, mailbox, email)
    answers = [ask(kassa, email) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {202}
    assert confirm(kassa, email, code).status_code == 200, "the last mailed is still the newest"
    receive(kassa, mailbox, f"other-{email}")
    assert len(mailbox.mails(email)) == 5, "the other came later, and so would these have"
    execute(kassa, "UPDATE attempts SET count = 30 WHERE key LIKE 'mail/address/%'")
    answer = ask(kassa, f"another-{email}")
    assert refused(answer) == (429, "too_many_tries")
    assert 0 < int(answer.headers["Retry-After"]) <= 3600


def test_the_code_is_in_its_mail_and_nowhere_else(kassa: Kassa, mailbox: Mailbox, email: str):
    code = receive(kassa, mailbox, email)

    def tasks() -> dict[str, Any]:
        found = httpx.get(f"{kassa.flower}/api/tasks").json()
        return {id: task for id, task in found.items() if task["name"] == "mail_code" and task["state"] == "SUCCESS"}

    until(lambda: any("True" in (task["result"] or "") for task in tasks().values()))
    assert code not in json.dumps(tasks())
    for log in (kassa.stack.data_dir / "log").glob("*.log"):
        assert code not in log.read_text(), log.name
    with kassa.engine.connect() as connection:
        stored = connection.execute(sa.text("SELECT id, code_hash FROM email_codes WHERE email = :e"), {"e": email})
        assert code.encode() not in bytes(stored.one().code_hash)


@pytest.mark.parametrize("fault", ["dead", "frozen"])
def test_without_redis_asking_is_as_quick_and_the_mail_comes_later(
    kassa: Kassa, mailbox: Mailbox, email: str, fault: str
):
    if fault == "dead":
        kassa.kill("redis", and_keep_down=True)
    else:
        kassa.signal("redis", signal.SIGSTOP)
    try:
        for number in range(5):
            started = time.monotonic()
            assert ask(kassa, f"{number}-{email}").status_code == 202
            assert time.monotonic() - started < SLOWER_SECONDS_MAX
    finally:
        kassa.signal("redis", signal.SIGCONT) if fault == "frozen" else kassa.revive("redis")
        until(lambda: kassa.http.get("/health/ready").json()["broker"] == "up")
    execute(kassa, "UPDATE email_codes SET created_at = created_at - interval '6 seconds'")
    remind(kassa)
    until(lambda: all(mailbox.mails(f"{number}-{email}") for number in range(5)))
    assert confirm(kassa, f"4-{email}", mailbox.codes(f"4-{email}")[-1]).status_code == 200


def test_a_mail_server_that_refuses_for_now_is_asked_again(kassa: Kassa, mailbox: Mailbox, email: str):
    mailbox.refusals[email] = "451 greylisted, come back later"
    assert ask(kassa, email).status_code == 202
    log = kassa.stack.data_dir / "log" / "worker.log"
    until(lambda: any("mail_not_sent" in line and email in line for line in log.read_text().splitlines()))
    mailbox.refusals.clear()
    execute(kassa, "UPDATE email_codes SET created_at = created_at - interval '6 seconds'")
    remind(kassa)
    until(lambda: mailbox.mails(email), MAIL_SECONDS_MAX)


def test_forged_announcements_do_no_harm(kassa: Kassa, mailbox: Mailbox, email: str):
    celery = celery_app(kassa.stack.environment["REDIS_URL"], [])
    for arguments in ([], [None], ["nonsense"], [new_id()], [new_id(), 1], [{"id": 1}], [["a"]]):
        celery.send_task("mail_code", arguments, queue=DEFAULT_QUEUE)
    celery.close()
    assert confirm(kassa, email, receive(kassa, mailbox, email)).status_code == 200


def remind(kassa: Kassa) -> None:
    """What beat does every minute."""
    celery = celery_app(kassa.stack.environment["REDIS_URL"], [])
    celery.send_task("mail_forgotten_codes", queue=DEFAULT_QUEUE)
    celery.close()


def claim(user: User, email: str) -> None:
    """Give an address in one's profile."""
    changed = user.kassa.http.patch("/v1/users/me", json={"email": email}, headers=user.headers)
    assert (changed.status_code, changed.json()["email"]) == (200, email)


def logs_in_by_password(user: User) -> bool:
    body = {"username": user.name, "password": PASSWORD}
    return user.kassa.http.post("/v1/auth/login", json=body).status_code == 200


def test_ones_own_address_is_confirmed_with_ones_token_and_then_logs_in(kassa: Kassa, mailbox: Mailbox, email: str):
    alice = kassa.user()
    claim(alice, email)
    code = receive(kassa, mailbox, email)
    answer = confirm(kassa, email.upper(), code, **alice.headers)
    assert answer.status_code == 200
    assert profile(kassa, answer.json())["id"] == alice.id
    assert profile(kassa, alice.tokens)["email"] == email, "the session goes on"
    assert logs_in_by_password(alice)
    tokens = confirm(kassa, email, receive(kassa, mailbox, email)).json()
    assert profile(kassa, tokens)["id"] == alice.id


@pytest.mark.parametrize("authorization", [None, "Bearer nonsense", "Basic YTpi", "another's", "ended"])
def test_a_mistyped_address_gives_nothing_away_not_even_an_admins(
    kassa: Kassa, mailbox: Mailbox, email: str, authorization: str | None
):
    admin, other = kassa.user(deposit=70), kassa.user()
    execute(kassa, "UPDATE users SET role = 'admin' WHERE id = :id", id=admin.id)
    claim(admin, email)
    before = profile(kassa, admin.tokens)
    headers = {"Authorization": authorization} if authorization else {}
    if authorization == "another's":
        headers = other.headers
    elif authorization == "ended":
        headers = headers_of(
            kassa.http.post("/v1/auth/login", json={"username": admin.name, "password": PASSWORD}).json()
        )
        assert kassa.http.post("/v1/auth/logout", headers=headers).status_code == 204
    answer = confirm(kassa, email, receive(kassa, mailbox, email), **headers)
    assert answer.status_code == 200
    owner = profile(kassa, answer.json())
    assert owner["id"] not in (admin.id, other.id)
    assert (owner["email"], owner["role"]) == (email, "user")
    assert kassa.http.get("/v1/balance", headers=headers_of(answer.json())).json()["balance"] == 0
    assert profile(kassa, admin.tokens) == before | {"email": None}
    assert admin.balance() == 70
    assert logs_in_by_password(admin)
    assert profile(kassa, other.tokens)["email"] is None
    execute(kassa, "UPDATE users SET role = 'user' WHERE id = :id", id=admin.id)


def test_of_right_tries_at_once_for_a_claimed_address_one_gets_tokens(kassa: Kassa, mailbox: Mailbox, email: str):
    alice = kassa.user()
    claim(alice, email)
    code = receive(kassa, mailbox, email)
    with ThreadPoolExecutor(8) as pool:
        ways: list[dict[str, str]] = [alice.headers, {}] * 4
        answers = list(pool.map(lambda headers: confirm(kassa, email, code, **headers), ways))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 7}
    assert profile(kassa, alice.tokens)["email"] in (email, None)
