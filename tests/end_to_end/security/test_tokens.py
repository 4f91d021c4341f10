"""Access tokens against RFC 8725: only what we signed, for this purpose, whole and in time, is believed."""

import base64
import json
import time
from typing import Any

import jwt
import pytest

from core.sessions import ALGORITHM, TOKEN_TYPE
from tests.end_to_end.conftest import Kassa, User


@pytest.fixture
def alice(kassa: Kassa) -> User:
    return kassa.user()


@pytest.fixture
def claims(alice: User) -> dict[str, Any]:
    """Those of a good token."""
    return jwt.decode(alice.tokens["access_token"], options={"verify_signature": False})


def sign(kassa: Kassa, claims: Any, *, key: str = "", alg: str = ALGORITHM, **header: Any) -> str:
    """A token signed by our own secret unless another is given."""
    header = {"typ": TOKEN_TYPE} | header
    signed = jwt.encode(claims, key or kassa.stack.environment["SECRET_KEY"], alg, headers=header)
    kassa.issued.add(signed)
    return signed


def refused(alice: User, token: str) -> bool:
    answer = alice.kassa.http.get("/v1/balance", headers={"Authorization": f"Bearer {token}"})
    return (answer.status_code, answer.json().get("code")) == (401, "invalid_token")


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_what_the_others_are_variations_of_is_good(alice: User, claims: dict[str, Any]):
    assert not refused(alice, sign(alice.kassa, claims))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
def test_no_signature_is_none(alice: User, claims: dict[str, Any], alg: str):
    head = part({"alg": alg, "typ": TOKEN_TYPE})
    assert refused(alice, f"{head}.{part(claims)}.")
    _, _, signature = alice.tokens["access_token"].split(".")
    assert refused(alice, f"{head}.{part(claims)}.{signature}")


@pytest.mark.parametrize("alg", ["HS384", "HS512"])
def test_another_algorithm_is_none_even_with_our_secret(alice: User, claims: dict[str, Any], alg: str):
    assert refused(alice, sign(alice.kassa, claims, alg=alg))


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "RS256"},
        {"alg": "HS256", "jwk": {"kty": "oct", "k": "AAAA"}},
        {"alg": "HS256", "kid": "../../../../dev/null"},
        {"alg": "HS256", "jku": "http://127.0.0.1/keys"},
    ],
)
def test_a_key_that_the_token_brings_along_is_not_used(alice: User, claims: dict[str, Any], header: dict[str, Any]):
    forged = sign(alice.kassa, claims, key="k" * 64, **{k: v for k, v in header.items() if k != "alg"})
    assert refused(alice, forged)
    _, payload, signature = forged.split(".")
    assert refused(alice, f"{part({'typ': TOKEN_TYPE} | header)}.{payload}.{signature}")


@pytest.mark.parametrize("typ", ["JWT", "at+jwt ", "AT+JWT2", "refresh+jwt", None, 5, ""])
def test_a_token_for_another_purpose_is_none(alice: User, claims: dict[str, Any], typ: Any):
    assert refused(alice, sign(alice.kassa, claims, typ=typ))


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "sid", "iat", "exp", "jti"])
def test_every_claim_must_be_there(alice: User, claims: dict[str, Any], claim: str):
    assert refused(alice, sign(alice.kassa, {name: value for name, value in claims.items() if name != claim}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "another"},
        {"aud": "another"},
        {"aud": ["another"]},
        {"aud": None},
        {"sub": 5},
        {"sub": "nobody"},
        {"sub": None},
        {"sub": {"id": 1}},
        {"sid": "nothing"},
        {"sid": 5},
        {"sid": "01a1fb36-b9a6-76c2-81f4-000000000000"},
        {"exp": "tomorrow"},
        {"exp": None},
        {"exp": 1},
        {"exp": 1e400},
        {"iat": "now"},
        {"nbf": 99999999999},
    ],
)
def test_every_claim_must_be_right(alice: User, claims: dict[str, Any], wrong: dict[str, Any]):
    assert refused(alice, sign(alice.kassa, claims | wrong))


def test_the_session_must_be_the_users_own(alice: User, claims: dict[str, Any]):
    assert refused(alice, sign(alice.kassa, claims | {"sub": alice.kassa.user().id}))


def test_an_expired_token_is_none_from_that_second_on(alice: User, claims: dict[str, Any]):
    token = sign(alice.kassa, claims | {"exp": int(time.time()) + 2})
    assert not refused(alice, token)
    time.sleep(2.1)
    assert refused(alice, token)


def test_no_bit_of_a_token_can_be_changed(alice: User):
    token = alice.tokens["access_token"]
    for place in range(0, len(token), 7):
        if token[place] != ".":
            other = "A" if token[place] != "A" else "B"
            assert refused(alice, token[:place] + other + token[place + 1 :]), place
    for cut in (token[:-1], token[:-10], token.rsplit(".", 1)[0] + ".", token + "A", "." + token, token * 2):
        assert refused(alice, cut)


def test_one_kind_of_token_is_not_the_other(alice: User):
    assert refused(alice, alice.tokens["refresh_token"])
    answer = alice.kassa.http.post("/v1/auth/refresh", json={"refresh_token": alice.tokens["access_token"]})
    assert (answer.status_code, answer.json()["accepted"]) in ((401, False), (422, False))


def test_a_token_in_another_place_is_not_looked_at(alice: User):
    token = alice.tokens["access_token"]
    for headers, path in (
        ({"Cookie": f"access_token={token}"}, "/v1/balance"),
        ({"X-Authorization": f"Bearer {token}"}, "/v1/balance"),
        ({}, f"/v1/balance?access_token={token[:8]}"),
        ({"Authorization": f"Token {token}"}, "/v1/balance"),
    ):
        assert alice.kassa.http.get(path, headers=headers).status_code == 401
