"""From hostile bytes to a typed command: every way to be wrong has its one refusal, and nothing else gets out."""

import codecs
import json
from typing import Any

import falcon
import falcon.testing
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.requests import BODY_BYTES_MAX, convert, idempotency_key, parse, preferred_wait, read_json
from api.schemas import WAIT_SECONDS_MAX, AnyOperation, Deposit, Transfer
from core.errors import Refusal
from core.money import AMOUNT_MAX

HARMLESS = (None, "malformed_json", "validation_failed")
ID = "01a1fb36-b9a6-76c2-81f4-000000000000"


def read(body: bytes) -> Any:
    """The body as an operation."""
    return convert(parse(body), AnyOperation)


def deposit(**fields: str) -> bytes:
    """A deposit, with these fields given as raw JSON."""
    members = {"type": '"deposit"', "amount": "100", **fields}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in members.items()) + "}").encode()


def transfer(**fields: str) -> bytes:
    """A transfer, with these fields given as raw JSON."""
    return deposit(type='"transfer"', **fields)


def refusal_code(body: bytes) -> str | None:
    """The code with which a body is refused, or None."""
    try:
        read(body)
    except Refusal as refusal:
        return refusal.code
    return None


def error_of(body: bytes) -> tuple[str, str]:
    """The pointer and the code of the field at fault; the body must be refused by its schema."""
    with pytest.raises(Refusal) as refused:
        read(body)
    assert refused.value.code == "validation_failed"
    [error] = refused.value.facts["errors"]
    assert set(error) == {"pointer", "code", "detail"}
    assert error["detail"] == refused.value.detail
    return error["pointer"], error["code"]


MALFORMED = {
    "nothing": b"",
    "blank": b" \n",
    "half an object": b'{"type":"deposit"',
    "two documents": deposit() + deposit(),
    "garbage behind": deposit() + b"x",
    "single quotes": b"{'type':'deposit','amount':100}",
    "trailing comma": b'{"type":"deposit","amount":100,}',
    "comment": b'{"type":"deposit","amount":100 /* all */}',
    "bare word": b"deposit",
    "leading zero": deposit(amount="0100"),
    "plus sign": deposit(amount="+100"),
    "hexadecimal": deposit(amount="0x64"),
    "Python's True": deposit(amount="True"),
    "key twice": b'{"type":"deposit","amount":1,"amount":100}',
    "same key and value twice": b'{"type":"deposit","amount":100,"amount":100}',
    "same key twice by escape": b'{"type":"deposit","amount":1,"\\u0061mount":100}',
    "key twice deeper down": deposit(metadata='{"a":"1","a":"2"}'),
    "NaN": deposit(amount="NaN"),
    "Infinity": deposit(amount="Infinity"),
    "-Infinity": deposit(amount="-Infinity"),
    "NaN in an unknown field": deposit(x="NaN"),
    "byte that is no UTF-8": b"\xff",
    "Latin-1": deposit(comment='"caf\xe9"').decode().encode("latin-1"),
    "overlong UTF-8": b'{"type":"deposit","amount":100,"comment":"\xc0\xaf"}',
    "surrogate in UTF-8": b'{"type":"deposit","amount":100,"comment":"\xed\xa0\x80"}',
    "byte order mark": b"\xef\xbb\xbf" + deposit(),
    "UTF-16": deposit().decode().encode("utf-16"),
    "UTF-16 without a mark": deposit().decode().encode("utf-16-le"),
    "UTF-32": deposit().decode().encode("utf-32"),
    "raw NUL in a string": deposit(comment='"a\0b"'),
    "raw line break in a string": deposit(comment='"a\nb"'),
    "half a surrogate escape": deposit(comment='"\\ud8"'),
    "100,000 open brackets": b"[" * 100_000,
    "100,000 nested arrays": b"[" * 100_000 + b"]" * 100_000,
    "100,000 nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nested in a field": deposit(metadata="[" * 100_000 + "]" * 100_000),
}


def test_a_byte_order_mark_is_named():
    with pytest.raises(Refusal, match="byte order mark"):
        read(codecs.BOM_UTF8 + deposit())


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_json_is_malformed(body: bytes):
    with pytest.raises(Refusal) as refused:
        read(body)
    assert refused.value.code == "malformed_json"
    assert refused.value.facts == {}
    assert len(refused.value.detail) < 200, "the body is not sent back"


