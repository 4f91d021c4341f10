"""From bytes to a frozen, typed request, or to one refusal that names the field."""

import codecs
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, get_args

import falcon
import msgspec

from api.schemas import TAG, WAIT_SECONDS_MAX
from core.errors import Refusal

BODY_BYTES_MAX = 64 * 1024
INTEGER_DIGITS_MAX = 20  # beyond, a number is out of every range here, and not worth the time to convert
TOO_LARGE = 10**INTEGER_DIGITS_MAX

T = TypeVar("T")

PATH = re.compile(r" - at (?:`key` in )?`\$(?P<path>[^`]*)`$")
NAMED_FIELD = re.compile(r"(?:unknown|required) field `(?P<name>[^`]*)`")
STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
WAIT_PREFERENCE = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,20})\"?\s*(?=$|[,;])", re.IGNORECASE)


def read_json(request: falcon.Request, schema: type[T] | Any, bytes_max: int = BODY_BYTES_MAX) -> T:
    """The body as `schema`.

    Raises Refusal, in this order of precedence: length_required, body_too_large, unsupported_media_type,
    malformed_json, validation_failed.
    """
    return convert(parse(read_body(request, bytes_max)), schema)


def read_body(request: falcon.Request, bytes_max: int) -> bytes:
    """The body's bytes, once their length and type are known to be right."""
    length = request.content_length
    if length is None:
        raise Refusal("length_required", "Send a JSON body with its Content-Length; chunks are not taken.")
    if length is not None and length > bytes_max:
        raise Refusal("body_too_large", f"A body here has at most {bytes_max} bytes.", limit=bytes_max)
    content_type = (request.content_type or "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Refusal("unsupported_media_type", "Send a JSON body with Content-Type: application/json.")
    try:
        body = request.bounded_stream.read()
    except OSError:  # api/http1.py lets a client pause for so long
        raise Refusal("request_timeout", "The body did not arrive in time.") from None
    if len(body) != (length or 0):
        raise Refusal("malformed_request", "The body is shorter than its Content-Length.")
    return body


def parse(body: bytes) -> Any:
    """JSON by the letter (RFC 8259) and more strictly: no duplicate keys, no NaN, no absurd nesting."""
    try:
        if body.startswith(codecs.BOM_UTF8):
            raise Refusal("malformed_json", "The body begins with a byte order mark, which JSON has not.")
        return strict_json.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise Refusal("malformed_json", "The body is not UTF-8.") from None
    except RecursionError:
        raise Refusal("malformed_json", "The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise Refusal("malformed_json", f"Not JSON: {error.msg} at character {error.pos}.") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a key stands in it twice: which of the two was meant?"""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Refusal("malformed_json", "An object of the body has the same key twice.")
    return made


def refuse_constant(name: str) -> Any:
    """NaN and the infinities are no JSON."""
    raise Refusal("malformed_json", f"{name} is not JSON.")


def bounded_int(digits: str) -> int:
    """An integer; one of thousands of digits becomes some number that is out of every range, too."""
    return int(digits) if len(digits) <= INTEGER_DIGITS_MAX else TOO_LARGE


strict_json = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=refuse_constant, parse_int=bounded_int)


def read_query(request: falcon.Request, schema: type[T]) -> T:
    """The query string as `schema`, its moments in UTC. Raises Refusal validation_failed."""
    query: T = convert(request.params, schema, strict=False, member="parameter")
    refuse_null(query, request.params)
    return in_utc(query)


@cache
def fields_of(schema: Hashable) -> tuple[msgspec.structs.FieldInfo, ...]:
    """A schema's fields, looked up once."""
    return msgspec.structs.fields(schema)  # type: ignore[arg-type]  # every schema of a query is a Struct


def refuse_null(query: Any, given: Mapping[str, Any]) -> None:
    """Raise Refusal validation_failed for `?until=null`, which msgspec takes as if nothing had been asked for."""
    for field in fields_of(type(query)):  # type: ignore[arg-type]  # a class is hashable
        if field.encode_name in given and getattr(query, field.name) is None:
            detail = "Leave the parameter out instead of sending null."
            error = {"parameter": field.encode_name, "code": "wrong_type", "detail": detail}
            raise Refusal("validation_failed", detail, errors=[error])


def in_utc(query: T) -> T:
    """A query with its moments in UTC: PostgreSQL takes fewer offsets, and Python fewer years, than RFC 3339 allows."""
    moments = {}
    for field in fields_of(type(query)):  # type: ignore[arg-type]  # a class is hashable
        value = getattr(query, field.name)
        if isinstance(value, datetime):
            try:
                moments[field.name] = value.astimezone(UTC)
            except OverflowError:
                detail = "The moment is before the year 1 or after the year 9999."
                error = {"parameter": field.encode_name, "code": "out_of_range", "detail": detail}
                raise Refusal("validation_failed", detail, errors=[error]) from None
    return msgspec.structs.replace(query, **moments) if moments else query  # type: ignore[type-var]


def convert(value: Any, schema: type[T] | Any, *, strict: bool = True, member: str = "pointer") -> T:
    """`value` as `schema`. Raises Refusal validation_failed, which names the first field at fault."""
    members = members_by_tag(schema)  # type: ignore[arg-type]  # a type is hashable
    named = value.get(TAG) if members and isinstance(value, dict) else None
    try:
        return msgspec.convert(value, members.get(named, schema) if isinstance(named, str) else schema, strict=strict)
    except msgspec.ValidationError as error:
        raise refusal_of(str(error), member, list(members)) from None
    except UnicodeEncodeError:
        raise Refusal("malformed_json", "A string has half of a surrogate pair in it.") from None


@cache
def members_by_tag(schema: Hashable) -> dict[str, Any]:
    """The members of a union such as an operation's types, by what tells them apart.

    msgspec would find them, too, but looks at the union anew each time, which takes longer than all the rest.
    """
    members = [member for member in get_args(schema) if hasattr(member, "__struct_config__")]
    return {member.__struct_config__.tag: member for member in members}


def refusal_of(message: str, member: str, tags: Sequence[str] = ()) -> Refusal:
    """Say what msgspec says, with a JSON pointer (RFC 6901), or a query's parameter, and a stable code."""
    found = PATH.search(message)
    steps = [name or index for name, index in STEP.findall(found["path"])] if found else []
    detail = PATH.sub("", message)
    if tags and detail.startswith("Invalid value"):
        detail += f", known are {', '.join(tags)}"
    if named := NAMED_FIELD.search(detail):
        steps.append(named["name"])
    place = "/".join(["", *(step.replace("~", "~0").replace("/", "~1") for step in steps)])
    where = {"pointer": place} if member == "pointer" else {"parameter": place.removeprefix("/")}
    return Refusal(
        "validation_failed", f"{detail}.", errors=[where | {"code": code_of(detail), "detail": f"{detail}."}]
    )


def code_of(detail: str) -> str:
    """A stable code for what msgspec says in words."""
    for code, beginning in CODES.items():
        if re.match(beginning, detail):
            return code
    return "invalid"


CODES = {
    "missing_field": r"Object missing required field",
    "unknown_field": r"Object contains unknown field",
    "out_of_range": r"Expected `(int|float)` (<|>)|Integer value out of range|Expected `(str|array|object)` of length",
    "wrong_format": r"Expected `str` matching|Invalid (UUID|RFC3339)",
    "unknown_value": r"Invalid (enum )?value",
    "wrong_type": r"Expected `",
    "exactly_one_of": r"Exactly one of",
}


def idempotency_key(request: falcon.Request) -> str | None:
    """The Idempotency-Key, bare or quoted (draft 07). Raises Refusal bad_idempotency_key."""
    key = request.get_header("Idempotency-Key")
    if key is None:
        return None
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not IDEMPOTENCY_KEY.fullmatch(key):
        raise Refusal("bad_idempotency_key", "An Idempotency-Key has 1 to 255 printable ASCII characters.")
    return key


def preferred_wait(request: falcon.Request) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), cut to what is allowed; a preference that makes no sense is none."""
    found = WAIT_PREFERENCE.search(request.get_header("Prefer") or "")
    return min(int(found[1]), WAIT_SECONDS_MAX) if found else None
