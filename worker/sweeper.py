"""The sweeper: a process of its own that needs neither Redis nor beat, and the reason why a bell may be lost.

It remembers which operation was at the head of each lane. One that is still there at the next look has waited too
long, whatever clocks say, and the sweeper drains that lane itself.
"""

import argparse
import signal
import sys
import time
from types import FrameType

import sqlalchemy as sa
import structlog

from core import db, lanes, settings, telemetry
from core.errors import NotReady
from worker.drain import drain

LOOK_SECONDS = 0.5  # a lane moves within two looks: half of the promised 2 s, the other half is for doing the work

log = structlog.get_logger("kassa.sweeper")


def run_once(engine: sa.Engine, before: dict[int, str]) -> dict[int, str]:
    """Drain the lanes whose head is the same as it was `before`. Returns the heads to compare with next time."""
    with db.autocommit(engine).connect() as connection:
        heads = lanes.heads(connection)
    for lane in [lane for lane, head in heads.items() if before.get(lane) == head]:
        try:
            done = drain(engine, lane, wait=False, seconds=LOOK_SECONDS)
        except Exception:  # whatever it is, the other lanes must not wait for it
            log.exception("lane_not_swept", lane=lane)
        else:
            if done.counts:
                log.warning("swept", lane=lane, **done.counts)
    return heads


def stop(_signal: int, _frame: FrameType | None) -> None:
    """Leave between two statements; an open transaction is undone."""
    sys.exit(0)


def main() -> None:
    """Sweep until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m worker.sweeper", description=__doc__)
    parser.parse_args()
    try:
        configuration = settings.load()
        telemetry.configure(configuration.log_level)
        engine = db.engine(configuration.database_url, "sweeper", 1, lock_timeout=db.DRAIN_LOCK_TIMEOUT)
        db.require_ready(engine, configuration.lanes)
    except (settings.SettingsError, NotReady, sa.exc.DBAPIError) as error:
        sys.exit(f"kassa sweeper: {error}")
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log.info("sweeper_ready", look_seconds=LOOK_SECONDS)
    heads: dict[int, str] = {}
    while True:
        try:
            heads = run_once(engine, heads)
        except Exception as error:  # the database is away, most likely: look again
            log.warning("sweep_failed", error=repr(error))
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
