"""Load, fetch and show exchange rates.

load FILE   keep the rates of a daily document of the Central Bank of Russia (XML)
fetch       get today's document from RATES_URL and keep its rates, as beat has the worker do every day
show        print the latest rate of each currency
"""

import argparse
import sys
from pathlib import Path

import sqlalchemy as sa

from core import db, rates, settings
from core.errors import NotReady
from core.rate_sheets import RatesError, RateSheet, parse

LATEST = """
SELECT DISTINCT ON (currency) currency, rate_date, rubles, source FROM rates ORDER BY currency, rate_date DESC"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The three actions; DATABASE_URL and RATES_URL come from the environment."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    load_parser = actions.add_parser("load", help="keep the rates of a file")
    load_parser.add_argument("file", type=Path, metavar="FILE")
    load_parser.add_argument("--source", metavar="TEXT", help="where the rates come from, for clients to see")
    actions.add_parser("fetch", help="get today's rates from RATES_URL")
    actions.add_parser("show", help="print the latest rate of each currency")


def main(arguments: argparse.Namespace) -> int:
    """Do one of them; what goes wrong is one line, and nothing is stored."""
    configuration = settings.load()
    engine = db.engine(configuration.database_url, "rates", 1)
    try:
        db.require_ready(engine, configuration.lanes)
        if arguments.action == "load":
            kept(load(engine, arguments.file, arguments.source))
        elif arguments.action == "fetch":
            kept(rates.refresh(engine, configuration.rates_url))
        else:
            show(engine)
    except (RatesError, NotReady, OSError) as error:
        print(f"kassa rates {arguments.action}: {error}", file=sys.stderr)
        return 1
    return 0


def load(engine: sa.Engine, file: Path, source: str | None) -> RateSheet:
    """Keep a file's rates. Raises RatesError, or OSError where it cannot be read."""
    sheet = parse(file.read_bytes())
    with engine.begin() as connection:
        rates.store(connection, sheet, source or f"file {file.name}")
    return sheet


def kept(sheet: RateSheet) -> None:
    """Say what was stored."""
    skipped = f" Skipped, as no currencies of ISO 4217: {', '.join(sheet.skipped)}." if sheet.skipped else ""
    print(f"Kept the rates for {sheet.date}, currencies: {len(sheet.rubles)}.{skipped}")


def show(engine: sa.Engine) -> None:
    """Print one line for each currency: rubles for one unit, the day, and where the rate comes from."""
    with engine.connect() as connection:
        for row in connection.exec_driver_sql(LATEST):
            print(f"{row.currency}  {row.rubles:>16f}  {row.rate_date}  {row.source}")
