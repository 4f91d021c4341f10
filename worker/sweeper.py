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
PATIENT_AFTER_LOOKS = 10

log = structlog.get_logger("kassa.sweeper")


class Sweeper:
    """What it remembers from one look to the next."""

    def __init__(self, engine: sa.Engine, decide: Decide = rules.decide) -> None:
        self.heads: dict[int, str] = {}  # of lanes with work: the operation at the head
        self.strikes: Counter[str] = Counter()  # how often each has taken a process with it; see `worker/apart.py`
        self._stood: Counter[int] = Counter()  # for how many looks a lane has stood still
        self._engine, self._decide = engine, decide

    def look(self) -> None:
        """Drain the lanes whose head is the same as at the last look.

        Where somebody is at a lane it is left to them; but the one that has stood for longest is waited for in the
        end: perhaps one worker after another falls into the same operation, and the lane is never free.
        """
        with db.autocommit(self._engine).connect() as connection:
            heads = lanes.heads(connection)
        standing = [lane for lane, head in heads.items() if self.heads.get(lane) == head]
        self._stood = Counter({lane: self._stood[lane] + 1 for lane in standing})
        if not standing:
            self.strikes.clear()
        else:
            longest, looks = self._stood.most_common(1)[0]
            awaited = longest if looks >= PATIENT_AFTER_LOOKS else None
            order = sorted(standing, key=lambda lane: lane == awaited)  # so that no other lane waits for it
            drain_apart(self._engine, order, self.strikes, LOOK_SECONDS, self._decide, awaited)
        self.heads = heads


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
    sweeper = Sweeper(engine)
    while True:
        try:
            sweeper.look()
        except Exception as error:  # the database is away, most likely: look again
            log.warning("sweep_failed", error=repr(error))
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
