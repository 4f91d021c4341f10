"""Exchange rates: kept for each day as rubles for one unit, and applied exactly.

A rate between two currencies goes by way of the ruble, both legs from one day: the latest for which both are known.
The Bank announces a day's rates on the day before, and they are used from then on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from core.db import Prepared, array
from core.money import CURRENCIES, DEFAULT_CURRENCY, decimal_string
from core.rate_sheets import RATE_DIGITS, RatesError, RateSheet, fetch, parse

SNAPSHOT = Path(__file__).parent / "data" / "cbr-2022-03-15.xml"
SNAPSHOT_SOURCE = "Central Bank of Russia, shipped snapshot"
AHEAD_DAYS_MAX = 14  # before long holidays the Bank is some days ahead; a slip of the year would rule for years

# For each currency of $1 the latest day on which it and $2 are both known. The ruble has no rows, so the other
# currency's stand for its day.
LATEST = Prepared(
    "latest_rates",
    ["text[]", "text", "text"],
    """
SELECT asked.currency, day.* FROM unnest($1) AS asked (currency) CROSS JOIN LATERAL (
    SELECT CASE WHEN asked.currency = $3 THEN 1 ELSE f.rubles END AS from_rubles,
           CASE WHEN $2 = $3 THEN 1 ELSE t.rubles END AS to_rubles, f.rate_date,
           CASE WHEN f.source = t.source THEN f.source ELSE f.source || ' and ' || t.source END AS rate_source
      FROM rates f JOIN rates t ON t.rate_date = f.rate_date
     WHERE f.currency = CASE WHEN asked.currency = $3 THEN $2 ELSE asked.currency END
       AND t.currency = CASE WHEN $2 = $3 THEN asked.currency ELSE $2 END
     ORDER BY f.rate_date DESC LIMIT 1) AS day
""",
)


@dataclass(frozen=True)
class Rate:
    """rate: units of the target for one unit of the source currency.

    rate_date and rate_source are None where both are the same currency: one is one on any day.
    """

    rate: Decimal
    rate_date: date | None
    rate_source: str | None


SAME = Rate(Decimal(1), None, None)


def find(connection: sa.Connection, from_currency: str, to_currency: str) -> Rate | None:
    """The latest known rate, or None where there is none."""
    return find_all(connection, [from_currency], to_currency).get(from_currency)


def find_all(connection: sa.Connection, from_currencies: Iterable[str], to_currency: str) -> dict[str, Rate]:
    """The latest known rate from each of the currencies, in one statement; unknown ones are absent."""
    asked = set(from_currencies)
    found = {to_currency: SAME} if to_currency in asked else {}
    if others := asked - {to_currency}:
        for row in LATEST.rows(connection, (array(sorted(others)), to_currency, DEFAULT_CURRENCY)):
            found[row.currency] = Rate(cross(row.from_rubles, row.to_rubles), row.rate_date, row.rate_source)
    return found


def cross(from_rubles: Decimal, to_rubles: Decimal) -> Decimal:
    """The rate by way of the ruble, to RATE_DIGITS significant digits."""
    with localcontext(prec=RATE_DIGITS, rounding=ROUND_HALF_EVEN):
        return from_rubles / to_rubles


def convert(amount_minor: int, from_currency: str, to_currency: str, rate: Decimal) -> int:
    """Minor units of the target: computed exactly, then rounded once, halves to the even neighbour.

    Halves go to the even neighbour, as in accounting and in IEEE 754, so that many roundings add up to no gain.
    """
    # A product has no more digits than its factors together, so nothing is rounded before the end.
    exact = Context(prec=len(str(abs(amount_minor))) + len(rate.as_tuple().digits))
    product = exact.multiply(Decimal(amount_minor), rate)
    shifted = exact.scaleb(product, CURRENCIES[to_currency] - CURRENCIES[from_currency])
    return int(shifted.to_integral_value(rounding=ROUND_HALF_EVEN))


def converted(balance: int, currency: str, to_currency: str, rate: Rate, today: date) -> dict[str, Any]:
    """A balance in another currency, with all that is needed to compute it again, and the rate's age in days."""
    amount = convert(balance, currency, to_currency, rate.rate)
    return {
        "currency": to_currency,
        "balance": amount,
        "balance_decimal": decimal_string(amount, to_currency),
        "rate": f"{rate.rate:f}",
        "rate_date": rate.rate_date.isoformat() if rate.rate_date else None,
        "rate_source": rate.rate_source,
        # The rates of tomorrow are not older than fresh.
        "rate_age_days": max((today - rate.rate_date).days, 0) if rate.rate_date else 0,
    }


def today() -> date:
    """The day by which a rate's age is counted, in UTC like all times here."""
    return datetime.now(UTC).date()


def store(connection: sa.Connection, sheet: RateSheet, source: str) -> None:
    """Keep a sheet, all of it in one statement; the same day's rates from before are replaced.

    Raises RatesError for a day so far ahead that it must be a mistake.
    """
    if sheet.date > today() + timedelta(days=AHEAD_DAYS_MAX):
        raise RatesError(f"the rates are for {sheet.date}, more than {AHEAD_DAYS_MAX} days ahead")
    currencies, rubles = zip(*sorted(sheet.rubles.items()), strict=True)
    connection.execute(
        sa.text(
            "INSERT INTO rates (currency, rate_date, rubles, source)"
            " SELECT currency, :rate_date, rubles, :source"
            " FROM unnest(CAST(:currencies AS text[]), CAST(:rubles AS numeric[])) AS sheet (currency, rubles)"
            " ON CONFLICT (currency, rate_date) DO UPDATE"
            " SET rubles = EXCLUDED.rubles, source = EXCLUDED.source, loaded_at = EXCLUDED.loaded_at"
        ),
        {"rate_date": sheet.date, "source": source, "currencies": list(currencies), "rubles": list(rubles)},
    )


def refresh(engine: sa.Engine, url: str) -> RateSheet:
    """Fetch, check and keep today's sheet. Raises RatesError, with nothing stored."""
    sheet = parse(fetch(url))
    with engine.begin() as connection:  # only now: no transaction waits for somebody else's server
        store(connection, sheet, source_of(url))
    return sheet


def source_of(url: str) -> str:
    """The URL as it may be shown to clients: without a password or a key in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def load_snapshot_if_empty(connection: sa.Connection) -> None:
    """Begin with the rates that Kassa ships, so that conversions work where the Bank cannot be reached."""
    if not connection.execute(sa.text("SELECT EXISTS (SELECT FROM rates)")).scalar_one():
        store(connection, parse(SNAPSHOT.read_bytes()), SNAPSHOT_SOURCE)
