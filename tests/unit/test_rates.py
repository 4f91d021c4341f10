"""Exchange rates without a database: the document read strictly, amounts converted exactly and rounded once."""

from datetime import date
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.money import BALANCE_MAX, CURRENCIES, WORLD_BALANCE_MIN
from core.rate_sheets import DOCUMENT_BYTES_MAX, RATE_DIGITS, RatesError, parse
from core.rates import SNAPSHOT, Rate, convert, converted, cross, source_of
from tests.central_bank import document

DAY = date(2022, 3, 15)
BOMB = b"""<?xml version="1.0"?><!DOCTYPE v [<!ENTITY a "1111111111"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><ValCurs Date="15.03.2022"><Valute><CharCode>USD</CharCode>
<Nominal>1</Nominal><Value>&c;</Value></Valute></ValCurs>"""
OUTSIDE = b"""<!DOCTYPE v [<!ENTITY f SYSTEM "file:///etc/hostname">]><ValCurs Date="15.03.2022">&f;</ValCurs>"""

positive = st.decimals(min_value="0.0000000001", max_value=10**12, allow_nan=False, allow_infinity=False)
currencies = st.sampled_from(sorted(CURRENCIES))
amounts = st.integers(WORLD_BALANCE_MIN, BALANCE_MAX)


def test_the_shipped_snapshot():
    sheet = parse(SNAPSHOT.read_bytes())
    assert sheet.date == DAY
    assert sheet.rubles["USD"] == Decimal("115.1963")
    assert sheet.rubles["JPY"] == Decimal("0.994486"), "published for 100"
    assert sheet.rubles["UZS"] == Decimal("0.0105423"), "published for 1000"
    assert "XDR" in sheet.skipped
    assert len(sheet.rubles) + len(sheet.skipped) == 34
    assert sheet.rubles.keys() <= CURRENCIES.keys()


@pytest.mark.parametrize("encoding", ["windows-1251", "utf-8", "koi8-r", "utf-16"])
def test_whatever_encoding_the_document_declares(encoding: str):
    made = document(encoding=encoding, USD="115,1963", KRW="1000/92,7618", CHF="5")
    assert "валюты".encode(encoding)[2:] in made
    sheet = parse(made)
    assert sheet.date == DAY
    assert sheet.rubles == {"USD": Decimal("115.1963"), "KRW": Decimal("0.0927618"), "CHF": Decimal(5)}


def test_a_sheet_is_frozen():
    with pytest.raises(AttributeError):
        parse(document(USD="1")).date = DAY


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"", "not an XML document"),
        (b"\x00" * 100, "not an XML document"),
        (b"115,1963", "not an XML document"),
        (b"{}", "not an XML document"),
        (document(USD="115,1963")[:-1], "not an XML document"),
        (document(USD="115,1963") + b"<more/>", "not an XML document"),
        (document(USD="115,1963").replace(b"windows-1251", b"utf-8"), "not an XML document"),
        (document(USD="115,1963").replace(b"windows-1251", b"utf-7"), "encoding"),
        (document(USD="115,1963").replace(b"windows-1251", b"no-such"), "encoding"),
        (b"<html><body>Please try again later</body></html>", "'html'"),
        (b"<!DOCTYPE html><html></html>", "declares a type or entities"),
        (b"<Valute><CharCode>USD</CharCode></Valute>", "'Valute'"),
        (b"<a>" * 100_000 + b"</a>" * 100_000, "'a'"),
        (b"<" + b"a" * 10_000 + b"/>", "root is 'a{40}'"),
        (BOMB, "declares a type or entities"),
        (OUTSIDE, "declares a type or entities"),
        (document(USD="115,1963") + b" " * DOCUMENT_BYTES_MAX, "more than"),
        (document(), "no rate"),
        (document(XDR="159,3464", XXX="1"), "no rate"),
        (document(USD="1").replace(b' Date="15.03.2022"', b""), "date is ''"),
    ],
)
def test_what_is_no_such_document(wrong: bytes, reason: str):
    with pytest.raises(RatesError, match=reason) as refused:
        parse(wrong)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    "day", ["", "2022-03-15", "15/03/2022", "15.3.2022", "30.02.2022", "00.01.2022", "15.03.22", "15.03.2022 ", "٣"]
)
def test_a_date_that_is_none(day: str):
    with pytest.raises(RatesError, match="date"):
        parse(document(day, encoding="utf-8", USD="115,1963"))


@pytest.mark.parametrize(
    "value",
    [
        *("", "0", "0,0000", "-1", "-0,5", "+5", "1.5", "1,5,5", ",5", "5,", "1 000,5", "1e3", "0x10", "NaN", "inf"),
        *("1" * 13, "1," + "1" * 11, "п", "\uff11", "1\n2"),
    ],
)
def test_a_value_that_is_no_positive_decimal(value: str):
    with pytest.raises(RatesError, match=r"Value|worth nothing"):
        parse(document(encoding="utf-8", EUR="127,2343", USD=f"1/{value}"))


@pytest.mark.parametrize("nominal", ["0", "-1", "1,5", "1e2", "x", "01", "1" * 10])
def test_a_nominal_that_is_none(nominal: str):
    with pytest.raises(RatesError, match="Nominal"):
        parse(document(USD=f"{nominal}/115,1963"))


