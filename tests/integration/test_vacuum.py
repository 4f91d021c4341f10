"""What the finished leave behind in the queue is vacuumed away by the workers."""

import pytest
import sqlalchemy as sa

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


def test_a_failure_is_no_drains_trouble(engine: sa.Engine) -> None:
    """The database is away: PostgreSQL's own vacuum will come."""
    nowhere = db.engine(str(engine.url.set(port=1).render_as_string(hide_password=False)), "tests", 1)
    assert Vacuums(nowhere).after(FINISHED_BETWEEN)
