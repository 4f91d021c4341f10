"""What the API's role may not do in the database, by the API's own connections."""

from collections.abc import Iterator

import psycopg2.errors
import pytest
import sqlalchemy as sa

from api.dependencies import Dependencies
from core import settings
from tests.end_to_end.conftest import Kassa


@pytest.fixture(scope="module")
def engines(running: Kassa) -> Iterator[list[sa.Engine]]:
    """The very ones that the API has."""
    dependencies = Dependencies.make(settings.load(running.stack.environment))
    yield [dependencies.engine, dependencies.reader]
    for engine in (dependencies.engine, dependencies.reader):
        engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO entries (operation_id, account_id, account_version, amount, balance_after)"
        " SELECT id, id, 1, 1, 1 FROM operations LIMIT 1",
        "UPDATE entries SET amount = 1",
        "DELETE FROM entries",
        "TRUNCATE entries",
        "UPDATE accounts SET balance = balance + 1",
        "UPDATE accounts SET user_id = NULL",
        "DELETE FROM accounts",
        "UPDATE operations SET status = 'applied'",
        "UPDATE operations SET amount = 1",
        "DELETE FROM operations",
        "DELETE FROM queue",
        "UPDATE queue SET turn = 0",
        "TRUNCATE operations CASCADE",
        "UPDATE progress SET done_seq = 1",
        "DELETE FROM progress",
        "INSERT INTO progress (user_id, done_seq) SELECT id, 1 FROM users LIMIT 1",
        "DELETE FROM users",
        "UPDATE rates SET rubles = 1",
        "INSERT INTO accounts (id, kind, currency, lane, balance) VALUES (gen_random_uuid(), 'world', 'XTS', 0, 5)",
        "INSERT INTO operations (id, status) VALUES (gen_random_uuid(), 'applied')",
        "INSERT INTO users (id, role) VALUES (gen_random_uuid(), 'admin')",
        "INSERT INTO purchases SELECT id, id, id FROM users LIMIT 1",
        "UPDATE lanes SET turn = 0",
        "SELECT nextval('apply_no')",
        "SELECT setval('apply_no', 1)",
        "CREATE TABLE planted (id int)",
        "CREATE FUNCTION planted() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA planted",
        "ALTER TABLE entries DISABLE TRIGGER ALL",
        "ALTER TABLE operations DROP CONSTRAINT operations_amount_positive",
        "ALTER TABLE operations ADD COLUMN planted int",
        "DROP TABLE entries",
        "DROP TRIGGER entries_append_only ON entries",
        "DROP INDEX operations_user_id_idempotency_key_key",
        "ALTER ROLE kassa_api SUPERUSER",
        "COPY entries TO PROGRAM 'cat'",
        "SELECT pg_read_file('/etc/passwd')",
        "SET session_replication_role = replica",
    ],
)
def test_refused_for_lack_of_privilege(engines: list[sa.Engine], statement: str):
    for engine in engines:
        with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError) as refused:
            connection.exec_driver_sql(statement)
        assert isinstance(refused.value.orig, psycopg2.errors.InsufficientPrivilege), refused.value


def test_all_of_the_apis_connections_have_the_role(kassa: Kassa, engines: list[sa.Engine]):
    for engine in engines:
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT current_user").scalar_one() == "kassa_api"
