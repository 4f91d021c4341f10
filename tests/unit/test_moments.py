"""Moments in queries and answers: any that RFC 3339 can write is either understood or refused, and written in full."""

from datetime import UTC, datetime

import pytest

from api.requests import convert, in_utc
from api.schemas import StatementQuery
from core.errors import Refusal
from core.views import moment


def since(text: str) -> datetime | None:
    """What a statement's `from` is understood as."""
    return in_utc(convert({"from": text}, StatementQuery, strict=False, member="parameter")).since


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("2026-11-20T12:00:00Z", "2026-11-20T12:00:00.000000Z"),
        ("2026-11-20T12:00:00.5+03:00", "2026-11-20T09:00:00.500000Z"),
        ("3793-06-29T03:51:17.362-22:17", "3793-06-30T02:08:17.362000Z"),  # an offset that PostgreSQL refuses
        ("0683-03-05T05:55:40Z", "0683-03-05T05:55:40.000000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_moments_are_in_utc_and_written_in_full(text: str, understood: str):
    found = since(text)
    assert found is not None
    assert found.tzinfo is UTC
    assert moment(found) == understood


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"])
def test_moments_beyond_the_calendar_are_refused(text: str):
    with pytest.raises(Refusal) as refused:
        since(text)
    [error] = refused.value.facts["errors"]
    assert (refused.value.code, error["parameter"], error["code"]) == ("validation_failed", "from", "out_of_range")


def test_no_moment_is_none():
    assert moment(None) is None
    assert in_utc(StatementQuery()).since is None