AMOUNTS = {
    "1.0": "wrong_type",
    "1e2": "wrong_type",
    "1E2": "wrong_type",
    "1e999": "wrong_type",
    "100.5": "wrong_type",
    "true": "wrong_type",
    "false": "wrong_type",
    "null": "wrong_type",
    '"100"': "wrong_type",
    "[100]": "wrong_type",
    '{"amount":100}': "wrong_type",
    "0": "out_of_range",
    "-0": "out_of_range",
    "-1": "out_of_range",
    str(AMOUNT_MAX + 1): "out_of_range",
    str(2**63): "out_of_range",
    str(2**64): "out_of_range",
    "1" * 5_000: "out_of_range",
    "-" + "1" * 5_000: "out_of_range",
}


@pytest.mark.parametrize(("amount", "code"), AMOUNTS.items(), ids=[amount[:20] for amount in AMOUNTS])
def test_an_amount_is_an_integer_within_its_range_and_nothing_like_it(amount: str, code: str):
    assert error_of(deposit(amount=amount)) == ("/amount", code)


@pytest.mark.parametrize("amount", [1, 100, AMOUNT_MAX])
def test_the_ends_of_the_range_belong_to_it(amount: int):
    read_back = read(deposit(amount=str(amount)))
    assert isinstance(read_back, Deposit)
    assert (read_back.amount, type(read_back.amount)) == (amount, int)


INVALID = {
    "no object": (b"[]", "", "wrong_type"),
    "null": (b"null", "", "wrong_type"),
    "a number": (b"1", "", "wrong_type"),
    "empty": (b"{}", "/type", "missing_field"),
    "without type": (b'{"amount":100}', "/type", "missing_field"),
    "without amount": (b'{"type":"deposit"}', "/amount", "missing_field"),
    "unknown type": (deposit(type='"theft"'), "/type", "unknown_value"),
    "type in capitals": (deposit(type='"Deposit"'), "/type", "unknown_value"),
    "type a number": (deposit(type="1"), "/type", "wrong_type"),
    "type null": (deposit(type="null"), "/type", "wrong_type"),
    "type a list": (deposit(type='["deposit"]'), "/type", "wrong_type"),
    "unknown field": (deposit(colour='"red"'), "/colour", "unknown_field"),
    "unknown field of the class": (deposit(__class__='"x"'), "/__class__", "unknown_field"),
    "unknown field with a slash": (deposit(**{"a/b~c": "1"}), "/a~1b~0c", "unknown_field"),
    "another type's field": (deposit(to_username='"bob"'), "/to_username", "unknown_field"),
    "status set by the client": (deposit(status='"applied"'), "/status", "unknown_field"),
    "NUL in the comment": (deposit(comment='"a\\u0000b"'), "/comment", "wrong_format"),
    "lone surrogate in the comment": (deposit(comment='"a\\ud800b"'), "/comment", "wrong_format"),
    "surrogates the wrong way round": (deposit(comment='"\\ude00\\ud83d"'), "/comment", "wrong_format"),
    "long comment": (deposit(comment='"' + "x" * 501 + '"'), "/comment", "out_of_range"),
    "comment a number": (deposit(comment="1"), "/comment", "wrong_type"),
    "account no id": (deposit(account_id='"mine"'), "/account_id", "wrong_format"),
    "account a number": (deposit(account_id="1"), "/account_id", "wrong_type"),
    "metadata a list": (deposit(metadata="[]"), "/metadata", "wrong_type"),
    "metadata of 21 keys": (
        deposit(metadata=json.dumps({str(number): "" for number in range(21)})),
        "/metadata",
        "out_of_range",
    ),
    "receiver no id": (transfer(to_user_id='"bob"'), "/to_user_id", "wrong_format"),
    "receiver no name": (transfer(to_username='"b ob"'), "/to_username", "wrong_format"),
    "receiver an empty name": (transfer(to_username='""'), "/to_username", "out_of_range"),
    "receiver with a line break": (transfer(to_username='"bob\\n"'), "/to_username", "wrong_format"),
    "no receiver": (transfer(), "", "exactly_one_of"),
    "receiver null": (transfer(to_username="null"), "", "exactly_one_of"),
    "two receivers": (transfer(to_username='"bob"', to_user_id=f'"{ID}"'), "", "exactly_one_of"),
    "three receivers": (
        transfer(to_username='"bob"', to_user_id=f'"{ID}"', to_account_id=f'"{ID}"'),
        "",
        "exactly_one_of",
    ),
}


