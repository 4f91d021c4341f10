"""Sessions through the public API: begun, refreshed, ended; guesses counted; and none of it needs Redis."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis
import sqlalchemy as sa

from core.broker import DEFAULT_QUEUE, celery_app
from tests.end_to_end.conftest import PASSWORD, Kassa, User, until

OTHER = "battery staple"
SAMPLES = 9  # of each kind of name; below the limit of tries
SLOWER_RATIO_MAX = 2  # a name that cost no hash would be answered in a fifth of the time
WITHOUT_REDIS_SECONDS_MAX = 0.3
CROWD = 190  # more than the API has threads
PAUSE_SECONDS = 0.5  # of one who was told that too many are logging in

Answer = httpx.Response


@pytest.fixture(autouse=True)
def all_tries_left(kassa: Kassa) -> Iterator[None]:
    """All tests come from one address, and so do those that follow."""
    execute(kassa, "DELETE FROM attempts")
    yield
    execute(kassa, "DELETE FROM attempts")


@pytest.fixture
def alice(kassa: Kassa) -> User:
    return kassa.user()


def execute(kassa: Kassa, statement: str, **parameters: Any) -> None:
    with kassa.engine.begin() as connection:
        connection.execute(sa.text(statement), parameters)


def log_in(kassa: Kassa, name: str, password: str = PASSWORD, **headers: str) -> Answer:
    body = {"username": name, "password": password}
    return kassa.http.post("/v1/auth/login", json=body, headers=headers)


def refresh(kassa: Kassa, tokens: dict[str, Any]) -> Answer:
    return kassa.http.post("/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})


def median_seconds(answers: list[Answer]) -> float:
    return statistics.median(answer.elapsed.total_seconds() for answer in answers)


def is_alive(kassa: Kassa, tokens: dict[str, Any]) -> bool:
    """Whether the access token opens anything."""
    answer = kassa.http.get("/v1/users/me", headers={"Authorization": f"Bearer {tokens['access_token']}"})
    assert answer.status_code in (200, 401), answer.text
    return answer.status_code == 200


def refused(answer: Answer) -> tuple[int, str]:
    """Status and code of a refusal that stored nothing."""
    document = answer.json()
    assert document["accepted"] is False
    return answer.status_code, document["code"]


def test_logout_ends_both_tokens_at_once(kassa: Kassa, alice: User):
    elsewhere = log_in(kassa, alice.name).json()
    assert alice.post("/v1/auth/logout", None).status_code == 204
    assert refused(alice.get("/v1/balance")) == (401, "invalid_token")
    assert refused(refresh(kassa, alice.tokens)) == (401, "invalid_refresh_token")
    assert refused(alice.post("/v1/auth/logout", None)) == (401, "invalid_token")
    assert is_alive(kassa, elsewhere), "one session of several"


def test_logout_everywhere_ends_all_sessions_of_the_user_alone(kassa: Kassa, alice: User):
    bob = kassa.user()
    elsewhere = log_in(kassa, alice.name).json()
    assert alice.post("/v1/auth/logout/everywhere", None).status_code == 204
    for tokens in (alice.tokens, elsewhere):
        assert not is_alive(kassa, tokens)
        assert refused(refresh(kassa, tokens)) == (401, "invalid_refresh_token")
    assert is_alive(kassa, bob.tokens)


def test_a_used_refresh_token_used_again_ends_the_session(kassa: Kassa, alice: User):
    pair = refresh(kassa, alice.tokens).json()
    assert set(pair) == set(alice.tokens)
    assert is_alive(kassa, pair)
    execute(kassa, "UPDATE refresh_tokens SET spent_at = spent_at - interval '11 seconds'")
    assert refused(refresh(kassa, alice.tokens)) == (401, "invalid_refresh_token")
    assert not is_alive(kassa, alice.tokens)
    assert not is_alive(kassa, pair)
    assert refresh(kassa, pair).status_code == 401


def test_refreshes_at_the_same_instant_all_get_a_pair(kassa: Kassa, alice: User):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: refresh(kassa, alice.tokens), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert all(is_alive(kassa, answer.json()) for answer in answers)
    assert answers[0].headers["Cache-Control"] == "no-store"


def test_a_changed_password_ends_all_other_sessions(kassa: Kassa, alice: User):
    elsewhere = log_in(kassa, alice.name).json()

    def change(**body: Any) -> Answer:
        return alice.post("/v1/auth/password", body)

    assert refused(change(current_password="wrong", new_password=OTHER)) == (401, "invalid_credentials")
    assert refused(change(new_password=OTHER)) == (422, "validation_failed")
    assert refused(change(current_password=PASSWORD, new_password="short")) == (422, "validation_failed")
    assert is_alive(kassa, elsewhere)
    assert change(current_password=PASSWORD, new_password=OTHER).status_code == 204
    assert is_alive(kassa, alice.tokens)
    assert not is_alive(kassa, elsewhere)
    assert refused(log_in(kassa, alice.name)) == (401, "invalid_credentials")
    assert log_in(kassa, alice.name, OTHER).status_code == 200


def test_a_disabled_users_token_is_dead_at_once(kassa: Kassa, alice: User):
    assert is_alive(kassa, alice.tokens)
    execute(kassa, "UPDATE users SET disabled_at = clock_timestamp() WHERE id = :id", id=alice.id)
    assert not is_alive(kassa, alice.tokens)
    assert refused(refresh(kassa, alice.tokens)) == (401, "invalid_refresh_token")
    assert refused(log_in(kassa, alice.name)) == (401, "invalid_credentials")


@pytest.mark.parametrize("known", [True, False])
def test_guesses_are_limited_and_a_flush_of_redis_gives_none_back(kassa: Kassa, alice: User, known: bool):
    name = alice.name if known else f"nobody-{alice.name}"
    broker = redis.Redis.from_url(kassa.stack.environment["REDIS_URL"])
    for number in range(10):
        guess = log_in(kassa, name, "wrong", **{"X-Real-IP": f"192.0.2.{number}"})
        assert refused(guess) == (401, "invalid_credentials")
        broker.flushall()
    broker.close()
    for answer in (log_in(kassa, name, "wrong"), log_in(kassa, name), log_in(kassa, name.upper())):
        assert refused(answer) == (429, "too_many_tries")
        assert 0 < int(answer.headers["Retry-After"]) <= 15 * 60
        assert answer.json()["retry_after_seconds"] == int(answer.headers["Retry-After"])
    assert is_alive(kassa, kassa.user().tokens), "others are not kept out"
    with kassa.engine.connect() as connection:
        keys = set(connection.execute(sa.text("SELECT key FROM attempts")).scalars())
    addresses = {"login/address/127.0.0.1", "register/address/127.0.0.1"}
    assert keys == {f"login/account/{name}"} | addresses, "a client's word for its address is nothing"


def test_an_address_has_a_limit_over_all_names(kassa: Kassa, alice: User):
    query = "INSERT INTO attempts VALUES ('login/address/127.0.0.1', 99, clock_timestamp() + interval '1 minute')"
    execute(kassa, query)
    for _ in range(5):
        assert log_in(kassa, alice.name).status_code == 200, "only what fails is counted"
    assert refused(log_in(kassa, "nobody-1", "wrong")) == (401, "invalid_credentials")
    assert refused(log_in(kassa, "nobody-2", "wrong")) == (429, "too_many_tries")
    assert refused(log_in(kassa, alice.name)) == (429, "too_many_tries")


def register(kassa: Kassa, name: str) -> Answer:
    return kassa.http.post("/v1/auth/register", json={"username": name, "password": PASSWORD})


def test_registrations_from_an_address_are_limited(kassa: Kassa, alice: User):
    execute(kassa, "UPDATE attempts SET count = 999 WHERE key = 'register/address/127.0.0.1'")
    assert refused(register(kassa, alice.name)) == (409, "username_taken"), "this cost a hash, and counts"
    answer = register(kassa, f"newcomer-{alice.name}")
    assert refused(answer) == (429, "too_many_tries")
    assert 0 < int(answer.headers["Retry-After"]) <= 3600
    assert log_in(kassa, alice.name).status_code == 200


def test_a_crowd_that_registers_keeps_nobody_else_waiting(kassa: Kassa, alice: User):
    names = [f"crowd-{number // 2}-{alice.name}" for number in range(CROWD)]  # each name is wanted twice

    def insist(name: str) -> list[Answer]:
        answers = [register(kassa, name)]
        while answers[-1].status_code == 503:
            time.sleep(PAUSE_SECONDS)
            answers.append(register(kassa, name))
        return answers

    reads = []
    with ThreadPoolExecutor(CROWD) as pool:
        crowd = [pool.submit(insist, name) for name in names]
        while not all(each.done() for each in crowd):
            reads.append(alice.get("/v1/balance"))
            assert reads[-1].status_code == 200
    answers = [answer for each in crowd for answer in each.result()]
    served = [answer for answer in answers if answer.status_code != 503]
    assert median_seconds(reads) < median_seconds(served) / 4, "who reads waits for nobody's hash"
    counts = Counter(answer.status_code for answer in answers)
    assert counts.keys() == {201, 409, 503}, "some are sent away rather than kept waiting for long"
    assert counts[201] == counts[409] == CROWD / 2
    for answer in answers:
        if answer.status_code == 503:
            assert refused(answer) == (503, "busy")
            assert answer.headers["Retry-After"] == "1"
    with kassa.engine.connect() as connection:
        query = "SELECT count FROM attempts WHERE key = 'register/address/127.0.0.1'"
        assert connection.execute(sa.text(query)).scalar_one() == CROWD + 1, "who was sent away was not counted"


def test_names_that_nobody_has_take_as_long_as_others(kassa: Kassa, alice: User):
    disabled, passwordless = kassa.user(), kassa.user()
    execute(kassa, "UPDATE users SET disabled_at = clock_timestamp() WHERE id = :id", id=disabled.id)
    execute(kassa, "UPDATE users SET password_hash = NULL WHERE id = :id", id=passwordless.id)
    names = [alice.name, f"nobody-{alice.name}", disabled.name, passwordless.name]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(SAMPLES):
        for name in names:
            started = time.perf_counter()
            assert log_in(kassa, name, "wrong").status_code == 401
            seconds[name].append(time.perf_counter() - started)
    medians = [statistics.median(taken) for taken in seconds.values()]
    assert max(medians) / min(medians) < SLOWER_RATIO_MAX, medians


def test_housekeeping_forgets_what_is_over_and_keeps_the_rest(kassa: Kassa, alice: User):
    log_in(kassa, "nobody", "wrong")
    bob, long_ago = kassa.user(), "clock_timestamp() - interval '25 hours'"
    execute(kassa, f"UPDATE sessions SET ended_at = {long_ago} WHERE user_id = :id", id=bob.id)
    execute(kassa, "INSERT INTO attempts VALUES ('login/account/old', 9, clock_timestamp())")
    execute(kassa, f"INSERT INTO email_codes (id, email, expires_at) VALUES (:id, 'old@a.b', {long_ago})", id=alice.id)
    celery = celery_app(kassa.stack.environment["REDIS_URL"], [])
    celery.send_task("housekeeping", queue=DEFAULT_QUEUE)
    celery.close()
    queries = {
        "SELECT count(*) FROM sessions WHERE user_id = :id": bob.id,
        "SELECT count(*) FROM attempts WHERE window_ends_at < clock_timestamp()": None,
        "SELECT count(*) FROM email_codes WHERE id = :id": alice.id,
    }

    def left() -> int:
        with kassa.engine.connect() as connection:
            return sum(connection.execute(sa.text(query), {"id": id}).scalar_one() for query, id in queries.items())

    until(lambda: left() == 0)
    assert is_alive(kassa, alice.tokens)
    assert not is_alive(kassa, bob.tokens)
    with kassa.engine.connect() as connection:
        query = "SELECT count(*) FROM attempts WHERE key LIKE 'login/%'"
        assert connection.execute(sa.text(query)).scalar_one() == 2


def test_nothing_of_it_needs_redis(kassa: Kassa, alice: User):
    answers: list[Answer] = []

    def noted(answer: Answer) -> Answer:
        answers.append(answer)
        return answer

    kassa.kill("redis", and_keep_down=True)
    try:
        tokens = noted(log_in(kassa, alice.name)).json()
        pair = noted(refresh(kassa, tokens)).json()
        body = {"current_password": PASSWORD, "new_password": OTHER}
        assert noted(alice.post("/v1/auth/password", body)).status_code == 204
        assert not is_alive(kassa, pair)
        assert noted(alice.post("/v1/auth/logout", None)).status_code == 204
        assert not is_alive(kassa, alice.tokens)
        again = log_in(kassa, alice.name, OTHER).json()
        headers = {"Authorization": f"Bearer {again['access_token']}"}
        assert noted(kassa.http.post("/v1/auth/logout/everywhere", headers=headers)).status_code == 204
        assert not is_alive(kassa, again)
        assert max(answer.elapsed.total_seconds() for answer in answers) < WITHOUT_REDIS_SECONDS_MAX
    finally:
        kassa.revive("redis")
        until(lambda: kassa.http.get("/health/ready").json()["broker"] == "up")
