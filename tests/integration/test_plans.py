"""The prepared statements find what they need by an index, however large the tables are, and were when planned."""

import gc
import re

import pytest
import sqlalchemy as sa

import worker.drain  # noqa: F401  # it and the next bring every prepared statement along
from core import batches, db, gathering, lanes, ledger  # noqa: F401
from core.db import Prepared, in_brackets

ROWS = 20_000
LARGE = ("users", "progress", "accounts", "sessions", "operations", "queue", "entries")
COUNTS = {"load_count": {"queue"}}  # the one statement that has to read all of a table

# Finished operations, two entries each, of users with an account and a session each.
FILL = """
INSERT INTO users (id, username, lane, next_seq)
SELECT uuidv7(), 'user-' || i, 0, 1 FROM generate_series(1, {rows}) AS i;
INSERT INTO progress (user_id, done_seq) SELECT id, 1 FROM users;
INSERT INTO accounts (id, user_id, kind, name, currency, is_default)
SELECT uuidv7(), id, 'main', '', 'RUB', true FROM users;
INSERT INTO sessions (id, user_id, expires_at) SELECT uuidv7(), id, now() + interval '1 day' FROM users;
INSERT INTO operations (id, user_id, requested_by, seq, lane, type, status, account_id, amount, currency,
                        request_hash, apply_no, account_version, finished_at)
SELECT uuidv7(), user_id, user_id, 1, 0, 'deposit', 'applied', id, 1, 'RUB', '', nextval('apply_no'), 1, now()
  FROM accounts WHERE kind = 'main';
INSERT INTO entries (operation_id, account_id, account_version, amount, balance_after)
SELECT id, account_id, 1, 1, 1 FROM operations;
INSERT INTO queue (lane, turn, operation_id) SELECT 0, row_number() OVER (ORDER BY id), id FROM operations
"""


@pytest.fixture(params=["long queue", "empty queue"])
def large(engine: sa.Engine, request: pytest.FixtureRequest) -> sa.Engine:
    """A statement may be planned when nothing is pending, and still be in use when much is."""
    with db.autocommit(engine).connect() as connection:
        for statement in FILL.format(rows=ROWS).split(";\n"):
            connection.exec_driver_sql(statement)
        if request.param == "empty queue":
            connection.exec_driver_sql("DELETE FROM queue")
        connection.exec_driver_sql("VACUUM ANALYZE")
    return db.autocommit(engine)


def statements() -> list[Prepared]:
    """All that there are."""
    return sorted((each for each in gc.get_objects() if isinstance(each, Prepared)), key=lambda each: each.name)


def plan_of(engine: sa.Engine, statement: Prepared) -> str:
    """How PostgreSQL carries it out."""
    types, nulls = in_brackets(statement.types), in_brackets(["NULL"] * len(statement.types))
    with engine.connect() as connection:
        connection.exec_driver_sql(f"PREPARE it{types} AS {statement.sql}")
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN EXECUTE it{nulls}").scalars())
        connection.exec_driver_sql("DEALLOCATE it")
    return plan


def scanned(engine: sa.Engine, statement: Prepared) -> set[str]:
    """The large tables that the statement's plan reads whole, by an index without a condition or without any."""
    plan = plan_of(engine, statement)
    by_index = re.findall(r"Index (?:Only )?Scan(?: Backward)? using \w+ on (\w+).*(?!\n +Index Cond)\n", plan + "\n")
    sorted_whole = re.findall(r"Bitmap Heap Scan on (queue)", plan)
    return {*re.findall(r"Seq Scan on (\w+)", plan), *by_index, *sorted_whole} & set(LARGE)


def test_no_prepared_statement_reads_a_large_table_whole(large: sa.Engine):
    names = [statement.name for statement in statements()]
    assert {"accept", "accept_batch", "accept_group", "pending", "write_outcomes", "finished"} <= set(names)
    assert {statement.name: found for statement in statements() if (found := scanned(large, statement))} == COUNTS
    for sql in (lanes.HEADS, lanes.WAITING_SINCE):
        assert scanned(large, Prepared("heads", [], sql)) == set()
    whole = {
        "operations": Prepared("whole", ["bigint"], "SELECT id FROM operations WHERE amount > $1"),
        "queue": Prepared("whole_index", [], "SELECT turn FROM queue ORDER BY lane, turn"),
    }
    assert {table: scanned(large, statement) for table, statement in whole.items()} == {
        table: {table} for table in whole
    }


def test_what_was_refused_of_a_batch_is_found_without_comparing_each_with_each(large: sa.Engine):
    """PostgreSQL expects ten items where ten thousand may come."""
    plan = plan_of(large, batches.ACCEPT)
    assert "hashed SubPlan" in plan
    assert "Nested Loop Anti Join" not in plan


def compared(plan: str) -> list[str]:
    """The conditions of nested loops over two of the statement's own parts or arrays."""
    own = {alias or name for name, alias in re.findall(r"(?:CTE|Function) Scan on (\w+)(?: (?!\()(\w+))?", plan)}
    filters: list[str] = re.findall(r"Join Filter: (.*)", plan)
    return [each for each in filters if len(own & set(re.findall(r"(\w+)\.", each))) > 1]


def test_no_prepared_statement_compares_each_of_its_own_rows_with_each(large: sa.Engine):
    """PostgreSQL expects ten rows of an array, and fewer of what is joined to it."""
    assert {statement.name: found for statement in statements() if (found := compared(plan_of(large, statement)))} == {}
    with_each = "WITH a AS MATERIALIZED (SELECT unnest($1) x) SELECT FROM a b JOIN unnest($1) AS c (y) ON b.x < c.y"
    assert compared(plan_of(large, Prepared("each", ["int[]"], with_each))) == ["(b.x < c.y)"]
