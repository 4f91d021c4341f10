"""The Celery tasks: a few lines each, around what `worker/drain.py` and `core` do."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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
from worker.drain import SLICE_SECONDS, drain
from worker.patience import Patience
from worker.vacuum import Vacuums

bells = redis_client(configuration.redis_url, PUBLISH_TIMEOUT_SECONDS)
doorbell = Doorbell(configuration.redis_url, configuration.broker)
vacuums = Vacuums(engine)
log = structlog.get_logger("kassa.worker")

TIME_LIMIT_SECONDS = 10  # then a decision loops, and its process is killed; the sweeper finds the operation
ORPHAN_SECONDS = TIME_LIMIT_SECONDS + 2


@contextmanager
def ending_in_any_case() -> Iterator[None]:
    """Celery's time limit is kept by the parent of this process, which may have been killed: then it ends by itself."""
    signal.alarm(ORPHAN_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


@app.task(name="drain", time_limit=TIME_LIMIT_SECONDS)
@ending_in_any_case()
def drain_lane(lane: int) -> dict[str, Any]:
    """Answer a lane's bell, and take other lanes with work along, again and again while there is something to find.

    Under load a few bells so serve many operations.
    The result is shown in Flower: the lane, outcomes by status, and whether work remains.
    """
    if not isinstance(lane, int):
        raise TypeError("a lane is a number")  # a forged bell
    answer(bells, lane)
    counts: Counter[str] = Counter()
    deadline, patience = time.monotonic() + SLICE_SECONDS, Patience()
    while True:
        done = drain(engine, lane, others=True, seconds=deadline - time.monotonic())
        counts += done.counts
        patience.note(done.counts.total())
        if time.monotonic() > deadline or patience.is_over:
            break
        time.sleep(patience.pause_seconds)
    if done.remaining or done.counts:
        doorbell.ring(lane)
    vacuums.after(counts.total())
    return {"lane": lane, "applied": 0, "rejected": 0, **counts, "remaining": done.remaining}


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
