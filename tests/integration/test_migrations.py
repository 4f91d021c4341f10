"""The migrations make the schema that `core/tables.py` describes, once, in one line of history, and keep the lanes."""

import itertools
import subprocess
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from cli.migrate import migrate
from cli.servers import postgres_binaries
from cli.stack import Stack
from core import batches, db, lanes
from core.ids import own_account_id
from core.reconcile import violations
from core.tables import metadata
from tests.conftest import create_database
from tests.integration.conftest import aside, until
from worker.drain import drain

numbers = itertools.count(1)

Create = Callable[[], sa.Engine]

BEFORE_THE_QUEUE = f"""
INSERT INTO accounts (id, kind, currency, lane) VALUES ('{own_account_id("world", 0, "RUB")}', 'world', 'RUB', 0);
INSERT INTO users (id, username, lane, next_seq, done_seq, turn) VALUES (uuidv7(), 'alice', 0, 0, 0, 3);
INSERT INTO accounts (id, user_id, kind, currency, is_default) SELECT id, id, 'main', 'RUB', true FROM users
"""
# Two of three operations are pending.
ACCEPT_BEFORE_THE_QUEUE = """
INSERT INTO operations (id, user_id, requested_by, seq, lane, turn, type, account_id, amount, currency, request_hash,
                        status, rejection, apply_no, finished_at)
SELECT uuidv7(), id, id, place, 0, place, 'deposit', id, 1, 'RUB', '',
       CASE place WHEN 1 THEN 'canceled' ELSE 'pending' END, NULL,
       CASE place WHEN 1 THEN nextval('apply_no') END, CASE place WHEN 1 THEN now() END
  FROM users CROSS JOIN generate_series(1, 3) AS place;
UPDATE users SET next_seq = 3, done_seq = 1
"""

BATCH, NO_BATCH = "01a1fb36-b9a6-76c2-81f4-000000000001", "01a1fb36-b9a6-76c2-81f4-000000000002"
# Of a batch with operations, and others between them, and of one without.
BATCHES_WITH_AN_INDEX = f"""
INSERT INTO batches (id, requested_by, request_hash, size, refused)
SELECT id, uuidv7(), '', 3, '{{}}' FROM (VALUES ('{BATCH}'::uuid), ('{NO_BATCH}')) AS batch (id);
INSERT INTO operations (id, user_id, requested_by, seq, lane, type, account_id, amount, currency, request_hash,
                        batch_id, batch_index)
SELECT uuidv7(), uuidv7(), uuidv7(), 1, 0, 'deposit', uuidv7(), 1, 'RUB', '',
       CASE mod(number, 2) WHEN 0 THEN '{BATCH}'::uuid END, CASE mod(number, 2) WHEN 0 THEN number / 2 END
  FROM generate_series(0, 5) AS number
"""


@pytest.fixture
def blank(servers: Stack) -> Iterator[Create]:
    """Makes databases without anything in them."""
    engines: list[sa.Engine] = []

    def create() -> sa.Engine:
        url = create_database(servers, f"test_migrations_{next(numbers)}")
        engines.append(db.engine(url, "tests", 3))
        return engines[-1]

    yield create
    for engine in engines:
        engine.dispose()


