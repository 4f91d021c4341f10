"""Exchange rates stored and found in PostgreSQL, and fetched over real HTTP: whole, or not at all."""

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from cli.migrate import migrate
from cli.servers import LOOPBACK, free_port
from cli.stack import ROOT, Stack
from core import db, rates
from core.rate_sheets import DOCUMENT_BYTES_MAX, RatesError, fetch, parse
from core.rates import AHEAD_DAYS_MAX, SNAPSHOT, SNAPSHOT_SOURCE, Rate, load_snapshot_if_empty, store
from tests import central_bank as bank
from tests.central_bank import Behaviour, central_bank, document
from tests.conftest import LANES, TEMPLATE, create_database
from tests.integration.conftest import aside

DAY = date(2022, 3, 15)
TODAY = document(USD="80,5", KRW="1000/60,25")
TIMEOUT_SECONDS = 0.5

numbers = itertools.count(1)

WRONG: list[tuple[Behaviour, str]] = [
    (bank.serves(TODAY, 500), "answered 500"),
    (bank.serves(TODAY, 404), "answered 404"),
    (bank.serves(TODAY, 206), "answered 206"),
    (bank.serves(b"", 204), "answered 204"),
    (bank.serves(TODAY, 301, Location="/elsewhere"), "answered 301"),
    (bank.serves(TODAY, 302, Location="file:///etc/hostname"), "answered 302"),
    (bank.serves(b"<html><body>Down for maintenance</body></html>"), "'html'"),
    (bank.serves(TODAY[:-40]), "not an XML document"),
    (bank.serves(TODAY, length=len(TODAY) + 1), "cannot be fetched"),
    (bank.serves(b""), "not an XML document"),
    (bank.serves(b"\x1f\x8b\x08\x00" + TODAY, **{"Content-Encoding": "gzip"}), "not an XML document"),
    (bank.serves(TODAY + b" " * DOCUMENT_BYTES_MAX), "more than"),
    (bank.serves(document(USD="80,5", EUR="0")), "worth nothing"),
    (bank.serves(document("15.03.2222", USD="80,5")), "days ahead"),
    (bank.endless, "more than"),
    (lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH\r\n"), "cannot be fetched"),
    (lambda handler: None, "cannot be fetched"),
]


@pytest.fixture
def connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction on a database without any rates."""
    with engine.begin() as opened:
        opened.exec_driver_sql("TRUNCATE rates")
        yield opened


@pytest.fixture
def environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    """What a process of ours needs; nobody answers at RATES_URL."""
    return os.environ | {
        "DATABASE_URL": database_url,
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "SECRET_KEY": "abcdefghijklmnop" * 2,
        "LANES": str(LANES),
        "DATA_DIR": str(tmp_path),
        "RATES_URL": f"http://{LOOPBACK}:{free_port(0)}/",
        "PYTHONPATH": str(ROOT),
    }


def rows(engine: sa.Engine) -> set[tuple[str, date, Decimal, str]]:
    """All rates that are stored."""
    with engine.connect() as opened:
        found = opened.exec_driver_sql("SELECT currency, rate_date, rubles, source FROM rates")
        return {(row.currency, row.rate_date, row.rubles, row.source) for row in found}


def keep(connection: sa.Connection, day: str, source: str = "bank", /, **values: str) -> None:
    """Store a day's rates."""
    store(connection, parse(document(day, **values)), source)


def rate(found: Rate | None) -> tuple[str, date | None]:
    """A rate and its day."""
    assert found is not None
    return f"{found.rate:f}", found.rate_date


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    arguments = [sys.executable, *command]
    return subprocess.run(arguments, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def kassa(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`./kassa rates ...`"""
    return run(environment, "-m", "cli", "rates", *arguments)


def test_rates_by_way_of_the_ruble(connection: sa.Connection):
    keep(connection, "15.03.2022", USD="100", EUR="125", JPY="100/80")
    assert rate(rates.find(connection, "USD", "RUB")) == ("100", DAY)
    assert rate(rates.find(connection, "RUB", "USD")) == ("0.01", DAY)
    assert rate(rates.find(connection, "EUR", "USD")) == ("1.25", DAY)
    assert rate(rates.find(connection, "USD", "EUR")) == ("0.8", DAY)
    assert rate(rates.find(connection, "JPY", "EUR")) == ("0.0064", DAY)


def test_what_is_published_is_kept_to_the_digit(connection: sa.Connection):
    keep(connection, "15.03.2022", USD="115,1963", TRY="10/78,1294", RON="25,7100")
    found = connection.exec_driver_sql("SELECT currency, rubles::text FROM rates ORDER BY 1").all()
    assert [tuple(row) for row in found] == [("RON", "25.7100"), ("TRY", "7.81294"), ("USD", "115.1963")]


def test_one_is_one_even_where_nothing_is_known(connection: sa.Connection):
    for currency in ("RUB", "KWD"):
        assert rates.find(connection, currency, currency) == Rate(Decimal(1), None, None)


def test_unknown_rates_are_none(connection: sa.Connection):
    assert rates.find(connection, "RUB", "USD") is None
    keep(connection, "15.03.2022", USD="100")
    for pair in [("RUB", "EUR"), ("EUR", "RUB"), ("USD", "EUR"), ("EUR", "USD"), ("EUR", "KWD")]:
        assert rates.find(connection, *pair) is None


def test_the_latest_day_that_both_are_known(connection: sa.Connection):
    keep(connection, "15.03.2022", USD="100", EUR="125")
    keep(connection, "17.03.2022", USD="50")
    keep(connection, "14.03.2022", USD="1", EUR="2", CHF="4")
    keep(connection, "16.03.2022", EUR="160", CHF="2")
    assert rate(rates.find(connection, "USD", "RUB")) == ("50", date(2022, 3, 17))
    assert rate(rates.find(connection, "RUB", "EUR")) == ("0.00625", date(2022, 3, 16))
    assert rate(rates.find(connection, "EUR", "USD")) == ("1.25", DAY), "not one leg newer than the other"
    assert rate(rates.find(connection, "CHF", "USD")) == ("4", date(2022, 3, 14))


def test_many_at_once_with_the_unknown_ones_absent(connection: sa.Connection):
    keep(connection, "15.03.2022", USD="100", EUR="125")
    found = rates.find_all(connection, ["RUB", "EUR", "USD", "KWD", "EUR"], "USD")
    assert {currency: f"{each.rate:f}" for currency, each in found.items()} == {
        "RUB": "0.01",
        "EUR": "1.25",
        "USD": "1",
    }
    assert rates.find_all(connection, [], "USD") == {}


def test_the_source_names_both_legs(connection: sa.Connection):
    keep(connection, "15.03.2022", "a bank", USD="100", EUR="125")
    keep(connection, "15.03.2022", "a file", EUR="130")
    assert [rates.find(connection, *pair).rate_source for pair in [("USD", "RUB"), ("RUB", "EUR"), ("USD", "EUR")]] == [
        "a bank",
        "a file",
        "a bank and a file",
    ]


def test_the_same_day_again_replaces(connection: sa.Connection):
    keep(connection, "15.03.2022", "first", USD="100", EUR="125")
    before = connection.exec_driver_sql("SELECT loaded_at FROM rates WHERE currency = 'USD'").scalar_one()
    keep(connection, "15.03.2022", "second", USD="101")
    found = connection.exec_driver_sql("SELECT rubles, source, loaded_at > %s FROM rates ORDER BY 1", (before,)).all()
    assert [tuple(row) for row in found] == [(Decimal(101), "second", True), (Decimal(125), "first", False)]


def test_a_sheet_is_stored_whole_or_not_at_all(engine: sa.Engine):
    before = rows(engine)
    sheet = parse(TODAY)
    broken = replace(sheet, rubles={**sheet.rubles, "EUR": Decimal(-1)})
    with db.autocommit(engine).connect() as opened, pytest.raises(sa.exc.IntegrityError, match="rates_rubles_positive"):
        store(opened, broken, "nobody")
    assert rows(engine) == before


def test_a_day_far_ahead_is_refused(connection: sa.Connection):
    sheet = parse(TODAY)
    store(connection, replace(sheet, date=rates.today() + timedelta(days=AHEAD_DAYS_MAX)), "bank")
    with pytest.raises(RatesError, match="days ahead"):
        store(connection, replace(sheet, date=rates.today() + timedelta(days=AHEAD_DAYS_MAX + 1)), "bank")


def test_two_sheets_at_once(engine: sa.Engine):
    def load(source: str) -> None:
        with engine.begin() as opened:
            store(opened, parse(SNAPSHOT.read_bytes()), source)

    for one in [aside(lambda source=source: load(source)) for source in "abcdefgh"]:
        one.result(10)
    assert len({source for _, _, _, source in rows(engine)}) == 1


def test_the_first_migration_brings_the_snapshot(servers: Stack):
    engine = db.engine(create_database(servers, f"test_rates_{next(numbers)}"), "tests", 2)
    migrate(engine, LANES)
    expected = parse(SNAPSHOT.read_bytes()).rubles
    assert rows(engine) == {(currency, DAY, rubles, SNAPSHOT_SOURCE) for currency, rubles in expected.items()}
    with engine.begin() as opened:
        opened.exec_driver_sql("TRUNCATE rates")
        keep(opened, "16.03.2022", USD="100")
    migrate(engine, LANES)
    assert len(rows(engine)) == 1, "later ones leave alone what is there"
    engine.dispose()


def test_the_snapshot_is_for_an_empty_table(connection: sa.Connection):
    load_snapshot_if_empty(connection)
    keep(connection, "15.03.2022", "bank", USD="100")
    load_snapshot_if_empty(connection)
    assert rate(rates.find(connection, "USD", "RUB")) == ("100", DAY)


def test_fetching_what_the_bank_serves(engine: sa.Engine):
    with central_bank(bank.serves(TODAY)) as url:
        sheet = rates.refresh(engine, f"{url}?key=secret")
    assert sheet == parse(TODAY)
    stored = {row for row in rows(engine) if row[3] == url}
    assert stored == {("USD", DAY, Decimal("80.5"), url), ("KRW", DAY, Decimal("0.06025"), url)}


@pytest.mark.parametrize(("behaviour", "reason"), WRONG)
def test_what_is_served_wrongly_changes_nothing(engine: sa.Engine, behaviour: Behaviour, reason: str):
    before = rows(engine)
    with central_bank(behaviour) as url, pytest.raises(RatesError, match=reason) as refused:
        rates.refresh(engine, url)
    assert "\n" not in str(refused.value)
    assert rows(engine) == before


@pytest.mark.parametrize("behaviour", [bank.drips_headers, bank.drips_body, bank.silent])
def test_a_server_that_never_finishes_is_cut_off(behaviour: Behaviour):
    started = time.monotonic()
    with central_bank(behaviour) as url, pytest.raises(RatesError, match=r"within 0\.5 s"):
        fetch(url, TIMEOUT_SECONDS)
    assert TIMEOUT_SECONDS <= time.monotonic() - started < TIMEOUT_SECONDS + 1.5


@pytest.mark.parametrize(
    "url",
    [
        f"http://{LOOPBACK}:1/",
        "http://nowhere.invalid/",
        "http://",
        "http://[::1",
        "http://host:port/",
        f"https://{LOOPBACK}:1/",
        "file:///etc/hostname",
        "http://a\x00b/",
    ],
)
def test_where_nobody_is(url: str):
    with pytest.raises(RatesError, match="cannot be fetched"):
        fetch(url, 5)


def test_what_does_not_speak_tls():
    with central_bank(bank.serves(TODAY)) as url, pytest.raises(RatesError, match="cannot be fetched"):
        fetch(url.replace("http:", "https:"), 5)


def test_the_task(engine: sa.Engine, environment: dict[str, str]):
    task = "from worker.tasks import fetch_rates; print(fetch_rates())"
    before = rows(engine)
    failed = run(environment, "-c", task)
    assert failed.returncode == 0, failed.stderr
    assert "rates_not_fetched" in failed.stdout
    assert failed.stdout.endswith("{'currencies': 0}\n")
    assert rows(engine) == before
    with central_bank(bank.serves(TODAY)) as url:
        done = run(environment | {"RATES_URL": url}, "-c", task)
    assert done.stdout.endswith("{'currencies': 2, 'date': '2022-03-15'}\n"), done.stderr
    assert {row for row in rows(engine) if row[3] == url} == rows(engine) - before


def test_beat_has_it_fetched_every_day(environment: dict[str, str]):
    entry = "from worker.app import app; print(app.conf.beat_schedule['fetch_rates'])"
    shown = run(environment, "-c", entry).stdout
    assert "<crontab: 30 12,14,16,18 * * * (m/h/dM/MY/d)>" in shown
    assert "'queue': 'chores'" in shown


def test_loading_a_file_by_hand(engine: sa.Engine, environment: dict[str, str], tmp_path: Path):
    file = tmp_path / "rates.xml"
    file.write_bytes(document("16.03.2022", USD="110", XDR="150"))
    loaded = kassa(environment, "load", str(file))
    assert (loaded.returncode, loaded.stderr) == (0, "")
    assert "for 2022-03-16, currencies: 1." in loaded.stdout
    assert "XDR" in loaded.stdout
    assert ("USD", date(2022, 3, 16), Decimal(110), "file rates.xml") in rows(engine)
    assert kassa(environment, "load", str(file), "--source", "by hand").returncode == 0
    lines = kassa(environment, "show").stdout.splitlines()
    [shown] = [line.split(maxsplit=3) for line in lines if line.startswith("USD")]
    assert shown == ["USD", "110", "2022-03-16", "by hand"]
    assert len(lines) == len({line[:3] for line in lines})


def test_fetching_by_hand(engine: sa.Engine, environment: dict[str, str]):
    with central_bank(bank.serves(TODAY)) as url:
        fetched = kassa(environment | {"RATES_URL": url}, "fetch")
    assert (fetched.returncode, fetched.stderr) == (0, "")
    assert "for 2022-03-15, currencies: 2." in fetched.stdout
    assert {row[0] for row in rows(engine) if row[3] == url} == {"USD", "KRW"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"<html/>", "'html'"), (None, "No such file"), (document(USD="-1"), "Value")],
)
def test_by_hand_what_is_wrong_is_one_line(
    engine: sa.Engine, environment: dict[str, str], tmp_path: Path, content: bytes | None, reason: str
):
    before, file = rows(engine), tmp_path / "rates.xml"
    if content is not None:
        file.write_bytes(content)
    failed = kassa(environment, "load", str(file))
    assert failed.returncode == 1
    assert failed.stderr.startswith("kassa rates load: ")
    assert failed.stderr.count("\n") == 1
    assert reason in failed.stderr
    assert rows(engine) == before


def test_by_hand_where_nothing_can_be_done_is_one_line(servers: Stack, environment: dict[str, str]):
    failed = kassa(environment, "fetch")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "cannot be fetched" in failed.stderr
    blank = create_database(servers, f"test_rates_{next(numbers)}")
    failed = kassa(environment | {"DATABASE_URL": blank}, "show")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "./kassa migrate" in failed.stderr or "lanes" in failed.stderr


def test_tests_begin_with_the_snapshot(servers: Stack):
    engine = db.engine(create_database(servers, f"test_rates_{next(numbers)}", TEMPLATE), "tests", 1)
    assert {source for _, _, _, source in rows(engine)} == {SNAPSHOT_SOURCE}
    engine.dispose()
