"""Drains in a process of their own, for the sweeper: a decision that kills its process, or never ends, must not take
the sweeper with it.

Before each decision the child notes the operation in memory that both share. So the parent knows at which one the child
died or stood still, and an operation that did so STRIKES_MAX times is marked failed without being decided again.
"""

import mmap
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
import structlog

from core import rules
from core.operations import Account, Failed, Operation, Outcome, Shelf
from worker.drain import Decide, drain

STRIKES_MAX = 2
DECISION_SECONDS_MAX = 1.0  # a decision takes microseconds
CHILD_SECONDS_MAX = 20.0  # longer than any statement may take
PATIENCE = "6s"  # longer than a worker keeps its locks over a decision that never ends
ORPHAN_SECONDS = 1.0  # later a child ends by itself: its parent was killed, and it may never come to an end
POLL_SECONDS = 0.005
ID_BYTES = 36

log = structlog.get_logger("kassa.sweeper")


def drain_apart(
    engine: sa.Engine,
    lanes: Sequence[int],
    strikes: Counter[str],
    seconds: float,
    decide: Decide = rules.decide,
    awaited: int | None = None,
) -> None:
    """Drain the lanes, one after another, in a child, and wait for it. What the child dies of is counted in `strikes`.

    seconds: the time slice of each lane. awaited: the only lane that is waited for where somebody else is at it.
    """
    deciding = mmap.mmap(-1, ID_BYTES)
    child = os.fork()
    if child == 0:
        drain_and_exit(engine, lanes, seconds, noting(deciding, strikes, decide), awaited)
    if culprit := wait_for(child, deciding):
        strikes[culprit] += 1
        log.error("died_of_an_operation", operation=culprit, strikes=strikes[culprit])


def wait_for(child: int, deciding: mmap.mmap) -> str | None:
    """Wait for the child, and kill it where it stands still. Returns the id of the operation that it died of.

    One that hears nothing from the database any more is killed, too, after CHILD_SECONDS_MAX, and no operation blamed.
    """
    last, since = b"", time.monotonic()
    deadline = time.monotonic() + CHILD_SECONDS_MAX
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        now = deciding[:]
        if ended:
            return now.decode() if os.WIFSIGNALED(status) and any(now) else None
        if now != last:
            last, since = now, time.monotonic()
        elif any(now) and time.monotonic() - since > DECISION_SECONDS_MAX:
            os.kill(child, signal.SIGKILL)
        elif not any(now) and time.monotonic() > deadline:
            log.error("sweep_took_too_long", seconds=CHILD_SECONDS_MAX)
            os.kill(child, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def noting(deciding: mmap.mmap, strikes: Mapping[str, int], decide: Decide) -> Decide:
    """`decide`, with a note of which operation it is at; what has had its strikes becomes Failed."""

    def noted(operation: Operation, accounts: Mapping[str, Account], shelf: Shelf) -> Outcome:
        if strikes.get(operation.id, 0) >= STRIKES_MAX:
            log.error("operation_condemned", operation=operation.id, user=operation.user_id, lane=operation.lane)
            return Failed()
        deciding[:] = operation.id.encode()
        try:
            return decide(operation, accounts, shelf)
        finally:
            deciding[:] = bytes(ID_BYTES)

    return noted


def drain_and_exit(
    engine: sa.Engine, lanes: Sequence[int], seconds: float, decide: Decide, awaited: int | None
) -> None:
    """The child. It leaves its parent's connections alone, and never returns; without its parent it ends some day."""
    signal.setitimer(signal.ITIMER_REAL, CHILD_SECONDS_MAX + ORPHAN_SECONDS)
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        engine.dispose(close=False)
        for lane in lanes:
            sweep(engine, lane, seconds, decide, wait=lane == awaited)
    finally:
        os._exit(0)


def sweep(engine: sa.Engine, lane: int, seconds: float, decide: Decide, *, wait: bool) -> None:
    """Drain one lane; unless `wait`, only if nobody else is at it."""
    try:
        done = drain(engine, lane, wait=wait, patience=PATIENCE if wait else "", seconds=seconds, decide=decide)
    except Exception:  # whatever it is, the other lanes must not wait for it
        log.exception("lane_not_swept", lane=lane)
    else:
        if done.counts:
            log.warning("swept", lane=lane, **done.counts)