@pytest.mark.parametrize("name", [b"CharCode", b"Nominal", b"Value"])
def test_a_member_that_is_absent_or_there_twice(name: bytes):
    made = document(USD="115,1963")
    before, opening, after = made.partition(b"<" + name + b">")
    member, closing, rest = after.partition(b"</" + name + b">")
    with pytest.raises(RatesError, match=f"{name.decode()} of the document is absent"):
        parse(before + rest)
    with pytest.raises(RatesError, match=name.decode()):
        parse(before + (opening + member + closing) * 2 + rest)


@pytest.mark.parametrize("code", ["usd", "US", "USDT", "U$D", ""])
def test_a_code_that_is_none(code: str):
    with pytest.raises(RatesError, match="CharCode"):
        parse(document(USD="1").replace(b">USD<", f">{code}<".encode()))


def test_a_currency_twice_and_the_ruble_itself():
    entry = document(USD="115,1963").partition(b"<Valute")[2].rpartition(b"</ValCurs>")[0]
    with pytest.raises(RatesError, match=r"USD .* twice"):
        parse(document(USD="115,1963").replace(b"</ValCurs>", b"<Valute" + entry + b"</ValCurs>"))
    with pytest.raises(RatesError, match="RUB"):
        parse(document(RUB="1"))


@pytest.mark.parametrize(
    ("amount", "source", "target", "rate", "expected"),
    [
        (10_000, "USD", "RUB", "115.1963", 1_151_963),  # $100.00
        (1, "JPY", "RUB", "0.994486", 99),  # 1 yen is 99.4486 kopecks
        (100, "RUB", "JPY", "1.0055445727", 1),
        (10_000, "RUB", "JPY", "1.5", 150),
        (1_000, "KWD", "RUB", "379.5", 37_950),  # 1.000 dinar
        (37_950, "RUB", "KWD", "0.0026350461", 1_000),
        (5, "JPY", "KWD", "0.002", 10),
        (1, "KWD", "JPY", "400", 0),
        (12_345, "RUB", "USD", "1", 12_345),
        (0, "USD", "RUB", "115.1963", 0),
        (-10_000, "USD", "RUB", "115.1963", -1_151_963),
        (BALANCE_MAX, "USD", "RUB", "115.1963", 115_196_300_000_000_000_000),
        (1, "USD", "RUB", "1E+3", 1_000),
    ],
)
def test_converting(amount: int, source: str, target: str, rate: str, expected: int):
    assert convert(amount, source, target, Decimal(rate)) == expected


@pytest.mark.parametrize(("amount", "expected"), [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2), (-5, -2)])
def test_halves_go_to_the_even_neighbour(amount: int, expected: int):
    assert convert(amount, "RUB", "USD", Decimal("0.5")) == expected


@given(amounts, currencies, currencies, positive)
def test_converting_is_within_half_a_minor_unit_of_the_exact_fraction(
    amount: int, source: str, target: str, rate: Decimal
):
    exact = amount * Fraction(rate) * Fraction(10) ** (CURRENCIES[target] - CURRENCIES[source])
    found = convert(amount, source, target, rate)
    assert abs(found - exact) <= Fraction(1, 2)
    assert abs(found - exact) < Fraction(1, 2) or found % 2 == 0
    assert found == round(exact), "Python rounds fractions to even, too"


@given(positive, positive)
def test_a_cross_rate_is_right_in_every_digit(from_rubles: Decimal, to_rubles: Decimal):
    exact = Fraction(from_rubles) / Fraction(to_rubles)
    assert abs(Fraction(cross(from_rubles, to_rubles)) - exact) <= exact / 10 ** (RATE_DIGITS - 1) / 2


@given(st.integers(0, BALANCE_MAX), st.decimals("0.001", "1000", places=4))
def test_the_digits_of_a_cross_rate_are_enough_for_any_balance(amount: int, to_rubles: Decimal):
    found = convert(amount, "RUB", "USD", cross(Decimal(1), to_rubles))
    assert abs(found - amount / Fraction(to_rubles)) <= Fraction(1, 2) + Fraction(1, 100)


def test_the_document_says_how_to_compute_it_again_and_how_old_the_rate_is():
    rate = Rate(cross(Decimal(1), Decimal("115.1963")), DAY, "the Bank")
    assert converted(1_000_000, "RUB", "USD", rate, date(2022, 3, 25)) == {
        "currency": "USD",
        "balance": 8681,
        "balance_decimal": "86.81",
        "rate": "0.00868083436707602587930342",
        "rate_date": "2022-03-15",
        "rate_source": "the Bank",
        "rate_age_days": 10,
    }
    assert converted(0, "RUB", "USD", rate, date(2022, 3, 14))["rate_age_days"] == 0, "tomorrow's rate is fresh"
    tiny = Rate(Decimal("1E-10"), DAY, "the Bank")
    assert converted(1, "RUB", "USD", tiny, DAY)["rate"] == "0.0000000001", "no exponents"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://www.cbr.ru/scripts/XML_daily.asp", "https://www.cbr.ru/scripts/XML_daily.asp"),
        ("http://name:secret@mirror:8080/rates?key=secret#secret", "http://mirror:8080/rates"),
    ],
)
def test_the_source_that_clients_see_holds_no_secret(url: str, expected: str):
    assert source_of(url) == expected