@pytest.mark.parametrize(("body", "pointer", "code"), INVALID.values(), ids=INVALID.keys())
def test_the_field_at_fault_is_named(body: bytes, pointer: str, code: str):
    assert error_of(body) == (pointer, code)


def test_who_asks_for_an_unknown_type_is_told_which_there_are():
    with pytest.raises(Refusal, match="Invalid value 'hold', known are deposit, withdrawal, transfer, purchase"):
        read(deposit(type='"hold"'))


@pytest.mark.parametrize("value", ['"a\\u0000b"', '"\\ud800"', "1", "null", "{}", '"' + "x" * 501 + '"'])
def test_a_metadata_value_at_fault_is_found_under_metadata(value: str):
    pointer, code = error_of(deposit(metadata=f'{{"key":{value}}}'))
    assert pointer.startswith("/metadata/")
    assert code in ("wrong_format", "wrong_type", "out_of_range")


@pytest.mark.parametrize("key", ["", "\\u0000", "\\ud800", "k" * 65])
def test_a_metadata_key_at_fault_is_found_under_metadata(key: str):
    pointer, code = error_of(deposit(metadata=f'{{"{key}":"value"}}'))
    assert pointer.startswith("/metadata")
    assert code in ("wrong_format", "out_of_range")


LONE_SURROGATES = {
    "key": deposit(**{"\\ud800": "1"}),
    "key of a second object": deposit(metadata='{"a":"b"}', **{"x\\udfff": "{}"}),
    "type": deposit(type='"\\ud800"'),
    "id": deposit(account_id='"\\ud800"'),
    "receiver's id": transfer(to_user_id=f'"{ID[:-1]}\\udc00"'),
    "receiver's name": transfer(to_username='"\\ud800"'),
    "comment": deposit(comment='"\\ud800"'),
    "metadata key": deposit(metadata='{"\\ud800":"x"}'),
    "metadata value": deposit(metadata='{"x":"\\ud800"}'),
}


@pytest.mark.parametrize("body", LONE_SURROGATES.values(), ids=LONE_SURROGATES.keys())
def test_a_lone_surrogate_anywhere_is_refused_and_breaks_nothing(body: bytes):
    with pytest.raises(Refusal) as refused:
        read(body)
    assert refused.value.code in ("malformed_json", "validation_failed")
    told = [refused.value.detail, refused.value.facts]
    assert json.dumps(told, ensure_ascii=False).encode(), "the answer itself can be sent"


@pytest.mark.parametrize("name", ["to_user_id", "to_username", "to_account_id"])
def test_one_receiver_is_just_right(name: str):
    made = read(transfer(**{name: f'"{ID}"'}))
    assert isinstance(made, Transfer)
    assert str(getattr(made, name)) == ID


def test_any_other_text_is_taken_as_it_is():
    comment = "Ž\u202e\U0001f600 '; DROP TABLE users; -- \\ \" \u2028\x7f"
    made = read(deposit(comment=json.dumps(comment), metadata=json.dumps({"clé": "\U0001f600"})))
    assert (made.comment, made.metadata) == (comment, {"clé": "\U0001f600"})
    with pytest.raises(AttributeError):
        made.amount = 1


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=50).map(lambda tail: deposit()[:-1] + tail)))
def test_arbitrary_bytes_get_a_refusal_at_worst(body: bytes):
    assert refusal_code(body) in HARMLESS


def any_text() -> st.SearchStrategy[str]:
    """Text of every kind, lone surrogates and NUL among it."""
    return st.text(st.characters(exclude_categories=()), max_size=12)


def any_json() -> st.SearchStrategy[Any]:
    """Documents of every shape."""
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text())
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(any_text(), inner), max_leaves=6)


FIELDS = (
    *("type", "amount", "account_id", "comment", "metadata", "user_id"),
    *("to_user_id", "to_username", "to_account_id"),
)
TAGS = st.sampled_from(["deposit", "withdrawal", "transfer"])


