"""The prepared statements find what they need by an index, however large the tables are."""

import gc
import re

import pytest
import sqlalchemy as sa

import worker.drain  # noqa: F401  # it and the next bring every prepared statement along
from core import batches, db, gathering  # noqa: F401
from core.db import Prepared, in_brackets

ROWS = 20_000
LARGE = ("users", "accounts", "sessions", "operations", "entries")

# Finished operations, two entries each, of users with an account and a session each.
FILL = """
INSERT INTO users (id, username, lane, next_seq, done_seq)
SELECT uuidv7(), 'user-' || i, 0, 1, 1 FROM generate_series(1, {rows}) AS i;
INSERT INTO accounts (id, user_id, kind, name, currency, is_default)
SELECT uuidv7(), id, 'main', '', 'RUB', true FROM users;
INSERT INTO sessions (id, user_id, expires_at) SELECT uuidv7(), id, now() + interval '1 day' FROM users;
INSERT INTO operations (id, user_id, requested_by, seq, lane, turn, type, status, account_id, amount, currency,
                        request_hash, apply_no, account_version, finished_at)
SELECT uuidv7(), user_id, user_id, 1, 0, 1, 'deposit', 'applied', id, 1, 'RUB', '', nextval('apply_no'), 1, now()
  FROM accounts WHERE kind = 'main';
INSERT INTO entries (operation_id, account_id, account_version, amount, balance_after)
SELECT id, account_id, 1, 1, 1 FROM operations;
ANALYZE
"""


@pytest.fixture
def large(engine: sa.Engine) -> sa.Engine:
    with db.autocommit(engine).connect() as connection:
        for statement in FILL.format(rows=ROWS).split(";\n"):
            connection.exec_driver_sql(statement)
    return db.autocommit(engine)


def statements() -> list[Prepared]:
    """All that there are."""
    return sorted((each for each in gc.get_objects() if isinstance(each, Prepared)), key=lambda each: each.name)


def scanned(engine: sa.Engine, statement: Prepared) -> set[str]:
    """The large tables that the statement's plan reads whole."""
    types, nulls = in_brackets(statement.types), in_brackets(["NULL"] * len(statement.types))
    with engine.connect() as connection:
        connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
        connection.exec_driver_sql(f"PREPARE it{types} AS {statement.sql}")
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN EXECUTE it{nulls}").scalars())
        connection.exec_driver_sql("DEALLOCATE it")
        connection.exec_driver_sql("RESET plan_cache_mode")
    return set(re.findall(r"Seq Scan on (\w+)", plan)) & set(LARGE)


def test_no_prepared_statement_reads_a_large_table_whole(large: sa.Engine):
    names = [statement.name for statement in statements()]
    assert {"accept", "accept_batch", "accept_group", "pending", "write_outcomes", "finished"} <= set(names)
    assert {statement.name: found for statement in statements() if (found := scanned(large, statement))} == {}
    assert scanned(large, Prepared("whole", ["bigint"], "SELECT id FROM operations WHERE amount > $1")) == {
        "operations"
    }