def schema_of(engine: sa.Engine) -> list[tuple[str, ...]]:
    """The statements of a dump, each as its sorted lines: the order of columns says nothing."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    command = [
        postgres_binaries() / "pg_dump",
        "--schema-only",
        "--no-owner",
        "--no-privileges",
        "--exclude-table=alembic_version",
    ]
    dump = subprocess.run([*command, f"--dbname={url}"], check=True, capture_output=True, text=True).stdout
    statements = []
    for statement in dump.split(";\n\n"):
        lines = [line.strip().rstrip(",") for line in statement.splitlines()]
        meant = [line for line in lines if line and not line.startswith(("--", "\\restrict", "\\unrestrict"))]
        if meant:
            statements.append(tuple(sorted(meant)))
    return sorted(statements)


def lane_ids(engine: sa.Engine) -> list[int]:
    """The lanes that are there."""
    with engine.connect() as connection:
        return lanes.all_ids(connection)


def test_the_migrations_make_the_schema_of_the_tables(blank: Create):
    migrated, described = blank(), blank()
    migrate(migrated, 1)
    metadata.create_all(described)
    found, wanted = schema_of(migrated), schema_of(described)
    assert sum("CREATE TABLE" in str(statement) for statement in found) == len(metadata.tables)
    assert found == wanted


def test_the_comparison_notices_what_differs(blank: Create):
    engine = blank()
    metadata.create_all(engine)
    before = schema_of(engine)
    assert schema_of(engine) == before, "a dump is repeatable"
    for change in (
        "ALTER TABLE users ALTER COLUMN bio DROP DEFAULT",
        "ALTER TABLE operations DROP CONSTRAINT operations_amount_positive",
        "ALTER TABLE entries DISABLE TRIGGER entries_append_only",
        "DROP INDEX operations_user_id_created_at",
        "ALTER TABLE lanes RESET (fillfactor)",
    ):
        with engine.begin() as connection:
            connection.exec_driver_sql(change)
        after = schema_of(engine)
        assert after != before, change
        before = after


def test_history_is_one_line_with_one_head():
    history = ScriptDirectory.from_config(db.migrations())
    assert len(history.get_heads()) == 1
    assert len(history.get_bases()) == 1
    revisions = list(history.walk_revisions())
    for newer, older in itertools.pairwise(revisions):
        assert newer.down_revision == older.revision, "a migration follows one other"
        assert not older.is_branch_point
    assert revisions[-1].down_revision is None


def test_migrating_again_changes_nothing(blank: Create):
    engine = blank()
    migrate(engine, 4)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE lanes SET turn = 7 WHERE id = 2")
    before = schema_of(engine)
    migrate(engine, 4)
    assert schema_of(engine) == before
    db.require_ready(engine, 4)
    with engine.connect() as connection:
        turns = connection.exec_driver_sql("SELECT turn FROM lanes ORDER BY id").scalars().all()
    assert turns == [0, 0, 7, 0]


def test_two_at_once_migrate_once(blank: Create):
    engine = blank()
    both = [aside(lambda: migrate(engine, 2)) for _ in range(2)]
    for one in both:
        one.result(10)
    assert lane_ids(engine) == [0, 1]
    db.require_ready(engine, 2)


def test_a_migration_that_breaks_leaves_nothing_behind(blank: Create):
    engine = blank()
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE refresh_tokens ()")  # in the way, near the end
    with pytest.raises(sa.exc.ProgrammingError, match="refresh_tokens"):
        migrate(engine, 2)
    assert sa.inspect(engine).get_table_names() == ["refresh_tokens"]


def upgrade(connection: sa.Connection, revision: str) -> None:
    """The schema as of a revision, with a lane."""
    config = db.migrations()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
    lanes.ensure(connection, 1)


def before_the_queue(engine: sa.Engine) -> None:
    """The schema of then, with a user and an account."""
    with engine.begin() as connection:
        upgrade(connection, "0006")
        for statement in BEFORE_THE_QUEUE.split(";\n"):
            connection.exec_driver_sql(statement)


def test_what_is_pending_when_the_queue_becomes_a_table_is_applied(blank: Create):
    before_the_queue(engine := blank())
    with engine.begin() as connection:
        connection.exec_driver_sql(ACCEPT_BEFORE_THE_QUEUE)
    migrate(engine, 1)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT lane, turn FROM queue ORDER BY turn").all() == [(0, 2), (0, 3)]
    assert not violations(engine)
    assert drain(engine, 0).counts == {"applied": 2}
    assert not violations(engine)


def test_what_an_older_kassa_is_accepting_while_the_queue_becomes_a_table_is_applied(blank: Create):
    before_the_queue(engine := blank())
    with engine.begin() as older:
        older.exec_driver_sql(ACCEPT_BEFORE_THE_QUEUE)
        migrating = aside(lambda: migrate(engine, 1))
        with db.autocommit(engine).connect() as connection:
            until(lambda: connection.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE NOT granted").scalar_one())
    migrating.result(10)
    assert not violations(engine)
    assert drain(engine, 0).counts == {"applied": 2}


def test_the_operations_of_an_older_batch_are_found(blank: Create):
    engine = blank()
    with engine.begin() as connection:
        upgrade(connection, "0009")
        for statement in BATCHES_WITH_AN_INDEX.split(";\n"):
            connection.exec_driver_sql(statement)
    migrate(engine, 1)
    with engine.connect() as connection:
        found = {batch: batches.items(connection, batches.find(connection, batch)) for batch in (BATCH, NO_BATCH)}
    assert [item["index"] for item in found[BATCH]] == [0, 1, 2]
    assert found[NO_BATCH] == []
    insert = BATCHES_WITH_AN_INDEX.split(";\n")[0].replace("000000000", "000000001")
    with pytest.raises(sa.exc.IntegrityError, match="first_operation_id"), engine.begin() as connection:
        connection.exec_driver_sql(insert)  # by an older Kassa that goes on: nobody would find its operations


def test_lanes_only_grow(blank: Create):
    engine = blank()
    migrate(engine, 4)
    assert lane_ids(engine) == [0, 1, 2, 3]
    migrate(engine, 6)
    assert lane_ids(engine) == [0, 1, 2, 3, 4, 5]
    migrate(engine, 2)
    assert lane_ids(engine) == [0, 1, 2, 3, 4, 5], "users keep their lane for life"