@given(st.dictionaries(st.sampled_from(FIELDS) | any_text(), any_json(), max_size=4), TAGS)
@example({"amount": 1, "\ud800": 1}, "deposit")
@example({"amount": 1, "account_id": "\ud800"}, "deposit")
def test_arbitrary_json_gets_a_refusal_at_worst(fields: dict[str, Any], tag: str):
    assert refusal_code(json.dumps({"type": tag, **fields}).encode()) in HARMLESS


def request(body: bytes = b"", **headers: str) -> falcon.Request:
    """A real request with these headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return falcon.testing.create_req(method="POST", body=body, headers=named)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Transfer_Encoding": "chunked", "Content_Length": "", "Content_Type": "text/plain"}, "length_required"),
        ({"Content_Length": str(BODY_BYTES_MAX + 1), "Content_Type": "text/plain"}, "body_too_large"),
        ({"Content_Type": "text/plain"}, "unsupported_media_type"),
        ({"Content_Type": "application/jsonp"}, "unsupported_media_type"),
        ({}, "unsupported_media_type"),
        ({"Content_Type": "application/json"}, "malformed_json"),
        ({"Content_Type": "Application/JSON; charset=utf-8"}, "malformed_json"),
    ],
)
def test_a_body_is_refused_in_this_order(headers: dict[str, str], code: str):
    asked = request(b"{", **headers)
    if headers.get("Content_Length") == "":
        del asked.env["CONTENT_LENGTH"]
    with pytest.raises(Refusal) as refused:
        read_json(asked, AnyOperation)
    assert refused.value.code == code


def test_a_body_shorter_than_it_says_is_refused():
    with pytest.raises(Refusal, match="malformed_request"):
        read_json(request(deposit(), Content_Length="60000", Content_Type="application/json"), AnyOperation)


def test_a_right_body_is_read():
    assert read_json(request(deposit(), Content_Type="application/json"), AnyOperation) == Deposit(amount=100)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=5", 5),
        ("wait=0", 0),
        ("WAIT=5", 5),
        ("wait = 5", 5),
        ('wait="5"', 5),
        ("respond-async, wait=5", 5),
        ("wait=5, respond-async", 5),
        ("wait=5; foo=bar", 5),
        ("respond-async,wait=5,handling=lenient", 5),
        (f"wait={WAIT_SECONDS_MAX}", WAIT_SECONDS_MAX),
        (f"wait={WAIT_SECONDS_MAX + 1}", WAIT_SECONDS_MAX),
        ("wait=999999999", WAIT_SECONDS_MAX),
        ("wait", None),
        ("wait=", None),
        ("wait=-5", None),
        ("wait=5.5", None),
        ("wait=5s", None),
        ("wait=soon", None),
        ("nowait=5", None),
        ("await=5", None),
        ("wait=" + "9" * 5_000, None),
        ("respond-async", None),
        ("", None),
    ],
)
def test_the_preferred_wait(prefer: str, seconds: int | None):
    assert preferred_wait(request(Prefer=prefer)) == seconds


def test_no_preference_is_no_wait():
    assert preferred_wait(request()) is None


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("abc", "abc"),
        ('"abc"', "abc"),
        ('"a"b"', 'a"b'),
        ('"', '"'),
        ("a b", "a b"),
        (ID, ID),
        ("~" * 255, "~" * 255),
        ('"' + "~" * 255 + '"', "~" * 255),
    ],
)
def test_an_idempotency_key_is_bare_or_quoted(header: str, key: str):
    assert idempotency_key(request(Idempotency_Key=header)) == key


def test_no_key_is_none():
    assert idempotency_key(request()) is None


@pytest.mark.parametrize("header", ["", '""', "~" * 256, '"' + "~" * 256 + '"', "a\tb", "a\0b", "caf\xe9", "a\x7f"])
def test_what_is_no_idempotency_key(header: str):
    asked = request()
    asked.env["HTTP_IDEMPOTENCY_KEY"] = header  # as a server hands it over; the client library would refuse some
    with pytest.raises(Refusal) as refused:
        idempotency_key(falcon.Request(asked.env))
    assert refused.value.code == "bad_idempotency_key"
