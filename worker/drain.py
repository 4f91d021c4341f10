"""Steps 5 and 6 of the story: apply what a lane has pending, batch after batch, each in one locked transaction.

A decision that raises fails its own operation. A batch that cannot be written for a reason of ours (a broken
constraint, say) is taken again in ever smaller parts, until the operation at fault stands alone, and is marked failed.
A fault of the world (database gone, deadlock) undoes the batch and is raised; the lane is tried again. So it is where
another holds a lock for too long: that one may be frozen.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError, OperationalError

from core import lanes, ledger, rules, services
from core.db import is_connection_lost, is_lock_timeout
from core.lanes import LANE_BATCH_OPERATIONS_MAX, TURNS_MAX
from core.ledger import Decided
from core.operations import Account, Applied, Failed, Operation, Outcome, Shelf

SLICE_SECONDS = 1.0  # then the lane's bell is rung again, and other lanes have their turn
NARROWING = 8  # a batch that cannot be written is tried again this many times smaller: 3000, 375, 46, 5, 1
ROOM = 4  # a lane that fills less than this part of a batch leaves room for others
LOGGED_OPERATIONS_MAX = 20  # of a batch; the rest is counted

Decide = Callable[[Operation, Mapping[str, Account], Shelf], Outcome]
log = structlog.get_logger("kassa.drain")


@dataclass
class Drained:
    """What a drain did: outcomes by status, and whether there may be more to do."""

    counts: Counter[str] = field(default_factory=Counter)
    remaining: bool = False


class Unwritable(Exception):
    """A batch could not be written for a reason of ours; `operation_ids` are those that it held."""

    def __init__(self, operation_ids: list[str]) -> None:
        super().__init__(f"{len(operation_ids)} operations")
        self.operation_ids = operation_ids


def drain(
    engine: sa.Engine,
    lane: int,
    *,
    wait: bool = True,
    others: bool = False,
    patience: str = "",
    seconds: float = SLICE_SECONDS,
    decide: Decide = rules.decide,
) -> Drained:
    """Apply the lane's pending operations until none is left or the time is over.

    wait: whether to wait where somebody else holds the lane's lock, rather than leave the lane to them.
    others: whether other lanes with work are taken along where this one leaves room: one transaction serves them all;
    for the lane itself it waits in any case.
    patience: for how long to wait for a lock, where not for as long as the engine's connections do.
    """
    done, limit, deadline = Drained(), LANE_BATCH_OPERATIONS_MAX, time.monotonic() + seconds
    deciding = decide
    while True:
        try:
            counts = drain_batch(engine, lane, limit, wait=wait, others=others, patience=patience, decide=deciding)
        except Unwritable as error:
            log.exception("batch_not_written", lane=lane, operations=len(error.operation_ids))
            counts, full, limit = Counter(), True, max(1, len(error.operation_ids) // NARROWING)
            deciding = failing(error.operation_ids[0], decide) if len(error.operation_ids) == 1 else decide
        except OperationalError as error:
            if not is_lock_timeout(error):
                raise
            log.warning("locks_held_by_another", lane=lane)
            done.remaining = True
            return done
        else:
            full, limit = counts.total() >= min(limit, TURNS_MAX), min(limit * NARROWING, LANE_BATCH_OPERATIONS_MAX)
            deciding = decide
        done.counts += counts
        done.remaining = full
        if not full or time.monotonic() > deadline:
            return done


def drain_batch(
    engine: sa.Engine,
    lane: int,
    limit: int,
    *,
    wait: bool,
    others: bool = False,
    patience: str = "",
    decide: Decide = rules.decide,
) -> Counter[str]:
    """The drain itself, one locked transaction. Returns how many operations ended in which status.

    Raises Unwritable where the batch is at fault; OperationalError where the world is. Nothing was written then.
    """
    operations: list[Operation] = []
    try:
        with engine.begin() as connection:
            if patience:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{patience}'")
            if others:
                locked = lanes.lock_with_others(connection, lane, limit // ROOM)
            else:
                locked = lanes.lock(connection, lane, wait=wait)
            operations = lanes.next_pending(connection, locked, limit) if locked else []
            if not operations:
                return Counter()
            decided = apply(connection, operations, decide)
    except OperationalError:
        raise
    except (DBAPIError, ledger.LedgerError, TypeError, ValueError) as error:  # the last two: it could not even be sent
        if not operations or is_connection_lost(error):
            raise
        raise Unwritable([operation.id for operation in operations]) from error
    finished = [(operation, ledger.status_of(outcome)) for operation, outcome, _ in decided]
    report(lane, finished)
    return Counter(status for _, status in finished)


def apply(connection: sa.Connection, operations: list[Operation], decide: Decide) -> list[Decided]:
    """Lock all accounts of the batch, decide each operation on what its predecessors left, write everything."""
    books = ledger.lock(connection, ledger.touched(map(accounts_touched, operations)))
    shelf = services.shelf(connection, operations)
    decided = [(operation, *settle(operation, books, shelf, decide)) for operation in operations]
    services.record_purchases(connection, [(operation, outcome) for operation, outcome, _ in decided])
    ledger.write(connection, books, decided)
    return decided


def accounts_touched(operation: Operation) -> tuple[str, ...]:
    """The accounts of an operation; none where the rules do not know it, so that its decision fails it alone."""
    try:
        return rules.accounts_touched(operation)
    except Exception:
        log.exception("operation_unknown", operation=operation.id, type=operation.type)
        return ()


def settle(operation: Operation, books: ledger.Books, shelf: Shelf, decide: Decide) -> tuple[Outcome, dict[str, int]]:
    """Decide one operation and post what it moves. A defect becomes Failed: it moves nothing and blocks nobody."""
    try:
        outcome = decide(operation, books.accounts, shelf)
        versions = books.post(operation.id, outcome.postings) if isinstance(outcome, Applied) else {}
        if isinstance(outcome, Applied) and operation.service_id:
            shelf.bought.add((operation.user_id, operation.service_id))
    except Exception:
        log.exception("operation_failed", operation=operation.id, user=operation.user_id, lane=operation.lane)
        return Failed(), {}
    return outcome, versions


def failing(operation_id: str, decide: Decide) -> Decide:
    """`decide`, but for the one operation whose outcome could not be written: it becomes Failed."""

    def decided(operation: Operation, accounts: Mapping[str, Account], shelf: Shelf) -> Outcome:
        return Failed() if operation.id == operation_id else decide(operation, accounts, shelf)

    return decided


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
