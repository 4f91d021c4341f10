"""What is real here: a PostgreSQL and a Redis of the suite's own, and for end-to-end tests every process of Kassa."""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from cli.migrate import migrate
from cli.stack import ROOT, Stack
from core import db

LANES = 4
TEMPLATE = "kassa_template"
STATEMENTS = ROOT.parent / "shared" / "statements" / "statements.csv"

numbers = itertools.count(1)


@pytest.fixture(scope="session")
def servers() -> Iterator[Stack]:
    """A fresh PostgreSQL and a fresh Redis, private to this run."""
    data_dir = Path(os.environ.get("TEST_DATA_DIR") or ROOT / ".data" / "test")
    environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL")}
    stack = Stack(data_dir, environment)
    stack.claim()
    shutil.rmtree((stack.data_dir / "postgres").resolve(), ignore_errors=True)
    for old in itertools.chain((stack.data_dir / "log").glob("*.log"), stack.data_dir.glob("beat.schedule*")):
        old.unlink()
    try:
        stack.start_servers()
        admin = db.autocommit(db.engine(stack.environment["DATABASE_URL"], "tests", 1))
        db.wait_for(admin)
        create_database(stack, TEMPLATE)
        template = db.engine(url_of(stack, TEMPLATE), "tests", 1)
        migrate(template, LANES)
        template.dispose()
        admin.dispose()
        yield stack
    finally:
        stack.stop()


def url_of(servers: Stack, database: str) -> str:
    """The URL of a database on the suite's PostgreSQL."""
    return servers.environment["DATABASE_URL"].rpartition("/")[0] + f"/{database}"


def create_database(servers: Stack, name: str, template: str = "template0") -> str:
    """Create a database. Returns its URL."""
    admin = db.autocommit(db.engine(servers.environment["DATABASE_URL"], "tests", 1))
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
    admin.dispose()
    return url_of(servers, name)


@pytest.fixture
def database_url(servers: Stack) -> str:
    """A migrated, empty database of the test's own."""
    return create_database(servers, f"test_{next(numbers)}", TEMPLATE)


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """An engine on the test's own database."""
    made = db.engine(database_url, "tests", 10)
    yield made
    made.dispose()


@pytest.fixture
def redis_url(servers: Stack) -> str:
    """The suite's Redis."""
    return servers.environment["REDIS_URL"]
