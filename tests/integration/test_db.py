"""Connections and prepared statements, when the database changes or goes away under them."""

import threading
import time
from datetime import UTC, datetime

import psycopg2
import pytest
import sqlalchemy as sa

from chaos.proxy import Mode, network
from cli.stack import Stack
from core import db, views
from tests.integration.conftest import Bank

COMES_UP_SECONDS = 1.0


def test_a_migration_under_way_does_not_break_what_is_prepared(bank: Bank):
    alice = bank.user()
    with bank.autocommit.connect() as connection:
        operation_id = bank.accept(alice).row.id
        assert views.find_operation(connection, operation_id) is not None
        bank.execute("ALTER TABLE operations ADD COLUMN later text")
        for _ in range(3):
            row = views.find_operation(connection, operation_id)
            assert row is not None
            assert row.id == operation_id
    for _ in range(20):
        bank.accept(alice)
    assert bank.drain().counts == {"applied": 21}


def test_arrays_arrive_as_they_are(engine: sa.Engine):
    texts = ["", " ", "NULL", "null", None, '"', "\\", '\\"', "{a,b}", "a\nb\t", "%s", "'", "é🪙", "\x01"]
    numbers = [None, 0, -1, 2**63 - 1]
    ids = [None, "01a1fd31-58a3-7052-97a1-a7468bdf46da"]
    moments = [None, datetime(2026, 11, 22, 1, 2, 3, 456789, tzinfo=UTC)]
    select = db.Prepared(
        "arrays", ["text[]", "bigint[]", "uuid[]", "timestamptz[]"], "SELECT $1 AS a, $2 AS b, $3::text[] AS c, $4 AS d"
    )
    sent = (db.text_array(texts), db.array(numbers), db.array(ids), db.array(moments))
    with engine.connect() as connection:
        assert list(select.row(connection, sent)) == [texts, numbers, ids, moments]
        assert list(select.row(connection, ["{}"] * 4)) == [[], [], [], []]
    assert (db.text_array([]), db.array([])) == ("{}", "{}")


def test_only_a_failure_to_connect_is_known_to_have_stored_nothing(bank: Bank, engine: sa.Engine):
    with engine.connect() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        bank.execute("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        with pytest.raises(sa.exc.DBAPIError) as lost:
            connection.commit()
    assert not db.never_connected(lost.value)
    assert db.is_connection_lost(lost.value)
    assert db.is_connection_lost(psycopg2.DatabaseError("server closed the connection unexpectedly"))
    assert not db.is_connection_lost(psycopg2.ProgrammingError("can't adapt type"))
    nowhere = db.engine("postgresql://kassa@127.0.0.1:1/kassa", "tests", 1)
    with pytest.raises(sa.exc.OperationalError) as refused, nowhere.connect():
        pass
    assert db.never_connected(refused.value)


def test_a_connection_goes_to_who_has_waited_longest(servers: Stack):
    engine = db.engine(servers.environment["DATABASE_URL"], "tests", 1)
    order: list[int] = []

    def take_turns(number: int) -> None:
        for _ in range(10):
            with engine.connect():
                order.append(number)

    threads = [threading.Thread(target=take_turns, args=(number,)) for number in range(5)]
    with engine.connect():
        for thread in threads:
            thread.start()
            time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4] * 10
    engine.dispose()


def test_who_gets_no_connection_in_time_is_told_so_and_takes_none_later(servers: Stack):
    engine = db.engine(servers.environment["DATABASE_URL"], "tests", 1, pool_wait_seconds=0.1)
    for _ in range(3):
        with engine.connect(), pytest.raises(sa.exc.TimeoutError), engine.connect():
            pass
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
    engine.dispose()


def test_a_connection_that_breaks_in_use_is_no_loss_to_its_pool(bank: Bank, database_url: str):
    engine = db.engine(database_url, "breaking", 1, pool_wait_seconds=0.2)
    for _ in range(3):
        with db.autocommit(engine).connect() as connection:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            bank.execute("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
        time.sleep(1.5 * db.IDLE_SECONDS_MAX)  # then it is looked at before it is used
        with db.autocommit(engine).connect() as connection:
            pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            bank.execute("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)
            with pytest.raises(sa.exc.OperationalError):
                connection.exec_driver_sql("SELECT 1")
    engine.dispose()


def test_what_commits_by_itself_does_so_until_it_is_given_back(bank: Bank, database_url: str):
    engine = db.engine(database_url, "committing", 1)
    with db.autocommit(engine).connect() as connection:
        connection.exec_driver_sql("INSERT INTO lanes (id) VALUES (1001)")
        assert bank.value("SELECT count(*) FROM lanes WHERE id = 1001") == 1
    with engine.connect() as connection:
        connection.exec_driver_sql("DELETE FROM lanes WHERE id = 1001")
        assert bank.value("SELECT count(*) FROM lanes WHERE id = 1001") == 1
    assert bank.value("SELECT count(*) FROM lanes WHERE id = 1001") == 1
    bank.execute("DELETE FROM lanes WHERE id = 1001")
    engine.dispose()


def test_a_database_that_is_coming_up_is_waited_for(servers: Stack):
    url = sa.make_url(servers.environment["DATABASE_URL"])
    with network() as links:
        link = links.link("to postgres", url.port or 0)
        engine = db.engine(url.set(port=link.port).render_as_string(hide_password=False), "tests", 1)
        link.set(Mode("refuse"))
        threading.Timer(COMES_UP_SECONDS, link.set, [Mode()]).start()
        started = time.monotonic()
        db.wait_for(engine)
        assert time.monotonic() - started >= COMES_UP_SECONDS
        engine.dispose()


def test_one_that_does_not_let_us_in_is_not(servers: Stack):
    url = sa.make_url(servers.environment["DATABASE_URL"]).set(password="wrong")
    started = time.monotonic()
    with pytest.raises(sa.exc.OperationalError, match="password authentication failed"):
        db.wait_for(db.engine(url.render_as_string(hide_password=False), "tests", 1))
    assert time.monotonic() - started < db.START_SECONDS_MAX / 2
