"""What the finished leave behind in the queue is vacuumed away by the workers."""

import os
import subprocess
import sys

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from cli.stack import Stack
from core import db
from worker import vacuum
from worker.vacuum import FINISHED_BETWEEN, Vacuums

LEFT_BEHIND = """
INSERT INTO queue (lane, turn, operation_id) SELECT 0, i, gen_random_uuid() FROM generate_series(1, 5000) AS i;
DELETE FROM queue
"""
LOOK = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT 1 FROM queue WHERE lane = 0 ORDER BY turn LIMIT 1"


def pages_of_a_look(engine: sa.Engine) -> int:
    """How many pages a look at the lane reads."""
    with engine.connect() as connection:
        plan = connection.exec_driver_sql(LOOK).scalar_one()[0]["Plan"]
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.fixture
def full_of_dead(engine: sa.Engine) -> sa.Engine:
    """A database whose queue is empty, and was not a moment ago."""
    with engine.begin() as connection:
        connection.exec_driver_sql(LEFT_BEHIND)
    return engine


def test_after_so_many_operations_looks_are_short_again(full_of_dead: sa.Engine) -> None:
    """A lane's first page is the next one's then, and there is nothing to pass."""
    vacuums = Vacuums(full_of_dead)
    assert not vacuums.after(FINISHED_BETWEEN - 1)
    assert pages_of_a_look(full_of_dead) > 20
    assert vacuums.after(1)
    assert pages_of_a_look(full_of_dead) < 5


def test_it_takes_a_small_part_of_the_time(full_of_dead: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is finished, the next one is not before its time."""
    monkeypatch.setattr(vacuum, "SHARE_MAX", 1e-6)
    vacuums = Vacuums(full_of_dead)
    assert vacuums.after(FINISHED_BETWEEN)
    assert not vacuums.after(10 * FINISHED_BETWEEN)


def test_few_dead_rows_among_many_are_removed_too(engine: sa.Engine) -> None:
    """As when a crowd waits on other lanes: by itself PostgreSQL would not look into the index for so few."""
    with engine.begin() as connection:
        connection.exec_driver_sql(LEFT_BEHIND.split(";")[0])
        connection.exec_driver_sql(
            "INSERT INTO queue (lane, turn, operation_id)"
            " SELECT 1, i, gen_random_uuid() FROM generate_series(1, 300000) AS i"
        )
    with db.autocommit(engine).connect() as connection:
        connection.exec_driver_sql("VACUUM queue")
        connection.exec_driver_sql("DELETE FROM queue WHERE lane = 0")
        assert Vacuums(engine).after(FINISHED_BETWEEN)
        assert pages_of_a_look(engine) < 5
        connection.exec_driver_sql("DELETE FROM queue")


def test_one_that_takes_too_long_is_given_up(full_of_dead: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task has more to do; and the connection is as it was before."""
    monkeypatch.setattr(vacuum, "SECONDS_MAX", 0.05)
    monkeypatch.setattr(vacuum, "VACUUM", "SELECT pg_sleep(5)")
    single = db.engine(full_of_dead.url.render_as_string(hide_password=False), "tests", 1)
    vacuums = Vacuums(single)
    assert not vacuums.after(FINISHED_BETWEEN)
    assert not vacuums.after(FINISHED_BETWEEN)  # nor is it tried again at once
    with single.connect() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "15s"
    single.dispose()


def test_a_failure_is_no_drains_trouble(engine: sa.Engine) -> None:
    """The database is away: PostgreSQL's own vacuum will come."""
    nowhere = db.engine(engine.url.set(port=1).render_as_string(hide_password=False), "tests", 1)
    with capture_logs() as logs:
        assert not Vacuums(nowhere).after(FINISHED_BETWEEN)
    assert [each["event"] for each in logs] == ["queue_not_vacuumed"]


def test_processes_of_a_worker_vacuum_and_look_for_garbage_seldom(full_of_dead: sa.Engine, servers: Stack) -> None:
    """Celery's signal and the task's end are what calls it."""
    script = """
import gc
from celery.signals import worker_process_init
from worker import tasks, vacuum
worker_process_init.send(None)
assert gc.get_freeze_count() > 1000 and gc.get_threshold()[0] > 700
vacuum.FINISHED_BETWEEN = 0
tasks.drain_lane(0)
"""
    url = full_of_dead.url.render_as_string(hide_password=False)
    subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | servers.environment | {"DATABASE_URL": url, "SECRET_KEY": "abcdefghijklmnop" * 2},
        check=True,
    )
    assert pages_of_a_look(full_of_dead) < 5
