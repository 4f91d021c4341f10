"""The Celery tasks: a few lines each, around what `worker/drain.py` and `core` do."""

import time
from typing import Any
from uuid import UUID

import structlog

from core import attempts, codes, rates, sessions
from core.broker import PUBLISH_TIMEOUT_SECONDS
from core.db import autocommit
from core.doorbell import Doorbell, answer, redis_client
from core.rate_sheets import RatesError
from worker import mail
from worker.app import app, configuration, engine
from worker.drain import drain

bells = redis_client(configuration.redis_url, PUBLISH_TIMEOUT_SECONDS)
doorbell = Doorbell(configuration.redis_url)
log = structlog.get_logger("kassa.worker")

PATIENCE_SECONDS_MAX = 0.02
PATIENCE_SECONDS_PER_OPERATION = 0.002


class Pace:
    """Under load a moment's patience lets one transaction serve many operations; otherwise nobody waits.

    Patience grows with what the last drain found, so it tends to its maximum where more than some thousand operations
    come in a second, and to nothing where fewer do.
    """

    def __init__(self) -> None:
        self.next = 0.0

    def keep(self) -> None:
        """Return when enough time has passed since the last drain."""
        time.sleep(min(PATIENCE_SECONDS_MAX, max(0.0, self.next - time.monotonic())))

    def found(self, operations: int) -> None:
        """Say what the drain that is over has found."""
        patience = min(PATIENCE_SECONDS_MAX, operations * PATIENCE_SECONDS_PER_OPERATION)
        self.next = time.monotonic() + patience


pace = Pace()


@app.task(name="drain")
def drain_lane(lane: int) -> dict[str, Any]:
    """Answer a lane's bell, and take other lanes with work along.

    The result is shown in Flower: the lane, outcomes by status, and whether work remains.
    """
    if not isinstance(lane, int):
        raise TypeError("a lane is a number")  # a forged bell
    pace.keep()
    answer(bells, lane)
    done = drain(engine, lane, others=True)
    pace.found(done.counts.total())
    if done.remaining:
        doorbell.ring(lane)
    return {"lane": lane, "applied": 0, "rejected": 0, **done.counts, "remaining": done.remaining}


@app.task(name="housekeeping")
def housekeeping() -> dict[str, int]:
    """Forget what nobody can use any more: sessions, e-mail codes, counted tries."""
    with autocommit(engine).connect() as connection:
        return {
            "sessions": sessions.forget_old(connection, configuration),
            "codes": codes.forget_old(connection),
            "attempts": attempts.forget_ended(connection),
        }


@app.task(name="mail_code", soft_time_limit=mail.SEND_SECONDS_MAX, time_limit=2 * mail.SEND_SECONDS_MAX)
def mail_code(code_id: str) -> dict[str, Any]:
    """Make an e-mail code and mail it. Flower shows the code's id, and never the code."""
    return {"code": str(UUID(code_id)), "mailed": mail.mail_code(engine, configuration, str(UUID(code_id)))}


@app.task(name="mail_forgotten_codes")
def mail_forgotten_codes() -> dict[str, int]:
    """Announce again the codes whose announcement the broker has lost, or whose mail could not be sent."""
    with autocommit(engine).connect() as connection:
        forgotten = codes.forgotten(connection)
    for code_id in forgotten:
        doorbell.announce("mail_code", code_id)
    return {"codes": len(forgotten)}


@app.task(name="fetch_rates")
def fetch_rates() -> dict[str, Any]:
    """Get the day's exchange rates. Where that fails those of before stay in use, and the schedule comes back to it."""
    try:
        sheet = rates.refresh(engine, configuration.rates_url)
    except RatesError as error:
        log.warning("rates_not_fetched", error=str(error))
        return {"currencies": 0}
    log.info("rates_fetched", date=sheet.date.isoformat(), currencies=len(sheet.rubles), skipped=sheet.skipped)
    return {"currencies": len(sheet.rubles), "date": sheet.date.isoformat()}
