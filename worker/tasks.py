"""The Celery tasks: a few lines each, around what `worker/drain.py` and `core` do."""

from typing import Any

from core import identity
from core.broker import PUBLISH_TIMEOUT_SECONDS
from core.doorbell import Doorbell, answer, redis_client
from worker.app import app, configuration, engine
from worker.drain import drain

bells = redis_client(configuration.redis_url, PUBLISH_TIMEOUT_SECONDS)
doorbell = Doorbell(configuration.redis_url)


@app.task(name="drain")
def drain_lane(lane: int) -> dict[str, Any]:
    """Answer a lane's bell. The result is shown in Flower: the lane, outcomes by status, and whether work remains."""
    if not isinstance(lane, int):
        raise TypeError("a lane is a number")  # a forged bell
    answer(bells, lane)
    done = drain(engine, lane)
    if done.remaining:
        doorbell.ring(lane)
    return {"lane": lane, "applied": 0, "rejected": 0, **done.counts, "remaining": done.remaining}


@app.task(name="housekeeping")
def housekeeping() -> dict[str, int]:
    """Forget sessions that nobody can use any more."""
    with engine.begin() as connection:
        return {"sessions": identity.forget_old_sessions(connection)}
