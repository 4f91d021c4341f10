"""Steps 5 and 6 of the story: apply what a lane has pending, batch after batch, each in one locked transaction.

A decision that raises fails its own operation. A batch that cannot be written for a reason of ours (a broken
constraint, say) is taken again in halves, until the one operation at fault stands alone and is marked as failed.
A fault of the world (database gone, deadlock, lock timeout) undoes the batch and is raised; the lane is tried again.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError, OperationalError

from core import lanes, ledger, rules
from core.lanes import LANE_BATCH_OPERATIONS_MAX
from core.operations import Account, Applied, Failed, Operation, Outcome

SLICE_SECONDS = 1.0  # then the lane's bell is rung again, and other lanes have their turn
LOGGED_OPERATIONS_MAX = 20  # of a batch; the rest is counted

Decide = Callable[[Operation, Mapping[str, Account]], Outcome]
log = structlog.get_logger("kassa.drain")


@dataclass
class Drained:
    """What a drain did: outcomes by status, and whether there may be more to do."""

    counts: Counter[str] = field(default_factory=Counter)
    remaining: bool = False


def drain(engine: sa.Engine, lane: int, *, wait: bool = True, seconds: float = SLICE_SECONDS) -> Drained:
    """Apply the lane's pending operations until none is left or the time is over.

    wait: whether to wait where somebody else holds the lane's lock, rather than leave the lane to them.
    """
    done, limit, deadline = Drained(), LANE_BATCH_OPERATIONS_MAX, time.monotonic() + seconds
    while True:
        try:
            counts = drain_batch(engine, lane, limit, wait=wait)
        except (DBAPIError, ledger.LedgerError) as error:
            if isinstance(error, OperationalError):
                raise
            log.exception("batch_not_written", lane=lane, limit=limit)
            counts = drain_batch(engine, lane, 1, wait=wait, decide=give_up) if limit == 1 else Counter()
            full, limit = True, max(1, limit // 2)
        else:
            full, limit = counts.total() == limit, min(limit * 2, LANE_BATCH_OPERATIONS_MAX)
        done.counts += counts
        done.remaining = full
        if not full or time.monotonic() > deadline:
            return done


def drain_batch(engine: sa.Engine, lane: int, limit: int, *, wait: bool, decide: Decide = rules.decide) -> Counter[str]:
    """The drain itself, one locked transaction. Returns how many operations ended in which status."""
    with engine.begin() as connection:
        if not lanes.lock(connection, lane, wait=wait):
            return Counter()
        operations = lanes.next_pending(connection, lane, limit)
        if not operations:
            return Counter()
        books = ledger.lock(connection, ledger.touched(map(rules.accounts_touched, operations)))
        decided = [(operation, *settle(operation, books, decide)) for operation in operations]
        ledger.write(connection, lane, books, decided)
    report(lane, [(operation, ledger.status_of(outcome)) for operation, outcome, _ in decided])
    return Counter(ledger.status_of(outcome) for _, outcome, _ in decided)


def settle(operation: Operation, books: ledger.Books, decide: Decide) -> tuple[Outcome, dict[str, int]]:
    """Decide one operation and post what it moves. A defect becomes Failed: it moves nothing and blocks nobody."""
    try:
        outcome = decide(operation, books.accounts)
        versions = books.post(operation.id, outcome.postings) if isinstance(outcome, Applied) else {}
    except Exception:
        log.exception("operation_failed", operation=operation.id, user=operation.user_id, lane=operation.lane)
        return Failed(), {}
    return outcome, versions


def give_up(_operation: Operation, _accounts: Mapping[str, Account]) -> Outcome:
    """The decision for an operation whose outcome could not be written."""
    return Failed()


def report(lane: int, finished: list[tuple[Operation, str]]) -> None:
    """One log line for a committed batch, by which a request can be followed to its end."""
    log.info(
        "drained",
        lane=lane,
        finished=len(finished),
        operations=[
            {"id": operation.id, "user": operation.user_id, "request_id": operation.request_id, "status": status}
            for operation, status in finished[:LOGGED_OPERATIONS_MAX]
        ],
    )
