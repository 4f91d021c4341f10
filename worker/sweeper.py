"""The sweeper: a process of its own that needs neither Redis nor beat, and the reason why a bell may be lost.

It remembers which operation was at the head of each lane. One that is still there at the next look has waited too
long, whatever clocks say, and the sweeper drains that lane itself.
"""

import argparse
import signal
import sys
import time
from collections import Counter
from types import FrameType

import sqlalchemy as sa
import structlog

from core import db, lanes, rules, settings, telemetry
from core.errors import NotReady
from worker.apart import drain_apart
from worker.drain import Decide

LOOK_SECONDS = 0.5  # a lane moves within two looks: half of the promised 2 s, the other half is for doing the work

log = structlog.get_logger("kassa.sweeper")


def run_once(
    engine: sa.Engine, before: dict[int, str], strikes: Counter[str], decide: Decide = rules.decide
) -> dict[int, str]:
    """Drain the lanes whose head is the same as it was `before`. Returns the heads to compare with next time.

    strikes: how often each operation has taken a process with it; see `worker/apart.py`.
    """
    with db.autocommit(engine).connect() as connection:
        heads = lanes.heads(connection)
    standing = [lane for lane, head in heads.items() if before.get(lane) == head]
    if not standing:
        strikes.clear()
    else:
        drain_apart(engine, standing, strikes, LOOK_SECONDS, decide)
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
        db.wait_for(engine)
        db.require_ready(engine, configuration.lanes)
    except (settings.SettingsError, NotReady, sa.exc.DBAPIError) as error:
        sys.exit(f"kassa sweeper: {error}")
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    log.info("sweeper_ready", look_seconds=LOOK_SECONDS)
    heads: dict[int, str] = {}
    strikes: Counter[str] = Counter()
    while True:
        try:
            heads = run_once(engine, heads, strikes)
        except Exception as error:  # the database is away, most likely: look again
            log.warning("sweep_failed", error=repr(error))
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
