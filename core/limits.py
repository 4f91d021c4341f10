"""Overload is refused before anything is stored: to a user with too much unfinished, and to all where too much waits.

The limit of a user is part of the accepting statements, which have the user's row locked anyway, and so is exact.

For the whole, each process looks a few times a second, while there is something to accept, and counts what it has let
in since. Only near the limit everybody counts under one lock, so that no more get in than are allowed, however many
processes there are. Retries of what is stored, and reads, are served in any case.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from core.db import Prepared
from core.errors import Refusal
from core.metrics import REFUSED

LOOK_SECONDS = 0.5
RECENT_SECONDS = 2  # what was seen longer ago says nothing about now
NEAR_SHARE, NEAR_OPERATIONS = 0.1, 10_000  # so close to the limit everybody counts; more than come in between two looks
RETRY_SECONDS_MAX = 60
ENOUGH = 0.9  # of the limit: when so much is left, it is worth asking again
ONE_COUNTS = 0x6B617373616C

LOAD = Prepared(
    "load",
    ["bigint"],
    """
SELECT (SELECT count(*) FROM (SELECT FROM operations WHERE status = 'pending' LIMIT $1) AS counted) AS pending,
       coalesce(pg_sequence_last_value('apply_no'::regclass), 0) AS finished,
       coalesce((SELECT max(extract(epoch FROM clock_timestamp() - head.created_at))
                   FROM lanes CROSS JOIN LATERAL (
                        SELECT created_at FROM operations o WHERE o.lane = lanes.id AND o.status = 'pending'
                         ORDER BY o.turn, o.id LIMIT 1) AS head), 0)::float AS oldest_seconds
""",
)
log = structlog.get_logger("kassa.api")


@dataclass(frozen=True)
class Bounds:
    """What an acceptance is held to: a user's unfinished operations; `refusal` where there is no room for anybody."""

    user_pending_max: int = 2**62
    refusal: Refusal | None = None
    retry_after_seconds: int = 1


@dataclass
class Load:
    """What a look has found, and how much this process has let in since it began."""

    at: float = 0.0  # monotonic
    pending: int = 0
    finished: int = 0
    oldest_seconds: float = 0.0
    finished_per_second: float = 0.0
    let_in: int = 0


class Limits:
    """The limits of one API process. `reader`: in autocommit; `engine`: for transactions."""

    def __init__(
        self, reader: sa.Engine, engine: sa.Engine, *, user_pending: int, pending: int, pending_seconds: int
    ) -> None:
        self.user_pending_max = user_pending
        self._reader = reader
        self._engine = engine
        self._pending_max = pending
        self._pending_seconds_max = pending_seconds
        self._load = Load(pending=pending - 1)  # all count until it has been seen
        self._looking = threading.Lock()
        self._batches_wait = False

    @contextmanager
    def admission(self, wanted: int) -> Iterator[tuple[sa.Connection, int]]:
        """A connection to store operations by one statement, and how many of the wanted may be stored there."""
        self._look_now_and_then()
        if self._is_full():
            with self._reader.connect() as connection:
                yield connection, 0
        elif self._load.pending + self._load.let_in + wanted <= self._far():
            self._load.let_in += wanted
            with self._reader.connect() as connection:
                yield connection, wanted
        else:
            with self._engine.begin() as connection:
                yield connection, min(wanted, self._counted_room(connection))

    def require_room(self, connection: sa.Connection, wanted: int) -> None:
        """In the transaction that is to store them: raise Refusal overloaded unless all the wanted may be stored."""
        self._look_now_and_then()
        crowded = self._load.pending + self._load.let_in + wanted > self._far()
        if self._is_full() or (crowded and wanted > self._counted_room(connection)):
            self._batches_wait = True
            REFUSED.labels("overloaded").inc(wanted)
            raise self.refusal()
        self._load.let_in += wanted

    def require_hope(self) -> None:
        """Before a batch is read: raise Refusal overloaded if one found no room, and not enough has become free since.

        To read and validate what is refused anyway would take from the workers what they need to make room.
        """
        self._look_now_and_then()
        if self._batches_wait:
            REFUSED.labels("overloaded").inc()
            raise self.refusal()

    def bounds(self, room: int) -> Bounds:
        """For an acceptance for which there is so much room."""
        return Bounds(self.user_pending_max, None if room else self.refusal(), self.retry_after_seconds())

    def refusal(self) -> Refusal:
        """For whoever finds no room."""
        seconds = self.retry_after_seconds()
        return Refusal("overloaded", f"Too much is waiting: ask again in {seconds} s.", retry_after_seconds=seconds)

    def retry_after_seconds(self) -> int:
        """When there will be room, by how fast the workers are."""
        excess = self._load.pending + self._load.let_in - ENOUGH * self._pending_max
        if excess <= 0:
            return 1
        if self._load.finished_per_second < 1:
            return RETRY_SECONDS_MAX
        return max(1, min(RETRY_SECONDS_MAX, round(excess / self._load.finished_per_second)))

    def is_near(self) -> bool:
        """Whether everybody counts, or is refused: retries of what is stored had better not queue up for that."""
        return self._is_full() or self._load.pending + self._load.let_in >= self._far()

    def _is_full(self) -> bool:
        """Whether there was no room a moment ago: then nobody counts again, or waits for those who do."""
        return self._load.pending >= self._pending_max or self._load.oldest_seconds > self._pending_seconds_max

    def _far(self) -> float:
        """Up to here nobody needs to count."""
        return self._pending_max - max(NEAR_OPERATIONS, NEAR_SHARE * self._pending_max)

    def _counted_room(self, connection: sa.Connection) -> int:
        """How many may be stored in this transaction; nobody else counts until it ends."""
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (ONE_COUNTS,))
        found = LOAD.row(connection, (self._pending_max + 1,))
        self._load.pending, self._load.let_in = found.pending, 0
        return max(0, self._pending_max - int(found.pending))

    def _look_now_and_then(self) -> None:
        if time.monotonic() - self._load.at < LOOK_SECONDS or not self._looking.acquire(blocking=False):
            return
        try:
            self._look()
        except sa.exc.SQLAlchemyError as error:  # whoever accepts will meet it, too, and knows how to tell
            log.warning("load_not_seen", error=repr(error))
        finally:
            self._looking.release()

    def _look(self) -> None:
        """Others go on meanwhile, by what was seen before; if that was long ago, they count."""
        before, now = self._load, time.monotonic()
        recent = now - before.at < RECENT_SECONDS
        self._load = Load(now, self._pending_max - 1, before.finished)
        if recent:
            self._load.pending, self._load.oldest_seconds = before.pending + before.let_in, before.oldest_seconds
            self._load.finished_per_second = before.finished_per_second
        with self._reader.connect() as connection:
            found = LOAD.row(connection, (self._pending_max + 1,))
        self._load.pending, self._load.finished = found.pending, found.finished
        self._load.oldest_seconds = found.oldest_seconds
        if found.pending <= ENOUGH * self._pending_max and not self._is_full():
            self._batches_wait = False
        if recent:
            self._load.finished_per_second = max(0, found.finished - before.finished) / (now - before.at)
