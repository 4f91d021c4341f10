"""Minor units as decimal strings, for every number of decimals that a currency can have."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.money import (
    AMOUNT_MAX,
    BALANCE_MAX,
    CURRENCIES,
    DEFAULT_CURRENCY,
    WORLD_BALANCE_MIN,
    decimal_string,
    is_currency,
)


@pytest.mark.parametrize(
    ("amount", "currency", "expected"),
    [
        (10050, "RUB", "100.50"),
        (0, "RUB", "0.00"),
        (1, "RUB", "0.01"),
        (10, "RUB", "0.10"),
        (99, "RUB", "0.99"),
        (100, "RUB", "1.00"),
        (-1, "RUB", "-0.01"),
        (-10050, "RUB", "-100.50"),
        (BALANCE_MAX, "RUB", "10000000000000000.00"),
        (WORLD_BALANCE_MIN, "RUB", "-90000000000000000.00"),
        (5, "JPY", "5"),
        (0, "JPY", "0"),
        (-5, "JPY", "-5"),
        (1000, "JPY", "1000"),
        (1, "KWD", "0.001"),
        (1000, "KWD", "1.000"),
        (-1234, "KWD", "-1.234"),
        (1, "CLF", "0.0001"),
        (12345, "CLF", "1.2345"),
        (-12345, "CLF", "-1.2345"),
        (0, "CLF", "0.0000"),
    ],
)
def test_an_amount_is_written_with_the_currencys_decimals(amount: int, currency: str, expected: str):
    assert decimal_string(amount, currency) == expected


def test_currencies_have_none_to_four_decimals():
    assert set(CURRENCIES.values()) == {0, 2, 3, 4}


@given(st.integers(WORLD_BALANCE_MIN, BALANCE_MAX), st.sampled_from(sorted(CURRENCIES)))
def test_what_is_written_reads_back_as_the_same_number(amount: int, currency: str):
    exponent = CURRENCIES[currency]
    text = decimal_string(amount, currency)
    assert Decimal(text).scaleb(exponent) == amount
    assert Decimal(text).as_tuple().exponent == -exponent
    assert text == f"{Decimal(amount).scaleb(-exponent):f}"


def test_an_unknown_currency_is_not_guessed():
    with pytest.raises(KeyError):
        decimal_string(1, "ZZZ")


@pytest.mark.parametrize("code", [DEFAULT_CURRENCY, "RUB", "USD", "EUR", "CZK", "JPY", "KWD", "CLF"])
def test_currencies_of_iso_4217(code: str):
    assert is_currency(code)


@pytest.mark.parametrize("code", ["", "rub", "Rub", "RUBL", "RU", "ZZZ", "XAU", "XTS", "XXX", " RUB", "643"])
def test_what_is_no_currency_to_hold_money_in(code: str):
    assert not is_currency(code)


def test_sums_of_balances_stay_within_a_bigint():
    assert WORLD_BALANCE_MIN - AMOUNT_MAX >= -(2**63)
    assert BALANCE_MAX + AMOUNT_MAX < 2**63
