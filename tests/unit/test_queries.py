"""Query strings: what a parameter means when it looks like nothing."""

from typing import Any

import falcon
import falcon.testing
import pytest

from api.requests import read_query
from api.schemas import OperationsQuery, ServicesQuery, StatementQuery, UsersQuery
from core.errors import Refusal


def query(schema: Any, text: str) -> Any:
    """A query string as its schema."""
    return read_query(falcon.Request(falcon.testing.create_environ(query_string=text)), schema)


@pytest.mark.parametrize(
    ("schema", "text", "parameter"),
    [
        (OperationsQuery, "until=null", "until"),
        (OperationsQuery, "limit=5&min_amount=NULL", "min_amount"),
        (ServicesQuery, "cursor=null", "cursor"),
        (StatementQuery, "to=null", "to"),
    ],
)
def test_null_is_no_value_and_not_silently_nothing(schema: Any, text: str, parameter: str):
    with pytest.raises(Refusal) as refused:
        query(schema, text)
    [error] = refused.value.facts["errors"]
    assert (refused.value.code, error["parameter"]) == ("validation_failed", parameter)


def test_somebody_may_be_called_null():
    assert query(UsersQuery, "search=null").search == "null"


def test_what_is_left_out_is_left_out():
    assert query(StatementQuery, "").until is None
